//! Commands for a running host of the metadata service: what one may want of its guest.

use std::env;
use std::ffi::OsString;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use lexopt::{Arg, Parser};

use crate::cli::output::Output;
use crate::cli::terminal::{self, Raw};
use crate::cli::{Failure, listing, no_more, text};
use crate::metadata::control::{Control, Error};
use crate::metadata::shell::{Ending, Order, Wires};
use crate::sys::errno;
use crate::sys::signal::{self, SIGHUP, SIGINT, SIGTERM, SIGWINCH};
use crate::sys::tty;

/// The variable that names the socket for commands.
const CONTROL: &str = "LODGER_METADATA_CONTROL";

/// Exit status of a shell that we have ended.
const INTERRUPTED: u8 = 130;

/// How long a guest may be silent before somebody is told that it is.
const HINT_AFTER: Duration = Duration::from_secs(2);

/// The path of a control socket.
pub fn socket(value: &OsString) -> Result<PathBuf, Failure> {
    let path = value.to_str().and_then(|text| text.strip_prefix("unix:")).filter(|path| !path.is_empty());
    path.map(PathBuf::from)
        .ok_or_else(|| Failure::new(format!("control socket {}: unix:PATH wanted", value.to_string_lossy())))
}

/// Those signals that whoever started us has not told us to ignore, as nohup(1) does.
pub fn heeded(signals: &[i32]) -> Vec<i32> {
    let ignored = signal::not_default();
    signals.iter().copied().filter(|signal| ignored >> (signal - 1) & 1 == 0).collect()
}

/// Why a command, which is named in front, has failed.
pub fn failed(what: &str, error: &Error) -> Failure {
    let why = match error {
        Error::NotFound => "the guest has no such file or folder".to_owned(),
        Error::Service(why) => why.clone(),
        Error::Connection(error) if error.kind() == io::ErrorKind::UnexpectedEof => "the service has ended".to_owned(),
        Error::Connection(error) => format!("control socket: {}", errno::describe(error)),
        Error::Local(error) => errno::describe(error),
    };
    Failure::new(format!("{what}: {why}"))
}

/// Options and words of a command for a running service.
#[derive(Default)]
pub struct Words {
    control: Option<PathBuf>,
    terminal: bool,
    pub words: Vec<OsString>,
}

impl Words {
    pub fn read(mut parser: Parser, takes_program: bool) -> Result<Words, Failure> {
        let mut found = Words::default();
        while let Some(argument) = parser.next()? {
            match argument {
                Arg::Long("control") => found.control = Some(socket(&parser.value()?)?),
                Arg::Short('t') if takes_program => found.terminal = true,
                Arg::Value(word) => {
                    found.words.push(word);
                    if takes_program {
                        found.words.extend(parser.raw_args()?);
                    }
                }
                other => return Err(other.unexpected().into()),
            }
        }
        no_more(&mut parser)?;
        Ok(found)
    }

    fn texts(&mut self) -> Result<Vec<String>, Failure> {
        self.words.drain(..).map(text).collect()
    }

    pub fn connect(&self) -> Result<Control, Failure> {
        let from_environment = || env::var_os(CONTROL).filter(|value| !value.is_empty());
        let path = match (&self.control, from_environment()) {
            (Some(path), _) => path.clone(),
            (None, Some(value)) => socket(&value)?,
            (None, None) => return Err(Failure::new(format!("--control unix:PATH is missing, and {CONTROL} unset"))),
        };
        let control = Control::connect(&path)
            .map_err(|error| Failure::new(format!("connect to {}: {}", path.display(), errno::describe(&error))))?;
        let tell = || drop(writeln!(io::stderr(), "lodger metadata: still waiting for the guest"));
        Ok(control.when_slow(HINT_AFTER, tell))
    }
}

pub fn list(parser: Parser) -> Result<ExitCode, Failure> {
    let mut words = Words::read(parser, false)?;
    let [folder] = <[String; 1]>::try_from(words.texts()?).map_err(|_| Failure::new("ls wants one folder"))?;
    let names = words.connect()?.list(&folder).map_err(|error| failed(&format!("ls {folder}"), &error))?;
    let mut out = BufWriter::new(Output::stdout()?);
    for name in names {
        listing::write_name(&mut out, name.as_bytes())?;
        out.write_all(b"\n")?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

pub fn kill(parser: Parser) -> Result<ExitCode, Failure> {
    let words = Words::read(parser, false)?;
    if !words.words.is_empty() {
        return Err(Failure::new("kill takes no words: there is only one command in the guest"));
    }
    words.connect()?.kill().map_err(|error| failed("kill", &error))?;
    Ok(ExitCode::SUCCESS)
}

pub fn shell(parser: Parser) -> Result<ExitCode, Failure> {
    let mut words = Words::read(parser, true)?;
    let command = words.texts()?;
    let mut shell = words.connect()?.shell(&command, words.terminal).map_err(|error| failed("shell", &error))?;
    let system = |error: io::Error| Failure::new(format!("shell: {}", errno::describe(&error)));
    let signals = signal::into_pipe(&[SIGINT, SIGTERM, SIGHUP, SIGWINCH]).map_err(system)?;
    let raw = if words.terminal { Raw::enter().map_err(system)? } else { None };
    if words.terminal {
        shell.resize(terminal::window());
    }
    let mut waiting = Vec::new().into_iter();
    let mut next = || {
        if waiting.len() == 0 {
            waiting = signal::take(&signals).into_iter();
        }
        Some(match waiting.next()? {
            SIGWINCH => Order::Resize(tty::window(io::stdout().as_fd()).unwrap_or_else(|_| terminal::window())),
            _ => Order::Abort,
        })
    };
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let wires = Wires {
        stdin: Some(stdin.as_fd()),
        stdout: stdout.as_fd(),
        stderr: stderr.as_fd(),
        orders: Some((signals.as_fd(), &mut next)),
    };
    let ending = shell.run(wires);
    drop(raw);
    match ending.map_err(system)? {
        Ending::Succeeded => Ok(ExitCode::SUCCESS),
        Ending::Failed => Ok(ExitCode::FAILURE),
        Ending::Aborted => Err(Failure::silent(INTERRUPTED)),
        Ending::Unread(error) => Err(error.into()),
        Ending::Lost(error) => Err(Failure::new(format!("shell: the connection is lost: {}", errno::describe(&error)))),
    }
}
