//! Finds the files in a tar without unpacking it.
//!
//! The `tar` crate reads long names into memory whatever their size; an archive from somewhere gets bounds here.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use tar::{EntryType, Header};

/// More files than any image archive has; each costs some hundred bytes of memory.
const ENTRIES_MAX: usize = 1_000_000;

/// The largest extension header (long name, PAX records) that is read, in bytes.
const EXTENSION_BYTES_MAX: u64 = 1 << 20;

/// Links lead to links in archives of old Docker versions, but not far.
const LINKS_MAX: usize = 16;

const BLOCK: u64 = 512;

#[derive(Debug, Clone)]
enum Node {
    File {
        offset: u64,
        size: u64,
    },
    /// To a path in the archive.
    Link(String),
}

/// The files of a tar by their path.
#[derive(Debug)]
pub(super) struct TarIndex {
    file: Arc<File>,
    nodes: HashMap<String, Node>,
}

fn malformed(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

impl TarIndex {
    /// Reads the headers of the uncompressed tar `file`.
    pub(super) fn read(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let file = Arc::new(file);
        let mut nodes = HashMap::new();
        let mut position = 0;
        let mut pending = Extension::default();
        let mut block = [0; BLOCK as usize];
        while position + BLOCK <= length {
            file.read_exact_at(&mut block, position)?;
            position += BLOCK;
            if block == [0; BLOCK as usize] {
                break;
            }
            let header = Header::from_byte_slice(&block);
            check_sum(header, &block)?;
            let kind = header.entry_type();
            let mut size = header.entry_size()?;
            if !matches!(kind, EntryType::XHeader | EntryType::XGlobalHeader)
                && let Some(actual) = pending.size
            {
                size = actual;
            }
            if size > length - position {
                return Err(malformed("the archive ends in the middle of a file"));
            }
            let data = Region { file: Arc::clone(&file), offset: position, remaining: size };
            position += size.div_ceil(BLOCK) * BLOCK;
            match kind {
                EntryType::GNULongName => pending.path = Some(data.text()?),
                EntryType::GNULongLink => pending.link = Some(data.text()?),
                EntryType::XHeader => pending.pax(&data.bytes()?)?,
                // Global records concern all entries: nothing in them is about names and sizes of single files.
                EntryType::XGlobalHeader => {}
                _ => {
                    let extension = std::mem::take(&mut pending);
                    let path = match extension.path {
                        Some(path) => path,
                        None => String::from_utf8_lossy(&header.path_bytes()).into_owned(),
                    };
                    let link = || match &extension.link {
                        Some(link) => Some(link.clone()),
                        None => {
                            header.link_name_bytes().map(|link| String::from_utf8_lossy(&link).into_owned())
                        }
                    };
                    let node = match kind {
                        EntryType::Regular | EntryType::Continuous => {
                            Some(Node::File { offset: data.offset, size })
                        }
                        EntryType::Symlink => link().and_then(|link| {
                            let base = path.rsplit_once('/').map_or("", |(directory, _)| directory);
                            normal(&format!("{base}/{link}")).map(Node::Link)
                        }),
                        EntryType::Link => link().and_then(|link| normal(&link).map(Node::Link)),
                        EntryType::GNUSparse => return Err(malformed("the archive has a sparse file")),
                        _ => None,
                    };
                    // What points out of the archive is nothing that an image is made of.
                    if let (Some(node), Some(path)) = (node, normal(&path)) {
                        if nodes.len() >= ENTRIES_MAX {
                            return Err(malformed(format!("the archive has more than {ENTRIES_MAX} files")));
                        }
                        // Two readers could take two different files.
                        if nodes.insert(path.clone(), node).is_some() {
                            let path: String = path.chars().take(100).collect();
                            return Err(malformed(format!("the archive has `{path}` twice")));
                        }
                    }
                }
            }
        }
        Ok(Self { file, nodes })
    }

    /// The content of the file at `path`, links followed; `None` if there is none.
    pub(super) fn open(&self, path: &str) -> Option<Region> {
        let mut path = normal(path)?;
        for _ in 0..LINKS_MAX {
            match self.nodes.get(&path)? {
                Node::File { offset, size } => {
                    return Some(Region { file: Arc::clone(&self.file), offset: *offset, remaining: *size });
                }
                Node::Link(target) => path.clone_from(target),
            }
        }
        None
    }
}

#[derive(Default)]
struct Extension {
    path: Option<String>,
    link: Option<String>,
    size: Option<u64>,
}

impl Extension {
    /// Reads PAX records: `<length> <key>=<value>\n`.
    fn pax(&mut self, records: &[u8]) -> io::Result<()> {
        let mut rest = records;
        while !rest.is_empty() {
            let bad = || malformed("the archive has malformed PAX records");
            let space = rest.iter().position(|byte| *byte == b' ').ok_or_else(bad)?;
            let length: usize = std::str::from_utf8(&rest[..space])
                .ok()
                .and_then(|text| text.parse().ok())
                .ok_or_else(bad)?;
            if length <= space + 1 || length > rest.len() || rest[length - 1] != b'\n' {
                return Err(bad());
            }
            let record = String::from_utf8_lossy(&rest[space + 1..length - 1]);
            rest = &rest[length..];
            let (key, value) = record.split_once('=').ok_or_else(bad)?;
            match key {
                "path" => self.path = Some(value.to_owned()),
                "linkpath" => self.link = Some(value.to_owned()),
                "size" => self.size = Some(value.parse().map_err(|_| bad())?),
                key if key.starts_with("GNU.sparse") => {
                    return Err(malformed("the archive has a sparse file"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn check_sum(header: &Header, block: &[u8; BLOCK as usize]) -> io::Result<()> {
    let sum: u32 = block
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
        .sum();
    if header.cksum().is_ok_and(|stored| stored == sum) {
        return Ok(());
    }
    Err(malformed("it is not a tar, or a damaged one (a header's checksum is wrong)"))
}

/// A path without `.` and empty components; `None` if it leaves the archive or is its root.
fn normal(path: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

/// A piece of a file.
#[derive(Debug, Clone)]
pub(super) struct Region {
    file: Arc<File>,
    offset: u64,
    remaining: u64,
}

impl Region {
    /// How many bytes are left to read.
    pub(super) fn size(&self) -> u64 {
        self.remaining
    }

    fn bytes(self) -> io::Result<Vec<u8>> {
        if self.remaining > EXTENSION_BYTES_MAX {
            return Err(malformed(format!(
                "the archive has an extension header of more than {EXTENSION_BYTES_MAX} bytes"
            )));
        }
        let mut bytes = Vec::new();
        let mut region = self;
        region.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn text(self) -> io::Result<String> {
        let bytes = self.bytes()?;
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }
}

impl Read for Region {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let limit = buffer.len().min(usize::try_from(self.remaining).unwrap_or(usize::MAX));
        let read = self.file.read_at(&mut buffer[..limit], self.offset)?;
        self.offset += read as u64;
        self.remaining -= read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn header(kind: EntryType, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_cksum();
        header
    }

    fn index(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> io::Result<TarIndex> {
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        from_bytes(&builder.into_inner().unwrap())
    }

    fn from_bytes(bytes: &[u8]) -> io::Result<TarIndex> {
        let mut file = tempfile::tempfile()?;
        file.write_all(bytes)?;
        TarIndex::read(file)
    }

    fn text(index: &TarIndex, path: &str) -> Option<String> {
        let mut text = String::new();
        index.open(path)?.read_to_string(&mut text).unwrap();
        Some(text)
    }

    #[test]
    fn files_are_found_through_links_and_long_names() {
        let long = format!("{}/layer.tar", "d".repeat(300));
        let index = index(|tar| {
            tar.append_data(&mut header(EntryType::Regular, 1), "./a/layer.tar", &b"A"[..]).unwrap();
            tar.append_data(&mut header(EntryType::Regular, 2), &long, &b"BB"[..]).unwrap();
            tar.append_link(&mut header(EntryType::Symlink, 0), "b/layer.tar", "../a/layer.tar").unwrap();
            tar.append_link(&mut header(EntryType::Link, 0), "c/layer.tar", "b/layer.tar").unwrap();
            tar.append_link(&mut header(EntryType::Symlink, 0), "loop", "loop").unwrap();
            tar.append_link(&mut header(EntryType::Symlink, 0), "out", "../../etc/passwd").unwrap();
            tar.append_pax_extensions([("path", &b"pax/name"[..]), ("size", b"3")]).unwrap();
            let mut plain = header(EntryType::Regular, 0);
            plain.set_path("short").unwrap();
            plain.set_cksum();
            // The size of the header is 0: only the PAX record tells it.
            tar.append(&plain, io::empty()).unwrap();
            tar.get_mut().extend_from_slice(b"CCC");
            tar.get_mut().extend_from_slice(&[0; 509]);
            tar.append_data(&mut header(EntryType::Regular, 1), "last", &b"L"[..]).unwrap();
        })
        .unwrap();
        assert_eq!(text(&index, "a/layer.tar").as_deref(), Some("A"));
        assert_eq!(text(&index, &long).as_deref(), Some("BB"));
        assert_eq!(text(&index, "./c//layer.tar").as_deref(), Some("A"));
        assert_eq!(text(&index, "pax/name").as_deref(), Some("CCC"));
        assert_eq!(text(&index, "last").as_deref(), Some("L"));
        for none in ["loop", "out", "short", "missing", "..", ""] {
            assert_eq!(text(&index, none), None, "{none}");
        }
    }

    #[test]
    fn hostile_archives_are_refused() {
        let error = |result: io::Result<TarIndex>| result.unwrap_err().to_string();
        let twice = index(|tar| {
            for content in ["1", "2"] {
                tar.append_data(&mut header(EntryType::Regular, 1), "a", content.as_bytes()).unwrap();
            }
        });
        assert!(error(twice).contains("`a` twice"));
        let short = index(|tar| tar.append(&header(EntryType::Regular, 1 << 60), io::empty()).unwrap());
        assert!(error(short).contains("ends in the middle"));
        let name = vec![b'x'; (EXTENSION_BYTES_MAX + 1) as usize];
        let long = index(|tar| {
            tar.append(&header(EntryType::GNULongName, name.len() as u64), &name[..]).unwrap();
        });
        assert!(error(long).contains("extension header"));
        let sparse = index(|tar| tar.append(&header(EntryType::GNUSparse, 0), io::empty()).unwrap());
        assert!(error(sparse).contains("sparse"));
        assert!(error(from_bytes(&[7; 2048])).contains("not a tar"));
        for records in ["", "x", "99 path=a\n", "3 a\n", "12 size=-1\n\n", "0 a=b\n"] {
            let result = index(|tar| {
                tar.append(&header(EntryType::XHeader, records.len() as u64), records.as_bytes()).unwrap();
            });
            assert_eq!(result.is_err(), !records.is_empty(), "{records}");
        }
    }
}
