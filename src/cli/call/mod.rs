//! `call`: one of the guest's commands, by its name or with a request as it stands.

pub mod offer;
mod pieces;
mod request;

use std::ffi::OsString;
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;
use std::time::Duration;

use lexopt::{Arg, Parser};

use crate::cli::call::pieces::Kind;
use crate::cli::target::Target;
use crate::cli::{Command, Failure, OUR_ERROR, harmless, seconds, text};
use crate::client::Error;
use crate::client::monitor::{self, End, Fault, Response};
use crate::sys::errno;
use crate::transport::{Addr, Carrier};

/// How long to wait for a response when nobody says: a program that a command runs may need a while, and a script shall not hang.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes of the longest request that is read from stdin: an agent takes fewer unless it was told otherwise.
const REQUEST_MAX: u64 = 64 << 20;

/// Largest `Status` that is an exit status of ours. Above it only `STATUS_BEYOND`, and what stands for our own errors.
const STATUS_MAX: i64 = 120;
const STATUS_BEYOND: u8 = 121;

pub const CALL: Command = Command {
    name: "call",
    summary: "call one of the guest's commands, with JSON",
    help: "usage: lodger call [--timeout S] [--to ADDR] NAME [JSON | - | KEY=VALUE...]
       lodger call [--timeout S] [--to ADDR] --raw JSON

Calls the command NAME, and prints its response: indented on a terminal, byte for byte elsewhere.
`lodger commands` lists what there is. The agents of Google's cloud understand the same requests.

  JSON         the arguments, as one object
  -            the same, from stdin
  KEY=VALUE    one argument: VALUE is taken as JSON if it is valid (5, true, null, \"x\", [1], {...}),
               else as text; one that is valid JSON, or begins with [ { or \", is written with
               quotes: KEY='\"5\"'
  --raw JSON   send these bytes as they are; - reads them from stdin
  --timeout S  wait for the response at most S seconds (default 60; 0: for ever);
               of process.run, timeout_seconds should be less

  lodger call system.info
  lodger call process.run argv='[\"uname\",\"-a\"]'
  lodger call --raw '{\"Command\":\"x\"}'

Exit status: the response's Status when it is 0 to 120, 121 for any other number, 0 for JSON
without a Status, 125 for errors of our own: no connection, no response in time, or one that is
empty, longer than 64 MiB, no JSON, or has a Status that is no whole number. What came is printed
all the same, but not of a response that is too long.

With --to port: the agent must listen with ,proto=google behind its address. Such a line has no
connections: after a call that ended before its response came, the next one may get that.
",
    run: call,
};

fn call(mut parser: Parser) -> Result<ExitCode, Failure> {
    let (mut target, mut timeout, mut raw, mut words) = (Target::default(), Some(TIMEOUT), None, Vec::new());
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long(name) if Target::has(name) => target.take(name.to_owned(), &mut parser)?,
            Arg::Long("timeout") => timeout = take_timeout(&mut parser)?,
            Arg::Long("raw") => raw = Some(parser.value()?),
            Arg::Value(word) => words.push(word),
            _ => return Err(argument.unexpected().into()),
        }
    }
    let request = match raw {
        Some(raw) if words.is_empty() && raw == "-" => read_stdin()?,
        Some(raw) if words.is_empty() => raw.into_vec(),
        Some(_) => return Err(Failure::new("--raw takes the whole request: a NAME or arguments do not go with it")),
        None => request(words)?,
    };
    if request.is_empty() {
        return Err(Failure::new("the request is empty"));
    }
    let addr = target.address()?;
    let response = ask(&target, &request, timeout)?;
    print(&response)?;
    status(&addr, &response).map(ExitCode::from)
}

/// `None`: there is none.
fn take_timeout(parser: &mut Parser) -> Result<Option<Duration>, Failure> {
    Ok(Some(seconds(parser.value()?, "--timeout")?).filter(|time| !time.is_zero()))
}

/// The request that the words ask for.
fn request(words: Vec<OsString>) -> Result<Vec<u8>, Failure> {
    let words = words.into_iter().map(text).collect::<Result<Vec<_>, _>>()?;
    let Some((name, arguments)) = words.split_first() else {
        return Err(Failure::new("a command's NAME is missing; `lodger commands` lists them"));
    };
    match arguments {
        [only] if only == "-" => {
            let object = read_stdin()?;
            let object = String::from_utf8(object).map_err(|_| Failure::new("the arguments on stdin are not UTF-8"))?;
            request::from_object(name, &object)
        }
        [only] if only.trim_ascii_start().starts_with('{') => request::from_object(name, only),
        [first, _, ..] if first == "-" || first.trim_ascii_start().starts_with('{') => {
            Err(Failure::new("the arguments are either one JSON object or all KEY=VALUE"))
        }
        pairs => request::from_pairs(name, pairs),
    }
}

fn read_stdin() -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    io::stdin().lock().take(REQUEST_MAX + 1).read_to_end(&mut bytes).map_err(Error::local("read stdin"))?;
    if bytes.len() as u64 > REQUEST_MAX {
        return Err(Failure::new(format!("stdin: more than {REQUEST_MAX} bytes")));
    }
    Ok(bytes)
}

/// Connects, and asks.
fn ask(target: &Target, request: &[u8], timeout: Option<Duration>) -> Result<Response, Failure> {
    // A bare line goes on behind a response.
    let end = if is_bare(&target.address()?) { End::WithValue } else { End::WithStream };
    Ok(monitor::ask(target.stream()?, request, end, timeout))
}

fn is_bare(addr: &Addr) -> bool {
    matches!(addr.carrier, Carrier::Port { .. })
}

/// Prints what came, but not a part of what is too long.
fn print(response: &Response) -> Result<(), Failure> {
    let bytes = &response.bytes[..];
    if bytes.is_empty() || matches!(response.fault, Some(Fault::TooLong)) {
        return Ok(());
    }
    let stdout = io::stdout();
    let mut out = io::BufWriter::new(stdout.lock());
    match pieces::kind(bytes) {
        _ if !stdout.is_terminal() => out.write_all(bytes)?,
        Kind::Json => {
            pieces::write_indented(bytes, &mut out)?;
            out.write_all(b"\n")?;
        }
        Kind::Cut | Kind::NoJson => writeln!(out, "{}", harmless(&String::from_utf8_lossy(bytes)))?,
    }
    Ok(out.flush()?)
}

/// The exit status that a response stands for; an error for what is no response.
fn status(addr: &Addr, response: &Response) -> Result<u8, Failure> {
    let kind = pieces::kind(&response.bytes);
    let why = match &response.fault {
        // What comes in a whole response has nothing to do with how the connection ended.
        Some(fault) if kind != Kind::Json || matches!(fault, Fault::TooLong) => told(fault, response),
        _ if response.bytes.is_empty() => "the agent closed the connection without a response".to_owned(),
        _ => match (kind, exit_status(&response.bytes)) {
            (Kind::Cut, _) => "the response ends in the middle of its JSON".to_owned(),
            (Kind::NoJson, _) => "the response is no JSON".to_owned(),
            (Kind::Json, Some(status)) => return Ok(status),
            (Kind::Json, None) => "the response's Status is no whole number".to_owned(),
        },
    };
    let hint = if is_bare(addr) && kind != Kind::Json {
        "; on a bare line only an agent whose address says ,proto=google takes commands"
    } else {
        ""
    };
    let place = if matches!(response.fault, Some(Fault::Explained(_))) { String::new() } else { format!("{addr}: ") };
    Err(Failure::with_code(OUR_ERROR, format!("{place}{why}{hint}")))
}

fn told(fault: &Fault, response: &Response) -> String {
    match fault {
        Fault::Lost(error) if response.bytes.is_empty() => {
            format!("connection lost without a response: {}", errno::describe(error))
        }
        fault => fault.to_string(),
    }
}

/// The exit status for the `Status` of a response that is valid JSON: 0 when there is none, `None` when it is no whole number.
fn exit_status(response: &[u8]) -> Option<u8> {
    let mut status = Some(0);
    pieces::for_each_member(response, &mut |name, value| {
        if name == "Status" {
            status = if value == b"null" { Some(0) } else { from_status(value) };
        }
    });
    status
}

fn from_status(value: &[u8]) -> Option<u8> {
    let number = std::str::from_utf8(value).ok()?;
    let digits = number.strip_prefix('-').unwrap_or(number);
    let is_whole = digits.bytes().all(|byte| byte.is_ascii_digit());
    let fits = number.parse().ok().filter(|status| (0..=STATUS_MAX).contains(status));
    is_whole.then(|| fits.map_or(STATUS_BEYOND, |status: i64| status as u8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_an_exit_status_where_it_fits() {
        for (text, wanted) in [
            (r#"{"Status":0,"StatusMessage":""}"#, Some(0)),
            (r#"{"a":{"Status":7},"Status":5}"#, Some(5)),
            (r#"{"Status":120}"#, Some(120)),
            (r#"{"Status":121}"#, Some(121)),
            (r#"{"Status":500}"#, Some(121)),
            (r#"{"Status":-1}"#, Some(121)),
            (r#"{"Status":99999999999999999999999}"#, Some(121)),
            (r#"{"Status":null}"#, Some(0)),
            (r#"{"status":4}"#, Some(0)),
            (r#"[{"Status":501}]"#, Some(0)),
            ("5", Some(0)),
            (r#"{"Status":"5"}"#, None),
            (r#"{"Status":1.5}"#, None),
            (r#"{"Status":1e2}"#, None),
            (r#"{"Status":true}"#, None),
            (r#"{"Status":[1]}"#, None),
        ] {
            assert_eq!(exit_status(text.as_bytes()), wanted, "{text}");
        }
    }
}
