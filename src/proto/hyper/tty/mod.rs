//! The tty channel: output of many programs, and input for them.
//!
//! ```text
//! 00 00 00 00 00 00 00 03  00 00 00 0f  6f 6b 0a    "ok\n" of the program with stdio 3
//! 00 00 00 00 00 00 00 03  00 00 00 0c              its end; from the host: the end of its input
//! 00 00 00 00 00 00 00 03  00 00 00 0d  07          its exit code
//! ```
//!
//! Input for a number that no program has is dropped, and so is the end of input for a terminal. There is no flow control, so a program that
//! does not read its input would hold up that of all others behind it. Input waits up to `STDIN_MAX`, that of all programs together; then the
//! channel is not read until they take some. The one with most of it that takes none for `STUCK_PATIENCE` while others have an open input gets
//! a hang-up: to lose input would go unnoticed, an exit code does not. Alone it may take as long as it likes. (Its signals and windows come
//! over the other channel.)
//! A host that reads nothing holds up the output of programs, also the end of it, and so theirs: there are no more than may run.

mod program;

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::Ended;
use crate::exec;
use crate::proto::Circumstances;
use crate::proto::hyper::pair::{Channel, Pair, Seat, Streams};
use crate::proto::hyper::tty::program::Program;
use crate::stream::Stream;
use crate::stream::inbox::Inbox;
use crate::stream::outbox::Outbox;
use crate::sys::fd::{self, PollSet};
use crate::sys::signal;

/// For `,proto=NAME` in an address.
pub const NAME: &str = "hyper-tty";

/// Bytes of a header.
pub const HEADER_BYTES: usize = 12;

/// Longest message that is taken, in bytes, with its header: that of hyperstart 1.x on vsock. The proxy sends 10,240 at the most.
pub const MESSAGE_MAX: usize = 64 << 10;

/// Bytes of output in one message: no message is longer than those that the proxy sends.
pub const OUTPUT_MAX: usize = 10_240 - HEADER_BYTES;

/// Bytes that wait for the host above which no program is read: some messages, so that what a person types is answered behind little.
const OUTBOX_HIGH: usize = 128 << 10;

/// Bytes of input that programs have not read, together, above which the channel is not read: room for one that is slow, and no more in a
/// small guest however many there are. One message may come on top.
pub const STDIN_MAX: usize = 1 << 20;

/// How long a program may read nothing of a full queue while others may be waiting for input.
pub const STUCK_PATIENCE: Duration = Duration::from_secs(10);

/// How long the last output may take to be written when the host has ended its direction.
const LINGER: Duration = Duration::from_secs(10);

/// Serves the channel until it ends.
///
/// # Errors
/// Those of the stream.
pub fn serve(stream: Stream, head: &[u8], circumstances: &Circumstances) -> io::Result<Ended> {
    stream.set_nonblocking(true)?;
    let pair = &circumstances.settings.hyper;
    let Some(seat) = pair.enter(Channel::Tty, &stream)? else {
        stream.end();
        return Ok(Ended::Broken("there is another tty channel".to_owned()));
    };
    let mut tty = Tty::new(stream, head, Arc::clone(pair), seat, circumstances);
    let ended = tty.serve();
    tty.stream.end();
    let regular = tty.regular();
    let Tty { seat, programs, .. } = tty;
    let lost = seat.leave(programs.into_iter().map(|program| program.streams).collect());
    pair.hang_up(lost, circumstances.stop);
    match ended {
        Err(error) if is_departure(&error) => Ok(regular),
        ended => ended,
    }
}

fn is_departure(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected, TimedOut};
    matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected | TimedOut)
}

/// What an entry of the poll set stands for.
#[derive(Clone, Copy)]
enum Source {
    Stop,
    Bell,
    Host,
    HostOut,
    End(usize),
    Output(usize, usize),
    Input(usize, usize),
}

struct Tty<'a> {
    stream: Stream,
    pair: Arc<Pair>,
    seat: Seat,
    circumstances: &'a Circumstances<'a>,
    inbox: Inbox,
    outbox: Outbox,
    programs: Vec<Program>,
    was_used: bool,
    /// The host sends no more.
    input_over: bool,
}

impl<'a> Tty<'a> {
    fn new(stream: Stream, head: &[u8], pair: Arc<Pair>, seat: Seat, circumstances: &'a Circumstances<'a>) -> Tty<'a> {
        let mut inbox = Inbox::default();
        inbox.push(head);
        let (outbox, programs, was_used) = (Outbox::default(), Vec::new(), !head.is_empty());
        Tty { stream, pair, seat, circumstances, inbox, outbox, programs, was_used, input_over: false }
    }

    fn regular(&self) -> Ended {
        if self.was_used { Ended::Regular } else { Ended::Unused }
    }

    fn serve(&mut self) -> io::Result<Ended> {
        let mut set = PollSet::default();
        let mut sources = Vec::new();
        loop {
            self.take_started()?;
            // In this order: what ends may be what the messages wait for.
            self.finish_programs();
            if let Err(why) = self.take_messages() {
                return Ok(Ended::Broken(why));
            }
            self.outbox.write_to(self.stream.output())?;
            if self.outbox.is_empty() {
                self.pair.has_told();
            }
            self.look_at_queues();
            if self.input_over {
                return self.flush();
            }
            set.clear();
            sources.clear();
            self.watch(&mut set, &mut sources);
            set.wait(self.time_left())?;
            for (index, source) in sources.iter().enumerate() {
                let ready = set.ready(index);
                if (ready.readable || ready.writable || ready.hung_up) && !self.handle(*source, ready)? {
                    return Ok(self.regular());
                }
            }
        }
    }

    /// Takes the programs that are new, unless the host has gone: then it started them for another channel.
    fn take_started(&mut self) -> io::Result<()> {
        let started = self.pair.take_started();
        if started.is_empty() {
            return Ok(());
        }
        if fd::wait_for(self.stream.input(), fd::PEER_ENDED, Some(Duration::ZERO))?.hung_up {
            self.pair.leave(started);
            self.input_over = true;
            return Ok(());
        }
        self.was_used = true;
        self.programs.extend(started.into_iter().map(|streams| Program { streams, full_since: None }));
        Ok(())
    }

    /// Writes what waits, for as long as the host takes some of it and the agent stays.
    fn flush(&mut self) -> io::Result<Ended> {
        let mut set = PollSet::default();
        while !self.outbox.is_empty() {
            set.clear();
            set.watch(self.circumstances.stop, fd::READ);
            set.watch(self.stream.output(), fd::WRITE);
            set.wait(Some(LINGER))?;
            if set.ready(0).readable || !set.ready(1).writable {
                break;
            }
            self.outbox.write_to(self.stream.output())?;
        }
        Ok(self.regular())
    }

    /// Whether the channel may be read: input is not piling up.
    fn wants_input(&self) -> bool {
        self.programs.iter().map(Program::queued).sum::<usize>() < STDIN_MAX
    }

    fn has_room(&self) -> bool {
        self.outbox.len() < OUTBOX_HIGH
    }

    /// Acts on the messages that have come. The error says that the host cannot be understood any more.
    fn take_messages(&mut self) -> Result<(), String> {
        while self.wants_input() {
            let bytes = self.inbox.bytes();
            let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return Ok(()) };
            let (sequence, length) = split(header);
            if length < HEADER_BYTES {
                return Err(format!("a message of {length} bytes is shorter than its header"));
            }
            if length > MESSAGE_MAX {
                return Err(format!("a message of {length} bytes is longer than the limit of {MESSAGE_MAX}"));
            }
            let Some(data) = rest.get(..length - HEADER_BYTES) else { return Ok(()) };
            match self.programs.iter_mut().find(|program| program.streams.stdio == sequence) {
                Some(program) => program.take(data),
                None => log::debug!("input for sequence {sequence}, which no program has"),
            }
            self.inbox.consume(length);
        }
        Ok(())
    }

    /// Tells of the programs that have ended and whose output is complete, and ends those that hold up the others.
    fn finish_programs(&mut self) {
        let now = Instant::now();
        let running = self.programs.iter_mut().map(|program| &mut program.streams.running);
        running.filter(|running| running.session.end_watch().is_none()).for_each(|running| running.look(now));
        while let Some(index) = self.programs.iter_mut().position(|program| program.streams.running.is_complete(now)) {
            let program = self.programs.remove(index);
            let Streams { stdio, running, .. } = program.streams;
            let code = running.status.map_or(255, |status| status.code()) as u8;
            // Its numbers are free before the host hears of it, and its process number after it can be found no more.
            self.pair.end(stdio);
            drop(running);
            self.outbox.push(&encode(stdio, b""));
            self.outbox.push(&encode(stdio, &[code]));
        }
        let with_input = self.programs.iter().filter(|program| program.has_input()).count();
        let stuck = self.programs.iter_mut().filter(|program| program.is_stuck(now) && with_input > 1);
        if let Some(program) = stuck.max_by_key(|program| program.queued()) {
            log::warn!("program {} reads no input and holds up others: hung up", program.streams.stdio);
            program.end_input();
            let _ = program.streams.running.session.signal(signal::SIGHUP);
            let _ = program.streams.running.session.signal(signal::SIGCONT);
        }
    }

    fn look_at_queues(&mut self) {
        // The time of programs runs only while the host takes output: one that waits for that cannot read.
        let now = (!self.wants_input() && self.has_room()).then(Instant::now);
        self.programs.iter_mut().for_each(|program| program.look_at_queue(now));
    }

    fn watch(&self, set: &mut PollSet, sources: &mut Vec<Source>) {
        let mut add = |set: &mut PollSet, fd, events, source| {
            set.watch(fd, events);
            sources.push(source);
        };
        add(set, self.circumstances.stop, fd::READ, Source::Stop);
        add(set, self.seat.bell.watch(), fd::READ, Source::Bell);
        let has_room = self.has_room();
        let input = if self.wants_input() { fd::READ } else { fd::PEER_ENDED };
        let output = if self.outbox.is_empty() { fd::HANG_UP } else { fd::WRITE };
        if self.stream.is_one() {
            add(set, self.stream.input(), input | output, Source::Host);
        } else {
            if self.wants_input() {
                add(set, self.stream.input(), input, Source::Host);
            }
            add(set, self.stream.output(), output, Source::HostOut);
        }
        for (place, program) in self.programs.iter().enumerate() {
            let running = &program.streams.running;
            if let Some(end) = running.session.end_watch().filter(|_| running.status.is_none()) {
                add(set, end, fd::READ, Source::End(place));
            }
            for (index, flow) in running.flows.iter().enumerate() {
                if let Some(rd) = flow.rd.as_ref().filter(|_| has_room) {
                    add(set, rd.as_fd(), fd::READ, Source::Output(place, index));
                }
                if let Some(wr) = &flow.wr {
                    let events = if flow.queued() > 0 { fd::WRITE } else { fd::HANG_UP };
                    add(set, wr.as_fd(), events, Source::Input(place, index));
                }
            }
        }
    }

    /// How long nothing may happen before there is something to do.
    fn time_left(&self) -> Option<Duration> {
        let now = Instant::now();
        let has_room = self.has_room();
        let running = || self.programs.iter().map(|program| &program.streams.running);
        let quiet = running().filter(|_| has_room).filter_map(|running| running.deadline());
        let with_input = self.programs.iter().filter(|program| program.has_input()).count();
        let stuck =
            self.programs.iter().filter(|_| has_room && with_input > 1).filter_map(|program| program.full_since);
        let deadline = quiet.chain(stuck.map(|since| since + STUCK_PATIENCE)).min();
        let blind = running().any(|running| running.status.is_none() && running.session.end_watch().is_none());
        let left = deadline.map(|deadline| deadline.saturating_duration_since(now));
        left.into_iter().chain(blind.then_some(exec::BLIND_POLL)).min()
    }

    /// Acts on one entry of the poll set. `false`: the channel is over.
    fn handle(&mut self, source: Source, ready: fd::Ready) -> io::Result<bool> {
        match source {
            Source::Stop => return Ok(false),
            Source::Bell => self.seat.bell.clear(),
            Source::Host => return self.read_host(ready),
            Source::HostOut => return Ok(!ready.hung_up),
            Source::End(place) => self.programs[place].streams.running.look(Instant::now()),
            Source::Output(place, index) => self.read_output(place, index),
            Source::Input(place, index) => self.programs[place].write_input(index, ready.hung_up),
        }
        Ok(true)
    }

    fn read_host(&mut self, ready: fd::Ready) -> io::Result<bool> {
        if !ready.readable && !ready.hung_up {
            return Ok(true);
        }
        if !self.wants_input() {
            // Not asked to read, only told that nothing more will be sent.
            self.input_over |= ready.hung_up;
            return Ok(true);
        }
        match self.inbox.fill(self.stream.input(), 0) {
            Ok(0) => self.input_over = true,
            Ok(_) => self.was_used = true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    fn read_output(&mut self, place: usize, index: usize) {
        let Streams { stdio, stderr, running, .. } = &mut self.programs[place].streams;
        let flow = &mut running.flows[index];
        let Some(rd) = &flow.rd else { return };
        let sequence = if flow.number == 2 { *stderr } else { *stdio };
        match self.outbox.fill(|bytes| fd::read_append(rd.as_fd(), bytes, OUTPUT_MAX)) {
            Ok(count @ 1..) => {
                self.outbox.seal(&header(sequence, count), b"");
                running.quiet_since = running.quiet_since.map(|_| Instant::now());
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.outbox.discard(),
            // EIO is how a terminal says that its last user has gone.
            Ok(0) | Err(_) => {
                self.outbox.discard();
                flow.rd = None;
            }
        }
    }
}

/// A header for so much data.
fn header(sequence: u64, count: usize) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&sequence.to_be_bytes());
    header[8..].copy_from_slice(&((HEADER_BYTES + count) as u32).to_be_bytes());
    header
}

/// A message as its bytes.
pub fn encode(sequence: u64, data: &[u8]) -> Vec<u8> {
    [&header(sequence, data.len()), data].concat()
}

/// Sequence and length.
fn split(header: &[u8; HEADER_BYTES]) -> (u64, usize) {
    let [s0, s1, s2, s3, s4, s5, s6, s7, length @ ..] = *header;
    (u64::from_be_bytes([s0, s1, s2, s3, s4, s5, s6, s7]), u32::from_be_bytes(length) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_these_bytes() {
        assert_eq!(encode(3, b"ok\n"), *b"\0\0\0\0\0\0\0\x03\0\0\0\x0fok\n");
        assert_eq!(encode(3, b""), *b"\0\0\0\0\0\0\0\x03\0\0\0\x0c");
        assert_eq!(encode(0x0102_0304_0506_0708, &[7]), *b"\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\x0d\x07");
        assert_eq!(split(b"\x01\x02\x03\x04\x05\x06\x07\x08\xff\0\0\x0c"), (0x0102_0304_0506_0708, 0xff00_000c));
        assert_eq!(header(u64::MAX, OUTPUT_MAX)[8..], 10_240u32.to_be_bytes());
    }
}
