//! Where images come from and go to: registries, OCI layouts, archives.
//!
//! - [`Client`] speaks the OCI distribution protocol: tokens, retries, resumed transfers, verification.
//! - [`ImageSource`] is anything that an image can be read from; [`RegistrySource`], [`OciLayoutSource`] and
//!   [`ArchiveSource`] are what there is.
//! - [`push()`] and the `export_*` functions write images whose blobs a [`BlobProvider`] supplies.
//!
//! Everything that arrives is bounded in size and verified before it is used; everything that leaves a file behind
//! writes it under a temporary name and renames it.

mod archive;
mod auth;
mod certificates;
mod client;
mod copy;
mod credentials;
mod destination;
mod error;
mod export;
mod hosts;
mod layout;
mod load;
mod push;
pub(crate) mod redact;
mod source;
mod tar_index;
mod transfer;
mod transport;

pub use archive::ArchiveSource;
#[cfg(any(test, fuzzing))]
pub(crate) use auth::challenge;
pub use certificates::certificates;
pub use client::{Client, ClientOptions, FetchedManifest, ManifestHead, MountOutcome, UploadSession};
pub use credentials::{
    Credential, CredentialError, CredentialFile, CredentialSources, Credentials, NoCredentials, Secret,
};
pub use destination::{
    BlobProvider, BoxError, DestinationError, ImageBundle, ImageSet, PushLayer, PushReport,
};
pub use error::{ErrorDetail, RegistryError, RegistryErrorKind};
pub use export::{Output, export_docker_archive, export_oci_archive, export_oci_layout};
pub use hosts::{HostOptions, Hosts, Mirror, MirrorError};
pub use layout::{LayoutReference, LayoutReferenceError, OciLayoutSource};
pub use load::{ImageEngine, LoadError, load};
pub use push::push;
pub use source::{ImageSource, Progress, RegistrySource, ResolvedImage, SourceError};
pub use transport::RetryPolicy;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod protocol_tests;
