//! The process of a session as others than its shim see it: signals, its number, its container.

use std::io;
use std::sync::Arc;

use crate::exec::remote::Remote;
use crate::proto::clear::session::Session;
use crate::sys::file::ESRCH;
use crate::sys::tty::Window;

/// A process as others than its shim see it.
#[derive(Clone, Debug)]
pub(super) struct Reach {
    remote: Arc<Remote>,
    container: String,
    /// The first one of its container.
    is_first: bool,
}

impl Session {
    /// Reaches its process by this from now on, which is in that container, and may be the first one there.
    pub fn reach_by(&self, remote: Arc<Remote>, container: &str, is_first: bool) {
        self.state().reach = Some(Reach { remote, container: container.to_owned(), is_first });
    }

    /// Whether its process is in that container.
    pub fn is_in(&self, container: &str) -> bool {
        self.state().reach.as_ref().is_some_and(|reach| reach.container == container)
    }

    /// The number of its process, which is that of a session of the kernel. `None` when there is none, or it is buried.
    pub fn pid(&self) -> Option<i32> {
        self.reach().ok()?.remote.pid()
    }

    /// Sends SIGKILL to its process, if this is true for the number of that, and not to its group.
    pub fn kill_where(&self, is_meant: impl Fn(i32) -> bool) {
        self.reach().iter().for_each(|reach| reach.remote.kill_where(&is_meant));
    }

    /// Whether its process has ended, though its end may not have been told.
    pub fn is_dead(&self) -> bool {
        self.reach().is_ok_and(|reach| reach.remote.has_ended())
    }

    /// Sends a signal to its process and the process group of that. ESRCH when there is none, or it has ended.
    pub fn signal_group(&self, signal: i32) -> io::Result<()> {
        self.reach()?.remote.signal(signal)
    }

    /// Sends a signal to its process: alone to the first one of a container, as `killcontainer` does it; with its process group to one that
    /// was started later, as `signalprocess` does it. ESRCH as above.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        let Reach { remote, is_first, .. } = self.reach()?;
        if is_first { remote.signal_program(signal) } else { remote.signal(signal) }
    }

    /// Tells its process's terminal its size. Without a terminal nothing happens. ESRCH when there is no process.
    pub fn resize(&self, window: Window) -> io::Result<()> {
        self.reach()?.remote.resize(window)
    }

    fn reach(&self) -> io::Result<Reach> {
        self.state().reach.clone().ok_or_else(|| io::Error::from_raw_os_error(ESRCH))
    }
}
