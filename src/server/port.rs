//! Lines: bare ones, on which there are no connections, and those with a link, on which there are many.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use crate::link::pump;
use crate::proto::{self, Circumstances, Opening, Protocol};
use crate::server::{self, EXHAUSTED_PAUSE, Place, STACK_BYTES, Shared, report};
use crate::stream::Stream;
use crate::sys::{errno, fd};
use crate::transport::serial::Settings;
use crate::transport::{port, serial};

/// Serves a line in a thread of its own: with a link if it has settings for that, else one peer after the other. A line that is not there
/// yet, or goes, is tried again.
pub fn start(
    shared: &Arc<Shared>,
    path: &Path,
    link: Option<Settings>,
    pinned: Option<&'static Protocol>,
) -> io::Result<()> {
    let place = Place::take(shared).ok_or(io::ErrorKind::QuotaExceeded)?;
    let path = path.to_owned();
    let shared = Arc::clone(shared);
    let work = move || {
        let stop = place.0.stop.as_fd();
        let mut complained = None;
        while !place.0.stopped() {
            let opened = Instant::now();
            let served = match &link {
                None => serve_bare(&path, pinned, stop),
                Some(settings) => serve_link(&shared, &path, settings, pinned),
            };
            match served {
                Ok(()) => complained = None,
                Err(error) => {
                    let text = errno::describe(&error);
                    if complained.as_ref() != Some(&text) {
                        log::warn!("{}: {text}", path.display());
                        complained = Some(text);
                    }
                }
            }
            // A line that ends as soon as it is opened (no device behind it, or a file in its place) must not cost the processor.
            let left = EXHAUSTED_PAUSE.saturating_sub(opened.elapsed());
            if !left.is_zero() {
                let _ = fd::wait_for(stop, fd::READ, Some(left));
            }
        }
    };
    thread::Builder::new().stack_size(STACK_BYTES).spawn(work).map(drop)
}

fn serve_bare(path: &Path, pinned: Option<&'static Protocol>, stop: BorrowedFd) -> io::Result<()> {
    let line: Stream = port::open(path)?;
    if port::wait_for_peer(&line, stop)? {
        // Noise must not choose a protocol on a line that has no connections.
        let pinned = pinned.or_else(|| proto::PROTOCOLS.first());
        report(Ok(proto::serve(line, &Circumstances { pinned, opening: Opening::Agent, stop })?));
    }
    Ok(())
}

fn serve_link(
    shared: &Arc<Shared>,
    path: &Path,
    settings: &Settings,
    pinned: Option<&'static Protocol>,
) -> io::Result<()> {
    let stop = shared.stop.as_fd();
    let line = serial::open(path, settings)?;
    if !port::wait_for_peer(&line, stop)? {
        return Ok(());
    }
    let mut accept = |stream| {
        if let Err(error) = server::start(shared, stream, pinned) {
            log::error!("start a thread: {}", errno::describe(&error));
        }
    };
    match pump::serve(&line, stop, &mut accept) {
        // The host has closed its end.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
        served => served,
    }
}
