//! What `openssl enc -aes-128-cbc -nosalt` with a pass phrase makes, undone.
//!
//! The phrase is the secret of the exchange in decimal digits. From it comes the key by one round of MD5: key = MD5(phrase), then
//! IV = MD5(key + phrase). openssl 1.1.0 and later take SHA-256 instead, and hosts never said which they wanted: then the key is the first
//! half of SHA-256(phrase), and the IV the second. The padding, 1 to 16 bytes of its own length, tells which it was; but one text of 256
//! has a right one under any wrong key. So the text must be UTF-8 besides, as hosts write it: else what was damaged, or sealed for
//! another exchange, would set a password that nobody knows.

use aes::Aes128;
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockModeDecrypt, KeyIvInit};
use md5::{Digest, Md5};
use sha2::Sha256;

/// Bytes of a block of the cipher, of its key and of its IV.
pub const BLOCK: usize = 16;

/// Why there is no password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Not one block or more.
    Length,
    /// With neither key a right padding behind UTF-8: another key, or damage.
    Damaged,
}

/// Undoes it. Of two ways that both give a text, the one counts that ends with the newline that hosts put there.
///
/// # Errors
/// As the variants say.
pub fn decrypt(phrase: &str, data: &[u8]) -> Result<String, Error> {
    if data.is_empty() || !data.len().is_multiple_of(BLOCK) {
        return Err(Error::Length);
    }
    let [first, second] = [by_md5(phrase), by_sha256(phrase)].map(|(key, iv)| {
        let plain = cbc::Decryptor::<Aes128>::new(&key.into(), &iv.into()).decrypt_padded_vec::<Pkcs7>(data).ok()?;
        String::from_utf8(plain).ok()
    });
    match (first, second) {
        (Some(first), Some(second)) if !first.ends_with('\n') && second.ends_with('\n') => Ok(second),
        (Some(found), _) | (None, Some(found)) => Ok(found),
        (None, None) => Err(Error::Damaged),
    }
}

fn by_md5(phrase: &str) -> ([u8; BLOCK], [u8; BLOCK]) {
    let key: [u8; BLOCK] = Md5::digest(phrase).into();
    let iv = Md5::new().chain_update(key).chain_update(phrase).finalize();
    (key, iv.into())
}

fn by_sha256(phrase: &str) -> ([u8; BLOCK], [u8; BLOCK]) {
    let both: [u8; 2 * BLOCK] = Sha256::digest(phrase).into();
    let mut halves = ([0; BLOCK], [0; BLOCK]);
    halves.0.copy_from_slice(&both[..BLOCK]);
    halves.1.copy_from_slice(&both[BLOCK..]);
    halves
}

#[cfg(test)]
mod tests {
    use aes::cipher::{Block, BlockModeEncrypt};
    use data_encoding::{BASE64, HEXLOWER};

    use super::*;

    const PHRASE: &str = "42212498014643735436438456950707";

    #[test]
    fn key_and_iv_are_those_of_openssl() {
        let (key, iv) = by_md5(PHRASE);
        assert_eq!(HEXLOWER.encode(&key), "84d3a6e9e224da5710dab5b26a0f91e8");
        assert_eq!(HEXLOWER.encode(&iv), "d6085eacfae73900f1b100805e6eb9ac");
    }

    #[test]
    fn what_openssl_made_is_read() {
        let long = format!("{}\n", "x".repeat(60));
        let vectors: [(&str, &str); 7] = [
            ("S3cret!\n", "9ynQM4t85V18kfJ+h7QVUQ=="),
            ("S3cret!", "CCe3rHGKIfsPpkAyLrsHVQ=="),
            ("", "TeheYcvklrO35K4LCnAq9w=="),
            ("0123456789abcde\n", "lrSThvePuGU67CfZ18mL4aOAJiGnbMRJUOCC/4oxdEw="),
            (&long, "JTK56huQMKeGzvy0Du1f/Y+vmhjIGN9BtLzM8QJP7qO0u69vtyFBN84CKZeKfAe7/X3URYHfdRPm1Dzqu7mC6Q=="),
            ("pässwörd\n", "V8sa4dlgbt7giww3HUyPVw=="),
            // By SHA-256.
            ("S3cret!\n", "ITEzaIp1zpjNaA0QKbCE9w=="),
        ];
        for (text, sent) in vectors {
            let data = BASE64.decode(sent.as_bytes()).expect("base64");
            assert_eq!(decrypt(PHRASE, &data).as_deref(), Ok(text), "{sent}");
        }
    }

    #[test]
    fn lengths_and_paddings_that_are_none_are_refused() {
        for length in [0, 1, 15, 17, 31] {
            assert_eq!(decrypt(PHRASE, &vec![0; length]), Err(Error::Length), "{length}");
        }
        assert_eq!(sealed(by_md5, [16; BLOCK]).len(), BLOCK);
        assert_eq!(decrypt(PHRASE, &sealed(by_md5, [16; BLOCK])), Ok(String::new()));
        let ends = |end: &[u8]| {
            let mut block = [b'a'; BLOCK];
            block[BLOCK - end.len()..].copy_from_slice(end);
            block
        };
        // The whole padding counts: its last byte alone, zero, more than a block, and one byte that is not like the others.
        for end in [&[2][..], &[0], &[17], &[3, 2, 3], &[255]] {
            assert_eq!(decrypt(PHRASE, &sealed(by_md5, ends(end))), Err(Error::Damaged), "{end:?}");
        }
        assert_eq!(decrypt(PHRASE, &sealed(by_md5, ends(&[3, 3, 3]))), Ok("a".repeat(13)));
    }

    /// One wrong key of 256 gives a right padding.
    #[test]
    fn a_padding_that_is_right_by_accident_makes_no_password() {
        for (written, other) in [(by_md5 as Derivation, by_sha256 as Derivation), (by_sha256, by_md5)] {
            let (mut damaged, mut right) = (0, 0);
            for number in 0..4096_u32 {
                // Without a padding, and with one.
                let data = sealed(written, *format!("{number:016}").as_bytes().first_chunk().expect("16 bytes"));
                if has_padding(other, &data) {
                    assert_eq!(decrypt(PHRASE, &data), Err(Error::Damaged), "{number}");
                    damaged += 1;
                }
                let text = format!("{number:014}\n");
                let data = sealed(written, *format!("{text}\u{1}").as_bytes().first_chunk().expect("16 bytes"));
                if has_padding(other, &data) {
                    assert_eq!(decrypt(PHRASE, &data), Ok(text));
                    right += 1;
                }
            }
            assert!(damaged > 0 && right > 0, "there was no accident");
        }
    }

    type Derivation = fn(&str) -> ([u8; BLOCK], [u8; BLOCK]);

    fn sealed(derivation: Derivation, block: [u8; BLOCK]) -> Vec<u8> {
        let (key, iv) = derivation(PHRASE);
        let mut data = [Block::<Aes128>::from(block)];
        cbc::Encryptor::<Aes128>::new(&key.into(), &iv.into()).encrypt_blocks(&mut data);
        data[0].to_vec()
    }

    fn has_padding(derivation: Derivation, data: &[u8]) -> bool {
        let (key, iv) = derivation(PHRASE);
        cbc::Decryptor::<Aes128>::new(&key.into(), &iv.into()).decrypt_padded_vec::<Pkcs7>(data).is_ok()
    }
}
