//! The client of XenStore: as a guest of real daemons, and against what no daemon should send.
#![cfg(feature = "openstack")]

mod support;
#[path = "support/xenbus.rs"]
mod xenbus;
#[macro_use]
#[path = "support/xenstore.rs"]
mod xenstore;

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use lodger::sys::fd;
use lodger::xenstore::client::{Client, Error};
use lodger::xenstore::message::{DIRECTORY, ERROR, HEADER, Message, READ, SENT_MAX, WATCH, WATCH_EVENT, WRITE};
use support::{Folder, PATIENCE, wait_until};
use xenbus::Bus;
use xenstore::{Daemon, HOME, Kind, refusal};

with_both_daemons! {
    paths_without_a_slash_begin_at_the_guest,
    values_are_any_bytes,
    names_below_a_node_are_listed,
    nodes_are_made_and_removed,
    refusals_keep_their_names,
    no_message_is_too_long_for_the_device,
    changes_are_told_by_a_watch,
    an_event_between_a_request_and_its_answer_is_noted,
    the_next_client_has_nothing_of_the_last_one,
}

#[test]
fn with_oxenstored_a_quota_has_a_name_of_its_own() {
    if !xenstore::is_there(Kind::Ocaml, "a quota") {
        return;
    }
    let daemon = Daemon::start_with(Kind::Ocaml, "quota-maxentity = 12");
    let (_bus, mut client) = guest(&daemon);
    let full = (0..20).map(|number| client.write(&format!("data/{number}"), b"x")).find(Result::is_err);
    let Some(Err(error)) = full else { panic!("there is no quota") };
    assert!(error.is("EQUOTA") && error.is_full(), "{error}");
    client.remove("data/0").expect("it is ours");
    client.write("data/again", b"x").expect("there is room again");
}

fn guest(daemon: &Daemon) -> (Bus, Client) {
    let bus = Bus::start(daemon);
    let client = Client::open(&bus.socket).expect("it is there");
    (bus, client)
}

fn paths_without_a_slash_begin_at_the_guest(kind: Kind) {
    let daemon = Daemon::start(kind);
    let (_bus, mut client) = guest(&daemon);
    let mut host = daemon.host();
    client.write("data/x", b"1").expect("it is ours");
    assert_eq!(host.text("data/x").as_deref(), Some("1"));
    host.write("vm-data/hostname", "name");
    assert_eq!(client.read("vm-data/hostname").expect("it is there"), b"name");
    assert_eq!(client.read(&format!("{HOME}/vm-data/hostname")).expect("it is there"), b"name");
    assert_eq!(client.read_if_there("data/none").expect("no error"), None);
}

fn values_are_any_bytes(kind: Kind) {
    let daemon = Daemon::start(kind);
    let (_bus, mut client) = guest(&daemon);
    let mut host = daemon.host();
    let all: Vec<u8> = (0..=255).chain([0, 0, b'\n']).collect();
    for value in [&all[..], b"", b"\0", b"\xff", b"x\n"] {
        client.write("data/bytes", value).expect("it is ours");
        assert_eq!(client.read("data/bytes").expect("it is there"), value);
        assert_eq!(host.read("data/bytes").as_deref(), Some(value));
    }
}

fn names_below_a_node_are_listed(kind: Kind) {
    let daemon = Daemon::start(kind);
    let (_bus, mut client) = guest(&daemon);
    assert_eq!(client.list("data/host").expect("it is there"), Vec::<String>::new());
    for name in ["b", "a", "c-_@0"] {
        client.write(&format!("data/host/{name}"), b"leaf").expect("it is ours");
    }
    let mut names = client.list("data/host").expect("it is there");
    names.sort_unstable();
    assert_eq!(names, ["a", "b", "c-_@0"]);
    assert_eq!(client.list("data/host/a").expect("it is there"), Vec::<String>::new());
}

fn nodes_are_made_and_removed(kind: Kind) {
    let daemon = Daemon::start(kind);
    let (_bus, mut client) = guest(&daemon);
    client.write("data/deep/er/est", b"x").expect("nodes above it are made");
    client.make_directory("data/deep/er").expect("it is there already");
    assert_eq!(client.read("data/deep/er/est").expect("it is still there"), b"x");
    client.remove("data/deep").expect("with all below it");
    assert_eq!(client.read_if_there("data/deep/er/est").expect("no error"), None);
    client.remove("data/deep").expect("one that is not there");
    assert_eq!(refusal(client.remove("data/deep/er")), "ENOENT", "nor is the one above it");
    let mut host = daemon.host();
    host.write("data/host/id", "of the host");
    client.remove("data/host/id").expect("what stands below a node of the guest is the guest's, too");
    assert_eq!(host.read("data/host/id"), None);
}

fn refusals_keep_their_names(kind: Kind) {
    let daemon = Daemon::start(kind);
    let (_bus, mut client) = guest(&daemon);
    daemon.host().write("vm-data/mine", "x");
    assert_eq!(refusal(client.read("data/none")), "ENOENT");
    assert_eq!(refusal(client.list("data/none")), "ENOENT");
    assert_eq!(refusal(client.write("vm-data/mine", b"y")), "EACCES");
    assert_eq!(refusal(client.remove("vm-data/mine")), "EACCES");
    for bad in ["", "data/a:b", "data/a.b", "data//a", "data/a/", "data/a b", "data/\u{e9}", "data/a\0b"] {
        assert_eq!(refusal(client.read(bad)), "EINVAL", "{bad:?}");
    }
    let full = refusal(client.write("data/long", &[b'x'; 2049]));
    assert_eq!(full, if kind == Kind::C { "ENOSPC" } else { "E2BIG" });
    client.write("data/long", &[b'x'; 1999]).expect("our longest response");
}

fn no_message_is_too_long_for_the_device(kind: Kind) {
    let daemon = Daemon::start(kind);
    let (bus, mut client) = guest(&daemon);
    let path = "data/x";
    let longest = vec![b'x'; SENT_MAX - path.len() - 1];
    let full = refusal(client.write(path, &longest));
    assert!(full == "ENOSPC" || full == "E2BIG", "{full}: the daemon's word");
    let sent = bus.asked();
    assert_eq!(sent.len(), 1);
    assert_eq!(refusal(client.write(path, &[&longest[..], b"x"].concat())), "E2BIG");
    assert_eq!(refusal(client.read(&"x".repeat(5000))), "E2BIG");
    assert_eq!((bus.asked_count(), bus.broken()), (0, None), "neither was sent");
    assert_eq!(client.list("data/host").expect("the guest is served still"), Vec::<String>::new());
}

/// Whether a change is told, soon.
fn is_told(client: &mut Client) -> bool {
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        if client.has_changed().expect("a connection") {
            return true;
        }
        fd::wait_for(client.watch_fd(), fd::READ, Some(Duration::from_millis(100))).expect("poll");
    }
    false
}

/// Takes what is still on its way.
fn settle(client: &mut Client) {
    while fd::wait_for(client.watch_fd(), fd::READ, Some(Duration::from_millis(60))).expect("poll").readable {
        client.has_changed().expect("a connection");
    }
    client.has_changed().expect("a connection");
}

fn changes_are_told_by_a_watch(kind: Kind) {
    let daemon = Daemon::start(kind);
    let (_bus, mut client) = guest(&daemon);
    let mut host = daemon.host();
    client.watch("data/host").expect("a watch");
    assert!(is_told(&mut client), "at once");
    settle(&mut client);
    assert_eq!(refusal(client.watch("data/host")), "EEXIST");
    host.write("data/elsewhere", "x");
    settle(&mut client);
    assert!(!client.has_changed().expect("a connection"), "of another node");
    host.write("data/host/a", "x");
    assert!(is_told(&mut client), "a new node");
    settle(&mut client);
    host.write("data/host/a", "x");
    assert!(is_told(&mut client), "the same value");
    settle(&mut client);
    host.remove("data/host");
    assert!(is_told(&mut client), "the node itself");
    settle(&mut client);
    host.write("data/host/b", "x");
    assert!(is_told(&mut client), "the watch outlives its node");
}

fn an_event_between_a_request_and_its_answer_is_noted(kind: Kind) {
    let daemon = Daemon::start(kind);
    let (_bus, mut client) = guest(&daemon);
    client.watch("data/host").expect("a watch");
    settle(&mut client);
    // The C daemon tells of it before it answers, oxenstored after that.
    client.write("data/host/a", b"x").expect("it is ours");
    assert_eq!(client.read("data/host/a").expect("it is there"), b"x");
    assert!(is_told(&mut client));
}

fn the_next_client_has_nothing_of_the_last_one(kind: Kind) {
    let daemon = Daemon::start(kind);
    let (bus, mut first) = guest(&daemon);
    first.watch("data/host").expect("a watch");
    drop(first);
    let mut second = Client::open(&bus.socket).expect("it is there");
    second.watch("data/host").expect("the other watch has gone");
}

/// A server that does what a test says, with the one connection that it gets.
struct Fake {
    _folder: Folder,
    thread: Option<JoinHandle<()>>,
}

impl Fake {
    fn start(script: impl FnOnce(&mut UnixStream) + Send + 'static) -> (Fake, Client) {
        let folder = Folder::new();
        let listener = UnixListener::bind(folder.path("sock")).expect("a socket");
        let thread = thread::spawn(move || {
            let (mut line, _) = listener.accept().expect("a client");
            line.set_read_timeout(Some(PATIENCE)).expect("a time-out");
            script(&mut line);
        });
        let client = Client::open(&folder.path("sock")).expect("it listens");
        (Fake { _folder: folder, thread: Some(thread) }, client)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(thread::panicking() || ended.is_none_or(|ended| ended.is_ok()), "the script failed");
    }
}

/// The next request that a fake server gets.
fn request(line: &mut UnixStream) -> Message {
    let mut header = [0; HEADER];
    line.read_exact(&mut header).expect("a request");
    let length = u32::from_le_bytes([header[12], header[13], header[14], header[15]]) as usize;
    let mut bytes = header.to_vec();
    bytes.resize(HEADER + length, 0);
    line.read_exact(&mut bytes[HEADER..]).expect("a request");
    Message::decode(&mut bytes).expect("a message").expect("all of it")
}

fn bytes(kind: u32, request_id: u32, payload: &[u8]) -> Vec<u8> {
    Message { kind, request_id, payload: payload.to_vec() }.encode()
}

fn lost<T: std::fmt::Debug>(result: Result<T, Error>) -> io::ErrorKind {
    match result {
        Err(Error::Lost(error)) => error.kind(),
        other => panic!("not lost: {other:?}"),
    }
}

#[test]
fn a_watch_may_be_answered_with_the_id_0_and_nothing_else_may() {
    let (_fake, mut client) = Fake::start(|line| {
        request(line);
        line.write_all(&bytes(WATCH, 0, b"OK\0")).expect("a client");
        request(line);
        line.write_all(&bytes(ERROR, 0, b"EEXIST\0")).expect("a client");
        let id = request(line).request_id;
        line.write_all(&[bytes(READ, 0, b"wrong"), bytes(READ, id, b"right")].concat()).expect("a client");
    });
    client.watch("a").expect("an old kernel's answer");
    assert_eq!(refusal(client.watch("a")), "EEXIST");
    assert_eq!(client.read("a").expect("an answer"), b"right");
}

#[test]
fn answers_to_others_are_passed_over() {
    let (_fake, mut client) = Fake::start(|line| {
        let id = request(line).request_id;
        let wrong = [
            bytes(READ, id + 1, b"wrong"),
            bytes(READ, id.wrapping_sub(1), b"wrong"),
            bytes(ERROR, id + 7, b"EIO\0"),
            bytes(DIRECTORY, id, b"wrong\0"),
            bytes(WATCH_EVENT, id, b"path\0token\0"),
            bytes(0xffff, id, b""),
        ];
        line.write_all(&[wrong.concat(), bytes(READ, id, b"right")].concat()).expect("a client");
    });
    assert_eq!(client.read("a").expect("an answer"), b"right");
    wait_until("the end is told", || client.has_changed().is_err());
}

#[test]
fn messages_may_come_byte_by_byte_or_many_at_once() {
    let (_fake, mut client) = Fake::start(|line| {
        let id = request(line).request_id;
        for byte in [bytes(WATCH_EVENT, 0, b"a\0t\0"), bytes(READ, id, &[7; 300])].concat() {
            line.write_all(&[byte]).expect("a client");
        }
        let id = request(line).request_id;
        let event = bytes(WATCH_EVENT, 0, &[b'x'; 4000]);
        let longest = bytes(READ, id, &[8; 4096]);
        line.write_all(&[&event[..], &event, &event, &longest, &event[..99]].concat()).expect("a client");
        request(line);
        line.write_all(&[&event[99..], &bytes(READ, id + 1, b"")].concat()).expect("a client");
        let mut rest = [0];
        assert_eq!(line.read(&mut rest).expect("the client's end"), 0);
    });
    assert_eq!(client.read("a").expect("an answer"), [7; 300]);
    assert!(client.has_changed().expect("a connection"));
    assert!(!client.has_changed().expect("a connection"), "once");
    assert_eq!(client.read("a").expect("an answer"), [8; 4096]);
    assert_eq!(client.read("a").expect("an answer"), b"");
}

#[test]
fn an_event_that_came_with_the_answer_before_it_is_noted() {
    let (_fake, mut client) = Fake::start(|line| {
        let id = request(line).request_id;
        line.write_all(&[bytes(READ, id, b"x"), bytes(WATCH_EVENT, 0, b"a\0t\0")].concat()).expect("a client");
        let mut rest = [0];
        assert_eq!(line.read(&mut rest).expect("the client's end"), 0);
    });
    assert_eq!(client.read("a").expect("an answer"), b"x");
    assert!(client.has_changed().expect("a connection"));
}

#[test]
fn what_is_no_message_ends_the_connection() {
    for (answer, kind) in [
        ([&bytes(READ, 1, b"")[..12], &4097_u32.to_le_bytes()].concat(), io::ErrorKind::InvalidData),
        ([&bytes(READ, 1, b"")[..12], &u32::MAX.to_le_bytes()].concat(), io::ErrorKind::InvalidData),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), io::ErrorKind::InvalidData),
        (bytes(READ, 1, b"half")[..18].to_vec(), io::ErrorKind::UnexpectedEof),
        (bytes(READ, 1, b"")[..7].to_vec(), io::ErrorKind::UnexpectedEof),
        (Vec::new(), io::ErrorKind::UnexpectedEof),
    ] {
        let shown = format!("{answer:?}");
        let (_fake, mut client) = Fake::start(move |line| {
            request(line);
            line.write_all(&answer).expect("a client");
        });
        assert_eq!(lost(client.read("a")), kind, "{shown}");
    }
}

#[test]
fn silence_has_an_end() {
    let (_fake, client) = Fake::start(|line| {
        request(line);
        // Events are no answer, however many come.
        while line.write_all(&bytes(WATCH_EVENT, 0, b"a\0t\0")).is_ok() {
            thread::sleep(Duration::from_millis(2));
        }
    });
    let mut client = client.with_patience(Duration::from_millis(80));
    let begun = Instant::now();
    assert_eq!(lost(client.read("a")), io::ErrorKind::TimedOut);
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn events_without_an_end_do_not_hold_a_client_up() {
    let (_fake, mut client) = Fake::start(|line| {
        let event = bytes(WATCH_EVENT, 0, b"a\0t\0").repeat(1000);
        while line.write_all(&event).is_ok() {}
    });
    // Each call comes back, whoever of the two is faster.
    let mut told = 0;
    wait_until("events come", || {
        told += usize::from(client.has_changed().expect("a connection"));
        told == 20
    });
}

#[test]
fn unknown_names_of_errors_are_kept() {
    let (_fake, mut client) = Fake::start(|line| {
        for name in [&b"ENEWERTHANUS\0"[..], b"EQUOTA", b"", b"\0"] {
            let id = request(line).request_id;
            line.write_all(&bytes(ERROR, id, name)).expect("a client");
        }
    });
    for name in ["ENEWERTHANUS", "EQUOTA", "", ""] {
        assert_eq!(refusal(client.write("a", b"x")), name);
    }
}

#[test]
fn requests_are_these_bytes() {
    let (_fake, mut client) = Fake::start(|line| {
        for (kind, payload) in [(WRITE, &b"a/b\0v\0\xff"[..]), (DIRECTORY, b"a\0"), (WATCH, b"a\0lodger\0")] {
            let message = request(line);
            assert_eq!((message.kind, &message.payload[..]), (kind, payload));
            line.write_all(&bytes(kind, message.request_id, b"OK\0")).expect("a client");
        }
    });
    client.write("a/b", b"v\0\xff").expect("an answer");
    assert_eq!(client.list("a").expect("an answer"), ["OK"]);
    client.watch("a").expect("an answer");
}

#[test]
fn only_devices_and_sockets_are_stores() {
    let folder = Folder::new();
    let file = folder.path("file");
    fs::write(&file, "precious").expect("a file");
    assert_eq!(Client::open(&file).expect_err("no store").kind(), io::ErrorKind::InvalidInput);
    assert_eq!(Client::open(&folder.0).expect_err("no store").kind(), io::ErrorKind::InvalidInput);
    assert_eq!(Client::open(&folder.path("none")).expect_err("no store").kind(), io::ErrorKind::NotFound);
    assert_eq!(fs::read(&file).expect("it"), b"precious");
}
