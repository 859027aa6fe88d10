//! Connections that have not said a word yet: they wait without a thread, and do not keep others out.

use std::collections::VecDeque;
use std::time::Instant;

use crate::proto::Protocol;
use crate::proto::settings::Settings;
use crate::stream::Stream;
use crate::sys::fd::{self, PollSet};

/// Connections that may be silent at once. Each costs a descriptor; a client that has connected usually speaks at once, and when more are
/// silent the one that has been it for longest goes.
pub const SILENT_MAX: usize = 128;

/// A connection that was accepted.
pub struct Arrival {
    pub stream: Stream,
    pub pinned: Option<&'static Protocol>,
    pub accepted: Instant,
}

impl Arrival {
    /// When its protocol wants to be told that nothing has come.
    fn deadline(&self, settings: &Settings) -> Option<Instant> {
        self.pinned.and_then(|protocol| protocol.deadline(settings, self.accepted))
    }
}

/// The silent ones, by the time of their arrival.
#[derive(Default)]
pub struct Arrivals {
    silent: VecDeque<Arrival>,
}

impl Arrivals {
    /// Lets a connection wait; gives back one that must go for it.
    pub fn push(&mut self, arrival: Arrival) -> Option<Arrival> {
        let first = if self.silent.len() == SILENT_MAX { self.silent.pop_front() } else { None };
        self.silent.push_back(arrival);
        first
    }

    pub fn is_empty(&self) -> bool {
        self.silent.is_empty()
    }

    /// Takes out the one that has been silent for longest.
    pub fn pop(&mut self) -> Option<Arrival> {
        self.silent.pop_front()
    }

    /// Puts all of them into a poll set.
    pub fn watch(&self, set: &mut PollSet) {
        for arrival in &self.silent {
            set.watch(arrival.stream.input(), fd::READ);
        }
    }

    /// When the first of them has been silent for too long.
    pub fn deadline(&self, settings: &Settings) -> Option<Instant> {
        self.silent.iter().filter_map(|arrival| arrival.deadline(settings)).min()
    }

    /// Takes out those who have spoken or gone, or have been silent for too long. `first` is the number of the first entry of `watch`.
    pub fn take(&mut self, set: &PollSet, first: usize, settings: &Settings, now: Instant) -> Vec<Arrival> {
        let mut due = Vec::new();
        let silent = std::mem::take(&mut self.silent);
        for (index, arrival) in silent.into_iter().enumerate() {
            let is_late = || arrival.deadline(settings).is_some_and(|deadline| deadline <= now);
            if set.ready(first + index).readable || is_late() {
                due.push(arrival);
            } else {
                self.silent.push_back(arrival);
            }
        }
        due
    }
}
