//! A recording's output, in its own time.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::cli::{Failure, complain};
use crate::sys::fd;
use crate::wire::frame::Frame;
use crate::wire::record::{Direction, Record};

/// How time passes.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How many times as fast as it was; `None`: without pauses.
    pub speed: Option<f64>,
    /// Longest pause, before it is sped up.
    pub idle_limit: Option<Duration>,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { speed: Some(1.0), idle_limit: None }
    }
}

impl Pace {
    /// How long to wait after a pause of so many nanoseconds in the recording. Clocks that were set back count as none.
    fn pause(self, ns: i64) -> Duration {
        let Some(speed) = self.speed else { return Duration::ZERO };
        let pause = limited(ns, self.idle_limit);
        // What is longer than a Duration can say is as good as for ever.
        Duration::try_from_secs_f64(pause.as_secs_f64() / speed).unwrap_or(Duration::from_secs(u64::from(u32::MAX)))
    }
}

/// A pause of so many nanoseconds, none if they are negative, and no longer than the limit.
pub fn limited(ns: i64, limit: Option<Duration>) -> Duration {
    let pause = Duration::from_nanos(u64::try_from(ns).unwrap_or(0));
    limit.map_or(pause, |limit| pause.min(limit))
}

/// Plays records.
pub struct Player {
    pace: Pace,
    /// When the last record was due here, and when it happened.
    last: Option<(Instant, i64)>,
}

impl Player {
    pub fn new(pace: Pace) -> Player {
        Player { pace, last: None }
    }

    /// Plays one record when its time has come. An error of `BrokenPipe` is silent.
    pub fn play(&mut self, record: &Record) -> Result<(), Failure> {
        match record {
            Record::Start { start_ns, .. } => Ok(self.wait(*start_ns)?),
            Record::Frame { seq, time_ns, direction: Direction::ToClient, frame } => match frame {
                Frame::Data { stream: 1, data, .. } => {
                    self.wait(*time_ns)?;
                    let mut out = io::stdout().lock();
                    out.write_all(data)?;
                    Ok(out.flush()?)
                }
                Frame::Data { stream: 2, data, .. } => {
                    self.wait(*time_ns)?;
                    Ok(io::stderr().lock().write_all(data)?)
                }
                Frame::Exit { error, .. } if !error.is_empty() => {
                    complain("replay", &format!("command {seq} did not start: {error}"));
                    Ok(())
                }
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Waits until what happened at `time_ns` is due, or nobody listens any more.
    fn wait(&mut self, time_ns: i64) -> io::Result<()> {
        let now = Instant::now();
        let (before, before_ns) = self.last.unwrap_or((now, time_ns));
        let due = before + self.pace.pause(time_ns.saturating_sub(before_ns));
        self.last = Some((due, time_ns));
        loop {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            if fd::wait_for(io::stdout().as_fd(), fd::HANG_UP, Some(left))?.hung_up {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_cut_before_it_is_sped_up() {
        let pace = |speed, limit: Option<u64>| Pace { speed, idle_limit: limit.map(Duration::from_secs) };
        assert_eq!(pace(Some(1.0), None).pause(3_000_000_000), Duration::from_secs(3));
        assert_eq!(pace(Some(0.5), None).pause(3_000_000_000), Duration::from_secs(6));
        assert_eq!(pace(Some(2.0), Some(1)).pause(3_000_000_000), Duration::from_millis(500));
        assert_eq!(pace(None, None).pause(i64::MAX), Duration::ZERO);
    }

    #[test]
    fn clocks_that_were_set_back_and_absurd_times_are_borne() {
        let pace = Pace::default();
        assert_eq!(pace.pause(-1), Duration::ZERO);
        assert_eq!(pace.pause(i64::MIN), Duration::ZERO);
        let slow = Pace { speed: Some(f64::MIN_POSITIVE), idle_limit: None };
        assert!(slow.pause(i64::MAX) > Duration::from_secs(1_000_000));
    }
}
