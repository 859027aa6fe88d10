//! Noise on both channels: the agent lives, the next host is served, and nothing stays behind.

use std::fs;
use std::io::{ErrorKind, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::UNIX_EPOCH;

use crate::rig::{ACK, Agent, Ctl, ERROR, NEXT, ctl_message, tty_message};
use crate::support::{children, descriptors, status, wait_until};

/// Connections of noise. As many as leave room in three seconds on a slow machine.
const ROUNDS: u64 = 80;

/// Stands for the path of a file in the folder of the test, where no change of a byte can make it another one.
const FILE: u8 = b'@';

/// Commands that change nothing but the agent. Destroypod (4) is none of them, nor are those for networks (from 19 to 21, and 25); of
/// startpod only what changes nothing.
const COMMANDS: [(u32, &str); 24] = [
    (0, "null"),
    (1, r#"{"containers":[],"shareDir":"","whatever":{"a":[1,2.5e3,"\u00e9\n",null,true]}}"#),
    (2, ""),
    (3, ""),
    (6, r#"{"container":"hyperstart","process":{"stdio":3,"stderr":4,"args":["/bin/cat"]}}"#),
    (6, r#"{"process":{"id":"p","stdio":5,"stderr":6,"args":["/bin/true"],"envs":[{"env":"A","value":"b"}]}}"#),
    (6, r#"{"process":{"id":"t","stdio":7,"terminal":true,"args":["/bin/cat"],"workdir":"/"}}"#),
    (
        6,
        r#"{"process":{"stdio":8,"stderr":9,"args":["/bin/cat"],"rlimits":[{"type":"RLIMIT_CORE","hard":0,"soft":0}]}}"#,
    ),
    (6, r#"{"container":"c","process":{"stdio":1,"stderr":2,"args":["none"],"capabilities":{"ambient":null}}}"#),
    (11, r#"{"seq":7,"row":24,"column":80}"#),
    (11, r#"{"container":"hyperstart","process":"t","row":24,"column":80}"#),
    (12, ""),
    (13, "null"),
    (15, r#"{"container":"","file":"@"}content"#),
    (16, r#"{"container":"hyperstart","file":"@"}"#),
    (17, r#"{"id":"c","rootfs":"r","process":{"stdio":10,"stderr":11,"args":["/bin/cat"]},"restartPolicy":"never"}"#),
    (18, r#"{"container":"c","signal":9,"allProcesses":true}"#),
    (18, r#"{"container":"hyperstart","signal":15}"#),
    (22, r#"{"container":"c"}"#),
    (23, r#"{"container":"c","format":"json","psargs":["-ef"]}"#),
    (23, r#"{"container":"c","format":"table"}"#),
    (24, r#"{"container":"hyperstart","process":"p","signal":10}"#),
    (24, r#"{"process":"3","signal":19}"#),
    (99, "[[[[{}]]]]"),
];

/// xorshift64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below this one, which is not 0.
    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 8) as usize % end
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }

    /// Changes a byte or a few: other bits, one less, one more, the end cut off, a piece twice.
    fn change(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len() + 1);
            let has_one = at < bytes.len();
            match self.below(6) {
                // Another name would be one in the agent's own folder, which is that of the machine.
                0 | 1 if has_one && bytes[at] != FILE => bytes[at] ^= 1 << self.below(8),
                2 if has_one => drop(bytes.remove(at)),
                3 => bytes.insert(at, self.next() as u8),
                4 => bytes.truncate(at),
                _ => {
                    let piece = bytes[at..].to_vec();
                    bytes.truncate(at + self.below(piece.len() + 1));
                    bytes.extend(piece);
                }
            }
        }
    }

    /// Sends bytes in pieces of any size. An end in between is the agent's right.
    fn send(&mut self, socket: &mut UnixStream, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let most = [1, 20, 500, 20_000][self.below(4)];
            let (piece, rest) = bytes.split_at(bytes.len().min(1 + self.below(most)));
            match socket.write_all(piece) {
                Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => return,
                sent => sent.expect("the agent reads"),
            }
            bytes = rest;
        }
    }
}

fn seeded() -> Random {
    let seed = UNIX_EPOCH.elapsed().map_or(1, |now| now.as_nanos() as u64) | 1;
    eprintln!("seed {seed}");
    Random(seed)
}

/// A command, as it should be or changed.
fn command(random: &mut Random, file: &str) -> Vec<u8> {
    let (code, text) = COMMANDS[random.below(COMMANDS.len())];
    let mut payload = text.as_bytes().to_vec();
    if random.below(2) == 0 {
        random.change(&mut payload);
    }
    let mut named = Vec::new();
    for byte in payload {
        if byte == FILE { named.extend(file.bytes()) } else { named.push(byte) }
    }
    ctl_message(code, &named)
}

/// Reads to the end what a ctl channel says, which began with READY: bytes that were acknowledged, and answers.
fn replies(ctl: &mut Ctl) -> (usize, usize) {
    let (mut acknowledged, mut answers) = (0, 0);
    while let Some((code, payload)) = ctl.receive() {
        match code {
            NEXT => acknowledged += u32::from_be_bytes(payload.try_into().expect("four bytes")) as usize,
            ACK | ERROR => answers += 1,
            code => panic!("code {code}"),
        }
    }
    (acknowledged, answers)
}

fn ctl_round(agent: &Agent, random: &mut Random) {
    let file = agent.path("file");
    let file = file.to_str().expect("a text");
    let count = 1 + random.below(12);
    let mut bytes: Vec<u8> = (0..count).flat_map(|_| command(random, file)).collect();
    let mut ctl = agent.ctl();
    let is_whole = random.below(3) > 0;
    if !is_whole {
        // A length that is another one, or the end of everything in the midst of it. Not a code: that could be one of the others.
        let length = random.next() as u32 >> random.below(32);
        bytes.extend([12u32.to_be_bytes(), length.to_be_bytes()].concat());
        let tail = random.below(30);
        bytes.extend(vec![0xff; tail]);
        bytes.truncate(bytes.len() - random.below(9));
    }
    random.send(&mut ctl.socket, &bytes);
    if random.below(8) == 0 {
        return;
    }
    let _ = ctl.socket.shutdown(Shutdown::Write);
    let (acknowledged, answers) = replies(&mut ctl);
    if is_whole {
        assert_eq!((acknowledged, answers), (bytes.len(), count));
    }
    assert!(acknowledged <= bytes.len() && answers >= count, "{acknowledged} of {}, {answers} of {count}", bytes.len());
}

fn tty_round(agent: &Agent, random: &mut Random) {
    let mut tty = agent.tty();
    let mut bytes = Vec::new();
    for _ in 0..random.below(30) {
        let sequence = if random.below(5) > 0 { random.next() % 12 } else { random.next() };
        let length = [0, 0, 1, 10, 5000][random.below(5)];
        bytes.extend(tty_message(sequence, &random.bytes(length)));
    }
    if random.below(3) == 0 {
        bytes.extend(random.next().to_be_bytes());
        bytes.extend((random.next() as u32 >> random.below(32)).to_be_bytes());
        let tail = random.below(30);
        bytes.extend(random.bytes(tail));
    }
    // Some of them have somebody to go to.
    let mut ctl = agent.ctl();
    for code in [6, 6, 6, 17] {
        let of_code: Vec<&str> = COMMANDS.iter().filter(|(other, _)| *other == code).map(|(_, text)| *text).collect();
        ctl.ask(code, of_code[random.below(of_code.len())].as_bytes());
    }
    random.send(&mut tty.socket, &bytes);
    if random.below(2) == 0 {
        let _ = tty.socket.shutdown(Shutdown::Write);
        while tty.receive().is_some() {}
    }
}

/// Both channels, as a host uses them that knows what it does; and somebody else besides.
fn is_served(agent: &Agent) {
    let (mut ctl, mut tty) = agent.both();
    assert_eq!(ctl.ask(12, b""), (ACK, Vec::new()));
    ctl.shell(1003, "read line; echo $line; exit 3");
    tty.send(1003, b"served\n");
    assert_eq!((tty.finish(1003), tty.text(1003).as_str()), (3, "served\n"));
    assert_eq!(agent.call("agent.ping")["Status"], 0);
}

fn threads(agent: &Agent) -> usize {
    fs::read_dir(format!("/proc/{}/task", agent.child.id())).map_or(0, Iterator::count)
}

#[test]
fn noise_ends_a_channel_at_most_and_leaves_nothing_behind() {
    let mut random = seeded();
    let agent = Agent::start();
    let pid = agent.child.id();
    is_served(&agent);
    wait_until("all is quiet", || children(pid).is_empty());
    let (held, most) = (descriptors(pid), threads(&agent));
    for round in 0..ROUNDS {
        match random.below(3) {
            0 => tty_round(&agent, &mut random),
            _ => ctl_round(&agent, &mut random),
        }
        assert_eq!(agent.ctl().ask(12, b""), (ACK, Vec::new()), "round {round}");
        if round % 16 == 0 {
            is_served(&agent);
        }
    }
    is_served(&agent);
    wait_until("no program is left, alive or dead", || children(pid).is_empty());
    wait_until("no descriptor is left", || descriptors(pid) <= held);
    wait_until("no thread is left", || threads(&agent) <= most);
    let memory = status(pid, "VmRSS");
    assert!(memory < 30 << 10, "{memory} kB");
}
