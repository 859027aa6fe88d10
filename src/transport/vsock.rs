//! AF_VSOCK: listening in a guest, and connecting to one by its CID.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::stream::Stream;
use crate::sys::fd;
use crate::sys::vsock::{self, CID_HOST, CID_LOCAL, EAFNOSUPPORT, ENODEV, Kind};
use crate::transport::Peers;

/// Connections that may wait to be accepted; as many as std's own listeners let wait.
const BACKLOG: i32 = 128;

/// How long a peer may take to accept a connection. The kernel itself gives up after 2 s.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// A port that connections come to.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    peers: Peers,
}

impl Listener {
    /// Listens on a port of this machine.
    ///
    /// # Errors
    /// `AddrInUse`; `PermissionDenied` for a port below 1,024 without the privilege; what `hint` knows where the kernel has no vsock.
    pub fn open(port: u32, peers: Peers) -> io::Result<Listener> {
        let socket = vsock::socket(Kind::Stream)?;
        vsock::bind(socket.as_fd(), port)?;
        vsock::listen(socket.as_fd(), BACKLOG)?;
        Ok(Listener { socket, peers })
    }

    #[cfg(test)]
    pub fn over(socket: OwnedFd, peers: Peers) -> Listener {
        Listener { socket, peers }
    }

    /// Readable when a connection waits.
    pub fn watch(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The next connection; `WouldBlock` when there is none. One from a machine that may not connect is closed before a byte of it is
    /// read, and counts as none.
    pub fn accept(&self) -> io::Result<Stream> {
        let (socket, cid) = vsock::accept(self.socket.as_fd())?;
        if self.peers.include(cid) {
            return Ok(Stream::over(socket));
        }
        log::warn!("refused a connection from CID {cid}: it may not connect");
        Err(io::ErrorKind::WouldBlock.into())
    }
}

impl Peers {
    fn include(self, cid: u32) -> bool {
        match self {
            Peers::HostAndLocal => cid == CID_HOST || cid == CID_LOCAL,
            Peers::Only(allowed) => cid == allowed,
            Peers::Any => true,
        }
    }
}

/// Connects to a port of a machine.
///
/// # Errors
/// `TimedOut`; `ConnectionReset` when nobody listens there; what `hint` knows where nothing carries vsock to that machine.
pub fn open(cid: u32, port: u32) -> io::Result<Stream> {
    let socket = vsock::socket(Kind::Stream)?;
    connect(&socket, cid, port)?;
    Ok(Stream::over_socket(socket))
}

/// The same with a new socket of any kind, which may be bound already.
pub fn connect(socket: &OwnedFd, cid: u32, port: u32) -> io::Result<()> {
    let deadline = Instant::now() + CONNECT_PATIENCE;
    if vsock::connect(socket.as_fd(), cid, port)? {
        return Ok(());
    }
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // A signal ends the wait too; only the clock says that it was in vain.
        if fd::wait_for(socket.as_fd(), fd::WRITE, Some(left))?.writable {
            return fd::take_error(socket.as_fd());
        }
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}

/// What to say behind an error whose number alone does not tell what is missing.
pub fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(EAFNOSUPPORT) => "; this kernel has no vsock, or its module is not loaded",
        Some(ENODEV) => {
            "; nothing carries vsock to that CID (a host needs the module vhost_vsock, a guest its virtio driver)"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_host_and_the_machine_itself_may_connect_unless_others_are_named() {
        let allowed = |peers: Peers| [0, CID_LOCAL, CID_HOST, 3, 77].map(|cid| peers.include(cid));
        assert_eq!(allowed(Peers::HostAndLocal), [false, true, true, false, false]);
        assert_eq!(allowed(Peers::Only(77)), [false, false, false, false, true]);
        assert_eq!(allowed(Peers::Any), [true; 5]);
    }
}
