//! Clients that go, agents that are told to go, and systems without a descriptor left.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lodger::sys::process::{raise_descriptor_limit, signal_group};
use lodger::sys::signal::{SIGKILL, SIGTERM, send};
use lodger::wire::frame::{Frame, Hello};

use support::{
    Agent, PATIENCE, Peer, agent_after, children, data, descriptors, exec, lives, run, shell, status, wait_until,
    wait_until_at_rest,
};

/// Ends what a test may leave behind in the group of a program.
struct GroupGuard(u32);

impl Drop for GroupGuard {
    fn drop(&mut self) {
        let _ = signal_group(self.0 as i32, SIGKILL);
    }
}

/// Starts a program that sets its traps and then writes its number as its first line.
fn start(peer: &mut Peer, traps: &str, script: &str) -> (u32, GroupGuard) {
    peer.send(&Frame::Exec { id: 0, exec: shell(&format!("{traps}:; echo $$; {script}")) });
    let pid = peer.line(0, 1).lines().next().and_then(|line| line.parse().ok()).expect("a number");
    (pid, GroupGuard(pid))
}

#[test]
fn a_program_whose_client_has_gone_gets_a_hang_up() {
    let agent = Agent::start();
    let mark = agent.folder.path("hung-up");
    let trap = format!("exec 2>/dev/null; trap 'echo yes > {}; exit' HUP; ", mark.display());
    for hello in [false, true] {
        let mut peer = if hello { agent.hello() } else { agent.connect() };
        let (pid, _guard) = start(&mut peer, &trap, "while :; do sleep 0.05; done");
        drop(peer);
        wait_until("it is told", || mark.exists());
        wait_until("it has gone", || !lives(pid) && children(agent.pid()).is_empty());
        fs::remove_file(&mark).expect("its mark");
    }
}

#[test]
fn what_ignores_the_hang_up_is_killed_after_the_grace_with_all_its_group() {
    let agent = Agent::start();
    let mut peer = agent.connect();
    let (pid, _guard) = start(&mut peer, "trap '' HUP; sleep 60 & ", "while :; do sleep 60; done");
    let members = children(pid);
    let start = Instant::now();
    drop(peer);
    wait_until("all have gone", || !lives(pid) && members.iter().all(|member| !lives(*member)));
    assert!(!members.is_empty());
    assert!(start.elapsed() > Duration::from_millis(1500), "there is a grace: {:?}", start.elapsed());
    wait_until("nothing is left", || children(agent.pid()).is_empty());
}

#[test]
fn members_of_the_group_are_killed_though_its_leader_went_at_once() {
    let agent = Agent::start();
    let mut peer = agent.connect();
    let (leader, _guard) = start(&mut peer, "trap '' HUP; sleep 60 & trap - HUP; ", "wait");
    let members = children(leader);
    drop(peer);
    wait_until("all have gone", || !lives(leader) && members.iter().all(|member| !lives(*member)));
    assert_eq!(members.len(), 1);
}

#[test]
fn a_stopped_program_is_ended_too() {
    let agent = Agent::start();
    let mark = agent.folder.path("hung-up");
    let mut peer = agent.connect();
    let trap = format!("trap 'echo yes > {}; exit' HUP; ", mark.display());
    let (pid, _guard) = start(&mut peer, &trap, "kill -STOP $$; sleep 60");
    wait_until("it has stopped", || {
        fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") T "))
    });
    drop(peer);
    wait_until("it has gone", || !lives(pid));
    assert!(mark.exists(), "by the hang-up, not by the kill");
}

#[test]
fn a_client_may_go_at_any_moment() {
    let agent = Agent::start();
    run(&agent, exec(&["true"]));
    wait_until("nobody is connected", || status(agent.pid(), "Threads") == 1);
    let before = descriptors(agent.pid());
    let whole = Frame::Exec { id: 0, exec: shell("yes & exec cat") }.to_bytes();
    let input = data(0, 0, &[b'x'; 100_000]).to_bytes();
    for round in 0..12 {
        let mut peer = agent.connect();
        match round % 6 {
            0 => {}
            1 => peer.send_bytes(&whole[..whole.len() / 2]),
            2 => peer.send_bytes(&whole),
            3 => {
                peer.send_bytes(&whole);
                peer.receive().expect("output");
            }
            4 => peer.send_bytes(&[&whole[..], &input[..70_000]].concat()),
            _ => {
                peer.send_bytes(&[&whole[..], &input, &input].concat());
                peer.socket.shutdown(Shutdown::Both).expect("a shutdown");
            }
        }
    }
    wait_until("all is as before", || {
        let pid = agent.pid();
        children(pid).is_empty() && descriptors(pid) == before && status(pid, "Threads") == 1
    });
    assert_eq!(run(&agent, exec(&["true"])).code, 0);
}

#[test]
fn a_client_that_goes_while_the_agent_does_not_read_it_is_noticed() {
    let agent = Agent::start();
    let mut peer = agent.connect();
    let (pid, _guard) = start(&mut peer, "", "exec sleep 60");
    // More than the agent keeps: it stops reading.
    peer.socket.set_write_timeout(Some(Duration::from_millis(100))).expect("a time-out");
    let frame = data(0, 0, &vec![0; 64 << 10]).to_bytes();
    while peer.socket.write_all(&frame).is_ok() {}
    assert!(lives(pid));
    drop(peer);
    wait_until("the program is ended", || !lives(pid));
}

/// Makes room for the many connections of two tests at once: 1024 descriptors, a usual limit, are too few.
fn make_room_for_connections() {
    raise_descriptor_limit().expect("the hard limit can be reached");
}

fn wait_for_end(agent: &mut Agent) -> Option<i32> {
    let mut ended = None;
    wait_until("the agent ends", || {
        ended = agent.child.try_wait().expect("our child");
        ended.is_some()
    });
    ended.and_then(|status| status.code())
}

#[test]
fn an_agent_that_is_told_to_end_ends_all_programs_first() {
    let mut agent = Agent::start();
    let mut peers = [agent.connect(), agent.connect(), agent.hello()];
    let scripts =
        [("", "exec sleep 60"), ("trap '' HUP TERM; ", "sleep 60; sleep 60"), ("trap '' PIPE; ", "yes; sleep 60")];
    let started: Vec<_> =
        peers.iter_mut().zip(scripts).map(|(peer, (traps, script))| start(peer, traps, script)).collect();
    let begin = Instant::now();
    send(agent.pid() as i32, SIGTERM).expect("the agent lives");
    assert_eq!(wait_for_end(&mut agent), Some(0));
    // Long before they end by themselves.
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    wait_until("all programs have gone", || started.iter().all(|(pid, _)| !lives(*pid)));
    assert!(!agent.socket.exists(), "the socket is removed");
}

#[test]
fn a_client_that_keeps_sending_does_not_save_its_programs_from_the_end() {
    let mut agent = Agent::start();
    let mut peer = agent.connect();
    let (pid, _guard) = start(&mut peer, "", "exec sleep 60");
    let mut socket = peer.socket.try_clone().expect("a descriptor");
    let dripping = std::thread::spawn(move || {
        while socket.write_all(b"\xf6").is_ok() {
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    send(agent.pid() as i32, SIGTERM).expect("the agent lives");
    wait_for_end(&mut agent);
    dripping.join().expect("no panic");
    wait_until("the program has gone", || !lives(pid));
}

#[test]
fn a_client_that_takes_its_last_answers_slowly_does_not_save_its_programs_from_the_end() {
    let mut agent = Agent::start();
    let mut peer = agent.connect();
    let (pid, _guard) = start(&mut peer, "trap '' PIPE; ", "yes; sleep 60");
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(100));
    }
    peer.socket.shutdown(Shutdown::Write).expect("a shutdown");
    // Room for one look at what we have shut down, and no more.
    let mut piece = vec![0; 800 << 10];
    peer.socket.read_exact(&mut piece).expect("output");
    std::thread::sleep(Duration::from_millis(100));
    send(agent.pid() as i32, SIGTERM).expect("the agent lives");
    wait_for_end(&mut agent);
    wait_until("the program has gone", || !lives(pid));
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_refused() {
    let mut agent = Agent::start();
    let second = |agent: &Agent| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lodger"));
        command.args(["serve", "--listen", &agent.address()]).stdin(Stdio::null()).stderr(Stdio::piped());
        command.spawn().expect("a second agent")
    };
    let output = second(&agent).wait_with_output().expect("its end");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("address already in use"), "{text}");
    assert_eq!(run(&agent, exec(&["true"])).code, 0, "the first one still listens");
    agent.child.kill().expect("a kill");
    agent.child.wait().expect("its end");
    assert!(agent.socket.exists());
    agent.child = second(&agent);
    wait_until("the second one listens", || UnixStream::connect(&agent.socket).is_ok());
    assert_eq!(run(&agent, exec(&["true"])).code, 0);
    drop(UnixListener::bind(agent.folder.path("other")).expect("a socket of another's"));
}

#[test]
fn connections_are_limited_and_the_one_past_the_limit_hears_of_it() {
    make_room_for_connections();
    let agent = Agent::start();
    wait_until("the first try has gone", || status(agent.pid(), "Threads") == 1);
    let mut peers: Vec<Peer> = (0..256).map(|_| agent.hello()).collect();
    assert_eq!(status(agent.pid(), "Threads"), 257);
    let mut one_more = agent.connect();
    one_more.send(&Frame::Hello(Hello::default()));
    let item = one_more.receive().expect("a word");
    assert!(matches!(Frame::decode(&item), Ok(Frame::Error { error }) if error.contains("limit of 256")));
    assert_eq!(one_more.receive(), None);
    peers.pop();
    wait_until("there is a place again", || status(agent.pid(), "Threads") == 256);
    assert_eq!(run(&agent, exec(&["true"])).code, 0);
    println!("256 connections: {} kB", status(agent.pid(), "VmRSS"));
}

#[test]
fn connections_that_say_nothing_have_no_thread_and_keep_nobody_out() {
    make_room_for_connections();
    let agent = Agent::start();
    let mut silent: Vec<Peer> = Vec::new();
    for _ in 0..1000 {
        silent.push(agent.connect());
    }
    assert_eq!(run(&agent, exec(&["true"])).code, 0);
    // The last 128 may still speak; those before them heard why not.
    let mut last = silent.split_off(1000 - 128);
    // That of the program may have been one of the silent ones for a moment, and have taken the place of this one.
    drop(last.remove(0));
    for mut peer in silent {
        let item = peer.receive().expect("a word");
        assert!(matches!(Frame::decode(&item), Ok(Frame::Error { error }) if error.contains("more than 128 ")));
        assert_eq!(peer.receive(), None);
    }
    wait_until("the program's thread has gone", || status(agent.pid(), "Threads") == 1);
    for mut peer in last {
        peer.send(&Frame::Exec { id: 0, exec: exec(&["true"]) });
        assert_eq!(peer.finish(0).code, 0);
    }
}

#[test]
fn without_a_descriptor_left_the_agent_waits_and_recovers() {
    let agent = agent_after("ulimit -n 24");
    wait_until("the first try has gone", || status(agent.pid(), "Threads") == 1);
    // More than it has numbers for, whatever it inherited. Of those that say nothing the oldest make room for the others.
    let mut peers: Vec<Peer> = (0..4).map(|_| agent.hello()).collect();
    let silent: Vec<Peer> = (0..24).map(|_| agent.connect()).collect();
    wait_until("it has run out", || descriptors(agent.pid()) >= 24);
    wait_until_at_rest(agent.pid());
    peers[0].send(&Frame::Exec { id: 0, exec: exec(&["true"]) });
    let finished = peers[0].finish(0);
    assert_eq!((finished.code, finished.error.contains("too many open files")), (127, true), "{}", finished.error);
    drop((peers, silent));
    let recovered = || {
        let mut peer = agent.connect();
        peer.socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        peer.socket.write_all(&Frame::Exec { id: 0, exec: exec(&["true"]) }.to_bytes()).is_ok_and(|()| {
            let mut byte = [0];
            peer.socket.read(&mut byte).is_ok_and(|count| count == 1)
        })
    };
    wait_until("it serves again", recovered);
}
