//! One token: its shim, its process, and who waits for which of them.
//!
//! ```text
//! IDLE --command--> STARTING --started--> READY --shim--> TAKEN --ended--> OVER
//!   ^------failed------'                    ^----shim lost----'
//! ```
//! A process belongs to the connection of its shim, and while there is none to its session. DISCONNECTED comes from anywhere.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::engine::running::Running;
use crate::proto::bell::Bell;
use crate::proto::clear::keeper::Permit;
use crate::proto::clear::outgoing::Outgoing;
use crate::stream::Stream;
use crate::sys::fd;
use crate::sys::process::Status;
use crate::sys::tty::Window;

/// Orders for a process that nobody has looked at. Its shim's connection takes them at once, unless it is being held up.
const ORDERS_MAX: usize = 64;

/// A process, and what is to be told of it.
#[derive(Debug)]
pub struct Held {
    pub running: Running,
    /// Frames that its shim has not been given.
    pub outgoing: Outgoing,
    pub terminal: bool,
    pub permit: Permit,
}

/// What to do to a process, asked for by another connection than its shim's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Signal(i32),
    Resize(Window),
}

#[derive(Debug)]
enum Phase {
    Idle,
    Starting,
    Ready(Box<Held>),
    Taken,
    /// The code, for a shim that comes back.
    Over(u8),
    Disconnected,
}

/// Who is a session's shim, or keeps it instead of one.
#[derive(Debug)]
struct Shim {
    bell: Arc<Bell>,
    stream: Option<Arc<Stream>>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    shim: Option<Shim>,
    /// Told of a new shim: the connection whose command waits for it.
    starter: Option<Arc<Bell>>,
    /// Told of the shim's end: the connection that wants to be the next one.
    next: Option<Arc<Bell>>,
    /// Told of a new shim: who looks after the process that has none.
    keeper: Option<Arc<Bell>>,
    /// When the last shim was lost.
    lost: Instant,
    rest: Option<Rest>,
    orders: Vec<Order>,
}

/// What a shim finds when it takes its session.
#[derive(Debug)]
pub enum Found {
    /// No process yet.
    Nothing,
    Process(Box<Held>),
    Ended(u8, Option<Rest>),
}

/// Output of a process that has ended, for a shim that was lost before it had all of it.
#[derive(Debug)]
pub struct Rest {
    pub outgoing: Outgoing,
    pub permit: Permit,
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

impl State {
    /// Whether something waits for a shim, and there is none.
    fn is_abandoned(&self) -> bool {
        self.shim.is_none() && (matches!(self.phase, Phase::Ready(_)) || self.rest.is_some())
    }
}

impl Session {
    pub fn new(token: String, io_base: u64, vm: u64) -> Session {
        let state = State {
            phase: Phase::Idle,
            shim: None,
            starter: None,
            next: None,
            keeper: None,
            lost: Instant::now(),
            rest: None,
            orders: Vec::new(),
        };
        Session { token, io_base, vm, state: Mutex::new(state) }
    }

    /// The session of a process without a token, whose keeper's bell this is.
    pub fn without_shim(vm: u64, bell: Arc<Bell>) -> Session {
        let session = Session::new(String::new(), 1, vm);
        {
            let mut state = session.state();
            state.phase = Phase::Taken;
            state.shim = Some(Shim { bell, stream: None });
        }
        session
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is locked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a connection its shim. When its last shim leaves, the bell is rung as soon as it has.
    pub fn claim(&self, bell: &Arc<Bell>, stream: &Arc<Stream>) -> Result<(), Claimed> {
        let mut state = self.state();
        if matches!(state.phase, Phase::Disconnected) {
            return Err(Claimed::ByAnother);
        }
        if let Some(shim) = &state.shim {
            let leaves = |stream: &Arc<Stream>| {
                fd::wait_for(stream.input(), fd::PEER_ENDED, Some(Duration::ZERO)).is_ok_and(|ready| ready.hung_up)
            };
            if !shim.stream.as_ref().is_some_and(leaves) {
                return Err(Claimed::ByAnother);
            }
            state.next = Some(Arc::clone(bell));
            return Err(Claimed::ByOneThatLeaves);
        }
        state.shim = Some(Shim { bell: Arc::clone(bell), stream: Some(Arc::clone(stream)) });
        state.starter.iter().chain(&state.keeper).for_each(|bell| bell.ring());
        Ok(())
    }

    /// Gives its shim the process, if there is one that it does not have.
    pub fn take(&self) -> Found {
        let mut state = self.state();
        if let Phase::Over(code) = state.phase {
            return Found::Ended(code, state.rest.take());
        }
        if !matches!(state.phase, Phase::Ready(_)) {
            return Found::Nothing;
        }
        match mem::replace(&mut state.phase, Phase::Taken) {
            Phase::Ready(held) => Found::Process(held),
            _ => Found::Nothing,
        }
    }

    /// Its shim's connection has ended. True when something is left that nobody looks after; then its keeper is to come.
    pub fn release(&self, held: Option<Box<Held>>, rest: Option<Rest>, keeper: &Arc<Bell>) -> bool {
        let mut state = self.state();
        state.shim = None;
        state.lost = Instant::now();
        state.rest = rest;
        if let Some(held) = held {
            state.phase = Phase::Ready(held);
        }
        state.next.take().iter().chain(&state.keeper).for_each(|bell| bell.ring());
        state.is_abandoned() && state.keeper.replace(Arc::clone(keeper)).is_none()
    }

    /// Its shim takes its leave, and nobody shall claim it any more. The process, if one is left, is now its keeper's, who has this bell.
    pub fn disconnect(&self, held: Option<Box<Held>>, keeper: &Arc<Bell>) -> Option<Box<Held>> {
        let mut state = self.state();
        state.shim = None;
        state.starter.iter().chain(&state.next).for_each(|bell| bell.ring());
        if matches!(state.phase, Phase::Over(_)) {
            return None;
        }
        let held = match mem::replace(&mut state.phase, Phase::Disconnected) {
            Phase::Ready(held) => Some(held),
            _ => held,
        };
        if held.is_some() {
            state.phase = Phase::Taken;
            state.shim = Some(Shim { bell: Arc::clone(keeper), stream: None });
        }
        held
    }

    /// Its process has ended, and its end is on its way to the shim.
    pub fn end(&self, code: u8) {
        let mut state = self.state();
        if !matches!(state.phase, Phase::Disconnected) {
            state.phase = Phase::Over(code);
        }
        state.orders.clear();
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

    /// The command has started a process: true when there is no shim, and its keeper is to come. A session that has been left meanwhile gives
    /// it back.
    pub fn start(&self, held: Box<Held>, keeper: &Arc<Bell>) -> Result<bool, Box<Held>> {
        let mut state = self.state();
        state.starter = None;
        if !matches!(state.phase, Phase::Starting) {
            return Err(held);
        }
        state.phase = Phase::Ready(held);
        if let Some(shim) = &state.shim {
            shim.bell.ring();
            return Ok(false);
        }
        Ok(state.keeper.replace(Arc::clone(keeper)).is_none())
    }

    pub fn has_shim(&self) -> bool {
        self.state().shim.is_some()
    }

    /// Whether no process will ever be started in it any more.
    pub fn is_disconnected(&self) -> bool {
        matches!(self.state().phase, Phase::Disconnected)
    }

    /// Whether a process has been started in it.
    pub fn has_started(&self) -> bool {
        matches!(self.state().phase, Phase::Ready(_) | Phase::Taken | Phase::Over(_))
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

    /// Whether its process has ended.
    pub fn is_over(&self) -> bool {
        matches!(self.state().phase, Phase::Over(_))
    }

    /// Does something to its process, or lets it be done by who has it. False: there is none.
    pub fn order(&self, order: Order) -> bool {
        let mut state = self.state();
        if let Phase::Ready(held) = &state.phase {
            obey(&held.running, order);
            return true;
        }
        if !matches!(state.phase, Phase::Taken) || state.orders.len() == ORDERS_MAX {
            return false;
        }
        state.orders.push(order);
        state.shim.iter().for_each(|shim| shim.bell.ring());
        true
    }

    /// The orders that have come for who has the process.
    pub fn take_orders(&self) -> Vec<Order> {
        mem::take(&mut self.state().orders)
    }

    /// For who looks after a process without a shim: how long still, or `None` when there is nothing to look after any more.
    pub fn abandoned(&self, patience: Duration) -> Option<Duration> {
        let mut state = self.state();
        if !state.is_abandoned() {
            state.keeper = None;
            return None;
        }
        Some((state.lost + patience).saturating_duration_since(Instant::now()))
    }

    /// Takes the process whose shim has not come back.
    pub fn give_up(&self) -> Option<Box<Held>> {
        let mut state = self.state();
        state.keeper = None;
        if !state.is_abandoned() {
            return None;
        }
        state.rest = None;
        match mem::replace(&mut state.phase, Phase::Disconnected) {
            Phase::Ready(held) => Some(held),
            _ => None,
        }
    }
}

/// Does to a process what another connection has asked for.
pub fn obey(running: &Running, order: Order) {
    let done = match order {
        Order::Signal(signal) => running.session.signal(signal),
        Order::Resize(window) => running.session.resize(window),
    };
    if let Err(error) = done {
        log::debug!("{order:?}: {error}");
    }
}

/// The exit code on the wire: 128 and the signal for a death by one.
pub fn code(status: Status) -> u8 {
    (status.code() & 0xff) as u8
}
