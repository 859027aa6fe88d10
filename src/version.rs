//! What this program is.

/// Name, version, git's description of the source (empty outside of a checkout) and target.
pub const LINE: &str =
    concat!("lodger ", env!("CARGO_PKG_VERSION"), " ", env!("LODGER_GIT"), " (", env!("LODGER_TARGET"), ")");

/// Name and version.
pub const PROGRAM: &str = concat!("lodger ", env!("CARGO_PKG_VERSION"));
