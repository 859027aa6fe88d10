//! The deadline of a request: absolute, from the connection on, and answered (sections 3, 5 and 10).

use std::io;
use std::time::{Duration, Instant};

use crate::client::{Client, Shown, assert_bytes};
use crate::monitor::{Monitor, PING, PONG, TIMEOUT};
use crate::support::{PATIENCE, pause};

const SHORT: Duration = Duration::from_millis(150);

fn hasty(timeout: Duration) -> Monitor {
    let mut monitor = Monitor::with_echo();
    monitor.settings.request_timeout = timeout;
    monitor
}

/// Hears the 104, not before its time.
fn assert_times_out(client: &mut Client, since: Instant, what: &[u8]) {
    assert_bytes(&client.rest(), TIMEOUT, &Shown(what));
    assert!((SHORT..PATIENCE / 2).contains(&since.elapsed()), "{:?} after {:?}", Shown(what), since.elapsed());
}

#[test]
fn what_is_not_complete_in_time_is_104() {
    let mut monitor = hasty(SHORT);
    let requests: [&[u8]; 7] =
        [b"", b" ", b"{", b"{\"Command\":\"agent.ping", b"{\"a\":\"{\"", b"{\"a\":{}", b"{\"a\":\"}"];
    let since = Instant::now();
    let mut clients = requests.map(|request| {
        let mut client = monitor.connect();
        client.write(request).expect("it reads");
        client
    });
    // Each connection has the deadline that it began with.
    monitor.settings.request_timeout = PATIENCE;
    assert_bytes(&monitor.ask(PING), PONG, &"a good client meanwhile");
    for (client, request) in clients.iter_mut().zip(requests) {
        assert_times_out(client, since, request);
    }
    for client in clients {
        assert!(client.served().is_ok());
    }
}

#[test]
fn one_byte_after_the_other_is_fine_until_the_deadline() {
    let monitor = hasty(PATIENCE);
    let mut client = monitor.connect();
    for byte in PING {
        client.write(&[*byte]).expect("it reads");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_bytes(&client.rest(), PONG, &"slow and in time");
}

#[test]
fn the_line_end_behind_the_last_request_begins_no_request_on_a_line() {
    let monitor = hasty(SHORT);
    let mut late = monitor.line();
    late.write(b"\r\n").expect("it reads");
    for _ in 0..4 {
        std::thread::sleep(SHORT / 2);
    }
    late.write(PING).expect("it reads");
    assert_bytes(&late.rest(), PONG, &"long behind a line end");
    let (since, mut half) = (Instant::now(), monitor.line());
    half.write(b"\n{").expect("it reads");
    assert_times_out(&mut half, since, b"\n{");
}

#[test]
fn bytes_do_not_extend_it() {
    let monitor = hasty(SHORT);
    let (since, mut client) = (Instant::now(), monitor.connect());
    // One byte more often than the deadline, for ever.
    client.write(b"{\"a\":\"").expect("it reads");
    while !client.hears_within(Duration::from_millis(10)) {
        assert!(since.elapsed() < PATIENCE, "it waits for ever");
        client.write_what_it_takes(b"x");
    }
    assert_times_out(&mut client, since, b"one byte after the other");
}

#[test]
fn a_flood_does_not_extend_it() {
    let mut monitor = hasty(SHORT);
    monitor.settings.request_max = usize::MAX;
    let (since, mut client) = (Instant::now(), monitor.connect());
    client.write(b"{\"a\":[").expect("it reads");
    // White space goes on for ever, and the server always finds some.
    while !client.hears_within(Duration::ZERO) {
        assert!(since.elapsed() < PATIENCE, "it reads for ever");
        client.write_what_it_takes(&[b' '; 256]);
    }
    assert_times_out(&mut client, since, b"a flood");
}

#[test]
fn a_request_that_comes_late_is_104_though_it_is_whole() {
    let monitor = hasty(SHORT);
    let (since, mut client) = (Instant::now(), monitor.connect());
    // The time runs from when the server's thread does.
    pause(4 * SHORT);
    let written: io::Result<()> = client.write(PING);
    assert!(written.is_ok() || written.is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe));
    assert_times_out(&mut client, since, b"late");
}

#[test]
fn no_time_at_all_is_always_104() {
    let monitor = hasty(Duration::ZERO);
    for request in [&b""[..], b"{", PING] {
        assert_bytes(&monitor.ask(request), TIMEOUT, &Shown(request));
    }
}

#[test]
fn all_the_time_there_is_overflows_nothing() {
    let monitor = hasty(Duration::MAX);
    assert_bytes(&monitor.ask(PING), PONG, &"a time-out that never comes");
}

#[test]
fn a_response_that_nobody_reads_holds_its_thread_no_longer_than_its_own_deadline() {
    let monitor = Monitor::with_echo();
    let response = vec![b'x'; 8 << 20];
    monitor.register("big", {
        let response = response.clone();
        move |_| Ok(response.clone())
    });
    let (since, mut client) = (Instant::now(), monitor.connect());
    client.write(br#"{"Command":"big"}"#).expect("it reads");
    while client.hears_within(Duration::ZERO) && since.elapsed() < Duration::from_secs(2) {
        // Others are served while it waits.
        assert_bytes(&monitor.ask(PING), PONG, &"another client");
        std::thread::sleep(Duration::from_millis(20));
    }
    let ended = client.join_server();
    assert_eq!(ended.map_err(|error| error.kind()), Err(io::ErrorKind::TimedOut));
    assert!(since.elapsed() < Duration::from_secs(15), "{:?}", since.elapsed());
    let read = client.rest();
    assert!(response.starts_with(&read) && read.len() < response.len(), "{:?}", Shown(&read));
}
