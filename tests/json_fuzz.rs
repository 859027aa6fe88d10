//! JSON against chance: random texts, whole and damaged, and what serde_json says of them. Every run has a seed, and prints it.

use std::ops::Range;

use lodger::json::scan::{Invalid, Scanner};
use lodger::json::text::{quote, unquote};
use serde_json::Value;

/// Texts of each test.
const ROUNDS: u64 = 20_000;

/// Levels of a random value; far below serde_json's limit of 128.
const DEPTH: u64 = 6;

/// What a damaged text is damaged with: everything that has a meaning, and some that has none.
const DAMAGE: &[u8] = b"{}[]\",:\\/ \n\t\r\x00\x1f\x7fu0019-+.eEtrufalsn<\xc3\xa4";

/// Pseudo-random numbers.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        // The first numbers of neighbouring seeds are alike.
        for _ in 0..8 {
            random.next();
        }
        random
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 8
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// Prints the seed of a round that panics.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}", self.0);
        }
    }
}

/// Runs a test once for each seed.
fn rounds(test: fn(&mut Random)) {
    for seed in 0..ROUNDS {
        let seed = Seed(seed);
        test(&mut Random::new(seed.0));
    }
}

fn push_space(text: &mut Vec<u8>, random: &mut Random) {
    while random.below(4) == 0 {
        text.push(random.pick(b" \t\r\n"));
    }
}

/// A string with its quotes, valid for serde_json too: no surrogate is alone.
fn push_string(text: &mut Vec<u8>, random: &mut Random) {
    let pieces = ["a", "bc", "0123456789", "ä", "😀", "/", "\x7f", "{", "]", "\u{2028}", ", :"];
    let escapes = ["\\\"", "\\\\", "\\/", "\\b", "\\f", "\\n", "\\r", "\\t", "\\u0041", "\\u00e4", "\\uD83d\\uDE00"];
    text.push(b'"');
    for _ in 0..random.below(8) {
        let piece = if random.below(3) == 0 { random.pick(&escapes) } else { random.pick(&pieces) };
        text.extend(piece.as_bytes());
    }
    text.push(b'"');
}

/// A valid value, with no white space around it.
fn push_value(text: &mut Vec<u8>, random: &mut Random, depth: u64) {
    let numbers = ["0", "-0", "1", "-12", "3.5", "0.25", "1e5", "1.5E-3", "-2e+1", "1234567890"];
    match random.below(if depth == 0 { 4 } else { 7 }) {
        0 => text.extend(random.pick(&numbers).as_bytes()),
        1 => text.extend(random.pick(&["true", "false", "null"]).as_bytes()),
        2 | 3 => push_string(text, random),
        4 => push_members(text, random, b"[]", |text, random| push_value(text, random, depth - 1)),
        _ => push_members(text, random, b"{}", |text, random| {
            push_string(text, random);
            push_space(text, random);
            text.push(b':');
            push_space(text, random);
            push_value(text, random, depth - 1);
        }),
    }
}

fn push_members<F: FnMut(&mut Vec<u8>, &mut Random)>(
    text: &mut Vec<u8>,
    random: &mut Random,
    brackets: &[u8; 2],
    mut push: F,
) {
    text.push(brackets[0]);
    push_space(text, random);
    for index in 0..random.below(4) {
        if index > 0 {
            text.push(b',');
            push_space(text, random);
        }
        push(text, random);
        push_space(text, random);
    }
    text.push(brackets[1]);
}

fn random_value(random: &mut Random) -> Vec<u8> {
    let mut text = Vec::new();
    push_space(&mut text, random);
    push_value(&mut text, random, DEPTH);
    text
}

fn damage(text: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(3) {
        let at = random.below(text.len() + 1);
        let end = (at + random.below(3)).min(text.len());
        let new: Vec<u8> = (0..random.below(3)).map(|_| random.pick(DAMAGE)).collect();
        text.splice(at..end, new);
    }
}

/// What serde_json says of a text.
#[derive(Debug, PartialEq)]
enum Verdict {
    Whole,
    /// It could be the start of a valid one.
    More,
    Refused,
    /// It is valid to Go, and serde_json refuses it for what it means.
    Unknown,
}

fn verdict(text: &[u8]) -> Verdict {
    match serde_json::from_slice::<Value>(text) {
        Ok(_) => Verdict::Whole,
        Err(error) if error.is_eof() => Verdict::More,
        Err(error) => {
            let why = error.to_string();
            let meaning = [
                "number out of range",
                "lone leading surrogate",
                "unexpected end of hex escape",
                "invalid unicode code point",
            ];
            if meaning.iter().any(|start| why.starts_with(start)) { Verdict::Unknown } else { Verdict::Refused }
        }
    }
}

/// Feeds byte by byte, and a line feed at the end. How many bytes the value has, or why it is none and at which byte.
fn by_byte(text: &[u8]) -> Result<Option<usize>, (Invalid, usize)> {
    let mut scanner = Scanner::value();
    for (at, byte) in text.iter().chain(b"\n").enumerate() {
        match scanner.feed(&[*byte]) {
            Ok(None) => {}
            Ok(Some(count)) => return Ok(Some(at + count)),
            Err(why) => return Err((why, at)),
        }
    }
    Ok(None)
}

/// Feeds in random pieces. What the scanner said at last, as an offset in the text, and what it found.
fn in_pieces(
    mut scanner: Scanner,
    text: &[u8],
    random: &mut Random,
) -> (Result<Option<usize>, Invalid>, Option<Range<usize>>) {
    let mut at = 0;
    while at < text.len() {
        let end = (at + random.below(12)).min(text.len());
        match scanner.feed(&text[at..end]) {
            Ok(None) => at = end,
            result => return (result.map(|count| count.map(|count| at + count)), scanner.found()),
        }
    }
    (Ok(None), scanner.found())
}

#[test]
fn a_valid_text_is_whole_with_its_last_byte() {
    rounds(|random| {
        let text = random_value(random);
        assert_eq!(verdict(&text), Verdict::Whole, "{}", text.escape_ascii());
        assert_eq!(by_byte(&text), Ok(Some(text.len())), "{}", text.escape_ascii());
    });
}

#[test]
fn a_damaged_text_is_refused_where_no_other_parser_could_go_on() {
    rounds(|random| {
        let mut text = random_value(random);
        damage(&mut text, random);
        let shown = text.escape_ascii().to_string();
        let expect = |part: &[u8], expected: Verdict| {
            let said = verdict(part);
            assert!(said == expected || said == Verdict::Unknown, "{} of {shown}: {said:?}", part.escape_ascii());
        };
        match by_byte(&text) {
            Ok(Some(end)) => expect(&text[..end], Verdict::Whole),
            Ok(None) => expect(&text, Verdict::More),
            Err((why, at)) => {
                assert_eq!(why, Invalid::Syntax, "{shown}");
                expect(&text[..at], Verdict::More);
                // serde_json looks at the digits of an escape only when there are four bytes.
                expect(&[&[&text[..], b"\n"].concat()[..=at], b"0000"].concat(), Verdict::Refused);
            }
        }
    });
}

#[test]
fn pieces_of_any_size_say_what_the_whole_says() {
    rounds(|random| {
        let mut text = random_value(random);
        if random.below(2) == 0 {
            damage(&mut text, random);
        }
        for make in [Scanner::value, || Scanner::object("a")] {
            let mut scanner = make();
            let whole = (scanner.feed(&text), scanner.found());
            assert_eq!(in_pieces(make(), &text, random), whole, "{}", text.escape_ascii());
        }
    });
}

#[test]
fn the_watched_string_is_the_last_one_of_that_name() {
    rounds(|random| {
        let same = [r#""Command""#, r#""command""#, r#""COMMAND""#, r#""\u0043omm\u0061nd""#, r#""comman\u0044""#];
        let mut expected = None;
        let mut text = b"{".to_vec();
        for index in 0..random.below(6) {
            text.extend(if index > 0 { &b", "[..] } else { b"" });
            if random.below(2) == 0 {
                push_string(&mut text, random);
                text.push(b':');
                push_value(&mut text, random, 3);
                continue;
            }
            text.extend(random.pick(&same).as_bytes());
            text.extend(b" : ");
            let start = text.len();
            if random.below(3) == 0 {
                text.extend(b"null");
            } else {
                push_string(&mut text, random);
                expected = Some(start..text.len());
            }
        }
        text.push(b'}');
        let (result, found) = in_pieces(Scanner::object("Command"), &text, random);
        assert_eq!((result, &found), (Ok(Some(text.len())), &expected), "{}", text.escape_ascii());
        if let Some(range) = found {
            let string: String = serde_json::from_slice(&text[range.clone()]).expect("it is a string");
            assert_eq!(unquote(&text[range]), string, "{}", text.escape_ascii());
        }
    });
}

#[test]
fn what_is_quoted_is_a_string_that_says_the_same() {
    rounds(|random| {
        let mut text = random_value(random);
        damage(&mut text, random);
        let quoted = quote(&text);
        assert_eq!(by_byte(&quoted), Ok(Some(quoted.len())), "{}", text.escape_ascii());
        let string: String = serde_json::from_slice(&quoted).expect("it is a string");
        assert_eq!(unquote(&quoted), string, "{}", text.escape_ascii());
        if let Ok(text) = String::from_utf8(text) {
            assert_eq!(string, text);
        }
    });
}
