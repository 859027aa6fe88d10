//! The agent's log, when nobody reads it or somebody does so slowly: it holds nobody up.

mod support;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::{ChildStderr, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use lodger::sys::{fd, signal};

use crate::support::{Agent, PATIENCE, run, shell, wait_until};

/// What the pipe behind an agent's stderr holds, in bytes.
const PIPE_BYTES: usize = 4096;

/// How soon an agent that nothing holds up does anything. Above the second that it waits for a stderr.
const SOON: Duration = Duration::from_secs(10);

/// An agent with a small pipe as its stderr, of which nothing is read yet.
fn agent() -> (Agent, ChildStderr) {
    let mut agent = Agent::start_with(|command| {
        command.env("LODGER_LOG", "warn").stderr(Stdio::piped());
    });
    let stderr = agent.child.stderr.take().expect("a pipe");
    fd::set_pipe_size(stderr.as_fd(), PIPE_BYTES).expect("a small pipe");
    (agent, stderr)
}

/// Makes an agent write so many warnings, through connections that begin with nonsense; each is over before the next one comes.
fn provoke(agent: &Agent, count: usize) {
    for _ in 0..count {
        let mut stream = UnixStream::connect(&agent.socket).expect("the agent accepts");
        stream.set_read_timeout(Some(SOON)).expect("a time-out");
        stream.write_all(&[0x01, 0x02, 0x03]).expect("the agent reads");
        let _ = stream.shutdown(Shutdown::Write);
        let ended = stream.read_to_end(&mut Vec::new()).map_err(|error| error.kind());
        assert!(!matches!(ended, Err(ErrorKind::WouldBlock)), "the agent is held up");
    }
}

/// Warnings in these lines, and how many others are told to be lost.
#[derive(Debug, Default)]
struct Told {
    warnings: usize,
    lost: usize,
}

impl Told {
    fn add(&mut self, line: &str) {
        let note =
            line.strip_prefix("lodger warn: ").and_then(|rest| rest.strip_suffix(" lines of the log were lost\n"));
        match note {
            Some(count) => self.lost += count.parse::<usize>().expect("a number"),
            None => {
                let starts = line.matches("lodger warn: connection ended: ").count();
                assert!(
                    line.starts_with("lodger warn: ") && line.ends_with('\n') && starts == 1,
                    "{line:?} is no line"
                );
                self.warnings += 1;
            }
        }
    }
}

/// The lines of an agent, as they come.
fn lines(stderr: ChildStderr) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut stderr = BufReader::new(stderr);
        loop {
            let mut line = String::new();
            if stderr.read_line(&mut line).expect("text") == 0 || sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

#[test]
fn an_agent_whose_stderr_nobody_reads_serves_on_and_tells_later_what_was_lost() {
    const COUNT: usize = 2_000;
    let (agent, stderr) = agent();
    let began = Instant::now();
    thread::scope(|scope| {
        (0..4).for_each(|_| drop(scope.spawn(|| provoke(&agent, COUNT / 4))));
        for _ in 0..10 {
            let asked = Instant::now();
            assert_eq!(run(&agent, shell("echo served")).stdout(), "served\n");
            assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
        }
    });
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    let lines = lines(stderr);
    let (mut told, mut provoked) = (Told::default(), COUNT);
    while told.lost == 0 {
        provoke(&agent, 1);
        provoked += 1;
        lines.recv_timeout(PATIENCE).into_iter().chain(lines.try_iter()).for_each(|line| told.add(&line));
    }
    wait_until("all are written or told to be lost", || {
        lines.try_iter().for_each(|line| told.add(&line));
        told.warnings + told.lost >= provoked
    });
    assert_eq!(told.warnings + told.lost, provoked);
    assert!(told.lost > COUNT / 2, "{told:?}: the pipe holds few of them");
}

#[test]
fn an_agent_whose_stderr_nobody_reads_ends_at_sigterm() {
    let (mut agent, _stderr) = agent();
    // More than it has places for connections, if each of them waited for stderr.
    provoke(&agent, 600);
    let asked = Instant::now();
    signal::send(agent.pid() as i32, signal::SIGTERM).expect("it runs");
    wait_until("the agent ends", || agent.child.try_wait().expect("our child").is_some());
    assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
}

#[test]
fn a_slow_reader_of_stderr_loses_nothing() {
    for attempt in 1.. {
        let (told, pause) = read_slowly();
        if told.lost == 0 {
            return;
        }
        // A reader that stood still for as long as the agent waits, because its machine did, is another one.
        assert!(attempt < 5 && pause > Duration::from_millis(500), "{told:?} with pauses up to {pause:?}");
    }
}

/// What a reader gets as slow as a serial line of 40 KB/s, and the longest pause that it made. A pipe of one page takes more only when it is
/// empty: that is a tenth of the second that the agent waits for.
fn read_slowly() -> (Told, Duration) {
    const COUNT: usize = 200;
    let (agent, mut stderr) = agent();
    let reading = thread::spawn(move || {
        let (mut text, mut told, mut longest, mut last) =
            (String::new(), Told::default(), Duration::ZERO, Instant::now());
        while told.warnings + told.lost < COUNT {
            let mut piece = [0; 800];
            let count = stderr.read(&mut piece).expect("more");
            assert!(count > 0, "the end, behind {text}");
            longest = longest.max(last.elapsed());
            last = Instant::now();
            text.push_str(std::str::from_utf8(&piece[..count]).expect("text"));
            while let Some(end) = text.find('\n') {
                told.add(&text.drain(..=end).collect::<String>());
            }
            thread::sleep(Duration::from_millis(20));
        }
        (told, longest)
    });
    provoke(&agent, COUNT);
    wait_until("all has come", || {
        let is_over = reading.is_finished();
        if !is_over {
            // What was lost is told with the next line.
            provoke(&agent, 1);
        }
        is_over
    });
    reading.join().expect("it reads")
}

#[test]
fn an_agent_whose_stderr_is_gone_serves_on() {
    let (agent, stderr) = agent();
    drop(stderr);
    provoke(&agent, 20);
    assert_eq!(run(&agent, shell("echo served")).stdout(), "served\n");
}
