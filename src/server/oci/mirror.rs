//! Pull-through mirrors: repositories below a name whose content is another registry's, fetched when somebody asks for it
//! and kept.
//!
//! A tag is looked up again after a minute, by a `HEAD`, which counts for no rate limit; while the other registry does
//! not answer, or refuses, what is here goes on. Content is what its digest says wherever it comes from. Of blobs only
//! those are fetched that a manifest which was fetched names, and only once, however many ask at a time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use axum::http::Method;
use bytes::Bytes;
use serde_json::Value;
use tokio::sync::Mutex as AsyncMutex;

use super::error::{Code, OciError};
use super::names::{Reference as Name, Route, Tag};
use super::repository::{ManifestEntry, Repository};
use crate::digest::Digest;
use crate::image::{Descriptor, media_types};
use crate::reference::Reference;
use crate::registry::{Client, RegistryError};
use crate::server::Server;
use crate::server::identity::Tenant;
use crate::store::BlobSource;

/// A tag is believed for so long.
const FRESH: Duration = Duration::from_mins(1);

/// A registry that failed is left alone for so long by those who can do without.
const REST: Duration = Duration::from_secs(15);

/// How long the other registry may take to say what a tag names, where there is something to go on with.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is served is marked as used when the last mark is older than this.
const MARK_EVERY: Duration = Duration::from_hours(6);

/// Tags, marks and blobs under way that are remembered, each.
const REMEMBERED_MAX: usize = 100_000;

/// A registry that is mirrored.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct MirrorSource {
    /// What its repositories are below: one component of a repository's name, such as `docker.io`.
    pub name: String,
    /// The registry, and maybe the beginning of its repositories' names: `registry.example:5000/team`.
    pub upstream: String,
}

/// Why a text is no [`MirrorSource`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is no mirror: give NAME, or NAME=REGISTRY, such as `docker.io` or `hub=docker.io/library`")]
pub struct MirrorSourceError(String);

impl std::str::FromStr for MirrorSource {
    type Err = MirrorSourceError;

    fn from_str(text: &str) -> Result<Self, MirrorSourceError> {
        let (name, upstream) = text.split_once('=').unwrap_or((text, text));
        // Some image of it has to be one.
        let is_registry = format!("{upstream}/x/y").parse::<Reference>().is_ok_and(|reference| {
            upstream.split('/').next().is_some_and(|host| host == reference.registry())
        });
        if super::is_name(name) && !name.contains('/') && is_registry {
            Ok(Self { name: name.to_owned(), upstream: upstream.to_owned() })
        } else {
            Err(MirrorSourceError(text.to_owned()))
        }
    }
}

impl TryFrom<String> for MirrorSource {
    type Error = MirrorSourceError;

    fn try_from(text: String) -> Result<Self, MirrorSourceError> {
        text.parse()
    }
}

/// The mirrors of a server.
#[derive(Debug)]
pub(in crate::server) struct Mirrors {
    sources: Vec<MirrorSource>,
    client: Option<Client>,
    state: Mutex<State>,
}

type Place = (Tenant, String);

#[derive(Debug, Default)]
struct State {
    /// When a tag was last found to be what it is here.
    looked_up: HashMap<(Place, String), Instant>,
    /// When documents were last written again because they are of use.
    marked: HashMap<(Place, String), Instant>,
    /// When a registry last failed.
    failed: HashMap<String, Instant>,
    /// What is being fetched. Who finds it waits.
    under_way: HashMap<(Tenant, Digest), Weak<AsyncMutex<()>>>,
}

impl Mirrors {
    pub(in crate::server) fn new(sources: Vec<MirrorSource>, client: Option<Client>) -> Self {
        Self { sources, client, state: Mutex::default() }
    }

    /// The name of the repository that is meant: clients that use a mirror say in `?ns=` whose it is.
    pub(super) fn resolve(&self, name: String, namespace: Option<&str>) -> String {
        let is_meant = |source: &&MirrorSource| {
            let host = source.upstream.split('/').next();
            namespace.is_some_and(|namespace| namespace == source.name || Some(namespace) == host)
        };
        match self.sources.iter().find(is_meant) {
            Some(source) if !name.starts_with(&format!("{}/", source.name)) => {
                format!("{}/{name}", source.name)
            }
            _ => name,
        }
    }

    /// Whether a repository is a mirror's.
    pub(super) fn is_mirrored(&self, name: &str) -> bool {
        self.source(name).is_some()
    }

    fn source<'n>(&self, name: &'n str) -> Option<(&MirrorSource, &'n str)> {
        let (first, rest) = name.split_once('/')?;
        Some((self.sources.iter().find(|source| source.name == first)?, rest))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes what is asked for be here, as far as the other registry has it. What is not is found missing afterwards.
    pub(super) async fn provide(
        &self,
        server: &Server,
        repository: &Repository,
        method: &Method,
        route: &Route,
    ) -> Result<(), OciError> {
        let (Some((source, rest)), Some(client)) = (self.source(repository.name()), &self.client) else {
            return Ok(());
        };
        if !matches!(*method, Method::GET | Method::HEAD) {
            let message = format!("`{}` is a mirror of {}: push there", source.name, source.upstream);
            return Err(OciError::new(Code::Denied, message));
        }
        let fetch = Fetch { mirrors: self, server, repository, source, rest, client };
        match route {
            Route::Manifest(Name::Tag(tag)) => fetch.tag(tag).await,
            Route::Manifest(Name::Digest(digest)) => fetch.manifest(digest).await,
            Route::Blob(digest) => fetch.blob(digest).await,
            _ => Ok(()),
        }
    }

    /// Whether something is due that is to be done once in `every`.
    fn is_due(times: &mut HashMap<(Place, String), Instant>, key: (Place, String), every: Duration) -> bool {
        if times.get(&key).is_some_and(|at| at.elapsed() < every) {
            return false;
        }
        if times.len() >= REMEMBERED_MAX {
            times.clear();
        }
        times.insert(key, Instant::now());
        true
    }

    fn flight(&self, key: (Tenant, Digest)) -> Arc<AsyncMutex<()>> {
        let mut state = self.state();
        if let Some(lock) = state.under_way.get(&key).and_then(Weak::upgrade) {
            return lock;
        }
        state.under_way.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::default();
        state.under_way.insert(key, Arc::downgrade(&lock));
        lock
    }
}

struct Fetch<'f> {
    mirrors: &'f Mirrors,
    server: &'f Server,
    repository: &'f Repository,
    source: &'f MirrorSource,
    /// The repository's name there.
    rest: &'f str,
    client: &'f Client,
}

impl Fetch<'_> {
    fn place(&self) -> Place {
        (self.repository.access.grant.tenant.clone(), self.repository.name().to_owned())
    }

    fn reference(&self, identifier: &str) -> Result<Reference, OciError> {
        let text = format!("{}/{}{identifier}", self.source.upstream, self.rest);
        text.parse().map_err(|_| OciError::new(Code::NameInvalid, format!("`{text}` names no image")))
    }

    fn found(&self, kind: &str, found: bool) {
        let tenant = &self.repository.access.grant.tenant;
        self.server.metrics.looked_up(tenant, "mirror", kind, found);
    }

    /// What the other registry's failure means for whoever has nothing else.
    fn failed(&self, error: &RegistryError) -> OciError {
        if error.is_not_found() {
            return OciError::new(Code::ManifestUnknown, "the mirrored registry has no such thing");
        }
        tracing::warn!(
            registry = self.source.upstream,
            error = crate::hint::with_causes(error),
            "a mirrored registry failed"
        );
        self.mirrors.state().failed.insert(self.source.upstream.clone(), Instant::now());
        OciError::new(Code::Unavailable, format!("{} does not answer as it should", self.source.upstream))
    }

    async fn tag(&self, tag: &Tag) -> Result<(), OciError> {
        let known = self.repository.tag(tag).await?;
        let key = (self.place(), tag.as_str().to_owned());
        if let Some(digest) = known {
            let is_resting = {
                let state = self.mirrors.state();
                let believed = state.looked_up.get(&key).is_some_and(|at| at.elapsed() < FRESH);
                believed || state.failed.get(&self.source.upstream).is_some_and(|at| at.elapsed() < REST)
            };
            if is_resting {
                return self.used_manifest(&digest, Some(tag)).await;
            }
        }
        let reference = self.reference(&format!(":{}", tag.as_str()))?;
        let asked = self.client.head_manifest(&reference);
        let answer = match known {
            None => asked.await,
            Some(digest) => match tokio::time::timeout(PATIENCE, asked).await {
                Ok(Ok(head)) => Ok(head),
                failed => {
                    // There is something to go on with.
                    if let Ok(Err(error)) = failed {
                        self.failed(&error);
                    } else {
                        self.mirrors.state().failed.insert(self.source.upstream.clone(), Instant::now());
                    }
                    return self.used_manifest(&digest, Some(tag)).await;
                }
            },
        };
        let head = answer.map_err(|error| self.failed(&error))?;
        let Some(head) = head else {
            if known.is_some() {
                self.repository.remove_tag(tag).await?;
            }
            return Ok(());
        };
        let digest = match head.digest {
            Some(digest) => {
                self.manifest(&digest).await?;
                digest
            }
            // A registry that does not say has to send it.
            None => {
                let fetched = self.client.manifest(&reference).await.map_err(|error| self.failed(&error))?;
                self.keep(&fetched.digest, &fetched.bytes, &fetched.media_type).await?;
                fetched.digest
            }
        };
        if known != Some(digest) {
            self.repository.set_tag(tag, &digest).await?;
        }
        Mirrors::is_due(&mut self.mirrors.state().looked_up, key, Duration::ZERO);
        Ok(())
    }

    async fn manifest(&self, digest: &Digest) -> Result<(), OciError> {
        let is_here = self.repository.manifest(digest).await?.is_some()
            && self.repository.backend().blob_size(digest).await?.is_some();
        self.found("manifest", is_here);
        if is_here {
            return self.used_manifest(digest, None).await;
        }
        let reference = self.reference(&format!("@{digest}"))?;
        let fetched = match self.client.manifest(&reference).await {
            Ok(fetched) => fetched,
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(self.failed(&error)),
        };
        self.keep(digest, &fetched.bytes, &fetched.media_type).await
    }

    /// Stores a manifest, and takes note of the blobs that may be fetched because of it.
    async fn keep(&self, digest: &Digest, bytes: &Bytes, media_type: &str) -> Result<(), OciError> {
        let wrong = |_| OciError::new(Code::Unavailable, "the mirrored registry's manifest cannot be read");
        let manifest: Value = serde_json::from_slice(bytes).map_err(wrong)?;
        let own = manifest["mediaType"].as_str().unwrap_or(media_types::OCI_MANIFEST);
        let listed = manifest["layers"].as_array().map_or(&[][..], Vec::as_slice);
        for descriptor in listed.iter().chain([&manifest["config"]]) {
            let named = descriptor["digest"].as_str().and_then(|text| text.parse::<Digest>().ok());
            if let (Some(blob), Some(size)) = (named, descriptor["size"].as_u64()) {
                self.repository.expect_blob(&blob, size).await?;
            }
        }
        self.repository.backend().write_blob(digest, BlobSource::Bytes(bytes.clone())).await?;
        let entry = ManifestEntry {
            media_type: if media_type.is_empty() { own } else { media_type }.to_owned(),
            size: bytes.len() as u64,
            subject: None,
        };
        self.repository.add_manifest(digest, &entry).await
    }

    /// What is of use is not too old yet.
    async fn used_manifest(&self, digest: &Digest, tag: Option<&Tag>) -> Result<(), OciError> {
        let due = |name: String| {
            Mirrors::is_due(&mut self.mirrors.state().marked, (self.place(), name), MARK_EVERY)
        };
        if due(digest.to_string())
            && let Some(entry) = self.repository.manifest(digest).await?
            && let Some(bytes) = self.repository.backend().read_blob(digest, entry.size).await?
        {
            // With the blobs that it names, which may have to be fetched again.
            self.keep(digest, &bytes, &entry.media_type).await?;
        }
        if let Some(tag) = tag
            && due(tag.as_str().to_owned())
        {
            self.repository.set_tag(tag, digest).await?;
        }
        Ok(())
    }

    async fn blob(&self, digest: &Digest) -> Result<(), OciError> {
        let is_here = self.repository.blob(digest).await?.is_some();
        self.found("blob", is_here);
        if is_here {
            let key = (self.place(), digest.to_string());
            let due = Mirrors::is_due(&mut self.mirrors.state().marked, key, MARK_EVERY);
            return if due { self.repository.add_blob(digest).await } else { Ok(()) };
        }
        let Some(size) = self.repository.expected_blob(digest).await? else { return Ok(()) };
        if size > self.server.settings.limits.blob_bytes_max {
            return Err(OciError::new(Code::SizeInvalid, "the blob is larger than this server allows"));
        }
        let flight = self.mirrors.flight((self.repository.access.grant.tenant.clone(), *digest));
        let _alone = flight.lock().await;
        // Whoever was waited for may have brought it.
        if self.repository.blob(digest).await?.is_some() {
            return Ok(());
        }
        let reference = self.reference(":latest")?;
        // Another repository may have it. That is for those to know who could have it from the registry anyway.
        let is_here = self.repository.backend().blob_size(digest).await? == Some(size);
        let is_offered = is_here && self.client.offers_blob(&reference, digest).await.unwrap_or(false);
        if !is_offered {
            let directory = self.server.storage.spool().tmp_dir()?;
            let file = directory.path().join("blob");
            let blob = Descriptor::new(media_types::DOCKER_LAYER, *digest, size);
            let fetched = self.client.fetch_blob(&reference, &blob, &file, &|_| ()).await;
            match fetched {
                Ok(()) => {}
                Err(error) if error.is_not_found() => return Ok(()),
                Err(error) => return Err(self.failed(&error)),
            }
            self.repository.backend().adopt_file(digest, &file).await?;
        }
        self.repository.add_blob(digest).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_by_their_text() {
        let parse = |text: &str| text.parse::<MirrorSource>().map(|source| (source.name, source.upstream));
        let pair = |name: &str, upstream: &str| Ok((name.to_owned(), upstream.to_owned()));
        assert_eq!(parse("docker.io"), pair("docker.io", "docker.io"));
        assert_eq!(parse("hub=docker.io/library"), pair("hub", "docker.io/library"));
        assert_eq!(parse("local=127.0.0.1:5000"), pair("local", "127.0.0.1:5000"));
        for bad in ["", "=", "a/b=docker.io", "x=", "x=library", "x=docker.io/UPPER", "127.0.0.1:5000"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_follow_the_namespace_that_clients_give() {
        let sources = vec!["docker.io".parse().unwrap(), "local=127.0.0.1:5000".parse().unwrap()];
        let mirrors = Mirrors::new(sources, None);
        let resolve = |name: &str, namespace| mirrors.resolve(name.to_owned(), namespace);
        assert_eq!(resolve("library/busybox", Some("docker.io")), "docker.io/library/busybox");
        assert_eq!(resolve("docker.io/library/busybox", Some("docker.io")), "docker.io/library/busybox");
        assert_eq!(resolve("a/b", Some("127.0.0.1:5000")), "local/a/b");
        assert_eq!(resolve("a/b", Some("ghcr.io")), "a/b");
        assert_eq!(resolve("a/b", None), "a/b");
        assert!(
            mirrors.is_mirrored("local/a") && !mirrors.is_mirrored("local") && !mirrors.is_mirrored("a/b")
        );
    }
}
