//! `system.*` and `log.level` of a real agent, as far as they could not change anything on this machine even if they were wrong.
//! The others, their refusals too, are shown in guests (tests/guest_commands.rs).

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use support::{Agent, Folder, PATIENCE, pause, wait_until};

/// The answer to one request.
fn ask(socket: &Path, request: &Value) -> Value {
    let mut stream = UnixStream::connect(socket).expect("the agent accepts");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    stream.write_all(request.to_string().as_bytes()).expect("the agent reads");
    stream.shutdown(Shutdown::Write).expect("our end");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
}

/// The answer to a call that succeeds.
fn call(agent: &Agent, request: Value) -> Value {
    let answer = ask(&agent.socket, &request);
    assert_eq!(answer["Status"], 0, "{request}: {answer}");
    answer
}

/// What a program prints; `None` when it is not there or fails.
fn output(words: &[&str]) -> Option<String> {
    let output = Command::new(words[0]).args(&words[1..]).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[test]
fn the_machine_is_described_as_its_own_programs_describe_it() {
    let agent = Agent::start();
    let info = call(&agent, json!({ "Command": "system.info" }));
    for (name, flag) in [("release", "-r"), ("version", "-v"), ("machine", "-m")] {
        assert_eq!(info["kernel"][name].as_str(), output(&["uname", flag]).as_deref(), "{name}");
    }
    assert_eq!(info["hostname"].as_str(), output(&["uname", "-n"]).as_deref());
    if let Some(name) = output(&["sh", "-c", ". /etc/os-release && printf %s \"$PRETTY_NAME\""]) {
        assert_eq!(info["os_release"]["PRETTY_NAME"], name);
    }
    let meminfo = fs::read_to_string("/proc/meminfo").expect("Linux");
    let total = meminfo.lines().next().and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    assert_eq!(info["memory"]["total_bytes"].as_u64(), total.map(|kibibytes| kibibytes * 1024));
    let free = info["memory"]["free_bytes"].as_u64().expect("a number");
    assert!(free > 0 && free < info["memory"]["total_bytes"].as_u64().expect("a number"));
    if let Some(count) = output(&["getconf", "_NPROCESSORS_ONLN"]) {
        assert_eq!(info["cpus"]["online"].to_string(), count);
    }
    let uptime = fs::read_to_string("/proc/uptime").expect("Linux");
    let uptime: u64 = uptime.split('.').next().and_then(|text| text.parse().ok()).expect("a number");
    assert!(uptime.abs_diff(info["uptime_seconds"].as_u64().expect("a number")) <= 60, "{uptime}: {info}");
    let loads = info["load"].as_array().expect("three");
    assert!(loads.len() == 3 && loads.iter().all(|load| load.as_str().is_some_and(|text| text.contains('.'))));
    let mounts = info["mounts"].as_array().expect("a list");
    assert!(mounts.iter().any(|mount| mount["target"] == "/proc" && mount["type"] == "proc"), "{mounts:?}");
}

#[test]
fn interfaces_are_those_that_ip_knows() {
    let agent = Agent::start();
    let info = call(&agent, json!({ "Command": "system.info" }));
    let found = info["interfaces"].as_array().expect("a list");
    let lo = found.iter().find(|interface| interface["name"] == "lo").expect("a loopback");
    assert_eq!((&lo["loopback"], &lo["index"]), (&json!(true), &json!(1)));
    // Not every ip knows the option, and not every machine has one.
    let Some(known) = output(&["ip", "-j", "addr"]).and_then(|text| serde_json::from_str::<Value>(&text).ok()) else {
        return;
    };
    for interface in known.as_array().expect("a list") {
        let name = &interface["ifname"];
        let ours = found.iter().find(|other| other["name"] == *name).unwrap_or_else(|| panic!("no {name}: {found:?}"));
        assert_eq!((&ours["index"], &ours["mtu"]), (&interface["ifindex"], &interface["mtu"]), "{name}");
        if matches!(interface["link_type"].as_str(), Some("ether" | "loopback")) {
            assert_eq!(ours["mac"], interface["address"], "{name}");
        }
        let up = interface["flags"].as_array().is_some_and(|flags| flags.contains(&json!("UP")));
        assert_eq!(ours["up"], up, "{name}");
        let mut wanted: Vec<String> = Vec::new();
        for address in interface["addr_info"].as_array().expect("a list") {
            wanted.push(format!("{}/{}", address["local"], address["prefixlen"]));
        }
        let addresses = ours["addresses"].as_array().expect("a list").iter();
        let mut listed: Vec<String> =
            addresses.map(|address| format!("{}/{}", address["address"], address["prefix_length"])).collect();
        wanted.sort();
        listed.sort();
        assert_eq!(listed, wanted, "{name}");
    }
}

#[test]
fn the_name_is_told_and_what_is_no_argument_is_refused() {
    let agent = Agent::start();
    let name = call(&agent, json!({ "Command": "system.hostname" }));
    assert_eq!(name["name"].as_str(), output(&["uname", "-n"]).as_deref());
    for (request, status) in [
        (json!({ "Command": "system.info", "what": "all" }), 10),
        (json!({ "Command": "system.sync", "path": "/" }), 10),
        (json!({ "Command": "log.level", "level": "loud" }), 12),
        (json!({ "Command": "log.level", "level": "info", "for": 10 }), 10),
    ] {
        let answer = ask(&agent.socket, &request);
        assert_eq!(answer["Status"], status, "{request}: {answer}");
    }
    assert_eq!(call(&agent, json!({ "Command": "log.level" }))["level"], "warn");
}

#[test]
fn what_waits_is_written() {
    let agent = Agent::start();
    assert_eq!(call(&agent, json!({ "Command": "system.sync" })), json!({ "Status": 0, "StatusMessage": "" }));
}

/// An agent whose stderr is read.
fn with_level(level: &str) -> (Agent, BufReader<ChildStderr>) {
    let mut agent = Agent::start_with(|command| {
        command.env("LODGER_LOG", level).stderr(Stdio::piped());
    });
    let stderr = agent.child.stderr.take().expect("a pipe");
    (agent, BufReader::new(stderr))
}

fn line(stderr: &mut BufReader<ChildStderr>) -> String {
    let mut line = String::new();
    stderr.read_line(&mut line).expect("a line");
    line
}

/// Makes an agent write a warning, some time: a connection that begins with nonsense.
fn provoke(agent: &Agent) {
    let mut stream = UnixStream::connect(&agent.socket).expect("the agent accepts");
    stream.write_all(&[0x01, 0x02, 0x03]).expect("the agent reads");
    let _ = stream.shutdown(Shutdown::Write);
    let _ = stream.read_to_end(&mut Vec::new());
}

#[test]
fn a_level_of_the_log_counts_at_once_upwards() {
    let (agent, mut stderr) = with_level("off");
    assert_eq!(call(&agent, json!({ "Command": "log.level" }))["level"], "off");
    let changed = call(&agent, json!({ "Command": "log.level", "level": "WARN" }));
    assert_eq!((&changed["before"], &changed["level"]), (&json!("off"), &json!("warn")));
    provoke(&agent);
    assert!(line(&mut stderr).starts_with("lodger warn: connection ended: "));
    call(&agent, json!({ "Command": "log.level", "level": "debug" }));
    // A look that says nothing is told at this level only.
    drop(UnixStream::connect(&agent.socket).expect("the agent accepts"));
    assert!(line(&mut stderr).starts_with("lodger debug: "));
}

#[test]
fn a_level_of_the_log_counts_at_once_downwards() {
    let (mut agent, mut stderr) = with_level("warn");
    provoke(&agent);
    assert!(line(&mut stderr).starts_with("lodger warn: connection ended: "));
    call(&agent, json!({ "Command": "log.level", "level": "off" }));
    (0..5).for_each(|_| provoke(&agent));
    // The line comes behind the end of the connection.
    pause(Duration::from_millis(100));
    agent.child.kill().expect("our child");
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).expect("the end");
    assert_eq!(rest, "");
}

#[test]
fn a_level_that_is_none_is_told_and_taken_for_the_usual_one() {
    let (agent, mut stderr) = with_level("lodger=debug");
    assert_eq!(line(&mut stderr), "lodger warn: LODGER_LOG: lodger=debug is no level\n");
    assert_eq!(call(&agent, json!({ "Command": "log.level" }))["level"], "warn");
    let (agent, _stderr) = with_level("");
    assert_eq!(call(&agent, json!({ "Command": "log.level" }))["level"], "warn");
}

/// Ends what it holds.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The static binary, which runs where nothing else is.
fn static_binary() -> Option<PathBuf> {
    let usual = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/x86_64-unknown-linux-musl/release/lodger");
    let path = std::env::var_os("LODGER_STATIC").map_or(usual, PathBuf::from);
    let root = output(&["id", "-u"]).as_deref() == Some("0");
    if path.is_file() && root {
        return Some(path);
    }
    let _ = writeln!(std::io::stderr(), "skipped: needs root and the static binary");
    None
}

#[test]
fn a_folder_without_anything_in_it_is_described_all_the_same_as_root() {
    let Some(binary) = static_binary() else { return };
    let folder = Folder::new();
    // By another process: one that another test starts meanwhile would have the file open for writing, and it could not be executed.
    let copied = Command::new("cp").arg(binary).arg(folder.path("lodger")).status();
    assert!(copied.expect("cp(1)").success());
    fs::set_permissions(folder.path("lodger"), fs::Permissions::from_mode(0o755)).expect("its mode");
    let mut command = Command::new("chroot");
    command.arg(&folder.0).args(["/lodger", "serve", "--listen", "unix:/agent.sock"]).stdin(Stdio::null());
    let _agent = Ended(command.spawn().expect("chroot starts"));
    let socket = folder.path("agent.sock");
    wait_until("the agent listens", || UnixStream::connect(&socket).is_ok());
    let info = ask(&socket, &json!({ "Command": "system.info" }));
    assert_eq!(info["Status"], 0, "{info}");
    let wanted = json!([
        "os_release: open /etc/os-release: no such file or directory",
        "cpus.online: open /sys/devices/system/cpu/online: no such file or directory",
        "cpus.model: open /proc/cpuinfo: no such file or directory",
        "memory: open /proc/meminfo: no such file or directory",
        "load: open /proc/loadavg: no such file or directory",
        "mounts: open /proc/self/mounts: no such file or directory",
    ]);
    assert_eq!(info["missing"], wanted);
    assert_eq!(info["kernel"]["release"].as_str(), output(&["uname", "-r"]).as_deref());
    assert!(info["uptime_seconds"].as_u64().is_some_and(|seconds| seconds > 0));
    let interfaces = info["interfaces"].as_array().expect("a list");
    assert!(
        interfaces.iter().any(|interface| interface["name"] == "lo" && interface["mtu"].is_u64()),
        "{interfaces:?}"
    );
}
