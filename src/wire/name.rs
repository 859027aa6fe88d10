//! Names that are not UTF-8, carried in text.
//!
//! A CBOR text must be UTF-8, a Linux name need not be. A byte that is no part of valid UTF-8 becomes the private character
//! U+EF00 + byte (0x80..=0xff, so U+EF80..=U+EFFF; MirBSD's OPTU-8 encoding uses the same block). The bytes of a real character from
//! that block are each written the same way, so that the way back is unique.

use std::borrow::Cow;

/// First and last character that stand for a bare byte.
const BARE: std::ops::RangeInclusive<u32> = 0xef80..=0xefff;
const BASE: u32 = 0xef00;

/// The name as text; equal to the name where that is UTF-8 without characters of the private block.
pub fn to_text(name: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = str::from_utf8(name)
        && !text.chars().any(|c| BARE.contains(&u32::from(c)))
    {
        return Cow::Borrowed(text);
    }
    let mut text = String::with_capacity(name.len() + 8);
    for chunk in name.utf8_chunks() {
        for character in chunk.valid().chars() {
            if BARE.contains(&u32::from(character)) {
                character.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| text.push(bare(byte)));
            } else {
                text.push(character);
            }
        }
        chunk.invalid().iter().for_each(|byte| text.push(bare(*byte)));
    }
    Cow::Owned(text)
}

/// The name that `to_text` made the text from.
pub fn from_text(text: &str) -> Vec<u8> {
    let mut name = Vec::with_capacity(text.len());
    for character in text.chars() {
        match u32::from(character) {
            code if BARE.contains(&code) => name.push((code - BASE) as u8),
            _ => name.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    name
}

fn bare(byte: u8) -> char {
    char::from_u32(BASE + u32::from(byte)).expect("U+EF00 to U+EFFF are characters")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_comes_back_as_it_was() {
        let names: [&[u8]; 6] =
            [b"plain", "grün".as_bytes(), b"caf\xe9", b"\xff\xfe/\x80", "\u{ef80}\u{efff}x".as_bytes(), b""];
        for name in names {
            let text = to_text(name);
            assert_eq!(from_text(&text), name, "{text:?}");
        }
        assert_eq!(to_text("grün".as_bytes()), "grün");
        assert_eq!(to_text(b"caf\xe9"), "caf\u{efe9}");
    }

    #[test]
    fn no_two_names_share_a_text() {
        assert_ne!(to_text(b"\xe9"), to_text("\u{efe9}".as_bytes()));
    }
}
