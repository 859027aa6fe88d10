//! From file requests to calls of the file service, and back.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use crate::engine::Action;
use crate::files::{self, Follow, Listing};
use crate::proto::cbor::Agent;
use crate::stream::outbox::Outbox;
use crate::sys::errno;
use crate::sys::file::{ENOSYS, EOVERFLOW, FileSystem, O_CREAT, O_RDONLY, O_RDWR, O_TRUNC};
use crate::wire::file::{FileRequest, FileResponse, Stat, Statfs, op};
use crate::wire::frame::{self, Frame};
use crate::wire::scan::ELEMENTS_MAX;
use crate::wire::{CHUNK_MAX, mode};

/// Bytes of one answer to a read, at the most; a larger request is answered with so many and no `eof`. The largest answer then fits into what
/// our own client takes as one item, with room for the other members.
const READ_MAX: usize = (4 << 20) - 4096;

/// Bytes of a path that the text of an error repeats. The kernel takes no longer ones (PATH_MAX), and a request may carry one of
/// megabytes, whose echo would be over the size limit of an item.
const SHOWN_MAX: usize = 4096;

/// Bytes behind the data in the longest answer to a read.
const FRAME_END: usize = 64;

/// Entries of a listing in one answer, for clients that take several: about 64 KiB.
const PAGE_ENTRIES: usize = 512;

/// A listing that is answered in several frames.
pub struct PendingListing {
    id: u32,
    entries: Listing,
    path: Vec<u8>,
}

fn path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

impl Agent {
    /// Does one file operation and answers it.
    pub fn file_operation<'a>(&mut self, request: FileRequest, out: &mut Outbox) -> Action<'a> {
        match request.op {
            op::READ_AT => self.read(&request, out),
            op::READ_DIR => self.list(request, out),
            _ => {
                let mut response = FileResponse { id: request.id, ..FileResponse::default() };
                if let Err(error) = self.perform(&request, &mut response) {
                    fail(&mut response, &request, &error);
                }
                out.push(&Frame::FileResp(response).to_bytes());
            }
        }
        Action::None
    }

    fn perform(&mut self, request: &FileRequest, response: &mut FileResponse) -> io::Result<()> {
        let name = path(&request.path);
        let permissions = mode::permissions(request.mode);
        match request.op {
            op::OPEN => response.handle = self.files.open(name, O_RDONLY, 0)?,
            op::CREATE => response.handle = self.files.open(name, O_RDWR | O_CREAT | O_TRUNC, 0o666)?,
            op::OPEN_FILE => response.handle = self.files.open(name, request.flags, permissions)?,
            op::CLOSE => self.files.close(request.handle)?,
            op::WRITE_AT => {
                let written = self.files.write_at(request.handle, request.offset, &request.data);
                response.count = written.count as i64;
                written.error.map_or(Ok(()), Err)?;
            }
            op::FSTAT => response.stat = Some(stat(self.files.fstat(request.handle)?)),
            op::FSYNC => self.files.sync(request.handle)?,
            op::FTRUNCATE => self.files.resize(request.handle, request.size)?,
            op::NEXT_DATA => match self.files.next_data(request.handle, request.offset)? {
                Some((start, end)) => (response.count, response.end) = (start, end),
                None => response.eof = true,
            },
            _ => by_path(request, name, permissions, response)?,
        }
        Ok(())
    }

    fn read(&mut self, request: &FileRequest, out: &mut Outbox) {
        let mut response = FileResponse { id: request.id, ..FileResponse::default() };
        let limit = usize::try_from(request.size).unwrap_or(0).min(READ_MAX);
        let files = &self.files;
        let read = |bytes: &mut Vec<u8>| {
            // Room for a usual chunk at once; for more than that only as it is read.
            bytes.reserve(limit.min(CHUNK_MAX) + FRAME_END);
            files.read_at(request.handle, request.offset, limit, bytes)
        };
        match out.fill(read) {
            Ok(end) => {
                response.count = end.count as i64;
                // A device or a pipe may give less than asked for without being at its end, and an end met below our own limit is one.
                response.eof = end.end_met;
                self.scratch.out.clear();
                self.scratch.gap = None;
                frame::file_response_around(&mut self.scratch, &response, end.count);
                let (head, tail) = self.scratch.out.split_at(self.scratch.gap.unwrap_or(0));
                out.seal(head, tail);
            }
            Err(error) => {
                out.discard();
                fail(&mut response, request, &error);
                out.push(&Frame::FileResp(response).to_bytes());
            }
        }
    }

    fn list(&mut self, request: FileRequest, out: &mut Outbox) {
        match files::list(path(&request.path)) {
            Ok(entries) if request.paged => {
                self.listing = Some(PendingListing { id: request.id, entries, path: request.path });
            }
            Ok(entries) => {
                let mut response = FileResponse { id: request.id, ..FileResponse::default() };
                if let Err(error) = take_entries(entries, &mut response) {
                    fail(&mut response, &request, &error);
                }
                out.push(&Frame::FileResp(response).to_bytes());
            }
            Err(error) => {
                let mut response = FileResponse { id: request.id, ..FileResponse::default() };
                fail(&mut response, &request, &error);
                out.push(&Frame::FileResp(response).to_bytes());
            }
        }
    }

    /// Answers with the next page; gives the listing back while there is more.
    pub fn continue_listing(&mut self, mut listing: PendingListing, out: &mut Outbox) -> Option<PendingListing> {
        let mut response = FileResponse { id: listing.id, ..FileResponse::default() };
        let page: io::Result<Vec<_>> =
            listing.entries.by_ref().take(PAGE_ENTRIES).map(|entry| entry.map(stat)).collect();
        match page {
            Ok(entries) => {
                response.entries = entries;
                response.more = listing.entries.remaining() > 0;
            }
            Err(error) => {
                let request =
                    FileRequest { op: op::READ_DIR, path: std::mem::take(&mut listing.path), ..FileRequest::default() };
                fail(&mut response, &request, &error);
            }
        }
        let more = response.more;
        out.push(&Frame::FileResp(response).to_bytes());
        more.then_some(listing)
    }
}

/// All entries in one answer, for clients whose decoder stops at `ELEMENTS_MAX`.
fn take_entries(entries: Listing, response: &mut FileResponse) -> io::Result<()> {
    if entries.remaining() as u64 > ELEMENTS_MAX {
        return Err(io::Error::from_raw_os_error(EOVERFLOW));
    }
    response.entries = entries.map(|entry| entry.map(stat)).collect::<io::Result<_>>()?;
    Ok(())
}

fn by_path(request: &FileRequest, name: &Path, permissions: u32, response: &mut FileResponse) -> io::Result<()> {
    let new_name = path(&request.new_path);
    match request.op {
        op::STAT => response.stat = Some(stat(files::stat(name)?)),
        op::LSTAT => response.stat = Some(stat(files::lstat(name)?)),
        op::MKDIR => files::make_directory(name, permissions)?,
        op::MKDIR_ALL => files::make_directories(name, permissions)?,
        op::REMOVE => files::remove(name)?,
        op::RENAME => files::rename(name, new_name)?,
        op::CHMOD => files::change_mode(name, permissions)?,
        op::TRUNCATE => files::truncate(name, request.size)?,
        op::GETWD => response.path = files::working_directory()?.into_os_string().into_vec(),
        op::READLINK => response.path = files::read_link(name)?.into_os_string().into_vec(),
        op::SYMLINK => files::symlink(name, new_name)?,
        op::LINK => files::link(name, new_name)?,
        op::CHOWN => files::change_owner(name, request.uid, request.gid)?,
        op::CHTIMES => {
            let follow = if request.no_follow { Follow::Nothing } else { Follow::Links };
            files::set_times(name, request.accessed_ns, request.modified_ns, follow)?;
        }
        op::STATFS => response.file_system = Some(file_system(files::file_system(name)?)),
        _ => return Err(io::Error::from_raw_os_error(ENOSYS)),
    }
    Ok(())
}

/// Puts an error into an answer: the number for programs, the text for people, in the words of upstream's agent.
fn fail(response: &mut FileResponse, request: &FileRequest, error: &io::Error) {
    let number = error.raw_os_error().unwrap_or(crate::sys::file::EIO);
    let why = errno::text(number);
    let name = shown(&request.path);
    let new_name = shown(&request.new_path);
    response.errno = number as u32;
    response.error = match request.op {
        op::OPEN | op::CREATE | op::OPEN_FILE | op::READ_DIR => format!("open {name}: {why}"),
        op::STAT => format!("stat {name}: {why}"),
        op::LSTAT => format!("lstat {name}: {why}"),
        op::MKDIR | op::MKDIR_ALL => format!("mkdir {name}: {why}"),
        op::REMOVE => format!("remove {name}: {why}"),
        op::RENAME => format!("rename {name} {new_name}: {why}"),
        op::CHMOD => format!("chmod {name}: {why}"),
        op::TRUNCATE => format!("truncate {name}: {why}"),
        op::READLINK => format!("readlink {name}: {why}"),
        op::SYMLINK => format!("symlink {name} {new_name}: {why}"),
        op::LINK => format!("link {name} {new_name}: {why}"),
        op::CHOWN => format!("chown {name}: {why}"),
        op::CHTIMES => format!("chtimes {name}: {why}"),
        op::CLOSE | op::READ_AT | op::WRITE_AT | op::GETWD | op::FSYNC | op::STATFS | op::FSTAT | op::FTRUNCATE => why,
        op::NEXT_DATA => why,
        _ => "unknown file op".to_owned(),
    };
}

/// A path for people.
fn shown(path: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(&path[..path.len().min(SHOWN_MAX)])
}

fn stat(found: files::Stat) -> Stat {
    let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    Stat {
        name: found.name.into_vec(),
        size: signed(found.size),
        mode: found.mode,
        modified_ns: found.modified_ns,
        accessed_ns: found.accessed_ns,
        changed_ns: found.changed_ns,
        uid: found.uid,
        gid: found.gid,
        // Cut to 32 bits, as upstream cuts them.
        links: found.links as u32,
        device: found.device_special as u32,
        blocks: signed(found.blocks),
        block_bytes: signed(found.block_bytes),
        inode: found.inode,
    }
}

fn file_system(found: FileSystem) -> Statfs {
    Statfs {
        blocks: found.blocks,
        blocks_free: found.blocks_free,
        blocks_available: found.blocks_available,
        files: found.files,
        files_free: found.files_free,
        block_bytes: found.block_bytes,
        fragment_bytes: found.fragment_bytes,
        name_length: found.name_length,
    }
}
