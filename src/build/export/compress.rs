//! Layers in another compression than the one that they were made with.

use std::io::{Read, Write};
use std::path::Path;

use super::super::chain::ChainLayer;
use super::super::engine::Engine;
use super::super::error::BuildError;
use super::super::layers::Layers;
use super::super::options::LayerCompression;
use super::super::stop::UntilCancelled;
use crate::digest::{Digest, Hashing};
use crate::exec::CancelToken;
use crate::layer::{self, LayerDescriptor, MediaType};
use crate::record::Preimage;

/// A layer in another compression. Made once: the result is a record like any other.
pub(super) async fn converted(
    engine: &Engine,
    layers: &Layers,
    layer: &ChainLayer,
    compression: LayerCompression,
) -> Result<LayerDescriptor, BuildError> {
    let wanted = match compression {
        LayerCompression::Zstd => MediaType::Zstd,
        LayerCompression::Gzip => MediaType::Gzip,
        LayerCompression::Uncompressed => MediaType::Tar,
    };
    if layer.descriptor.media_type == wanted {
        return Ok(layer.descriptor);
    }
    let mut preimage = Preimage::default();
    preimage.add("kind", "convert").add("layer", layer.descriptor.digest).add("media-type", wanted.as_str());
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
                recompress(&source, &target, &pieces, wanted, &cancel).map_err(io)?;
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

/// Writes the blob `source` to `target` in another compression, in pieces as the frames are. Returns the digest of the tar,
/// and digest and size of the new blob.
fn recompress(
    source: &Path,
    target: &Path,
    pieces: &[u64],
    wanted: MediaType,
    cancel: &CancelToken,
) -> std::io::Result<(Digest, Digest, u64)> {
    let source = UntilCancelled::new(fs_err::File::open(source)?, cancel);
    let (_, reader) = layer::decompress(source)?;
    let mut raw = Hashing::new(reader);
    let mut out = Hashing::new(std::io::BufWriter::new(fs_err::File::create(target)?));
    for piece in pieces.iter().copied().chain([u64::MAX]) {
        let mut part = (&mut raw).take(piece);
        match wanted {
            MediaType::Tar => {
                std::io::copy(&mut part, &mut out)?;
            }
            MediaType::Gzip => {
                let mut member = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
                if std::io::copy(&mut part, &mut member)? > 0 {
                    out.write_all(&member.finish()?)?;
                }
            }
            MediaType::Zstd => {
                let mut frame = zstd::Encoder::new(Vec::new(), 3)?;
                if std::io::copy(&mut part, &mut frame)? > 0 {
                    out.write_all(&frame.finish()?)?;
                }
            }
        }
    }
    out.flush()?;
    let (_, diff_id, _) = raw.finish();
    let (_, digest, size) = out.finish();
    Ok((diff_id, digest, size))
}
