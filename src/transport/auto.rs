//! `auto`: the ways into this guest that are there and that nobody else uses.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use crate::sys::file::{self, O_NOCTTY, O_NONBLOCK, O_RDWR};
use crate::sys::tty;
use crate::transport::DEFAULT;

/// Name of the virtio port that is looked for.
pub const PORT_NAME: &str = "org.lodger.0";

/// Port number on vsock. Nobody else is known to use it.
pub const VSOCK_PORT: u32 = 1074;

/// Terminals that are looked for beside the console.
const LINES: [&str; 2] = ["hvc1", "ttyS1"];

/// What `--listen` is given for it; with `,noconsole` the console's own line stays as it is.
pub const WORD: &str = "auto";

/// The addresses that the word stands for; `None`: it is an address itself.
pub fn meant_by(word: &str) -> Option<Vec<String>> {
    match word.strip_prefix(WORD)? {
        "" => Some(addresses(true)),
        ",noconsole" => Some(addresses(false)),
        _ => None,
    }
}

/// The addresses to listen on. `console`: the console's own line too, which then belongs to a link and no more to people.
fn addresses(console: bool) -> Vec<String> {
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
    lines.extend(consoles.split_whitespace().last().filter(is_line).filter(|_| console));
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
        let class = std::env::temp_dir().join(format!("lodger-ports-{}", std::process::id()));
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
    fn the_usual_socket_is_always_there_and_what_is_no_terminal_is_none() {
        assert_eq!(addresses(false)[0], DEFAULT);
        assert!(!is_there("/dev/null") && !is_there("/no/such/line"));
        let (_master, slave) = tty::open_pair().expect("a terminal");
        let path =
            fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&slave))).expect("its name");
        assert!(is_there(path.to_str().expect("text")) && !is_in_use(&[path.to_str().expect("text")]));
    }
}
