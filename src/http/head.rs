//! Heads of requests and responses: the first line and the headers.
//!
//! Layout: lines that end with CR LF, an empty one at the end. Read by `httparse`; a line feed alone, which that takes for a line's end,
//! is refused before. Limits: `HEAD_MAX` bytes, `HEADERS_MAX` headers. Source: RFC 9112, sections 2 to 5.

use std::borrow::Cow;
use std::io;
use std::str;

use crate::http::{invalid, refused};

/// Bytes of the longest head. Clients of the service send a few hundred; browsers, with cookies, less than half of this.
pub const HEAD_MAX: usize = 16 << 10;

/// Headers of one message. Each costs a place on the stack while they are read.
pub const HEADERS_MAX: usize = 64;

/// Headers in their order. Names are in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    entries: Vec<(String, String)>,
}

impl Headers {
    /// Adds one behind the others.
    pub fn push(&mut self, name: &str, value: &str) {
        self.entries.push((name.to_ascii_lowercase(), value.to_owned()));
    }

    /// The value of the first header of this name, which is given in lower case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// The values of all headers of this name, which is given in lower case.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.entries.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Whether a header of this name, which is given in lower case, has `token` in its list; large and small letters are equal there.
    pub fn is(&self, name: &str, token: &str) -> bool {
        self.all(name).flat_map(|value| value.split(',')).any(|item| item.trim().eq_ignore_ascii_case(token))
    }

    /// Names and values, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    fn read(found: &[httparse::Header]) -> Headers {
        let mut headers = Headers::default();
        found.iter().for_each(|header| headers.push(header.name, &String::from_utf8_lossy(header.value)));
        headers
    }
}

/// What a client wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    /// As it was sent: what is escaped stays so.
    pub path: String,
    /// What stands behind the question mark, as it was sent.
    pub query: String,
    pub headers: Headers,
}

impl Request {
    /// One without headers. `target` is a path, and may have a query.
    pub fn new(method: &str, target: &str) -> Request {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let headers = Headers::default();
        Request { method: method.to_owned(), path: path.to_owned(), query: query.to_owned(), headers }
    }

    /// The same with one header more.
    pub fn with(mut self, name: &str, value: &str) -> Request {
        self.headers.push(name, value);
        self
    }

    /// The first value of a name in the query, as it was sent.
    pub fn query_value(&self, name: &str) -> Option<&str> {
        self.query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    }
}

/// What a server says to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub headers: Headers,
}

/// A head that was read.
#[derive(Debug)]
pub struct Parsed<T> {
    pub head: T,
    /// Else the peer speaks HTTP/1.0: it knows no chunks, and its connection ends with the response.
    pub is_1_1: bool,
}

/// Bytes of the head that `bytes` begin with, its empty line included; `None` while its end is not there. `looked_at` of them were there
/// before, and are not looked at again.
///
/// # Errors
/// `InvalidData` for a head that is too large, and for a line without a carriage return.
pub fn length(bytes: &[u8], looked_at: usize) -> io::Result<Option<usize>> {
    let mut from = looked_at;
    while let Some(found) = bytes.get(from..).and_then(|rest| memchr::memchr(b'\n', rest)) {
        let end = from + found + 1;
        if end > HEAD_MAX {
            break;
        }
        if !bytes[..end].ends_with(b"\r\n") {
            return Err(invalid("a line of the head ends without a carriage return"));
        }
        if bytes[..end].ends_with(b"\r\n\r\n") {
            return Ok(Some(end));
        }
        from = end;
    }
    if bytes.len() >= HEAD_MAX { Err(invalid("the head is too large")) } else { Ok(None) }
}

/// Reads the head of a request, whole and nothing behind it. An empty line before it is skipped, as old clients send one.
///
/// # Errors
/// `InvalidData`.
pub fn request(head: &[u8]) -> io::Result<Parsed<Request>> {
    let mut room = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut found = httparse::Request::new(&mut room);
    whole(found.parse(head.strip_prefix(b"\r\n").unwrap_or(head)))?;
    let mut request = Request::new(found.method.unwrap_or_default(), &origin_form(found.path.unwrap_or_default()));
    request.headers = Headers::read(found.headers);
    Ok(Parsed { head: request, is_1_1: found.version == Some(1) })
}

/// A target without its scheme and host, which one for a proxy has. Source: RFC 9112, section 3.2.2: every server must take it.
fn origin_form(target: &str) -> Cow<'_, str> {
    let scheme = target.split_at_checked("http://".len()).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("http://"));
    let Some((_, rest)) = scheme else { return Cow::Borrowed(target) };
    let path = rest.find(['/', '?']).map_or("", |at| &rest[at..]);
    if path.starts_with('/') { Cow::Borrowed(path) } else { Cow::Owned(format!("/{path}")) }
}

/// Reads the head of a response, whole and nothing behind it.
///
/// # Errors
/// `InvalidData`.
pub fn response(head: &[u8]) -> io::Result<Parsed<Response>> {
    let mut room = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut found = httparse::Response::new(&mut room);
    whole(found.parse(head))?;
    let status = found.code.filter(|code| (100..=599).contains(code)).ok_or_else(|| invalid("no status of HTTP"))?;
    Ok(Parsed { head: Response { status, headers: Headers::read(found.headers) }, is_1_1: found.version == Some(1) })
}

fn whole(result: httparse::Result<usize>) -> io::Result<()> {
    match result {
        Ok(httparse::Status::Complete(_)) => Ok(()),
        Ok(httparse::Status::Partial) => Err(invalid("a head without a first line")),
        Err(httparse::Error::TooManyHeaders) => Err(invalid("too many headers")),
        Err(_) => Err(invalid("this is no head of HTTP")),
    }
}

/// Appends the head of a request.
///
/// # Errors
/// `InvalidInput` when a part of it could be read as more than that part; nothing was appended then.
pub fn write_request(request: &Request, into: &mut Vec<u8>) -> io::Result<()> {
    let is_word = |text: &str| text.bytes().all(|byte| byte > b' ' && byte != 0x7f);
    let Request { method, path, query, headers } = request;
    if method.is_empty() || path.is_empty() || ![method, path, query].into_iter().all(|text| is_word(text)) {
        return Err(refused("no method, or no path, of HTTP"));
    }
    check(headers.iter())?;
    let mark = if query.is_empty() { "" } else { "?" };
    [method, " ", path, mark, query, " HTTP/1.1\r\n"].iter().for_each(|part| into.extend_from_slice(part.as_bytes()));
    write_headers(headers.iter(), into);
    into.extend_from_slice(b"\r\n");
    Ok(())
}

/// Appends the head of a response, with the headers of `own` behind the others.
///
/// # Errors
/// As `write_request`.
pub fn write_response(
    status: u16,
    headers: &[(&str, &str)],
    own: &[(&str, &str)],
    into: &mut Vec<u8>,
) -> io::Result<()> {
    if !(100..=599).contains(&status) {
        return Err(refused("no status of HTTP"));
    }
    check(headers.iter().copied())?;
    let number = status.to_string();
    ["HTTP/1.1 ", &number, " ", reason(status), "\r\n"].iter().for_each(|part| into.extend_from_slice(part.as_bytes()));
    write_headers(headers.iter().chain(own).copied(), into);
    into.extend_from_slice(b"\r\n");
    Ok(())
}

fn check<'a>(headers: impl Iterator<Item = (&'a str, &'a str)>) -> io::Result<()> {
    for (name, value) in headers {
        let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':');
        if !is_name || value.bytes().any(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
            return Err(refused("no header of HTTP"));
        }
    }
    Ok(())
}

fn write_headers<'a>(headers: impl Iterator<Item = (&'a str, &'a str)>, into: &mut Vec<u8>) {
    for (name, value) in headers {
        [name, ": ", value, "\r\n"].iter().for_each(|part| into.extend_from_slice(part.as_bytes()));
    }
}

/// What a status means, for the people who read along.
fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        200 => "OK",
        301 => "Moved Permanently",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        410 => "Gone",
        500 => "Internal Server Error",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> io::Result<Parsed<Request>> {
        assert_eq!(length(bytes, 0)?, Some(bytes.len()));
        request(bytes)
    }

    #[test]
    fn a_request_is_read_and_written() {
        let bytes = b"GET /engine/v1/reply?id=ab&tty=1 HTTP/1.1\r\nHost: a\r\nX-A:  b, Chunked \r\nx-a: c\r\n\r\n";
        let Parsed { head, is_1_1 } = read(bytes).expect("a request");
        assert_eq!((head.method.as_str(), head.path.as_str(), is_1_1), ("GET", "/engine/v1/reply", true));
        assert_eq!(
            (head.query.as_str(), head.query_value("tty"), head.query_value("t")),
            ("id=ab&tty=1", Some("1"), None)
        );
        assert_eq!(head.headers.get("x-a"), Some("b, Chunked"));
        assert!(head.headers.is("x-a", "chunked") && head.headers.is("x-a", "C") && !head.headers.is("x-a", "chunk"));
        let mut written = Vec::new();
        write_request(&Request::new("PUT", "/a?b=c?d").with("Host", "1.2.3.4"), &mut written).expect("a request");
        assert_eq!(String::from_utf8_lossy(&written), "PUT /a?b=c?d HTTP/1.1\r\nhost: 1.2.3.4\r\n\r\n");
        assert!(!read(b"\r\nGET / HTTP/1.0\r\n\r\n").expect("an empty line first").is_1_1);
    }

    #[test]
    fn a_response_is_read_and_written() {
        let Parsed { head, is_1_1 } = response(b"HTTP/1.1 404 \r\nContent-Length: 0\r\n\r\n").expect("a response");
        assert_eq!((head.status, head.headers.get("content-length"), is_1_1), (404, Some("0"), true));
        assert_eq!(response(b"HTTP/1.0 200\r\n\r\n").expect("a response").head.status, 200);
        let mut written = Vec::new();
        write_response(200, &[("A", "b")], &[("Content-Length", "0")], &mut written).expect("a response");
        assert_eq!(String::from_utf8_lossy(&written), "HTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 0\r\n\r\n");
        for wrong in
            ["HTTP/1.1 099 a", "HTTP/1.1 600 a", "HTTP/1.1 20 a", "HTTP/2.0 200 OK", "HTTP/1.1 -20 a", "ICY 200 OK"]
        {
            assert!(response(format!("{wrong}\r\n\r\n").as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_two_readers_could_read_in_two_ways_is_no_head() {
        for wrong in [
            "GET / HTTP/1.1\n\n",
            "GET / HTTP/1.1\nA: b\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\n\r\n",
            "GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
            "GET / HTTP/1.1\r\n A: b\r\n\r\n",
            "GET / HTTP/1.1\r\nA : b\r\n\r\n",
            "GET / HTTP/1.1\r\nA\r\n\r\n",
            "GET / HTTP/1.1\r\n: b\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\0c\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\rc\r\n\r\n",
            "GET / HTTP/1.1\r\nA\0: b\r\n\r\n",
            "GET /\0 HTTP/1.1\r\n\r\n",
            "GET / /b HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.2\r\n\r\n",
            "GET / HTTP/2.0\r\n\r\n",
            "GET /\r\n\r\n",
            "\r\n\r\n",
            "\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            "\x16\x03\x01\x02\r\n\r\n",
        ] {
            let bytes = wrong.as_bytes();
            let result = length(bytes, 0).and_then(|end| request(&bytes[..end.expect("an end")]));
            assert_eq!(result.expect_err(wrong).kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn a_head_has_16_kib_at_most_however_it_comes() {
        let head = |bytes: usize| {
            let rest = bytes - "GET / HTTP/1.1\r\nA: \r\n\r\n".len();
            format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "x".repeat(rest)).into_bytes()
        };
        assert!(read(&head(HEAD_MAX)).is_ok());
        assert!(read(&head(HEAD_MAX + 1)).is_err());
        assert!(matches!(length(&head(HEAD_MAX)[..HEAD_MAX - 1], 0), Ok(None)));
        assert!(length(&head(HEAD_MAX + 1)[..HEAD_MAX], 0).is_err(), "its end is not waited for");
        let mut more = head(40);
        more.extend_from_slice(&[b'x'; HEAD_MAX]);
        assert!(matches!(length(&more, 0), Ok(Some(40))), "what follows is no part of it");
    }

    #[test]
    fn a_target_may_name_its_host() {
        for (target, path, query) in [
            ("http://h/a?b=c", "/a", "b=c"),
            ("HTTP://h:80/a/b", "/a/b", ""),
            ("http://h", "/", ""),
            ("http://h?x=/", "/", "x=/"),
            ("https://h/a", "https://h/a", ""),
            ("/http://h/", "/http://h/", ""),
            ("http:/", "http:/", ""),
        ] {
            let found = read(format!("GET {target} HTTP/1.1\r\n\r\n").as_bytes()).expect("a head").head;
            assert_eq!((found.path.as_str(), found.query.as_str()), (path, query), "{target}");
        }
    }

    #[test]
    fn a_head_has_64_headers_at_most() {
        let head = |count: usize| format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(count));
        assert_eq!(read(head(HEADERS_MAX).as_bytes()).expect("a head").head.headers.iter().count(), HEADERS_MAX);
        assert!(read(head(HEADERS_MAX + 1).as_bytes()).is_err());
    }

    #[test]
    fn nothing_is_written_that_would_be_read_as_more() {
        let mut into = Vec::new();
        for (name, value) in
            [("A\r\nB", "c"), ("A:", "c"), ("", "c"), ("A b", "c"), ("A", "b\r\nc"), ("A", "b\n"), ("A", "\0")]
        {
            assert!(write_request(&Request::new("GET", "/").with(name, value), &mut into).is_err());
            assert!(write_response(200, &[(name, value)], &[], &mut into).is_err());
        }
        for (method, target) in
            [("", "/"), ("GET", ""), ("GE T", "/"), ("GET", "/ a"), ("GET", "/\r\n"), ("GET", "/?a\0")]
        {
            assert!(write_request(&Request::new(method, target), &mut into).is_err());
        }
        assert!(write_response(99, &[], &[], &mut into).is_err() && write_response(600, &[], &[], &mut into).is_err());
        assert!(into.is_empty());
    }
}
