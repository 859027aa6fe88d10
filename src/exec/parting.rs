//! Programs that are hung up on while everything else goes on. Only the agent's end waits for them.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::exec::{HANG_UP_GRACE, Session, hang_up};

/// Bytes of stack of a thread that only waits for programs to end.
const STACK: usize = 64 << 10;

/// How long the agent's own end waits for programs beyond the grace. They are gone by then but on a machine that stands still, where they would
/// outlive the agent. (As process 1 ours ends what is left after 5 s.)
const END_PATIENCE: Duration = Duration::from_secs(10);

/// Threads that have not seen the end of their programs.
static PARTING: Mutex<usize> = Mutex::new(0);
static FEWER: Condvar = Condvar::new();

/// One of these threads.
struct Parting;

impl Drop for Parting {
    fn drop(&mut self) {
        *parting() -= 1;
        FEWER.notify_all();
    }
}

fn parting() -> MutexGuard<'static, usize> {
    // Nothing panics while it is locked.
    PARTING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends programs as [`hang_up`] does, in a thread.
pub fn hang_up_meanwhile(sessions: Vec<Session>) {
    if sessions.is_empty() {
        return;
    }
    *parting() += 1;
    let one = Parting;
    let run = move || {
        hang_up(sessions);
        drop(one);
    };
    // Without a thread to be had, the sessions are dropped with the closure: SIGKILL at once.
    let _ = thread::Builder::new().stack_size(STACK).spawn(run);
}

/// Until when an agent that ends now waits for its programs, in all that it waits for.
pub fn end_deadline() -> Instant {
    Instant::now() + HANG_UP_GRACE + END_PATIENCE
}

/// Waits until all of them have ended, but not for longer.
pub fn wait(deadline: Instant) {
    let patience = deadline.saturating_duration_since(Instant::now());
    let _ = FEWER.wait_timeout_while(parting(), patience, |count| *count > 0);
}
