//! Where a program's output goes on this side: a descriptor that may be slow, or closed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::sys::fd;
use crate::sys::file::{self, O_NOCTTY, O_NONBLOCK, O_WRONLY};

/// Bytes that fit into a pipe, whole, whenever poll(2) calls it writable (PIPE_BUF).
const PIPE_BYTES: usize = 4096;

/// How to write without ever waiting. The descriptor's own mode is left alone: the open file is shared with the shell, and with whoever else
/// was started with it.
#[derive(Debug)]
enum Way {
    /// A file, or a device such as /dev/null: it takes everything at once.
    Direct,
    /// A pipe or terminal, opened a second time without blocking.
    Reopened(OwnedFd),
    /// A pipe or terminal that cannot be opened again: small pieces, and only when poll(2) promises room.
    Careful,
    /// A socket has a flag for it in each call.
    Socket,
}

/// Output on its way to a descriptor.
#[derive(Debug)]
pub struct Sink {
    fd: OwnedFd,
    way: Way,
    queue: Vec<u8>,
    start: usize,
}

impl Sink {
    /// Errors of dup(2).
    pub fn new(fd: BorrowedFd) -> io::Result<Sink> {
        use std::os::unix::fs::FileTypeExt;
        let own = fd.try_clone_to_owned()?;
        let number = std::os::fd::AsRawFd::as_raw_fd(&own);
        let kind = std::fs::File::from(own.try_clone()?).metadata()?.file_type();
        let waits = kind.is_fifo() || (kind.is_char_device() && io::IsTerminal::is_terminal(&own));
        let again = || file::open(format!("/proc/self/fd/{number}"), O_WRONLY | O_NONBLOCK | O_NOCTTY, 0);
        let way = match kind {
            kind if kind.is_socket() => Way::Socket,
            _ if waits => again().map_or(Way::Careful, |file| Way::Reopened(file.into())),
            _ => Way::Direct,
        };
        Ok(Sink { fd: own, way, queue: Vec::new(), start: 0 })
    }

    /// What to poll, for room or only for a hang-up.
    pub fn watch(&self) -> BorrowedFd<'_> {
        match &self.way {
            Way::Reopened(fd) => fd.as_fd(),
            _ => self.fd.as_fd(),
        }
    }

    /// Bytes that wait.
    pub fn queued(&self) -> usize {
        self.queue.len() - self.start
    }

    /// Takes output: as much as there is room for is written, the rest waits. Errors of write(2): `BrokenPipe` when nobody reads.
    pub fn take(&mut self, data: &[u8]) -> io::Result<()> {
        if self.start > self.queued() {
            // What has been written is given back although the queue is never empty: a reader may be slower than the program for hours.
            self.queue.drain(..self.start);
            self.start = 0;
        }
        let written = if self.queued() == 0 { self.write(data, false)? } else { 0 };
        self.queue.extend_from_slice(&data[written..]);
        Ok(())
    }

    /// Writes what waits, when poll(2) says that there is room.
    pub fn flush(&mut self) -> io::Result<()> {
        let queue = std::mem::take(&mut self.queue);
        let written = self.write(&queue[self.start..], true);
        self.queue = queue;
        self.start += written?;
        if self.queued() == 0 {
            self.queue.clear();
            self.start = 0;
        }
        Ok(())
    }

    fn write(&self, data: &[u8], promised: bool) -> io::Result<usize> {
        let mut count = 0;
        while count < data.len() {
            let rest = &data[count..];
            let result = match &self.way {
                Way::Direct => fd::write(self.fd.as_fd(), rest),
                Way::Reopened(fd) => fd::write(fd.as_fd(), rest),
                Way::Socket => fd::send_now(self.fd.as_fd(), rest),
                Way::Careful if promised && count == 0 => {
                    fd::write(self.fd.as_fd(), &rest[..rest.len().min(PIPE_BYTES)])
                }
                Way::Careful => break,
            };
            match result {
                Ok(written) => count += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(count)
    }
}
