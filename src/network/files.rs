//! What files say of the network: name servers, the host name, and its addresses.

use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::network::Error;
use crate::replacement::{self, Old};
use crate::sys::file::{self, ELOOP, O_NOCTTY, O_NONBLOCK, O_RDONLY};

/// Bytes of the longest file that is read.
const FILE_MAX: u64 = 1 << 20;

/// Permissions of files that were not there.
const MODE: u32 = 0o644;

/// Links from one to the next that are followed: what the kernel follows.
const LINKS_MAX: usize = 40;

/// What /etc/resolv.conf says of these servers, each once.
pub fn resolv_conf<'a>(servers: impl Iterator<Item = &'a IpAddr>) -> Vec<u8> {
    let mut text = "# Written by lodger\n".to_owned();
    for server in servers {
        let line = format!("nameserver {server}\n");
        if !text.contains(&line) {
            text.push_str(&line);
        }
    }
    text.into_bytes()
}

/// `hosts` with the name for each address. A line with the address and one name, or one and one with a dot, becomes ours; other lines stay,
/// and an address that has one of them is left to it. Missing addresses come last.
pub fn hosts(before: &[u8], addresses: &[IpAddr], name: &str) -> Vec<u8> {
    let mut after = Vec::with_capacity(before.len());
    let mut missing = addresses.to_vec();
    for line in before.split_inclusive(|byte| *byte == b'\n') {
        let text = String::from_utf8_lossy(line);
        let mut words = text.split('#').next().unwrap_or_default().split_whitespace();
        let address = words.next().and_then(|word| word.parse().ok()).filter(|address| addresses.contains(address));
        let names: Vec<&str> = words.collect();
        let is_simple = match names[..] {
            [one] => one != name,
            [one, other] => one != name && other != name && one.contains('.') != other.contains('.'),
            _ => false,
        };
        match address {
            Some(address) if is_simple => after.extend_from_slice(format!("{address} {name}\n").as_bytes()),
            _ => after.extend_from_slice(line),
        }
        missing.retain(|other| Some(*other) != address);
    }
    for address in missing {
        if !after.is_empty() && !after.ends_with(b"\n") {
            after.push(b'\n');
        }
        after.extend_from_slice(format!("{address} {name}\n").as_bytes());
    }
    after
}

/// A file's content; that of one that is not there is empty.
///
/// # Errors
/// `System`; of the kind `FileTooLarge` beyond 1 MiB, `InvalidInput` for what is no regular file.
pub fn read(path: &Path) -> Result<Vec<u8>, Error> {
    match read_regular(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        result => result.map_err(|error| Error::system(&format!("read {}", path.display()), error)),
    }
}

fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    // A FIFO would wait for a writer, and a terminal would become ours.
    let file = file::open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY, 0)?;
    must_be_regular(&file.metadata()?)?;
    let mut content = Vec::new();
    file.take(FILE_MAX + 1).read_to_end(&mut content)?;
    if content.len() as u64 > FILE_MAX { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(content) }
}

fn must_be_regular(found: &Metadata) -> io::Result<()> {
    let error = || io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
    if found.is_file() { Ok(()) } else { Err(error()) }
}

/// Replaces a file, and through a link the one that it leads to; `false` when it has this content already, and when the link leads into a
/// folder that is not there: whoever makes that folder writes the file too.
///
/// # Errors
/// `System`, with the file as it was; of the kind `InvalidInput` for what is no regular file.
pub fn write(path: &Path, content: &[u8]) -> Result<bool, Error> {
    if read(path).is_ok_and(|before| before == content) && path.exists() {
        return Ok(false);
    }
    let mut what = format!("write {}", path.display());
    let target = target(path).map_err(|error| Error::system(&what, error))?;
    if let Ok(found) = fs::metadata(&target) {
        must_be_regular(&found).map_err(|error| Error::system(&what, error))?;
    }
    if target != path {
        if is_missing(target.parent().unwrap_or(Path::new("/"))) {
            log::warn!("{what}: it is a link to {}, whose folder is missing, and stays", target.display());
            return Ok(false);
        }
        what.push_str(&format!(", a link to {}", target.display()));
    }
    replacement::write(&target, content, MODE, Old::Gone).map_err(|error| Error::system(&what, error))?;
    log::info!("{what}: done");
    Ok(true)
}

fn is_missing(path: &Path) -> bool {
    matches!(fs::metadata(path), Err(error) if error.kind() == io::ErrorKind::NotFound)
}

/// Where a path leads, also when nothing is there yet.
fn target(path: &Path) -> io::Result<PathBuf> {
    let mut target = path.to_owned();
    for _ in 0..=LINKS_MAX {
        let Ok(next) = fs::read_link(&target) else { return Ok(target) };
        target = target.parent().unwrap_or(Path::new("/")).join(next);
    }
    Err(io::Error::from_raw_os_error(ELOOP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_server_has_one_line() {
        let servers: Vec<IpAddr> =
            ["192.0.2.5", "192.0.2.53", "192.0.2.5", "2001:db8::53"].map(|text| text.parse().expect("it")).to_vec();
        let text = "# Written by lodger\nnameserver 192.0.2.5\nnameserver 192.0.2.53\nnameserver 2001:db8::53\n";
        assert_eq!(resolv_conf(servers.iter()), text.as_bytes());
    }

    #[test]
    fn simple_lines_become_ours_and_others_stay() {
        let addresses: Vec<IpAddr> = ["192.0.2.1", "2001:db8::1"].map(|text| text.parse().expect("it")).to_vec();
        for (before, after) in [
            ("", "192.0.2.1 me\n2001:db8::1 me\n"),
            ("127.0.0.1 localhost", "127.0.0.1 localhost\n192.0.2.1 me\n2001:db8::1 me\n"),
            // One name, in any form of the address; one with a domain, in both orders; our own with one.
            ("192.0.2.1\told # x\n2001:DB8:0::1 old\n", "192.0.2.1 me\n2001:db8::1 me\n"),
            ("192.0.2.1 old.a old\n2001:db8::1 old old.a\n", "192.0.2.1 me\n2001:db8::1 me\n"),
            ("192.0.2.1 me.a me\n2001:db8::1  me\n", "192.0.2.1 me.a me\n2001:db8::1  me\n"),
            // Other shapes.
            ("192.0.2.1 a b\n2001:db8::1 a b.c d\n", "192.0.2.1 a b\n2001:db8::1 a b.c d\n"),
            ("192.0.2.1\n#192.0.2.1 a\n2001:db8::1 me", "192.0.2.1\n#192.0.2.1 a\n2001:db8::1 me"),
            ("192.0.2.10 a\n\n::1 b\n", "192.0.2.10 a\n\n::1 b\n192.0.2.1 me\n2001:db8::1 me\n"),
        ] {
            let once = hosts(before.as_bytes(), &addresses, "me");
            assert_eq!(String::from_utf8_lossy(&once), after, "{before}");
            assert_eq!(hosts(&once, &addresses, "me"), once, "{before}");
        }
        let foreign = b"10.0.0.1 \xff\xfe\n192.0.2.1 me\n2001:db8::1 me\n";
        assert_eq!(hosts(foreign, &addresses, "me"), foreign, "bytes that are no text");
    }

    #[test]
    fn a_file_is_read_up_to_its_limit_and_links_are_followed_up_to_theirs() {
        let folder = std::env::temp_dir().join(format!("lodger-network-files-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).expect("a folder");
        let file = folder.join("0");
        for (length, is_read) in [(FILE_MAX, true), (FILE_MAX + 1, false)] {
            fs::write(&file, vec![b'#'; length as usize]).expect("a file");
            assert_eq!(read(&file).is_ok(), is_read, "{length}");
        }
        assert_eq!(read(&folder.join("none")).expect("none is empty"), b"");
        for link in 1..=LINKS_MAX + 1 {
            std::os::unix::fs::symlink((link - 1).to_string(), folder.join(link.to_string())).expect("a link");
        }
        assert_eq!(target(&folder.join(LINKS_MAX.to_string())).expect("not too many"), file);
        let looped = write(&folder.join((LINKS_MAX + 1).to_string()), b"").expect_err("too many").to_string();
        assert!(looped.ends_with("/41: too many levels of symbolic links"), "{looped}");
        fs::remove_dir_all(&folder).expect("it is there");
    }
}
