//! `process.*`: what runs, signals to it, and programs run to their end.

pub mod list;
pub mod run;
pub mod signal;

use crate::commands::Error;
use crate::exec::NotStarted;
use crate::sys::file::{E2BIG, EACCES, EINVAL, ENOENT, EPERM};

/// Longest time that a program can be given, in seconds: a day. What takes longer should not depend on one connection.
pub const TIMEOUT_MAX_SECONDS: u64 = 24 * 60 * 60;

/// Why a program does not run, as a command's error.
pub fn not_started(why: &NotStarted) -> Error {
    let text = why.text();
    match why.errno() {
        ENOENT => Error::NotFound(text),
        EACCES | EPERM => Error::Denied(text),
        // A user that nobody knows, a NUL in an argument, too many of them.
        EINVAL | E2BIG => Error::BadArgument(text),
        _ => Error::Failed(text),
    }
}
