//! One command of a recording as an asciicast: what asciinema plays and web pages show.
//!
//! A header of JSON, then one `[seconds, kind, text]` a line; kinds: `o` output, `i` input, `r` the terminal's new size. Source:
//! docs.asciinema.org, "asciicast v2".

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::cli::Failure;
use crate::cli::replay::player::limited;
use crate::cli::replay::source::Recording;
use crate::client::Error;
use crate::wire::exec::Exec;
use crate::wire::frame::Frame;
use crate::wire::record::{Direction, Record};

/// Rows and columns where the recording knows no terminal.
const NO_TERMINAL: (u16, u16) = (24, 80);

/// An asciicast in the making.
pub struct Cast {
    path: PathBuf,
    out: Box<dyn Write>,
    begun: bool,
    idle_limit: Option<Duration>,
    /// When the last event happened, in the recording's clock and in the cast's.
    last: (i64, Duration),
    /// What is left of characters that were cut, of stdin, stdout and stderr.
    cut: [Vec<u8>; 3],
}

impl Cast {
    /// Opens the output, which only its owner may read: what was typed is in it.
    pub fn new(path: PathBuf, recording: &Recording, idle_limit: Option<Duration>) -> Result<Cast, Failure> {
        let local = |error| Failure::from(Error::Local { what: path.display().to_string(), error });
        let out: Box<dyn Write> = if path.as_os_str() == "-" {
            Box::new(io::stdout())
        } else {
            let options = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
            let file: File = options.map_err(local)?;
            let there = file.metadata().map_err(local)?;
            let source = recording.metadata().map_err(local)?;
            if (there.dev(), there.ino()) == (source.dev(), source.ino()) {
                return Err(Failure::new(format!("{}: is the recording itself", path.display())));
            }
            if there.is_file() {
                file.set_len(0).map_err(local)?;
            }
            Box::new(BufWriter::new(file))
        };
        Ok(Cast { path, out, begun: false, idle_limit, last: (0, Duration::ZERO), cut: Default::default() })
    }

    /// Adds a record of the command.
    pub fn add(&mut self, record: &Record) -> Result<(), Failure> {
        match record {
            Record::Start { start_ns, exec, .. } => self.begin(*start_ns, exec),
            Record::Frame { time_ns, direction, frame, .. } => {
                self.begin(*time_ns, &Exec::default())?;
                match (direction, frame) {
                    (Direction::ToAgent, Frame::Data { stream: 0, data, .. }) => self.data(*time_ns, 0, "i", data),
                    (Direction::ToClient, Frame::Data { stream: stream @ 1..=2, data, .. }) => {
                        self.data(*time_ns, *stream as usize, "o", data)
                    }
                    (Direction::ToAgent, Frame::Resize { rows, columns, .. }) => {
                        self.event(*time_ns, "r", &format!("{columns}x{rows}"))
                    }
                    _ => Ok(()),
                }
            }
            Record::End { end_ns, .. } => self.flush_cut(*end_ns),
            Record::Header(_) | Record::Footer { .. } => Ok(()),
        }
    }

    /// Writes what is left.
    pub fn finish(&mut self) -> Result<(), Failure> {
        self.flush_cut(self.last.0)?;
        let flushed = self.out.flush();
        flushed.map_err(|error| self.failed(error))
    }

    fn begin(&mut self, start_ns: i64, exec: &Exec) -> Result<(), Failure> {
        if self.begun {
            return Ok(());
        }
        self.begun = true;
        self.last.0 = start_ns;
        self.line(&header(start_ns, exec))
    }

    /// Text as far as its characters are whole; what is no UTF-8 becomes U+FFFD.
    fn data(&mut self, time_ns: i64, stream: usize, kind: &str, data: &[u8]) -> Result<(), Failure> {
        let mut bytes = std::mem::take(&mut self.cut[stream]);
        bytes.extend_from_slice(data);
        let rest = bytes.split_off(whole(&bytes));
        self.cut[stream] = rest;
        if bytes.is_empty() {
            return Ok(());
        }
        self.event(time_ns, kind, &String::from_utf8_lossy(&bytes))
    }

    /// Beginnings of characters whose rest never came.
    fn flush_cut(&mut self, time_ns: i64) -> Result<(), Failure> {
        for (stream, kind) in ["i", "o", "o"].into_iter().enumerate() {
            let cut = std::mem::take(&mut self.cut[stream]);
            if !cut.is_empty() {
                self.event(time_ns, kind, &String::from_utf8_lossy(&cut))?;
            }
        }
        Ok(())
    }

    fn event(&mut self, time_ns: i64, kind: &str, text: &str) -> Result<(), Failure> {
        let (before_ns, before) = self.last;
        let time = before + limited(time_ns.saturating_sub(before_ns), self.idle_limit);
        self.last = (time_ns, time);
        self.line(&json!([time.as_micros() as f64 / 1e6, kind, text]))
    }

    fn line(&mut self, value: &Value) -> Result<(), Failure> {
        let written = writeln!(self.out, "{value}");
        written.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: io::Error) -> Failure {
        if self.path.as_os_str() == "-" {
            return error.into();
        }
        Error::Local { what: self.path.display().to_string(), error }.into()
    }
}

fn header(start_ns: i64, exec: &Exec) -> Value {
    let (rows, columns) = exec.extension.terminal.unwrap_or(NO_TERMINAL);
    let mut environment = Map::new();
    for name in ["TERM", "SHELL"] {
        let all = exec.env.iter().flatten().chain(&exec.extension.set_env);
        let mut known = all.filter_map(|entry| str::from_utf8(entry).ok()?.strip_prefix(name)?.strip_prefix('='));
        if let Some(value) = known.next_back() {
            environment.insert(name.to_owned(), value.into());
        }
    }
    let mut header = json!({
        "version": 2,
        "width": columns,
        "height": rows,
        "timestamp": start_ns.div_euclid(1_000_000_000),
    });
    let words: Vec<String> = exec.argv.iter().flatten().map(|word| quoted(word)).collect();
    if !words.is_empty() {
        header["command"] = words.join(" ").into();
    } else if !exec.path.is_empty() {
        header["command"] = quoted(&exec.path).into();
    }
    if !environment.is_empty() {
        header["env"] = environment.into();
    }
    header
}

/// A word as one would type it to a shell.
fn quoted(word: &[u8]) -> String {
    let text = String::from_utf8_lossy(word);
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "-_./=:,+@%^".contains(character);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// How many of the bytes are there without a character at the end that is cut.
fn whole(bytes: &[u8]) -> usize {
    // The longest character has four bytes, so one that is cut has begun in the last three.
    let tail = bytes.len().saturating_sub(3);
    for start in (tail..bytes.len()).rev() {
        if bytes[start] & 0xc0 != 0x80 {
            let cut = str::from_utf8(&bytes[start..]).is_err_and(|error| error.error_len().is_none());
            return if cut { start } else { bytes.len() };
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_character_that_may_still_become_whole_is_held_back() {
        for (bytes, expected) in [
            (&b""[..], 0),
            (b"abc", 3),
            ("aß".as_bytes(), 3),
            (b"a\xc3", 1),
            (b"a\xe2\x82", 1),
            (b"a\xf0\x9f\x98", 1),
            ("a😀".as_bytes(), 5),
            (b"a\x80\x80\x80", 4),
            (b"a\xff", 2),
            (b"a\xc0", 2),
            (b"a\xe0\x80", 3),
        ] {
            assert_eq!(whole(bytes), expected, "{bytes:x?}");
        }
    }

    #[test]
    fn words_are_quoted_as_a_shell_wants_them() {
        for (word, text) in [("ls", "ls"), ("-l=/a.b", "-l=/a.b"), ("", "''"), ("a b", "'a b'"), ("it's", r"'it'\''s'")]
        {
            assert_eq!(quoted(word.as_bytes()), text);
        }
    }

    #[test]
    fn the_header_has_what_is_known() {
        let plain = header(1_700_000_000_999_999_999, &Exec::default());
        assert_eq!(plain, json!({"version": 2, "width": 80, "height": 24, "timestamp": 1_700_000_000}));
        let mut exec =
            Exec { path: b"sh".to_vec(), argv: Some(vec![b"sh".to_vec(), b"-i".to_vec()]), ..Exec::default() };
        exec.env = Some(vec![b"TERM=dumb".to_vec(), b"SHELL=/bin/ash".to_vec(), b"TERMINAL=no".to_vec()]);
        exec.extension.set_env = vec![b"TERM=xterm".to_vec()];
        exec.extension.terminal = Some((50, 132));
        let full = header(0, &exec);
        assert_eq!(full["command"], "sh -i");
        assert_eq!((&full["width"], &full["height"]), (&json!(132), &json!(50)));
        assert_eq!(full["env"], json!({"TERM": "xterm", "SHELL": "/bin/ash"}));
    }
}
