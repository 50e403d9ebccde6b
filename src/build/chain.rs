//! What a step starts from and what it results in: an ordered list of layers, known by its tree digest.

use std::sync::{Arc, OnceLock};

use crate::digest::Digest;
use crate::layer::{LayerDescriptor, Timestamp};
use crate::record::Key;
use crate::tree::Tree;

/// A list of layers, lowest first. A linked list from the top, so that the many chains of a build share what they have
/// in common.
#[derive(Debug)]
pub(crate) struct Chain {
    parent: Option<Arc<Chain>>,
    layer: Option<ChainLayer>,
    /// Digest of the merged tree.
    pub(crate) digest: Digest,
    /// The merged tree, once something needed it.
    pub(crate) tree: OnceLock<Arc<Tree>>,
}

/// One layer of a chain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ChainLayer {
    pub(crate) descriptor: LayerDescriptor,
    /// When it was made; `None` for layers of base images, whose history knows.
    pub(crate) created: Option<Timestamp>,
    /// The record that it comes from.
    pub(crate) key: Option<Key>,
    /// It was copied, from the build's context or elsewhere, and not made by a command: its times say nothing.
    pub(crate) is_copied: bool,
}

impl Chain {
    /// No layers: an empty tree.
    pub(crate) fn empty() -> Arc<Self> {
        let tree = Tree::empty();
        let digest = tree.digest();
        Arc::new(Self { parent: None, layer: None, digest, tree: OnceLock::from(Arc::new(tree)) })
    }

    /// This chain with one layer on top; `digest` is that of the tree then.
    pub(crate) fn with(self: &Arc<Self>, layer: ChainLayer, digest: Digest) -> Arc<Self> {
        Arc::new(Self { parent: Some(Arc::clone(self)), layer: Some(layer), digest, tree: OnceLock::new() })
    }

    /// The layers, lowest first.
    pub(crate) fn layers(&self) -> Vec<ChainLayer> {
        let mut layers = Vec::new();
        let mut here = Some(self);
        while let Some(chain) = here {
            layers.extend(chain.layer);
            here = chain.parent.as_deref();
        }
        layers.reverse();
        layers
    }

    /// The chain below the top layer, and that layer.
    pub(crate) fn split(&self) -> Option<(&Arc<Self>, &ChainLayer)> {
        Some((self.parent.as_ref()?, self.layer.as_ref()?))
    }
}
