//! Questions that cost the agent least, for who measures how long the answers take.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use crate::client::{Connection, Error};
use crate::sys::fd::{self, PollSet};
use crate::wire::file::{FileRequest, op};
use crate::wire::frame::Frame;

/// What ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The answer to the question of this number.
    Answer(u32),
    TimeOver,
    Interrupt,
}

impl Connection {
    /// Asks, without waiting for anything; gives the number of the question.
    pub fn ask(&mut self) -> u32 {
        let id = self.new_id();
        self.send(&Frame::FileOp(FileRequest { id, op: op::LSTAT, path: b"/".to_vec(), ..FileRequest::default() }));
        id
    }

    /// Waits for an answer until `deadline`, or until `interrupt` can be read.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn hear(&mut self, deadline: Instant, interrupt: BorrowedFd) -> Result<Heard, Error> {
        loop {
            self.outbox.write_to(self.stream.output()).map_err(Error::Lost)?;
            while let Some(frame) = self.next_frame()? {
                if let Frame::FileResp(response) = frame {
                    return Ok(Heard::Answer(response.id));
                }
            }
            let mut set = PollSet::default();
            set.watch(interrupt, fd::READ);
            let wants_room = if self.outbox.is_empty() { 0 } else { fd::WRITE };
            // A line only once, see `Stream::is_one`.
            set.watch(self.stream.input(), if self.stream.is_one() { fd::READ | wants_room } else { fd::READ });
            if !self.stream.is_one() {
                set.watch(self.stream.output(), wants_room);
            }
            set.wait(Some(deadline.saturating_duration_since(Instant::now()))).map_err(Error::Lost)?;
            if set.ready(0).readable {
                return Ok(Heard::Interrupt);
            }
            if set.ready(1).readable {
                self.fill()?;
            } else if Instant::now() >= deadline {
                return Ok(Heard::TimeOver);
            }
        }
    }
}
