//! The thread between a line and the local ends of its channels.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::link::account::Account;
use crate::link::console::Console;
use crate::link::session::{Limits, Link, Role};
use crate::link::{FRAME_BYTES, FRAME_BYTES_CLEAN, Reason, WINDOW_BYTES, WINDOW_BYTES_CLEAN};
use crate::stream::inbox::Inbox;
use crate::stream::{Stream, Witness};
use crate::sys::fd::{self, PollSet};
use crate::sys::tty;

/// Bytes that wait for the line before more frames are made: what is in a frame is decided as late as possible.
const OUT_MARK: usize = 16 << 10;

/// Bytes read from the line before what came is answered.
const READ_BYTES: usize = 64 << 10;

/// Bytes of stack of the thread.
const STACK_BYTES: usize = 256 << 10;

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
struct Pump<'a> {
    line: &'a Stream,
    link: Link,
    locals: Vec<Local>,
    out: Inbox,
    console: Option<Console>,
    buffer: Vec<u8>,
    /// Who asks why a channel was closed.
    shared: Option<&'a Shared>,
}

/// What a line takes. A terminal may be a UART; everything else in this place is clean and slows its writer down.
fn limits(line: &Stream) -> Limits {
    match tty::settings(line.input()) {
        Ok(_) => Limits { frame: FRAME_BYTES, window: WINDOW_BYTES },
        Err(_) => Limits { frame: FRAME_BYTES_CLEAN, window: WINDOW_BYTES_CLEAN },
    }
}

impl Pump<'_> {
    fn new<'a>(
        line: &'a Stream,
        role: Role,
        console: Option<Console>,
        shared: Option<&'a Shared>,
    ) -> io::Result<Pump<'a>> {
        line.set_nonblocking(true)?;
        let seed = RandomState::new().build_hasher().finish();
        let mut link = Link::new(role, limits(line), seed, Instant::now());
        if console.is_some() {
            link.keep_text();
        }
        Ok(Pump { line, link, locals: Vec::new(), out: Inbox::default(), console, buffer: vec![0; READ_BYTES], shared })
    }

    /// Puts a socket behind a channel, and gives the other end of it.
    fn local(&mut self, id: u16) -> io::Result<OwnedFd> {
        let (ours, theirs) = fd::socket_pair()?;
        self.add(id, ours)?;
        Ok(theirs)
    }

    fn add(&mut self, id: u16, socket: OwnedFd) -> io::Result<()> {
        fd::never_block(socket.as_fd())?;
        self.locals.push(Local { id, socket, ended: false });
        Ok(())
    }

    /// Everything that needs no waiting.
    fn work(&mut self) -> io::Result<()> {
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
        if let Some(shared) = self.shared {
            shared.lock().note(self.link.account());
        }
        let mut gone = Vec::new();
        for channel in self.link.mux().channels() {
            let Some(local) = self.locals.iter_mut().find(|local| local.id == channel.id) else { continue };
            if channel.torn.is_some() {
                gone.push(channel.id);
                continue;
            }
            let before = channel.inbound.len();
            if channel.inbound.write_to(local.socket.as_fd()).is_err() {
                gone.push(channel.id);
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
        self.locals.retain(|local| channels.iter().any(|channel| channel.id == local.id));
    }

    /// Waits for something to do. `wake`: what else to wait for. The answer says whether that can be read; an error is the line's end.
    fn wait(&mut self, wake: Option<BorrowedFd>) -> io::Result<bool> {
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
                Source::Line if ready.readable => self.read_line()?,
                Source::Wake => woken = ready.readable,
                Source::Local(id) if ready.readable => self.read_local(id),
                // What can be written is tried by `work`.
                _ => {}
            }
        }
        Ok(woken)
    }

    fn read_line(&mut self) -> io::Result<()> {
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
        Ok(())
    }

    fn read_local(&mut self, id: u16) {
        let Some(local) = self.locals.iter().find(|local| local.id == id) else { return };
        let Some(channel) = self.link.mux().channels().iter_mut().find(|channel| channel.id == id) else { return };
        if !channel.wants_outbound() {
            return;
        }
        match channel.outbound.fill(local.socket.as_fd(), 0) {
            Ok(0) => channel.end(),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.link.mux().reset(id, Reason::Gone),
        }
    }

    /// The line is gone; that is still to be handed on.
    fn end(&mut self, why: &'static str) {
        // What came last may be a frame's beginning for ever.
        self.link.on_time(Instant::now() + Duration::from_secs(1));
        if let Some(console) = &mut self.console {
            console.push(&self.link.take_text());
        }
        self.link.end_session(why);
    }
}

/// Serves a line: `accept` is given a stream for every channel that is opened on it. Returns when the agent
/// shall stop (`stop` can be read), all streams are closed, and what was said on them has arrived. `quiet`: nothing is
/// sent before a client speaks.
///
/// # Errors
/// Those of the line, when it ends: `UnexpectedEof`, or what the system says.
pub fn serve(line: &Stream, stop: BorrowedFd, quiet: bool, accept: &mut dyn FnMut(Stream)) -> io::Result<()> {
    let mut pump = Pump::new(line, Role::Acceptor, None, None)?;
    if quiet {
        pump.link.keep_quiet();
    }
    let mut stopping = false;
    loop {
        let result = pump.work().and_then(|()| pump.wait((!stopping).then_some(stop)));
        match result {
            Ok(woken) => stopping |= woken,
            Err(error) => {
                pump.end("the line ended");
                pump.hand_on();
                return Err(error);
            }
        }
        while let Some(id) = pump.link.take_opened() {
            match pump.local(id) {
                Ok(theirs) if !stopping => accept(Stream::over_socket(theirs)),
                _ => pump.link.mux().reset(id, Reason::NoRoom),
            }
        }
        // Clients may keep their side open until they see the machine's end.
        if stopping && pump.link.has_told_all() {
            return Ok(());
        }
    }
}

/// What an opener and its thread share.
#[derive(Debug, Default)]
struct Shared {
    state: Mutex<Requests>,
    idle: Condvar,
}

#[derive(Debug, Default)]
struct Requests {
    /// Local ends of channels to open.
    open: VecDeque<OwnedFd>,
    account: Account,
    /// No channel is open, and all that was said has arrived; or the line has ended.
    idle: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Requests> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_idle(&self, idle: bool) {
        self.lock().idle = idle;
        self.idle.notify_all();
    }

    fn wait_idle(&self, patience: Duration) {
        let _ = self.idle.wait_timeout_while(self.lock(), patience, |requests| !requests.idle);
    }
}

/// What is known of a line before it is opened, and wanted of it.
#[derive(Debug, Default)]
pub struct Wishes {
    /// Where the text goes that comes beside the frames.
    pub console: Option<OwnedFd>,
    /// The agent is about to start, and will say so.
    pub starts: bool,
}

/// The opening end of a line, in a thread of its own. It ends when this and all streams are dropped, or the line ends.
#[derive(Debug)]
pub struct Opener {
    shared: Arc<Shared>,
    /// Wakes the thread when it is written to or closed.
    wake: OwnedFd,
    name: String,
}

impl Opener {
    /// Takes over a line. `name`: what to call it in messages.
    pub fn start(line: Stream, name: impl Into<String>, wishes: Wishes) -> io::Result<Opener> {
        let (wakes, wake) = fd::pipe()?;
        fd::never_block(wakes.as_fd())?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let work = move || {
            // The line's end is told by its channels.
            let _ = run(&line, &theirs, &wakes, wishes);
            theirs.note_idle(true);
        };
        thread::Builder::new().stack_size(STACK_BYTES).spawn(work)?;
        Ok(Opener { shared, wake, name: name.into() })
    }

    /// Opens a channel. It is there at once, and carries something as soon as an agent is at the other end.
    pub fn open(&self) -> io::Result<Stream> {
        let (ours, theirs) = fd::socket_pair()?;
        self.shared.lock().open.push_back(ours);
        // The pipe is full only when the thread has enough reasons to wake up.
        let _ = fd::write(self.wake.as_fd(), &[0]);
        let (shared, name) = (Arc::clone(&self.shared), self.name.clone());
        let tell = move || shared.lock().account.explain(&name);
        let shared = Arc::clone(&self.shared);
        let settle = move |patience| shared.wait_idle(patience);
        Ok(Stream::over_socket(theirs).with_witness(Witness::new(tell, settle)))
    }
}

fn run(line: &Stream, shared: &Shared, wakes: &OwnedFd, wishes: Wishes) -> io::Result<()> {
    let mut pump = Pump::new(line, Role::Opener, wishes.console.map(Console::new), Some(shared))?;
    if wishes.starts {
        pump.link.expect_start();
    }
    let mut more = true;
    loop {
        let result = pump.work().and_then(|()| {
            let wanted = !shared.lock().open.is_empty();
            shared.note_idle(!wanted && pump.link.is_idle());
            pump.wait(more.then_some(wakes.as_fd()))
        });
        let woken = match result {
            Ok(woken) => woken,
            Err(error) => {
                pump.end("the line ended");
                pump.hand_on();
                return Err(error);
            }
        };
        if woken {
            more = !matches!(fd::read(wakes.as_fd(), &mut [0; 64]), Ok(0));
            while let Some(socket) = { shared.lock().open.pop_front() } {
                let id = pump.link.open(Instant::now());
                pump.add(id, socket)?;
            }
        }
        if !more && pump.link.is_idle() {
            return Ok(());
        }
    }
}

impl Requests {
    /// Keeps what the line's account says now.
    fn note(&mut self, account: &Account) {
        if self.account != *account {
            self.account.clone_from(account);
        }
    }
}
