//! The build engine: plan → solve → export.
//!
//! Read it from the top: [`Engine::build`] parses the Dockerfile, resolves base images (`inputs`), plans (`plan`), solves
//! (`solve`: for each step its keys, a look at the cache, else the work, which is in `run` and `copy`), and exports
//! (`export`).

mod caches;
mod chain;
mod checks;
mod contents;
mod contexts;
pub(crate) mod copy;
mod engine;
mod error;
mod export;
mod foreign;
mod framed;
mod inputs;
mod keys;
mod layers;
mod log;
mod mask;
mod materialise;
mod mounts;
mod options;
pub(crate) mod plan;
mod remembered;
mod remotes;
mod room;
mod run;
mod served;
mod shown;
mod solve;
mod ssh;
mod stop;
mod traced;
mod verify;
mod why;

pub use checks::{Checked, Target, targets};
pub use engine::{BuildOutcome, Engine, Ownership, StepReport};
pub use error::{BuildError, StepFailure};
pub use mounts::{CacheMount, CacheMountContent, CacheMountOptions, CacheMountStores};
pub use options::{
    Annotation, AnnotationPlace, BuildRequest, ContextArchive, ContextSource, Destination, DockerfileText,
    ImageFormat, LayerCompression, NamedContext, Output, RemoteDockerfile, Secret, SshAgent, SshKey,
    SshSource,
};
pub use plan::{Outline, OutlineArg, OutlineMount};
pub use verify::VerifyHits;
