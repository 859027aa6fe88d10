//! The side with the process.

use std::io;

use crate::shell::flow::{Receiver, Sender};
use crate::shell::message::{self, Message, STDERR, STDIN, STDOUT};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    Stdin(&'a [u8]),
    StdinEnd,
    /// Of the window, in characters. Of no interest without a terminal.
    Resize {
        columns: u16,
        rows: u16,
    },
    /// The process is to be killed, and `abandon` says that it was.
    Abort,
}

/// One shell, seen from here. What makes bytes makes one whole binary message each time.
#[derive(Debug)]
pub struct Server {
    stdin: Receiver,
    stdout: Sender,
    stderr: Sender,
    /// Whatever comes is of no interest: an abort has come, or an exit was sent.
    over: bool,
    exited: bool,
}

impl Default for Server {
    fn default() -> Server {
        Server {
            stdin: Receiver::new(STDIN),
            stdout: Sender::new(STDOUT),
            stderr: Sender::new(STDERR),
            over: false,
            exited: false,
        }
    }
}

impl Server {
    /// What a binary message means. `None`: nothing. `InvalidData`: the process is to be killed.
    pub fn receive<'a>(&mut self, bytes: &'a [u8]) -> io::Result<Option<Event<'a>>> {
        let Some(message) = message::decode(bytes).filter(|_| !self.over) else { return Ok(None) };
        Ok(match message {
            Message::Data { stream: STDIN, payload } => {
                self.stdin.arrived(payload.len())?;
                Some(Event::Stdin(payload))
            }
            Message::End { stream: STDIN } => self.stdin.end().then_some(Event::StdinEnd),
            Message::Ack { stream: STDOUT, count } => {
                self.stdout.acknowledged(count);
                None
            }
            Message::Ack { stream: STDERR, count } => {
                self.stderr.acknowledged(count);
                None
            }
            Message::Size { columns, rows } => Some(Event::Resize { columns, rows }),
            Message::Abort => {
                self.over = true;
                Some(Event::Abort)
            }
            _ => None,
        })
    }

    /// Bytes that the next `stdout` takes.
    pub fn stdout_room(&self) -> usize {
        self.stdout.room()
    }

    pub fn stderr_room(&self) -> usize {
        self.stderr.room()
    }

    /// Output: as much of the front of `bytes` as there is room for. `None`: of nothing.
    pub fn stdout(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        self.stdout.data(bytes)
    }

    pub fn stderr(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        self.stderr.data(bytes)
    }

    /// The end of an output, after all of it was sent. `None`: it was said before.
    pub fn stdout_end(&mut self) -> Option<Vec<u8>> {
        self.stdout.end()
    }

    pub fn stderr_end(&mut self) -> Option<Vec<u8>> {
        self.stderr.end()
    }

    /// The process has taken, or will never want, so many bytes of its input.
    pub fn stdin_consumed(&mut self, count: usize) {
        self.stdin.consumed(count);
    }

    /// An acknowledgement, if one is due.
    pub fn ack(&mut self) -> Option<Vec<u8>> {
        if self.over { None } else { self.stdin.ack() }
    }

    /// The end of the process after all of its output was sent: the ends of the streams that were not said yet, and the exit. The close of
    /// the connection comes after it. Nothing when an exit was sent before.
    pub fn exit(&mut self, success: bool) -> Vec<Vec<u8>> {
        if self.exited {
            return Vec::new();
        }
        let ends = [self.stdout.end(), self.stderr.end()];
        ends.into_iter().flatten().chain(self.last(success)).collect()
    }

    /// The end of a process that was killed because its shell went wrong: its streams do not end. `None`: an exit was sent before.
    pub fn abandon(&mut self) -> Option<Vec<u8>> {
        self.last(false)
    }

    fn last(&mut self, success: bool) -> Option<Vec<u8>> {
        let first = !self.exited;
        (self.over, self.exited) = (true, true);
        first.then(|| Message::Exit { success }.encode())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_ends_once_and_nothing_comes_behind_it() {
        let mut server = Server::default();
        assert_eq!(server.receive(&[0, 0, b'x']).expect("data"), Some(Event::Stdin(b"x")));
        assert_eq!(server.receive(&[0, 0]).expect("the end"), Some(Event::StdinEnd));
        assert_eq!(server.receive(&[0, 0]).expect("the end again"), None);
        assert_eq!(server.receive(&[0, 0, 1]).map_err(|error| error.kind()), Err(io::ErrorKind::InvalidData));
    }

    #[test]
    fn an_exit_ends_what_has_not_ended_and_comes_once() {
        let mut server = Server::default();
        assert_eq!(server.stderr_end(), Some(vec![0, 2]));
        assert_eq!(server.exit(true), [vec![0, 1], vec![5, 0]]);
        assert_eq!((server.exit(true), server.abandon()), (vec![], None));
        assert_eq!(server.receive(&[4]).expect("too late"), None);
    }

    #[test]
    fn an_abort_is_answered_without_ends_of_streams() {
        let mut server = Server::default();
        assert_eq!(server.receive(&[4]).expect("an abort"), Some(Event::Abort));
        assert_eq!(server.receive(&[0, 0, 1]).expect("ignored"), None);
        assert_eq!((server.abandon(), server.abandon()), (Some(vec![5, 1]), None));
    }

    #[test]
    fn what_only_a_server_says_is_ignored_here() {
        let mut server = Server::default();
        for bytes in [&[0, 1, 1][..], &[0, 2, 1], &[0, 1], &[1, 0, 0, 0, 0, 1], &[5, 0]] {
            assert_eq!(server.receive(bytes).expect("ignored"), None, "{bytes:?}");
        }
        let size = server.receive(&[3, 0, 100, 0, 50]).expect("a size");
        assert_eq!(size, Some(Event::Resize { columns: 100, rows: 50 }));
    }
}
