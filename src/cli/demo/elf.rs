//! What an ELF file needs to be started: its loader and its shared libraries (System V ABI, "Object Files").
//!
//! Nothing is executed to find out, as `ldd` would.

/// What one executable or library needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Needs {
    /// 32 or 64 bits, byte order, machine: libraries must have the same.
    pub kind: (u8, u8, u16),
    /// The loader (`PT_INTERP`).
    pub interpreter: Option<String>,
    /// The names of libraries (`DT_NEEDED`).
    pub libraries: Vec<String>,
    /// Where it wants them to be looked for (`DT_RUNPATH`, `DT_RPATH`), `$ORIGIN` not yet replaced.
    pub search: Vec<String>,
}

/// A file has some dozens of entries in these tables; more is damage.
const ENTRIES_MAX: u64 = 4096;

/// Reads what `file` needs; `None` if it is no ELF file or a damaged one.
pub(super) fn needs(file: &[u8]) -> Option<Needs> {
    let elf = Elf::new(file)?;
    let mut needs = Needs { kind: (file[4], file[5], elf.number(18, 2)? as u16), ..Needs::default() };
    let segments = elf.segments()?;
    for segment in &segments {
        if segment.kind == PT_INTERP {
            let bytes = elf.slice(segment.offset, segment.file_size)?;
            needs.interpreter = text(bytes);
        }
    }
    let Some(dynamic) = segments.iter().find(|segment| segment.kind == PT_DYNAMIC) else {
        return Some(needs);
    };
    let width = elf.word;
    let mut entries = Vec::new();
    for index in 0..(dynamic.file_size / (2 * width)).min(ENTRIES_MAX) {
        let at = dynamic.offset.checked_add(index * 2 * width)?;
        let (tag, value) = (elf.number(at, width)?, elf.number(at.checked_add(width)?, width)?);
        if tag == DT_NULL {
            break;
        }
        entries.push((tag, value));
    }
    let Some((_, strings)) = entries.iter().find(|(tag, _)| *tag == DT_STRTAB) else { return Some(needs) };
    // The table's address is one in memory; the segments say where that is in the file.
    let strings = segments.iter().filter(|segment| segment.kind == PT_LOAD).find_map(|segment| {
        let inside = strings.checked_sub(segment.address).filter(|inside| *inside < segment.file_size)?;
        segment.offset.checked_add(inside)
    })?;
    for (tag, value) in entries {
        let name = || text(file.get(usize::try_from(strings.checked_add(value)?).ok()?..)?);
        match tag {
            DT_NEEDED => needs.libraries.push(name()?),
            DT_RPATH | DT_RUNPATH => needs.search.extend(name()?.split(':').map(str::to_owned)),
            _ => {}
        }
    }
    Some(needs)
}

const PT_LOAD: u64 = 1;
const PT_DYNAMIC: u64 = 2;
const PT_INTERP: u64 = 3;
const DT_NULL: u64 = 0;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;

struct Elf<'a> {
    file: &'a [u8],
    /// Bytes in an address: 4 or 8.
    word: u64,
    little_endian: bool,
}

struct Segment {
    kind: u64,
    offset: u64,
    address: u64,
    file_size: u64,
}

impl<'a> Elf<'a> {
    fn new(file: &'a [u8]) -> Option<Self> {
        if !file.starts_with(b"\x7fELF") {
            return None;
        }
        let word = match file.get(4)? {
            1 => 4,
            2 => 8,
            _ => return None,
        };
        let little_endian = match file.get(5)? {
            1 => true,
            2 => false,
            _ => return None,
        };
        Some(Self { file, word, little_endian })
    }

    fn slice(&self, offset: u64, length: u64) -> Option<&'a [u8]> {
        let end = offset.checked_add(length)?;
        self.file.get(usize::try_from(offset).ok()?..usize::try_from(end).ok()?)
    }

    fn number(&self, offset: u64, width: u64) -> Option<u64> {
        let bytes = self.slice(offset, width)?;
        let add = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        Some(if self.little_endian { bytes.iter().rev().fold(0, add) } else { bytes.iter().fold(0, add) })
    }

    fn segments(&self) -> Option<Vec<Segment>> {
        // Offsets in the file header and in program headers, for 64 and for 32 bits.
        let wide = self.word == 8;
        let table = self.number(if wide { 32 } else { 28 }, self.word)?;
        let entry_size = self.number(if wide { 54 } else { 42 }, 2)?;
        let count = self.number(if wide { 56 } else { 44 }, 2)?;
        (0..count.min(ENTRIES_MAX))
            .map(|index| {
                let at = table.checked_add(index.checked_mul(entry_size)?)?;
                let field = |narrow_at: u64, wide_at: u64| {
                    self.number(at.checked_add(if wide { wide_at } else { narrow_at })?, self.word)
                };
                Some(Segment {
                    kind: self.number(at, 4)?,
                    offset: field(4, 8)?,
                    address: field(8, 16)?,
                    file_size: field(16, 32)?,
                })
            })
            .collect()
    }
}

/// The text before the first NUL.
fn text(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    Some(std::str::from_utf8(&bytes[..end]).ok()?.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A minimal 64-bit file: header, three program headers, an interpreter, a dynamic section, its strings.
    fn sample() -> Vec<u8> {
        let mut file = vec![0; 64 + 3 * 56];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[18] = 62;
        file[32] = 64;
        file[54] = 56;
        file[56] = 3;
        let mut put = |at: usize, value: u64| file[at..at + 8].copy_from_slice(&value.to_le_bytes());
        // kind, offset, address, size in the file
        for (index, (kind, offset, address, size)) in
            [(1, 0, 0x1000, 0x1000), (3, 232, 0, 8), (2, 240, 0, 80)].into_iter().enumerate()
        {
            let at = 64 + index * 56;
            put(at, kind);
            put(at + 8, offset);
            put(at + 16, address);
            put(at + 32, size);
        }
        file.extend(b"/lib/ld\0");
        for (tag, value) in [(1_u64, 1_u64), (1, 7), (29, 13), (5, 0x1000 + 320), (0, 0)] {
            file.extend(tag.to_le_bytes());
            file.extend(value.to_le_bytes());
        }
        assert_eq!(file.len(), 320);
        file.extend(b"\0liba\0\0libb\0\0$ORIGIN/../lib:/opt\0");
        file
    }

    #[test]
    fn loader_and_libraries_are_found() {
        let needs = needs(&sample()).unwrap();
        assert_eq!(needs.kind, (2, 1, 62));
        assert_eq!(needs.interpreter.as_deref(), Some("/lib/ld"));
        assert_eq!(needs.libraries, ["liba", "libb"]);
        assert_eq!(needs.search, ["$ORIGIN/../lib", "/opt"]);
    }

    #[test]
    fn what_is_no_elf_file_needs_nothing() {
        assert_eq!(needs(b"#!/bin/sh\n"), None);
        assert_eq!(needs(b"\x7fELF"), None);
        for length in 0..sample().len() {
            needs(&sample()[..length]);
        }
    }

    proptest! {
        #[test]
        fn damage_does_no_harm(at in 4_usize..350, value: u8) {
            let mut file = sample();
            if let Some(byte) = file.get_mut(at) {
                *byte = value;
            }
            needs(&file);
        }
    }
}
