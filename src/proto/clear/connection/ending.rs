//! The end of a connection: what is still to be written, what is still to be taken, and what is given back.

use std::io;
use std::time::{Duration, Instant};

use crate::engine::Ended;
use crate::proto::clear::connection::Connection;
use crate::proto::clear::frame::{self, Decoded, Kind};
use crate::sys::fd::{self, PollSet};

/// How long a client that has ended its direction may leave our last answers unread.
const LINGER: Duration = Duration::from_secs(10);

/// What is still read of a client that has gone, in bytes: the kernel holds 208 KiB of a unix socket's and 256 KiB of a vsock's, unless
/// somebody has raised that.
const LAST_MAX: usize = 1 << 20;

impl Connection<'_> {
    /// Writes the last answers, for as long as the client takes some of them, the agent stays, no other connection wants to go on and nothing
    /// waits for them for too long.
    pub fn flush(&mut self) -> io::Result<()> {
        let mut set = PollSet::default();
        while !self.outgoing.is_empty() && !self.is_replaced() {
            set.clear();
            set.watch(self.circumstances.stop, fd::READ);
            set.watch(self.stream.output(), fd::WRITE);
            let bell = self.bell.as_ref().map(|bell| set.watch(bell.watch(), fd::READ));
            let left = self.afterwards.as_ref().map(|after| after.deadline.saturating_duration_since(Instant::now()));
            set.wait(left.into_iter().chain([LINGER]).min())?;
            self.stopped = set.ready(0).readable;
            if bell.is_some_and(|bell| set.ready(bell).readable) {
                self.bell.iter().for_each(|bell| bell.clear());
            } else if self.stopped || !set.ready(1).writable || left.is_some_and(|left| left.is_zero()) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.write()?;
        }
        Ok(())
    }

    /// Takes what the client had sent before it went, while there was no room for its input or for our answers: the input, and that it takes its
    /// leave. It is what has been read already, and what the kernel has of a connection whose other end is closed; one that only reads no more
    /// may go on and on.
    fn take_last_frames(&mut self) {
        if self.broken.is_some() || self.stopped {
            return;
        }
        let mut taken = 0;
        while let Some(shim) = &mut self.shim {
            match frame::decode(self.inbox.bytes()) {
                Ok(Decoded::Frame(header)) => {
                    let end = header.payload_start + header.payload_bytes;
                    match (header.kind, header.opcode) {
                        (Kind::Stream, frame::STDIN) => {
                            shim.take_last_input(&self.inbox.bytes()[header.payload_start..end]);
                        }
                        (Kind::Command, frame::DISCONNECT_SHIM) => {
                            let registry = &self.circumstances.settings.clear;
                            self.shim.take().into_iter().for_each(|shim| shim.disconnect(registry));
                        }
                        _ => {}
                    }
                    self.inbox.consume(end);
                }
                Ok(Decoded::Incomplete { expected }) if taken < LAST_MAX => {
                    match self.inbox.fill(self.stream.input(), expected) {
                        Ok(0) | Err(_) => return,
                        Ok(count) => taken += count,
                    }
                }
                Ok(Decoded::Incomplete { .. }) | Err(_) => return,
            }
        }
    }

    /// Gives its process back, if it is the shim of one, for another connection to go on with; when the agent ends, it ends too.
    pub fn lose_shim(&mut self) {
        if let Some(shim) = self.shim.take() {
            let outgoing = std::mem::take(&mut self.outgoing);
            if self.stopped { shim.hang_up() } else { shim.lose(outgoing, self.registry()) }
        }
    }

    /// Gives back what the connection has of the agent, and closes it.
    pub fn leave(mut self) -> Ended {
        self.afterwards.take().into_iter().for_each(|after| (after.work)());
        self.take_last_frames();
        self.lose_shim();
        self.stream.end();
        self.broken.map_or(Ended::Regular, Ended::Broken)
    }
}
