//! What nobody should send: it ends its own connection, at most, and no other one notices.

use std::io::Write;
use std::net::Shutdown;
use std::thread;
use std::time::Instant;

use serde_json::json;

use crate::client::{COMMAND, Client, HYPER, NOTIFICATION, STREAM, exec_command, failure, frame, over, running};
use crate::support::{Agent, PATIENCE, descriptors, status, wait_until};

/// Another client, who is served all the time.
fn is_served(other: &mut Client) {
    other.done(HYPER, json!({"hyperName": "ping"}));
}

#[test]
fn each_byte_of_the_header_may_be_anything() {
    let agent = Agent::start();
    let mut other = over(&agent);
    other.register("vm", 0);
    let good = frame(COMMAND, HYPER, br#"{"hyperName":"ping"}"#);
    for at in 0..12 {
        for value in 0..=u8::MAX {
            // As the first byte they choose other protocols, which have their own tests.
            if at == 0 && value != 0 {
                continue;
            }
            let mut client = over(&agent);
            client.write(&frame(COMMAND, 2, br#"{"containerId":"vm"}"#));
            assert_eq!(client.next().kind, 1);
            let mut bytes = good.clone();
            bytes[at] = value;
            client.write(&bytes);
            let is_fine = match at {
                // No containing header, no payload: more is waited for.
                2 => value == 3,
                6 => value & 0xf == 0,
                // A disconnect has an answer here, as everything has.
                7 => value < 7,
                3..=5 => true,
                _ => value == good[at],
            };
            if is_fine {
                assert_eq!(client.next().opcode, bytes[7], "byte {at} is {value:#x}");
            }
            client.socket.shutdown(std::net::Shutdown::Write).expect("it is open");
            while client.receive().is_some() {}
        }
        is_served(&mut other);
    }
}

#[test]
fn headers_that_are_too_short_and_payloads_that_are_too_long_only_end_the_connection() {
    let agent = Agent::start();
    let mut other = over(&agent);
    other.register("vm", 0);
    let peak = status(agent.pid(), "VmHWM");
    for words in 0..3 {
        let mut client = over(&agent);
        client.write(&[0, 2, words, 0, 0, 0, 0, 3, 0, 0, 0, 0]);
        client.ends();
    }
    for length in [(1_u32 << 20) + 1, 1 << 30, u32::MAX] {
        let mut client = over(&agent);
        let [a, b, c, d] = length.to_be_bytes();
        client.write(&[0, 2, 3, 0, 0, 0, 0, 3, a, b, c, d]);
        client.ends();
    }
    for bytes in [&b"\0\x01"[..], b"\0\x03", b"\0\0", b"\0\x02\x03\0\0\0\x04", b"\0\x02\x03\0\0\0\0\xff"] {
        let mut client = over(&agent);
        client.write(bytes);
        client.ends();
    }
    is_served(&mut other);
    assert!(status(agent.pid(), "VmHWM") < peak + 2048, "nothing is allocated for them");
}

#[test]
fn the_longest_payload_is_taken() {
    let agent = Agent::start();
    let mut client = over(&agent);
    client.register("vm", 0);
    let head = r#"{"hyperName":"ping","x":""#;
    let payload = format!("{head}{}\"}}", "x".repeat((1 << 20) - head.len() - 2));
    assert_eq!(payload.len(), 1 << 20);
    client.done(HYPER, &payload);
    client.write(&frame(COMMAND, HYPER, format!("{payload} ").as_bytes())[..12]);
    client.ends();
}

#[test]
fn frames_that_only_a_proxy_sends_end_the_connection() {
    let agent = Agent::start();
    let mut other = over(&agent);
    other.register("vm", 0);
    for (kind, opcode) in [(1, HYPER), (0x11, 0), (NOTIFICATION, 0), (STREAM, 1), (STREAM, 2), (STREAM, 0)] {
        let mut client = over(&agent);
        client.send(kind, opcode, "{}");
        client.ends();
    }
    is_served(&mut other);
}

#[test]
fn clients_that_go_at_any_byte_leave_nothing_behind() {
    let agent = Agent::start();
    let mut other = over(&agent);
    other.register("vm", 1);
    is_served(&mut other);
    let numbers = || (descriptors(agent.pid()), status(agent.pid(), "Threads"));
    let mut before = numbers();
    wait_until("the agent has settled", || {
        let now = numbers();
        std::mem::replace(&mut before, now) == now && now.1 == 2
    });
    let bytes = frame(COMMAND, 2, br#"{"containerId":"vm"}"#);
    for length in 1..bytes.len() {
        over(&agent).write(&bytes[..length]);
    }
    wait_until("everything is given back", || numbers() == before);
    is_served(&mut other);
}

#[test]
fn what_crashes_or_hangs_upstream_is_survived() {
    let agent = Agent::start();
    let (mut runtime, mut shim, token) = running(&agent, "vm", "read x; exit 4");
    // The same token for a second command.
    runtime.refused(
        HYPER,
        exec_command(&token, "true"),
        &format!("token {token} has its process, or is about to have it"),
    );
    // Commands without a token, one after the other; and a container without a process.
    for id in ["a", "b", "c"] {
        let process = json!({"args": ["true"]});
        runtime.done(HYPER, json!({"hyperName": "execcmd", "data": {"process": process}}));
        runtime.done(HYPER, json!({"hyperName": "newcontainer", "data": {"id": id, "process": process}}));
    }
    assert_eq!(runtime.ask(HYPER, json!({"hyperName": "newcontainer", "data": {}})).kind, 0x11);
    // An unknown command, and one that is too long for upstream, after which its machine answers no more.
    assert_eq!(runtime.ask(HYPER, json!({"hyperName": "what"})), failure(HYPER, "unknown command 'what'"));
    runtime.refused(HYPER, json!({"hyperName": "ping", "data": "x".repeat(10_231)}), "message too long 10241");
    is_served(&mut runtime);
    // A shim that comes a second time.
    drop(shim);
    shim = over(&agent);
    shim.connect(&token);
    shim.send(STREAM, 0, "\n");
    assert_eq!(shim.finish().2, 4);
    runtime.refused(
        HYPER,
        exec_command(&token, "true"),
        &format!("token {token} has its process, or is about to have it"),
    );
    is_served(&mut runtime);
}

/// Random numbers, the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end) as usize
    }
}

#[test]
fn frames_of_any_kind_in_any_order_harm_nobody_else() {
    let seed = 0x5eed_1234_abcd_0001;
    println!("seed {seed:#x}");
    let mut random = Random(seed);
    let agent = Agent::start();
    let mut other = over(&agent);
    let token = other.register("vm", 1).remove(0);
    let mut payloads: Vec<String> = [
        "",
        "{}",
        "null",
        "[",
        r#"{"containerId":"vm"}"#,
        r#"{"containerId":"x","ctlSerial":"a","ioSerial":"b","numIOStreams":2}"#,
        r#"{"hyperName":"execcmd","data":{"process":{"args":["true"]}}}"#,
        r#"{"hyperName":"newcontainer","data":{"id":"c","process":{"args":["true"]}}}"#,
        r#"{"hyperName":"killcontainer","data":{"container":"c","signal":9}}"#,
        r#"{"hyperName":"winsize","data":{"seq":-3,"row":99999999,"column":-1}}"#,
        r#"{"hyperName":"signalprocess","data":{"process":"3","signal":9}}"#,
        r#"{"hyperName":"removecontainer","data":[]}"#,
        r#"{"signalNumber":9}"#,
        r#"{"signalNumber":28,"columns":99999999999,"rows":-5}"#,
    ]
    .map(str::to_owned)
    .into();
    payloads.push(json!({ "token": token }).to_string());
    for _ in 0..400 {
        let mut client = over(&agent);
        let mut bytes = vec![];
        for _ in 0..1 + random.below(6) {
            let kind = [0, 0, 0, 0, 0, 2, 3][random.below(7)];
            let mut one = frame(kind, random.below(7) as u8, payloads[random.below(payloads.len() as u64)].as_bytes());
            if random.below(4) == 0 {
                let at = 1 + random.below(one.len() as u64 - 1);
                one[at] = random.below(256) as u8;
            }
            bytes.extend(one);
        }
        use std::io::Write;
        // It may have closed already.
        let _ = client.socket.write_all(&bytes);
    }
    is_served(&mut other);
}

#[test]
fn a_client_that_reads_no_more_and_goes_on_costs_no_memory() {
    let agent = Agent::start();
    let (_runtime, mut shim, token) = running(&agent, "vm", "read line; echo; exec sleep 1000");
    shim.write(&frame(STREAM, 0, b"\n"));
    // The answer cannot be written, which ends the connection; what its client had sent is still taken, but not what it sends for ever.
    shim.socket.shutdown(Shutdown::Read).expect("a shutdown");
    // So many that there is always more, and so small that none is cut.
    let piece = frame(STREAM, 0, &[b'x'; 8192]);
    let writers: Vec<_> = (0..12)
        .map(|_| {
            let (mut socket, piece) = (shim.socket.try_clone().expect("a descriptor"), piece.clone());
            thread::spawn(move || {
                let start = Instant::now();
                let mut count = 0;
                while count < 64 << 20 && start.elapsed() < PATIENCE {
                    match socket.write(&piece) {
                        Ok(written) => count += written,
                        Err(_) => return true,
                    }
                }
                false
            })
        })
        .collect();
    assert!(writers.into_iter().all(|writer| writer.join().expect("it ends")), "it is read for ever");
    let peak = status(agent.pid(), "VmHWM");
    assert!(peak < 24 << 10, "{peak} kB");
    let mut shim = over(&agent);
    shim.connect(&token);
}
