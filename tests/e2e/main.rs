//! Drives the real program, as a user would. One binary for all of it: linking is what costs time.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

mod badinput;
mod cache_mounts;
mod caching;
mod checks;
mod cli;
mod crash;
mod dockerfiles;
mod docs;
mod exec;
mod explain;
mod faults;
mod foreign;
mod hosts;
mod identity;
mod lazy;
mod leases;
mod load;
mod logins;
mod mirror;
mod mounts;
mod objects;
mod observed;
mod platforms;
mod proof;
mod random;
mod read_sets;
mod registry;
mod secrets;
mod self_check;
mod serve;
mod serve_registry;
mod server_image;
mod slow_link;
mod soak;
mod sources;
mod ssh;
mod steps;
mod strace;
mod terminal;
mod traced;
mod traced_faults;
mod transports;
mod unkeyed;
mod users;
mod verify_hits;
