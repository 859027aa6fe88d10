//! The connection of a shell, with its framing and its timers, from the handshake to the good-bye.

use std::io;
use std::time::{Duration, Instant};

use crate::http::head::Request;
use crate::metaservice::Action;
use crate::proto::metadata::Guest;
use crate::proto::metadata::reply::target;
use crate::shell::MESSAGE_MAX;
use crate::shell::alive::Alive;
use crate::shell::server::Server;
use crate::sys::fd::{self, PollSet};
use crate::sys::random;
use crate::websocket::key;
use crate::websocket::socket::{Message, NORMAL, Role, Socket, WAITING_MAX};

/// Messages that are taken in one round. A host that never pauses must not keep us from everything else.
pub const ROUND_MAX: usize = 64;

/// How long the host may take to answer the good-bye after it could read it.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// One connection.
pub struct Link {
    pub socket: Socket,
    pub server: Server,
    pub alive: Alive,
}

impl Link {
    /// Makes the handshake that the action asks for.
    pub fn open(guest: &Guest, action: &Action) -> io::Result<Link> {
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
        let socket = Socket::over(stream, Role::Client, leftover, MESSAGE_MAX)?;
        Ok(Link { socket, server: Server::default(), alive: Alive::new(Instant::now()) })
    }

    pub fn queue(&mut self, message: Vec<u8>) {
        self.socket.queue(Message::Binary(message));
    }

    /// Whether more output may be put behind what waits.
    pub fn takes_output(&self) -> bool {
        self.socket.waiting() < WAITING_MAX
    }

    /// Asks the host for a sign of life when it is time to. `TimedOut`: it has given none.
    pub fn keep_alive(&mut self, now: Instant) -> io::Result<()> {
        if self.alive.ping_due(now) {
            self.socket.queue(Message::Ping(Vec::new()));
        }
        if self.alive.is_gone(now) { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }

    /// Writes what can be written now.
    pub fn flush(&mut self, now: Instant) -> io::Result<()> {
        let written = self.socket.flush()?;
        self.alive.flushed(now, written, self.socket.waiting());
        Ok(())
    }

    /// Adds the connection to a set, for what it waits for.
    pub fn watch(&self, set: &mut PollSet) {
        // A host that takes nothing is not listened to either.
        let reading = if self.socket.wants_read() { fd::READ } else { 0 };
        let writing = if self.socket.wants_write() { fd::WRITE } else { 0 };
        set.watch(self.socket.input(), reading | writing);
    }

    /// Says good-bye and waits for the answer: as long as the host takes what waits, and from then on not for long.
    pub fn close(mut self, guest: &Guest) {
        self.socket.queue(Message::Close(NORMAL));
        let mut answer_until: Option<Instant> = None;
        let mut set = PollSet::default();
        loop {
            let now = Instant::now();
            if self.flush(now).is_err() || self.alive.is_gone(now) {
                break;
            }
            if !self.socket.wants_write() {
                answer_until.get_or_insert(now + CLOSE_PATIENCE);
            }
            let left = answer_until.map(|until| until.saturating_duration_since(now));
            if left.is_some_and(|left| left.is_zero()) {
                break;
            }
            let Some(is_more) = self.wait_for_close() else {
                let _ = self.socket.flush();
                break;
            };
            set.clear();
            set.watch(guest.stop, fd::READ);
            self.watch(&mut set);
            let alive = self.alive.deadline(now);
            let wait = if is_more { Duration::ZERO } else { left.map_or(alive, |left| left.min(alive)) };
            if set.wait(Some(wait)).is_err() || set.ready(0).readable {
                break;
            }
        }
        self.socket.end();
    }

    /// Passes over what comes before the host's own good-bye. `None`: it was that, or the host is gone; else whether there may be more.
    fn wait_for_close(&mut self) -> Option<bool> {
        for _ in 0..ROUND_MAX {
            match self.socket.receive() {
                Ok(None) => return Some(false),
                Ok(Some(Message::Close(_))) | Err(_) => return None,
                Ok(Some(Message::Pong(_))) => self.alive.ponged(Instant::now()),
                Ok(Some(_)) => {}
            }
        }
        Some(true)
    }
}
