//! Reads tar entries from a stream that may be hostile.
//!
//! ustar, PAX and GNU headers as Go's `archive/tar` understands them, since that is what every container tool reads
//! layers with. Where two readings of a header would be possible, the entry is refused instead of one being chosen.

use std::collections::BTreeMap;
use std::io::Read;

use super::error::LayerError;
use super::header::{BLOCK, PAX_MAX};
use super::toc::{Metadata, Timestamp};
use super::toc_codec::PATH_MAX;
use super::write::fill;

/// The most pieces of one sparse file. GNU tar's map of this many takes some 6 MiB.
const SPARSE_MAX: usize = 256 << 10;

/// The pieces of a sparse file, offset and length of each, and the size of it all.
type SparseMap = (Vec<(u64, u64)>, u64);

/// What an entry is, before its content is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RawKind {
    Directory,
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Fifo,
}

/// One entry's headers.
#[derive(Debug)]
pub(crate) struct RawEntry {
    /// The name as it is in the tar.
    pub(crate) name: Vec<u8>,
    pub(crate) kind: RawKind,
    pub(crate) metadata: Metadata,
    /// The link target as it is in the tar.
    pub(crate) link: Vec<u8>,
    pub(crate) device: (u32, u32),
    /// Length of the content; with holes, of the content with them.
    pub(crate) size: u64,
    /// Where the data begins in the tar.
    pub(crate) offset: u64,
    /// Bytes of data in the tar, without padding.
    pub(crate) stored: u64,
    /// The pieces of data of a sparse file: where they belong, and how long they are.
    pub(crate) sparse: Option<Vec<(u64, u64)>>,
}

/// A tar as a stream of entries.
pub(crate) struct TarReader<R> {
    input: R,
    at: u64,
}

impl<R: Read> TarReader<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input, at: 0 }
    }

    fn bad(&self, problem: impl Into<String>) -> LayerError {
        LayerError::Tar { at: self.at, problem: problem.into() }
    }

    /// The next header block; `None` at the end of the archive.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, LayerError> {
        let mut block = [0; BLOCK];
        let length = fill(&mut self.input, &mut block).map_err(LayerError::io("reading the layer"))?;
        let empty = block.iter().all(|byte| *byte == 0);
        // Some writers leave out the two zero blocks at the end, or write half of one.
        if length == 0 || length < BLOCK && empty {
            return Ok(None);
        }
        if length < BLOCK {
            return Err(self.bad("it ends inside a header"));
        }
        self.at += BLOCK as u64;
        if !empty {
            return Ok(Some(block));
        }
        let length = fill(&mut self.input, &mut block).map_err(LayerError::io("reading the layer"))?;
        if block.iter().any(|byte| *byte != 0) {
            return Err(self.bad("there is a block of zeros in the middle"));
        }
        self.at += length as u64;
        Ok(None)
    }

    /// `size` bytes and their padding, into memory.
    fn small(&mut self, size: u64) -> Result<Vec<u8>, LayerError> {
        if size > PAX_MAX {
            return Err(LayerError::Limit { what: "an extended header", limit: PAX_MAX });
        }
        let mut data = vec![0; size.next_multiple_of(BLOCK as u64) as usize];
        let length = fill(&mut self.input, &mut data).map_err(LayerError::io("reading the layer"))?;
        if length < data.len() {
            return Err(self.bad("it ends inside an extended header"));
        }
        self.at += data.len() as u64;
        data.truncate(size as usize);
        Ok(data)
    }

    /// The next entry. The content of the one before it must have been read: see [`TarReader::content`].
    pub(crate) fn next(&mut self) -> Result<Option<RawEntry>, LayerError> {
        let mut pax = Pax::default();
        let mut has_pax = false;
        let (mut long_name, mut long_link) = (None, None);
        loop {
            let Some(block) = self.block()? else {
                if has_pax || long_name.is_some() || long_link.is_some() {
                    return Err(self.bad("it ends after an extended header"));
                }
                return Ok(None);
            };
            let header = tar::Header::from_byte_slice(&block);
            self.verify(&block)?;
            let size = self.number(&block[124..136], "size")?;
            match block[156] {
                b'x' => {
                    if has_pax {
                        return Err(self.bad("an entry has two extended headers"));
                    }
                    has_pax = true;
                    let data = self.small(size)?;
                    pax = Pax::parse(&data).map_err(|problem| self.bad(problem))?;
                }
                b'g' => {
                    let data = self.small(size)?;
                    let global = Pax::parse(&data).map_err(|problem| self.bad(problem))?;
                    // Container tools ignore global headers; what changes an entry's shape must not be ignored.
                    if global.changes_shape() {
                        return Err(self.bad("a global header sets paths or sizes"));
                    }
                }
                b'L' | b'K' => {
                    let mut data = self.small(size)?;
                    if let Some(end) = data.iter().position(|byte| *byte == 0) {
                        data.truncate(end);
                    }
                    let slot = if block[156] == b'L' { &mut long_name } else { &mut long_link };
                    if slot.replace(data).is_some() {
                        return Err(self.bad("an entry has two long names"));
                    }
                }
                // A volume's label: GNU tar writes one if asked to.
                b'V' => {}
                _ => return self.entry(&block, header, size, &pax, long_name, long_link).map(Some),
            }
        }
    }

    fn entry(
        &mut self,
        block: &[u8; BLOCK],
        header: &tar::Header,
        header_size: u64,
        pax: &Pax,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<RawEntry, LayerError> {
        let mut name = header.path_bytes().into_owned();
        let mut link = header.link_name_bytes().unwrap_or_default().into_owned();
        for (place, long, key) in [(&mut name, long_name, "path"), (&mut link, long_link, "linkpath")] {
            let keyed = pax.get(key);
            if let (Some(long), Some(keyed)) = (&long, keyed)
                && long != keyed
            {
                return Err(self.bad("GNU and PAX headers name different paths"));
            }
            if let Some(value) = keyed.map(<[u8]>::to_vec).or(long) {
                *place = value;
            }
        }
        if name.len() > PATH_MAX + 2 || link.len() > PATH_MAX + 2 {
            return Err(LayerError::Limit { what: "a path", limit: PATH_MAX as u64 });
        }
        let kind = match block[156] {
            0 | b'0' | b'7' | b'S' if name.ends_with(b"/") => RawKind::Directory,
            0 | b'0' | b'7' | b'S' => RawKind::File,
            b'1' => RawKind::HardLink,
            b'2' => RawKind::Symlink,
            b'3' => RawKind::CharDevice,
            b'4' => RawKind::BlockDevice,
            b'5' => RawKind::Directory,
            b'6' => RawKind::Fifo,
            other => {
                let problem = format!("is of type `{}`, which no layer may hold", other.escape_ascii());
                return Err(LayerError::entry(&name, problem));
            }
        };
        let mut stored = self.size(header_size, pax, &name)?;
        let mut sparse = None;
        let mut size = stored;
        if kind == RawKind::File {
            if block[156] == b'S' {
                let (map, real) = self.old_sparse(block, header)?;
                (sparse, size) = (Some(map), real);
            } else if let Some((map, real)) = self.pax_sparse(pax, &mut stored)? {
                (sparse, size) = (Some(map), real);
                if let Some(real_name) = pax.get("GNU.sparse.name") {
                    name = real_name.to_vec();
                }
            }
            if let Some(map) = &sparse {
                self.check_sparse(map, stored, size)?;
            }
        } else {
            // What a link or directory says about a size is no content (POSIX, and Go's reader). For all but hard
            // links, where old archives have the size of the file, it cannot be meant honestly.
            if stored != 0 && kind != RawKind::HardLink {
                return Err(LayerError::entry(&name, "has a size, but is no file"));
            }
            (stored, size) = (0, 0);
        }
        let small = |value: u64, what: &str| {
            u32::try_from(value).map_err(|_| LayerError::entry(&name, format!("has an impossible {what}")))
        };
        let id = |key: &str, range: std::ops::Range<usize>, what| {
            let value = match pax.number(key) {
                Some(value) => value.map_err(|problem| self.bad(problem))?,
                None => self.number(&block[range], what)?,
            };
            small(value, what)
        };
        let mtime = match pax.get("mtime") {
            Some(text) => timestamp(text).ok_or_else(|| self.bad("a time is malformed"))?,
            None => Timestamp { seconds: self.signed(&block[136..148], "time")?, nanos: 0 },
        };
        let mode = self.number(&block[100..108], "mode")?;
        let device = if matches!(kind, RawKind::CharDevice | RawKind::BlockDevice) {
            let major = self.number(&block[329..337], "device number")?;
            let minor = self.number(&block[337..345], "device number")?;
            (small(major, "device number")?, small(minor, "device number")?)
        } else {
            (0, 0)
        };
        let metadata = Metadata {
            mode: (mode & 0o7777) as u32,
            uid: id("uid", 108..116, "owner")?,
            gid: id("gid", 116..124, "group")?,
            mtime,
            xattrs: pax.xattrs(),
        };
        Ok(RawEntry { name, kind, metadata, link, device, size, offset: self.at, stored, sparse })
    }

    /// The length of the data. A PAX size that says something else than the header is how archives are made that two
    /// readers see differently (CVE-2025-62518), so it may only say what the header cannot.
    fn size(&self, header: u64, pax: &Pax, name: &[u8]) -> Result<u64, LayerError> {
        const FIELD_MAX: u64 = (1 << 33) - 1;
        let Some(size) = pax.number("size") else { return Ok(header) };
        let size = size.map_err(|problem| self.bad(problem))?;
        if size == header || size > FIELD_MAX && (header == 0 || header == FIELD_MAX) {
            return Ok(size);
        }
        Err(LayerError::entry(name, format!("has two different sizes, {header} and {size}")))
    }

    fn verify(&self, block: &[u8; BLOCK]) -> Result<(), LayerError> {
        let expected = self.number(&block[148..156], "checksum")?;
        let bytes =
            || block.iter().enumerate().map(|(at, b)| if (148..156).contains(&at) { b' ' } else { *b });
        let unsigned: u64 = bytes().map(u64::from).sum();
        // Some old writers added signed bytes.
        let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
        if unsigned == expected || u64::try_from(signed) == Ok(expected) {
            return Ok(());
        }
        Err(self.bad("a header's checksum is wrong"))
    }

    /// A numeric field that is not negative: octal digits between blanks, or base 256.
    fn number(&self, field: &[u8], what: &str) -> Result<u64, LayerError> {
        let number = self.signed(field, what)?;
        u64::try_from(number).map_err(|_| self.bad(format!("a {what} is negative")))
    }

    fn signed(&self, field: &[u8], what: &str) -> Result<i64, LayerError> {
        parse_number(field).ok_or_else(|| self.bad(format!("a {what} is malformed")))
    }

    /// The map of an old GNU sparse entry, some of which may be in blocks behind the header.
    fn old_sparse(&mut self, block: &[u8; BLOCK], header: &tar::Header) -> Result<SparseMap, LayerError> {
        if header.as_gnu().is_none() {
            return Err(self.bad("a sparse entry has no GNU header"));
        }
        let mut map = Vec::new();
        self.old_sparse_pieces(&block[386..482], &mut map)?;
        let mut more = block[482] != 0;
        while more {
            let Some(next) = self.block()? else { return Err(self.bad("it ends inside a sparse entry")) };
            self.old_sparse_pieces(&next[..504], &mut map)?;
            more = next[504] != 0;
        }
        Ok((map, self.number(&block[483..495], "size")?))
    }

    fn old_sparse_pieces(&self, fields: &[u8], map: &mut Vec<(u64, u64)>) -> Result<(), LayerError> {
        for piece in fields.chunks_exact(24) {
            if piece[0] == 0 {
                break;
            }
            map.push((self.number(&piece[..12], "sparse map")?, self.number(&piece[12..], "sparse map")?));
        }
        if map.len() > SPARSE_MAX {
            return Err(LayerError::Limit { what: "pieces of a sparse file", limit: SPARSE_MAX as u64 });
        }
        Ok(())
    }

    /// The map and real size of a PAX sparse entry (GNU's formats 0.0, 0.1 and 1.0); `None` if it is none.
    fn pax_sparse(&mut self, pax: &Pax, stored: &mut u64) -> Result<Option<SparseMap>, LayerError> {
        let numbers: Vec<u64>;
        if pax.get("GNU.sparse.major").is_some() {
            if pax.get("GNU.sparse.major") != Some(b"1") || pax.get("GNU.sparse.minor") != Some(b"0") {
                return Err(self.bad("a sparse entry has an unknown version"));
            }
            numbers = self.sparse_map_in_data(stored)?;
        } else if let Some(map) = pax.get("GNU.sparse.map") {
            let parsed: Option<Vec<u64>> =
                map.split(|byte| *byte == b',').filter(|text| !text.is_empty()).map(decimal).collect();
            numbers = parsed.ok_or_else(|| self.bad("a sparse map is malformed"))?;
        } else if !pax.sparse.is_empty() {
            numbers = pax.sparse.clone();
        } else {
            return Ok(None);
        }
        if !numbers.len().is_multiple_of(2) {
            return Err(self.bad("a sparse map is malformed"));
        }
        let size = pax.number("GNU.sparse.realsize").or_else(|| pax.number("GNU.sparse.size"));
        let size = size.ok_or_else(|| self.bad("a sparse entry has no size"))?;
        let size = size.map_err(|problem| self.bad(problem))?;
        Ok(Some((numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect(), size)))
    }

    /// Format 1.0: the data begins with the map, decimal numbers on a line each, padded to a block.
    fn sparse_map_in_data(&mut self, stored: &mut u64) -> Result<Vec<u64>, LayerError> {
        let mut numbers = Vec::new();
        let mut count = None;
        let mut digits = Vec::new();
        loop {
            let left = stored.checked_sub(BLOCK as u64);
            *stored = left.ok_or_else(|| self.bad("a sparse map is cut off"))?;
            for byte in self.small(BLOCK as u64)? {
                if byte != b'\n' {
                    digits.push(byte);
                    if digits.len() > 20 {
                        return Err(self.bad("a sparse map is malformed"));
                    }
                    continue;
                }
                let number = decimal(&digits).ok_or_else(|| self.bad("a sparse map is malformed"))?;
                digits.clear();
                match count {
                    None if number > SPARSE_MAX as u64 => {
                        let what = "pieces of a sparse file";
                        return Err(LayerError::Limit { what, limit: SPARSE_MAX as u64 });
                    }
                    None => count = Some(number * 2),
                    Some(_) => numbers.push(number),
                }
                if count == Some(numbers.len() as u64) {
                    return Ok(numbers);
                }
            }
        }
    }

    fn check_sparse(&self, map: &[(u64, u64)], stored: u64, size: u64) -> Result<(), LayerError> {
        let mut end = 0;
        let mut sum = 0_u64;
        for (offset, length) in map {
            let next = offset.checked_add(*length).filter(|next| *offset >= end && *next <= size);
            end = next.ok_or_else(|| self.bad("a sparse map is out of order or of range"))?;
            // Below `size`.
            sum += length;
        }
        if sum == stored { Ok(()) } else { Err(self.bad("a sparse map does not fit its data")) }
    }

    /// The content of `entry`, which was the last that [`TarReader::next`] gave; holes read as zeros.
    pub(crate) fn content<'a>(&'a mut self, entry: &'a RawEntry) -> Content<'a, R> {
        let pieces = entry.sparse.as_deref();
        Content { tar: self, pieces, at: 0, size: entry.size, stored: entry.stored, padding: entry.stored }
    }

    /// The input, which must not be read from.
    pub(crate) fn input(&mut self) -> &mut R {
        &mut self.input
    }

    /// Gives the input back.
    pub(crate) fn into_inner(self) -> R {
        self.input
    }
}

/// Reads one entry's content.
pub(crate) struct Content<'a, R> {
    tar: &'a mut TarReader<R>,
    /// The pieces of a sparse file that are not behind `at` yet.
    pieces: Option<&'a [(u64, u64)]>,
    at: u64,
    size: u64,
    /// Data left in the tar.
    stored: u64,
    /// All data, which says how much padding follows it.
    padding: u64,
}

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = self.size - self.at;
        if left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        // How many bytes from here on are of one sort, and whether they are a hole.
        let (mut run, mut hole) = (left, false);
        if let Some(pieces) = &mut self.pieces {
            while let Some(((offset, length), rest)) = pieces.split_first()
                && offset + length <= self.at
            {
                *pieces = rest;
            }
            match pieces.first() {
                None => hole = true,
                Some((offset, _)) if *offset > self.at => (run, hole) = (offset - self.at, true),
                Some((offset, length)) => run = offset + length - self.at,
            }
        }
        let wanted = run.min(buffer.len() as u64) as usize;
        let count = if hole {
            buffer[..wanted].fill(0);
            wanted
        } else {
            let count = self.tar.input.read(&mut buffer[..wanted])?;
            if count == 0 {
                let problem = "the tar ends inside a file";
                return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, problem));
            }
            self.stored -= count as u64;
            self.tar.at += count as u64;
            count
        };
        self.at += count as u64;
        Ok(count)
    }
}

impl<R: Read> Content<'_, R> {
    /// Passes over the padding. The content must have been read to its end.
    pub(crate) fn finish(self) -> Result<(), LayerError> {
        debug_assert_eq!(self.stored, 0, "read to the end");
        let mut padding = [0; BLOCK];
        let length = (self.padding.next_multiple_of(BLOCK as u64) - self.padding) as usize;
        let found = fill(&mut self.tar.input, &mut padding[..length]);
        let found = found.map_err(LayerError::io("reading the layer"))?;
        // A tar that ends right behind its last byte of data is accepted, as the two zero blocks may be missing too.
        self.tar.at += found as u64;
        Ok(())
    }
}

fn parse_number(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 != 0 {
        // Base 256, two's complement, the first bit being the mark.
        let mut value =
            if field[0] & 0x40 == 0 { i128::from(field[0] & 0x3f) } else { i128::from(field[0]) - 256 };
        for byte in &field[1..] {
            value = value << 8 | i128::from(*byte);
        }
        return i64::try_from(value).ok();
    }
    let text = field.split(|byte| *byte == 0).next().unwrap_or_default().trim_ascii();
    let mut value = 0_i64;
    for digit in text {
        if !(b'0'..=b'7').contains(digit) {
            return None;
        }
        // At most twelve digits.
        value = value << 3 | i64::from(digit - b'0');
    }
    Some(value)
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds with an optional sign and fraction; more than nine digits of it are cut off.
fn timestamp(text: &[u8]) -> Option<Timestamp> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |byte| *byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanos = (0..9).fold(0, |n, at| n * 10 + u32::from(fraction.get(at).map_or(0, |digit| digit - b'0')));
    Some(match (negative, nanos) {
        (false, _) => Timestamp { seconds, nanos },
        (true, 0) => Timestamp { seconds: -seconds, nanos },
        (true, _) => Timestamp { seconds: -seconds - 1, nanos: 1_000_000_000 - nanos },
    })
}

/// The records of an extended header.
#[derive(Debug, Default)]
struct Pax {
    records: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Values of `GNU.sparse.offset` and `GNU.sparse.numbytes`, which may be repeated, in their order.
    sparse: Vec<u64>,
}

impl Pax {
    fn parse(mut data: &[u8]) -> Result<Self, &'static str> {
        const BAD: &str = "an extended header is malformed";
        let mut pax = Self::default();
        while !data.is_empty() {
            let space = data.iter().take(20).position(|byte| *byte == b' ').ok_or(BAD)?;
            let length =
                decimal(&data[..space]).and_then(|length| usize::try_from(length).ok()).ok_or(BAD)?;
            if length <= space + 1 || length > data.len() || data[length - 1] != b'\n' {
                return Err(BAD);
            }
            let record = &data[space + 1..length - 1];
            data = &data[length..];
            let equals = record.iter().position(|byte| *byte == b'=').ok_or(BAD)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            if key == b"GNU.sparse.offset" || key == b"GNU.sparse.numbytes" {
                let expected: &[u8] = if pax.sparse.len().is_multiple_of(2) {
                    b"GNU.sparse.offset"
                } else {
                    b"GNU.sparse.numbytes"
                };
                if key != expected || pax.sparse.len() > 2 * SPARSE_MAX {
                    return Err("a sparse map is malformed");
                }
                pax.sparse.push(decimal(value).ok_or("a sparse map is malformed")?);
                continue;
            }
            let before = pax.records.insert(key.to_vec(), value.to_vec());
            if before.is_some_and(|before| before != value) {
                return Err("an extended header says two things about the same");
            }
        }
        Ok(pax)
    }

    /// A record's value; an empty one means that the header's own counts.
    fn get(&self, key: &str) -> Option<&[u8]> {
        self.records.get(key.as_bytes()).map(Vec::as_slice).filter(|value| !value.is_empty())
    }

    fn number(&self, key: &str) -> Option<Result<u64, &'static str>> {
        self.get(key).map(|text| decimal(text).ok_or("an extended header has a malformed number"))
    }

    fn changes_shape(&self) -> bool {
        let sparse = |key: &Vec<u8>| key.starts_with(b"GNU.sparse.");
        ["path", "linkpath", "size"].iter().any(|key| self.get(key).is_some())
            || !self.sparse.is_empty()
            || self.records.keys().any(sparse)
    }

    fn xattrs(&self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let prefix = b"SCHILY.xattr.";
        let records = self.records.iter();
        records.filter_map(|(k, v)| Some((k.strip_prefix(prefix)?.to_vec(), v.clone()))).collect()
    }
}
