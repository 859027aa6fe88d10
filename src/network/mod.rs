//! The network of this machine, made what OpenStack's hosts want: addresses, routes, name servers, the host name.

mod apply;
pub mod device;
mod files;
mod state;
pub mod wanted;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::network::state::Link;
use crate::network::wanted::{Interface, Wanted};
use crate::sys::netlink::Socket;
use crate::sys::{boot, errno, name};

/// How long the kernel may take for all of it. It answers at once, but for others that hold its lock.
const PATIENCE: Duration = Duration::from_secs(30);

/// Held while the network is changed: two requests at once would each undo the other's.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Why the network is not what it shall be.
#[derive(Debug)]
pub enum Error {
    /// What is wanted makes no sense; nothing is changed.
    Bad(String),
    /// No interface has it; nothing is changed.
    UnknownMac(String),
    /// `what` is the operation with its object.
    System { what: String, error: io::Error },
}

/// What had to be changed, in words; empty when everything was as it is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    pub changes: Vec<String>,
}

impl Error {
    fn system(what: &str, error: io::Error) -> Error {
        Error::System { what: what.to_owned(), error }
    }

    /// The same, and something that is to be known about it.
    fn and(self, more: &str) -> Error {
        match self {
            Error::System { what, error } => Error::System { what: format!("{what} ({more})"), error },
            other => other,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Error::Bad(text) => f.write_str(text),
            Error::UnknownMac(mac) => write!(f, "Unknown interface MAC {mac}"),
            Error::System { what, error } => write!(f, "{what}: {}", errno::describe(error)),
        }
    }
}

impl std::error::Error for Error {}

/// Makes the network what is wanted: interfaces first, then the host name, then the files in `etc`. What is so already is not touched.
///
/// # Errors
/// As the variants say. An interface that cannot be set up leaves all of them as they were. They stay as wanted when it is the host name or a
/// file that cannot be changed, since a machine whose files are read-only needs its network all the same; the other files are written even so.
pub fn configure(wanted: &Wanted, etc: &Path) -> Result<Changed, Error> {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut changes = Vec::new();
    if !wanted.interfaces.is_empty() {
        let open = Socket::open(Instant::now() + PATIENCE);
        let mut socket = open.map_err(|error| Error::system("open a netlink socket", error))?;
        let links = state::links(&mut socket).map_err(|error| Error::system("read interfaces", error))?;
        changes = apply::apply(&mut socket, &found(&links, &wanted.interfaces)?)?;
        changes.iter().for_each(|change| log::info!("{change}"));
    }
    let named = set_host_name(wanted, &mut changes);
    let written = write_files(wanted, etc, &mut changes);
    named.and(written).map(|()| Changed { changes })
}

/// Each wanted interface with the link that has its MAC.
fn found<'a>(links: &[Link], wanted: &'a [Interface]) -> Result<Vec<(Link, &'a Interface)>, Error> {
    let mut found = Vec::with_capacity(wanted.len());
    for interface in wanted {
        let candidates = links.iter().filter(|link| link.mac == interface.mac);
        // A bridge or a bond has the MAC of one of its parts, and then the addresses; what was made on top of a card has a higher number.
        match candidates.min_by_key(|link| (link.is_part, link.index)) {
            Some(link) => found.push((link.clone(), interface)),
            None => return Err(Error::UnknownMac(interface.mac_text.clone())),
        }
    }
    Ok(found)
}

fn set_host_name(wanted: &Wanted, changes: &mut Vec<String>) -> Result<(), Error> {
    let Some(name) = &wanted.host_name else { return Ok(()) };
    if own_name()? != *name {
        let set = boot::set_host_name(name);
        set.map_err(|error| Error::system(&format!("set the host name to {name}"), error))?;
        log::info!("host name {name} set");
        changes.push(format!("host name {name} set"));
    }
    Ok(())
}

/// Makes /etc/resolv.conf what these lists say; `false` when it is that already.
///
/// # Errors
/// `System`.
pub fn set_name_servers(servers: &[IpAddr], search: &[String], options: &[String], etc: &Path) -> Result<bool, Error> {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut text = files::resolv_conf(servers.iter());
    for (word, list) in [("search", search), ("options", options)] {
        if !list.is_empty() {
            text.extend_from_slice(format!("{word} {}\n", list.join(" ")).as_bytes());
        }
    }
    files::write(&etc.join("resolv.conf"), &text)
}

fn own_name() -> Result<String, Error> {
    name::uname().map(|names| names.host).map_err(|error| Error::system("uname", error))
}

/// Writes each file that has to do with what is wanted; the error is that of the first that could not be.
fn write_files(wanted: &Wanted, etc: &Path, changes: &mut Vec<String>) -> Result<(), Error> {
    let mut write = |name: &str, content: Vec<u8>| {
        if files::write(&etc.join(name), &content)? {
            changes.push(format!("{name} written"));
        }
        Ok(())
    };
    let mut servers = wanted.interfaces.iter().flat_map(|interface| &interface.dns).peekable();
    let resolv_conf = match servers.peek() {
        Some(_) => write("resolv.conf", files::resolv_conf(servers)),
        None => Ok(()),
    };
    let name = wanted.host_name.as_ref();
    let hostname = name.map_or(Ok(()), |name| write("hostname", format!("{name}\n").into_bytes()));
    let first = |interface: &Interface| interface.addresses.first().map(|network| network.address);
    let addresses: Vec<IpAddr> = wanted.interfaces.iter().filter_map(first).collect();
    let name = name.map_or_else(own_name, |name| Ok(name.clone()))?;
    // A machine without a name is called (none), and localhost has its own line.
    let is_named = wanted::is_host_name(&name) && name != "localhost";
    let hosts = match files::read(&etc.join("hosts")) {
        Ok(before) if is_named && !addresses.is_empty() => write("hosts", files::hosts(&before, &addresses, &name)),
        result => result.map(drop),
    };
    resolv_conf.and(hostname).and(hosts)
}
