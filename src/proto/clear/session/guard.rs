//! The process of a session without a shim: who looks after it, and for how long.

use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::proto::bell::Bell;
use crate::proto::clear::held::{Held, Watched};
use crate::proto::clear::outgoing::Outgoing;
use crate::proto::clear::session::{Phase, Session, State};

/// What there is to do for who guards a process.
#[derive(Debug)]
pub enum Guarded {
    /// Nothing any more: a shim has come, or the process has ended and has nothing left to say.
    Not,
    /// The process has ended, and its output waits for the shim without it.
    Rests(Box<Held>),
    /// The shim has had its time, and the process is to be ended.
    TooLong(Box<Held>),
    /// To wait so long at the most, and for what happens to the process.
    For(Duration, Watched),
}

impl Session {
    /// Looks after the process without a shim: what it was sent goes on to it, and what an ended one has said is read to where a shim finds it.
    pub fn guard(&self, patience: Duration) -> Guarded {
        let mut state = self.state();
        let state = &mut *state;
        let now = Instant::now();
        let left = (state.lost + patience).saturating_duration_since(now);
        let (code, watched) = match &mut state.phase {
            Phase::Ready(held) if state.shim.is_none() => {
                held.feed();
                let code = held.drain(now);
                (if left.is_zero() { held.exit_code() } else { code }, held.watched(now))
            }
            _ => {
                state.guard = None;
                return Guarded::Not;
            }
        };
        if code.is_none() && !left.is_zero() {
            return Guarded::For(watched.time.unwrap_or(left).min(left), watched);
        }
        state.guard = None;
        state.ring_ending();
        match (mem::replace(&mut state.phase, code.map_or(Phase::Disconnected, Phase::Over)), code) {
            (Phase::Ready(mut held), Some(_)) => {
                state.rest = mem::take(&mut held.outgoing);
                Guarded::Rests(held)
            }
            (Phase::Ready(held), None) => Guarded::TooLong(held),
            _ => Guarded::Not,
        }
    }

    /// Takes the process that cannot be guarded any longer.
    pub fn give_up(&self) -> Option<Box<Held>> {
        let mut state = self.state();
        state.guard = None;
        state.ring_ending();
        if state.shim.is_some() || !matches!(state.phase, Phase::Ready(_)) {
            return None;
        }
        match mem::replace(&mut state.phase, Phase::Disconnected) {
            Phase::Ready(held) => Some(held),
            _ => None,
        }
    }

    /// What the output costs in bytes that waits for a shim to come back.
    pub fn rest_cost(&self) -> usize {
        self.state().rest.cost()
    }

    /// Throws that output away.
    pub fn forget_rest(&self) {
        self.state().rest = Outgoing::default();
    }
}

impl State {
    /// Whether a process has nobody who looks after it, who has this bell from now on.
    pub(super) fn is_to_be_guarded(&mut self, bell: &Arc<Bell>) -> bool {
        if let Some(guard) = &self.guard {
            // It has not seen yet that a shim had come, who has gone again: it goes on, and has longer to wait.
            guard.ring();
            return false;
        }
        let is_alone = self.shim.is_none() && matches!(self.phase, Phase::Ready(_));
        self.guard = is_alone.then(|| Arc::clone(bell));
        is_alone
    }
}
