//! `cp`: files and trees into a guest and out of it. The guests are agents on this machine, so both sides can be looked at.

#[path = "support/client.rs"]
mod client;
mod support;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use lodger::sys::file::set_times;
use lodger::sys::signal::{SIGINT, SIGKILL, SIGTERM};
use lodger::wire::file::{FileRequest, FileResponse, Stat, op};
use lodger::wire::frame::{Frame, Hello};

use client::{Done, Running, lodger, noise, run};
use support::{Agent, Folder, Peer, lives, wait_until};

/// A path in the guest.
fn guest(path: &Path) -> OsString {
    let mut text = OsString::from("guest:");
    text.push(path);
    text
}

fn cp(words: &[&OsStr]) -> Done {
    run([OsStr::new("cp")].iter().chain(words))
}

/// Copies one thing in a direction.
fn copy(into_guest: bool, from: &Path, to: &Path) -> Done {
    if into_guest {
        cp(&[OsStr::new("-r"), from.as_os_str(), &guest(to)])
    } else {
        cp(&[OsStr::new("-r"), &guest(from), to.as_os_str()])
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").expect("proc").uid() == 0
}

/// What a file is, but for its place and its inode.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    mode: u32,
    modified: (i64, i64),
    content: Vec<u8>,
    /// A file that takes less than a tenth of its size.
    has_holes: bool,
}

/// Everything in a tree, by relative path.
fn tree(root: &Path) -> BTreeMap<PathBuf, Entry> {
    let mut all = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        let found = fs::symlink_metadata(&path).expect("a file");
        let mut content = Vec::new();
        if found.is_dir() {
            open.extend(fs::read_dir(&path).expect("a folder").map(|entry| entry.expect("an entry").path()));
        } else if found.is_symlink() {
            content = fs::read_link(&path).expect("a link").into_os_string().into_vec();
        } else if found.is_file() {
            content = fs::read(&path).expect("a file");
        }
        let modified = (found.mtime(), found.mtime_nsec());
        let has_holes = found.is_file() && found.blocks() * 512 < found.size() / 10;
        let relative = path.strip_prefix(root).expect("below the root").to_owned();
        all.insert(relative, Entry { mode: found.mode(), modified, content, has_holes });
    }
    all
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
}

/// A tree with everything that is hard about trees.
fn furnish(root: &Path) {
    fs::create_dir_all(root.join("sub/deeper/empty")).expect("folders");
    fs::create_dir(root.join("sticky")).expect("a folder");
    for (name, bytes) in [
        (&b"plain"[..], noise(1, 700_000)),
        (b"empty file", Vec::new()),
        (b"line\nbreak", b"x".to_vec()),
        (b" spaces ", b"y".to_vec()),
        (b"not utf-8 \xff\xfe", b"z".to_vec()),
        (b"-r", b"dash".to_vec()),
        (b"guest:odd", b"colon".to_vec()),
        (b"setuid", b"#!/bin/sh\n".to_vec()),
        (b"sub/deeper/setgid", b"#!/bin/sh\n".to_vec()),
        (b"read only", b"r".to_vec()),
    ] {
        fs::write(root.join(OsStr::from_bytes(name)), bytes).expect("a file");
    }
    fs::write(root.join("x".repeat(255)), "long").expect("a file");
    let sparse = File::create(root.join("sparse")).expect("a file");
    sparse.set_len(64 << 20).expect("a size");
    sparse.write_all_at(b"begin", 0).expect("room");
    sparse.write_all_at(b"middle", 40 << 20).expect("room");
    File::create(root.join("all hole")).expect("a file").set_len(10 << 20).expect("a size");
    for (link, target) in
        [("to file", "plain"), ("to folder", "sub"), ("dangling", "/nowhere/at all"), ("loop", "loop")]
    {
        symlink(target, root.join(link)).expect("a link");
    }
    set_mode(&root.join("setuid"), 0o4755);
    set_mode(&root.join("sub/deeper/setgid"), 0o2711);
    set_mode(&root.join("read only"), 0o444);
    set_mode(&root.join("sticky"), 0o1777);
    if is_root() {
        fs::write(root.join("locked"), "secret").expect("a file");
        set_mode(&root.join("locked"), 0);
    }
    let mut time = 981_173_106_123_456_789;
    for path in tree(root).into_keys().rev() {
        set_times(root.join(path), time, time, false).expect("times");
        time += 1_000_000_001;
    }
    set_times(root.join("dangling"), -1_500_000_000, -1_500_000_000, false).expect("times");
    set_times(root, time, time, false).expect("times");
}

// Trees

#[test]
fn a_tree_is_the_same_on_the_other_side() {
    let folder = Folder::new();
    let root = folder.path("tree");
    furnish(&root);
    let there = folder.path("there");
    assert_eq!(copy(true, &root, &there).good(), b"");
    let mut expected = tree(&root);
    assert!(expected[Path::new("sparse")].has_holes, "the folder has no holes");
    assert!(tree(&there) == expected, "{:#?}", difference(&expected, &tree(&there)));
    let back = folder.path("back");
    assert_eq!(copy(false, &there, &back).good(), b"");
    // Nothing out of a guest may act as whoever copied it.
    for entry in expected.values_mut().filter(|entry| entry.mode & 0o170_000 == 0o100_000) {
        entry.mode &= !0o6000;
    }
    assert!(tree(&back) == expected, "{:#?}", difference(&expected, &tree(&back)));
}

/// The paths that differ.
fn difference<'a>(
    a: &'a BTreeMap<PathBuf, Entry>,
    b: &BTreeMap<PathBuf, Entry>,
) -> Vec<(&'a PathBuf, u32, (i64, i64))> {
    a.iter()
        .filter(|(path, entry)| b.get(*path) != Some(entry))
        .map(|(path, entry)| (path, entry.mode, entry.modified))
        .collect()
}

#[test]
fn a_tree_goes_into_a_folder_that_is_there_and_merges_with_one_of_its_name() {
    for into_guest in [true, false] {
        let folder = Folder::new();
        let (root, to) = (folder.path("tree"), folder.path("to"));
        fs::create_dir_all(root.join("sub")).expect("folders");
        fs::write(root.join("sub/new"), "new").expect("a file");
        fs::create_dir_all(to.join("tree/sub")).expect("folders");
        fs::write(to.join("tree/sub/old"), "old").expect("a file");
        fs::write(to.join("tree/sub/new"), "to be replaced").expect("a file");
        copy(into_guest, &root, &to).good();
        assert_eq!(fs::read(to.join("tree/sub/new")).expect("a file"), b"new");
        assert_eq!(fs::read(to.join("tree/sub/old")).expect("a file"), b"old");
        // A slash behind either name changes nothing.
        for (from, target) in [(root.join(""), folder.path("second")), (root.clone(), folder.path("third").join(""))] {
            copy(into_guest, &from, &target).good();
            assert_eq!(fs::read(target.join("sub/new")).expect("a file"), b"new", "{}", target.display());
        }
        copy(into_guest, &root.join(""), &to.join("")).good();
        let names: Vec<_> =
            fs::read_dir(&to).expect("a folder").map(|entry| entry.expect("an entry").file_name()).collect();
        assert_eq!(names, ["tree"]);
    }
}

#[test]
fn a_tree_that_is_copied_into_itself_has_an_end() {
    for into_guest in [true, false] {
        let folder = Folder::new();
        let root = folder.path("tree");
        fs::create_dir_all(root.join("sub")).expect("folders");
        copy(into_guest, &root, &root).good();
        assert!(root.join("tree/sub").is_dir() && !root.join("tree/tree").exists());
    }
}

#[test]
fn what_is_neither_file_nor_folder_nor_link_is_left_out_and_said() {
    for into_guest in [true, false] {
        let folder = Folder::new();
        let (root, to) = (folder.path("tree"), folder.path("to"));
        fs::create_dir(&root).expect("a folder");
        fs::write(root.join("a"), "a").expect("a file");
        fs::write(root.join("z"), "z").expect("a file");
        assert!(Command::new("mkfifo").arg(root.join("pipe")).status().expect("mkfifo").success());
        let _socket = UnixListener::bind(root.join("socket")).expect("a socket");
        copy(into_guest, &root, &to).bad(125, &["tree/pipe", "left out", "tree/socket"]);
        assert_eq!(tree(&to).len(), 3, "{:?}", tree(&to));
    }
}

#[test]
fn a_file_that_cannot_be_read_is_said_and_the_rest_is_copied() {
    let folder = Folder::new();
    let root = folder.path("tree");
    fs::create_dir(&root).expect("a folder");
    for name in ["a", "locked", "z"] {
        fs::write(root.join(name), name).expect("a file");
    }
    set_mode(&root.join("locked"), 0);
    set_mode(&folder.0, 0o777);
    for into_guest in [true, false] {
        let to = folder.path(if into_guest { "in" } else { "out" });
        let paths = if into_guest {
            [root.as_os_str().to_owned(), guest(&to)]
        } else {
            [guest(&root), to.as_os_str().to_owned()]
        };
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups", env!("CARGO_BIN_EXE_lodger")]);
            command.args(["cp", "-r"]);
            command
        } else {
            lodger(["cp", "-r"])
        };
        command.args(paths).env("LODGER_TO", "local:").stdin(Stdio::null());
        let done = Running::start(command).finish();
        if done.stderr().contains("setpriv: failed to execute") {
            eprintln!("left out: nobody else may execute the program where it is");
            return;
        }
        done.bad(125, &["locked", "permission denied"]);
        let names: Vec<PathBuf> = tree(&to).into_keys().collect();
        assert_eq!(names, ["", "a", "z"].map(PathBuf::from));
    }
}

#[test]
fn one_that_is_missing_does_not_keep_the_others() {
    for into_guest in [true, false] {
        let folder = Folder::new();
        fs::write(folder.path("there"), "x").expect("a file");
        fs::create_dir(folder.path("to")).expect("a folder");
        let (gone, there, to) = (folder.path("gone"), folder.path("there"), folder.path("to"));
        let done = if into_guest {
            cp(&[gone.as_os_str(), there.as_os_str(), &guest(&to)])
        } else {
            cp(&[&guest(&gone), &guest(&there), to.as_os_str()])
        };
        done.bad(125, &["gone", "no such file or directory"]);
        assert!(to.join("there").is_file());
    }
}

// Files

#[test]
fn a_file_gets_a_name_or_goes_into_a_folder() {
    for into_guest in [true, false] {
        let folder = Folder::new();
        let file = folder.path("file");
        fs::write(&file, noise(9, 1_000_000)).expect("a file");
        set_mode(&file, 0o640);
        fs::create_dir(folder.path("to")).expect("a folder");
        for (to, name) in [("name", "name"), ("to", "to/file"), ("to/", "to/file"), ("to/other", "to/other")] {
            copy(into_guest, &file, &folder.path(to)).good();
            let copied = folder.path(name);
            assert!(fs::read(&copied).expect("a file") == fs::read(&file).expect("a file"), "{to}");
            assert_eq!(fs::metadata(&copied).expect("a file").permissions().mode() & 0o7777, 0o640);
        }
        // A new name with a slash, or below a folder that is not there, is no place for a file.
        for to in ["nowhere/", "nowhere/file"] {
            let done = copy(into_guest, &file, &folder.path(to));
            done.bad(125, &["nowhere"]);
            assert!(!folder.path("nowhere").exists(), "{}", done.stderr());
        }
    }
}

#[test]
fn guest_paths_may_be_relative_and_links_are_followed_without_r() {
    let folder = Folder::new();
    fs::write(folder.path("file"), "x").expect("a file");
    symlink("file", folder.path("link")).expect("a link");
    fs::create_dir(folder.path("to")).expect("a folder");
    let copy_here = |words: &[&str]| {
        let mut command = lodger(["cp"]);
        command.args(words).current_dir(&folder.0);
        Running::start(command).finish()
    };
    copy_here(&["file", "guest:to/"]).good();
    copy_here(&["guest:to/file", "back"]).good();
    assert_eq!(fs::read(folder.path("back")).expect("a file"), b"x");
    copy_here(&["link", "guest:to/followed"]).good();
    copy_here(&["guest:link", "followed"]).good();
    for name in ["to/followed", "followed"] {
        assert!(fs::symlink_metadata(folder.path(name)).expect("a file").is_file(), "{name}");
    }
    fs::create_dir(folder.path("sub")).expect("a folder");
    let mut command = lodger(["cp", "../file", "guest:"]);
    command.current_dir(folder.path("sub"));
    Running::start(command).finish().good();
    assert!(folder.path("sub/file").is_file());
    copy_here(&["./guest:odd", "guest:to"]).bad(125, &["guest:odd"]);
    copy_here(&["to", "guest:x"]).bad(125, &["is a directory", "-r"]);
    copy_here(&["guest:to", "x"]).bad(125, &["is a directory", "-r"]);
}

#[test]
fn a_link_at_the_destination_stands_for_its_file() {
    for into_guest in [true, false] {
        let folder = Folder::new();
        fs::write(folder.path("new"), "new").expect("a file");
        fs::create_dir(folder.path("far")).expect("a folder");
        fs::write(folder.path("far/file"), "old").expect("a file");
        symlink("far/file", folder.path("link")).expect("a link");
        symlink("far/later", folder.path("to be")).expect("a link");
        copy(into_guest, &folder.path("new"), &folder.path("link")).good();
        copy(into_guest, &folder.path("new"), &folder.path("to be")).good();
        assert_eq!(fs::read_link(folder.path("link")).expect("a link"), Path::new("far/file"));
        assert_eq!(fs::read_link(folder.path("to be")).expect("a link"), Path::new("far/later"));
        assert_eq!(fs::read(folder.path("far/file")).expect("a file"), b"new");
        assert_eq!(fs::read(folder.path("far/later")).expect("a file"), b"new");
    }
}

#[test]
fn a_folder_and_a_file_do_not_replace_each_other() {
    for into_guest in [true, false] {
        let folder = Folder::new();
        fs::create_dir_all(folder.path("tree/name")).expect("folders");
        fs::create_dir_all(folder.path("to/tree")).expect("folders");
        fs::write(folder.path("to/tree/name"), "a file").expect("a file");
        copy(into_guest, &folder.path("tree"), &folder.path("to")).bad(125, &["to/tree/name", "not replaced"]);
        assert_eq!(fs::read(folder.path("to/tree/name")).expect("a file"), b"a file");
        copy(into_guest, &folder.path("tree"), &folder.path("to/tree/name")).bad(125, &["not replaced"]);
        fs::write(folder.path("name"), "a file").expect("a file");
        fs::create_dir_all(folder.path("into/name")).expect("folders");
        copy(into_guest, &folder.path("name"), &folder.path("into")).bad(125, &["into/name", "not replaced"]);
        symlink("x", folder.path("link")).expect("a link");
        fs::create_dir_all(folder.path("into/link")).expect("folders");
        copy(into_guest, &folder.path("link"), &folder.path("into")).bad(125, &["into/link", "not replaced"]);
        assert!(folder.path("into/name").is_dir() && folder.path("into/link").is_dir());
    }
}

#[test]
fn sides_cannot_be_mixed() {
    for words in [&["a", "b"][..], &["guest:a", "guest:b"], &["guest:a", "b", "c"], &["a", "guest:b", "guest:c"]] {
        let words: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
        cp(&words).bad(125, &["guest:"]);
    }
    let folder = Folder::new();
    let (a, file) = (folder.path("a"), folder.path("file"));
    fs::write(&a, "").expect("a file");
    fs::write(&file, "").expect("a file");
    cp(&[a.as_os_str(), a.as_os_str(), &guest(&file)]).bad(125, &["not a directory"]);
    cp(&[&guest(&a), &guest(&a), file.as_os_str()]).bad(125, &["not a directory"]);
}

// What is no plain file

#[test]
fn files_of_the_kernel_are_read_whole_and_written_in_place() {
    let agent = Agent::start();
    let address = agent.address();
    let folder = Folder::new();
    let copy = |from: &str, to: &str| run(["cp", "--to", &address, from, to]);
    let out = folder.path("out");
    let out = out.to_str().expect("text");
    copy("guest:/proc/version", out).good();
    assert_eq!(fs::read(out).expect("a file"), fs::read("/proc/version").expect("a file"));
    let setting = format!("/proc/{}/oom_score_adj", agent.pid());
    fs::write(folder.path("in"), "77\n").expect("a file");
    copy(folder.path("in").to_str().expect("text"), &format!("guest:{setting}")).good();
    assert_eq!(fs::read_to_string(&setting).expect("a file"), "77\n");
    // The same the other way round.
    fs::write(folder.path("in"), "78\n").expect("a file");
    copy(&format!("guest:{}", folder.path("in").display()), &setting).good();
    assert_eq!(fs::read_to_string(&setting).expect("a file"), "78\n");
    fs::write(folder.path("in"), "not a number").expect("a file");
    let done = copy(folder.path("in").to_str().expect("text"), &format!("guest:{setting}"));
    done.bad(125, &["oom_score_adj", "invalid argument"]);
}

#[test]
fn devices_and_pipes_are_written_to_and_not_replaced() {
    let folder = Folder::new();
    let file = folder.path("file");
    fs::write(&file, noise(2, 300_000)).expect("a file");
    let done = cp(&[&guest(&file), OsStr::new("/dev/stdout")]);
    assert!(done.good() == fs::read(&file).expect("a file"));
    copy(true, &file, Path::new("/dev/null")).good();
    copy(false, &file, Path::new("/dev/null")).good();
    assert!(!fs::metadata("/dev/null").expect("a device").is_file());
    copy(true, &file, Path::new("/dev/full")).bad(125, &["/dev/full", "no space left on device"]);
    copy(false, &file, Path::new("/dev/full")).bad(125, &["/dev/full", "no space left on device"]);
    let mut command = lodger(["cp", "/dev/stdin"]);
    command.arg(guest(&folder.path("from stdin"))).stdin(Stdio::piped());
    let mut running = Running::start(command);
    running.stdin().write_all(b"piped").expect("the command reads");
    running.finish().good();
    assert_eq!(fs::read(folder.path("from stdin")).expect("a file"), b"piped");
    // stdout may be a file, to which others have written before.
    let both = folder.path("both");
    fs::write(&both, "before\n").expect("a file");
    let mut command = lodger(["cp"]);
    command.arg(guest(Path::new("/proc/version"))).arg("/dev/stdout").stderr(Stdio::piped());
    command.stdout(OpenOptions::new().append(true).open(&both).expect("a file"));
    Running::start_as_is(command).finish().good();
    let text = fs::read_to_string(&both).expect("a file");
    assert!(text.starts_with("before\nLinux version"), "{text}");
}

// Copies that fail

#[test]
fn a_copy_that_runs_out_of_room_leaves_what_was_there() {
    if !is_root() {
        eprintln!("left out: only root may mount");
        return;
    }
    let folder = Folder::new();
    let (big, room) = (folder.path("big"), folder.path("room"));
    fs::write(&big, noise(4, 3 << 20)).expect("a file");
    fs::create_dir(&room).expect("a folder");
    let script = r#"
        mount -t tmpfs -o size=1m tmpfs "$2" || exit 99
        echo old > "$2/file"
        "$0" cp --to local: "$1" "guest:$2/file"; echo $?
        "$0" cp --to local: "$1" "guest:$2/new"; echo $?
        "$0" cp --to local: "guest:$1" "$2/file"; echo $?
        "$0" cp --to local: "guest:$1" "$2/new"; echo $?
        ls -A "$2"; cat "$2/file""#;
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script, env!("CARGO_BIN_EXE_lodger")]).arg(&big).arg(&room);
    let done = Running::start(command).finish();
    if done.code == Some(99) || done.stderr().starts_with("unshare:") {
        eprintln!("left out: this root may not mount ({})", done.stderr().trim());
        return;
    }
    assert_eq!(done.stdout(), "125\n125\n125\n125\nfile\nold\n", "{}", done.stderr());
    assert_eq!(done.stderr().matches("no space left on device").count(), 4, "{}", done.stderr());
    assert!(done.stderr().contains("room/file") && done.stderr().contains("room/new"), "{}", done.stderr());
}

/// Waits until a copy has begun a file beside the old one, kills it, and looks at what it leaves.
fn kill_midway(running: Running, folder: &Folder) {
    let begun = || {
        let names = fs::read_dir(&folder.0).expect("a folder").map(|entry| entry.expect("an entry").file_name());
        names.into_iter().any(|name| name.as_bytes().starts_with(b".file"))
    };
    wait_until("the copy is under way", begun);
    assert_eq!(fs::read(folder.path("file")).expect("a file"), b"old");
    running.signal(SIGKILL);
    assert_eq!(running.finish().signal, Some(SIGKILL));
    assert_eq!(fs::read(folder.path("file")).expect("a file"), b"old");
}

#[test]
fn a_client_that_is_killed_on_the_way_in_leaves_the_old_file() {
    let folder = Folder::new();
    let (pipe, file) = (folder.path("pipe"), folder.path("file"));
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    fs::write(&file, "old").expect("a file");
    // Half of it comes, and no end.
    let mut feeder = OpenOptions::new().read(true).write(true).open(&pipe).expect("a pipe");
    let mut command = lodger(["cp"]);
    command.arg(&pipe).arg(guest(&file));
    let running = Running::start(command);
    feeder.write_all(&noise(1, 10_000)).expect("room");
    kill_midway(running, &folder);
}

#[test]
fn an_interrupted_copy_takes_away_what_it_began() {
    let folder = Folder::new();
    let (pipe, file) = (folder.path("pipe"), folder.path("file"));
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    fs::write(&file, "old").expect("a file");
    let mut feeder = OpenOptions::new().read(true).write(true).open(&pipe).expect("a pipe");
    let mut command = lodger(["cp"]);
    command.arg(&pipe).arg(guest(&file));
    let running = Running::start(command);
    let names = || fs::read_dir(&folder.0).expect("a folder").count();
    wait_until("the copy is under way", || names() > 2);
    running.signal(SIGINT);
    // Wakes the reader, which then notices; before that it may take one piece more.
    wait_until("the copy has ended", || {
        feeder.write_all(b"more").expect("room");
        !lives(running.pid())
    });
    running.finish().bad(130, &["interrupted"]);
    assert_eq!((names(), fs::read(&file).expect("a file")), (2, b"old".to_vec()));
}

#[test]
fn an_interrupted_copy_does_not_wait_for_ever() {
    let folder = Folder::new();
    let answer = |request: &FileRequest| (request.op != op::READ_AT).then(|| stat_answer(0o100_644, 9));
    let (address, agent) = false_agent(&folder, answer);
    let target = folder.path("file");
    let running = Running::start(lodger(["cp", "--to", &address, "guest:/x", target.to_str().expect("text")]));
    wait_until("the copy is under way", || fs::read_dir(&folder.0).expect("a folder").count() > 1);
    running.signal(SIGTERM);
    let done = running.finish();
    assert!(done.signal == Some(SIGTERM) && !target.exists(), "{done:?}");
    agent.join().expect("the agent ends");
}

/// An agent for one client that answers file operations as told; `None` is no answer at all.
fn false_agent(
    folder: &Folder,
    answer: impl Fn(&FileRequest) -> Option<FileResponse<'static>> + Send + 'static,
) -> (String, thread::JoinHandle<()>) {
    let socket = folder.path("sock");
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).expect("a socket");
    let agent = thread::spawn(move || {
        let mut peer = Peer::new(listener.accept().expect("a client").0);
        while let Some(item) = peer.receive() {
            match Frame::decode(&item).expect("a frame") {
                Frame::Hello(_) => {
                    peer.send(&Frame::Hello(Hello { revision: 1, program: "false".into(), ..Hello::default() }));
                }
                Frame::FileOp(request) => {
                    if let Some(response) = answer(&request) {
                        peer.send(&Frame::FileResp(FileResponse { id: request.id, ..response }));
                    }
                }
                _ => {}
            }
        }
    });
    (format!("unix:{}", socket.display()), agent)
}

/// An answer that tells of one file.
fn stat_answer(mode: u32, size: i64) -> FileResponse<'static> {
    FileResponse { stat: Some(Stat { mode, size, blocks: size, ..Stat::default() }), ..FileResponse::default() }
}

#[test]
fn a_copy_out_that_does_not_come_to_its_end_leaves_the_old_file() {
    let folder = Folder::new();
    fs::write(folder.path("file"), "old").expect("a file");
    let answer = |request: &FileRequest| match request.op {
        op::READ_AT if request.offset > 0 => None,
        op::READ_AT => Some(FileResponse { data: vec![1; 1000].into(), ..FileResponse::default() }),
        _ => Some(stat_answer(0o100_644, 100_000)),
    };
    let (address, agent) = false_agent(&folder, answer);
    let target = folder.path("file");
    let words = ["cp", "--to", &address, "guest:/file", target.to_str().expect("text")];
    kill_midway(Running::start(lodger(words)), &folder);
    agent.join().expect("the agent ends");
    // One that ends with an error takes away what it began.
    for entry in fs::read_dir(&folder.0).expect("a folder").map(|entry| entry.expect("an entry")) {
        if entry.file_name().as_bytes().starts_with(b".file") {
            fs::remove_file(entry.path()).expect("a file");
        }
    }
    let answer = |request: &FileRequest| match request.op {
        op::READ_AT if request.offset > 0 => {
            Some(FileResponse { errno: 5, error: "input/output error".into(), ..FileResponse::default() })
        }
        op::READ_AT => Some(FileResponse { data: vec![1; 1000].into(), ..FileResponse::default() }),
        _ => Some(stat_answer(0o100_644, 100_000)),
    };
    let (address, agent) = false_agent(&folder, answer);
    let words = ["cp", "--to", &address, "guest:/file", target.to_str().expect("text")];
    run(words).bad(125, &["/file", "input/output error"]);
    agent.join().expect("the agent ends");
    assert_eq!(fs::read(&target).expect("a file"), b"old");
    let names = fs::read_dir(&folder.0).expect("a folder").map(|entry| entry.expect("an entry").file_name());
    assert!(names.into_iter().all(|name| name == "file" || name == "sock"));
}

#[test]
fn a_guest_cannot_make_us_write_elsewhere_by_names() {
    let folder = Folder::new();
    let to = folder.path("to");
    fs::create_dir(&to).expect("a folder");
    for name in [&b"../escaped"[..], b"/tmp/escaped", b"..", b".", b"", b"a/b"] {
        let answer = move |request: &FileRequest| match request.op {
            op::STAT | op::LSTAT if request.path == b"/evil" => Some(stat_answer(0o040_755, 0)),
            op::READ_DIR => {
                let entries = vec![Stat { name: name.to_vec(), mode: 0o100_644, ..Stat::default() }];
                Some(FileResponse { entries, ..FileResponse::default() })
            }
            _ => Some(stat_answer(0o100_644, 0)),
        };
        let (address, agent) = false_agent(&folder, answer);
        let done = run(["cp", "--to", &address, "-r", "guest:/evil", to.to_str().expect("text")]);
        done.bad(125, &["listing with the name"]);
        agent.join().expect("the agent ends");
        assert!(!folder.path("escaped").exists() && !Path::new("/tmp/escaped").exists());
    }
}

#[test]
fn a_guest_cannot_make_us_write_elsewhere_by_links() {
    let folder = Folder::new();
    let (to, outside) = (folder.path("to"), folder.path("outside"));
    fs::create_dir(&to).expect("a folder");
    fs::create_dir(&outside).expect("a folder");
    fs::write(outside.join("mine"), "mine").expect("a file");
    // What a copy has made of the guest's links: the next one finds folders and files in their place.
    fs::create_dir(to.join("tree")).expect("a folder");
    symlink(&outside, to.join("tree/folder")).expect("a link");
    symlink(outside.join("mine"), to.join("tree/file")).expect("a link");
    symlink(outside.join("later"), to.join("tree/dangling")).expect("a link");
    symlink(outside.join("mine"), to.join("named")).expect("a link");
    symlink("/dev/null", to.join("tree/device")).expect("a link");
    let evil = folder.path("evil");
    fs::create_dir_all(evil.join("tree/folder")).expect("folders");
    for name in ["tree/folder/mine", "tree/folder/new", "tree/file", "tree/dangling", "tree/device", "named"] {
        fs::write(evil.join(name), "evil").expect("a file");
    }
    copy(false, &evil.join("tree"), &to).bad(125, &["to/tree/folder", "not replaced"]);
    copy(false, &evil.join("named"), &to).good();
    let names: Vec<_> =
        fs::read_dir(&outside).expect("a folder").map(|entry| entry.expect("an entry").file_name()).collect();
    assert_eq!(names, ["mine"]);
    assert_eq!(fs::read(outside.join("mine")).expect("a file"), b"mine");
    for name in ["tree/file", "tree/dangling", "tree/device", "named"] {
        assert!(fs::symlink_metadata(to.join(name)).expect("a file").is_file(), "{name}");
    }
}

#[test]
fn a_listing_cannot_lead_us_out_by_naming_a_link_and_a_folder_alike() {
    let folder = Folder::new();
    let (to, outside) = (folder.path("to"), folder.path("outside"));
    fs::create_dir(&outside).expect("a folder");
    let leads_to = outside.as_os_str().as_bytes().to_vec();
    let count = std::sync::atomic::AtomicU32::new(0);
    let answer = move |request: &FileRequest| match (request.op, &request.path[..]) {
        (op::READ_DIR, b"/evil") => {
            let entry = |mode| Stat { name: b"twice".to_vec(), mode, ..Stat::default() };
            Some(FileResponse { entries: vec![entry(0o120_777), entry(0o040_755)], ..FileResponse::default() })
        }
        (op::READ_DIR, _) => {
            let entries = vec![Stat { name: b"escaped".to_vec(), mode: 0o100_644, ..Stat::default() }];
            Some(FileResponse { entries, ..FileResponse::default() })
        }
        (op::READLINK, _) => Some(FileResponse { path: leads_to.clone(), ..FileResponse::default() }),
        // First it is a link, then a folder.
        (op::LSTAT, b"/evil/twice") => match count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => Some(stat_answer(0o120_777, 0)),
            _ => Some(stat_answer(0o040_755, 0)),
        },
        (op::STAT | op::LSTAT, b"/evil") => Some(stat_answer(0o040_755, 0)),
        (op::READ_AT, _) => Some(FileResponse { eof: true, ..FileResponse::default() }),
        _ => Some(stat_answer(0o100_644, 0)),
    };
    let (address, agent) = false_agent(&folder, answer);
    let done = run(["cp", "--to", &address, "-r", "guest:/evil", to.to_str().expect("text")]);
    done.bad(125, &["to/twice", "not replaced"]);
    agent.join().expect("the agent ends");
    assert!(to.join("twice").is_symlink() && !outside.join("escaped").exists());
}
