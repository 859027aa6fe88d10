//! Many streams over one serial line that loses nothing, though others print on it.
//!
//! Both ends of the line are this program: the **opener** (a client) opens channels, the **acceptor** (an agent) accepts them. Nothing
//! above can tell a channel from a socket. The state machines (`frame`, `pace`, `sender`, `receiver`, `mux`, `session`) are pure: bytes
//! and a time in, bytes out. `pump` stands between a line and the local ends of its channels, in a thread of `opener` or `acceptor`.
//!
//! # What is on the line
//! Frames, among text that is not ours:
//!
//! ```text
//! 00  <body, COBS>  00
//! ```
//!
//! COBS (Cheshire and Baker, 1997) takes the zero bytes out of the body: each becomes the distance to the next, and the first distance
//! stands in front; 255 means 254 bytes with no zero behind them; a full last block is followed by nothing. A frame begins *and* ends
//! with a zero byte, so that half a frame ends where the next one begins.
//!
//! What stands between two zero bytes is a frame when its second byte is `fe` and everything below holds; anything else is the console's
//! text, byte for byte and in order, without the zero bytes. A segment whose second byte is another is text at once. One that began
//! like a frame is text too when it is 1,024 bytes longer than the longest frame, or has not ended 200 ms after the line fell
//! silent. A receiver may first try whether the segment becomes a frame without the lines that a kernel has printed into it; what it takes
//! out is text.
//!
//! Body; all numbers are little-endian:
//!
//! | offset | bytes | what |
//! | --- | --- | --- |
//! | 0 | 1 | version: `fe` is this one. `f8` to `ff` are versions, because no UTF-8 text has these bytes |
//! | 1 | 1 | kind |
//! | 2 | 2 | bytes of payload |
//! | 4 | 4 | session of the sender, random, never 0, never its last one |
//! | 8 | 4 | session of the receiver, as the sender knows it; 0: it does not |
//! | 12 | 2 | number of the next frame that the sender expects: it has all before. In ACK and in kinds from 8 on; 0 and without meaning in others |
//! | 14 | 2 | number of this frame; 0 in kinds below 8 |
//! | 16 | 2 | channel; 0 in kinds below 8 |
//! | 18 | n | payload |
//! | 18 + n | 4 | CRC-32 (as in gzip) of everything before |
//!
//! A frame has at most 1,024 bytes on the wire, zero bytes included, or what both ends allow in their greetings.
//!
//! | kind | name | payload |
//! | --- | --- | --- |
//! | 1 | HELLO | flags (bit 0: an answer is wanted, bit 1: the sender accepts channels), u16 longest frame on the wire that it takes (256 or more), u32 bytes on the wire that may be unacknowledged on the way to it (at least two such frames), u32 credit of each new channel in its direction |
//! | 2 | ACK | flags (bit 0: something damaged came just now, bit 1: an answer is wanted), then bits: which frames behind the expected one are there, the lowest bit of the first byte for the first of them |
//! | 8 | OPEN | u32 credit for the acceptor |
//! | 9 | DATA | bytes of the channel |
//! | 10 | END | none: the sender has no more data |
//! | 11 | RESET | u8 why: 0 the local side is gone, 1 too many channels, 2 more data than credit, 3 the agent has no room |
//! | 12 | CREDIT | u32 more bytes of credit |
//!
//! Kinds below 8 have no number, are not repeated and may be lost. Kinds from 8 on are numbered from 0 in each session and direction,
//! modulo 65,536, at most 256 under way; they take effect in their order, once. A receiver keeps those that came before one that it misses
//! (up to 255 numbers ahead; what it has listed in an ACK it may not drop) and acknowledges every one, also one that it has had before. A
//! receiver that does not know a kind ignores the frame; if it has a number, it acknowledges it. Bytes behind what a payload is said to
//! hold are ignored; a HELLO that is shorter is, too. The damage bit is a hint: its receiver may send the first unacknowledged frame again
//! at once, if that was under way long enough to have been what was damaged.
//!
//! # Sessions
//! An opener that wants something sends HELLO with the receiver's session 0 and asks for an answer, again and again until it has it. An
//! acceptor that gets that from a session it does not know ends the one that it has, chooses a new number for itself, and answers; one from
//! a session that it knows it answers again. From then on both put both numbers into all frames. An opener takes an answer only when it is
//! addressed to its session; an acceptor takes no HELLO that asks for nothing, and neither takes one of its own kind. A frame that is
//! addressed to another session than the receiver's, or comes from another than its peer's, is stale; an acceptor tells its sender so by a
//! HELLO, whose unknown number ends the session at the other end. A HELLO of an acceptor to session 0 says that it has just opened the
//! line. Whoever ends a session of his own accord has a new number from then on. A frame with the receiver's own session is an echo.
//!
//! # Channels
//! The opener chooses their numbers, any that is not in use, and may send as soon as it has sent OPEN. The first credit in its direction is
//! that of the acceptor's HELLO, in the other that of OPEN. A channel is over when both ends have sent END, or one has sent RESET, which is
//! not answered. Frames for a channel that is not there are ignored, an OPEN of one that is there as well, and every OPEN on its way to an
//! opener. More DATA than credit, or behind END, is answered by RESET.
//!
//! # Silence
//! Nothing is sent while no channel is open, but for answers, an agent's word that it has opened the line, and a hint of damage in a
//! session. While a channel is open or something is unacknowledged, each end asks for an answer (ACK, bit 1) when it has waited 5 s for a
//! sign of the other, and every 5 s after that; when it has heard nothing for 30 s it ends the session.

pub mod acceptor;
pub mod account;
pub mod console;
pub mod frame;
pub mod greeting;
pub mod mux;
pub mod opener;
pub mod pace;
pub mod pump;
pub mod receiver;
pub mod sender;
pub mod session;

/// Longest frame on a serial line, in bytes on the wire. At 115,200 baud it takes 89 ms, and a byte in 1,000 damaged still leaves every
/// third one whole; of larger ones the header (27 bytes) would hardly be a smaller part.
pub const FRAME_BYTES: usize = 1024;

/// The same where nothing damages or inserts anything: sockets and virtio ports.
pub const FRAME_BYTES_CLEAN: usize = 16 << 10;

/// Most unacknowledged bytes on the way over a serial line. Linux loses input silently beyond about 1.25 MiB that nobody reads (the flip
/// buffers of its terminals).
pub const WINDOW_BYTES: usize = 128 << 10;

/// The same over a virtio port, which makes the writer wait.
pub const WINDOW_BYTES_CLEAN: usize = 512 << 10;

/// Bytes that a channel's receiver holds for a reader that does not read.
pub const CREDIT: usize = 256 << 10;

/// Channels that an agent accepts on one line. Each may hold its credit: 16 MiB if nobody reads any.
pub const ACCEPT_MAX: usize = 64;

/// Kinds of frames.
pub mod kind {
    pub const HELLO: u8 = 1;
    pub const ACK: u8 = 2;
    /// The first kind with a number.
    pub const NUMBERED: u8 = 8;
    pub const OPEN: u8 = 8;
    pub const DATA: u8 = 9;
    pub const END: u8 = 10;
    pub const RESET: u8 = 11;
    pub const CREDIT: u8 = 12;
}

/// Why a channel was torn down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its local side has gone away.
    Gone = 0,
    TooMany = 1,
    /// More data than credit.
    Credit = 2,
    /// The agent has no place for another connection.
    NoRoom = 3,
    /// The session is over.
    Session = 4,
}

impl From<Option<u8>> for Reason {
    fn from(number: Option<u8>) -> Reason {
        match number {
            Some(1) => Reason::TooMany,
            Some(2) => Reason::Credit,
            Some(3) => Reason::NoRoom,
            _ => Reason::Gone,
        }
    }
}
