//! The bytes of blobs on their way out.

use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};

use super::Server;
use super::access::Access;
use super::outlet::Outlet;
use crate::digest::{Digest, Hasher};
use crate::store::{BlobFile, StoreError};

/// How much of a blob is in memory at a time, for each reader: there may be many.
const PIECE: u64 = 128 << 10;

/// The same where each piece is a question to somewhere else.
const FAR_PIECE: u64 = 1 << 20;

/// A question about a blob that is there.
pub(super) struct Question<'q> {
    /// How the figures call the protocol.
    pub(super) protocol: &'static str,
    pub(super) digest: Digest,
    /// Length of the blob.
    pub(super) size: u64,
    /// `GET` or `HEAD`.
    pub(super) method: &'q Method,
    /// The header `Range`.
    pub(super) range: Option<&'q str>,
    /// Where the connection can send files by itself.
    pub(super) outlet: Option<&'q Outlet>,
}

/// What is said of every blob.
pub(super) fn headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers
}

/// All of a blob, or the range that is asked for, with these headers and those that say what it is.
pub(super) async fn answer(
    server: Arc<Server>,
    access: Access,
    question: Question<'_>,
    mut headers: HeaderMap,
) -> Result<Response, StoreError> {
    let Question { protocol, digest, size, method, range: asked, outlet } = question;
    let (status, range) = match asked.map(|text| range(text, size)) {
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
    if method == Method::HEAD {
        return Ok((status, headers).into_response());
    }
    server.metrics.sent(protocol, range.end - range.start);
    let body = blob(server, access, digest, range, size, outlet).await?;
    Ok((status, headers, body).into_response())
}

/// The bytes of a range, a piece at a time. A whole blob is verified on its way, if it was not lately and unchanged
/// since: if it is damaged, the answer breaks off before its end, and the blob is absent from then on.
async fn blob(
    server: Arc<Server>,
    access: Access,
    digest: Digest,
    range: Range<u64>,
    size: u64,
    outlet: Option<&Outlet>,
) -> Result<Body, StoreError> {
    let is_whole = range == (0..size);
    let Some(blob) = access.backend.open_file(&digest).await? else {
        return Ok(from_elsewhere(server, access, digest, range, is_whole));
    };
    Ok(match outlet {
        // A part has no digest: whoever puts parts together has to verify them.
        Some(outlet) if blob.is_verified || !is_whole => outlet.body(blob.file, range),
        _ => from_file(server, access, digest, range, is_whole, blob),
    })
}

/// The bytes of a range of a file.
fn from_file(
    server: Arc<Server>,
    access: Access,
    digest: Digest,
    range: Range<u64>,
    is_whole: bool,
    blob: BlobFile,
) -> Body {
    let hasher = (is_whole && !blob.is_verified).then(|| Hasher::new(digest.algorithm()));
    let blob = Arc::new(blob);
    Body::from_stream(futures_util::stream::try_unfold((range, hasher), move |(range, hasher)| {
        let (server, access, blob) = (Arc::clone(&server), access.clone(), Arc::clone(&blob));
        async move {
            if range.is_empty() {
                return Ok::<_, std::io::Error>(None);
            }
            let end = range.end.min(range.start + PIECE);
            let (start, opened) = (range.start, Arc::clone(&blob));
            let work = tokio::task::spawn_blocking(move || {
                let mut piece = vec![0; usize::try_from(end - start).unwrap_or(0)];
                opened.file.read_exact_at(&mut piece, start)?;
                let hasher = hasher.map(|mut hasher| {
                    hasher.update(&piece);
                    hasher
                });
                Ok::<_, std::io::Error>((Bytes::from(piece), hasher))
            });
            let (piece, hasher) = work.await.map_err(std::io::Error::other)??;
            let Some(hasher) = hasher else { return Ok(Some((piece, (end..range.end, None)))) };
            if end < range.end {
                return Ok(Some((piece, (end..range.end, Some(hasher)))));
            }
            verify(&server, &access, &digest, hasher).await?;
            access.backend.verified_file(&digest, &blob);
            Ok(Some((piece, (end..range.end, None))))
        }
    }))
}

/// The bytes of a range of a blob that is no file here.
fn from_elsewhere(
    server: Arc<Server>,
    access: Access,
    digest: Digest,
    range: Range<u64>,
    is_whole: bool,
) -> Body {
    let hasher = is_whole.then(|| Hasher::new(digest.algorithm()));
    Body::from_stream(futures_util::stream::try_unfold((range, hasher), move |(range, hasher)| {
        let (server, access) = (Arc::clone(&server), access.clone());
        async move {
            if range.is_empty() {
                return Ok(None);
            }
            let end = range.end.min(range.start + FAR_PIECE);
            let piece = access.backend.read_range(&digest, range.start..end).await;
            let piece = piece.map_err(std::io::Error::other)?;
            let piece = piece.filter(|piece| piece.len() as u64 == end - range.start);
            let Some(piece) = piece else {
                return Err(std::io::Error::other("the blob went away"));
            };
            let Some(mut hasher) = hasher else { return Ok(Some((piece, (end..range.end, None)))) };
            let work = tokio::task::spawn_blocking(move || {
                hasher.update(&piece);
                (piece, hasher)
            });
            let (piece, hasher) = work.await.map_err(std::io::Error::other)?;
            if end < range.end {
                return Ok(Some((piece, (end..range.end, Some(hasher)))));
            }
            verify(&server, &access, &digest, hasher).await?;
            Ok(Some((piece, (end..range.end, None))))
        }
    }))
}

/// Whether what was sent is the blob. If not, it is put aside, and the answer breaks off.
async fn verify(server: &Server, access: &Access, digest: &Digest, sent: Hasher) -> std::io::Result<()> {
    if sent.finish() == *digest {
        return Ok(());
    }
    server.metrics.damaged.inc();
    tracing::error!(%digest, tenant = %access.grant.tenant, "a blob is damaged, and is put aside");
    if let Err(error) = access.backend.quarantine_blob(digest).await {
        tracing::error!(%digest, error = crate::hint::with_causes(&error), "it could not be put aside");
    }
    Err(std::io::Error::other("the blob is damaged"))
}

/// What a `Range` header asks for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// What is no range, or several: the header is ignored (RFC 9110, 14.2).
    Everything,
    /// Some bytes.
    Part(Range<u64>),
    /// Bytes that are not there.
    Nothing,
}

/// Reads a `Range` header about a blob of `size` bytes.
fn range(text: &str, size: u64) -> Asked {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.trim().split_once('-'))
    else {
        return Asked::Everything;
    };
    let number =
        |text: &str| text.parse::<u64>().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
    let part = match (number(first), number(last)) {
        (None, Some(length)) if first.is_empty() => size.saturating_sub(length)..size,
        (Some(first), None) if last.is_empty() => first..size,
        (Some(first), Some(last)) if first <= last => first..last.saturating_add(1).min(size),
        _ => return Asked::Everything,
    };
    if part.start < part.end { Asked::Part(part) } else { Asked::Nothing }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_headers() {
        let part = |start, end| Asked::Part(start..end);
        for (text, expected) in [
            ("bytes=0-0", part(0, 1)),
            ("bytes=500-1499", part(500, 1499 + 1)),
            ("bytes=500-", part(500, 2048)),
            ("bytes=-500", part(1548, 2048)),
            ("bytes=-5000", part(0, 2048)),
            ("bytes=2000-5000", part(2000, 2048)),
            ("bytes=5000-10000", Asked::Nothing),
            ("bytes=-0", Asked::Nothing),
            ("bytes=500-0", Asked::Everything),
            ("bytes=0-1,3-4", Asked::Everything),
            ("bytes=+1-2", Asked::Everything),
            ("bytes=-", Asked::Everything),
            ("lines=1-2", Asked::Everything),
            ("bytes=0-18446744073709551615", part(0, 2048)),
        ] {
            assert_eq!(range(text, 2048), expected, "{text}");
        }
        assert_eq!(range("bytes=0-", 0), Asked::Nothing);
    }
}
