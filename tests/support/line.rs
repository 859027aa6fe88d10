//! One serial line in a test: two ends that programs open, and a thread between them that passes the bytes on as the weather has it.
//!
//! An end is a pty, whose path is that of a terminal, or the unix socket of a QEMU chardev: one client at a time, and what comes while there
//! is none is lost. A pty's end is raw from the start and stays open here, so that no program's leaving hangs up the line.
#![allow(dead_code)] // Each test file uses its own part of this.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use lodger::sys::fd::{self, PollSet, READ, WRITE};
use lodger::sys::tty;

use crate::weather::{Damage, Flood, Harm};

/// Bytes that are taken at once, and the most that wait in one direction of a line that is not paced.
const CHUNK: usize = 64 << 10;

/// What a paced line passes on at once.
const STEP: Duration = Duration::from_millis(10);

/// What a paced line makes up for at once when its thread was kept waiting for a processor.
const ARREARS: Duration = Duration::from_millis(50);

/// The two directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    ToGuest,
    ToHost,
}

/// What the line does to its bytes.
#[derive(Clone, Debug, Default)]
pub struct Weather {
    pub seed: u64,
    /// One byte in so many is flipped, dropped or doubled.
    pub damage_to_guest: Option<u32>,
    pub damage_to_host: Option<u32>,
    /// Lines of text are so much of all bytes to the host, in percent.
    pub text_percent: u32,
    /// Each way; `None`: as fast as it goes.
    pub bytes_per_second: Option<u32>,
    /// Keeps all that comes from the guest, as it was before the damage.
    pub keeps_all: bool,
}

impl Weather {
    pub fn clear() -> Weather {
        Weather::default()
    }

    /// One byte in so many is damaged, each way.
    pub fn noise(seed: u64, one_in: u32) -> Weather {
        Weather { seed, damage_to_guest: Some(one_in), damage_to_host: Some(one_in), ..Weather::default() }
    }

    pub fn flood(seed: u64, percent: u32) -> Weather {
        Weather { seed, text_percent: percent, ..Weather::default() }
    }

    pub fn paced(bytes_per_second: u32) -> Weather {
        Weather { bytes_per_second: Some(bytes_per_second), ..Weather::default() }
    }
}

/// What the line knows of one direction.
#[derive(Debug)]
struct Sky {
    damage: Damage,
    flood: Flood,
    /// `None`: nobody asked for it.
    all: Option<Vec<u8>>,
}

impl Sky {
    fn pass(&mut self, bytes: &[u8], into: &mut Vec<u8>) {
        if let Some(all) = &mut self.all {
            all.extend_from_slice(bytes);
        }
        let mut damaged = Vec::with_capacity(bytes.len() + 16);
        self.damage.pass(bytes, &mut damaged);
        self.flood.pass(&damaged, into);
    }
}

/// One direction, as both the thread and the test see it.
#[derive(Debug)]
struct Shared {
    sky: Mutex<Sky>,
    frozen: AtomicBool,
    taken: AtomicU64,
    passed: AtomicU64,
}

/// A line; it is cut when this is dropped.
#[derive(Debug)]
pub struct Line {
    pub guest: PathBuf,
    pub host: PathBuf,
    ways: [Arc<Shared>; 2],
    stop: Arc<AtomicBool>,
    wake: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Line {
    /// A line between two terminals.
    pub fn start(weather: Weather) -> Line {
        let (guest, host) = (End::terminal(), End::terminal());
        Line::between(guest, host, weather)
    }

    /// A line between a terminal and a unix socket, which the host's end is.
    pub fn start_with_socket(weather: Weather, host: &Path) -> Line {
        Line::between(End::terminal(), End::listener(host), weather)
    }

    /// A line between the chardev of a QEMU that runs and a unix socket that takes its place.
    pub fn start_behind(chardev: &Path, host: &Path, weather: Weather) -> Line {
        let stream = UnixStream::connect(chardev).expect("QEMU's socket");
        stream.set_nonblocking(true).expect("a socket");
        let guest = End { path: chardev.to_owned(), kind: Kind::Socket { listener: None, stream: Some(stream) } };
        Line::between(guest, End::listener(host), weather)
    }

    /// A line whose host's end hears itself.
    pub fn start_echoing() -> Line {
        let ends = [End::terminal(), End::terminal()];
        Line::run(ends, [(1, 1), (0, 0)], &Weather::clear())
    }

    fn between(guest: End, host: End, weather: Weather) -> Line {
        Line::run([guest, host], [(1, 0), (0, 1)], &weather)
    }

    fn run(ends: [End; 2], routes: [(usize, usize); 2], weather: &Weather) -> Line {
        let shared = |way: Way| {
            let (number, one_in, percent) = match way {
                Way::ToGuest => (1, weather.damage_to_guest, 0),
                Way::ToHost => (2, weather.damage_to_host, weather.text_percent),
            };
            let seed = weather.seed.wrapping_mul(4).wrapping_add(number);
            let all = (weather.keeps_all && way == Way::ToHost).then(Vec::new);
            let sky = Sky { damage: Damage::new(seed, one_in), flood: Flood::new(!seed, percent), all };
            let (frozen, taken, passed) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
            Arc::new(Shared { sky: Mutex::new(sky), frozen, taken, passed })
        };
        let ways = [shared(Way::ToGuest), shared(Way::ToHost)];
        let paths = [ends[0].path.clone(), ends[1].path.clone()];
        let (woken, wake) = fd::pipe().expect("a pipe");
        let stop = Arc::new(AtomicBool::new(false));
        let lanes = [0, 1].map(|way| Lane {
            from: routes[way].0,
            to: routes[way].1,
            shared: ways[way].clone(),
            waiting: Vec::new(),
            pace: weather.bytes_per_second.map(Pace::new),
        });
        let proxy = Proxy { ends, lanes, woken, stop: stop.clone() };
        // Each has a name of its own, by which its times are found in /proc. The system keeps 15 bytes of it.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("line-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let thread = thread::Builder::new().name(name).spawn(move || proxy.run()).expect("a thread");
        let [guest, host] = paths;
        Line { guest, host, ways, stop, wake, thread: Some(thread) }
    }

    pub fn guest_address(&self) -> String {
        format!("serial:{}", self.guest.display())
    }

    pub fn host_address(&self) -> String {
        format!("serial:{}", self.host.display())
    }

    /// The name of the thread between the ends, which no other has; empty for a line that was cut.
    pub fn thread_name(&self) -> &str {
        self.thread.as_ref().and_then(|thread| thread.thread().name()).unwrap_or_default()
    }

    /// Stops a direction: nothing is taken from the end that sends, and it feels that once what lies between is full.
    pub fn freeze(&self, way: Way) {
        self.way(way).frozen.store(true, Ordering::Release);
        self.wake_up();
    }

    pub fn thaw(&self, way: Way) {
        self.way(way).frozen.store(false, Ordering::Release);
        self.wake_up();
    }

    /// Bytes that the line has taken from the sending end.
    pub fn taken(&self, way: Way) -> u64 {
        self.way(way).taken.load(Ordering::Acquire)
    }

    /// Bytes that the line has given to the receiving end.
    pub fn passed(&self, way: Way) -> u64 {
        self.way(way).passed.load(Ordering::Acquire)
    }

    /// What the damage was so far.
    pub fn harm(&self, way: Way) -> Harm {
        self.sky(way).damage.harm.clone()
    }

    /// All text that was put between the guest's bytes, in order.
    pub fn text(&self) -> Vec<u8> {
        self.sky(Way::ToHost).flood.text.clone()
    }

    /// All that came from the guest, before damage and text. Empty unless the weather keeps it.
    pub fn all_from_guest(&self) -> Vec<u8> {
        self.sky(Way::ToHost).all.clone().unwrap_or_default()
    }

    /// Hangs up both ends, for ever.
    pub fn cut(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.wake_up();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "the line's thread failed");
        }
    }

    fn way(&self, way: Way) -> &Shared {
        match way {
            Way::ToGuest => &self.ways[0],
            Way::ToHost => &self.ways[1],
        }
    }

    fn sky(&self, way: Way) -> MutexGuard<'_, Sky> {
        self.way(way).sky.lock().expect("the line's thread has not failed")
    }

    fn wake_up(&self) {
        let _ = fd::write(self.wake.as_fd(), b"!");
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.cut();
    }
}

/// Where one program opens the line.
#[derive(Debug)]
struct End {
    path: PathBuf,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Terminal {
        master: OwnedFd,
        /// Kept open: without it the master hangs up between two programs.
        _slave: OwnedFd,
    },
    Socket {
        /// `None`: it is QEMU's, and we are its client.
        listener: Option<UnixListener>,
        stream: Option<UnixStream>,
    },
}

impl End {
    fn terminal() -> End {
        let (master, slave) = tty::open_pair().expect("a pty");
        let settings = tty::settings(slave.as_fd()).expect("a terminal");
        tty::apply(slave.as_fd(), &settings.raw().without_modem_lines()).expect("a terminal");
        fd::set_nonblocking(master.as_fd(), true).expect("a terminal");
        let path = fs::read_link(format!("/proc/self/fd/{}", slave.as_raw_fd())).expect("its path");
        End { path, kind: Kind::Terminal { master, _slave: slave } }
    }

    fn listener(path: &Path) -> End {
        let listener = UnixListener::bind(path).expect("a socket");
        listener.set_nonblocking(true).expect("a socket");
        End { path: path.to_owned(), kind: Kind::Socket { listener: Some(listener), stream: None } }
    }

    /// What bytes go through; `None` while nobody is there.
    fn open(&self) -> Option<BorrowedFd<'_>> {
        match &self.kind {
            Kind::Terminal { master, .. } => Some(master.as_fd()),
            Kind::Socket { stream, .. } => stream.as_ref().map(AsFd::as_fd),
        }
    }

    /// Where somebody may come.
    fn door(&self) -> Option<BorrowedFd<'_>> {
        match &self.kind {
            Kind::Socket { listener: Some(listener), stream: None } => Some(listener.as_fd()),
            _ => None,
        }
    }

    fn accept(&mut self) {
        if let Kind::Socket { listener: Some(listener), stream: stream @ None } = &mut self.kind
            && let Ok((accepted, _)) = listener.accept()
        {
            accepted.set_nonblocking(true).expect("a socket");
            *stream = Some(accepted);
        }
    }

    /// The program is gone.
    fn close(&mut self) {
        if let Kind::Socket { stream, .. } = &mut self.kind {
            *stream = None;
        }
    }
}

/// How many bytes may pass now.
#[derive(Debug)]
struct Pace {
    bytes_per_second: f64,
    due: f64,
    at: Instant,
}

impl Pace {
    fn new(bytes_per_second: u32) -> Pace {
        Pace { bytes_per_second: f64::from(bytes_per_second), due: 0.0, at: Instant::now() }
    }

    fn bytes_in(&self, time: Duration) -> f64 {
        (self.bytes_per_second * time.as_secs_f64()).max(1.0)
    }

    /// Counts the time that has gone by with `waiting` bytes in front of the line; an idle line saves nothing up.
    fn advance(&mut self, now: Instant, waiting: usize) {
        let most = self.bytes_in(if waiting == 0 { STEP } else { ARREARS });
        self.due = (self.due + now.duration_since(self.at).as_secs_f64() * self.bytes_per_second).min(most);
        self.at = now;
    }

    /// How long until it is worth the while: half a step, or all that waits.
    fn wait(&self, waiting: usize) -> Duration {
        let wanted = (self.bytes_in(STEP) / 2.0).max(1.0).min(waiting as f64);
        Duration::from_secs_f64(((wanted - self.due) / self.bytes_per_second).max(0.0))
    }
}

/// One direction, as its thread has it.
#[derive(Debug)]
struct Lane {
    from: usize,
    to: usize,
    shared: Arc<Shared>,
    waiting: Vec<u8>,
    pace: Option<Pace>,
}

impl Lane {
    fn frozen(&self) -> bool {
        self.shared.frozen.load(Ordering::Acquire)
    }

    /// How much to take at once: a paced line holds no more than it passes on in one step.
    fn room(&self) -> usize {
        let most = self.pace.as_ref().map_or(CHUNK, |pace| pace.bytes_in(STEP) as usize);
        if self.frozen() { 0 } else { most.saturating_sub(self.waiting.len()) }
    }

    /// How much may be passed on now, and if nothing, when.
    fn allowed(&self) -> (usize, Option<Duration>) {
        if self.waiting.is_empty() || self.frozen() {
            return (0, None);
        }
        let Some(pace) = &self.pace else { return (self.waiting.len(), None) };
        match pace.wait(self.waiting.len()) {
            Duration::ZERO => (self.waiting.len().min(pace.due as usize).min(pace.bytes_in(STEP) as usize), None),
            wait => (0, Some(wait)),
        }
    }

    /// Takes what the sending end has. An error: it is gone.
    fn take(&mut self, from: BorrowedFd, buffer: &mut [u8]) -> io::Result<()> {
        let room = self.room().min(buffer.len());
        let count = match fd::read(from, &mut buffer[..room]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Ok(0) if room > 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            result => result?,
        };
        self.shared.sky.lock().expect("no test fails with it").pass(&buffer[..count], &mut self.waiting);
        self.shared.taken.fetch_add(count as u64, Ordering::Release);
        Ok(())
    }

    /// Gives the receiving end what it takes. An error: it is gone.
    fn give(&mut self, to: BorrowedFd) -> io::Result<()> {
        let (allowed, _) = self.allowed();
        let count = match fd::write(to, &self.waiting[..allowed]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            result => result?,
        };
        self.waiting.drain(..count);
        if let Some(pace) = &mut self.pace {
            pace.due -= count as f64;
        }
        self.shared.passed.fetch_add(count as u64, Ordering::Release);
        Ok(())
    }
}

/// The thread between the ends.
#[derive(Debug)]
struct Proxy {
    ends: [End; 2],
    lanes: [Lane; 2],
    woken: OwnedFd,
    stop: Arc<AtomicBool>,
}

impl Proxy {
    fn run(mut self) {
        let (mut set, mut buffer) = (PollSet::default(), vec![0; CHUNK]);
        while !self.stop.load(Ordering::Acquire) {
            let (watched, timeout) = self.watch(&mut set);
            set.wait(timeout).expect("open descriptors");
            if set.ready(0).readable {
                let _ = fd::read(self.woken.as_fd(), &mut buffer);
            }
            for (index, end, door) in watched {
                let ready = set.ready(index);
                if door {
                    if ready.readable {
                        self.ends[end].accept();
                    }
                } else {
                    self.exchange(end, ready, &mut buffer);
                }
            }
        }
    }

    /// What there is to wait for: the entry, the end, and whether it is the end's door.
    fn watch(&mut self, set: &mut PollSet) -> (Vec<(usize, usize, bool)>, Option<Duration>) {
        let now = Instant::now();
        set.clear();
        set.watch(self.woken.as_fd(), READ);
        let (mut watched, mut timeout, mut events) = (Vec::new(), None::<Duration>, [0; 2]);
        for lane in &mut self.lanes {
            if let Some(pace) = &mut lane.pace {
                pace.advance(now, lane.waiting.len());
            }
            if self.ends[lane.to].open().is_none() {
                lane.waiting.clear();
            }
            if lane.room() > 0 {
                events[lane.from] |= READ;
            }
            match lane.allowed() {
                (1.., _) => events[lane.to] |= WRITE,
                (0, Some(wait)) => timeout = Some(timeout.map_or(wait, |other| other.min(wait))),
                (0, None) => {}
            }
        }
        for (number, end) in self.ends.iter().enumerate() {
            if let Some(door) = end.door() {
                watched.push((set.watch(door, READ), number, true));
            } else if let Some(open) = end.open()
                && events[number] != 0
            {
                // With nothing wanted it is left out: a hang-up would be reported for ever.
                watched.push((set.watch(open, events[number]), number, false));
            }
        }
        (watched, timeout)
    }

    fn exchange(&mut self, end: usize, ready: fd::Ready, buffer: &mut [u8]) {
        let Some(open) = self.ends[end].open() else { return };
        let mut result = Ok(());
        for lane in &mut self.lanes {
            if lane.to == end && ready.writable && result.is_ok() {
                result = lane.give(open);
            }
            if lane.from == end && ready.readable && lane.room() > 0 && result.is_ok() {
                result = lane.take(open, buffer);
            }
        }
        if result.is_err() {
            self.ends[end].close();
        }
    }
}
