//! Files from URLs: asked for only if they changed, followed through redirects, bounded in size and time.

use std::io::Read;
use std::path::Path;
use std::time::{Duration, SystemTime};

use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, DATE, ETAG, HeaderMap, HeaderValue, IF_MODIFIED_SINCE,
    IF_NONE_MATCH, LAST_MODIFIED, LOCATION,
};
use reqwest::{Response, StatusCode, Url};
use tokio::io::AsyncWriteExt as _;

use super::remote::shown;
use crate::digest::{Digest, Hashing};
use crate::hint::Hint;
use crate::layer::Timestamp;
use crate::registry;

/// As many redirects as Go's client follows, and with it BuildKit.
const REDIRECTS_MAX: usize = 10;

/// How often something is tried that may work later.
pub const ATTEMPTS_MAX: u32 = 4;

/// The longest validator that is kept: servers make them of a few dozen bytes.
const VALIDATOR_BYTES_MAX: usize = 4096;

/// Bounds of one download.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The largest file, in bytes, also after decompression.
    pub bytes_max: u64,
    /// How long nothing may arrive.
    pub idle_max: Duration,
    /// How long it may take in all. It is there for answers that never end, a few bytes at a time.
    pub total_max: Duration,
    /// The wait before the second attempt; it doubles from then on.
    pub backoff: Duration,
}

impl Default for Limits {
    /// Larger files than 64 GiB are no sources of images, and six hours are as long as a CI job may take.
    fn default() -> Self {
        Self {
            bytes_max: 64 << 30,
            idle_max: Duration::from_mins(1),
            total_max: Duration::from_hours(6),
            backoff: Duration::from_millis(500),
        }
    }
}

/// What tells a version of a file from another one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Validators {
    /// `ETag`, as sent.
    pub etag: Option<String>,
    /// `Last-Modified`, as sent.
    pub last_modified: Option<String>,
    /// The file was not as old as [`SETTLED`] when it was sent, or nobody knows: its next version may have the same time.
    pub is_recent: bool,
}

/// From this age on, the time of a change tells versions apart (RFC 9110, 8.8.2.2): clocks of servers are coarse, and files
/// may be written more than once in a second.
const SETTLED: Duration = Duration::from_mins(1);

impl Validators {
    /// Whether another version would have others.
    pub fn tell_versions_apart(&self) -> bool {
        self.etag.is_some() || (self.last_modified.is_some() && !self.is_recent)
    }

    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let text = |name| {
            let value = headers.get(name)?.to_str().ok()?;
            (!value.is_empty() && value.len() <= VALIDATOR_BYTES_MAX).then(|| value.to_owned())
        };
        let time = |text: Option<&str>| httpdate::parse_http_date(text?).ok();
        let last_modified = text(LAST_MODIFIED);
        let age = match (time(text(DATE).as_deref()), time(last_modified.as_deref())) {
            (Some(sent), Some(modified)) => sent.duration_since(modified).ok(),
            _ => None,
        };
        Self { etag: text(ETAG), last_modified, is_recent: age.is_none_or(|age| age < SETTLED) }
    }

    /// The tag without what says that it is a weak one, for comparisons.
    pub fn strong_etag(&self) -> Option<&str> {
        self.etag.as_deref().map(|tag| tag.strip_prefix("W/").unwrap_or(tag))
    }

    /// `Last-Modified` as a time, in whole seconds.
    pub fn modified(&self) -> Option<Timestamp> {
        let time = httpdate::parse_http_date(self.last_modified.as_deref()?).ok()?;
        let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(Timestamp { seconds: i64::try_from(since.as_secs()).ok()?, nanos: 0 })
    }
}

/// Why a file could not be fetched.
#[derive(Debug, thiserror::Error)]
#[error("{kind}")]
pub struct HttpError {
    /// The address, without what may be secret.
    pub address: String,
    /// What went wrong.
    pub kind: HttpErrorKind,
}

/// What went wrong with a download.
#[derive(Debug, thiserror::Error)]
pub enum HttpErrorKind {
    /// The address is none.
    #[error("the address is not valid ({0})")]
    Address(String),
    /// No connection, or a broken one.
    #[error("{0}")]
    Transport(String),
    /// The server does not want to.
    #[error("the server answers {0}")]
    Status(u16),
    /// The answer makes no sense.
    #[error("{0}")]
    Protocol(String),
    /// Nothing arrives any more.
    #[error("nothing arrived for {} seconds", .0.as_secs())]
    Idle(Duration),
    /// It does not come to an end.
    #[error("it was not complete after {} seconds", .0.as_secs())]
    Endless(Duration),
    /// It is too large.
    #[error("it is larger than {0} bytes")]
    TooLarge(u64),
    /// It could not be stored.
    #[error("writing it to disk failed: {0}")]
    Disk(std::io::Error),
}

impl HttpErrorKind {
    /// Whether another attempt may succeed.
    fn is_transient(&self) -> bool {
        match self {
            // A certificate or a name does not get better by asking again.
            Self::Transport(reason) => !reason.contains("certificate"),
            Self::Status(status) => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
            Self::Idle(_) => true,
            _ => false,
        }
    }
}

impl HttpError {
    /// Whether another attempt may succeed.
    pub fn is_transient(&self) -> bool {
        self.kind.is_transient()
    }
}

impl Hint for HttpError {
    fn hint(&self) -> Option<String> {
        match self.kind {
            HttpErrorKind::Status(401 | 403) => {
                let host = Url::parse(&self.address).ok().and_then(|url| url.host_str().map(str::to_owned));
                let host = host.unwrap_or_else(|| "HOST".to_owned());
                Some(format!(
                    "give a token with `--secret id=HTTP_AUTH_TOKEN_{host},env=…`, or a whole header with \
                     `--secret id=HTTP_AUTH_HEADER_{host},env=…`"
                ))
            }
            HttpErrorKind::Status(404 | 410) => Some("is the address right?".to_owned()),
            _ => None,
        }
    }
}

/// A file to be fetched.
#[derive(Debug)]
pub struct Download<'d> {
    /// Where it is.
    pub address: &'d str,
    /// The value of the header `Authorization`, for the address's own host alone.
    pub authorization: Option<HeaderValue>,
    /// The version that is there already.
    pub known: Option<&'d Validators>,
    /// The bounds.
    pub limits: Limits,
}

/// What the server says.
#[derive(Debug)]
pub enum Answer {
    /// The version that is there already is the one.
    Unchanged,
    /// A version with these validators. Its content is read with [`Found::save`] or not at all.
    Found(Box<Found>),
}

/// A file whose content is about to arrive.
#[derive(Debug)]
pub struct Found {
    response: Response,
    address: String,
    limits: Limits,
    /// What tells this version from others.
    pub validators: Validators,
}

impl Download<'_> {
    /// Asks for the file, several times if that may help.
    pub async fn ask(&self, client: &registry::Client) -> Result<Answer, HttpError> {
        let mut attempt = 1;
        let mut wait = self.limits.backoff;
        loop {
            match self.ask_once(client).await {
                Err(kind) if kind.is_transient() && attempt < ATTEMPTS_MAX => {
                    tokio::time::sleep(wait).await;
                    attempt += 1;
                    wait *= 2;
                }
                result => {
                    return result.map_err(|kind| HttpError { address: shown(self.address), kind });
                }
            }
        }
    }

    async fn ask_once(&self, client: &registry::Client) -> Result<Answer, HttpErrorKind> {
        let home = Url::parse(self.address).map_err(|error| HttpErrorKind::Address(error.to_string()))?;
        let mut url = home.clone();
        url.set_fragment(None);
        for _ in 0..=REDIRECTS_MAX {
            let mut request = client.connection(&url).get(url.clone()).header(ACCEPT_ENCODING, "identity");
            if let Some(authorization) = self.authorization.as_ref().filter(|_| home.origin() == url.origin())
            {
                request = request.header(AUTHORIZATION, authorization);
            }
            if let Some(known) = self.known {
                request = match (&known.etag, &known.last_modified) {
                    (Some(etag), _) => request.header(IF_NONE_MATCH, etag),
                    (None, Some(time)) => request.header(IF_MODIFIED_SINCE, time),
                    (None, None) => request,
                };
            }
            let response = tokio::time::timeout(self.limits.idle_max, request.send())
                .await
                .map_err(|_| HttpErrorKind::Idle(self.limits.idle_max))?
                .map_err(|error| broken(&error))?;
            let status = response.status();
            if matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
                url = redirected(&url, response.headers())?;
                continue;
            }
            if status == StatusCode::NOT_MODIFIED {
                let asked = self.known.is_some_and(Validators::tell_versions_apart);
                let unasked = || HttpErrorKind::Protocol("it says that nothing changed, unasked".to_owned());
                return if asked { Ok(Answer::Unchanged) } else { Err(unasked()) };
            }
            if !status.is_success() || status == StatusCode::PARTIAL_CONTENT {
                return Err(HttpErrorKind::Status(status.as_u16()));
            }
            let validators = Validators::of(response.headers());
            let (address, limits) = (shown(self.address), self.limits);
            return Ok(Answer::Found(Box::new(Found { response, address, limits, validators })));
        }
        Err(HttpErrorKind::Protocol(format!("it redirects more than {REDIRECTS_MAX} times")))
    }
}

/// Where a redirect leads.
fn redirected(url: &Url, headers: &HeaderMap) -> Result<Url, HttpErrorKind> {
    let target = headers.get(LOCATION).and_then(|location| url.join(location.to_str().ok()?).ok());
    let mut target = target.ok_or_else(|| HttpErrorKind::Protocol("it redirects to nowhere".to_owned()))?;
    let downgrade = url.scheme() == "https" && target.scheme() == "http";
    if !matches!(target.scheme(), "http" | "https") || downgrade {
        let target = shown(target.as_str());
        return Err(HttpErrorKind::Protocol(format!("it redirects to {target}, which is not safe")));
    }
    target.set_fragment(None);
    Ok(target)
}

fn broken(error: &reqwest::Error) -> HttpErrorKind {
    HttpErrorKind::Transport(registry::redact::chain(error))
}

impl Found {
    /// Stores the content at `path`. Its digest, and its length in bytes. `progress` is told how many bytes there are,
    /// and how many there will be.
    pub async fn save(
        self,
        path: &Path,
        progress: &(dyn Fn(u64, Option<u64>) + Send + Sync),
    ) -> Result<(Digest, u64), HttpError> {
        let (address, total_max) = (self.address.clone(), self.limits.total_max);
        let saved = tokio::time::timeout(total_max, self.save_all(path, progress)).await;
        saved.unwrap_or(Err(HttpErrorKind::Endless(total_max))).map_err(|kind| HttpError { address, kind })
    }

    async fn save_all(
        mut self,
        path: &Path,
        progress: &(dyn Fn(u64, Option<u64>) + Send + Sync),
    ) -> Result<(Digest, u64), HttpErrorKind> {
        let limit = self.limits.bytes_max;
        let length = self.response.content_length();
        if length.is_some_and(|length| length > limit) {
            return Err(HttpErrorKind::TooLarge(limit));
        }
        // Nobody asked for it; some stores send what they have nevertheless, and clients are expected to unpack it.
        let encoding = self.response.headers().get(CONTENT_ENCODING).cloned();
        let is_gzip = match encoding.as_ref().map(HeaderValue::as_bytes) {
            None | Some(b"" | b"identity") => false,
            Some(b"gzip" | b"x-gzip") => true,
            Some(other) => {
                let other = String::from_utf8_lossy(other).into_owned();
                return Err(HttpErrorKind::Protocol(format!(
                    "it is encoded as {}, which was not asked for",
                    registry::redact::text(&other)
                )));
            }
        };
        let file = tokio::fs::File::create(path).await.map_err(HttpErrorKind::Disk)?;
        let mut file = tokio::io::BufWriter::with_capacity(256 << 10, file);
        let mut hashing = Hashing::new(std::io::sink());
        let mut count: u64 = 0;
        loop {
            let piece = tokio::time::timeout(self.limits.idle_max, self.response.chunk())
                .await
                .map_err(|_| HttpErrorKind::Idle(self.limits.idle_max))?
                .map_err(|error| broken(&error))?;
            let Some(piece) = piece else { break };
            count += piece.len() as u64;
            if count > limit {
                return Err(HttpErrorKind::TooLarge(limit));
            }
            std::io::Write::write_all(&mut hashing, &piece).map_err(HttpErrorKind::Disk)?;
            file.write_all(&piece).await.map_err(HttpErrorKind::Disk)?;
            progress(count, length);
        }
        file.flush().await.map_err(HttpErrorKind::Disk)?;
        if !is_gzip {
            return Ok((hashing.finish().1, count));
        }
        let path = path.to_owned();
        let unpacked = tokio::task::spawn_blocking(move || unpack(&path, limit)).await;
        unpacked.unwrap_or_else(|error| Err(HttpErrorKind::Protocol(error.to_string())))
    }
}

/// Replaces the gzip stream at `path` by what is in it.
fn unpack(path: &Path, limit: u64) -> Result<(Digest, u64), HttpErrorKind> {
    let target = path.with_extension("unpacked");
    let mut hashing = Hashing::new(fs_err::File::create(&target).map_err(HttpErrorKind::Disk)?);
    let packed = std::io::BufReader::new(fs_err::File::open(path).map_err(HttpErrorKind::Disk)?);
    let decoder = flate2::bufread::MultiGzDecoder::new(packed);
    let copied = std::io::copy(&mut decoder.take(limit + 1), &mut hashing);
    let copied = copied.map_err(|error| HttpErrorKind::Protocol(format!("its gzip stream: {error}")))?;
    if copied > limit {
        return Err(HttpErrorKind::TooLarge(limit));
    }
    fs_err::rename(&target, path).map_err(HttpErrorKind::Disk)?;
    Ok((hashing.finish().1, copied))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn validators_are_compared_as_servers_mean_them() {
        let validators = |etag: &str, time: &str| Validators {
            etag: Some(etag.to_owned()),
            last_modified: Some(time.to_owned()),
            is_recent: false,
        };
        assert_eq!(validators("W/\"a\"", "").strong_etag(), Some("\"a\""));
        let time = validators("", "Sun, 06 Nov 1994 08:49:37 GMT").modified();
        assert_eq!(time, Some(Timestamp { seconds: 784_111_777, nanos: 0 }));
        assert_eq!(validators("", "yesterday").modified(), None);
        let long = "x".repeat(VALIDATOR_BYTES_MAX + 1);
        let mut headers = HeaderMap::new();
        headers.insert(ETAG, long.parse().unwrap());
        assert!(!Validators::of(&headers).tell_versions_apart());
        let dated = |modified: &str, sent: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(LAST_MODIFIED, modified.parse().unwrap());
            if let Some(sent) = sent {
                headers.insert(DATE, sent.parse().unwrap());
            }
            Validators::of(&headers).tell_versions_apart()
        };
        let (first, soon) = ("Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:50:36 GMT");
        assert!(dated(first, Some("Sun, 06 Nov 1994 08:50:37 GMT")));
        assert!(!dated(first, Some(soon)), "the next version may have the same time");
        assert!(!dated(soon, Some(first)), "a time to come");
        assert!(!dated(first, None) && !dated("long ago", Some(first)));
    }

    #[test]
    fn redirects_stay_safe() {
        let url: Url = "https://e.com/a/b".parse().unwrap();
        let go = |target: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(LOCATION, target.parse().unwrap());
            redirected(&url, &headers).map(|url| url.to_string())
        };
        assert_eq!(go("c#x").unwrap(), "https://e.com/a/c");
        assert_eq!(go("//f.com/d").unwrap(), "https://f.com/d");
        for bad in ["http://e.com/a?secret", "file:///etc/passwd"] {
            let error = go(bad).unwrap_err().to_string();
            assert!(error.contains("not safe") && !error.contains("secret"), "{error}");
        }
        assert!(redirected(&url, &HeaderMap::new()).is_err());
    }
}
