//! Shells over WebSockets: one program, its three streams and its end, as taskcluster-worker frames them ("ws-shell", version 2).
//!
//! The *client* has the keyboard, the *server* has the process. One binary WebSocket message is one message here:
//!
//! | byte 0 | name | rest | sent by |
//! | --- | --- | --- | --- |
//! | 0 | data | 1 byte stream, then payload; none: the stream ends | client: stream 0; server: 1, 2 |
//! | 1 | ack | 1 byte stream, 4 bytes count | the receiver of that stream |
//! | 3 | size | 2 bytes columns, 2 bytes rows | client |
//! | 4 | abort | | client |
//! | 5 | exit | 1 byte: 0 is success | server |
//!
//! Numbers are big-endian. Whatever else comes is ignored. A stream has 65,536 bytes of credit: each byte of payload costs one, and an ack
//! gives back what the receiver has used up. Nothing here waits, or knows what a socket is. Source: taskcluster-worker at commit 595e1fa,
//! and what its programs do when they run.

pub mod alive;
pub mod client;
pub mod flow;
pub mod message;
pub mod server;

use std::io;

/// Bytes of one message, of either side. Upstream closes a connection with code 1009 at one more.
pub const MESSAGE_MAX: usize = 20_480;

/// The peer did what nothing can be done about.
fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
