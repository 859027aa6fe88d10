//! `auto`: the ways into this guest that are there and that nobody else uses.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::sys::file::{self, O_NOCTTY, O_NONBLOCK, O_RDWR};
use crate::sys::tty;
use crate::transport::{Addr, DEFAULT};

/// Name of the virtio port that is looked for.
pub const PORT_NAME: &str = "org.lodger.0";

/// Port number on vsock. Nobody else is known to use it.
pub const VSOCK_PORT: u32 = 1074;

/// Terminals that are looked for beside the console.
const LINES: [&str; 2] = ["hvc1", "ttyS1"];

/// What becomes of the console's own line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Console {
    /// It belongs to a link, and no more to people.
    Taken,
    Spared,
}

/// What `--listen` means by a word; `None`: it is an address.
pub fn meant_by(word: &str) -> Option<Console> {
    match word {
        "auto" => Some(Console::Taken),
        "auto,noconsole" => Some(Console::Spared),
        _ => None,
    }
}

/// How often to look for new ways, and for how long after the start: the ports of a virtio device come after its driver's module has
/// been loaded, one after the other, and on a busy machine seconds later.
const LOOK: Duration = Duration::from_millis(200);
const LOOK_FOR: Duration = Duration::from_secs(15);

/// The ways that have been found so far.
#[derive(Debug)]
pub struct Ways {
    console: Console,
    known: Vec<Addr>,
    next: Instant,
    end: Instant,
}

impl Ways {
    /// Nothing has been found yet.
    pub fn new(console: Console, now: Instant) -> Ways {
        Ways { console, known: Vec::new(), next: now, end: now + LOOK_FOR }
    }

    /// When to look; `None` when it has been done long enough.
    pub fn deadline(&self) -> Option<Instant> {
        (self.next < self.end).then_some(self.next)
    }

    /// Looks, if it is time: what was not there before.
    pub fn look(&mut self, now: Instant) -> Vec<Addr> {
        if self.deadline().is_none_or(|next| now < next) {
            return Vec::new();
        }
        self.next = now + LOOK;
        let mut found: Vec<Addr> = addresses(self.console).iter().filter_map(|text| text.parse().ok()).collect();
        found.retain(|addr| !self.known.contains(addr));
        self.known.extend_from_slice(&found);
        found
    }
}

/// The addresses to listen on.
fn addresses(console: Console) -> Vec<String> {
    let mut addresses = vec![DEFAULT.to_owned()];
    if has_virtio_port(Path::new("/sys/class/virtio-ports")) {
        addresses.push(format!("serial:{PORT_NAME}"));
    }
    if Path::new("/dev/vsock").exists() {
        addresses.push(format!("vsock:{VSOCK_PORT}"));
    }
    let consoles = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    let mut lines: Vec<&str> =
        LINES.into_iter().filter(|line| !consoles.split_whitespace().any(|name| name == *line)).collect();
    // The last one is /dev/console. A screen is no line.
    let is_line = |name: &&str| name.starts_with("ttyS") || name.starts_with("ttyAMA") || name.starts_with("hvc");
    lines.extend(consoles.split_whitespace().last().filter(is_line).filter(|_| console == Console::Taken));
    for name in lines {
        let path = format!("/dev/{name}");
        // Whoever has the console open may have its line by either name.
        let is_console = consoles.split_whitespace().last() == Some(name);
        let names: &[&str] = if is_console { &[&path, "/dev/console"] } else { &[&path] };
        if is_there(&path) && !is_in_use(names) {
            let quiet = if is_console { ",quiet" } else { "" };
            addresses.push(format!("serial:{path}{quiet}"));
        }
    }
    addresses
}

/// Whether there is a port with our name.
fn has_virtio_port(class: &Path) -> bool {
    let Ok(entries) = fs::read_dir(class) else { return false };
    let name = |entry: fs::DirEntry| fs::read_to_string(entry.path().join("name")).unwrap_or_default();
    entries.flatten().any(|entry| name(entry).trim_end() == PORT_NAME)
}

/// Whether a terminal has hardware behind it. The nodes of UARTs that are not there can be opened, but have no settings.
fn is_there(path: &str) -> bool {
    let line = file::open(path, O_RDWR | O_NOCTTY | O_NONBLOCK, 0);
    line.is_ok_and(|line| tty::settings(line.as_fd()).is_ok())
}

/// Whether a process other than the system's first has a terminal of these names open: a login prompt or a shell.
fn is_in_use(names: &[&str]) -> bool {
    let Ok(processes) = fs::read_dir("/proc") else { return false };
    let numbers = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    numbers.filter(|pid| *pid > 1 && *pid != std::process::id()).any(|pid| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        descriptors.into_iter().any(|entry| {
            fs::read_link(entry.path()).is_ok_and(|target| names.iter().any(|name| target == Path::new(name)))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_found_by_its_name() {
        let class = std::env::temp_dir().join(format!("lodger-auto-ports-{}", std::process::id()));
        for (device, name) in [("vport0p1", "org.qemu.guest_agent.0\n"), ("vport2p3", "org.lodger.0\n")] {
            fs::create_dir_all(class.join(device)).expect("a folder");
            fs::write(class.join(device).join("name"), name).expect("a file");
        }
        assert!(has_virtio_port(&class));
        fs::remove_dir_all(class.join("vport2p3")).expect("it is ours");
        assert!(!has_virtio_port(&class));
        fs::remove_dir_all(&class).expect("it is ours");
        assert!(!has_virtio_port(&class));
    }

    #[test]
    fn each_way_is_found_once_and_the_search_ends() {
        let start = Instant::now();
        let mut ways = Ways::new(Console::Spared, start);
        assert!(ways.look(start).iter().any(|addr| addr.to_string() == DEFAULT));
        assert_eq!(ways.look(start), []);
        assert!(ways.look(start + LOOK).iter().all(|addr| addr.to_string() != DEFAULT));
        assert_eq!(ways.deadline(), Some(start + LOOK * 2));
        ways.look(start + LOOK_FOR);
        assert_eq!(ways.look(start + LOOK_FOR - LOOK / 2), []);
        assert_eq!(ways.deadline(), None);
        assert_eq!([meant_by("auto"), meant_by("auto,noconsole")], [Some(Console::Taken), Some(Console::Spared)]);
        assert_eq!([meant_by("auto:x"), meant_by("unix:auto")], [None, None]);
    }

    #[test]
    fn the_usual_socket_is_always_there_and_what_is_no_terminal_is_none() {
        assert_eq!(addresses(Console::Spared)[0], DEFAULT);
        assert!(!is_there("/dev/null") && !is_there("/no/such/line"));
        let (_master, slave) = tty::open_pair().expect("a terminal");
        let path =
            fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&slave))).expect("its name");
        assert!(is_there(path.to_str().expect("text")) && !is_in_use(&[path.to_str().expect("text")]));
    }
}
