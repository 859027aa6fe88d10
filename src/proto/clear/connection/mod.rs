//! One connection: its frames, their answers, and its end.

mod ending;
mod poll;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::{Ended, QUEUE_MAX};
use crate::exec::departure::Departure;
use crate::proto::Circumstances;
use crate::proto::bell::Bell;
use crate::proto::clear::commands::{self, Answer};
use crate::proto::clear::connection::poll::Source;
use crate::proto::clear::frame::{self, Decoded, Header, Kind};
use crate::proto::clear::outgoing::Outgoing;
use crate::proto::clear::registry::{Registry, Vm};
use crate::proto::clear::shim::Shim;
use crate::proto::go;
use crate::stream::Stream;
use crate::stream::inbox::Inbox;
use crate::sys::fd::PollSet;
use crate::sys::process;

/// What the frames that wait for the client may cost in bytes before nothing more is produced for it.
const OUTGOING_HIGH: usize = 1 << 20;

/// How long the client may take none of the answers that the end of the machine waits for, and how fast it must take all of them, in bytes a
/// second (a third of what a line of 115,200 baud carries): nobody shall keep it by reading nothing.
const LAST_ANSWER: Duration = Duration::from_secs(5);
const LAST_RATE: u64 = 4 << 10;

/// How the wait for another connection ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Waited {
    Rung,
    TimeOver,
    /// The client has gone, or the agent ends.
    Gone,
}

/// The response to a signal, held back until the process has ended.
struct Pending {
    opcode: u8,
    deadline: Instant,
}

/// What is to be done once all answers are on their way, because nobody could send them afterwards.
struct Afterwards {
    work: Box<dyn FnOnce() + Send>,
    deadline: Instant,
    /// The deadline of whoever takes a little again and again.
    latest: Instant,
}

pub struct Connection<'a> {
    pub circumstances: &'a Circumstances<'a>,
    pub stream: Arc<Stream>,
    pub outgoing: Outgoing,
    /// The machine that it is attached to.
    pub vm: Option<Arc<Vm>>,
    /// What it is the shim of.
    pub shim: Option<Shim>,
    inbox: Inbox,
    expected: usize,
    bell: Option<Arc<Bell>>,
    /// No frame is taken until it is done.
    afterwards: Option<Afterwards>,
    pending: Option<Pending>,
    /// The next frame is input for a process that has not read enough of what it was sent before.
    blocked: bool,
    /// A command is waiting, and the next frame waits for it.
    is_busy: bool,
    /// The client sends no more, or is not listened to any more.
    input_over: bool,
    /// Nobody is there to write to.
    gone: bool,
    /// Whether it has gone while it is not read.
    departure: Departure,
    stopped: bool,
    broken: Option<String>,
}

/// Serves one connection.
///
/// # Errors
/// Those of the stream, but for the client's departure.
pub fn serve(stream: Stream, head: &[u8], circumstances: &Circumstances) -> io::Result<Ended> {
    stream.set_nonblocking(true)?;
    // Where it is forbidden programs end a little later.
    let _ = process::be_patient();
    let mut connection = Connection::new(stream, head, circumstances);
    let result = connection.run();
    // Before the client can see the end, so that it finds its session free when it comes back.
    let ended = connection.leave();
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected, TimedOut};
    match result {
        Err(error) if matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected | TimedOut) => Ok(ended),
        result => result.map(|()| ended),
    }
}

impl<'a> Connection<'a> {
    fn new(stream: Stream, head: &[u8], circumstances: &'a Circumstances<'a>) -> Connection<'a> {
        let mut inbox = Inbox::default();
        inbox.push(head);
        Connection {
            circumstances,
            stream: Arc::new(stream),
            outgoing: Outgoing::default(),
            vm: None,
            shim: None,
            inbox,
            expected: 0,
            bell: None,
            afterwards: None,
            pending: None,
            blocked: false,
            is_busy: false,
            input_over: false,
            gone: false,
            departure: Departure::default(),
            stopped: false,
            broken: None,
        }
    }

    pub fn registry(&self) -> &'a Arc<Registry> {
        &self.circumstances.settings.clear
    }

    /// The bell of this connection; only those that wait for others have one.
    pub fn bell(&mut self) -> Result<Arc<Bell>, String> {
        if self.bell.is_none() {
            self.bell = Some(Arc::new(Bell::new().map_err(|error| format!("make a pipe: {error}"))?));
        }
        self.bell.clone().ok_or_else(String::new)
    }

    /// Waits until the bell is rung, in the middle of a command. The process that this connection is the shim of goes on meanwhile.
    pub fn wait(&mut self, deadline: Instant) -> Waited {
        self.is_busy = true;
        let waited = self.wait_busy(deadline);
        self.is_busy = false;
        // A bell may be that of who wants to be the shim in its place, because its client has ended this connection.
        if waited.is_err() || self.stopped || self.is_replaced() {
            self.gone = true;
        }
        if self.gone { Waited::Gone } else { waited.unwrap_or(Waited::Gone) }
    }

    fn wait_busy(&mut self, deadline: Instant) -> io::Result<Waited> {
        let (mut set, mut sources) = (PollSet::default(), Vec::new());
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            self.look(&mut set, &mut sources, self.departure.tick().into_iter().chain([left]).min())?;
            let is_rung =
                sources.iter().enumerate().any(|(at, source)| matches!(source, Source::Bell) && set.ready(at).readable);
            self.handle_all(&set, &sources)?;
            self.gone |= self.departure.is_seen(self.stream.input(), false);
            self.attend();
            self.write()?;
            match () {
                () if self.stopped || self.gone => return Ok(Waited::Gone),
                () if is_rung => return Ok(Waited::Rung),
                () if left.is_zero() => return Ok(Waited::TimeOver),
                () => {}
            }
        }
    }

    /// Does something once the answers are on their way, or nobody has taken them in time.
    pub fn do_afterwards(&mut self, work: Box<dyn FnOnce() + Send>) {
        let deadline = Instant::now() + LAST_ANSWER;
        let latest = deadline + Duration::from_secs(self.outgoing.cost() as u64 / LAST_RATE);
        self.afterwards = Some(Afterwards { work, deadline, latest });
    }

    /// Ends the connection once what waits is written.
    pub fn close(&mut self) {
        self.input_over = true;
    }

    fn run(&mut self) -> io::Result<()> {
        let (mut set, mut sources) = (PollSet::default(), Vec::new());
        loop {
            let is_waiting = self.take_frames();
            self.attend();
            if self.gone || self.is_replaced() {
                return Ok(());
            }
            self.write()?;
            let is_due = |after: &Afterwards| self.outgoing.is_empty() || after.deadline <= Instant::now();
            if self.afterwards.as_ref().is_some_and(is_due) {
                self.afterwards.take().into_iter().for_each(|after| (after.work)());
            }
            if self.input_over && self.pending.is_none() {
                return self.flush();
            }
            if !is_waiting && self.takes_frames() {
                continue;
            }
            self.look(&mut set, &mut sources, None)?;
            self.handle_all(&set, &sources)?;
            if self.stopped || self.gone {
                return Ok(());
            }
        }
    }

    /// Writes what the client takes.
    pub fn write(&mut self) -> io::Result<()> {
        let count = self.outgoing.write_to(self.stream.output())?;
        if let Some(after) = self.afterwards.as_mut().filter(|_| count > 0) {
            after.deadline = (Instant::now() + LAST_ANSWER).min(after.latest);
        }
        if self.outgoing.is_empty() {
            self.shim.iter_mut().for_each(Shim::tell);
        }
        Ok(())
    }

    /// Whether another connection wants to be the shim, because the client has ended this one.
    fn is_replaced(&self) -> bool {
        self.shim.as_ref().is_some_and(|shim| shim.session.is_wanted())
    }

    /// Whether frames may be acted on: their answers have room.
    fn takes_frames(&self) -> bool {
        !self.input_over && !self.gone && self.afterwards.is_none() && self.outgoing.cost() < OUTGOING_HIGH
    }

    /// Whether the client may be read.
    fn wants_input(&self) -> bool {
        self.takes_frames() && !self.blocked && !self.is_busy
    }

    /// Whether a frame must wait. Only input does, so that the process can be signalled as long as nothing more is sent to it.
    fn is_held_up(&self, header: &Header) -> bool {
        let is_input = (header.kind, header.opcode) == (Kind::Stream, frame::STDIN);
        let queued = self.shim.as_ref().map_or(0, Shim::queued);
        is_input && queued > 0 && queued + header.payload_bytes > QUEUE_MAX
    }

    /// True when the next frame is not all there, or must wait.
    fn take_frames(&mut self) -> bool {
        self.blocked = false;
        while self.takes_frames() {
            // Taken out, so that a payload can be borrowed from it meanwhile.
            let mut inbox = std::mem::take(&mut self.inbox);
            let mut is_waiting = false;
            match frame::decode(inbox.bytes()) {
                Ok(Decoded::Incomplete { expected }) => (self.expected, is_waiting) = (expected, true),
                Ok(Decoded::Frame(header)) if self.is_held_up(&header) => (self.blocked, is_waiting) = (true, true),
                Ok(Decoded::Frame(header)) => {
                    let end = header.payload_start + header.payload_bytes;
                    let taken = self.take_frame(&header, &inbox.bytes()[header.payload_start..end]);
                    inbox.consume(end);
                    if let Err(why) = taken {
                        self.give_up(why);
                    }
                }
                Err(why) => self.give_up(why),
            }
            self.inbox = inbox;
            if is_waiting {
                return true;
            }
        }
        false
    }

    fn give_up(&mut self, why: String) {
        self.respond_late();
        self.input_over = true;
        // Who has gone is not to blame for what could not be done any more.
        self.broken = Some(why).filter(|_| !self.gone);
    }

    /// Acts on a frame.
    ///
    /// # Errors
    /// Why the connection cannot go on.
    fn take_frame(&mut self, header: &Header, payload: &[u8]) -> Result<(), String> {
        match (header.kind, header.opcode) {
            (Kind::Command, opcode) => {
                self.respond_late();
                match commands::run(self, opcode, payload) {
                    Answer::Done(result) => self.respond(opcode, result),
                    Answer::Refused(why) => self.refuse(opcode, &why),
                    Answer::AtItsEnd => {
                        let deadline = Instant::now() + self.registry().times.end;
                        self.pending = Some(Pending { opcode, deadline });
                    }
                    Answer::Closed => self.close(),
                }
                Ok(())
            }
            (Kind::Stream, frame::STDIN) => Shim::take_input(self, payload),
            (Kind::Stream, frame::LOG) => commands::log(payload),
            (kind, opcode) => Err(format!("{kind:?} frame with opcode {opcode} from a client")),
        }
    }

    fn respond(&mut self, opcode: u8, result: Vec<u8>) {
        self.outgoing.push(frame::header(Kind::Response, opcode, result.len()), result);
    }

    fn refuse(&mut self, opcode: u8, why: &str) {
        let payload = go::error(why);
        self.outgoing.push(frame::error_header(opcode, payload.len()), payload);
    }

    /// Gives the response that was held back.
    fn respond_late(&mut self) {
        if let Some(pending) = self.pending.take() {
            self.respond(pending.opcode, Vec::new());
        }
    }

    /// Does what is due: for the process, and the response that waits for its end.
    pub fn attend(&mut self) {
        if let Some(shim) = &mut self.shim {
            shim.attend(&mut self.outgoing);
        }
        let is_over = self.shim.as_ref().is_none_or(Shim::is_over);
        if self.pending.as_ref().is_some_and(|pending| is_over || pending.deadline <= Instant::now()) {
            self.respond_late();
        }
    }
}
