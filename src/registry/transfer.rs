//! Moving blobs: downloads that resume, uploads in one piece or in several.

use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderMap, RANGE};
use reqwest::{Body, Method, Response, StatusCode, Url};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use super::auth::Access;
use super::client::{Client, UploadSession, text};
use super::error::{RegistryError, RegistryErrorKind};
use super::source::{Progress, partial_path};
use super::transport::{Attempts, Failure, Pace, Payload, Place, Request, RetryPolicy, Transport};
use crate::digest::Hasher;
use crate::image::Descriptor;
use crate::reference::Reference;
use crate::store::BlobSource;

/// How much of a file is read for one piece of a body, in bytes.
const PIECE_BYTES: usize = 256 << 10;

/// How often an upload's progress is looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);

/// A registry reads and stores a whole blob again after its last byte has arrived; it may take as many idle times.
const COMMIT_PATIENCE: u32 = 5;

fn file_error(place: &Place, path: &Path, error: &io::Error) -> RegistryError {
    place.error(RegistryErrorKind::File { file: path.display().to_string(), reason: error.to_string() })
}

/// Downloads `blob` with `request` to `destination`.
pub(super) async fn download(
    transport: &Transport,
    retry: RetryPolicy,
    place: &Place,
    request: Request<'_>,
    blob: &Descriptor,
    destination: &Path,
    progress: Progress<'_>,
) -> Result<(), RegistryError> {
    let partial = partial_path(destination);
    let result = async {
        let file =
            tokio::fs::File::create(&partial).await.map_err(|error| file_error(place, &partial, &error))?;
        let hasher = Hasher::new(blob.digest.algorithm());
        let mut download = Download {
            transport,
            retry,
            place,
            request,
            blob,
            path: &partial,
            file,
            hasher,
            received: 0,
            resumed: false,
            progress,
        };
        download.run().await?;
        fs_err::rename(&partial, destination).map_err(|error| file_error(place, destination, &error))
    }
    .await;
    if result.is_err() {
        // The error is what counts; what cannot be removed lies in the caller's directory for temporary files.
        let _ = fs_err::remove_file(&partial);
    }
    result
}

struct Download<'a> {
    transport: &'a Transport,
    retry: RetryPolicy,
    place: &'a Place,
    request: Request<'a>,
    blob: &'a Descriptor,
    path: &'a Path,
    file: tokio::fs::File,
    hasher: Hasher,
    received: u64,
    resumed: bool,
    progress: Progress<'a>,
}

impl Download<'_> {
    async fn run(&mut self) -> Result<(), RegistryError> {
        let mut attempts = Attempts::new(self.retry);
        loop {
            let before = self.received;
            match self.receive().await {
                Ok(()) => {
                    let actual = self.hasher.clone().finish();
                    if actual == self.blob.digest {
                        return self
                            .file
                            .flush()
                            .await
                            .map_err(|error| file_error(self.place, self.path, &error));
                    }
                    // Pieces of two answers may not fit together; one answer alone is to be believed.
                    if !self.resumed {
                        let kind = RegistryErrorKind::Digest {
                            expected: self.blob.digest.into(),
                            actual: actual.into(),
                        };
                        return Err(self.place.error(kind));
                    }
                    self.restart().await?;
                }
                Err(failure) => {
                    if self.received > before + Pace::BYTES_MIN as u64 {
                        attempts.progressed();
                    }
                    attempts.after(failure).await?;
                    self.resumed = self.received > 0;
                }
            }
        }
    }

    async fn restart(&mut self) -> Result<(), RegistryError> {
        self.received = 0;
        self.resumed = false;
        self.hasher = Hasher::new(self.blob.digest.algorithm());
        let rewound = async {
            self.file.flush().await?;
            self.file.set_len(0).await?;
            self.file.rewind().await.map(drop)
        };
        rewound.await.map_err(|error| file_error(self.place, self.path, &error))
    }

    /// Receives what is missing in one exchange.
    async fn receive(&mut self) -> Result<(), Failure> {
        self.request.headers.clear();
        let mut expected = vec![StatusCode::OK];
        if self.received > 0 {
            let range = format!("bytes={}-", self.received);
            if let Ok(range) = range.parse() {
                self.request.headers.push((RANGE, range));
            }
            expected.extend([StatusCode::PARTIAL_CONTENT, StatusCode::RANGE_NOT_SATISFIABLE]);
        }
        let mut response = self.transport.send_once(self.place, &self.request, &expected).await?;
        let mut skip = 0;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let start = text(response.headers(), "content-range").and_then(range_start);
                if start != Some(self.received) {
                    return Err(Failure::permanent(
                        self.place.protocol("it sent another range than asked for"),
                    ));
                }
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                self.restart().await.map_err(Failure::permanent)?;
                return Err(Failure::transient(self.place.protocol("it cannot continue the download")));
            }
            // The whole blob once more: what is there already is passed over.
            _ => skip = self.received,
        }
        let size_error =
            |actual| self.place.error(RegistryErrorKind::Size { expected: self.blob.size, actual });
        if let Some(length) = response.content_length()
            && length != self.blob.size - self.received + skip
        {
            return Err(Failure::permanent(size_error(
                length.saturating_add(self.received).saturating_sub(skip),
            )));
        }
        let mut pace = Pace::new(self.transport.retry.idle_max);
        while self.received < self.blob.size {
            let Some(piece) = self.transport.next_chunk(self.place, &mut response).await? else {
                // Without a length, a broken connection can look like the end.
                return Err(Failure::transient(size_error(self.received)));
            };
            if !pace.goes_on(piece.len()) {
                return Err(self.transport.timed_out(self.place));
            }
            let passed = usize::try_from(skip).unwrap_or(usize::MAX).min(piece.len());
            skip -= passed as u64;
            let piece = piece.slice(passed..);
            let actual = self.received + piece.len() as u64;
            if actual > self.blob.size {
                return Err(Failure::permanent(size_error(actual)));
            }
            self.hasher.update(&piece);
            self.file
                .write_all(&piece)
                .await
                .map_err(|error| Failure::permanent(file_error(self.place, self.path, &error)))?;
            self.received = actual;
            (self.progress)(actual);
        }
        // A connection that breaks after the last byte has done its work.
        match self.transport.next_chunk(self.place, &mut response).await {
            Ok(Some(more)) if !more.is_empty() => {
                Err(Failure::permanent(size_error(self.received + more.len() as u64)))
            }
            _ => Ok(()),
        }
    }
}

/// The first byte in `bytes 5-9/10`.
fn range_start(text: &str) -> Option<u64> {
    text.trim().strip_prefix("bytes")?.trim_start().split('-').next()?.trim().parse().ok()
}

/// The upload session that an answer names.
pub(super) fn session(base: &Url, headers: &HeaderMap) -> Option<UploadSession> {
    let mut url = base.join(text(headers, "location")?).ok()?;
    // A registry behind a proxy may not know that it is reached by HTTPS.
    if base.scheme() == "https" && url.scheme() == "http" && base.host() == url.host() {
        url.set_scheme("https").ok()?;
    }
    let safe =
        matches!(url.scheme(), "http" | "https") && (base.scheme() == "http" || url.scheme() == "https");
    safe.then_some(UploadSession { url })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Whole,
    Chunks,
}

/// One blob on its way to a registry.
pub(super) struct Upload<'a> {
    client: &'a Client,
    reference: &'a Reference,
    blob: &'a Descriptor,
    source: &'a BlobSource,
    progress: Progress<'a>,
    place: Place,
}

impl<'a> Upload<'a> {
    pub(super) fn new(
        client: &'a Client,
        reference: &'a Reference,
        blob: &'a Descriptor,
        source: &'a BlobSource,
        progress: Progress<'a>,
    ) -> Self {
        let place = Place::new(reference, format!("uploading blob {}", blob.digest));
        Self { client, reference, blob, source, progress, place }
    }

    fn transport(&self) -> &'a Transport {
        &self.client.inner.transport
    }

    fn access(&self) -> Access {
        Access::push(self.reference.repository())
    }

    pub(super) async fn run(self, mut session: Option<UploadSession>) -> Result<(), RegistryError> {
        let mut way = if self.blob.size <= self.client.inner.chunk_bytes { Way::Whole } else { Way::Chunks };
        let mut switched = false;
        let mut attempts = Attempts::new(self.transport().retry);
        loop {
            let opened = match session.take() {
                Some(session) => session,
                None => self.start().await?,
            };
            let result = match way {
                Way::Whole => self.whole(opened).await,
                Way::Chunks => self.chunks(opened).await,
            };
            let failure = match result {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            // The answer may have been lost, and not the blob.
            if failure.transient && self.client.has_blob(self.reference, &self.blob.digest).await? {
                return Ok(());
            }
            // Some registries know only one of the two ways (Google's no chunks), and proxies limit bodies.
            let other_way = match (way, failure.error.status()) {
                (Way::Whole, Some(404 | 405 | 411 | 413 | 415 | 501)) => Some(Way::Chunks),
                (Way::Chunks, Some(400 | 404 | 405 | 411 | 415 | 416 | 501)) => Some(Way::Whole),
                _ => None,
            };
            match other_way {
                Some(other) if !switched => {
                    switched = true;
                    way = other;
                }
                _ => attempts.after(failure).await?,
            }
        }
    }

    async fn start(&self) -> Result<UploadSession, RegistryError> {
        let url = self.transport().url(self.reference, "blobs/uploads/")?;
        let request = Request::new(Method::POST, url, self.access());
        let response = self.transport().send(&self.place, &request, &[StatusCode::ACCEPTED]).await?;
        session(&request.url, response.headers())
            .ok_or_else(|| self.place.protocol("it opened an upload without saying where"))
    }

    /// Everything in one request.
    async fn whole(&self, session: UploadSession) -> Result<(), Failure> {
        self.send_piece(Method::PUT, self.commit_url(&session), 0, self.blob.size, &COMMITTED).await.map(drop)
    }

    /// Piece by piece, each where the registry says that the one before it has ended.
    async fn chunks(&self, mut opened: UploadSession) -> Result<(), Failure> {
        let mut attempts = Attempts::new(self.transport().retry);
        let mut offset = 0;
        while offset < self.blob.size {
            let length = self.client.inner.chunk_bytes.min(self.blob.size - offset);
            let sent = self
                .send_piece(Method::PATCH, opened.url.clone(), offset, length, &[StatusCode::ACCEPTED])
                .await;
            match sent {
                Ok(response) => {
                    let headers = response.headers();
                    let end = match text(headers, "range") {
                        Some(range) => self.received(range)?,
                        None => offset + length,
                    };
                    if end > offset {
                        attempts.progressed();
                    } else {
                        let failure = Failure::transient(self.place.protocol("it did not take a piece"));
                        attempts.after(failure).await.map_err(Failure::permanent)?;
                    }
                    offset = end;
                    if let Some(next) = session(&opened.url, headers) {
                        opened = next;
                    }
                }
                Err(failure) => {
                    let out_of_step = failure.error.status() == Some(416);
                    if !(failure.transient || out_of_step && offset > 0) {
                        return Err(failure);
                    }
                    attempts
                        .after(Failure { transient: true, ..failure })
                        .await
                        .map_err(Failure::permanent)?;
                    let (end, next) = self.status(&opened).await?;
                    if end > offset {
                        attempts.progressed();
                    }
                    offset = end;
                    opened = next.unwrap_or(opened);
                }
            }
        }
        self.send_piece(Method::PUT, self.commit_url(&opened), self.blob.size, 0, &COMMITTED).await.map(drop)
    }

    /// How much of an upload the registry has, and where to go on.
    async fn status(&self, opened: &UploadSession) -> Result<(u64, Option<UploadSession>), Failure> {
        let request = Request::new(Method::GET, opened.url.clone(), self.access());
        let expected = [StatusCode::NO_CONTENT, StatusCode::ACCEPTED, StatusCode::OK, StatusCode::NOT_FOUND];
        let response =
            self.transport().send(&self.place, &request, &expected).await.map_err(Failure::permanent)?;
        if response.status() == StatusCode::NOT_FOUND {
            // The session is gone. A new one may fare better.
            return Err(Failure::transient(self.place.protocol("it forgot the upload")));
        }
        let end = text(response.headers(), "range").map_or(Ok(0), |range| self.received(range))?;
        Ok((end, session(&opened.url, response.headers())))
    }

    /// How many bytes there are, according to `Range: 0-<last>`. `0-0` is what registries say of nothing.
    fn received(&self, range: &str) -> Result<u64, Failure> {
        let range = range.trim();
        let range = range.strip_prefix("bytes=").unwrap_or(range);
        let last: Option<u64> = range.strip_prefix("0-").and_then(|last| last.parse().ok());
        match last {
            Some(0) => Ok(0),
            Some(last) if last < self.blob.size => Ok(last + 1),
            _ => Err(Failure::permanent(self.place.protocol("it has another range than was sent"))),
        }
    }

    fn commit_url(&self, session: &UploadSession) -> Url {
        let mut url = session.url.clone();
        // What is in the query already is the registry's business and stays as it is.
        url.query_pairs_mut().append_pair("digest", &self.blob.digest.to_string());
        url
    }

    async fn send_piece(
        &self,
        method: Method,
        url: Url,
        offset: u64,
        length: u64,
        expected: &[StatusCode],
    ) -> Result<Response, Failure> {
        let sent = Arc::new(AtomicU64::new(0));
        let make = || {
            sent.store(0, Ordering::Relaxed);
            body(self.source, offset, length, Arc::clone(&sent))
        };
        let mut request =
            Request::new(method.clone(), url, self.access()).header(CONTENT_TYPE, "application/octet-stream");
        if length > 0 {
            request.payload = Payload::Stream(length, &make);
            if method == Method::PATCH {
                // This protocol's form has no unit.
                request = request.header(CONTENT_RANGE, &format!("{offset}-{}", offset + length - 1));
            }
        }
        let sending = self.transport().send_once(&self.place, &request, expected);
        self.watch(sending, offset, length, &sent).await
    }

    /// Reports how much has been sent, and gives up when nothing moves.
    async fn watch(
        &self,
        sending: impl Future<Output = Result<Response, Failure>>,
        offset: u64,
        length: u64,
        sent: &AtomicU64,
    ) -> Result<Response, Failure> {
        let idle_max = self.transport().retry.idle_max;
        let mut sending = pin!(sending);
        let mut last = (0, Instant::now());
        loop {
            let outcome = tokio::time::timeout(WATCH_INTERVAL, &mut sending).await;
            let now = sent.load(Ordering::Relaxed);
            if now != last.0 {
                last = (now, Instant::now());
                (self.progress)(offset + now);
            }
            if let Ok(result) = outcome {
                return result;
            }
            let patience = if now >= length { idle_max * COMMIT_PATIENCE } else { idle_max };
            if last.1.elapsed() > patience {
                return Err(self.transport().timed_out(&self.place));
            }
        }
    }
}

/// What registries say when an upload is complete.
const COMMITTED: [StatusCode; 3] = [StatusCode::CREATED, StatusCode::OK, StatusCode::NO_CONTENT];

/// A body of `length` bytes of `source` from `offset` on, which counts what it has handed out.
fn body(source: &BlobSource, offset: u64, length: u64, sent: Arc<AtomicU64>) -> io::Result<Body> {
    let short =
        || io::Error::new(io::ErrorKind::UnexpectedEof, "the blob is shorter than its descriptor says");
    match source {
        BlobSource::Bytes(bytes) => {
            let from = usize::try_from(offset).map_err(|_| short())?;
            let to = usize::try_from(offset + length).map_err(|_| short())?;
            if to > bytes.len() || from > to {
                return Err(short());
            }
            let pieces = bytes.slice(from..to);
            Ok(Body::wrap_stream(futures_util::stream::unfold((pieces, sent), async |(mut rest, sent)| {
                if rest.is_empty() {
                    return None;
                }
                let piece = rest.split_to(rest.len().min(PIECE_BYTES));
                sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
                Some((Ok::<Bytes, io::Error>(piece), (rest, sent)))
            })))
        }
        BlobSource::File(path) => {
            let mut file = fs_err::File::open(path)?;
            io::Seek::seek(&mut file, io::SeekFrom::Start(offset))?;
            let (file, _) = file.into_parts();
            let state = (tokio::fs::File::from_std(file), length, sent);
            Ok(Body::wrap_stream(futures_util::stream::try_unfold(
                state,
                async move |(mut file, rest, sent)| {
                    if rest == 0 {
                        return Ok(None);
                    }
                    let mut piece = vec![0; PIECE_BYTES.min(usize::try_from(rest).unwrap_or(PIECE_BYTES))];
                    let read = file.read(&mut piece).await?;
                    if read == 0 {
                        let error = "the blob is shorter than its descriptor says";
                        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, error));
                    }
                    piece.truncate(read);
                    sent.fetch_add(read as u64, Ordering::Relaxed);
                    Ok(Some((Bytes::from(piece), (file, rest - read as u64, sent))))
                },
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        assert_eq!(range_start("bytes 5-9/10"), Some(5));
        assert_eq!(range_start("bytes 0-0/*"), Some(0));
        for bad in ["", "bytes", "5-9", "bytes x-1/2", "bytes -5/10"] {
            assert_eq!(range_start(bad), None, "{bad}");
        }
    }

    #[test]
    fn sessions_never_leave_https() {
        let base = Url::parse("https://r.io/v2/a/blobs/uploads/").unwrap();
        let at = |location: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("location", location.parse().unwrap());
            session(&base, &headers).map(|session| session.url.to_string())
        };
        assert_eq!(
            at("/v2/a/blobs/uploads/1?_state=x").as_deref(),
            Some("https://r.io/v2/a/blobs/uploads/1?_state=x")
        );
        assert_eq!(at("http://r.io/u").as_deref(), Some("https://r.io/u"));
        assert_eq!(at("https://other.io/u").as_deref(), Some("https://other.io/u"));
        assert_eq!(at("http://other.io/u"), None);
        assert_eq!(at("file:///u"), None);
    }
}
