//! Contents of files, read out of layers when somebody asks for them: nothing is unpacked, and of what is elsewhere only the
//! frames come that are asked for.

mod ahead;
mod layer;
mod packs;
mod pool;
mod sparse;
#[cfg(test)]
mod tests;

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use tokio::task::AbortHandle;

use super::error::BuildError;
use super::layers::lock;
use crate::digest::Digest;
use crate::record::Key;
use crate::tree::Node;

pub(crate) use layer::LayerFrames;
pub(crate) use packs::PackContents;
pub(crate) use pool::Pool;

/// Why a content cannot be read.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ContentError {
    /// Nobody has the bytes, or what they have is damaged.
    #[error("a part of the layer {layer} is gone: frame {frame} is not on this machine, and {elsewhere}")]
    Missing {
        /// The blob.
        layer: Digest,
        /// The number of the frame in it.
        frame: usize,
        /// What came of asking others.
        elsewhere: String,
        /// The records that say that it is there.
        keys: Vec<Key>,
    },
    /// The bytes are those that the table of contents names, but it says what is not so.
    #[error("the layer {layer} is not what its table of contents says: {problem}")]
    Wrong {
        /// The blob.
        layer: Digest,
        /// What is not so.
        problem: String,
        /// The records that it comes from.
        keys: Vec<Key>,
    },
    /// This machine is in the way.
    #[error("{action} failed")]
    Io {
        /// What was being done.
        action: String,
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
    /// The build has ended.
    #[error("the build was cancelled")]
    Cancelled,
}

impl From<ContentError> for BuildError {
    /// What is missing or wrong is a loss: the build begins again without the records that promised it.
    fn from(error: ContentError) -> Self {
        match error {
            ContentError::Missing { layer, keys, .. } | ContentError::Wrong { layer, keys, .. } => {
                Self::Lost { digest: layer, keys }
            }
            ContentError::Cancelled => Self::Cancelled,
            ContentError::Io { .. } => Self::cache("reading a layer", error),
        }
    }
}

/// What was fetched from other machines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Fetched {
    /// Frames.
    pub(crate) frames: u64,
    /// Their bytes, as they came.
    pub(crate) bytes: u64,
    /// Requests.
    pub(crate) requests: u64,
}

/// Counts what is fetched.
#[derive(Debug, Default)]
struct Counts {
    frames: AtomicU64,
    bytes: AtomicU64,
    requests: AtomicU64,
}

impl Counts {
    fn add(&self, frames: usize, bytes: usize) {
        self.frames.fetch_add(frames as u64, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
    }
}

/// The contents of the files of one tree. Made by [`Layers::contents`](super::layers::Layers::contents).
///
/// Any number of threads may read. None of them may be one that drives asynchronous tasks: reading waits for the network.
/// What is read ahead is given up when this is dropped.
#[derive(Debug)]
pub(crate) struct Contents {
    pool: Arc<Pool>,
    /// By their numbers in the tree.
    layers: Vec<Arc<LayerFrames>>,
    counts: Arc<Counts>,
    failure: OnceLock<ContentError>,
    ahead: Mutex<Vec<AbortHandle>>,
}

impl Contents {
    /// `layers` are those of a chain, lowest first: a node's origin says which one it comes from.
    pub(crate) fn new(pool: Arc<Pool>, layers: Vec<Arc<LayerFrames>>) -> Self {
        Self { pool, layers, counts: Arc::default(), failure: OnceLock::new(), ahead: Mutex::default() }
    }

    /// Reads what the file `node` has from its byte `at` on into `buffer`: as much as fits, less only at the file's end.
    /// What is no file is empty.
    ///
    /// Every byte comes from a frame that has the digest that the layer's table of contents says.
    ///
    /// # Errors
    /// The first one is kept: see [`Contents::failure`].
    pub(crate) fn read(&self, node: &Node, at: u64, buffer: &mut [u8]) -> Result<usize, ContentError> {
        let result = self.try_read(node, at, buffer);
        if let Err(error) = &result {
            let _ = self.failure.set(error.clone());
        }
        result
    }

    /// What the first read that failed came to. Whoever passes on contents to somebody who sees only that a read failed
    /// (a command, a writer of tars) asks for it afterwards.
    pub(crate) fn failure(&self) -> Option<&ContentError> {
        self.failure.get()
    }

    /// What was fetched from other machines for this tree so far.
    #[cfg_attr(not(test), expect(dead_code, reason = "for whoever says what a step fetched"))]
    pub(crate) fn fetched(&self) -> Fetched {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Counts { frames, bytes, requests } = &*self.counts;
        Fetched { frames: get(frames), bytes: get(bytes), requests: get(requests) }
    }

    /// A reader for the whole content of a file.
    pub(crate) fn reader(self: &Arc<Self>, node: &Node) -> ContentReader {
        ContentReader { contents: Arc::clone(self), node: node.clone(), at: 0 }
    }

    fn try_read(&self, node: &Node, at: u64, buffer: &mut [u8]) -> Result<usize, ContentError> {
        let left = node.size().saturating_sub(at);
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = &mut buffer[..wanted];
        if wanted == 0 {
            return Ok(0);
        }
        let Some(layer) = self.layers.get(node.origin.layer as usize) else {
            let problem = format!("there is no layer {} below the file", node.origin.layer);
            let layer = self.layers.last().map_or_else(|| Digest::of(""), |layer| *layer.digest());
            return Err(ContentError::Wrong { layer, problem, keys: Vec::new() });
        };
        if node.origin.offset == 0 {
            return self.read_sparse(layer, node, at, buffer);
        }
        let beyond = node.origin.offset.saturating_add(node.size());
        let at = node.origin.offset.saturating_add(at);
        read_frames(&self.pool, layer, &self.counts, at, beyond, buffer)?;
        Ok(wanted)
    }
}

/// Fills `buffer` with what a layer's tar, or a pack, has from `at` on. Up to `beyond` it is likely to be read next.
fn read_frames(
    pool: &Arc<Pool>,
    layer: &Arc<LayerFrames>,
    counts: &Counts,
    at: u64,
    beyond: u64,
    buffer: &mut [u8],
) -> Result<(), ContentError> {
    let mut filled = 0;
    while filled < buffer.len() {
        let here = at.saturating_add(filled as u64);
        let (number, start) = layer.frame_at(here).ok_or_else(|| layer.wrong(&"it ends too early"))?;
        let last = layer.frame_at(beyond.saturating_sub(1)).map_or(number, |(last, _)| last);
        let raw = pool.frame(layer, number, last.max(number), counts)?;
        let data = raw.get((here - start) as usize..).unwrap_or_default();
        let count = data.len().min(buffer.len() - filled);
        buffer[filled..filled + count].copy_from_slice(&data[..count]);
        filled += count;
    }
    Ok(())
}

impl Drop for Contents {
    fn drop(&mut self) {
        self.stop_reading_ahead();
    }
}

/// Reads one file from its beginning to its end.
#[derive(Debug)]
pub(crate) struct ContentReader {
    contents: Arc<Contents>,
    node: Node,
    at: u64,
}

impl Read for ContentReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.contents.read(&self.node, self.at, buffer).map_err(io::Error::other)?;
        self.at += count as u64;
        Ok(count)
    }
}
