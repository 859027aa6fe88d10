//! The file systems that every guest has, what is in /dev, and unmounting at the end.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::init::console::Console;
use crate::sys::boot::{self, NO_DEVICES, NO_PROGRAMS, NO_SET_UID};
use crate::sys::errno::describe;
use crate::sys::file;

struct Mount {
    kind: &'static str,
    target: &'static str,
    flags: u64,
    data: &'static str,
}

/// In the order of mounting. /proc comes first, because it says what is mounted.
const MOUNTS: [Mount; 8] = [
    Mount { kind: "proc", target: "/proc", flags: NO_SET_UID | NO_DEVICES | NO_PROGRAMS, data: "" },
    Mount { kind: "sysfs", target: "/sys", flags: NO_SET_UID | NO_DEVICES | NO_PROGRAMS, data: "" },
    Mount { kind: "devtmpfs", target: "/dev", flags: NO_SET_UID, data: "mode=0755" },
    Mount {
        kind: "devpts",
        target: "/dev/pts",
        flags: NO_SET_UID | NO_PROGRAMS,
        data: "ptmxmode=0666,mode=0620,gid=5",
    },
    Mount { kind: "tmpfs", target: "/dev/shm", flags: NO_SET_UID | NO_DEVICES, data: "mode=1777" },
    Mount { kind: "tmpfs", target: "/run", flags: NO_SET_UID | NO_DEVICES, data: "mode=0755" },
    Mount { kind: "tmpfs", target: "/tmp", flags: NO_SET_UID | NO_DEVICES, data: "mode=1777" },
    Mount { kind: "cgroup2", target: "/sys/fs/cgroup", flags: NO_SET_UID | NO_DEVICES | NO_PROGRAMS, data: "" },
];

/// The nodes that programs expect, for a /dev that the kernel does not fill: path, mode, major, minor.
const NODES: [(&str, u32, u32, u32); 9] = [
    ("/dev/console", 0o600, 5, 1),
    ("/dev/null", 0o666, 1, 3),
    ("/dev/zero", 0o666, 1, 5),
    ("/dev/full", 0o666, 1, 7),
    ("/dev/random", 0o666, 1, 8),
    ("/dev/urandom", 0o666, 1, 9),
    ("/dev/kmsg", 0o644, 1, 11),
    ("/dev/tty", 0o666, 5, 0),
    ("/dev/ptmx", 0o666, 5, 2),
];

const LINKS: [(&str, &str); 4] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

/// Kinds of file system with nothing behind them that could be lost; they stay to the end.
const WITHOUT_STORAGE: [&str; 14] = [
    "rootfs",
    "ramfs",
    "tmpfs",
    "devtmpfs",
    "devpts",
    "proc",
    "sysfs",
    "cgroup",
    "cgroup2",
    "securityfs",
    "debugfs",
    "tracefs",
    "configfs",
    "bpf",
];

/// Mounts what is not mounted yet and completes /dev; each failure is a line on the console.
pub fn mount_all(console: &mut Console) {
    let mut complaints = Vec::new();
    let mut mounted = Vec::new();
    for mount in &MOUNTS {
        // A second tmpfs would hide the first one's files, and a second devpts the open terminals.
        if mounted.iter().any(|(target, _)| target == mount.target) {
            continue;
        }
        if let Err(error) = mount_one(mount) {
            complaints.push(format!("mount {} on {}: {}", mount.kind, mount.target, describe(&error)));
        }
        match mount.target {
            "/proc" => mounted = table(),
            "/dev" => complete_dev(&mut complaints),
            _ => {}
        }
    }
    // Only now, because the console may have been missing.
    complaints.iter().for_each(|complaint| console.line(complaint));
}

fn mount_one(mount: &Mount) -> io::Result<()> {
    // The mount tells what is wrong when this could not make its directory.
    let _ = fs::create_dir_all(mount.target);
    match boot::mount(mount.kind, mount.target, mount.flags, mount.data) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(()),
        Err(error) if mount.kind == "devtmpfs" => {
            boot::mount("tmpfs", mount.target, mount.flags, mount.data).map_err(|_| error)
        }
        result => result,
    }
}

fn complete_dev(complaints: &mut Vec<String>) {
    let umask = file::set_umask(0);
    for (path, mode, major, minor) in NODES {
        if !Path::new(path).exists()
            && let Err(error) = boot::make_character_device(path, mode, major, minor)
        {
            complaints.push(format!("make {path}: {}", describe(&error)));
        }
    }
    file::set_umask(umask);
    for (path, target) in LINKS {
        // Nearly always the name is taken because the link is there.
        let _ = symlink(target, path);
    }
}

/// Unmounts what has storage behind it, the last mounted first. What is busy becomes read-only, or else leaves the tree.
pub fn unmount_all(console: &mut Console) {
    for (target, kind) in table().iter().rev().filter(|(_, kind)| !WITHOUT_STORAGE.contains(&kind.as_str())) {
        let result = boot::unmount(target).or_else(|_| boot::remount_read_only(target));
        if let Err(error) = result {
            console.line(&format!("unmount {target} ({kind}): {}", describe(&error)));
            let _ = boot::detach(target);
        }
    }
}

/// Target and kind of every mounted file system, in the order of mounting.
fn table() -> Vec<(String, String)> {
    fs::read("/proc/self/mounts").map(|bytes| read_table(&String::from_utf8_lossy(&bytes))).unwrap_or_default()
}

fn read_table(text: &str) -> Vec<(String, String)> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            Some((unescaped(fields.next()?), fields.next()?.to_owned()))
        })
        .collect()
}

/// The kernel writes blanks, backslashes and number signs as a backslash and three octal digits.
fn unescaped(field: &str) -> String {
    let mut parts = field.split('\\');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_at_checked(3).and_then(|(digits, rest)| Some((u8::from_str_radix(digits, 8).ok()?, rest))) {
            Some((byte, rest)) if byte.is_ascii() => {
                text.push(char::from(byte));
                text.push_str(rest);
            }
            _ => {
                text.push('\\');
                text.push_str(part);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_keeps_the_order_and_undoes_the_kernels_escapes() {
        let text = "rootfs / rootfs rw 0 0\n/dev/vda /mnt ext4 rw 0 0\nshare /mnt/a\\040b\\134c 9p rw 0 0\nx /y\\9 tmpfs rw 0 0\n";
        let expected = [("/", "rootfs"), ("/mnt", "ext4"), ("/mnt/a b\\c", "9p"), ("/y\\9", "tmpfs")];
        assert_eq!(read_table(text), expected.map(|(target, kind)| (target.to_owned(), kind.to_owned())));
    }

    #[test]
    fn nothing_is_mounted_before_what_it_lies_on() {
        for (index, mount) in MOUNTS.iter().enumerate() {
            for later in &MOUNTS[index..] {
                assert!(!Path::new(mount.target).starts_with(later.target) || mount.target == later.target);
            }
        }
    }
}
