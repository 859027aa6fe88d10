//! A program run to its end: its input given, its output kept up to a limit, and what may end it before.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::exec::departure::Departure;
use crate::exec::{self, BLIND_POLL, Channel, QUIET, Session};
use crate::sys::fd::{self, PollSet};
use crate::sys::process::Status;
use crate::sys::signal;

/// Bytes of one read: what a pipe of the default size holds.
const CHUNK: usize = 64 << 10;

/// What bounds a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bounds<'a> {
    /// Bytes that are kept of the standard output. The rest is read and thrown away, so that the program neither waits nor dies of it.
    pub stdout_max: usize,
    /// The same of the error output.
    pub stderr_max: usize,
    /// When the program's time is over: it and its process group get SIGKILL at once, because it was told its time before.
    pub deadline: Option<Instant>,
    /// Hung up (poll(2) without events) when nobody waits for the program any more.
    pub caller: Option<BorrowedFd<'a>>,
    /// Readable when the program shall end.
    pub stop: Option<BorrowedFd<'a>>,
}

/// How a run ended.
#[derive(Debug)]
pub enum Outcome {
    /// The program has ended, by itself or because its time was over.
    Complete(Output),
    /// The caller has gone, and with it the program (`exec::hang_up`).
    CallerGone,
    /// The program has been ended in the same way because of `stop`.
    Stopped,
}

/// What a program left behind.
#[derive(Debug)]
pub struct Output {
    pub status: Status,
    pub timed_out: bool,
    pub stdout: Kept,
    pub stderr: Kept,
}

/// What was kept of one output.
#[derive(Debug, Default)]
pub struct Kept {
    pub bytes: Vec<u8>,
    /// There was more.
    pub truncated: bool,
}

/// Gives a program that was just started its input, and waits for its end and that of its output: until its streams end or have been silent
/// for `QUIET` after its end, because a daemonised grandchild may hold them for ever. One that never falls silent is left at the deadline.
///
/// # Errors
/// Of poll(2); the program has been killed.
pub fn finish(session: Session, channels: Vec<Channel>, input: &[u8], bounds: &Bounds) -> io::Result<Outcome> {
    let mut run = Run::new(session, channels, input, bounds);
    let (mut set, mut departure) = (PollSet::default(), Departure::default());
    loop {
        let now = Instant::now();
        run.look(now);
        if run.is_over(now) {
            return Ok(run.complete());
        }
        set.clear();
        let caller = bounds.caller.map(|caller| (caller, set.watch(caller, departure.events())));
        let stop = bounds.stop.map(|stop| set.watch(stop, fd::READ));
        let places = run.watch(&mut set);
        let left = run.next_look().map(|until| until.saturating_duration_since(now));
        set.wait(left.into_iter().chain(departure.tick()).min())?;
        if stop.is_some_and(|stop| set.ready(stop).readable) {
            run.hang_up();
            return Ok(Outcome::Stopped);
        }
        if caller.is_some_and(|(caller, at)| departure.is_seen(caller, set.ready(at).hung_up)) {
            run.hang_up();
            return Ok(Outcome::CallerGone);
        }
        let moved = run.transfer(&set, &places);
        // Only what was looked for once more and was not there has been silent; it may have been we who took so long.
        run.silent = run.status.is_some() && !moved && left.is_some_and(|left| left.is_zero());
    }
}

/// Places in a poll set.
struct Places {
    input: Option<usize>,
    outputs: [Option<usize>; 2],
}

/// One output, until its end has been met.
struct Flow {
    rd: Option<OwnedFd>,
    kept: Kept,
    max: usize,
}

struct Run<'a> {
    session: Session,
    wr: Option<OwnedFd>,
    input: &'a [u8],
    outputs: [Flow; 2],
    chunk: Vec<u8>,
    status: Option<Status>,
    timed_out: bool,
    /// When to wait no longer: first for the program, and once it has ended for its output.
    deadline: Option<Instant>,
    /// When output last came, or the program ended.
    moved: Instant,
    /// Nothing has come for `QUIET`, once the program has ended.
    silent: bool,
}

impl<'a> Run<'a> {
    fn new(session: Session, mut channels: Vec<Channel>, input: &'a [u8], bounds: &Bounds) -> Run<'a> {
        let mut take = |number| {
            let found = channels.iter_mut().find(|channel| channel.number == number);
            found.map_or((None, None), |channel| (channel.rd.take(), channel.wr.take()))
        };
        let wr = take(0).1.filter(|_| !input.is_empty());
        let outputs = [(1, bounds.stdout_max), (2, bounds.stderr_max)];
        let outputs = outputs.map(|(number, max)| Flow { rd: take(number).0, kept: Kept::default(), max });
        let (status, timed_out, silent, moved) = (None, false, false, Instant::now());
        let (deadline, chunk) = (bounds.deadline, vec![0; CHUNK]);
        Run { session, wr, input, outputs, chunk, status, timed_out, deadline, moved, silent }
    }

    /// Looks whether the program has ended, or its time.
    fn look(&mut self, now: Instant) {
        if self.status.is_some() {
            return;
        }
        self.status = self.session.ended();
        if self.status.is_some() {
            self.moved = now;
            if self.timed_out {
                self.deadline = Some(now + QUIET);
            }
        } else if self.deadline.is_some_and(|deadline| now >= deadline) {
            self.session.kill();
            (self.timed_out, self.deadline) = (true, None);
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        let late = self.deadline.is_some_and(|deadline| now >= deadline);
        let ended = self.outputs.iter().all(|output| output.rd.is_none());
        self.status.is_some() && (ended || late || self.silent)
    }

    /// When to look again if nothing happens.
    fn next_look(&self) -> Option<Instant> {
        let other = match self.status {
            Some(_) => Some(self.moved + QUIET),
            None if self.session.end_watch().is_none() => Some(Instant::now() + BLIND_POLL),
            None => None,
        };
        self.deadline.into_iter().chain(other).min()
    }

    fn watch(&self, set: &mut PollSet) -> Places {
        if let Some(end) = self.session.end_watch().filter(|_| self.status.is_none()) {
            set.watch(end, fd::READ);
        }
        let input = self.wr.as_ref().map(|wr| set.watch(wr.as_fd(), fd::WRITE));
        let outputs = [&self.outputs[0], &self.outputs[1]];
        let outputs = outputs.map(|output| output.rd.as_ref().map(|rd| set.watch(rd.as_fd(), fd::READ)));
        Places { input, outputs }
    }

    /// Moves what can be moved. True when output came or ended.
    fn transfer(&mut self, set: &PollSet, places: &Places) -> bool {
        if let Some(wr) = self.wr.as_ref().filter(|_| places.input.is_some_and(|place| set.ready(place).writable)) {
            match fd::write(wr.as_fd(), self.input) {
                Ok(count) => self.input = &self.input[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The program wants no more of it.
                Err(_) => self.input = &[],
            }
            if self.input.is_empty() {
                self.wr = None;
            }
        }
        let mut moved = false;
        for (output, place) in self.outputs.iter_mut().zip(places.outputs) {
            moved |= place.is_some_and(|place| set.ready(place).readable) && output.read(&mut self.chunk);
        }
        if moved {
            self.moved = Instant::now();
        }
        moved
    }

    /// Ends the program for a caller that wants no result.
    fn hang_up(self) {
        let Run { session, wr, outputs, .. } = self;
        drop((wr, outputs));
        exec::hang_up(vec![session]);
    }

    fn complete(self) -> Outcome {
        let [stdout, stderr] = self.outputs.map(|output| output.kept);
        // It is over only when a status is there.
        let status = self.status.unwrap_or(Status::Killed(signal::SIGKILL));
        Outcome::Complete(Output { status, timed_out: self.timed_out, stdout, stderr })
    }
}

impl Flow {
    /// Reads once. True when something came, if only the end.
    fn read(&mut self, chunk: &mut [u8]) -> bool {
        let Some(rd) = &self.rd else { return false };
        match fd::read(rd.as_fd(), chunk) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            // A terminal whose program has gone ends with an error.
            Ok(0) | Err(_) => {
                self.rd = None;
                true
            }
            Ok(count) => {
                let wanted = count.min(self.max - self.kept.bytes.len());
                self.kept.bytes.extend_from_slice(&chunk[..wanted]);
                self.kept.truncated |= wanted < count;
                true
            }
        }
    }
}

/// A deadline so far away.
pub fn within(time: Duration) -> Option<Instant> {
    // One that the clock cannot hold is none.
    Instant::now().checked_add(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::exec::Program;

    fn run(script: &str, input: &[u8], bounds: Bounds) -> Outcome {
        let arguments = vec![b"-c".to_vec(), script.as_bytes().to_vec()];
        let program = Program { path: b"sh".to_vec(), arguments, ..Program::default() };
        let (session, channels) = exec::start(&program).expect("a shell");
        finish(session, channels, input, &bounds).expect("poll")
    }

    fn output(script: &str, input: &[u8], bounds: Bounds) -> Output {
        match run(script, input, bounds) {
            Outcome::Complete(output) => output,
            other => panic!("{other:?}"),
        }
    }

    const SMALL: Bounds = Bounds { stdout_max: 8, stderr_max: 4, deadline: None, caller: None, stop: None };

    #[test]
    fn output_is_kept_up_to_its_limit_and_read_to_its_end() {
        let at = output("printf 12345678; printf abcd >&2; exit 3", b"", SMALL);
        assert_eq!((at.status, at.timed_out), (Status::Exited(3), false));
        assert_eq!((at.stdout.bytes.as_slice(), at.stdout.truncated), (&b"12345678"[..], false));
        assert_eq!((at.stderr.bytes.as_slice(), at.stderr.truncated), (&b"abcd"[..], false));
        let past = output("printf 123456789; printf abcde >&2; head -c 300000 /dev/zero; kill -9 $$", b"", SMALL);
        assert_eq!(past.status, Status::Killed(9));
        assert_eq!((past.stdout.bytes.as_slice(), past.stdout.truncated), (&b"12345678"[..], true));
        assert_eq!((past.stderr.bytes.as_slice(), past.stderr.truncated), (&b"abcd"[..], true));
    }

    #[test]
    fn input_that_nobody_reads_does_not_keep_a_program_from_ending() {
        let input = vec![b'x'; 300_000];
        assert_eq!(output("exec <&-; sleep 0.05; exit 4", &input, SMALL).status, Status::Exited(4));
        assert_eq!(output("exit 5", &input, SMALL).status, Status::Exited(5));
        let all = Bounds { stdout_max: 16, ..SMALL };
        assert_eq!(output("wc -c", &input, all).stdout.bytes, b"300000\n");
        assert_eq!(output("cat; echo end", b"", all).stdout.bytes, b"end\n", "no input is its end");
    }

    #[test]
    fn a_program_that_ignores_signals_ends_with_its_time_and_its_output_stays() {
        let start = Instant::now();
        // The shell must have come to its loop by then, on a busy machine too.
        let deadline = Some(start + Duration::from_millis(1500));
        let script = "trap '' HUP TERM INT; echo so far; while :; do sleep 9; done";
        let late = output(script, b"", Bounds { stdout_max: 64, deadline, ..SMALL });
        assert_eq!((late.status, late.timed_out), (Status::Killed(9), true));
        assert_eq!(late.stdout.bytes, b"so far\n");
        assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    }

    #[test]
    fn a_program_that_has_left_its_process_group_ends_with_its_time_too() {
        let start = Instant::now();
        let script = "command -v perl >/dev/null || exit 77; exec perl -e 'setpgrp(0, getpgrp(getppid)); sleep 60'";
        let late = output(script, b"", Bounds { deadline: Some(start + Duration::from_secs(3)), ..SMALL });
        if late.status == Status::Exited(77) {
            eprintln!("a_program_that_has_left_its_process_group_ends_with_its_time_too was skipped: no perl");
            return;
        }
        assert_eq!((late.status, late.timed_out), (Status::Killed(9), true));
    }

    #[test]
    fn a_grandchild_that_holds_the_output_is_left_when_it_is_silent_or_the_time_is_over() {
        let start = Instant::now();
        let silent = output("setsid sleep 8 & echo done", b"", Bounds { stdout_max: 64, ..SMALL });
        assert_eq!((silent.status, silent.stdout.bytes.as_slice()), (Status::Exited(0), &b"done\n"[..]));
        assert!(start.elapsed() >= QUIET && start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
        let deadline = within(Duration::from_secs(2));
        let loud = output("setsid yes & exit 6", b"", Bounds { deadline, ..SMALL });
        assert_eq!((loud.status, loud.timed_out, loud.stdout.truncated), (Status::Exited(6), false, true));
    }

    #[test]
    fn who_waits_and_who_stops_ends_it() {
        let (never, writer) = fd::pipe().expect("a pipe");
        let (ours, theirs) = fd::socket_pair().expect("a pair");
        let (gone, _) = fd::socket_pair().expect("a pair");
        let watched = Bounds { caller: Some(ours.as_fd()), stop: Some(never.as_fd()), ..SMALL };
        assert!(matches!(run("sleep 9", b"", Bounds { caller: Some(gone.as_fd()), ..watched }), Outcome::CallerGone));
        fd::shutdown_write(theirs.as_fd()).expect("a shutdown");
        assert!(matches!(run("exit 0", b"", watched), Outcome::Complete(_)), "it may still read");
        fd::write(writer.as_fd(), b"x").expect("a write");
        assert!(matches!(run("sleep 9", b"", watched), Outcome::Stopped));
    }
}
