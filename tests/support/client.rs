//! Running the command line: the real program, to its end or until the test's.
#![allow(dead_code)] // Each test file uses its own part of this.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Instant;

use lodger::sys::signal;

use crate::support::PATIENCE;

/// The program with these arguments, its stdin empty, and its agent one of its own.
pub fn lodger<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lodger"));
    command.args(arguments).env("LODGER_TO", "local:").stdin(Stdio::null());
    command
}

/// What a command said and how it ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// `None`: a signal ended it.
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Done {
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Fails the test unless the command went well and complained of nothing; gives its stdout.
    #[track_caller]
    pub fn good(self) -> Vec<u8> {
        assert_eq!((self.code, self.stderr().as_str()), (Some(0), ""), "stdout: {}", self.stdout());
        self.stdout
    }

    /// Fails the test unless the command ended with this status and a message that holds these words.
    #[track_caller]
    pub fn bad(&self, code: i32, words: &[&str]) {
        let text = self.stderr();
        assert_eq!(self.code, Some(code), "{text}");
        for word in words {
            assert!(text.contains(word), "{word:?} is missing in {text:?}");
        }
        assert!(!text.contains("panicked") && !text.contains("os error"), "{text}");
    }
}

/// Runs the program with these arguments.
pub fn run<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Done {
    Running::start(lodger(arguments)).finish()
}

/// The same, with something to read.
pub fn run_with_input<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>, input: &[u8]) -> Done {
    let mut command = lodger(arguments);
    command.stdin(Stdio::piped());
    let mut running = Running::start(command);
    let mut stdin = running.stdin();
    let input = input.to_vec();
    // Whoever does not read it all is found out by what it says.
    let writer = thread::spawn(move || stdin.write_all(&input).is_ok());
    let done = running.finish();
    writer.join().expect("the writer ends");
    done
}

/// A command under way; killed with the test.
#[derive(Debug)]
pub struct Running {
    pub child: Child,
}

impl Running {
    /// Starts a command with both outputs piped; `finish` reads them.
    pub fn start(mut command: Command) -> Running {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Running::start_as_is(command)
    }

    /// Starts a command with the streams it has.
    pub fn start_as_is(mut command: Command) -> Running {
        Running { child: command.spawn().expect("the command starts") }
    }

    pub fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().expect("a piped stdin")
    }

    pub fn stdout(&mut self) -> ChildStdout {
        self.child.stdout.take().expect("a piped stdout")
    }

    pub fn stderr(&mut self) -> ChildStderr {
        self.child.stderr.take().expect("a piped stderr")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, number: i32) {
        signal::send(self.pid() as i32, number).expect("the command is there");
    }

    /// Waits for the command's end and gives all that it said.
    pub fn finish(mut self) -> Done {
        let stdout = self.child.stdout.take().map(read_all);
        let stderr = self.child.stderr.take().map(read_all);
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                break status;
            }
            assert!(Instant::now() < deadline, "the command does not end");
            thread::sleep(std::time::Duration::from_millis(2));
        };
        let all = |reader: Option<thread::JoinHandle<Vec<u8>>>| {
            reader.map_or_else(Vec::new, |reader| reader.join().expect("the reader ends"))
        };
        Done { code: status.code(), signal: status.signal(), stdout: all(stdout), stderr: all(stderr) }
    }
}

fn read_all(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        let _ = from.read_to_end(&mut all);
        all
    })
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads until this line has come.
pub fn read_until(from: &mut impl Read, line: &str) {
    let mut got = Vec::new();
    let mut byte = [0];
    while !got.ends_with(line.as_bytes()) {
        let count = from.read(&mut byte).expect("the stream is readable");
        assert_eq!(count, 1, "the stream ended behind {:?}", String::from_utf8_lossy(&got));
        got.push(byte[0]);
    }
}

/// Bytes without a pattern, the same for the same seed.
pub fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}
