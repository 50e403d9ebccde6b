//! What a record's step looked at.

use crate::digest::Digest;
use crate::layer::display_path;
use crate::record::{
    BundleName, Preimage, READERS_BYTES_MAX, Readers, Record, SHAPE_BYTES_MAX, Shape, VALUES_BYTES_MAX,
    Values, is_absent,
};
use crate::store::Cache;
use crate::tree::{Look, Seen};

/// One path that a step looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadPath {
    /// In which of its trees: 0 is the file system that it starts from, the others are what its mounts show.
    pub tree: usize,
    /// The path, with a slash at the beginning.
    pub path: String,
    /// How it was looked at.
    pub look: Look,
    /// What was seen.
    pub seen: Seen,
    /// What the program is called that read or listed it first, if that is known.
    pub by: Option<String>,
}

impl ReadPath {
    /// Whether the file's content was read.
    pub fn content(&self) -> bool {
        self.look.has(Look::CONTENT)
    }

    /// Whether the directory was listed.
    pub fn names(&self) -> bool {
        self.look.has(Look::NAMES)
    }

    /// Whether there was nothing.
    pub fn is_absent(&self) -> bool {
        self.path != "/" && is_absent(&self.seen, self.look)
    }
}

/// What the step of `record` looked at; `None` if that was not traced, or is no longer there.
pub async fn reads(cache: &Cache, record: &Record) -> Option<Vec<ReadPath>> {
    if let Some(read) = record.preimage.reads() {
        let mut reads = read_set(cache, read).await?;
        for (read, by) in reads.iter_mut().zip(readers(cache, record).await.0) {
            read.by = by;
        }
        return Some(reads);
    }
    // The same run has a second record, under what it saw.
    let runs = traced_runs(cache, &record.preimage).await;
    let same = runs.iter().find(|run| run.layers == record.layers && run.created == record.created)?;
    Box::pin(reads(cache, same)).await
}

/// Which programs read what, under the traced key of `record`; nothing if that is not known.
pub async fn readers(cache: &Cache, record: &Record) -> Readers {
    let Some(digest) = record.readers else { return Readers::default() };
    let bytes = cache.read_blob(&digest, READERS_BYTES_MAX).await;
    bytes.and_then(|bytes| Readers::decode(&bytes).ok()).unwrap_or_default()
}

/// The records that a step with the definition of `preimage` has under what it saw, the latest first.
pub(super) async fn traced_runs(cache: &Cache, preimage: &Preimage) -> Vec<Record> {
    let definition = preimage.definition();
    let bundle = cache.bundle(&BundleName::shapes(&definition)).await.unwrap_or_default();
    let records = bundle.steps.into_iter().map(|step| step.record);
    records.filter(|record| record.preimage.definition() == definition).collect()
}

pub(super) async fn read_set(cache: &Cache, (shape, values): (Digest, Digest)) -> Option<Vec<ReadPath>> {
    let shape = Shape::decode(&cache.read_blob(&shape, SHAPE_BYTES_MAX).await?).ok()?;
    let values = Values::decode(&cache.read_blob(&values, VALUES_BYTES_MAX).await?)?;
    let path = |((tree, path, look), seen): ((usize, &[u8], Look), &Seen)| {
        let path = if path.is_empty() { "/".to_owned() } else { format!("/{}", display_path(path)) };
        ReadPath { tree, path, look, seen: *seen, by: None }
    };
    Some(shape.paths().zip(&values.0).map(path).collect())
}
