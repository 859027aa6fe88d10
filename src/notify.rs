//! Readiness: tells whoever started the machine, or the agent, that the listeners are open.
//!
//! The message is that of sd_notify(3), one packet or a stream up to its end:
//!
//! ```text
//! READY=1
//! X_LODGER=lodger 0.1.0 … (x86_64-unknown-linux-musl)
//! ```
//!
//! It goes to the first of these places that is there:
//! - the environment's `NOTIFY_SOCKET`;
//! - `vmm.notify_socket=` or `systemd.set_credential=vmm.notify_socket:` on the kernel's command line;
//! - the credential `vmm.notify_socket`: a file in `$CREDENTIALS_DIRECTORY` or `/run/credentials/@system`, of QEMU's fw_cfg, or a string of
//!   SMBIOS type 11.
//!
//! All but the first belong to the machine, and only an agent that was started by this program as its process 1 speaks for that. A place is
//! `vsock:CID:PORT`, for packets or where there are none a stream; `vsock-seqpacket:` and `vsock-stream:` leave no choice; or the path of a
//! unix datagram socket, with `@` for an abstract one. As systemd does it, the message comes from a port below 1,024 where that is allowed,
//! so that the host can tell it from one of an unprivileged program.
//!
//! Source: systemd, sd_notify(3), systemd.system-credentials(7) and systemd-vmspawn.

use std::env;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::{fs::MetadataExt, process::parent_id};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::sys::vsock::{self, Kind};
use crate::sys::{errno, fd};
use crate::transport::{self, Addr, Carrier};
use crate::version;

/// Pauses between the attempts: a monitor that starts its listener late is still met.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(200), Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2)];

/// How long the receiver may take to read the message before we hang up.
const READING: Duration = Duration::from_secs(2);

/// Bytes of stack of the thread that sends.
const STACK_BYTES: usize = 64 << 10;

/// First port that everybody may use.
const PRIVILEGED_END: u32 = 1024;

/// The inode of the pid namespace that the kernel starts with (PROC_PID_INIT_INO); one of a container has another.
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Tells whoever wants to know, if anybody does, in a thread of its own. What does not work is one line of the log.
pub fn start() {
    let Some(place) = place() else { return };
    let work = move || match attempt(&place) {
        Ok(()) => log::info!("told {place} that the agent is ready"),
        Err(error) => log::warn!("notify {place}: {}{}", errno::describe(&error), transport::vsock::hint(&error)),
    };
    if let Err(error) = thread::Builder::new().stack_size(STACK_BYTES).spawn(work) {
        log::warn!("notify: start a thread: {}", errno::describe(&error));
    }
}

fn attempt(place: &str) -> io::Result<()> {
    for pause in PAUSES {
        match send(place) {
            Err(error) if !matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
                log::debug!("notify {place}: {}", errno::describe(&error));
            }
            result => return result,
        }
        // Nothing has a descriptor that would tell when the receiver is there.
        thread::sleep(pause);
    }
    send(place)
}

fn send(place: &str) -> io::Result<()> {
    let message = message();
    if place.starts_with(['/', '@']) {
        return send_to_unix(place, &message);
    }
    let (cid, port, kinds) = parse(place)?;
    let (last, before) = kinds.split_last().ok_or(io::ErrorKind::InvalidInput)?;
    for kind in before {
        if send_to_vsock(*kind, cid, port, &message).is_ok() {
            return Ok(());
        }
    }
    send_to_vsock(*last, cid, port, &message)
}

fn message() -> Vec<u8> {
    [b"READY=1\nX_LODGER=", version::LINE.as_bytes(), b"\n"].concat()
}

/// CID, port and the kinds of socket to try.
fn parse(place: &str) -> io::Result<(u32, u32, &'static [Kind])> {
    let (scheme, rest) = place.split_once(':').unwrap_or_default();
    let kinds: &[Kind] = match scheme {
        "vsock" => &[Kind::Packets, Kind::Stream],
        "vsock-seqpacket" => &[Kind::Packets],
        "vsock-stream" => &[Kind::Stream],
        // Such as vsock-dgram, which no transport of a virtual machine carries.
        _ => return Err(io::Error::new(io::ErrorKind::Unsupported, "only vsock:CID:PORT and unix sockets are known")),
    };
    let addr: Result<Addr, _> = ["vsock:", rest].concat().parse();
    match addr.map(|addr| addr.carrier) {
        Ok(Carrier::VsockPeer { cid, port }) => Ok((cid, port, kinds)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "CID and port are missing")),
    }
}

fn send_to_unix(place: &str, message: &[u8]) -> io::Result<()> {
    let addr = match place.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(place),
    }?;
    UnixDatagram::unbound()?.send_to_addr(message, &addr).map(drop)
}

fn send_to_vsock(kind: Kind, cid: u32, port: u32, message: &[u8]) -> io::Result<()> {
    let socket = vsock::socket(kind)?;
    // Without the privilege the first of them is refused, and the kernel chooses another port.
    for own in (1..PRIVILEGED_END).rev() {
        match vsock::bind(socket.as_fd(), own) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            _ => break,
        }
    }
    transport::vsock::connect(&socket, cid, port)?;
    if fd::send_now(socket.as_fd(), message)? < message.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    // A receiver that takes longer loses nothing in most kernels; the wait is for the others.
    let _ = fd::shutdown_write(socket.as_fd());
    let deadline = Instant::now() + READING;
    let mut waste = [0; 64];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || !fd::wait_for(socket.as_fd(), fd::READ, Some(left))?.readable {
            return Ok(());
        }
        if !fd::read(socket.as_fd(), &mut waste).is_ok_and(|count| count > 0) {
            return Ok(());
        }
    }
}

/// Where to send to.
fn place() -> Option<String> {
    if let Some(place) = env::var("NOTIFY_SOCKET").ok().filter(|place| !place.is_empty()) {
        return Some(place);
    }
    if !is_the_machines() {
        return None;
    }
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    on_command_line(&line).or_else(in_file).or_else(|| in_smbios(&fs::read("/sys/firmware/dmi/tables/DMI").ok()?))
}

/// Whether this agent was started by process 1 of the machine, and that is this program. In a container the kernel's command line speaks
/// of somebody else.
fn is_the_machines() -> bool {
    let file = |path: &str| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    parent_id() == 1
        && file("/proc/1/exe").is_some_and(|init| file("/proc/self/exe") == Some(init))
        && fs::read_link("/proc/self/ns/pid").is_ok_and(|name| name == Path::new(FIRST_PID_NAMESPACE))
}

fn on_command_line(line: &str) -> Option<String> {
    let names = ["vmm.notify_socket=", "systemd.set_credential=vmm.notify_socket:"];
    let mut words = line.split_ascii_whitespace().rev();
    words.find_map(|word| names.iter().find_map(|name| word.strip_prefix(name)).map(str::to_owned))
}

fn in_file() -> Option<String> {
    let given = env::var("CREDENTIALS_DIRECTORY").ok();
    let folders = ["/run/credentials/@system", "/sys/firmware/qemu_fw_cfg/by_name/opt/io.systemd.credentials"];
    let paths = given.iter().map(|folder| [folder, "/vmm.notify_socket"].concat());
    let mut paths =
        paths.chain([[folders[0], "/vmm.notify_socket"].concat(), [folders[1], "/vmm.notify_socket/raw"].concat()]);
    let text = paths.find_map(|path| fs::read_to_string(path).ok())?;
    Some(text.trim().to_owned())
}

/// Looks through the tables of the firmware. Each string in them ends with a zero byte, and what stands there was written by the monitor.
fn in_smbios(tables: &[u8]) -> Option<String> {
    let behind = |name: &str| {
        let at = tables.windows(name.len()).position(|bytes| bytes == name.as_bytes())?;
        tables[at + name.len()..].split(|byte| *byte == 0).next()
    };
    let value = match behind("io.systemd.credential:vmm.notify_socket=") {
        Some(text) => text.to_vec(),
        None => from_base64(behind("io.systemd.credential.binary:vmm.notify_socket=")?)?,
    };
    Some(String::from_utf8(value).ok()?.trim().to_owned())
}

/// `None` for what is no base64.
fn from_base64(text: &[u8]) -> Option<Vec<u8>> {
    let (mut out, mut bits, mut count) = (Vec::new(), 0u32, 0);
    for byte in text.iter().take_while(|byte| **byte != b'=') {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_is_that_of_sd_notify() {
        let message = String::from_utf8(message()).expect("text");
        let lines: Vec<&str> = message.lines().collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0], "READY=1");
        assert!(lines[1].starts_with("X_LODGER=lodger "), "{message}");
        assert!(message.ends_with('\n'));
    }

    #[test]
    fn a_place_says_which_kind_of_socket_it_is() {
        let place = |text| parse(text).expect("a place");
        assert_eq!(place("vsock:2:9999"), (2, 9999, &[Kind::Packets, Kind::Stream][..]));
        assert_eq!(place("vsock-stream:2:1"), (2, 1, &[Kind::Stream][..]));
        assert_eq!(place("vsock-seqpacket:2:1"), (2, 1, &[Kind::Packets][..]));
        let kind = |text| parse(text).expect_err("no place").kind();
        assert_eq!(kind("vsock-dgram:2:1"), io::ErrorKind::Unsupported);
        assert_eq!(kind("tcp"), io::ErrorKind::Unsupported);
        assert_eq!(kind("vsock:9999"), io::ErrorKind::InvalidInput);
        assert_eq!(kind("vsock:4294967295:1"), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn the_last_word_of_the_command_line_counts() {
        let line = "quiet vmm.notify_socket=vsock:2:1 xvmm.notify_socket=no systemd.set_credential=vmm.notify_socket:vsock:2:2\n";
        assert_eq!(on_command_line(line).as_deref(), Some("vsock:2:2"));
        assert_eq!(on_command_line("vmm.notify_socket=vsock:2:1 quiet").as_deref(), Some("vsock:2:1"));
        assert_eq!(on_command_line("console=ttyS0"), None);
    }

    #[test]
    fn the_firmware_gives_a_credential_as_text_or_in_base64() {
        let text =
            b"\x0b\x05\x00\x0e\x02io.systemd.credential:a=b\0io.systemd.credential:vmm.notify_socket=vsock:2:7\0\0\x7f";
        assert_eq!(in_smbios(text).as_deref(), Some("vsock:2:7"));
        let packed = b"\x0b\x05\x00\x0e\x01io.systemd.credential.binary:vmm.notify_socket=dnNvY2s6Mjo3Cg==\0\0";
        assert_eq!(in_smbios(packed).as_deref(), Some("vsock:2:7"));
        assert_eq!(in_smbios(b"io.systemd.credential.binary:vmm.notify_socket=d!\0"), None);
        assert_eq!(in_smbios(b"io.systemd.credential:other=1\0"), None);
        for (text, bytes) in [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYg", "foob")] {
            assert_eq!(from_base64(text.as_bytes()).as_deref(), Some(bytes.as_bytes()));
        }
    }
}
