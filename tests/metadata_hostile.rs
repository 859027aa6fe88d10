//! The guest's side of the metadata service with hosts and tasks that make it hard to be correct.
#![cfg(feature = "metadata")]

#[path = "support/host.rs"]
mod host;
mod support;

use std::fs;
use std::time::{Duration, Instant};

use lodger::metaservice::Kind;
use lodger::sys::signal;

use host::{Host, sh};
use support::{pause, wait_until};

/// Whether a process is there, and no zombie.
fn lives(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

// --- The end of the task ---

#[test]
fn a_kill_ends_what_delays_the_result_of_a_task_that_has_ended() {
    // The first one stays in the session; the second one leaves it, and nobody knows whose it is.
    for holder in ["(while :; do echo x; sleep 0.05; done) &", "setsid sh -c 'while :; do echo x; sleep 0.05; done' &"]
    {
        let host = Host::new(sh(&format!("trap '' HUP; {holder} echo $!; sleep 0.3; exit 0")));
        let _guest = host.guest(&[]);
        wait_until("it runs", || host.log().contains("x\r\n"));
        pause(Duration::from_secs(2));
        let start = Instant::now();
        host.reply(&host.ask(Kind::KillProcess, "", &[], false));
        wait_until("the result comes", || host.requests().iter().any(|request| request.starts_with("PUT")));
        assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
        let holder = host.log().lines().next().expect("a number").trim().to_owned();
        let _ = signal::send(holder.parse().expect("a number"), signal::SIGKILL);
    }
}

#[test]
fn what_holds_the_terminal_and_is_slow_to_write_is_in_the_log() {
    let host = Host::new(sh("trap '' HUP; setsid sh -c 'sleep 1.5; echo late' & sleep 0.2; exit 0"));
    let _guest = host.guest(&[]);
    wait_until("the result comes", || host.has_heard("PUT success"));
    assert_eq!(host.log(), "late\r\n");
}

#[test]
fn a_terminal_that_no_part_of_the_task_has_open_may_be_opened_again() {
    let script = "exec </dev/null >/dev/null 2>&1; sleep 1; seq 1 5000 >/dev/tty; sleep 0.5; echo end >/dev/tty";
    let host = Host::new(sh(script));
    let guest = host.guest(&[]);
    wait_until("the result comes", || host.has_heard("PUT success"));
    let numbers = (1..=5000).map(|number| format!("{number}\r\n")).collect::<String>() + "end\r\n";
    assert!(host.log() == numbers, "{} bytes", host.log().len());
    assert!(guest.ticks() < 60, "{} ticks", guest.ticks());
}

#[test]
fn a_guest_that_is_ended_leaves_nothing_of_the_task() {
    let file =
        "setsid sh -c 'trap \"\" HUP; echo $$ > FILE.new; mv FILE.new FILE; while :; do sleep 1; done' & sleep 60";
    let folder = support::Folder::new();
    let file_path = folder.path("pid");
    let host = Host::new(sh(&file.replace("FILE", &file_path.display().to_string())));
    let mut guest = host.guest(&[]);
    wait_until("it runs", || file_path.exists());
    let pid = fs::read_to_string(&file_path).expect("a number");
    let _ = signal::send(guest.0.id() as i32, signal::SIGTERM);
    assert_eq!(guest.wait().code(), Some(0));
    assert!(!lives(&pid));
}

#[test]
fn a_kill_does_not_wait_for_a_host_that_takes_no_log() {
    let host = Host::with(sh("yes"), |shared, request, _| {
        while request.path == "/engine/v1/log" && !shared.over.load(std::sync::atomic::Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    });
    let short = host::short();
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pause(Duration::from_secs(1));
            host.ask(Kind::KillProcess, "", &[], false);
        });
        let timers = lodger::proto::metadata::Timers { log_patience: Duration::from_secs(5), ..short };
        assert_eq!(host::run_with(&host, timers), lodger::proto::metadata::Ended::Task { success: false });
    });
    assert!(start.elapsed() < Duration::from_secs(9), "{:?}", start.elapsed());
}
