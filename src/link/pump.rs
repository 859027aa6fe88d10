//! What stands between a line and the local ends of its channels: one poll loop, in a thread of either end.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::link::account::Account;
use crate::link::console::Console;
use crate::link::greeting::{Limits, Role};
use crate::link::session::Link;
use crate::link::{FRAME_BYTES, FRAME_BYTES_CLEAN, Reason, WINDOW_BYTES, WINDOW_BYTES_CLEAN};
use crate::stream::Stream;
use crate::stream::inbox::Inbox;
use crate::sys::fd::{self, PollSet};
use crate::sys::tty;

/// Bytes that wait for the line before more frames are made: what is in a frame is decided as late as possible.
const OUT_MARK: usize = 16 << 10;

/// Bytes read from the line before what came is answered.
const READ_BYTES: usize = 64 << 10;

/// Bytes read from a line that ends: more than any kernel holds. A peer that goes on writing without reading gets no further.
const LAST_BYTES: usize = 1 << 20;

/// The local end of a channel.
struct Local {
    id: u16,
    socket: OwnedFd,
    /// The local reader has been told that nothing more comes.
    ended: bool,
}

/// What poll(2) watches.
enum Source {
    Line,
    /// A line with two descriptors: the one to write to.
    LineOut,
    Wake,
    Local(u16),
    Console,
}

/// A line at work.
pub struct Pump<'a> {
    line: &'a Stream,
    role: Role,
    pub link: Link,
    locals: Vec<Local>,
    out: Inbox,
    console: Option<Console>,
    buffer: Vec<u8>,
    /// Keeps what was seen of the line, for whoever asks why a channel was closed.
    note: Option<&'a dyn Fn(&Account)>,
}

/// What a line takes. A terminal may be a UART; everything else in this place is clean and slows its writer down.
fn limits(line: &Stream) -> Limits {
    match tty::settings(line.input()) {
        Ok(_) => Limits { frame: FRAME_BYTES, window: WINDOW_BYTES },
        Err(_) => Limits { frame: FRAME_BYTES_CLEAN, window: WINDOW_BYTES_CLEAN },
    }
}

impl Pump<'_> {
    pub fn new<'a>(
        line: &'a Stream,
        role: Role,
        console: Option<Console>,
        note: Option<&'a dyn Fn(&Account)>,
    ) -> io::Result<Pump<'a>> {
        line.set_nonblocking(true)?;
        let seed = RandomState::new().build_hasher().finish();
        let mut link = Link::new(role, limits(line), seed, Instant::now());
        if console.is_some() {
            link.keep_text();
        }
        Ok(Pump {
            line,
            role,
            link,
            locals: Vec::new(),
            out: Inbox::default(),
            console,
            buffer: vec![0; READ_BYTES],
            note,
        })
    }

    /// Puts a socket behind a channel, and gives the other end of it.
    pub fn local(&mut self, id: u16) -> io::Result<OwnedFd> {
        let (ours, theirs) = fd::socket_pair()?;
        self.add(id, ours)?;
        Ok(theirs)
    }

    pub fn add(&mut self, id: u16, socket: OwnedFd) -> io::Result<()> {
        fd::never_block(socket.as_fd())?;
        self.locals.push(Local { id, socket, ended: false });
        Ok(())
    }

    /// Everything that needs no waiting.
    pub fn work(&mut self) -> io::Result<()> {
        self.link.on_time(Instant::now());
        // What has come is acknowledged before anybody here learns of it, and may end this process.
        self.send()?;
        // For the same reason: what was printed before a program's last words is written before they are handed on.
        if let Some(console) = &mut self.console {
            console.push(&self.link.take_text());
        }
        self.hand_on();
        self.send()
    }

    /// Writes to the line what is due.
    fn send(&mut self) -> io::Result<()> {
        loop {
            let now = Instant::now();
            let mut frames = Vec::new();
            while self.out.bytes().len() + frames.len() < OUT_MARK && self.link.transmit(now, &mut frames) {}
            self.out.push(&frames);
            if self.out.bytes().is_empty() {
                return Ok(());
            }
            match fd::write(self.line.output(), self.out.bytes()) {
                Ok(count) => self.out.consume(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives the local ends what came for them.
    fn hand_on(&mut self) {
        // Whoever finds his channel closed asks at once why.
        if let Some(note) = self.note {
            note(self.link.account());
        }
        let mut gone = Vec::new();
        for channel in self.link.mux().channels() {
            let Some(local) = self.locals.iter_mut().find(|local| local.id == channel.id) else { continue };
            let before = channel.inbound.len();
            let written = channel.inbound.write_to(local.socket.as_fd());
            if channel.torn.is_some() {
                // What came before belongs to the reader nevertheless. An acceptor's peer may want the number for another channel.
                if self.role == Role::Acceptor || written.is_err() || channel.inbound.is_empty() {
                    gone.push(channel.id);
                }
                continue;
            }
            if written.is_err() {
                // It has closed, but what it said before is still to be read.
                channel.stop_listening();
                continue;
            }
            channel.consume(before - channel.inbound.len());
            if channel.inbound_ended && channel.inbound.is_empty() && !local.ended {
                local.ended = true;
                // Of a socket that is gone nobody needs to be told.
                let _ = fd::shutdown_write(local.socket.as_fd());
            }
        }
        let mux = self.link.mux();
        gone.into_iter().for_each(|id| mux.reset(id, Reason::Gone));
        mux.sweep();
        let channels = mux.channels();
        self.locals.retain(|local| {
            let stays = channels.iter().any(|channel| channel.id == local.id);
            if !stays {
                // With bytes unread in it, its closing would be a reset, which takes away what was handed on and is not read yet.
                let _ = fd::shutdown(local.socket.as_fd());
                while let Ok(1..) = fd::read(local.socket.as_fd(), &mut self.buffer) {}
            }
            stays
        });
    }

    /// Waits for something to do. `wake`: what else to wait for. The answer says whether that can be read; an error is the line's end.
    pub fn wait(&mut self, wake: Option<BorrowedFd>) -> io::Result<bool> {
        let (mut set, mut sources) = (PollSet::default(), Vec::new());
        let room = if self.out.bytes().is_empty() { 0 } else { fd::WRITE };
        // Once, with the events of both directions: see `Stream::is_one`.
        set.watch(self.line.input(), if self.line.is_one() { fd::READ | room } else { fd::READ });
        sources.push(Source::Line);
        if !self.line.is_one() && room != 0 {
            set.watch(self.line.output(), room);
            sources.push(Source::LineOut);
        }
        if let Some(wake) = wake {
            set.watch(wake, fd::READ);
            sources.push(Source::Wake);
        }
        for channel in self.link.mux().channels() {
            let Some(local) = self.locals.iter().find(|local| local.id == channel.id) else { continue };
            let read = if channel.wants_outbound() { fd::READ } else { 0 };
            let write = if channel.inbound.is_empty() { 0 } else { fd::WRITE };
            // One whose both directions are over would report that for ever.
            if read | write != 0 {
                set.watch(local.socket.as_fd(), read | write);
                sources.push(Source::Local(local.id));
            }
        }
        if let Some(console) = self.console.as_ref().and_then(Console::waits) {
            set.watch(console, fd::WRITE);
            sources.push(Source::Console);
        }
        let timeout = self.link.deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()));
        set.wait(timeout)?;
        let mut woken = false;
        for (index, source) in sources.into_iter().enumerate() {
            let ready = set.ready(index);
            match source {
                Source::Line if ready.readable => _ = self.read_line()?,
                Source::Wake => woken = ready.readable,
                Source::Local(id) if ready.readable => self.read_local(id),
                // What can be written is tried by `work`.
                _ => {}
            }
        }
        Ok(woken)
    }

    /// Takes what has come; the number of bytes.
    fn read_line(&mut self) -> io::Result<usize> {
        let mut count = 0;
        while count < READ_BYTES {
            match fd::read(self.line.input(), &mut self.buffer[count..]) {
                Ok(0) if count == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(0) => break,
                Ok(more) => count += more,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) if count > 0 => break,
                Err(error) => return Err(error),
            }
        }
        self.link.receive(&self.buffer[..count], Instant::now());
        Ok(count)
    }

    fn read_local(&mut self, id: u16) {
        let Some(local) = self.locals.iter().find(|local| local.id == id) else { return };
        let Some(channel) = self.link.mux().channels().iter_mut().find(|channel| channel.id == id) else { return };
        if !channel.wants_outbound() {
            return;
        }
        match channel.outbound.fill(local.socket.as_fd(), 0) {
            Ok(0) => {
                // A client that has closed wants no answer either, and the agent is to know that before it has one.
                let closed = fd::wait_for(local.socket.as_fd(), fd::HANG_UP, Some(Duration::ZERO));
                if self.role == Role::Opener && closed.is_ok_and(|ready| ready.hung_up) {
                    channel.stop_listening();
                }
                channel.end();
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => {
                channel.stop_listening();
                channel.end();
            }
        }
    }

    /// The line is gone: what came over it last is taken, and all channels end.
    pub fn end(&mut self) {
        // That nothing can be written does not mean that nothing is left to read.
        let mut left = LAST_BYTES;
        while let Ok(count @ 1..) = self.read_line() {
            left = left.saturating_sub(count);
            if left == 0 {
                break;
            }
        }
        // And the last of it may be a frame's beginning for ever.
        self.link.on_time(Instant::now() + Duration::from_secs(1));
        if let Some(console) = &mut self.console {
            console.push(&self.link.take_text());
        }
        self.link.end_session("the line ended");
        self.hand_on();
    }

    /// Waits until the local readers, and the console's, have taken what came for them before the line ended, or are gone.
    pub fn wait_for_readers(&mut self) -> io::Result<()> {
        while !self.locals.is_empty() || self.has_console_text() {
            let mut set = PollSet::default();
            if let Some(console) = self.console.as_ref().and_then(Console::waits) {
                set.watch(console, fd::WRITE);
            }
            self.locals.iter().for_each(|local| _ = set.watch(local.socket.as_fd(), fd::WRITE));
            set.wait(None)?;
            self.hand_on();
            if let Some(console) = &mut self.console {
                console.push(&[]);
            }
        }
        Ok(())
    }

    /// Whether text waits for the console's reader.
    pub fn has_console_text(&self) -> bool {
        self.console.as_ref().is_some_and(|console| console.waits().is_some())
    }
}
