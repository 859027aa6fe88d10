//! Input and output of several programs on one channel.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use lodger::proto::hyper::tty::{MESSAGE_MAX, STDIN_MAX, STUCK_PATIENCE};

use crate::rig::{Agent, Tty, tty_message};
use crate::support::{children, pause, wait_until};

#[test]
fn input_ends_with_an_empty_message_and_unknown_numbers_are_dropped() {
    let agent = Agent::start();
    let (mut ctl, mut tty) = agent.both();
    ctl.execute(3, &["cat"]);
    for number in [0, 4, 99, u64::MAX] {
        tty.send(number, b"nobody's");
        tty.send(number, b"");
    }
    tty.send(3, b"one ");
    tty.send(3, b"two");
    tty.send(3, b"");
    tty.send(3, b"too late");
    assert_eq!((tty.finish(3), tty.text(3).as_str()), (0, "one two"));
    assert!(tty.output.is_empty());
}

#[test]
fn messages_have_a_limit_and_lengths_that_cannot_be_end_the_channel() {
    let agent = Agent::start();
    let (mut ctl, mut tty) = agent.both();
    ctl.execute(3, &["wc", "-c"]);
    tty.send(3, &vec![b'x'; MESSAGE_MAX - 12]);
    tty.send(3, b"");
    assert_eq!((tty.finish(3), tty.text(3)), (0, format!("{}\n", MESSAGE_MAX - 12)));
    for length in [0, 11, MESSAGE_MAX as u32 + 1, u32::MAX] {
        drop(tty);
        tty = agent.tty();
        tty.socket.write_all(&[&3u64.to_be_bytes()[..], &length.to_be_bytes()].concat()).expect("the agent reads");
        assert_eq!(tty.receive(), None, "{length}");
    }
}

#[test]
fn messages_may_be_split_and_joined() {
    let agent = Agent::start();
    let (mut ctl, mut tty) = agent.both();
    ctl.execute(3, &["cat"]);
    let bytes = [tty_message(3, b"split "), tty_message(3, b"and joined"), tty_message(3, b"")].concat();
    for byte in &bytes[..20] {
        tty.socket.write_all(&[*byte]).expect("the agent reads");
        thread::yield_now();
    }
    tty.socket.write_all(&bytes[20..]).expect("the agent reads");
    assert_eq!((tty.finish(3), tty.text(3).as_str()), (0, "split and joined"));
}

/// What a pseudo-random sequence is at a place.
fn pattern(at: usize) -> u8 {
    (at.wrapping_mul(2_654_435_761) >> 13) as u8
}

#[test]
fn bulk_data_passes_beside_a_flood_and_an_idle_program() {
    const BYTES: usize = 64 << 20;
    let agent = Agent::start();
    let (mut ctl, mut tty) = agent.both();
    ctl.execute(3, &["cat"]);
    ctl.execute(5, &["yes", "flood"]);
    ctl.execute(7, &["cat"]);
    ctl.execute(9, &["sha256sum"]);
    let mut socket = tty.socket.try_clone().expect("a descriptor");
    let writer = thread::spawn(move || {
        let mut own =
            Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("sha256sum");
        let mut into = own.stdin.take().expect("a pipe");
        for start in (0..BYTES).step_by(8192) {
            let piece: Vec<u8> = (start..start + 8192).map(pattern).collect();
            into.write_all(&piece).expect("sha256sum reads");
            for number in [3, 9] {
                socket.write_all(&tty_message(number, &piece)).expect("the agent reads");
            }
        }
        for number in [3, 9] {
            socket.write_all(&tty_message(number, b"")).expect("the agent reads");
        }
        drop(into);
        let sum = own.wait_with_output().expect("its end").stdout;
        String::from_utf8_lossy(&sum).split(' ').next().expect("a sum").to_owned()
    });
    let (mut count, mut flooded) = (0, 0);
    while !(tty.codes.contains_key(&3) && tty.codes.contains_key(&9)) {
        tty.step();
        if let Some(bytes) = tty.output.remove(&3) {
            let is_right = bytes.iter().enumerate().all(|(index, byte)| *byte == pattern(count + index));
            assert!(is_right, "somewhere behind {count}");
            count += bytes.len();
        }
        flooded += tty.output.remove(&5).map_or(0, |bytes| bytes.len());
    }
    let sum = writer.join().expect("all is written");
    assert_eq!(count, BYTES);
    assert!(flooded > 0);
    assert_eq!(tty.text(9).split(' ').next(), Some(sum.as_str()));
    // The idle one has been there all the time.
    ctl.good(24, serde_json::json!({ "container": "hyperstart", "process": "5", "signal": 9 }));
    assert_eq!(tty.finish(5), 137);
    tty.send(7, b"awake");
    tty.send(7, b"");
    assert_eq!((tty.finish(7), tty.text(7).as_str()), (0, "awake"));
}

/// Writes input that is more than the agent keeps; it must be taken in the end.
fn overfill(tty: &Tty, number: u64, rounds: usize) -> thread::JoinHandle<()> {
    let mut socket = tty.socket.try_clone().expect("a descriptor");
    thread::spawn(move || {
        let message = tty_message(number, &[b'x'; 10_000]);
        for _ in 0..rounds {
            socket.write_all(&message).expect("the agent reads");
        }
        socket.write_all(&tty_message(number, b"")).expect("the agent reads");
    })
}

#[test]
fn a_program_alone_may_take_its_time_with_its_input() {
    let agent = Agent::start();
    let (mut ctl, mut tty) = agent.both();
    // One that has closed its input holds up nobody either.
    ctl.shell(5, "exec <&-; exec sleep 1000");
    let rounds = 2 * STDIN_MAX / 10_000;
    ctl.shell(3, &format!("sleep {}; wc -c", STUCK_PATIENCE.as_secs() + 2));
    let writer = overfill(&tty, 3, rounds);
    // While it does not read, its signals and others' output pass.
    ctl.shell(7, "exec <&-; echo passes");
    assert_eq!((tty.finish(7), tty.text(7).as_str()), (0, "passes\n"));
    assert_eq!((tty.finish(3), tty.text(3)), (0, format!("{}\n", rounds * 10_000)));
    writer.join().expect("all is written");
}

#[test]
fn a_program_that_never_reads_is_hung_up_when_others_wait() {
    let agent = Agent::start();
    let (mut ctl, mut tty) = agent.both();
    ctl.shell(3, "exec sleep 1000");
    ctl.execute(5, &["cat"]);
    let start = Instant::now();
    overfill(&tty, 3, 2 * STDIN_MAX / 10_000).join().expect("all is written");
    assert!(start.elapsed() > STUCK_PATIENCE - Duration::from_millis(500), "{:?}", start.elapsed());
    tty.send(5, b"served");
    tty.send(5, b"");
    assert_eq!(tty.finish(3), 129);
    assert_eq!((tty.finish(5), tty.text(5).as_str()), (0, "served"));
}

#[test]
fn the_input_of_all_programs_together_has_a_limit() {
    let agent = Agent::start();
    let (mut ctl, mut tty) = agent.both();
    let numbers: Vec<u64> = (10..130).step_by(2).collect();
    for number in &numbers {
        ctl.shell(*number, "exec sleep 1000");
    }
    tty.socket.set_write_timeout(Some(Duration::from_millis(500))).expect("a time-out");
    let (mut sent, message) = (0, [b'x'; 50_000]);
    // As much for each as a single one may leave unread.
    let messages = (0..STDIN_MAX / message.len()).flat_map(|_| &numbers);
    let blocked = messages.map(|number| tty.socket.write_all(&tty_message(*number, &message))).find_map(|result| {
        sent += message.len();
        result.err()
    });
    assert!(blocked.is_some(), "{sent} bytes were taken");
    let memory = crate::support::status(agent.child.id(), "VmRSS");
    assert!(memory < 20 << 10, "{memory} kB");
    // The channel is held up, and its programs are not: the end of one is heard.
    ctl.good(24, serde_json::json!({ "container": "hyperstart", "process": "10", "signal": 9 }));
    assert_eq!(tty.finish(10), 137);
}

/// Waits until a program cannot write any more, because everything behind it is full.
fn wait_until_it_is_stuck(pid: u32) {
    let written = || {
        let counts = fs::read_to_string(format!("/proc/{pid}/io")).expect("it is there");
        counts.lines().find_map(|line| line.strip_prefix("wchar: ")?.parse::<u64>().ok()).expect("a number")
    };
    wait_until("it writes no more", || {
        let before = written();
        pause(Duration::from_millis(300));
        // More than its pipe holds: somebody has read of it.
        before > 64 << 10 && written() == before
    });
}

#[test]
fn programs_whose_ends_nobody_reads_are_no_more_than_may_run() {
    let agent = Agent::start();
    let (mut ctl, mut tty) = agent.both();
    ctl.execute(3, &["head", "-c", "10000000", "/dev/zero"]);
    wait_until_it_is_stuck(children(agent.child.id())[0]);
    let mut started = Vec::new();
    let mut start_more = || {
        let before = started.len();
        for number in (10 + 2 * before as u64..).step_by(2) {
            let (code, text) = ctl.ask(6, crate::rig::program(number, &["true"]).to_string().as_bytes());
            if code == crate::rig::ERROR {
                assert_eq!(text, b"more programs than the limit of 64");
                return started.len() - before;
            }
            started.push(number);
        }
        unreachable!("numbers have no end")
    };
    assert!(start_more() >= 63);
    // All have ended by now, and their output has long been silent.
    crate::support::pause(2 * lodger::exec::QUIET);
    // Nobody's, and something to wake up for.
    tty.send(1, b"");
    crate::support::pause(Duration::from_millis(100));
    assert_eq!(start_more(), 0, "their ends cannot have been told");
    assert_eq!(tty.finish(3), 0);
    assert_eq!(tty.output.remove(&3).map(|bytes| bytes.len()), Some(10_000_000));
    for number in started {
        assert_eq!(tty.finish(number), 0);
    }
    ctl.shell(3, "exit 3");
    assert_eq!(tty.finish(3), 3);
}

#[test]
fn a_host_that_reads_nothing_holds_up_programs_and_no_memory() {
    let agent = Agent::start();
    let (mut ctl, mut tty) = agent.both();
    for number in [3, 5, 7] {
        ctl.execute(number, &["head", "-c", "50000000", "/dev/zero"]);
    }
    crate::support::pause(Duration::from_millis(500));
    let memory = crate::support::status(agent.child.id(), "VmRSS");
    assert!(memory < 30 << 10, "{memory} kB");
    let mut bytes = 0;
    for number in [3, 5, 7] {
        assert_eq!(tty.finish(number), 0);
        bytes +=
            [3, 5, 7].iter().filter_map(|number| tty.output.remove(number)).map(|bytes| bytes.len()).sum::<usize>();
    }
    assert_eq!(bytes, 150_000_000);
}
