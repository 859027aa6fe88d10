//! The task's command: on a terminal, its output into the backlog, and its end.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use crate::exec::tree::{LOOK_EVERY, Tree};
use crate::exec::{self, BLIND_POLL, QUIET, Session};
use crate::proto::metadata::backlog::Backlog;
use crate::proto::metadata::task::Task;
use crate::proto::metadata::{Guest, programs};
use crate::sys::fd::{self, PollSet};
use crate::sys::process::Status;
use crate::sys::tty::Window;

/// Bytes of one read. A terminal gives less.
const READ_BYTES: usize = 32 << 10;

/// Runs it to its end; whether it has succeeded. What keeps it from starting stands in the log.
pub fn run(guest: &Guest, task: &Task, backlog: &Backlog) -> bool {
    let config = guest.config;
    let mut argv: Vec<String> = config.entrypoint.iter().chain(&task.command).cloned().collect();
    if argv.is_empty() {
        argv.clone_from(&config.shell);
    }
    let (session, channels) = match programs::start(guest, &argv, Some(Window::default())) {
        Ok(started) => started,
        Err(why) => {
            log::warn!("task: {why}");
            backlog.push(format!("lodger: {why}\r\n").as_bytes(), Instant::now());
            return false;
        }
    };
    // The input stays open: nobody writes to it, and it does not end.
    let (mut input, mut output) = (None, None);
    for channel in channels {
        input = input.or(channel.wr);
        output = output.or(channel.rd);
    }
    let run = Run { guest, backlog, output, status: None, moved: Instant::now(), silent: false, tree: None };
    let success = run.finish(session);
    drop(input);
    success
}

struct Run<'a> {
    guest: &'a Guest<'a>,
    backlog: &'a Backlog,
    output: Option<OwnedFd>,
    status: Option<Status>,
    /// When output last came, or the program ended.
    moved: Instant,
    /// It has ended, and nothing has come for `QUIET`.
    silent: bool,
    /// What is being killed, and when it has had its time.
    tree: Option<(Tree, Option<Instant>)>,
}

impl Run<'_> {
    /// Whether it has succeeded. What the host has killed has not, whatever it says itself.
    fn finish(mut self, session: Session) -> bool {
        let mut set = PollSet::default();
        let mut chunk = vec![0; READ_BYTES];
        loop {
            let now = Instant::now();
            self.look(&session, now);
            if self.is_over(now) {
                return self.status == Some(Status::Exited(0)) && self.tree.is_none();
            }
            set.clear();
            set.watch(self.guest.stop, fd::READ);
            if self.tree.is_none() && self.status.is_none() {
                set.watch(self.guest.kill.watch(), fd::READ);
            }
            if let Some(end) = session.end_watch().filter(|_| self.status.is_none()) {
                set.watch(end, fd::READ);
            }
            let room = self.backlog.takes(now).min(chunk.len());
            let takes = room > 0;
            if !takes {
                set.watch(self.backlog.room(), fd::READ);
            }
            let place = self.output.as_ref().filter(|_| takes).map(|rd| set.watch(rd.as_fd(), fd::READ));
            let left = self.next_look(&session, takes).map(|until| until.saturating_duration_since(now));
            if set.wait(left).is_err() || set.ready(0).readable {
                self.output = None;
                exec::hang_up(vec![session]);
                return false;
            }
            let moved = place.is_some_and(|place| set.ready(place).readable) && self.read(&mut chunk[..room]);
            let waited = left.is_some_and(|left| left.is_zero()) && takes;
            self.silent = self.status.is_some() && !moved && waited && now >= self.moved + QUIET;
        }
    }

    fn look(&mut self, session: &Session, now: Instant) {
        if self.status.is_none() {
            self.status = session.ended();
            if self.status.is_some() {
                self.moved = now;
            }
        }
        match &mut self.tree {
            None if self.guest.is_killed() && self.status.is_none() => {
                log::info!("task: killed, as the host wants it");
                let grace = self.guest.timers().termination_grace;
                self.tree = Some((Tree::terminate(session), Some(now + grace)));
            }
            Some((tree, kill_at)) if kill_at.is_some_and(|at| now >= at) => {
                tree.kill();
                *kill_at = None;
            }
            _ => {}
        }
    }

    fn is_over(&mut self, now: Instant) -> bool {
        if self.status.is_none() || !(self.output.is_none() || self.silent) {
            return false;
        }
        let dying = self.tree.as_ref().is_some_and(|(tree, at)| at.is_some_and(|at| now < at) && tree.lives());
        !dying
    }

    /// When to look again if nothing happens.
    fn next_look(&self, session: &Session, takes: bool) -> Option<Instant> {
        let now = Instant::now();
        let quiet = match self.status {
            Some(_) if self.output.is_some() && takes && !self.silent => Some(self.moved + QUIET),
            None if session.end_watch().is_none() => Some(now + BLIND_POLL),
            _ => None,
        };
        let kill = self.tree.as_ref().and_then(|(_, at)| *at);
        let dying = kill.filter(|_| self.status.is_some()).map(|_| now + LOOK_EVERY);
        let room = (!takes).then(|| self.backlog.deadline());
        [quiet, kill, dying, room].into_iter().flatten().min()
    }

    /// Reads once. True when something came, if only the end.
    fn read(&mut self, chunk: &mut [u8]) -> bool {
        let Some(rd) = &self.output else { return false };
        match fd::read(rd.as_fd(), chunk) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            // A terminal whose program has gone ends with an error.
            Ok(0) | Err(_) => self.output = None,
            Ok(count) => self.backlog.push(&chunk[..count], Instant::now()),
        }
        self.moved = Instant::now();
        true
    }
}
