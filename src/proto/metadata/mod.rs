//! The guest's side of the metadata service: work comes over HTTP from the host, which is always the one that is called.
//!
//! From the first moment a poll is open, and each action that it gives (a file, a list of files, a shell, the end of the task) is handled
//! by a thread of its own. Beside it the task: `execute` says what to run; its output is the body of `log` while it runs; the result is
//! `success` or `failed` after the log was answered. Then polls go on. Source: taskcluster-worker at commit 595e1fa; where its guest tools
//! would crash, hang or lie (section "Defects" of what is known about it), this does not.

mod backlog;
mod command;
mod folder;
mod output;
mod poll;
mod post;
mod programs;
mod reply;
mod shell;
mod task;
mod upload;

use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use crate::exec::tree::TERMINATION_GRACE;
use crate::http::client::{Address, Client};
use crate::http::retry;
use crate::http::wait::Limits;
use crate::metaservice::RESPONSE_MAX;
use crate::proto::bell::Bell;
use crate::proto::metadata::poll::Places;
use crate::proto::metadata::programs::Variable;
use crate::sys::fd::{self, PollSet};
use crate::sys::random;

/// Where the service is, unless it is said otherwise.
pub const HOST: &str = "169.254.169.254:80";

/// Bytes of a thread's stack; what is large is on the heap.
const STACK: usize = 256 << 10;

/// What the guest is told.
#[derive(Clone, Debug)]
pub struct Config {
    pub host: Address,
    /// In front of the task's command.
    pub entrypoint: Vec<String>,
    /// `NAME=value`, over our own environment; the task's is over it.
    pub env: Vec<String>,
    /// Program and arguments for shells that name none.
    pub shell: Vec<String>,
    /// As whom programs run.
    pub user: Option<String>,
    /// Where programs run; else in the home of their user.
    pub workdir: Option<PathBuf>,
    /// A task whose log could not be delivered whole has failed.
    pub fail_on_lost_log: bool,
    /// To end so long after the result was accepted.
    pub exit_with_task: Option<Duration>,
    pub timers: Timers,
}

impl Config {
    /// The same for an address in words; the error names them.
    pub fn at(host: &str) -> Result<Config, String> {
        host.parse().map(Config::of).map_err(|error| format!("\"{host}\": {}", why(&error)))
    }

    /// Nothing but where the service is.
    pub fn of(host: Address) -> Config {
        Config {
            host,
            entrypoint: Vec::new(),
            env: Vec::new(),
            shell: vec!["sh".to_owned()],
            user: None,
            workdir: None,
            fail_on_lost_log: false,
            exit_with_task: None,
            timers: Timers::default(),
        }
    }
}

/// How long things may take. The defaults are upstream's where it has any.
#[derive(Clone, Copy, Debug)]
pub struct Timers {
    /// One small request and its response.
    pub request: Duration,
    /// Attempts after the first one.
    pub retries: u32,
    /// Between two series of attempts to learn what to do.
    pub execute_pause: Duration,
    /// One poll. The host answers within 30 s.
    pub poll: Duration,
    /// After a poll that went wrong.
    pub poll_pause: Duration,
    /// How long the host waits for a reply to begin. What comes later is for nobody.
    pub reply: Duration,
    /// The handshake of a shell.
    pub handshake: Duration,
    /// How long the host may take nothing of the log before the program goes on without it, and how long it may take to answer the end.
    pub log_patience: Duration,
    /// How long the host may take nothing of a file before it is given up.
    pub artifact_patience: Duration,
    /// From SIGTERM to SIGKILL.
    pub termination_grace: Duration,
}

impl Default for Timers {
    fn default() -> Timers {
        Timers {
            request: Duration::from_secs(5),
            retries: retry::RETRIES_MAX,
            execute_pause: Duration::from_millis(200),
            poll: Duration::from_secs(35),
            poll_pause: Duration::from_secs(1),
            reply: Duration::from_secs(30),
            handshake: Duration::from_secs(30),
            log_patience: Duration::from_secs(30),
            artifact_patience: Duration::from_secs(300),
            termination_grace: TERMINATION_GRACE,
        }
    }
}

/// Why it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Stopped,
    /// The task, which the host knows.
    Task {
        success: bool,
    },
    /// The task, and the host has not accepted its result.
    Unreported,
}

/// Does the task and what the host asks for besides, until `stop` is readable or the configuration says that it is enough. Then nothing that
/// was started is left, but what has left its process group on purpose and was not killed.
///
/// # Errors
/// Of threads and descriptors that cannot be made.
pub fn run(config: &Config, stop: BorrowedFd) -> io::Result<Ended> {
    let (ending, finished) = (Bell::new()?, Bell::new()?);
    let guest = Guest {
        config,
        stop: ending.watch(),
        env: Mutex::default(),
        killed: AtomicBool::new(false),
        kill: Bell::new()?,
        places: Mutex::default(),
        action_ended: Bell::new()?,
    };
    let outcome = Mutex::new(None);
    thread::scope(|scope| {
        let task = || {
            *held(&outcome) = task::run(&guest);
            finished.ring();
        };
        let started = spawn(scope, task).and_then(|()| spawn(scope, || poll::run(&guest, scope)));
        let ended = started.and_then(|()| wait_for_end(config, stop, &finished, &outcome));
        ending.ring();
        ended
    })
}

fn wait_for_end(
    config: &Config,
    stop: BorrowedFd,
    finished: &Bell,
    outcome: &Mutex<Option<Ended>>,
) -> io::Result<Ended> {
    let mut until: Option<(Instant, Ended)> = None;
    let mut set = PollSet::default();
    loop {
        set.clear();
        set.watch(stop, fd::READ);
        if until.is_none() {
            set.watch(finished.watch(), fd::READ);
        }
        set.wait(until.map(|(until, _)| until.saturating_duration_since(Instant::now())))?;
        if set.ready(0).readable {
            return Ok(Ended::Stopped);
        }
        finished.clear();
        let ended = *held(outcome);
        match (until, ended.zip(config.exit_with_task)) {
            (Some((until, ended)), _) if Instant::now() >= until => return Ok(ended),
            (None, Some((ended, after))) => until = Some((Instant::now() + after, ended)),
            _ => {}
        }
    }
}

fn spawn<'scope>(scope: &'scope Scope<'scope, '_>, run: impl FnOnce() + Send + 'scope) -> io::Result<()> {
    thread::Builder::new().stack_size(STACK).spawn_scoped(scope, run).map(drop)
}

/// What a lock holds. Nobody panics while holding one, and if somebody did, the state would still be whole.
fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What all threads share.
struct Guest<'a> {
    config: &'a Config,
    /// Readable when everything shall end.
    stop: BorrowedFd<'a>,
    /// The task's environment, once it is known.
    env: Mutex<Vec<Variable>>,
    /// The task shall end, now or as soon as it begins. Never taken back.
    killed: AtomicBool,
    kill: Bell,
    /// What the host has asked for.
    places: Mutex<Places>,
    action_ended: Bell,
}

impl Guest<'_> {
    fn timers(&self) -> &Timers {
        &self.config.timers
    }

    /// For work that must be done within `time`.
    fn within(&self, time: Duration) -> Limits<'_> {
        Limits { deadline: Some(Instant::now() + time), stop: Some(self.stop) }
    }

    fn is_stopped(&self) -> bool {
        self.pause(Duration::ZERO)
    }

    /// Waits so long; true at once when everything shall end.
    fn pause(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match fd::wait_for(self.stop, fd::READ, Some(left)) {
                Ok(ready) if ready.readable => return true,
                _ if left.is_zero() => return false,
                _ => {}
            }
        }
    }

    /// Waits before the `n`th attempt after the first one; true when everything shall end.
    fn pause_before_retry(&self, n: u32) -> bool {
        // Without randomness all guests come back at the same time, which is bad and not wrong.
        let random = random::getrandom().map_or(0, u32::from_ne_bytes);
        self.pause(retry::delay(n, random))
    }

    fn is_killed(&self) -> bool {
        self.killed.load(Ordering::SeqCst)
    }

    /// The task shall end.
    fn kill(&self) {
        self.killed.store(true, Ordering::SeqCst);
        self.kill.ring();
    }

    /// A small request, made again as the schedule has it.
    fn request(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<(u16, Vec<u8>)> {
        self.request_until(method, target, headers, body, None)
    }

    /// The same, and not made again when nobody waits for it any more.
    fn request_until(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        until: Option<Instant>,
    ) -> io::Result<(u16, Vec<u8>)> {
        let mut attempt = 0;
        loop {
            // A new connection each time: after what went wrong the old one is in no known state.
            let mut client = Client::new(self.config.host.clone());
            let limits = self.within(self.timers().request);
            let result = client.request(method, target, headers, body, RESPONSE_MAX, limits);
            attempt += 1;
            let is_late = until.is_some_and(|until| Instant::now() >= until);
            let again = !is_late && retry::is_retried(result.as_ref().map(|(status, _)| *status));
            if !again || attempt > self.timers().retries || self.pause_before_retry(attempt) {
                return result;
            }
            match &result {
                Ok((status, _)) => log::debug!("{method} {target}: status {status}, once more"),
                Err(error) => log::debug!("{method} {target}: {}, once more", why(error)),
            }
        }
    }
}

/// The text of an error of a connection.
fn why(error: &io::Error) -> String {
    crate::sys::errno::describe(error)
}
