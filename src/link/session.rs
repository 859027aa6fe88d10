//! One end of a line: who the peer is, what is said to it and when.

use std::time::{Duration, Instant};

use crate::link::account::Account;
use crate::link::frame::{self, Found, Header, Scanner, payload_max};
use crate::link::greeting::{Greeting, Limits, Role};
use crate::link::mux::Mux;
use crate::link::pace::Pace;
use crate::link::receiver::{Held, Receiver};
use crate::link::sender::Sender;
use crate::link::{CREDIT, FRAME_BYTES, Reason, kind};

/// How long the peer may be silent while a channel is open before it is asked whether it is there.
const ASK_AFTER: Duration = Duration::from_secs(5);

/// How long it may be silent before it counts as gone. A guest may stand still for a while: it is saved, or its machine is busy.
const GONE_AFTER: Duration = Duration::from_secs(30);

/// How long an opener waits for an agent that is about to start, and will say so, before it speaks up itself.
const START_PATIENCE: Duration = Duration::from_secs(3);

/// Pauses between greetings, from the first to the longest. What is sent before the agent has opened its end is lost or waits there.
const GREET_FIRST: Duration = Duration::from_millis(50);
const GREET_LONGEST: Duration = Duration::from_millis(500);

/// How long the beginning of a frame waits for its end before it counts as text. A panicking kernel prints into a frame that nobody
/// will ever finish; and a frame is not held up that long by itself.
const HELD_LONGEST: Duration = Duration::from_millis(200);

/// Flags of ACK.
const DAMAGED: u8 = 1;
const ASKED: u8 = 2;

/// The other end.
#[derive(Clone, Copy, Debug)]
struct Peer {
    session: u32,
    /// When something valid last came from it.
    heard: Instant,
}

/// The state of one end.
#[derive(Debug)]
pub struct Link {
    role: Role,
    limits: Limits,
    seed: u64,
    /// Our session.
    ours: u32,
    peer: Option<Peer>,
    scanner: Scanner,
    sender: Sender,
    receiver: Receiver,
    mux: Mux,
    /// Channels that the peer has opened since the last look.
    opened: Vec<u16>,
    /// Console text that has not been taken, if somebody wants it.
    text: Option<Vec<u8>>,
    account: Account,
    /// When bytes last came.
    came: Instant,
    /// A greeting is due, to this session.
    greeting: Option<u32>,
    /// The agent has not started yet. What is sent to a line on which nobody listens may be echoed when the guest's kernel opens it, and is
    /// on its console then.
    starts: bool,
    /// When to greet again, and the pause after that.
    greet_at: Option<Instant>,
    greet_pause: Duration,
    greeted: Option<Instant>,
    /// The peer wants to know what has come.
    owes_ack: bool,
    damaged: bool,
    /// We want to know whether the peer is there; since when we wait.
    asks: bool,
    asked: Option<Instant>,
    waits_since: Option<Instant>,
}

impl Link {
    /// A new end. `seed`: random, for the numbers of sessions. An acceptor says that it is there.
    pub fn new(role: Role, limits: Limits, seed: u64, now: Instant) -> Link {
        let mut link = Link {
            role,
            limits,
            seed,
            ours: 0,
            peer: None,
            scanner: Scanner::new(limits.frame),
            sender: Sender::new(Pace::new(limits.window, payload_max(FRAME_BYTES)), limits.window),
            receiver: Receiver::default(),
            mux: Mux::default(),
            opened: Vec::new(),
            text: None,
            account: Account::default(),
            came: now,
            greeting: (role == Role::Acceptor).then_some(0),
            starts: false,
            greet_at: None,
            greet_pause: GREET_FIRST,
            greeted: None,
            owes_ack: false,
            damaged: false,
            asks: false,
            asked: None,
            waits_since: None,
        };
        link.ours = link.new_session();
        link
    }

    /// Keeps console text for `take_text`.
    pub fn keep_text(&mut self) {
        self.text = Some(Vec::new());
    }

    /// Waits a while for an agent that is about to start, before it is greeted.
    pub fn expect_start(&mut self) {
        self.starts = true;
    }

    /// Does not say that it is there.
    pub fn keep_quiet(&mut self) {
        self.greeting = None;
    }

    pub fn take_text(&mut self) -> Vec<u8> {
        self.text.as_mut().map(std::mem::take).unwrap_or_default()
    }

    pub fn account(&self) -> &Account {
        &self.account
    }

    pub fn mux(&mut self) -> &mut Mux {
        &mut self.mux
    }

    /// The next channel that the peer has opened.
    pub fn take_opened(&mut self) -> Option<u16> {
        self.opened.pop()
    }

    /// Opens a channel, with a new session if there is none.
    pub fn open(&mut self, now: Instant) -> u16 {
        if self.peer.is_none() && self.greet_at.is_none() {
            let pause = if std::mem::take(&mut self.starts) { START_PATIENCE } else { Duration::ZERO };
            (self.greet_at, self.greet_pause, self.greeted) = (Some(now + pause), GREET_FIRST, None);
        }
        self.mux.open(CREDIT)
    }

    /// Whether nothing is owed to the peer.
    pub fn is_idle(&self) -> bool {
        self.mux.is_empty() && self.sender.is_empty() && !self.owes_ack && self.greeting.is_none()
    }

    /// Whether everything that was said on this side has arrived on the other.
    pub fn has_told_all(&self) -> bool {
        self.mux.has_said_all() && self.sender.is_empty()
    }

    fn new_session(&mut self) -> u32 {
        loop {
            // splitmix64: every seed gives another sequence.
            self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = (self.seed ^ (self.seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let session = (mixed ^ (mixed >> 31)) as u32;
            if session != 0 && session != self.ours {
                return session;
            }
        }
    }

    /// The session is over, of our own accord or because the peer's is.
    pub fn end_session(&mut self, why: &'static str) {
        self.account.end = Some(why);
        self.mux.tear_all(Reason::Session);
        // Nobody here knows of those yet, and would take them away.
        std::mem::take(&mut self.opened).into_iter().for_each(|id| self.mux.reset(id, Reason::Session));
        self.ours = self.new_session();
        self.peer = None;
        self.reset_order(self.limits.frame, self.limits.window);
        (self.greet_at, self.asks, self.asked, self.waits_since) = (None, false, None, None);
    }

    fn reset_order(&mut self, frame: usize, window: usize) {
        self.sender = Sender::new(Pace::new(self.limits.window.min(window), payload_max(frame)), window);
        self.receiver = Receiver::default();
        (self.owes_ack, self.damaged) = (false, false);
    }

    /// Takes bytes that came over the line.
    pub fn receive(&mut self, bytes: &[u8], now: Instant) {
        self.came = now;
        // The scanner is set aside because what it finds changes the rest.
        let mut scanner = std::mem::replace(&mut self.scanner, Scanner::new(FRAME_BYTES));
        scanner.scan(bytes, &mut |found| self.found(found, now));
        self.scanner = scanner;
    }

    fn found(&mut self, found: Found, now: Instant) {
        match found {
            Found::Frame(header, payload) => self.frame(&header, payload, now),
            Found::Text(bytes) => {
                self.account.text(bytes);
                if let Some(text) = &mut self.text {
                    text.extend_from_slice(bytes);
                }
            }
            Found::Damage => {
                self.damaged = self.peer.is_some();
                self.owes_ack |= self.damaged;
            }
        }
    }

    fn frame(&mut self, header: &Header, payload: &[u8], now: Instant) {
        if header.from == self.ours {
            self.account.echo = true;
            return;
        }
        if header.kind == kind::HELLO {
            return self.hello(header, payload, now);
        }
        if header.to != self.ours || self.peer.is_none_or(|peer| peer.session != header.from) {
            // Whoever believes to have a session with us has one with our past.
            if self.role == Role::Acceptor {
                self.greeting = Some(header.from);
            }
            return;
        }
        self.heard(now);
        match header.kind {
            kind::ACK => {
                let (flags, held) = payload.split_first().map_or((0, payload), |(flags, held)| (*flags, held));
                self.sender.acknowledge(header.ack, held, now);
                if flags & DAMAGED != 0 {
                    self.sender.damaged(now);
                }
                self.owes_ack |= flags & ASKED != 0;
            }
            kind::NUMBERED.. => {
                self.sender.acknowledge(header.ack, &[], now);
                self.numbered(header, payload);
            }
            _ => {}
        }
    }

    /// The peer is there.
    fn heard(&mut self, now: Instant) {
        if let Some(peer) = &mut self.peer {
            peer.heard = now;
        }
        (self.waits_since, self.asked, self.asks) = (None, None, false);
    }

    fn numbered(&mut self, header: &Header, payload: &[u8]) {
        self.owes_ack = true;
        let hold = || Held { kind: header.kind, channel: header.channel, payload: payload.to_vec() };
        if !self.receiver.take(header.seq, hold) {
            return;
        }
        self.deliver(header.kind, header.channel, payload);
        while let Some(held) = self.receiver.advance() {
            self.deliver(held.kind, held.channel, &held.payload);
        }
    }

    fn deliver(&mut self, kind: u8, channel: u16, payload: &[u8]) {
        let opened = self.mux.receive(kind, channel, payload, self.role == Role::Acceptor);
        self.opened.extend(opened);
        if kind == kind::RESET {
            self.account.end = match Reason::from(payload.first().copied()) {
                Reason::TooMany => Some("the agent takes no more channels on this line"),
                Reason::NoRoom => Some("the agent takes no more connections"),
                Reason::Credit => Some("the agent says that it was sent more than it allowed"),
                _ => self.account.end,
            };
        }
    }

    /// A greeting. Short ones are not understood.
    fn hello(&mut self, header: &Header, payload: &[u8], now: Instant) {
        let Some(greeting) = Greeting::decode(payload) else { return };
        if greeting.role == self.role {
            self.account.same_role = true;
            return;
        }
        let known = self.peer.is_some_and(|peer| peer.session == header.from);
        match self.role {
            Role::Acceptor if !greeting.asks => {}
            Role::Acceptor => {
                if !known {
                    self.end_session("another client has taken the line");
                    self.begin(header.from, &greeting, now);
                }
                self.greeting = Some(header.from);
            }
            Role::Opener if known => {}
            Role::Opener if self.peer.is_some() && (header.to == self.ours || header.to == 0) => {
                self.end_session("the agent was started anew, or another client has taken the line");
            }
            Role::Opener if header.to == self.ours && self.greet_at.is_some() => {
                // Of several greetings nobody can say which one is answered.
                let round_trip = self.greeted.map(|at| now.saturating_duration_since(at));
                self.begin(header.from, &greeting, now);
                if let Some(sample) = round_trip {
                    self.sender.pace().round_trip(sample, now);
                }
            }
            // The agent has just opened the line: no need to wait for the next try.
            Role::Opener if header.to == 0 => {
                self.starts = false;
                self.greet_at = self.greet_at.map(|_| now);
            }
            Role::Opener => {}
        }
    }

    fn begin(&mut self, session: u32, greeting: &Greeting, now: Instant) {
        self.peer = Some(Peer { session, heard: now });
        let frame = greeting.limits.frame.min(self.limits.frame);
        self.reset_order(frame, greeting.limits.window.max(2 * frame));
        self.mux.begin(greeting.credit);
        (self.greet_at, self.account.met, self.account.end) = (None, true, None);
    }

    /// Does what is due at this time.
    pub fn on_time(&mut self, now: Instant) {
        if self.scanner.holds() && now >= self.came + HELD_LONGEST {
            let mut scanner = std::mem::replace(&mut self.scanner, Scanner::new(FRAME_BYTES));
            scanner.give_up(&mut |found| self.found(found, now));
            self.scanner = scanner;
        }
        if self.greet_at.is_some() && self.mux.is_empty() {
            self.greet_at = None;
        }
        if self.greet_at.is_some_and(|at| at <= now) {
            self.greeting = Some(0);
            self.greeted = if self.greeted.is_none() && self.greet_pause == GREET_FIRST { Some(now) } else { None };
            self.greet_at = Some(now + self.greet_pause);
            self.greet_pause = (self.greet_pause * 2).min(GREET_LONGEST);
        }
        self.sender.on_time(now);
        self.watch_silence(now);
    }

    /// Asks a silent peer whether it is there, and gives it up at last.
    fn watch_silence(&mut self, now: Instant) {
        let Some(peer) = self.peer else { return };
        if self.mux.is_empty() && self.sender.is_empty() {
            (self.waits_since, self.asked, self.asks) = (None, None, false);
            return;
        }
        let since = *self.waits_since.get_or_insert(now);
        if now >= since.max(peer.heard) + GONE_AFTER {
            let why = if self.role == Role::Opener { "the agent fell silent" } else { "the client fell silent" };
            return self.end_session(why);
        }
        if now >= self.asked.unwrap_or(since) + ASK_AFTER {
            (self.asks, self.asked) = (true, Some(now));
        }
    }

    /// When `on_time` has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        let held = self.scanner.holds().then(|| self.came + HELD_LONGEST);
        let silence = self.waits_since.map(|since| self.asked.unwrap_or(since) + ASK_AFTER);
        [held, self.greet_at, self.sender.deadline(), silence].into_iter().flatten().min()
    }

    /// Appends the next frame that is to be sent now; `false`: there is none.
    pub fn transmit(&mut self, now: Instant, out: &mut Vec<u8>) -> bool {
        if let Some(to) = self.greeting.take() {
            self.greet(to, out);
            return true;
        }
        let Some(peer) = self.peer else { return false };
        let ack = self.receiver.next();
        let header = Header { from: self.ours, to: peer.session, ack, ..Header::default() };
        if self.damaged || self.asks || (self.owes_ack && self.receiver.has_gap()) {
            self.acknowledge(header, out);
            return true;
        }
        if let Some((seq, sent)) = self.sender.repeat(now) {
            let header = Header { kind: sent.kind, seq, channel: sent.channel, ..header };
            frame::encode(&header, &sent.payload, out);
        } else if let Some((kind, channel, payload)) = self.next_message() {
            let seq = self.sender.push(kind, channel, payload, now);
            let header = Header { kind, seq, channel, ..header };
            frame::encode(&header, self.sender.last(), out);
        } else if self.owes_ack {
            self.acknowledge(header, out);
            return true;
        } else {
            return false;
        }
        // It carries the same news.
        self.owes_ack = self.receiver.has_gap() && self.owes_ack;
        self.waits_since.get_or_insert(now);
        true
    }

    fn next_message(&mut self) -> Option<(u8, u16, Vec<u8>)> {
        let room = self.sender.room()?;
        let mut payload = Vec::new();
        let (kind, channel) = self.mux.next(room, self.sender.pace().quantum(), &mut payload)?;
        Some((kind, channel, payload))
    }

    fn greet(&self, to: u32, out: &mut Vec<u8>) {
        let greeting =
            Greeting { role: self.role, asks: self.role == Role::Opener, limits: self.limits, credit: CREDIT };
        let header = Header { kind: kind::HELLO, from: self.ours, to, ..Header::default() };
        frame::encode(&header, &greeting.encode(), out);
    }

    fn acknowledge(&mut self, header: Header, out: &mut Vec<u8>) {
        let flags = u8::from(self.damaged) * DAMAGED + u8::from(self.asks) * ASKED;
        let mut payload = vec![flags];
        self.receiver.list(&mut payload);
        frame::encode(&Header { kind: kind::ACK, ..header }, &payload, out);
        (self.owes_ack, self.damaged, self.asks) = (false, false, false);
    }
}
