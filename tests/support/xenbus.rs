//! What Linux does behind /dev/xen/xenbus: a guest's ring page and event channel, offered as a unix socket. The ring is a file that the daemon
//! maps; reading and writing a file are coherent with that.
#![allow(dead_code)] // Each test file uses its own part of this.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use lodger::sys::fd::{self, PollSet};
use lodger::xenstore::message::{HEADER, Message};

use crate::support::{PATIENCE, wait_until};
use crate::xenstore::{DOMAIN, Daemon};

/// The halves of the ring, and where their indices are: consumer and producer of requests, then of responses.
const HALF: u32 = 1024;
const REQUESTS_TAKEN: u64 = 2048;
const REQUESTS_MADE: u64 = 2052;
const RESPONSES_TAKEN: u64 = 2056;
const RESPONSES_MADE: u64 = 2060;

/// The first port; domains count from there.
const PORTS: u32 = 100;

/// What the kernel sends first, so that nothing of the last user is left, and the id that we give it.
const RESET_WATCHES: u32 = 21;
const RESET_ID: u32 = 0xffff_fff0;

/// Bytes of the longest message that Linux's device takes.
const DEVICE_MAX: usize = 4096;

/// One message that the guest has sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub kind: u32,
    pub path: String,
}

#[derive(Default)]
struct Shared {
    asked: Vec<Asked>,
    /// A message of this type is not passed on, nor are those behind it.
    gate: Option<u32>,
    /// One waits at the gate.
    is_held: bool,
    /// The client is to be hung up on.
    hangs_up: bool,
    /// What the device would have refused.
    broken: Option<String>,
}

/// A guest's way to the store, which one client at a time can use.
pub struct Bus {
    pub socket: PathBuf,
    shared: Arc<Mutex<Shared>>,
    /// Closed, it ends the thread.
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Bus {
    /// Makes the ring and what a toolstack makes, and introduces the guest.
    pub fn start(daemon: &Daemon) -> Bus {
        let folder = &daemon.folder.0;
        let ring_path = folder.join(format!("dom{DOMAIN}.ring"));
        let _ = fs::remove_file(&ring_path);
        fs::write(&ring_path, [0; 4096]).expect("a ring");
        let ring = File::options().read(true).write(true).open(&ring_path).expect("a ring");
        let events = folder.join(format!("dom{DOMAIN}.evt"));
        let socket = folder.join("guest");
        for old in [&events, &socket] {
            let _ = fs::remove_file(old);
        }
        let events = UnixDatagram::bind(&events).expect("a socket");
        events.set_nonblocking(true).expect("a mode");
        daemon.introduce();
        let listener = UnixListener::bind(&socket).expect("a socket");
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (ended, stop) = fd::pipe().expect("a pipe");
        let line = Line {
            ring,
            events,
            daemon: folder.join("evtchn.sock"),
            kick: UnixDatagram::unbound().expect("a socket"),
            listener,
            client: None,
            from_client: Vec::new(),
            to_ring: Vec::new(),
            from_ring: Vec::new(),
            resetting: false,
            shared: Arc::clone(&shared),
        };
        let thread = std::thread::spawn(move || line.run(&ended));
        Bus { socket, shared, stop: Some(stop), thread: Some(thread) }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().expect("nobody panicked")
    }

    /// What the guest has sent since the last call.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.shared().asked)
    }

    /// How many messages it has sent since then.
    pub fn asked_count(&self) -> usize {
        self.shared().asked.len()
    }

    /// Lets no message of this type through, nor those behind it, until `open_gate`.
    pub fn close_gate(&self, kind: u32) {
        self.shared().gate = Some(kind);
    }

    /// Waits until a message waits at the gate.
    pub fn wait_at_gate(&self) {
        wait_until("a message is at the gate", || self.shared().is_held);
    }

    pub fn open_gate(&self) {
        let mut shared = self.shared();
        (shared.gate, shared.is_held) = (None, false);
    }

    /// Ends the client's connection, as no device does.
    pub fn hang_up(&self) {
        self.shared().hangs_up = true;
    }

    /// What the device would have refused, if anything.
    pub fn broken(&self) -> Option<String> {
        self.shared().broken.clone()
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = fs::remove_file(&self.socket);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the thread has.
struct Line {
    ring: File,
    events: UnixDatagram,
    daemon: PathBuf,
    kick: UnixDatagram,
    listener: UnixListener,
    client: Option<UnixStream>,
    from_client: Vec<u8>,
    to_ring: Vec<u8>,
    from_ring: Vec<u8>,
    /// What comes is for the client before this one.
    resetting: bool,
    shared: Arc<Mutex<Shared>>,
}

impl Line {
    fn run(mut self, stop: &OwnedFd) {
        loop {
            let mut set = PollSet::default();
            set.watch(stop.as_fd(), fd::READ);
            set.watch(self.events.as_fd(), fd::READ);
            let from = self.client.as_ref().map_or(self.listener.as_fd(), AsFd::as_fd);
            set.watch(from, fd::READ);
            let is_waiting = !self.to_ring.is_empty() || !self.from_client.is_empty();
            let time = Duration::from_millis(if is_waiting { 2 } else { 100 });
            set.wait(Some(time)).expect("poll");
            if set.ready(0).hung_up {
                return;
            }
            let mut byte = [0; 16];
            while self.events.recv(&mut byte).is_ok() {}
            if set.ready(2).readable {
                self.hear();
            }
            self.pass_requests();
            self.pass_responses();
        }
    }

    /// Accepts a client, or reads from it.
    fn hear(&mut self) {
        let Some(client) = &mut self.client else {
            let (client, _) = self.listener.accept().expect("a client");
            client.set_write_timeout(Some(PATIENCE)).expect("a time-out");
            self.client = Some(client);
            self.from_client.clear();
            self.resetting = true;
            let reset = Message::of(RESET_WATCHES, RESET_ID, &[b"\0"]).expect("short");
            self.to_ring.extend(reset.encode());
            return;
        };
        let mut piece = [0; 16 << 10];
        match client.read(&mut piece) {
            Ok(count) if count > 0 => self.from_client.extend_from_slice(&piece[..count]),
            _ => self.client = None,
        }
    }

    /// Whole messages only, as the device takes them.
    fn pass_requests(&mut self) {
        let mut shared = self.shared.lock().expect("nobody panicked");
        if std::mem::take(&mut shared.hangs_up) {
            self.client = None;
            self.from_client.clear();
        }
        while let Some(header) = self.from_client.first_chunk::<HEADER>() {
            let number = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
            let (kind, length) = (number(0), HEADER + number(12) as usize);
            if length > DEVICE_MAX {
                shared.broken = Some(format!("a message of type {kind} and {length} bytes"));
                self.client = None;
                self.from_client.clear();
                break;
            }
            let Some(message) = self.from_client.get(..length) else { break };
            if shared.gate == Some(kind) {
                shared.is_held = true;
                break;
            }
            let path = message[HEADER..].split(|byte| *byte == 0).next().unwrap_or_default();
            shared.asked.push(Asked { kind, path: String::from_utf8_lossy(path).into_owned() });
            self.to_ring.extend_from_slice(message);
            self.from_client.drain(..length);
        }
        drop(shared);
        let (taken, made) = (self.index(REQUESTS_TAKEN), self.index(REQUESTS_MADE));
        let room = HALF - made.wrapping_sub(taken);
        let count = self.to_ring.len().min(room as usize);
        if count > 0 {
            for (at, byte) in (0..).zip(self.to_ring.drain(..count)) {
                let place = u64::from(made.wrapping_add(at) % HALF);
                self.ring.write_all_at(&[byte], place).expect("the ring");
            }
            self.set_index(REQUESTS_MADE, made.wrapping_add(count as u32));
        }
    }

    fn pass_responses(&mut self) {
        let (taken, made) = (self.index(RESPONSES_TAKEN), self.index(RESPONSES_MADE));
        let count = made.wrapping_sub(taken);
        if count > 0 {
            let mut half = [0; HALF as usize];
            self.ring.read_exact_at(&mut half, u64::from(HALF)).expect("the ring");
            self.from_ring.extend((0..count).map(|at| half[(taken.wrapping_add(at) % HALF) as usize]));
            self.set_index(RESPONSES_TAKEN, made);
        }
        while let Some(message) = Message::decode(&mut self.from_ring).expect("the daemon sends messages") {
            if self.resetting {
                self.resetting = (message.kind, message.request_id) != (RESET_WATCHES, RESET_ID);
            } else if let Some(client) = &mut self.client
                && client.write_all(&message.encode()).is_err()
            {
                self.client = None;
            }
        }
    }

    fn index(&self, place: u64) -> u32 {
        let mut bytes = [0; 4];
        self.ring.read_exact_at(&mut bytes, place).expect("the ring");
        u32::from_le_bytes(bytes)
    }

    /// The other side is told.
    fn set_index(&self, place: u64, index: u32) {
        self.ring.write_all_at(&index.to_le_bytes(), place).expect("the ring");
        let told: io::Result<usize> = self.kick.send_to(&(PORTS + DOMAIN).to_ne_bytes(), &self.daemon);
        // A daemon that has ended hears nothing.
        drop(told);
    }
}
