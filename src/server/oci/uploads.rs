//! Uploads of blobs: whole, in chunks, or by mounting what another repository has.
//!
//! A session lives in the server that began it. Another server over the same storage does not know it
//! (`BLOB_UPLOAD_UNKNOWN`), and clients begin again: a load balancer had better send a client to one server.

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};

use super::error::{Code, OciError};
use super::{CONTENT_DIGEST, Call, PROTOCOL};
use crate::digest::{Algorithm, Digest};
use crate::server::body::{Incoming, Spool};

const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");

/// Whose session it is.
fn owner(call: &Call) -> String {
    format!("{} {}", call.repository.access.grant.tenant, call.repository.name())
}

fn digest(text: &str) -> Result<Digest, OciError> {
    text.parse().map_err(|error| OciError::new(Code::DigestInvalid, format!("{error}")))
}

/// `POST /v2/<name>/blobs/uploads/`
pub(super) async fn start(call: Call) -> Result<Response, OciError> {
    if let Some(mounted) = call.parameter("mount") {
        let mounted = digest(mounted)?;
        // Without `from` any repository of the caller's would do; which one, only a search of all could tell.
        let from = call.parameter("from").and_then(|from| call.repository.sibling(from));
        if let Some(from) = from
            && from.blob(&mounted).await?.is_some()
        {
            call.repository.add_blob(&mounted).await?;
            return Ok(created(&call, &mounted));
        }
    } else if let Some(given) = call.parameter("digest") {
        let given = digest(given)?;
        let spool = Spool::new(call.server.storage.spool(), given.algorithm())?;
        return store(call, spool, given).await;
    }
    let algorithm = match call.parameter("digest-algorithm") {
        None | Some("sha256") => Algorithm::Sha256,
        Some("sha512") => Algorithm::Sha512,
        Some(other) => {
            let message = format!("the digest algorithm `{other}` is not known here: sha256 and sha512 are");
            return Err(OciError::new(Code::DigestInvalid, message));
        }
    };
    let spool = Spool::new(call.server.storage.spool(), algorithm)?;
    let id = call.server.uploads.open(owner(&call), spool)?;
    Ok(at(&call, StatusCode::ACCEPTED, &id, 0))
}

/// `GET <location>`: how far it is.
pub(super) fn state(call: &Call, id: &str) -> Result<Response, OciError> {
    let spool = call.server.uploads.take(id, &owner(call))?;
    let size = spool.size();
    call.server.uploads.put_back(id, spool);
    Ok(at(call, StatusCode::NO_CONTENT, id, size))
}

/// `PATCH <location>`: a chunk.
pub(super) async fn append(mut call: Call, id: &str) -> Result<Response, OciError> {
    let spool = call.server.uploads.take(id, &owner(&call))?;
    let spool = match expected(&call, spool.size()) {
        Ok(()) => spool,
        // The session stays: the client may ask how far it is, and go on.
        Err(error) => {
            let size = spool.size();
            call.server.uploads.put_back(id, spool);
            let mut answer = error.into_response();
            answer.headers_mut().extend(place(&call, id, size));
            return Ok(answer);
        }
    };
    let body = std::mem::take(&mut call.body);
    let limits = &call.server.settings.limits;
    let left = limits.blob_bytes_max.saturating_sub(spool.size());
    let before = spool.size();
    match Incoming::new(body, limits.idle, left).append_to(spool).await {
        Ok((spool, received)) => {
            let size = spool.size();
            call.server.metrics.received(PROTOCOL, size - before);
            call.server.uploads.put_back(id, spool);
            received?;
            Ok(at(&call, StatusCode::ACCEPTED, id, size))
        }
        Err(refusal) => {
            call.server.uploads.remove(id);
            Err(refusal.into())
        }
    }
}

/// `PUT <location>?digest=…`: the last chunk, if any, and the end.
pub(super) async fn finish(call: Call, id: &str) -> Result<Response, OciError> {
    let given = call.parameter("digest").ok_or_else(|| {
        OciError::new(Code::DigestInvalid, "say the digest of the whole: `?digest=sha256:…`")
    })?;
    let given = digest(given)?;
    let spool = call.server.uploads.take(id, &owner(&call))?;
    if let Err(error) = expected(&call, spool.size()) {
        call.server.uploads.put_back(id, spool);
        return Err(error);
    }
    call.server.uploads.remove(id);
    store(call, spool, given).await
}

/// `DELETE <location>`
pub(super) fn cancel(call: &Call, id: &str) -> Result<Response, OciError> {
    drop(call.server.uploads.take(id, &owner(call))?);
    call.server.uploads.remove(id);
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Receives the body behind what is there already, and makes all of it a blob of the repository.
async fn store(mut call: Call, spool: Spool, given: Digest) -> Result<Response, OciError> {
    let body = std::mem::take(&mut call.body);
    let limits = &call.server.settings.limits;
    let left = limits.blob_bytes_max.saturating_sub(spool.size());
    let before = spool.size();
    let spool = Incoming::new(body, limits.idle, left).spool(spool).await?;
    call.server.metrics.received(PROTOCOL, spool.size() - before);
    let (path, found) = spool.finish_as(given.algorithm()).await?;
    if found != given {
        let message = format!("the content has digest {found}, and not {given}");
        return Err(OciError::new(Code::DigestInvalid, message));
    }
    call.repository.backend().adopt_file(&given, &path).await?;
    call.repository.add_blob(&given).await?;
    Ok(created(&call, &given))
}

/// Whether what `Content-Range` says follows on what is there. It has no `bytes ` in front, unlike everywhere else.
fn expected(call: &Call, size: u64) -> Result<(), OciError> {
    let Some(range) = call.header(header::CONTENT_RANGE) else { return Ok(()) };
    let numbers = range.split_once('-').and_then(|(first, last)| {
        Some((first.trim().parse::<u64>().ok()?, last.trim().parse::<u64>().ok()?))
    });
    let (first, last) = numbers.ok_or_else(|| {
        OciError::new(Code::BlobUploadInvalid, format!("`{range}` is no range: `Content-Range: 0-99`"))
    })?;
    if first != size || last < first {
        let message = format!("the upload has {size} bytes, and the chunk begins at {first}");
        return Err(OciError::new(Code::RangeInvalid, message));
    }
    let length = call.header(header::CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
    if length.is_some_and(|length| length != last - first + 1) {
        let message = "the range and the length of the chunk are not the same";
        return Err(OciError::new(Code::BlobUploadInvalid, message));
    }
    Ok(())
}

fn created(call: &Call, digest: &Digest) -> Response {
    let location = format!("/v2/{}/blobs/{digest}", call.repository.name());
    let headers = [(header::LOCATION, location), (CONTENT_DIGEST, digest.to_string())];
    (StatusCode::CREATED, headers).into_response()
}

fn at(call: &Call, status: StatusCode, id: &str, size: u64) -> Response {
    let mut response = status.into_response();
    response.headers_mut().extend(place(call, id, size));
    response
}

fn place(call: &Call, id: &str, size: u64) -> Vec<(HeaderName, HeaderValue)> {
    let location = format!("/v2/{}/blobs/uploads/{id}", call.repository.name());
    // Of nothing, too, a range has to be given: it is that of the first byte.
    let range = format!("0-{}", size.saturating_sub(1));
    let pairs = [(header::LOCATION, location), (header::RANGE, range), (UPLOAD_ID, id.to_owned())];
    pairs.into_iter().filter_map(|(name, value)| Some((name, value.parse().ok()?))).collect()
}
