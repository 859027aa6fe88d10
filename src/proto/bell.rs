//! A descriptor by which one thread wakes another one out of poll(2).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::sys::fd;

/// Rung once or often, it is readable until it is cleared.
#[derive(Debug)]
pub struct Bell {
    rd: OwnedFd,
    wr: OwnedFd,
}

impl Bell {
    pub fn new() -> io::Result<Bell> {
        let (rd, wr) = fd::pipe()?;
        fd::never_block(rd.as_fd())?;
        fd::never_block(wr.as_fd())?;
        Ok(Bell { rd, wr })
    }

    pub fn ring(&self) {
        // A full pipe is readable already.
        let _ = fd::write(self.wr.as_fd(), b"!");
    }

    /// Readable when it was rung.
    pub fn watch(&self) -> BorrowedFd<'_> {
        self.rd.as_fd()
    }

    /// To be called before the state is looked at that it tells of.
    pub fn clear(&self) {
        let mut bytes = [0; 64];
        while fd::read(self.rd.as_fd(), &mut bytes).is_ok_and(|count| count == bytes.len()) {}
    }
}
