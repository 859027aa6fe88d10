//! How much may be under way, and how large frames shall be: learned from what has arrived.
//!
//! A line belongs to its two ends, so what is lost is lost to noise and not to congestion: losses shrink frames, not the window. The window
//! is what the line carries in its shortest round trip and a little more. More would only wait in a queue in front of whoever shares the
//! line, and a kernel's own queues are long: 4 KiB in front of a UART are 350 ms at 115,200 baud.

use std::time::{Duration, Instant};

/// How long what is sent may wait behind what was sent before. Short enough for a person who types, long enough to keep a line busy
/// while its ends wait for a processor.
const QUEUE: Duration = Duration::from_millis(40);

/// Longest time that one frame may take of the line, for the same reason.
const FRAME_TIME: Duration = Duration::from_millis(40);

/// How long one channel may have the line to itself while others wait, and how many bytes that may be.
const TURN: Duration = Duration::from_millis(1);
const TURN_MAX: usize = 16 << 10;

/// Bytes under way before anything is known of the line.
const FIRST_WINDOW: usize = 1024;

/// Bytes of payload of the first frames, of the smallest on a slow line, and of the smallest at all: below that the header is most of a
/// frame.
const FIRST_PAYLOAD: usize = 128;
const SLOW_PAYLOAD: usize = 128;
const LEAST_PAYLOAD: usize = 64;

/// How old the shortest round trip may become before it is measured anew, with almost nothing under way.
const BASE_AGE: Duration = Duration::from_secs(10);

/// The time-out before a round trip was measured, and its bounds after. The shortest is above the pauses of a busy machine.
const TIMEOUT_FIRST: Duration = Duration::from_millis(500);
const TIMEOUT_MIN: Duration = Duration::from_millis(25);
const TIMEOUT_MAX: Duration = Duration::from_secs(2);

/// What was known when a frame was sent.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub at: Instant,
    /// Bytes that had arrived by then.
    delivered: u64,
    /// Whether the window was full: only then the time it takes says how fast the line is.
    full: bool,
}

/// What has been learned of a line, in one direction.
#[derive(Debug)]
pub struct Pace {
    window_max: usize,
    payload_max: usize,
    /// Bytes on the wire that have arrived.
    delivered: u64,
    /// Bytes a second; 0: unknown.
    rate: u64,
    /// Smoothed round trip and its deviation.
    round_trip: Option<(Duration, Duration)>,
    /// The shortest round trip, and when it was found.
    base: Option<(Duration, Instant)>,
    /// Since when the base is measured anew.
    measuring: Option<Instant>,
    /// Time-outs since something arrived.
    timeouts: u32,
    /// Bytes of payload of a frame that noise leaves alone often enough.
    payload: usize,
    /// Something has been lost, ever.
    noisy: bool,
}

impl Pace {
    pub fn new(window_max: usize, payload_max: usize) -> Pace {
        Pace {
            window_max,
            payload_max,
            delivered: 0,
            rate: 0,
            round_trip: None,
            base: None,
            measuring: None,
            timeouts: 0,
            payload: FIRST_PAYLOAD.min(payload_max),
            noisy: false,
        }
    }

    /// Bytes of payload of the next frame.
    pub fn payload(&self) -> usize {
        let in_time = bytes_in(self.rate, FRAME_TIME);
        let in_time = if self.rate == 0 { FIRST_PAYLOAD } else { in_time.max(SLOW_PAYLOAD) };
        self.payload.min(in_time).min(self.payload_max)
    }

    /// Bytes that one of several channels may send before it is the next one's turn: what the line carries in no time to speak of, because
    /// each change costs the other end a system call.
    pub fn quantum(&self) -> usize {
        bytes_in(self.rate, TURN).clamp(1, TURN_MAX)
    }

    /// Bytes on the wire that may be under way. `frame`: those of one frame.
    pub fn window(&self, frame: usize) -> usize {
        // Two frames, so that the line is busy while the first one is acknowledged.
        let least = 2 * frame;
        match self.base {
            Some((base, _)) if self.rate != 0 && self.measuring.is_none() => {
                bytes_in(self.rate, base + QUEUE).clamp(least, self.window_max.max(least))
            }
            Some(_) if self.measuring.is_some() => least,
            _ => FIRST_WINDOW.max(least),
        }
    }

    /// A frame is sent; `full`: it is the last one that the window has room for.
    pub fn sent(&mut self, now: Instant, full: bool) -> Moment {
        if self.measuring.is_none() && self.base.is_some_and(|(_, at)| now.saturating_duration_since(at) > BASE_AGE) {
            self.measuring = Some(now);
        }
        Moment { at: now, delivered: self.delivered, full }
    }

    /// So many bytes on the wire have arrived.
    pub fn delivered(&mut self, bytes: usize) {
        self.delivered += bytes as u64;
        self.timeouts = 0;
        // One lost frame in nine makes shrinking and growing equal.
        let step = if self.noisy { self.payload / 64 } else { self.payload / 4 };
        self.payload = (self.payload + step.max(1)).min(self.payload_max);
    }

    /// A frame that was sent once has arrived: how long it took, and how much came with it.
    pub fn learn(&mut self, sent: Moment, now: Instant) {
        let sample = now.saturating_duration_since(sent.at).max(Duration::from_micros(20));
        self.round_trip(sample, now);
        // What was sent at that moment stood behind everything that was under way.
        if self.measuring.is_some_and(|since| sent.at > since) {
            self.measuring = None;
            self.base = Some((sample, now));
        }
        let bytes = self.delivered - sent.delivered;
        let rate = bytes.saturating_mul(1_000_000) / (sample.as_micros() as u64).max(1);
        if rate > self.rate {
            self.rate = rate;
        } else if sent.full {
            self.rate -= (self.rate - rate) / 8;
        }
    }

    /// A round trip was measured.
    pub fn round_trip(&mut self, sample: Duration, now: Instant) {
        self.round_trip = Some(match self.round_trip {
            None => (sample, sample / 2),
            Some((mean, deviation)) => ((mean * 7 + sample) / 8, (deviation * 3 + mean.abs_diff(sample)) / 4),
        });
        if self.base.is_none_or(|(base, _)| sample <= base) {
            self.base = Some((sample, now));
        }
    }

    /// A frame was lost.
    pub fn lost(&mut self) {
        self.noisy = true;
        self.payload = (self.payload - self.payload / 8).max(LEAST_PAYLOAD).min(self.payload_max);
    }

    /// The peer is there, though nothing has arrived whole.
    pub fn end_back_off(&mut self) {
        self.timeouts = 0;
    }

    /// Nothing came in time.
    pub fn timed_out(&mut self) {
        self.timeouts = (self.timeouts + 1).min(16);
    }

    /// How long to wait for an acknowledgement.
    pub fn timeout(&self) -> Duration {
        let once =
            self.round_trip.map_or(TIMEOUT_FIRST, |(mean, deviation)| mean + (deviation * 4).max(TIMEOUT_MIN / 2));
        (once.max(TIMEOUT_MIN) * (1 << self.timeouts.min(8))).min(TIMEOUT_MAX)
    }

    /// The usual round trip: what was sent later than this cannot well have been answered yet.
    pub fn mean(&self) -> Duration {
        self.round_trip.map_or(Duration::ZERO, |(mean, _)| mean)
    }
}

fn bytes_in(rate: u64, time: Duration) -> usize {
    usize::try_from(u128::from(rate) * time.as_micros() / 1_000_000).unwrap_or(usize::MAX)
}
