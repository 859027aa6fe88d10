//! Hyper: the checks of the proxy, and the commands that start processes.

use std::sync::Arc;
use std::time::Instant;

use serde_json::json;

use crate::commands::Call;
use crate::engine::running::Running;
use crate::exec;
use crate::proto::bell::Bell;
use crate::proto::clear::connection::{Connection, Waited};
use crate::proto::clear::held::Held;
use crate::proto::clear::outgoing::Outgoing;
use crate::proto::clear::registry::Vm;
use crate::proto::clear::session::Session;
use crate::proto::clear::{AGENT_HEADER_BYTES, AGENT_MESSAGE_MAX, ID_MAX, agent, ending};
use crate::proto::go::{self, Members};
use crate::proto::hyper::commands;
use crate::proto::hyper::process::{self, Process};

/// The names that are known besides those of the commands that start a process: those of upstream's proxy, and two more of its agents.
const NAMES: [&str; 19] = [
    "version",
    "startpod",
    "destroypod",
    "ready",
    "ack",
    "error",
    "ping",
    "next",
    "writefile",
    "readfile",
    "onlinecpumem",
    "setupinterface",
    "setuproute",
    "pscontainer",
    "deleteinterface",
    "killcontainer",
    "removecontainer",
    "winsize",
    "signalprocess",
];

/// Runs one of the agent's commands. The payload of its answer.
///
/// # Errors
/// The text for the client.
pub fn hyper(connection: &mut Connection, payload: &[u8]) -> Result<Vec<u8>, String> {
    let members = go::read(payload, "api.Hyper")?;
    let (name, tokens) = (members.text("hyperName")?, members.texts("tokens")?);
    let data = members.verbatim("data").unwrap_or_default();
    let vm = connection.vm.clone().ok_or("client not attached to a vm")?;
    if matches!(name.as_str(), "execcmd" | "newcontainer") {
        return start(connection, &vm, name == "newcontainer", &tokens, data);
    }
    if !tokens.is_empty() {
        return Err(format!("{name} doesn't need tokens but {} token(s) were given", tokens.len()));
    }
    if !NAMES.contains(&name.as_str()) {
        return Err(format!("unknown command '{name}'"));
    }
    check_length(data)?;
    if let Some(result) = agent::run(connection.registry(), &vm, &name, data) {
        return result.map(|()| Vec::new()).map_err(agent_error);
    }
    let registry = connection.registry();
    let call = Call {
        table: &connection.circumstances.settings.commands,
        caller: Some(connection.stream.output()),
        stop: Some(connection.circumstances.stop),
    };
    let answer = match name.as_str() {
        "pscontainer" => agent::list(registry, &vm, data, &call),
        _ => commands::run(&name, data, &call),
    };
    let answer = answer.map_err(agent_error)?;
    // Only the end of the pod has something left to do. Where the machine does not end, its programs do not either.
    if let Some(end) = answer.afterwards {
        let closed = registry.keepers.close();
        ending::end_programs(connection);
        connection.do_afterwards(Box::new(move || {
            end();
            drop(closed);
        }));
    }
    Ok(answer.bytes)
}

/// Refuses what upstream's proxy does not send to its agent. Counted as it came, though of a process the proxy would add and leave out some
/// members first.
fn check_length(data: &[u8]) -> Result<(), String> {
    match AGENT_HEADER_BYTES + data.len() {
        0..=AGENT_MESSAGE_MAX => Ok(()),
        length => Err(format!("message too long {length}")),
    }
}

/// An error of the agent, as upstream's proxy passes it on.
fn agent_error(text: String) -> String {
    format!("ERROR received from VM agent, control msg received : {text}")
}

fn start(
    connection: &mut Connection,
    vm: &Arc<Vm>,
    is_container: bool,
    tokens: &[String],
    data: &[u8],
) -> Result<Vec<u8>, String> {
    if tokens.len() > 1 {
        return Err(format!("expected 0 or 1 token, got {}", tokens.len()));
    }
    let session = match tokens.first() {
        None => None,
        Some(token) => {
            let session = connection.registry().session(vm, token);
            Some(session.ok_or_else(|| format!("unknown token {token}"))?)
        }
    };
    let members = go::read(data, if is_container { "hyperstart.Container" } else { "hyperstart.ExecCommand" })?;
    let container = if is_container { Some(container_id(&members)?) } else { None };
    let process = relocated(&members, data, session.as_ref().map_or(1, |session| session.io_base))?;
    let container = match container {
        Some(id) if id.is_empty() => return Err(agent_error("newcontainer.id is missing".to_owned())),
        Some(id) => Container::New(id),
        None => Container::Known(agent::known_container(connection.registry(), vm, &members).map_err(agent_error)?),
    };
    match session {
        None => start_without_shim(connection, vm, &container, process),
        Some(session) => start_with_shim(connection, vm, &container, process, session),
    }
}

/// What a process is started in.
enum Container {
    /// One that it is the first process of.
    New(String),
    Known(String),
}

fn container_id(members: &Members) -> Result<String, String> {
    let id = members.text("id")?;
    match id.len() {
        0..=ID_MAX => Ok(id),
        length => Err(format!("container id of {length} bytes is over the limit of {ID_MAX}")),
    }
}

/// The process that `data` describes, its streams numbered from `io_base` on, as the proxy numbers them.
fn relocated(members: &Members, data: &[u8], io_base: u64) -> Result<Process, String> {
    let text = members.raw("process").ok_or_else(|| agent_error("process is no object".to_owned()))?;
    let process = go::read(text, "hyperstart.Process")?;
    check_types(&process)?;
    for (name, shown) in [("stdio", "Stdio"), ("stderr", "Stderr")] {
        let number = process.unsigned(name)?;
        if number != 0 {
            return Err(format!("expected process.{shown} to be 0, got {number}"));
        }
    }
    check_length(data)?;
    let workdir = process.text("workdir")?;
    let mut value = go::tree(text)?;
    if let Some(object) = value.as_object_mut() {
        // The proxy does not know it, and its agent takes the number for it.
        object.remove("id");
        object.insert("stdio".to_owned(), json!(io_base));
        object.insert("stderr".to_owned(), json!(io_base + 1));
        if workdir.is_empty() {
            object.insert("workdir".to_owned(), json!("/"));
        }
    }
    process::read(&value).map_err(agent_error)
}

/// What the proxy finds as it decodes a process, before its agent sees it.
fn check_types(process: &Members) -> Result<(), String> {
    ["user", "group", "workdir"].iter().try_for_each(|name| process.text(name).map(drop))?;
    ["args", "additionalGroups"].iter().try_for_each(|name| process.texts(name).map(drop))?;
    ["terminal", "noNewPrivileges"].iter().try_for_each(|name| process.flag(name).map(drop))
}

/// Starts a process in the session of its token, once that has a shim.
fn start_with_shim(
    connection: &mut Connection,
    vm: &Vm,
    container: &Container,
    process: Process,
    session: Arc<Session>,
) -> Result<Vec<u8>, String> {
    let token = &session.token;
    let bell = connection.bell()?;
    let keeper = Arc::new(Bell::new().map_err(|error| format!("make a pipe: {error}"))?);
    if !session.reserve(&bell) {
        return Err(format!("token {token} has its process, or is about to have it"));
    }
    wait_for_shim(connection, &session).inspect_err(|_| session.give_back())?;
    let _launching = session.launching();
    let held = launch(connection, vm, container, process, &session).inspect_err(|_| session.give_back())?;
    let registry = connection.registry();
    match session.start(held, &keeper) {
        Ok(false) => {}
        Ok(true) => registry.keepers.guard(Arc::clone(&session), keeper, registry.times.abandoned),
        Err(held) => {
            // Its shim did not want it. Whoever asks for the container once more shall have it.
            drop(held);
            if let Container::New(id) = container {
                registry.uncontain(vm, id, &session);
            }
            return Err(format!("the shim of token {token} has left"));
        }
    }
    Ok(Vec::new())
}

fn wait_for_shim(connection: &mut Connection, session: &Session) -> Result<(), String> {
    let deadline = Instant::now() + connection.registry().times.shim;
    while !session.has_shim() {
        if session.is_disconnected() {
            return Err(format!("unknown token {}", session.token));
        }
        if connection.wait(deadline) != Waited::Rung {
            return Err(format!("timeout waiting for shim with token {}", session.token));
        }
    }
    Ok(())
}

/// Starts a process whose output nobody wants.
fn start_without_shim(
    connection: &Connection,
    vm: &Vm,
    container: &Container,
    process: Process,
) -> Result<Vec<u8>, String> {
    let session = Arc::new(Session::without_shim(vm.number));
    // Before it runs, so that nobody who looks for all processes misses it.
    connection.registry().remember(&session);
    let _launching = session.launching();
    let held = launch(connection, vm, container, process, &session).inspect_err(|_| session.end(0))?;
    connection.registry().keepers.discard(held, Arc::clone(&session));
    Ok(Vec::new())
}

/// Starts a process. The first one of a container is remembered by the container's name.
fn launch(
    connection: &Connection,
    vm: &Vm,
    container: &Container,
    process: Process,
    session: &Arc<Session>,
) -> Result<Box<Held>, String> {
    let registry = connection.registry();
    let permit = registry.keepers.permit().map_err(agent_error)?;
    let (id, is_first) = match container {
        Container::New(id) => (id, true),
        Container::Known(id) => (id, false),
    };
    if is_first {
        registry.contain(vm, id, session).map_err(agent_error)?;
    }
    match exec::start(&process.program) {
        Ok((mut program, channels)) => {
            if is_first {
                program.take_group();
            }
            session.reach_by(program.remote(), id, is_first);
            let running = Running::new(0, program, channels, None, process.terminal);
            Ok(Box::new(Held { running, outgoing: Outgoing::default(), terminal: process.terminal, permit }))
        }
        Err(why) => {
            if is_first {
                registry.uncontain(vm, id, session);
            }
            Err(agent_error(format!("Process could not be started: {}", why.text())))
        }
    }
}
