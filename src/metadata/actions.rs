//! Actions on their way to a guest, and replies on their way back.
//!
//! An action is *waiting* until a poll takes it, *given* while the poll's answer is written, *taken* until a reply comes, and *claimed*
//! from the first request that carries its id, whatever that request is. Each action goes to one poll, and the poll that has waited longest
//! gets the next one. A poll whose connection goes gives its action back. An action whose asker goes is forgotten, and a reply to it is cut.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use data_encoding::BASE64URL_NOPAD;

use crate::metaservice::{Action, Kind};
use crate::stream::Stream;
use crate::sys::fd::{self, PollSet};
use crate::sys::random;

/// How long things may take. The defaults are upstream's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    /// A poll must take an action within this.
    pub poll: Duration,
    /// A request must reply to an action within this; how long its body takes is nobody's business.
    pub reply: Duration,
    /// A poll waits so long before it is told that there is nothing to do.
    pub idle: Duration,
    /// A connection between two requests may stay so long. Go's client closes its own after 90 s: if we were first, a request of it could
    /// be lost on the way.
    pub rest: Duration,
    /// A new connection must begin its first request within this: a guest connects when it has one.
    pub first: Duration,
    /// The head of a request must be there within this of its first byte.
    pub head: Duration,
    /// A peer must take a response within this.
    pub response: Duration,
}

impl Default for Timers {
    fn default() -> Timers {
        let half_a_minute = Duration::from_secs(30);
        Timers {
            poll: half_a_minute,
            reply: half_a_minute,
            idle: half_a_minute,
            rest: 4 * half_a_minute,
            first: Duration::from_secs(10),
            head: Duration::from_secs(10),
            response: half_a_minute,
        }
    }
}

/// Where the bytes of a file go.
pub trait Store: Send {
    /// Forgets what has come: the file begins. Called before each attempt.
    ///
    /// # Errors
    /// Whatever makes further attempts useless.
    fn begin(&mut self) -> io::Result<()>;

    /// Takes the next bytes.
    ///
    /// # Errors
    /// Whatever makes further attempts useless.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
}

impl Store for std::fs::File {
    fn begin(&mut self) -> io::Result<()> {
        self.set_len(0)?;
        io::Seek::rewind(self)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }
}

/// What became of an attempt.
pub enum Outcome {
    Done,
    NotFound,
    Files(Vec<String>),
    /// The connection of a shell behind its handshake, and what had come on it.
    Shell(Stream, Vec<u8>),
    /// No poll has come for it. Worth another attempt, as what follows.
    Unasked,
    /// Why it is worth another attempt, if one is left.
    Broken(&'static str),
    /// What came could not be stored, and will not be the next time.
    Unstored(io::Error),
    /// Nobody wants it any more.
    Unwanted,
}

/// An outcome, and the store that was lent for it.
pub struct Ended {
    pub outcome: Outcome,
    pub store: Option<Box<dyn Store>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Waiting,
    /// To the poll of this number.
    Given(u64),
    Taken,
    Claimed,
    Ended,
}

struct Entry {
    action: Action,
    stage: Stage,
    store: Option<Box<dyn Store>>,
    outcome: Option<Outcome>,
    /// Who wants it: a socket, whose hang-up takes it back.
    asker: Option<OwnedFd>,
    /// The connection of the request that has claimed it.
    reply: Option<OwnedFd>,
    /// Wakes whoever waits for it. Nothing blocks on it: one byte is enough, and a full pipe has one.
    wake: OwnedFd,
}

impl Entry {
    /// Whether its asker has gone. A half-closed socket still wants its answer.
    fn is_unwanted(&self) -> bool {
        let gone = |asker: &OwnedFd| fd::wait_for(asker.as_fd(), fd::HANG_UP, Some(Duration::ZERO));
        self.asker.as_ref().is_some_and(|asker| gone(asker).is_ok_and(|ready| ready.hung_up))
    }

    fn wake(&self) {
        let _ = fd::write(self.wake.as_fd(), b"x");
    }
}

struct Poll {
    number: u64,
    wake: OwnedFd,
}

#[derive(Default)]
struct Board {
    /// In the order in which they came.
    polls: VecDeque<Poll>,
    entries: Vec<Entry>,
    /// Of the poll that came last.
    number: u64,
    closed: bool,
}

impl Board {
    fn entry(&mut self, id: &str) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.action.id == id)
    }

    fn is_at(&mut self, id: &str, stages: fn(Stage) -> bool) -> bool {
        self.entry(id).is_some_and(|entry| stages(entry.stage))
    }

    /// Gives actions to polls, as long as there are both.
    fn deal(&mut self) {
        // Whoever waits for one that nobody wants finds that out by itself.
        let waiting = self.entries.iter_mut().filter(|entry| entry.stage == Stage::Waiting && !entry.is_unwanted());
        for entry in waiting {
            let Some(poll) = self.polls.pop_front() else { return };
            entry.stage = Stage::Given(poll.number);
            // The pipe is empty: there is room.
            let _ = fd::write(poll.wake.as_fd(), b"x");
        }
    }
}

/// The actions of one service.
#[derive(Default)]
pub struct Actions {
    board: Mutex<Board>,
}

/// A poll in the queue.
pub struct Ticket {
    number: u64,
    /// Readable when there is an action for it.
    pub called: OwnedFd,
}

/// The right to reply to an action. One that is dropped counts as broken.
pub struct Claim<'a> {
    actions: &'a Actions,
    pub action: Action,
    pub store: Option<Box<dyn Store>>,
    ended: bool,
}

impl Claim<'_> {
    /// Tells whoever waits.
    pub fn end(mut self, outcome: Outcome) {
        self.finish(outcome);
    }

    fn finish(&mut self, outcome: Outcome) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        if let Some(entry) = self.actions.board().entry(&self.action.id) {
            (entry.stage, entry.store, entry.outcome) = (Stage::Ended, self.store.take(), Some(outcome));
            entry.reply = None;
            entry.wake();
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.finish(Outcome::Broken("the reply broke off"));
    }
}

/// A new id: 22 characters that need no escape in a query. The first is a letter, as in upstream's.
pub fn new_id() -> io::Result<String> {
    let mut bytes: [u8; 16] = random::getrandom()?;
    // A random UUID, with its first bit cleared.
    bytes[0] &= 0x7f;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(BASE64URL_NOPAD.encode(&bytes))
}

impl Actions {
    fn board(&self) -> MutexGuard<'_, Board> {
        // Nothing panics while it is locked.
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes one attempt: offers the action under a new id, and waits for what becomes of it, as long as its asker is there.
    pub fn attempt(
        &self,
        mut action: Action,
        store: Option<Box<dyn Store>>,
        asker: Option<BorrowedFd>,
        timers: &Timers,
    ) -> Ended {
        let begun = || -> io::Result<_> {
            let bell = fd::pipe()?;
            fd::never_block(bell.1.as_fd())?;
            Ok((new_id()?, bell, asker.map(|asker| asker.try_clone_to_owned()).transpose()?))
        };
        let Ok((id, (called, wake), asker)) = begun() else {
            return Ended { outcome: Outcome::Broken("there are no descriptors, or no randomness"), store };
        };
        action.id.clone_from(&id);
        let stage = Stage::Waiting;
        let mut board = self.board();
        board.entries.push(Entry { action, stage, store, outcome: None, asker, reply: None, wake });
        board.deal();
        drop(board);
        let mut wait = Wait { actions: self, id: &id, called: &called, is_unwanted: false };
        let not_taken = |stage| matches!(stage, Stage::Waiting | Stage::Given(_));
        wait.while_at(not_taken, Some(timers.poll));
        let mut why = Outcome::Unasked;
        if !self.board().is_at(&id, not_taken) {
            wait.while_at(|stage| stage == Stage::Taken, Some(timers.reply));
            why = Outcome::Broken("no reply has come");
        }
        // A poll that could not be answered may have given it back meanwhile: that attempt is over, too.
        wait.while_at(|stage| stage == Stage::Claimed, None);
        let is_unwanted = wait.is_unwanted;
        self.remove(&id, if is_unwanted { Outcome::Unwanted } else { why })
    }

    fn remove(&self, id: &str, otherwise: Outcome) -> Ended {
        let mut board = self.board();
        let at = board.entries.iter().position(|entry| entry.action.id == id);
        let entry = board.entries.remove(at.expect("only its own attempt removes an entry"));
        let otherwise = if board.closed { Outcome::Broken("the service has ended") } else { otherwise };
        Ended { outcome: entry.outcome.unwrap_or(otherwise), store: entry.store }
    }

    /// Puts a poll behind the others.
    ///
    /// # Errors
    /// Of pipe2(2).
    pub fn queue(&self) -> io::Result<Ticket> {
        let (called, wake) = fd::pipe()?;
        let mut board = self.board();
        board.number += 1;
        let number = board.number;
        board.polls.push_back(Poll { number, wake });
        board.deal();
        Ok(Ticket { number, called })
    }

    /// Whether polls wait.
    pub fn has_polls(&self) -> bool {
        !self.board().polls.is_empty()
    }

    /// Takes a poll out of the queue, if it is there, and gives the action that it has been given.
    pub fn leave(&self, ticket: &Ticket) -> Option<Action> {
        let mut board = self.board();
        board.polls.retain(|poll| poll.number != ticket.number);
        let given = board.entries.iter().find(|entry| entry.stage == Stage::Given(ticket.number));
        given.map(|entry| entry.action.clone())
    }

    /// The poll has been answered with its action.
    pub fn taken(&self, ticket: &Ticket) {
        self.settle(ticket, Stage::Taken);
    }

    /// The poll's connection has gone: its action is for the next one.
    pub fn give_back(&self, ticket: &Ticket) {
        self.settle(ticket, Stage::Waiting);
    }

    fn settle(&self, ticket: &Ticket, stage: Stage) {
        let mut board = self.board();
        // The reply may have been faster.
        let given = board.entries.iter_mut().find(|entry| entry.stage == Stage::Given(ticket.number));
        given.into_iter().for_each(|entry| {
            entry.stage = stage;
            entry.wake();
        });
        board.deal();
    }

    /// Claims the action of an id, for the first request that carries it. The connection of the request is cut when nobody wants the reply
    /// any more.
    pub fn claim(&self, id: &str, connection: BorrowedFd) -> Option<Claim<'_>> {
        let mut board = self.board();
        let entry = board.entry(id)?;
        if !matches!(entry.stage, Stage::Given(_) | Stage::Taken) {
            return None;
        }
        entry.stage = Stage::Claimed;
        entry.reply = connection.try_clone_to_owned().ok();
        entry.wake();
        let (action, store) = (entry.action.clone(), entry.store.take());
        drop(board);
        Some(Claim { actions: self, action, store, ended: false })
    }

    /// Ends all waiting that is not for the body of a reply.
    pub fn close(&self) {
        let mut board = self.board();
        board.closed = true;
        board.entries.iter().for_each(Entry::wake);
    }

    /// What a poll gets that has waited in vain.
    ///
    /// # Errors
    /// Of getrandom(2).
    pub fn nothing() -> io::Result<Action> {
        let (path, command) = (String::new(), Vec::new());
        Ok(Action { id: new_id()?, kind: Kind::None, path, command, tty: false })
    }
}

/// Somebody's waiting for an entry of theirs.
struct Wait<'a> {
    actions: &'a Actions,
    id: &'a str,
    /// Readable when the entry may have changed.
    called: &'a OwnedFd,
    /// The asker has gone.
    is_unwanted: bool,
}

impl Wait<'_> {
    /// Waits as long as the action is at a stage, or so long, or until nobody wants it. A reply that has begun is waited for in any case,
    /// but it is cut then.
    fn while_at(&mut self, stages: fn(Stage) -> bool, limit: Option<Duration>) {
        let deadline = limit.map(|limit| Instant::now() + limit);
        let mut set = PollSet::default();
        loop {
            let (asker, reply) = {
                let mut board = self.actions.board();
                let closed = board.closed;
                let Some(entry) = board.entry(self.id).filter(|entry| stages(entry.stage)) else { return };
                let is_claimed = entry.stage == Stage::Claimed;
                if !is_claimed && (closed || self.is_unwanted) {
                    return;
                }
                let copy = |fd: &Option<OwnedFd>| fd.as_ref().and_then(|fd| fd.try_clone().ok());
                // After its end the asker would wake us again and again.
                (copy(&entry.asker).filter(|_| !self.is_unwanted), copy(&entry.reply))
            };
            if self.is_unwanted {
                reply.iter().for_each(|reply| drop(fd::shutdown(reply.as_fd())));
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return;
            }
            set.clear();
            let called = set.watch(self.called.as_fd(), fd::READ);
            let asked = asker.as_ref().map(|asker| set.watch(asker.as_fd(), fd::HANG_UP));
            if set.wait(left).is_err() {
                return;
            }
            if set.ready(called).readable {
                let _ = fd::read(self.called.as_fd(), &mut [0; 64]);
            }
            self.is_unwanted |= asked.is_some_and(|asked| set.ready(asked).hung_up);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_22_characters_that_begin_with_a_letter() {
        for _ in 0..1000 {
            let id = new_id().expect("an id");
            assert_eq!(id.len(), 22);
            assert!(id.starts_with(|c: char| matches!(c, 'A'..='Z' | 'a'..='f')), "{id}");
            assert!(id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')), "{id}");
        }
        assert_ne!(new_id().expect("an id"), new_id().expect("an id"));
    }
}
