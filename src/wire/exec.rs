//! The request to run a program (`x` of an Exec frame).

use std::io;

use crate::wire::cbor::{Fields, Reader};
use crate::wire::name;
use crate::wire::writer::{Encoder, Map};

/// One program to start. Strings are bytes, as the kernel takes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exec {
    pub path: Vec<u8>,
    /// `None` travels as null, which upstream tells from an empty list.
    pub argv: Option<Vec<Vec<u8>>>,
    pub env: Option<Vec<Vec<u8>>>,
    /// Empty: the agent's own.
    pub cwd: Vec<u8>,
    /// Numbers of the extra descriptors.
    pub fds: Vec<u32>,
    pub extension: ExecExtension,
}

/// What upstream's Exec cannot say. Upstream ignores the keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecExtension {
    /// Bytes that the agent may send on each stream before it needs a Credit frame; 0: it may send without end.
    pub credit: u32,
    /// Rows and columns of the terminal to run on; `None`: pipes.
    pub terminal: Option<(u16, u16)>,
    /// The program outlives the connection; it has no streams.
    pub detach: bool,
    /// `USER`, `USER:GROUP` or `:GROUP`, names or numbers; empty: the agent's.
    pub user: String,
    /// File mode creation mask; `None`: the agent's.
    pub umask: Option<u32>,
    /// `K=V` that are set on top of the environment.
    pub set_env: Vec<Vec<u8>>,
}

/// Whether any string needs the bytes key, because its text is not itself.
fn needs_bytes<'a>(mut strings: impl Iterator<Item = &'a [u8]>) -> bool {
    strings.any(|string| name::to_text(string).as_bytes() != string)
}

fn write_list(map: &mut Map, key: &'static str, list: Option<&[Vec<u8>]>) {
    let encoder = map.key(key);
    match list {
        None => encoder.null(),
        Some(list) => encoder.array(list.iter(), |encoder, string| encoder.text(&name::to_text(string))),
    }
}

fn write_raw_list(map: &mut Map, key: &'static str, list: &[Vec<u8>]) {
    if needs_bytes(list.iter().map(Vec::as_slice)) {
        map.key(key).array(list.iter(), |encoder, string| encoder.bytes(string));
    }
}

fn write_raw(map: &mut Map, key: &'static str, string: &[u8]) {
    if needs_bytes([string].into_iter()) {
        map.key(key).bytes(string);
    }
}

impl Exec {
    pub fn encode(&self, encoder: &mut Encoder) {
        let more = &self.extension;
        encoder.map(|map| {
            map.text("cwd", &name::to_text(&self.cwd));
            write_list(map, "env", self.env.as_deref());
            if !self.fds.is_empty() {
                map.key("fds").array(self.fds.iter(), |encoder, fd| encoder.int(i64::from(*fd)));
            }
            write_list(map, "argv", self.argv.as_deref());
            map.int_some("cred", more.credit);
            write_raw(map, "cwdb", &self.cwd);
            write_raw_list(map, "envb", self.env.as_deref().unwrap_or_default());
            if let Some(mask) = more.umask {
                map.int("mask", mask);
            }
            map.text("path", &name::to_text(&self.path));
            map.text_some("user", &more.user);
            write_raw_list(map, "argvb", self.argv.as_deref().unwrap_or_default());
            write_raw(map, "pathb", &self.path);
            map.true_some("detach", more.detach);
            if !more.set_env.is_empty() {
                map.key("setenv").array(more.set_env.iter(), |encoder, string| encoder.bytes(string));
            }
            if let Some((rows, columns)) = more.terminal {
                map.key("window").array([rows, columns].iter(), |encoder, side| encoder.int(i64::from(*side)));
            }
        });
    }

    pub fn decode(reader: Reader) -> io::Result<Exec> {
        let fields = reader.fields()?;
        Ok(Exec {
            path: read_name(&fields, "path", "pathb")?,
            argv: read_list(&fields, "argv", "argvb")?,
            env: read_list(&fields, "env", "envb")?,
            cwd: read_name(&fields, "cwd", "cwdb")?,
            fds: fields.list("fds", |fd| Ok(fd.int(0, 0xffff_ffff)? as u32))?.unwrap_or_default(),
            extension: ExecExtension {
                credit: fields.u32("cred")?,
                terminal: fields.list("window", |side| Ok(side.int(0, 0xffff)? as u16))?.map(|sides| {
                    (sides.first().copied().unwrap_or_default(), sides.get(1).copied().unwrap_or_default())
                }),
                detach: fields.truth("detach")?,
                user: fields.text("user")?,
                umask: fields.get("mask").map(|mask| mask.int(0, 0o777)).transpose()?.map(|mask| mask as u32),
                set_env: fields.list("setenv", |string| Ok(string.bytes()?.into_owned()))?.unwrap_or_default(),
            },
        })
    }
}

/// A name from its bytes key, else from its text.
pub fn read_name(fields: &Fields, text: &str, bytes: &str) -> io::Result<Vec<u8>> {
    match fields.get(bytes) {
        Some(raw) => Ok(raw.bytes()?.into_owned()),
        None => Ok(name::from_text(&fields.text(text)?)),
    }
}

/// A list of strings from its bytes key, else from its texts. These are no names of files: characters of the private block stay
/// themselves, because a program's argument or environment may hold them for their own sake.
fn read_list(fields: &Fields, text: &str, bytes: &str) -> io::Result<Option<Vec<Vec<u8>>>> {
    match fields.get(bytes) {
        Some(_) => fields.list(bytes, |string| Ok(string.bytes()?.into_owned())),
        None => fields.list(text, |string| Ok(string.text()?.into_owned().into_bytes())),
    }
}
