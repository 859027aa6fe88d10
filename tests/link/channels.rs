//! Bare channels, as the library has them: many at once, slow ones beside fast ones, their ends.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use lodger::link::ACCEPT_MAX;
use lodger::link::acceptor;
use lodger::link::opener::{Opener, Wishes};
use lodger::stream::Stream;
use lodger::sys::fd;
use lodger::transport::serial;

use crate::client::noise;
use crate::line::{Line, Way, Weather};
use crate::rig::wait_for;
use crate::support::{PATIENCE, wait_until};

/// Both ends of a line in this process. What the acceptor does with a channel its first byte says: `e` echoes, `q` keeps it and never
/// reads, `d` drops it, `c` counts to its end and answers with the number.
struct Ends {
    line: Line,
    opener: Option<Opener>,
    stop: Option<OwnedFd>,
    server: Option<JoinHandle<()>>,
}

impl Ends {
    fn start(weather: Weather) -> Ends {
        let line = Line::start(weather);
        let settings = serial::Settings::default();
        let guest = serial::open(&line.guest, &settings).expect("the guest's end");
        let host = serial::open(&line.host, &settings).expect("the host's end");
        let (stopped, stop) = fd::pipe().expect("a pipe");
        let server = thread::spawn(move || {
            let mut accept = |stream| drop(thread::spawn(move || serve(&socket(&stream))));
            let _ = acceptor::serve(&guest, stopped.as_fd(), false, &mut accept);
        });
        let opener = Opener::start(host, line.host_address(), Wishes::default()).expect("a thread");
        Ends { line, opener: Some(opener), stop: Some(stop), server: Some(server) }
    }

    fn open(&self, kind: u8) -> UnixStream {
        let stream = self.opener.as_ref().expect("it is there").open().expect("a channel");
        let mut socket = socket(&stream);
        socket.write_all(&[kind]).expect("the channel takes it");
        socket
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        // A cut line ends both threads, whatever they were doing.
        self.line.cut();
        drop((self.opener.take(), self.stop.take()));
        if let Some(server) = self.server.take() {
            let ended = server.join();
            assert!(ended.is_ok() || thread::panicking());
        }
    }
}

fn socket(stream: &Stream) -> UnixStream {
    let socket = UnixStream::from(stream.input().try_clone_to_owned().expect("a descriptor"));
    socket.set_nonblocking(false).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
    socket.set_write_timeout(Some(PATIENCE)).expect("a socket");
    socket
}

fn serve(mut socket: &UnixStream) {
    let mut kind = [0];
    if socket.read_exact(&mut kind).is_err() {
        return;
    }
    match &kind {
        b"e" => drop(std::io::copy(&mut &*socket, &mut socket)),
        b"q" => loop {
            thread::sleep(Duration::from_millis(100));
            if socket.write_all(b"").is_err() || socket.take_error().is_err() || hung_up(socket) {
                return;
            }
        },
        b"c" => {
            let count = std::io::copy(&mut &*socket, &mut std::io::sink()).unwrap_or(0);
            let _ = socket.write_all(&count.to_le_bytes());
        }
        _ => {}
    }
    let _ = socket.shutdown(Shutdown::Both);
}

fn hung_up(socket: &UnixStream) -> bool {
    fd::wait_for(socket.as_fd(), fd::HANG_UP, Some(Duration::ZERO)).is_ok_and(|ready| ready.hung_up)
}

/// Sends bytes through an echoing channel; gives what comes back until its end.
fn echo(ends: &Ends, bytes: Vec<u8>) -> JoinHandle<(Vec<u8>, Vec<u8>)> {
    let mut socket = ends.open(b'e');
    thread::spawn(move || {
        let mut reader = socket.try_clone().expect("a descriptor");
        let back = thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).map(|_| all)
        });
        socket.write_all(&bytes).expect("the channel takes it");
        socket.shutdown(Shutdown::Write).expect("a half-close");
        (bytes, back.join().expect("a reader").expect("it comes back"))
    })
}

#[test]
fn sixteen_channels_carry_their_own_bytes_each_way() {
    for weather in [Weather::clear(), Weather::noise(1, 10_000), Weather::flood(2, 33)] {
        let ends = Ends::start(weather.clone());
        let echoes: Vec<_> = (0..16).map(|number| echo(&ends, noise(number + 1, 100_000))).collect();
        for (number, echo) in echoes.into_iter().enumerate() {
            let (sent, back) = echo.join().expect("a channel");
            assert!(sent == back, "channel {number} of {weather:?}: {} bytes", back.len());
        }
    }
}

#[test]
fn a_channel_that_nobody_reads_stops_only_itself() {
    let ends = Ends::start(Weather::clear());
    let mut stuck = ends.open(b'q');
    stuck.set_nonblocking(true).expect("a socket");
    let mut held = 0;
    let mut since = std::time::Instant::now();
    while since.elapsed() < Duration::from_millis(300) {
        match stuck.write(&[0; 4096]) {
            Ok(count) => (held, since) = (held + count, std::time::Instant::now()),
            Err(_) => wait_for(Duration::from_millis(5)),
        }
        assert!(held < 8 << 20, "no end of what is held for a reader who does not read");
    }
    let (sent, back) = echo(&ends, noise(3, 2 << 20)).join().expect("a channel");
    assert!(sent == back);
}

#[test]
fn one_end_may_close_and_the_other_go_on() {
    let ends = Ends::start(Weather::clear());
    for count in [0usize, 1, 1000, 300_000] {
        let mut socket = ends.open(b'c');
        socket.write_all(&vec![7; count]).expect("the channel takes it");
        socket.shutdown(Shutdown::Write).expect("a half-close");
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).expect("an answer");
        assert_eq!(answer, (count as u64).to_le_bytes());
    }
}

#[test]
fn a_reader_that_goes_away_resets_its_channel_and_no_other() {
    let ends = Ends::start(Weather::clear());
    let other = echo(&ends, noise(4, 1 << 20));
    for _ in 0..50 {
        let mut socket = ends.open(b'd');
        let mut failed = false;
        for _ in 0..1000 {
            if socket.write_all(&[0; 1000]).is_err() {
                failed = true;
                break;
            }
            thread::yield_now();
        }
        assert!(failed || socket.read(&mut [0; 8]).is_ok_and(|count| count == 0), "it goes on");
    }
    let (sent, back) = other.join().expect("a channel");
    assert!(sent == back);
    let (sent, back) = echo(&ends, noise(5, 1000)).join().expect("a channel");
    assert!(sent == back);
}

#[test]
fn as_many_channels_as_are_allowed_work_and_one_more_is_refused() {
    let ends = Ends::start(Weather::clear());
    let mut sockets: Vec<UnixStream> = (0..ACCEPT_MAX).map(|_| ends.open(b'e')).collect();
    for (number, socket) in sockets.iter_mut().enumerate() {
        socket.write_all(&[number as u8]).expect("the channel takes it");
        let mut back = [0];
        socket.read_exact(&mut back).expect("an echo");
        assert_eq!(back, [number as u8]);
    }
    let stream = ends.opener.as_ref().expect("it is there").open().expect("a local end");
    let mut one_more = socket(&stream);
    let _ = one_more.write_all(b"e!");
    assert_eq!(one_more.read(&mut [0; 8]).unwrap_or(0), 0, "it is refused");
    let why = stream.explanation().unwrap_or_default();
    assert!(why.contains("channels"), "{why:?}");
    // A place that is given up is free again.
    drop(sockets.pop());
    wait_until("there is a place again", || {
        let mut socket = ends.open(b'e');
        let mut back = [0];
        socket.write_all(b"x").is_ok() && socket.read_exact(&mut back).is_ok() && back == *b"x"
    });
}

#[test]
fn channels_come_and_go_by_the_hundred_beside_one_that_stays() {
    for seed in [6, 7] {
        let ends = Ends::start(if seed == 6 { Weather::clear() } else { Weather::noise(seed, 3000) });
        let stays = echo(&ends, noise(seed, 500_000));
        for number in 0..300 {
            let (sent, back) = echo(&ends, noise(number, (number % 50) as usize * 20)).join().expect("a channel");
            assert!(sent == back, "seed {seed}: channel {number}: {} of {} bytes", back.len(), sent.len());
        }
        let (sent, back) = stays.join().expect("a channel");
        assert!(sent == back, "seed {seed}");
    }
}

#[test]
fn an_idle_line_is_silent() {
    let ends = Ends::start(Weather::clear());
    let (sent, back) = echo(&ends, noise(8, 10_000)).join().expect("a channel");
    assert!(sent == back);
    let passed = || ends.line.passed(Way::ToGuest) + ends.line.passed(Way::ToHost);
    let mut last = (passed(), std::time::Instant::now());
    wait_until("the line is silent", || {
        if passed() != last.0 {
            last = (passed(), std::time::Instant::now());
        }
        last.1.elapsed() > Duration::from_secs(2)
    });
}

#[test]
fn a_small_question_beside_bulk_is_answered_on_a_slow_line() {
    let ends = Ends::start(Weather::paced(11_520));
    let bulk = echo(&ends, noise(9, 30_000));
    for number in 0..5u8 {
        let mut socket = ends.open(b'e');
        socket.write_all(&[number]).expect("the channel takes it");
        let mut back = [0];
        socket.read_exact(&mut back).expect("an echo");
        assert_eq!(back, [number]);
    }
    let (sent, back) = bulk.join().expect("a channel");
    assert!(sent == back);
}
