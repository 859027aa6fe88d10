//! The canonical writer of CBOR: definite lengths, shortest heads, keys by length and then by bytes (RFC 7049, section 3.9).

use std::cmp::Ordering;

use crate::wire::cbor::{ARRAY, BYTES, MAP, NEGATIVE, NULL, SIMPLE, TEXT, TRUE, UINT};

/// Writes items behind each other, with the shortest heads.
#[derive(Debug, Default)]
pub struct Encoder {
    pub out: Vec<u8>,
    /// Where the bytes belong that `Map::gap_some` left out.
    pub gap: Option<usize>,
}

impl Encoder {
    pub fn head(&mut self, major: u8, value: u64) {
        let major = major << 5;
        match value {
            0..=23 => self.out.push(major | value as u8),
            24..=0xff => self.out.extend([major | 24, value as u8]),
            0x100..=0xffff => {
                self.out.push(major | 25);
                self.out.extend((value as u16).to_be_bytes());
            }
            0x1_0000..=0xffff_ffff => {
                self.out.push(major | 26);
                self.out.extend((value as u32).to_be_bytes());
            }
            _ => {
                self.out.push(major | 27);
                self.out.extend(value.to_be_bytes());
            }
        }
    }

    pub fn int(&mut self, value: i64) {
        if value < 0 { self.head(NEGATIVE, !value as u64) } else { self.head(UINT, value as u64) }
    }

    pub fn text(&mut self, value: &str) {
        self.head(TEXT, value.len() as u64);
        self.out.extend_from_slice(value.as_bytes());
    }

    pub fn bytes(&mut self, value: &[u8]) {
        self.head(BYTES, value.len() as u64);
        self.out.extend_from_slice(value);
    }

    pub fn null(&mut self) {
        self.out.push(SIMPLE << 5 | NULL);
    }

    /// A map whose keys `fill` adds in canonical order.
    pub fn map(&mut self, fill: impl FnOnce(&mut Map)) {
        let at = self.out.len();
        self.out.push(0);
        let mut map = Map { encoder: self, pairs: 0, last: "" };
        fill(&mut map);
        let pairs = map.pairs;
        // One byte holds the head, because no message of ours has more than 23 members.
        debug_assert!(pairs < 24);
        self.out[at] = MAP << 5 | pairs;
    }

    /// A list, each item of which `each` writes.
    pub fn array<T>(&mut self, items: impl ExactSizeIterator<Item = T>, mut each: impl FnMut(&mut Encoder, T)) {
        self.head(ARRAY, items.len() as u64);
        items.for_each(|item| each(self, item));
    }
}

/// A map in the making. The methods ending in `_some` leave out what is zero or empty.
pub struct Map<'a> {
    encoder: &'a mut Encoder,
    pairs: u8,
    last: &'static str,
}

impl Map<'_> {
    /// Adds a key; its value must follow at once.
    pub fn key(&mut self, key: &'static str) -> &mut Encoder {
        debug_assert!(canonical_order(self.last, key) == Ordering::Less, "{key} stands behind {}", self.last);
        self.last = key;
        self.pairs += 1;
        self.encoder.text(key);
        self.encoder
    }

    pub fn int(&mut self, key: &'static str, value: impl Into<i64>) {
        self.key(key).int(value.into());
    }

    pub fn int_some(&mut self, key: &'static str, value: impl Into<i64>) {
        let value = value.into();
        if value != 0 {
            self.key(key).int(value);
        }
    }

    pub fn uint_some(&mut self, key: &'static str, value: u64) {
        if value != 0 {
            self.key(key).head(UINT, value);
        }
    }

    pub fn text(&mut self, key: &'static str, value: &str) {
        self.key(key).text(value);
    }

    pub fn text_some(&mut self, key: &'static str, value: &str) {
        if !value.is_empty() {
            self.key(key).text(value);
        }
    }

    pub fn bytes_some(&mut self, key: &'static str, value: &[u8]) {
        if !value.is_empty() {
            self.key(key).bytes(value);
        }
    }

    pub fn true_some(&mut self, key: &'static str, value: bool) {
        if value {
            self.key(key).out.push(SIMPLE << 5 | TRUE);
        }
    }

    /// A byte string of `length` bytes that are not copied here: `Encoder::gap` tells where they belong, `None` that there are none.
    pub fn gap_some(&mut self, key: &'static str, length: usize) {
        self.encoder.gap = None;
        if length > 0 {
            let encoder = self.key(key);
            encoder.head(BYTES, length as u64);
            encoder.gap = Some(encoder.out.len());
        }
    }
}

/// Shorter keys first, then by bytes: the order of "canonical" CBOR in RFC 7049.
fn canonical_order(a: &str, b: &str) -> Ordering {
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}
