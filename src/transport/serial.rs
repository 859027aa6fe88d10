//! Serial lines with a link on them.

use std::io;
use std::path::Path;

use crate::stream::Stream;
use crate::sys::{fd, tty};
use crate::transport::port;

/// How a UART is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Bits a second; `None`: as they are.
    pub baud: Option<u32>,
    /// Hold the other side up by RTS, and let it hold us up by CTS.
    pub rtscts: bool,
    /// Say nothing before a client does: people look at the line.
    pub quiet: bool,
}

/// Whether a UART can be set to so many bits a second.
pub fn is_known_baud(baud: u32) -> bool {
    tty::speed(baud).is_some()
}

/// Opens a line to connect to what is at its other end.
///
/// # Errors
/// `ResourceBusy` when another client has it: the agent would take each one's greeting for the end of the other.
pub fn connect(path: &Path, settings: &Settings) -> io::Result<Stream> {
    let line = open(path, settings)?;
    match fd::lock(line.input()) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(io::Error::new(io::ErrorKind::ResourceBusy, "another client uses the line"))
        }
        // A socket's other end sees to that itself.
        _ => Ok(line),
    }
}

/// Opens a line: a terminal, which is made raw, or a unix socket (QEMU's end of a line).
pub fn open(path: &Path, settings: &Settings) -> io::Result<Stream> {
    let line = port::open(path)?;
    if settings.baud.is_some() || settings.rtscts {
        let mut found = tty::settings(line.input())?;
        if let Some(speed) = settings.baud.and_then(tty::speed) {
            found = found.with_speed(speed);
        }
        if settings.rtscts {
            found = found.with_rts_cts();
        }
        tty::apply(line.input(), &found)?;
    }
    Ok(line)
}
