//! The JSON of requests and responses.
//!
//! A request: `{"name": "<command>", "value": <anything>}`; a missing value is the empty text. A response: `{"returncode": "<text>",
//! "message": "<text>"}`. Hosts write with xenstore-write, which undoes JSON's escapes: so there may be control characters in texts, which
//! JSON forbids. They read with xenstore-read, which escapes everything but printable ASCII, and the backslash too: so none of that may be in a
//! response, nor a quote. Source: openstack-guest-agents-unix 1.39.1.

use serde_json::{Map, Value};

/// Bytes of the longest response. A guest can store 2015 of them at most in Debian's daemons.
pub const RESPONSE_MAX: usize = 1999;

/// Digits of a number from which on it may not be what a double makes of it.
const EXACT_DIGITS: usize = 15;

/// What a command says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub code: &'static str,
    pub message: String,
}

impl Response {
    /// Done.
    pub fn done(message: impl Into<String>) -> Response {
        Response { code: "0", message: message.into() }
    }

    pub fn failed(message: impl Into<String>) -> Response {
        Response { code: "500", message: message.into() }
    }

    pub fn unknown(command: &str) -> Response {
        Response { code: "404", message: format!("No such agent command '{command}'") }
    }

    /// Its message in one line of printable ASCII.
    pub fn text(&self) -> String {
        self.message.chars().map(plain).map(char::from).collect()
    }

    /// Its bytes, which hosts can read in whatever way they do.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = format!(r#"{{"returncode":"{}","message":""#, self.code).into_bytes();
        let room = RESPONSE_MAX - bytes.len() - 2;
        bytes.extend(self.text().bytes().take(room));
        bytes.extend_from_slice(br#""}"#);
        bytes
    }
}

/// The character, or what stands for it.
fn plain(character: char) -> u8 {
    match character {
        '"' => b'\'',
        '\\' => b'/',
        '\n' | '\r' | '\t' => b' ',
        _ => u8::try_from(character).ok().filter(|byte| (0x20..0x7f).contains(byte)).unwrap_or(b'?'),
    }
}

/// What is asked for, and with what.
///
/// # Errors
/// The response to a request that is none.
pub fn read(data: &[u8]) -> Result<(String, Value), Response> {
    let mut members = object(data).ok_or_else(|| Response::failed("Request is malformed"))?;
    let value = members.remove("value").unwrap_or_else(|| Value::String(String::new()));
    match members.remove("name") {
        None => Err(Response::failed("Request is missing 'name' key")),
        Some(Value::String(name)) => Ok((name, value)),
        // Upstream's words for what it cannot find.
        Some(Value::Null) => Err(Response::unknown("None")),
        Some(Value::Array(_) | Value::Object(_)) => Err(Response::failed("The name of a command is no text")),
        Some(other) => Err(Response::unknown(&other.to_string())),
    }
}

/// The members of an object as hosts write it. `None` for what else it is.
pub fn object(data: &[u8]) -> Option<Map<String, Value>> {
    serde_json::from_slice(&readable(data)).ok()
}

/// The same JSON, with what stands around it taken away, control characters in texts escaped, and long whole numbers as texts: a public key
/// may be a number of 33 digits. Signs, fractions and powers of ten stay what they are.
fn readable(data: &[u8]) -> Vec<u8> {
    let data = data.trim_ascii();
    let data = data.strip_suffix(b"\0").unwrap_or(data).trim_ascii();
    let mut out = Vec::with_capacity(data.len());
    let (mut at, mut in_text) = (0, false);
    while let Some(&byte) = data.get(at) {
        let digits = if in_text { 0 } else { data[at..].iter().take_while(|byte| byte.is_ascii_digit()).count() };
        at += 1;
        match byte {
            b'\\' if in_text => {
                out.push(byte);
                out.extend(data.get(at));
                at += 1;
            }
            b'"' => {
                in_text = !in_text;
                out.push(byte);
            }
            0..0x20 if in_text => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            b'0'..=b'9' if !in_text => {
                let number = &data[at - 1..at - 1 + digits];
                at += digits - 1;
                let is_part = out.last().is_some_and(|byte| b".+-eE".contains(byte))
                    || data.get(at).is_some_and(|byte| b".eE".contains(byte));
                if digits > EXACT_DIGITS && !is_part {
                    out.extend([b"\"", number, b"\""].concat());
                } else {
                    out.extend_from_slice(number);
                }
            }
            _ => out.push(byte),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(response: &Response) -> String {
        String::from_utf8(response.encode()).expect("ASCII")
    }

    #[test]
    fn requests_are_read_as_hosts_write_them() {
        let read = |data: &[u8]| read(data).expect("a request");
        assert_eq!(read(br#"{"name":"version","value":"agent"}"#), ("version".to_owned(), json!("agent")));
        assert_eq!(read(b" {\"name\": \"features\"}\n\0"), ("features".to_owned(), json!("")));
        assert_eq!(read(br#"{"value":{"a":[1]},"name":"x","more":null}"#), ("x".to_owned(), json!({"a": [1]})));
        let raw = read(b"{\"name\":\"password\",\"value\":\"ab\ncd\t\x01\\n\\\"\\u0041\"}");
        assert_eq!(raw.1, json!("ab\ncd\t\u{1}\n\"A"));
        let key = read(br#"{"name":"keyinit","value":128492706489454800633959484585958}"#);
        assert_eq!(key.1, json!("128492706489454800633959484585958"));
        assert_eq!(read(br#"{"name":"keyinit","value":123456789012345}"#).1, json!(123_456_789_012_345_u64));
        for number in
            ["-1234567890123456789", "0.1234567890123456789", "1234567890123456.5", "1e-1234567890123456", "0e0"]
        {
            let value = read(format!(r#"{{"name":"version","value":{number}}}"#).as_bytes()).1;
            assert!(value.is_number(), "{number}: {value}");
        }
        assert_eq!(read("{\"name\":\"ä\\\\\",\"value\":\"1234567890123456789\"}".as_bytes()).0, "ä\\");
    }

    #[test]
    fn what_is_no_request_gets_upstreams_words() {
        let refused = |data: &[u8]| text(&read(data).expect_err("no request"));
        for data in [
            &b""[..],
            b"\0",
            b"{",
            b"nonsense",
            b"[1]",
            b"7",
            b"\"x\"",
            b"null",
            b"true",
            b"{}x",
            b"\xff",
            b"{\"name\":\"a",
        ] {
            assert_eq!(refused(data), r#"{"returncode":"500","message":"Request is malformed"}"#, "{data:?}");
        }
        assert_eq!(refused(b"{}"), r#"{"returncode":"500","message":"Request is missing 'name' key"}"#);
        assert_eq!(refused(br#"{"name":null}"#), r#"{"returncode":"404","message":"No such agent command 'None'"}"#);
        assert_eq!(refused(br#"{"name":7}"#), r#"{"returncode":"404","message":"No such agent command '7'"}"#);
        for data in [&br#"{"name":[]}"#[..], br#"{"name":{}}"#] {
            assert!(refused(data).starts_with(r#"{"returncode":"500","#));
        }
    }

    #[test]
    fn responses_are_short_printable_ascii() {
        let odd = Response::failed("a\"b\\c\r\nd\u{7f}\u{1}é𐍈~");
        assert_eq!(text(&odd), r#"{"returncode":"500","message":"a'b/c  d????~"}"#);
        let room = RESPONSE_MAX - text(&Response::done("")).len();
        assert_eq!(text(&Response::done("x".repeat(room))).len(), RESPONSE_MAX);
        let long = text(&Response::done("x".repeat(room + 1)));
        assert!(long.len() == RESPONSE_MAX && long.ends_with("x\"}"));
        assert!(serde_json::from_str::<Value>(&long).is_ok());
    }
}
