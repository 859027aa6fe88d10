//! A program as the tty channel has it: its streams, and the input that it does not read.

use std::time::Instant;

use crate::engine::running::Written;
use crate::proto::hyper::pair::Streams;
use crate::proto::hyper::tty::STUCK_PATIENCE;

pub struct Program {
    pub streams: Streams,
    /// Since when the channel waits for it, and it has read nothing of its input.
    pub full_since: Option<Instant>,
}

impl Program {
    /// Bytes of input that it has not read.
    pub fn queued(&self) -> usize {
        self.streams.running.flows.iter().map(|flow| flow.queued()).sum()
    }

    pub fn has_input(&self) -> bool {
        self.streams.running.flows.iter().any(|flow| flow.wr.is_some())
    }

    /// Takes input; none is its end.
    pub fn take(&mut self, data: &[u8]) {
        let is_on_terminal = self.streams.is_on_terminal;
        let Some(flow) = self.streams.running.flow(0) else { return };
        match data {
            [] if is_on_terminal => return,
            [] => flow.end(),
            data => flow.take(data),
        };
    }

    pub fn write_input(&mut self, index: usize, is_closed: bool) {
        let flow = &mut self.streams.running.flows[index];
        let before = flow.queued();
        let written = if is_closed { flow.closed_by_program() } else { flow.flush() };
        if written != Written::Open || flow.queued() < before {
            self.full_since = None;
        }
    }

    /// Notes since when its input holds up the channel; without `now` nothing does.
    pub fn look_at_queue(&mut self, now: Option<Instant>) {
        self.full_since = now.filter(|_| self.queued() > 0).map(|now| self.full_since.unwrap_or(now));
    }

    pub fn is_stuck(&self, now: Instant) -> bool {
        self.full_since.is_some_and(|since| now >= since + STUCK_PATIENCE)
    }

    pub fn end_input(&mut self) {
        for flow in &mut self.streams.running.flows {
            flow.closed_by_program();
        }
        self.full_since = None;
    }
}
