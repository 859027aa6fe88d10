//! The commands of a client, and its log entries.

use std::time::{Duration, Instant};

use crate::json::text;
use crate::proto::clear::connection::{Connection, Waited};
use crate::proto::clear::registry::Token;
use crate::proto::clear::session::Claimed;
use crate::proto::clear::shim::{NOT_A_SHIM, Shim, exited};
use crate::proto::clear::{frame, start};
use crate::proto::go;
use crate::sys::file::ESRCH;
use crate::sys::signal::{SIGKILL, SIGTERM, SIGWINCH};
use crate::sys::tty::Window;
use crate::sys::{errno, unix};

/// Signals below this one may be sent. Upstream's number, which leaves out SIGSYS.
const SIGNAL_END: i64 = 31;

/// How long the connection of a shim that has gone may take to see that.
const HANDOVER: Duration = Duration::from_secs(2);

/// What Go calls the signals, by number.
const SIGNAL_NAMES: [&str; SIGNAL_END as usize] = [
    "signal 0",
    "hangup",
    "interrupt",
    "quit",
    "illegal instruction",
    "trace/breakpoint trap",
    "aborted",
    "bus error",
    "floating point exception",
    "killed",
    "user defined signal 1",
    "segmentation fault",
    "user defined signal 2",
    "broken pipe",
    "alarm clock",
    "terminated",
    "stack fault",
    "child exited",
    "continued",
    "stopped (signal)",
    "stopped",
    "stopped (tty input)",
    "stopped (tty output)",
    "urgent I/O condition",
    "CPU time limit exceeded",
    "file size limit exceeded",
    "virtual timer expired",
    "profiling timer expired",
    "window changed",
    "I/O possible",
    "power failure",
];

/// What becomes of a command.
pub enum Answer {
    Done(Vec<u8>),
    Refused(String),
    /// Success, once the process has ended.
    AtItsEnd,
    /// None: the connection ends.
    Closed,
}

impl From<Result<Vec<u8>, String>> for Answer {
    fn from(result: Result<Vec<u8>, String>) -> Answer {
        match result {
            Ok(payload) => Answer::Done(payload),
            Err(why) => Answer::Refused(why),
        }
    }
}

/// Runs a command.
pub fn run(connection: &mut Connection, opcode: u8, payload: &[u8]) -> Answer {
    match opcode {
        frame::REGISTER_VM => register_vm(connection, payload).into(),
        frame::UNREGISTER_VM => unregister_vm(connection, payload).into(),
        frame::ATTACH_VM => attach_vm(connection, payload).into(),
        frame::HYPER => start::hyper(connection, payload).into(),
        frame::CONNECT_SHIM => connect_shim(connection, payload).into(),
        frame::DISCONNECT_SHIM => match connection.shim.take() {
            None => Answer::Refused(NOT_A_SHIM.to_owned()),
            Some(shim) => {
                shim.disconnect(connection.registry());
                Answer::Closed
            }
        },
        // The decoder lets no other one pass.
        _ => signal(connection, payload).unwrap_or_else(Answer::Refused),
    }
}

fn register_vm(connection: &mut Connection, payload: &[u8]) -> Result<Vec<u8>, String> {
    let members = go::read(payload, "api.RegisterVM")?;
    let id = members.text("containerId")?;
    let serials = [members.text("ctlSerial")?, members.text("ioSerial")?];
    members.text("console")?;
    let tokens = members.number("numIOStreams")?;
    let check = || match serials.iter().any(String::is_empty) {
        // What upstream meets when it dials.
        true => Err("dial unix: missing address".to_owned()),
        false if id.is_empty() => Err("malformed RegisterVM command".to_owned()),
        false => Ok(()),
    };
    let (vm, tokens) = connection.registry().register(&id, tokens, check)?;
    connection.vm = Some(vm);
    Ok(io_response(connection, &tokens))
}

fn attach_vm(connection: &mut Connection, payload: &[u8]) -> Result<Vec<u8>, String> {
    let members = go::read(payload, "api.AttachVM")?;
    let (id, tokens) = (members.text("containerId")?, members.number("numIOStreams")?);
    let (vm, tokens) = connection.registry().attach(&id, tokens)?;
    connection.vm = Some(vm);
    Ok(io_response(connection, &tokens))
}

fn unregister_vm(connection: &mut Connection, payload: &[u8]) -> Result<Vec<u8>, String> {
    let id = go::read(payload, "api.UnregisterVM")?.text("containerId")?;
    connection.registry().unregister(&id)?;
    connection.vm = None;
    Ok(Vec::new())
}

/// `{"io":{"URL":…,"tokens":…}}`. Where the connection came on no unix socket, the URL has no path: there is no other way to name.
fn io_response(connection: &Connection, tokens: &[String]) -> Vec<u8> {
    let path = unix::local_path(connection.stream.input()).ok().flatten();
    let url = match path.as_deref() {
        Some([0, name @ ..]) => [b"unix://@", name].concat(),
        Some(path) => [b"unix://", path].concat(),
        None => b"unix:".to_vec(),
    };
    let tokens: Vec<Vec<u8>> = tokens.iter().map(|token| text::quote(token.as_bytes())).collect();
    let tokens = if tokens.is_empty() { b"null".to_vec() } else { [b"[", &tokens.join(&b',')[..], b"]"].concat() };
    [br#"{"io":{"URL":"#, &text::quote(&url)[..], br#","tokens":"#, &tokens, b"}}"].concat()
}

fn connect_shim(connection: &mut Connection, payload: &[u8]) -> Result<Vec<u8>, String> {
    let token = go::read(payload, "api.ConnectShim")?.text("token")?;
    let claimed = || format!("token already claimed: {token}");
    let session = match connection.registry().token(&token) {
        Token::Of(session) => session,
        Token::Dead => return Err(claimed()),
        Token::Unknown => return Err(format!("unknown token: {token}")),
    };
    if let Some(shim) = &connection.shim {
        let same = shim.session.token == token;
        return Err(if same { claimed() } else { "client is the shim of another token".to_owned() });
    }
    let bell = connection.bell()?;
    let deadline = Instant::now() + HANDOVER;
    let mut is_late = false;
    while let Err(why) = session.claim(&bell, &connection.stream) {
        if is_late || why == Claimed::ByAnother {
            return Err(claimed());
        }
        // Once more when the time is over: another one may have been told in its place, and gone.
        is_late = connection.wait(deadline) != Waited::Rung;
    }
    connection.shim = Some(Shim::of(session, bell));
    Ok(Vec::new())
}

/// # Errors
/// The text for the client.
fn signal(connection: &mut Connection, payload: &[u8]) -> Result<Answer, String> {
    let Some(shim) = &connection.shim else { return Err(NOT_A_SHIM.to_owned()) };
    let session = shim.session.clone();
    let members = go::read(payload, "api.Signal")?;
    let number = members.number("signalNumber")?;
    let (columns, rows) = (members.number("columns")?, members.number("rows")?);
    let name = usize::try_from(number).ok().and_then(|number| SIGNAL_NAMES.get(number));
    let name = name.ok_or_else(|| format!("invalid signal number {number}"))?;
    // Small enough, as there is a name.
    let number = number as i32;
    let resizes = number == SIGWINCH;
    if resizes && (columns == 0 || rows == 0) {
        return Err(format!("received SIGWINCH but terminal size is invalid ({columns},{rows})"));
    }
    if !resizes && (columns != 0 || rows != 0) {
        return Err(format!("received a terminal size ({columns},{rows}) for signal {name}"));
    }
    let ends = matches!(number, SIGKILL | SIGTERM);
    if ends && !session.has_started() {
        exited(&mut connection.outgoing, 0);
        return Ok(Answer::Done(Vec::new()));
    }
    Shim::wait_for_process(connection)?;
    // Not earlier: until then there may be no process, or one whose end is about to be told.
    let done = if resizes {
        // One that has just ended is passed over, as upstream's agents do.
        let done = session.resize(Window { rows: rows as u16, columns: columns as u16 });
        done.or_else(|error| if error.raw_os_error() == Some(ESRCH) { Ok(()) } else { Err(error) })
    } else {
        session.signal(number)
    };
    match done {
        Err(error) => Err(format!("Could not send the signal {name}: {}", errno::describe(&error))),
        Ok(()) if ends => Ok(Answer::AtItsEnd),
        Ok(()) => Ok(Answer::Done(Vec::new())),
    }
}

/// Takes an entry of a client's log.
///
/// # Errors
/// Why the connection cannot go on.
pub fn log(payload: &[u8]) -> Result<(), String> {
    let invalid = |why: String| format!("invalid log entry: {why}");
    let members = go::read(payload, "api.LogEntry").map_err(invalid)?;
    let text = |name| members.text(name).map_err(invalid);
    let (source, vm, message) = (text("source")?, text("containerId")?, text("msg")?);
    if !matches!(source.as_str(), "shim" | "runtime") {
        return Err(invalid(format!("source {source:?}")));
    }
    let level = match text("level")?.as_str() {
        "debug" => log::Level::Debug,
        "info" => log::Level::Info,
        "warn" => log::Level::Warn,
        "error" => log::Level::Error,
        other => return Err(invalid(format!("level {other:?}"))),
    };
    if message.is_empty() {
        return Err(invalid("no message".to_owned()));
    }
    log::log!(level, "{source} {vm:?}: {message:?}");
    Ok(())
}
