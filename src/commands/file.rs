//! `file.*`: whole files, put where they belong.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use data_encoding::BASE64;

use crate::commands::arguments::{Arguments, missing};
use crate::commands::{Call, Command, Error, Reply};
use crate::replacement::{self, Old};

pub const INJECT: Command = Command {
    name: "file.inject",
    summary: "put a file into its place, whole or not at all, and keep the one that was there",
    arguments: "\
path: from the root on; directories that are missing are made
content_base64: all of it",
    run: inject,
};

/// Permissions of a file that was not there. One that was keeps its own.
const FILE_MODE: u32 = 0o644;

/// Permissions of directories that were not there.
const DIRECTORY_MODE: u32 = 0o755;

/// The directory of ssh's keys, whose servers refuse them when others may write, or in parts read them.
const PRIVATE_DIRECTORY: &str = ".ssh";
const PRIVATE_FILE_MODE: u32 = 0o600;
const PRIVATE_DIRECTORY_MODE: u32 = 0o700;

/// What became of a file.
#[derive(Debug, PartialEq, Eq)]
pub enum Put {
    New,
    /// It was there with the same content, and was not touched.
    Same,
    /// The old one has this name now.
    Replaced(PathBuf),
}

fn inject(arguments: &mut Arguments, _: &Call) -> Result<Reply, Error> {
    let (path, content) = (arguments.text("path")?, arguments.text("content_base64")?);
    arguments.finish()?;
    let path = path.ok_or_else(|| missing("path"))?;
    let content = content.ok_or_else(|| missing("content_base64"))?;
    let content =
        BASE64.decode(content.as_bytes()).map_err(|error| Error::BadArgument(format!("content_base64: {error}")))?;
    let put = put(Path::new(&path), &content)?;
    let mut reply = Reply::of([("path", path.into()), ("changed", (put != Put::Same).into())]);
    if let Put::Replaced(backup) = put {
        reply.put("backup", backup.to_string_lossy());
    }
    Ok(reply)
}

/// Puts a file into its place. A link is followed, so that it stays one.
///
/// # Errors
/// `BadArgument` for a path that does not begin at the root or names no file; else those of the system. What was there is as it was then.
pub fn put(path: &Path, content: &[u8]) -> Result<Put, Error> {
    let shown = path.display();
    let refused = |why: &str| Err(Error::BadArgument(format!("path {shown}: {why}")));
    let bytes = path.as_os_str().as_bytes();
    match () {
        () if !path.is_absolute() => return refused("does not begin at the root"),
        () if bytes.contains(&0) => return refused("has a NUL in it"),
        () if bytes.ends_with(b"/") || path.file_name().is_none() => return refused("names no file"),
        () => {}
    }
    let system = |error: io::Error| Error::system(&format!("inject {shown}"), &error);
    make_parents(path).map_err(system)?;
    let place = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mode = if is_private(path.parent()) { PRIVATE_FILE_MODE } else { FILE_MODE };
    let done = match fs::symlink_metadata(&place) {
        Ok(found) if !found.is_file() && !found.is_symlink() => return refused("is no regular file"),
        Ok(found) if found.is_file() => {
            if found.len() == content.len() as u64 && fs::read(&place).is_ok_and(|before| before == content) {
                return Ok(Put::Same);
            }
            let backup = backup_name(&place);
            replacement::write(&place, content, mode, Old::KeptAs(&backup)).map(|()| Put::Replaced(backup))
        }
        _ => replacement::write(&place, content, mode, Old::Gone).map(|()| Put::New),
    };
    let done = done.map_err(system)?;
    // Not as it is: a line break in it would make lines of the log.
    log::info!("file {path:?}: injected, {} bytes", content.len());
    Ok(done)
}

/// The directories above a file, each with its own permissions.
fn make_parents(path: &Path) -> io::Result<()> {
    let mut above: Vec<&Path> = path.ancestors().skip(1).take_while(|directory| !directory.exists()).collect();
    while let Some(directory) = above.pop() {
        let mode = if is_private(Some(directory)) { PRIVATE_DIRECTORY_MODE } else { DIRECTORY_MODE };
        replacement::make_parents(&directory.join("x"), mode)?;
    }
    Ok(())
}

fn is_private(directory: Option<&Path>) -> bool {
    directory.and_then(Path::file_name).is_some_and(|name| name == PRIVATE_DIRECTORY)
}

/// `PATH.bak.SECONDS`, with two decimals, as nova-agent has it; a later time where that is taken.
fn backup_name(path: &Path) -> PathBuf {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let mut hundredths = now.as_millis() / 10;
    loop {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".bak.{}.{:02}", hundredths / 100, hundredths % 100));
        let backup = PathBuf::from(name);
        if fs::symlink_metadata(&backup).is_err() {
            return backup;
        }
        hundredths += 1;
    }
}
