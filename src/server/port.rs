//! Bare lines, on which there are no connections.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use crate::proto::{self, Circumstances, Opening, Protocol};
use crate::server::{EXHAUSTED_PAUSE, Place, STACK_BYTES, Shared, report};
use crate::stream::Stream;
use crate::sys::{errno, fd};
use crate::transport::port;

/// Serves a bare line, one peer after the other, in a thread of its own. A line that is not there yet, or goes, is tried again.
pub fn start(shared: &Arc<Shared>, path: &Path, pinned: Option<&'static Protocol>) -> io::Result<()> {
    let place = Place::take(shared).ok_or(io::ErrorKind::QuotaExceeded)?;
    let path = path.to_owned();
    let work = move || {
        let stop = place.0.stop.as_fd();
        let mut complained = None;
        while !place.0.stopped() {
            let opened = Instant::now();
            match serve(&path, pinned, stop) {
                Ok(()) => complained = None,
                Err(error) => {
                    let text = errno::describe(&error);
                    if complained.as_ref() != Some(&text) {
                        log::warn!("port:{}: {text}", path.display());
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

fn serve(path: &Path, pinned: Option<&'static Protocol>, stop: BorrowedFd) -> io::Result<()> {
    let line: Stream = port::open(path)?;
    if port::wait_for_peer(&line, stop)? {
        // Noise must not choose a protocol on a line that has no connections.
        let pinned = pinned.or_else(|| proto::PROTOCOLS.first());
        report(Ok(proto::serve(line, &Circumstances { pinned, opening: Opening::Agent, stop })?));
    }
    Ok(())
}
