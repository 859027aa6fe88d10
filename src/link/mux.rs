//! Channels and their credit.
//!
//! Each channel has as many bytes of credit in each direction as its receiver is willing to hold; a channel that nobody reads uses up its
//! own and stops, and the others go on.

use std::collections::VecDeque;

use crate::link::{ACCEPT_MAX, CREDIT, Reason, kind};
use crate::stream::inbox::Inbox;
use crate::stream::outbox::Outbox;

/// Bytes read from a local reader ahead of what the line takes.
const READ_AHEAD: usize = 32 << 10;

/// Refused channels of which the peer has not been told yet.
const REFUSALS_MAX: usize = 4 * ACCEPT_MAX;

/// One channel. What is on the local side of it belongs to the pump.
#[derive(Debug)]
pub struct Channel {
    pub id: u16,
    /// What came for the local reader.
    pub inbound: Outbox,
    /// Nothing more will come.
    pub inbound_ended: bool,
    /// What goes to the peer.
    pub outbound: Inbox,
    /// Why the peer, or the end of the session, tore it down.
    pub torn: Option<Reason>,
    /// The local side has nothing more to say.
    outbound_ended: bool,
    end_sent: bool,
    /// The local side reads no more: the peer is told when that side has said everything.
    deaf: bool,
    /// The peer has to be told first that there is such a channel.
    opens: bool,
    /// Bytes that the peer allows us to send, and those that we allow it.
    credit: usize,
    allowed: usize,
    /// Bytes that have been used up here and not been allowed again.
    consumed: usize,
}

impl Channel {
    fn new(id: u16, opens: bool, credit: usize) -> Channel {
        Channel {
            id,
            inbound: Outbox::default(),
            inbound_ended: false,
            outbound: Inbox::default(),
            torn: None,
            outbound_ended: false,
            end_sent: false,
            deaf: false,
            opens,
            credit,
            allowed: CREDIT,
            consumed: 0,
        }
    }

    /// Whether more of what the local side says is wanted.
    pub fn wants_outbound(&self) -> bool {
        !self.outbound_ended && self.torn.is_none() && self.outbound.bytes().len() < READ_AHEAD
    }

    /// The local side has nothing more to say.
    pub fn end(&mut self) {
        self.outbound_ended = true;
    }

    /// The local side reads no more. What it has said goes to the peer nevertheless.
    pub fn stop_listening(&mut self) {
        self.deaf = true;
        self.inbound.clear();
    }

    /// So many bytes have left `inbound`.
    pub fn consume(&mut self, count: usize) {
        self.consumed += count;
    }

    /// Both directions are over, and everything has been handed on.
    fn is_over(&self) -> bool {
        self.end_sent && self.inbound_ended && self.inbound.is_empty()
    }

    /// The next thing to tell the peer, with its payload.
    fn next(&mut self, room: usize, payload: &mut Vec<u8>) -> Option<u8> {
        if self.opens {
            self.opens = false;
            payload.extend((CREDIT as u32).to_le_bytes());
            return Some(kind::OPEN);
        }
        if self.consumed >= CREDIT / 2 && !self.inbound_ended {
            payload.extend((self.consumed as u32).to_le_bytes());
            self.allowed += std::mem::take(&mut self.consumed);
            return Some(kind::CREDIT);
        }
        let count = self.outbound.bytes().len().min(self.credit).min(room);
        if count > 0 {
            payload.extend_from_slice(&self.outbound.bytes()[..count]);
            self.outbound.consume(count);
            self.credit -= count;
            return Some(kind::DATA);
        }
        if !self.outbound_ended || !self.outbound.bytes().is_empty() {
            return None;
        }
        let had_ended = std::mem::replace(&mut self.end_sent, true);
        if self.deaf && !self.inbound_ended {
            self.torn = Some(Reason::Gone);
            payload.push(Reason::Gone as u8);
            return Some(kind::RESET);
        }
        (!had_ended).then_some(kind::END)
    }
}

/// The channels of one session.
#[derive(Debug, Default)]
pub struct Mux {
    channels: Vec<Channel>,
    /// Channels that the peer does not know to be gone.
    resets: VecDeque<(u16, Reason)>,
    last: u16,
    /// Whose turn it is, and how many bytes it has had of it.
    turn: usize,
    spent: usize,
}

impl Mux {
    pub fn channels(&mut self) -> &mut Vec<Channel> {
        &mut self.channels
    }

    pub fn is_empty(&self) -> bool {
        self.channels.is_empty()
    }

    /// Whether the local sides of all channels have said everything, and it was sent.
    pub fn has_said_all(&self) -> bool {
        self.resets.is_empty() && self.channels.iter().all(|channel| channel.end_sent || channel.torn.is_some())
    }

    /// Opens a channel. It has no credit before `begin`.
    pub fn open(&mut self, credit: usize) -> u16 {
        loop {
            self.last = self.last.wrapping_add(1);
            if !self.channels.iter().any(|channel| channel.id == self.last) {
                break;
            }
        }
        self.channels.push(Channel::new(self.last, true, credit));
        self.last
    }

    /// A session has begun, in which the peer allows so much on each channel.
    pub fn begin(&mut self, credit: usize) {
        self.channels.iter_mut().for_each(|channel| channel.credit = credit);
    }

    /// The session is over, and every channel with it.
    pub fn tear_all(&mut self, reason: Reason) {
        self.channels.iter_mut().for_each(|channel| channel.torn = Some(reason));
        self.resets.clear();
    }

    /// The local side of a channel is gone: so is the channel, and the peer learns why, unless it knows or never knew of it.
    pub fn reset(&mut self, id: u16, reason: Reason) {
        if let Some(index) = self.channels.iter().position(|channel| channel.id == id) {
            let channel = self.channels.remove(index);
            if channel.torn.is_none() && !channel.opens {
                self.resets.push_back((id, reason));
            }
        }
    }

    /// Tells the peer that there is no such channel. A peer that opens more channels than it listens to hears no more of them.
    fn refuse(&mut self, id: u16, reason: Reason) {
        if self.resets.len() < REFUSALS_MAX {
            self.resets.push_back((id, reason));
        }
    }

    /// Forgets channels that are over.
    pub fn sweep(&mut self) {
        self.channels.retain(|channel| !channel.is_over());
    }

    /// Takes a numbered frame; gives the number of a channel that was opened by it.
    pub fn receive(&mut self, kind: u8, id: u16, payload: &[u8], accepts: bool) -> Option<u16> {
        let number = payload.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes) as usize);
        let is_full = self.channels.len() >= ACCEPT_MAX;
        let found = self.channels.iter_mut().find(|channel| channel.id == id);
        match (kind, found) {
            // The number of one that is about to go is not free yet.
            (kind::OPEN, Some(channel)) if channel.torn.is_some() => self.refuse(id, Reason::TooMany),
            (_, Some(channel)) if channel.torn.is_some() => {}
            (kind::OPEN, None) if accepts => {
                if is_full {
                    self.refuse(id, Reason::TooMany);
                    return None;
                }
                self.channels.push(Channel::new(id, false, number));
                return Some(id);
            }
            (kind::DATA, Some(channel)) if payload.len() > channel.allowed || channel.inbound_ended => {
                channel.torn = Some(Reason::Credit);
                self.resets.push_back((id, Reason::Credit));
            }
            (kind::DATA, Some(channel)) => {
                channel.allowed -= payload.len();
                if !channel.deaf {
                    channel.inbound.push(payload);
                }
            }
            (kind::END, Some(channel)) => channel.inbound_ended = true,
            (kind::RESET, Some(channel)) => channel.torn = Some(Reason::from(payload.first().copied())),
            // More than anybody would hold: nobody checks what is never used.
            (kind::CREDIT, Some(channel)) => channel.credit = channel.credit.saturating_add(number),
            // What was under way to a channel when it was reset; and kinds that are not known yet.
            _ => {}
        }
        None
    }

    /// The next thing to tell the peer: its kind and channel, and its payload of at most `room` bytes. A channel's turn ends behind
    /// `quantum` bytes, or when it has nothing to say.
    pub fn next(&mut self, room: usize, quantum: usize, payload: &mut Vec<u8>) -> Option<(u8, u16)> {
        if let Some((id, reason)) = self.resets.pop_front() {
            payload.push(reason as u8);
            return Some((kind::RESET, id));
        }
        // Once more than there are channels: the first may be the one whose turn is over.
        for _ in 0..=self.channels.len() {
            if let Some(channel) = self.channels.get_mut(self.turn)
                && channel.torn.is_none()
                && self.spent < quantum
                && let Some(kind) = channel.next(room, payload)
            {
                self.spent += payload.len();
                return Some((kind, channel.id));
            }
            self.turn = (self.turn + 1) % self.channels.len().max(1);
            self.spent = 0;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Opens so many more channels than are accepted, and gives what the peer is told of it.
    fn refused(count: usize) -> Vec<(u8, u16)> {
        let mut mux = Mux::default();
        let open = |mux: &mut Mux, id: usize| mux.receive(kind::OPEN, id as u16, &[0; 4], true);
        assert!((0..ACCEPT_MAX).all(|id| open(&mut mux, id) == Some(id as u16)));
        assert!((ACCEPT_MAX..ACCEPT_MAX + count).all(|id| open(&mut mux, id).is_none()));
        assert_eq!(mux.channels().len(), ACCEPT_MAX);
        let mut told = Vec::new();
        let mut payload = Vec::new();
        while let Some(message) = mux.next(100, 100, &mut payload) {
            told.push(message);
        }
        assert!(payload == vec![Reason::TooMany as u8; told.len()]);
        told
    }

    #[test]
    fn as_many_refusals_as_the_limit_are_told_and_one_past_it_is_dropped() {
        let first = ACCEPT_MAX as u16;
        let all: Vec<_> = (first..first + REFUSALS_MAX as u16).map(|id| (kind::RESET, id)).collect();
        assert_eq!(refused(REFUSALS_MAX - 1), all[..REFUSALS_MAX - 1]);
        assert_eq!(refused(REFUSALS_MAX), all);
        assert_eq!(refused(REFUSALS_MAX + 1), all);
    }

    #[test]
    fn a_reset_of_our_own_is_told_behind_any_number_of_refusals() {
        let mut mux = Mux::default();
        for id in 0..(ACCEPT_MAX + REFUSALS_MAX) as u16 {
            mux.receive(kind::OPEN, id, &[0; 4], true);
        }
        mux.reset(0, Reason::Gone);
        // More than its credit.
        mux.receive(kind::DATA, 1, &vec![0; CREDIT + 1], true);
        let mut payload = Vec::new();
        let told: Vec<_> = std::iter::from_fn(|| mux.next(100, 100, &mut payload)).collect();
        assert_eq!(told[REFUSALS_MAX..], [(kind::RESET, 0), (kind::RESET, 1)]);
        assert_eq!(payload[REFUSALS_MAX..], [Reason::Gone as u8, Reason::Credit as u8]);
    }
}
