//! Which agent a command talks to, how long it waits for it; and the command that looks at its programs.

use std::env;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use lexopt::{Arg, Parser};

use crate::cli::{Command, Failure, NOT_FOUND, listing, seconds, text};
use crate::client::{Connection, Error};
use crate::link::opener::Wishes;
use crate::stream::Stream;
use crate::sys::file::{ENODEV, ENXIO};
use crate::sys::{errno, fd};
use crate::transport::{self, Addr, Carrier};
use crate::wire::frame::Hello;

/// How long an agent at the other end of a bare line may take to answer before nobody seems to be there.
pub const LINE_PATIENCE: Duration = Duration::from_secs(5);

/// How long to listen on a bare line before we speak up: longer than an agent takes to open it after it has noticed us.
const LINE_OPENING: Duration = Duration::from_millis(300);

/// How often to look meanwhile whether an agent has opened the line only after we had spoken.
const LINE_LOOK: Duration = Duration::from_millis(100);

/// How often to look whether an agent has answered on a line with a link, which nothing else tells.
const LINK_LOOK: Duration = Duration::from_millis(5);

/// Bytes of one read of what is thrown away.
const DISCARD_BYTES: usize = 4 << 10;

/// Pauses between attempts to connect: from the shortest, each twice as long as the one before, to the longest.
const RETRY_SHORTEST: Duration = Duration::from_millis(5);
const RETRY_LONGEST: Duration = Duration::from_millis(200);

/// The agent that a command talks to, as its options name it.
#[derive(Debug, Default)]
pub struct Target {
    address: Option<String>,
    /// How long to wait for an agent that is not there yet.
    wait: Duration,
    /// Where the text goes that comes over a serial line.
    console: Option<OwnedFd>,
}

/// Why there is no connection.
enum Unreached {
    NoStream(io::Error),
    NoAnswer(Error),
}

impl Target {
    /// Whether this is the name of an option that every command with a connection has; `take` it then.
    pub fn has(option: &str) -> bool {
        matches!(option, "to" | "wait" | "console")
    }

    /// Takes such an option with its value.
    pub fn take(&mut self, option: String, parser: &mut Parser) -> Result<(), Failure> {
        let value = parser.value()?;
        match option.as_str() {
            "wait" => self.wait = seconds(value, "--wait")?,
            "console" => self.console = Some(open_console(&value)?),
            _ => self.address = Some(text(value)?),
        }
        Ok(())
    }

    /// The address: the option's, the environment's or the default.
    pub fn address(&self) -> Result<Addr, Failure> {
        let given = self.address.clone().or_else(|| env::var("LODGER_TO").ok().filter(|text| !text.is_empty()));
        let text = given.unwrap_or_else(|| transport::DEFAULT.to_owned());
        text.parse().map_err(|error| Failure::new(format!("{error}")))
    }

    /// What would help against an error of connecting.
    fn hint(&self, addr: &Addr, error: &io::Error) -> String {
        use io::ErrorKind::{ConnectionRefused, ConnectionReset, NotFound};
        let would_be_there = |port: u32| format!("; `lodger serve --listen vsock:{port}` would be an agent there");
        match (&addr.carrier, error.kind()) {
            // Without a number it is not the monitor's socket that nobody listens on, but the guest's port.
            (Carrier::Hvsock { port, .. }, ConnectionRefused) if error.raw_os_error().is_none() => {
                would_be_there(*port)
            }
            (Carrier::Hvsock { .. }, _) => String::new(),
            (Carrier::VsockPeer { port, .. }, ConnectionReset) => would_be_there(*port),
            (Carrier::VsockPeer { .. }, _) => transport::vsock::hint(error).to_owned(),
            (_, NotFound | ConnectionRefused) if self.address.is_none() => {
                "; `lodger serve` would be an agent there, --to or LODGER_TO names another place".to_owned()
            }
            (_, NotFound | ConnectionRefused) => {
                "; `lodger serve` would be an agent there, --wait SECONDS waits for one".to_owned()
            }
            _ => String::new(),
        }
    }

    /// Connects; waits for the agent as long as `--wait` says.
    pub fn connect(&self) -> Result<Connection, Failure> {
        self.retry(Target::attempt)
    }

    /// Connects for other protocols than our own, in which nobody greets; waits as long as `--wait` says. Where only an agent's answer tells
    /// that there is one, and something can be asked without a request, it has answered.
    pub fn stream(&self) -> Result<Stream, Failure> {
        self.retry(Target::attempt_stream)
    }

    fn retry<T>(&self, attempt: fn(&Target, &Addr, Duration) -> Result<T, Unreached>) -> Result<T, Failure> {
        let addr = self.address()?;
        let deadline = Instant::now() + self.wait;
        let mut pause = RETRY_SHORTEST;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let unreached = match attempt(self, &addr, left) {
                Ok(reached) => return Ok(reached),
                Err(unreached) => unreached,
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !unreached.may_change() {
                return Err(self.failure(&addr, unreached));
            }
            // Nothing tells of an agent that is about to come.
            thread::sleep(pause.min(left));
            pause = (pause * 2).min(RETRY_LONGEST);
        }
    }

    /// Connects, and greets; waits for the agent as long as `--wait` says.
    pub fn greet(&self) -> Result<(Connection, Hello), Failure> {
        let mut connection = self.connect()?;
        let agent = connection.greet(LINE_PATIENCE).map_err(|error| self.no_answer(&error))?;
        Ok((connection, agent))
    }

    fn no_answer(&self, error: &Error) -> Failure {
        Failure::new(self.address().map_or_else(|_| error.to_string(), |addr| format!("{addr}: {error}")))
    }

    /// Tries once; the agent gets at most `left` for its answer if we wait for it at all.
    fn attempt(&self, addr: &Addr, left: Duration) -> Result<Connection, Unreached> {
        let stream = self.open(addr).map_err(Unreached::NoStream)?;
        let patience = self.patience(left);
        if matches!(addr.carrier, Carrier::Port { .. }) {
            return greet_on_line(stream, patience).map_err(Unreached::NoAnswer);
        }
        let mut connection = Connection::open(stream);
        // Whatever passes connections on may take one before an agent is there. Who does not wait greets with the first request, but on a
        // line, where only the agent's answer says that there is one.
        if !self.wait.is_zero() || matches!(addr.carrier, Carrier::Serial { .. }) {
            connection.greet(patience).map_err(Unreached::NoAnswer)?;
        }
        Ok(connection)
    }

    /// The same without a greeting of ours.
    fn attempt_stream(&self, addr: &Addr, left: Duration) -> Result<Stream, Unreached> {
        let stream = self.open(addr).map_err(Unreached::NoStream)?;
        match addr.carrier {
            Carrier::Serial { .. } => wait_for_link(&stream, self.patience(left)).map_err(Unreached::NoAnswer)?,
            Carrier::Port { .. } => discard_on_line(&stream).map_err(Unreached::NoStream)?,
            _ => {}
        }
        Ok(stream)
    }

    fn open(&self, addr: &Addr) -> io::Result<Stream> {
        let console = self.console.as_ref().map(OwnedFd::try_clone).transpose()?;
        transport::connect_with(addr, Wishes { console, starts: false })
    }

    /// How long an agent may take to answer in one attempt.
    fn patience(&self, left: Duration) -> Duration {
        if self.wait.is_zero() { LINE_PATIENCE } else { left.clamp(LINE_LOOK, LINE_PATIENCE) }
    }

    fn failure(&self, addr: &Addr, unreached: Unreached) -> Failure {
        let waited = if self.wait.is_zero() || !unreached.may_change() {
            String::new()
        } else {
            format!("; waited {}.{} s", self.wait.as_secs(), self.wait.subsec_millis() / 100)
        };
        let error = match unreached {
            Unreached::NoAnswer(Error::Explained(text)) => return Failure::new(format!("{text}{waited}")),
            Unreached::NoAnswer(error) => return Failure::new(format!("{addr}: {error}{waited}")),
            Unreached::NoStream(error) => error,
        };
        if error.kind() == io::ErrorKind::Unsupported {
            return Failure::new(errno::describe(&error));
        }
        let hint = if self.wait.is_zero() { self.hint(addr, &error) } else { String::new() };
        Failure::new(format!("connect to {addr}: {}{hint}{waited}", errno::describe(&error)))
    }
}

impl Unreached {
    /// Whether it may be another in a moment: nobody is there yet, or has just gone.
    fn may_change(&self) -> bool {
        match self {
            Unreached::NoAnswer(error) => matches!(error, Error::Lost(_) | Error::Silent(_) | Error::Explained(_)),
            Unreached::NoStream(error) => {
                let kinds = [
                    io::ErrorKind::NotFound,
                    io::ErrorKind::ConnectionRefused,
                    io::ErrorKind::ConnectionReset,
                    io::ErrorKind::ResourceBusy,
                    io::ErrorKind::TimedOut,
                    io::ErrorKind::WouldBlock,
                    io::ErrorKind::UnexpectedEof,
                    io::ErrorKind::HostUnreachable,
                    io::ErrorKind::NetworkUnreachable,
                ];
                // A device file without its device; vsock without a guest of that number.
                let no_device = matches!(error.raw_os_error(), Some(ENODEV | ENXIO));
                no_device || kinds.contains(&error.kind())
            }
        }
    }
}

/// A file for the console's text; `-` is our own stdout.
fn open_console(path: &OsStr) -> Result<OwnedFd, Failure> {
    let opened =
        if path == "-" { io::stdout().as_fd().try_clone_to_owned() } else { File::create(path).map(OwnedFd::from) };
    opened.map_err(|error| Failure::new(format!("open {}: {}", path.to_string_lossy(), errno::describe(&error))))
}

/// Waits until an agent has answered on a line with a link: as long as none has, the link has something to explain.
fn wait_for_link(stream: &Stream, patience: Duration) -> Result<(), Error> {
    let deadline = Instant::now() + patience;
    while let Some(why) = stream.explanation() {
        let left = deadline.saturating_duration_since(Instant::now());
        let ready = fd::wait_for(stream.input(), fd::READ, Some(left.min(LINK_LOOK))).map_err(Error::Lost)?;
        if ready.readable {
            // The line has ended, and the link may know by now why.
            return stream.explanation().map_or(Ok(()), |why| Err(Error::Explained(why)));
        }
        if left.is_zero() {
            return Err(Error::Explained(why));
        }
    }
    Ok(())
}

/// Gives an agent the time to open a bare line, and throws away what comes meanwhile: nobody has asked for it on this side.
fn discard_on_line(stream: &Stream) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let deadline = Instant::now() + LINE_OPENING;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        if fd::wait_for(stream.input(), fd::READ, Some(left))?.readable {
            match fd::read(stream.input(), &mut [0; DISCARD_BYTES]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
        }
    }
}

/// Makes a connection of a bare line, within about `patience`.
fn greet_on_line(stream: Stream, patience: Duration) -> Result<Connection, Error> {
    // An agent that opens the line speaks first; one that has it open already waits for us.
    let mut connection = Connection::on_line(stream);
    let heard = Instant::now() + LINE_OPENING.min(patience);
    while !connection.hears_agent()? && Instant::now() < heard {
        let left = heard.saturating_duration_since(Instant::now());
        fd::wait_for(connection.watch(), fd::READ, Some(left)).map_err(Error::Lost)?;
    }
    let mut was_heard = connection.hears_agent()?;
    let deadline = Instant::now() + patience;
    loop {
        match connection.greet(LINE_LOOK) {
            Ok(_) => return Ok(connection),
            // What we said was lost on an agent that has opened the line only now.
            Err(Error::Silent(_)) if !was_heard && connection.hears_agent()? => {
                was_heard = true;
                connection.greet_again();
            }
            Err(Error::Silent(_)) if Instant::now() < deadline => {
                // The agent's answer was behind it, or has been the end of it.
                if connection.skip_unfinished()? {
                    connection.greet_again();
                }
            }
            Err(Error::Silent(_)) => return Err(Error::Silent(patience)),
            Err(error) => return Err(error),
        }
    }
}

pub const PATH: Command = Command {
    name: "path",
    summary: "list the programs on a guest's PATH",
    help: "usage: lodger path [-l] [--to ADDR] [NAME...]

Without NAME all of them, else where those are (exit status 127 if one is missing).

  -l           with permissions, size and time
",
    run: path,
};

fn path(mut parser: Parser) -> Result<ExitCode, Failure> {
    let (mut target, mut long, mut names) = (Target::default(), false, Vec::new());
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long(name) if Target::has(name) => target.take(name.to_owned(), &mut parser)?,
            Arg::Short('l') => long = true,
            Arg::Value(name) => names.push(name.into_vec()),
            _ => return Err(argument.unexpected().into()),
        }
    }
    let mut connection = target.connect()?;
    let programs = connection.programs(&[])?;
    connection.close();
    let mut out = io::BufWriter::new(io::stdout().lock());
    for program in programs.iter().filter(|program| names.is_empty() || names.contains(&program.name)) {
        if long {
            let time = listing::time(program.modified_ns);
            write!(out, "{} {:>10} {time} ", listing::mode(0o100_000 | program.mode), program.size)?;
        }
        listing::write_name(&mut out, if long || !names.is_empty() { &program.path } else { &program.name })?;
        writeln!(out)?;
    }
    out.flush()?;
    let missing = names.iter().find(|name| !programs.iter().any(|program| program.name == **name));
    missing.map_or(Ok(ExitCode::SUCCESS), |name| {
        let name = std::ffi::OsStr::from_bytes(name).to_string_lossy();
        Err(Failure::with_code(NOT_FOUND, format!("{name}: not found on the guest's PATH")))
    })
}
