//! The side with the keyboard.

use std::io;

use crate::shell::flow::{Receiver, Sender};
use crate::shell::message::{self, Message, STDERR, STDIN, STDOUT};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    Stdout(&'a [u8]),
    Stderr(&'a [u8]),
    StdoutEnd,
    StderrEnd,
    /// It is over, and so are streams that had not ended; nothing comes after it. A connection that is lost before is an internal error.
    Exit {
        success: bool,
    },
}

/// One shell, seen from here. What makes bytes makes one whole binary message each time.
#[derive(Debug)]
pub struct Client {
    stdin: Sender,
    stdout: Receiver,
    stderr: Receiver,
    /// An exit has come, or an abort was sent.
    over: bool,
}

impl Default for Client {
    fn default() -> Client {
        Client { stdin: Sender::new(STDIN), stdout: Receiver::new(STDOUT), stderr: Receiver::new(STDERR), over: false }
    }
}

impl Client {
    /// What a binary message means. `None`: nothing. `InvalidData`: the shell is lost.
    pub fn receive<'a>(&mut self, bytes: &'a [u8]) -> io::Result<Option<Event<'a>>> {
        let Some(message) = message::decode(bytes).filter(|_| !self.over) else { return Ok(None) };
        Ok(match message {
            Message::Data { stream: STDOUT, payload } => {
                self.stdout.arrived(payload.len())?;
                Some(Event::Stdout(payload))
            }
            Message::Data { stream: STDERR, payload } => {
                self.stderr.arrived(payload.len())?;
                Some(Event::Stderr(payload))
            }
            Message::End { stream: STDOUT } => self.stdout.end().then_some(Event::StdoutEnd),
            Message::End { stream: STDERR } => self.stderr.end().then_some(Event::StderrEnd),
            Message::Ack { stream: STDIN, count } => {
                self.stdin.acknowledged(count);
                None
            }
            Message::Exit { success } => {
                self.over = true;
                Some(Event::Exit { success })
            }
            _ => None,
        })
    }

    /// Bytes that the next `data` takes.
    pub fn room(&self) -> usize {
        if self.over { 0 } else { self.stdin.room() }
    }

    /// Input: as much of the front of `bytes` as there is `room` for. `None`: of nothing.
    pub fn data(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        if self.over { None } else { self.stdin.data(bytes) }
    }

    /// The end of the input. `None`: it was said before, or is of no interest any more.
    pub fn end(&mut self) -> Option<Vec<u8>> {
        if self.over { None } else { self.stdin.end() }
    }

    /// Somebody has taken so many bytes of an output.
    pub fn stdout_consumed(&mut self, count: usize) {
        self.stdout.consumed(count);
    }

    pub fn stderr_consumed(&mut self, count: usize) {
        self.stderr.consumed(count);
    }

    /// An acknowledgement, if one is due. Ask until there is none.
    pub fn ack(&mut self) -> Option<Vec<u8>> {
        if self.over { None } else { self.stdout.ack().or_else(|| self.stderr.ack()) }
    }

    /// The size of the window.
    pub fn size(&self, columns: u16, rows: u16) -> Vec<u8> {
        Message::Size { columns, rows }.encode()
    }

    /// Ends the program; after that the connection is dropped without a close. `None`: it has ended already.
    pub fn abort(&mut self) -> Option<Vec<u8>> {
        let first = !self.over;
        self.over = true;
        first.then(|| Message::Abort.encode())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_needs_no_ends_of_streams() {
        let mut client = Client::default();
        assert_eq!(client.receive(&[0, 1, b'x']).expect("data"), Some(Event::Stdout(b"x")));
        assert_eq!(client.receive(&[5, 3]).expect("an exit"), Some(Event::Exit { success: false }));
        // Whatever comes now is too late, even what would be wrong.
        assert_eq!(client.receive(&[5, 0]).expect("ignored"), None);
        assert_eq!(client.receive(&[0; 20_000]).expect("ignored"), None);
        assert_eq!((client.abort(), client.end(), client.data(b"x")), (None, None, None));
    }

    #[test]
    fn streams_end_once_and_the_shell_goes_on() {
        let mut client = Client::default();
        assert_eq!(client.receive(&[0, 2]).expect("an end"), Some(Event::StderrEnd));
        assert_eq!(client.receive(&[0, 2]).expect("an end again"), None);
        assert_eq!(client.receive(&[0, 1]).expect("an end"), Some(Event::StdoutEnd));
        assert!(client.data(b"x").is_some());
        assert!(client.receive(&[0, 1, 1]).is_err());
    }

    #[test]
    fn what_only_a_client_says_is_ignored_here() {
        let mut client = Client::default();
        for bytes in [&[0, 0, 1][..], &[0, 0], &[1, 1, 0, 0, 0, 1], &[3, 0, 1, 0, 1], &[4]] {
            assert_eq!(client.receive(bytes).expect("ignored"), None, "{bytes:?}");
        }
        assert_eq!(client.size(100, 50), [3, 0, 100, 0, 50]);
        assert_eq!((client.abort(), client.abort()), (Some(vec![4]), None));
    }
}
