//! Sending only what the other side lacks of a layer: the frames that an earlier layer has are named, not sent.

use std::collections::HashMap;
use std::ops::Range;

use super::cache::Inner;
use super::remote::Remote;
use super::{BlobSource, Store as _};
use crate::digest::Digest;
use crate::layer::{LayerDescriptor, Toc};
use crate::record::Record;

/// Below this a layer is sent whole: naming its parts would cost more round trips than its bytes take time.
const SIZE_MIN: u64 = 256 << 10;

/// A table of contents of more than this is not fetched to save an upload.
const TOC_BYTES_MAX: u64 = 16 << 20;

/// More parts than this are more work for the server than the bytes are worth.
const PARTS_MAX: usize = 20_000;

/// A part of a blob that is put together on the other side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Bytes of a blob that is there.
    There {
        /// Which.
        blob: Digest,
        /// Where in it.
        range: Range<u64>,
    },
    /// Bytes that have to be sent: where they are in the new blob.
    New(Range<u64>),
}

impl Part {
    /// Bytes.
    pub fn length(&self) -> u64 {
        let (Self::There { range, .. } | Self::New(range)) = self;
        range.end - range.start
    }
}

/// How `layer` is put together from the layers of `predecessor`; `None` if that does not pay.
pub(super) async fn plan(
    inner: &Inner,
    remote: &Remote,
    layer: &LayerDescriptor,
    predecessor: &Record,
) -> Option<Vec<Part>> {
    if !remote.store().composes() || layer.size < SIZE_MIN {
        return None;
    }
    let toc = Toc::decode(&inner.local.read_blob(&layer.toc, TOC_BYTES_MAX).await.ok()??).ok()?;
    let mut there = HashMap::new();
    for earlier in predecessor.own_layers() {
        let bytes = match inner.local.read_blob(&earlier.toc, TOC_BYTES_MAX).await {
            Ok(Some(bytes)) => bytes,
            _ => remote.send(remote.store().read_blob(&earlier.toc, TOC_BYTES_MAX)).await??,
        };
        let mut offset = 0;
        for frame in Toc::decode(&bytes).ok()?.frames {
            there.insert(frame.id, (earlier.digest, offset));
            offset += frame.size;
        }
    }
    let parts = parts(&toc, layer.size, &there);
    let known = parts.iter().filter(|part| matches!(part, Part::There { .. }));
    let saved: u64 = known.map(Part::length).sum();
    (parts.len() <= PARTS_MAX && saved >= layer.size / 8).then_some(parts)
}

/// The parts of a blob of `size` bytes, as few as can be. What is behind the frames is sent.
fn parts(toc: &Toc, size: u64, there: &HashMap<Digest, (Digest, u64)>) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    let mut at = 0;
    for frame in &toc.frames {
        let end = at + frame.size;
        match (there.get(&frame.id), parts.last_mut()) {
            (Some((blob, offset)), Some(Part::There { blob: last, range }))
                if blob == last && range.end == *offset =>
            {
                range.end += frame.size;
            }
            (Some((blob, offset)), _) => {
                parts.push(Part::There { blob: *blob, range: *offset..offset + frame.size });
            }
            (None, Some(Part::New(range))) => range.end = end,
            (None, _) => parts.push(Part::New(at..end)),
        }
        at = end;
    }
    match parts.last_mut() {
        _ if at >= size => {}
        Some(Part::New(range)) => range.end = size,
        _ => parts.push(Part::New(at..size)),
    }
    parts
}

/// Sends a blob of the local store; how many bytes of it went over the wire, or `None` if it could not be sent.
pub(super) async fn send(
    inner: &Inner,
    remote: &Remote,
    digest: &Digest,
    size: u64,
    parts: Option<&[Part]>,
) -> Option<u64> {
    let path = inner.local.blob_path(digest);
    if let Some(parts) = parts {
        let new = parts.iter().filter(|part| matches!(part, Part::New(_))).map(Part::length).sum();
        // Whatever it is that the server does not have any more: then the whole is sent.
        if let Ok(Ok(is_new)) =
            tokio::time::timeout(super::remote::SEND_LIMIT, remote.store().write_parts(digest, &path, parts))
                .await
        {
            return Some(if is_new { new } else { 0 });
        }
    }
    let sent = remote.send_blob(size, remote.store().write_blob(digest, BlobSource::File(path))).await?;
    Some(if sent { size } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::Frame;

    #[test]
    fn parts_are_as_few_as_can_be() {
        let frame = |text: &str, size| Frame { id: Digest::of(text), raw_size: size, size };
        let toc = |frames| Toc { frames, ..Toc::default() };
        let (old, other) = (Digest::of("old"), Digest::of("other"));
        let there = HashMap::from([
            (Digest::of("a"), (old, 0)),
            (Digest::of("b"), (old, 10)),
            (Digest::of("d"), (old, 60)),
            (Digest::of("e"), (other, 80)),
        ]);
        let known = |blob, range| Part::There { blob, range };
        let all = toc(vec![
            frame("a", 10),
            frame("b", 20),
            frame("x", 5),
            frame("y", 5),
            frame("d", 20),
            frame("e", 8),
        ]);
        assert_eq!(
            parts(&all, 70, &there),
            [
                known(old, 0..30),
                Part::New(30..40),
                known(old, 60..80),
                known(other, 80..88),
                Part::New(68..70)
            ]
        );
        assert_eq!(parts(&toc(vec![frame("x", 5)]), 9, &there), [Part::New(0..9)]);
        assert_eq!(parts(&toc(vec![frame("a", 10)]), 10, &there), [known(old, 0..10)]);
        assert_eq!(parts(&toc(Vec::new()), 3, &there), [Part::New(0..3)]);
    }
}
