//! Records: the stored outcomes of steps, with the preimages of their keys.

mod format;
mod preimage;
mod shape;
mod types;

pub use format::{BUNDLE_BYTES_MAX, RECORD_BYTES_MAX};
pub use preimage::{Field, Key, Preimage, Value};
pub use shape::{
    Looks, READERS_BYTES_MAX, Readers, SHAPE_BYTES_MAX, Shape, VALUES_BYTES_MAX, Values, is_absent,
};
pub use types::{Bundle, BundleName, BundleStep, Record, Scope, ScopeError};
