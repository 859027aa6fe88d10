//! A gzip file around the deflate stream of a compressor.
//!
//! ```text
//! 1f 8b  08 (deflate)  00 (no name)  00000000 (no time)  00  03 (Unix)
//! deflate stream
//! CRC-32 and length modulo 2^32 of what was compressed, both little-endian
//! ```
//!
//! Without a name and a time the bytes depend on the content alone. Source: RFC 1952.

use std::io::{self, Write};

use miniz_oxide::deflate::CompressionLevel;
use miniz_oxide::deflate::core::CompressorOxide;
use miniz_oxide::deflate::stream::deflate;
use miniz_oxide::{DataFormat, MZError, MZFlush, MZStatus};

use crate::crc::Crc;

const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];

/// Compressed bytes handed on at once.
const BUFFER: usize = 1 << 14;

/// Compresses what is written to it.
pub struct Gzip<W> {
    out: W,
    compressor: Box<CompressorOxide>,
    crc: Crc,
    length: u32,
}

impl<W: Write> Gzip<W> {
    pub fn new(mut out: W) -> io::Result<Gzip<W>> {
        out.write_all(&HEADER)?;
        let compressor = CompressorOxide::with_format_and_level(DataFormat::Raw, CompressionLevel::DefaultLevel);
        Ok(Gzip { out, compressor: Box::new(compressor), crc: Crc::default(), length: 0 })
    }

    /// Writes the end of the file.
    pub fn finish(mut self) -> io::Result<()> {
        self.compress(&[], MZFlush::Finish)?;
        self.out.write_all(&self.crc.sum().to_le_bytes())?;
        self.out.write_all(&self.length.to_le_bytes())
    }

    fn compress(&mut self, mut input: &[u8], flush: MZFlush) -> io::Result<()> {
        let mut buffer = [0; BUFFER];
        loop {
            let result = deflate(&mut self.compressor, input, &mut buffer, flush);
            self.out.write_all(&buffer[..result.bytes_written])?;
            input = &input[result.bytes_consumed..];
            match result.status {
                Ok(MZStatus::StreamEnd) => return Ok(()),
                // It takes all input before it stops short of a full buffer.
                Ok(_) if flush == MZFlush::None && result.bytes_written < BUFFER => return Ok(()),
                Ok(_) => {}
                // Nothing to do: the buffer was full with the last byte.
                Err(MZError::Buf) if flush == MZFlush::None => return Ok(()),
                Err(_) => return Err(io::Error::other("deflate does not go on")),
            }
        }
    }
}

impl<W: Write> Write for Gzip<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.crc.update(bytes);
        self.length = self.length.wrapping_add(bytes.len() as u32);
        self.compress(bytes, MZFlush::None)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use miniz_oxide::inflate::decompress_to_vec;

    fn gzip(content: &[u8], piece: usize) -> Vec<u8> {
        let mut file = Vec::new();
        let mut gzip = Gzip::new(&mut file).unwrap();
        content.chunks(piece).for_each(|bytes| gzip.write_all(bytes).unwrap());
        gzip.finish().unwrap();
        file
    }

    #[test]
    fn a_file_is_these_bytes() {
        // CRC-32 of "123456789" is the check value of every CRC catalogue.
        let file = gzip(b"123456789", 4);
        assert_eq!(file[..10], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3]);
        assert_eq!(file[file.len() - 8..], [0x26, 0x39, 0xf4, 0xcb, 9, 0, 0, 0]);
        assert_eq!(decompress_to_vec(&file[10..file.len() - 8]).unwrap(), b"123456789");
        assert_eq!(gzip(b"", 1)[10..], [3, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn content_comes_back_whole_in_any_pieces() {
        let mut state = 1_u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        let mut content: Vec<u8> = (0..200_000).map(|_| random()).collect();
        content.extend(vec![0; 300_000]);
        for piece in [999, BUFFER, 65_536, content.len()] {
            let file = gzip(&content, piece);
            assert!(decompress_to_vec(&file[10..file.len() - 8]).unwrap() == content, "pieces of {piece}");
        }
    }
}
