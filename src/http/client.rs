//! Where a service is, and requests to it over one connection that is kept.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::str::FromStr;

use crate::http::connection::Connection;
use crate::http::head::Request;
use crate::http::refused;
use crate::http::wait::Limits;
use crate::stream::Stream;
use crate::sys::{fd, tcp, unix};

/// The port of an address that names none.
const PORT: u16 = 80;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Network(SocketAddr),
    Unix(PathBuf),
}

/// Where a service is: `IPv4[:PORT]`, `[IPv6][:PORT]` or `unix:PATH`. Names are not looked up: a guest that has almost nothing has no
/// resolver either.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    host: String,
    place: Place,
}

impl FromStr for Address {
    type Err = io::Error;

    /// Reads an address; `InvalidInput` for what is none.
    fn from_str(text: &str) -> io::Result<Address> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Address { host: "localhost".to_owned(), place: Place::Unix(PathBuf::from(path)) });
        }
        let v6 = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok();
        let alone = || {
            let v4 = text.parse::<Ipv4Addr>().ok().map(|ip| SocketAddr::from((ip, PORT)));
            v4.or_else(|| Some(SocketAddr::from((v6()?, PORT))))
        };
        let found = text.parse::<SocketAddr>().ok().or_else(alone).filter(|address| address.port() != 0);
        let address = found.ok_or_else(|| refused("no address (IP, IP:PORT or unix:PATH, with IPv6 in brackets)"))?;
        Ok(Address { host: text.to_owned(), place: Place::Network(address) })
    }
}

impl Address {
    /// What the header `Host` says.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// A new connection to it.
    ///
    /// # Errors
    /// `ConnectionRefused` and other errors of connect(2); those of `limits`.
    pub fn connect(&self, limits: Limits) -> io::Result<Connection> {
        let socket = match &self.place {
            Place::Unix(path) => unix::connect(path)?,
            Place::Network(address) => {
                let (socket, is_done) = tcp::connect(address)?;
                if !is_done {
                    limits.wait(socket.as_fd(), fd::WRITE)?;
                    fd::take_error(socket.as_fd())?;
                }
                socket
            }
        };
        Connection::over(Stream::over(socket))
    }
}

/// Makes requests one after the other.
#[derive(Debug)]
pub struct Client {
    address: Address,
    kept: Option<Connection>,
}

impl Client {
    /// One that connects when it is needed.
    pub fn new(address: Address) -> Client {
        Client { address, kept: None }
    }

    /// Makes a request and gives the status and the body of its response. The headers for the host and the body's length are added. When a
    /// connection that was kept turns out to be dead before a byte of the response, the request is made once more on a new one.
    ///
    /// # Errors
    /// `InvalidData` for what is no response, or one with more than `max_response` bytes of body; `UnexpectedEof` for one that breaks off;
    /// those of `Address::connect`, of the connection and of `limits`.
    pub fn request(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        max_response: usize,
        limits: Limits,
    ) -> io::Result<(u16, Vec<u8>)> {
        let mut request = Request::new(method, target).with("Host", &self.address.host);
        headers.iter().for_each(|(name, value)| request.headers.push(name, value));
        if !body.is_empty() || matches!(method, "POST" | "PUT") {
            request.headers.push("Content-Length", &body.len().to_string());
        }
        if let Some(mut kept) = self.kept.take().filter(Connection::is_reusable) {
            let result = exchange(&mut kept, &request, body, max_response, limits);
            let was_dead = !kept.has_heard() && result.as_ref().is_err_and(has_closed);
            if !was_dead {
                return self.keep(kept, result);
            }
        }
        let mut connection = self.address.connect(limits)?;
        let result = exchange(&mut connection, &request, body, max_response, limits);
        self.keep(connection, result)
    }

    fn keep<T>(&mut self, connection: Connection, result: io::Result<T>) -> io::Result<T> {
        self.kept = result.is_ok().then_some(connection);
        result
    }
}

fn exchange(
    connection: &mut Connection,
    request: &Request,
    body: &[u8],
    max_response: usize,
    limits: Limits,
) -> io::Result<(u16, Vec<u8>)> {
    let sent = match connection.send(request, body, limits) {
        Err(error) if !has_closed(&error) => return Err(error),
        sent => sent,
    };
    // A server that wants no more of the body may have said why before it closed.
    let response = connection.response(limits).or_else(|error| sent.and(Err(error)))?;
    let mut body = connection.body();
    Ok((response.status, connection.body_within(&mut body, max_response, limits)?))
}

/// Whether an error means that the peer has closed the connection.
fn has_closed(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_numbers_with_80_as_their_port_or_paths() {
        for (text, expected) in [
            ("169.254.169.254", "169.254.169.254:80"),
            ("127.0.0.1:8080", "127.0.0.1:8080"),
            ("127.0.0.1:65535", "127.0.0.1:65535"),
            ("[::1]", "[::1]:80"),
            ("[fe80::1]:81", "[fe80::1]:81"),
        ] {
            let address: Address = text.parse().expect(text);
            assert_eq!(address.host(), text);
            assert_eq!(address.place, Place::Network(expected.parse().expect("an address")));
        }
        let unix: Address = "unix:/run/a b".parse().expect("a path");
        assert_eq!((unix.host(), &unix.place), ("localhost", &Place::Unix("/run/a b".into())));
        for wrong in [
            "",
            "taskcluster",
            "::1",
            "1.2.3",
            "1.2.3.4:",
            "1.2.3.4:0",
            "1.2.3.4:65536",
            "[::1",
            "[1.2.3.4]",
            "unix:",
            "1.2.3.4:80/x",
            "http://1.2.3.4",
        ] {
            assert_eq!(wrong.parse::<Address>().expect_err(wrong).kind(), ErrorKind::InvalidInput);
        }
    }
}
