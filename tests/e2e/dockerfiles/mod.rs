//! What each instruction does, seen from outside: small Dockerfiles, and the image that has to come out.
//!
//! What a Dockerfile means is what BuildKit does with it. Every expectation here holds for BuildKit's
//! `dockerfile.v0` frontend too.

mod config;
mod copy;
mod errors;
mod files;
mod mounts;
mod outputs;
mod run;
