//! Records: the stored outcomes of steps, with the preimages of their keys.

mod format;
mod preimage;
mod types;

pub use format::{BUNDLE_BYTES_MAX, RECORD_BYTES_MAX};
pub use preimage::{Field, Key, Preimage, Value};
pub use types::{Bundle, BundleName, BundleStep, Record, Scope, ScopeError};
