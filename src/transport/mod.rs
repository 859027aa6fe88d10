//! Addresses, and how they become streams.
//!
//! | address | listen | connect |
//! | --- | --- | --- |
//! | `unix:PATH[,mode=0600][,group=NAME]` | a unix socket | the same |
//! | `port:PATH` | a bare line: a virtio port, or a serial line that nothing else is written to | the same, or the unix socket of a QEMU chardev |
//! | `port:NAME` | the virtio port of that name, which has no slash | the same |
//! | `stdio:` | the process's own stdin and stdout | – |
//! | `local:` | – | an agent of its own for this one connection |
//!
//! `,proto=NAME` behind any of them pins the protocol. A bare line has no connections: who opens it is the client, and one at a time.

mod local;
pub mod port;
pub mod unix;

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;

use crate::stream::Stream;

/// Where the agent listens when nobody says where, and where the client looks for it.
pub const DEFAULT: &str = "unix:/run/lodger.sock";

/// Permissions of a listening socket when the address gives none: whoever may connect may run programs as the agent's user.
const SOCKET_MODE: u32 = 0o600;

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
    /// A path, or the name of a virtio port, which has no slash.
    Port {
        path: PathBuf,
    },
    Stdio,
    Local,
}

/// Why a text is no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadAddr(String);

impl fmt::Display for BadAddr {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match &self.carrier {
            Carrier::Unix { path, .. } => write!(f, "unix:{}", path.display()),
            Carrier::Port { path } => write!(f, "port:{}", path.display()),
            Carrier::Stdio => f.write_str("stdio:"),
            Carrier::Local => f.write_str("local:"),
        }
    }
}

impl FromStr for Addr {
    type Err = BadAddr;

    fn from_str(text: &str) -> Result<Addr, BadAddr> {
        let bad = |why: &str| BadAddr(format!("address \"{text}\": {why}"));
        let Some((scheme, rest)) = text.split_once(':') else {
            return Err(bad("a scheme is missing (unix:PATH, port:PATH, stdio: or local:)"));
        };
        let mut parts = rest.split(',');
        let path = parts.next().unwrap_or_default();
        let (mut mode, mut group, mut protocol) = (SOCKET_MODE, None, None);
        for part in parts {
            match part.split_once('=') {
                Some(("mode", octal)) if scheme == "unix" => {
                    let value = u32::from_str_radix(octal, 8).ok().filter(|mode| *mode <= 0o777);
                    mode = value.ok_or_else(|| bad("mode is no octal number up to 777"))?;
                }
                Some(("group", name)) if scheme == "unix" => group = Some(name.to_owned()),
                Some(("proto", name)) => protocol = Some(name.to_owned()),
                _ => return Err(bad(&format!("unknown option {part}"))),
            }
        }
        let with_path = || if path.is_empty() { Err(bad("a path is missing")) } else { Ok(PathBuf::from(path)) };
        let carrier = match scheme {
            "unix" => Carrier::Unix { path: with_path()?, mode, group },
            "port" => Carrier::Port { path: with_path()? },
            "stdio" | "local" if !path.is_empty() => return Err(bad("nothing may stand behind the colon")),
            "stdio" => Carrier::Stdio,
            "local" => Carrier::Local,
            _ => return Err(bad("unknown scheme (unix:PATH, port:PATH, stdio: and local: are known)")),
        };
        Ok(Addr { carrier, protocol })
    }
}

/// The process's own stdin and stdout.
pub fn stdio() -> io::Result<Stream> {
    Ok(Stream::over_two(io::stdin().as_fd().try_clone_to_owned()?, io::stdout().as_fd().try_clone_to_owned()?))
}

/// Connects to an agent.
///
/// # Errors
/// `NotFound` and `ConnectionRefused` when nobody listens; `Unsupported` for an address that can only be listened on.
pub fn connect(addr: &Addr) -> io::Result<Stream> {
    match &addr.carrier {
        Carrier::Unix { path, .. } => Ok(Stream::over_socket(UnixStream::connect(path)?)),
        Carrier::Port { path } => port::open(path),
        Carrier::Local => local::start(),
        Carrier::Stdio => Err(io::Error::new(io::ErrorKind::Unsupported, "stdio: can only be listened on")),
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
        for text in ["port:/dev/ttyS1", "port:org.lodger.0", "stdio:", "local:", DEFAULT] {
            assert_eq!(text.parse::<Addr>().expect("an address").to_string(), text);
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_its_reason() {
        for (text, why) in [
            ("/run/a.sock", "scheme is missing"),
            ("unix:", "path is missing"),
            ("tcp:1", "unknown scheme"),
            ("unix:/a,mode=999", "octal"),
            ("port:/a,mode=600", "unknown option"),
            ("stdio:x", "nothing may stand"),
        ] {
            let error = text.parse::<Addr>().expect_err("no address").to_string();
            assert!(error.contains(text) && error.contains(why), "{error}");
        }
    }
}
