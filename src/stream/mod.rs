//! A stream is two descriptors: one to read from, one to write to.

pub mod inbox;
pub mod outbox;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use crate::sys::fd;

/// Bytes of a socket's send buffer: a chunk of 256 KiB and the next one. Most systems allow less than half of it; the kernel doubles that.
const SEND_BUFFER: usize = 512 << 10;

/// Bytes of one read of what is not wanted. Seldom anything is there.
const UNREAD_BYTES: usize = 2 << 10;

/// Both directions of one connection.
#[derive(Debug)]
pub struct Stream {
    rd: OwnedFd,
    /// `None`: the same open file as `rd`.
    wr: Option<OwnedFd>,
    witness: Option<Witness>,
}

/// Who can tell why a stream is silent or has ended, because it carries it and sees more of what is below.
#[derive(Clone)]
pub struct Witness {
    tell: Arc<dyn Fn() -> Option<String> + Send + Sync>,
    settle: Arc<dyn Fn(Duration) + Send + Sync>,
}

impl fmt::Debug for Witness {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Witness")
    }
}

impl Witness {
    /// `tell` explains; `settle` waits, at most so long, until everything that was said on closed streams has arrived.
    pub fn new(
        tell: impl Fn() -> Option<String> + Send + Sync + 'static,
        settle: impl Fn(Duration) + Send + Sync + 'static,
    ) -> Witness {
        Witness { tell: Arc::new(tell), settle: Arc::new(settle) }
    }
}

impl Stream {
    /// A stream over one line, or a socket.
    pub fn over(socket: impl Into<OwnedFd>) -> Stream {
        Stream { rd: socket.into(), wr: None, witness: None }
    }

    /// The same, over a socket whose buffer is made to hold a whole chunk, so that bulk data goes in one write(2) and comes in one read(2).
    pub fn over_socket(socket: impl Into<OwnedFd>) -> Stream {
        let stream = Stream::over(socket);
        stream.enlarge();
        stream
    }

    /// Makes the buffer of a socket hold a whole chunk; what is no socket stays as it is.
    pub fn enlarge(&self) {
        let _ = fd::set_send_buffer(self.output(), SEND_BUFFER);
    }

    /// A stream over two pipes, or what else has one direction each.
    pub fn over_two(rd: OwnedFd, wr: OwnedFd) -> Stream {
        Stream { rd, wr: Some(wr), witness: None }
    }

    /// The same stream, with somebody to ask. What is written to it is still under way for a while.
    pub fn with_witness(self, witness: Witness) -> Stream {
        Stream { witness: Some(witness), ..self }
    }

    /// Why the stream is silent, or has ended, as far as anybody knows.
    pub fn explanation(&self) -> Option<String> {
        self.witness.as_ref().and_then(|witness| (witness.tell)())
    }

    /// Whether somebody in this process carries the stream, whose work ends with the process: before that the peer should have closed it.
    pub fn is_carried(&self) -> bool {
        self.witness.is_some()
    }

    /// Closes the stream; where somebody in this process carries it, waits until its peer knows, at most so long.
    pub fn close(self, patience: Duration) {
        let Stream { rd, wr, witness } = self;
        drop((rd, wr));
        if let Some(witness) = witness {
            (witness.settle)(patience);
        }
    }

    /// Ends both directions of a socket without waiting, and takes in what has come and nobody will read: a socket that is closed with bytes
    /// unread resets its connection, and the peer may lose what it was sent last.
    pub fn end(&self) {
        let _ = fd::shutdown(self.input());
        let mut unread = [0; UNREAD_BYTES];
        while let Ok(1..) = fd::receive_now(self.input(), &mut unread) {}
    }

    /// Two connected streams.
    pub fn pair() -> io::Result<(Stream, Stream)> {
        let (a, b) = fd::socket_pair()?;
        Ok((Stream::over(a), Stream::over(b)))
    }

    /// What to read from.
    pub fn input(&self) -> BorrowedFd<'_> {
        self.rd.as_fd()
    }

    /// What to write to.
    pub fn output(&self) -> BorrowedFd<'_> {
        self.wr.as_ref().unwrap_or(&self.rd).as_fd()
    }

    /// Whether both directions are one open file. Then it must stand in a poll set only once, with the events of both: when a virtio port
    /// stands there twice, bytes that come between the looks at the first and the second entry are taken off the queue by the second,
    /// which did not ask for them; the interrupt finds nothing left to report, and poll(2) sleeps on.
    pub fn is_one(&self) -> bool {
        self.wr.is_none()
    }

    /// Sets O_NONBLOCK on both directions. Everybody who shares the open files sees it.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        fd::set_nonblocking(self.input(), nonblocking)?;
        if self.is_one() { Ok(()) } else { fd::set_nonblocking(self.output(), nonblocking) }
    }
}
