//! Rows about the command monitor: what a request costs, alone and among many, and what bad ones cost in memory.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::agent::Agent;
use crate::floor::{OneProcessor, Partner};
use crate::{Measured, Skipped, alternate, latency, memory};

/// Requests of one measurement, and measurements of a row.
const REQUESTS: u32 = 200;
const ROUNDS: usize = 15;

/// Clients at once, and requests of each.
const CLIENTS: usize = 64;
const REQUESTS_EACH: usize = 100;

const PING: &[u8] = br#"{"Command":"agent.ping"}"#;
const PONG: &[u8] = br#"{"Status":0,"StatusMessage":""}"#;

/// How long a partner may take to listen.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sends a request on a connection of its own, as upstream's clients do, and reads the response to its end.
fn call(socket: &Path, request: &[u8]) -> Vec<u8> {
    let mut connection = UnixStream::connect(socket).expect("the agent listens");
    connection.write_all(request).expect("the agent reads");
    let mut response = Vec::new();
    connection.read_to_end(&mut response).expect("the agent answers and closes");
    response
}

/// Accepts and closes, until its process is killed.
pub fn accept_and_close(path: &Path) {
    let listener = UnixListener::bind(path).expect("a new socket");
    listener.incoming().for_each(drop);
}

/// `agent.ping`, beside a connection that is only accepted and closed.
pub fn ping(agent: &Agent) -> Result<Measured, Skipped> {
    let _one = OneProcessor::choose();
    // Both on the processor that was chosen: each is a process that starts now.
    let fresh = Agent::start(agent.binary.clone(), "ping");
    let path = fresh.path("floor.sock");
    let _partner = Partner::start(&format!("close:{}", path.display()));
    let deadline = Instant::now() + PATIENCE;
    while !path.exists() {
        assert!(Instant::now() < deadline, "the partner does not listen");
        std::thread::sleep(Duration::from_millis(5));
    }
    let socket = fresh.socket();
    let ours = || (0..REQUESTS).for_each(|_| assert_eq!(call(&socket, PING), PONG));
    let floor = || (0..REQUESTS).for_each(|_| assert!(connect_only(&path)));
    Ok(latency(alternate(ROUNDS, ours, floor), REQUESTS))
}

fn connect_only(path: &Path) -> bool {
    let mut connection = UnixStream::connect(path).expect("the partner listens");
    connection.read(&mut [0]).is_ok_and(|count| count == 0)
}

/// The time that 99 of 100 requests stay below, when many clients ask at once.
pub fn many_at_once(agent: &Agent) -> Result<Measured, Skipped> {
    let socket = agent.socket();
    let client = || {
        let timed = |_| {
            let start = Instant::now();
            assert_eq!(call(&socket, PING), PONG);
            start.elapsed()
        };
        (0..REQUESTS_EACH).map(timed).collect::<Vec<_>>()
    };
    let mut times: Vec<Duration> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        clients.into_iter().flat_map(|client| client.join().expect("every request is answered")).collect()
    });
    times.sort_unstable();
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    let (median, late) = (millis(times[times.len() / 2]), millis(times[times.len() * 99 / 100]));
    Ok(Measured { ours: format!("{late:.2} ms"), floor: format!("p50 {median:.2} ms"), value: late })
}

/// The most memory that an agent of its own had after all kinds of bad requests, several at once.
pub fn bad_requests(agent: &Agent) -> Result<Measured, Skipped> {
    let fresh = Agent::start(agent.binary.clone(), "bad");
    let socket = fresh.socket();
    let long = [br#"{"a":""#, &vec![b'x'; 10 << 20][..]].concat();
    let deep = [br#"{"a":"#, &vec![b'['; 100_000][..]].concat();
    let requests: [&[u8]; 6] = [&long, &deep, &vec![b'{'; 10 << 20], b"\0\0\0", b"{\"\xff", &long];
    std::thread::scope(|scope| {
        for request in requests {
            let socket = &socket;
            scope.spawn(move || {
                let mut connection = UnixStream::connect(socket).expect("the agent listens");
                // The agent may have enough of it before the end.
                let _ = connection.write_all(request);
                let _ = connection.shutdown(Shutdown::Write);
                let mut response = Vec::new();
                let _ = connection.read_to_end(&mut response);
            });
        }
    });
    assert_eq!(call(&socket, PING), PONG);
    memory::peak(fresh.pid()).map(memory::size).ok_or_else(|| Skipped("no /proc/PID/status".to_owned()))
}
