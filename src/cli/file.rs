//! Small commands on a guest's files.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::process::ExitCode;

use lexopt::{Arg, Parser};

use crate::cli::target::Target;
use crate::cli::{Command, Failure, OUR_ERROR, complain, listing, text};
use crate::client::{Connection, Error};
use crate::sys::file::O_RDONLY;
use crate::wire::file::Stat;

pub const LIST: Command = Command {
    name: "ls",
    summary: "list a guest's directories",
    help: "usage: lodger ls [-a] [-l] [--to ADDR] [PATH...]

  -a           hidden names too
  -l           with mode, links, owner, group, size, time (UTC) and the target of links
",
    run: list,
};
pub const CAT: Command = Command {
    name: "cat",
    summary: "print a guest's files",
    help: "usage: lodger cat [--to ADDR] PATH...\n",
    run: cat,
};
pub const STAT: Command = Command {
    name: "stat",
    summary: "print all that is known of a guest's files",
    help: "usage: lodger stat [-L] [--to ADDR] PATH...

  -L           follow links
",
    run: stat,
};
pub const MKDIR: Command = Command {
    name: "mkdir",
    summary: "make directories in a guest",
    help: "usage: lodger mkdir [-p] [-m MODE] [--to ADDR] PATH...

  -p           with those above; one that is there is fine
  -m MODE      octal (default 755)
",
    run: mkdir,
};
pub const REMOVE: Command = Command {
    name: "rm",
    summary: "remove a guest's files",
    help: "usage: lodger rm [-r] [-f] [--to ADDR] PATH...

  -r           directories, with all that is in them; links in them are not followed
  -f           one that is not there is fine
",
    run: remove,
};
pub const MOVE: Command = Command {
    name: "mv",
    summary: "rename a file in a guest",
    help: "usage: lodger mv [--to ADDR] OLD NEW

NEW may be a directory to move into. A file is replaced, a directory never.
",
    run: rename,
};
pub const LINK: Command = Command {
    name: "ln",
    summary: "make a link in a guest",
    help: "usage: lodger ln [-s] [--to ADDR] TARGET LINK

  -s           a symbolic link
",
    run: link,
};
pub const CHMOD: Command = Command {
    name: "chmod",
    summary: "change the permissions of a guest's files",
    help: "usage: lodger chmod [--to ADDR] MODE PATH...

MODE is octal, with setuid, setgid and sticky (4755).
",
    run: chmod,
};
pub const DF: Command = Command {
    name: "df",
    summary: "show how full a guest's file systems are",
    help: "usage: lodger df [--to ADDR] [PATH...]

Without PATH all that are mounted and have blocks.
",
    run: df,
};

/// The arguments of such a command: its flags, the value of `-m`, and paths.
#[derive(Default)]
struct Arguments {
    target: Target,
    flags: Vec<char>,
    mode: Option<u32>,
    paths: Vec<Vec<u8>>,
}

impl Arguments {
    fn read(mut parser: Parser, known: &str) -> Result<Arguments, Failure> {
        let mut arguments = Arguments::default();
        while let Some(argument) = parser.next()? {
            match argument {
                Arg::Long(name) if Target::has(name) => arguments.target.take(name.to_owned(), &mut parser)?,
                Arg::Short('m') if known.contains('m') => arguments.mode = Some(octal(parser.value()?)?),
                Arg::Short(flag) if known.contains(flag) => arguments.flags.push(flag),
                Arg::Value(path) => arguments.paths.push(path.into_vec()),
                other => return Err(other.unexpected().into()),
            }
        }
        Ok(arguments)
    }

    /// The same, for commands that need at least so many paths.
    fn at_least(parser: Parser, known: &str, count: usize) -> Result<Arguments, Failure> {
        let arguments = Arguments::read(parser, known)?;
        let missing = || Failure::new("a path is missing");
        if arguments.paths.len() < count { Err(missing()) } else { Ok(arguments) }
    }

    /// Exactly two paths.
    fn pair(parser: Parser, known: &str) -> Result<(Arguments, Vec<u8>, Vec<u8>), Failure> {
        let mut arguments = Arguments::at_least(parser, known, 2)?;
        match (arguments.paths.pop(), arguments.paths.pop(), arguments.paths.pop()) {
            (Some(second), Some(first), None) => Ok((arguments, first, second)),
            _ => Err(Failure::new("two paths are wanted, no more")),
        }
    }

    fn has(&self, flag: char) -> bool {
        self.flags.contains(&flag)
    }
}

fn octal(value: OsString) -> Result<u32, Failure> {
    let text = text(value)?;
    let mode = u32::from_str_radix(&text, 8).ok().filter(|mode| *mode <= 0o7777);
    mode.ok_or_else(|| Failure::new(format!("mode {text}: no octal number up to 7777")))
}

/// Does something with each path. An error is said and the next path's turn comes; only one of the connection ends it all.
fn each(
    command: &str,
    arguments: &Arguments,
    mut act: impl FnMut(&mut Connection, &[u8]) -> Result<(), Failure>,
) -> Result<ExitCode, Failure> {
    let mut connection = arguments.target.connect()?;
    let mut code = ExitCode::SUCCESS;
    for path in &arguments.paths {
        match act(&mut connection, path) {
            Err(failure) if failure.is_about_one_file => {
                complain(command, &failure.text);
                code = ExitCode::from(OUR_ERROR);
            }
            result => result?,
        }
    }
    connection.close();
    Ok(code)
}

fn list(parser: Parser) -> Result<ExitCode, Failure> {
    let mut arguments = Arguments::read(parser, "al")?;
    if arguments.paths.is_empty() {
        arguments.paths.push(b".".to_vec());
    }
    let many = arguments.paths.len() > 1;
    let (all, long) = (arguments.has('a'), arguments.has('l'));
    each("ls", &arguments, |connection, path| {
        let mut out = io::BufWriter::new(io::stdout().lock());
        let here = connection.lstat(path)?;
        // A link to a directory is listed as what it leads to, as ls(1) does it.
        let is_directory = here.is_directory()
            || (here.is_symlink() && !long && connection.stat(path).is_ok_and(|to| to.is_directory()));
        if !is_directory {
            let named = Stat { name: path.to_vec(), ..here };
            return print_entry(&mut out, connection, &named, path, long);
        }
        if many {
            listing::write_name(&mut out, path)?;
            writeln!(out, ":")?;
        }
        for entry in connection.list(path)?.iter().filter(|entry| all || !entry.name.starts_with(b".")) {
            print_entry(&mut out, connection, entry, &join(path, &entry.name), long)?;
        }
        Ok(out.flush()?)
    })
}

fn print_entry(
    out: &mut impl Write,
    connection: &mut Connection,
    entry: &Stat,
    path: &[u8],
    long: bool,
) -> Result<(), Failure> {
    if long {
        let target = if entry.is_symlink() { connection.read_link(path).ok() } else { None };
        listing::long_line(out, entry, target.as_deref())?;
    } else {
        listing::write_name(out, &entry.name)?;
    }
    Ok(writeln!(out)?)
}

/// A path below a directory.
pub fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let slash: &[u8] = if directory.ends_with(b"/") || directory.is_empty() { b"" } else { b"/" };
    [directory, slash, name].concat()
}

fn cat(parser: Parser) -> Result<ExitCode, Failure> {
    let arguments = Arguments::at_least(parser, "", 1)?;
    each("cat", &arguments, |connection, path| {
        let handle = connection.open_file(path, O_RDONLY, 0)?;
        let mut out = io::stdout().lock();
        let write = |_, data: &[u8]| out.write_all(data).map_err(Error::local("write the output"));
        let result = connection.download(handle, 0, i64::MAX, write);
        connection.close_file(handle)?;
        result.map_err(|error| named(error, path))?;
        Ok(out.flush()?)
    })
}

/// Errors of reads and writes come without the file's name, which the agent knows only by its handle.
pub fn named(error: Error, path: &[u8]) -> Error {
    match error {
        Error::Remote { errno, text } => {
            Error::Remote { errno, text: format!("{}: {text}", String::from_utf8_lossy(path)) }
        }
        other => other,
    }
}

fn stat(parser: Parser) -> Result<ExitCode, Failure> {
    let arguments = Arguments::at_least(parser, "L", 1)?;
    let follow = arguments.has('L');
    each("stat", &arguments, |connection, path| {
        let found = if follow { connection.stat(path)? } else { connection.lstat(path)? };
        let target = if found.is_symlink() { Some(connection.read_link(path)?) } else { None };
        let mut out = io::stdout().lock();
        write!(out, "    path: ")?;
        listing::write_name(&mut out, path)?;
        if let Some(target) = target {
            write!(out, " -> ")?;
            listing::write_name(&mut out, &target)?;
        }
        writeln!(out, "\n    mode: {} ({:04o})", listing::mode(found.mode), found.mode & 0o7777)?;
        writeln!(out, "   owner: {}:{}", found.uid, found.gid)?;
        writeln!(out, "    size: {} bytes, {} blocks of 512", found.size, found.blocks)?;
        writeln!(out, "   links: {}, inode {}", found.links, found.inode)?;
        if found.device != 0 {
            writeln!(out, "  device: {}", listing::device(found.device))?;
        }
        writeln!(out, "accessed: {}", listing::time(found.accessed_ns))?;
        writeln!(out, "modified: {}", listing::time(found.modified_ns))?;
        Ok(writeln!(out, " changed: {}", listing::time(found.changed_ns))?)
    })
}

fn mkdir(parser: Parser) -> Result<ExitCode, Failure> {
    let arguments = Arguments::at_least(parser, "pm", 1)?;
    let (parents, mode) = (arguments.has('p'), arguments.mode.unwrap_or(0o755));
    each("mkdir", &arguments, |connection, path| {
        if parents {
            return Ok(connection.make_directories(path, mode)?);
        }
        Ok(connection.make_directory(path, mode)?)
    })
}

fn remove(parser: Parser) -> Result<ExitCode, Failure> {
    let arguments = Arguments::at_least(parser, "rRf", 1)?;
    let recursive = arguments.has('r') || arguments.has('R');
    let force = arguments.has('f');
    each("rm", &arguments, |connection, path| {
        if matches!(path, b"/" | b"." | b"..") {
            return Err(Failure::about_one_file(format!("remove {}: refused", String::from_utf8_lossy(path))));
        }
        match connection.lstat(path) {
            Err(error) if force && error.is_not_found() => Ok(()),
            Err(error) => Err(error.into()),
            Ok(found) if found.is_directory() && !recursive => {
                let name = String::from_utf8_lossy(path);
                Err(Failure::about_one_file(format!("remove {name}: is a directory (-r removes it)")))
            }
            Ok(found) => Ok(remove_tree(connection, path, &found)?),
        }
    })
}

/// Removes a file, or a directory with all that is in it.
pub fn remove_tree(connection: &mut Connection, path: &[u8], found: &Stat) -> Result<(), Error> {
    if found.is_directory() {
        for entry in connection.list(path)? {
            remove_tree(connection, &join(path, &entry.name), &entry)?;
        }
    }
    connection.remove(path)
}

fn rename(parser: Parser) -> Result<ExitCode, Failure> {
    let (arguments, old, new) = Arguments::pair(parser, "")?;
    let mut connection = arguments.target.connect()?;
    let is_directory = connection.stat(&new).is_ok_and(|found| found.is_directory());
    let into = if is_directory { join(&new, last_component(&old)) } else { new };
    connection.rename(&old, &into)?;
    connection.close();
    Ok(ExitCode::SUCCESS)
}

/// The last component of a path, without slashes behind it; empty for `/`.
pub fn last_component(path: &[u8]) -> &[u8] {
    std::path::Path::new(std::ffi::OsStr::from_bytes(path)).file_name().map_or(b"", OsStrExt::as_bytes)
}

fn link(parser: Parser) -> Result<ExitCode, Failure> {
    let (arguments, target, path) = Arguments::pair(parser, "s")?;
    let mut connection = arguments.target.connect()?;
    if arguments.has('s') {
        connection.symlink(&target, &path)?;
    } else {
        connection.link(&target, &path)?;
    }
    connection.close();
    Ok(ExitCode::SUCCESS)
}

fn chmod(parser: Parser) -> Result<ExitCode, Failure> {
    let mut arguments = Arguments::at_least(parser, "", 2)?;
    let mode = octal(OsString::from_vec(arguments.paths.remove(0)))?;
    each("chmod", &arguments, |connection, path| Ok(connection.change_mode(path, mode)?))
}

fn df(parser: Parser) -> Result<ExitCode, Failure> {
    let mut arguments = Arguments::read(parser, "")?;
    let everything = arguments.paths.is_empty();
    if everything {
        let mut connection = arguments.target.connect()?;
        arguments.paths = mounted(&mut connection)?;
        connection.close();
    }
    writeln!(io::stdout(), "{:>12} {:>12} {:>12} {:>4}  on", "KiB", "used", "free", "use")?;
    each("df", &arguments, |connection, path| {
        let found = match connection.file_system(path) {
            // One that was unmounted meanwhile, or that its owner alone may look at.
            Err(_) if everything => return Ok(()),
            found => found.map_err(|error| named(error, path))?,
        };
        if everything && found.blocks == 0 {
            return Ok(());
        }
        let kib = |blocks: u64| (u128::from(blocks) * u128::from(found.fragment_bytes.max(1)) / 1024) as u64;
        let used = found.blocks.saturating_sub(found.blocks_free);
        let percent = (used * 100).div_ceil((used + found.blocks_available).max(1));
        let (all, used, free) = (kib(found.blocks), kib(used), kib(found.blocks_available));
        let mut out = io::stdout().lock();
        write!(out, "{all:>12} {used:>12} {free:>12} {percent:>3}%  ")?;
        listing::write_name(&mut out, path)?;
        Ok(writeln!(out)?)
    })
}

/// Where something is mounted, from the guest's /proc/mounts; only `/` where that cannot be read.
fn mounted(connection: &mut Connection) -> Result<Vec<Vec<u8>>, Failure> {
    let mut table = Vec::new();
    if let Ok(handle) = connection.open_file(b"/proc/mounts", O_RDONLY, 0) {
        connection.download(handle, 0, i64::MAX, |_, data| {
            table.extend_from_slice(data);
            Ok(())
        })?;
        connection.close_file(handle)?;
    }
    let mut paths: Vec<Vec<u8>> = Vec::new();
    for line in table.split(|byte| *byte == b'\n') {
        // Spaces in names are \040 there; such a place is rare enough to be asked for by name.
        if let Some(path) = line.split(|byte| *byte == b' ').nth(1)
            && !path.contains(&b'\\')
            && !paths.iter().any(|known| known == path)
        {
            paths.push(path.to_vec());
        }
    }
    if paths.is_empty() {
        paths.push(b"/".to_vec());
    }
    Ok(paths)
}
