//! The commands: named calls with JSON arguments and a JSON result. They know no protocol and no stream.
//!
//! A name is dotted, `family.verb`; the families are one file each. Arguments and results are members of an object, in lower case with
//! underscores, units in the name. What a command cannot find out it names in its result under `missing`, and gives the rest.

mod agent;
pub mod arguments;
#[cfg(feature = "clear")]
mod content;
#[cfg(feature = "clear")]
mod device;
#[cfg(feature = "openstack")]
pub mod file;
mod logging;
#[cfg(feature = "openstack")]
pub mod network;
mod process;
pub mod program;
mod system;
pub mod table;
#[cfg(feature = "openstack")]
pub mod user;

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
#[cfg(feature = "openstack")]
use std::time::Duration;

use serde_json::{Map, Value};

use crate::commands::arguments::Arguments;
use crate::commands::table::Table;
#[cfg(feature = "openstack")]
use crate::exec::departure::is_deserted;
use crate::sys::errno;
#[cfg(feature = "openstack")]
use crate::sys::fd;

/// One command.
pub struct Command {
    pub name: &'static str,
    pub summary: &'static str,
    /// One line an argument, as help prints them: name, what it is, what it is when it is missing. Empty: none.
    pub arguments: &'static str,
    /// Takes its arguments out of the first, and refuses what is left there before it does anything.
    pub run: fn(&mut Arguments, &Call) -> Result<Reply, Error>,
}

/// How a call came about.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    /// Where the command was found.
    pub table: &'a Table,
    /// Deserted when nobody waits for the result any more; a command that takes long then ends.
    pub caller: Option<BorrowedFd<'a>>,
    /// Readable once the agent shall end.
    pub stop: Option<BorrowedFd<'a>>,
}

#[cfg(feature = "openstack")]
impl Call<'_> {
    /// Whether nobody waits for the result any more, or the agent ends.
    pub fn is_given_up(&self) -> bool {
        let is_stopped = |stop| fd::wait_for(stop, fd::READ, Some(Duration::ZERO)).is_ok_and(|ready| ready.readable);
        self.caller.is_some_and(is_deserted) || self.stop.is_some_and(is_stopped)
    }
}

/// What a command gives.
#[derive(Default)]
pub struct Reply {
    pub members: Map<String, Value>,
    /// To be done once the reply is on its way, because nobody could send it afterwards.
    pub afterwards: Option<Box<dyn FnOnce() + Send>>,
}

impl Reply {
    /// A reply of these members.
    pub fn of<const N: usize>(members: [(&str, Value); N]) -> Reply {
        let mut reply = Reply::default();
        members.into_iter().for_each(|(name, value)| reply.put(name, value));
        reply
    }

    /// Adds a member.
    pub fn put(&mut self, name: &str, value: impl Into<Value>) {
        self.members.insert(name.to_owned(), value.into());
    }
}

/// Why a command has no result: one variant for what its caller can do about it. The text names the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The system refused it, with a reason that is none of the others.
    Failed(String),
    UnknownArgument(String),
    MissingArgument(String),
    /// An argument that is not of the type or in the range that is wanted.
    BadArgument(String),
    /// What the command was to work on is not there.
    NotFound(String),
    Denied(String),
    /// This system cannot do it at all.
    Unsupported(String),
    TimedOut(String),
    /// The caller has gone or the agent ends.
    Interrupted(String),
}

impl Error {
    /// The number that stands for the variant, 1 to 18: `Status` on the wire. Numbers are never given out twice.
    pub fn code(&self) -> u8 {
        match self {
            Error::Failed(_) => 1,
            Error::UnknownArgument(_) => 10,
            Error::MissingArgument(_) => 11,
            Error::BadArgument(_) => 12,
            Error::NotFound(_) => 14,
            Error::Denied(_) => 15,
            Error::Unsupported(_) => 16,
            Error::TimedOut(_) => 17,
            Error::Interrupted(_) => 18,
        }
    }

    /// An error of the system, by its number; `what` is the operation with its object.
    pub fn system(what: &str, error: &io::Error) -> Error {
        let text = format!("{what}: {}", errno::describe(error));
        match error.kind() {
            io::ErrorKind::NotFound => Error::NotFound(text),
            io::ErrorKind::PermissionDenied => Error::Denied(text),
            io::ErrorKind::Unsupported => Error::Unsupported(text),
            _ if error.raw_os_error() == Some(crate::sys::file::ESRCH) => Error::NotFound(text),
            _ => Error::Failed(text),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (Error::Failed(text)
        | Error::UnknownArgument(text)
        | Error::MissingArgument(text)
        | Error::BadArgument(text)
        | Error::NotFound(text)
        | Error::Denied(text)
        | Error::Unsupported(text)
        | Error::TimedOut(text)
        | Error::Interrupted(text)) = self;
        f.write_str(text)
    }
}

/// Those that only compute, and so may be run where whoever waits holds up everybody: with them a host asks often whether the agent lives.
pub const AT_ONCE: [&str; 2] = ["agent.info", "agent.ping"];

/// The commands that every agent has, in the order of their names.
pub const BUILT_IN: &[Command] = &[
    agent::COMMANDS,
    agent::INFO,
    agent::PING,
    #[cfg(feature = "openstack")]
    file::INJECT,
    #[cfg(feature = "clear")]
    content::READ,
    #[cfg(feature = "clear")]
    content::WRITE,
    logging::LEVEL,
    #[cfg(feature = "clear")]
    device::ADD_ROUTES,
    #[cfg(feature = "openstack")]
    network::CONFIGURE,
    #[cfg(feature = "clear")]
    device::DELETE_INTERFACE,
    #[cfg(feature = "clear")]
    device::SET_DNS,
    #[cfg(feature = "clear")]
    device::SET_INTERFACE,
    process::list::LIST,
    process::run::RUN,
    process::signal::SIGNAL,
    system::HOSTNAME,
    system::INFO,
    #[cfg(feature = "clear")]
    system::online::ONLINE_CPUS,
    system::SET_TIME,
    system::SHUTDOWN,
    system::SYNC,
    #[cfg(feature = "openstack")]
    user::SET_PASSWORD,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dotted_and_stand_in_order_and_so_once() {
        assert!(BUILT_IN.iter().all(|command| command.name.contains('.') && !command.summary.is_empty()));
        assert!(AT_ONCE.iter().all(|name| BUILT_IN.iter().any(|command| command.name == *name)));
        assert!(BUILT_IN.is_sorted_by(|a, b| a.name < b.name));
    }
}
