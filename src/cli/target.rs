//! Which agent a command talks to; and the commands that only look at it.

use std::env;
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use lexopt::{Arg, Parser};

use crate::cli::{Command, Failure, NOT_FOUND, harmless, listing, number, text};
use crate::client::{Connection, Error};
use crate::sys::{errno, fd};
use crate::transport::{self, Addr, Carrier};

/// How long an agent at the other end of a bare line may take to answer before nobody seems to be there.
const LINE_PATIENCE: Duration = Duration::from_secs(5);

/// How long to listen on a bare line before we speak up: longer than an agent takes to open it after it has noticed us.
const LINE_OPENING: Duration = Duration::from_millis(300);

/// The address that a command was given.
#[derive(Debug, Default)]
pub struct Target {
    address: Option<String>,
}

impl Target {
    /// Takes the value of `--to`.
    pub fn set(&mut self, value: OsString) -> Result<(), Failure> {
        self.address = Some(text(value)?);
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
            (_, NotFound | ConnectionRefused) => "; `lodger serve` would be an agent there".to_owned(),
            _ => String::new(),
        }
    }

    /// Connects.
    pub fn connect(&self) -> Result<Connection, Failure> {
        let addr = self.address()?;
        let stream = transport::connect(&addr).map_err(|error| {
            if error.kind() == io::ErrorKind::Unsupported {
                return Failure::new(errno::describe(&error));
            }
            let hint = self.hint(&addr, &error);
            Failure::new(format!("connect to {addr}: {}{hint}", errno::describe(&error)))
        })?;
        if matches!(addr.carrier, Carrier::Serial { .. }) {
            let mut connection = Connection::open(stream);
            connection.greet(LINE_PATIENCE)?;
            return Ok(connection);
        }
        if !matches!(addr.carrier, Carrier::Port { .. }) {
            return Ok(Connection::open(stream));
        }
        // An agent that opens the line speaks first; one that has it open already waits for us.
        let mut connection = Connection::on_line(stream);
        let failed = |error| Failure::new(format!("{addr}: {error}"));
        let heard = Instant::now() + LINE_OPENING;
        while !connection.hears_agent().map_err(failed)? && Instant::now() < heard {
            let left = heard.saturating_duration_since(Instant::now());
            fd::wait_for(connection.watch(), fd::READ, Some(left)).map_err(|error| failed(Error::Lost(error)))?;
        }
        connection.greet(LINE_PATIENCE).map_err(failed)?;
        Ok(connection)
    }
}

pub const PING: Command = Command {
    name: "ping",
    summary: "measure how fast an agent answers",
    help: "usage: lodger ping [-c COUNT] [--to ADDR]

  -c COUNT     how often (default 1)
",
    run: ping,
};

fn ping(mut parser: Parser) -> Result<ExitCode, Failure> {
    let (mut target, mut count) = (Target::default(), 1u32);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("to") => target.set(parser.value()?)?,
            Arg::Short('c') => count = number(parser.value()?, "-c")?,
            _ => return Err(argument.unexpected().into()),
        }
    }
    let start = Instant::now();
    let mut connection = target.connect()?;
    let agent = connection.greet(LINE_PATIENCE)?;
    let address = target.address()?;
    writeln!(
        io::stdout(),
        "{} at {address}, connected in {:.3} ms",
        harmless(&agent.program),
        millis(start.elapsed())
    )?;
    for _ in 0..count {
        let start = Instant::now();
        connection.lstat(b"/")?;
        writeln!(io::stdout(), "answer in {:.3} ms", millis(start.elapsed()))?;
    }
    connection.close();
    Ok(ExitCode::SUCCESS)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
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
            Arg::Long("to") => target.set(parser.value()?)?,
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
