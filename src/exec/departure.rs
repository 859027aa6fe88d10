//! The other end of a connection whose input nobody reads meanwhile: whether it is still there.
//!
//! | | unix socket | vsock (Linux 6.1) | pipe, terminal, virtio port |
//! | --- | --- | --- | --- |
//! | it sends no more | POLLRDHUP | POLLRDHUP | |
//! | it is closed | POLLHUP | POLLRDHUP | POLLHUP; POLLERR where a pipe is written to |
//!
//! A vsock has POLLHUP only when both ends are shut. So one whose peer sends no more is asked by a write of nothing, which fails with EPIPE
//! when nobody would read it; and asked again, because nothing tells that this has changed.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use crate::sys::fd;

/// How often one is asked that sends no more: its client is not waited for in vain, and what it costs cannot be measured.
const TICK: Duration = Duration::from_secs(1);

/// What is known of it.
#[derive(Debug, Default)]
pub struct Departure {
    sends_no_more: bool,
}

impl Departure {
    /// What to watch for on it.
    pub fn events(&self) -> i16 {
        if self.sends_no_more { fd::HANG_UP } else { fd::PEER_ENDED }
    }

    /// How long to wait for that at most.
    pub fn tick(&self) -> Option<Duration> {
        self.sends_no_more.then_some(TICK)
    }

    /// Whether it has gone, behind a wait that may have found it hung up.
    pub fn is_seen(&mut self, fd: BorrowedFd, hung_up: bool) -> bool {
        self.sends_no_more |= hung_up;
        self.sends_no_more && is_deserted(fd)
    }
}

/// Whether nobody is at the other end any more. What is no socket, or one of TCP, cannot tell a closed end from one that only sends no more:
/// it says what poll(2) says.
pub fn is_deserted(fd: BorrowedFd) -> bool {
    let is_found = |events| fd::wait_for(fd, events, Some(Duration::ZERO)).is_ok_and(|ready| ready.hung_up);
    let refuses_all = || fd::send_now(fd, &[]).is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe);
    is_found(fd::HANG_UP) || is_found(fd::PEER_ENDED) && refuses_all()
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_socket_that_sends_no_more_is_there_until_it_is_closed() {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let mut departure = Departure::default();
        let mut look = || {
            let ready = fd::wait_for(ours.as_fd(), departure.events(), Some(Duration::ZERO)).expect("a poll");
            (departure.is_seen(ours.as_fd(), ready.hung_up), departure.tick().is_some())
        };
        assert_eq!(look(), (false, false));
        theirs.shutdown(Shutdown::Write).expect("a shutdown");
        assert_eq!(look(), (false, true));
        assert_eq!(look(), (false, true));
        drop(theirs);
        assert_eq!(look(), (true, true));
    }

    #[test]
    fn a_pipe_is_deserted_without_its_reader() {
        let (rd, wr) = fd::pipe().expect("a pipe");
        assert!(!is_deserted(wr.as_fd()));
        drop(rd);
        assert!(is_deserted(wr.as_fd()));
    }
}
