//! What the loader reads of an ELF file: its interpreter and the libraries it asks for.
//!
//! Source: System V ABI, chapters 4 and 5. Only little-endian files, as all targets of this program are. A damaged file gives `None`
//! or fewer names, never an error of its own: the loader will say it better.

/// Program header types.
const PT_LOAD: u64 = 1;
const PT_DYNAMIC: u64 = 2;
const PT_INTERP: u64 = 3;

/// Tags of the dynamic section.
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;

/// The dynamic linking side of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Elf {
    pub is_64_bit: bool,
    pub machine: u16,
    pub interpreter: Option<String>,
    pub needed: Vec<String>,
    /// Directories to search, separated by colons: DT_RPATH and DT_RUNPATH.
    pub rpath: Option<String>,
    pub runpath: Option<String>,
}

impl Elf {
    /// `None` if the bytes are not an ELF file for a little-endian machine.
    pub fn parse(file: &[u8]) -> Option<Elf> {
        if !file.starts_with(b"\x7fELF") || file.get(5) != Some(&1) {
            return None;
        }
        let reader = Reader { file, wide: *file.get(4)? == 2 };
        let mut elf = Elf { is_64_bit: reader.wide, machine: reader.number(18, 2)? as u16, ..Elf::default() };
        let segments = reader.segments()?;
        for segment in &segments {
            match segment.kind {
                PT_INTERP => elf.interpreter = reader.text(segment.offset),
                PT_DYNAMIC => reader.dynamic(segment, &segments, &mut elf)?,
                _ => {}
            }
        }
        Some(elf)
    }

    /// Whether a program can use the other file as a library.
    pub fn fits(&self, library: &Elf) -> bool {
        self.is_64_bit == library.is_64_bit && self.machine == library.machine
    }
}

struct Segment {
    kind: u64,
    offset: u64,
    address: u64,
    size: u64,
}

struct Reader<'a> {
    file: &'a [u8],
    wide: bool,
}

impl Reader<'_> {
    /// A number of `size` bytes, at most 8.
    fn number(&self, offset: u64, size: usize) -> Option<u64> {
        let start = usize::try_from(offset).ok()?;
        let bytes = self.file.get(start..start.checked_add(size)?)?;
        Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// A number of the file's own width.
    fn word(&self, offset: u64) -> Option<u64> {
        self.number(offset, self.word_size() as usize)
    }

    fn word_size(&self) -> u64 {
        if self.wide { 8 } else { 4 }
    }

    fn text(&self, offset: u64) -> Option<String> {
        let bytes = self.file.get(usize::try_from(offset).ok()?..)?;
        let end = bytes.iter().position(|byte| *byte == 0)?;
        Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }

    fn segments(&self) -> Option<Vec<Segment>> {
        // Offsets in the file header: e_phoff, e_phentsize; in a program header: p_offset, p_vaddr, p_filesz.
        let (table, entry_size, [offset, address, size]) =
            if self.wide { (32, 54, [8, 16, 32]) } else { (28, 42, [4, 8, 16]) };
        let (table, step, count) = (self.word(table)?, self.number(entry_size, 2)?, self.number(entry_size + 2, 2)?);
        let segment = |index| {
            let at = table.checked_add(index * step)?;
            Some(Segment {
                kind: self.number(at, 4)?,
                offset: self.word(at + offset)?,
                address: self.word(at + address)?,
                size: self.word(at + size)?,
            })
        };
        (0..count).map(segment).collect()
    }

    fn dynamic(&self, section: &Segment, segments: &[Segment], elf: &mut Elf) -> Option<()> {
        let word = self.word_size();
        let entry = |index| {
            let at = section.offset.checked_add(index * 2 * word)?;
            Some((self.word(at)?, self.word(at + word)?))
        };
        let entries: Vec<_> =
            (0..section.size / (2 * word)).map_while(entry).take_while(|(tag, _)| *tag != 0).collect();
        // The string table is given by its address in memory.
        let Some((_, address)) = entries.iter().find(|(tag, _)| *tag == DT_STRTAB) else { return Some(()) };
        let strings = segments.iter().filter(|segment| segment.kind == PT_LOAD).find_map(|segment| {
            let inside = address.checked_sub(segment.address).filter(|inside| *inside < segment.size)?;
            segment.offset.checked_add(inside)
        })?;
        for (tag, value) in entries {
            let text = || self.text(strings.checked_add(value)?);
            match tag {
                DT_NEEDED => elf.needed.extend(text()),
                DT_RPATH => elf.rpath = text(),
                DT_RUNPATH => elf.runpath = text(),
                _ => {}
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_test_names_its_loader_and_libraries() {
        let elf = Elf::parse(&std::fs::read("/proc/self/exe").unwrap()).unwrap();
        assert_eq!(elf.is_64_bit, cfg!(target_pointer_width = "64"));
        if cfg!(target_env = "gnu") {
            assert!(elf.interpreter.unwrap().contains("/ld-linux"));
            assert!(elf.needed.contains(&"libc.so.6".to_owned()));
        } else {
            assert_eq!((elf.interpreter, elf.needed), (None, vec![]));
        }
    }

    #[test]
    fn a_cut_file_does_no_harm() {
        let file = std::fs::read("/proc/self/exe").unwrap();
        for length in (0..2000).chain([file.len() / 2]) {
            Elf::parse(&file[..length.min(file.len())]);
        }
        assert_eq!(Elf::parse(b"#!/bin/sh\n"), None);
    }

    #[test]
    fn wild_offsets_do_no_harm() {
        let file = std::fs::read("/proc/self/exe").unwrap();
        for at in (0..1024).step_by(4) {
            let mut damaged = file[..file.len().min(1 << 20)].to_vec();
            damaged[at.max(6)..][..8].fill(0xff);
            Elf::parse(&damaged);
        }
    }
}
