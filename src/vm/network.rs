//! The network of a guest that has a task: one service of this machine at its usual address, and nothing else.
//!
//! It is QEMU's own network, made by libslirp: a connection to the service's address starts a program, with one socket as its stdin, stdout
//! and stderr. A forward to a character device would be less, but carries one connection alone. QEMU cuts the option at commas, and libslirp
//! the command into words as a shell does.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Drivers that the guest needs for it.
pub const MODULES: [&str; 2] = ["virtio_pci", "virtio_net"];

/// Where the guest finds the service, and its own address. Any in the network but QEMU's 169.254.2.2, .3 and .15 would do.
const SERVICE: &str = "169.254.169.254:80";
const GUEST: &str = "169.254.1.2/16";
const NETWORK: &str = "169.254.0.0/16";

/// The service's socket in the guest's folder.
pub const SOCKET: &str = "metadata";

/// What the guest's process 1 must be told.
pub fn words() -> String {
    format!("lodger.address={GUEST} lodger.metadata={SERVICE}")
}

/// QEMU's arguments. `relay`: this program, which joins each connection to the socket.
pub fn arguments(relay: &Path, socket: &Path) -> [Vec<u8>; 4] {
    let address = [b"unix:", socket.as_os_str().as_bytes()].concat();
    let words = [relay.as_os_str().as_bytes(), b"metadata", b"relay", &address];
    let command = words.map(quoted).join(&b' ');
    let netdev = format!("user,id=net,restrict=on,ipv6=off,net={NETWORK},guestfwd=tcp:{SERVICE}-cmd:");
    let command = command.split(|byte| *byte == b',').collect::<Vec<_>>().join(&b",,"[..]);
    // Without the program of its ROM, which is for booting from the network and may not be installed.
    let device = "virtio-net-pci,netdev=net,romfile=";
    [b"-netdev".to_vec(), [netdev.as_bytes(), &command].concat(), b"-device".to_vec(), device.into()]
}

/// One word of a command, whatever bytes it has.
fn quoted(word: &[u8]) -> Vec<u8> {
    let inner = word.split(|byte| *byte == b'\'').collect::<Vec<_>>().join(&br"'\''"[..]);
    [b"'", &inner[..], b"'"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_comes_through_both_readers_of_the_option() {
        let [_, netdev, ..] = arguments(Path::new("/a b/it's"), Path::new("/t,mp/x"));
        let netdev = String::from_utf8(netdev).expect("text");
        let (_, command) = netdev.split_once("-cmd:").expect("a command");
        assert_eq!(command, r"'/a b/it'\''s' 'metadata' 'relay' 'unix:/t,,mp/x'");
    }
}
