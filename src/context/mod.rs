//! What a build may read besides images: the build context, and which of its files count.
//!
//! [`scan`] turns a directory into entries with digests, [`hashes`] remembers these from run to run, [`open`] opens
//! nothing but files. [`ignore`] is `.dockerignore`; [`pattern`] are the two pattern languages of Dockerfiles, the one of
//! COPY sources and the one of `.dockerignore`, `--exclude` and `--parents`.

pub mod hashes;
pub mod ignore;
pub mod open;
pub mod pattern;
pub mod scan;
