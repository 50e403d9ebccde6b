//! Tar headers, byte for byte the same for the same entry (`docs/formats.md`, "The tar").

use super::error::LayerError;
use super::toc::{Metadata, Timestamp};

/// The size of tar's units.
pub(crate) const BLOCK: usize = 512;

/// What stands before the name of something that was removed.
pub(crate) const WHITEOUT_PREFIX: &[u8] = b".wh.";

/// The name that makes its directory opaque.
pub(crate) const OPAQUE_NAME: &[u8] = b".wh..wh..opq";

/// The most bytes of PAX records for one entry. Linux allows 64 KiB for one attribute's value; file systems allow
/// little more for all of them together.
pub(crate) const PAX_MAX: u64 = 1 << 20;

/// The largest number that 11 octal digits hold: sizes and times.
const OCTAL_11_MAX: u64 = (1 << 33) - 1;

/// The largest number that 7 octal digits hold: owners and device numbers.
const OCTAL_7_MAX: u64 = (1 << 21) - 1;

/// What goes into a header.
#[derive(Debug)]
pub(crate) struct Header<'a> {
    /// Path in the tar: with a trailing slash for a directory, with `.wh.` for a whiteout.
    pub(crate) name: &'a [u8],
    pub(crate) metadata: &'a Metadata,
    pub(crate) typeflag: u8,
    pub(crate) size: u64,
    pub(crate) link: &'a [u8],
    pub(crate) device: (u32, u32),
    /// The time is written to the nanosecond. Those of layers are cut to seconds.
    pub(crate) is_exact: bool,
}

impl Header<'_> {
    /// Appends the header to `out`, with an extended (PAX) header before it where ustar cannot say everything.
    pub(crate) fn append(&self, out: &mut Vec<u8>) -> Result<(), LayerError> {
        let metadata = self.metadata;
        let mut pax = Pax::default();
        let (prefix, name) = split_name(self.name).unwrap_or_else(|| {
            pax.add(b"path", self.name);
            (&[], &self.name[..100])
        });
        let link = if self.link.len() > 100 {
            pax.add(b"linkpath", self.link);
            &self.link[..100]
        } else {
            self.link
        };
        // A number that does not fit stands as 0 in the header, as Go's archive/tar writes it.
        let mut number = |key: &[u8], value: u64, max: u64| {
            if value <= max {
                return value;
            }
            pax.add(key, value.to_string().as_bytes());
            0
        };
        let size = number(b"size", self.size, OCTAL_11_MAX);
        let uid = number(b"uid", metadata.uid.into(), OCTAL_7_MAX);
        let gid = number(b"gid", metadata.gid.into(), OCTAL_7_MAX);
        let mtime = u64::try_from(metadata.mtime.seconds).ok().filter(|seconds| *seconds <= OCTAL_11_MAX);
        if self.is_exact && metadata.mtime.nanos > 0 {
            pax.add(b"mtime", exact(metadata.mtime).as_bytes());
        } else if mtime.is_none() {
            pax.add(b"mtime", metadata.mtime.seconds.to_string().as_bytes());
        }
        let mtime = mtime.unwrap_or(0);
        for (name, value) in &metadata.xattrs {
            if name.is_empty() || name.contains(&b'=') || name.contains(&0) {
                return Err(LayerError::entry(
                    self.name,
                    "has an extended attribute whose name a tar cannot hold",
                ));
            }
            pax.add(&[b"SCHILY.xattr.", name.as_slice()].concat(), value);
        }
        let (major, minor) = self.device;
        if u64::from(major.max(minor)) > OCTAL_7_MAX {
            return Err(LayerError::entry(self.name, "has a device number that a tar cannot hold"));
        }
        if !pax.records.is_empty() {
            let records = pax.encode();
            if records.len() as u64 > PAX_MAX {
                return Err(LayerError::entry(self.name, "has more than 1 MiB of extended attributes"));
            }
            Block::new(b"", b"PaxHeaders.0", 0o644, b'x', records.len() as u64).append(out);
            out.extend_from_slice(&records);
            pad(out, records.len() as u64);
        }
        let mut block = Block::new(prefix, name, metadata.mode, self.typeflag, size);
        block.octal(108, 7, uid);
        block.octal(116, 7, gid);
        block.octal(136, 11, mtime);
        block.0[157..157 + link.len()].copy_from_slice(link);
        block.octal(329, 7, major.into());
        block.octal(337, 7, minor.into());
        block.append(out);
        Ok(())
    }
}

/// A time with its fraction, which before 1970 counts away from 0 too.
fn exact(time: Timestamp) -> String {
    let nanos = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
    let sign = if nanos < 0 { "-" } else { "" };
    let nanos = nanos.unsigned_abs();
    format!("{sign}{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000)
}

/// Appends the zeros that follow `size` bytes of content.
pub(crate) fn pad(out: &mut Vec<u8>, size: u64) {
    let rest = (size.next_multiple_of(BLOCK as u64) - size) as usize;
    out.resize(out.len() + rest, 0);
}

/// Splits a name into ustar's prefix and name fields, at the first slash that does; `None` if none does.
fn split_name(name: &[u8]) -> Option<(&[u8], &[u8])> {
    if name.len() <= 100 {
        return Some((&[], name));
    }
    // The name field may not be empty: a directory's final slash is none to split at.
    let slashes = (1..name.len() - 1).filter(|at| name[*at] == b'/');
    slashes
        .take_while(|at| *at <= 155)
        .find(|at| name.len() - at - 1 <= 100)
        .map(|at| (&name[..at], &name[at + 1..]))
}

/// One header block.
struct Block([u8; BLOCK]);

impl Block {
    fn new(prefix: &[u8], name: &[u8], mode: u32, typeflag: u8, size: u64) -> Self {
        let mut block = Self([0; BLOCK]);
        block.0[..name.len()].copy_from_slice(name);
        block.octal(100, 7, mode.into());
        block.octal(108, 7, 0);
        block.octal(116, 7, 0);
        block.octal(124, 11, size);
        block.octal(136, 11, 0);
        block.0[156] = typeflag;
        block.0[257..265].copy_from_slice(b"ustar\x0000");
        block.octal(329, 7, 0);
        block.octal(337, 7, 0);
        block.0[345..345 + prefix.len()].copy_from_slice(prefix);
        block
    }

    /// Writes `digits` octal digits, with leading zeros; the NUL behind them is there already.
    fn octal(&mut self, at: usize, digits: usize, mut value: u64) {
        for digit in self.0[at..at + digits].iter_mut().rev() {
            *digit = b'0' + (value & 7) as u8;
            value >>= 3;
        }
    }

    fn append(mut self, out: &mut Vec<u8>) {
        self.0[148..156].fill(b' ');
        let sum: u64 = self.0.iter().map(|byte| u64::from(*byte)).sum();
        self.octal(148, 6, sum);
        self.0[154] = 0;
        out.extend_from_slice(&self.0);
    }
}

/// PAX records, in the order in which they are added.
#[derive(Default)]
struct Pax {
    records: Vec<Vec<u8>>,
}

impl Pax {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        // The length counts its own digits.
        let rest = key.len() + value.len() + 3;
        let mut length = rest + rest.to_string().len();
        if length.to_string().len() > rest.to_string().len() {
            length += 1;
        }
        let mut record = length.to_string().into_bytes();
        record.push(b' ');
        record.extend_from_slice(key);
        record.push(b'=');
        record.extend_from_slice(value);
        record.push(b'\n');
        self.records.push(record);
    }

    fn encode(&self) -> Vec<u8> {
        self.records.concat()
    }
}
