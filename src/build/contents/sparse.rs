//! Files that do not lie in the tar in one piece, as GNU tar stores those with holes. They are rare: each is put together
//! once, by reading the layer from its beginning, and kept as a file.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use super::{ContentError, Contents, LayerFrames, lock, read_frames};
use crate::digest::{Digest, Hashing};
use crate::layer::{self, Item, LayerError, LayerVisitor, Metadata, ScanOptions};
use crate::store::DirectoryStore;
use crate::tree::Node;

impl Contents {
    pub(super) fn read_sparse(
        &self,
        layer: &Arc<LayerFrames>,
        node: &Node,
        at: u64,
        buffer: &mut [u8],
    ) -> Result<usize, ContentError> {
        let Some(content) = node.content() else { return Ok(0) };
        // Held while the file is made: others want the same one, or one of the same layer.
        let mut files = lock(&self.pool.sparse);
        let file = match files.get(content) {
            Some(file) => Arc::clone(file),
            None => {
                let file = Arc::new(self.put_together(layer, content, node.size())?);
                files.insert(*content, Arc::clone(&file));
                file
            }
        };
        drop(files);
        file.read_exact_at(buffer, at).map_err(|error| failed("reading a file with holes", error))?;
        Ok(buffer.len())
    }

    fn put_together(
        &self,
        layer: &Arc<LayerFrames>,
        content: &Digest,
        size: u64,
    ) -> Result<File, ContentError> {
        let local = self.pool.engine.cache.local();
        let place = self.pool.place_of_content(content);
        if let Ok(file) = File::open(&place)
            && Digest::of_reader(&file).is_ok_and(|digest| digest == *content)
        {
            local.touch_state(&place);
            return Ok(file);
        }
        let mut wanted = Wanted { content, size, store: local, place, found: None };
        let tar = Tar { contents: self, layer, at: 0 };
        let scanned = layer::scan(tar, &ScanOptions::default(), &mut wanted);
        if let Some(file) = wanted.found {
            return Ok(file);
        }
        match scanned {
            Ok(_) => Err(layer.wrong(&format!("no file in it has the content {content}"))),
            Err(LayerError::Io { action, source }) => {
                let own = source.get_ref().and_then(|source| source.downcast_ref::<ContentError>());
                Err(own.cloned().unwrap_or_else(|| failed(&action, source)))
            }
            Err(error) => Err(layer.wrong(&error)),
        }
    }
}

fn failed(action: &str, source: io::Error) -> ContentError {
    ContentError::Io { action: action.to_owned(), source: Arc::new(source) }
}

/// Keeps the file whose content is wanted.
struct Wanted<'w> {
    content: &'w Digest,
    size: u64,
    store: &'w DirectoryStore,
    place: PathBuf,
    found: Option<File>,
}

impl LayerVisitor for Wanted<'_> {
    fn visit(
        &mut self,
        _: &[u8],
        _: &Metadata,
        item: Item<'_>,
        content: &mut dyn Read,
    ) -> Result<(), LayerError> {
        if item != (Item::File { size: self.size }) {
            return Ok(());
        }
        let store = |error| LayerError::io("putting a file with holes together")(io::Error::other(error));
        let writing = || LayerError::io("putting a file with holes together");
        let mut file = self.store.tmp_file().map_err(store)?;
        let mut hashing = Hashing::new(&mut file);
        io::copy(content, &mut hashing).map_err(writing())?;
        if hashing.finish().1 != *self.content {
            return Ok(());
        }
        self.found = Some(file.persist(&self.place).map_err(|error| writing()(error.error))?);
        // The rest of the layer is of no interest.
        Err(writing()(io::ErrorKind::Interrupted.into()))
    }
}

/// A layer's tar from its beginning.
struct Tar<'t> {
    contents: &'t Contents,
    layer: &'t Arc<LayerFrames>,
    at: u64,
}

impl Read for Tar<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let end = self.layer.raw_size();
        let count = usize::try_from(end - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let Contents { pool, counts, .. } = self.contents;
        let read = read_frames(pool, self.layer, counts, self.at, end, &mut buffer[..count]);
        read.map_err(io::Error::other)?;
        self.at += count as u64;
        Ok(count)
    }
}
