//! HTTP/1.1 over socket pairs and 127.0.0.1: pieces, pipelines, endings, limits, and other people's programs at the far end.
#![cfg(feature = "metadata")]

use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use lodger::http::body::Body;
use lodger::http::client::{Address, Client};
use lodger::http::connection::{Connection, DRAIN_MAX, INTERIM_MAX};
use lodger::http::head::{HEAD_MAX, Request};
use lodger::http::wait::{self, Limits};
use lodger::stream::Stream;
use lodger::sys::fd;

/// More than any of this takes; a test that hangs fails by it.
fn patient<'a>() -> Limits<'a> {
    within(Duration::from_secs(20))
}

fn within<'a>(time: Duration) -> Limits<'a> {
    Limits { deadline: Some(Instant::now() + time), stop: None }
}

/// A connection of ours, and the raw far end of it.
fn pair() -> (Connection, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    theirs.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    (Connection::over(Stream::over(ours)).expect("a connection"), theirs)
}

/// What a server of ours reads from these bytes and the end of the file, message by message.
fn requests(bytes: &[u8]) -> Vec<Result<(String, Vec<u8>), ErrorKind>> {
    let (mut server, mut client) = pair();
    let bytes = bytes.to_vec();
    let writer = thread::spawn(move || {
        let _ = client.write_all(&bytes);
        let _ = client.shutdown(std::net::Shutdown::Write);
        let _ = client.read_to_end(&mut Vec::new());
    });
    let mut found = Vec::new();
    loop {
        let result = server.request(patient()).and_then(|request| {
            let Some(request) = request else { return Ok(None) };
            let mut body = server.body();
            let body = server.body_within(&mut body, 1 << 20, patient())?;
            server.respond(200, &[], b"", patient())?;
            Ok(Some((request.path, body)))
        });
        match result {
            Ok(None) => break,
            Ok(Some(message)) => found.push(Ok(message)),
            Err(error) => {
                found.push(Err(error.kind()));
                break;
            }
        }
    }
    drop(server);
    writer.join().expect("the writer ends");
    found
}

/// What a client of ours makes of a server that says this and closes.
fn answered(method: &str, bytes: &[u8]) -> Result<(u16, Vec<u8>, bool), ErrorKind> {
    let (mut client, mut server) = pair();
    client.send_head(&Request::new(method, "/"), patient()).expect("room for a head");
    server.write_all(bytes).expect("room for a response");
    let ask = |client: &mut Connection| {
        let response = client.response(patient())?;
        let mut body = client.body();
        let body = client.body_within(&mut body, 100, patient())?;
        Ok((response.status, body, client.is_reusable()))
    };
    server.shutdown(std::net::Shutdown::Write).expect("a shutdown");
    ask(&mut client).map_err(|error: std::io::Error| error.kind())
}

#[test]
fn pipelined_requests_are_answered_in_order_however_they_come() {
    let text = "GET /a HTTP/1.1\r\nHost: x\r\n\r\n\
                POST /b HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello\
                \r\nPOST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;ext=1\r\nabc\r\n2\r\nde\r\n0\r\nT: u\r\n\r\n\
                GET /d HTTP/1.1\r\nConnection: close\r\n\r\nGET /never HTTP/1.1\r\n\r\n";
    let expected = [("/a", ""), ("/b", "hello"), ("/c", "abcde"), ("/d", "")];
    let expected: Vec<_> =
        expected.iter().map(|(path, body)| Ok((path.to_string(), body.as_bytes().to_vec()))).collect();
    assert_eq!(requests(text.as_bytes()), expected);

    let (mut server, mut client) = pair();
    let writer = thread::spawn(move || {
        // The server closes behind the fourth, and what follows would meet a closed socket.
        let text = text.strip_suffix("GET /never HTTP/1.1\r\n\r\n").expect("it is there");
        text.bytes().for_each(|byte| client.write_all(&[byte]).expect("the server reads"));
        let mut said = String::new();
        client.read_to_string(&mut said).expect("text");
        said
    });
    for (path, expected) in [("/a", ""), ("/b", "hello"), ("/c", "abcde"), ("/d", "")] {
        let request = server.request(patient()).expect("a request").expect("one more");
        assert_eq!(request.path, path);
        let mut body = server.body();
        assert_eq!(server.body_within(&mut body, 5, patient()).expect("a body"), expected.as_bytes());
        server.respond(200, &[], path.as_bytes(), patient()).expect("a client");
    }
    assert!(server.request(patient()).expect("it is over").is_none());
    drop(server);
    let said = writer.join().expect("the writer ends");
    assert!(said.starts_with("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n/aHTTP/1.1 200 OK\r\n"), "{said}");
    assert!(said.ends_with("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n/d"), "{said}");
}

#[test]
fn what_could_smuggle_a_request_is_refused() {
    for wrong in [
        "POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        "POST / HTTP/1.1\r\nContent-Length: 5, 6\r\n\r\nhello!",
        "POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\nhello",
        "POST / HTTP/1.1\r\nContent-Length : 5\r\n\r\nhello",
        "POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
        "GET / HTTP/1.1\nHost: a\n\n",
        "GET / HTTP/1.1\r\nA: b\0\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n",
    ] {
        assert_eq!(requests(wrong.as_bytes()), [Err(ErrorKind::InvalidData)], "{wrong:?}");
    }
}

#[test]
fn a_client_that_closes_in_the_middle_is_noticed_and_one_that_closes_before_is_no_error() {
    assert_eq!(requests(b""), []);
    for short in [
        "G",
        "GET / HTTP/1.1\r\nA",
        "GET / HTTP/1.1\r\n\r",
        "POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhell",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
    ] {
        assert_eq!(requests(short.as_bytes()), [Err(ErrorKind::UnexpectedEof)], "{short:?}");
    }
}

#[test]
fn a_head_of_16_kib_is_read_and_one_byte_more_is_not() {
    let head = |bytes: usize| {
        let rest = bytes - "GET / HTTP/1.1\r\nA: \r\n\r\n".len();
        format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "x".repeat(rest)).into_bytes()
    };
    assert_eq!(requests(&head(HEAD_MAX)), [Ok(("/".to_owned(), Vec::new()))]);
    assert_eq!(requests(&head(HEAD_MAX + 1)), [Err(ErrorKind::InvalidData)]);
    assert_eq!(requests(&vec![b'x'; 1 << 20]), [Err(ErrorKind::InvalidData)]);
}

#[test]
fn a_response_ends_where_its_head_says() {
    let ok = |status, body: &str, reusable| Ok((status, body.as_bytes().to_vec(), reusable));
    // Each server has closed behind its response, so no connection is good for another request.
    assert_eq!(answered("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"), ok(200, "ab", false));
    assert_eq!(answered("GET", b"HTTP/1.1 200 OK\r\n\r\nuntil the end"), ok(200, "until the end", false));
    assert_eq!(answered("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"), ok(200, "", false));
    assert_eq!(answered("GET", b"HTTP/1.1 204 No Content\r\n\r\n"), ok(204, "", false));
    assert_eq!(
        answered("GET", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 \r\nContent-Length: 0\r\n\r\n"),
        ok(404, "", false)
    );
    let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n";
    assert_eq!(answered("GET", chunked), ok(200, "a", false));
    let full = format!("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}", "x".repeat(100));
    assert_eq!(answered("GET", full.as_bytes()), ok(200, &"x".repeat(100), false));
    let over = format!("HTTP/1.1 200 OK\r\nContent-Length: 101\r\n\r\n{}", "x".repeat(101));
    assert_eq!(answered("GET", over.as_bytes()), Err(ErrorKind::InvalidData));
    let interim = |count| ["HTTP/1.1 103 Early\r\n\r\n".repeat(count), "HTTP/1.1 204 \r\n\r\n".to_owned()].concat();
    assert_eq!(answered("GET", interim(INTERIM_MAX).as_bytes()), ok(204, "", false));
    assert_eq!(answered("GET", interim(INTERIM_MAX + 1).as_bytes()), Err(ErrorKind::InvalidData));
    for (short, kind) in [
        (&b""[..], ErrorKind::UnexpectedEof),
        (b"HTTP/1.1 200", ErrorKind::UnexpectedEof),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na", ErrorKind::UnexpectedEof),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", ErrorKind::UnexpectedEof),
        (b"SSH-2.0-OpenSSH\r\n\r\n", ErrorKind::InvalidData),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\na", ErrorKind::InvalidData),
    ] {
        assert_eq!(answered("GET", short), Err(kind));
    }
}

#[test]
fn bytes_on_the_wire_are_these() {
    let (mut client, mut server) = pair();
    let request = Request::new("POST", "/engine/v1/log").with("Host", "h").with("Transfer-Encoding", "chunked");
    client.send_head(&request, patient()).expect("a head");
    client.chunk(b"0123456789abcdef", patient()).expect("a chunk");
    client.chunk(b"", patient()).expect("nothing");
    client.end_chunks(patient()).expect("an end");
    assert_eq!(client.chunk(b"x", patient()).expect_err("it has ended").kind(), ErrorKind::InvalidInput);
    let request = Request::new("PUT", "/a").with("Content-Length", "3");
    client.send_head(&request, patient()).expect("a head");
    client.write_all(b"ab", patient()).expect("a part");
    assert_eq!(client.write_all(b"cd", patient()).expect_err("one too many").kind(), ErrorKind::InvalidInput);
    client.write_all(b"c", patient()).expect("the rest");
    drop(client);
    let mut said = String::new();
    server.read_to_string(&mut said).expect("text");
    let log = "POST /engine/v1/log HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n10\r\n0123456789abcdef\r\n0\r\n\r\n";
    assert_eq!(said, format!("{log}PUT /a HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc"));
}

#[test]
fn queued_chunks_are_those_bytes_and_an_interim_response_is_no_answer() {
    let (mut client, mut server) = pair();
    let request = Request::new("POST", "/x").with("Transfer-Encoding", "chunked");
    client.send_head(&request, patient()).expect("a head");
    let append = |bytes: &'static [u8]| {
        move |into: &mut Vec<u8>| {
            into.extend_from_slice(bytes);
            Ok(bytes.len())
        }
    };
    assert_eq!(client.queue_chunk(append(b"0123456789abcdef")).expect("a chunk"), 16);
    assert_eq!(client.queue_chunk(append(b"")).expect("nothing"), 0);
    client.queue_end().expect("an end");
    assert_eq!(client.queue_chunk(append(b"x")).expect_err("it has ended").kind(), ErrorKind::InvalidInput);
    assert_eq!(client.waiting(), 27);
    client.flush().expect("room");
    assert_eq!(client.waiting(), 0);
    assert!(!client.is_answered().expect("nothing"));
    for part in [&b"HTTP/1.1 100 Continue\r\n"[..], b"\r\nHTTP/1.1 102 Wait\r\n\r\n", b"HTTP/1.1 200 OK\r\n"] {
        server.write_all(part).expect("room");
        assert!(!client.is_answered().expect("no answer"));
    }
    server.write_all(b"Content-Length: 0\r\n\r\n").expect("room");
    assert!(client.is_answered().expect("an answer") && client.is_answered().expect("the same"));
    assert_eq!(client.response(patient()).expect("an answer").status, 200);
    drop(client);
    let mut said = String::new();
    server.read_to_string(&mut said).expect("text");
    assert!(said.ends_with("\r\n\r\n10\r\n0123456789abcdef\r\n0\r\n\r\n"), "{said}");
}

#[test]
fn deadlines_and_stop_end_the_waiting_everywhere() {
    let (stop, stopper) = fd::pipe().expect("a pipe");
    let short = || within(Duration::from_millis(50));
    let (mut server, mut client) = pair();
    assert_eq!(server.request(short()).expect_err("silence").kind(), ErrorKind::TimedOut);
    let (mut server, mut drip) = pair();
    client.write_all(b"x").expect("room");
    // A byte now and then does not move the deadline.
    let dripping = thread::spawn(move || {
        while drip.write_all(b"x").is_ok() {
            thread::sleep(Duration::from_millis(5))
        }
    });
    assert_eq!(server.request(within(Duration::from_millis(200))).expect_err("too slow").kind(), ErrorKind::TimedOut);
    drop(server);
    dripping.join().expect("the writer ends");
    let (mut writing, _unread) = pair();
    writing.send_head(&Request::new("POST", "/").with("Transfer-Encoding", "chunked"), patient()).expect("a head");
    let error = writing.chunk(&vec![0; 4 << 20], short()).expect_err("nobody reads");
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(!writing.is_reusable());
    fd::write(stopper.as_fd(), b"x").expect("a write");
    let stopped = Limits { stop: Some(stop.as_fd()), ..patient() };
    let (mut server, _client) = pair();
    assert!(wait::is_stop(&server.request(stopped).expect_err("stopped")));
    // TEST-NET-1: nobody answers there, if it is routed at all.
    let nowhere: Address = "192.0.2.1:9".parse().expect("an address");
    let start = Instant::now();
    assert!(nowhere.connect(short()).is_err());
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_large_body_goes_through_in_little_memory() {
    const BYTES: usize = 128 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address: Address = listener.local_addr().expect("an address").to_string().parse().expect("an address");
    let before = peak_kib();
    let server = thread::spawn(move || {
        let mut server = Connection::over(Stream::over(listener.accept().expect("a client").0)).expect("a connection");
        server.request(patient()).expect("a request").expect("one");
        let (mut body, mut chunk, mut total, mut sum) = (server.body(), vec![0; 32 << 10], 0, 0u64);
        loop {
            match server.read_body(&mut body, &mut chunk, patient()).expect("a body") {
                0 => break,
                count => {
                    total += count;
                    sum = chunk[..count].iter().fold(sum, |sum, byte| sum + u64::from(*byte));
                }
            }
        }
        server.respond(200, &[], b"", patient()).expect("a client");
        (server, total, sum)
    });
    let mut client = address.connect(patient()).expect("a server");
    client.send_head(&Request::new("POST", "/").with("Transfer-Encoding", "chunked"), patient()).expect("a head");
    let block: Vec<u8> = (0..32 << 10).map(|at: u32| at as u8).collect();
    for _ in 0..BYTES / block.len() {
        client.chunk(&block, patient()).expect("a server that reads");
    }
    client.end_chunks(patient()).expect("a server that reads");
    assert_eq!(client.response(patient()).expect("a response").status, 200);
    let (mut server, total, sum) = server.join().expect("the server ends");
    assert!(client.is_reusable());
    client.send_head(&Request::new("GET", "/"), patient()).expect("a head");
    assert!(server.request(patient()).expect("a request").is_some(), "the connection is kept");
    let expected: u64 = block.iter().map(|byte| u64::from(*byte)).sum::<u64>() * (BYTES / block.len()) as u64;
    assert_eq!((total, sum), (BYTES, expected));
    // The other tests of this process have theirs in it, about 20 MiB.
    let grown = peak_kib().saturating_sub(before);
    assert!(grown < 48 << 10, "{grown} KiB more than before");
}

fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn a_kept_connection_is_used_again_and_a_dead_one_is_replaced() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut client = Client::new(listener.local_addr().expect("an address").to_string().parse().expect("an address"));
    let server = thread::spawn(move || {
        let mut served = Vec::new();
        // The first connection dies after two responses, the second one in the middle of a third request, the next one lives.
        for (responses, one_more) in [(2, false), (1, true), (1, false)] {
            let mut server =
                Connection::over(Stream::over(listener.accept().expect("a client").0)).expect("a connection");
            for _ in 0..responses {
                let request = server.request(patient()).expect("a request").expect("one");
                let mut body = server.body();
                let body = server.body_within(&mut body, 10, patient()).expect("a body");
                served.push(format!("{} {}", request.method, request.path));
                server.respond(200, &[], &body, patient()).expect("a client");
            }
            if one_more {
                server.request(patient()).expect("a request").expect("one");
                served.push("dies".to_owned());
            }
        }
        served
    });
    let mut ask = |method, path, body: &[u8]| {
        client.request(method, path, &[("X-A", "b")], body, 10, patient()).expect("a response")
    };
    assert_eq!(ask("GET", "/1", b""), (200, Vec::new()));
    assert_eq!(ask("PUT", "/2", b"0123456789"), (200, b"0123456789".to_vec()));
    assert_eq!(ask("POST", "/3", b""), (200, Vec::new()));
    assert_eq!(ask("PUT", "/4", b"x"), (200, b"x".to_vec()));
    assert_eq!(server.join().expect("the server ends"), ["GET /1", "PUT /2", "POST /3", "dies", "PUT /4"]);
    let gone = client.request("GET", "/5", &[], b"", 10, patient()).expect_err("nobody listens");
    assert_eq!(gone.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_body_that_nobody_wanted_is_read_away_when_it_is_small() {
    let serve = |declared: usize, sent: usize, expect: &str| {
        let (mut server, mut client) = pair();
        let head = format!("POST / HTTP/1.1\r\nContent-Length: {declared}\r\n{expect}\r\n");
        let writer = thread::spawn(move || {
            let _ = client.write_all(head.as_bytes()).and_then(|()| client.write_all(&vec![b'x'; sent]));
            let _ = client.write_all(b"GET /next HTTP/1.1\r\nConnection: close\r\n\r\n");
            let mut said = String::new();
            let _ = client.read_to_string(&mut said);
            said
        });
        server.request(patient()).expect("a request").expect("one");
        let start = Instant::now();
        server.respond(409, &[], b"no", patient()).expect("a client");
        assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
        let next = server.request(patient()).expect("it is over, or not").map(|request| request.path);
        drop(server);
        let said = writer.join().expect("the writer ends");
        assert!(said.starts_with("HTTP/1.1 409 Conflict\r\nContent-Length: 2\r\n"), "{said}");
        next
    };
    assert_eq!(serve(DRAIN_MAX, DRAIN_MAX, ""), Some("/next".to_owned()));
    assert_eq!(serve(DRAIN_MAX + 1, DRAIN_MAX + 1, ""), None);
    assert_eq!(serve(100, 0, ""), None, "it does not come, but for what looks like a request");
    assert_eq!(serve(5, 5, "Expect: 100-continue\r\n"), None, "it may come or not");
}

#[test]
fn a_client_that_waits_to_be_asked_for_its_body_is_asked_when_it_is_wanted() {
    let (mut server, mut client) = pair();
    client.write_all(b"POST / HTTP/1.1\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n\r\n").expect("room");
    server.request(patient()).expect("a request").expect("one");
    let asked = thread::spawn(move || {
        let mut said = [0; 25];
        client.read_exact(&mut said).expect("to be asked");
        client.write_all(b"ab").expect("a server");
        (client, said)
    });
    let mut body = server.body();
    assert_eq!(server.body_within(&mut body, 2, patient()).expect("a body"), b"ab");
    let (mut client, said) = asked.join().expect("the client ends");
    assert_eq!(&said, b"HTTP/1.1 100 Continue\r\n\r\n");
    assert!(!server.peer_hung_up());
    client.write_all(b"!").expect("room");
    client.shutdown(std::net::Shutdown::Write).expect("a shutdown");
    assert!(server.peer_hung_up(), "even with bytes unread");
    server.respond_head(101, &[("Upgrade", "x"), ("Connection", "Upgrade")], patient()).expect("a client");
    let (stream, leftover) = server.into_parts();
    assert!(leftover.is_empty());
    stream.end();
    let mut said = String::new();
    client.read_to_string(&mut said).expect("text");
    assert_eq!(said, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n");
}

#[test]
fn what_follows_an_upgrade_belongs_to_the_other_protocol() {
    let (mut client, mut server) = pair();
    client.send_head(&Request::new("GET", "/").with("Upgrade", "websocket"), patient()).expect("a head");
    server.write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x81\x00").expect("room");
    assert!(client.response(patient()).expect("a response").headers.is("upgrade", "WebSocket"));
    assert!(!client.is_reusable());
    assert_eq!(client.into_parts().1, [0x81, 0]);
}

/// Ends the program when the test does, however.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn is_missing(program: &str) -> bool {
    let missing = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err();
    if missing {
        eprintln!("skipped: {program} is missing");
    }
    missing
}

#[test]
fn curl_is_a_client() {
    if is_missing("curl") {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let base = format!("http://{}", listener.local_addr().expect("an address"));
    let server = thread::spawn(move || {
        let mut server = Connection::over(Stream::over(listener.accept().expect("curl").0)).expect("a connection");
        let mut count = 0;
        while let Some(request) = server.request(patient()).expect("a request") {
            let mut body = server.body();
            let body = server.body_within(&mut body, 4 << 20, patient()).expect("a body");
            let said = format!("{} {} {:?} {}\n", request.method, request.path, request.query_value("id"), body.len());
            server.respond_head(200, &[("Transfer-Encoding", "chunked")], patient()).expect("curl");
            server.chunk(said.as_bytes(), patient()).expect("curl");
            server.end_chunks(patient()).expect("curl");
            server.settle(patient());
            count += 1;
        }
        count
    });
    let file = std::env::temp_dir().join(format!("lodger-http-{}", std::process::id()));
    std::fs::write(&file, vec![b'x'; 3 << 20]).expect("a file");
    let file = format!("@{}", file.display());
    let mut curl = Command::new("curl");
    curl.args(["-q", "-sS", "--noproxy", "*", "--max-time", "20", &format!("{base}/a?id=7")]);
    curl.args(["--next", "-sS", "--noproxy", "*", "--max-time", "20", "--data-binary", &file, &format!("{base}/b")]);
    curl.args([
        "--next",
        "-sS",
        "--noproxy",
        "*",
        "--max-time",
        "20",
        "-H",
        "Transfer-Encoding: chunked",
        "--data-binary",
        &file,
    ]);
    let output = curl.arg(format!("{base}/c")).output().expect("curl runs");
    let _ = std::fs::remove_file(&file[1..]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said, "GET /a Some(\"7\") 0\nPOST /b None 3145728\nPOST /c None 3145728\n", "{output:?}");
    assert_eq!(server.join().expect("the server ends"), 3, "all on one connection");
}

#[test]
fn pythons_server_is_a_server() {
    if is_missing("python3") {
        return;
    }
    let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
    let folder = std::env::temp_dir().join(format!("lodger-http-served-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join("file"), b"content").expect("a file");
    let mut python = Command::new("python3");
    python.args(["-m", "http.server", "--bind", "127.0.0.1", &port.to_string()]).current_dir(&folder);
    let _python = Running(python.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("python runs"));
    let mut client = Client::new(format!("127.0.0.1:{port}").parse().expect("an address"));
    let start = Instant::now();
    let first = loop {
        match client.request("GET", "/file", &[], b"", 100, patient()) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused && start.elapsed() < Duration::from_secs(15) => {
                thread::sleep(Duration::from_millis(50));
            }
            result => break result.expect("a response"),
        }
    };
    assert_eq!(first, (200, b"content".to_vec()));
    assert_eq!(client.request("GET", "/none", &[], b"", 10_000, patient()).expect("a response").0, 404);
    let _ = std::fs::remove_dir_all(&folder);
}

/// Marsaglia's xorshift: the same numbers for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 8) as usize % limit
    }
}

#[test]
fn chance_neither_panics_nor_hangs() {
    const GOOD: [&str; 3] = [
        "POST /b?c HTTP/1.1\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhelloGET / HTTP/1.1\r\n\r\n",
        "POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;ext=1\r\nabc\r\n2\r\nde\r\n0\r\nT: u\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ];
    const DAMAGE: &[u8] = b"\r\n\0 :;,0159afgHTP/\xff\t";
    for seed in 1..=3_000u64 {
        let random = &mut Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut bytes = GOOD[random.below(GOOD.len())].as_bytes().to_vec();
        for _ in 0..random.below(4) {
            let (at, byte) = (random.below(bytes.len()), DAMAGE[random.below(DAMAGE.len())]);
            match random.below(3) {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => drop(bytes.remove(at)),
            }
        }
        let result = std::panic::catch_unwind(|| {
            let start = Instant::now();
            let (mut ours, mut theirs) = pair();
            theirs.write_all(&bytes).expect("room");
            theirs.shutdown(std::net::Shutdown::Write).expect("a shutdown");
            if bytes.starts_with(b"HTTP") {
                let _ = ours.send_head(&Request::new("GET", "/"), patient()).and_then(|()| ours.response(patient()));
                let mut body: Body = ours.body();
                let _ = ours.body_within(&mut body, 100, patient());
            } else {
                while let Ok(Some(_)) = ours.request(patient()) {
                    let mut body = ours.body();
                    let _ = ours.body_within(&mut body, 100, patient());
                    let _ = ours.respond(200, &[], b"", patient());
                }
            }
            assert!(start.elapsed() < Duration::from_secs(20), "it waited");
        });
        assert!(result.is_ok(), "seed {seed}: {:?}", String::from_utf8_lossy(&bytes));
    }
}
