//! The ctl channel, byte for byte.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use lodger::proto::hyper::message::MESSAGE_MAX;
use serde_json::json;

use crate::rig::{ACK, Agent, Ctl, ERROR, ctl_message};

/// Sends bytes and gives as many as are wanted of what comes.
fn exchange(ctl: &mut Ctl, sent: &[u8], wanted: &[u8]) {
    ctl.socket.write_all(sent).expect("the agent reads");
    let mut found = vec![0; wanted.len()];
    ctl.socket.read_exact(&mut found).expect("an answer");
    assert_eq!(found, wanted, "{sent:?}");
}

#[test]
fn commands_and_answers_have_these_bytes() {
    let agent = Agent::start();
    // The rig has read READY: 00 00 00 08 00 00 00 08.
    let mut ctl = agent.ctl();
    exchange(
        &mut ctl,
        b"\0\0\0\x0c\0\0\0\x08",
        b"\0\0\0\x0e\0\0\0\x0c\0\0\0\x08\
          \0\0\0\x09\0\0\0\x08",
    );
    exchange(
        &mut ctl,
        b"\0\0\0\0\0\0\0\x0cnull",
        b"\0\0\0\x0e\0\0\0\x0c\0\0\0\x08\
          \0\0\0\x0e\0\0\0\x0c\0\0\0\x04\
          \0\0\0\x09\0\0\0\x0c\0\0\x10\x92",
    );
    exchange(
        &mut ctl,
        b"\0\0\0\x03\0\0\0\x08",
        b"\0\0\0\x0e\0\0\0\x0c\0\0\0\x08\
          \0\0\0\x0a\0\0\0\x28No callback found for command \"\"",
    );
}

#[test]
fn each_code_is_known_or_has_no_callback() {
    let agent = Agent::start();
    let mut ctl = agent.ctl();
    let nothing = |ctl: &mut Ctl, code| ctl.ask(code, b"");
    assert_eq!(nothing(&mut ctl, 0), (ACK, 4242u32.to_be_bytes().to_vec()));
    for code in [8, 12] {
        assert_eq!(nothing(&mut ctl, code), (ACK, Vec::new()), "{code}");
    }
    for code in [2, 3, 5, 7, 9, 10, 13, 14, 26, 27, 99, u32::MAX] {
        let (answer, text) = nothing(&mut ctl, code);
        assert_eq!((answer, text.as_slice()), (ERROR, &b"No callback found for command \"\""[..]), "{code}");
    }
    // These want arguments, and say so.
    for code in [1, 6, 11, 15, 16, 17, 18, 20, 21, 22, 23, 24, 25] {
        let (answer, text) = nothing(&mut ctl, code);
        assert_eq!(answer, ERROR, "{code}");
        assert!(!text.is_empty() && !text.starts_with(b"No callback"), "{code}");
    }
    assert_eq!(ctl.bad(6, json!([])), "execcmd is no object");
    assert_eq!(ctl.bad(6, json!({})), "process is missing");
}

#[test]
fn messages_may_be_split_and_joined_and_every_byte_is_acknowledged() {
    let agent = Agent::start();
    let mut ctl = agent.ctl();
    let one = ctl_message(0, b"null");
    for step in 1..one.len() {
        for piece in one.chunks(step) {
            ctl.send(piece);
            std::thread::yield_now();
        }
        assert_eq!(ctl.answer(), Some((ACK, vec![0, 0, 0x10, 0x92])), "{step}");
        assert_eq!(ctl.owed, 0);
    }
    ctl.send(&one.repeat(1000));
    for _ in 0..1000 {
        assert_eq!(ctl.answer(), Some((ACK, vec![0, 0, 0x10, 0x92])));
    }
    assert_eq!(ctl.owed, 0);
    // As runV sends: 512 bytes, and the next when they are acknowledged.
    let long = ctl_message(12, &vec![b' '; 10_232]);
    for piece in long.chunks(512) {
        ctl.send(piece);
        while ctl.owed > 0 {
            assert!(ctl.acknowledged());
        }
    }
    assert_eq!(ctl.answer(), Some((ACK, Vec::new())));
}

#[test]
fn a_channel_is_ready_once_and_says_nothing_unasked() {
    let agent = Agent::start();
    let (mut ctl, mut tty) = agent.both();
    ctl.shell(3, "exit 3");
    assert_eq!(tty.finish(3), 3);
    assert_eq!(ctl.ask(12, b""), (ACK, Vec::new()));
    // No event came before that, and none comes behind it.
    ctl.socket.shutdown(Shutdown::Write).expect("a socket");
    assert_eq!(ctl.receive(), None);
    // Each channel has its own.
    assert_eq!(Ctl::open(&agent.path("ctl")).receive(), Some((8, Vec::new())));
}

#[test]
fn what_came_before_the_end_of_the_host_is_answered() {
    let agent = Agent::start();
    let mut ctl = agent.ctl();
    ctl.send(&[ctl_message(12, b""), ctl_message(0, b"null"), ctl_message(3, b"")].concat());
    ctl.socket.shutdown(Shutdown::Write).expect("a socket");
    for answer in [ACK, ACK, ERROR] {
        assert_eq!(ctl.answer().map(|(code, _)| code), Some(answer));
    }
    assert_eq!((ctl.owed, ctl.answer()), (0, None));
    // Half a message is none.
    let mut ctl = agent.ctl();
    ctl.send(&ctl_message(12, b"null")[..10]);
    ctl.socket.shutdown(Shutdown::Write).expect("a socket");
    assert_eq!((ctl.answer(), ctl.owed), (None, 0));
    assert_eq!(agent.ctl().ask(12, b""), (ACK, Vec::new()));
}

#[test]
fn a_host_that_reads_no_answers_holds_up_itself_alone() {
    let agent = Agent::start();
    let mut ctl = agent.ctl();
    let mut tty = agent.tty();
    ctl.execute(3, &["cat"]);
    ctl.socket.set_write_timeout(Some(Duration::from_millis(300))).expect("a time-out");
    let large = agent.path("large");
    std::fs::write(&large, vec![b'x'; 1 << 20]).expect("a file");
    let question = ctl_message(16, json!({ "file": large }).to_string().as_bytes());
    let blocked = (0..10_000).find_map(|_| ctl.socket.write_all(&question).err());
    assert!(blocked.is_some(), "questions are not taken without end");
    let memory = crate::support::status(agent.child.id(), "VmRSS");
    assert!(memory < 24 << 10, "{memory} kB");
    assert_eq!(agent.call("agent.ping")["Status"], 0);
    tty.send(3, b"passes");
    tty.send(3, b"");
    assert_eq!((tty.finish(3), tty.text(3).as_str()), (0, "passes"));
    drop(ctl);
    assert_eq!(agent.ctl().ask(12, b""), (ACK, Vec::new()));
}

#[test]
fn the_longest_message_is_taken_and_the_next_ends_the_channel() {
    let agent = Agent::start();
    let mut ctl = agent.ctl();
    assert_eq!(ctl.ask(12, &vec![b' '; MESSAGE_MAX - 8]), (ACK, Vec::new()));
    drop(ctl);
    for length in [0, 7, MESSAGE_MAX as u32 + 1, u32::MAX] {
        let mut ctl = agent.ctl();
        ctl.send(&[12u32.to_be_bytes(), length.to_be_bytes()].concat());
        let (code, text) = ctl.answer().expect("an error");
        assert!(code == ERROR && text.starts_with(format!("a message of {length} bytes").as_bytes()), "{length}");
        assert_eq!(ctl.answer(), None, "{length}");
    }
    assert_eq!(agent.ctl().ask(12, b""), (ACK, Vec::new()));
}

#[test]
fn arguments_that_are_no_json_or_too_many_are_errors() {
    let agent = Agent::start();
    let mut ctl = agent.ctl();
    for bytes in [&b"{"[..], b"\xff", b"{}{}", &[b'['; 500]] {
        assert_eq!(ctl.ask(6, bytes).0, ERROR);
    }
    let list = |count: usize| json!({ "containers": [], "x": vec![0; count] });
    ctl.good(1, list(4000));
    assert_eq!(ctl.bad(1, list(5000)), "more than the limit of 4096 values");
}
