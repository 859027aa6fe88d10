//! The frames of the Clear Containers proxy: pure encoding and decoding.

/// The version that both sides must name.
const VERSION: u16 = 2;

/// Bytes of the header as it is written; a reader passes over what a longer one has behind them.
pub const HEADER_BYTES: usize = 12;

/// 32-bit words of the shortest header.
const HEADER_WORDS_MIN: u8 = 3;

/// Bytes of the largest payload. Upstream takes what the header says, up to 4 GiB, and makes room for it at once. Its own shim sends 8 KiB
/// of input a frame, and its agent takes commands of 10 KiB; each connection of a small guest may hold one payload.
pub const PAYLOAD_MAX: usize = 1 << 20;

/// The flag of a response that is an error.
const IN_ERROR: u8 = 0x10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Command,
    Response,
    Stream,
    Notification,
}

impl Kind {
    fn of(number: u8) -> Option<Kind> {
        [Kind::Command, Kind::Response, Kind::Stream, Kind::Notification].get(usize::from(number)).copied()
    }

    /// How many opcodes it has.
    fn opcodes(self) -> u8 {
        match self {
            Kind::Command | Kind::Response => 7,
            Kind::Stream => 4,
            Kind::Notification => 1,
        }
    }
}

/// Opcodes of commands and their responses.
pub const REGISTER_VM: u8 = 0;
pub const UNREGISTER_VM: u8 = 1;
pub const ATTACH_VM: u8 = 2;
pub const HYPER: u8 = 3;
pub const CONNECT_SHIM: u8 = 4;
pub const DISCONNECT_SHIM: u8 = 5;
pub const SIGNAL: u8 = 6;

/// Opcodes of streams.
pub const STDIN: u8 = 0;
pub const STDOUT: u8 = 1;
pub const STDERR: u8 = 2;
pub const LOG: u8 = 3;

/// The opcode of the only notification.
pub const PROCESS_EXITED: u8 = 0;

/// A frame whose payload is `input[payload_start..payload_start + payload_bytes]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: Kind,
    pub opcode: u8,
    pub payload_start: usize,
    pub payload_bytes: usize,
}

/// How far `input` reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// The frame in front has at least so many bytes.
    Incomplete {
        expected: usize,
    },
    Frame(Header),
}

/// The frame in front of `input`. Reserved bits and all flags are passed over.
///
/// # Errors
/// Why it is no frame, as soon as the byte is there that says so.
pub fn decode(input: &[u8]) -> Result<Decoded, String> {
    if let &[high, low, ..] = input
        && u16::from_be_bytes([high, low]) != VERSION
    {
        return Err(format!("frame of version {}", u16::from_be_bytes([high, low])));
    }
    if let Some(words) = input.get(2).filter(|words| **words < HEADER_WORDS_MIN) {
        return Err(format!("frame with a header of {words} words"));
    }
    let kind = match input.get(6).map(|byte| byte & 0xf) {
        None => None,
        Some(number) => Some(Kind::of(number).ok_or_else(|| format!("frame of type {number}"))?),
    };
    if let Some((kind, opcode)) = kind.zip(input.get(7)).filter(|(kind, opcode)| **opcode >= kind.opcodes()) {
        return Err(format!("{kind:?} frame with opcode {opcode}"));
    }
    let (Some(kind), Some(header)) = (kind, input.first_chunk::<HEADER_BYTES>()) else {
        return Ok(Decoded::Incomplete { expected: HEADER_BYTES });
    };
    let [_, _, words, _, _, _, _, opcode, length @ ..] = *header;
    let payload_bytes = u32::from_be_bytes(length) as usize;
    if payload_bytes > PAYLOAD_MAX {
        return Err(format!("frame with {payload_bytes} bytes of payload, which is over the limit of {PAYLOAD_MAX}"));
    }
    let payload_start = usize::from(words) * 4;
    if input.len() < payload_start + payload_bytes {
        return Ok(Decoded::Incomplete { expected: payload_start + payload_bytes });
    }
    Ok(Decoded::Frame(Header { kind, opcode, payload_start, payload_bytes }))
}

/// The header in front of so many bytes of payload.
pub fn header(kind: Kind, opcode: u8, payload_bytes: usize) -> [u8; HEADER_BYTES] {
    let [high, low] = VERSION.to_be_bytes();
    let [a, b, c, d] = (payload_bytes as u32).to_be_bytes();
    [high, low, HEADER_WORDS_MIN, 0, 0, 0, kind as u8, opcode, a, b, c, d]
}

/// The same for a response that is an error.
pub fn error_header(opcode: u8, payload_bytes: usize) -> [u8; HEADER_BYTES] {
    let mut header = header(Kind::Response, opcode, payload_bytes);
    header[6] |= IN_ERROR;
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(header: [u8; HEADER_BYTES], payload: &[u8]) -> Vec<u8> {
        [&header[..], payload].concat()
    }

    #[test]
    fn frames_are_written_as_upstream_writes_them() {
        let rows: [(Vec<u8>, &[u8]); 5] = [
            (frame(header(Kind::Response, HYPER, 0), b""), b"\0\x02\x03\0\0\0\x01\x03\0\0\0\0"),
            (frame(header(Kind::Stream, STDOUT, 4), b"out\n"), b"\0\x02\x03\0\0\0\x02\x01\0\0\0\x04out\n"),
            (frame(header(Kind::Notification, PROCESS_EXITED, 1), b"\x07"), b"\0\x02\x03\0\0\0\x03\0\0\0\0\x01\x07"),
            (header(Kind::Stream, STDERR, 1024).to_vec(), b"\0\x02\x03\0\0\0\x02\x02\0\0\x04\0"),
            (error_header(ATTACH_VM, 31).to_vec(), b"\0\x02\x03\0\0\0\x11\x02\0\0\0\x1f"),
        ];
        for (written, expected) in rows {
            assert_eq!(written, expected);
        }
    }

    #[test]
    fn longer_headers_and_what_is_reserved_are_passed_over() {
        let mut bytes = vec![0, 2, 6, 0xff, 0xff, 0xff, 0xf0, 3, 0, 0, 0, 2];
        bytes.extend([0xee; 12]);
        bytes.extend(b"{}more");
        let found = Header { kind: Kind::Command, opcode: HYPER, payload_start: 24, payload_bytes: 2 };
        assert_eq!(decode(&bytes), Ok(Decoded::Frame(found)));
        for length in 0..12 {
            assert_eq!(decode(&bytes[..length]), Ok(Decoded::Incomplete { expected: 12 }), "{length}");
        }
        for length in 12..26 {
            assert_eq!(decode(&bytes[..length]), Ok(Decoded::Incomplete { expected: 26 }), "{length}");
        }
    }

    #[test]
    fn what_is_no_frame_is_refused_at_the_byte_that_says_so() {
        let rows: [(&[u8], &str); 10] = [
            (b"\x8f\xff", "frame of version 36863"),
            (b"\0\0", "frame of version 0"),
            (b"\0\x01", "frame of version 1"),
            (b"\0\x03", "frame of version 3"),
            (b"\0\x02\0", "frame with a header of 0 words"),
            (b"\0\x02\x02", "frame with a header of 2 words"),
            (b"\0\x02\x03\0\0\0\x04", "frame of type 4"),
            (b"\0\x02\x03\0\0\0\0\x07", "Command frame with opcode 7"),
            (b"\0\x02\x03\0\0\0\x02\x04", "Stream frame with opcode 4"),
            (b"\0\x02\x03\0\0\0\x03\x01", "Notification frame with opcode 1"),
        ];
        for (bytes, why) in rows {
            assert_eq!(decode(bytes), Err(why.to_owned()));
            assert!(decode(&bytes[..bytes.len() - 1]).is_ok());
        }
    }

    #[test]
    fn the_limit_of_the_payload_is_kept_before_it_comes() {
        let at = header(Kind::Stream, STDIN, PAYLOAD_MAX);
        assert_eq!(decode(&at), Ok(Decoded::Incomplete { expected: HEADER_BYTES + PAYLOAD_MAX }));
        let past = header(Kind::Stream, STDIN, PAYLOAD_MAX + 1);
        let why = "frame with 1048577 bytes of payload, which is over the limit of 1048576";
        assert_eq!(decode(&past), Err(why.to_owned()));
        assert!(decode(&header(Kind::Stream, STDIN, u32::MAX as usize)).is_err());
    }
}
