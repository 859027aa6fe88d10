//! The same conversation over every transport.

use std::time::{Duration, Instant};

use crate::client::{Client, Shown, assert_bytes};
use crate::monitor::{BAD_JSON, CONNECTION_ERROR, NO_HANDLER, PING, PONG, TIMEOUT};
use crate::ways::{self, Way};

/// Requests whose first byte tells the protocol, and their responses.
const CLAIMED: [(&[u8], &[u8]); 24] = [
    (PING, PONG),
    (b"{\"Command\":\"agent.ping\"}\n", PONG),
    (b" \t\r\n{\"Command\":\"agent.ping\"}", PONG),
    (b"{\n  \"Command\" : \"agent.ping\"\n}\n", PONG),
    (br#"{"COMMAND":"agent.ping"}"#, PONG),
    (br#"{"Command":"nobody","command":"agent.ping"}"#, PONG),
    (br#"{"Command":"agent.ping","command":null}"#, PONG),
    (br#"{"Command":"agent.\u0070ing"}"#, PONG),
    (br#"{"Command":"agent.ping"}{"Command":"nobody"}"#, PONG),
    (b"{\"Command\":\"agent.ping\"}\0garbage\xff", PONG),
    (b"{}", NO_HANDLER),
    (br#"{"Name":"agent.ping"}"#, NO_HANDLER),
    (br#"{"Command":"Agent.ping"}"#, NO_HANDLER),
    (br#"{"x":{"Command":"agent.ping"}}"#, NO_HANDLER),
    (b"{\"a\":\"}{\xff\xc3\",\"Command\":\"nobody\"}", NO_HANDLER),
    (b"[", BAD_JSON),
    (b"null", BAD_JSON),
    (b"12", BAD_JSON),
    (b"\"s\"", BAD_JSON),
    (b"{x}", BAD_JSON),
    (b"{{", BAD_JSON),
    (br#"{"Command":5}"#, BAD_JSON),
    (br#"{"Command":"agent.ping",}"#, BAD_JSON),
    (br#"{"Command":"agent.ping","x":1}"#, br#"{"Status":10,"StatusMessage":"x: no such argument"}"#),
];

/// Requests that only a pinned protocol takes for its own.
const FOREIGN: [(&[u8], &[u8]); 6] = [
    (b"}", BAD_JSON),
    (b"}{", BAD_JSON),
    (b"\0", BAD_JSON),
    (b"\xef\xbb\xbf{}", BAD_JSON),
    (b"x", BAD_JSON),
    (b"\xff", BAD_JSON),
];

/// Beginnings of requests.
const HALVES: [&[u8]; 4] = [b"{", b" ", b"{\"a\":\"{\"", b"{\"Command\":\"agent.ping\""];

fn conversation(way: &Way, rows: &[(&[u8], &[u8])]) {
    for (request, response) in rows {
        let what = (way.name, Shown(request));
        let mut whole = way.connect();
        assert_bytes(&whole.ask(request), response, &what);
        let mut bytewise = way.connect();
        request.chunks(1).for_each(|byte| bytewise.write_what_it_takes(byte));
        assert_bytes(&bytewise.rest(), response, &what);
        let mut ending = way.connect();
        ending.write_what_it_takes(request);
        ending.end_writing();
        assert_bytes(&ending.rest(), response, &what);
    }
}

fn halves(way: &Way) {
    for request in HALVES {
        let mut client = way.connect();
        client.write(request).expect("it reads");
        assert_bytes(&way.connect().ask(PING), PONG, &(way.name, "another client"));
        client.end_writing();
        assert_bytes(&client.rest(), CONNECTION_ERROR, &(way.name, Shown(request)));
    }
}

#[test]
fn the_first_byte_chooses_the_protocol() {
    for way in ways::unpinned() {
        conversation(&way, &CLAIMED);
        halves(&way);
    }
}

#[test]
fn a_pinned_protocol_takes_every_byte_for_its_own() {
    for way in ways::pinned() {
        conversation(&way, &CLAIMED);
        conversation(&way, &FOREIGN);
        halves(&way);
        let mut client = way.connect();
        client.end_writing();
        assert_bytes(&client.rest(), CONNECTION_ERROR, &(way.name, "nothing"));
    }
}

#[test]
fn what_is_not_complete_in_ten_seconds_is_104_everywhere() {
    let ways: Vec<Way> = ways::pinned().into_iter().chain(ways::unpinned()).collect();
    let since = Instant::now();
    let mut clients = Vec::new();
    for way in &ways {
        let mut client = way.connect();
        client.write(br#"{"Command":"agent"#).expect("it reads");
        clients.push((way.name, client));
        if way.name.contains("proto=google") {
            clients.push((way.name, way.connect()));
        }
    }
    // One byte a second, and always one more.
    let mut slow: Vec<(&str, Client)> = ways.iter().map(|way| (way.name, way.connect())).collect();
    slow.iter_mut().for_each(|(_, client)| client.write(br#"{"a":""#).expect("it reads"));
    loop {
        std::thread::sleep(Duration::from_millis(100));
        let heard = clients.iter().chain(&slow).find(|(_, client)| client.hears_within(Duration::ZERO));
        // Looked at behind that, because the test may have slept for longer than it wanted.
        let time = since.elapsed();
        if time > Duration::from_secs(9) {
            break;
        }
        assert!(heard.is_none(), "{:?} after {time:?}", heard.map(|(name, _)| name));
        if time.subsec_millis() < 100 {
            slow.iter_mut().for_each(|(_, client)| client.write(b"x").expect("it reads"));
        }
    }
    for (name, client) in clients.iter_mut().chain(&mut slow) {
        assert_bytes(&client.rest(), TIMEOUT, name);
    }
    assert!((10..25).contains(&since.elapsed().as_secs()), "{:?}", since.elapsed());
}

#[test]
fn many_at_once_are_each_answered() {
    for way in ways::unpinned() {
        let mut clients: Vec<Client> = (0..16).map(|_| way.connect()).collect();
        for client in &mut clients {
            client.write(&PING[..5]).expect("it reads");
        }
        for client in clients.iter_mut().rev() {
            client.write(&PING[5..]).expect("it reads");
        }
        for client in &mut clients {
            assert_bytes(&client.rest(), PONG, &way.name);
        }
    }
}
