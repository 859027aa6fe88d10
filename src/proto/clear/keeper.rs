//! Processes without a shim, each looked after by a thread of its own.
//!
//! The output of a process without a token is read and thrown away. That of a process whose shim was lost waits in its pipes for the shim to
//! come back; when it does not, the process is hung up on.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::engine::running::Running;
use crate::exec::{self, BLIND_POLL, HANG_UP_GRACE};
use crate::proto::bell::Bell;
use crate::proto::clear::PROCESSES_MAX;
use crate::proto::clear::session::{Held, Session, obey};
use crate::sys::fd::{self, PollSet};

/// Bytes of the stack of a thread that waits for a process.
const STACK: usize = 64 << 10;

/// Bytes of one read of what nobody wants.
const CHUNK: usize = 16 << 10;

/// How many processes there are, and when they shall end.
#[derive(Debug)]
pub struct Keepers {
    /// Rung once, and never cleared: the agent ends.
    over: io::Result<Bell>,
    processes: Mutex<usize>,
    threads: Mutex<usize>,
    fewer: Condvar,
}

/// A place for one process.
#[derive(Debug)]
pub struct Permit(Arc<Keepers>);

impl Drop for Permit {
    fn drop(&mut self) {
        *self.0.processes.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
    }
}

/// A thread that is counted.
struct Thread(Arc<Keepers>);

impl Drop for Thread {
    fn drop(&mut self) {
        *self.0.threads.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.fewer.notify_all();
    }
}

impl Keepers {
    pub fn new() -> Keepers {
        Keepers { over: Bell::new(), processes: Mutex::new(0), threads: Mutex::new(0), fewer: Condvar::new() }
    }

    /// A place for one more process, if there is one.
    pub fn permit(self: &Arc<Keepers>) -> Option<Permit> {
        let mut processes = self.processes.lock().unwrap_or_else(PoisonError::into_inner);
        (*processes < PROCESSES_MAX).then(|| {
            *processes += 1;
            Permit(Arc::clone(self))
        })
    }

    /// Ends all processes that have no shim, and waits until they have ended, but not for long.
    pub fn finish(&self) {
        if let Ok(over) = &self.over {
            over.ring();
        }
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let patience = HANG_UP_GRACE + Duration::from_secs(1);
        let _ = self.fewer.wait_timeout_while(threads, patience, |threads| *threads > 0);
    }

    /// Looks after a process in a thread. Where none is to be had, the process ends.
    fn spawn(self: &Arc<Keepers>, work: impl FnOnce() + Send + 'static) {
        *self.threads.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        let thread = Thread(Arc::clone(self));
        let run = move || {
            work();
            drop(thread);
        };
        if let Err(error) = thread::Builder::new().stack_size(STACK).spawn(run) {
            log::warn!("start a thread for a process without a shim: {error}");
        }
    }

    /// Reads what a process without a shim says until it has ended. Orders for it come through `session`.
    pub fn discard(self: &Arc<Keepers>, held: Box<Held>, session: Arc<Session>, bell: Arc<Bell>) {
        let keepers = Arc::clone(self);
        self.spawn(move || {
            let Held { mut running, permit, .. } = *held;
            running.flows.iter_mut().for_each(|flow| flow.wr = None);
            if let Err(error) = keepers.drain(&mut running, &session, &bell) {
                log::warn!("wait for a process without a shim: {error}");
            }
            exec_ended(running);
            session.end(0);
            drop(permit);
        });
    }

    fn drain(&self, running: &mut Running, session: &Session, bell: &Bell) -> io::Result<()> {
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
            let orders = set.watch(bell.watch(), fd::READ);
            let end = running.session.end_watch().filter(|_| running.status.is_none());
            let blind = end.is_none() && running.status.is_none();
            end.map(|end| set.watch(end, fd::READ));
            let outputs = running.flows.iter().map(|flow| flow.rd.as_ref().map(|rd| set.watch(rd.as_fd(), fd::READ)));
            let outputs: Vec<_> = outputs.collect();
            let quiet = running.deadline().map(|deadline| deadline.saturating_duration_since(now));
            set.wait(quiet.into_iter().chain(blind.then_some(BLIND_POLL)).min())?;
            if over.is_some_and(|over| set.ready(over).readable) {
                return Ok(());
            }
            if set.ready(orders).readable {
                bell.clear();
                session.take_orders().into_iter().for_each(|order| obey(running, order));
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

    /// Waits for the shim of a process to come back.
    pub fn guard(self: &Arc<Keepers>, session: Arc<Session>, bell: Arc<Bell>, patience: Duration) {
        let keepers = Arc::clone(self);
        let guarded = Arc::clone(&session);
        self.spawn(move || {
            let mut set = PollSet::default();
            while let Some(left) = guarded.abandoned(patience) {
                set.clear();
                let shim = set.watch(bell.watch(), fd::READ);
                let over = keepers.over.as_ref().ok().map(|over| set.watch(over.watch(), fd::READ));
                let waited = set.wait(Some(left));
                if set.ready(shim).readable {
                    bell.clear();
                } else if waited.is_err() || left.is_zero() || over.is_some_and(|over| set.ready(over).readable) {
                    if let Some(held) = guarded.give_up() {
                        log::warn!("a process whose shim did not come back is ended");
                        exec_ended(held.running);
                    }
                    return;
                }
            }
        });
    }
}

/// Ends a process, if it has not ended yet, and buries it.
fn exec_ended(running: Running) {
    let Running { session, flows, status, .. } = running;
    drop(flows);
    if status.is_none() {
        exec::hang_up(vec![session]);
    }
}
