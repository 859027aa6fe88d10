//! TCP: what `std` does only with waiting, or only on its own types.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use crate::sys::check;

/// socket(2), close-on-exec and not blocking, and connect(2). False while it is under way: the socket is writable when that is over, and
/// `fd::take_error` says how it ended. ENETUNREACH where no route leads there.
pub fn connect(address: &SocketAddr) -> io::Result<(OwnedFd, bool)> {
    match address {
        SocketAddr::V4(address) => {
            let to = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: address.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
                sin_zero: [0; 8],
            };
            // SAFETY: `to` is a whole address of the family that is named.
            unsafe { connect_to(libc::AF_INET, (&raw const to).cast(), size_of_val(&to)) }
        }
        SocketAddr::V6(address) => {
            let to = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: address.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                sin6_scope_id: address.scope_id(),
            };
            // SAFETY: as above.
            unsafe { connect_to(libc::AF_INET6, (&raw const to).cast(), size_of_val(&to)) }
        }
    }
}

/// # Safety
/// `address` points to an address of `family` with so many bytes.
unsafe fn connect_to(family: i32, address: *const libc::sockaddr, bytes: usize) -> io::Result<(OwnedFd, bool)> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: the descriptor is new and owned at once; the kernel reads one address of the size that is given.
    unsafe {
        let socket = OwnedFd::from_raw_fd(check(libc::socket(family, kind, 0))?);
        match check(libc::connect(socket.as_raw_fd(), address, bytes as libc::socklen_t)) {
            Ok(_) => Ok((socket, true)),
            // An interrupted connect(2) goes on like one that does not wait.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINPROGRESS | libc::EINTR)) => Ok((socket, false)),
            Err(error) => Err(error),
        }
    }
}

/// setsockopt(2) with TCP_NODELAY: small writes go out at once. EOPNOTSUPP, ENOPROTOOPT or ENOTSOCK for what is no TCP socket.
pub fn set_no_delay(fd: BorrowedFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the kernel reads one integer of the size that is given.
    check(unsafe {
        let length = size_of::<libc::c_int>() as libc::socklen_t;
        libc::setsockopt(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, (&raw const on).cast(), length)
    })
    .map(drop)
}

/// setsockopt(2) with SO_KEEPALIVE, TCP_KEEPIDLE, TCP_KEEPINTVL and TCP_KEEPCNT, in whole seconds: a peer that does not answer `count` times
/// ends the connection with ETIMEDOUT. ENOPROTOOPT or ENOTSOCK for what is no TCP socket.
pub fn set_keep_alive(fd: BorrowedFd, idle: Duration, interval: Duration, count: u32) -> io::Result<()> {
    let seconds = |time: Duration| time.as_secs() as libc::c_int;
    for (level, name, value) in [
        (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, seconds(idle)),
        (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, seconds(interval)),
        (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, count as libc::c_int),
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
    ] {
        // SAFETY: the kernel reads one integer of the size that is given.
        check(unsafe {
            let length = size_of::<libc::c_int>() as libc::socklen_t;
            libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), length)
        })?;
    }
    Ok(())
}
