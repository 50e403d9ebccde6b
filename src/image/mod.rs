//! Images: descriptors, manifests, indexes and configurations (OCI image specification 1.1, Docker image manifest
//! version 2 schema 2, Docker image specification 1.3).
//!
//! The types here are read from other people's JSON: they accept `null` for anything that may be absent, keep what
//! a derived image needs, and are written in the order in which Docker's tools write them.

mod config;
mod manifest;
mod serde_forms;
pub mod time;

pub use config::{ContainerConfig, Healthcheck, History, ImageConfig, RootFs};
pub use manifest::{
    Descriptor, Document, ImageError, Index, Manifest, NoSuchPlatform, is_attestation, media_types,
    select_platform,
};

/// The largest manifest or index that is read, in bytes. It is what the distribution specification asks every
/// registry to accept.
pub const MANIFEST_BYTES_MAX: u64 = 4 << 20;

/// The largest image configuration that is read, in bytes. Real ones have some kilobytes; the limit only keeps a
/// hostile registry from filling memory.
pub const CONFIG_BYTES_MAX: u64 = 8 << 20;
