//! One task for one guest, for whoever wants something of that guest.

use std::fmt;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value};

use crate::metadata::actions::{Actions, Ended, Outcome, Store, Timers};
use crate::metadata::rest::Rest;
use crate::metadata::shell::Shell;
use crate::metaservice::{Action, Kind};
use crate::stream::Stream;
use crate::sys::{errno, fd};

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

/// What became of a result that a guest has sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resolved {
    /// It is that of the task from now on.
    Now,
    /// The task has the same one already.
    Before,
    /// The task has the other one already.
    Otherwise,
}

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
    pub(crate) rest: Rest,
    verdict: Mutex<Verdict>,
    /// Connections on which the command was asked for.
    questions: AtomicUsize,
    /// The log broke off, and none has begun since.
    pub(crate) is_log_broken: AtomicBool,
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
        let (rest, questions) = (Rest::default(), AtomicUsize::new(0));
        let is_log_broken = AtomicBool::new(false);
        Ok(Service { execute, log, actions, timers, rest, verdict, questions, is_log_broken, stop: fd::pipe()? })
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
        let (stream, leftover) = self.wishes().open_shell(command, tty)?;
        Shell::over(stream, leftover).map_err(|error| ArtifactError::Internal(error.to_string()))
    }

    /// Fetches a file.
    ///
    /// # Errors
    /// `NotFound`, `Internal`; then the store holds nothing of use.
    pub fn get_artifact(&self, path: &str, into: Box<dyn Store>) -> Result<(), ArtifactError> {
        self.wishes().get_artifact(path, into)
    }

    /// The files below a folder, as the guest names them: each begins with `path`.
    ///
    /// # Errors
    /// `NotFound`, `Internal`.
    pub fn list_folder(&self, path: &str) -> Result<Vec<String>, ArtifactError> {
        self.wishes().list_folder(path)
    }

    /// Asks the guest to kill its command. It ends as failed soon after.
    ///
    /// # Errors
    /// `Internal`.
    pub fn kill_process(&self) -> Result<(), ArtifactError> {
        self.wishes().kill_process()
    }

    fn wishes(&self) -> Wishes<'_> {
        Wishes { service: self, asker: None }
    }

    /// What somebody wants of the guest as long as this socket is not closed at its other end.
    pub(crate) fn wishes_of<'a>(&'a self, asker: BorrowedFd<'a>) -> Wishes<'a> {
        Wishes { service: self, asker: Some(asker) }
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
        self.questions.load(Ordering::SeqCst) > 0
    }

    /// Whether the guest seems to have gone before the result: its log broke off, and no poll waits.
    pub(crate) fn is_deserted(&self) -> bool {
        self.is_log_broken.load(Ordering::SeqCst) && self.result().is_none() && !self.actions.has_polls()
    }

    /// A connection asks for the command for the first time.
    pub(crate) fn note_question(&self) {
        match self.questions.fetch_add(1, Ordering::SeqCst) {
            0 => log::info!("a guest has asked for the task"),
            // Both would do it, and the first result counts.
            1 => log::warn!("another guest has asked for the task, or the same one again"),
            _ => {}
        }
    }

    /// Ends it: no connection is served any more, and whoever waits for the guest gets `Internal`.
    pub fn close(&self) {
        self.actions.close();
        let _ = fd::write(self.stop.1.as_fd(), b"x");
    }

    pub(crate) fn stop(&self) -> BorrowedFd<'_> {
        self.stop.0.as_fd()
    }

    /// Takes a result, if there is none; whoever brought it `announce`s it.
    pub(crate) fn resolve(&self, success: bool) -> Resolved {
        let mut verdict = self.verdict();
        match verdict.success {
            None => {
                verdict.success = Some(success);
                log::info!("the task has {}", if success { "succeeded" } else { "failed" });
                Resolved::Now
            }
            Some(before) if before == success => Resolved::Before,
            Some(_) => Resolved::Otherwise,
        }
    }

    /// Tells of the result.
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
}

/// What is wanted of the guest, and who may lose interest meanwhile.
pub(crate) struct Wishes<'a> {
    service: &'a Service,
    asker: Option<BorrowedFd<'a>>,
}

impl Wishes<'_> {
    /// As `Service::exec_shell`, for somebody who speaks the shell's WebSocket for us: the stream behind the handshake, and what has come
    /// on it.
    pub(crate) fn open_shell(&self, command: &[String], tty: bool) -> Result<(Stream, Vec<u8>), ArtifactError> {
        let action = Action { command: command.to_vec(), tty, ..action(Kind::ExecShell, "") };
        match self.attempts(&action, None, 1)? {
            Outcome::Shell(stream, leftover) => Ok((stream, leftover)),
            outcome => Err(failure(outcome)),
        }
    }

    pub(crate) fn get_artifact(&self, path: &str, into: Box<dyn Store>) -> Result<(), ArtifactError> {
        match self.attempts(&action(Kind::GetArtifact, path), Some(into), ATTEMPTS)? {
            Outcome::Done => Ok(()),
            outcome => Err(failure(outcome)),
        }
    }

    pub(crate) fn list_folder(&self, path: &str) -> Result<Vec<String>, ArtifactError> {
        match self.attempts(&action(Kind::ListFolder, path), None, ATTEMPTS)? {
            Outcome::Files(files) => Ok(files),
            outcome => Err(failure(outcome)),
        }
    }

    pub(crate) fn kill_process(&self) -> Result<(), ArtifactError> {
        match self.attempts(&action(Kind::KillProcess, ""), None, ATTEMPTS)? {
            Outcome::Done => Ok(()),
            outcome => Err(failure(outcome)),
        }
    }

    fn attempts(
        &self,
        action: &Action,
        mut store: Option<Box<dyn Store>>,
        count: usize,
    ) -> Result<Outcome, ArtifactError> {
        let timers = &self.service.timers;
        let (mut last, mut is_unasked) = (Outcome::Broken(""), true);
        for attempt in 1..=count {
            if let Some(Err(error)) = store.as_mut().map(|store| store.begin()) {
                return Ok(Outcome::Unstored(error));
            }
            let ended = self.service.actions.attempt(action.clone(), store, self.asker, timers);
            if let Outcome::Broken(why) = ended.outcome {
                log::info!("{:?} {:?}: {why}; attempt {attempt} of {count}", action.kind, action.path);
            }
            is_unasked &= matches!(ended.outcome, Outcome::Unasked);
            if !matches!(ended.outcome, Outcome::Broken(_) | Outcome::Unasked) {
                return Ok(ended.outcome);
            }
            Ended { outcome: last, store } = ended;
        }
        if is_unasked {
            let seconds = timers.poll.as_secs() * count as u64;
            return Err(ArtifactError::Internal(format!("no guest has asked for work within {seconds} s")));
        }
        Ok(last)
    }
}

fn action(kind: Kind, path: &str) -> Action {
    Action { id: String::new(), kind, path: path.to_owned(), command: Vec::new(), tty: false }
}

fn failure(outcome: Outcome) -> ArtifactError {
    match outcome {
        Outcome::NotFound => ArtifactError::NotFound,
        Outcome::Broken(why) => ArtifactError::Internal(why.to_owned()),
        Outcome::Unasked => ArtifactError::Internal("no poll has come for it".to_owned()),
        Outcome::Unwanted => ArtifactError::Internal("nobody wants it any more".to_owned()),
        Outcome::Unstored(error) => {
            ArtifactError::Internal(format!("what the guest sends cannot be stored: {}", errno::describe(&error)))
        }
        _ => ArtifactError::Internal("the guest replied to something else".to_owned()),
    }
}
