//! One task for one guest, for whoever wants something of that guest.

use std::fmt;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value};

use crate::metadata::actions::{Actions, Ended, Outcome, Store, Timers};
use crate::metadata::shell::Shell;
use crate::metaservice::{Action, Kind};
use crate::stream::Stream;
use crate::sys::fd;

/// Attempts at what is worth more than one, each with an id of its own. Upstream's number.
pub const ATTEMPTS: usize = 3;

/// Why the guest did not give what was asked for.
#[derive(Debug)]
pub enum ArtifactError {
    /// It says that it has no such file or folder.
    NotFound,
    /// It has not replied, or not as it should have; or what it sent could not be stored.
    Internal(String),
}

impl std::error::Error for ArtifactError {}

impl fmt::Display for ArtifactError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            ArtifactError::NotFound => f.write_str("the guest has no such file or folder"),
            ArtifactError::Internal(why) => f.write_str(why),
        }
    }
}

/// Called once, with whether the task succeeded.
pub type Callback = Box<dyn FnOnce(bool) + Send>;

#[derive(Default)]
pub struct Verdict {
    pub success: Option<bool>,
    callback: Option<Callback>,
}

/// A task: what the guest is to run, and what it says about it.
pub struct Service {
    pub(crate) execute: String,
    pub(crate) log: Mutex<Box<dyn Write + Send>>,
    pub(crate) actions: Actions,
    pub(crate) timers: Timers,
    verdict: Mutex<Verdict>,
    asked: AtomicBool,
    /// Readable when the service has ended.
    stop: (OwnedFd, OwnedFd),
}

impl Service {
    /// A service that nobody has connected to. What the guest logs goes to `log` as it comes; `resolved` is called once, behind the response
    /// to the first result.
    ///
    /// # Errors
    /// Of pipe2(2).
    pub fn new(
        command: &[String],
        env: &[(String, String)],
        log: Box<dyn Write + Send>,
        resolved: Callback,
    ) -> io::Result<Service> {
        let env: Map<String, Value> =
            env.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect();
        let execute = format!(r#"{{"env":{},"command":{}}}"#, Value::Object(env), Value::from(command));
        let verdict = Mutex::new(Verdict { success: None, callback: Some(resolved) });
        let (log, actions, timers) = (Mutex::new(log), Actions::default(), Timers::default());
        Ok(Service { execute, log, actions, timers, verdict, asked: AtomicBool::new(false), stop: fd::pipe()? })
    }

    /// The same with other times.
    pub fn with_timers(self, timers: Timers) -> Service {
        Service { timers, ..self }
    }

    /// Opens a shell in the guest; no command: the guest's default one. Tried once.
    ///
    /// # Errors
    /// `Internal`.
    pub fn exec_shell(&self, command: &[String], tty: bool) -> Result<Shell, ArtifactError> {
        let (stream, leftover) = self.open_shell(command, tty)?;
        Shell::over(stream, leftover).map_err(|error| ArtifactError::Internal(error.to_string()))
    }

    /// The same, for somebody who speaks the shell's WebSocket for us: the stream behind the handshake, and what has come on it.
    ///
    /// # Errors
    /// `Internal`.
    pub fn open_shell(&self, command: &[String], tty: bool) -> Result<(Stream, Vec<u8>), ArtifactError> {
        let action = Action { command: command.to_vec(), tty, ..action(Kind::ExecShell, "") };
        match self.actions.attempt(action, None, &self.timers).outcome {
            Outcome::Shell(stream, leftover) => Ok((stream, leftover)),
            outcome => Err(failure(outcome)),
        }
    }

    /// Fetches a file.
    ///
    /// # Errors
    /// `NotFound`, `Internal`; then the store holds nothing of use.
    pub fn get_artifact(&self, path: &str, into: Box<dyn Store>) -> Result<(), ArtifactError> {
        match self.attempts(&action(Kind::GetArtifact, path), Some(into)) {
            Outcome::Done => Ok(()),
            outcome => Err(failure(outcome)),
        }
    }

    /// The files below a folder, as the guest names them: each begins with `path`.
    ///
    /// # Errors
    /// `NotFound`, `Internal`.
    pub fn list_folder(&self, path: &str) -> Result<Vec<String>, ArtifactError> {
        match self.attempts(&action(Kind::ListFolder, path), None) {
            Outcome::Files(files) => Ok(files),
            outcome => Err(failure(outcome)),
        }
    }

    /// Asks the guest to kill its command. It ends as failed soon after.
    ///
    /// # Errors
    /// `Internal`.
    pub fn kill_process(&self) -> Result<(), ArtifactError> {
        match self.attempts(&action(Kind::KillProcess, ""), None) {
            Outcome::Done => Ok(()),
            outcome => Err(failure(outcome)),
        }
    }

    /// Whether the task succeeded, once that is known.
    pub fn result(&self) -> Option<bool> {
        self.verdict().success
    }

    /// The same once the guest has its answer too, so that nothing of it is left to do.
    pub(crate) fn announced(&self) -> Option<bool> {
        let verdict = self.verdict();
        verdict.success.filter(|_| verdict.callback.is_none())
    }

    /// Whether a guest has asked for the command.
    pub fn was_asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }

    pub(crate) fn note_question(&self) {
        self.asked.store(true, Ordering::SeqCst);
    }

    /// Ends it: no connection is served any more, and whoever waits for the guest gets `Internal`.
    pub fn close(&self) {
        self.actions.close();
        let _ = fd::write(self.stop.1.as_fd(), b"x");
    }

    pub(crate) fn stop(&self) -> BorrowedFd<'_> {
        self.stop.0.as_fd()
    }

    /// Takes a result; false when the opposite one was taken before.
    pub(crate) fn resolve(&self, success: bool) -> bool {
        *self.verdict().success.get_or_insert(success) == success
    }

    /// Tells of the result, if there is one and nobody has.
    pub(crate) fn announce(&self) {
        let mut verdict = self.verdict();
        let Some(success) = verdict.success else { return };
        let callback = verdict.callback.take();
        drop(verdict);
        callback.into_iter().for_each(|callback| callback(success));
    }

    fn verdict(&self) -> MutexGuard<'_, Verdict> {
        self.verdict.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attempts(&self, action: &Action, mut store: Option<Box<dyn Store>>) -> Outcome {
        let mut last = Outcome::Broken("");
        for _ in 0..ATTEMPTS {
            if store.as_mut().is_some_and(|store| store.begin().is_err()) {
                return Outcome::Broken("what the guest sends cannot be stored");
            }
            let ended = self.actions.attempt(action.clone(), store, &self.timers);
            if !matches!(ended.outcome, Outcome::Broken(_)) {
                return ended.outcome;
            }
            Ended { outcome: last, store } = ended;
        }
        last
    }
}

fn action(kind: Kind, path: &str) -> Action {
    Action { id: String::new(), kind, path: path.to_owned(), command: Vec::new(), tty: false }
}

fn failure(outcome: Outcome) -> ArtifactError {
    match outcome {
        Outcome::NotFound => ArtifactError::NotFound,
        Outcome::Broken(why) => ArtifactError::Internal(why.to_owned()),
        _ => ArtifactError::Internal("the guest replied to something else".to_owned()),
    }
}
