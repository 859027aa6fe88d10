//! What has arrived from a peer and is not used up yet.

use std::io;
use std::os::fd::BorrowedFd;

use crate::sys::fd;

/// Bytes of a read when nobody knows how much will come: holds any frame but the bulk ones.
const READ_BYTES: usize = 16 << 10;

/// Bytes read beyond the end of an item whose length is known: the beginning of the next one, so that its length is known too.
const AHEAD_BYTES: usize = 4 << 10;

/// Bytes of room that an empty buffer keeps for what comes next: four chunks of our own clients. Larger frames come from others and
/// seldom, and a connection in a small guest must not keep their room until it ends.
const KEPT_MAX: usize = 1 << 20;

/// A buffer that is filled behind and used up in front.
#[derive(Debug, Default)]
pub struct Inbox {
    buffer: Vec<u8>,
    used: usize,
}

impl Inbox {
    /// Everything that is there.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.used..]
    }

    /// Cuts `count` bytes off in front.
    pub fn consume(&mut self, count: usize) {
        self.used += count;
        if self.used == self.buffer.len() {
            self.buffer.clear();
            self.buffer.shrink_to(KEPT_MAX);
            self.used = 0;
        }
    }

    /// Reads once. `expected` is how long the item in front is known to be at least: bulk items are read to their end and hardly beyond,
    /// so that what has to be moved to the front of the buffer stays small. 0 is the end of the file.
    pub fn fill(&mut self, fd: BorrowedFd, expected: usize) -> io::Result<usize> {
        let missing = expected.saturating_sub(self.bytes().len());
        let limit = if missing == 0 { READ_BYTES } else { missing + AHEAD_BYTES };
        if self.used > 0 && self.buffer.capacity() - self.buffer.len() < limit {
            self.buffer.drain(..self.used);
            self.used = 0;
        }
        fd::read_append(fd, &mut self.buffer, limit)
    }

    /// Puts bytes behind what is there, as if they had been read.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.used > 0 && self.buffer.capacity() - self.buffer.len() < bytes.len() {
            self.buffer.drain(..self.used);
            self.used = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inbox_that_is_never_empty_gives_its_used_front_back() {
        let mut inbox = Inbox::default();
        inbox.push(b"x");
        for _ in 0..1000 {
            inbox.push(&[7; 16 << 10]);
            inbox.consume(16 << 10);
        }
        assert_eq!(inbox.bytes(), [7]);
        assert!(inbox.buffer.capacity() <= 64 << 10, "{} bytes for one", inbox.buffer.capacity());
    }
}
