//! Hyperstart's two channels, the agent's side: `ctl` for commands, and `tty` for the streams of the programs that they start.
//!
//! The host opens both; each is a connection of its own, with a protocol of its own that its address must pin, because the agent speaks first:
//! `,proto=hyper-ctl` and `,proto=hyper-tty`. All numbers are big-endian, and a length counts its header.
//!
//! ```text
//! ctl   code u32, length u32, payload
//! tty   sequence u64, length u32, data
//! ```
//!
//! The dialect is that of API 4242 (hyperstart 0.7 and the agent of Clear Containers 3.0): windows and exit codes by the sequence of tty, and
//! no events. Neither channel can find back into its order after a length that cannot be, and so ends with it.
//!
//! - `ctl` begins with READY. Every byte of a command is acknowledged with NEXT as it comes, because runV's host side waits for that; every
//!   command is answered with one ACK or ERROR, in their order.
//! - `tty` has the output of each program under its numbers, then an empty message, and then one with the exit code.
//! - There is one channel of each kind at a time. A further one waits a second for the end of the one before, and is closed.
//! - When `tty` ends the programs on it get a hang-up, as those of any connection: the output that was under way has gone. When `ctl` ends
//!   they go on, unless there is no `tty` either. Behind the last of both everything is forgotten, also the names of containers.
//! - `destroypod` ends all programs first, and is answered when the host has been told the end of each.
//! - On a virtio port a channel ends when the host closes it, and READY comes again for the next. The guest's kernel does not tell of a host
//!   that closes and opens it within a moment: that one is taken for the same.
//!
//! Source: the specification of the Clear Containers proxy, sections 9 to 13 (hyperhq/hyperstart 1.1, clearcontainers/hyperstart 0.7,
//! clearcontainers/agent 3.0).

pub mod commands;
pub mod ctl;
pub mod ending;
pub mod message;
mod network;
pub mod pair;
pub mod process;
mod programs;
pub mod tty;
/// Whether a protocol of that name is one of the two channels.
pub fn is_channel(name: &str) -> bool {
    [ctl::NAME, tty::NAME].contains(&name)
}
