//! Files: the calls that `std::fs` lacks or covers with a policy of its own.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::sys::{check, check_size, retry};

pub const O_RDONLY: i32 = libc::O_RDONLY;
pub const O_WRONLY: i32 = libc::O_WRONLY;
pub const O_RDWR: i32 = libc::O_RDWR;
pub const O_CREAT: i32 = libc::O_CREAT;
pub const O_EXCL: i32 = libc::O_EXCL;
pub const O_TRUNC: i32 = libc::O_TRUNC;
pub const O_APPEND: i32 = libc::O_APPEND;
pub const O_NONBLOCK: i32 = libc::O_NONBLOCK;
pub const O_NOCTTY: i32 = libc::O_NOCTTY;
pub const O_NOFOLLOW: i32 = libc::O_NOFOLLOW;
pub const O_DIRECTORY: i32 = libc::O_DIRECTORY;
pub const O_PATH: i32 = libc::O_PATH;

pub const ENOENT: i32 = libc::ENOENT;
pub const EIO: i32 = libc::EIO;
pub const E2BIG: i32 = libc::E2BIG;
pub const ESRCH: i32 = libc::ESRCH;
pub const EBADF: i32 = libc::EBADF;
pub const EAGAIN: i32 = libc::EAGAIN;
pub const EACCES: i32 = libc::EACCES;
pub const EEXIST: i32 = libc::EEXIST;
pub const ENOTDIR: i32 = libc::ENOTDIR;
pub const EISDIR: i32 = libc::EISDIR;
pub const EINVAL: i32 = libc::EINVAL;
pub const EMFILE: i32 = libc::EMFILE;
pub const ENFILE: i32 = libc::ENFILE;
pub const EFBIG: i32 = libc::EFBIG;
pub const ENOSYS: i32 = libc::ENOSYS;
pub const ENOEXEC: i32 = libc::ENOEXEC;
pub const ENXIO: i32 = libc::ENXIO;
pub const ENODEV: i32 = libc::ENODEV;
pub const EPERM: i32 = libc::EPERM;
pub const ENOTEMPTY: i32 = libc::ENOTEMPTY;
pub const EXDEV: i32 = libc::EXDEV;
pub const EOVERFLOW: i32 = libc::EOVERFLOW;
pub const EROFS: i32 = libc::EROFS;
pub const ENOSPC: i32 = libc::ENOSPC;
pub const ESPIPE: i32 = libc::ESPIPE;
pub const EPIPE: i32 = libc::EPIPE;
pub const ELOOP: i32 = libc::ELOOP;
pub const ENAMETOOLONG: i32 = libc::ENAMETOOLONG;

/// A path or another string for the kernel. EINVAL when a NUL is in it.
pub fn c_string(text: impl AsRef<OsStr>) -> io::Result<CString> {
    CString::new(text.as_ref().as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// open(2) with exactly these flags, and O_CLOEXEC.
pub fn open(path: impl AsRef<Path>, flags: i32, mode: u32) -> io::Result<File> {
    let path = c_string(path.as_ref())?;
    // SAFETY: the path is a C string; the result is a new descriptor that nobody else owns.
    unsafe {
        let fd = retry(|| check(libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, mode)))?;
        Ok(File::from(OwnedFd::from_raw_fd(fd)))
    }
}

/// open(2) of what a descriptor stands for, through /proc: another open file of the same, with flags of its own.
pub fn open_again(fd: BorrowedFd, flags: i32) -> io::Result<OwnedFd> {
    open(format!("/proc/self/fd/{}", fd.as_raw_fd()), flags, 0).map(OwnedFd::from)
}

/// openat2(2) of a directory with RESOLVE_NO_SYMLINKS: ELOOP when any part of the path is a symbolic link. Before Linux 5.6, where there is no
/// such call, open(2) with O_NOFOLLOW, which looks at the last part alone.
pub fn open_directory_without_links(path: impl AsRef<Path>) -> io::Result<OwnedFd> {
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    let text = c_string(path.as_ref())?;
    // SAFETY: all zeros is a valid structure; the path is a C string; the size is that of the structure, which the kernel only reads; the
    // result is a new descriptor that nobody else owns.
    let opened = unsafe {
        let mut how: libc::open_how = std::mem::zeroed();
        how.flags = (flags | libc::O_CLOEXEC) as u64;
        how.resolve = libc::RESOLVE_NO_SYMLINKS;
        let size = size_of::<libc::open_how>();
        let call = || check(libc::syscall(libc::SYS_openat2, libc::AT_FDCWD, text.as_ptr(), &how, size) as i32);
        retry(call).map(|fd| OwnedFd::from_raw_fd(fd))
    };
    match opened {
        Err(error) if error.raw_os_error() == Some(ENOSYS) => open(path, flags | O_NOFOLLOW, 0).map(OwnedFd::from),
        result => result,
    }
}

/// openat(2) with exactly these flags, and O_CLOEXEC: a path that starts at an open directory. Creates nothing.
pub fn open_at(directory: BorrowedFd, path: impl AsRef<Path>, flags: i32) -> io::Result<File> {
    let path = c_string(path.as_ref())?;
    // SAFETY: the path is a C string; the result is a new descriptor that nobody else owns.
    unsafe {
        let fd = retry(|| check(libc::openat(directory.as_raw_fd(), path.as_ptr(), flags | libc::O_CLOEXEC)))?;
        Ok(File::from(OwnedFd::from_raw_fd(fd)))
    }
}

/// close(2). The descriptor is gone after an error too; such an error tells of bytes written earlier (ENOSPC, EDQUOT, EIO).
pub fn close(descriptor: impl Into<OwnedFd>) -> io::Result<()> {
    // SAFETY: the descriptor is owned, and given up here. No retry: after EINTR its number may belong to somebody else.
    check(unsafe { libc::close(descriptor.into().into_raw_fd()) }).map(drop)
}

/// getdents64(2) until the end: the names in an open directory in the order of the file system, without `.` and `..`.
/// ENOTDIR for another file.
pub fn directory_names(directory: BorrowedFd) -> io::Result<Vec<OsString>> {
    // struct linux_dirent64: u64 d_ino, i64 d_off, u16 d_reclen, u8 d_type, then the name and at least one NUL.
    const LENGTH_AT: usize = 16;
    const NAME_AT: usize = 19;
    let mut buffer = vec![0u8; 32 * 1024];
    let mut names = Vec::new();
    loop {
        let (room, size) = (buffer.as_mut_ptr(), buffer.len());
        // SAFETY: the pointer and the length are those of one exclusive slice.
        let filled = retry(|| unsafe {
            let result = libc::syscall(libc::SYS_getdents64, directory.as_raw_fd(), room, size);
            check_size(result as libc::ssize_t)
        })?;
        let mut records = &buffer[..filled];
        if records.is_empty() {
            return Ok(names);
        }
        while !records.is_empty() {
            let length = u16::from_ne_bytes([records[LENGTH_AT], records[LENGTH_AT + 1]]);
            let (record, rest) = records.split_at(length.into());
            let name = record[NAME_AT..].split(|byte| *byte == 0).next().unwrap_or_default();
            if name != b"." && name != b".." {
                names.push(OsStr::from_bytes(name).to_owned());
            }
            records = rest;
        }
    }
}

/// lgetxattr(2), whole. `None`: it has no such attribute, or its file system has none at all.
pub fn attribute(path: impl AsRef<Path>, name: &str) -> io::Result<Option<Vec<u8>>> {
    let (path, name) = (c_string(path.as_ref())?, c_string(name)?);
    // The kernel's limit of a value, XATTR_SIZE_MAX.
    let mut value = vec![0u8; 64 << 10];
    // SAFETY: two C strings; the pointer and the length are those of one exclusive slice.
    let found =
        check_size(unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) });
    match found {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP | libc::ENOSYS)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// fsetxattr(2): sets it, whether it was there or not.
pub fn set_attribute(fd: impl AsFd, name: &str, value: &[u8]) -> io::Result<()> {
    let name = c_string(name)?;
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: a C string; the pointer and the length are those of one slice.
    check(unsafe { libc::fsetxattr(fd, name.as_ptr(), value.as_ptr().cast(), value.len(), 0) }).map(drop)
}

/// fcntl(2) with F_OFD_SETLK: a lock on the whole file, which must be open for writing, for as long as it is open. False: somebody has one
/// already, another thread with a file of its own too. Locks of F_SETLK and lockf(3) count. EINVAL before Linux 3.15.
pub fn lock_whole(fd: BorrowedFd) -> io::Result<bool> {
    // SAFETY: all zeros is a whole file from its start; the kernel only reads the structure.
    let result = check(unsafe {
        let mut whole: libc::flock = std::mem::zeroed();
        whole.l_type = libc::F_WRLCK as _;
        libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &whole)
    });
    match result {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// truncate(2). EINVAL for a negative size.
pub fn truncate(path: impl AsRef<Path>, size_bytes: i64) -> io::Result<()> {
    let path = c_string(path.as_ref())?;
    // SAFETY: the path is a C string.
    retry(|| check(unsafe { libc::truncate64(path.as_ptr(), size_bytes) })).map(drop)
}

/// ftruncate(2). EINVAL for a negative size and for a descriptor that is not open for writing.
pub fn ftruncate(fd: BorrowedFd, size_bytes: i64) -> io::Result<()> {
    // SAFETY: takes plain integers.
    retry(|| check(unsafe { libc::ftruncate64(fd.as_raw_fd(), size_bytes) })).map(drop)
}

/// utimensat(2): both times in nanoseconds since 1970, negative ones before.
pub fn set_times(path: impl AsRef<Path>, accessed_ns: i64, modified_ns: i64, follow: bool) -> io::Result<()> {
    let path = c_string(path.as_ref())?;
    let spec = |ns: i64| libc::timespec {
        tv_sec: ns.div_euclid(1_000_000_000) as _,
        tv_nsec: ns.rem_euclid(1_000_000_000) as _,
    };
    let times = [spec(accessed_ns), spec(modified_ns)];
    let flags = if follow { 0 } else { libc::AT_SYMLINK_NOFOLLOW };
    // SAFETY: the path is a C string, the times an array of two.
    check(unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), flags) }).map(drop)
}

/// What statfs(2) and statvfs(3) say of a file system. Blocks are of `fragment_bytes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileSystem {
    pub blocks: u64,
    pub blocks_free: u64,
    pub blocks_available: u64,
    pub files: u64,
    pub files_free: u64,
    pub block_bytes: u64,
    pub fragment_bytes: u64,
    pub name_length: u64,
}

/// statvfs(3).
#[allow(clippy::unnecessary_cast)] // The members' widths differ between the targets.
pub fn file_system(path: impl AsRef<Path>) -> io::Result<FileSystem> {
    let path = c_string(path.as_ref())?;
    // SAFETY: the kernel fills the structure.
    let found = unsafe {
        let mut found: libc::statvfs64 = std::mem::zeroed();
        retry(|| check(libc::statvfs64(path.as_ptr(), &mut found)))?;
        found
    };
    Ok(FileSystem {
        blocks: found.f_blocks as u64,
        blocks_free: found.f_bfree as u64,
        blocks_available: found.f_bavail as u64,
        files: found.f_files as u64,
        files_free: found.f_ffree as u64,
        block_bytes: found.f_bsize as u64,
        fragment_bytes: found.f_frsize as u64,
        name_length: found.f_namemax as u64,
    })
}

/// lseek(2) with SEEK_DATA and SEEK_HOLE: the next range of bytes at or behind `offset_bytes` that may hold data, as (start, end);
/// `None` when only a hole, or nothing, is left. A file system without holes answers with all the rest. Moves the file position.
pub fn next_data(fd: BorrowedFd, offset_bytes: i64) -> io::Result<Option<(i64, i64)>> {
    // SAFETY: takes plain integers.
    let seek = |offset, whence| match unsafe { libc::lseek64(fd.as_raw_fd(), offset, whence) } {
        -1 => Err(io::Error::last_os_error()),
        found => Ok(found),
    };
    let start = match seek(offset_bytes, libc::SEEK_DATA) {
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(None),
        start => start?,
    };
    Ok(Some((start, seek(start, libc::SEEK_HOLE)?)))
}

/// umask(2): sets the mask of the whole process and gives the one before.
pub fn set_umask(mask: u32) -> u32 {
    // SAFETY: takes and gives plain integers.
    unsafe { libc::umask(mask as libc::mode_t) as u32 }
}
