//! The task's command: on a terminal, its output into the backlog, and its end.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::exec::tree::{LOOK_EVERY, Tree};
use crate::exec::{BLIND_POLL, HANG_UP_GRACE, QUIET, Session};
use crate::proto::metadata::backlog::Backlog;
use crate::proto::metadata::output::{Found, Output};
use crate::proto::metadata::task::Task;
use crate::proto::metadata::{Config, Guest, programs};
use crate::sys::fd::{self, PollSet};
use crate::sys::process::Status;
use crate::sys::signal;
use crate::sys::tty::Window;

const BASH: &str = "/bin/bash";

/// Bytes of one read. A terminal gives less.
const READ_BYTES: usize = 32 << 10;

/// How long the terminal may be silent, while others than the ended program have it open, before the log counts as complete. With upstream
/// they delay the result for ever. `QUIET` is too short: what goes on writing may wait seconds for a processor, and its lines would be lost.
const HOLDERS_QUIET: Duration = Duration::from_secs(5);

/// Runs it to its end; whether it has succeeded. What keeps it from starting stands in the log.
pub fn run(guest: &Guest, task: &Task, backlog: &Backlog) -> bool {
    let config = guest.config;
    let mut argv: Vec<String> = config.entrypoint.iter().chain(&task.command).cloned().collect();
    if argv.is_empty() {
        argv = nameless(config);
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
    let (mut input, mut output) = (None, Output::default());
    for channel in channels {
        input = input.or(channel.wr);
        output = channel.rd.map_or(output, Output::of);
    }
    let run = Run { guest, backlog, output, status: None, moved: Instant::now(), silent: false, kill: None };
    let success = run.finish(session);
    drop(input);
    success
}

/// What runs when nobody names a program: as with upstream `/bin/bash`, and where there is none, the configured shell.
fn nameless(config: &Config) -> Vec<String> {
    if Path::new(BASH).is_file() { vec![BASH.to_owned()] } else { config.shell.clone() }
}

/// The end of everything that the program has started.
struct Kill {
    tree: Tree,
    /// When who is left gets SIGKILL.
    due: Instant,
    done: bool,
}

struct Run<'a> {
    guest: &'a Guest<'a>,
    backlog: &'a Backlog,
    output: Output,
    status: Option<Status>,
    /// When output last came, or the program ended.
    moved: Instant,
    /// It has ended, and nothing has come for long enough.
    silent: bool,
    kill: Option<Kill>,
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
                return self.status == Some(Status::Exited(0)) && self.kill.is_none();
            }
            set.clear();
            set.watch(self.guest.stop, fd::READ);
            if self.kill.is_none() {
                set.watch(self.guest.kill.watch(), fd::READ);
            }
            let is_running = self.status.is_none();
            if let Some(end) = session.end_watch().filter(|_| is_running) {
                set.watch(end, fd::READ);
            }
            let room = self.backlog.takes(now).min(chunk.len());
            let takes = room > 0;
            if !takes {
                set.watch(self.backlog.room(), fd::READ);
            }
            let rd = self.output.watch(now, is_running).filter(|_| takes);
            let place = rd.map(|rd| set.watch(rd, fd::READ));
            let left = self.next_look(&session, takes).map(|until| until.saturating_duration_since(now));
            if set.wait(left).is_err() || set.ready(0).readable {
                self.stop(&session);
                return false;
            }
            let is_there = place.is_some_and(|place| set.ready(place).readable);
            let moved = is_there && self.read(&mut chunk[..room], now);
            let waited = left.is_some_and(|left| left.is_zero()) && takes;
            self.silent = self.status.is_some() && !moved && waited && now >= self.moved + self.quiet();
        }
    }

    /// Everything ends: so does all that it has started, and nobody waits for its words.
    fn stop(mut self, session: &Session) {
        let tree = self.kill.take().map_or_else(|| Tree::terminate(session), |kill| kill.tree);
        // Who does not end by itself may do so when its terminal goes.
        self.output = Output::default();
        let _ = session.signal(signal::SIGHUP);
        tree.finish(session, HANG_UP_GRACE, None);
    }

    fn look(&mut self, session: &Session, now: Instant) {
        if self.status.is_none() {
            self.status = session.ended();
            if self.status.is_some() {
                self.moved = now;
            }
        }
        match &mut self.kill {
            // When the program has ended, others may still be there and delay the result.
            None if self.guest.is_killed() => {
                log::info!("task: killed, as the host wants it");
                // A host that takes no log does not keep what it has killed.
                self.backlog.hurry();
                let due = now + self.guest.timers().termination_grace;
                self.kill = Some(Kill { tree: Tree::terminate(session), due, done: false });
            }
            Some(kill) if !kill.done && now >= kill.due => {
                kill.tree.kill();
                kill.done = true;
            }
            _ => {}
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        if self.status.is_none() {
            return false;
        }
        let is_complete = self.silent || !self.output.is_open();
        match &self.kill {
            None => is_complete,
            // What has escaped and goes on writing is not waited for.
            Some(kill) => now >= kill.due + QUIET || (is_complete && (kill.done || !kill.tree.lives())),
        }
    }

    /// How long the terminal must be silent for the log to be complete.
    fn quiet(&self) -> Duration {
        if self.kill.is_some() { QUIET } else { HOLDERS_QUIET }
    }

    /// When to look again if nothing happens.
    fn next_look(&self, session: &Session, takes: bool) -> Option<Instant> {
        let now = Instant::now();
        let (ended, open) = (self.status.is_some(), self.output.is_open());
        let quiet = (ended && open && takes && !self.silent).then(|| self.moved + self.quiet());
        let blind = (!ended && session.end_watch().is_none()).then(|| now + BLIND_POLL);
        let terminal = self.output.look_at().filter(|_| !ended);
        let kill = self.kill.as_ref().map(|kill| if kill.done { kill.due + QUIET } else { kill.due });
        let kill = kill.filter(|at| ended || *at > now);
        let dying = self.kill.as_ref().filter(|kill| ended && !kill.done).map(|_| now + LOOK_EVERY);
        let room = (!takes).then(|| self.backlog.deadline());
        [quiet, blind, terminal, kill, dying, room].into_iter().flatten().min()
    }

    /// Reads once. True when something came, if only the end.
    fn read(&mut self, chunk: &mut [u8], now: Instant) -> bool {
        match self.output.read(chunk, now, self.status.is_none()) {
            Found::Nothing => return false,
            Found::End => {}
            Found::Bytes(count) => self.backlog.push(&chunk[..count], Instant::now()),
        }
        self.moved = Instant::now();
        true
    }
}
