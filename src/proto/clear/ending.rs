//! The end of a pod: its programs end before the machine does, and their shims hear of it.
//!
//! As on hyperstart's channels: each gets SIGTERM, one that ignores this SIGKILL at once, and those that are left SIGKILL after `PATIENCE`.
//! A session counts as over when its shim, if it has one, has been given the last output and the exit code.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::proto::bell::Bell;
use crate::proto::clear::connection::{Connection, Waited};
use crate::proto::clear::session::Session;
use crate::proto::hyper::ending::{LAST_WORDS, PATIENCE, ignores_term};
use crate::sys::fd::{self, PollSet};
use crate::sys::signal::{SIGCONT, SIGKILL, SIGTERM};

/// Ends the processes of all machines, which are one. The connection that has asked for it goes on meanwhile.
///
/// # Errors
/// There is no descriptor left to wait with; then nothing has ended.
pub fn end_programs(connection: &mut Connection) -> Result<(), String> {
    let bell = connection.bell()?;
    let sessions: Vec<_> = connection.registry().all().filter(|session| !session.is_told()).collect();
    for session in &sessions {
        session.tell_end_to(&bell);
        // An error says that it has ended by itself, or is out of reach: then it is waited for.
        let _ = session.signal_group(SIGTERM);
        let _ = session.signal_group(SIGCONT);
        session.kill_where(ignores_term);
    }
    if !is_over(connection, &bell, &sessions, PATIENCE) {
        sessions.iter().for_each(|session| drop(session.signal_group(SIGKILL)));
        is_over(connection, &bell, &sessions, LAST_WORDS);
    }
    Ok(())
}

/// Waits until all are over. `false`: the time was not enough.
fn is_over(connection: &mut Connection, bell: &Bell, sessions: &[Arc<Session>], patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    while !sessions.iter().all(|session| session.is_told()) {
        match connection.wait(deadline) {
            Waited::Rung => {}
            Waited::TimeOver => return false,
            // What it has asked for is done all the same.
            Waited::Gone => return is_over_without(connection, bell, sessions, deadline),
        }
    }
    true
}

/// The same for a client that has gone. When the agent ends too, nothing is waited for.
fn is_over_without(connection: &Connection, bell: &Bell, sessions: &[Arc<Session>], deadline: Instant) -> bool {
    let mut set = PollSet::default();
    loop {
        bell.clear();
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || sessions.iter().all(|session| session.is_told()) {
            return !left.is_zero();
        }
        set.clear();
        set.watch(connection.circumstances.stop, fd::READ);
        set.watch(bell.watch(), fd::READ);
        if set.wait(Some(left)).is_err() || set.ready(0).readable {
            return true;
        }
    }
}
