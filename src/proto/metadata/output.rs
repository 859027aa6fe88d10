//! One stream of what a program says, until its end.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use crate::exec::tree::LOOK_EVERY;
use crate::sys::fd;
use crate::sys::file::EIO;

/// What one read has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    Nothing,
    Bytes(usize),
    End,
}

/// Our end of a pipe or a terminal.
#[derive(Debug, Default)]
pub struct Output {
    rd: Option<OwnedFd>,
    /// Nobody has the terminal open: when to look whether somebody has it again. Meanwhile it would be ready all the time.
    look_at: Option<Instant>,
}

impl Output {
    pub fn of(rd: OwnedFd) -> Output {
        Output { rd: Some(rd), look_at: None }
    }

    /// Whether something may still come.
    pub fn is_open(&self) -> bool {
        self.rd.is_some()
    }

    /// What to poll for reading now.
    pub fn watch(&self, now: Instant, is_running: bool) -> Option<BorrowedFd<'_>> {
        let rests = is_running && self.look_at.is_some_and(|at| now < at);
        self.rd.as_ref().filter(|_| !rests).map(AsFd::as_fd)
    }

    /// When to ask `watch` again, though nothing happens.
    pub fn look_at(&self) -> Option<Instant> {
        self.look_at
    }

    /// Reads once. A terminal that nobody has open gives EIO; while its program runs that is no end, because it may open `/dev/tty` again.
    pub fn read(&mut self, into: &mut [u8], now: Instant, is_running: bool) -> Found {
        let Some(rd) = &self.rd else { return Found::Nothing };
        self.look_at = None;
        match fd::read(rd.as_fd(), into) {
            Ok(count @ 1..) => Found::Bytes(count),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Found::Nothing,
            Err(error) if error.raw_os_error() == Some(EIO) && is_running => {
                self.look_at = Some(now + LOOK_EVERY);
                Found::Nothing
            }
            Ok(_) | Err(_) => {
                self.rd = None;
                Found::End
            }
        }
    }
}
