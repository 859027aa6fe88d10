//! A client in bare bytes: it writes what it likes, and reads to the end of the stream as upstream's do.

use std::any::Any;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Child;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lodger::engine::Ended;
use lodger::stream::Stream;
use lodger::sys::fd;

use crate::support::PATIENCE;

/// One connection.
pub struct Client {
    rd: OwnedFd,
    /// `None`: there is nothing more to say.
    wr: Option<OwnedFd>,
    /// What carries the connection, and ends with it: a stream that has a link below it, an agent that has only this connection.
    _carrier: Option<Box<dyn Any + Send>>,
    /// The server, where it is a thread of this process.
    server: Option<JoinHandle<io::Result<Ended>>>,
}

impl Client {
    pub fn over_two(rd: impl Into<OwnedFd>, wr: impl Into<OwnedFd>) -> Client {
        let (rd, wr) = (rd.into(), wr.into());
        for fd in [&rd, &wr] {
            fd::set_nonblocking(fd.as_fd(), true).expect("an open descriptor");
        }
        Client { rd, wr: Some(wr), _carrier: None, server: None }
    }

    pub fn over(stream: Stream) -> Client {
        let copy = |fd: BorrowedFd| fd.try_clone_to_owned().expect("a descriptor");
        let mut client = Client::over_two(copy(stream.input()), copy(stream.output()));
        client._carrier = Some(Box::new(stream));
        client
    }

    pub fn with_agent(self, agent: Ending) -> Client {
        Client { _carrier: Some(Box::new(agent)), ..self }
    }

    pub fn with_server(self, server: JoinHandle<io::Result<Ended>>) -> Client {
        Client { server: Some(server), ..self }
    }

    /// Writes all of these bytes.
    ///
    /// # Errors
    /// `BrokenPipe` when the server listens no more.
    pub fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let wr = self.wr.as_ref().expect("it has not said its last").as_fd();
        while !bytes.is_empty() {
            match fd::write(wr, bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    assert!(!left.is_zero(), "the server does not read {} bytes", bytes.len());
                    fd::wait_for(wr, fd::WRITE, Some(left))?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The same, for a server that may have listened to enough of it.
    pub fn write_what_it_takes(&mut self, bytes: &[u8]) {
        match self.write(bytes) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            result => result.expect("only the server's end is an end"),
        }
    }

    /// Ends its own direction; the other one stays.
    pub fn end_writing(&mut self) {
        if let Some(wr) = self.wr.take() {
            // A pipe ends with its descriptor.
            let _ = fd::shutdown_write(wr.as_fd());
        }
    }

    /// Whether there is something to read, the end too, within this time.
    pub fn hears_within(&self, time: Duration) -> bool {
        fd::wait_for(self.rd.as_fd(), fd::READ, Some(time)).expect("an open descriptor").readable
    }

    /// What comes next, at most so much; nothing at the end.
    ///
    /// # Errors
    /// `ConnectionReset` when the server left something unread.
    pub fn read(&mut self, limit: usize) -> io::Result<Vec<u8>> {
        assert!(self.hears_within(PATIENCE), "the server neither answers nor closes");
        let mut bytes = Vec::new();
        fd::read_append(self.rd.as_fd(), &mut bytes, limit)?;
        bytes.truncate(limit);
        Ok(bytes)
    }

    /// Everything up to the end of the stream, which must be an orderly one: upstream's clients throw away all that came before a reset.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        loop {
            match self.read(64 << 10) {
                Ok(more) if more.is_empty() => return bytes,
                Ok(more) => bytes.extend(more),
                Err(error) => panic!("{error} behind {:?}", Shown(&bytes)),
            }
        }
    }

    /// Writes all and reads all.
    pub fn ask(&mut self, request: &[u8]) -> Vec<u8> {
        self.write_what_it_takes(request);
        self.rest()
    }

    /// Waits for the server's thread: how it ended.
    pub fn join_server(&mut self) -> io::Result<Ended> {
        let server = self.server.take().expect("the server is a thread");
        server.join().expect("the server does not panic")
    }

    /// The same behind the end of the connection.
    pub fn served(mut self) -> io::Result<Ended> {
        let server = self.server.take().expect("the server is a thread");
        drop(self);
        server.join().expect("the server does not panic")
    }
}

/// A process that ends with this.
pub struct Ending(pub Child);

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Bytes as a message shows them, if they are not too many.
pub struct Shown<'a>(pub &'a [u8]);

impl std::fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let start = &self.0[..self.0.len().min(200)];
        write!(f, "{} ({} bytes)", start.escape_ascii(), self.0.len())
    }
}

/// Compares bytes, and shows them as text where they differ.
#[track_caller]
pub fn assert_bytes(found: &[u8], expected: &[u8], what: &dyn std::fmt::Debug) {
    assert!(found == expected, "{what:?}: {:?} instead of {:?}", Shown(found), Shown(expected));
}
