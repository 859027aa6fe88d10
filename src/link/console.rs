//! Where the text goes that comes beside the frames.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::stream::inbox::Inbox;
use crate::sys::file::{self, O_NOCTTY, O_NONBLOCK, O_WRONLY};
use crate::sys::{fd, tty};

/// Bytes of text that wait for a reader who does not read. What comes beyond is lost and counted: a line must not stop for its console.
const HELD_MAX: usize = 1 << 20;

/// Bytes of one write: as many as poll(2) promises to be free in a pipe that can be written, so that a write cannot block.
const WRITE_BYTES: usize = 4096;

/// A file, a terminal or a pipe, whose blocking mode is shared with others and left as it is.
#[derive(Debug)]
pub struct Console {
    out: OwnedFd,
    held: Inbox,
    lost: u64,
    broken: bool,
}

impl Console {
    pub fn new(out: OwnedFd) -> Console {
        // What poll(2) promises of pipes it does not of terminals, where somebody may hold the output up. An open file of our own need
        // not block; one that cannot be had so is written as it is.
        let own =
            tty::settings(out.as_fd()).and_then(|_| file::open_again(out.as_fd(), O_WRONLY | O_NOCTTY | O_NONBLOCK));
        let out = own.unwrap_or(out);
        Console { out, held: Inbox::default(), lost: 0, broken: false }
    }

    /// What to poll for room; `None` when nothing waits.
    pub fn waits(&self) -> Option<BorrowedFd<'_>> {
        let nothing = self.held.bytes().is_empty() && self.lost == 0;
        (!nothing && !self.broken).then(|| self.out.as_fd())
    }

    /// Adds text, and writes what can be written at once.
    pub fn push(&mut self, text: &[u8]) {
        self.write();
        // Where text is missing it says so, before any that came later: until then that is missing too.
        if self.lost > 0 && self.held.bytes().len() <= HELD_MAX / 2 {
            let note = format!("\n[lodger: here {} bytes of console text were lost]\n", std::mem::take(&mut self.lost));
            self.held.push(note.as_bytes());
        }
        let room = if self.lost > 0 { 0 } else { HELD_MAX.saturating_sub(self.held.bytes().len()) };
        let (kept, lost) = text.split_at(text.len().min(room));
        self.held.push(kept);
        self.lost += lost.len() as u64;
        self.write();
    }

    fn write(&mut self) {
        while !self.held.bytes().is_empty() && !self.broken {
            match fd::wait_for(self.out.as_fd(), fd::WRITE, Some(Duration::ZERO)) {
                Ok(ready) if ready.writable => {}
                _ => return,
            }
            let part = &self.held.bytes()[..self.held.bytes().len().min(WRITE_BYTES)];
            match fd::write(self.out.as_fd(), part) {
                Ok(count) => self.held.consume(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Nobody reads it any more, or the disk is full: the channels go on.
                Err(_) => self.broken = true,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A console behind a pipe that is full, and the pipe's end that nobody reads yet.
    fn full() -> (Console, OwnedFd) {
        let (read, write) = fd::pipe().expect("a pipe");
        fd::never_block(read.as_fd()).expect("a pipe");
        let mut console = Console::new(write);
        while console.waits().is_none() {
            console.push(&[b'-'; WRITE_BYTES]);
        }
        console.held = Inbox::default();
        (console, read)
    }

    /// Lets the reader catch up: what was held beyond the pipe's own text.
    fn catch_up(console: &mut Console, read: &OwnedFd) -> Vec<u8> {
        let (mut all, mut piece) = (Vec::new(), vec![0; 64 << 10]);
        while let Ok(count) = fd::read(read.as_fd(), &mut piece) {
            all.extend(piece[..count].iter().filter(|byte| **byte != b'-'));
            console.push(&[]);
        }
        all
    }

    #[test]
    fn as_much_text_as_the_limit_waits_and_nothing_is_lost() {
        let (mut console, read) = full();
        console.push(&vec![b'x'; HELD_MAX - 1]);
        console.push(b"x");
        assert_eq!((console.held.bytes().len(), console.lost), (HELD_MAX, 0));
        assert!(catch_up(&mut console, &read) == vec![b'x'; HELD_MAX]);
        console.push(b"more");
        assert_eq!(catch_up(&mut console, &read), b"more");
    }

    #[test]
    fn text_past_the_limit_is_counted_and_told_where_it_is_missing() {
        let (mut console, read) = full();
        console.push(&vec![b'x'; HELD_MAX + 1]);
        assert_eq!((console.held.bytes().len(), console.lost), (HELD_MAX, 1));
        console.push(b"yy");
        assert_eq!((console.held.bytes().len(), console.lost), (HELD_MAX, 3));
        let mut told = catch_up(&mut console, &read);
        assert_eq!((console.lost, console.waits().is_none()), (0, true));
        console.push(b"more");
        told.extend(catch_up(&mut console, &read));
        assert!(told[..HELD_MAX] == vec![b'x'; HELD_MAX]);
        let rest = String::from_utf8_lossy(&told[HELD_MAX..]);
        assert_eq!(rest, "\n[lodger: here 3 bytes of console text were lost]\nmore");
    }
}
