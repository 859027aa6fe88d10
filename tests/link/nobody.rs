//! Lines at whose other end no agent is.

use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

use crate::client::{Done, Running, lodger, read_until};
use crate::line::{Line, Weather};
use crate::rig::Rig;
use crate::support::{PATIENCE, wait_until};

/// How long a client may look for an agent.
const SEARCH: Duration = Duration::from_secs(10);

fn start(line: &Line) -> Running {
    let mut command = lodger(["exec", "--", "true"]);
    command.env("LODGER_TO", line.host_address());
    Running::start(command)
}

/// Fails the test unless the command has said one line with these words, in time.
#[track_caller]
fn told(done: &Done, words: &[&str], start: Instant) {
    done.bad(125, words);
    assert_eq!(done.stderr().lines().count(), 1, "{}", done.stderr());
    // Twice what it may need: the machine may be busy.
    assert!(start.elapsed() < SEARCH * 2, "{:?}", start.elapsed());
}

#[test]
fn a_silent_line_is_told_as_such() {
    let (line, start_time) = (Line::start(Weather::clear()), Instant::now());
    let done = start(&line).finish();
    told(&done, &[&format!("no agent answered on {}", line.host_address())], start_time);
}

#[test]
fn a_line_on_which_only_a_kernel_prints_is_told_with_its_last_line() {
    let (line, start_time) = (Line::start(Weather::clear()), Instant::now());
    let mut guest = File::options().write(true).open(&line.guest).expect("the guest's end");
    let mut running = start(&line);
    let mut number = 0;
    wait_until("the client has given up", || {
        number += 1;
        guest.write_all(format!("[    1.{number:06}] nobody is here\r\n").as_bytes()).expect("the line takes it");
        std::thread::sleep(Duration::from_millis(50));
        running.child.try_wait().expect("our child").is_some()
    });
    let done = running.finish();
    let words = [
        &format!("no agent answered on {}; ", line.host_address()),
        " bytes of console text arrived, last line: [    1.",
        "] nobody is here",
    ];
    told(&done, &words, start_time);
    let text = done.stderr();
    let count = text.split("; ").nth(1).and_then(|rest| rest.split(' ').next()).expect("a number").replace(',', "");
    let count: usize = count.parse().expect("a number");
    let lines = count / "[    1.000001] nobody is here\r\n".len();
    assert!(lines > 3 && lines <= number, "{text}");
}

#[test]
fn a_line_that_echoes_is_told_as_such() {
    let (line, start_time) = (Line::start_echoing(), Instant::now());
    told(&start(&line).finish(), &[&line.host_address(), "echo"], start_time);
}

#[test]
fn two_agents_or_two_clients_at_one_line_do_not_take_each_other_for_the_other() {
    let (line, start_time) = (Line::start(Weather::clear()), Instant::now());
    let mut command = lodger(["exec", "--", "true"]);
    command.env("LODGER_TO", line.guest_address());
    let other = Running::start(command);
    told(&start(&line).finish(), &["no agent answered"], start_time);
    told(&other.finish(), &["no agent answered"], start_time);
}

#[test]
fn a_path_that_is_no_line_is_told_as_such() {
    let missing = crate::client::run(["exec", "--to", "serial:/no/such/line", "--", "true"]);
    missing.bad(125, &["/no/such/line", "no such file"]);
}

#[test]
fn an_agent_that_falls_silent_is_given_up_at_last() {
    let mut rig = Rig::start(Weather::clear());
    let mut running = Running::start(rig.command(&["exec", "--", "sh", "-c", "echo on; exec sleep 60"]));
    read_until(&mut running.stdout(), "on\n");
    rig.kill_agent();
    // A guest may stand still for half a minute, so that is how long it takes.
    let deadline = Instant::now() + PATIENCE * 2;
    while running.child.try_wait().expect("our child").is_none() {
        assert!(Instant::now() < deadline, "the client waits for ever");
        std::thread::sleep(Duration::from_millis(20));
    }
    let done = running.finish();
    done.bad(125, &[&rig.line.host_address(), "silent"]);
    assert_eq!(done.stderr().lines().count(), 1, "{}", done.stderr());
}
