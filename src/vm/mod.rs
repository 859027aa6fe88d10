//! Guests under QEMU: start one on an archive with this program as /init, reach its agent, end it.
//!
//! The machine is q35 without default devices: microvm hangs in one boot of ten under TCG. The console is ttyS0, into a file (an unread
//! chardev would stop the guest). The agent is reached by a link on a virtio port, on ttyS1 where the kernel has no driver for that, and on
//! the console's own line when there shall be no other: what is printed there comes beside the frames and goes into the same file. A panic
//! ends QEMU with status 1 (pvpanic), a power-off with 0, a program of `lodger.exec=` with 2n + 1 (isa-debug-exit). A guest for a task has a
//! network beside that, for its metadata service alone.

pub mod kernel;
pub mod machine;
#[cfg(feature = "metadata")]
pub mod network;

use std::fmt;
use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::client::{self, Connection};
use crate::exec::{self, Channel, Program, Session};
use crate::link::opener::Wishes;
use crate::mkinitramfs::{self, Image};
use crate::stream::Stream;
use crate::sys::fd::{self, PollSet};
use crate::sys::process::Status;
use crate::sys::{errno, signal};
use crate::transport::serial::Settings;
use crate::transport::{self, Addr, Carrier};
use crate::vm::machine::{Line, Machine};

/// Drivers that a guest needs for its port, and to tell QEMU of a panic.
pub const MODULES: [&str; 3] = ["virtio_pci", "virtio_console", "pvpanic_mmio"];

/// How long a guest may take to power off before QEMU is killed: process 1 gives its programs 5 s.
const POWER_OFF: Duration = Duration::from_secs(10);

/// How often to offer the guest what it has not taken of our request to power off.
const OFFER: Duration = Duration::from_millis(200);

/// How long QEMU may take to end after its guest is gone.
const ENDING: Duration = Duration::from_secs(2);

/// How often to look for a socket that QEMU is about to make, or for a file that grows.
const LOOK: Duration = Duration::from_millis(5);

/// Lines and bytes of the console that an error shows.
const TAIL_LINES: usize = 12;
const TAIL_BYTES: u64 = 16 << 10;

/// How Linux begins the line in which it gives up.
const PANIC: &str = "Kernel panic";

/// Why there is no guest, or no more.
#[derive(Debug)]
pub enum Error {
    NoKernel,
    NoQemu(String),
    Image(mkinitramfs::Error),
    File {
        operation: &'static str,
        path: PathBuf,
        error: io::Error,
    },
    /// QEMU itself failed; what it said.
    Qemu(String),
    /// The guest's kernel panicked; the console's last lines.
    Panic(String),
    /// The guest ended, without being asked to.
    PoweredOff(String),
    /// The agent did not answer in time.
    Silent {
        after: Duration,
        console: String,
    },
    /// The guest has not asked for its task in time.
    #[cfg(feature = "metadata")]
    Idle {
        after: Duration,
        console: String,
    },
    /// A signal asked us to end.
    Interrupted(i32),
    Client(client::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let console = |f: &mut fmt::Formatter, what: &str, lines: &str| match lines {
            "" => write!(f, "{what}; nothing came on its console"),
            lines => write!(f, "{what}; the last lines of its console:\n{lines}"),
        };
        match self {
            Error::NoKernel => f.write_str(
                "no kernel: name one by --kernel or LODGER_KERNEL, or fetch one by initramfs/fetch-kernel.sh",
            ),
            Error::NoQemu(name) => write!(f, "{name}: not found (Debian: apt-get install qemu-system-x86)"),
            Error::Image(error) => error.fmt(f),
            Error::File { operation, path, error } => {
                write!(f, "{operation} {}: {}", path.display(), errno::describe(error))
            }
            Error::Qemu(text) => write!(f, "qemu: {text}"),
            Error::Panic(lines) => console(f, "the guest's kernel panicked", lines),
            Error::PoweredOff(lines) => console(f, "the guest powered off by itself", lines),
            Error::Silent { after, console: lines } => {
                console(f, &format!("no agent answered within {} s", after.as_secs()), lines)
            }
            #[cfg(feature = "metadata")]
            Error::Idle { after, console: lines } => {
                console(f, &format!("the guest has not asked for its task within {} s", after.as_secs()), lines)
            }
            Error::Interrupted(signal) => write!(f, "ended by {}", signal::name(*signal)),
            Error::Client(error) => error.fmt(f),
        }
    }
}

/// A running guest, ended when it is dropped.
#[derive(Debug)]
pub struct Guest {
    qemu: Session,
    /// QEMU's own streams; its stderr says why it failed.
    channels: Vec<Channel>,
    folder: PathBuf,
    console: PathBuf,
    line: Line,
    kept: bool,
}

impl Machine {
    /// Builds the archive and starts QEMU.
    pub fn start(&self, mut image: Image) -> Result<Guest, Error> {
        let missing = match &self.kernel.modules {
            Some(tree) => image.modules(tree, &MODULES).map_err(Error::Image)?,
            None => MODULES.map(str::to_owned).to_vec(),
        };
        let line = match missing.iter().any(|name| name == "virtio_console") {
            _ if self.single_serial => Line::OnlyUart,
            true => Line::SecondUart,
            false => Line::VirtioPort,
        };
        let folder = new_folder()?;
        let archive = folder.join("initramfs.cpio");
        let guard = FolderGuard(Some(folder.clone()));
        image.write_file(&archive).map_err(Error::Image)?;
        let console = self.console.clone().unwrap_or_else(|| folder.join("console.log"));
        let file = |error| Error::File { operation: "write", path: console.clone(), error };
        fs::write(&console, "").map_err(file)?;
        let name = std::env::var("LODGER_QEMU").unwrap_or_else(|_| "qemu-system-x86_64".to_owned());
        let program = Program {
            path: name.clone().into_bytes(),
            arguments: self.arguments(&folder, &archive, &console, line),
            // Whatever ends this process ends the guest, unless it shall stay.
            death_signal: (!self.keep).then_some(signal::SIGKILL),
            ..Program::default()
        };
        let (qemu, channels) = exec::start(&program).map_err(|why| match why {
            exec::NotStarted::NotOnPath(_) => Error::NoQemu(name),
            why => Error::Qemu(why.text()),
        })?;
        std::mem::forget(guard);
        Ok(Guest { qemu, channels, folder, console, line, kept: false })
    }
}

/// A folder that only we may look into: whoever reaches the sockets in it can do everything in the guest.
fn new_folder() -> Result<PathBuf, Error> {
    let mut number = 0u32;
    loop {
        let path = std::env::temp_dir().join(format!("lodger-vm-{}-{number}", std::process::id()));
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(Error::File { operation: "create", path, error }),
        }
    }
}

/// Removes the folder of a guest that could not be started.
struct FolderGuard(Option<PathBuf>);

impl Drop for FolderGuard {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = fs::remove_dir_all(path);
        }
    }
}

impl Guest {
    /// Where the agent is reached while the guest runs. One client at a time.
    pub fn address(&self) -> Addr {
        let path = self.folder.join(self.line.socket());
        Addr { carrier: Carrier::Serial { path, settings: Settings::default() }, protocol: None }
    }

    /// Where the guest's service must listen, when it has one.
    #[cfg(feature = "metadata")]
    pub fn service_socket(&self) -> PathBuf {
        self.folder.join(network::SOCKET)
    }

    /// Readable when QEMU has ended; `None` where the kernel cannot tell.
    pub fn end_watch(&self) -> Option<BorrowedFd<'_>> {
        self.qemu.end_watch()
    }

    /// What the end of QEMU means; `None` while it runs.
    pub fn end(&self) -> Option<Error> {
        self.qemu.ended().map(|status| self.ended(status))
    }

    /// QEMU's process.
    pub fn pid(&self) -> i32 {
        self.qemu.pid()
    }

    /// Waits for the agent.
    ///
    /// # Errors
    /// What happened instead: `Panic`, `PoweredOff`, `Qemu`, `Silent` after `patience`, `Interrupted` by a signal in the pipe.
    pub fn connect(&self, patience: Duration, signals: &OwnedFd) -> Result<Connection, Error> {
        let start = Instant::now();
        let silent = || Error::Silent { after: patience, console: self.tail() };
        let stream = loop {
            match self.open() {
                Ok(stream) => break stream,
                Err(_) if start.elapsed() < patience => self.watch(None, Some(LOOK), signals)?,
                Err(_) => return Err(silent()),
            };
        };
        let mut connection = Connection::open(stream);
        loop {
            match connection.hears_agent() {
                Ok(true) => break,
                Ok(false) => {}
                // QEMU's end of the line closed: it ends, and says why in its status.
                Err(error) => return Err(self.explain(error)),
            }
            let left = patience.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(silent());
            }
            self.watch(Some(&connection), Some(left), signals)?;
        }
        match connection.greet(patience.saturating_sub(start.elapsed())) {
            Err(client::Error::Silent(_)) => return Err(silent()),
            greeted => drop(greeted.map_err(|error| self.explain(error))?),
        }
        Ok(connection)
    }

    fn open(&self) -> io::Result<Stream> {
        let console = match self.line {
            Line::OnlyUart => Some(fs::OpenOptions::new().append(true).open(&self.console)?.into()),
            Line::VirtioPort | Line::SecondUart => None,
        };
        transport::connect_with(&self.address(), Wishes { console, starts: true })
    }

    /// Waits until the agent says something, QEMU ends, a signal comes, or the time is over.
    fn watch(
        &self,
        connection: Option<&Connection>,
        timeout: Option<Duration>,
        signals: &OwnedFd,
    ) -> Result<(), Error> {
        let mut set = PollSet::default();
        set.watch(signals.as_fd(), fd::READ);
        if let Some(qemu) = self.qemu.end_watch() {
            set.watch(qemu, fd::READ);
        }
        if let Some(connection) = connection {
            set.watch(connection.watch(), fd::READ);
        }
        let wait = |error| Error::File { operation: "wait for", path: self.folder.clone(), error };
        set.wait(timeout).map_err(wait)?;
        if let Some(signal) = signal::take(signals).into_iter().find(|number| *number != signal::SIGWINCH) {
            return Err(Error::Interrupted(signal));
        }
        self.end().map_or(Ok(()), Err)
    }

    /// What the end of the connection really was: a guest that ended tells more than its closed line.
    pub fn explain(&self, error: client::Error) -> Error {
        if !matches!(error, client::Error::Lost(_) | client::Error::Explained(_)) {
            return Error::Client(error);
        }
        match self.wait(ENDING) {
            Some(status) => self.ended(status),
            None => Error::Client(error),
        }
    }

    /// What QEMU's end means.
    fn ended(&self, status: Status) -> Error {
        let (tail, complaint) = (self.tail(), self.complaint());
        match status {
            // pvpanic's driver may not have been there yet; then the kernel's reboot after the panic looks like a power-off.
            _ if tail.contains(PANIC) => Error::Panic(tail),
            Status::Exited(0) => Error::PoweredOff(tail),
            _ if !complaint.is_empty() => Error::Qemu(complaint),
            Status::Exited(1) => Error::Panic(tail),
            status => Error::Qemu(format!("ended with status {}", status.code())),
        }
    }

    fn wait(&self, patience: Duration) -> Option<Status> {
        if let Some(qemu) = self.qemu.end_watch() {
            let _ = fd::wait_for(qemu, fd::READ, Some(patience));
        }
        self.qemu.ended()
    }

    /// What QEMU said on its stderr.
    fn complaint(&self) -> String {
        let stderr = self.channels.iter().find(|channel| channel.number == 2).and_then(|channel| channel.rd.as_ref());
        let mut text = Vec::new();
        if let Some(stderr) = stderr {
            let _ = fd::read_append(stderr.as_fd(), &mut text, TAIL_BYTES as usize);
        }
        String::from_utf8_lossy(&text).trim().to_owned()
    }

    /// The last lines of the console; after a panic those around the line that says so, because a trace as long as a screen follows it.
    pub fn tail(&self) -> String {
        let mut bytes = Vec::new();
        if let Ok(mut file) = fs::File::open(&self.console) {
            let length = file.metadata().map_or(0, |found| found.len());
            let _ = file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)));
            let _ = file.take(TAIL_BYTES).read_to_end(&mut bytes);
        }
        last_words(&String::from_utf8_lossy(&bytes))
    }

    /// Asks the guest to power off, and waits for it; what is not off in time, or when a signal comes, is killed.
    pub fn power_off(self, mut connection: Connection, signals: &OwnedFd) {
        connection.request(["/bin/lodger", "poweroff"]);
        let deadline = Instant::now() + POWER_OFF;
        // Whatever comes is of no interest but the end of QEMU; an agent that does not answer ends with it.
        while self.qemu.ended().is_none() && Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.watch(None, Some(left.min(OFFER)), signals).is_err() || connection.hears_agent().is_err() {
                break;
            }
        }
        if self.qemu.ended().is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            let _ = self.watch(None, Some(left), signals);
        }
        // What came over the line last may be the console's, and is in its file when the connection has ended.
        let deadline = Instant::now() + ENDING;
        while connection.hears_agent().is_ok() && Instant::now() < deadline {
            let _ = fd::wait_for(connection.watch(), fd::READ, Some(OFFER));
        }
    }

    /// Leaves the guest running, with its folder.
    pub fn keep(mut self) {
        self.kept = true;
        self.qemu.release();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        // First QEMU, which may be about to make its sockets in the folder.
        let _ = self.qemu.signal(signal::SIGKILL);
        self.wait(ENDING);
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The lines of a console's end that tell most.
fn last_words(text: &str) -> String {
    let clean = |line: &str| line.chars().filter(|character| !character.is_control()).collect::<String>();
    let lines: Vec<String> = text.lines().map(clean).filter(|line| !line.trim().is_empty()).collect();
    let last = lines.len().saturating_sub(TAIL_LINES);
    let panic = lines.iter().position(|line| line.contains(PANIC));
    let first = panic.map_or(last, |panic| panic.saturating_sub(TAIL_LINES / 2).min(last));
    lines[first..(first + TAIL_LINES).min(lines.len())].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_the_panic_is_among_the_last_words() {
        let numbers =
            |range: std::ops::Range<u32>| range.map(|number| format!("line {number}\r\n")).collect::<String>();
        let plain = last_words(&numbers(0..100));
        assert!(plain.starts_with("line 88\n") && plain.ends_with("line 99"), "{plain}");
        let panicked = last_words(&format!("{}Kernel panic - not syncing: x\r\n{}", numbers(0..50), numbers(50..100)));
        assert!(
            panicked.starts_with("line 44\n") && panicked.contains("Kernel panic - not syncing: x\nline 50"),
            "{panicked}"
        );
        let late = last_words(&format!("{}Kernel panic - x\n", numbers(0..50)));
        assert!(late.starts_with("line 39\n") && late.ends_with("Kernel panic - x"), "{late}");
        assert_eq!(last_words("one\n\n \u{1b}\n"), "one");
    }
}
