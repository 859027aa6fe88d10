//! Guests for tests: what they need, `lodger vm`, and a guest that stays.
#![allow(dead_code)] // Each test file uses its own part of this.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::lives;

/// Longest time for one guest's whole life; the usual one is 2 to 3 s. Without KVM, on a machine with eight other things to do, 13 s go by
/// before its agent answers.
pub const GUEST_PATIENCE: Duration = Duration::from_secs(100);

/// The same as an option's value.
pub fn patience() -> String {
    GUEST_PATIENCE.as_secs().to_string()
}

/// The static binary, and that everything else is there; `None` when the test must be skipped.
pub fn lodger(test: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let static_binary = std::env::var_os("LODGER_STATIC")
        .map_or_else(|| root.join("target/x86_64-unknown-linux-musl/release/lodger"), PathBuf::from);
    let on_path = |name: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
    };
    let kernel = std::env::var_os("LODGER_KERNEL").is_some()
        || fs::read_dir(root.join("build/kernel/boot")).is_ok_and(|mut entries| entries.next().is_some());
    let missing = [
        ("the static binary (cargo build --release --target x86_64-unknown-linux-musl)", static_binary.is_file()),
        ("qemu-system-x86_64", on_path("qemu-system-x86_64")),
        ("a kernel (initramfs/fetch-kernel.sh)", kernel),
        ("busybox", on_path("busybox")),
    ];
    let missing: Vec<&str> = missing.iter().filter(|(_, there)| !there).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        return Some(static_binary);
    }
    let text = format!("{test} was skipped: there is no {}", missing.join(", no "));
    assert!(std::env::var_os("LODGER_REQUIRE_GUEST").is_none_or(|value| value.is_empty()), "{text}");
    // Straight to the descriptor: the harness would keep the words of a test that passes to itself.
    let _ = writeln!(std::io::stderr(), "{text}");
    None
}

/// `lodger vm` with these options, which runs these words.
pub fn vm(lodger: &Path, options: &[&str], words: &[&str]) -> Command {
    let mut command = Command::new(lodger);
    command.args(["vm", "-q", "--timeout", &patience(), "--wait", &patience()]).args(options).arg("--").args(words);
    command.stdin(Stdio::null());
    command
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Output {
    command.output().expect("lodger starts")
}

/// What a program said, as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Waits until `condition`, which a guest has to bring about, holds, or the test has failed.
pub fn wait_for_guest(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + GUEST_PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "in vain waited until {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// What a guest says here when it is ready. `look` fails the test when none of it is left to wait for.
pub fn hear_ready(listener: &UnixListener, look: impl Fn()) -> String {
    listener.set_nonblocking(true).expect("a socket");
    let mut socket = None;
    wait_for_guest("the guest is ready", || {
        socket = listener.accept().ok();
        if socket.is_none() {
            look();
        }
        socket.is_some()
    });
    let (mut socket, _) = socket.expect("waited for");
    socket.set_nonblocking(false).expect("a socket");
    socket.set_read_timeout(Some(GUEST_PATIENCE)).expect("a time-out");
    let mut message = String::new();
    socket.read_to_string(&mut message).expect("a message up to its end");
    message
}

/// A guest that stays, until it is dropped.
pub struct Kept {
    pub lodger: PathBuf,
    pub address: String,
    pub pid: u32,
}

impl Kept {
    pub fn start(lodger: &Path, options: &[&str]) -> Kept {
        let mut command = Command::new(lodger);
        command.args(["vm", "-q", "--keep", "--wait", &patience()]).args(options).stdin(Stdio::null());
        let output = run(&mut command);
        let said = text(&output.stderr);
        assert!(output.status.success(), "{said}");
        let address = said.split("--to ").nth(1).and_then(|rest| rest.split_whitespace().next()).expect("an address");
        let pid = said.split("process ").nth(1).and_then(|rest| rest.split(';').next()).expect("a process");
        Kept { lodger: lodger.to_owned(), address: address.to_owned(), pid: pid.parse().expect("a number") }
    }

    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.lodger);
        command.args(words).env("LODGER_TO", &self.address).stdin(Stdio::null());
        command
    }

    pub fn shell(&self, script: &str) -> String {
        let output = run(&mut self.command(&["exec", "--", "sh", "-c", script]));
        assert!(output.status.success(), "{script}: {}", text(&output.stderr));
        text(&output.stdout)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // A guest that has ended has given its number back, perhaps to somebody else.
        let line = fs::read_to_string(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        if line.contains("qemu") {
            let _ = lodger::sys::signal::send(self.pid as i32, lodger::sys::signal::SIGKILL);
        }
        if let Some(folder) = self.address.strip_prefix("serial:").and_then(|path| Path::new(path).parent()) {
            let _ = fs::remove_dir_all(folder);
        }
    }
}

/// Ends a client, with whatever it has started, when a test fails half-way.
pub struct Client(pub Child);

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Processes whose command line has this word.
pub fn processes_with(word: &str) -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("processes").flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    numbers
        .filter(|pid| text(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()).contains(word) && lives(*pid))
        .collect()
}

/// The kernel that guests boot.
pub fn kernel() -> PathBuf {
    if let Some(kernel) = std::env::var_os("LODGER_KERNEL") {
        return PathBuf::from(kernel);
    }
    let boot = Path::new(env!("CARGO_MANIFEST_DIR")).join("build/kernel/boot");
    let entries = fs::read_dir(boot).expect("fetched kernels").flatten().map(|entry| entry.path());
    let is_kernel =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"));
    entries.filter(is_kernel).max().expect("a kernel")
}
