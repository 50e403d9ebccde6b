//! Records: the stored outcomes of steps, with the preimages of their keys.

mod preimage;
mod types;

pub use preimage::{Field, Key, Preimage, Value};
pub use types::{Bundle, BundleName, BundleStep, Record, Scope, ScopeError};
