//! The messages as bytes.

/// Numbers of the streams.
pub const STDIN: u8 = 0;
pub const STDOUT: u8 = 1;
pub const STDERR: u8 = 2;

const DATA: u8 = 0;
const ACK: u8 = 1;
const SIZE: u8 = 3;
const ABORT: u8 = 4;
const EXIT: u8 = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// At least one byte.
    Data {
        stream: u8,
        payload: &'a [u8],
    },
    End {
        stream: u8,
    },
    Ack {
        stream: u8,
        count: u32,
    },
    /// Of the window, in characters.
    Size {
        columns: u16,
        rows: u16,
    },
    Abort,
    Exit {
        success: bool,
    },
}

impl Message<'_> {
    pub fn encode(&self) -> Vec<u8> {
        match *self {
            Message::Data { stream, payload } => [&[DATA, stream], payload].concat(),
            Message::End { stream } => vec![DATA, stream],
            Message::Ack { stream, count } => [&[ACK, stream][..], &count.to_be_bytes()].concat(),
            Message::Size { columns, rows } => [&[SIZE][..], &columns.to_be_bytes(), &rows.to_be_bytes()].concat(),
            Message::Abort => vec![ABORT],
            Message::Exit { success } => vec![EXIT, u8::from(!success)],
        }
    }
}

/// What a binary message says. `None`: it is to be ignored.
pub fn decode(bytes: &[u8]) -> Option<Message<'_>> {
    Some(match *bytes {
        [DATA, stream @ STDIN..=STDERR] => Message::End { stream },
        [DATA, stream @ STDIN..=STDERR, ref payload @ ..] => Message::Data { stream, payload },
        [ACK, stream @ STDIN..=STDERR, a, b, c, d] => Message::Ack { stream, count: u32::from_be_bytes([a, b, c, d]) },
        [SIZE, a, b, c, d] => Message::Size { columns: u16::from_be_bytes([a, b]), rows: u16::from_be_bytes([c, d]) },
        [ABORT] => Message::Abort,
        [EXIT, code] => Message::Exit { success: code == 0 },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_has_its_bytes() {
        let cases: [(Message, &[u8]); 10] = [
            (Message::Data { stream: STDIN, payload: b"hi" }, b"\x00\x00hi"),
            (Message::Data { stream: STDERR, payload: &[0] }, b"\x00\x02\x00"),
            (Message::End { stream: STDIN }, &[0, 0]),
            (Message::End { stream: STDOUT }, &[0, 1]),
            (Message::End { stream: STDERR }, &[0, 2]),
            (Message::Ack { stream: STDOUT, count: 0x0102_0304 }, &[1, 1, 1, 2, 3, 4]),
            (Message::Size { columns: 100, rows: 50 }, &[3, 0, 100, 0, 50]),
            (Message::Abort, &[4]),
            (Message::Exit { success: true }, &[5, 0]),
            (Message::Exit { success: false }, &[5, 1]),
        ];
        for (message, bytes) in cases {
            assert_eq!(message.encode(), bytes);
            assert_eq!(decode(bytes), Some(message));
        }
        assert_eq!(decode(&[5, 7]), Some(Message::Exit { success: false }));
        assert_eq!(decode(&[3, 1, 2, 3, 4]), Some(Message::Size { columns: 0x0102, rows: 0x0304 }));
    }

    #[test]
    fn what_is_no_message_is_ignored() {
        let cases: [&[u8]; 18] = [
            &[],
            &[0],
            &[0, 3],
            &[0, 3, 1],
            &[0, 255, 1],
            &[1],
            &[1, 0],
            &[1, 0, 0, 0, 1],
            &[1, 0, 0, 0, 0, 1, 0],
            &[1, 3, 0, 0, 0, 1],
            &[2],
            &[2, 0, 0],
            &[3, 0, 80, 0],
            &[3, 0, 80, 0, 25, 0],
            &[4, 0],
            &[5],
            &[5, 0, 0],
            &[6, 0],
        ];
        for bytes in cases {
            assert_eq!(decode(bytes), None, "{bytes:?}");
        }
    }
}
