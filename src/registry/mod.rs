//! Where images come from and go to: registries, OCI layouts, archives.
//!
//! [`ImageSource`] is anything that an image can be read from. An image is written from an [`ImageBundle`], with a
//! [`BlobProvider`] for its layers.

mod credentials;
mod destination;
mod error;
mod redact;
mod source;

pub use credentials::{
    Credential, CredentialError, Credentials, DockerConfigCredentials, NoCredentials, Secret,
};
pub use destination::{BlobProvider, BoxError, DestinationError, ImageBundle, PushLayer, PushReport};
pub use error::{ErrorDetail, RegistryError, RegistryErrorKind};
pub use source::{ImageSource, Progress, ResolvedImage, SourceError};
