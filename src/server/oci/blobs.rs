//! Blobs of a repository.

use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};

use super::error::{Code, OciError};
use super::{CONTENT_DIGEST, Call, PROTOCOL};
use crate::digest::Digest;
use crate::server::stream::{self, Asked};

pub(super) fn unknown() -> OciError {
    OciError::new(Code::BlobUnknown, "the repository has no such blob")
}

/// `GET` and `HEAD /v2/<name>/blobs/<digest>`
pub(super) async fn get(call: Call, digest: Digest) -> Result<Response, OciError> {
    let size = call.repository.blob(&digest).await?;
    let tenant = &call.repository.access.grant.tenant;
    call.server.metrics.looked_up(tenant, PROTOCOL, "blob", size.is_some());
    let size = size.ok_or_else(unknown)?;
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let immutable = HeaderValue::from_static("private, max-age=31536000, immutable");
    headers.insert(header::CACHE_CONTROL, immutable);
    if let (Ok(name), Ok(tag)) = (digest.to_string().parse(), format!("\"{digest}\"").parse()) {
        headers.insert(CONTENT_DIGEST, name);
        headers.insert(header::ETAG, tag);
    }
    let known = call.header(header::IF_NONE_MATCH);
    if known.is_some_and(|known| known == "*" || known.contains(&format!("\"{digest}\""))) {
        return Ok((StatusCode::NOT_MODIFIED, headers).into_response());
    }
    let asked = call.header(header::RANGE).map(|text| stream::range(text, size));
    let (status, range) = match asked {
        None | Some(Asked::Everything) => (StatusCode::OK, 0..size),
        Some(Asked::Part(part)) => (StatusCode::PARTIAL_CONTENT, part),
        Some(Asked::Nothing) => {
            let range = [(header::CONTENT_RANGE, format!("bytes */{size}"))];
            return Ok((StatusCode::RANGE_NOT_SATISFIABLE, range).into_response());
        }
    };
    headers.insert(header::CONTENT_LENGTH, (range.end - range.start).into());
    if status == StatusCode::PARTIAL_CONTENT
        && let Ok(value) = format!("bytes {}-{}/{size}", range.start, range.end - 1).parse()
    {
        headers.insert(header::CONTENT_RANGE, value);
    }
    if call.method == Method::HEAD {
        return Ok((status, headers).into_response());
    }
    call.server.metrics.sent(PROTOCOL, range.end - range.start);
    let access = call.repository.access;
    let body = stream::blob(call.server, access, digest, range, size, call.outlet.as_ref()).await?;
    Ok((status, headers, body).into_response())
}

/// `DELETE /v2/<name>/blobs/<digest>`: the repository has it no more. Its bytes stay until nobody has them.
pub(super) async fn delete(call: Call, digest: Digest) -> Result<Response, OciError> {
    if call.repository.remove_blob(&digest).await? {
        Ok(StatusCode::ACCEPTED.into_response())
    } else {
        Err(unknown())
    }
}
