//! The build engine: plan → solve → export.

mod options;

pub use options::{
    BuildRequest, ContextSource, Destination, DockerfileText, LayerCompression, NamedContext, Output, Secret,
};
