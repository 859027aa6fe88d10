//! JSON that comes in pieces.

pub mod scan;
pub mod text;
