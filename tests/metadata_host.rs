//! The host's side of the metadata service, against guests that say exactly what they are told to.
#![cfg(feature = "metadata")]

mod support;

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use lodger::http::connection::Connection;
use lodger::http::head::Request;
use lodger::http::wait::Limits;
use lodger::metadata::actions::Timers;
use lodger::metadata::host::CONNECTIONS_MAX;
use lodger::metadata::service::{ArtifactError, Service};
use lodger::metadata::shell::{Ending, Order, Wires};
use lodger::metaservice::{Action, Kind};
use lodger::shell::MESSAGE_MAX;
use lodger::stream::Stream;
use lodger::sys::fd;
use lodger::websocket::socket::{Message, Role, Socket};

use support::{Folder, PATIENCE, descriptors, wait_until};

/// Times that a test can wait for.
const SHORT: Duration = Duration::from_millis(80);

fn patient<'a>() -> Limits<'a> {
    Limits { deadline: Some(Instant::now() + PATIENCE), stop: None }
}

/// A log that a test can look at.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Sink {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("a log")).into_owned()
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("a log").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A service, its log, and what its callback was called with.
struct Rig {
    service: Arc<Service>,
    log: Sink,
    results: Arc<Mutex<Vec<bool>>>,
}

impl Rig {
    fn new() -> Rig {
        Rig::with_timers(Timers::default())
    }

    fn with_timers(timers: Timers) -> Rig {
        let log = Sink::default();
        Rig { log: log.clone(), ..Rig::with_log(timers, Box::new(log)) }
    }

    fn with_log(timers: Timers, log: Box<dyn Write + Send>) -> Rig {
        let results: Arc<Mutex<Vec<bool>>> = Arc::default();
        let seen = Arc::clone(&results);
        let callback = Box::new(move |success| seen.lock().expect("results").push(success));
        let command = ["sh".to_owned(), "-c".to_owned(), "echo \"hi\"".to_owned()];
        let env = [("A".to_owned(), "1".to_owned())];
        let service = Service::new(&command, &env, log, callback).expect("a service").with_timers(timers);
        Rig { service: Arc::new(service), log: Sink::default(), results }
    }

    /// The guest's end of a new connection.
    fn raw(&self) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        theirs.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let service = Arc::clone(&self.service);
        thread::spawn(move || service.serve_connection(Stream::over(ours)));
        theirs
    }

    fn guest(&self) -> Connection {
        Connection::over(Stream::over(self.raw())).expect("a connection")
    }

    /// What comes for these bytes until the host closes.
    fn say(&self, bytes: &str) -> String {
        let mut raw = self.raw();
        raw.write_all(bytes.as_bytes()).expect("somebody reads");
        raw.shutdown(Shutdown::Write).expect("a shutdown");
        let mut text = String::new();
        raw.read_to_string(&mut text).expect("text");
        text
    }

    /// Asks for something in a thread of its own.
    fn ask<T: Send + 'static>(&self, what: impl FnOnce(&Service) -> T + Send + 'static) -> thread::JoinHandle<T> {
        let service = Arc::clone(&self.service);
        thread::spawn(move || what(&service))
    }

    fn results(&self) -> Vec<bool> {
        self.results.lock().expect("results").clone()
    }
}

fn exchange(
    guest: &mut Connection,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> (u16, String) {
    let mut request = Request::new(method, target).with("Host", "h");
    headers.iter().for_each(|(name, value)| request.headers.push(name, value));
    request.headers.push("Content-Length", &body.len().to_string());
    guest.send(&request, body, patient()).expect("a request");
    let response = guest.response(patient()).expect("a response");
    let mut body = guest.body();
    let body = guest.body_within(&mut body, 20 << 20, patient()).expect("a body");
    (response.status, String::from_utf8(body).expect("text"))
}

fn poll(guest: &mut Connection) -> Action {
    let (status, body) = exchange(guest, "GET", "/engine/v1/poll", &[], b"");
    assert_eq!(status, 200);
    Action::from_json(&body).expect("an action")
}

fn reply(guest: &mut Connection, id: &str, headers: &[(&str, &str)], body: &[u8]) -> (u16, String) {
    exchange(guest, "POST", &format!("/engine/v1/reply?id={id}"), headers, body)
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

fn code(body: &str) -> &str {
    let rest = body.strip_prefix("{\"code\":\"").unwrap_or_else(|| panic!("{body}"));
    assert!(rest.contains("\",\"message\":\"") && rest.ends_with("\"}"), "{body}");
    rest.split('"').next().expect("a code")
}

#[test]
fn endpoints_answer_byte_for_byte() {
    let rig = Rig::new();
    assert_eq!(rig.say("GET /engine/v1/ping HTTP/1.1\r\nHost: h\r\n\r\n"), OK);
    assert_eq!(rig.say("GET /engine/v1/ping?a=b HTTP/1.1\r\nHost: h\r\n\r\n"), OK);
    let execute = r#"{"env":{"A":"1"},"command":["sh","-c","echo \"hi\""]}"#;
    let expected = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\r\n{execute}",
        execute.len()
    );
    let twice = "GET /engine/v1/execute HTTP/1.1\r\nHost: h\r\n\r\n".repeat(2);
    assert_eq!(rig.say(&twice), expected.repeat(2));
    let log =
        "POST /engine/v1/log HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\n\n\r\n0\r\n\r\n";
    assert_eq!(rig.say(log), OK);
    assert_eq!(rig.log.text(), "abc\n");
    assert!(rig.results().is_empty());
    let success = "PUT /engine/v1/success HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc";
    assert_eq!(rig.say(success), OK);
    assert_eq!(rig.say("PUT /engine/v1/success HTTP/1.1\r\nHost: h\r\n\r\n"), OK);
    let failed = rig.say("PUT /engine/v1/failed HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(failed.starts_with("HTTP/1.1 409 Conflict\r\nContent-Type: text/plain; charset=utf-8\r\n"), "{failed}");
    assert_eq!(code(failed.rsplit("\r\n").next().expect("a body")), "ResourceConflict");
    assert_eq!((rig.results(), rig.service.result()), (vec![true], Some(true)));
    assert_eq!(rig.say(log), OK, "logs are accepted behind the result");
    assert_eq!(rig.say(&twice), expected.repeat(2), "and so is the rest");
}

#[test]
fn wrong_methods_and_paths_are_refused_with_their_codes() {
    let rig = Rig::new();
    let mut guest = rig.guest();
    for (method, path) in [
        ("POST", "ping"),
        ("POST", "execute"),
        ("GET", "log"),
        ("PUT", "log"),
        ("POST", "success"),
        ("GET", "success"),
        ("POST", "failed"),
        ("PUT", "poll"),
    ] {
        let (status, body) = exchange(&mut guest, method, &format!("/engine/v1/{path}"), &[], b"");
        assert_eq!((status, code(&body)), (405, "MethodNotAllowed"), "{method} {path}");
    }
    for path in ["/", "/engine/v1/", "/engine/v1/ping/", "/engine/v1/Ping", "/engine/v2/ping"] {
        let (status, body) = exchange(&mut guest, "GET", path, &[], b"");
        assert_eq!((status, code(&body)), (404, "NoSuchEndPoint"), "{path}");
    }
    for target in ["/engine/v1/reply", "/engine/v1/reply?id=", "/engine/v1/reply?id=AAAAAAAAAAAAAAAAAAAAAA"] {
        let (status, body) = exchange(&mut guest, "POST", target, &[], b"abc");
        assert_eq!((status, code(&body)), (400, "UnknownActionId"), "{target}");
    }
    assert!(rig.results().is_empty());
    let head = rig.say("HEAD /engine/v1/ping HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 405 Method Not Allowed\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    assert!(!head.to_lowercase().contains("allow:"), "{head}");
    assert!(rig.say("GET / HTTP/1.1\nbad\n\n").starts_with("HTTP/1.1 400 "));
}

#[test]
fn empty_segments_of_a_path_are_redirected() {
    let rig = Rig::new();
    for (target, location) in
        [("//engine/v1/ping", "/engine/v1/ping"), ("/engine///v1//ping?a=//b", "/engine/v1/ping?a=//b"), ("//", "/")]
    {
        let expected = format!("HTTP/1.1 301 Moved Permanently\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(rig.say(&format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n")), expected);
    }
    let (status, body) = exchange(&mut rig.guest(), "PUT", "//engine/v1/success", &[], b"");
    assert_eq!((status, code(&body)), (404, "NoSuchEndPoint"));
}

#[test]
fn the_log_is_live() {
    let rig = Rig::new();
    let mut raw = rig.raw();
    raw.write_all(b"POST /engine/v1/log HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n").expect("a part");
    wait_until("the log has it", || rig.log.text() == "ab");
    raw.write_all(b"1\r\nc\r\n").expect("a part");
    wait_until("the log has more", || rig.log.text() == "abc");
    raw.write_all(b"0\r\n\r\n").expect("the end");
    let mut text = [0; OK.len()];
    raw.read_exact(&mut text).expect("a response");
    assert_eq!(text, OK.as_bytes());
}

#[test]
fn a_log_that_refuses_is_an_internal_error() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let rig = Rig::with_log(Timers::default(), Box::new(Full));
    let (status, body) = exchange(&mut rig.guest(), "POST", "/engine/v1/log", &[], b"abc");
    assert_eq!((status, code(&body)), (500, "InternalError"));
}

#[test]
fn a_slow_log_holds_the_guest_up_instead_of_filling_memory() {
    struct Slow(Arc<Mutex<()>>, Arc<AtomicUsize>);
    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            drop(self.0.lock());
            self.1.fetch_add(bytes.len(), Ordering::SeqCst);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (gate, count): (Arc<Mutex<()>>, Arc<AtomicUsize>) = Default::default();
    let rig = Rig::with_log(Timers::default(), Box::new(Slow(Arc::clone(&gate), Arc::clone(&count))));
    let closed = gate.lock().expect("a gate");
    let mut raw = rig.raw();
    let total = 64 << 20;
    write!(raw, "POST /engine/v1/log HTTP/1.1\r\nContent-Length: {total}\r\n\r\n").expect("a head");
    raw.set_nonblocking(true).expect("a flag");
    let (block, mut sent, mut since) = (vec![b'x'; 64 << 10], 0, Instant::now());
    while since.elapsed() < Duration::from_millis(300) {
        match raw.write(&block) {
            Ok(written) => (sent, since) = (sent + written, Instant::now()),
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
    assert!(sent < 4 << 20, "{sent} bytes were taken though nobody has written one");
    drop(closed);
    raw.set_nonblocking(false).expect("a flag");
    while sent < total {
        sent += raw.write(&block[..block.len().min(total - sent)]).expect("the log goes on");
    }
    let mut text = [0; OK.len()];
    raw.read_exact(&mut text).expect("a response");
    assert_eq!((text.as_slice(), count.load(Ordering::SeqCst)), (OK.as_bytes(), total));
}

#[test]
fn actions_look_as_upstreams_do() {
    let rig = Rig::new();
    let asked = rig.ask(|service| service.exec_shell(&["a".to_owned(), "b c".to_owned()], true).err());
    let mut guest = rig.guest();
    let (_, body) = exchange(&mut guest, "GET", "/engine/v1/poll", &[], b"");
    let id = &body[7..29];
    let expected = format!(r#"{{"id":"{id}","type":"exec-shell","path":"","command":["a","b c"],"tty":true}}"#);
    assert_eq!(body, expected);
    let (status, _) = exchange(&mut guest, "POST", &format!("/engine/v1/reply?id={id}"), &[], b"");
    assert_eq!(status, 405);
    assert!(matches!(asked.join().expect("an answer"), Some(ArtifactError::Internal(_))), "tried once");
}

#[test]
fn a_poll_without_work_gets_none_and_none_takes_no_reply() {
    let rig = Rig::with_timers(Timers { idle: SHORT, ..Timers::default() });
    let mut guest = rig.guest();
    let none = poll(&mut guest);
    assert_eq!((none.kind, none.id.len()), (Kind::None, 22));
    let (status, body) = reply(&mut guest, &none.id, &[], b"");
    assert_eq!((status, code(&body)), (400, "UnknownActionId"));
}

#[test]
fn artifacts_arrive_as_posted_or_are_not_found() {
    let (rig, folder) = (Rig::new(), Folder::new());
    let path = folder.path("file");
    let file = || Box::new(fs::File::create(&path).expect("a file"));
    let mut guest = rig.guest();
    let store = file();
    let asked = rig.ask(move |service| service.get_artifact("/a b", store));
    let action = poll(&mut guest);
    assert_eq!((&action.kind, action.path.as_str()), (&Kind::GetArtifact, "/a b"));
    let bytes: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
    let other = [("X-Taskcluster-Worker-Error", "something-else")];
    assert_eq!(reply(&mut guest, &action.id, &other, &bytes), (200, String::new()));
    assert!(asked.join().expect("an answer").is_ok());
    assert_eq!(fs::read(&path).expect("a file"), bytes);
    // Its id is used up.
    let (status, body) = reply(&mut guest, &action.id, &[], b"more");
    assert_eq!((status, code(&body)), (400, "UnknownActionId"));
    let store = file();
    let asked = rig.ask(move |service| service.get_artifact("/none", store));
    let action = poll(&mut guest);
    let missing = [("X-Taskcluster-Worker-Error", "file-not-found")];
    assert_eq!(reply(&mut guest, &action.id, &missing, b""), (200, String::new()));
    assert!(matches!(asked.join().expect("an answer"), Err(ArtifactError::NotFound)));
}

#[test]
fn an_artifact_that_breaks_off_is_fetched_again_under_a_new_id() {
    let (rig, folder) = (Rig::new(), Folder::new());
    let path = folder.path("file");
    let store = Box::new(fs::File::create(&path).expect("a file"));
    let asked = rig.ask(move |service| service.get_artifact("/a", store));
    let first = poll(&mut rig.guest()).id;
    let text = rig.say(&format!("POST /engine/v1/reply?id={first} HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc"));
    assert!(text.starts_with("HTTP/1.1 500 Internal Server Error\r\n") && text.contains("\"InternalError\""), "{text}");
    let second = poll(&mut rig.guest()).id;
    let chunked = format!("POST /engine/v1/reply?id={second} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd");
    assert!(rig.say(&chunked).starts_with("HTTP/1.1 500 "));
    let mut guest = rig.guest();
    let third = poll(&mut guest).id;
    assert!(first != second && second != third);
    assert_eq!(reply(&mut guest, &third, &[], b"x").0, 200);
    assert!(asked.join().expect("an answer").is_ok());
    assert_eq!(fs::read(&path).expect("a file"), b"x", "nothing is left of the attempts before");
}

#[test]
fn lists_are_checked_and_three_bad_ones_are_enough() {
    let rig = Rig::new();
    let mut guest = rig.guest();
    let mut try_one = |headers: &[(&str, &str)], body: &str| {
        let asked = rig.ask(|service| service.list_folder("/d/"));
        let mut replied = Vec::new();
        loop {
            let action = poll(&mut guest);
            assert_eq!((&action.kind, action.path.as_str()), (&Kind::ListFolder, "/d/"));
            let (status, text) = reply(&mut guest, &action.id, headers, body.as_bytes());
            replied.push(if status == 200 { String::new() } else { format!("{status} {}", code(&text)) });
            if status == 200 || replied.len() == 3 {
                return (replied, asked.join().expect("an answer"));
            }
        }
    };
    let json = [("Content-Type", "application/json")];
    for (body, expected) in [
        (r#"{"files":["/d/a","/d/b/c"],"notFound":false}"#, &["/d/a", "/d/b/c"][..]),
        (r#"{"files":null}"#, &[]),
        ("{}", &[]),
        (r#"{"files":["x"],"more":1}"#, &["x"]),
    ] {
        let (replied, found) = try_one(&json, body);
        assert_eq!((replied.len(), found.expect("a list")), (1, expected.iter().map(|s| s.to_string()).collect()));
    }
    let (_, found) = try_one(&json, r#"{"files":["x"],"notFound":true}"#);
    assert!(matches!(found, Err(ArtifactError::NotFound)));
    let charset = [("Content-Type", "application/json; charset=utf-8")];
    for (headers, body) in [(&charset[..], "{}"), (&[], "{}"), (&json, "{"), (&json, "[]"), (&json, r#"{"files":1}"#)] {
        let (replied, found) = try_one(headers, body);
        assert_eq!(replied, ["400 InvalidPayload"; 3], "{body}");
        assert!(matches!(found, Err(ArtifactError::Internal(_))));
    }
}

#[test]
fn a_wrong_method_burns_the_attempt() {
    let rig = Rig::new();
    let asked = rig.ask(|service| service.kill_process());
    let mut guest = rig.guest();
    let first = poll(&mut guest);
    assert_eq!(first.kind, Kind::KillProcess);
    let (status, body) = exchange(&mut guest, "PUT", &format!("/engine/v1/reply?id={}", first.id), &[], b"");
    assert_eq!((status, code(&body)), (405, "MethodNotAllowed"));
    assert_eq!(code(&reply(&mut guest, &first.id, &[], b"").1), "UnknownActionId");
    let second = poll(&mut guest);
    assert_eq!(reply(&mut guest, &second.id, &[], b""), (200, String::new()));
    assert!(asked.join().expect("an answer").is_ok());
}

#[test]
fn an_action_nobody_polls_for_or_replies_to_is_tried_three_times() {
    let rig = Rig::with_timers(Timers { poll: SHORT, reply: SHORT, ..Timers::default() });
    let start = Instant::now();
    assert!(matches!(rig.service.kill_process(), Err(ArtifactError::Internal(_))));
    let time = start.elapsed();
    assert!(time >= 3 * SHORT && time < PATIENCE, "{time:?}");
    let start = Instant::now();
    assert!(rig.service.exec_shell(&[], false).is_err());
    assert!(start.elapsed() >= SHORT, "a shell is tried once");
    let rig = Rig::with_timers(Timers { reply: SHORT, ..Timers::default() });
    let asked = rig.ask(|service| service.kill_process());
    let mut guest = rig.guest();
    let ids = [0; 3].map(|_| poll(&mut guest).id);
    assert!(matches!(asked.join().expect("an answer"), Err(ArtifactError::Internal(_))));
    assert!(ids[0] != ids[1] && ids[1] != ids[2]);
    for id in ids {
        assert_eq!(code(&reply(&mut guest, &id, &[], b"").1), "UnknownActionId", "it has expired");
    }
}

#[test]
fn a_body_may_take_longer_than_the_timers() {
    // Time enough to claim the action.
    let time = Duration::from_secs(1);
    let rig = Rig::with_timers(Timers { reply: time, poll: time, ..Timers::default() });
    let folder = Folder::new();
    let store = Box::new(fs::File::create(folder.path("file")).expect("a file"));
    let mut poller = rig.raw();
    poller.write_all(b"GET /engine/v1/poll HTTP/1.1\r\n\r\n").expect("a poll");
    let asked = rig.ask(move |service| service.get_artifact("/a", store));
    let mut response = [0; 1024];
    let count = poller.read(&mut response).expect("an action");
    let text = String::from_utf8_lossy(&response[..count]).into_owned();
    let action = Action::from_json(text.rsplit("\r\n").next().expect("a body")).expect("an action");
    let mut raw = rig.raw();
    write!(raw, "POST /engine/v1/reply?id={} HTTP/1.1\r\nContent-Length: 2\r\n\r\na", action.id).expect("a head");
    support::pause(time * 5 / 2);
    raw.write_all(b"b").expect("the end");
    assert!(asked.join().expect("an answer").is_ok());
    assert_eq!(fs::read(folder.path("file")).expect("a file"), b"ab");
}

#[test]
fn the_poll_that_has_waited_longest_gets_the_next_action() {
    let rig = Rig::new();
    let mut polls: Vec<UnixStream> = Vec::new();
    for _ in 0..3 {
        let mut raw = rig.raw();
        raw.write_all(b"GET /engine/v1/ping HTTP/1.1\r\n\r\n").expect("a ping");
        raw.read_exact(&mut [0; OK.len()]).expect("its thread runs");
        raw.write_all(b"GET /engine/v1/poll HTTP/1.1\r\n\r\n").expect("a poll");
        // It must be in the queue before the next.
        support::pause(Duration::from_millis(500));
        polls.push(raw);
    }
    for (which, mut raw) in polls.into_iter().enumerate() {
        let asked = rig.ask(move |service| service.list_folder(&format!("/{which}")));
        let mut bytes = [0; 1024];
        let count = raw.read(&mut bytes).expect("an action");
        let text = String::from_utf8_lossy(&bytes[..count]).into_owned();
        let action = Action::from_json(text.rsplit("\r\n").next().expect("a body")).expect("an action");
        assert_eq!(action.path, format!("/{which}"));
        let json = [("Content-Type", "application/json")];
        assert_eq!(reply(&mut rig.guest(), &action.id, &json, b"{}").0, 200);
        assert!(asked.join().expect("an answer").is_ok());
    }
}

#[test]
fn a_poll_whose_connection_has_gone_takes_no_action() {
    let rig = Rig::with_timers(Timers { reply: PATIENCE, ..Timers::default() });
    for _ in 0..3 {
        let mut dead = rig.raw();
        dead.write_all(b"GET /engine/v1/poll HTTP/1.1\r\n\r\n").expect("a poll");
        support::pause(Duration::from_millis(50));
        // A child that another test is about to start may have a copy of it.
        dead.shutdown(Shutdown::Both).expect("a shutdown");
    }
    let start = Instant::now();
    let asked = rig.ask(|service| service.kill_process());
    let mut guest = rig.guest();
    let action = poll(&mut guest);
    assert_eq!(reply(&mut guest, &action.id, &[], b"").0, 200);
    assert!(asked.join().expect("an answer").is_ok());
    // A lost one costs half a minute.
    assert!(start.elapsed() < Duration::from_secs(20), "no attempt was lost");
}

#[test]
fn closing_ends_whoever_waits() {
    let rig = Rig::new();
    let asked = rig.ask(|service| service.kill_process());
    let mut raw = rig.raw();
    support::pause(Duration::from_millis(50));
    rig.service.close();
    assert!(matches!(asked.join().expect("an answer"), Err(ArtifactError::Internal(_))));
    assert_eq!(raw.read(&mut [0; 1]).expect("an end"), 0);
}

/// The head of a handshake that is in order, but for what is added or replaced.
fn handshake(id: &str, adjust: impl FnOnce(String) -> String) -> String {
    adjust(format!(
        "GET /engine/v1/reply?id={id} HTTP/1.1\r\nHost: 10.0.0.1:80\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ))
}

const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

#[test]
fn a_handshake_that_is_none_burns_the_id_and_the_shell_fails_at_once() {
    let rig = Rig::new();
    let end = "\r\n\r\n";
    for (status, from, to) in [
        ("405 Method Not Allowed", "GET", "POST"),
        ("400 Bad Request", "Upgrade: websocket\r\n", ""),
        ("400 Bad Request", "Connection: Upgrade\r\n", ""),
        ("400 Bad Request", "Version: 13", "Version: 12"),
        ("400 Bad Request", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", ""),
        ("403 Forbidden", end, "\r\nOrigin: http://evil.example\r\n\r\n"),
        ("403 Forbidden", end, "\r\nOrigin: null\r\n\r\n"),
    ] {
        let asked = rig.ask(|service| service.exec_shell(&[], false).is_err());
        let id = poll(&mut rig.guest()).id;
        let text = rig.say(&handshake(&id, |head| head.replacen(from, to, 1)));
        assert!(text.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{from:?}: {text}");
        assert!(!text.contains("\"code\""), "plain text: {text}");
        assert!(asked.join().expect("an answer"));
        let text = rig.say(&handshake(&id, |head| head));
        assert!(text.starts_with("HTTP/1.1 400 ") && text.contains("UnknownActionId"), "{text}");
    }
    let asked = rig.ask(|service| service.exec_shell(&[], false).is_ok());
    let id = poll(&mut rig.guest()).id;
    let text = rig.say(&handshake(&id, |head| head.replacen(end, "\r\nOrigin: http://10.0.0.1:80\r\n\r\n", 1)));
    assert!(text.starts_with(SWITCHED), "{text}");
    assert!(asked.join().expect("an answer"));
}

/// The guest's side of a shell.
struct Far(Socket);

impl Far {
    fn over(mut raw: UnixStream, id: &str) -> Far {
        raw.write_all(handshake(id, |head| head).as_bytes()).expect("a handshake");
        let mut head = [0; SWITCHED.len()];
        raw.read_exact(&mut head).expect("an answer");
        assert_eq!(String::from_utf8_lossy(&head), SWITCHED);
        Far(Socket::over(Stream::over(raw), Role::Client, Vec::new(), MESSAGE_MAX).expect("a socket"))
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.queue(Message::Binary(bytes.to_vec()));
        while self.0.wants_write() {
            fd::wait_for(self.0.output(), fd::WRITE, Some(PATIENCE)).expect("a wait");
            self.0.flush().expect("somebody reads");
        }
    }

    fn receive(&mut self) -> Option<Vec<u8>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "nothing has come");
            match self.0.receive() {
                Ok(Some(Message::Binary(bytes))) => return Some(bytes),
                Ok(Some(Message::Close(_))) | Err(_) => return None,
                Ok(Some(_)) => {}
                Ok(None) => drop(fd::wait_for(self.0.input(), fd::READ, Some(PATIENCE))),
            }
        }
    }
}

/// A shell on pipes of a test.
struct Near {
    stdin: Option<fs::File>,
    stdout: fs::File,
    stderr: fs::File,
    orders: fs::File,
    ending: thread::JoinHandle<Ending>,
}

fn open(rig: &Rig) -> (Near, Far) {
    let asked = rig.ask(|service| service.exec_shell(&[], false).map_err(|error| error.to_string()));
    let action = poll(&mut rig.guest());
    assert_eq!((&action.kind, action.path.as_str(), action.command.len()), (&Kind::ExecShell, "", 0));
    let far = Far::over(rig.raw(), &action.id);
    let shell = asked.join().expect("an answer").expect("a shell");
    let ((stdin, in_wr), (out_rd, stdout)) = (fd::pipe().expect("a pipe"), fd::pipe().expect("a pipe"));
    let ((err_rd, stderr), (orders, order_wr)) = (fd::pipe().expect("a pipe"), fd::pipe().expect("a pipe"));
    fd::never_block(orders.as_fd()).expect("a flag");
    let ending = thread::spawn(move || {
        let mut next = || {
            let mut byte = [0];
            match fd::read(orders.as_fd(), &mut byte) {
                Ok(1) if byte == *b"a" => Some(Order::Abort),
                Ok(1) => Some(Order::Resize(lodger::sys::tty::Window { rows: 50, columns: 100 })),
                _ => None,
            }
        };
        let wires = Wires {
            stdin: Some(stdin.as_fd()),
            stdout: stdout.as_fd(),
            stderr: stderr.as_fd(),
            orders: Some((orders.as_fd(), &mut next)),
        };
        shell.run(wires).expect("a shell runs")
    });
    let near = Near {
        stdin: Some(in_wr.into()),
        stdout: out_rd.into(),
        stderr: err_rd.into(),
        orders: order_wr.into(),
        ending,
    };
    (near, far)
}

#[test]
fn a_shell_is_framed_byte_for_byte() {
    let rig = Rig::new();
    let (mut near, mut far) = open(&rig);
    near.stdin.as_mut().expect("open").write_all(b"hi").expect("input");
    assert_eq!(far.receive().expect("input"), b"\x00\x00hi");
    far.send(b"\x01\x00\x00\x00\x00\x02");
    far.send(b"\x00\x01hello");
    assert_eq!(far.receive().expect("an ack"), b"\x01\x01\x00\x00\x00\x05");
    far.send(b"\x00\x01");
    near.orders.write_all(b"r").expect("an order");
    assert_eq!(far.receive().expect("a size"), [3, 0, 100, 0, 50]);
    near.stdin = None;
    assert_eq!(far.receive().expect("an end"), b"\x00\x00");
    far.send(b"\x05\x00");
    far.0.queue(Message::Close(1000));
    far.0.flush().expect("somebody reads");
    assert_eq!(far.receive(), None);
    let (mut text, mut errors) = (String::new(), String::new());
    near.stdout.read_to_string(&mut text).expect("output");
    near.stderr.read_to_string(&mut errors).expect("no errors");
    assert_eq!((text.as_str(), errors.as_str()), ("hello", ""));
    assert!(matches!(near.ending.join().expect("an end"), Ending::Succeeded));
}

#[test]
fn a_shell_ends_in_the_four_ways() {
    let rig = Rig::new();
    let (mut near, mut far) = open(&rig);
    far.send(b"\x00\x02oh");
    far.send(b"\x05\x01");
    drop(far);
    let mut text = String::new();
    near.stderr.read_to_string(&mut text).expect("errors");
    assert_eq!(text, "oh");
    assert!(matches!(near.ending.join().expect("an end"), Ending::Failed));
    let (mut near, mut far) = open(&rig);
    near.orders.write_all(b"a").expect("an order");
    assert_eq!(far.receive().expect("an abort"), [4]);
    assert_eq!(far.receive(), None);
    assert!(matches!(near.ending.join().expect("an end"), Ending::Aborted));
    let (mut near, mut far) = open(&rig);
    far.send(b"\x00\x01last words");
    drop(far);
    let mut text = String::new();
    near.stdout.read_to_string(&mut text).expect("output");
    assert_eq!(text, "last words");
    assert!(matches!(near.ending.join().expect("an end"), Ending::Lost(_)));
    let (near, mut far) = open(&rig);
    // Nobody reads, and the guest sends more than its credit.
    for _ in 0..20 {
        far.0.queue(Message::Binary([&[0, 1][..], &[b'x'; 16_384]].concat()));
    }
    while far.0.flush().is_ok() {
        if fd::wait_for(far.0.input(), fd::PEER_ENDED, Some(Duration::ZERO)).expect("a wait").hung_up {
            break;
        }
        fd::wait_for(far.0.output(), fd::WRITE | fd::PEER_ENDED, Some(PATIENCE)).expect("a wait");
    }
    // The connection has ended already; the outputs have not.
    assert!(!near.ending.is_finished());
    drop(near.stdout);
    assert!(matches!(near.ending.join().expect("an end"), Ending::Lost(_)));
}

#[test]
fn what_a_guest_says_before_it_goes_is_read_though_it_reads_nothing_itself() {
    let rig = Rig::new();
    let asked = rig.ask(|service| service.exec_shell(&[], false).map_err(|error| error.to_string()));
    let action = poll(&mut rig.guest());
    let mut far = Far::over(rig.raw(), &action.id);
    let shell = asked.join().expect("an answer").expect("a shell");
    // As much as it may say without an acknowledgement, none of which it waits for.
    for _ in 0..160 {
        far.0.queue(Message::Binary([&[0, 1][..], &[b'x'; 400]].concat()));
    }
    far.send(b"\x05\x00");
    drop(far);
    let ((stdin, _in), (out_rd, stdout)) = (fd::pipe().expect("a pipe"), fd::pipe().expect("a pipe"));
    let reader = thread::spawn(move || {
        let mut found = Vec::new();
        fs::File::from(out_rd).read_to_end(&mut found).expect("output");
        found.len()
    });
    let wires = Wires { stdin: Some(stdin.as_fd()), stdout: stdout.as_fd(), stderr: stdout.as_fd(), orders: None };
    let ending = shell.run(wires).expect("a shell runs");
    drop(stdout);
    let found = reader.join().expect("the reader ends");
    assert!(found == 64_000 && matches!(ending, Ending::Succeeded), "{found} bytes, {ending:?}");
}

#[test]
fn a_shell_carries_megabytes_both_ways() {
    let rig = Rig::new();
    let (mut near, mut far) = open(&rig);
    let bytes: Vec<u8> = (0..5_000_007u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let expected = bytes.clone();
    let mut stdin = near.stdin.take().expect("open");
    let writer = thread::spawn(move || stdin.write_all(&bytes));
    // The far end is cat, with a credit that it is given.
    let cat = thread::spawn(move || {
        let (mut credit, mut queue, mut ended) = (65_536usize, Vec::new(), false);
        while !(ended && queue.is_empty()) {
            let message = far.receive().expect("a message");
            match message[..] {
                [0, 0] => ended = true,
                [0, 0, ref data @ ..] => {
                    queue.extend_from_slice(data);
                    far.send(&[&[1, 0][..], &(data.len() as u32).to_be_bytes()].concat());
                }
                [1, 1, a, b, c, d] => credit += u32::from_be_bytes([a, b, c, d]) as usize,
                _ => panic!("{message:?}"),
            }
            while credit > 0 && !queue.is_empty() {
                let count = queue.len().min(credit).min(16_384);
                far.send(&[&[0, 1][..], &queue[..count]].concat());
                queue.drain(..count);
                credit -= count;
            }
        }
        far.send(b"\x05\x00");
    });
    let mut found = Vec::new();
    near.stdout.read_to_end(&mut found).expect("output");
    assert!(found == expected, "{} bytes of {}", found.len(), expected.len());
    writer.join().expect("the writer ends").expect("all is written");
    cat.join().expect("cat ends");
    assert!(matches!(near.ending.join().expect("an end"), Ending::Succeeded));
}

/// `lodger metadata serve`, ended with the test.
struct Host {
    child: Child,
    folder: Folder,
}

impl Host {
    fn start(options: &[&str]) -> Host {
        Host::start_saying(options, Stdio::inherit())
    }

    fn start_saying(options: &[&str], stderr: Stdio) -> Host {
        let folder = Folder::new();
        let mut command = Command::new(env!("CARGO_BIN_EXE_lodger"));
        command.args(["metadata", "serve", "--control"]).arg(format!("unix:{}", folder.path("control").display()));
        if !options.contains(&"--listen") {
            command.arg("--listen").arg(format!("unix:{}", folder.path("guest").display()));
        }
        command.args(options).args(["--", "sh", "-c", "true"]).stdout(Stdio::piped()).stderr(stderr);
        let child = command.spawn().expect("a host");
        let host = Host { child, folder };
        // Its file is there before it listens. The connection is gone before a test counts what is open.
        let mut first = host.connect("control");
        first.shutdown(Shutdown::Write).expect("a shutdown");
        assert_eq!(first.read(&mut [0; 1]).expect("an end"), 0);
        host
    }

    fn raw(&self) -> UnixStream {
        self.connect("guest")
    }

    fn connect(&self, name: &str) -> UnixStream {
        let mut raw = None;
        wait_until("the host accepts", || {
            raw = UnixStream::connect(self.folder.path(name)).ok();
            raw.is_some()
        });
        let raw = raw.expect("a connection");
        raw.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        raw
    }

    fn guest(&self) -> Connection {
        Connection::over(Stream::over(self.raw())).expect("a connection")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lodger"));
        command.arg("metadata").args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env("LODGER_METADATA_CONTROL", format!("unix:{}", self.folder.path("control").display()));
        command
    }

    fn finish(mut self) -> (Option<i32>, String) {
        let mut text = String::new();
        self.child.stdout.take().expect("piped").read_to_string(&mut text).expect("a log");
        (self.child.wait().expect("an end").code(), text)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn output(child: Child) -> Output {
    let waiting = thread::spawn(move || child.wait_with_output().expect("an end"));
    wait_until("the command ends", || waiting.is_finished());
    waiting.join().expect("an end")
}

#[test]
fn serve_prints_the_log_and_ends_with_the_result() {
    for (result, code) in [("success", 0), ("failed", 1)] {
        let host = Host::start(&["--env", "K=a=b", "-e", "L=c"]);
        let mut guest = host.guest();
        let (_, execute) = exchange(&mut guest, "GET", "/engine/v1/execute", &[], b"");
        assert_eq!(execute, r#"{"env":{"K":"a=b","L":"c"},"command":["sh","-c","true"]}"#);
        assert_eq!(exchange(&mut guest, "POST", "/engine/v1/log", &[], b"line\n").0, 200);
        assert_eq!(exchange(&mut guest, "PUT", &format!("/engine/v1/{result}"), &[], b"").0, 200);
        assert_eq!(host.finish(), (Some(code), "line\n".to_owned()));
    }
}

#[test]
fn a_result_of_another_task_is_our_error() {
    for result in ["success", "failed"] {
        let mut host = Host::start_saying(&["--linger", "600"], Stdio::piped());
        let mut said = host.child.stderr.take().expect("piped");
        assert_eq!(exchange(&mut host.guest(), "PUT", &format!("/engine/v1/{result}"), &[], b"").0, 200);
        assert_eq!(host.finish().0, Some(125));
        let mut text = String::new();
        said.read_to_string(&mut text).expect("text");
        assert!(text.contains("metadata: the result is not of this task: no guest has asked for it\n"), "{text}");
    }
}

#[test]
fn commands_reach_the_guest() {
    let host = Host::start(&["--linger", "60"]);
    let mut guest = host.guest();
    let local = host.folder.path("local");
    let get = host.command(&["get", "/etc/some", &local.display().to_string()]).spawn().expect("get");
    let action = poll(&mut guest);
    assert_eq!((&action.kind, action.path.as_str()), (&Kind::GetArtifact, "/etc/some"));
    reply(&mut guest, &action.id, &[], b"content");
    assert!(output(get).status.success());
    assert_eq!(fs::read(&local).expect("a file"), b"content");
    // The first attempt breaks off before its first byte, of which nothing is in the output.
    let get = host.command(&["get", "/b", "-"]).spawn().expect("get");
    let id = poll(&mut guest).id;
    let mut raw = host.raw();
    write!(raw, "POST /engine/v1/reply?id={id} HTTP/1.1\r\nContent-Length: 9\r\n\r\n").expect("a head");
    raw.shutdown(Shutdown::Write).expect("a shutdown");
    let id = poll(&mut guest).id;
    reply(&mut guest, &id, &[], b"xyz");
    assert_eq!(output(get).stdout, b"xyz");
    let get = host.command(&["get", "/no", &local.display().to_string()]).spawn().expect("get");
    let id = poll(&mut guest).id;
    reply(&mut guest, &id, &[("X-Taskcluster-Worker-Error", "file-not-found")], b"");
    let failed = output(get);
    assert_eq!(failed.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&failed.stderr).contains("/no: the guest has no such file, or no regular one"));
    assert_eq!(fs::read(&local).expect("a file"), b"content", "what is there stays");
    assert_eq!(fs::read_dir(&host.folder.0).expect("a folder").count(), 3, "no temporary file stays");
    let list = host.command(&["ls", "/d"]).spawn().expect("ls");
    let id = poll(&mut guest).id;
    reply(&mut guest, &id, &[("Content-Type", "application/json")], br#"{"files":["/d/a","/d/b"]}"#);
    assert_eq!(output(list).stdout, b"/d/a\n/d/b\n");
    let kill = host.command(&["kill"]).spawn().expect("kill");
    let action = poll(&mut guest);
    assert_eq!(action.kind, Kind::KillProcess);
    reply(&mut guest, &action.id, &[], b"");
    assert!(output(kill).status.success());
    let mut shell = host.command(&["shell", "--", "a", "-b"]).spawn().expect("shell");
    shell.stdin.take().expect("piped").write_all(b"hi").expect("input");
    let action = poll(&mut guest);
    assert_eq!((action.command, action.tty), (vec!["a".to_owned(), "-b".to_owned()], false));
    let mut far = Far::over(host.raw(), &action.id);
    assert_eq!(far.receive().expect("input"), b"\x00\x00hi");
    assert_eq!(far.receive().expect("an end"), b"\x00\x00");
    // The result comes while the shell is open.
    exchange(&mut guest, "PUT", "/engine/v1/success", &[], b"");
    far.send(b"\x00\x01out");
    far.send(b"\x00\x02err");
    far.send(b"\x05\x01");
    far.0.queue(Message::Close(1000));
    far.0.flush().expect("somebody reads");
    let ended = output(shell);
    assert_eq!((ended.status.code(), &ended.stdout[..], &ended.stderr[..]), (Some(1), &b"out"[..], &b"err"[..]));
}

/// Begins to send the file of the next action, of so many bytes more.
fn send_part(host: &Host, guest: &mut Connection, part: &str, more: usize) -> UnixStream {
    let (id, mut raw) = (poll(guest).id, host.raw());
    let length = part.len() + more;
    let head = format!("POST /engine/v1/reply?id={id} HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{part}");
    raw.write_all(head.as_bytes()).expect("a part");
    raw
}

#[test]
fn a_file_for_stdout_goes_on_as_it_comes_and_cannot_begin_again() {
    let host = Host::start(&[]);
    let mut guest = host.guest();
    let mut get = host.command(&["get", "/b", "-"]).spawn().expect("get");
    let raw = send_part(&host, &mut guest, "abc", 6);
    let mut part = [0; 3];
    get.stdout.as_mut().expect("piped").read_exact(&mut part).expect("what has come");
    assert_eq!(&part, b"abc");
    raw.shutdown(Shutdown::Write).expect("a shutdown");
    let failed = output(get);
    assert_eq!((failed.status.code(), failed.stdout.as_slice()), (Some(125), &b""[..]));
    let text = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(text.contains("get /b: the file broke off behind 3 bytes, which are written\n"), "{text}");
}

#[test]
fn a_file_for_a_pipe_that_is_closed_is_not_waited_for() {
    let host = Host::start(&[]);
    let mut guest = host.guest();
    // A socket, whose end comes even if a child that another test is about to start has a copy of it.
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    let get = host.command(&["get", "/b", "-"]).stdout(OwnedFd::from(theirs)).spawn().expect("get");
    ours.shutdown(Shutdown::Both).expect("a shutdown");
    let _raw = send_part(&host, &mut guest, "abc", 6);
    let ended = output(get);
    assert_eq!((ended.status.code(), String::from_utf8_lossy(&ended.stderr).into_owned()), (Some(125), String::new()));
}

#[test]
fn the_host_stays_for_commands_that_are_under_way() {
    let host = Host::start(&[]);
    let mut guest = host.guest();
    exchange(&mut guest, "GET", "/engine/v1/execute", &[], b"");
    let list = host.command(&["ls", "/d"]).spawn().expect("ls");
    let id = poll(&mut guest).id;
    exchange(&mut guest, "PUT", "/engine/v1/success", &[], b"");
    reply(&mut guest, &id, &[("Content-Type", "application/json")], br#"{"files":["/d/a"]}"#);
    assert_eq!(output(list).stdout, b"/d/a\n");
    assert_eq!(host.finish().0, Some(0));
}

#[test]
fn commands_without_a_service_say_so() {
    let folder = Folder::new();
    let run = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lodger"));
        let result = command.arg("metadata").args(words).env_remove("LODGER_METADATA_CONTROL").output();
        let result = result.expect("an end");
        assert_eq!(result.status.code(), Some(125), "{words:?}");
        String::from_utf8_lossy(&result.stderr).into_owned()
    };
    let socket = format!("unix:{}", folder.path("none").display());
    assert!(run(&["ls", "--control", &socket, "/"]).contains("no such file"));
    assert!(run(&["kill"]).contains("LODGER_METADATA_CONTROL"));
    assert!(run(&["get", "--control", "/x", "a", "b"]).contains("unix:PATH wanted"));
    assert!(run(&["get", "a"]).contains("get wants"));
    assert!(run(&["serve", "--", "true"]).contains("--listen"));
    assert!(run(&["serve", "--listen", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--", "true"]).contains("twice"));
    assert!(run(&["serve", "--listen", "nonsense", "--", "true"]).contains("no address"));
    assert!(run(&["serve", "--listen", "127.0.0.1:0"]).contains("command"));
    assert!(run(&["serve", "--listen", "127.0.0.1:0", "--from", "1.2.3/8", "--", "x"]).contains("no network"));
    assert!(run(&["nonsense"]).contains("there are only"));
}

#[test]
fn an_interrupt_kills_the_task_and_makes_it_a_failure() {
    let host = Host::start(&[]);
    let mut guest = host.guest();
    exchange(&mut guest, "GET", "/engine/v1/execute", &[], b"");
    let (mut other, pid) = (host.guest(), host.child.id() as i32);
    exchange(&mut other, "GET", "/engine/v1/ping", &[], b"");
    lodger::sys::signal::send(pid, lodger::sys::signal::SIGTERM).expect("a signal");
    let action = poll(&mut guest);
    assert_eq!(action.kind, Kind::KillProcess);
    reply(&mut guest, &action.id, &[], b"");
    // Whatever the guest says.
    exchange(&mut guest, "PUT", "/engine/v1/success", &[], b"");
    assert_eq!(host.finish().0, Some(1));
    let host = Host::start(&[]);
    lodger::sys::signal::send(host.child.id() as i32, lodger::sys::signal::SIGINT).expect("a signal");
    assert_eq!(host.finish().0, Some(1), "without a guest nobody is waited for");
}

#[test]
fn only_the_networks_that_are_given_may_come() {
    for (network, status) in [("10.0.0.0/8", "403 Forbidden"), ("127.0.0.0/8", "200 OK")] {
        let options = ["--listen", "127.0.0.1:0", "--from", network, "--from", "::1"];
        let mut host = Host::start_saying(&options, Stdio::piped());
        let (mut said, mut line) = (BufReader::new(host.child.stderr.take().expect("piped")), String::new());
        said.read_line(&mut line).expect("text");
        let address = line.trim_end().rsplit(' ').next().expect("an address");
        let mut raw = TcpStream::connect(address).expect("a connection");
        raw.write_all(b"GET /engine/v1/ping HTTP/1.1\r\nConnection: close\r\n\r\n").expect("a request");
        let mut text = String::new();
        raw.read_to_string(&mut text).expect("a response");
        assert!(text.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{text}");
        assert!(text.contains("\r\nContent-Length: 0\r\n") && text.ends_with("\r\n\r\n"), "{text}");
    }
}

#[test]
fn one_connection_above_the_limit_waits_for_another_to_end() {
    let host = Host::start(&[]);
    let count = || descriptors(host.child.id());
    let before = count();
    let mut held: Vec<UnixStream> = (0..CONNECTIONS_MAX).map(|_| host.raw()).collect();
    for guest in &mut held {
        guest.write_all(b"GET /engine/v1/ping HTTP/1.1\r\n\r\n").expect("a ping");
        guest.read_exact(&mut [0; OK.len()]).expect("its thread runs");
        guest.write_all(b"GET /engine/v1/poll HTTP/1.1\r\n\r\n").expect("a poll");
    }
    // Its own descriptor and two of a pipe; one that rests, and would make room, has two.
    wait_until("each waits in its poll", || count() == before + 3 * CONNECTIONS_MAX);
    let mut raw = host.raw();
    raw.write_all(b"GET /engine/v1/ping HTTP/1.1\r\n\r\n").expect("room");
    raw.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
    assert!(raw.read(&mut [0; 1]).is_err(), "it is not served");
    drop(held.pop());
    raw.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut text = [0; OK.len()];
    raw.read_exact(&mut text).expect("a response");
    assert_eq!(text, OK.as_bytes());
}

#[test]
fn a_shell_on_a_terminal_is_raw_and_follows_its_size() {
    let host = Host::start(&[]);
    let mut guest = host.guest();
    let (master, slave) = lodger::sys::tty::open_pair().expect("a terminal");
    let set = |rows, columns| {
        let window = lodger::sys::tty::Window { rows, columns };
        lodger::sys::tty::set_window(master.as_fd(), window).expect("a size");
    };
    set(50, 100);
    let ends = [0; 3].map(|_| Stdio::from(slave.try_clone().expect("a descriptor")));
    let [stdin, stdout, stderr] = ends;
    let mut shell = host.command(&["shell", "-t"]).stdin(stdin).stdout(stdout).stderr(stderr).spawn().expect("shell");
    let action = poll(&mut guest);
    assert_eq!((action.kind, action.command.len(), action.tty), (Kind::ExecShell, 0, true));
    let mut far = Far::over(host.raw(), &action.id);
    assert_eq!(far.receive().expect("a size"), [3, 0, 100, 0, 50]);
    set(24, 300);
    lodger::sys::signal::send(shell.id() as i32, lodger::sys::signal::SIGWINCH).expect("a signal");
    assert_eq!(far.receive().expect("a size"), [3, 1, 44, 0, 24]);
    // Control-C is a key like others.
    fd::write(master.as_fd(), b"\x03").expect("a key");
    assert_eq!(far.receive().expect("a key"), [0, 0, 3]);
    far.send(b"\x00\x01a\r\nb");
    far.send(b"\x05\x00");
    far.0.queue(Message::Close(1000));
    far.0.flush().expect("somebody reads");
    assert!(shell.wait().expect("an end").success());
    let mut text = [0; 16];
    let count = fd::read(master.as_fd(), &mut text).expect("output");
    assert_eq!(&text[..count], b"a\r\nb", "its line ends stay as they are");
}

#[test]
fn an_interrupted_shell_aborts_the_guests() {
    let host = Host::start(&[]);
    let shell = host.command(&["shell"]).spawn().expect("shell");
    let action = poll(&mut host.guest());
    let mut far = Far::over(host.raw(), &action.id);
    far.send(b"\x00\x02x");
    assert_eq!(far.receive().expect("an ack"), [1, 2, 0, 0, 0, 1]);
    lodger::sys::signal::send(shell.id() as i32, lodger::sys::signal::SIGINT).expect("a signal");
    assert_eq!(far.receive().expect("an abort"), [4]);
    assert_eq!(far.receive(), None);
    assert_eq!(output(shell).status.code(), Some(130));
}

#[test]
fn a_command_that_went_away_and_many_that_ended_leave_nothing_behind() {
    let host = Host::start(&[]);
    let mut guest = host.guest();
    let count = || descriptors(host.child.id());
    exchange(&mut guest, "GET", "/engine/v1/ping", &[], b"");
    let before = count();
    // Whoever wanted this is gone before it comes, as the host knows already or finds out: an error for the guest, and no further attempt.
    let mut gone = UnixStream::connect(host.folder.path("control")).expect("a connection");
    gone.write_all(b"{\"do\":\"get\",\"path\":\"/a\"}\n").expect("a command");
    let id = poll(&mut guest).id;
    // A child that another test is about to start may have a copy of it.
    gone.shutdown(Shutdown::Both).expect("a shutdown");
    let (status, body) = reply(&mut guest, &id, &[], b"content");
    assert!(matches!((status, code(&body)), (500, "InternalError") | (400, "UnknownActionId")), "{body}");
    drop(guest);
    let mut guest = host.guest();
    for round in 0..200 {
        let mut raw = UnixStream::connect(host.folder.path("control")).expect("a connection");
        raw.write_all(b"{\"do\":\"get\",\"path\":\"/a\"}\n").expect("a command");
        let id = poll(&mut guest).id;
        assert_eq!(reply(&mut guest, &id, &[], b"content").0, 200, "{round}");
        let mut bytes = Vec::new();
        raw.read_to_end(&mut bytes).expect("an answer");
        assert_eq!(bytes, b"R\0\0\0\0D\0\0\0\x07contentZ\0\0\0\0");
    }
    // The connection of the guest may not have rested before, as it does now.
    wait_until("all is closed again", || count() <= before + 1);
}

#[test]
fn the_control_socket_is_for_its_user_only_and_refuses_nonsense() {
    use std::os::unix::fs::PermissionsExt;
    let host = Host::start(&[]);
    let path = host.folder.path("control");
    assert_eq!(fs::metadata(&path).expect("a socket").permissions().mode() & 0o777, 0o600);
    let say = |bytes: &[u8]| {
        let mut raw = UnixStream::connect(&path).expect("a connection");
        let _ = raw.write_all(bytes);
        let _ = raw.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        let _ = raw.read_to_end(&mut answer);
        answer
    };
    assert_eq!(say(b"{\"do\":\"dance\"}\n"), b"E\0\0\0\x18there is no such command");
    for wrong in [&b"{\n"[..], b"[]\n", b"\xff\n", b"{\"do\":\"shell\",\"command\":\"sh\"}\n"] {
        assert_eq!(say(wrong).first(), Some(&b'E'), "{wrong:?}");
    }
    assert_eq!(say(b"no line"), b"");
    assert_eq!(say(&vec![b' '; (1 << 20) + 5000]), b"", "more than a command may have");
    assert_eq!(say(b"{\"do\":1}\n").first(), Some(&b'E'), "and it still serves");
}
