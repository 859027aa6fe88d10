//! The list of all plain files below a folder, as the host wants it.
//!
//! In the order of names, folder after folder. Links are not followed. Each path begins with what was asked for, letter by letter, because the
//! host cuts that off.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::metaservice::RESPONSE_MAX;

/// Bytes of the longest list, with its frame.
const LIST_MAX: usize = RESPONSE_MAX;

const END: &str = r#"],"notFound":false}"#;

/// The answer, as JSON. `stop` is asked now and then whether anybody still wants it.
pub fn list(asked: &str, stop: impl Fn() -> bool) -> String {
    let mut list = List { text: r#"{"files":["#.to_owned(), unnamed: 0, complete: true };
    match walk(asked, &mut list, stop) {
        Ok(()) => {}
        Err(error) => {
            log::info!("list {asked}: {}", crate::sys::errno::describe(&error));
            return r#"{"files":[],"notFound":true}"#.to_owned();
        }
    }
    if !list.complete {
        log::error!("list {asked}: longer than {LIST_MAX} bytes; the rest is left out");
    }
    if list.unnamed > 0 {
        log::warn!("list {asked}: {} names that are not UTF-8 are left out", list.unnamed);
    }
    list.text.push_str(END);
    list.text
}

struct List {
    text: String,
    unnamed: usize,
    complete: bool,
}

impl List {
    fn push(&mut self, path: &Path) {
        let Some(path) = path.to_str() else {
            self.unnamed += 1;
            return;
        };
        let item = Value::from(path).to_string();
        if self.text.len() + 1 + item.len() + END.len() > LIST_MAX {
            self.complete = false;
            return;
        }
        if !self.text.ends_with('[') {
            self.text.push(',');
        }
        self.text.push_str(&item);
    }
}

/// The error is that of the folder itself; those below it are passed over.
fn walk(asked: &str, list: &mut List, stop: impl Fn() -> bool) -> io::Result<()> {
    // With a slash at its end a link would be followed.
    let trimmed = asked.trim_end_matches('/');
    let root = match trimmed {
        "" if asked.is_empty() => ".",
        "" => "/",
        trimmed => trimmed,
    };
    let kind = fs::symlink_metadata(root)?.file_type();
    if kind.is_file() {
        list.push(Path::new(root));
    }
    if !kind.is_dir() {
        return Ok(());
    }
    let mut open = vec![(PathBuf::from(asked), names(Path::new(root))?.into_iter())];
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
        } else if found.is_dir()
            && let Ok(names) = names(&path)
        {
            open.push((path, names.into_iter()));
        }
        if !list.complete || stop() {
            return Ok(());
        }
    }
    Ok(())
}

fn names(folder: &Path) -> io::Result<Vec<OsString>> {
    let mut names: Vec<OsString> = fs::read_dir(folder)?.flatten().map(|entry| entry.file_name()).collect();
    names.sort_unstable();
    Ok(names)
}
