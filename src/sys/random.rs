//! Randomness.

use std::io;

use crate::sys::{check_size, retry};

/// getrandom(2) without flags. Waits only until the kernel has enough for its generator, once after the start of the machine. ENOSYS
/// before Linux 3.17.
pub fn getrandom<const LENGTH: usize>() -> io::Result<[u8; LENGTH]> {
    // Up to 256 bytes come whole, or not at all.
    const { assert!(LENGTH <= 256) };
    let mut bytes = [0; LENGTH];
    // SAFETY: the pointer and the length are those of one array.
    retry(|| check_size(unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), LENGTH, 0) }))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_bytes_differ() {
        let (a, b) = (getrandom::<16>().expect("random bytes"), getrandom::<16>().expect("random bytes"));
        assert!(a != b && a != [0; 16]);
    }
}
