//! Images in archives: OCI layouts in a tar, and what `docker save` writes.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use serde::Deserialize;

use super::copy::{blocking, copy_verified};
use super::layout::{Wanted, blob_name, read_bounded, resolve_layout, verify_document};
use super::source::{Documents, ImageSource, Progress, ResolvedImage, SourceError, resolve_from};
use super::tar_index::{Region, TarIndex};
use crate::digest::{Digest, Hashing};
use crate::image::{CONFIG_BYTES_MAX, Descriptor, ImageConfig, MANIFEST_BYTES_MAX, Manifest, media_types};
use crate::layer::MediaType;
use crate::platform::Platform;
use crate::reference::Reference;

/// What a compressed archive may expand to: this much, and [`EXPANSION_FACTOR_MAX`] times its size. Real image
/// archives expand by a factor below ten; the limit stops bombs before the disk is full.
const EXPANSION_BYTES: u64 = 1 << 30;

/// See [`EXPANSION_BYTES`].
const EXPANSION_FACTOR_MAX: u64 = 100;

/// An image in an OCI archive or a Docker archive. Nothing is unpacked: layers are read where they lie.
#[derive(Debug)]
pub struct ArchiveSource {
    path: PathBuf,
    /// The name of the image in the archive, where it has several.
    image: Option<String>,
    index: TarIndex,
    form: Form,
}

#[derive(Debug)]
enum Form {
    /// The bytes of `index.json`.
    Oci(Bytes),
    Docker(Box<DockerImage>),
}

/// An image of a Docker archive, with the manifest that it would have.
#[derive(Debug)]
struct DockerImage {
    manifest: Bytes,
    digest: Digest,
    /// Where the documents and layers lie.
    paths: HashMap<Digest, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

impl ArchiveSource {
    /// Opens the archive at `path`; `image` names one of its images and may be missing where it has only one.
    ///
    /// An archive that is compressed as a whole is expanded into a file in `spool_dir` that has no name and is gone
    /// with this process.
    pub async fn open(path: &Path, image: Option<&str>, spool_dir: &Path) -> Result<Self, SourceError> {
        let location = path.display().to_string();
        let (path, image, spool_dir) = (path.to_owned(), image.map(str::to_owned), spool_dir.to_owned());
        blocking(move || Self::open_blocking(path, image, &spool_dir))
            .await
            .map_err(|source| SourceError::Io { action: format!("reading {location}"), source })?
    }

    fn open_blocking(path: PathBuf, image: Option<String>, spool_dir: &Path) -> Result<Self, SourceError> {
        let location = path.display().to_string();
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::InvalidData => {
                SourceError::Malformed { location: location.clone(), reason: source.to_string() }
            }
            _ => SourceError::Io { action: format!("reading {location}"), source },
        };
        let (file, _) = fs_err::File::open(&path).map_err(failed)?.into_parts();
        let file = expand(file, spool_dir).map_err(failed)?;
        let index = TarIndex::read(file).map_err(failed)?;
        let read = |region: Region, limit| read_bounded(region, limit).map_err(failed);
        let form = if let Some(region) = index.open("index.json") {
            Form::Oci(read(region, MANIFEST_BYTES_MAX)?)
        } else if let Some(region) = index.open("manifest.json") {
            let bytes = read(region, MANIFEST_BYTES_MAX)?;
            Form::Docker(Box::new(DockerImage::read(&index, &bytes, image.as_deref(), &location)?))
        } else {
            let reason = "there is neither `index.json` nor `manifest.json` in it".to_owned();
            return Err(SourceError::Malformed { location, reason });
        };
        Ok(Self { path, image, index, form })
    }

    fn region(&self, digest: &Digest) -> Option<Region> {
        match &self.form {
            Form::Oci(_) => self.index.open(&blob_name(digest)),
            Form::Docker(image) => self.index.open(image.paths.get(digest)?),
        }
    }

    fn required(&self, digest: &Digest) -> Result<Region, SourceError> {
        self.region(digest).ok_or_else(|| SourceError::Inconsistent {
            name: self.path.display().to_string(),
            reason: format!("blob {digest} is not in the archive"),
        })
    }
}

#[async_trait]
impl ImageSource for ArchiveSource {
    async fn resolve(&self, platform: &Platform) -> Result<ResolvedImage, SourceError> {
        let location = self.path.display().to_string();
        let name = match &self.image {
            Some(image) => format!("{location}:{image}"),
            None => location.clone(),
        };
        match &self.form {
            Form::Oci(index) => {
                let wanted = Wanted { name: self.image.as_deref(), digest: None };
                resolve_layout(self, &location, name, index, wanted, platform).await
            }
            Form::Docker(image) => {
                resolve_from(self, name, image.digest, image.manifest.clone(), platform).await
            }
        }
    }

    async fn fetch_layer(
        &self,
        layer: &Descriptor,
        destination: &Path,
        progress: Progress<'_>,
    ) -> Result<(), SourceError> {
        let region = self.required(&layer.digest)?;
        let location = self.path.display().to_string();
        copy_verified(move || Ok(region), &location, layer, destination, progress).await
    }
}

#[async_trait]
impl Documents for ArchiveSource {
    async fn document(&self, descriptor: &Descriptor, limit: u64) -> Result<Bytes, SourceError> {
        let location = self.path.display().to_string();
        let region = self.required(&descriptor.digest)?;
        let failed = |source| SourceError::Io {
            action: format!("reading blob {} of {location}", descriptor.digest),
            source,
        };
        let bytes = blocking(move || read_bounded(region, limit)).await.map_err(failed)?.map_err(failed)?;
        verify_document(&location, descriptor, bytes)
    }
}

impl DockerImage {
    fn read(
        index: &TarIndex,
        bytes: &[u8],
        image: Option<&str>,
        location: &str,
    ) -> Result<Self, SourceError> {
        let malformed = |reason: String| SourceError::Malformed { location: location.to_owned(), reason };
        let entries: Vec<DockerEntry> =
            serde_json::from_slice(bytes).map_err(|error| malformed(format!("`manifest.json`: {error}")))?;
        let entry = select(&entries, image, location)?;
        let open = |path: &str| {
            index.open(path).ok_or_else(|| {
                let path: String = path.chars().take(200).collect();
                malformed(format!("`manifest.json` names `{path}`, which is not in the archive"))
            })
        };
        let failed = |source| SourceError::Io { action: format!("reading {location}"), source };
        let config_bytes = read_bounded(open(&entry.config)?, CONFIG_BYTES_MAX).map_err(failed)?;
        let config = ImageConfig::parse(&config_bytes)
            .map_err(|source| SourceError::Image { name: location.to_owned(), source })?;
        let layers = entry.layers.as_deref().unwrap_or_default();
        if layers.len() != config.rootfs.diff_ids.len() {
            return Err(malformed(format!(
                "`manifest.json` has {} layers, the configuration {}",
                layers.len(),
                config.rootfs.diff_ids.len()
            )));
        }
        let mut paths = HashMap::new();
        let mut descriptors = Vec::with_capacity(layers.len());
        for (path, diff_id) in layers.iter().zip(&config.rootfs.diff_ids) {
            let region = open(path)?;
            let mut magic = Vec::new();
            region.clone().take(4).read_to_end(&mut magic).map_err(failed)?;
            let (media_type, digest) = match Compression::sniff(&magic) {
                // An uncompressed layer is its own diff, which is checked when the layer is read.
                None => (MediaType::Tar, *diff_id),
                Some(Compression::Gzip) => (MediaType::Gzip, hash(region.clone()).map_err(failed)?),
                Some(Compression::Zstd) => (MediaType::Zstd, hash(region.clone()).map_err(failed)?),
            };
            descriptors.push(Descriptor::new(media_type.as_str(), digest, region.size()));
            paths.insert(digest, path.clone());
        }
        let config = Descriptor::of(media_types::OCI_CONFIG, &config_bytes);
        paths.insert(config.digest, entry.config.clone());
        let manifest = Bytes::from(Manifest::new(config, descriptors).to_bytes());
        Ok(Self { digest: Digest::of(&manifest), manifest, paths })
    }
}

fn hash(region: Region) -> io::Result<Digest> {
    let mut reader = Hashing::new(region);
    io::copy(&mut reader, &mut io::sink())?;
    Ok(reader.finish().1)
}

fn select<'a>(
    entries: &'a [DockerEntry],
    image: Option<&str>,
    location: &str,
) -> Result<&'a DockerEntry, SourceError> {
    let tags = |entry: &'a DockerEntry| entry.repo_tags.iter().flatten();
    let not_found = |wanted: String| SourceError::NotFound {
        location: location.to_owned(),
        wanted,
        available: entries.iter().flat_map(tags).cloned().collect(),
    };
    match (image, entries) {
        (None, [only]) => Ok(only),
        (None, []) => Err(not_found("at all".to_owned())),
        (None, _) => Err(not_found("of which it would be clear that it is meant".to_owned())),
        (Some(image), _) => {
            let wanted = image.parse::<Reference>().ok();
            let same = |tag: &String| tag == image || wanted.is_some() && tag.parse().ok() == wanted;
            entries.iter().find(|entry| tags(entry).any(same)).ok_or_else(|| not_found(format!("`{image}`")))
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    Gzip,
    Zstd,
}

impl Compression {
    fn sniff(magic: &[u8]) -> Option<Self> {
        if magic.starts_with(&[0x1f, 0x8b]) {
            Some(Self::Gzip)
        } else if magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            Some(Self::Zstd)
        } else {
            None
        }
    }
}

/// The uncompressed content of `file`: itself, or a nameless file in `spool_dir`.
fn expand(mut file: File, spool_dir: &Path) -> io::Result<File> {
    let mut magic = Vec::new();
    (&file).take(4).read_to_end(&mut magic)?;
    file.rewind()?;
    let limit = file.metadata()?.len().saturating_mul(EXPANSION_FACTOR_MAX).saturating_add(EXPANSION_BYTES);
    let reader: Box<dyn Read> = match Compression::sniff(&magic) {
        None => return Ok(file),
        Some(Compression::Gzip) => Box::new(flate2::read::MultiGzDecoder::new(io::BufReader::new(file))),
        Some(Compression::Zstd) => Box::new(zstd::stream::read::Decoder::new(file)?),
    };
    let mut spool = tempfile::tempfile_in(spool_dir)?;
    let copied = io::copy(&mut reader.take(limit + 1), &mut spool)?;
    if copied > limit {
        let error = format!("it expands to more than {limit} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, error));
    }
    spool.flush()?;
    Ok(spool)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, path, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn docker_save(layers: &[&[u8]], diffs: &[&[u8]]) -> Vec<u8> {
        let mut config = ImageConfig::new(&Platform::new("linux", "amd64", None));
        config.rootfs.diff_ids = diffs.iter().map(Digest::of).collect();
        let config = config.to_bytes();
        let names: Vec<String> = (0..layers.len()).map(|at| format!("{at}/layer.tar")).collect();
        let manifest = serde_json::json!([{"Config": "c.json", "RepoTags": ["app:v1"], "Layers": names}]);
        let manifest = manifest.to_string();
        let mut files: Vec<(&str, &[u8])> = vec![("c.json", &config), ("manifest.json", manifest.as_bytes())];
        files.extend(names.iter().map(String::as_str).zip(layers.iter().copied()));
        tar(&files)
    }

    async fn open(
        bytes: &[u8],
        image: Option<&str>,
    ) -> Result<(ArchiveSource, tempfile::TempDir), SourceError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar");
        fs_err::write(&path, bytes).unwrap();
        Ok((ArchiveSource::open(&path, image, dir.path()).await?, dir))
    }

    #[tokio::test]
    async fn docker_archives_are_read_whole_and_compressed() {
        let compressed = gzip(b"layer two");
        let archive = docker_save(&[b"layer one", &compressed], &[b"layer one", b"layer two"]);
        for bytes in [archive.clone(), gzip(&archive), zstd::encode_all(&archive[..], 1).unwrap()] {
            let (source, dir) = open(&bytes, Some("docker.io/library/app:v1")).await.unwrap();
            let image = source.resolve(&Platform::new("linux", "amd64", None)).await.unwrap();
            assert_eq!(image.manifest.layers[0].digest, Digest::of("layer one"));
            assert_eq!(image.manifest.layers[1].media_type, MediaType::Gzip.as_str());
            assert_eq!(image.manifest_digest, Digest::of(&image.manifest_bytes));
            for (layer, content) in image.manifest.layers.iter().zip([&b"layer one"[..], &compressed]) {
                let path = dir.path().join("layer");
                source.fetch_layer(layer, &path, &|_| {}).await.unwrap();
                assert_eq!(fs_err::read(path).unwrap(), content);
            }
        }
        let error = open(&archive, Some("app:v2")).await.unwrap_err().to_string();
        assert!(error.ends_with("has no image `app:v2` (it has app:v1)"), "{error}");
    }

    #[tokio::test]
    async fn a_layer_that_is_not_its_diff_leaves_no_file() {
        let (source, dir) = open(&docker_save(&[b"forged"], &[b"layer!"]), None).await.unwrap();
        let image = source.resolve(&Platform::new("linux", "amd64", None)).await.unwrap();
        let path = dir.path().join("layer");
        let error = source.fetch_layer(&image.manifest.layers[0], &path, &|_| {}).await.unwrap_err();
        assert!(error.to_string().contains("does not match"), "{error}");
        let left: Vec<_> =
            fs_err::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["a.tar"]);
    }

    #[tokio::test]
    async fn what_is_no_image_archive_is_refused() {
        let cases: [(Vec<u8>, &str); 6] = [
            (b"plain text".to_vec(), "neither `index.json`"),
            (vec![b'x'; 4096], "not a tar"),
            (tar(&[("a", b"b")]), "neither `index.json`"),
            (tar(&[("manifest.json", b"{}")]), "`manifest.json`: "),
            (tar(&[("manifest.json", br#"[{"Config":"../x"}]"#)]), "not in the archive"),
            (tar(&[("manifest.json", b"[]")]), "has no image at all"),
        ];
        for (bytes, part) in cases {
            let error = open(&bytes, None).await.unwrap_err().to_string();
            assert!(error.contains(part), "{error} does not contain {part}");
        }
        let missing = docker_save(&[], &[b"layer"]);
        assert!(open(&missing, None).await.unwrap_err().to_string().contains("has 0 layers"));
        let mut cut = gzip(&docker_save(&[b"x"], &[b"x"]));
        cut.truncate(cut.len() / 2);
        assert!(open(&cut, None).await.is_err());
    }
}
