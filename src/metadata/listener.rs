//! What guests connect to, and which of them may.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use crate::stream::Stream;
use crate::sys::tcp;
use crate::transport::unix;

/// How long a connection of the network may be silent before its peer is asked whether it is there, how often that is done, and how many
/// times in vain. A guest that was switched off says nothing any more.
const KEEP_ALIVE: (Duration, Duration, u32) = (Duration::from_secs(15), Duration::from_secs(5), 3);

/// Bits that all addresses of version 4 have in common when they are written as ones of version 6.
const MAPPED_BITS: u32 = 96;

/// Addresses that have their first bits in common: `IP/BITS`, or one `IP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    ip: IpAddr,
    bits: u32,
}

impl FromStr for Network {
    type Err = io::Error;

    fn from_str(text: &str) -> io::Result<Network> {
        let wrong = || io::Error::new(io::ErrorKind::InvalidInput, "no network (IP or IP/BITS)");
        let (ip, bits) = text.split_once('/').map_or((text, None), |(ip, bits)| (ip, Some(bits)));
        let ip: IpAddr = ip.parse().map_err(|_| wrong())?;
        let max = if ip.is_ipv4() { 32 } else { 128 };
        // `parse` would take a sign.
        let digits = |bits: &str| bits.parse().ok().filter(|_| bits.bytes().all(|byte| byte.is_ascii_digit()));
        let bits: u32 = bits.map_or(Some(max), digits).filter(|bits| *bits <= max).ok_or_else(wrong)?;
        // Addresses of version 4 are looked at as such.
        match ip.to_canonical() {
            canonical @ IpAddr::V4(_) if ip.is_ipv6() && bits >= MAPPED_BITS => {
                Ok(Network { ip: canonical, bits: bits - MAPPED_BITS })
            }
            _ => Ok(Network { ip, bits }),
        }
    }
}

impl Network {
    /// Whether an address is in it. One of version 4 that comes to a socket of version 6 is one of version 4.
    pub fn has(&self, ip: IpAddr) -> bool {
        let differ = |a: u128, b: u128, width: u32| (a ^ b).checked_shr(width - self.bits).unwrap_or(0) != 0;
        match (self.ip, ip.to_canonical()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => !differ(u32::from(a).into(), u32::from(b).into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => !differ(a.into(), b.into(), 128),
            _ => false,
        }
    }
}

/// What guests connect to.
pub enum Listener {
    Network(TcpListener),
    /// For QEMU's `guestfwd`: there is no address of a peer, and who may connect is a matter of the file's mode (0600).
    Unix(unix::Listener),
}

impl Listener {
    /// Listens at `IP:PORT` or `unix:PATH`. Port 0 is one that is free.
    ///
    /// # Errors
    /// `InvalidInput` for what is no address, and those of bind(2).
    pub fn open(text: &str) -> io::Result<Listener> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Listener::Unix(unix::Listener::open(Path::new(path), 0o600, None)?));
        }
        let wrong = |_| io::Error::new(io::ErrorKind::InvalidInput, "no address (IP:PORT or unix:PATH is wanted)");
        let listener = TcpListener::bind(text.parse::<SocketAddr>().map_err(wrong)?)?;
        listener.set_nonblocking(true)?;
        Ok(Listener::Network(listener))
    }

    /// Where it listens, when that is an address of the network.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Listener::Network(listener) => listener.local_addr().ok(),
            Listener::Unix(_) => None,
        }
    }

    /// Readable when somebody waits.
    pub fn watch(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Network(listener) => listener.as_fd(),
            Listener::Unix(listener) => listener.watch(),
        }
    }

    /// Whoever waits, and from where.
    ///
    /// # Errors
    /// Of accept(2).
    pub fn accept(&self) -> io::Result<(Stream, Option<IpAddr>)> {
        match self {
            Listener::Unix(listener) => Ok((listener.accept()?, None)),
            Listener::Network(listener) => {
                let (socket, from) = listener.accept()?;
                let (idle, interval, count) = KEEP_ALIVE;
                let _ = tcp::set_keep_alive(socket.as_fd(), idle, interval, count);
                Ok((Stream::over(OwnedFd::from(socket)), Some(from.ip().to_canonical())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_addresses_with_bits_in_common() {
        let has =
            |network: &str, ip: &str| network.parse::<Network>().expect(network).has(ip.parse().expect("an address"));
        assert!(has("192.168.150.0/24", "192.168.150.7") && !has("192.168.150.0/24", "192.168.151.7"));
        assert!(has("10.0.0.1", "10.0.0.1") && !has("10.0.0.1", "10.0.0.2"));
        assert!(has("0.0.0.0/0", "1.2.3.4") && !has("0.0.0.0/0", "::1"));
        assert!(has("::/0", "fe80::1") && has("fe80::/10", "fe80::1") && !has("fe80::/10", "fec0::1"));
        assert!(has("::1", "::1") && !has("::1/128", "::2") && has("10.0.0.0/8", "::ffff:10.1.2.3"));
        assert!(has("::ffff:10.0.0.0/104", "10.1.2.3") && has("::ffff:10.0.0.0/104", "::ffff:10.1.2.3"));
        assert!(
            !has("::ffff:10.0.0.0/104", "11.0.0.1") && has("::ffff:10.0.0.1", "10.0.0.1") && !has("::/0", "10.0.0.1")
        );
        for wrong in ["", "1.2.3", "1.2.3.4/33", "::/129", "1.2.3.4/", "1.2.3.4/+8", "1.2.3.4/-1", "a/8"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }
}
