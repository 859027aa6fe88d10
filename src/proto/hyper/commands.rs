//! The commands of the ctl channel that need no program of a channel, translated into those of the one table.

use data_encoding::BASE64;
use serde_json::{Map, Value, json};

use crate::commands::arguments::Arguments;
use crate::commands::{BUILT_IN, Call, Error, Reply};
use crate::json::scan::Scanner;
use crate::proto::go;
use crate::proto::hyper::network;
use crate::proto::hyper::process::Members;

/// What an unknown command is told: the words of the agent of Clear Containers, which leave out the name.
pub const NO_CALLBACK: &str = "No callback found for command \"\"";

/// What `writefile` is told where a JSON value is all that comes: an empty file would be the loss of the one that is there.
const NO_CONTENT: &str = "writefile: no content can come with a JSON value, and the file is left as it is";

/// The version of this dialect: windows and exit codes by the sequence of tty.
pub const VERSION: u32 = 4242;

/// What a command gives.
#[derive(Default)]
pub struct Answer {
    /// The payload of ACK.
    pub bytes: Vec<u8>,
    /// To be done once the answer is on its way, because nobody could send it afterwards.
    pub afterwards: Option<Box<dyn FnOnce() + Send>>,
}

impl From<Vec<u8>> for Answer {
    fn from(bytes: Vec<u8>) -> Answer {
        Answer { bytes, afterwards: None }
    }
}

/// Runs a command by its name in the specification (`startpod`) with its payload, a JSON value. Members that it does not know are passed
/// over.
///
/// # Errors
/// The text for the host. `NO_CALLBACK` for an unknown name, and for those that need the programs of a channel. `writefile` has its content
/// behind its value, where here nothing is: see `write_file`.
pub fn run(name: &str, data: &[u8], call: &Call) -> Result<Answer, String> {
    match name {
        "ping" => Ok(Answer::default()),
        "ready" => {
            network::look_for_devices();
            Ok(Answer::default())
        }
        "version" => Ok(VERSION.to_be_bytes().to_vec().into()),
        "destroypod" => table("system.shutdown", json!({ "mode": "poweroff" }), call),
        "readfile" => read_file(data, call),
        "writefile" => Err(NO_CONTENT.to_owned()),
        "onlinecpumem" => Ok(switch_on(call)),
        "setupinterface" => set_interfaces(&[object(data)?], call),
        "setuproute" => set_routes(&object(data)?, call),
        "deleteinterface" => delete_interface(&object(data)?, call),
        "startpod" => start_pod(&object(data)?, call),
        _ => Err(NO_CALLBACK.to_owned()),
    }
}

/// The JSON value of a payload.
///
/// # Errors
/// It is none, or has more than `VALUES_MAX` values. In Go's words, which are those of the agent of Clear Containers.
pub fn object(data: &[u8]) -> Result<Value, String> {
    go::tree(data)
}

/// Runs a command of the table for its effect.
fn table(name: &str, arguments: Value, call: &Call) -> Result<Answer, String> {
    reply(name, arguments, call).map(|reply| Answer { bytes: Vec::new(), afterwards: reply.afterwards })
}

fn reply(name: &str, arguments: Value, call: &Call) -> Result<Reply, String> {
    let Value::Object(members) = arguments else { return Err(NO_CALLBACK.to_owned()) };
    let command = BUILT_IN.iter().find(|command| command.name == name).ok_or(NO_CALLBACK)?;
    (command.run)(&mut Arguments::of(members), call).map_err(|error: Error| error.to_string())
}

fn read_file(data: &[u8], call: &Call) -> Result<Answer, String> {
    let value = object(data)?;
    let path = file_of(&value)?;
    let mut reply = reply("file.read", json!({ "path": path }), call)?;
    let content = reply.members.remove("content_base64");
    let content = content.as_ref().and_then(Value::as_str).unwrap_or_default();
    BASE64.decode(content.as_bytes()).map(Answer::from).map_err(|error| error.to_string())
}

/// `writefile` on a channel whose payload may have more than a JSON value: an object, and right behind it what is to be written. Nothing
/// there makes an empty file.
///
/// # Errors
/// The text for the host.
pub fn write_file(data: &[u8], call: &Call) -> Result<Answer, String> {
    let mut scanner = Scanner::value();
    let end = scanner.feed(data).ok().flatten().ok_or("writefile: no object is in front")?;
    let path = file_of(&object(&data[..end])?)?;
    table("file.write", json!({ "path": path, "content_base64": BASE64.encode(&data[end..]) }), call)
}

/// The path in the object of both; one without a root begins there.
fn file_of(value: &Value) -> Result<String, String> {
    let file = Members::of(value, "command")?.text("file")?;
    match file.as_bytes() {
        [] => Err("file is missing".to_owned()),
        [b'/', ..] => Ok(file),
        _ => Ok(format!("/{file}")),
    }
}

/// Answered well whatever the kernel says: hosts want to hear that it is under way, and hyperstart has nothing else to say.
fn switch_on(call: &Call) -> Answer {
    if let Err(why) = table("system.online-cpus", json!({}), call) {
        log::warn!("onlinecpumem: {why}");
    }
    Answer::default()
}

/// One that was plugged in a moment ago may not have been seen yet.
fn set_interfaces(values: &[Value], call: &Call) -> Result<Answer, String> {
    let interfaces = values.iter().map(network::interface).collect::<Result<Vec<_>, _>>()?;
    if !interfaces.is_empty() {
        network::look_for_devices();
    }
    interfaces.into_iter().try_for_each(|interface| table("network.set-interface", interface, call).map(drop))?;
    Ok(Answer::default())
}

/// What a pod says of the machine: its name, its network. There is no place for containers here, and no file system to share.
fn start_pod(value: &Value, call: &Call) -> Result<Answer, String> {
    let members = Members::of(value, "startpod")?;
    let name = members.text("hostname")?;
    if !name.is_empty() {
        table("system.hostname", json!({ "name": name }), call)?;
    }
    set_interfaces(members.list("interfaces")?, call)?;
    if let Some(routes) = network::routes(&members)? {
        table("network.add-routes", routes, call)?;
    }
    if let Some(servers) = network::name_servers(&members)? {
        table("network.set-dns", servers, call)?;
    }
    if !members.list("containers")?.is_empty() {
        log::warn!("startpod: its containers are not started");
    }
    Ok(Answer::default())
}

fn set_routes(value: &Value, call: &Call) -> Result<Answer, String> {
    match network::routes(&Members::of(value, "setuproute")?)? {
        Some(routes) => table("network.add-routes", routes, call),
        None => Ok(Answer::default()),
    }
}

fn delete_interface(value: &Value, call: &Call) -> Result<Answer, String> {
    let device = Members::of(value, "deleteinterface")?.text("device")?;
    table("network.delete-interface", json!({ "device": device }), call)
}

/// `pscontainer`: the processes of these sessions of the kernel, of which each program here has its own, or else all of the machine.
///
/// # Errors
/// The text for the host.
pub fn list_processes(value: &Value, sessions: Option<&[i32]>, call: &Call) -> Result<Answer, String> {
    let format = Members::of(value, "pscontainer")?.text("format")?;
    let mut reply = reply("process.list", Value::Object(Map::new()), call)?;
    let Some(Value::Array(mut processes)) = reply.members.remove("processes") else {
        return Err("/proc is not there".to_owned());
    };
    let is_meant = |process: &Value| {
        let session = process["session"].as_i64();
        sessions.is_none_or(|sessions| sessions.iter().any(|meant| session == Some(i64::from(*meant))))
    };
    processes.retain(is_meant);
    match format.as_str() {
        "json" => {
            let pids: Value = processes.iter().map(|process| process["pid"].clone()).collect();
            Ok(pids.to_string().into_bytes().into())
        }
        "table" => Ok(table_of(&processes).into_bytes().into()),
        _ => Err("invalid format option".to_owned()),
    }
}

fn table_of(processes: &[Value]) -> String {
    let mut text = "  UID     PID    PPID COMMAND\n".to_owned();
    for process in processes {
        let words: Vec<&str> = process["command"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let name = process["name"].as_str().unwrap_or_default();
        let command = if words.is_empty() { format!("[{name}]") } else { words.join(" ") };
        let number = |name: &str| process[name].as_i64().unwrap_or_default();
        let command: String = command.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        text.push_str(&format!("{:5} {:7} {:7} {command}\n", number("uid"), number("pid"), number("parent_pid")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::arguments::VALUES_MAX;
    use crate::commands::table::Table;
    use crate::sys::process::effective_user;

    fn here<T>(run: impl FnOnce(&Call) -> T) -> T {
        run(&Call { table: &Table::empty(), caller: None, stop: None })
    }

    #[test]
    fn a_file_is_written_only_where_its_content_can_come() {
        let path = std::env::temp_dir().join(format!("lodger-content-{}", std::process::id()));
        std::fs::write(&path, "kept").expect("a file");
        let data = json!({ "container": "hyperstart", "file": path }).to_string();
        let refusal = here(|call| run("writefile", data.as_bytes(), call)).err();
        assert_eq!(refusal.as_deref(), Some(NO_CONTENT));
        assert_eq!(std::fs::read(&path).expect("a file"), b"kept");
        assert!(here(|call| write_file(data.as_bytes(), call)).is_ok());
        assert_eq!(std::fs::read(&path).expect("a file"), b"");
        std::fs::remove_file(&path).expect("the file is ours");
    }

    #[test]
    fn the_machine_ends_behind_the_answer() {
        match here(|call| run("destroypod", b"null", call)) {
            // Not called: that would be the end of this machine.
            Ok(answer) => assert!(answer.bytes.is_empty() && answer.afterwards.is_some()),
            Err(why) => assert_ne!(effective_user(), 0, "{why}"),
        }
    }

    #[test]
    fn values_are_counted_before_they_cost_memory() {
        let many = |count: usize| format!("{{\"file\":\"/\",\"x\":[{}0]}}", "0,".repeat(count - 1));
        let refusal = |data: &str| object(data.as_bytes()).err().unwrap_or_default();
        // The object, the file's name, the list.
        assert_eq!(refusal(&many(VALUES_MAX - 3)), "");
        let too_many = format!("more than the limit of {VALUES_MAX} values");
        assert_eq!(refusal(&many(VALUES_MAX - 2)), too_many);
        let deep = "invalid character '[' exceeded max depth";
        let cut = "unexpected end of JSON input";
        for (text, why) in [
            (many(500_000), too_many.as_str()),
            ("[".repeat(500_000), deep),
            ("[[]".to_owned() + &",[]".repeat(300_000), cut),
        ] {
            assert_eq!(refusal(&text), why);
            let written = here(|call| write_file(text.as_bytes(), call)).err().unwrap_or_default();
            assert!(written == why || written == "writefile: no object is in front", "{written}");
        }
    }
}
