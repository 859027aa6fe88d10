//! `process.list`: the processes of the system, out of /proc.

use std::fs::{self, File};
use std::io::Read;

use serde_json::{Value, json};

use crate::commands::arguments::Arguments;
use crate::commands::{Call, Command, Error, Reply};
use crate::exec::processes::{self, Process};

/// Processes of one list; a system with more says `truncated`. With the longest arguments they make a reply of 32 MiB.
const LISTED_MAX: usize = 8192;

/// Bytes of the arguments of one process that are listed. The kernel allows two megabytes.
const COMMAND_BYTES_MAX: u64 = 4096;

pub const LIST: Command =
    Command { name: "process.list", summary: "the processes of the system", arguments: "", run: list };

fn list(arguments: &mut Arguments, _: &Call) -> Result<Reply, Error> {
    arguments.finish()?;
    let mut listed: Vec<Value> = Vec::new();
    let mut truncated = false;
    for process in processes::all().into_iter().flatten() {
        truncated = listed.len() == LISTED_MAX;
        if truncated {
            break;
        }
        // One that has ended since is no process any more.
        listed.extend(describe(&process));
    }
    let mut reply = Reply::default();
    if listed.is_empty() {
        // We are a process ourselves: /proc is not there.
        reply.put("missing", json!(["processes"]));
    } else {
        reply.put("processes", listed);
        reply.put("truncated", truncated);
    }
    Ok(reply)
}

fn describe(process: &Process) -> Option<Value> {
    let folder = format!("/proc/{}", process.pid);
    let status = fs::read(format!("{folder}/status")).ok()?;
    let status = String::from_utf8_lossy(&status);
    // `Uid:` has the real, the effective, the saved and the file system's; `VmRSS:` is in kB, and not there for threads of the kernel.
    let field = |name: &str, index: usize| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().nth(index)?.parse::<u64>().ok()
    };
    let described = Reply::of([
        ("pid", json!(process.pid)),
        ("parent_pid", json!(process.parent)),
        ("group", json!(process.group)),
        ("session", json!(process.session)),
        ("state", json!(process.state.to_string())),
        ("name", json!(process.name)),
        ("command", command(&folder)?),
        ("uid", json!(field("Uid:", 1)?)),
        ("threads", json!(process.threads)),
        ("memory_bytes", json!(field("VmRSS:", 0).unwrap_or(0) << 10)),
    ]);
    Some(Value::Object(described.members))
}

/// The program's name and arguments; empty for a zombie and for a thread of the kernel.
fn command(folder: &str) -> Option<Value> {
    let mut bytes = Vec::new();
    File::open(format!("{folder}/cmdline")).ok()?.take(COMMAND_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    // A program may have written over it; then the last argument has no NUL behind it.
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(&bytes);
    let texts = bytes.split(|byte| *byte == 0).map(|text| json!(String::from_utf8_lossy(text)));
    Some(if bytes.is_empty() { json!([]) } else { texts.collect() })
}
