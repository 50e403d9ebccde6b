//! Contents of files of a snapshot, read out of its packs.

use std::io::{self, Read};
use std::sync::{Arc, OnceLock};

use super::{ContentError, Counts, LayerFrames, Pool, read_frames};
use crate::layer::{LayerDescriptor, MediaType, Toc};
use crate::record::Key;
use crate::snapshot::{Extent, Pack};
use crate::trace;
use crate::tree::Node;

/// The contents of a snapshot's files. The origin of a node says which one it is: see [`PackContents::origin`].
#[derive(Debug)]
pub(crate) struct PackContents {
    pool: Arc<Pool>,
    packs: Vec<Arc<LayerFrames>>,
    files: Vec<Vec<Extent>>,
    counts: Counts,
    failure: OnceLock<ContentError>,
}

impl PackContents {
    /// `files` are the extents of each file; `key` is the record that promises the packs.
    pub(crate) fn new(pool: Arc<Pool>, packs: &[Pack], files: Vec<Vec<Extent>>, key: Key) -> Self {
        let frames = |pack: &Pack| {
            let blob = LayerDescriptor {
                diff_id: pack.digest,
                digest: pack.digest,
                size: pack.size,
                media_type: MediaType::Zstd,
                toc: pack.digest,
            };
            let toc = Toc { entries: Vec::new(), frames: pack.frames.clone() };
            Arc::new(LayerFrames::new(&blob, Arc::new(toc), vec![key]))
        };
        let packs = packs.iter().map(frames).collect();
        Self { pool, packs, files, counts: Counts::default(), failure: OnceLock::new() }
    }

    /// Where the file with this number has its content, for [`Origin::offset`](crate::tree::Origin): 0 means nothing there.
    pub(crate) fn origin(file: usize) -> u64 {
        file as u64 + 1
    }

    /// What the first read that failed came to.
    pub(crate) fn failure(&self) -> Option<&ContentError> {
        self.failure.get()
    }

    fn try_read(&self, node: &Node, at: u64, buffer: &mut [u8]) -> Result<(), ContentError> {
        let number = usize::try_from(node.origin.offset).ok().and_then(|offset| offset.checked_sub(1));
        let extents = number.and_then(|number| self.files.get(number)).map_or(&[][..], Vec::as_slice);
        let mut start = 0_u64;
        let mut filled = 0;
        for extent in extents {
            let end = start.saturating_add(extent.length);
            let here = at + filled as u64;
            if here < end && filled < buffer.len() {
                let skipped = here - start;
                let count = usize::try_from(extent.length - skipped).unwrap_or(usize::MAX);
                let count = count.min(buffer.len() - filled);
                self.extent(extent, skipped, &mut buffer[filled..filled + count])?;
                filled += count;
            }
            start = end;
        }
        if filled == buffer.len() {
            return Ok(());
        }
        let problem = io::Error::from(io::ErrorKind::UnexpectedEof);
        Err(ContentError::Io {
            action: "reading a file of a cache mount".to_owned(),
            source: Arc::new(problem),
        })
    }

    /// Fills `buffer` with the bytes of an extent from its byte `skipped` on.
    fn extent(&self, extent: &Extent, skipped: u64, buffer: &mut [u8]) -> Result<(), ContentError> {
        let Some(pack) = extent.pack.and_then(|number| self.packs.get(number as usize)) else {
            buffer.fill(0);
            return Ok(());
        };
        let (at, beyond) =
            (extent.offset.saturating_add(skipped), extent.offset.saturating_add(extent.length));
        read_frames(&self.pool, pack, &self.counts, at, beyond, buffer)
    }

    /// A reader for the whole content of the file `node`.
    pub(crate) fn reader<'f>(&'f self, node: &'f Node) -> PackReader<'f> {
        PackReader { contents: self, node, at: 0 }
    }
}

/// Reads one file from its beginning to its end.
#[derive(Debug)]
pub(crate) struct PackReader<'f> {
    contents: &'f PackContents,
    node: &'f Node,
    at: u64,
}

impl Read for PackReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.node.size().saturating_sub(self.at)).unwrap_or(usize::MAX);
        let count = left.min(buffer.len());
        trace::Contents::read(self.contents, b"", self.node, self.at, &mut buffer[..count])?;
        self.at += count as u64;
        Ok(count)
    }
}

impl trace::Contents for PackContents {
    fn read(&self, _: &[u8], node: &Node, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.try_read(node, at, buffer).map_err(|error| {
            let _ = self.failure.set(error.clone());
            io::Error::other(error)
        })
    }
}
