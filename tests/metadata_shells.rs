//! Shells of the metadata service with hosts, users and programs that do what few do.
#![cfg(feature = "metadata")]

#[path = "support/host.rs"]
mod host;
mod support;

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lodger::sys::{fd, signal};

use host::{Host, sh};
use support::pause;

/// A websocket's pong from a server, without content.
const PONG: [u8; 2] = [0x8a, 0];

/// Bytes that can be read now.
fn read_some(fd: impl AsFd) -> usize {
    let mut bytes = [0; 64 << 10];
    fd::read(fd.as_fd(), &mut bytes).unwrap_or(0)
}

#[test]
fn a_host_that_never_stops_talking_gets_output_and_keeps_nobody_from_stopping() {
    let host = Host::new(sh("sleep 60"));
    let mut guest = host.guest(&[]);
    let (stream, _) = host.shell_stream(&["sh", "-c", "while :; do echo x; sleep 0.1; done"], false);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let many = PONG.repeat(30_000);
            let mut left = &many[..];
            while !over.load(Ordering::SeqCst) {
                match fd::write(stream.output(), left) {
                    Ok(count) => left = &left[count..],
                    Err(_) => drop(fd::wait_for(stream.output(), fd::WRITE, Some(Duration::from_millis(20)))),
                }
                // Frames are never cut in the middle for good.
                if left.is_empty() {
                    left = &many;
                }
            }
        });
        pause(Duration::from_secs(1));
        while read_some(stream.input()) > 0 {}
        pause(Duration::from_secs(1));
        let found = read_some(stream.input());
        let asked = Instant::now();
        let _ = signal::send(guest.0.id() as i32, signal::SIGTERM);
        let mut ended = false;
        while !ended && asked.elapsed() < Duration::from_secs(8) {
            std::thread::sleep(Duration::from_millis(10));
            ended = guest.0.try_wait().expect("a child").is_some();
        }
        over.store(true, Ordering::SeqCst);
        assert!(found > 0, "no output");
        assert!(ended, "it goes on");
    });
}

#[test]
fn acks_of_what_was_never_sent_fill_no_memory() {
    let host = Host::new(sh("sleep 60"));
    let guest = host.guest(&[]);
    let mut shell = host.shell(&["sh", "-c", "cat /dev/zero & exec cat /dev/zero >&2"], false);
    let before = guest.memory_kib();
    for _ in 0..100 {
        for stream in [1, 2] {
            shell.send(vec![1, stream, 255, 255, 255, 255]);
        }
        pause(Duration::from_millis(10));
    }
    pause(Duration::from_secs(1));
    let after = guest.memory_kib();
    assert!(after < before + 4096, "{before} KiB before, {after} after");
}

#[test]
fn a_terminal_that_nobody_has_open_may_be_opened_again() {
    let script = "exec </dev/null >/dev/null 2>&1; sleep 1; seq 1 5000 >/dev/tty; sleep 0.5; echo end >/dev/tty";
    let host = Host::new(sh("sleep 60"));
    let guest = host.guest(&[]);
    let (stdout, _, success) = host.shell(&["sh", "-c", script], true).run(b"", false);
    let numbers = (1..=5000).map(|number| format!("{number}\r\n")).collect::<String>() + "end\r\n";
    assert!(String::from_utf8_lossy(&stdout) == numbers && success, "{} bytes of the shell", stdout.len());
    assert!(guest.ticks() < 60, "{} ticks", guest.ticks());
}

#[test]
fn input_of_a_terminal_that_ends_in_the_middle_of_a_line_ends_the_program() {
    let host = Host::new(sh("sleep 60"));
    let _guest = host.guest(&[]);
    for (command, input, wanted) in
        [("cat", "abc", "abcabc"), ("cat", "abc\n", "abc\r\nabc\r\n"), ("sh", "exit 0", ""), ("cat", "", "")]
    {
        let start = Instant::now();
        let (stdout, _, success) = host.shell(&[command], true).run(input.as_bytes(), true);
        let text = String::from_utf8_lossy(&stdout).into_owned();
        assert!(text.contains(wanted) && success, "{command} {input:?}: {text}");
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    }
}

#[test]
fn a_program_that_goes_on_after_the_end_of_a_terminals_input_is_ended() {
    let host = Host::new(sh("sleep 60"));
    let _guest = host.guest(&[]);
    let start = Instant::now();
    let mut shell = host.shell(&["sleep", "60"], true);
    assert!(!shell.run(b"", true).2);
    assert!(start.elapsed() >= Duration::from_secs(4) && start.elapsed() < Duration::from_secs(15));
    assert_eq!(shell.raw.last(), Some(&vec![5, 1]));
}
