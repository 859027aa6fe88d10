//! Output that waits for its reader, whatever mode its descriptor has, and a log that does not get lost in silence.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::cli::{Failure, complain};
use crate::sys::{errno, fd};

/// A descriptor that may not block, since the mode of an open file is everybody's who shares it.
pub struct Output {
    fd: OwnedFd,
}

impl Output {
    /// Errors of dup(2).
    pub fn stdout() -> io::Result<Output> {
        Ok(Output { fd: io::stdout().as_fd().try_clone_to_owned()? })
    }
}

impl From<File> for Output {
    fn from(file: File) -> Output {
        Output { fd: file.into() }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match fd::write(self.fd.as_fd(), bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    fd::wait_for(self.fd.as_fd(), fd::WRITE, None)?;
                }
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A log; its first error is told, once.
pub struct Log {
    /// In whose name that is.
    command: &'static str,
    output: Output,
    name: String,
    is_lost: Arc<AtomicBool>,
}

impl Log {
    /// A log in a new file, or on stdout. `is_lost` becomes true with the first byte that is.
    ///
    /// # Errors
    /// Of open(2) and dup(2).
    pub fn open(command: &'static str, path: Option<&Path>, is_lost: &Arc<AtomicBool>) -> Result<Log, Failure> {
        let name = path.map_or_else(|| "stdout".to_owned(), |path| path.display().to_string());
        let output = path.map_or_else(Output::stdout, |path| File::create(path).map(Output::from));
        let output = output.map_err(|error| Failure::new(format!("log {name}: {}", errno::describe(&error))))?;
        Ok(Log { command, output, name, is_lost: Arc::clone(is_lost) })
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.output.write(bytes);
        if let Err(error) = &written
            && !self.is_lost.swap(true, Ordering::SeqCst)
        {
            complain(self.command, &format!("log {}: {}", self.name, errno::describe(error)));
        }
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}
