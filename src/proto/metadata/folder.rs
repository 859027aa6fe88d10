//! The list of all plain files below a folder, as the host wants it.
//!
//! In the order of names, folder after folder. Links are not followed, but for one that is asked for with a slash at its end. Each path
//! begins with what was asked for, letter by letter, because the host cuts that off.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::http::wait::{STOPPED, is_stop};
use crate::metaservice::RESPONSE_MAX;

/// Bytes of the longest list, with its frame.
const LIST_MAX: usize = RESPONSE_MAX;

const END: &str = r#"],"notFound":false}"#;

/// Names that are read between two questions whether anybody still wants them.
const STOP_EVERY: usize = 256;

const NOT_FOUND: &str = r#"{"files":[],"notFound":true}"#;

/// What becomes of a list.
#[derive(Debug, PartialEq, Eq)]
pub enum Listed {
    /// The answer, as JSON.
    Whole(String),
    /// It has more than `LIST_MAX` bytes, which no host takes.
    TooLong,
    Stopped,
}

/// Makes one. `stop` is asked now and then whether nobody wants it any more.
pub fn list(asked: &str, stop: impl Fn() -> bool) -> Listed {
    let mut list = List { text: r#"{"files":["#.to_owned(), unnamed: 0, is_too_long: false };
    match walk(asked, &mut list, &stop) {
        Err(error) if is_stop(&error) => return Listed::Stopped,
        Err(error) => {
            log::info!("list {asked:?}: {}", crate::sys::errno::describe(&error));
            return Listed::Whole(NOT_FOUND.to_owned());
        }
        Ok(()) if list.is_too_long => {
            log::error!("list {asked:?}: longer than {LIST_MAX} bytes");
            return Listed::TooLong;
        }
        Ok(()) => {}
    }
    if list.unnamed > 0 {
        log::warn!("list {asked:?}: {} names that are not UTF-8 are left out", list.unnamed);
    }
    list.text.push_str(END);
    Listed::Whole(list.text)
}

struct List {
    text: String,
    unnamed: usize,
    is_too_long: bool,
}

impl List {
    fn push(&mut self, path: &Path) {
        let Some(path) = path.to_str() else {
            self.unnamed += 1;
            return;
        };
        let item = Value::from(path).to_string();
        if self.text.len() + 1 + item.len() + END.len() > LIST_MAX {
            self.is_too_long = true;
            return;
        }
        if !self.text.ends_with('[') {
            self.text.push(',');
        }
        self.text.push_str(&item);
    }
}

/// The error is that of the folder itself, or that of the end of everything; what is wrong below is passed over.
fn walk(asked: &str, list: &mut List, stop: &impl Fn() -> bool) -> io::Result<()> {
    // With a slash at its end it is what a link leads to. The empty path names nothing.
    let kind = fs::symlink_metadata(asked)?.file_type();
    if kind.is_symlink() {
        return Ok(());
    }
    if kind.is_file() {
        list.push(Path::new(asked));
        return Ok(());
    }
    if !kind.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    let mut open = vec![(PathBuf::from(asked), names(Path::new(asked), stop)?.into_iter())];
    while let Some((folder, names_left)) = open.last_mut() {
        let Some(name) = names_left.next() else {
            open.pop();
            continue;
        };
        // Adds a slash only where there is none, and keeps all others.
        let path = folder.join(name);
        let Ok(found) = fs::symlink_metadata(&path) else { continue };
        if found.is_file() {
            list.push(&path);
        } else if found.is_dir() {
            match names(&path, stop) {
                Ok(names) => open.push((path, names.into_iter())),
                Err(error) if is_stop(&error) => return Err(error),
                Err(_) => {}
            }
        }
        if list.is_too_long {
            return Ok(());
        }
        if stop() {
            return Err(stopped());
        }
    }
    Ok(())
}

fn names(folder: &Path, stop: &impl Fn() -> bool) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)?.flatten() {
        if names.len() % STOP_EVERY == 0 && stop() {
            return Err(stopped());
        }
        names.push(entry.file_name());
    }
    names.sort_unstable();
    Ok(names)
}

fn stopped() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, STOPPED)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of its own with so many files, whose names make so many bytes each in the list.
    fn with_files(name: &str, count: usize) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("lodger-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        for number in 0..count {
            fs::write(folder.join(format!("{number:0>250}")), "").expect("a file");
        }
        folder
    }

    #[test]
    fn a_list_that_nobody_wants_any_more_is_not_finished() {
        let folder = with_files("stopped", 2);
        assert_eq!(list(&folder.display().to_string(), || true), Listed::Stopped);
        fs::remove_dir_all(&folder).expect("a folder");
    }

    #[test]
    fn a_list_has_the_bytes_that_a_host_takes_and_not_one_more() {
        let mut list = List { text: String::new(), unnamed: 0, is_too_long: false };
        let frame = r#"{"files":["#;
        list.text = frame.to_owned();
        // Two quotes, and no comma.
        let room = LIST_MAX - frame.len() - END.len() - 3;
        list.push(Path::new(&"x".repeat(room)));
        assert!(!list.is_too_long);
        list.text = frame.to_owned();
        list.push(Path::new(&"x".repeat(room + 1)));
        assert!(list.is_too_long);
    }
}
