//! The programs of a pair as commands reach them: signals, windows and numbers.

use std::io;
use std::os::fd::AsFd;

use crate::proto::hyper::pair::{Pair, Program, Role, Target};
use crate::sys::process::signal_group;
use crate::sys::signal;
use crate::sys::tty::{self, Window};

impl Pair {
    /// Sends SIGKILL to the programs whose process number this is true for, and not to their groups.
    pub fn kill_where(&self, is_meant: impl Fn(i32) -> bool) {
        let state = self.state();
        let pids = state.programs.iter().filter_map(|program| program.process.as_ref()).map(|found| found.pid);
        for pid in pids.filter(|pid| is_meant(*pid)) {
            let _ = signal::send(pid, signal::SIGKILL);
        }
    }

    /// Tells a program's terminal its size. One that is not there, or has no terminal, is passed over.
    pub fn resize(&self, target: &Target, window: Window) -> io::Result<()> {
        let state = self.state();
        let found = state.programs.iter().filter(|program| program.is_meant(target));
        let mut terminals = found.filter_map(|program| program.process.as_ref()?.terminal.as_ref());
        terminals.try_for_each(|terminal| tty::set_window(terminal.as_fd(), window))
    }

    /// Sends a signal to the process groups of programs, also behind one that refuses it.
    ///
    /// # Errors
    /// `NotFound` when there is none; of kill(2), the first one.
    pub fn signal(&self, target: &Target, signal: i32) -> io::Result<()> {
        self.signal_by(target, |pid| signal_group(pid, signal))
    }

    /// The same for programs without their groups.
    pub fn signal_programs(&self, target: &Target, signal: i32) -> io::Result<()> {
        self.signal_by(target, |pid| signal::send(pid, signal))
    }

    fn signal_by(&self, target: &Target, send: impl Fn(i32) -> io::Result<()>) -> io::Result<()> {
        // Locked meanwhile, so that nobody buries them and their numbers are their own.
        let state = self.state();
        let found = state.programs.iter().filter(|program| program.is_meant(target));
        let sent = found.filter_map(|program| program.process.as_ref()).map(|found| send(found.pid));
        // Each is sent before the next result is looked at.
        sent.reduce(|first, next| first.and(next)).unwrap_or_else(|| Err(io::ErrorKind::NotFound.into()))
    }

    /// The numbers of the processes of programs, which are those of their sessions.
    pub fn pids(&self, target: &Target) -> Vec<i32> {
        let state = self.state();
        let found = state.programs.iter().filter(|program| program.is_meant(target));
        found.filter_map(|program| program.process.as_ref()).map(|found| found.pid).collect()
    }
}

impl Program {
    fn is_meant(&self, target: &Target) -> bool {
        match *target {
            Target::Sequence(number) => self.key.stdio == number,
            Target::Named { container, id } => self.key.container == container && self.key.id == id,
            Target::FirstOf { container } => self.key.container == container && self.role == Role::First,
            Target::AllOf { container } => self.key.container == container,
            Target::All => true,
        }
    }
}
