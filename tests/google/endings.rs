//! How a connection ends: the whole response, then the end of the stream, and never a reset, whatever the client still sends.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use crate::client::{Shown, assert_bytes};
use crate::monitor::{BAD_JSON, Monitor, NO_HANDLER, PING, PONG, TOO_LONG};
use crate::support::PATIENCE;
use crate::ways::{self, PinnedAgent, Way};

/// Bytes that are no request, longer than any buffer.
fn garbage() -> Vec<u8> {
    (0..1 << 20).map(|index: u32| (index % 251) as u8).collect()
}

fn over_all(body: impl Fn(&Way)) {
    ways::pinned().iter().for_each(body);
}

#[test]
fn bytes_behind_a_request_never_cost_its_response() {
    let agent = PinnedAgent::start();
    let trailing: [&[u8]; 4] = [b"\n", b"garbage", PING, &[b' '; 5000]];
    for round in 0..200 {
        let mut client = agent.connect();
        client.write_what_it_takes(&[PING, trailing[round % trailing.len()]].concat());
        std::thread::sleep(Duration::from_millis(1));
        assert_bytes(&client.rest(), PONG, &round);
    }
}

#[test]
fn nor_do_bytes_that_come_while_it_is_answered() {
    let agent = PinnedAgent::start();
    for round in 0..200 {
        let mut client = agent.connect();
        client.write(PING).expect("it reads");
        // Each round at another moment of the server's work.
        (0..round * 20).for_each(|_| std::hint::spin_loop());
        client.write_what_it_takes(b"\n");
        client.write_what_it_takes(b"more");
        std::thread::sleep(Duration::from_millis(1));
        assert_bytes(&client.rest(), PONG, &round);
    }
}

#[test]
fn nor_do_bytes_behind_it_over_any_transport() {
    over_all(|way| {
        for round in 0..25 {
            let mut client = way.connect();
            client.write_what_it_takes(&[PING, b"\n{\"Command\":\"agent.info\"}\0\xff"].concat());
            std::thread::sleep(Duration::from_millis(1));
            assert_bytes(&client.rest(), PONG, &(way.name, round));
        }
    });
}

#[test]
fn a_mebibyte_of_garbage_behind_a_request_does_not_cost_its_response() {
    let request = [PING, &garbage()].concat();
    over_all(|way| {
        for round in 0..10 {
            assert_bytes(&way.connect().ask(&request), PONG, &(way.name, round));
        }
    });
}

#[test]
fn a_refused_client_hears_why_though_it_writes_all_before_it_reads() {
    let garbage = garbage();
    let too_long = [br#"{"a":""#, vec![b'x'; 2 << 20].as_slice(), br#""}"#].concat();
    over_all(|way| {
        for (request, response) in [([b"[", garbage.as_slice()].concat(), BAD_JSON), (too_long.clone(), TOO_LONG)] {
            assert_bytes(&way.connect().ask(&request), response, &(way.name, Shown(&request)));
        }
    });
}

#[test]
fn a_second_request_later_finds_nobody() {
    over_all(|way| {
        let mut client = way.connect();
        client.write(PING).expect("it reads");
        assert_bytes(&client.rest(), PONG, &way.name);
        // Over a line the news may still be under way.
        let deadline = Instant::now() + PATIENCE;
        let error = loop {
            if let Err(error) = client.write(PING) {
                break error;
            }
            assert!(Instant::now() < deadline, "{}: somebody still reads", way.name);
            std::thread::sleep(Duration::from_millis(1));
        };
        assert_eq!(error.kind(), ErrorKind::BrokenPipe, "{}", way.name);
    });
}

#[test]
fn the_end_follows_the_response_without_the_clients_doing() {
    over_all(|way| {
        for (request, response) in [(PING, PONG), (b"{}", NO_HANDLER), (b"[", BAD_JSON), (b"{x", BAD_JSON)] {
            let time_to_the_end = || {
                // The client keeps its own direction open, as upstream's do, and has its answer only with the end.
                let mut client = way.connect();
                client.write(request).expect("it reads");
                assert!(client.hears_within(PATIENCE), "{}: {:?}", way.name, Shown(request));
                let since = Instant::now();
                assert_bytes(&client.rest(), response, &(way.name, Shown(request)));
                since.elapsed()
            };
            // On a busy machine it may take long, but not each time.
            let is_soon = (0..3).any(|_| time_to_the_end() < Duration::from_millis(700));
            assert!(is_soon, "{}: {:?}: the end comes late", way.name, Shown(request));
        }
    });
}

#[test]
fn the_server_ends_though_its_client_keeps_its_end_open() {
    let monitor = Monitor::with_echo();
    for request in [PING, b"{}", b"["] {
        let mut client = monitor.connect();
        client.write(request).expect("it reads");
        assert!(client.join_server().is_ok(), "{:?}", Shown(request));
    }
}

#[test]
fn a_client_without_a_place_hears_it_and_not_a_reset() {
    let agent = PinnedAgent::start();
    let begin = |_| {
        let mut client = agent.connect();
        client.write(b"{").expect("it reads");
        client
    };
    let _begun: Vec<_> = (0..256).map(begin).collect();
    let full = br#"{"Status":108,"StatusMessage":"more connections than the limit of 256"}"#;
    for round in 0..100 {
        let mut client = agent.connect();
        client.write_what_it_takes(br#"{"Command":"agent.commands"}"#);
        std::thread::sleep(Duration::from_millis(1));
        assert_bytes(&client.rest(), full, &round);
        // Whether the agent lives can be asked all the same.
        assert_bytes(&agent.connect().ask(PING), PONG, &round);
    }
}
