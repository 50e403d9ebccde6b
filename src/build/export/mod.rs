//! The result, to where the user wants it: registries, layouts, archives, engines, files.
//!
//! `image` makes configuration and manifest, `compress` layers in another compression, `files` writes files without an
//! image. Here is what belongs to all platforms of a build together.

mod compress;
mod files;
mod image;

use std::collections::BTreeMap;
use std::sync::Arc;

pub(super) use self::files::write_to;
use self::image::{Image, Provider};
use super::chain::Chain;
use super::engine::Engine;
use super::error::BuildError;
use super::inputs::Inputs;
use super::layers::Layers;
use super::options::{AnnotationPlace, BuildRequest, Destination, ImageFormat, LayerCompression, Output};
use super::plan::Plan;
use crate::digest::Digest;
use crate::event::Event;
use crate::hint::Hint as _;
use crate::image::{Descriptor, Index, media_types};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::registry::{self, DestinationError, ImageSet};
use crate::store::{BlobSource, Store as _};

/// What was built for one platform.
pub(crate) struct Built<'b> {
    /// The platform, if one was asked for.
    pub(crate) platform: Option<&'b Platform>,
    pub(crate) plan: &'b Plan,
    pub(crate) inputs: &'b Inputs,
    pub(crate) chain: Arc<Chain>,
}

impl Built<'_> {
    /// The directory for the files of this platform, where there are several: `linux_arm64`.
    fn directory(&self) -> String {
        self.platform.cloned().unwrap_or_else(Platform::host).to_string().replace('/', "_")
    }
}

/// What an export did.
#[derive(Debug, Default)]
pub(crate) struct Exported {
    /// The manifest or index, if an image was made.
    pub(crate) manifest: Option<Descriptor>,
    /// The digest of the configuration, if it is one image.
    pub(crate) config: Option<Digest>,
    /// Bytes sent to registries.
    pub(crate) uploaded: u64,
}

/// Refuses what no output can have, before anything is built.
pub(crate) fn check(request: &BuildRequest) -> Result<(), BuildError> {
    let refuse = |what: &str, reason: &str, hint: &str| {
        let (destination, source) = (what.to_owned(), reason.to_owned().into());
        Err(BuildError::Export { destination, source, hint: Some(hint.to_owned()) })
    };
    if request.multi_platform {
        for output in &request.outputs {
            let what = match output {
                Output::Docker { destination } => describe(destination),
                Output::Load { engine } => engine.to_string(),
                _ => continue,
            };
            let reason = "a Docker archive holds images, not an index of several platforms";
            return refuse(&what, reason, "push it, write `type=oci`, or build one platform");
        }
    } else if request.annotations.iter().any(|annotation| annotation.place.is_of_index()) {
        let reason = "an image for one platform has no index that could be annotated";
        return refuse("the image", reason, "`--annotation manifest:…`, or BUILDKIT_MULTI_PLATFORM=1");
    }
    Ok(())
}

/// Exports the target's results to everything that the request names.
pub(crate) async fn export(
    engine: &Engine,
    request: &BuildRequest,
    layers: &Layers,
    built: &[Built<'_>],
) -> Result<Exported, BuildError> {
    let mut exported = Exported::default();
    let is_files = |output: &Output| matches!(output, Output::Tar { .. } | Output::Local { .. });
    if request.outputs.is_empty() || !request.outputs.iter().all(is_files) {
        let images = Images::assemble(engine, request, layers, built, request.format).await?;
        exported.manifest = Some(Descriptor { platform: None, ..images.set.descriptor() });
        exported.config = images.set.single().map(|image| image.config_descriptor.digest);
        images.keep(engine).await?;
        for output in &request.outputs {
            match output {
                Output::Image { push, names } => {
                    let names = if names.is_empty() { &request.tags } else { names };
                    if *push {
                        exported.uploaded += images.push(engine, layers, names).await?;
                    }
                }
                Output::Oci { destination, tar } => {
                    images.oci(engine, layers, &request.tags, destination, *tar).await?;
                }
                Output::Docker { destination } => {
                    // Every Docker reads plain layers; base layers stay as they are, which every Docker could pull.
                    let compression = match request.format.compression {
                        LayerCompression::Gzip => LayerCompression::Gzip,
                        _ => LayerCompression::Uncompressed,
                    };
                    let format = ImageFormat { compression, ..request.format };
                    let images = Images::assemble(engine, request, layers, built, format).await?;
                    images.docker(engine, layers, &request.tags, destination).await?;
                }
                Output::Load { engine: target } => {
                    let plain =
                        ImageFormat { compression: LayerCompression::Uncompressed, ..ImageFormat::default() };
                    let images = Images::assemble(engine, request, layers, built, plain).await?;
                    images.load(engine, layers, &request.tags, target).await?;
                }
                Output::Tar { .. } | Output::Local { .. } => {}
            }
        }
    }
    let is_split = request.multi_platform;
    for output in &request.outputs {
        match output {
            Output::Tar { destination } => files::tar(engine, layers, built, is_split, destination).await?,
            Output::Local { destination, split } => {
                let is_split = split.unwrap_or(is_split);
                if !is_split {
                    files::check_distinct(engine, layers, built, destination).await?;
                }
                for built in built {
                    let directory =
                        if is_split { destination.join(built.directory()) } else { destination.clone() };
                    files::local(engine, layers, &built.chain, &directory).await?;
                }
            }
            _ => {}
        }
    }
    Ok(exported)
}

/// The annotations for `place` that are for `platform` or for all.
fn annotations(
    request: &BuildRequest,
    place: AnnotationPlace,
    platform: Option<&Platform>,
) -> BTreeMap<String, String> {
    let host = Platform::host();
    let platform = platform.unwrap_or(&host);
    let mut wanted = BTreeMap::new();
    // Those for one platform win, wherever they stand.
    for is_general in [true, false] {
        for annotation in request.annotations.iter().filter(|annotation| annotation.place == place) {
            let applies = annotation.platform.as_ref().is_none_or(|only| only == platform);
            if applies && annotation.platform.is_none() == is_general {
                wanted.insert(annotation.name.clone(), annotation.value.clone());
            }
        }
    }
    wanted
}

/// The images of all platforms, ready to be written.
struct Images {
    set: ImageSet,
    images: Vec<Image>,
}

impl Images {
    async fn assemble(
        engine: &Engine,
        request: &BuildRequest,
        layers: &Layers,
        built: &[Built<'_>],
        format: ImageFormat,
    ) -> Result<Self, BuildError> {
        let mut images = Vec::with_capacity(built.len());
        for built in built {
            images.push(Image::assemble(engine, request, layers, built, format).await?);
        }
        let mut bundles = images.iter().map(|image| image.bundle.clone());
        let set = match (request.multi_platform, bundles.next()) {
            (false, Some(image)) => {
                let mut set = ImageSet::one(image);
                let platform = built.first().and_then(|built| built.platform);
                set.annotations = annotations(request, AnnotationPlace::ManifestDescriptor, platform);
                set
            }
            (_, first) => {
                let bundles: Vec<_> = first.into_iter().chain(bundles).collect();
                let manifests = bundles.iter().zip(built).map(|(bundle, built)| {
                    let place = AnnotationPlace::ManifestDescriptor;
                    let annotations = annotations(request, place, built.platform);
                    Descriptor { annotations, ..bundle.descriptor() }
                });
                let mut index = Index::new(manifests.collect());
                if format.docker_media_types {
                    index.media_type = Some(media_types::DOCKER_INDEX.to_owned());
                }
                index.annotations = annotations(request, AnnotationPlace::Index, None);
                let mut set = ImageSet::indexed(bundles, &index);
                set.annotations = annotations(request, AnnotationPlace::IndexDescriptor, None);
                set
            }
        };
        Ok(Self { set, images })
    }

    /// Keeps manifests and configurations in the local store, where other commands find them.
    async fn keep(&self, engine: &Engine) -> Result<(), BuildError> {
        let documents = self.set.images().iter().flat_map(|image| [&image.config, &image.manifest]);
        for bytes in documents.chain([self.set.document()]) {
            let stored =
                engine.cache.local().write_blob(&Digest::of(bytes), BlobSource::Bytes(bytes.clone())).await;
            stored.map_err(|error| BuildError::cache("storing the image", error))?;
        }
        Ok(())
    }

    fn provider<'p>(&'p self, engine: &'p Engine, layers: &'p Layers) -> Provider<'p> {
        Provider { engine, layers, images: &self.images }
    }

    async fn push(&self, engine: &Engine, layers: &Layers, names: &[Reference]) -> Result<u64, BuildError> {
        let provider = self.provider(engine, layers);
        let mut uploaded = 0;
        for name in names {
            let report = registry::push(&engine.registry, name, &self.set, &provider, &|_| {}).await;
            uploaded += report.map_err(|error| failed(name.familiar(), error))?.uploaded_bytes;
        }
        Ok(uploaded)
    }

    async fn oci(
        &self,
        engine: &Engine,
        layers: &Layers,
        names: &[Reference],
        destination: &Destination,
        tar: bool,
    ) -> Result<(), BuildError> {
        let provider = self.provider(engine, layers);
        let result = match destination {
            Destination::Path(path) if !tar => {
                registry::export_oci_layout(path, &self.set, names, &provider).await
            }
            _ => registry::export_oci_archive(output(destination), &self.set, names, &provider).await,
        };
        result.map_err(|error| failed(describe(destination), error))
    }

    async fn docker(
        &self,
        engine: &Engine,
        layers: &Layers,
        names: &[Reference],
        destination: &Destination,
    ) -> Result<(), BuildError> {
        let provider = self.provider(engine, layers);
        let result = registry::export_docker_archive(output(destination), &self.set, names, &provider).await;
        result.map_err(|error| failed(describe(destination), error))
    }

    async fn load(
        &self,
        engine: &Engine,
        layers: &Layers,
        names: &[Reference],
        target: &registry::ImageEngine,
    ) -> Result<(), BuildError> {
        let directory = engine.cache.local().tmp_dir();
        let directory =
            directory.map_err(|error| BuildError::cache("making a temporary directory", error))?;
        let archive = directory.path().join("image.tar");
        self.docker(engine, layers, names, &Destination::Path(archive.clone())).await?;
        registry::load(&archive, target).await.map_err(|error| {
            let hint = Some("`-o type=docker,dest=image.tar` writes the image to a file".to_owned());
            BuildError::Export { destination: target.to_string(), source: Box::new(error), hint }
        })?;
        let names = names.iter().map(Reference::familiar).collect();
        engine.events.emit(Event::Loaded { engine: target.to_string(), names });
        Ok(())
    }
}

fn failed(destination: String, error: DestinationError) -> BuildError {
    // A layer that is gone is no failure of the destination: the build is tried again without its record.
    let error = match error {
        DestinationError::Blob { digest, source } => match source.downcast::<BuildError>() {
            Ok(inner) => return *inner,
            Err(source) => DestinationError::Blob { digest, source },
        },
        error => error,
    };
    let hint = error.hint();
    BuildError::Export { destination, source: Box::new(error), hint }
}

fn output(destination: &Destination) -> registry::Output {
    match destination {
        Destination::Path(path) => registry::Output::File(path.clone()),
        Destination::Stdout => registry::Output::Stream(Box::new(std::io::stdout())),
    }
}

pub(super) fn describe(destination: &Destination) -> String {
    match destination {
        Destination::Path(path) => format!("`{}`", path.display()),
        Destination::Stdout => "standard output".to_owned(),
    }
}
