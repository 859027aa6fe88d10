//! The keys of the handshake: they prove that the other side knows this protocol. Source: RFC 6455, sections 4.1 and 4.2.2.

use data_encoding::BASE64;
use sha1::{Digest, Sha1};

/// What the server puts behind the client's key before it makes the sum.
const SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What `Sec-WebSocket-Accept` says to this `Sec-WebSocket-Key`.
pub fn accept_key(key: &str) -> String {
    BASE64.encode(&Sha1::new().chain_update(key).chain_update(SUFFIX).finalize())
}

/// A `Sec-WebSocket-Key`.
pub fn new_key(random: [u8; 16]) -> String {
    BASE64.encode(&random)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_the_standard() {
        assert_eq!(new_key(*b"the sample nonce"), "dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept_key("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
