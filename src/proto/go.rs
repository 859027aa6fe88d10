//! JSON objects as Go's `encoding/json` reads them, with its error texts.
//!
//! Names match whatever the case of their ASCII letters, the last of several counts, unknown members are passed over, and `null` is the
//! same as nothing.

use serde_json::Value;

use crate::json::scan::{Invalid, Scanner};
use crate::json::text;

/// What Go says of a text that ends too early.
const ENDED: &str = "unexpected end of JSON input";

/// The members of one object, in the order of the text.
#[derive(Debug)]
pub struct Members<'a> {
    /// What the structure is called in errors.
    structure: &'static str,
    members: Vec<(String, &'a [u8])>,
}

/// Reads an object; `structure` is what Go calls it.
///
/// # Errors
/// Go's text for what is no JSON or no object; of a syntax error it says where less exactly than Go.
pub fn read<'a>(bytes: &'a [u8], structure: &'static str) -> Result<Members<'a>, String> {
    let (value, rest) = value(bytes)?;
    if let Some(byte) = rest.trim_ascii_start().first() {
        return Err(format!("invalid character {} after top-level value", quoted(*byte)));
    }
    match value.first() {
        Some(b'{') => Ok(Members { structure, members: members(value)? }),
        Some(b'n') => Ok(Members { structure, members: Vec::new() }),
        _ => Err(format!("json: cannot unmarshal {} into Go value of type api.{structure}", description(value))),
    }
}

impl<'a> Members<'a> {
    /// The text of a member's value, byte for byte. `None`: it is missing, or null.
    pub fn raw(&self, name: &str) -> Option<&'a [u8]> {
        let mut found = self.members.iter().rev().filter(|(other, _)| other.eq_ignore_ascii_case(name));
        found.next().map(|(_, value)| *value).filter(|value| *value != b"null")
    }

    /// A string; empty when it is missing.
    pub fn text(&self, name: &str) -> Result<String, String> {
        let Some(value) = self.raw(name) else { return Ok(String::new()) };
        self.string(name, value)
    }

    /// A whole number; 0 when it is missing.
    pub fn number(&self, name: &str) -> Result<i64, String> {
        let Some(value) = self.raw(name) else { return Ok(0) };
        let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
        number.ok_or_else(|| match value.first() {
            Some(b'-' | b'0'..=b'9') => self.wrong(name, &format!("number {}", String::from_utf8_lossy(value)), "int"),
            _ => self.wrong(name, description(value), "int"),
        })
    }

    /// A list of strings; empty when it is missing.
    pub fn texts(&self, name: &str) -> Result<Vec<String>, String> {
        let Some(value) = self.raw(name) else { return Ok(Vec::new()) };
        let Ok(Value::Array(list)) = serde_json::from_slice::<Value>(value) else {
            return Err(self.wrong(name, description(value), "[]string"));
        };
        let text = |value: &Value| match value {
            Value::String(text) => Ok(text.clone()),
            Value::Null => Ok(String::new()),
            other => Err(self.wrong(name, description(other.to_string().as_bytes()), "string")),
        };
        list.iter().map(text).collect()
    }

    fn string(&self, name: &str, value: &[u8]) -> Result<String, String> {
        if value.first() == Some(&b'"') {
            return Ok(text::unquote(value));
        }
        Err(self.wrong(name, description(value), "string"))
    }

    fn wrong(&self, name: &str, what: &str, wanted: &str) -> String {
        format!("json: cannot unmarshal {what} into Go struct field {}.{name} of type {wanted}", self.structure)
    }
}

/// The first value in `bytes`, and what follows it.
fn value(bytes: &[u8]) -> Result<(&[u8], &[u8]), String> {
    let bytes = bytes.trim_ascii_start();
    let mut scanner = Scanner::value();
    let refused = |why| match why {
        Invalid::TooDeep => "json: nested too deeply".to_owned(),
        _ => bytes.first().map_or_else(String::new, |byte| match byte {
            b'{' | b'[' | b'"' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n' => {
                "invalid character in JSON input".to_owned()
            }
            other => format!("invalid character {} looking for beginning of value", quoted(*other)),
        }),
    };
    // A number alone ends only with what follows it.
    let end = match scanner.feed(bytes).map_err(refused)? {
        Some(end) => end,
        None if scanner.feed(b"\n").is_ok_and(|end| end == Some(0)) => bytes.len(),
        None => return Err(ENDED.to_owned()),
    };
    Ok(bytes.split_at(end))
}

/// The members of an object that is known to be one.
fn members(object: &[u8]) -> Result<Vec<(String, &[u8])>, String> {
    let mut members = Vec::new();
    let mut rest = object.get(1..).unwrap_or_default().trim_ascii_start();
    while rest.first() == Some(&b'"') {
        let (name, behind) = value(rest)?;
        let behind = behind.trim_ascii_start().strip_prefix(b":").ok_or(ENDED)?;
        let (found, behind) = value(behind)?;
        members.push((text::unquote(name), found));
        let behind = behind.trim_ascii_start();
        rest = behind.strip_prefix(b",").unwrap_or(behind).trim_ascii_start();
    }
    Ok(members)
}

/// What Go calls such a value.
fn description(value: &[u8]) -> &'static str {
    match value.first() {
        Some(b'"') => "string",
        Some(b'{') => "object",
        Some(b'[') => "array",
        Some(b't' | b'f') => "bool",
        _ => "number",
    }
}

/// A byte as Go shows it.
fn quoted(byte: u8) -> String {
    match byte {
        b'\'' => r"'\''".to_owned(),
        b'"' => r#"'"'"#.to_owned(),
        0x20..=0x7e => format!("'{}'", char::from(byte)),
        b'\n' => r"'\n'".to_owned(),
        other => format!("'\\x{other:02x}'"),
    }
}

/// `{"msg":"…"}`, as Go writes it.
pub fn error(text: &str) -> Vec<u8> {
    [br#"{"msg":"#, text::quote(text.as_bytes()).as_slice(), b"}"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_found_as_go_finds_them() {
        let text =
            br#" {"A":"1","b" : -7 ,"x":{"a":"no"},"data": [ 1, "\u00e9" ] ,"a":"\u0032","l":["a",null],"n":null} "#;
        let members = read(text, "Hyper").expect("an object");
        assert_eq!(members.text("a"), Ok("2".to_owned()));
        assert_eq!(members.number("B"), Ok(-7));
        assert_eq!(members.raw("Data"), Some(&br#"[ 1, "\u00e9" ]"#[..]));
        assert_eq!(members.texts("l"), Ok(vec!["a".to_owned(), String::new()]));
        assert_eq!((members.raw("n"), members.number("n"), members.text("none")), (None, Ok(0), Ok(String::new())));
        assert!(read(b"null", "Hyper").expect("null").members.is_empty());
        assert!(read(b"{ }", "Hyper").expect("empty").members.is_empty());
    }

    #[test]
    fn errors_are_gos() {
        let rows: [(&[u8], &str); 9] = [
            (b"", ENDED),
            (b"  ", ENDED),
            (br#"{"a":"#, ENDED),
            (b"tru", ENDED),
            (b"x", "invalid character 'x' looking for beginning of value"),
            (b"{}x", "invalid character 'x' after top-level value"),
            (b"[1]", "json: cannot unmarshal array into Go value of type api.Signal"),
            (b"12", "json: cannot unmarshal number into Go value of type api.Signal"),
            (br#"{"a" 1}"#, "invalid character in JSON input"),
        ];
        for (text, why) in rows {
            assert_eq!(read(text, "Signal").err().as_deref(), Some(why), "{}", String::from_utf8_lossy(text));
        }
        let members = read(br#"{"t":1,"n":"1","f":1.5,"b":true,"l":{},"m":["a",2]}"#, "Signal").expect("an object");
        let field = |what: &str, name: &str, wanted: &str| {
            Some(format!("json: cannot unmarshal {what} into Go struct field Signal.{name} of type {wanted}"))
        };
        assert_eq!(members.text("t").err(), field("number", "t", "string"));
        assert_eq!(members.number("n").err(), field("string", "n", "int"));
        assert_eq!(members.number("f").err(), field("number 1.5", "f", "int"));
        assert_eq!(members.number("b").err(), field("bool", "b", "int"));
        assert_eq!(members.texts("l").err(), field("object", "l", "[]string"));
        assert_eq!(members.texts("m").err(), field("number", "m", "string"));
    }

    #[test]
    fn error_texts_are_written_for_a_browser_as_go_does() {
        assert_eq!(error("a <b> & \"c\""), br#"{"msg":"a \u003cb\u003e \u0026 \"c\""}"#);
    }
}
