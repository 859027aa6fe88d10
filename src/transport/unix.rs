//! Listening on a unix socket.
//!
//! Whoever may connect may run programs as the agent's user, so there must be no moment in which the socket can be opened by more people than
//! its mode and group say, and no moment in which it is somebody else's file that is removed.

use std::fs::{self, DirBuilder, File, Metadata, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, fchown, lchown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::stream::Stream;
use crate::sys::fd;
use crate::sys::file::{self, O_DIRECTORY, O_NOFOLLOW, O_RDONLY};
use crate::sys::unix::{self, PATH_MAX};

/// How long a listener may have no room for one more connection, and how often to look. 256 connections wait in its queue by then.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
const CONNECT_PAUSE: Duration = Duration::from_millis(5);

/// The owner's bits of a mode.
const OWNER: u32 = 0o700;

/// A unix socket that connections come to. When this is dropped its file is removed, unless another file is in its place by then.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of the file. Nothing else can have them while the socket is open.
    file: (u64, u64),
}

impl Listener {
    /// Listens at a path, whose directories are made where they are missing. The file has exactly these permissions.
    ///
    /// # Errors
    /// `AddrInUse` when a live socket is there, `AlreadyExists` when something is there that is no socket, `InvalidInput` for a path that is
    /// too long and a group that is none.
    pub fn open(path: &Path, mode: u32, group: Option<u32>) -> io::Result<Listener> {
        let wrong = |why: String| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        let bytes = path.as_os_str().len();
        if bytes > PATH_MAX {
            return wrong(format!("the path has {bytes} bytes, and a unix socket's may have {PATH_MAX}"));
        }
        if group == Some(u32::MAX) {
            // For chown(2) it means that the group stays as it is.
            return wrong(format!("{} is no group", u32::MAX));
        }
        remove_stale(path)?;
        make_parents(path, mode, group)?;
        // Permissions are set from birth, because between bind(2) and a later chmod(2) anybody could connect. The kernel gives the file the
        // agent's own group, for which the group's bits are not meant: with another group only the owner's bits are there until it is set.
        let birth = if group.is_some() { mode & OWNER } else { mode };
        let before = file::set_umask(!birth & 0o777);
        let socket = UnixListener::bind(path);
        file::set_umask(before);
        let socket = socket?;
        let file = identity(&fs::symlink_metadata(path)?);
        let listener = Listener { socket, path: path.to_owned(), file };
        if group.is_some() {
            // In this order: the other way round the wrong group would have the bits for a moment.
            lchown(path, None, group)?;
            fs::set_permissions(path, Permissions::from_mode(mode))?;
        }
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
        // Another agent may have put its own there, after an administrator removed ours.
        if fs::symlink_metadata(&self.path).is_ok_and(|found| identity(&found) == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Connects. A listener whose queue is full gets some time: connect(2) would wait for ever for an agent that has stopped.
///
/// # Errors
/// `TimedOut`; those of connect(2).
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    let deadline = Instant::now() + CONNECT_PATIENCE;
    loop {
        match unix::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                // Nothing tells when there is room.
                thread::sleep(CONNECT_PAUSE);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
            connected => {
                let socket = connected?;
                fd::set_nonblocking(socket.as_fd(), false)?;
                return Ok(socket);
            }
        }
    }
}

fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

/// Removes a socket that a dead agent left. What is no socket is never removed.
fn remove_stale(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?.file_type(),
    };
    if !found.is_socket() {
        let what = match found {
            _ if found.is_file() => "a regular file",
            _ if found.is_dir() => "a directory",
            _ if found.is_symlink() => "a symbolic link",
            _ => "no socket but a device or a pipe",
        };
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{what} is there, and stays")));
    }
    // Whatever else happens to the probe, somebody may be there: a full queue, no right to connect, a socket of another type. What bind(2)
    // says about the path is right then.
    if unix::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
        fs::remove_file(path)?;
    }
    Ok(())
}

/// Makes the directories that are missing, for those who may use the socket: who may open it may go through them. Directories that are there
/// stay as they are; they are somebody else's.
fn make_parents(path: &Path, mode: u32, group: Option<u32>) -> io::Result<()> {
    // The owner's bits in any case, or we could put nothing into them.
    let mode = mode | (mode & 0o444) >> 2 | OWNER;
    let mut missing = Vec::new();
    for directory in path.ancestors().skip(1).filter(|directory| !directory.as_os_str().is_empty()) {
        match fs::metadata(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(directory),
            found => {
                found?;
                break;
            }
        }
    }
    missing.into_iter().rev().try_for_each(|directory| make_directory(directory, mode, group))
}

fn make_directory(path: &Path, mode: u32, group: Option<u32>) -> io::Result<()> {
    let birth = if group.is_some() { OWNER } else { mode };
    match DirBuilder::new().mode(birth).create(path) {
        // Made by somebody else meanwhile.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        made => made?,
    }
    if group.is_some() {
        let directory: File = file::open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0)?;
        fchown(&directory, None, group)?;
        directory.set_permissions(Permissions::from_mode(mode & !umask()))?;
    }
    Ok(())
}

/// The umask of this process, which can be read only by setting it.
fn umask() -> u32 {
    let mask = file::set_umask(0o077);
    file::set_umask(mask);
    mask
}
