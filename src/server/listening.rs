//! Listeners that stay: one whose socket fails is opened again.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crate::exec::user;
use crate::proto::Protocol;
use crate::server::Error;
use crate::sys::fd;
use crate::transport::{Addr, Carrier, Listener, unix, vsock};

/// First pause before a socket that failed is opened again; then each is twice as long.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_LONGEST: Duration = Duration::from_secs(10);

/// After so long a life of a socket the pauses begin afresh.
const LONG_LIFE: Duration = Duration::from_secs(10);

enum State {
    Open { listener: Listener, since: Instant },
    Closed { until: Instant },
}

/// An address with connections.
pub struct Listening {
    addr: Addr,
    pub pinned: Option<&'static Protocol>,
    state: State,
    pause: Duration,
}

impl Listening {
    /// Listens at an address of a carrier that has connections.
    ///
    /// # Errors
    /// `Address` for a carrier that can only be connected to, and for an unknown group; `Listen`.
    pub fn open(addr: &Addr, pinned: Option<&'static Protocol>) -> Result<Listening, Error> {
        let state = State::Open { listener: open(addr)?, since: Instant::now() };
        log::info!("listening on {addr}");
        Ok(Listening { addr: addr.clone(), pinned, state, pause: PAUSE_FIRST })
    }

    /// The listener, while it is open.
    pub fn listener(&self) -> Option<&Listener> {
        match &self.state {
            State::Open { listener, .. } => Some(listener),
            State::Closed { .. } => None,
        }
    }

    /// What to wait for, while it is open.
    pub fn watch(&self) -> Option<BorrowedFd<'_>> {
        self.listener().map(Listener::watch)
    }

    /// When it is to be opened again; `None` while it is open.
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Open { .. } => None,
            State::Closed { until } => Some(until),
        }
    }

    /// Closes the socket if poll(2) says that it is dead and nothing will come to it any more, as after a reset of a vsock transport.
    /// True when it did. A unix socket stays: nothing can happen to it, and opening one changes the umask under other threads.
    pub fn close_if_dead(&mut self, ready: fd::Ready, now: Instant) -> bool {
        let State::Open { listener: Listener::Vsock(_), since } = &self.state else { return false };
        if !ready.hung_up {
            return false;
        }
        if now.saturating_duration_since(*since) >= LONG_LIFE {
            self.pause = PAUSE_FIRST;
        }
        log::warn!("{}: its socket failed; opened again in {} ms", self.addr, self.pause.as_millis());
        self.rest(now);
        true
    }

    /// Opens the socket again if it is closed and its time has come.
    pub fn open_if_due(&mut self, now: Instant) {
        if self.deadline().is_none_or(|until| now < until) {
            return;
        }
        match open(&self.addr) {
            Ok(listener) => {
                log::warn!("listening on {} again", self.addr);
                self.state = State::Open { listener, since: now };
            }
            Err(error) => {
                log::warn!("{error}; next try in {} ms", self.pause.as_millis());
                self.rest(now);
            }
        }
    }

    fn rest(&mut self, now: Instant) {
        self.state = State::Closed { until: now + self.pause };
        self.pause = (self.pause * 2).min(PAUSE_LONGEST);
    }
}

fn open(addr: &Addr) -> Result<Listener, Error> {
    let failed = |error| Error::Listen { addr: addr.to_string(), error };
    match &addr.carrier {
        Carrier::Unix { path, mode, group } => {
            let group = group.as_deref().map(|group| user::look_up(&format!(":{group}"))).transpose();
            let group = group.map_err(|text| Error::Address(format!("address {addr}: {text}")))?;
            let listener = unix::Listener::open(path, *mode, group.map(|found| found.gid));
            listener.map(Listener::Unix).map_err(failed)
        }
        Carrier::Vsock { port, peers } => vsock::Listener::open(*port, *peers).map(Listener::Vsock).map_err(failed),
        #[cfg(feature = "openstack")]
        Carrier::XenStore(_) => Err(Error::Address(format!("address {addr}: has no connections"))),
        Carrier::Stdio => Err(Error::Address(format!("address {addr}: only `lodger serve` serves it, and alone"))),
        _ => Err(Error::Address(format!("address {addr}: can only be connected to"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::sys::fd::READ;
    use crate::transport::Peers;

    /// A vsock listener whose socket is dead.
    fn dead(addr: &str, since: Instant) -> Listening {
        let (socket, _) = fd::socket_pair().expect("a socket pair");
        let listener = Listener::Vsock(vsock::Listener::over(socket, Peers::Any));
        let addr = addr.parse().expect("an address");
        Listening { addr, pinned: None, state: State::Open { listener, since }, pause: PAUSE_FIRST }
    }

    fn look(listening: &Listening) -> fd::Ready {
        fd::wait_for(listening.watch().expect("it is open"), READ, Some(Duration::ZERO)).expect("a look")
    }

    #[test]
    fn a_dead_socket_is_opened_again_in_longer_and_longer_pauses() {
        let mut now = Instant::now();
        // Not an address that can be listened on, so that no attempt works.
        let mut listening = dead("vsock:3:1", now);
        assert!(listening.close_if_dead(look(&listening), now));
        let pauses = (0..9).map(|_| {
            let until = listening.deadline().expect("it is closed");
            listening.open_if_due(until - Duration::from_millis(1));
            assert_eq!(listening.deadline(), Some(until), "it is not due yet");
            let pause = until.saturating_duration_since(now).as_millis();
            now = until;
            listening.open_if_due(now);
            pause
        });
        assert_eq!(pauses.collect::<Vec<_>>(), [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
    }

    #[test]
    fn a_socket_that_is_open_again_is_watched_again() {
        let now = Instant::now();
        let port = 60_000 + std::process::id() % 5_000;
        let mut listening = dead(&format!("vsock:{port},cid=1"), now);
        if open(&listening.addr).is_err() {
            eprintln!("a_socket_that_is_open_again_is_watched_again was skipped: this kernel has no vsock");
            return;
        }
        assert!(listening.close_if_dead(look(&listening), now) && listening.watch().is_none());
        listening.open_if_due(now + PAUSE_FIRST);
        assert!(!look(&listening).hung_up && listening.deadline().is_none());
        assert!(!listening.close_if_dead(look(&listening), now));
    }

    #[test]
    fn a_socket_that_lived_long_is_opened_again_soon() {
        let start = Instant::now();
        let mut listening = dead("vsock:3:1", start);
        listening.pause = PAUSE_LONGEST;
        let now = start + LONG_LIFE;
        assert!(listening.close_if_dead(look(&listening), now));
        assert_eq!(listening.deadline(), Some(now + PAUSE_FIRST));
    }

    #[test]
    fn a_unix_socket_is_never_closed() {
        let path = std::env::temp_dir().join(format!("lodger-listening-{}", std::process::id()));
        let addr = format!("unix:{}", path.display()).parse().expect("an address");
        let mut listening = Listening::open(&addr, None).expect("a listener");
        let ready = fd::Ready { readable: true, writable: true, hung_up: true };
        assert!(!listening.close_if_dead(ready, Instant::now()));
        assert!(listening.watch().is_some());
    }
}
