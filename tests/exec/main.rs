//! What a client sees of the programs that an agent runs for it.

#[path = "../support/mod.rs"]
mod support;

mod bulk;
mod descriptors;
mod environment;
mod extended;
mod plain;
mod start;
mod terminal;
