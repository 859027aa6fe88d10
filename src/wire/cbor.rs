//! CBOR (RFC 8949): its numbers, and the tolerant reader of the messages. The writer is `wire::writer`.
//!
//! A crate such as ciborium cannot serve here: the reader must take what upstream's decoder takes (a repeated key, keys in another
//! letter case, bad UTF-8 under an unknown key, a list of numbers for bytes) and borrow bulk bytes from the input buffer; the writer must
//! leave a gap in which bulk bytes already stand. ciborium is the tests' independent judge of both.

use std::borrow::Cow;
use std::io;

use crate::wire::scan::DEPTH_MAX;

pub const UINT: u8 = 0;
pub const NEGATIVE: u8 = 1;
pub const BYTES: u8 = 2;
pub const TEXT: u8 = 3;
pub const ARRAY: u8 = 4;
pub const MAP: u8 = 5;
pub const TAG: u8 = 6;
pub const SIMPLE: u8 = 7;

/// Low five bits of a head: the length is open until a break.
pub const INDEFINITE: u8 = 31;
/// The break that ends an item of open length.
pub const BREAK: u8 = 0xff;
const FALSE: u8 = 20;
pub const TRUE: u8 = 21;
pub const NULL: u8 = 22;
const UNDEFINED: u8 = 23;

/// "The peer is wrong": the one error of every reader here.
pub fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

/// Members for which room is made at once: no message of ours has more.
const MEMBERS_USUAL: u64 = 24;

/// Reads one item that `scan` found to be whole and well-formed, and everything in it. Other input is an error at some point, or it is
/// read for something, but it does no harm.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    data: &'a [u8],
}

/// The head of an item: its major type, the low five bits, and the number that follows from them.
#[derive(Clone, Copy)]
struct Head {
    major: u8,
    info: u8,
    value: u64,
}

impl<'a> Reader<'a> {
    pub fn new(data: &'a [u8]) -> Reader<'a> {
        Reader { data }
    }

    fn take(&mut self, count: u64) -> io::Result<&'a [u8]> {
        let count = usize::try_from(count).ok();
        let (taken, rest) =
            count.and_then(|count| self.data.split_at_checked(count)).ok_or_else(|| invalid("item is cut off"))?;
        self.data = rest;
        Ok(taken)
    }

    fn head(&mut self) -> io::Result<Head> {
        let first = self.take(1)?[0];
        let (major, info) = (first >> 5, first & 31);
        let value = match info {
            0..=23 => u64::from(info),
            24..=27 => self.take(1 << (info - 24))?.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)),
            INDEFINITE if matches!(major, BYTES | TEXT | ARRAY | MAP) => 0,
            _ => return Err(invalid("reserved head")),
        };
        Ok(Head { major, info, value })
    }

    /// The head of the next item behind any tags.
    fn untagged(&mut self) -> io::Result<Head> {
        loop {
            let head = self.head()?;
            if head.major != TAG {
                return Ok(head);
            }
        }
    }

    /// Passes over a break, if one is next.
    fn at_break(&mut self) -> bool {
        let found = self.data.first() == Some(&BREAK);
        if found {
            self.data = &self.data[1..];
        }
        found
    }

    /// Passes over one item.
    fn skip(&mut self) -> io::Result<()> {
        self.skip_within(DEPTH_MAX)
    }

    /// Passes over one item of at most so many levels.
    fn skip_within(&mut self, levels: usize) -> io::Result<()> {
        let head = self.head()?;
        let items = match head.major {
            BYTES | TEXT if head.info != INDEFINITE => return self.take(head.value).map(drop),
            ARRAY => head.value,
            // Where twice the number does not fit, the input ends long before.
            MAP => head.value.saturating_mul(2),
            TAG => 1,
            BYTES | TEXT => 0,
            _ => return Ok(()),
        };
        let levels = levels.checked_sub(1).ok_or_else(|| invalid("item is nested too deeply"))?;
        if head.info == INDEFINITE {
            while !self.at_break() {
                self.skip_within(levels)?;
            }
            return Ok(());
        }
        (0..items).try_for_each(|_| self.skip_within(levels))
    }

    /// Whether the next item says that there is nothing: null or undefined.
    fn is_nothing(&self) -> bool {
        let mut ahead = *self;
        matches!(ahead.untagged(), Ok(Head { major: SIMPLE, info: NULL | UNDEFINED, .. }))
    }

    /// The number in the member of that name, which must be written just so, of a map of closed length; `None` for everything less usual.
    /// Reads nothing else and keeps nothing: for a first look at a message.
    pub fn peek(mut self, name: &str) -> Option<u64> {
        let head = self.head().ok().filter(|head| head.major == MAP && head.info != INDEFINITE)?;
        for _ in 0..head.value {
            let key = self.head().ok().filter(|head| head.major == TEXT && head.info != INDEFINITE)?;
            let found = self.take(key.value).ok()?;
            if found == name.as_bytes() {
                return self.head().ok().filter(|head| head.major == UINT).map(|head| head.value);
            }
            self.skip().ok()?;
        }
        None
    }

    /// The members of a map. Null is an empty one.
    pub fn fields(mut self) -> io::Result<Fields<'a>> {
        let mut fields = Fields { members: Vec::new() };
        if self.is_nothing() {
            return Ok(fields);
        }
        let head = self.untagged()?;
        if head.major != MAP {
            return Err(invalid("not a map"));
        }
        let mut left = head.value;
        fields.members.reserve(left.min(MEMBERS_USUAL) as usize);
        while if head.info == INDEFINITE { !self.at_break() } else { left > 0 } {
            left = left.wrapping_sub(1);
            let at_key = self;
            let mut key = self;
            self.skip()?;
            let value = self;
            self.skip()?;
            match key.untagged()?.major {
                BYTES => return Err(invalid("map key is a byte string")),
                TEXT => fields.members.push((at_key.string(TEXT)?, value)),
                _ => {}
            }
        }
        Ok(fields)
    }

    /// The items of a list. Null is an empty one.
    pub fn items(mut self) -> io::Result<Vec<Reader<'a>>> {
        if self.is_nothing() {
            return Ok(Vec::new());
        }
        let head = self.untagged()?;
        if head.major != ARRAY {
            return Err(invalid("not a list"));
        }
        let mut items = Vec::new();
        let mut left = head.value;
        while if head.info == INDEFINITE { !self.at_break() } else { left > 0 } {
            left = left.wrapping_sub(1);
            items.push(self);
            self.skip()?;
        }
        Ok(items)
    }

    /// A string of one major type, in one piece or (length left open) in several.
    fn string(mut self, major: u8) -> io::Result<Cow<'a, [u8]>> {
        let head = self.untagged()?;
        if head.major != major {
            return Err(invalid(if major == TEXT { "text wanted" } else { "bytes wanted" }));
        }
        if head.info != INDEFINITE {
            return self.take(head.value).map(Cow::Borrowed);
        }
        let mut joined = Vec::new();
        while !self.at_break() {
            let piece = self.head()?;
            if piece.major != major || piece.info == INDEFINITE {
                return Err(invalid("a string of open length holds something else than its pieces"));
            }
            joined.extend_from_slice(self.take(piece.value)?);
        }
        Ok(Cow::Owned(joined))
    }

    /// What has not been read: the item this reader stands before, and all behind it.
    pub fn rest(self) -> &'a [u8] {
        self.data
    }

    /// Text; nothing is "". `InvalidData` when it is not UTF-8.
    pub fn text(self) -> io::Result<Cow<'a, str>> {
        if self.is_nothing() {
            return Ok(Cow::Borrowed(""));
        }
        match self.string(TEXT)? {
            Cow::Borrowed(bytes) => str::from_utf8(bytes).map(Cow::Borrowed).map_err(|_| invalid("text is not UTF-8")),
            Cow::Owned(bytes) => String::from_utf8(bytes).map(Cow::Owned).map_err(|_| invalid("text is not UTF-8")),
        }
    }

    /// Bytes: a byte string, or a list of numbers up to 255; nothing is empty.
    pub fn bytes(self) -> io::Result<Cow<'a, [u8]>> {
        let mut ahead = self;
        match ahead.untagged()? {
            Head { major: SIMPLE, info: NULL | UNDEFINED, .. } => Ok(Cow::Borrowed(&[])),
            Head { major: ARRAY, .. } => {
                let numbers = self.items()?.into_iter().map(|item| item.int(0, 255).map(|number| number as u8));
                numbers.collect::<io::Result<Vec<u8>>>().map(Cow::Owned)
            }
            _ => self.string(BYTES),
        }
    }

    /// A whole number from `low` to `high`, big numbers that fit included; nothing is 0.
    pub fn int(mut self, low: i128, high: i128) -> io::Result<i128> {
        let mut big = None;
        let head = loop {
            let head = self.head()?;
            if head.major != TAG {
                break head;
            }
            big = Some(head.value);
        };
        let value = match (head.major, big) {
            (UINT, _) => i128::from(head.value),
            (NEGATIVE, _) => -1 - i128::from(head.value),
            (SIMPLE, _) if matches!(head.info, NULL | UNDEFINED) => 0,
            (BYTES, Some(sign @ (2 | 3))) if head.info != INDEFINITE => {
                let digits = self.take(head.value)?;
                let zeros = digits.iter().take_while(|digit| **digit == 0).count();
                let digits = digits.get(zeros..).filter(|digits| digits.len() <= 8);
                let digits = digits.ok_or_else(|| invalid("number out of range"))?;
                let magnitude = digits.iter().fold(0i128, |value, digit| value << 8 | i128::from(*digit));
                if sign == 2 { magnitude } else { -1 - magnitude }
            }
            _ => return Err(invalid("whole number wanted")),
        };
        if (low..=high).contains(&value) { Ok(value) } else { Err(invalid("number out of range")) }
    }

    /// True or false; nothing is false.
    pub fn truth(mut self) -> io::Result<bool> {
        match self.untagged()? {
            Head { major: SIMPLE, info: TRUE, .. } => Ok(true),
            Head { major: SIMPLE, info: FALSE | NULL | UNDEFINED, .. } => Ok(false),
            _ => Err(invalid("truth value wanted")),
        }
    }
}

/// The members of a map, looked up by name. What nobody looks up is never read, so bad UTF-8 there harms nothing.
#[derive(Debug)]
pub struct Fields<'a> {
    members: Vec<(Cow<'a, [u8]>, Reader<'a>)>,
}

impl<'a> Fields<'a> {
    /// The first member of that name; failing that, the first in another letter case. Nothing (null) counts as absent.
    pub fn get(&self, name: &str) -> Option<Reader<'a>> {
        let exact = self.members.iter().find(|(key, _)| key.as_ref() == name.as_bytes());
        let found = exact.or_else(|| self.members.iter().find(|(key, _)| key.eq_ignore_ascii_case(name.as_bytes())));
        found.map(|(_, value)| *value).filter(|value| !value.is_nothing())
    }

    pub fn text(&self, name: &str) -> io::Result<String> {
        self.get(name).map_or(Ok(String::new()), |value| value.text().map(Cow::into_owned))
    }

    pub fn bytes(&self, name: &str) -> io::Result<Cow<'a, [u8]>> {
        self.get(name).map_or(Ok(Cow::Borrowed(&[])), Reader::bytes)
    }

    pub fn truth(&self, name: &str) -> io::Result<bool> {
        self.get(name).map_or(Ok(false), Reader::truth)
    }

    pub fn u8(&self, name: &str) -> io::Result<u8> {
        self.get(name).map_or(Ok(0), |value| value.int(0, 0xff).map(|number| number as u8))
    }

    pub fn u32(&self, name: &str) -> io::Result<u32> {
        self.get(name).map_or(Ok(0), |value| value.int(0, 0xffff_ffff).map(|number| number as u32))
    }

    pub fn u64(&self, name: &str) -> io::Result<u64> {
        self.get(name).map_or(Ok(0), |value| value.int(0, i128::from(u64::MAX)).map(|number| number as u64))
    }

    pub fn i32(&self, name: &str) -> io::Result<i32> {
        let (low, high) = (i128::from(i32::MIN), i128::from(i32::MAX));
        self.get(name).map_or(Ok(0), |value| value.int(low, high).map(|number| number as i32))
    }

    pub fn i64(&self, name: &str) -> io::Result<i64> {
        let (low, high) = (i128::from(i64::MIN), i128::from(i64::MAX));
        self.get(name).map_or(Ok(0), |value| value.int(low, high).map(|number| number as i64))
    }

    /// A list; `None` when it is absent or null, which is not the same as an empty one.
    pub fn list<T>(&self, name: &str, read: impl FnMut(Reader<'a>) -> io::Result<T>) -> io::Result<Option<Vec<T>>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        value.items()?.into_iter().map(read).collect::<io::Result<Vec<T>>>().map(Some)
    }
}
