//! The log on its way to the host: one post that lasts as long as the task, or more of them where the connection breaks.

use std::io;
use std::time::{Duration, Instant};

use crate::http::retry;
use crate::metaservice::LOG;
use crate::proto::metadata::backlog::{Backlog, Taken};
use crate::proto::metadata::post::Post;
use crate::proto::metadata::{Guest, why};

/// Bytes of one chunk. Upstream's number.
const CHUNK: usize = 32 << 10;

/// A connection that has lived so long is a new beginning of the schedule.
const LONG_LIFE: Duration = Duration::from_secs(5);

/// What stands in the log where a connection broke.
const BROKEN: &[u8] = b"\r\n[lodger: the connection of this log broke here; bytes before this may be missing]\r\n";

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
    /// Such a post broke: bytes may be missing, or be there twice.
    broke: bool,
    /// Bytes that are missing, as a post has said that nobody has answered for.
    announced: u64,
    /// What is being sent; empty when nothing is.
    chunk: Vec<u8>,
}

/// Sends the log until it has ended and the host has answered. Whether the host has all of it, for sure.
pub fn run(guest: &Guest, backlog: &Backlog) -> bool {
    let mut upload = Upload { guest, backlog, unsure: false, broke: false, announced: 0, chunk: Vec::new() };
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
        whole &= !upload.take_back();
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
        let mut post = match Post::open(self.guest, LOG, self.guest.timers().request) {
            Ok(post) => post,
            Err(error) => return again(error),
        };
        log::info!("log: opened");
        match self.send(&mut post) {
            Ok(true) => {}
            Ok(false) => return self.early_answer(post),
            // A host that takes nothing any more after the end has had its time.
            Err(error) if error.kind() == io::ErrorKind::TimedOut && self.backlog.is_closed() => {
                return Posted::Broken { text: "the host takes nothing".to_owned(), again: false };
            }
            Err(error) => return again(error),
        }
        match post.response(self.guest.timers().log_patience) {
            Ok(200) => Posted::Whole,
            Ok(status) => refused(status),
            Err(error) => Posted::Broken { again: error.kind() != io::ErrorKind::TimedOut, text: why(&error) },
        }
    }

    /// Sends what there is until the end. False when the host has answered before, or is gone. While the program runs the host has as long
    /// as it wants, because the backlog does not stop the program for ever; after the end, patience counts from what it has last taken.
    fn send(&mut self, post: &mut Post) -> io::Result<bool> {
        let (mut moved, mut is_ended) = (Instant::now(), false);
        if self.broke {
            post.queue_bytes(BROKEN)?;
        }
        loop {
            let before = post.waiting();
            let answered = post.flush();
            if post.waiting() < before {
                self.unsure = true;
                moved = Instant::now();
                self.backlog.moved(moved);
            }
            if answered? {
                return Ok(false);
            }
            let offered = self.backlog.look();
            if post.waiting() == 0 {
                self.chunk.clear();
                if is_ended {
                    return Ok(true);
                }
                if offered.is_ready {
                    is_ended = self.queue(post)?;
                    moved = Instant::now();
                }
            }
            let more = match offered.is_closed {
                true => None,
                false if post.waiting() == 0 => Some(self.backlog.more()),
                false => Some(self.backlog.end()),
            };
            let until = offered.is_closed.then(|| moved + self.guest.timers().log_patience);
            if post.wait(more, until)? {
                return Ok(false);
            }
        }
    }

    /// Queues a chunk, and in front of it what is missing there; or the end, and then gives true.
    fn queue(&mut self, post: &mut Post) -> io::Result<bool> {
        let Taken { dropped, is_end } = self.backlog.take(CHUNK, &mut self.chunk);
        self.announced += dropped;
        if dropped > 0 {
            let text = format!("\r\n[lodger: {dropped} bytes of this log are missing here]\r\n");
            post.queue_bytes(text.as_bytes())?;
        }
        if is_end && dropped == 0 {
            post.queue_end()?;
            return Ok(true);
        }
        post.queue_bytes(&self.chunk)?;
        Ok(false)
    }

    /// After a post that broke: what it has not sent whole, and what it has said and nobody has answered for, is for the next one. Whether
    /// bytes may be missing.
    fn take_back(&mut self) -> bool {
        let taken = Taken { dropped: std::mem::take(&mut self.announced), is_end: false };
        self.backlog.put_back(&taken, &self.chunk);
        self.chunk.clear();
        self.broke |= self.unsure;
        std::mem::take(&mut self.unsure)
    }

    fn early_answer(&self, post: Post) -> Posted {
        match post.response(self.guest.timers().request) {
            Ok(status) if status >= 400 => refused(status),
            Ok(_) => Posted::Broken { text: "the host wants no more of it".to_owned(), again: true },
            Err(error) => Posted::Broken { text: why(&error), again: true },
        }
    }
}

fn refused(status: u16) -> Posted {
    Posted::Broken { text: format!("status {status}"), again: retry::is_retried(Ok(status)) }
}
