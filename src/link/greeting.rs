//! What both ends say of themselves when they meet: the payload of HELLO, whose bytes are in the documentation of the module above.

use crate::link::FRAME_BYTES;

/// Flags: an answer is wanted; the sender accepts channels.
const ANSWER: u8 = 1;
const ACCEPTS: u8 = 2;

/// Shortest longest frame that a peer may ask for: room for a header, an acknowledgement and some data.
const FRAME_LEAST: usize = FRAME_BYTES / 4;

/// Which end of the line this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Opens channels: a client.
    Opener,
    /// Accepts them: an agent.
    Acceptor,
}

/// What this end takes, in bytes on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub frame: usize,
    pub window: usize,
}

/// A greeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greeting {
    pub role: Role,
    /// It wants an answer.
    pub asks: bool,
    pub limits: Limits,
    /// Bytes that its sender allows on each new channel.
    pub credit: usize,
}

impl Greeting {
    pub fn encode(&self) -> Vec<u8> {
        let accepts = self.role == Role::Acceptor;
        let mut payload = vec![u8::from(self.asks) * ANSWER + u8::from(accepts) * ACCEPTS];
        payload.extend((self.limits.frame as u16).to_le_bytes());
        payload.extend((self.limits.window as u32).to_le_bytes());
        payload.extend((self.credit as u32).to_le_bytes());
        payload
    }

    /// `None` when it is too short to be understood.
    pub fn decode(payload: &[u8]) -> Option<Greeting> {
        let [flags, f0, f1, w0, w1, w2, w3, c0, c1, c2, c3, ..] = *payload else { return None };
        let role = if flags & ACCEPTS != 0 { Role::Acceptor } else { Role::Opener };
        let frame = usize::from(u16::from_le_bytes([f0, f1])).max(FRAME_LEAST);
        let window = u32::from_le_bytes([w0, w1, w2, w3]) as usize;
        let credit = u32::from_le_bytes([c0, c1, c2, c3]) as usize;
        Some(Greeting { role, asks: flags & ANSWER != 0, limits: Limits { frame, window }, credit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_is_understood_though_it_says_more_and_not_when_it_says_less() {
        let limits = Limits { frame: 1024, window: 131_072 };
        for (role, asks) in [(Role::Opener, true), (Role::Acceptor, false)] {
            let greeting = Greeting { role, asks, limits, credit: 65_536 };
            let payload = greeting.encode();
            assert_eq!(Greeting::decode(&[&payload[..], b"more"].concat()), Some(greeting));
            assert_eq!(Greeting::decode(&payload[..payload.len() - 1]), None);
        }
        let tiny = Greeting::decode(&[0; 11]).map(|greeting| greeting.limits.frame);
        assert_eq!(tiny, Some(FRAME_LEAST));
    }
}
