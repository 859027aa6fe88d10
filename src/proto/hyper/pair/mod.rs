//! What the two channels of an agent share: who is there, and the programs that run.

mod reach;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::engine::PROGRAMS_MAX;
use crate::engine::running::Running;
use crate::exec::{self, Session, parting};
use crate::proto::bell::Bell;
use crate::proto::hyper::process::Process;
use crate::stream::Stream;
use crate::sys::fd;

/// How long a channel waits for the end of the one before it, which its host may have closed before we see it.
const SEAT_PATIENCE: Duration = Duration::from_secs(1);

/// The same where that is known, and something has still to be done before it is left.
const DESERTED_PATIENCE: Duration = Duration::from_secs(10);

/// Bytes of a container's or a process's name: hosts give 64 digits to each.
pub const ID_MAX: usize = 255;

/// Containers that a host may name. They are only names here.
pub const CONTAINERS_MAX: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    Ctl,
    Tty,
}

/// The state of both channels, for all connections of an agent.
#[derive(Debug, Default)]
pub struct Pair {
    state: Mutex<State>,
    left: Condvar,
}

#[derive(Debug, Default)]
struct State {
    ctl: Option<Place>,
    tty: Option<Place>,
    /// The tty channel has seen the end of a program, and its host has not been told yet.
    owes_end: bool,
    containers: Vec<String>,
    programs: Vec<Program>,
    /// Programs whose streams no tty channel has taken yet.
    waiting: Vec<Streams>,
}

/// A channel that is there.
#[derive(Debug)]
struct Place {
    /// Wakes whoever serves it.
    bell: Arc<Bell>,
    /// Its connection, which tells whether the host is still there.
    host: OwnedFd,
}

/// A program that runs or is about to, as commands find it.
#[derive(Debug)]
struct Program {
    /// The container, the program in it and the number of its input.
    key: Key,
    role: Role,
    stderr: u64,
    /// `None` while it is being started: its numbers are taken, and nobody finds it.
    process: Option<Found>,
}

/// The process of a program.
#[derive(Debug)]
struct Found {
    pid: i32,
    terminal: Option<OwnedFd>,
}

/// What a program is to its container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The one that it was made with. None that comes later takes its place.
    First,
    Further,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Key {
    container: String,
    id: String,
    stdio: u64,
}

/// A program's streams, and their numbers on the tty channel.
#[derive(Debug)]
pub struct Streams {
    pub stdio: u64,
    pub stderr: u64,
    pub is_on_terminal: bool,
    pub running: Running,
}

/// Which programs a command means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    Sequence(u64),
    Named { container: &'a str, id: &'a str },
    FirstOf { container: &'a str },
    AllOf { container: &'a str },
    All,
}

/// A channel's place in the pair, until it is left.
pub struct Seat {
    pair: Arc<Pair>,
    channel: Channel,
    /// Rung when there is news for it.
    pub bell: Arc<Bell>,
}

impl Pair {
    /// Takes a channel's place for a connection; `None` when another one keeps it.
    ///
    /// # Errors
    /// Of pipe(2) and dup(2).
    pub fn enter(self: &Arc<Pair>, channel: Channel, stream: &Stream) -> io::Result<Option<Seat>> {
        let bell = Arc::new(Bell::new()?);
        let place = Place { bell: Arc::clone(&bell), host: stream.input().try_clone_to_owned()? };
        // Whoever comes when a host has closed both channels finds nothing of it, also if only one of them has seen that yet.
        let is_taken = |state: &mut State| {
            state.place(channel).is_some() || [&state.ctl, &state.tty].into_iter().flatten().any(Place::is_deserted)
        };
        let waited = self.left.wait_timeout_while(self.state(), SEAT_PATIENCE, is_taken);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let is_deserted = |state: &mut State| state.place(channel).as_ref().is_some_and(Place::is_deserted);
        let waited = self.left.wait_timeout_while(state, DESERTED_PATIENCE, is_deserted);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if state.place(channel).is_some() {
            return Ok(None);
        }
        *state.place(channel) = Some(place);
        Ok(Some(Seat { pair: Arc::clone(self), channel, bell }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is locked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a program in a container that is known. The tty channel has it before the host can know, and so all of its input.
    ///
    /// # Errors
    /// Why it does not run.
    pub fn start(&self, container: &str, role: Role, process: Process) -> Result<(), String> {
        process.check_numbers()?;
        let Process { program, id, stdio, stderr, terminal: is_on_terminal } = process;
        let stderr = if is_on_terminal { stdio } else { stderr };
        self.reserve(Key { container: container.to_owned(), id, stdio }, role, stderr)?;
        // Nothing is locked meanwhile: a file system may take its time, and the ends of other programs must not wait for it.
        let (mut session, channels) = exec::start(&program).map_err(|why| {
            self.forget(stdio);
            format!("Process could not be started: {}", why.text())
        })?;
        if role == Role::First {
            session.take_group();
        }
        let master = channels.iter().find_map(|channel| channel.wr.as_ref()).filter(|_| is_on_terminal);
        let terminal = master.and_then(|master| master.try_clone().ok());
        let found = Found { pid: session.pid(), terminal };
        let running = Running::new(0, session, channels, None, is_on_terminal);
        self.fill(found, Streams { stdio, stderr, is_on_terminal, running });
        Ok(())
    }

    /// Takes the names and numbers of a program that is about to start.
    fn reserve(&self, key: Key, role: Role, stderr: u64) -> Result<(), String> {
        check_id("process", &key.id)?;
        let mut state = self.state();
        state.check_free(&key, stderr)?;
        state.programs.push(Program { key, role, stderr, process: None });
        Ok(())
    }

    /// Lets commands find a program that was reserved, and the tty channel have its streams.
    fn fill(&self, found: Found, streams: Streams) {
        let mut state = self.state();
        // It is there: only its own end makes a program forgotten, and before this nobody could see that.
        if let Some(program) = state.programs.iter_mut().find(|program| program.key.stdio == streams.stdio) {
            program.process = Some(found);
        }
        state.waiting.push(streams);
        state.tty.iter().for_each(|tty| tty.bell.ring());
    }

    /// The programs that are new on the tty channel.
    pub fn take_started(&self) -> Vec<Streams> {
        std::mem::take(&mut self.state().waiting)
    }

    /// Leaves programs to the next tty channel, for which they were started.
    pub fn leave(&self, mut streams: Vec<Streams>) {
        let mut state = self.state();
        streams.append(&mut state.waiting);
        state.waiting = streams;
    }

    /// A program has ended: nobody finds it any more. It is to be buried only then, and the host to be told.
    pub fn end(&self, stdio: u64) {
        let mut state = self.state();
        state.programs.retain(|program| program.key.stdio != stdio);
        state.owes_end = true;
    }

    /// The host has been told of all ends that were seen.
    pub fn has_told(&self) {
        let mut state = self.state();
        if std::mem::take(&mut state.owes_end) {
            state.ctl.iter().for_each(|ctl| ctl.bell.ring());
        }
    }

    /// Whether no program is left, and the host knows.
    pub fn has_told_all(&self) -> bool {
        let state = self.state();
        state.programs.is_empty() && !state.owes_end
    }

    /// What was reserved is free again.
    fn forget(&self, stdio: u64) {
        self.state().programs.retain(|program| program.key.stdio != stdio);
    }

    /// Ends programs that were lost with a seat. Waits for that only when the agent ends too: then `stop` can be read.
    pub fn hang_up(&self, streams: Vec<Streams>, stop: BorrowedFd) {
        let sessions: Vec<Session> = streams.into_iter().map(|streams| streams.running.session).collect();
        if fd::wait_for(stop, fd::READ, Some(Duration::ZERO)).is_ok_and(|ready| ready.readable) {
            exec::hang_up(sessions);
        } else {
            parting::hang_up_meanwhile(sessions);
        }
    }

    /// Remembers a container.
    ///
    /// # Errors
    /// It is known already, its name is too long, or there are too many.
    pub fn add_container(&self, id: &str) -> Result<(), String> {
        check_id("container", id)?;
        let mut state = self.state();
        match () {
            () if state.containers.iter().any(|other| other == id) => Err(format!("container {id} exists already")),
            () if state.containers.len() == CONTAINERS_MAX => {
                Err(format!("more containers than the limit of {CONTAINERS_MAX}"))
            }
            () => {
                state.containers.push(id.to_owned());
                Ok(())
            }
        }
    }

    /// Forgets a container.
    ///
    /// # Errors
    /// It is not known, or a program of it runs.
    pub fn remove_container(&self, id: &str) -> Result<(), String> {
        let mut state = self.state();
        if !state.containers.iter().any(|other| other == id) {
            return Err(no_container(id));
        }
        if state.programs.iter().any(|program| program.key.container == id) {
            return Err(format!("container {id} is running"));
        }
        state.containers.retain(|other| other != id);
        Ok(())
    }

    /// Whether programs may run in a container of that name.
    pub fn has_container(&self, id: &str) -> bool {
        self.state().containers.iter().any(|other| other == id)
    }
}

pub fn no_container(id: &str) -> String {
    format!("no such container: {id}")
}

/// What a host calls a container or a process is kept for as long as that is there.
fn check_id(what: &str, id: &str) -> Result<(), String> {
    match id.len() {
        0..=ID_MAX => Ok(()),
        length => Err(format!("{what} id of {length} bytes is over the limit of {ID_MAX}")),
    }
}

impl State {
    fn place(&mut self, channel: Channel) -> &mut Option<Place> {
        match channel {
            Channel::Ctl => &mut self.ctl,
            Channel::Tty => &mut self.tty,
        }
    }

    fn check_free(&self, key: &Key, stderr: u64) -> Result<(), String> {
        if self.programs.len() >= PROGRAMS_MAX {
            return Err(format!("more programs than the limit of {PROGRAMS_MAX}"));
        }
        for program in &self.programs {
            let taken = [program.key.stdio, program.stderr];
            if let Some(number) = [key.stdio, stderr].iter().find(|number| taken.contains(number)) {
                return Err(format!("sequence {number} is taken"));
            }
            if program.key.container == key.container && program.key.id == key.id {
                return Err(format!("process {} is running already", key.id));
            }
        }
        Ok(())
    }
}

impl Place {
    /// Whether its host has gone, and it will be left in a moment.
    fn is_deserted(&self) -> bool {
        // Both channels take the end of what is sent for theirs.
        fd::wait_for(self.host.as_fd(), fd::PEER_ENDED, Some(Duration::ZERO)).is_ok_and(|ready| ready.hung_up)
    }
}

impl Seat {
    /// Gives the place to the next one, for whom the programs of this one are no more. Gives them, and those whose streams nobody will
    /// ever read. Behind the last channel no name and no number is taken.
    pub fn leave(self, mut lost: Vec<Streams>) -> Vec<Streams> {
        let mut state = self.pair.state();
        state.programs.retain(|program| lost.iter().all(|streams| streams.stdio != program.key.stdio));
        *state.place(self.channel) = None;
        if self.channel == Channel::Tty {
            // Nobody waits for what nobody can be told any more.
            state.owes_end = false;
            state.ctl.iter().for_each(|ctl| ctl.bell.ring());
        }
        if state.ctl.is_none() && state.tty.is_none() {
            // What a host makes here is named by it, and the next one may be another.
            lost.append(&mut std::mem::take(&mut *state).waiting);
        }
        drop(state);
        self.pair.left.notify_all();
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str, stdio: u64) -> Key {
        Key { container: "c".to_owned(), id: id.to_owned(), stdio }
    }

    #[test]
    fn what_is_being_started_is_taken_and_found_by_nobody() {
        let pair = Pair::default();
        assert_eq!(pair.add_container("c"), Ok(()));
        assert_eq!(pair.reserve(key("a", 3), Role::First, 4), Ok(()));
        let taken = |number: u64| Err(format!("sequence {number} is taken"));
        assert_eq!(pair.reserve(key("b", 3), Role::Further, 9), taken(3));
        assert_eq!(pair.reserve(key("b", 9), Role::Further, 4), taken(4));
        assert_eq!(pair.reserve(key("a", 9), Role::Further, 10), Err("process a is running already".to_owned()));
        assert_eq!(pair.remove_container("c"), Err("container c is running".to_owned()));
        assert_eq!(pair.resize(&Target::Sequence(3), crate::sys::tty::Window::default()).ok(), Some(()));
        for target in [Target::FirstOf { container: "c" }, Target::AllOf { container: "c" }] {
            let error = pair.signal(&target, 9).expect_err("it is no process yet");
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "{target:?}");
        }
        assert!(pair.take_started().is_empty());
        pair.forget(3);
        assert_eq!(pair.reserve(key("a", 3), Role::Further, 4), Ok(()));
    }

    #[test]
    fn those_that_are_being_started_count_for_the_limit() {
        let pair = Pair::default();
        let reserve =
            |number: usize| pair.reserve(key(&number.to_string(), number as u64), Role::Further, number as u64);
        for number in 1..=PROGRAMS_MAX {
            assert_eq!(reserve(number), Ok(()));
        }
        assert_eq!(reserve(PROGRAMS_MAX + 1), Err("more programs than the limit of 64".to_owned()));
    }
}
