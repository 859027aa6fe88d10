//! The messages between agent and client: MachineProxy's agentproto, and our extensions of it.
//!
//! # Bytes
//! Each direction is a CBOR sequence (RFC 8742): one map a frame, back to back; no length prefix, no magic. The writer is "canonical" in
//! the sense of RFC 7049 section 3.9: definite lengths, shortest heads, keys by length and then by bytes. Members are left out when zero
//! or empty, but for those that upstream's encoder always writes. The reader takes what upstream's decoder (fxamacker/cbor 2.9) takes.
//!
//! | `t` | frame | direction | members |
//! | --- | --- | --- | --- |
//! | 1 | Exec | to agent | `x` {`cwd`, `env`, `fds`, `argv`, `path`} |
//! | 2 | Data | both | `d` bytes, `s` stream |
//! | 3 | EOF | both | `s` |
//! | 4 | Signal | to agent | `sig` |
//! | 5 | Exit | to client | `c` code, `e` error text |
//! | 6 | Error | to client | `e` |
//! | 7 | Log | to client | `l` {`a`, `lvl`, `msg`} |
//! | 8 | Config | to agent | `cfg` {`env_keep`, `env_remove`} |
//! | 9, 10 | PathQuery, PathInfo | to agent, to client | `q` {`paths`}, `i` {`entries`} |
//! | 11, 12 | FileOp, FileResp | to agent, to client | `fop`, `frp`: `wire::file` |
//!
//! Source: github Jamesits/MachineProxy, `pkg/agentproto`, at the level of its version 1.3.0.
//!
//! # Extensions
//! All of them stand under keys and types that upstream's ends ignore, and the agent sends none of them to a client that has not said
//! Hello (but for the `nb` and `pb` keys, and only with names that are not UTF-8). Without Hello a connection lives as upstream's does: one
//! job, a second one is dropped.
//!
//! | `t` | frame | direction | members | meaning |
//! | --- | --- | --- | --- | --- |
//! | 224 | Hello | both | `hi` {`log`, `rev`, `win`, `mark`, `prog`} | first frame of our client; the agent answers with its own. On a line without connections the agent also says it when it opens the line |
//! | 225 | Credit | both | `id`, `s`, `n` | `n` more bytes may be sent on that stream |
//! | 226 | Resize | to agent | `id`, `rows`, `cols` | new size of the program's terminal |
//! | 227 | Started | to client | `id`, `pid` | the program runs; the last frame about a detached one |
//! | 228 | Goodbye | to agent | – | ends the connection where the line cannot be closed |
//!
//! - `id` in Exec, Data, EOF, Signal, Exit: the number of the program, so that many run on one connection, mixed with file operations.
//! - Credit: an Exec with `cred` makes the agent stop on each stream after so many bytes, and go on as Credit frames come. The other way the
//!   agent's Hello tells the `win`dow of each input stream, and it grants more as the program reads. So neither end ever has to
//!   stop reading the connection, and a Signal always gets through. EOF from the agent on stream 0: the program closed its input.
//! - Exec: `window` [rows, columns] (run on a terminal; output comes on stream 1), `user` "USER:GROUP", `mask` (umask), `detach`,
//!   `setenv` [bytes "K=V"] (set on top of `env`). Exit: `er`, the error number of a program that could not start.
//! - File operations: `NEXT_DATA` (200), `nf` (Chtimes does not follow a link), `pg` (a listing may come in several answers, all but the
//!   last with `more`). Clients may write and ask for up to `CHUNK_MAX` bytes at once.
//! - Names that are not UTF-8: `pathb`, `cwdb`, `argvb`, `envb`, `pb`, `npb`, `nb` hold the bytes. The text beside them is `wire::name`'s
//!   reversible spelling, so that upstream's clients can list, open and remove such files too, under names with characters from U+EF80
//!   to U+EFFF. A name in a request that has such characters and no bytes key means the bytes.
//!
//! # Limits
//! `ITEM_MAX` below, depth and element counts in `scan`. Over a limit the agent sends an Error frame that names it, and ends the connection.

pub mod cbor;
pub mod exec;
pub mod file;
pub mod frame;
pub mod mode;
pub mod name;
pub mod record;
pub mod scan;
pub mod writer;

/// Bytes of the largest item that either end takes. Upstream's clients put into one frame whatever their caller hands to a single write; 4 MiB
/// holds the largest of the usual buffers and is bearable in a guest of 32 MiB.
pub const ITEM_MAX: usize = 4 << 20;

/// Bytes of payload in one Data frame or file answer between our own ends. Upstream sends 32 KiB; larger chunks cost fewer wake-ups, and
/// above 256 KiB nothing more was gained.
pub const CHUNK_MAX: usize = 256 << 10;

/// Bytes of a stream that may be on their way before the receiver grants more: four chunks, so that one is always under way while another is
/// consumed, and still less than what a serial line's driver buffers (about 1.25 MiB).
pub const WINDOW: u32 = 1 << 20;

/// Revision of the extensions that this code speaks.
pub const REVISION: u32 = 1;

/// First bytes of a frame: a map, in one piece or open, a tag around one, or null.
pub fn starts_frame(byte: u8) -> bool {
    matches!(byte, 0xa0..=0xbf | 0xc0..=0xdb | 0xf6 | 0xf7)
}
