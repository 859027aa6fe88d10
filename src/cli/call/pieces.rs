//! A JSON text that is known to be valid, token by token: order and spelling stay as they are.

use std::io::{self, Write};

use crate::json::scan::Scanner;
use crate::json::text;

/// Levels that are indented. A few thousand may come, and each line of them would be as long.
const INDENTED_MAX: usize = 32;

/// What a text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One JSON value, and white space around it.
    Json,
    /// The beginning of one.
    Cut,
    NoJson,
}

/// What a text is.
pub fn kind(text: &[u8]) -> Kind {
    let mut scanner = Scanner::value();
    let end = match scanner.feed(text) {
        Ok(Some(end)) => end,
        // A number ends only with what follows it.
        Ok(None) => match scanner.feed(b"\n") {
            Ok(Some(_)) => text.len(),
            _ => return Kind::Cut,
        },
        Err(_) => return Kind::NoJson,
    };
    if text[end..].trim_ascii().is_empty() { Kind::Json } else { Kind::NoJson }
}

/// The tokens of a valid text.
pub struct Pieces<'a> {
    rest: &'a [u8],
}

impl<'a> Pieces<'a> {
    pub fn of(text: &'a [u8]) -> Pieces<'a> {
        Pieces { rest: text }
    }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.rest.trim_ascii_start();
        let length = match rest.first()? {
            b'{' | b'}' | b'[' | b']' | b':' | b',' => 1,
            b'"' => string(rest),
            _ => rest.iter().position(|byte| b"{}[]:,\" \t\r\n".contains(byte)).unwrap_or(rest.len()),
        };
        let (piece, rest) = rest.split_at(length.min(rest.len()));
        self.rest = rest;
        Some(piece)
    }
}

/// Bytes of the string in front, with its quotes.
fn string(text: &[u8]) -> usize {
    let mut at = 1;
    while let Some(found) = text.get(at..).and_then(|rest| rest.iter().position(|byte| matches!(byte, b'"' | b'\\'))) {
        at += found;
        if text[at] == b'"' {
            return at + 1;
        }
        at += 2;
    }
    text.len()
}

/// Calls `take` with each member of the object itself: its name, and the first token of its value. Nothing for what is no object.
pub fn for_each_member(text: &[u8], take: &mut dyn FnMut(&str, &[u8])) {
    let (mut depth, mut name, mut before) = (0u32, String::new(), &b""[..]);
    for piece in Pieces::of(text) {
        match (depth, before) {
            (0, _) if piece != b"{" => return,
            (1, b"{" | b",") => name = text::unquote(piece),
            (1, b":") => take(&name, piece),
            _ => {}
        }
        match piece {
            b"{" | b"[" => depth += 1,
            b"}" | b"]" => depth -= 1,
            _ => {}
        }
        before = piece;
    }
}

/// Writes the text for people: a line for each member and element, and nothing in it that would steer a terminal.
pub fn write_indented(text: &[u8], out: &mut dyn Write) -> io::Result<()> {
    let (mut depth, mut before) = (0usize, &b""[..]);
    for piece in Pieces::of(text) {
        let (opened, closes) = (matches!(before, b"{" | b"["), matches!(piece, b"}" | b"]"));
        if closes {
            depth -= 1;
        }
        if before == b"," || opened != closes {
            write!(out, "\n{:indent$}", "", indent = 2 * depth.min(INDENTED_MAX))?;
        }
        write_harmless(piece, out)?;
        match piece {
            b"{" | b"[" => depth += 1,
            b":" => out.write_all(b" ")?,
            _ => {}
        }
        before = piece;
    }
    Ok(())
}

/// JSON lets pass the control characters of Unicode but not those of ASCII; and bytes that are no text.
fn write_harmless(piece: &[u8], out: &mut dyn Write) -> io::Result<()> {
    for character in String::from_utf8_lossy(piece).chars() {
        if character.is_control() {
            write!(out, "\\u{:04x}", u32::from(character))?;
        } else {
            out.write_all(character.encode_utf8(&mut [0; 4]).as_bytes())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn indented(text: &str) -> String {
        let mut out = Vec::new();
        write_indented(text.as_bytes(), &mut out).expect("memory");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn a_text_is_told_from_its_beginning_and_from_no_json() {
        for text in ["{}", " [1] \n", "5", "\"x\"", "null", "{\"a\":[{}]}"] {
            assert_eq!(kind(text.as_bytes()), Kind::Json, "{text}");
        }
        for text in ["", " ", "{\"a\":1", "[1,", "\"x", "nul", "-"] {
            assert_eq!(kind(text.as_bytes()), Kind::Cut, "{text}");
        }
        for text in ["hello", "{}{}", "{} x", "[1,]", "{a:1}", "5 6"] {
            assert_eq!(kind(text.as_bytes()), Kind::NoJson, "{text}");
        }
    }

    #[test]
    fn members_come_in_their_order_a_level_deep() {
        let text = r#" {"b" : {"Status":7,"x":[1,{"y":2}]}, "\u0061":"v, {", "b":[ ],"c":-5e1 } "#;
        let mut found = Vec::new();
        for_each_member(text.as_bytes(), &mut |name, value| {
            found.push((name.to_owned(), String::from_utf8_lossy(value).into_owned()));
        });
        let wanted = [("b", "{"), ("a", "\"v, {\""), ("b", "["), ("c", "-5e1")];
        assert_eq!(found, wanted.map(|(name, value)| (name.to_owned(), value.to_owned())));
        for text in ["[{\"a\":1}]", "5", "{}", ""] {
            for_each_member(text.as_bytes(), &mut |name, _| panic!("{name} in {text}"));
        }
    }

    #[test]
    fn a_text_is_indented_as_it_stands() {
        let text = r#"{"z":1,"a":{"x":[],"y":{ }, "w":[1, "q\"}{,"]},"n":null}"#;
        let wanted = "{\n  \"z\": 1,\n  \"a\": {\n    \"x\": [],\n    \"y\": {},\n    \"w\": [\n      1,\n      \"q\\\"}{,\"\n    ]\n  },\n  \"n\": null\n}";
        assert_eq!(indented(text), wanted);
        assert_eq!(indented(&indented(text)), wanted);
        assert_eq!((indented("5"), indented("{}"), indented(" [] ")), ("5".into(), "{}".into(), "[]".into()));
        assert_eq!(indented("[\"\u{9b}31m\u{7f}ä\"]"), "[\n  \"\\u009b31m\\u007fä\"\n]");
    }

    #[test]
    fn deep_texts_do_not_grow_with_the_square_of_their_depth() {
        let text = format!("{}{}", "[".repeat(9000), "]".repeat(9000));
        assert!(indented(&text).len() < 18_000 * (2 * INDENTED_MAX + 2));
    }
}
