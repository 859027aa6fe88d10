//! SHA-512-crypt, the `$6$` of crypt(5): every C library and busybox verifies it.
//!
//! `$6$SALT$HASH`: 16 characters of salt, 5,000 rounds, 86 characters of hash in the order and the base 64 of the scheme.

use std::io;

use sha_crypt::{Params, sha512_crypt};

use crate::sys::random;

/// Digits of crypt's base 64, from 0 on.
const DIGITS: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Characters of salt, the most that the scheme takes.
const SALT: usize = 16;

/// Bytes of the longest password. libxcrypt takes no longer ones, so nobody could log in with one.
pub const PASSWORD_MAX: usize = 511;

/// Hashes a password with a new salt.
pub fn crypt(password: &[u8]) -> io::Result<String> {
    // 64 digits for 256 values of a byte: all are as likely.
    let salt = random::getrandom::<SALT>()?.map(|byte| DIGITS[usize::from(byte % 64)]);
    Ok(crypt_with(password, &String::from_utf8_lossy(&salt)))
}

fn crypt_with(password: &[u8], salt: &str) -> String {
    let hash = sha512_crypt(password, salt.as_bytes(), Params::RECOMMENDED);
    let mut text = format!("$6${salt}$");
    // Three bytes make four digits: (0, 21, 42), (22, 43, 1), (44, 2, 23) and so on until (62, 20, 41); 63 is left.
    let (mut a, mut b, mut c) = (0, 21, 42);
    for _ in 0..21 {
        digits(&mut text, [hash[a], hash[b], hash[c]], 4);
        (a, b, c) = (b + 1, c + 1, a + 1);
    }
    digits(&mut text, [0, 0, hash[63]], 2);
    text
}

/// The last six bits first.
fn digits(text: &mut String, [high, middle, low]: [u8; 3], count: usize) {
    let mut bits = u32::from_be_bytes([0, high, middle, low]);
    for _ in 0..count {
        text.push(char::from(DIGITS[(bits % 64) as usize]));
        bits >>= 6;
    }
}

/// Whether a text can stand as a hash in a shadow file, and is of a scheme that somebody may verify: `$id$…`.
pub fn is_hash(text: &str) -> bool {
    let of_crypt = |byte: u8| byte.is_ascii_alphanumeric() || b"./$=,-_+".contains(&byte);
    let scheme = text.strip_prefix('$').and_then(|rest| rest.split_once('$'));
    scheme.is_some_and(|(id, rest)| !id.is_empty() && !rest.is_empty()) && text.bytes().all(of_crypt)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by libxcrypt's crypt(3).
    #[test]
    fn hashes_are_those_of_crypt() {
        for (password, hash) in [
            (
                "S3cret!".to_owned(),
                "$6$saltsaltsaltsalt$S3H.o2g1wmoEw4UL9kQnQerU40.kPsiWUWA1kLSHVa97xgbqRa69yJV6hSb/uw1Sw0Irf3LCKV3GqS0wlSXN0.",
            ),
            (
                "".to_owned(),
                "$6$aaaaaaaaaaaaaaaa$jCuuDUGVlQuCQXs2.0jNEi3VjKZQQ97fdMa74Nvuhr5vGeqfTQKNZn4LEn1Xban7QVOHj.mkk06Wc6mdSSiqu/",
            ),
            (
                "pässwörd".to_owned(),
                "$6$./0123456789ABCD$koT/bBtl9dt0hQOO9mpkdISt179fsstXU.Tq22duF/0TNs0.eO7s5Gr2CokDOWV5FzE9/m2JQ6KSdOhlJsv/K0",
            ),
            (
                "x".repeat(64),
                "$6$abcdefghijklmnop$HllZQEL3y/1eVnXmyWIVQOduC5KVxWvlySsZtD4PMLSK7UcBe.gu/jam1u25YUvnJf.I5PHFJpToI3cwZx.m/.",
            ),
            (
                "y".repeat(511),
                "$6$ZZZZZZZZZZZZZZZZ$HiG35AZqBlg3rreDjpbEMX48a2qjltN/zIJydPQbmJz2Bvd8/07LZrFwWlpdcjRq4Abzd2GR.VbyTLNDcldlH1",
            ),
        ] {
            let salt = hash.split('$').nth(2).expect("a salt");
            assert_eq!(crypt_with(password.as_bytes(), salt), hash, "{password:?}");
        }
    }

    #[test]
    fn each_hash_has_a_salt_of_its_own() {
        let (a, b) = (crypt(b"x").expect("random"), crypt(b"x").expect("random"));
        assert!(a != b && a.len() == 3 + 16 + 1 + 86 && is_hash(&a), "{a} {b}");
    }

    #[test]
    fn only_hashes_are_hashes() {
        for hash in ["$6$salt$hash", "$y$j9T$aaa$bbb", "$1$a$b", "$2b$12$abc", "$5$rounds=1000$a$b"] {
            assert!(is_hash(hash), "{hash}");
        }
        for other in ["", "x", "$", "$6$", "$$a", "plain", "!$6$a$b", "$6$a:b", "$6$a\nb", "$6$a b", "*0"] {
            assert!(!is_hash(other), "{other:?}");
        }
    }
}
