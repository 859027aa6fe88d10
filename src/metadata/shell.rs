//! A shell in the guest, on descriptors of ours.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crate::client::sink::Sink;
use crate::shell::MESSAGE_MAX;
use crate::shell::alive::Alive;
use crate::shell::client::{Client, Event};
use crate::shell::flow::BLOCK;
use crate::stream::Stream;
use crate::sys::fd::{self, PollSet};
use crate::sys::tty::Window;
use crate::websocket::socket::{Message, Role, Socket};

/// Bytes that wait for the connection above which no input is read.
const WAITING_MAX: usize = 64 << 10;

/// Messages that are taken before other things have their turn.
const MESSAGES_MAX: usize = 64;

/// How long the guest may take to close its connection behind the end, or to take our abort.
const FAREWELL: Duration = Duration::from_secs(2);

/// How a shell ended.
#[derive(Debug)]
pub enum Ending {
    Succeeded,
    /// With another status than 0, or by a signal, or it could not be started: the protocol does not tell.
    Failed,
    /// We have ended it.
    Aborted,
    /// Its output cannot be written, and we have ended it if it had not ended.
    Unread(io::Error),
    /// The connection has gone before the end, or the guest did what it must not do.
    Lost(io::Error),
}

/// What a shell may be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Resize(Window),
    Abort,
}

/// Our side of a shell. All stay the caller's.
pub struct Wires<'a> {
    /// `None`: the input has ended.
    pub stdin: Option<BorrowedFd<'a>>,
    pub stdout: BorrowedFd<'a>,
    pub stderr: BorrowedFd<'a>,
    /// Readable when there are orders, and what reads them.
    pub orders: Option<(BorrowedFd<'a>, &'a mut dyn FnMut() -> Option<Order>)>,
}

/// A shell whose handshake is through.
pub struct Shell {
    socket: Socket,
    client: Client,
    alive: Alive,
    /// Why nothing can be written any more; what the guest had said before is still read.
    unread: Option<io::Error>,
    ending: Option<Ending>,
    /// The guest closes, and we wait no longer than this.
    farewell: Option<Instant>,
    /// Messages may be in memory, of which the descriptor says nothing.
    has_more: bool,
}

/// An output that is gone takes everything and keeps nothing.
struct Output {
    sink: Option<Sink>,
    /// Why it is gone, until somebody has looked.
    error: Option<io::Error>,
}

impl Output {
    fn to(fd: BorrowedFd) -> io::Result<Output> {
        Ok(Output { sink: Some(Sink::new(fd)?), error: None })
    }

    fn queued(&self) -> usize {
        self.sink.as_ref().map_or(0, Sink::queued)
    }

    /// Takes bytes, or only writes some; how many are gone from memory by that.
    fn take(&mut self, bytes: &[u8]) -> usize {
        let held = self.queued() + bytes.len();
        let result = match &mut self.sink {
            Some(sink) if bytes.is_empty() => sink.flush(),
            Some(sink) => sink.take(bytes),
            None => Ok(()),
        };
        if let Err(error) = result {
            (self.sink, self.error) = (None, Some(error));
        }
        held - self.queued()
    }
}

impl Shell {
    /// A shell on a stream behind its handshake; `leftover` has come on it.
    ///
    /// # Errors
    /// Of fcntl(2).
    pub fn over(stream: Stream, leftover: Vec<u8>) -> io::Result<Shell> {
        let socket = Socket::over(stream, Role::Server, leftover, MESSAGE_MAX)?;
        let (client, alive) = (Client::default(), Alive::new(Instant::now()));
        Ok(Shell { socket, client, alive, unread: None, ending: None, farewell: None, has_more: false })
    }

    /// Sets the size of its terminal.
    pub fn resize(&mut self, window: Window) {
        self.socket.queue(Message::Binary(self.client.size(window.columns, window.rows)));
    }

    /// Carries the streams until the shell has ended and its output is written. When the output cannot be written the shell is ended; errors
    /// that cannot be written are dropped. An abort drops what waits for either: behind the end, too, it is how to wait no longer.
    ///
    /// # Errors
    /// Of dup(2) and poll(2).
    pub fn run(mut self, mut wires: Wires) -> io::Result<Ending> {
        let mut outputs = [Output::to(wires.stdout)?, Output::to(wires.stderr)?];
        if wires.stdin.is_none() {
            self.end_input();
        }
        self.receive(&mut outputs);
        let mut set = PollSet::default();
        loop {
            let now = Instant::now();
            self.keep_alive(now);
            if let Some(error) = outputs[0].error.take() {
                self.give_up(error);
            }
            if self.is_over(now) {
                if outputs.iter().all(|output| output.queued() == 0) {
                    self.socket.end();
                    return Ok(self.ending.unwrap_or(Ending::Aborted));
                }
                // The guest need not wait for whoever reads the outputs.
                let _ = fd::shutdown(self.socket.input());
            }
            self.round(&mut set, &mut wires, &mut outputs, now)?;
        }
    }

    fn round(
        &mut self,
        set: &mut PollSet,
        wires: &mut Wires,
        outputs: &mut [Output; 2],
        now: Instant,
    ) -> io::Result<()> {
        set.clear();
        let stdin = wires.stdin.filter(|_| self.takes_input()).map(|fd| set.watch(fd, fd::READ));
        let orders = wires.orders.as_ref().map(|(fd, _)| set.watch(*fd, fd::READ));
        let is_over = self.is_over(now);
        let read = (self.socket.wants_read() && !is_over).then(|| set.watch(self.socket.input(), fd::READ));
        let write = (self.socket.wants_write() && !is_over).then(|| set.watch(self.socket.output(), fd::WRITE));
        let sinks = outputs.each_ref().map(|output| {
            let sink = output.sink.as_ref().filter(|sink| sink.queued() > 0)?;
            Some(set.watch(sink.watch(), fd::WRITE))
        });
        set.wait(self.patience(now))?;
        for (which, (output, entry)) in outputs.iter_mut().zip(sinks).enumerate() {
            if entry.is_some_and(|entry| set.ready(entry).writable) {
                let count = output.take(&[]);
                self.consumed(which, count);
            }
        }
        if stdin.is_some_and(|entry| set.ready(entry).readable)
            && let Some(fd) = wires.stdin
            && !self.input(fd)
        {
            wires.stdin = None;
        }
        if let Some(ready) = orders.map(|entry| set.ready(entry)).filter(|ready| ready.readable) {
            let has_come = self.take_orders(wires, outputs);
            wires.orders = wires.orders.take_if(|_| has_come || !ready.hung_up);
        }
        if write.is_some_and(|entry| set.ready(entry).writable) {
            self.flush();
        }
        let is_unwatched = read.is_none() && self.socket.wants_read();
        if self.has_more || is_unwatched || read.is_some_and(|entry| set.ready(entry).readable) {
            self.receive(outputs);
        }
        Ok(())
    }

    /// Does what it is told; false when there was nothing.
    fn take_orders(&mut self, wires: &mut Wires, outputs: &mut [Output; 2]) -> bool {
        let Some((_, next)) = &mut wires.orders else { return false };
        let mut has_come = false;
        while let Some(order) = next() {
            has_come = true;
            match order {
                Order::Resize(window) => self.resize(window),
                Order::Abort => {
                    self.abort(Ending::Aborted);
                    let is_lost = outputs.iter().any(|output| output.queued() > 0);
                    if is_lost && matches!(self.ending, Some(Ending::Succeeded | Ending::Failed)) {
                        self.ending = Some(Ending::Aborted);
                    }
                    outputs.iter_mut().for_each(|output| output.sink = None);
                }
            }
            self.flush();
        }
        has_come
    }

    /// Nothing is left to do but to write outputs.
    fn is_over(&self, now: Instant) -> bool {
        self.ending.is_some() && self.farewell.is_none_or(|until| now >= until)
    }

    fn takes_input(&self) -> bool {
        self.ending.is_none() && self.unread.is_none() && self.client.room() > 0 && self.socket.waiting() < WAITING_MAX
    }

    fn patience(&self, now: Instant) -> Option<Duration> {
        match (&self.ending, self.farewell) {
            _ if self.has_more => Some(Duration::ZERO),
            (None, _) => Some(self.alive.deadline(now)),
            (Some(_), Some(until)) if now < until => Some(until - now),
            // Whoever reads our outputs may take as long as they like.
            (Some(_), _) => None,
        }
    }

    fn keep_alive(&mut self, now: Instant) {
        if self.ending.is_some() {
            return;
        }
        if self.alive.is_gone(now) {
            return self.lose(io::ErrorKind::TimedOut.into());
        }
        if self.alive.ping_due(now) {
            self.socket.queue(Message::Ping(Vec::new()));
            self.flush();
        }
    }

    fn lose(&mut self, error: io::Error) {
        self.farewell = None;
        // Its end alone says less than why nothing could be written.
        use io::ErrorKind::{ConnectionReset, TimedOut, UnexpectedEof};
        let is_end = matches!(error.kind(), ConnectionReset | TimedOut | UnexpectedEof);
        let error = self.unread.take().filter(|_| is_end).unwrap_or(error);
        self.ending.get_or_insert(Ending::Lost(error));
    }

    fn flush(&mut self) {
        if self.unread.is_some() {
            self.socket.discard();
        }
        match self.socket.flush() {
            Ok(written) => self.alive.flushed(Instant::now(), written, self.socket.waiting()),
            // It may have closed behind its last words.
            Err(error) if self.ending.is_none() => {
                self.unread = Some(error);
                self.socket.discard();
            }
            Err(error) => self.lose(error),
        }
        // An abort that is written is all that there was to say.
        if matches!(self.ending, Some(Ending::Aborted | Ending::Unread(_))) && !self.socket.wants_write() {
            self.farewell = None;
        }
    }

    fn say(&mut self, message: Option<Vec<u8>>) {
        if let Some(bytes) = message {
            self.socket.queue(Message::Binary(bytes));
        }
    }

    fn end_input(&mut self) {
        let end = self.client.end();
        self.say(end);
        self.flush();
    }

    /// Reads input and sends it; false at its end.
    fn input(&mut self, fd: BorrowedFd) -> bool {
        let mut block = vec![0; self.client.room().min(BLOCK)];
        match fd::read(fd, &mut block) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => true,
            Ok(0) | Err(_) => {
                self.end_input();
                false
            }
            Ok(count) => {
                let message = self.client.data(&block[..count]);
                self.say(message);
                self.flush();
                true
            }
        }
    }

    /// Ends it; one that has ended is waited for no longer.
    fn abort(&mut self, ending: Ending) {
        if self.ending.is_some() {
            self.farewell = None;
        } else if let Some(bytes) = self.client.abort() {
            self.socket.queue(Message::Binary(bytes));
            self.ending = Some(ending);
            self.farewell = Some(Instant::now() + FAREWELL);
        }
    }

    /// The output cannot be written.
    fn give_up(&mut self, error: io::Error) {
        match self.ending {
            None => self.abort(Ending::Unread(error)),
            // That its end came first does not make up for what is lost.
            Some(Ending::Succeeded | Ending::Failed) => self.ending = Some(Ending::Unread(error)),
            Some(_) => {}
        }
        self.flush();
    }

    fn consumed(&mut self, which: usize, count: usize) {
        match which {
            0 => self.client.stdout_consumed(count),
            _ => self.client.stderr_consumed(count),
        }
        while let Some(ack) = self.client.ack() {
            self.socket.queue(Message::Binary(ack));
        }
        self.flush();
    }

    /// Takes messages that have come; all of them, unless there are very many.
    fn receive(&mut self, outputs: &mut [Output; 2]) {
        self.has_more = false;
        for _ in 0..MESSAGES_MAX {
            match self.socket.receive() {
                Ok(None) => return self.flush(),
                Ok(Some(Message::Binary(bytes))) => self.message(&bytes, outputs),
                Ok(Some(Message::Pong(_))) => self.alive.ponged(Instant::now()),
                Ok(Some(Message::Close(_))) => {
                    // Its answer goes out, and then there is nobody.
                    self.flush();
                    return self.lose(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(Some(_)) => {}
                Err(error) => return self.lose(error),
            }
        }
        self.has_more = true;
        self.flush();
    }

    fn message(&mut self, bytes: &[u8], outputs: &mut [Output; 2]) {
        let (which, data) = match self.client.receive(bytes) {
            Ok(Some(Event::Stdout(data))) => (0, data),
            Ok(Some(Event::Stderr(data))) => (1, data),
            Ok(Some(Event::Exit { success })) => {
                self.ending = Some(if success { Ending::Succeeded } else { Ending::Failed });
                self.farewell = Some(Instant::now() + FAREWELL);
                return;
            }
            Ok(_) => return,
            Err(error) => return self.lose(error),
        };
        let count = outputs[which].take(data);
        self.consumed(which, count);
    }
}
