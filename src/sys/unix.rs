//! Unix sockets: what `std` does only with waiting, and how long their paths may be.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::sys::{check, retry};

/// Bytes of the longest path of a socket: `sun_path` has 108, and a NUL ends it.
pub const PATH_MAX: usize = 107;

/// socket(2) and connect(2) without waiting: EAGAIN when the listener's queue is full, ECONNREFUSED when nobody listens, EPROTOTYPE for a
/// socket of another type. ENAMETOOLONG for a path above `PATH_MAX`.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    let path = path.as_os_str().as_bytes();
    if path.len() > PATH_MAX {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    let mut address = libc::sockaddr_un { sun_family: libc::AF_UNIX as libc::sa_family_t, sun_path: [0; PATH_MAX + 1] };
    for (to, from) in address.sun_path.iter_mut().zip(path) {
        *to = *from as libc::c_char;
    }
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: the descriptor is new and owned at once; the kernel reads one address of the size that is given.
    unsafe {
        let socket = OwnedFd::from_raw_fd(check(libc::socket(libc::AF_UNIX, kind, 0))?);
        let size = size_of::<libc::sockaddr_un>() as libc::socklen_t;
        retry(|| check(libc::connect(socket.as_raw_fd(), (&raw const address).cast(), size)))?;
        Ok(socket)
    }
}

/// getsockname(2): the path of a unix socket, which is that of the listener where it was accepted; an abstract one begins with NUL. `None`
/// for one without a name and for other families. ENOTSOCK for what is no socket.
pub fn local_path(fd: BorrowedFd) -> io::Result<Option<Vec<u8>>> {
    let mut address = libc::sockaddr_un { sun_family: 0, sun_path: [0; PATH_MAX + 1] };
    let mut size = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: the kernel writes at most so many bytes as the size says, and sets it to the size of the address.
    check(unsafe { libc::getsockname(fd.as_raw_fd(), (&raw mut address).cast(), &raw mut size) })?;
    let length = (size as usize).saturating_sub(size_of::<libc::sa_family_t>()).min(address.sun_path.len());
    if i32::from(address.sun_family) != libc::AF_UNIX || length == 0 {
        return Ok(None);
    }
    let bytes: Vec<u8> = address.sun_path[..length].iter().map(|byte| *byte as u8).collect();
    let is_abstract = bytes.first() == Some(&0);
    let end = if is_abstract { None } else { bytes.iter().position(|byte| *byte == 0) };
    Ok(Some(bytes[..end.unwrap_or(length)].to_vec()))
}
