//! Whether the peer is there: when it is asked, and when it counts as gone.

use std::time::{Duration, Instant};

/// From one ping to the next; the first is as late. Upstream's numbers, as the next two.
pub const PING_EVERY: Duration = Duration::from_secs(15);

/// How long a peer may leave pings without an answer. Nothing else that it sends counts.
pub const PONG_WITHIN: Duration = Duration::from_secs(45);

/// How long a peer may take nothing of what waits for it. Upstream measures from the beginning of each message; a peer so slow that the
/// difference matters does not get our pings in time either.
pub const WRITE_WITHIN: Duration = Duration::from_secs(30);

/// The timers of one connection.
#[derive(Debug)]
pub struct Alive {
    ping_at: Instant,
    read_until: Instant,
    /// Something waits to be written.
    write_until: Option<Instant>,
}

impl Alive {
    /// The connection has just been opened.
    pub fn new(now: Instant) -> Alive {
        Alive { ping_at: now + PING_EVERY, read_until: now + PONG_WITHIN, write_until: None }
    }

    /// How long to wait at most before `ping_due` and `is_gone` are asked again.
    pub fn deadline(&self, now: Instant) -> Duration {
        let next = self.ping_at.min(self.read_until);
        self.write_until.map_or(next, |at| at.min(next)).saturating_duration_since(now)
    }

    /// Whether to send a ping now; then the next one is due later.
    pub fn ping_due(&mut self, now: Instant) -> bool {
        let due = now >= self.ping_at;
        if due {
            // After a pause of the machine, one ping is enough.
            self.ping_at = now + PING_EVERY;
        }
        due
    }

    /// A pong has come.
    pub fn ponged(&mut self, now: Instant) {
        self.read_until = now + PONG_WITHIN;
    }

    /// So many bytes were written, and so many still wait. Say so after each time something was queued or flushed.
    pub fn flushed(&mut self, now: Instant, written: usize, waiting: usize) {
        if waiting == 0 {
            self.write_until = None;
        } else if written > 0 || self.write_until.is_none() {
            self.write_until = Some(now + WRITE_WITHIN);
        }
    }

    /// Whether the peer has had all of its time.
    pub fn is_gone(&self, now: Instant) -> bool {
        now >= self.read_until || self.write_until.is_some_and(|until| now >= until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const LITTLE: Duration = Duration::from_millis(1);

    #[test]
    fn pings_are_due_every_fifteen_seconds() {
        let start = Instant::now();
        let mut alive = Alive::new(start);
        assert_eq!(alive.deadline(start), 15 * SECOND);
        assert!(!alive.ping_due(start + 15 * SECOND - LITTLE));
        assert!(alive.ping_due(start + 15 * SECOND));
        assert!(!alive.ping_due(start + 15 * SECOND));
        assert_eq!(alive.deadline(start + 20 * SECOND), 10 * SECOND);
        assert!(alive.ping_due(start + 30 * SECOND));
    }

    #[test]
    fn only_pongs_keep_a_peer_alive() {
        let start = Instant::now();
        let mut alive = Alive::new(start);
        alive.flushed(start + 40 * SECOND, 1000, 0);
        assert!(!alive.is_gone(start + 45 * SECOND - LITTLE));
        assert!(alive.is_gone(start + 45 * SECOND));
        alive.ponged(start + 40 * SECOND);
        assert!(!alive.is_gone(start + 85 * SECOND - LITTLE));
        assert!(alive.is_gone(start + 85 * SECOND));
        assert_eq!(alive.deadline(start + 100 * SECOND), Duration::ZERO);
    }

    #[test]
    fn a_peer_that_takes_nothing_for_half_a_minute_is_gone() {
        let start = Instant::now();
        let mut alive = Alive::new(start);
        alive.flushed(start, 0, 10);
        alive.flushed(start + 10 * SECOND, 0, 20);
        assert!(!alive.is_gone(start + 30 * SECOND - LITTLE));
        assert!(alive.is_gone(start + 30 * SECOND));
        alive.flushed(start + 10 * SECOND, 1, 19);
        assert!(!alive.is_gone(start + 40 * SECOND - LITTLE));
        assert!(alive.is_gone(start + 40 * SECOND));
        alive.flushed(start + 12 * SECOND, 19, 0);
        assert!(!alive.is_gone(start + 44 * SECOND));
    }
}
