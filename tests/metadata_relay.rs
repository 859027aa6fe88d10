//! `lodger metadata relay`: one connection between its streams and a unix socket.
#![cfg(feature = "metadata")]

mod support;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::{Folder, wait_until};

/// A relay that has one socket as all its streams, as libslirp makes it; ended with the test.
struct Relay {
    process: Child,
    guest: UnixStream,
    service: UnixStream,
}

impl Relay {
    fn start() -> Relay {
        let folder = Folder::new();
        let path = folder.path("socket");
        let listener = UnixListener::bind(&path).expect("a socket");
        let (guest, theirs) = UnixStream::pair().expect("a pair");
        let process = spawn(&format!("unix:{}", path.display()), theirs);
        let (service, _) = listener.accept().expect("the relay connects");
        guest.set_read_timeout(Some(Duration::from_secs(20))).expect("a limit");
        service.set_read_timeout(Some(Duration::from_secs(20))).expect("a limit");
        Relay { process, guest, service }
    }

    /// Waits for the end of the relay; whether that took less than a second.
    fn ends_at_once(&mut self) -> bool {
        let start = Instant::now();
        wait_until("the relay has ended", || self.process.try_wait().expect("a status").is_some());
        start.elapsed() < Duration::from_secs(1)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(address: &str, socket: UnixStream) -> Child {
    let stream = |socket: &UnixStream| Stdio::from(OwnedFd::from(socket.try_clone().expect("a copy")));
    let mut command = Command::new(env!("CARGO_BIN_EXE_lodger"));
    command.args(["metadata", "relay", address]);
    command.stdin(stream(&socket)).stdout(stream(&socket)).stderr(stream(&socket)).spawn().expect("it starts")
}

fn rest(mut from: &UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).expect("the end of the file");
    bytes
}

#[test]
fn a_guest_that_ends_its_side_still_gets_its_response() {
    let mut relay = Relay::start();
    relay.guest.write_all(b"request").expect("room");
    relay.guest.shutdown(Shutdown::Write).expect("half a close");
    assert_eq!(rest(&relay.service), b"request");
    relay.service.write_all(b"response").expect("room");
    relay.service.shutdown(Shutdown::Both).expect("a close");
    assert_eq!(rest(&relay.guest), b"response");
    assert!(relay.ends_at_once());
}

#[test]
fn both_directions_carry_much_at_once_and_neither_waits_for_the_other() {
    let mut relay = Relay::start();
    let bytes: Vec<u8> = (0..5_000_000u32).map(|number| (number % 253) as u8).collect();
    let send = |socket: &UnixStream| {
        let (mut socket, bytes) = (socket.try_clone().expect("a copy"), bytes.clone());
        std::thread::spawn(move || {
            socket.write_all(&bytes).expect("all is taken");
            socket.shutdown(Shutdown::Write).expect("half a close");
        })
    };
    let (up, down) = (send(&relay.guest), send(&relay.service));
    // The guest reads nothing until the service has read everything.
    assert!(rest(&relay.service) == bytes);
    assert!(rest(&relay.guest) == bytes);
    up.join().expect("a thread");
    down.join().expect("a thread");
    assert!(relay.ends_at_once());
}

#[test]
fn a_service_that_closes_is_an_end_of_file_for_the_guest_who_may_go_on_for_a_while() {
    let mut relay = Relay::start();
    relay.service.write_all(b"enough").expect("room");
    relay.service.shutdown(Shutdown::Both).expect("a close");
    // What nobody takes any more does not cut off what the service has said.
    let _ = relay.guest.write_all(&vec![b'x'; 300_000]);
    assert_eq!(rest(&relay.guest), b"enough");
    let _ = relay.guest.write_all(b"more");
    let _ = relay.guest.shutdown(Shutdown::Write);
    assert!(relay.ends_at_once());
}

#[test]
fn a_guest_that_says_nothing_more_does_not_keep_a_relay_without_service() {
    let mut relay = Relay::start();
    relay.service.shutdown(Shutdown::Both).expect("a close");
    assert_eq!(rest(&relay.guest), b"");
    wait_until("the relay has ended", || relay.process.try_wait().expect("a status").is_some());
}

#[test]
fn a_guest_that_is_gone_ends_the_services_connection() {
    let mut relay = Relay::start();
    relay.guest.shutdown(Shutdown::Both).expect("a close");
    assert_eq!(rest(&relay.service), b"");
    // The first write may still be taken by the relay.
    wait_until("the service's write fails", || relay.service.write_all(b"response").is_err());
    assert!(relay.ends_at_once());
}

#[test]
fn without_a_service_the_guest_reads_an_end_of_file_and_no_word_of_ours() {
    let (guest, theirs) = UnixStream::pair().expect("a pair");
    let mut process = spawn("unix:/no/such/socket", theirs);
    assert_eq!(process.wait().expect("an end").code(), Some(125));
    assert_eq!(rest(&guest), b"");
    let said = Command::new(env!("CARGO_BIN_EXE_lodger")).args(["metadata", "relay", "/no/such"]).output();
    assert!(String::from_utf8_lossy(&said.expect("it starts").stderr).contains("unix:PATH wanted"));
}
