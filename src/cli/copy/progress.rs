//! How far a long copy has come, on a terminal.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// Nothing is shown before a copy has taken so long.
const AFTER: Duration = Duration::from_millis(500);
/// Nor more often than this.
const EVERY: Duration = Duration::from_millis(100);

/// One line on stderr that is written over and over.
pub struct Progress {
    watched: bool,
    started: Instant,
    shown: Option<Instant>,
    files: u64,
    bytes: u64,
}

impl Progress {
    pub fn new() -> Progress {
        let now = Instant::now();
        Progress { watched: io::stderr().is_terminal(), started: now, shown: None, files: 0, bytes: 0 }
    }

    /// One more file is done.
    pub fn file(&mut self) {
        self.files += 1;
    }

    /// So many more bytes of `name` are done.
    pub fn bytes(&mut self, name: &str, count: usize) {
        self.bytes += count as u64;
        let now = Instant::now();
        let due = self.shown.map_or(self.started + AFTER, |shown| shown + EVERY);
        if !self.watched || now < due {
            return;
        }
        self.shown = Some(now);
        let mib = tenths_of_mib(self.bytes.into());
        let rate = tenths_of_mib(u128::from(self.bytes) * 1000 / (now - self.started).as_millis().max(1));
        let name: String = name.chars().filter(|character| !character.is_control()).collect();
        let tail: String = name.chars().skip(name.chars().count().saturating_sub(40)).collect();
        let _ = write!(io::stderr(), "\r\x1b[K{mib} MiB, {} files, {rate} MiB/s  {tail}", self.files);
    }

    /// Takes the line away.
    pub fn clear(&mut self) {
        if self.shown.take().is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// With one digit behind the point.
fn tenths_of_mib(bytes: u128) -> String {
    let tenths = (bytes * 10) >> 20;
    format!("{}.{}", tenths / 10, tenths % 10)
}
