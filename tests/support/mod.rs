//! What the end-to-end tests share: a folder, an agent, and a peer that speaks to it in bare frames.
#![allow(dead_code)] // Each test file uses its own part of this.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use lodger::sys::signal;
use lodger::wire::exec::Exec;
use lodger::wire::frame::{Frame, Hello};
use lodger::wire::scan::Scanner;

/// How long anything in a test may take before it counts as hung. Generous: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A folder that is removed with everything in it.
#[derive(Debug)]
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Folder {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        loop {
            let name = format!("lodger-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
            let path = std::env::temp_dir().join(name);
            match fs::create_dir(&path) {
                // Of a process that had our number before, and was killed.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                made => {
                    made.expect("a new folder");
                    return Folder(path);
                }
            }
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// An agent on a unix socket of its own, ended with the test.
#[derive(Debug)]
pub struct Agent {
    pub child: Child,
    pub socket: PathBuf,
    pub folder: Folder,
}

impl Agent {
    pub fn start() -> Agent {
        Agent::start_with(|_| {})
    }

    /// Starts an agent whose command `adjust` may change first (environment, a wrapper's limits).
    pub fn start_with(adjust: impl FnOnce(&mut Command)) -> Agent {
        Agent::start_at("", adjust)
    }

    /// The same, with options behind its address, each with a comma before it.
    pub fn start_at(options: &str, adjust: impl FnOnce(&mut Command)) -> Agent {
        let folder = Folder::new();
        let socket = folder.path("agent.sock");
        let mut command = Command::new(env!("CARGO_BIN_EXE_lodger"));
        command.arg("serve").arg("--listen").arg(format!("unix:{}{options}", socket.display())).stdin(Stdio::null());
        adjust(&mut command);
        let child = command.spawn().expect("the agent starts");
        let agent = Agent { child, socket, folder };
        wait_until("the agent listens", || UnixStream::connect(&agent.socket).is_ok());
        agent
    }

    pub fn address(&self) -> String {
        format!("unix:{}", self.socket.display())
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn connect(&self) -> Peer {
        Peer::new(UnixStream::connect(&self.socket).expect("the agent accepts"))
    }

    /// A connection that has said Hello.
    pub fn hello(&self) -> Peer {
        let mut peer = self.connect();
        peer.send(&Frame::Hello(Hello { revision: 1, program: "test".into(), ..Hello::default() }));
        let item = peer.receive().expect("an answer to hello");
        assert!(matches!(Frame::decode(&item), Ok(Frame::Hello(_))), "{:?}", Frame::decode(&item));
        peer
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Ends an agent, and by SIGTERM, so that it ends its programs first; one that does not end of it is killed.
pub fn end(agent: &mut Child) {
    let is_over = |agent: &mut Child| agent.try_wait().is_ok_and(|status| status.is_some());
    if is_over(agent) {
        return;
    }
    let _ = signal::send(agent.id() as i32, signal::SIGTERM);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_over(agent) && Instant::now() < deadline {
        pause(Duration::from_millis(5));
    }
    let _ = agent.kill();
    let _ = agent.wait();
}

/// Waits until `condition` holds, or the test has failed.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "in vain waited until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until a process has used next to no processor time three times in a row. One that spins is never at rest.
pub fn wait_until_at_rest(pid: u32) {
    let mut quiet = 0;
    wait_until("it comes to rest", || {
        let before = cpu_ticks(pid);
        pause(Duration::from_millis(300));
        quiet = if cpu_ticks(pid) <= before + 2 { quiet + 1 } else { 0 };
        quiet == 3
    });
}

/// Waits so long, for something that must not happen meanwhile or that nothing tells of.
pub fn pause(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// One end of a connection, in bare frames.
#[derive(Debug)]
pub struct Peer {
    pub socket: UnixStream,
    buffer: Vec<u8>,
}

impl Peer {
    pub fn new(socket: UnixStream) -> Peer {
        socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        socket.set_write_timeout(Some(PATIENCE)).expect("a time-out");
        Peer { socket, buffer: Vec::new() }
    }

    pub fn send(&mut self, frame: &Frame) {
        self.send_bytes(&frame.to_bytes());
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).expect("the agent reads");
    }

    /// The next item; `None` at the end of the connection.
    pub fn receive(&mut self) -> Option<Vec<u8>> {
        let mut scanner = Scanner::new(64 << 20);
        loop {
            if let Some(length) = scanner.find_end(&self.buffer).expect("the agent speaks CBOR") {
                return Some(self.buffer.drain(..length).collect());
            }
            let mut piece = vec![0; 256 << 10];
            match self.socket.read(&mut piece) {
                Ok(0) => return None,
                Ok(count) => self.buffer.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("nothing came from the agent: {error}"),
            }
        }
    }

    /// Sends a frame and gives the answer.
    pub fn ask(&mut self, frame: &Frame) -> Vec<u8> {
        self.send(frame);
        self.receive().expect("an answer")
    }

    /// Everything up to the Exit of the program `id`.
    pub fn finish(&mut self, id: u32) -> Finished {
        let mut finished = Finished::default();
        loop {
            let item = self.receive().expect("an exit");
            finished.frames += 1;
            match Frame::decode(&item).expect("a frame") {
                Frame::Data { id: of, stream, data } if of == id => {
                    assert!(!finished.ended.contains(&stream), "data behind the end of stream {stream}");
                    let index = finished.data.iter().position(|(number, _)| *number == stream);
                    let index = index.unwrap_or_else(|| {
                        finished.data.push((stream, Vec::new()));
                        finished.data.len() - 1
                    });
                    finished.data[index].1.extend_from_slice(&data);
                }
                Frame::Eof { id: of, stream } if of == id => finished.ended.push(stream),
                Frame::Exit { id: of, code, error, errno } if of == id => {
                    (finished.code, finished.error, finished.errno) = (code, error, errno);
                    return finished;
                }
                _ => {}
            }
        }
    }
}

/// What a program said and how it ended.
#[derive(Clone, Debug, Default)]
pub struct Finished {
    pub code: i64,
    pub error: String,
    pub errno: u32,
    pub data: Vec<(u32, Vec<u8>)>,
    pub ended: Vec<u32>,
    pub frames: usize,
}

impl Finished {
    pub fn stream(&self, number: u32) -> &[u8] {
        self.data.iter().find(|(stream, _)| *stream == number).map_or(&[], |(_, data)| data)
    }

    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(self.stream(1)).into_owned()
    }

    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(self.stream(2)).into_owned()
    }
}

/// An Exec of these words, in the agent's environment.
pub fn exec(words: &[&str]) -> Exec {
    Exec {
        path: words[0].as_bytes().to_vec(),
        argv: Some(words.iter().map(|word| word.as_bytes().to_vec()).collect()),
        ..Exec::default()
    }
}

/// The same through a shell.
pub fn shell(script: &str) -> Exec {
    exec(&["sh", "-c", script])
}

/// Numbers of open descriptors of a process.
pub fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// A number from a line of /proc/PID/status, such as VmRSS (in kB) or Threads.
pub fn status(pid: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(&format!("{name}:"))).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Whether a process has a handler for a signal.
pub fn catches(pid: u32, signal: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or_default();
    u64::from_str_radix(mask.trim(), 16).is_ok_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// Whether a process is there and no zombie.
pub fn lives(pid: u32) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// An agent on its own stdin and stdout, which are pipes, ended with the test.
#[derive(Debug)]
pub struct StdioAgent {
    pub child: Child,
    buffer: Vec<u8>,
}

impl StdioAgent {
    pub fn start() -> StdioAgent {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lodger"));
        command.args(["serve", "--listen", "stdio:"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        StdioAgent { child: command.spawn().expect("the agent starts"), buffer: Vec::new() }
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.child.stdin.as_mut().expect("a pipe").write_all(bytes).expect("the agent reads");
    }

    /// The next item; `None` when the agent has closed its stdout.
    pub fn receive(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(length) = Scanner::new(64 << 20).find_end(&self.buffer).expect("the agent speaks CBOR") {
                return Some(self.buffer.drain(..length).collect());
            }
            let mut piece = [0; 4096];
            match self.child.stdout.as_mut().expect("a pipe").read(&mut piece).expect("a read") {
                0 => return None,
                count => self.buffer.extend_from_slice(&piece[..count]),
            }
        }
    }

    /// Closes its stdin and gives its exit status.
    pub fn leave(&mut self) -> Option<i32> {
        drop(self.child.stdin.take());
        let mut status = None;
        wait_until("the agent ends", || {
            status = self.child.try_wait().expect("our child");
            status.is_some()
        });
        status.and_then(|status| status.code())
    }
}

impl Drop for StdioAgent {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Runs a program on a connection of its own that has not said Hello.
pub fn run(agent: &Agent, exec: Exec) -> Finished {
    let mut peer = agent.connect();
    peer.send(&Frame::Exec { id: 0, exec });
    peer.finish(0)
}

/// A Data frame.
pub fn data(id: u32, stream: u32, bytes: &[u8]) -> Frame<'_> {
    Frame::Data { id, stream, data: bytes.into() }
}

/// Starts an agent through a shell that does `script` first, such as `ulimit -n 30`.
pub fn agent_after(script: &str) -> Agent {
    Agent::start_with(|command| {
        let words: Vec<_> =
            [command.get_program()].into_iter().chain(command.get_args()).map(ToOwned::to_owned).collect();
        let mut shell = Command::new("/bin/sh");
        shell.arg("-c").arg(format!("{script}; exec \"$@\"")).arg("sh").args(words).stdin(Stdio::null());
        *command = shell;
    })
}

impl Peer {
    /// The next Data frame of a stream, as text; frames before it are passed over.
    pub fn output(&mut self, id: u32, stream: u32) -> String {
        loop {
            let item = self.receive().expect("output");
            if let Frame::Data { id: of, stream: from, data } = Frame::decode(&item).expect("a frame")
                && (of, from) == (id, stream)
            {
                return String::from_utf8_lossy(&data).into_owned();
            }
        }
    }

    /// Output of a stream up to the end of its first line.
    pub fn line(&mut self, id: u32, stream: u32) -> String {
        let mut line = String::new();
        while !line.ends_with('\n') {
            line += &self.output(id, stream);
        }
        line.trim_end().to_owned()
    }

    /// What comes within this time: `None` is silence.
    pub fn receive_within(&mut self, patience: Duration) -> Option<Vec<u8>> {
        if let Some(length) = Scanner::new(64 << 20).find_end(&self.buffer).expect("the agent speaks CBOR") {
            return Some(self.buffer.drain(..length).collect());
        }
        self.socket.set_read_timeout(Some(patience)).expect("a time-out");
        let mut piece = [0; 4096];
        let count = self.socket.read(&mut piece).unwrap_or(0);
        self.socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        self.buffer.extend_from_slice(&piece[..count]);
        if count == 0 { None } else { self.receive() }
    }
}

/// Processor time that a process has used, in ticks of 10 ms.
pub fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ');
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum()
}

/// Children of a process, zombies too.
pub fn children(pid: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    numbers.filter(|child| status(*child, "PPid") == u64::from(pid)).collect()
}
