//! The newc cpio archive, the form in which the kernel takes an initramfs.
//!
//! An archive is a row of entries. An entry is, with every number as eight upper-case hexadecimal digits:
//!
//! ```text
//! offset  0  "070701"
//!         6  inode        14  mode        22  uid          30  gid
//!        38  links        46  mtime       54  size         62  device major
//!        70  device minor 78  rdev major  86  rdev minor   94  name size, with its NUL
//!       102  check (0)
//!       110  name, NUL, zeros up to a multiple of 4
//!            data (a file's bytes or a link's target), zeros up to a multiple of 4
//! ```
//!
//! The last entry is called `TRAILER!!!`; zeros behind it fill the archive up to a multiple of 512 bytes. Names have no leading slash,
//! and a directory comes before what is in it: the kernel makes no parents. Owner, group and times are 0 and inodes count from 1,
//! so that the same entries give the same bytes.
//!
//! Source: Linux `Documentation/driver-api/early-userspace/buffer-format.rst` and `init/initramfs.c`, which skips entries beyond the
//! limits here without a word.

use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Longest name or link target, in bytes with the NUL: the kernel's PATH_MAX.
pub const NAME_LIMIT: usize = 4096;

/// Largest file, in bytes: the header has 32 bits for the size.
pub const FILE_LIMIT: u64 = u32::MAX as u64;

/// The archive's length is a multiple of this, in bytes, as cpio(1) writes it.
const BLOCK: u64 = 512;

const S_IFDIR: u32 = 0o040000;
const S_IFREG: u32 = 0o100000;
const S_IFLNK: u32 = 0o120000;

/// What the header of one entry holds beside its name.
#[derive(Default)]
struct Header {
    inode: u32,
    mode: u32,
    links: u32,
    size: u32,
    device: (u32, u32),
}

/// Writes an archive, entry by entry; nothing is kept in memory.
pub struct Archive<W> {
    out: W,
    inode: u32,
    written: u64,
}

impl<W: Write> Archive<W> {
    pub fn new(out: W) -> Archive<W> {
        Archive { out, inode: 0, written: 0 }
    }

    /// A directory with these permissions.
    pub fn directory(&mut self, name: &Path, permissions: u32) -> io::Result<()> {
        self.entry(name, Header { mode: S_IFDIR | permissions, links: 2, ..Header::default() })
    }

    /// A file with the first `size` bytes of `content`. `UnexpectedEof` when there are fewer, `FileTooLarge` for a size beyond
    /// [`FILE_LIMIT`].
    pub fn file(&mut self, name: &Path, permissions: u32, size: u64, content: impl Read) -> io::Result<()> {
        let short = u32::try_from(size)
            .map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, "larger than 4 GiB - 1, the archive's limit"))?;
        self.entry(name, Header { mode: S_IFREG | permissions, links: 1, size: short, ..Header::default() })?;
        if io::copy(&mut content.take(size), &mut self.out)? != size {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "became shorter while it was read"));
        }
        self.written += size;
        self.pad(4)
    }

    /// A symbolic link to `target`.
    pub fn symlink(&mut self, name: &Path, target: &Path) -> io::Result<()> {
        let target = target.as_os_str().as_bytes();
        // The bound makes the cast whole.
        check_length(target)?;
        self.entry(name, Header { mode: S_IFLNK | 0o777, links: 1, size: target.len() as u32, ..Header::default() })?;
        self.write(target)?;
        self.pad(4)
    }

    /// A device node or FIFO: `mode` holds the kind and the permissions.
    pub fn node(&mut self, name: &Path, mode: u32, device: (u32, u32)) -> io::Result<()> {
        self.entry(name, Header { mode, links: 1, device, ..Header::default() })
    }

    /// The end of the archive. Returns what it was written to, not flushed.
    pub fn finish(mut self) -> io::Result<W> {
        self.header(b"TRAILER!!!", Header { links: 1, ..Header::default() })?;
        self.pad(BLOCK)?;
        Ok(self.out)
    }

    fn entry(&mut self, name: &Path, header: Header) -> io::Result<()> {
        let name = name.as_os_str().as_bytes();
        check_length(name)?;
        self.inode += 1;
        self.header(name, Header { inode: self.inode, ..header })
    }

    fn header(&mut self, name: &[u8], header: Header) -> io::Result<()> {
        let Header { inode, mode, links, size, device: (major, minor) } = header;
        let numbers = [inode, mode, 0, 0, links, 0, size, 0, 0, major, minor, name.len() as u32 + 1, 0];
        self.write(b"070701")?;
        for number in numbers {
            self.write(format!("{number:08X}").as_bytes())?;
        }
        self.write(name)?;
        self.write(&[0])?;
        self.pad(4)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn pad(&mut self, multiple: u64) -> io::Result<()> {
        let missing = self.written.next_multiple_of(multiple) - self.written;
        self.write(&[0; BLOCK as usize][..missing as usize])
    }
}

fn check_length(text: &[u8]) -> io::Result<()> {
    match text.len() {
        0 => Err(io::Error::new(io::ErrorKind::InvalidInput, "empty name")),
        1..NAME_LIMIT => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidFilename, "name longer than 4095 bytes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_these_bytes() {
        let mut archive = Archive::new(Vec::new());
        archive.directory(Path::new("d"), 0o755).unwrap();
        archive.file(Path::new("d/f"), 0o644, 3, &b"abcd"[..]).unwrap();
        archive.symlink(Path::new("link"), Path::new("d/f")).unwrap();
        archive.node(Path::new("null"), 0o020666, (1, 3)).unwrap();
        let bytes = archive.finish().unwrap();
        let expected = concat!(
            "0707010000000100",
            "0041ED0000000000",
            "0000000000000200",
            "0000000000000000",
            "0000000000000000",
            "0000000000000000",
            "0000020000",
            "0000d\0",
            "0707010000000200",
            "0081A40000000000",
            "0000000000000100",
            "0000000000000300",
            "0000000000000000",
            "0000000000000000",
            "0000040000",
            "0000d/f\0\0\0abc\0",
            "0707010000000300",
            "00A1FF0000000000",
            "0000000000000100",
            "0000000000000300",
            "0000000000000000",
            "0000000000000000",
            "0000050000",
            "0000link\0\0d/f\0",
            "0707010000000400",
            "0021B60000000000",
            "0000000000000100",
            "0000000000000000",
            "0000000000000000",
            "0000010000000300",
            "0000050000",
            "0000null\0\0",
            "0707010000000000",
            "0000000000000000",
            "0000000000000100",
            "0000000000000000",
            "0000000000000000",
            "0000000000000000",
            "00000B0000",
            "0000TRAILER!!!\0\0\0\0",
        );
        assert_eq!(String::from_utf8_lossy(&bytes[..expected.len()]), expected);
        assert!(bytes[expected.len()..].iter().all(|byte| *byte == 0));
        assert_eq!(bytes.len(), 1024);
    }

    #[test]
    fn a_file_that_became_shorter_is_an_error() {
        let error = Archive::new(Vec::new()).file(Path::new("f"), 0, 4, &b"abc"[..]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_file_may_have_4_gib_less_one_byte_and_no_more() {
        // Reading nothing shows that the size passed, without 4 GiB of bytes.
        let file = |size| Archive::new(Vec::new()).file(Path::new("f"), 0, size, io::empty()).unwrap_err().kind();
        assert_eq!(file(FILE_LIMIT), io::ErrorKind::UnexpectedEof);
        assert_eq!(file(FILE_LIMIT + 1), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn a_name_or_target_may_have_4095_bytes_and_no_more() {
        let (longest, longer) = ("n".repeat(NAME_LIMIT - 1), "n".repeat(NAME_LIMIT));
        let mut archive = Archive::new(Vec::new());
        archive.directory(Path::new(&longest), 0).unwrap();
        archive.symlink(Path::new("l"), Path::new(&longest)).unwrap();
        archive.directory(Path::new(&longer), 0).unwrap_err();
        archive.symlink(Path::new("l"), Path::new(&longer)).unwrap_err();
        archive.directory(Path::new(""), 0).unwrap_err();
    }
}
