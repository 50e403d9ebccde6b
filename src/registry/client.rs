//! The client of the OCI distribution protocol.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap};
use reqwest::{Method, StatusCode, Url};

use super::auth::Access;
use super::credentials::Credentials;
use super::error::{RegistryError, RegistryErrorKind};
use super::hosts::Hosts;
use super::source::Progress;
use super::transfer;
use super::transport::{Attempts, Connections, Failure, Payload, Place, Request, RetryPolicy, Transport};
use crate::digest::{Digest, Hasher};
use crate::image::{CONFIG_BYTES_MAX, Descriptor, MANIFEST_BYTES_MAX, media_types};
use crate::reference::Reference;
use crate::store::BlobSource;

/// How a [`Client`] behaves.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// What it calls itself.
    pub user_agent: String,
    /// What is set for single registries.
    pub hosts: Hosts,
    /// Retries and timeouts.
    pub retry: RetryPolicy,
    /// A blob of more bytes than this is uploaded in pieces of this size.
    pub chunk_bytes: u64,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            user_agent: concat!("crossdock/", env!("CARGO_PKG_VERSION")).to_owned(),
            hosts: Hosts::new(),
            retry: RetryPolicy::default(),
            // Content delivery networks in front of registries refuse bodies of more than 100 MB.
            chunk_bytes: 64 << 20,
        }
    }
}

/// Talks to registries. Cheap to clone; clones share connections and tokens.
#[derive(Debug, Clone)]
pub struct Client {
    pub(super) inner: Arc<ClientInner>,
}

#[derive(Debug)]
pub(super) struct ClientInner {
    pub(super) transport: Transport,
    pub(super) chunk_bytes: u64,
}

/// What a registry says of a manifest without sending it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestHead {
    /// The digest, if the registry says it.
    pub digest: Option<Digest>,
    /// The length in bytes, if the registry says it.
    pub size: Option<u64>,
    /// The media type; empty if the registry does not say it.
    pub media_type: String,
}

/// A manifest or an index, verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchedManifest {
    /// The digest of the bytes.
    pub digest: Digest,
    /// The document.
    pub bytes: Bytes,
    /// The media type that the registry gave it; empty if it gave none.
    pub media_type: String,
}

/// An upload that the registry has agreed to.
#[derive(Debug, Clone)]
pub struct UploadSession {
    pub(super) url: Url,
}

/// What became of the wish to mount a blob.
#[derive(Debug)]
pub enum MountOutcome {
    /// The repository has the blob now.
    Mounted,
    /// It cannot be mounted, and the registry has opened an upload for it instead.
    Upload(UploadSession),
    /// It cannot be mounted.
    Refused,
}

impl Client {
    /// A client that shows `credentials` to those registries that ask for some.
    pub fn new(options: ClientOptions, credentials: Arc<dyn Credentials>) -> Result<Self, RegistryError> {
        let problem = |reason: String| RegistryError {
            action: "setting up HTTPS".to_owned(),
            registry: "any registry".to_owned(),
            repository: String::new(),
            kind: RegistryErrorKind::Transport { reason, plain_http: false },
        };
        let builder = || {
            reqwest::Client::builder()
                .user_agent(&options.user_agent)
                .redirect(reqwest::redirect::Policy::none())
                .referer(false)
                .connect_timeout(Duration::from_secs(20).min(options.retry.idle_max))
                .pool_idle_timeout(Duration::from_secs(30))
                .retry(reqwest::retry::never())
        };
        let build =
            |builder: reqwest::ClientBuilder| builder.build().map_err(|error| super::redact::chain(&error));
        // On a machine without certificates the ordinary client cannot be built at all, although plain HTTP to a
        // registry next door needs none.
        let none = || Vec::<reqwest::Certificate>::new();
        let local = build(builder().no_proxy().tls_certs_only(none())).map_err(problem)?;
        let (remote, missing) = match build(builder()) {
            Ok(remote) => (remote, None),
            Err(reason) => (build(builder().tls_certs_only(none())).map_err(problem)?, Some(reason)),
        };
        let mut connections = Connections { local, remote, certificates: missing, own: HashMap::new() };
        for (registry, host) in options.hosts.iter().filter(|(_, host)| host.has_tls_options()) {
            let client = host.client(builder).map_err(|error| RegistryError {
                registry: registry.clone(),
                ..problem(super::redact::chain(&error))
            })?;
            connections.own.insert(super::transport::authority_of(registry), client);
        }
        let transport = Transport::new(connections, options.retry, options.hosts, credentials);
        // Pieces of a few bytes would be a request each.
        let chunk_bytes = options.chunk_bytes.max(1024);
        Ok(Self { inner: Arc::new(ClientInner { transport, chunk_bytes }) })
    }

    /// The HTTP client for `url`, with this machine's certificates and proxies. It follows no redirects.
    pub(crate) fn connection(&self, url: &Url) -> &reqwest::Client {
        self.transport().connection(url)
    }

    fn transport(&self) -> &Transport {
        &self.inner.transport
    }

    /// What `reference` is called at the mirrors of its registry.
    fn mirrors(&self, reference: &Reference) -> Vec<Reference> {
        let host = self.transport().hosts.get(reference.registry());
        host.map(|host| host.mirrors.iter().filter_map(|mirror| mirror.of(reference)).collect())
            .unwrap_or_default()
    }

    pub(super) fn retry(&self) -> RetryPolicy {
        self.transport().retry
    }

    /// A mirror is asked once: there is another place to ask.
    fn once(&self) -> RetryPolicy {
        RetryPolicy { attempts_max: 1, ..self.retry() }
    }

    /// Asks what `reference` points at; `None` if it does not exist.
    pub async fn head_manifest(&self, reference: &Reference) -> Result<Option<ManifestHead>, RegistryError> {
        for mirror in self.mirrors(reference) {
            let access = Access::pull(mirror.repository());
            if let Ok(Some(head)) = self.head_manifest_as(&mirror, access, self.once()).await {
                return Ok(Some(head));
            }
        }
        self.head_manifest_as(reference, Access::pull(reference.repository()), self.retry()).await
    }

    pub(super) async fn head_manifest_as(
        &self,
        reference: &Reference,
        access: Access,
        retry: RetryPolicy,
    ) -> Result<Option<ManifestHead>, RegistryError> {
        let place = Place::new(reference, format!("looking up {}", reference.identifier()));
        let request = self.manifest_request(Method::HEAD, reference, access)?;
        let response = self
            .transport()
            .send_as(retry, &place, &request, &[StatusCode::OK, StatusCode::NOT_FOUND])
            .await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let headers = response.headers();
        Ok(Some(ManifestHead {
            digest: content_digest(headers),
            // `Response::content_length` speaks of the body, which an answer to HEAD does not have.
            size: text(headers, "content-length").and_then(|length| length.parse().ok()),
            media_type: media_type(headers),
        }))
    }

    /// Fetches the manifest or index that `reference` names, and verifies it.
    pub async fn manifest(&self, reference: &Reference) -> Result<FetchedManifest, RegistryError> {
        for mirror in self.mirrors(reference) {
            if let Ok(manifest) = self.manifest_at(&mirror, self.once()).await {
                return Ok(manifest);
            }
        }
        self.manifest_at(reference, self.retry()).await
    }

    async fn manifest_at(
        &self,
        reference: &Reference,
        retry: RetryPolicy,
    ) -> Result<FetchedManifest, RegistryError> {
        let place = Place::new(reference, format!("reading manifest {}", reference.identifier()));
        let request = self.manifest_request(Method::GET, reference, Access::pull(reference.repository()))?;
        let mut attempts = Attempts::new(retry);
        loop {
            match self.try_manifest(&place, &request, reference.digest()).await {
                Ok(manifest) => return Ok(manifest),
                Err(failure) => attempts.after(failure).await?,
            }
        }
    }

    async fn try_manifest(
        &self,
        place: &Place,
        request: &Request<'_>,
        pinned: Option<&Digest>,
    ) -> Result<FetchedManifest, Failure> {
        let response = self.transport().send_once(place, request, &[StatusCode::OK]).await?;
        let announced = content_digest(response.headers());
        let media_type = media_type(response.headers());
        let bytes = self.transport().read_bounded(place, response, MANIFEST_BYTES_MAX).await?;
        let expected = pinned.copied().or(announced);
        let algorithm = expected.map_or(crate::digest::Algorithm::Sha256, |digest| digest.algorithm());
        let mut hasher = Hasher::new(algorithm);
        hasher.update(&bytes);
        let digest = hasher.finish();
        match expected {
            Some(expected) if expected != digest => Err(Failure::permanent(
                place.error(RegistryErrorKind::Digest { expected: expected.into(), actual: digest.into() }),
            )),
            _ => Ok(FetchedManifest { digest, bytes, media_type }),
        }
    }

    fn manifest_request(
        &self,
        method: Method,
        reference: &Reference,
        access: Access,
    ) -> Result<Request<'static>, RegistryError> {
        let url = self.transport().url(reference, &format!("manifests/{}", reference.identifier()))?;
        let accept = [
            media_types::OCI_INDEX,
            media_types::OCI_MANIFEST,
            media_types::DOCKER_INDEX,
            media_types::DOCKER_MANIFEST,
        ]
        .join(", ");
        Ok(Request::new(method, url, access).header(ACCEPT, &accept))
    }

    /// Reads a blob of at most `limit` bytes into memory, verified.
    pub async fn blob_bytes(
        &self,
        reference: &Reference,
        blob: &Descriptor,
        limit: u64,
    ) -> Result<Bytes, RegistryError> {
        for mirror in self.mirrors(reference) {
            if let Ok(bytes) = self.blob_bytes_at(&mirror, blob, limit, self.once()).await {
                return Ok(bytes);
            }
        }
        self.blob_bytes_at(reference, blob, limit, self.retry()).await
    }

    async fn blob_bytes_at(
        &self,
        reference: &Reference,
        blob: &Descriptor,
        limit: u64,
        retry: RetryPolicy,
    ) -> Result<Bytes, RegistryError> {
        let place = Place::new(reference, format!("reading blob {}", blob.digest));
        // Nothing above needs more in memory than a configuration.
        let limit = limit.min(CONFIG_BYTES_MAX);
        if blob.size > limit {
            return Err(place.error(RegistryErrorKind::TooLarge { limit }));
        }
        let url = self.transport().url(reference, &format!("blobs/{}", blob.digest))?;
        let request = Request::new(Method::GET, url, Access::pull(reference.repository()));
        let mut attempts = Attempts::new(retry);
        loop {
            match self.try_blob_bytes(&place, &request, blob).await {
                Ok(bytes) => return Ok(bytes),
                Err(failure) => attempts.after(failure).await?,
            }
        }
    }

    async fn try_blob_bytes(
        &self,
        place: &Place,
        request: &Request<'_>,
        blob: &Descriptor,
    ) -> Result<Bytes, Failure> {
        let response = self.transport().send_once(place, request, &[StatusCode::OK]).await?;
        let bytes = self.transport().read_bounded(place, response, blob.size).await?;
        let actual = bytes.len() as u64;
        if actual != blob.size {
            let kind = RegistryErrorKind::Size { expected: blob.size, actual };
            return Err(Failure::permanent(place.error(kind)));
        }
        if !blob.digest.matches(&bytes) {
            let kind =
                RegistryErrorKind::Digest { expected: blob.digest.into(), actual: Digest::of(&bytes).into() };
            return Err(Failure::permanent(place.error(kind)));
        }
        Ok(bytes)
    }

    /// Downloads a blob to the file `destination`, which appears when its size and digest are right. A connection
    /// that breaks is taken up again where it broke. Until then the bytes are in `<destination>.partial`, which
    /// is removed on an error.
    pub async fn fetch_blob(
        &self,
        reference: &Reference,
        blob: &Descriptor,
        destination: &Path,
        progress: Progress<'_>,
    ) -> Result<(), RegistryError> {
        for mirror in self.mirrors(reference) {
            if self.fetch_blob_at(&mirror, blob, destination, progress, self.once()).await.is_ok() {
                return Ok(());
            }
        }
        self.fetch_blob_at(reference, blob, destination, progress, self.retry()).await
    }

    async fn fetch_blob_at(
        &self,
        reference: &Reference,
        blob: &Descriptor,
        destination: &Path,
        progress: Progress<'_>,
        retry: RetryPolicy,
    ) -> Result<(), RegistryError> {
        let place = Place::new(reference, format!("downloading blob {}", blob.digest));
        let url = self.transport().url(reference, &format!("blobs/{}", blob.digest))?;
        let request = Request::new(Method::GET, url, Access::pull(reference.repository()));
        transfer::download(self.transport(), retry, &place, request, blob, destination, progress).await
    }

    /// Whether the repository, to which something is to be pushed, has the blob.
    pub async fn has_blob(&self, reference: &Reference, digest: &Digest) -> Result<bool, RegistryError> {
        self.looks_for_blob(reference, digest, Access::push(reference.repository())).await
    }

    /// Whether the blob can be pulled from the repository.
    pub async fn offers_blob(&self, reference: &Reference, digest: &Digest) -> Result<bool, RegistryError> {
        self.looks_for_blob(reference, digest, Access::pull(reference.repository())).await
    }

    async fn looks_for_blob(
        &self,
        reference: &Reference,
        digest: &Digest,
        access: Access,
    ) -> Result<bool, RegistryError> {
        let place = Place::new(reference, format!("looking for blob {digest}"));
        let url = self.transport().url(reference, &format!("blobs/{digest}"))?;
        let mut request = Request::new(Method::HEAD, url, access);
        // A registry that redirects has the blob. Following could fail: the address may be signed for GET only.
        request.redirects = false;
        let expected = [
            StatusCode::OK,
            StatusCode::NOT_FOUND,
            StatusCode::FOUND,
            StatusCode::TEMPORARY_REDIRECT,
            StatusCode::PERMANENT_REDIRECT,
        ];
        let response = self.transport().send(&place, &request, &expected).await?;
        Ok(response.status() != StatusCode::NOT_FOUND)
    }

    /// Asks the registry to take over a blob from another of its repositories.
    pub async fn mount_blob(
        &self,
        reference: &Reference,
        digest: &Digest,
        from: &str,
    ) -> Result<MountOutcome, RegistryError> {
        let place = Place::new(reference, format!("mounting blob {digest} from {from}"));
        let mut url = self.transport().url(reference, "blobs/uploads/")?;
        url.query_pairs_mut().append_pair("mount", &digest.to_string()).append_pair("from", from);
        let request = Request::new(Method::POST, url, Access::mount(reference.repository(), from));
        match self.transport().send(&place, &request, &[StatusCode::CREATED, StatusCode::ACCEPTED]).await {
            Ok(response) if response.status() == StatusCode::CREATED => Ok(MountOutcome::Mounted),
            Ok(response) => Ok(match transfer::session(&request.url, response.headers()) {
                Some(session) => MountOutcome::Upload(session),
                None => MountOutcome::Refused,
            }),
            // No right to read the other repository, or a registry that does not know mounts: it is only a wish.
            Err(error) if error.status().is_some_and(|status| (400..429).contains(&status)) => {
                Ok(MountOutcome::Refused)
            }
            Err(error) => Err(error),
        }
    }

    /// Uploads a blob, in one piece or in several; `session` is what a refused mount left. The progress is in
    /// bytes handed to the network.
    pub async fn upload_blob(
        &self,
        reference: &Reference,
        blob: &Descriptor,
        source: &BlobSource,
        session: Option<UploadSession>,
        progress: Progress<'_>,
    ) -> Result<(), RegistryError> {
        transfer::Upload::new(self, reference, blob, source, progress).run(session).await
    }

    /// Publishes a manifest or index under the tag of `reference`, or under its digest if there is no tag.
    pub async fn push_manifest(
        &self,
        reference: &Reference,
        content_type: &str,
        bytes: Bytes,
    ) -> Result<Digest, RegistryError> {
        self.put_manifest(reference, reference.tag(), content_type, bytes).await
    }

    /// Publishes a manifest under its digest, whatever the tag of `reference` is: an index names it.
    pub async fn push_manifest_untagged(
        &self,
        reference: &Reference,
        content_type: &str,
        bytes: Bytes,
    ) -> Result<Digest, RegistryError> {
        self.put_manifest(reference, None, content_type, bytes).await
    }

    async fn put_manifest(
        &self,
        reference: &Reference,
        tag: Option<&str>,
        content_type: &str,
        bytes: Bytes,
    ) -> Result<Digest, RegistryError> {
        let digest = Digest::of(&bytes);
        let name = tag.map_or_else(|| digest.to_string(), str::to_owned);
        let place = Place::new(reference, format!("publishing manifest {name}"));
        let url = self.transport().url(reference, &format!("manifests/{name}"))?;
        let mut request = Request::new(Method::PUT, url, Access::push(reference.repository()))
            .header(CONTENT_TYPE, content_type);
        request.payload = Payload::Bytes(bytes);
        let expected = [StatusCode::CREATED, StatusCode::OK, StatusCode::ACCEPTED];
        let response = self.transport().send(&place, &request, &expected).await?;
        match content_digest(response.headers()) {
            Some(actual) if actual != digest && actual.algorithm() == digest.algorithm() => {
                Err(place.error(RegistryErrorKind::Digest { expected: digest.into(), actual: actual.into() }))
            }
            _ => Ok(digest),
        }
    }
}

pub(super) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn content_digest(headers: &HeaderMap) -> Option<Digest> {
    text(headers, "docker-content-digest")?.parse().ok()
}

fn media_type(headers: &HeaderMap) -> String {
    let value = text(headers, "content-type").unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_owned()
}
