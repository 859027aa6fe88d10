//! A post whose body goes out in chunks, while the host is listened to.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crate::http::connection::Connection;
use crate::http::head::Request;
use crate::http::wait::STOPPED;
use crate::proto::metadata::Guest;
use crate::sys::fd::{self, PollSet};

/// One such post.
pub struct Post<'a> {
    guest: &'a Guest<'a>,
    connection: Connection,
}

impl<'a> Post<'a> {
    /// Connects and sends the head.
    pub fn open(guest: &'a Guest<'a>, target: &str, time: Duration) -> io::Result<Post<'a>> {
        let limits = guest.within(time);
        let host = &guest.config.host;
        let mut connection = host.connect(limits)?;
        let request = Request::new("POST", target).with("Host", host.host()).with("Transfer-Encoding", "chunked");
        connection.send_head(&request, limits)?;
        Ok(Post { guest, connection })
    }

    /// Puts a chunk of what `read` appends behind what waits; its size.
    pub fn queue(&mut self, read: impl FnOnce(&mut Vec<u8>) -> io::Result<usize>) -> io::Result<usize> {
        self.connection.queue_chunk(read)
    }

    /// The same with bytes that are there.
    pub fn queue_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        let append = |into: &mut Vec<u8>| {
            into.extend_from_slice(bytes);
            Ok(bytes.len())
        };
        self.connection.queue_chunk(append).map(drop)
    }

    /// Puts the end of the body behind what waits.
    pub fn queue_end(&mut self) -> io::Result<()> {
        self.connection.queue_end()
    }

    /// Bytes that wait.
    pub fn waiting(&self) -> usize {
        self.connection.waiting()
    }

    /// Writes what fits. Whether the host has answered, which it may have done before it closed: then nothing is written any more.
    pub fn flush(&mut self) -> io::Result<bool> {
        match self.connection.flush() {
            Ok(()) => Ok(false),
            Err(error) => {
                if self.connection.is_answered().unwrap_or(false) {
                    Ok(true)
                } else {
                    Err(error)
                }
            }
        }
    }

    /// Waits until what waits can be written, `more` is readable, or the host has said something. Whether it has answered, or has gone.
    ///
    /// # Errors
    /// `TimedOut` when nothing of that has happened until then; `ConnectionAborted` when everything shall end; those of the connection.
    pub fn wait(&mut self, more: Option<BorrowedFd>, until: Option<Instant>) -> io::Result<bool> {
        let mut set = PollSet::default();
        set.watch(self.guest.stop, fd::READ);
        let writing = if self.waiting() > 0 { fd::WRITE } else { 0 };
        let peer = set.watch(self.connection.watch(), fd::READ | writing);
        let more = more.map(|more| set.watch(more, fd::READ));
        set.wait(until.map(|until| until.saturating_duration_since(Instant::now())))?;
        if set.ready(0).readable {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, STOPPED));
        }
        let found = set.ready(peer);
        if found.readable {
            return self.connection.is_answered();
        }
        let is_more = more.is_some_and(|more| set.ready(more).readable);
        let is_late = until.is_some_and(|until| Instant::now() >= until);
        if is_late && !found.writable && !is_more { Err(io::ErrorKind::TimedOut.into()) } else { Ok(false) }
    }

    /// The status of the answer.
    pub fn response(mut self, time: Duration) -> io::Result<u16> {
        Ok(self.connection.response(self.guest.within(time))?.status)
    }
}
