//! Commands that are executable files in a directory.

mod support;

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use lodger::commands::program::{LISTED_MAX, NAME_MAX, RESPONSE_MAX};
use lodger::commands::table::Table;
use lodger::proto::settings::Settings;
use lodger::proto::{self, Circumstances, Opening};
use lodger::stream::Stream;
use support::{Folder, lives, wait_until};

const UNKNOWN: &str = r#"{"Status":101,"StatusMessage":"Could not find a handler for the requested command"}"#;

/// A directory of commands, and a table that looks there.
struct Rig {
    folder: Folder,
    settings: Settings,
}

impl Rig {
    fn new() -> Rig {
        Rig::with(|table| table)
    }

    fn with(adjust: impl FnOnce(Table) -> Table) -> Rig {
        let folder = Folder::new();
        let directory = folder.path("commands.d");
        fs::create_dir(&directory).expect("a new folder");
        set_mode(&directory, 0o755);
        let settings = Settings::with(adjust(Table::of_agent().with_directory(directory)));
        Rig { folder, settings }
    }

    fn directory(&self) -> PathBuf {
        self.folder.path("commands.d")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    fn script(&self, name: &str, script: &str) -> PathBuf {
        install(&self.path(name), &format!("#!/bin/sh\n{script}\n"));
        self.path(name)
    }

    /// The answer's bytes to a request.
    fn ask(&self, request: &str) -> String {
        let (mut ours, theirs) = UnixStream::pair().expect("a pair");
        thread::scope(|scope| {
            scope.spawn(|| serve(theirs, &self.settings));
            ours.write_all(request.as_bytes()).expect("the agent reads");
            let mut answer = Vec::new();
            ours.read_to_end(&mut answer).expect("an answer");
            String::from_utf8(answer).expect("text")
        })
    }

    fn call(&self, name: &str) -> String {
        self.ask(&json!({ "Command": name }).to_string())
    }

    /// The text of a handler's error.
    fn error(&self, name: &str) -> String {
        let answer: Value = serde_json::from_str(&self.call(name)).expect("JSON");
        assert_eq!(answer["Status"], 105, "{answer}");
        answer["StatusMessage"].as_str().expect("a text").to_owned()
    }

    /// What `agent.commands` says of a command.
    fn listed(&self, name: &str) -> Option<Value> {
        let answer: Value = serde_json::from_str(&self.call("agent.commands")).expect("JSON");
        answer["commands"].as_array().expect("a list").iter().find(|command| command["name"] == name).cloned()
    }
}

fn serve(socket: UnixStream, settings: &Settings) {
    let (stop, _never) = lodger::sys::fd::pipe().expect("a pipe");
    let (accepted, stop) = (Instant::now(), stop.as_fd());
    let circumstances = Circumstances { pinned: None, opening: Opening::Peer, stop, accepted, settings };
    // A client that has gone is an error of its own.
    let _ = proto::serve(Stream::over(socket), &[], &circumstances);
}

/// Writes an executable file. By another process: one of ours that starts meanwhile in another test would have it open for writing for a
/// moment, and the file could not be executed.
fn install(path: &Path, content: &str) {
    let mut writer = Command::new("sh")
        .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .expect("a shell");
    writer.stdin.take().expect("a pipe").write_all(content.as_bytes()).expect("it reads");
    assert!(writer.wait().expect("our child").success());
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("our file");
}

fn is_root() -> bool {
    support::status(std::process::id(), "Uid") == 0
}

#[test]
fn request_and_response_pass_through_as_they_are() {
    let rig = Rig::new();
    assert_eq!(rig.call("echo"), UNKNOWN);
    rig.script("echo", "cat");
    let request = " {\"Command\":\"echo\", \"b\":1,\"a\":[\"ä\", {}]}";
    assert_eq!(rig.ask(request), request, "it works at once");
    rig.script("nothing", "exit 0");
    assert_eq!(rig.call("nothing"), "");
    rig.script("where", "echo $# $0 $LODGER_COMMAND; pwd; echo only a word >&2");
    assert_eq!(rig.call("where"), format!("0 {} where\n/\n", rig.path("where").display()));
    rig.script("deaf", "exec <&-; echo [1]");
    let long = json!({"Command": "deaf", "x": "x".repeat(300_000)}).to_string();
    assert_eq!(rig.ask(&long), "[1]\n");
    fs::remove_file(rig.path("echo")).expect("our file");
    assert_eq!(rig.call("echo"), UNKNOWN);
}

#[test]
fn the_agents_own_and_registered_names_come_first() {
    let rig = Rig::new();
    rig.script("agent.ping", "echo outside");
    rig.script("mine", "echo outside");
    assert_eq!(rig.call("agent.ping"), r#"{"Status":0,"StatusMessage":""}"#);
    rig.settings.commands.register("mine", Arc::new(|_| Ok(b"inside".to_vec()))).expect("a free name");
    assert_eq!(rig.call("mine"), "inside");
    assert_eq!(rig.listed("mine"), Some(json!({"name": "mine"})));
    rig.settings.commands.unregister("mine").expect("a known name");
    assert_eq!(rig.call("mine"), "outside\n");
}

#[test]
fn names_that_can_lead_elsewhere_are_unknown() {
    let rig = Rig::new();
    install(&rig.folder.path("above"), "#!/bin/sh\necho above\n");
    for name in [".hidden", "a.conf", "with space", "ä", &"x".repeat(NAME_MAX + 1)] {
        rig.script(name, "echo found");
        assert_eq!(rig.call(name), UNKNOWN, "{name}");
    }
    let absolute = rig.folder.path("above").display().to_string();
    for name in ["../above", "..", ".", "", "a/../../above", &absolute] {
        assert_eq!(rig.call(name), UNKNOWN, "{name}");
    }
    let longest = "x".repeat(NAME_MAX);
    rig.script(&longest, "echo found");
    assert_eq!(rig.call(&longest), "found\n");
}

#[test]
fn a_table_without_a_directory_finds_nothing_there_and_a_missing_one_is_normal() {
    let rig = Rig::with(|_| Table::empty());
    rig.script("echo", "cat");
    assert_eq!(rig.call("echo"), UNKNOWN);
    let rig = Rig::new();
    fs::remove_dir(rig.directory()).expect("an empty folder");
    assert_eq!(rig.call("echo"), UNKNOWN);
    assert!(rig.call("agent.commands").contains(r#""truncated":false"#));
}

#[test]
fn what_others_may_change_is_refused_and_said_so_in_the_list() {
    let rig = Rig::new();
    let script = rig.script("x", "echo ran");
    let file = format!("command {}", script.display());
    let directory = format!("commands directory {}", rig.directory().display());
    let refused = |text: String| {
        assert_eq!(rig.error("x"), text);
        assert_eq!(rig.listed("x"), Some(json!({"name": "x", "unusable": text})));
    };
    for mode in [0o775, 0o757, 0o1777] {
        set_mode(&rig.directory(), mode);
        refused(format!("{directory}: may be written to by others"));
        assert_eq!(rig.call("y"), UNKNOWN, "what is not there is no danger");
    }
    set_mode(&rig.directory(), 0o755);
    for mode in [0o775, 0o757] {
        set_mode(&script, mode);
        refused(format!("{file}: may be written to by others"));
    }
    set_mode(&script, 0o644);
    refused(format!("{file}: not executable"));
    set_mode(&script, 0o755);
    let sidecar = rig.path("x.conf");
    fs::write(&sidecar, "").expect("a file");
    set_mode(&sidecar, 0o666);
    refused(format!("{}: may be written to by others", sidecar.display()));
    set_mode(&sidecar, 0o644);
    assert_eq!(rig.call("x"), "ran\n");
    if is_root() {
        chown(&sidecar, Some(4242), None).expect("root may");
        refused(format!("{}: belongs to user 4242", sidecar.display()));
        fs::remove_file(&sidecar).expect("our file");
        chown(&script, Some(4242), None).expect("root may");
        refused(format!("{file}: belongs to user 4242"));
        chown(&script, Some(0), None).expect("root may");
        chown(rig.directory(), Some(4242), None).expect("root may");
        refused(format!("{directory}: belongs to user 4242"));
    }
}

#[test]
fn of_a_link_the_target_counts() {
    let rig = Rig::new();
    let target = rig.folder.path("target");
    install(&target, "#!/bin/sh\necho linked\n");
    symlink(&target, rig.path("x")).expect("a link");
    assert_eq!(rig.call("x"), "linked\n");
    set_mode(&target, 0o777);
    assert_eq!(rig.error("x"), format!("command {}: may be written to by others", rig.path("x").display()));
    fs::remove_file(&target).expect("our file");
    assert_eq!(rig.call("x"), UNKNOWN, "a link to nothing");
    fs::create_dir(rig.path("folder")).expect("a folder");
    assert_eq!(rig.error("folder"), format!("command {}: not a regular file", rig.path("folder").display()));
}

#[test]
fn an_end_that_is_no_success_is_an_error_with_the_first_line_of_what_was_said() {
    let rig = Rig::new();
    rig.script("status", "echo lost; printf 'why\\r\\nmore\\n' >&2; exit 3");
    assert_eq!(rig.error("status"), "status: exit status 3: why");
    rig.script("silent", "exit 255");
    assert_eq!(rig.error("silent"), "silent: exit status 255");
    rig.script("signal", "echo oh >&2; kill -SEGV $$");
    assert_eq!(rig.error("signal"), "signal: ended by SIGSEGV: oh");
    rig.script("long", "head -c 600 /dev/zero | tr '\\0' x >&2; exit 1");
    assert_eq!(rig.error("long"), format!("long: exit status 1: {}", "x".repeat(512)));
    install(&rig.path("lost"), "#!/no/such/interpreter\n");
    let lost = rig.path("lost").display().to_string();
    assert_eq!(rig.error("lost"), format!("execute {lost}: no such file or directory"));
    install(&rig.path("garbage"), "garbage");
    let garbage = rig.path("garbage").display().to_string();
    assert_eq!(rig.error("garbage"), format!("execute {garbage}: exec format error"));
}

#[test]
fn a_response_may_be_as_long_as_the_limit_and_no_longer() {
    let rig = Rig::new();
    rig.script("at", &format!("head -c {RESPONSE_MAX} /dev/zero"));
    assert_eq!(rig.call("at").len(), RESPONSE_MAX);
    rig.script("past", &format!("head -c {} /dev/zero", RESPONSE_MAX + 1));
    assert_eq!(rig.error("past"), format!("past: the response is longer than the limit of {RESPONSE_MAX} bytes"));
}

#[test]
fn a_time_below_a_second_is_told_as_it_is() {
    let rig = Rig::with(|table| table.with_time_limit(Duration::from_millis(50)));
    rig.script("slow", "sleep 9");
    assert_eq!(rig.error("slow"), "slow: not done within 50 ms");
}

#[test]
fn time_is_limited_by_the_table_and_by_the_sidecar() {
    let rig = Rig::with(|table| table.with_time_limit(Duration::from_secs(1)));
    let start = Instant::now();
    rig.script("slow", "trap '' HUP TERM; echo still >&2; while :; do sleep 9; done");
    assert_eq!(rig.error("slow"), "slow: not done within 1 s: still");
    assert!(start.elapsed() < Duration::from_secs(8));
    rig.script("slower", "sleep 4; echo done");
    assert_eq!(rig.error("slower"), "slower: not done within 1 s");
    fs::write(rig.path("slower.conf"), "timeout_seconds = 60\n").expect("a file");
    assert_eq!(rig.call("slower"), "done\n");
}

#[test]
fn a_sidecar_says_what_it_does_and_its_errors_name_file_and_line() {
    let rig = Rig::new();
    rig.script("x", "echo ran");
    let sidecar = rig.path("x.conf");
    let write = |text: &str| fs::write(&sidecar, text).expect("a file");
    assert_eq!(rig.listed("x"), Some(json!({"name": "x"})));
    write("# What it is.\n\n  summary=does = x  \ntimeout_seconds = 86400\n");
    assert_eq!(rig.listed("x"), Some(json!({"name": "x", "summary": "does = x"})));
    assert_eq!(rig.listed("x.conf"), None);
    assert_eq!(rig.call("x"), "ran\n");
    let name = sidecar.display();
    let range = "timeout_seconds: a number from 1 to 86400 is wanted, and not";
    for (text, error) in [
        ("\ntimeout_seconds = 0", format!("{name}:2: {range} 0")),
        ("timeout_seconds = 86401", format!("{name}:1: {range} 86401")),
        ("timeout_seconds = 5s", format!("{name}:1: {range} 5s")),
        ("# a\nsumary = x", format!("{name}:2: sumary: no such word")),
        ("summary", format!("{name}:1: no \"word = value\": summary")),
        ("summary = a\nsummary = b", format!("{name}:2: summary: stands there twice")),
    ] {
        write(text);
        assert_eq!(rig.error("x"), error);
        assert_eq!(rig.listed("x"), Some(json!({"name": "x", "unusable": error})));
    }
    write(&"#".repeat(4096));
    assert_eq!(rig.call("x"), "ran\n");
    write(&"#".repeat(4097));
    assert_eq!(rig.error("x"), format!("{name}: longer than the limit of 4096 bytes"));
    fs::remove_file(&sidecar).expect("our file");
    assert!(Command::new("mkfifo").arg(&sidecar).status().is_ok_and(|status| status.success()));
    assert_eq!(rig.error("x"), format!("{name}: not a regular file"));
}

#[test]
fn a_caller_that_goes_ends_the_program() {
    let rig = Rig::new();
    let file = rig.folder.path("pid");
    rig.script("wait", &format!("echo $$ > {0}.new; mv {0}.new {0}; sleep 100", file.display()));
    let (mut ours, theirs) = UnixStream::pair().expect("a pair");
    thread::scope(|scope| {
        scope.spawn(|| serve(theirs, &rig.settings));
        ours.write_all(br#"{"Command":"wait"}"#).expect("the agent reads");
        wait_until("it runs", || file.exists());
        let pid = fs::read_to_string(&file).expect("its number").trim().parse().expect("a number");
        assert!(lives(pid));
        drop(ours);
        wait_until("it is gone", || !lives(pid));
    });
}

#[test]
fn the_list_has_an_end() {
    let rig = Rig::new();
    let listed = || {
        let answer: Value = serde_json::from_str(&rig.call("agent.commands")).expect("JSON");
        let list = answer["commands"].as_array().expect("a list");
        let outside = list.iter().filter(|command| command.get("unusable").is_some()).count();
        (outside, answer["truncated"].as_bool())
    };
    for index in 0..LISTED_MAX {
        fs::write(rig.path(&format!("{index}")), "").expect("a file");
    }
    fs::write(rig.path("not a name"), "").expect("a file");
    assert_eq!(listed(), (LISTED_MAX, Some(false)));
    fs::write(rig.path("one more"), "").expect("a file");
    assert_eq!(listed(), (LISTED_MAX, Some(false)));
    fs::write(rig.path("one-more"), "").expect("a file");
    assert_eq!(listed(), (LISTED_MAX, Some(true)));
}
