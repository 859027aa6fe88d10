//! Numbered frames in their order, each once.

use std::collections::VecDeque;

use crate::link::sender::FRAMES_MAX;

/// A frame that came before one that it has to follow.
#[derive(Debug, PartialEq, Eq)]
pub struct Held {
    pub kind: u8,
    pub channel: u16,
    pub payload: Vec<u8>,
}

/// The frames of one session that have come.
#[derive(Debug, Default)]
pub struct Receiver {
    next: u16,
    /// Those behind `next`, from its successor on.
    held: VecDeque<Option<Held>>,
}

impl Receiver {
    /// The number that is expected next.
    pub fn next(&self) -> u16 {
        self.next
    }

    /// Whether frame `seq` is the next one. `advance` is called when it is done with. A later one is held; one that
    /// has come before, or is impossibly far ahead, is forgotten.
    pub fn take(&mut self, seq: u16, hold: impl FnOnce() -> Held) -> bool {
        match usize::from(seq.wrapping_sub(self.next)) {
            0 => true,
            ahead if ahead < FRAMES_MAX => {
                if self.held.len() < ahead {
                    self.held.resize_with(ahead, || None);
                }
                self.held[ahead - 1].get_or_insert_with(hold);
                false
            }
            _ => false,
        }
    }

    /// The expected frame is done with: the one behind it, if it is there already.
    pub fn advance(&mut self) -> Option<Held> {
        self.next = self.next.wrapping_add(1);
        self.held.pop_front().flatten()
    }

    /// Whether something behind the next one is there.
    pub fn has_gap(&self) -> bool {
        !self.held.is_empty()
    }

    /// Appends which of those behind the next one are there: bit 0 of the first byte is its successor.
    pub fn list(&self, out: &mut Vec<u8>) {
        for bits in self.held.iter().collect::<Vec<_>>().chunks(8) {
            let byte = bits.iter().enumerate().map(|(bit, held)| u8::from(held.is_some()) << bit).sum();
            out.push(byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(name: u8) -> Held {
        Held { kind: 9, channel: 1, payload: vec![name] }
    }

    #[test]
    fn frames_come_out_in_order_and_once() {
        let mut receiver = Receiver { next: 0xffff, ..Receiver::default() };
        assert!(!receiver.take(1, || held(1)));
        assert!(!receiver.take(1, || panic!("it is there")));
        assert!(!receiver.take(3, || held(3)));
        let mut list = Vec::new();
        receiver.list(&mut list);
        assert_eq!(list, [0b1010]);
        assert!(receiver.take(0xffff, || panic!("it need not be held")));
        assert_eq!(receiver.advance(), None);
        assert!(!receiver.take(0xffff, || panic!("it has come")));
        assert!(receiver.take(0, || panic!("it need not be held")));
        assert_eq!(receiver.advance(), Some(held(1)));
        assert_eq!((receiver.advance(), receiver.next(), receiver.has_gap()), (None, 2, true));
        assert!(receiver.take(2, || panic!("it need not be held")));
        assert_eq!(receiver.advance(), Some(held(3)));
        assert_eq!((receiver.advance(), receiver.next(), receiver.has_gap()), (None, 4, false));
    }

    #[test]
    fn no_more_is_held_than_can_be_listed() {
        let mut receiver = Receiver::default();
        assert!(!receiver.take(FRAMES_MAX as u16, || panic!("too far ahead")));
        assert!(!receiver.take(FRAMES_MAX as u16 - 1, || held(0)));
        let mut list = Vec::new();
        receiver.list(&mut list);
        assert_eq!((list.len(), list[31]), (32, 0b100_0000));
    }
}
