//! `process.signal`: a signal to a process, to a process group or to all of a session.

use std::io;

use crate::commands::arguments::{self, Arguments};
use crate::commands::{Call, Command, Error, Reply};
use crate::exec::processes;
use crate::sys::file::ESRCH;
use crate::sys::process::signal_group;
use crate::sys::signal::{self, SIGNAL_MAX};

pub const SIGNAL: Command = Command {
    name: "process.signal",
    summary: "send a signal to a process, a process group or a session",
    arguments: "\
pid: the process
group: the process group, in place of pid
session: all processes of this session, in place of pid
signal: name or number, 0 only looks whether it could be sent (TERM)",
    run: send,
};

/// Whom a signal is for.
#[derive(Clone, Copy)]
enum Target {
    Process(i32),
    Group(i32),
    Session(i32),
}

fn send(arguments: &mut Arguments, _: &Call) -> Result<Reply, Error> {
    let numbers = [arguments.number("pid")?, arguments.number("group")?, arguments.number("session")?];
    let signal = arguments.text("signal")?;
    arguments.finish()?;
    let target = match numbers {
        [None, None, None] => return Err(arguments::missing("pid, group or session")),
        [Some(pid), None, None] => Target::Process(checked("pid", pid)?),
        [None, Some(group), None] => Target::Group(checked("group", group)?),
        [None, None, Some(session)] => Target::Session(checked("session", session)?),
        _ => return Err(Error::BadArgument("pid, group, session: only one of them is wanted".to_owned())),
    };
    let signal = signal.as_deref().map_or(Ok(signal::SIGTERM), number_of)?;
    let mut reply = Reply::of([("signal", signal.into())]);
    if signal > 0 {
        reply.put("signal_name", signal::name(signal));
    }
    match target {
        Target::Process(pid) => say(&format!("signal process {pid}"), signal::send(pid, signal))?,
        Target::Group(group) => say(&format!("signal process group {group}"), signal_group(group, signal))?,
        Target::Session(session) => {
            let count = signal_session(session, signal);
            reply.put("signalled", say(&format!("signal session {session}"), count)?);
        }
    }
    Ok(reply)
}

/// Zero and what is below mean many processes at once to kill(2), and process 1 is the whole system.
fn checked(name: &str, number: i32) -> Result<i32, Error> {
    match number {
        2.. => Ok(number),
        1 => Err(Error::BadArgument(format!("{name}: 1 is the system itself, which ends by system.shutdown"))),
        _ => Err(Error::BadArgument(format!("{name}: a number above 1 is wanted, and not {number}"))),
    }
}

fn number_of(text: &str) -> Result<i32, Error> {
    let bad =
        || Error::BadArgument(format!("signal: a name or a number from 0 to {SIGNAL_MAX} is wanted, and not {text}"));
    if text == "0" { Ok(0) } else { signal::parse(text).ok_or_else(bad) }
}

fn say<T>(what: &str, result: io::Result<T>) -> Result<T, Error> {
    result.map_err(|error| Error::system(what, &error))
}

/// Signals every process of a session, and counts them. What has vanished meanwhile does not count; a refusal only counts when it was for
/// all of them.
fn signal_session(session: i32, signal: i32) -> io::Result<u32> {
    let no_proc =
        |_| io::Error::new(io::ErrorKind::Unsupported, "sessions are known to /proc only, which is not there");
    // Collected first: a process that forks meanwhile would show its child in the list, and might do so again and again.
    let members: Vec<i32> = processes::all()
        .map_err(no_proc)?
        .filter(|process| process.session == session && !process.is_dead())
        .map(|process| process.pid)
        .collect();
    let (mut count, mut refused) = (0, None);
    for pid in members {
        match signal::send(pid, signal) {
            Ok(()) => count += 1,
            Err(error) if error.raw_os_error() == Some(ESRCH) => {}
            Err(error) => refused = Some(error),
        }
    }
    match refused {
        _ if count > 0 => Ok(count),
        Some(error) => Err(error),
        None => Err(io::Error::from_raw_os_error(ESRCH)),
    }
}
