//! Runs one command in a root filesystem, cut off from the host.
//!
//! [`NativeExecutor`] needs no installed runtime and no daemon: it starts the program itself again as a
//! single-threaded helper, because setting up namespaces in a process that has threads is not safe.
//!
//! ```text
//! executor (any thread) ──socket──▶ supervisor: namespaces, waits, kills ──▶ init: process 1 of the step,
//!         ◀── output through pipes, reports through the socket ──               becomes the command
//! ```
//!
//! All mounts are made in the step's own mount namespace, so nothing is left of them when its last process
//! ends; and the kernel ends all of them with process 1. That in turn dies with the supervisor, which ends
//! it when the executor hangs up, as it does even if it is killed.
//!
//! This folder knows processes, mounts and users, and nothing of Dockerfiles, trees or the step graph.

mod cancel;
pub mod doctor;
mod error;
pub mod foreign;
mod helper;
mod native;
mod protocol;
mod seccomp;
mod step;
mod sys;
mod user;
mod userns;
mod writable;

pub use cancel::CancelToken;
pub use error::ExecError;
pub use helper::{Once, helper_main};
pub use native::{NativeExecutor, OciRuntimeExecutor, Settings};
pub use step::{ExecOutcome, ExecStep, Executor, Exit, Network, Security, ServedTree, StepMount, Ulimit};
pub use user::{ResolvedUser, UserError, resolve_owner, resolve_user};
pub use userns::{Ids, UserNamespace, UserNamespaceError, enter_user_namespace};
pub use writable::WritableMount;
