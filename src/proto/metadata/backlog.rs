//! What a program has said and the host has not got yet.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::proto::bell::Bell;
use crate::proto::metadata::held;

/// Bytes that wait at most, and beside them what could not be sent and was put back. Upstream's number.
pub const BACKLOG_MAX: usize = 4 << 20;

#[derive(Debug)]
struct Held {
    bytes: VecDeque<u8>,
    /// No more will come.
    closed: bool,
    /// Nobody wants what comes.
    given_up: bool,
    /// Bytes that were dropped since the last `take`, and before.
    dropped: u64,
    dropped_before: u64,
    /// When the host has last taken something, or something began to wait.
    moved: Instant,
    /// How long that may be ago before the oldest bytes make room.
    patience: Duration,
}

/// Between the thread that reads and the one that sends.
#[derive(Debug)]
pub struct Backlog {
    held: Mutex<Held>,
    more: Bell,
    room: Bell,
    end: Bell,
}

/// What `look` has found.
#[derive(Debug, PartialEq, Eq)]
pub struct Offered {
    /// There is something to take, or the end.
    pub is_ready: bool,
    /// No more will come.
    pub is_closed: bool,
}

/// What `take` has found beside bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct Taken {
    /// So many bytes are missing before them.
    pub dropped: u64,
    /// Nothing is left, and nothing comes.
    pub is_end: bool,
}

impl Backlog {
    pub fn new(patience: Duration) -> io::Result<Backlog> {
        let held = Held {
            bytes: VecDeque::new(),
            closed: false,
            given_up: false,
            dropped: 0,
            dropped_before: 0,
            moved: Instant::now(),
            patience,
        };
        let [more, room, end] = [Bell::new()?, Bell::new()?, Bell::new()?];
        Ok(Backlog { held: Mutex::new(held), more, room, end })
    }

    // --- The reader's side ---

    /// Bytes with which `push` is welcome now. When it is full and the host has taken nothing for long, they cost the oldest ones.
    pub fn takes(&self, now: Instant) -> usize {
        self.room.clear();
        let held = held(&self.held);
        let is_free = held.given_up || now >= held.moved + held.patience;
        if is_free { BACKLOG_MAX } else { BACKLOG_MAX.saturating_sub(held.bytes.len()) }
    }

    /// While it does not take: readable when it may.
    pub fn room(&self) -> BorrowedFd<'_> {
        self.room.watch()
    }

    /// While it does not take: when it will in any case.
    pub fn deadline(&self) -> Instant {
        let held = held(&self.held);
        held.moved + held.patience
    }

    pub fn push(&self, bytes: &[u8], now: Instant) {
        let mut held = held(&self.held);
        if held.given_up {
            held.dropped += bytes.len() as u64;
            return;
        }
        if held.bytes.is_empty() {
            held.moved = now;
        }
        // What was put back meanwhile may be too much, and is no reason to lose anything.
        let over = if now < held.moved + held.patience { 0 } else { held.bytes.len() + bytes.len() };
        let over = over.saturating_sub(BACKLOG_MAX).min(held.bytes.len());
        held.bytes.drain(..over);
        held.dropped += over as u64;
        held.bytes.extend(bytes);
        self.more.ring();
    }

    /// What comes from now on does not wait for the host.
    pub fn hurry(&self) {
        held(&self.held).patience = Duration::ZERO;
        self.room.ring();
    }

    /// No more will come.
    pub fn close(&self) {
        held(&self.held).closed = true;
        self.more.ring();
        self.end.ring();
    }

    // --- The sender's side ---

    /// Readable when there may be something to take.
    pub fn more(&self) -> BorrowedFd<'_> {
        self.more.watch()
    }

    /// Readable when no more will come.
    pub fn end(&self) -> BorrowedFd<'_> {
        self.end.watch()
    }

    /// What there is to take. Both facts are of one moment: an end that came between them would be waited for in vain, because nothing
    /// rings after it.
    pub fn look(&self) -> Offered {
        self.more.clear();
        let held = held(&self.held);
        Offered { is_ready: held.closed || !held.bytes.is_empty(), is_closed: held.closed }
    }

    pub fn is_closed(&self) -> bool {
        held(&self.held).closed
    }

    /// Takes the oldest bytes, at most so many.
    pub fn take(&self, max: usize, into: &mut Vec<u8>) -> Taken {
        let mut held = held(&self.held);
        let count = held.bytes.len().min(max);
        into.clear();
        into.extend(held.bytes.drain(..count));
        let dropped = std::mem::take(&mut held.dropped);
        held.dropped_before += dropped;
        Taken { dropped, is_end: held.closed && count == 0 }
    }

    /// What was taken could not be sent.
    pub fn put_back(&self, taken: &Taken, bytes: &[u8]) {
        let mut held = held(&self.held);
        held.dropped += taken.dropped;
        held.dropped_before -= taken.dropped;
        bytes.iter().rev().for_each(|byte| held.bytes.push_front(*byte));
    }

    /// The host has taken something.
    pub fn moved(&self, now: Instant) {
        held(&self.held).moved = now;
        self.room.ring();
    }

    /// Nothing more will be sent. How many bytes are lost by that now.
    pub fn give_up(&self) -> usize {
        let mut held = held(&self.held);
        held.given_up = true;
        let lost = std::mem::take(&mut held.bytes).len();
        held.dropped += lost as u64;
        self.room.ring();
        lost
    }

    /// Bytes that the host will never get.
    pub fn dropped(&self) -> u64 {
        let held = held(&self.held);
        held.dropped + held.dropped_before
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_full_backlog_waits_for_the_host_and_then_loses_the_oldest() {
        let start = Instant::now();
        let backlog = Backlog::new(Duration::from_secs(30)).expect("a backlog");
        backlog.push(b"oldest", start);
        backlog.push(&vec![b'x'; BACKLOG_MAX - 7], start);
        assert_eq!(backlog.takes(start), 1);
        backlog.push(b"y", start);
        assert_eq!(backlog.takes(start + Duration::from_millis(29_999)), 0);
        assert_eq!(backlog.deadline(), start + Duration::from_secs(30));
        assert_eq!(backlog.takes(start + Duration::from_secs(30)), BACKLOG_MAX);
        backlog.push(b"new", start + Duration::from_secs(30));
        let mut bytes = Vec::new();
        let taken = backlog.take(4, &mut bytes);
        assert_eq!(taken, Taken { dropped: 3, is_end: false });
        assert_eq!(bytes, b"estx");
        backlog.put_back(&taken, &bytes);
        assert_eq!(backlog.dropped(), 3);
        assert_eq!(backlog.take(usize::MAX, &mut bytes), Taken { dropped: 3, is_end: false });
        assert!(bytes.starts_with(b"estx") && bytes.ends_with(b"ynew") && bytes.len() == BACKLOG_MAX);
        backlog.close();
        assert_eq!(backlog.take(1, &mut bytes), Taken { dropped: 0, is_end: true });
        assert_eq!(backlog.dropped(), 3);
    }

    #[test]
    fn what_is_put_back_costs_nothing_that_came_meanwhile() {
        let now = Instant::now();
        let backlog = Backlog::new(Duration::from_secs(30)).expect("a backlog");
        backlog.push(&vec![b'a'; BACKLOG_MAX], now);
        let mut bytes = Vec::new();
        let taken = backlog.take(1000, &mut bytes);
        assert_eq!(backlog.takes(now), 1000);
        backlog.put_back(&taken, &bytes);
        backlog.push(&[b'b'; 1000], now);
        assert_eq!((backlog.takes(now), backlog.dropped()), (0, 0));
        assert_eq!(backlog.take(usize::MAX, &mut bytes), Taken { dropped: 0, is_end: false });
        assert_eq!(bytes.len(), BACKLOG_MAX + 1000);
    }

    #[test]
    fn a_full_backlog_in_a_hurry_takes_everything_at_the_cost_of_the_oldest() {
        let backlog = Backlog::new(Duration::from_secs(30)).expect("a backlog");
        let now = Instant::now();
        backlog.push(&vec![b'a'; BACKLOG_MAX], now);
        assert_eq!(backlog.takes(now), 0);
        backlog.hurry();
        assert_eq!(backlog.takes(now), BACKLOG_MAX);
        backlog.push(b"b", now);
        assert_eq!(backlog.dropped(), 1);
    }

    #[test]
    fn an_end_that_is_seen_can_be_taken() {
        for _ in 0..300 {
            let backlog = Backlog::new(Duration::from_secs(30)).expect("a backlog");
            thread::scope(|scope| {
                scope.spawn(|| backlog.close());
                loop {
                    let offered = backlog.look();
                    assert_eq!(offered.is_ready, offered.is_closed);
                    if offered.is_closed {
                        break;
                    }
                }
            });
        }
    }

    #[test]
    fn what_is_given_up_is_counted_and_takes_everything() {
        let now = Instant::now();
        let backlog = Backlog::new(Duration::from_secs(30)).expect("a backlog");
        backlog.push(&vec![0; BACKLOG_MAX], now);
        assert_eq!(backlog.give_up(), BACKLOG_MAX);
        assert_eq!(backlog.takes(now), BACKLOG_MAX);
        backlog.push(b"more", now);
        assert_eq!(backlog.dropped(), BACKLOG_MAX as u64 + 4);
    }
}
