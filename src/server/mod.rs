//! The agent: listeners, one thread a connection, and the limit of connections.

pub mod arrivals;
mod connections;
mod listening;
mod port;
mod workers;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;
#[cfg(any(feature = "metadata", feature = "openstack"))]
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::engine::Ended;
use crate::exec::parting;
use crate::notify;
#[cfg(feature = "clear")]
use crate::proto::hyper;
#[cfg(feature = "metadata")]
use crate::proto::metadata;
#[cfg(feature = "openstack")]
use crate::proto::openstack;
use crate::proto::settings::Settings;
use crate::proto::{self, Opening, Protocol};
use crate::server::arrivals::{Arrival, Arrivals, SILENT_MAX};
use crate::server::connections::Shared;
use crate::server::listening::Listening;
use crate::stream::Stream;
use crate::sys::fd::{self, PollSet};
use crate::sys::file::{EMFILE, ENFILE};
use crate::sys::{errno, process, signal};
use crate::transport::auto::{Console, Ways};
use crate::transport::{self, Addr, Carrier, Listener, vsock};

/// Connections served at once. Each costs a thread, two descriptors and what its programs cost; the usual limit of 1,024 descriptors leaves
/// three more to each.
pub const CONNECTIONS_MAX: usize = 256;

/// How long to leave waiting connections alone when the system has no descriptor or thread for them.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// Bytes of the stack of the thread that waits for the others of the metadata service.
#[cfg(feature = "metadata")]
const METADATA_STACK: usize = 128 << 10;

/// Bytes of the stack of a thread that serves a store; what is large is on the heap.
#[cfg(feature = "openstack")]
const STORE_STACK: usize = 256 << 10;

/// Exit status of an agent on stdin and stdout whose peer named no job: upstream's.
const NO_JOB: u8 = 127;

/// Why the agent cannot serve.
#[derive(Debug)]
pub enum Error {
    /// An address that cannot be listened on, or two that exclude each other.
    Address(String),
    Listen {
        addr: String,
        error: io::Error,
    },
    System(io::Error),
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Error::Address(text) => f.write_str(text),
            Error::Listen { addr, error } => {
                write!(f, "listen on {addr}: {}{}", errno::describe(error), vsock::hint(error))
            }
            Error::System(error) => write!(f, "serve: {}", errno::describe(error)),
        }
    }
}

/// How an agent serves.
pub struct Config {
    pub addrs: Vec<Addr>,
    /// Serve also what ways into the machine there are, as they come.
    pub auto: Option<Console>,
    pub settings: Settings,
    /// Connections served at once.
    pub connections_max: usize,
    /// Do also the work that a metadata service has.
    #[cfg(feature = "metadata")]
    pub metadata: Option<metadata::Config>,
}

impl Config {
    /// The usual limits, and nothing to listen on.
    pub fn with(settings: Settings) -> Config {
        Config {
            addrs: Vec::new(),
            auto: None,
            settings,
            connections_max: CONNECTIONS_MAX,
            #[cfg(feature = "metadata")]
            metadata: None,
        }
    }
}

/// Serves until SIGTERM or SIGINT, then ends the programs of all connections in an orderly way. `stdio:` serves its one connection and ends
/// with it.
///
/// # Errors
/// Before anything is served: addresses that make no sense or cannot be listened on.
pub fn run(config: Config) -> Result<ExitCode, Error> {
    // Old kernels lack the one, a strict sandbox may forbid the other; both only make the agent better.
    let _ = fd::close_on_exec_from_3();
    let _ = process::raise_descriptor_limit();
    // Else whoever connects is pushed aside before it has sent its request, and each connection costs two wake-ups.
    let _ = process::be_patient();
    // Ignored, as some supervisors leave it, the kernel would bury programs itself, and nobody could learn how they ended.
    signal::restore_default(&[signal::SIGCHLD]).map_err(Error::System)?;
    let stop = signal::into_pipe(&[signal::SIGTERM, signal::SIGINT]).map_err(Error::System)?;
    if let Some(stdio) = config.addrs.iter().find(|addr| addr.carrier == Carrier::Stdio) {
        if config.addrs.len() > 1 || config.auto.is_some() {
            return Err(Error::Address("stdio: serves one connection and goes with no other address".into()));
        }
        #[cfg(feature = "metadata")]
        if config.metadata.is_some() {
            return Err(Error::Address("stdio: serves one connection and goes with no metadata service".into()));
        }
        let pinned = protocol(stdio)?;
        let shared = Shared::new(config.settings, config.connections_max, stop);
        shared.introduce();
        shared.settings.commands.describe(|about| about.listeners.push(stdio.to_string()));
        return serve_stdio(&shared, pinned);
    }
    #[cfg(feature = "metadata")]
    let guest = (config.metadata.clone(), stop.try_clone().map_err(Error::System)?);
    let service = Service::open(config, stop)?;
    notify::start();
    #[cfg(feature = "metadata")]
    let guest = start_metadata(guest).map_err(Error::System)?;
    service.run().map_err(Error::System)?;
    #[cfg(feature = "metadata")]
    let _ = guest.map(JoinHandle::join);
    Ok(ExitCode::SUCCESS)
}

/// The guest's side of the metadata service, beside everything else; it ends with the agent.
#[cfg(feature = "metadata")]
fn start_metadata((config, stop): (Option<metadata::Config>, OwnedFd)) -> io::Result<Option<JoinHandle<()>>> {
    let work = |config: metadata::Config| {
        let run = move || {
            if let Err(error) = metadata::run(&config, stop.as_fd()) {
                log::error!("metadata: {}", errno::describe(&error));
            }
        };
        thread::Builder::new().stack_size(METADATA_STACK).spawn(run)
    };
    config.map(work).transpose()
}

/// Either of hyperstart's channels is of little use alone, and nothing that its host sees would say so.
#[cfg(feature = "clear")]
fn tell_of_half_a_pair(addrs: &[Addr]) {
    let [ctl, tty] = [hyper::ctl::NAME, hyper::tty::NAME];
    let has = |name: &str| addrs.iter().any(|addr| addr.protocol.as_deref() == Some(name));
    match (has(ctl), has(tty)) {
        (true, false) => {
            log::warn!("no address has ,proto={tty}: programs of {ctl} have no input, and their output waits for it")
        }
        (false, true) => log::warn!("no address has ,proto={ctl}: nothing can be started for {tty}"),
        _ => {}
    }
}

fn protocol(addr: &Addr) -> Result<Option<&'static Protocol>, Error> {
    let Some(name) = &addr.protocol else { return Ok(None) };
    proto::by_name(name).map(Some).map_err(|why| Error::Address(format!("address {addr}: {why}")))
}

fn serve_stdio(shared: &Arc<Shared>, pinned: Option<&'static Protocol>) -> Result<ExitCode, Error> {
    let stream = transport::stdio().map_err(Error::System)?;
    // The descriptors may be a terminal's or a shell's, who would be surprised by the engine's non-blocking mode later.
    let before = [stream.input(), stream.output()];
    let before = before.map(|fd| fd.try_clone_to_owned().ok().zip(fd::is_nonblocking(fd).ok()));
    let ended = proto::serve(stream, &[], &shared.circumstances(pinned, Opening::Peer, Instant::now()));
    let deadline = parting::end_deadline();
    #[cfg(feature = "clear")]
    shared.settings.clear.keepers.finish(deadline);
    parting::wait(deadline);
    for (fd, nonblocking) in before.iter().flatten() {
        let _ = fd::set_nonblocking(fd.as_fd(), *nonblocking);
    }
    match ended.map_err(Error::System)? {
        Ended::Regular => Ok(ExitCode::SUCCESS),
        Ended::Unused => Ok(ExitCode::from(NO_JOB)),
        Ended::Broken(why) => {
            log::warn!("stdio: {why}");
            Ok(ExitCode::from(NO_JOB))
        }
    }
}

/// An agent whose addresses are open.
pub struct Service {
    shared: Arc<Shared>,
    listeners: Vec<Listening>,
    arrivals: Arrivals,
    ways: Option<Ways>,
    /// Threads that serve record exchanges.
    #[cfg(feature = "openstack")]
    stores: Vec<JoinHandle<()>>,
}

impl Service {
    /// Opens the addresses. `stop` is readable once the agent shall end.
    ///
    /// # Errors
    /// `Address` and `Listen` for one that cannot be listened on; those before it are closed again.
    pub fn open(config: Config, stop: OwnedFd) -> Result<Service, Error> {
        let Config { addrs, auto, settings, connections_max, .. } = config;
        let shared = Shared::new(settings, connections_max, stop);
        shared.introduce();
        let ways = auto.map(|console| Ways::new(console, Instant::now()));
        let mut service = Service {
            shared,
            listeners: Vec::new(),
            arrivals: Arrivals::default(),
            ways,
            #[cfg(feature = "openstack")]
            stores: Vec::new(),
        };
        // Threads come last: opening a socket changes the umask of the whole process for a moment.
        let (threads, others): (Vec<&Addr>, Vec<&Addr>) = addrs.iter().partition(|addr| addr.carrier.wants_a_thread());
        others.into_iter().chain(threads).try_for_each(|addr| service.listen(addr))?;
        #[cfg(feature = "clear")]
        tell_of_half_a_pair(&addrs);
        service.look();
        Ok(service)
    }

    /// Serves until the agent shall end, and then waits until the connections have ended too, but not for long.
    ///
    /// # Errors
    /// Of poll(2).
    pub fn run(mut self) -> io::Result<()> {
        self.accept_all()?;
        #[cfg(feature = "openstack")]
        let stores = std::mem::take(&mut self.stores);
        let Service { shared, listeners, arrivals, .. } = self;
        drop((listeners, arrivals));
        let deadline = parting::end_deadline();
        connections::wait_for_connections(&shared, deadline);
        #[cfg(feature = "clear")]
        shared.settings.clear.keepers.finish(deadline);
        parting::wait(deadline);
        #[cfg(feature = "openstack")]
        stores.into_iter().for_each(|store| drop(store.join()));
        Ok(())
    }

    /// Serves an address.
    fn listen(&mut self, addr: &Addr) -> Result<(), Error> {
        let pinned = protocol(addr)?;
        let started = match &addr.carrier {
            Carrier::Port { path } => port::start(&self.shared, path, None, pinned),
            Carrier::Serial { path, settings } => port::start(&self.shared, path, Some(*settings), pinned),
            #[cfg(feature = "openstack")]
            Carrier::XenStore(store) => self.serve_store(store),
            _ => {
                self.listeners.push(Listening::open(addr, pinned)?);
                Ok(())
            }
        };
        started.map_err(Error::System)?;
        self.shared.settings.commands.describe(|about| about.listeners.push(addr.to_string()));
        Ok(())
    }

    /// Serves the requests in a store, on a thread of its own.
    #[cfg(feature = "openstack")]
    fn serve_store(&mut self, store: &transport::XenStore) -> io::Result<()> {
        let config =
            openstack::Config { path: store.path.clone(), injects: !store.without_injection, reports: store.reports };
        let (table, stop) = (Arc::clone(&self.shared.settings.commands), self.shared.stop.try_clone()?);
        let serve = move || openstack::run(&config, table, stop);
        self.stores.push(thread::Builder::new().stack_size(STORE_STACK).spawn(serve)?);
        Ok(())
    }

    /// Serves the ways into the machine that have come.
    fn look(&mut self) {
        let found = self.ways.as_mut().map(|ways| ways.look(Instant::now())).unwrap_or_default();
        for addr in found {
            match self.listen(&addr) {
                Ok(()) => log::info!("found {addr}"),
                Err(error) => log::warn!("{error}"),
            }
        }
    }

    /// Accepts until the agent shall stop.
    fn accept_all(&mut self) -> io::Result<()> {
        let mut set = PollSet::default();
        loop {
            set.clear();
            set.watch(self.shared.stop.as_fd(), fd::READ);
            let places = self.listeners.iter().map(|listening| listening.watch().map(|fd| set.watch(fd, fd::READ)));
            let places: Vec<_> = places.collect();
            let first_arrival = 1 + places.iter().flatten().count();
            self.arrivals.watch(&mut set);
            let look = self.ways.as_ref().and_then(Ways::deadline);
            let silence = self.arrivals.deadline(&self.shared.settings);
            let deadline = self.listeners.iter().filter_map(Listening::deadline).chain(look).chain(silence).min();
            set.wait(deadline.map(|until| until.saturating_duration_since(Instant::now())))?;
            if set.ready(0).readable {
                return Ok(());
            }
            let now = Instant::now();
            for arrival in self.arrivals.take(&set, first_arrival, &self.shared.settings, now) {
                let mut head = [0; proto::HEAD_BYTES];
                // Nothing has come from one that is late, and an error will be met again.
                let count = fd::receive_now(arrival.stream.input(), &mut head).unwrap_or_default();
                begin(&self.shared, arrival, &head[..count]);
            }
            for (listening, place) in self.listeners.iter_mut().zip(places) {
                match place.map(|place| set.ready(place)) {
                    None => listening.open_if_due(now),
                    Some(ready) if listening.close_if_dead(ready, now) => {}
                    Some(ready) => {
                        if let Some(listener) = listening.listener().filter(|_| ready.readable)
                            && let Some(stream) = accept(&self.shared, listener, &mut self.arrivals)
                        {
                            welcome(&self.shared, &mut self.arrivals, stream, listening.pinned);
                        }
                    }
                }
            }
            self.look();
        }
    }
}

/// The next connection of a listener.
fn accept(shared: &Shared, listener: &Listener, arrivals: &mut Arrivals) -> Option<Stream> {
    match listener.accept() {
        Ok(stream) => Some(stream),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted) => None,
        Err(error) if matches!(error.raw_os_error(), Some(EMFILE | ENFILE)) && !arrivals.is_empty() => {
            refuse_oldest(arrivals.pop(), &format!("accept: {}", errno::describe(&error)));
            None
        }
        Err(error) => {
            // The connection stays in the queue; without the pause poll would offer it again at once, for ever.
            log::error!("accept: {}", errno::describe(&error));
            let _ = fd::wait_for(shared.stop.as_fd(), fd::READ, Some(EXHAUSTED_PAUSE));
            None
        }
    }
}

/// Serves a connection that has said something, and lets one wait that has not.
fn welcome(shared: &Arc<Shared>, arrivals: &mut Arrivals, stream: Stream, pinned: Option<&'static Protocol>) {
    let arrival = Arrival { stream, pinned, accepted: Instant::now() };
    let mut head = [0; proto::HEAD_BYTES];
    match fd::receive_now(arrival.stream.input(), &mut head) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        Ok(count) => return begin(shared, arrival, &head[..count]),
        Err(_) => return,
    }
    refuse_oldest(arrivals.push(arrival), &format!("more than {SILENT_MAX} connections say nothing"));
}

/// Tells the connection that has been silent for longest, if there is one, why it must go.
fn refuse_oldest(oldest: Option<Arrival>, why: &str) {
    if let Some(oldest) = oldest {
        log::warn!("refused a silent connection: {why}");
        proto::refuse(&oldest.stream, oldest.pinned, why);
    }
}

/// Serves a connection of which this has been read, or waits a moment when the system has no thread for it.
fn begin(shared: &Arc<Shared>, arrival: Arrival, head: &[u8]) {
    let circumstances = shared.circumstances(arrival.pinned, Opening::Peer, arrival.accepted);
    if !head.is_empty() && proto::serve_at_once(&arrival.stream, head, &circumstances) {
        return;
    }
    if let Err(error) = connections::start(shared, arrival, head.to_vec()) {
        log::error!("start a thread: {}", errno::describe(&error));
        let _ = fd::wait_for(shared.stop.as_fd(), fd::READ, Some(EXHAUSTED_PAUSE));
    }
}
