//! Records and bundles as the stores keep them.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::str::FromStr;

use super::preimage::{Key, Preimage};
use crate::digest::Digest;
use crate::layer::{LayerDescriptor, Timestamp};

/// The trust domain that a record belongs to: a branch, a pull request, a team.
///
/// Slash-separated components of letters, digits, `.`, `_` and `-`; at most 255 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scope(String);

/// Why a text is not a [`Scope`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a scope (letters, digits, `.`, `_`, `-`, with `/` between components)")]
pub struct ScopeError(String);

impl Scope {
    /// The scope's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Scope {
    /// `default`, the scope of a store that has no notion of trust domains.
    fn default() -> Self {
        Self("default".to_owned())
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Scope {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, ScopeError> {
        let component = |part: &str| {
            !part.is_empty()
                && part != "."
                && part != ".."
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        if text.len() <= 255 && text.split('/').all(component) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ScopeError(text.to_owned()))
        }
    }
}

/// The stored outcome of a step (or of indexing a base image's layer, which is work of the same shape).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The trust domain it was written in.
    pub scope: Scope,
    /// What its key is the digest of.
    pub preimage: Preimage,
    /// The layers that the step adds to the tree that it starts from, lowest first. Mostly one; none where the
    /// step changed nothing.
    pub layers: Vec<LayerDescriptor>,
    /// Digest of the whole tree after the step.
    pub tree: Digest,
    /// When the step ran.
    pub created: Timestamp,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
    /// Which program made it: `crossdock 0.1.0`.
    pub builder: String,
    /// The blob with the step's log, where one was kept.
    pub log: Option<Digest>,
    /// The blob that says which programs read what, under a traced key: [`Readers`](super::Readers).
    pub readers: Option<Digest>,
    /// The layers belong to an image that is somewhere else, which has their blobs: of them, only the tables of
    /// contents are in the store (the index of a base image).
    pub foreign: bool,
    /// Other blobs that it is of no use without: those of a snapshot.
    pub parts: Vec<Digest>,
}

impl Record {
    /// The key that this record answers.
    pub fn key(&self) -> Key {
        self.preimage.key()
    }

    /// The blobs that must be there for the record to be of use: every layer and its TOC; for foreign layers only
    /// the TOC; for a traced key what was looked at and seen; every part.
    pub fn blobs(&self) -> impl Iterator<Item = Digest> + '_ {
        let layers = self
            .layers
            .iter()
            .flat_map(|layer| [(!self.foreign).then_some(layer.digest), Some(layer.toc)])
            .flatten();
        let reads = self.preimage.reads().into_iter().flat_map(|(shape, values)| [shape, values]);
        layers.chain(reads).chain(self.parts.iter().copied())
    }

    /// Blobs that only tell more about it: it is of use without them.
    pub fn extras(&self) -> impl Iterator<Item = Digest> + use<> {
        self.log.into_iter().chain(self.readers)
    }

    /// The layers whose blobs must be in the store.
    pub fn own_layers(&self) -> &[LayerDescriptor] {
        if self.foreign { &[] } else { &self.layers }
    }
}

/// Names a [`Bundle`]: the digest of what identifies a build from run to run (Dockerfile, target, platform).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BundleName(pub Digest);

/// One step of a [`Bundle`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleStep {
    /// The step's place in the build, stable under edits elsewhere: `build:RUN:3`.
    pub slot: String,
    /// Its record.
    pub record: Record,
}

/// The records of the last successful build of the same Dockerfile, target, platform and scope, fetched in one
/// request. A hint, never the truth: it saves round trips and explains misses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bundle {
    /// The steps, in the order of the plan; then what the same places had in earlier builds, the latest first.
    pub steps: Vec<BundleStep>,
}

impl Bundle {
    /// Records that are kept for one place, each under its three keys: those who go back and forth between some states find
    /// all of them.
    const KEPT: usize = 12;

    /// By what builds find it that have its first step, and nothing else in common with this one that they know of.
    pub fn following(&self) -> Vec<BundleName> {
        let first = self.steps.iter().find(|step| !step.record.foreign).map(|step| &step.slot);
        let same = self.steps.iter().filter(|step| Some(&step.slot) == first);
        same.map(|step| BundleName::following(&step.record.key())).collect()
    }

    /// The same with what the places had in `before`.
    pub fn with_earlier(mut self, before: &Self) -> Self {
        let mut count = HashMap::new();
        let mut known: HashSet<Key> = HashSet::new();
        for step in &self.steps {
            known.insert(step.record.key());
            *count.entry(step.slot.clone()).or_insert(0) += 1;
        }
        for step in &before.steps {
            let Some(count) = count.get_mut(&step.slot) else { continue };
            if *count < Self::KEPT && known.insert(step.record.key()) {
                *count += 1;
                self.steps.push(step.clone());
            }
        }
        self
    }
}

impl BundleName {
    /// The bundle of the records that a step with this definition has under traced keys.
    pub fn shapes(definition: &Preimage) -> Self {
        let mut preimage = Preimage::default();
        preimage.add("kind", "shapes").add("definition", definition.key().0);
        Self(preimage.key().0)
    }

    /// The bundle with the snapshot of the cache mount that has this name, and nothing else.
    pub fn cache_mount(name: &Digest) -> Self {
        let mut preimage = Preimage::default();
        preimage.add("kind", "cache-mount").add("name", *name);
        Self(preimage.key().0)
    }

    /// The bundle that lists cache mounts.
    pub fn cache_mounts() -> Self {
        let mut preimage = Preimage::default();
        preimage.add("kind", "cache-mounts");
        Self(preimage.key().0)
    }

    /// The bundle of the last build that had this record: what other builds go on with that have it too.
    pub fn following(key: &Key) -> Self {
        let mut preimage = Preimage::default();
        preimage.add("kind", "following").add("record", key.0);
        Self(preimage.key().0)
    }
}
