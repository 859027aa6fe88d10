//! Requests and responses in XenStore.
//!
//! | path | who writes | what |
//! | --- | --- | --- |
//! | `data/host/<id>` | the host | a request |
//! | `data/guest/<id>` | this guest | the response of the same id |
//!
//! Paths are relative to the guest's own directory. A request goes before its response comes. Hosts read responses and leave them there, and the
//! store holds few: some 50 of them in the C daemon, where the names of all children of a node share its 2 KiB. So old ones are removed.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::proto::openstack::exchange::{Carrier, Request, Taken};
use crate::proto::openstack::report::Report;
use crate::sys::fd::{self, PollSet};
use crate::xenstore::client::{self, Client, Error};

const REQUESTS: &str = "data/host";
const RESPONSES: &str = "data/guest";

/// How often to look without having been told. Events come at once; this is for those that never come.
const LOOK: Duration = Duration::from_secs(5);

/// Between two attempts to connect.
const RECONNECT: Duration = Duration::from_secs(1);

/// Requests that are read at once. Hosts wait for one answer before they ask again; more than these wait in the store.
const WAITING_MAX: usize = 64;

/// Responses that stay when old ones are removed: hosts may not have read the last ones.
const KEPT: usize = 8;

/// Requests that were done and cannot be removed. More of them than a store holds are none of an honest host's.
const STUCK_MAX: usize = 1024;

/// XenStore as a carrier.
pub struct Store {
    /// Where it is; where it is usually, for none.
    path: Option<PathBuf>,
    stop: OwnedFd,
    /// Requests are served; else it is only read.
    serves: bool,
    client: Option<Client>,
    /// There was a connection before.
    was_open: bool,
    /// What the last attempt to connect said.
    said: String,
    /// Read, and not done yet.
    waiting: VecDeque<Request>,
    /// Requests that the host does not let us remove, with what they were.
    stuck: BTreeMap<String, Vec<u8>>,
    /// Ids of responses that are still there, oldest first.
    answered: VecDeque<String>,
    /// What the guest tells about itself beside all this.
    report: Option<Report>,
}

impl Store {
    /// A store whose requests are served.
    pub fn new(path: Option<PathBuf>, stop: OwnedFd, report: Option<Report>) -> Store {
        Store {
            path,
            stop,
            serves: true,
            client: None,
            was_open: false,
            said: String::new(),
            waiting: VecDeque::new(),
            stuck: BTreeMap::new(),
            answered: VecDeque::new(),
            report,
        }
    }

    /// A store that is only read, and is there now.
    ///
    /// # Errors
    /// It is not there, or does not answer.
    pub fn to_read(path: Option<PathBuf>, stop: OwnedFd) -> Result<Store, Error> {
        let mut store = Store { serves: false, ..Store::new(path, stop, None) };
        store.client = Some(store.connect()?);
        Ok(store)
    }

    /// Does something with a connection, until it is done or everything shall end. A connection that is lost is made again.
    fn with<T>(&mut self, mut work: impl FnMut(&mut Client) -> Result<T, Error>) -> Option<Result<T, Error>> {
        loop {
            let Some(client) = &mut self.client else {
                if self.is_stopped(Duration::ZERO) || !self.open() && self.is_stopped(RECONNECT) {
                    return None;
                }
                continue;
            };
            match work(client) {
                Err(Error::Lost(error)) => self.lose(&Error::Lost(error)),
                result => return Some(result),
            }
        }
    }

    /// Connects, and watches for requests. False: not now.
    fn open(&mut self) -> bool {
        let opened = self.connect();
        match opened {
            Ok(client) => {
                if self.was_open || !self.said.is_empty() {
                    log::info!("xenstore: connected");
                }
                (self.was_open, self.client) = (true, Some(client));
                self.said.clear();
                if let Some(report) = &mut self.report {
                    report.forget();
                }
                true
            }
            Err(error) => {
                let text = error.to_string();
                // Each reason once: there may never be a store.
                if text != self.said {
                    log::warn!("{text}");
                    self.said = text;
                }
                false
            }
        }
    }

    fn connect(&mut self) -> Result<Client, Error> {
        let none = || io::Error::new(io::ErrorKind::NotFound, "none on this machine (/dev/xen/xenbus)");
        let place = self.path.clone().or_else(client::place).ok_or_else(none).map_err(Error::Lost)?;
        let mut client = Client::open(&place).map_err(Error::Lost)?;
        if self.serves {
            self.prepare(&mut client)?;
        }
        Ok(client)
    }

    fn prepare(&mut self, client: &mut Client) -> Result<(), Error> {
        // Toolstacks make it, but not all.
        if let Err(error) = client.make_directory(REQUESTS) {
            lost_or_told(&format!("make {REQUESTS}"), error)?;
        }
        if let Err(error) = client.watch(REQUESTS) {
            lost_or_told(&format!("watch {REQUESTS}"), error)?;
        }
        self.adopt(client)
    }

    /// Finds the responses that are there already, of whatever agent, and removes the oldest.
    fn adopt(&mut self, client: &mut Client) -> Result<(), Error> {
        let names = match client.list(RESPONSES) {
            Ok(names) => names,
            Err(error) => return lost_or_told("list responses", error).map(drop),
        };
        self.answered.retain(|id| names.contains(id));
        let mut older = VecDeque::new();
        for id in names {
            if self.answered.contains(&id) {
                continue;
            }
            let value = client.read(&format!("{RESPONSES}/{id}"));
            if value.is_ok_and(|value| is_response(&value)) {
                older.push_back(id);
            }
        }
        // The C daemon lists them in the order of their making.
        older.append(&mut self.answered);
        self.answered = older;
        prune(client, &mut self.answered, KEPT)
    }

    fn lose(&mut self, error: &Error) {
        log::warn!("{error}; connecting again");
        self.client = None;
    }

    /// Waits so long; true when everything shall end.
    fn is_stopped(&self, time: Duration) -> bool {
        fd::wait_for(self.stop.as_fd(), fd::READ, Some(time)).is_ok_and(|ready| ready.readable)
    }

    /// Reads requests. False: everything shall end.
    fn look(&mut self) -> bool {
        let found = self.with(|client| {
            let names = match client.list(REQUESTS) {
                Err(error) if error.is("ENOENT") => {
                    if let Err(error) = client.make_directory(REQUESTS) {
                        lost_or_told(&format!("make {REQUESTS}"), error)?;
                    }
                    Vec::new()
                }
                result => result?,
            };
            let mut found = Vec::new();
            for id in names {
                if found.len() == WAITING_MAX {
                    break;
                }
                // One that has gone since, or that we may not read, is none.
                match client.read(&format!("{REQUESTS}/{id}")) {
                    Ok(data) => found.push(Request { id, data }),
                    Err(Error::Lost(error)) => return Err(Error::Lost(error)),
                    Err(error) => log::debug!("request {id:?}: {error}"),
                }
            }
            Ok(found)
        });
        match found {
            None => return false,
            Some(Err(error)) => log::warn!("look for requests: {error}"),
            Some(Ok(found)) => {
                let stuck = &mut self.stuck;
                stuck.retain(|id, _| found.iter().any(|request| request.id == *id));
                let is_new = |request: &Request| stuck.get(&request.id) != Some(&request.data);
                self.waiting = found.into_iter().filter(is_new).collect();
            }
        }
        true
    }

    /// Waits until something may have changed, or it is time to look. False: everything shall end.
    fn wait(&mut self) -> bool {
        let until = Instant::now() + LOOK;
        loop {
            let Some(client) = &mut self.client else { return true };
            match client.has_changed() {
                Ok(true) => return true,
                Ok(false) => {}
                Err(error) => {
                    self.lose(&error);
                    return true;
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            let mut set = PollSet::default();
            set.watch(self.stop.as_fd(), fd::READ);
            set.watch(client.watch_fd(), fd::READ);
            if set.wait(Some(left)).is_err() || set.ready(0).readable {
                return false;
            }
            if left.is_zero() {
                return true;
            }
        }
    }

    fn tell(&mut self) {
        let Some(mut report) = self.report.take() else { return };
        if report.is_due() {
            let told = self.with(|client| report.write(client));
            if let Some(Err(error)) = told {
                log::warn!("report: {error}");
            }
        }
        self.report = Some(report);
    }
}

impl Carrier for Store {
    fn next(&mut self) -> Option<Request> {
        loop {
            if let Some(request) = self.waiting.pop_front() {
                return Some(request);
            }
            self.tell();
            if !self.look() || self.waiting.is_empty() && !self.wait() {
                return None;
            }
        }
    }

    fn take(&mut self, request: &Request) -> Taken {
        let path = format!("{REQUESTS}/{}", request.id);
        let taken = self.with(|client| {
            // Removing a node that is not there is no error, so it is looked at first.
            if client.read_if_there(&path)?.as_ref() != Some(&request.data) {
                return Ok(Taken::Gone);
            }
            client.remove(&path).map(|()| Taken::Done)
        });
        match taken {
            None => Taken::Stopped,
            Some(Ok(taken)) => taken,
            // It would come again and again, and is done once.
            Some(Err(error)) if self.stuck.len() < STUCK_MAX => {
                log::warn!("remove request {:?}: {error}", request.id);
                self.stuck.insert(request.id.clone(), request.data.clone());
                Taken::Done
            }
            Some(Err(error)) => {
                log::error!("remove request {:?}: {error}; not done", request.id);
                Taken::Gone
            }
        }
    }

    fn respond(&mut self, request: &Request, response: &[u8]) {
        let path = format!("{RESPONSES}/{}", request.id);
        let mut answered = std::mem::take(&mut self.answered);
        answered.retain(|id| *id != request.id);
        let result = self.with(|client| {
            let mut kept = KEPT;
            loop {
                match client.write(&path, response) {
                    Err(error) if error.is_full() && !answered.is_empty() => {
                        prune(client, &mut answered, kept)?;
                        // When that was not enough the next ones go, too.
                        kept = kept.min(answered.len()).saturating_sub(1);
                    }
                    result => return result,
                }
            }
        });
        // A connection that was made again has found those that are there.
        answered.append(&mut self.answered);
        match result {
            Some(Ok(())) => answered.push_back(request.id.clone()),
            Some(Err(error)) => log::error!("response {:?}: {error}; it is lost", request.id),
            None => log::error!("response {:?}: the agent ends before it could be written", request.id),
        }
        let mut seen = std::collections::BTreeSet::new();
        answered.retain(|id| seen.insert(id.clone()));
        self.answered = answered;
    }

    fn read(&mut self, path: &str) -> Option<Vec<u8>> {
        match self.with(|client| client.read_if_there(path))? {
            Ok(value) => value,
            Err(error) => {
                log::warn!("read {path}: {error}");
                None
            }
        }
    }

    fn list(&mut self, path: &str) -> Vec<String> {
        match self.with(|client| client.list(path)) {
            Some(Ok(names)) => names,
            Some(Err(error)) if !error.is("ENOENT") => {
                log::warn!("list {path}: {error}");
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn stop(&self) -> BorrowedFd<'_> {
        self.stop.as_fd()
    }
}

/// An error of the store is told; that of a connection is one still.
fn lost_or_told(what: &str, error: Error) -> Result<(), Error> {
    match error {
        Error::Lost(_) => Err(error),
        Error::Refused(_) => {
            log::warn!("{what}: {error}");
            Ok(())
        }
    }
}

/// Removes the oldest responses, until so many are left.
fn prune(client: &mut Client, answered: &mut VecDeque<String>, kept: usize) -> Result<(), Error> {
    while answered.len() > kept {
        let Some(id) = answered.front() else { break };
        if let Err(error) = client.remove(&format!("{RESPONSES}/{id}")) {
            lost_or_told(&format!("remove response {id:?}"), error)?;
        }
        answered.pop_front();
    }
    Ok(())
}

/// Whether a value is a response of this protocol: others may keep their own things there.
fn is_response(value: &[u8]) -> bool {
    let value: Result<Value, _> = serde_json::from_slice(value);
    value.is_ok_and(|value| value["returncode"].is_string() && value["message"].is_string())
}
