//! Messages over one stream, for a poll loop: nothing here waits, and what is to be written waits in one place.
//!
//! Frames are the work of `tungstenite`. It reads the stream itself, but writes into our outbox and never to the stream, so that it is
//! visible how much waits, and no message is ever written half and half forgotten.

use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;

use tungstenite::Error;
use tungstenite::protocol::frame::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{self, WebSocketConfig, WebSocketContext};

use crate::stream::Stream;
use crate::stream::outbox::Outbox;
use crate::sys::fd;

/// Bytes of one read, at most; `tungstenite` writes zeroes over that much room before each.
const READ_BYTES: usize = 16 << 10;

/// Reads of one `receive`. A longest message takes a few; a peer that sends fragments without end must not hold its reader.
const READS_MAX: usize = 64;

/// Bytes that wait to be written above which nothing more is read: a peer that asks and reads no answers. Far above what the peers of a
/// shell may have under way (two streams of 64 KiB each), so that two honest ends never both stop reading.
pub const WAITING_MAX: usize = 256 << 10;

/// Code of a close frame that has none: never on the wire. Source: RFC 6455 section 7.4.1, as all of them.
pub const NO_CODE: u16 = 1005;
/// The purpose is fulfilled.
pub const NORMAL: u16 = 1000;

/// Which end of the connection this is. A client masks what it sends, and a server does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Client,
    Server,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Binary(Vec<u8>),
    Text(String),
    /// Has been answered already when it is received.
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    /// Why; `NO_CODE` where the peer gave no reason. Nothing can be sent after it, and nothing comes after it.
    Close(u16),
}

/// What `tungstenite` takes for the connection.
struct Pipes {
    stream: Stream,
    outbox: Outbox,
    /// Reads that are left.
    reads: usize,
}

impl Read for Pipes {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.reads = self.reads.checked_sub(1).ok_or(io::ErrorKind::WouldBlock)?;
        fd::read(self.stream.input(), into)
    }
}

impl Write for Pipes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.outbox.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One end of a connection. To end it in order, `queue` a close, go on until `receive` gives the peer's, and `flush` until nothing wants to
/// be written; then drop it.
pub struct Socket {
    pipes: Pipes,
    context: WebSocketContext,
    /// The peer has closed, or did what it must not do.
    ended: bool,
}

impl Socket {
    /// The stream must have the handshake behind it; it is made non-blocking. `leftover`: what was read behind the handshake.
    /// `message_max`: bytes of a message that the peer may send, whole or in fragments.
    pub fn over(stream: Stream, role: Role, leftover: Vec<u8>, message_max: usize) -> io::Result<Socket> {
        stream.set_nonblocking(true)?;
        let config = WebSocketConfig::default().read_buffer_size(READ_BYTES).write_buffer_size(0);
        let config = config.max_message_size(Some(message_max)).max_frame_size(Some(message_max));
        let role = match role {
            Role::Client => protocol::Role::Client,
            Role::Server => protocol::Role::Server,
        };
        let context = WebSocketContext::from_partially_read(leftover, role, Some(config));
        Ok(Socket { pipes: Pipes { stream, outbox: Outbox::default(), reads: 0 }, context, ended: false })
    }

    /// What to poll for reading, while `wants_read`.
    pub fn input(&self) -> BorrowedFd<'_> {
        self.pipes.stream.input()
    }

    /// What to poll for writing, while `wants_write`.
    pub fn output(&self) -> BorrowedFd<'_> {
        self.pipes.stream.output()
    }

    /// Whether `receive` would look for messages now.
    pub fn wants_read(&self) -> bool {
        !self.ended && self.waiting() < WAITING_MAX
    }

    pub fn wants_write(&self) -> bool {
        self.waiting() > 0
    }

    /// Bytes that wait to be written.
    pub fn waiting(&self) -> usize {
        self.pipes.outbox.len()
    }

    /// The next message. Messages may be in memory, of which the descriptor says nothing: call it first after `over`, and each time until it
    /// gives `None` or `wants_read` was false. `None`: none is there, or too much waits to be written. `InvalidData`: the peer is wrong, and has been told so as far as it reads;
    /// `UnexpectedEof`: it is gone, or has closed before.
    pub fn receive(&mut self) -> io::Result<Option<Message>> {
        if self.ended {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if self.waiting() >= WAITING_MAX {
            return Ok(None);
        }
        self.pipes.reads = READS_MAX;
        let message = match self.context.read(&mut self.pipes) {
            Ok(message) => message,
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => {
                self.ended = true;
                return Err(self.refuse(error));
            }
        };
        // The answer to a ping or a close is inside of the context until the next call.
        let _ = self.context.flush(&mut self.pipes);
        Ok(Some(match message {
            tungstenite::Message::Text(text) => Message::Text(text.as_str().to_owned()),
            tungstenite::Message::Ping(bytes) => Message::Ping(bytes.into()),
            tungstenite::Message::Pong(bytes) => Message::Pong(bytes.into()),
            tungstenite::Message::Close(frame) => {
                self.ended = true;
                Message::Close(frame.map_or(NO_CODE, |frame| frame.code.into()))
            }
            message => Message::Binary(message.into_data().into()),
        }))
    }

    /// Puts a message behind what waits. After a close of either side it is dropped.
    pub fn queue(&mut self, message: Message) {
        let message = match message {
            Message::Binary(bytes) => tungstenite::Message::binary(bytes),
            Message::Text(text) => tungstenite::Message::text(text),
            Message::Ping(bytes) => tungstenite::Message::Ping(bytes.into()),
            Message::Pong(bytes) => tungstenite::Message::Pong(bytes.into()),
            Message::Close(code) => return self.close(code),
        };
        // The outbox takes everything, so the only error is that the connection is closing.
        let _ = self.context.write(&mut self.pipes, message);
        let _ = self.context.flush(&mut self.pipes);
    }

    /// Writes as much as fits; how many bytes that were.
    pub fn flush(&mut self) -> io::Result<usize> {
        let before = self.waiting();
        self.pipes.outbox.write_to(self.pipes.stream.output())?;
        Ok(before - self.waiting())
    }

    /// Forgets what waits, for a peer that does not read any more but may have said something before.
    pub fn discard(&mut self) {
        self.pipes.outbox.clear();
    }

    /// Ends a connection that failed. What was written last still arrives, though what the peer sends is not read any more.
    pub fn end(self) {
        self.pipes.stream.end();
    }

    fn close(&mut self, code: u16) {
        let frame = CloseFrame { code: CloseCode::from(code), reason: "".into() };
        let _ = self.context.close(&mut self.pipes, (code != NO_CODE).then_some(frame));
    }

    /// Tells the peer what is wrong, where that is its fault.
    fn refuse(&mut self, error: Error) -> io::Error {
        let (code, error) = match error {
            Error::Io(error) => return error,
            Error::Capacity(_) => (CloseCode::Size, "a websocket message too long"),
            Error::Utf8(_) => (CloseCode::Invalid, "a websocket text that is not UTF-8"),
            Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake)
            | Error::ConnectionClosed
            | Error::AlreadyClosed => return io::ErrorKind::UnexpectedEof.into(),
            _ => (CloseCode::Protocol, "no websocket frames"),
        };
        self.close(code.into());
        // Most callers give the connection up at once.
        let _ = self.flush();
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}
