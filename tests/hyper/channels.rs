//! Two channels that find each other: who may be there, and what the end of one means.

use std::io::Read;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use lodger::sys::fd;
use serde_json::json;

use crate::rig::{ACK, Agent, Ctl, ERROR, Tty, program};
use crate::support::{children, lives, pause, wait_until};

/// The process number that a program has said.
fn pid(tty: &mut Tty, sequence: u64) -> u32 {
    tty.until(sequence, "\n");
    tty.text(sequence).trim().parse().expect("a number")
}

#[test]
fn the_end_of_tty_is_a_hang_up_and_the_end_of_ctl_is_none() {
    let agent = Agent::start();
    let (mut ctl, mut tty) = agent.both();
    ctl.shell(3, "echo $$; read line; echo got $line");
    let first = pid(&mut tty, 3);
    drop(ctl);
    // Another ctl channel of the same pair.
    let mut ctl = agent.ctl();
    assert!(lives(first));
    let farewell = agent.path("farewell");
    let script = format!(
        "trap '' PIPE; trap 'echo bye > {}; exit' HUP; echo $$; while :; do sleep 0.05; done",
        farewell.display()
    );
    ctl.shell(5, &script);
    let second = pid(&mut tty, 5);
    tty.send(3, b"it\n");
    assert_eq!(tty.finish(3), 0);
    assert_eq!(tty.text(3), "got it\n");
    drop(tty);
    wait_until("the program is hung up", || !lives(second));
    assert!(farewell.exists(), "it had the time to say so");
    // Its numbers are free again, and the next tty channel begins anew.
    let mut tty = agent.tty();
    ctl.shell(5, "echo again");
    assert_eq!((tty.finish(5), tty.text(5).as_str()), (0, "again\n"));
}

#[test]
fn the_next_tty_channel_waits_for_one_that_has_ended_and_is_still_read() {
    let agent = Agent::start();
    let (mut ctl, mut tty) = agent.both();
    ctl.shell(3, "head -c 1000000 /dev/zero; sleep 60");
    // Its output is stuck: some of it waits for a host that sends no more.
    wait_until("something has come", || {
        let ready = fd::wait_for(tty.socket.as_fd(), fd::READ, Some(Duration::ZERO));
        ready.is_ok_and(|ready| ready.readable)
    });
    pause(Duration::from_millis(300));
    tty.socket.shutdown(Shutdown::Write).expect("a shutdown");
    let mut next = agent.tty();
    // Longer than one waits whose predecessor is still there.
    pause(Duration::from_millis(2500));
    let mut rest = Vec::new();
    tty.socket.read_to_end(&mut rest).expect("what waited");
    assert!(rest.len() > 100_000, "{} bytes", rest.len());
    ctl.shell(5, "echo again");
    assert_eq!((next.finish(5), next.text(5).as_str()), (0, "again\n"));
}

#[test]
fn a_container_that_lost_its_tty_channel_can_be_made_again_at_once() {
    let agent = Agent::start();
    let (mut ctl, mut tty) = agent.both();
    let new =
        |script: &str| json!({ "id": "c1", "process": { "stdio": 3, "stderr": 4, "args": ["sh", "-c", script] } });
    let kill = |signal: u8| json!({ "container": "c1", "signal": signal, "allProcesses": false });
    ctl.good(17, new("trap '' HUP; echo $$; while :; do sleep 0.05; done"));
    let first = pid(&mut tty, 3);
    ctl.good(18, kill(18));
    drop(tty);
    let mut tty = agent.tty();
    // Nobody finds it any more, while it has some time left to end.
    wait_until("the end of the channel is seen", || ctl.ask(18, kill(18).to_string().as_bytes()).0 == ERROR);
    assert_eq!(ctl.bad(18, kill(9)), "no such process");
    assert!(lives(first));
    ctl.good(22, json!({ "container": "c1" }));
    ctl.good(17, new("echo second; sleep 1000"));
    tty.until(3, "second\n");
    ctl.good(18, kill(15));
    assert_eq!((tty.finish(3), tty.text(3).as_str()), (143, "second\n"));
    wait_until("the first one has had its time", || !lives(first));
}

#[test]
fn a_host_finds_no_name_and_no_number_of_the_one_before_it() {
    let agent = Agent::start();
    let deaf = "trap '' HUP; echo ready; exec sleep 1000";
    let new = json!({ "id": "vm0", "process": { "stdio": 3, "stderr": 4, "args": ["sh", "-c", deaf] } });
    let (mut ctl, mut tty) = agent.both();
    for round in 0..20 {
        ctl.good(17, new.clone());
        tty.until(3, "ready\n");
        // In any order, and at once: one of them is seen before the other.
        if round % 4 < 2 {
            drop((ctl, tty));
        } else {
            drop((tty, ctl));
        }
        if round % 2 == 0 {
            (ctl, tty) = agent.both();
        } else {
            tty = agent.tty();
            ctl = agent.ctl();
        }
        assert_eq!(ctl.bad(18, json!({ "container": "vm0", "signal": 9 })), "no such container");
    }
}

#[test]
fn a_program_waits_for_its_tty_channel_and_not_for_ever() {
    let agent = Agent::start();
    let mut ctl = agent.ctl();
    ctl.shell(3, "echo early; exit 4");
    let mut tty = agent.tty();
    assert_eq!((tty.finish(3), tty.text(3).as_str()), (4, "early\n"));
    drop(tty);
    let file = agent.path("pid");
    // The agent has seen its end when a new one has been served, and ended.
    drop(agent.tty());
    ctl.shell(3, &format!("echo $$ > {0}.new; mv {0}.new {0}; sleep 1000", file.display()));
    wait_until("it runs", || file.exists());
    let pid: u32 = std::fs::read_to_string(&file).expect("a file").trim().parse().expect("a number");
    assert!(lives(pid));
    drop(ctl);
    wait_until("nobody will ever hear it", || !lives(pid));
}

#[test]
fn a_second_channel_of_a_kind_is_closed_after_a_while() {
    let agent = Agent::start();
    let (mut ctl, mut tty) = agent.both();
    let start = Instant::now();
    assert_eq!(Ctl::open(&agent.path("ctl")).receive(), None);
    assert_eq!(agent.tty().receive(), None);
    assert!(start.elapsed() > Duration::from_secs(1));
    assert_eq!(ctl.ask(12, b""), (ACK, Vec::new()));
    ctl.shell(3, "exit 1");
    assert_eq!(tty.finish(3), 1);
}

#[test]
fn a_channel_that_comes_right_behind_another_is_served() {
    let agent = Agent::start();
    for round in 0..50 {
        let (mut ctl, mut tty) = agent.both();
        ctl.shell(3, &format!("exit {round}"));
        assert_eq!(tty.finish(3), round);
    }
}

#[test]
fn programs_start_while_tty_channels_come_and_go_and_none_is_forgotten() {
    let agent = Agent::start();
    let mut ctl = agent.ctl();
    let starter = thread::spawn(move || {
        for stdio in (10..510).step_by(2) {
            // As many as there may be wait for a channel to be heard on.
            ctl.ask(6, program(stdio, &["true"]).to_string().as_bytes());
        }
        ctl
    });
    while !starter.is_finished() {
        let mut tty = agent.tty();
        tty.socket.set_read_timeout(Some(Duration::from_millis(2))).expect("a time-out");
        let _ = tty.socket.read(&mut [0; 100]);
    }
    let mut ctl = starter.join().expect("all is answered");
    let mut tty = agent.tty();
    wait_until("each has been buried", || children(agent.child.id()).is_empty());
    // Those of the last ones who were not heard are told first; the others have given their numbers back.
    for stdio in [600, 602] {
        ctl.shell(stdio, "exit 3");
        assert_eq!(tty.finish(stdio), 3);
    }
    for stdio in (10..74).step_by(2) {
        ctl.execute(stdio, &["cat"]);
    }
}

#[test]
fn programs_end_with_the_agent_whether_they_have_a_tty_channel_or_not() {
    for has_tty in [true, false] {
        let mut agent = Agent::start();
        let mut ctl = agent.ctl();
        let tty = has_tty.then(|| agent.tty());
        let file = agent.path("pid");
        ctl.shell(
            3,
            &format!("trap '' HUP; echo $$ > {0}.new; mv {0}.new {0}; while :; do sleep 0.05; done", file.display()),
        );
        wait_until("it runs", || file.exists());
        let pid: u32 = std::fs::read_to_string(&file).expect("a file").trim().parse().expect("a number");
        lodger::sys::signal::send(agent.child.id() as i32, lodger::sys::signal::SIGTERM).expect("the agent is there");
        assert!(agent.child.wait().expect("our child").success());
        assert!(!lives(pid), "{has_tty}");
        drop(tty);
    }
}

#[test]
fn the_end_of_the_agent_does_not_come_before_that_of_lost_programs() {
    let mut agent = Agent::start();
    let (mut ctl, mut tty) = agent.both();
    ctl.shell(3, "trap '' HUP; echo $$; exec sleep 1000");
    let pid = loop {
        tty.until(3, "\n");
        if let Ok(pid) = tty.text(3).trim().parse() {
            break pid;
        }
    };
    drop((ctl, tty));
    // It gets its hang-up now, and two seconds to end.
    crate::support::pause(std::time::Duration::from_millis(100));
    crate::support::end(&mut agent.child);
    assert!(!crate::support::lives(pid));
}
