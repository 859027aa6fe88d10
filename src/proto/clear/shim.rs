//! A connection as the shim of a session: the streams of the process, and its end.

use std::sync::Arc;
use std::time::Instant;

use crate::engine::running::Running;
use crate::proto::bell::Bell;
use crate::proto::clear::connection::{Connection, Waited};
use crate::proto::clear::frame::{self, Kind, PROCESS_EXITED};
use crate::proto::clear::held::Held;
use crate::proto::clear::outgoing::Outgoing;
use crate::proto::clear::registry::Registry;
use crate::proto::clear::session::{Found, Session};

/// What a connection has of a session.
pub struct Shim {
    pub session: Arc<Session>,
    held: Option<Box<Held>>,
    /// The end of the process has been told.
    over: bool,
    /// And has been written.
    told: bool,
    /// That of the connection; and when it has ended, of who guards the process.
    bell: Arc<Bell>,
}

/// Tells that a process has ended.
pub fn exited(outgoing: &mut Outgoing, code: u8) {
    outgoing.push(frame::header(Kind::Notification, PROCESS_EXITED, 1), vec![code]);
}

impl Shim {
    /// The shim of a session that this connection has claimed.
    pub fn of(session: Arc<Session>, bell: Arc<Bell>) -> Shim {
        Shim { session, held: None, over: false, told: false, bell }
    }

    /// The process, from its start to its end.
    pub fn running(&self) -> Option<&Running> {
        self.held.as_ref().map(|held| &held.running)
    }

    /// Whether the end of the process has been told.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Bytes of input that the process has not read.
    pub fn queued(&self) -> usize {
        self.running().map_or(0, |running| running.flows.iter().map(|flow| flow.queued()).sum())
    }

    /// Takes over a process that was started, and tells its end once all its output is under way.
    pub fn attend(&mut self, outgoing: &mut Outgoing) {
        if self.held.is_none() && !self.over {
            match self.session.take() {
                Found::Nothing => return,
                Found::Process(mut held) => {
                    outgoing.append(std::mem::take(&mut held.outgoing));
                    self.held = Some(held);
                }
                Found::Ended(code, rest) => {
                    outgoing.append(rest);
                    exited(outgoing, code);
                    self.over = true;
                }
            }
        }
        let Some(held) = &mut self.held else { return };
        let now = Instant::now();
        if held.running.session.end_watch().is_none() {
            held.running.look(now);
        }
        if let Some(code) = held.code(now) {
            exited(outgoing, code);
            self.session.end(code);
            self.held = None;
            self.over = true;
        }
    }

    /// Everything of it has been written: the session has told its end, if it has come to that.
    pub fn tell(&mut self) {
        if self.over && !std::mem::replace(&mut self.told, true) {
            self.session.tell();
        }
    }

    /// Sees that the process has ended.
    pub fn look(&mut self) {
        self.held.iter_mut().for_each(|held| held.running.look(Instant::now()));
    }

    /// Waits until the process is started.
    ///
    /// # Errors
    /// It was not, in time or before the client went.
    pub fn wait_for_process(connection: &mut Connection) -> Result<(), String> {
        let deadline = Instant::now() + connection.registry().times.process;
        loop {
            connection.attend();
            let Some(shim) = &connection.shim else { return Err(NOT_A_SHIM.to_owned()) };
            if shim.over || shim.held.is_some() {
                return Ok(());
            }
            let token = shim.session.token.clone();
            if connection.wait(deadline) != Waited::Rung {
                return Err(format!("timeout waiting for process with token {token}"));
            }
        }
    }

    /// Gives the process input; none is its end, but on a terminal.
    ///
    /// # Errors
    /// Why the connection cannot go on.
    pub fn take_input(connection: &mut Connection, payload: &[u8]) -> Result<(), String> {
        if connection.shim.is_none() {
            return Err("input from a client that is no shim".to_owned());
        }
        Shim::wait_for_process(connection)?;
        let held = connection.shim.as_mut().and_then(|shim| shim.held.as_mut());
        // One that has ended reads nothing any more.
        held.into_iter().for_each(|held| held.take_input(payload));
        Ok(())
    }

    /// The same for what was sent before the client went; only a process that was started can have it.
    pub fn take_last_input(&mut self, payload: &[u8]) {
        self.held.iter_mut().for_each(|held| held.take_input(payload));
    }

    /// Reads output of the process.
    pub fn read(&mut self, index: usize, share: usize, outgoing: &mut Outgoing) {
        if let Some(held) = &mut self.held {
            held.read(index, share, outgoing);
        }
    }

    /// Writes input that waits.
    pub fn write(&mut self, index: usize, hung_up: bool) {
        if let Some(held) = &mut self.held {
            let flow = &mut held.running.flows[index];
            if hung_up {
                flow.closed_by_program()
            } else {
                flow.flush()
            };
        }
    }

    /// Takes its leave: nobody shall have the session any more.
    pub fn disconnect(self, registry: &Registry) {
        // Before its token goes, so that nobody who looks for all processes misses it.
        registry.remember(&self.session);
        registry.bury(&self.session);
        if let Some(held) = self.session.disconnect(self.held) {
            registry.keepers.discard(held, self.session);
        }
    }

    /// The connection is lost; the session waits for its shim to come back.
    pub fn lose(self, outgoing: Outgoing, registry: &Registry) {
        let mut outgoing = outgoing.for_another();
        let held = self.held.map(|mut held| {
            held.outgoing = std::mem::take(&mut outgoing);
            held
        });
        let has_rest = !outgoing.is_empty();
        if self.session.release(held, outgoing, &self.bell) {
            registry.keepers.guard(self.session, self.bell, registry.times.abandoned);
        } else if has_rest {
            registry.keepers.keep(&self.session);
        }
    }

    /// The agent ends, and the process with it.
    pub fn hang_up(mut self) {
        // It may have been started just now.
        self.attend(&mut Outgoing::default());
        // One that is started from now on is given back to who starts it.
        self.session.disconnect(self.held).into_iter().for_each(|held| held.end());
    }
}

/// What a client is told that has claimed no token.
pub const NOT_A_SHIM: &str = "client isn't a shim";
