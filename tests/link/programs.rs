//! Programs and files over a line in fair weather.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lodger::sys::signal::SIGTERM;

use crate::client::{Running, noise, read_until};
use crate::line::{Line, Way, Weather};
use crate::rig::{Rig, start_agent, wait_for};
use crate::support::{Folder, PATIENCE, status, wait_until};

#[test]
fn a_program_has_its_streams_and_its_exit_status() {
    for rig in [Rig::start(Weather::clear()), Rig::start_with_socket(Weather::clear())] {
        let input = noise(1, 1_000_000);
        let mut command = rig.command(&["exec", "--", "sh", "-c", "cat; echo to stderr >&2; exit 7"]);
        command.stdin(Stdio::piped());
        let mut running = Running::start(command);
        let (mut stdin, bytes) = (running.stdin(), input.clone());
        let writer = std::thread::spawn(move || stdin.write_all(&bytes));
        let done = running.finish();
        writer.join().expect("a thread").expect("all input is taken");
        assert_eq!((done.code, done.stderr().as_str()), (Some(7), "to stderr\n"));
        assert!(done.stdout == input, "{} bytes came back", done.stdout.len());
    }
}

#[test]
fn a_program_that_is_missing_or_killed_is_told_from_one_that_fails() {
    let rig = Rig::start(Weather::clear());
    assert_eq!(rig.run(&["exec", "--", "no-such-program"]).code, Some(127));
    assert_eq!(rig.run(&["exec", "--", "/etc"]).code, Some(126));
    assert_eq!(rig.shell("kill -SEGV $$").code, Some(128 + 11));
    assert_eq!(rig.run(&["exec", "--", "false"]).code, Some(1));
}

#[test]
fn commands_follow_each_other_at_once() {
    for rig in [Rig::start(Weather::clear()), Rig::start_with_socket(Weather::clear())] {
        for round in 0..20 {
            assert_eq!(rig.shell(&format!("echo {round}")).good(), format!("{round}\n").into_bytes());
        }
    }
}

#[test]
fn nothing_of_a_command_stays_when_it_has_ended() {
    let rig = Rig::start(Weather::clear());
    let before = rig.numbers_at_first();
    for round in 0..60 {
        assert_eq!(rig.shell(&format!("echo {round}")).code, Some(0));
        // The thread of one command may wait for the next.
        rig.wait_until_left_with((before.0, before.1 + 1));
    }
    rig.wait_until_left_with(before);
}

#[test]
fn an_agent_that_comes_late_is_found() {
    for round in 0..4 {
        let (folder, line) = (Folder::new(), Line::start(Weather::clear()));
        let mut command = crate::client::lodger(["exec", "--", "echo", "found"]);
        command.env("LODGER_TO", line.host_address());
        let running = Running::start(command);
        wait_for(Duration::from_millis(round * 300));
        struct Guard(std::process::Child);
        impl Drop for Guard {
            fn drop(&mut self) {
                let _ = self.0.kill();
                let _ = self.0.wait();
            }
        }
        let _agent = Guard(start_agent(&line));
        assert_eq!(running.finish().good(), b"found\n");
        drop(folder);
    }
}

/// Names, kinds, permissions and contents below a folder.
fn listing(root: &Path) -> Vec<(String, u32, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder").flatten() {
            let (path, kind) = (entry.path(), entry.file_type().expect("a type"));
            let name = path.strip_prefix(root).expect("found there").display().to_string();
            let mode = fs::symlink_metadata(&path).expect("it is there").permissions().mode();
            let content = match () {
                () if kind.is_symlink() => fs::read_link(&path).expect("a link").display().to_string().into_bytes(),
                () if kind.is_file() => fs::read(&path).expect("a file"),
                () => Vec::new(),
            };
            if kind.is_dir() {
                folders.push(path);
            }
            found.push((name, mode, content));
        }
    }
    found.sort();
    found
}

/// Copies a tree into the guest and out again; both must be what it is.
pub fn copy_a_tree_both_ways(rig: &Rig, what: &str) {
    let tree = rig.folder.path("tree");
    fs::create_dir_all(tree.join("deep/er")).expect("folders");
    fs::write(tree.join("big"), noise(3, 300_000)).expect("a file");
    fs::write(tree.join("zeros"), vec![0; 70_000]).expect("a file");
    fs::write(tree.join("empty"), "").expect("a file");
    for number in 0..30 {
        fs::write(tree.join(format!("deep/{number}")), noise(number, 300)).expect("a file");
    }
    fs::write(tree.join("deep/er/script"), "#!/bin/sh\n").expect("a file");
    fs::set_permissions(tree.join("deep/er/script"), fs::Permissions::from_mode(0o751)).expect("a mode");
    std::os::unix::fs::symlink("deep/er", tree.join("link")).expect("a link");
    let (there, back) = (rig.folder.path("there"), rig.folder.path("back"));
    let guest = format!("guest:{}", there.display());
    let into = rig.run(&["cp", "-r", tree.to_str().expect("text"), &guest]);
    assert_eq!((into.code, into.stderr().as_str()), (Some(0), ""), "{what}");
    assert!(listing(&there) == listing(&tree), "{what}: into the guest");
    let out = rig.run(&["cp", "-r", &guest, back.to_str().expect("text")]);
    assert_eq!((out.code, out.stderr().as_str()), (Some(0), ""), "{what}");
    assert!(listing(&back) == listing(&tree), "{what}: out of the guest");
}

#[test]
fn a_tree_goes_into_a_guest_and_comes_back_the_same() {
    copy_a_tree_both_ways(&Rig::start(Weather::clear()), "terminals");
    copy_a_tree_both_ways(&Rig::start_with_socket(Weather::clear()), "a socket");
}

#[test]
fn output_that_nobody_reads_waits_and_is_all_there_later() {
    let rig = Rig::start(Weather::clear());
    assert_eq!(rig.run(&["exec", "--", "true"]).code, Some(0));
    let mut running = Running::start(rig.command(&["exec", "--", "head", "-c", "10000000", "/dev/zero"]));
    let (mut taken, mut since) = (0, Instant::now());
    wait_until("the line stands still", || {
        let now = rig.line.taken(Way::ToHost);
        if now != taken {
            (taken, since) = (now, Instant::now());
        }
        taken > 0 && since.elapsed() > Duration::from_millis(300)
    });
    assert!(taken < 4 << 20, "{taken} bytes are under way to somebody who does not read");
    assert!(status(rig.agent(), "VmRSS") < 32 << 10, "the agent holds {} kB", status(rig.agent(), "VmRSS"));
    let mut all = Vec::new();
    running.stdout().read_to_end(&mut all).expect("output");
    assert_eq!((running.finish().code, all.len()), (Some(0), 10_000_000));
    assert!(all.iter().all(|byte| *byte == 0));
}

#[test]
fn a_client_that_stands_still_with_its_output_unread_can_be_ended() {
    let rig = Rig::start(Weather::clear());
    let running = Running::start(rig.command(&["exec", "--", "yes"]));
    wait_until("it is under way", || rig.line.passed(Way::ToHost) > 10_000);
    let stopped = Command::new("kill").args(["-STOP", &running.pid().to_string()]).status();
    assert!(stopped.is_ok_and(|status| status.success()));
    wait_for(Duration::from_millis(300));
    drop(running);
    assert_eq!(rig.shell("echo next").good(), b"next\n");
}

#[test]
fn a_signal_reaches_the_program() {
    let rig = Rig::start(Weather::clear());
    let script = "trap 'echo told; exit 9' TERM; echo ready; while :; do sleep 0.05; done";
    let mut running = Running::start(rig.command(&["exec", "--", "sh", "-c", script]));
    let mut stdout = running.stdout();
    read_until(&mut stdout, "ready\n");
    running.signal(SIGTERM);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).expect("text");
    assert_eq!((running.finish().code, rest.as_str()), (Some(9), "told\n"));
}

#[test]
fn a_line_of_115200_baud_carries_a_file_each_way() {
    let rig = Rig::start(Weather::paced(11_520));
    let bytes = noise(5, 15_000);
    let done = rig.cat(&bytes);
    assert!(done.code == Some(0) && done.stdout == bytes, "{} bytes: {}", done.stdout.len(), done.stderr());
}

#[test]
fn a_line_that_stands_still_for_a_while_loses_nothing() {
    for ways in [vec![Way::ToGuest], vec![Way::ToHost], vec![Way::ToGuest, Way::ToHost]] {
        let rig = Rig::start(Weather::clear());
        let mut running = Running::start(rig.command(&["exec", "--", "seq", "1", "600000"]));
        let before = rig.line.passed(Way::ToHost);
        wait_until("it is under way", || rig.line.passed(Way::ToHost) > before + 100_000);
        ways.iter().for_each(|way| rig.line.freeze(*way));
        wait_for(Duration::from_secs(2));
        ways.iter().for_each(|way| rig.line.thaw(*way));
        let mut out = String::new();
        running.stdout().read_to_string(&mut out).expect("text");
        assert_eq!(running.finish().code, Some(0), "{ways:?}");
        assert!(out.lines().map(str::to_owned).eq((1..=600_000).map(|number| number.to_string())), "{ways:?}");
    }
}

#[test]
fn a_line_that_is_cut_ends_the_command_and_the_program() {
    let mut rig = Rig::start(Weather::clear());
    let mut running = Running::start(rig.command(&["exec", "--", "sh", "-c", "echo $$; exec sleep 1000"]));
    let (mut stdout, mut byte, mut pid) = (running.stdout(), [0], String::new());
    while !pid.ends_with('\n') {
        assert_eq!(stdout.read(&mut byte).expect("output"), 1);
        pid.push(char::from(byte[0]));
    }
    rig.line.cut();
    let start = Instant::now();
    let done = running.finish();
    assert_eq!((done.code, done.stderr().lines().count()), (Some(125), 1), "{}", done.stderr());
    let pid = pid.trim().parse().expect("a number");
    wait_until("the program is gone", || !crate::support::lives(pid));
    assert!(start.elapsed() < PATIENCE);
}

#[test]
fn the_program_of_a_call_ends_when_its_client_leaves() {
    let rig = Rig::start(Weather::clear());
    let before = rig.numbers_at_first();
    let times = [(); 3].map(|()| {
        let start = Instant::now();
        let left = rig.run(&["call", "--timeout", "0.3", "process.run", "argv=[\"sleep\",\"55\"]"]);
        assert_eq!(left.code, Some(125), "{}", left.stderr());
        start.elapsed()
    });
    // It says that it leaves, and does not wait for an answer to that which nobody gives. The machine may be busy now and then.
    assert!(times.iter().any(|time| *time < Duration::from_millis(1200)), "{times:?}");
    rig.wait_until_left_with(before);
}
