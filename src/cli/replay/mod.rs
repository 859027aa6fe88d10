//! `replay`: a recording played back in time, listed, or turned into an asciicast.

mod asciicast;
mod dump;
mod player;
mod source;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use lexopt::{Arg, Parser};

use crate::cli::replay::asciicast::Cast;
use crate::cli::replay::player::{Pace, Player};
use crate::cli::replay::source::Recording;
use crate::cli::{Command, Failure, OUR_ERROR, complain, number, text};
use crate::wire::cbor::Reader;
use crate::wire::record::Record;

pub const REPLAY: Command = Command {
    name: "replay",
    summary: "play a recording back, list it, or turn it into an asciicast",
    help: "usage: lodger replay [OPTION...] FILE

Plays what `lodger exec --record` (or another client of the protocol) wrote: the program's stdout
to stdout and its stderr to stderr, with the pauses that there were. FILE - is stdin.

  --speed N        N times as fast; 0 or max: without pauses
  --idle-limit S   no pause longer than S seconds of the recording
  --seq N          only command N, counted from 0 (default: all of them, as they ran)
  --dump           list the records instead, one JSON object a line: its number, its kind, and its
                   members as in the file. Times are nanoseconds since 1970; bytes are text when
                   they are UTF-8, else {\"base64\": ...}
  --asciicast OUT  write an asciicast (version 2) of one command, by default the first, to the
                   file OUT instead; OUT - is stdout

A recording holds the whole environment of its programs and all that was typed; --dump shows both,
and an asciicast what was typed.

Exit status: 0, or 125 when the recording is damaged, cut off or without its end; what is good of
it has been played then.
",
    run: replay,
};

/// What to do with the records.
enum Way {
    Play(Player),
    List,
    Cast(Cast),
}

/// What the options ask for.
#[derive(Default)]
struct Request {
    file: Option<PathBuf>,
    pace: Pace,
    seq: Option<i64>,
    dump: bool,
    asciicast: Option<PathBuf>,
}

/// What has been met on the way through a recording.
#[derive(Default)]
struct Tally {
    /// Records of types that we do not know.
    unknown: u64,
    /// Records that could not be understood.
    damaged: u64,
    /// Commands that have begun and not ended.
    open: Vec<i64>,
    has_footer: bool,
    /// The command that was asked for is there.
    has_chosen: bool,
}

fn replay(mut parser: Parser) -> Result<ExitCode, Failure> {
    let mut request = Request::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("speed") => request.pace.speed = speed(parser.value()?)?,
            Arg::Long("idle-limit") => request.pace.idle_limit = Some(idle_limit(parser.value()?)?),
            Arg::Long("seq") => request.seq = Some(number(parser.value()?, "--seq")?),
            Arg::Long("dump") => request.dump = true,
            Arg::Long("asciicast") => request.asciicast = Some(PathBuf::from(parser.value()?)),
            Arg::Value(path) if request.file.is_none() => request.file = Some(PathBuf::from(path)),
            other => return Err(other.unexpected().into()),
        }
    }
    let Some(file) = request.file else {
        return Err(Failure::new("a recording is missing; see `lodger help replay`"));
    };
    if request.dump && request.asciicast.is_some() {
        return Err(Failure::new("--dump and --asciicast exclude each other"));
    }
    let recording = Recording::open(&file)?;
    let way = match request.asciicast {
        Some(out) => Way::Cast(Cast::new(out, &recording, request.pace.idle_limit)?),
        None if request.dump => Way::List,
        None => Way::Play(Player::new(request.pace)),
    };
    run(recording, way, request.seq)
}

/// How many times as fast; `None`: without pauses.
fn speed(value: OsString) -> Result<Option<f64>, Failure> {
    let text = text(value)?;
    if text == "max" {
        return Ok(None);
    }
    let factor = text.parse().ok().filter(|factor: &f64| factor.is_finite() && *factor >= 0.0);
    let factor =
        factor.ok_or_else(|| Failure::new(format!("--speed {text}: a number from 0 on, or max, is wanted")))?;
    Ok((factor > 0.0).then_some(factor))
}

fn idle_limit(value: OsString) -> Result<Duration, Failure> {
    let text = text(value)?;
    let limit = text.parse().ok().and_then(|seconds: f64| Duration::try_from_secs_f64(seconds).ok());
    limit.ok_or_else(|| Failure::new(format!("--idle-limit {text}: a number of seconds is wanted")))
}

fn run(mut recording: Recording, mut way: Way, chosen: Option<i64>) -> Result<ExitCode, Failure> {
    let mut tally = Tally::default();
    let walked = walk(&mut recording, &mut way, chosen, &mut tally);
    if let Way::Cast(cast) = &mut way {
        cast.finish()?;
    }
    if tally.unknown > 0 {
        complain("replay", &format!("{}: records of unknown types, left out: {}", recording.name, tally.unknown));
    }
    walked?;
    tally.verdict(&recording, chosen)
}

/// Goes through all records. What is good has been played when this returns an error.
fn walk(recording: &mut Recording, way: &mut Way, chosen: Option<i64>, tally: &mut Tally) -> Result<(), Failure> {
    let mut chosen = chosen;
    while let Some((count, item)) = recording.next_record()? {
        let record = Record::decode(item);
        if let Err(error) = &record
            && count == 1
        {
            return Err(Failure::new(format!("{}: no recording ({error})", recording.name)));
        }
        let seq = record.as_ref().ok().and_then(seq_of);
        if chosen.is_some() && seq.is_some() && seq != chosen {
            continue;
        }
        tally.has_chosen |= seq.is_some();
        if matches!(way, Way::Cast(_)) {
            chosen = chosen.or(seq);
        }
        if let Way::List = way {
            dump::write_line(&mut io::stdout().lock(), count, item)?;
        }
        match record {
            Ok(record) => {
                tally.count(&record);
                match way {
                    Way::Play(player) => player.play(&record)?,
                    Way::Cast(cast) => cast.add(&record)?,
                    Way::List => {}
                }
            }
            Err(_) if is_unknown(item) => tally.unknown += 1,
            Err(error) => {
                tally.damaged += 1;
                complain("replay", &format!("{}: record {count} is left out: {error}", recording.name));
            }
        }
    }
    Ok(())
}

/// The command that a record belongs to.
fn seq_of(record: &Record) -> Option<i64> {
    match record {
        Record::Start { seq, .. } | Record::Frame { seq, .. } | Record::End { seq, .. } => Some(*seq),
        Record::Header(_) | Record::Footer { .. } => None,
    }
}

/// Whether an item that could not be read is a record of a kind that came after us.
fn is_unknown(item: &[u8]) -> bool {
    let kind = Reader::new(item).fields().and_then(|fields| fields.u8("type"));
    kind.is_ok_and(|kind| !(1..=5).contains(&kind))
}

impl Tally {
    fn count(&mut self, record: &Record) {
        match record {
            Record::Start { seq, .. } => self.open.push(*seq),
            Record::End { seq, .. } => self.open.retain(|open| open != seq),
            Record::Footer { .. } => self.has_footer = true,
            Record::Header(_) | Record::Frame { .. } => {}
        }
    }

    /// What is to be said of the recording as a whole.
    fn verdict(&self, recording: &Recording, chosen: Option<i64>) -> Result<ExitCode, Failure> {
        io::stdout().flush()?;
        let name = &recording.name;
        if let Some(seq) = chosen.filter(|_| !self.has_chosen) {
            return Err(Failure::new(format!("{name}: holds no command {seq}")));
        }
        if let Some(seq) = self.open.first() {
            return Err(Failure::new(format!("{name}: has no end; command {seq} was still running")));
        }
        if !self.has_footer {
            return Err(Failure::new(format!("{name}: has no end")));
        }
        Ok(if self.damaged > 0 { ExitCode::from(OUR_ERROR) } else { ExitCode::SUCCESS })
    }
}
