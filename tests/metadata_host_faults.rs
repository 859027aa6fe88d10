//! The host's side of the metadata service when a guest, a command or the place of the log does what it should not.
#![cfg(feature = "metadata")]

#[path = "support/service.rs"]
mod service;
mod support;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{ChildStderr, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use lodger::metadata::actions::{Store, Timers};
use lodger::metadata::endpoints::FILES_MAX;
use lodger::metadata::host::CONNECTIONS_MAX;
use lodger::metadata::service::{ArtifactError, Service};
use lodger::metaservice::{Action, Kind};
use lodger::stream::Stream;
use lodger::sys::{fd, signal};

use service::{Host, Process};
use support::{Folder, PATIENCE, pause, status, wait_until};

/// A service in this process, and what its callback was called with.
struct Rig {
    service: Arc<Service>,
    results: Arc<Mutex<Vec<bool>>>,
}

impl Rig {
    fn new(command: &[String]) -> Rig {
        Rig::with_timers(command, Timers::default())
    }

    fn with_timers(command: &[String], timers: Timers) -> Rig {
        let results: Arc<Mutex<Vec<bool>>> = Arc::default();
        let seen = Arc::clone(&results);
        let callback = Box::new(move |success| seen.lock().expect("results").push(success));
        let service = Service::new(command, &[], Box::new(io::sink()), callback).expect("a service");
        let service = service.with_timers(timers);
        Rig { service: Arc::new(service), results }
    }

    /// The guest's end of a new connection.
    fn connect(&self) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        theirs.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let service = Arc::clone(&self.service);
        thread::spawn(move || service.serve_connection(Stream::over(ours)));
        theirs
    }

    fn results(&self) -> Vec<bool> {
        self.results.lock().expect("results").clone()
    }
}

fn request(peer: &mut UnixStream, method: &str, target: &str, headers: &str, body: &[u8]) {
    let head = format!("{method} {target} HTTP/1.1\r\nHost: h\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
    peer.write_all(head.as_bytes()).and_then(|()| peer.write_all(body)).expect("the host reads");
}

/// The head of a response and its body.
fn response(peer: &mut UnixStream) -> (String, String) {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        peer.read_exact(&mut byte).expect("a response");
        text.push(byte[0]);
    }
    let head = String::from_utf8(text).expect("text");
    let length = head.split("Content-Length: ").nth(1).and_then(|rest| rest.split("\r\n").next()).unwrap_or("0");
    let mut body = vec![0; length.parse().expect("a number")];
    peer.read_exact(&mut body).expect("a body");
    (head, String::from_utf8(body).expect("text"))
}

#[test]
fn whoever_repeats_a_result_does_not_announce_it_before_its_answer() {
    // One response that nobody reads fills the line, so that the next one waits.
    let rig = Rig::new(&["x".repeat(100_000)]);
    let mut first = rig.connect();
    request(&mut first, "GET", "/engine/v1/execute", "", b"");
    request(&mut first, "PUT", "/engine/v1/success", "", b"");
    wait_until("there is a result", || rig.service.result() == Some(true));
    let mut second = rig.connect();
    request(&mut second, "PUT", "/engine/v1/success", "", b"");
    assert!(response(&mut second).0.starts_with("HTTP/1.1 200 "));
    thread::sleep(Duration::from_millis(50));
    assert!(rig.results().is_empty(), "the first one has no answer");
    response(&mut first);
    assert!(response(&mut first).0.starts_with("HTTP/1.1 200 "));
    wait_until("it is announced", || rig.results() == [true]);
}

/// A connection of a guest, or of a command.
fn connect(path: &Path) -> UnixStream {
    let peer = UnixStream::connect(path).expect("the host listens");
    peer.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    peer
}

/// A host whose task nobody does.
fn host(options: &[&str]) -> Host {
    Host::start_with(options, &["true"])
}

fn poll(guest: &mut UnixStream) -> Action {
    request(guest, "GET", "/engine/v1/poll", "", b"");
    Action::from_json(&response(guest).1).expect("an action")
}

fn reply(guest: &mut UnixStream, action: &Action, headers: &str, body: &[u8]) -> (String, String) {
    request(guest, "POST", &format!("/engine/v1/reply?id={}", action.id), headers, body);
    response(guest)
}

/// A command that says no more than its line.
fn command(host: &Host, line: &str) -> UnixStream {
    let mut peer = connect(&host.control());
    writeln!(peer, "{line}").expect("the host reads");
    peer
}

#[test]
fn a_command_that_was_cancelled_does_not_reach_the_guest() {
    let host = host(&[]);
    for line in [r#"{"do":"shell","command":["rm"]}"#, r#"{"do":"get","path":"/a"}"#, r#"{"do":"kill"}"#] {
        let cancelled = command(&host, line);
        pause(Duration::from_millis(100));
        // A child that another test is about to start may have a copy of it.
        cancelled.shutdown(Shutdown::Both).expect("a shutdown");
    }
    let mut guest = connect(&host.socket());
    let list = command(&host, r#"{"do":"ls","path":"/d"}"#);
    assert_eq!(poll(&mut guest).kind, Kind::ListFolder);
    // A shell whose action is on its way already is refused when the guest comes for it.
    drop(list);
    // The host's own thread, and that for the guest.
    let is_alone = || status(host.pid(), "Threads") == 2;
    wait_until("no command is left", is_alone);
    let cancelled = command(&host, r#"{"do":"shell","command":["rm"]}"#);
    let action = poll(&mut guest);
    assert_eq!(action.kind, Kind::ExecShell);
    // Until the command waits for the reply, and no longer for the poll.
    pause(Duration::from_millis(50));
    let start = Instant::now();
    cancelled.shutdown(Shutdown::Both).expect("a shutdown");
    wait_until("the host knows", is_alone);
    assert!(start.elapsed() < Duration::from_secs(15), "it was not the time for a reply that ended it");
    assert!(reply(&mut guest, &action, "", b"").1.contains("UnknownActionId"));
}

#[test]
fn one_who_only_says_no_more_still_gets_an_answer() {
    let host = host(&[]);
    let mut half_closed = command(&host, r#"{"do":"kill"}"#);
    half_closed.shutdown(Shutdown::Write).expect("a shutdown");
    let mut guest = connect(&host.socket());
    let action = poll(&mut guest);
    reply(&mut guest, &action, "", b"");
    let mut answer = Vec::new();
    half_closed.read_to_end(&mut answer).expect("an answer");
    assert_eq!(answer, b"Z\0\0\0\0");
}

#[test]
fn a_reply_that_stalls_is_cut_when_nobody_wants_it_any_more() {
    let mut host = host(&[]);
    let get = command(&host, r#"{"do":"get","path":"/a"}"#);
    let mut guest = connect(&host.socket());
    let action = poll(&mut guest);
    let mut stalled = connect(&host.socket());
    let head = format!("POST /engine/v1/reply?id={} HTTP/1.1\r\nContent-Length: 100\r\n\r\nhalf", action.id);
    stalled.write_all(head.as_bytes()).expect("the host reads");
    pause(Duration::from_millis(100));
    drop(get);
    let mut text = String::new();
    let _ = stalled.read_to_string(&mut text);
    succeed(&mut guest);
    assert_eq!(host.wait(), Some(0));
}

#[test]
fn a_connection_that_asks_for_nothing_does_not_hold_the_host() {
    let mut host = host(&[]);
    let mut silent = connect(&host.control());
    let mut half = connect(&host.control());
    half.write_all(b"{\"do\":").expect("the host reads");
    pause(Duration::from_millis(50));
    let mut guest = connect(&host.socket());
    let start = Instant::now();
    succeed(&mut guest);
    assert_eq!(host.wait(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    let _ = (silent.read(&mut [0; 1]), half.read(&mut [0; 1]));
}

#[test]
fn a_kill_does_not_wait_behind_other_commands() {
    let host = host(&[]);
    let _gets: Vec<UnixStream> = (0..40).map(|_| command(&host, r#"{"do":"get","path":"/a"}"#)).collect();
    pause(Duration::from_millis(200));
    let _kill = command(&host, r#"{"do":"kill"}"#);
    let mut guest = connect(&host.socket());
    let kinds: Vec<Kind> = (0..33).map(|_| poll(&mut guest).kind).collect();
    assert_eq!(kinds.iter().filter(|kind| **kind == Kind::KillProcess).count(), 1, "{kinds:?}");
}

#[test]
fn a_store_that_is_full_is_final_and_says_why() {
    struct Full;
    impl Store for Full {
        fn begin(&mut self) -> io::Result<()> {
            Ok(())
        }
        fn append(&mut self, _: &[u8]) -> io::Result<()> {
            Err(io::Error::from_raw_os_error(28))
        }
    }
    let rig = Rig::new(&[]);
    let service = Arc::clone(&rig.service);
    let asked = thread::spawn(move || service.get_artifact("/a", Box::new(Full)));
    let mut guest = rig.connect();
    let action = poll(&mut guest);
    assert!(reply(&mut guest, &action, "", b"content").0.starts_with("HTTP/1.1 500 "));
    let error = asked.join().expect("an answer").expect_err("it is full");
    assert!(matches!(&error, ArtifactError::Internal(why) if why.contains("no space left on device")), "{error}");
}

#[test]
fn a_command_line_too_long_for_the_socket_is_told() {
    let host = host(&[]);
    let word = "x".repeat(100_000);
    let words = [vec!["shell", "--"], vec![word.as_str(); 11]].concat();
    let output = host.run(&words, b"");
    assert_eq!(output.status.code(), Some(125));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("the command has 1100") && text.contains("1048576 is the limit"), "{text}");
}

/// A host that can be heard.
struct Heard {
    process: Process,
    said: BufReader<ChildStderr>,
    folder: Folder,
}

impl Heard {
    fn start(options: &[&str], stdout: impl Into<Stdio>) -> Heard {
        Heard::start_at("warn", options, stdout)
    }

    /// With this level of its own log.
    fn start_at(level: &str, options: &[&str], stdout: impl Into<Stdio>) -> Heard {
        let folder = Folder::new();
        let mut command = Command::new(env!("CARGO_BIN_EXE_lodger"));
        command.args(["metadata", "serve"]).env("LODGER_LOG", level);
        if !options.contains(&"--listen") {
            command.arg("--listen").arg(format!("unix:{}", folder.path("guest").display()));
        }
        command.args(options).args(["--", "true"]).stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped());
        let mut child = command.spawn().expect("a host");
        let said = BufReader::new(child.stderr.take().expect("a pipe"));
        Heard { process: Process(child), said, folder }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).expect("text");
        line
    }

    fn guest(&self) -> UnixStream {
        connect(&self.folder.path("guest"))
    }

    /// Its exit status, and all else that it says.
    fn finish(mut self) -> (Option<i32>, String) {
        let code = self.process.wait().code();
        let mut rest = String::new();
        self.said.read_to_string(&mut rest).expect("text");
        (code, rest)
    }
}

/// Asks for the task, and has done it.
fn succeed(guest: &mut UnixStream) {
    request(guest, "GET", "/engine/v1/execute", "", b"");
    assert!(response(guest).0.starts_with("HTTP/1.1 200 "));
    request(guest, "PUT", "/engine/v1/success", "", b"");
    assert!(response(guest).0.starts_with("HTTP/1.1 200 "));
}

#[test]
fn a_log_that_is_lost_is_told_once_and_counts_as_our_error() {
    let (rd, closed) = fd::pipe().expect("a pipe");
    drop(rd);
    let full = Heard::start(&["--log", "/dev/full"], Stdio::null());
    for (mut host, why) in
        [(full, "log /dev/full: no space left on device"), (Heard::start(&[], closed), "log stdout: broken pipe")]
    {
        assert!(host.line().contains("waiting for a guest at unix:"));
        let mut guest = host.guest();
        // The guest is not made to send it again.
        for _ in 0..2 {
            request(&mut guest, "POST", "/engine/v1/log", "", b"hello");
            assert!(response(&mut guest).0.starts_with("HTTP/1.1 200 "));
        }
        succeed(&mut guest);
        let (code, said) = host.finish();
        assert_eq!((code, said.matches(why).count()), (Some(125), 1), "{said}");
    }
}

#[test]
fn a_task_whose_log_nobody_reads_is_killed() {
    // A socket, whose end comes even if a child that another test is about to start has a copy of it.
    let (mut ours, theirs) = UnixStream::pair().expect("a socket pair");
    let mut host = Heard::start(&[], OwnedFd::from(theirs));
    host.line();
    let (mut guest, mut log) = (host.guest(), host.guest());
    log.write_all(b"POST /engine/v1/log HTTP/1.1\r\nContent-Length: 99\r\n\r\nfirst").expect("the host reads");
    ours.read_exact(&mut [0; 5]).expect("the first line");
    ours.shutdown(Shutdown::Both).expect("a shutdown");
    log.write_all(b"second").expect("the host reads");
    let action = poll(&mut guest);
    assert_eq!(action.kind, Kind::KillProcess);
    reply(&mut guest, &action, "", b"");
    request(&mut guest, "PUT", "/engine/v1/failed", "", b"");
    response(&mut guest);
    let (code, said) = host.finish();
    assert_eq!((code, said.matches("log stdout: broken pipe").count()), (Some(125), 1), "{said}");
    assert!(!said.contains("killing"), "{said}");
}

#[test]
fn a_log_waits_for_a_stdout_that_would_not() {
    let (rd, wr) = fd::pipe().expect("a pipe");
    fd::never_block(wr.as_fd()).expect("a flag");
    let mut host = Heard::start(&[], wr);
    host.line();
    let mut guest = host.guest();
    let reader = thread::spawn(move || {
        // The pipe is full before anybody reads.
        pause(Duration::from_millis(300));
        let mut all = Vec::new();
        File::from(rd).read_to_end(&mut all).expect("a log");
        all.len()
    });
    request(&mut guest, "POST", "/engine/v1/log", "", &vec![b'x'; 300_000]);
    assert!(response(&mut guest).0.starts_with("HTTP/1.1 200 "));
    succeed(&mut guest);
    assert_eq!(host.finish().0, Some(0));
    assert_eq!(reader.join().expect("an end"), 300_000);
}

#[test]
fn an_interrupt_behind_the_result_keeps_it_and_ends_the_lingering() {
    for (path, code) in [("success", 0), ("failed", 1)] {
        let mut host = Heard::start(&["--linger", "600"], Stdio::null());
        host.line();
        let mut guest = host.guest();
        request(&mut guest, "GET", "/engine/v1/execute", "", b"");
        response(&mut guest);
        request(&mut guest, "PUT", &format!("/engine/v1/{path}"), "", b"");
        response(&mut guest);
        pause(Duration::from_millis(50));
        host.process.signal(signal::SIGINT);
        assert_eq!(host.finish().0, Some(code));
    }
}

#[test]
fn a_hang_up_kills_the_task_as_an_interrupt_does() {
    let mut host = Heard::start(&[], Stdio::null());
    host.line();
    let mut guest = host.guest();
    request(&mut guest, "GET", "/engine/v1/execute", "", b"");
    response(&mut guest);
    host.process.signal(signal::SIGHUP);
    let action = poll(&mut guest);
    assert_eq!(action.kind, Kind::KillProcess);
    reply(&mut guest, &action, "", b"");
    request(&mut guest, "PUT", "/engine/v1/failed", "", b"");
    response(&mut guest);
    let (code, said) = host.finish();
    let killing = "lodger metadata: killing the task; a second signal does not wait\n";
    assert_eq!((code, said.matches(killing).count()), (Some(1), 1), "{said}");
}

#[test]
fn a_host_that_cannot_begin_touches_and_says_nothing_before() {
    let folder = Folder::new();
    let (log, file) = (folder.path("log"), folder.path("file"));
    fs::write(&log, "precious").and_then(|()| fs::write(&file, "")).expect("files");
    let (log_text, file) = (log.display().to_string(), format!("unix:{}", file.display()));
    let address = format!("unix:{}", folder.path("guest").display());
    for options in [
        &["--listen", file.as_str(), "--log", &log_text][..],
        &["--listen", &address, "--control", &file, "--log", &log_text],
        &["--listen", "127.0.0.1", "--log", &log_text],
        &["--listen", &address, "--from", "10.0.0.0/8", "--log", &log_text],
    ] {
        let (code, said) = Heard::start(options, Stdio::null()).finish();
        assert!(code == Some(125) && !said.contains("waiting"), "{said}");
        assert_eq!(fs::read_to_string(&log).expect("a file"), "precious", "{options:?}");
    }
}

#[test]
fn the_first_guest_and_each_stranger_are_told_of() {
    let mut host = Heard::start(&["--listen", "127.0.0.1:0", "--from", "::ffff:10.0.0.0/104"], Stdio::null());
    let line = host.line();
    let address = line.trim_end().rsplit(' ').next().expect("an address").to_owned();
    let ask = |address: &str| {
        let mut peer = TcpStream::connect(address).expect("a connection");
        peer.write_all(b"GET /engine/v1/ping HTTP/1.1\r\nConnection: close\r\n\r\n").expect("a request");
        let mut text = String::new();
        peer.read_to_string(&mut text).expect("a response");
        text
    };
    assert!((0..3).all(|_| ask(&address).starts_with("HTTP/1.1 403 ")));
    host.process.signal(signal::SIGTERM);
    let (_, said) = host.finish();
    assert_eq!(said.matches("refused 127.0.0.1: ").count(), 1, "{said}");
    let mut host = Heard::start(&["--listen", "127.0.0.1:0"], Stdio::null());
    let line = host.line();
    let address = line.trim_end().rsplit(' ').next().expect("an address").to_owned();
    assert!((0..3).all(|_| ask(&address).starts_with("HTTP/1.1 200 ")));
    host.process.signal(signal::SIGTERM);
    let (_, said) = host.finish();
    assert_eq!(said.matches("guest at 127.0.0.1").count(), 1, "{said}");
}

#[test]
fn connections_that_rest_make_room_for_newer_ones() {
    let host = host(&[]);
    let mut silent: Vec<UnixStream> = (0..CONNECTIONS_MAX).map(|_| connect(&host.socket())).collect();
    let start = Instant::now();
    for _ in 0..3 {
        let mut guest = connect(&host.socket());
        request(&mut guest, "GET", "/engine/v1/ping", "", b"");
        assert!(response(&mut guest).0.starts_with("HTTP/1.1 200 "));
        silent.push(guest);
    }
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let mut guest = silent.pop().expect("the newest");
    request(&mut guest, "GET", "/engine/v1/ping", "", b"");
    assert!(response(&mut guest).0.starts_with("HTTP/1.1 200 "), "the newest has stayed");
    // They begin to rest in any order, but before the newer ones.
    let has_ended = |peer: &UnixStream| {
        fd::wait_for(peer.as_fd(), fd::PEER_ENDED, Some(Duration::ZERO)).is_ok_and(|ready| ready.hung_up)
    };
    let ended: Vec<bool> = silent.iter().map(has_ended).collect();
    assert_eq!(ended.iter().filter(|ended| **ended).count(), 3, "one for each");
    assert!(!ended[CONNECTIONS_MAX..].contains(&true), "{ended:?}");
}

#[test]
fn a_connection_must_begin_soon_and_a_head_must_end_soon() {
    let short = Duration::from_millis(500);
    let rig = Rig::with_timers(&[], Timers { first: short, head: short, ..Timers::default() });
    let mut silent = rig.connect();
    assert_eq!(silent.read(&mut [0; 1]).expect("an end"), 0);
    let mut guest = rig.connect();
    request(&mut guest, "GET", "/engine/v1/ping", "", b"");
    response(&mut guest);
    pause(3 * short);
    request(&mut guest, "GET", "/engine/v1/ping", "", b"");
    assert!(response(&mut guest).0.starts_with("HTTP/1.1 200 "), "between requests there is more time");
    guest.write_all(b"GET /engine").expect("the host reads");
    assert_eq!(guest.read(&mut [0; 1]).expect("an end"), 0);
}

#[test]
fn a_guest_that_never_comes_is_told_as_such() {
    let rig = Rig::with_timers(&[], Timers { poll: Duration::from_millis(1000), ..Timers::default() });
    let error = rig.service.exec_shell(&[], false).err().expect("nobody is there");
    assert_eq!(error.to_string(), "no guest has asked for work within 1 s");
}

#[test]
fn a_guest_of_the_network_is_asked_whether_it_is_there() {
    let mut host = Heard::start(&["--listen", "127.0.0.1:0"], Stdio::null());
    let line = host.line();
    let port: u16 = line.trim_end().rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    let _guest = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
    let own = format!("0100007F:{port:04X}");
    wait_until("a timer for keepalive runs", || {
        let table = fs::read_to_string("/proc/net/tcp").expect("a table");
        let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        // Its own address, established, and the kind of its timer.
        rows.into_iter().any(|row| row.len() > 5 && row[1] == own && row[3] == "01" && row[5].starts_with("02:"))
    });
    host.process.signal(signal::SIGTERM);
}

#[test]
fn a_list_of_very_many_names_is_refused() {
    let rig = Rig::new(&[]);
    let service = Arc::clone(&rig.service);
    let asked = thread::spawn(move || service.list_folder("/d"));
    let mut guest = rig.connect();
    let json = "Content-Type: application/json\r\n";
    for (count, status) in [(FILES_MAX + 1, "400"), (FILES_MAX, "200")] {
        let action = poll(&mut guest);
        let body = format!("{{\"files\":[{}\"\"]}}", "\"\",".repeat(count - 1));
        assert!(reply(&mut guest, &action, json, body.as_bytes()).0.starts_with(&format!("HTTP/1.1 {status} ")));
    }
    assert_eq!(asked.join().expect("an answer").expect("a list").len(), FILES_MAX);
}

#[test]
fn who_asks_for_the_task_on_another_connection_is_told_of_once() {
    let mut host = Heard::start(&[], Stdio::null());
    host.line();
    let ask = |guest: &mut UnixStream| {
        request(guest, "GET", "/engine/v1/execute", "", b"");
        assert!(response(guest).0.starts_with("HTTP/1.1 200 "));
    };
    let mut first = host.guest();
    (0..2).for_each(|_| ask(&mut first));
    assert!(host.line().contains("a guest has connected"));
    (0..2).for_each(|_| ask(&mut host.guest()));
    assert_eq!(host.line(), "lodger warn: another guest has asked for the task, or the same one again\n");
    succeed(&mut first);
    assert_eq!(host.finish(), (Some(0), String::new()));
}

#[test]
fn a_guest_that_has_gone_and_one_that_comes_back_are_told_of() {
    let mut host = Heard::start(&[], Stdio::null());
    host.line();
    for _ in 0..2 {
        let (poll, mut log) = (host.guest(), host.guest());
        assert_eq!(host.line(), "lodger metadata: a guest has connected\n");
        (&poll).write_all(b"GET /engine/v1/poll HTTP/1.1\r\n\r\n").expect("the host reads");
        log.write_all(b"POST /engine/v1/log HTTP/1.1\r\nContent-Length: 9\r\n\r\npart").expect("the host reads");
        pause(Duration::from_millis(100));
        drop(log);
        pause(Duration::from_millis(100));
        let start = Instant::now();
        drop(poll);
        assert_eq!(host.line(), "lodger metadata: the guest has gone; waiting for it to come back\n");
        assert!(start.elapsed() >= Duration::from_millis(4_900), "{:?}", start.elapsed());
    }
    succeed(&mut host.guest());
    assert_eq!(host.finish(), (Some(0), "lodger metadata: a guest has connected\n".to_owned()));
}

#[test]
fn a_list_that_is_none_is_told_with_what_guests_refuse() {
    let rig = Rig::new(&[]);
    let service = Arc::clone(&rig.service);
    let asked = thread::spawn(move || service.list_folder("/d"));
    let mut guest = rig.connect();
    for _ in 0..3 {
        let action = poll(&mut guest);
        let answer = reply(&mut guest, &action, "Content-Type: text/plain\r\n", b"the list is too long");
        assert!(answer.0.starts_with("HTTP/1.1 400 "));
    }
    let why = asked.join().expect("an answer").expect_err("no list").to_string();
    assert_eq!(why, "the reply is no list of files; guests refuse one of more than 10 MiB");
}

#[test]
fn a_host_says_what_it_does_to_whoever_wants_to_know() {
    let folder = Folder::new();
    let control = folder.path("control");
    let options = ["--control", &format!("unix:{}", control.display())];
    let mut host = Heard::start_at("debug", &options, Stdio::null());
    host.line();
    let mut kill = connect(&control);
    kill.write_all(b"{\"do\":\"kill\"}\n").expect("the host reads");
    let mut guest = host.guest();
    let action = poll(&mut guest);
    request(&mut guest, "PUT", &format!("/engine/v1/reply?id={}", action.id), "", b"");
    response(&mut guest);
    let again = poll(&mut guest);
    reply(&mut guest, &again, "", b"");
    succeed(&mut guest);
    let (code, said) = host.finish();
    let lines = [
        format!("debug: action {}: KillProcess is with the guest\n", action.id),
        "info: KillProcess \"\": a reply with another method than POST; attempt 1 of 3\n".to_owned(),
        format!("debug: action {}: KillProcess is with the guest\n", again.id),
        "info: a guest has asked for the task\n".to_owned(),
        "info: the task has succeeded\n".to_owned(),
    ];
    let mut rest = said.as_str();
    for line in lines {
        let at = rest.find(&format!("lodger {line}")).unwrap_or_else(|| panic!("{line} in {said}"));
        rest = &rest[at + line.len()..];
    }
    assert_eq!(code, Some(0));
}
