//! The task, from what it is to its result.

use std::thread;

use serde_json::Value;

use crate::metaservice::{EXECUTE, FAILED, SUCCESS, object, strings};
use crate::proto::metadata::backlog::Backlog;
use crate::proto::metadata::programs::Variable;
use crate::proto::metadata::{Ended, Guest, STACK, command, held, upload, why};

/// What to run.
#[derive(Debug, PartialEq, Eq)]
pub struct Task {
    pub command: Vec<String>,
    pub env: Vec<Variable>,
}

impl Task {
    /// `{"env": {NAME: value} | null, "command": [string…] | null}`.
    fn from_json(text: &[u8]) -> Result<Task, String> {
        let text = str::from_utf8(text).map_err(|_| "not UTF-8")?;
        let object = object(text)?;
        let env = match object.get("env") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Object(env)) => env
                .iter()
                .map(|(name, value)| {
                    Ok((name.clone(), value.as_str().ok_or("env: a value that is no string")?.to_owned()))
                })
                .collect::<Result<_, &str>>()?,
            Some(_) => return Err("env: no object".to_owned()),
        };
        Ok(Task { command: strings(&object, "command")?, env })
    }
}

/// Does it. `None` when everything shall end before.
pub fn run(guest: &Guest) -> Option<Ended> {
    let task = execute(guest)?;
    held(&guest.env).clone_from(&task.env);
    let backlog = match Backlog::new(guest.timers().log_patience) {
        Ok(backlog) => backlog,
        Err(error) => {
            log::error!("task: {}", why(&error));
            return report(guest, false);
        }
    };
    let (success, whole) = thread::scope(|scope| {
        let upload = thread::Builder::new().stack_size(STACK).spawn_scoped(scope, || upload::run(guest, &backlog));
        if let Err(error) = &upload {
            log::error!("task: start the thread for the log: {}", why(error));
        }
        let success = upload.is_ok() && command::run(guest, &task, &backlog);
        backlog.close();
        (success, upload.is_ok_and(|upload| upload.join().unwrap_or(false)))
    });
    if guest.is_stopped() {
        return None;
    }
    if !whole {
        let so = if guest.config.fail_on_lost_log { "; the task has failed" } else { "" };
        log::error!("the log was not delivered whole{so}");
    }
    report(guest, success && (whole || !guest.config.fail_on_lost_log))
}

/// Asks what to do until it is told.
fn execute(guest: &Guest) -> Option<Task> {
    let mut said = String::new();
    loop {
        let wrong = match guest.request("GET", EXECUTE, &[], b"") {
            Ok((200, body)) => match Task::from_json(&body) {
                Ok(task) => {
                    // Nothing of the environment, and no argument: there may be secrets in both.
                    let program = task.command.first().map_or("the default program", String::as_str);
                    log::info!("task: {program}, of {} words", task.command.len());
                    return Some(task);
                }
                Err(why) => why,
            },
            Ok((status, _)) => format!("status {status}"),
            Err(error) => why(&error),
        };
        if guest.pause(guest.timers().execute_pause) {
            return None;
        }
        // Each reason once: it may be asked for hours.
        if wrong != said {
            log::warn!("ask {} for a task: {wrong}", guest.config.host.host());
            said = wrong;
        }
    }
}

/// Tells the result.
fn report(guest: &Guest, success: bool) -> Option<Ended> {
    let target = if success { SUCCESS } else { FAILED };
    match guest.request("PUT", target, &[], b"") {
        Ok((200, _)) => {
            log::info!("the task has {}", if success { "succeeded" } else { "failed" });
            return Some(Ended::Task { success });
        }
        _ if guest.is_stopped() => return None,
        Ok((status, _)) => log::error!("PUT {target}: status {status}"),
        Err(error) => log::error!("PUT {target}: {}", why(&error)),
    }
    Some(Ended::Unreported)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_read_as_upstream_writes_it() {
        let task = Task::from_json(br#"{"env":{"A":"b=c"},"command":["sh","-c","x"],"more":{}}"#).expect("a task");
        assert_eq!(
            task,
            Task { command: vec!["sh".into(), "-c".into(), "x".into()], env: vec![("A".into(), "b=c".into())] }
        );
        let empty = Task { command: Vec::new(), env: Vec::new() };
        assert_eq!(Task::from_json(br#"{"env":null,"command":null}"#), Ok(empty));
        for text in [&b"{\"env\""[..], b"", b"[]", b"{\"env\":{\"A\":1}}", b"{\"command\":\"sh\"}", b"\xff"] {
            assert!(Task::from_json(text).is_err(), "{text:?}");
        }
    }
}
