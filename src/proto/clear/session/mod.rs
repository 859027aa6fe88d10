//! One token: its shim, its process, and who waits for which of them.
//!
//! ```text
//! IDLE --command--> STARTING --started--> READY --shim--> TAKEN --ended--> OVER
//!   ^------failed------'                    ^----shim lost----'              ^
//!                                           '------ended without a shim------'
//! ```
//! A process belongs to the connection of its shim, and while there is none to its session. When the shim takes its leave, the process is
//! LEFT, and with or without one the session is DISCONNECTED in the end.

pub mod guard;
mod reach;

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::proto::bell::Bell;
use crate::proto::clear::held::Held;
use crate::proto::clear::outgoing::Outgoing;
use crate::proto::clear::session::reach::Reach;
use crate::stream::Stream;
use crate::sys::fd;

#[derive(Debug)]
enum Phase {
    Idle,
    Starting,
    Ready(Box<Held>),
    Taken,
    /// The code, for a shim that comes back.
    Over(u8),
    /// Its process goes on without a shim; none can come.
    Left,
    Disconnected,
}

/// Who is a session's shim.
#[derive(Debug)]
struct Shim {
    bell: Arc<Bell>,
    stream: Arc<Stream>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    shim: Option<Shim>,
    /// Told of a new shim: the connection whose command waits for it.
    starter: Option<Arc<Bell>>,
    /// Told of the shim's end: the connection that wants to be the next one.
    next: Option<Arc<Bell>>,
    /// Told of a new shim: who guards the process that has none.
    guard: Option<Arc<Bell>>,
    /// Told of all that brings the end of the process nearer: the connections that want all to end, unless they have gone.
    ending: Vec<Weak<Bell>>,
    /// The shim has been given all, the exit code too.
    told: bool,
    /// Its process is being started, and nobody can reach it yet.
    launching: bool,
    /// When the last shim was lost.
    lost: Instant,
    /// Output of a process that has ended, for a shim that was lost before it had all of it.
    rest: Outgoing,
    /// Reaches the process from any connection.
    reach: Option<Reach>,
}

/// What a shim finds when it takes its session.
#[derive(Debug)]
pub enum Found {
    /// No process yet.
    Nothing,
    Process(Box<Held>),
    Ended(u8, Outgoing),
}

/// Why a session cannot be claimed.
#[derive(Debug, PartialEq, Eq)]
pub enum Claimed {
    /// For as long as that client stays.
    ByAnother,
    /// Its client has gone, and its connection will see that in a moment.
    ByOneThatLeaves,
}

#[derive(Debug)]
pub struct Session {
    pub token: String,
    /// The number of its standard input and output; that of its error output is the next one.
    pub io_base: u64,
    /// The number of its machine.
    pub vm: u64,
    state: Mutex<State>,
}

impl Session {
    pub fn new(token: String, io_base: u64, vm: u64) -> Session {
        let state = State {
            phase: Phase::Idle,
            shim: None,
            starter: None,
            next: None,
            guard: None,
            ending: Vec::new(),
            told: false,
            launching: false,
            lost: Instant::now(),
            rest: Outgoing::default(),
            reach: None,
        };
        Session { token, io_base, vm, state: Mutex::new(state) }
    }

    /// The session of a process without a token.
    pub fn without_shim(vm: u64) -> Session {
        let session = Session::new(String::new(), 1, vm);
        session.state().phase = Phase::Left;
        session
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is locked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a connection its shim. When its last shim leaves, that is told to hurry, and the bell is rung as soon as it has left.
    pub fn claim(&self, bell: &Arc<Bell>, stream: &Arc<Stream>) -> Result<(), Claimed> {
        let mut state = self.state();
        if matches!(state.phase, Phase::Left | Phase::Disconnected) {
            return Err(Claimed::ByAnother);
        }
        if let Some(shim) = &state.shim {
            let ended = fd::wait_for(shim.stream.input(), fd::PEER_ENDED, Some(Duration::ZERO));
            if !ended.is_ok_and(|ready| ready.hung_up) {
                return Err(Claimed::ByAnother);
            }
            shim.bell.ring();
            state.next = Some(Arc::clone(bell));
            return Err(Claimed::ByOneThatLeaves);
        }
        state.shim = Some(Shim { bell: Arc::clone(bell), stream: Arc::clone(stream) });
        state.next = None;
        state.starter.iter().chain(&state.guard).for_each(|bell| bell.ring());
        Ok(())
    }

    /// Whether another connection wants to be the shim, because its client has seen the end of this one.
    pub fn is_wanted(&self) -> bool {
        self.state().next.is_some()
    }

    /// Gives its shim the process, if there is one that it does not have.
    pub fn take(&self) -> Found {
        let mut state = self.state();
        if let Phase::Over(code) = state.phase {
            return Found::Ended(code, mem::take(&mut state.rest));
        }
        if !matches!(state.phase, Phase::Ready(_)) {
            return Found::Nothing;
        }
        match mem::replace(&mut state.phase, Phase::Taken) {
            Phase::Ready(held) => Found::Process(held),
            _ => Found::Nothing,
        }
    }

    /// Its shim's connection has ended, and gives back what it has: the process, or what it had left to say. True when the process is to be
    /// guarded, by who waits for this bell.
    pub fn release(&self, held: Option<Box<Held>>, rest: Outgoing, guard: &Arc<Bell>) -> bool {
        let mut state = self.state();
        state.shim = None;
        state.lost = Instant::now();
        match held {
            Some(held) => state.phase = Phase::Ready(held),
            None if matches!(state.phase, Phase::Over(_)) => state.rest = rest,
            None => {}
        }
        state.next.take().iter().for_each(|bell| bell.ring());
        state.ring_ending();
        state.is_to_be_guarded(guard)
    }

    /// Its shim takes its leave, and nobody shall claim it any more. Gives the process, if one is left.
    pub fn disconnect(&self, held: Option<Box<Held>>) -> Option<Box<Held>> {
        let mut state = self.state();
        state.shim = None;
        // They look once more, and find nothing: a container may keep the session for long, and shall not keep their descriptors.
        let bells = [state.starter.take(), state.next.take(), state.guard.take()];
        bells.iter().flatten().for_each(|bell| bell.ring());
        state.rest = Outgoing::default();
        let held = match mem::replace(&mut state.phase, Phase::Disconnected) {
            Phase::Ready(held) => Some(held),
            _ => held,
        };
        if held.is_some() {
            state.phase = Phase::Left;
        }
        state.ring_ending();
        held
    }

    /// Its process has ended, and its end is on its way to the shim, if it can have one.
    pub fn end(&self, code: u8) {
        let mut state = self.state();
        state.phase = match state.phase {
            Phase::Left | Phase::Disconnected => Phase::Disconnected,
            _ => Phase::Over(code),
        };
        state.ring_ending();
    }

    /// Its shim has been given all, the exit code too.
    pub fn tell(&self) {
        let mut state = self.state();
        state.told = true;
        state.ring_ending();
    }

    /// Whether the end of the machine need not wait for it: there is no process, or its end has been told to its shim, if it has one.
    pub fn is_told(&self) -> bool {
        let state = self.state();
        match state.phase {
            _ if state.launching => false,
            Phase::Idle | Phase::Starting | Phase::Disconnected => true,
            Phase::Ready(_) | Phase::Taken | Phase::Left => false,
            Phase::Over(_) => state.told || state.shim.is_none(),
        }
    }

    /// Its process is being started until this is dropped. Whoever lets none start any more, and looks then, either sees this or is seen by it.
    pub fn launching(&self) -> Launching<'_> {
        self.state().launching = true;
        Launching(self)
    }

    /// Whether it is about to have a process that nobody can reach yet.
    pub fn is_launching(&self) -> bool {
        self.state().launching
    }

    /// Rings this bell whenever it may have come nearer to that, or can be reached.
    pub fn tell_end_to(&self, bell: &Arc<Bell>) {
        let (mut state, bell) = (self.state(), Arc::downgrade(bell));
        // Once is enough, however often it is asked.
        state.ending.retain(|other| other.strong_count() > 0 && !other.ptr_eq(&bell));
        state.ending.push(bell);
    }

    /// Reserves it for a command that starts a process. False: it has had one, or is about to. The bell is rung when a shim comes.
    pub fn reserve(&self, bell: &Arc<Bell>) -> bool {
        let mut state = self.state();
        let is_free = matches!(state.phase, Phase::Idle);
        if is_free {
            state.phase = Phase::Starting;
            state.starter = Some(Arc::clone(bell));
        }
        is_free
    }

    /// The command has started nothing; another one may try.
    pub fn give_back(&self) {
        let mut state = self.state();
        state.starter = None;
        if matches!(state.phase, Phase::Starting) {
            state.phase = Phase::Idle;
        }
    }

    /// The command has started a process: true when there is no shim, and the process is to be guarded by who waits for this bell. A session
    /// that has been left meanwhile gives it back.
    pub fn start(&self, held: Box<Held>, guard: &Arc<Bell>) -> Result<bool, Box<Held>> {
        let mut state = self.state();
        state.starter = None;
        if !matches!(state.phase, Phase::Starting) {
            return Err(held);
        }
        state.phase = Phase::Ready(held);
        if let Some(shim) = &state.shim {
            shim.bell.ring();
        }
        Ok(state.is_to_be_guarded(guard))
    }

    pub fn has_shim(&self) -> bool {
        self.state().shim.is_some()
    }

    /// Whether no process will ever be started in it any more.
    pub fn is_disconnected(&self) -> bool {
        matches!(self.state().phase, Phase::Left | Phase::Disconnected)
    }

    /// Whether a process has been started in it.
    pub fn has_started(&self) -> bool {
        matches!(self.state().phase, Phase::Ready(_) | Phase::Taken | Phase::Over(_))
    }

    /// Whether it had a process, which has ended.
    pub fn has_ended(&self) -> bool {
        matches!(self.state().phase, Phase::Over(_) | Phase::Disconnected)
    }

    /// Whether its process has ended, and no shim is there.
    pub fn is_history(&self) -> bool {
        let state = self.state();
        state.shim.is_none() && matches!(state.phase, Phase::Over(_) | Phase::Disconnected)
    }

    /// Whether nobody has a use for it yet.
    pub fn is_unused(&self) -> bool {
        let state = self.state();
        state.shim.is_none() && matches!(state.phase, Phase::Idle)
    }
}

/// A process that is being started.
pub struct Launching<'a>(&'a Session);

impl Drop for Launching<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.launching = false;
        state.ring_ending();
    }
}

impl State {
    fn ring_ending(&self) {
        self.ending.iter().filter_map(Weak::upgrade).for_each(|bell| bell.ring());
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_session_that_was_left_keeps_nobodys_descriptors() {
        let (socket, other) = UnixStream::pair().expect("a socket pair");
        let stream = Arc::new(Stream::over(socket));
        let bell = || Arc::new(Bell::new().expect("a pipe"));
        let (starter, shim, next) = (bell(), bell(), bell());
        let session = Session::new(String::new(), 3, 0);
        assert!(session.reserve(&starter));
        session.claim(&shim, &stream).expect("nobody has it");
        assert_eq!(session.claim(&next, &stream), Err(Claimed::ByAnother));
        drop(other);
        assert_eq!(session.claim(&next, &stream), Err(Claimed::ByOneThatLeaves));
        assert!(session.is_wanted());
        assert!(session.disconnect(None).is_none());
        let counts = [starter, shim, next].map(|bell| Arc::strong_count(&bell));
        assert_eq!((counts, Arc::strong_count(&stream)), ([1; 3], 1));
        session.end(0);
        assert!(session.is_disconnected() && !session.has_started());
    }
}
