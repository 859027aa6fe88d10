//! The proxy of Clear Containers on the wire: its frames, commands, sessions and streams, and what crashes or hangs upstream's.
//!
//! Section numbers are those of the specification of Clear Containers.
#![cfg(feature = "clear")]

#[path = "../support/mod.rs"]
mod support;

mod broken;
mod bulk;
mod client;
mod commands;
mod golden;
mod left;
mod limits;
mod pods;
mod processes;
mod shims;
mod signals;
