//! Bare lines: virtio ports, and serial lines that nothing else is written to.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::stream::Stream;
use crate::sys::fd;
use crate::sys::file::{self, O_NOCTTY, O_NONBLOCK, O_RDWR};
use crate::sys::tty;

/// How often to look whether somebody is at the other end of a line that cannot tell: a virtio port whose host is away reads as ended, and
/// poll(2) says the same of it at once.
const PORT_RETRY: Duration = Duration::from_millis(100);

/// Opens a bare line: raw and without modem lines if it is a terminal. A path that is a unix socket (QEMU's end of a line) is connected to.
pub fn open(path: &Path) -> io::Result<Stream> {
    if fs::metadata(path)?.file_type().is_socket() {
        return Ok(Stream::over_socket(UnixStream::connect(path)?));
    }
    // Never blocking: a blocking write beside a poll of the same virtio port can stall for ever (a lost wake-up in the kernel).
    let line = file::open(path, O_RDWR | O_NOCTTY | O_NONBLOCK, 0)?;
    if let Ok(settings) = tty::settings(line.as_fd()) {
        tty::apply(line.as_fd(), &settings.raw().without_modem_lines())?;
    }
    Ok(Stream::over(line))
}

/// Waits until somebody is at the other end of the line, or until `stop` can be read. `false`: it could.
pub fn wait_for_peer(line: &Stream, stop: impl AsFd) -> io::Result<bool> {
    loop {
        let ready = fd::wait_for(line.output(), fd::WRITE, Some(Duration::ZERO))?;
        if !ready.hung_up {
            return Ok(true);
        }
        if fd::wait_for(stop.as_fd(), fd::READ, Some(PORT_RETRY))?.readable {
            return Ok(false);
        }
    }
}
