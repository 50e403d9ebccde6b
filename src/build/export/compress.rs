//! Layers in another compression than the one that they were made with.

use std::io::{Read, Write};
use std::path::Path;

use super::super::chain::ChainLayer;
use super::super::engine::Engine;
use super::super::error::BuildError;
use super::super::layers::Layers;
use super::super::options::{ImageFormat, LayerCompression};
use super::super::stop::UntilCancelled;
use crate::digest::{Digest, Hashing};
use crate::exec::CancelToken;
use crate::layer::{self, LayerDescriptor, MediaType};
use crate::record::Preimage;

/// Frames are smaller; other people's layers have pieces of any size, or none.
const PIECE_MAX: u64 = 4 << 20;

/// What layers are compressed with where nothing is said.
const ZSTD_LEVEL: u8 = 3;

/// Likewise.
const GZIP_LEVEL: u8 = 6;

/// A layer in another compression. Made once: the result is a record like any other.
pub(super) async fn converted(
    engine: &Engine,
    layers: &Layers,
    layer: &ChainLayer,
    format: ImageFormat,
) -> Result<LayerDescriptor, BuildError> {
    let wanted = match format.compression {
        LayerCompression::Zstd => MediaType::Zstd,
        LayerCompression::Gzip => MediaType::Gzip,
        LayerCompression::Uncompressed => MediaType::Tar,
    };
    let level = format.level.filter(|_| wanted != MediaType::Tar);
    if layer.descriptor.media_type == wanted && level.is_none() {
        return Ok(layer.descriptor);
    }
    let mut preimage = Preimage::default();
    preimage.add("kind", "convert").add("layer", layer.descriptor.digest).add("media-type", wanted.as_str());
    if let Some(level) = level {
        preimage.add("level", u64::from(level));
    }
    if let Some(hit) = engine.cache.lookup(&preimage.key()).await
        && let [descriptor] = hit.record.layers[..]
    {
        return Ok(descriptor);
    }
    let started = std::time::Instant::now();
    let created = engine.now();
    let source = layers.blob(engine, layer).await?;
    let toc = layers.toc(engine, &layer.descriptor).await?;
    let local = engine.cache.local().clone();
    let (diff_id, cancel) = (layer.descriptor.diff_id, engine.cancel.clone());
    let (digest, size) = engine
        .blocking(move || {
            let io = |error: std::io::Error| BuildError::cache("converting a layer", error);
            let store = |error| BuildError::cache("converting a layer", error);
            let directory = local.tmp_dir().map_err(store)?;
            let target = directory.path().join("layer");
            let pieces: Vec<u64> = toc.frames.iter().map(|frame| frame.raw_size).collect();
            let (actual, digest, size) =
                recompress(&source, &target, &pieces, (wanted, level), &cancel).map_err(io)?;
            if actual != diff_id {
                return Err(BuildError::cache(
                    "converting a layer",
                    format!("it has diff ID {actual}, not {diff_id}"),
                ));
            }
            local.adopt_blob(&target, &digest).map_err(store)?;
            Ok((digest, size))
        })
        .await?;
    let descriptor = LayerDescriptor { digest, size, media_type: wanted, ..layer.descriptor };
    let record = engine.record(preimage, vec![descriptor], diff_id, created, started);
    let published = engine.cache.publish(record, false).await;
    published.map_err(|error| BuildError::cache("storing a converted layer", error))?;
    Ok(descriptor)
}

/// Writes the blob `source` to `target` in another compression, in pieces as the frames are, as far as they fit into memory.
/// Returns the digest of the tar, and digest and size of the new blob.
fn recompress(
    source: &Path,
    target: &Path,
    pieces: &[u64],
    (wanted, level): (MediaType, Option<u8>),
    cancel: &CancelToken,
) -> std::io::Result<(Digest, Digest, u64)> {
    let source = UntilCancelled::new(fs_err::File::open(source)?, cancel);
    let (_, reader) = layer::decompress(source)?;
    let mut raw = Hashing::new(reader);
    let mut out = Hashing::new(std::io::BufWriter::new(fs_err::File::create(target)?));
    let parts = pieces.iter().flat_map(|piece| {
        let whole = std::iter::repeat_n(PIECE_MAX, usize::try_from(piece / PIECE_MAX).unwrap_or(usize::MAX));
        whole.chain([piece % PIECE_MAX])
    });
    for (piece, is_rest) in parts.map(|piece| (piece, false)).chain(std::iter::repeat((PIECE_MAX, true))) {
        let mut part = (&mut raw).take(piece);
        let copied = match wanted {
            MediaType::Tar => std::io::copy(&mut part, &mut out)?,
            MediaType::Gzip => {
                let level = flate2::Compression::new(level.unwrap_or(GZIP_LEVEL).into());
                let mut member = flate2::write::GzEncoder::new(Vec::new(), level);
                let copied = std::io::copy(&mut part, &mut member)?;
                if copied > 0 {
                    out.write_all(&member.finish()?)?;
                }
                copied
            }
            MediaType::Zstd => {
                let mut frame = zstd::Encoder::new(Vec::new(), level.unwrap_or(ZSTD_LEVEL).into())?;
                let copied = std::io::copy(&mut part, &mut frame)?;
                if copied > 0 {
                    out.write_all(&frame.finish()?)?;
                }
                copied
            }
        };
        if is_rest && copied == 0 {
            break;
        }
    }
    out.flush()?;
    let (_, diff_id, _) = raw.finish();
    let (_, digest, size) = out.finish();
    Ok((diff_id, digest, size))
}
