//! JSON strings: text to string and back, byte for byte as Go's `encoding/json` (1.19) does both.
//!
//! It writes for a browser: what HTML or JavaScript could take for its own is escaped, though JSON would not need it.

/// What stands for bytes that are no UTF-8, and for halves of surrogate pairs.
const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

/// The string for `text`, with its quotes. Each byte that is not part of UTF-8 becomes `\ufffd`.
pub fn quote(text: &[u8]) -> Vec<u8> {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for chunk in text.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '"' | '\\' => quoted.extend(['\\', character]),
                '\n' => quoted.push_str("\\n"),
                '\r' => quoted.push_str("\\r"),
                '\t' => quoted.push_str("\\t"),
                '\0'..' ' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => push_code(&mut quoted, character),
                _ => quoted.push(character),
            }
        }
        for _ in chunk.invalid() {
            push_code(&mut quoted, REPLACEMENT);
        }
    }
    quoted.push('"');
    quoted.into_bytes()
}

/// Writes a character of no more than four digits as `\uXXXX`.
fn push_code(quoted: &mut String, character: char) {
    quoted.push_str("\\u");
    for shift in [12, 8, 4, 0] {
        quoted.extend(char::from_digit(u32::from(character) >> shift & 0xf, 16));
    }
}

/// The text of a string that the scanner has taken, `text` with its quotes. U+FFFD stands for each byte that is not part of UTF-8 and for
/// each half of a surrogate pair that is alone.
pub fn unquote(text: &[u8]) -> String {
    let text = text.strip_prefix(b"\"").unwrap_or(text);
    let mut rest = text.strip_suffix(b"\"").unwrap_or(text);
    let mut plain = String::with_capacity(rest.len());
    while let Some(at) = memchr::memchr(b'\\', rest) {
        push_bytes(&mut plain, &rest[..at]);
        let (character, length) = escaped(&rest[at..]);
        plain.push(character);
        rest = &rest[at + length..];
    }
    push_bytes(&mut plain, rest);
    plain
}

fn push_bytes(plain: &mut String, bytes: &[u8]) {
    for chunk in bytes.utf8_chunks() {
        plain.push_str(chunk.valid());
        plain.extend(chunk.invalid().iter().map(|_| REPLACEMENT));
    }
}

/// The character of the escape at the start of `rest`, and how many bytes stand for it.
fn escaped(rest: &[u8]) -> (char, usize) {
    let character = match rest.get(1) {
        Some(b'u') => return escaped_code(rest),
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'n') => '\n',
        Some(b'r') => '\r',
        Some(b't') => '\t',
        Some(byte @ (b'"' | b'\\' | b'/')) => char::from(*byte),
        // The scanner has let no other one pass.
        _ => return (REPLACEMENT, 1),
    };
    (character, 2)
}

/// The same for `\uXXXX`, and for two of them that are a surrogate pair.
fn escaped_code(rest: &[u8]) -> (char, usize) {
    let Some(first) = code(rest) else { return (REPLACEMENT, 1) };
    let second = rest.get(6..).and_then(code);
    match char::decode_utf16([first].into_iter().chain(second)).next() {
        Some(Ok(character)) => (character, 6 * character.len_utf16()),
        // What follows half a pair is read on its own: it may begin a whole one.
        _ => (REPLACEMENT, 6),
    }
}

/// The number in a `\uXXXX` at the start of `rest`.
fn code(rest: &[u8]) -> Option<u16> {
    let digits = rest.strip_prefix(b"\\u")?.get(..4)?;
    digits.iter().try_fold(0, |code, byte| Some(code << 4 | char::from(*byte).to_digit(16)? as u16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_quoted_as_go_does_it() {
        let texts: [(&[u8], &str); 14] = [
            (b"", r#""""#),
            (b"always fail", r#""always fail""#),
            (b"a\"b\\c/d'", r#""a\"b\\c/d'""#),
            (b"<a href=x>&</a>", r#""\u003ca href=x\u003e\u0026\u003c/a\u003e""#),
            (b"\n\r\t", r#""\n\r\t""#),
            (b"\x00\x08\x0b\x0c\x1b\x1f", r#""\u0000\u0008\u000b\u000c\u001b\u001f""#),
            (b"\x7f ~", "\"\x7f ~\""),
            ("ä€😀\u{fffd}\u{85}".as_bytes(), "\"ä€😀\u{fffd}\u{85}\""),
            ("\u{2027}\u{2028}\u{2029}\u{202a}".as_bytes(), "\"\u{2027}\\u2028\\u2029\u{202a}\""),
            (b"\xff\x80", r#""\ufffd\ufffd""#),
            // Cut short, overlong, half a surrogate pair, beyond Unicode: each byte for itself.
            (b"\xe2\x80x\xf0\x9f\x98", r#""\ufffd\ufffdx\ufffd\ufffd\ufffd""#),
            (b"\xc0\x80", r#""\ufffd\ufffd""#),
            (b"\xed\xa0\x80", r#""\ufffd\ufffd\ufffd""#),
            (b"\xf4\x90\x80\x80", r#""\ufffd\ufffd\ufffd\ufffd""#),
        ];
        for (text, quoted) in texts {
            assert_eq!(String::from_utf8_lossy(&quote(text)), quoted, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn strings_are_read_as_go_does_it() {
        let texts: [(&[u8], &str); 17] = [
            (br#""""#, ""),
            (br#""test.\u0045cho""#, "test.Echo"),
            (br#""\"\\\/\b\f\n\r\t""#, "\"\\/\x08\x0c\n\r\t"),
            (br#""\u00e4\u20AC\u20ac\u0000""#, "ä€€\0"),
            (br#""\\u0041\\""#, "\\u0041\\"),
            (br#""\ud83d\ude00!""#, "😀!"),
            (br#""\uDBFF\uDFFF""#, "\u{10ffff}"),
            (br#""\ud83d""#, "\u{fffd}"),
            (br#""\ude00x""#, "\u{fffd}x"),
            (br#""\ud83dx\ude00""#, "\u{fffd}x\u{fffd}"),
            (br#""\ud83d\n""#, "\u{fffd}\n"),
            (br#""\ud83d\u0041""#, "\u{fffd}A"),
            (br#""\ud83d\ud83d\ude00""#, "\u{fffd}😀"),
            (br#""\ude00\ud83d""#, "\u{fffd}\u{fffd}"),
            ("\"ä\\u00e4€\"".as_bytes(), "ää€"),
            (b"\"\xff\xe2\x80x\xc3\\n\xa4\"", "\u{fffd}\u{fffd}\u{fffd}x\u{fffd}\n\u{fffd}"),
            (b"\"\xed\xa0\xbd\xed\xb8\x80\"", "\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}"),
        ];
        for (text, plain) in texts {
            assert_eq!(unquote(text), plain, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn what_the_scanner_would_refuse_is_no_panic() {
        for text in [&b""[..], b"\"", b"\\", b"\"\\", b"\\u", b"\\u12", b"\\uxxxx", b"\\ud83d\\u", b"\\q"] {
            unquote(text);
        }
    }

    #[test]
    fn what_was_quoted_reads_as_it_was() {
        let text: String = (0..0x3000).chain(0x1f600..0x1f610).filter_map(char::from_u32).collect();
        assert_eq!(unquote(&quote(text.as_bytes())), text);
    }
}
