//! Messages of the ctl channel: a code, a length with these 8 bytes, and a payload.
//!
//! ```text
//! 00 00 00 0c  00 00 00 08                 ping
//! 00 00 00 0e  00 00 00 0c  00 00 00 08    NEXT: 8 bytes have come
//! 00 00 00 09  00 00 00 08                 ACK
//! ```

pub const READY: u32 = 8;
pub const ACK: u32 = 9;
pub const ERROR: u32 = 10;
/// So many bytes have come; u32.
pub const NEXT: u32 = 14;

/// Bytes of a header.
pub const HEADER_BYTES: usize = 8;

/// Longest message, in bytes, with its header. The proxy of Clear Containers sends 10,240 at the most, as much as hyperstart 0.7 takes;
/// hyperstart 1.x takes more, for files. With this a file of a megabyte fits behind its name, and a small guest can hold it.
pub const MESSAGE_MAX: usize = (1 << 20) + (8 << 10);

/// One command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub code: u32,
    pub payload: Vec<u8>,
}

/// A message as its bytes.
pub fn encode(code: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    bytes.extend_from_slice(&code.to_be_bytes());
    bytes.extend_from_slice(&((HEADER_BYTES + payload.len()) as u32).to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// The message that is on its way.
#[derive(Debug, Default)]
pub struct Assembly {
    bytes: Vec<u8>,
}

impl Assembly {
    /// Takes bytes of one header or of one payload, however many are there; gives their count, and the message once it is whole.
    ///
    /// # Errors
    /// A length that no message has. What follows cannot be understood.
    pub fn take(&mut self, bytes: &[u8]) -> (usize, Result<Option<Message>, String>) {
        let held = self.bytes.len();
        let missing = self.length().map_or(HEADER_BYTES, |length| length).saturating_sub(held);
        let count = missing.min(bytes.len());
        self.bytes.extend_from_slice(&bytes[..count]);
        (count, self.whole())
    }

    /// Whether a message has begun and is not whole.
    pub fn is_within(&self) -> bool {
        !self.bytes.is_empty()
    }

    fn number(&self, at: usize) -> Option<u32> {
        self.bytes.get(at..)?.first_chunk().map(|number| u32::from_be_bytes(*number))
    }

    fn length(&self) -> Option<usize> {
        self.number(4).map(|length| length as usize)
    }

    fn whole(&mut self) -> Result<Option<Message>, String> {
        let (Some(code), Some(length)) = (self.number(0), self.length()) else { return Ok(None) };
        match length {
            ..HEADER_BYTES => Err(format!("a message of {length} bytes is shorter than its header")),
            _ if length > MESSAGE_MAX => {
                Err(format!("a message of {length} bytes is longer than the limit of {MESSAGE_MAX}"))
            }
            _ if self.bytes.len() < length => Ok(None),
            _ => {
                let payload = self.bytes.split_off(HEADER_BYTES);
                self.bytes = Vec::new();
                Ok(Some(Message { code, payload }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_these_bytes() {
        assert_eq!(encode(READY, b""), [0, 0, 0, 8, 0, 0, 0, 8]);
        assert_eq!(encode(NEXT, &8u32.to_be_bytes()), [0, 0, 0, 14, 0, 0, 0, 12, 0, 0, 0, 8]);
        assert_eq!(encode(ERROR, b"no"), *b"\0\0\0\x0a\0\0\0\x0ano");
    }

    #[test]
    fn a_message_is_whole_however_it_is_split() {
        let bytes = encode(6, b"payload");
        for step in 1..=bytes.len() {
            let mut assembly = Assembly::default();
            let (mut counts, mut found) = (Vec::new(), Vec::new());
            for mut piece in bytes.chunks(step) {
                while !piece.is_empty() {
                    let (count, message) = assembly.take(piece);
                    piece = &piece[count..];
                    counts.push(count);
                    found.extend(message.expect("a good length"));
                }
            }
            assert_eq!(counts.iter().sum::<usize>(), bytes.len(), "{step}");
            assert_eq!(found, [Message { code: 6, payload: b"payload".to_vec() }], "{step}");
            assert!(!assembly.is_within());
        }
    }

    #[test]
    fn a_length_that_cannot_be_is_an_error_at_once() {
        let header = |length: u32| [6u32.to_be_bytes(), length.to_be_bytes()].concat();
        for length in [0, 7, MESSAGE_MAX as u32 + 1, u32::MAX] {
            assert!(Assembly::default().take(&header(length)).1.is_err(), "{length}");
        }
        assert_eq!(Assembly::default().take(&header(MESSAGE_MAX as u32)).1, Ok(None));
        let (count, message) = Assembly::default().take(&header(8));
        assert_eq!((count, message), (8, Ok(Some(Message { code: 6, payload: Vec::new() }))));
    }
}
