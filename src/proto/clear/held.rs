//! A process as its shim's connection, or its session without one, has it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::engine::running::Running;
use crate::engine::{CHUNK, PIPE_FULL};
use crate::exec::{self, BLIND_POLL};
use crate::proto::clear::frame::{STDERR, STDOUT};
use crate::proto::clear::keeper::Permit;
use crate::proto::clear::outgoing::Outgoing;
use crate::sys::fd;

/// Bytes of output of an ended process that wait for its shim. Its last shim's connection had a megabyte of them at the most, and each of its two
/// pipes, if the process has enlarged it as far as it may, another one. More comes only from those that it has left behind, and is cut.
const REST_MAX: usize = 4 << 20;

/// A process, and what is to be told of it.
#[derive(Debug)]
pub struct Held {
    pub running: Running,
    /// Frames that its shim has not been given.
    pub outgoing: Outgoing,
    pub terminal: bool,
    pub permit: Permit,
}

/// What to wait for without having the process.
#[derive(Debug)]
pub struct Watched {
    /// After this time there is something to do that no descriptor tells of.
    pub time: Option<Duration>,
    /// Readable when it has ended.
    pub end: Option<OwnedFd>,
    /// Writable when it has read some of what waits for it.
    pub inputs: Vec<OwnedFd>,
}

impl Held {
    /// Reads output into frames. False: there is none now.
    pub fn read(&mut self, index: usize, limit: usize, outgoing: &mut Outgoing) -> bool {
        let running = &mut self.running;
        let flow = &mut running.flows[index];
        let Some(rd) = &flow.rd else { return false };
        let opcode = if flow.number == 2 { STDERR } else { STDOUT };
        match outgoing.read_from(rd.as_fd(), opcode, limit.min(flow.chunk)) {
            Ok(count @ 1..) => {
                if count == flow.chunk {
                    flow.chunk = (flow.chunk * 4).min(CHUNK);
                }
                if count == PIPE_FULL {
                    // Refused for terminals and users over their limit; then it stays as it is.
                    let _ = fd::set_pipe_size(rd.as_fd(), CHUNK);
                }
                running.quiet_since = running.quiet_since.map(|_| Instant::now());
                return true;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // EIO is how a terminal says that its last user has gone.
            Ok(0) | Err(_) => flow.rd = None,
        }
        false
    }

    /// The code of the process, if it has ended and all its output has been read.
    pub fn code(&mut self, now: Instant) -> Option<u8> {
        if self.running.is_complete(now) { self.exit_code() } else { None }
    }

    /// The code of the process, if it has ended: 128 and the signal for a death by one.
    pub fn exit_code(&self) -> Option<u8> {
        self.running.status.map(|status| (status.code() & 0xff) as u8)
    }

    /// Gives the process input; none is its end, but on a terminal.
    pub fn take_input(&mut self, payload: &[u8]) {
        let terminal = self.terminal;
        let Some(flow) = self.running.flow(0) else { return };
        match payload {
            [] if terminal => {}
            [] => drop(flow.end()),
            data => drop(flow.take(data)),
        }
    }

    /// Reads what an ended process has said, for a shim that comes later; gives its code once that is all.
    pub fn drain(&mut self, now: Instant) -> Option<u8> {
        self.running.look(now);
        self.running.status?;
        let mut outgoing = std::mem::take(&mut self.outgoing);
        let mut moved = true;
        while moved && outgoing.cost() < REST_MAX {
            moved = false;
            // In turn, so that one that does not end leaves room for what is in the others.
            for index in 0..self.running.flows.len() {
                moved |= self.read(index, CHUNK, &mut outgoing);
            }
        }
        outgoing.trim();
        self.outgoing = outgoing;
        if self.outgoing.cost() < REST_MAX { self.code(now) } else { self.exit_code() }
    }

    /// Gives the process what it has been sent, as far as it takes that.
    pub fn feed(&mut self) {
        self.running.flows.iter_mut().filter(|flow| flow.queued() > 0).for_each(|flow| {
            flow.flush();
        });
    }

    /// What tells that something has happened to it.
    pub fn watched(&self, now: Instant) -> Watched {
        let running = &self.running;
        let end = running.session.end_watch().filter(|_| running.status.is_none());
        let end = end.and_then(|end| end.try_clone_to_owned().ok());
        let is_blind = end.is_none() && running.status.is_none();
        let quiet = running.deadline().map(|until| until.saturating_duration_since(now));
        let inputs = running.flows.iter().filter(|flow| flow.queued() > 0).filter_map(|flow| flow.wr.as_ref());
        let inputs = inputs.filter_map(|wr| wr.try_clone().ok()).collect();
        Watched { time: quiet.into_iter().chain(is_blind.then_some(BLIND_POLL)).min(), end, inputs }
    }

    /// Ends the process, if it has not ended yet, and buries it.
    pub fn end(self) {
        let Running { session, flows, status, .. } = self.running;
        drop(flows);
        if status.is_none() {
            exec::hang_up(vec![session]);
        }
    }
}
