//! Hyperstart's two channels, spoken to a real agent in bare bytes.
#![cfg(feature = "clear")]

mod channels;
mod ctl;
mod ending;
mod files;
mod fuzz;
mod pods;
mod programs;
mod rig;
mod streams;
#[path = "../support/mod.rs"]
mod support;
