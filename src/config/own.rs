//! Our own configuration file, `/etc/lodger/lodger.conf`: lines `key = value`.
//!
//! `#` begins a comment, at the start of a line or behind a blank. The keys are those of `KEYS`; the help of `serve` explains them. Nothing
//! in it is ever passed over: what is not understood is an error.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::ini::{Error, Text};
use crate::config::{Way, way};
#[cfg(feature = "metadata")]
use crate::proto::metadata;
use crate::server::arrivals::SILENT_MAX;
use crate::sys::process;

/// All keys, in the order of the help.
#[cfg(feature = "metadata")]
const KEYS: &str =
    "listen, request-timeout, request-size, connections, commands-directory, command-timeout, log, metadata";
#[cfg(not(feature = "metadata"))]
const KEYS: &str = "listen, request-timeout, request-size, connections, commands-directory, command-timeout, log";

/// Levels of the log, quietest first.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Bytes of the smallest limit of a request: below it not even the requests of the command monitor's known clients would fit.
const REQUEST_SIZE_MIN: usize = 1 << 10;

/// Bytes of the largest: every connection may hold so much, and more than a few of them would be all memory of a small guest.
const REQUEST_SIZE_MAX: usize = 64 << 20;

/// Most connections at once. Each is a thread with a stack of 256 KiB of address space; on 32 bits so many take the first of three GiB.
const CONNECTIONS_MAX: usize = 4096;

/// Open files that a connection must be able to have: its socket, and a file or the way to a program.
const FILES_EACH: u64 = 2;

/// Open files for everything else: connections that have not said a word (`SILENT_MAX`), standard streams, listeners, lines, and the
/// moment of a program's start.
const FILES_BESIDE: u64 = SILENT_MAX as u64 + 64;

/// Longest time: a year, and no clock overflows.
pub const TIME_MAX: Duration = Duration::from_secs(365 * 86_400);

/// What the file says; `None` and nothing where it says nothing.
#[derive(Default)]
pub struct Own {
    pub ways: Vec<Way>,
    pub request_timeout: Option<Duration>,
    /// In bytes.
    pub request_size: Option<usize>,
    pub connections: Option<usize>,
    pub commands_directory: Option<PathBuf>,
    pub command_timeout: Option<Duration>,
    pub log: Option<&'static str>,
    #[cfg(feature = "metadata")]
    pub metadata: Option<metadata::Config>,
}

impl Own {
    /// What a text says.
    ///
    /// # Errors
    /// The first line that is wrong.
    pub fn read(text: &Text) -> Result<Own, Error> {
        let mut own = Own::default();
        let mut seen: Vec<(&str, usize)> = Vec::new();
        for (number, line) in text.lines(b"#") {
            let Some((key, value)) = line.split_once('=') else {
                return Err(text.no_entry(number, line));
            };
            let (key, value) = (key.trim_end(), without_comment(value).trim());
            if let Some((_, first)) = seen.iter().find(|(known, _)| *known == key && key != "listen") {
                return Err(text.wrong(number, key, format!("already in line {first}")));
            }
            seen.push((key, number));
            own.take(key, value).map_err(|why| text.wrong(number, key, why))?;
        }
        Ok(own)
    }

    fn take(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "listen" => self.ways.push(way(value)?),
            "request-timeout" => self.request_timeout = Some(time(value)?),
            "request-size" => self.request_size = Some(size(value)?),
            "connections" => self.connections = Some(connections(value)?),
            "commands-directory" => self.commands_directory = Some(directory(value)?),
            "command-timeout" => self.command_timeout = Some(time(value)?),
            "log" => {
                let level = LEVELS.into_iter().find(|level| *level == value);
                self.log = Some(
                    level.ok_or_else(|| format!("\"{value}\": no level (off, error, warn, info, debug, trace are)"))?,
                );
            }
            #[cfg(feature = "metadata")]
            "metadata" => self.metadata = Some(metadata::Config::at(value)?),
            _ => return Err(format!("unknown key ({KEYS} are known)")),
        }
        Ok(())
    }
}

/// A value without the comment behind it.
fn without_comment(value: &str) -> &str {
    let start = value.match_indices('#').find(|(at, _)| value[..*at].ends_with([' ', '\t']));
    start.map_or(value, |(at, _)| &value[..at])
}

/// A number and what stands behind it. `None` when it does not begin with digits, or with too many.
fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    Some((digits.parse().ok()?, unit.trim_start()))
}

/// A time above zero: a number with its unit.
pub fn time(text: &str) -> Result<Duration, String> {
    let wrong = |why: &str| Err(format!("\"{text}\": {why}"));
    let Some((number, unit)) = number_and_unit(text) else {
        return wrong("no number with a unit (ms, s or m)");
    };
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "" => return wrong("a unit is missing (ms, s or m)"),
        _ => return wrong("unknown unit (ms, s or m)"),
    };
    match number.checked_mul(unit_ms).map(Duration::from_millis) {
        Some(Duration::ZERO) => wrong("must be above zero"),
        Some(time) if time <= TIME_MAX => Ok(time),
        _ => wrong("longer than a year"),
    }
}

fn size(text: &str) -> Result<usize, String> {
    let wrong = |why: &str| Err(format!("\"{text}\": {why}"));
    let Some((number, unit)) = number_and_unit(text) else {
        return wrong("no number of bytes, alone or with KiB or MiB");
    };
    let unit_bytes = match unit {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        _ => return wrong("unknown unit (none, KiB or MiB)"),
    };
    let bytes = number.checked_mul(unit_bytes).and_then(|bytes| usize::try_from(bytes).ok());
    match bytes.filter(|bytes| (REQUEST_SIZE_MIN..=REQUEST_SIZE_MAX).contains(bytes)) {
        Some(bytes) => Ok(bytes),
        None => wrong("out of range (1 KiB to 64 MiB)"),
    }
}

fn connections(text: &str) -> Result<usize, String> {
    let number = number_and_unit(text).filter(|(_, rest)| rest.is_empty()).map(|(number, _)| number);
    let number = number.filter(|number| (1..=CONNECTIONS_MAX as u64).contains(number));
    let number = number.ok_or_else(|| format!("\"{text}\": no number from 1 to {CONNECTIONS_MAX}"))?;
    let (need, limit) = (number * FILES_EACH + FILES_BESIDE, process::descriptor_limit().unwrap_or(u64::MAX));
    if need > limit {
        let most = limit.saturating_sub(FILES_BESIDE) / FILES_EACH;
        return Err(format!("\"{text}\": the limit of {limit} open files allows {most}"));
    }
    Ok(number as usize)
}

fn directory(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err(format!("\"{text}\": no absolute path")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_number_and_a_unit() {
        for (text, time_ms) in [("10s", 10_000), ("500ms", 500), ("1m", 60_000), ("007 s", 7_000), ("1ms", 1)] {
            assert_eq!(time(text), Ok(Duration::from_millis(time_ms)), "{text}");
        }
        assert_eq!(time("525600m"), Ok(TIME_MAX));
        for (text, why) in [
            ("10", "a unit is missing"),
            ("", "no number"),
            ("s", "no number"),
            ("-1s", "no number"),
            ("+1s", "no number"),
            ("99999999999999999999s", "no number"),
            ("1.5s", "unknown unit"),
            ("1h", "unknown unit"),
            ("1S", "unknown unit"),
            ("1s5ms", "unknown unit"),
            ("0s", "above zero"),
            ("525601m", "longer than a year"),
            ("18446744073709551615m", "longer than a year"),
        ] {
            assert!(time(text).is_err_and(|said| said.contains(why) && said.starts_with('"')), "{text}");
        }
    }

    #[test]
    fn the_log_has_the_levels_of_the_environment() {
        for level in LEVELS {
            let mut own = Own::default();
            assert_eq!(own.take("log", level), Ok(()));
            assert_eq!(own.log, Some(level));
            assert!(level.parse::<log::LevelFilter>().is_ok());
        }
        assert_eq!(LEVELS.len(), log::LevelFilter::iter().count());
    }

    #[test]
    fn sizes_have_limits() {
        for (text, bytes) in [("1024", 1024), ("1KiB", 1024), ("64 MiB", 64 << 20), ("67108864", 64 << 20)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["1023", "0", "67108865", "65MiB", "18446744073709551615MiB"] {
            assert!(size(text).is_err_and(|said| said.contains("out of range")), "{text}");
        }
        for text in ["", "KiB", "-1", "1k", "1 kib", "1MB", "1.5MiB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn connections_have_limits() {
        assert_eq!(connections("1"), Ok(1));
        for text in ["0", "4097", "", "x", "1 2", "+1"] {
            assert_eq!(connections(text), Err(format!("\"{text}\": no number from 1 to 4096")));
        }
    }

    #[test]
    fn a_comment_behind_a_value_begins_behind_a_blank() {
        for (value, bare) in [("/a#b", "/a#b"), ("/a #b", "/a "), ("#", "#"), (" # x", " "), ("/a#b # c#", "/a#b ")] {
            assert_eq!(without_comment(value), bare, "{value}");
        }
    }
}
