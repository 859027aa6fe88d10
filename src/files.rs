//! File operations of a guest: the handles of one connection, and what is done to a path.
//!
//! Modes are those of stat(2), times nanoseconds since 1970, open flags the bits of open(2) of this system. Paths go to the kernel
//! as they are: any bytes but NUL (EINVAL), and "" is ENOENT. The umask of the process applies to what is created. Every error
//! has a `raw_os_error`.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::sys::file::FileSystem;
use crate::sys::{fd, file};

/// Most handles of one connection, in open files; one more is EMFILE. It is the usual soft limit of descriptors of a process: a
/// client that forgets to close meets it, and the other connections have what the process may hold beyond it.
pub const HANDLES_MAX: usize = 1024;

/// Smallest room made for one pread, in bytes. The room doubles with what was read, so a limit that the file does not fill costs
/// no memory, and a large file few calls.
const READ_STEP_BYTES: usize = 64 * 1024;

/// The open files of one connection. Dropping it closes them all.
#[derive(Debug, Default)]
pub struct Files {
    opened: HashMap<u32, Opened>,
    last_handle: u32,
}

/// What a handle stands for.
#[derive(Debug)]
struct Opened {
    file: File,
    /// The last component of the path, as `Stat` gives it.
    name: OsString,
    appends: bool,
}

/// How a read ended that had no error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadEnd {
    /// Bytes read.
    pub count: usize,
    /// The end of the file came before the limit. False when the limit is just the end.
    pub end_met: bool,
}

/// How a write ended. Bytes may have been written before an error.
#[derive(Debug)]
pub struct Written {
    /// Bytes written.
    pub count: usize,
    /// Why not all of them.
    pub error: Option<io::Error>,
}

/// What stat(2) says of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The last component of the path as it was given: `d` of `d/`, `.` of `d/.`, `/` of `/`.
    pub name: OsString,
    /// Type and permissions, `st_mode`.
    pub mode: u32,
    pub size: u64,
    /// Times beyond the years 1677 and 2262 are the first and the last that can be said.
    pub accessed_ns: i64,
    pub modified_ns: i64,
    pub changed_ns: i64,
    pub uid: u32,
    pub gid: u32,
    pub links: u64,
    /// The device that the file is on.
    pub device: u64,
    /// The device that the file stands for, `st_rdev`.
    pub device_special: u64,
    /// Space used, in units of 512 bytes.
    pub blocks: u64,
    /// The size of a good read or write, `st_blksize`.
    pub block_bytes: u64,
    pub inode: u64,
}

/// Whether an operation means the symbolic link that its path names, or what the link leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    Links,
    Nothing,
}

impl Files {
    /// open(2) with these flags, and O_CLOEXEC, O_NONBLOCK and O_NOCTTY: a FIFO without a writer opens at once, and one without a
    /// reader is ENXIO. Gives the handle: 1, 2, and so on, none again before all numbers were used. EMFILE beyond `HANDLES_MAX`,
    /// with nothing created or truncated.
    pub fn open(&mut self, path: &Path, flags: i32, mode: u32) -> io::Result<u32> {
        if self.opened.len() >= HANDLES_MAX {
            return Err(errno(file::EMFILE));
        }
        let opened = file::open(path, flags | file::O_NONBLOCK | file::O_NOCTTY, mode)?;
        let appends = flags & file::O_APPEND != 0;
        let handle = self.free_handle();
        self.opened.insert(handle, Opened { file: opened, name: last_component(path), appends });
        Ok(handle)
    }

    /// Closes a handle, which is gone after an error too. EBADF when there is none, else what close(2) says of earlier writes.
    pub fn close(&mut self, handle: u32) -> io::Result<()> {
        let opened = self.opened.remove(&handle).ok_or_else(|| errno(file::EBADF))?;
        file::close(opened.file)
    }

    /// Reads at `offset` (bytes) until `limit` bytes or the end, behind what `into` holds; after an error `into` is as before. It
    /// grows with what is read, so a caller who reads from a device must mind the limit. A limit of 0 succeeds and is no end.
    /// EBADF for an unknown or write-only handle, EIO for a negative offset, EISDIR, ESPIPE for a FIFO.
    pub fn read_at(&self, handle: u32, offset: i64, limit: usize, into: &mut Vec<u8>) -> io::Result<ReadEnd> {
        let opened = &self.opened(handle)?.file;
        if limit > 0 && offset < 0 {
            return Err(errno(file::EIO));
        }
        let held = into.len();
        let result = read_until(opened, offset, limit, into);
        if result.is_err() {
            into.truncate(held);
        }
        result
    }

    /// Writes all `bytes` at `offset` (bytes); with a negative one at the file position, which is the end for a handle opened with
    /// O_APPEND. EIO with nothing written for such a handle and another offset, EBADF for an unknown or read-only handle, EAGAIN
    /// for a full FIFO.
    pub fn write_at(&self, handle: u32, offset: i64, bytes: &[u8]) -> Written {
        let target = match self.opened(handle) {
            Ok(opened) if opened.appends && offset >= 0 => return Written { count: 0, error: Some(errno(file::EIO)) },
            Ok(opened) => opened.file.as_fd(),
            Err(error) => return Written { count: 0, error: Some(error) },
        };
        let mut count = 0;
        while count < bytes.len() {
            let rest = &bytes[count..];
            let result = match offset.checked_add(count as i64) {
                _ if offset < 0 => fd::write(target, rest),
                Some(at) => fd::pwrite(target, rest, at),
                None => Err(errno(file::EFBIG)),
            };
            match result {
                // No file does this; to try again could take for ever.
                Ok(0) => return Written { count, error: Some(errno(file::EIO)) },
                Ok(more) => count += more,
                Err(error) => return Written { count, error: Some(error) },
            }
        }
        Written { count, error: None }
    }

    /// fstat(2). The name is that of the path it was opened by.
    pub fn fstat(&self, handle: u32) -> io::Result<Stat> {
        let opened = self.opened(handle)?;
        Ok(stat_of(opened.name.clone(), &opened.file.metadata().map_err(numbered)?))
    }

    /// fsync(2), of a directory too.
    pub fn sync(&self, handle: u32) -> io::Result<()> {
        self.opened(handle)?.file.sync_all().map_err(numbered)
    }

    /// ftruncate(2). EINVAL for a negative size and a read-only handle.
    pub fn resize(&self, handle: u32, size_bytes: i64) -> io::Result<()> {
        file::ftruncate(self.opened(handle)?.file.as_fd(), size_bytes)
    }

    /// The next range at or behind `offset_bytes` that may hold data, as (start, end); `None` when only a hole, or nothing, is left. All
    /// the rest is data on a file system without holes. EINVAL for a negative offset and for a device that cannot tell, ESPIPE for
    /// a FIFO. The file position stays where it was: it is set back, and `&mut` keeps writers out meanwhile; nobody else shares
    /// the open file.
    pub fn next_data(&mut self, handle: u32, offset_bytes: i64) -> io::Result<Option<(i64, i64)>> {
        let mut opened = &self.opened(handle)?.file;
        if offset_bytes < 0 {
            return Err(errno(file::EINVAL));
        }
        let position = opened.stream_position().map_err(numbered)?;
        let found = file::next_data(opened.as_fd(), offset_bytes);
        opened.seek(SeekFrom::Start(position)).map_err(numbered)?;
        match found? {
            // /dev/zero and the like answer each seek with 0; a caller that goes on behind `end` would never come to an end.
            Some((start, end)) if start < offset_bytes || end <= start => Err(errno(file::EINVAL)),
            found => Ok(found),
        }
    }

    fn opened(&self, handle: u32) -> io::Result<&Opened> {
        self.opened.get(&handle).ok_or_else(|| errno(file::EBADF))
    }

    /// The next number that is neither 0 nor in use; at most `HANDLES_MAX` numbers are in the way.
    fn free_handle(&mut self) -> u32 {
        loop {
            self.last_handle = self.last_handle.wrapping_add(1);
            if self.last_handle != 0 && !self.opened.contains_key(&self.last_handle) {
                return self.last_handle;
            }
        }
    }
}

/// stat(2).
pub fn stat(path: &Path) -> io::Result<Stat> {
    Ok(stat_of(last_component(path), &fs::metadata(path).map_err(numbered)?))
}

/// lstat(2).
pub fn lstat(path: &Path) -> io::Result<Stat> {
    Ok(stat_of(last_component(path), &fs::symlink_metadata(path).map_err(numbered)?))
}

/// The entries of a directory at this moment, in byte order of their names. Holds all names, and the directory open, which may be
/// moved meanwhile. ENOTDIR for another file.
pub fn list(path: &Path) -> io::Result<Listing> {
    let directory = file::open(path, file::O_RDONLY | file::O_DIRECTORY, 0)?;
    let mut names = file::directory_names(directory.as_fd())?;
    names.sort_unstable();
    Ok(Listing { directory, names: names.into_iter() })
}

/// What `list` found. Each entry is looked at (lstat(2)) when its turn comes. One that has vanished since is left out; upstream's
/// agent has the whole listing fail, which makes a busy directory unreadable.
#[derive(Debug)]
pub struct Listing {
    directory: File,
    names: std::vec::IntoIter<OsString>,
}

impl Listing {
    /// Most entries that are still to come.
    pub fn remaining(&self) -> usize {
        self.names.len()
    }
}

impl Iterator for Listing {
    type Item = io::Result<Stat>;

    fn next(&mut self) -> Option<io::Result<Stat>> {
        loop {
            let name = self.names.next()?;
            let entry = file::open_at(self.directory.as_fd(), &name, file::O_PATH | file::O_NOFOLLOW);
            match entry.and_then(|entry| entry.metadata()) {
                Ok(metadata) => return Some(Ok(stat_of(name, &metadata))),
                Err(error) if error.raw_os_error() == Some(file::ENOENT) => {}
                Err(error) => return Some(Err(numbered(error))),
            }
        }
    }
}

/// mkdir(2), which leaves out the bits of setuid and setgid.
pub fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    fs::DirBuilder::new().mode(mode).create(path).map_err(numbered)
}

/// Makes a directory and those above it that are missing, each with this mode. One that is there, if only through a symbolic link,
/// is well. ENOTDIR when another file is in the way.
pub fn make_directories(path: &Path, mode: u32) -> io::Result<()> {
    // std takes it for the current directory.
    if path.as_os_str().is_empty() {
        return Err(errno(file::ENOENT));
    }
    match fs::DirBuilder::new().mode(mode).recursive(true).create(path).map_err(numbered) {
        Err(error) if error.raw_os_error() == Some(file::EEXIST) && path.exists() => Err(errno(file::ENOTDIR)),
        result => result,
    }
}

/// unlink(2), or rmdir(2) where that fails. The error is of rmdir unless it says ENOTDIR.
pub fn remove(path: &Path) -> io::Result<()> {
    let Err(unlinked) = fs::remove_file(path).map_err(numbered) else { return Ok(()) };
    match fs::remove_dir(path).map_err(numbered) {
        Err(error) if error.raw_os_error() == Some(file::ENOTDIR) => Err(unlinked),
        result => result,
    }
}

/// rename(2), but EEXIST when `new` is a directory, even an empty one; unless it is `old` itself spelled in another way.
pub fn rename(old: &Path, new: &Path) -> io::Result<()> {
    if let Ok(there) = fs::symlink_metadata(new)
        && there.is_dir()
    {
        let moved = fs::symlink_metadata(old).map_err(numbered)?;
        let same = (moved.dev(), moved.ino()) == (there.dev(), there.ino());
        if !same || old.as_os_str() == new.as_os_str() {
            return Err(errno(file::EEXIST));
        }
    }
    fs::rename(old, new).map_err(numbered)
}

/// chmod(2): permissions, setuid, setgid and sticky. Follows links.
pub fn change_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(numbered)
}

/// truncate(2). EINVAL for a negative size; a larger one fills with zeros.
pub fn truncate(path: &Path, size_bytes: i64) -> io::Result<()> {
    file::truncate(path, size_bytes)
}

/// The current directory: `$PWD` if it is a path from the root and leads there, else getcwd(3).
pub fn working_directory() -> io::Result<PathBuf> {
    let identity = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    match std::env::var_os("PWD").map(PathBuf::from) {
        Some(path) if path.is_absolute() && identity(&path).is_some_and(|it| identity(Path::new(".")) == Some(it)) => {
            Ok(path)
        }
        _ => std::env::current_dir().map_err(numbered),
    }
}

/// readlink(2). EINVAL for what is no symbolic link.
pub fn read_link(path: &Path) -> io::Result<PathBuf> {
    fs::read_link(path).map_err(numbered)
}

/// symlink(2): makes `link`, which leads to `target`.
pub fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link).map_err(numbered)
}

/// link(2): gives the file `old`, be it a symbolic link, the name `new` too.
pub fn link(old: &Path, new: &Path) -> io::Result<()> {
    fs::hard_link(old, new).map_err(numbered)
}

/// chown(2). `u32::MAX` leaves the user or the group as it is. Follows links.
pub fn change_owner(path: &Path, uid: u32, gid: u32) -> io::Result<()> {
    std::os::unix::fs::chown(path, Some(uid), Some(gid)).map_err(numbered)
}

/// utimensat(2): both times, in nanoseconds since 1970; negative ones are before.
pub fn set_times(path: &Path, accessed_ns: i64, modified_ns: i64, follow: Follow) -> io::Result<()> {
    file::set_times(path, accessed_ns, modified_ns, follow == Follow::Links)
}

/// statvfs(3) of the file system that the path is on.
pub fn file_system(path: &Path) -> io::Result<FileSystem> {
    file::file_system(path)
}

fn read_until(from: &File, offset: i64, limit: usize, into: &mut Vec<u8>) -> io::Result<ReadEnd> {
    let mut count = 0;
    while count < limit {
        let spare = into.capacity() - into.len();
        let step = (limit - count).min(READ_STEP_BYTES.max(spare).max(count));
        match fd::pread_append(from.as_fd(), into, step, offset.saturating_add(count as i64))? {
            0 => return Ok(ReadEnd { count, end_met: true }),
            more => count += more,
        }
    }
    Ok(ReadEnd { count, end_met: false })
}

fn stat_of(name: OsString, metadata: &Metadata) -> Stat {
    let nanoseconds = |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
    Stat {
        name,
        mode: metadata.mode(),
        size: metadata.size(),
        accessed_ns: nanoseconds(metadata.atime(), metadata.atime_nsec()),
        modified_ns: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
        changed_ns: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        uid: metadata.uid(),
        gid: metadata.gid(),
        links: metadata.nlink(),
        device: metadata.dev(),
        device_special: metadata.rdev(),
        blocks: metadata.blocks(),
        block_bytes: metadata.blksize(),
        inode: metadata.ino(),
    }
}

/// `Path::file_name` would drop `.` and know no name for `/` and `..`.
fn last_component(path: &Path) -> OsString {
    let mut bytes = path.as_os_str().as_bytes();
    while let [rest @ .., b'/'] = bytes
        && !rest.is_empty()
    {
        bytes = rest;
    }
    let name = if bytes == b"/" { bytes } else { bytes.rsplit(|byte| *byte == b'/').next().unwrap_or(bytes) };
    OsStr::from_bytes(name).to_owned()
}

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

/// The error with a number: std has errors of its own, such as that of a NUL in a path.
fn numbered(error: io::Error) -> io::Error {
    if error.raw_os_error().is_some() {
        return error;
    }
    errno(match error.kind() {
        io::ErrorKind::NotFound => file::ENOENT,
        io::ErrorKind::PermissionDenied => file::EACCES,
        io::ErrorKind::AlreadyExists => file::EEXIST,
        io::ErrorKind::InvalidInput => file::EINVAL,
        _ => file::EIO,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_component_is_named_as_it_was_given() {
        let rows = [
            ("", ""),
            ("a", "a"),
            ("a/b", "b"),
            ("/a", "a"),
            ("d/", "d"),
            ("/x/d///", "d"),
            ("d/.", "."),
            ("d/..", ".."),
            (".", "."),
            ("/", "/"),
            ("///", "/"),
        ];
        for (path, name) in rows {
            assert_eq!(last_component(Path::new(path)), name, "of {path:?}");
        }
    }

    #[test]
    fn handle_numbers_wrap_past_0_and_past_those_in_use() -> io::Result<()> {
        let mut files = Files::default();
        let mut open = |last: u32| {
            files.last_handle = last;
            files.open(Path::new("/"), file::O_RDONLY, 0)
        };
        assert_eq!(open(0)?, 1);
        assert_eq!(open(u32::MAX - 1)?, u32::MAX);
        assert_eq!(open(u32::MAX)?, 2);
        assert_eq!(open(u32::MAX - 1)?, 3);
        Ok(())
    }

    #[test]
    fn an_error_of_std_itself_gets_a_number() {
        let number = |kind: io::ErrorKind| numbered(io::Error::from(kind)).raw_os_error();
        assert_eq!(number(io::ErrorKind::NotFound), Some(file::ENOENT));
        assert_eq!(number(io::ErrorKind::PermissionDenied), Some(file::EACCES));
        assert_eq!(number(io::ErrorKind::AlreadyExists), Some(file::EEXIST));
        assert_eq!(number(io::ErrorKind::InvalidInput), Some(file::EINVAL));
        assert_eq!(number(io::ErrorKind::WriteZero), Some(file::EIO));
        assert_eq!(numbered(errno(file::ENOSPC)).raw_os_error(), Some(file::ENOSPC));
    }
}
