//! The kernel's routing socket, rtnetlink(7): a request and its answer, and the layout of both.
//!
//! A message: length u32 (with these 16 bytes), kind u16, flags u16, sequence u32, sender u32; a body of its kind, and attributes: length u16
//! (with these 4 bytes), kind u16, value. All numbers are the machine's own, but addresses; messages and attributes start at multiples of 4.
//! Source: include/uapi/linux/netlink.h and rtnetlink.h of Linux.

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Instant;

use crate::sys::{check, check_size, fd, retry};

pub const NEW_LINK: u16 = libc::RTM_NEWLINK;
pub const DELETE_LINK: u16 = libc::RTM_DELLINK;
pub const GET_LINK: u16 = libc::RTM_GETLINK;
pub const NEW_ADDRESS: u16 = libc::RTM_NEWADDR;
pub const DELETE_ADDRESS: u16 = libc::RTM_DELADDR;
pub const GET_ADDRESS: u16 = libc::RTM_GETADDR;
pub const NEW_ROUTE: u16 = libc::RTM_NEWROUTE;
pub const DELETE_ROUTE: u16 = libc::RTM_DELROUTE;
pub const GET_ROUTE: u16 = libc::RTM_GETROUTE;

/// Flags of requests that add: what is not there is made; an address that is there gets other lifetimes.
pub const CREATE: u16 = libc::NLM_F_CREATE as u16;
pub const REPLACE: u16 = libc::NLM_F_REPLACE as u16;

pub const IPV4: u8 = libc::AF_INET as u8;
pub const IPV6: u8 = libc::AF_INET6 as u8;

/// Attributes of links.
pub const LINK_ADDRESS: u16 = libc::IFLA_ADDRESS;
pub const LINK_NAME: u16 = libc::IFLA_IFNAME;
pub const LINK_MTU: u16 = libc::IFLA_MTU;
pub const LINK_MASTER: u16 = libc::IFLA_MASTER;
pub const ETHERNET: u16 = libc::ARPHRD_ETHER;

/// Attributes of addresses, and flags: it has no end; nothing new uses it.
pub const ADDRESS: u16 = libc::IFA_ADDRESS;
pub const ADDRESS_LOCAL: u16 = libc::IFA_LOCAL;
pub const ADDRESS_BROADCAST: u16 = libc::IFA_BROADCAST;
pub const ADDRESS_FLAGS: u16 = 8;
pub const PERMANENT: u32 = libc::IFA_F_PERMANENT;
pub const DEPRECATED: u32 = libc::IFA_F_DEPRECATED;

/// Attributes of routes.
pub const ROUTE_TO: u16 = libc::RTA_DST;
pub const ROUTE_OVER: u16 = libc::RTA_OIF;
pub const ROUTE_GATEWAY: u16 = libc::RTA_GATEWAY;
pub const ROUTE_METRIC: u16 = libc::RTA_PRIORITY;
pub const ROUTE_MULTIPATH: u16 = libc::RTA_MULTIPATH;
/// Of some numbers, the third is when it ends, in hundredths of a second from now; 0: never.
pub const ROUTE_CACHE: u16 = libc::RTA_CACHEINFO;
/// Seconds from now.
pub const ROUTE_EXPIRES: u16 = 23;
pub const MAIN_TABLE: u8 = libc::RT_TABLE_MAIN;
pub const UNICAST: u8 = libc::RTN_UNICAST;
/// Routes that say that nobody is there: blackhole, unreachable, prohibit, throw.
pub const BARRIERS: RangeInclusive<u8> = libc::RTN_BLACKHOLE..=libc::RTN_THROW;
/// A flag of routes: a copy that the kernel made for one peer.
pub const CLONED: u32 = 0x200;
/// A flag of next hops: the gateway is reached though no network of ours has it.
pub const ON_LINK: u32 = 4;

/// Who made a route.
pub const BY_NOBODY: u8 = libc::RTPROT_UNSPEC;
pub const BY_REDIRECT: u8 = libc::RTPROT_REDIRECT;
pub const BY_KERNEL: u8 = libc::RTPROT_KERNEL;
pub const BY_BOOT: u8 = libc::RTPROT_BOOT;
pub const BY_ADMINISTRATOR: u8 = libc::RTPROT_STATIC;
pub const BY_ADVERTISEMENT: u8 = 9;
pub const BY_DHCP: u8 = 16;

/// Bytes in front of the body.
const HEADER_BYTES: usize = 16;

/// Bytes that one receive takes. The kernel puts at most 32 KiB of a dump into one datagram.
const RECEIVE_BYTES: usize = 64 << 10;

/// Bytes of the longest dump that is kept: some hundred thousand routes.
const DUMP_MAX: usize = 16 << 20;

/// How often a dump is begun again that was changed while it came.
const DUMP_TRIES: usize = 8;

/// Why the kernel does not do what it was asked for.
#[derive(Debug)]
pub struct Refusal {
    pub error: io::Error,
    /// The kernel's own words, which it has for some reasons; else empty.
    pub text: String,
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        Refusal { error, text: String::new() }
    }
}

/// A socket for requests that are made one after the other.
#[derive(Debug)]
pub struct Socket {
    socket: OwnedFd,
    sequence: u32,
    deadline: Instant,
    buffer: Vec<u8>,
}

/// One message of an answer.
struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

impl Socket {
    /// socket(2), setsockopt(2) and connect(2) to the kernel, so that nobody else can answer. EAFNOSUPPORT or EPROTONOSUPPORT where the
    /// kernel has no network. Whatever has not been answered at the deadline is an error of the kind `TimedOut`.
    pub fn open(deadline: Instant) -> io::Result<Socket> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        let on: libc::c_int = 1;
        let size = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the descriptor is new and owned at once; the kernel reads one integer, and one address, which may be all zeros.
        let socket = unsafe {
            let socket = OwnedFd::from_raw_fd(check(libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE))?);
            for option in [libc::NETLINK_CAP_ACK, libc::NETLINK_EXT_ACK] {
                // Before Linux 4.12 there are no words, and that is all.
                libc::setsockopt(socket.as_raw_fd(), libc::SOL_NETLINK, option, (&raw const on).cast(), size);
            }
            let mut kernel: libc::sockaddr_nl = std::mem::zeroed();
            kernel.nl_family = libc::AF_NETLINK as libc::sa_family_t;
            let size = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
            check(libc::connect(socket.as_raw_fd(), (&raw const kernel).cast(), size))?;
            socket
        };
        Ok(Socket { socket, sequence: 0, deadline, buffer: vec![0; RECEIVE_BYTES] })
    }

    /// Gives what comes from now on this deadline.
    pub fn set_deadline(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }

    /// Asks for a change, and waits until the kernel has made it.
    pub fn request(&mut self, kind: u16, flags: u16, body: &[u8]) -> Result<(), Refusal> {
        let sequence = self.send(kind, flags | libc::NLM_F_ACK as u16, body)?;
        loop {
            let length = self.receive()?;
            for message in messages(&self.buffer[..length]).filter(|message| message.sequence == sequence) {
                if i32::from(message.kind) == libc::NLMSG_ERROR {
                    return outcome(&message);
                }
            }
        }
    }

    /// Asks for all objects of a kind; gives the bodies of the messages. What changes meanwhile is asked for again: `ResourceBusy` when that
    /// does not end. `FileTooLarge` beyond 16 MiB.
    pub fn dump(&mut self, kind: u16, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        for _ in 0..DUMP_TRIES {
            if let Some(found) = self.dump_once(kind, body)? {
                return Ok(found);
            }
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }

    /// `None` when it is not that of one moment. It is read to its end even so, because the kernel begins no other one before.
    fn dump_once(&mut self, kind: u16, body: &[u8]) -> io::Result<Option<Vec<Vec<u8>>>> {
        let sequence = self.send(kind, libc::NLM_F_DUMP as u16, body)?;
        let (mut found, mut bytes, mut is_whole) = (Vec::new(), 0, true);
        loop {
            let length = match self.receive() {
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    is_whole = false;
                    continue;
                }
                result => result?,
            };
            for message in messages(&self.buffer[..length]).filter(|message| message.sequence == sequence) {
                is_whole &= i32::from(message.flags) & libc::NLM_F_DUMP_INTR == 0;
                match i32::from(message.kind) {
                    libc::NLMSG_DONE | libc::NLMSG_ERROR => {
                        outcome(&message).map_err(|refusal| refusal.error)?;
                        return Ok(is_whole.then_some(found));
                    }
                    _ => {
                        bytes += message.body.len();
                        found.push(message.body.to_vec());
                    }
                }
            }
            if bytes > DUMP_MAX {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
        }
    }

    /// send(2) of one message; gives its sequence number.
    fn send(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<u32> {
        self.sequence += 1;
        let mut message = Vec::with_capacity(HEADER_BYTES + body.len());
        message.extend_from_slice(&((HEADER_BYTES + body.len()) as u32).to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&(flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        message.extend_from_slice(&self.sequence.to_ne_bytes());
        message.extend_from_slice(&[0; 4]);
        message.extend_from_slice(body);
        // SAFETY: the pointer and the length are those of the vector.
        let send = || unsafe { libc::send(self.socket.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
        retry(|| check_size(send()))?;
        Ok(self.sequence)
    }

    /// poll(2) and recv(2) of one datagram into the buffer; gives its length.
    fn receive(&mut self) -> io::Result<usize> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            if !fd::wait_for(self.socket.as_fd(), fd::READ, Some(left))?.readable {
                continue;
            }
            let (pointer, room) = (self.buffer.as_mut_ptr(), self.buffer.len());
            let flags = libc::MSG_TRUNC | libc::MSG_DONTWAIT;
            // SAFETY: the pointer and the length are those of the vector. With MSG_TRUNC the result may be more than the length.
            match check_size(unsafe { libc::recv(self.socket.as_raw_fd(), pointer.cast(), room, flags) }) {
                Ok(length) if length > room => return Err(io::ErrorKind::InvalidData.into()),
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => {}
                result => return result,
            }
        }
    }
}

/// The messages of a datagram; the first that is no whole one ends them.
fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = u32_at(datagram, 0)? as usize;
        let body = datagram.get(HEADER_BYTES..length)?;
        let (kind, flags, sequence) = (u16_at(datagram, 4)?, u16_at(datagram, 6)?, u32_at(datagram, 8)?);
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, flags, sequence, body })
    })
}

/// What the last message of an answer says: a negative error number or zero; with that flag, attributes behind it and, where it is an error,
/// behind the header of the request.
fn outcome(message: &Message) -> Result<(), Refusal> {
    /// The kernel's words.
    const TEXT: u16 = 1;
    let number = u32_at(message.body, 0).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))? as i32;
    if number >= 0 {
        return Ok(());
    }
    let has_attributes = i32::from(message.flags) & libc::NLM_F_ACK_TLVS != 0;
    let skipped = if i32::from(message.kind) == libc::NLMSG_DONE { 4 } else { 4 + HEADER_BYTES };
    let words = attributes(message.body.get(skipped..).filter(|_| has_attributes).unwrap_or_default());
    let text = words.filter(|(kind, _)| *kind == TEXT).map(|(_, text)| text_of(text)).next().unwrap_or_default();
    Err(Refusal { error: io::Error::from_raw_os_error(number.saturating_neg()), text })
}

/// The attributes of a message, behind the fixed part of its body: kind and value. The first that is no whole one ends them.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    /// Two flags that say something of the value.
    const KIND: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let (kind, value) = (u16_at(bytes, 2)? & KIND, bytes.get(4..length)?);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// Adds an attribute to a body, whose length is a multiple of 4 before and after. A value has at most a few bytes.
pub fn put(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// A text as attributes hold it, with a NUL at its end.
pub fn text_of(value: &[u8]) -> String {
    String::from_utf8_lossy(value.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

/// `None` behind the end.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|number| u16::from_ne_bytes(*number))
}

/// `None` behind the end.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|number| u32::from_ne_bytes(*number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = ((HEADER_BYTES + body.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend([kind.to_ne_bytes(), flags.to_ne_bytes()].concat());
        bytes.extend([7u32.to_ne_bytes(), 0u32.to_ne_bytes()].concat());
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn a_refusal_has_its_number_and_the_kernels_words() {
        let mut body = [(-101i32).to_ne_bytes().to_vec(), vec![0; HEADER_BYTES]].concat();
        put(&mut body, 1, b"Nexthop has invalid gateway\0");
        let bytes = [message(2, 0x200, &body), message(2, 0, &body), message(2, 0, &0i32.to_ne_bytes())].concat();
        let found: Vec<Message> = messages(&bytes).collect();
        let refusal = outcome(&found[0]).expect_err("it is one");
        assert_eq!((refusal.error.raw_os_error(), refusal.text.as_str()), (Some(101), "Nexthop has invalid gateway"));
        assert_eq!(outcome(&found[1]).expect_err("it is one").text, "");
        assert!(found.len() == 3 && found[2].sequence == 7 && outcome(&found[2]).is_ok());
    }

    #[test]
    fn what_is_cut_anywhere_ends_the_list_and_nothing_else() {
        let mut body = Vec::new();
        put(&mut body, 3, b"eth0\0");
        put(&mut body, 1 | 0x8000, &[1, 2]);
        assert_eq!(attributes(&body).collect::<Vec<_>>(), [(3, &b"eth0\0"[..]), (1, &[1, 2])]);
        assert_eq!(text_of(b"eth0\0x"), "eth0");
        for end in 0..body.len() {
            assert!(attributes(&body[..end]).count() < 2 || end >= body.len() - 2);
        }
        let bytes = message(16, 0, &body);
        for end in 0..bytes.len() {
            assert_eq!(messages(&bytes[..end]).count(), 0, "{end}");
        }
        assert_eq!(messages(&[0; 64]).count(), 0, "a length of 0 is no message");
        assert_eq!(attributes(&[0; 64]).count(), 0);
    }
}
