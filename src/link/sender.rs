//! Numbered frames until they have arrived: what is sent again, and when.
//!
//! A line keeps the order of its bytes. When a frame has arrived that was sent later than another, the other is lost and is sent again at
//! once; the time-out is only for the last ones.

use std::collections::VecDeque;
use std::time::Instant;

use crate::link::frame::wire_bytes;
use crate::link::pace::{Moment, Pace};

/// Most frames under way: as many as the list in an acknowledgement has room for.
pub const FRAMES_MAX: usize = 256;

/// A frame under way.
#[derive(Debug)]
pub struct Sent {
    pub kind: u8,
    pub channel: u16,
    pub payload: Vec<u8>,
    /// Which transmission of all its last one was.
    number: u64,
    moment: Moment,
    state: State,
    /// Sent more than once: nobody can say which one arrived.
    again: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    UnderWay,
    Lost,
    /// It is there, but one before it is not.
    Arrived,
}

/// The frames of one session that were sent and not acknowledged.
#[derive(Debug)]
pub struct Sender {
    pace: Pace,
    /// Number of the first one in `frames`.
    first: u16,
    frames: VecDeque<Sent>,
    /// Bytes on the wire of those under way, and of all.
    flight: usize,
    unacknowledged: usize,
    /// Most of the latter that the peer takes.
    peer_window: usize,
    lost: usize,
    transmissions: u64,
    /// The newest transmission that is known to have arrived.
    newest: u64,
    /// When the peer last acknowledged something.
    progress: Option<Instant>,
}

impl Sender {
    pub fn new(pace: Pace, peer_window: usize) -> Sender {
        Sender {
            pace,
            first: 0,
            frames: VecDeque::new(),
            flight: 0,
            unacknowledged: 0,
            peer_window,
            lost: 0,
            transmissions: 0,
            newest: 0,
            progress: None,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub fn pace(&mut self) -> &mut Pace {
        &mut self.pace
    }

    /// Most bytes of payload that a new frame may have now; `None` when none may be sent.
    pub fn room(&self) -> Option<usize> {
        let payload = self.pace.payload();
        let frame = wire_bytes(payload);
        let fits = self.flight + frame <= self.pace.window(frame) && self.unacknowledged + frame <= self.peer_window;
        (self.lost == 0 && self.frames.len() < FRAMES_MAX && (fits || self.frames.is_empty())).then_some(payload)
    }

    /// Takes a new frame, which is sent now, and gives its number.
    pub fn push(&mut self, kind: u8, channel: u16, payload: Vec<u8>, now: Instant) -> u16 {
        let bytes = wire_bytes(payload.len());
        self.flight += bytes;
        self.unacknowledged += bytes;
        self.transmissions += 1;
        let moment = self.pace.sent(now, false);
        let number = self.transmissions;
        self.frames.push_back(Sent { kind, channel, payload, number, moment, state: State::UnderWay, again: false });
        if self.room().is_none()
            && let Some(last) = self.frames.back_mut()
        {
            last.moment = self.pace.sent(now, true);
        }
        self.first.wrapping_add(self.frames.len() as u16 - 1)
    }

    /// Payload of the frame that was pushed last.
    pub fn last(&self) -> &[u8] {
        self.frames.back().map_or(&[], |sent| &sent.payload)
    }

    /// The next frame that has to be sent again, and is sent now, with its number.
    pub fn repeat(&mut self, now: Instant) -> Option<(u16, &Sent)> {
        if self.lost == 0 {
            return None;
        }
        let index = self.frames.iter().position(|frame| frame.state == State::Lost)?;
        self.lost -= 1;
        self.transmissions += 1;
        let sent = &mut self.frames[index];
        self.flight += wire_bytes(sent.payload.len());
        (sent.state, sent.again, sent.number) = (State::UnderWay, true, self.transmissions);
        sent.moment = self.pace.sent(now, false);
        Some((self.first.wrapping_add(index as u16), sent))
    }

    /// The peer has everything before number `next`, and of what follows that what `held` lists: bit 0 of its first byte stands for the
    /// number behind `next`.
    pub fn acknowledge(&mut self, next: u16, held: &[u8], now: Instant) {
        let count = usize::from(next.wrapping_sub(self.first));
        // Of what was never sent.
        if count > self.frames.len() {
            return;
        }
        let mut latest = None;
        for _ in 0..count {
            self.arrived(0, now, &mut latest);
            if let Some(sent) = self.frames.pop_front() {
                self.unacknowledged -= wire_bytes(sent.payload.len());
            }
            self.first = self.first.wrapping_add(1);
        }
        for (index, bit) in (0..held.len() * 8).map(|bit| (bit + 1, held[bit / 8] >> (bit % 8) & 1)) {
            if bit == 1 && index < self.frames.len() {
                self.arrived(index, now, &mut latest);
            }
        }
        if let Some(moment) = latest {
            self.pace.learn(moment, now);
        }
        self.find_lost();
    }

    /// Notes that a frame has arrived, if that is news.
    fn arrived(&mut self, index: usize, now: Instant, latest: &mut Option<Moment>) {
        let sent = &mut self.frames[index];
        let bytes = wire_bytes(sent.payload.len());
        match sent.state {
            State::Arrived => return,
            State::Lost => self.lost -= 1,
            State::UnderWay => self.flight -= bytes,
        }
        sent.state = State::Arrived;
        self.pace.delivered(bytes);
        self.progress = Some(now);
        if !sent.again {
            *latest = Some(sent.moment);
        }
        // An answer that is too quick for the last transmission belongs to one before it.
        if !sent.again || now.saturating_duration_since(sent.moment.at) >= self.pace.mean() {
            self.newest = self.newest.max(sent.number);
        }
    }

    /// Everything that was sent before the newest that arrived, and is not there, is lost.
    fn find_lost(&mut self) {
        for index in 0..self.frames.len() {
            if self.frames[index].number < self.newest {
                self.lose(index);
            }
        }
    }

    fn lose(&mut self, index: usize) {
        let sent = &mut self.frames[index];
        if sent.state == State::UnderWay {
            sent.state = State::Lost;
            self.flight -= wire_bytes(sent.payload.len());
            self.lost += 1;
            self.pace.lost();
        }
    }

    /// The first frame that is not known to have arrived.
    fn oldest(&self) -> Option<usize> {
        self.frames.iter().position(|frame| frame.state != State::Arrived)
    }

    /// The peer has seen something damaged. If the oldest frame could have been that, it is sent again.
    pub fn damaged(&mut self, now: Instant) {
        // It hears us: there is no reason to be patient.
        self.pace.end_back_off();
        if let Some(oldest) = self.oldest()
            && now.saturating_duration_since(self.frames[oldest].moment.at) >= self.pace.mean()
        {
            self.lose(oldest);
        }
    }

    /// When to send the oldest frame again, if nothing is heard of it.
    pub fn deadline(&self) -> Option<Instant> {
        let oldest = &self.frames[self.oldest()?];
        // What is known to be lost waits for the line, and not for the peer.
        if oldest.state == State::Lost {
            return None;
        }
        let at = oldest.moment.at;
        Some(self.progress.map_or(at, |progress| progress.max(at)) + self.pace.timeout())
    }

    /// What has to happen at this time.
    pub fn on_time(&mut self, now: Instant) {
        if self.deadline().is_some_and(|deadline| deadline <= now)
            && let Some(oldest) = self.oldest()
        {
            self.lose(oldest);
            self.pace.timed_out();
        }
    }
}
