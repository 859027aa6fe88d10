//! A file replaced by another one of the same name, so that whoever looks sees the old one or the new one, whenever this ends.
//!
//! The new file is written beside the old one under a name that nobody else has, gets its mode, owner and security label, and is on the disk
//! before it takes the name; the directory is after it. A symbolic link is replaced as such: who wants its target resolves it before.

use std::ffi::OsString;
use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use crate::sys::file::{self, O_CREAT, O_EXCL, O_WRONLY};
use crate::sys::random;

/// The attribute that holds what SELinux calls a file. A shadow file without its label locks everybody out.
const LABEL: &str = "security.selinux";

/// What becomes of the old file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Old<'a> {
    Gone,
    /// It gets this name, on the same file system; what had that name is gone.
    KeptAs(&'a Path),
}

/// Puts a file in the place of another one, whose mode, owner and label it gets; a file that was not there gets `mode` and is ours.
///
/// # Errors
/// Of the calls on the way, with the old file as it was. `InvalidInput` when something else than a file stands there.
pub fn write(path: &Path, content: &[u8], mode: u32, old: Old) -> io::Result<()> {
    let before = match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() => Some(found),
        Ok(found) if found.is_symlink() => None,
        Ok(_) => return Err(io::Error::new(io::ErrorKind::InvalidInput, "is no regular file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let (temporary, file) = create_beside(path)?;
    let result = fill(&file, content, mode, path, before.as_ref()).and_then(|()| {
        let moved = match (old, &before) {
            (Old::KeptAs(backup), Some(_)) => keep(path, backup)?.then_some(backup),
            _ => None,
        };
        fs::rename(&temporary, path).inspect_err(|_| {
            if let Some(moved) = moved {
                let _ = fs::rename(moved, path);
            }
        })
    });
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result.and_then(|()| sync_directory(path))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A new file that only we can read, under a name that begins with a dot, so that no pattern of a configuration directory finds it.
fn create_beside(path: &Path) -> io::Result<(PathBuf, File)> {
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "names no file"))?;
    loop {
        let random = u64::from_ne_bytes(random::getrandom()?);
        let mut hidden = OsString::from(".");
        // The longest names leave no room for more.
        hidden.push(if name.len() > 200 { "lodger".as_ref() } else { name });
        hidden.push(format!(".{random:016x}"));
        let beside = parent(path).join(hidden);
        match file::open(&beside, O_WRONLY | O_CREAT | O_EXCL, 0o600) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => return result.map(|file| (beside, file)),
        }
    }
}

fn fill(mut file: &File, content: &[u8], mode: u32, path: &Path, before: Option<&Metadata>) -> io::Result<()> {
    file.write_all(content)?;
    if let Some(before) = before {
        let own = file.metadata()?;
        if (own.uid(), own.gid()) != (before.uid(), before.gid()) {
            fchown(file, Some(before.uid()), Some(before.gid()))?;
        }
        match file::attribute(path, LABEL) {
            Ok(Some(label)) => file::set_attribute(file, LABEL, &label)?,
            Ok(None) => {}
            Err(error) => return Err(error),
        }
    }
    // Behind the owner, whose change takes bits away.
    file.set_permissions(Permissions::from_mode(before.map_or(mode, |before| before.mode() & 0o7777)))?;
    file.sync_all()
}

/// A second name for the old file; where there are no links, a copy would not be the same moment, and the old file is moved: then true.
fn keep(path: &Path, backup: &Path) -> io::Result<bool> {
    match fs::remove_file(backup) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    match fs::hard_link(path, backup) {
        Ok(()) => Ok(false),
        Err(_) => fs::rename(path, backup).map(|()| true),
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    match File::open(parent(path))?.sync_all() {
        // Some file systems have no such thing for directories.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("lodger-replacement-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir(&path).expect("a folder");
            Folder(path)
        }

        fn names(&self) -> Vec<String> {
            let names = fs::read_dir(&self.0).expect("a folder");
            let mut names: Vec<String> =
                names.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            names
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("a file").mode() & 0o7777
    }

    #[test]
    fn a_file_is_replaced_with_its_mode_and_the_old_one_kept() {
        let folder = Folder::new("replaced");
        let path = folder.0.join("file");
        write(&path, b"one", 0o640, Old::Gone).expect("a new file");
        assert_eq!((fs::read(&path).expect("it"), mode(&path)), (b"one".to_vec(), 0o640));
        fs::set_permissions(&path, Permissions::from_mode(0o4751)).expect("a mode");
        let backup = folder.0.join("file.old");
        fs::write(&backup, "older").expect("a file in the way");
        write(&path, b"two", 0o640, Old::KeptAs(&backup)).expect("a replacement");
        assert_eq!((fs::read(&path).expect("it"), mode(&path)), (b"two".to_vec(), 0o4751));
        assert_eq!(fs::read(&backup).expect("the old one"), b"one");
        assert_eq!(folder.names(), ["file", "file.old"]);
    }

    #[test]
    fn what_cannot_be_replaced_is_left_alone() {
        let folder = Folder::new("refused");
        assert_eq!(write(&folder.0, b"x", 0o600, Old::Gone).expect_err("a folder").kind(), io::ErrorKind::InvalidInput);
        let missing = folder.0.join("missing/file");
        assert_eq!(write(&missing, b"x", 0o600, Old::Gone).expect_err("no folder").kind(), io::ErrorKind::NotFound);
        let path = folder.0.join("file");
        fs::write(&path, "old").expect("a file");
        let blocked = folder.0.join("folder");
        fs::create_dir(&blocked).expect("a folder");
        write(&path, b"new", 0o600, Old::KeptAs(&blocked)).expect_err("a backup over a folder");
        assert_eq!(fs::read(&path).expect("it"), b"old");
        assert_eq!(folder.names(), ["file", "folder"]);
        let long = folder.0.join("n".repeat(255));
        write(&long, b"x", 0o600, Old::Gone).expect("the longest name");
    }

    #[test]
    fn a_link_is_replaced_and_its_target_is_not_touched() {
        let folder = Folder::new("link");
        let (target, link) = (folder.0.join("target"), folder.0.join("link"));
        fs::write(&target, "t").expect("a file");
        std::os::unix::fs::symlink("target", &link).expect("a link");
        write(&link, b"l", 0o600, Old::Gone).expect("a replacement");
        assert_eq!((fs::read(&target).expect("it"), fs::read(&link).expect("it")), (b"t".to_vec(), b"l".to_vec()));
        assert!(fs::symlink_metadata(&link).expect("it").is_file());
    }
}
