//! What the two channels of an agent share: who is there, and the programs that run.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::engine::PROGRAMS_MAX;
use crate::engine::running::Running;
use crate::exec::{self, Session};
use crate::proto::hyper::process::Process;
use crate::sys::fd;
use crate::sys::process::signal_group;
use crate::sys::tty::{self, Window};

/// How long a channel waits for the end of the one before it, whose end the host may have seen before us.
const SEAT_PATIENCE: Duration = Duration::from_secs(1);

/// Bytes of stack of a thread that only waits for programs to end.
const HANG_UP_STACK: usize = 64 << 10;

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
    has_ctl: bool,
    has_tty: bool,
    /// Wakes the tty channel; what is in it does not matter.
    bell: Option<OwnedFd>,
    containers: Vec<String>,
    programs: Vec<Program>,
    /// Programs whose streams no tty channel has taken yet.
    waiting: Vec<Streams>,
}

/// A program that runs, as commands find it.
#[derive(Debug)]
struct Program {
    /// The container, the program in it and the number of its input.
    key: Key,
    /// The first one of its container.
    is_first: bool,
    stderr: u64,
    pid: i32,
    terminal: Option<OwnedFd>,
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
}

/// A channel's place in the pair, until it is left.
pub struct Seat {
    pair: Arc<Pair>,
    channel: Channel,
    /// For the tty channel: readable when there is news for it.
    pub bell: Option<OwnedFd>,
}

impl Pair {
    /// Takes a channel's place; `None` when another one keeps it.
    pub fn enter(self: &Arc<Pair>, channel: Channel) -> Option<Seat> {
        let (ring, bell) = match channel {
            Channel::Ctl => (None, None),
            Channel::Tty => {
                let (bell, ring) = fd::pipe().ok()?;
                fd::never_block(ring.as_fd()).ok()?;
                fd::never_block(bell.as_fd()).ok()?;
                (Some(ring), Some(bell))
            }
        };
        let is_taken = |state: &mut State| *state.place(channel);
        let waited = self.left.wait_timeout_while(self.state(), SEAT_PATIENCE, is_taken);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if *state.place(channel) {
            return None;
        }
        *state.place(channel) = true;
        if ring.is_some() {
            state.bell = ring;
        }
        Some(Seat { pair: Arc::clone(self), channel, bell })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is locked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a program in a container that is known. The tty channel has it before the host can know, and so all of its input.
    ///
    /// # Errors
    /// Why it does not run.
    pub fn start(&self, container: &str, process: Process) -> Result<(), String> {
        process.check_numbers()?;
        let Process { program, id, stdio, stderr, terminal: is_on_terminal } = process;
        let stderr = if is_on_terminal { stdio } else { stderr };
        let mut state = self.state();
        state.check_free(container, &id, [stdio, stderr])?;
        let could_not = |why: &exec::NotStarted| format!("Process could not be started: {}", why.text());
        let (session, channels) = exec::start(&program).map_err(|why| could_not(&why))?;
        let master = channels.iter().find_map(|channel| channel.wr.as_ref()).filter(|_| is_on_terminal);
        let terminal = master.and_then(|master| master.try_clone().ok());
        let is_first = state.programs.iter().all(|other| other.key.container != container);
        let key = Key { container: container.to_owned(), id, stdio };
        state.programs.push(Program { key, is_first, stderr, pid: session.pid(), terminal });
        let running = Running::new(0, session, channels, None, is_on_terminal);
        state.waiting.push(Streams { stdio, stderr, is_on_terminal, running });
        state.ring();
        Ok(())
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

    /// A program has ended: nobody finds it any more. It is to be buried only then.
    pub fn forget(&self, stdio: u64) {
        self.state().programs.retain(|program| program.key.stdio != stdio);
    }

    /// Ends programs whose streams have nowhere to go any more. Waits for that only when the agent ends too: then `stop` can be read.
    pub fn hang_up(&self, streams: Vec<Streams>, stop: BorrowedFd) {
        streams.iter().for_each(|streams| self.forget(streams.stdio));
        let sessions: Vec<Session> = streams.into_iter().map(|streams| streams.running.session).collect();
        if fd::wait_for(stop, fd::READ, Some(Duration::ZERO)).is_ok_and(|ready| ready.readable) {
            exec::hang_up(sessions);
        } else if !sessions.is_empty() {
            // Without a thread to be had, the sessions are dropped with the closure: SIGKILL at once.
            let _ = thread::Builder::new().stack_size(HANG_UP_STACK).spawn(move || exec::hang_up(sessions));
        }
    }

    /// Remembers a container.
    ///
    /// # Errors
    /// It is known already, or there are too many.
    pub fn add_container(&self, id: &str) -> Result<(), String> {
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

    /// Tells a program's terminal its size. One that is not there, or has no terminal, is passed over.
    pub fn resize(&self, target: &Target, window: Window) -> io::Result<()> {
        let state = self.state();
        let mut found = state.programs.iter().filter(|program| program.is_meant(target));
        found.try_for_each(|program| program.terminal.as_ref().map_or(Ok(()), |fd| tty::set_window(fd.as_fd(), window)))
    }

    /// Sends a signal to the process groups of programs.
    ///
    /// # Errors
    /// `NotFound` when there is none; of kill(2).
    pub fn signal(&self, target: &Target, signal: i32) -> io::Result<()> {
        // Locked meanwhile, so that nobody buries them and their numbers are their own.
        let state = self.state();
        let mut found = state.programs.iter().filter(|program| program.is_meant(target)).peekable();
        found.peek().ok_or(io::ErrorKind::NotFound)?;
        found.try_for_each(|program| signal_group(program.pid, signal))
    }
}

pub fn no_container(id: &str) -> String {
    format!("no such container: {id}")
}

impl State {
    fn place(&mut self, channel: Channel) -> &mut bool {
        match channel {
            Channel::Ctl => &mut self.has_ctl,
            Channel::Tty => &mut self.has_tty,
        }
    }

    fn ring(&self) {
        if let Some(bell) = &self.bell {
            // A full pipe rings already.
            let _ = fd::write(bell.as_fd(), b"!");
        }
    }

    fn check_free(&self, container: &str, id: &str, numbers: [u64; 2]) -> Result<(), String> {
        if self.programs.len() >= PROGRAMS_MAX {
            return Err(format!("more programs than the limit of {PROGRAMS_MAX}"));
        }
        for program in &self.programs {
            if let Some(number) = numbers.iter().find(|number| [program.key.stdio, program.stderr].contains(number)) {
                return Err(format!("sequence {number} is taken"));
            }
            if program.key.container == container && program.key.id == id {
                return Err(format!("process {id} is running already"));
            }
        }
        Ok(())
    }
}

impl Program {
    fn is_meant(&self, target: &Target) -> bool {
        match *target {
            Target::Sequence(number) => self.key.stdio == number,
            Target::Named { container, id } => self.key.container == container && self.key.id == id,
            Target::FirstOf { container } => self.key.container == container && self.is_first,
            Target::AllOf { container } => self.key.container == container,
        }
    }
}

impl Seat {
    /// Gives the place to the next one. Gives the programs whose streams nobody will ever read then.
    pub fn leave(self) -> Vec<Streams> {
        let mut state = self.pair.state();
        *state.place(self.channel) = false;
        if self.channel == Channel::Tty {
            state.bell = None;
        }
        let lost = if state.has_ctl || state.has_tty { Vec::new() } else { std::mem::take(&mut state.waiting) };
        drop(state);
        self.pair.left.notify_all();
        lost
    }
}
