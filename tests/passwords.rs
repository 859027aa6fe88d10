//! `user.set-password` against real shadow files, each in a mount namespace of its own, so that this machine's is never touched. Needs root.
#![cfg(feature = "openstack")]

mod support;

use std::fs::{self, Permissions};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use lodger::sys::file;
use lodger::sys::process::effective_user;
use support::{Folder, lives, wait_until};

const LODGER: &str = env!("CARGO_BIN_EXE_lodger");

/// Says why nothing was tested, where that is so.
fn is_possible(test: &str) -> bool {
    let namespaces = || Command::new("unshare").args(["-m", "true"]).stderr(Stdio::null()).status();
    let possible = effective_user() == 0 && namespaces().is_ok_and(|status| status.success());
    if !possible {
        eprintln!("skipped {test}: needs root and mount namespaces");
    }
    possible
}

/// An `/etc` of a test, and an agent for which it is that.
struct Machine {
    folder: Folder,
    agent: Option<Child>,
}

impl Machine {
    fn new(shadow: &str) -> Machine {
        let machine = Machine { folder: Folder::new(), agent: None };
        fs::create_dir(machine.folder.path("etc")).expect("a folder");
        fs::write(machine.path("passwd"), "root:x:0:0:root:/root:/bin/sh\n").expect("a file");
        fs::write(machine.path("shadow"), shadow).expect("a file");
        fs::set_permissions(machine.path("shadow"), Permissions::from_mode(0o640)).expect("a mode");
        chown(machine.path("shadow"), Some(0), Some(42)).expect("root may");
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path("etc").join(name)
    }

    fn shadow(&self) -> String {
        fs::read_to_string(self.path("shadow")).expect("a shadow file")
    }

    /// Starts the agent; `options` of mount(8) for its `/etc`, and what to run it under.
    fn start(&mut self, options: &str, under: &str) {
        let (etc, socket) = (self.folder.path("etc"), self.folder.path("sock"));
        let script = format!(
            "mount --make-rprivate / && mount --bind '{0}' /etc && mount -o remount,bind,{options} /etc && \
             exec {under} '{LODGER}' serve --listen 'unix:{1}'",
            etc.display(),
            socket.display()
        );
        let log = fs::File::create(self.folder.path("log")).expect("a log");
        let mut agent = Command::new("unshare");
        agent.args(["-m", "sh", "-c", &script]).env("LODGER_LOG", "trace").stderr(log).stdin(Stdio::null());
        self.agent = Some(agent.spawn().expect("unshare"));
        // The file is there a moment before anybody may connect.
        wait_until("the agent listens", || UnixStream::connect(&socket).is_ok());
    }

    fn running(shadow: &str) -> Machine {
        let mut machine = Machine::new(shadow);
        machine.start("rw", "");
        machine
    }

    /// The exit status and the text of a call.
    fn call(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let to = format!("unix:{}", self.folder.path("sock").display());
        let output = Command::new(LODGER)
            .args(["call", "--to", &to, "user.set-password"])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("lodger");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(agent) = &mut self.agent {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

/// Whether the system's own crypt(3) takes the password for that hash.
fn verifies(password: &str, hash: &str) -> bool {
    let script = "exit(crypt($ARGV[0], $ARGV[1]) eq $ARGV[1] ? 0 : 1)";
    Command::new("perl").args(["-e", script, password, hash]).status().expect("perl").success()
}

#[test]
fn as_root_every_kind_of_old_entry_gets_a_hash_that_crypt_verifies() {
    if !is_possible("passwords of all old kinds") {
        return;
    }
    let machine = Machine::running("");
    for old in ["", "*", "!", "!*", "!$6$a$b", "$1$salt$hash", "$6$rounds=5000$salt$hash", "$y$j9T$salt$hash", "x"] {
        fs::write(machine.path("shadow"), format!("a:b:1::::::\nroot:{old}:19000:0:99999:7:::\nz:*:1::::::\n"))
            .expect("it");
        let password = format!("pässwörd of {old}");
        assert_eq!(machine.call(&[&format!("password={password}")]).0, Some(0), "{old}");
        let shadow = machine.shadow();
        let lines: Vec<&str> = shadow.lines().collect();
        assert_eq!((lines.len(), lines[0], lines[2]), (3, "a:b:1::::::", "z:*:1::::::"), "{old}");
        let fields: Vec<&str> = lines[1].split(':').collect();
        let today = (fs::metadata(machine.path("shadow")).expect("it").mtime() / 86_400).to_string();
        assert_eq!((fields[0], fields[2], fields[3], fields.len()), ("root", today.as_str(), "0", 9), "{old}");
        assert!(fields[1].starts_with("$6$") && verifies(&password, fields[1]), "{old}: {}", fields[1]);
        assert!(!verifies("another", fields[1]), "{old}");
        let found = fs::metadata(machine.path("shadow")).expect("it");
        assert_eq!((found.mode() & 0o7777, found.uid(), found.gid()), (0o640, 0, 42), "{old}");
    }
    let names = fs::read_dir(machine.folder.path("etc")).expect("a folder").count();
    assert_eq!(names, 3, "passwd, shadow and .pwd.lock, and no file that was forgotten");
    let log = fs::read_to_string(machine.folder.path("log")).expect("a log");
    assert!(log.contains("user root") && !log.contains("pässwörd") && !log.contains("$6$"), "{log}");
}

#[test]
fn as_root_a_hash_is_taken_as_it_is_and_bad_arguments_change_nothing() {
    if !is_possible("refused passwords") {
        return;
    }
    let machine = Machine::running("root:*:0:0:99999:7:::\nann:*:19000:0:99999:7:::\n");
    let before = machine.shadow();
    let long = format!("password={}", "x".repeat(512));
    for (arguments, status) in [
        (&[][..], 11),
        (&["password="], 12),
        (&["password=a\nb"], 12),
        (&[&*long], 12),
        (&["hash=plain"], 12),
        (&["hash=$6$a:b$c"], 12),
        (&["hash=$6$a$b", "password=x"], 12),
        (&["pasword=x"], 10),
        (&["password=x", "user=nobody-here"], 14),
        (&["password=x", "user=+"], 12),
        (&["password=x", "user=# root"], 12),
        (&["password=1.10"], 12),
        (&["password=-0"], 12),
    ] {
        let (code, text) = machine.call(arguments);
        assert_eq!(code, Some(status), "{arguments:?}: {text}");
        assert_eq!(machine.shadow(), before, "{arguments:?}");
    }
    assert_eq!(machine.call(&[&format!("password={}", "x".repeat(511))]).0, Some(0));
    // 0: the next login asks for another one, and still does.
    assert!(machine.shadow().starts_with("root:$6$") && machine.shadow().contains(":0:0:99999:7:::\nann:*:19000:"));
    assert_eq!(machine.call(&["user=ann", "hash=$y$j9T$a$b"]).0, Some(0));
    assert!(machine.shadow().contains("\nann:$y$j9T$a$b:"));
    fs::remove_file(machine.path("shadow")).expect("it was there");
    assert_eq!(machine.call(&["password=x"]).0, Some(14));
    assert!(!machine.path("shadow").exists());
}

#[test]
fn as_root_a_read_only_root_is_an_error() {
    if !is_possible("a read-only root") {
        return;
    }
    let mut machine = Machine::new("root:*:1::::::\n");
    machine.start("ro", "");
    let (code, text) = machine.call(&["password=x"]);
    assert!(code == Some(1) && text.contains("read-only"), "{code:?} {text}");
    assert_eq!(machine.shadow(), "root:*:1::::::\n");
}

#[test]
fn as_root_a_lock_is_waited_for() {
    if !is_possible("a held lock") {
        return;
    }
    let machine = Machine::running("root:*:1::::::\n");
    let lock = fs::File::create(machine.path(".pwd.lock")).expect("a lock file");
    assert!(file::lock_whole(lock.as_fd()).expect("a lock"));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let call = scope.spawn(|| machine.call(&["password=x"]));
        support::pause(Duration::from_millis(100));
        assert_eq!(machine.shadow(), "root:*:1::::::\n", "while it is held");
        drop(lock);
        assert_eq!(call.join().expect("a call").0, Some(0));
    });
    assert!(begun.elapsed() >= Duration::from_millis(100));
    assert!(machine.shadow().starts_with("root:$6$"));
}

/// The calls that put a new shadow file into place, each with how often it comes before; strace kills the agent as it enters it.
const STEPS: [(&str, u32); 6] =
    [("fchown", 1), ("fchmod", 1), ("fsync", 1), ("rename", 1), ("fsync", 2), ("renameat,renameat2,rename", 1)];

#[test]
fn as_root_whenever_the_agent_is_killed_there_is_the_old_file_or_the_new_one() {
    let has_strace = Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).status();
    if !is_possible("kills on the way") {
        return;
    }
    if !has_strace.is_ok_and(|status| status.success()) {
        eprintln!("skipped kills on the way: needs strace and the right to trace");
        return;
    }
    let old = "root:*:1::::::\n";
    let (mut before, mut after) = (0, 0);
    for (call, when) in STEPS {
        let mut machine = Machine::new(old);
        let log = machine.folder.path("strace");
        let under =
            format!("strace -f -qq -o '{}' -e trace={call} -e inject={call}:signal=KILL:when={when}", log.display());
        machine.start("rw", &under);
        let (code, text) = machine.call(&["password=x"]);
        assert_eq!(code, Some(125), "{call} {when}: the agent is killed: {text}");
        let shadow = machine.shadow();
        match shadow == old {
            true => before += 1,
            false => {
                after += 1;
                let hash = shadow.strip_prefix("root:").and_then(|rest| rest.split(':').next()).expect("a hash");
                assert!(verifies("x", hash) && shadow.ends_with("::::::\n"), "{call} {when}: {shadow}");
            }
        }
        let status: ExitStatus = machine.agent.as_mut().expect("it").wait().expect("its end");
        assert!(status.signal().is_some() || status.code() == Some(137), "{call} {when}: {status:?}");
        assert!(!lives(machine.agent.as_ref().expect("it").id()));
    }
    assert!(before > 0 && after > 0, "some steps are before the change ({before}), some after it ({after})");
}
