//! The commands for programs and containers, which are names that programs share.

use std::io;
use std::sync::Arc;

use serde_json::Value;

use crate::commands::Call;
use crate::proto::hyper::commands::{Answer, list_processes, object};
use crate::proto::hyper::pair::{Pair, Role, Target, no_container};
use crate::proto::hyper::process::{self, Members};
use crate::sys::errno;
use crate::sys::file::{EPERM, ESRCH};
use crate::sys::signal::SIGNAL_MAX;
use crate::sys::tty::Window;

/// The container of the agent itself.
const AGENT: &str = "hyperstart";

/// What `killcontainer` is told of an unknown container: hyperstart's words, as are those about signals and processes, which hosts compare.
const NO_CONTAINER: &str = "no such container";

/// Runs a command for the programs of a pair of channels; `None` when it is none of these.
pub fn run(name: &str, data: &[u8], pair: &Arc<Pair>) -> Option<Result<Answer, String>> {
    let run = match name {
        "execcmd" => execute,
        "newcontainer" => new_container,
        "removecontainer" => remove_container,
        "winsize" => resize,
        "killcontainer" => kill,
        "signalprocess" => signal_process,
        _ => return None,
    };
    Some(object(data).and_then(|value| run(&value, pair)))
}

/// The container that is named, if programs may run in it.
fn known_container(value: &Value, command: &'static str, pair: &Pair) -> Result<String, String> {
    let container = container(&Members::of(value, command)?)?;
    if container == AGENT || pair.has_container(&container) { Ok(container) } else { Err(no_container(&container)) }
}

/// Lists the processes of a container that was made, and for the agent's own those of the machine.
///
/// # Errors
/// The text for the host.
pub fn list(data: &[u8], pair: &Pair, call: &Call) -> Result<Answer, String> {
    let value = object(data)?;
    let container = known_container(&value, "pscontainer", pair)?;
    let sessions = (container != AGENT).then(|| pair.pids(&Target::AllOf { container: &container }));
    list_processes(&value, sessions.as_deref(), call)
}

fn execute(value: &Value, pair: &Arc<Pair>) -> Result<Answer, String> {
    let container = known_container(value, "execcmd", pair)?;
    start(&container, Role::Further, value, pair)
}

fn new_container(value: &Value, pair: &Arc<Pair>) -> Result<Answer, String> {
    let id = Members::of(value, "newcontainer")?.text("id")?;
    if id.is_empty() || id == AGENT {
        return Err("newcontainer.id is missing".to_owned());
    }
    pair.add_container(&id)?;
    start(&id, Role::First, value, pair).inspect_err(|_| drop(pair.remove_container(&id)))
}

fn start(container: &str, role: Role, value: &Value, pair: &Arc<Pair>) -> Result<Answer, String> {
    let process = Members::of(value, "command")?.get("process").ok_or("process is missing")?;
    pair.start(container, role, process::read(process)?).map(|()| Answer::default())
}

fn remove_container(value: &Value, pair: &Arc<Pair>) -> Result<Answer, String> {
    let id = container(&Members::of(value, "removecontainer")?)?;
    pair.remove_container(&id).map(|()| Answer::default())
}

fn resize(value: &Value, pair: &Arc<Pair>) -> Result<Answer, String> {
    let members = Members::of(value, "winsize")?;
    let sequence = members.number("seq")?;
    let (container, id) = (container(&members)?, members.text("process")?);
    let target = match sequence {
        0 => Target::Named { container: &container, id: &id },
        sequence => Target::Sequence(sequence),
    };
    // As the proxy cuts them.
    let window = Window { rows: members.number("row")? as u16, columns: members.number("column")? as u16 };
    let result = pair.resize(&target, window);
    result.map(|()| Answer::default()).map_err(|error| format!("winsize: {}", errno::describe(&error)))
}

fn kill(value: &Value, pair: &Arc<Pair>) -> Result<Answer, String> {
    let members = Members::of(value, "killcontainer")?;
    let (container, id) = (container(&members)?, members.text("process")?);
    if container != AGENT && !pair.has_container(&container) {
        return Err(NO_CONTAINER.to_owned());
    }
    let target = match (id.as_str(), members.flag("allProcesses")?) {
        (_, true) => Target::AllOf { container: &container },
        // Nobody has said which of them is the first one.
        ("", false) if container == AGENT => return Err("no such process".to_owned()),
        ("", false) => Target::FirstOf { container: &container },
        (id, false) => Target::Named { container: &container, id },
    };
    let signal = signal_number(&members)?;
    let is_for_first = matches!(target, Target::FirstOf { .. });
    told(if is_for_first { pair.signal_programs(&target, signal) } else { pair.signal(&target, signal) })
}

fn signal_process(value: &Value, pair: &Arc<Pair>) -> Result<Answer, String> {
    let members = Members::of(value, "signalprocess")?;
    let (container, id) = (container(&members)?, members.text("process")?);
    told(pair.signal(&Target::Named { container: &container, id: &id }, signal_number(&members)?))
}

fn signal_number(members: &Members) -> Result<i32, String> {
    let number = i32::try_from(members.number("signal")?).ok().filter(|number| (0..=SIGNAL_MAX).contains(number));
    number.ok_or_else(|| "invalid signal".to_owned())
}

/// In the words of hyperstart.
fn told(sent: io::Result<()>) -> Result<Answer, String> {
    sent.map(|()| Answer::default()).map_err(|error| match error.raw_os_error() {
        Some(ESRCH) => "no such process".to_owned(),
        Some(EPERM) => "no permission".to_owned(),
        None if error.kind() == io::ErrorKind::NotFound => "no such process".to_owned(),
        _ => format!("kill failed: {}", errno::describe(&error)),
    })
}

/// The container that is named, and without a name the agent's.
fn container(members: &Members) -> Result<String, String> {
    let name = members.text("container")?;
    Ok(if name.is_empty() { AGENT.to_owned() } else { name })
}
