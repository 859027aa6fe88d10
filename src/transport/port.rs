//! Bare lines: virtio ports, and serial lines that nothing else is written to.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::stream::Stream;
use crate::sys::fd::{self, Changes, PollSet};
use crate::sys::file::{self, O_NOCTTY, O_NONBLOCK, O_RDWR};
use crate::sys::tty;

/// Where the kernel says what the virtio ports are called.
const PORT_CLASS: &str = "/sys/class/virtio-ports";

/// How often to look whether somebody is at the other end of a line, and whether the line is still there, where the kernel tells of neither.
const LOOK: Duration = Duration::from_secs(1);

/// Opens a bare line: raw and without modem lines if it is a terminal. A path that is a unix socket (QEMU's end of a line) is connected to.
/// A name without a slash, of which there is no file here, is a virtio port's.
pub fn open(line: &Path) -> io::Result<Stream> {
    let named = if is_name(line) { Some(find(Path::new(PORT_CLASS), line)?) } else { None };
    let path = named.as_deref().unwrap_or(line);
    if fs::metadata(path)?.file_type().is_socket() {
        return Ok(Stream::over_socket(UnixStream::connect(path)?));
    }
    // Never blocking: a blocking write beside a poll of the same virtio port can stall for ever (a lost wake-up in the kernel).
    let line = file::open(path, O_RDWR | O_NOCTTY | O_NONBLOCK, 0)?;
    if let Ok(settings) = tty::settings(line.as_fd()) {
        tty::apply(line.as_fd(), &settings.raw().without_modem_lines())?;
    }
    Ok(Stream::over(line))
}

/// Whether this is the name of a virtio port and no path.
fn is_name(line: &Path) -> bool {
    !line.as_os_str().as_bytes().contains(&b'/') && !line.exists()
}

/// The device of the virtio port that has this name. The links in /dev/virtio-ports are udev's, and most guests here have none.
fn find(class: &Path, name: &Path) -> io::Result<PathBuf> {
    let (mut found, mut names) = (None, BTreeSet::new());
    // Without the driver there is no such folder, and no port.
    for entry in fs::read_dir(class).into_iter().flatten().flatten() {
        // Empty for a port that nobody gave one.
        let port = fs::read(entry.path().join("name")).unwrap_or_default();
        let port = port.trim_ascii_end();
        if port == name.as_os_str().as_bytes() {
            let device = Some(entry.file_name());
            found = if found.is_none() { device } else { found.min(device) };
        } else if !port.is_empty() {
            names.insert(String::from_utf8_lossy(port).into_owned());
        }
    }
    if let Some(device) = found {
        return Ok(Path::new("/dev").join(device));
    }
    let names = Vec::from_iter(names).join(", ");
    let others = if names.is_empty() { "there is none with a name" } else { &names };
    let text = format!("no such file, and no virtio port has this name (named ports: {others})");
    Err(io::Error::new(io::ErrorKind::NotFound, text))
}

/// What a wait for a peer has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Somebody is there, as far as the line can tell: most lines always say so.
    IsThere,
    /// The other end was closed, and somebody has opened it.
    Came,
    Stop,
}

/// Waits until somebody is at the other end of the line, or until `stop` can be read.
///
/// # Errors
/// `NotFound` when the line's device is gone, as a port or a serial line that was unplugged: another one may have its name by now.
pub fn wait_for_peer(line: &Stream, stop: impl AsFd) -> io::Result<Peer> {
    if has_peer(line)? {
        return Ok(Peer::IsThere);
    }
    // A virtio port whose host side is closed is hung up, and poll(2) says so at once and for ever. But its driver wakes who waits for the
    // port when the host opens it (`wake_up_interruptible` under VIRTIO_CONSOLE_PORT_OPEN in Linux's drivers/char/virtio_console.c), and an
    // edge-triggered epoll(7) looks at the port only then.
    let changes = Changes::of(line.output())?;
    loop {
        // In this order: what changes behind the look is not forgotten.
        changes.forget()?;
        if has_peer(line)? {
            return Ok(Peer::Came);
        }
        if is_removed(line.output())? {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the device is gone"));
        }
        let mut set = PollSet::default();
        set.watch(stop.as_fd(), fd::READ);
        set.watch(changes.watch(), fd::READ);
        set.wait(Some(LOOK))?;
        if set.ready(0).readable {
            return Ok(Peer::Stop);
        }
    }
}

fn has_peer(line: &Stream) -> io::Result<bool> {
    Ok(!fd::wait_for(line.output(), fd::WRITE, Some(Duration::ZERO))?.hung_up)
}

/// Whether the file behind a descriptor has no name any more, as a node whose device has gone.
fn is_removed(line: BorrowedFd) -> io::Result<bool> {
    Ok(File::from(line.try_clone_to_owned()?).metadata()?.nlink() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_found_by_its_name() {
        let class = std::env::temp_dir().join(format!("lodger-named-ports-{}", std::process::id()));
        for (device, name) in [("vport1p2", "org.lodger.0\n"), ("vport0p1", "com.redhat.spice.0\n"), ("vport0p3", "")] {
            fs::create_dir_all(class.join(device)).expect("a folder");
            fs::write(class.join(device).join("name"), name).expect("a name");
        }
        let find = |name: &str| find(&class, Path::new(name));
        assert_eq!(find("org.lodger.0").expect("a port"), Path::new("/dev/vport1p2"));
        for missing in ["org.lodger", "vport0p1"] {
            let error = find(missing).expect_err("no such port");
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
            assert!(error.to_string().ends_with("(named ports: com.redhat.spice.0, org.lodger.0)"), "{error}");
        }
        fs::remove_dir_all(&class).expect("the folder is ours");
        assert!(find("org.lodger.0").expect_err("no driver").to_string().ends_with("there is none with a name)"));
    }

    #[test]
    fn what_has_no_slash_is_a_name() {
        assert!(is_name(Path::new("org.lodger.0")));
        assert!(!is_name(Path::new("/dev/ttyS1")) && !is_name(Path::new("./pipe")));
    }
}
