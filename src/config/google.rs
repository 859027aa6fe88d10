//! The configuration file of Google's guest agent, as far as it is about the command monitor.
//!
//! ```text
//! [Unstable]
//! command_monitor_enabled = true
//! command_pipe_path = /run/google-guest-agent/commands.sock    a directory that is there: guestagent and coreplugin in it
//! command_pipe_mode = 0770                                     octal digits
//! command_pipe_group = -1                                      decimal gid or name; -1 or nothing: as it comes
//! command_request_timeout = 10s                                as Go writes durations
//! ```
//!
//! FILE, then FILE.distro, then FILE.template; of several values the last one counts. Case does not matter in names of sections and keys, `;`
//! and `#` begin comments, also behind a value that is not quoted. Everything else in these files is not for us. A wrong value is an error
//! here; upstream logs it and takes the default, which for a mode or a group are other rights than somebody has asked for.
//!
//! Source: the specification of Google's command monitor, section 1.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::ini::{Error, Text};
use crate::config::own::TIME_MAX;
use crate::exec::user;
use crate::transport::{Addr, Carrier};

const SECTION: &str = "unstable";

/// Upstream's defaults.
const PATH: &str = "/run/google-guest-agent/commands.sock";
const MODE: u32 = 0o770;

/// The names of the two sockets of upstream's second agent.
const LISTENERS: [&str; 2] = ["guestagent", "coreplugin"];

/// The texts that upstream takes for true and for false, without regard to case.
const TRUE: [&str; 6] = ["1", "t", "true", "y", "yes", "on"];
const FALSE: [&str; 6] = ["0", "f", "false", "n", "no", "off"];

/// What the file wants of the command monitor.
#[derive(Debug, PartialEq, Eq)]
pub struct Monitor {
    pub addrs: Vec<Addr>,
    pub request_timeout: Option<Duration>,
}

/// The keys of the section, in lower case.
const KEYS: [&str; 5] = [
    "command_monitor_enabled",
    "command_pipe_path",
    "command_pipe_mode",
    "command_pipe_group",
    "command_request_timeout",
];

/// A value and its place, with the key as it is written there.
struct Value<'a> {
    text: &'a Text,
    line: usize,
    key: &'a str,
    value: &'a str,
}

impl Value<'_> {
    fn wrong(&self, why: String) -> Error {
        self.text.wrong(self.line, self.key, why)
    }
}

/// Reads the file, which must be there, and those behind it, which need not: `None` when they do not want a monitor.
///
/// # Errors
/// A file that cannot be read, and the line of a value that is wrong.
pub fn read(file: &Path) -> Result<Option<Monitor>, Error> {
    let mut texts = vec![Text::read(file)?];
    for ending in [".distro", ".template"] {
        let mut name = file.as_os_str().to_owned();
        name.push(ending);
        texts.extend(Text::read_if_there(&PathBuf::from(name))?);
    }
    // A later value takes the place of an earlier one.
    let mut values = [const { None }; KEYS.len()];
    for text in &texts {
        collect(text, &mut values)?;
    }
    // All of them, also when there will be no monitor: what is wrong is wrong.
    let [enabled, path, mode, group, timeout] = &values;
    let check = |value: &Option<Value>, check: &mut dyn FnMut(&str) -> Result<(), String>| match value {
        Some(value) => check(value.value).map_err(|why| value.wrong(why)),
        None => Ok(()),
    };
    let mut found = Found { enabled: false, path: PATH.into(), mode: MODE, group: None, request_timeout: None };
    check(enabled, &mut |text| truth(text).map(|truth| found.enabled = truth))?;
    check(path, &mut |text| absolute(text).map(|path| found.path = path))?;
    check(mode, &mut |text| octal(text).map(|mode| found.mode = mode))?;
    check(group, &mut |text| group_of(text).map(|group| found.group = group))?;
    check(timeout, &mut |text| duration(text).map(|time| found.request_timeout = Some(time)))?;
    let Found { enabled, path, mode, group, request_timeout } = found;
    let addr = |path| Addr {
        carrier: Carrier::Unix { path, mode, group: group.clone() },
        protocol: Some("google".to_owned()),
    };
    let addrs = match path.is_dir() {
        true => LISTENERS.iter().map(|name| addr(path.join(name))).collect(),
        false => vec![addr(path)],
    };
    Ok(enabled.then_some(Monitor { addrs, request_timeout }))
}

struct Found {
    enabled: bool,
    path: PathBuf,
    mode: u32,
    group: Option<String>,
    request_timeout: Option<Duration>,
}

fn collect<'a>(text: &'a Text, values: &mut [Option<Value<'a>>; KEYS.len()]) -> Result<(), Error> {
    let mut inside = false;
    for (line, content) in text.lines(b"#;") {
        if let Some(rest) = content.strip_prefix('[') {
            let end = rest.find(']').ok_or_else(|| text.wrong(line, "", "the ] of the section is missing"))?;
            inside = rest[..end].trim().eq_ignore_ascii_case(SECTION);
            continue;
        }
        if !inside {
            continue;
        }
        let Some(end) = content.bytes().position(|byte| byte == b'=' || byte == b':') else {
            return Err(text.no_entry(line, content));
        };
        let (key, value) = (content[..end].trim_end(), bare(content[end + 1..].trim_start()));
        if let Some(index) = KEYS.iter().position(|known| known.eq_ignore_ascii_case(key)) {
            values[index] = Some(Value { text, line, key, value });
        }
    }
    Ok(())
}

/// A value without quotes around it, or without a comment behind it.
fn bare(value: &str) -> &str {
    for quote in ['"', '`', '\''] {
        if let Some((inner, _)) = value.strip_prefix(quote).and_then(|rest| rest.split_once(quote)) {
            return inner;
        }
    }
    let end = value.bytes().position(|byte| byte == b'#' || byte == b';');
    value[..end.unwrap_or(value.len())].trim_end()
}

fn truth(text: &str) -> Result<bool, String> {
    let is_one_of = |words: &[&str]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
    match (is_one_of(&TRUE), is_one_of(&FALSE)) {
        (true, _) => Ok(true),
        (_, true) => Ok(false),
        _ => Err(format!("\"{text}\": neither true nor false")),
    }
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    match text {
        "" => Ok(PATH.into()),
        _ if text.starts_with('/') => Ok(text.into()),
        _ => Err(format!("\"{text}\": no absolute path")),
    }
}

fn octal(text: &str) -> Result<u32, String> {
    let is_octal = text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| is_octal && *mode <= 0o777);
    mode.ok_or_else(|| format!("\"{text}\": no octal digits up to 777"))
}

fn group_of(text: &str) -> Result<Option<String>, String> {
    match text {
        "" | "-1" => Ok(None),
        _ => user::look_up(&format!(":{text}")).map(|_| Some(text.to_owned())),
    }
}

/// A duration as Go reads it, `1h2m3.5s`, above zero. Digits below a nanosecond do not count.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = |why: &str| Err(format!("\"{text}\": {why}"));
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    // A year of nanoseconds is below 2^55.
    let (mut total, limit) = (0u64, TIME_MAX.as_nanos() as u64);
    if rest.is_empty() {
        return wrong("no duration");
    }
    while !rest.is_empty() {
        let end = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(rest.len());
        let (number, behind) = rest.split_at(end);
        let end = behind.find(|letter: char| letter.is_ascii_digit() || letter == '.').unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.len() + fraction.len() == 0 || fraction.contains('.') {
            return wrong("no duration");
        }
        let mut unit_ns = match unit {
            "ns" => 1,
            // The micro sign and the Greek letter.
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000u64,
            // Go takes a bare zero; it would not be above zero anyway.
            "" => return wrong("a unit is missing (ns, us, ms, s, m or h)"),
            _ => return wrong("unknown unit (ns, us, ms, s, m or h)"),
        };
        let Some(whole) = format!("0{whole}").parse::<u64>().ok() else { return wrong("longer than a year") };
        total = total.saturating_add(whole.saturating_mul(unit_ns));
        for digit in fraction.bytes() {
            unit_ns /= 10;
            total = total.saturating_add(u64::from(digit - b'0') * unit_ns);
        }
        rest = behind;
    }
    match total {
        0 => wrong("must be above zero"),
        total if total > limit => wrong("longer than a year"),
        total => Ok(Duration::from_nanos(total)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, time_ns) in [
            ("10s", 10_000_000_000),
            ("1m30s", 90_000_000_000),
            ("500ms", 500_000_000),
            ("1.5s", 1_500_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("+1s", 1_000_000_000),
            ("1h", 3_600_000_000_000),
            ("1h1m1s1ms1us1ns", 3_661_001_001_001),
            ("2\u{b5}s", 2_000),
            ("2\u{3bc}s", 2_000),
            ("0.0000000019s", 1),
            ("8760h", 365 * 86_400 * 1_000_000_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_nanos(time_ns)), "{text}");
        }
        for (text, why) in [
            ("1500", "a unit is missing"),
            ("", "no duration"),
            ("s", "no duration"),
            (".s", "no duration"),
            ("1..s", "no duration"),
            ("-1s", "no duration"),
            ("10 s", "unknown unit"),
            ("1d", "unknown unit"),
            ("1m30", "a unit is missing"),
            ("0s", "above zero"),
            ("0.1ns", "above zero"),
            ("8761h", "longer than a year"),
            ("99999999999999999999999s", "longer than a year"),
        ] {
            assert!(duration(text).is_err_and(|said| said.contains(why)), "{text}: {:?}", duration(text));
        }
    }

    #[test]
    fn modes_are_octal_digits_alone() {
        assert_eq!([octal("770"), octal("0770"), octal("0")], [Ok(0o770), Ok(0o770), Ok(0)]);
        for text in ["", "0o770", "rwx", "+770", "-1", "778", "1777", "99999999999999"] {
            assert_eq!(octal(text), Err(format!("\"{text}\": no octal digits up to 777")));
        }
    }

    #[test]
    fn values_lose_their_quotes_and_comments() {
        for (value, expected) in
            [("a ; b", "a"), ("a#b", "a"), ("\"a;b\" # c", "a;b"), ("`#`", "#"), ("", ""), ("\"a", "\"a")]
        {
            assert_eq!(bare(value), expected, "{value}");
        }
    }

    #[test]
    fn truths_are_those_of_upstream() {
        assert_eq!([truth("True"), truth("ON"), truth("0")], [Ok(true), Ok(true), Ok(false)]);
        assert!(truth("").is_err() && truth("maybe").is_err());
    }
}
