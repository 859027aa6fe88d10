//! Writing a recording (`wire::record`) while a program runs.

use std::env;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::wire::exec::Exec;
use crate::wire::frame::Frame;
use crate::wire::record::{Direction, Header, Record};

/// A recording that is being written: one write(2) a record, so that whatever ends the client leaves whole records.
#[derive(Debug)]
pub struct Recorder {
    file: File,
    commands: i64,
}

/// Nanoseconds since 1970.
pub fn now_ns() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX))
}

impl Recorder {
    /// Starts a recording in a file that only its owner may read: it holds the environment and all that is typed. A file that is there is
    /// written over.
    pub fn create(path: &Path, backend_type: &str, backend_address: &str) -> io::Result<Recorder> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        // The mode above is for a new file only. A device or pipe is everybody's, and keeps its own.
        if file.metadata()?.is_file() {
            file.set_permissions(PermissionsExt::from_mode(0o600))?;
        }
        let mut recorder = Recorder { file, commands: 0 };
        recorder.write(&Record::Header(Header {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            start_ns: now_ns(),
            local_user: env::var("USER").unwrap_or_default(),
            local_pid: i64::from(std::process::id()),
            backend_type: backend_type.to_owned(),
            backend_address: backend_address.to_owned(),
            agent_path: String::new(),
        }))?;
        Ok(recorder)
    }

    /// Begins a command; gives its number.
    pub fn start(&mut self, exec: &Exec) -> io::Result<i64> {
        let seq = self.commands;
        self.commands += 1;
        self.write(&Record::Start { seq, start_ns: now_ns(), exec: exec.clone() })?;
        Ok(seq)
    }

    /// Adds a frame.
    pub fn frame(&mut self, seq: i64, direction: Direction, frame: Frame) -> io::Result<()> {
        self.write(&Record::Frame { seq, time_ns: now_ns(), direction, frame })
    }

    /// Ends a command; -1 when no Exit was seen.
    pub fn end(&mut self, seq: i64, code: i64) -> io::Result<()> {
        self.write(&Record::End { seq, end_ns: now_ns(), code })
    }

    /// Ends the recording.
    pub fn finish(&mut self) -> io::Result<()> {
        self.write(&Record::Footer { end_ns: now_ns(), commands: self.commands })
    }

    fn write(&mut self, record: &Record) -> io::Result<()> {
        self.file.write_all(&record.to_bytes())
    }
}
