//! Fetching a file from the guest of a running host of the metadata service.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use lexopt::Parser;

use crate::cli::metadata_commands::{Words, failed, heeded};
use crate::cli::output::Output;
use crate::cli::{Failure, text};
use crate::metadata::actions::Store;
use crate::metadata::control::{self as metadata, Control};
use crate::sys::fd;
use crate::sys::signal::{self, SIGHUP, SIGINT, SIGTERM};
use crate::sys::{errno, random};

/// Symbolic links that lead to one another, as many as the kernel follows.
const LINKS_MAX: usize = 40;

/// Where a file goes.
enum Place {
    /// To stdout.
    Stdout,
    /// Into a pipe or a device.
    Through(PathBuf),
    /// In the place of a file with these permissions, or where none is.
    File(PathBuf, Option<Permissions>),
}

pub fn get(parser: Parser) -> Result<ExitCode, Failure> {
    let mut words = Words::read(parser, false)?;
    let [remote, local] = <[OsString; 2]>::try_from(std::mem::take(&mut words.words))
        .map_err(|_| Failure::new("get wants the guest's path, and one of ours or -"))?;
    let (remote, local) = (text(remote)?, PathBuf::from(local));
    let named = |failure: Failure| Failure { text: format!("get {remote}: {}", failure.text), ..failure };
    let place = place(&remote, &local).map_err(named)?;
    let kept = Kept::watched().map_err(|error| named(about(&local, &error)))?;
    let control = words.connect()?;
    match place {
        Place::Stdout => through(control, &remote, &local, Output::stdout)?,
        Place::Through(path) => {
            let open = || OpenOptions::new().write(true).open(&path).map(Output::from);
            through(control, &remote, &local, open)?;
        }
        Place::File(target, permissions) => {
            let mut file = kept.create(&beside(&target)?).map_err(|error| named(about(&local, &error)))?;
            if let Some(permissions) = permissions {
                file.set_permissions(permissions).map_err(|error| named(about(&local, &error)))?;
            }
            control.get(&remote, &mut file).map_err(|error| fetching(&remote, &local, error))?;
            kept.rename(&target).map_err(|error| named(about(&local, &error)))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A pipe or a device, which gets each piece as it comes. It is opened with the first one: a file that is not there opens nothing.
struct Through<F> {
    open: F,
    output: Option<Output>,
    /// Bytes that have gone on, and cannot be taken back.
    written: u64,
}

impl<F: Fn() -> io::Result<Output> + Send> Through<F> {
    fn output(&mut self) -> io::Result<&mut Output> {
        let output = self.output.take().map_or_else(&self.open, Ok)?;
        Ok(self.output.insert(output))
    }
}

impl<F: Fn() -> io::Result<Output> + Send> Store for Through<F> {
    fn begin(&mut self) -> io::Result<()> {
        match self.written {
            0 => Ok(()),
            written => Err(io::Error::other(format!("the file broke off behind {written} bytes, which are written"))),
        }
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.output()?.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}

/// Fetches it to where nothing can be taken back: one attempt may have bytes.
fn through(
    control: Control,
    remote: &str,
    local: &Path,
    open: impl Fn() -> io::Result<Output> + Send,
) -> Result<(), Failure> {
    let mut store = Through { open, output: None, written: 0 };
    match control.get(remote, &mut store) {
        Err(metadata::Error::Local(error)) if error.kind() == io::ErrorKind::BrokenPipe && local == Path::new("-") => {
            Err(error.into())
        }
        Err(error) => Err(fetching(remote, local, error)),
        // Whoever reads waits for somebody to open it, also when nothing comes.
        Ok(()) => store.output().map(drop).map_err(|error| about(local, &error)),
    }
}

fn place(remote: &str, local: &Path) -> Result<Place, Failure> {
    let bytes = local.as_os_str().as_bytes();
    if bytes == b"-" {
        return Ok(Place::Stdout);
    }
    if bytes.is_empty() {
        return Err(Failure::new("an empty name is no file of ours; say which"));
    }
    let is_folder = local.is_dir();
    if !is_folder && bytes.ends_with(b"/") {
        return Err(Failure::new(format!("{}: there is no such directory", local.display())));
    }
    let target = if is_folder { local.join(last_name(remote)?) } else { local.to_owned() };
    let target = followed(target).map_err(|error| about(local, &error))?;
    match fs::metadata(&target) {
        Ok(found) if found.is_file() => {
            // As after a write, which takes the other bits away.
            let permissions = Permissions::from_mode(found.permissions().mode() & 0o777);
            Ok(Place::File(target, Some(permissions)))
        }
        Ok(found) if found.is_dir() => Err(Failure::new(format!("{}: is a directory", target.display()))),
        Ok(_) => Ok(Place::Through(target)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Place::File(target, None)),
        Err(error) => Err(about(&target, &error)),
    }
}

/// What a path leads to by its symbolic links, if only by its last name; whether that is there or not.
fn followed(mut path: PathBuf) -> io::Result<PathBuf> {
    for _ in 0..LINKS_MAX {
        if !fs::symlink_metadata(&path).is_ok_and(|found| found.is_symlink()) {
            return Ok(path);
        }
        let target = fs::read_link(&path)?;
        path = path.parent().map_or_else(|| target.clone(), |folder| folder.join(&target));
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "too many levels of symbolic links"))
}

/// The name that a file has in its folder, on whatever system.
fn last_name(remote: &str) -> Result<&str, Failure> {
    let name = remote.rsplit(['/', '\\']).next().filter(|name| !matches!(*name, "" | "." | ".."));
    name.ok_or_else(|| Failure::new("this is no name for a file; say which"))
}

/// A name for a file that is not complete, as short for every file.
fn beside(target: &Path) -> Result<PathBuf, Failure> {
    Ok(target.with_file_name(hidden_name()?))
}

fn hidden_name() -> Result<String, Failure> {
    let bytes: [u8; 8] = random::getrandom()?;
    Ok(format!(".lodger-{:016x}", u64::from_ne_bytes(bytes)))
}

fn about(path: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("{}: {}", path.display(), errno::describe(error)))
}

fn fetching(remote: &str, local: &Path, error: metadata::Error) -> Failure {
    match error {
        metadata::Error::Local(error) if local == Path::new("-") => {
            Failure::new(format!("get {remote}: {}", errno::describe(&error)))
        }
        metadata::Error::Local(error) => {
            Failure::new(format!("get {remote}: {}: {}", local.display(), errno::describe(&error)))
        }
        metadata::Error::NotFound => {
            Failure::new(format!("get {remote}: the guest has no such file, or no regular one"))
        }
        error => failed(&format!("get {remote}"), &error),
    }
}

/// The file that is not complete. It is removed with this, and when a signal ends the process, which is done in a thread: nothing else is
/// to be waited for then.
struct Kept {
    path: Arc<Mutex<Option<PathBuf>>>,
}

impl Kept {
    fn watched() -> io::Result<Kept> {
        let signals = signal::into_pipe(&heeded(&[SIGINT, SIGTERM, SIGHUP]))?;
        let kept = Kept { path: Arc::default() };
        let path = Arc::clone(&kept.path);
        thread::Builder::new().spawn(move || {
            while fd::wait_for(signals.as_fd(), fd::READ, None).is_ok() {
                if let Some(number) = signal::take(&signals).first() {
                    // Nobody makes or renames it from here on.
                    let path = path.lock().unwrap_or_else(PoisonError::into_inner);
                    path.iter().for_each(|path| drop(fs::remove_file(path)));
                    process::exit(128 + number);
                }
            }
        })?;
        Ok(kept)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        let mut kept = self.path();
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        *kept = Some(path.to_owned());
        Ok(file)
    }

    fn remove(&self) {
        if let Some(path) = self.path().take() {
            let _ = fs::remove_file(path);
        }
    }

    /// It is complete: puts it into its place.
    fn rename(&self, target: &Path) -> io::Result<()> {
        let mut kept = self.path();
        kept.as_ref().map_or(Ok(()), |path| fs::rename(path, target))?;
        *kept = None;
        Ok(())
    }

    fn path(&self) -> MutexGuard<'_, Option<PathBuf>> {
        self.path.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.remove();
    }
}
