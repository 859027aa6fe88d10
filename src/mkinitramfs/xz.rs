//! The content of an .xz file.
//!
//! ```text
//! fd "7zXZ" 00   flags: 00, kind of check    CRC-32 of the flags
//! block:   size / 4 - 1, flags, [compressed size], [content size], filter 21, 1, dictionary, zeros, CRC-32 of all that
//!          LZMA2 data, zeros to a multiple of four, check of the content
//! index:   begins with 00; only who seeks needs it, and what follows
//! ```
//!
//! Numbers that may be long (`[...]`) have seven bits a byte, the lowest first; all others are little-endian. Of the filters only LZMA2 is
//! known: kernels are packed with another one before it, their modules never are (`scripts/Makefile.modinst` of Linux; Debian, Fedora).
//! Source: The .xz File Format, version 1.2.1.

use std::io::{self, Read};

use lzma_rust2::Lzma2Reader;

use crate::crc::crc32;
use crate::mkinitramfs::unpack::bad;

const MAGIC: &[u8] = b"\xfd7zXZ\0";

/// Number of the LZMA2 filter.
const LZMA2: u8 = 0x21;

/// Unpacks a file whose content has at most `limit` bytes; one byte more comes out of a file with a longer content.
pub fn unpack(file: &[u8], limit: usize) -> io::Result<Vec<u8>> {
    let mut rest = file.strip_prefix(MAGIC).ok_or_else(|| bad("this is no .xz file"))?;
    let flags = take(&mut rest, 2)?;
    if take(&mut rest, 4)? != crc32(flags).to_le_bytes() || flags[0] != 0 {
        return Err(bad("the .xz header is damaged"));
    }
    let check = flags[1];
    let mut content = Vec::new();
    while let Some(size) = rest.first().filter(|size| **size != 0) {
        let header = take(&mut rest, (usize::from(*size) + 1) * 4)?;
        let dictionary_bytes = read_header(header)?;
        let start = content.len();
        let block = rest;
        // A dictionary is never larger than what it is made of.
        let mut reader = Lzma2Reader::new(&mut rest, dictionary_bytes.min(limit as u64) as u32, None);
        reader.by_ref().take((limit + 1 - start) as u64).read_to_end(&mut content)?;
        if content.len() > limit {
            return Ok(content);
        }
        drop(reader);
        let used = block.len() - rest.len();
        take(&mut rest, used.next_multiple_of(4) - used)?;
        verify(check, &content[start..], &mut rest)?;
    }
    if rest.is_empty() { Err(cut_short()) } else { Ok(content) }
}

fn cut_short() -> io::Error {
    bad("the file is cut short")
}

/// Cuts off so many bytes.
fn take<'a>(from: &mut &'a [u8], count: usize) -> io::Result<&'a [u8]> {
    let (taken, rest) = from.split_at_checked(count).ok_or_else(cut_short)?;
    *from = rest;
    Ok(taken)
}

/// The size of the dictionary that a block's header gives.
fn read_header(header: &[u8]) -> io::Result<u64> {
    let damaged = || bad("an .xz block's header is damaged");
    let (fields, crc) = header.split_last_chunk::<4>().ok_or_else(damaged)?;
    if crc32(fields).to_le_bytes() != *crc {
        return Err(damaged());
    }
    let mut rest = &fields[1..];
    let flags = take(&mut rest, 1)?[0];
    // Both sizes may be given; the data and its end say the same.
    for given in [0x40, 0x80] {
        if flags & given != 0 {
            while take(&mut rest, 1)?[0] & 0x80 != 0 {}
        }
    }
    let [LZMA2, 1, size, ..] = *rest else { return Err(bad("it has a filter that is not known")) };
    if flags & 0x3f != 0 {
        return Err(bad("it has filters that are not known"));
    }
    match size {
        0..40 => Ok(u64::from(2 | size & 1) << (size / 2 + 11)),
        40 => Ok(u64::from(u32::MAX)),
        _ => Err(damaged()),
    }
}

/// Compares a block's content with its check, and cuts that off.
fn verify(check: u8, content: &[u8], rest: &mut &[u8]) -> io::Result<()> {
    let same = match check {
        0 => true,
        1 => take(rest, 4)? == crc32(content).to_le_bytes(),
        4 => take(rest, 8)? == crc64(content).to_le_bytes(),
        _ => return Err(bad("its kind of check is not known (CRC-32 and CRC-64 are)")),
    };
    if same { Ok(()) } else { Err(bad("the content does not have its checksum")) }
}

/// CRC-64 of ECMA-182, bit by bit: the kernel's own modules have CRC-32, and a table would be 2 KB.
fn crc64(content: &[u8]) -> u64 {
    content.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u64::from(*byte), |crc, _| (crc >> 1) ^ (0xc96c_5795_d787_0f42 * (crc & 1)))
    }) ^ !0
}
