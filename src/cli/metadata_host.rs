//! The host's side of the metadata service: one task for one guest, and what one may want of that guest meanwhile.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use lexopt::{Arg, Parser};

use crate::cli::terminal::{self, Raw};
use crate::cli::{Failure, listing, no_more, seconds, text};
use crate::metadata::control::{Control, Error};
use crate::metadata::listener::{self, Host, Listener, Network};
use crate::metadata::service::Service;
use crate::metadata::shell::{Ending, Order, Wires};
use crate::sys::fd;
use crate::sys::signal::{self, SIGHUP, SIGINT, SIGTERM, SIGWINCH};
use crate::sys::{errno, tty};
use crate::transport::unix;

/// A subcommand's name, and what it does.
pub type Subcommand = (&'static str, fn(Parser) -> Result<ExitCode, Failure>);

pub const SUBCOMMANDS: [Subcommand; 5] =
    [("serve", serve), ("get", get), ("ls", list), ("shell", shell), ("kill", kill)];

/// The variable that names the socket for commands.
const CONTROL: &str = "LODGER_METADATA_CONTROL";

/// Exit status of a shell that we have ended.
const INTERRUPTED: u8 = 130;

/// What `serve` is told.
#[derive(Default)]
struct Request {
    listen: Option<String>,
    env: Vec<(String, String)>,
    log: Option<PathBuf>,
    from: Vec<Network>,
    control: Option<PathBuf>,
    linger: Duration,
    command: Vec<String>,
}

fn serve(mut parser: Parser) -> Result<ExitCode, Failure> {
    let mut request = Request::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("listen") => request.listen = Some(text(parser.value()?)?),
            Arg::Long("env") => request.env.push(variable(text(parser.value()?)?)?),
            Arg::Long("log") => request.log = Some(parser.value()?.into()).filter(|path| path != Path::new("-")),
            Arg::Long("from") => request.from.push(network(&text(parser.value()?)?)?),
            Arg::Long("control") => request.control = Some(socket(&parser.value()?)?),
            Arg::Long("linger") => request.linger = seconds(parser.value()?, "--linger")?,
            Arg::Value(first) => {
                request.command.push(text(first)?);
                for word in parser.raw_args()? {
                    request.command.push(text(word)?);
                }
            }
            other => return Err(other.unexpected().into()),
        }
    }
    host(request)
}

fn host(request: Request) -> Result<ExitCode, Failure> {
    let system = |error: io::Error| Failure::new(format!("serve: {}", errno::describe(&error)));
    let address = request.listen.ok_or_else(|| Failure::new("--listen is missing"))?;
    if request.command.is_empty() {
        return Err(Failure::new("the command of the task is missing"));
    }
    let log: Box<dyn Write + Send> = match &request.log {
        None => Box::new(io::stdout()),
        Some(path) => Box::new(File::create(path).map_err(|error| about(path, &error))?),
    };
    let signals = signal::into_pipe(&[SIGINT, SIGTERM]).map_err(system)?;
    let listener = Listener::open(&address).map_err(|error| listening(&address, &error))?;
    let control = request.control.as_deref().map(|path| {
        unix::Listener::open(path, 0o600, None).map_err(|error| listening(&path.display().to_string(), &error))
    });
    let bell = listener::bell().map_err(system)?;
    let wake = Arc::clone(&bell.1);
    let resolved = Box::new(move |_| drop(fd::write(wake.as_fd(), b"x")));
    let service = Arc::new(Service::new(&request.command, &request.env, log, resolved).map_err(system)?);
    let shown = listener.address().map_or(address, |address| address.to_string());
    let _ = writeln!(io::stderr(), "lodger metadata: waiting for a guest at {shown}");
    let (from, linger) = (request.from, request.linger);
    let host = Host { service, listener, from, control: control.transpose()?, linger, bell };
    let success = host.run(&signals).map_err(system)?;
    Ok(ExitCode::from(u8::from(!success)))
}

fn variable(text: String) -> Result<(String, String), Failure> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let pair = pair.map(|(name, value)| (name.to_owned(), value.to_owned()));
    pair.ok_or_else(|| Failure::new(format!("--env {text}: NAME=VALUE wanted")))
}

fn network(text: &str) -> Result<Network, Failure> {
    text.parse().map_err(|error| Failure::new(format!("--from {text}: {error}")))
}

/// The path in `unix:PATH`.
pub fn socket(value: &OsString) -> Result<PathBuf, Failure> {
    let path = value.to_str().and_then(|text| text.strip_prefix("unix:")).filter(|path| !path.is_empty());
    path.map(PathBuf::from)
        .ok_or_else(|| Failure::new(format!("control socket {}: unix:PATH wanted", value.to_string_lossy())))
}

pub fn about(path: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("{}: {}", path.display(), errno::describe(error)))
}

pub fn listening(address: &str, error: &io::Error) -> Failure {
    Failure::new(format!("listen on {address}: {}", errno::describe(error)))
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        match error {
            Error::NotFound => Failure::new("the guest has no such file or folder"),
            Error::Service(why) => Failure::new(why),
            Error::Connection(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Failure::new("the service has ended")
            }
            Error::Connection(error) => Failure::new(format!("control socket: {}", errno::describe(&error))),
            Error::Local(error) => Failure::new(errno::describe(&error)),
        }
    }
}

/// Options and words of a command for a running service.
#[derive(Default)]
struct Words {
    control: Option<PathBuf>,
    terminal: bool,
    words: Vec<OsString>,
}

impl Words {
    fn read(mut parser: Parser, takes_program: bool) -> Result<Words, Failure> {
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

    fn connect(&self) -> Result<Control, Failure> {
        let from_environment = || env::var_os(CONTROL).filter(|value| !value.is_empty());
        let path = match (&self.control, from_environment()) {
            (Some(path), _) => path.clone(),
            (None, Some(value)) => socket(&value)?,
            (None, None) => return Err(Failure::new(format!("--control unix:PATH is missing, and {CONTROL} unset"))),
        };
        Control::connect(&path)
            .map_err(|error| Failure::new(format!("connect to {}: {}", path.display(), errno::describe(&error))))
    }
}

fn get(parser: Parser) -> Result<ExitCode, Failure> {
    let mut words = Words::read(parser, false)?;
    let [remote, local] = <[OsString; 2]>::try_from(std::mem::take(&mut words.words))
        .map_err(|_| Failure::new("get wants the guest's path, and one of ours or -"))?;
    let (remote, local) = (text(remote)?, PathBuf::from(local));
    let named = |failure: Failure| Failure { text: format!("get {remote}: {}", failure.text), ..failure };
    if local == Path::new("-") {
        let temporary = env::temp_dir().join(format!(".lodger-metadata-{}", std::process::id()));
        let mut file = create(&temporary)?;
        fs::remove_file(&temporary).map_err(|error| about(&temporary, &error))?;
        words.connect()?.get(&remote, &mut file).map_err(|error| named(error.into()))?;
        io::Seek::rewind(&mut file)?;
        let mut out = io::stdout().lock();
        io::copy(&mut file, &mut out)?;
        out.flush()?;
        return Ok(ExitCode::SUCCESS);
    }
    let control = words.connect()?;
    let target = if local.is_dir() { local.join(last_name(&remote)?) } else { local };
    let temporary = beside(&target);
    let mut file = create(&temporary)?;
    let fetched = control.get(&remote, &mut file).map_err(|error| named(error.into()));
    let result = fetched.and_then(|()| fs::rename(&temporary, &target).map_err(|error| about(&target, &error)));
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result.map(|()| ExitCode::SUCCESS)
}

fn create(path: &Path) -> Result<File, Failure> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path);
    file.map_err(|error| about(path, &error))
}

/// The name that a file has in its folder, on whatever system.
fn last_name(remote: &str) -> Result<&str, Failure> {
    let name = remote.rsplit(['/', '\\']).next().filter(|name| !matches!(*name, "" | "." | ".."));
    name.ok_or_else(|| Failure::new(format!("get {remote}: this is no name for a file; say which")))
}

/// A name for a file that is not complete.
fn beside(target: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    target.with_file_name(name)
}

fn list(parser: Parser) -> Result<ExitCode, Failure> {
    let mut words = Words::read(parser, false)?;
    let [folder] = <[String; 1]>::try_from(words.texts()?).map_err(|_| Failure::new("ls wants one folder"))?;
    let failed = |error: Error| {
        let failure = Failure::from(error);
        Failure { text: format!("ls {folder}: {}", failure.text), ..failure }
    };
    let names = words.connect()?.list(&folder).map_err(failed)?;
    let mut out = io::stdout().lock();
    for name in names {
        listing::write_name(&mut out, name.as_bytes())?;
        out.write_all(b"\n")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn kill(parser: Parser) -> Result<ExitCode, Failure> {
    let words = Words::read(parser, false)?;
    if !words.words.is_empty() {
        return Err(Failure::new("kill takes no words: there is only one command in the guest"));
    }
    words.connect()?.kill()?;
    Ok(ExitCode::SUCCESS)
}

fn shell(parser: Parser) -> Result<ExitCode, Failure> {
    let mut words = Words::read(parser, true)?;
    let command = words.texts()?;
    let mut shell = words.connect()?.shell(&command, words.terminal)?;
    let system = |error: io::Error| Failure::new(format!("shell: {}", errno::describe(&error)));
    let signals = signal::into_pipe(&[SIGINT, SIGTERM, SIGHUP, SIGWINCH]).map_err(system)?;
    let raw = if words.terminal { Raw::enter().map_err(system)? } else { None };
    if words.terminal {
        shell.resize(terminal::window());
    }
    let mut waiting = Vec::new();
    let mut next = || {
        if waiting.is_empty() {
            waiting = signal::take(&signals);
        }
        Some(match waiting.pop()? {
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
        Ending::Lost(error) => {
            Err(Failure::new(format!("the shell's connection is lost: {}", errno::describe(&error))))
        }
    }
}
