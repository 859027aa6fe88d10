//! The guest's side of the metadata service, as a process, against a small host that does what each test wants.
#![cfg(feature = "metadata")]

mod support;

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lodger::http::connection::Connection;
use lodger::http::head::Request;
use lodger::http::wait::Limits;
use lodger::metaservice::{Action, Kind};
use lodger::proto::metadata::{self, Config, Ended, Timers};
use lodger::shell::MESSAGE_MAX;
use lodger::shell::client::{Client, Event};
use lodger::stream::Stream;
use lodger::sys::fd::{self, PollSet};
use lodger::sys::signal;
use lodger::websocket::key::accept_key;
use lodger::websocket::socket::{Message, Role, Socket};
use support::{Folder, PATIENCE, pause, wait_until};

/// What a reply to an action was.
#[derive(Clone, Debug)]
struct Reply {
    id: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    whole: bool,
}

/// What a test does itself with a request: true when that was it, and the connection is to be dropped.
type Script = Box<dyn Fn(&Shared, &Request, &mut Connection) -> bool + Send + Sync>;

struct Shared {
    execute: String,
    script: Script,
    log: Mutex<Vec<u8>>,
    /// All requests but polls, as `METHOD path`.
    requests: Mutex<Vec<String>>,
    actions: Mutex<VecDeque<String>>,
    replies: Mutex<Vec<Reply>>,
    shells: Mutex<Vec<(String, Stream, Vec<u8>)>>,
    polls: AtomicUsize,
    logs: AtomicUsize,
    over: AtomicBool,
}

struct Host {
    shared: Arc<Shared>,
    folder: Folder,
    ids: AtomicUsize,
}

fn limits<'a>() -> Limits<'a> {
    Limits::default().until(Instant::now() + PATIENCE)
}

/// What a host says to execute.
fn task(command: &[&str]) -> String {
    let words: Vec<String> = command.iter().map(|word| format!("{word:?}")).collect();
    format!(r#"{{"env":{{"TEST_TEXT":"Hello World"}},"command":[{}]}}"#, words.join(","))
}

fn sh(script: &str) -> String {
    task(&["sh", "-c", script])
}

impl Host {
    fn new(execute: String) -> Host {
        Host::with(execute, |_, _, _| false)
    }

    fn with(
        execute: String,
        script: impl Fn(&Shared, &Request, &mut Connection) -> bool + Send + Sync + 'static,
    ) -> Host {
        let folder = Folder::new();
        let listener = UnixListener::bind(folder.path("host")).expect("a socket");
        let shared = Arc::new(Shared {
            execute,
            script: Box::new(script),
            log: Mutex::default(),
            requests: Mutex::default(),
            actions: Mutex::default(),
            replies: Mutex::default(),
            shells: Mutex::default(),
            polls: AtomicUsize::new(0),
            logs: AtomicUsize::new(0),
            over: AtomicBool::new(false),
        });
        let all = shared.clone();
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let shared = all.clone();
                std::thread::spawn(move || {
                    let connection = Connection::over(Stream::over(socket)).expect("a connection");
                    let _ = serve(&shared, connection);
                });
            }
        });
        Host { shared, folder, ids: AtomicUsize::new(0) }
    }

    fn address(&self) -> String {
        format!("unix:{}", self.folder.path("host").display())
    }

    fn guest(&self, options: &[&str]) -> Guest {
        Guest::start(&self.address(), options)
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&self.shared.log.lock().expect("a log")).into_owned()
    }

    fn ask(&self, kind: Kind, path: &str, command: &[&str], tty: bool) -> String {
        let id = format!("A{}", self.ids.fetch_add(1, Ordering::SeqCst));
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        let action = Action { id: id.clone(), kind, path: path.to_owned(), command, tty };
        self.shared.actions.lock().expect("actions").push_back(action.to_json());
        id
    }

    fn reply(&self, id: &str) -> Reply {
        let find = || self.shared.replies.lock().expect("replies").iter().find(|reply| reply.id == id).cloned();
        wait_until("a reply comes", || find().is_some());
        find().expect("a reply")
    }

    fn requests(&self) -> Vec<String> {
        self.shared.requests.lock().expect("requests").clone()
    }

    fn has_heard(&self, request: &str) -> bool {
        self.requests().iter().any(|known| known == request)
    }

    fn shell(&self, command: &[&str], tty: bool) -> Shell {
        let id = self.ask(Kind::ExecShell, "", command, tty);
        let find = || self.shared.shells.lock().expect("shells").iter().position(|(known, ..)| *known == id);
        wait_until("a shell opens", || find().is_some());
        let (_, stream, leftover) = {
            let at = find().expect("a shell");
            self.shared.shells.lock().expect("shells").remove(at)
        };
        let socket = Socket::over(stream, Role::Server, leftover, MESSAGE_MAX).expect("a socket");
        Shell { socket, client: Client::default(), raw: Vec::new() }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
    }
}

fn serve(shared: &Shared, mut connection: Connection) -> io::Result<()> {
    while let Some(request) = connection.request(Limits::default())? {
        let what = format!("{} {}", request.method, request.path.trim_start_matches("/engine/v1/"));
        if what == "GET poll" {
            shared.polls.fetch_add(1, Ordering::SeqCst);
        } else {
            shared.requests.lock().expect("requests").push(what.clone());
        }
        if (shared.script)(shared, &request, &mut connection) {
            return Ok(());
        }
        match what.as_str() {
            "GET execute" => connection.respond(200, &[], shared.execute.as_bytes(), limits())?,
            "POST log" => {
                shared.logs.fetch_add(1, Ordering::SeqCst);
                read_log(shared, &mut connection, usize::MAX)?;
                connection.respond(200, &[], b"", limits())?;
            }
            "GET poll" => {
                let action = || shared.actions.lock().expect("actions").pop_front();
                let mut found = action();
                while found.is_none() && !shared.over.load(Ordering::SeqCst) && !connection.peer_hung_up() {
                    std::thread::sleep(Duration::from_millis(5));
                    found = action();
                }
                let none = r#"{"id":"x","type":"none"}"#.to_owned();
                connection.respond(200, &[], found.unwrap_or(none).as_bytes(), limits())?;
            }
            "POST reply" => {
                let mut reply = reply_of(&request);
                let mut body = connection.body();
                match connection.body_within(&mut body, 64 << 20, limits()) {
                    Ok(bytes) => reply.body = bytes,
                    Err(_) => reply.whole = false,
                }
                let whole = reply.whole;
                shared.replies.lock().expect("replies").push(reply);
                if whole {
                    connection.respond(200, &[], b"", limits())?;
                }
            }
            "GET reply" => {
                let key = accept_key(request.headers.get("sec-websocket-key").expect("a key"));
                assert!(request.headers.is("connection", "upgrade") && request.headers.is("upgrade", "websocket"));
                assert_eq!(request.headers.get("sec-websocket-version"), Some("13"));
                assert_eq!(request.headers.get("origin"), None);
                let headers =
                    [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", key.as_str())];
                connection.respond_head(101, &headers, limits())?;
                let (stream, leftover) = connection.into_parts();
                shared.shells.lock().expect("shells").push((reply_of(&request).id, stream, leftover));
                return Ok(());
            }
            _ => connection.respond(200, &[], b"", limits())?,
        }
    }
    Ok(())
}

fn reply_of(request: &Request) -> Reply {
    let headers = request.headers.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    Reply { id: request.query_value("id").unwrap_or_default().to_owned(), headers, body: Vec::new(), whole: true }
}

/// Takes a log until it ends, or has so many bytes.
fn read_log(shared: &Shared, connection: &mut Connection, max: usize) -> io::Result<()> {
    let (mut body, mut chunk, mut all) = (connection.body(), vec![0; 64 << 10], 0);
    loop {
        let count = connection.read_body(&mut body, &mut chunk, Limits::default())?;
        shared.log.lock().expect("a log").extend_from_slice(&chunk[..count]);
        all += count;
        if count == 0 || all >= max {
            return Ok(());
        }
    }
}

/// `lodger metadata run`, ended with the test.
struct Guest(Child);

impl Guest {
    fn start(host: &str, options: &[&str]) -> Guest {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lodger"));
        command.args(["metadata", "run", "--host", host]).args(options).stdin(Stdio::null());
        Guest(command.spawn().expect("the guest starts"))
    }

    fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the guest ends", || {
            status = self.0.try_wait().expect("a child");
            status.is_some()
        });
        status.expect("waited")
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.0.id())).expect("a process").count()
    }

    /// Time on the processor, in ticks of 10 ms.
    fn ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id())).expect("a process");
        let fields: Vec<&str> = stat.rsplit(") ").next().expect("fields").split(' ').collect();
        [11, 12].iter().map(|field| fields[*field].parse::<u64>().expect("a number")).sum()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = signal::send(self.0.id() as i32, signal::SIGTERM);
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline && matches!(self.0.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The host's end of a shell.
struct Shell {
    socket: Socket,
    client: Client,
    /// What came, message by message, but for data.
    raw: Vec<Vec<u8>>,
}

impl Shell {
    fn send(&mut self, message: Vec<u8>) {
        self.socket.queue(Message::Binary(message));
        self.socket.flush().expect("a connection");
    }

    /// Sends all of `input` and, where it is wanted, its end; gives both outputs and whether it was a success.
    fn run(&mut self, mut input: &[u8], end: bool) -> (Vec<u8>, Vec<u8>, bool) {
        let (mut stdout, mut stderr, mut exit) = (Vec::new(), Vec::new(), None);
        let deadline = Instant::now() + PATIENCE;
        let mut ended = !end;
        while exit.is_none() {
            assert!(Instant::now() < deadline, "no exit; {} and {} bytes so far", stdout.len(), stderr.len());
            while exit.is_none()
                && let Some(message) = self.socket.receive().expect("a message")
            {
                let Message::Binary(bytes) = message else { continue };
                match self.client.receive(&bytes).expect("a message of a shell") {
                    Some(Event::Stdout(data)) => {
                        stdout.extend_from_slice(data);
                        self.client.stdout_consumed(data.len());
                    }
                    Some(Event::Stderr(data)) => {
                        stderr.extend_from_slice(data);
                        self.client.stderr_consumed(data.len());
                    }
                    Some(Event::Exit { success }) => exit = Some(success),
                    _ => {}
                }
                if !(bytes[0] == 0 && bytes.len() > 2) {
                    self.raw.push(bytes);
                }
            }
            while self.client.room() > 0 && !input.is_empty() {
                let count = self.client.room().min(input.len());
                let message = self.client.data(&input[..count]).expect("room");
                self.socket.queue(Message::Binary(message));
                input = &input[count..];
            }
            if input.is_empty() && !ended {
                ended = true;
                // There is none when the exit has come before.
                self.client.end().into_iter().for_each(|message| self.socket.queue(Message::Binary(message)));
            }
            while let Some(ack) = self.client.ack() {
                self.socket.queue(Message::Binary(ack));
            }
            let _ = self.socket.flush();
            let writing = if self.socket.wants_write() { fd::WRITE } else { 0 };
            let mut set = PollSet::default();
            set.watch(self.socket.input(), fd::READ | writing);
            if exit.is_none() {
                set.wait(Some(Duration::from_millis(100))).expect("poll");
            }
        }
        (stdout, stderr, exit.expect("waited"))
    }
}

fn outcome(host: &Host, options: &[&str]) -> Option<i32> {
    let mut options = options.to_vec();
    options.extend(["--exit-with-task", "0"]);
    host.guest(&options).wait().code()
}

// --- The task ---

#[test]
fn the_text_is_in_the_log_and_the_result_is_that_of_the_command() {
    for (end, code, result) in [("true", 0, "PUT success"), ("false", 1, "PUT failed")] {
        let host = Host::new(sh(&format!("echo \"$TEST_TEXT\" && {end}")));
        assert_eq!(outcome(&host, &[]), Some(code));
        assert_eq!(host.log(), "Hello World\r\n");
        assert_eq!(host.requests(), ["GET execute", "POST log", result]);
    }
}

#[test]
fn the_log_is_there_while_the_command_runs() {
    let host = Host::new(sh("echo \"$TEST_TEXT\"; sleep 20"));
    let _guest = host.guest(&[]);
    wait_until("the text arrives", || host.log().contains("Hello World\r\n"));
    assert!(!host.requests().iter().any(|request| request.starts_with("PUT")));
}

#[test]
fn the_log_is_opened_before_there_is_any() {
    let host = Host::new(sh("sleep 20"));
    let _guest = host.guest(&[]);
    wait_until("the log opens", || host.has_heard("POST log"));
}

#[test]
fn a_missing_program_folder_or_user_fails_with_a_line_in_the_log() {
    let host = Host::new(task(&["/no/such/program"]));
    assert_eq!(outcome(&host, &[]), Some(1));
    assert!(host.log().contains("/no/such/program: no such file"), "{}", host.log());
    for (options, text) in
        [(["--workdir", "/no/such/folder"], "/no/such/folder"), (["--user", "nobodyatall"], "nobodyatall")]
    {
        let host = Host::new(sh("echo never"));
        assert_eq!(outcome(&host, &options), Some(1));
        assert!(host.log().starts_with("lodger: ") && host.log().contains(text), "{}", host.log());
        assert!(host.has_heard("PUT failed"));
    }
}

#[test]
fn later_environments_win_and_shells_have_all_of_them() {
    let host = Host::new(sh("echo $TEST_TEXT/$A; pwd"));
    let folder = host.folder.0.display().to_string();
    let _guest = host.guest(&["-e", "TEST_TEXT=lost", "-e", "A=1", "--workdir", &folder]);
    wait_until("the result comes", || host.has_heard("PUT success"));
    assert_eq!(host.log(), format!("Hello World/1\r\n{folder}\r\n"));
    let (stdout, ..) = host.shell(&["sh", "-c", "echo $TEST_TEXT/$A; pwd"], false).run(b"", true);
    assert_eq!(stdout, format!("Hello World/1\n{folder}\n").as_bytes());
}

#[test]
fn the_entry_point_stands_in_front() {
    let host = Host::new(task(&["a", "b"]));
    assert_eq!(outcome(&host, &["--entrypoint", "echo", "--entrypoint", "in front"]), Some(0));
    assert_eq!(host.log(), "in front a b\r\n");
}

#[test]
fn a_kill_ends_the_task_and_what_it_has_started() {
    let host = Host::new(sh("sleep 20 & sleep 20; echo not reached"));
    let _guest = host.guest(&[]);
    wait_until("the log opens", || host.has_heard("POST log"));
    pause(Duration::from_millis(100));
    let start = Instant::now();
    let id = host.ask(Kind::KillProcess, "", &[], false);
    assert!(host.reply(&id).body.is_empty());
    wait_until("the result comes", || host.has_heard("PUT failed"));
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    let again = host.ask(Kind::KillProcess, "", &[], false);
    host.reply(&again);
}

#[test]
fn a_task_that_ignores_signals_is_killed_all_the_same() {
    let host = Host::new(sh("trap '' TERM HUP; echo deaf; while :; do sleep 9; done"));
    let _guest = host.guest(&[]);
    wait_until("it runs", || host.log().contains("deaf"));
    let start = Instant::now();
    host.ask(Kind::KillProcess, "", &[], false);
    wait_until("the result comes", || host.has_heard("PUT failed"));
    assert!(start.elapsed() >= Duration::from_secs(4) && start.elapsed() < Duration::from_secs(9));
}

// --- Files ---

#[test]
fn files_are_sent_and_what_is_none_is_not_found_at_once() {
    let host = Host::new(sh("true"));
    let _guest = host.guest(&[]);
    let content: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    fs::write(host.folder.path("file"), &content).expect("a file");
    let status = Command::new("mkfifo").arg(host.folder.path("fifo")).status().expect("mkfifo");
    assert!(status.success());
    let path = |name: &str| host.folder.path(name).display().to_string();
    let id = host.ask(Kind::GetArtifact, &path("file"), &[], false);
    let reply = host.reply(&id);
    assert!(reply.whole && reply.body == content);
    assert!(!reply.headers.iter().any(|(name, _)| name == "content-type"));
    for missing in [path("missing"), path("fifo"), path(""), "/dev/zero".to_owned(), "/dev/tty".to_owned()] {
        let id = host.ask(Kind::GetArtifact, &missing, &[], false);
        let reply = host.reply(&id);
        let header = ("x-taskcluster-worker-error".to_owned(), "file-not-found".to_owned());
        assert!(reply.headers.contains(&header) && reply.body.is_empty(), "{missing}: {reply:?}");
    }
}

#[test]
fn a_file_that_cannot_be_read_breaks_its_body_off() {
    let host = Host::new(sh("true"));
    let guest = host.guest(&[]);
    // Opens, and fails to be read at address 0.
    let id = host.ask(Kind::GetArtifact, &format!("/proc/{}/mem", guest.0.id()), &[], false);
    assert!(!host.reply(&id).whole);
}

#[test]
fn folders_are_listed_in_order() {
    let host = Host::new(sh("true"));
    let _guest = host.guest(&[]);
    let path = |name: &str| host.folder.path(name).display().to_string();
    fs::create_dir_all(host.folder.path("d/sub-folder")).expect("a folder");
    fs::create_dir(host.folder.path("empty")).expect("a folder");
    fs::write(host.folder.path("d/hello.txt"), "").expect("a file");
    fs::write(host.folder.path("d/sub-folder/hello2.txt"), "").expect("a file");
    std::os::unix::fs::symlink("hello.txt", host.folder.path("d/link")).expect("a link");
    std::os::unix::fs::symlink("d", host.folder.path("linked")).expect("a link");
    let list = |asked: &str| {
        let reply = host.reply(&host.ask(Kind::ListFolder, asked, &[], false));
        assert!(reply.headers.contains(&("content-type".to_owned(), "application/json".to_owned())));
        String::from_utf8(reply.body).expect("text")
    };
    let d = path("d");
    let both = format!(r#"{{"files":["{d}/hello.txt","{d}/sub-folder/hello2.txt"],"notFound":false}}"#);
    assert_eq!(list(&d), both);
    assert_eq!(list(&format!("{d}/")), both);
    assert_eq!(list(&path("empty")), r#"{"files":[],"notFound":false}"#);
    assert_eq!(list(&path("linked")), r#"{"files":[],"notFound":false}"#);
    assert_eq!(list(&path("missing")), r#"{"files":[],"notFound":true}"#);
    assert_eq!(list(&path("d/hello.txt")), format!(r#"{{"files":["{d}/hello.txt"],"notFound":false}}"#));
}

#[test]
fn ten_thousand_files_leave_no_descriptor_behind() {
    let host = Host::new(sh("true"));
    let guest = host.guest(&[]);
    fs::write(host.folder.path("file"), "content").expect("a file");
    let path = host.folder.path("file").display().to_string();
    host.reply(&host.ask(Kind::GetArtifact, &path, &[], false));
    wait_until("the task has ended", || host.has_heard("PUT success"));
    pause(Duration::from_millis(300));
    let before = guest.descriptors();
    for _ in 0..10_000 {
        host.ask(Kind::GetArtifact, &path, &[], false);
    }
    let count = || host.shared.replies.lock().expect("replies").len();
    let start = Instant::now();
    while count() < 10_001 {
        assert!(start.elapsed() < Duration::from_secs(100), "{} so far", count());
        std::thread::sleep(Duration::from_millis(20));
    }
    wait_until("the descriptors are closed", || guest.descriptors() <= before);
}

// --- Shells ---

#[test]
fn a_shell_echoes_and_says_the_bytes_of_the_specification() {
    let host = Host::new(sh("sleep 20"));
    let _guest = host.guest(&[]);
    let mut shell = host.shell(&[], false);
    let (stdout, stderr, success) = shell.run(b"echo HELLO\n", true);
    assert_eq!((stdout.as_slice(), stderr.as_slice(), success), (&b"HELLO\n"[..], &b""[..], true));
    let mut said = shell.raw;
    let exit = said.pop().expect("an exit");
    said.sort();
    assert_eq!(said, [vec![0, 1], vec![0, 2], vec![1, 0, 0, 0, 0, 11]]);
    assert_eq!(exit, [5, 0]);
}

#[test]
fn a_shell_that_cannot_start_says_so() {
    let host = Host::new(sh("sleep 20"));
    let _guest = host.guest(&[]);
    for tty in [false, true] {
        let mut shell = host.shell(&["/no/such/program"], tty);
        assert!(!shell.run(b"", false).2);
        assert_eq!(shell.raw, [vec![0, 1], vec![0, 2], vec![5, 1]]);
    }
}

#[test]
fn many_bytes_come_back_unchanged() {
    let host = Host::new(sh("sleep 60"));
    let _guest = host.guest(&[]);
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    let input: Vec<u8> = (0..(42 << 20) + 7).map(|_| random()).collect();
    let (stdout, stderr, success) = host.shell(&["sh", "-c", "exec cat -"], false).run(&input, true);
    assert!(stdout == input && stderr.is_empty() && success, "{} bytes", stdout.len());
    let (stdout, stderr, success) = host.shell(&["sh", "-c", "head -c 4194341 /dev/zero >&2"], false).run(b"", false);
    assert!(stderr == vec![0; (4 << 20) + 37] && stdout.is_empty() && success, "{} bytes", stderr.len());
}

#[test]
fn an_exit_waits_for_nobodys_input_and_for_no_background_process() {
    let host = Host::new(sh("sleep 20"));
    let _guest = host.guest(&[]);
    let start = Instant::now();
    let (stdout, _, success) = host.shell(&["sh", "-c", "setsid sleep 15 & echo done; exit 3"], false).run(b"", false);
    assert_eq!((stdout.as_slice(), success), (&b"done\n"[..], false));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn input_that_the_program_does_not_want_is_acknowledged() {
    let host = Host::new(sh("sleep 20"));
    let _guest = host.guest(&[]);
    let input = vec![b'x'; 500_000];
    let mut shell = host.shell(&["sh", "-c", "exec <&-; sleep 1; exit 0"], false);
    assert!(shell.run(&input, true).2);
    let acks = shell.raw.iter().filter(|message| message[0] == 1);
    let sum: u32 = acks.map(|ack| u32::from_be_bytes([ack[2], ack[3], ack[4], ack[5]])).sum();
    assert_eq!(sum, 500_000);
}

#[test]
fn a_shell_on_a_terminal_has_a_size_and_ends_with_its_input() {
    let host = Host::new(sh("sleep 20"));
    let _guest = host.guest(&[]);
    assert!(host.shell(&["sh", "-c", "exit 0"], true).run(b"", false).2);
    let mut shell = host.shell(&["sh", "-c", "read word; stty size; exec cat"], true);
    let size = shell.client.size(50, 100);
    assert_eq!(size, [3, 0, 50, 0, 100]);
    shell.send(size);
    let (stdout, stderr, success) = shell.run(b"go\n", true);
    let text = String::from_utf8_lossy(&stdout);
    assert!(text.contains("100 50\r\n"), "{text}");
    assert!(success && stderr.is_empty());
}

#[test]
fn an_abort_and_a_lost_connection_kill_the_shell_and_its_children() {
    let host = Host::new(sh("sleep 60"));
    let _guest = host.guest(&[]);
    for abort in [true, false] {
        let file = host.folder.path(if abort { "aborted" } else { "lost" });
        let script = format!("sleep 60 & echo $! > {0}.new; mv {0}.new {0}; wait", file.display());
        let mut shell = host.shell(&["sh", "-c", &script], false);
        wait_until("it runs", || file.exists());
        let pid = fs::read_to_string(&file).expect("a number").trim().to_owned();
        if abort {
            shell.send(vec![4]);
            let mut last = None;
            wait_until("it says its end", || {
                while let Ok(Some(message)) = shell.socket.receive() {
                    if let Message::Binary(bytes) = message {
                        last = Some(bytes);
                    }
                }
                last.is_some()
            });
            assert_eq!(last, Some(vec![5, 1]));
        } else {
            drop(shell);
        }
        let gone = || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ")
        };
        wait_until("the child is gone", gone);
    }
}

// --- What goes wrong ---

#[test]
fn a_log_whose_connection_breaks_is_continued() {
    let broken = AtomicBool::new(false);
    let host =
        Host::with(sh("echo first; sleep 1; echo second; sleep 1; echo third"), move |shared, request, connection| {
            if request.path != "/engine/v1/log" || broken.swap(true, Ordering::SeqCst) {
                return false;
            }
            let _ = read_log(shared, connection, 1);
            true
        });
    assert_eq!(outcome(&host, &[]), Some(0));
    let log = host.log();
    assert!(log.starts_with("first\r\n") && log.ends_with("second\r\nthird\r\n") && log.contains("[lodger: "), "{log}");
}

#[test]
fn a_lost_log_fails_the_task_where_that_is_wanted() {
    for (options, code) in [(&[][..], 0), (&["--fail-on-lost-log"][..], 1)] {
        let host = Host::with(sh("echo hello"), |_, request, connection| {
            if request.path == "/engine/v1/log" {
                let _ = connection.respond(403, &[], b"", limits());
            }
            request.path == "/engine/v1/log"
        });
        assert_eq!(outcome(&host, options), Some(code));
    }
}

/// Runs the guest in this process, with timers that a test has time for.
fn run_with(host: &Host, timers: Timers) -> Ended {
    let mut config = Config::at(&host.address()).expect("an address");
    config.exit_with_task = Some(Duration::ZERO);
    config.timers = timers;
    let (stop, _never) = fd::pipe().expect("a pipe");
    metadata::run(&config, std::os::fd::AsFd::as_fd(&stop)).expect("threads")
}

fn short() -> Timers {
    let ms = Duration::from_millis;
    Timers { request: ms(500), retries: 3, log_patience: ms(700), poll: ms(700), ..Timers::default() }
}

#[test]
fn a_program_is_not_stopped_by_a_host_that_takes_no_log() {
    let host = Host::with(sh("head -c 30000000 /dev/zero; exit 0"), |shared, request, _| {
        while request.path == "/engine/v1/log" && !shared.over.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    });
    let start = Instant::now();
    assert_eq!(run_with(&host, short()), Ended::Task { success: true });
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
}

#[test]
fn a_host_that_never_answers_is_given_up_within_the_timers() {
    let host = Host::with(sh("true"), |shared, request, _| {
        while request.path == "/engine/v1/success" && !shared.over.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    });
    let start = Instant::now();
    assert_eq!(run_with(&host, short()), Ended::Unreported);
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    assert_eq!(host.requests().iter().filter(|request| *request == "PUT success").count(), 4);
}

#[test]
fn a_host_that_says_nonsense_is_asked_again_without_haste() {
    let asked = AtomicUsize::new(0);
    let host = Host::with(sh("true"), move |_, request, connection| {
        let large = vec![b' '; 11 << 20];
        let answers = [(500, &b""[..]), (403, b""), (200, b"{\"env\":"), (200, &large), (409, b"")];
        let wanted = request.path == "/engine/v1/execute";
        let Some((status, body)) = answers.get(asked.load(Ordering::SeqCst)).filter(|_| wanted) else { return false };
        asked.fetch_add(1, Ordering::SeqCst);
        let _ = connection.respond(*status, &[], body, limits());
        true
    });
    assert_eq!(outcome(&host, &[]), Some(0));
}

#[test]
fn nothing_spins_while_polls_are_answered_badly_or_nobody_is_there() {
    for answer in [Some((200, "{\"id\":")), Some((200, r#"{"id":"x","type":"none"}"#)), Some((500, "")), None] {
        let host = Host::with("{".to_owned(), move |_, request, connection| {
            let Some((status, body)) = answer.filter(|_| request.path == "/engine/v1/poll") else { return true };
            let _ = connection.respond(status, &[], body.as_bytes(), limits());
            true
        });
        let guest = host.guest(&[]);
        pause(Duration::from_secs(3));
        let (polls, ticks) = (host.shared.polls.load(Ordering::SeqCst), guest.ticks());
        assert!((2..=8).contains(&polls), "{polls} polls answered with {answer:?}");
        assert!(ticks <= 20, "{ticks} ticks with {answer:?}");
    }
    let guest = Guest::start("unix:/no/such/host", &[]);
    pause(Duration::from_secs(2));
    assert!(guest.ticks() <= 10, "{} ticks", guest.ticks());
}

#[test]
fn an_unknown_action_is_passed_over() {
    let host = Host::new(sh("true"));
    let _guest = host.guest(&[]);
    host.ask(Kind::Unknown("dance".to_owned()), "", &[], false);
    let id = host.ask(Kind::GetArtifact, "/no/such/file", &[], false);
    host.reply(&id);
}

#[test]
fn a_guest_that_is_ended_ends_what_it_has_started() {
    let host = Host::new(sh("echo $$; exec sleep 60"));
    let mut guest = host.guest(&[]);
    wait_until("it runs", || host.log().ends_with("\r\n"));
    let pid = host.log().trim().to_owned();
    let _ = signal::send(guest.0.id() as i32, signal::SIGTERM);
    assert_eq!(guest.wait().code(), Some(0));
    assert!(!fs::exists(format!("/proc/{pid}")).expect("a look"));
    assert!(!host.requests().iter().any(|request| request.starts_with("PUT")));
}

#[test]
fn an_agent_does_it_beside_its_other_work() {
    let host = Host::new(sh("echo beside"));
    let _agent = support::Agent::start_with(|command| {
        command.args(["--metadata", &host.address()]);
    });
    wait_until("the result comes", || host.has_heard("PUT success"));
    assert_eq!(host.log(), "beside\r\n");
}
