//! Commands for a running service, over a unix socket that only its user may open.
//!
//! A connection carries one command. Layout: one line of JSON and a line feed,
//! `{"do": "get" | "ls" | "kill" | "shell", "path": string, "command": [string…], "tty": bool}`, of which each command needs its part; at
//! most `LINE_MAX` bytes. The answer is frames: one byte of kind, 4 bytes big-endian length, at most `FRAME_MAX`, and so many bytes:
//!
//! | kind | what |
//! | --- | --- |
//! | `D` | data: bytes of a file, or one name of a list |
//! | `R` | forget the data before: another attempt begins |
//! | `Z` | done; the last one |
//! | `N` | the guest has no such file or folder; the last one |
//! | `E` | an error, as text; the last one |
//!
//! Behind the `Z` of a shell the connection is the guest's own, with us as the server of its WebSocket (see `shell`).

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::http::wait::Limits;
use crate::metadata::actions::Store;
use crate::metadata::service::{ArtifactError, Service};
use crate::metadata::shell::Shell;
use crate::metaservice::{object, strings};
use crate::stream::Stream;
use crate::stream::outbox::Outbox;
use crate::sys::fd::{self, PollSet};
use crate::transport::unix;

/// Bytes of a command. The kernel takes no larger argument lists than this, by far most of the time.
pub const LINE_MAX: usize = 1 << 20;

/// How long a command may take to say what it wants. It says so at once.
const LINE_PATIENCE: Duration = Duration::from_secs(5);

/// Bytes of a frame. Names in a list are as long as that at most.
pub const FRAME_MAX: usize = 1 << 20;

/// Bytes that wait in one direction of a shell.
const RELAY_BYTES: usize = 64 << 10;

/// How long one side of a shell may take its last bytes when the other one has gone.
const FAREWELL: Duration = Duration::from_secs(30);

/// So many commands at once: further ones wait.
pub struct Places {
    free: Mutex<usize>,
    freed: Condvar,
}

/// One of them, until it is dropped.
struct Place<'a>(&'a Places);

impl Places {
    pub fn new(count: usize) -> Places {
        Places { free: Mutex::new(count), freed: Condvar::new() }
    }

    fn take(&self) -> Place<'_> {
        let mut free = self.free();
        while *free == 0 {
            free = self.freed.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
        *free -= 1;
        Place(self)
    }

    fn free(&self) -> MutexGuard<'_, usize> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        *self.0.free() += 1;
        self.0.freed.notify_one();
    }
}

/// Carries out the command of one connection. All but `kill`, for which nothing may be in the way, take a place.
///
/// # Errors
/// Of the connection.
pub fn serve(service: &Service, stream: Stream, places: &Places) -> io::Result<()> {
    let mut peer = UnixStream::from(stream.input().try_clone_to_owned()?);
    let Some(line) = read_line(&mut peer)? else { return Ok(()) };
    let command = String::from_utf8(line).map_err(|error| error.to_string()).and_then(|line| object(&line));
    let command = match command {
        Ok(command) => command,
        Err(why) => return frame(&mut peer, b'E', why.as_bytes()),
    };
    let word = |name: &str| command.get(name).and_then(Value::as_str).unwrap_or_default();
    let _place = (word("do") != "kill").then(|| places.take());
    // One who goes away while it waits leaves nothing to do for the guest.
    let service = service.wishes_of(stream.input());
    match word("do") {
        "get" => {
            stream.enlarge();
            let store = Forward { peer: peer.try_clone()? };
            let result = service.get_artifact(word("path"), Box::new(store));
            finish(&mut peer, result)
        }
        "ls" => match service.list_folder(word("path")) {
            Ok(names) => {
                names.iter().try_for_each(|name| frame(&mut peer, b'D', name.as_bytes()))?;
                finish(&mut peer, Ok(()))
            }
            Err(error) => finish(&mut peer, Err(error)),
        },
        "kill" => finish(&mut peer, service.kill_process()),
        "shell" => {
            let words = match strings(&command, "command") {
                Ok(words) => words,
                Err(why) => return frame(&mut peer, b'E', why.as_bytes()),
            };
            let tty = command.get("tty") == Some(&Value::Bool(true));
            match service.open_shell(&words, tty) {
                Ok((guest, leftover)) => {
                    finish(&mut peer, Ok(()))?;
                    relay(&guest, &leftover, &stream)
                }
                Err(error) => finish(&mut peer, Err(error)),
            }
        }
        _ => frame(&mut peer, b'E', b"there is no such command"),
    }
}

fn read_line(peer: &mut UnixStream) -> io::Result<Option<Vec<u8>>> {
    let (mut line, mut block) = (Vec::new(), [0; 4 << 10]);
    let limits = Limits::default().until(Instant::now() + LINE_PATIENCE);
    loop {
        limits.wait(peer.as_fd(), fd::READ)?;
        let count = peer.read(&mut block)?;
        // What follows the line belongs to no command.
        if let Some(end) = block[..count].iter().position(|byte| *byte == b'\n') {
            line.extend_from_slice(&block[..end]);
            return Ok(Some(line));
        }
        if count == 0 || line.len() + count > LINE_MAX {
            return Ok(None);
        }
        line.extend_from_slice(&block[..count]);
    }
}

fn frame(peer: &mut UnixStream, kind: u8, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).ok().filter(|_| bytes.len() <= FRAME_MAX);
    let length = length.ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "a frame too long"))?;
    let [a, b, c, d] = length.to_be_bytes();
    let head = [kind, a, b, c, d];
    let (mut slices, mut left) = ([IoSlice::new(&head), IoSlice::new(bytes)], 5 + bytes.len());
    let mut slices = &mut slices[..];
    while left > 0 {
        match peer.write_vectored(slices) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => {
                left -= count;
                IoSlice::advance_slices(&mut slices, count);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn finish(peer: &mut UnixStream, result: Result<(), ArtifactError>) -> io::Result<()> {
    match result {
        Ok(()) => frame(peer, b'Z', b""),
        Err(ArtifactError::NotFound) => frame(peer, b'N', b""),
        Err(ArtifactError::Internal(why)) => frame(peer, b'E', why.as_bytes()),
    }
}

/// A file on its way to whoever wants it.
struct Forward {
    peer: UnixStream,
}

impl Store for Forward {
    fn begin(&mut self) -> io::Result<()> {
        frame(&mut self.peer, b'R', b"")
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        frame(&mut self.peer, b'D', bytes)
    }
}

/// Carries bytes both ways until one side has gone, and what it said last has arrived.
fn relay(guest: &Stream, leftover: &[u8], user: &Stream) -> io::Result<()> {
    guest.set_nonblocking(true)?;
    user.set_nonblocking(true)?;
    let ways = [(guest, user), (user, guest)];
    let mut waiting = [Outbox::default(), Outbox::default()];
    waiting[0].push(leftover);
    let mut gone: Option<(usize, Instant)> = None;
    let mut block = vec![0; RELAY_BYTES];
    let mut set = PollSet::default();
    loop {
        let now = Instant::now();
        if gone.is_some_and(|(way, until)| waiting[way].is_empty() || now >= until) {
            guest.end();
            user.end();
            return Ok(());
        }
        set.clear();
        let entries = [0, 1].map(|way| {
            let (from, to) = ways[way];
            let reads = gone.is_none() && waiting[way].len() < RELAY_BYTES;
            let writes = !waiting[way].is_empty();
            let read = reads.then(|| set.watch(from.input(), fd::READ));
            (read, writes.then(|| set.watch(to.output(), fd::WRITE)))
        });
        set.wait(gone.map(|(_, until)| until.saturating_duration_since(now)))?;
        for (way, (read, write)) in entries.into_iter().enumerate() {
            let (from, to) = ways[way];
            if read.is_some_and(|entry| set.ready(entry).readable) {
                match fd::read(from.input(), &mut block) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Ok(count @ 1..) => waiting[way].push(&block[..count]),
                    _ => gone = gone.or(Some((way, now + FAREWELL))),
                }
            }
            // Whoever takes nothing any more may have said something before.
            if write.is_some_and(|entry| set.ready(entry).writable) && waiting[way].write_to(to.output()).is_err() {
                waiting[way].clear();
            }
        }
    }
}

/// Somebody's connection to a running service, for one command.
pub struct Control {
    peer: UnixStream,
    slow: Option<(Duration, fn())>,
}

/// Why a command has not done what it should.
#[derive(Debug)]
pub enum Error {
    /// The guest has no such file or folder.
    NotFound,
    /// The service says why.
    Service(String),
    /// Nobody listens, or the service went before the end.
    Connection(io::Error),
    /// What came could not be kept here.
    Local(io::Error),
}

impl Control {
    /// Connects to the control socket of a service.
    ///
    /// # Errors
    /// Of connect(2); `TimedOut` when the service has stopped.
    pub fn connect(path: &Path) -> io::Result<Control> {
        Ok(Control { peer: UnixStream::from(unix::connect(path)?), slow: None })
    }

    /// Calls `tell` once when the service says nothing for this long.
    pub fn when_slow(self, patience: Duration, tell: fn()) -> Control {
        Control { slow: Some((patience, tell)), ..self }
    }

    /// Fetches a file.
    ///
    /// # Errors
    /// All there are.
    pub fn get(mut self, path: &str, into: &mut dyn Store) -> Result<(), Error> {
        self.ask(&format!(r#"{{"do":"get","path":{}}}"#, Value::from(path)))?;
        let mut buffer = Vec::new();
        loop {
            match self.frame_in(&mut buffer)? {
                (b'R', _) => into.begin().map_err(Error::Local)?,
                (b'D', bytes) => into.append(bytes).map_err(Error::Local)?,
                (kind, bytes) => return end(kind, bytes),
            }
        }
    }

    /// Lists the files below a folder.
    ///
    /// # Errors
    /// All but `Local`.
    pub fn list(mut self, path: &str) -> Result<Vec<String>, Error> {
        self.ask(&format!(r#"{{"do":"ls","path":{}}}"#, Value::from(path)))?;
        let mut names = Vec::new();
        loop {
            match self.frame()? {
                (b'D', name) => names.push(String::from_utf8_lossy(&name).into_owned()),
                (kind, bytes) => return end(kind, &bytes).map(|()| names),
            }
        }
    }

    /// Asks for the task's command to be killed.
    ///
    /// # Errors
    /// `Service`, `Connection`.
    pub fn kill(mut self) -> Result<(), Error> {
        self.ask(r#"{"do":"kill"}"#)?;
        let (kind, bytes) = self.frame()?;
        end(kind, &bytes)
    }

    /// Opens a shell; no words: the guest's default one.
    ///
    /// # Errors
    /// `Service`, `Connection`.
    pub fn shell(mut self, words: &[String], tty: bool) -> Result<Shell, Error> {
        let line = format!(r#"{{"do":"shell","command":{},"tty":{tty}}}"#, Value::from(words));
        if line.len() > LINE_MAX {
            return Err(Error::Service(format!("the command has {} bytes, and {LINE_MAX} is the limit", line.len())));
        }
        self.ask(&line)?;
        let (kind, bytes) = self.frame()?;
        end(kind, &bytes)?;
        Shell::over(Stream::over(OwnedFd::from(self.peer)), Vec::new()).map_err(Error::Connection)
    }

    fn ask(&mut self, line: &str) -> Result<(), Error> {
        let sent = self.peer.write_all(line.as_bytes()).and_then(|()| self.peer.write_all(b"\n"));
        sent.map_err(Error::Connection)
    }

    fn frame(&mut self) -> Result<(u8, Vec<u8>), Error> {
        let mut buffer = Vec::new();
        let (kind, bytes) = self.frame_in(&mut buffer)?;
        Ok((kind, bytes.to_vec()))
    }

    /// The same in a buffer that only grows, so that frames of all sizes find it without clearing it.
    fn frame_in<'a>(&mut self, buffer: &'a mut Vec<u8>) -> Result<(u8, &'a [u8]), Error> {
        if let Some((patience, tell)) = self.slow
            && fd::wait_for(self.peer.as_fd(), fd::READ, Some(patience)).is_ok_and(|ready| !ready.readable)
        {
            self.slow = None;
            tell();
        }
        let mut head = [0; 5];
        self.peer.read_exact(&mut head).map_err(Error::Connection)?;
        let [kind, a, b, c, d] = head;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length > FRAME_MAX {
            return Err(Error::Connection(ErrorKind::InvalidData.into()));
        }
        if buffer.len() < length {
            buffer.resize(length, 0);
        }
        let bytes = &mut buffer[..length];
        self.peer.read_exact(bytes).map_err(Error::Connection)?;
        if kind == b'D' {
            // The guest is there.
            self.slow = None;
        }
        Ok((kind, bytes))
    }
}

fn end(kind: u8, bytes: &[u8]) -> Result<(), Error> {
    match kind {
        b'Z' => Ok(()),
        b'N' => Err(Error::NotFound),
        b'E' => Err(Error::Service(String::from_utf8_lossy(bytes).into_owned())),
        _ => Err(Error::Connection(ErrorKind::InvalidData.into())),
    }
}
