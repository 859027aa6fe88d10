//! CRC-32 as in gzip and Ethernet: polynomial 0x04c11db7 reflected, begun with all ones, inverted at the end. Source: RFC 1952 section 8.

/// What each byte does to the sum, alone (first table) and with one to three zero bytes behind it: four bytes are taken at once.
const TABLES: [[u32; 256]; 4] = {
    let mut tables = [[0; 256]; 4];
    let mut byte = 0;
    while byte < 256 {
        let mut sum = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            sum = (sum >> 1) ^ (0xedb8_8320 * (sum & 1));
            bit += 1;
        }
        tables[0][byte] = sum;
        byte += 1;
    }
    let mut behind = 1;
    while behind < 4 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[behind - 1][byte];
            tables[behind][byte] = (before >> 8) ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        behind += 1;
    }
    tables
};

/// A sum under way.
#[derive(Clone, Copy, Debug)]
pub struct Crc(u32);

impl Default for Crc {
    fn default() -> Crc {
        Crc(!0)
    }
}

impl Crc {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        let mut sum = self.0;
        let (words, rest) = bytes.as_chunks::<4>();
        for word in words {
            let word = u32::from_le_bytes(*word) ^ sum;
            sum = TABLES[3][(word & 0xff) as usize]
                ^ TABLES[2][(word >> 8 & 0xff) as usize]
                ^ TABLES[1][(word >> 16 & 0xff) as usize]
                ^ TABLES[0][(word >> 24) as usize];
        }
        for byte in rest {
            sum = (sum >> 8) ^ TABLES[0][((sum ^ u32::from(*byte)) & 0xff) as usize];
        }
        self.0 = sum;
    }

    /// The sum of everything that was added.
    pub fn sum(self) -> u32 {
        !self.0
    }
}

/// The sum of these bytes.
pub fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = Crc::default();
    crc.update(bytes);
    crc.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_the_usual_one() {
        // The check value that every catalogue of such sums lists.
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(b""), 0);
    }

    #[test]
    fn pieces_of_any_length_make_the_same_sum() {
        let bytes: Vec<u8> = (0..100u8).map(|byte| byte.wrapping_mul(37)).collect();
        for split in 0..bytes.len() {
            let mut crc = Crc::default();
            crc.update(&bytes[..split]);
            crc.update(&bytes[split..]);
            assert_eq!(crc.sum(), crc32(&bytes), "split at {split}");
        }
    }
}
