//! Requests and answers of the file operations (`fop` and `frp`), and what they say about files.

use std::borrow::Cow;
use std::io;

use crate::wire::cbor::{Fields, Reader};
use crate::wire::exec::read_name;
use crate::wire::writer::{Encoder, Map};
use crate::wire::{mode, name};

/// Numbers of the operations: 1 to 25 are upstream's, 200 and up ours.
pub mod op {
    pub const OPEN: u8 = 1;
    pub const CREATE: u8 = 2;
    pub const OPEN_FILE: u8 = 3;
    pub const CLOSE: u8 = 4;
    pub const READ_AT: u8 = 5;
    pub const WRITE_AT: u8 = 6;
    pub const STAT: u8 = 7;
    pub const LSTAT: u8 = 8;
    pub const READ_DIR: u8 = 9;
    pub const MKDIR: u8 = 10;
    pub const MKDIR_ALL: u8 = 11;
    pub const REMOVE: u8 = 12;
    pub const RENAME: u8 = 13;
    pub const CHMOD: u8 = 14;
    pub const TRUNCATE: u8 = 15;
    pub const GETWD: u8 = 16;
    pub const FSYNC: u8 = 17;
    pub const READLINK: u8 = 18;
    pub const SYMLINK: u8 = 19;
    pub const LINK: u8 = 20;
    pub const CHOWN: u8 = 21;
    pub const CHTIMES: u8 = 22;
    pub const STATFS: u8 = 23;
    pub const FSTAT: u8 = 24;
    pub const FTRUNCATE: u8 = 25;
    /// Extension: the next range that may hold data at or behind `of`, as `n` (start) and `end`; `eof` when there is none.
    pub const NEXT_DATA: u8 = 200;
}

/// A file operation that is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileRequest<'a> {
    pub id: u32,
    pub op: u8,
    pub path: Vec<u8>,
    pub new_path: Vec<u8>,
    pub flags: i32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub handle: u32,
    pub offset: i64,
    pub size: i64,
    pub accessed_ns: i64,
    pub modified_ns: i64,
    pub data: Cow<'a, [u8]>,
    /// Extension: Chtimes of a link itself.
    pub no_follow: bool,
    /// Extension: a listing may come in several answers.
    pub paged: bool,
}

fn raw_some(map: &mut Map, key: &'static str, raw: &[u8]) {
    if name::to_text(raw).as_bytes() != raw {
        map.key(key).bytes(raw);
    }
}

impl<'a> FileRequest<'a> {
    /// `gap`: so many bytes of data follow from elsewhere, in place of `data`.
    pub fn encode(&self, encoder: &mut Encoder, gap: Option<usize>) {
        encoder.map(|map| {
            match gap {
                Some(length) => map.gap_some("d", length),
                None => map.bytes_some("d", &self.data),
            }
            map.int_some("h", self.handle);
            map.text_some("p", &name::to_text(&self.path));
            map.int_some("at", self.accessed_ns);
            map.int_some("fl", self.flags);
            map.int("id", self.id);
            map.int_some("mo", self.mode);
            map.int_some("mt", self.modified_ns);
            map.true_some("nf", self.no_follow);
            map.text_some("np", &name::to_text(&self.new_path));
            map.int_some("of", self.offset);
            map.int("op", self.op);
            raw_some(map, "pb", &self.path);
            map.true_some("pg", self.paged);
            map.int_some("sz", self.size);
            map.int_some("gid", self.gid);
            raw_some(map, "npb", &self.new_path);
            map.int_some("uid", self.uid);
        });
    }

    pub fn decode(reader: Reader<'a>) -> io::Result<FileRequest<'a>> {
        let fields = reader.fields()?;
        Ok(FileRequest {
            id: fields.u32("id")?,
            op: fields.u8("op")?,
            path: read_name(&fields, "p", "pb")?,
            new_path: read_name(&fields, "np", "npb")?,
            flags: fields.i32("fl")?,
            mode: fields.u32("mo")?,
            uid: fields.u32("uid")?,
            gid: fields.u32("gid")?,
            handle: fields.u32("h")?,
            offset: fields.i64("of")?,
            size: fields.i64("sz")?,
            accessed_ns: fields.i64("at")?,
            modified_ns: fields.i64("mt")?,
            data: fields.bytes("d")?,
            no_follow: fields.truth("nf")?,
            paged: fields.truth("pg")?,
        })
    }
}

/// What became of a file operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileResponse<'a> {
    pub id: u32,
    /// Linux's error number; 0 is success.
    pub errno: u32,
    pub error: String,
    pub handle: u32,
    pub data: Cow<'a, [u8]>,
    pub count: i64,
    pub eof: bool,
    pub path: Vec<u8>,
    pub stat: Option<Stat>,
    pub file_system: Option<Statfs>,
    pub entries: Vec<Stat>,
    /// Extension: end of the range that starts at `count`.
    pub end: i64,
    /// Extension: more entries of the listing follow in another answer with this id.
    pub more: bool,
}

impl<'a> FileResponse<'a> {
    /// `gap`: so many bytes of data follow from elsewhere, in place of `data`.
    pub fn encode(&self, encoder: &mut Encoder, gap: Option<usize>) {
        encoder.map(|map| {
            match gap {
                Some(length) => map.gap_some("d", length),
                None => map.bytes_some("d", &self.data),
            }
            map.int_some("h", self.handle);
            map.int_some("n", self.count);
            map.text_some("p", &name::to_text(&self.path));
            map.text_some("em", &self.error);
            if !self.entries.is_empty() {
                map.key("en").array(self.entries.iter(), |encoder, stat| {
                    encoder.map(|map| stat.encode(map.key("st")));
                });
            }
            map.int_some("er", self.errno);
            map.int("id", self.id);
            raw_some(map, "pb", &self.path);
            if let Some(found) = &self.file_system {
                found.encode(map.key("sf"));
            }
            if let Some(stat) = &self.stat {
                stat.encode(map.key("st"));
            }
            map.int_some("end", self.end);
            map.true_some("eof", self.eof);
            map.true_some("more", self.more);
        });
    }

    pub fn decode(reader: Reader<'a>) -> io::Result<FileResponse<'a>> {
        let fields = reader.fields()?;
        let entry = |entry: Reader| match entry.fields()?.get("st") {
            Some(stat) => Stat::decode(stat),
            None => Ok(Stat::default()),
        };
        Ok(FileResponse {
            id: fields.u32("id")?,
            errno: fields.u32("er")?,
            error: fields.text("em")?,
            handle: fields.u32("h")?,
            data: fields.bytes("d")?,
            count: fields.i64("n")?,
            eof: fields.truth("eof")?,
            path: read_name(&fields, "p", "pb")?,
            stat: fields.get("st").map(Stat::decode).transpose()?,
            file_system: fields.get("sf").map(Statfs::decode).transpose()?,
            entries: fields.list("en", entry)?.unwrap_or_default(),
            end: fields.i64("end")?,
            more: fields.truth("more")?,
        })
    }
}

/// What lstat(2) says of a file. The mode travels as Go's number and is an `st_mode` here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    pub name: Vec<u8>,
    pub size: i64,
    pub mode: u32,
    pub modified_ns: i64,
    pub accessed_ns: i64,
    pub changed_ns: i64,
    pub uid: u32,
    pub gid: u32,
    pub links: u32,
    pub device: u32,
    /// Of 512 bytes.
    pub blocks: i64,
    pub block_bytes: i64,
    pub inode: u64,
}

const TYPE_MASK: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const SYMLINK: u32 = 0o120_000;
const REGULAR: u32 = 0o100_000;

impl Stat {
    pub fn is_directory(&self) -> bool {
        self.mode & TYPE_MASK == DIRECTORY
    }

    pub fn is_symlink(&self) -> bool {
        self.mode & TYPE_MASK == SYMLINK
    }

    pub fn is_file(&self) -> bool {
        self.mode & TYPE_MASK == REGULAR
    }

    fn encode(&self, encoder: &mut Encoder) {
        encoder.map(|map| {
            map.true_some("d", self.is_directory());
            map.int("m", mode::to_go(self.mode));
            map.text("n", &name::to_text(&self.name));
            map.int("s", self.size);
            map.int_some("t", self.modified_ns);
            map.int_some("at", self.accessed_ns);
            map.int_some("bl", self.blocks);
            map.int_some("bs", self.block_bytes);
            map.int_some("ct", self.changed_ns);
            raw_some(map, "nb", &self.name);
            map.int_some("nl", self.links);
            map.int_some("rd", self.device);
            map.int_some("gid", self.gid);
            map.uint_some("ino", self.inode);
            map.int_some("uid", self.uid);
        });
    }

    fn decode(reader: Reader) -> io::Result<Stat> {
        let fields = reader.fields()?;
        Ok(Stat {
            name: read_name(&fields, "n", "nb")?,
            size: fields.i64("s")?,
            mode: mode::from_go(fields.u32("m")?),
            modified_ns: fields.i64("t")?,
            accessed_ns: fields.i64("at")?,
            changed_ns: fields.i64("ct")?,
            uid: fields.u32("uid")?,
            gid: fields.u32("gid")?,
            links: fields.u32("nl")?,
            device: fields.u32("rd")?,
            blocks: fields.i64("bl")?,
            block_bytes: fields.i64("bs")?,
            inode: fields.u64("ino")?,
        })
    }
}

/// What statfs(2) says of a file system; blocks are of `fragment_bytes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statfs {
    pub blocks: u64,
    pub blocks_free: u64,
    pub blocks_available: u64,
    pub files: u64,
    pub files_free: u64,
    pub block_bytes: u64,
    pub fragment_bytes: u64,
    pub name_length: u64,
}

impl Statfs {
    fn encode(&self, encoder: &mut Encoder) {
        encoder.map(|map| {
            map.uint_some("b", self.blocks);
            map.uint_some("f", self.files);
            map.uint_some("ba", self.blocks_available);
            map.uint_some("bf", self.blocks_free);
            map.uint_some("bs", self.block_bytes);
            map.uint_some("ff", self.files_free);
            map.uint_some("fr", self.fragment_bytes);
            map.uint_some("nl", self.name_length);
        });
    }

    fn decode(reader: Reader) -> io::Result<Statfs> {
        let fields: Fields = reader.fields()?;
        Ok(Statfs {
            blocks: fields.u64("b")?,
            blocks_free: fields.u64("bf")?,
            blocks_available: fields.u64("ba")?,
            files: fields.u64("f")?,
            files_free: fields.u64("ff")?,
            block_bytes: fields.u64("bs")?,
            fragment_bytes: fields.u64("fr")?,
            name_length: fields.u64("nl")?,
        })
    }
}
