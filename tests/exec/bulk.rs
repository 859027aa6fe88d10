//! Much data, slow peers, and when output counts as complete.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use lodger::wire::frame::Frame;

use crate::Left;
use crate::support::{Agent, PATIENCE, Peer, cpu_ticks, data, exec, lives, run, shell, status, wait_until};

/// Kilobytes that the agent may have in memory whatever its peers do.
const RSS_MAX_KB: u64 = 16 << 10;

fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let step = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(step).collect()
}

#[test]
fn ten_megabytes_come_back_as_they_went() {
    let agent = Agent::start();
    let mut peer = agent.connect();
    peer.send(&Frame::Exec { id: 0, exec: exec(&["cat"]) });
    let bytes = pattern(10_000_000);
    let mut writer = peer.socket.try_clone().expect("a descriptor");
    let input = bytes.clone();
    let sender = std::thread::spawn(move || {
        for piece in input.chunks(32 << 10) {
            writer.write_all(&data(0, 0, piece).to_bytes()).expect("the agent reads");
        }
        writer.write_all(&Frame::Eof { id: 0, stream: 0 }.to_bytes()).expect("the agent reads");
    });
    let finished = peer.finish(0);
    sender.join().expect("all was sent");
    assert!(finished.stream(1) == bytes, "{} bytes", finished.stream(1).len());
}

/// Counts payload of stream 1 up to the Exit without decoding more than heads: (bytes, exit seen).
fn count(peer: &mut Peer, pause: impl Fn(usize)) -> usize {
    let mut scanner = lodger::wire::scan::Scanner::new(1 << 20);
    let (mut buffer, mut held, mut sum) = (vec![0; 2 << 20], 0, 0);
    loop {
        let read = peer.socket.read(&mut buffer[held..]).expect("bytes");
        assert!(read > 0, "the connection ended after {sum} bytes");
        held += read;
        let mut start = 0;
        while let Some(length) = scanner.find_end(&buffer[start..held]).expect("CBOR") {
            match Frame::decode(&buffer[start..start + length]).expect("a frame") {
                Frame::Data { stream: 1, data, .. } => sum += data.len(),
                Frame::Exit { code: 0, .. } => return sum,
                Frame::Eof { .. } => {}
                other => panic!("{other:?}"),
            }
            start += length;
        }
        buffer.copy_within(start..held, 0);
        held -= start;
        pause(sum);
    }
}

#[test]
fn a_gigabyte_for_a_reader_who_pauses_takes_no_memory() {
    let agent = Agent::start();
    let mut peer = agent.connect();
    peer.send(&Frame::Exec { id: 0, exec: exec(&["head", "-c", "1G", "/dev/zero"]) });
    let start = Instant::now();
    let pauses = std::cell::Cell::new(0);
    let sum = count(&mut peer, |sum| {
        if sum >> 28 > pauses.get() {
            pauses.set(pauses.get() + 1);
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let peak = status(agent.pid(), "VmHWM");
    println!("{sum} bytes in {:?}, at most {peak} kB", start.elapsed());
    assert_eq!(sum, 1 << 30);
    assert!(peak < RSS_MAX_KB, "{peak} kB");
}

/// Lets a program write to a client that does not read, and gives the agent's memory once it has come to rest.
fn unread(script: &str, programs: u32) -> u64 {
    let agent = Agent::start();
    let mut peer = agent.hello();
    for id in 0..programs {
        peer.send(&Frame::Exec { id, exec: shell(script) });
    }
    let mut ticks = u64::MAX;
    wait_until("the agent has come to rest", || {
        let before = std::mem::replace(&mut ticks, cpu_ticks(agent.pid()));
        std::thread::sleep(Duration::from_millis(100));
        before != u64::MAX && cpu_ticks(agent.pid()) <= before
    });
    let peak = status(agent.pid(), "VmHWM");
    println!("{programs} x {script}: at most {peak} kB");
    drop(peer);
    wait_until("the programs are ended", || crate::support::children(agent.pid()).is_empty());
    peak
}

#[test]
fn a_client_that_never_reads_cannot_fill_the_agents_memory() {
    assert!(unread("exec yes", 1) < RSS_MAX_KB);
}

#[test]
fn a_program_that_ignores_a_megabyte_of_input_is_killed_at_once() {
    let agent = Agent::start();
    let mut peer = agent.connect();
    peer.send(&Frame::Exec { id: 0, exec: exec(&["sleep", "60"]) });
    for _ in 0..32 {
        peer.send(&data(0, 0, &vec![0; 32 << 10]));
    }
    let start = Instant::now();
    peer.send(&Frame::Signal { id: 0, signal: 9 });
    assert_eq!(peer.finish(0).code, 137);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn a_background_process_that_holds_the_output_does_not_hold_up_the_exit() {
    let agent = Agent::start();
    let mut peer = agent.connect();
    peer.send(&Frame::Exec { id: 0, exec: shell("sleep 60 & echo $!") });
    let sleeper = Left(peer.line(0, 1).parse().expect("a number"));
    assert_eq!(peer.finish(0).code, 0);
    assert!(lives(sleeper.0), "neither is it waited for nor ended");
}

#[test]
fn output_that_comes_shortly_after_the_programs_end_is_delivered() {
    let agent = Agent::start();
    // All together takes longer than the agent waits for one of them. On a busy machine one may come too late, but not each time.
    let script = "(for i in 1 2 3 4 5 6; do sleep 0.05; echo $i; done) & exit 0";
    let is_whole = |_| {
        let finished = run(&agent, shell(script));
        assert_eq!(finished.code, 0);
        finished.stdout() == "1\n2\n3\n4\n5\n6\n"
    };
    assert!((0..5).any(is_whole));
}

/// Bytes of stream 1 up to the exit, when `head` has been read already.
fn everything_behind(peer: &mut Peer, head: &[u8]) -> usize {
    let mut all = head.to_vec();
    let (mut start, mut sum) = (0, 0);
    loop {
        while let Some(length) = lodger::wire::scan::Scanner::new(1 << 20).find_end(&all[start..]).expect("CBOR") {
            match Frame::decode(&all[start..start + length]).expect("a frame") {
                Frame::Data { stream: 1, data, .. } => sum += data.len(),
                Frame::Exit { .. } => return sum,
                _ => {}
            }
            start += length;
        }
        let mut piece = vec![0; 256 << 10];
        let count = peer.socket.read(&mut piece).expect("bytes");
        assert!(count > 0, "the connection ended");
        all.extend_from_slice(&piece[..count]);
    }
}

#[test]
fn both_outputs_move_while_the_client_is_slow() {
    let agent = Agent::start();
    let mut peer = agent.connect();
    peer.send(&Frame::Exec { id: 0, exec: shell("yes & exec yes err >&2") });
    let (start, mut seen) = (Instant::now(), [0; 3]);
    while seen[1] == 0 || seen[2] == 0 {
        assert!(start.elapsed() < PATIENCE, "{seen:?}");
        if let Ok(Frame::Data { stream, data, .. }) = Frame::decode(&peer.receive().expect("a frame")) {
            seen[stream as usize] += data.len();
        }
    }
}

#[test]
fn many_small_writes_take_no_more_memory_than_few_large_ones() {
    assert!(unread("while :; do echo; done", 1) < RSS_MAX_KB);
}

#[test]
fn input_for_a_slow_program_does_not_pile_up() {
    let agent = Agent::start();
    let mut peer = agent.connect();
    let slow = "while dd bs=32k count=1 2>/dev/null | grep -q .; do :; done; echo over";
    peer.send(&Frame::Exec { id: 0, exec: shell(slow) });
    let frame = data(0, 0, &vec![b'x'; 32 << 10]).to_bytes();
    for _ in 0..800 {
        peer.send_bytes(&frame);
    }
    let peak = status(agent.pid(), "VmHWM");
    println!("26 MB of input: at most {peak} kB");
    assert!(peak < RSS_MAX_KB, "{peak} kB");
    peer.send(&Frame::Signal { id: 0, signal: 9 });
    peer.finish(0);
}

#[test]
fn output_that_waits_for_a_slow_client_is_not_cut() {
    let agent = Agent::start();
    for length in [1_300_000, 1_500_000, 1_700_000] {
        let mut peer = agent.connect();
        peer.send(&Frame::Exec { id: 0, exec: exec(&["head", "-c", &length.to_string(), "/dev/zero"]) });
        for _ in 0..4 {
            std::thread::sleep(Duration::from_millis(100));
        }
        // One read makes room; then the client pauses again.
        let mut piece = vec![0; 300 << 10];
        let mut taken = 0;
        while taken < 250 << 10 {
            taken += peer.socket.read(&mut piece[taken..]).expect("bytes");
        }
        std::thread::sleep(Duration::from_millis(50));
        let rest = everything_behind(&mut peer, &piece[..taken]);
        assert_eq!(rest, length, "of {length}");
    }
}

#[test]
fn many_programs_for_a_client_that_reads_a_little_share_one_bound() {
    let agent = Agent::start();
    let mut peer = agent.hello();
    for id in 0..60 {
        peer.send(&Frame::Exec { id, exec: shell("yes & exec yes >&2") });
    }
    // Enough for the pipes to be found full, and made larger.
    let mut taken = 0;
    let mut piece = vec![0; 256 << 10];
    while taken < 30 << 20 {
        taken += peer.socket.read(&mut piece).expect("bytes");
    }
    std::thread::sleep(Duration::from_millis(100));
    let peak = status(agent.pid(), "VmHWM");
    println!("120 streams: at most {peak} kB");
    assert!(peak < RSS_MAX_KB, "{peak} kB");
}
