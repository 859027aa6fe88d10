//! Bulk data through a session, and others beside it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::{HYPER, STREAM, frame, running};
use crate::support::{Agent, cpu_ticks, pause, status, wait_until, wait_until_at_rest};

const SIZE: usize = 64 << 20;

/// Bytes of one frame of input.
const PIECE: usize = 32 << 10;

/// Bytes that repeat only after a long time.
fn pattern() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(SIZE);
    while bytes.len() < SIZE {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes
}

#[test]
fn bulk_data_goes_through_cat_beside_an_idle_session_and_a_flood() {
    let agent = Agent::start();
    let (_idle_runtime, mut idle, _) = running(&agent, "idle", "read x; echo $x");
    let (_flood_runtime, mut flood, _) = running(&agent, "flood", "exec yes");
    let (mut runtime, mut shim, _) = running(&agent, "cat", "exec cat");
    let data = pattern();
    let (over, flooded) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Acquire) {
                flooded.fetch_add(flood.next().payload.len() as u64, Ordering::Relaxed);
            }
        });
        let mut socket = shim.socket.try_clone().expect("a descriptor");
        let data = &data;
        scope.spawn(move || {
            use std::io::Write;
            for piece in data.chunks(PIECE).chain([&[][..]]) {
                socket.write_all(&frame(STREAM, 0, piece)).expect("the agent reads");
            }
        });
        let start = Instant::now();
        let (stdout, stderr, code) = shim.finish();
        over.store(true, Ordering::Release);
        println!("{:?} for 64 MiB both ways", start.elapsed());
        assert!(stdout == *data, "{} bytes are not what was sent", stdout.len());
        assert_eq!((stderr.len(), code), (0, 0));
    });
    assert!(flooded.load(Ordering::Relaxed) > 0);
    idle.send(STREAM, 0, "awake\n");
    assert_eq!(idle.finish().0, b"awake\n");
    runtime.done(HYPER, json!({"hyperName": "ping"}));
    let peak = status(agent.pid(), "VmHWM");
    println!("peak {peak} kB");
    assert!(peak < 24 << 10, "{peak} kB");
}

#[test]
fn a_client_that_reads_nothing_stops_its_own_process_and_costs_no_time() {
    let agent = Agent::start();
    let (mut runtime, shim, _) = running(&agent, "vm", "while :; do echo; done");
    let mut before = 0;
    wait_until("it has stopped", || {
        pause(Duration::from_millis(200));
        let now = cpu_ticks(agent.pid());
        std::mem::replace(&mut before, now) == now
    });
    runtime.done(HYPER, json!({"hyperName": "ping"}));
    let peak = status(agent.pid(), "VmHWM");
    assert!(peak < 16 << 10, "{peak} kB");
    drop(shim);
}

#[test]
fn input_that_is_not_read_stops_the_client_and_its_departure_is_seen() {
    let agent = Agent::start();
    let (mut runtime, mut shim, token) = running(&agent, "vm", "sleep 60");
    shim.socket.set_write_timeout(Some(Duration::from_millis(300))).expect("a time-out");
    let piece = frame(STREAM, 0, &vec![0; PIECE]);
    let mut sent = 0;
    while std::io::Write::write_all(&mut shim.socket, &piece).is_ok() {
        sent += PIECE;
        assert!(sent < 8 << 20, "it takes everything");
    }
    wait_until_at_rest(agent.pid());
    drop(shim);
    let mut shim = crate::client::over(&agent);
    shim.connect(&token);
    assert_eq!(shim.ask(6, json!({"signalNumber": 9})), crate::client::exited(137));
    runtime.done(HYPER, json!({"hyperName": "ping"}));
}
