//! The end of the machine: all programs, then the file systems, then the machine itself.

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use crate::init::console::Console;
use crate::init::{Realm, mounts};
use crate::power::End;
use crate::sys::errno::describe;
use crate::sys::process::{Status, bury_any, signal_group};
use crate::sys::{boot, signal};

/// How long whoever asked for the end may take to hear that it was heard: `lodger exec /bin/lodger poweroff` gets its exit status through the
/// agent, which the end takes away.
const LAST_ANSWER: Duration = Duration::from_millis(50);

/// Longest wait after SIGTERM. The agent takes some 2 s to end its connections' programs in order, longer only on a machine that stands still.
const TERM_WAIT: Duration = Duration::from_secs(5);

/// Longest wait after SIGKILL: only a program inside a system call that cannot be interrupted is left by then.
const KILL_WAIT: Duration = Duration::from_secs(1);

/// The program of `lodger.exec=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exec {
    None,
    Runs(i32),
    Ended(i32),
}

impl Exec {
    /// Takes note of a process that has ended; true if it was this program, and then its line has been written.
    pub fn ended(&mut self, pid: i32, status: Status, console: &mut Console) -> bool {
        let own = *self == Exec::Runs(pid);
        if own {
            *self = Exec::report(status.code(), console);
        }
        own
    }

    /// Writes the line that tells the exit code.
    pub fn report(code: i32, console: &mut Console) -> Exec {
        console.line(&format!("exec ended with {code}"));
        Exec::Ended(code)
    }
}

/// Ends everything. Returns only in a container, with the exit code for process 1.
pub fn run(realm: Realm, end: End, mut exec: Exec, console: &mut Console) -> ExitCode {
    console.line(match end {
        End::PowerOff => "powering off",
        End::Reboot => "rebooting",
        End::Halt => "halting",
    });
    thread::sleep(LAST_ANSWER);
    end_programs(&mut exec, console);
    boot::sync();
    // A file system that is made read-only in a container is read-only outside, too.
    if realm == Realm::Machine {
        mounts::unmount_all(console);
        boot::sync();
    }
    console.drain();
    match (realm, exec) {
        (Realm::Container, Exec::Ended(code)) => return ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)),
        // Returns where there is no such device.
        (Realm::Machine, Exec::Ended(code)) if end == End::PowerOff => drop(boot::debug_exit(code.unsigned_abs())),
        _ => {}
    }
    let result = match end {
        End::PowerOff => boot::power_off(),
        End::Reboot => boot::restart(),
        End::Halt => boot::halt(),
    };
    if realm == Realm::Container {
        return ExitCode::SUCCESS;
    }
    if let Err(error) = result {
        console.line(&format!("end the machine: {}", describe(&error)));
    }
    loop {
        thread::park();
    }
}

fn end_programs(exec: &mut Exec, console: &mut Console) {
    let _ = boot::signal_all(signal::SIGTERM);
    if let Exec::Runs(pid) = *exec {
        // An interactive shell ignores SIGTERM and ends when its terminal does.
        let _ = signal_group(pid, signal::SIGHUP);
    }
    // A stopped program would get neither before it goes on.
    let _ = boot::signal_all(signal::SIGCONT);
    if bury_until(Instant::now() + TERM_WAIT, exec, console) {
        return;
    }
    console.line("not all programs have ended in time: killing them");
    let _ = boot::signal_all(signal::SIGKILL);
    if !bury_until(Instant::now() + KILL_WAIT, exec, console) {
        console.line("not all programs can be killed");
    }
}

/// Buries children as they end; true when none is left. Whoever loses its parent becomes our child, so that none left means that no
/// program is left at all.
fn bury_until(deadline: Instant, exec: &mut Exec, console: &mut Console) -> bool {
    loop {
        while let Some(found) = bury_any().transpose() {
            let Ok((pid, status)) = found else { return true };
            exec.ended(pid, status, console);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        // Any other signal than SIGCHLD is one more wish for what is going on already.
        if left.is_zero() || signal::wait(Some(left)).is_err() {
            return false;
        }
    }
}
