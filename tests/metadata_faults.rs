//! What the guest's side of the metadata service does when the host or the line fails: it goes on where that makes sense, ends within its
//! timers where it does not, and never spins.
//!
//! With its default timers; "retried" is 15 times, from 0.1 s to 5 s apart.
//!
//! | fault | before `execute` | `log` | result | poll | artifact | shell |
//! | --- | --- | --- | --- | --- | --- | --- |
//! | host dies, or line is cut | asks for ever | posts again, with a mark; retried after the end | retried, then unreported | retried, then every second | given up; the host asks again | killed |
//! | 5xx | asks for ever | as above | as above | as above | given up | given up |
//! | 4xx | asks for ever | given up at once, the task goes on | unreported at once | every second | given up | given up |
//! | half a JSON with 200 | asks for ever | nobody looks | nobody looks | every second | nobody looks | no handshake: given up |
//! | 11 MiB with 200 | asks for ever | nobody looks | retried, then unreported | retried, then every second | nobody looks | no handshake: given up |
//! | silence | asks every 5 s | given up 30 s after the end | 5 s each, retried | 35 s each | given up after 5 min | handshake given up after 30 s |
//!
//! Small replies (a list, a kill, a file that is not there) are as the result: retried on the same faults, and then given up.
#![cfg(feature = "metadata")]

#[path = "support/service.rs"]
mod service;
mod support;

use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use lodger::http::connection::Connection;
use lodger::http::wait::Limits;
use lodger::proto::metadata::{self, Config, Ended, Timers};
use lodger::stream::Stream;
use lodger::sys::{fd, signal};

use service::{Guest, Host, Line, Noise, Way, lives, output_within, read_soon};
use support::{Folder, PATIENCE, descriptors, pause, status, wait_until};

const MARK: &str = "[lodger: the connection of this log broke here; bytes before this may be missing]";

/// A host whose task is a script, a line to it, and a guest at the line's other end.
fn at_the_line(script: &str) -> (Host, Line, Guest) {
    let host = Host::start(script);
    let line = Line::to(&host.socket());
    let guest = Guest::start(&line.address(), &[]);
    (host, line, guest)
}

/// Exit status of a host for the result of a task that it has not given: that of its predecessor.
const NOT_OURS: Option<i32> = Some(125);

/// Kills a host while something of it is held on the line, and lets all go on with another one in its place.
fn replace(host: &mut Host, line: &Line) {
    line.wait_until_held();
    host.kill();
    line.cut("");
    host.start_again();
    line.release();
}

/// What the guest's task does until this file is there.
fn until(go: &Path, then: &str) -> String {
    format!("until test -e {}; do {then}; done", go.display())
}

/// Numbers of the lines `line N` of a log.
fn lines(log: &str) -> Vec<usize> {
    log.lines().filter_map(|line| line.strip_prefix("line ")?.parse().ok()).collect()
}

// --- The host dies, and another one comes to its place ---

#[test]
fn a_host_that_is_replaced_before_it_was_asked_has_its_task_done() {
    let mut host = Host::start_with(&[], &["sh", "-c", "echo $TEST_TEXT"]);
    host.kill();
    let guest = Guest::start(&host.address(), &[]);
    wait_until("it asks in vain", || guest.said().contains("lodger warn: poll: localhost: "));
    host.start_again();
    assert_eq!(host.wait(), Some(0));
    assert_eq!(host.log(), "Hello World\r\n");
    guest.assert_no_errors();
}

#[test]
fn a_host_that_is_replaced_before_the_log_opens_gets_all_of_it() {
    let folder = Folder::new();
    let go = folder.path("go");
    let script = format!("{}; echo $TEST_TEXT", until(&go, "sleep 0.05"));
    let mut host = Host::start_with(&[], &["sh", "-c", &script]);
    let line = Line::to(&host.socket());
    line.hold("POST /engine/v1/log", Way::FromGuest, 0);
    let guest = Guest::start(&line.address(), &[]);
    replace(&mut host, &line);
    fs::write(&go, "").expect("a file");
    assert_eq!(host.wait(), NOT_OURS);
    assert_eq!(host.log(), "Hello World\r\n");
    guest.assert_no_errors();
}

#[test]
fn a_host_that_is_replaced_while_the_log_streams_gets_the_rest_behind_a_mark() {
    let folder = Folder::new();
    let (go, file) = (folder.path("go"), folder.path("number"));
    // There it tells how far it has come, whoever listens.
    let tell = format!("echo $i > {0}.new; mv {0}.new {0}", file.display());
    let step = format!("i=$((i+1)); echo line $i; {tell}; sleep 0.01");
    let script = format!("i=0; {}; echo end", until(&go, &step));
    let mut host = Host::start_with(&[], &["sh", "-c", &script]);
    let guest = Guest::start(&host.address(), &[]);
    wait_until("the log streams", || host.log().contains("line 20\r\n"));
    host.kill();
    let before = *lines(&host.log()).last().expect("a line");
    wait_until("the guest knows", || guest.said().contains("lodger warn: log: "));
    let number = || fs::read_to_string(&file).expect("a file").trim().parse::<usize>().expect("a number");
    let known = number();
    wait_until("more lines have come", || number() > known + 20);
    host.start_again();
    wait_until("it goes on", || lines(&host.log()).len() > 20);
    fs::write(&go, "").expect("a file");
    assert_eq!(host.wait(), NOT_OURS);
    let (log, after) = (host.log(), lines(&host.log()));
    assert!(log.starts_with(&format!("\r\n{MARK}\r\n")) && log.ends_with("end\r\n"), "{log}");
    assert!(after.windows(2).all(|pair| pair[1] == pair[0] + 1), "{log}");
    // What was on its way is lost, which may be the line behind the known one, too; what came while nobody listened is not.
    assert!((before + 1..=known + 2).contains(&after[0]), "behind {before}, {known} when it was known: {log}");
    assert!(guest.said().contains("the log was not delivered whole"), "{}", guest.said());
}

#[test]
fn a_host_that_is_replaced_before_it_answers_the_log_gets_a_mark_and_the_result() {
    for options in [&[][..], &["--fail-on-lost-log"]] {
        let mut host = Host::start_with(&[], &["sh", "-c", "echo $TEST_TEXT"]);
        let line = Line::to(&host.socket());
        line.hold("POST /engine/v1/log", Way::FromHost, 0);
        let guest = Guest::start(&line.address(), options);
        replace(&mut host, &line);
        assert_eq!(host.wait(), NOT_OURS);
        assert_eq!(host.log(), format!("\r\n{MARK}\r\n"));
        assert!(guest.said().contains("the log was not delivered whole"), "{}", guest.said());
    }
}

#[test]
fn a_host_that_is_replaced_before_it_answers_the_result_gets_it_again() {
    for (end, code) in [("true", 0), ("false", 1)] {
        let mut host = Host::start_with(&[], &["sh", "-c", end]);
        let line = Line::to(&host.socket());
        line.hold("PUT ", Way::FromHost, 0);
        let mut guest = Guest::start(&line.address(), &["--exit-with-task", "0"]);
        replace(&mut host, &line);
        assert_eq!(host.wait(), NOT_OURS);
        assert_eq!(guest.process.wait().code(), Some(code));
        guest.assert_no_errors();
    }
}

#[test]
fn a_host_that_is_replaced_while_nothing_happens_is_polled_soon() {
    // Without staying, the first host ends when it has answered the log and the result: nothing of the task is left to be told to the next
    // ones, which would end at a result that is not theirs. They are not asked for a task, and stay.
    let mut host = Host::start_with(&[], &["true"]);
    let guest = Guest::start(&host.address(), &[]);
    assert_eq!(host.wait(), Some(0));
    let folder = host.folder.path("empty").display().to_string();
    fs::create_dir(&folder).expect("a folder");
    for _ in 0..3 {
        host.start_again();
        let start = Instant::now();
        let ls = host.run(&["ls", &folder], b"");
        assert!(ls.status.success(), "{}", String::from_utf8_lossy(&ls.stderr));
        assert!(start.elapsed() < Duration::from_secs(7), "{:?}", start.elapsed());
        host.kill();
    }
    guest.assert_no_errors();
}

#[test]
fn a_host_that_is_replaced_in_the_middle_of_an_artifact_can_ask_for_it_again() {
    let (mut host, line, guest) = at_the_line("sleep 60");
    let content = Noise::new().bytes(5_000_000);
    let (source, target) = (host.folder.path("source"), host.folder.path("target"));
    fs::write(&source, &content).expect("a file");
    let words = ["get", &source.display().to_string(), &target.display().to_string()];
    line.hold("POST /engine/v1/reply", Way::FromGuest, 1_000_000);
    let get = host.command(&words).spawn().expect("get");
    replace(&mut host, &line);
    let output = output_within(get, Duration::from_secs(10));
    assert_eq!(output.status.code(), Some(125));
    assert!(!target.exists());
    assert!(host.run(&words, b"").status.success());
    assert!(fs::read(&target).expect("a file") == content);
    assert!(guest.said().contains("lodger error: artifact"), "{}", guest.said());
}

/// Opens a shell that says its number in a file and sleeps, and gives it with that number.
fn sleeping_shell(host: &Host, name: &str) -> (Child, String) {
    let file = host.folder.path(name);
    let script = format!("echo $$ > {0}.new; mv {0}.new {0}; sleep 60; true", file.display());
    let shell = host.command(&["shell", "--", "sh", "-c", &script]).spawn().expect("a shell");
    (shell, read_soon(&file))
}

#[test]
fn a_shell_whose_host_dies_is_killed_and_the_next_host_can_have_another() {
    let mut host = Host::start("sleep 60");
    let guest = Guest::start(&host.address(), &[]);
    let (shell, pid) = sleeping_shell(&host, "pid");
    host.kill();
    assert_eq!(output_within(shell, Duration::from_secs(10)).status.code(), Some(125));
    wait_until("it is gone", || !lives(&pid));
    host.start_again();
    assert_eq!(host.run(&["shell", "--", "echo", "next"], b"").stdout, b"next\n");
    guest.assert_no_errors();
}

// --- The line breaks, and both sides are there ---

#[test]
fn a_log_goes_on_behind_a_mark_each_time_its_line_breaks() {
    let folder = Folder::new();
    let go = folder.path("go");
    let script = format!("i=0; {}; echo end", until(&go, "i=$((i+1)); echo line $i; sleep 0.01"));
    let mut host = Host::start_with(&[], &["sh", "-c", &script]);
    let line = Line::to(&host.socket());
    let guest = Guest::start(&line.address(), &[]);
    for round in 1..=3 {
        let before = host.log().len();
        wait_until("the log streams", || lines(&host.log()[before..]).len() > 10);
        assert_eq!(line.cut("POST /engine/v1/log"), 1);
        wait_until("it goes on", || host.log().matches(MARK).count() == round);
    }
    fs::write(&go, "").expect("a file");
    assert_eq!(host.wait(), Some(0));
    let log = host.log();
    assert!(log.ends_with("end\r\n"), "{log}");
    for part in log.split(MARK) {
        // The last line of a part may be half.
        let numbers = lines(part.rsplit_once("\r\n").map_or("", |(whole, _)| whole));
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{log}");
    }
    assert!(guest.said().contains("the log was not delivered whole"), "{}", guest.said());
}

#[test]
fn an_artifact_whose_line_breaks_arrives_by_another_attempt() {
    let (host, line, guest) = at_the_line("sleep 60");
    let content = Noise::new().bytes(5_000_000);
    let (source, target) = (host.folder.path("source"), host.folder.path("target"));
    fs::write(&source, &content).expect("a file");
    line.hold("POST /engine/v1/reply", Way::FromGuest, 1_000_000);
    let words = ["get", &source.display().to_string(), &target.display().to_string()];
    let get = host.command(&words).spawn().expect("get");
    line.wait_until_held();
    assert_eq!(line.cut("POST /engine/v1/reply"), 1);
    line.release();
    let output = output_within(get, Duration::from_secs(20));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(fs::read(&target).expect("a file") == content);
    assert!(guest.said().contains("lodger error: artifact"), "{}", guest.said());
}

#[test]
fn a_shell_whose_line_breaks_is_killed_and_its_user_is_told() {
    let (host, line, guest) = at_the_line("sleep 60");
    let (shell, pid) = sleeping_shell(&host, "pid");
    assert_eq!(line.cut("GET /engine/v1/reply"), 1);
    let output = output_within(shell, Duration::from_secs(10));
    assert_eq!(output.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&output.stderr).contains("connection is lost"));
    wait_until("it is gone", || !lives(&pid));
    guest.assert_no_errors();
}

#[test]
fn a_small_reply_whose_line_breaks_is_sent_again() {
    let mut host = Host::start_with(&[], &["sh", "-c", "sleep 60"]);
    let line = Line::to(&host.socket());
    let guest = Guest::start(&line.address(), &[]);
    line.hold("POST /engine/v1/reply", Way::FromGuest, 0);
    let kill = host.command(&["kill"]).spawn().expect("kill");
    line.wait_until_held();
    assert_eq!(line.cut("POST /engine/v1/reply"), 1);
    line.release();
    // The task may have ended before the reply; then the host is there for the command only.
    let output = output_within(kill, Duration::from_secs(10));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(host.wait(), Some(1));
    guest.assert_no_errors();
}

// --- The host says what it should not ---

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Status(u16),
    /// With status 200, as the next.
    HalfJson,
    LargeJson,
    /// It takes the request, and that is all.
    Silence,
    /// It closes the connection instead of an answer.
    HangUp,
}

const FAULTS: [Fault; 6] =
    [Fault::Status(500), Fault::Status(403), Fault::HalfJson, Fault::LargeJson, Fault::Silence, Fault::HangUp];

struct Scripted {
    script: String,
    /// The last part of the path at which it fails, and how, until it is healed.
    place: &'static str,
    fault: Fault,
    healed: AtomicBool,
    failed: AtomicUsize,
    /// Connections that the guest has given up because nothing came.
    given_up: AtomicUsize,
    actions: Mutex<Vec<String>>,
    /// Requests that were answered as they should be.
    served: Mutex<Vec<String>>,
    over: AtomicBool,
}

/// A host in this process, over when this is dropped.
struct FaultyHost {
    scripted: Arc<Scripted>,
    /// Here and not there: the one who accepts has that for as long as the process lasts.
    folder: Folder,
}

impl Drop for FaultyHost {
    fn drop(&mut self) {
        self.scripted.over.store(true, Ordering::SeqCst);
    }
}

impl FaultyHost {
    fn start(script: &str, place: &'static str, fault: Fault) -> FaultyHost {
        let folder = Folder::new();
        let listener = UnixListener::bind(folder.path("host")).expect("a socket");
        let scripted = Arc::new(Scripted {
            script: script.to_owned(),
            place,
            fault,
            healed: AtomicBool::new(false),
            failed: AtomicUsize::new(0),
            given_up: AtomicUsize::new(0),
            actions: Mutex::default(),
            served: Mutex::default(),
            over: AtomicBool::new(false),
        });
        let all = Arc::clone(&scripted);
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let scripted = Arc::clone(&all);
                thread::spawn(move || {
                    let connection = Connection::over(Stream::over(socket)).expect("a connection");
                    let _ = scripted.serve(connection);
                });
            }
        });
        FaultyHost { scripted, folder }
    }

    fn address(&self) -> String {
        format!("unix:{}", self.folder.path("host").display())
    }

    fn failed(&self) -> usize {
        self.scripted.failed.load(Ordering::SeqCst)
    }

    fn heal(&self) {
        self.scripted.healed.store(true, Ordering::SeqCst);
    }

    fn ask(&self, action: &str) {
        self.scripted.actions.lock().expect("actions").push(action.to_owned());
    }

    fn has_served(&self, request: &str) -> bool {
        self.scripted.served.lock().expect("requests").iter().any(|known| known == request)
    }

    /// Runs the guest in this process, with times that a test has, as long as `meanwhile` takes or until the task is over.
    fn guest(&self, fail_on_lost_log: bool, meanwhile: impl FnOnce()) -> (Ended, Duration) {
        let ms = Duration::from_millis;
        let mut config = Config::at(&self.address()).expect("an address");
        config.fail_on_lost_log = fail_on_lost_log;
        // Only there an answer is waited for in vain. Elsewhere a slow machine must not cost the log.
        let is_silent_log = self.scripted.place == "log" && self.scripted.fault == Fault::Silence;
        config.timers = Timers {
            request: ms(1000),
            retries: 2,
            execute_pause: ms(100),
            poll: ms(500),
            poll_pause: ms(200),
            handshake: ms(500),
            log_patience: if is_silent_log { ms(500) } else { PATIENCE },
            artifact_patience: ms(500),
            ..Timers::default()
        };
        let (stop, stopper) = fd::pipe().expect("a pipe");
        let start = Instant::now();
        thread::scope(|scope| {
            // In here it is closed also when a check fails, which stops the guest.
            let stopper = stopper;
            config.exit_with_task = Some(Duration::ZERO).filter(|_| self.scripted.script != FOREVER);
            let guest = scope.spawn(|| metadata::run(&config, stop.as_fd()).expect("threads"));
            meanwhile();
            if config.exit_with_task.is_none() {
                fd::write(stopper.as_fd(), b"x").expect("a pipe");
            }
            (guest.join().expect("the guest ends"), start.elapsed())
        })
    }
}

/// A task that lasts as long as the test.
const FOREVER: &str = "sleep 60";

impl Scripted {
    fn serve(&self, mut connection: Connection) -> io::Result<()> {
        while let Some(request) = connection.request(Limits::default())? {
            let place = request.path.trim_start_matches("/engine/v1/").to_owned();
            if place == self.place && !self.healed.load(Ordering::SeqCst) {
                self.failed.fetch_add(1, Ordering::SeqCst);
                self.fail(&mut connection)?;
                continue;
            }
            let id = request.query_value("id").unwrap_or_default().to_owned();
            let mut body = connection.body();
            connection.body_within(&mut body, 64 << 20, Limits::default())?;
            let answer = match place.as_str() {
                "execute" => format!(r#"{{"command":["sh","-c","{}"]}}"#, self.script),
                "poll" => self.action(&connection),
                _ => String::new(),
            };
            self.served.lock().expect("requests").push(format!("{place}{id}"));
            connection.respond(200, &[], answer.as_bytes(), limits())?;
        }
        Ok(())
    }

    fn fail(&self, connection: &mut Connection) -> io::Result<()> {
        let large = || [&b"{\"a\":\""[..], &vec![b'x'; 11 << 20], b"\"}"].concat();
        let (status, body) = match self.fault {
            Fault::Status(status) => (status, Vec::new()),
            Fault::HalfJson => (200, br#"{"id":"A","type":"#.to_vec()),
            Fault::LargeJson => (200, large()),
            Fault::HangUp => return Err(io::ErrorKind::BrokenPipe.into()),
            Fault::Silence => {
                while !self.over.load(Ordering::SeqCst) && !connection.peer_hung_up() {
                    thread::sleep(Duration::from_millis(5));
                }
                self.given_up.fetch_add(1, Ordering::SeqCst);
                return Err(io::ErrorKind::BrokenPipe.into());
            }
        };
        if status == 200 {
            let mut request = connection.body();
            connection.body_within(&mut request, 64 << 20, Limits::default())?;
        }
        connection.respond(status, &[], &body, limits())
    }

    fn action(&self, connection: &Connection) -> String {
        loop {
            if let Some(action) = self.actions.lock().expect("actions").pop() {
                return action;
            }
            if self.over.load(Ordering::SeqCst) || connection.peer_hung_up() {
                return r#"{"id":"x","type":"none"}"#.to_owned();
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn limits<'a>() -> Limits<'a> {
    Limits::default().until(Instant::now() + PATIENCE)
}

/// Does something for all faults at once.
fn for_all_faults(check: impl Fn(Fault) + Sync) {
    thread::scope(|scope| {
        for fault in FAULTS {
            let check = &check;
            scope.spawn(move || check(fault));
        }
    });
}

#[test]
fn execute_is_asked_for_until_there_is_an_answer() {
    for_all_faults(|fault| {
        let host = FaultyHost::start("true", "execute", fault);
        let meanwhile = || {
            wait_until("it has asked often", || host.failed() >= 5);
            host.heal();
        };
        let (ended, time) = host.guest(true, meanwhile);
        assert_eq!(ended, Ended::Task { success: true }, "{fault:?}");
        assert!(time < Duration::from_secs(20), "{time:?} with {fault:?}");
    });
}

#[test]
fn polls_go_on_whatever_they_get() {
    for_all_faults(|fault| {
        let host = FaultyHost::start(FOREVER, "poll", fault);
        let (ended, time) = host.guest(true, || {
            wait_until("it has polled often", || host.failed() >= 5);
            host.heal();
            host.ask(r#"{"id":"L","type":"list-folder","path":"/dev/null"}"#);
            wait_until("a poll is answered", || host.has_served("replyL"));
        });
        assert_eq!(ended, Ended::Stopped, "{fault:?}");
        assert!(time < Duration::from_secs(20), "{time:?} with {fault:?}");
    });
}

#[test]
fn a_task_ends_whatever_becomes_of_its_log() {
    for_all_faults(|fault| {
        // Only what was refused or never answered is lost.
        let is_lost = matches!(fault, Fault::Status(_) | Fault::Silence | Fault::HangUp);
        for fails in [false, true] {
            let host = FaultyHost::start("echo text", "log", fault);
            let (ended, time) = host.guest(fails, || {});
            assert_eq!(ended, Ended::Task { success: !(fails && is_lost) }, "{fault:?}");
            assert!(time < Duration::from_secs(10), "{time:?} with {fault:?}");
            // While the program runs there are more of them.
            let posts = if matches!(fault, Fault::Status(500) | Fault::HangUp) { 2..=9 } else { 1..=1 };
            assert!(posts.contains(&host.failed()), "{} posts with {fault:?}", host.failed());
        }
    });
}

#[test]
fn a_result_is_told_again_where_that_makes_sense() {
    for_all_faults(|fault| {
        let host = FaultyHost::start("true", "success", fault);
        let (ended, time) = host.guest(true, || {});
        let (expected, tries) = match fault {
            Fault::Status(403) => (Ended::Unreported, 1),
            Fault::HalfJson => (Ended::Task { success: true }, 1),
            _ => (Ended::Unreported, 3),
        };
        assert_eq!((ended, host.failed()), (expected, tries), "{fault:?}");
        assert!(time < Duration::from_secs(15), "{time:?} with {fault:?}");
    });
}

#[test]
fn a_reply_that_is_not_taken_stops_no_other_action() {
    for_all_faults(|fault| {
        let host = FaultyHost::start(FOREVER, "reply", fault);
        let file = host.folder.path("file");
        fs::write(&file, Noise::new().bytes(3_000_000)).expect("a file");
        let (ended, time) = host.guest(true, || {
            host.ask(r#"{"id":"L","type":"list-folder","path":"/dev/null"}"#);
            host.ask(&format!(r#"{{"id":"A","type":"get-artifact","path":"{}"}}"#, file.display()));
            host.ask(r#"{"id":"S","type":"exec-shell","command":["touch","/nowhere"]}"#);
            wait_until("all are refused", || host.failed() >= 3);
            let given_up = || host.scripted.given_up.load(Ordering::SeqCst);
            wait_until("all are given up", || fault != Fault::Silence || given_up() >= 3);
            host.heal();
            host.ask(r#"{"id":"Last","type":"get-artifact","path":"/dev/null"}"#);
            wait_until("another one is handled", || host.has_served("replyLast"));
        });
        assert_eq!(ended, Ended::Stopped, "{fault:?}");
        assert!(time < Duration::from_secs(15), "{time:?} with {fault:?}");
    });
}

#[test]
fn a_guest_that_dies_costs_its_shell_and_the_next_one_is_served() {
    let (host, line, mut guest) = at_the_line("sleep 60");
    let file = host.folder.path("pid");
    let script = format!("echo $$ > {0}.new; mv {0}.new {0}; exec cat", file.display());
    let shell = host.command(&["shell", "--", "sh", "-c", &script]).spawn().expect("a shell");
    let pid = read_soon(&file);
    guest.process.0.kill().expect("our child");
    guest.process.wait();
    assert_eq!(output_within(shell, Duration::from_secs(10)).status.code(), Some(125));
    // Nobody kills it, but its input ends.
    wait_until("it is gone", || !lives(&pid));
    let next = Guest::start(&line.address(), &[]);
    assert_eq!(host.run(&["shell", "--", "echo", "next"], b"").stdout, b"next\n");
    next.assert_no_errors();
}

#[test]
fn a_host_that_stands_still_for_a_while_loses_nothing() {
    let mut host = Host::start_with(&[], &["sh", "-c", "seq 1 1500000"]);
    let guest = Guest::start(&host.address(), &[]);
    for _ in 0..3 {
        let before = host.log().len();
        wait_until("the log streams", || host.log().len() > before + 100_000);
        host.process().signal(signal::SIGSTOP);
        pause(Duration::from_millis(700));
        host.process().signal(signal::SIGCONT);
    }
    assert_eq!(host.wait(), Some(0));
    let peak_kb = status(guest.process.pid(), "VmHWM");
    assert!((1..32 << 10).contains(&peak_kb), "{peak_kb} kB for a backlog of 4 MiB");
    let log = host.log();
    let wrong = log.lines().enumerate().find(|(at, line)| line.parse() != Ok(at + 1));
    assert_eq!((wrong, log.lines().count()), (None, 1_500_000));
    guest.assert_no_errors();
}

#[test]
fn a_shell_whose_host_stands_still_for_a_while_loses_nothing() {
    let mut host = Host::start("sleep 60");
    let guest = Guest::start(&host.address(), &[]);
    let bytes = Noise::new().bytes(20_000_000);
    let mut shell = host.command(&["shell", "--", "cat"]).spawn().expect("a shell");
    let mut stdin = shell.stdin.take().expect("a pipe");
    let input = bytes.clone();
    let writer = thread::spawn(move || stdin.write_all(&input));
    let reader = thread::spawn(move || shell.wait_with_output().expect("an end"));
    for _ in 0..3 {
        host.process().signal(signal::SIGSTOP);
        pause(Duration::from_millis(400));
        host.process().signal(signal::SIGCONT);
        pause(Duration::from_millis(50));
    }
    writer.join().expect("the writer ends").expect("all is written");
    let output = reader.join().expect("the reader ends");
    assert!(output.status.success() && output.stdout == bytes, "{} bytes", output.stdout.len());
    guest.assert_no_errors();
}

#[test]
fn a_kill_before_there_is_a_task_ends_it_as_soon_as_it_runs() {
    let host = FaultyHost::start("sleep 50", "execute", Fault::Status(500));
    let (ended, time) = host.guest(true, || {
        host.ask(r#"{"id":"K","type":"kill-process"}"#);
        wait_until("the kill is taken", || host.has_served("replyK"));
        host.heal();
    });
    assert_eq!(ended, Ended::Task { success: false });
    assert!(time < Duration::from_secs(5), "{time:?}");
}

#[test]
fn what_cannot_be_done_is_not_done_and_nothing_else_happens() {
    let host = FaultyHost::start(FOREVER, "nowhere", Fault::Silence);
    let (ended, _) = host.guest(true, || {
        for action in [
            r#"{"id":"a b","type":"kill-process-not"}"#,
            r#"{"id":"a\r\nX-Y: z","type":"get-artifact","path":"/etc/passwd"}"#,
            r#"{"id":"a\u0000b","type":"list-folder","path":"/dev"}"#,
            r#"{"id":"a b","type":"exec-shell"}"#,
            r#"{"id":"N","type":"get-artifact","path":"/etc/\u0000passwd"}"#,
            r#"{"id":"M","type":"list-folder","path":"/\u0000"}"#,
        ] {
            host.ask(action);
        }
        wait_until("two are answered", || host.has_served("replyN") && host.has_served("replyM"));
        host.ask(r#"{"id":"Last","type":"list-folder","path":"/dev/null"}"#);
        wait_until("another one is handled", || host.has_served("replyLast"));
    });
    assert_eq!(ended, Ended::Stopped);
    let served = host.scripted.served.lock().expect("requests").clone();
    let replies: Vec<_> = served.iter().filter(|request| request.starts_with("reply")).collect();
    assert_eq!(replies.len(), 3, "{replies:?}");
    // A task that no program can be given.
    let host = FaultyHost::start("a\\u0000b", "nowhere", Fault::Silence);
    assert_eq!(host.guest(true, || {}).0, Ended::Task { success: false });
}

// --- What all that costs ---

#[test]
fn actions_that_fail_leave_neither_descriptors_nor_threads() {
    let host = FaultyHost::start(FOREVER, "reply", Fault::Status(403));
    let file = host.folder.path("file");
    fs::write(&file, Noise::new().bytes(100_000)).expect("a file");
    let guest = Guest::start(&host.address(), &[]);
    let ask = |rounds: usize| {
        for _ in 0..rounds {
            host.ask(r#"{"id":"L","type":"list-folder","path":"/dev/null"}"#);
            host.ask(&format!(r#"{{"id":"A","type":"get-artifact","path":"{}"}}"#, file.display()));
            host.ask(r#"{"id":"S","type":"exec-shell","command":["touch","/nowhere"]}"#);
        }
    };
    let count = || (descriptors(guest.process.pid()), status(guest.process.pid(), "Threads"));
    ask(1);
    wait_until("all are refused", || host.failed() == 3);
    pause(Duration::from_millis(300));
    let before = count();
    ask(200);
    wait_until("all are refused", || host.failed() == 603);
    wait_until("nothing is left of them", || count() <= before);
}

#[test]
fn no_fault_makes_the_guest_spin() {
    let chatty = "while :; do echo text; sleep 0.05; done";
    let quick = "true";
    let places = [
        ("execute", quick),
        ("poll", FOREVER),
        ("log", chatty),
        ("log", FOREVER),
        ("success", quick),
        ("reply", FOREVER),
    ];
    let cases: Vec<_> = places.iter().flat_map(|place| FAULTS.map(|fault| (*place, fault))).collect();
    // Some at once: the times of each are its own, whatever the others do.
    for cases in cases.chunks(12) {
        thread::scope(|scope| {
            for ((place, script), fault) in cases {
                scope.spawn(move || {
                    let host = FaultyHost::start(script, place, *fault);
                    if *place == "reply" {
                        host.ask(r#"{"id":"L","type":"list-folder","path":"/dev/null"}"#);
                        host.ask(r#"{"id":"A","type":"get-artifact","path":"/etc/passwd"}"#);
                        host.ask(r#"{"id":"S","type":"exec-shell"}"#);
                    }
                    let guest = Guest::start(&host.address(), &[]);
                    let percent = guest.percent_during(Duration::from_secs(3));
                    assert!(host.failed() > 0, "{fault:?} at {place} was never met");
                    assert!(percent < 20, "{percent} % with {fault:?} at {place}");
                });
            }
        });
    }
}

#[test]
fn a_guest_that_waits_takes_no_time_at_all() {
    let host = Host::start("sleep 60");
    let guest = Guest::start(&host.address(), &[]);
    let (shell, _) = sleeping_shell(&host, "pid");
    let percent = guest.percent_during(Duration::from_secs(3));
    assert!(percent <= 1, "{percent} %");
    drop(guest);
    assert_eq!(output_within(shell, Duration::from_secs(10)).status.code(), Some(1), "it was told of the end");
}

#[test]
fn a_guest_without_a_host_takes_next_to_no_time() {
    let guest = Guest::start("unix:/no/such/host", &[]);
    let percent = guest.percent_during(Duration::from_secs(3));
    assert!(percent <= 3, "{percent} %");
}
