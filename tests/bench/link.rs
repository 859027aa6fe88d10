//! Rows about serial lines: what a link on a pty carries beside the bare pty, in noise, and at the speed of a real line.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lodger::link::acceptor;
use lodger::link::opener::{Opener, Wishes};
use lodger::stream::Stream;
use lodger::sys::tty;
use lodger::transport::serial::{self, Settings};

use crate::agent::Agent;
use crate::floor::Partner;
use crate::line::{Line, Weather};
use crate::{Measured, Skipped, alternate, throughput};

const BYTES: u64 = 64 << 20;
const ROUNDS: usize = 3;
const CHANNELS: u64 = 16;

/// Bytes of one read or write.
const CHUNK: usize = 64 << 10;

/// A line of 115,200 baud: ten bits a byte.
const BYTES_PER_SECOND: u32 = 11_520;

/// What a channel is asked for: to send so many bytes, to take so many and say so, or to send each byte back.
const SEND: u8 = b's';
const TAKE: u8 = b't';
const ECHO: u8 = b'e';

/// A pty: the master, the path of its raw slave, and the slave itself, without which the master hangs up.
fn pty() -> (OwnedFd, PathBuf, OwnedFd) {
    let (master, slave) = tty::open_pair().expect("a pty");
    let settings = tty::settings(slave.as_fd()).expect("a terminal");
    tty::apply(slave.as_fd(), &settings.raw()).expect("a terminal");
    let path = fs::read_link(format!("/proc/self/fd/{}", slave.as_raw_fd())).expect("its path");
    (master, path, slave)
}

/// A link whose acceptor is another process.
struct Link {
    opener: Opener,
    _partner: Partner,
    _slave: Option<OwnedFd>,
    _line: Option<Line>,
}

impl Link {
    /// On the two ends of one pty.
    fn on_a_pty() -> Link {
        let (master, path, slave) = pty();
        let partner = Partner::start(&format!("accept:{}", path.display()));
        let opener = Opener::start(Stream::over(master), "pty", Wishes::default()).expect("a thread");
        Link { opener, _partner: partner, _slave: Some(slave), _line: None }
    }

    fn through(weather: Weather) -> Link {
        let line = Line::start(weather);
        let partner = Partner::start(&format!("accept:{}", line.guest.display()));
        let host = serial::open(&line.host, &Settings::default()).expect("the line's end");
        let opener = Opener::start(host, "line", Wishes::default()).expect("a thread");
        Link { opener, _partner: partner, _slave: None, _line: Some(line) }
    }

    fn open(&self, kind: u8, bytes: u64) -> UnixStream {
        let mut socket = socket(&self.opener.open().expect("a channel"));
        socket.write_all(&[&[kind][..], &bytes.to_ne_bytes()].concat()).expect("the channel takes it");
        socket
    }

    /// Bytes from the acceptor, over so many channels at once.
    fn fetch(&self, channels: u64, bytes: u64) {
        let sockets: Vec<_> = (0..channels).map(|_| self.open(SEND, bytes / channels)).collect();
        std::thread::scope(|scope| {
            for mut socket in sockets {
                scope.spawn(move || assert_eq!(drain(&mut socket, u64::MAX), bytes / channels));
            }
        });
    }

    /// Bytes to the acceptor.
    fn bring(&self, channels: u64, bytes: u64) {
        let sockets: Vec<_> = (0..channels).map(|_| self.open(TAKE, bytes / channels)).collect();
        std::thread::scope(|scope| {
            for mut socket in sockets {
                scope.spawn(move || {
                    pour(&mut socket, bytes / channels);
                    socket.read_exact(&mut [0]).expect("it has all come");
                });
            }
        });
    }
}

fn socket(stream: &Stream) -> UnixStream {
    let socket = UnixStream::from(stream.input().try_clone_to_owned().expect("a descriptor"));
    socket.set_nonblocking(false).expect("a socket");
    socket
}

/// Bytes that no frame can make shorter.
fn pour(to: &mut impl Write, mut bytes: u64) {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let chunk: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    })
    .take(CHUNK)
    .collect();
    while bytes > 0 {
        let count = bytes.min(CHUNK as u64);
        if to.write_all(&chunk[..count as usize]).is_err() {
            return;
        }
        bytes -= count;
    }
}

/// Reads so many bytes, or to the end.
fn drain(from: &mut impl Read, bytes: u64) -> u64 {
    let (mut buffer, mut total) = (vec![0; CHUNK], 0);
    while total < bytes {
        match from.read(&mut buffer).expect("it can be read") {
            0 => break,
            count => total += count as u64,
        }
    }
    total
}

/// The other process: accepts channels on the line until stdin is closed.
pub fn accept(path: &Path) {
    let line = serial::open(path, &Settings::default()).expect("the line's other end");
    let mut accept = |stream: Stream| drop(std::thread::spawn(move || serve(socket(&stream))));
    let _ = acceptor::serve(&line, std::io::stdin().as_fd(), false, &mut accept);
}

fn serve(mut socket: UnixStream) {
    let (mut kind, mut count) = ([0], [0; 8]);
    if socket.read_exact(&mut kind).and_then(|()| socket.read_exact(&mut count)).is_err() {
        return;
    }
    let bytes = u64::from_ne_bytes(count);
    match kind[0] {
        SEND => pour(&mut socket, bytes),
        TAKE => {
            drain(&mut socket, bytes);
            let _ = socket.write_all(&[0]);
        }
        _ => drop(std::io::copy(&mut &socket, &mut &socket)),
    }
    let _ = socket.shutdown(Shutdown::Both);
}

/// The other process of the floor: for each 8 bytes on stdin, so many bytes into the terminal.
pub fn write_bare(path: &Path) {
    let (mut terminal, mut count) = (File::options().write(true).open(path).expect("the terminal"), [0; 8]);
    while std::io::stdin().read_exact(&mut count).is_ok() {
        pour(&mut terminal, u64::from_ne_bytes(count));
    }
}

/// Times of 64 MiB over one channel from the other process, and over the bare pty.
fn one_channel_and_bare() -> (Duration, Duration) {
    let link = Link::on_a_pty();
    let (master, path, _slave) = pty();
    let mut bare = Partner::start(&format!("write:{}", path.display()));
    let mut master = File::from(master);
    let floor = || {
        bare.socket.write_all(&BYTES.to_ne_bytes()).expect("it is there");
        assert_eq!(drain(&mut master, BYTES), BYTES);
    };
    alternate(ROUNDS, || link.fetch(1, BYTES), floor)
}

pub fn one_channel(_: &Agent) -> Result<Measured, Skipped> {
    Ok(throughput(one_channel_and_bare(), BYTES))
}

/// The same in MiB/s.
pub fn one_channel_rate(_: &Agent) -> Result<Measured, Skipped> {
    let (ours, floor) = one_channel_and_bare();
    let value = (BYTES >> 20) as f64 / ours.as_secs_f64();
    Ok(Measured { value, ..throughput((ours, floor), BYTES) })
}

pub fn many_channels_out(_: &Agent) -> Result<Measured, Skipped> {
    let link = Link::on_a_pty();
    Ok(throughput(alternate(ROUNDS, || link.fetch(CHANNELS, BYTES), || link.fetch(1, BYTES)), BYTES))
}

pub fn many_channels_in(_: &Agent) -> Result<Measured, Skipped> {
    let link = Link::on_a_pty();
    Ok(throughput(alternate(ROUNDS, || link.bring(CHANNELS, BYTES), || link.bring(1, BYTES)), BYTES))
}

/// On a line with noise, and on the same without.
fn noise(one_in: u32, bytes: u64) -> Measured {
    let (bad, good) = (Link::through(Weather::noise(u64::from(one_in), one_in)), Link::through(Weather::clear()));
    let half = bytes / 2;
    let both_ways = |link: &Link| {
        link.fetch(1, half);
        link.bring(1, half);
    };
    throughput(alternate(ROUNDS, || both_ways(&bad), || both_ways(&good)), bytes)
}

pub fn noise_of_100_000(_: &Agent) -> Result<Measured, Skipped> {
    Ok(noise(100_000, 32 << 20))
}

pub fn noise_of_10_000(_: &Agent) -> Result<Measured, Skipped> {
    Ok(noise(10_000, 32 << 20))
}

pub fn noise_of_1000(_: &Agent) -> Result<Measured, Skipped> {
    Ok(noise(1000, 4 << 20))
}

/// Bulk over a line of 115,200 baud, beside what such a line carries.
pub fn slow_bulk(_: &Agent) -> Result<Measured, Skipped> {
    let bytes = u64::from(BYTES_PER_SECOND) * 5;
    let link = Link::through(Weather::paced(BYTES_PER_SECOND));
    // The link has learned the line's speed when this is over.
    link.fetch(1, bytes / 5);
    let start = Instant::now();
    link.fetch(1, bytes);
    let rate = bytes as f64 / start.elapsed().as_secs_f64();
    let text = |rate: f64| format!("{rate:.0} B/s");
    let line = f64::from(BYTES_PER_SECOND);
    Ok(Measured { ours: text(rate), floor: text(line), value: rate / line })
}

/// The longest of a few round trips of a byte, while the line is full of other bytes; in milliseconds.
fn slow_ping(fill: impl Fn(&Link, u64) + Sync) -> Measured {
    let link = Link::through(Weather::paced(BYTES_PER_SECOND));
    let mut ping = link.open(ECHO, 0);
    let mut round_trip = || {
        let start = Instant::now();
        ping.write_all(b"?").expect("the channel takes it");
        ping.read_exact(&mut [0]).expect("an answer");
        start.elapsed()
    };
    let alone = (0..5).map(|_| round_trip()).max().unwrap_or_default();
    let mut beside = Vec::new();
    std::thread::scope(|scope| {
        let bulk = scope.spawn(|| fill(&link, u64::from(BYTES_PER_SECOND) * 6));
        let begin = Instant::now();
        while !bulk.is_finished() {
            // Not the first second, in which the link learns the line's speed.
            let time = round_trip();
            if begin.elapsed() > Duration::from_secs(1) {
                beside.push(time);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let longest = beside.into_iter().max().unwrap_or_default();
    let text = |time: Duration| format!("{:.0} ms", time.as_secs_f64() * 1e3);
    Measured { ours: text(longest), floor: text(alone), value: longest.as_secs_f64() * 1e3 }
}

pub fn slow_ping_beside_output(_: &Agent) -> Result<Measured, Skipped> {
    Ok(slow_ping(|link, bytes| link.fetch(1, bytes)))
}

pub fn slow_ping_beside_input(_: &Agent) -> Result<Measured, Skipped> {
    Ok(slow_ping(|link, bytes| link.bring(1, bytes)))
}
