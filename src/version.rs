//! What this program is.

/// Name, version, git's description of the source (empty outside of a checkout) and target.
pub const LINE: &str =
    concat!("lodger ", env!("CARGO_PKG_VERSION"), " ", env!("LODGER_GIT"), " (", env!("LODGER_TARGET"), ")");

/// The package's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// git's description of the source; empty outside of a checkout.
pub const GIT: &str = env!("LODGER_GIT");

/// What the program was built for.
pub const TARGET: &str = env!("LODGER_TARGET");

/// Name and version.
pub const PROGRAM: &str = concat!("lodger ", env!("CARGO_PKG_VERSION"));
