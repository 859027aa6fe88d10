//! Process 1's own lines on the console.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use crate::sys::{boot, fd, file};

const PATH: &str = "/dev/console";

/// Longest wait for room on a console that takes nothing, in time: nobody may read a pty or a pipe behind a serial line, and
/// process 1 has other work. What does not fit then is lost.
const ROOM_WAIT_LONGEST: Duration = Duration::from_secs(1);

/// Longest wait for the last bytes before the machine ends.
const DRAIN_LONGEST: Duration = Duration::from_secs(2);

/// Pause between two looks at what is unsent; the kernel has nothing to wait for that also ends.
const DRAIN_PAUSE: Duration = Duration::from_millis(2);

/// Where the lines go. It is opened when it is first needed, and again after an error: with `console=hvc0` there is no console
/// before the driver's module is loaded.
#[derive(Default)]
pub struct Console {
    file: Option<File>,
}

impl Console {
    /// Writes `lodger: TEXT` as a line; a console that is not there or takes nothing is no error.
    pub fn line(&mut self, text: &str) {
        // An agent may have made the line raw, and then nobody else brings the cursor back.
        let line = ["lodger: ", text, "\r\n"].concat();
        if self.write(line.as_bytes()).is_err() {
            self.file = None;
            let _ = self.write(line.as_bytes());
        }
    }

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let file = self.open()?;
        while !bytes.is_empty() {
            match fd::write(file.as_fd(), bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !fd::wait_for(file.as_fd(), fd::WRITE, Some(ROOM_WAIT_LONGEST))?.writable {
                        return Ok(());
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn open(&mut self) -> io::Result<&File> {
        if self.file.is_none() {
            // Opened apart from the programs' descriptors, because the flag belongs to the open file.
            self.file = Some(file::open(PATH, file::O_WRONLY | file::O_NOCTTY | file::O_NONBLOCK, 0)?);
        }
        self.file.as_ref().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    /// Waits until everything that was written to the console, by whom ever, has left; not for ever.
    pub fn drain(&mut self) {
        let Ok(file) = self.open() else { return };
        let deadline = Instant::now() + DRAIN_LONGEST;
        loop {
            match boot::unsent(file.as_fd()) {
                // The last bytes are in the chip now, and this wait for them is one that the kernel bounds.
                Ok(0) => return drop(boot::drain(file.as_fd())),
                Ok(_) if Instant::now() < deadline => thread::sleep(DRAIN_PAUSE),
                _ => return,
            }
        }
    }
}

#[cfg(test)]
impl Console {
    /// A console whose lines nobody sees.
    pub fn nowhere() -> Console {
        Console { file: nothing().ok() }
    }
}

/// The console for a program to write to, or nothing in its place.
pub fn for_program() -> io::Result<File> {
    file::open(PATH, file::O_WRONLY | file::O_NOCTTY, 0).or_else(|_| nothing())
}

/// /dev/null.
pub fn nothing() -> io::Result<File> {
    file::open("/dev/null", file::O_RDWR, 0)
}

/// The terminal behind the console, for a program that talks to people: the console itself can be no session's terminal.
pub fn terminal() -> io::Result<File> {
    let active = std::fs::read_to_string("/sys/class/tty/console/active")?;
    let name = active.split_ascii_whitespace().last().ok_or(io::ErrorKind::NotFound)?;
    // Without the flag the open could wait for a modem's carrier.
    let opened = file::open(["/dev/", name].concat(), file::O_RDWR | file::O_NOCTTY | file::O_NONBLOCK, 0)?;
    fd::set_nonblocking(opened.as_fd(), false)?;
    Ok(opened)
}
