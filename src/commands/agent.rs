//! `agent.*`: what the agent is, and what it offers.

use serde_json::{Map, Value, json};

use crate::commands::arguments::Arguments;
use crate::commands::program::{self, Outside};
use crate::commands::table::{Entry, Table};
use crate::commands::{Call, Command, Error, Reply};
use crate::version;

pub const PING: Command = Command {
    name: "agent.ping",
    summary: "answer, and nothing else",
    arguments: "",
    run: |arguments, _| arguments.finish().map(|()| Reply::default()),
};

pub const INFO: Command = Command {
    name: "agent.info",
    summary: "version, addresses, protocols and limits of the agent",
    arguments: "",
    run: info,
};

pub const COMMANDS: Command =
    Command { name: "agent.commands", summary: "what the agent offers", arguments: "", run: commands };

fn info(arguments: &mut Arguments, call: &Call) -> Result<Reply, Error> {
    arguments.finish()?;
    let about = call.table.about();
    let limits: Map<String, Value> =
        about.limits.iter().map(|(name, limit)| ((*name).to_owned(), Value::from(*limit))).collect();
    Ok(Reply::of([
        ("version", json!(version::VERSION)),
        ("git", json!(version::GIT)),
        ("target", json!(version::TARGET)),
        ("pid", json!(std::process::id())),
        ("uptime_seconds", json!(about.started.elapsed().as_secs())),
        ("listeners", json!(about.listeners)),
        ("protocols", json!(about.protocols)),
        ("limits", Value::Object(limits)),
    ]))
}

fn commands(arguments: &mut Arguments, call: &Call) -> Result<Reply, Error> {
    arguments.finish()?;
    let own = call
        .table
        .commands()
        .iter()
        .map(|command| json!({ "name": command.name, "summary": command.summary, "arguments": command.arguments }));
    let registered = call.table.handlers().into_iter().map(|name| json!({ "name": name }));
    let mut commands: Vec<Value> = own.chain(registered).collect();
    let mut reply = Reply::default();
    match call.table.directory().map_or(Ok((Vec::new(), false)), program::names) {
        Ok((names, truncated)) => {
            let mut found = Map::new();
            for name in names {
                outside(call.table, &name).and_then(|value| found.insert(name, value));
            }
            commands.extend(found.into_values());
            reply.put("truncated", truncated);
        }
        Err(error) => reply.put("missing", json!([error.to_string()])),
    }
    reply.put("commands", commands);
    Ok(reply)
}

/// What can be said of a name that was found in the directory; nothing when it has another meaning, or is gone already.
fn outside(table: &Table, name: &str) -> Option<Value> {
    match table.find(name) {
        Ok(Some(Entry::Program(Outside { summary: Some(summary), .. }))) => {
            Some(json!({ "name": name, "summary": summary }))
        }
        Ok(Some(Entry::Program(_))) => Some(json!({ "name": name })),
        Ok(_) => None,
        Err(error) => Some(json!({ "name": name, "unusable": error.to_string() })),
    }
}
