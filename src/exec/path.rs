//! The search path: where a program is, and which programs there are.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::exec::NotStarted;

/// An executable file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub name: Vec<u8>,
    pub path: Vec<u8>,
    /// The 0777 bits.
    pub mode: u32,
    pub size: u64,
    pub modified_ns: i64,
}

/// The path to execute: `program` itself when it has a slash, else its place in the directories of `search`, which has them as PATH has;
/// `None`: on the agent's PATH. Directories that are empty or relative do not count: what is run must not depend on where the agent stands.
pub fn resolve(program: &[u8], search: Option<&[u8]>) -> Result<Vec<u8>, NotStarted> {
    if program.is_empty() {
        return Err(NotStarted::Nameless);
    }
    if program.contains(&b'/') {
        return Ok(program.to_vec());
    }
    let own = env::var_os("PATH").unwrap_or_default();
    let search = search.unwrap_or(own.as_bytes());
    let directories = search.split(|byte| *byte == b':').filter(|directory| directory.starts_with(b"/"));
    for directory in directories {
        let candidate = join(directory, program);
        if fs::metadata(OsStr::from_bytes(&candidate)).is_ok_and(|file| file.is_file() && file.mode() & 0o111 != 0) {
            return Ok(candidate);
        }
    }
    Err(NotStarted::NotOnPath(program.to_vec()))
}

/// Every executable regular file in the directories, sorted by directory and name; the first of a name hides later ones. Without
/// directories those of the agent's PATH. Empty names, and directories that cannot be read, are passed over.
pub fn enumerate(directories: &[Vec<u8>]) -> Vec<Found> {
    let search = env::var_os("PATH").unwrap_or_default();
    let own: Vec<Vec<u8>> = search.as_bytes().split(|byte| *byte == b':').map(<[u8]>::to_vec).collect();
    let directories = if directories.is_empty() { &own } else { directories };
    let mut all = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for directory in directories.iter().filter(|directory| !directory.is_empty()) {
        for (name, found) in executables(directory) {
            if seen.insert(name) {
                all.push(found);
            }
        }
    }
    all
}

fn executables(directory: &[u8]) -> BTreeMap<Vec<u8>, Found> {
    let Ok(entries) = fs::read_dir(OsStr::from_bytes(directory)) else { return BTreeMap::new() };
    let names = entries.flatten().map(|entry| entry.file_name().as_bytes().to_vec());
    let found = names.filter_map(|name| {
        let path = join(directory, &name);
        // Follows links, as execve(2) does.
        let file = fs::metadata(Path::new(OsStr::from_bytes(&path))).ok()?;
        let modified_ns = file.mtime().saturating_mul(1_000_000_000).saturating_add(file.mtime_nsec());
        let found = Found { name: name.clone(), path, mode: file.mode() & 0o777, size: file.size(), modified_ns };
        (file.is_file() && file.mode() & 0o111 != 0).then_some((name, found))
    });
    found.collect()
}

/// Directory and name with one slash between, cleaned as Go's path/filepath does it: no doubled slashes, no `.`, `..` taken back.
fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let absolute = directory.starts_with(b"/");
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in directory.split(|byte| *byte == b'/').chain([name]) {
        match part {
            b"" | b"." => {}
            b".." if parts.last().is_some_and(|last| *last != b"..") => drop(parts.pop()),
            b".." if absolute => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join(&b'/');
    if absolute { [b"/", &joined[..]].concat() } else { joined }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_and_name_are_joined_clean() {
        for (directory, path) in [
            ("/bin", "/bin/x"),
            ("/usr//bin/", "/usr/bin/x"),
            ("/a/../b/.", "/b/x"),
            ("rel/../..", "../x"),
            ("/..", "/x"),
            (".", "x"),
        ] {
            assert_eq!(join(directory.as_bytes(), b"x"), path.as_bytes(), "{directory}");
        }
    }

    #[test]
    fn a_name_is_found_on_the_path_and_a_path_is_left_alone() {
        assert!(resolve(b"sh", None).is_ok_and(|path| path.ends_with(b"/sh")));
        assert_eq!(resolve(b"./sh", None).ok(), Some(b"./sh".to_vec()));
        assert!(matches!(resolve(b"no-such-program-here", None), Err(NotStarted::NotOnPath(_))));
        assert!(resolve(b"sh", Some(b":bin:/nowhere:/bin")).is_ok_and(|path| path == b"/bin/sh"));
        assert!(matches!(resolve(b"sh", Some(b"/nowhere:")), Err(NotStarted::NotOnPath(_))));
        assert!(matches!(resolve(b"", None), Err(NotStarted::Nameless)));
    }
}
