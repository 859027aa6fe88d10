//! Shells: a program of ours at one end of a websocket, and a user of the host at the other.
//!
//! One loop joins the connection, the framing, and the program's streams. The exit is said as soon as the program has ended and its output is
//! complete (`QUIET`), whatever becomes of its input.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::exec::tree::Tree;
use crate::exec::{BLIND_POLL, Channel, QUIET, Session};
use crate::http::head::Request;
use crate::http::wait::is_stop;
use crate::metaservice::Action;
use crate::proto::metadata::reply::target;
use crate::proto::metadata::{Guest, programs, why};
use crate::shell::MESSAGE_MAX;
use crate::shell::alive::Alive;
use crate::shell::flow::BLOCK;
use crate::shell::server::{Event, Server};
use crate::sys::fd::{self, PollSet};
use crate::sys::process::Status;
use crate::sys::random;
use crate::sys::tty::Window;
use crate::websocket::key;
use crate::websocket::socket::{Message, NORMAL, Role, Socket};

/// What a terminal takes for the end of the input, at the beginning of a line.
const END_OF_INPUT: u8 = 0x04;

/// How long the host may take for its part of an orderly end.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// Runs one to its end.
pub fn run(guest: &Guest, action: &Action) {
    let socket = match open(guest, action) {
        Ok(socket) => socket,
        Err(error) if is_stop(&error) => return,
        Err(error) => return log::error!("shell: {}", why(&error)),
    };
    let argv = if action.command.is_empty() { &guest.config.shell } else { &action.command };
    let terminal = action.tty.then(Window::default);
    let now = Instant::now();
    let mut link = Link { socket, server: Server::default(), alive: Alive::new(now) };
    match programs::start(guest, argv, terminal) {
        Ok((session, channels)) => {
            let mut shell = Shell::new(guest, link, session, channels, action.tty);
            let lost = shell.serve();
            let Shell { link, session, stdin, outputs, .. } = shell;
            drop((stdin, outputs));
            end(guest, link, session, lost);
        }
        Err(why) => {
            log::warn!("shell: {why}");
            link.server.exit(false).into_iter().for_each(|message| link.queue(message));
            link.close(guest);
        }
    }
}

/// After a loss, ends the program; in any case says what there is to say, and closes.
fn end(guest: &Guest, mut link: Link, session: Session, lost: io::Result<()>) {
    if let Err(error) = lost {
        log::info!("shell: {}", why(&error));
        Tree::terminate(&session).finish(&session, guest.timers().termination_grace, guest.stop);
        if let Some(exit) = link.server.abandon() {
            link.queue(exit);
        }
    }
    drop(session);
    link.close(guest);
}

fn open(guest: &Guest, action: &Action) -> io::Result<Socket> {
    let limits = guest.within(guest.timers().handshake);
    let host = &guest.config.host;
    let mut connection = host.connect(limits)?;
    let key = key::new_key(random::getrandom()?);
    let request = Request::new("GET", &target(action))
        .with("Host", host.host())
        .with("Upgrade", "websocket")
        .with("Connection", "Upgrade")
        .with("Sec-WebSocket-Key", &key)
        .with("Sec-WebSocket-Version", "13");
    connection.send_head(&request, limits)?;
    let response = connection.response(limits)?;
    let accepted = response.headers.get("sec-websocket-accept") == Some(&key::accept_key(&key));
    if response.status != 101 || !accepted {
        return Err(io::Error::other(format!("no websocket, but status {}", response.status)));
    }
    let (stream, leftover) = connection.into_parts();
    Socket::over(stream, Role::Client, leftover, MESSAGE_MAX)
}

/// The connection and its framing.
struct Link {
    socket: Socket,
    server: Server,
    alive: Alive,
}

impl Link {
    fn queue(&mut self, message: Vec<u8>) {
        self.socket.queue(Message::Binary(message));
    }

    /// Writes what can be written now.
    fn flush(&mut self, now: Instant) -> io::Result<()> {
        let written = self.socket.flush()?;
        self.alive.flushed(now, written, self.socket.waiting());
        Ok(())
    }

    /// Says good-bye and waits for the answer, not for long.
    fn close(mut self, guest: &Guest) {
        self.socket.queue(Message::Close(NORMAL));
        let until = Instant::now() + CLOSE_PATIENCE;
        let mut set = PollSet::default();
        while self.socket.flush().is_ok() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            match self.socket.receive() {
                Ok(Some(Message::Close(_))) | Err(_) => {
                    let _ = self.socket.flush();
                    break;
                }
                Ok(Some(_)) => continue,
                Ok(None) => {}
            }
            set.clear();
            set.watch(guest.stop, fd::READ);
            // A host that takes nothing is not listened to either.
            let reading = if self.socket.wants_read() { fd::READ } else { 0 };
            let writing = if self.socket.wants_write() { fd::WRITE } else { 0 };
            set.watch(self.socket.input(), reading | writing);
            if set.wait(Some(left)).is_err() || set.ready(0).readable {
                break;
            }
        }
        self.socket.end();
    }
}

/// A stream of output, until its end has been met.
struct Output {
    rd: Option<OwnedFd>,
    is_stdout: bool,
}

struct Shell<'a> {
    guest: &'a Guest<'a>,
    link: Link,
    session: Session,
    is_terminal: bool,
    /// `None`: it is closed, or the program wants no more.
    stdin: Option<OwnedFd>,
    /// What the program has not taken yet; the credit bounds it.
    input: Vec<u8>,
    /// Behind `input` the input ends.
    input_ends: bool,
    /// Bytes at the end of `input` that are not the host's.
    own_input: usize,
    outputs: [Output; 2],
    chunk: Vec<u8>,
    status: Option<Status>,
    moved: Instant,
    silent: bool,
}

impl<'a> Shell<'a> {
    fn new(guest: &'a Guest, link: Link, session: Session, channels: Vec<Channel>, is_terminal: bool) -> Shell<'a> {
        let mut stdin = None;
        let mut outputs = [true, false].map(|is_stdout| Output { rd: None, is_stdout });
        for channel in channels {
            match channel.number {
                0 => stdin = channel.wr,
                1 => outputs[0].rd = channel.rd,
                _ => outputs[1].rd = channel.rd,
            }
        }
        let (moved, chunk) = (Instant::now(), vec![0; BLOCK]);
        Shell {
            guest,
            link,
            session,
            is_terminal,
            stdin,
            input: Vec::new(),
            input_ends: false,
            own_input: 0,
            outputs,
            chunk,
            status: None,
            moved,
            silent: false,
        }
    }

    /// Serves until the program has ended and everything was sent. An error: the program is to be killed, and why.
    fn serve(&mut self) -> io::Result<()> {
        let mut set = PollSet::default();
        loop {
            let now = Instant::now();
            if self.status.is_none() {
                self.status = self.session.ended();
                if self.status.is_some() {
                    self.moved = now;
                }
            }
            self.keep_alive(now)?;
            self.receive()?;
            self.feed();
            while let Some(ack) = self.link.server.ack() {
                self.link.queue(ack);
            }
            self.link.flush(now)?;
            if let Some(status) = self.status.filter(|_| self.is_complete()) {
                let last = self.link.server.exit(status == Status::Exited(0));
                last.into_iter().for_each(|message| self.link.queue(message));
                return Ok(());
            }
            set.clear();
            let places = self.watch(&mut set);
            let left = self.next_look(now, places).saturating_duration_since(now);
            set.wait(Some(left))?;
            if set.ready(0).readable {
                return Err(io::Error::other("everything ends"));
            }
            let mut moved = false;
            for (number, place) in places.into_iter().enumerate() {
                moved |= place.is_some_and(|place| set.ready(place).readable) && self.read(number);
            }
            // Only what was looked for once more and was not there has been silent.
            let due = now >= self.moved + QUIET;
            self.silent = self.status.is_some() && !moved && due && self.is_watched(places);
        }
    }

    fn keep_alive(&mut self, now: Instant) -> io::Result<()> {
        if self.link.alive.ping_due(now) {
            self.link.socket.queue(Message::Ping(Vec::new()));
        }
        if self.link.alive.is_gone(now) { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }

    fn receive(&mut self) -> io::Result<()> {
        while let Some(message) = self.link.socket.receive()? {
            match message {
                Message::Binary(bytes) => {
                    if let Some(event) = self.link.server.receive(&bytes)? {
                        take(event, &self.session, &mut self.input, &mut self.input_ends)?;
                    }
                }
                Message::Pong(_) => self.link.alive.ponged(Instant::now()),
                Message::Close(_) => return Err(io::Error::other("the host has closed it")),
                Message::Text(_) | Message::Ping(_) => {}
            }
        }
        Ok(())
    }

    /// Gives the program as much of its input as it takes.
    fn feed(&mut self) {
        if let Some(wr) = self.stdin.as_ref().filter(|_| !self.input.is_empty()) {
            match fd::write(wr.as_fd(), &self.input) {
                Ok(count) => self.consume(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // It wants no more of it.
                Err(_) => self.stdin = None,
            }
        }
        if self.stdin.is_none() {
            self.consume(self.input.len());
        }
        if self.input_ends && self.input.is_empty() {
            self.input_ends = false;
            if self.is_terminal {
                self.input.push(END_OF_INPUT);
                self.own_input = 1;
            } else {
                self.stdin = None;
            }
        }
    }

    fn consume(&mut self, count: usize) {
        self.input.drain(..count);
        let own = self.own_input.saturating_sub(self.input.len());
        self.own_input -= own;
        self.link.server.stdin_consumed(count - own);
    }

    /// Whether all output that there is has been sent.
    fn is_complete(&self) -> bool {
        self.silent || self.outputs.iter().all(|output| output.rd.is_none())
    }

    fn room(&self, number: usize) -> usize {
        let server = &self.link.server;
        if self.outputs[number].is_stdout { server.stdout_room() } else { server.stderr_room() }
    }

    /// Whether every output that is open is looked at.
    fn is_watched(&self, places: [Option<usize>; 2]) -> bool {
        self.outputs.iter().zip(places).all(|(output, place)| output.rd.is_none() || place.is_some())
    }

    /// Places of the outputs that can be read now.
    fn watch(&self, set: &mut PollSet) -> [Option<usize>; 2] {
        set.watch(self.guest.stop, fd::READ);
        let socket = &self.link.socket;
        let reading = if socket.wants_read() { fd::READ } else { 0 };
        let writing = if socket.wants_write() { fd::WRITE } else { 0 };
        set.watch(socket.input(), reading | writing);
        if let Some(end) = self.session.end_watch().filter(|_| self.status.is_none()) {
            set.watch(end, fd::READ);
        }
        if let Some(wr) = self.stdin.as_ref().filter(|_| !self.input.is_empty()) {
            set.watch(wr.as_fd(), fd::WRITE);
        }
        [0, 1].map(|number| {
            let rd = self.outputs[number].rd.as_ref().filter(|_| self.room(number) > 0)?;
            Some(set.watch(rd.as_fd(), fd::READ))
        })
    }

    fn next_look(&self, now: Instant, places: [Option<usize>; 2]) -> Instant {
        let alive = now + self.link.alive.deadline(now);
        match self.status {
            Some(_) if self.is_watched(places) => alive.min(self.moved + QUIET),
            None if self.session.end_watch().is_none() => alive.min(now + BLIND_POLL),
            _ => alive,
        }
    }

    /// Reads once and sends it. True when something came, if only the end.
    fn read(&mut self, number: usize) -> bool {
        let room = self.room(number).min(self.chunk.len());
        let output = &mut self.outputs[number];
        let Some(rd) = &output.rd else { return false };
        let server = &mut self.link.server;
        let message = match fd::read(rd.as_fd(), &mut self.chunk[..room]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            // A terminal whose program has gone ends with an error.
            Ok(0) | Err(_) => {
                output.rd = None;
                if output.is_stdout { server.stdout_end() } else { server.stderr_end() }
            }
            Ok(count) if output.is_stdout => server.stdout(&self.chunk[..count]),
            Ok(count) => server.stderr(&self.chunk[..count]),
        };
        if let Some(message) = message {
            self.link.queue(message);
        }
        self.moved = Instant::now();
        true
    }
}

fn take(event: Event, session: &Session, input: &mut Vec<u8>, ends: &mut bool) -> io::Result<()> {
    match event {
        Event::Stdin(bytes) => input.extend_from_slice(bytes),
        Event::StdinEnd => *ends = true,
        Event::Resize { columns, rows } => {
            let _ = session.resize(Window { rows, columns });
        }
        Event::Abort => return Err(io::Error::other("aborted")),
    }
    Ok(())
}
