//! The benchmark: what the agent costs beside what the kernel alone would take, on this machine and in this run.
//!
//! `cargo bench -- [--check] [FILTER]...` runs the rows whose name holds a filter. Each row alternates between ours and its floor and compares
//! the medians, so that other work on the machine meets both. `--check` repeats a row that is over, up to three times in all, and ends with 1
//! if it stays over. The agent is the static release binary, which is built first; `LODGER_STATIC` names another one.

mod agent;
#[cfg(feature = "clear")]
mod clear;
mod files;
mod floor;
mod guest;
#[path = "../support/line.rs"]
mod line;
mod link;
mod memory;
#[cfg(feature = "metadata")]
mod metadata;
mod monitor;
mod programs;
#[path = "../support/weather.rs"]
mod weather;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::agent::Agent;

/// Times that a row may be measured before it counts as over.
const ATTEMPTS: usize = 3;

/// What a row found.
pub struct Measured {
    pub ours: String,
    pub floor: String,
    /// What `must` is about: a ratio or a size.
    pub value: f64,
}

/// How far a row may go.
#[derive(Clone, Copy)]
pub enum Must {
    AtMost(f64),
    AtLeast(f64),
    /// A size in bytes.
    Bytes(u64),
    /// So many milliseconds more than the floor.
    MoreMillis(f64),
}

/// Why a row was not measured.
pub struct Skipped(pub String);

/// One row of the table.
struct Row {
    what: &'static str,
    measure: fn(&Agent) -> Result<Measured, Skipped>,
    must: Must,
}

const ROWS: &[Row] = &[
    Row { what: "exec, fresh connection", measure: programs::on_a_fresh_connection, must: Must::AtMost(2.0) },
    Row { what: "exec, open connection", measure: programs::on_an_open_connection, must: Must::AtMost(1.5) },
    Row { what: "stdout of head -c 1G", measure: programs::output, must: Must::AtLeast(0.8) },
    #[cfg(feature = "clear")]
    Row { what: "clear frames", measure: clear::output, must: Must::AtLeast(0.9) },
    Row { what: "file read, 256 MiB", measure: files::read, must: Must::AtLeast(0.7) },
    Row { what: "file write, 256 MiB", measure: files::write, must: Must::AtLeast(0.7) },
    Row { what: "stat round trip", measure: files::stat, must: Must::AtMost(2.0) },
    Row { what: "agent.ping, fresh", measure: monitor::ping, must: Must::AtMost(2.0) },
    Row { what: "agent.ping, 64 at once", measure: monitor::many_at_once, must: Must::AtMost(50.0) },
    Row { what: "peak RSS, bad requests", measure: monitor::bad_requests, must: Must::Bytes(16 << 20) },
    Row { what: "link on a pty", measure: link::one_channel, must: Must::AtLeast(0.25) },
    Row { what: "link on a pty, MiB/s", measure: link::one_channel_rate, must: Must::AtLeast(25.0) },
    Row { what: "link, 16 channels out", measure: link::many_channels_out, must: Must::AtLeast(0.8) },
    Row { what: "link, 16 channels in", measure: link::many_channels_in, must: Must::AtLeast(0.8) },
    Row { what: "link, noise 1/100,000", measure: link::noise_of_100_000, must: Must::AtLeast(0.7) },
    Row { what: "link, noise 1/10,000", measure: link::noise_of_10_000, must: Must::AtLeast(0.3) },
    Row { what: "link, noise 1/1,000", measure: link::noise_of_1000, must: Must::AtLeast(0.001) },
    Row { what: "link, 115,200 baud", measure: link::slow_bulk, must: Must::AtLeast(0.85) },
    Row { what: "link, ping beside output", measure: link::slow_ping_beside_output, must: Must::AtMost(250.0) },
    Row { what: "link, ping beside input", measure: link::slow_ping_beside_input, must: Must::AtMost(250.0) },
    #[cfg(feature = "metadata")]
    Row { what: "log, beside pty and TCP", measure: metadata::log, must: Must::AtLeast(0.5) },
    #[cfg(feature = "metadata")]
    Row { what: "log, beside TCP alone", measure: metadata::log_and_no_terminal, must: Must::AtLeast(0.01) },
    #[cfg(feature = "metadata")]
    Row { what: "artifact, beside TCP", measure: metadata::artifact, must: Must::AtLeast(0.5) },
    #[cfg(feature = "metadata")]
    Row { what: "artifact by control", measure: metadata::artifact_by_control, must: Must::AtLeast(0.5) },
    #[cfg(feature = "metadata")]
    Row { what: "shell, cat beside TCP", measure: metadata::shell, must: Must::AtLeast(0.05) },
    Row { what: "agent RSS, idle", measure: memory::of_the_agent, must: Must::Bytes(1536 << 10) },
    Row { what: "init RSS", measure: memory::of_init, must: Must::Bytes(819 << 10) },
    Row { what: "guest until it answers", measure: guest::until_the_agent_answers, must: Must::MoreMillis(60.0) },
    Row { what: "static binary", measure: memory::of_the_binary, must: Must::Bytes(1600 << 10) },
];

impl Must {
    fn holds(self, value: f64) -> bool {
        match self {
            Must::AtMost(limit) | Must::MoreMillis(limit) => value <= limit,
            Must::AtLeast(limit) => value >= limit,
            Must::Bytes(limit) => value <= limit as f64,
        }
    }

    fn text(self) -> String {
        match self {
            Must::AtMost(limit) => format!("<= {limit:?}"),
            Must::AtLeast(limit) => format!(">= {limit:?}"),
            Must::Bytes(limit) => format!("<= {limit} B"),
            Must::MoreMillis(limit) => format!("<= +{limit:.0} ms"),
        }
    }

    fn ratio(self, value: f64) -> String {
        match self {
            Must::Bytes(limit) => format!("{:.2}", value / limit as f64),
            Must::MoreMillis(_) => format!("{value:+.0}"),
            _ => format!("{value:.2}"),
        }
    }
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if let Some(role) = arguments.next().filter(|first| first == floor::ROLE_OPTION).and_then(|_| arguments.next()) {
        floor::play(&role);
        return ExitCode::SUCCESS;
    }
    // `cargo bench` adds an option of its own for the harness that this one stands in for.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let (options, filters): (Vec<_>, Vec<_>) = words.iter().partition(|word| word.starts_with("--"));
    if options.iter().any(|option| *option != "--check") {
        eprintln!("usage: cargo bench -- [--check] [FILTER]...");
        return ExitCode::from(2);
    }
    let binary = match agent::binary() {
        Ok(binary) => binary,
        Err(why) => {
            println!("skipped: {why}");
            return ExitCode::SUCCESS;
        }
    };
    let agent = Agent::start(binary, "all");
    println!("{:<24} {:>14} {:>14} {:>6}  {:<12}", "what", "ours", "floor", "ratio", "must");
    let chosen = |row: &&Row| filters.is_empty() || filters.iter().any(|filter| row.what.contains(filter.as_str()));
    let over = ROWS.iter().filter(chosen).filter(|row| !run(row, &agent)).count();
    if over > 0 && !options.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Measures and prints a row. `false`: it is over.
fn run(row: &Row, agent: &Agent) -> bool {
    for attempt in 1.. {
        let measured = match (row.measure)(agent) {
            Ok(measured) => measured,
            Err(Skipped(why)) => {
                println!("{:<24} skipped: {why}", row.what);
                return true;
            }
        };
        let holds = row.must.holds(measured.value);
        if holds || attempt == ATTEMPTS {
            let (ratio, must) = (row.must.ratio(measured.value), row.must.text());
            let verdict = if holds { "ok" } else { "OVER" };
            println!("{:<24} {:>14} {:>14} {ratio:>6}  {must:<12} {verdict}", row.what, measured.ours, measured.floor);
            return holds;
        }
    }
    false
}

/// Durations of both, alternating; in the middle of each list is its median.
pub fn alternate(rounds: usize, mut ours: impl FnMut(), mut floor: impl FnMut()) -> (Duration, Duration) {
    let time = |act: &mut dyn FnMut()| {
        let start = Instant::now();
        act();
        start.elapsed()
    };
    let (mut our_times, mut floor_times) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        our_times.push(time(&mut ours));
        floor_times.push(time(&mut floor));
    }
    our_times.sort_unstable();
    floor_times.sort_unstable();
    (our_times[rounds / 2], floor_times[rounds / 2])
}

/// The result of a row about latency: each time is that of `count` operations.
pub fn latency((ours, floor): (Duration, Duration), count: u32) -> Measured {
    let text = |time: Duration| format!("{:.1} us", time.as_secs_f64() * 1e6 / f64::from(count));
    Measured { ours: text(ours), floor: text(floor), value: ours.as_secs_f64() / floor.as_secs_f64() }
}

/// The result of a row about throughput: each time is that of `bytes` bytes.
pub fn throughput((ours, floor): (Duration, Duration), bytes: u64) -> Measured {
    let text = |time: Duration| format!("{:.0} MiB/s", bytes as f64 / f64::from(1 << 20) / time.as_secs_f64());
    Measured { ours: text(ours), floor: text(floor), value: floor.as_secs_f64() / ours.as_secs_f64() }
}
