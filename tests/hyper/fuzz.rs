//! Noise on both channels: the agent lives, and the next host is served.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::UNIX_EPOCH;

use crate::rig::{ACK, Agent, ctl_message, tty_message};

/// xorshift64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[test]
fn headers_at_random_end_a_channel_at_most() {
    let seed = UNIX_EPOCH.elapsed().map_or(1, |now| now.as_nanos() as u64) | 1;
    eprintln!("seed {seed}");
    let mut random = Random(seed);
    let agent = Agent::start();
    for round in 0..150 {
        let name = ["ctl", "tty"][round % 2];
        let mut socket = UnixStream::connect(agent.path(name)).expect("the agent accepts");
        let mut bytes = Vec::new();
        for _ in 0..random.next() % 8 {
            // Not a command that would change this machine: destroypod is 4, and those for networks are from 19 on.
            let code = [0, 2, 3, 8, 11, 12, 13, 16, 22, 23][random.next() as usize % 10];
            let good = match name {
                "ctl" => ctl_message(code, &random.next().to_be_bytes()),
                _ => tty_message(random.next() % 9, &random.next().to_be_bytes()[..random.next() as usize % 9]),
            };
            bytes.extend(good);
        }
        let place = bytes.len();
        bytes.extend(if random.next() < 1 << 63 { vec![0, 0, 0, 12] } else { vec![0; 8] });
        bytes.extend((random.next() as u32 >> (random.next() % 32)).to_be_bytes());
        bytes.extend(random.next().to_be_bytes());
        bytes.truncate(place + random.next() as usize % 20);
        socket.write_all(&bytes).expect("the agent reads");
        let _ = socket.shutdown(std::net::Shutdown::Write);
        let mut waste = Vec::new();
        let _ = socket.read_to_end(&mut waste);
    }
    let (mut ctl, mut tty) = agent.both();
    assert_eq!(ctl.ask(12, b""), (ACK, Vec::new()));
    ctl.shell(3, "exit 3");
    assert_eq!(tty.finish(3), 3);
}
