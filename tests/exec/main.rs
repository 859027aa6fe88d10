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

/// Ends a process with the test, which is that of no client any more.
struct Left(u32);

impl Drop for Left {
    fn drop(&mut self) {
        let _ = lodger::sys::signal::send(self.0 as i32, lodger::sys::signal::SIGKILL);
    }
}
