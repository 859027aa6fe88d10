//! What handlers may do, and what clients see of it (sections 2, 6 and 8, as section 10 mends them).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use lodger::commands::table::Table;

use crate::client::{Shown, assert_bytes};
use crate::monitor::{Monitor, NO_HANDLER, PING, PONG, REQUEST_MAX};
use crate::support::pause;

const CALL: &[u8] = br#"{"Command":"x"}"#;

fn answering(response: &[u8]) -> Monitor {
    let (monitor, response) = (Monitor::with_echo(), response.to_vec());
    monitor.register("x", move |_| Ok(response.clone()));
    monitor
}

#[test]
fn responses_pass_verbatim_whatever_they_are() {
    let responses: [&[u8]; 7] = [
        br#"{"Status":0,"StatusMessage":"","Option":"a","Value":"b"}"#,
        br#"[{"Status":501,"StatusMessage":"<not running>"}]"#,
        b"text, and no JSON",
        b"ends with a line\n",
        b" ",
        b"\0",
        &[0xff, 0x00, 0x7b, 0x22, 0xc3, 0x0a],
    ];
    for response in responses {
        assert_bytes(&answering(response).ask(CALL), response, &Shown(response));
    }
    let every: Vec<u8> = (0..=u8::MAX).collect();
    assert_bytes(&answering(&every).ask(CALL), &every, &"every byte");
}

#[test]
fn no_response_is_an_end_without_a_byte() {
    let monitor = answering(b"");
    assert_bytes(&monitor.ask(CALL), b"", &"an empty response");
    assert_bytes(&monitor.ask(PING), PONG, &"the next call");
}

#[test]
fn a_mebibyte_comes_whole_however_slowly_it_is_read() {
    let response: Vec<u8> = (0..1 << 20).map(|index: u32| (index ^ index >> 8) as u8).collect();
    let monitor = answering(&response);
    assert_bytes(&monitor.ask(CALL), &response, &"read at once");
    let mut client = monitor.connect();
    client.write(CALL).expect("it reads");
    let mut read = Vec::new();
    loop {
        let more = client.read(4093).expect("no reset");
        if more.is_empty() {
            break;
        }
        read.extend(more);
        if read.len() % 16 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    assert_bytes(&read, &response, &"read in pieces");
}

#[test]
fn a_handler_gets_the_longest_request_whole() {
    let monitor = Monitor::with_echo();
    let longest = format!(r#"{{"a":"{}","Command":"echo"}}"#, "x".repeat(REQUEST_MAX - 25));
    assert_eq!(longest.len(), REQUEST_MAX);
    assert_bytes(&monitor.ask(&longest), longest.as_bytes(), &"the longest request");
}

#[test]
fn a_panic_is_105_and_harms_nobody_else() {
    let monitor = Monitor::with_echo();
    monitor.register("text", |_| panic!("boom"));
    monitor.register("formatted", |request| panic!("boom <{}>", request.len()));
    monitor.register("value", |_| std::panic::panic_any(5));
    let rows: [(&str, &[u8]); 3] = [
        ("text", br#"{"Status":105,"StatusMessage":"the command handler panicked: boom"}"#),
        ("formatted", br#"{"Status":105,"StatusMessage":"the command handler panicked: boom \u003c23\u003e"}"#),
        ("value", br#"{"Status":105,"StatusMessage":"the command handler panicked: no text"}"#),
    ];
    for (name, response) in rows {
        let request = format!(r#"{{"Command":"{name}"}}"#);
        for _ in 0..2 {
            assert_bytes(&monitor.ask(&request), response, &name);
        }
        assert_bytes(&monitor.ask(PING), PONG, &"another call");
    }
    let mut client = monitor.connect();
    client.ask(br#"{"Command":"text"}"#);
    assert!(client.served().is_ok());
}

#[test]
fn a_handler_may_register_and_unregister() {
    let monitor = Monitor::of(Table::empty());
    let table = Arc::clone(&monitor.settings.commands);
    monitor.register("grow", move |_| {
        table.register("grown", Arc::new(|_| Ok(b"here".to_vec()))).map_err(|error| error.to_string())?;
        Ok(b"grew".to_vec())
    });
    let table = Arc::clone(&monitor.settings.commands);
    // It forgets itself too, while it runs.
    monitor.register("shrink", move |_| {
        for name in ["grown", "shrink"] {
            table.unregister(name).map_err(|error| error.to_string())?;
        }
        Ok(b"shrank".to_vec())
    });
    let rows: [(&[u8], &[u8]); 8] = [
        (br#"{"Command":"grown"}"#, NO_HANDLER),
        (br#"{"Command":"shrink"}"#, br#"{"Status":105,"StatusMessage":"cmd grown is not registered"}"#),
        (br#"{"Command":"grow"}"#, b"grew"),
        (br#"{"Command":"grow"}"#, br#"{"Status":105,"StatusMessage":"cmd grown is already handled"}"#),
        (br#"{"Command":"grown"}"#, b"here"),
        (br#"{"Command":"shrink"}"#, b"shrank"),
        (br#"{"Command":"shrink"}"#, NO_HANDLER),
        (br#"{"Command":"grown"}"#, NO_HANDLER),
    ];
    for (request, response) in rows {
        assert_bytes(&monitor.ask(request), response, &Shown(request));
    }
}

#[test]
fn handlers_run_in_parallel() {
    let (monitor, both) = (Monitor::of(Table::empty()), Arc::new(Barrier::new(2)));
    for name in ["a", "b"] {
        let both = Arc::clone(&both);
        monitor.register(name, move |_| {
            both.wait();
            Ok(name.as_bytes().to_vec())
        });
    }
    let mut clients = [monitor.connect(), monitor.connect()];
    clients[0].write(br#"{"Command":"a"}"#).expect("it reads");
    clients[1].write(br#"{"Command":"b"}"#).expect("it reads");
    assert_eq!(clients.map(|mut client| client.rest()), [b"a".to_vec(), b"b".to_vec()]);
}

#[test]
fn a_handler_that_runs_holds_up_neither_calls_nor_changes() {
    let (monitor, both) = (Monitor::with_echo(), Arc::new(Barrier::new(2)));
    let waits = Arc::clone(&both);
    monitor.register("slow", move |_| {
        waits.wait();
        waits.wait();
        Ok(b"slow".to_vec())
    });
    let mut slow = monitor.connect();
    slow.write(br#"{"Command":"slow"}"#).expect("it reads");
    // It runs.
    both.wait();
    assert!(!slow.hears_within(Duration::from_millis(20)));
    monitor.register("new", |_| Ok(b"new".to_vec()));
    assert_bytes(&monitor.ask(br#"{"Command":"new"}"#), b"new", &"registered meanwhile");
    // The call goes on with what it has found.
    monitor.settings.commands.unregister("slow").expect("it is there");
    assert_bytes(&monitor.ask(br#"{"Command":"slow"}"#), NO_HANDLER, &"unregistered meanwhile");
    both.wait();
    assert_bytes(&slow.rest(), b"slow", &"the call that ran");
}

#[test]
fn the_deadline_is_for_reading_alone() {
    let mut monitor = Monitor::of(Table::empty());
    monitor.settings.request_timeout = Duration::from_secs(1);
    monitor.register("slow", |_| {
        pause(Duration::from_millis(1100));
        Ok(b"in the end".to_vec())
    });
    assert_bytes(&monitor.ask(br#"{"Command":"slow"}"#), b"in the end", &"a handler that outlives the deadline");
}

#[test]
fn each_request_runs_its_handler_once() {
    let (monitor, count) = (Monitor::with_echo(), Arc::new(AtomicUsize::new(0)));
    let counter = Arc::clone(&count);
    monitor.register("x", move |_| Ok(counter.fetch_add(1, Ordering::Relaxed).to_string().into_bytes()));
    assert_bytes(&monitor.ask([CALL, CALL, CALL].concat()), b"0", &"three in one write");
    assert_bytes(&monitor.ask(CALL), b"1", &"one");
    // A client that has gone does not hinder it, nor does it hinder others.
    let mut client = monitor.connect();
    client.write(CALL).expect("it reads");
    let _ = client.served();
    assert_eq!(count.load(Ordering::Relaxed), 3);
    assert_bytes(&monitor.ask(PING), PONG, &"another call");
}
