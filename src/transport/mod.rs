//! Addresses, and how they become streams.
//!
//! | address | listen | connect |
//! | --- | --- | --- |
//! | `unix:PATH[,mode=0600][,group=NAME]` | a unix socket | the same |
//! | `vsock:PORT[,cid=N]` | that port of a guest's vsock, for the host and for the guest itself; `cid=N`: for that CID alone, `cid=any`: for all | – |
//! | `vsock:CID:PORT` | – | that port of the machine with that CID |
//! | `hvsock:PATH:PORT` | – | that port of the guest behind the unix socket of Firecracker, Cloud Hypervisor or vhost-device-vsock |
//! | `serial:PATH[,baud=N][,rtscts]` | many connections over a serial line that others may print on | the same, or the unix socket of a QEMU chardev |
//! | `port:PATH` | a bare line: a virtio port, or a serial line that nothing else is written to | the same, or the unix socket of a QEMU chardev |
//! | `port:NAME` | the virtio port of that name, when no file here has it | the same |
//! | `stdio:` | the process's own stdin and stdout | – |
//! | `local:` | – | an agent of its own for this one connection |
//! | `xenstore:[PATH][,no-injectfile][,report]` | requests of the host in XenStore, which are no connections | – |
//!
//! A serial line may also be a virtio port, by its path or its name. `serve` takes the word `auto` too, which stands for all ways into a guest
//! that are there (`auto`).
//!
//! `,proto=NAME` behind any of them pins the protocol. A bare line has no connections: who opens it is the client, and one at a time.

pub mod auto;
mod hvsock;
mod local;
pub mod port;
pub mod serial;
pub mod unix;
pub mod vsock;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::str::FromStr;

use crate::link::opener::{Opener, Wishes};
use crate::stream::Stream;
use crate::sys::vsock::{CID_ANY, PORT_ANY};

/// Where the agent listens when nobody says where, and where the client looks for it.
pub const DEFAULT: &str = "unix:/run/lodger.sock";

/// Permissions of a listening socket when the address gives none: whoever may connect may run programs as the agent's user.
const SOCKET_MODE: u32 = 0o600;

#[cfg(not(feature = "openstack"))]
const SCHEMES: &str =
    "unix:PATH, vsock:PORT, vsock:CID:PORT, hvsock:PATH:PORT, serial:PATH, port:PATH, stdio: and local: are known";
#[cfg(feature = "openstack")]
const SCHEMES: &str = "unix:PATH, vsock:PORT, vsock:CID:PORT, hvsock:PATH:PORT, serial:PATH, port:PATH, xenstore:, stdio: \
                       and local: are known";

/// An address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addr {
    pub carrier: Carrier,
    /// Name of the protocol, where the first byte must not choose.
    pub protocol: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Carrier {
    Unix {
        path: PathBuf,
        mode: u32,
        group: Option<String>,
    },
    /// A port of our own, to listen on.
    Vsock {
        port: u32,
        peers: Peers,
    },
    /// A port of another machine, to connect to.
    VsockPeer {
        cid: u32,
        port: u32,
    },
    Hvsock {
        path: PathBuf,
        port: u32,
    },
    /// A path, or the name of a virtio port.
    Port {
        path: PathBuf,
    },
    Serial {
        path: PathBuf,
        settings: serial::Settings,
    },
    Stdio,
    Local,
    #[cfg(feature = "openstack")]
    XenStore(XenStore),
}

/// How requests in XenStore are served.
#[cfg(feature = "openstack")]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct XenStore {
    /// The device or the socket; the usual one for none.
    pub path: Option<PathBuf>,
    /// Whether the host may inject no files.
    pub without_injection: bool,
    /// Whether the host is told what the tools of XCP-ng and XenServer show.
    pub reports: bool,
}

impl Carrier {
    /// Whether nobody connects to it, so that a thread must serve it from the beginning.
    pub fn wants_a_thread(&self) -> bool {
        match self {
            Carrier::Port { .. } | Carrier::Serial { .. } => true,
            #[cfg(feature = "openstack")]
            Carrier::XenStore(_) => true,
            _ => false,
        }
    }
}

/// The machines that may connect to a vsock port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peers {
    /// The host, and where the kernel has a loopback the machine itself.
    HostAndLocal,
    /// This CID and no other.
    Only(u32),
    Any,
}

/// Where connections come to.
#[derive(Debug)]
pub enum Listener {
    Unix(unix::Listener),
    Vsock(vsock::Listener),
}

impl Listener {
    /// Readable when a connection waits.
    pub fn watch(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Unix(listener) => listener.watch(),
            Listener::Vsock(listener) => listener.watch(),
        }
    }

    /// The next connection; `WouldBlock` when there is none.
    pub fn accept(&self) -> io::Result<Stream> {
        match self {
            Listener::Unix(listener) => listener.accept(),
            Listener::Vsock(listener) => listener.accept(),
        }
    }
}

/// Why a text is no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadAddr(String);

impl std::error::Error for BadAddr {}

impl fmt::Display for BadAddr {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match &self.carrier {
            Carrier::Unix { path, .. } => write!(f, "unix:{}", path.display()),
            Carrier::Vsock { port, .. } => write!(f, "vsock:{port}"),
            Carrier::VsockPeer { cid, port } => write!(f, "vsock:{cid}:{port}"),
            Carrier::Hvsock { path, port } => write!(f, "hvsock:{}:{port}", path.display()),
            Carrier::Port { path } => write!(f, "port:{}", path.display()),
            Carrier::Serial { path, .. } => write!(f, "serial:{}", path.display()),
            Carrier::Stdio => f.write_str("stdio:"),
            Carrier::Local => f.write_str("local:"),
            #[cfg(feature = "openstack")]
            Carrier::XenStore(XenStore { path, .. }) => {
                write!(f, "xenstore:{}", path.as_deref().unwrap_or("".as_ref()).display())
            }
        }
    }
}

impl FromStr for Addr {
    type Err = BadAddr;

    fn from_str(text: &str) -> Result<Addr, BadAddr> {
        parse(text).map_err(|why| BadAddr(format!("address \"{text}\": {why}")))
    }
}

fn parse(text: &str) -> Result<Addr, String> {
    let (scheme, rest) = text.split_once(':').ok_or_else(|| format!("a scheme is missing ({SCHEMES})"))?;
    let mut parts = rest.split(',');
    let place = parts.next().unwrap_or_default();
    let (mut mode, mut group, mut peers, mut protocol) = (SOCKET_MODE, None, None, None);
    let mut settings = serial::Settings::default();
    #[cfg(feature = "openstack")]
    let mut store =
        XenStore { path: Some(place).filter(|path| !path.is_empty()).map(PathBuf::from), ..XenStore::default() };
    for part in parts {
        match part.split_once('=') {
            Some(("mode", octal)) if scheme == "unix" => {
                let value = u32::from_str_radix(octal, 8).ok().filter(|mode| *mode <= 0o777);
                mode = value.ok_or("mode is no octal number up to 777")?;
            }
            Some(("group", name)) if scheme == "unix" => group = Some(name.to_owned()),
            Some(("cid", "any")) if scheme == "vsock" => peers = Some(Peers::Any),
            Some(("cid", cid)) if scheme == "vsock" => peers = Some(Peers::Only(number(cid, "CID", CID_ANY)?)),
            Some(("baud", number)) if scheme == "serial" => {
                let value = number.parse().ok().filter(|baud| serial::is_known_baud(*baud));
                settings.baud = Some(value.ok_or("no UART has that baud")?);
            }
            None if scheme == "serial" && part == "rtscts" => settings.rtscts = true,
            None if scheme == "serial" && part == "quiet" => settings.quiet = true,
            #[cfg(feature = "openstack")]
            None if scheme == "xenstore" && part == "no-injectfile" => store.without_injection = true,
            #[cfg(feature = "openstack")]
            None if scheme == "xenstore" && part == "report" => store.reports = true,
            Some(("proto", name)) if scheme != "xenstore" => protocol = Some(name.to_owned()),
            _ => return Err(format!("unknown option {part}")),
        }
    }
    let with_path = |path: &str| if path.is_empty() { Err("a path is missing") } else { Ok(PathBuf::from(path)) };
    let carrier = match scheme {
        "unix" => Carrier::Unix { path: with_path(place)?, mode, group },
        "vsock" => vsock_place(place, peers)?,
        "hvsock" => {
            let (path, port) = place.rsplit_once(':').ok_or("PATH:PORT is missing")?;
            Carrier::Hvsock { path: with_path(path)?, port: number(port, "port", PORT_ANY)? }
        }
        "port" => Carrier::Port { path: with_path(place)? },
        "serial" => Carrier::Serial { path: with_path(place)?, settings },
        "stdio" | "local" if !place.is_empty() => return Err("nothing may stand behind the colon".to_owned()),
        "stdio" => Carrier::Stdio,
        "local" => Carrier::Local,
        #[cfg(feature = "openstack")]
        "xenstore" => Carrier::XenStore(store),
        _ => return Err(format!("unknown scheme ({SCHEMES})")),
    };
    Ok(Addr { carrier, protocol })
}

/// `PORT` or `CID:PORT`.
fn vsock_place(place: &str, peers: Option<Peers>) -> Result<Carrier, String> {
    let Some((cid, port)) = place.split_once(':') else {
        let port = number(place, "port", PORT_ANY)?;
        return Ok(Carrier::Vsock { port, peers: peers.unwrap_or(Peers::HostAndLocal) });
    };
    if peers.is_some() {
        return Err("cid= goes with vsock:PORT, which listens".to_owned());
    }
    Ok(Carrier::VsockPeer { cid: number(cid, "CID", CID_ANY)?, port: number(port, "port", PORT_ANY)? })
}

/// A number below the one that the kernel takes for "any".
fn number(text: &str, what: &str, any: u32) -> Result<u32, String> {
    let found = text.parse().ok().filter(|number| *number != any);
    found.ok_or_else(|| format!("\"{text}\" is no {what} (a number below {any})"))
}

/// The process's own stdin and stdout.
pub fn stdio() -> io::Result<Stream> {
    Ok(Stream::over_two(io::stdin().as_fd().try_clone_to_owned()?, io::stdout().as_fd().try_clone_to_owned()?))
}

/// Connects to an agent.
///
/// # Errors
/// `NotFound`, `ConnectionRefused` and for vsock `ConnectionReset` when nobody listens; `Unsupported` for an address that can only be
/// listened on.
pub fn connect(addr: &Addr) -> io::Result<Stream> {
    connect_with(addr, Wishes::default())
}

/// The same, with wishes that only serial lines can fulfil.
///
/// # Errors
/// `Unsupported` too for a console where there is none.
pub fn connect_with(addr: &Addr, wishes: Wishes) -> io::Result<Stream> {
    let unsupported = |why: String| Err(io::Error::new(io::ErrorKind::Unsupported, why));
    match &addr.carrier {
        Carrier::Serial { path, settings } => {
            Opener::start(serial::connect(path, settings)?, addr.to_string(), wishes)?.open()
        }
        _ if wishes.console.is_some() => unsupported(format!("{addr}: has no console; only serial lines have one")),
        Carrier::Unix { path, .. } => Ok(Stream::over_socket(unix::connect(path)?)),
        Carrier::VsockPeer { cid, port } => vsock::open(*cid, *port),
        Carrier::Hvsock { path, port } => hvsock::connect(path, *port),
        Carrier::Port { path } => port::open(path),
        Carrier::Local => local::start(),
        Carrier::Vsock { .. } => {
            unsupported(format!("{addr}: can only be listened on; vsock:CID:PORT says whose port it is"))
        }
        Carrier::Stdio => unsupported("stdio: can only be listened on".into()),
        #[cfg(feature = "openstack")]
        Carrier::XenStore(_) => unsupported(format!("{addr} can only be listened on")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_printed() {
        let addr: Addr = "unix:/run/a.sock,mode=0660,group=kvm,proto=agentproto".parse().expect("an address");
        let carrier = Carrier::Unix { path: "/run/a.sock".into(), mode: 0o660, group: Some("kvm".into()) };
        assert_eq!(addr, Addr { carrier, protocol: Some("agentproto".into()) });
        assert_eq!(addr.to_string(), "unix:/run/a.sock");
        let lines = ["port:/dev/ttyS1", "port:org.lodger.0", "serial:/dev/ttyS0"];
        let others = ["vsock:1", "vsock:3:1", "hvsock:/a:b:1", "stdio:", "local:", DEFAULT];
        for text in lines.into_iter().chain(others) {
            assert_eq!(text.parse::<Addr>().expect("an address").to_string(), text);
        }
    }

    #[test]
    fn a_vsock_address_names_one_number_to_listen_and_two_to_connect() {
        let carrier = |text: &str| text.parse::<Addr>().expect("an address").carrier;
        assert_eq!(carrier("vsock:1024"), Carrier::Vsock { port: 1024, peers: Peers::HostAndLocal });
        assert_eq!(carrier("vsock:1024,cid=7"), Carrier::Vsock { port: 1024, peers: Peers::Only(7) });
        assert_eq!(carrier("vsock:4294967294,cid=any"), Carrier::Vsock { port: u32::MAX - 1, peers: Peers::Any });
        assert_eq!(carrier("vsock:3:1024"), Carrier::VsockPeer { cid: 3, port: 1024 });
        assert_eq!(carrier("hvsock:/a:b/c:52"), Carrier::Hvsock { path: "/a:b/c".into(), port: 52 });
        assert_eq!(carrier("hvsock:vm.sock:52"), Carrier::Hvsock { path: "vm.sock".into(), port: 52 });
    }

    #[test]
    fn a_serial_line_has_its_settings() {
        let addr: Addr = "serial:/dev/ttyUSB0,baud=115200,rtscts,quiet".parse().expect("an address");
        let settings = serial::Settings { baud: Some(115_200), rtscts: true, quiet: true };
        assert_eq!(addr.carrier, Carrier::Serial { path: "/dev/ttyUSB0".into(), settings });
    }

    #[test]
    fn what_is_no_address_is_refused_with_its_reason() {
        for (text, why) in [
            ("/run/a.sock", "scheme is missing"),
            ("unix:", "path is missing"),
            ("tcp:1", "unknown scheme"),
            ("unix:/a,mode=999", "octal"),
            ("port:/a,mode=600", "unknown option"),
            ("port:/a,baud=9600", "unknown option"),
            ("serial:/a,baud=12345", "no UART has that baud"),
            ("serial:", "path is missing"),
            ("stdio:x", "nothing may stand"),
            ("vsock:", "\"\" is no port"),
            ("vsock:a", "\"a\" is no port"),
            ("vsock:-1", "\"-1\" is no port"),
            ("vsock:4294967295", "\"4294967295\" is no port (a number below 4294967295)"),
            ("vsock:4294967296", "is no port"),
            ("vsock:3:", "\"\" is no port"),
            ("vsock::1", "\"\" is no CID"),
            ("vsock:4294967295:1", "is no CID"),
            ("vsock:1:2:3", "\"2:3\" is no port"),
            ("vsock:1,cid=all", "\"all\" is no CID"),
            ("vsock:1,mode=600", "unknown option mode=600"),
            ("vsock:3:1,cid=3", "cid= goes with vsock:PORT"),
            ("hvsock:/a", "PATH:PORT is missing"),
            ("hvsock::1", "path is missing"),
            ("hvsock:/a:", "\"\" is no port"),
            ("hvsock:/a:1,cid=2", "unknown option cid=2"),
        ] {
            let error = text.parse::<Addr>().expect_err("no address").to_string();
            assert!(error.contains(text) && error.contains(why), "{error}");
        }
    }
}
