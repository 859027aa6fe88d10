//! The incremental scanner: where does the item end that has begun to arrive? CBOR items carry no length in front.
//!
//! It looks at each byte of structure once and jumps over strings, however small the pieces are in which an item comes. It checks that
//! the item is well-formed and within the limits before anything is decoded, and keeps no memory that a peer could make grow.

use std::fmt;

use crate::wire::cbor::{ARRAY, BREAK, BYTES, INDEFINITE, MAP, SIMPLE, TAG, TEXT};

/// Levels of lists, maps, tags and open strings within each other. Upstream's decoder refuses more (specification of agentproto, section 2).
pub const DEPTH_MAX: usize = 32;

/// Items of one list and pairs of one map. Upstream's decoder refuses more.
pub const ELEMENTS_MAX: u64 = 131_072;

/// Why an item is refused, and with it everything behind it: its end cannot be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The item has, or claims, more bytes than the limit.
    TooLarge {
        bytes: u64,
        limit: usize,
    },
    TooDeep,
    TooManyElements {
        elements: u64,
    },
    Malformed(&'static str),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Refusal::TooLarge { bytes, limit } => write!(f, "item of {bytes} bytes is over the limit of {limit} bytes"),
            Refusal::TooDeep => write!(f, "item is nested over the limit of {DEPTH_MAX} levels"),
            Refusal::TooManyElements { elements } => {
                write!(f, "list or map of {elements} elements is over the limit of {ELEMENTS_MAX}")
            }
            Refusal::Malformed(what) => write!(f, "item is not CBOR: {what}"),
        }
    }
}

/// What is still open around the place that the scanner has reached.
#[derive(Clone, Copy)]
enum Level {
    /// So many more items.
    Counted(u64),
    /// Items until a break; how many there were. A map needs an even number.
    Open { items: u64, map: bool },
    /// Pieces of a string of one major type until a break.
    Pieces(u8),
}

/// Finds the ends of items in a buffer that grows behind and is cut in front.
pub struct Scanner {
    limit: usize,
    /// Bytes of the current item that need no second look; may lie behind what has arrived.
    at: usize,
    levels: [Level; DEPTH_MAX],
    depth: usize,
}

impl Scanner {
    /// A scanner that refuses items of more than `limit` bytes.
    pub fn new(limit: usize) -> Scanner {
        Scanner { limit, at: 0, levels: [Level::Counted(0); DEPTH_MAX], depth: 0 }
    }

    /// The length of the item at the start of `buffer`, or `None` when more bytes are needed. After a length, the next call is about the
    /// next item: the caller has cut the found one off.
    pub fn find_end(&mut self, buffer: &[u8]) -> Result<Option<usize>, Refusal> {
        loop {
            if self.at > self.limit {
                return Err(Refusal::TooLarge { bytes: self.at as u64, limit: self.limit });
            }
            let Some(rest) = buffer.get(self.at..) else { return Ok(None) };
            let Some(whole) = self.step(rest)? else { return Ok(None) };
            if whole {
                // The limit is checked before the item is called whole.
                if self.at > self.limit {
                    continue;
                }
                if self.at > buffer.len() {
                    return Ok(None);
                }
                return Ok(Some(std::mem::take(&mut self.at)));
            }
        }
    }

    /// How many bytes the current item has at least, as far as its structure is known.
    pub fn known_length(&self) -> usize {
        self.at
    }

    /// Takes one head. `None`: its bytes are not all there. `true`: it closed the whole item.
    fn step(&mut self, rest: &[u8]) -> Result<Option<bool>, Refusal> {
        if self.depth == 0 && self.at > 0 {
            // The item ended with a string whose last bytes were still to come.
            return Ok(Some(true));
        }
        let Some(&first) = rest.first() else { return Ok(None) };
        if first == BREAK {
            self.close_open()?;
            self.at += 1;
            return self.item_ended().map(Some);
        }
        let (major, info) = (first >> 5, first & 31);
        let Some((value, length)) = head_value(rest, info)? else { return Ok(None) };
        self.check_piece(major, info)?;
        match major {
            BYTES | TEXT if info == INDEFINITE => self.open(Level::Pieces(major), length)?,
            BYTES | TEXT => {
                let end = (self.at + length) as u64;
                let end = end.saturating_add(value);
                if end > self.limit as u64 {
                    return Err(Refusal::TooLarge { bytes: end, limit: self.limit });
                }
                self.at = end as usize;
                return self.item_ended().map(Some);
            }
            ARRAY | MAP if info == INDEFINITE => self.open(Level::Open { items: 0, map: major == MAP }, length)?,
            ARRAY | MAP => return self.open_counted(value, major == MAP, length).map(Some),
            TAG => self.open(Level::Counted(1), length)?,
            _ => {
                self.at += length;
                return self.item_ended().map(Some);
            }
        }
        Ok(Some(false))
    }

    fn open_counted(&mut self, value: u64, map: bool, length: usize) -> Result<bool, Refusal> {
        if value > ELEMENTS_MAX {
            return Err(Refusal::TooManyElements { elements: value });
        }
        if value == 0 {
            // Depth counts even for what is empty, as upstream does.
            if self.depth == DEPTH_MAX {
                return Err(Refusal::TooDeep);
            }
            self.at += length;
            return self.item_ended();
        }
        self.open(Level::Counted(if map { value * 2 } else { value }), length)?;
        Ok(false)
    }

    fn open(&mut self, level: Level, length: usize) -> Result<(), Refusal> {
        let place = self.levels.get_mut(self.depth).ok_or(Refusal::TooDeep)?;
        *place = level;
        self.depth += 1;
        self.at += length;
        Ok(())
    }

    /// In a string of open length only pieces of its own kind, of closed length, may stand.
    fn check_piece(&self, major: u8, info: u8) -> Result<(), Refusal> {
        match self.depth.checked_sub(1).map(|top| self.levels[top]) {
            Some(Level::Pieces(kind)) if kind != major || info == INDEFINITE => {
                Err(Refusal::Malformed("a string of open length holds something else than its pieces"))
            }
            _ => Ok(()),
        }
    }

    fn close_open(&mut self) -> Result<(), Refusal> {
        let top = self.depth.checked_sub(1).ok_or(Refusal::Malformed("break outside of an item"))?;
        match self.levels[top] {
            Level::Open { items, map: true } if items % 2 != 0 => {
                Err(Refusal::Malformed("map with a key and no value"))
            }
            Level::Open { .. } | Level::Pieces(_) => {
                self.depth = top;
                Ok(())
            }
            Level::Counted(_) => Err(Refusal::Malformed("break in an item of closed length")),
        }
    }

    /// Counts an item that has just ended, and closes what ends with it. `true`: that was the outermost one.
    fn item_ended(&mut self) -> Result<bool, Refusal> {
        while let Some(top) = self.depth.checked_sub(1) {
            match &mut self.levels[top] {
                Level::Counted(left) => {
                    *left -= 1;
                    if *left > 0 {
                        return Ok(false);
                    }
                    self.depth = top;
                }
                Level::Open { items, map } => {
                    *items += 1;
                    let elements = if *map { items.div_ceil(2) } else { *items };
                    return if elements > ELEMENTS_MAX {
                        Err(Refusal::TooManyElements { elements })
                    } else {
                        Ok(false)
                    };
                }
                Level::Pieces(_) => return Ok(false),
            }
        }
        Ok(true)
    }
}

/// The number in a head and the head's length in bytes; `None` when the head is not all there.
fn head_value(rest: &[u8], info: u8) -> Result<Option<(u64, usize)>, Refusal> {
    let following = match info {
        0..=23 => return Ok(Some((u64::from(info), 1))),
        24..=27 => 1usize << (info - 24),
        INDEFINITE if matches!(rest[0] >> 5, BYTES | TEXT | ARRAY | MAP) => return Ok(Some((0, 1))),
        _ => return Err(Refusal::Malformed("reserved head")),
    };
    let Some(bytes) = rest.get(1..=following) else { return Ok(None) };
    let value = bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
    if rest[0] >> 5 == SIMPLE && info == 24 && value < 32 {
        return Err(Refusal::Malformed("simple value in two bytes"));
    }
    Ok(Some((value, 1 + following)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end_of(bytes: &[u8]) -> Result<Option<usize>, Refusal> {
        Scanner::new(1000).find_end(bytes)
    }

    #[test]
    fn the_end_of_an_item_is_found_wherever_it_is_cut() {
        // {"d": h'0102', "x": [1, {_ "a": (_ h'01', h'02')}, 6("t")], "f": 1.5, "n": null}
        let item = b"\xa4\x61d\x42\x01\x02\x61x\x83\x01\xbf\x61a\x5f\x41\x01\x41\x02\xff\xff\xc6\x61t\x61f\xf9\x3e\x00\x61n\xf6";
        let twice = [&item[..], &item[..]].concat();
        for cut in 0..item.len() {
            let mut scanner = Scanner::new(1000);
            assert_eq!(scanner.find_end(&twice[..cut]), Ok(None), "cut at {cut}");
            assert_eq!(scanner.find_end(&twice[..item.len()]), Ok(Some(item.len())));
            assert_eq!(scanner.find_end(&twice[item.len()..]), Ok(Some(item.len())), "the second item");
        }
        let mut scanner = Scanner::new(1000);
        let ends = (1..item.len()).all(|end| scanner.find_end(&item[..end]) == Ok(None));
        assert!(ends && scanner.find_end(item) == Ok(Some(item.len())), "byte by byte");
    }

    #[test]
    fn what_is_not_cbor_is_refused() {
        for bytes in [
            &b"\xff"[..],
            b"\x1c",
            b"\x5f\x61a\xff",
            b"\x5f\x5f\xff\xff",
            b"\x81\xff",
            b"\xbf\x01\xff",
            b"\x1f",
            b"\xdf",
            b"\xf8\x10",
        ] {
            assert!(matches!(end_of(bytes), Err(Refusal::Malformed(_))), "{bytes:x?}");
        }
    }

    #[test]
    fn a_string_at_the_size_limit_passes_and_one_byte_more_does_not() {
        let fits = [b"\x59\x03\xe5".as_slice(), &[7; 997]].concat();
        assert_eq!(end_of(&fits), Ok(Some(1000)));
        assert_eq!(end_of(b"\x59\x03\xe6"), Err(Refusal::TooLarge { bytes: 1001, limit: 1000 }), "by its claim alone");
        let claim = b"\x5b\xff\xff\xff\xff\xff\xff\xff\xff";
        assert_eq!(end_of(claim), Err(Refusal::TooLarge { bytes: u64::MAX, limit: 1000 }));
        let numbers = [b"\x9f".as_slice(), &[1; 1200]].concat();
        assert_eq!(end_of(&numbers), Err(Refusal::TooLarge { bytes: 1001, limit: 1000 }), "by what has come");
    }

    #[test]
    fn nesting_at_the_limit_passes_and_one_level_more_does_not() {
        let nested = |levels: usize| [vec![0x81; levels - 1], vec![0x80]].concat();
        assert_eq!(end_of(&nested(DEPTH_MAX)), Ok(Some(DEPTH_MAX)));
        assert_eq!(end_of(&nested(DEPTH_MAX + 1)), Err(Refusal::TooDeep));
        assert_eq!(end_of(&[0xc1; 10_000]), Err(Refusal::TooDeep), "tags nest too");
        assert_eq!(end_of(&[0x9f; 10_000]), Err(Refusal::TooDeep));
    }

    #[test]
    fn a_list_at_the_element_limit_passes_and_one_more_does_not() {
        let list = |count: u32| [&[0x9a], &count.to_be_bytes()[..], &vec![0; count as usize]].concat();
        let open = |count: u32| [&[0x9f], &vec![0; count as usize][..], &[0xff]].concat();
        let limit = ELEMENTS_MAX as u32;
        for make in [&list as &dyn Fn(u32) -> Vec<u8>, &open] {
            let mut scanner = Scanner::new(1 << 20);
            assert_eq!(scanner.find_end(&make(limit)), Ok(Some(make(limit).len())));
            let refused = Scanner::new(1 << 20).find_end(&make(limit + 1));
            assert_eq!(refused, Err(Refusal::TooManyElements { elements: ELEMENTS_MAX + 1 }));
        }
    }
}
