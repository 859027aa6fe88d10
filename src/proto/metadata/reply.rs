//! The actions that are answered with one request: a file, the list of a folder, the end of the task.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use crate::http::wait::is_stop;
use crate::metaservice::{Action, ERROR_HEADER, FILE_NOT_FOUND, REPLY};
use crate::proto::metadata::folder::Listed;
use crate::proto::metadata::post::Post;
use crate::proto::metadata::{Guest, folder, why};
use crate::sys::fd;
use crate::sys::file::{self, O_NOCTTY, O_NONBLOCK, O_RDONLY};

/// Bytes of one read of a file, and of one chunk: large, so that the host has few reads and wake-ups for it.
const CHUNK: usize = 256 << 10;

pub fn target(action: &Action) -> String {
    format!("{REPLY}?id={}", action.id)
}

/// Sends a file.
pub fn artifact(guest: &Guest, action: &Action) {
    let path = &action.path;
    match open(path) {
        Ok(file) => match send(guest, action, &file) {
            Ok((200, count)) => log::info!("artifact {path:?}: sent, {count} bytes"),
            Ok((status, _)) => log::error!("artifact {path:?}: the host says status {status}"),
            Err(error) if is_stop(&error) => {}
            Err(error) => log::error!("artifact {path:?}: {}", why(&error)),
        },
        Err(error) => {
            log::info!("artifact {path:?}: {}", why(&error));
            answer(guest, action, &[(ERROR_HEADER, FILE_NOT_FOUND)], b"");
        }
    }
}

/// Opens a plain file; what else there is could block, or have no end.
fn open(path: &str) -> io::Result<File> {
    let other = || io::Error::other("not a regular file");
    // Opening is an act for some devices.
    if !fs::metadata(path)?.is_file() {
        return Err(other());
    }
    let file = file::open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY, 0)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(other()) }
}

/// The host's status, and the bytes of the file. An error in the middle drops the connection, so that the host sees that it is not all. So does an answer that comes too early.
fn send(guest: &Guest, action: &Action, file: &File) -> io::Result<(u16, usize)> {
    let patience = guest.timers().artifact_patience;
    let mut post = Post::open(guest, &target(action), guest.timers().handshake)?;
    let (mut moved, mut is_ended, mut sent) = (Instant::now(), false, 0);
    loop {
        let before = post.waiting();
        let mut answered = post.flush()?;
        if post.waiting() < before {
            moved = Instant::now();
        }
        if post.waiting() == 0 && !answered {
            if is_ended {
                return Ok((post.response(patience)?, sent));
            }
            let count = post.queue(|into| fd::read_append(file.as_fd(), into, CHUNK))?;
            (is_ended, sent) = (count == 0, sent + count);
            if is_ended {
                post.queue_end()?;
            }
            moved = Instant::now();
        }
        answered = answered || post.wait(None, Some(moved + patience))?;
        if answered {
            let status = post.response(guest.timers().request)?;
            return Err(io::Error::other(format!("the host says status {status} before the end")));
        }
    }
}

/// Sends the list of a folder.
pub fn folder(guest: &Guest, action: &Action) {
    match folder::list(&action.path, || guest.is_stopped()) {
        Listed::Whole(list) => answer(guest, action, &[("Content-Type", "application/json")], list.as_bytes()),
        // A list that is not whole must not look like one. The host refuses what is no JSON, and asks in vain twice more.
        Listed::TooLong => answer(guest, action, &[("Content-Type", "text/plain")], b"the list is too long"),
        Listed::Stopped => {}
    }
}

/// Says that the end of the task is under way. That is answered at once, whether it runs or not.
pub fn kill(guest: &Guest, action: &Action) {
    answer(guest, action, &[], b"");
}

fn answer(guest: &Guest, action: &Action, headers: &[(&str, &str)], body: &[u8]) {
    let until = Some(Instant::now() + guest.timers().reply);
    match guest.request_until("POST", &target(action), headers, body, until) {
        Ok((200, _)) => {}
        Ok((status, _)) => log::error!("reply to {:?}: status {status}", action.kind),
        // Everything ends, and that is no error.
        Err(error) if is_stop(&error) => {}
        Err(error) => log::error!("reply to {:?}: {}", action.kind, why(&error)),
    }
}
