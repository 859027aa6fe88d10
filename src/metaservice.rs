//! What both sides of the metadata service have in common: names, limits, and the actions that a guest polls for.
//!
//! An action: `{"id": string, "type": string, "path": string, "command": null | [string…], "tty": bool}`. Members may be missing or null,
//! but for the first two. Source: taskcluster-worker at commit 595e1fa.

use serde_json::{Map, Value};

pub const EXECUTE: &str = "/engine/v1/execute";
pub const LOG: &str = "/engine/v1/log";
pub const SUCCESS: &str = "/engine/v1/success";
pub const FAILED: &str = "/engine/v1/failed";
pub const POLL: &str = "/engine/v1/poll";
/// The id of the action stands in its query as `id`.
pub const REPLY: &str = "/engine/v1/reply";
pub const PING: &str = "/engine/v1/ping";

/// The header of a reply without the file that was asked for. In lower case, as `Headers::get` wants it.
pub const ERROR_HEADER: &str = "x-taskcluster-worker-error";

/// What it says.
pub const FILE_NOT_FOUND: &str = "file-not-found";

/// Bytes of the longest response, and of the longest list of files.
pub const RESPONSE_MAX: usize = 10 << 20;

/// What a guest is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// There was nothing for as long as a poll waits.
    None,
    GetArtifact,
    ListFolder,
    ExecShell,
    KillProcess,
    /// Of a host that knows more than we do.
    Unknown(String),
}

/// The kinds that have names, with them.
const KINDS: [(&str, Kind); 5] = [
    ("none", Kind::None),
    ("get-artifact", Kind::GetArtifact),
    ("list-folder", Kind::ListFolder),
    ("exec-shell", Kind::ExecShell),
    ("kill-process", Kind::KillProcess),
];

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    pub id: String,
    pub kind: Kind,
    /// Of the file or folder.
    pub path: String,
    /// Of the shell; none for the default one.
    pub command: Vec<String>,
    pub tty: bool,
}

impl Action {
    /// Reads one. The error says what is wrong with it.
    pub fn from_json(text: &str) -> Result<Action, String> {
        let object = object(text)?;
        let kind = string(&object, "type")?;
        let kind = KINDS.into_iter().find(|(name, _)| *name == kind).map_or(Kind::Unknown(kind), |(_, kind)| kind);
        let tty = match object.get("tty") {
            None | Some(Value::Null) => false,
            Some(value) => value.as_bool().ok_or("tty: no boolean")?,
        };
        let id = string(&object, "id")?;
        // It stands in the query of the reply as it is.
        if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')) {
            return Err("id: not of letters, digits, _ and -".to_owned());
        }
        Ok(Action { id, kind, path: string(&object, "path")?, command: strings(&object, "command")?, tty })
    }

    pub fn to_json(&self) -> String {
        let kind = match &self.kind {
            Kind::Unknown(name) => name,
            known => KINDS.iter().find(|(_, kind)| kind == known).map_or("none", |(name, _)| name),
        };
        let command = if self.command.is_empty() { Value::Null } else { Value::from(self.command.clone()) };
        let (id, kind, path) = (Value::from(self.id.as_str()), Value::from(kind), Value::from(self.path.as_str()));
        format!(r#"{{"id":{id},"type":{kind},"path":{path},"command":{command},"tty":{}}}"#, self.tty)
    }
}

/// Reads an object; the error says what is wrong with the text.
pub fn object(text: &str) -> Result<Map<String, Value>, String> {
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err("no object".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// A member that is a string; empty when it is missing or null.
fn string(object: &Map<String, Value>, name: &str) -> Result<String, String> {
    match object.get(name) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(format!("{name}: no string")),
    }
}

/// A member that is a list of strings; empty when it is missing or null.
pub fn strings(object: &Map<String, Value>, name: &str) -> Result<Vec<String>, String> {
    let wrong = || format!("{name}: no list of strings");
    match object.get(name) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(items)) => {
            items.iter().map(|item| item.as_str().map(str::to_owned).ok_or_else(wrong)).collect()
        }
        Some(_) => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_is_written_as_upstream_writes_it_and_read_again() {
        let shell = Action {
            id: "AbC".to_owned(),
            kind: Kind::ExecShell,
            path: String::new(),
            command: vec!["sh".to_owned(), "-c".to_owned()],
            tty: true,
        };
        let text = r#"{"id":"AbC","type":"exec-shell","path":"","command":["sh","-c"],"tty":true}"#;
        assert_eq!(shell.to_json(), text);
        assert_eq!(Action::from_json(text), Ok(shell));
        let text = r#"{"id":"x","type":"get-artifact","path":"/a \"b\"","command":null,"tty":false}"#;
        let get = Action::from_json(text).expect("an action");
        assert_eq!((&get.kind, get.path.as_str(), get.to_json().as_str()), (&Kind::GetArtifact, "/a \"b\"", text));
    }

    #[test]
    fn what_is_missing_is_empty_and_what_is_wrong_is_refused() {
        let none = Action::from_json(r#"{"id":"x","type":"none","more":1}"#).expect("an action");
        assert_eq!((none.kind, none.tty, none.command.len()), (Kind::None, false, 0));
        let new = Action::from_json(r#"{"id":"x","type":"dance"}"#).expect("an action");
        assert_eq!(new.kind, Kind::Unknown("dance".to_owned()));
        assert!(new.to_json().contains(r#""type":"dance""#));
        for text in ["", "{", "[]", r#"{"type":"none"}"#, r#"{"id":1}"#, r#"{"id":"x","command":"sh"}"#] {
            assert!(Action::from_json(text).is_err(), "{text}");
        }
        for id in ["", "a b", "a&b", "%41", "a#b", "a\\r\\nX: y", "a\\u0000", "\u{e4}"] {
            let text = format!(r#"{{"id":"{id}","type":"none"}}"#);
            assert!(Action::from_json(&text).is_err_and(|why| why.starts_with("id: ")), "{text}");
        }
        assert!(Action::from_json(r#"{"id":"aZ09_-","type":"none"}"#).is_ok());
    }
}
