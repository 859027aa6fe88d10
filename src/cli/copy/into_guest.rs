//! From here into the guest.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::cli::copy::{Copier, Depth, LINKS_MAX, refuse};
use crate::cli::file::{join, last_component, named};
use crate::client::Error;
use crate::sys::fd;
use crate::sys::file::{self, EACCES, ENOENT, EPERM, EROFS, O_CREAT, O_EXCL, O_TRUNC, O_WRONLY};

impl Copier {
    /// Copies a file, a link or a tree.
    pub fn copy_in(&mut self, source: &Path, target: &[u8], depth: Depth) -> Result<(), Error> {
        let shown = source.display().to_string();
        let looked =
            if depth == Depth::Named && !self.recursive { fs::metadata(source) } else { fs::symlink_metadata(source) };
        let found = looked.map_err(Error::local(&shown))?;
        if found.is_dir() && !self.recursive {
            return Err(refuse(&shown, "is a directory (-r copies it)"));
        }
        if found.is_dir() {
            self.tree_in(source, target, &found)
        } else if found.is_symlink() {
            self.link_in(source, target)
        } else if found.is_file() || depth == Depth::Named {
            self.file_in(source, target, &found)
        } else {
            Err(refuse(&shown, "neither file, directory nor link; left out"))
        }
    }

    fn tree_in(&mut self, source: &Path, target: &[u8], found: &Metadata) -> Result<(), Error> {
        // Looked at before anything is made: the target may be in here, where the guest shares our files.
        let shown = source.display().to_string();
        let entries = fs::read_dir(source).map_err(Error::local(&shown))?;
        let names = entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<Vec<_>>>();
        let mut names = names.map_err(Error::local(&shown))?;
        names.sort();
        match self.connection.stat(target) {
            Ok(there) if there.is_directory() => {}
            Ok(_) => return Err(refuse(&guest(target), "is no directory, and is not replaced by one")),
            // Open for us until its content is there; its own mode comes last.
            Err(error) if error.is_not_found() => self.connection.make_directory(target, 0o700)?,
            Err(error) => return Err(error),
        }
        for name in names {
            let result = self.copy_in(&source.join(&name), &join(target, name.as_bytes()), Depth::Found);
            self.report(result)?;
        }
        self.connection.change_mode(target, found.mode() & 0o7777)?;
        self.connection.set_times(
            target,
            time(found.atime(), found.atime_nsec()),
            time(found.mtime(), found.mtime_nsec()),
        )
    }

    fn link_in(&mut self, source: &Path, target: &[u8]) -> Result<(), Error> {
        let leads_to = fs::read_link(source).map_err(Error::local(source.display().to_string()))?;
        if self.connection.lstat(target).is_ok_and(|there| there.is_directory()) {
            return Err(refuse(&guest(target), "is a directory, and is not replaced by a link"));
        }
        let found = fs::symlink_metadata(source).map_err(Error::local(source.display().to_string()))?;
        let (accessed, modified) = (time(found.atime(), found.atime_nsec()), time(found.mtime(), found.mtime_nsec()));
        let temporary = temporary_name(target);
        let _ = self.connection.remove(&temporary);
        self.connection.symlink(leads_to.as_os_str().as_bytes(), &temporary)?;
        let timed = self.connection.set_times(&temporary, accessed, modified);
        let result = timed.and_then(|()| self.connection.rename(&temporary, target));
        if result.is_err() {
            let _ = self.connection.remove(&temporary);
        }
        self.progress.file();
        result
    }

    fn file_in(&mut self, source: &Path, target: &[u8], found: &Metadata) -> Result<(), Error> {
        let input = File::open(source).map_err(Error::local(source.display().to_string()))?;
        let target = self.behind_links(target)?;
        let there = match self.connection.lstat(&target) {
            Ok(there) => Some(there),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error),
        };
        if there.as_ref().is_some_and(|there| there.is_directory()) {
            return Err(refuse(&guest(&target), "is a directory, and is not replaced by a file"));
        }
        // A device or pipe is written to, not replaced.
        let in_place = there.as_ref().is_some_and(|there| !there.is_file());
        let temporary = temporary_name(&target);
        let opened = match in_place {
            true => None,
            false => match self.connection.open_file(&temporary, O_WRONLY | O_CREAT | O_EXCL, 0o600) {
                Ok(handle) => Some(handle),
                // Where nothing can be created beside it (/proc, /sys, a foreign directory) a file that is there is written itself.
                Err(Error::Remote { errno, .. })
                    if there.is_some() && [EACCES, EPERM, EROFS, ENOENT].contains(&errno) =>
                {
                    None
                }
                Err(Error::Remote { errno, .. }) => {
                    let why = crate::sys::errno::text(errno);
                    return Err(Error::Remote { errno, text: format!("create {}: {why}", guest(&target)) });
                }
                Err(error) => return Err(error),
            },
        };
        let Some(handle) = opened else {
            let handle = self.connection.open_file(&target, O_WRONLY | O_TRUNC, 0)?;
            let result = self.data_in(&input, handle, found, &target);
            self.connection.close_file(handle)?;
            return result;
        };
        let result = self.data_in(&input, handle, found, &target);
        let result =
            result.and(self.connection.close_file(handle)).and_then(|()| self.settle_in(&temporary, &target, found));
        if result.is_err() {
            let _ = self.connection.remove(&temporary);
        }
        self.progress.file();
        result
    }

    /// Gives the complete file its mode, times and name.
    fn settle_in(&mut self, temporary: &[u8], target: &[u8], found: &Metadata) -> Result<(), Error> {
        self.connection.change_mode(temporary, found.mode() & 0o7777)?;
        let modified = time(found.mtime(), found.mtime_nsec());
        self.connection.set_times(temporary, time(found.atime(), found.atime_nsec()), modified)?;
        self.connection.rename(temporary, target)
    }

    /// Sends what is in the file, but for its holes.
    fn data_in(&mut self, input: &File, handle: u32, found: &Metadata, target: &[u8]) -> Result<(), Error> {
        let shown = guest(target);
        let has_holes = found.is_file() && found.blocks() * 512 < found.size();
        if !has_holes {
            // What grew or shrank meanwhile is as it was when we came to its end.
            self.send_range(input, handle, 0, i64::MAX, &shown)?;
            return Ok(());
        }
        let mut offset = 0;
        while let Some((start, end)) = file::next_data(input.as_fd(), offset).map_err(Error::local(&shown))? {
            offset = self.send_range(input, handle, start, end, &shown)?;
            if offset < end {
                break;
            }
        }
        self.connection.resize(handle, found.size() as i64).map_err(|error| named(error, target))
    }

    fn send_range(&mut self, input: &File, handle: u32, start: i64, end: i64, shown: &str) -> Result<i64, Error> {
        let Copier { connection, progress, interrupt, .. } = self;
        let seekable = input.metadata().is_ok_and(|found| found.is_file());
        let give = |bytes: &mut Vec<u8>, offset: i64, limit: usize| {
            let count = match seekable {
                true => fd::pread_append(input.as_fd(), bytes, limit, offset)?,
                false => fd::read_append(input.as_fd(), bytes, limit)?,
            };
            interrupt.check()?;
            progress.bytes(shown, count);
            Ok(count)
        };
        connection.upload(handle, start, end, give).map_err(|error| named(error, shown.as_bytes()))
    }

    /// The file that a link stands for, so that the file is replaced and not the link.
    fn behind_links(&mut self, path: &[u8]) -> Result<Vec<u8>, Error> {
        let mut path = path.to_vec();
        for _ in 0..LINKS_MAX {
            match self.connection.lstat(&path) {
                Ok(there) if there.is_symlink() => {
                    let leads_to = self.connection.read_link(&path)?;
                    let above = path.len() - last_component(&path).len();
                    path = if leads_to.starts_with(b"/") { leads_to } else { [&path[..above], &leads_to].concat() };
                }
                _ => return Ok(path),
            }
        }
        Err(refuse(&guest(&path), "too many links"))
    }
}

/// A name beside the target that no other copy uses.
fn temporary_name(target: &[u8]) -> Vec<u8> {
    let name = last_component(target);
    let above = target.len() - target.iter().rev().take_while(|byte| **byte == b'/').count() - name.len();
    // Cut, so that it is no longer than names may be (255 bytes).
    let name = &name[..name.len().min(200)];
    [&target[..above], b".", name, format!(".lodger-{}", std::process::id()).as_bytes()].concat()
}

fn guest(path: &[u8]) -> String {
    format!("guest:{}", String::from_utf8_lossy(path))
}

fn time(seconds: i64, ns: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(ns)
}
