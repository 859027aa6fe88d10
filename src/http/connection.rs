//! One connection: heads, bodies and their order, for the client's side and the server's.
//!
//! Its descriptors do not block; every method that may wait takes `Limits`. In memory it keeps at most a head and one read. After an error
//! nothing but dropping it makes sense, except that a server may still `respond`.

use std::io::{self, ErrorKind, IoSlice};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crate::http::body::{Body, Framing, Next};
use crate::http::head::{self, HEAD_MAX, Parsed, Request, Response};
use crate::http::wait::Limits;
use crate::http::{invalid, refused};
use crate::stream::Stream;
use crate::stream::inbox::Inbox;
use crate::stream::outbox::Outbox;
use crate::sys::{fd, tcp};

/// Interim responses (100 to 199) before the one that counts. Go's client stops at as many.
pub const INTERIM_MAX: usize = 5;

/// Bytes of an unwanted body that are read after its response, so that the connection can be kept. As many as Go's server reads.
pub const DRAIN_MAX: usize = 256 << 10;

/// How long that may take. As long as Go's server leaves between its last byte and closing.
const DRAIN_PATIENCE: Duration = Duration::from_millis(500);

/// Bytes of one read of what is thrown away.
const DRAIN_CHUNK: usize = 4 << 10;

/// What was read of the message that is coming in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inbound {
    /// Its head is not there, or was not understood.
    Head,
    /// It has a body, and nobody has asked for it.
    Untouched(Framing),
    /// Somebody reads it.
    Reading,
    Complete,
}

/// Both sides of HTTP/1.1 on a stream.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    inbox: Inbox,
    /// Chunks that were queued.
    outbox: Outbox,
    /// Of the request that is answered.
    method: String,
    inbound: Inbound,
    /// What is still to be written of the message that goes out: `None`, so many bytes, or chunks.
    outbound: Framing,
    /// The peer can have another request on this connection, by what it has said.
    persistent: bool,
    /// A byte of the response has come.
    heard: bool,
    /// The client waits for an interim response before it sends the body.
    expects: bool,
}

impl Connection {
    /// A connection that is new, or at least between two messages. Its descriptors do not block from now on.
    pub fn over(stream: Stream) -> io::Result<Connection> {
        stream.set_nonblocking(true)?;
        // Chunks are small, and somebody is watching. What is no TCP socket has nothing that would delay them.
        let _ = tcp::set_no_delay(stream.output());
        Ok(Connection {
            stream,
            inbox: Inbox::default(),
            outbox: Outbox::default(),
            method: String::new(),
            inbound: Inbound::Complete,
            outbound: Framing::None,
            persistent: true,
            heard: false,
            expects: false,
        })
    }

    /// To be watched with `fd::READ` (something comes, which at rest is the end) or `fd::PEER_ENDED`.
    pub fn watch(&self) -> BorrowedFd<'_> {
        self.stream.input()
    }

    /// Whether the peer has gone, or at least will send nothing more.
    pub fn peer_hung_up(&self) -> bool {
        let found = fd::wait_for(self.stream.input(), fd::PEER_ENDED, Some(Duration::ZERO));
        found.is_ok_and(|ready| ready.hung_up)
    }

    /// The stream, and what has come on it and belongs to no message: for another protocol after status 101. It still does not block.
    pub fn into_parts(self) -> (Stream, Vec<u8>) {
        let leftover = self.inbox.bytes().to_vec();
        (self.stream, leftover)
    }

    // --- What both sides write ---

    /// Writes a part of a body whose head has declared its length.
    ///
    /// # Errors
    /// `InvalidInput` for more than was declared; those of the connection and of `limits`.
    pub fn write_all(&mut self, bytes: &[u8], limits: Limits) -> io::Result<()> {
        let left = match self.outbound {
            Framing::Sized(left) => left.checked_sub(bytes.len() as u64),
            _ => Some(0).filter(|_| bytes.is_empty()),
        };
        let left = left.ok_or_else(|| refused("more body than its head has declared"))?;
        self.write(&[bytes], limits)?;
        self.outbound = if left == 0 { Framing::None } else { Framing::Sized(left) };
        Ok(())
    }

    /// Writes one chunk, at once and whole. No bytes are no chunk, since they would end the body.
    ///
    /// # Errors
    /// `InvalidInput` when the head has declared no chunks; those of the connection and of `limits`.
    pub fn chunk(&mut self, bytes: &[u8], limits: Limits) -> io::Result<()> {
        if self.outbound != Framing::Chunked {
            return Err(refused("a chunk where the head has declared none"));
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let size = format!("{:x}\r\n", bytes.len());
        self.write(&[size.as_bytes(), bytes, b"\r\n"], limits)
    }

    /// Ends a body of chunks. Without this the peer knows that the body is not whole.
    ///
    /// # Errors
    /// As those of `chunk`.
    pub fn end_chunks(&mut self, limits: Limits) -> io::Result<()> {
        if self.outbound != Framing::Chunked {
            return Err(refused("an end of chunks where the head has declared none"));
        }
        self.write(&[b"0\r\n\r\n"], limits)?;
        self.outbound = Framing::None;
        Ok(())
    }

    /// Puts a chunk of what `read` appends behind what waits for `flush`, and gives its size; nothing is no chunk. For who has a poll loop of
    /// its own; a body is written in this way or the other one, `chunk`.
    ///
    /// # Errors
    /// `InvalidInput` when the head has declared no chunks; those of `read`.
    pub fn queue_chunk(&mut self, read: impl FnOnce(&mut Vec<u8>) -> io::Result<usize>) -> io::Result<usize> {
        if self.outbound != Framing::Chunked {
            return Err(refused("a chunk where the head has declared none"));
        }
        let count = self.outbox.fill(read);
        match count {
            Ok(count) if count > 0 => self.outbox.seal(format!("{count:x}\r\n").as_bytes(), b"\r\n"),
            _ => self.outbox.discard(),
        }
        count
    }

    /// Puts the end of a body of chunks behind what waits for `flush`.
    ///
    /// # Errors
    /// As those of `queue_chunk`.
    pub fn queue_end(&mut self) -> io::Result<()> {
        if self.outbound != Framing::Chunked {
            return Err(refused("an end of chunks where the head has declared none"));
        }
        self.outbox.push(b"0\r\n\r\n");
        self.outbound = Framing::None;
        Ok(())
    }

    /// Writes as much as fits of what was queued. After an error some of it may have been written: `waiting` knows.
    pub fn flush(&mut self) -> io::Result<()> {
        self.outbox.write_to(self.stream.output())
    }

    /// Bytes that were queued and not written.
    pub fn waiting(&self) -> usize {
        self.outbox.len()
    }

    // --- What both sides read ---

    /// The body of the message whose head was read last; asked for a second time, an empty one.
    pub fn body(&mut self) -> Body {
        match self.inbound {
            Inbound::Untouched(framing) => {
                self.inbound = Inbound::Reading;
                Body::new(framing)
            }
            _ => Body::new(Framing::None),
        }
    }

    /// Reads what has come of the body, at most `into`, which must have room; 0 is its end. A client that waits to be asked for its body
    /// is asked.
    ///
    /// # Errors
    /// `UnexpectedEof` for a body that breaks off, `InvalidData` for one that is no body; those of the connection and of `limits`.
    pub fn read_body(&mut self, body: &mut Body, into: &mut [u8], limits: Limits) -> io::Result<usize> {
        if self.expects {
            self.expects = false;
            if self.inbox.bytes().is_empty() {
                self.write(&[b"HTTP/1.1 100 Continue\r\n\r\n"], limits)?;
            }
        }
        loop {
            match body.next(self.inbox.bytes())? {
                Next::End => {
                    self.inbound = Inbound::Complete;
                    return Ok(0);
                }
                Next::Skip(count) => self.inbox.consume(count),
                Next::Unknown if self.fill(limits)? == 0 => return Err(ErrorKind::UnexpectedEof.into()),
                Next::Unknown => {}
                Next::Data(left) => {
                    let room = into.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    let count = self.take(&mut into[..room], limits)?;
                    body.taken(count as u64);
                    if count > 0 {
                        return Ok(count);
                    }
                    if !body.end() {
                        return Err(ErrorKind::UnexpectedEof.into());
                    }
                }
            }
        }
    }

    /// Reads all of a body.
    ///
    /// # Errors
    /// `InvalidData` when it has more than `max` bytes, and those of `read_body`.
    pub fn body_within(&mut self, body: &mut Body, max: usize, limits: Limits) -> io::Result<Vec<u8>> {
        let (mut all, mut chunk) = (Vec::new(), [0; DRAIN_CHUNK]);
        loop {
            match self.read_body(body, &mut chunk, limits)? {
                0 => return Ok(all),
                count if count > max - all.len() => return Err(invalid("the body is too large")),
                count => all.extend_from_slice(&chunk[..count]),
            }
        }
    }

    // --- The client's side ---

    /// Writes the head of a request, which says in its headers what body follows.
    ///
    /// # Errors
    /// `InvalidInput` for a head that would be read as something else; those of the connection and of `limits`.
    pub fn send_head(&mut self, request: &Request, limits: Limits) -> io::Result<()> {
        self.send(request, &[], limits)
    }

    /// The same with the body, or its beginning, at once.
    ///
    /// # Errors
    /// As those of `send_head` and `write_all`.
    pub fn send(&mut self, request: &Request, body: &[u8], limits: Limits) -> io::Result<()> {
        let mut bytes = Vec::new();
        head::write_request(request, &mut bytes)?;
        let framing =
            Framing::of_request(&request.headers, true).map_err(|_| refused("headers contradict each other"))?;
        self.method.clone_from(&request.method);
        (self.inbound, self.heard) = (Inbound::Head, false);
        self.start(bytes, framing, body, limits)
    }

    /// Reads the head of the response; interim ones are skipped.
    ///
    /// # Errors
    /// `UnexpectedEof` when the server has closed, `InvalidData` for what is no response; those of the connection and of `limits`.
    pub fn response(&mut self, limits: Limits) -> io::Result<Response> {
        for _ in 0..=INTERIM_MAX {
            let length = self.head(limits)?.ok_or(ErrorKind::UnexpectedEof)?;
            let Parsed { head, is_1_1 } = head::response(&self.inbox.bytes()[..length])?;
            self.inbox.consume(length);
            if is_interim(head.status) {
                continue;
            }
            let framing = Framing::of_response(head.status, &head.headers, is_1_1, &self.method)?;
            let goes_on = framing != Framing::UntilClose && head.status != 101;
            self.persistent = is_1_1 && goes_on && !head.headers.is("connection", "close");
            self.inbound = untouched(framing);
            return Ok(head);
        }
        Err(invalid("too many interim responses"))
    }

    /// Reads once what has come of the response, without waiting, and skips interim ones. Whether the one that counts has come, or the end of
    /// the connection: then `response` does not wait.
    ///
    /// # Errors
    /// `InvalidData` for what is no response; those of the connection.
    pub fn is_answered(&mut self) -> io::Result<bool> {
        match self.inbox.fill(self.stream.input(), 0) {
            Ok(0) => return Ok(true),
            Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
            _ => {}
        }
        while let Some(length) = head::length(self.inbox.bytes(), 0)? {
            if !is_interim(head::response(&self.inbox.bytes()[..length])?.head.status) {
                return Ok(true);
            }
            self.inbox.consume(length);
        }
        Ok(false)
    }

    /// Whether a byte has come since the last request was sent.
    pub fn has_heard(&self) -> bool {
        self.heard
    }

    /// Whether another request can be sent: the last one was answered whole, and the server has neither closed nor said that it will.
    pub fn is_reusable(&self) -> bool {
        let silent =
            fd::wait_for(self.stream.input(), fd::READ, Some(Duration::ZERO)).is_ok_and(|ready| !ready.readable);
        self.is_between() && self.inbox.bytes().is_empty() && silent
    }

    // --- The server's side ---

    /// Waits until the next request begins, or the client has closed.
    ///
    /// # Errors
    /// Those of `limits`.
    pub fn wait_for_message(&self, limits: Limits) -> io::Result<()> {
        // Its beginning may have come with the last one, and behind the last one of all nothing is waited for.
        if self.inbox.bytes().is_empty() && self.is_between() { limits.wait(self.watch(), fd::READ) } else { Ok(()) }
    }

    /// Reads the head of the next request. `None` when no other one comes: the client has closed before it, or it or we have said that this
    /// connection ends.
    ///
    /// # Errors
    /// `UnexpectedEof` for a head that breaks off, `InvalidData` for what is no request or has no clear end (400 may be responded); those
    /// of the connection and of `limits`.
    pub fn request(&mut self, limits: Limits) -> io::Result<Option<Request>> {
        if !self.is_between() {
            return Ok(None);
        }
        (self.inbound, self.persistent, self.expects) = (Inbound::Head, false, false);
        self.method.clear();
        let length = match self.head(limits) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset && self.inbox.bytes().is_empty() => None,
            length => length?,
        };
        let Some(length) = length else { return Ok(None) };
        let Parsed { head, is_1_1 } = head::request(&self.inbox.bytes()[..length])?;
        self.inbox.consume(length);
        let framing = Framing::of_request(&head.headers, is_1_1)?;
        self.persistent = is_1_1 && !head.headers.is("connection", "close");
        self.inbound = untouched(framing);
        self.expects = is_1_1 && self.inbound != Inbound::Complete && head.headers.is("expect", "100-continue");
        self.method.clone_from(&head.method);
        Ok(Some(head))
    }

    /// Writes a response with its body; the headers for its length and the connection's end are added. A body of the request that was not
    /// read is read now, as long as it is small and comes soon; else the connection ends.
    ///
    /// # Errors
    /// `InvalidInput` for headers that would be read as something else; those of the connection and of `limits`.
    pub fn respond(&mut self, status: u16, headers: &[(&str, &str)], body: &[u8], limits: Limits) -> io::Result<()> {
        let length = body.len().to_string();
        let has_body = !matches!(status, 100..=199 | 204 | 304);
        let own = [("Content-Length", length.as_str())];
        self.write_head(status, headers, if has_body { &own } else { &[] }, body, limits)?;
        self.settle(limits);
        Ok(())
    }

    /// Writes the head of a response whose body, chunks or so many bytes as the headers declare, is written afterwards; then `settle`.
    ///
    /// # Errors
    /// As those of `respond`; `InvalidInput` also for chunks to a client that knows none.
    pub fn respond_head(&mut self, status: u16, headers: &[(&str, &str)], limits: Limits) -> io::Result<()> {
        self.write_head(status, headers, &[], &[], limits)
    }

    /// To be called after the last byte of a response that began with `respond_head`: deals with what was not read of the request.
    pub fn settle(&mut self, limits: Limits) {
        let limits = limits.until(Instant::now() + DRAIN_PATIENCE);
        let (mut waste, mut left) = ([0; DRAIN_CHUNK], DRAIN_MAX);
        if self.persistent && matches!(self.inbound, Inbound::Untouched(_)) {
            let mut body = self.body();
            while let Ok(count) = self.read_body(&mut body, &mut waste, limits) {
                if count == 0 {
                    return;
                }
                let Some(less) = left.checked_sub(count) else { break };
                left = less;
            }
            self.persistent = false;
        }
        if self.persistent {
            return;
        }
        let _ = fd::shutdown_write(self.stream.output());
        // A socket that is closed with bytes unread resets its connection, and the client may lose the response.
        left = if self.inbound == Inbound::Complete { 0 } else { DRAIN_MAX };
        while left > 0 && limits.wait(self.stream.input(), fd::READ).is_ok() {
            match fd::read(self.stream.input(), &mut waste) {
                Ok(0) => return,
                Ok(count) => left = left.saturating_sub(count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }

    fn write_head(
        &mut self,
        status: u16,
        headers: &[(&str, &str)],
        own: &[(&str, &str)],
        body: &[u8],
        limits: Limits,
    ) -> io::Result<()> {
        let mut declared = head::Headers::default();
        headers.iter().chain(own).for_each(|(name, value)| declared.push(name, value));
        let framing = Framing::of_response(status, &declared, true, &self.method);
        let framing = framing.map_err(|_| refused("headers contradict each other"))?;
        // A client that still waits to be asked for its body may send it or not. One that was read half has no known end.
        let is_clear = !self.expects && self.inbound != Inbound::Reading;
        self.persistent &= is_clear && framing != Framing::UntilClose && !declared.is("connection", "close");
        let mut own = own.to_vec();
        if !self.persistent && status != 101 {
            own.push(("Connection", "close"));
        }
        let mut bytes = Vec::new();
        head::write_response(status, headers, &own, &mut bytes)?;
        let body = if framing == Framing::None { &[] } else { body };
        self.start(bytes, framing, body, limits)
    }

    // --- Below both ---

    /// Whether everything that was begun is complete, and more may follow.
    fn is_between(&self) -> bool {
        self.persistent && self.inbound == Inbound::Complete && self.outbound == Framing::None
    }

    /// Writes a head and the beginning of its body.
    fn start(&mut self, head: Vec<u8>, framing: Framing, body: &[u8], limits: Limits) -> io::Result<()> {
        let left = match framing {
            Framing::Sized(length) => length.checked_sub(body.len() as u64),
            _ => Some(0).filter(|_| body.is_empty()),
        };
        let left = left.ok_or_else(|| refused("more body than its head has declared"))?;
        // Until it has been written, it counts as incomplete.
        self.outbound = Framing::UntilClose;
        self.write(&[&head, body], limits)?;
        self.outbound = match framing {
            Framing::Sized(_) if left == 0 => Framing::None,
            Framing::Sized(_) => Framing::Sized(left),
            other => other,
        };
        Ok(())
    }

    fn write(&mut self, parts: &[&[u8]], limits: Limits) -> io::Result<()> {
        let mut slices = [IoSlice::new(&[]); 3];
        for (slice, part) in slices.iter_mut().zip(parts) {
            *slice = IoSlice::new(part);
        }
        let mut left = &mut slices[..];
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            limits.wait(self.stream.output(), fd::WRITE)?;
            match fd::write_vectored(self.stream.output(), left) {
                Ok(count) => IoSlice::advance_slices(&mut left, count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits for a whole head, and gives its length; `None` when the peer has closed before it.
    fn head(&mut self, limits: Limits) -> io::Result<Option<usize>> {
        let mut looked_at = 0;
        loop {
            let bytes = self.inbox.bytes();
            // A byte of the next message may have come with the last one.
            self.heard |= !bytes.is_empty();
            if let Some(length) = head::length(bytes, looked_at)? {
                return Ok(Some(length));
            }
            looked_at = bytes.len().min(HEAD_MAX);
            if self.fill(limits)? == 0 {
                return if looked_at == 0 { Ok(None) } else { Err(ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    /// Waits for more bytes. 0 is the end.
    fn fill(&mut self, limits: Limits) -> io::Result<usize> {
        loop {
            limits.wait(self.stream.input(), fd::READ)?;
            match self.inbox.fill(self.stream.input(), 0) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }

    /// Takes bytes that have come, or waits for some, past the buffer. 0 is the end.
    fn take(&mut self, into: &mut [u8], limits: Limits) -> io::Result<usize> {
        let held = self.inbox.bytes();
        if !held.is_empty() {
            let count = held.len().min(into.len());
            into[..count].copy_from_slice(&held[..count]);
            self.inbox.consume(count);
            if count == into.len() {
                return Ok(count);
            }
            // What was read with the line of a large chunk is its smaller part, and the rest may be there: together they are one piece.
            return match fd::read(self.stream.input(), &mut into[count..]) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(count),
                more => Ok(count + more?),
            };
        }
        loop {
            limits.wait(self.stream.input(), fd::READ)?;
            match fd::read(self.stream.input(), into) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }
}

/// Whether another response follows one with this status.
fn is_interim(status: u16) -> bool {
    matches!(status, 100 | 102..=199)
}

fn untouched(framing: Framing) -> Inbound {
    match framing {
        Framing::None | Framing::Sized(0) => Inbound::Complete,
        framing => Inbound::Untouched(framing),
    }
}
