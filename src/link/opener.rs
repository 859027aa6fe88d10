//! The client's end of a line, in a thread of its own.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::link::account::Account;
use crate::link::console::Console;
use crate::link::greeting::Role;
use crate::link::pump::Pump;
use crate::stream::{Stream, Witness};
use crate::sys::fd;

/// Bytes of stack of the thread.
const STACK_BYTES: usize = 256 << 10;

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
    /// The line has ended.
    ended: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Requests> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_idle(&self, idle: bool) {
        let mut requests = self.lock();
        requests.idle = idle && requests.open.is_empty();
        self.idle.notify_all();
    }

    /// Nobody will open the channels that are still wanted: their other ends read an end of file.
    fn refuse_more(&self) {
        let mut requests = self.lock();
        requests.ended = true;
        requests.open.clear();
    }

    fn end(&self) {
        self.refuse_more();
        self.note_idle(true);
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
            theirs.end();
        };
        thread::Builder::new().stack_size(STACK_BYTES).spawn(work)?;
        Ok(Opener { shared, wake, name: name.into() })
    }

    /// Opens a channel. It is there at once, and carries something as soon as an agent is at the other end.
    pub fn open(&self) -> io::Result<Stream> {
        let (ours, theirs) = fd::socket_pair()?;
        let mut requests = self.shared.lock();
        if !requests.ended {
            requests.open.push_back(ours);
            requests.idle = false;
        }
        drop(requests);
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
    let note = |account: &Account| shared.lock().note(account);
    let mut pump = Pump::new(line, Role::Opener, wishes.console.map(Console::new), Some(&note))?;
    if wishes.starts {
        pump.link.expect_start();
    }
    let mut more = true;
    loop {
        let result = pump.work().and_then(|()| {
            shared.note_idle(pump.link.is_idle() && !pump.has_console_text());
            pump.wait(more.then_some(wakes.as_fd()))
        });
        let woken = match result {
            Ok(woken) => woken,
            Err(error) => {
                pump.end();
                shared.refuse_more();
                pump.wait_for_readers()?;
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
            return pump.wait_for_readers();
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
