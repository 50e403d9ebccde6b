//! Uploads in pieces, and blobs that are put together of pieces and of what is there already.

use std::collections::HashSet;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::json;

use super::blobs::{adopt, json as read_json};
use super::{PROTOCOL, created, digest};
use crate::digest::{Algorithm, Digest};
use crate::server::Server;
use crate::server::access::Access;
use crate::server::body::{Incoming, Spool};
use crate::server::error::Refusal;

/// Where an upload stands, and where a piece begins.
const OFFSET: HeaderName = HeaderName::from_static("upload-offset");

/// Parts of one blob. A layer of 10 GiB has some 20,000 frames.
const PARTS_MAX: usize = 1 << 18;

/// How much is copied at a time.
const PIECE: u64 = 1 << 20;

/// `POST /uploads`
pub(super) async fn create(
    State(server): State<Arc<Server>>,
    Extension(access): Extension<Access>,
) -> Result<Response, Refusal> {
    access.may_upload()?;
    let spool = Spool::new(server.storage.spool(), Algorithm::Sha256)?;
    let id = server.uploads.open(owner(&access), spool)?;
    Ok((StatusCode::CREATED, Json(json!({"upload": id}))).into_response())
}

/// `GET /uploads/{id}`: how far it is.
pub(super) async fn state(
    State(server): State<Arc<Server>>,
    Extension(access): Extension<Access>,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let spool = server.uploads.take(&id, &owner(&access))?;
    let size = spool.size();
    server.uploads.put_back(&id, spool);
    Ok(at(StatusCode::NO_CONTENT, size))
}

/// `PATCH /uploads/{id}`: adds the body, which begins where `Upload-Offset` says.
pub(super) async fn append(
    State(server): State<Arc<Server>>,
    Extension(access): Extension<Access>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    access.may_upload()?;
    let offset = headers.get(OFFSET).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let offset = offset.ok_or_else(|| Refusal::bad("the header Upload-Offset says where the body begins"))?;
    let spool = server.uploads.take(&id, &owner(&access))?;
    if offset != spool.size() {
        let size = spool.size();
        server.uploads.put_back(&id, spool);
        return Ok(at(StatusCode::CONFLICT, size));
    }
    let limits = &server.settings.limits;
    let left = limits.blob_bytes_max.saturating_sub(offset);
    match Incoming::new(body, limits.idle, left).append_to(spool).await {
        // What came before the connection broke is kept: the client asks how far it got.
        Ok((spool, received)) => {
            let size = spool.size();
            server.metrics.received(PROTOCOL, size - offset);
            server.uploads.put_back(&id, spool);
            received.map(|()| at(StatusCode::NO_CONTENT, size))
        }
        Err(refusal) => {
            server.uploads.remove(&id);
            Err(refusal)
        }
    }
}

/// `DELETE /uploads/{id}`
pub(super) async fn cancel(
    State(server): State<Arc<Server>>,
    Extension(access): Extension<Access>,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    drop(server.uploads.take(&id, &owner(&access))?);
    server.uploads.remove(&id);
    Ok(StatusCode::NO_CONTENT)
}

/// How a blob is put together.
#[derive(Deserialize)]
pub(super) struct Recipe {
    parts: Vec<Part>,
    /// The upload that parts without a blob are in; it is over then.
    upload: Option<String>,
}

/// Bytes of a blob that is there, or of the upload.
#[derive(Deserialize)]
struct Part {
    blob: Option<String>,
    offset: u64,
    length: u64,
}

/// `POST /blobs/{digest}/compose`: makes a blob of parts of others and of an upload.
pub(super) async fn compose(
    State(server): State<Arc<Server>>,
    Extension(access): Extension<Access>,
    Path(name): Path<String>,
    body: Body,
) -> Result<StatusCode, Refusal> {
    let digest = digest(&name)?;
    access.may_upload()?;
    let recipe: Recipe = read_json(&server, body).await?;
    let size = recipe.parts.iter().fold(0_u64, |sum, part| sum.saturating_add(part.length));
    if recipe.parts.len() > PARTS_MAX || size > server.settings.limits.blob_bytes_max {
        return Err(Refusal::too_large("the recipe makes too large a blob"));
    }
    let mut pack = match &recipe.upload {
        Some(id) => Some(server.uploads.take(id, &owner(&access))?),
        None => None,
    };
    let made = assemble(&server, &access, &digest, &recipe.parts, &mut pack).await;
    if let Some(id) = &recipe.upload {
        match (&made, pack) {
            // What was sent is not lost because something else was.
            (Err(_), Some(spool)) => server.uploads.put_back(id, spool),
            _ => server.uploads.remove(id),
        }
    }
    adopt(&server, &access, &digest, made?).await.map(created)
}

async fn assemble(
    server: &Server,
    access: &Access,
    digest: &Digest,
    parts: &[Part],
    pack: &mut Option<Spool>,
) -> Result<Spool, Refusal> {
    let blobs = parts.iter().filter_map(|part| part.blob.as_deref());
    let blobs = blobs.map(self::digest).collect::<Result<HashSet<_>, _>>()?;
    let seen = server.visible.seen(access, blobs).await?;
    let mut spool = Spool::new(server.storage.spool(), digest.algorithm())?;
    for part in parts {
        let end = part.offset.checked_add(part.length).ok_or_else(|| Refusal::bad("a part has no end"))?;
        let blob = part.blob.as_deref().map(self::digest).transpose()?;
        if let Some(blob) = blob.filter(|blob| !seen.contains(blob)) {
            return Err(absent(&blob));
        }
        let mut at = part.offset;
        while at < end {
            let next = end.min(at + PIECE);
            let bytes = match (&blob, pack.take()) {
                (Some(blob), back) => {
                    *pack = back;
                    let bytes = access.backend.read_range(blob, at..next).await?;
                    bytes.filter(|bytes| bytes.len() as u64 == next - at).ok_or_else(|| absent(blob))?
                }
                (None, Some(upload)) if next <= upload.size() => {
                    let (back, bytes) = upload.read(at, next - at).await?;
                    *pack = Some(back);
                    bytes
                }
                (None, back) => {
                    *pack = back;
                    return Err(Refusal::bad("a part is not in the upload"));
                }
            };
            spool = spool.append(bytes).await?;
            at = next;
        }
    }
    Ok(spool)
}

fn absent(blob: &Digest) -> Refusal {
    let message = format!("the blob {blob} is not here, or has no such part");
    Refusal::new(StatusCode::CONFLICT, "incomplete", message).with("missing", blob.to_string())
}

/// Whose uploads they are. Unlike that of an upload of the registry it has three words.
fn owner(access: &Access) -> String {
    format!("token {} {}", access.grant.tenant, access.holder)
}

fn at(status: StatusCode, offset: u64) -> Response {
    (status, [(OFFSET, HeaderValue::from(offset))]).into_response()
}
