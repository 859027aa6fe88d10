//! The file operations over the wire: a real agent, bare frames, real files.

mod support;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use ciborium::Value;
use lodger::files::HANDLES_MAX;
use lodger::sys::file::{O_APPEND, O_CREAT, O_EXCL, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY};
use lodger::wire::file::{FileRequest, FileResponse, op};
use lodger::wire::frame::{Frame, Hello};
use lodger::wire::{CHUNK_MAX, ITEM_MAX};

use support::{Agent, Folder, Peer, descriptors, status, wait_until};

const EPERM: u32 = 1;
const ENOENT: u32 = 2;
const EIO: u32 = 5;
const EBADF: u32 = 9;
const EEXIST: u32 = 17;
const ENOTDIR: u32 = 20;
const EISDIR: u32 = 21;
const EINVAL: u32 = 22;
const EMFILE: u32 = 24;
const ESPIPE: u32 = 29;
const ENOSYS: u32 = 38;
const ENOTEMPTY: u32 = 39;

const GO_DIRECTORY: u32 = 1 << 31;
const GO_SYMLINK: u32 = 1 << 27;
const GO_DEVICE: u32 = 1 << 26;
const GO_FIFO: u32 = 1 << 25;
const GO_SOCKET: u32 = 1 << 24;
const GO_SET_UID: u32 = 1 << 23;
const GO_SET_GID: u32 = 1 << 22;
const GO_CHARACTER: u32 = 1 << 21;
const GO_STICKY: u32 = 1 << 20;

fn at(op: u8, path: impl AsRef<Path>) -> FileRequest<'static> {
    let path = path.as_ref().as_os_str().as_bytes().to_vec();
    FileRequest { id: u32::from(op) + 1000, op, path, ..FileRequest::default() }
}

fn with(op: u8, handle: u32) -> FileRequest<'static> {
    FileRequest { handle, ..at(op, "") }
}

fn between(op: u8, path: impl AsRef<Path>, new_path: impl AsRef<Path>) -> FileRequest<'static> {
    FileRequest { new_path: new_path.as_ref().as_os_str().as_bytes().to_vec(), ..at(op, path) }
}

fn read_at(handle: u32, offset: i64, size: i64) -> FileRequest<'static> {
    FileRequest { offset, size, ..with(op::READ_AT, handle) }
}

fn write_at(handle: u32, offset: i64, data: &[u8]) -> FileRequest<'_> {
    FileRequest { handle, offset, data: Cow::Borrowed(data), ..at(op::WRITE_AT, "") }
}

/// The member at the end of these keys, as a decoder that is not ours reads it: one that insists on UTF-8.
fn member(item: &[u8], keys: &[&str]) -> Option<Value> {
    let whole: Value = ciborium::from_reader(item).expect("an independent decoder reads the item");
    keys.iter().try_fold(whole, |value, key| {
        let pairs = value.into_map().expect("a map");
        pairs.into_iter().find(|(name, _)| name.as_text() == Some(key)).map(|(_, value)| value)
    })
}

fn number(item: &[u8], keys: &[&str]) -> Option<i128> {
    member(item, keys).map(|value| value.as_integer().expect("a number").into())
}

/// An answer that both decoders have read.
fn response(item: Vec<u8>) -> FileResponse<'static> {
    let (number, text) = (number(&item, &["frp", "er"]), member(&item, &["frp", "em"]));
    let item: &'static [u8] = item.leak();
    let Ok(Frame::FileResp(response)) = Frame::decode(item) else { panic!("no answer: {:?}", Frame::decode(item)) };
    // Upstream's clients take either one for a failure, whatever it says.
    assert_eq!((number.is_some(), text.is_some()), (response.errno != 0, response.errno != 0), "{response:?}");
    response
}

fn answer(peer: &mut Peer) -> FileResponse<'static> {
    response(peer.receive().expect("an answer"))
}

/// Sends a request and gives its answer, which may be an error.
fn ask(peer: &mut Peer, request: FileRequest) -> FileResponse<'static> {
    let id = request.id;
    let answer = response(peer.ask(&Frame::FileOp(request)));
    assert_eq!(answer.id, id);
    answer
}

/// The same where success is expected.
fn done(peer: &mut Peer, request: FileRequest) -> FileResponse<'static> {
    let answer = ask(peer, request);
    assert_eq!((answer.errno, answer.error.as_str()), (0, ""));
    answer
}

fn error(peer: &mut Peer, request: FileRequest) -> (u32, String) {
    let answer = ask(peer, request);
    (answer.errno, answer.error)
}

fn open(peer: &mut Peer, path: impl AsRef<Path>, flags: i32) -> u32 {
    done(peer, FileRequest { flags, mode: 0o644, ..at(op::OPEN_FILE, path) }).handle
}

/// Whether the connection is at its end.
fn is_over(peer: &mut Peer) -> bool {
    peer.receive().is_none()
}

fn names(answer: &FileResponse) -> Vec<String> {
    answer.entries.iter().map(|entry| String::from_utf8_lossy(&entry.name).into_owned()).collect()
}

fn say(text: &str) {
    // Not eprintln!: the harness would keep it from sight.
    let _ = writeln!(io::stderr(), "{text}");
}

// The 25 operations

#[test]
fn files_are_made_written_read_and_closed() {
    let (agent, folder) = (Agent::start(), Folder::new());
    let mut peer = agent.connect();
    let path = folder.path("file");
    assert_eq!(done(&mut peer, at(op::CREATE, &path)).handle, 1);
    assert_eq!(done(&mut peer, write_at(1, 0, b"0123456789")).count, 10);
    assert_eq!(done(&mut peer, write_at(1, 12, b"end")).count, 3);
    done(&mut peer, with(op::FSYNC, 1));
    let read = done(&mut peer, read_at(1, 8, 100));
    assert_eq!((&read.data[..], read.count, read.eof), (&b"89\0\0end"[..], 7, true), "a created file can be read");
    done(&mut peer, FileRequest { size: 4, ..with(op::FTRUNCATE, 1) });
    let stat = done(&mut peer, with(op::FSTAT, 1)).stat.expect("a stat");
    assert_eq!((&stat.name[..], stat.size), (&b"file"[..], 4));
    done(&mut peer, with(op::CLOSE, 1));
    assert_eq!(error(&mut peer, with(op::CLOSE, 1)), (EBADF, "bad file descriptor".into()));
    assert_eq!(done(&mut peer, at(op::OPEN, &path)).handle, 2);
    assert_eq!(&done(&mut peer, read_at(2, 0, 4)).data[..], b"0123");
    assert_eq!(error(&mut peer, write_at(2, 0, b"x")).0, EBADF, "Open is for reading");
    assert_eq!(error(&mut peer, FileRequest { size: 0, ..with(op::FTRUNCATE, 2) }).0, EINVAL);
    assert_eq!(open(&mut peer, &path, O_RDWR | O_TRUNC), 3);
    assert_eq!(fs::read(&path).expect("the file"), b"");
    assert_eq!(error(&mut peer, FileRequest { flags: O_CREAT | O_EXCL, ..at(op::OPEN_FILE, &path) }).0, EEXIST);
    done(&mut peer, at(op::CREATE, folder.path("other")));
    open(&mut peer, folder.path("closed"), O_WRONLY | O_CREAT);
    done(&mut peer, FileRequest { flags: O_WRONLY | O_CREAT, ..at(op::OPEN_FILE, folder.path("none")) });
    let mode = |name| fs::metadata(folder.path(name)).expect("a file").mode() & 0o7777;
    assert_eq!((mode("closed") & 0o700, mode("none")), (0o600, 0), "no mode is mode 0");
}

#[test]
fn directories_are_made_listed_and_removed() {
    let (agent, folder) = (Agent::start(), Folder::new());
    let mut peer = agent.connect();
    done(&mut peer, FileRequest { mode: 0o700, ..at(op::MKDIR, folder.path("d")) });
    done(&mut peer, FileRequest { mode: 0o700, ..at(op::MKDIR_ALL, folder.path("a/b/c")) });
    done(&mut peer, FileRequest { mode: 0o700, ..at(op::MKDIR_ALL, folder.path("a/b/c")) });
    fs::write(folder.path("Z"), "text").expect("a file");
    symlink("nowhere", folder.path("l")).expect("a link");
    let listing = done(&mut peer, at(op::READ_DIR, &folder.0));
    assert_eq!(names(&listing), ["Z", "a", "d", "l"], "by bytes");
    assert!(listing.entries[1].is_directory() && listing.entries[3].is_symlink() && listing.entries[0].is_file());
    assert_eq!((listing.entries[0].size, listing.more), (4, false));
    let empty = peer.ask(&Frame::FileOp(at(op::READ_DIR, folder.path("d"))));
    assert_eq!(member(&empty, &["frp", "en"]), None, "an empty listing has no entries");
    let refused = [
        (at(op::MKDIR, folder.path("d")), EEXIST),
        (at(op::MKDIR, folder.path("x/y")), ENOENT),
        (at(op::MKDIR_ALL, folder.path("Z")), ENOTDIR),
        (at(op::MKDIR_ALL, folder.path("Z/x")), ENOTDIR),
        (at(op::READ_DIR, folder.path("Z")), ENOTDIR),
        (at(op::REMOVE, folder.path("a")), ENOTEMPTY),
        (at(op::REMOVE, folder.path("missing")), ENOENT),
    ];
    for (request, number) in refused {
        let what = request.clone();
        assert_eq!(error(&mut peer, request).0, number, "{what:?}");
    }
    for name in ["d", "l", "Z", "a/b/c", "a/b", "a"] {
        done(&mut peer, at(op::REMOVE, folder.path(name)));
    }
    assert_eq!(fs::read_dir(&folder.0).expect("the folder").count(), 0);
}

#[test]
fn names_are_linked_moved_and_looked_up() {
    let (agent, folder) = (Agent::start(), Folder::new());
    let mut peer = agent.connect();
    let [file, link, hard, moved] = ["file", "link", "hard", "moved"].map(|name| folder.path(name));
    fs::write(&file, "text").expect("a file");
    done(&mut peer, between(op::SYMLINK, "file", &link));
    assert_eq!(done(&mut peer, at(op::READLINK, &link)).path, b"file");
    assert_eq!(error(&mut peer, at(op::READLINK, &file)).0, EINVAL);
    done(&mut peer, between(op::LINK, &file, &hard));
    done(&mut peer, between(op::LINK, &link, folder.path("hard link")));
    assert!(folder.path("hard link").is_symlink(), "the link itself gets the name");
    let stat = done(&mut peer, at(op::STAT, &link)).stat.expect("a stat");
    assert_eq!((&stat.name[..], stat.size, stat.links, stat.is_file()), (&b"link"[..], 4, 2, true));
    let truth = fs::metadata(&file).expect("metadata");
    assert_eq!(
        (stat.inode, stat.uid, stat.gid, stat.blocks as u64),
        (truth.ino(), truth.uid(), truth.gid(), truth.blocks())
    );
    assert_eq!(stat.modified_ns, truth.mtime() * 1_000_000_000 + truth.mtime_nsec());
    assert!(done(&mut peer, at(op::LSTAT, &link)).stat.expect("a stat").is_symlink());
    for (path, name) in [("d/", "d"), ("d/.", "."), ("d/..", "..")] {
        fs::create_dir_all(folder.path("d")).expect("a directory");
        assert_eq!(done(&mut peer, at(op::STAT, folder.path(path))).stat.expect("a stat").name, name.as_bytes());
    }
    assert_eq!(done(&mut peer, at(op::STAT, "/")).stat.expect("a stat").name, b"/");
    done(&mut peer, between(op::RENAME, &file, &moved));
    done(&mut peer, between(op::RENAME, &moved, &link));
    assert!(!folder.path("moved").exists() && !link.is_symlink());
    assert_eq!(error(&mut peer, between(op::RENAME, &link, folder.path("d"))).0, EEXIST, "even an empty directory");
    assert_eq!(error(&mut peer, between(op::RENAME, folder.path("missing"), folder.path("d"))).0, ENOENT);
    assert_eq!(error(&mut peer, between(op::SYMLINK, "x", &hard)).0, EEXIST);
    assert_eq!(error(&mut peer, between(op::LINK, folder.path("d"), folder.path("e"))).0, EPERM);
}

#[test]
fn attributes_are_changed_and_told() {
    let (agent, folder) = (Agent::start(), Folder::new());
    let mut peer = agent.connect();
    let (file, link) = (folder.path("file"), folder.path("link"));
    fs::write(&file, "0123456789").expect("a file");
    symlink("file", &link).expect("a link");
    done(&mut peer, FileRequest { mode: 0o600, ..at(op::CHMOD, &link) });
    assert_eq!(fs::metadata(&file).expect("metadata").mode() & 0o7777, 0o600);
    done(&mut peer, FileRequest { size: 3, ..at(op::TRUNCATE, &link) });
    done(&mut peer, FileRequest { size: 5, ..at(op::TRUNCATE, &link) });
    assert_eq!(fs::read(&file).expect("the file"), b"012\0\0");
    assert_eq!(error(&mut peer, FileRequest { size: -1, ..at(op::TRUNCATE, &file) }).0, EINVAL);
    let truth = fs::metadata(&file).expect("metadata");
    done(&mut peer, FileRequest { uid: u32::MAX, gid: u32::MAX, ..at(op::CHOWN, &link) });
    let after = fs::metadata(&file).expect("metadata");
    assert_eq!((after.uid(), after.gid()), (truth.uid(), truth.gid()));
    let times = FileRequest { accessed_ns: -1, modified_ns: 1_700_000_000_123_456_789, ..at(op::CHTIMES, &link) };
    done(&mut peer, times);
    let stat = done(&mut peer, at(op::STAT, &file)).stat.expect("a stat");
    assert_eq!((stat.accessed_ns, stat.modified_ns), (-1, 1_700_000_000_123_456_789));
    done(&mut peer, at(op::CHTIMES, &file));
    let stat = done(&mut peer, at(op::STAT, &file)).stat.expect("a stat");
    assert_eq!((stat.accessed_ns, stat.modified_ns), (0, 0), "absent times are the epoch");
    let system = done(&mut peer, at(op::STATFS, &file)).file_system.expect("a file system");
    assert!(system.blocks >= system.blocks_free && system.blocks > 0 && system.name_length >= 255, "{system:?}");
    let told = done(&mut peer, at(op::GETWD, "")).path;
    let here = std::env::current_dir().and_then(fs::canonicalize).expect("a working directory");
    assert_eq!(fs::canonicalize(OsStr::from_bytes(&told)).expect("a directory"), here);
}

#[test]
fn as_root_an_owner_that_is_not_named_is_root() {
    let (agent, folder) = (Agent::start(), Folder::new());
    if fs::metadata(&folder.0).expect("metadata").uid() != 0 {
        return say("skipped: only root gives files away");
    }
    let mut peer = agent.connect();
    fs::write(folder.path("f"), "").expect("a file");
    for (uid, gid) in [(12, 34), (0, 34), (0, 0)] {
        done(&mut peer, FileRequest { uid, gid, ..at(op::CHOWN, folder.path("f")) });
        let stat = done(&mut peer, at(op::STAT, folder.path("f"))).stat.expect("a stat");
        assert_eq!((stat.uid, stat.gid), (uid, gid));
    }
}

// Answers

#[test]
fn ids_are_echoed_whatever_they_are() {
    let agent = Agent::start();
    let mut peer = agent.connect();
    let ids = [0, 7, 7, 0, u32::MAX, 1];
    for id in ids {
        peer.send(&Frame::FileOp(FileRequest { id, ..at(op::STAT, "/") }));
        peer.send(&Frame::FileOp(FileRequest { id, ..at(op::STAT, "/missing") }));
        peer.send(&Frame::FileOp(FileRequest { id, ..at(op::READ_DIR, "/proc/self/task") }));
    }
    for id in ids {
        for errno in [0, ENOENT, 0] {
            let item = peer.receive().expect("an answer");
            assert_eq!(number(&item, &["frp", "id"]), Some(id.into()), "it is written even when it is 0");
            assert_eq!(response(item).errno, errno);
        }
    }
}

#[test]
fn an_error_has_a_number_and_the_words_of_upstream() {
    let (agent, folder) = (Agent::start(), Folder::new());
    let mut peer = agent.connect();
    let missing = folder.path("missing");
    let shown = missing.display();
    let one = [
        (op::OPEN, "open"),
        (op::OPEN_FILE, "open"),
        (op::STAT, "stat"),
        (op::LSTAT, "lstat"),
        (op::READ_DIR, "open"),
        (op::REMOVE, "remove"),
        (op::CHMOD, "chmod"),
        (op::TRUNCATE, "truncate"),
        (op::READLINK, "readlink"),
        (op::CHOWN, "chown"),
        (op::CHTIMES, "chtimes"),
    ];
    for (op, verb) in one {
        let expected = (ENOENT, format!("{verb} {shown}: no such file or directory"));
        assert_eq!(error(&mut peer, at(op, &missing)), expected);
    }
    for (op, verb) in [(op::CREATE, "open"), (op::MKDIR, "mkdir")] {
        let expected = (ENOENT, format!("{verb} {shown}/x: no such file or directory"));
        assert_eq!(error(&mut peer, at(op, missing.join("x"))), expected);
    }
    for (op, verb) in [(op::RENAME, "rename"), (op::LINK, "link")] {
        let expected = (ENOENT, format!("{verb} {shown} {shown}2: no such file or directory"));
        assert_eq!(error(&mut peer, between(op, &missing, folder.path("missing2"))), expected);
    }
    let expected = (EEXIST, format!("symlink x {}: file exists", folder.0.display()));
    assert_eq!(error(&mut peer, between(op::SYMLINK, "x", &folder.0)), expected);
    fs::write(folder.path("file"), "").expect("a file");
    let expected = (ENOTDIR, format!("mkdir {}/x: not a directory", folder.path("file").display()));
    assert_eq!(error(&mut peer, at(op::MKDIR_ALL, folder.path("file/x"))), expected);
    assert_eq!(error(&mut peer, at(op::STATFS, &missing)), (ENOENT, "no such file or directory".into()));
}

#[test]
fn unknown_operations_and_handles_are_refused_and_the_service_goes_on() {
    let agent = Agent::start();
    let mut peer = agent.connect();
    for unknown in [0, 26, 199, 201, 255] {
        assert_eq!(error(&mut peer, at(unknown, "/")), (ENOSYS, "unknown file op".into()), "operation {unknown}");
    }
    for op in [op::CLOSE, op::READ_AT, op::WRITE_AT, op::FSYNC, op::FSTAT, op::FTRUNCATE, op::NEXT_DATA] {
        for handle in [0, 1, u32::MAX] {
            assert_eq!(error(&mut peer, with(op, handle)), (EBADF, "bad file descriptor".into()), "operation {op}");
        }
    }
    done(&mut peer, at(op::STAT, "/"));
}

#[test]
fn modes_in_answers_are_go_s() {
    let (agent, folder) = (Agent::start(), Folder::new());
    let mut peer = agent.connect();
    let _socket = UnixListener::bind(folder.path("socket")).expect("a socket");
    assert!(Command::new("mkfifo").arg(folder.path("fifo")).status().expect("mkfifo").success());
    symlink("file", folder.path("link")).expect("a link");
    for (name, mode) in [("file", 0o644), ("suid", 0o4755), ("sgid", 0o2711)] {
        fs::write(folder.path(name), "").expect("a file");
        fs::set_permissions(folder.path(name), fs::Permissions::from_mode(mode)).expect("a mode");
    }
    fs::create_dir(folder.path("sticky")).expect("a directory");
    fs::set_permissions(folder.path("sticky"), fs::Permissions::from_mode(0o1777)).expect("a mode");
    fs::set_permissions(folder.path("fifo"), fs::Permissions::from_mode(0o600)).expect("a mode");
    fs::set_permissions(folder.path("socket"), fs::Permissions::from_mode(0o700)).expect("a mode");
    let expected = BTreeMap::from([
        ("fifo", GO_FIFO | 0o600),
        ("file", 0o644),
        ("link", GO_SYMLINK | 0o777),
        ("sgid", GO_SET_GID | 0o711),
        ("socket", GO_SOCKET | 0o700),
        ("sticky", GO_DIRECTORY | GO_STICKY | 0o777),
        ("suid", GO_SET_UID | 0o755),
    ]);
    for (name, mode) in &expected {
        let item = peer.ask(&Frame::FileOp(at(op::LSTAT, folder.path(name))));
        assert_eq!(number(&item, &["frp", "st", "m"]), Some((*mode).into()), "{name}");
        let is_directory = member(&item, &["frp", "st", "d"]);
        assert_eq!(is_directory, (*name == "sticky").then_some(Value::Bool(true)), "{name}");
    }
    let item = peer.ask(&Frame::FileOp(at(op::READ_DIR, &folder.0)));
    let entries = member(&item, &["frp", "en"]).and_then(|entries| entries.into_array().ok()).expect("entries");
    let encoded = |value: &Value| {
        let mut bytes = Vec::new();
        ciborium::into_writer(value, &mut bytes).expect("bytes");
        bytes
    };
    let listed = entries.iter().map(|entry| number(&encoded(entry), &["st", "m"]).expect("a mode"));
    assert!(listed.eq(expected.values().map(|mode| i128::from(*mode))));
    let item = peer.ask(&Frame::FileOp(at(op::STAT, "/dev/null")));
    let mode = number(&item, &["frp", "st", "m"]).expect("a mode") & !0o777;
    assert_eq!(mode, (GO_DEVICE | GO_CHARACTER).into());
    assert_eq!(number(&item, &["frp", "st", "rd"]), Some(0x103));
}

#[test]
fn modes_in_requests_may_be_posix_or_go() {
    let (agent, folder) = (Agent::start(), Folder::new());
    let mut peer = agent.connect();
    fs::write(folder.path("f"), "").expect("a file");
    let rows = [
        (0o4755, 0o4755),
        (GO_SET_UID | 0o711, 0o4711),
        (GO_SET_GID | 0o2000 | 0o750, 0o2750),
        (GO_STICKY | 0o700, 0o1700),
        (0o7000, 0o7000),
        (GO_DIRECTORY | GO_FIFO | 0o100_000 | 0o640, 0o640),
        (0, 0),
    ];
    for (mode, expected) in rows {
        done(&mut peer, FileRequest { mode, ..at(op::CHMOD, folder.path("f")) });
        assert_eq!(fs::metadata(folder.path("f")).expect("metadata").mode() & 0o7777, expected, "{mode:o}");
    }
    let flags = O_CREAT | O_WRONLY;
    for (name, mode) in [("posix", 0o4700), ("go", GO_SET_UID | 0o700)] {
        done(&mut peer, FileRequest { flags, mode, ..at(op::OPEN_FILE, folder.path(name)) });
        assert_eq!(fs::metadata(folder.path(name)).expect("metadata").mode() & 0o7777, 0o4700);
    }
}

// Reading and writing

#[test]
fn the_end_of_a_file_is_told_by_a_short_read_only() {
    let (agent, folder) = (Agent::start(), Folder::new());
    let mut peer = agent.connect();
    fs::write(folder.path("f"), "0123456789").expect("a file");
    let file = open(&mut peer, folder.path("f"), O_RDONLY);
    let rows: [(i64, i64, &[u8], bool); 9] = [
        (0, 4, b"0123", false),
        (0, 10, b"0123456789", false),
        (0, 11, b"0123456789", true),
        (10, 1, b"", true),
        (1 << 40, 1, b"", true),
        (3, 0, b"", false),
        (3, -1, b"", false),
        (3, i64::MIN, b"", false),
        (99, 0, b"", false),
    ];
    for (offset, size, data, eof) in rows {
        let read = done(&mut peer, read_at(file, offset, size));
        assert_eq!((&read.data[..], read.count, read.eof), (data, data.len() as i64, eof), "{size} at {offset}");
    }
    let item = peer.ask(&Frame::FileOp(read_at(file, 10, 5)));
    assert_eq!(member(&item, &["frp", "d"]), None, "no bytes are no member");
    assert_eq!(error(&mut peer, read_at(file, -1, 1)).0, EIO);
    assert_eq!(error(&mut peer, read_at(file, i64::MAX, 1)).0, EINVAL);
    assert_eq!(error(&mut peer, read_at(99, 0, 0)).0, EBADF);
    let directory = open(&mut peer, &folder.0, O_RDONLY);
    let write_only = open(&mut peer, folder.path("f"), O_WRONLY);
    assert_eq!(error(&mut peer, read_at(directory, 0, 1)).0, EISDIR);
    assert_eq!(error(&mut peer, read_at(write_only, 0, 1)).0, EBADF);
}

#[test]
fn a_handle_that_appends_is_written_at_its_end() {
    let (agent, folder) = (Agent::start(), Folder::new());
    let mut peer = agent.connect();
    fs::write(folder.path("f"), "start").expect("a file");
    let appending = open(&mut peer, folder.path("f"), O_WRONLY | O_APPEND);
    assert_eq!(done(&mut peer, write_at(appending, -1, b" one")).count, 4);
    assert_eq!(error(&mut peer, write_at(appending, 0, b"never")).0, EIO);
    assert_eq!(done(&mut peer, write_at(appending, i64::MIN, b" two")).count, 4);
    assert_eq!(fs::read(folder.path("f")).expect("the file"), b"start one two");
    let plain = open(&mut peer, folder.path("f"), O_WRONLY);
    done(&mut peer, write_at(plain, -1, b"S"));
    done(&mut peer, write_at(plain, -1, b"T"));
    assert_eq!(fs::read(folder.path("f")).expect("the file"), b"STart one two", "at the file position");
}

#[test]
fn a_read_of_everything_costs_no_more_than_one_answer() {
    let (agent, folder) = (Agent::start(), Folder::new());
    let mut peer = agent.connect();
    fs::write(folder.path("small"), "0123456789").expect("a file");
    let sparse = fs::File::create(folder.path("large")).expect("a file");
    sparse.set_len(1 << 30).expect("a size");
    let (small, large) =
        (open(&mut peer, folder.path("small"), O_RDONLY), open(&mut peer, folder.path("large"), O_RDONLY));
    let before = status(agent.pid(), "VmHWM");
    let read = done(&mut peer, read_at(small, 2, 1 << 62));
    assert_eq!((&read.data[..], read.eof), (&b"23456789"[..], true));
    assert_eq!(status(agent.pid(), "VmHWM") / 1024, before / 1024, "a claim costs nothing");
    for size in [1 << 62, i64::MAX, 8 << 20] {
        let item = peer.ask(&Frame::FileOp(read_at(large, 0, size)));
        assert!(item.len() <= ITEM_MAX, "an answer of {} bytes", item.len());
        let read = response(item);
        assert!(read.count as usize == read.data.len() && read.count > 1 << 20 && !read.eof, "{} bytes", read.count);
    }
    let zeros = open(&mut peer, "/dev/zero", O_RDONLY);
    assert!(!done(&mut peer, read_at(zeros, 0, 1 << 62)).eof, "a device has no end");
    let peak = status(agent.pid(), "VmHWM").saturating_sub(before);
    assert!(peak < 24 << 10, "the agent grew by {peak} KiB");
}

#[test]
fn chunks_of_256_kib_go_through_both_ways() {
    let (agent, folder) = (Agent::start(), Folder::new());
    let mut peer = agent.hello();
    let file = open(&mut peer, folder.path("f"), O_RDWR | O_CREAT);
    let chunks: Vec<Vec<u8>> =
        (0..8u32).map(|chunk| (0..CHUNK_MAX as u32).map(|byte| (chunk * 7 + byte % 251) as u8).collect()).collect();
    for (number, chunk) in chunks.iter().enumerate() {
        let written = done(&mut peer, write_at(file, (number * CHUNK_MAX) as i64, chunk));
        assert_eq!(written.count as usize, CHUNK_MAX);
    }
    assert!(fs::read(folder.path("f")).expect("the file") == chunks.concat());
    for number in 0..chunks.len() {
        peer.send(&Frame::FileOp(read_at(file, (number * CHUNK_MAX) as i64, CHUNK_MAX as i64)));
    }
    for chunk in &chunks {
        let read = answer(&mut peer);
        assert!(read.data == *chunk && !read.eof);
    }
}

#[test]
fn a_frame_at_the_size_limit_is_served_and_one_byte_more_ends_the_connection() {
    let (agent, folder) = (Agent::start(), Folder::new());
    let frame_of = |length: usize| {
        let data = vec![7; length];
        Frame::FileOp(FileRequest { data: data.into(), ..write_at(1, 0, b"") }).to_bytes()
    };
    let room = ITEM_MAX - (frame_of(ITEM_MAX / 2).len() - ITEM_MAX / 2);
    let mut peer = agent.connect();
    open(&mut peer, folder.path("f"), O_WRONLY | O_CREAT);
    assert_eq!(frame_of(room).len(), ITEM_MAX);
    peer.send_bytes(&frame_of(room));
    assert_eq!(answer(&mut peer).count as usize, room);
    peer.socket.write_all(&frame_of(room + 1)).expect("all of it is taken");
    let item = peer.receive().expect("a last word");
    let Ok(Frame::Error { error }) = Frame::decode(&item) else { panic!("{:?}", Frame::decode(&item)) };
    // The claim of the string is what is over the limit; what stands behind it has not been looked at.
    assert!(error.ends_with(&format!("is over the limit of {ITEM_MAX} bytes")), "{error}");
    assert!(is_over(&mut peer));
    assert_eq!(fs::metadata(folder.path("f")).expect("the file").len() as usize, room);
}

// Order, handles

#[test]
fn answers_come_in_the_order_of_the_requests() {
    let (agent, folder) = (Agent::start(), Folder::new());
    let mut peer = agent.connect();
    fs::write(folder.path("f"), (0..=255u8).collect::<Vec<u8>>()).expect("a file");
    let file = open(&mut peer, folder.path("f"), O_RDONLY);
    let request = |id: u32| match id % 4 {
        0 => read_at(file, i64::from(id % 256), 1),
        1 => at(op::STAT, folder.path("f")),
        2 => at(op::READ_DIR, &folder.0),
        _ => at(op::STAT, folder.path("missing")),
    };
    let bytes: Vec<u8> = (0..1000).flat_map(|id| Frame::FileOp(FileRequest { id, ..request(id) }).to_bytes()).collect();
    peer.send_bytes(&bytes);
    for id in 0..1000u32 {
        let answer = answer(&mut peer);
        assert_eq!(answer.id, id);
        match id % 4 {
            0 => assert_eq!(&answer.data[..], [(id % 256) as u8]),
            1 => assert_eq!(answer.stat.map(|stat| stat.size), Some(256)),
            2 => assert_eq!(names(&answer), ["f"]),
            _ => assert_eq!(answer.errno, ENOENT),
        }
    }
}

#[test]
fn handles_at_the_limit_open_and_one_more_does_not() {
    let (agent, folder) = (Agent::start(), Folder::new());
    let limits = fs::read_to_string(format!("/proc/{}/limits", agent.pid())).expect("limits");
    let allowed = limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next());
    if allowed.and_then(|number| number.parse().ok()).is_some_and(|number: usize| number < HANDLES_MAX + 100) {
        return say("skipped: the hard limit of open files leaves no room for a full connection");
    }
    let (mut full, mut other) = (agent.connect(), agent.connect());
    open(&mut other, "/", O_RDONLY);
    done(&mut full, at(op::READ_DIR, "/"));
    // Of the agent's descriptors only these: it has others, which come and go with its threads.
    let handles = || {
        let all = fs::read_dir(format!("/proc/{}/fd", agent.pid())).expect("our agent");
        all.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()).filter(|to| to == Path::new("/")).count()
    };
    assert_eq!(handles(), 1);
    for id in 0..HANDLES_MAX as u32 {
        full.send(&Frame::FileOp(FileRequest { id, ..at(op::OPEN, "/") }));
    }
    for handle in 1..=HANDLES_MAX as u32 {
        assert_eq!(answer(&mut full).handle, handle);
    }
    assert_eq!(handles(), 1 + HANDLES_MAX);
    let refused = (EMFILE, format!("open {}: too many open files", folder.path("f").display()));
    assert_eq!(error(&mut full, at(op::CREATE, folder.path("f"))), refused);
    assert!(!folder.path("f").exists(), "nothing was created");
    done(&mut full, at(op::READ_DIR, "/"));
    assert_eq!(open(&mut other, folder.path("f"), O_RDWR | O_CREAT), 2, "another connection has its own");
    done(&mut full, with(op::CLOSE, 77));
    assert_eq!(open(&mut full, "/", O_RDONLY), HANDLES_MAX as u32 + 1);
    drop(full);
    wait_until("the handles are closed", || handles() == 1);
    done(&mut other, with(op::FSTAT, 2));
}

#[test]
fn handles_belong_to_one_connection() {
    let (agent, folder) = (Agent::start(), Folder::new());
    let (mut one, mut two) = (agent.connect(), agent.hello());
    fs::write(folder.path("f"), "text").expect("a file");
    assert_eq!(open(&mut one, folder.path("f"), O_RDWR), 1);
    for request in [read_at(1, 0, 1), write_at(1, 0, b"x"), with(op::FSTAT, 1), with(op::CLOSE, 1)] {
        assert_eq!(error(&mut two, request).0, EBADF);
    }
    assert_eq!(open(&mut two, "/", O_RDONLY), 1);
    done(&mut two, with(op::CLOSE, 1));
    assert_eq!(&done(&mut one, read_at(1, 0, 4)).data[..], b"text");
}

// The life of a connection without Hello

#[test]
fn other_frames_are_ignored_among_file_operations() {
    let agent = Agent::start();
    let mut peer = agent.connect();
    done(&mut peer, at(op::STAT, "/"));
    let exec = support::shell("exit 3");
    let ignored = [
        Frame::Exec { id: 0, exec },
        Frame::PathQuery { paths: Vec::new() },
        Frame::Signal { id: 0, signal: 9 },
        Frame::Data { id: 0, stream: 0, data: Cow::Borrowed(b"x") },
        Frame::Eof { id: 0, stream: 0 },
        Frame::Hello(Hello { revision: 1, ..Hello::default() }),
        Frame::Unknown { kind: 99 },
        Frame::Incomplete { kind: 11 },
        Frame::Goodbye,
    ];
    for frame in ignored {
        peer.send(&frame);
        done(&mut peer, at(op::STAT, "/"));
    }
    peer.send_bytes(b"\xf6\xa0");
    done(&mut peer, at(op::STAT, "/"));
}

#[test]
fn an_exit_or_the_end_of_input_ends_the_service_behind_all_answers() {
    let (agent, folder) = (Agent::start(), Folder::new());
    let before = descriptors(agent.pid());
    fs::write(folder.path("f"), vec![1; 100_000]).expect("a file");
    let ends: [&dyn Fn(&mut Peer); 2] =
        [&|peer| peer.send(&Frame::Exit { id: 0, code: 0, error: String::new(), errno: 0 }), &|peer| {
            peer.socket.shutdown(Shutdown::Write).expect("a half close")
        }];
    for end in ends {
        let mut peer = agent.connect();
        open(&mut peer, folder.path("f"), O_RDONLY);
        // More than fits into the socket and into what the agent keeps: 10 MB.
        for id in 0..100 {
            peer.send(&Frame::FileOp(FileRequest { id, ..read_at(1, 0, 100_000) }));
        }
        end(&mut peer);
        for id in 0..100 {
            let answer = answer(&mut peer);
            assert_eq!((answer.id, answer.count), (id, 100_000));
        }
        assert!(is_over(&mut peer));
    }
    wait_until("the handles are closed", || descriptors(agent.pid()) <= before);
}

// After Hello

#[test]
fn after_hello_operations_and_queries_share_the_connection() {
    let (agent, folder) = (Agent::start(), Folder::new());
    let mut peer = agent.hello();
    fs::write(folder.path("tool"), "").expect("a file");
    fs::set_permissions(folder.path("tool"), fs::Permissions::from_mode(0o755)).expect("a mode");
    for _ in 0..3 {
        peer.send(&Frame::FileOp(at(op::STAT, folder.path("tool"))));
        peer.send(&Frame::PathQuery { paths: vec![folder.0.as_os_str().as_bytes().to_vec()] });
        peer.send(&Frame::FileOp(at(op::STAT, folder.path("missing"))));
    }
    for _ in 0..3 {
        assert_eq!(answer(&mut peer).errno, 0);
        let item = peer.receive().expect("path info");
        let Ok(Frame::PathInfo { entries: Some(entries) }) = Frame::decode(&item) else { panic!("no path info") };
        assert_eq!(entries[0].name, b"tool");
        assert_eq!(answer(&mut peer).errno, ENOENT);
    }
    peer.send(&Frame::Exec { id: 5, exec: support::shell("exit 3") });
    peer.send(&Frame::FileOp(at(op::STAT, "/")));
    let (mut code, mut answered) = (None, false);
    while code.is_none() || !answered {
        match Frame::decode(&peer.receive().expect("a frame")).expect("a frame") {
            Frame::Exit { id: 5, code: exit, .. } => code = Some(exit),
            Frame::FileResp(response) => answered = response.errno == 0,
            _ => {}
        }
    }
    assert_eq!(code, Some(3));
}

#[test]
fn a_paged_listing_comes_in_pages_and_another_in_one_frame() {
    const COUNT: usize = 5000;
    let (agent, folder) = (Agent::start(), Folder::new());
    let expected: Vec<String> = (0..COUNT).map(|number| format!("{number:05}")).collect();
    for name in &expected {
        fs::write(folder.path(name), "").expect("a file");
    }
    let mut peer = agent.hello();
    peer.send(&Frame::FileOp(FileRequest { paged: true, ..at(op::READ_DIR, &folder.0) }));
    peer.send(&Frame::FileOp(at(op::READ_DIR, &folder.0)));
    peer.send(&Frame::FileOp(FileRequest { paged: true, ..at(op::READ_DIR, folder.path("missing")) }));
    peer.send(&Frame::FileOp(FileRequest { paged: true, ..at(op::READ_DIR, &agent.folder.0) }));
    let (mut listed, mut pages) = (Vec::new(), 0);
    loop {
        let item = peer.receive().expect("a page");
        assert!(item.len() < CHUNK_MAX, "a page of {} bytes", item.len());
        let page = response(item);
        assert_eq!(page.id, 1000 + u32::from(op::READ_DIR));
        listed.extend(names(&page));
        pages += 1;
        if !page.more {
            break;
        }
    }
    assert!(pages > 5 && listed == expected, "{} names in {pages} pages", listed.len());
    let whole = answer(&mut peer);
    assert!(!whole.more && names(&whole) == expected);
    assert_eq!(answer(&mut peer).errno, ENOENT);
    let short = answer(&mut peer);
    assert!(!short.more && names(&short) == ["agent.sock"], "a short listing is one page");
}

#[test]
fn the_data_of_a_sparse_file_is_found() {
    const MIB: i64 = 1 << 20;
    let (agent, folder) = (Agent::start(), Folder::new());
    let mut peer = agent.hello();
    let file = open(&mut peer, folder.path("f"), O_RDWR | O_CREAT);
    let next = |offset| FileRequest { offset, ..with(op::NEXT_DATA, file) };
    let nothing = done(&mut peer, next(0));
    assert_eq!((nothing.count, nothing.end, nothing.eof), (0, 0, true));
    done(&mut peer, write_at(file, MIB, b"data"));
    done(&mut peer, FileRequest { size: 3 * MIB, ..with(op::FTRUNCATE, file) });
    let found = done(&mut peer, next(0));
    assert!(found.count <= MIB && found.end >= MIB + 4 && !found.eof, "{found:?}");
    if found.count == 0 {
        return say("skipped: the file system of the temporary directory has no holes");
    }
    assert!(done(&mut peer, next(found.end)).eof);
    assert!(done(&mut peer, next(3 * MIB)).eof);
    assert_eq!(error(&mut peer, next(-1)).0, EINVAL);
    let done_at = done(&mut peer, next(MIB + 2));
    assert_eq!((done_at.count, done_at.end), (MIB + 2, found.end));
}

#[test]
fn the_times_of_a_link_itself_can_be_set() {
    let (agent, folder) = (Agent::start(), Folder::new());
    let mut peer = agent.hello();
    symlink("nowhere", folder.path("l")).expect("a link");
    let times = FileRequest { accessed_ns: 1, modified_ns: 2_000_000_003, ..at(op::CHTIMES, folder.path("l")) };
    assert_eq!(error(&mut peer, times.clone()).0, ENOENT);
    done(&mut peer, FileRequest { no_follow: true, ..times });
    let stat = done(&mut peer, at(op::LSTAT, folder.path("l"))).stat.expect("a stat");
    assert_eq!((stat.modified_ns, stat.is_symlink()), (2_000_000_003, true));
}

#[test]
fn a_fifo_stalls_nobody() {
    let (agent, folder) = (Agent::start(), Folder::new());
    let mut peer = agent.connect();
    assert!(Command::new("mkfifo").arg(folder.path("fifo")).status().expect("mkfifo").success());
    const ENXIO: u32 = 6;
    const EAGAIN: u32 = 11;
    assert_eq!(error(&mut peer, FileRequest { flags: O_WRONLY, ..at(op::OPEN_FILE, folder.path("fifo")) }).0, ENXIO);
    let reader = done(&mut peer, at(op::OPEN, folder.path("fifo"))).handle;
    assert_eq!(error(&mut peer, read_at(reader, 0, 10)).0, ESPIPE);
    let writer = open(&mut peer, folder.path("fifo"), O_WRONLY);
    let written = ask(&mut peer, write_at(writer, -1, &vec![0; 1 << 20]));
    assert_eq!(written.errno, EAGAIN);
    assert!(written.count > 0 && written.count < 1 << 20, "the count stands beside the error: {}", written.count);
    assert_eq!(error(&mut peer, at(op::READ_DIR, folder.path("fifo"))).0, ENOTDIR);
    done(&mut peer, with(op::CLOSE, reader));
}

// Names that are not UTF-8

const RAW: &[u8] = b"caf\xe9 \xff";
/// How upstream's clients see and say it.
const ESCAPED: &str = "caf\u{efe9} \u{efff}";

/// A request as upstream's client makes it, with texts only.
fn text_only(op: u8, path: &str, new_path: &str) -> Vec<u8> {
    let fields =
        [("id", Value::from(1)), ("op", op.into()), ("mo", 0o700.into()), ("p", path.into()), ("np", new_path.into())];
    let fields = fields.map(|(key, value)| (Value::from(key), value)).to_vec();
    let frame = Value::Map(vec![("t".into(), 11.into()), ("fop".into(), Value::Map(fields))]);
    let mut bytes = Vec::new();
    ciborium::into_writer(&frame, &mut bytes).expect("bytes");
    bytes
}

#[test]
fn a_name_that_is_not_utf_8_is_listed_in_an_escaped_text_beside_its_bytes() {
    let (agent, folder) = (Agent::start(), Folder::new());
    fs::write(folder.0.join(OsStr::from_bytes(RAW)), "text").expect("a file");
    fs::write(folder.path("plain"), "").expect("a file");
    // A real character of the private block must not be taken for a byte.
    fs::write(folder.path("\u{efe9}"), "").expect("a file");
    for mut peer in [agent.connect(), agent.hello()] {
        let item = peer.ask(&Frame::FileOp(at(op::READ_DIR, &folder.0)));
        let entries = member(&item, &["frp", "en"]).and_then(|entries| entries.into_array().ok()).expect("entries");
        let told: Vec<(Option<Value>, Option<Value>)> = entries
            .iter()
            .map(|entry| {
                let mut bytes = Vec::new();
                ciborium::into_writer(entry, &mut bytes).expect("bytes");
                (member(&bytes, &["st", "n"]), member(&bytes, &["st", "nb"]))
            })
            .collect();
        let escaped_private = "\u{efee}\u{efbf}\u{efa9}";
        assert_eq!(
            told,
            [
                (Some(ESCAPED.into()), Some(Value::Bytes(RAW.to_vec()))),
                (Some("plain".into()), None),
                (Some(escaped_private.into()), Some(Value::Bytes("\u{efe9}".as_bytes().to_vec()))),
            ]
        );
        assert_eq!(response(item).entries[0].name, RAW);
        done(&mut peer, at(op::STAT, "/"));
    }
}

#[test]
fn a_client_that_knows_only_texts_reaches_names_that_are_not_utf_8() {
    let (agent, folder) = (Agent::start(), Folder::new());
    let mut peer = agent.connect();
    let text = |name: &str| format!("{}/{name}", folder.0.display());
    let raw = |name: &[u8]| folder.0.join(OsStr::from_bytes(name));
    let mut ask = |op: u8, path: &str, new_path: &str| {
        peer.send_bytes(&text_only(op, path, new_path));
        answer(&mut peer)
    };
    assert_eq!(ask(op::CREATE, &text(ESCAPED), "").handle, 1);
    assert!(raw(RAW).exists());
    assert_eq!(ask(op::OPEN, &text(ESCAPED), "").handle, 2);
    assert_eq!(ask(op::STAT, &text(ESCAPED), "").stat.expect("a stat").name, RAW);
    assert_eq!(ask(op::RENAME, &text(ESCAPED), &text("\u{ef80}")).errno, 0);
    assert!(raw(b"\x80").exists());
    assert_eq!(ask(op::SYMLINK, "\u{ef80}", &text("l")).errno, 0);
    assert_eq!(fs::read_link(raw(b"l")).expect("a link").as_os_str().as_bytes(), b"\x80");
    assert_eq!(ask(op::READLINK, &text("l"), "").path, b"\x80");
    assert_eq!(ask(op::STAT, &text("l"), "").errno, 0, "it leads there");
    assert_eq!(ask(op::LINK, &text("\u{ef80}"), &text("\u{ef81}")).errno, 0);
    assert_eq!(ask(op::MKDIR_ALL, &text("\u{efff}/\u{effe}"), "").errno, 0);
    assert_eq!(ask(op::READ_DIR, &text("\u{efff}"), "").entries[0].name, b"\xfe");
    for name in ["\u{efff}/\u{effe}", "\u{efff}", "\u{ef80}", "\u{ef81}", "l"] {
        assert_eq!(ask(op::REMOVE, &text(name), "").errno, 0);
    }
    let missing = ask(op::STAT, &text(ESCAPED), "");
    assert_eq!(missing.errno, ENOENT);
    assert!(missing.error.ends_with(": no such file or directory"), "{}", missing.error);
    assert_eq!(fs::read_dir(&folder.0).expect("the folder").count(), 0);
}

#[test]
fn the_bytes_of_a_name_may_be_sent_as_they_are() {
    let (agent, folder) = (Agent::start(), Folder::new());
    let mut peer = agent.hello();
    let raw = folder.0.join(OsStr::from_bytes(RAW));
    done(&mut peer, at(op::CREATE, &raw));
    assert_eq!(done(&mut peer, with(op::FSTAT, 1)).stat.expect("a stat").name, RAW);
    done(&mut peer, between(op::SYMLINK, OsStr::from_bytes(RAW), folder.path("l")));
    let item = peer.ask(&Frame::FileOp(at(op::READLINK, folder.path("l"))));
    assert_eq!(member(&item, &["frp", "p"]), Some(ESCAPED.into()));
    assert_eq!(member(&item, &["frp", "pb"]), Some(Value::Bytes(RAW.to_vec())));
    done(&mut peer, between(op::RENAME, &raw, folder.0.join(OsStr::from_bytes(b"\xfe"))));
    done(&mut peer, at(op::REMOVE, folder.0.join(OsStr::from_bytes(b"\xfe"))));
    let gone = peer.ask(&Frame::FileOp(at(op::OPEN, &raw)));
    assert_eq!(number(&gone, &["frp", "er"]), Some(2));
    let paged = FileRequest { paged: true, ..at(op::READ_DIR, &folder.0) };
    assert_eq!(names(&done(&mut peer, paged)), ["l"]);
}

#[test]
fn the_error_of_an_endless_name_is_no_endless_text() {
    let agent = Agent::start();
    let mut peer = agent.hello();
    // In the text of an error each of these bytes takes three.
    let name = vec![0xff; 200_000];
    let request = FileRequest { path: name.clone(), new_path: name.clone(), ..at(op::RENAME, "") };
    let item = peer.ask(&Frame::FileOp(request));
    assert!(item.len() < 32 << 10, "an answer of {} bytes", item.len());
    assert_eq!(response(item).errno, 36);
    let told = error(&mut peer, at(op::STAT, "x".repeat(4096))).1;
    assert!(told.starts_with("stat xxx") && told.ends_with(": file name too long"), "{told}");
}

#[test]
fn a_connection_gives_back_what_large_frames_took() {
    // The GNU C library would learn from the first large buffer to keep the next ones; musl, which is shipped, does not learn.
    let agent = Agent::start_with(|command| {
        command.env("MALLOC_MMAP_THRESHOLD_", "131072");
    });
    let folder = Folder::new();
    let mut peer = agent.hello();
    let file = open(&mut peer, folder.path("f"), O_RDWR | O_CREAT);
    let before = status(agent.pid(), "VmRSS");
    let bytes = vec![1; (4 << 20) - 4096];
    for _ in 0..4 {
        assert_eq!(done(&mut peer, write_at(file, 0, &bytes)).count as usize, bytes.len());
        assert_eq!(done(&mut peer, read_at(file, 0, 4 << 20)).count as usize, bytes.len());
    }
    let kept = status(agent.pid(), "VmRSS").saturating_sub(before);
    assert!(kept < 3 << 10, "{kept} KiB");
}
