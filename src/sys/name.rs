//! The names that the kernel has for itself and for the machine.

use std::ffi::CStr;
use std::io;

use crate::sys::check;

/// What uname(2) says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    pub host: String,
    pub release: String,
    pub version: String,
    pub machine: String,
}

/// uname(2).
pub fn uname() -> io::Result<Names> {
    // SAFETY: the kernel fills the structure.
    let found = unsafe {
        let mut found: libc::utsname = std::mem::zeroed();
        check(libc::uname(&mut found))?;
        found
    };
    // SAFETY: the kernel ends each of the arrays with a NUL.
    let text = |array: &[libc::c_char]| unsafe { CStr::from_ptr(array.as_ptr()) }.to_string_lossy().into_owned();
    Ok(Names {
        host: text(&found.nodename),
        release: text(&found.release),
        version: text(&found.version),
        machine: text(&found.machine),
    })
}
