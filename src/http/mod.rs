//! HTTP/1.1, both sides, over two descriptors that do not block.
//!
//! Source: RFC 9112, and `httparse` for the lines of a head. A body is handed on as it comes; what is kept in memory is one head and one
//! read. What two readers could understand in two ways (two lengths, a length and chunks, folded lines, lines without a carriage return)
//! is refused, because somebody else may stand between.

pub mod body;
pub mod client;
pub mod connection;
pub mod head;
pub mod retry;
pub mod wait;

use std::io;

/// "The peer is wrong", with what is wrong.
fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// "The caller is wrong", with what is wrong.
fn refused(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}
