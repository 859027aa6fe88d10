//! `file.read` and `file.write`: the content of small files, read and written where they stand.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use data_encoding::BASE64;

use crate::commands::arguments::{Arguments, missing};
use crate::commands::{Call, Command, Error, Reply};
use crate::sys::file::{self, O_CREAT, O_NOCTTY, O_NONBLOCK, O_RDONLY, O_WRONLY};

/// Bytes of the largest file that is read and written. It is one text, which is in memory three times; what is larger is copied in pieces.
pub const CONTENT_MAX: u64 = 1 << 20;

/// Permissions of a file that was not there, without those that the agent's umask takes.
const MODE: u32 = 0o644;

pub const READ: Command = Command {
    name: "file.read",
    summary: "the content of a file of up to a megabyte",
    arguments: "path: from the root on",
    run: read,
};

pub const WRITE: Command = Command {
    name: "file.write",
    summary: "write a file of up to a megabyte where it stands, in place of what is in it",
    arguments: "\
path: from the root on; made where it is missing, but its directories are not
content_base64: all of it",
    run: write,
};

fn read(arguments: &mut Arguments, _: &Call) -> Result<Reply, Error> {
    let path = arguments.text("path")?;
    arguments.finish()?;
    let path = absolute(path)?;
    let what = format!("read {path}");
    let file = open(&path, O_RDONLY, &what)?;
    let mut content = Vec::new();
    // To its end, wherever that is: files in /proc say that they are empty.
    let read = file.take(CONTENT_MAX + 1).read_to_end(&mut content);
    read.map_err(|error| Error::system(&what, &error))?;
    if content.len() as u64 > CONTENT_MAX {
        return Err(Error::Failed(format!("{what}: longer than the limit of {CONTENT_MAX} bytes")));
    }
    Ok(Reply::of([("content_base64", BASE64.encode(&content).into()), ("size_bytes", content.len().into())]))
}

fn write(arguments: &mut Arguments, _: &Call) -> Result<Reply, Error> {
    let (path, content) = (arguments.text("path")?, arguments.text("content_base64")?);
    arguments.finish()?;
    let path = absolute(path)?;
    let content = content.ok_or_else(|| missing("content_base64"))?;
    let content =
        BASE64.decode(content.as_bytes()).map_err(|error| Error::BadArgument(format!("content_base64: {error}")))?;
    if content.len() as u64 > CONTENT_MAX {
        return Err(Error::BadArgument(format!("content_base64: more than the limit of {CONTENT_MAX} bytes")));
    }
    let what = format!("write {path}");
    let mut file = open(&path, O_WRONLY | O_CREAT, &what)?;
    // Not earlier: what is no file must not be touched.
    let written = file.set_len(0).and_then(|()| file.write_all(&content));
    written.map_err(|error| Error::system(&what, &error))?;
    Ok(Reply::of([("size_bytes", content.len().into())]))
}

fn absolute(path: Option<String>) -> Result<String, Error> {
    let path = path.ok_or_else(|| missing("path"))?;
    match Path::new(&path).is_absolute() && !path.contains('\0') {
        true => Ok(path),
        false => Err(Error::BadArgument(format!("path {path:?}: does not begin at the root"))),
    }
}

/// Opens a regular file. Others may block for ever, or have no end.
fn open(path: &str, flags: i32, what: &str) -> Result<File, Error> {
    let file = file::open(path, flags | O_NONBLOCK | O_NOCTTY, MODE).map_err(|error| Error::system(what, &error))?;
    match file.metadata() {
        Ok(found) if found.is_file() => Ok(file),
        Ok(_) => Err(Error::BadArgument(format!("{what}: is no regular file"))),
        Err(error) => Err(Error::system(what, &error)),
    }
}
