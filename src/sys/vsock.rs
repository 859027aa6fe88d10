//! Sockets between a virtual machine and its host: AF_VSOCK, where a machine is a number (CID) and so is a port.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::sys::{check, retry};

/// The machine itself, where the kernel has a loopback.
pub const CID_LOCAL: u32 = libc::VMADDR_CID_LOCAL;
/// The host of the machine.
pub const CID_HOST: u32 = libc::VMADDR_CID_HOST;
/// Each machine's own number. No peer has it.
pub const CID_ANY: u32 = libc::VMADDR_CID_ANY;
/// The port that bind(2) takes for "one that is free". Nobody can listen on it.
pub const PORT_ANY: u32 = libc::VMADDR_PORT_ANY;

pub const EAFNOSUPPORT: i32 = libc::EAFNOSUPPORT;
pub const ENODEV: i32 = libc::ENODEV;

/// What a socket keeps of what is written into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bytes in their order.
    Stream,
    /// The borders between messages too.
    Packets,
}

/// socket(2), close-on-exec and not blocking. EAFNOSUPPORT where the kernel has no vsock, or its module is not loaded.
pub fn socket(kind: Kind) -> io::Result<OwnedFd> {
    let kind = match kind {
        Kind::Stream => libc::SOCK_STREAM,
        Kind::Packets => libc::SOCK_SEQPACKET,
    };
    // SAFETY: takes plain integers; the result is a new descriptor that nobody else owns.
    unsafe {
        let fd = check(libc::socket(libc::AF_VSOCK, kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// bind(2) to a port of each CID that the machine has. EACCES below 1,024 without the privilege, EADDRINUSE when the port is taken.
pub fn bind(fd: BorrowedFd, port: u32) -> io::Result<()> {
    let address = address(CID_ANY, port);
    // SAFETY: the kernel reads one address of the size that is given.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), ADDRESS_BYTES) }).map(drop)
}

/// listen(2), with room for so many connections that nobody has accepted yet.
pub fn listen(fd: BorrowedFd, backlog: i32) -> io::Result<()> {
    // SAFETY: takes plain integers.
    check(unsafe { libc::listen(fd.as_raw_fd(), backlog) }).map(drop)
}

/// accept4(2): the connection, close-on-exec and blocking, and the CID it comes from.
pub fn accept(fd: BorrowedFd) -> io::Result<(OwnedFd, u32)> {
    let mut peer = address(0, 0);
    let mut length = ADDRESS_BYTES;
    // SAFETY: the kernel writes one address of at most the size that is given; the result is a new descriptor that nobody else owns.
    let socket = unsafe {
        let to = (&raw mut peer).cast();
        OwnedFd::from_raw_fd(retry(|| check(libc::accept4(fd.as_raw_fd(), to, &raw mut length, libc::SOCK_CLOEXEC)))?)
    };
    Ok((socket, peer.svm_cid))
}

/// connect(2). False while it is under way: the socket is writable when that is over, and `take_error` says how it ended. ENODEV where
/// nothing carries vsock to that machine.
pub fn connect(fd: BorrowedFd, cid: u32, port: u32) -> io::Result<bool> {
    let address = address(cid, port);
    // SAFETY: the kernel reads one address of the size that is given.
    match check(unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), ADDRESS_BYTES) }) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(false),
        Err(error) => Err(error),
    }
}

const ADDRESS_BYTES: libc::socklen_t = size_of::<libc::sockaddr_vm>() as libc::socklen_t;

fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
    libc::sockaddr_vm {
        svm_family: libc::AF_VSOCK as libc::sa_family_t,
        svm_reserved1: 0,
        svm_port: port,
        svm_cid: cid,
        svm_zero: [0; 4],
    }
}
