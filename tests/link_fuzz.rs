//! The link against chance: random programs on a random line, and frames that no honest peer would send. Every run has a seed, and prints it.

use std::collections::{BTreeMap, VecDeque};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use lodger::link::frame::{self, Header};
use lodger::link::greeting::{Limits, Role};
use lodger::link::session::Link;
use lodger::link::{
    ACCEPT_MAX, CREDIT, FRAME_BYTES, FRAME_BYTES_CLEAN, Reason, WINDOW_BYTES, WINDOW_BYTES_CLEAN, kind,
};

const LIMITS: Limits = Limits { frame: FRAME_BYTES, window: WINDOW_BYTES };

/// Those of an end that believes its line to be clean: QEMU's socket on one side of a UART.
const LIMITS_CLEAN: Limits = Limits { frame: FRAME_BYTES_CLEAN, window: WINDOW_BYTES_CLEAN };

/// Bytes that wait for the line before no more frames are made.
const KERNEL_BYTES: usize = 4096;

const TICK: Duration = Duration::from_millis(1);

/// Bytes in front of what is said on a channel, by which the other end knows it.
const TAG_BYTES: usize = 8;

/// Most channels that are open at once.
const CHANNELS: u64 = 12;

/// Pseudo-random numbers.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        // The first numbers of neighbouring seeds are alike.
        for _ in 0..8 {
            random.next();
        }
        random
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 8
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// True once in so many times; never for 0.
    fn once_in(&mut self, count: u64) -> bool {
        count != 0 && self.below(count) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| from[self.below(from.len() as u64) as usize])
    }
}

/// Byte `index` of what is said under a tag.
fn said(tag: u64, index: usize) -> u8 {
    match index.checked_sub(TAG_BYTES) {
        None => tag.to_le_bytes()[index],
        Some(index) => ((tag ^ index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 & 0x7f,
    }
}

/// One direction of a line.
struct Wire {
    bytes: VecDeque<(Instant, u8)>,
    busy_until: Instant,
    byte_time: Duration,
    delay: Duration,
    /// One byte in so many is damaged, and in front of one in so many a line is printed; 0: none.
    noise: u64,
    text: u64,
    /// Nothing is read until then.
    stopped_until: Instant,
}

impl Wire {
    fn put(&mut self, byte: u8, now: Instant) {
        self.busy_until = self.busy_until.max(now) + self.byte_time;
        self.bytes.push_back((self.busy_until + self.delay, byte));
    }

    fn write(&mut self, bytes: &[u8], now: Instant, random: &mut Random) {
        for byte in bytes {
            if random.once_in(self.text) {
                b"[    1.234567] a line that a kernel prints\r\n".iter().for_each(|byte| self.put(*byte, now));
            }
            match if random.once_in(self.noise) { random.below(4) } else { 4 } {
                0 => {}
                1 => (0..2).for_each(|_| self.put(*byte, now)),
                2 => self.put(random.next() as u8, now),
                3 => self.put(byte ^ (1 << random.below(8)), now),
                _ => self.put(*byte, now),
            }
        }
    }

    fn read(&mut self, now: Instant) -> Vec<u8> {
        let stopped = now < self.stopped_until;
        let count = if stopped { 0 } else { self.bytes.iter().take_while(|(at, _)| *at <= now).count() };
        self.bytes.drain(..count).map(|(_, byte)| byte).collect()
    }

    /// Whether the line takes no more: the reader has stopped, or it is slow.
    fn room(&self, now: Instant) -> usize {
        let waiting = if now < self.stopped_until {
            self.bytes.len()
        } else {
            (self.busy_until.saturating_duration_since(now).as_nanos() / self.byte_time.as_nanos()) as usize
        };
        KERNEL_BYTES.saturating_sub(waiting)
    }
}

/// What one end knows of a channel.
#[derive(Default)]
struct Known {
    /// Of what it says itself: the tag, and how many bytes of it were said.
    tag: u64,
    said: usize,
    got: Vec<u8>,
    pauses: bool,
}

/// A channel that is over at one end.
struct Over {
    known: Known,
    /// Neither the session nor anybody else has torn it.
    whole: bool,
}

/// One end with its programs.
struct End {
    link: Link,
    known: BTreeMap<u16, Known>,
    over: Vec<Over>,
    sink: (UnixStream, UnixStream),
}

impl End {
    fn new(role: Role, limits: Limits, seed: u64, now: Instant) -> End {
        let sink = UnixStream::pair().expect("a socket pair");
        sink.0.set_nonblocking(true).expect("a socket");
        sink.1.set_nonblocking(true).expect("a socket");
        let mut link = Link::new(role, limits, seed, now);
        link.keep_text();
        End { link, known: BTreeMap::new(), over: Vec::new(), sink }
    }

    /// Does for the channels what a pump does.
    fn hand_on(&mut self, random: &mut Random) {
        while let Some(id) = self.link.take_opened() {
            let before = self.known.insert(id, Known { tag: random.next(), ..Known::default() });
            assert!(before.is_none(), "channel {id} was opened twice");
        }
        let mut torn = Vec::new();
        for channel in self.link.mux().channels() {
            let Some(known) = self.known.get_mut(&channel.id) else { panic!("nobody has opened {}", channel.id) };
            if channel.torn.is_some() {
                assert!(matches!(channel.torn, Some(Reason::Session | Reason::Gone)), "{:?}", channel.torn);
                torn.push(channel.id);
                continue;
            }
            while !channel.inbound.is_empty() && !known.pauses {
                let before = channel.inbound.len();
                channel.inbound.write_to(self.sink.0.as_fd()).expect("the sink is there");
                let count = before - channel.inbound.len();
                channel.consume(count);
                let start = known.got.len();
                known.got.resize(start + count, 0);
                self.sink.1.read_exact(&mut known.got[start..]).expect("what was written");
            }
            assert!(channel.inbound.len() <= CREDIT);
        }
        torn.into_iter().for_each(|id| self.tear(id));
        self.link.mux().sweep();
        let alive: Vec<u16> = self.link.mux().channels().iter().map(|channel| channel.id).collect();
        let ended: Vec<u16> = self.known.keys().copied().filter(|id| !alive.contains(id)).collect();
        let over = ended.iter().filter_map(|id| self.known.remove(id)).map(|known| Over { known, whole: true });
        self.over.extend(over);
        assert!(self.link.take_text().len() < 1 << 20);
    }

    fn tear(&mut self, id: u16) {
        self.link.mux().reset(id, Reason::Gone);
        self.over.extend(self.known.remove(&id).map(|known| Over { known, whole: false }));
    }

    /// Reads, thinks, writes.
    fn step(&mut self, to: &mut Wire, from: &mut Wire, now: Instant, random: &mut Random) {
        let bytes = from.read(now);
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let (part, others) = rest.split_at(random.below(rest.len() as u64) as usize + 1);
            self.link.receive(part, now);
            rest = others;
        }
        self.link.on_time(now);
        let mut out = Vec::new();
        while out.len() < to.room(now) && self.link.transmit(now, &mut out) {}
        self.hand_on(random);
        while out.len() < to.room(now) && self.link.transmit(now, &mut out) {}
        to.write(&out, now, random);
        let deadline = self.link.deadline();
        assert!(deadline.is_none_or(|deadline| deadline > now), "the deadline is in the past: a pump would spin");
    }

    /// One of the programs does something.
    fn act(&mut self, random: &mut Random) {
        let ids: Vec<u16> = self.known.keys().copied().collect();
        let Some(id) = random.pick(&ids) else { return };
        let Some(channel) = self.link.mux().channels().iter_mut().find(|channel| channel.id == id) else { return };
        let Some(known) = self.known.get_mut(&id) else { return };
        match random.below(20) {
            0 => channel.end(),
            1 => self.tear(id),
            2..6 => known.pauses = !known.pauses,
            _ if channel.wants_outbound() => {
                let most = 1 << (4 + random.below(13));
                let count = random.below(most) as usize;
                let bytes: Vec<u8> = (known.said..known.said + count).map(|index| said(known.tag, index)).collect();
                channel.outbound.push(&bytes);
                known.said += count;
            }
            _ => {}
        }
    }

    /// All programs read what is there and end.
    fn wind_up(&mut self) {
        self.known.values_mut().for_each(|known| known.pauses = false);
        self.link.mux().channels().iter_mut().for_each(lodger::link::mux::Channel::end);
    }
}

/// A line with its two ends.
struct Rig {
    seed: u64,
    /// Of the client and of the agent.
    limits: [Limits; 2],
    random: Random,
    now: Instant,
    client: End,
    agent: End,
    up: Wire,
    down: Wire,
    /// Channels of ends that were killed.
    lost: Vec<Over>,
}

impl Rig {
    fn new(seed: u64) -> Rig {
        let (mut random, now) = (Random::new(seed), Instant::now());
        let byte_time = Duration::from_nanos([87_000, 10_000, 1_000, 250][random.below(4) as usize]);
        let mut wire = || Wire {
            bytes: VecDeque::new(),
            busy_until: now,
            byte_time,
            delay: Duration::from_micros([0, 100, 3_000, 30_000][random.below(4) as usize]),
            noise: [0, 100_000, 10_000, 1_000][random.below(4) as usize],
            text: [0, 5_000, 500][random.below(3) as usize],
            stopped_until: now,
        };
        let (up, down) = (wire(), wire());
        let limits = [0, 0].map(|_| if random.once_in(2) { LIMITS } else { LIMITS_CLEAN });
        let client = End::new(Role::Opener, limits[0], random.next(), now);
        let agent = End::new(Role::Acceptor, limits[1], random.next(), now);
        Rig { seed, limits, random, now, client, agent, up, down, lost: Vec::new() }
    }

    fn step(&mut self) {
        self.client.step(&mut self.up, &mut self.down, self.now, &mut self.random);
        self.agent.step(&mut self.down, &mut self.up, self.now, &mut self.random);
        self.now += TICK;
    }

    /// Something happens that is nobody's fault.
    fn chance(&mut self, restarts: bool) {
        if self.random.once_in(50) && (self.client.known.len() as u64) < CHANNELS {
            let id = self.client.link.open(self.now);
            self.client.known.insert(id, Known { tag: self.random.next(), ..Known::default() });
        }
        if self.random.once_in(5) {
            self.client.act(&mut self.random);
            self.agent.act(&mut self.random);
        }
        if self.random.once_in(1000) {
            let until = self.now + Duration::from_millis(self.random.below(3000));
            if self.random.once_in(2) { self.up.stopped_until = until } else { self.down.stopped_until = until }
        }
        if restarts && self.random.once_in(800) {
            let (end, role, limits) = match self.random.below(2) {
                0 => (&mut self.client, Role::Opener, self.limits[0]),
                _ => (&mut self.agent, Role::Acceptor, self.limits[1]),
            };
            let mut old = std::mem::replace(end, End::new(role, limits, self.random.next(), self.now));
            let known = std::mem::take(&mut old.known).into_values().map(|known| Over { known, whole: false });
            self.lost.extend(old.over.into_iter().chain(known));
        }
    }

    /// Everything that was said and not torn has arrived, and nothing else has.
    fn check(&self) {
        let all = || self.client.over.iter().chain(&self.agent.over).chain(&self.lost);
        let by_tag: BTreeMap<u64, &Over> = all().map(|over| (over.known.tag, over)).collect();
        for over in all() {
            let got = &over.known.got;
            let Some(tag) = got.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)) else { continue };
            let speaker = by_tag.get(&tag).unwrap_or_else(|| panic!("seed {}: nobody has said that", self.seed));
            assert!(got.len() <= speaker.known.said, "seed {}: more has come than was said", self.seed);
            let wrong = got.iter().enumerate().find(|(index, byte)| said(tag, *index) != **byte);
            assert_eq!(wrong, None, "seed {}: of {} bytes", self.seed, got.len());
            if over.whole && speaker.whole {
                assert_eq!(got.len(), speaker.known.said, "seed {}: something is missing", self.seed);
            }
        }
    }
}

/// Runs four seconds of chance, then lets both ends come to rest on a line that has become clean.
fn run(seed: u64, restarts: bool) -> usize {
    println!("seed {seed}");
    let mut rig = Rig::new(seed);
    for _ in 0..4000 {
        rig.chance(restarts);
        rig.step();
    }
    for wire in [&mut rig.up, &mut rig.down] {
        (wire.noise, wire.text, wire.stopped_until) = (0, 0, rig.now);
    }
    let limit = rig.now + Duration::from_secs(180);
    loop {
        rig.client.wind_up();
        rig.agent.wind_up();
        rig.step();
        let idle = |end: &End| end.link.is_idle() && end.known.is_empty();
        // What a killed client has said may still be under way, and open channels.
        if idle(&rig.client) && idle(&rig.agent) && rig.up.bytes.is_empty() && rig.down.bytes.is_empty() {
            break;
        }
        assert!(rig.now < limit, "seed {seed}: no rest: {:#?} and {:#?}", rig.client.link, rig.agent.link);
    }
    (0..1000).for_each(|_| rig.step());
    assert!(rig.client.link.is_idle() && rig.agent.link.is_idle(), "seed {seed}");
    assert_eq!((rig.client.link.deadline(), rig.agent.link.deadline()), (None, None), "seed {seed}");
    assert!(rig.up.bytes.is_empty() && rig.down.bytes.is_empty(), "seed {seed}: bytes on an idle line");
    rig.check();
    rig.client.over.iter().chain(&rig.agent.over).map(|over| over.known.got.len()).sum()
}

/// The seeds of a test; others, and more of them, by the environment.
fn seeds(first: u64, count: u64) -> impl Iterator<Item = u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let first = number("LODGER_FUZZ_SEED").unwrap_or(first);
    first..first + number("LODGER_FUZZ_COUNT").unwrap_or(count)
}

#[test]
fn everything_arrives_in_order_and_all_ends_come_to_rest() {
    let moved: usize = seeds(1, 16).map(|seed| run(seed, false)).sum();
    println!("{moved} bytes");
    assert!(moved > 1 << 20);
}

#[test]
fn restarts_at_any_moment_mix_nothing_up() {
    for seed in seeds(1000, 16) {
        run(seed, true);
    }
}

/// What one end has to say reaches the other, most times.
fn pass(from: &mut Link, to: &mut Link, now: Instant, random: &mut Random) {
    let mut out = Vec::new();
    from.on_time(now);
    while from.transmit(now, &mut out) {}
    if !random.once_in(100) {
        to.receive(&out, now);
    }
}

#[test]
fn numbers_begin_again_behind_the_largest() {
    let (mut random, mut now) = (Random::new(3), Instant::now());
    let mut client = Link::new(Role::Opener, LIMITS, 1, now);
    let mut agent = Link::new(Role::Acceptor, LIMITS, 2, now);
    client.open(now);
    let (mut sent, mut came) = (0, 0);
    let sink = UnixStream::pair().expect("a socket pair");
    while came < 70_000 {
        if let Some(channel) = agent.mux().channels().first_mut().filter(|channel| channel.outbound.bytes().is_empty())
        {
            channel.outbound.push(&[said(9, sent)]);
            sent += 1;
        }
        pass(&mut client, &mut agent, now, &mut random);
        pass(&mut agent, &mut client, now, &mut random);
        while agent.take_opened().is_some() {}
        for channel in client.mux().channels() {
            if !channel.inbound.is_empty() {
                let count = channel.inbound.len();
                channel.inbound.write_to(sink.0.as_fd()).expect("there is room");
                let mut bytes = vec![0; count];
                (&sink.1).read_exact(&mut bytes).expect("what was written");
                assert!(bytes.iter().enumerate().all(|(index, byte)| *byte == said(9, came + index)), "behind {came}");
                channel.consume(count);
                came += count;
            }
        }
        now += Duration::from_millis(1);
    }
}

/// A frame of random fields that are right just often enough.
fn hostile_frame(random: &mut Random, from: u32, to: u32, next: &mut u16) -> Vec<u8> {
    let mut header = Header { from, to, ack: random.next() as u16, ..Header::default() };
    header.kind = random.pick(&[1, 2, 2, 8, 9, 9, 9, 10, 11, 12, 5, 200]).unwrap_or(0);
    if random.once_in(50) {
        let sessions = [0, from, to, random.next() as u32, random.next() as u32];
        (header.from, header.to) = (random.pick(&sessions).unwrap_or(0), random.pick(&sessions).unwrap_or(0));
    }
    if random.once_in(2) {
        header.ack = random.below(8) as u16;
    }
    header.channel = random.below(80) as u16;
    header.seq = match random.below(4) {
        0 => random.next() as u16,
        1 => next.wrapping_add(random.below(300) as u16),
        _ => {
            *next = next.wrapping_add(1);
            next.wrapping_sub(1)
        }
    };
    let length = if random.once_in(2) { random.below(12) } else { random.below(960) };
    let mut payload: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
    if header.kind == kind::HELLO && random.once_in(2) {
        payload = [&[random.below(4) as u8][..], &payload].concat();
    }
    let mut bytes = Vec::new();
    frame::encode(&header, &payload, &mut bytes);
    bytes
}

/// Sends a link whatever may come, answers of a peer that lies among it.
fn torment(seed: u64, role: Role) {
    println!("seed {seed}, {role:?}");
    let (mut random, mut now) = (Random::new(seed), Instant::now());
    let mut link = Link::new(role, LIMITS, seed, now);
    let (mut mine, mut theirs, mut next) = (7u32, 0u32, 0u16);
    let (mut out, mut sink) = (Vec::new(), frame::Scanner::new(FRAME_BYTES));
    for round in 0..6000 {
        if role == Role::Opener && random.once_in(20) && link.mux().channels().len() < ACCEPT_MAX {
            let id = link.open(now);
            let channel = link.mux().channels().iter_mut().find(|channel| channel.id == id);
            channel.into_iter().for_each(|channel| channel.outbound.push(&[1; 5000]));
        }
        if random.once_in(300) {
            // A greeting that is understood.
            (mine, next) = (random.next() as u32 | 1, 0);
            let flags = if role == Role::Opener { 2 } else { 1 };
            let header = Header { kind: kind::HELLO, from: mine, to: theirs, ..Header::default() };
            let payload = [&[flags][..], &random.next().to_le_bytes(), &random.next().to_le_bytes()].concat();
            frame::encode(&header, &payload, &mut out);
            link.receive(&std::mem::take(&mut out), now);
        }
        let mut bytes = hostile_frame(&mut random, mine, theirs, &mut next);
        if random.once_in(20) {
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] = random.next() as u8;
        }
        link.receive(&bytes, now);
        link.on_time(now);
        out.clear();
        while out.len() < 64 << 10 && link.transmit(now, &mut out) {}
        assert!(out.len() < 256 << 10, "round {round}: no end of frames");
        sink.scan(&out, &mut |found| {
            if let frame::Found::Frame(header, _) = found {
                theirs = header.from;
            }
        });
        out.clear();
        assert!(link.deadline().is_none_or(|deadline| deadline > now), "round {round}: the deadline is in the past");
        // The pump's work: some channels have readers, and all torn ones go.
        while link.take_opened().is_some() {}
        let channels = link.mux().channels();
        assert!(channels.len() <= ACCEPT_MAX && channels.iter().all(|channel| channel.inbound.len() <= CREDIT));
        for channel in channels.iter_mut().filter(|channel| channel.id % 2 == 0) {
            channel.consume(channel.inbound.len());
            channel.inbound.clear();
        }
        let torn: Vec<u16> =
            channels.iter().filter(|channel| channel.torn.is_some()).map(|channel| channel.id).collect();
        torn.into_iter().for_each(|id| link.mux().reset(id, Reason::Gone));
        link.mux().sweep();
        now += Duration::from_micros(random.below(4000));
        if random.once_in(1000) {
            now += Duration::from_secs(random.below(40));
        }
    }
}

#[test]
fn whatever_a_peer_sends_neither_breaks_nor_fills_the_other_end() {
    for seed in seeds(5000, 6) {
        torment(seed, Role::Acceptor);
        torment(seed, Role::Opener);
    }
}
