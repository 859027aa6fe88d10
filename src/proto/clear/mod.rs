//! The proxy of Clear Containers, version 2 of its protocol, with the agent behind it in the same process and no containers.
//!
//! Everything is a frame; all integers are big endian:
//!
//! ```text
//! 0        2             3   6                     7        8                4 * words
//! | u16: 2 | u8 words, 3.. | u8 flags:4, type:4 | u8 opcode | u32 payload bytes | longer header | payload
//!
//! > 00 02 03 00 00 00 00 03 00 00 00 22  {"hyperName":"ping","tokens":null}
//! < 00 02 03 00 00 00 01 03 00 00 00 00
//! < 00 02 03 00 00 00 11 02 00 00 00 1f  {"msg":"unknown containerID: "}     0x10 in the type: an error
//! < 00 02 03 00 00 00 02 01 00 00 00 04  out\n                               a stream
//! < 00 02 03 00 00 00 03 00 00 00 00 01  07                                  the exit code
//! ```
//!
//! First byte: the upper half of the version, 0.
//!
//! | type | opcodes |
//! | --- | --- |
//! | 0 command, 1 response | 0 RegisterVM, 1 UnregisterVM, 2 AttachVM, 3 Hyper, 4 ConnectShim, 5 DisconnectShim, 6 Signal |
//! | 2 stream | 0 stdin, 1 stdout, 2 stderr, 3 log |
//! | 3 notification | 0 ProcessExited |
//!
//! A *runtime* registers a virtual machine and gets tokens, a *shim* claims a token, and `execcmd` or `newcontainer` with that token starts
//! a process whose streams and end are the shim's. Commands of a connection are answered in order. What cannot be understood ends its
//! connection and nothing else.
//!
//! What differs from upstream, beside what crashes or hangs there:
//! - Programs run here, in no container; `ctlSerial` and `ioSerial` are not opened, and frames of input may be longer.
//! - A shim that lost its connection gets its session back with its token: the process goes on, frames that were not written in full are
//!   written again, and so is the exit code. What the kernel had taken for the old connection is gone with it. Up to a megabyte of output and
//!   one of input wait for that meanwhile. A process whose shim does not come back within `Times::abandoned` is hung up on; what one has said
//!   that ends before waits on, up to `keeper::RESTS_MAX` of all.
//! - Input of a process that was started is neither lost nor without a limit: of a shim that has sent a megabyte more than its process reads,
//!   nothing is read until that reads some, its signals behind that input neither. `killcontainer` and `signalprocess` on another connection
//!   get through, and a signal of the same shim when it comes back with its token.
//! - Every process can be signalled, by its number or its container's name; 1 means all that were started without a token. Signals for a
//!   container are for its first process alone, whose process group does not outlive it, or with `allProcesses` for the groups of all; those for
//!   a process that was started later are for its process group. After signal 9 or 15 the response comes behind ProcessExited, as upstream's client library
//!   wants it; when the process takes longer than `Times::end` or the client sends its next command, the response comes first, and that
//!   library takes it for an error although the signal was sent.
//! - A process without a token has no input, and one whose shim has disconnected none behind what that has sent; the output of both is thrown
//!   away.
//! - UnregisterVM forgets the machine and its unused tokens; processes live on until they end, or the agent does.
//!
//! Source: `clearcontainers/proxy` 3.0.23, its `api` and `client`; the specification of Clear Containers, sections 2 to 8 and 13.

mod agent;
mod commands;
pub mod connection;
mod ending;
pub mod frame;
mod held;
mod keeper;
mod outgoing;
pub mod registry;
mod session;
mod shim;
mod start;

use crate::proto::go;

/// For `,proto=NAME` in an address.
pub const NAME: &str = "clear";

/// Virtual machines at once. Each is a name; a guest is one machine, and tests have several.
pub const VMS_MAX: usize = 64;

/// Tokens of one virtual machine whose shims have not taken their leave.
pub const TOKENS_MAX: usize = 1024;

/// Tokens of one request: their response stays below 16 KiB.
pub const TOKENS_REQUEST_MAX: usize = 256;

/// Tokens of all machines. Each costs about 400 bytes.
pub const SESSIONS_MAX: usize = 4096;

/// Tokens that are remembered as claimed after their shims have taken their leave.
pub const DEAD_TOKENS_MAX: usize = 1024;

/// Bytes in front of a message of upstream's proxy to its agent.
const AGENT_HEADER_BYTES: usize = 8;

/// Bytes of such a message with those. Upstream's number, from the buffer of the first agents; what clients send was made for it.
pub const AGENT_MESSAGE_MAX: usize = 10_240;

/// Containers that are remembered; beyond it those are forgotten whose processes have ended, of which there may be `PROCESSES_MAX` others.
pub const CONTAINERS_MAX: usize = 1024;

/// Bytes of the name of a machine or a container: more than any runtime's 64 digits, and a file's name.
pub const ID_MAX: usize = 255;

/// Processes at once. Each has a zombie and up to eight descriptors, where it is guarded; as many as there are connections.
pub const PROCESSES_MAX: usize = 256;

/// Whether a connection that begins with this byte speaks it.
pub fn begins_with(byte: u8) -> bool {
    byte == 0
}

/// The message to a client for whom there is no place: the error response to whatever it would have asked first.
pub fn refusal(why: &str) -> Vec<u8> {
    let payload = go::error(why);
    [&frame::error_header(frame::REGISTER_VM, payload.len())[..], &payload].concat()
}
