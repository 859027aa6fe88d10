//! The command monitor of Google's guest agent, the agent's side, for clients of both of its dialects.
//!
//! One request and one response a connection, each a JSON text without anything around it:
//!
//! ```text
//! > {"Command":"agent.ping", ...}             ends with its last brace; no newline, no end of file is waited for
//! < {"Status":0,"StatusMessage":"", ...}      ends with the end of the stream; no newline
//! ```
//!
//! First byte: whatever begins a JSON text, or white space in front of one.
//!
//! Which command is called says the last top-level member whose name is `Command` in whatever ASCII case; the other members are its arguments.
//! Statuses of the monitor itself are upstream's 101 to 105, byte for byte, and two of our own; a command's own are smaller
//! (`commands::Error::code`).
//!
//! | status | when |
//! | --- | --- |
//! | 101 | nothing stands behind the name |
//! | 102 | the request can never become valid; said at once |
//! | 103 | the stream ended inside of the request |
//! | 104 | the request was not complete in time |
//! | 105 | the handler's own error, with its text |
//! | 107 | the request is longer than the limit |
//! | 108 | no place for one more connection |
//!
//! Source: the specification of Google's command monitor, sections 3, 4, 6 and 10.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crate::commands::arguments::Arguments;
use crate::commands::table::{Entry, Handler};
use crate::commands::{AT_ONCE, Call, Command, Error, Reply};
use crate::engine::Ended;
use crate::json::scan::Scanner;
use crate::json::text;
use crate::proto::{Circumstances, Opening};
use crate::stream::Stream;
use crate::sys::fd::{self, PollSet};

/// For `,proto=NAME` in an address.
pub const NAME: &str = "google";

/// The member that names the command.
const MEMBER: &str = "Command";

const NO_HANDLER: &[u8] = br#"{"Status":101,"StatusMessage":"Could not find a handler for the requested command"}"#;
const BAD_JSON: &[u8] = br#"{"Status":102,"StatusMessage":"Could not parse valid JSON from request"}"#;
const CONNECTION_ERROR: &[u8] = br#"{"Status":103,"StatusMessage":"Connection error"}"#;
const TIMEOUT: &[u8] = br#"{"Status":104,"StatusMessage":"Connection timeout before reading valid request"}"#;
const HANDLER_ERROR: u8 = 105;
const TOO_LONG: u8 = 107;
const NO_PLACE: u8 = 108;

/// Bytes of one read. Requests are short; long ones come in as many reads as they need.
const READ_BYTES: usize = 16 << 10;

/// How long a client may take nothing of its response before it counts as gone, and what it must take of a long one in each second beyond
/// that, in bytes: a third of what a line of 115,200 baud carries.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);
const WRITE_RATE_MIN: usize = 4 << 10;

/// How long to wait for more of what a client still sends after it was refused: it may write all before it reads, and would never see the
/// answer.
const DRAIN_PATIENCE: Duration = Duration::from_secs(1);

/// The same where only our end tells it the end of the answer.
const DRAIN_LULL: Duration = Duration::from_millis(50);

/// How long to go on with that, on a socket and elsewhere, and how much to take in at most, in bytes: many times what a request may have.
const DRAIN_TIME: Duration = Duration::from_secs(10);
const DRAIN_TIME_LINE: Duration = Duration::from_secs(1);
const DRAIN_MAX: usize = 32 << 20;

/// Bytes of one read of it.
const DRAIN_BYTES: usize = 16 << 10;

/// Whether a connection that begins with this byte speaks it: JSON's white space, and the first bytes of all its values, so that what is no
/// object is told so by the right protocol.
pub fn begins_with(byte: u8) -> bool {
    matches!(byte, b'{' | b' ' | b'\t' | b'\n' | b'\r' | b'[' | b'"' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n')
}

/// The message to a client for whom there is no place.
pub fn refusal(why: &str) -> Vec<u8> {
    response(NO_PLACE, why.as_bytes())
}

/// A response without members of its own.
fn response(status: u8, message: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{{\"Status\":{status},\"StatusMessage\":").into_bytes();
    bytes.extend_from_slice(&text::quote(message));
    bytes.push(b'}');
    bytes
}

/// Why there is no request.
enum Refused {
    /// Answered with these bytes.
    With(Vec<u8>),
    /// The agent ends.
    Stopped,
}

/// Serves one connection.
///
/// # Errors
/// Those of the stream while the response is written.
pub fn serve(stream: Stream, head: &[u8], circumstances: &Circumstances) -> io::Result<Ended> {
    match converse(stream, head, circumstances) {
        // It did not want the response, or not all of it. That is its own affair.
        Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
            log::debug!("a client left before its response was sent");
            Ok(Ended::Regular)
        }
        ended => ended,
    }
}

fn converse(stream: Stream, head: &[u8], circumstances: &Circumstances) -> io::Result<Ended> {
    stream.set_nonblocking(true)?;
    let on_line = circumstances.opening == Opening::Agent;
    let mut begun = circumstances.accepted;
    if on_line {
        // Nobody connects to a line: the time of a request begins with its first byte.
        let mut set = PollSet::default();
        set.watch(circumstances.stop, fd::READ);
        set.watch(stream.input(), fd::READ);
        set.wait(None)?;
        begun = Instant::now();
    }
    match receive(&stream, head, begun, circumstances) {
        Ok((request, name)) => {
            let mut answer = answer(&request, &name, &stream, circumstances);
            drop(request);
            let sent = send(&stream, &answer.bytes, circumstances.stop);
            stream.end();
            drop(stream);
            if let Some(afterwards) = answer.afterwards.take() {
                afterwards();
            }
            sent.map(|()| Ended::Regular)
        }
        Err(Refused::With(bytes)) => {
            send(&stream, &bytes, circumstances.stop)?;
            // On a line what comes next may be the next request.
            if !on_line {
                drain(&stream, circumstances.stop)?;
            }
            Ok(Ended::Regular)
        }
        Err(Refused::Stopped) => Ok(Ended::Regular),
    }
}

/// Answers a request that is whole already and whose command only computes.
pub fn at_once(stream: &Stream, head: &[u8], circumstances: &Circumstances) -> bool {
    let mut scanner = Scanner::object(MEMBER);
    let Ok(Some(end)) = scanner.feed(head) else { return false };
    let name = scanner.found().map(|range| text::unquote(&head[range])).unwrap_or_default();
    // A handler of somebody else's may have one of these names in a table without ours.
    let is_ours = circumstances.settings.commands.commands().iter().any(|command| command.name == name);
    if !is_ours || !AT_ONCE.contains(&name.as_str()) || end > circumstances.settings.request_max {
        return false;
    }
    let answer = answer(&head[..end], &name, stream, circumstances);
    // Nothing stands in the way of so few bytes on a new socket; and a client that has gone misses nothing.
    let _ = fd::send_now(stream.output(), &answer.bytes);
    stream.end();
    true
}

/// Reads one request: its text and the name of its command.
fn receive(
    stream: &Stream,
    head: &[u8],
    begun: Instant,
    circumstances: &Circumstances,
) -> Result<(Vec<u8>, String), Refused> {
    let with = |bytes: &[u8]| Refused::With(bytes.to_vec());
    let limit = circumstances.settings.request_max;
    let mut deadline = circumstances.settings.request_deadline(begun);
    // On a line what comes behind the last request may be its line end.
    let has_begun = |request: &[u8]| circumstances.opening == Opening::Peer || !request.trim_ascii().is_empty();
    let mut scanner = Scanner::object(MEMBER);
    let mut request = head.to_vec();
    let mut fresh = 0;
    loop {
        let end = scanner.feed(&request[fresh..]).map_err(|_| with(BAD_JSON))?.map(|count| fresh + count);
        if end.unwrap_or(request.len()) > limit {
            let why = format!("The request is longer than the limit of {limit} bytes");
            return Err(Refused::With(response(TOO_LONG, why.as_bytes())));
        }
        if let Some(end) = end {
            let name = scanner.found().map(|range| text::unquote(&request[range])).unwrap_or_default();
            request.truncate(end);
            return Ok((request, name));
        }
        fresh = request.len();
        loop {
            if !has_begun(&request) {
                deadline = circumstances.settings.request_deadline(Instant::now());
            }
            match fd::read_append(stream.input(), &mut request, READ_BYTES) {
                Ok(0) => return Err(with(CONNECTION_ERROR)),
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Err(with(CONNECTION_ERROR)),
            }
            match wait(stream.input(), fd::READ, circumstances.stop, deadline) {
                Ok(Woken::TimeOver) if has_begun(&request) => return Err(with(TIMEOUT)),
                Ok(Woken::Ready | Woken::TimeOver) => {}
                Ok(Woken::Stopped) => return Err(Refused::Stopped),
                Err(_) => return Err(with(CONNECTION_ERROR)),
            }
        }
        if Instant::now() > deadline {
            return Err(with(TIMEOUT));
        }
    }
}

/// A response, and what is to be done once it is on its way.
struct Answer {
    bytes: Vec<u8>,
    afterwards: Option<Box<dyn FnOnce() + Send>>,
}

impl From<Vec<u8>> for Answer {
    fn from(bytes: Vec<u8>) -> Answer {
        Answer { bytes, afterwards: None }
    }
}

fn answer(request: &[u8], name: &str, stream: &Stream, circumstances: &Circumstances) -> Answer {
    let table = &circumstances.settings.commands;
    let call = Call { table, caller: Some(stream.output()), stop: Some(circumstances.stop) };
    match table.find(name) {
        Ok(None) => NO_HANDLER.to_vec().into(),
        Ok(Some(Entry::BuiltIn(command))) => match run(command, request, &call) {
            Ok(reply) => Answer { bytes: envelope(&reply), afterwards: reply.afterwards },
            Err(error) => response(error.code(), error.to_string().as_bytes()).into(),
        },
        Ok(Some(Entry::Handler(handler))) => {
            handle(&handler, request).unwrap_or_else(|text| response(HANDLER_ERROR, text.as_bytes())).into()
        }
        Ok(Some(Entry::Program(program))) => {
            let failed = |error: Error| response(HANDLER_ERROR, error.to_string().as_bytes());
            program.call(request, &call).unwrap_or_else(failed).into()
        }
        Err(error) => response(HANDLER_ERROR, error.to_string().as_bytes()).into(),
    }
}

fn run(command: &Command, request: &[u8], call: &Call) -> Result<Reply, Error> {
    (command.run)(&mut Arguments::read(request, MEMBER)?, call)
}

/// Runs a handler of somebody else's, whose panic is an error like any other.
#[cfg(panic = "unwind")]
fn handle(handler: &Handler, request: &[u8]) -> Result<Vec<u8>, String> {
    let run = std::panic::AssertUnwindSafe(|| handler(request));
    std::panic::catch_unwind(run).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Err(format!("the command handler panicked: {}", text.unwrap_or("no text")))
    })
}

/// Runs a handler. Its panic ends the program, which was built so; to ask for it to be caught would only link an unwinder of 70 KB.
#[cfg(not(panic = "unwind"))]
fn handle(handler: &Handler, request: &[u8]) -> Result<Vec<u8>, String> {
    handler(request)
}

/// The reply of one of our commands: `Status` and `StatusMessage` first, for clients that look for them there.
fn envelope(reply: &Reply) -> Vec<u8> {
    let mut bytes = response(0, b"");
    if !reply.members.is_empty() {
        bytes.pop();
        bytes.push(b',');
        // A map of values has only text keys and finite numbers, so it can be written.
        let members = serde_json::to_vec(&reply.members).unwrap_or_default();
        bytes.extend_from_slice(members.get(1..).unwrap_or(b"}"));
    }
    bytes
}

enum Woken {
    Ready,
    TimeOver,
    Stopped,
}

/// Waits for events on a descriptor, until a deadline or the agent's end.
fn wait(fd: BorrowedFd, events: i16, stop: BorrowedFd, deadline: Instant) -> io::Result<Woken> {
    let mut set = PollSet::default();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        set.clear();
        set.watch(stop, fd::READ);
        set.watch(fd, events);
        set.wait(Some(left))?;
        let ready = set.ready(1);
        if set.ready(0).readable {
            return Ok(Woken::Stopped);
        }
        if ready.readable || ready.writable || ready.hung_up {
            return Ok(Woken::Ready);
        }
        if left.is_zero() {
            return Ok(Woken::TimeOver);
        }
    }
}

/// Writes a response. A client that takes too long, or has gone, loses the rest; so does a slow one when the agent ends.
fn send(stream: &Stream, mut bytes: &[u8], stop: BorrowedFd) -> io::Result<()> {
    let deadline = Instant::now() + WRITE_PATIENCE + Duration::from_secs((bytes.len() / WRITE_RATE_MIN) as u64);
    while !bytes.is_empty() {
        match fd::write(stream.output(), bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                match wait(stream.output(), fd::WRITE, stop, deadline.min(Instant::now() + WRITE_PATIENCE))? {
                    Woken::Ready if Instant::now() < deadline => {}
                    Woken::Ready => return Err(io::ErrorKind::TimedOut.into()),
                    Woken::TimeOver => return Err(io::ErrorKind::TimedOut.into()),
                    Woken::Stopped => return Ok(()),
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Takes in what a client still sends after it was refused, and waits for its end, but not for long. A pipe cannot say that nothing more will
/// be written to it: its client waits for the end of our process, which must not be late.
fn drain(stream: &Stream, stop: BorrowedFd) -> io::Result<()> {
    let is_socket = fd::shutdown_write(stream.output()).is_ok();
    let mut buffer = [0; DRAIN_BYTES];
    let (pause, time) = if is_socket { (DRAIN_PATIENCE, DRAIN_TIME) } else { (DRAIN_LULL, DRAIN_TIME_LINE) };
    let end = Instant::now() + time;
    let mut drained = 0;
    while drained < DRAIN_MAX {
        match fd::read(stream.input(), &mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                drained += count;
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        match wait(stream.input(), fd::READ, stop, end.min(Instant::now() + pause))? {
            Woken::Ready => {}
            Woken::TimeOver | Woken::Stopped => break,
        }
    }
    Ok(())
}
