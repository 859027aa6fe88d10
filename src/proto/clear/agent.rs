//! The agent's commands about processes that have been started.

use std::io;
use std::sync::Arc;

use crate::commands::Call;
use crate::proto::clear::registry::{Registry, Vm};
use crate::proto::clear::session::Session;
use crate::proto::go::{self, Members};
use crate::proto::hyper::commands::{Answer, list_processes};
use crate::sys::errno;
use crate::sys::file::{EPERM, ESRCH};
use crate::sys::signal::SIGNAL_MAX;
use crate::sys::tty::Window;

const NO_PROCESS: &str = "no such process";
const NO_CONTAINER: &str = "no such container";

/// The container of the agent itself.
const AGENT: &str = "hyperstart";

/// The container that is named, if programs may run in it: the agent's own, that of the machine, and those that were made.
///
/// # Errors
/// It is none of these.
pub fn known_container(registry: &Registry, vm: &Vm, members: &Members) -> Result<String, String> {
    let id = members.text("container")?;
    match id.is_empty() || id == AGENT || id == vm.id || registry.container(vm, &id).is_some() {
        true => Ok(id),
        false => Err(NO_CONTAINER.to_owned()),
    }
}

/// Runs a command. `None`: it is none of these.
///
/// # Errors
/// The agent's text.
pub fn run(registry: &Registry, vm: &Vm, name: &str, data: &[u8]) -> Option<Result<(), String>> {
    let read = |structure| go::read(data, structure);
    Some(match name {
        "killcontainer" => read("hyperstart.KillCommand").and_then(|members| kill(registry, vm, &members)),
        "signalprocess" => read("hyperstart.SignalCommand").and_then(|members| signal(registry, vm, &members)),
        "removecontainer" => read("hyperstart.RemoveCommand").and_then(|members| remove(registry, vm, &members)),
        "winsize" => read("hyperstart.WindowSize").and_then(|members| resize(registry, vm, &members)),
        _ => return None,
    })
}

fn signal_number(members: &Members) -> Result<i32, String> {
    let number = i32::try_from(members.number("signal")?).ok();
    number.filter(|number| (0..=SIGNAL_MAX).contains(number)).ok_or_else(|| "invalid signal".to_owned())
}

/// A signal for a container's first process, or for the process groups of all that were started in it.
fn kill(registry: &Registry, vm: &Vm, members: &Members) -> Result<(), String> {
    let (id, number) = (members.text("container")?, signal_number(members));
    let is_for_all = members.flag("allProcesses")?;
    let first = registry.container(vm, &id).ok_or(NO_CONTAINER)?;
    if is_for_all { send(&registry.in_container(vm, &id), number?) } else { told(first.signal(number?)) }
}

/// The same for the process group of a process that is named by the number of its input, which is what processes are called that were given
/// no name; 1 are all those without a token.
fn signal(registry: &Registry, vm: &Vm, members: &Members) -> Result<(), String> {
    let (process, number) = (members.text("process")?, signal_number(members)?);
    let found = process.parse().map(|number| registry.numbered(vm, number)).unwrap_or_default();
    send(&found, number)
}

fn send(sessions: &[Arc<Session>], number: i32) -> Result<(), String> {
    let sent: Vec<_> = sessions.iter().map(|session| told(session.signal_group(number))).collect();
    // Those that have just ended are no reason to tell of.
    sent.into_iter()
        .reduce(|all, one| if all.is_ok() { all } else { one })
        .unwrap_or_else(|| Err(NO_PROCESS.to_owned()))
}

/// In the words of hyperstart.
fn told(sent: io::Result<()>) -> Result<(), String> {
    sent.map_err(|error| match error.raw_os_error() {
        Some(ESRCH) => NO_PROCESS.to_owned(),
        Some(EPERM) => "no permission".to_owned(),
        _ => format!("kill failed: {}", errno::describe(&error)),
    })
}

/// Lists the processes of a container that was made, and for the agent's own and the machine's those of the machine.
///
/// # Errors
/// The agent's text.
pub fn list(registry: &Registry, vm: &Vm, data: &[u8], call: &Call) -> Result<Answer, String> {
    let id = known_container(registry, vm, &go::read(data, "hyperstart.PsCommand")?)?;
    let sessions = registry.container(vm, &id).map(|_| registry.in_container(vm, &id));
    let sessions = sessions.map(|sessions| sessions.iter().filter_map(|session| session.pid()).collect::<Vec<_>>());
    list_processes(&go::tree(data)?, sessions.as_deref(), call)
}

fn remove(registry: &Registry, vm: &Vm, members: &Members) -> Result<(), String> {
    let id = members.text("container")?;
    let session = registry.container(vm, &id).ok_or(NO_CONTAINER)?;
    if !session.has_ended() && !session.is_dead() {
        return Err(format!("container {id} is running"));
    }
    registry.uncontain(vm, &id, &session);
    Ok(())
}

/// Of a process by its number, in either form, or of a container's first process. Unknown ones are passed over, as upstream's agents do.
fn resize(registry: &Registry, vm: &Vm, members: &Members) -> Result<(), String> {
    let cut = |name| members.number(name).map(|number| number as u16);
    let window = Window { rows: cut("row")?, columns: cut("column")? };
    let (process, container) = (members.text("process")?, members.text("container")?);
    let number = match members.number("seq")? {
        0 => process.parse().ok(),
        number => u64::try_from(number).ok(),
    };
    let found = match number {
        None if process.is_empty() => registry.container(vm, &container).into_iter().collect(),
        number => number.map(|number| registry.numbered(vm, number)).unwrap_or_default(),
    };
    for session in found {
        match session.resize(window) {
            Err(error) if error.raw_os_error() != Some(ESRCH) => {
                return Err(format!("winsize: {}", errno::describe(&error)));
            }
            _ => {}
        }
    }
    Ok(())
}
