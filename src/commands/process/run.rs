//! `process.run`: a program run to its end, its output in the reply.

use std::ops::RangeInclusive;
use std::str;
use std::time::Duration;

use data_encoding::BASE64;
use serde_json::Value;

use crate::commands::arguments::{self, Arguments};
use crate::commands::process::{TIMEOUT_MAX_SECONDS, not_started};
use crate::commands::{Call, Command, Error, Reply};
use crate::exec::capture::{self, Bounds, Kept, Outcome, Output};
use crate::exec::{self, Program, environment, user};
use crate::sys::errno;
use crate::sys::process::Status;
use crate::sys::signal;

/// Seconds that a program has unless it is given another time: enough for what one asks a machine, and less than callers wait for a response.
const TIMEOUT_SECONDS: u64 = 30;

/// Bytes that are kept of each output unless another limit is given: a screenful of long lines, and little for a small guest.
const OUTPUT_BYTES: u64 = 64 << 10;

/// Highest limit of each output, in bytes. What is larger belongs into a stream, not into one JSON text that is in memory three times.
const OUTPUT_MAX_BYTES: u64 = 1 << 20;

pub const RUN: Command = Command {
    name: "process.run",
    summary: "run a program to its end and give its output",
    arguments: "\
argv: list of texts, the program first; without a slash it is searched in the agent's PATH
cwd: working directory (the agent's)
env: object of names and texts, added to the agent's environment
clear_env: start from an empty environment (false)
user: USER, USER:GROUP or :GROUP to run as, by name or number (the agent's)
stdin: text for its standard input (none)
stdin_base64: the same as base64, for what is no text
timeout_seconds: its process group is killed after this time, 1 to 86400 (30); the caller must wait for longer
output_max_bytes: bytes that are kept of each output, 0 to 1048576 (65536)",
    run,
};

fn run(arguments: &mut Arguments, call: &Call) -> Result<Reply, Error> {
    let program = program(arguments)?;
    let input = input(arguments)?;
    let timeout = number(arguments, "timeout_seconds", TIMEOUT_SECONDS, 1..=TIMEOUT_MAX_SECONDS)?;
    let kept = number(arguments, "output_max_bytes", OUTPUT_BYTES, 0..=OUTPUT_MAX_BYTES)? as usize;
    arguments.finish()?;
    let deadline = capture::within(Duration::from_secs(timeout));
    let bounds = Bounds { stdout_max: kept, stderr_max: kept, deadline, caller: call.caller, stop: call.stop };
    let name = || String::from_utf8_lossy(&program.path);
    let (session, channels) = exec::start(&program).map_err(|why| not_started(&why))?;
    match capture::finish(session, channels, &input, &bounds) {
        Ok(Outcome::Complete(output)) => Ok(reply(output)),
        Ok(Outcome::CallerGone) => Err(Error::Interrupted(format!("run {}: the caller has gone", name()))),
        Ok(Outcome::Stopped) => Err(Error::Interrupted(format!("run {}: the agent ends", name()))),
        Err(error) => Err(Error::Failed(format!("run {}: {}", name(), errno::describe(&error)))),
    }
}

fn program(arguments: &mut Arguments) -> Result<Program, Error> {
    let argv = arguments.texts("argv")?.ok_or_else(|| arguments::missing("argv"))?;
    let mut argv = argv.into_iter().map(String::into_bytes);
    let path = argv.next().ok_or_else(|| Error::BadArgument("argv: the program is missing".to_owned()))?;
    let env = env(arguments)?;
    let identity = arguments.text("user")?.map(|name| user::look_up(&name)).transpose().map_err(Error::BadArgument)?;
    let cwd = arguments.text("cwd")?.unwrap_or_default().into_bytes();
    Ok(Program { path, arguments: argv.collect(), env, cwd, identity, ..Program::default() })
}

/// The environment; `None`: the agent's as it is.
fn env(arguments: &mut Arguments) -> Result<Option<Vec<Vec<u8>>>, Error> {
    let clear = arguments.flag("clear_env")?;
    let bad = || Error::BadArgument("env: an object of texts is wanted".to_owned());
    let added = match arguments.value("env") {
        None if !clear => return Ok(None),
        None => serde_json::Map::new(),
        Some(Value::Object(members)) => members,
        Some(_) => return Err(bad()),
    };
    let mut entries = if clear { Vec::new() } else { environment::own() };
    for (name, value) in added {
        let Value::String(value) = value else { return Err(bad()) };
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(Error::BadArgument(format!("env: {name:?} cannot be set")));
        }
        entries.push(format!("{name}={value}").into_bytes());
    }
    Ok(Some(environment::without_repeats(entries)))
}

fn input(arguments: &mut Arguments) -> Result<Vec<u8>, Error> {
    match (arguments.text("stdin")?, arguments.text("stdin_base64")?) {
        (None, None) => Ok(Vec::new()),
        (Some(text), None) => Ok(text.into_bytes()),
        (None, Some(text)) => {
            BASE64.decode(text.as_bytes()).map_err(|error| Error::BadArgument(format!("stdin_base64: {error}")))
        }
        _ => Err(Error::BadArgument("stdin, stdin_base64: only one of them is wanted".to_owned())),
    }
}

/// A number in a range.
fn number(arguments: &mut Arguments, name: &str, usual: u64, range: RangeInclusive<u64>) -> Result<u64, Error> {
    let number = arguments.number(name)?.unwrap_or(usual);
    let (low, high) = (range.start(), range.end());
    let bad = || Error::BadArgument(format!("{name}: a number from {low} to {high} is wanted, and not {number}"));
    if range.contains(&number) { Ok(number) } else { Err(bad()) }
}

fn reply(output: Output) -> Reply {
    let mut reply = Reply::of([("timed_out", output.timed_out.into())]);
    match output.status {
        Status::Exited(code) => reply.put("exit_code", code),
        Status::Killed(signal) => {
            reply.put("signal", signal);
            reply.put("signal_name", signal::name(signal));
        }
    }
    put_output(&mut reply, "stdout", output.stdout);
    put_output(&mut reply, "stderr", output.stderr);
    reply
}

/// Adds an output as text if it is one, else as base64 under a name that says so.
fn put_output(reply: &mut Reply, name: &str, mut kept: Kept) {
    if kept.truncated
        && let Err(error) = str::from_utf8(&kept.bytes)
        && error.error_len().is_none()
    {
        // The limit fell into a character.
        kept.bytes.truncate(error.valid_up_to());
    }
    match String::from_utf8(kept.bytes) {
        Ok(text) => reply.put(name, text),
        Err(error) => reply.put(&format!("{name}_base64"), BASE64.encode(error.as_bytes())),
    }
    reply.put(&format!("{name}_truncated"), kept.truncated);
}
