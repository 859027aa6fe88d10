//! `cp`: files and trees, into a guest and out of it.

mod interrupt;
mod into_guest;
mod out_of_guest;
mod progress;

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use lexopt::{Arg, Parser};

use crate::cli::copy::interrupt::Interrupt;
use crate::cli::copy::out_of_guest::{behind_links, is_stream};
use crate::cli::copy::progress::Progress;
use crate::cli::file::last_component;
use crate::cli::target::Target;
use crate::cli::{Command, Failure, OUR_ERROR, complain};
use crate::client::{Connection, Error};

pub const COPY: Command = Command {
    name: "cp",
    summary: "copy files and trees into a guest and out of it",
    help: "usage: lodger cp [-r] [--to ADDR] SOURCE... DESTINATION

Paths in the guest are written guest:PATH. Either all sources are there and the destination is
here, or the other way round. A destination that is a directory is copied into.

  -r           trees, with modes, times, symbolic links and holes; files that come out of a
               guest lose setuid and setgid

A file appears under its name only when all of it is there. A directory is never replaced by a
file, nor a file by a directory.
",
    run: copy,
};

/// Links that are followed to find the file that a link at the destination stands for; as many as the kernel follows.
const LINKS_MAX: usize = 40;

/// What both directions share.
struct Copier {
    connection: Connection,
    recursive: bool,
    progress: Progress,
    interrupt: Interrupt,
    /// Something could not be copied, and was said.
    incomplete: bool,
}

/// A path as it was written.
enum Place {
    Host(PathBuf),
    Guest(Vec<u8>),
}

impl Place {
    fn read(text: OsString) -> Place {
        match text.as_bytes().strip_prefix(b"guest:") {
            Some(b"") => Place::Guest(b".".to_vec()),
            Some(path) => Place::Guest(path.to_vec()),
            None => Place::Host(PathBuf::from(OsString::from_vec(text.into_vec()))),
        }
    }
}

fn copy(mut parser: Parser) -> Result<ExitCode, Failure> {
    let (mut target, mut recursive, mut places) = (Target::default(), false, Vec::new());
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long(name) if Target::has(name) => target.take(name.to_owned(), &mut parser)?,
            Arg::Short('r' | 'R' | 'a') => recursive = true,
            Arg::Value(path) => places.push(Place::read(path)),
            other => return Err(other.unexpected().into()),
        }
    }
    let (Some(destination), false) = (places.pop(), places.is_empty()) else {
        return Err(Failure::new("a source and a destination are wanted; see `lodger help cp`"));
    };
    let sides = (&destination, places.iter().all(|place| matches!(place, Place::Guest(_))));
    let mixed = places.iter().any(|place| matches!(place, Place::Guest(_))) && !sides.1;
    if mixed || matches!(sides, (Place::Guest(_), true) | (Place::Host(_), false)) {
        let text = "either all sources or the destination must be a guest: path, and not both";
        return Err(Failure::new(text));
    }
    let connection = target.connect()?;
    let interrupt = Interrupt::watch().map_err(Error::local("catch signals"))?;
    let mut copier = Copier { connection, recursive, progress: Progress::new(), interrupt, incomplete: false };
    let result = match destination {
        Place::Guest(path) => copier.all_in(&places, &path),
        Place::Host(path) => copier.all_out(&places, &path),
    };
    if let Some(signal) = copier.interrupt.signal() {
        copier.progress.clear();
        return Err(Failure::with_code((128 + signal) as u8, "interrupted"));
    }
    result?;
    copier.progress.clear();
    copier.connection.close();
    Ok(if copier.incomplete { ExitCode::from(OUR_ERROR) } else { ExitCode::SUCCESS })
}

impl Copier {
    fn all_in(&mut self, sources: &[Place], destination: &[u8]) -> Result<(), Failure> {
        let into = self.guest_directory(destination, sources.len() > 1)?;
        for source in sources {
            let Place::Host(source) = source else { continue };
            let name = source.canonicalize().ok().and_then(|path| path.file_name().map(OsStr::to_os_string));
            let target = match (into, source.file_name().map(OsStr::to_os_string).or(name)) {
                (true, Some(name)) => crate::cli::file::join(destination, name.as_bytes()),
                _ => destination.to_vec(),
            };
            let result = self.copy_in(source, &target, Depth::Named);
            self.report(result)?;
        }
        Ok(())
    }

    fn all_out(&mut self, sources: &[Place], destination: &Path) -> Result<(), Failure> {
        let into = destination.is_dir();
        if !into && sources.len() > 1 {
            return Err(Failure::new(format!("{}: not a directory", destination.display())));
        }
        for source in sources {
            let Place::Guest(source) = source else { continue };
            let name = OsStr::from_bytes(last_component(source));
            let result = if is_stream(destination) {
                self.stream_out(source, destination)
            } else if into && !name.is_empty() {
                self.copy_out(source, &destination.join(name), Depth::Named)
            } else {
                self.copy_out(source, &behind_links(destination), Depth::Named)
            };
            self.report(result)?;
        }
        Ok(())
    }

    fn guest_directory(&mut self, path: &[u8], wanted: bool) -> Result<bool, Failure> {
        match self.connection.stat(path) {
            Ok(found) if found.is_directory() => Ok(true),
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ if wanted => Err(Failure::new(format!("guest:{}: not a directory", String::from_utf8_lossy(path)))),
            _ => Ok(false),
        }
    }

    /// Says what could not be copied, and goes on; only an interrupt and the connection's end end it all.
    fn report(&mut self, result: Result<(), Error>) -> Result<(), Error> {
        self.interrupt.check().map_err(Error::local("copy"))?;
        match result {
            Err(error @ (Error::Remote { .. } | Error::Local { .. })) => {
                self.progress.clear();
                complain("cp", &error.to_string());
                self.incomplete = true;
                Ok(())
            }
            result => result,
        }
    }
}

/// Whether a path was named by the user, who means what a link leads to, or found in a tree, which holds the link itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    Named,
    Found,
}

/// An error about a file of either side that no system call made.
fn refuse(path: &str, why: &str) -> Error {
    Error::Local { what: path.to_owned(), error: io::Error::new(io::ErrorKind::AlreadyExists, why) }
}
