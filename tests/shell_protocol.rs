//! Shells: what both ends say to each other, against literal bytes and against chance.
#![cfg(feature = "metadata")]

use std::collections::VecDeque;

use lodger::shell::flow::{BLOCK, WINDOW};
use lodger::shell::message::{self, Message, STDERR, STDIN, STDOUT};
use lodger::shell::{MESSAGE_MAX, client, server};
use lodger::shell::{client::Client, server::Server};

/// Bytes of the largest transfer that upstream's tests make.
const LARGE: usize = (42 << 20) + 7;

/// Seeds of the random transfers, and messages of each random conversation.
const SEEDS: u64 = 40;
const ROUNDS: usize = 20_000;

/// Pseudo-random numbers.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        // The first numbers of neighbouring seeds are alike.
        for _ in 0..8 {
            random.next();
        }
        random
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 8
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}

/// What upstream's test of its service expects, with "null" for a command: both sides of it.
#[test]
fn the_conversation_of_upstreams_test_has_its_bytes() {
    let (mut host, mut guest) = (Client::default(), Server::default());

    let hi = host.data(b"hi").expect("there is credit");
    assert_eq!(hi, [0, 0, b'h', b'i']);
    assert_eq!(guest.receive(&hi).expect("data"), Some(server::Event::Stdin(b"hi")));
    guest.stdin_consumed(2);
    let ack = guest.ack().expect("an ack is due");
    assert_eq!(ack, [1, 0, 0, 0, 0, 2]);
    assert_eq!(host.receive(&ack).expect("an ack"), None);

    let hello = guest.stdout(b"hello").expect("there is credit");
    assert_eq!(hello, b"\x00\x01hello");
    assert_eq!(host.receive(&hello).expect("data"), Some(client::Event::Stdout(b"hello")));
    host.stdout_consumed(5);
    let ack = host.ack().expect("an ack is due");
    assert_eq!(ack, [1, 1, 0, 0, 0, 5]);
    assert_eq!(guest.receive(&ack).expect("an ack"), None);

    let end = guest.stdout_end().expect("the first end");
    assert_eq!(end, [0, 1]);
    assert_eq!(host.receive(&end).expect("an end"), Some(client::Event::StdoutEnd));
    let end = host.end().expect("the first end");
    assert_eq!(end, [0, 0]);
    assert_eq!(guest.receive(&end).expect("an end"), Some(server::Event::StdinEnd));

    // The test's guest says nothing of standard error; ours ends it.
    assert_eq!(host.receive(&[5, 0]).expect("an exit"), Some(client::Event::Exit { success: true }));
    assert_eq!(guest.exit(true), [vec![0, 2], vec![5, 0]]);
}

#[test]
fn five_credits_are_a_message_of_five_bytes() {
    let mut guest = Server::default();
    let bytes = vec![b'x'; 2 * WINDOW];
    for _ in 0..WINDOW / BLOCK {
        assert_eq!(guest.stdout(&bytes).map(|message| message.len()), Some(2 + BLOCK));
    }
    assert_eq!((guest.stdout_room(), guest.stdout(&bytes)), (0, None));
    // Each stream has its own.
    assert_eq!(guest.stderr_room(), BLOCK);
    guest.receive(&[1, 2, 0, 0, 0, 9]).expect("an ack of the other stream");
    assert_eq!(guest.stdout(&bytes), None);
    guest.receive(&[1, 1, 0, 0, 0, 5]).expect("an ack");
    assert_eq!(guest.stdout(&bytes).expect("credit"), b"\x00\x01xxxxx");
    // Counts are added to each other.
    guest.receive(&[1, 1, 0, 0, 0, 3]).expect("an ack");
    guest.receive(&[1, 1, 0, 0, 0, 4]).expect("an ack");
    assert_eq!(guest.stdout(&bytes).expect("credit"), b"\x00\x01xxxxxxx");
}

#[test]
fn more_than_the_window_is_fatal_on_every_stream() {
    let fill = |stream: u8, receive: &mut dyn FnMut(&[u8]) -> bool| {
        for _ in 0..WINDOW / BLOCK {
            assert!(receive(&Message::Data { stream, payload: &[0; BLOCK] }.encode()));
        }
        assert!(!receive(&Message::Data { stream, payload: &[0] }.encode()), "65,537 bytes of stream {stream}");
    };
    let mut guest = Server::default();
    fill(STDIN, &mut |bytes| guest.receive(bytes).is_ok());
    for stream in [STDOUT, STDERR] {
        let mut host = Client::default();
        fill(stream, &mut |bytes| host.receive(bytes).is_ok());
    }
}

/// What waits for the process behind `cat` or the person, and takes random pieces of it.
#[derive(Default)]
struct Consumer {
    held: VecDeque<u8>,
    most: usize,
}

impl Consumer {
    fn put(&mut self, bytes: &[u8]) {
        self.held.extend(bytes);
        self.most = self.most.max(self.held.len());
    }

    fn take(&mut self, random: &mut Random, most: usize) -> Vec<u8> {
        let count = random.below(most + 1).min(self.held.len());
        self.held.drain(..count).collect()
    }
}

/// Sends `total` bytes through a shell that runs `cat`, in lock-step and in random pieces, and compares what comes back.
fn echo(total: usize, seed: u64, most: usize) {
    println!("seed {seed}");
    let random = &mut Random::new(seed);
    let input = random.bytes(total.min(1 << 20));
    // Repeated with a length that is no multiple of any block.
    let byte = |at: usize| input[at % input.len()];
    let (mut host, mut guest) = (Client::default(), Server::default());
    let (mut to_guest, mut to_host) = (VecDeque::new(), VecDeque::new());
    let (mut sent, mut received, mut exited) = (0, 0, false);
    let (mut in_guest, mut in_host, mut in_cat) = (Consumer::default(), Consumer::default(), Vec::new());
    let mut stdin_ended = false;
    while !exited {
        let wanted = random.below(most + 1).min(total - sent);
        let piece: Vec<u8> = (sent..sent + wanted.min(host.room())).map(byte).collect();
        sent += piece.len();
        to_guest.extend(host.data(&piece));
        if sent == total {
            to_guest.extend(host.end());
        }
        for message in to_guest.drain(..) {
            assert!(message.len() <= MESSAGE_MAX, "seed {seed}");
            match guest.receive(&message).expect("an honest client") {
                Some(server::Event::Stdin(bytes)) => in_guest.put(bytes),
                Some(server::Event::StdinEnd) => stdin_ended = true,
                None => {}
                other => panic!("seed {seed}: {other:?}"),
            }
        }
        if in_cat.is_empty() {
            in_cat = in_guest.take(random, most);
            guest.stdin_consumed(in_cat.len());
        }
        to_host.extend(guest.ack());
        if let Some(message) = guest.stdout(&in_cat) {
            in_cat.drain(..message.len() - 2);
            to_host.push_back(message);
        }
        if stdin_ended && in_cat.is_empty() && in_guest.held.is_empty() {
            to_host.extend(guest.exit(true));
        }
        for message in to_host.drain(..) {
            match host.receive(&message).expect("an honest server") {
                Some(client::Event::Stdout(bytes)) => in_host.put(bytes),
                Some(client::Event::Exit { success }) => exited = success,
                None | Some(client::Event::StdoutEnd | client::Event::StderrEnd) => {}
                other => panic!("seed {seed}: {other:?}"),
            }
        }
        let most = if exited { WINDOW } else { most };
        let mut taken = in_host.take(random, most);
        if exited {
            // What had arrived stays readable.
            taken.extend(in_host.held.drain(..));
        }
        host.stdout_consumed(taken.len());
        for came in taken {
            assert_eq!(came, byte(received), "seed {seed}: byte {received}");
            received += 1;
        }
        to_guest.extend(host.ack());
    }
    assert_eq!(received, total, "seed {seed}");
    assert!(in_guest.most <= WINDOW && in_host.most <= WINDOW, "seed {seed}");
}

#[test]
fn forty_two_mebibytes_and_seven_bytes_come_back_intact() {
    echo(LARGE, 42, 40_000);
}

#[test]
fn random_pieces_come_back_intact() {
    for seed in 1..=SEEDS {
        let random = &mut Random::new(seed);
        let most = 1 << random.below(17);
        echo(random.below(20 * most + 10) + 1, seed, most);
    }
}

/// A random message: mostly one that means something, and then mostly whole.
fn noise(random: &mut Random) -> Vec<u8> {
    let (stream, payload) = (random.below(4) as u8, vec![7; random.below(3000)]);
    let (a, b) = (random.next() as u16, random.next() as u16);
    let mut bytes = match random.below(9) {
        0..=2 => Message::Data { stream, payload: &payload }.encode(),
        3 => Message::Ack { stream, count: random.next() as u32 }.encode(),
        4 => Message::Size { columns: a, rows: b }.encode(),
        5 if random.below(200) == 0 => Message::End { stream }.encode(),
        6 if random.below(1000) == 0 => Message::Abort.encode(),
        7 if random.below(1000) == 0 => Message::Exit { success: true }.encode(),
        _ => {
            let length = random.below(8);
            random.bytes(length)
        }
    };
    if random.below(20) == 0 {
        bytes.truncate(random.below(bytes.len() + 1));
    }
    bytes
}

#[test]
fn whatever_comes_is_understood_ignored_or_refused() {
    for seed in 1..=SEEDS {
        println!("seed {seed}");
        let random = &mut Random::new(seed);
        let (mut guest, mut host) = (Server::default(), Client::default());
        // What should be the same: bytes held and events seen.
        let (mut held, mut aborted, mut exited) = (0, false, false);
        for round in 0..ROUNDS / SEEDS as usize {
            let bytes = noise(random);
            if let Some(message) = message::decode(&bytes) {
                let again = message.encode();
                assert!(again == bytes || matches!(message, Message::Exit { .. }), "seed {seed}, round {round}");
            }
            match guest.receive(&bytes) {
                Ok(Some(server::Event::Stdin(payload))) => held += payload.len(),
                Ok(Some(server::Event::Abort)) => aborted = true,
                Ok(event) => assert!(!aborted || event.is_none(), "seed {seed}, round {round}: {event:?}"),
                Err(_) => {
                    guest = Server::default();
                    held = 0;
                }
            }
            assert!(held <= WINDOW, "seed {seed}, round {round}");
            let taken = random.below(held + 1);
            held -= taken;
            guest.stdin_consumed(taken);
            if let Some(ack) = guest.ack() {
                assert!(matches!(message::decode(&ack), Some(Message::Ack { stream: STDIN, count: 1.. })));
            }
            match host.receive(&bytes) {
                Ok(Some(client::Event::Stdout(payload))) => host.stdout_consumed(payload.len()),
                Ok(Some(client::Event::Stderr(payload))) => host.stderr_consumed(payload.len()),
                Ok(Some(client::Event::Exit { .. })) => exited = true,
                Ok(event) => assert!(!exited || event.is_none(), "seed {seed}, round {round}: {event:?}"),
                Err(_) => host = Client::default(),
            }
            while host.ack().is_some() {}
        }
    }
}
