//! Frames among other text on a line: COBS between zero bytes, a CRC-32, and the way back.
//!
//! The byte layout is in the documentation of the module above. What this file knows beyond it is how to find frames in a stream of
//! bytes that a kernel prints into as well, and how to take a line of text out of a frame again that was inserted in its middle.

use memchr::memchr;

use crate::crc::crc32;

/// First byte of every frame: version 1. The bytes 0xf8 to 0xff are in no UTF-8 text, so the second byte of a segment tells text from
/// frames at once, and text need not wait for its end.
pub const VERSION: u8 = 0xfe;

/// Bytes in front of the payload.
pub const HEADER_BYTES: usize = 18;

/// Bytes of the checksum behind the payload.
const SUM_BYTES: usize = 4;

/// Bytes of a segment that is no frame and is held nevertheless, because it began like one: this many of inserted text beyond the
/// largest frame. Longer printing into one frame is not taken out again, and the frame is repaired.
const INSERTED_MAX: usize = 1024;

/// Bytes that are decoded in vain in search of inserted text: every place in the largest frame of short lines, and it bounds the time
/// that one hostile frame can cost to about a millisecond.
const SEARCH_BYTES: usize = 512 << 10;

/// Everything in front of a frame's payload but its version and length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub kind: u8,
    /// The sender's session.
    pub from: u32,
    /// The session that the sender believes the receiver to have; 0: it does not know.
    pub to: u32,
    /// The number of the next frame that the sender expects: it has all before.
    pub ack: u16,
    /// This frame's own number, 0 in kinds that have none.
    pub seq: u16,
    pub channel: u16,
}

/// Most bytes of payload in a frame of so many bytes on the wire.
pub const fn payload_max(wire_bytes: usize) -> usize {
    // Two zero bytes, and one of COBS for each 254.
    (wire_bytes - 2) * 254 / 255 - HEADER_BYTES - SUM_BYTES
}

/// Most bytes on the wire of a frame with so much payload.
pub const fn wire_bytes(payload_bytes: usize) -> usize {
    let body = HEADER_BYTES + payload_bytes + SUM_BYTES;
    body + body.div_ceil(254) + 2
}

/// Appends a frame as it goes over the line.
pub fn encode(header: &Header, payload: &[u8], out: &mut Vec<u8>) {
    let mut body = Vec::with_capacity(HEADER_BYTES + payload.len() + SUM_BYTES);
    body.extend([VERSION, header.kind]);
    body.extend((payload.len() as u16).to_le_bytes());
    body.extend(header.from.to_le_bytes());
    body.extend(header.to.to_le_bytes());
    for number in [header.ack, header.seq, header.channel] {
        body.extend(number.to_le_bytes());
    }
    body.extend_from_slice(payload);
    body.extend(crc32(&body).to_le_bytes());
    out.push(0);
    stuff(&body, out);
    out.push(0);
}

/// COBS: each zero byte becomes the distance to the next one, and the first distance stands in front.
fn stuff(mut body: &[u8], out: &mut Vec<u8>) {
    out.reserve(body.len() + body.len() / 254 + 2);
    loop {
        // Zero bytes come in rows; searching for each would take ten times as long.
        while let [0, rest @ ..] = body {
            out.push(1);
            body = rest;
        }
        let reach = &body[..body.len().min(254)];
        match memchr(0, reach) {
            Some(length) => {
                out.push(length as u8 + 1);
                out.extend_from_slice(&body[..length]);
                body = &body[length + 1..];
            }
            None if reach.len() == 254 => {
                out.push(255);
                out.extend_from_slice(reach);
                body = &body[254..];
                // A full block stands for no zero byte behind it, so nothing must follow when nothing is left.
                if body.is_empty() {
                    return;
                }
            }
            None => {
                out.push(reach.len() as u8 + 1);
                return out.extend_from_slice(reach);
            }
        }
    }
}

/// Appends what was stuffed, up to `limit` bytes of it; `false` when the distances do not fit.
fn unstuff(mut stuffed: &[u8], limit: usize, out: &mut Vec<u8>) -> bool {
    let end = out.len() + limit;
    out.reserve(stuffed.len());
    while let Some((distance, rest)) = stuffed.split_first() {
        let length = usize::from(*distance) - 1;
        if length == 0 && !rest.is_empty() && out.len() < end {
            out.push(0);
            stuffed = rest;
            continue;
        }
        if length > rest.len() {
            // The beginning of a frame may be all that is asked for.
            out.extend_from_slice(rest);
            return out.len() >= end;
        }
        out.extend_from_slice(&rest[..length]);
        stuffed = &rest[length..];
        if length < 254 && !stuffed.is_empty() {
            out.push(0);
        }
        if out.len() >= end {
            break;
        }
    }
    true
}

/// What was found on the line.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a> {
    Frame(Header, &'a [u8]),
    /// Bytes that are no frame: the console's.
    Text(&'a [u8]),
    /// What went before as text began like a frame, and may have been one.
    Damage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// What is held may become a frame.
    Held,
    /// The segment is known to be none, and is handed on as it comes.
    Text,
}

/// Finds frames. Bytes in, in pieces of any size; frames and text out, in their order.
#[derive(Debug)]
pub struct Scanner {
    segment: Vec<u8>,
    state: State,
    /// Longest stuffed frame.
    stuffed_max: usize,
    body: Vec<u8>,
}

impl Scanner {
    /// For frames of up to so many bytes on the wire.
    pub fn new(wire_max: usize) -> Scanner {
        Scanner { segment: Vec::new(), state: State::Held, stuffed_max: wire_max - 2, body: Vec::new() }
    }

    /// Whether bytes wait for what comes behind them.
    pub fn holds(&self) -> bool {
        !self.segment.is_empty()
    }

    /// Takes bytes of the line.
    pub fn scan(&mut self, mut bytes: &[u8], found: &mut dyn FnMut(Found)) {
        while !bytes.is_empty() {
            let end = memchr(0, bytes);
            let (part, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            self.take(part, found);
            bytes = rest;
            if end.is_some() {
                self.finish(found);
                bytes = &bytes[1..];
            }
        }
    }

    /// Takes a part of a segment.
    fn take(&mut self, part: &[u8], found: &mut dyn FnMut(Found)) {
        if part.is_empty() {
            return;
        }
        if self.state == State::Text {
            return found(Found::Text(part));
        }
        let version = match self.segment.len() {
            0 => part.get(1),
            1 => part.first(),
            _ => self.segment.get(1),
        };
        let begins_like_text = version.is_some_and(|byte| *byte != VERSION);
        let room = self.stuffed_max + INSERTED_MAX - self.segment.len();
        if begins_like_text || part.len() > room {
            self.give_up(found);
            return found(Found::Text(part));
        }
        self.segment.extend_from_slice(part);
    }

    /// Hands on what is held as text: it has waited long enough for its end.
    pub fn give_up(&mut self, found: &mut dyn FnMut(Found)) {
        let began_like_a_frame = self.segment.len() > 1;
        if !self.segment.is_empty() {
            found(Found::Text(&self.segment));
            self.segment.clear();
        }
        self.state = State::Text;
        if began_like_a_frame {
            found(Found::Damage);
        }
    }

    /// A zero byte: the segment is over.
    fn finish(&mut self, found: &mut dyn FnMut(Found)) {
        self.state = State::Held;
        match self.segment.len() {
            0 => return,
            1 => found(Found::Text(&self.segment)),
            _ => {
                if let Some(header) = decode(&self.segment, &mut self.body) {
                    found(Found::Frame(header, payload(&self.body)));
                } else if let Some((header, text)) = without_kernel_lines(&self.segment, &mut self.body) {
                    found(Found::Text(&text));
                    found(Found::Frame(header, payload(&self.body)));
                } else if let Some((header, text)) = without_insertion(&self.segment, &mut self.body) {
                    found(Found::Text(text));
                    found(Found::Frame(header, payload(&self.body)));
                } else {
                    found(Found::Text(&self.segment));
                    found(Found::Damage);
                }
            }
        }
        self.segment.clear();
    }
}

/// Decodes a segment into `body`; `None` when it is no frame.
fn decode(segment: &[u8], body: &mut Vec<u8>) -> Option<Header> {
    body.clear();
    if segment.len() < HEADER_BYTES + SUM_BYTES || !unstuff(segment, usize::MAX >> 1, body) {
        return None;
    }
    let (content, sum) = body.split_last_chunk::<SUM_BYTES>()?;
    let (start, payload) = content.split_at_checked(HEADER_BYTES)?;
    if declared(start)? != payload.len() || crc32(content) != u32::from_le_bytes(*sum) {
        return None;
    }
    let word = |at: usize| start[at..].first_chunk().map_or(0, |bytes| u16::from_le_bytes(*bytes));
    let session = |at: usize| start[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    let kind = start[1];
    Some(Header { kind, from: session(4), to: session(8), ack: word(12), seq: word(14), channel: word(16) })
}

/// Bytes of payload that the beginning of a frame promises.
fn declared(start: &[u8]) -> Option<usize> {
    match start {
        [VERSION, _, low, high, ..] => Some(usize::from(u16::from_le_bytes([*low, *high]))),
        _ => None,
    }
}

fn payload(body: &[u8]) -> &[u8] {
    &body[HEADER_BYTES..body.len() - SUM_BYTES]
}

/// Takes out all that looks like a line of Linux's log, and gives it: when a kernel prints much, every frame has several of them, in as
/// many places. Whether the frame's own content looked like that as well the checksum tells. The frame is left in `body`.
fn without_kernel_lines(segment: &[u8], body: &mut Vec<u8>) -> Option<(Header, Vec<u8>)> {
    let (mut whole, mut lines, mut at) = (Vec::with_capacity(segment.len()), Vec::new(), 0);
    for begin in memchr::memchr_iter(b'[', segment) {
        // Brackets may stand in a line too. A longer line is none of Linux's.
        let rest = &segment[begin..segment.len().min(begin + INSERTED_MAX)];
        if begin >= at
            && let Some(line) = kernel_line(rest)
        {
            whole.extend_from_slice(&segment[at..begin]);
            lines.extend_from_slice(line);
            at = begin + line.len();
        }
    }
    whole.extend_from_slice(&segment[at..]);
    if lines.is_empty() { None } else { Some((decode(&whole, body)?, lines)) }
}

/// The line that stands in front, with its end, if it begins like one of Linux's log: `[`, spaces, seconds, a point, six digits, `]`.
fn kernel_line(bytes: &[u8]) -> Option<&[u8]> {
    let (line, _) = bytes.split_at(memchr(b'\n', bytes)? + 1);
    let time = line.strip_prefix(b"[")?.split(|byte| *byte == b']').next()?.trim_ascii_start();
    let (seconds, micros) = time.split_at_checked(time.len().checked_sub(7)?)?;
    let digits = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let is_line = digits(seconds) && digits(micros.strip_prefix(b".")?) && line.iter().all(|byte| is_text(*byte));
    is_line.then_some(line)
}

/// Takes out what else was printed into the middle of a frame, in one place: a kernel inserts whole lines, so what has to go ends with a
/// line's end, and is as long as the segment is too long. The frame is left in `body`.
fn without_insertion<'a>(segment: &'a [u8], body: &mut Vec<u8>) -> Option<(Header, &'a [u8])> {
    body.clear();
    // The length itself must have come before the text.
    let start = segment.get(..6)?;
    unstuff(start, 4, body);
    let length = HEADER_BYTES + declared(body)? + SUM_BYTES;
    let mut whole = Vec::with_capacity(segment.len());
    let (mut left, mut seen, mut text_begins) = (SEARCH_BYTES, 0, start.len());
    for end in memchr::memchr_iter(b'\n', segment) {
        // Where the row of bytes that may be text begins which this line's end is in.
        if let Some(other) = segment[seen..=end].iter().rposition(|byte| !is_text(*byte)) {
            text_begins = text_begins.max(seen + other + 1);
        }
        seen = end + 1;
        // How much COBS has added depends on the content.
        for stuffed in length + 1..=length + length.div_ceil(254) {
            let count = segment.len().saturating_sub(stuffed);
            let begin = (end + 1).saturating_sub(count);
            if count == 0 || count > INSERTED_MAX || begin < text_begins {
                continue;
            }
            left = left.checked_sub(segment.len())?;
            whole.clear();
            whole.extend_from_slice(&segment[..begin]);
            whole.extend_from_slice(&segment[end + 1..]);
            if let Some(header) = decode(&whole, body) {
                return Some((header, &segment[begin..=end]));
            }
        }
    }
    None
}

/// Whether a byte may be in a line that a kernel or a program prints: anything but most control characters.
fn is_text(byte: u8) -> bool {
    byte >= b' ' || matches!(byte, b'\t' | b'\r' | b'\n' | 0x1b | 0x07 | 0x08)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header = Header { kind: 9, from: 0x0102_0304, to: 0xa0b0_c0d0, ack: 5, seq: 0x1234, channel: 7 };

    fn frame(payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        encode(&HEADER, payload, &mut out);
        out
    }

    /// Frames' payloads and all of the text, in pieces of `size`.
    fn scan(bytes: &[u8], size: usize) -> (Vec<Vec<u8>>, Vec<u8>, usize) {
        let mut scanner = Scanner::new(1024);
        let (mut frames, mut text, mut damage) = (Vec::new(), Vec::new(), 0);
        for part in bytes.chunks(size) {
            scanner.scan(part, &mut |found| match found {
                Found::Frame(header, payload) => {
                    assert_eq!(header, HEADER);
                    frames.push(payload.to_vec());
                }
                Found::Text(bytes) => text.extend_from_slice(bytes),
                Found::Damage => damage += 1,
            });
        }
        scanner.give_up(&mut |found| {
            if let Found::Text(bytes) = found {
                text.extend_from_slice(bytes);
            }
        });
        (frames, text, damage)
    }

    /// Payloads that are hard for COBS.
    fn payloads() -> Vec<Vec<u8>> {
        let mut payloads = vec![vec![], vec![0], vec![0; 700], vec![1; 700], (0..=255).collect()];
        for length in 200..260 {
            payloads.push(vec![7; length]);
            payloads.push([vec![7; length], vec![0]].concat());
        }
        payloads
    }

    #[test]
    fn every_payload_comes_back_in_pieces_of_any_size() {
        for payload in payloads() {
            let wire = frame(&payload);
            assert_eq!((wire[0], wire.last()), (0, Some(&0)));
            assert!(!wire[1..wire.len() - 1].contains(&0));
            assert!(wire.len() <= wire_bytes(payload.len()), "{} bytes of {}", wire.len(), payload.len());
            for size in [1, 3, 4096] {
                let (frames, text, damage) = scan(&wire, size);
                assert_eq!((frames, text.len(), damage), (vec![payload.clone()], 0, 0));
            }
        }
    }

    #[test]
    fn the_largest_payload_fits_and_one_more_byte_may_not() {
        for wire in [64, 300, 512, 1024, 16 << 10] {
            assert!(wire_bytes(payload_max(wire)) <= wire, "{wire}");
            assert!(wire_bytes(payload_max(wire) + 1) > wire, "{wire}");
        }
        let full = frame(&vec![1; payload_max(1024)]);
        assert_eq!(scan(&full, 100).0.len(), 1);
    }

    #[test]
    fn text_between_frames_is_handed_on_whole_and_at_once() {
        let bytes = [b"before ", &frame(b"one")[..], b"[    1.5] a line\r\n", &frame(b"two"), &frame(b"three"), b"x"];
        for size in [1, 7, 4096] {
            let (frames, text, damage) = scan(&bytes.concat(), size);
            assert_eq!(frames, [b"one".to_vec(), b"two".to_vec(), b"three".to_vec()]);
            assert_eq!((text.as_slice(), damage), (&b"before [    1.5] a line\r\nx"[..], 0));
        }
        let mut scanner = Scanner::new(1024);
        let mut text = Vec::new();
        scanner.scan(b"lo", &mut |found| text.push(format!("{found:?}")));
        assert_eq!(text.len(), 1, "{text:?}");
        assert!(!scanner.holds());
    }

    #[test]
    fn a_line_printed_into_a_frame_is_taken_out_again() {
        let line = b"[   12.345678] usb 1-1: new device\r\n[   12.345680] usb 1-1: two lines\r\n";
        let payload: Vec<u8> = (0..600u32).map(|number| ((number * number) >> 3) as u8).collect();
        for payload in [payload, b"text too\n".repeat(60), vec![0; 500]] {
            let wire = frame(&payload);
            for at in 7..wire.len() - 1 {
                let bytes = [&wire[..at], line, &wire[at..]].concat();
                let (frames, text, damage) = scan(&bytes, 50);
                assert_eq!((frames.len(), damage), (1, 0), "at {at}");
                assert_eq!(frames[0], payload);
                assert_eq!(text, line, "at {at}");
            }
            // In front of the length nothing says how much is too much: the text is not lost, the frame may be.
            for at in 1..7 {
                let (frames, text, _) = scan(&[&wire[..at], line, &wire[at..]].concat(), 50);
                assert!(frames.len() <= 1 && text.windows(line.len()).any(|part| part == line), "at {at}");
            }
        }
    }

    #[test]
    fn lines_of_a_kernel_in_many_places_of_a_frame_are_taken_out_again() {
        let payload: Vec<u8> = (0..900u32).map(|number| ((number * number) >> 3) as u8).collect();
        for payload in [payload, b"[text] too\n".repeat(60), vec![0; 500]] {
            let wire = frame(&payload);
            for step in 30..200 {
                let (mut bytes, mut text, mut number) = (Vec::new(), Vec::new(), 0);
                let mut parts = wire.chunks(step).peekable();
                while let Some(part) = parts.next() {
                    bytes.extend_from_slice(part);
                    if parts.peek().is_some() && text.len() < 900 {
                        let line = format!("[{number:>5}.{:06}] usb [{number}]: a line\r\n", number * 7919 % 1_000_000);
                        bytes.extend_from_slice(line.as_bytes());
                        text.extend_from_slice(line.as_bytes());
                        number += 1;
                    }
                }
                let (frames, came, damage) = scan(&bytes, 50);
                assert_eq!((frames.len(), damage), (1, 0), "every {step} bytes");
                assert!(frames[0] == payload && came == text, "every {step} bytes");
            }
        }
    }

    #[test]
    fn what_only_resembles_a_line_of_a_kernel_is_none() {
        let line = b"[ 1234.567890] x\r\nmore";
        assert_eq!(kernel_line(line), Some(&line[..18]));
        for other in [
            "[ 1234.56789] x\n",
            "[1234567890] x\n",
            "[.567890] x\n",
            "[ 1234.567890 x\n",
            "[ 1234.567890] x",
            " [1.000000]\n",
        ] {
            assert_eq!(kernel_line(other.as_bytes()), None, "{other:?}");
        }
        assert_eq!(kernel_line(b"[ 1234.567890] \x01\n"), None);
    }

    #[test]
    fn a_damaged_byte_costs_one_frame_and_is_told() {
        let (first, second) = (frame(&[3; 100]), frame(b"second"));
        for at in 0..first.len() {
            for damaged in [
                [&first[..at], &first[at + 1..]].concat(),
                [&first[..=at], &first[at..]].concat(),
                [&first[..at], &[first[at] ^ 0x10], &first[at + 1..]].concat(),
            ] {
                let (frames, text, damage) = scan(&[&damaged[..], &second].concat(), 64);
                assert_eq!(frames.last().map(Vec::as_slice), Some(&b"second"[..]), "at {at}");
                assert!(frames.len() == 2 || !text.is_empty(), "at {at}");
                // What hides the version byte hides that there was a frame.
                assert!(frames.len() == 2 || damage == 1 || at < 3, "at {at}: {damage}");
            }
        }
    }

    #[test]
    fn a_segment_that_never_ends_is_handed_on_and_held_no_longer() {
        let mut scanner = Scanner::new(1024);
        let mut count = 0;
        let start = [0, 9, VERSION];
        for part in [&start[..], &[1; 100_000]] {
            scanner.scan(part, &mut |found| count += if let Found::Text(bytes) = found { bytes.len() } else { 0 });
            assert!(scanner.segment.len() <= 1024 + INSERTED_MAX);
        }
        assert_eq!(count, 100_002);
        let mut frames = 0;
        scanner.scan(&frame(b"next"), &mut |found| frames += usize::from(matches!(found, Found::Frame(..))));
        assert_eq!(frames, 1);
    }

    #[test]
    fn random_bytes_are_all_text() {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let bytes: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        })
        .take(1 << 20)
        .collect();
        let (frames, text, _) = scan(&bytes, 1000);
        let zeros = bytes.iter().filter(|byte| **byte == 0).count();
        assert_eq!((frames.len(), text.len() + zeros), (0, bytes.len()));
    }
}
