//! `file.*`: whole files, put where they belong.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, lchown};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use data_encoding::BASE64;

use crate::commands::arguments::{Arguments, missing};
use crate::commands::{Call, Command, Error, Reply};
use crate::replacement::{self, Old};
use crate::sys;
use crate::sys::file::ELOOP;
use crate::sys::process::effective_user;

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

/// Links that are followed in one path: the kernel's number.
const LINKS_MAX: u32 = 40;

/// Held while a file is put into place.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

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

/// Puts a file into its place. Links are followed, so that they stay what they are, if they are root's or ours: by one of his own a user
/// could have his file put where he may not write.
///
/// # Errors
/// `BadArgument` for a path that does not begin at the root or names no file, `Denied` for a link of somebody else; else those of the
/// system. What was there is as it was then.
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
    // Two of them with one path would lose a file between them.
    let _one_at_a_time = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let system = |error: io::Error| Error::system(&format!("inject {shown}"), &error);
    let real = resolved(path).map_err(system)?;
    let owner = make_parents(&real).map_err(system)?;
    let (Some(parent), Some(name)) = (real.parent(), real.file_name()) else { return refused("names no file") };
    // From here on nobody can lead us away by a link that he puts there now.
    let parent_fd = sys::file::open_directory_without_links(parent).map_err(system)?;
    let within = PathBuf::from(format!("/proc/self/fd/{}", parent_fd.as_raw_fd())).join(name);
    let mode = if is_private(Some(parent)) { PRIVATE_FILE_MODE } else { FILE_MODE };
    let done = match fs::symlink_metadata(&within) {
        Ok(found) if !found.is_file() => return refused("is no regular file"),
        Ok(found) => {
            if found.len() == content.len() as u64 && fs::read(&within).is_ok_and(|before| before == content) {
                return Ok(Put::Same);
            }
            let backup = backup_name(&within);
            let kept = replacement::write(&within, content, mode, Old::KeptAs(&backup));
            kept.map(|()| Put::Replaced(parent.join(backup.file_name().unwrap_or_default())))
        }
        Err(_) => {
            let new = replacement::write(&within, content, mode, Old::Gone);
            new.and_then(|()| own(&within, owner)).map(|()| Put::New)
        }
    };
    let done = done.map_err(system)?;
    // Not as it is: a line break in it would make lines of the log.
    log::info!("file {path:?}: injected, {} bytes", content.len());
    Ok(done)
}

/// The path without links, as far as it is there.
fn resolved(path: &Path) -> io::Result<PathBuf> {
    let mut todo: VecDeque<OsString> = path.components().map(|part| part.as_os_str().to_owned()).collect();
    let (mut real, mut links) = (PathBuf::from("/"), 0);
    while let Some(part) = todo.pop_front() {
        match part.as_bytes() {
            b"/" => real = PathBuf::from("/"),
            b"." => {}
            b".." => _ = real.pop(),
            _ => {
                let next = real.join(&part);
                let found = match fs::symlink_metadata(&next) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    found => found.ok().filter(|found| found.is_symlink()),
                };
                let Some(link) = found else {
                    real = next;
                    continue;
                };
                links += 1;
                if links > LINKS_MAX {
                    return Err(io::Error::from_raw_os_error(ELOOP));
                }
                if ![0, effective_user()].contains(&link.uid()) {
                    let why = format!("{} is a link of user {}", next.display(), link.uid());
                    return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
                }
                let target = fs::read_link(&next)?;
                target.components().rev().for_each(|part| todo.push_front(part.as_os_str().to_owned()));
            }
        }
    }
    Ok(real)
}

/// The directories above a file, each with its own permissions. Whose new ones are, and so a new file: whose the one is that was there.
fn make_parents(path: &Path) -> io::Result<(u32, u32)> {
    let mut above: Vec<&Path> = path.ancestors().skip(1).take_while(|directory| !directory.exists()).collect();
    let there = path.ancestors().skip(1).find(|directory| directory.exists()).unwrap_or(Path::new("/"));
    let owner = fs::metadata(there).map(|found| (found.uid(), found.gid()))?;
    while let Some(directory) = above.pop() {
        let mode = if is_private(Some(directory)) { PRIVATE_DIRECTORY_MODE } else { DIRECTORY_MODE };
        DirBuilder::new().mode(mode).create(directory)?;
        own(directory, owner)?;
    }
    Ok(owner)
}

/// Gives a new file or directory to a user in whose directory it stands. Only root can, and may have to: ssh reads keys as their user.
fn own(path: &Path, (user, group): (u32, u32)) -> io::Result<()> {
    if effective_user() == 0 && user != 0 { lchown(path, Some(user), Some(group)) } else { Ok(()) }
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
