//! Frames that wait to be written to a client. Each is kept whole until its last byte is written, because it may have to be written again
//! to the next connection of the same shim.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;

use crate::proto::clear::frame::{self, HEADER_BYTES, Kind};
use crate::sys::fd;

/// What a frame costs beside its bytes, in bytes: a peer that reads nothing must not make a million small ones wait.
const FRAME_COST: usize = 96;

/// Buffers of output that are kept for the next one: the C library would give each back to the kernel and fault it in again.
const SPARE_MAX: usize = 4;

/// Bytes of a payload whose buffer is worth keeping.
const SPARE_BYTES: usize = 16 << 10;

#[derive(Debug)]
struct Waiting {
    header: [u8; HEADER_BYTES],
    payload: Vec<u8>,
    /// Bytes of both that are written.
    written: usize,
}

impl Waiting {
    fn cost(&self) -> usize {
        self.payload.len() + FRAME_COST
    }

    fn is_stream(&self) -> bool {
        self.header[6] == Kind::Stream as u8
    }
}

/// Frames in order.
#[derive(Debug, Default)]
pub struct Outgoing {
    frames: VecDeque<Waiting>,
    spare: Vec<Vec<u8>>,
    cost: usize,
}

impl Outgoing {
    /// Bytes of memory that the frames cost, roughly.
    pub fn cost(&self) -> usize {
        self.cost
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub fn push(&mut self, header: [u8; HEADER_BYTES], payload: Vec<u8>) {
        let frame = Waiting { header, payload, written: 0 };
        self.cost += frame.cost();
        self.frames.push_back(frame);
    }

    /// Reads at most `limit` bytes into a stream frame. 0 is the end of the file, and makes none.
    pub fn read_from(&mut self, fd: BorrowedFd, opcode: u8, limit: usize) -> io::Result<usize> {
        let mut payload = self.spare.pop().unwrap_or_default();
        let result = fd::read_append(fd, &mut payload, limit);
        match result {
            Ok(count @ 1..) => {
                if count < SPARE_BYTES {
                    // What is small waits without the room of what is large.
                    let small = payload.clone();
                    self.keep(payload);
                    payload = small;
                }
                self.push(frame::header(Kind::Stream, opcode, count), payload);
            }
            _ => self.keep(payload),
        }
        result
    }

    /// Whether buffers are kept for more output.
    pub fn has_spare(&self) -> bool {
        !self.spare.is_empty()
    }

    /// Gives the buffers back that wait for more.
    pub fn trim(&mut self) {
        self.spare.clear();
    }

    fn keep(&mut self, mut payload: Vec<u8>) {
        if self.spare.len() < SPARE_MAX && payload.capacity() >= SPARE_BYTES {
            payload.clear();
            self.spare.push(payload);
        }
    }

    /// Writes as much as fits; how many bytes that were. Errors of write(2); `WouldBlock` is none.
    pub fn write_to(&mut self, fd: BorrowedFd) -> io::Result<usize> {
        let mut total = 0;
        while !self.frames.is_empty() {
            let mut parts = Vec::with_capacity(fd::VECTORS_MAX);
            for frame in self.frames.iter().take(fd::VECTORS_MAX / 2) {
                parts.push(IoSlice::new(&frame.header[frame.written.min(HEADER_BYTES)..]));
                parts.push(IoSlice::new(&frame.payload[frame.written.saturating_sub(HEADER_BYTES)..]));
            }
            match fd::write_vectored(fd, &parts) {
                Ok(count) => {
                    self.written(count);
                    total += count;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(total)
    }

    fn written(&mut self, mut count: usize) {
        while let Some(first) = self.frames.front_mut() {
            let left = HEADER_BYTES + first.payload.len() - first.written;
            if count < left {
                first.written += count;
                return;
            }
            count -= left;
            if let Some(frame) = self.frames.pop_front() {
                self.cost -= frame.cost();
                self.keep(frame.payload);
            }
        }
    }

    /// What is left for another connection of the same shim: all output, and a frame that was cut is whole again. The end of the process,
    /// which is known, is told once more, and what was asked on the first connection is not answered on the second.
    pub fn for_another(mut self) -> Outgoing {
        self.frames.retain(Waiting::is_stream);
        self.frames.iter_mut().for_each(|frame| frame.written = 0);
        let cost = self.frames.iter().map(Waiting::cost).sum();
        Outgoing { frames: self.frames, spare: Vec::new(), cost }
    }

    /// Puts the frames of `other` behind these.
    pub fn append(&mut self, mut other: Outgoing) {
        self.cost += other.cost;
        self.frames.append(&mut other.frames);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::proto::clear::frame::{HYPER, STDOUT};

    #[test]
    fn a_frame_that_was_cut_goes_whole_to_the_next_connection_and_answers_do_not() {
        let (first, _unread) = UnixStream::pair().expect("a socket pair");
        first.set_nonblocking(true).expect("a socket");
        let (mut program, output) = UnixStream::pair().expect("a socket pair");
        program.write_all(b"small").expect("room");
        let mut outgoing = Outgoing::default();
        assert_eq!(outgoing.read_from(output.as_fd(), STDOUT, 64 << 10).expect("bytes"), 5);
        outgoing.write_to(first.as_fd()).expect("room");
        assert!(outgoing.is_empty() && outgoing.cost() == 0);
        let large = vec![b'x'; 4 << 20];
        outgoing.push(frame::header(Kind::Response, HYPER, 0), Vec::new());
        outgoing.push(frame::header(Kind::Stream, STDOUT, large.len()), large.clone());
        outgoing.push(frame::header(Kind::Response, HYPER, 0), Vec::new());
        outgoing.push(frame::header(Kind::Notification, 0, 1), vec![7]);
        outgoing.write_to(first.as_fd()).expect("a socket");
        assert!(outgoing.frames[0].written > HEADER_BYTES, "it is cut");
        let mut rest = Outgoing::default();
        rest.append(outgoing.for_another());
        assert_eq!(rest.cost(), large.len() + FRAME_COST);
        let (second, mut reader) = UnixStream::pair().expect("a socket pair");
        let written = std::thread::spawn(move || rest.write_to(second.as_fd()));
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).expect("bytes");
        written.join().expect("no panic").expect("it is read");
        let expected = [b"\0\x02\x03\0\0\0\x02\x01\0\x40\0\0", &large[..]].concat();
        assert!(bytes == expected, "{} bytes", bytes.len());
    }
}
