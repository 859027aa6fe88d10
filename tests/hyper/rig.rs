//! An agent with both channels, and their host.
#![allow(dead_code)]

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Folder, PATIENCE, end, wait_until};

pub const ACK: u32 = 9;
pub const ERROR: u32 = 10;
pub const NEXT: u32 = 14;

/// The agent, ended with the test.
pub struct Agent {
    pub child: Child,
    pub folder: Folder,
}

impl Agent {
    pub fn start() -> Agent {
        Agent::run(&mut Command::new(env!("CARGO_BIN_EXE_lodger")), Folder::new())
    }

    /// The same in namespaces of its own, as root of them; `None` where that is forbidden.
    pub fn in_namespaces(script: &str) -> Option<Agent> {
        let works = Command::new("unshare").args(["-n", "-m", "-u", "true"]).stderr(Stdio::null()).status();
        if !works.is_ok_and(|status| status.success()) {
            return None;
        }
        let script = format!("{script}; exec \"$@\"");
        Some(Agent::behind(&["unshare", "-n", "-m", "-u", "sh", "-ec", &script, "sh"]))
    }

    /// The same, run by a program that becomes it.
    pub fn behind(words: &[&str]) -> Agent {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(env!("CARGO_BIN_EXE_lodger"));
        Agent::run(&mut command, Folder::new())
    }

    fn run(command: &mut Command, folder: Folder) -> Agent {
        command.arg("serve");
        for channel in ["ctl", "tty"] {
            command.arg("--listen");
            command.arg(format!("unix:{},proto=hyper-{channel}", folder.path(channel).display()));
        }
        // And a third address, for all other protocols.
        command.arg("--listen").arg(format!("unix:{}", folder.path("any").display()));
        let child = command.stdin(Stdio::null()).spawn().expect("the agent starts");
        let agent = Agent { child, folder };
        let sockets = ["ctl", "tty", "any"].map(|name| agent.folder.path(name));
        wait_until("the agent listens", || sockets.iter().all(|socket| socket.exists()));
        agent
    }

    pub fn ctl(&self) -> Ctl {
        Ctl::new(&self.folder.path("ctl"))
    }

    pub fn tty(&self) -> Tty {
        Tty::new(&self.folder.path("tty"))
    }

    pub fn both(&self) -> (Ctl, Tty) {
        (self.ctl(), self.tty())
    }

    /// The answer to a command of the table, on a connection of its own that is no channel.
    pub fn call(&self, name: &str) -> Value {
        let mut socket = connect(&self.folder.path("any"));
        socket.write_all(json!({ "Command": name }).to_string().as_bytes()).expect("the agent reads");
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).expect("an answer");
        serde_json::from_slice(&answer).expect("JSON")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path(name)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn connect(path: &Path) -> UnixStream {
    let socket = loop {
        match UnixStream::connect(path) {
            // It listens a moment after its file is there.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => std::thread::sleep(Duration::from_millis(1)),
            socket => break socket.expect("the agent accepts"),
        }
    };
    socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    socket.set_write_timeout(Some(PATIENCE)).expect("a time-out");
    socket
}

pub fn ctl_message(code: u32, payload: &[u8]) -> Vec<u8> {
    [&code.to_be_bytes()[..], &(8 + payload.len() as u32).to_be_bytes(), payload].concat()
}

pub fn tty_message(sequence: u64, data: &[u8]) -> Vec<u8> {
    [&sequence.to_be_bytes()[..], &(12 + data.len() as u32).to_be_bytes(), data].concat()
}

/// The host's end of the ctl channel, which has seen READY.
pub struct Ctl {
    pub socket: UnixStream,
    /// Bytes that were sent and not acknowledged by NEXT.
    pub owed: usize,
}

impl Ctl {
    /// One that has seen nothing yet.
    pub fn open(path: &Path) -> Ctl {
        Ctl { socket: connect(path), owed: 0 }
    }

    pub fn new(path: &Path) -> Ctl {
        let mut ctl = Ctl::open(path);
        assert_eq!(ctl.receive(), Some((8, Vec::new())), "READY");
        ctl
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.owed += bytes.len();
        self.socket.write_all(bytes).expect("the agent reads");
    }

    /// The next message; `None` at the end.
    pub fn receive(&mut self) -> Option<(u32, Vec<u8>)> {
        let mut header = [0; 8];
        read_or_end(&mut self.socket, &mut header)?;
        let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let mut payload = vec![0; number(4) as usize - 8];
        read_or_end(&mut self.socket, &mut payload)?;
        Some((number(0), payload))
    }

    /// The next message but a NEXT, which is counted.
    fn next(&mut self) -> Option<Result<(), (u32, Vec<u8>)>> {
        let (code, payload) = self.receive()?;
        if code != NEXT {
            return Some(Err((code, payload)));
        }
        let count = u32::from_be_bytes(payload.try_into().expect("four bytes")) as usize;
        self.owed = self.owed.checked_sub(count).expect("no more than was sent");
        Some(Ok(()))
    }

    /// Whether the next message is a NEXT.
    pub fn acknowledged(&mut self) -> bool {
        self.next() == Some(Ok(()))
    }

    /// The next answer, behind the NEXTs in front of it.
    pub fn answer(&mut self) -> Option<(u32, Vec<u8>)> {
        loop {
            if let Err(answer) = self.next()? {
                return Some(answer);
            }
        }
    }

    /// Sends a command and gives its answer; all of it has been acknowledged by then.
    pub fn ask(&mut self, code: u32, payload: &[u8]) -> (u32, Vec<u8>) {
        self.send(&ctl_message(code, payload));
        let answer = self.answer().expect("an answer");
        assert_eq!(self.owed, 0, "all is acknowledged");
        answer
    }

    pub fn good(&mut self, code: u32, value: Value) -> Vec<u8> {
        let (answer, bytes) = self.ask(code, value.to_string().as_bytes());
        assert_eq!(answer, ACK, "{code} {value}: {}", String::from_utf8_lossy(&bytes));
        bytes
    }

    /// The text of an error.
    pub fn bad(&mut self, code: u32, value: Value) -> String {
        let (answer, bytes) = self.ask(code, value.to_string().as_bytes());
        assert_eq!(answer, ERROR, "{code} {value}");
        String::from_utf8(bytes).expect("a text")
    }

    /// Starts a program with stdio and the next number as stderr.
    pub fn execute(&mut self, stdio: u64, words: &[&str]) {
        self.good(6, program(stdio, words));
    }

    pub fn shell(&mut self, stdio: u64, script: &str) {
        self.execute(stdio, &["sh", "-c", script]);
    }

    pub fn on_terminal(&mut self, stdio: u64, words: &[&str]) {
        let process = json!({ "terminal": true, "stdio": stdio, "args": words });
        self.good(6, json!({ "container": "", "process": process }));
    }
}

pub fn program(stdio: u64, words: &[&str]) -> Value {
    json!({ "container": "hyperstart", "process": { "stdio": stdio, "stderr": stdio + 1, "args": words } })
}

fn read_or_end(socket: &mut UnixStream, into: &mut [u8]) -> Option<()> {
    match socket.read_exact(into) {
        Ok(()) => Some(()),
        Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => None,
        Err(error) => panic!("nothing came from the agent: {error}"),
    }
}

/// The host's end of the tty channel.
pub struct Tty {
    pub socket: UnixStream,
    /// What has come for each number.
    pub output: HashMap<u64, Vec<u8>>,
    /// Exit codes by number, and those whose empty message has come.
    pub codes: HashMap<u64, u8>,
    pub ended: Vec<u64>,
}

impl Tty {
    pub fn new(path: &Path) -> Tty {
        Tty { socket: connect(path), output: HashMap::new(), codes: HashMap::new(), ended: Vec::new() }
    }

    pub fn send(&mut self, sequence: u64, data: &[u8]) {
        self.socket.write_all(&tty_message(sequence, data)).expect("the agent reads");
    }

    /// The next message; `None` at the end.
    pub fn receive(&mut self) -> Option<(u64, Vec<u8>)> {
        let mut header = [0; 12];
        read_or_end(&mut self.socket, &mut header)?;
        let sequence = u64::from_be_bytes(header[..8].try_into().expect("eight bytes"));
        let length = u32::from_be_bytes(header[8..].try_into().expect("four bytes"));
        assert!((12..=10_240).contains(&length), "{length}");
        let mut data = vec![0; length as usize - 12];
        read_or_end(&mut self.socket, &mut data)?;
        Some((sequence, data))
    }

    /// Takes one message in.
    pub fn step(&mut self) {
        let (sequence, data) = self.receive().expect("a message");
        match (data.is_empty(), self.ended.contains(&sequence)) {
            (true, false) => self.ended.push(sequence),
            (false, true) if data.len() == 1 => {
                self.ended.retain(|other| *other != sequence);
                self.codes.insert(sequence, data[0]);
            }
            (false, false) => self.output.entry(sequence).or_default().extend(data),
            other => panic!("{sequence}: {} bytes, {other:?}", data.len()),
        }
    }

    /// Takes in messages up to the exit code of that program.
    pub fn finish(&mut self, stdio: u64) -> u8 {
        while !self.codes.contains_key(&stdio) {
            self.step();
        }
        self.codes.remove(&stdio).expect("it is there")
    }

    /// What has come for a number.
    pub fn text(&mut self, sequence: u64) -> String {
        String::from_utf8(self.output.remove(&sequence).unwrap_or_default()).expect("a text")
    }

    /// Takes in messages until this has come for a number.
    pub fn until(&mut self, sequence: u64, wanted: &str) {
        while !String::from_utf8_lossy(self.output.get(&sequence).map_or(&[], |bytes| bytes)).contains(wanted) {
            self.step();
        }
    }
}
