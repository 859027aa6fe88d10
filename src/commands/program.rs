//! Commands from outside: the executable DIRECTORY/NAME is the command NAME.
//!
//! It gets the whole request on its standard input and writes the whole response to its standard output. It has no arguments, stands in `/`,
//! and finds its name in the environment as LODGER_COMMAND. Another exit status than 0 is an error, with the first line of its error output.
//! What stands in `NAME.conf` beside it, if anything:
//!
//! ```text
//! # A comment.
//! summary = what it does, in one line
//! timeout_seconds = 5
//! ```
//!
//! What may be run as the agent's user must be nobody else's to change: directory, file and `NAME.conf` belong to root or to the agent's user,
//! and neither their groups nor others may write to them. Of a symbolic link the target counts. Who may write to the directories above, or
//! around the target of a link, is not looked at.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::commands::process::{TIMEOUT_MAX_SECONDS, not_started};
use crate::commands::{Call, Error};
use crate::exec::capture::{self, Bounds, Outcome, Output};
use crate::exec::{self, environment};
use crate::sys::errno;
use crate::sys::process::{Status, effective_user};
use crate::sys::signal;

/// Where they are, unless it is said otherwise.
pub const DIRECTORY: &str = "/etc/lodger/commands.d";

/// How long a program may take that names no time of its own.
pub const TIME_LIMIT: Duration = Duration::from_secs(30);

/// Bytes of the longest name.
pub const NAME_MAX: usize = 128;

/// Bytes of the longest response. It is in memory as a whole, because an exit status behind it can still make it an error.
pub const RESPONSE_MAX: usize = 4 << 20;

/// Programs that are listed at most.
pub const LISTED_MAX: usize = 1024;

/// Bytes of a program's error output that are looked at: one line for people.
const SAID_MAX: usize = 512;

/// Bytes of the longest `NAME.conf`: two lines, and comments.
const SIDECAR_MAX: u64 = 4 << 10;

/// The end of the names of sidecars, which therefore are no commands.
const SIDECAR: &str = ".conf";

/// A program that may be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outside {
    name: String,
    path: PathBuf,
    time_limit: Duration,
    /// One line, from its sidecar.
    pub summary: Option<String>,
}

/// Looks a name up in a directory; `None` when nothing is there, or when it can be no command's name.
///
/// # Errors
/// `Denied` for what others could have changed or what cannot be executed, `Failed` for a wrong sidecar.
pub fn find(directory: &Path, name: &str, time_limit: Duration) -> Result<Option<Outside>, Error> {
    if !is_name(name) {
        return Ok(None);
    }
    let path = directory.join(name);
    let what = format!("command {}", path.display());
    let Some(file) = look(&what, &path)? else { return Ok(None) };
    let place = format!("commands directory {}", directory.display());
    if let Some(found) = look(&place, directory)? {
        check_owner(&place, &found)?;
    }
    if !file.is_file() {
        return Err(Error::Denied(format!("{what}: not a regular file")));
    }
    if file.mode() & 0o111 == 0 {
        return Err(Error::Denied(format!("{what}: not executable")));
    }
    check_owner(&what, &file)?;
    let mut program = Outside { name: name.to_owned(), path, time_limit, summary: None };
    program.read_sidecar(&directory.join(format!("{name}{SIDECAR}")))?;
    Ok(Some(program))
}

/// The names of what is in a directory and could be commands, in the order of the file system, and whether there are more than
/// `LISTED_MAX`. Without the directory there are none.
///
/// # Errors
/// The directory cannot be read.
pub fn names(directory: &Path) -> Result<(Vec<String>, bool), Error> {
    let system = |error| Error::system(&format!("commands directory {}", directory.display()), &error);
    let mut names = Vec::new();
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((names, false)),
        entries => entries.map_err(system)?,
    };
    let mut truncated = false;
    for entry in entries {
        let Ok(name) = entry.map_err(system)?.file_name().into_string() else { continue };
        truncated = is_name(&name) && names.len() == LISTED_MAX;
        if truncated {
            break;
        }
        names.extend(Some(name).filter(|name| is_name(name)));
    }
    Ok((names, truncated))
}

/// Whether a command can have this name. No other ever becomes a path.
fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(fits) && !name.starts_with('.') && !name.ends_with(SIDECAR)
}

/// What a path leads to; `None` for nothing.
fn look(what: &str, path: &Path) -> Result<Option<Metadata>, Error> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some).map_err(|error| Error::system(what, &error)),
    }
}

fn check_owner(what: &str, found: &Metadata) -> Result<(), Error> {
    let owner = found.uid();
    if owner != 0 && owner != effective_user() {
        return Err(Error::Denied(format!("{what}: belongs to user {owner}")));
    }
    if found.mode() & 0o022 != 0 {
        return Err(Error::Denied(format!("{what}: may be written to by others")));
    }
    Ok(())
}

impl Outside {
    fn read_sidecar(&mut self, path: &Path) -> Result<(), Error> {
        let what = path.display().to_string();
        let Some(found) = look(&what, path)? else { return Ok(()) };
        // Opening something else might wait for ever.
        if !found.is_file() {
            return Err(Error::Denied(format!("{what}: not a regular file")));
        }
        check_owner(&what, &found)?;
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|file| file.take(SIDECAR_MAX + 1).read_to_end(&mut bytes));
        read.map_err(|error| Error::system(&what, &error))?;
        if bytes.len() as u64 > SIDECAR_MAX {
            return Err(Error::Failed(format!("{what}: longer than the limit of {SIDECAR_MAX} bytes")));
        }
        let mut seen = Vec::new();
        for (index, line) in String::from_utf8_lossy(&bytes).lines().enumerate() {
            self.set(line, &mut seen).map_err(|why| Error::Failed(format!("{what}:{}: {why}", index + 1)))?;
        }
        Ok(())
    }

    /// Takes one line of a sidecar; `seen` are the words that were there.
    fn set(&mut self, line: &str, seen: &mut Vec<String>) -> Result<(), String> {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            return Ok(());
        }
        let (word, value) = line.split_once('=').ok_or_else(|| format!("no \"word = value\": {line}"))?;
        let (word, value) = (word.trim(), value.trim());
        if seen.iter().any(|other| other == word) {
            return Err(format!("{word}: stands there twice"));
        }
        seen.push(word.to_owned());
        match word {
            "summary" => self.summary = Some(value.to_owned()),
            "timeout_seconds" => {
                let seconds = value.parse().ok().filter(|seconds| (1..=TIMEOUT_MAX_SECONDS).contains(seconds));
                let bad = || format!("{word}: a number from 1 to {TIMEOUT_MAX_SECONDS} is wanted, and not {value}");
                self.time_limit = Duration::from_secs(seconds.ok_or_else(bad)?);
            }
            _ => return Err(format!("{word}: no such word")),
        }
        Ok(())
    }

    /// Runs the program with a request, and gives its response as it is.
    ///
    /// # Errors
    /// `TimedOut`, `Interrupted`; `Failed` for an exit status other than 0, an end by a signal and a response over `RESPONSE_MAX`; that of the
    /// start.
    pub fn call(&self, request: &[u8], call: &Call) -> Result<Vec<u8>, Error> {
        let name = &self.name;
        let mut env = environment::own();
        env.push(format!("LODGER_COMMAND={name}").into_bytes());
        let program = exec::Program {
            path: self.path.as_os_str().as_bytes().to_vec(),
            env: Some(environment::without_repeats(env)),
            cwd: b"/".to_vec(),
            ..exec::Program::default()
        };
        let (session, channels) = exec::start(&program).map_err(|why| not_started(&why))?;
        let bounds = Bounds {
            stdout_max: RESPONSE_MAX,
            stderr_max: SAID_MAX,
            deadline: capture::within(self.time_limit),
            caller: call.caller,
            stop: call.stop,
        };
        match capture::finish(session, channels, request, &bounds) {
            Ok(Outcome::Complete(output)) => self.response(output),
            Ok(Outcome::CallerGone) => Err(Error::Interrupted(format!("{name}: the caller has gone"))),
            Ok(Outcome::Stopped) => Err(Error::Interrupted(format!("{name}: the agent ends"))),
            Err(error) => Err(Error::Failed(format!("{name}: {}", errno::describe(&error)))),
        }
    }

    fn response(&self, output: Output) -> Result<Vec<u8>, Error> {
        let name = &self.name;
        let said = first_line(&output.stderr.bytes);
        if !said.is_empty() {
            log::info!("command {name}: {said}");
        }
        let colon = if said.is_empty() { "" } else { ": " };
        match output.status {
            _ if output.timed_out => {
                // Not as a float: writing those takes 15 KB of program.
                let millis = self.time_limit.as_millis();
                let time =
                    if millis.is_multiple_of(1000) { format!("{} s", millis / 1000) } else { format!("{millis} ms") };
                Err(Error::TimedOut(format!("{name}: not done within {time}{colon}{said}")))
            }
            Status::Killed(signal) => {
                Err(Error::Failed(format!("{name}: ended by {}{colon}{said}", signal::name(signal))))
            }
            Status::Exited(1..) | Status::Exited(..=-1) => {
                Err(Error::Failed(format!("{name}: exit status {}{colon}{said}", output.status.code())))
            }
            Status::Exited(0) if output.stdout.truncated => {
                Err(Error::Failed(format!("{name}: the response is longer than the limit of {RESPONSE_MAX} bytes")))
            }
            Status::Exited(0) => Ok(output.stdout.bytes),
        }
    }
}

/// The first line of an error output, without what would garble a terminal.
fn first_line(bytes: &[u8]) -> String {
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    String::from_utf8_lossy(line).trim().chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_are_ever_looked_for() {
        for name in ["a", "a.b-c_D9", "conf", &"x".repeat(128)] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", ".a", "..", "a/b", "a.conf", "a b", "é", "a\0", &"x".repeat(129)] {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn a_first_line_is_for_people() {
        assert_eq!(first_line(b" a\x1b[1mb\xff \r\nmore"), "a[1mb\u{fffd}");
        assert_eq!(first_line(b""), "");
    }
}
