//! Lodger: guest agent, process 1 and host client in one.
//!
//! A **stream** is two descriptors. A **transport** makes streams. A **protocol** is a function that is given a stream and its first bytes,
//! and runs until it ends. **Services** (programs, files) are plain Rust and know no protocol. The **engine** is the one poll loop, for the
//! protocols that stream. **Process 1** is another process of the same binary, so that nothing that happens to the agent can take the
//! machine down.
//!
//! In reading order; a module names only modules above it (`tests/layering.rs` has the table):
//!
//! | module | what |
//! | --- | --- |
//! | [`sys`] | every system call, and all of the `unsafe` |
//! | [`wire`] | the messages of both directions, as CBOR |
//! | [`cpio`] | archives that a kernel unpacks |
//! | [`crc`] | the sum that frames and archives are checked with |
//! | [`json`] | where a JSON text ends, and what its strings say |
//! | [`version`] | what this program is |
//! | [`power`] | the end of the machine, and who is asked for it |
//! | [`stream`] | two descriptors, and the buffers on both sides of them |
//! | [`link`] | many streams over one serial line that loses nothing |
//! | [`network`] | addresses, routes and names of the machine (with the feature `openstack`) |
//! | [`exec`] | one program: its start, its numbered streams, its end |
//! | [`files`] | file operations, and the open files of a connection |
//! | [`websocket`] | messages both ways on a stream that began as HTTP |
//! | [`http`] | HTTP/1.1 of both sides, streamed (with the feature `metadata`) |
//! | [`metaservice`] | what both sides of the metadata service have in common |
//! | [`transport`] | addresses; listening and connecting |
//! | [`shell`] | one program at the other end of a WebSocket |
//! | [`commands`] | named calls, and the table of them |
//! | [`engine`] | many programs on one stream |
//! | [`proto`] | bytes to calls of services, one protocol a file |
//! | [`notify`] | readiness, for whoever started the machine |
//! | [`server`] | listeners, and a thread for each connection |
//! | [`client`] | the host's side of a connection |
//! | [`metadata`] | one task for a guest that asks for it over HTTP |
//! | [`monitor`] | commands of a program of one's own |
//! | [`mkinitramfs`] | which files go into an archive |
//! | [`init`] | process 1 |
//! | [`config`] | what an agent is told by files and options |
//! | [`vm`] | guests under QEMU |
//! | [`cli`] | the commands |
//!
//! # Example
//! An agent of one's own on a socket pair, and a program run through it:
//!
//! ```
//! use std::os::fd::AsFd;
//!
//! use lodger::client::Connection;
//! use lodger::commands::table::Table;
//! use lodger::proto::settings::Settings;
//! use lodger::proto::{self, Circumstances, Opening};
//! use lodger::stream::Stream;
//!
//! let (ours, theirs) = Stream::pair()?;
//! // Readable when the agent shall end; here nobody ever writes into the other end.
//! let (stop, _never) = lodger::sys::fd::pipe()?;
//! let agent = std::thread::spawn(move || {
//!     let settings = &Settings::with(Table::of_agent());
//!     let (accepted, stop) = (std::time::Instant::now(), stop.as_fd());
//!     proto::serve(theirs, &[], &Circumstances { pinned: None, opening: Opening::Peer, stop, accepted, settings })
//! });
//! let mut connection = Connection::open(ours);
//! let output = connection.output(["sh", "-c", "echo hello; exit 3"])?;
//! assert_eq!((output.code, output.stdout.as_slice()), (3, &b"hello\n"[..]));
//! assert!(connection.stat(b"/")?.is_directory());
//! connection.close();
//! agent.join().expect("the agent does not panic")?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![deny(unsafe_code)]

pub mod cli;
pub mod client;
pub mod commands;
pub mod config;
pub mod cpio;
pub mod crc;
pub mod engine;
pub mod exec;
pub mod files;
#[cfg(feature = "metadata")]
pub mod http;
pub mod init;
pub mod json;
pub mod link;
#[cfg(feature = "metadata")]
pub mod metadata;
#[cfg(feature = "metadata")]
pub mod metaservice;
pub mod mkinitramfs;
pub mod monitor;
#[cfg(any(feature = "clear", feature = "openstack"))]
pub mod network;
pub mod notify;
#[cfg(feature = "openstack")]
pub mod password;
pub mod power;
pub mod proto;
#[cfg(any(feature = "clear", feature = "openstack"))]
pub mod replacement;
pub mod server;
#[cfg(feature = "metadata")]
pub mod shell;
pub mod stream;
pub mod sys;
pub mod transport;
pub mod version;
pub mod vm;
#[cfg(feature = "metadata")]
pub mod websocket;
pub mod wire;
#[cfg(feature = "openstack")]
pub mod xenstore;
