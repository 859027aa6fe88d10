//! Recordings: a CBOR sequence of records, in upstream's format (specification of agentproto, section 11).
//!
//! Record: `type` (1 header, 2 command start, 3 frame, 4 command end, 5 footer) and the member of that kind. Keys in canonical order:
//! `type frame footer header cmd_end cmd_start`. Commands interleave by `seq`. Times are nanoseconds since 1970.

use std::io;

use crate::wire::cbor::{Fields, Reader, invalid};
use crate::wire::exec::Exec;
use crate::wire::frame::Frame;
use crate::wire::writer::{Encoder, Map};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    Header(Header),
    Start {
        seq: i64,
        start_ns: i64,
        exec: Exec,
    },
    Frame {
        seq: i64,
        time_ns: i64,
        direction: Direction,
        frame: Frame<'a>,
    },
    /// `code` is -1 when no Exit was seen.
    End {
        seq: i64,
        end_ns: i64,
        code: i64,
    },
    Footer {
        end_ns: i64,
        commands: i64,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub version: String,
    pub start_ns: i64,
    pub local_user: String,
    pub local_pid: i64,
    pub backend_type: String,
    pub backend_address: String,
    pub agent_path: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    ToAgent,
    ToClient,
}

impl<'a> Record<'a> {
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut encoder = Encoder::default();
        encoder.map(|map| self.fill(map));
        encoder.out
    }

    fn fill(&self, map: &mut Map) {
        match self {
            Record::Header(header) => {
                map.int("type", 1);
                map.key("header").map(|map| header.fill(map));
            }
            Record::Start { seq, start_ns, exec } => {
                map.int("type", 2);
                map.key("cmd_start").map(|map| {
                    map.int("seq", *seq);
                    exec.encode(map.key("exec"));
                    map.int("start_time", *start_ns);
                });
            }
            Record::Frame { seq, time_ns, direction, frame } => {
                map.int("type", 3);
                map.key("frame").map(|map| {
                    map.int("ts", *time_ns);
                    map.int("dir", if *direction == Direction::ToAgent { 1 } else { 2 });
                    map.int("seq", *seq);
                    frame.encode(map.key("frame"));
                });
            }
            Record::End { seq, end_ns, code } => {
                map.int("type", 4);
                map.key("cmd_end").map(|map| {
                    map.int("seq", *seq);
                    map.int("end_time", *end_ns);
                    map.int("exit_code", *code);
                });
            }
            Record::Footer { end_ns, commands } => {
                map.int("type", 5);
                map.key("footer").map(|map| {
                    map.int("end_time", *end_ns);
                    map.int("command_count", *commands);
                });
            }
        }
    }

    /// Reads one whole item. `InvalidData` when it is no record.
    pub fn decode(item: &'a [u8]) -> io::Result<Record<'a>> {
        let fields = Reader::new(item).fields()?;
        let kind = fields.u8("type")?;
        let member = ["", "header", "cmd_start", "frame", "cmd_end", "footer"].get(usize::from(kind));
        let member = member.filter(|name| !name.is_empty()).ok_or_else(|| invalid(format!("record of type {kind}")))?;
        let body = fields.get(member).ok_or_else(|| invalid(format!("record without its {member}")))?.fields()?;
        Ok(match kind {
            1 => Record::Header(Header::decode(&body)?),
            2 => Record::Start {
                seq: body.i64("seq")?,
                start_ns: body.i64("start_time")?,
                exec: body.get("exec").map_or_else(|| Ok(Exec::default()), Exec::decode)?,
            },
            3 => decode_frame(&body)?,
            4 => Record::End { seq: body.i64("seq")?, end_ns: body.i64("end_time")?, code: body.i64("exit_code")? },
            _ => Record::Footer { end_ns: body.i64("end_time")?, commands: body.i64("command_count")? },
        })
    }
}

fn decode_frame<'a>(body: &Fields<'a>) -> io::Result<Record<'a>> {
    let direction = match body.u8("dir")? {
        1 => Direction::ToAgent,
        2 => Direction::ToClient,
        other => return Err(invalid(format!("frame in direction {other}"))),
    };
    let frame = body.get("frame").ok_or_else(|| invalid("record without its frame"))?;
    Ok(Record::Frame {
        seq: body.i64("seq")?,
        time_ns: body.i64("ts")?,
        direction,
        frame: Frame::decode(frame.rest())?,
    })
}

impl Header {
    fn fill(&self, map: &mut Map) {
        map.text("version", &self.version);
        map.int("local_pid", self.local_pid);
        map.text("agent_path", &self.agent_path);
        map.text("local_user", &self.local_user);
        map.int("start_time", self.start_ns);
        map.text_some("backend_addr", &self.backend_address);
        map.text_some("backend_type", &self.backend_type);
    }

    fn decode(fields: &Fields) -> io::Result<Header> {
        Ok(Header {
            version: fields.text("version")?,
            start_ns: fields.i64("start_time")?,
            local_user: fields.text("local_user")?,
            local_pid: fields.i64("local_pid")?,
            backend_type: fields.text("backend_type")?,
            backend_address: fields.text("backend_addr")?,
            agent_path: fields.text("agent_path")?,
        })
    }
}
