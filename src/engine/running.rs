//! One running program as the engine sees it: its streams, what waits for them, and when its output is complete.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::exec::{Channel, QUIET, Session};
use crate::sys::fd;
use crate::sys::process::Status;

/// Bytes of the first read of a stream.
const CHUNK_FIRST: usize = 16 << 10;

/// End of file, typed on a terminal.
const END_OF_TRANSMISSION: u8 = 4;

/// One stream of a program.
#[derive(Debug)]
pub struct Flow {
    pub number: u32,
    /// The program's output until its end has been met.
    pub rd: Option<OwnedFd>,
    /// The program's input until either side has closed it.
    pub wr: Option<OwnedFd>,
    /// Bytes that may be sent to the client before it grants more; `None`: without end.
    pub credit: Option<u64>,
    /// Bytes of the next read of its output: little for a program that says little, more and more for one that fills each read.
    pub chunk: usize,
    /// Input that the program has not read.
    queue: Vec<u8>,
    queue_start: usize,
    /// The client has ended the input; it closes when the queue is empty.
    ending: bool,
    /// Input taken in since the client was last granted more.
    owed: u32,
    on_terminal: bool,
    /// It never had a direction to the program.
    output_only: bool,
    /// The last byte of input was no end of a line.
    within_line: bool,
}

/// What became of a program's input.
#[derive(Debug, PartialEq, Eq)]
pub enum Written {
    /// All that the pipe would take.
    Open,
    /// The program has closed its end.
    ClosedByProgram,
    /// The client had ended it, and all of it has been delivered.
    Ended,
}

impl Flow {
    fn new(channel: Channel, credit: Option<u64>, on_terminal: bool) -> Flow {
        let output_only = channel.wr.is_none();
        Flow {
            number: channel.number,
            rd: channel.rd,
            wr: channel.wr,
            credit,
            chunk: CHUNK_FIRST,
            queue: Vec::new(),
            queue_start: 0,
            ending: false,
            owed: 0,
            on_terminal,
            output_only,
            within_line: false,
        }
    }

    /// Whether it is an output of the program and nothing else.
    pub fn is_output(&self) -> bool {
        self.output_only
    }

    /// Bytes that wait for the program to read.
    pub fn queued(&self) -> usize {
        self.queue.len() - self.queue_start
    }

    /// Takes input: as much as the program's pipe has room for goes straight there, the rest waits.
    pub fn take(&mut self, data: &[u8]) -> Written {
        if self.wr.is_none() || self.ending {
            return Written::Open;
        }
        self.owed = self.owed.saturating_add(data.len() as u32);
        self.within_line = data.last().map_or(self.within_line, |last| !matches!(last, b'\n' | b'\r'));
        if self.queued() > 0 {
            if self.queue_start > self.queued() {
                // A program that is always a little behind never empties the queue; what it has read must go all the same.
                self.queue.drain(..self.queue_start);
                self.queue_start = 0;
            }
            self.queue.extend_from_slice(data);
            return Written::Open;
        }
        match write_some(&self.wr, data) {
            Ok(count) => {
                self.queue.extend_from_slice(&data[count..]);
                Written::Open
            }
            Err(_) => self.closed_by_program(),
        }
    }

    /// Ends the input behind what waits.
    pub fn end(&mut self) -> Written {
        if self.wr.is_none() || self.ending {
            return Written::Open;
        }
        if self.on_terminal {
            // A terminal has no end of file to pass on; this character makes the program read one, as a person would. It is not the client's,
            // who must not be granted anything for it.
            // Within a line the first one only hands over the line so far.
            let typed: &[u8] = if self.within_line { &[END_OF_TRANSMISSION; 2] } else { &[END_OF_TRANSMISSION] };
            let (owed, written) = (self.owed, self.take(typed));
            self.owed = owed;
            return written;
        }
        self.ending = true;
        self.flush()
    }

    /// Writes what waits, as far as the program takes it.
    pub fn flush(&mut self) -> Written {
        match write_some(&self.wr, &self.queue[self.queue_start..]) {
            Ok(count) => self.queue_start += count,
            Err(_) => return self.closed_by_program(),
        }
        if self.queued() > 0 {
            return Written::Open;
        }
        // Given back, so that a program that once was slow does not cost memory for ever.
        self.queue = Vec::new();
        self.queue_start = 0;
        if !self.ending {
            return Written::Open;
        }
        if let Some(wr) = self.wr.take() {
            // A socket has a half to shut down, because its other half is open; a pipe ends by being closed.
            if self.rd.is_some() {
                let _ = fd::shutdown_write(wr.as_fd());
            }
        }
        Written::Ended
    }

    pub fn closed_by_program(&mut self) -> Written {
        self.wr = None;
        self.queue = Vec::new();
        self.queue_start = 0;
        Written::ClosedByProgram
    }

    /// Bytes to grant the client, once they are worth a message: half of its window.
    pub fn take_grant(&mut self, window: u32) -> Option<u32> {
        let consumed = self.owed.saturating_sub(self.queued() as u32);
        if self.wr.is_none() || consumed < window / 2 {
            return None;
        }
        self.owed -= consumed;
        Some(consumed)
    }

    /// How many bytes may be read from the program now; 0: none.
    pub fn room(&self, chunk: usize) -> usize {
        self.credit.map_or(chunk, |credit| credit.min(chunk as u64) as usize)
    }
}

/// write(2) until the pipe is full. `Err` when nobody will ever read it.
fn write_some(wr: &Option<OwnedFd>, data: &[u8]) -> io::Result<usize> {
    let Some(wr) = wr else { return Ok(data.len()) };
    let mut count = 0;
    while count < data.len() {
        match fd::write(wr.as_fd(), &data[count..]) {
            Ok(written) => count += written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

/// A program on a connection.
#[derive(Debug)]
pub struct Running {
    pub id: u32,
    pub session: Session,
    pub flows: Vec<Flow>,
    pub status: Option<Status>,
    /// When its output last moved, once the program has ended.
    pub quiet_since: Option<Instant>,
}

impl Running {
    pub fn new(id: u32, session: Session, channels: Vec<Channel>, credit: Option<u64>, on_terminal: bool) -> Running {
        let flows = channels.into_iter().map(|channel| Flow::new(channel, credit, on_terminal)).collect();
        Running { id, session, flows, status: None, quiet_since: None }
    }

    pub fn flow(&mut self, number: u32) -> Option<&mut Flow> {
        self.flows.iter_mut().find(|flow| flow.number == number)
    }

    /// Looks whether the program has ended.
    pub fn look(&mut self, now: Instant) {
        if self.status.is_none() {
            self.status = self.session.ended();
            self.quiet_since = self.status.map(|_| now);
        }
    }

    /// Whether the program has ended and all its output has been read, or nothing has come for `QUIET`. A stream that the client
    /// gives no credit for is not silent but stopped.
    pub fn is_complete(&mut self, now: Instant) -> bool {
        let Some(since) = self.quiet_since else { return false };
        let mut open = self.flows.iter().filter(|flow| flow.rd.is_some()).peekable();
        if open.peek().is_none() {
            return true;
        }
        if now < since + QUIET || !open.all(|flow| flow.room(1) > 0) {
            return false;
        }
        if self.has_unread_output() {
            // It was we who did not listen, because the client was slow or something else took its time.
            self.quiet_since = Some(now);
            return false;
        }
        true
    }

    fn has_unread_output(&self) -> bool {
        let mut open = self.flows.iter().filter_map(|flow| flow.rd.as_ref());
        open.any(|rd| fd::wait_for(rd.as_fd(), fd::READ, Some(Duration::ZERO)).is_ok_and(|ready| ready.readable))
    }

    /// When to look again, if nothing else happens.
    pub fn deadline(&self) -> Option<Instant> {
        let stopped = self.flows.iter().any(|flow| flow.rd.is_some() && flow.room(1) == 0);
        self.quiet_since.filter(|_| !stopped).map(|since| since + QUIET)
    }
}
