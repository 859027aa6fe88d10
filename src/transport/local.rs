//! An agent of its own for one connection.

use std::ffi::CStr;
use std::io;
use std::os::fd::AsFd;

use crate::stream::Stream;
use crate::sys::capability::Capabilities;
use crate::sys::fd;
use crate::sys::process::{self, Group, Launch};

/// Starts this program again as an agent on one end of a socket pair, in a session of its own, so that the terminal's signals, which are for
/// the client to forward, do not reach it. It ends with the connection, and nobody waits for it: its zombie goes when this process does.
pub fn start() -> io::Result<Stream> {
    let (ours, theirs) = fd::socket_pair()?;
    let argv = [c"lodger", c"serve", c"--listen", c"stdio:"].map(CStr::to_owned);
    let stderr = io::stderr();
    let launch = Launch {
        program: c"/proc/self/exe",
        argv: &argv,
        env: None,
        cwd: None,
        descriptors: &[(0, theirs.as_fd()), (1, theirs.as_fd()), (2, stderr.as_fd())],
        group: Group::Session,
        identity: None,
        umask: None,
        rlimits: &[],
        capabilities: Capabilities::default(),
        no_new_privileges: false,
        detached: false,
        death_signal: None,
    };
    process::start(&launch).map_err(|failed| failed.error)?;
    Ok(Stream::over_socket(ours))
}
