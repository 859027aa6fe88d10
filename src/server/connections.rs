//! The connections of an agent: their limit, what they share, and a thread for each.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::engine::{Ended, PROGRAMS_MAX};
use crate::proto::settings::Settings;
use crate::proto::{self, Circumstances, Opening, PROTOCOLS, Protocol};
use crate::server::arrivals::{Arrival, SILENT_MAX};
use crate::server::workers::Workers;
use crate::sys::{errno, fd};

/// What the threads of an agent share: the settings, the limit, and the wish to end.
pub struct Shared {
    pub settings: Settings,
    pub connections_max: usize,
    /// Readable once the agent shall end; nobody ever reads it.
    pub stop: OwnedFd,
    connections: Mutex<Connections>,
    fewer: Condvar,
    workers: Arc<Workers>,
}

#[derive(Default)]
struct Connections {
    count: usize,
    /// Somebody waits until there are none.
    are_awaited: bool,
}

/// A place among the connections, until it is dropped.
pub struct Place(pub Arc<Shared>);

impl Shared {
    pub fn new(settings: Settings, connections_max: usize, stop: OwnedFd) -> Arc<Shared> {
        let (connections, fewer) = (Mutex::default(), Condvar::new());
        Arc::new(Shared { settings, connections_max, stop, connections, fewer, workers: Arc::default() })
    }

    fn connections(&self) -> MutexGuard<'_, Connections> {
        // A thread that panicked has still counted right.
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those of a connection that came at this time.
    pub fn circumstances(
        &self,
        pinned: Option<&'static Protocol>,
        opening: Opening,
        accepted: Instant,
    ) -> Circumstances<'_> {
        Circumstances { pinned, opening, stop: self.stop.as_fd(), accepted, settings: &self.settings }
    }

    /// Lets the agent's commands say what it is. What its lines and sockets are is added as they are opened.
    pub fn introduce(&self) {
        let settings = &self.settings;
        let bytes = |count: usize| count as u64;
        settings.commands.describe(|about| {
            // A monitor that is started again listens on nothing yet.
            about.listeners.clear();
            about.protocols = PROTOCOLS.iter().map(|protocol| protocol.name).collect();
            about.limits = vec![
                ("connections", bytes(self.connections_max)),
                ("connections_that_say_nothing", bytes(SILENT_MAX)),
                ("programs_on_a_connection", bytes(PROGRAMS_MAX)),
                ("request_bytes", bytes(settings.request_max)),
                ("request_milliseconds", settings.request_timeout.as_millis() as u64),
            ];
        });
    }

    pub fn stopped(&self) -> bool {
        fd::wait_for(self.stop.as_fd(), fd::READ, Some(Duration::ZERO)).is_ok_and(|ready| ready.readable)
    }
}

impl Place {
    pub fn take(shared: &Arc<Shared>) -> Option<Place> {
        let mut connections = shared.connections();
        (connections.count < shared.connections_max).then(|| {
            connections.count += 1;
            Place(Arc::clone(shared))
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut connections = self.0.connections();
        connections.count -= 1;
        // To wake nobody is a system call too.
        if connections.are_awaited {
            self.0.fewer.notify_all();
        }
    }
}

/// Serves a connection in a thread of its own; where there is no place for it, it is told so.
///
/// # Errors
/// No thread could be started. The connection is closed.
pub fn start(shared: &Arc<Shared>, arrival: Arrival, head: Vec<u8>) -> io::Result<()> {
    let Arrival { stream, pinned, accepted } = arrival;
    let Some(place) = Place::take(shared) else {
        let why = format!("more connections than the limit of {}", shared.connections_max);
        log::warn!("refused a connection: {why}");
        proto::refuse(&stream, pinned.or_else(|| proto::claiming(&head)), &why);
        return Ok(());
    };
    let serve = move || report(proto::serve(stream, &head, &place.0.circumstances(pinned, Opening::Peer, accepted)));
    shared.workers.start(Box::new(serve))
}

/// A connection's end is one line of the log, if it is worth one.
pub fn report(ended: io::Result<Ended>) {
    match ended {
        Ok(Ended::Regular) => {}
        // Somebody looked whether an agent is there.
        Ok(Ended::Unused) => log::debug!("a connection was closed before it was used"),
        Ok(Ended::Broken(why)) => log::warn!("connection ended: {why}"),
        Err(error) => log::warn!("connection ended: {}", errno::describe(&error)),
    }
}

/// Waits until the connections, which see the stop themselves, have ended their programs, but not for longer.
pub fn wait_for_connections(shared: &Shared, deadline: Instant) {
    let patience = deadline.saturating_duration_since(Instant::now());
    let mut connections = shared.connections();
    connections.are_awaited = true;
    let _ = shared.fewer.wait_timeout_while(connections, patience, |connections| connections.count > 0);
}
