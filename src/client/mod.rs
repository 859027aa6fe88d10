//! The host's side: a connection to an agent, and what can be asked of it.

pub mod exec;
pub mod files;
pub mod monitor;
pub mod output;
pub mod ping;
pub mod recorder;
pub mod sink;

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crate::stream::Stream;
use crate::stream::inbox::Inbox;
use crate::stream::outbox::Outbox;
use crate::sys::fd::{self, PollSet};
use crate::sys::{errno, file};
use crate::wire::frame::{self, Frame, Hello, Log};
use crate::wire::scan::Scanner;
use crate::wire::{ITEM_MAX, REVISION};

/// Bytes of the largest answer that is taken: the agent's largest item, and a listing of one page with long names.
const ANSWER_MAX: usize = ITEM_MAX;

/// How long taking leave may take when the line is full.
const LEAVE: Duration = Duration::from_secs(1);

/// Messages of the agent that are kept for `take_log`; later ones are dropped until it is called.
const LOG_MAX: usize = 1024;

/// Why something asked of an agent did not happen.
#[derive(Debug)]
pub enum Error {
    /// The connection ended or broke.
    Lost(io::Error),
    /// The agent said why it ends the connection.
    Refused(String),
    /// The other side is no lodger agent, or of another age.
    Protocol(String),
    /// The agent could not do it: its error number and its text, which names operation and object.
    Remote { errno: i32, text: String },
    /// A program could not be started; `errno` is 0 when it was not for the program's own sake.
    NotStarted { errno: i32, text: String },
    /// Something on this side.
    Local { what: String, error: io::Error },
    /// Nothing came in time.
    Silent(Duration),
    /// The same, or a lost connection, as whoever carries the connection explains it.
    Explained(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Error::Lost(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                f.write_str("the agent closed the connection")
            }
            Error::Lost(error) => write!(f, "connection lost: {}", errno::describe(error)),
            Error::Refused(text) => write!(f, "the agent refused: {text}"),
            Error::Protocol(text) => write!(f, "not understood: {text}; is that a lodger agent?"),
            Error::Remote { text, .. } | Error::NotStarted { text, .. } => f.write_str(text),
            Error::Local { what, error } => write!(f, "{what}: {}", errno::describe(error)),
            Error::Explained(text) => f.write_str(text),
            Error::Silent(time) => {
                write!(f, "no agent answered within {}.{} s", time.as_secs(), time.subsec_millis() / 100)
            }
        }
    }
}

impl std::error::Error for Error {}

impl Error {
    /// The error of something done on this side.
    pub fn local(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let what = what.into();
        move |error| Error::Local { what, error }
    }

    /// Whether the guest said that there is no such file.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::Remote { errno, .. } if *errno == file::ENOENT)
    }
}

/// A connection to an agent. All calls block.
///
/// ```no_run
/// use lodger::client::Connection;
///
/// let address = "unix:/run/lodger.sock".parse().map_err(|error| format!("{error}"))?;
/// let mut agent = Connection::open(lodger::transport::connect(&address)?);
/// let output = agent.output(["uname", "-r"])?;
/// assert_eq!(output.code, 0);
/// println!("the guest runs {}", String::from_utf8_lossy(&output.stdout));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    inbox: Inbox,
    outbox: Outbox,
    scanner: ScannerState,
    /// The item in front has been handed out and is used up by the next call.
    used: usize,
    /// Length of the whole item in front.
    front: Option<usize>,
    /// Ours, in the greeting and the agent's answer to it; 0 before we greet.
    mark: u64,
    /// Some agent has greeted.
    heard: bool,
    agent: Option<Hello>,
    last_id: u32,
    wants_log: bool,
    log: Vec<Log>,
}

struct ScannerState(Scanner);

impl fmt::Debug for ScannerState {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Scanner")
    }
}

impl Connection {
    /// Takes over a connected stream. The greeting travels with the first request.
    pub fn open(stream: Stream) -> Connection {
        Connection::with_log(stream, None)
    }

    /// The same, and asks for the agent's messages of `level` (Go's slog: -8 trace, -4 debug, 0 information, 4 warning, 8 error) and above:
    /// `take_log`.
    pub fn with_log(stream: Stream, level: Option<i64>) -> Connection {
        let mut connection = Connection::on_line(stream);
        connection.say_hello(level);
        connection
    }

    /// Takes over a bare line, on which there are no connections: what comes first may have been meant for somebody else, and what is
    /// sent before the agent has opened the line may be lost. `hears_agent` and then `greet` make a connection of it.
    pub fn on_line(stream: Stream) -> Connection {
        // Cannot fail on open descriptors.
        let _ = stream.set_nonblocking(true);
        Connection {
            stream,
            inbox: Inbox::default(),
            outbox: Outbox::default(),
            scanner: ScannerState(Scanner::new(ANSWER_MAX)),
            used: 0,
            front: None,
            mark: 0,
            heard: false,
            agent: None,
            last_id: 0,
            wants_log: false,
            log: Vec::new(),
        }
    }

    fn say_hello(&mut self, log_level: Option<i64>) {
        self.wants_log = log_level.is_some();
        // Random enough to be told from the mark of whoever used the line before.
        self.mark = RandomState::new().build_hasher().finish() | 1;
        // Numbers too: on a bare line what belongs to a client that was killed may still be under way.
        self.last_id = (self.mark >> 32) as u32;
        let program = crate::version::PROGRAM.to_owned();
        let hello = Hello { revision: REVISION, program, log_level, window: 0, mark: self.mark };
        self.outbox.push(&Frame::Hello(hello).to_bytes());
    }

    /// Reads what has come, and says whether an agent has made itself heard since the line was taken over.
    pub fn hears_agent(&mut self) -> Result<bool, Error> {
        self.exchange(Some(Duration::ZERO))?;
        self.skip_frames()?;
        Ok(self.heard)
    }

    /// What to poll before `hears_agent` is asked again.
    pub fn watch(&self) -> BorrowedFd<'_> {
        self.stream.input()
    }

    /// Passes over what belongs to somebody who was here before.
    fn skip_frames(&mut self) -> Result<(), Error> {
        loop {
            match self.next_frame().map(|frame| frame.is_some()) {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                // The rest of a message whose beginning is lost: on to what may be the beginning of the next.
                Err(Error::Protocol(_)) if self.agent.is_none() => self.skip_rubbish(),
                Err(error) => return Err(error),
            }
        }
    }

    /// On to what may be the beginning of the next message.
    fn skip_rubbish(&mut self) {
        self.drop_used();
        let next = self.inbox.bytes().iter().skip(1).position(|byte| crate::wire::starts_frame(*byte));
        let rubbish = next.map_or(self.inbox.bytes().len(), |index| index + 1);
        self.inbox.consume(rubbish);
        (self.scanner, self.used, self.front) = (ScannerState(Scanner::new(ANSWER_MAX)), 0, None);
    }

    /// Passes over a message in front that has not ended, when no more of it will come. The rest of one whose beginning is lost may look
    /// like the beginning of a longer one, which swallows the agent's greeting. Whether there was one.
    pub fn skip_unfinished(&mut self) -> Result<bool, Error> {
        let mut skipped = false;
        loop {
            self.skip_frames()?;
            if self.agent.is_some() || self.inbox.bytes().is_empty() {
                return Ok(skipped);
            }
            self.skip_rubbish();
            skipped = true;
        }
    }

    /// What the agent said of itself; waits for it, at most `patience`.
    pub fn greet(&mut self, patience: Duration) -> Result<Hello, Error> {
        let deadline = Instant::now() + patience;
        if self.mark == 0 {
            self.say_hello(None);
        }
        loop {
            self.skip_frames()?;
            if self.agent.is_some() {
                break;
            }
            // A signal ends the wait too; only the clock says that it was in vain.
            let happened = self.exchange(Some(deadline.saturating_duration_since(Instant::now())))?;
            if !happened && Instant::now() >= deadline {
                return Err(self.explained(Error::Silent(patience)));
            }
        }
        self.agent.clone().ok_or(Error::Silent(patience))
    }

    /// Makes `greet` say our greeting once more: what was said before the agent had opened the line is lost.
    pub fn greet_again(&mut self) {
        if self.agent.is_none() {
            self.mark = 0;
        }
    }

    /// Messages that the agent has sent since the last call.
    pub fn take_log(&mut self) -> Vec<Log> {
        std::mem::take(&mut self.log)
    }

    /// A number that no other request on this connection has.
    fn new_id(&mut self) -> u32 {
        self.last_id = self.last_id.wrapping_add(1).max(1);
        self.last_id
    }

    /// Puts a frame behind those that wait to be sent.
    fn send(&mut self, frame: &Frame) {
        self.outbox.push(&frame.to_bytes());
    }

    /// The next frame, waiting for it; greetings and messages are taken care of.
    fn receive(&mut self) -> Result<Frame<'_>, Error> {
        while !self.has_frame()? {
            self.exchange(None)?;
        }
        self.next_frame()?.ok_or_else(|| Error::Lost(io::ErrorKind::UnexpectedEof.into()))
    }

    /// Whether `next_frame` has one to give.
    fn has_frame(&mut self) -> Result<bool, Error> {
        while let Some(length) = self.find_item()? {
            let item = &self.inbox.bytes()[..length];
            if frame::is_answer(item) {
                return Ok(true);
            }
            match Frame::decode(item).map_err(|error| Error::Protocol(error.to_string()))? {
                Frame::Hello(hello) => {
                    self.heard = true;
                    if self.agent.is_some() && hello.mark == 0 {
                        // An agent greets without being asked only when it opens the line: ours is gone, and its programs with it. QEMU
                        // does not hang up a line because nobody in the guest has it open.
                        return Err(Error::Lost(io::Error::other("the agent was started anew")));
                    }
                    if self.mark != 0 && hello.mark == self.mark {
                        self.agent = Some(hello);
                    }
                }
                // Who asked for none shall not keep them.
                Frame::Log(log) if self.wants_log && self.log.len() < LOG_MAX => self.log.push(log),
                Frame::Log(_) => {}
                Frame::Error { error } => return Err(Error::Refused(error)),
                _ => return Ok(true),
            }
            self.used = length;
        }
        Ok(false)
    }

    /// The next frame, if all of it has come.
    fn next_frame(&mut self) -> Result<Option<Frame<'_>>, Error> {
        if !self.has_frame()? {
            return Ok(None);
        }
        let length = self.front.unwrap_or_default();
        self.used = length;
        Frame::decode(&self.inbox.bytes()[..length]).map(Some).map_err(|error| Error::Protocol(error.to_string()))
    }

    /// Cuts off the item that was handed out before.
    fn drop_used(&mut self) {
        if self.used > 0 {
            self.inbox.consume(std::mem::take(&mut self.used));
            self.front = None;
        }
    }

    /// The length of the item in front.
    fn find_item(&mut self) -> Result<Option<usize>, Error> {
        self.drop_used();
        if self.front.is_none() {
            self.front = self.scanner.0.find_end(self.inbox.bytes()).map_err(|why| Error::Protocol(why.to_string()))?;
        }
        Ok(self.front)
    }

    /// Sends what waits and reads what comes, once. `false`: nothing happened in time.
    fn exchange(&mut self, patience: Option<Duration>) -> Result<bool, Error> {
        match self.outbox.write_to(self.stream.output()) {
            // What the agent said before it went may still be there to be read, and tell more.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.outbox.clear(),
            result => result.map_err(Error::Lost)?,
        }
        let mut set = PollSet::default();
        let wants_room = if self.outbox.is_empty() { 0 } else { fd::WRITE };
        if self.stream.is_one() {
            set.watch(self.stream.input(), fd::READ | wants_room);
        } else {
            set.watch(self.stream.input(), fd::READ);
            set.watch(self.stream.output(), wants_room);
        }
        set.wait(patience).map_err(Error::Lost)?;
        if set.ready(0).readable {
            self.fill()?;
            return Ok(true);
        }
        let last = if self.stream.is_one() { 0 } else { 1 };
        Ok(wants_room != 0 && set.ready(last).writable)
    }

    /// Reads what has come.
    fn fill(&mut self) -> Result<(), Error> {
        self.drop_used();
        match self.inbox.fill(self.stream.input(), self.scanner.0.known_length()) {
            Ok(0) => Err(self.explained(Error::Lost(io::ErrorKind::UnexpectedEof.into()))),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            // A reset is also how a stream ends whose carrier has not taken what was said last.
            Err(error) => Err(self.explained(Error::Lost(error))),
        }
    }

    /// The error in the words of whoever knows more of the connection.
    fn explained(&self, error: Error) -> Error {
        self.stream.explanation().map_or(error, Error::Explained)
    }

    /// Takes leave. On a line that cannot be closed this is what ends the session there.
    pub fn close(mut self) {
        self.outbox.push(&Frame::Goodbye.to_bytes());
        let deadline = Instant::now() + LEAVE;
        // Half a message would swallow the beginning of whatever the next client sends on a bare line.
        while self.outbox.write_to(self.stream.output()).is_ok() && !self.outbox.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            let room = fd::wait_for(self.stream.output(), fd::WRITE, Some(left));
            if left.is_zero() || !room.is_ok_and(|ready| ready.writable) {
                return;
            }
        }
        // What carries the stream goes with this process; the agent closes the connection when it has heard us.
        while self.stream.is_carried() && !deadline.saturating_duration_since(Instant::now()).is_zero() {
            self.inbox = Inbox::default();
            (self.used, self.front) = (0, None);
            if self.exchange(Some(deadline.saturating_duration_since(Instant::now()))).is_err() {
                break;
            }
        }
        self.stream.close(deadline.saturating_duration_since(Instant::now()));
    }
}
