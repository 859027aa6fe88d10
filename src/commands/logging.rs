//! `log.level`: how much the agent says on its stderr.

use log::LevelFilter;

use crate::commands::arguments::Arguments;
use crate::commands::{Call, Command, Error, Reply};

pub const LEVEL: Command = Command {
    name: "log.level",
    summary: "the lowest level of the agent's messages, or another one from now on",
    arguments: "level: off, error, warn, info, debug or trace; missing: only says it",
    run: level,
};

fn level(arguments: &mut Arguments, _: &Call) -> Result<Reply, Error> {
    let wanted = arguments.text("level")?;
    arguments.finish()?;
    let before = log::max_level();
    let Some(text) = wanted else { return Ok(Reply::of([("level", name(before).into())])) };
    let bad =
        |_| Error::BadArgument(format!("level: off, error, warn, info, debug or trace is wanted, and not {text}"));
    let level: LevelFilter = text.parse().map_err(bad)?;
    log::set_max_level(level);
    Ok(Reply::of([("before", name(before).into()), ("level", name(level).into())]))
}

fn name(level: LevelFilter) -> String {
    level.as_str().to_ascii_lowercase()
}
