//! A blocking client of XenStore: one request at a time, and the events that come meanwhile.

use std::env;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::sys::errno::describe;
use crate::sys::fd;
use crate::sys::file::{self, O_NONBLOCK, O_RDWR};
use crate::sys::unix;
use crate::xenstore::message::{
    DIRECTORY, ERROR, HEADER, MKDIR, Message, PAYLOAD_MAX, READ, RM, WATCH, WATCH_EVENT, WRITE, texts,
};

/// Where Linux has it in a guest, and where older kernels with xenfs have it.
const DEVICES: [&str; 2] = ["/dev/xen/xenbus", "/proc/xen/xenbus"];

/// Where daemons have their socket, in the host, which is their only way in there.
const SOCKETS: [&str; 2] = ["/var/run/xenstored/socket", "/run/xenstored/socket"];

/// The variable that says where it is, as the other clients of it have it.
const PATH: &str = "XENSTORED_PATH";

/// How long a daemon may take to answer. It answers at once; while it is started anew, or a guest is moved, nobody does.
const ANSWER: Duration = Duration::from_secs(10);

/// Reads in one go, each of some 100 events: so many that the next look is better done now than when it is quiet.
const READS_MAX: usize = 64;

/// Why a request has no result.
#[derive(Debug)]
pub enum Error {
    /// The connection is of no use any more.
    Lost(io::Error),
    /// The name of the errno that the store gives. Newer ones may not be in any table.
    Refused(String),
}

impl Error {
    pub fn is(&self, name: &str) -> bool {
        matches!(self, Error::Refused(found) if found == name)
    }

    /// Whether there is no room: for a value, among the children of a node, or for more nodes of this guest.
    pub fn is_full(&self) -> bool {
        ["ENOSPC", "E2BIG", "EQUOTA"].iter().any(|name| self.is(name))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Error::Lost(error) => write!(f, "xenstore: {}", describe(error)),
            Error::Refused(name) => write!(f, "xenstore: {name}"),
        }
    }
}

impl std::error::Error for Error {}

/// A connection. Paths without a slash at their beginning are those below this guest's own directory.
#[derive(Debug)]
pub struct Client {
    line: OwnedFd,
    /// How long an answer may take.
    patience: Duration,
    last_id: u32,
    /// What has come and is no whole message yet: less than the longest one, and one read.
    input: Vec<u8>,
    /// A watched path may have changed.
    changed: bool,
}

/// Where the store is on this machine. The device first: what is a socket there may be another's.
pub fn place() -> Option<PathBuf> {
    let named = env::var_os(PATH).map(PathBuf::from);
    let exists = |path: &PathBuf| path.exists();
    named.or_else(|| DEVICES.iter().chain(&SOCKETS).map(PathBuf::from).find(exists))
}

impl Client {
    /// Connects to a device or a unix socket.
    ///
    /// # Errors
    /// `NotFound` when it is not there. Linux's device is there without a store, too, and then has the same error. `InvalidInput` for
    /// anything else, which is not touched: a request must not become the content of a file.
    pub fn open(path: &Path) -> io::Result<Client> {
        let kind = fs::metadata(path)?.file_type();
        let line = match () {
            () if kind.is_socket() => unix::connect(path)?,
            () if kind.is_char_device() => file::open(path, O_RDWR | O_NONBLOCK, 0)?.into(),
            () => return Err(io::Error::new(io::ErrorKind::InvalidInput, "is no device and no socket")),
        };
        fd::set_nonblocking(line.as_fd(), true)?;
        Ok(Client { line, patience: ANSWER, last_id: 0, input: Vec::new(), changed: false })
    }

    /// The same, which waits so long for an answer and not 10 s.
    pub fn with_patience(self, patience: Duration) -> Client {
        Client { patience, ..self }
    }

    /// Readable when something has come. Then `has_changed` tells what it means.
    pub fn watch_fd(&self) -> BorrowedFd<'_> {
        self.line.as_fd()
    }

    /// The names below a node.
    ///
    /// # Errors
    /// `ENOENT` when there is no such node.
    pub fn list(&mut self, path: &str) -> Result<Vec<String>, Error> {
        self.ask(DIRECTORY, path, b"").map(|payload| texts(&payload))
    }

    /// The value of a node: any bytes.
    ///
    /// # Errors
    /// `ENOENT` when there is no such node.
    pub fn read(&mut self, path: &str) -> Result<Vec<u8>, Error> {
        self.ask(READ, path, b"")
    }

    /// The same, and nothing where there is no such node.
    ///
    /// # Errors
    /// All others.
    pub fn read_if_there(&mut self, path: &str) -> Result<Option<Vec<u8>>, Error> {
        match self.read(path) {
            Err(error) if error.is("ENOENT") => Ok(None),
            result => result.map(Some),
        }
    }

    /// Writes a value; nodes above it are made.
    ///
    /// # Errors
    /// `ENOSPC`, `E2BIG` or `EQUOTA` when there is no room for it.
    pub fn write(&mut self, path: &str, value: &[u8]) -> Result<(), Error> {
        self.ask(WRITE, path, value).map(drop)
    }

    /// Makes a node, if it is not there.
    ///
    /// # Errors
    /// `EACCES` where this guest may not.
    pub fn make_directory(&mut self, path: &str) -> Result<(), Error> {
        self.ask(MKDIR, path, b"").map(drop)
    }

    /// Removes a node and all below it. One that is not there is no error, if the node above it is.
    ///
    /// # Errors
    /// `EACCES` where this guest may not.
    pub fn remove(&mut self, path: &str) -> Result<(), Error> {
        self.ask(RM, path, b"").map(drop)
    }

    /// From now on a change of this node, or of any below it, makes `has_changed` true; and so does this itself.
    ///
    /// # Errors
    /// `EEXIST` for a second time.
    pub fn watch(&mut self, path: &str) -> Result<(), Error> {
        self.ask(WATCH, path, b"lodger\0").map(drop)
    }

    /// Takes what has come, without waiting; when it comes faster than it is taken, a part of it. Whether anything that is watched may have changed since the last call.
    ///
    /// # Errors
    /// `Lost`, when the connection has ended or what came is no message.
    pub fn has_changed(&mut self) -> Result<bool, Error> {
        for reads in 0..=READS_MAX {
            // What came behind the last answer was read with it.
            while let Some(message) = self.next()? {
                if message.kind != WATCH_EVENT {
                    log::debug!("xenstore: an answer of type {} that nobody waits for", message.kind);
                }
            }
            if reads == READS_MAX || !self.receive().map_err(Error::Lost)? {
                break;
            }
        }
        Ok(std::mem::take(&mut self.changed))
    }

    /// One request, and its answer.
    fn ask(&mut self, kind: u32, path: &str, rest: &[u8]) -> Result<Vec<u8>, Error> {
        if path.contains('\0') {
            return Err(Error::Refused("EINVAL".to_owned()));
        }
        // 0 is the id of events, and of what old kernels answer to a watch.
        self.last_id = self.last_id.checked_add(1).unwrap_or(1);
        let message = Message::of(kind, self.last_id, &[path.as_bytes(), b"\0", rest]);
        // The daemon would never serve this guest again.
        let message = message.ok_or_else(|| Error::Refused("E2BIG".to_owned()))?;
        let deadline = Instant::now() + self.patience;
        self.send(&message, deadline)?;
        loop {
            while let Some(message) = self.next()? {
                let is_ours = message.request_id == self.last_id || kind == WATCH && message.request_id == 0;
                match message.kind {
                    ERROR if is_ours => {
                        return Err(Error::Refused(texts(&message.payload).pop().unwrap_or_default()));
                    }
                    found if found == kind && is_ours => return Ok(message.payload),
                    WATCH_EVENT => {}
                    other => log::debug!("xenstore: an answer of type {other} that nobody waits for"),
                }
            }
            self.wait(fd::READ, deadline)?;
            self.receive().map_err(Error::Lost)?;
        }
    }

    /// The next whole message of those that have come. An event is noted.
    fn next(&mut self) -> Result<Option<Message>, Error> {
        let wrong = |why: String| Error::Lost(io::Error::new(io::ErrorKind::InvalidData, why));
        let message = Message::decode(&mut self.input).map_err(wrong)?;
        self.changed |= message.as_ref().is_some_and(|message| message.kind == WATCH_EVENT);
        Ok(message)
    }

    /// A write must not run past the end of its message, so each is one of its own.
    fn send(&mut self, message: &Message, deadline: Instant) -> Result<(), Error> {
        let bytes = message.encode();
        let mut sent = 0;
        while sent < bytes.len() {
            match fd::write(self.line.as_fd(), &bytes[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(fd::WRITE, deadline)?,
                // Linux's device does a watch itself, and refuses it here.
                Err(error) if message.kind == WATCH && !is_end(&error) => return Err(Error::Refused(describe(&error))),
                Err(error) => return Err(Error::Lost(error)),
            }
        }
        Ok(())
    }

    fn wait(&self, events: i16, deadline: Instant) -> Result<(), Error> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::Lost(io::Error::new(io::ErrorKind::TimedOut, "no answer")));
        }
        fd::wait_for(self.line.as_fd(), events, Some(left)).map(drop).map_err(Error::Lost)
    }

    /// Reads once what is there, never 0 bytes: on the device that would wait for ever. False: there is nothing now.
    fn receive(&mut self) -> io::Result<bool> {
        match fd::read_append(self.line.as_fd(), &mut self.input, HEADER + PAYLOAD_MAX) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Whether the other side of a socket has gone.
fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
    matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected)
}
