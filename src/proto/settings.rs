//! What all connections of an agent have in common.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::commands::table::Table;
#[cfg(feature = "clear")]
use crate::proto::clear::registry::Registry;
#[cfg(feature = "clear")]
use crate::proto::hyper::pair::Pair;

/// How long a request of the command monitor may take to arrive, from the connection on: upstream's default.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of the longest request of the command monitor. Upstream has no limit but the time; requests are names and a few options, and each
/// connection of a small guest may hold one.
pub const REQUEST_MAX: usize = 1 << 20;

/// The commands, and what the protocols that call them bear.
#[derive(Clone)]
pub struct Settings {
    pub commands: Arc<Table>,
    pub request_timeout: Duration,
    /// In bytes.
    pub request_max: usize,
    /// The virtual machines and tokens of Clear Containers.
    #[cfg(feature = "clear")]
    pub clear: Arc<Registry>,
    /// What hyperstart's two channels share.
    #[cfg(feature = "clear")]
    pub hyper: Arc<Pair>,
}

/// Longest time that a request gets, whatever is set: a year, which no clock overflows with.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

impl Settings {
    /// When a request that began at this time must be complete.
    pub fn request_deadline(&self, begun: Instant) -> Instant {
        begun + self.request_timeout.min(LONGEST)
    }

    /// The usual ones, with these commands.
    pub fn with(commands: Table) -> Settings {
        Settings {
            commands: Arc::new(commands),
            request_timeout: REQUEST_TIMEOUT,
            request_max: REQUEST_MAX,
            #[cfg(feature = "clear")]
            clear: Arc::default(),
            #[cfg(feature = "clear")]
            hyper: Arc::default(),
        }
    }
}
