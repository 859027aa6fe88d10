//! Listening on a unix socket.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::stream::Stream;
use crate::sys::file;

/// A unix socket that connections come to. Its file is removed when this is dropped.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Listens at a path. A socket that a dead agent left there is replaced; a live one is `AddrInUse`.
    pub fn open(path: &Path, mode: u32, group: Option<u32>) -> io::Result<Listener> {
        let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
        if is_socket && UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
            fs::remove_file(path)?;
        }
        // No moment in which the file can be opened by more people than it should.
        let before = file::set_umask(0o177);
        let socket = UnixListener::bind(path);
        file::set_umask(before);
        let listener = Listener { socket: socket?, path: path.to_owned() };
        std::os::unix::fs::chown(path, None, group)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        listener.socket.set_nonblocking(true)?;
        Ok(listener)
    }

    /// Readable when a connection waits.
    pub fn watch(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The next connection; `WouldBlock` when there is none.
    pub fn accept(&self) -> io::Result<Stream> {
        let (socket, _) = self.socket.accept()?;
        Ok(Stream::over(socket))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
