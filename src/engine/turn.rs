//! The loop itself: what to wait for, and what to do when it has come.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use crate::engine::running::{Flow, Running, Written};
use crate::engine::{
    Action, CHUNK, Codec, Event, IDLE, LINGER, LULL, OUTBOX_HIGH, PIPE_FULL, PROGRAMS_MAX, QUEUE_MAX, SHARE_MIN, Step,
};
use crate::exec::{self, NotStarted, Program, Session, parting};
use crate::stream::Stream;
use crate::stream::inbox::Inbox;
use crate::stream::outbox::Outbox;
use crate::sys::fd::{self, PollSet};
use crate::sys::signal;

/// What an entry of the poll set stands for.
enum Source {
    Stop,
    Peer,
    PeerOut,
    End(usize),
    Output(usize, usize),
    Input(usize, usize),
}

/// Why no more messages are taken.
#[derive(PartialEq, Eq)]
enum Stopped {
    /// The next one is not all there.
    ForInput,
    /// Something of ours is full or over.
    ByUs,
}

pub struct Engine<'c, C> {
    codec: &'c mut C,
    stop: BorrowedFd<'c>,
    stream: Stream,
    inbox: Inbox,
    expected: usize,
    outbox: Outbox,
    programs: Vec<Running>,
    /// Bytes that each stream with output may have this round.
    share: usize,
    /// A program has just started, or its output has ended: nothing is written before something else has happened, or `LULL` is over.
    lull: bool,
    /// The peer sends no more, or is not listened to any more.
    input_over: bool,
    broken: Option<String>,
}

impl<'c, C: Codec> Engine<'c, C> {
    /// A new connection; `head` are bytes of it that were read already.
    pub fn new(stream: Stream, head: &[u8], codec: &'c mut C, stop: BorrowedFd<'c>) -> Engine<'c, C> {
        let (mut inbox, mut outbox) = (Inbox::default(), Outbox::default());
        inbox.push(head);
        codec.begin(&mut outbox);
        Engine {
            codec,
            stop,
            stream,
            inbox,
            expected: 0,
            outbox,
            programs: Vec::new(),
            share: CHUNK,
            lull: false,
            input_over: false,
            broken: None,
        }
    }

    /// What outlives the loop: the stream, the programs that still run (their own streams are closed), and why the peer was given up.
    pub fn into_rest(self) -> (Stream, Vec<Session>, Option<String>) {
        (self.stream, self.programs.into_iter().map(|running| running.session).collect(), self.broken)
    }

    /// Serves until the peer goes or is done, or the agent ends.
    pub fn serve(&mut self) -> io::Result<()> {
        let mut set = PollSet::default();
        let mut sources = Vec::new();
        loop {
            let stopped = self.take_messages();
            self.finish_programs();
            if !self.lull {
                self.outbox.write_to(self.stream.output())?;
            }
            if stopped == Stopped::ByUs && self.takes_messages() {
                continue;
            }
            if self.input_over || self.codec.is_done() {
                return self.flush();
            }
            set.clear();
            sources.clear();
            self.watch(&mut set, &mut sources);
            set.wait(self.time_left())?;
            self.lull = false;
            if self.is_idle() && !(0..sources.len()).any(|index| set.ready(index).readable) {
                self.outbox.trim();
            }
            let is_output =
                |(index, source): (usize, &Source)| matches!(source, Source::Output(..)) && set.ready(index).readable;
            let outputs = sources.iter().enumerate().filter(|entry| is_output(*entry)).count();
            self.share = (OUTBOX_HIGH / outputs.max(1)).clamp(SHARE_MIN, CHUNK);
            for (index, source) in sources.iter().enumerate() {
                let ready = set.ready(index);
                if (ready.readable || ready.writable || ready.hung_up) && !self.handle(source, ready)? {
                    return Ok(());
                }
            }
        }
    }

    /// Writes the last answers, for as long as the peer takes some of them and the agent stays.
    fn flush(&mut self) -> io::Result<()> {
        let mut set = PollSet::default();
        while !self.outbox.is_empty() {
            set.clear();
            let stop = set.watch(self.stop, fd::READ);
            let peer = set.watch(self.stream.output(), fd::WRITE);
            set.wait(Some(LINGER))?;
            if set.ready(stop).readable || !set.ready(peer).writable {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.outbox.write_to(self.stream.output())?;
        }
        Ok(())
    }

    /// Whether the peer may be read: no program's input is piling up.
    fn wants_input(&self) -> bool {
        let queued = || self.programs.iter().flat_map(|running| &running.flows).map(Flow::queued).sum::<usize>();
        !self.input_over && (self.codec.window().is_some() || queued() < QUEUE_MAX)
    }

    /// Whether messages may be acted on: their answers have room too.
    fn takes_messages(&self) -> bool {
        self.wants_input() && self.outbox.len() < OUTBOX_HIGH && !self.codec.is_done()
    }

    fn take_messages(&mut self) -> Stopped {
        while self.takes_messages() {
            // Taken out, so that the data in a message can be borrowed from it while the engine acts.
            let mut inbox = std::mem::take(&mut self.inbox);
            let mut stopped = None;
            match self.codec.decode(inbox.bytes(), &mut self.outbox) {
                Step::Incomplete { expected } => {
                    self.expected = expected;
                    stopped = Some(Stopped::ForInput);
                }
                Step::Message { used, action } => {
                    self.act(action);
                    inbox.consume(used);
                }
                Step::Broken { why } => {
                    self.input_over = true;
                    self.broken = Some(why);
                }
            }
            self.inbox = inbox;
            if let Some(stopped) = stopped {
                return stopped;
            }
        }
        Stopped::ByUs
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::None => {}
            Action::Start { id, program, credit } => self.start(id, program, credit),
            Action::Input { id, stream, data } => {
                let window = self.codec.window();
                let Some(flow) = find(&mut self.programs, id).and_then(|running| running.flow(stream)) else { return };
                let written = flow.take(&data);
                if window.is_some_and(|window| flow.queued() > window as usize) {
                    let why =
                        format!("stream {stream} got more than its window of {} bytes", window.unwrap_or_default());
                    return self.give_up(why);
                }
                self.after_write(id, stream, written);
            }
            Action::EndInput { id, stream } => {
                let Some(flow) = find(&mut self.programs, id).and_then(|running| running.flow(stream)) else { return };
                if flow.is_output() && self.codec.window().is_some() {
                    // The client reads that output no more: the program shall meet a broken pipe.
                    flow.rd = None;
                    return;
                }
                let written = flow.end();
                self.after_write(id, stream, written);
            }
            Action::Signal { id, signal } => self.signal(id, signal),
            Action::Resize { id, window } => {
                let result = find(&mut self.programs, id).map_or(Ok(()), |running| running.session.resize(window));
                if let Err(error) = result {
                    self.note(log::Level::Warn, format!("resize the terminal: {error}"));
                }
            }
            Action::Credit { id, stream, bytes } => {
                let flow = find(&mut self.programs, id).and_then(|running| running.flow(stream));
                if let Some(credit) = flow.and_then(|flow| flow.credit.as_mut()) {
                    *credit = credit.saturating_add(u64::from(bytes));
                }
                // A stream that was stopped was not silent: its time begins now.
                if let Some(since) = find(&mut self.programs, id).and_then(|running| running.quiet_since.as_mut()) {
                    *since = Instant::now();
                }
            }
            Action::HangUp => self.hang_up(),
            Action::Close => self.input_over = true,
        }
    }

    /// Ends all programs, without holding up the loop for their time of grace.
    fn hang_up(&mut self) {
        let sessions: Vec<Session> = self.programs.drain(..).map(|running| running.session).collect();
        parting::hang_up_meanwhile(sessions);
    }

    /// Ends the connection because the peer breaks the rules.
    fn give_up(&mut self, why: String) {
        self.note(log::Level::Error, why.clone());
        self.input_over = true;
        self.broken = Some(why);
    }

    fn start(&mut self, id: u32, program: Result<Box<Program>, NotStarted>, credit: Option<u64>) {
        let started = program.and_then(|program| {
            if self.programs.iter().any(|running| running.id == id) {
                return Err(NotStarted::Refused(format!("program number {id} is taken on this connection")));
            }
            if self.programs.len() >= PROGRAMS_MAX {
                let text = format!("more programs than the limit of {PROGRAMS_MAX} on this connection");
                return Err(NotStarted::Refused(text));
            }
            exec::start(&program).map(|(session, channels)| (program, session, channels))
        });
        match started {
            Err(why) => self.codec.encode(Event::NotStarted { id, why: &why }, &mut self.outbox),
            Ok((program, session, channels)) => {
                let (pid, detached) = (session.pid(), program.detached);
                self.codec.encode(Event::Started { id, pid, detached }, &mut self.outbox);
                if !detached {
                    self.programs.push(Running::new(id, session, channels, credit, program.terminal.is_some()));
                    self.lull = true;
                }
            }
        }
    }

    fn signal(&mut self, id: u32, number: i64) {
        let result = match find(&mut self.programs, id) {
            None => return self.note(log::Level::Debug, format!("signal {number} for a program that has ended")),
            Some(running) => match i32::try_from(number) {
                Ok(number @ 1..=signal::SIGNAL_MAX) => running.session.signal(number),
                _ => Err(io::ErrorKind::InvalidInput.into()),
            },
        };
        if let Err(error) = result {
            self.note(log::Level::Warn, format!("send signal {number}: {error}"));
        }
    }

    fn note(&mut self, level: log::Level, text: String) {
        self.codec.encode(Event::Note { level, text }, &mut self.outbox);
    }

    fn after_write(&mut self, id: u32, stream: u32, written: Written) {
        let window = self.codec.window();
        let flow = find(&mut self.programs, id).and_then(|running| running.flow(stream));
        if written == Written::ClosedByProgram {
            self.codec.encode(Event::InputClosed { id, stream }, &mut self.outbox);
        } else if let Some(bytes) = window.and_then(|window| flow?.take_grant(window)) {
            self.codec.encode(Event::Granted { id, stream, bytes }, &mut self.outbox);
        }
    }

    /// Reports the programs that have ended and whose output is complete.
    fn finish_programs(&mut self) {
        let now = Instant::now();
        let blind = |running: &Running| running.session.end_watch().is_none();
        self.programs.iter_mut().filter(|running| blind(running)).for_each(|running| running.look(now));
        while let Some(index) = self.programs.iter_mut().position(|running| running.is_complete(now)) {
            let running = self.programs.remove(index);
            let id = running.id;
            for flow in running.flows.iter().filter(|flow| flow.rd.is_some()) {
                self.codec.encode(Event::OutputEnded { id, stream: flow.number }, &mut self.outbox);
            }
            if let Some(status) = running.status {
                self.lull = false;
                self.codec.encode(Event::Ended { id, status }, &mut self.outbox);
            }
        }
    }

    fn watch(&self, set: &mut PollSet, sources: &mut Vec<Source>) {
        let mut add = |set: &mut PollSet, fd, events, source| {
            set.watch(fd, events);
            sources.push(source);
        };
        add(set, self.stop, fd::READ, Source::Stop);
        let room = self.outbox.len() < OUTBOX_HIGH;
        let input = match (room, self.wants_input()) {
            (true, true) => fd::READ,
            // Its input waits for a program; but when it goes away, the program must not stay.
            (true, false) => fd::PEER_ENDED,
            (false, _) => fd::HANG_UP,
        };
        let output = if self.outbox.is_empty() || self.lull { fd::HANG_UP } else { fd::WRITE };
        if self.stream.is_one() {
            add(set, self.stream.input(), input | output, Source::Peer);
        } else {
            // A pipe that is closed at its other end hangs up although there are bytes left in it, and would do so for ever.
            if room {
                add(set, self.stream.input(), input, Source::Peer);
            }
            add(set, self.stream.output(), output, Source::PeerOut);
        }
        for (program, running) in self.programs.iter().enumerate() {
            if running.status.is_none()
                && let Some(fd) = running.session.end_watch()
            {
                add(set, fd, fd::READ, Source::End(program));
            }
            for (index, flow) in running.flows.iter().enumerate() {
                if let Some(rd) = flow.rd.as_ref().filter(|_| room && flow.room(1) > 0) {
                    add(set, rd.as_fd(), fd::READ, Source::Output(program, index));
                }
                if let Some(wr) = &flow.wr {
                    let events = if flow.queued() > 0 { fd::WRITE } else { fd::HANG_UP };
                    add(set, wr.as_fd(), events, Source::Input(program, index));
                }
            }
        }
    }

    /// How long nothing may happen before there is something to do.
    fn time_left(&self) -> Option<Duration> {
        let now = Instant::now();
        let room = self.outbox.len() < OUTBOX_HIGH;
        let quiet = self.programs.iter().filter(|_| room).filter_map(Running::deadline).min();
        let quiet = quiet.map(|deadline| deadline.saturating_duration_since(now));
        let blind = |running: &Running| running.status.is_none() && running.session.end_watch().is_none();
        let blind = self.programs.iter().any(blind).then_some(exec::BLIND_POLL);
        let idle = (self.is_idle() && self.outbox.has_spare()).then_some(IDLE);
        quiet.into_iter().chain(blind).chain(self.lull.then_some(LULL)).chain(idle).min()
    }

    /// Whether nothing is under way.
    fn is_idle(&self) -> bool {
        self.programs.is_empty() && self.outbox.is_empty()
    }

    /// Acts on one entry of the poll set. `false`: the peer is gone.
    fn handle(&mut self, source: &Source, ready: fd::Ready) -> io::Result<bool> {
        match *source {
            Source::Stop => return Ok(false),
            Source::Peer => return self.read_peer(ready),
            Source::PeerOut if ready.hung_up => return Ok(false),
            Source::PeerOut => self.outbox.write_to(self.stream.output())?,
            Source::End(program) => self.programs[program].look(Instant::now()),
            Source::Output(program, flow) => self.read_output(program, flow),
            Source::Input(program, index) => {
                let running = &mut self.programs[program];
                let (id, flow) = (running.id, &mut running.flows[index]);
                let stream = flow.number;
                let written = if ready.hung_up { flow.closed_by_program() } else { flow.flush() };
                self.after_write(id, stream, written);
            }
        }
        Ok(true)
    }

    fn read_peer(&mut self, ready: fd::Ready) -> io::Result<bool> {
        if !ready.readable && !ready.hung_up {
            // There is room for what waits, which is written before the next poll.
            return Ok(true);
        }
        if !self.wants_input() || self.outbox.len() >= OUTBOX_HIGH {
            // Not asked to read, only told that nothing more will be sent.
            self.input_over |= ready.hung_up;
            return Ok(true);
        }
        match self.inbox.fill(self.stream.input(), self.expected) {
            Ok(0) => {
                self.input_over = true;
                self.codec.end_of_input(&mut self.outbox);
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    fn read_output(&mut self, program: usize, index: usize) {
        let running = &mut self.programs[program];
        let (id, flow) = (running.id, &mut running.flows[index]);
        let Some(rd) = &flow.rd else { return };
        let limit = flow.room(self.share.min(flow.chunk));
        match self.outbox.fill(|bytes| fd::read_append(rd.as_fd(), bytes, limit)) {
            Ok(count @ 1..) => {
                let (head, tail) = self.codec.around(id, flow.number, count);
                self.outbox.seal(head, tail);
                if count == flow.chunk {
                    flow.chunk = (flow.chunk * 4).min(CHUNK);
                }
                flow.credit = flow.credit.map(|credit| credit - count as u64);
                running.quiet_since = running.quiet_since.map(|_| Instant::now());
                if count == PIPE_FULL {
                    // Refused for sockets, terminals and users over their limit; then it stays as it is.
                    let _ = fd::set_pipe_size(rd.as_fd(), CHUNK);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.outbox.discard(),
            // EIO is how a terminal says that its last user has gone.
            Ok(0) | Err(_) => {
                self.outbox.discard();
                flow.rd = None;
                self.codec.encode(Event::OutputEnded { id, stream: flow.number }, &mut self.outbox);
                self.lull = true;
            }
        }
    }
}

fn find(programs: &mut [Running], id: u32) -> Option<&mut Running> {
    programs.iter_mut().find(|running| running.id == id)
}
