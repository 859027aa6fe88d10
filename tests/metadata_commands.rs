//! The commands for a running host of the metadata service: where files go, and how shells end.
#![cfg(feature = "metadata")]

#[path = "support/service.rs"]
mod service;
mod support;

use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use lodger::sys::{fd, signal};

use service::{Guest, Host, output_within};
use support::{PATIENCE, catches, pause, wait_until};

/// A host and a guest that do nothing by themselves.
fn both() -> (Host, Guest) {
    let host = Host::start("true");
    let guest = Guest::start(&host.address(), &[]);
    (host, guest)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn get_writes_what_a_name_leads_to_and_keeps_what_that_is() {
    let (host, _guest) = both();
    let path = |name: &str| host.folder.path(name);
    let name = |name: &str| path(name).display().to_string();
    fs::write(path("remote"), "new").expect("a file");
    fs::write(path("real"), "old").expect("a file");
    symlink("real", path("link")).and_then(|()| symlink("later", path("dangling"))).expect("links");
    fs::set_permissions(path("real"), Permissions::from_mode(0o751)).expect("a mode");
    for (local, real) in [("link", "real"), ("dangling", "later")] {
        assert!(host.run(&["get", &name("remote"), &name(local)], b"").status.success());
        assert!(fs::symlink_metadata(path(local)).expect("a link").is_symlink());
        assert_eq!(fs::read_to_string(path(real)).expect("a file"), "new");
    }
    assert_eq!(fs::metadata(path("real")).expect("a file").permissions().mode() & 0o777, 0o751);
    assert!(Command::new("mkfifo").arg(path("pipe")).status().expect("mkfifo").success());
    let pipe = path("pipe");
    let reader = thread::spawn(move || fs::read_to_string(pipe).expect("a pipe"));
    assert!(host.run(&["get", &name("remote"), &name("pipe")], b"").status.success());
    assert_eq!(reader.join().expect("an end"), "new");
    assert!(fs::symlink_metadata(path("pipe")).expect("a pipe").file_type().is_fifo());
    let long = "n".repeat(250);
    assert!(host.run(&["get", &name("remote"), &name(&long)], b"").status.success());
    assert_eq!(fs::read_to_string(path(&long)).expect("a file"), "new");
}

#[test]
fn get_refuses_names_that_are_none_before_it_asks() {
    // Without a guest it would wait.
    let host = Host::start("true");
    let path = |name: &str| host.folder.path(name).display().to_string();
    for (local, why) in [
        (String::new(), "an empty name".to_owned()),
        (path("new/"), format!("{}: there is no such directory", path("new/"))),
        (path("new/file"), format!("{}: no such file or directory", path("new/file"))),
    ] {
        let child = host.command(&["get", "/remote", &local]).spawn().expect("get");
        let output = output_within(child, PATIENCE);
        assert_eq!(output.status.code(), Some(125));
        assert!(text(&output.stderr).contains(&format!("get /remote: {why}")), "{}", text(&output.stderr));
    }
    let child = host.command(&["get", "/", &path("")]).spawn().expect("get");
    assert!(text(&output_within(child, PATIENCE).stderr).contains("no name for a file"));
}

#[test]
fn a_get_that_is_interrupted_leaves_nothing() {
    let host = Host::start("true");
    let local = host.folder.path("local").display().to_string();
    for number in [signal::SIGINT, signal::SIGTERM, signal::SIGHUP] {
        let child = host.command(&["get", "/remote", &local]).spawn().expect("get");
        let hidden = || {
            let names = fs::read_dir(&host.folder.0).expect("a folder").flatten();
            names.filter(|entry| text(entry.file_name().as_encoded_bytes()).starts_with(".lodger-")).count()
        };
        wait_until("it has begun", || hidden() == 1);
        signal::send(child.id() as i32, number).expect("a signal");
        assert_eq!(output_within(child, PATIENCE).status.code(), Some(128 + number));
        assert_eq!(hidden(), 0);
    }
}

#[test]
fn a_shell_whose_output_nobody_takes_can_be_ended() {
    let (host, _guest) = both();
    for script in ["head -c 110000 /dev/zero", "exec yes"] {
        let (rd, wr) = fd::pipe().expect("a pipe");
        let mut command = host.command(&["shell", "--", "sh", "-c", script]);
        let child = command.stdin(Stdio::null()).stdout(wr).spawn().expect("shell");
        drop(command);
        wait_until("something is there", || fd::wait_for(rd.as_fd(), fd::READ, None).is_ok());
        pause(Duration::from_millis(500));
        signal::send(child.id() as i32, signal::SIGINT).expect("a signal");
        assert_eq!(output_within(child, Duration::from_secs(10)).status.code(), Some(130), "{script}");
    }
}

#[test]
fn a_shell_ends_when_its_output_cannot_be_written() {
    let (host, _guest) = both();
    let (rd, wr) = fd::pipe().expect("a pipe");
    let child = host.command(&["shell", "--", "yes"]).stdout(wr).spawn().expect("shell");
    let mut some = [0; 10];
    File::from(rd).read_exact(&mut some).expect("output");
    let output = output_within(child, Duration::from_secs(10));
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(125), String::new()));
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("a device");
    let child = host.command(&["shell", "--", "echo", "hi"]).stdout(full).spawn().expect("shell");
    let output = output_within(child, Duration::from_secs(10));
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("no space left on device"), "{}", text(&output.stderr));
}

#[test]
fn a_signal_that_is_to_be_ignored_is() {
    let host = Host::start("true");
    let plain = host.command(&["get", "/remote", "-"]);
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).arg(plain.get_program()).args(plain.get_args());
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?)))).stderr(Stdio::piped());
    let mut child = command.spawn().expect("get");
    let mut said = [0; 200];
    let count = child.stderr.as_mut().expect("a pipe").read(&mut said).expect("a hint");
    assert!(text(&said[..count]).contains("still waiting"));
    signal::send(child.id() as i32, signal::SIGHUP).expect("a signal");
    pause(Duration::from_millis(100));
    assert!(child.try_wait().expect("our child").is_none(), "it goes on");
    signal::send(child.id() as i32, signal::SIGTERM).expect("a signal");
    assert_eq!(output_within(child, PATIENCE).status.code(), Some(143));
}

/// A guest that has taken the shell, and says nothing yet.
fn taken(host: &Host) -> UnixStream {
    let mut guest = UnixStream::connect(host.socket()).expect("the host listens");
    guest.write_all(b"GET /engine/v1/poll HTTP/1.1\r\n\r\n").expect("a poll");
    let mut read = vec![0; 4096];
    let mut count = 0;
    while !text(&read[..count]).contains("\"tty\"") {
        count += guest.read(&mut read[count..]).expect("an action");
    }
    let action = text(&read[..count]);
    let id = action.split("\"id\":\"").nth(1).expect("an id").split('"').next().expect("an id").to_owned();
    let mut raw = UnixStream::connect(host.socket()).expect("the host listens");
    let head = format!(
        "GET /engine/v1/reply?id={id} HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    );
    raw.write_all(head.as_bytes()).expect("a handshake");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        raw.read_exact(&mut byte).expect("an answer");
        answer.push(byte[0]);
    }
    assert!(text(&answer).starts_with("HTTP/1.1 101 "));
    raw
}

#[test]
fn a_guest_that_never_stops_talking_does_not_keep_a_shell_from_its_signals() {
    let host = Host::start("true");
    // Empty texts, messages, pongs, and pieces of a message that never ends.
    for (first, unit) in [(&b""[..], 0x81), (b"", 0x82), (b"", 0x8a), (b"\x02\x80\0\0\0\0", 0x00)] {
        let child = host.command(&["shell"]).spawn().expect("shell");
        let mut guest = taken(&host);
        let flood = [unit, 0x80, 0, 0, 0, 0].repeat(20_000);
        let over = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&over);
        let first = first.to_vec();
        let talking = thread::spawn(move || {
            let _ = guest.write_all(&first);
            while !is_over.load(Ordering::SeqCst) && guest.write_all(&flood).is_ok() {}
        });
        // Its handlers come behind the handshake.
        wait_until("it catches signals", || catches(child.id(), signal::SIGINT));
        pause(Duration::from_millis(300));
        signal::send(child.id() as i32, signal::SIGINT).expect("a signal");
        let output = output_within(child, Duration::from_secs(10));
        over.store(true, Ordering::SeqCst);
        talking.join().expect("an end");
        assert_eq!(output.status.code(), Some(130), "{unit:x}");
    }
}

#[test]
fn a_command_without_a_guest_says_that_it_waits() {
    let host = Host::start("true");
    let mut kill = host.command(&["kill"]).spawn().expect("kill");
    let mut said = [0; 200];
    let count = kill.stderr.take().expect("a pipe").read(&mut said).expect("a hint");
    assert!(text(&said[..count]).contains("still waiting for the guest"), "{}", text(&said[..count]));
    kill.kill().and_then(|()| kill.wait()).expect("our child");
}

#[test]
fn every_subcommand_has_the_help() {
    for word in ["run", "serve", "get", "ls", "shell", "kill"] {
        for option in ["--help", "-h"] {
            let output = Command::new(env!("CARGO_BIN_EXE_lodger")).args(["metadata", word, option]).output();
            let output = output.expect("an end");
            assert!(output.status.success() && text(&output.stdout).contains("usage: lodger metadata run"), "{word}");
        }
    }
}
