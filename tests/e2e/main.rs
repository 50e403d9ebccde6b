//! Drives the real program, as a user would. One binary for all of it: linking is what costs time.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

mod badinput;
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
mod load;
mod logins;
mod mirror;
mod mounts;
mod objects;
mod platforms;
mod proof;
mod random;
mod registry;
mod secrets;
mod self_check;
mod serve;
mod serve_registry;
mod slow_link;
mod sources;
mod ssh;
mod steps;
mod terminal;
mod traced;
mod transports;
mod users;
