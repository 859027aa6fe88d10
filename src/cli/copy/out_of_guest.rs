//! Out of the guest, to here.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::cli::copy::{Copier, Depth, LINKS_MAX, refuse};
use crate::cli::file::{join, named};
use crate::client::Error;
use crate::sys::file::{self, O_RDONLY};
use crate::wire::file::Stat;

impl Copier {
    /// Copies a file, a link or a tree.
    pub fn copy_out(&mut self, source: &[u8], target: &Path, depth: Depth) -> Result<(), Error> {
        let follow = depth == Depth::Named && !self.recursive;
        let found = if follow { self.connection.stat(source)? } else { self.connection.lstat(source)? };
        let shown = format!("guest:{}", String::from_utf8_lossy(source));
        if found.is_directory() && !self.recursive {
            return Err(refuse(&shown, "is a directory (-r copies it)"));
        }
        if found.is_directory() {
            self.tree_out(source, target, &found)
        } else if found.is_symlink() {
            self.link_out(source, target, &found)
        } else if found.is_file() || depth == Depth::Named {
            self.file_out(source, target, &found)
        } else {
            Err(refuse(&shown, "neither file, directory nor link; left out"))
        }
    }

    fn tree_out(&mut self, source: &[u8], target: &Path, found: &Stat) -> Result<(), Error> {
        // Looked at before anything is made: the target may be in there, where the guest shares our files.
        let entries = self.connection.list(source)?;
        let shown = target.display().to_string();
        // A link to a directory is not followed: the guest may have made it, in an earlier copy or a moment ago.
        match fs::symlink_metadata(target) {
            Ok(there) if there.is_dir() => {}
            Ok(_) => return Err(refuse(&shown, "is no directory, and is not replaced by one")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Open for us until its content is there; its own mode comes last.
                fs::DirBuilder::new().mode(0o700).create(target).map_err(Error::local(&shown))?;
            }
            Err(error) => return Err(Error::Local { what: shown, error }),
        }
        for entry in entries {
            // A guest must not make us write outside of the target.
            if entry.name.is_empty() || entry.name.contains(&b'/') || matches!(&entry.name[..], b"." | b"..") {
                return Err(Error::Protocol(format!(
                    "a listing with the name {:?}",
                    String::from_utf8_lossy(&entry.name)
                )));
            }
            let below = target.join(OsStr::from_bytes(&entry.name));
            let result = self.copy_out(&join(source, &entry.name), &below, Depth::Found);
            self.report(result)?;
        }
        settle(target, found)
    }

    fn link_out(&mut self, source: &[u8], target: &Path, found: &Stat) -> Result<(), Error> {
        let leads_to = self.connection.read_link(source)?;
        let shown = target.display().to_string();
        if fs::symlink_metadata(target).is_ok_and(|there| there.is_dir()) {
            return Err(refuse(&shown, "is a directory, and is not replaced by a link"));
        }
        let temporary = temporary_name(target);
        let _ = fs::remove_file(&temporary);
        std::os::unix::fs::symlink(OsStr::from_bytes(&leads_to), &temporary).map_err(Error::local(&shown))?;
        self.progress.file();
        let timed = file::set_times(&temporary, found.accessed_ns, found.modified_ns, false);
        let result = timed.and_then(|()| fs::rename(&temporary, target));
        if result.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        result.map_err(Error::local(&shown))
    }

    fn file_out(&mut self, source: &[u8], target: &Path, found: &Stat) -> Result<(), Error> {
        let shown = target.display().to_string();
        // A link here is replaced. A guest that made it in an earlier copy must not choose which of our files is written.
        let there = fs::symlink_metadata(target).ok();
        match &there {
            Some(there) if there.is_dir() => {
                return Err(refuse(&shown, "is a directory, and is not replaced by a file"));
            }
            Some(there) if !there.is_file() && !there.is_symlink() => {
                return Err(refuse(&shown, "is neither file nor link, and is not replaced"));
            }
            _ => {}
        }
        let handle = self.connection.open_file(source, O_RDONLY, 0)?;
        let create = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary_name(target));
        let result = match create {
            Ok(output) => self.whole_file_out(source, handle, &output, target, found),
            // Where nothing can be created beside it (/proc, /sys, a foreign directory) a file that is there is written itself.
            Err(error) if there.is_some_and(|there| there.is_file()) && is_about_the_directory(&error) => {
                let output = OpenOptions::new().write(true).truncate(true).open(target).map_err(Error::local(&shown));
                output.and_then(|output| self.data_out(source, handle, Output::Stream(&output), &shown))
            }
            Err(error) => Err(Error::Local { what: format!("create {shown}"), error }),
        };
        let closed = self.connection.close_file(handle);
        self.progress.file();
        result.and(closed)
    }

    /// Writes a file's bytes to a device or pipe, or to whatever stdout is.
    pub fn stream_out(&mut self, source: &[u8], target: &Path) -> Result<(), Error> {
        let shown = target.display().to_string();
        if self.connection.stat(source)?.is_directory() {
            let source = String::from_utf8_lossy(source);
            return Err(refuse(&format!("guest:{source}"), &format!("is a directory, and does not go into {shown}")));
        }
        let output = match is_stdout(target) {
            true => io::stdout().as_fd().try_clone_to_owned().map(File::from),
            false => OpenOptions::new().write(true).open(target),
        };
        let output = output.map_err(Error::local(&shown))?;
        let handle = self.connection.open_file(source, O_RDONLY, 0)?;
        let result = self.data_out(source, handle, Output::Stream(&output), &shown);
        let closed = self.connection.close_file(handle);
        result.and(closed)
    }

    /// Fills the new file beside the target, and gives it its name.
    fn whole_file_out(
        &mut self,
        source: &[u8],
        handle: u32,
        output: &File,
        target: &Path,
        found: &Stat,
    ) -> Result<(), Error> {
        let shown = target.display().to_string();
        let temporary = temporary_name(target);
        let result = self.data_out(source, handle, Output::File(output), &shown);
        let result = result.and_then(|()| settle(&temporary, found));
        let result = result.and_then(|()| fs::rename(&temporary, target).map_err(Error::local(&shown)));
        if result.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        result
    }

    /// Takes what is in the file, but for its holes.
    fn data_out(&mut self, source: &[u8], handle: u32, output: Output, shown: &str) -> Result<(), Error> {
        let answer = self.connection.file(crate::wire::file::FileRequest {
            op: crate::wire::file::op::FSTAT,
            handle,
            ..Default::default()
        })?;
        let found = answer.stat.unwrap_or_default();
        let has_holes = found.is_file() && found.blocks.saturating_mul(512) < found.size && found.size > 0;
        let (Output::File(file), true) = (output, has_holes) else {
            self.take_range(source, handle, output, 0, i64::MAX, shown)?;
            return Ok(());
        };
        let mut offset = 0;
        loop {
            let range = match self.connection.next_data(handle, offset) {
                // A file system that has files without blocks and cannot tell where their data is: /proc, /sys.
                Err(Error::Remote { .. }) if offset == 0 => Some((0, i64::MAX)),
                range => range?,
            };
            let Some((start, end)) = range else { break };
            offset = self.take_range(source, handle, output, start, end, shown)?;
            if offset < end {
                return file.set_len(offset as u64).map_err(Error::local(shown));
            }
        }
        file.set_len(found.size as u64).map_err(Error::local(shown))
    }

    fn take_range(
        &mut self,
        source: &[u8],
        handle: u32,
        output: Output,
        start: i64,
        end: i64,
        shown: &str,
    ) -> Result<i64, Error> {
        let Copier { connection, progress, interrupt, .. } = self;
        let take = |offset: i64, data: &[u8]| {
            interrupt.check().map_err(Error::local(shown))?;
            progress.bytes(shown, data.len());
            let written = match output {
                Output::File(file) => file.write_all_at(data, offset as u64),
                Output::Stream(mut file) => file.write_all(data),
            };
            written.map_err(Error::local(shown))
        };
        connection.download(handle, start, end, take).map_err(|error| named(error, source))
    }
}

/// Where a file's bytes go.
#[derive(Clone, Copy)]
enum Output<'a> {
    /// A new file: each byte at its place, and holes stay holes.
    File(&'a File),
    /// Something that takes them one after the other.
    Stream(&'a File),
}

fn is_about_the_directory(error: &io::Error) -> bool {
    use io::ErrorKind::{NotFound, PermissionDenied, ReadOnlyFilesystem};
    matches!(error.kind(), NotFound | PermissionDenied | ReadOnlyFilesystem)
}

fn is_stdout(path: &Path) -> bool {
    ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"].iter().any(|name| path == Path::new(name))
}

/// Whether a destination takes bytes as they come, and is never replaced.
pub fn is_stream(path: &Path) -> bool {
    is_stdout(path) || fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir())
}

/// The file that a link stands for, there or not, so that the file is replaced and not the link.
pub fn behind_links(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        let Ok(leads_to) = fs::read_link(&path) else { break };
        path = path.parent().unwrap_or(Path::new("")).join(leads_to);
    }
    path
}

/// Gives a complete file or directory its mode and times.
fn settle(path: &Path, found: &Stat) -> Result<(), Error> {
    let shown = || path.display().to_string();
    // A file out of a guest must not act as whoever copies it; a folder's bits only rule what is made in it.
    let kept = if found.is_directory() { 0o7777 } else { 0o1777 };
    fs::set_permissions(path, Permissions::from_mode(found.mode & kept)).map_err(Error::local(shown()))?;
    file::set_times(path, found.accessed_ns, found.modified_ns, false).map_err(Error::local(shown()))
}

/// A name beside the target that no other copy uses.
fn temporary_name(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_default().as_bytes();
    // Cut, so that it is no longer than names may be (255 bytes).
    let name = &name[..name.len().min(200)];
    let suffix = format!(".lodger-{}", std::process::id());
    target.with_file_name(OsStr::from_bytes(&[b".", name, suffix.as_bytes()].concat()))
}
