//! A layer as a row of frames.

use std::ops::{Range, RangeInclusive};
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex};

use super::{ContentError, lock};
use crate::digest::Digest;
use crate::layer::{Encoding, Frame, LayerDescriptor, Toc};
use crate::record::Key;
use crate::store::DirectoryStore;

/// What is asked for at first, and the most that is asked for at once when reading goes on and on.
const WINDOW_MIN: u64 = 512 << 10;
pub(super) const WINDOW_MAX: u64 = 4 << 20;

/// A layer whose frames can be had one by one.
#[derive(Debug)]
pub(crate) struct LayerFrames {
    digest: Digest,
    size: u64,
    encoding: Encoding,
    toc: Arc<Toc>,
    /// Where each frame begins: in the tar, and in the blob.
    starts: Vec<(u64, u64)>,
    keys: Vec<Key>,
    /// The whole blob, once it was seen to be here. Open, it can be read although it is evicted.
    file: Mutex<Option<Arc<fs_err::File>>>,
    /// The frame behind those that were fetched last, and how much was asked for.
    streak: Mutex<(usize, u64)>,
}

impl LayerFrames {
    /// The blob `blob`, whose table of contents, with frames, is `toc`; `keys` are the records that promise it.
    pub(crate) fn new(blob: &LayerDescriptor, toc: Arc<Toc>, keys: Vec<Key>) -> Self {
        let mut at = (0_u64, 0_u64);
        let mut starts = Vec::with_capacity(toc.frames.len());
        for frame in &toc.frames {
            starts.push(at);
            // A decoded TOC has been checked: the sums are no larger than a number holds.
            at = (at.0.saturating_add(frame.raw_size), at.1.saturating_add(frame.size));
        }
        Self {
            digest: blob.digest,
            size: blob.size,
            encoding: Encoding::of(blob.media_type),
            toc,
            starts,
            keys,
            file: Mutex::default(),
            streak: Mutex::new((0, 0)),
        }
    }

    /// The blob's.
    pub(crate) fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Length of the blob.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn encoding(&self) -> Encoding {
        self.encoding
    }

    pub(super) fn frames(&self) -> &[Frame] {
        &self.toc.frames
    }

    /// Length of the tar.
    pub(super) fn raw_size(&self) -> u64 {
        self.starts.last().zip(self.frames().last()).map_or(0, |(start, last)| start.0 + last.raw_size)
    }

    /// The frame that has the tar's byte `at`, and where in the tar it begins.
    pub(super) fn frame_at(&self, at: u64) -> Option<(usize, u64)> {
        let number = self.starts.partition_point(|(start, _)| *start <= at).checked_sub(1)?;
        let start = self.starts[number].0;
        (at - start < self.frames()[number].raw_size).then_some((number, start))
    }

    /// Where in the blob the frames `numbers` are, which are at least one.
    pub(super) fn range(&self, numbers: &RangeInclusive<usize>) -> Range<u64> {
        let end = self.starts[*numbers.end()].1 + self.frames()[*numbers.end()].size;
        self.starts[*numbers.start()].1..end
    }

    /// How many bytes of the blob they are.
    pub(super) fn length(&self, numbers: &RangeInclusive<usize>) -> u64 {
        let range = self.range(numbers);
        range.end - range.start
    }

    /// How many bytes are worth asking for when frame `number` has to be fetched: more and more while one follows the other.
    pub(super) fn window(&self, number: usize) -> u64 {
        let streak = lock(&self.streak);
        if number > 0 && streak.0 == number { (streak.1 * 2).min(WINDOW_MAX) } else { WINDOW_MIN }
    }

    /// Notes what was asked for.
    pub(super) fn asked(&self, window: u64, beyond: usize) {
        *lock(&self.streak) = (beyond, window);
    }

    /// Frame `number` out of the whole blob, if that is in the local store and sound there.
    pub(super) fn local(&self, store: &DirectoryStore, number: usize) -> Option<Vec<u8>> {
        let file = self.file(store)?;
        let frame = &self.frames()[number];
        let mut bytes = vec![0; usize::try_from(frame.size).ok()?];
        let read = file.file().read_exact_at(&mut bytes, self.starts[number].1);
        if read.is_ok() && frame.id.matches(&bytes) {
            return Some(bytes);
        }
        // What is damaged must be out of the way of the sound one that is fetched for others.
        store.quarantine_blob(&self.digest);
        *lock(&self.file) = None;
        None
    }

    /// Whether the whole blob is in the local store.
    pub(super) fn is_local(&self, store: &DirectoryStore) -> bool {
        self.file(store).is_some()
    }

    fn file(&self, store: &DirectoryStore) -> Option<Arc<fs_err::File>> {
        let mut known = lock(&self.file);
        if known.is_none() {
            let (file, size) = store.open_blob(&self.digest)?;
            if size != self.size {
                store.quarantine_blob(&self.digest);
                return None;
            }
            *known = Some(Arc::new(file));
        }
        known.clone()
    }

    pub(super) fn missing(&self, frame: usize, elsewhere: String) -> ContentError {
        ContentError::Missing { layer: self.digest, frame, elsewhere, keys: self.keys.clone() }
    }

    pub(super) fn wrong(&self, problem: &impl ToString) -> ContentError {
        ContentError::Wrong { layer: self.digest, problem: problem.to_string(), keys: self.keys.clone() }
    }
}
