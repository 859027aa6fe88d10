//! `commands`: what the guest offers to be called.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use lexopt::{Arg, Parser};
use serde_json::Value;

use crate::cli::call::request;
use crate::cli::call::{TIMEOUT, ask, status, take_timeout};
use crate::cli::target::Target;
use crate::cli::{Command, Failure, harmless};

/// The command that tells.
const NAME: &str = "agent.commands";

/// `Status` of an agent that has no command of that name.
const NO_HANDLER: u8 = 101;

/// Exit status when an agent does not tell.
const UNTOLD: u8 = 1;

/// Columns of the longest name that the summaries stand in a line for.
const NAME_COLUMNS_MAX: usize = 32;

pub const COMMANDS: Command = Command {
    name: "commands",
    summary: "list the commands that a guest offers to `call`",
    help: "usage: lodger commands [-l | --long] [--timeout S] [--to ADDR]

  -l, --long   with their arguments
  --timeout S  wait for the response at most S seconds (default 60; 0: for ever)

Exit status: 0, 1 when the agent does not tell what it offers, 125 when there is no agent.
",
    run: commands,
};

/// One command of a guest. The texts have one line each, but `arguments`.
struct Offer {
    name: String,
    /// Or why it cannot be called.
    summary: String,
    arguments: String,
}

fn commands(mut parser: Parser) -> Result<ExitCode, Failure> {
    let (mut target, mut timeout, mut long): (_, Option<Duration>, _) = (Target::default(), Some(TIMEOUT), false);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long(name) if Target::has(name) => target.take(name.to_owned(), &mut parser)?,
            Arg::Long("timeout") => timeout = take_timeout(&mut parser)?,
            Arg::Short('l') | Arg::Long("long") => long = true,
            _ => return Err(argument.unexpected().into()),
        }
    }
    let addr = target.address()?;
    let response = ask(&target, &request::from_object(NAME, "{}")?, timeout)?;
    let status = status(&addr, &response)?;
    let untold = |why: String| Failure::with_code(UNTOLD, format!("{addr}: {why}"));
    if status == NO_HANDLER {
        return Err(untold(format!("the agent has no command {NAME}, and so cannot tell what it offers")));
    }
    // As text: a parser of bytes would be a second one in the program.
    let text = String::from_utf8_lossy(&response.bytes);
    let response: Value = serde_json::from_str(&text).map_err(|error| untold(error.to_string()))?;
    if status != 0 {
        return Err(untold(format!("{NAME}: {}", one_line(&response["StatusMessage"]))));
    }
    let Value::Array(list) = &response["commands"] else {
        return Err(untold(format!("{NAME} answered without a list of commands")));
    };
    let offers: Vec<Offer> = list.iter().map(offer).collect();
    list_all(&offers, long, &mut io::BufWriter::new(io::stdout().lock()))?;
    Ok(ExitCode::SUCCESS)
}

fn offer(value: &Value) -> Offer {
    let arguments = value["arguments"].as_str().map(harmless).unwrap_or_default();
    let summary = match value["unusable"].as_str() {
        None => one_line(&value["summary"]),
        Some(_) => format!("(unusable: {})", one_line(&value["unusable"])),
    };
    Offer { name: one_line(&value["name"]), summary, arguments }
}

/// Text from a guest, as a part of a line.
fn one_line(value: &Value) -> String {
    harmless(value.as_str().unwrap_or_default()).replace('\n', "?")
}

fn list_all(offers: &[Offer], long: bool, out: &mut dyn Write) -> io::Result<()> {
    let columns = offers.iter().map(|offer| offer.name.chars().count()).filter(|count| *count <= NAME_COLUMNS_MAX);
    let columns = columns.max().unwrap_or(0);
    for Offer { name, summary, arguments } in offers {
        match summary.as_str() {
            "" => writeln!(out, "{name}")?,
            summary => writeln!(out, "{name:columns$}  {summary}")?,
        }
        for line in arguments.lines().filter(|line| long && !line.trim().is_empty()) {
            writeln!(out, "    {}", line.trim_end())?;
        }
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_list_is_aligned_and_harmless() {
        let offers = [
            json!({"name": "a.b", "summary": "one\u{1b}[31m\ntwo", "arguments": "x  a number\n\ny  a\tlist\n"}),
            json!({"name": "longer.name", "summary": "three", "arguments": ""}),
            json!({"name": "own"}),
            json!({"name": "n".repeat(40), "summary": "four"}),
            json!(5),
        ];
        let offers: Vec<Offer> = offers.iter().map(offer).collect();
        let listed = |long| {
            let mut out = Vec::new();
            list_all(&offers, long, &mut out).expect("memory");
            String::from_utf8(out).expect("text")
        };
        let tail = format!("longer.name  three\nown\n{}  four\n\n", "n".repeat(40));
        assert_eq!(listed(false), format!("a.b          one?[31m?two\n{tail}"));
        assert_eq!(listed(true), format!("a.b          one?[31m?two\n    x  a number\n    y  a?list\n{tail}"));
    }
}
