//! The command monitor on the wire, byte for byte: what clients of both upstream dialects send, and what nobody should.
//!
//! Section numbers are those of the specification of Google's command monitor.

#[path = "../support/line.rs"]
mod line;
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/weather.rs"]
mod weather;

mod client;
mod deadlines;
mod endings;
mod framing;
mod fuzz;
mod handlers;
mod hostile;
mod member;
mod monitor;
mod responses;
mod transports;
mod ways;
