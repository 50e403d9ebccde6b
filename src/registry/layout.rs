//! Images in OCI layouts: directories with `index.json` and `blobs/` (OCI image specification, `image-layout.md`).

use std::fmt;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use async_trait::async_trait;
use bytes::Bytes;

use super::copy::{blocking, copy_verified};
use super::source::{Documents, ImageSource, Progress, ResolvedImage, SourceError, resolve_from};
use crate::digest::Digest;
use crate::image::{Descriptor, Document, Index, MANIFEST_BYTES_MAX, is_attestation, select_platform};
use crate::platform::Platform;
use crate::reference::is_tag;

/// The annotation that names an image in a layout.
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The annotation in which BuildKit and containerd put the whole name.
pub(super) const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// An image in a layout: `oci-layout://path[:tag][@digest]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayoutReference {
    /// The directory.
    pub path: PathBuf,
    /// The image's tag or name in the layout.
    pub tag: Option<String>,
    /// The digest of its manifest or index.
    pub digest: Option<Digest>,
}

/// Why a text is not a [`LayoutReference`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "`{text}` does not name an image in an OCI layout: {why} (expected `oci-layout://path[:tag][@digest]`)"
)]
pub struct LayoutReferenceError {
    text: String,
    why: &'static str,
}

impl FromStr for LayoutReference {
    type Err = LayoutReferenceError;

    /// The prefix `oci-layout://` may be missing.
    fn from_str(text: &str) -> Result<Self, LayoutReferenceError> {
        let error = |why| LayoutReferenceError { text: text.to_owned(), why };
        let rest = text.strip_prefix("oci-layout://").unwrap_or(text);
        // A path may have an `@` of its own.
        let (rest, digest) = match rest.rsplit_once('@') {
            Some((before, digest)) if digest.contains(':') && !digest.contains('/') => {
                (before, Some(digest.parse().map_err(|_| error("the digest is malformed"))?))
            }
            _ => (rest, None),
        };
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => {
                if !is_tag(tag) {
                    return Err(error("the tag is malformed"));
                }
                (path, Some(tag.to_owned()))
            }
            _ => (rest, None),
        };
        if path.is_empty() {
            return Err(error("the path is empty"));
        }
        Ok(Self { path: PathBuf::from(path), tag, digest })
    }
}

impl fmt::Display for LayoutReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "oci-layout://{}", self.path.display())?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

/// An image in an OCI layout directory.
#[derive(Debug, Clone)]
pub struct OciLayoutSource {
    reference: LayoutReference,
}

impl OciLayoutSource {
    /// The image that `reference` names; nothing is read yet.
    pub fn new(reference: LayoutReference) -> Self {
        Self { reference }
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.reference.path.join(blob_name(digest))
    }
}

/// Where a layout keeps a blob.
pub(super) fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

#[async_trait]
impl ImageSource for OciLayoutSource {
    async fn resolve(&self, platform: &Platform) -> Result<ResolvedImage, SourceError> {
        let location = self.reference.path.display().to_string();
        let index_path = self.reference.path.join("index.json");
        let bytes = match read_file(index_path, MANIFEST_BYTES_MAX).await {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let reason = "there is no `index.json` in it".to_owned();
                return Err(SourceError::Malformed { location, reason });
            }
            Err(source) => {
                return Err(SourceError::Io { action: format!("reading index.json of {location}"), source });
            }
        };
        let wanted = Wanted { name: self.reference.tag.as_deref(), digest: self.reference.digest.as_ref() };
        resolve_layout(self, &location, self.reference.to_string(), &bytes, wanted, platform).await
    }

    async fn fetch_layer(
        &self,
        layer: &Descriptor,
        destination: &Path,
        progress: Progress<'_>,
    ) -> Result<(), SourceError> {
        let path = self.blob_path(&layer.digest);
        let location = self.reference.path.display().to_string();
        copy_verified(move || fs_err::File::open(path), &location, layer, destination, progress).await
    }
}

#[async_trait]
impl Documents for OciLayoutSource {
    async fn document(&self, descriptor: &Descriptor, limit: u64) -> Result<Bytes, SourceError> {
        let location = self.reference.path.display().to_string();
        let bytes = read_file(self.blob_path(&descriptor.digest), limit).await.map_err(|source| {
            SourceError::Io { action: format!("reading blob {} of {location}", descriptor.digest), source }
        })?;
        verify_document(&location, descriptor, bytes)
    }
}

/// Checks that `bytes` are what `descriptor` names.
pub(super) fn verify_document(
    location: &str,
    descriptor: &Descriptor,
    bytes: Bytes,
) -> Result<Bytes, SourceError> {
    if bytes.len() as u64 == descriptor.size && descriptor.digest.matches(&bytes) {
        return Ok(bytes);
    }
    Err(SourceError::Inconsistent {
        name: location.to_owned(),
        reason: format!("blob {} does not have the content that its name says", descriptor.digest),
    })
}

async fn read_file(path: PathBuf, limit: u64) -> io::Result<Bytes> {
    blocking(move || {
        let file = fs_err::File::open(path)?;
        read_bounded(file, limit)
    })
    .await?
}

/// Reads everything, which must not be more than `limit` bytes.
pub(super) fn read_bounded(reader: impl io::Read, limit: u64) -> io::Result<Bytes> {
    let mut bytes = Vec::new();
    reader.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        let error = format!("it has more than the {limit} bytes that are read");
        return Err(io::Error::new(io::ErrorKind::InvalidData, error));
    }
    Ok(Bytes::from(bytes))
}

/// Which image of a layout is meant.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) name: Option<&'a str>,
    pub(super) digest: Option<&'a Digest>,
}

/// Finds an image in a layout whose `index.json` is `index_bytes`.
pub(super) async fn resolve_layout(
    documents: &dyn Documents,
    location: &str,
    name: String,
    index_bytes: &[u8],
    wanted: Wanted<'_>,
    platform: &Platform,
) -> Result<ResolvedImage, SourceError> {
    let malformed = |reason: String| SourceError::Malformed { location: location.to_owned(), reason };
    let index = match Document::parse(index_bytes) {
        Ok(Document::Index(index)) => *index,
        Ok(Document::Manifest(_)) => return Err(malformed("its `index.json` is a manifest".to_owned())),
        Err(error) => return Err(malformed(format!("`index.json`: {error}"))),
    };
    let descriptor = select_image(&index, location, wanted, platform)?;
    let bytes = documents.document(&descriptor, MANIFEST_BYTES_MAX).await?;
    resolve_from(documents, name, descriptor.digest, bytes, platform).await
}

fn names(entry: &Descriptor) -> impl Iterator<Item = &str> {
    [REF_NAME, CONTAINERD_NAME].into_iter().filter_map(|key| entry.annotations.get(key).map(String::as_str))
}

/// Whether an entry's name is `wanted`: the same text, or a full name with this tag or without its defaults.
fn is_named(name: &str, wanted: &str) -> bool {
    name == wanted
        || name.rsplit_once(':').is_some_and(|(_, tag)| tag == wanted)
        || matches!((name.parse::<crate::reference::Reference>(), wanted.parse()), (Ok(a), Ok(b)) if a == b)
}

fn select_image(
    index: &Index,
    location: &str,
    wanted: Wanted<'_>,
    platform: &Platform,
) -> Result<Descriptor, SourceError> {
    let images: Vec<&Descriptor> = index.manifests.iter().filter(|entry| !is_attestation(entry)).collect();
    let not_found = |wanted: String| {
        let mut available: Vec<String> = images.iter().flat_map(|e| names(e).map(str::to_owned)).collect();
        available.dedup();
        SourceError::NotFound { location: location.to_owned(), wanted, available }
    };
    if let Some(digest) = wanted.digest {
        // A digest may also name something inside an index, which only its size would tell; the entry has it.
        return images
            .iter()
            .find(|entry| entry.digest == *digest)
            .map(|entry| (*entry).clone())
            .ok_or_else(|| not_found(digest.to_string()));
    }
    let candidates: Vec<&Descriptor> = match wanted.name {
        Some(wanted) => {
            let exact = |entry: &&Descriptor| names(entry).any(|name| name == wanted);
            let named: Vec<&Descriptor> = images.iter().copied().filter(exact).collect();
            if named.is_empty() {
                let similar = |entry: &&Descriptor| names(entry).any(|name| is_named(name, wanted));
                images.iter().copied().filter(similar).collect()
            } else {
                named
            }
        }
        None => images.clone(),
    };
    match candidates.as_slice() {
        [] => Err(not_found(wanted.name.map_or_else(|| "at all".to_owned(), |name| format!("`{name}`")))),
        [first, rest @ ..] if rest.iter().all(|entry| entry.digest == first.digest) => Ok((*first).clone()),
        several => {
            let latest = several.iter().find(|entry| names(entry).any(|name| is_named(name, "latest")));
            if wanted.name.is_none()
                && let Some(latest) = latest
            {
                return Ok((*latest).clone());
            }
            // The same image for several platforms, side by side.
            let all = Index::new(several.iter().map(|entry| (*entry).clone()).collect());
            let same_name = |entry: &&Descriptor| names(entry).eq(names(several[0]));
            if several.iter().all(same_name)
                && let Ok(entry) = select_platform(&all, platform)
            {
                return Ok(entry.clone());
            }
            Err(not_found("of which it would be clear that it is meant: name one with `:tag`".to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_references_are_parsed() {
        let parse = |text: &str| {
            text.parse::<LayoutReference>()
                .map(|reference| (reference.path.display().to_string(), reference.tag, reference.digest))
        };
        let digest = Digest::of("");
        assert_eq!(parse("oci-layout:///a/b"), Ok(("/a/b".to_owned(), None, None)));
        assert_eq!(parse("oci-layout://a/b:v1"), Ok(("a/b".to_owned(), Some("v1".to_owned()), None)));
        assert_eq!(
            parse(&format!("oci-layout:///a@b/c:v1@{digest}")),
            Ok(("/a@b/c".to_owned(), Some("v1".to_owned()), Some(digest)))
        );
        assert_eq!(parse("/a:b/c"), Ok(("/a:b/c".to_owned(), None, None)));
        for bad in ["oci-layout://", "oci-layout://:v1", "a:.x", "a@sha256:12"] {
            assert!(bad.parse::<LayoutReference>().is_err(), "{bad}");
        }
        let text = format!("oci-layout:///a:v1@{digest}");
        assert_eq!(text.parse::<LayoutReference>().unwrap().to_string(), text);
    }

    fn entry(content: &str, name: Option<&str>) -> Descriptor {
        let mut entry = Descriptor::of(crate::image::media_types::OCI_MANIFEST, content.as_bytes());
        if let Some(name) = name {
            entry.annotations.insert(REF_NAME.to_owned(), name.to_owned());
        }
        entry
    }

    fn select(entries: &[Descriptor], name: Option<&str>) -> Result<Digest, SourceError> {
        let platform = Platform::new("linux", "amd64", None);
        let wanted = Wanted { name, digest: None };
        select_image(&Index::new(entries.to_vec()), "l", wanted, &platform).map(|entry| entry.digest)
    }

    #[test]
    fn images_are_selected_by_name() {
        let two = [entry("a", Some("v1")), entry("b", Some("docker.io/library/app:v2"))];
        assert_eq!(select(&two, Some("v1")).unwrap(), Digest::of("a"));
        assert_eq!(select(&two, Some("v2")).unwrap(), Digest::of("b"));
        assert_eq!(select(&two, Some("app:v2")).unwrap(), Digest::of("b"));
        let error = select(&two, Some("v3")).unwrap_err().to_string();
        assert_eq!(error, "l has no image `v3` (it has v1, docker.io/library/app:v2)");
        assert!(select(&two, None).is_err());
        assert_eq!(select(&two[..1], None).unwrap(), Digest::of("a"));
        let latest = [entry("a", Some("v1")), entry("b", Some("latest"))];
        assert_eq!(select(&latest, None).unwrap(), Digest::of("b"));
        assert!(select(&[], None).is_err());
    }

    #[test]
    fn platforms_side_by_side_are_one_image() {
        let mut two = [entry("arm", None), entry("amd", None)];
        two[0].platform = Some(Platform::new("linux", "arm64", None));
        two[1].platform = Some(Platform::new("linux", "amd64", None));
        assert_eq!(select(&two, None).unwrap(), Digest::of("amd"));
    }
}
