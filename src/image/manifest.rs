//! Descriptors, manifests and indexes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::serde_forms::{non_empty, null_default, platform};
use super::{CONFIG_BYTES_MAX, MANIFEST_BYTES_MAX};
use crate::digest::Digest;
use crate::hint::Hint;
use crate::platform::Platform;

/// Media types of documents. Those of layers are in [`crate::layer::MediaType`].
pub mod media_types {
    /// An OCI image manifest.
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// An OCI image index.
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// An OCI image configuration.
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// A Docker image manifest, version 2 schema 2.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// A Docker manifest list.
    pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// A Docker image configuration.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    /// A layer in Docker's format, plain.
    pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
    /// A layer in Docker's format, gzip.
    pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    /// A layer as containerd names it among Docker's, zstd.
    pub const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";
}

/// Names a blob: what it is, its digest and its size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// The media type of the content.
    #[serde(rename = "mediaType", default, deserialize_with = "null_default")]
    pub media_type: String,
    /// The digest of the content.
    pub digest: Digest,
    /// The length of the content in bytes.
    pub size: u64,
    /// Where else the content may be had.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// Free-form metadata.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// In an index: what the manifest runs on, not normalised.
    #[serde(default, deserialize_with = "platform", skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// The type of the artifact, if the content is a manifest of one.
    #[serde(
        rename = "artifactType",
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    pub artifact_type: Option<String>,
}

impl Descriptor {
    /// A descriptor with nothing but the three required fields.
    pub fn new(media_type: impl Into<String>, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.into(),
            digest,
            size,
            urls: Vec::new(),
            annotations: BTreeMap::new(),
            platform: None,
            artifact_type: None,
        }
    }

    /// The descriptor of `bytes`.
    pub fn of(media_type: impl Into<String>, bytes: &[u8]) -> Self {
        Self::new(media_type, Digest::of(bytes), bytes.len() as u64)
    }
}

/// An image manifest: one configuration and the layers, lowest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Always 2.
    #[serde(rename = "schemaVersion")]
    pub schema_version: u32,
    /// The manifest's own media type. Docker requires it, OCI recommends it.
    #[serde(
        rename = "mediaType",
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    pub media_type: Option<String>,
    /// The type of the artifact, if this is no image.
    #[serde(
        rename = "artifactType",
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    pub artifact_type: Option<String>,
    /// The configuration.
    pub config: Descriptor,
    /// The layers.
    #[serde(default, deserialize_with = "null_default")]
    pub layers: Vec<Descriptor>,
    /// What this manifest says something about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free-form metadata.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// An image index (Docker: manifest list).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// Always 2.
    #[serde(rename = "schemaVersion")]
    pub schema_version: u32,
    /// The index's own media type.
    #[serde(
        rename = "mediaType",
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    pub media_type: Option<String>,
    /// The type of the artifact, if this is no index of images.
    #[serde(
        rename = "artifactType",
        default,
        deserialize_with = "non_empty",
        skip_serializing_if = "Option::is_none"
    )]
    pub artifact_type: Option<String>,
    /// The manifests, and possibly other indexes.
    #[serde(default, deserialize_with = "null_default")]
    pub manifests: Vec<Descriptor>,
    /// What this index says something about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free-form metadata.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// Why some bytes are not the document that they should be.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Larger than what is read.
    #[error("the {what} has {size} bytes, more than the {limit} that are read")]
    TooLarge {
        /// The kind of document.
        what: &'static str,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// Not JSON, or not of the right shape.
    #[error("the {what} is malformed: {reason}")]
    Malformed {
        /// The kind of document.
        what: &'static str,
        /// What is wrong with it, from the JSON parser.
        reason: String,
    },
    /// A Docker schema 1 manifest.
    #[error("the manifest has schema version {version}, which is not supported (expected 2)")]
    Schema {
        /// The version found.
        version: u64,
    },
    /// Neither a manifest nor an index, or both.
    #[error("the document is {why}")]
    Kind {
        /// What it is instead.
        why: String,
    },
}

impl Hint for ImageError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Schema { .. } => Some(
                "push the image again with a current tool: this format has been obsolete since 2017"
                    .to_owned(),
            ),
            Self::Kind { .. } => {
                Some("check that the reference names a container image and not another artifact".to_owned())
            }
            Self::TooLarge { .. } | Self::Malformed { .. } => None,
        }
    }
}

/// A manifest or an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Manifest(Box<Manifest>),
    /// Images for several platforms.
    Index(Box<Index>),
}

impl Document {
    /// Reads a manifest or index. A document that could be taken for either is refused, since two clients could
    /// then see two different images under one digest (CVE-2021-41190).
    pub fn parse(bytes: &[u8]) -> Result<Self, ImageError> {
        #[derive(Deserialize)]
        struct Probe {
            #[serde(rename = "schemaVersion", default)]
            schema_version: Option<u64>,
            #[serde(rename = "mediaType", default)]
            media_type: Option<String>,
            #[serde(default)]
            config: Option<serde::de::IgnoredAny>,
            #[serde(default)]
            layers: Option<serde::de::IgnoredAny>,
            #[serde(default)]
            manifests: Option<serde::de::IgnoredAny>,
        }
        let probe: Probe = parse_json("manifest", bytes, MANIFEST_BYTES_MAX)?;
        match probe.schema_version {
            Some(2) => {}
            Some(version) => return Err(ImageError::Schema { version }),
            None => {
                return Err(ImageError::Malformed {
                    what: "manifest",
                    reason: "there is no `schemaVersion`".to_owned(),
                });
            }
        }
        let image = probe.config.is_some() || probe.layers.is_some();
        let index = probe.manifests.is_some();
        let kind = |why: &str| Err(ImageError::Kind { why: why.to_owned() });
        if image && index {
            return kind("a manifest and an index at once");
        }
        match probe.media_type.as_deref() {
            None | Some("") if image || index => {}
            Some(media_types::OCI_INDEX | media_types::DOCKER_INDEX) if !image => {
                return parse_json("index", bytes, MANIFEST_BYTES_MAX)
                    .map(|index| Self::Index(Box::new(index)));
            }
            Some(media_types::OCI_MANIFEST | media_types::DOCKER_MANIFEST) if !index => {}
            None | Some("") => return kind("neither a manifest nor an index"),
            Some(other) => {
                let other: String = other.chars().take(100).collect();
                return kind(&format!("of the type `{other}`, and its content is not that of an image"));
            }
        }
        if index {
            parse_json("index", bytes, MANIFEST_BYTES_MAX).map(|index| Self::Index(Box::new(index)))
        } else {
            parse_json("manifest", bytes, MANIFEST_BYTES_MAX)
                .map(|manifest| Self::Manifest(Box::new(manifest)))
        }
    }
}

impl Manifest {
    /// An OCI image manifest.
    pub fn new(config: Descriptor, layers: Vec<Descriptor>) -> Self {
        Self {
            schema_version: 2,
            media_type: Some(media_types::OCI_MANIFEST.to_owned()),
            artifact_type: None,
            config,
            layers,
            subject: None,
            annotations: BTreeMap::new(),
        }
    }

    /// Reads a manifest that must be one, and not an index.
    pub fn parse(bytes: &[u8]) -> Result<Self, ImageError> {
        match Document::parse(bytes)? {
            Document::Manifest(manifest) => Ok(*manifest),
            Document::Index(_) => {
                Err(ImageError::Kind { why: "an index where a manifest is expected".to_owned() })
            }
        }
    }

    /// The media type, also where the document does not say it.
    pub fn media_type(&self) -> &str {
        self.media_type.as_deref().unwrap_or(media_types::OCI_MANIFEST)
    }

    /// The JSON text, compact and in the order of Docker's tools. What it names must not change afterwards: its
    /// digest is that of these bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        to_json(self)
    }
}

impl Index {
    /// An OCI image index.
    pub fn new(manifests: Vec<Descriptor>) -> Self {
        Self {
            schema_version: 2,
            media_type: Some(media_types::OCI_INDEX.to_owned()),
            artifact_type: None,
            manifests,
            subject: None,
            annotations: BTreeMap::new(),
        }
    }

    /// Reads an index that must be one, and not a manifest.
    pub fn parse(bytes: &[u8]) -> Result<Self, ImageError> {
        match Document::parse(bytes)? {
            Document::Index(index) => Ok(*index),
            Document::Manifest(_) => {
                Err(ImageError::Kind { why: "a manifest where an index is expected".to_owned() })
            }
        }
    }

    /// The media type, also where the document does not say it.
    pub fn media_type(&self) -> &str {
        self.media_type.as_deref().unwrap_or(media_types::OCI_INDEX)
    }

    /// The JSON text, compact and in the order of Docker's tools.
    pub fn to_bytes(&self) -> Vec<u8> {
        to_json(self)
    }
}

/// Reads JSON of at most `limit` bytes.
pub(super) fn parse_json<'a, T: Deserialize<'a>>(
    what: &'static str,
    bytes: &'a [u8],
    limit: u64,
) -> Result<T, ImageError> {
    debug_assert!(limit <= CONFIG_BYTES_MAX);
    let size = bytes.len() as u64;
    if size > limit {
        return Err(ImageError::TooLarge { what, size, limit });
    }
    serde_json::from_slice(bytes).map_err(|error| ImageError::Malformed { what, reason: error.to_string() })
}

/// Writes JSON. The types of this module have text keys and no foreign `Serialize`, so it cannot fail.
pub(super) fn to_json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

/// There is no manifest for the platform in an index.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("there is no image for {wanted}{}", list(available))]
pub struct NoSuchPlatform {
    /// The platform asked for.
    pub wanted: Platform,
    /// The platforms that are there, in the order of the index.
    pub available: Vec<Platform>,
}

fn list(available: &[Platform]) -> String {
    if available.is_empty() {
        return " (the index names no platforms at all)".to_owned();
    }
    // An index may be 4 MiB of platforms; a message shows the first few.
    let shown: Vec<String> = available.iter().take(20).map(Platform::to_string).collect();
    let more = if available.len() > shown.len() { ", …" } else { "" };
    format!(" (available: {}{more})", shown.join(", "))
}

impl Hint for NoSuchPlatform {
    fn hint(&self) -> Option<String> {
        let first = self.available.first()?;
        Some(format!(
            "build for another platform, for example `--platform={first}`, or use another base image"
        ))
    }
}

/// Whether an entry of an index is no image but a statement about one (BuildKit's provenance and SBOM manifests).
pub fn is_attestation(descriptor: &Descriptor) -> bool {
    descriptor.annotations.contains_key("vnd.docker.reference.type")
        || descriptor
            .platform
            .as_ref()
            .is_some_and(|platform| platform.os == "unknown" && platform.architecture == "unknown")
}

/// The entry of `index` that serves `platform` best; the first one among equals.
///
/// Attestations are skipped. An entry without a platform is taken only if it is the only image there.
pub fn select_platform<'a>(index: &'a Index, platform: &Platform) -> Result<&'a Descriptor, NoSuchPlatform> {
    let images: Vec<&Descriptor> = index.manifests.iter().filter(|entry| !is_attestation(entry)).collect();
    let best = images
        .iter()
        .filter_map(|entry| Some((platform.distance(entry.platform.as_ref()?)?, *entry)))
        .min_by_key(|(distance, _)| *distance);
    if let Some((_, entry)) = best {
        return Ok(entry);
    }
    if let [only] = images.as_slice()
        && only.platform.is_none()
    {
        return Ok(only);
    }
    let mut available = Vec::new();
    for candidate in images.iter().filter_map(|entry| entry.platform.as_ref()) {
        let candidate = candidate.normalized();
        if !available.contains(&candidate) {
            available.push(candidate);
        }
    }
    Err(NoSuchPlatform { wanted: platform.clone(), available })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(platform: Option<&str>, content: &str) -> Descriptor {
        let mut descriptor = Descriptor::of(media_types::OCI_MANIFEST, content.as_bytes());
        descriptor.platform = platform.map(|text| {
            let parts: Vec<&str> = text.split('/').collect();
            Platform {
                os: parts[0].to_owned(),
                architecture: parts[1].to_owned(),
                os_version: None,
                variant: parts.get(2).map(|&variant| variant.to_owned()),
            }
        });
        descriptor
    }

    #[test]
    fn a_manifest_is_written_as_docker_writes_it() {
        let mut layer = Descriptor::of("application/vnd.oci.image.layer.v1.tar+gzip", b"");
        layer.annotations.insert("a".to_owned(), "b".to_owned());
        let manifest = Manifest::new(Descriptor::of(media_types::OCI_CONFIG, b"{}"), vec![layer]);
        let expected = concat!(
            r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","#,
            r#""config":{"mediaType":"application/vnd.oci.image.config.v1+json","#,
            r#""digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"#,
            r#""layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","#,
            r#""digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0,"#,
            r#""annotations":{"a":"b"}}]}"#
        );
        assert_eq!(String::from_utf8(manifest.to_bytes()).unwrap(), expected);
        assert_eq!(Document::parse(&manifest.to_bytes()).unwrap(), Document::Manifest(Box::new(manifest)));
    }

    #[test]
    fn nulls_and_missing_media_types_are_accepted() {
        let digest = Digest::of("");
        let text = format!(
            r#"{{"schemaVersion":2,"mediaType":null,"config":{{"mediaType":"x","digest":"{digest}","size":0,"urls":null,"annotations":null,"platform":{{}}}},"layers":null,"annotations":null}}"#
        );
        let manifest = Manifest::parse(text.as_bytes()).unwrap();
        assert!(manifest.layers.is_empty() && manifest.config.platform.is_none());
        let text = format!(r#"{{"schemaVersion":2,"manifests":[{{"digest":"{digest}","size":1}}]}}"#);
        assert_eq!(Index::parse(text.as_bytes()).unwrap().manifests.len(), 1);
    }

    #[test]
    fn what_is_no_image_is_refused_with_its_reason() {
        let digest = Digest::of("");
        let descriptor = format!(r#"{{"mediaType":"x","digest":"{digest}","size":0}}"#);
        let cases = [
            ("{".to_owned(), "malformed"),
            (r#"{"config":{}}"#.to_owned(), "no `schemaVersion`"),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(), "schema version 1"),
            (format!(r#"{{"schemaVersion":2,"config":{descriptor},"manifests":[]}}"#), "at once"),
            (
                format!(
                    r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[]}}"#,
                    media_types::OCI_MANIFEST
                ),
                "of the type",
            ),
            (r#"{"schemaVersion":2}"#.to_owned(), "neither"),
            (
                r#"{"schemaVersion":2,"config":{"mediaType":"x","digest":"sha256:12","size":0}}"#.to_owned(),
                "malformed",
            ),
            (format!(r#"{{"schemaVersion":2,"config":{}}}"#, descriptor.replace(":0", ":-1")), "malformed"),
            (format!(r#"{{"schemaVersion":2,"x":"{}"}}"#, "a".repeat(4 << 20)), "more than the 4194304"),
        ];
        for (text, part) in cases {
            let error = Document::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(part), "{error} does not contain {part}");
        }
    }

    #[test]
    fn the_best_platform_is_selected() {
        let index = Index::new(vec![
            entry(Some("unknown/unknown"), "attestation"),
            entry(Some("linux/arm/v6"), "v6"),
            entry(Some("linux/arm/v7"), "v7"),
            entry(Some("linux/x86_64"), "amd64"),
            entry(Some("linux/amd64/v3"), "amd64v3"),
        ]);
        let select = |text: &str| select_platform(&index, &text.parse().unwrap()).map(|entry| entry.digest);
        assert_eq!(select("linux/arm/v7"), Ok(Digest::of("v7")));
        assert_eq!(select("linux/arm/v6"), Ok(Digest::of("v6")));
        assert_eq!(select("linux/amd64"), Ok(Digest::of("amd64")));
        assert_eq!(select("linux/amd64/v4"), Ok(Digest::of("amd64v3")));
        let error = select("linux/s390x").unwrap_err();
        assert_eq!(
            error.to_string(),
            "there is no image for linux/s390x (available: linux/arm/v6, linux/arm/v7, linux/amd64, linux/amd64/v3)"
        );
        assert!(error.hint().unwrap().contains("--platform=linux/arm/v6"));
    }

    #[test]
    fn an_image_without_a_platform_counts_only_alone() {
        let platform = Platform::new("linux", "amd64", None);
        let alone = Index::new(vec![entry(Some("unknown/unknown"), "a"), entry(None, "image")]);
        assert_eq!(select_platform(&alone, &platform).unwrap().digest, Digest::of("image"));
        let two = Index::new(vec![entry(None, "a"), entry(None, "b")]);
        let error = select_platform(&two, &platform).unwrap_err();
        assert!(error.to_string().contains("names no platforms"), "{error}");
    }
}
