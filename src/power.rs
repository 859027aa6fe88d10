//! The end of the machine: what it may be, and who brings it about.
//!
//! Process 1 is asked by a signal where it is an init whose signals are known. Everything else ends by reboot(2) behind a sync(2): the kernel
//! throws away signals that a process 1 does not listen to. (Whether it listens nothing tells: the masks in /proc/1/status lack the signals
//! that it waits for in sigtimedwait(2), as two of these three do.)
//!
//! | process 1 | power off | reboot | halt |
//! | --- | --- | --- | --- |
//! | this program | SIGUSR2 | SIGINT | SIGUSR1 |
//! | systemd | 38 | 39 | 37 |
//! | busybox init | SIGUSR2 | SIGTERM | SIGUSR1 |
//!
//! 37 to 39 are SIGRTMIN+3 to +5; they count as the GNU library does, where SIGRTMIN is 34.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::Duration;

use crate::sys::errno::describe;
use crate::sys::{boot, capability, file, signal};

/// How long an answer may take from our hands to the other side, before the kernel ends everything: a short one needs about 20 ms on the
/// slowest serial line in use, and what is below it tells nobody when the last byte has left.
const LAST_ANSWER: Duration = Duration::from_millis(200);

/// What is to become of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    PowerOff,
    Reboot,
    Halt,
}

/// How a machine ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// This program is process 1.
    Init,
    Systemd,
    BusyboxInit,
    /// Without process 1.
    Kernel,
}

impl Way {
    fn signal(self, end: End) -> Option<i32> {
        match (self, end) {
            (Way::Init | Way::BusyboxInit, End::PowerOff) => Some(signal::SIGUSR2),
            (Way::Init | Way::BusyboxInit, End::Halt) => Some(signal::SIGUSR1),
            (Way::Init, End::Reboot) => Some(signal::SIGINT),
            (Way::BusyboxInit, End::Reboot) => Some(signal::SIGTERM),
            (Way::Systemd, End::Halt) => Some(37),
            (Way::Systemd, End::PowerOff) => Some(38),
            (Way::Systemd, End::Reboot) => Some(39),
            (Way::Kernel, _) => None,
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Way::Init => "init",
            Way::Systemd => "systemd",
            Way::BusyboxInit => "busybox init",
            Way::Kernel => "reboot(2)",
        })
    }
}

/// Asks process 1 for the end of the machine; it has not come yet when this returns. An error when process 1 is another program
/// than this one, whose signals mean something else.
pub fn request(end: End) -> io::Result<()> {
    let not_lodger = |what: &str| io::Error::other(format!("process 1 is not lodger: {what}"));
    if !is_process_1().map_err(|error| not_lodger(&describe(&error)))? {
        let name = fs::read_link("/proc/1/exe").unwrap_or_default();
        return Err(not_lodger(&name.to_string_lossy()));
    }
    bring(end, Way::Init)
}

/// How this machine would end. Nothing happens yet.
///
/// # Errors
/// `PermissionDenied` when this process may not bring it about.
pub fn way(end: End) -> io::Result<Way> {
    let way = Process1::look().way();
    match way.signal(end) {
        // Signal 0 is none; only the permission is looked at.
        Some(_) => signal::send(1, 0)?,
        // A kernel that cannot tell has no capabilities, or will say so itself.
        None if !capability::is_effective(capability::SYS_BOOT).unwrap_or(true) => {
            return Err(io::Error::from_raw_os_error(file::EPERM));
        }
        None => {}
    }
    Ok(way)
}

/// Brings about the end of the machine. With `Way::Kernel` it returns only with an error, else process 1 goes on from here.
pub fn bring(end: End, way: Way) -> io::Result<()> {
    if let Some(number) = way.signal(end) {
        return signal::send(1, number);
    }
    boot::sync();
    thread::sleep(LAST_ANSWER);
    match end {
        End::PowerOff => boot::power_off(),
        End::Reboot => boot::restart(),
        End::Halt => boot::halt(),
    }
}

/// Whether process 1 is this program. As process 1 it is never anything but init.
fn is_process_1() -> io::Result<bool> {
    let other = fs::metadata("/proc/1/exe")?;
    let own = fs::metadata("/proc/self/exe")?;
    Ok((other.dev(), other.ino()) == (own.dev(), own.ino()))
}

/// What can be seen of process 1.
#[derive(Debug, Default)]
struct Process1 {
    is_ours: bool,
    /// File names: that of the program, and the first word of its command line.
    program: String,
    called: String,
    comm: String,
}

impl Process1 {
    /// What cannot be seen is empty: everything without /proc, and the program for others than root.
    fn look() -> Process1 {
        let command_line = fs::read("/proc/1/cmdline").unwrap_or_default();
        let first = command_line.split(|byte| *byte == 0).next().unwrap_or_default();
        let program = fs::read_link("/proc/1/exe").unwrap_or_default();
        Process1 {
            is_ours: is_process_1().unwrap_or(false),
            program: file_name(&program.to_string_lossy()).to_owned(),
            called: file_name(&String::from_utf8_lossy(first)).to_owned(),
            comm: fs::read_to_string("/proc/1/comm").unwrap_or_default().trim_end().to_owned(),
        }
    }

    fn way(&self) -> Way {
        // A script that is called init runs in a busybox that is called sh.
        let named_init = matches!(self.called.as_str(), "init" | "linuxrc");
        if self.is_ours {
            Way::Init
        } else if self.comm == "systemd" || self.program == "systemd" {
            Way::Systemd
        } else if named_init && matches!(self.program.as_str(), "busybox" | "linuxrc") {
            Way::BusyboxInit
        } else {
            Way::Kernel
        }
    }
}

/// The last part of a path; the kernel marks a file that was removed meanwhile.
fn file_name(path: &str) -> &str {
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDS: [End; 3] = [End::PowerOff, End::Reboot, End::Halt];

    fn process_1(program: &str, called: &str, comm: &str) -> Process1 {
        let name = |text: &str| file_name(text).to_owned();
        Process1 { is_ours: false, program: name(program), called: name(called), comm: comm.to_owned() }
    }

    #[test]
    fn process_1_is_known_by_its_program_and_not_by_its_name_alone() {
        for (program, called, comm, way) in [
            ("/usr/lib/systemd/systemd", "/sbin/init", "systemd", Way::Systemd),
            // Others than root cannot read where the program is.
            ("", "/sbin/init", "systemd", Way::Systemd),
            ("/lib/systemd/systemd (deleted)", "/init", "init", Way::Systemd),
            ("/bin/busybox", "/sbin/init", "init", Way::BusyboxInit),
            ("/bin/busybox (deleted)", "init", "init", Way::BusyboxInit),
            ("/linuxrc", "/linuxrc", "linuxrc", Way::BusyboxInit),
            // A script: `#!/bin/sh` in /init.
            ("/bin/busybox", "/bin/sh", "init", Way::Kernel),
            ("/bin/busybox", "sh", "sh", Way::Kernel),
            ("/usr/sbin/init", "/sbin/init", "init", Way::Kernel),
            ("/bin/bash", "bash", "bash", Way::Kernel),
            ("", "", "", Way::Kernel),
        ] {
            assert_eq!(process_1(program, called, comm).way(), way, "{program} {called}");
        }
        let ours = Process1 { is_ours: true, ..process_1("/init", "/init", "init") };
        assert_eq!(ours.way(), Way::Init);
    }

    #[test]
    fn each_init_is_asked_in_its_own_words() {
        let words = |way: Way| ENDS.map(|end| way.signal(end));
        assert_eq!(words(Way::Init), [Some(12), Some(2), Some(10)]);
        assert_eq!(words(Way::Systemd), [Some(38), Some(39), Some(37)]);
        assert_eq!(words(Way::BusyboxInit), [Some(12), Some(15), Some(10)]);
        assert_eq!(words(Way::Kernel), [None; 3]);
    }

    #[test]
    fn a_test_is_not_process_1() {
        assert!(request(End::Halt).is_err_and(|error| error.to_string().starts_with("process 1 is not lodger: ")));
    }
}
