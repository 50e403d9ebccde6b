//! Writes a tar for people and other programs: no layer, so that every name is a name, and with exact times.

use std::io::{self, Read, Write};

use super::error::LayerError;
use super::header::{BLOCK, Header, pad};
use super::scan::Item;
use super::toc::Metadata;

/// Writes a tar, entry by entry, in the caller's order.
#[derive(Debug)]
pub(crate) struct ArchiveWriter<W> {
    out: W,
}

impl<W: Write> ArchiveWriter<W> {
    /// A writer of a tar without entries.
    pub(crate) fn new(out: W) -> Self {
        Self { out }
    }

    /// Adds an entry; the empty path is the directory that all others are in. `content` is that of a file.
    pub(crate) fn entry(
        &mut self,
        path: &[u8],
        metadata: &Metadata,
        item: Item<'_>,
        content: &mut dyn Read,
    ) -> Result<(), LayerError> {
        let (typeflag, size, link, device) = match item {
            Item::Directory => (b'5', 0, Vec::new(), (0, 0)),
            Item::File { size } => (b'0', size, Vec::new(), (0, 0)),
            Item::HardLink { target } => (b'1', 0, [b"./", target].concat(), (0, 0)),
            Item::Symlink { target } => (b'2', 0, target.to_vec(), (0, 0)),
            Item::CharDevice { major, minor } => (b'3', 0, Vec::new(), (major, minor)),
            Item::BlockDevice { major, minor } => (b'4', 0, Vec::new(), (major, minor)),
            Item::Fifo => (b'6', 0, Vec::new(), (0, 0)),
            Item::Opaque | Item::Whiteout => {
                return Err(LayerError::entry(path, "takes something away, which only layers do"));
            }
        };
        let mut name = [b"./", path].concat();
        if matches!(item, Item::Directory) && !path.is_empty() {
            name.push(b'/');
        }
        let mut block = Vec::new();
        Header { name: &name, metadata, typeflag, size, link: &link, device, is_exact: true }
            .append(&mut block)?;
        self.write(&block)?;
        if size == 0 {
            return Ok(());
        }
        let copied = io::copy(&mut content.take(size), &mut self.out);
        let copied =
            copied.map_err(LayerError::io(format!("writing {} into the tar", super::display_path(path))))?;
        if copied < size {
            let (path, found) = (super::display_path(path), copied.to_string());
            return Err(LayerError::Changed { path, expected: size, found });
        }
        let mut padding = Vec::new();
        pad(&mut padding, size);
        self.write(&padding)
    }

    /// Ends the tar and gives back what it was written to.
    pub(crate) fn finish(mut self) -> Result<W, LayerError> {
        self.write(&[0; 2 * BLOCK])?;
        self.out.flush().map_err(LayerError::io("writing the tar"))?;
        Ok(self.out)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), LayerError> {
        self.out.write_all(bytes).map_err(LayerError::io("writing the tar"))
    }
}
