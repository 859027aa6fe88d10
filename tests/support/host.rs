//! A host of the metadata service that does what each test wants, and a guest of it.
#![allow(dead_code)] // Each test file uses its own part of this.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::{Folder, PATIENCE, wait_until};
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

/// What a reply to an action was.
#[derive(Clone, Debug)]
pub struct Reply {
    pub id: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub whole: bool,
}

/// What a test does itself with a request: true when that was it, and the connection is to be dropped.
pub type Script = Box<dyn Fn(&Shared, &Request, &mut Connection) -> bool + Send + Sync>;

pub struct Shared {
    pub execute: String,
    pub script: Script,
    pub log: Mutex<Vec<u8>>,
    /// All requests but polls, as `METHOD path`.
    pub requests: Mutex<Vec<String>>,
    pub actions: Mutex<VecDeque<String>>,
    pub replies: Mutex<Vec<Reply>>,
    pub shells: Mutex<Vec<(String, Stream, Vec<u8>)>>,
    pub polls: AtomicUsize,
    pub logs: AtomicUsize,
    pub over: AtomicBool,
}

pub struct Host {
    pub shared: Arc<Shared>,
    pub folder: Folder,
    pub ids: AtomicUsize,
}

pub fn limits<'a>() -> Limits<'a> {
    Limits::default().until(Instant::now() + PATIENCE)
}

/// What a host says to execute.
pub fn task(command: &[&str]) -> String {
    let words: Vec<String> = command.iter().map(|word| format!("{word:?}")).collect();
    format!(r#"{{"env":{{"TEST_TEXT":"Hello World"}},"command":[{}]}}"#, words.join(","))
}

pub fn sh(script: &str) -> String {
    task(&["sh", "-c", script])
}

impl Host {
    pub fn new(execute: String) -> Host {
        Host::with(execute, |_, _, _| false)
    }

    pub fn with(
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

    pub fn address(&self) -> String {
        format!("unix:{}", self.folder.path("host").display())
    }

    pub fn guest(&self, options: &[&str]) -> Guest {
        Guest::start(&self.address(), options)
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&self.shared.log.lock().expect("a log")).into_owned()
    }

    pub fn ask(&self, kind: Kind, path: &str, command: &[&str], tty: bool) -> String {
        let id = format!("A{}", self.ids.fetch_add(1, Ordering::SeqCst));
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        let action = Action { id: id.clone(), kind, path: path.to_owned(), command, tty };
        self.shared.actions.lock().expect("actions").push_back(action.to_json());
        id
    }

    pub fn reply(&self, id: &str) -> Reply {
        let find = || self.shared.replies.lock().expect("replies").iter().find(|reply| reply.id == id).cloned();
        wait_until("a reply comes", || find().is_some());
        find().expect("a reply")
    }

    pub fn requests(&self) -> Vec<String> {
        self.shared.requests.lock().expect("requests").clone()
    }

    pub fn has_heard(&self, request: &str) -> bool {
        self.requests().iter().any(|known| known == request)
    }

    pub fn shell(&self, command: &[&str], tty: bool) -> Shell {
        let (stream, leftover) = self.shell_stream(command, tty);
        let socket = Socket::over(stream, Role::Server, leftover, MESSAGE_MAX).expect("a socket");
        Shell { socket, client: Client::default(), raw: Vec::new() }
    }

    /// The connection of a shell behind its handshake.
    pub fn shell_stream(&self, command: &[&str], tty: bool) -> (Stream, Vec<u8>) {
        let id = self.ask(Kind::ExecShell, "", command, tty);
        let find = || self.shared.shells.lock().expect("shells").iter().position(|(known, ..)| *known == id);
        wait_until("a shell opens", || find().is_some());
        let at = find().expect("a shell");
        let (_, stream, leftover) = self.shared.shells.lock().expect("shells").remove(at);
        (stream, leftover)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
    }
}

pub fn serve(shared: &Shared, mut connection: Connection) -> io::Result<()> {
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

pub fn reply_of(request: &Request) -> Reply {
    let headers = request.headers.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    Reply { id: request.query_value("id").unwrap_or_default().to_owned(), headers, body: Vec::new(), whole: true }
}

/// Takes a log until it ends, or has so many bytes.
pub fn read_log(shared: &Shared, connection: &mut Connection, max: usize) -> io::Result<()> {
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
pub struct Guest(pub Child);

impl Guest {
    pub fn start(host: &str, options: &[&str]) -> Guest {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lodger"));
        command.args(["metadata", "run", "--host", host]).args(options).stdin(Stdio::null());
        Guest(command.spawn().expect("the guest starts"))
    }

    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the guest ends", || {
            status = self.0.try_wait().expect("a child");
            status.is_some()
        });
        status.expect("waited")
    }

    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.0.id())).expect("a process").count()
    }

    /// Memory that it takes now.
    pub fn memory_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).expect("a process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// Time on the processor, in ticks of 10 ms.
    pub fn ticks(&self) -> u64 {
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
pub struct Shell {
    pub socket: Socket,
    pub client: Client,
    /// What came, message by message, but for data.
    pub raw: Vec<Vec<u8>>,
}

impl Shell {
    pub fn send(&mut self, message: Vec<u8>) {
        self.socket.queue(Message::Binary(message));
        self.socket.flush().expect("a connection");
    }

    /// Sends all of `input` and, where it is wanted, its end; gives both outputs and whether it was a success.
    pub fn run(&mut self, mut input: &[u8], end: bool) -> (Vec<u8>, Vec<u8>, bool) {
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

pub fn outcome(host: &Host, options: &[&str]) -> Option<i32> {
    let mut options = options.to_vec();
    options.extend(["--exit-with-task", "0"]);
    host.guest(&options).wait().code()
}

/// Runs the guest in this process, with timers that a test has time for.
pub fn run_with(host: &Host, timers: Timers) -> Ended {
    let mut config = Config::at(&host.address()).expect("an address");
    config.exit_with_task = Some(Duration::ZERO);
    config.timers = timers;
    let (stop, _never) = fd::pipe().expect("a pipe");
    metadata::run(&config, std::os::fd::AsFd::as_fd(&stop)).expect("threads")
}

pub fn short() -> Timers {
    let ms = Duration::from_millis;
    Timers { request: ms(500), retries: 3, log_patience: ms(700), poll: ms(700), ..Timers::default() }
}
