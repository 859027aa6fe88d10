//! What waits to be written to a peer.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;

use crate::sys::fd;

/// Bytes kept free in front of bulk data for the head of its message, which is known only after the data has been read.
const HEADROOM: usize = 96;

/// Small messages are joined in one piece up to this many bytes.
const JOIN_BYTES: usize = 16 << 10;

/// Bulk data of up to this many bytes is joined to what waits before it after all: a copy is cheaper than a buffer of its own, and a peer
/// that reads nothing must not make thousands of those wait.
const SMALL_BYTES: usize = 4 << 10;

/// Buffers of bulk pieces that are kept for the next one: the C library would give each back to the kernel and fault it in again.
const SPARE_MAX: usize = 4;

/// Bytes of room of the largest buffer that is kept: holds a chunk however it grew. Those of larger answers go back.
const SPARE_BYTES: usize = 1 << 20;

/// A buffer that waits behind other pieces is less than so many times as large as what it holds, or that is copied into one of its size:
/// a program may fill a large buffer by a little at a time, and a peer that reads slowly must not make hundreds of those wait.
const SPARSE: usize = 4;

/// A piece: `bytes[start..]` is to be written.
#[derive(Debug, Default)]
struct Piece {
    bytes: Vec<u8>,
    start: usize,
    bulk: bool,
}

/// Messages in order. Bulk data is read into its place and, but for a little of it, never copied.
#[derive(Debug, Default)]
pub struct Outbox {
    pieces: VecDeque<Piece>,
    spare: Vec<Vec<u8>>,
    /// Bytes to write.
    length: usize,
    /// A bulk piece that has its data and waits for `seal`.
    open: Option<Piece>,
}

impl Outbox {
    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.length
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Adds a message.
    pub fn push(&mut self, message: &[u8]) {
        self.length += message.len();
        match self.pieces.back_mut() {
            Some(last) if !last.bulk && last.bytes.len() + message.len() <= JOIN_BYTES => {
                last.bytes.extend_from_slice(message);
            }
            _ => self.pieces.push_back(Piece { bytes: message.to_vec(), start: 0, bulk: false }),
        }
    }

    /// Lets `read` append bulk data to a buffer; `seal` makes it a message, `discard` forgets it.
    pub fn fill<T>(&mut self, read: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let mut bytes = self.spare.pop().unwrap_or_default();
        bytes.clear();
        bytes.resize(HEADROOM, 0);
        let result = read(&mut bytes);
        self.open = Some(Piece { bytes, start: HEADROOM, bulk: true });
        result
    }

    /// Puts what was read between `head` and `tail` and adds it.
    pub fn seal(&mut self, head: &[u8], tail: &[u8]) {
        let Some(mut piece) = self.open.take() else { return };
        if piece.bytes.len() - HEADROOM <= SMALL_BYTES {
            [head, &piece.bytes[HEADROOM..], tail].into_iter().for_each(|part| self.push(part));
            return self.keep(piece.bytes);
        }
        match HEADROOM.checked_sub(head.len()) {
            Some(start) => {
                piece.bytes[start..HEADROOM].copy_from_slice(head);
                piece.start = start;
            }
            // A head as long as this has a long name in it; the message goes out in two pieces.
            None => self.push(head),
        }
        piece.bytes.extend_from_slice(tail);
        self.length += piece.bytes.len() - piece.start;
        if !self.pieces.is_empty() && piece.bytes.len() <= piece.bytes.capacity() / SPARSE {
            let exact = piece.bytes[piece.start..].to_vec();
            self.keep(std::mem::replace(&mut piece.bytes, exact));
            (piece.start, piece.bulk) = (0, false);
        }
        self.pieces.push_back(piece);
    }

    /// Forgets what `fill` read.
    pub fn discard(&mut self) {
        if let Some(piece) = self.open.take() {
            self.keep(piece.bytes);
        }
    }

    /// Whether buffers are kept for more bulk data.
    pub fn has_spare(&self) -> bool {
        !self.spare.is_empty()
    }

    /// Gives those buffers back.
    pub fn trim(&mut self) {
        self.spare.clear();
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.pieces.clear();
        self.length = 0;
    }

    fn keep(&mut self, buffer: Vec<u8>) {
        if self.spare.len() < SPARE_MAX && buffer.capacity() <= SPARE_BYTES {
            self.spare.push(buffer);
        }
    }

    /// Writes as much as fits. Errors of write(2); `WouldBlock` is none.
    pub fn write_to(&mut self, fd: BorrowedFd) -> io::Result<()> {
        while !self.pieces.is_empty() {
            let parts = self.pieces.iter().take(fd::VECTORS_MAX).map(|piece| IoSlice::new(&piece.bytes[piece.start..]));
            let parts: Vec<IoSlice> = parts.collect();
            match fd::write_vectored(fd, &parts) {
                Ok(count) => self.written(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn written(&mut self, mut count: usize) {
        self.length -= count;
        while let Some(first) = self.pieces.front_mut() {
            let left = first.bytes.len() - first.start;
            if count < left {
                first.start += count;
                return;
            }
            count -= left;
            if let Some(piece) = self.pieces.pop_front()
                && piece.bulk
            {
                self.keep(piece.bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn messages_and_bulk_data_come_out_in_order() {
        let (a, mut b) = UnixStream::pair().expect("a socket pair");
        let mut outbox = Outbox::default();
        outbox.push(b"one ");
        outbox.fill(|bytes| bytes.extend_from_slice(b"two"));
        outbox.discard();
        outbox.fill(|bytes| bytes.extend_from_slice(b"small"));
        outbox.seal(b"<", b"> ");
        let large = "x".repeat(SMALL_BYTES + 1);
        outbox.fill(|bytes| bytes.extend_from_slice(large.as_bytes()));
        outbox.seal(b"<", b"> ");
        outbox.push(b"three ");
        outbox.fill(|bytes| bytes.extend_from_slice(large.as_bytes()));
        outbox.seal(&[b'-'; HEADROOM + 1], b"");
        assert_eq!(outbox.len(), 4 + 8 + 3 + large.len() + 6 + HEADROOM + 1 + large.len());
        outbox.write_to(a.as_fd()).expect("the socket has room");
        assert!(outbox.is_empty());
        drop(a);
        let mut text = String::new();
        b.read_to_string(&mut text).expect("text");
        assert_eq!(text, format!("one <small> <{large}> three {}{large}", "-".repeat(HEADROOM + 1)));
    }

    #[test]
    fn small_bulk_data_waits_without_a_buffer_of_its_own() {
        let mut outbox = Outbox::default();
        for _ in 0..10_000 {
            outbox.fill(|bytes| bytes.push(b'x'));
            outbox.seal(b"<", b">");
        }
        let room: usize = outbox.pieces.iter().map(|piece| piece.bytes.capacity()).sum();
        assert_eq!(outbox.len(), 30_000);
        assert!(room <= 4 * JOIN_BYTES, "{room} bytes for 30,000");
    }

    #[test]
    fn buffers_that_wait_are_not_much_larger_than_what_they_hold() {
        let mut outbox = Outbox::default();
        let text = "x".repeat(SMALL_BYTES + 1);
        for _ in 0..256 {
            outbox.fill(|bytes| {
                bytes.reserve(256 << 10);
                bytes.extend_from_slice(text.as_bytes());
            });
            outbox.seal(b"<", b">");
        }
        let room: usize = outbox.pieces.iter().map(|piece| piece.bytes.capacity()).sum();
        assert!(room <= (512 << 10) + SPARSE * outbox.len(), "{room} bytes for {}", outbox.len());
        // The large buffer goes from one to the next.
        assert_eq!(outbox.spare.len(), 1);
    }
}
