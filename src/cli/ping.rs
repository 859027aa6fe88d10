//! `ping` and `connect`: whether an agent is there, and how fast it answers.

use std::collections::BinaryHeap;
use std::io::{self, Write};
use std::num::NonZeroU32;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use lexopt::{Arg, Parser};

use crate::cli::target::{LINE_PATIENCE, Target};
use crate::cli::{Command, Failure, harmless, no_more, number, seconds, with_thousandths};
use crate::client::ping::Heard;
use crate::client::{Connection, Error};
use crate::sys::signal::{self, SIGINT, SIGTERM};
use crate::transport::Addr;

/// Exit status when an answer is missing.
const UNANSWERED: u8 = 1;

/// Pause between questions when nobody says: ping(8)'s.
const INTERVAL: Duration = Duration::from_secs(1);

/// Questions without an answer, beyond which no more are asked: an agent that has stopped shall not be buried in them.
const UNANSWERED_MAX: usize = 64;

/// Answers that the median is made of: the last ones. Each costs 16 bytes; with one a second they are more than a day.
const TIMES_MAX: usize = 100_000;

pub const PING: Command = Command {
    name: "ping",
    summary: "measure how fast an agent answers",
    help: "usage: lodger ping [-c COUNT] [-i SECONDS] [--to ADDR]

Asks until it is interrupted, and then sums up.

  -c COUNT     ask so often, and end
  -i SECONDS   pause between two questions (default 1; 0: ask as soon as the answer has come)

Exit status: 0 when every question was answered, 1 when not, 125 when there is no agent.
",
    run: ping,
};

pub const CONNECT: Command = Command {
    name: "connect",
    summary: "say which agent answers; with --wait, wait for it",
    help: "usage: lodger connect [--wait SECONDS] [--to ADDR]

Exit status: 0 when an agent answers, 125 when not.
",
    run: connect,
};

fn connect(mut parser: Parser) -> Result<ExitCode, Failure> {
    let mut target = Target::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long(name) if Target::has(name) => target.take(name.to_owned(), &mut parser)?,
            other => return Err(other.unexpected().into()),
        }
    }
    no_more(&mut parser)?;
    introduce(&target)?.close();
    Ok(ExitCode::SUCCESS)
}

/// Connects, and says who answered.
fn introduce(target: &Target) -> Result<Connection, Failure> {
    let start = Instant::now();
    let (connection, agent) = target.greet()?;
    let time = millis(start.elapsed());
    writeln!(io::stdout(), "{} at {}, connected in {time} ms", harmless(&agent.program), target.address()?)?;
    Ok(connection)
}

fn ping(mut parser: Parser) -> Result<ExitCode, Failure> {
    let (mut target, mut count, mut interval) = (Target::default(), None::<NonZeroU32>, INTERVAL);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long(name) if Target::has(name) => target.take(name.to_owned(), &mut parser)?,
            Arg::Short('c') => count = Some(number(parser.value()?, "-c")?),
            Arg::Short('i') => interval = seconds(parser.value()?, "-i")?,
            other => return Err(other.unexpected().into()),
        }
    }
    let addr = target.address()?;
    let mut connection = introduce(&target)?;
    let interrupts = signal::into_pipe(&[SIGINT, SIGTERM]).map_err(Error::local("catch signals"))?;
    let mut series = Series { addr, count, interval, open: Vec::new(), sent: 0, statistics: Statistics::default() };
    let result = series.run(&mut connection, &interrupts);
    series.sum_up()?;
    result?;
    connection.close();
    Ok(ExitCode::from(if series.statistics.answered == series.sent { 0 } else { UNANSWERED }))
}

fn millis(time: Duration) -> String {
    with_thousandths(time.as_micros())
}

/// One run of questions.
struct Series {
    addr: Addr,
    /// `None`: until an interrupt.
    count: Option<NonZeroU32>,
    interval: Duration,
    /// Questions without an answer: number of the request, which question it is, when it was asked.
    open: Vec<(u32, u64, Instant)>,
    sent: u64,
    statistics: Statistics,
}

impl Series {
    /// Asks until all is asked and answered, or nothing more may be expected, or an interrupt comes.
    fn run(&mut self, connection: &mut Connection, interrupts: &OwnedFd) -> Result<(), Failure> {
        let mut due = Instant::now();
        loop {
            let all_asked = self.count.is_some_and(|count| self.sent == u64::from(count.get()));
            if all_asked && self.open.is_empty() {
                return Ok(());
            }
            if !all_asked && self.may_ask() && Instant::now() >= due {
                let asked = Instant::now();
                self.sent += 1;
                self.open.push((connection.ask(), self.sent, asked));
                due = asked + self.interval;
                continue;
            }
            let last = Instant::now() + LINE_PATIENCE;
            let deadline = if all_asked || !self.may_ask() { last } else { due };
            let lost = |error| Failure { code: UNANSWERED, ..Failure::from(error) };
            match connection.hear(deadline, interrupts.as_fd()).map_err(lost)? {
                Heard::Answer(id) => self.note(id)?,
                Heard::TimeOver if all_asked => return Ok(()),
                Heard::TimeOver => {}
                Heard::Interrupt => return Ok(()),
            }
        }
    }

    fn may_ask(&self) -> bool {
        self.open.len() < if self.interval.is_zero() { 1 } else { UNANSWERED_MAX }
    }

    fn note(&mut self, id: u32) -> io::Result<()> {
        let Some(index) = self.open.iter().position(|(asked, ..)| *asked == id) else { return Ok(()) };
        let (_, number, asked) = self.open.remove(index);
        let time = asked.elapsed();
        self.statistics.add(time);
        writeln!(io::stdout(), "answer from {} seq={number} time={} ms", self.addr, millis(time))
    }

    fn sum_up(&self) -> io::Result<()> {
        let (sent, answered) = (self.sent, self.statistics.answered);
        let lost = ((sent - answered) * 100).checked_div(sent).unwrap_or(0);
        let mut out = io::stdout().lock();
        writeln!(out, "--- {} ---\n{sent} sent, {answered} answered, {lost}% lost", self.addr)?;
        let Some([least, median, most]) = self.statistics.summary() else { return Ok(()) };
        writeln!(out, "min/median/max = {}/{}/{} ms", millis(least), millis(median), millis(most))
    }
}

/// What a run has shown.
#[derive(Debug, Default)]
struct Statistics {
    answered: u64,
    least: Duration,
    most: Duration,
    /// The last `TIMES_MAX`, in no order.
    times: Vec<Duration>,
}

impl Statistics {
    fn add(&mut self, time: Duration) {
        self.least = if self.answered == 0 { time } else { self.least.min(time) };
        self.most = self.most.max(time);
        match self.times.get_mut((self.answered % TIMES_MAX as u64) as usize) {
            Some(oldest) => *oldest = time,
            None => self.times.push(time),
        }
        self.answered += 1;
    }

    /// Least, median and most; of an even number the median is the mean of the two in the middle. `None` when there is nothing.
    fn summary(&self) -> Option<[Duration; 3]> {
        // A heap sorts in a tenth of the code of `sort`.
        let times = BinaryHeap::from(self.times.clone()).into_sorted_vec();
        let upper = *times.get(times.len() / 2)?;
        let lower = *times.get((times.len() - 1) / 2)?;
        Some([self.least, (lower + upper) / 2, self.most])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statistics(times_ms: &[u64]) -> Statistics {
        let mut statistics = Statistics::default();
        times_ms.iter().for_each(|time| statistics.add(Duration::from_millis(*time)));
        statistics
    }

    #[test]
    fn a_summary_has_the_extremes_and_the_middle() {
        let summary = |times: &[u64]| statistics(times).summary().map(|found| found.map(|time| time.as_millis()));
        assert_eq!(summary(&[]), None);
        assert_eq!(summary(&[7]), Some([7, 7, 7]));
        assert_eq!(summary(&[9, 1, 4]), Some([1, 4, 9]));
        assert_eq!(summary(&[9, 1, 4, 6]), Some([1, 5, 9]));
    }

    #[test]
    fn a_run_of_days_keeps_its_extremes_and_the_median_of_its_last_answers() {
        let mut statistics = statistics(&[1, 1000]);
        (0..TIMES_MAX).for_each(|_| statistics.add(Duration::from_millis(5)));
        assert_eq!(statistics.times.len(), TIMES_MAX);
        let found = statistics.summary().expect("answers").map(|time| time.as_millis());
        assert_eq!(found, [1, 5, 1000]);
    }
}
