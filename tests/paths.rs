//! Path queries over the wire: which executables an agent has.

mod support;

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use ciborium::Value;
use lodger::wire::file::{FileRequest, op};
use lodger::wire::frame::{Config, Frame, PathEntry};

use support::{Agent, Folder, Peer};

/// Makes an executable file, and the directories above it.
fn tool(path: &Path, mode: u32) {
    fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
    fs::write(path, "#!/bin/sh\n").expect("a file");
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
}

fn directories(folder: &Folder, names: &[&str]) -> Vec<Vec<u8>> {
    names.iter().map(|name| folder.path(name).as_os_str().as_bytes().to_vec()).collect()
}

fn entries(item: &[u8]) -> Option<Vec<PathEntry>> {
    ciborium::from_reader::<Value, _>(item).expect("an independent decoder reads the item");
    match Frame::decode(item) {
        Ok(Frame::PathInfo { entries }) => entries,
        other => panic!("no path info: {other:?}"),
    }
}

/// Asks as upstream's client does: a connection for one query, which ends behind the answer.
fn query(agent: &Agent, paths: Vec<Vec<u8>>) -> Vec<PathEntry> {
    let mut peer = agent.connect();
    let found = entries(&peer.ask(&Frame::PathQuery { paths }));
    assert_eq!(peer.receive(), None, "the connection ends behind the answer");
    assert!(found.as_ref().is_none_or(|found| !found.is_empty()), "nothing found is null, no empty list");
    found.unwrap_or_default()
}

fn paths_of(folder: &Folder, found: &[PathEntry]) -> Vec<String> {
    let relative = |entry: &PathEntry| {
        let path = Path::new(OsStr::from_bytes(&entry.path));
        path.strip_prefix(&folder.0).expect("a path in the folder").to_string_lossy().into_owned()
    };
    found.iter().map(relative).collect()
}

#[test]
fn the_first_executable_of_a_name_wins_and_others_do_not_hide_it() {
    let (agent, folder) = (Agent::start(), Folder::new());
    tool(&folder.path("a/both"), 0o755);
    tool(&folder.path("b/both"), 0o755);
    tool(&folder.path("a/hidden"), 0o644);
    tool(&folder.path("b/hidden"), 0o755);
    fs::create_dir(folder.path("a/directory")).expect("a directory");
    tool(&folder.path("b/directory"), 0o755);
    symlink("nowhere", folder.path("a/dangling")).expect("a link");
    tool(&folder.path("b/dangling"), 0o755);
    let found = query(&agent, directories(&folder, &["a", "b"]));
    assert_eq!(paths_of(&folder, &found), ["a/both", "b/dangling", "b/directory", "b/hidden"]);
    let found = query(&agent, directories(&folder, &["b", "a", "b"]));
    assert_eq!(paths_of(&folder, &found), ["b/both", "b/dangling", "b/directory", "b/hidden"]);
}

#[test]
fn names_of_a_directory_come_in_byte_order() {
    let (agent, folder) = (Agent::start(), Folder::new());
    let names = ["B", "Z", "a", "a-b", "ab", "b", "é", "z"];
    names.iter().for_each(|name| tool(&folder.path(&format!("d/{name}")), 0o711));
    let found = query(&agent, directories(&folder, &["d"]));
    let mut expected = names.to_vec();
    expected.sort_by_key(|name| name.as_bytes());
    assert_eq!(
        found.iter().map(|entry| entry.name.as_slice()).collect::<Vec<_>>(),
        expected.iter().map(|name| name.as_bytes()).collect::<Vec<_>>()
    );
}

#[test]
fn an_entry_tells_what_a_link_leads_to_and_only_permissions() {
    let (agent, folder) = (Agent::start(), Folder::new());
    for (name, mode) in [("all", 0o7777), ("group", 0o610), ("other", 0o601), ("owner", 0o500)] {
        tool(&folder.path(&format!("d/{name}")), mode);
    }
    tool(&folder.path("away/target"), 0o4750);
    symlink("../away/target", folder.path("d/link")).expect("a link");
    let found = query(&agent, directories(&folder, &["d"]));
    let modes: Vec<(&[u8], u32)> = found.iter().map(|entry| (&entry.name[..], entry.mode)).collect();
    let expected: [(&[u8], u32); 5] =
        [(b"all", 0o777), (b"group", 0o610), (b"link", 0o750), (b"other", 0o601), (b"owner", 0o500)];
    assert_eq!(modes, expected);
    let truth = fs::metadata(folder.path("away/target")).expect("metadata");
    assert_eq!(found[2].size as u64, truth.len());
    assert_eq!(found[2].modified_ns, truth.mtime() * 1_000_000_000 + truth.mtime_nsec());
    assert_eq!(paths_of(&folder, &found)[2], "d/link", "the path is the link's");
}

#[test]
fn directories_that_are_none_are_passed_over() {
    let (agent, folder) = (Agent::start(), Folder::new());
    tool(&folder.path("d/tool"), 0o755);
    tool(&folder.path("file"), 0o755);
    fs::create_dir(folder.path("empty")).expect("a directory");
    let status = Command::new("mkfifo").arg(folder.path("fifo")).status().expect("mkfifo");
    assert!(status.success());
    let mut paths = directories(&folder, &["missing", "file", "empty", "fifo", "a\0b"]);
    paths.insert(0, Vec::new());
    paths.push("x".repeat(5000).into_bytes());
    assert_eq!(query(&agent, paths.clone()), []);
    paths.extend(directories(&folder, &["d//../d/."]));
    let found = query(&agent, paths);
    assert_eq!(paths_of(&folder, &found), ["d/tool"], "and the path is clean");
}

#[test]
fn a_directory_that_cannot_be_read_is_passed_over_by_root_too() {
    let folder = Folder::new();
    tool(&folder.path("closed/never"), 0o755);
    tool(&folder.path("d/tool"), 0o755);
    fs::set_permissions(folder.path("closed"), fs::Permissions::from_mode(0o000)).expect("a mode");
    let agent = if fs::read_dir(folder.path("closed")).is_err() {
        Agent::start()
    } else {
        // Root without the right to read what it may not.
        let words = ["--bounding-set", "-dac_override,-dac_read_search"];
        if !Command::new("setpriv").args(words).arg("true").status().is_ok_and(|status| status.success()) {
            let _ = writeln!(io::stderr(), "skipped: root reads every directory, and there is no setpriv");
            return;
        }
        Agent::start_with(|command| {
            let mut wrapped = Command::new("setpriv");
            wrapped.args(words).arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
            *command = wrapped;
        })
    };
    let found = query(&agent, directories(&folder, &["closed", "d"]));
    assert_eq!(paths_of(&folder, &found), ["d/tool"]);
    fs::set_permissions(folder.path("closed"), fs::Permissions::from_mode(0o700)).expect("a mode");
}

#[test]
fn no_directories_mean_the_agent_s_path() {
    let folder = Folder::new();
    tool(&folder.path("one/tool"), 0o755);
    tool(&folder.path("two/tool"), 0o755);
    tool(&folder.path("two/other"), 0o755);
    let path = format!("{0}/one::/missing:{0}/two", folder.0.display());
    let agent = Agent::start_with(|command| {
        command.env("PATH", &path);
    });
    assert_eq!(paths_of(&folder, &query(&agent, Vec::new())), ["one/tool", "two/other"]);
    // Without "q", with null for it, with null for the list.
    for bytes in [&b"\xa1\x61t\x09"[..], b"\xa2\x61t\x09\x61q\xf6", b"\xa2\x61t\x09\x61q\xa1\x65paths\xf6"] {
        let mut peer = agent.connect();
        peer.send_bytes(bytes);
        let found = entries(&peer.receive().expect("an answer")).expect("entries");
        assert_eq!(paths_of(&folder, &found), ["one/tool", "two/other"]);
        assert_eq!(peer.receive(), None);
    }
    let bare = Agent::start_with(|command| {
        command.env_remove("PATH");
    });
    assert_eq!(query(&bare, Vec::new()), []);
}

#[test]
fn nothing_found_is_null() {
    let agent = Agent::start();
    let mut peer = agent.connect();
    let item = peer.ask(&Frame::PathQuery { paths: vec![b"/missing".to_vec()] });
    // {"i": {"entries": null}, "t": 10}
    assert_eq!(item, b"\xa2\x61i\xa1\x67entries\xf6\x61t\x0a");
}

#[test]
fn a_name_that_is_not_utf_8_is_told_in_text_and_bytes() {
    let (agent, folder) = (Agent::start(), Folder::new());
    let raw = folder.path("d").join(OsStr::from_bytes(b"caf\xe9"));
    tool(&raw, 0o755);
    let mut peer = agent.connect();
    let item = peer.ask(&Frame::PathQuery { paths: directories(&folder, &["d"]) });
    let found = entries(&item).expect("entries");
    assert_eq!((&found[0].name[..], &found[0].path[..]), (&b"caf\xe9"[..], raw.as_os_str().as_bytes()));
    let text = "caf\u{efe9}".as_bytes();
    assert!(item.windows(text.len()).any(|window| window == text), "upstream's clients see an escaped text");
    // The query has the directory's name in the same escaped text, and no bytes.
    let folder = Folder::new();
    tool(&folder.0.join(OsStr::from_bytes(b"\xff")).join("tool"), 0o755);
    let paths = vec![folder.0.join(OsStr::from_bytes(b"\xff")).as_os_str().as_bytes().to_vec()];
    assert_eq!(query(&agent, paths).len(), 1);
}

#[test]
fn without_hello_a_query_is_the_only_job_of_its_connection() {
    let (agent, folder) = (Agent::start(), Folder::new());
    tool(&folder.path("d/tool"), 0o755);
    let ask = Frame::PathQuery { paths: directories(&folder, &["d"]) };
    let stat = FileRequest {
        op: op::REMOVE,
        path: folder.path("d/tool").as_os_str().as_bytes().to_vec(),
        ..FileRequest::default()
    };
    let mut peer = agent.connect();
    let both = [ask.to_bytes(), ask.to_bytes(), Frame::FileOp(stat).to_bytes()].concat();
    peer.send_bytes(&both);
    assert_eq!(entries(&peer.receive().expect("an answer")).expect("entries").len(), 1);
    assert_eq!(peer.receive(), None, "the second query and the file operation are not heard");
    assert!(folder.path("d/tool").exists());
    let mut peer: Peer = agent.connect();
    peer.send(&Frame::Config(Config::default()));
    assert_eq!(entries(&peer.ask(&ask)).expect("entries").len(), 1, "a Config may come first");
    assert_eq!(peer.receive(), None);
}

#[test]
fn after_hello_queries_may_be_repeated() {
    let (agent, folder) = (Agent::start(), Folder::new());
    tool(&folder.path("d/tool"), 0o755);
    let mut peer = agent.hello();
    for count in [1, 0, 1] {
        let name = if count == 1 { "d" } else { "missing" };
        let item = peer.ask(&Frame::PathQuery { paths: directories(&folder, &[name]) });
        assert_eq!(entries(&item).unwrap_or_default().len(), count);
    }
}
