//! The protocols, one a file, and the rule that tells them apart: the first byte of a connection.

#[cfg(any(feature = "clear", feature = "metadata"))]
mod bell;
pub mod cbor;
#[cfg(feature = "clear")]
pub mod clear;
#[cfg(feature = "clear")]
mod go;
pub mod google;
#[cfg(feature = "clear")]
pub mod hyper;
#[cfg(feature = "metadata")]
pub mod metadata;
#[cfg(feature = "openstack")]
pub mod openstack;
pub mod settings;

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use crate::engine::Ended;
use crate::proto::settings::Settings;
use crate::stream::Stream;
use crate::sys::fd::{self, PollSet};

/// One protocol: bytes of a stream to calls of services.
pub struct Protocol {
    /// For `,proto=NAME` in an address.
    pub name: &'static str,
    /// Whether a connection that begins with this byte speaks it. No byte may begin two protocols.
    pub begins_with: fn(u8) -> bool,
    serve: fn(Stream, &[u8], &Circumstances) -> io::Result<Ended>,
    at_once: fn(&Stream, &[u8], &Circumstances) -> bool,
    /// The message that tells a peer why it is not served.
    refusal: fn(&str) -> Vec<u8>,
    deadline: fn(&Settings, Instant) -> Option<Instant>,
}

impl Protocol {
    /// Until when a peer that connected at this time may be silent before the protocol is to deal with it; `None`: as long as it likes.
    pub fn deadline(&self, settings: &Settings, accepted: Instant) -> Option<Instant> {
        (self.deadline)(settings, accepted)
    }
}

/// Who speaks first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// The peer, as on everything that has connections.
    Peer,
    /// The agent, so that a peer that waits at the other end of a bare line learns that somebody is there.
    Agent,
}

/// Bytes of a connection that are read before its protocol is known: one is enough, and most first messages are whole in these.
pub const HEAD_BYTES: usize = 512;

/// How a connection came about.
pub struct Circumstances<'a> {
    /// The protocol that the address names; `None`: the first byte chooses.
    pub pinned: Option<&'static Protocol>,
    pub opening: Opening,
    /// Readable once the agent shall end, and the connection with it.
    pub stop: BorrowedFd<'a>,
    /// When the peer connected.
    pub accepted: Instant,
    pub settings: &'a Settings,
}

/// All of them. What no protocol claims goes to the first, which says so in its own words.
pub const PROTOCOLS: &[Protocol] = &[
    Protocol {
        name: "agentproto",
        begins_with: crate::wire::starts_frame,
        serve: cbor::serve,
        at_once: |_, _, _| false,
        refusal: cbor::refusal,
        deadline: |_, _| None,
    },
    Protocol {
        name: google::NAME,
        begins_with: google::begins_with,
        serve: google::serve,
        at_once: google::at_once,
        refusal: google::refusal,
        deadline: |settings, accepted| Some(settings.request_deadline(accepted)),
    },
    #[cfg(feature = "clear")]
    Protocol {
        name: clear::NAME,
        begins_with: clear::begins_with,
        serve: clear::connection::serve,
        at_once: |_, _, _| false,
        refusal: clear::refusal,
        deadline: |_, _| None,
    },
    // Nobody waits for the first word of these hosts: it is ours.
    #[cfg(feature = "clear")]
    Protocol {
        name: hyper::ctl::NAME,
        begins_with: |_| false,
        serve: hyper::ctl::serve,
        at_once: |_, _, _| false,
        refusal: hyper::ctl::refusal,
        deadline: |_, accepted| Some(accepted),
    },
    #[cfg(feature = "clear")]
    Protocol {
        name: hyper::tty::NAME,
        begins_with: |_| false,
        serve: hyper::tty::serve,
        at_once: |_, _, _| false,
        refusal: |_| Vec::new(),
        deadline: |_, accepted| Some(accepted),
    },
];

/// The protocol of that name.
///
/// # Errors
/// There is none; says which there are.
pub fn by_name(name: &str) -> Result<&'static Protocol, String> {
    let found = PROTOCOLS.iter().find(|protocol| protocol.name == name);
    found.ok_or_else(|| {
        let names: Vec<&str> = PROTOCOLS.iter().map(|protocol| protocol.name).collect();
        format!("unknown protocol {name} ({} are known)", names.join(", "))
    })
}

/// The protocol that claims a connection with these first bytes, if one does.
pub fn claiming(head: &[u8]) -> Option<&'static Protocol> {
    let first = *head.first()?;
    PROTOCOLS.iter().find(|protocol| (protocol.begins_with)(first))
}

/// The protocol of a connection that begins with these bytes.
fn chosen(head: &[u8], circumstances: &Circumstances) -> &'static Protocol {
    circumstances.pinned.or_else(|| claiming(head)).unwrap_or(&PROTOCOLS[0])
}

/// Serves one connection to its end, with the pinned protocol or with the one that its first byte chooses. `head` has been read from it.
///
/// # Errors
/// Those of the stream itself.
pub fn serve(stream: Stream, head: &[u8], circumstances: &Circumstances) -> io::Result<Ended> {
    if circumstances.pinned.is_some() || !head.is_empty() {
        return (chosen(head, circumstances).serve)(stream, head, circumstances);
    }
    let mut set = PollSet::default();
    set.watch(circumstances.stop, fd::READ);
    set.watch(stream.input(), fd::READ);
    while !set.ready(1).readable {
        set.wait(None)?;
        if set.ready(0).readable {
            return Ok(Ended::Regular);
        }
    }
    let mut buffer = [0; HEAD_BYTES];
    let count = fd::read(stream.input(), &mut buffer)?;
    let head = &buffer[..count];
    (chosen(head, circumstances).serve)(stream, head, circumstances)
}

/// Serves a connection on a new socket if that can be done without waiting for anything. `false`: it is to be served, and nothing has been
/// written yet.
pub fn serve_at_once(stream: &Stream, head: &[u8], circumstances: &Circumstances) -> bool {
    (chosen(head, circumstances).at_once)(stream, head, circumstances)
}

/// Tells a peer in one message why it is not served. `protocol`: the one that it speaks, if that is known.
pub fn refuse(stream: &Stream, protocol: Option<&'static Protocol>, why: &str) {
    // Else the only protocol whose clients read an error before they have said a word.
    let refusal = protocol.map_or(PROTOCOLS[0].refusal, |protocol| protocol.refusal);
    // So short a message finds room, or nobody reads.
    let _ = stream.set_nonblocking(true);
    let _ = fd::write(stream.output(), &refusal(why));
    stream.end();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_byte_begins_two_protocols() {
        for byte in 0..=u8::MAX {
            let claims = PROTOCOLS.iter().filter(|protocol| (protocol.begins_with)(byte)).count();
            assert!(claims <= 1, "{byte:#x} begins {claims} protocols");
        }
    }
}
