//! Programs: starting, watching, signalling and burying them.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::sys::capability::{self, Capabilities};
use crate::sys::rlimit::Rlimit;
use crate::sys::{check, retry, signal};

/// Everything that the child needs between clone(2) and execve(2).
pub struct Launch<'a> {
    /// Path of the file to execute; not searched.
    pub program: &'a CStr,
    pub argv: &'a [CString],
    /// `None`: this process's own, which must not be changed meanwhile.
    pub env: Option<&'a [CString]>,
    /// Working directory; `None` keeps the parent's.
    pub cwd: Option<&'a CStr>,
    /// Which descriptor stands at which number in the program; all other numbers are closed there.
    pub descriptors: &'a [(i32, BorrowedFd<'a>)],
    pub group: Group,
    pub identity: Option<&'a Identity>,
    pub umask: Option<u32>,
    /// Set before the identity is taken, and so with this process's privileges.
    pub rlimits: &'a [Rlimit],
    pub capabilities: Capabilities,
    pub no_new_privileges: bool,
    /// The program outlives whoever started it: it becomes an orphan at once, which process 1 (or a subreaper) buries.
    pub detached: bool,
    /// prctl(2) PR_SET_PDEATHSIG. Fires when the *thread* that starts the program ends, so only for a process with one thread.
    pub death_signal: Option<i32>,
}

/// Whom the program shares its signals with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// setpgid(2): leader of a group of its own in the parent's session.
    Own,
    /// setsid(2): leader of a session without a terminal.
    Session,
    /// setsid(2), and descriptor 0 of the program becomes the session's terminal.
    Terminal,
    /// setpgid(2) and tcsetpgrp(3): leader of the foreground group of the parent's session, on its terminal at descriptor 0.
    Foreground,
}

/// Who the program runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups; none for an empty list.
    pub groups: Vec<u32>,
}

/// What the child was about to do when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// clone(2) itself: no process, no memory.
    Process,
    Terminal,
    Descriptors,
    /// That of the resource of this name.
    Limit(&'static str),
    BoundingSet,
    Identity,
    Capabilities,
    AmbientSet,
    Directory,
    NoNewPrivileges,
    Program,
}

/// Why no program runs.
#[derive(Debug)]
pub struct StartError {
    pub step: Step,
    pub error: io::Error,
}

/// A program that was started. Nothing happens when it is dropped: its zombie belongs to whoever holds this.
#[derive(Debug)]
pub struct Child {
    pub pid: i32,
    /// pidfd_open(2): readable when the process has ended. `None` before Linux 5.2, and for a detached program.
    pub pidfd: Option<OwnedFd>,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Exited(i32),
    Killed(i32),
}

impl Status {
    /// The shell's number for it: the exit status, or 128 + signal.
    pub fn code(self) -> i32 {
        match self {
            Status::Exited(code) => code,
            Status::Killed(signal) => 128 + signal,
        }
    }
}

/// geteuid(2).
pub fn effective_user() -> u32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// getegid(2).
pub fn effective_group() -> u32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::getegid() }
}

/// prctl(2) with PR_SET_NAME: what ps(1) and /proc call this process. Cut after 15 bytes.
pub fn set_name(name: &CStr) -> io::Result<()> {
    // SAFETY: the kernel reads a C string.
    check(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) }).map(drop)
}

/// sched_setscheduler(2) with SCHED_BATCH for the calling thread: it does not push aside whoever wakes it. A program that ends wakes its
/// agent with each descriptor it closes, and would be pushed aside each time. Programs start with the usual policy again.
pub fn be_patient() -> io::Result<()> {
    set_policy(libc::SCHED_BATCH)
}

/// By the bare system call: the C library's function of that name is only a stub in musl.
fn set_policy(policy: libc::c_int) -> io::Result<()> {
    let priority: libc::c_int = 0;
    // SAFETY: the kernel reads one integer, which is all of the structure.
    check(unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, policy, &raw const priority) } as libc::c_int)
        .map(drop)
}

/// The soft limit of open files that programs get back after `raise_descriptor_limit`; 0: it was never raised.
static DESCRIPTOR_LIMIT: AtomicU64 = AtomicU64::new(0);

/// The hard limit that goes with it.
static DESCRIPTOR_LIMIT_HARD: AtomicU64 = AtomicU64::new(0);

/// setrlimit(2): raises the soft limit of open files of this process to the hard one. Programs start with the limit as it was, because
/// those that use select(2) rely on it.
pub fn raise_descriptor_limit() -> io::Result<()> {
    // SAFETY: the kernel fills the structure, and then reads it.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        check(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit))?;
        let soft = limit.rlim_cur;
        limit.rlim_cur = limit.rlim_max;
        check(libc::setrlimit(libc::RLIMIT_NOFILE, &limit))?;
        DESCRIPTOR_LIMIT_HARD.store(limit.rlim_max, Ordering::Relaxed);
        // Only the first time: a second call would take the raised limit for the original one.
        let _ = DESCRIPTOR_LIMIT.compare_exchange(0, soft, Ordering::Relaxed, Ordering::Relaxed);
    }
    Ok(())
}

/// getrlimit(2): the hard limit of open files of this process, up to which it may raise its own.
pub fn descriptor_limit() -> io::Result<u64> {
    // SAFETY: the kernel fills the structure.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        check(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit))?;
        Ok(limit.rlim_max)
    }
}

/// Bytes of stack for the child until it has become another program. It runs only `prepare`, which takes no buffer of its own.
const CHILD_STACK_BYTES: usize = 32 * 1024;

unsafe extern "C" {
    /// environ(7).
    static environ: *const *const libc::c_char;
}

/// What both sides of the clone see: the memory is shared until the child's execve(2), and the parent stands still as long.
struct Shared<'a> {
    launch: &'a Launch<'a>,
    argv: Vec<*const libc::c_char>,
    own_env: Option<Vec<*const libc::c_char>>,
    /// Sources of `launch.descriptors`; the child moves them out of the way of its targets.
    sources: Vec<RawFd>,
    /// Signals to set to their default; bit n - 1 is signal n.
    not_default: u64,
    second_stack: Vec<MaybeUninit<u8>>,
    orphan: i32,
    failed: Option<(Step, i32)>,
}

/// Starts a program. The memory is shared with the child until it has become the program (as vfork(2) and posix_spawn(3) do it), so
/// that the cost does not grow with the agent, and an error of execve(2) comes back without a pipe.
///
/// The program starts with an empty signal mask and every signal at its default.
pub fn start(launch: &Launch) -> Result<Child, StartError> {
    let mut shared = Shared {
        launch,
        argv: pointers(launch.argv),
        own_env: launch.env.map(pointers),
        sources: launch.descriptors.iter().map(|(_, fd)| fd.as_raw_fd()).collect(),
        not_default: signal::not_default(),
        second_stack: vec![MaybeUninit::uninit(); if launch.detached { CHILD_STACK_BYTES } else { 0 }],
        orphan: 0,
        failed: None,
    };
    // A part of ours: its pages are there from the last time.
    let mut stack = [MaybeUninit::uninit(); CHILD_STACK_BYTES];
    let mut pidfd: RawFd = -1;
    let first = if launch.detached { orphan_maker } else { child };
    let pid = with_signals_blocked(|| {
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
        // SAFETY: the stack and `shared` outlive the child's use of them, because CLONE_VFORK holds this thread until the child has
        // executed or exited; all signals are blocked, so that no handler of ours runs on the shared memory; the child calls only
        // functions that make one system call.
        unsafe { check(libc::clone(first, top(&mut stack), flags, (&raw mut shared).cast(), &raw mut pidfd)) }
    });
    let pid = pid.map_err(|error| StartError { step: Step::Process, error })?;
    // SAFETY: the kernel made this descriptor for us in clone(2), and nobody else knows it.
    let pidfd = (pidfd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(pidfd) });
    if launch.detached || shared.failed.is_some() {
        // The go-between, or the child that could not become the program: dead already, or in its last instruction.
        let _ = bury(pid);
    }
    match shared.failed {
        Some((step, errno)) => Err(StartError { step, error: io::Error::from_raw_os_error(errno) }),
        None if launch.detached => Ok(Child { pid: shared.orphan, pidfd: None }),
        None => Ok(Child { pid, pidfd }),
    }
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
}

/// The upper end of a stack, aligned as every ABI we build for wants it.
fn top(stack: &mut [MaybeUninit<u8>]) -> *mut libc::c_void {
    let end = stack.as_mut_ptr_range().end;
    end.wrapping_sub(end as usize % 16).cast()
}

fn with_signals_blocked<T>(call: impl FnOnce() -> T) -> T {
    // SAFETY: both sets are filled by the C library before they are read; sigprocmask on valid sets does not fail.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        let result = call();
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, ptr::null_mut());
        result
    }
}

/// The go-between of a detached start: its own child is an orphan as soon as it has exited.
extern "C" fn orphan_maker(argument: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `argument` is the `Shared` of `start`, whose thread stands still while we run; see there for the rest.
    unsafe {
        let shared = &mut *argument.cast::<Shared>();
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        shared.orphan = libc::clone(child, top(&mut shared.second_stack), flags, argument);
        if shared.orphan < 0 {
            shared.failed = Some((Step::Process, *libc::__errno_location()));
        }
        libc::_exit(0)
    }
}

extern "C" fn child(argument: *mut libc::c_void) -> libc::c_int {
    // SAFETY: as in `orphan_maker`.
    unsafe {
        let shared = &mut *argument.cast::<Shared>();
        let step = prepare(shared);
        shared.failed = Some((step, *libc::__errno_location()));
        libc::_exit(127)
    }
}

/// Does everything up to execve(2), and returns only with the step that failed; errno says why.
///
/// # Safety
/// Runs in a child that shares the parent's memory: no allocation, no lock, nothing but system calls.
unsafe fn prepare(shared: &mut Shared) -> Step {
    let launch = shared.launch;
    // SAFETY: every pointer comes from a live CStr, CString or Vec of the waiting parent.
    unsafe {
        match launch.group {
            Group::Own | Group::Foreground => libc::setpgid(0, 0),
            Group::Session | Group::Terminal => libc::setsid(),
        };
        if !place_descriptors(launch, &mut shared.sources) {
            return Step::Descriptors;
        }
        if launch.group == Group::Terminal && libc::ioctl(0, libc::TIOCSCTTY as _, 0) != 0 {
            return Step::Terminal;
        }
        // SIGTTOU, which a group in the background gets for this, is still blocked.
        let group: libc::pid_t = libc::getpid();
        if launch.group == Group::Foreground && libc::ioctl(0, libc::TIOCSPGRP as _, &raw const group) != 0 {
            return Step::Terminal;
        }
        default_signals(shared.not_default);
        restore_descriptor_limit();
        // Of the agent's threads some are patient; their programs shall not be.
        let _ = set_policy(libc::SCHED_OTHER);
        if let Some(mask) = launch.umask {
            libc::umask(mask);
        }
        // Before the change of directory, which is then checked as the user who will work in it.
        if let Some(step) = take_privileges(launch) {
            return step;
        }
        if let Some(signal) = launch.death_signal {
            libc::prctl(libc::PR_SET_PDEATHSIG, signal);
        }
        if let Some(cwd) = launch.cwd
            && libc::chdir(cwd.as_ptr()) != 0
        {
            return Step::Directory;
        }
        if launch.no_new_privileges && !capability::forbid_new_privileges() {
            return Step::NoNewPrivileges;
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &none, ptr::null_mut());
        let env = shared.own_env.as_ref().map_or(environ, |env| env.as_ptr());
        libc::execve(launch.program.as_ptr(), shared.argv.as_ptr(), env);
    }
    Step::Program
}

unsafe fn restore_descriptor_limit() {
    let soft = DESCRIPTOR_LIMIT.load(Ordering::Relaxed);
    if soft == 0 {
        return;
    }
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: DESCRIPTOR_LIMIT_HARD.load(Ordering::Relaxed) };
    // SAFETY: the kernel reads the structure.
    unsafe {
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
    }
}

unsafe fn place_descriptors(launch: &Launch, sources: &mut [RawFd]) -> bool {
    let beyond = launch.descriptors.iter().map(|(target, _)| target + 1).max().unwrap_or(0);
    // SAFETY: plain integers throughout.
    unsafe {
        for source in sources.iter_mut().filter(|source| **source < beyond) {
            *source = libc::fcntl(*source, libc::F_DUPFD_CLOEXEC, beyond);
            if *source < 0 {
                return false;
            }
        }
        // dup2 clears close-on-exec, and no source is a target any more.
        launch.descriptors.iter().zip(sources).all(|((target, _), source)| libc::dup2(*source, *target) >= 0)
    }
}

/// Sets the signals to their default, and no others: each costs a call. An ignored signal would stay ignored in the program (Rust ignores SIGPIPE in every process), and
/// a handler could run in the child once the mask is empty.
unsafe fn default_signals(signals: u64) {
    // SAFETY: SIG_DFL with no flags is valid for every signal.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = libc::SIG_DFL;
        for signal in (1..=signal::SIGNAL_MAX).filter(|signal| signals >> (signal - 1) & 1 != 0) {
            libc::sigaction(signal, &action, ptr::null_mut());
        }
    }
}

/// Limits first and the bounding set, for which a user who is not root lacks the right; then the identity, with which all other capabilities
/// would go. Gives the step that failed; errno says why.
unsafe fn take_privileges(launch: &Launch) -> Option<Step> {
    let capabilities = launch.capabilities;
    if let Some(refused) = launch.rlimits.iter().find(|limit| !limit.set()) {
        return Some(Step::Limit(refused.resource.name));
    }
    if !capabilities.set_bounding() {
        return Some(Step::BoundingSet);
    }
    if let Some(identity) = launch.identity {
        if !capabilities.keep() {
            return Some(Step::Capabilities);
        }
        // SAFETY: the caller's circumstances are those that it wants.
        if !unsafe { take_identity(identity) } {
            return Some(Step::Identity);
        }
    }
    if !capabilities.set() {
        return Some(Step::Capabilities);
    }
    (!capabilities.set_ambient()).then_some(Step::AmbientSet)
}

/// By bare system calls: the C library's setuid(3) would stop all threads of the parent to change them too.
unsafe fn take_identity(identity: &Identity) -> bool {
    // SAFETY: the pointer and the length are those of one vector.
    unsafe {
        libc::syscall(libc::SYS_setgroups, identity.groups.len(), identity.groups.as_ptr()) == 0
            && libc::syscall(libc::SYS_setgid, identity.gid) == 0
            && libc::syscall(libc::SYS_setuid, identity.uid) == 0
    }
}

/// waitid(2) with WNOHANG and WNOWAIT: how the child ended, or `None` while it runs. Its zombie stays. ECHILD if it is no child of ours.
pub fn ended(pid: i32) -> io::Result<Option<Status>> {
    wait_id(libc::P_PID, pid, libc::WNOHANG | libc::WNOWAIT).map(|found| found.map(|(_, status)| status))
}

/// waitid(2): waits for the end of the child and gives its number back to the system.
pub fn bury(pid: i32) -> io::Result<Status> {
    wait_id(libc::P_PID, pid, 0)?.map(|(_, status)| status).ok_or_else(|| io::Error::from_raw_os_error(libc::ECHILD))
}

/// waitid(2) with WNOHANG for any child: (pid, status) of one that was a zombie, `None` when there is none now. ECHILD without children.
pub fn bury_any() -> io::Result<Option<(i32, Status)>> {
    wait_id(libc::P_ALL, 0, libc::WNOHANG)
}

fn wait_id(kind: libc::idtype_t, pid: i32, flags: libc::c_int) -> io::Result<Option<(i32, Status)>> {
    // SAFETY: the kernel fills `info`; a zeroed one says that nobody has ended.
    let info = retry(|| unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        check(libc::waitid(kind, pid as libc::id_t, &mut info, libc::WEXITED | flags))?;
        Ok(info)
    })?;
    // SAFETY: waitid fills these members, and zeroes are valid in them.
    let (ended, number) = unsafe { (info.si_pid(), info.si_status()) };
    if ended == 0 {
        return Ok(None);
    }
    let status = if info.si_code == libc::CLD_EXITED { Status::Exited(number) } else { Status::Killed(number) };
    Ok(Some((ended, status)))
}

/// kill(2) of the whole group that `leader` leads. ESRCH when nobody is left in it.
pub fn signal_group(leader: i32, signal: i32) -> io::Result<()> {
    // SAFETY: takes plain integers.
    check(unsafe { libc::kill(-leader, signal) }).map(drop)
}
