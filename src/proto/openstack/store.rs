//! Requests and responses in XenStore.
//!
//! | path | who writes | what |
//! | --- | --- | --- |
//! | `data/host/<id>` | the host | a request |
//! | `data/guest/<id>` | this guest | the response of the same id |
//!
//! Paths are relative to the guest's own directory. A request goes before its response comes; what becomes of responses is in `responses`.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::proto::openstack::exchange::{Carrier, Request, Taken};
use crate::proto::openstack::report::Report;
use crate::proto::openstack::responses::{Responses, told};
use crate::sys::fd::{self, PollSet};
use crate::xenstore::client::{self, Client, Error};

const REQUESTS: &str = "data/host";

/// How often to look without having been told. Events come at once; this is for those that never come.
const LOOK: Duration = Duration::from_secs(5);

/// From one attempt to connect to the next, also when the first was good for a moment.
const RECONNECT: Duration = Duration::from_secs(1);

/// How long a connection must have lasted for its end to be news, whatever was said before it.
const LASTING: Duration = Duration::from_secs(10);

/// Requests that are read at once. Hosts wait for one answer before they ask again; more than these wait in the store.
const WAITING_MAX: usize = 64;

/// Requests that were done and cannot be removed. Who has more of them has no honest host, and no more are done.
const STUCK_MAX: usize = 64;

/// XenStore as a carrier.
pub struct Store {
    /// Where it is; where it is usually, for none.
    path: Option<PathBuf>,
    stop: OwnedFd,
    /// Requests are served; else it is only read.
    serves: bool,
    client: Option<Client>,
    /// When the last attempt to connect began.
    tried_at: Option<Instant>,
    /// What was said last about the connection. Each reason once: there may never be a store.
    said: String,
    /// It was said that there is none, and not yet that there is one again.
    is_missed: bool,
    /// What was said last about looking for requests.
    look_said: String,
    /// Read, and not done yet.
    waiting: VecDeque<Request>,
    /// Requests that the host does not let us remove, with what they were.
    stuck: BTreeMap<String, Vec<u8>>,
    /// There are too many of these: to look again at once would find the same.
    rests: bool,
    responses: Responses,
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
            tried_at: None,
            said: String::new(),
            is_missed: false,
            look_said: String::new(),
            waiting: VecDeque::new(),
            stuck: BTreeMap::new(),
            rests: false,
            responses: Responses::default(),
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

    /// Does something with a connection. One that is lost is made again, but for a store that is only read: what was read of it may be old.
    /// `None`: everything shall end, or that one is lost.
    fn with<T>(&mut self, mut work: impl FnMut(&mut Client) -> Result<T, Error>) -> Option<Result<T, Error>> {
        loop {
            let Some(client) = &mut self.client else {
                if !self.serves || !self.reconnect() {
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

    /// Connects, and watches for requests. False: everything shall end.
    fn reconnect(&mut self) -> bool {
        loop {
            let pause = self.tried_at.map_or(Duration::ZERO, |at| RECONNECT.saturating_sub(at.elapsed()));
            if self.is_stopped(pause) {
                return false;
            }
            self.tried_at = Some(Instant::now());
            match self.connect() {
                Ok(client) => {
                    self.client = Some(client);
                    if std::mem::take(&mut self.is_missed) {
                        log::info!("xenstore: connected");
                    }
                    if let Some(report) = &mut self.report {
                        report.forget();
                    }
                    return true;
                }
                Err(error) => self.miss(error.to_string()),
            }
        }
    }

    /// Says why there is no connection.
    fn miss(&mut self, why: String) {
        if why != self.said {
            log::warn!("{why}");
            (self.said, self.is_missed) = (why, true);
        }
    }

    fn lose(&mut self, error: &Error) {
        self.client = None;
        if self.tried_at.is_some_and(|at| at.elapsed() >= LASTING) {
            self.said.clear();
        }
        self.miss(format!("{error}; connecting again"));
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
            told(&format!("make {REQUESTS}"), error)?;
        }
        if let Err(error) = client.watch(REQUESTS) {
            told(&format!("watch {REQUESTS}"), error)?;
        }
        self.responses.adopt(client)
    }

    /// Waits so long; true when everything shall end.
    fn is_stopped(&self, time: Duration) -> bool {
        fd::wait_for(self.stop.as_fd(), fd::READ, Some(time)).is_ok_and(|ready| ready.readable)
    }

    /// Reads requests. False: everything shall end.
    fn look(&mut self) -> bool {
        let mut stuck = std::mem::take(&mut self.stuck);
        let found = self.with(|client| find(client, &mut stuck));
        self.stuck = stuck;
        match found {
            None => return false,
            Some(Err(error)) => {
                let why = error.to_string();
                if why != self.look_said {
                    log::warn!("look for requests: {why}");
                    self.look_said = why;
                }
            }
            Some(Ok(found)) => {
                self.look_said.clear();
                self.waiting = found;
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
            let mut was_lost = false;
            let told = self.with(|client| {
                // The report is not with the store then, which would say so.
                if std::mem::replace(&mut was_lost, true) {
                    report.forget();
                }
                report.write(client)
            });
            if let Some(Err(error)) = told {
                log::warn!("report: {error}");
            }
        }
        self.report = Some(report);
    }

    /// Something that the host has put there.
    fn ask<T>(&mut self, work: impl FnMut(&mut Client) -> Result<T, Error>) -> io::Result<T> {
        match self.with(work) {
            None => {
                Err(io::Error::new(io::ErrorKind::Interrupted, "the store is not there any more, or the agent ends"))
            }
            Some(Err(error)) => Err(io::Error::other(error)),
            Some(Ok(found)) => Ok(found),
        }
    }
}

impl Carrier for Store {
    fn next(&mut self) -> Option<Request> {
        loop {
            // What waits here waits in the store, too: for the next agent.
            if self.is_stopped(Duration::ZERO) {
                return None;
            }
            if let Some(request) = self.waiting.pop_front() {
                return Some(request);
            }
            self.tell();
            let rests = std::mem::take(&mut self.rests);
            if !rests && !self.look() || self.waiting.is_empty() && !self.wait() {
                return None;
            }
        }
    }

    fn take(&mut self, request: &Request) -> Taken {
        let path = format!("{REQUESTS}/{}", request.id);
        let mut was_asked = false;
        let taken = self.with(|client| {
            // Removing a node that is not there is no error, so it is looked at first.
            match client.read_if_there(&path)? {
                Some(found) if found == request.data => {}
                // It has gone, and the answer to that with the connection.
                None if was_asked => return Ok(Taken::Done),
                _ => return Ok(Taken::Gone),
            }
            was_asked = true;
            match client.remove(&path) {
                Err(error) if error.is("ENOENT") => Ok(Taken::Gone),
                result => result.map(|()| Taken::Done),
            }
        });
        match taken {
            None => Taken::Stopped,
            Some(Ok(taken)) => taken,
            // It would come again and again, and is done once.
            Some(Err(error)) if self.stuck.len() < STUCK_MAX => {
                log::warn!("remove request {:?}: {error}", request.id);
                self.stuck.insert(request.id.clone(), request.data.clone());
                if self.stuck.len() == STUCK_MAX {
                    log::error!("{STUCK_MAX} requests cannot be removed; no more of these are done");
                }
                Taken::Done
            }
            Some(Err(error)) => {
                log::debug!("remove request {:?}: {error}; not done", request.id);
                self.rests = true;
                Taken::Gone
            }
        }
    }

    fn respond(&mut self, request: &Request, response: &[u8]) {
        let mut responses = std::mem::take(&mut self.responses);
        let result = self.with(|client| responses.put(client, &request.id, response));
        // A connection that was made again has found those that are there.
        responses.join(std::mem::take(&mut self.responses));
        self.responses = responses;
        match result {
            Some(Ok(())) => {}
            Some(Err(error)) => log::error!("response {:?}: {error}; it is lost", request.id),
            None => log::error!("response {:?}: the agent ends before it could be written", request.id),
        }
    }

    fn read(&mut self, path: &str) -> io::Result<Option<Vec<u8>>> {
        self.ask(|client| client.read_if_there(path))
    }

    fn list(&mut self, path: &str) -> io::Result<Vec<String>> {
        self.ask(|client| match client.list(path) {
            Err(error) if error.is("ENOENT") => Ok(Vec::new()),
            result => result,
        })
    }

    fn stop(&self) -> BorrowedFd<'_> {
        self.stop.as_fd()
    }
}

/// The requests that are there and not stuck, as many as are read at once.
fn find(client: &mut Client, stuck: &mut BTreeMap<String, Vec<u8>>) -> Result<VecDeque<Request>, Error> {
    let names = match client.list(REQUESTS) {
        Err(error) if error.is("ENOENT") => {
            client.make_directory(REQUESTS)?;
            Vec::new()
        }
        result => result?,
    };
    stuck.retain(|id, _| names.contains(id));
    let mut found = VecDeque::new();
    for id in names {
        if found.len() == WAITING_MAX {
            break;
        }
        // One that has gone since, or that we may not read, is none.
        match client.read(&format!("{REQUESTS}/{id}")) {
            Ok(data) if stuck.get(&id) == Some(&data) => {}
            Ok(data) => found.push_back(Request { id, data }),
            Err(Error::Lost(error)) => return Err(Error::Lost(error)),
            Err(error) => log::debug!("request {id:?}: {error}"),
        }
    }
    Ok(found)
}
