//! The table of an agent: its own commands, those that a program around it registered, and those that lie in a directory.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::commands::program::{self, Outside};
use crate::commands::{BUILT_IN, Command, Error};

/// A handler that was registered: whole request to whole response, or the text of an error.
pub type Handler = Arc<dyn Fn(&[u8]) -> Result<Vec<u8>, String> + Send + Sync>;

/// What stands behind a name.
pub enum Entry {
    BuiltIn(&'static Command),
    Handler(Handler),
    Program(Outside),
}

/// What an agent says of itself.
#[derive(Clone, Debug)]
pub struct About {
    pub started: Instant,
    /// Addresses, as they were given.
    pub listeners: Vec<String>,
    pub protocols: Vec<&'static str>,
    /// Named limits with units in their names.
    pub limits: Vec<(&'static str, u64)>,
}

/// Why a name cannot be registered or unregistered, in upstream's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameError {
    Taken(String),
    Unknown(String),
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            NameError::Taken(name) => write!(f, "cmd {name} is already handled"),
            NameError::Unknown(name) => write!(f, "cmd {name} is not registered"),
        }
    }
}

impl std::error::Error for NameError {}

/// A table. It is locked only to look something up or to change it, never while a command runs.
pub struct Table {
    built_in: &'static [Command],
    handlers: Mutex<BTreeMap<String, Handler>>,
    about: Mutex<About>,
    /// Where commands from outside lie; an absolute path.
    directory: Option<PathBuf>,
    /// How long those may take that say nothing else.
    time_limit: Duration,
}

impl Table {
    /// The agent's own commands, and those in the usual directory.
    pub fn of_agent() -> Table {
        Table::with(BUILT_IN).with_directory(program::DIRECTORY)
    }

    /// Nothing yet.
    pub fn empty() -> Table {
        Table::with(&[])
    }

    fn with(built_in: &'static [Command]) -> Table {
        let about = About { started: Instant::now(), listeners: Vec::new(), protocols: Vec::new(), limits: Vec::new() };
        let (handlers, about) = (Mutex::default(), Mutex::new(about));
        Table { built_in, handlers, about, directory: None, time_limit: program::TIME_LIMIT }
    }

    /// The same, with commands from this directory; it need not be there. It is looked at again for each call of a name that is unknown else.
    pub fn with_directory(self, directory: impl Into<PathBuf>) -> Table {
        let directory = directory.into();
        // The programs stand in another place than this one. Only an empty path has no absolute one, and leads nowhere anyway.
        Table { directory: Some(std::path::absolute(&directory).unwrap_or(directory)), ..self }
    }

    /// The same, with another time for commands from the directory that name none of their own.
    pub fn with_time_limit(self, time_limit: Duration) -> Table {
        Table { time_limit, ..self }
    }

    /// Registers a handler; the empty name is a name too.
    ///
    /// # Errors
    /// The name is taken; what is there stays.
    pub fn register(&self, name: &str, handler: Handler) -> Result<(), NameError> {
        let mut handlers = lock(&self.handlers);
        if handlers.contains_key(name) || self.built_in(name).is_some() {
            return Err(NameError::Taken(name.to_owned()));
        }
        handlers.insert(name.to_owned(), handler);
        Ok(())
    }

    /// Forgets a handler; a call that runs goes on.
    ///
    /// # Errors
    /// No handler of that name was registered.
    pub fn unregister(&self, name: &str) -> Result<(), NameError> {
        let removed = lock(&self.handlers).remove(name);
        removed.map(drop).ok_or_else(|| NameError::Unknown(name.to_owned()))
    }

    /// What stands behind a name; `None` when nothing does.
    ///
    /// # Errors
    /// Something does, and must not be used.
    pub fn find(&self, name: &str) -> Result<Option<Entry>, Error> {
        if let Some(command) = self.built_in(name) {
            return Ok(Some(Entry::BuiltIn(command)));
        }
        if let Some(handler) = lock(&self.handlers).get(name) {
            return Ok(Some(Entry::Handler(Arc::clone(handler))));
        }
        let Some(directory) = &self.directory else { return Ok(None) };
        Ok(program::find(directory, name, self.time_limit)?.map(Entry::Program))
    }

    /// The agent's own commands.
    pub fn commands(&self) -> &'static [Command] {
        self.built_in
    }

    /// Names of the handlers.
    pub fn handlers(&self) -> Vec<String> {
        lock(&self.handlers).keys().cloned().collect()
    }

    /// Where commands from outside lie.
    pub fn directory(&self) -> Option<&Path> {
        self.directory.as_deref()
    }

    /// What the agent is.
    pub fn about(&self) -> About {
        lock(&self.about).clone()
    }

    /// Changes what the agent says of itself.
    pub fn describe(&self, change: impl FnOnce(&mut About)) {
        change(&mut lock(&self.about));
    }

    fn built_in(&self, name: &str) -> Option<&'static Command> {
        self.built_in.iter().find(|command| command.name == name)
    }
}

/// Nothing that is done under these locks leaves a half-changed value behind when it panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_name_keeps_its_handler_and_an_unknown_one_cannot_go() {
        let table = Table::of_agent();
        let handler = |answer: &'static [u8]| -> Handler { Arc::new(move |_| Ok(answer.to_vec())) };
        assert_eq!(table.register("a.b", handler(b"1")), Ok(()));
        let taken = table.register("a.b", handler(b"2")).map_err(|error| error.to_string());
        assert_eq!(taken, Err("cmd a.b is already handled".to_owned()));
        assert!(table.register("agent.ping", handler(b"3")).is_err());
        let Ok(Some(Entry::Handler(found))) = table.find("a.b") else { panic!("it is registered") };
        assert_eq!(found(b""), Ok(b"1".to_vec()));
        assert_eq!(table.unregister("a.b"), Ok(()));
        let unknown = table.unregister("a.b").map_err(|error| error.to_string());
        assert_eq!(unknown, Err("cmd a.b is not registered".to_owned()));
        assert!(matches!(table.find("a.b"), Ok(None)));
    }
}
