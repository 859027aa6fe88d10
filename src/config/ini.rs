//! Configuration files as lines: what both kinds of them have in common.
//!
//! UTF-8 without NUL bytes, lines ended by LF or CRLF, at most `FILE_MAX` bytes. Whatever is wrong in a file has a place: file and line.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::sys::errno;

/// Bytes of the longest configuration file. Sensible ones have a few lines; the limit keeps a wrong name (a disk, a log) from being read whole.
pub const FILE_MAX: usize = 1 << 20;

/// What is wrong with a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// It cannot be read at all.
    File { file: PathBuf, why: String },
    /// One of its lines, counted from 1. The key is empty where the line has none.
    Line { file: PathBuf, line: usize, key: String, why: String },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Error::File { file, why } => write!(f, "{}: {why}", file.display()),
            Error::Line { file, line, key, why } if key.is_empty() => write!(f, "{}:{line}: {why}", file.display()),
            Error::Line { file, line, key, why } => write!(f, "{}:{line}: {key}: {why}", file.display()),
        }
    }
}

/// The text of a configuration file.
#[derive(Debug)]
pub struct Text {
    file: PathBuf,
    text: String,
}

impl Text {
    /// Reads a file that must be there.
    ///
    /// # Errors
    /// It is not there or cannot be read, or is no text.
    pub fn read(file: &Path) -> Result<Text, Error> {
        let missing = || Error::File { file: file.to_owned(), why: "no such file or directory".to_owned() };
        Text::read_if_there(file)?.ok_or_else(missing)
    }

    /// Reads a file; `None` when it is not there.
    ///
    /// # Errors
    /// It cannot be read, or is no text.
    pub fn read_if_there(file: &Path) -> Result<Option<Text>, Error> {
        let failed = |why: String| Error::File { file: file.to_owned(), why };
        let mut bytes = Vec::new();
        let read = File::open(file).and_then(|opened| opened.take(FILE_MAX as u64 + 1).read_to_end(&mut bytes));
        match read {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(errno::describe(&error))),
            Ok(count) if count > FILE_MAX => {
                return Err(failed(format!("larger than {FILE_MAX} bytes, the limit of a configuration file")));
            }
            Ok(_) => {}
        }
        Text::new(file, bytes).map(Some)
    }

    fn new(file: &Path, bytes: Vec<u8>) -> Result<Text, Error> {
        let wrong = |bytes: &[u8], at: usize, why: &str| {
            let line = bytes[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
            Err(Error::Line { file: file.to_owned(), line, key: String::new(), why: why.to_owned() })
        };
        if let Some(at) = bytes.iter().position(|byte| *byte == 0) {
            return wrong(&bytes, at, "a NUL byte, which no text has");
        }
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Text { file: file.to_owned(), text }),
            Err(error) => wrong(error.as_bytes(), error.utf8_error().valid_up_to(), "not UTF-8"),
        }
    }

    /// The lines without blanks around them, with their numbers from 1; no empty ones, and none that begin with one of the `comment`
    /// bytes.
    pub fn lines(&self, comment: &[u8]) -> Vec<(usize, &str)> {
        // What editors of other systems put in front.
        let text = self.text.strip_prefix('\u{feff}').unwrap_or(&self.text);
        let numbered = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
        numbered.filter(|(_, line)| line.bytes().next().is_some_and(|byte| !comment.contains(&byte))).collect()
    }

    /// The error of a line that is no entry.
    pub fn no_entry(&self, line: usize, content: &str) -> Error {
        self.wrong(line, "", format!("\"{content}\": neither key = value nor a comment"))
    }

    /// The error of one of its lines.
    pub fn wrong(&self, line: usize, key: &str, why: impl Into<String>) -> Error {
        Error::Line { file: self.file.clone(), line, key: key.to_owned(), why: why.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(bytes: &[u8]) -> Result<Vec<(usize, String)>, String> {
        let text = Text::new(Path::new("/f"), bytes.to_vec()).map_err(|error| error.to_string())?;
        Ok(text.lines(b"#").into_iter().map(|(number, line)| (number, line.to_owned())).collect())
    }

    #[test]
    fn lines_are_counted_with_those_that_say_nothing() {
        let all = lines("\u{feff}a = 1\r\n\r\n# x\n\t# y\n  b=2 # z  \nlast".as_bytes());
        let expected = [(1, "a = 1"), (5, "b=2 # z"), (6, "last")].map(|(number, line)| (number, line.to_owned()));
        assert_eq!(all, Ok(expected.to_vec()));
        assert_eq!(lines(b""), Ok(Vec::new()));
    }

    #[test]
    fn what_is_no_text_has_a_place() {
        assert_eq!(lines(b"a\nb\0\n"), Err("/f:2: a NUL byte, which no text has".to_owned()));
        assert_eq!(lines(b"a\n\nb\xff\n"), Err("/f:3: not UTF-8".to_owned()));
    }
}
