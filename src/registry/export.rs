//! Writing images to files: OCI layouts as directory and as tar, and Docker archives.
//!
//! The same image always gives the same bytes: entries are sorted, and nobody owns or dates them. Files appear under
//! their name when they are complete.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::Serialize;

use super::copy::blocking;
use super::destination::{BlobProvider, DestinationError, ImageSet};
use super::layout::{CONTAINERD_NAME, REF_NAME, blob_name};
use crate::digest::Verifying;
use crate::image::{Descriptor, Document, Index, MANIFEST_BYTES_MAX};
use crate::reference::Reference;
use crate::store::{BlobSource, replace_file};

const LAYOUT_MARKER: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// Where an archive goes.
pub enum Output {
    /// To a file, which is replaced when the archive is complete. To something at that path that is no regular
    /// file, such as a pipe, the archive is written directly.
    File(PathBuf),
    /// To a stream, such as standard output.
    Stream(Box<dyn Write + Send>),
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Stream(_) => f.write_str("Stream(…)"),
        }
    }
}

/// One file of a layout or archive.
enum Content {
    Directory,
    Bytes(Bytes),
    Blob(Box<Descriptor>, BlobSource),
}

type Files = BTreeMap<String, Content>;

/// Writes the image or index into the OCI layout directory `directory`, which is made if it is not there. Images that are in
/// the layout stay, except under the same names.
pub async fn export_oci_layout(
    directory: &Path,
    images: &ImageSet,
    names: &[Reference],
    blobs: &dyn BlobProvider,
) -> Result<(), DestinationError> {
    let location = directory.display().to_string();
    let mut files = collect(images, blobs).await?;
    files.insert("oci-layout".to_owned(), Content::Bytes(Bytes::from_static(LAYOUT_MARKER)));
    let entries = index_entries(images, names);
    let directory = directory.to_owned();
    let at = location.clone();
    blocking(move || {
        for (name, content) in files {
            write_layout_file(&directory, &name, content)?;
        }
        // Last, so that whatever the index names is there.
        let index = merge(&directory.join("index.json"), entries)
            .map_err(|reason| DestinationError::Unsupported { location: at, reason })?;
        replace_file(&directory.join("index.json"), |file| file.write_all(&index.to_bytes()))
            .map_err(|source| io_error(&directory, source))
    })
    .await
    .map_err(|source| io_error(Path::new(&location), source))?
}

/// Writes the image or index as a tar of an OCI layout.
pub async fn export_oci_archive(
    output: Output,
    images: &ImageSet,
    names: &[Reference],
    blobs: &dyn BlobProvider,
) -> Result<(), DestinationError> {
    let mut files = collect(images, blobs).await?;
    add_layout(&mut files, images, names);
    write_archive(output, files).await
}

/// Writes the image as `docker save` does since Docker 25: an OCI layout with a `manifest.json`, which older Docker
/// versions, podman and skopeo read. Whether they can read the layers is a matter of the layers' compression: gzip
/// and none work everywhere, zstd since Docker 23. There is no such archive of an index.
pub async fn export_docker_archive(
    output: Output,
    images: &ImageSet,
    names: &[Reference],
    blobs: &dyn BlobProvider,
) -> Result<(), DestinationError> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Entry {
        config: String,
        repo_tags: Vec<String>,
        layers: Vec<String>,
    }
    let Some(image) = images.single() else {
        let location = match &output {
            Output::File(path) => path.display().to_string(),
            Output::Stream(_) => "-".to_owned(),
        };
        let reason = "a Docker archive holds images, not an index of several platforms".to_owned();
        return Err(DestinationError::Unsupported { location, reason });
    };
    let mut files = collect(images, blobs).await?;
    add_layout(&mut files, images, names);
    let manifest = [Entry {
        config: blob_name(&image.config_descriptor.digest),
        repo_tags: names.iter().filter(|name| name.tag().is_some()).map(tagged).collect(),
        layers: image.layers.iter().map(|layer| blob_name(&layer.descriptor.digest)).collect(),
    }];
    // Of texts only, hence nothing that could fail.
    let manifest = serde_json::to_vec(&manifest).unwrap_or_default();
    files.insert("manifest.json".to_owned(), Content::Bytes(Bytes::from(manifest)));
    write_archive(output, files).await
}

/// The name as Docker shows it, without a digest.
fn tagged(name: &Reference) -> String {
    let name = name.familiar();
    name.split('@').next().unwrap_or_default().to_owned()
}

fn io_error(path: &Path, source: io::Error) -> DestinationError {
    DestinationError::Io { action: format!("writing {}", path.display()), source }
}

/// The blobs of the images by their path. Asks the provider for each layer once.
async fn collect(images: &ImageSet, blobs: &dyn BlobProvider) -> Result<Files, DestinationError> {
    let mut files = Files::new();
    for layer in images.images().iter().flat_map(|image| &image.layers) {
        let descriptor = &layer.descriptor;
        let name = blob_name(&descriptor.digest);
        if files.contains_key(&name) {
            continue;
        }
        let source = blobs
            .open(descriptor)
            .await
            .map_err(|source| DestinationError::Blob { digest: descriptor.digest, source })?;
        files.insert(name, Content::Blob(descriptor.clone().into(), source));
    }
    for image in images.images() {
        files.insert(blob_name(&image.config_descriptor.digest), Content::Bytes(image.config.clone()));
        files.insert(blob_name(&image.digest()), Content::Bytes(image.manifest.clone()));
    }
    files.insert(blob_name(&images.descriptor().digest), Content::Bytes(images.document().clone()));
    Ok(files)
}

fn index_entries(images: &ImageSet, names: &[Reference]) -> Vec<Descriptor> {
    let mut entry = images.descriptor();
    entry.annotations.clone_from(&images.annotations);
    let mut entries: Vec<Descriptor> = Vec::new();
    for name in names {
        let mut entry = entry.clone();
        if let Some(tag) = name.tag() {
            entry.annotations.insert(REF_NAME.to_owned(), tag.to_owned());
        }
        entry.annotations.insert(CONTAINERD_NAME.to_owned(), name.to_string());
        if !entries.contains(&entry) {
            entries.push(entry);
        }
    }
    if entries.is_empty() {
        entries.push(entry);
    }
    entries
}

fn add_layout(files: &mut Files, images: &ImageSet, names: &[Reference]) {
    let index = Index::new(index_entries(images, names));
    let directories: Vec<String> =
        files.keys().filter_map(|name| name.rsplit_once('/').map(|(parent, _)| parent.to_owned())).collect();
    for directory in directories {
        files.insert(directory, Content::Directory);
    }
    files.insert("blobs".to_owned(), Content::Directory);
    files.insert("index.json".to_owned(), Content::Bytes(Bytes::from(index.to_bytes())));
    files.insert("oci-layout".to_owned(), Content::Bytes(Bytes::from_static(LAYOUT_MARKER)));
}

/// The index of the layout with `entries` in it. An image of the same name or the same digest makes room.
fn merge(path: &Path, entries: Vec<Descriptor>) -> Result<Index, String> {
    let mut index = match fs_err::File::open(path) {
        Ok(file) => {
            let bytes =
                super::layout::read_bounded(file, MANIFEST_BYTES_MAX).map_err(|error| error.to_string())?;
            match Document::parse(&bytes) {
                Ok(Document::Index(index)) => *index,
                Ok(Document::Manifest(_)) => return Err("its `index.json` is a manifest".to_owned()),
                Err(error) => return Err(format!("its `index.json` cannot be added to: {error}")),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Index::new(Vec::new()),
        Err(error) => return Err(error.to_string()),
    };
    let name = |entry: &Descriptor| {
        entry.annotations.get(CONTAINERD_NAME).or(entry.annotations.get(REF_NAME)).cloned()
    };
    index.manifests.retain(|old| {
        let replaced = |new: &Descriptor| match (name(old), name(new)) {
            (Some(old), Some(new)) => old == new,
            (None, _) => old.digest == new.digest,
            (Some(_), None) => false,
        };
        !entries.iter().any(replaced)
    });
    index.manifests.extend(entries);
    Ok(index)
}

impl Content {
    /// The length in bytes, and the bytes. A blob ends only if it is what its descriptor says.
    fn open(self) -> io::Result<(u64, Box<dyn Read>)> {
        Ok(match self {
            Self::Directory => (0, Box::new(io::empty())),
            Self::Bytes(bytes) => (bytes.len() as u64, Box::new(io::Cursor::new(bytes))),
            Self::Blob(descriptor, source) => {
                let reader: Box<dyn Read> = match source {
                    BlobSource::Bytes(bytes) => Box::new(io::Cursor::new(bytes)),
                    BlobSource::File(path) => Box::new(fs_err::File::open(path)?),
                };
                let Descriptor { digest, size, .. } = *descriptor;
                (size, Box::new(Verifying::new(reader, digest, size)))
            }
        })
    }
}

async fn write_archive(output: Output, files: Files) -> Result<(), DestinationError> {
    let path = match &output {
        Output::File(path) => path.clone(),
        Output::Stream(_) => PathBuf::from("-"),
    };
    let result = blocking(move || match output {
        Output::Stream(stream) => write_tar(stream, files),
        Output::File(path) => replace_file(&path, |file| write_tar(file, files)),
    })
    .await;
    result.and_then(|written| written).map_err(|source| io_error(&path, source))
}

fn write_tar(output: impl Write, files: Files) -> io::Result<()> {
    let mut builder = tar::Builder::new(io::BufWriter::with_capacity(256 << 10, output));
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        let directory = matches!(content, Content::Directory);
        let (size, reader) = content.open()?;
        header.set_entry_type(if directory { tar::EntryType::Directory } else { tar::EntryType::Regular });
        header.set_mode(if directory { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        let name = if directory { format!("{name}/") } else { name };
        builder.append_data(&mut header, name, reader)?;
    }
    let mut output = builder.into_inner()?;
    output.flush()
}

fn write_layout_file(directory: &Path, name: &str, content: Content) -> Result<(), DestinationError> {
    let path = directory.join(name);
    let result = (|| {
        if let Some(parent) = path.parent() {
            fs_err::create_dir_all(parent)?;
        }
        let (size, mut reader) = content.open()?;
        // A blob's name is its content, and it appears only when complete.
        if name.starts_with("blobs/") && fs_err::metadata(&path).is_ok_and(|metadata| metadata.len() == size)
        {
            return Ok(());
        }
        replace_file(&path, |file| io::copy(&mut reader, file).map(drop))
    })();
    result.map_err(|source| io_error(&path, source))
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::digest::Digest;
    use crate::image::{ImageConfig, Manifest, media_types};
    use crate::platform::Platform;
    use crate::registry::{
        ArchiveSource, BoxError, ImageBundle, ImageSource as _, LayoutReference, OciLayoutSource, PushLayer,
        ResolvedImage,
    };

    struct Memory(BTreeMap<Digest, Bytes>);

    #[async_trait]
    impl BlobProvider for Memory {
        async fn open(&self, blob: &Descriptor) -> Result<BlobSource, BoxError> {
            Ok(BlobSource::Bytes(self.0.get(&blob.digest).ok_or("no such layer")?.clone()))
        }
    }

    fn image(layers: &[&'static str]) -> (ImageSet, Memory) {
        let mut config = ImageConfig::new(&Platform::new("linux", "amd64", None));
        config.rootfs.diff_ids = layers.iter().map(Digest::of).collect();
        let config = config.to_bytes();
        let config_descriptor = Descriptor::of(media_types::OCI_CONFIG, &config);
        let descriptors: Vec<Descriptor> = layers
            .iter()
            .map(|layer| Descriptor::of("application/vnd.oci.image.layer.v1.tar", layer.as_bytes()))
            .collect();
        let manifest = Manifest::new(config_descriptor.clone(), descriptors.clone());
        let bundle = ImageBundle {
            manifest: manifest.to_bytes().into(),
            media_type: media_types::OCI_MANIFEST.to_owned(),
            config: config.into(),
            config_descriptor,
            layers: descriptors
                .into_iter()
                .map(|descriptor| PushLayer { descriptor, mount_candidates: Vec::new() })
                .collect(),
        };
        let memory = layers.iter().map(|layer| (Digest::of(layer), Bytes::from(*layer))).collect();
        (ImageSet::one(bundle), Memory(memory))
    }

    fn names(names: &[&str]) -> Vec<Reference> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn check(image: &ResolvedImage, images: &ImageSet) {
        assert_eq!(image.manifest_bytes, *images.document());
        assert_eq!(image.config_bytes, images.images()[0].config);
    }

    #[tokio::test]
    async fn a_layout_takes_several_images() {
        let dir = tempfile::tempdir().unwrap();
        let layout = dir.path().join("layout");
        let (first, blobs) = image(&["one", "two", "one"]);
        export_oci_layout(&layout, &first, &names(&["app:v1", "app:latest"]), &blobs).await.unwrap();
        let (second, blobs) = image(&["three"]);
        export_oci_layout(&layout, &second, &names(&["app:v1"]), &blobs).await.unwrap();
        export_oci_layout(&layout, &second, &names(&["app:v1"]), &blobs).await.unwrap();
        let platform = Platform::new("linux", "amd64", None);
        for (tag, bundle) in [("v1", &second), ("latest", &first)] {
            let reference = LayoutReference { path: layout.clone(), tag: Some(tag.to_owned()), digest: None };
            let source = OciLayoutSource::new(reference);
            let image = source.resolve(&platform).await.unwrap();
            check(&image, bundle);
            let target = dir.path().join("layer");
            source.fetch_layer(&image.manifest.layers[0], &target, &|_| {}).await.unwrap();
        }
        let index = Index::parse(&fs_err::read(layout.join("index.json")).unwrap()).unwrap();
        assert_eq!(index.manifests.len(), 2);
    }

    #[tokio::test]
    async fn archives_are_the_same_each_time_and_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let (bundle, blobs) = image(&["one", "two", "one"]);
        let names = names(&["app:v1"]);
        let mut all = Vec::new();
        for at in 0..2 {
            let path = dir.path().join(format!("oci{at}.tar"));
            export_oci_archive(Output::File(path.clone()), &bundle, &names, &blobs).await.unwrap();
            let docker = dir.path().join(format!("docker{at}.tar"));
            export_docker_archive(Output::File(docker.clone()), &bundle, &names, &blobs).await.unwrap();
            for path in [&path, &docker] {
                let source = ArchiveSource::open(path, Some("app:v1"), dir.path()).await.unwrap();
                check(&source.resolve(&Platform::new("linux", "amd64", None)).await.unwrap(), &bundle);
            }
            all.push((fs_err::read(path).unwrap(), fs_err::read(docker).unwrap()));
        }
        assert!(all[0] == all[1]);
        let mut manifest = String::new();
        let mut archive = tar::Archive::new(&all[0].1[..]);
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            if entry.path_bytes().as_ref() == b"manifest.json" {
                entry.read_to_string(&mut manifest).unwrap();
            }
        }
        assert!(manifest.contains(r#""RepoTags":["app:v1"]"#), "{manifest}");
    }

    #[tokio::test]
    async fn a_wrong_or_missing_layer_leaves_no_archive() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.tar");
        let (bundle, mut blobs) = image(&["one"]);
        blobs.0.insert(Digest::of("one"), Bytes::from("two"));
        let error = export_oci_archive(Output::File(path.clone()), &bundle, &[], &blobs).await.unwrap_err();
        assert!(matches!(error, DestinationError::Io { .. }), "{error}");
        let layout = dir.path().join("layout");
        assert!(export_oci_layout(&layout, &bundle, &[], &blobs).await.is_err());
        assert!(!layout.join("index.json").exists());
        blobs.0.clear();
        let error = export_oci_archive(Output::File(path), &bundle, &[], &blobs).await.unwrap_err();
        assert!(matches!(error, DestinationError::Blob { .. }), "{error}");
        let left: Vec<_> =
            fs_err::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["layout"]);
    }
}
