//! Every system call the program makes beyond `std`, and all of its `unsafe`: slices in, `io::Result` and owned descriptors out.
//!
//! One wrapper a call, named like it, with no policy, no logging and no retry except after `EINTR`. Descriptors are close-on-exec
//! from their creation, because another thread may start a program at any moment.

#![allow(unsafe_code)]

pub mod boot;
pub mod capability;
pub mod clock;
pub mod errno;
pub mod fd;
pub mod file;
pub mod interface;
pub mod name;
pub mod net;
#[cfg(any(feature = "clear", feature = "openstack"))]
pub mod netlink;
pub mod process;
pub mod random;
pub mod rlimit;
pub mod signal;
pub mod tcp;
pub mod tty;
pub mod unix;
#[cfg(all(panic = "abort", target_env = "musl"))]
mod unwind;
pub mod vsock;

use std::io;

/// Turns the `-1` of a system call into the error that `errno` names.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The same for calls that return a length.
fn check_size(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Repeats a call that a signal interrupted.
fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
