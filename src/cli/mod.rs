//! The commands: their table, their help, and what their failures look like.

/// A piece of a help text that stands there when the metadata service is built in.
#[cfg(feature = "metadata")]
macro_rules! if_metadata {
    ($text:literal) => {
        $text
    };
}
#[cfg(not(feature = "metadata"))]
macro_rules! if_metadata {
    ($text:literal) => {
        ""
    };
}

/// The same for hyperstart's channels.
#[cfg(feature = "clear")]
macro_rules! if_clear {
    ($text:literal) => {
        $text
    };
}
#[cfg(not(feature = "clear"))]
macro_rules! if_clear {
    ($text:literal) => {
        ""
    };
}

/// The same for the OpenStack guest agent.
#[cfg(feature = "openstack")]
macro_rules! if_openstack {
    ($text:literal) => {
        $text
    };
}
#[cfg(not(feature = "openstack"))]
macro_rules! if_openstack {
    ($text:literal) => {
        ""
    };
}

mod call;
mod copy;
mod exec;
mod file;
mod guest;
mod image;
mod listing;
mod log;
#[cfg(feature = "metadata")]
mod metadata;
#[cfg(feature = "metadata")]
mod metadata_commands;
#[cfg(feature = "metadata")]
mod metadata_get;
#[cfg(feature = "metadata")]
mod metadata_host;
#[cfg(feature = "metadata")]
mod metadata_relay;
#[cfg(feature = "openstack")]
mod openstack;
#[cfg(feature = "metadata")]
mod output;
mod ping;
mod replay;
mod target;
mod terminal;
mod vm;
#[cfg(feature = "metadata")]
mod vm_metadata;

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;
use std::time::Duration;

use lexopt::Parser;

use crate::client;

/// Exit status for errors of our own, apart from everything that a program may return.
pub const OUR_ERROR: u8 = 125;
/// A program that is there and cannot be executed.
const NOT_EXECUTABLE: u8 = 126;
/// A program that is not there.
const NOT_FOUND: u8 = 127;

/// Why a command ends without success.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    /// Empty when there is nothing to say: everything has been said, or nobody listens.
    text: String,
    /// The command may go on with its other files.
    is_about_one_file: bool,
}

impl Failure {
    fn new(text: impl Into<String>) -> Failure {
        Failure { code: OUR_ERROR, text: text.into(), is_about_one_file: false }
    }

    /// The same, about one of several files.
    fn about_one_file(text: impl Into<String>) -> Failure {
        Failure { is_about_one_file: true, ..Failure::new(text) }
    }

    /// Ends with this status.
    fn with_code(code: u8, text: impl Into<String>) -> Failure {
        Failure { code, ..Failure::new(text) }
    }

    /// Ends quietly with this status.
    fn silent(code: u8) -> Failure {
        Failure::with_code(code, "")
    }
}

impl From<lexopt::Error> for Failure {
    fn from(error: lexopt::Error) -> Failure {
        Failure::new(format!("{error}; `lodger help COMMAND` lists the options"))
    }
}

impl From<client::Error> for Failure {
    fn from(error: client::Error) -> Failure {
        let code = match &error {
            client::Error::NotStarted { errno, .. } if *errno == crate::sys::file::ENOENT => NOT_FOUND,
            client::Error::NotStarted { errno, .. } if *errno != 0 => NOT_EXECUTABLE,
            client::Error::Local { error, .. } if error.kind() == io::ErrorKind::BrokenPipe => {
                return Failure::silent(OUR_ERROR);
            }
            _ => OUR_ERROR,
        };
        let is_about_one_file = matches!(error, client::Error::Remote { .. });
        Failure { code, text: error.to_string(), is_about_one_file }
    }
}

impl From<io::Error> for Failure {
    /// For writing to our own stdout, the only I/O that is not wrapped with its object.
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::silent(OUR_ERROR),
            _ => Failure::new(format!("write the output: {}", crate::sys::errno::describe(&error))),
        }
    }
}

/// One command.
struct Command {
    name: &'static str,
    summary: &'static str,
    /// Usage line and everything below it.
    help: &'static str,
    run: fn(Parser) -> Result<ExitCode, Failure>,
}

/// All of them, in the order in which help lists them.
const COMMANDS: &[Command] = &[
    exec::EXEC,
    exec::SHELL,
    copy::COPY,
    file::LIST,
    file::CAT,
    file::STAT,
    file::MKDIR,
    file::REMOVE,
    file::MOVE,
    file::LINK,
    file::CHMOD,
    file::DF,
    target::PATH,
    call::CALL,
    call::offer::COMMANDS,
    ping::PING,
    ping::CONNECT,
    replay::REPLAY,
    image::INITRAMFS,
    vm::VM,
    #[cfg(feature = "metadata")]
    metadata::METADATA,
    #[cfg(feature = "openstack")]
    openstack::OPENSTACK,
    guest::SERVE,
    guest::INIT,
    guest::POWEROFF,
    guest::REBOOT,
    guest::HALT,
    HELP,
    VERSION,
];

const HELP: Command =
    Command { name: "help", summary: "explain a command", help: "usage: lodger help [COMMAND]\n", run: help };

const VERSION: Command =
    Command { name: "version", summary: "say what this program is", help: "usage: lodger version\n", run: version };

/// The options that every command with a connection has; behind its own in its help.
const TARGET_HELP: &str = "
Which guest:
  --to ADDR    unix:PATH, vsock:CID:PORT, hvsock:PATH:PORT (the vsock socket of Firecracker,
               Cloud Hypervisor or vhost-device-vsock), serial:PATH[,baud=N][,rtscts] (a serial
               line, or QEMU's socket of one), port:PATH (a bare line), port:NAME (the virtio
               port of that name), or local: (an agent of its own on this machine); else the
               environment variable LODGER_TO, else unix:/run/lodger.sock
  --wait S     wait for the agent, at most S seconds (default 0)
  --console F  with serial: write the text that comes over the line to file F, or to stdout (-)
";

/// Runs the command that the arguments (without the program's name) ask for.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut arguments = arguments.into_iter();
    let name = arguments.next().map(|name| name.to_string_lossy().into_owned());
    let name = match name.as_deref() {
        None => {
            let _ = overview(&mut io::stderr());
            return ExitCode::from(OUR_ERROR);
        }
        Some("--help" | "-h") => "help",
        Some("--version" | "-V") => "version",
        Some(name) => name,
    };
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
        let why = if name.starts_with('-') { "options stand behind the command" } else { "there is no such command" };
        complain("", &format!("{name}: {why}; `lodger help` lists them"));
        return ExitCode::from(OUR_ERROR);
    };
    let rest: Vec<OsString> = arguments.collect();
    // Only in front of the first word that is no option: behind it they may be a program's own.
    let ours = rest.iter().take_while(|word| word.as_bytes().starts_with(b"-") && *word != "--");
    if ours.clone().any(|word| word == "--help") || ours.clone().next().is_some_and(|word| word == "-h") {
        return finish(command.name, explain(command));
    }
    finish(command.name, (command.run)(Parser::from_args(rest)))
}

fn finish(name: &str, result: Result<ExitCode, Failure>) -> ExitCode {
    result.unwrap_or_else(|failure| {
        if !failure.text.is_empty() {
            complain(name, &failure.text);
        }
        ExitCode::from(failure.code)
    })
}

/// One line on stderr. That it may not be written cannot be told to anybody.
fn complain(command: &str, text: &str) {
    let space = if command.is_empty() { "" } else { " " };
    let _ = writeln!(io::stderr(), "lodger{space}{command}: {}", harmless(text));
}

/// The text without what would steer a terminal: parts of it may come from a guest.
fn harmless(text: &str) -> String {
    let harmless = |character: char| if character.is_control() && character != '\n' { '?' } else { character };
    text.chars().map(harmless).collect()
}

fn overview(out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "usage: lodger COMMAND ...\n")?;
    for command in COMMANDS {
        writeln!(out, "  {:10} {}", command.name, command.summary)?;
    }
    writeln!(out, "\n`lodger help COMMAND` explains one. Paths in a guest are written guest:PATH in `cp`.")
}

fn explain(command: &Command) -> Result<ExitCode, Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "lodger {}: {}\n\n{}", command.name, command.summary, command.help.trim_end())?;
    if command.help.contains("--to ADDR") {
        writeln!(out, "{}", TARGET_HELP.trim_end())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn help(mut parser: Parser) -> Result<ExitCode, Failure> {
    let Some(argument) = parser.next()? else {
        overview(&mut io::stdout().lock())?;
        return Ok(ExitCode::SUCCESS);
    };
    let lexopt::Arg::Value(name) = argument else { return Err(argument.unexpected().into()) };
    let found = COMMANDS.iter().find(|command| name == command.name);
    explain(found.ok_or_else(|| Failure::new(format!("there is no command {}", name.to_string_lossy())))?)
}

fn version(mut parser: Parser) -> Result<ExitCode, Failure> {
    no_more(&mut parser)?;
    writeln!(io::stdout(), "{}", crate::version::LINE)?;
    Ok(ExitCode::SUCCESS)
}

/// Refuses whatever is left of the arguments.
fn no_more(parser: &mut Parser) -> Result<(), Failure> {
    match parser.next()? {
        Some(argument) => Err(argument.unexpected().into()),
        None => Ok(()),
    }
}

/// A value that must be text.
fn text(value: OsString) -> Result<String, Failure> {
    value.into_string().map_err(|value| Failure::new(format!("{}: not UTF-8", value.to_string_lossy())))
}

/// Longest time that an option takes, in seconds: a year, and no clock overflows.
const SECONDS_MAX: f64 = 365.0 * 86_400.0;

/// A value that must be a time in seconds.
fn seconds(value: OsString, what: &str) -> Result<Duration, Failure> {
    let text = text(value)?;
    let number = text.parse().ok().filter(|number| (0.0..=SECONDS_MAX).contains(number));
    let time = number.map(Duration::from_secs_f64);
    time.ok_or_else(|| Failure::new(format!("{what} {text}: a time in seconds is wanted, at most a year")))
}

/// A number of thousandths, with its point. Not as a float: writing those takes 15 KB of program.
fn with_thousandths(number: u128) -> String {
    format!("{}.{:03}", number / 1000, number % 1000)
}

/// A value that must be a number.
fn number<T: std::str::FromStr>(value: OsString, what: &str) -> Result<T, Failure>
where
    T::Err: fmt::Display,
{
    let text = text(value)?;
    text.parse().map_err(|error| Failure::new(format!("{what} {text}: {error}")))
}
