//! Who may come, and a thread for each who has.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::http::connection::Connection;
use crate::http::wait::Limits;
use crate::metadata::control::{self, Places};
use crate::metadata::service::Service;
use crate::stream::Stream;
use crate::sys::fd::{self, PollSet};
use crate::sys::signal;
use crate::transport::unix;

/// Connections of a guest that are served at once; more of them wait. One guest has one poll, one log, and a few replies.
pub const CONNECTIONS_MAX: usize = 64;

/// Commands that are carried out at once; more of them wait. `kill` does not count.
pub const COMMANDS_MAX: usize = 32;

/// Connections of commands, those that wait included. Each has a thread.
const COMMANDS_WAITING_MAX: usize = 512;

/// Strangers that are told so at once; more of them are cut off.
const STRANGERS_MAX: usize = 8;

/// How long a stranger may take to ask.
const STRANGER_PATIENCE: Duration = Duration::from_secs(5);

/// How long the guest may take to end a command that was killed. Upstream's sends SIGKILL after 5 s.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// How long to leave waiting connections alone when the system has no descriptor or thread for them.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// Bytes of stack of a thread.
const STACK_BYTES: usize = 256 << 10;

/// Addresses that have their first bits in common: `IP/BITS`, or one `IP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    ip: IpAddr,
    bits: u32,
}

impl FromStr for Network {
    type Err = io::Error;

    fn from_str(text: &str) -> io::Result<Network> {
        let wrong = || io::Error::new(io::ErrorKind::InvalidInput, "no network (IP or IP/BITS)");
        let (ip, bits) = text.split_once('/').map_or((text, None), |(ip, bits)| (ip, Some(bits)));
        let ip: IpAddr = ip.parse().map_err(|_| wrong())?;
        let max = if ip.is_ipv4() { 32 } else { 128 };
        // `parse` would take a sign.
        let digits = |bits: &str| bits.parse().ok().filter(|_| bits.bytes().all(|byte| byte.is_ascii_digit()));
        let bits = bits.map_or(Some(max), digits).filter(|bits| *bits <= max).ok_or_else(wrong)?;
        Ok(Network { ip, bits })
    }
}

impl Network {
    /// Whether an address is in it. One of version 4 that comes to a socket of version 6 is one of version 4.
    pub fn has(&self, ip: IpAddr) -> bool {
        let differ = |a: u128, b: u128, width: u32| (a ^ b).checked_shr(width - self.bits).unwrap_or(0) != 0;
        match (self.ip, ip.to_canonical()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => !differ(u32::from(a).into(), u32::from(b).into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => !differ(a.into(), b.into(), 128),
            _ => false,
        }
    }
}

/// What guests connect to.
pub enum Listener {
    Network(TcpListener),
    /// For QEMU's `guestfwd`: there is no address of a peer, and who may connect is a matter of the file's mode (0600).
    Unix(unix::Listener),
}

impl Listener {
    /// Listens at `IP:PORT` or `unix:PATH`. Port 0 is one that is free.
    ///
    /// # Errors
    /// `InvalidInput` for what is no address, and those of bind(2).
    pub fn open(text: &str) -> io::Result<Listener> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Listener::Unix(unix::Listener::open(Path::new(path), 0o600, None)?));
        }
        let wrong = |_| io::Error::new(io::ErrorKind::InvalidInput, "no address (IP:PORT or unix:PATH)");
        let listener = TcpListener::bind(text.parse::<SocketAddr>().map_err(wrong)?)?;
        listener.set_nonblocking(true)?;
        Ok(Listener::Network(listener))
    }

    /// Where it listens, when that is an address of the network.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Listener::Network(listener) => listener.local_addr().ok(),
            Listener::Unix(_) => None,
        }
    }

    fn watch(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Network(listener) => listener.as_fd(),
            Listener::Unix(listener) => listener.watch(),
        }
    }

    fn accept(&self) -> io::Result<(Stream, Option<IpAddr>)> {
        match self {
            Listener::Unix(listener) => Ok((listener.accept()?, None)),
            Listener::Network(listener) => {
                let (socket, from) = listener.accept()?;
                Ok((Stream::over(OwnedFd::from(socket)), Some(from.ip())))
            }
        }
    }
}

/// Threads of one kind that run, and where each that ends says so.
struct Crowd {
    count: Arc<AtomicUsize>,
    max: usize,
    wake: Arc<OwnedFd>,
}

impl Crowd {
    fn new(max: usize, wake: &Arc<OwnedFd>) -> Crowd {
        Crowd { count: Arc::default(), max, wake: Arc::clone(wake) }
    }

    fn len(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    fn has_room(&self) -> bool {
        self.len() < self.max
    }

    fn start(&self, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let (count, wake) = (Arc::clone(&self.count), Arc::clone(&self.wake));
        count.fetch_add(1, Ordering::SeqCst);
        let run = move || {
            work();
            count.fetch_sub(1, Ordering::SeqCst);
            // When the pipe is full, somebody is about to look anyway.
            let _ = fd::write(wake.as_fd(), b"x");
        };
        let started = thread::Builder::new().stack_size(STACK_BYTES).spawn(run).map(drop);
        if started.is_err() {
            self.count.fetch_sub(1, Ordering::SeqCst);
        }
        started
    }
}

/// Pairs of ends that wake `Host::run`; the callback of its service must write into the second one.
///
/// # Errors
/// Of pipe2(2).
pub fn bell() -> io::Result<(OwnedFd, Arc<OwnedFd>)> {
    let (rd, wr) = fd::pipe()?;
    fd::never_block(rd.as_fd())?;
    fd::never_block(wr.as_fd())?;
    Ok((rd, Arc::new(wr)))
}

/// One task's host, until the task is over.
pub struct Host {
    pub service: Arc<Service>,
    pub listener: Listener,
    /// Who may come; empty: everybody who can.
    pub from: Vec<Network>,
    pub control: Option<unix::Listener>,
    /// How long to stay for commands behind the result. Those that are being carried out then are waited for in any case.
    pub linger: Duration,
    pub bell: (OwnedFd, Arc<OwnedFd>),
}

impl Host {
    /// Serves until the task has its result; then as long as commands are carried out, and until `linger` is over. A signal kills the task,
    /// which has failed then; a second one is not waited behind.
    ///
    /// # Errors
    /// Of poll(2).
    pub fn run(self, signals: &OwnedFd) -> io::Result<bool> {
        let wake = &self.bell.1;
        let guests = Crowd::new(CONNECTIONS_MAX, wake);
        let (strangers, commands) = (Crowd::new(STRANGERS_MAX, wake), Crowd::new(COMMANDS_WAITING_MAX, wake));
        let places = Arc::new(Places::new(COMMANDS_MAX));
        let kills = Crowd::new(1, wake);
        let (mut kill_until, mut stay_until, mut quiet_until) = (None, None, None);
        let mut set = PollSet::default();
        loop {
            let now = Instant::now();
            let result = self.service.announced();
            if let Some(until) = kill_until
                && ((result.is_some() && kills.len() == 0) || guests.len() == 0 || now >= until)
            {
                return Ok(false);
            }
            if let Some(success) = result {
                let until = *stay_until.get_or_insert(now + self.linger);
                if kill_until.is_none() && commands.len() == 0 && now >= until {
                    return Ok(success);
                }
            }
            quiet_until = quiet_until.filter(|until| now < *until);
            set.clear();
            let bell = set.watch(self.bell.0.as_fd(), fd::READ);
            let signalled = set.watch(signals.as_fd(), fd::READ);
            let may_accept = quiet_until.is_none();
            let guest = (may_accept && guests.has_room()).then(|| set.watch(self.listener.watch(), fd::READ));
            let control = self.control.as_ref().filter(|_| may_accept && commands.has_room());
            let command = control.map(|control| set.watch(control.watch(), fd::READ));
            let stay = stay_until.filter(|until| *until > now);
            let next = [kill_until, stay, quiet_until].into_iter().flatten().min();
            set.wait(next.map(|next| next.saturating_duration_since(now)))?;
            if set.ready(bell).readable {
                let _ = fd::read(self.bell.0.as_fd(), &mut [0; 256]);
            }
            if set.ready(signalled).readable && !signal::take(signals).is_empty() {
                if kill_until.is_some() {
                    return Ok(false);
                }
                kill_until = Some(Instant::now() + KILL_PATIENCE);
                let service = Arc::clone(&self.service);
                let _ = kills.start(move || drop(service.kill_process()));
            }
            let mut accepted = Ok(());
            if guest.is_some_and(|entry| set.ready(entry).readable) {
                accepted = self.guest(&guests, &strangers);
            }
            if command.is_some_and(|entry| set.ready(entry).readable) {
                accepted = accepted.and(self.command(&commands, &places));
            }
            if accepted.is_err_and(|error| is_exhaustion(&error)) {
                quiet_until = Some(Instant::now() + EXHAUSTED_PAUSE);
            }
        }
    }

    fn guest(&self, guests: &Crowd, strangers: &Crowd) -> io::Result<()> {
        let (stream, from) = self.listener.accept()?;
        let is_known = |ip: IpAddr| self.from.is_empty() || self.from.iter().any(|network| network.has(ip));
        if from.is_none_or(is_known) {
            let service = Arc::clone(&self.service);
            return guests.start(move || drop(service.serve_connection(stream)));
        }
        if strangers.has_room() { strangers.start(move || drop(refuse(stream))) } else { Ok(()) }
    }

    fn command(&self, commands: &Crowd, places: &Arc<Places>) -> io::Result<()> {
        let stream = self.control.as_ref().map_or(Err(io::ErrorKind::WouldBlock.into()), unix::Listener::accept)?;
        let (service, places) = (Arc::clone(&self.service), Arc::clone(places));
        commands.start(move || drop(control::serve(&service, stream, &places)))
    }
}

/// Nothing is left to accept with, as opposed to a connection that went before it was accepted.
fn is_exhaustion(error: &io::Error) -> bool {
    !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted)
}

fn refuse(stream: Stream) -> io::Result<()> {
    let mut connection = Connection::over(stream)?;
    let limits = Limits::default().until(Instant::now() + STRANGER_PATIENCE);
    match connection.request(limits)? {
        Some(_) => connection.respond(403, &[("Connection", "close")], b"", limits),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::metadata::service::Resolved;

    #[test]
    fn a_host_stays_until_the_guest_has_its_answer_to_the_result() {
        let path = std::env::temp_dir().join(format!("lodger-listener-{}", std::process::id()));
        let listener = Listener::open(&format!("unix:{}", path.display())).expect("a listener");
        let bell = bell().expect("a pipe");
        let (wake, (signals, _never)) = (Arc::clone(&bell.1), fd::pipe().expect("a pipe"));
        let resolved = Box::new(move |_| drop(fd::write(wake.as_fd(), b"x")));
        let service = Arc::new(Service::new(&[], &[], Box::new(io::sink()), resolved).expect("a service"));
        let (from, linger, control) = (Vec::new(), Duration::ZERO, None);
        let host = Host { service: Arc::clone(&service), listener, from, control, linger, bell };
        let running = thread::spawn(move || host.run(&signals).expect("a poll"));
        assert_eq!(service.resolve(true), Resolved::Now);
        // Somebody else wakes it: a connection that ends at once.
        drop(UnixStream::connect(&path).expect("a connection"));
        let mut second = UnixStream::connect(&path).expect("a connection");
        second.write_all(b"GET /engine/v1/ping HTTP/1.1\r\nConnection: close\r\n\r\n").expect("a request");
        let mut answer = String::new();
        io::Read::read_to_string(&mut second, &mut answer).expect("it is there");
        thread::sleep(Duration::from_millis(50));
        assert!(answer.starts_with("HTTP/1.1 200") && !running.is_finished(), "{answer}");
        service.announce();
        assert!(running.join().expect("an end"));
    }

    #[test]
    fn networks_are_addresses_with_bits_in_common() {
        let has =
            |network: &str, ip: &str| network.parse::<Network>().expect(network).has(ip.parse().expect("an address"));
        assert!(has("192.168.150.0/24", "192.168.150.7") && !has("192.168.150.0/24", "192.168.151.7"));
        assert!(has("10.0.0.1", "10.0.0.1") && !has("10.0.0.1", "10.0.0.2"));
        assert!(has("0.0.0.0/0", "1.2.3.4") && !has("0.0.0.0/0", "::1"));
        assert!(has("::/0", "fe80::1") && has("fe80::/10", "fe80::1") && !has("fe80::/10", "fec0::1"));
        assert!(has("::1", "::1") && !has("::1/128", "::2") && has("10.0.0.0/8", "::ffff:10.1.2.3"));
        for wrong in ["", "1.2.3", "1.2.3.4/33", "::/129", "1.2.3.4/", "1.2.3.4/+8", "1.2.3.4/-1", "a/8"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }
}
