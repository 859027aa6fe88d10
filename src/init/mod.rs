//! Process 1: prepares the machine, keeps the agent alive, buries orphans, and ends the machine in order.
//!
//! It is a process of its own, with one thread, and imports nothing of the program but `sys` and `power`. It never gives up and never
//! ends while the machine runs, because its end is a kernel panic: every error is a line on the console. What it is told, it is told by
//! signals:
//!
//! | signal | meaning |
//! | --- | --- |
//! | SIGTERM, SIGPWR, SIGUSR2, 38 | power off |
//! | SIGINT (Ctrl-Alt-Del), 39 | reboot |
//! | SIGUSR1, 37 | halt |
//!
//! 37 to 39 are SIGRTMIN+3 to +5 as container managers send them; they count as the GNU library does, where SIGRTMIN is 34.
//!
//! The kernel command line may hold `lodger.*` options (see `options`), which a container's process 1 does not read. /etc/lodger/modules
//! lists kernel modules that are loaded before the agent starts, one file a line in their order; `#` begins a comment. /etc/lodger/listen
//! lists addresses for the agent, for when neither the command line nor the agent's own file /etc/lodger/lodger.conf has any.
//! /etc/hostname is read as everywhere.

mod address;
mod console;
mod mounts;
mod options;
mod programs;
mod shutdown;

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use crate::init::address::Wish;
use crate::init::console::Console;
use crate::init::options::Options;
use crate::init::programs::Agent;
use crate::init::shutdown::Exec;
use crate::power::End;
use crate::sys::errno::describe;
use crate::sys::file::{self, EEXIST, ENOENT};
use crate::sys::process::bury_any;
use crate::sys::{boot, interface, signal};

const MODULES: &str = "/etc/lodger/modules";
const LISTEN: &str = "/etc/lodger/listen";
const HOST_NAME: &str = "/etc/hostname";
const HOST_NAME_DEFAULT: &str = "lodger";

/// Exit code of our own errors.
const OWN_ERROR: u8 = 125;

/// Pause after an error of the wait for signals, which has none that is known; without it such an error would be a busy loop.
const PAUSE_AFTER_ERROR: Duration = Duration::from_secs(1);

/// What process 1 is the first process of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Realm {
    Machine,
    /// A pid namespace. The kernel command line and the file systems are not ours.
    Container,
}

/// The end that a signal asks for.
fn asked_by(signal: i32) -> Option<End> {
    match signal {
        signal::SIGTERM | signal::SIGPWR | signal::SIGUSR2 | 38 => Some(End::PowerOff),
        signal::SIGINT | 39 => Some(End::Reboot),
        signal::SIGUSR1 | 37 => Some(End::Halt),
        _ => None,
    }
}

/// Is process 1 until the end of the machine. Returns only in a process that is not process 1, with a message on its standard error,
/// and at the end of a container that may not end the machine.
pub fn run() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("lodger: init: this is not process 1");
        return ExitCode::from(OWN_ERROR);
    }
    let mut console = Console::default();
    mounts::mount_all(&mut console);
    if let Err(error) = signal::block_all() {
        console.line(&format!("block signals: {}", describe(&error)));
    }
    // The kernel refuses this in a container, which tells us where we are.
    let realm = if boot::take_ctrl_alt_del().is_ok() { Realm::Machine } else { Realm::Container };
    let options = match realm {
        Realm::Machine => read_options(&mut console),
        // The kernel command line speaks to process 1 of the machine: its program would start itself again in here.
        Realm::Container => Options::default(),
    };
    prepare_machine(&options, &mut console);
    let (end, exec) = supervise(&options, &mut console);
    shutdown::run(realm, end, exec, &mut console)
}

fn read_options(console: &mut Console) -> Options {
    let line = match fs::read("/proc/cmdline") {
        Ok(line) => line,
        Err(error) => {
            console.line(&format!("read /proc/cmdline: {}", describe(&error)));
            Vec::new()
        }
    };
    let mut options = options::parse(&String::from_utf8_lossy(&line));
    options.listen_default.extend(entries(&fs::read_to_string(LISTEN).unwrap_or_default()).map(str::to_owned));
    options.complaints.iter().for_each(|complaint| console.line(complaint));
    options
}

fn prepare_machine(options: &Options, console: &mut Console) {
    if let Some(name) = host_name(options)
        && let Err(error) = boot::set_host_name(&name)
    {
        console.line(&format!("set the host name to {name}: {}", describe(&error)));
    }
    let modules = fs::read_to_string(MODULES).unwrap_or_default();
    for path in entries(&modules) {
        if let Err(error) = load_module(path) {
            console.line(&format!("load {path}: {}", describe(&error)));
        }
    }
}

/// The name to set; `None` when the machine has one.
fn host_name(options: &Options) -> Option<String> {
    let from_file = || entries(&fs::read_to_string(HOST_NAME).ok()?).next().map(str::to_owned);
    options.hostname.clone().or_else(from_file).or_else(|| {
        let nameless = fs::read("/proc/sys/kernel/hostname").is_ok_and(|name| name.trim_ascii() == b"(none)");
        nameless.then(|| HOST_NAME_DEFAULT.to_owned())
    })
}

/// The lines of a file that are neither empty nor comments.
fn entries(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn load_module(path: &str) -> io::Result<()> {
    let module = file::open(path, file::O_RDONLY, 0)?;
    let packed = [".xz", ".zst", ".gz"].iter().any(|ending| path.ends_with(ending));
    let result = if packed { boot::load_compressed_module(module.as_fd()) } else { boot::load_module(module.as_fd()) };
    match result {
        Err(error) if error.raw_os_error() == Some(EEXIST) => Ok(()),
        // The file is there. The kernel says so of a symbol that no loaded module exports.
        Err(error) if error.raw_os_error() == Some(ENOENT) => {
            Err(io::Error::other("it needs a module that is not loaded"))
        }
        result => result,
    }
}

/// Keeps everything running until the end is asked for.
fn supervise(options: &Options, console: &mut Console) -> (End, Exec) {
    let env = programs::environment(options);
    let mut agent = Agent::new(options, Instant::now());
    // Before the start of the agent: what it dials is there at its first attempt then.
    let wish = options.address.clone().map(|address| Wish::new(address, Instant::now()));
    let mut wish = wish.and_then(|wish| wish.fulfil_if_due(Instant::now(), console));
    agent.start_if_due(Instant::now(), &env, console);
    // Behind the start of the agent, which does not need it: of all preparations this one takes longest.
    if let Err(error) = interface::switch_on("lo") {
        console.line(&format!("switch on lo: {}", describe(&error)));
    }
    let mut exec = match &options.exec {
        None => Exec::None,
        Some(words) => match programs::start_exec(words, &env, console) {
            Ok(pid) => Exec::Runs(pid),
            Err(code) => Exec::report(code, console),
        },
    };
    // What was needed once need not stay: from here on little more than the loop runs. Without it only memory is lost.
    let _ = boot::release_code();
    loop {
        if let Exec::Ended(_) = exec {
            return (End::PowerOff, exec);
        }
        agent.start_if_due(Instant::now(), &env, console);
        wish = wish.and_then(|wish| wish.fulfil_if_due(Instant::now(), console));
        let due = agent.deadline().into_iter().chain(wish.as_ref().map(Wish::deadline)).min();
        if let Some(end) = wait(due, console) {
            return (end, exec);
        }
        bury(&mut agent, &mut exec, console);
    }
}

/// Waits for a signal or until something is due: the end that the signal asks for, if it asks for one.
fn wait(due: Option<Instant>, console: &mut Console) -> Option<End> {
    let timeout = due.map(|due| due.saturating_duration_since(Instant::now()));
    match signal::wait(timeout) {
        Ok(found) => found.and_then(asked_by),
        Err(error) => {
            console.line(&format!("wait for signals: {}", describe(&error)));
            thread::sleep(PAUSE_AFTER_ERROR);
            None
        }
    }
}

/// Buries every zombie there is: one SIGCHLD may stand for many.
fn bury(agent: &mut Agent, exec: &mut Exec, console: &mut Console) {
    // An error says that there is no child.
    while let Ok(Some((pid, status))) = bury_any() {
        if !exec.ended(pid, status, console) {
            agent.ended(pid, status, Instant::now(), console);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_asked_for_by_the_signal_that_means_it() {
        let usual = [signal::SIGUSR2, signal::SIGINT, signal::SIGUSR1];
        assert_eq!(usual.map(asked_by), [Some(End::PowerOff), Some(End::Reboot), Some(End::Halt)]);
        assert_eq!([signal::SIGTERM, signal::SIGPWR].map(asked_by), [Some(End::PowerOff); 2]);
        assert_eq!([37, 38, 39].map(asked_by), [Some(End::Halt), Some(End::PowerOff), Some(End::Reboot)]);
        assert_eq!([signal::SIGHUP, signal::SIGCHLD, 0, 36, 40].map(asked_by), [None; 5]);
    }

    #[test]
    fn a_list_file_has_comments_and_empty_lines() {
        assert_eq!(entries("# a\n\n /x.ko \n/y.ko.xz").collect::<Vec<_>>(), ["/x.ko", "/y.ko.xz"]);
    }
}
