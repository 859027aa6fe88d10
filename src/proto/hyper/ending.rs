//! The end of a pod: its programs end before the machine does.
//!
//! Each gets SIGTERM, one that ignores this SIGKILL at once, and those that are left SIGKILL after `PATIENCE`. Their last output and their
//! exit codes go to the tty channel before the host hears that all is over. Its ctl channel may be closed meanwhile: what it has asked for
//! is done. Without a tty channel nobody sees the ends of programs, and only the time counts.
//! Source: the specification of the Clear Containers proxy, section 12 (`destroypod` of hyperstart).

use std::fs;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crate::proto::bell::Bell;
use crate::proto::hyper::pair::{Pair, Target};
use crate::sys::fd::{self, PollSet};
use crate::sys::signal;

/// How long programs may take to end after SIGTERM: long enough to write files and say farewell, and less than hosts wait for an answer.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// How long their last words may take after SIGKILL: output counts as complete after a fifth of it, and a host that reads nothing shall not
/// keep the machine.
pub const LAST_WORDS: Duration = Duration::from_secs(1);

/// Ends all programs of a pair. `bell` is that of its ctl channel, over which alone programs start: none does until this returns. Ends early
/// when `stop` can be read.
pub fn end_programs(pair: &Pair, bell: &Bell, patience: Duration, stop: BorrowedFd) {
    // An error says that a program has ended by itself, or is out of reach: then it is waited for.
    let _ = pair.signal(&Target::All, signal::SIGTERM);
    let _ = pair.signal(&Target::All, signal::SIGCONT);
    pair.kill_where(ignores_term);
    if !is_over(pair, bell, patience, stop) {
        let _ = pair.signal(&Target::All, signal::SIGKILL);
        is_over(pair, bell, LAST_WORDS, stop);
    }
}

/// Waits until the host has been told the end of every program. `false`: the time was not enough.
fn is_over(pair: &Pair, bell: &Bell, patience: Duration, stop: BorrowedFd) -> bool {
    let deadline = Instant::now() + patience;
    let mut set = PollSet::default();
    loop {
        bell.clear();
        let left = deadline.saturating_duration_since(Instant::now());
        if pair.has_told_all() || left.is_zero() {
            return !left.is_zero();
        }
        set.clear();
        set.watch(stop, fd::READ);
        set.watch(bell.watch(), fd::READ);
        if set.wait(Some(left)).is_err() || set.ready(0).readable {
            return true;
        }
    }
}

/// Whether a process ignores SIGTERM. Without /proc nothing does.
pub fn ignores_term(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> (signal::SIGTERM - 1) & 1 == 1)
}
