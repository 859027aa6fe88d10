//! Passwords: how the OpenStack guest agent is sent one, how it is hashed, and how it gets into /etc/shadow.

pub mod agreement;
pub mod cipher;
pub mod hash;
pub mod shadow;
