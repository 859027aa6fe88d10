//! The bytes of XenStore's messages.
//!
//! A header of four 32 bit numbers in the order of the machine (Xen has little-endian guests only): type, request id, transaction, length;
//! then so many bytes. A reply has the type of its request, or is an error whose bytes are the name of an errno. Events come at any time.
//! Paths and names end with a NUL; a value that is written or read does not.

/// Bytes of a header.
pub const HEADER: usize = 16;

/// Bytes behind a header, at most. Who sends more is dropped by the daemon, and a whole guest is never served again.
pub const PAYLOAD_MAX: usize = 4096;

/// Bytes behind a header of what we send: Linux's device takes 4096 with the header.
pub const SENT_MAX: usize = PAYLOAD_MAX - HEADER;

/// Types.
pub const DIRECTORY: u32 = 1;
pub const READ: u32 = 2;
pub const WATCH: u32 = 4;
pub const WRITE: u32 = 11;
pub const MKDIR: u32 = 12;
pub const RM: u32 = 13;
pub const WATCH_EVENT: u32 = 15;
pub const ERROR: u32 = 16;

/// One message. We have no transactions, so theirs is always 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub kind: u32,
    pub request_id: u32,
    pub payload: Vec<u8>,
}

impl Message {
    /// A message of these parts. `None` when they are too long to be sent.
    pub fn of(kind: u32, request_id: u32, parts: &[&[u8]]) -> Option<Message> {
        let payload = parts.concat();
        (payload.len() <= SENT_MAX).then_some(Message { kind, request_id, payload })
    }

    pub fn encode(&self) -> Vec<u8> {
        let numbers = [self.kind, self.request_id, 0, self.payload.len() as u32];
        let header = numbers.into_iter().flat_map(u32::to_le_bytes);
        header.chain(self.payload.iter().copied()).collect()
    }

    /// Takes the first message out of what has come. `None`: it is not all there.
    ///
    /// # Errors
    /// Of a length that no daemon sends: there is no way back into the stream. The text says so.
    pub fn decode(input: &mut Vec<u8>) -> Result<Option<Message>, String> {
        let Some(header) = input.first_chunk::<HEADER>() else { return Ok(None) };
        let number = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (kind, request_id, length) = (number(0), number(4), number(12) as usize);
        if length > PAYLOAD_MAX {
            return Err(format!("xenstore: a message of {length} bytes, and {PAYLOAD_MAX} are the most"));
        }
        let Some(payload) = input.get(HEADER..HEADER + length).map(<[u8]>::to_vec) else { return Ok(None) };
        input.drain(..HEADER + length);
        Ok(Some(Message { kind, request_id, payload }))
    }
}

/// The texts in a payload, each of which ends with a NUL.
pub fn texts(payload: &[u8]) -> Vec<String> {
    let whole = payload.strip_suffix(b"\0").unwrap_or(payload);
    if whole.is_empty() {
        return Vec::new();
    }
    whole.split(|byte| *byte == 0).map(|text| String::from_utf8_lossy(text).into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_these_bytes() {
        let message = Message::of(WATCH, 0x0102_0304, &[b"data/host\0", b"t\0"]).expect("short");
        let bytes = b"\x04\0\0\0\x04\x03\x02\x01\0\0\0\0\x0c\0\0\0data/host\0t\0";
        assert_eq!(message.encode(), bytes);
        let mut input = [bytes, &b"\x02\0\0\0"[..]].concat();
        assert_eq!(Message::decode(&mut input), Ok(Some(message)));
        assert_eq!(input, b"\x02\0\0\0");
        for end in 0..bytes.len() {
            let mut part = bytes[..end].to_vec();
            assert_eq!(Message::decode(&mut part), Ok(None), "{end} bytes");
            assert_eq!(part.len(), end);
        }
        let mut empty = b"\x02\0\0\0\x01\0\0\0\x07\0\0\0\0\0\0\0".to_vec();
        let message = Message { kind: READ, request_id: 1, payload: Vec::new() };
        assert_eq!(Message::decode(&mut empty), Ok(Some(message)), "whatever the transaction");
    }

    #[test]
    fn lengths_have_limits() {
        assert!(Message::of(WRITE, 1, &[&[0; SENT_MAX]]).is_some());
        assert!(Message::of(WRITE, 1, &[&[0; SENT_MAX], b"x"]).is_none());
        let with_length = |length: u32| [&[0; 12][..], &length.to_le_bytes(), &[0; PAYLOAD_MAX + 1]].concat();
        assert!(Message::decode(&mut with_length(4096)).is_ok_and(|message| message.is_some()));
        assert!(Message::decode(&mut with_length(4097)).is_err());
        assert!(Message::decode(&mut with_length(u32::MAX)).is_err());
    }

    #[test]
    fn texts_end_with_a_nul() {
        assert_eq!(texts(b""), Vec::<String>::new());
        assert_eq!(texts(b"\0"), Vec::<String>::new());
        assert_eq!(texts(b"a\0bc\0"), ["a", "bc"]);
        assert_eq!(texts(b"a\0bc"), ["a", "bc"]);
    }
}
