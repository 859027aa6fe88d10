//! Compressed files of the host, unpacked: a kernel that cannot unpack its modules itself loads them all the same.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use miniz_oxide::inflate::{TINFLStatus, decompress_to_vec_with_limit};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use crate::crc::crc32;
use crate::mkinitramfs::{Error, xz};

/// Bytes of the largest content that is unpacked: twice what the largest modules have (graphics drivers, about 100 MB), and little enough
/// for this machine's memory, which it is held in.
const CONTENT_MAX: usize = 256 << 20;

type Unpack = fn(&[u8], usize) -> io::Result<Vec<u8>>;

/// How files with these endings are unpacked.
const FORMATS: [(&str, Unpack); 3] = [("gz", gunzip), ("xz", xz::unpack), ("zst", unzstd)];

/// The path without the ending that says how the file is compressed; `None`: it is not.
pub fn unpacked_name(path: &Path) -> Option<PathBuf> {
    format_of(path).map(|_| path.with_extension(""))
}

fn format_of(path: &Path) -> Option<Unpack> {
    let ending = path.extension()?;
    FORMATS.iter().find(|(name, _)| ending == *name).map(|(_, unpack)| *unpack)
}

/// The content of a file, unpacked if its name says that it is compressed.
pub fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let bytes = fs::read(path).map_err(Error::file("read", path))?;
    let Some(unpack) = format_of(path) else { return Ok(bytes) };
    unpack_at_most(unpack, &bytes, CONTENT_MAX).map_err(Error::file("unpack", path))
}

fn unpack_at_most(unpack: Unpack, bytes: &[u8], limit: usize) -> io::Result<Vec<u8>> {
    let content = unpack(bytes, limit)?;
    if content.len() > limit { Err(too_large(limit)) } else { Ok(content) }
}

fn too_large(limit: usize) -> io::Error {
    bad(&format!("the content is larger than the limit of {limit} bytes"))
}

/// The error of a file that cannot be unpacked.
pub fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn damaged_gzip() -> io::Error {
    bad("the gzip file is damaged")
}

/// The bytes behind the first `count`.
fn behind(bytes: &[u8], count: usize) -> io::Result<&[u8]> {
    bytes.get(count..).ok_or_else(damaged_gzip)
}

/// RFC 1952, of one member.
fn gunzip(file: &[u8], limit: usize) -> io::Result<Vec<u8>> {
    const MORE_HEADER: u8 = 4;
    const NAME: u8 = 8;
    const COMMENT: u8 = 16;
    const HEADER_CRC: u8 = 2;
    let [0x1f, 0x8b, 8, flags, ..] = *file else { return Err(bad("this is no gzip file")) };
    let (body, end) = file.split_last_chunk::<8>().ok_or_else(damaged_gzip)?;
    let mut rest = behind(body, 10)?;
    if flags & MORE_HEADER != 0 {
        let length = rest.first_chunk().ok_or_else(damaged_gzip)?;
        rest = behind(rest, 2 + usize::from(u16::from_le_bytes(*length)))?;
    }
    for text in [NAME, COMMENT] {
        if flags & text != 0 {
            let length = rest.iter().position(|byte| *byte == 0).ok_or_else(damaged_gzip)?;
            rest = behind(rest, length + 1)?;
        }
    }
    if flags & HEADER_CRC != 0 {
        rest = behind(rest, 2)?;
    }
    let content = decompress_to_vec_with_limit(rest, limit).map_err(|error| match error.status {
        TINFLStatus::HasMoreOutput => too_large(limit),
        _ => damaged_gzip(),
    })?;
    let checks = [crc32(&content).to_le_bytes(), (content.len() as u32).to_le_bytes()];
    if checks.as_flattened() == end { Ok(content) } else { Err(bad("the content does not have its checksum")) }
}

/// The first frame of a Zstandard file. Its checksum is not looked at; the kernel refuses a damaged module.
fn unzstd(mut file: &[u8], limit: usize) -> io::Result<Vec<u8>> {
    // Not the decoder's own `Read`: its errors bring 10 KB of texts along.
    let mut decoder = FrameDecoder::new();
    decoder.init(&mut file).map_err(|_| bad("this is no zstd file, or one with too large a window"))?;
    let whole = decoder.decode_blocks(&mut file, BlockDecodingStrategy::UptoBytes(limit + 1));
    if !whole.map_err(|_| bad("the zstd file is damaged"))? {
        return Err(too_large(limit));
    }
    Ok(decoder.collect().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is in the files below.
    fn content() -> Vec<u8> {
        (0..40).flat_map(|number| format!("line {number} of a module\n").into_bytes()).collect()
    }

    /// `gzip -c c`, which writes the name and the time.
    const GZIP: &str = "1f8b0808d067016b000363006dd2310e83401043d19e53ec11b01d20394ea48084b440c5fda394d1fcf6577e9ae9fbb9b6b15d5b7bb7e3fadc7d1dfa2fa926d7949a1e354d35cd352d353d6b7ac1549a0ffb0500814040101804088142c010380c0ed31dc06170181c0687c16170181c0647c01170841e0a1c0147c01170041c0147fe1d5fcf3a5eac16030000";

    /// `zstd -19 -c c`.
    const ZSTD: &str = "28b52ffd641602dd020082850f10a0ed187ded0f00f3f8cda650e8e7140ce7e6e5e4e3e2bfdf871f1b17130f0bdf761d7c6a5a4a3a2afaba6de831850c7117a81613748972c10ca91e6b0128a811f0f4fd37f0e51012e111613e3b9dfc85d56a59d140aa0240e819a8";

    /// `xz --check=crc32 --lzma2=dict=1MiB -c c`: as the kernel packs its modules.
    const XZ: &str = "fd377a585a0000016922de360200210110000000a8708e86e00315006f5d00361a4a1f08a026034d069defed8ae9892c09388a521931228e37ed17ec716143d839b29bc0409b9fefe8c358651d6a06adf33b44e2939c7b3a1d884dd9003b9bc37b51f7ff4694e491dfffc5f2403e98f674ae70b191a2e426a862ea1956bf90750454d801212515c3bfa70112b18a0000cf3a5eac0001870196060000c71b26613e300d8b020000000001595a";

    /// `xz --check=crc64 -T2 --block-size=400 -c c`: three blocks, with their sizes.
    const XZ_BLOCKS: &str = "fd377a585a000004e6d6b44603c05590032101160000000091b3f3fbe0018f004d5d00361a4a1f08a026034d069defed8ae9892c09388a521931228e37ed17ec716143d839b29bc0409b9fefe8c358651d6a06adf33b44e2939c7b3a1d884dd9003b9bc37b51f7ff4694e48db92bba00000000000f9c4be80393971503c04d86032101160000000076495010e0018500455d0010184006ff7b98319e7c20419a6cfccde1025694073b2d90624553b4e2dbad5ae82607521932cba3a11f33a6074ca652fe66cde83221140e6e304407e3f6e1f4cc7e498d00000000000372f0a1e847e38200026d9003658603863da83fb1c467fb020000000004595a";

    /// `xz --check=none -0 -c c`.
    const XZ_NO_CHECK: &str = "fd377a585a000000ff12d941020021010c0000008f98419ce0031500685d00361a4a1f08a026034d069defed8ae9892c09388a52193123e021e1912a16b3e30998a16957b8aa71672d46094bd5fb5db405e3a84e81175e185fa28ed8b420844294945918c761527a5cecf52e2534a268d5b2434f33f590de21c6a505c8b893a8edc7b712d898000000017c96060000000b9498c4a8000afc020000000000595a";

    /// `xz --check=sha256 -c c`.
    const XZ_SHA256: &str = "fd377a585a00000ae1fb0ca10200210116000000742fe5a3e00315006f5d00361a4a1f08a026034d069defed8ae9892c09388a521931228e37ed17ec716143d839b29bc0409b9fefe8c358651d6a06adf33b44e2939c7b3a1d884dd9003b9bc37b51f7ff4694e491dfffc5f2403e98f674ae70b191a2e426a862ea1956bf90750454d801212515c3bfa70112b18a0000023da5ad564a89625ba3647ff967ab1653bbfa5a84ce0de05d7ed6e6ccfe97920001a30196060000e75c1bfdb6e9df1c02000000000a595a";

    /// `xz --check=crc32 --x86 --lzma2=dict=1MiB -c c`: two filters.
    const XZ_X86: &str = "fd377a585a0000016922de3602010400210110008b216f49e00315006f5d00361a4a1f08a026034d069defed8ae9892c09388a521931228e37ed17ec716143d839b29bc0409b9fefe8c358651d6a06adf33b44e2939c7b3a1d884dd9003b9bc37b51f7ff4694e491dfffc5f2403e98f674ae70b191a2e426a862ea1956bf90750454d801212515c3bfa70112b18a0000cf3a5eac0001870196060000c71b26613e300d8b020000000001595a";

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.chars().map(|digit| digit.to_digit(16).unwrap() as u8).collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }

    const GOOD: [(Unpack, &str); 5] =
        [(gunzip, GZIP), (unzstd, ZSTD), (xz::unpack, XZ), (xz::unpack, XZ_BLOCKS), (xz::unpack, XZ_NO_CHECK)];

    #[test]
    fn files_of_the_usual_tools_are_unpacked() {
        for (unpack, file) in GOOD {
            assert!(unpack_at_most(unpack, &bytes(file), content().len()).unwrap() == content(), "{file}");
        }
        let written = decompressed_by_us(&vec![7; 300_000]);
        assert_eq!(written, vec![7; 300_000]);
    }

    fn decompressed_by_us(content: &[u8]) -> Vec<u8> {
        use std::io::Write;
        let mut file = Vec::new();
        let mut packer = crate::mkinitramfs::gzip::Gzip::new(&mut file).unwrap();
        packer.write_all(content).unwrap();
        packer.finish().unwrap();
        unpack_at_most(gunzip, &file, content.len()).unwrap()
    }

    #[test]
    fn a_content_one_byte_over_the_limit_is_refused() {
        for (unpack, file) in GOOD {
            let limit = content().len() - 1;
            let error = unpack_at_most(unpack, &bytes(file), limit).unwrap_err().to_string();
            assert_eq!(error, format!("the content is larger than the limit of {limit} bytes"), "{file}");
        }
    }

    #[test]
    fn a_file_that_is_cut_short_or_empty_is_an_error() {
        for (unpack, file) in GOOD {
            let whole = bytes(file);
            // An .xz file ends with an index, without which its content is whole.
            let least = if file.starts_with("fd") { whole.len() - 40 } else { whole.len() - 1 };
            for length in (0..least).step_by(3) {
                let result = unpack_at_most(unpack, &whole[..length], 1 << 20);
                // The checksum of a zstd file is not looked at.
                let is_whole = file == ZSTD && result.as_ref().is_ok_and(|found| *found == content());
                assert!(result.is_err() || is_whole, "{length} bytes of {file}");
            }
        }
    }

    #[test]
    fn a_damaged_file_is_an_error_or_harmless_and_never_a_panic() {
        for (unpack, file) in GOOD {
            let whole = bytes(file);
            for index in 0..whole.len() {
                let mut damaged = whole.clone();
                damaged[index] ^= 0x10;
                let result = unpack_at_most(unpack, &damaged, 1 << 20);
                let has_check = file != ZSTD && file != XZ_NO_CHECK;
                assert!(result.is_err() || !has_check || result.unwrap() == content(), "byte {index} of {file}");
            }
        }
    }

    #[test]
    fn what_is_not_known_is_named() {
        for (file, why) in [(XZ_SHA256, "kind of check"), (XZ_X86, "filter")] {
            let error = xz::unpack(&bytes(file), 1 << 20).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        for (unpack, why) in [(gunzip as Unpack, "no gzip file"), (unzstd, "no zstd file"), (xz::unpack, "no .xz file")]
        {
            let error = unpack(b"\x7fELF and more of it", 1 << 20).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn the_name_says_how_a_file_is_packed() {
        assert_eq!(unpacked_name(Path::new("a/b.ko.zst")), Some("a/b.ko".into()));
        assert_eq!(unpacked_name(Path::new("a.xz/b.ko")), None);
    }
}
