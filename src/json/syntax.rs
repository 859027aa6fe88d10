//! What is wrong with a text that is no JSON, in the words of Go's `encoding/json`: they reach people through clients that know no others.

use crate::json::scan::{Invalid, Place, Scanner};

/// What Go says of a text that ends too early.
pub const ENDED: &str = "unexpected end of JSON input";

/// How many values are in a text that is one value with nothing but white space around it, itself among them.
///
/// # Errors
/// Go's text for what is not.
pub fn check(text: &[u8]) -> Result<usize, String> {
    let mut scanner = Scanner::value();
    // As with Go, the end is a space: it ends a number, and cannot stand within a word.
    let result = match scanner.feed(text) {
        Ok(None) => scanner.feed(b" ").map(|end| end.map(|_| text.len())),
        early => early,
    };
    match result {
        Ok(None) => Err(ENDED.to_owned()),
        Err(why) => Err(refusal(text, scanner.taken(), why)),
        Ok(Some(end)) => match text[end..].iter().find(|byte| !is_space(**byte)) {
            Some(byte) => Err(invalid(*byte, "after top-level value")),
            None => Ok(scanner.values()),
        },
    }
}

/// A text without the white space that JSON allows at its start; a form feed is none.
pub fn trim_start(text: &[u8]) -> &[u8] {
    let spaces = text.iter().take_while(|byte| is_space(**byte)).count();
    &text[spaces..]
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// Why a text was refused behind so many bytes of it, or together with its end.
fn refusal(text: &[u8], taken: usize, why: Invalid) -> String {
    let (before, rest) = text.split_at(taken);
    // A scanner that has refused no longer knows where; one that has not come so far does.
    let mut scanner = Scanner::value();
    let place = scanner.feed(before).map_or(Place::End, |_| scanner.place());
    let byte = match place {
        Place::Text => rest.iter().find(|byte| **byte < 0x20),
        _ => rest.first(),
    };
    let context = match place {
        _ if why == Invalid::TooDeep => "exceeded max depth",
        Place::Value => "looking for beginning of value",
        Place::Name => "looking for beginning of object key string",
        Place::Named => "after object key",
        Place::Member => "after object key:value pair",
        Place::Element => "after array element",
        Place::Text => "in string literal",
        Place::Escape => "in string escape code",
        Place::Hex => r"in \u hexadecimal character escape",
        Place::Minus => "in numeric literal",
        Place::Point => "after decimal point in numeric literal",
        Place::Exponent => "in exponent of numeric literal",
        Place::Literal(rest) => &in_literal(before, rest),
        Place::End => "after top-level value",
    };
    invalid(byte.copied().unwrap_or(b' '), context)
}

/// `before` ends within `true`, `false` or `null`, with this `rest` to come.
fn in_literal(before: &[u8], rest: &[u8]) -> String {
    // The first letter of each is in none of them a second time.
    let literal = match before.iter().rfind(|byte| b"tfn".contains(byte)) {
        Some(b't') => "true",
        Some(b'f') => "false",
        _ => "null",
    };
    let wanted = rest.first().copied().map_or(' ', char::from);
    format!("in literal {literal} (expecting '{wanted}')")
}

fn invalid(byte: u8, context: &str) -> String {
    format!("invalid character {} {context}", quoted(byte))
}

/// A byte as Go shows it: as the character of that number.
fn quoted(byte: u8) -> String {
    match byte {
        b'\'' => r"'\''".to_owned(),
        b'"' => r#"'"'"#.to_owned(),
        b'\\' => r"'\\'".to_owned(),
        0x07 => r"'\a'".to_owned(),
        0x08 => r"'\b'".to_owned(),
        b'\t' => r"'\t'".to_owned(),
        b'\n' => r"'\n'".to_owned(),
        0x0b => r"'\v'".to_owned(),
        0x0c => r"'\f'".to_owned(),
        b'\r' => r"'\r'".to_owned(),
        0..0x20 | 0x7f => format!(r"'\x{byte:02x}'"),
        0x80..=0xa0 | 0xad => format!(r"'\u{byte:04x}'"),
        _ => format!("'{}'", char::from(byte)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::scan::DEPTH_MAX;

    fn refused(text: &[u8]) -> String {
        check(text).expect_err("it is no JSON")
    }

    /// All of these were compared with Go 1.19.
    #[test]
    fn what_is_no_json_is_told_as_go_tells_it() {
        let rows: [(&str, &str, &str); 70] = [
            ("x", "x", "looking for beginning of value"),
            (" }", "}", "looking for beginning of value"),
            ("[,]", ",", "looking for beginning of value"),
            ("[1,]", "]", "looking for beginning of value"),
            ("{\"a\":}", "}", "looking for beginning of value"),
            ("\u{c}{}", "\\f", "looking for beginning of value"),
            ("+1", "+", "looking for beginning of value"),
            (".5", ".", "looking for beginning of value"),
            ("{,}", ",", "looking for beginning of object key string"),
            ("{1:2}", "1", "looking for beginning of object key string"),
            ("{]", "]", "looking for beginning of object key string"),
            ("{\"a\":1,}", "}", "looking for beginning of object key string"),
            ("{\"a\" 1}", "1", "after object key"),
            ("{\"a\"}", "}", "after object key"),
            ("{\"a\"'", "\\'", "after object key"),
            ("{\"a\":1 2}", "2", "after object key:value pair"),
            ("{\"a\":01}", "1", "after object key:value pair"),
            ("{\"a\":1]", "]", "after object key:value pair"),
            ("{\"a\":\"b\"\"", "\"", "after object key:value pair"),
            ("{\"a\":[]:", ":", "after object key:value pair"),
            ("[1 2]", "2", "after array element"),
            ("[01]", "1", "after array element"),
            ("[1.5x]", "x", "after array element"),
            ("[1e7-]", "-", "after array element"),
            ("[{}}", "}", "after array element"),
            ("[\"a\"\\", "\\\\", "after array element"),
            ("{}x", "x", "after top-level value"),
            ("{} {}", "{", "after top-level value"),
            ("1x", "x", "after top-level value"),
            ("01", "1", "after top-level value"),
            ("1.5.", ".", "after top-level value"),
            ("null,", ",", "after top-level value"),
            ("{}\u{c}", "\\f", "after top-level value"),
            ("\"\n\"", "\\n", "in string literal"),
            ("\"0123456789\t\"", "\\t", "in string literal"),
            ("\"a\\n\r", "\\r", "in string literal"),
            ("{\"a\0\":1}", "\\x00", "in string literal"),
            ("\"\\x\"", "x", "in string escape code"),
            ("\"\\'\"", "\\'", "in string escape code"),
            ("\"\\U0041\"", "U", "in string escape code"),
            ("\"\\", " ", "in string escape code"),
            ("\"\\ux\"", "x", r"in \u hexadecimal character escape"),
            ("\"\\u123\"", "\"", r"in \u hexadecimal character escape"),
            ("\"\\u12", " ", r"in \u hexadecimal character escape"),
            ("-x", "x", "in numeric literal"),
            ("[-]", "]", "in numeric literal"),
            ("-", " ", "in numeric literal"),
            ("1.x", "x", "after decimal point in numeric literal"),
            ("[1.]", "]", "after decimal point in numeric literal"),
            ("1.", " ", "after decimal point in numeric literal"),
            ("1ex", "x", "in exponent of numeric literal"),
            ("1E+-", "-", "in exponent of numeric literal"),
            ("[0e]", "]", "in exponent of numeric literal"),
            ("tx", "x", "in literal true (expecting 'r')"),
            ("[trx", "x", "in literal true (expecting 'u')"),
            ("trux", "x", "in literal true (expecting 'e')"),
            ("tru", " ", "in literal true (expecting 'e')"),
            ("fx", "x", "in literal false (expecting 'a')"),
            ("{\"null\":fa}", "}", "in literal false (expecting 'l')"),
            ("fal\n", "\\n", "in literal false (expecting 's')"),
            ("[true,falsE", "E", "in literal false (expecting 'e')"),
            ("nil", "i", "in literal null (expecting 'u')"),
            ("nu", " ", "in literal null (expecting 'l')"),
            ("[false,nulx", "x", "in literal null (expecting 'l')"),
            ("\u{7}", "\\a", "looking for beginning of value"),
            ("\u{8}", "\\b", "looking for beginning of value"),
            ("\u{b}", "\\v", "looking for beginning of value"),
            ("\u{1b}", "\\x1b", "looking for beginning of value"),
            ("\u{7f}", "\\x7f", "looking for beginning of value"),
            ("ä", "Ã", "looking for beginning of value"),
        ];
        for (text, byte, context) in rows {
            assert_eq!(refused(text.as_bytes()), format!("invalid character '{byte}' {context}"), "{text}");
        }
        for (byte, shown) in [(0x80, r"\u0080"), (0xa0, r"\u00a0"), (0xa1, "¡"), (0xad, r"\u00ad"), (0xe9, "é")] {
            assert_eq!(refused(&[byte]), format!("invalid character '{shown}' looking for beginning of value"));
        }
    }

    #[test]
    fn a_text_that_could_go_on_has_ended_too_early() {
        for text in
            ["", " \n", "{", "{\"a", "{\"a\"", "{\"a\":", "{\"a\":1", "{\"a\":1,", "[", "[1", "[\"a\",", "\"a", "\"\\n"]
        {
            assert_eq!(refused(text.as_bytes()), ENDED, "{text}");
        }
    }

    #[test]
    fn values_are_counted_of_what_is_json() {
        for (text, count) in
            [(" 1", 1), ("-0.5e1", 1), ("{} \r\n\t", 1), ("[1,{\"a\":[2]},null]", 6), ("\"\x7f\u{e9}\"", 1)]
        {
            assert_eq!(check(text.as_bytes()), Ok(count), "{text}");
        }
    }

    #[test]
    fn a_text_may_be_as_deep_as_with_go_and_no_deeper() {
        let nested = |levels: usize| [b"[".repeat(levels), b"]".repeat(levels)].concat();
        assert_eq!(check(&nested(DEPTH_MAX)), Ok(DEPTH_MAX));
        assert_eq!(refused(&nested(DEPTH_MAX + 1)), "invalid character '[' exceeded max depth");
    }

    #[test]
    fn every_cut_and_every_byte_in_every_place_is_told_somehow() {
        let text = br#"{"a":[1,-2.5e+7,true,false,null,"b\u0041\n"],"c":{}}"#;
        for cut in 0..text.len() {
            assert!(check(&text[..cut]).is_err());
            for byte in 0..=u8::MAX {
                if let Err(why) = check(&[&text[..cut], &[byte]].concat()) {
                    let expected = format!("invalid character {} ", quoted(byte));
                    let ended = why == ENDED
                        || why.starts_with("invalid character ' ' in ")
                        || why.contains("' ' after decimal");
                    assert!(ended || why.starts_with(&expected), "{cut} {byte:#x}: {why}");
                }
            }
        }
    }
}
