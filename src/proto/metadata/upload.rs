//! The log on its way to the host: one post that lasts as long as the task, or more of them where the connection breaks.

use std::io;
use std::time::{Duration, Instant};

use crate::http::connection::Connection;
use crate::http::head::Request;
use crate::http::retry;
use crate::metaservice::LOG;
use crate::proto::metadata::backlog::{Backlog, Offered, Taken};
use crate::proto::metadata::{Guest, why};
use crate::sys::fd::{self, PollSet};

/// Bytes of one chunk. Upstream's number.
const CHUNK: usize = 32 << 10;

/// A connection that has lived so long is a new beginning of the schedule.
const LONG_LIFE: Duration = Duration::from_secs(5);

/// What becomes of one post.
enum Posted {
    /// All of the log is with the host.
    Whole,
    /// It ended early, and another attempt makes sense or not.
    Broken { text: String, again: bool },
}

/// One series of posts.
struct Upload<'a> {
    guest: &'a Guest<'a>,
    backlog: &'a Backlog,
    /// Something was sent that nobody has answered for.
    unsure: bool,
    /// Such a post broke: bytes may be missing.
    broke: bool,
}

/// Sends the log until it has ended and the host has answered. Whether the host has all of it, for sure.
pub fn run(guest: &Guest, backlog: &Backlog) -> bool {
    let mut upload = Upload { guest, backlog, unsure: false, broke: false };
    let mut whole = true;
    let (mut attempts, mut attempts_after_end) = (0, 0);
    loop {
        let begun = Instant::now();
        let (text, again) = match upload.post() {
            Posted::Whole => return whole && backlog.dropped() == 0,
            Posted::Broken { text, again } => (text, again),
        };
        if guest.is_stopped() {
            return false;
        }
        upload.broke |= upload.unsure;
        whole &= !std::mem::take(&mut upload.unsure);
        attempts = if begun.elapsed() > LONG_LIFE { 1 } else { attempts + 1 };
        // While the program runs there is time, and nothing is lost by trying.
        attempts_after_end += u32::from(backlog.is_closed());
        if !again || attempts_after_end > guest.timers().retries {
            let lost = backlog.give_up();
            log::error!("log: {text}; given up, {lost} bytes that waited are lost");
            return false;
        }
        if attempts == 1 {
            log::warn!("log: {text}; once more");
        }
        if guest.pause_before_retry(attempts) {
            return false;
        }
    }
}

impl Upload<'_> {
    fn post(&mut self) -> Posted {
        let again = |error: io::Error| Posted::Broken { text: why(&error), again: true };
        let mut connection = match self.open() {
            Ok(connection) => connection,
            Err(error) => return again(error),
        };
        match self.send(&mut connection) {
            Ok(true) => {}
            Ok(false) => return self.early_answer(connection),
            // A host that takes nothing any more after the end has had its time.
            Err(error) if error.kind() == io::ErrorKind::TimedOut && self.backlog.is_closed() => {
                return Posted::Broken { text: "the host takes nothing".to_owned(), again: false };
            }
            Err(error) => return again(error),
        }
        match connection.response(self.guest.within(self.guest.timers().log_patience)) {
            Ok(response) if response.status == 200 => Posted::Whole,
            Ok(response) => refused(response.status),
            Err(error) => Posted::Broken { again: error.kind() != io::ErrorKind::TimedOut, text: why(&error) },
        }
    }

    fn open(&self) -> io::Result<Connection> {
        let limits = self.guest.within(self.guest.timers().request);
        let host = &self.guest.config.host;
        let mut connection = host.connect(limits)?;
        let request = Request::new("POST", LOG).with("Host", host.host()).with("Transfer-Encoding", "chunked");
        connection.send_head(&request, limits)?;
        Ok(connection)
    }

    /// Sends what there is until the end. False when the host has said something before, or is gone.
    fn send(&mut self, connection: &mut Connection) -> io::Result<bool> {
        let patience = self.guest.timers().log_patience;
        let mut chunk = Vec::new();
        if self.broke {
            let text = b"\r\n[lodger: the connection of this log broke here; bytes before this may be missing]\r\n";
            connection.chunk(text, self.guest.within(patience))?;
            self.broke = false;
        }
        loop {
            if !self.wait(connection)? {
                return Ok(false);
            }
            let taken = self.backlog.take(CHUNK, &mut chunk);
            if taken.is_end && taken.dropped == 0 {
                connection.end_chunks(self.guest.within(patience))?;
                return Ok(true);
            }
            if let Err(error) = self.send_taken(connection, &taken, &chunk) {
                self.backlog.put_back(&taken, &chunk);
                return Err(error);
            }
            self.unsure = true;
            self.backlog.moved(Instant::now());
        }
    }

    /// One chunk, and in front of it what is missing there.
    fn send_taken(&self, connection: &mut Connection, taken: &Taken, chunk: &[u8]) -> io::Result<()> {
        let patience = self.guest.timers().log_patience;
        if taken.dropped > 0 {
            let text = format!("\r\n[lodger: {} bytes of this log are missing here]\r\n", taken.dropped);
            connection.chunk(text.as_bytes(), self.guest.within(patience))?;
        }
        connection.chunk(chunk, self.guest.within(patience))
    }

    /// Waits until something can be sent. False when the host says something or is gone.
    fn wait(&self, connection: &Connection) -> io::Result<bool> {
        let mut until: Option<Instant> = None;
        let mut set = PollSet::default();
        loop {
            let Offered { is_ready: ready, is_closed: closed } = self.backlog.look();
            if closed {
                until = until.or_else(|| Some(Instant::now() + self.guest.timers().log_patience));
            }
            set.clear();
            set.watch(self.guest.stop, fd::READ);
            let peer = set.watch(connection.watch(), if ready { fd::READ | fd::WRITE } else { fd::READ });
            if !closed {
                set.watch(self.backlog.more(), fd::READ);
            }
            set.wait(until.map(|until| until.saturating_duration_since(Instant::now())))?;
            if set.ready(0).readable {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            let found = set.ready(peer);
            if found.readable || found.hung_up {
                return Ok(false);
            }
            if ready && found.writable {
                return Ok(true);
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    fn early_answer(&self, mut connection: Connection) -> Posted {
        match connection.response(self.guest.within(self.guest.timers().request)) {
            Ok(response) if response.status >= 400 => refused(response.status),
            Ok(_) => Posted::Broken { text: "the host wants no more of it".to_owned(), again: true },
            Err(error) => Posted::Broken { text: why(&error), again: true },
        }
    }
}

fn refused(status: u16) -> Posted {
    Posted::Broken { text: format!("status {status}"), again: retry::is_retried(Ok(status)) }
}
