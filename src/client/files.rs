//! The guest's files: one call an operation, and streams of chunks for bulk.

use std::borrow::Cow;
use std::io;

use crate::client::{Connection, Error};
use crate::wire::file::{FileRequest, FileResponse, Stat, Statfs, op};
use crate::wire::frame::{self, Frame, PathEntry};
use crate::wire::writer::Encoder;
use crate::wire::{CHUNK_MAX, WINDOW};

/// Requests for chunks under way at once: what fits into the window of a line.
const AHEAD: usize = WINDOW as usize / CHUNK_MAX;

impl Connection {
    /// Does one file operation. The number in the request is chosen here.
    ///
    /// # Errors
    /// `Remote` with the guest's error number and text; those of the connection.
    pub fn file(&mut self, request: FileRequest) -> Result<FileResponse<'static>, Error> {
        let id = self.new_id();
        self.send(&Frame::FileOp(FileRequest { id, ..request }));
        self.file_answer(id)
    }

    fn file_answer(&mut self, id: u32) -> Result<FileResponse<'static>, Error> {
        loop {
            if let Frame::FileResp(response) = self.receive()?
                && response.id == id
            {
                let owned = FileResponse { data: Cow::Owned(response.data.into_owned()), ..response };
                return check(owned);
            }
        }
    }

    fn on_path(&mut self, op: u8, path: &[u8]) -> Result<FileResponse<'static>, Error> {
        self.file(FileRequest { op, path: path.to_vec(), ..FileRequest::default() })
    }

    fn on_paths(&mut self, op: u8, path: &[u8], new_path: &[u8]) -> Result<(), Error> {
        let (path, new_path) = (path.to_vec(), new_path.to_vec());
        self.file(FileRequest { op, path, new_path, ..FileRequest::default() }).map(drop)
    }

    /// stat(2).
    pub fn stat(&mut self, path: &[u8]) -> Result<Stat, Error> {
        self.on_path(op::STAT, path).map(|answer| answer.stat.unwrap_or_default())
    }

    /// lstat(2).
    pub fn lstat(&mut self, path: &[u8]) -> Result<Stat, Error> {
        self.on_path(op::LSTAT, path).map(|answer| answer.stat.unwrap_or_default())
    }

    /// What is in a directory, by name.
    pub fn list(&mut self, path: &[u8]) -> Result<Vec<Stat>, Error> {
        let id = self.new_id();
        let request = FileRequest { id, op: op::READ_DIR, path: path.to_vec(), paged: true, ..FileRequest::default() };
        self.send(&Frame::FileOp(request));
        let mut all = Vec::new();
        loop {
            let page = self.file_answer(id)?;
            all.extend(page.entries);
            if !page.more {
                return Ok(all);
            }
        }
    }

    /// open(2) with Linux's flags; gives the handle.
    pub fn open_file(&mut self, path: &[u8], flags: i32, mode: u32) -> Result<u32, Error> {
        let request = FileRequest { op: op::OPEN_FILE, path: path.to_vec(), flags, mode, ..FileRequest::default() };
        self.file(request).map(|answer| answer.handle)
    }

    pub fn close_file(&mut self, handle: u32) -> Result<(), Error> {
        self.file(FileRequest { op: op::CLOSE, handle, ..FileRequest::default() }).map(drop)
    }

    pub fn make_directory(&mut self, path: &[u8], mode: u32) -> Result<(), Error> {
        self.file(FileRequest { op: op::MKDIR, path: path.to_vec(), mode, ..FileRequest::default() }).map(drop)
    }

    /// With all that are missing above it; one that is there is fine.
    pub fn make_directories(&mut self, path: &[u8], mode: u32) -> Result<(), Error> {
        self.file(FileRequest { op: op::MKDIR_ALL, path: path.to_vec(), mode, ..FileRequest::default() }).map(drop)
    }

    /// unlink(2) or rmdir(2).
    pub fn remove(&mut self, path: &[u8]) -> Result<(), Error> {
        self.on_path(op::REMOVE, path).map(drop)
    }

    /// rename(2), but never over a directory.
    pub fn rename(&mut self, old: &[u8], new: &[u8]) -> Result<(), Error> {
        self.on_paths(op::RENAME, old, new)
    }

    pub fn symlink(&mut self, target: &[u8], link: &[u8]) -> Result<(), Error> {
        self.on_paths(op::SYMLINK, target, link)
    }

    pub fn link(&mut self, old: &[u8], new: &[u8]) -> Result<(), Error> {
        self.on_paths(op::LINK, old, new)
    }

    pub fn read_link(&mut self, path: &[u8]) -> Result<Vec<u8>, Error> {
        self.on_path(op::READLINK, path).map(|answer| answer.path)
    }

    /// chmod(2) with permissions and the three special bits.
    pub fn change_mode(&mut self, path: &[u8], mode: u32) -> Result<(), Error> {
        self.file(FileRequest { op: op::CHMOD, path: path.to_vec(), mode, ..FileRequest::default() }).map(drop)
    }

    /// Sets the time of the last change, and of the last access, of the file itself: links are not followed.
    pub fn set_times(&mut self, path: &[u8], accessed_ns: i64, modified_ns: i64) -> Result<(), Error> {
        let path = path.to_vec();
        let request =
            FileRequest { op: op::CHTIMES, path, accessed_ns, modified_ns, no_follow: true, ..FileRequest::default() };
        self.file(request).map(drop)
    }

    /// ftruncate(2).
    pub fn resize(&mut self, handle: u32, size: i64) -> Result<(), Error> {
        self.file(FileRequest { op: op::FTRUNCATE, handle, size, ..FileRequest::default() }).map(drop)
    }

    /// statfs(2).
    pub fn file_system(&mut self, path: &[u8]) -> Result<Statfs, Error> {
        self.on_path(op::STATFS, path).map(|answer| answer.file_system.unwrap_or_default())
    }

    /// The next range that may hold data at or behind an offset; `None` when there is none. A file that cannot tell is an error.
    pub fn next_data(&mut self, handle: u32, offset: i64) -> Result<Option<(i64, i64)>, Error> {
        let answer = self.file(FileRequest { op: op::NEXT_DATA, handle, offset, ..FileRequest::default() })?;
        Ok((!answer.eof).then_some((answer.count, answer.end)))
    }

    /// The executables on a search path; without directories on the agent's PATH.
    pub fn programs(&mut self, directories: &[Vec<u8>]) -> Result<Vec<PathEntry>, Error> {
        self.send(&Frame::PathQuery { paths: directories.to_vec() });
        loop {
            if let Frame::PathInfo { entries } = self.receive()? {
                return Ok(entries.unwrap_or_default());
            }
        }
    }

    /// Reads a file from `start` up to `end`, or to its end if that comes first, with several chunks under way; `take` gets each with its
    /// offset, in order. Gives the offset that was reached.
    pub fn download(
        &mut self,
        handle: u32,
        start: i64,
        end: i64,
        mut take: impl FnMut(i64, &[u8]) -> Result<(), Error>,
    ) -> Result<i64, Error> {
        let chunk = CHUNK_MAX as i64;
        let (mut asked, mut reached, mut ended, mut waiting) = (start, start, false, std::collections::VecDeque::new());
        let mut failed = None;
        loop {
            while waiting.len() < AHEAD && asked < end && !ended && failed.is_none() {
                let id = self.new_id();
                let size = chunk.min(end - asked);
                let request =
                    FileRequest { id, op: op::READ_AT, handle, offset: asked, size, ..FileRequest::default() };
                self.send(&Frame::FileOp(request));
                waiting.push_back(id);
                asked += size;
            }
            let Some(id) = waiting.pop_front() else { break };
            // After an error the answers that are under way are still taken, so that the connection stays in step.
            let result = self.with_answer(id, |answer| {
                if answer.errno != 0 {
                    return Err(Error::Remote { errno: answer.errno as i32, text: answer.error.clone() });
                }
                if failed.is_none() && !ended && !answer.data.is_empty() {
                    take(reached, &answer.data)?;
                    reached += answer.data.len() as i64;
                }
                ended |= answer.eof || answer.data.is_empty();
                Ok(())
            });
            match result {
                Err(error @ (Error::Remote { .. } | Error::Local { .. })) => failed = failed.or(Some(error)),
                result => result?,
            }
        }
        failed.map_or(Ok(reached), Err)
    }

    /// Lets `act` look at the answer to a request without copying its data.
    fn with_answer(&mut self, id: u32, act: impl FnOnce(&FileResponse) -> Result<(), Error>) -> Result<(), Error> {
        loop {
            if let Frame::FileResp(response) = self.receive()?
                && response.id == id
            {
                return act(&response);
            }
        }
    }

    /// Writes a file from `start` up to `end`, with several chunks under way; `give` appends at most so many bytes from an offset on to the
    /// buffer, and 0 says that there are no more. Gives the offset that was reached.
    pub fn upload(
        &mut self,
        handle: u32,
        start: i64,
        end: i64,
        mut give: impl FnMut(&mut Vec<u8>, i64, usize) -> io::Result<usize>,
    ) -> Result<i64, Error> {
        let (mut sent, mut ended, mut waiting) = (start, false, std::collections::VecDeque::new());
        let mut failed = None;
        loop {
            while waiting.len() < AHEAD && sent < end && !ended && failed.is_none() {
                let limit = (CHUNK_MAX as i64).min(end - sent) as usize;
                let count = match self.outbox.fill(|bytes| give(bytes, sent, limit)) {
                    Ok(count) => count,
                    Err(error) => {
                        failed = Some(Error::Local { what: "read the file to send".into(), error });
                        0
                    }
                };
                if count == 0 {
                    self.outbox.discard();
                    ended = true;
                    break;
                }
                let id = self.new_id();
                self.seal_write(
                    &FileRequest { id, op: op::WRITE_AT, handle, offset: sent, ..FileRequest::default() },
                    count,
                );
                waiting.push_back((id, count));
                sent += count as i64;
            }
            let Some((id, _)) = waiting.pop_front() else { break };
            match self.file_answer(id) {
                Err(error @ Error::Remote { .. }) => failed = failed.or(Some(error)),
                result => drop(result?),
            }
        }
        failed.map_or(Ok(sent), Err)
    }

    fn seal_write(&mut self, request: &FileRequest, count: usize) {
        let mut encoder = Encoder::default();
        frame::file_request_around(&mut encoder, request, count);
        let (head, tail) = encoder.out.split_at(encoder.gap.unwrap_or_default());
        self.outbox.seal(head, tail);
    }
}

fn check(answer: FileResponse<'static>) -> Result<FileResponse<'static>, Error> {
    if answer.errno == 0 && answer.error.is_empty() {
        return Ok(answer);
    }
    Err(Error::Remote { errno: answer.errno as i32, text: answer.error })
}
