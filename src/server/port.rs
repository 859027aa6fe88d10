//! Lines: bare ones, on which there are no connections, and those with a link, on which there are many.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::engine::Ended;
use crate::link::acceptor;
use crate::proto::{self, Opening, Protocol};
use crate::server::arrivals::Arrival;
use crate::server::connections::{self, Place, Shared, report};
use crate::server::workers::STACK_BYTES;
use crate::stream::Stream;
use crate::sys::{errno, fd};
use crate::transport::port::{self, Peer};
use crate::transport::serial::{self, Settings};

/// How often to open a line that is not there, or that ends as soon as it is opened (no device behind it, or a file in its place): while it
/// may be about to come, as the ports of a virtio device do in the order of their numbers, and later.
const RETRY: Duration = Duration::from_millis(100);
const RETRY_LATER: Duration = Duration::from_secs(1);

/// How long to be quick.
const HASTE: Duration = Duration::from_secs(1);

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
        let (mut complained, mut in_vain_since) = (None, None);
        while !place.0.stopped() {
            let opened = Instant::now();
            let served = match &link {
                None => serve_bare(&shared, &path, pinned),
                Some(settings) => serve_link(&shared, &path, settings, pinned),
            };
            match served {
                Ok(true) => {
                    (complained, in_vain_since) = (None, None);
                    continue;
                }
                Ok(false) => complained = None,
                Err(error) => {
                    let text = errno::describe(&error);
                    if complained.as_ref() != Some(&text) {
                        log::warn!("{}: {text}", path.display());
                        complained = Some(text);
                    }
                }
            }
            let pause = pause(opened.duration_since(*in_vain_since.get_or_insert(opened)));
            let left = pause.saturating_sub(opened.elapsed());
            if !left.is_zero() {
                let _ = fd::wait_for(stop, fd::READ, Some(left));
            }
        }
    };
    thread::Builder::new().stack_size(STACK_BYTES).spawn(work).map(drop)
}

/// How long a line is left alone after it was opened, when it has been opened in vain for this long.
fn pause(in_vain: Duration) -> Duration {
    if in_vain < HASTE { RETRY } else { RETRY_LATER }
}

/// Serves one peer. `false`: there may have been none, and the line may end at once again.
fn serve_bare(shared: &Shared, path: &Path, pinned: Option<&'static Protocol>) -> io::Result<bool> {
    let line: Stream = port::open(path)?;
    let peer = port::wait_for_peer(&line, shared.stop.as_fd())?;
    if peer == Peer::Stop {
        return Ok(true);
    }
    // Noise must not choose a protocol on a line that has no connections.
    let pinned = pinned.or_else(|| proto::PROTOCOLS.first());
    let ended = proto::serve(line, &[], &shared.circumstances(pinned, Opening::Agent, Instant::now()))?;
    let was_used = ended == Ended::Regular;
    report(Ok(ended));
    Ok(peer == Peer::Came || was_used)
}

/// Serves a link until its line ends. `false`: it may end at once again.
fn serve_link(
    shared: &Arc<Shared>,
    path: &Path,
    settings: &Settings,
    pinned: Option<&'static Protocol>,
) -> io::Result<bool> {
    let stop = shared.stop.as_fd();
    let line = serial::open(path, settings)?;
    let peer = port::wait_for_peer(&line, stop)?;
    if peer == Peer::Stop {
        return Ok(true);
    }
    let mut accept = |stream| {
        let arrival = Arrival { stream, pinned, accepted: Instant::now() };
        if let Err(error) = connections::start(shared, arrival, Vec::new()) {
            log::error!("start a thread: {}", errno::describe(&error));
        }
    };
    match acceptor::serve(&line, stop, settings.quiet, &mut accept) {
        // The host has closed its end.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(peer == Peer::Came),
        served => served.map(|()| true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_stays_away_is_looked_for_once_a_second() {
        assert_eq!(pause(Duration::ZERO), RETRY);
        assert_eq!(pause(HASTE - Duration::from_millis(1)), RETRY);
        assert_eq!(pause(HASTE), RETRY_LATER);
    }
}
