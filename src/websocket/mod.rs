//! WebSockets (RFC 6455, version 13) after their handshake is through; the handshake is HTTP, and here are only its keys.

pub mod key;
pub mod socket;
