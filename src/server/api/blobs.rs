//! Blobs: whether they are there, and their bytes.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};

use super::{PROTOCOL, QUESTION_BYTES_MAX, bytes, created, digest};
use crate::digest::Digest;
use crate::server::Server;
use crate::server::access::Access;
use crate::server::body::{Incoming, Spool};
use crate::server::error::Refusal;
use crate::server::outlet::Outlet;
use crate::server::stream;

/// Digests in one question.
const DIGESTS_MAX: usize = 16_384;

/// Ranges in one question, and the bytes of their answer.
const RANGES_MAX: usize = 4096;
const RANGES_BYTES_MAX: u64 = 64 << 20;

#[derive(Deserialize)]
pub(super) struct Question {
    digests: Vec<String>,
}

#[derive(Serialize)]
struct Answer {
    missing: Vec<String>,
}

/// `POST /blobs/missing`
pub(super) async fn missing(
    State(server): State<Arc<Server>>,
    Extension(access): Extension<Access>,
    body: Body,
) -> Result<Response, Refusal> {
    let question: Question = json(&server, body).await?;
    if question.digests.len() > DIGESTS_MAX {
        return Err(Refusal::too_large(format!("ask for {DIGESTS_MAX} digests at a time")));
    }
    let digests = question.digests.iter().map(|text| digest(text)).collect::<Result<Vec<_>, _>>()?;
    let there = server.visible.there(&access, digests.iter().copied()).await?;
    let missing = digests.iter().filter(|digest| !there.contains(digest)).map(ToString::to_string).collect();
    Ok(Json(Answer { missing }).into_response())
}

/// `GET` and `HEAD /blobs/{digest}`
pub(super) async fn get(
    State(server): State<Arc<Server>>,
    Extension(access): Extension<Access>,
    Path(name): Path<String>,
    outlet: Option<Extension<Outlet>>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let digest = digest(&name)?;
    let size = size(&server, &access, &digest).await?;
    server.metrics.looked_up(&access.grant.tenant, PROTOCOL, "blob", size.is_some());
    let size = size.ok_or_else(Refusal::not_found)?;
    let question = stream::Question {
        protocol: PROTOCOL,
        digest,
        size,
        method: &method,
        range: headers.get(header::RANGE).and_then(|value| value.to_str().ok()),
        outlet: outlet.as_ref().map(|Extension(outlet)| outlet),
    };
    Ok(stream::answer(server, access, question, stream::headers()).await?)
}

/// The size of a blob that is there and may be seen. What may not be seen is not even looked for, so that the time of an
/// answer says nothing of it.
async fn size(server: &Server, access: &Access, digest: &Digest) -> Result<Option<u64>, Refusal> {
    if !server.visible.sees(access, digest).await? {
        return Ok(None);
    }
    Ok(access.backend.blob_size(digest).await?)
}

#[derive(Deserialize)]
pub(super) struct Ranges {
    /// Each `[start, end]`, the end not included.
    ranges: Vec<(u64, u64)>,
}

/// `POST /blobs/{digest}/ranges`: the bytes of many ranges, one behind the other.
pub(super) async fn ranges(
    State(server): State<Arc<Server>>,
    Extension(access): Extension<Access>,
    Path(name): Path<String>,
    body: Body,
) -> Result<Response, Refusal> {
    let digest = digest(&name)?;
    let asked: Ranges = json(&server, body).await?;
    let size = size(&server, &access, &digest).await?;
    server.metrics.looked_up(&access.grant.tenant, PROTOCOL, "ranges", size.is_some());
    let size = size.ok_or_else(Refusal::not_found)?;
    let mut total = 0_u64;
    for (start, end) in &asked.ranges {
        if start > end || *end > size {
            return Err(Refusal::bad(format!("the range {start} to {end} is none of {size} bytes")));
        }
        total = total.saturating_add(end - start);
    }
    if asked.ranges.len() > RANGES_MAX || total > RANGES_BYTES_MAX {
        let message = format!("ask for {RANGES_MAX} ranges and {RANGES_BYTES_MAX} bytes at a time");
        return Err(Refusal::too_large(message));
    }
    let mut answer = Vec::with_capacity(usize::try_from(total).unwrap_or(0));
    for (start, end) in asked.ranges {
        let part = access.backend.read_range(&digest, start..end).await?;
        answer.extend_from_slice(&part.ok_or_else(Refusal::not_found)?);
    }
    server.metrics.sent(PROTOCOL, total);
    Ok(bytes(answer))
}

/// `PUT /blobs/{digest}`
pub(super) async fn put(
    State(server): State<Arc<Server>>,
    Extension(access): Extension<Access>,
    Path(name): Path<String>,
    body: Body,
) -> Result<StatusCode, Refusal> {
    let digest = digest(&name)?;
    access.may_upload()?;
    let limits = &server.settings.limits;
    let spool = Spool::new(server.storage.spool(), digest.algorithm())?;
    let spool = Incoming::new(body, limits.idle, limits.blob_bytes_max).spool(spool).await?;
    server.metrics.received(PROTOCOL, spool.size());
    adopt(&server, &access, &digest, spool).await.map(created)
}

/// Makes what was received a blob, if it is what its digest says.
pub(super) async fn adopt(
    server: &Server,
    access: &Access,
    digest: &Digest,
    spool: Spool,
) -> Result<bool, Refusal> {
    let (path, found) = spool.finish();
    if found != *digest {
        let message = format!("the content has digest {found}, and not {digest}");
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "mismatch", message));
    }
    let is_new = access.backend.adopt_file(digest, &path).await?;
    server.visible.sent(access, digest).await?;
    Ok(is_new)
}

/// A question in JSON.
pub(super) async fn json<T: serde::de::DeserializeOwned>(server: &Server, body: Body) -> Result<T, Refusal> {
    let text: Bytes = Incoming::new(body, server.settings.limits.idle, QUESTION_BYTES_MAX).read().await?;
    serde_json::from_slice(&text)
        .map_err(|error| Refusal::bad(format!("the body is not what it should be: {error}")))
}
