//! Network interfaces, changed: switched on, and given an address.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::sys::check;

pub const ENODEV: i32 = libc::ENODEV;

/// Bytes of the longest name; a NUL ends it.
pub const NAME_MAX: usize = libc::IFNAMSIZ - 1;

/// ioctl(2) with SIOCGIFHWADDR: whether the interface is an Ethernet one. ENODEV when there is no interface of that name.
pub fn is_ethernet(name: &str) -> io::Result<bool> {
    let mut request = request(name)?;
    // SAFETY: the kernel fills the address of the structure, whose family is that of the hardware.
    unsafe {
        control(libc::SIOCGIFHWADDR as _, &mut request)?;
        Ok(request.ifr_ifru.ifru_hwaddr.sa_family == libc::ARPHRD_ETHER)
    }
}

/// ioctl(2) with SIOCGIFFLAGS and SIOCSIFFLAGS: switches the interface on. To `lo` the kernel then gives its addresses.
pub fn switch_on(name: &str) -> io::Result<()> {
    let mut request = request(name)?;
    // SAFETY: the kernel fills the flags before they are changed, and then reads them.
    unsafe {
        control(libc::SIOCGIFFLAGS as _, &mut request)?;
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        control(libc::SIOCSIFFLAGS as _, &mut request)
    }
}

/// ioctl(2) with SIOCSIFADDR: the interface's address, with the mask of its old class. EEXIST when it has it, ENODEV when there is no
/// interface of that name.
pub fn set_address(name: &str, address: Ipv4Addr) -> io::Result<()> {
    set(libc::SIOCSIFADDR as _, name, address)
}

/// ioctl(2) with SIOCSIFNETMASK: the mask of the interface's address, which must be there: else EADDRNOTAVAIL.
pub fn set_mask(name: &str, mask: Ipv4Addr) -> io::Result<()> {
    set(libc::SIOCSIFNETMASK as _, name, mask)
}

fn set(what: libc::Ioctl, name: &str, address: Ipv4Addr) -> io::Result<()> {
    let mut request = request(name)?;
    // SAFETY: an address of this family is no larger than the structure's room for any.
    unsafe {
        let room = (&raw mut request.ifr_ifru).cast::<libc::sockaddr_in>();
        (&raw mut (*room).sin_family).write_unaligned(libc::AF_INET as libc::sa_family_t);
        (&raw mut (*room).sin_addr).write_unaligned(libc::in_addr { s_addr: u32::from(address).to_be() });
    }
    control(what, &mut request)
}

/// A request about an interface. EINVAL for a name that is too long.
fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: zeros are a valid value of each of its fields.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() > NAME_MAX {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn control(what: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: the descriptor is new and owned at once; the kernel reads and fills the structure, whose name ends with zeros.
    unsafe {
        let socket = check(libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0))?;
        let socket = OwnedFd::from_raw_fd(socket);
        check(libc::ioctl(socket.as_raw_fd(), what, request as *mut libc::ifreq)).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_no_ethernet_and_others_are_not_there() {
        assert!(!is_ethernet("lo").expect("every machine has one"));
        assert_eq!(is_ethernet("no-such-device").expect_err("no interface").raw_os_error(), Some(libc::ENODEV));
        let long = "x".repeat(NAME_MAX + 1);
        assert_eq!(switch_on(&long).expect_err("no name").raw_os_error(), Some(libc::EINVAL));
    }
}
