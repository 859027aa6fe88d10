//! Connections that rest between two requests: when there are too many, the one that has rested longest makes room for a newer one.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::sys::fd;

#[derive(Default)]
struct Bed {
    /// The one that has rested longest is in front.
    connections: VecDeque<(u64, OwnedFd)>,
    /// Of the one that came last.
    number: u64,
    /// Wants to know when somebody rests.
    caller: Option<Arc<OwnedFd>>,
}

/// Who rests.
#[derive(Default)]
pub struct Rest {
    bed: Mutex<Bed>,
}

impl Rest {
    /// A connection rests from now on, under the number that is returned.
    ///
    /// # Errors
    /// Of dup(2).
    pub fn begin(&self, connection: BorrowedFd) -> io::Result<u64> {
        let connection = connection.try_clone_to_owned()?;
        let mut bed = self.bed();
        bed.number += 1;
        let number = bed.number;
        bed.connections.push_back((number, connection));
        if let Some(caller) = bed.caller.take() {
            let _ = fd::write(caller.as_fd(), b"x");
        }
        Ok(number)
    }

    /// It rests no longer; false when it was cut meanwhile.
    pub fn end(&self, number: u64) -> bool {
        let mut bed = self.bed();
        let before = bed.connections.len();
        bed.connections.retain(|(other, _)| *other != number);
        bed.connections.len() < before
    }

    /// Whether somebody rests. If not, a byte is written to `caller` when somebody does.
    pub fn is_anybody(&self, caller: &Arc<OwnedFd>) -> bool {
        let mut bed = self.bed();
        let is_anybody = !bed.connections.is_empty();
        bed.caller = (!is_anybody).then(|| Arc::clone(caller));
        is_anybody
    }

    /// Cuts the connection that has rested longest.
    pub fn cut_longest(&self) {
        if let Some((_, connection)) = self.bed().connections.pop_front() {
            let _ = fd::shutdown(connection.as_fd());
        }
    }

    fn bed(&self) -> MutexGuard<'_, Bed> {
        self.bed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
