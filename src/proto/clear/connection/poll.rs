//! What a connection waits for, and what it does when that has happened.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::engine::CHUNK;
use crate::exec::BLIND_POLL;
use crate::proto::clear::connection::{Connection, OUTGOING_HIGH};
use crate::proto::clear::shim::Shim;
use crate::sys::fd::{self, PollSet, Ready};

/// How long buffers are kept for more output.
const IDLE: Duration = Duration::from_millis(50);

/// What an entry of the poll set stands for.
pub(super) enum Source {
    Stop,
    Bell,
    Peer,
    PeerOut,
    End,
    Output(usize),
    Input(usize),
}

impl Connection<'_> {
    /// Waits until something happens, but not longer than so.
    pub(super) fn look(
        &mut self,
        set: &mut PollSet,
        sources: &mut Vec<Source>,
        most: Option<Duration>,
    ) -> io::Result<()> {
        set.clear();
        sources.clear();
        self.watch(set, sources);
        set.wait(self.time_left().into_iter().chain(most).min())?;
        if !(0..sources.len()).any(|index| set.ready(index).readable || set.ready(index).writable) {
            self.outgoing.trim();
        }
        Ok(())
    }

    /// Acts on all that has happened.
    pub(super) fn handle_all(&mut self, set: &PollSet, sources: &[Source]) -> io::Result<()> {
        let outputs = sources.iter().enumerate();
        let outputs = outputs.filter(|(at, source)| matches!(source, Source::Output(_)) && set.ready(*at).readable);
        let share = CHUNK.min(OUTGOING_HIGH / outputs.count().max(1));
        for (at, source) in sources.iter().enumerate() {
            let ready = set.ready(at);
            if ready.readable || ready.writable || ready.hung_up {
                self.handle(source, ready, share)?;
            }
        }
        Ok(())
    }

    fn watch(&self, set: &mut PollSet, sources: &mut Vec<Source>) {
        let mut add = |set: &mut PollSet, fd, events, source| {
            set.watch(fd, events);
            sources.push(source);
        };
        add(set, self.circumstances.stop, fd::READ, Source::Stop);
        if let Some(bell) = &self.bell {
            add(set, bell.watch(), fd::READ, Source::Bell);
        }
        let room = self.outgoing.cost() < OUTGOING_HIGH;
        let input = match () {
            () if self.is_busy && self.stream.is_one() => self.departure.events(),
            () if self.is_busy || !self.takes_frames() => fd::HANG_UP,
            // What it has sent waits for the process; but its departure must be seen.
            () if self.blocked => fd::PEER_ENDED,
            () => fd::READ,
        };
        let output = if self.outgoing.is_empty() { fd::HANG_UP } else { fd::WRITE };
        if self.stream.is_one() {
            add(set, self.stream.input(), input | output, Source::Peer);
        } else {
            // A pipe that is closed at its other end hangs up although there are bytes left in it, and would do so for ever.
            if input != fd::HANG_UP {
                add(set, self.stream.input(), input, Source::Peer);
            }
            add(set, self.stream.output(), output, Source::PeerOut);
        }
        let Some(running) = self.shim.as_ref().and_then(Shim::running) else { return };
        if let Some(end) = running.session.end_watch().filter(|_| running.status.is_none()) {
            add(set, end, fd::READ, Source::End);
        }
        for (index, flow) in running.flows.iter().enumerate() {
            if let Some(rd) = flow.rd.as_ref().filter(|_| room) {
                add(set, rd.as_fd(), fd::READ, Source::Output(index));
            }
            if let Some(wr) = &flow.wr {
                let events = if flow.queued() > 0 { fd::WRITE } else { fd::HANG_UP };
                add(set, wr.as_fd(), events, Source::Input(index));
            }
        }
    }

    /// How long nothing may happen before there is something to do.
    fn time_left(&self) -> Option<Duration> {
        let now = Instant::now();
        let running = self.shim.as_ref().and_then(Shim::running);
        let room = self.outgoing.cost() < OUTGOING_HIGH;
        let quiet = running.filter(|_| room).and_then(|running| running.deadline());
        let pending = self.pending.as_ref().map(|pending| pending.deadline);
        let afterwards = self.afterwards.as_ref().map(|after| after.deadline);
        let deadline =
            quiet.into_iter().chain(pending).chain(afterwards).map(|until| until.saturating_duration_since(now)).min();
        let blind = running.is_some_and(|running| running.status.is_none() && running.session.end_watch().is_none());
        let idle = self.outgoing.has_spare().then_some(IDLE);
        deadline.into_iter().chain(blind.then_some(BLIND_POLL)).chain(idle).min()
    }

    fn handle(&mut self, source: &Source, ready: Ready, share: usize) -> io::Result<()> {
        let shim = self.shim.as_mut();
        match *source {
            Source::Stop => self.stopped = true,
            Source::Bell => self.bell.iter().for_each(|bell| bell.clear()),
            Source::Peer => return self.read_peer(ready),
            Source::PeerOut => self.gone |= ready.hung_up,
            Source::End => shim.into_iter().for_each(Shim::look),
            Source::Output(index) => shim.into_iter().for_each(|shim| shim.read(index, share, &mut self.outgoing)),
            Source::Input(index) => shim.into_iter().for_each(|shim| shim.write(index, ready.hung_up)),
        }
        Ok(())
    }

    fn read_peer(&mut self, ready: Ready) -> io::Result<()> {
        if !ready.readable && !ready.hung_up {
            return Ok(());
        }
        if !self.wants_input() {
            // Not asked to read, only told that nothing more will be sent; or, where that is known, that nobody listens.
            if self.is_busy {
                self.gone |= self.departure.is_seen(self.stream.input(), ready.hung_up);
            } else {
                self.gone |= ready.hung_up && self.input_over;
                self.input_over |= ready.hung_up;
            }
            return Ok(());
        }
        match self.inbox.fill(self.stream.input(), self.expected) {
            Ok(0) => self.input_over = true,
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            _ => {}
        }
        Ok(())
    }
}
