//! The birth and the end of a unix socket: its rights, its directories, and whose file is removed.

mod support;

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use lodger::sys::file;
use lodger::sys::unix as socket;
use lodger::transport::unix::{self, Listener};

use support::{Folder, wait_until};

/// Somebody else's group; only root may give files to it.
const GROUP: u32 = 4242;

/// One test at a time: opening a socket changes the umask of the whole process, and tests make files too.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("it is there").mode() & 0o7777
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// The umask meanwhile, then the one before again.
fn with_umask<T>(mask: u32, act: impl FnOnce() -> T) -> T {
    let before = file::set_umask(mask);
    let result = act();
    assert_eq!(file::set_umask(before), mask, "opening a socket leaves the umask as it was");
    result
}

#[test]
fn a_socket_has_exactly_the_asked_rights_under_any_umask() {
    let _alone = alone();
    let folder = Folder::new();
    for mask in [0o000, 0o022, 0o077, 0o777] {
        for wanted in [0o600, 0o660, 0o777, 0o770, 0o000, 0o666] {
            let path = folder.path("a.sock");
            let listener = with_umask(mask, || Listener::open(&path, wanted, None)).expect("a listener");
            assert_eq!(mode(&path), wanted, "umask {mask:o}");
            drop(listener);
            assert!(!path.exists());
        }
    }
}

#[test]
fn a_socket_of_a_group_belongs_to_it_and_has_exactly_the_asked_rights_if_we_are_root() {
    let _alone = alone();
    if !is_root() {
        return;
    }
    let folder = Folder::new();
    for wanted in [0o600, 0o660, 0o777, 0o770] {
        let path = folder.path("a.sock");
        let _listener = Listener::open(&path, wanted, Some(GROUP)).expect("a listener");
        let found = fs::symlink_metadata(&path).expect("it is there");
        assert_eq!((found.mode() & 0o7777, found.gid()), (wanted, GROUP));
    }
    let none = Listener::open(&folder.path("a.sock"), 0o600, Some(u32::MAX)).expect_err("it means no change");
    assert_eq!(none.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn nobody_ever_sees_wider_rights_than_asked() {
    const BIRTHS: usize = 400;
    let _alone = alone();
    let folder = Folder::new();
    let path = folder.path("a.sock");
    for (wanted, group) in [(0o600, None), (0o660, None), (0o660, Some(GROUP)), (0o770, Some(GROUP))] {
        if group.is_some() && !is_root() {
            continue;
        }
        let (end, looks) = (AtomicBool::new(false), AtomicUsize::new(0));
        let seen = thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let mut seen = Vec::new();
                while !end.load(Ordering::Relaxed) {
                    if let Ok(found) = fs::symlink_metadata(&path) {
                        let state = (found.mode() & 0o7777, found.gid());
                        if !seen.contains(&state) {
                            seen.push(state);
                        }
                    }
                    looks.fetch_add(1, Ordering::Relaxed);
                }
                seen
            });
            with_umask(0, || {
                for _ in 0..BIRTHS {
                    drop(Listener::open(&path, wanted, group).expect("a listener"));
                }
                // At least the last one stays until it has been seen.
                let _last = Listener::open(&path, wanted, group).expect("a listener");
                // The first of two looks may have begun before it was there.
                let before = looks.load(Ordering::Relaxed);
                wait_until("it has been seen", || looks.load(Ordering::Relaxed) >= before + 2);
                end.store(true, Ordering::Relaxed);
            });
            watcher.join().expect("the watcher ends")
        });
        assert!(seen.iter().any(|(mode, _)| *mode == wanted), "{seen:?}");
        for (mode, gid) in seen {
            // Another group than the asked one has no bits, and nobody has with it.
            let allowed = if group.is_some_and(|group| group != gid) { wanted & 0o700 } else { wanted };
            assert_eq!(mode & !allowed, 0, "{mode:o} of group {gid}, asked for {wanted:o} of {group:?}");
            assert!(group.is_some() || mode == wanted, "{mode:o} is not {wanted:o} from birth");
        }
    }
}

#[test]
fn missing_directories_are_made_and_those_that_are_there_stay_as_they_are() {
    let _alone = alone();
    let folder = Folder::new();
    for (mask, wanted, made) in
        [(0o022, 0o600, 0o700), (0o022, 0o660, 0o750), (0, 0o660, 0o770), (0, 0o666, 0o777), (0, 0o060, 0o770)]
    {
        let there = folder.path("there");
        fs::create_dir(&there).expect("a folder");
        fs::set_permissions(&there, fs::Permissions::from_mode(0o711)).expect("it is ours");
        let path = there.join("a/b/c.sock");
        let listener = with_umask(mask, || Listener::open(&path, wanted, None)).expect("a listener");
        assert_eq!([&there, &there.join("a"), &there.join("a/b")].map(|at| mode(at)), [0o711, made, made]);
        assert_eq!(mode(&path), wanted);
        UnixStream::connect(&path).expect("it listens");
        drop(listener);
        assert!(there.join("a/b").is_dir(), "directories stay");
        // The next one finds them.
        with_umask(mask, || drop(Listener::open(&path, 0o777, None).expect("a listener")));
        assert_eq!(mode(&there.join("a/b")), made);
        fs::remove_dir_all(&there).expect("it is ours");
    }
}

#[test]
fn made_directories_belong_to_the_group_of_the_socket_if_we_are_root() {
    let _alone = alone();
    if !is_root() {
        return;
    }
    let folder = Folder::new();
    let path = folder.path("a/b.sock");
    let before = fs::metadata(&folder.0).expect("a folder");
    let _listener = with_umask(0o027, || Listener::open(&path, 0o660, Some(GROUP))).expect("a listener");
    let made = fs::metadata(folder.path("a")).expect("it was made");
    assert_eq!((made.mode() & 0o7777, made.gid(), made.uid()), (0o750, GROUP, 0));
    let after = fs::metadata(&folder.0).expect("a folder");
    assert_eq!((before.mode(), before.gid()), (after.mode(), after.gid()));
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let _alone = alone();
    let folder = Folder::new();
    let path = folder.path("a.sock");
    drop(UnixListener::bind(&path).expect("a socket"));
    assert!(path.exists(), "std leaves its file behind");
    let listener = Listener::open(&path, 0o600, None).expect("the socket was stale");
    let error = Listener::open(&path, 0o600, None).expect_err("the socket is live");
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    drop(listener);
    let _other = UnixDatagram::bind(&path).expect("a socket of another type");
    let error = Listener::open(&path, 0o600, None).expect_err("the socket is live");
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
}

#[test]
fn a_live_socket_whose_queue_is_full_is_live() {
    let _alone = alone();
    let folder = Folder::new();
    let path = folder.path("a.sock");
    let _listener = UnixListener::bind(&path).expect("a socket");
    let mut waiting = Vec::new();
    let full = loop {
        match socket::connect(&path) {
            Ok(connection) => waiting.push(connection),
            Err(error) => break error,
        }
        assert!(waiting.len() < 100_000, "the queue has an end");
    };
    assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
    // At once, too.
    let error = Listener::open(&path, 0o600, None).expect_err("the socket is live");
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
}

#[test]
fn what_is_no_socket_is_never_removed() {
    let _alone = alone();
    let folder = Folder::new();
    let path = folder.path("a");
    let refused = |what: &str| {
        let before = fs::symlink_metadata(&path).expect("it is there").ino();
        let error = Listener::open(&path, 0o600, None).expect_err("the path is taken");
        assert_eq!(
            (error.kind(), error.to_string()),
            (io::ErrorKind::AlreadyExists, format!("{what} is there, and stays"))
        );
        assert_eq!(fs::symlink_metadata(&path).expect("it is still there").ino(), before);
    };
    fs::write(&path, "text").expect("a file");
    refused("a regular file");
    fs::remove_file(&path).expect("it is ours");
    fs::create_dir(&path).expect("a folder");
    refused("a directory");
    fs::remove_dir(&path).expect("it is ours");
    symlink(folder.path("nowhere"), &path).expect("a link");
    refused("a symbolic link");
    assert!(!folder.path("nowhere").exists(), "nothing is made through the link");
    fs::remove_file(&path).expect("it is ours");
    let _live = UnixListener::bind(folder.path("live")).expect("a socket");
    symlink(folder.path("live"), &path).expect("a link");
    refused("a symbolic link");
}

#[test]
fn only_our_own_file_is_removed_at_the_end() {
    let _alone = alone();
    let folder = Folder::new();
    let path = folder.path("a.sock");
    let listener = Listener::open(&path, 0o600, None).expect("a listener");
    fs::remove_file(&path).expect("it is ours");
    let other = Listener::open(&path, 0o600, None).expect("a second agent");
    drop(listener);
    UnixStream::connect(&path).expect("the second one's file is still there");
    fs::rename(&path, folder.path("b.sock")).expect("it is ours");
    fs::write(&path, "text").expect("a file");
    drop(other);
    assert!(path.is_file(), "a file of somebody else's");
}

#[test]
fn a_path_at_the_limit_works_and_a_longer_one_is_refused_with_the_limit() {
    let _alone = alone();
    let folder = Folder::new();
    let of_length = |length: usize| folder.path(&"x".repeat(length - folder.0.as_os_str().len() - 1));
    let longest = of_length(socket::PATH_MAX);
    let listener = Listener::open(&longest, 0o600, None).expect("a listener");
    UnixStream::connect(&longest).expect("it listens");
    drop(listener);
    drop(UnixListener::bind(&longest).expect("a socket"));
    drop(Listener::open(&longest, 0o600, None).expect("the probe takes the longest path too"));
    let error = Listener::open(&of_length(socket::PATH_MAX + 1), 0o600, None).expect_err("it is too long");
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    assert_eq!(error.to_string(), "the path has 108 bytes, and a unix socket's may have 107");
    // Nothing was made for it.
    let error = Listener::open(&folder.path("new").join("x".repeat(108)), 0o600, None).expect_err("it is too long");
    assert_eq!((error.kind(), folder.path("new").exists()), (io::ErrorKind::InvalidInput, false));
}

#[test]
fn a_listener_without_room_is_given_up_and_one_with_room_again_is_not() {
    let _alone = alone();
    let folder = Folder::new();
    let path = folder.path("full");
    let listener = UnixListener::bind(&path).expect("a socket");
    let mut waiting = Vec::new();
    while let Ok(queued) = socket::connect(&path) {
        waiting.push(queued);
    }
    let start = Instant::now();
    let given_up = unix::connect(&path).map_err(|error| error.kind());
    assert_eq!(given_up.err(), Some(io::ErrorKind::TimedOut));
    assert!(start.elapsed() >= Duration::from_secs(5), "{:?}", start.elapsed());
    let late = thread::spawn(move || unix::connect(&path).map(drop));
    thread::sleep(Duration::from_millis(50));
    drop(listener.accept().expect("one of those that wait"));
    assert!(late.join().expect("it ends").is_ok());
}
