//! The end of a pod: its programs end before the machine does, and their shims hear of it.
//!
//! As on hyperstart's channels: each gets SIGTERM, one that ignores this SIGKILL at once, and those that are left SIGKILL after `PATIENCE`.
//! A session counts as over when its shim, if it has one, has been given the last output and the exit code.

use std::sync::Arc;
use std::time::Instant;

use crate::proto::bell::Bell;
use crate::proto::clear::connection::{self, Connection};
use crate::proto::clear::session::Session;
use crate::proto::hyper::ending::{LAST_WORDS, PATIENCE, ignores_term};
use crate::sys::fd::{self, PollSet};
use crate::sys::signal::{SIGCONT, SIGKILL, SIGTERM};

/// Ends the processes of all virtual machines, which are one. The connection that has asked for it goes on meanwhile. The caller has seen to it
/// that none starts.
pub fn end_programs(connection: &mut Connection) {
    let deadline = Instant::now() + PATIENCE;
    let mut asked: Vec<Arc<Session>> = Vec::new();
    // Once more as long as there are others: one may have been about to start.
    loop {
        let sessions: Vec<_> = connection.registry().all().filter(|session| !session.is_told()).collect();
        if sessions.is_empty() {
            return;
        }
        // What can be waited for without a descriptor is nothing but the time.
        let bell = connection.bell().inspect_err(|why| log::warn!("destroypod: {why}")).ok();
        let mut launching = Vec::new();
        for session in &sessions {
            bell.iter().for_each(|bell| session.tell_end_to(bell));
            if session.is_launching() {
                launching.push(session);
                continue;
            }
            // Nobody is asked twice: some take the second time for a sign of impatience.
            if asked.iter().any(|other| Arc::ptr_eq(other, session)) {
                continue;
            }
            // An error says that it has ended by itself, or is out of reach: then it is waited for.
            let _ = session.signal_group(SIGTERM);
            let _ = session.signal_group(SIGCONT);
            session.kill_where(ignores_term);
            asked.push(Arc::clone(session));
        }
        let are_told = || sessions.iter().all(|session| session.is_told());
        // Those that can be reached now are asked before the others are waited for.
        let is_next = || launching.iter().any(|session| !session.is_launching()) || are_told();
        match wait(connection, bell.as_deref(), is_next, deadline) {
            Waited::Over => {}
            Waited::AgentEnds => return,
            Waited::TooLong => {
                sessions.iter().for_each(|session| drop(session.signal_group(SIGKILL)));
                wait(connection, bell.as_deref(), are_told, Instant::now() + LAST_WORDS);
                return;
            }
        }
    }
}

/// How it came out.
enum Waited {
    Over,
    TooLong,
    AgentEnds,
}

/// Waits until this is so.
fn wait(connection: &mut Connection, bell: Option<&Bell>, is_over: impl Fn() -> bool, deadline: Instant) -> Waited {
    while !is_over() {
        match connection.wait(deadline) {
            connection::Waited::Rung => {}
            connection::Waited::TimeOver => return Waited::TooLong,
            // What it has asked for is done all the same, and its own process left to another connection.
            connection::Waited::Gone => {
                connection.lose_shim();
                return wait_without(connection, bell, is_over, deadline);
            }
        }
    }
    Waited::Over
}

/// The same for a client that has gone.
fn wait_without(connection: &Connection, bell: Option<&Bell>, is_over: impl Fn() -> bool, deadline: Instant) -> Waited {
    let mut set = PollSet::default();
    loop {
        bell.iter().for_each(|bell| bell.clear());
        let left = deadline.saturating_duration_since(Instant::now());
        match () {
            () if is_over() => return Waited::Over,
            () if left.is_zero() => return Waited::TooLong,
            () => {}
        }
        set.clear();
        set.watch(connection.circumstances.stop, fd::READ);
        if let Some(bell) = bell {
            set.watch(bell.watch(), fd::READ);
        }
        if set.wait(Some(left)).is_err() || set.ready(0).readable {
            return Waited::AgentEnds;
        }
    }
}
