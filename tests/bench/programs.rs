//! Rows about programs: how soon one has run, and how fast its output comes.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use lodger::client::Connection;
use lodger::client::exec::{Outcome, Wires};
use lodger::wire::exec::Exec;

use crate::agent::Agent;
use crate::floor::{self, OneProcessor};
use crate::{Measured, Skipped, alternate, latency, throughput};

const ROUNDS: usize = 1000;

pub const OUTPUT_BYTES: u64 = 1 << 30;
pub const OUTPUT_ROUNDS: usize = 5;

fn both(agent: &Agent, mut run: impl FnMut(&[u8])) -> Result<Measured, Skipped> {
    let Some(program) = agent.program() else {
        return Err(Skipped("the smallest program is written for x86_64 only".to_owned()));
    };
    let bytes = program.as_os_str().as_bytes();
    let name = CString::new(bytes).expect("a path of ours");
    Ok(latency(alternate(ROUNDS, || run(bytes), || floor::spawn_and_wait(&name)), 1))
}

fn run(connection: &mut Connection, program: &[u8]) {
    let output = connection.output([std::ffi::OsStr::from_bytes(program)]).expect("the program runs");
    assert_eq!(output.code, 0);
}

pub fn on_a_fresh_connection(agent: &Agent) -> Result<Measured, Skipped> {
    let _one = OneProcessor::choose();
    let agent = &Agent::start(agent.binary.clone(), "fresh");
    both(agent, |program| run(&mut agent.connect(), program))
}

pub fn on_an_open_connection(agent: &Agent) -> Result<Measured, Skipped> {
    let _one = OneProcessor::choose();
    let agent = &Agent::start(agent.binary.clone(), "open");
    let mut connection = agent.connect();
    both(agent, |program| run(&mut connection, program))
}

/// What says so many bytes.
pub const OUTPUT_WORDS: [&str; 4] = ["head", "-c", "1G", "/dev/zero"];

/// Its output through an agent, into nothing.
pub struct Output {
    connection: Connection,
    null: File,
}

impl Output {
    pub fn of(agent: &Agent) -> Output {
        let null = File::options().write(true).open("/dev/null").expect("/dev/null");
        Output { connection: agent.connect(), null }
    }

    pub fn run(&mut self) {
        let argv: Vec<Vec<u8>> = OUTPUT_WORDS.iter().map(|word| word.as_bytes().to_vec()).collect();
        let exec = Exec { path: argv[0].clone(), argv: Some(argv), ..Exec::default() };
        let (stdout, stderr) = (self.null.as_fd(), self.null.as_fd());
        let wires =
            Wires { stdin: None, stdout, stderr, signals: None, terminal: None, recorder: None, deadline: None };
        assert_eq!(self.connection.exec(exec, wires).expect("head runs"), Outcome::Ended { code: 0 });
    }
}

pub fn output(agent: &Agent) -> Result<Measured, Skipped> {
    let mut ours = Output::of(agent);
    let mut buffer = vec![0; floor::CHUNK];
    let floor = || floor::through_cat(OUTPUT_WORDS[0], &OUTPUT_WORDS[1..], OUTPUT_BYTES, &mut buffer);
    Ok(throughput(alternate(OUTPUT_ROUNDS, || ours.run(), floor), OUTPUT_BYTES))
}
