//! Signals: their names, delivery into a descriptor, and the blocked set of process 1.

use std::io;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

use crate::sys::fd::{pipe, set_nonblocking};
use crate::sys::{check, retry};

pub const SIGHUP: i32 = libc::SIGHUP;
pub const SIGINT: i32 = libc::SIGINT;
pub const SIGQUIT: i32 = libc::SIGQUIT;
pub const SIGKILL: i32 = libc::SIGKILL;
pub const SIGUSR1: i32 = libc::SIGUSR1;
pub const SIGUSR2: i32 = libc::SIGUSR2;
pub const SIGPIPE: i32 = libc::SIGPIPE;
pub const SIGTERM: i32 = libc::SIGTERM;
pub const SIGCONT: i32 = libc::SIGCONT;
pub const SIGCHLD: i32 = libc::SIGCHLD;
pub const SIGSTOP: i32 = libc::SIGSTOP;
pub const SIGWINCH: i32 = libc::SIGWINCH;
pub const SIGPWR: i32 = libc::SIGPWR;

/// Names without their `SIG`, by number, as kill(1) of Linux on x86 and Arm prints them.
const NAMES: [&str; 32] = [
    "0", "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
    "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH",
    "IO", "PWR", "SYS",
];

/// The largest signal number of Linux.
pub const SIGNAL_MAX: i32 = 64;

/// `SIGTERM` for 15; `signal 40` where there is no name.
pub fn name(signal: i32) -> String {
    match usize::try_from(signal).ok().and_then(|number| NAMES.get(number)) {
        Some(known) if signal > 0 => format!("SIG{known}"),
        _ => format!("signal {signal}"),
    }
}

/// The number that `TERM`, `SIGTERM`, `sigterm` or `15` names.
pub fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=SIGNAL_MAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    NAMES.iter().skip(1).position(|known| *known == short).map(|index| index as i32 + 1)
}

/// Where `note` writes; one for the whole process, as signals are.
static NOTICE: AtomicI32 = AtomicI32::new(-1);

extern "C" fn note(signal: libc::c_int) {
    // write(2) is async-signal-safe, but it sets errno under the feet of the code it interrupts.
    // SAFETY: errno's location is this thread's own; the byte lives on this stack.
    unsafe {
        let errno = libc::__errno_location();
        let saved = *errno;
        let byte = signal as u8;
        libc::write(NOTICE.load(Ordering::Relaxed), (&raw const byte).cast(), 1);
        *errno = saved;
    }
}

/// Signals that `into_pipe` took.
static TAKEN: AtomicU64 = AtomicU64::new(0);

/// sigaction(2): the signals that have another action than the default in this process; signal n is bit n - 1. The kernel is asked only
/// once, which costs 64 calls; what `into_pipe` takes later is counted.
pub fn not_default() -> u64 {
    static AT_FIRST: OnceLock<u64> = OnceLock::new();
    let at_first = AT_FIRST.get_or_init(|| {
        let changed = |signal: &i32| {
            // SAFETY: with a null pointer nothing changes; the kernel fills `action`. Signals that the C library keeps are refused.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                libc::sigaction(*signal, std::ptr::null(), &mut action) == 0 && action.sa_sigaction != libc::SIG_DFL
            }
        };
        (1..=SIGNAL_MAX).filter(changed).fold(0, |set, signal| set | bit(signal))
    });
    at_first | TAKEN.load(Ordering::SeqCst)
}

fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// sigaction(2): from now on each of `signals` becomes one byte, its number, in the pipe whose read end is returned. Bytes beyond
/// a full pipe are dropped. The write end stays open for the life of the process. One call a process; a second one moves the notices.
pub fn into_pipe(signals: &[i32]) -> io::Result<OwnedFd> {
    let (rd, wr) = pipe()?;
    set_nonblocking(wr.as_fd(), true)?;
    set_nonblocking(rd.as_fd(), true)?;
    NOTICE.store(wr.into_raw_fd(), Ordering::SeqCst);
    for &signal in signals {
        TAKEN.fetch_or(bit(signal), Ordering::SeqCst);
        // SAFETY: a zeroed sigaction is a valid one; `note` does nothing that a handler may not do.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = note as *const () as usize;
            action.sa_flags = libc::SA_RESTART;
            check(libc::sigaction(signal, &action, std::ptr::null_mut()))?;
        }
    }
    Ok(rd)
}

/// sigaction(2) with SIG_DFL for each of `signals`.
pub fn restore_default(signals: &[i32]) -> io::Result<()> {
    for &signal in signals {
        // SAFETY: SIG_DFL is no function of ours that could be unsafe.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = libc::SIG_DFL;
            check(libc::sigaction(signal, &action, std::ptr::null_mut()))?;
        }
    }
    Ok(())
}

/// sigprocmask(2): blocks every signal, for a process that takes them by `wait` alone.
pub fn block_all() -> io::Result<()> {
    // SAFETY: `all` is filled before it is used.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        check(libc::sigprocmask(libc::SIG_SETMASK, &all, std::ptr::null_mut())).map(drop)
    }
}

/// sigtimedwait(2) for any signal: its number, or `None` when the time is over. `None` as time-out waits for ever.
pub fn wait(timeout: Option<Duration>) -> io::Result<Option<i32>> {
    // SAFETY: the set and the time are filled before the kernel reads them.
    let result = retry(|| unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        let time = timeout.map(|t| libc::timespec { tv_sec: t.as_secs() as _, tv_nsec: t.subsec_nanos() as _ });
        let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        check(libc::sigtimedwait(&all, std::ptr::null_mut(), time))
    });
    match result {
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(None),
        result => result.map(Some),
    }
}

/// kill(2) of one process. ESRCH when there is none.
pub fn send(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: takes plain integers.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// The signal bytes that wait in the pipe of `into_pipe`.
pub fn take(notices: &OwnedFd) -> Vec<i32> {
    let mut bytes = [0u8; 64];
    // SAFETY: the pointer and the length are those of the array.
    let count = unsafe { libc::read(notices.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len()) };
    bytes[..usize::try_from(count).unwrap_or(0)].iter().map(|byte| i32::from(*byte)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_read_both_ways() {
        assert_eq!(name(15), "SIGTERM");
        assert_eq!(name(31), "SIGSYS");
        assert_eq!(name(40), "signal 40");
        for text in ["TERM", "SIGTERM", "sigterm", "15"] {
            assert_eq!(parse(text), Some(15), "{text}");
        }
        for text in ["", "0", "65", "-1", "NOPE", "SIG"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
