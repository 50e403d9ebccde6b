//! Runs one command in a root filesystem, cut off from the host.
//!
//! [`NativeExecutor`] needs no installed runtime and no daemon: it starts the program itself again as a
//! single-threaded helper, because setting up namespaces in a process that has threads is not safe.
//!
//! This folder knows processes, mounts and users, and nothing of Dockerfiles, trees or the step graph.

mod cancel;
mod error;
mod step;
mod user;

pub use cancel::CancelToken;
pub use error::ExecError;
pub use step::{ExecOutcome, ExecStep, Executor, Exit, Network, Security, StepMount, Ulimit};
pub use user::{ResolvedUser, UserError, resolve_chown, resolve_user};
