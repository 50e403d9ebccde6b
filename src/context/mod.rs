//! What a build may read besides images: the build context, and which of its files count.
//!
//! [`ignore`] is `.dockerignore`; [`pattern`] are the two pattern languages of Dockerfiles, the one of COPY sources and
//! the one of `.dockerignore`, `--exclude` and `--parents`.

pub mod ignore;
pub mod pattern;
