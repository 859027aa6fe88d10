//! The processes of the system, as /proc/PID/stat shows them.

use std::fs;
use std::io;

/// One process. What is not among these members is in other files of its directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    pub group: i32,
    pub session: i32,
    /// One letter, as proc(5) explains it.
    pub state: char,
    /// At most 15 bytes.
    pub name: String,
    pub threads: u32,
}

impl Process {
    /// Whether it has ended, and only its number is still taken.
    pub fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }
}

/// All processes that are there in this moment, one after the other; what vanishes meanwhile is left out. Nothing at all where /proc is an
/// empty directory.
///
/// # Errors
/// There is no /proc.
pub fn all() -> io::Result<impl Iterator<Item = Process>> {
    let entries = fs::read_dir("/proc")?.flatten();
    // Other names need not be opened.
    let processes =
        entries.filter(|entry| entry.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit));
    Ok(processes.filter_map(|entry| parse(&String::from_utf8_lossy(&fs::read(entry.path().join("stat")).ok()?))))
}

/// `pid (name) state ppid pgrp session …`: the name may hold anything, a parenthesis too.
fn parse(stat: &str) -> Option<Process> {
    let (before, after) = stat.rsplit_once(") ")?;
    let (pid, name) = before.split_once(" (")?;
    let fields: Vec<&str> = after.split(' ').collect();
    let number = |index: usize| fields.get(index)?.parse::<i32>().ok();
    Some(Process {
        pid: pid.parse().ok()?,
        parent: number(1)?,
        group: number(2)?,
        session: number(3)?,
        state: fields.first()?.chars().next()?,
        name: name.to_owned(),
        threads: number(17)?.unsigned_abs(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_what_stands_around_it() {
        let rest = "S 1 40 30 0 -1 4194560 1 0 0 0 5 6 0 0 20 0 7 0 100 2 3";
        let found = parse(&format!("42 (a) b (c) {rest}")).expect("a process");
        let name = "a) b (c".to_owned();
        assert_eq!(found, Process { pid: 42, parent: 1, group: 40, session: 30, state: 'S', name, threads: 7 });
        assert_eq!(parse("42 (a) S 1"), None);
        let own = std::process::id() as i32;
        assert!(all().expect("/proc").any(|process| process.pid == own && !process.is_dead()));
    }
}
