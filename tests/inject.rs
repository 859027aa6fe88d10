//! `file.inject` of a real agent.
#![cfg(feature = "openstack")]

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use data_encoding::BASE64;
use lodger::sys::process::effective_user;
use serde_json::Value;
use support::{Agent, Folder};

/// The exit status and the response of a call.
fn inject(agent: &Agent, path: &str, content: &[u8]) -> (Option<i32>, Value) {
    let (path, content) = (format!("path={path}"), format!("content_base64={}", BASE64.encode(content)));
    let words = ["call", "--to", &agent.address(), "file.inject", &path, &content];
    let output = Command::new(env!("CARGO_BIN_EXE_lodger")).args(words).stdin(Stdio::null()).output().expect("lodger");
    (output.status.code(), serde_json::from_slice(&output.stdout).expect("a response"))
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it is there").permissions().mode() & 0o7777
}

#[test]
fn files_are_injected_with_their_directories() {
    let (agent, folder) = (Agent::start(), Folder::new());
    let every_byte: Vec<u8> = (0..=255).collect();
    let path = folder.path("a/b/file");
    let (code, reply) = inject(&agent, path.to_str().expect("text"), &every_byte);
    assert_eq!((code, &reply["changed"], &reply["backup"]), (Some(0), &Value::Bool(true), &Value::Null));
    assert_eq!(fs::read(&path).expect("it"), every_byte);
    assert_eq!((mode(&path), mode(&folder.path("a")), mode(&folder.path("a/b"))), (0o644, 0o755, 0o755));
    let key = folder.path("home/.ssh/authorized_keys");
    assert_eq!(inject(&agent, key.to_str().expect("text"), b"").0, Some(0), "an empty file is one");
    assert_eq!((mode(&key), mode(&folder.path("home/.ssh")), mode(&folder.path("home"))), (0o600, 0o700, 0o755));
}

#[test]
fn the_old_file_is_kept_and_gives_its_mode() {
    let (agent, folder) = (Agent::start(), Folder::new());
    let (path, link) = (folder.path("file"), folder.path("link"));
    fs::write(&path, "old").expect("a file");
    fs::set_permissions(&path, Permissions::from_mode(0o4751)).expect("a mode");
    symlink("file", &link).expect("a link");
    let (code, reply) = inject(&agent, link.to_str().expect("text"), b"new");
    assert_eq!((code, &reply["changed"]), (Some(0), &Value::Bool(true)), "{reply}");
    let backup = reply["backup"].as_str().expect("a name").to_owned();
    assert!(backup.starts_with(&format!("{}.bak.", fs::canonicalize(&path).expect("it").display())), "{backup}");
    assert_eq!((fs::read(&path).expect("it"), fs::read(&backup).expect("it")), (b"new".to_vec(), b"old".to_vec()));
    assert!(mode(&path) == 0o4751 && fs::symlink_metadata(&link).expect("it").is_symlink());
    let (code, reply) = inject(&agent, path.to_str().expect("text"), b"new");
    assert_eq!((code, &reply["changed"], &reply["backup"]), (Some(0), &Value::Bool(false), &Value::Null));
    assert_eq!(fs::read_dir(&folder.0).expect("a folder").count(), 3, "file, link and one old file");
}

#[test]
fn a_link_that_leads_nowhere_leads_to_the_new_file() {
    let (agent, folder) = (Agent::start(), Folder::new());
    let (link, target) = (folder.path("link"), folder.path("new/target"));
    symlink("new/target", &link).expect("a link");
    assert_eq!(inject(&agent, link.to_str().expect("text"), b"x").0, Some(0));
    assert!(fs::symlink_metadata(&link).expect("it").is_symlink());
    assert_eq!(fs::read(&target).expect("it"), b"x");
    symlink("round", folder.path("round")).expect("a link");
    let (code, reply) = inject(&agent, folder.path("round").to_str().expect("text"), b"x");
    assert!(code == Some(1) && reply.to_string().contains("symbolic links"), "{reply}");
}

#[test]
fn as_root_a_users_link_leads_nowhere_and_his_new_files_are_his() {
    if effective_user() != 0 {
        return eprintln!("skipped: only root can make files of other users");
    }
    let (agent, folder) = (Agent::start(), Folder::new());
    let (home, secret) = (folder.path("home"), folder.path("secret"));
    fs::create_dir(&home).expect("a folder");
    fs::create_dir(&secret).expect("a folder");
    chown(&home, Some(1000), Some(1001)).expect("root may");
    let link = home.join(".ssh");
    symlink(&secret, &link).expect("a link");
    lchown(&link, Some(1000), Some(1001)).expect("root may");
    let keys = home.join(".ssh/authorized_keys");
    let (code, reply) = inject(&agent, keys.to_str().expect("text"), b"x");
    assert!(code == Some(15) && reply.to_string().contains("is a link of user 1000"), "{reply}");
    assert_eq!(fs::read_dir(&secret).expect("a folder").count(), 0);
    fs::remove_file(&link).expect("it is there");
    assert_eq!(inject(&agent, keys.to_str().expect("text"), b"x").0, Some(0));
    for path in [&keys, &link] {
        let found = fs::metadata(path).expect("it");
        assert_eq!((found.uid(), found.gid()), (1000, 1001), "{}", path.display());
    }
    // One of root's is followed.
    symlink(&home, folder.path("short")).expect("a link");
    let (code, reply) = inject(&agent, folder.path("short/file").to_str().expect("text"), b"x");
    assert_eq!(code, Some(0), "{reply}");
}

#[test]
fn callers_at_once_lose_no_file() {
    let (agent, folder) = (Agent::start(), Folder::new());
    let path = folder.path("file");
    fs::write(&path, "first").expect("a file");
    std::thread::scope(|scope| {
        for number in 0..8 {
            let (agent, path) = (&agent, path.to_str().expect("text"));
            scope.spawn(move || assert_eq!(inject(agent, path, format!("number {number}").as_bytes()).0, Some(0)));
        }
    });
    let all = fs::read_dir(&folder.0).expect("a folder").map(|entry| fs::read(entry.expect("it").path()).expect("it"));
    let mut all: Vec<Vec<u8>> = all.collect();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 9, "the first one and those of all callers");
}

#[test]
fn paths_that_are_no_files_are_refused() {
    let (agent, folder) = (Agent::start(), Folder::new());
    fs::write(folder.path("file"), "x").expect("a file");
    let inside = |name: &str| folder.path(name).display().to_string();
    for (path, status) in [
        ("relative".to_owned(), 12),
        (String::new(), 12),
        ("/".to_owned(), 12),
        (inside("new/"), 12),
        (inside(""), 12),
        (inside(".."), 12),
        (inside("file/below"), 1),
        ("/dev/null".to_owned(), 12),
        ("/proc/new/file".to_owned(), 14),
        (inside(&"n".repeat(256)), 1),
    ] {
        let (code, reply) = inject(&agent, &path, b"y");
        assert_eq!(code, Some(status), "{path}: {reply}");
    }
    assert_eq!(fs::read_dir(&folder.0).expect("a folder").count(), 1, "nothing was made");
}
