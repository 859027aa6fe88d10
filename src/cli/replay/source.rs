//! The records of a file, one after the other; no more than one of them is in memory.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use crate::cli::Failure;
use crate::client::Error;
use crate::stream::inbox::Inbox;
use crate::wire::ITEM_MAX;
use crate::wire::scan::Scanner;

/// Bytes of the largest record: the largest frame, and room for what a record has around it.
const RECORD_MAX: usize = ITEM_MAX + 4096;

/// A recording that is being read.
pub struct Recording {
    file: File,
    /// What messages call it.
    pub name: String,
    inbox: Inbox,
    scanner: Scanner,
    /// Length of the record that was handed out last.
    used: usize,
    count: u64,
}

impl Recording {
    /// Opens a recording; `-` is stdin.
    pub fn open(path: &Path) -> Result<Recording, Failure> {
        let name = path.display().to_string();
        let opened = match name == "-" {
            true => io::stdin().as_fd().try_clone_to_owned().map(|fd: OwnedFd| File::from(fd)),
            false => File::open(path),
        };
        let file = opened.map_err(Error::local(&name))?;
        Ok(Recording { file, name, inbox: Inbox::default(), scanner: Scanner::new(RECORD_MAX), used: 0, count: 0 })
    }

    /// fstat(2) of the file.
    pub fn metadata(&self) -> io::Result<Metadata> {
        self.file.metadata()
    }

    /// The next record, with its number from 1 on. `None` at the end.
    ///
    /// # Errors
    /// When the file cannot be read, ends within a record, or holds something else from here on.
    pub fn next_record(&mut self) -> Result<Option<(u64, &[u8])>, Failure> {
        self.inbox.consume(std::mem::take(&mut self.used));
        loop {
            let found = self.scanner.find_end(self.inbox.bytes());
            let found = found.map_err(|why| match self.count {
                0 => Failure::new(format!("{}: no recording ({why})", self.name)),
                count => Failure::new(format!("{}: nothing to be read after record {count} ({why})", self.name)),
            })?;
            if let Some(length) = found {
                self.used = length;
                self.count += 1;
                return Ok(Some((self.count, &self.inbox.bytes()[..length])));
            }
            let read = self.inbox.fill(self.file.as_fd(), self.scanner.known_length());
            if read.map_err(Error::local(&self.name))? == 0 {
                return self.at_end().map(|()| None);
            }
        }
    }

    fn at_end(&self) -> Result<(), Failure> {
        let (name, count) = (&self.name, self.count);
        match (self.inbox.bytes(), count) {
            ([], 0) => Err(Failure::new(format!("{name}: no recording (it is empty)"))),
            ([], _) => Ok(()),
            // A record is a map; most files of other kinds look like the beginning of something else.
            ([first, ..], 0) if !matches!(first, 0xa0..=0xbf) => Err(Failure::new(format!("{name}: no recording"))),
            (rest, 0) => Err(Failure::new(format!("{name}: cut off in its first record ({} bytes)", rest.len()))),
            (rest, _) => {
                let text = format!("{name}: cut off after record {count} ({} bytes of the next)", rest.len());
                Err(Failure::new(text))
            }
        }
    }
}
