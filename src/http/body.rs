//! Where a body ends, and what of the bytes on the connection is body.
//!
//! Source: RFC 9112, sections 6 and 7. A chunk: its size in hexadecimal, maybe `;` and extensions, CR LF, the bytes, CR LF; the last one has
//! the size 0 and no bytes, but trailers (headers, which are skipped) and an empty line. Limits: `CHUNK_LINE_MAX`, `TRAILERS_MAX`.

use std::io;

use crate::http::head::Headers;
use crate::http::invalid;

/// Bytes of the longest line with a chunk's size. Nobody of whom we know sends extensions; a signature in one has about 90.
pub const CHUNK_LINE_MAX: usize = 1 << 10;

/// Bytes of all trailers of one body: as much as a head may have.
pub const TRAILERS_MAX: usize = 16 << 10;

/// How the end of a body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// It has so many bytes.
    Sized(u64),
    Chunked,
    /// It ends with the connection. Only responses may.
    UntilClose,
}

impl Framing {
    /// That of a request.
    ///
    /// # Errors
    /// `InvalidData` for lengths that contradict each other or chunks, and for codings that are unknown.
    pub fn of_request(headers: &Headers, is_1_1: bool) -> io::Result<Framing> {
        Ok(declared(headers, is_1_1)?.unwrap_or(Framing::None))
    }

    /// That of the response to a request of this method.
    ///
    /// # Errors
    /// As those of `of_request`.
    pub fn of_response(status: u16, headers: &Headers, is_1_1: bool, method: &str) -> io::Result<Framing> {
        if method == "HEAD" || matches!(status, 100..=199 | 204 | 304) {
            return Ok(Framing::None);
        }
        Ok(declared(headers, is_1_1)?.unwrap_or(Framing::UntilClose))
    }
}

fn declared(headers: &Headers, is_1_1: bool) -> io::Result<Option<Framing>> {
    let mut length = None;
    // Repeated in one header or in several, it must be the same.
    for value in headers.all("content-length").flat_map(|value| value.split(',')) {
        let digits = value.trim_matches([' ', '\t']);
        // `parse` would take a sign.
        let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
        let found = digits.parse::<u64>().ok().filter(|_| is_number).ok_or_else(|| invalid("no content length"))?;
        if length.is_some_and(|length| length != found) {
            return Err(invalid("two content lengths"));
        }
        length = Some(found);
    }
    let mut codings = headers.all("transfer-encoding");
    let Some(coding) = codings.next() else { return Ok(length.map(Framing::Sized)) };
    if length.is_some() || !is_1_1 || codings.next().is_some() {
        return Err(invalid("a transfer coding where none may be"));
    }
    if coding.eq_ignore_ascii_case("chunked") {
        Ok(Some(Framing::Chunked))
    } else {
        Err(invalid("an unknown transfer coding"))
    }
}

/// What comes next on the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// So many bytes that are no body; they are to be consumed.
    Skip(usize),
    /// At most so many bytes of body; `taken` is to be told how many were consumed.
    Data(u64),
    /// Not enough has arrived to tell.
    Unknown,
    /// The body is complete.
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// So many bytes are left, and then it is complete.
    Sized(u64),
    UntilClose,
    /// Before the line of a chunk.
    Size,
    /// In a chunk, with so many bytes left.
    Chunk(u64),
    /// Behind the last chunk, after so many bytes of trailers.
    Trailers(usize),
    Complete,
}

/// How far the reading of one body has come.
#[derive(Debug)]
pub struct Body {
    state: State,
}

impl Body {
    pub fn new(framing: Framing) -> Body {
        let state = match framing {
            Framing::None => State::Complete,
            Framing::Sized(length) => State::Sized(length),
            Framing::Chunked => State::Size,
            Framing::UntilClose => State::UntilClose,
        };
        Body { state }
    }

    /// What the bytes that have arrived begin with.
    ///
    /// # Errors
    /// `InvalidData` for what is no chunk.
    pub fn next(&mut self, arrived: &[u8]) -> io::Result<Next> {
        match self.state {
            State::Complete | State::Sized(0) => Ok(Next::End),
            State::Sized(left) => Ok(Next::Data(left)),
            State::UntilClose => Ok(Next::Data(u64::MAX)),
            State::Chunk(0) => match arrived {
                [] | [b'\r'] => Ok(Next::Unknown),
                [b'\r', b'\n', ..] => {
                    self.state = State::Size;
                    Ok(Next::Skip(2))
                }
                _ => Err(invalid("a chunk is longer than its size")),
            },
            State::Chunk(left) => Ok(Next::Data(left)),
            State::Size => {
                let Some(line) = line(arrived, CHUNK_LINE_MAX)? else { return Ok(Next::Unknown) };
                self.state = match size(line)? {
                    0 => State::Trailers(0),
                    size => State::Chunk(size),
                };
                Ok(Next::Skip(line.len() + 2))
            }
            State::Trailers(before) => {
                let Some(line) = line(arrived, TRAILERS_MAX - before)? else { return Ok(Next::Unknown) };
                let count = line.len() + 2;
                self.state = if line.is_empty() { State::Complete } else { State::Trailers(before + count) };
                Ok(Next::Skip(count))
            }
        }
    }

    /// So many bytes of what `Next::Data` allowed have been consumed.
    pub fn taken(&mut self, count: u64) {
        if let State::Sized(left) | State::Chunk(left) = &mut self.state {
            *left = left.saturating_sub(count);
        }
    }

    /// The connection has ended. True when that is the end of the body too.
    pub fn end(&mut self) -> bool {
        let is_end = self.state == State::UntilClose;
        if is_end {
            self.state = State::Complete;
        }
        is_end
    }

    /// Whether all of it has been read.
    pub fn is_complete(&self) -> bool {
        matches!(self.state, State::Complete | State::Sized(0))
    }
}

/// The line in front, without its CR LF, when it has come; it may have `max` bytes with it.
fn line(arrived: &[u8], max: usize) -> io::Result<Option<&[u8]>> {
    let window = &arrived[..arrived.len().min(max)];
    match memchr::memchr(b'\n', window).map(|end| window[..end].strip_suffix(b"\r")) {
        Some(Some(line)) if memchr::memchr(b'\r', line).is_none() => Ok(Some(line)),
        Some(_) => Err(invalid("a line of chunks ends in another way than CR LF")),
        None if window.len() == max => Err(invalid("a line of chunks is too long")),
        None => Ok(None),
    }
}

/// The number in front of the extensions.
fn size(line: &[u8]) -> io::Result<u64> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (number, rest) = line.split_at(digits);
    if !rest.trim_ascii_start().starts_with(b";") && !rest.is_empty() {
        return Err(invalid("no chunk size"));
    }
    let number = str::from_utf8(number).ok().and_then(|number| u64::from_str_radix(number, 16).ok());
    number.ok_or_else(|| invalid("no chunk size"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&str, &str)]) -> Headers {
        let mut headers = Headers::default();
        list.iter().for_each(|(name, value)| headers.push(name, value));
        headers
    }

    #[test]
    fn a_length_may_be_repeated_and_not_contradicted() {
        let length = |values: &[&str]| {
            let list: Vec<(&str, &str)> = values.iter().map(|value| ("Content-Length", *value)).collect();
            Framing::of_request(&headers(&list), true).ok()
        };
        assert_eq!(length(&[]), Some(Framing::None));
        assert_eq!(length(&["5"]), Some(Framing::Sized(5)));
        assert_eq!(length(&["5", "5"]), Some(Framing::Sized(5)));
        assert_eq!(length(&["5, 5"]), Some(Framing::Sized(5)));
        assert_eq!(length(&["18446744073709551615"]), Some(Framing::Sized(u64::MAX)));
        for wrong in [
            ["5", "6"],
            ["5", "5,6"],
            ["5", ""],
            ["", ""],
            ["+5", "5"],
            ["-5", "5"],
            ["5 5", "5"],
            ["0x5", "5"],
            ["18446744073709551616", "5"],
        ] {
            assert_eq!(length(&wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn chunks_go_with_no_length_no_other_coding_and_no_old_version() {
        let framing = |list: &[(&str, &str)], is_1_1| Framing::of_request(&headers(list), is_1_1).ok();
        let chunked = ("Transfer-Encoding", "Chunked");
        assert_eq!(framing(&[chunked], true), Some(Framing::Chunked));
        assert_eq!(framing(&[chunked], false), None);
        assert_eq!(framing(&[chunked, ("Content-Length", "5")], true), None);
        assert_eq!(framing(&[chunked, chunked], true), None);
        for wrong in
            ["gzip", "gzip, chunked", "chunked, chunked", "xchunked", "chunked;a", "", "identity", "\x0bchunked"]
        {
            assert_eq!(framing(&[("Transfer-Encoding", wrong)], true), None, "{wrong}");
        }
    }

    #[test]
    fn a_response_has_no_body_by_its_status_and_by_its_question() {
        let framing =
            |status, method| Framing::of_response(status, &headers(&[("Content-Length", "5")]), true, method).ok();
        assert_eq!(framing(200, "GET"), Some(Framing::Sized(5)));
        assert_eq!(
            [framing(200, "HEAD"), framing(204, "GET"), framing(304, "GET"), framing(101, "GET")],
            [Some(Framing::None); 4]
        );
        assert_eq!(Framing::of_response(200, &headers(&[]), true, "GET").ok(), Some(Framing::UntilClose));
    }

    /// The body in `bytes`, and what is left of them, read in pieces of so many bytes.
    fn read(bytes: &[u8], piece: usize) -> io::Result<(Vec<u8>, usize)> {
        let (mut body, mut data) = (Body::new(Framing::Chunked), Vec::new());
        let (mut start, mut end) = (0, 0);
        loop {
            match body.next(&bytes[start..end])? {
                Next::End => return Ok((data, bytes.len() - start)),
                Next::Skip(count) => start += count,
                Next::Data(left) if start < end => {
                    let count = (end - start).min(usize::try_from(left).unwrap_or(usize::MAX));
                    data.extend_from_slice(&bytes[start..start + count]);
                    body.taken(count as u64);
                    start += count;
                }
                _ if end == bytes.len() => return Err(io::ErrorKind::UnexpectedEof.into()),
                _ => end = (end + piece).min(bytes.len()),
            }
        }
    }

    #[test]
    fn chunks_are_read_however_they_come() {
        let bytes = b"5\r\nhello\r\n00001;a=\"b\"\r\n,\r\n6 ;x\r\n world\r\nA\r\n0123456789\r\n0\r\nTrailer: skipped\r\nB: c\r\n\r\nnext";
        for piece in 1..=bytes.len() {
            let (data, left) = read(bytes, piece).expect("a body");
            assert_eq!((data.as_slice(), left), (&b"hello, world0123456789"[..], 4));
        }
        assert_eq!(read(b"0\r\n\r\n", 9).expect("a body"), (Vec::new(), 0));
    }

    #[test]
    fn what_is_no_chunk_is_refused() {
        for wrong in [
            "\r\n",
            "g\r\n",
            "0x5\r\nhello\r\n",
            "-1\r\n",
            "+5\r\nhello\r\n",
            " 5\r\nhello\r\n",
            "5 a\r\nhello\r\n",
            ";a\r\n",
            "5\nhello\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "5\r\nhellos\r\n",
            "5\r\nhello\rx",
            "5;a\rb\r\nhello\r\n",
            "5\r \nhello\r\n",
            "10000000000000000\r\n",
            "0\r\nA: b\n\r\n",
            "0\r\n\n",
        ] {
            let error = read(wrong.as_bytes(), 1).expect_err(wrong);
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{wrong:?}");
        }
        for short in [
            "",
            "5",
            "5\r",
            "5\r\n",
            "5\r\nhel",
            "5\r\nhello",
            "5\r\nhello\r",
            "5\r\nhello\r\n",
            "0\r\n",
            "0\r\nA: b\r\n",
            "0\r\n\r",
        ] {
            assert_eq!(read(short.as_bytes(), 1).expect_err(short).kind(), io::ErrorKind::UnexpectedEof);
        }
        assert_eq!(read(b"ffffffffffffffff\r\nx", 99).expect_err("short").kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn lines_and_trailers_have_their_limits() {
        let extension = |bytes: usize| format!("1;{}\r\nx\r\n0\r\n\r\n", "x".repeat(bytes - 4));
        assert!(read(extension(CHUNK_LINE_MAX).as_bytes(), 1).is_ok());
        assert!(read(extension(CHUNK_LINE_MAX + 1).as_bytes(), 1).is_err());
        let trailers = |bytes: usize| format!("0\r\nA: b\r\n{}\r\n\r\n", "x".repeat(bytes - 10));
        assert!(read(trailers(TRAILERS_MAX).as_bytes(), 100).is_ok());
        assert!(read(trailers(TRAILERS_MAX + 1).as_bytes(), 100).is_err());
    }
}
