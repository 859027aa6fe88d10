//! How long a connection is waited for, and what ends the waiting.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use crate::sys::fd::{self, PollSet};

/// The text of the error after `stop`.
pub const STOPPED: &str = "stopped while waiting for the peer";

/// What bounds the work on a connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits<'a> {
    /// When the work must be done. `None`: it may take for ever.
    pub deadline: Option<Instant>,
    /// Readable when nobody wants the work any more.
    pub stop: Option<BorrowedFd<'a>>,
}

impl Limits<'_> {
    /// The same, and over at `deadline` at the latest.
    pub fn until(self, deadline: Instant) -> Self {
        Limits { deadline: Some(self.deadline.map_or(deadline, |other| other.min(deadline))), ..self }
    }

    /// Waits for `events` (`fd::READ` or `fd::WRITE`) on a descriptor. It is asked before every read and write, ready or not, because a
    /// peer that is always ready must not outlive the deadline either.
    ///
    /// # Errors
    /// `TimedOut` after the deadline, `ConnectionAborted` after `stop`.
    pub fn wait(self, fd: BorrowedFd, events: i16) -> io::Result<()> {
        let mut set = PollSet::default();
        loop {
            let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            set.clear();
            let wanted = set.watch(fd, events);
            let stop = self.stop.map(|stop| set.watch(stop, fd::READ));
            set.wait(left)?;
            if stop.is_some_and(|stop| set.ready(stop).readable) {
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, STOPPED));
            }
            let ready = set.ready(wanted);
            // After a hang-up neither reads nor writes wait.
            if ready.readable || ready.writable || ready.hung_up {
                return Ok(());
            }
        }
    }
}

/// Whether an error means that the waiting was ended by `stop`: then nobody wants another attempt.
pub fn is_stop(error: &io::Error) -> bool {
    // The kernel's ECONNABORTED has a number.
    error.kind() == io::ErrorKind::ConnectionAborted && error.raw_os_error().is_none()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_deadline_counts_even_when_the_descriptor_is_ready() {
        let (rd, wr) = fd::pipe().expect("a pipe");
        fd::write(wr.as_fd(), b"x").expect("a write");
        let now = Instant::now();
        let later = Limits { deadline: Some(now + Duration::from_secs(9)), stop: None };
        assert!(later.wait(rd.as_fd(), fd::READ).is_ok());
        let error = later.until(now).wait(rd.as_fd(), fd::READ).expect_err("it is late");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(!is_stop(&error));
    }

    #[test]
    fn stop_ends_the_waiting_and_a_kernels_abort_is_none() {
        let ((rd, _wr), (stop, stopper)) = (fd::pipe().expect("a pipe"), fd::pipe().expect("a pipe"));
        let limits = Limits { stop: Some(stop.as_fd()), deadline: None };
        fd::write(stopper.as_fd(), b"x").expect("a write");
        assert!(is_stop(&limits.wait(rd.as_fd(), fd::READ).expect_err("stopped")));
        assert!(!is_stop(&io::Error::from_raw_os_error(103)), "ECONNABORTED");
    }

    #[test]
    fn a_descriptor_whose_other_end_is_closed_is_not_waited_for() {
        let (rd, wr) = fd::pipe().expect("a pipe");
        drop(rd);
        assert!(Limits::default().wait(wr.as_fd(), fd::WRITE).is_ok());
    }
}
