//! Rows about size: of the agent and of process 1 in memory, and of the binary.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::agent::Agent;
use crate::{Measured, Skipped};

/// How long process 1 may take to have started its agent, and an agent to be done with a connection.
const SETTLE: Duration = Duration::from_secs(5);

pub fn size(bytes: u64) -> Measured {
    Measured { ours: format!("{bytes} B"), floor: "-".to_owned(), value: bytes as f64 }
}

/// Resident bytes of a process, counted page by page; the numbers of /proc/PID/status lag behind.
fn resident(pid: u32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find(|line| line.starts_with("Rss:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
}

/// The most bytes that were ever resident, in steps of the kernel's counters.
pub fn peak(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
}

fn threads(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

fn wait_until(condition: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + SETTLE;
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

/// Of an agent of its own, after one program has run on a connection that has come and gone.
pub fn of_the_agent(agent: &Agent) -> Result<Measured, Skipped> {
    let fresh = Agent::start(agent.binary.clone(), "idle");
    fresh.connect().output(["true"]).map_err(|error| Skipped(error.to_string()))?;
    if !wait_until(|| threads(fresh.pid()) == 1) {
        return Err(Skipped("the connection does not end".to_owned()));
    }
    resident(fresh.pid()).map(size).ok_or_else(|| Skipped("no /proc/PID/smaps_rollup".to_owned()))
}

/// A namespace of its own, which ends with this.
struct Namespace(Child);

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|number| number.parse().ok()).collect()
}

/// Of process 1 of a pid namespace, once it has started its agent.
pub fn of_init(agent: &Agent) -> Result<Measured, Skipped> {
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "--uts", "--ipc"]);
    // The agent that process 1 starts listens in /run, which must not be ours.
    command.args(["sh", "-c", "mount -t tmpfs tmpfs /run && exec \"$0\""]).arg(&agent.binary);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let namespace = Namespace(command.spawn().map_err(|error| Skipped(format!("unshare: {error}")))?);
    let init = || children(namespace.0.id()).first().copied();
    if !wait_until(|| init().is_some_and(|init| !children(init).is_empty())) {
        return Err(Skipped("no pid namespace here (not root?): see the guest tests".to_owned()));
    }
    let found = init().and_then(resident).map(size);
    found.ok_or_else(|| Skipped("no /proc/PID/smaps_rollup".to_owned()))
}

pub fn of_the_binary(agent: &Agent) -> Result<Measured, Skipped> {
    fs::metadata(&agent.binary).map(|found| size(found.len())).map_err(|error| Skipped(error.to_string()))
}
