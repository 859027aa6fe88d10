//! What `openssl enc -aes-128-cbc -nosalt` with a pass phrase makes, undone.
//!
//! The phrase is the secret of the exchange in decimal digits. From it comes the key by one round of MD5: key = MD5(phrase), then
//! IV = MD5(key + phrase). openssl 1.1.0 and later take SHA-256 instead, and hosts never said which they wanted: then the key is the first
//! half of SHA-256(phrase), and the IV the second. The padding, 1 to 16 bytes of its own length, tells which it was.

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
    /// The padding is none, with either key: another key, or damage.
    Padding,
}

/// Undoes it. Of two ways that both give a right padding, the one counts whose text ends with the newline that hosts put there.
///
/// # Errors
/// As the variants say.
pub fn decrypt(phrase: &str, data: &[u8]) -> Result<Vec<u8>, Error> {
    if data.is_empty() || !data.len().is_multiple_of(BLOCK) {
        return Err(Error::Length);
    }
    let [first, second] = [by_md5(phrase), by_sha256(phrase)]
        .map(|(key, iv)| cbc::Decryptor::<Aes128>::new(&key.into(), &iv.into()).decrypt_padded_vec::<Pkcs7>(data).ok());
    match (first, second) {
        (Some(first), Some(second)) if !first.ends_with(b"\n") && second.ends_with(b"\n") => Ok(second),
        (Some(found), _) | (None, Some(found)) => Ok(found),
        (None, None) => Err(Error::Padding),
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
    use cbc::cipher::block_padding::NoPadding;
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
        let long = [&[b'x'; 60][..], b"\n"].concat();
        let vectors: [(&[u8], &str); 7] = [
            (b"S3cret!\n", "9ynQM4t85V18kfJ+h7QVUQ=="),
            (b"S3cret!", "CCe3rHGKIfsPpkAyLrsHVQ=="),
            (b"", "TeheYcvklrO35K4LCnAq9w=="),
            (b"0123456789abcde\n", "lrSThvePuGU67CfZ18mL4aOAJiGnbMRJUOCC/4oxdEw="),
            (&long, "JTK56huQMKeGzvy0Du1f/Y+vmhjIGN9BtLzM8QJP7qO0u69vtyFBN84CKZeKfAe7/X3URYHfdRPm1Dzqu7mC6Q=="),
            ("pässwörd\n".as_bytes(), "V8sa4dlgbt7giww3HUyPVw=="),
            // By SHA-256.
            (b"S3cret!\n", "ITEzaIp1zpjNaA0QKbCE9w=="),
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
        let (key, iv) = by_md5(PHRASE);
        let sealed = |block: [u8; BLOCK]| {
            let mut data = [Block::<Aes128>::from(block)];
            cbc::Encryptor::<Aes128>::new(&key.into(), &iv.into()).encrypt_blocks(&mut data);
            data[0].to_vec()
        };
        assert_eq!(sealed([16; BLOCK]).len(), BLOCK);
        assert_eq!(decrypt(PHRASE, &sealed([16; BLOCK])), Ok(Vec::new()));
        let ends = |end: &[u8]| {
            let mut block = [b'a'; BLOCK];
            block[BLOCK - end.len()..].copy_from_slice(end);
            block
        };
        // The whole padding counts: its last byte alone, zero, more than a block, and one byte that is not like the others.
        for end in [&[2][..], &[0], &[17], &[3, 2, 3], &[255]] {
            let data = sealed(ends(end));
            let other = cbc::Decryptor::<Aes128>::new(&by_sha256(PHRASE).0.into(), &by_sha256(PHRASE).1.into())
                .decrypt_padded_vec::<NoPadding>(&data)
                .expect("whole blocks");
            assert!(!other.ends_with(&[1]), "by accident a padding under the other key: choose other bytes");
            assert_eq!(decrypt(PHRASE, &data), Err(Error::Padding), "{end:?}");
        }
        assert_eq!(decrypt(PHRASE, &sealed(ends(&[3, 3, 3]))), Ok(vec![b'a'; 13]));
    }
}
