//! The file operations, over real files.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use lodger::files::{self, Files, Follow, HANDLES_MAX, ReadEnd, Written};
use lodger::sys::file::{
    EAGAIN, EBADF, EEXIST, EINVAL, EIO, EISDIR, ELOOP, EMFILE, ENAMETOOLONG, ENOENT, ENOSPC, ENOTDIR, ENOTEMPTY, ENXIO,
    EPERM, EPIPE, ESPIPE, O_APPEND, O_CREAT, O_DIRECTORY, O_EXCL, O_NOFOLLOW, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY,
};

const TYPE_MASK: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const SYMLINK: u32 = 0o120_000;
const FIFO: u32 = 0o010_000;

/// A directory that goes away with the test.
struct Room(PathBuf);

impl Room {
    fn new() -> io::Result<Room> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("lodger-files-{}-{number}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Room(path))
    }

    fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }

    fn file(&self, name: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> io::Result<PathBuf> {
        let path = self.at(name);
        fs::write(&path, bytes)?;
        Ok(path)
    }

    fn directory(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.at(name);
        fs::create_dir(&path)?;
        Ok(path)
    }

    fn link(&self, name: &str, target: impl AsRef<Path>) -> io::Result<PathBuf> {
        let path = self.at(name);
        std::os::unix::fs::symlink(target, &path)?;
        Ok(path)
    }

    fn fifo(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.at(name);
        assert!(Command::new("mkfifo").arg(&path).status()?.success(), "mkfifo");
        Ok(path)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The number of the error, or `None` for success.
fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().map(|error| error.raw_os_error().expect("every error of the service has a number"))
}

/// Bytes written, and the number of the error behind them.
fn outcome(written: Written) -> (usize, Option<i32>) {
    (written.count, written.error.and_then(|error| error.raw_os_error()))
}

fn read(files: &Files, handle: u32, offset: i64, limit: usize) -> io::Result<(Vec<u8>, bool)> {
    let mut into = Vec::new();
    let end = files.read_at(handle, offset, limit, &mut into)?;
    assert_eq!(end.count, into.len());
    Ok((into, end.end_met))
}

fn permissions(path: &Path) -> io::Result<u32> {
    Ok(files::lstat(path)?.mode & 0o7777)
}

fn names(path: &Path) -> io::Result<Vec<OsString>> {
    files::list(path)?.map(|entry| Ok(entry?.name)).collect()
}

fn umask() -> io::Result<u32> {
    let status = fs::read_to_string("/proc/self/status")?;
    let text = status.lines().find_map(|line| line.strip_prefix("Umask:")).unwrap_or("0").trim();
    u32::from_str_radix(text, 8).map_err(io::Error::other)
}

fn uid() -> io::Result<u32> {
    Ok(fs::metadata("/proc/self")?.uid())
}

fn say(text: &str) -> io::Result<()> {
    // Not eprintln!: the harness would keep it from sight.
    writeln!(io::stderr(), "{text}")
}

// Handles

#[test]
fn handles_count_from_1_and_are_not_used_again() -> io::Result<()> {
    let mut files = Files::default();
    assert_eq!(files.open(Path::new("/"), O_RDONLY, 0)?, 1);
    assert_eq!(files.open(Path::new("/"), O_RDONLY, 0)?, 2);
    files.close(1)?;
    files.close(2)?;
    assert_eq!(files.open(Path::new("/"), O_RDONLY, 0)?, 3);
    Ok(())
}

#[test]
fn an_unknown_handle_is_ebadf_everywhere() -> io::Result<()> {
    let mut files = Files::default();
    let handle = files.open(Path::new("/"), O_RDONLY, 0)?;
    files.close(handle)?;
    for unknown in [handle, 0, 7, u32::MAX] {
        assert_eq!(errno(files.close(unknown)), Some(EBADF));
        assert_eq!(errno(files.read_at(unknown, 0, 1, &mut Vec::new())), Some(EBADF));
        assert_eq!(errno(files.read_at(unknown, 0, 0, &mut Vec::new())), Some(EBADF));
        assert_eq!(outcome(files.write_at(unknown, 0, b"x")), (0, Some(EBADF)));
        assert_eq!(outcome(files.write_at(unknown, -1, b"")), (0, Some(EBADF)));
        assert_eq!(errno(files.fstat(unknown)), Some(EBADF));
        assert_eq!(errno(files.sync(unknown)), Some(EBADF));
        assert_eq!(errno(files.resize(unknown, 0)), Some(EBADF));
        assert_eq!(errno(files.next_data(unknown, 0)), Some(EBADF));
    }
    Ok(())
}

/// Whether the process may hold the handles of a full connection beside the other tests; raises its soft limit if it must.
fn many_descriptors_are_allowed() -> io::Result<bool> {
    let enough = || -> io::Result<bool> {
        let limits = fs::read_to_string("/proc/self/limits")?;
        let soft = limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next());
        Ok(soft.and_then(|number| number.parse().ok()).is_none_or(|number: usize| number >= 2 * HANDLES_MAX))
    };
    if !enough()? {
        let pid = std::process::id().to_string();
        let _ = Command::new("prlimit").args(["--pid", &pid, "--nofile=4096:"]).stderr(Stdio::null()).status();
    }
    enough()
}

#[test]
fn the_last_handle_opens_and_one_more_is_emfile_and_touches_nothing() -> io::Result<()> {
    if !many_descriptors_are_allowed()? {
        return say("skipped: the hard limit of open files leaves no room for a full connection");
    }
    let room = Room::new()?;
    let kept = room.file("kept", "text")?;
    let mut files = Files::default();
    for _ in 0..HANDLES_MAX {
        files.open(Path::new("/"), O_RDONLY | O_DIRECTORY, 0)?;
    }
    assert_eq!(errno(files.open(&kept, O_RDWR | O_TRUNC, 0)), Some(EMFILE));
    assert_eq!(errno(files.open(&room.at("new"), O_RDWR | O_CREAT, 0o666)), Some(EMFILE));
    assert_eq!(fs::read(&kept)?, b"text");
    assert!(!room.at("new").exists());
    files.close(500)?;
    assert_eq!(files.open(&kept, O_RDONLY, 0)? as usize, HANDLES_MAX + 1);
    Ok(())
}

#[test]
fn a_connection_that_ends_closes_its_files() -> io::Result<()> {
    let room = Room::new()?;
    let path = room.file("f", "")?;
    let held = || -> io::Result<usize> {
        let mut count = 0;
        for entry in fs::read_dir("/proc/self/fd")? {
            count += usize::from(fs::read_link(entry?.path()).is_ok_and(|target| target == path));
        }
        Ok(count)
    };
    let mut files = Files::default();
    for _ in 0..3 {
        files.open(&path, O_RDONLY, 0)?;
    }
    assert_eq!(held()?, 3);
    files.close(2)?;
    assert_eq!(held()?, 2);
    drop(files);
    assert_eq!(held()?, 0);
    Ok(())
}

#[test]
fn open_passes_the_bits_of_open_on() -> io::Result<()> {
    let room = Room::new()?;
    let mut files = Files::default();
    let path = room.at("f");
    assert_eq!(errno(files.open(&path, O_RDWR, 0)), Some(ENOENT));
    let created = files.open(&path, O_RDWR | O_CREAT | O_EXCL, 0o4751)?;
    assert_eq!(permissions(&path)?, 0o4751 & !umask()?);
    assert_eq!(outcome(files.write_at(created, 0, b"12345")), (5, None));
    assert_eq!(errno(files.open(&path, O_RDWR | O_CREAT | O_EXCL, 0o644)), Some(EEXIST));
    assert_eq!(errno(files.open(&path, O_RDONLY | O_DIRECTORY, 0)), Some(ENOTDIR));
    assert_eq!(errno(files.open(&room.0, O_RDWR, 0)), Some(EISDIR));
    let link = room.link("l", "f")?;
    assert_eq!(errno(files.open(&link, O_RDONLY | O_NOFOLLOW, 0)), Some(ELOOP));
    files.open(&link, O_RDWR | O_TRUNC, 0)?;
    assert_eq!(files.fstat(created)?.size, 0);
    files.open(&room.at("without"), O_WRONLY | O_CREAT, 0)?;
    assert_eq!(permissions(&room.at("without"))?, 0);
    Ok(())
}

#[test]
fn a_file_is_closed_on_exec() -> io::Result<()> {
    let room = Room::new()?;
    let path = room.file("only-mine", "")?;
    let mut files = Files::default();
    files.open(&path, O_RDONLY, 0)?;
    let seen = Command::new("ls").args(["-l", "/proc/self/fd"]).output()?;
    assert!(seen.status.success());
    assert!(!String::from_utf8_lossy(&seen.stdout).contains("only-mine"));
    Ok(())
}

#[test]
fn a_fifo_does_not_stall_anything() -> io::Result<()> {
    let room = Room::new()?;
    let path = room.fifo("fifo")?;
    let (told, opened) = mpsc::channel();
    let read_from = path.clone();
    std::thread::spawn(move || {
        let mut files = Files::default();
        let refused = errno(files.open(&read_from, O_WRONLY, 0));
        let reader = files.open(&read_from, O_RDONLY, 0);
        told.send((files, refused, reader))
    });
    let (mut files, refused, reader) = opened.recv_timeout(Duration::from_secs(10)).expect("open does not wait");
    let reader = reader?;
    assert_eq!(refused, Some(ENXIO));
    let writer = files.open(&path, O_WRONLY, 0)?;
    assert_eq!(errno(files.read_at(reader, 0, 10, &mut Vec::new())), Some(ESPIPE));
    assert_eq!(outcome(files.write_at(writer, 0, b"x")), (0, Some(ESPIPE)));
    assert_eq!(errno(files.next_data(reader, 0)), Some(ESPIPE));
    let (count, error) = outcome(files.write_at(writer, -1, &vec![0; 1 << 20]));
    assert!(count > 0 && count < 1 << 20, "a pipe took {count} bytes");
    assert_eq!(error, Some(EAGAIN));
    files.close(reader)?;
    // A program that another test starts just now has a copy of the reader until its exec.
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut refused = outcome(files.write_at(writer, -1, b"x"));
    while refused == (0, Some(EAGAIN)) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
        refused = outcome(files.write_at(writer, -1, b"x"));
    }
    assert_eq!(refused, (0, Some(EPIPE)));
    assert_eq!(files::stat(&path)?.mode & TYPE_MASK, FIFO);
    Ok(())
}

// Reading

#[test]
fn the_end_is_told_only_by_a_short_read() -> io::Result<()> {
    let room = Room::new()?;
    let mut files = Files::default();
    let handle = files.open(&room.file("f", "0123456789")?, O_RDONLY, 0)?;
    assert_eq!(read(&files, handle, 0, 4)?, (b"0123".to_vec(), false));
    assert_eq!(read(&files, handle, 4, 6)?, (b"456789".to_vec(), false));
    assert_eq!(read(&files, handle, 4, 7)?, (b"456789".to_vec(), true));
    assert_eq!(read(&files, handle, 10, 1)?, (Vec::new(), true));
    assert_eq!(read(&files, handle, 1 << 40, 1)?, (Vec::new(), true));
    assert_eq!(read(&files, handle, 3, 0)?, (Vec::new(), false));
    assert_eq!(read(&files, handle, -1, 0)?, (Vec::new(), false));
    Ok(())
}

#[test]
fn a_read_appends_and_an_error_leaves_what_was_there() -> io::Result<()> {
    let room = Room::new()?;
    let mut files = Files::default();
    let handle = files.open(&room.file("f", "body")?, O_RDONLY, 0)?;
    let write_only = files.open(&room.at("f"), O_WRONLY, 0)?;
    let directory = files.open(&room.0, O_RDONLY, 0)?;
    let mut into = b"head ".to_vec();
    assert_eq!(files.read_at(handle, 0, 100, &mut into)?, ReadEnd { count: 4, end_met: true });
    assert_eq!(into, b"head body");
    assert_eq!(errno(files.read_at(handle, -1, 4, &mut into)), Some(EIO));
    assert_eq!(errno(files.read_at(handle, i64::MIN, 4, &mut into)), Some(EIO));
    assert_eq!(errno(files.read_at(write_only, 0, 4, &mut into)), Some(EBADF));
    assert_eq!(errno(files.read_at(directory, 0, 4, &mut into)), Some(EISDIR));
    assert_eq!(into, b"head body");
    Ok(())
}

/// The end of a piece of this process's stack or program with nothing behind it.
fn end_of_a_mapping() -> io::Result<Option<i64>> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let number = |text: &str| i64::from_str_radix(text, 16).ok();
    let ranges: Vec<_> = maps
        .lines()
        .filter_map(|line| {
            let (start, rest) = line.split_once('-')?;
            let (end, rest) = rest.split_once(' ')?;
            let stays = rest.starts_with('r') && (rest.ends_with("[stack]") || rest.contains("files_service"));
            Some((number(start)?, number(end)?, stays))
        })
        .collect();
    let is_start = |address| ranges.iter().any(|(start, _, _)| *start == address);
    Ok(ranges.iter().find(|(_, end, stays)| *stays && !is_start(*end)).map(|(_, end, _)| *end))
}

#[test]
fn an_error_behind_some_bytes_is_an_error_only() -> io::Result<()> {
    let end = end_of_a_mapping()?.expect("the memory of a process has gaps");
    let mut files = Files::default();
    let memory = files.open(Path::new("/proc/self/mem"), O_RDONLY, 0)?;
    let mut into = b"before".to_vec();
    assert_eq!(files.read_at(memory, end - 10, 10, &mut into)?, ReadEnd { count: 10, end_met: false });
    into.truncate(6);
    assert_eq!(errno(files.read_at(memory, end - 10, 20, &mut into)), Some(EIO));
    assert_eq!(into, b"before");
    Ok(())
}

#[test]
fn a_limit_that_the_file_does_not_fill_costs_no_memory() -> io::Result<()> {
    let room = Room::new()?;
    let mut files = Files::default();
    let small = files.open(&room.file("small", "0123456789")?, O_RDONLY, 0)?;
    let mut into = Vec::new();
    assert_eq!(files.read_at(small, 0, usize::MAX, &mut into)?, ReadEnd { count: 10, end_met: true });
    assert!(into.capacity() <= 128 * 1024, "{} bytes for 10", into.capacity());

    let bytes: Vec<u8> = (0..1_000_003u32).map(|number| (number % 251) as u8).collect();
    let large = files.open(&room.file("large", &bytes)?, O_RDONLY, 0)?;
    let mut into = Vec::new();
    assert_eq!(files.read_at(large, 0, 1 << 62, &mut into)?, ReadEnd { count: bytes.len(), end_met: true });
    assert!(into == bytes);
    assert!(into.capacity() <= 4 * bytes.len(), "{} bytes", into.capacity());
    assert!(read(&files, large, 1000, 999_000)? == (bytes[1000..1_000_000].to_vec(), false));
    Ok(())
}

#[test]
fn room_that_is_there_is_used_and_not_enlarged() -> io::Result<()> {
    let room = Room::new()?;
    let mut files = Files::default();
    let handle = files.open(&room.file("f", vec![7; 300_000])?, O_RDONLY, 0)?;
    let mut into = Vec::with_capacity(200_000);
    let before = into.capacity();
    assert_eq!(files.read_at(handle, 0, 200_000, &mut into)?, ReadEnd { count: 200_000, end_met: false });
    assert_eq!(into.capacity(), before);
    Ok(())
}

#[test]
fn a_device_is_read_up_to_the_limit() -> io::Result<()> {
    let mut files = Files::default();
    let handle = files.open(Path::new("/dev/zero"), O_RDONLY, 0)?;
    assert_eq!(read(&files, handle, 0, 100_000)?, (vec![0; 100_000], false));
    assert_eq!(errno(files.next_data(handle, 0)), Some(EINVAL));
    Ok(())
}

// Writing

#[test]
fn a_write_at_an_offset_fills_what_is_before_with_zeros() -> io::Result<()> {
    let room = Room::new()?;
    let mut files = Files::default();
    let handle = files.open(&room.at("f"), O_RDWR | O_CREAT | O_TRUNC, 0o666)?;
    assert_eq!(outcome(files.write_at(handle, 3, b"abc")), (3, None));
    assert_eq!(outcome(files.write_at(handle, 1, b"xy")), (2, None));
    assert_eq!(outcome(files.write_at(handle, 0, b"")), (0, None));
    assert_eq!(read(&files, handle, 0, 100)?, (b"\0xyabc".to_vec(), true));
    files.sync(handle)?;
    let read_only = files.open(&room.at("f"), O_RDONLY, 0)?;
    assert_eq!(outcome(files.write_at(read_only, 0, b"no")), (0, Some(EBADF)));
    assert_eq!(outcome(files.write_at(handle, i64::MAX, b"no")).0, 0);
    assert!(files.write_at(handle, i64::MAX, b"no").error.is_some_and(|error| error.raw_os_error().is_some()));
    Ok(())
}

#[test]
fn a_negative_offset_writes_at_the_position() -> io::Result<()> {
    let room = Room::new()?;
    let mut files = Files::default();
    let handle = files.open(&room.file("f", "........")?, O_RDWR, 0)?;
    assert_eq!(outcome(files.write_at(handle, -1, b"ab")), (2, None));
    assert_eq!(outcome(files.write_at(handle, 6, b"yz")), (2, None));
    assert_eq!(outcome(files.write_at(handle, i64::MIN, b"cd")), (2, None));
    assert_eq!(fs::read(room.at("f"))?, b"abcd..yz");
    Ok(())
}

#[test]
fn an_append_handle_writes_at_the_end_and_at_no_offset() -> io::Result<()> {
    let room = Room::new()?;
    let mut files = Files::default();
    let handle = files.open(&room.file("f", "one")?, O_RDWR | O_APPEND, 0)?;
    assert_eq!(outcome(files.write_at(handle, 0, b"X")), (0, Some(EIO)));
    assert_eq!(outcome(files.write_at(handle, 3, b"X")), (0, Some(EIO)));
    assert_eq!(outcome(files.write_at(handle, -1, b" two")), (4, None));
    fs::write(room.at("f"), "replaced")?;
    assert_eq!(outcome(files.write_at(handle, -1, b" three")), (6, None));
    assert_eq!(read(&files, handle, 0, 100)?, (b"replaced three".to_vec(), true));
    Ok(())
}

#[test]
fn a_full_device_is_enospc() -> io::Result<()> {
    let mut files = Files::default();
    let handle = files.open(Path::new("/dev/full"), O_WRONLY, 0)?;
    assert_eq!(outcome(files.write_at(handle, 0, b"x")), (0, Some(ENOSPC)));
    assert_eq!(outcome(files.write_at(handle, -1, b"x")), (0, Some(ENOSPC)));
    Ok(())
}

/// A file system of 64 KiB that is unmounted with the test.
struct SmallFileSystem<'a>(&'a Path);

impl Drop for SmallFileSystem<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn as_root_a_write_tells_what_fitted_before_enospc() -> io::Result<()> {
    let room = Room::new()?;
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "size=64k", "lodger-test"]).arg(&room.0).stderr(Stdio::null());
    if uid()? != 0 || !mount.status()?.success() {
        return say("skipped: a small tmpfs can be mounted by root only");
    }
    let mounted = SmallFileSystem(&room.0);
    let mut files = Files::default();
    let handle = files.open(&room.at("f"), O_RDWR | O_CREAT, 0o666)?;
    assert_eq!(outcome(files.write_at(handle, 0, &vec![1; 100_000])), (65_536, Some(ENOSPC)));
    let appending = files.open(&room.at("f"), O_WRONLY | O_APPEND | O_TRUNC, 0)?;
    assert_eq!(outcome(files.write_at(appending, -1, &vec![1; 100_000])), (65_536, Some(ENOSPC)));
    let found = files::file_system(&room.0)?;
    assert_eq!((found.blocks * found.fragment_bytes, found.blocks_free), (65_536, 0));
    drop(files);
    drop(mounted);
    Ok(())
}

// Facts about files

#[test]
fn stat_follows_links_and_lstat_does_not() -> io::Result<()> {
    let room = Room::new()?;
    let path = room.file("f", "12345")?;
    let link = room.link("l", "f")?;
    fs::hard_link(&path, room.at("again"))?;
    let (facts, known) = (files::stat(&link)?, fs::metadata(&path)?);
    assert_eq!(facts.name, "l");
    assert_eq!(facts.mode, known.mode());
    assert_eq!(facts.mode & TYPE_MASK, REGULAR);
    assert_eq!((facts.size, facts.links), (5, 2));
    assert_eq!((facts.uid, facts.gid), (known.uid(), known.gid()));
    assert_eq!((facts.inode, facts.device, facts.device_special), (known.ino(), known.dev(), 0));
    assert_eq!((facts.blocks, facts.block_bytes), (known.blocks(), known.blksize()));
    assert_eq!(facts.modified_ns, known.mtime() * 1_000_000_000 + known.mtime_nsec());
    assert_eq!(facts.changed_ns, known.ctime() * 1_000_000_000 + known.ctime_nsec());
    let own = files::lstat(&link)?;
    assert_eq!((own.mode & TYPE_MASK, own.size), (SYMLINK, 1));
    assert_eq!(files::stat(&room.0)?.mode & TYPE_MASK, DIRECTORY);
    let null = files::stat(Path::new("/dev/null"))?;
    assert_eq!(null.device_special, 0x103);
    let dangling = room.link("dangling", "nowhere")?;
    assert_eq!(errno(files::stat(&dangling)), Some(ENOENT));
    assert_eq!(files::lstat(&dangling)?.name, "dangling");
    assert_eq!(errno(files::stat(&room.at("f/"))), Some(ENOTDIR));
    Ok(())
}

#[test]
fn a_name_is_the_last_component_as_given() -> io::Result<()> {
    let room = Room::new()?;
    room.directory("d")?;
    for (given, name) in [("d", "d"), ("d/", "d"), ("d//", "d"), ("d/.", "."), ("d/..", "..")] {
        assert_eq!(files::stat(&room.at(given))?.name, name);
        assert_eq!(files::lstat(&room.at(given))?.name, name);
        let mut files = Files::default();
        let handle = files.open(&room.at(given), O_RDONLY, 0)?;
        assert_eq!(files.fstat(handle)?.name, name);
    }
    assert_eq!(files::stat(Path::new("/"))?.name, "/");
    assert_eq!(files::stat(Path::new("."))?.name, ".");
    Ok(())
}

#[test]
fn fstat_keeps_the_name_it_was_opened_by() -> io::Result<()> {
    let room = Room::new()?;
    let mut files = Files::default();
    let handle = files.open(&room.file("before", "123")?, O_RDWR, 0)?;
    fs::rename(room.at("before"), room.at("after"))?;
    let mut facts = files.fstat(handle)?;
    assert_eq!(facts.name, "before");
    facts.name = "after".into();
    assert_eq!(facts, files::stat(&room.at("after"))?);
    fs::remove_file(room.at("after"))?;
    assert_eq!(files.fstat(handle)?.links, 0);
    Ok(())
}

// Directories

#[test]
fn a_listing_is_sorted_by_bytes_and_looks_at_the_links_themselves() -> io::Result<()> {
    let room = Room::new()?;
    room.directory("b")?;
    room.file("B", "1234")?;
    room.file("ä", "")?;
    room.file(".hidden", "")?;
    room.file(OsStr::from_bytes(b"bad\xff\xfename"), "12")?;
    room.link("a", "nowhere")?;
    room.fifo("c")?;
    let listing = files::list(&room.0)?;
    assert_eq!(listing.remaining(), 7);
    let entries = listing.collect::<io::Result<Vec<_>>>()?;
    let found: Vec<_> =
        entries.iter().map(|entry| (entry.name.as_bytes(), entry.mode & TYPE_MASK, entry.size)).collect();
    let b_size = files::lstat(&room.at("b"))?.size;
    let expected: [(&[u8], u32, u64); 7] = [
        (b".hidden", REGULAR, 0),
        (b"B", REGULAR, 4),
        (b"a", SYMLINK, 7),
        (b"b", DIRECTORY, b_size),
        (b"bad\xff\xfename", REGULAR, 2),
        (b"c", FIFO, 0),
        ("ä".as_bytes(), REGULAR, 0),
    ];
    assert_eq!(found, expected);
    for entry in &entries {
        assert_eq!(*entry, files::lstat(&room.at(&entry.name))?);
    }
    Ok(())
}

#[test]
fn a_large_directory_is_listed_whole() -> io::Result<()> {
    let room = Room::new()?;
    let expected: Vec<OsString> = (0..3000).map(|n| format!("{n:05}-{}", "x".repeat(n % 200)).into()).collect();
    for name in &expected {
        room.file(name, "")?;
    }
    assert_eq!(names(&room.0)?, expected);
    Ok(())
}

#[test]
fn what_vanishes_during_a_listing_is_left_out() -> io::Result<()> {
    let room = Room::new()?;
    for name in ["a", "b", "c", "d"] {
        room.file(name, "")?;
    }
    let mut listing = files::list(&room.0)?;
    fs::remove_file(room.at("b"))?;
    fs::remove_file(room.at("d"))?;
    let mut next = || listing.next().transpose().map(|entry| entry.map(|it| it.name));
    assert_eq!(next()?, Some("a".into()));
    assert_eq!(next()?, Some("c".into()));
    assert_eq!(next()?, None);
    assert_eq!(listing.remaining(), 0);
    Ok(())
}

#[test]
fn a_directory_may_be_moved_during_its_listing() -> io::Result<()> {
    let room = Room::new()?;
    fs::write(room.directory("d")?.join("inside"), "")?;
    let mut listing = files::list(&room.at("d"))?;
    fs::rename(room.at("d"), room.at("elsewhere"))?;
    assert_eq!(listing.next().transpose()?.map(|entry| entry.name), Some("inside".into()));
    Ok(())
}

#[test]
fn what_is_no_directory_has_no_listing() -> io::Result<()> {
    let room = Room::new()?;
    assert_eq!(names(&room.0)?, Vec::<OsString>::new());
    assert_eq!(errno(files::list(&room.file("f", "")?)), Some(ENOTDIR));
    assert_eq!(errno(files::list(&room.fifo("fifo")?)), Some(ENOTDIR));
    assert_eq!(errno(files::list(&room.at("missing"))), Some(ENOENT));
    room.link("l", ".")?;
    assert_eq!(names(&room.at("l"))?, ["f", "fifo", "l"]);
    Ok(())
}

#[test]
fn a_directory_is_made_with_its_mode_and_the_umask() -> io::Result<()> {
    let room = Room::new()?;
    files::make_directory(&room.at("d"), 0o777)?;
    assert_eq!(permissions(&room.at("d"))?, 0o777 & !umask()?);
    files::make_directory(&room.at("bits"), 0o6700)?;
    assert_eq!(permissions(&room.at("bits"))?, 0o700);
    assert_eq!(errno(files::make_directory(&room.at("d"), 0o777)), Some(EEXIST));
    assert_eq!(errno(files::make_directory(&room.at("no/d"), 0o777)), Some(ENOENT));
    Ok(())
}

#[test]
fn directories_are_made_down_to_the_last() -> io::Result<()> {
    let room = Room::new()?;
    room.directory("there")?;
    room.link("link", "there")?;
    room.link("dangling", "nowhere")?;
    room.file("f", "")?;
    files::make_directories(&room.at("a/b/../c/d/"), 0o750)?;
    for level in ["a", "a/b", "a/c", "a/c/d"] {
        assert_eq!(permissions(&room.at(level))?, 0o750 & !umask()?, "of {level}");
    }
    for existing in ["a/c/d", "there", "link", "link/", "."] {
        files::make_directories(&room.at(existing), 0o700)?;
    }
    files::make_directories(&room.at("link/new"), 0o700)?;
    assert!(room.at("there/new").is_dir());
    files::make_directories(Path::new("/"), 0o700)?;
    assert_eq!(errno(files::make_directories(&room.at("f"), 0o700)), Some(ENOTDIR));
    assert_eq!(errno(files::make_directories(&room.at("f/x/y"), 0o700)), Some(ENOTDIR));
    assert_eq!(errno(files::make_directories(&room.at("dangling"), 0o700)), Some(EEXIST));
    Ok(())
}

#[test]
fn two_connections_may_make_the_same_directories() -> io::Result<()> {
    let room = Room::new()?;
    for round in 0..50 {
        let path = room.at(format!("{round}/b/c/d/e"));
        let results = std::thread::scope(|scope| {
            let threads = [(); 2].map(|()| scope.spawn(|| files::make_directories(&path, 0o755)));
            threads.map(|thread| thread.join().expect("the thread does not panic"))
        });
        for result in results {
            result?;
        }
        assert!(path.is_dir());
    }
    Ok(())
}

// Names

#[test]
fn remove_takes_files_links_and_empty_directories() -> io::Result<()> {
    let room = Room::new()?;
    files::remove(&room.file("f", "")?)?;
    files::remove(&room.directory("d")?)?;
    let full = room.directory("full")?;
    let inside = room.file("full/f", "")?;
    files::remove(&room.link("l", "full")?)?;
    assert_eq!(errno(files::remove(&full)), Some(ENOTEMPTY));
    assert_eq!(errno(files::remove(&room.at("missing"))), Some(ENOENT));
    assert_eq!(errno(files::remove(&inside.join("x"))), Some(ENOTDIR));
    assert!(inside.exists());
    assert_eq!(names(&room.0)?, ["full"]);
    Ok(())
}

#[test]
fn rename_replaces_a_file_but_no_directory() -> io::Result<()> {
    let room = Room::new()?;
    room.file("f", "new")?;
    room.file("g", "old")?;
    room.directory("d")?;
    room.directory("e")?;
    files::rename(&room.at("f"), &room.at("g"))?;
    assert_eq!(fs::read(room.at("g"))?, b"new");
    assert_eq!(errno(files::rename(&room.at("g"), &room.at("d"))), Some(EEXIST));
    assert_eq!(errno(files::rename(&room.at("d"), &room.at("e"))), Some(EEXIST));
    assert_eq!(errno(files::rename(&room.at("d"), &room.at("d"))), Some(EEXIST));
    assert_eq!(errno(files::rename(&room.at("missing"), &room.at("e"))), Some(ENOENT));
    assert_eq!(errno(files::rename(&room.at("missing"), &room.at("x"))), Some(ENOENT));
    assert_eq!(errno(files::rename(&room.at("d"), &room.at("g"))), Some(ENOTDIR));
    assert_eq!(errno(files::rename(&room.at("d"), &room.at("d/inside"))), Some(EINVAL));
    files::rename(&room.at("d"), &room.at("d/"))?;
    files::rename(&room.at("d"), &room.at("moved"))?;
    room.link("l", "e")?;
    files::rename(&room.at("g"), &room.at("l"))?;
    assert_eq!(names(&room.0)?, ["e", "l", "moved"]);
    assert_eq!(files::lstat(&room.at("l"))?.mode & TYPE_MASK, REGULAR);
    Ok(())
}

#[test]
fn links_are_made_and_read() -> io::Result<()> {
    let room = Room::new()?;
    let path = room.file("f", "text")?;
    files::symlink(Path::new("any where/\u{e4}"), &room.at("s"))?;
    assert_eq!(files::read_link(&room.at("s"))?, Path::new("any where/\u{e4}"));
    assert_eq!(errno(files::read_link(&path)), Some(EINVAL));
    assert_eq!(errno(files::read_link(&room.at("missing"))), Some(ENOENT));
    assert_eq!(errno(files::symlink(Path::new("x"), &room.at("s"))), Some(EEXIST));
    assert_eq!(errno(files::symlink(Path::new(""), &room.at("empty"))), Some(ENOENT));

    files::link(&path, &room.at("again"))?;
    assert_eq!(files::stat(&path)?.links, 2);
    files::link(&room.at("s"), &room.at("s2"))?;
    assert_eq!(files::lstat(&room.at("s2"))?.mode & TYPE_MASK, SYMLINK);
    assert_eq!(errno(files::link(&path, &room.at("s"))), Some(EEXIST));
    assert_eq!(errno(files::link(&room.0, &room.at("d"))), Some(EPERM));
    assert_eq!(errno(files::link(&room.at("missing"), &room.at("m"))), Some(ENOENT));
    Ok(())
}

#[test]
fn the_longest_link_target_is_read_whole() -> io::Result<()> {
    let room = Room::new()?;
    let target = PathBuf::from("x/".repeat(2047) + "y");
    files::symlink(&target, &room.at("l"))?;
    assert_eq!(files::read_link(&room.at("l"))?, target);
    Ok(())
}

// Attributes

#[test]
fn change_mode_sets_all_twelve_bits_behind_a_link() -> io::Result<()> {
    let room = Room::new()?;
    let path = room.file("f", "")?;
    let link = room.link("l", "f")?;
    for mode in [0o7755, 0o4711, 0o2710, 0o1700, 0o640, 0] {
        files::change_mode(&link, mode)?;
        assert_eq!(permissions(&path)?, mode);
    }
    assert_eq!(permissions(&link)?, 0o777);
    assert_eq!(errno(files::change_mode(&room.at("missing"), 0o644)), Some(ENOENT));
    Ok(())
}

#[test]
fn an_owner_of_all_ones_stays() -> io::Result<()> {
    let room = Room::new()?;
    let path = room.file("f", "")?;
    let before = files::stat(&path)?;
    files::change_owner(&path, u32::MAX, u32::MAX)?;
    files::change_owner(&path, before.uid, u32::MAX)?;
    files::change_owner(&path, u32::MAX, before.gid)?;
    let after = files::stat(&path)?;
    assert_eq!((after.uid, after.gid), (before.uid, before.gid));
    assert_eq!(errno(files::change_owner(&room.at("missing"), u32::MAX, u32::MAX)), Some(ENOENT));
    Ok(())
}

#[test]
fn as_root_change_owner_follows_links() -> io::Result<()> {
    let room = Room::new()?;
    let path = room.file("f", "")?;
    let link = room.link("l", "f")?;
    if uid()? != 0 || errno(files::change_owner(&link, 12, 34)).is_some() {
        return say("skipped: only root gives files away");
    }
    files::change_owner(&link, 56, u32::MAX)?;
    let facts = files::stat(&path)?;
    assert_eq!((facts.uid, facts.gid), (56, 34));
    assert_eq!(files::lstat(&link)?.uid, 0);
    Ok(())
}

#[test]
fn times_are_set_to_the_nanosecond_and_before_1970_too() -> io::Result<()> {
    let room = Room::new()?;
    let path = room.file("f", "")?;
    let link = room.link("l", "f")?;
    let times = |path: &Path| files::lstat(path).map(|facts| (facts.accessed_ns, facts.modified_ns));
    files::set_times(&link, 1_700_000_000_123_456_789, -1, Follow::Links)?;
    assert_eq!(times(&path)?, (1_700_000_000_123_456_789, -1));
    files::set_times(&link, 0, -1_500_000_000, Follow::Nothing)?;
    assert_eq!(times(&link)?, (0, -1_500_000_000));
    assert_eq!(times(&path)?, (1_700_000_000_123_456_789, -1));
    assert_eq!(errno(files::set_times(&room.at("missing"), 0, 0, Follow::Links)), Some(ENOENT));
    Ok(())
}

// Sizes

#[test]
fn sizes_are_set_by_path_and_by_handle() -> io::Result<()> {
    let room = Room::new()?;
    let path = room.file("f", "0123456789")?;
    let mut files = Files::default();
    files::truncate(&path, 4)?;
    files::truncate(&path, 6)?;
    assert_eq!(fs::read(&path)?, b"0123\0\0");
    assert_eq!(errno(files::truncate(&path, -1)), Some(EINVAL));
    assert_eq!(errno(files::truncate(&room.0, 0)), Some(EISDIR));
    assert_eq!(errno(files::truncate(&room.at("missing"), 0)), Some(ENOENT));
    let (handle, read_only) = (files.open(&path, O_RDWR, 0)?, files.open(&path, O_RDONLY, 0)?);
    files.resize(handle, 2)?;
    assert_eq!(fs::read(&path)?, b"01");
    assert_eq!(errno(files.resize(handle, -1)), Some(EINVAL));
    assert_eq!(errno(files.resize(read_only, 2)), Some(EINVAL));
    Ok(())
}

#[test]
fn a_read_only_file_and_a_directory_can_be_synced() -> io::Result<()> {
    let room = Room::new()?;
    let mut files = Files::default();
    for path in [room.file("f", "x")?, room.0.clone()] {
        let handle = files.open(&path, O_RDONLY, 0)?;
        files.sync(handle)?;
        files.close(handle)?;
    }
    Ok(())
}

#[test]
fn a_file_system_is_described() -> io::Result<()> {
    let room = Room::new()?;
    let found = files::file_system(&room.0)?;
    assert!(found.blocks > 0 && found.blocks_free <= found.blocks && found.fragment_bytes > 0, "{found:?}");
    assert_eq!(errno(files::file_system(&room.at("missing"))), Some(ENOENT));
    Ok(())
}

// Holes

#[test]
fn data_is_found_between_holes() -> io::Result<()> {
    const MIB: i64 = 1 << 20;
    let room = Room::new()?;
    let mut files = Files::default();
    let handle = files.open(&room.at("f"), O_RDWR | O_CREAT, 0o666)?;
    assert_eq!(files.next_data(handle, 0)?, None);
    assert_eq!(outcome(files.write_at(handle, MIB, b"data")), (4, None));
    files.resize(handle, 3 * MIB)?;
    let (start, end) = files.next_data(handle, 0)?.expect("there are four bytes of data");
    assert!(start <= MIB && end >= MIB + 4, "{start}..{end}");
    if (start, end) == (0, 3 * MIB) {
        return say("skipped: the file system of the temporary directory has no holes");
    }
    assert_eq!(files.next_data(handle, MIB + 2)?, Some((MIB + 2, end)));
    assert_eq!(files.next_data(handle, end)?, None);
    assert_eq!(files.next_data(handle, 3 * MIB)?, None);
    assert_eq!(errno(files.next_data(handle, -1)), Some(EINVAL));
    Ok(())
}

#[test]
fn a_look_for_data_moves_no_later_write() -> io::Result<()> {
    let room = Room::new()?;
    let mut files = Files::default();
    let handle = files.open(&room.file("f", "..........")?, O_RDWR, 0)?;
    assert_eq!(outcome(files.write_at(handle, -1, b"ab")), (2, None));
    assert_eq!(files.next_data(handle, 5)?, Some((5, 10)));
    assert_eq!(files.next_data(handle, 10)?, None);
    assert_eq!(outcome(files.write_at(handle, -1, b"cd")), (2, None));
    assert_eq!(fs::read(room.at("f"))?, b"abcd......");
    let appending = files.open(&room.at("f"), O_RDWR | O_APPEND, 0)?;
    assert_eq!(files.next_data(appending, 0)?, Some((0, 10)));
    assert_eq!(outcome(files.write_at(appending, -1, b"!")), (1, None));
    assert_eq!(fs::read(room.at("f"))?, b"abcd......!");
    Ok(())
}

// Paths

/// One result for every operation that takes a path; `there` is a file that can be linked and renamed.
fn everything_with(path: &Path, there: &Path) -> Vec<(&'static str, Option<i32>)> {
    vec![
        ("open", errno(Files::default().open(path, O_RDWR | O_CREAT, 0o666))),
        ("stat", errno(files::stat(path))),
        ("lstat", errno(files::lstat(path))),
        ("list", errno(files::list(path))),
        ("make_directory", errno(files::make_directory(path, 0o777))),
        ("make_directories", errno(files::make_directories(path, 0o777))),
        ("remove", errno(files::remove(path))),
        ("rename from", errno(files::rename(path, there))),
        ("rename to", errno(files::rename(there, path))),
        ("change_mode", errno(files::change_mode(path, 0o644))),
        ("truncate", errno(files::truncate(path, 0))),
        ("read_link", errno(files::read_link(path))),
        ("symlink at", errno(files::symlink(there, path))),
        ("link from", errno(files::link(path, &there.with_extension("new")))),
        ("link to", errno(files::link(there, path))),
        ("change_owner", errno(files::change_owner(path, u32::MAX, u32::MAX))),
        ("set_times", errno(files::set_times(path, 0, 0, Follow::Links))),
        ("file_system", errno(files::file_system(path))),
    ]
}

#[test]
fn a_path_that_cannot_be_has_the_same_error_everywhere() -> io::Result<()> {
    let room = Room::new()?;
    let there = room.file("there", "")?;
    let long = room.at("x/".repeat(2500));
    let long_name = room.at("n".repeat(256));
    let with_nul = room.at(OsStr::from_bytes(b"a\0b"));
    let bad: [(&Path, i32); 4] =
        [(Path::new(""), ENOENT), (&with_nul, EINVAL), (&long, ENAMETOOLONG), (&long_name, ENAMETOOLONG)];
    for (path, expected) in bad {
        for (operation, number) in everything_with(path, &there) {
            assert_eq!(number, Some(expected), "{operation} of {} bytes", path.as_os_str().len());
        }
    }
    assert_eq!(names(&room.0)?, ["there"]);
    Ok(())
}

#[test]
fn a_name_need_not_be_utf_8() -> io::Result<()> {
    let room = Room::new()?;
    let name = OsString::from_vec(b"\xff\xc0 \n".to_vec());
    let path = room.at(&name);
    let mut files = Files::default();
    let handle = files.open(&path, O_RDWR | O_CREAT, 0o600)?;
    assert_eq!(files.fstat(handle)?.name, name);
    assert_eq!(files::stat(&path)?.name, name);
    assert_eq!(names(&room.0)?, std::slice::from_ref(&name));
    files::symlink(Path::new(&name), &room.at("l"))?;
    assert_eq!(files::read_link(&room.at("l"))?, Path::new(&name));
    let moved = room.at(OsStr::from_bytes(b"\xfe"));
    files::rename(&path, &moved)?;
    files::remove(&moved)?;
    assert_eq!(names(&room.0)?, ["l"]);
    Ok(())
}

#[test]
fn a_socket_is_no_file_to_open() -> io::Result<()> {
    let room = Room::new()?;
    let _listener = std::os::unix::net::UnixListener::bind(room.at("s"))?;
    assert!(fs::metadata(room.at("s"))?.file_type().is_socket());
    assert_eq!(errno(Files::default().open(&room.at("s"), O_RDWR, 0)), Some(ENXIO));
    Ok(())
}

// The working directory belongs to the process, so these ask a process of their own.

const ANSWER: &str = "working directory: ";

/// The test below runs this one in processes of its own.
#[test]
fn tell_the_working_directory() -> io::Result<()> {
    let found = files::working_directory();
    if std::env::var_os("LODGER_TELL").is_none() {
        assert!(found?.is_absolute());
        return Ok(());
    }
    say(&match &found {
        Ok(path) => format!("{ANSWER}{}", path.display()),
        Err(error) => format!("{ANSWER}{:?}", error.raw_os_error()),
    })
}

fn working_directory_of(directory: &Path, pwd: Option<&OsStr>) -> io::Result<PathBuf> {
    let mut child = Command::new(std::env::current_exe()?);
    child
        .args(["--exact", "tell_the_working_directory"])
        .current_dir(directory)
        .env_remove("PWD")
        .env("LODGER_TELL", "1");
    if let Some(pwd) = pwd {
        child.env("PWD", pwd);
    }
    let told = String::from_utf8(child.output()?.stderr).map_err(io::Error::other)?;
    let line = told.lines().find_map(|line| line.strip_prefix(ANSWER));
    Ok(line.unwrap_or_default().into())
}

#[test]
fn the_working_directory_is_pwd_where_that_is_true() -> io::Result<()> {
    let room = Room::new()?;
    let real = fs::canonicalize(room.directory("real")?)?;
    let link = room.link("link", "real")?;
    let other = room.directory("other")?;
    assert_eq!(working_directory_of(&real, Some(link.as_os_str()))?, link);
    assert_eq!(working_directory_of(&real, Some(other.as_os_str()))?, real);
    assert_eq!(working_directory_of(&real, Some(OsStr::new(".")))?, real);
    assert_eq!(working_directory_of(&real, Some(OsStr::new("/missing")))?, real);
    assert_eq!(working_directory_of(&real, Some(OsStr::new("")))?, real);
    assert_eq!(working_directory_of(&link, None)?, real);
    Ok(())
}
