//! Requests to the command monitor, whoever serves it: one request a stream, and its response.
//!
//! The request has no end of its own but that of its JSON, and the stream is not shut down behind it. The response ends with the stream; on
//! a bare line, which has no end, with its JSON.
//!
//! Source: the specification of Google's command monitor, sections 2 and 7.

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use crate::json::scan::Scanner;
use crate::stream::Stream;
use crate::sys::errno;
use crate::sys::fd::{self, PollSet};

/// Bytes of the longest response that is taken. It is held in memory whole, and who made it has held it too: more than a guest would, and
/// still no danger to this machine.
pub const RESPONSE_MAX: usize = 64 << 20;

/// Bytes of one read: more than most responses have.
const READ_BYTES: usize = 64 << 10;

/// How long to wait until the agent has heard that we leave, where that is said over a link.
const LEAVE: Duration = Duration::from_secs(1);

/// How a response ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    WithStream,
    /// Behind the last byte of its JSON value, or where it can be none.
    WithValue,
}

/// Why a response may not be whole.
#[derive(Debug)]
pub enum Fault {
    /// The connection broke. A response in front of that may be whole: an agent that leaves bytes unread resets it.
    Lost(io::Error),
    /// The same, as whoever carries the connection explains it.
    Explained(String),
    /// The time was over.
    TimeOver(Duration),
    /// Longer than `RESPONSE_MAX`.
    TooLong,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Fault::Lost(error) => write!(f, "connection lost: {}", errno::describe(error)),
            Fault::Explained(text) => f.write_str(text),
            Fault::TimeOver(time) => {
                write!(f, "no whole response within {}.{} s", time.as_secs(), time.subsec_millis() / 100)
            }
            Fault::TooLong => write!(f, "the response is longer than {RESPONSE_MAX} bytes"),
        }
    }
}

/// What came.
#[derive(Debug)]
pub struct Response {
    pub bytes: Vec<u8>,
    /// `None`: it ended as it should.
    pub fault: Option<Fault>,
}

/// Sends a request, and waits for the response; no longer than `timeout`, if there is one.
pub fn ask(stream: Stream, request: &[u8], end: End, timeout: Option<Duration>) -> Response {
    let mut bytes = Vec::new();
    let fault = exchange(&stream, request, end, timeout, &mut bytes).err();
    stream.close(LEAVE);
    Response { bytes, fault }
}

fn exchange(
    stream: &Stream,
    mut request: &[u8],
    end: End,
    timeout: Option<Duration>,
    bytes: &mut Vec<u8>,
) -> Result<(), Fault> {
    // Cannot fail on open descriptors.
    let _ = stream.set_nonblocking(true);
    let deadline = timeout.map(|time| Instant::now() + time);
    let mut scanner = Scanner::value();
    loop {
        send(stream, &mut request)?;
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if !wait(stream, !request.is_empty(), left).map_err(Fault::Lost)? {
            match timeout {
                Some(time) if left.is_some_and(|left| left.is_zero()) => return Err(Fault::TimeOver(time)),
                _ => continue,
            }
        }
        let fresh = bytes.len();
        match fd::read_append(stream.input(), bytes, READ_BYTES) {
            Ok(0) => return stream.explanation().map_or(Ok(()), |why| Err(Fault::Explained(why))),
            Ok(_) if bytes.len() > RESPONSE_MAX => return Err(Fault::TooLong),
            Ok(_) if end == End::WithStream => {}
            Ok(_) => match scanner.feed(&bytes[fresh..]) {
                Ok(None) => {}
                Ok(Some(count)) => {
                    bytes.truncate(fresh + count);
                    return Ok(());
                }
                Err(_) => return Ok(()),
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(stream.explanation().map_or(Fault::Lost(error), Fault::Explained)),
        }
    }
}

/// Sends as much as there is room for. Who does not want to hear the rest may have answered nevertheless.
fn send(stream: &Stream, request: &mut &[u8]) -> Result<(), Fault> {
    while !request.is_empty() {
        match fd::write(stream.output(), request) {
            Ok(count) => *request = &request[count..],
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => return Ok(()),
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => *request = &[],
                _ => return Err(Fault::Lost(error)),
            },
        }
    }
    Ok(())
}

/// Waits once; whether there is something to read.
fn wait(stream: &Stream, wants_room: bool, left: Option<Duration>) -> io::Result<bool> {
    let mut set = PollSet::default();
    let room = if wants_room { fd::WRITE } else { 0 };
    // Once, with the events of both directions: see `Stream::is_one`.
    set.watch(stream.input(), if stream.is_one() { fd::READ | room } else { fd::READ });
    if !stream.is_one() && wants_room {
        set.watch(stream.output(), fd::WRITE);
    }
    set.wait(left)?;
    Ok(set.ready(0).readable)
}
