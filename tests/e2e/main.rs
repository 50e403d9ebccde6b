//! Drives the real program, as a user would. One binary for all of it: linking is what costs time.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod cli;
