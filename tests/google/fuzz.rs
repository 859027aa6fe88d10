//! Requests that chance has changed, against a real agent. Every run has a seed, and prints it; `LODGER_SEED` repeats one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::client::Shown;
use crate::monitor::{BAD_JSON, CONNECTION_ERROR, PING, PONG};
use crate::support::{status, wait_until};
use crate::ways::PinnedAgent;
use crate::weather::Dice;

const CONNECTIONS: usize = 3_000;

/// Clients at once.
const CLIENTS: usize = 4;

/// The most memory that the agent may ever have had, in kB.
const PEAK_KB: u64 = 24 << 10;

/// What is changed: nothing here does anything, and no change of a few bytes makes a request of it that does.
const REQUESTS: [&[u8]; 6] = [
    PING,
    br#"{"Command":"agent.info"}"#,
    b" {\"a\": [1, -2.5e+3, true, null, {}], \"COMMAND\" : \"agent.ping\"}\n",
    br#"{"command":"agent.info","Command":"agent.ping","x":"\u00e9\ud83d\ude00\\\"{}"}"#,
    "{\"\u{e9}\":\"\u{20ac}}{\",\"Command\":\"agent.pin\"}".as_bytes(),
    br#"{"a":{"b":{"c":[[[[]]]]}},"Command":"agent.ping"}{"Command":"agent.info"}"#,
];

/// What is put in.
const PIECES: [&[u8]; 24] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"\\",
    b",",
    b":",
    b"\0",
    b"\xff",
    b"\xc3",
    b"\xe2\x80\xa8",
    b" ",
    b"\n",
    b"null",
    b"1e9",
    b"-",
    b"\\u0041",
    b"\\ud800",
    b"Command",
    b"\"Command\":null,",
    b"\"command\":\"agent.ping\",",
    b"[[[[[[[[",
    b"{\"\":",
];

fn changed(dice: &mut Dice) -> Vec<u8> {
    let mut request = REQUESTS[dice.below(REQUESTS.len() as u64) as usize].to_vec();
    for _ in 0..dice.below(5) {
        let at = dice.below(request.len() as u64 + 1) as usize;
        let to = (at + dice.below(8) as usize).min(request.len());
        match dice.below(7) {
            0 if at < request.len() => request[at] ^= 1 << dice.below(8),
            1 if at < request.len() => request[at] = dice.roll() as u8,
            2 => request.truncate(at),
            3 => _ = request.drain(at..to),
            4 => {
                let piece = request[at..to].to_vec();
                let times = dice.below(40) as usize;
                request.splice(at..at, piece.repeat(times));
            }
            _ => {
                let piece = PIECES[dice.below(PIECES.len() as u64) as usize];
                request.splice(at..at, piece.iter().copied());
            }
        }
    }
    request
}

/// The status of a response, if it is one that these requests may have.
fn status_of(response: &[u8]) -> Option<u64> {
    let value: serde_json::Value = serde_json::from_slice(response).ok()?;
    let number = value.get("Status")?.as_u64()?;
    let message = value.get("StatusMessage")?.as_str()?;
    let right = match number {
        0 => message.is_empty(),
        10 | 12 => !message.is_empty(),
        101 => response == crate::monitor::NO_HANDLER,
        102 => response == BAD_JSON,
        103 => response == CONNECTION_ERROR,
        _ => false,
    };
    let begins = format!("{{\"Status\":{number},\"StatusMessage\":\"");
    (right && response.starts_with(begins.as_bytes())).then_some(number)
}

/// Sends one, in pieces or whole, and gives the status of the response.
fn send(agent: &PinnedAgent, dice: &mut Dice, request: &[u8]) -> Result<u64, String> {
    let mut client = agent.connect();
    let size = if dice.below(3) == 0 { 1 + dice.below(9) as usize } else { request.len().max(1) };
    request.chunks(size).for_each(|piece| client.write_what_it_takes(piece));
    // What is not complete would be waited for.
    client.end_writing();
    let response = client.rest();
    status_of(&response).ok_or_else(|| format!("{:?} has the response {:?}", Shown(request), Shown(&response)))
}

#[test]
fn chance_finds_no_request_that_harms_the_agent() {
    let seed = std::env::var("LODGER_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) ^ 0x5eed_0000);
    println!("seed {seed}");
    let agent = PinnedAgent::start();
    let (before, sent) = (agent.settled(), AtomicUsize::new(0));
    let count = &|client: u64| {
        let (mut dice, mut seen) = (Dice::new(seed.wrapping_add(client << 32)), BTreeMap::<u64, u32>::new());
        while sent.fetch_add(1, Ordering::Relaxed) < CONNECTIONS {
            let request = changed(&mut dice);
            let status = send(&agent, &mut dice, &request).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
            *seen.entry(status).or_default() += 1;
        }
        seen
    };
    let seen: Vec<_> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS as u64).map(|client| scope.spawn(move || count(client))).collect();
        clients.into_iter().map(|client| client.join().expect("every request has its answer")).collect()
    });
    println!("statuses and how often: {seen:?}");
    // Chance has come everywhere.
    for status in [0, 10, 101, 102, 103] {
        assert!(seen.iter().any(|seen| seen.contains_key(&status)), "seed {seed}: never {status}");
    }
    assert_eq!(agent.connect().ask(PING), PONG);
    wait_until("everything is given back", || agent.numbers() == before);
    let peak = status(agent.pid(), "VmHWM");
    println!("peak {peak} kB");
    assert!(peak < PEAK_KB, "seed {seed}: the agent has had {peak} kB");
}
