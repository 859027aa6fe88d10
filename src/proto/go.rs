//! JSON objects as Go's `encoding/json` reads them, with its error texts.
//!
//! Names match whatever the case of their ASCII letters, the last of several counts, unknown members are passed over, and `null` is the
//! same as nothing. Of several wrong members the one is told that is asked for first; Go takes that which stands first. What a text of a few
//! bytes a value costs is bounded by `VALUES_MAX`.

use std::str::FromStr;

use serde_json::{Map, Value};

use crate::commands::arguments::VALUES_MAX;
use crate::json::scan::Scanner;
use crate::json::{syntax, text};

/// The members of one object, in the order of the text.
#[derive(Debug)]
pub struct Members<'a> {
    /// What the structure is called in errors, with its package.
    structure: &'static str,
    members: Vec<(String, &'a [u8])>,
}

/// Values within so many others are passed over in a tree: no command has any there, and each level costs another look at all of
/// the text, and some of the stack.
const DEPTH_MAX: usize = 16;

/// Checks that a text is one JSON value of no more than `VALUES_MAX` values, so that a tree of it may be built.
///
/// # Errors
/// Go's text for what is no JSON, and ours for what is too much.
pub fn check(bytes: &[u8]) -> Result<(), String> {
    match syntax::check(bytes)? {
        0..=VALUES_MAX => Ok(()),
        _ => Err(format!("more than the limit of {VALUES_MAX} values")),
    }
}

/// Reads an object; `structure` is what Go calls it (`api.Signal`).
///
/// # Errors
/// Those of [`check`], and Go's text for what is no object.
pub fn read<'a>(bytes: &'a [u8], structure: &'static str) -> Result<Members<'a>, String> {
    check(bytes)?;
    let value = syntax::trim_start(bytes);
    match value.first() {
        Some(b'{') => Ok(Members { structure, members: members(value) }),
        Some(b'n') => Ok(Members { structure, members: Vec::new() }),
        _ => Err(format!("json: cannot unmarshal {} into Go value of type {structure}", description(value))),
    }
}

/// The tree of a value, all names in it in lower case. Wherever a text is no Unicode there is U+FFFD, a number that is too large for a `f64`
/// is null, and so is what lies deeper than `DEPTH_MAX`.
///
/// # Errors
/// Those of [`check`].
pub fn tree(bytes: &[u8]) -> Result<Value, String> {
    check(bytes)?;
    let value = syntax::trim_start(bytes);
    let (value, _) = split(value);
    Ok(branch(value, DEPTH_MAX))
}

/// The tree of a value without white space around it.
fn branch(value: &[u8], depth: usize) -> Value {
    match value.first() {
        Some(b'"') => Value::String(text::unquote(value)),
        Some(b'{' | b'[') if depth == 0 => Value::Null,
        Some(b'[') => Elements { rest: inside(value) }.map(|value| branch(value, depth - 1)).collect(),
        Some(b'{') => {
            let mut tree = Map::new();
            for (name, value) in members(value) {
                let (name, value) = (name.to_ascii_lowercase(), branch(value, depth - 1));
                // Null changes neither a string nor a number that stood before it.
                let changes = |old: &Value| !value.is_null() || old.is_array() || old.is_object();
                if tree.get(&name).is_none_or(changes) {
                    tree.insert(name, value);
                }
            }
            Value::Object(tree)
        }
        // Only numbers can be wrong here.
        _ => serde_json::from_slice(value).unwrap_or_default(),
    }
}

impl<'a> Members<'a> {
    /// The text of a member's value, byte for byte. `None`: it is missing, or null.
    pub fn raw(&self, name: &str) -> Option<&'a [u8]> {
        self.verbatim(name).filter(|value| *value != b"null")
    }

    /// The same, where null is a value like others, as it is for a `json.RawMessage`.
    pub fn verbatim(&self, name: &str) -> Option<&'a [u8]> {
        self.named(name).last()
    }

    /// A string; empty when it is missing.
    pub fn text(&self, name: &str) -> Result<String, String> {
        let mut text = String::new();
        for value in self.not_null(name) {
            text = self.string(name, value)?;
        }
        Ok(text)
    }

    /// A whole number; 0 when it is missing.
    pub fn number(&self, name: &str) -> Result<i64, String> {
        self.parsed(name, "int")
    }

    fn parsed<T: FromStr + Default>(&self, name: &str, kind: &str) -> Result<T, String> {
        let mut number = T::default();
        for value in self.not_null(name) {
            let parsed = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
            number = parsed.ok_or_else(|| match value.first() {
                Some(b'-' | b'0'..=b'9') => {
                    self.wrong(name, &format!("number {}", String::from_utf8_lossy(value)), kind)
                }
                _ => self.wrong(name, description(value), kind),
            })?;
        }
        Ok(number)
    }

    /// A whole number that is not negative; 0 when it is missing.
    pub fn unsigned(&self, name: &str) -> Result<u64, String> {
        self.parsed(name, "uint64")
    }

    /// True or false; false when it is missing.
    pub fn flag(&self, name: &str) -> Result<bool, String> {
        let mut flag = false;
        for value in self.not_null(name) {
            flag = match value {
                b"true" => true,
                b"false" => false,
                other => return Err(self.wrong(name, description(other), "bool")),
            };
        }
        Ok(flag)
    }

    /// A list of strings; empty when it is missing.
    pub fn texts(&self, name: &str) -> Result<Vec<String>, String> {
        let mut texts = Vec::new();
        for value in self.named(name) {
            texts = match value.first() {
                Some(b'[') => Elements { rest: inside(value) }.map(|value| self.string(name, value)).collect(),
                Some(b'n') => Ok(Vec::new()),
                _ => Err(self.wrong(name, description(value), "[]string")),
            }?;
        }
        Ok(texts)
    }

    /// All values of a member: Go takes each in turn, and complains of the first that is wrong though a right one follows.
    fn named<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'a [u8]> + 's {
        self.members.iter().filter(move |(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| *value)
    }

    /// The same without those that change neither a string nor a number.
    fn not_null<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'a [u8]> + 's {
        self.named(name).filter(|value| *value != b"null")
    }

    fn string(&self, name: &str, value: &[u8]) -> Result<String, String> {
        match value.first() {
            Some(b'"') => Ok(text::unquote(value)),
            Some(b'n') => Ok(String::new()),
            _ => Err(self.wrong(name, description(value), "string")),
        }
    }

    fn wrong(&self, name: &str, what: &str, wanted: &str) -> String {
        let structure = self.structure.rsplit('.').next().unwrap_or_default();
        format!("json: cannot unmarshal {what} into Go struct field {structure}.{name} of type {wanted}")
    }
}

/// The values of a list that is known to be one.
struct Elements<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Elements<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if matches!(self.rest.first(), None | Some(b']')) {
            return None;
        }
        let (value, rest) = split(self.rest);
        self.rest = behind(rest, b",");
        Some(value)
    }
}

/// The members of an object that is known to be one.
fn members(object: &[u8]) -> Vec<(String, &[u8])> {
    let mut members = Vec::new();
    let mut rest = inside(object);
    while rest.first() == Some(&b'"') {
        let (name, named) = split(rest);
        let (value, next) = split(behind(named, b":"));
        members.push((text::unquote(name), value));
        rest = behind(next, b",");
    }
    members
}

/// What follows the bracket that a text begins with.
fn inside(value: &[u8]) -> &[u8] {
    syntax::trim_start(value.get(1..).unwrap_or_default())
}

/// What follows `mark`, if it is there, with white space on both sides.
fn behind<'a>(bytes: &'a [u8], mark: &[u8]) -> &'a [u8] {
    let bytes = syntax::trim_start(bytes);
    bytes.strip_prefix(mark).map_or(bytes, syntax::trim_start)
}

/// The value at the start of what stands within a checked object or list, and what follows it.
fn split(bytes: &[u8]) -> (&[u8], &[u8]) {
    // There is always a bracket behind it, so that even a number ends.
    let end = Scanner::value().feed(bytes).ok().flatten().unwrap_or(bytes.len());
    bytes.split_at(end)
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
        let members = read(text, "api.Hyper").expect("an object");
        assert_eq!(members.text("a"), Ok("2".to_owned()));
        assert_eq!(members.number("B"), Ok(-7));
        assert_eq!(members.raw("Data"), Some(&br#"[ 1, "\u00e9" ]"#[..]));
        assert_eq!(members.texts("l"), Ok(vec!["a".to_owned(), String::new()]));
        assert_eq!((members.raw("n"), members.number("n"), members.text("none")), (None, Ok(0), Ok(String::new())));
        assert!(read(b"null", "api.Hyper").expect("null").members.is_empty());
        assert!(read(b"{ }", "api.Hyper").expect("empty").members.is_empty());
    }

    #[test]
    fn trees_are_what_go_decodes() {
        let deep = "[".repeat(3000) + &"]".repeat(3000);
        let text = [
            br#" {"Args":["a\ud800b","\ude00\ud83d","<"#.as_slice(),
            &[0xff],
            br#">"],"ARGS":[1e999,-7,true],"deep":"#,
        ];
        let text =
            [&text.concat()[..], deep.as_bytes(), br#","behind":{"X":null,"y":"5","Y":null,"z":[1],"z":null}} "#]
                .concat();
        let tree = tree(&text).expect("JSON");
        assert_eq!(
            (&tree["args"], &tree["behind"]),
            (&serde_json::json!([null, -7, true]), &serde_json::json!({"x": null, "y": "5", "z": null}))
        );
        let first = br#"["a\ud800b","\ude00\ud83d","\ud83d\ude00"]"#;
        assert_eq!(super::tree(first), Ok(serde_json::json!(["a\u{fffd}b", "\u{fffd}\u{fffd}", "\u{1f600}"])));
        let depth = std::iter::successors(Some(&tree["deep"]), |value| value.get(0)).count();
        assert_eq!(depth, DEPTH_MAX);
        for (text, value) in
            [("12 ", serde_json::json!(12)), (" null", Value::Null), ("\"x\"\n", serde_json::json!("x"))]
        {
            assert_eq!(super::tree(text.as_bytes()), Ok(value));
        }
    }

    #[test]
    fn errors_are_gos() {
        let rows: [(&[u8], &str); 12] = [
            (b"", "unexpected end of JSON input"),
            (b"  ", "unexpected end of JSON input"),
            (br#"{"a":"#, "unexpected end of JSON input"),
            (b"tru", "invalid character ' ' in literal true (expecting 'e')"),
            (b"x", "invalid character 'x' looking for beginning of value"),
            (b"{}x", "invalid character 'x' after top-level value"),
            (b"[1]", "json: cannot unmarshal array into Go value of type api.Signal"),
            (b"12", "json: cannot unmarshal number into Go value of type api.Signal"),
            (b"true", "json: cannot unmarshal bool into Go value of type api.Signal"),
            (b"\"\"", "json: cannot unmarshal string into Go value of type api.Signal"),
            (br#"{"a" 1}"#, "invalid character '1' after object key"),
            (b"{}\x0c", "invalid character '\\f' after top-level value"),
        ];
        for (text, why) in rows {
            assert_eq!(read(text, "api.Signal").err().as_deref(), Some(why), "{}", String::from_utf8_lossy(text));
        }
        let text = br#"{"t":1,"n":"1","f":1.5,"b":true,"l":{},"m":["a",2],"u":-1,"no":false}"#;
        let members = read(text, "api.Signal").expect("an object");
        let field = |what: &str, name: &str, wanted: &str| {
            Some(format!("json: cannot unmarshal {what} into Go struct field Signal.{name} of type {wanted}"))
        };
        assert_eq!(members.text("t").err(), field("number", "t", "string"));
        assert_eq!(members.number("n").err(), field("string", "n", "int"));
        assert_eq!(members.number("f").err(), field("number 1.5", "f", "int"));
        assert_eq!(members.number("b").err(), field("bool", "b", "int"));
        assert_eq!(members.unsigned("u").err(), field("number -1", "u", "uint64"));
        assert_eq!((members.flag("b"), members.flag("no"), members.flag("none")), (Ok(true), Ok(false), Ok(false)));
        assert_eq!(members.flag("n").err(), field("string", "n", "bool"));
        assert_eq!(members.texts("l").err(), field("object", "l", "[]string"));
        assert_eq!(members.texts("m").err(), field("number", "m", "string"));
    }

    #[test]
    fn numbers_are_whole_and_of_64_bits() {
        let number = |text: &str| {
            read(format!("{{\"n\":{text}}}").as_bytes(), "api.Signal").and_then(|members| members.number("n"))
        };
        let rows = [("-0", 0), ("9223372036854775807", i64::MAX), ("-9223372036854775808", i64::MIN)];
        for (text, expected) in rows {
            assert_eq!(number(text), Ok(expected));
        }
        for text in ["9223372036854775808", "-9223372036854775809", "1.0", "1e2"] {
            let why = format!("json: cannot unmarshal number {text} into Go struct field Signal.n of type int");
            assert_eq!(number(text), Err(why));
        }
    }

    #[test]
    fn of_several_values_the_last_counts_and_the_first_wrong_one_is_told() {
        let members = |text: &'static str| read(text.as_bytes(), "api.Hyper").expect("an object");
        let both = members(r#"{"t":"a","T":"b","t":null,"n":1,"n":null,"l":["a"],"l":null,"r":1,"r":null}"#);
        assert_eq!((both.text("t"), both.number("n")), (Ok("b".to_owned()), Ok(1)));
        assert_eq!((both.texts("l"), both.raw("r"), both.verbatim("r")), (Ok(Vec::new()), None, Some(&b"null"[..])));
        let wrong = members(r#"{"t":1,"t":"a","n":"a","n":1,"l":[1,true],"l":[]}"#);
        let why = |what, name, wanted| {
            Some(format!("json: cannot unmarshal {what} into Go struct field Hyper.{name} of type {wanted}"))
        };
        assert_eq!(wrong.text("t").err(), why("number", "t", "string"));
        assert_eq!(wrong.number("n").err(), why("string", "n", "int"));
        assert_eq!(wrong.texts("l").err(), why("number", "l", "string"));
    }

    #[test]
    fn as_many_values_as_the_limit_are_read_and_no_more() {
        // The object and the list are values too.
        let list = |count: usize| format!(r#"{{"l":[{}"a"]}}"#, r#""a" , "#.repeat(count - 3));
        let most = list(VALUES_MAX);
        assert_eq!(check(most.as_bytes()), Ok(()));
        let texts = read(most.as_bytes(), "api.Hyper").expect("an object").texts("l").expect("strings");
        assert_eq!((texts.len(), texts.last().map(String::as_str)), (VALUES_MAX - 2, Some("a")));
        let over = list(VALUES_MAX + 1);
        let why = Err("more than the limit of 4096 values".to_owned());
        assert_eq!((check(over.as_bytes()), read(over.as_bytes(), "api.Hyper").map(|_| ())), (why.clone(), why));
        let members = format!("{{{}\"a\":1}}", "\"a\":1,".repeat(VALUES_MAX - 1));
        assert!(read(members.as_bytes(), "api.Hyper").is_err());
    }

    #[test]
    fn the_deepest_text_is_read_without_going_down_into_it() {
        let (open, close) = ("[".repeat(9_999), "]".repeat(9_999));
        // As a tree it would be over both limits, and over the stack.
        let deepest = format!("{{\"d\":{open}{close},\"t\":\"a\"}}");
        assert_eq!(read(deepest.as_bytes(), "api.Hyper").err().as_deref(), Some("more than the limit of 4096 values"));
        let (open, close) = ("[".repeat(VALUES_MAX - 2), "]".repeat(VALUES_MAX - 2));
        let deep = format!("{{\"d\":{open}{close},\"t\":\"a\"}}");
        let members = read(deep.as_bytes(), "api.Hyper").expect("an object");
        assert_eq!(members.raw("d").map(<[u8]>::len), Some(2 * (VALUES_MAX - 2)));
        assert_eq!(members.text("t"), Ok("a".to_owned()));
    }

    #[test]
    fn error_texts_are_written_for_a_browser_as_go_does() {
        assert_eq!(error("a <b> & \"c\""), br#"{"msg":"a \u003cb\u003e \u0026 \"c\""}"#);
    }
}
