//! Drives the real program, as a user would. One binary for all of it: linking is what costs time.

mod support;

mod self_check;
