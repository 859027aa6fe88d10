//! The serial line that other tests use, itself: what it passes on, what it does to it, and that it says so.

#[path = "support/line.rs"]
mod line;
#[path = "support/weather.rs"]
mod weather;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use lodger::sys::fd;

use line::{Line, Way, Weather};
use weather::{Damage, Dice, Flood};

/// How long anything may take before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(30);

fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path).expect("an end of the line")
}

fn bytes(seed: u64, count: usize) -> Vec<u8> {
    let mut dice = Dice::new(seed);
    (0..count).map(|_| dice.roll() as u8).collect()
}

fn write_all(to: impl Into<OwnedFd>, bytes: &[u8]) -> JoinHandle<()> {
    let (mut to, bytes) = (File::from(to.into()), bytes.to_vec());
    thread::spawn(move || to.write_all(&bytes).expect("the line takes it"))
}

/// Exactly so many bytes; fails when they do not come.
fn read_exactly(from: &mut (impl Read + AsFd), count: usize) -> Vec<u8> {
    let mut all = vec![0; count];
    let (mut held, deadline) = (0, Instant::now() + PATIENCE);
    while held < count {
        let left = deadline.saturating_duration_since(Instant::now());
        let ready = fd::wait_for(from.as_fd(), fd::READ, Some(left)).expect("a poll");
        assert!(ready.readable, "{held} of {count} bytes came");
        let read = from.read(&mut all[held..]).expect("a read");
        assert!(read > 0, "the line ended behind {held} bytes");
        held += read;
    }
    all
}

fn nothing_comes(from: &File) -> bool {
    !fd::wait_for(from.as_fd(), fd::READ, Some(Duration::from_millis(50))).expect("a poll").readable
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "in vain waited until {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_clear_line_passes_a_mebibyte_both_ways_at_once() {
    let line = Line::start(Weather::clear());
    let (mut guest, mut host) = (open(&line.guest), open(&line.host));
    let (to_guest, to_host) = (bytes(1, 1 << 20), bytes(2, 1 << 20));
    let writers = [
        write_all(host.try_clone().expect("a descriptor"), &to_guest),
        write_all(guest.try_clone().expect("a descriptor"), &to_host),
    ];
    let reader = thread::spawn(move || read_exactly(&mut guest, 1 << 20));
    assert!(read_exactly(&mut host, 1 << 20) == to_host);
    assert!(reader.join().expect("it all came") == to_guest);
    writers.into_iter().for_each(|writer| writer.join().expect("a writer"));
    for way in [Way::ToGuest, Way::ToHost] {
        assert_eq!(line.taken(way), 1 << 20);
        // The line counts bytes when it has given them away.
        until("all are counted", || line.passed(way) == 1 << 20);
        assert_eq!(line.harm(way).count(), 0);
    }
    assert!(line.text().is_empty() && line.all_from_guest().is_empty());
}

#[test]
fn every_byte_passes_as_it_is_and_none_echoes() {
    let line = Line::start(Weather::clear());
    let every: Vec<u8> = (0..=255).collect();
    // Before anybody has opened the other end, too.
    open(&line.host).write_all(&every).expect("the line takes it");
    until("it has passed", || line.passed(Way::ToGuest) == 256);
    let mut guest = open(&line.guest);
    assert_eq!(read_exactly(&mut guest, 256), every);
    assert!(nothing_comes(&open(&line.host)));
}

#[test]
fn a_socket_serves_one_client_after_the_other_and_loses_what_comes_between() {
    let folder = std::env::temp_dir().join(format!("lodger-line-{}", std::process::id()));
    std::fs::create_dir(&folder).expect("a folder");
    let line = Line::start_with_socket(Weather::clear(), &folder.join("chardev"));
    let mut guest = open(&line.guest);
    for round in 0..3u8 {
        guest.write_all(b"to nobody").expect("the line takes it");
        until("it is lost", || line.taken(Way::ToHost) == u64::from(round + 1) * 9 + u64::from(round));
        let mut client = UnixStream::connect(&line.host).expect("the line's socket");
        client.write_all(&[round]).expect("the line takes it");
        assert_eq!(read_exactly(&mut guest, 1), [round]);
        guest.write_all(&[round]).expect("the line takes it");
        assert_eq!(read_exactly(&mut client, 1), [round]);
    }
    std::fs::remove_dir_all(&folder).expect("our folder");
}

#[test]
fn a_paced_line_has_its_rate_each_way_and_hardly_needs_a_processor() {
    // A line whose thread gets no processor never makes up for that, so it may have some attempts on a busy machine.
    for attempt in 1.. {
        let (seconds, ticks) = run_at_40_000_bytes_a_second();
        // However busy the machine is: a line that is too fast is wrong.
        assert!(seconds.iter().all(|seconds| *seconds >= 1.8), "{seconds:?} s for 2 s of bytes");
        let in_time = seconds.iter().all(|seconds| *seconds < 2.5);
        if in_time && ticks <= 20 {
            return;
        }
        assert!(attempt < 6, "{seconds:?} s for 2 s of bytes, {ticks} ticks of 10 ms");
    }
}

/// How long 80,000 bytes take each way, and the clock ticks of the line's thread meanwhile.
fn run_at_40_000_bytes_a_second() -> ([f64; 2], u64) {
    let line = Line::start(Weather::paced(40_000));
    let (guest, host) = (open(&line.guest), open(&line.host));
    let sent = bytes(3, 80_000);
    let start = Instant::now();
    let writers = [&host, &guest].map(|end| write_all(end.try_clone().expect("a descriptor"), &sent));
    let readers = [guest, host].map(|mut end| {
        thread::spawn(move || {
            let all = read_exactly(&mut end, 80_000);
            (all, start.elapsed().as_secs_f64())
        })
    });
    let seconds = readers.map(|reader| {
        let (all, seconds) = reader.join().expect("it all came");
        assert!(all == sent);
        seconds
    });
    writers.into_iter().for_each(|writer| writer.join().expect("a writer"));
    (seconds, ticks(line.thread_name()))
}

/// Clock ticks that the thread of this name has used so far, in user and kernel mode.
fn ticks(name: &str) -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").expect("threads").flatten();
    let mut stats = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
    let own = stats.find(|stat| stat.contains(&format!("({name})"))).expect("the thread lives");
    let (_, fields) = own.rsplit_once(") ").expect("fields");
    fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().expect("a number")).sum()
}

#[test]
fn a_paced_line_makes_its_writer_wait() {
    let line = Line::start(Weather::paced(1000));
    let guest = open(&line.guest);
    fd::set_nonblocking(guest.as_fd(), true).expect("a terminal");
    let (mut taken, chunk, start) = (0, [b'x'; 1000], Instant::now());
    while let Ok(count) = fd::write(guest.as_fd(), &chunk) {
        taken += count;
        assert!(taken < 64 << 10, "no end of what the line holds");
    }
    // Less than in a second, and then what it has by right, if this thread was kept waiting.
    let passed = line.taken(Way::ToHost);
    assert!(passed < 1000 + 1000 * start.elapsed().as_secs(), "{passed}");
}

#[test]
fn damage_is_as_frequent_as_it_shall_be_and_the_same_for_the_same_seed() {
    for seed in 1..20 {
        let (sent, mut came, mut again) = (bytes(seed, 1 << 20), Vec::new(), Vec::new());
        let mut damage = Damage::new(seed, Some(1000));
        sent.chunks(777).for_each(|chunk| damage.pass(chunk, &mut came));
        Damage::new(seed, Some(1000)).pass(&sent, &mut again);
        assert!(came == again, "seed {seed}: it depends on the pieces");
        let harm = &damage.harm;
        assert!((850..1250).contains(&harm.count()), "seed {seed}: {harm:?}");
        let kinds = [harm.flipped, harm.dropped, harm.doubled];
        assert!(kinds.iter().all(|count| (250..450).contains(count)), "seed {seed}: {kinds:?}");
        assert_eq!(came.len() as u64, (1 << 20) + harm.doubled - harm.dropped, "seed {seed}");
        // Up to the first place nothing has changed, and there something has.
        let first = harm.places[0] as usize;
        assert!(came[..first] == sent[..first] && came[first..first + 64] != sent[first..first + 64], "seed {seed}");
        assert!(harm.places.is_sorted() && harm.places.len() as u64 == harm.count(), "seed {seed}");
    }
}

#[test]
fn text_is_whole_lines_in_order_and_the_share_that_it_shall_be() {
    for seed in 1..20 {
        // Bytes that are in no text.
        let sent: Vec<u8> = bytes(seed, 200_000).into_iter().map(|byte| byte | 0x80).collect();
        let (mut flood, mut came) = (Flood::new(seed, 33), Vec::new());
        sent.chunks(333).for_each(|chunk| flood.pass(chunk, &mut came));
        let (text, rest): (Vec<u8>, Vec<u8>) = came.iter().partition(|byte| **byte < 0x80);
        assert!(rest == sent && text == flood.text, "seed {seed}");
        let share = text.len() as f64 / came.len() as f64;
        assert!((0.30..0.36).contains(&share), "seed {seed}: {share}");
        let text = String::from_utf8(text).expect("text");
        assert!(text.ends_with("\r\n"), "seed {seed}");
        for (number, line) in text.split_terminator("\r\n").enumerate() {
            assert!(line.starts_with('[') && line.contains(&format!(" kmsg line {number:06}")), "seed {seed}: {line}");
        }
    }
}

#[test]
fn a_line_tells_what_it_has_done() {
    let weather = Weather { text_percent: 20, keeps_all: true, ..Weather::noise(7, 500) };
    let line = Line::start(weather);
    let (guest, mut host) = (open(&line.guest), open(&line.host));
    let sent = bytes(9, 100_000);
    let writer = write_all(guest, &sent);
    let (mut came, mut piece) = (Vec::new(), [0; 4096]);
    until("all has come", || {
        if !nothing_comes(&host) {
            let count = host.read(&mut piece).expect("a read");
            came.extend_from_slice(&piece[..count]);
        }
        let harm = line.harm(Way::ToHost);
        let expected = line.taken(Way::ToHost) + line.text().len() as u64 + harm.doubled - harm.dropped;
        line.taken(Way::ToHost) == 100_000 && came.len() as u64 == expected
    });
    writer.join().expect("a writer");
    let text = line.text();
    assert!(nothing_comes(&host));
    assert!(line.all_from_guest() == sent);
    let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    let mut from = 0;
    for line in &lines {
        from +=
            came[from..].windows(line.len()).position(|window| window == *line).expect("the next line") + line.len();
    }
    assert!(lines.len() > 300, "{} lines", lines.len());
    assert_eq!(line.harm(Way::ToGuest).count(), 0);
}

#[test]
fn a_frozen_direction_stands_still_and_goes_on_where_it_was() {
    let line = Line::start(Weather::clear());
    let (mut guest, mut host) = (open(&line.guest), open(&line.host));
    line.freeze(Way::ToHost);
    // Nothing tells when the line's thread has noticed, but what it takes before that it has counted.
    until("it is frozen", || {
        let before = line.taken(Way::ToHost);
        guest.write_all(b"x").expect("there is room");
        thread::sleep(Duration::from_millis(20));
        line.taken(Way::ToHost) == before
    });
    host.write_all(b"other way").expect("the line takes it");
    assert_eq!(read_exactly(&mut guest, 9), b"other way");
    line.thaw(Way::ToHost);
    guest.write_all(b"y").expect("there is room");
    while read_exactly(&mut host, 1) != b"y" {}
}

#[test]
fn an_echoing_line_gives_each_end_its_own_words() {
    let line = Line::start_echoing();
    let mut host = open(&line.host);
    host.write_all(b"hello").expect("the line takes it");
    assert_eq!(read_exactly(&mut host, 5), b"hello");
    assert!(nothing_comes(&open(&line.guest)));
}

#[test]
fn a_line_that_is_cut_hangs_up() {
    let mut line = Line::start(Weather::clear());
    let mut ends = [open(&line.guest), open(&line.host)];
    line.cut();
    for end in &mut ends {
        assert!(fd::wait_for(end.as_fd(), 0, Some(PATIENCE)).expect("a poll").hung_up);
        assert_eq!(end.read(&mut [0; 8]).expect("the end"), 0);
    }
}
