//! Programs on a terminal.

use lodger::wire::exec::Exec;
use lodger::wire::frame::Frame;

use crate::Left;
use crate::support::{Agent, Peer, children, data, lives, shell, wait_until};

fn on_terminal(exec: Exec) -> Frame<'static> {
    let mut exec = exec;
    exec.extension.terminal = Some((33, 99));
    Frame::Exec { id: 1, exec }
}

/// Reads output until `text` has come.
fn wait_for(peer: &mut Peer, text: &str) {
    let mut seen = String::new();
    while !seen.contains(text) {
        seen += &peer.output(1, 1);
    }
}

#[test]
fn the_program_has_a_terminal_of_the_size_that_was_asked_for() {
    let agent = Agent::start();
    let mut peer = agent.hello();
    peer.send(&on_terminal(shell(
        "[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && stty size && tty </dev/tty >/dev/null; echo $?; echo e >&2",
    )));
    let finished = peer.finish(1);
    assert_eq!((finished.stdout().as_str(), finished.stderr().as_str()), ("33 99\r\n0\r\ne\r\n", ""));
}

#[test]
fn a_new_size_is_a_sigwinch() {
    let agent = Agent::start();
    let mut peer = agent.hello();
    peer.send(&on_terminal(shell("trap 'stty size; exit 5' WINCH; echo ready; while :; do sleep 0.02; done")));
    // With the end of its line, which a terminal may give apart.
    wait_for(&mut peer, "ready\r\n");
    peer.send(&Frame::Resize { id: 1, rows: 50, columns: 132 });
    let finished = peer.finish(1);
    assert_eq!((finished.stdout().as_str(), finished.code), ("50 132\r\n", 5));
}

#[test]
fn the_interrupt_character_reaches_the_foreground_job() {
    let agent = Agent::start();
    let mut peer = agent.hello();
    // Who says that it is ready is who the character is for, so that it cannot come between two programs.
    let script = "trap 'echo caught' INT; sh -c 'echo ready; exec sleep 60'; echo code $?";
    peer.send(&on_terminal(shell(script)));
    wait_for(&mut peer, "ready\r\n");
    peer.send(&data(1, 0, b"\x03"));
    let finished = peer.finish(1);
    assert!(finished.stdout().contains("caught") && finished.stdout().contains("code 130"), "{}", finished.stdout());
}

#[test]
fn an_end_of_input_is_read_as_one() {
    let agent = Agent::start();
    let mut peer = agent.hello();
    peer.send(&on_terminal(shell("stty -echo; echo ready; cat; echo over; cat; echo again")));
    wait_for(&mut peer, "ready");
    peer.send(&data(1, 0, b"line\n"));
    wait_for(&mut peer, "line");
    peer.send(&Frame::Eof { id: 1, stream: 0 });
    wait_for(&mut peer, "over");
    peer.send(&Frame::Eof { id: 1, stream: 0 });
    let finished = peer.finish(1);
    assert!(finished.stdout().contains("again"), "{}", finished.stdout());
}

#[test]
fn all_output_has_come_when_the_exit_comes() {
    let agent = Agent::start();
    let mut peer = agent.hello();
    peer.send(&on_terminal(shell("seq 20000; printf last")));
    let finished = peer.finish(1);
    let expected: String = (1..=20_000).map(|number| format!("{number}\r\n")).chain(["last".into()]).collect();
    assert!(finished.stdout() == expected, "{} bytes", finished.stdout().len());
    assert_eq!(finished.ended.iter().filter(|stream| **stream != 0).collect::<Vec<_>>(), [&1]);
}

#[test]
fn a_background_job_does_not_hold_up_the_end_of_a_session() {
    let agent = Agent::start();
    let mut peer = agent.hello();
    peer.send(&on_terminal(shell("trap '' HUP; sleep 60 & echo $!; exit 6")));
    let sleeper = Left(peer.line(1, 1).parse().expect("a number"));
    let finished = peer.finish(1);
    assert_eq!((finished.stdout().as_str(), finished.code), ("", 6));
    assert!(lives(sleeper.0), "it is not waited for");
}

#[test]
fn a_lost_connection_ends_the_session() {
    let agent = Agent::start();
    let mut peer = agent.hello();
    peer.send(&on_terminal(shell("sleep 60 & echo $!; wait")));
    let job = peer.line(1, 1).parse().expect("a number");
    drop(peer);
    wait_until("the session is over", || !lives(job) && children(agent.pid()).is_empty());
}
