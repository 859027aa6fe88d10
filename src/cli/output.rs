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

/// A log. Its first error is told; what comes behind that is taken and dropped, since whoever sends it would only send it again.
pub struct Log {
    /// In whose name that is.
    command: &'static str,
    /// `None` behind an error.
    output: Option<Output>,
    name: String,
    is_lost: Arc<AtomicBool>,
    unread: Box<dyn FnMut() + Send>,
}

impl Log {
    /// A log in a new file, or on stdout. `is_lost` becomes true with the first byte that is; `unread` is called then, if it is because the
    /// reader has gone.
    ///
    /// # Errors
    /// Of open(2) and dup(2).
    pub fn open(
        command: &'static str,
        path: Option<&Path>,
        is_lost: &Arc<AtomicBool>,
        unread: Box<dyn FnMut() + Send>,
    ) -> Result<Log, Failure> {
        let name = path.map_or_else(|| "stdout".to_owned(), |path| path.display().to_string());
        let output = path.map_or_else(Output::stdout, |path| File::create(path).map(Output::from));
        let output = output.map_err(|error| Failure::new(format!("log {name}: {}", errno::describe(&error))))?;
        Ok(Log { command, output: Some(output), name, is_lost: Arc::clone(is_lost), unread })
    }

    fn lose(&mut self, error: &io::Error) {
        self.output = None;
        self.is_lost.store(true, Ordering::SeqCst);
        complain(self.command, &format!("log {}: {}", self.name, errno::describe(error)));
        if error.kind() == io::ErrorKind::BrokenPipe {
            (self.unread)();
        }
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.output.as_mut().map(|output| output.write(bytes)) {
            Some(Ok(count)) => return Ok(count),
            Some(Err(error)) => self.lose(&error),
            None => {}
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
