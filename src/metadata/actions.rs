//! Actions on their way to a guest, and replies on their way back.
//!
//! An action is *waiting* until a poll takes it, *given* while the poll's answer is written, *taken* until a reply comes, and *claimed*
//! from the first request that carries its id, whatever that request is. Each action goes to one poll, and the poll that has waited longest
//! gets the next one. A poll whose connection goes gives its action back.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use data_encoding::BASE64URL_NOPAD;

use crate::metaservice::{Action, Kind};
use crate::stream::Stream;
use crate::sys::{fd, random};

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
    /// Why it is worth another attempt, if one is left.
    Broken(&'static str),
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
        let waiting = self.entries.iter_mut().filter(|entry| entry.stage == Stage::Waiting);
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
    changed: Condvar,
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
        }
        self.actions.changed.notify_all();
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

    /// Makes one attempt: offers the action under a new id, and waits for what becomes of it.
    pub fn attempt(&self, mut action: Action, store: Option<Box<dyn Store>>, timers: &Timers) -> Ended {
        match new_id() {
            Ok(id) => action.id = id,
            Err(_) => return Ended { outcome: Outcome::Broken("there is no randomness"), store },
        }
        let id = action.id.clone();
        let mut board = self.board();
        board.entries.push(Entry { action, stage: Stage::Waiting, store, outcome: None });
        board.deal();
        let not_taken = |stage| matches!(stage, Stage::Waiting | Stage::Given(_));
        board = self.wait(board, &id, not_taken, Some(timers.poll));
        let mut why = "no poll has come for it";
        if !board.is_at(&id, not_taken) {
            board = self.wait(board, &id, |stage| stage == Stage::Taken, Some(timers.reply));
            why = "no reply has come";
        }
        // A poll that could not be answered may have given it back meanwhile: that attempt is over, too.
        board = self.wait(board, &id, |stage| stage == Stage::Claimed, None);
        let closed = board.closed;
        let at = board.entries.iter().position(|entry| entry.action.id == id);
        let entry = board.entries.remove(at.expect("only this function removes entries, each its own"));
        let why = if closed { "the service has ended" } else { why };
        Ended { outcome: entry.outcome.unwrap_or(Outcome::Broken(why)), store: entry.store }
    }

    /// Waits as long as the action is at a stage, or so long.
    fn wait<'a>(
        &self,
        board: MutexGuard<'a, Board>,
        id: &str,
        stages: fn(Stage) -> bool,
        limit: Option<Duration>,
    ) -> MutexGuard<'a, Board> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        let mut board = board;
        loop {
            let is_claimed = board.is_at(id, |stage| stage == Stage::Claimed);
            if !board.is_at(id, stages) || (board.closed && !is_claimed) {
                return board;
            }
            let Some(deadline) = deadline else {
                board = self.changed.wait(board).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return board;
            }
            (board, _) = self.changed.wait_timeout(board, left).unwrap_or_else(PoisonError::into_inner);
        }
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
        given.into_iter().for_each(|entry| entry.stage = stage);
        board.deal();
        drop(board);
        self.changed.notify_all();
    }

    /// Claims the action of an id, for the first request that carries it.
    pub fn claim(&self, id: &str) -> Option<Claim<'_>> {
        let mut board = self.board();
        let entry = board.entry(id)?;
        if !matches!(entry.stage, Stage::Given(_) | Stage::Taken) {
            return None;
        }
        entry.stage = Stage::Claimed;
        let (action, store) = (entry.action.clone(), entry.store.take());
        drop(board);
        self.changed.notify_all();
        Some(Claim { actions: self, action, store, ended: false })
    }

    /// Ends all waiting that is not for the body of a reply.
    pub fn close(&self) {
        self.board().closed = true;
        self.changed.notify_all();
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
