//! `vm --metadata`: a guest of its own for a task, and the service that gives it.

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use lexopt::Parser;

use crate::cli::exec::{Request, TIMED_OUT};
use crate::cli::metadata_commands::socket;
use crate::cli::metadata_host::{listening, unread, verdict};
use crate::cli::output::Log;
use crate::cli::{Failure, seconds, text};
use crate::metadata::host::{self, Host};
use crate::metadata::listener::Listener;
use crate::metadata::service::Service;
use crate::mkinitramfs::Image;
use crate::sys::fd::{self, PollSet};
use crate::sys::{errno, signal};
use crate::transport::unix;
use crate::vm::machine::Machine;
use crate::vm::{Error, Guest};

/// How long what a guest said may be under way when it has ended.
const UNDER_WAY: Duration = Duration::from_secs(2);

/// How often to look for the end of QEMU where the kernel does not tell of it, which is before Linux 5.3.
const LOOK: Duration = Duration::from_secs(1);

/// What the options ask for, of those that stand beside `--metadata`.
#[derive(Default)]
pub struct Wishes {
    wanted: bool,
    /// `Some(None)`: to stdout, in so many words.
    log: Option<Option<PathBuf>>,
    control: Option<PathBuf>,
    linger: Option<Duration>,
}

impl Wishes {
    pub fn has(name: &str) -> bool {
        matches!(name, "metadata" | "log" | "control" | "linger")
    }

    /// Takes an option that `has` knows.
    pub fn take(&mut self, name: String, parser: &mut Parser) -> Result<(), Failure> {
        match name.as_str() {
            "log" => self.log = Some(Some(PathBuf::from(parser.value()?)).filter(|path| path != Path::new("-"))),
            "control" => self.control = Some(socket(&parser.value()?)?),
            "linger" => self.linger = Some(seconds(parser.value()?, "--linger")?),
            _ => self.wanted = true,
        }
        Ok(())
    }

    /// Whether there shall be a task.
    ///
    /// # Errors
    /// When there shall be none, but an option is there that is about one.
    pub fn is_wanted(&self) -> Result<bool, Failure> {
        let lone =
            [(self.log.is_some(), "--log"), (self.control.is_some(), "--control"), (self.linger.is_some(), "--linger")];
        match lone.iter().find(|(is_there, _)| *is_there && !self.wanted) {
            Some((_, name)) => Err(Failure::new(format!("{name} stands only with --metadata"))),
            None => Ok(self.wanted),
        }
    }

    /// The task; `request` is what would be run without it.
    ///
    /// # Errors
    /// For words that are not UTF-8, which the protocol cannot carry, and for what it has no place for.
    pub fn into_task(self, request: Request, wait: Duration, timeout: Option<Duration>) -> Result<Task, Failure> {
        let refused = [
            (!request.exec.cwd.is_empty(), "-C"),
            (request.terminal, "-t"),
            (request.no_input, "-n"),
            (request.record.is_some(), "--record"),
        ];
        refuse(&refused)?;
        let word = |bytes: Vec<u8>| text(OsString::from_vec(bytes));
        let command = request.exec.argv.unwrap_or_default().into_iter().map(word).collect::<Result<_, _>>()?;
        let pair = |entry: Vec<u8>| {
            // That there is an equals sign was seen to where the option was read.
            word(entry).map(|entry| entry.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())))
        };
        let env = request.exec.extension.set_env.into_iter().filter_map(|entry| pair(entry).transpose());
        let env = env.collect::<Result<_, _>>()?;
        let linger = self.linger.unwrap_or_default();
        Ok(Task { command, env, log: self.log.flatten(), control: self.control, linger, wait, timeout })
    }
}

/// Fails for the first of some options that is there.
///
/// # Errors
/// That it cannot stand with `--metadata`.
pub fn refuse(options: &[(bool, &str)]) -> Result<(), Failure> {
    match options.iter().find(|(is_there, _)| *is_there) {
        Some((_, name)) => Err(Failure::new(format!("{name} cannot stand with --metadata; see `lodger help vm`"))),
        None => Ok(()),
    }
}

/// This program's file, which QEMU starts for each connection of the guest.
pub fn relay() -> Result<PathBuf, Failure> {
    let about = |error: &io::Error| Failure::new(format!("find this program's file: {}", errno::describe(error)));
    let path = env::current_exe().map_err(|error| about(&error))?;
    // A program that was replaced under us has another name, which is none of a file.
    path.metadata().map_err(|error| about(&error))?;
    Ok(path)
}

/// What the guest is to do, and what one may want of it meanwhile.
#[derive(Debug, Default)]
pub struct Task {
    command: Vec<String>,
    env: Vec<(String, String)>,
    /// `None`: to stdout.
    log: Option<PathBuf>,
    control: Option<PathBuf>,
    linger: Duration,
    /// How long the guest may take until it asks for the task.
    wait: Duration,
    timeout: Option<Duration>,
}

/// Boots the guest, and stays until the task has its result.
pub fn run(machine: &Machine, image: Image, task: Task, signals: &OwnedFd) -> Result<ExitCode, Failure> {
    let start = Instant::now();
    let listen = |path: &PathBuf| {
        unix::Listener::open(path, 0o600, None).map_err(|error| listening(&path.display().to_string(), &error))
    };
    let control = task.control.as_ref().map(listen).transpose()?;
    let bell = host::bell().map_err(system)?;
    let wake = Arc::clone(&bell.1);
    let resolved = Box::new(move |_| drop(fd::write(wake.as_fd(), b"x")));
    let is_lost = Arc::new(AtomicBool::new(false));
    let (is_unread, unread) = unread(&bell.1);
    let log = Box::new(Log::open("vm", task.log.as_deref(), &is_lost, unread)?);
    let service = Arc::new(Service::new(&task.command, &task.env, log, resolved).map_err(system)?);
    let guest = machine.start(image)?;
    // The guest needs a second at least until it comes.
    let listener = Listener::Unix(listen(&guest.service_socket())?);
    let (from, linger) = (Vec::new(), task.linger);
    let host = Host { service: Arc::clone(&service), listener, from, control, linger, bell, is_unread, tell: |_| {} };
    let host = Serving::start(host).map_err(system)?;
    let stop = Watch { guest: &guest, host: &host, service: &service, signals, start, task: &task }.run()?;
    // The guest first: what it has said is complete then.
    drop(guest);
    let verdict = |success| verdict(&service, success, &is_lost);
    let Some(stop) = stop else { return verdict(host.join().map_err(system)?) };
    host.end(&service);
    match (stop, service.result()) {
        (Stop::TimedOut(text), _) => Err(Failure::with_code(TIMED_OUT, text)),
        // It has ended behind its result.
        (Stop::Guest(_), Some(success)) => verdict(success),
        (Stop::Guest(error), None) => Err(error.into()),
    }
}

fn system(error: io::Error) -> Failure {
    Failure::new(format!("serve the task: {}", errno::describe(&error)))
}

/// The host in a thread of its own, because the guest must be watched at the same time.
struct Serving {
    thread: JoinHandle<io::Result<bool>>,
    /// Where signals are passed on to it.
    orders: OwnedFd,
    /// At its end when the host is.
    ended: OwnedFd,
}

impl Serving {
    fn start(host: Host) -> io::Result<Serving> {
        let (notices, orders) = fd::pipe()?;
        let (ended, alive) = fd::pipe()?;
        fd::never_block(notices.as_fd())?;
        fd::never_block(orders.as_fd())?;
        let work = move || {
            let result = host.run(&notices);
            drop(alive);
            result
        };
        Ok(Serving { thread: thread::Builder::new().spawn(work)?, orders, ended })
    }

    fn pass_on(&self, signal: i32) {
        // Full is the pipe only when nobody heeds it.
        let _ = fd::write(self.orders.as_fd(), &[signal as u8]);
    }

    /// What it says about the task, when it has ended.
    fn join(self) -> io::Result<bool> {
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread is lost")))
    }

    /// Lets it end when everything has arrived that a dead guest has said; who does not take that is not waited for.
    fn end(self, service: &Service) {
        self.pass_on(signal::SIGTERM);
        let _ = fd::wait_for(self.ended.as_fd(), fd::READ, Some(UNDER_WAY));
        service.close();
        let _ = fd::wait_for(self.ended.as_fd(), fd::READ, Some(UNDER_WAY));
    }
}

/// Why the guest is not waited for any more.
enum Stop {
    /// It has ended, or has not asked for its task.
    Guest(Error),
    TimedOut(String),
}

struct Watch<'a> {
    guest: &'a Guest,
    host: &'a Serving,
    service: &'a Service,
    signals: &'a OwnedFd,
    start: Instant,
    task: &'a Task,
}

impl Watch<'_> {
    /// Waits for the end of the host, or for a reason to end it.
    fn run(&self) -> Result<Option<Stop>, Failure> {
        let mut set = PollSet::default();
        loop {
            if let Some(error) = self.guest.end() {
                return Ok(Some(Stop::Guest(error)));
            }
            let past = self.start.elapsed();
            if let Some(stop) = self.late(past) {
                return Ok(Some(stop));
            }
            let wait = Some(self.task.wait).filter(|wait| past < *wait);
            let watch = self.guest.end_watch();
            let look = watch.is_none().then(|| past + LOOK);
            let next = wait.into_iter().chain(self.task.timeout).chain(look).min();
            set.clear();
            let signals = set.watch(self.signals.as_fd(), fd::READ);
            let host = set.watch(self.host.ended.as_fd(), fd::READ);
            if let Some(guest) = watch {
                set.watch(guest, fd::READ);
            }
            set.wait(next.map(|next| next.saturating_sub(past))).map_err(system)?;
            if set.ready(host).readable {
                return Ok(None);
            }
            if set.ready(signals).readable {
                let heeded = signal::take(self.signals).into_iter().filter(|number| *number != signal::SIGWINCH);
                heeded.for_each(|number| self.host.pass_on(number));
            }
        }
    }

    /// What is over when so much time has gone by.
    fn late(&self, past: Duration) -> Option<Stop> {
        let asked = self.service.was_asked();
        let idle = || Error::Idle { after: past, console: self.guest.tail() };
        if self.task.timeout.is_some_and(|timeout| past >= timeout) {
            let text = || "the time is over; the task is ended with its guest".to_owned();
            return Some(Stop::TimedOut(if asked { text() } else { idle().to_string() }));
        }
        (!asked && past >= self.task.wait).then(|| Stop::Guest(idle()))
    }
}
