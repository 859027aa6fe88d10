//! The credit of one stream, at both of its ends.

use std::io;

use crate::shell::invalid;
use crate::shell::message::Message;

/// Bytes that may be under way or unused at the receiver. Upstream's number, as the next.
pub const WINDOW: usize = 65_536;

/// Bytes of payload of one message.
pub const BLOCK: usize = 16_384;

/// The end that sends.
#[derive(Debug)]
pub struct Sender {
    stream: u8,
    /// Bytes that may be sent. A peer that acknowledges what it never got has no more of them than at the beginning.
    credit: usize,
    ended: bool,
}

impl Sender {
    pub fn new(stream: u8) -> Sender {
        Sender { stream, credit: WINDOW, ended: false }
    }

    /// Bytes that the next message may carry.
    pub fn room(&self) -> usize {
        if self.ended { 0 } else { self.credit.min(BLOCK) }
    }

    /// A message of as much of the front of `bytes` as there is room for. `None`: of nothing.
    pub fn data(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let payload = &bytes[..bytes.len().min(self.room())];
        self.credit -= payload.len();
        (!payload.is_empty()).then(|| Message::Data { stream: self.stream, payload }.encode())
    }

    /// The message that the stream has ended. `None`: that was said before.
    pub fn end(&mut self) -> Option<Vec<u8>> {
        let first = !self.ended;
        self.ended = true;
        first.then(|| Message::End { stream: self.stream }.encode())
    }

    /// The receiver has used so many bytes up.
    pub fn acknowledged(&mut self, count: u32) {
        self.credit = self.credit.saturating_add(count as usize).min(WINDOW);
    }
}

/// The end that receives.
#[derive(Debug)]
pub struct Receiver {
    stream: u8,
    /// Bytes that nobody has used yet.
    held: usize,
    /// Bytes that were used, and not acknowledged.
    owed: usize,
    ended: bool,
}

impl Receiver {
    pub fn new(stream: u8) -> Receiver {
        Receiver { stream, held: 0, owed: 0, ended: false }
    }

    /// Bytes have come. `InvalidData`: more than there is room for, or behind the end.
    pub fn arrived(&mut self, count: usize) -> io::Result<()> {
        if self.ended {
            return Err(invalid("data behind the end of a stream"));
        }
        if self.held + count > WINDOW {
            return Err(invalid("more data than the credit of a stream"));
        }
        self.held += count;
        Ok(())
    }

    /// The stream has ended; whether that is new.
    pub fn end(&mut self) -> bool {
        !std::mem::replace(&mut self.ended, true)
    }

    /// Somebody has taken so many of the bytes, in their order.
    pub fn consumed(&mut self, count: usize) {
        self.held = self.held.saturating_sub(count);
        self.owed += count;
    }

    /// The message that says so. `None`: nothing to say, or so little that it is worth waiting for more, which is here already.
    pub fn ack(&mut self) -> Option<Vec<u8>> {
        if self.owed == 0 || (self.held > 0 && self.owed < BLOCK) {
            return None;
        }
        let count = u32::try_from(self.owed).unwrap_or(u32::MAX);
        self.owed -= count as usize;
        Some(Message::Ack { stream: self.stream, count }.encode())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_uses_its_credit_to_the_last_byte() {
        let mut sender = Sender::new(1);
        let bytes = [7; 3 * WINDOW];
        for _ in 0..4 {
            assert_eq!(sender.data(&bytes).map(|message| message.len()), Some(2 + BLOCK));
        }
        assert_eq!((sender.room(), sender.data(&bytes)), (0, None));
        sender.acknowledged(2);
        sender.acknowledged(3);
        assert_eq!(sender.data(&bytes), Some(vec![0, 1, 7, 7, 7, 7, 7]));
        assert_eq!(sender.data(&bytes), None);
        // The end costs nothing.
        assert_eq!((sender.end(), sender.end()), (Some(vec![0, 1]), None));
        sender.acknowledged(u32::MAX);
        assert_eq!(sender.data(&bytes), None);
    }

    #[test]
    fn acks_of_what_was_never_sent_give_no_more_than_a_window() {
        let mut sender = Sender::new(1);
        let bytes = [7; BLOCK];
        sender.data(&bytes);
        [1, u32::MAX, u32::MAX].into_iter().for_each(|count| sender.acknowledged(count));
        let sent: usize = std::iter::from_fn(|| sender.data(&bytes)).map(|message| message.len() - 2).sum();
        assert_eq!(sent, WINDOW);
    }

    #[test]
    fn nothing_to_send_is_not_the_end_of_the_stream() {
        assert_eq!(Sender::new(0).data(&[]), None);
    }

    #[test]
    fn a_receiver_holds_a_window_and_not_a_byte_more() {
        let mut receiver = Receiver::new(0);
        assert!(receiver.arrived(WINDOW).is_ok());
        receiver.consumed(1);
        assert!(receiver.arrived(1).is_ok());
        assert_eq!(receiver.arrived(1).map_err(|error| error.kind()), Err(io::ErrorKind::InvalidData));
    }

    #[test]
    fn acks_are_of_what_was_consumed_and_are_merged() {
        let mut receiver = Receiver::new(2);
        assert!(receiver.arrived(40_000).is_ok());
        assert_eq!(receiver.ack(), None);
        receiver.consumed(BLOCK - 1);
        assert_eq!(receiver.ack(), None);
        receiver.consumed(1);
        assert_eq!(receiver.ack(), Some(vec![1, 2, 0, 0, 0x40, 0]));
        receiver.consumed(40_000 - BLOCK);
        assert_eq!(receiver.ack(), Some(vec![1, 2, 0, 0, 0x5c, 0x40]));
        assert_eq!(receiver.ack(), None);
    }

    #[test]
    fn nothing_comes_behind_the_end() {
        let mut receiver = Receiver::new(0);
        assert!(receiver.arrived(1).is_ok());
        assert_eq!((receiver.end(), receiver.end()), (true, false));
        assert!(receiver.arrived(1).is_err());
        // What came before is still acknowledged.
        receiver.consumed(1);
        assert_eq!(receiver.ack(), Some(vec![1, 0, 0, 0, 0, 1]));
    }
}
