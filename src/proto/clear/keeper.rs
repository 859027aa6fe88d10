//! Processes without a shim, each looked after by a thread of its own.
//!
//! The output of a process without a token is read and thrown away. That of a process whose shim was lost waits in its pipes for the shim to
//! come back; when it does not, the process is hung up on. When the process ends before, it gives up its place, and what it has said waits
//! beside it, for as long as others need no room for theirs.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crate::engine::running::Running;
use crate::exec::BLIND_POLL;
use crate::proto::bell::Bell;
use crate::proto::clear::PROCESSES_MAX;
use crate::proto::clear::held::Held;
use crate::proto::clear::session::Session;
use crate::proto::clear::session::guard::Guarded;
use crate::sys::fd::{self, PollSet};

/// Bytes of the stack of a thread that waits for a process.
const STACK: usize = 64 << 10;

/// Bytes of one read of what nobody wants.
const CHUNK: usize = 16 << 10;

/// Bytes of output of all processes that have ended without their shims; beyond it the oldest is thrown away. Four times what one can have.
pub const RESTS_MAX: usize = 8 << 20;

/// How many processes there are, and when they shall end.
#[derive(Debug)]
pub struct Keepers {
    /// Rung once, and never cleared: the agent ends.
    over: io::Result<Bell>,
    processes: Mutex<usize>,
    threads: Mutex<usize>,
    /// How many want the machine to end, so that no process may start.
    closed: AtomicUsize,
    fewer: Condvar,
    /// Sessions with output for a shim to come back, oldest first. Some have none any more.
    rests: Mutex<VecDeque<Weak<Session>>>,
}

/// A place for one process.
#[derive(Debug)]
pub struct Permit(Arc<Keepers>);

impl Drop for Permit {
    fn drop(&mut self) {
        *lock(&self.0.processes) -= 1;
    }
}

/// Nothing may start.
pub struct Closed(Arc<Keepers>);

impl Drop for Closed {
    fn drop(&mut self) {
        self.0.closed.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A thread that is counted.
struct Thread(Arc<Keepers>);

impl Drop for Thread {
    fn drop(&mut self) {
        *lock(&self.0.threads) -= 1;
        self.0.fewer.notify_all();
    }
}

/// A process whose output nobody wants. It ends when this is dropped, if it has not ended yet: also where there is no thread for it.
struct Unheard {
    held: Option<Box<Held>>,
    session: Arc<Session>,
}

impl Drop for Unheard {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            held.end();
        }
        self.session.end(0);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while one of these is locked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Keepers {
    pub fn new() -> Keepers {
        Keepers {
            over: Bell::new(),
            processes: Mutex::new(0),
            threads: Mutex::new(0),
            closed: AtomicUsize::new(0),
            fewer: Condvar::new(),
            rests: Mutex::default(),
        }
    }

    /// A place for one more process.
    ///
    /// # Errors
    /// There are `PROCESSES_MAX`, or the machine is about to end.
    pub fn permit(self: &Arc<Keepers>) -> Result<Permit, String> {
        let mut processes = lock(&self.processes);
        match () {
            () if self.closed.load(Ordering::SeqCst) > 0 => Err("the machine is about to end".to_owned()),
            () if *processes >= PROCESSES_MAX => Err(format!("more processes than the limit of {PROCESSES_MAX}")),
            () => {
                *processes += 1;
                Ok(Permit(Arc::clone(self)))
            }
        }
    }

    /// Lets no process start until this is dropped.
    pub fn close(self: &Arc<Keepers>) -> Closed {
        self.closed.fetch_add(1, Ordering::SeqCst);
        Closed(Arc::clone(self))
    }

    /// Ends all processes that have no shim, and waits until they have ended, but not for longer.
    pub fn finish(&self, deadline: Instant) {
        if let Ok(over) = &self.over {
            over.ring();
        }
        let patience = deadline.saturating_duration_since(Instant::now());
        let _ = self.fewer.wait_timeout_while(lock(&self.threads), patience, |threads| *threads > 0);
    }

    /// Does work in a thread. False where none is to be had; then the work was dropped.
    fn spawn(self: &Arc<Keepers>, work: impl FnOnce() + Send + 'static) -> bool {
        *lock(&self.threads) += 1;
        let thread = Thread(Arc::clone(self));
        let run = move || {
            work();
            drop(thread);
        };
        let spawned = thread::Builder::new().stack_size(STACK).spawn(run);
        if let Err(error) = &spawned {
            log::warn!("start a thread for a process without a shim, which ends: {error}");
        }
        spawned.is_ok()
    }

    /// Reads what a process without a shim says until it has ended.
    pub fn discard(self: &Arc<Keepers>, held: Box<Held>, session: Arc<Session>) {
        let keepers = Arc::clone(self);
        let mut unheard = Unheard { held: Some(held), session };
        self.spawn(move || {
            let running = unheard.held.as_mut().map(|held| &mut held.running);
            if let Some(Err(error)) = running.map(|running| keepers.drain(running)) {
                log::warn!("wait for a process without a shim: {error}");
            }
        });
    }

    fn drain(&self, running: &mut Running) -> io::Result<()> {
        // Behind what its shim had sent before.
        for flow in &mut running.flows {
            flow.end();
        }
        let mut set = PollSet::default();
        let mut waste = vec![0; CHUNK];
        loop {
            let now = Instant::now();
            running.look(now);
            if running.is_complete(now) {
                return Ok(());
            }
            set.clear();
            let over = self.over.as_ref().ok().map(|over| set.watch(over.watch(), fd::READ));
            let end = running.session.end_watch().filter(|_| running.status.is_none());
            let blind = end.is_none() && running.status.is_none();
            end.map(|end| set.watch(end, fd::READ));
            let outputs = running.flows.iter().map(|flow| flow.rd.as_ref().map(|rd| set.watch(rd.as_fd(), fd::READ)));
            let outputs: Vec<_> = outputs.collect();
            let inputs = running
                .flows
                .iter()
                .map(|flow| flow.wr.as_ref().filter(|_| flow.queued() > 0).map(|wr| set.watch(wr.as_fd(), fd::WRITE)));
            let inputs: Vec<_> = inputs.collect();
            let quiet = running.deadline().map(|deadline| deadline.saturating_duration_since(now));
            set.wait(quiet.into_iter().chain(blind.then_some(BLIND_POLL)).min())?;
            if over.is_some_and(|over| set.ready(over).readable) {
                return Ok(());
            }
            for (flow, place) in running.flows.iter_mut().zip(inputs) {
                match place.map(|place| set.ready(place)) {
                    Some(ready) if ready.hung_up => drop(flow.closed_by_program()),
                    Some(ready) if ready.writable => drop(flow.flush()),
                    _ => {}
                }
            }
            let mut moved = false;
            for (flow, place) in running.flows.iter_mut().zip(outputs) {
                let Some(rd) = flow.rd.as_ref().filter(|_| place.is_some_and(|place| set.ready(place).readable)) else {
                    continue;
                };
                match fd::read(rd.as_fd(), &mut waste) {
                    Ok(1..) => moved = true,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Ok(0) | Err(_) => flow.rd = None,
                }
            }
            if moved {
                running.quiet_since = running.quiet_since.map(|_| Instant::now());
            }
        }
    }

    /// Waits for the shim of a process to come back, or for its end.
    pub fn guard(self: &Arc<Keepers>, session: Arc<Session>, bell: Arc<Bell>, patience: Duration) {
        let (keepers, guarded) = (Arc::clone(self), Arc::clone(&session));
        if !self.spawn(move || keepers.watch(&guarded, &bell, patience)) {
            session.give_up().into_iter().for_each(|held| held.end());
        }
    }

    fn watch(&self, session: &Arc<Session>, bell: &Bell, patience: Duration) {
        let mut set = PollSet::default();
        loop {
            bell.clear();
            let (wait, watched) = match session.guard(patience) {
                Guarded::Not => return,
                Guarded::Rests(held) => {
                    held.end();
                    return self.keep(session);
                }
                Guarded::TooLong(held) => {
                    log::warn!("a process whose shim did not come back is ended");
                    return held.end();
                }
                Guarded::For(wait, watched) => (wait, watched),
            };
            set.clear();
            set.watch(bell.watch(), fd::READ);
            if let Some(end) = &watched.end {
                set.watch(end.as_fd(), fd::READ);
            }
            for input in &watched.inputs {
                set.watch(input.as_fd(), fd::WRITE);
            }
            let over = self.over.as_ref().ok().map(|over| set.watch(over.watch(), fd::READ));
            if set.wait(Some(wait)).is_err() || over.is_some_and(|over| set.ready(over).readable) {
                return session.give_up().into_iter().for_each(|held| held.end());
            }
        }
    }

    /// Lets output of an ended process wait for its shim, if it has any, at the cost of the oldest that waits.
    pub fn keep(&self, session: &Arc<Session>) {
        let mut rests = lock(&self.rests);
        rests.retain(|other| {
            other.upgrade().is_some_and(|other| other.rest_cost() > 0 && !Arc::ptr_eq(&other, session))
        });
        rests.push_back(Arc::downgrade(session));
        let mut cost: usize = rests.iter().filter_map(Weak::upgrade).map(|session| session.rest_cost()).sum();
        while cost > RESTS_MAX
            && let Some(oldest) = rests.pop_front()
        {
            if let Some(oldest) = oldest.upgrade() {
                cost = cost.saturating_sub(oldest.rest_cost());
                log::warn!(
                    "output of a process whose shim did not come back is thrown away: more than {RESTS_MAX} bytes"
                );
                oldest.forget_rest();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::proto::clear::frame::{self, Kind, STDOUT};
    use crate::proto::clear::outgoing::Outgoing;

    /// A session whose process has ended and left so much output.
    fn ended(bytes: usize) -> Arc<Session> {
        let session = Arc::new(Session::new(String::new(), 3, 0));
        session.end(0);
        let mut rest = Outgoing::default();
        rest.push(frame::header(Kind::Stream, STDOUT, bytes), vec![0; bytes]);
        assert!(!session.release(None, rest, &Arc::new(Bell::new().expect("a pipe"))));
        session
    }

    #[test]
    fn output_for_shims_that_do_not_come_back_has_a_limit_and_the_oldest_goes_first() {
        let keepers = Keepers::new();
        let small = ended(1);
        let overhead = small.rest_cost() - 1;
        let sessions = [1 << 20, 3 << 20, 4 << 20].map(|cost| ended(cost - overhead));
        sessions.iter().for_each(|session| keepers.keep(session));
        let costs = || sessions.iter().map(|session| session.rest_cost()).collect::<Vec<_>>();
        assert_eq!(costs(), [1 << 20, 3 << 20, 4 << 20]);
        keepers.keep(&small);
        assert_eq!(costs(), [0, 3 << 20, 4 << 20]);
        assert!(small.rest_cost() > 0);
    }
}
