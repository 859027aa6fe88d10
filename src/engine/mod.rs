//! The poll loop: many programs on one stream.
//!
//! The engine moves bytes between a peer and programs and knows no byte of any protocol; a `Codec` reads the peer's messages and writes
//! ours. Backpressure is bounded all the way: above `OUTBOX_HIGH` neither programs nor the peer are read, above `QUEUE_MAX` of input that a
//! program does not read the peer is not read, and what is not read is not in the poll set.

pub mod running;
mod turn;

use std::borrow::Cow;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crate::engine::turn::Engine;
use crate::exec::{self, NotStarted, Program};
use crate::stream::Stream;
use crate::stream::outbox::Outbox;
use crate::sys::fd;
use crate::sys::process::{self, Status};
use crate::sys::tty::Window;

/// Bytes waiting for the peer above which nothing is produced for it. All streams together may put as much on top in their last round.
pub const OUTBOX_HIGH: usize = 1 << 20;

/// Bytes of input that programs do not read, above which a peer that knows no credit is not read any more. Holds what such clients send
/// before they signal (1 MB), and bounds what one of them can make the agent keep.
pub const QUEUE_MAX: usize = 1 << 20;

/// Programs on one connection. Each has a process, a zombie and three descriptors or more.
pub const PROGRAMS_MAX: usize = 64;

/// Bytes of one read from a program.
pub const CHUNK: usize = 256 << 10;

/// Bytes that a stream may have at least, however many others have output too: what is smaller costs more in calls than in memory.
const SHARE_MIN: usize = 4 << 10;

/// A read of this many bytes emptied a whole pipe of the default size: the program writes in bulk, and a larger pipe halves the wake-ups.
pub const PIPE_FULL: usize = 64 << 10;

/// How long messages about a program's start and about the end of its output may wait for company. A short program says everything within
/// it, and each write on its own would wake the peer just when the processor is wanted for the program.
const LULL: Duration = Duration::from_millis(1);

/// How long a connection keeps the buffers of what it did last. Bulk data comes in requests microseconds apart, for which they must stay.
const IDLE: Duration = Duration::from_millis(50);

/// How long a peer that has ended its direction may leave our last answers unread.
const LINGER: Duration = Duration::from_secs(10);

/// What the peer's first message asks for.
#[derive(Debug)]
pub enum Action<'a> {
    /// Nothing, or the codec has done it.
    None,
    /// `credit` bytes may be sent on each stream at first, `None`: without end.
    Start {
        id: u32,
        program: Result<Box<Program>, NotStarted>,
        credit: Option<u64>,
    },
    Input {
        id: u32,
        stream: u32,
        data: Cow<'a, [u8]>,
    },
    EndInput {
        id: u32,
        stream: u32,
    },
    Signal {
        id: u32,
        signal: i64,
    },
    Resize {
        id: u32,
        window: Window,
    },
    Credit {
        id: u32,
        stream: u32,
        bytes: u32,
    },
    /// The programs' client has gone, but its line goes on with another one.
    HangUp,
    /// The peer takes its leave.
    Close,
}

/// How far a codec came.
#[derive(Debug)]
pub enum Step<'a> {
    /// The message in front is not all there; it has at least `expected` bytes.
    Incomplete { expected: usize },
    /// A message of `used` bytes.
    Message { used: usize, action: Action<'a> },
    /// The peer cannot be understood any more. The codec has said so; nothing more is read.
    Broken { why: String },
}

/// What happened to a program.
#[derive(Debug)]
pub enum Event<'a> {
    Started {
        id: u32,
        pid: i32,
        detached: bool,
    },
    NotStarted {
        id: u32,
        why: &'a NotStarted,
    },
    OutputEnded {
        id: u32,
        stream: u32,
    },
    /// The program has closed its input, or ended.
    InputClosed {
        id: u32,
        stream: u32,
    },
    /// So many more bytes may be sent.
    Granted {
        id: u32,
        stream: u32,
        bytes: u32,
    },
    Ended {
        id: u32,
        status: Status,
    },
    /// Something that only a log should tell.
    Note {
        level: log::Level,
        text: String,
    },
}

/// A protocol, as the engine needs it.
pub trait Codec {
    /// The connection is open; who speaks first may do so.
    fn begin(&mut self, out: &mut Outbox);

    /// Acts on the message in front of `input`, or says how much is missing. Answers that need no program go to `out`.
    fn decode<'a>(&mut self, input: &'a [u8], out: &mut Outbox) -> Step<'a>;

    /// Writes the message about an event, if the protocol has one.
    fn encode(&mut self, event: Event, out: &mut Outbox);

    /// What stands before and behind `length` bytes of a program's output in their message.
    fn around(&mut self, id: u32, stream: u32, length: usize) -> (&[u8], &[u8]);

    /// Bytes that the peer may send on a stream before it is granted more; `None`: the peer knows no credit.
    fn window(&self) -> Option<u32>;

    /// The peer sends no more.
    fn end_of_input(&mut self, out: &mut Outbox);

    /// Whether the connection is over: its last job is done.
    fn is_done(&self) -> bool;
}

/// How a connection ended, when no error ended it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The peer closed it, or its last job was done.
    Regular,
    /// The peer closed it before it had asked for anything.
    Unused,
    /// The peer sent what cannot be understood.
    Broken(String),
}

/// Serves one connection until it ends; `head` are bytes of it that were read already. It also
/// ends as soon as `stop` can be read. The programs that still run then are hung up on.
///
/// # Errors
/// Those of read(2), write(2) and poll(2) on the stream.
pub fn run(stream: Stream, head: &[u8], codec: &mut impl Codec, stop: BorrowedFd) -> io::Result<Ended> {
    stream.set_nonblocking(true)?;
    // Where it is forbidden programs end a little later.
    let _ = process::be_patient();
    let mut engine = Engine::new(stream, head, codec, stop);
    let result = engine.serve();
    let (stream, sessions, broken) = engine.into_rest();
    close(&stream);
    drop(stream);
    if !sessions.is_empty() {
        exec::hang_up(sessions);
    }
    match result {
        Err(error) if !is_departure(&error) => Err(error),
        _ => Ok(broken.map_or(Ended::Regular, Ended::Broken)),
    }
}

/// Whether an error says no more than that the peer has gone. A vsock that was reset under its connections is not connected any more.
fn is_departure(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected, TimedOut};
    matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected | TimedOut)
}

/// Ends our direction first and takes in what the peer had under way: closing a socket with unread input resets it, and the
/// peer might lose our last answer.
fn close(stream: &Stream) {
    /// How long to wait for more, how long to go on, and how much to take at most: the programs of the connection wait for their hang-up.
    const PAUSE: Duration = Duration::from_millis(100);
    const DRAIN: Duration = Duration::from_millis(500);
    const DRAIN_BYTES: usize = 8 << 20;
    if fd::shutdown_write(stream.output()).is_err() {
        return;
    }
    let deadline = Instant::now() + DRAIN;
    let (mut waste, mut drained) = ([0; 4096], 0);
    while drained < DRAIN_BYTES
        && Instant::now() < deadline
        && fd::wait_for(stream.input(), fd::READ, Some(PAUSE)).is_ok_and(|ready| ready.readable)
    {
        match fd::read(stream.input(), &mut waste) {
            Ok(0) | Err(_) => return,
            Ok(count) => drained += count,
        }
    }
}
