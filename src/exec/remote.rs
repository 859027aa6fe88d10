//! A way to a program for threads that do not own it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::sys::file::ESRCH;
use crate::sys::process::{self, signal_group};
use crate::sys::signal;
use crate::sys::tty::{self, Window};

/// What a program is reached by.
#[derive(Debug)]
struct Target {
    pid: i32,
    terminal: Option<Arc<OwnedFd>>,
}

/// Reaches a program from its start until it is buried, and nobody afterwards: its number may be somebody else's then.
#[derive(Debug)]
pub struct Remote(Mutex<Option<Target>>);

impl Remote {
    pub fn to(pid: i32, terminal: Option<Arc<OwnedFd>>) -> Remote {
        Remote(Mutex::new(Some(Target { pid, terminal })))
    }

    fn target(&self) -> MutexGuard<'_, Option<Target>> {
        // Nothing panics while it is locked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a signal to the program's process group, and where nobody is in that any more, to the program. ESRCH once it is buried.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        // Locked meanwhile, so that nobody buries it.
        let target = self.target();
        let Some(Target { pid, .. }) = *target else { return Err(io::Error::from_raw_os_error(ESRCH)) };
        match signal_group(pid, signal) {
            Err(error) if error.raw_os_error() == Some(ESRCH) => signal::send(pid, signal),
            sent => sent,
        }
    }

    /// Sends a signal to the program, and not to its process group. ESRCH once it is buried.
    pub fn signal_program(&self, signal: i32) -> io::Result<()> {
        let target = self.target();
        let Some(Target { pid, .. }) = *target else { return Err(io::Error::from_raw_os_error(ESRCH)) };
        signal::send(pid, signal)
    }

    /// Sends SIGKILL to the program, if this is true for its process number, and not to its group.
    pub fn kill_where(&self, is_meant: impl Fn(i32) -> bool) {
        let target = self.target();
        target
            .iter()
            .filter(|target| is_meant(target.pid))
            .for_each(|target| drop(signal::send(target.pid, signal::SIGKILL)));
    }

    /// The program's process number, which is that of its session. `None` once it is buried.
    pub fn pid(&self) -> Option<i32> {
        self.target().as_ref().map(|target| target.pid)
    }

    /// Tells the program's terminal its size. Without a terminal nothing happens. ESRCH once it is buried.
    pub fn resize(&self, window: Window) -> io::Result<()> {
        let target = self.target();
        let Some(Target { terminal, .. }) = &*target else { return Err(io::Error::from_raw_os_error(ESRCH)) };
        terminal.as_ref().map_or(Ok(()), |terminal| tty::set_window(terminal.as_fd(), window))
    }

    /// Whether the program has ended, buried or not.
    pub fn has_ended(&self) -> bool {
        let target = self.target();
        // Not buried meanwhile, because that is locked.
        target.as_ref().is_none_or(|target| process::ended(target.pid).is_ok_and(|status| status.is_some()))
    }

    /// The program is about to be buried.
    pub fn cut(&self) {
        *self.target() = None;
    }
}
