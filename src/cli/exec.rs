//! `exec` and `shell`.

use std::env;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use lexopt::{Arg, Parser};

use crate::cli::target::Target;
use crate::cli::terminal::{self, Raw};
use crate::cli::{Command, Failure, NOT_FOUND, text};
use crate::client::exec::{Outcome, Wires};
use crate::client::recorder::Recorder;
use crate::client::{Connection, Error};
use crate::sys::signal::{self, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
use crate::transport::Addr;
use crate::wire::exec::Exec;

/// Signals that are passed on to the program.
const FORWARDED: [i32; 7] = [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH];

/// Exit status after an interrupt that nobody heeded.
const INTERRUPTED: u8 = 130;

/// Exit status when the time was over, as timeout(1) has it.
pub const TIMED_OUT: u8 = 124;

pub const EXEC: Command = Command {
    name: "exec",
    summary: "run a program in a guest, with live streams and its exit status",
    help: "usage: lodger exec [OPTION...] [--to ADDR] [--] PROGRAM [ARGUMENT...]

stdin, stdout and stderr are the program's, separate and byte for byte. Signals are passed on
to its process group; three interrupts within two seconds end this command alone.

  -C DIR       working directory
  -e K=V       set an environment variable, on top of the agent's environment
  -u USER      run as USER, USER:GROUP or :GROUP, by name or number
  --umask M    file mode creation mask, octal
  -t           run on a terminal, of this one's size; SIGTERM and SIGHUP then hang it up
  -n           no input: the program reads an end of file at once
  -i           pass input on (this is the default)
  --detach     start it, print its process number, and leave it running without streams
  --record F   write a recording of the session to the file F (see `lodger help replay`)

Exit status: the program's own, 128 + signal if one killed it, 127 if it is not there, 126 if it
cannot be executed, 125 for errors of lodger itself.
",
    run: exec,
};

pub const SHELL: Command = Command {
    name: "shell",
    summary: "open a shell in a guest, on a terminal",
    help: "usage: lodger shell [OPTION...] [--to ADDR] [-- SHELL [ARGUMENT...]]

Without a terminal on stdin the shell reads its commands from there, and runs without one too.
The shell is SHELL, or the first of /bin/bash, /bin/sh and /bin/busybox sh that the guest has.

  -C DIR, -e K=V, -u USER, --record F   as for `lodger exec`
",
    run: shell,
};

/// What the options ask for.
#[derive(Debug, Default)]
pub struct Request {
    pub exec: Exec,
    pub no_input: bool,
    pub terminal: bool,
    pub record: Option<PathBuf>,
    pub deadline: Option<Instant>,
}

impl Request {
    /// `-C`: the working directory.
    pub fn set_directory(&mut self, value: OsString) {
        self.exec.cwd = value.into_vec();
    }

    /// `-e`: one variable more.
    pub fn add_variable(&mut self, value: OsString) -> Result<(), Failure> {
        let entry = value.into_vec();
        if !entry.contains(&b'=') || entry.starts_with(b"=") {
            return Err(Failure::new(format!("-e {}: NAME=VALUE wanted", String::from_utf8_lossy(&entry))));
        }
        self.exec.extension.set_env.push(entry);
        Ok(())
    }

    /// Sets the program and its arguments.
    pub fn set_words(&mut self, words: Vec<OsString>) {
        let words: Vec<Vec<u8>> = words.into_iter().map(OsString::into_vec).collect();
        self.exec.path = words.first().cloned().unwrap_or_default();
        self.exec.argv = Some(words);
    }
}

fn exec(mut parser: Parser) -> Result<ExitCode, Failure> {
    let (mut target, mut request, mut words) = (Target::default(), Request::default(), Vec::new());
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long(name) if Target::has(name) => target.take(name.to_owned(), &mut parser)?,
            Arg::Short('C') => request.set_directory(parser.value()?),
            Arg::Short('e') => request.add_variable(parser.value()?)?,
            Arg::Short('u') => request.exec.extension.user = text(parser.value()?)?,
            Arg::Long("record") => request.record = Some(PathBuf::from(parser.value()?)),
            Arg::Long("umask") => request.exec.extension.umask = Some(umask(parser.value()?)?),
            Arg::Long("detach") => request.exec.extension.detach = true,
            Arg::Short('t') => request.terminal = true,
            Arg::Short('n') => request.no_input = true,
            Arg::Short('i') => request.no_input = false,
            Arg::Value(first) => {
                words.push(first);
                words.extend(parser.raw_args()?);
            }
            other => return Err(other.unexpected().into()),
        }
    }
    if words.is_empty() {
        return Err(Failure::new("a program is missing; see `lodger help exec`"));
    }
    if request.exec.extension.detach && (request.terminal || request.record.is_some()) {
        return Err(Failure::new("--detach leaves no streams for -t or --record"));
    }
    request.set_words(words);
    run(&target, request)
}

fn umask(value: OsString) -> Result<u32, Failure> {
    let text = text(value)?;
    let mask = u32::from_str_radix(&text, 8).ok().filter(|mask| *mask <= 0o777);
    mask.ok_or_else(|| Failure::new(format!("--umask {text}: no octal number up to 777")))
}

fn shell(mut parser: Parser) -> Result<ExitCode, Failure> {
    // Over a pipe a terminal would be in the way: it echoes, and has no end of file for a shell that reads key by key.
    let mut request = Request { terminal: io::stdin().is_terminal(), ..Request::default() };
    let (mut target, mut words) = (Target::default(), Vec::new());
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long(name) if Target::has(name) => target.take(name.to_owned(), &mut parser)?,
            Arg::Short('C') => request.set_directory(parser.value()?),
            Arg::Short('e') => request.add_variable(parser.value()?)?,
            Arg::Short('u') => request.exec.extension.user = text(parser.value()?)?,
            Arg::Long("record") => request.record = Some(PathBuf::from(parser.value()?)),
            Arg::Value(first) => {
                words.push(first);
                words.extend(parser.raw_args()?);
            }
            other => return Err(other.unexpected().into()),
        }
    }
    if words.is_empty() {
        let mut connection = target.connect()?;
        words = find_shell(&mut connection)?;
        connection.close();
    }
    request.set_words(words);
    run(&target, request)
}

/// The guest's shell: what a person would try, in order.
fn find_shell(connection: &mut Connection) -> Result<Vec<OsString>, Failure> {
    for words in [&["/bin/bash"][..], &["/bin/sh"], &["/bin/busybox", "sh"]] {
        match connection.stat(words[0].as_bytes()) {
            Ok(_) => return Ok(words.iter().map(OsString::from).collect()),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Failure::with_code(NOT_FOUND, "the guest has none of /bin/bash, /bin/sh and /bin/busybox"))
}

fn run(target: &Target, request: Request) -> Result<ExitCode, Failure> {
    let mut connection = target.connect()?;
    let signals = catch_signals()?;
    let outcome = run_on(&mut connection, &target.address()?, request, &signals)?;
    connection.close();
    finish(outcome?)
}

/// From now on the signals that are passed on to programs come as bytes.
pub fn catch_signals() -> Result<OwnedFd, Failure> {
    Ok(signal::into_pipe(&FORWARDED).map_err(Error::local("catch signals"))?)
}

/// Runs the program with our own streams. The outer error is one of this side, the inner one the connection's.
pub fn run_on(
    connection: &mut Connection,
    address: &Addr,
    mut request: Request,
    signals: &OwnedFd,
) -> Result<Result<Outcome, Error>, Failure> {
    let mut recorder = request.record.as_deref().map(|path| start_recording(path, address)).transpose()?;
    if request.terminal {
        let window = terminal::window();
        request.exec.extension.terminal = Some((window.rows, window.columns));
        if let Some(kind) = env::var_os("TERM") {
            request.exec.extension.set_env.insert(0, [b"TERM=", &kind.into_vec()[..]].concat());
        }
    }
    let raw = if request.terminal { Raw::enter().map_err(Error::local("set up the terminal"))? } else { None };
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let detached = request.exec.extension.detach;
    let outcome = connection.exec(
        request.exec,
        Wires {
            stdin: (!request.no_input && !detached).then(|| stdin.as_fd()),
            stdout: stdout.as_fd(),
            stderr: stderr.as_fd(),
            signals: Some(signals),
            terminal: request.terminal.then(|| stdout.as_fd()),
            recorder: recorder.as_mut(),
            deadline: request.deadline,
        },
    );
    drop(raw);
    if let Some(recorder) = &mut recorder {
        recorder.finish().map_err(Error::local("write the recording"))?;
    }
    Ok(outcome)
}

/// The exit status that an outcome asks for.
pub fn finish(outcome: Outcome) -> Result<ExitCode, Failure> {
    match outcome {
        Outcome::Ended { code } => Ok(ExitCode::from(code as u8)),
        Outcome::Detached { pid } => {
            writeln!(io::stdout(), "{pid}")?;
            Ok(ExitCode::SUCCESS)
        }
        Outcome::TimedOut => Err(Failure::with_code(TIMED_OUT, "the time is over; the program is ended")),
        Outcome::HungUp { signal } => Err(Failure::silent(128 + signal as u8)),
        Outcome::Abandoned => {
            Err(Failure::with_code(INTERRUPTED, "interrupted; the program did not end, and is hung up on"))
        }
    }
}

fn start_recording(path: &Path, address: &Addr) -> Result<Recorder, Failure> {
    let address = address.to_string();
    let kind = address.split(':').next().unwrap_or_default();
    Recorder::create(path, kind, &address)
        .map_err(|error| Failure::from(Error::Local { what: format!("record to {}", path.display()), error }))
}
