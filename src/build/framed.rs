//! Base images that can be read from anywhere: framed copies of their layers, and the contents of trees.
//!
//! Other people's layers are one compressed stream, which gives its last file only to whoever reads all of it. So when such a
//! layer is looked into for the first time, the same tar is written once more in frames of ours. The copy is a blob of the
//! store like a step's layer, and a record names it. The image goes on naming the original.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use futures_util::future::try_join_all;
use tokio::sync::OnceCell;

use super::chain::{Chain, ChainLayer};
use super::contents::{Contents, LayerFrames, Pool};
use super::engine::Engine;
use super::error::BuildError;
use super::inputs::ImageInput;
use super::layers::{Layers, lock, with_key};
use crate::digest::Digest;
use crate::image::Descriptor;
use crate::layer::LayerDescriptor;
use crate::record::{Key, Preimage, Record};

/// The frames that a build reads from.
#[derive(Debug)]
pub(crate) struct Framed {
    pool: Arc<Pool>,
    /// By the digests of the layers' own blobs.
    layers: Mutex<HashMap<Digest, Arc<OnceCell<Arc<LayerFrames>>>>>,
    /// Copies that are known, by the digests of the blobs that they are copies of.
    copies: Mutex<HashMap<Digest, LayerDescriptor>>,
    /// What was asked for about whole images, by their keys.
    images: Mutex<HashMap<Key, Arc<OnceCell<Option<Record>>>>>,
}

impl Framed {
    pub(crate) fn new(engine: &Engine) -> Result<Self, BuildError> {
        Ok(Self {
            pool: Pool::new(engine)?,
            layers: Mutex::default(),
            copies: Mutex::default(),
            images: Mutex::default(),
        })
    }
}

/// What the record of one layer's copy is found by.
fn layer_key(layer: &Digest) -> Preimage {
    let mut preimage = Preimage::default();
    preimage.add("kind", "layer-frames").add("layer", *layer);
    preimage
}

/// What the record of the copies of all layers of an image is found by.
fn image_key(layers: &[Descriptor]) -> Preimage {
    let mut preimage = Preimage::default();
    let layers: Vec<Digest> = layers.iter().map(|layer| layer.digest).collect();
    preimage.add("kind", "image-frames").add("layers", layers);
    preimage
}

/// The records that may promise the copy of a layer of this image.
pub(super) fn copy_keys(layer: &Descriptor, image: &ImageInput) -> Vec<Key> {
    vec![image_key(&image.image.manifest.layers).key(), layer_key(&layer.digest).key()]
}

impl Layers {
    /// The contents of a chain's tree. Base images of which there is no framed copy, because an earlier version of this
    /// program indexed them or their copy was evicted, are fetched and copied now.
    pub(crate) async fn contents(&self, engine: &Engine, chain: &Chain) -> Result<Arc<Contents>, BuildError> {
        let layers = chain.layers();
        let layers = try_join_all(layers.iter().map(|layer| self.frames(engine, layer))).await?;
        Ok(Arc::new(Contents::new(Arc::clone(&self.framed.pool), layers)))
    }

    /// The frames that the build reads.
    pub(crate) fn pool(&self) -> Arc<Pool> {
        Arc::clone(&self.framed.pool)
    }

    async fn frames(&self, engine: &Engine, layer: &ChainLayer) -> Result<Arc<LayerFrames>, BuildError> {
        let cell = Arc::clone(lock(&self.framed.layers).entry(layer.descriptor.digest).or_default());
        let frames = cell.get_or_try_init(|| async {
            let (blob, keys) = match self.foreign(&layer.descriptor.digest) {
                Some((foreign, image)) => {
                    let copy = match self.copy(engine, &foreign, &image).await {
                        Some(copy) => copy,
                        None => self.make_copy(engine, &foreign, &image).await?,
                    };
                    (copy, copy_keys(&foreign, &image))
                }
                None => (layer.descriptor, layer.key.into_iter().collect()),
            };
            let toc = self.toc(engine, &blob).await.map_err(|error| with_key(error, layer.key))?;
            Ok::<_, BuildError>(Arc::new(LayerFrames::new(&blob, toc, keys)))
        });
        frames.await.cloned()
    }

    /// The framed copy of a base image's layer, if there is one.
    pub(crate) async fn copy(
        &self,
        engine: &Engine,
        layer: &Descriptor,
        image: &ImageInput,
    ) -> Option<LayerDescriptor> {
        let known = || lock(&self.framed.copies).get(&layer.digest).copied();
        if let Some(copy) = known() {
            return Some(copy);
        }
        // One question for all layers of the image, as most often all of them are wanted.
        self.copies_of(engine, image).await;
        if let Some(copy) = known() {
            return Some(copy);
        }
        let hit = engine.cache.lookup_aside(&layer_key(&layer.digest).key()).await?;
        let [copy] = hit.record.layers[..] else { return None };
        lock(&self.framed.copies).insert(layer.digest, copy);
        Some(copy)
    }

    /// Asks for the record of the copies of an image's layers.
    async fn copies_of(&self, engine: &Engine, image: &ImageInput) {
        let layers = &image.image.manifest.layers;
        let key = image_key(layers).key();
        let cell = Arc::clone(lock(&self.framed.images).entry(key).or_default());
        let ask = || async {
            let record = engine.cache.lookup_aside(&key).await?.record;
            let mut copies = lock(&self.framed.copies);
            if record.layers.len() == layers.len() {
                for (layer, copy) in layers.iter().zip(&record.layers) {
                    copies.entry(layer.digest).or_insert(*copy);
                }
            }
            Some(record)
        };
        cell.get_or_init(ask).await;
    }

    /// Copies a layer that was indexed before.
    async fn make_copy(
        &self,
        engine: &Engine,
        layer: &Descriptor,
        image: &ImageInput,
    ) -> Result<LayerDescriptor, BuildError> {
        let indexed = self.index_blob(engine, layer, None, &self.downloaded).await;
        Ok(indexed.map_err(|error| image.name(error))?.copy)
    }

    /// Stores the record of a framed copy that is in the local store; `index` is that of the layer's index.
    pub(crate) async fn publish_copy(
        &self,
        engine: &Engine,
        layer: &Digest,
        copy: LayerDescriptor,
        index: &Record,
    ) -> Result<(), BuildError> {
        let record =
            Record { preimage: layer_key(layer), layers: vec![copy], foreign: false, ..index.clone() };
        let published = engine.cache.publish(record, true).await;
        published.map_err(|error| BuildError::cache("storing the frames of a base image", error))?;
        lock(&self.framed.copies).insert(*layer, copy);
        Ok(())
    }

    /// Stores one record for all layers of an image, if all their copies are known; `index` is the record of its index.
    pub(crate) async fn publish_copies(
        &self,
        engine: &Engine,
        image: &ImageInput,
        index: &Record,
    ) -> Result<(), BuildError> {
        let layers = &image.image.manifest.layers;
        let copies = {
            let known = lock(&self.framed.copies);
            layers.iter().map(|layer| known.get(&layer.digest).copied()).collect()
        };
        let copies: Option<Vec<LayerDescriptor>> = copies;
        let Some(copies) = copies.filter(|copies| !copies.is_empty()) else { return Ok(()) };
        let preimage = image_key(layers);
        let key = preimage.key();
        let record = Record { preimage, layers: copies, foreign: false, ..index.clone() };
        let published = engine.cache.publish(record, true).await;
        let record =
            published.map_err(|error| BuildError::cache("storing the frames of a base image", error))?;
        let cell = Arc::clone(lock(&self.framed.images).entry(key).or_default());
        let _ = cell.set(Some(record));
        Ok(())
    }

    /// The record of the copies of an image's layers, if this build met it.
    pub(crate) fn copies_record(&self, image: &ImageInput) -> Option<Record> {
        let key = image_key(&image.image.manifest.layers).key();
        lock(&self.framed.images).get(&key)?.get()?.clone()
    }
}
