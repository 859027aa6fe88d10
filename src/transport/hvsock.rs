//! The unix socket by which Firecracker, Cloud Hypervisor and vhost-device-vsock lead a host into the vsock of one guest.
//!
//! ```text
//! host -> monitor    "CONNECT 1024\n"          the guest's port, in decimal digits
//! monitor -> host    "OK 1073741824\n"         the host's port, which nobody needs; from here on the bytes are the guest's
//! ```
//! A monitor that cannot connect closes the socket without a word. The guest may speak first, so the byte behind the answer's end is not ours.
//! Source: Firecracker, docs/vsock.md; rust-vmm, vhost-device-vsock.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::stream::Stream;
use crate::sys::fd;

/// How long the guest may take to accept, and the monitor to say so.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longest answer, in bytes with its line feed: "OK 4294967295\n" has 14.
const ANSWER_MAX: usize = 32;

/// Connects to a port of the guest behind the socket.
///
/// # Errors
/// `NotFound` and `ConnectionRefused` for the socket itself, and `ConnectionRefused` when nobody listens on that port of the guest;
/// `TimedOut` when nothing is answered; `InvalidData` for an answer that is not understood.
pub fn connect(path: &Path, port: u32) -> io::Result<Stream> {
    connect_within(path, port, PATIENCE)
}

fn connect_within(path: &Path, port: u32, patience: Duration) -> io::Result<Stream> {
    let deadline = Instant::now() + patience;
    let socket = UnixStream::connect(path)?;
    ask(socket.as_fd(), port, deadline)?;
    Ok(Stream::over_socket(socket))
}

/// Asks for a port of the guest, on a new connection to the monitor.
fn ask(socket: BorrowedFd, port: u32, deadline: Instant) -> io::Result<()> {
    // As much as this always fits into the buffer of a new socket.
    match fd::send_now(socket, format!("CONNECT {port}\n").as_bytes()) {
        // A monitor that has no guest yet does not even read.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(hung_up(b"", port)),
        sent => sent?,
    };
    let answer = read_answer(socket, port, deadline)?;
    let digits = answer.strip_prefix(b"OK ").unwrap_or_default();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(not_understood(&answer));
    }
    Ok(())
}

/// The answer without its line feed. It is read byte by byte: what comes behind it is the guest's.
fn read_answer(socket: BorrowedFd, port: u32, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut answer = Vec::with_capacity(ANSWER_MAX);
    while answer.len() < ANSWER_MAX {
        let left = deadline.saturating_duration_since(Instant::now());
        if !fd::wait_for(socket, fd::READ, Some(left))?.readable {
            if left.is_zero() {
                let text = format!("the monitor does not answer for port {port}");
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            continue;
        }
        let mut byte = [0];
        match fd::read(socket, &mut byte) {
            Ok(1) if byte == *b"\n" => return Ok(answer),
            Ok(1) => answer.push(byte[0]),
            Ok(_) => return Err(hung_up(&answer, port)),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(hung_up(&answer, port)),
            Err(error) => return Err(error),
        }
    }
    Err(not_understood(&answer))
}

fn hung_up(answer: &[u8], port: u32) -> io::Error {
    if !answer.is_empty() {
        return not_understood(answer);
    }
    let text = format!("the monitor hung up: nobody listens on port {port} of the guest");
    io::Error::new(io::ErrorKind::ConnectionRefused, text)
}

fn not_understood(answer: &[u8]) -> io::Error {
    let text = format!("the monitor answered \"{}\" and not OK", answer.escape_ascii());
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::os::unix::net::UnixListener;

    #[test]
    fn a_silent_monitor_is_given_up() {
        let path = std::env::temp_dir().join(format!("lodger-hvsock-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let _listener = UnixListener::bind(&path).expect("a socket");
        let error = connect_within(&path, 7, Duration::from_millis(50)).expect_err("no answer");
        let _ = std::fs::remove_file(&path);
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().contains("port 7"), "{error}");
    }

    #[test]
    fn a_monitor_that_hangs_up_before_it_was_asked_refuses() {
        let (socket, monitor) = UnixStream::pair().expect("sockets");
        drop(monitor);
        let error = ask(socket.as_fd(), 7, Instant::now() + Duration::from_secs(1)).expect_err("nobody");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(error.to_string().contains("port 7"), "{error}");
    }
}
