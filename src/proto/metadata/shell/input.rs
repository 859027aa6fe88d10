//! What the host has typed, on its way into the program.

use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::exec::tree::LOOK_EVERY;
use crate::sys::fd;
use crate::sys::file::EIO;

/// What a terminal takes for the end of the input, at the beginning of a line; elsewhere it ends only the waiting for the rest of the line.
const END_OF_INPUT: u8 = 0x04;

/// How long a program on a terminal may still run when its input has ended, counted from when it last took some. Upstream kills it at once;
/// this is what a program needs that reads the end and tidies up, and no more than who hangs up would wait.
pub const END_GRACE: Duration = Duration::from_secs(5);

/// The input of one program. The credit of its stream bounds what waits.
#[derive(Debug)]
pub struct Input {
    /// `None`: it is closed, or the program wants no more.
    wr: Option<OwnedFd>,
    is_terminal: bool,
    waiting: Vec<u8>,
    /// Bytes at the end of `waiting` that are not the host's.
    own: usize,
    /// The host's last byte.
    last: Option<u8>,
    /// Behind what waits the input ends.
    ends: bool,
    /// It has ended, and the program has last taken some of it then.
    ended_at: Option<Instant>,
    /// Nobody has the terminal open: when to look whether somebody has it again.
    look_at: Option<Instant>,
}

impl Input {
    pub fn new(wr: Option<OwnedFd>, is_terminal: bool) -> Input {
        Input { wr, is_terminal, waiting: Vec::new(), own: 0, last: None, ends: false, ended_at: None, look_at: None }
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.waiting.extend_from_slice(bytes);
        self.last = bytes.last().copied().or(self.last);
    }

    pub fn end(&mut self, now: Instant) {
        self.ends = true;
        self.ended_at = Some(now);
    }

    /// What to poll for writing now.
    pub fn watch(&self, now: Instant) -> Option<BorrowedFd<'_>> {
        let rests = self.look_at.is_some_and(|at| now < at);
        self.wr.as_ref().filter(|_| !self.waiting.is_empty() && !rests).map(AsFd::as_fd)
    }

    /// When to ask `watch` again, though nothing happens.
    pub fn look_at(&self) -> Option<Instant> {
        self.look_at
    }

    /// When a program that still runs has had its time.
    pub fn deadline(&self) -> Option<Instant> {
        self.ended_at.filter(|_| self.is_terminal).map(|at| at + END_GRACE)
    }

    /// Gives the program as much as it takes. How many of the host's bytes are used up.
    pub fn feed(&mut self, now: Instant) -> usize {
        let mut used = 0;
        if let Some(wr) = self.watch(now) {
            let written = fd::write(wr, &self.waiting);
            self.look_at = None;
            match written {
                Ok(count) => used += self.take(count, now),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // The program may open `/dev/tty` again.
                Err(error) if self.is_terminal && error.raw_os_error() == Some(EIO) => {
                    self.look_at = Some(now + LOOK_EVERY);
                }
                // It wants no more of it.
                Err(_) => self.wr = None,
            }
        }
        if self.wr.is_none() {
            used += self.take(self.waiting.len(), now);
        }
        if self.ends && self.waiting.is_empty() {
            self.ends = false;
            if self.is_terminal {
                let begins_line = self.last.is_none_or(|last| matches!(last, b'\n' | b'\r' | END_OF_INPUT));
                self.own = if begins_line { 1 } else { 2 };
                self.waiting.resize(self.own, END_OF_INPUT);
            } else {
                self.wr = None;
            }
        }
        used
    }

    fn take(&mut self, count: usize, now: Instant) -> usize {
        self.waiting.drain(..count);
        if count > 0 {
            self.ended_at = self.ended_at.map(|_| now);
        }
        let own = self.own.saturating_sub(self.waiting.len());
        self.own -= own;
        count - own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(bytes: &[u8], is_terminal: bool) -> Vec<u8> {
        let (rd, wr) = fd::pipe().expect("a pipe");
        let now = Instant::now();
        let mut input = Input::new(Some(wr), is_terminal);
        input.push(bytes);
        input.end(now);
        let used: usize = (0..3).map(|_| input.feed(now)).sum();
        assert_eq!(used, bytes.len());
        let mut found = [0; 64];
        let count = fd::read(rd.as_fd(), &mut found).expect("what was typed");
        found[..count].to_vec()
    }

    #[test]
    fn the_end_is_typed_once_where_a_line_begins_and_else_twice() {
        for (bytes, wanted) in [
            (&b"abc\n"[..], &b"abc\n\x04"[..]),
            (b"abc\r", b"abc\r\x04"),
            (b"abc", b"abc\x04\x04"),
            (b"abc\x04", b"abc\x04\x04"),
            (b"", b"\x04"),
        ] {
            assert_eq!(typed(bytes, true), wanted);
        }
        assert_eq!(typed(b"abc", false), b"abc");
    }

    #[test]
    fn the_grace_begins_again_with_each_byte_that_is_taken() {
        let (_rd, wr) = fd::pipe().expect("a pipe");
        let start = Instant::now();
        let mut input = Input::new(Some(wr), true);
        input.push(b"x");
        assert_eq!(input.deadline(), None);
        input.end(start);
        assert_eq!(input.deadline(), Some(start + END_GRACE));
        let later = start + Duration::from_secs(3);
        input.feed(later);
        assert_eq!(input.deadline(), Some(later + END_GRACE));
        input.feed(later + Duration::from_secs(1));
        input.feed(later + Duration::from_secs(9));
        assert_eq!(input.deadline(), Some(later + Duration::from_secs(1) + END_GRACE));
    }
}
