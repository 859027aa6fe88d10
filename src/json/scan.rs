//! The incremental scanner: where does the JSON value end that has begun to arrive, and where in it is one member's string?
//!
//! It takes each byte once and keeps none, however small the pieces are in which a text comes. What it accepts is what Go's
//! `encoding/json` accepts: strict syntax, duplicate names, any bytes from 0x80 on inside of strings. Nothing is decoded, and the only
//! memory that a peer can make grow is a bit for each level.

use std::ops::Range;

/// Levels of objects and lists within each other. Go's `encoding/json` refuses more.
pub const DEPTH_MAX: usize = 10_000;

/// Why a text is refused: it can never become valid, whatever may follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    Syntax,
    /// An object was wanted, and something else begins.
    NotAnObject,
    /// More than [`DEPTH_MAX`] levels.
    TooDeep,
    /// The watched member's value is neither a string nor `null`.
    NotAString,
}

/// What may stand at a place between two tokens.
#[derive(Clone, Copy)]
enum Wanted {
    Object,
    Value,
    ValueOrEnd,
    Name,
    NameOrEnd,
    Colon,
    CommaOrEnd,
}

/// What the next byte is to continue, to one who has to say why it does not.
#[cfg(feature = "clear")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Value,
    Name,
    /// Behind a member's name.
    Named,
    /// Behind a member's value.
    Member,
    /// Behind a value in a list.
    Element,
    Text,
    Escape,
    Hex,
    /// Behind a number's minus, its point, and its `e` with or without a sign.
    Minus,
    Point,
    Exponent,
    /// In `true`, `false` or `null`: what is to come of it.
    Literal(&'static [u8]),
    /// Behind all.
    End,
}

/// The part of a number that the last byte belonged to.
#[derive(Clone, Copy)]
enum Number {
    Minus,
    Zero,
    Integer,
    Point,
    Fraction,
    Exponent,
    Sign,
    Power,
}

/// The place that the scanner has reached.
#[derive(Clone, Copy)]
enum State {
    Between(Wanted),
    /// In a string.
    Text,
    /// Behind a backslash.
    Escape,
    /// Behind `\u`: how many digits are to come, and the number of those that came.
    Hex {
        left: u32,
        code: u32,
    },
    Number(Number),
    /// In `true`, `false` or `null`: what is to come of it.
    Literal(&'static [u8]),
    Complete,
    Refused(Invalid),
}

/// What the current string, or the next value, is to the one who watches.
#[derive(Clone, Copy)]
enum Role {
    Ordinary,
    /// The name of a member; the first so many bytes of the watched name, or `None` when it is another one.
    Name(Option<usize>),
    /// The value of the watched member. Its offset, once it has begun.
    Watched(usize),
}

/// Finds the end of one value.
pub struct Scanner {
    member: Option<&'static str>,
    /// Bytes of the text that were taken.
    at: usize,
    state: State,
    role: Role,
    found: Option<Range<usize>>,
    depth: usize,
    /// Values that have begun.
    values: usize,
    /// A bit for each level: set for an object, not set for a list.
    objects: Vec<u64>,
}

impl Scanner {
    /// A scanner for one object. Of its own members (not of those of objects inside), those are watched whose name is `member`, ignoring
    /// the case of ASCII letters, after JSON's escapes are undone. `member` is ASCII.
    pub fn object(member: &'static str) -> Scanner {
        Scanner::new(Some(member), Wanted::Object)
    }

    /// A scanner for any value, which watches nothing.
    ///
    /// A number that is not inside of anything is complete only when a byte comes that cannot continue it, and that byte is not counted;
    /// who knows that nothing follows feeds a line feed.
    pub fn value() -> Scanner {
        Scanner::new(None, Wanted::Value)
    }

    fn new(member: Option<&'static str>, wanted: Wanted) -> Scanner {
        Scanner {
            member,
            at: 0,
            state: State::Between(wanted),
            role: Role::Ordinary,
            found: None,
            depth: 0,
            values: 0,
            objects: Vec::new(),
        }
    }

    /// Takes the next bytes of the text. `Some`: the value is complete with the first so many of these `bytes`, and the rest was not
    /// looked at; 0 ever after. `None`: all were taken, and more are needed. White space in front of the value belongs to it.
    ///
    /// Errors come with the first byte that nothing valid has at its place, and again ever after.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Option<usize>, Invalid> {
        let mut taken = 0;
        loop {
            let rest = &bytes[taken..];
            let step = match (self.state, rest.first()) {
                (State::Complete, _) => return Ok(Some(taken)),
                (State::Refused(why), _) => return Err(why),
                (_, None) => return Ok(None),
                (State::Text, _) => self.text(rest),
                (_, Some(byte)) => self.byte(*byte),
            };
            match step {
                Ok(count) => {
                    taken += count;
                    self.at += count;
                }
                Err(why) => self.state = State::Refused(why),
            }
        }
    }

    /// Where the watched member's value stands: offsets in bytes from the first one that was ever fed, with both quotes. Of several in the
    /// text, the last one that is a string and has come in full; a `null` changes nothing.
    pub fn found(&self) -> Option<Range<usize>> {
        self.found.clone()
    }

    /// How many values have begun, those inside of others too: what a tree of them would cost goes by this.
    pub fn values(&self) -> usize {
        self.values
    }

    /// How many bytes of the text were taken. A refused byte is not among them, nor is what stands before it in the same plain piece of a
    /// string.
    #[cfg(feature = "clear")]
    pub fn taken(&self) -> usize {
        self.at
    }

    /// The place behind the bytes that were taken, of a text that was not refused.
    #[cfg(feature = "clear")]
    pub fn place(&self) -> Place {
        match self.state {
            State::Between(Wanted::Object | Wanted::Value | Wanted::ValueOrEnd) => Place::Value,
            State::Between(Wanted::Name | Wanted::NameOrEnd) => Place::Name,
            State::Between(Wanted::Colon) => Place::Named,
            State::Text => Place::Text,
            State::Escape => Place::Escape,
            State::Hex { .. } => Place::Hex,
            State::Number(Number::Minus) => Place::Minus,
            State::Number(Number::Point) => Place::Point,
            State::Number(Number::Exponent | Number::Sign) => Place::Exponent,
            State::Literal(rest) => Place::Literal(rest),
            // What does not continue a whole number ends it.
            State::Between(Wanted::CommaOrEnd) | State::Number(_) if self.depth > 0 => match self.in_object() {
                true => Place::Member,
                false => Place::Element,
            },
            _ => Place::End,
        }
    }

    /// Takes a byte outside of a string's plain text. 1, or 0 when the byte ended a number and is to be looked at again.
    fn byte(&mut self, byte: u8) -> Result<usize, Invalid> {
        match self.state {
            State::Between(wanted) => self.between(wanted, byte)?,
            State::Escape => self.escape(byte)?,
            State::Hex { left, code } => self.hex(left, code, byte)?,
            State::Number(number) => match number.next(byte) {
                Some(next) => self.state = State::Number(next),
                None if number.is_whole() => {
                    self.value_ended();
                    return Ok(0);
                }
                None => return Err(Invalid::Syntax),
            },
            State::Literal(rest) => match rest.split_first() {
                Some((first, [])) if *first == byte => self.value_ended(),
                Some((first, rest)) if *first == byte => self.state = State::Literal(rest),
                _ => return Err(Invalid::Syntax),
            },
            State::Text | State::Complete | State::Refused(_) => {}
        }
        Ok(1)
    }

    fn between(&mut self, wanted: Wanted, byte: u8) -> Result<(), Invalid> {
        match (wanted, byte) {
            (_, b' ' | b'\t' | b'\n' | b'\r') => {}
            (Wanted::ValueOrEnd, b']') | (Wanted::NameOrEnd, b'}') => self.close(),
            (Wanted::CommaOrEnd, b']') if !self.in_object() => self.close(),
            (Wanted::CommaOrEnd, b'}') if self.in_object() => self.close(),
            (Wanted::CommaOrEnd, b',') => {
                self.state = State::Between(if self.in_object() { Wanted::Name } else { Wanted::Value });
            }
            (Wanted::Colon, b':') => self.state = State::Between(Wanted::Value),
            (Wanted::Name | Wanted::NameOrEnd, b'"') => {
                self.role = Role::Name((self.depth == 1 && self.member.is_some()).then_some(0));
                self.state = State::Text;
            }
            (Wanted::Value | Wanted::ValueOrEnd, _) | (Wanted::Object, b'{') => self.begin(byte)?,
            (Wanted::Object, _) => return Err(Invalid::NotAnObject),
            _ => return Err(Invalid::Syntax),
        }
        Ok(())
    }

    /// Begins the value that has this first byte.
    fn begin(&mut self, byte: u8) -> Result<(), Invalid> {
        self.values += 1;
        if let Role::Watched(_) = self.role {
            self.role = match byte {
                b'"' => Role::Watched(self.at),
                b'n' => Role::Ordinary,
                _ => return Err(Invalid::NotAString),
            };
        }
        self.state = match byte {
            b'{' | b'[' => return self.open(byte),
            b'"' => State::Text,
            b'-' => State::Number(Number::Minus),
            b'0' => State::Number(Number::Zero),
            b'1'..=b'9' => State::Number(Number::Integer),
            b't' => State::Literal(b"rue"),
            b'f' => State::Literal(b"alse"),
            b'n' => State::Literal(b"ull"),
            _ => return Err(Invalid::Syntax),
        };
        Ok(())
    }

    fn open(&mut self, bracket: u8) -> Result<(), Invalid> {
        if self.depth == DEPTH_MAX {
            return Err(Invalid::TooDeep);
        }
        let (word, bit) = place(self.depth);
        if word == self.objects.len() {
            // A vector that doubles itself would take nearly twice the memory.
            self.objects.reserve_exact(1);
            self.objects.push(0);
        }
        self.depth += 1;
        if bracket == b'{' {
            self.objects[word] |= bit;
            self.state = State::Between(Wanted::NameOrEnd);
        } else {
            self.objects[word] &= !bit;
            self.state = State::Between(Wanted::ValueOrEnd);
        }
        Ok(())
    }

    fn close(&mut self) {
        self.depth -= 1;
        self.value_ended();
    }

    /// Whether the innermost open level is an object. There is one.
    fn in_object(&self) -> bool {
        let (word, bit) = place(self.depth - 1);
        self.objects[word] & bit != 0
    }

    fn value_ended(&mut self) {
        self.state = if self.depth == 0 { State::Complete } else { State::Between(Wanted::CommaOrEnd) };
    }

    /// Takes what stands there of a string up to the next backslash or through the closing quote. How many bytes.
    fn text(&mut self, rest: &[u8]) -> Result<usize, Invalid> {
        let plain = plain_length(rest);
        self.compare_name(&rest[..plain]);
        match rest.get(plain) {
            None => return Ok(plain),
            Some(b'"') => self.text_ended(self.at + plain + 1),
            Some(b'\\') => self.state = State::Escape,
            Some(_) => return Err(Invalid::Syntax),
        }
        Ok(plain + 1)
    }

    fn text_ended(&mut self, end: usize) {
        match self.role {
            Role::Name(same) => {
                let watched = same.is_some() && same == self.member.map(str::len);
                self.role = if watched { Role::Watched(end) } else { Role::Ordinary };
                self.state = State::Between(Wanted::Colon);
                return;
            }
            Role::Watched(start) => {
                self.found = Some(start..end);
                self.role = Role::Ordinary;
            }
            Role::Ordinary => {}
        }
        self.value_ended();
    }

    fn escape(&mut self, byte: u8) -> Result<(), Invalid> {
        let plain = match byte {
            b'u' => {
                self.state = State::Hex { left: 4, code: 0 };
                return Ok(());
            }
            b'"' | b'\\' | b'/' => byte,
            b'b' => 0x08,
            b'f' => 0x0c,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            _ => return Err(Invalid::Syntax),
        };
        self.compare_name(&[plain]);
        self.state = State::Text;
        Ok(())
    }

    fn hex(&mut self, left: u32, code: u32, byte: u8) -> Result<(), Invalid> {
        let digit = char::from(byte).to_digit(16).ok_or(Invalid::Syntax)?;
        let (left, code) = (left - 1, code << 4 | digit);
        if left > 0 {
            self.state = State::Hex { left, code };
            return Ok(());
        }
        // No character beyond ASCII is in the watched name; 0xff stands for all of them.
        self.compare_name(&[u8::try_from(code).ok().filter(u8::is_ascii).unwrap_or(0xff)]);
        self.state = State::Text;
        Ok(())
    }

    /// Takes the next bytes of a name, without escapes. Only how far the watched name agrees is kept, so that no name takes memory.
    fn compare_name(&mut self, piece: &[u8]) {
        if let (Role::Name(Some(same)), Some(member)) = (self.role, self.member) {
            let end = same + piece.len();
            let agrees = member.as_bytes().get(same..end).is_some_and(|part| part.eq_ignore_ascii_case(piece));
            self.role = Role::Name(agrees.then_some(end));
        }
    }
}

impl Number {
    /// The part that `byte` belongs to behind this one, or `None` when it does not continue the number.
    fn next(self, byte: u8) -> Option<Number> {
        match (self, byte) {
            (Number::Minus, b'0') => Some(Number::Zero),
            (Number::Minus | Number::Integer, b'0'..=b'9') => Some(Number::Integer),
            (Number::Zero | Number::Integer, b'.') => Some(Number::Point),
            (Number::Point | Number::Fraction, b'0'..=b'9') => Some(Number::Fraction),
            (Number::Zero | Number::Integer | Number::Fraction, b'e' | b'E') => Some(Number::Exponent),
            (Number::Exponent, b'+' | b'-') => Some(Number::Sign),
            (Number::Exponent | Number::Sign | Number::Power, b'0'..=b'9') => Some(Number::Power),
            _ => None,
        }
    }

    fn is_whole(self) -> bool {
        matches!(self, Number::Zero | Number::Integer | Number::Fraction | Number::Power)
    }
}

/// The word and the bit in it that stand for a level.
fn place(level: usize) -> (usize, u64) {
    (level / 64, 1 << (level % 64))
}

/// How many bytes at the start of `bytes` are neither quote nor backslash nor control character.
fn plain_length(bytes: &[u8]) -> usize {
    let (words, _) = bytes.as_chunks();
    let mut plain = 0;
    for word in words {
        let marks = marks(u64::from_le_bytes(*word));
        if marks != 0 {
            return plain + marks.trailing_zeros() as usize / 8;
        }
        plain += word.len();
    }
    let rest = &bytes[plain..];
    plain + rest.iter().position(|byte| matches!(byte, 0..0x20 | b'"' | b'\\')).unwrap_or(rest.len())
}

/// A word whose lowest bit that is set lies in the lowest byte of `word` that is no plain text; 0 when all eight are plain.
fn marks(word: u64) -> u64 {
    const ONES: u64 = u64::MAX / 0xff;
    // The highest bit of a byte is set where the byte is less than `limit`. A borrow may set it in bytes above such a one, never below.
    let less = |word: u64, limit: u64| word.wrapping_sub(ONES * limit) & !word;
    let equal = |byte: u8| less(word ^ (ONES * u64::from(byte)), 1);
    (less(word, 0x20) | equal(b'"') | equal(b'\\')) & (ONES << 7)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of a text that is fed byte by byte: the result, and how many bytes were taken when it came.
    fn by_byte(mut scanner: Scanner, text: &[u8]) -> (Result<Option<usize>, Invalid>, usize, Option<Range<usize>>) {
        for (at, byte) in text.iter().enumerate() {
            match scanner.feed(&[*byte]) {
                Ok(None) => {}
                Ok(Some(count)) => return (Ok(Some(at + count)), at + count, scanner.found()),
                Err(why) => return (Err(why), at, scanner.found()),
            }
        }
        (Ok(None), text.len(), scanner.found())
    }

    /// Feeds a text whole, in two pieces cut at every place, and byte by byte; all must agree. The result, the offset of the byte that
    /// ended it, and what was found.
    fn outcome(make: fn() -> Scanner, text: &[u8]) -> (Result<Option<usize>, Invalid>, usize, Option<Range<usize>>) {
        let expected = by_byte(make(), text);
        for cut in 0..=text.len() {
            let mut scanner = make();
            let result = match scanner.feed(&text[..cut]) {
                Ok(None) => scanner.feed(&text[cut..]).map(|end| end.map(|count| cut + count)),
                early => early,
            };
            assert_eq!((result, scanner.found()), (expected.0, expected.2.clone()), "{text:?} cut at {cut}");
        }
        expected
    }

    fn command() -> Scanner {
        Scanner::object("Command")
    }

    /// The string that is found in a whole object.
    fn found(text: &str) -> Option<&str> {
        let (result, _, found) = outcome(command, text.as_bytes());
        assert_eq!(result, Ok(Some(text.len())), "{text}");
        found.map(|range| &text[range])
    }

    #[test]
    fn values_are_counted_at_every_level_and_names_are_none() {
        for (text, count) in [("7\n", 1), ("[]", 1), (r#"{"a":1,"b":[2,{"c":null}],"d":"x,y"}"#, 7)] {
            let mut scanner = Scanner::value();
            assert!(matches!(scanner.feed(text.as_bytes()), Ok(Some(_))), "{text}");
            assert_eq!(scanner.values(), count, "{text}");
        }
    }

    #[test]
    fn a_value_is_complete_with_its_last_byte() {
        let texts: [&[u8]; 26] = [
            b"{}",
            b"[]",
            b"null",
            b"true",
            b"false",
            b"\"\"",
            b" \t\r\n{ \t\r\n}",
            b"[ ]",
            b"[0,-0,10,-19,1.5,0.0,-0.25]",
            b"[1e5,1E5,1e+5,1E-5,0e0,1.5e007,2.0E+1]",
            b"[ 1 , 2 ]",
            b"{\"a\":1}",
            b"{ \"a\" : 1 , \"a\" : { } }",
            b"[[],{},[{}],{\"\":[]}]",
            b"{\"a\":[{\"b\":[]}],\"c\":{}}",
            b"\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"",
            b"\"\\u0000\\uFFFF\\uabCD\\ud800\"",
            b"\"\x7f\xc3\xa4\"",
            b"\"\x80\xff\xfe\xc3\"",
            b"\"/'{}[],:\"",
            b"\"long enough for more than one word, and a bit\"",
            b"\"1234567\\\\\"",
            b"\"12345678\"",
            b"\"12345678\\n\"",
            b"[true,false,null]",
            b"  [\"a\" ,\n\"b\"]",
        ];
        for text in texts {
            let behind = [text, b" }x"].concat();
            let (result, ..) = outcome(Scanner::value, &behind);
            assert_eq!(result, Ok(Some(text.len())), "{}", text.escape_ascii());
        }
    }

    #[test]
    fn a_number_ends_in_front_of_what_cannot_continue_it() {
        let texts =
            [("12 ", 2), ("0\n", 1), ("01", 1), ("-0-", 2), ("1.5.", 3), ("1e5e", 3), ("1e-05]", 5), (" 7x", 2)];
        for (text, end) in texts {
            assert_eq!(outcome(Scanner::value, text.as_bytes()).0, Ok(Some(end)), "{text}");
        }
        assert_eq!(outcome(Scanner::value, b"12").0, Ok(None));
    }

    #[test]
    fn a_text_is_refused_at_the_first_byte_that_cannot_be_right() {
        let texts: [(&[u8], usize); 55] = [
            (b"x", 0),
            (b"}", 0),
            (b"]", 0),
            (b",", 0),
            (b":", 0),
            (b"'a'", 0),
            (b"\xef\xbb\xbf{}", 0),
            (b" \x0b1", 1),
            (b"\x0c1", 0),
            (b"\x00", 0),
            (b"\xc2\xa0", 0),
            (b"// no", 0),
            (b"True", 0),
            (b"trUe", 2),
            (b"nul ", 3),
            (b"falze", 3),
            (b"NaN", 0),
            (b"+1", 0),
            (b".5", 0),
            (b"--1", 1),
            (b"-x", 1),
            (b"- 1", 1),
            (b"1.x", 2),
            (b"1.e5", 2),
            (b"1ex", 2),
            (b"1e+-", 3),
            (b"1e+ ", 3),
            (b"[01]", 2),
            (b"[-01]", 3),
            (b"[1.5.2]", 4),
            (b"[0x10]", 2),
            (b"[1 2]", 3),
            (b"[1,]", 3),
            (b"[,1]", 1),
            (b"[1,,2]", 3),
            (b"[1}", 2),
            (b"[}", 1),
            (b"[1:2]", 2),
            (b"[true1]", 5),
            (b"{]", 1),
            (b"{,}", 1),
            (b"{a:1}", 1),
            (b"{1:1}", 1),
            (b"{\"a\"}", 4),
            (b"{\"a\",1}", 4),
            (b"{\"a\" 1}", 5),
            (b"{\"a\":}", 5),
            (b"{\"a\":1]", 6),
            (b"{\"a\":1,}", 7),
            (b"{\"a\":1 \"b\"}", 7),
            (b"\"\x1f\"", 1),
            (b"\"12345678\n\"", 9),
            (b"\"\\x41\"", 2),
            (b"\"\\u12g4\"", 5),
            (b"\"\\u 123\"", 3),
        ];
        for (text, at) in texts {
            let (result, offset, _) = outcome(Scanner::value, text);
            assert_eq!((result, offset), (Err(Invalid::Syntax), at), "{}", text.escape_ascii());
        }
    }

    #[test]
    fn every_control_character_ends_a_string_and_no_other_byte_does() {
        for byte in 0..=0xff {
            for plain in 0..20 {
                let text = [&b"\""[..], &vec![b'p'; plain], &[byte], b"12345678\""].concat();
                let expected = match byte {
                    0..0x20 => Err(Invalid::Syntax),
                    b'"' => Ok(Some(plain + 2)),
                    // The digit behind it is no escape.
                    b'\\' => Err(Invalid::Syntax),
                    _ => Ok(Some(text.len())),
                };
                assert_eq!(Scanner::value().feed(&text), expected, "byte {byte} behind {plain}");
            }
        }
    }

    #[test]
    fn an_object_that_is_none_is_refused_at_once() {
        for text in [&b" \n["[..], b"12", b"null", b"\"{\"", b"}", b"\xef\xbb\xbf{", b"x", b"\0"] {
            let (result, offset, _) = outcome(command, text);
            let first = text.len() - text.trim_ascii_start().len();
            assert_eq!((result, offset), (Err(Invalid::NotAnObject), first), "{}", text.escape_ascii());
        }
    }

    #[test]
    fn nesting_is_refused_beyond_the_limit() {
        for (open, close) in [(&b"["[..], &b"]"[..]), (b"{\"\":", b"}"), (b"[{\"a\":", b"}]")] {
            let levels = open.iter().filter(|byte| b"[{".contains(byte)).count();
            let text = |count: usize, inside: &[u8]| {
                [&open.repeat(count / levels), inside, &close.repeat(count / levels)].concat()
            };
            let deepest = text(DEPTH_MAX, b"0");
            assert_eq!(Scanner::value().feed(&deepest), Ok(Some(deepest.len())));
            assert_eq!(by_byte(Scanner::value(), &deepest).0, Ok(Some(deepest.len())));
            for inside in [b"[]", b"{}"] {
                let (result, at, _) = by_byte(Scanner::value(), &text(DEPTH_MAX, inside));
                assert_eq!((result, at), (Err(Invalid::TooDeep), DEPTH_MAX / levels * open.len()));
            }
        }
        let mut scanner = Scanner::value();
        assert_eq!(scanner.feed(&b"[".repeat(DEPTH_MAX)), Ok(None));
        assert_eq!(scanner.objects.capacity(), DEPTH_MAX.div_ceil(64));
    }

    #[test]
    fn brackets_close_what_they_opened_however_deep() {
        // Longer than a word of levels, of both kinds, and the levels are used twice.
        let once = [&b"[{\"a\":[".repeat(50)[..], &b"]}]".repeat(50)].concat();
        let text = [b"[", &once[..], b",", &b"{\"\":".repeat(150), b"1", &b"}".repeat(150), b"]"].concat();
        assert_eq!(Scanner::value().feed(&text), Ok(Some(text.len())));
        let wrong = [&b"[".repeat(64)[..], b"{\"\":[", &b"]}".repeat(2)].concat();
        let (result, at, _) = by_byte(Scanner::value(), &wrong);
        assert_eq!((result, at), (Err(Invalid::Syntax), wrong.len() - 1));
    }

    #[test]
    fn the_last_string_of_the_watched_name_is_found() {
        assert_eq!(found(r#"{"Command":"a"}"#), Some(r#""a""#));
        assert_eq!(found(" {\n\"x\":1,\"Command\" : \"a\\\"b\" , \"y\":2}"), Some("\"a\\\"b\""));
        assert_eq!(found(r#"{"Command":"a","command":"b"}"#), Some(r#""b""#));
        assert_eq!(found(r#"{"cOMMAND":"b","Command":"a"}"#), Some(r#""a""#));
        assert_eq!(found(r#"{"Command":"a","COMMAND":null}"#), Some(r#""a""#));
        assert_eq!(found(r#"{"Command":null}"#), None);
        assert_eq!(found(r#"{"Command":null,"Command":"a"}"#), Some(r#""a""#));
        assert_eq!(found(r#"{"Command":""}"#), Some(r#""""#));
        assert_eq!(found(r#"{"\u0043ommand":"a"}"#), Some(r#""a""#));
        assert_eq!(found(r#"{"\u0063\u006f\u006D\u006d\u0061\u006e\u0044":"a"}"#), Some(r#""a""#));
        assert_eq!(found("{}"), None);
    }

    #[test]
    fn other_names_and_deeper_ones_are_not_watched() {
        for text in [
            r#"{"x":{"Command":5}}"#,
            r#"{"x":{"Command":"a"}}"#,
            r#"{"x":[{"Command":"a"},{"Command":5}]}"#,
            r#"{"x":"Command","y":5}"#,
            r#"{"Name":"a"}"#,
            r#"{"":"a"}"#,
            r#"{"Comman":5}"#,
            r#"{"Commands":5}"#,
            r#"{"Command\u0000":5}"#,
            r#"{"Command\n":5}"#,
            r#"{"\\Command":5}"#,
            r#"{"Command\ud83d\ude00":5}"#,
            r#"{"\u0143ommand":5}"#,
            r#"{"CommandCommand":5}"#,
            r#"{"XCommand":5}"#,
            "{\"Comm\u{e4}nd\":5}",
        ] {
            assert_eq!(found(text), None, "{text}");
        }
        assert_eq!(found(r#"{"Command":"a","x":{"Command":"b"},"y":["Command","c"]}"#), Some(r#""a""#));
        assert_eq!(outcome(Scanner::value, br#"{"Command":5}"#).0, Ok(Some(13)));
    }

    #[test]
    fn a_watched_value_that_is_no_string_is_refused_at_its_first_byte() {
        for value in ["5", "-", "true", "false", "[", "{", "}", "x"] {
            let (result, at, _) = outcome(command, format!("{{\"a\":1,\"coMMand\": {value}").as_bytes());
            assert_eq!((result, at), (Err(Invalid::NotAString), 18), "{value}");
        }
        let (result, at, found) = outcome(command, br#"{"Command":"a","command":5}"#);
        assert_eq!((result, at, found), (Err(Invalid::NotAString), 25, Some(11..14)));
        assert_eq!(outcome(command, br#"{"Command":nil}"#).0, Err(Invalid::Syntax));
    }

    #[test]
    fn a_string_is_found_only_when_all_of_it_has_come() {
        let mut scanner = command();
        assert_eq!(scanner.feed(br#"{"Command":"a"#), Ok(None));
        assert_eq!(scanner.found(), None);
        assert_eq!(scanner.feed(br#"b""#), Ok(None));
        assert_eq!(scanner.found(), Some(11..15));
    }

    #[test]
    fn a_scanner_stays_at_its_end_and_at_its_error() {
        let mut scanner = Scanner::value();
        assert_eq!(scanner.feed(b""), Ok(None));
        assert_eq!(scanner.feed(b"[]]"), Ok(Some(2)));
        assert_eq!(scanner.feed(b"]"), Ok(Some(0)));
        let mut scanner = Scanner::value();
        assert_eq!(scanner.feed(b"[1,]"), Err(Invalid::Syntax));
        assert_eq!(scanner.feed(b"2]"), Err(Invalid::Syntax));
    }
}
