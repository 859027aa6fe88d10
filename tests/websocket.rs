//! WebSockets against literal bytes, against themselves, and against somebody else's.
#![cfg(feature = "metadata")]

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lodger::stream::Stream;
use lodger::sys::fd;
use lodger::sys::random::getrandom;
use lodger::websocket::key::{accept_key, new_key};
use lodger::websocket::socket::{Message, NO_CODE, NORMAL, Role, Socket, WAITING_MAX};

/// Bytes of a message of a shell.
const MESSAGE_MAX: usize = 20_480;

/// How long anything may take here.
const PATIENCE: Duration = Duration::from_secs(20);

/// The mask of the examples in RFC 6455.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

fn pair(role: Role) -> (Socket, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    theirs.set_read_timeout(Some(PATIENCE)).expect("a socket");
    (Socket::over(Stream::over(ours), role, Vec::new(), MESSAGE_MAX).expect("a socket"), theirs)
}

/// A frame of a client, unless there is no mask.
fn frame(first: u8, mask: Option<[u8; 4]>, payload: &[u8]) -> Vec<u8> {
    let bit = if mask.is_some() { 0x80 } else { 0 };
    let mut bytes = vec![first];
    match payload.len() {
        length @ 0..=125 => bytes.push(bit | length as u8),
        length @ 126..=0xffff => bytes.extend([&[bit | 126][..], &(length as u16).to_be_bytes()].concat()),
        length => bytes.extend([&[bit | 127][..], &(length as u64).to_be_bytes()].concat()),
    }
    bytes.extend(mask.iter().flatten());
    let mask = mask.unwrap_or_default();
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    frame(first, Some(MASK), payload)
}

fn take(peer: &mut UnixStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    peer.read_exact(&mut bytes).expect("so many bytes");
    bytes
}

/// The next message, waited for.
fn receive(socket: &mut Socket) -> std::io::Result<Message> {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(message) = socket.receive()? {
            return Ok(message);
        }
        assert!(Instant::now() < until, "no message comes");
        socket.flush()?;
        fd::wait_for(socket.input(), fd::READ, Some(Duration::from_millis(50)))?;
    }
}

fn flush_all(socket: &mut Socket) {
    while socket.wants_write() {
        fd::wait_for(socket.output(), fd::WRITE, Some(PATIENCE)).expect("a poll");
        socket.flush().expect("the peer is there");
    }
}

#[test]
fn the_examples_of_the_standard_are_understood() {
    let (mut client, mut peer) = pair(Role::Client);
    peer.write_all(&[0x81, 5, 0x48, 0x65, 0x6c, 0x6c, 0x6f]).expect("room");
    assert_eq!(receive(&mut client).expect("text"), Message::Text("Hello".into()));
    peer.write_all(&[0x01, 3, 0x48, 0x65, 0x6c, 0x80, 2, 0x6c, 0x6f]).expect("room");
    assert_eq!(receive(&mut client).expect("text"), Message::Text("Hello".into()));
    peer.write_all(&[&[0x82, 0x7e, 1, 0][..], &[9; 256]].concat()).expect("room");
    assert_eq!(receive(&mut client).expect("bytes"), Message::Binary(vec![9; 256]));

    let (mut server, mut peer) = pair(Role::Server);
    peer.write_all(&[0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]).expect("room");
    assert_eq!(receive(&mut server).expect("text"), Message::Text("Hello".into()));
    peer.write_all(&[0x8a, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]).expect("room");
    assert_eq!(receive(&mut server).expect("a pong"), Message::Pong(b"Hello".into()));
}

#[test]
fn a_server_sends_the_bytes_of_the_standard() {
    let (mut server, mut peer) = pair(Role::Server);
    server.queue(Message::Text("Hello".into()));
    server.queue(Message::Ping(b"Hello".into()));
    server.queue(Message::Binary(vec![9; 256]));
    server.queue(Message::Pong(Vec::new()));
    server.queue(Message::Close(NORMAL));
    flush_all(&mut server);
    let expected: [&[u8]; 6] =
        [b"\x81\x05Hello\x89\x05Hello", &[0x82, 0x7e, 1, 0], &[9; 256], &[0x8a, 0], &[0x88, 2], &[3, 0xe8]];
    let expected = expected.concat();
    assert_eq!(take(&mut peer, expected.len()), expected);
}

#[test]
fn a_client_masks_each_message_anew() {
    let (mut client, mut peer) = pair(Role::Client);
    let mut masks = Vec::new();
    for _ in 0..4 {
        client.queue(Message::Binary(b"Hello".into()));
        flush_all(&mut client);
        let bytes = take(&mut peer, 11);
        let mask = [bytes[2], bytes[3], bytes[4], bytes[5]];
        assert_eq!(bytes, frame(0x82, Some(mask), b"Hello"));
        masks.push(mask);
    }
    masks.sort_unstable();
    masks.dedup();
    assert!(masks.len() > 1, "one mask for all: {masks:?}");
}

#[test]
fn a_message_may_come_byte_by_byte() {
    let (mut server, mut peer) = pair(Role::Server);
    let bytes = [masked(0x02, &[1; 200]), masked(0x89, b"?"), masked(0x80, &[2; 100])].concat();
    let mut messages = Vec::new();
    for byte in bytes {
        peer.write_all(&[byte]).expect("room");
        messages.extend(server.receive().expect("no error"));
    }
    assert_eq!(messages, [Message::Ping(b"?".into()), Message::Binary([[1; 200].as_slice(), &[2; 100]].concat())]);
    flush_all(&mut server);
    assert_eq!(take(&mut peer, 3), [0x8a, 1, b'?']);
}

#[test]
fn what_came_behind_the_handshake_is_not_lost() {
    let (ours, mut peer) = UnixStream::pair().expect("a socket pair");
    let whole = masked(0x82, b"early");
    let mut server =
        Socket::over(Stream::over(ours), Role::Server, whole[..7].to_vec(), MESSAGE_MAX).expect("a socket");
    assert_eq!(server.receive().expect("no error"), None);
    peer.write_all(&whole[7..]).expect("room");
    assert_eq!(receive(&mut server).expect("bytes"), Message::Binary(b"early".into()));
}

#[test]
fn a_peer_that_breaks_the_protocol_is_told_so() {
    let text = |last: u8| [b"\xc3".as_slice(), &[last]].concat();
    let to_server: Vec<(&str, Vec<u8>, u16)> = vec![
        ("no mask", frame(0x82, None, b"x"), 1002),
        ("first reserved bit", masked(0xc2, b"x"), 1002),
        ("second reserved bit", masked(0xa2, b"x"), 1002),
        ("third reserved bit", masked(0x92, b"x"), 1002),
        ("reserved opcode", masked(0x83, b"x"), 1002),
        ("reserved control opcode", masked(0x8b, b"x"), 1002),
        ("control in fragments", masked(0x09, b"x"), 1002),
        ("long control", masked(0x89, &[0; 126]), 1002),
        ("continuation of nothing", masked(0x80, b"x"), 1002),
        ("message inside of a message", [masked(0x02, b"x"), masked(0x82, b"y")].concat(), 1002),
        ("close of one byte", masked(0x88, &[3]), 1002),
        ("reason that is not UTF-8", masked(0x88, b"\x03\xe8\xff"), 1007),
        ("text that is not UTF-8", masked(0x81, &text(0xff)), 1007),
        ("half a character", masked(0x81, &text(0xa4)[..1]), 1007),
        ("one byte too many", masked(0x82, &[0; MESSAGE_MAX + 1]), 1009),
        ("too much in fragments", [masked(0x02, &[0; MESSAGE_MAX]), masked(0x80, &[0])].concat(), 1009),
        ("a length of 2^63", [&[0x82, 0xff, 0x80][..], &[0; 7], &MASK].concat(), 1009),
    ];
    for (what, bytes, code) in to_server {
        let (mut server, mut peer) = pair(Role::Server);
        peer.write_all(&bytes).expect("room");
        let error = receive(&mut server).expect_err(what);
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{what}: {error}");
        assert_eq!(take(&mut peer, 4), [&[0x88, 2][..], &code.to_be_bytes()].concat(), "{what}");
        assert_eq!(receive(&mut server).expect_err(what).kind(), ErrorKind::UnexpectedEof, "{what}");
    }
    let (mut client, mut peer) = pair(Role::Client);
    peer.write_all(&masked(0x82, b"x")).expect("room");
    assert_eq!(receive(&mut client).expect_err("a mask").kind(), ErrorKind::InvalidData);
    let close = take(&mut peer, 8);
    assert_eq!(close, frame(0x88, Some([close[2], close[3], close[4], close[5]]), &[3, 0xea]));
}

#[test]
fn the_code_of_a_refusal_arrives_though_not_all_was_read() {
    let (mut server, mut peer) = pair(Role::Server);
    peer.write_all(&masked(0x82, &[0; 60_000])).expect("room");
    receive(&mut server).expect_err("too long");
    server.end();
    assert_eq!(take(&mut peer, 4), [0x88, 2, 3, 0xf1]);
}

#[test]
fn messages_of_the_limit_are_accepted() {
    let (mut server, mut peer) = pair(Role::Server);
    peer.write_all(&masked(0x82, &[7; MESSAGE_MAX])).expect("room");
    assert_eq!(receive(&mut server).expect("bytes"), Message::Binary(vec![7; MESSAGE_MAX]));
    peer.write_all(&[masked(0x02, &[7; MESSAGE_MAX - 1]), masked(0x80, &[7])].concat()).expect("room");
    assert_eq!(receive(&mut server).expect("bytes"), Message::Binary(vec![7; MESSAGE_MAX]));
    peer.write_all(&masked(0x82, b"")).expect("room");
    assert_eq!(receive(&mut server).expect("bytes"), Message::Binary(Vec::new()));
}

#[test]
fn closes_of_either_side_are_answered() {
    for (first, second) in [(Role::Client, Role::Server), (Role::Server, Role::Client)] {
        let (a, b) = Stream::pair().expect("a socket pair");
        let mut a = Socket::over(a, first, Vec::new(), MESSAGE_MAX).expect("a socket");
        let mut b = Socket::over(b, second, Vec::new(), MESSAGE_MAX).expect("a socket");
        a.queue(Message::Binary(b"last".into()));
        a.queue(Message::Close(NORMAL));
        a.queue(Message::Binary(b"too late".into()));
        // What was under way when the other side closed still arrives.
        b.queue(Message::Binary(b"crossing".into()));
        flush_all(&mut b);
        flush_all(&mut a);
        assert_eq!(receive(&mut b).expect("bytes"), Message::Binary(b"last".into()));
        assert_eq!(receive(&mut b).expect("a close"), Message::Close(NORMAL));
        assert_eq!(b.receive().expect_err("closed").kind(), ErrorKind::UnexpectedEof);
        flush_all(&mut b);
        assert_eq!(receive(&mut a).expect("bytes"), Message::Binary(b"crossing".into()));
        assert_eq!(receive(&mut a).expect("a close"), Message::Close(NORMAL));
        assert!(!a.wants_write() && !b.wants_write());
    }
}

#[test]
fn a_close_without_a_code_and_one_with_a_wrong_code_are_answered() {
    let (mut server, mut peer) = pair(Role::Server);
    peer.write_all(&masked(0x88, &[])).expect("room");
    assert_eq!(receive(&mut server).expect("a close"), Message::Close(NO_CODE));
    flush_all(&mut server);
    assert_eq!(take(&mut peer, 2), [0x88, 0]);
    // 1005 and 1006 are never on the wire; nobody has defined 999 or 5000.
    for code in [999u16, 1005, 1006, 5000] {
        let (mut server, mut peer) = pair(Role::Server);
        peer.write_all(&masked(0x88, &code.to_be_bytes())).expect("room");
        assert_eq!(receive(&mut server).expect("a close"), Message::Close(1002), "{code}");
        flush_all(&mut server);
        assert_eq!(take(&mut peer, 4)[2..], [3, 0xea], "{code}");
    }
}

#[test]
fn a_peer_that_goes_without_a_close_is_noticed() {
    let (mut server, mut peer) = pair(Role::Server);
    peer.write_all(&masked(0x82, b"x")[..5]).expect("room");
    drop(peer);
    assert_eq!(receive(&mut server).expect_err("gone").kind(), ErrorKind::UnexpectedEof);
    assert!(!server.wants_read());
}

#[test]
fn a_peer_that_asks_and_reads_no_answers_makes_only_so_much_wait() {
    let (mut server, mut peer) = pair(Role::Server);
    peer.set_nonblocking(true).expect("a socket");
    let ping = masked(0x89, &[1; 125]);
    let until = Instant::now() + PATIENCE;
    while server.wants_read() {
        assert!(Instant::now() < until);
        // So few bytes go whole into a unix socket, or not at all.
        match peer.write(&ping) {
            Ok(count) => assert_eq!(count, ping.len()),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        while server.receive().expect("pings").is_some() {}
    }
    assert!(server.waiting() < WAITING_MAX + 200, "{} bytes wait", server.waiting());
    assert_eq!(server.receive().expect("nothing is read"), None);
}

/// A process that ends with the test.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A Python that has `websockets`: the system's may have them when the first on the path has not.
fn python(test: &str, script: &str, argument: &str) -> Option<Guard> {
    let has = |program: &&str| {
        let probe = Command::new(program).args(["-c", "import websockets"]).stderr(Stdio::null()).status();
        probe.is_ok_and(|status| status.success())
    };
    let Some(program) = ["python3", "/usr/bin/python3"].into_iter().find(has) else {
        let _ = writeln!(std::io::stderr(), "skipped: {test}: no python3 with websockets");
        return None;
    };
    let mut command = Command::new(program);
    command.args(["-c", script, argument]).stdin(Stdio::null()).stdout(Stdio::piped());
    Some(Guard(command.spawn().expect("python3")))
}

/// Reads the head of a request or response, and gives the rest of what came with it.
fn head(stream: &mut TcpStream) -> (String, Vec<u8>) {
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let mut bytes = Vec::new();
    loop {
        let mut some = [0; 1000];
        let count = stream.read(&mut some).expect("a head");
        assert!(count > 0, "the connection ended in the head");
        bytes.extend(&some[..count]);
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            return (String::from_utf8(bytes[..end].to_vec()).expect("text"), bytes[end + 4..].to_vec());
        }
    }
}

fn field<'a>(head: &'a str, name: &str) -> &'a str {
    let mut lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).expect("the field is there").1
}

const PYTHON_SERVER: &str = r#"
import asyncio, websockets
async def echo(socket):
    async for message in socket:
        await socket.send(message)
async def main():
    async with websockets.serve(echo, "127.0.0.1", 0, max_size=20480, compression=None) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"#;

#[test]
fn somebody_elses_server_understands_our_client() {
    let Some(mut peer) = python("somebody_elses_server_understands_our_client", PYTHON_SERVER, "") else { return };
    let mut port = String::new();
    BufReader::new(peer.0.stdout.as_mut().expect("a pipe")).read_line(&mut port).expect("a port");
    let mut stream = TcpStream::connect(format!("127.0.0.1:{}", port.trim())).expect("a connection");
    let key = new_key(getrandom().expect("random bytes"));
    let request = format!(
        "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: {key}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("room");
    let (head, leftover) = head(&mut stream);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert_eq!(field(&head, "sec-websocket-accept"), accept_key(&key));
    let mut socket = Socket::over(Stream::over(stream), Role::Client, leftover, MESSAGE_MAX).expect("a socket");
    for length in [0, 1, 125, 126, 16_384, 20_480] {
        let message = Message::Binary((0..length).map(|at| at as u8).collect());
        socket.queue(message.clone());
        assert_eq!(receive(&mut socket).expect("an echo"), message);
    }
    socket.queue(Message::Ping(b"there?".into()));
    assert_eq!(receive(&mut socket).expect("a pong"), Message::Pong(b"there?".into()));
    socket.queue(Message::Binary(vec![0; 20_481]));
    assert_eq!(receive(&mut socket).expect("a close"), Message::Close(1009));
}

const PYTHON_CLIENT: &str = r#"
import asyncio, os, sys, websockets
async def main():
    async with websockets.connect("ws://127.0.0.1:" + sys.argv[1], compression=None, max_size=20480) as socket:
        for length in [0, 1, 125, 126, 16384, 20480]:
            message = os.urandom(length)
            await socket.send(message)
            assert await socket.recv() == message
        await socket.send([b"in ", b"three ", b"parts"])
        assert await socket.recv() == b"in three parts"
        await socket.send("text \u00e4")
        assert await socket.recv() == "text \u00e4"
        await (await socket.ping())
        await socket.close(1000)
        print(socket.close_code)
asyncio.run(main())
"#;

#[test]
fn somebody_elses_client_understands_our_server() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let port = listener.local_addr().expect("an address").port().to_string();
    let Some(mut peer) = python("somebody_elses_client_understands_our_server", PYTHON_CLIENT, &port) else { return };
    fd::wait_for(std::os::fd::AsFd::as_fd(&listener), fd::READ, Some(PATIENCE)).expect("a poll");
    listener.set_nonblocking(true).expect("a socket");
    let mut stream = listener.accept().expect("a connection in time").0;
    stream.set_nonblocking(false).expect("a socket");
    let (head, leftover) = head(&mut stream);
    let accept = accept_key(field(&head, "sec-websocket-key"));
    let response = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    stream.write_all(response.as_bytes()).expect("room");
    let mut socket = Socket::over(Stream::over(stream), Role::Server, leftover, MESSAGE_MAX).expect("a socket");
    loop {
        match receive(&mut socket).expect("messages until the close") {
            Message::Close(code) => break assert_eq!(code, NORMAL),
            message @ (Message::Binary(_) | Message::Text(_)) => socket.queue(message),
            _ => {}
        }
    }
    flush_all(&mut socket);
    drop(socket);
    let mut said = String::new();
    peer.0.stdout.as_mut().expect("a pipe").read_to_string(&mut said).expect("text");
    assert_eq!(said, "1000\n");
}
