//! The link's state machines on a simulated line: time is an argument, noise has a seed, and nothing waits.

use std::collections::{BTreeMap, VecDeque};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use lodger::link::frame::{self, Found, Header, Scanner};
use lodger::link::greeting::{Limits, Role};
use lodger::link::session::Link;
use lodger::link::{ACCEPT_MAX, CREDIT, FRAME_BYTES, Reason, WINDOW_BYTES, kind};

const LIMITS: Limits = Limits { frame: FRAME_BYTES, window: WINDOW_BYTES };

/// Bytes that a kernel holds in front of a slow line.
const KERNEL_BYTES: usize = 4096;

/// Pseudo-random numbers.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 16
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// One direction of a line.
struct Wire {
    /// Bytes under way, and when each arrives.
    bytes: VecDeque<(Instant, u8)>,
    /// When the last one has left.
    busy_until: Instant,
    byte_time: Duration,
    delay: Duration,
    /// One byte in so many is damaged; 0: none.
    noise: u64,
    /// Whole lines printed into it make up one byte in so many; 0: none.
    text: u64,
    printed: Vec<u8>,
    passed: usize,
    stopped: bool,
    random: Random,
}

impl Wire {
    fn new(bytes_per_second: u64, start: Instant, seed: u64) -> Wire {
        Wire {
            bytes: VecDeque::new(),
            busy_until: start,
            byte_time: Duration::from_nanos(1_000_000_000 / bytes_per_second),
            delay: Duration::from_micros(200),
            noise: 0,
            text: 0,
            printed: Vec::new(),
            passed: 0,
            stopped: false,
            random: Random(seed | 1),
        }
    }

    /// Bytes that have not left yet.
    fn backlog(&self, now: Instant) -> usize {
        (self.busy_until.saturating_duration_since(now).as_nanos() / self.byte_time.as_nanos()) as usize
    }

    fn put(&mut self, byte: u8, now: Instant) {
        self.busy_until = self.busy_until.max(now) + self.byte_time;
        self.bytes.push_back((self.busy_until + self.delay, byte));
    }

    fn write(&mut self, bytes: &[u8], now: Instant) {
        self.passed += bytes.len();
        for byte in bytes {
            if self.text > 0 && self.random.below(60 * (self.text - 1)) == 0 {
                let line =
                    format!("[   {:06}] a line of sixty bytes that a kernel prints, {:3}\r\n", self.printed.len(), 7);
                self.printed.extend_from_slice(line.as_bytes());
                line.bytes().for_each(|byte| self.put(byte, now));
            }
            if self.noise == 0 || self.random.below(self.noise) != 0 {
                self.put(*byte, now);
                continue;
            }
            match self.random.below(3) {
                0 => {
                    let bit = self.random.below(8);
                    self.put(byte ^ (1 << bit), now);
                }
                1 => {}
                _ => (0..2).for_each(|_| self.put(*byte, now)),
            }
        }
    }

    fn read(&mut self, now: Instant) -> Vec<u8> {
        let count = if self.stopped { 0 } else { self.bytes.iter().take_while(|(at, _)| *at <= now).count() };
        self.bytes.drain(..count).map(|(_, byte)| byte).collect()
    }
}

/// One end and what it has received.
struct End {
    link: Link,
    got: BTreeMap<u16, Vec<u8>>,
    ended: Vec<u16>,
    torn: Vec<(u16, Reason)>,
    /// Channels whose reader does not read.
    unread: Vec<u16>,
    opened: Vec<u16>,
    text: Vec<u8>,
    sink: (UnixStream, UnixStream),
}

impl End {
    fn new(role: Role, seed: u64, now: Instant) -> End {
        let sink = UnixStream::pair().expect("a socket pair");
        sink.1.set_nonblocking(true).expect("a socket");
        let mut link = Link::new(role, LIMITS, seed, now);
        link.keep_text();
        let (ended, torn, unread, opened) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        End { link, got: BTreeMap::new(), ended, torn, unread, opened, text: Vec::new(), sink }
    }

    /// Does for the channels what a pump does.
    fn hand_on(&mut self) {
        while let Some(id) = self.link.take_opened() {
            self.opened.push(id);
        }
        let mut torn = Vec::new();
        for channel in self.link.mux().channels() {
            if let Some(reason) = channel.torn {
                torn.push((channel.id, reason));
                continue;
            }
            while !channel.inbound.is_empty() && !self.unread.contains(&channel.id) {
                let before = channel.inbound.len();
                self.sink.0.set_nonblocking(true).expect("a socket");
                channel.inbound.write_to(self.sink.0.as_fd()).expect("the sink is there");
                let count = before - channel.inbound.len();
                channel.consume(count);
                let mut bytes = vec![0; count];
                self.sink.1.read_exact(&mut bytes).expect("what was written");
                self.got.entry(channel.id).or_default().extend(bytes);
            }
            if channel.inbound_ended && channel.inbound.is_empty() && !self.ended.contains(&channel.id) {
                self.ended.push(channel.id);
            }
        }
        for (id, reason) in torn {
            self.link.mux().reset(id, Reason::Gone);
            self.torn.push((id, reason));
        }
        self.link.mux().sweep();
        self.text.extend(self.link.take_text());
    }

    fn step(&mut self, to: &mut Wire, from: &mut Wire, now: Instant) {
        let bytes = from.read(now);
        if !bytes.is_empty() {
            self.link.receive(&bytes, now);
        }
        self.link.on_time(now);
        let mut out = Vec::new();
        while to.backlog(now) + out.len() < KERNEL_BYTES && self.link.transmit(now, &mut out) {}
        self.hand_on();
        to.write(&out, now);
    }

    fn say(&mut self, id: u16, bytes: &[u8]) {
        let channel = self.link.mux().channels().iter_mut().find(|channel| channel.id == id);
        channel.expect("the channel is open").outbound.push(bytes);
    }

    fn end(&mut self, id: u16) {
        let channel = self.link.mux().channels().iter_mut().find(|channel| channel.id == id);
        channel.expect("the channel is open").end();
    }

    fn count(&self, id: u16) -> usize {
        self.got.get(&id).map_or(0, Vec::len)
    }
}

/// A line with its two ends.
struct Rig {
    now: Instant,
    tick: Duration,
    client: End,
    agent: End,
    up: Wire,
    down: Wire,
}

impl Rig {
    fn new(bytes_per_second: u64) -> Rig {
        let now = Instant::now();
        Rig {
            now,
            tick: Duration::from_micros(if bytes_per_second > 100_000 { 200 } else { 1000 }),
            client: End::new(Role::Opener, 1, now),
            agent: End::new(Role::Acceptor, 2, now),
            up: Wire::new(bytes_per_second, now, 11),
            down: Wire::new(bytes_per_second, now, 13),
        }
    }

    fn step(&mut self) {
        self.client.step(&mut self.up, &mut self.down, self.now);
        self.agent.step(&mut self.down, &mut self.up, self.now);
        self.now += self.tick;
    }

    /// Goes on until `done`; the time that took.
    #[track_caller]
    fn until(&mut self, limit: Duration, mut done: impl FnMut(&mut Rig) -> bool) -> Duration {
        let start = self.now;
        while !done(self) {
            assert!(self.now < start + limit, "it has not happened after {limit:?}");
            self.step();
        }
        self.now - start
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
    }

    /// A channel on which both ends have spoken.
    fn channel(&mut self) -> u16 {
        let id = self.client.link.open(self.now);
        self.until(Duration::from_secs(5), |rig| rig.agent.opened.contains(&id));
        id
    }

    /// Sends so many bytes down a channel and checks them; the time that took.
    fn bulk(&mut self, id: u16, count: usize, limit: Duration) -> Duration {
        let mut random = Random(77);
        let bytes: Vec<u8> = (0..count).map(|_| random.next() as u8).collect();
        let before = self.client.count(id);
        self.agent.say(id, &bytes);
        let time = self.until(limit, |rig| rig.client.count(id) >= before + count);
        assert!(self.client.got[&id][before..] == bytes, "the bytes are others");
        time
    }
}

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn bytes_arrive_in_order_both_ways_and_ends_are_told() {
    let mut rig = Rig::new(1_000_000);
    let id = rig.channel();
    rig.client.say(id, b"question");
    rig.client.end(id);
    rig.until(LIMIT, |rig| rig.agent.ended.contains(&id));
    assert_eq!(rig.agent.got[&id], b"question");
    rig.agent.say(id, b"answer");
    rig.agent.end(id);
    rig.until(LIMIT, |rig| rig.client.ended.contains(&id));
    assert_eq!(rig.client.got[&id], b"answer");
    rig.until(LIMIT, |rig| rig.client.link.is_idle() && rig.agent.link.is_idle());
}

#[test]
fn nothing_is_sent_on_an_idle_line() {
    let mut rig = Rig::new(1_000_000);
    rig.pass(Duration::from_secs(1));
    let announced = rig.down.passed;
    assert!(announced > 0 && announced < 64 && rig.up.passed == 0, "the agent says once that it is there: {announced}");
    let id = rig.channel();
    rig.client.end(id);
    rig.until(LIMIT, |rig| rig.agent.ended.contains(&id));
    rig.agent.end(id);
    rig.until(LIMIT, |rig| rig.client.link.is_idle() && rig.agent.link.is_idle());
    rig.pass(Duration::from_secs(1));
    let before = (rig.up.passed, rig.down.passed);
    rig.pass(Duration::from_secs(60));
    assert_eq!((rig.up.passed, rig.down.passed), before);
    assert_eq!(rig.client.link.deadline(), None);
}

#[test]
fn an_open_channel_costs_a_question_in_five_seconds_and_a_silent_peer_is_given_up() {
    let mut rig = Rig::new(1_000_000);
    let id = rig.channel();
    rig.pass(Duration::from_secs(1));
    let before = rig.up.passed + rig.down.passed;
    rig.pass(Duration::from_secs(60));
    let spent = rig.up.passed + rig.down.passed - before;
    assert!((10 * 20..60 * 30).contains(&spent), "{spent} bytes in a minute");
    assert!(rig.client.torn.is_empty());
    rig.down.stopped = true;
    rig.pass(Duration::from_secs(25));
    assert!(rig.client.torn.is_empty());
    rig.pass(Duration::from_secs(15));
    assert_eq!(rig.client.torn, [(id, Reason::Session)]);
    assert_eq!(rig.client.link.account().end, Some("the agent fell silent"));
}

#[test]
fn noise_costs_little_and_loses_nothing() {
    let mut clean = Rig::new(1_000_000);
    let id = clean.channel();
    let count = 2 << 20;
    let clean = count as f64 / clean.bulk(id, count, LIMIT).as_secs_f64();
    assert!(clean > 900_000.0, "{clean} bytes a second of 1,000,000");
    for (noise, least, count) in [(100_000, 0.7, 2 << 20), (10_000, 0.3, 2 << 20), (1_000, 0.05, 256 << 10)] {
        let mut rig = Rig::new(1_000_000);
        let id = rig.channel();
        (rig.up.noise, rig.down.noise) = (noise, noise);
        let rate = count as f64 / rig.bulk(id, count, LIMIT).as_secs_f64();
        println!("a byte in {noise} damaged: {:.2} of clean", rate / clean);
        assert!(rate / clean > least, "a byte in {noise}: {rate} of {clean}");
    }
}

#[test]
fn lines_printed_at_random_places_are_all_there_and_so_is_the_data() {
    let mut rig = Rig::new(1_000_000);
    rig.channel();
    rig.down.text = 3;
    let id = rig.channel();
    let time = rig.bulk(id, 256 << 10, Duration::from_secs(600));
    println!("256 KiB beside {} bytes of text: {time:?}", rig.down.printed.len());
    rig.pass(Duration::from_secs(1));
    let printed = String::from_utf8(rig.down.printed.clone()).expect("text");
    let mut rest = rig.client.text.as_slice();
    for line in printed.split_inclusive('\n') {
        let at = rest.windows(line.len()).position(|part| part == line.as_bytes());
        rest = &rest[at.unwrap_or_else(|| panic!("{line:?} is missing")) + line.len()..];
    }
}

#[test]
fn a_damaged_frame_costs_a_round_trip_and_not_a_time_out() {
    let mut rig = Rig::new(1_000_000);
    let id = rig.channel();
    rig.bulk(id, 100, LIMIT);
    for _ in 0..20 {
        let before = rig.client.count(id);
        rig.agent.say(id, &[5; 300]);
        rig.step();
        let middle = rig.down.bytes.len() / 2;
        rig.down.bytes[middle].1 ^= 4;
        let time = rig.until(LIMIT, |rig| rig.client.count(id) == before + 300);
        assert!(time < Duration::from_millis(5), "{time:?}");
    }
}

#[test]
fn a_slow_line_is_full_and_still_answers_at_once() {
    let mut rig = Rig::new(11_520);
    let (bulk, ping) = (rig.channel(), rig.channel());
    let count = 11_520 * 30;
    rig.agent.say(bulk, &vec![7; count]);
    rig.pass(Duration::from_secs(2));
    let (start, before) = (rig.now, rig.client.count(bulk));
    let mut longest = Duration::ZERO;
    for number in 1..=100 {
        rig.client.say(ping, b"0123456789");
        let mut answered = false;
        let time = rig.until(LIMIT, |rig| {
            if !answered && rig.agent.count(ping) == number * 10 {
                rig.agent.say(ping, b"0123456789");
                answered = true;
            }
            rig.client.count(ping) == number * 10
        });
        longest = longest.max(time);
    }
    assert!(longest < Duration::from_millis(250), "{longest:?}");
    rig.pass(Duration::from_secs(5));
    let rate = (rig.client.count(bulk) - before) as f64 / (rig.now - start).as_secs_f64();
    println!("longest answer {longest:?}, bulk {:.2} of the line", rate / 11_520.0);
    assert!(rig.client.count(bulk) < count && rate / 11_520.0 > 0.85, "{:.2}", rate / 11_520.0);
}

#[test]
fn a_channel_nobody_reads_stops_only_itself() {
    let mut rig = Rig::new(10_000_000);
    let (stuck, free) = (rig.channel(), rig.channel());
    rig.client.unread.push(stuck);
    rig.agent.say(stuck, &vec![1; 4 << 20]);
    rig.bulk(free, 1 << 20, LIMIT);
    rig.pass(Duration::from_secs(1));
    let held = rig.client.link.mux().channels().iter().map(|channel| channel.inbound.len()).sum::<usize>();
    assert_eq!(held, CREDIT);
    rig.client.unread.clear();
    rig.until(LIMIT, |rig| rig.client.count(stuck) == 4 << 20);
}

#[test]
fn no_more_is_under_way_than_a_kernel_holds_when_the_reader_stops() {
    let mut rig = Rig::new(10_000_000);
    let id = rig.channel();
    rig.agent.say(id, &vec![1; 2 << 20]);
    rig.pass(Duration::from_millis(50));
    rig.down.stopped = true;
    rig.pass(Duration::from_secs(20));
    assert!(rig.down.bytes.len() < 200 << 10, "{} bytes wait", rig.down.bytes.len());
    rig.down.stopped = false;
    let time = rig.until(LIMIT, |rig| rig.client.count(id) == 2 << 20);
    assert!(time < Duration::from_secs(5), "{time:?}");
    assert!(rig.client.torn.is_empty() && rig.agent.torn.is_empty());
}

#[test]
fn either_end_may_start_anew_at_any_moment() {
    let mut random = Random(99);
    let mut rig = Rig::new(1_000_000);
    for round in 0..100u64 {
        let old = rig.channel();
        rig.agent.say(old, &[9; 50_000]);
        rig.client.say(old, &[8; 50_000]);
        rig.pass(Duration::from_micros(random.below(60_000)));
        // What is under way stays under way: the new end hears what was meant for the old one.
        if round % 2 == 0 {
            rig.client = End::new(Role::Opener, 1000 + round, rig.now);
            rig.agent.opened.clear();
        } else {
            rig.agent = End::new(Role::Acceptor, 2000 + round, rig.now);
        }
        let start = rig.now;
        if round % 2 == 1 {
            rig.client.say(old, b"more");
            rig.until(Duration::from_secs(1), |rig| rig.client.torn.contains(&(old, Reason::Session)));
            assert_eq!(
                rig.client.link.account().end,
                Some("the agent was started anew, or another client has taken the line")
            );
        }
        let id = rig.channel();
        assert!(rig.now - start < Duration::from_secs(1), "round {round}");
        rig.client.got.clear();
        rig.agent.got.clear();
        rig.bulk(id, 10_000, LIMIT);
        assert_eq!(rig.agent.count(id), 0, "round {round}");
        for end in [&mut rig.client, &mut rig.agent] {
            let ids: Vec<u16> = end.link.mux().channels().iter().map(|channel| channel.id).collect();
            assert_eq!(ids, [id], "round {round}");
            end.link.end_session("the round is over");
            end.hand_on();
            (end.torn, end.opened, end.ended, end.got) = Default::default();
        }
    }
}

#[test]
fn as_many_channels_as_the_limit_and_the_one_past_it_is_refused() {
    let mut rig = Rig::new(10_000_000);
    let ids: Vec<u16> = (0..ACCEPT_MAX).map(|_| rig.channel()).collect();
    let over = rig.client.link.open(rig.now);
    rig.until(LIMIT, |rig| rig.client.torn.contains(&(over, Reason::TooMany)));
    for id in ids {
        rig.bulk(id, 1000, LIMIT);
    }
    assert_eq!(rig.client.torn.len(), 1);
}

/// The frames among these bytes.
fn frames(bytes: &[u8]) -> Vec<(Header, Vec<u8>)> {
    let mut all = Vec::new();
    Scanner::new(FRAME_BYTES).scan(bytes, &mut |found| {
        if let Found::Frame(header, payload) = found {
            all.push((header, payload.to_vec()));
        }
    });
    all
}

/// Everything that an end has to send now.
fn sent(link: &mut Link, now: Instant) -> Vec<(Header, Vec<u8>)> {
    let mut out = Vec::new();
    while link.transmit(now, &mut out) {}
    frames(&out)
}

/// An agent with a session whose client is this test: the header to write to it with.
fn greeted() -> (Link, Header, Instant) {
    let now = Instant::now();
    let mut link = Link::new(Role::Acceptor, LIMITS, 5, now);
    let header = Header { kind: kind::HELLO, from: 77, ..Header::default() };
    receive(&mut link, header, &[1, 0, 4, 0, 0, 2, 0, 0, 0, 4, 0], now);
    let answers = sent(&mut link, now);
    let (answer, _) = answers.last().expect("an answer");
    assert_eq!((answer.kind, answer.to), (kind::HELLO, 77));
    (link, Header { from: 77, to: answer.from, ..Header::default() }, now)
}

fn receive(link: &mut Link, header: Header, payload: &[u8], now: Instant) {
    let mut bytes = Vec::new();
    frame::encode(&header, payload, &mut bytes);
    link.receive(&bytes, now);
}

#[test]
fn unknown_kinds_are_passed_over_and_acknowledged_if_they_have_a_number() {
    let (mut link, header, now) = greeted();
    receive(&mut link, Header { kind: 5, ..header }, b"?", now);
    assert_eq!(sent(&mut link, now), []);
    receive(&mut link, Header { kind: 200, ..header }, b"?", now);
    receive(&mut link, Header { kind: kind::OPEN, seq: 1, channel: 3, ..header }, &[0, 0, 1, 0, 9], now);
    let answer = sent(&mut link, now);
    assert_eq!((answer[0].0.kind, answer[0].0.ack, link.take_opened()), (kind::ACK, 2, Some(3)));
}

#[test]
fn a_peer_that_sends_more_than_its_credit_loses_its_channel() {
    let (mut link, header, now) = greeted();
    receive(&mut link, Header { kind: kind::OPEN, channel: 3, ..header }, &[0, 0, 1, 0], now);
    let whole = vec![1; 512];
    for seq in 1..=(CREDIT / whole.len()) as u16 {
        receive(&mut link, Header { kind: kind::DATA, seq, channel: 3, ..header }, &whole, now);
    }
    assert_eq!(link.mux().channels()[0].torn, None);
    let seq = (CREDIT / whole.len()) as u16 + 1;
    receive(&mut link, Header { kind: kind::DATA, seq, channel: 3, ..header }, b"x", now);
    assert_eq!(link.mux().channels()[0].torn, Some(Reason::Credit));
    let answer = sent(&mut link, now);
    assert!(answer.iter().any(|(header, payload)| header.kind == kind::RESET && payload == &[2]), "{answer:?}");
}

#[test]
fn what_is_meant_for_another_session_is_stale_and_told_so() {
    let (mut link, header, now) = greeted();
    receive(&mut link, Header { kind: kind::OPEN, channel: 3, to: 12345, ..header }, &[0, 0, 1, 0], now);
    receive(&mut link, Header { kind: kind::OPEN, channel: 3, from: 78, ..header }, &[0, 0, 1, 0], now);
    assert_eq!(link.take_opened(), None);
    let answer = sent(&mut link, now);
    assert_eq!((answer[0].0.kind, answer[0].0.to, answer[0].0.from), (kind::HELLO, 78, header.to));
}

#[test]
fn a_line_that_echoes_is_known_by_it() {
    let now = Instant::now();
    let mut link = Link::new(Role::Opener, LIMITS, 5, now);
    link.open(now);
    link.on_time(now);
    let mut out = Vec::new();
    assert!(link.transmit(now, &mut out));
    link.receive(&out, now);
    assert!(link.account().explain("x").is_some_and(|text| text.ends_with("the line echoes")));
}
