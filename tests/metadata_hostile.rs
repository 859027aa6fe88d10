//! The guest's side of the metadata service with hosts and tasks that make it hard to be correct.
#![cfg(feature = "metadata")]

#[path = "support/host.rs"]
mod host;
mod support;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lodger::http::connection::Connection;
use lodger::metaservice::Kind;
use lodger::proto::metadata::{Ended, Timers};
use lodger::sys::signal;

use host::{Host, limits, run_with, sh, short};
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
        while request.path == "/engine/v1/log" && !shared.over.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    });
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pause(Duration::from_secs(1));
            host.ask(Kind::KillProcess, "", &[], false);
        });
        let timers = Timers { log_patience: Duration::from_secs(5), ..short() };
        assert_eq!(run_with(&host, timers), Ended::Task { success: false });
    });
    assert!(start.elapsed() < Duration::from_secs(9), "{:?}", start.elapsed());
}

// --- The log ---

/// How the guest fares with a host that does this with each of its logs, counted from 0; false: it is taken.
fn with_log(
    script: &str,
    timers: Timers,
    act: impl Fn(usize, &mut Connection) -> bool + Send + Sync + 'static,
) -> Host {
    let count = AtomicUsize::new(0);
    let host = Host::with(sh(script), move |_, request, connection| {
        request.path == "/engine/v1/log" && act(count.fetch_add(1, Ordering::SeqCst), connection)
    });
    assert_eq!(run_with(&host, timers), Ended::Task { success: true });
    host
}

#[test]
fn a_host_that_is_slow_while_the_program_runs_gets_the_log_whole() {
    let host = with_log("head -c 2000000 /dev/zero; sleep 3", short(), |_, _| {
        pause(Duration::from_secs(2));
        false
    });
    assert_eq!((host.log().len(), host.shared.logs.load(Ordering::SeqCst)), (2_000_000, 1));
}

#[test]
fn an_interim_response_that_nobody_has_asked_for_leaves_the_log_whole() {
    let host = with_log("for n in 1 2 3; do echo $n; sleep 0.3; done", short(), |_, connection| {
        for status in [100, 102] {
            connection.respond_head(status, &[], limits()).expect("a guest");
        }
        false
    });
    assert_eq!((host.log().as_str(), host.shared.logs.load(Ordering::SeqCst)), ("1\r\n2\r\n3\r\n", 1));
}

#[test]
fn a_mark_on_a_connection_that_dies_is_made_again() {
    let host = with_log("for n in 1 2 3 4 5 6; do echo $n; sleep 0.4; done", short(), |number, connection| {
        if number == 0 {
            let mut body = connection.body();
            let _ = connection.read_body(&mut body, &mut [0; 99], limits());
        }
        // What is sent meanwhile is with the kernel, and nobody reads it.
        pause(Duration::from_millis(300));
        number < 2
    });
    let log = host.log();
    assert!(log.starts_with("\r\n[lodger: the connection of this log broke here;") && log.ends_with("6\r\n"), "{log}");
}

#[test]
fn the_number_of_lost_bytes_on_a_connection_that_dies_is_said_again() {
    let script = "head -c 9000000 /dev/zero; sleep 4; echo end";
    let host = with_log(script, short(), |number, _| {
        pause(Duration::from_millis(if number == 0 { 2500 } else { 300 }));
        number < 2
    });
    let log = host.log();
    let lost = log.find(" bytes of this log are missing here]").expect("a number");
    let number: usize = log[..lost].rsplit(' ').next().expect("a word").parse().expect("a number");
    assert!(number > 4_000_000 && log.ends_with("end\r\n"), "{number}");
}

#[test]
fn an_answer_before_the_end_of_a_file_ends_its_sending() {
    let gone = Arc::new(AtomicBool::new(false));
    let is_gone = Arc::clone(&gone);
    let host = Host::with(sh("sleep 60"), move |shared, request, connection| {
        if request.path != "/engine/v1/reply" {
            return false;
        }
        let _ = connection.respond_head(400, &[("Content-Length", "0")], limits());
        while !connection.peer_hung_up() && !shared.over.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        is_gone.store(true, Ordering::SeqCst);
        true
    });
    let _guest = host.guest(&[]);
    let path = host.folder.path("large");
    fs::File::create(&path).and_then(|file| file.set_len(1 << 30)).expect("a file");
    host.ask(Kind::GetArtifact, &path.display().to_string(), &[], false);
    wait_until("the guest gives up", || gone.load(Ordering::SeqCst));
}
