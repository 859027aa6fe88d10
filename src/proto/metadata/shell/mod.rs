//! Shells: a program of ours at one end of a websocket, and a user of the host at the other.
//!
//! One loop joins the connection, the framing, and the program's streams. The exit is said as soon as the program has ended and its output is
//! complete (`QUIET`), whatever becomes of its input.

mod input;
mod link;

use std::io;
use std::time::{Duration, Instant};

use crate::exec::tree::Tree;
use crate::exec::{BLIND_POLL, Channel, QUIET, Session};
use crate::http::wait::is_stop;
use crate::metaservice::Action;
use crate::proto::metadata::output::{Found, Output};
use crate::proto::metadata::shell::input::Input;
use crate::proto::metadata::shell::link::{Link, ROUND_MAX};
use crate::proto::metadata::{Guest, programs, why};
use crate::shell::flow::BLOCK;
use crate::shell::server::Event;
use crate::sys::fd::{self, PollSet};
use crate::sys::process::Status;
use crate::sys::signal;
use crate::sys::tty::Window;
use crate::websocket::socket::Message;

/// Runs one to its end.
pub fn run(guest: &Guest, action: &Action) {
    let mut link = match Link::open(guest, action) {
        Ok(link) => link,
        Err(error) if is_stop(&error) => return,
        Err(error) => return log::error!("shell: {}", why(&error)),
    };
    let argv = if action.command.is_empty() { &guest.config.shell } else { &action.command };
    let terminal = action.tty.then(Window::default);
    match programs::start(guest, argv, terminal) {
        Ok((session, channels)) => {
            log::info!("shell {}: opened", action.id);
            let mut shell = Shell::new(guest, link, session, channels, action.tty);
            let lost = shell.serve();
            let Shell { link, session, input, outputs, .. } = shell;
            drop((input, outputs));
            end(guest, link, session, lost);
            log::info!("shell {}: ended", action.id);
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
        Tree::terminate(&session).finish(&session, guest.timers().termination_grace, Some(guest.stop));
        if let Some(exit) = link.server.abandon() {
            link.queue(exit);
        }
    }
    drop(session);
    link.close(guest);
}

/// Numbers of the outputs.
const STDOUT: usize = 0;
const STDERR: usize = 1;

struct Shell<'a> {
    guest: &'a Guest<'a>,
    link: Link,
    session: Session,
    input: Input,
    outputs: [Output; 2],
    chunk: Vec<u8>,
    status: Option<Status>,
    moved: Instant,
    silent: bool,
}

impl<'a> Shell<'a> {
    fn new(guest: &'a Guest, link: Link, session: Session, channels: Vec<Channel>, is_terminal: bool) -> Shell<'a> {
        let mut stdin = None;
        let mut outputs = [Output::default(), Output::default()];
        for channel in channels {
            match (channel.number, channel.rd) {
                (0, _) => stdin = channel.wr,
                (1, Some(rd)) => outputs[STDOUT] = Output::of(rd),
                (_, Some(rd)) => outputs[STDERR] = Output::of(rd),
                _ => {}
            }
        }
        let (moved, chunk) = (Instant::now(), vec![0; BLOCK]);
        let input = Input::new(stdin, is_terminal);
        Shell { guest, link, session, input, outputs, chunk, status: None, moved, silent: false }
    }

    /// Serves until the program has ended and everything was sent. An error: the program is to be killed, and why.
    fn serve(&mut self) -> io::Result<()> {
        let mut set = PollSet::default();
        loop {
            let now = Instant::now();
            self.look(now)?;
            self.link.keep_alive(now)?;
            let is_more = self.receive(now)?;
            let used = self.input.feed(now);
            self.link.server.stdin_consumed(used);
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
            let places = self.watch(&mut set, now);
            let left = self.next_look(now, places).saturating_duration_since(now);
            // Messages that are in memory make nothing readable.
            set.wait(Some(if is_more { Duration::ZERO } else { left }))?;
            if set.ready(0).readable {
                return Err(io::Error::other("everything ends"));
            }
            let mut moved = false;
            for (number, place) in places.into_iter().enumerate() {
                moved |= place.is_some_and(|place| set.ready(place).readable) && self.read(number, now);
            }
            // Only what was looked for once more and was not there has been silent.
            let due = now >= self.moved + QUIET;
            self.silent = self.status.is_some() && !moved && due && self.is_watched(places);
        }
    }

    /// Whether the program has ended by now, and whether it should have.
    fn look(&mut self, now: Instant) -> io::Result<()> {
        if self.status.is_some() {
            return Ok(());
        }
        self.status = self.session.ended();
        if self.status.is_some() {
            self.moved = now;
        } else if self.input.deadline().is_some_and(|deadline| now >= deadline) {
            // Shells with a user ignore SIGTERM, and pass this on.
            let _ = self.session.signal(signal::SIGHUP);
            return Err(io::Error::other("the program goes on after the end of its input"));
        }
        Ok(())
    }

    /// Takes what the host has sent, but not for ever. Whether there may be more.
    fn receive(&mut self, now: Instant) -> io::Result<bool> {
        for _ in 0..ROUND_MAX {
            let Some(message) = self.link.socket.receive()? else { return Ok(false) };
            match message {
                Message::Binary(bytes) => {
                    if let Some(event) = self.link.server.receive(&bytes)? {
                        take(event, &self.session, &mut self.input, now)?;
                    }
                }
                Message::Pong(_) => self.link.alive.ponged(Instant::now()),
                Message::Close(_) => return Err(io::Error::other("the host has closed it")),
                Message::Text(_) | Message::Ping(_) => {}
            }
        }
        Ok(true)
    }

    /// Whether all output that there is has been sent.
    fn is_complete(&self) -> bool {
        self.silent || !self.outputs.iter().any(Output::is_open)
    }

    fn room(&self, number: usize) -> usize {
        let server = &self.link.server;
        if number == STDOUT { server.stdout_room() } else { server.stderr_room() }
    }

    /// Whether every output that is open is looked at.
    fn is_watched(&self, places: [Option<usize>; 2]) -> bool {
        self.outputs.iter().zip(places).all(|(output, place)| !output.is_open() || place.is_some())
    }

    /// Places of the outputs that can be read now.
    fn watch(&self, set: &mut PollSet, now: Instant) -> [Option<usize>; 2] {
        set.watch(self.guest.stop, fd::READ);
        self.link.watch(set);
        let is_running = self.status.is_none();
        if let Some(end) = self.session.end_watch().filter(|_| is_running) {
            set.watch(end, fd::READ);
        }
        if let Some(wr) = self.input.watch(now) {
            set.watch(wr, fd::WRITE);
        }
        [STDOUT, STDERR].map(|number| {
            let takes = self.room(number) > 0 && self.link.takes_output();
            let rd = self.outputs[number].watch(now, is_running).filter(|_| takes)?;
            Some(set.watch(rd, fd::READ))
        })
    }

    fn next_look(&self, now: Instant, places: [Option<usize>; 2]) -> Instant {
        let mut next = now + self.link.alive.deadline(now);
        match self.status {
            Some(_) if self.is_watched(places) => next = next.min(self.moved + QUIET),
            Some(_) => {}
            None => {
                let blind = self.session.end_watch().is_none().then(|| now + BLIND_POLL);
                let terminal = self.outputs.iter().filter_map(Output::look_at);
                let input = [self.input.deadline(), self.input.look_at()];
                next = terminal.chain(blind).chain(input.into_iter().flatten()).fold(next, Instant::min);
            }
        }
        next
    }

    /// Reads once and sends it. True when something came, if only the end.
    fn read(&mut self, number: usize, now: Instant) -> bool {
        let room = self.room(number).min(self.chunk.len());
        let found = self.outputs[number].read(&mut self.chunk[..room], now, self.status.is_none());
        let server = &mut self.link.server;
        let message = match found {
            Found::Nothing => return false,
            Found::End if number == STDOUT => server.stdout_end(),
            Found::End => server.stderr_end(),
            Found::Bytes(count) if number == STDOUT => server.stdout(&self.chunk[..count]),
            Found::Bytes(count) => server.stderr(&self.chunk[..count]),
        };
        if let Some(message) = message {
            self.link.queue(message);
        }
        self.moved = Instant::now();
        true
    }
}

fn take(event: Event, session: &Session, input: &mut Input, now: Instant) -> io::Result<()> {
    match event {
        Event::Stdin(bytes) => input.push(bytes),
        Event::StdinEnd => input.end(now),
        Event::Resize { columns, rows } => {
            let _ = session.resize(Window { rows, columns });
        }
        Event::Abort => return Err(io::Error::other("aborted")),
    }
    Ok(())
}
