//! One task's host: a thread for each who comes, until the task is over.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::http::connection::Connection;
use crate::http::wait::Limits;
use crate::metadata::control::{self, Places};
use crate::metadata::listener::{Listener, Network};
use crate::metadata::service::Service;
use crate::stream::Stream;
use crate::sys::fd::{self, PollSet};
use crate::sys::signal;
use crate::transport::unix;

/// Connections of a guest that are served at once; for one more, the one that has rested longest goes. One guest has one poll, one log, and
/// a few replies.
pub const CONNECTIONS_MAX: usize = 64;

/// Commands that are carried out at once; more of them wait. `kill` does not count.
pub const COMMANDS_MAX: usize = 32;

/// Connections of commands, those that wait included. Each has a thread.
const COMMANDS_WAITING_MAX: usize = 512;

/// Strangers that are told so at once; more of them are cut off.
const STRANGERS_MAX: usize = 8;

/// Addresses of strangers that are told of. Whoever has more of them has made his point.
const STRANGERS_TOLD: usize = 16;

/// How long a stranger may take to ask.
const STRANGER_PATIENCE: Duration = Duration::from_secs(5);

/// How long the guest may take to end a command that was killed. Upstream's sends SIGKILL after 5 s.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// How long a guest whose log broke off may say nothing until it is told that it has gone. Ours polls again within this.
const GONE_AFTER: Duration = Duration::from_secs(5);

/// How long to leave waiting connections alone when the system has no descriptor or thread for them.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// Bytes of stack of a thread.
const STACK_BYTES: usize = 256 << 10;

/// Threads of one kind that run, and where each that ends says so.
struct Crowd {
    count: Arc<AtomicUsize>,
    max: usize,
    wake: Arc<OwnedFd>,
}

/// One of them, until it is dropped: also when its thread panics, or could not be started.
struct Member {
    count: Arc<AtomicUsize>,
    wake: Arc<OwnedFd>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::SeqCst);
        // When the pipe is full, somebody is about to look anyway.
        let _ = fd::write(self.wake.as_fd(), b"x");
    }
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
        let member = Member { count: Arc::clone(&self.count), wake: Arc::clone(&self.wake) };
        self.count.fetch_add(1, Ordering::SeqCst);
        let run = move || {
            let _member = member;
            work();
        };
        thread::Builder::new().stack_size(STACK_BYTES).spawn(run).map(drop)
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

/// What people like to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// The first guest has come, or one after it was gone; from where, unless through a unix socket.
    Guest(Option<IpAddr>),
    /// The guest says nothing any more, and its log broke off.
    Gone,
    /// A signal has come; a second one is not waited behind.
    Killing,
    /// Somebody with this address may not come, and has tried for the first time.
    Refused(IpAddr),
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
    /// To be set when nobody reads the log, before the bell is rung: then the task is killed, as by a signal.
    pub is_unread: Arc<AtomicBool>,
    pub tell: fn(News),
}

/// Who is there, and how far it has come.
struct Course {
    guests: Crowd,
    strangers: Crowd,
    commands: Crowd,
    kills: Crowd,
    places: Arc<Places>,
    /// For whom there is no room yet.
    held: Option<Stream>,
    has_told_of_guest: bool,
    told_of: Vec<IpAddr>,
    /// When the guest counts as gone, unless it comes again.
    gone_at: Option<Instant>,
    /// Until when the guest may end its command, which was killed.
    kill_until: Option<Instant>,
    /// Until when to stay behind the result.
    stay_until: Option<Instant>,
    /// Nobody wants to stay behind the result.
    leaves: bool,
    quiet_until: Option<Instant>,
}

impl Course {
    fn new(wake: &Arc<OwnedFd>) -> Course {
        let crowd = |max| Crowd::new(max, wake);
        Course {
            guests: crowd(CONNECTIONS_MAX),
            strangers: crowd(STRANGERS_MAX),
            commands: crowd(COMMANDS_WAITING_MAX),
            kills: crowd(1),
            places: Arc::new(Places::new(COMMANDS_MAX)),
            held: None,
            has_told_of_guest: false,
            told_of: Vec::new(),
            gone_at: None,
            kill_until: None,
            stay_until: None,
            leaves: false,
            quiet_until: None,
        }
    }

    fn patience(&self, now: Instant) -> Option<Duration> {
        let stay = self.stay_until.filter(|until| *until > now);
        let next = [self.kill_until, stay, self.quiet_until, self.gone_at].into_iter().flatten().min();
        next.map(|next| next.saturating_duration_since(now))
    }
}

impl Host {
    /// Serves until the task has its result; then as long as commands are carried out, and until `linger` is over. A signal before the
    /// result kills the task, which has failed then; one behind it ends the staying, and a second one is not waited behind. The service is
    /// closed at the end.
    ///
    /// # Errors
    /// Of poll(2).
    pub fn run(self, signals: &OwnedFd) -> io::Result<bool> {
        let result = self.serve(signals);
        self.service.close();
        result
    }

    fn serve(&self, signals: &OwnedFd) -> io::Result<bool> {
        let mut course = Course::new(&self.bell.1);
        let mut set = PollSet::default();
        loop {
            let now = Instant::now();
            if let Some(success) = self.end(&mut course, now) {
                return Ok(success);
            }
            self.look_for_guest(&mut course, now);
            course.quiet_until = course.quiet_until.filter(|until| now < *until);
            let mut accepted = self.let_in(&mut course);
            set.clear();
            let bell = set.watch(self.bell.0.as_fd(), fd::READ);
            let signalled = set.watch(signals.as_fd(), fd::READ);
            let may_accept = course.quiet_until.is_none();
            let has_room = || course.guests.has_room() || self.service.rest.is_anybody(&self.bell.1);
            let takes_guests = may_accept && course.held.is_none() && has_room();
            let guest = takes_guests.then(|| set.watch(self.listener.watch(), fd::READ));
            let control = self.control.as_ref().filter(|_| may_accept && course.commands.has_room());
            let command = control.map(|control| set.watch(control.watch(), fd::READ));
            set.wait(course.patience(now))?;
            if set.ready(bell).readable {
                let _ = fd::read(self.bell.0.as_fd(), &mut [0; 256]);
            }
            if self.is_unread.swap(false, Ordering::SeqCst) && self.service.result().is_none() {
                self.kill(&mut course);
            }
            if set.ready(signalled).readable
                && !signal::take(signals).is_empty()
                && let Some(success) = self.interrupt(&mut course)
            {
                return Ok(success);
            }
            if guest.is_some_and(|entry| set.ready(entry).readable) {
                accepted = accepted.and(self.guest(&mut course));
            }
            if command.is_some_and(|entry| set.ready(entry).readable) {
                accepted = accepted.and(self.command(&course));
            }
            if accepted.is_err_and(|error| is_exhaustion(&error)) {
                course.quiet_until = Some(Instant::now() + EXHAUSTED_PAUSE);
            }
        }
    }

    /// The result with which it is over, if it is.
    fn end(&self, course: &mut Course, now: Instant) -> Option<bool> {
        let result = self.service.announced();
        if let Some(until) = course.kill_until {
            let is_done = result.is_some() && course.kills.len() == 0;
            return (is_done || course.guests.len() == 0 || now >= until).then_some(false);
        }
        let success = result?;
        // A result that comes without a question is of another task, and its guest of no use for this one.
        let linger = if self.service.was_asked() { self.linger } else { Duration::ZERO };
        let until = *course.stay_until.get_or_insert(now + linger);
        (course.leaves || (course.commands.len() == 0 && now >= until)).then_some(success)
    }

    /// Tells of a guest that has gone. Its connections end, each with a ring of the bell.
    fn look_for_guest(&self, course: &mut Course, now: Instant) {
        if !self.service.is_deserted() || course.kill_until.is_some() {
            course.gone_at = None;
        } else if now >= *course.gone_at.get_or_insert(now + GONE_AFTER) {
            course.gone_at = None;
            course.has_told_of_guest = false;
            // Until a log breaks off again.
            self.service.is_log_broken.store(false, Ordering::SeqCst);
            (self.tell)(News::Gone);
        }
    }

    /// A signal has come. Gives the result when nothing is waited for any more.
    fn interrupt(&self, course: &mut Course) -> Option<bool> {
        if course.kill_until.is_some() {
            return Some(false);
        }
        // A result that is there stays, but the guest should have its answer.
        if let Some(success) = self.service.result() {
            return std::mem::replace(&mut course.leaves, true).then_some(success);
        }
        (self.tell)(News::Killing);
        self.kill(course);
        None
    }

    fn kill(&self, course: &mut Course) {
        if course.kill_until.is_none() {
            course.kill_until = Some(Instant::now() + KILL_PATIENCE);
            let service = Arc::clone(&self.service);
            let _ = course.kills.start(move || drop(service.kill_process()));
        }
    }

    fn guest(&self, course: &mut Course) -> io::Result<()> {
        let (stream, from) = self.listener.accept()?;
        let is_known = |ip: &IpAddr| self.from.is_empty() || self.from.iter().any(|network| network.has(*ip));
        if let Some(stranger) = from.filter(|ip| !is_known(ip)) {
            if course.told_of.len() < STRANGERS_TOLD && !course.told_of.contains(&stranger) {
                course.told_of.push(stranger);
                (self.tell)(News::Refused(stranger));
            }
            let strangers = &course.strangers;
            return if strangers.has_room() { strangers.start(move || drop(refuse(stream))) } else { Ok(()) };
        }
        if !std::mem::replace(&mut course.has_told_of_guest, true) {
            (self.tell)(News::Guest(from));
        }
        course.gone_at = None;
        course.held = Some(stream);
        if !course.guests.has_room() {
            self.service.rest.cut_longest();
        }
        self.let_in(course)
    }

    /// Serves who has been held, when there is room.
    fn let_in(&self, course: &mut Course) -> io::Result<()> {
        let Some(stream) = course.held.take_if(|_| course.guests.has_room()) else { return Ok(()) };
        let service = Arc::clone(&self.service);
        course.guests.start(move || drop(service.serve_connection(stream)))
    }

    fn command(&self, course: &Course) -> io::Result<()> {
        let stream = self.control.as_ref().map_or(Err(io::ErrorKind::WouldBlock.into()), unix::Listener::accept)?;
        let (service, places) = (Arc::clone(&self.service), Arc::clone(&course.places));
        course.commands.start(move || drop(control::serve(&service, stream, &places)))
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
        let host = Host {
            service: Arc::clone(&service),
            listener,
            from,
            control,
            linger,
            bell,
            is_unread: Arc::default(),
            tell: |_| {},
        };
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
        let error = service.kill_process().expect_err("it is closed");
        assert_eq!(error.to_string(), "the service has ended");
    }
}
