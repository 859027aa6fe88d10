//! Load, limits, and that nothing is left behind by thousands of programs.

mod support;

use std::time::Instant;

use lodger::wire::ITEM_MAX;
use lodger::wire::frame::Frame;

use support::{Agent, Peer, children, descriptors, exec, run, shell, status, wait_until};

/// Descriptors, threads and children of an agent at rest.
fn holdings(agent: &Agent) -> (usize, u64, usize) {
    (descriptors(agent.pid()), status(agent.pid(), "Threads"), children(agent.pid()).len())
}

#[test]
fn sixty_four_programs_run_on_one_connection_and_one_more_is_refused() {
    let agent = Agent::start();
    let mut peer = agent.hello();
    for id in 0..64 {
        peer.send(&Frame::Exec { id, exec: exec(&["cat"]) });
    }
    peer.send(&Frame::Exec { id: 64, exec: exec(&["true"]) });
    let refused = peer.finish(64);
    assert_eq!((refused.code, refused.error.contains("limit of 64")), (127, true), "{}", refused.error);
    assert_eq!(children(agent.pid()).len(), 64);
    peer.send(&Frame::Eof { id: 10, stream: 0 });
    assert_eq!(peer.finish(10).code, 0);
    peer.send(&Frame::Exec { id: 64, exec: exec(&["true"]) });
    assert_eq!(peer.finish(64).code, 0, "there is a place again");
    drop(peer);
    wait_until("all are ended", || children(agent.pid()).is_empty());
}

#[test]
fn two_hundred_programs_at_once_do_not_mix_up_their_output_and_codes() {
    let agent = Agent::start();
    let start = Instant::now();
    let connect = |number| {
        let script = format!("read line; echo out {number} $line; echo err {number} >&2; exit {number}");
        // At once: of so many that say nothing the agent keeps 128.
        let mut peer = agent.connect();
        peer.send(&Frame::Exec { id: 0, exec: shell(&script) });
        peer
    };
    let mut peers: Vec<Peer> = (0..200).map(connect).collect();
    for (number, peer) in peers.iter_mut().enumerate().rev() {
        peer.send(&support::data(0, 0, format!("in {number}\n").as_bytes()));
    }
    for (number, peer) in peers.iter_mut().enumerate() {
        let finished = peer.finish(0);
        assert_eq!(finished.stdout(), format!("out {number} in {number}\n"));
        assert_eq!(finished.stderr(), format!("err {number}\n"));
        assert_eq!(finished.code, number as i64);
    }
    println!("200 programs in {:?}, at most {} kB", start.elapsed(), status(agent.pid(), "VmHWM"));
}

#[test]
fn thousands_of_programs_leave_nothing_behind() {
    let agent = Agent::start();
    run(&agent, exec(&["true"]));
    wait_until("nobody is connected", || status(agent.pid(), "Threads") == 1);
    let before = holdings(&agent);
    let start = Instant::now();
    let mut peer = agent.hello();
    for round in 0..2000 {
        // Every tenth one cannot be started, or has streams of its own.
        let exec = match round % 10 {
            3 => exec(&["/missing"]),
            7 => lodger::wire::exec::Exec { fds: vec![3, 9], ..exec(&["true"]) },
            _ => exec(&["true"]),
        };
        peer.send(&Frame::Exec { id: round, exec });
        assert_eq!(peer.finish(round).code, if round % 10 == 3 { 127 } else { 0 });
    }
    println!("2,000 programs on one connection in {:?}", start.elapsed());
    let during = holdings(&agent);
    assert_eq!(during, (before.0 + 1, before.1 + 1, 0), "a descriptor and a thread for the connection");
    drop(peer);
    let start = Instant::now();
    for _ in 0..300 {
        assert_eq!(run(&agent, exec(&["true"])).code, 0);
    }
    println!("300 programs on connections of their own in {:?}", start.elapsed());
    wait_until("all is as before", || holdings(&agent) == before);
    let peak = status(agent.pid(), "VmHWM");
    println!("at most {peak} kB");
    assert!(peak < 16 << 10, "{peak} kB");
}

#[test]
fn many_connections_that_moved_bulk_data_do_not_keep_its_memory() {
    let agent = Agent::start();
    let mut peers: Vec<Peer> = (0..100).map(|_| agent.hello()).collect();
    for peer in &mut peers {
        peer.send(&Frame::Exec { id: 1, exec: exec(&["head", "-c", "2M", "/dev/zero"]) });
        assert_eq!(peer.finish(1).stream(1).len(), 2 << 20);
    }
    let memory = status(agent.pid(), "VmRSS");
    println!("100 connections after 2 MiB each: {memory} kB");
    assert!(memory < 64 << 10, "{memory} kB");
}

#[test]
fn a_frame_may_be_as_long_as_the_limit_and_not_a_byte_longer() {
    let agent = Agent::start();
    let frame = |length: usize| {
        let overhead = support::data(0, 0, &vec![0; 1 << 20]).to_bytes().len() - (1 << 20);
        support::data(0, 0, &vec![0; length - overhead]).to_bytes()
    };
    let mut peer = agent.connect();
    peer.send(&Frame::Exec { id: 0, exec: exec(&["wc", "-c"]) });
    let longest = frame(ITEM_MAX);
    assert_eq!(longest.len(), ITEM_MAX);
    peer.send_bytes(&longest);
    peer.send(&Frame::Eof { id: 0, stream: 0 });
    assert_eq!(peer.finish(0).stdout(), format!("{}\n", ITEM_MAX - 11), "all but head and tail");
    let mut peer = agent.connect();
    peer.send(&Frame::Exec { id: 0, exec: exec(&["sleep", "60"]) });
    peer.send_bytes(&frame(ITEM_MAX + 1));
    let item = peer.receive().expect("a word");
    assert!(matches!(Frame::decode(&item), Ok(Frame::Error { error }) if error.contains(&ITEM_MAX.to_string())));
    assert_eq!(peer.receive(), None);
    wait_until("its program is ended", || children(agent.pid()).is_empty());
}
