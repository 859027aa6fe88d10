//! The end of a program together with everything that it has started, without any program's help.
//!
//! What belongs to it: its process group, its session, its descendants, and what was in one of their groups when the end began; so that a
//! process whose parent has died meanwhile does not escape. Without /proc only the group is known.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crate::exec::processes::{self, Process};
use crate::exec::{BLIND_POLL, Session};
use crate::sys::fd::{self, PollSet};
use crate::sys::{process, signal};

/// From SIGTERM to SIGKILL, for what does not end by itself. Upstream's number.
pub const TERMINATION_GRACE: Duration = Duration::from_secs(5);

/// How often to look whether anything is left. No descriptor tells of grandchildren.
pub const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How often to look for more while all are being stopped. What starts others faster than that is killed later.
const STOP_ROUNDS: usize = 16;

/// How often to look for more while all are being killed: what was started between the look and the signal.
const KILL_ROUNDS: usize = 8;

/// A tree that has been told to end.
#[derive(Debug)]
pub struct Tree {
    leader: i32,
    groups: Vec<i32>,
}

impl Tree {
    /// Sends SIGTERM (and SIGCONT) to all, children before their parents. Nobody goes on meanwhile, because a parent that saw its child end
    /// would do what comes next. The session must live as long as this, for its number to stay taken.
    pub fn terminate(session: &Session) -> Tree {
        let leader = session.pid();
        let (pids, groups) = stop(leader);
        if pids.is_empty() {
            let _ = session.signal(signal::SIGTERM);
            let _ = session.signal(signal::SIGCONT);
        }
        for number in [signal::SIGTERM, signal::SIGCONT] {
            for pid in &pids {
                let _ = signal::send(*pid, number);
            }
        }
        Tree { leader, groups }
    }

    /// Whether anybody is left. Without /proc: no, because nobody can tell.
    pub fn lives(&self) -> bool {
        !members(self.leader, &self.groups).is_empty()
    }

    /// Sends SIGKILL to what is left.
    pub fn kill(&self) {
        for _ in 0..KILL_ROUNDS {
            let _ = process::signal_group(self.leader, signal::SIGKILL);
            let left = members(self.leader, &self.groups);
            if left.is_empty() {
                return;
            }
            for process in left {
                let _ = signal::send(process.pid, signal::SIGKILL);
            }
        }
    }

    /// Waits until nothing is left, and kills what is left after `grace` or when `stop` is readable.
    pub fn finish(&self, session: &Session, grace: Duration, stop: Option<BorrowedFd>) {
        let deadline = Instant::now() + grace;
        while session.ended().is_none() || self.lives() {
            let left = deadline.saturating_duration_since(Instant::now());
            let look = |stop| fd::wait_for(stop, fd::READ, Some(Duration::ZERO)).is_ok_and(|ready| ready.readable);
            let stopped = stop.is_some_and(look);
            if left.is_zero() || stopped {
                self.kill();
                break;
            }
            let mut set = PollSet::default();
            if let Some(stop) = stop {
                set.watch(stop, fd::READ);
            }
            let running = session.ended().is_none();
            if let Some(end) = session.end_watch().filter(|_| running) {
                set.watch(end, fd::READ);
            }
            let blind = running && session.end_watch().is_none();
            let _ = set.wait(Some(left.min(if blind { BLIND_POLL } else { LOOK_EVERY })));
        }
    }
}

/// Stops all, parents before their children, and looks again as long as there are new ones. Their numbers, deepest first, and their groups.
fn stop(leader: i32) -> (Vec<i32>, Vec<i32>) {
    let (mut stopped, mut groups) = (Vec::new(), vec![leader]);
    let mut pids = Vec::new();
    for _ in 0..STOP_ROUNDS {
        let found = members(leader, &groups);
        groups.extend(found.iter().map(|process| process.group));
        pids = found.iter().map(|process| process.pid).collect();
        let new: Vec<i32> = pids.iter().rev().copied().filter(|pid| !stopped.contains(pid)).collect();
        if new.is_empty() {
            break;
        }
        for pid in &new {
            let _ = signal::send(*pid, signal::SIGSTOP);
        }
        stopped.extend(new);
    }
    // What has lost its parent meanwhile must not stay stopped.
    let lost: Vec<i32> = stopped.into_iter().filter(|pid| !pids.contains(pid)).collect();
    pids.extend(lost);
    (pids, groups)
}

/// The living ones, deepest first.
fn members(leader: i32, groups: &[i32]) -> Vec<Process> {
    let Ok(all) = processes::all() else { return Vec::new() };
    let all: Vec<Process> = all.collect();
    let own = all.iter().find(|process| process.pid.unsigned_abs() == std::process::id());
    let own_group = own.map_or(0, |own| own.group);
    // A program may have joined our own group, where we are.
    let is_named = |group: i32| group != own_group && groups.contains(&group);
    let ours = |process: &Process| process.pid == leader || process.session == leader || is_named(process.group);
    // What was found so far, each with its depth; the list grows while it is walked.
    let mut found: Vec<(usize, &Process)> =
        all.iter().filter(|process| ours(process)).map(|process| (0, process)).collect();
    let mut at = 0;
    while let Some(&(depth, parent)) = found.get(at) {
        for child in all.iter().filter(|child| child.parent == parent.pid) {
            match found.iter().position(|(_, known)| known.pid == child.pid) {
                Some(place) if place > at => found[place].0 = found[place].0.max(depth + 1),
                Some(_) => {}
                None => found.push((depth + 1, child)),
            }
        }
        at += 1;
    }
    found.sort_by_key(|(depth, _)| std::cmp::Reverse(*depth));
    found.into_iter().map(|(_, process)| process).filter(|process| !process.is_dead()).cloned().collect()
}
