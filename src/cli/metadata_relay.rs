//! `metadata relay`: one connection between our stdin and stdout and a unix socket, for QEMU's `guestfwd`.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use lexopt::{Arg, Parser};

use crate::cli::{Failure, no_more};
use crate::sys::{errno, fd};
use crate::transport::unix;

/// Bytes that are under way in one direction at most.
const BLOCK: usize = 64 << 10;

/// How long the guest may still send when the service has ended its side. It does so to close in order, and nobody wants what comes.
const FAREWELL: Duration = Duration::from_secs(5);

pub fn relay(parser: Parser) -> Result<ExitCode, Failure> {
    run(parser)
        .map_err(|failure| if stderr_is_the_guests() { Failure { text: String::new(), ..failure } } else { failure })
}

/// libslirp makes one socket all three of our streams: words on stderr would be a part of what the service says.
fn stderr_is_the_guests() -> bool {
    let name = |number: u32| fs::read_link(format!("/proc/self/fd/{number}")).ok();
    let stderr = name(2);
    stderr.as_ref().is_some_and(|file| file.as_os_str().as_bytes().starts_with(b"socket:")) && stderr == name(1)
}

fn run(mut parser: Parser) -> Result<ExitCode, Failure> {
    let address = match parser.next()? {
        Some(Arg::Value(address)) => address,
        Some(other) => return Err(other.unexpected().into()),
        None => return Err(Failure::new("relay wants unix:PATH")),
    };
    no_more(&mut parser)?;
    let path = address.as_bytes().strip_prefix(b"unix:").filter(|path| !path.is_empty());
    let path = path.map(|path| Path::new(OsStr::from_bytes(path)));
    let path = path.ok_or_else(|| Failure::new(format!("relay {}: unix:PATH wanted", address.to_string_lossy())))?;
    let about = |error| Failure::new(format!("relay to {}: {}", path.display(), errno::describe(&error)));
    let socket = Arc::new(unix::connect(path).map_err(about)?);
    let (ended, alive) = fd::pipe().map_err(about)?;
    let to_service = Arc::clone(&socket);
    let up = move || {
        let stdin = io::stdin();
        if copy(stdin.as_fd(), to_service.as_fd()).is_err() {
            // The service does not listen any more, and may have said why: its words get through when nothing of the guest's is left unread.
            let _ = drain(stdin.as_fd());
        }
        drop(alive);
    };
    thread::Builder::new().spawn(up).map_err(about)?;
    // A guest that takes no more has gone: then the whole connection ends, with this process.
    copy(socket.as_fd(), io::stdout().as_fd()).map_err(about)?;
    let _ = fd::wait_for(ended.as_fd(), fd::READ, Some(FAREWELL));
    Ok(ExitCode::SUCCESS)
}

/// Copies to the end of the file, and passes that on where it can be.
fn copy(from: BorrowedFd, to: BorrowedFd) -> io::Result<()> {
    let mut block = vec![0; BLOCK];
    loop {
        let count = fd::read(from, &mut block)?;
        if count == 0 {
            // No socket: the end of this process is the end of the file.
            let _ = fd::shutdown_write(to);
            return Ok(());
        }
        let mut rest = &block[..count];
        while !rest.is_empty() {
            rest = &rest[fd::write(to, rest)?..];
        }
    }
}

fn drain(from: BorrowedFd) -> io::Result<()> {
    let mut block = vec![0; BLOCK];
    while fd::read(from, &mut block)? > 0 {}
    Ok(())
}
