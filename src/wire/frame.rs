//! The frames: one CBOR map each, by type `t`.

use std::borrow::Cow;
use std::io;

use crate::wire::cbor::{Reader, invalid};
use crate::wire::exec::{Exec, read_name};
use crate::wire::file::{FileRequest, FileResponse};
use crate::wire::name;
use crate::wire::writer::{Encoder, Map};

const EXEC: u8 = 1;
const DATA: u8 = 2;
const EOF: u8 = 3;
const SIGNAL: u8 = 4;
const EXIT: u8 = 5;
const ERROR: u8 = 6;
const LOG: u8 = 7;
const CONFIG: u8 = 8;
const PATH_QUERY: u8 = 9;
const PATH_INFO: u8 = 10;
const FILE_OP: u8 = 11;
const FILE_RESP: u8 = 12;
const HELLO: u8 = 224;
const CREDIT: u8 = 225;
const RESIZE: u8 = 226;
const STARTED: u8 = 227;
const GOODBYE: u8 = 228;

/// One message of either direction. `id` is the number of a program on its connection; 0, the only one upstream knows, is not written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    Exec {
        id: u32,
        exec: Exec,
    },
    Data {
        id: u32,
        stream: u32,
        data: Cow<'a, [u8]>,
    },
    Eof {
        id: u32,
        stream: u32,
    },
    Signal {
        id: u32,
        signal: i64,
    },
    /// `errno` (extension) says why the program could not be started.
    Exit {
        id: u32,
        code: i64,
        error: String,
        errno: u32,
    },
    Error {
        error: String,
    },
    Log(Log),
    Config(Config),
    PathQuery {
        paths: Vec<Vec<u8>>,
    },
    /// `None` travels as null.
    PathInfo {
        entries: Option<Vec<PathEntry>>,
    },
    FileOp(FileRequest<'a>),
    FileResp(FileResponse<'a>),
    Hello(Hello),
    Credit {
        id: u32,
        stream: u32,
        bytes: u32,
    },
    Resize {
        id: u32,
        rows: u16,
        columns: u16,
    },
    Started {
        id: u32,
        pid: u32,
    },
    Goodbye,
    /// A type that we do not know, or null or an empty map in place of a frame: to be ignored.
    Unknown {
        kind: u8,
    },
    /// A known type without its payload.
    Incomplete {
        kind: u8,
    },
}

/// Levels as Go's slog counts them.
pub const LEVEL_TRACE: i64 = -8;
pub const LEVEL_DEBUG: i64 = -4;
pub const LEVEL_INFO: i64 = 0;
pub const LEVEL_WARN: i64 = 4;
pub const LEVEL_ERROR: i64 = 8;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    pub level: i64,
    pub message: String,
    /// `key=value`.
    pub attributes: Vec<String>,
}

/// Patterns of the environment filter; `None` travels as null.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    pub env_keep: Option<Vec<String>>,
    pub env_remove: Option<Vec<String>>,
}

/// An executable file on a search path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathEntry {
    pub name: Vec<u8>,
    pub path: Vec<u8>,
    /// The 0777 bits.
    pub mode: u32,
    pub size: i64,
    pub modified_ns: i64,
}

/// Extension: what an end of the connection is and wants; the first frame of our client, and the agent's answer to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// Revision of the extensions: 1.
    pub revision: u32,
    /// Program and version.
    pub program: String,
    /// From the client: send log messages of this level and above; `None`: send none.
    pub log_level: Option<i64>,
    /// From the agent: bytes that the client may send on each stream of a program before it needs a Credit frame.
    pub window: u32,
    /// From the client: its own mark, which the agent sends back, so that an answer to somebody else's Hello is told from it.
    pub mark: u64,
}

/// Whether a frame is surely an answer to a request, and no greeting, message or refusal; a quick look, before it is decoded.
pub fn is_answer(item: &[u8]) -> bool {
    let kind = Reader::new(item).peek("t").and_then(|kind| u8::try_from(kind).ok());
    kind.is_some_and(|kind| !matches!(kind, HELLO | LOG | ERROR))
}

impl<'a> Frame<'a> {
    /// Appends the frame.
    pub fn encode(&self, encoder: &mut Encoder) {
        encoder.map(|map| self.fill(map));
    }

    /// The frame as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut encoder = Encoder::default();
        self.encode(&mut encoder);
        encoder.out
    }

    fn fill(&self, map: &mut Map) {
        match self {
            Frame::Exec { id, exec } => {
                map.int("t", EXEC);
                exec.encode(map.key("x"));
                map.int_some("id", *id);
            }
            Frame::Data { id, stream, data } => {
                map.bytes_some("d", data);
                fill_stream(map, DATA, *id, *stream);
            }
            Frame::Eof { id, stream } => fill_stream(map, EOF, *id, *stream),
            Frame::Signal { id, signal } => {
                map.int("t", SIGNAL);
                map.int_some("id", *id);
                map.int_some("sig", *signal);
            }
            Frame::Exit { id, code, error, errno } => {
                map.int_some("c", *code);
                map.text_some("e", error);
                map.int("t", EXIT);
                map.int_some("er", *errno);
                map.int_some("id", *id);
            }
            Frame::Error { error } => {
                map.text_some("e", error);
                map.int("t", ERROR);
            }
            Frame::Log(log) => log.fill(map),
            Frame::Config(config) => {
                map.int("t", CONFIG);
                map.key("cfg").map(|map| {
                    fill_patterns(map, "env_keep", config.env_keep.as_deref());
                    fill_patterns(map, "env_remove", config.env_remove.as_deref());
                });
            }
            Frame::PathQuery { .. } | Frame::PathInfo { .. } => self.fill_paths(map),
            Frame::FileOp(request) => {
                map.int("t", FILE_OP);
                request.encode(map.key("fop"), None);
            }
            Frame::FileResp(response) => {
                map.int("t", FILE_RESP);
                response.encode(map.key("frp"), None);
            }
            _ => self.fill_extension(map),
        }
    }

    fn fill_paths(&self, map: &mut Map) {
        match self {
            Frame::PathQuery { paths } => {
                if !paths.is_empty() {
                    map.key("q").map(|map| {
                        map.key("paths").array(paths.iter(), |encoder, path| encoder.text(&name::to_text(path)));
                    });
                }
                map.int("t", PATH_QUERY);
            }
            Frame::PathInfo { entries } => {
                map.key("i").map(|map| {
                    let encoder = map.key("entries");
                    match entries {
                        None => encoder.null(),
                        Some(entries) => encoder.array(entries.iter(), |encoder, entry| entry.encode(encoder)),
                    }
                });
                map.int("t", PATH_INFO);
            }
            _ => {}
        }
    }

    fn fill_extension(&self, map: &mut Map) {
        match self {
            Frame::Hello(hello) => {
                map.int("t", HELLO);
                map.key("hi").map(|map| hello.fill(map));
            }
            Frame::Credit { id, stream, bytes } => {
                map.int_some("n", *bytes);
                fill_stream(map, CREDIT, *id, *stream);
            }
            Frame::Resize { id, rows, columns } => {
                map.int("t", RESIZE);
                map.int_some("id", *id);
                map.int("cols", *columns);
                map.int("rows", *rows);
            }
            Frame::Started { id, pid } => {
                map.int("t", STARTED);
                map.int_some("id", *id);
                map.int("pid", *pid);
            }
            Frame::Goodbye => map.int("t", GOODBYE),
            Frame::Unknown { kind } | Frame::Incomplete { kind } => map.int("t", *kind),
            _ => {}
        }
    }

    /// Reads one whole item. `InvalidData` for everything that upstream's decoder refuses: the connection ends there.
    pub fn decode(item: &'a [u8]) -> io::Result<Frame<'a>> {
        let fields = Reader::new(item).fields()?;
        let (kind, stream) = (fields.u8("t")?, fields.u32("s")?);
        // Upstream does not know the key, so in a frame that has no such member it may hold anything.
        let id = || fields.u32("id");
        let incomplete = Frame::Incomplete { kind };
        Ok(match kind {
            EXEC => match fields.get("x") {
                Some(exec) => Frame::Exec { id: id()?, exec: Exec::decode(exec)? },
                None => incomplete,
            },
            DATA => Frame::Data { id: id()?, stream, data: fields.bytes("d")? },
            EOF => Frame::Eof { id: id()?, stream },
            SIGNAL => Frame::Signal { id: id()?, signal: fields.i64("sig")? },
            EXIT => {
                Frame::Exit { id: id()?, code: fields.i64("c")?, error: fields.text("e")?, errno: fields.u32("er")? }
            }
            ERROR => Frame::Error { error: fields.text("e")? },
            LOG => fields.get("l").map_or(Ok(incomplete), |log| Log::decode(log).map(Frame::Log))?,
            CONFIG => fields.get("cfg").map_or(Ok(incomplete), |config| Config::decode(config).map(Frame::Config))?,
            PATH_QUERY => Frame::PathQuery { paths: fields.get("q").map_or(Ok(Vec::new()), read_paths)? },
            PATH_INFO => fields.get("i").map_or(Ok(incomplete), read_entries)?,
            FILE_OP => match fields.get("fop") {
                Some(request) => Frame::FileOp(FileRequest::decode(request)?),
                None => incomplete,
            },
            FILE_RESP => match fields.get("frp") {
                Some(response) => Frame::FileResp(FileResponse::decode(response)?),
                None => incomplete,
            },
            HELLO => fields.get("hi").map_or(Ok(incomplete), |hello| Hello::decode(hello).map(Frame::Hello))?,
            CREDIT => Frame::Credit { id: id()?, stream, bytes: fields.u32("n")? },
            RESIZE => {
                let side = |name| fields.get(name).map_or(Ok(0), |side| side.int(0, 0xffff).map(|side| side as u16));
                Frame::Resize { id: id()?, rows: side("rows")?, columns: side("cols")? }
            }
            STARTED => Frame::Started { id: id()?, pid: fields.u32("pid")? },
            GOODBYE => Frame::Goodbye,
            kind => Frame::Unknown { kind },
        })
    }
}

fn fill_stream(map: &mut Map, kind: u8, id: u32, stream: u32) {
    map.int_some("s", stream);
    map.int("t", kind);
    map.int_some("id", id);
}

fn fill_patterns(map: &mut Map, key: &'static str, patterns: Option<&[String]>) {
    let encoder = map.key(key);
    match patterns {
        None => encoder.null(),
        Some(patterns) => encoder.array(patterns.iter(), |encoder, pattern| encoder.text(pattern)),
    }
}

/// A Data frame around `length` bytes that are not copied: the encoder's gap says where they stand.
pub fn data_around(encoder: &mut Encoder, id: u32, stream: u32, length: usize) {
    encoder.map(|map| {
        map.gap_some("d", length);
        fill_stream(map, DATA, id, stream);
    });
}

/// A FileResp frame around `length` bytes of file; `response.data` is not looked at.
pub fn file_response_around(encoder: &mut Encoder, response: &FileResponse, length: usize) {
    encoder.map(|map| {
        map.int("t", FILE_RESP);
        response.encode(map.key("frp"), Some(length));
    });
}

/// A FileOp frame around `length` bytes to write; `request.data` is not looked at.
pub fn file_request_around(encoder: &mut Encoder, request: &FileRequest, length: usize) {
    encoder.map(|map| {
        map.int("t", FILE_OP);
        request.encode(map.key("fop"), Some(length));
    });
}

fn read_paths(reader: Reader) -> io::Result<Vec<Vec<u8>>> {
    let path = |path: Reader| Ok(name::from_text(&path.text()?));
    Ok(reader.fields()?.list("paths", path)?.unwrap_or_default())
}

fn read_entries<'a>(reader: Reader) -> io::Result<Frame<'a>> {
    Ok(Frame::PathInfo { entries: reader.fields()?.list("entries", PathEntry::decode)? })
}

impl Log {
    fn fill(&self, map: &mut Map) {
        map.key("l").map(|map| {
            if !self.attributes.is_empty() {
                map.key("a").array(self.attributes.iter(), |encoder, pair| encoder.text(pair));
            }
            map.int("lvl", self.level);
            map.text("msg", &self.message);
        });
        map.int("t", LOG);
    }

    fn decode(reader: Reader) -> io::Result<Log> {
        let fields = reader.fields()?;
        let text = |pair: Reader| Ok(pair.text()?.into_owned());
        Ok(Log {
            level: fields.i64("lvl")?,
            message: fields.text("msg")?,
            attributes: fields.list("a", text)?.unwrap_or_default(),
        })
    }
}

impl Config {
    fn decode(reader: Reader) -> io::Result<Config> {
        let fields = reader.fields()?;
        let text = |pattern: Reader| Ok(pattern.text()?.into_owned());
        Ok(Config { env_keep: fields.list("env_keep", text)?, env_remove: fields.list("env_remove", text)? })
    }
}

impl PathEntry {
    fn encode(&self, encoder: &mut Encoder) {
        let raw = |map: &mut Map, key, name: &[u8]| {
            if name::to_text(name).as_bytes() != name {
                map.key(key).bytes(name);
            }
        };
        encoder.map(|map| {
            raw(map, "nb", &self.name);
            raw(map, "pb", &self.path);
            map.int("mode", self.mode);
            map.text("name", &name::to_text(&self.name));
            map.text("path", &name::to_text(&self.path));
            map.int("size", self.size);
            map.int_some("mtime", self.modified_ns);
        });
    }

    fn decode(reader: Reader) -> io::Result<PathEntry> {
        let fields = reader.fields()?;
        Ok(PathEntry {
            name: read_name(&fields, "name", "nb")?,
            path: read_name(&fields, "path", "pb")?,
            mode: fields.u32("mode")?,
            size: fields.i64("size")?,
            modified_ns: fields.i64("mtime")?,
        })
    }
}

impl Hello {
    fn fill(&self, map: &mut Map) {
        if let Some(level) = self.log_level {
            map.int("log", level);
        }
        map.int("rev", self.revision);
        map.uint_some("win", u64::from(self.window));
        map.uint_some("mark", self.mark);
        map.text("prog", &self.program);
    }

    fn decode(reader: Reader) -> io::Result<Hello> {
        let fields = reader.fields()?;
        let revision = fields.u32("rev")?;
        if revision == 0 {
            return Err(invalid("hello without a revision"));
        }
        Ok(Hello {
            revision,
            program: fields.text("prog")?,
            log_level: fields.get("log").map(|level| level.int(-100, 100)).transpose()?.map(|level| level as i64),
            window: fields.u32("win")?,
            mark: fields.u64("mark")?,
        })
    }
}
