//! An interrupt of a copy. It ends in order, without the part of a file that is there; or at once, if that takes too long.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;
use std::time::Duration;

use crate::sys::fd;
use crate::sys::signal::{self, SIGINT, SIGTERM};

/// What interrupts. Not SIGHUP, which nohup(1) keeps away.
const SIGNALS: [i32; 2] = [SIGINT, SIGTERM];

/// How long the copy may take to end: an input, or an agent, may say nothing for ever.
const GRACE: Duration = Duration::from_secs(1);

/// Knows whether the copy was interrupted.
#[derive(Debug)]
pub struct Interrupt {
    /// The signal; 0 before it.
    signal: Arc<AtomicI32>,
}

impl Interrupt {
    /// Listens from now on, to the end of the process.
    pub fn watch() -> io::Result<Interrupt> {
        let notices = signal::into_pipe(&SIGNALS)?;
        let seen = Arc::new(AtomicI32::new(0));
        let noted = Arc::clone(&seen);
        let listen = move || {
            let first = loop {
                let _ = fd::wait_for(notices.as_fd(), fd::READ, None);
                if let Some(first) = signal::take(&notices).first() {
                    break *first;
                }
            };
            noted.store(first, Ordering::Relaxed);
            // A second one, or the end of our patience, ends the process by itself.
            let _ = signal::restore_default(&SIGNALS);
            thread::sleep(GRACE);
            let _ = signal::send(std::process::id() as i32, first);
        };
        thread::Builder::new().spawn(listen)?;
        Ok(Interrupt { signal: seen })
    }

    /// The signal, once there was one.
    pub fn signal(&self) -> Option<i32> {
        Some(self.signal.load(Ordering::Relaxed)).filter(|signal| *signal != 0)
    }

    /// `Interrupted` once there was one.
    pub fn check(&self) -> io::Result<()> {
        self.signal().map_or(Ok(()), |_| Err(io::ErrorKind::Interrupted.into()))
    }
}
