//! JSON without a tree: where a text ends that comes in pieces, and what its strings say.
//!
//! The rules are those of Go's `encoding/json`, whose peers we speak to (specification of google-command, sections 4 and 6).

pub mod scan;
#[cfg(feature = "clear")]
pub mod syntax;
pub mod text;
