//! Manifests, tags and referrers.

use axum::Json;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use super::error::{Code, OciError};
use super::names::{Reference, Tag};
use super::repository::{ManifestEntry, Repository, unknown_repository};
use super::{CONTENT_DIGEST, Call, PROTOCOL};
use crate::digest::Digest;
use crate::image::media_types;
use crate::server::body::Incoming;
use crate::store::BlobSource;

/// The specification asks for 4 MiB at least; more than this is no list of layers.
const BYTES_MAX: u64 = 16 << 20;

/// Descriptors in one manifest.
const DESCRIPTORS_MAX: usize = 10_000;

/// How many blobs are asked for at a time.
const QUESTIONS: usize = 16;

/// Tags given with one push.
const TAGS_MAX: usize = 100;

/// The longest answer with tags or referrers, unless fewer are asked for.
const TAGS_PAGE: usize = 10_000;

const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const TAG: HeaderName = HeaderName::from_static("oci-tag");
const FILTERS: HeaderName = HeaderName::from_static("oci-filters-applied");

fn unknown() -> OciError {
    OciError::new(Code::ManifestUnknown, "the repository has no such manifest")
}

fn invalid(message: impl Into<String>) -> OciError {
    OciError::new(Code::ManifestInvalid, message)
}

async fn resolve(repository: &Repository, reference: &Reference) -> Result<Option<Digest>, OciError> {
    match reference {
        Reference::Digest(digest) => Ok(Some(*digest)),
        Reference::Tag(tag) => repository.tag(tag).await,
    }
}

/// `GET` and `HEAD /v2/<name>/manifests/<reference>`
pub(super) async fn get(call: Call, reference: Reference) -> Result<Response, OciError> {
    let found = match resolve(&call.repository, &reference).await? {
        Some(digest) => call.repository.manifest(&digest).await?.map(|entry| (digest, entry)),
        None => None,
    };
    let tenant = &call.repository.access.grant.tenant;
    call.server.metrics.looked_up(tenant, PROTOCOL, "manifest", found.is_some());
    let (digest, entry) = found.ok_or_else(unknown)?;
    let mut headers = HeaderMap::new();
    let values = [
        (header::CONTENT_TYPE, entry.media_type.clone()),
        (header::CONTENT_LENGTH, entry.size.to_string()),
        (header::ETAG, format!("\"{digest}\"")),
        (CONTENT_DIGEST, digest.to_string()),
    ];
    for (name, value) in values {
        headers.insert(name, HeaderValue::from_str(&value).map_err(|_| unknown())?);
    }
    let known = call.header(header::IF_NONE_MATCH);
    if known.is_some_and(|known| known.contains(&format!("\"{digest}\""))) {
        headers.remove(header::CONTENT_LENGTH);
        return Ok((StatusCode::NOT_MODIFIED, headers).into_response());
    }
    if call.method == Method::HEAD {
        return Ok((StatusCode::OK, headers).into_response());
    }
    let bytes = call.repository.backend().read_blob(&digest, BYTES_MAX).await?.ok_or_else(unknown)?;
    call.server.metrics.sent(PROTOCOL, bytes.len() as u64);
    Ok((StatusCode::OK, headers, bytes).into_response())
}

/// `PUT /v2/<name>/manifests/<reference>`
pub(super) async fn put(mut call: Call, reference: Reference) -> Result<Response, OciError> {
    let idle = call.server.settings.limits.idle;
    let bytes = Incoming::new(std::mem::take(&mut call.body), idle, BYTES_MAX).read().await?;
    call.server.metrics.received(PROTOCOL, bytes.len() as u64);
    let mut tags = Vec::new();
    for (_, value) in call.query.iter().filter(|(name, _)| name == "tag") {
        let tag = Tag::parse(value);
        tags.push(tag.ok_or_else(|| OciError::new(Code::NameInvalid, format!("`{value}` is no tag")))?);
    }
    if tags.len() > TAGS_MAX {
        return Err(OciError::new(Code::SizeInvalid, format!("give up to {TAGS_MAX} tags at a time")));
    }
    let digest = match &reference {
        Reference::Digest(given) => {
            let found = Digest::with(given.algorithm(), &bytes);
            if found != *given {
                let message = format!("the manifest has digest {found}, and not {given}");
                return Err(OciError::new(Code::DigestInvalid, message));
            }
            found
        }
        Reference::Tag(tag) => {
            tags.push(tag.clone());
            Digest::of(&bytes)
        }
    };
    let manifest: Value =
        serde_json::from_slice(&bytes).map_err(|error| invalid(format!("it is no JSON: {error}")))?;
    let media_type = media_type(&call, &manifest)?;
    check(&call.repository, &manifest, &media_type).await?;
    let subject = manifest["subject"]["digest"].as_str();
    let subject =
        subject.map(str::parse::<Digest>).transpose().map_err(|error| invalid(error.to_string()))?;
    call.repository.backend().write_blob(&digest, BlobSource::Bytes(bytes.clone())).await?;
    let entry = ManifestEntry {
        media_type: media_type.clone(),
        size: bytes.len() as u64,
        subject: subject.map(|subject| subject.to_string()),
    };
    call.repository.add_manifest(&digest, &entry).await?;
    if let Some(subject) = &entry.subject {
        let descriptor = descriptor(&manifest, &entry, &digest);
        call.repository.add_referrer(subject, &digest, &descriptor).await?;
    }
    for tag in &tags {
        call.repository.set_tag(tag, &digest).await?;
    }
    let location = format!("/v2/{}/manifests/{digest}", call.repository.name());
    let mut headers = HeaderMap::new();
    let mut values = vec![(header::LOCATION, location), (CONTENT_DIGEST, digest.to_string())];
    values.extend(entry.subject.map(|subject| (SUBJECT, subject)));
    for (name, value) in values {
        headers.insert(name, HeaderValue::from_str(&value).map_err(|_| invalid("it has no location"))?);
    }
    if call.query.iter().any(|(name, _)| name == "tag") {
        for tag in &tags {
            headers.append(TAG, HeaderValue::from_str(tag.as_str()).map_err(|_| invalid("it has no tag"))?);
        }
    }
    Ok((StatusCode::CREATED, headers).into_response())
}

/// The media type of a manifest: what the request says, and what it says of itself, if it does.
fn media_type(call: &Call, manifest: &Value) -> Result<String, OciError> {
    let given =
        call.header(header::CONTENT_TYPE).map(|text| text.split(';').next().unwrap_or_default().trim());
    let own = manifest["mediaType"].as_str();
    match (given.filter(|given| !given.is_empty()), own) {
        (Some(given), Some(own)) if given != own => {
            Err(invalid(format!("it was sent as {given}, and says that it is {own}")))
        }
        (Some(given), _) => Ok(given.to_owned()),
        (None, Some(own)) => Ok(own.to_owned()),
        (None, None) => {
            Err(invalid("say what it is: `Content-Type: application/vnd.oci.image.manifest.v1+json`"))
        }
    }
}

/// Whether everything that it names is in the repository.
async fn check(repository: &Repository, manifest: &Value, media_type: &str) -> Result<(), OciError> {
    if manifest["schemaVersion"] == 1 || media_type.contains("manifest.v1+prettyjws") {
        return Err(invalid("manifests of schema 1 are not supported: push with a newer client"));
    }
    if manifest["schemaVersion"] != 2 {
        return Err(invalid("its `schemaVersion` is not 2"));
    }
    let list = |name: &str| manifest[name].as_array().map_or(&[][..], Vec::as_slice);
    let descriptors: Vec<&Value> = std::iter::once(&manifest["config"])
        .filter(|config| !config.is_null())
        .chain(list("layers"))
        .collect();
    if descriptors.len() + list("manifests").len() > DESCRIPTORS_MAX {
        return Err(invalid(format!("it names more than {DESCRIPTORS_MAX} blobs")));
    }
    let mut wanted = Vec::new();
    for descriptor in descriptors {
        let digest = parse_descriptor(descriptor)?;
        // Those are fetched from elsewhere, and need not have been pushed.
        let urls = descriptor["urls"].as_array().is_some_and(|urls| !urls.is_empty());
        let kind = descriptor["mediaType"].as_str().unwrap_or_default();
        if !urls && !kind.contains("nondistributable") && !kind.contains("rootfs.foreign") {
            wanted.push((digest, false));
        }
    }
    for descriptor in list("manifests") {
        wanted.push((parse_descriptor(descriptor)?, true));
    }
    let missing = futures_util::stream::iter(wanted)
        .map(async |(digest, may_be_manifest)| {
            let there = repository.is_member(&digest).await?
                || (may_be_manifest && repository.manifest(&digest).await?.is_some());
            Ok::<_, OciError>((digest, there))
        })
        .buffered(QUESTIONS);
    let mut missing = std::pin::pin!(missing);
    while let Some(found) = missing.next().await {
        let (digest, there) = found?;
        if !there {
            let message = format!("it names {digest}, which the repository does not have");
            return Err(OciError::new(Code::ManifestBlobUnknown, message));
        }
    }
    Ok(())
}

fn parse_descriptor(descriptor: &Value) -> Result<Digest, OciError> {
    let digest = descriptor["digest"].as_str().unwrap_or_default();
    let digest = digest.parse().map_err(|error| invalid(format!("it names a blob wrongly: {error}")))?;
    if descriptor["size"].as_u64().is_none() {
        return Err(invalid(format!("it does not say the size of {digest}")));
    }
    Ok(digest)
}

/// What the list of referrers says of a manifest (specification, "Listing Referrers").
fn descriptor(manifest: &Value, entry: &ManifestEntry, digest: &Digest) -> Value {
    let mut descriptor =
        json!({"mediaType": entry.media_type, "digest": digest.to_string(), "size": entry.size});
    let own = manifest["artifactType"].as_str().filter(|kind| !kind.is_empty());
    let kind = own.or_else(|| manifest["config"]["mediaType"].as_str());
    if let Some(kind) = kind {
        descriptor["artifactType"] = kind.into();
    }
    if manifest["annotations"].is_object() {
        descriptor["annotations"] = manifest["annotations"].clone();
    }
    descriptor
}

/// `DELETE /v2/<name>/manifests/<reference>`: the tag only, or the manifest with its tags.
pub(super) async fn delete(call: Call, reference: Reference) -> Result<Response, OciError> {
    let removed = match &reference {
        Reference::Tag(tag) => call.repository.remove_tag(tag).await?,
        Reference::Digest(digest) => call.repository.remove_manifest(digest).await?,
    };
    if removed { Ok(StatusCode::ACCEPTED.into_response()) } else { Err(unknown()) }
}

/// `GET /v2/<name>/tags/list`
pub(super) async fn tags(call: Call) -> Result<Response, OciError> {
    let name = call.repository.name();
    let mut tags = call.repository.tags().await?;
    if tags.is_empty() && !call.repository.exists().await? {
        return Err(unknown_repository());
    }
    if let Some(last) = call.parameter("last") {
        tags.retain(|tag| tag.as_str() > last);
    }
    let asked = match call.parameter("n") {
        None => TAGS_PAGE,
        Some(number) => number
            .parse::<usize>()
            .map_err(|_| OciError::new(Code::BlobUploadInvalid, format!("`n={number}` is no number")))?
            .min(TAGS_PAGE),
    };
    let more = tags.len() > asked;
    tags.truncate(asked);
    let link = tags
        .last()
        .filter(|_| more)
        .map(|last| format!("</v2/{name}/tags/list?n={asked}&last={last}>; rel=\"next\""));
    let mut response = Json(json!({"name": name, "tags": tags})).into_response();
    if let Some(link) = link.and_then(|link| HeaderValue::from_str(&link).ok()) {
        response.headers_mut().insert(header::LINK, link);
    }
    Ok(response)
}

/// `GET /v2/<name>/referrers/<digest>`
pub(super) async fn referrers(call: Call, subject: Digest) -> Result<Response, OciError> {
    let mut manifests = call.repository.referrers(&subject).await?;
    let filter = call.parameter("artifactType").filter(|kind| !kind.is_empty());
    if let Some(kind) = filter {
        manifests.retain(|descriptor| descriptor["artifactType"] == kind);
    }
    let index = json!({"schemaVersion": 2, "mediaType": media_types::OCI_INDEX, "manifests": manifests});
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_types::OCI_INDEX));
    if filter.is_some() {
        headers.insert(FILTERS, HeaderValue::from_static("artifactType"));
    }
    Ok((headers, index.to_string()).into_response())
}
