//! Crossdock builds OCI images from ordinary Dockerfiles and keeps every step's result as a layer in a
//! content-addressed cache that all runners share.
//!
//! The folders form floors, and a floor uses only what lies below it (`tests/architecture.rs` checks it):
//!
//! | floor | modules |
//! |---|---|
//! | front ends | [`cli`], [`server`], `fuzz` (tests only) |
//! | engine | [`build`], [`explain`] |
//! | workers | [`exec`], [`trace`], [`context`], [`registry`] |
//! | stores | [`store`] |
//! | formats | [`dockerfile`], [`tree`], [`layer`], [`image`], [`record`], [`snapshot`] |
//! | words | [`bytes`], [`digest`], [`encoding`], [`event`], [`hint`], [`platform`], [`reference`] |

pub mod build;
pub mod bytes;
pub mod cli;
pub mod context;
pub mod digest;
pub mod dockerfile;
pub mod encoding;
pub mod event;
pub mod exec;
pub mod explain;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod hint;
pub mod image;
pub mod layer;
pub mod platform;
pub mod record;
pub mod reference;
pub mod registry;
pub mod server;
pub mod snapshot;
pub mod store;
pub mod trace;
pub mod tree;
