//! Clients and agents that are killed at any moment, and what follows them.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::client::Running;
use crate::line::Weather;
use crate::rig::{Rig, wait_for};
use crate::support::wait_until;
use crate::weather::Dice;

const ROUNDS: u64 = 100;

/// How long a command may take behind the end of somebody else, and how long it may take on average.
const NEXT: Duration = Duration::from_secs(10);
const NEXT_MEAN: Duration = Duration::from_secs(1);

/// What clients are killed at: each uses the line differently. All end when their streams do.
const SCRIPTS: [&str; 5] = ["cat /dev/zero", "cat", "echo $$; cat", "seq 1 1000", "cat /dev/zero >&2 & exec cat"];

/// What ends by itself.
const FINITE: &str = "head -c 300000 /dev/zero; sleep 0.05";

/// Starts a command, and kills it after so long.
fn kill_one(rig: &Rig, script: &str, after: Duration) {
    let mut command = rig.command(&["exec", "--", "sh", "-c", script]);
    command.stdin(std::fs::File::open("/dev/zero").expect("zeros")).stdout(Stdio::null()).stderr(Stdio::null());
    let running = Running::start_as_is(command);
    wait_for(after);
    drop(running);
}

/// Runs a command that must work, and gives the time that it took.
fn next(rig: &Rig, what: &str) -> Duration {
    let start = Instant::now();
    let done = rig.run(&["exec", "--", "sh", "-c", "echo \"$0\"; exit 3", what]);
    assert_eq!((done.code, done.stdout(), done.stderr()), (Some(3), format!("{what}\n"), String::new()), "{what}");
    let took = start.elapsed();
    assert!(took < NEXT, "{what}: {took:?}");
    took
}

fn killed_clients(weather: Weather, seed: u64, rounds: u64) {
    let rig = Rig::start(weather);
    let (before, mut dice, mut total) = (rig.numbers_at_first(), Dice::new(seed), Duration::ZERO);
    next(&rig, "first");
    for round in 0..rounds {
        let script = SCRIPTS[dice.below(5) as usize];
        let after = Duration::from_micros(dice.below(60_000));
        kill_one(&rig, script, after);
        total += next(&rig, &format!("seed {seed}: round {round}: {script} for {after:?}"));
    }
    assert!(total / (rounds as u32) < NEXT_MEAN, "seed {seed}: {total:?} for {rounds} commands");
    // The last channel of a client that has left may stay half open until the next one comes, or half a minute.
    rig.wait_until_left_with((before.0 + 1, before.1));
}

#[test]
fn the_next_command_works_after_a_client_was_killed_at_any_moment() {
    killed_clients(Weather::clear(), 1, ROUNDS);
}

#[test]
fn the_next_command_works_after_a_client_was_killed_on_a_bad_line() {
    killed_clients(Weather::noise(2, 2000), 2, 20);
}

#[test]
fn the_next_command_works_after_a_client_was_killed_on_a_socket() {
    let rig = Rig::start_with_socket(Weather::clear());
    let mut dice = Dice::new(3);
    for round in 0..20 {
        kill_one(&rig, SCRIPTS[dice.below(5) as usize], Duration::from_micros(dice.below(60_000)));
        next(&rig, &format!("round {round}"));
    }
}

#[test]
fn two_clients_that_are_killed_in_a_row_leave_nothing() {
    let rig = Rig::start(Weather::clear());
    let before = rig.numbers_at_first();
    next(&rig, "first");
    let mut dice = Dice::new(4);
    for round in 0..20 {
        for _ in 0..1 + dice.below(3) {
            kill_one(&rig, SCRIPTS[dice.below(5) as usize], Duration::from_micros(dice.below(40_000)));
        }
        next(&rig, &format!("round {round}"));
    }
    rig.wait_until_left_with((before.0 + 1, before.1));
}

#[test]
fn the_next_command_works_after_an_agent_was_killed_at_any_moment() {
    let mut rig = Rig::start(Weather::clear());
    next(&rig, "first");
    let (mut dice, mut total) = (Dice::new(5), Duration::ZERO);
    for round in 0..ROUNDS {
        let endless = dice.below(2) == 0;
        let script = if endless { SCRIPTS[dice.below(5) as usize] } else { FINITE };
        let mut command = rig.command(&["exec", "--", "sh", "-c", script]);
        command.stdin(std::fs::File::open("/dev/zero").expect("zeros")).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut running = Running::start_as_is(command);
        wait_for(Duration::from_micros(dice.below(60_000)));
        rig.restart_agent();
        if !endless {
            // Its program has gone with the agent, unless it had not been started and the next agent does it.
            let stderr = running.stderr();
            wait_until(&format!("the command of round {round} has ended"), || {
                running.child.try_wait().expect("our child").is_some()
            });
            let code = running.child.wait().expect("our child").code();
            let said = std::io::read_to_string(stderr).expect("text");
            let fine = code == Some(0) && said.is_empty();
            assert!(fine || (code == Some(125) && said.lines().count() == 1), "round {round}: {code:?}: {said}");
        }
        drop(running);
        total += next(&rig, &format!("round {round}: {script}"));
    }
    assert!(total / (ROUNDS as u32) < NEXT_MEAN, "{total:?} for {ROUNDS} commands");
}
