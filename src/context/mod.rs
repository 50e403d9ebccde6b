//! What a build may read besides images: the build context, which of its files count, and what is fetched from elsewhere.
//!
//! [`scan`] turns a directory into entries with digests, [`hashes`] remembers these from run to run, [`open`] opens
//! nothing but files. [`ignore`] is `.dockerignore`; [`pattern`] are the two pattern languages of Dockerfiles, the one of
//! COPY sources and the one of `.dockerignore`, `--exclude` and `--parents`. [`remote`] tells URLs and git repositories
//! ([`git_ref`]) from paths; [`http`] and [`git`] fetch them; [`archive`] tells whether a file holds a context.

pub mod archive;
pub mod git;
pub mod git_ref;
pub mod hashes;
pub mod http;
pub mod ignore;
pub mod open;
pub mod pattern;
pub mod remote;
pub mod scan;
