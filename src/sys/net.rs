//! Network interfaces.

use std::ffi::CStr;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::sys::check;

pub const UP: u32 = libc::IFF_UP as u32;
pub const RUNNING: u32 = libc::IFF_RUNNING as u32;
pub const LOOPBACK: u32 = libc::IFF_LOOPBACK as u32;

/// One entry of getifaddrs(3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The interface, or a label of an address, which is the interface, a colon and a word.
    pub name: String,
    /// Those of the interface.
    pub flags: u32,
    pub fact: Fact,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    Link {
        index: i32,
        /// At most 8 bytes of it.
        hardware_address: Vec<u8>,
    },
    Address {
        address: IpAddr,
        prefix_length: u32,
    },
}

/// getifaddrs(3): interfaces and their addresses. Needs neither /proc nor /sys. EAFNOSUPPORT where the kernel has no network.
pub fn entries() -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    // SAFETY: the list is walked while it is ours, and freed once; each address has at least the size that its family says.
    unsafe {
        let mut first: *mut libc::ifaddrs = std::ptr::null_mut();
        check(libc::getifaddrs(&mut first))?;
        let mut next = first;
        while let Some(entry) = next.as_ref() {
            if let Some(fact) = fact(entry) {
                let name = CStr::from_ptr(entry.ifa_name).to_string_lossy().into_owned();
                entries.push(Entry { name, flags: entry.ifa_flags, fact });
            }
            next = entry.ifa_next;
        }
        libc::freeifaddrs(first);
    }
    Ok(entries)
}

/// `None` for an entry of another family.
///
/// # Safety
/// The entry comes from getifaddrs(3).
unsafe fn fact(entry: &libc::ifaddrs) -> Option<Fact> {
    // SAFETY: an address of getifaddrs is null, or a whole structure of its family.
    unsafe {
        let (address, mask) = (entry.ifa_addr, entry.ifa_netmask);
        match i32::from(address.as_ref()?.sa_family) {
            libc::AF_PACKET => {
                let link = address.cast::<libc::sockaddr_ll>().read_unaligned();
                let length = usize::from(link.sll_halen).min(link.sll_addr.len());
                Some(Fact::Link { index: link.sll_ifindex, hardware_address: link.sll_addr[..length].to_vec() })
            }
            libc::AF_INET => {
                let number = |at: *mut libc::sockaddr| {
                    u32::from_be(at.cast::<libc::sockaddr_in>().read_unaligned().sin_addr.s_addr)
                };
                let prefix_length = if mask.is_null() { 32 } else { number(mask).count_ones() };
                Some(Fact::Address { address: IpAddr::V4(Ipv4Addr::from(number(address))), prefix_length })
            }
            libc::AF_INET6 => {
                let number = |at: *mut libc::sockaddr| {
                    u128::from_be_bytes(at.cast::<libc::sockaddr_in6>().read_unaligned().sin6_addr.s6_addr)
                };
                let prefix_length = if mask.is_null() { 128 } else { number(mask).count_ones() };
                Some(Fact::Address { address: IpAddr::V6(Ipv6Addr::from(number(address))), prefix_length })
            }
            _ => None,
        }
    }
}

/// ioctl(2) with SIOCGIFMTU: bytes of the largest packet. ENODEV when there is no interface of that name.
pub fn mtu(interface: &str) -> io::Result<i32> {
    // SAFETY: the descriptor is new and owned at once; the kernel reads and fills the structure, whose name ends with zeros.
    unsafe {
        let socket = check(libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0))?;
        let socket = OwnedFd::from_raw_fd(socket);
        let mut request: libc::ifreq = std::mem::zeroed();
        let room = request.ifr_name.len() - 1;
        for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes().take(room)) {
            *to = from as libc::c_char;
        }
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU as _, &raw mut request))?;
        Ok(request.ifr_ifru.ifru_mtu)
    }
}
