//! Blobs of a repository.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};

use super::error::{Code, OciError};
use super::{CONTENT_DIGEST, Call, PROTOCOL};
use crate::digest::Digest;
use crate::server::stream;

pub(super) fn unknown() -> OciError {
    OciError::new(Code::BlobUnknown, "the repository has no such blob")
}

/// `GET` and `HEAD /v2/<name>/blobs/<digest>`
pub(super) async fn get(call: Call, digest: Digest) -> Result<Response, OciError> {
    let size = call.repository.blob(&digest).await?;
    let tenant = &call.repository.access.grant.tenant;
    call.server.metrics.looked_up(tenant, PROTOCOL, "blob", size.is_some());
    let size = size.ok_or_else(unknown)?;
    let mut headers = stream::headers();
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
    let question = stream::Question {
        protocol: PROTOCOL,
        digest,
        size,
        method: &call.method,
        range: call.headers.get(header::RANGE).and_then(|value| value.to_str().ok()),
        outlet: call.outlet.as_ref(),
    };
    Ok(stream::answer(call.server, call.repository.access, question, headers).await?)
}

/// `DELETE /v2/<name>/blobs/<digest>`: the repository has it no more. Its bytes stay until nobody has them.
pub(super) async fn delete(call: Call, digest: Digest) -> Result<Response, OciError> {
    if call.repository.remove_blob(&digest).await? {
        Ok(StatusCode::ACCEPTED.into_response())
    } else {
        Err(unknown())
    }
}
