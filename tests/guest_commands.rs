//! Commands in real guests: those that change the machine, and its end, whoever is process 1. What these tests need is told in tests/guest.rs.

#[path = "support/guest.rs"]
mod guest;
mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use guest::{Client, Kept, lodger, text};
use lodger::sys::fd;
use lodger::transport::{self, Addr};
use serde_json::{Value, json};
use support::{Folder, PATIENCE, lives, wait_until};

/// A guest that stays, and its console.
struct Guest {
    kept: Kept,
    console: PathBuf,
    _folder: Folder,
}

impl Guest {
    /// A guest with busybox; `add` gives more files, as their places in the guest and their contents, all of them programs.
    fn start(name: &str, add: &[(&str, &str)], more: &[&str]) -> Option<Guest> {
        let lodger = lodger(name)?;
        let folder = Folder::new();
        let console = folder.path("console");
        let mut options = vec!["--busybox".to_owned(), "--console".to_owned(), console.display().to_string()];
        for (place, content) in add {
            let file = folder.path(&place.replace('/', "_"));
            fs::write(&file, content).expect("a file");
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("its mode");
            options.extend(["--add".to_owned(), format!("{}:{place}", file.display())]);
        }
        let options: Vec<&str> = options.iter().map(String::as_str).chain(more.iter().copied()).collect();
        Some(Guest { kept: Kept::start(&lodger, &options), console, _folder: folder })
    }

    /// The same with another process 1, and therefore without modules; the agent is on the second serial line.
    fn with_process_1(name: &str, program: &str, add: &[(&str, &str)]) -> Option<Guest> {
        let no_modules = Folder::new();
        let append = format!("rdinit={program}");
        Guest::start(name, add, &["--modules", &no_modules.0.display().to_string(), "--append", &append])
    }

    /// The answer to one request, over the line.
    fn ask(&self, request: &Value) -> Value {
        let addr: Addr = self.kept.address.parse().expect("an address");
        let stream = transport::connect(&addr).expect("the guest's line");
        let request = request.to_string();
        assert_eq!(fd::write(stream.output(), request.as_bytes()).expect("room"), request.len());
        let mut answer = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let ready = fd::wait_for(stream.input(), fd::READ, Some(left)).expect("poll");
            assert!(ready.readable || ready.hung_up, "no answer to {request}: {}", text(&answer));
            if fd::read_append(stream.input(), &mut answer, 4096).expect("an answer") == 0 {
                break;
            }
        }
        stream.close(Duration::from_secs(1));
        serde_json::from_slice(&answer).unwrap_or_else(|error| panic!("{request}: {error}: {}", text(&answer)))
    }

    fn call(&self, request: Value) -> Value {
        let answer = self.ask(&request);
        assert_eq!(answer["Status"], 0, "{request}: {answer}");
        answer
    }

    /// The answer of another agent in the guest, on its own stdin and stdout, that another user runs.
    fn ask_as(&self, user: &str, request: &Value) -> Value {
        let words = ["exec", "-u", user, "--", "/bin/lodger", "serve", "--listen", "stdio:"];
        let mut command = self.kept.command(&words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut client = Client(command.spawn().expect("exec starts"));
        client.0.stdin.take().expect("a pipe").write_all(request.to_string().as_bytes()).expect("it reads");
        let mut answer = String::new();
        client.0.stdout.take().expect("a pipe").read_to_string(&mut answer).expect("an answer");
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{request}: {error}: {answer:?}"))
    }

    /// Waits for the guest's own end, and gives what its console said.
    fn ended(self) -> String {
        wait_until("QEMU has ended", || !lives(self.kept.pid));
        let said = fs::read(&self.console).map(|bytes| text(&bytes)).unwrap_or_default();
        assert!(!said.contains("panic"), "{said}");
        if let Some(folder) = self.kept.address.strip_prefix("serial:").and_then(|path| Path::new(path).parent()) {
            let _ = fs::remove_dir_all(folder);
        }
        // It would kill a process whose number may be somebody else's by now.
        std::mem::forget(self.kept);
        said
    }
}

fn shutdown(mode: &str) -> Value {
    json!({ "Command": "system.shutdown", "mode": mode })
}

#[test]
fn a_guest_tells_what_it_is_changes_and_ends_in_order() {
    let name = "a_guest_tells_what_it_is_changes_and_ends_in_order";
    let Some(guest) = Guest::start(name, &[], &["--append", "lodger.hostname=first"]) else { return };
    describes_itself(&guest);
    refuses_before_it_changes_anything(&guest);
    changes(&guest);
    assert_eq!(guest.call(shutdown("poweroff")), json!({ "Status": 0, "StatusMessage": "", "how": "init" }));
    // Init's line stands for the orderly end, the kernel's for the end itself.
    let said = guest.ended();
    assert!(said.contains("lodger: powering off") && said.contains("reboot: Power down"), "{said}");
}

fn describes_itself(guest: &Guest) {
    let info = guest.call(json!({ "Command": "system.info" }));
    assert_eq!(info["hostname"], "first");
    assert_eq!(info["kernel"]["machine"], "x86_64");
    assert_eq!(info["kernel"]["release"].as_str(), Some(guest.kept.shell("uname -r").trim()));
    assert_eq!(info["cpus"]["online"], 1);
    assert!(info["cpus"]["model"].as_str().is_some_and(|model| !model.is_empty()), "{info}");
    let bytes = |name: &str| info["memory"][name].as_u64().unwrap_or_else(|| panic!("{name}: {info}"));
    assert!((128 << 20..=256 << 20).contains(&bytes("total_bytes")), "{info}");
    assert!(bytes("available_bytes") <= bytes("total_bytes") && bytes("free_bytes") > 0, "{info}");
    assert_eq!((bytes("swap_total_bytes"), bytes("swap_free_bytes")), (0, 0));
    assert!(info["uptime_seconds"].as_u64().is_some_and(|seconds| (1..120).contains(&seconds)), "{info}");
    let mounts = info["mounts"].as_array().expect("a list");
    for kind in ["proc", "sysfs", "devtmpfs"] {
        assert!(mounts.iter().any(|mount| mount["type"] == kind), "{kind}: {info}");
    }
    let lo = json!({
        "name": "lo", "index": 1, "up": true, "running": true, "loopback": true, "mac": "00:00:00:00:00:00", "mtu": 65536,
        "addresses": [{ "address": "127.0.0.1", "prefix_length": 8 }, { "address": "::1", "prefix_length": 128 }],
    });
    assert_eq!(info["interfaces"], json!([lo]));
    // A bare guest has no system that would have a name.
    assert_eq!(info["missing"], json!(["os_release: open /etc/os-release: no such file or directory"]));
}

fn refuses_before_it_changes_anything(guest: &Guest) {
    for (request, status) in [
        (json!({ "Command": "system.hostname", "name": "" }), 12),
        (json!({ "Command": "system.hostname", "name": "-a" }), 12),
        (json!({ "Command": "system.hostname", "name": "a".repeat(65) }), 12),
        (json!({ "Command": "system.hostname", "name": ["a"] }), 12),
        (json!({ "Command": "system.hostname", "name": "a", "Name": "b" }), 10),
        (json!({ "Command": "system.set-time" }), 11),
        (json!({ "Command": "system.set-time", "nanoseconds": 5 }), 11),
        (json!({ "Command": "system.set-time", "seconds": "now" }), 12),
        (json!({ "Command": "system.set-time", "seconds": 1.5 }), 12),
        (json!({ "Command": "system.set-time", "seconds": -1 }), 12),
        (json!({ "Command": "system.set-time", "seconds": 1, "nanoseconds": 1_000_000_000 }), 12),
        (json!({ "Command": "system.set-time", "seconds": 1, "zone": "UTC" }), 10),
        (json!({ "Command": "system.shutdown" }), 11),
        (json!({ "Command": "system.shutdown", "mode": "PowerOff" }), 12),
        (json!({ "Command": "system.shutdown", "mode": "reboot", "force": true }), 10),
    ] {
        let answer = guest.ask(&request);
        assert_eq!(answer["Status"], status, "{request}: {answer}");
    }
    let denied = |what: &str| json!({ "Status": 15, "StatusMessage": format!("{what}: operation not permitted") });
    for (request, what) in [
        (shutdown("reboot"), "reboot"),
        (json!({ "Command": "system.set-time", "seconds": 1 }), "set the clock"),
        (json!({ "Command": "system.hostname", "name": "other" }), "set the host name to other"),
    ] {
        assert_eq!(guest.ask_as("65534", &request), denied(what), "{request}");
    }
    assert_eq!(guest.kept.shell("hostname"), "first\n");
    assert!(guest.kept.shell("date +%s").trim().parse::<u64>().is_ok_and(|seconds| seconds > 1_000_000));
}

fn changes(guest: &Guest) {
    let longest = format!("{}.{}", "a".repeat(31), "B".repeat(32));
    for (before, name) in [("first", longest.as_str()), (longest.as_str(), "last")] {
        let answer = guest.call(json!({ "Command": "system.hostname", "name": name }));
        assert_eq!((&answer["before"], &answer["name"]), (&json!(before), &json!(name)));
        assert_eq!(guest.kept.shell("hostname").trim(), name);
    }
    assert_eq!(guest.call(json!({ "Command": "system.hostname" }))["name"], "last");
    let before: u64 = guest.kept.shell("date +%s").trim().parse().expect("a number");
    let answer =
        guest.call(json!({ "Command": "system.set-time", "seconds": 2_000_000_000, "nanoseconds": 999_999_999 }));
    assert!(answer["before_seconds"].as_u64().is_some_and(|seconds| seconds.abs_diff(before) <= 60), "{answer}");
    let now: u64 = guest.kept.shell("date +%s").trim().parse().expect("a number");
    assert!((2_000_000_000..2_000_000_060).contains(&now), "{now}");
    guest.call(json!({ "Command": "system.sync" }));
}

#[test]
fn an_init_of_busybox_is_asked_in_its_own_words() {
    let table = "::sysinit:/bin/mount -t proc proc /proc\n\
                 ::sysinit:/bin/mount -t devtmpfs dev /dev\n\
                 ::respawn:/bin/lodger serve --listen serial:/dev/ttyS1\n\
                 ::shutdown:/bin/echo the table is at its end\n";
    let name = "an_init_of_busybox_is_asked_in_its_own_words";
    let Some(guest) = Guest::with_process_1(name, "/sbin/init", &[("/etc/inittab", table)]) else { return };
    let answer = guest.call(shutdown("reboot"));
    assert_eq!(answer["how"], "busybox init");
    let said = guest.ended();
    assert!(said.contains("the table is at its end") && said.contains("reboot: Restarting system"), "{said}");
}

#[test]
fn without_an_init_that_can_be_asked_the_kernel_ends_the_machine_behind_the_answer() {
    // Called init, in a shell that is a busybox: no signal would wake it.
    let script = "#!/bin/sh\nmount -t proc proc /proc\nmount -t devtmpfs dev /dev\n\
                  while :; do /bin/lodger serve --listen serial:/dev/ttyS1; done\n";
    let name = "without_an_init_that_can_be_asked_the_kernel_ends_the_machine_behind_the_answer";
    let Some(guest) = Guest::with_process_1(name, "/own/init", &[("/own/init", script)]) else { return };
    let answer = guest.call(shutdown("poweroff"));
    assert_eq!(answer["how"], "reboot(2)");
    let said = guest.ended();
    assert!(said.contains("reboot: Power down") && !said.contains("lodger: powering off"), "{said}");
}
