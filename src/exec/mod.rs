//! One program: its start, its numbered streams, its end.

pub mod capture;
pub mod departure;
pub mod environment;
pub mod parting;
pub mod path;
pub mod processes;
pub mod remote;
pub mod tree;
pub mod user;

use std::cell::Cell;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::exec::remote::Remote;
use crate::sys::capability::Capabilities;
use crate::sys::fd::{self, PollSet};
use crate::sys::file::c_string;
use crate::sys::process::{self, Child, Group, Identity, Launch, StartError, Status, Step};
use crate::sys::rlimit::Rlimit;
use crate::sys::tty::{self, Window};
use crate::sys::{errno, signal};

/// Highest number of an extra descriptor: the usual soft limit of open files is 1,024, so a higher one could not be made anyway.
pub const DESCRIPTOR_MAX: u32 = 1023;

/// Extra descriptors of one program. Each costs the agent two descriptors of its own.
pub const EXTRA_MAX: usize = 64;

/// How long a program may take to end after SIGHUP before it gets SIGKILL: long enough to write a file, short enough for a test run.
pub const HANG_UP_GRACE: Duration = Duration::from_secs(2);

/// How long a stream may stay silent after the program has ended before its output counts as complete. A daemonised grandchild may hold
/// the stream for ever; a pipeline's last words come within microseconds.
pub const QUIET: Duration = Duration::from_millis(200);

/// What to run.
#[derive(Debug, Default)]
pub struct Program {
    /// With a slash it is used as it is, else searched for.
    pub path: Vec<u8>,
    /// Where to search, as PATH has it. `None`: on the agent's PATH.
    pub search: Option<Vec<u8>>,
    /// Behind the program's own name.
    pub arguments: Vec<Vec<u8>>,
    /// `None`: the agent's.
    pub env: Option<Vec<Vec<u8>>>,
    /// Empty: the agent's.
    pub cwd: Vec<u8>,
    /// Numbers of descriptors that are connected to streams besides 0, 1 and 2.
    pub extra: Vec<u32>,
    /// Runs on a terminal of this size in place of three pipes.
    pub terminal: Option<Window>,
    /// Without streams, and out of our hands as soon as it runs.
    pub detached: bool,
    /// Leads a session of its own, as it always does on a terminal and detached.
    pub own_session: bool,
    pub identity: Option<Identity>,
    pub umask: Option<u32>,
    /// In this order, with the agent's privileges. All others are the agent's.
    pub rlimits: Vec<Rlimit>,
    /// The program and what it executes never get more privileges than it begins with, by no set-user-ID bit and no capability of a file.
    pub no_new_privileges: bool,
    pub capabilities: Capabilities,
    /// Sent to the program when the thread that starts it ends: only for a process with one thread.
    pub death_signal: Option<i32>,
}

/// Why a program does not run.
#[derive(Debug)]
pub enum NotStarted {
    /// No program is named.
    Nameless,
    /// The name has no slash and is in no directory of PATH.
    NotOnPath(Vec<u8>),
    /// An extra descriptor below 3, above `DESCRIPTOR_MAX` or named twice, or more than `EXTRA_MAX`.
    Descriptor(String),
    /// A user or group that nobody knows, an environment filter that is no pattern, or another request that makes no sense.
    Refused(String),
    System {
        path: Vec<u8>,
        cwd: Vec<u8>,
        step: Step,
        error: io::Error,
    },
}

impl NotStarted {
    /// The error number that says it best.
    pub fn errno(&self) -> i32 {
        match self {
            NotStarted::Nameless | NotStarted::NotOnPath(_) => crate::sys::file::ENOENT,
            NotStarted::Descriptor(_) | NotStarted::Refused(_) => crate::sys::file::EINVAL,
            NotStarted::System { error, .. } => error.raw_os_error().unwrap_or(crate::sys::file::EIO),
        }
    }

    /// Whether it is the program file that cannot be executed, rather than what was asked around it.
    pub fn is_about_the_program(&self) -> bool {
        match self {
            NotStarted::Nameless | NotStarted::NotOnPath(_) => true,
            NotStarted::System { step, .. } => *step == Step::Program,
            _ => false,
        }
    }

    /// One line that names the object.
    pub fn text(&self) -> String {
        match self {
            NotStarted::Nameless => "no program is named".to_owned(),
            NotStarted::NotOnPath(name) => format!("{}: not found on the guest's PATH", String::from_utf8_lossy(name)),
            NotStarted::Descriptor(text) | NotStarted::Refused(text) => text.clone(),
            NotStarted::System { path, cwd, step, error } => {
                let why = errno::describe(error);
                let path = String::from_utf8_lossy(path);
                match step {
                    Step::Process => format!("start a process: {why}"),
                    Step::Terminal => format!("open a terminal for {path}: {why}"),
                    Step::Descriptors => format!("set up descriptors for {path}: {why}"),
                    Step::Limit(name) => format!("set limit {name} for {path}: {why}"),
                    Step::BoundingSet => format!("set bounding capabilities for {path}: {why}"),
                    Step::Identity => format!("change user for {path}: {why}"),
                    Step::Capabilities => format!("set capabilities for {path}: {why}"),
                    Step::AmbientSet => format!("set ambient capabilities for {path}: {why}"),
                    Step::NoNewPrivileges => format!("forbid new privileges for {path}: {why}"),
                    Step::Directory => format!("change to directory {}: {why}", String::from_utf8_lossy(cwd)),
                    Step::Program => format!("execute {path}: {why}"),
                }
            }
        }
    }
}

/// One stream of a program. An extra descriptor has both directions.
#[derive(Debug)]
pub struct Channel {
    pub number: u32,
    /// The program's output; does not block.
    pub rd: Option<OwnedFd>,
    /// The program's input; does not block.
    pub wr: Option<OwnedFd>,
}

/// A program that was started, until it is dropped: then its zombie is buried, and killed before if it is none yet.
#[derive(Debug)]
pub struct Session {
    child: Child,
    terminal: Option<Arc<OwnedFd>>,
    /// For other threads, once one of them has asked.
    remote: Option<Arc<Remote>>,
    detached: bool,
    /// What is left of its process group is killed when its end is seen.
    takes_group: bool,
    /// The end, once it has been seen: its zombie is ours, so it stays true.
    end: Cell<Option<Status>>,
}

/// Ends of all the streams: ours, and the program's with the numbers they get there.
#[derive(Default)]
struct Streams {
    ours: Vec<Channel>,
    theirs: Vec<(i32, OwnedFd)>,
    terminal: Option<OwnedFd>,
}

/// Starts a program in a process group of its own, or in a session of its own, which makes such a group too.
pub fn start(program: &Program) -> Result<(Session, Vec<Channel>), NotStarted> {
    check_descriptors(&program.extra)?;
    let path = path::resolve(&program.path, program.search.as_deref())?;
    let system = |step, error| NotStarted::System { path: path.clone(), cwd: program.cwd.clone(), step, error };
    let setup = |error| system(Step::Descriptors, error);
    let streams = match program.terminal {
        Some(window) => on_terminal(window).map_err(|error| system(Step::Terminal, error))?,
        None if program.detached => without_streams().map_err(setup)?,
        None => on_pipes(&program.extra).map_err(setup)?,
    };
    if let Some(identity) = program.identity.as_ref().filter(|_| !program.detached) {
        hand_over(&streams.theirs, identity.uid);
    }
    let strings = |list: &[Vec<u8>]| list.iter().map(|text| c_string(os(text))).collect::<io::Result<Vec<_>>>();
    let invalid = |error| system(Step::Program, error);
    let name = c_string(os(&path)).map_err(invalid)?;
    let mut argv = vec![c_string(os(&program.path)).map_err(invalid)?];
    argv.extend(strings(&program.arguments).map_err(invalid)?);
    let env = program.env.as_deref().map(strings).transpose().map_err(invalid)?;
    let cwd = c_string(os(&program.cwd)).map_err(invalid)?;
    let descriptors: Vec<_> = streams.theirs.iter().map(|(number, fd)| (*number, fd.as_fd())).collect();
    let launch = Launch {
        program: &name,
        argv: &argv,
        env: env.as_deref(),
        cwd: (!program.cwd.is_empty()).then_some(cwd.as_c_str()),
        descriptors: &descriptors,
        group: match program.terminal {
            Some(_) => Group::Terminal,
            None if program.detached || program.own_session => Group::Session,
            None => Group::Own,
        },
        identity: program.identity.as_ref(),
        umask: program.umask,
        rlimits: &program.rlimits,
        capabilities: program.capabilities,
        no_new_privileges: program.no_new_privileges,
        detached: program.detached,
        death_signal: program.death_signal,
    };
    let child = process::start(&launch).map_err(|StartError { step, error }| system(step, error))?;
    let (terminal, detached) = (streams.terminal.map(Arc::new), program.detached);
    Ok((Session { child, terminal, remote: None, detached, takes_group: false, end: Cell::new(None) }, streams.ours))
}

fn os(bytes: &[u8]) -> &std::ffi::OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(bytes)
}

fn check_descriptors(extra: &[u32]) -> Result<(), NotStarted> {
    if extra.len() > EXTRA_MAX {
        let count = extra.len();
        return Err(NotStarted::Descriptor(format!("{count} extra descriptors are over the limit of {EXTRA_MAX}")));
    }
    for (index, number) in extra.iter().enumerate() {
        let why = match *number {
            0..=2 => "is standard input, output or error",
            DESCRIPTOR_MAX.. if *number > DESCRIPTOR_MAX => "is over the limit of 1023",
            _ if extra[..index].contains(number) => "is named twice",
            _ => continue,
        };
        return Err(NotStarted::Descriptor(format!("extra descriptor {number} {why}")));
    }
    Ok(())
}

fn on_pipes(extra: &[u32]) -> io::Result<Streams> {
    let mut streams = Streams::default();
    let (input, wr) = fd::pipe()?;
    streams.theirs.push((0, input));
    streams.ours.push(Channel { number: 0, rd: None, wr: Some(wr) });
    for number in [1, 2] {
        let (rd, output) = fd::pipe()?;
        streams.theirs.push((number, output));
        streams.ours.push(Channel { number: number as u32, rd: Some(rd), wr: None });
    }
    for number in extra {
        let (ours, theirs) = fd::socket_pair()?;
        streams.theirs.push((*number as i32, theirs));
        let wr = ours.try_clone()?;
        streams.ours.push(Channel { number: *number, rd: Some(ours), wr: Some(wr) });
    }
    for fd in streams.ours.iter().flat_map(|channel| [&channel.rd, &channel.wr]).flatten() {
        fd::never_block(fd.as_fd())?;
    }
    Ok(streams)
}

fn on_terminal(window: Window) -> io::Result<Streams> {
    let (master, slave) = tty::open_pair()?;
    tty::set_window(master.as_fd(), window)?;
    fd::set_nonblocking(master.as_fd(), true)?;
    let theirs = vec![(0, slave.try_clone()?), (1, slave.try_clone()?), (2, slave)];
    let ours = vec![
        Channel { number: 0, rd: None, wr: Some(master.try_clone()?) },
        Channel { number: 1, rd: Some(master.try_clone()?), wr: None },
    ];
    Ok(Streams { ours, theirs, terminal: Some(master) })
}

/// Makes a user the owner of its terminal and pipes, because to open /dev/stdout is to open them once more. Where that fails, they are still
/// open.
fn hand_over(streams: &[(i32, OwnedFd)], uid: u32) {
    for (_, fd) in streams {
        let _ = std::os::unix::fs::fchown(fd, Some(uid), None);
    }
}

fn without_streams() -> io::Result<Streams> {
    let null = OwnedFd::from(fs::File::options().read(true).write(true).open("/dev/null")?);
    let theirs = vec![(0, null.try_clone()?), (1, null.try_clone()?), (2, null)];
    Ok(Streams { theirs, ..Streams::default() })
}

impl Session {
    pub fn pid(&self) -> i32 {
        self.child.pid
    }

    /// Reaches the program from other threads until the session is dropped.
    pub fn remote(&mut self) -> Arc<Remote> {
        let (pid, terminal) = (self.child.pid, &self.terminal);
        Arc::clone(self.remote.get_or_insert_with(|| Arc::new(Remote::to(pid, terminal.clone()))))
    }

    /// Lets the program live on when the session is dropped. Its end will be somebody else's to see.
    pub fn release(&mut self) {
        self.detached = true;
    }

    /// Readable when the program has ended. `None` on kernels before 5.2: ask `ended` from time to time.
    pub fn end_watch(&self) -> Option<BorrowedFd<'_>> {
        self.child.pidfd.as_ref().map(AsFd::as_fd)
    }

    /// How the program ended, or `None` while it runs. Its number stays taken until the session is dropped.
    pub fn ended(&self) -> Option<Status> {
        if self.end.get().is_none() {
            let seen = process::ended(self.child.pid);
            // Its zombie keeps the number from strangers.
            if self.takes_group && matches!(seen, Ok(Some(_))) {
                let _ = self.signal(signal::SIGKILL);
            }
            // An error means that somebody else has buried our child; nothing about it can be learned any more.
            self.end.set(seen.unwrap_or(Some(Status::Exited(255))));
        }
        self.end.get()
    }

    /// Lets nobody in the program's process group outlive it, as nobody in a container outlives its first process: SIGKILL to all of them as
    /// soon as its end is seen.
    pub fn take_group(&mut self) {
        self.takes_group = true;
    }

    /// Sends a signal to the program's process group. ESRCH when the program has ended; EINVAL for what is no signal.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        process::signal_group(self.child.pid, signal)
    }

    /// Sends SIGKILL to the program and to its process group, which it may have left.
    pub fn kill(&self) {
        let _ = self.signal(signal::SIGKILL);
        // Until it is buried its number is nobody else's.
        if self.ended().is_none() {
            let _ = signal::send(self.child.pid, signal::SIGKILL);
        }
    }

    /// Tells the program's terminal its size. Without a terminal nothing happens.
    pub fn resize(&self, window: Window) -> io::Result<()> {
        self.terminal.as_ref().map_or(Ok(()), |terminal| tty::set_window(terminal.as_fd(), window))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.remote.iter().for_each(|remote| remote.cut());
        if self.detached {
            return;
        }
        if self.ended().is_none() {
            self.kill();
        }
        let _ = process::bury(self.child.pid);
    }
}

/// Ends programs whose client has gone, together with all in their process groups: SIGHUP (and SIGCONT, for stopped ones), and SIGKILL to
/// what is left after `HANG_UP_GRACE`. Returns when nothing is left. The caller has closed the streams.
pub fn hang_up(sessions: Vec<Session>) {
    let deadline = Instant::now() + HANG_UP_GRACE;
    for session in &sessions {
        let _ = session.signal(signal::SIGHUP);
        let _ = session.signal(signal::SIGCONT);
    }
    let mut set = PollSet::default();
    while sessions.iter().any(|session| session.ended().is_none()) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        set.clear();
        let running = || sessions.iter().filter(|session| session.ended().is_none());
        for fd in running().filter_map(Session::end_watch) {
            set.watch(fd, fd::READ);
        }
        let blind = running().any(|session| session.end_watch().is_none());
        let _ = set.wait(Some(if blind { left.min(BLIND_POLL) } else { left }));
    }
    // The leaders' zombies keep their groups' numbers from being given to strangers meanwhile.
    if sessions.iter().any(|session| session.ended().is_none() || group_lives(session.pid())) {
        let left = deadline.saturating_duration_since(Instant::now());
        let _ = PollSet::default().wait(Some(left));
        sessions.iter().for_each(Session::kill);
    }
}

/// How often to look at a program that no descriptor tells of.
pub const BLIND_POLL: Duration = Duration::from_millis(10);

/// Whether anybody but zombies is in the process group. Without /proc the answer is yes.
fn group_lives(group: i32) -> bool {
    processes::all().map_or(true, |mut all| all.any(|process| process.group == group && !process.is_dead()))
}
