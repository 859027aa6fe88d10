//! The end of all programs of a pod, without that of the machine.

use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use lodger::commands::table::Table;
use lodger::proto::hyper::ending::{LAST_WORDS, PATIENCE, end_programs};
use lodger::proto::hyper::pair::{Channel, Role, Seat};
use lodger::proto::hyper::{process, tty};
use lodger::proto::settings::Settings;
use lodger::proto::{Circumstances, Opening};
use lodger::stream::Stream;
use lodger::sys::fd;
use serde_json::json;

use crate::support::{Folder, wait_until};

/// Ends the tty channel, also of a test that has failed, whose thread would be waited for otherwise.
struct Rung<'a>(&'a Stream);

impl Drop for Rung<'_> {
    fn drop(&mut self) {
        let _ = fd::write(self.0.output(), b"!");
    }
}

/// A pair whose ctl channel is the test's; what has come over tty when all is over, and the time that it took. Scripts say READY
/// once they are. To a host that does not read, nothing can be written from the beginning.
fn end(scripts: &[&str], reads: bool, patience: Duration) -> (Vec<u8>, Duration) {
    let settings = Settings::with(Table::empty());
    let (stop, ring) = Stream::pair().expect("sockets");
    let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().expect("sockets");
    if !reads {
        theirs.set_nonblocking(true).expect("a socket");
        while theirs.write(&[0]).is_ok() {}
    }
    let (ctl, _host) = Stream::pair().expect("sockets");
    let folder = Folder::new();
    let ready: Vec<_> = (0..scripts.len()).map(|index| folder.path(&index.to_string())).collect();
    thread::scope(|scope| {
        let (settings, stop) = (&settings, &stop);
        let serving = scope.spawn(move || {
            let circumstances = Circumstances {
                pinned: None,
                opening: Opening::Peer,
                stop: stop.input(),
                accepted: Instant::now(),
                settings,
            };
            tty::serve(Stream::over(theirs), b"", &circumstances).expect("it serves")
        });
        let seat: Seat = settings.hyper.enter(Channel::Ctl, &ctl).expect("a bell").expect("a place");
        for (index, script) in scripts.iter().enumerate() {
            let stdio = 3 + 2 * index as u64;
            let script = script.replace("READY", &format!(": > {}", ready[index].display()));
            let value = json!({ "args": ["sh", "-c", script], "stdio": stdio, "stderr": stdio + 1 });
            settings.hyper.start("hyperstart", Role::Further, process::read(&value).expect("one")).expect("it starts");
        }
        let rung = Rung(&ring);
        wait_until("the programs are ready", || ready.iter().all(|file| file.exists()));
        let start = Instant::now();
        end_programs(&settings.hyper, &seat.bell, patience, stop.input());
        let time = start.elapsed();
        let mut said = Vec::new();
        if reads {
            // What is there now, and nothing that comes later.
            let mut socket = &ours;
            socket.set_nonblocking(true).expect("a socket");
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = socket.read(&mut piece) {
                said.extend_from_slice(&piece[..count]);
            }
        }
        drop(rung);
        serving.join().expect("no panic");
        drop(seat.leave(Vec::new()));
        (said, time)
    })
}

#[test]
fn programs_say_farewell_before_all_is_over() {
    let script = "exec 2>/dev/null; trap 'echo term; exit 9' TERM; READY; while :; do sleep 0.05; done";
    let (said, time) = end(&[script], true, PATIENCE);
    let whole = [tty::encode(3, b"term\n"), tty::encode(3, b""), tty::encode(3, &[9])].concat();
    assert_eq!(said, whole);
    assert!(time < PATIENCE, "{time:?}");
}

#[test]
fn without_programs_all_is_over_at_once() {
    let (said, time) = end(&[], true, PATIENCE);
    assert!(said.is_empty() && time < Duration::from_secs(1), "{time:?}");
}

#[test]
fn who_ignores_the_signal_is_killed_at_once_and_who_is_stopped_goes_on() {
    let scripts =
        ["trap '' TERM; READY; exec sleep 1000", "trap 'exit 8' TERM; READY; kill -STOP $$; sleep 0.1; exit 7"];
    let (said, time) = end(&scripts, true, PATIENCE);
    for code in [tty::encode(3, &[137]), tty::encode(5, &[8])] {
        assert!(said.windows(code.len()).any(|bytes| bytes == code), "{code:?} in {said:?}");
    }
    assert!(time < PATIENCE, "{time:?}");
}

#[test]
fn who_does_not_end_is_killed_after_a_while() {
    let patience = Duration::from_millis(300);
    let (said, time) = end(&["trap : TERM; READY; while :; do sleep 0.05; done"], true, patience);
    assert!(said.ends_with(&tty::encode(3, &[137])), "{said:?}");
    assert!(time >= patience, "{time:?}");
}

#[test]
fn a_host_that_reads_nothing_does_not_keep_the_machine() {
    let patience = Duration::from_millis(300);
    let (_, time) = end(&["trap '' PIPE; trap : TERM; READY; cat /dev/zero"], false, patience);
    assert!(time >= LAST_WORDS && time < patience + LAST_WORDS + PATIENCE, "{time:?}");
}

#[test]
fn without_a_tty_channel_the_time_counts_or_the_end_of_the_agent() {
    for ends in [false, true] {
        let pair = Settings::with(Table::empty()).hyper;
        let (ctl, _host) = Stream::pair().expect("sockets");
        let (stop, ring) = Stream::pair().expect("sockets");
        let seat = pair.enter(Channel::Ctl, &ctl).expect("a bell").expect("a place");
        let value = json!({ "args": ["sleep", "1000"], "stdio": 3, "stderr": 4 });
        pair.start("hyperstart", Role::Further, process::read(&value).expect("one")).expect("it starts");
        if ends {
            fd::write(ring.output(), b"!").expect("room");
        }
        let start = Instant::now();
        end_programs(&pair, &seat.bell, Duration::from_millis(100), stop.input());
        assert_eq!(start.elapsed() >= LAST_WORDS, !ends, "{:?}", start.elapsed());
        drop(seat.leave(Vec::new()));
    }
}
