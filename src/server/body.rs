//! Bodies: received into files, with bounds on size and time.

use std::io::{Seek as _, Write as _};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use futures_util::StreamExt as _;

use super::error::Refusal;
use crate::digest::{Algorithm, Digest, Hasher};
use crate::store::{DirectoryStore, StoreError};

/// How much is gathered before it is hashed and written: little, as hundreds of clients may send at a time.
const PIECE: usize = 128 << 10;

/// After this time a body must have come at [`SLOWEST`] on average: a client that sends a byte now and then would
/// otherwise hold its place for ever.
const GRACE: Duration = Duration::from_secs(30);

/// Bytes a second.
const SLOWEST: u64 = 1 << 10;

/// Content that is being received. Dropped, it is gone.
#[derive(Debug)]
pub(super) struct Spool {
    file: tempfile::NamedTempFile,
    hasher: Hasher,
    size: u64,
}

impl Spool {
    pub(super) fn new(directory: &DirectoryStore, algorithm: Algorithm) -> Result<Self, StoreError> {
        Ok(Self { file: directory.tmp_file()?, hasher: Hasher::new(algorithm), size: 0 })
    }

    /// Bytes so far.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The file, and what its content's digest is.
    pub(super) fn finish(self) -> (tempfile::TempPath, Digest) {
        (self.file.into_temp_path(), self.hasher.finish())
    }

    /// The same with the digest of another algorithm, for whom the one that was foreseen will not do.
    pub(super) async fn finish_as(
        self,
        algorithm: Algorithm,
    ) -> Result<(tempfile::TempPath, Digest), Refusal> {
        if self.hasher.algorithm() == algorithm {
            return Ok(self.finish());
        }
        let work = tokio::task::spawn_blocking(move || {
            let mut hasher = Hasher::new(algorithm);
            let mut file = self.file.reopen()?;
            let mut buffer = vec![0; PIECE];
            loop {
                match std::io::Read::read(&mut file, &mut buffer)? {
                    0 => return Ok::<_, std::io::Error>((self.file.into_temp_path(), hasher.finish())),
                    read => hasher.update(&buffer[..read]),
                }
            }
        });
        match work.await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(error)) => Err(no_space(&error)),
            Err(error) => Err(no_space(&std::io::Error::other(error))),
        }
    }

    /// Appends bytes.
    pub(super) async fn append(self, bytes: Bytes) -> Result<Self, Refusal> {
        let mut spool = self;
        let work = tokio::task::spawn_blocking(move || {
            spool.hasher.update(&bytes);
            spool.file.write_all(&bytes)?;
            spool.size += bytes.len() as u64;
            Ok::<_, std::io::Error>(spool)
        });
        match work.await {
            Ok(Ok(spool)) => Ok(spool),
            Ok(Err(error)) => Err(no_space(&error)),
            Err(error) => Err(no_space(&std::io::Error::other(error))),
        }
    }

    /// Reads bytes that were received.
    pub(super) async fn read(self, offset: u64, length: u64) -> Result<(Self, Bytes), Refusal> {
        use std::os::unix::fs::FileExt as _;
        let mut spool = self;
        let work = tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
            spool.file.as_file().read_exact_at(&mut bytes, offset)?;
            spool.file.seek(std::io::SeekFrom::End(0))?;
            Ok::<_, std::io::Error>((spool, Bytes::from(bytes)))
        });
        match work.await {
            Ok(Ok(read)) => Ok(read),
            Ok(Err(error)) => Err(no_space(&error)),
            Err(error) => Err(no_space(&std::io::Error::other(error))),
        }
    }
}

fn no_space(error: &std::io::Error) -> Refusal {
    tracing::error!(%error, "an upload could not be kept");
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "storage", "the storage does not work")
}

/// A body as it comes: each piece within `idle`, all of them not slower than [`SLOWEST`], `limit` bytes at most.
pub(super) struct Incoming {
    body: axum::body::BodyDataStream,
    started: Instant,
    idle: Duration,
    limit: u64,
    received: u64,
}

impl Incoming {
    pub(super) fn new(body: Body, idle: Duration, limit: u64) -> Self {
        Self { body: body.into_data_stream(), started: Instant::now(), idle, limit, received: 0 }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Refusal> {
        let too_slow = || Refusal::new(StatusCode::REQUEST_TIMEOUT, "too-slow", "the body comes too slowly");
        let Ok(next) = tokio::time::timeout(self.idle, self.body.next()).await else {
            return Err(too_slow());
        };
        let Some(next) = next else { return Ok(None) };
        let bytes = next.map_err(|error| Refusal::bad(format!("the body broke off: {error}")))?;
        self.received = self.received.saturating_add(bytes.len() as u64);
        if self.received > self.limit {
            return Err(Refusal::too_large(format!("the body is larger than {} bytes", self.limit)));
        }
        let elapsed = self.started.elapsed();
        if elapsed > GRACE && self.received / elapsed.as_secs().max(1) < SLOWEST {
            return Err(too_slow());
        }
        Ok(Some(bytes))
    }

    /// All of it, into a file.
    pub(super) async fn spool(self, spool: Spool) -> Result<Spool, Refusal> {
        let (spool, received) = self.append_to(spool).await?;
        received.map(|()| spool)
    }

    /// As much as comes, to the end of a file, and whether that was all.
    ///
    /// # Errors
    /// If the file cannot be written; it is lost then.
    pub(super) async fn append_to(
        mut self,
        mut spool: Spool,
    ) -> Result<(Spool, Result<(), Refusal>), Refusal> {
        let mut gathered = bytes::BytesMut::new();
        let end = loop {
            match self.next().await {
                Ok(Some(bytes)) => gathered.extend_from_slice(&bytes),
                Ok(None) => break Ok(()),
                Err(refusal) => break Err(refusal),
            }
            if gathered.len() >= PIECE {
                spool = spool.append(gathered.split().freeze()).await?;
            }
        };
        if !gathered.is_empty() {
            spool = spool.append(gathered.freeze()).await?;
        }
        Ok((spool, end))
    }

    /// All of it, in memory.
    pub(super) async fn read(mut self) -> Result<Bytes, Refusal> {
        let mut gathered = bytes::BytesMut::new();
        while let Some(bytes) = self.next().await? {
            gathered.extend_from_slice(&bytes);
        }
        Ok(gathered.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A byte now and then keeps nobody's place for ever.
    #[tokio::test]
    async fn what_drips_is_ended() {
        let drip = || Body::from_stream(futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>("x")));
        let since = |age: Duration| Instant::now().checked_sub(age).unwrap();
        let incoming = |started| Incoming { started, ..Incoming::new(drip(), GRACE, 1000) };
        let refused = incoming(since(GRACE + Duration::from_secs(1))).read().await.unwrap_err();
        assert_eq!(refused.status(), StatusCode::REQUEST_TIMEOUT);
        // What has just begun may still become fast.
        let refused = incoming(Instant::now()).read().await.unwrap_err();
        assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE);
    }
}
