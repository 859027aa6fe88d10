//! Records as JSON: whatever stands in the file, known or not, in the order of the file.
//!
//! Only what JSON lacks is changed: bytes, and text that is not UTF-8, become `{"base64": …}` unless they are UTF-8; tags are passed over;
//! keys that are no text become their JSON as text.

use std::io::{self, Write};

use crate::wire::cbor::{ARRAY, BREAK, BYTES, INDEFINITE, MAP, NEGATIVE, Reader, TAG, TEXT, UINT};
use crate::wire::frame::Frame;
use crate::wire::record::Record;

/// Writes one record on a line. The item is whole and well-formed.
pub fn write_line(out: &mut dyn Write, count: u64, item: &[u8]) -> io::Result<()> {
    let mut line = format!("{{\"record\":{count},\"kind\":\"{}\"", kind(item)).into_bytes();
    let mut members = Vec::new();
    Walker { rest: item }.value(&mut members);
    match members.strip_prefix(b"{") {
        Some(b"}") => line.push(b'}'),
        Some(members) => {
            line.push(b',');
            line.extend_from_slice(members);
        }
        // Something else than a map.
        None => {
            line.extend_from_slice(b",\"item\":");
            line.extend_from_slice(&members);
            line.push(b'}');
        }
    }
    line.push(b'\n');
    out.write_all(&line)
}

/// What a record is, in a word; of a frame, which one.
fn kind(item: &[u8]) -> &'static str {
    match Record::decode(item) {
        Ok(Record::Header(_)) => "header",
        Ok(Record::Start { .. }) => "start",
        Ok(Record::End { .. }) => "end",
        Ok(Record::Footer { .. }) => "footer",
        Ok(Record::Frame { frame, .. }) => frame_kind(&frame),
        Err(_) => match Reader::new(item).fields().and_then(|fields| fields.u8("type")) {
            Ok(1..=5) => "damaged",
            _ => "unknown",
        },
    }
}

fn frame_kind(frame: &Frame) -> &'static str {
    match frame {
        Frame::Exec { .. } => "exec",
        Frame::Data { stream: 0, .. } => "stdin",
        Frame::Data { stream: 1, .. } => "stdout",
        Frame::Data { stream: 2, .. } => "stderr",
        Frame::Data { .. } => "data",
        Frame::Eof { .. } => "eof",
        Frame::Signal { .. } => "signal",
        Frame::Exit { .. } => "exit",
        Frame::Error { .. } => "error",
        Frame::Log(_) => "log",
        Frame::Config(_) => "config",
        Frame::PathQuery { .. } => "path query",
        Frame::PathInfo { .. } => "path info",
        Frame::FileOp(_) => "file operation",
        Frame::FileResp(_) => "file response",
        Frame::Hello(_) => "hello",
        Frame::Credit { .. } => "credit",
        Frame::Resize { .. } => "resize",
        Frame::Started { .. } => "started",
        Frame::Goodbye => "goodbye",
        Frame::Unknown { .. } => "unknown frame",
        Frame::Incomplete { .. } => "incomplete frame",
    }
}

/// Goes through an item that the scanner found well-formed; its depth is bounded there.
struct Walker<'a> {
    rest: &'a [u8],
}

impl<'a> Walker<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(count.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    /// Major type, low five bits and number of the next head.
    fn head(&mut self) -> (u8, u8, u64) {
        let first = self.take(1).first().copied().unwrap_or(BREAK);
        let info = first & 31;
        let value = match info {
            0..=23 => u64::from(info),
            24..=27 => self.take(1 << (info - 24)).iter().fold(0, |value, byte| value << 8 | u64::from(*byte)),
            _ => 0,
        };
        (first >> 5, info, value)
    }

    /// Whether another of the items inside follows; `left` counts them down where their number is known.
    fn has_more(&mut self, open: bool, left: &mut u64) -> bool {
        if open {
            let ended = self.rest.first().is_none_or(|byte| *byte == BREAK);
            if ended {
                self.take(1);
            }
            return !ended;
        }
        let more = *left > 0;
        *left = left.saturating_sub(1);
        more
    }

    fn value(&mut self, out: &mut Vec<u8>) {
        let (major, info, value) = self.head();
        let (open, mut left) = (info == INDEFINITE, value);
        match major {
            UINT => out.extend(value.to_string().bytes()),
            NEGATIVE => out.extend((-1 - i128::from(value)).to_string().bytes()),
            BYTES | TEXT if open => {
                let mut joined = Vec::new();
                while self.has_more(true, &mut left) {
                    let (_, _, length) = self.head();
                    joined.extend_from_slice(self.take(length as usize));
                }
                write_bytes(out, &joined);
            }
            BYTES | TEXT => write_bytes(out, self.take(value as usize)),
            ARRAY => {
                out.push(b'[');
                while self.has_more(open, &mut left) {
                    self.value(out);
                    out.push(b',');
                }
                close(out, b']');
            }
            MAP => {
                out.push(b'{');
                while self.has_more(open, &mut left) {
                    self.key(out);
                    out.push(b':');
                    self.value(out);
                    out.push(b',');
                }
                close(out, b'}');
            }
            TAG => self.value(out),
            _ => write_simple(out, info, value),
        }
    }

    fn key(&mut self, out: &mut Vec<u8>) {
        let mut key = Vec::new();
        self.value(&mut key);
        match key.first() {
            Some(b'"') => out.extend_from_slice(&key),
            _ => write_bytes(out, &key),
        }
    }
}

/// Ends a list or map, without the comma behind its last item.
fn close(out: &mut Vec<u8>, bracket: u8) {
    if out.last() == Some(&b',') {
        out.pop();
    }
    out.push(bracket);
}

fn write_simple(out: &mut Vec<u8>, info: u8, value: u64) {
    let float = match info {
        20 => return out.extend_from_slice(b"false"),
        21 => return out.extend_from_slice(b"true"),
        25 => half(value as u16),
        26 => f64::from(f32::from_bits(value as u32)),
        27 => f64::from_bits(value),
        _ => f64::NAN,
    };
    // What is no number in JSON becomes null, as in JavaScript.
    let text = serde_json::Value::from(float).to_string();
    out.extend_from_slice(text.strip_suffix(".0").unwrap_or(&text).as_bytes());
}

/// The number that a float of 16 bits stands for.
fn half(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 0x3ff));
    let magnitude = match exponent {
        0 => fraction * 2f64.powi(-24),
        31 => f64::NAN,
        _ => (fraction + 1024.0) * 2f64.powi(exponent - 25),
    };
    if bits & 0x8000 == 0 { magnitude } else { -magnitude }
}

fn write_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    match str::from_utf8(bytes) {
        Ok(text) => out.extend_from_slice(serde_json::Value::from(text).to_string().as_bytes()),
        Err(_) => out.extend_from_slice(format!("{{\"base64\":\"{}\"}}", base64(bytes)).as_bytes()),
    }
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * place) & 63) as usize];
            text.push(if place <= group.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(item: &[u8]) -> String {
        let mut out = Vec::new();
        Walker { rest: item }.value(&mut out);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        let known = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
        for (bytes, text) in known {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn every_kind_of_item_has_its_json() {
        for (item, text) in [
            (&b"\x1b\xff\xff\xff\xff\xff\xff\xff\xff"[..], "18446744073709551615"),
            (b"\x3b\xff\xff\xff\xff\xff\xff\xff\xff", "-18446744073709551616"),
            (b"\x62\"\n", r#""\"\n""#),
            (b"\x42\xff\xfe", r#"{"base64":"//4="}"#),
            (b"\x5f\x41a\x41b\xff", r#""ab""#),
            (b"\x80", "[]"),
            (b"\x83\x01\xf4\xf6", "[1,false,null]"),
            (b"\x9f\x01\xf5\xff", "[1,true]"),
            (b"\xbf\x61a\xa0\xff", r#"{"a":{}}"#),
            (b"\xa1\x18\x2a\x80", r#"{"42":[]}"#),
            (b"\xc1\xf9\x3e\x00", "1.5"),
            (b"\xfa\xbf\x80\x00\x00", "-1"),
            (b"\xfb\x7f\xf0\x00\x00\x00\x00\x00\x00", "null"),
        ] {
            assert_eq!(json(item), text, "{item:x?}");
        }
    }

    #[test]
    fn records_of_unknown_types_are_shown_with_all_their_members() {
        let mut out = Vec::new();
        write_line(&mut out, 3, b"\xa2\x64type\x09\x61x\x42\xff\x00").expect("memory takes everything");
        assert_eq!(
            String::from_utf8(out).expect("text"),
            "{\"record\":3,\"kind\":\"unknown\",\"type\":9,\"x\":{\"base64\":\"/wA=\"}}\n"
        );
        let mut out = Vec::new();
        write_line(&mut out, 1, b"\xa0").expect("memory takes everything");
        assert_eq!(out, b"{\"record\":1,\"kind\":\"unknown\"}\n");
        let mut out = Vec::new();
        write_line(&mut out, 1, b"\x01").expect("memory takes everything");
        assert_eq!(out, b"{\"record\":1,\"kind\":\"unknown\",\"item\":1}\n");
    }
}
