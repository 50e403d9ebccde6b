//! The store that a Crossdock server is, spoken to by its native protocol (`docs/protocol.md`).

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use reqwest::header::{CONTENT_LENGTH, RANGE};
use reqwest::{Body, Method, RequestBuilder, Response, StatusCode, Url};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};

use super::{BlobSource, LeaseAnswer, Part, Store, StoreError};
use crate::digest::{Digest, Hasher};
use crate::record::{BUNDLE_BYTES_MAX, Bundle, BundleName, Key, RECORD_BYTES_MAX, Record, Scope};

/// Names a request through client, server and log.
const REQUEST_ID: &str = "x-request-id";

/// A server that does not take a connection in this time is as good as dead.
const CONNECT: Duration = Duration::from_secs(1);

/// The longest silence in the middle of an answer.
const SILENCE: Duration = Duration::from_secs(10);

/// Digests in one question; a server takes 16,384.
const DIGESTS_MAX: usize = 8192;

/// Blobs of more than this are sent in pieces of this size, so that a broken connection costs one of them only.
const PIECE: u64 = 16 << 20;

/// Attempts for each piece.
const ATTEMPTS: u32 = 3;

/// How much of a file is read at a time.
const READ: usize = 256 << 10;

/// Answers of words are short.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// A server. Cheap to clone.
#[derive(Clone)]
pub struct HttpStore {
    client: reqwest::Client,
    base: Url,
    token: Option<String>,
    asking: Arc<Asking>,
}

/// What requests are called by: all of a client's are one trace, and each has a name that the server writes to its log.
struct Asking {
    /// 16 random bytes in hexadecimal.
    trace: String,
    requests: AtomicU64,
}

impl Asking {
    fn new() -> Self {
        let mut bytes = [0; 16];
        // Names that somebody else has too cost no more than a search of the log.
        let _ = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty());
        Self { trace: format!("{:032x}", u128::from_ne_bytes(bytes)), requests: AtomicU64::new(0) }
    }

    /// What the names of all requests begin with.
    fn prefix(&self) -> &str {
        &self.trace[..12]
    }
}

/// The name of the request that an answer is to.
#[derive(Clone)]
struct RequestName(String);

/// What a server granted somebody who proved who they are.
#[derive(Debug, Clone)]
pub struct HttpSession {
    /// The server, with the session's token.
    pub store: HttpStore,
    /// The scopes to look through, in this order.
    pub read: Vec<Scope>,
    /// The scope to write to; nothing may be written if there is none.
    pub write: Option<Scope>,
}

impl fmt::Debug for HttpStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpStore").field("base", &self.base.as_str()).finish_non_exhaustive()
    }
}

impl HttpStore {
    /// The server at `base`, such as `https://cache.example`, which knows whoever has `token`. Asks nothing yet.
    ///
    /// # Errors
    /// If this machine's TLS settings cannot be used.
    pub fn new(base: Url, token: Option<String>) -> Result<Self, StoreError> {
        let client = reqwest::Client::builder()
            .user_agent(concat!("crossdock/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE)
            .tcp_nodelay(true)
            // The token is for this server, and for no other.
            .redirect(reqwest::redirect::Policy::none())
            .build();
        let client = client.map_err(|error| StoreError::Unavailable {
            location: base.to_string(),
            reason: crate::hint::with_causes(&error),
        })?;
        Ok(Self { client, base, token, asking: Arc::new(Asking::new()) })
    }

    /// Proves to the server who this is, with a CI provider's token, and goes on as that.
    ///
    /// # Errors
    /// If the server does not answer, or does not believe it.
    pub async fn log_in(&self, id_token: &str) -> Result<HttpSession, StoreError> {
        let body = json!({"id_token": id_token}).to_string();
        let request =
            Self { token: None, ..self.clone() }.request(Method::POST, &["session"], &[]).body(body);
        let answer = match self.ask(request).await? {
            Some(response) => self.json(response).await?,
            None => return Err(self.unavailable("it knows no identities of CI providers")),
        };
        let scope = |value: &Value| value.as_str().and_then(|text| text.parse::<Scope>().ok());
        let token = answer["token"].as_str().ok_or_else(|| self.unavailable("its answer has no token"))?;
        Ok(HttpSession {
            store: Self { token: Some(token.to_owned()), ..self.clone() },
            read: answer["read"].as_array().into_iter().flatten().filter_map(scope).collect(),
            write: scope(&answer["write"]),
        })
    }

    fn request(&self, method: Method, path: &[&str], query: &[(&str, &str)]) -> RequestBuilder {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["api", "v1"]).extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let number = self.asking.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let request = self
            .client
            .request(method, url)
            .header(REQUEST_ID, format!("{}-{number}", self.asking.prefix()))
            .header("traceparent", format!("00-{}-{number:016x}-01", self.asking.trace));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    fn unavailable(&self, reason: impl Into<String>) -> StoreError {
        StoreError::Unavailable { location: self.location(), reason: reason.into() }
    }

    /// The answer, whatever its status.
    async fn send(&self, request: RequestBuilder) -> Result<Response, StoreError> {
        // Its text names the whole address, which the message has already.
        let failed = |error: reqwest::Error| crate::hint::with_causes(&error.without_url());
        let (client, request) = request.build_split();
        let request = request.map_err(|error| self.unavailable(failed(error)))?;
        let name = request.headers().get(REQUEST_ID).and_then(|name| name.to_str().ok());
        let name = RequestName(name.unwrap_or_default().to_owned());
        match client.execute(request).await {
            Ok(mut response) => {
                response.extensions_mut().insert(name);
                Ok(response)
            }
            Err(error) => Err(self.unavailable(format!("{} (request {})", failed(error), name.0))),
        }
    }

    /// The answer if it is a good one; `None` if what was asked for is not there.
    async fn ask(&self, request: RequestBuilder) -> Result<Option<Response>, StoreError> {
        let response = self.send(request).await?;
        match response.status() {
            status if status.is_success() => Ok(Some(response)),
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(self.refused(response).await),
        }
    }

    /// What an answer that is no success says.
    async fn refused(&self, response: Response) -> StoreError {
        let status = response.status();
        let name = response.extensions().get::<RequestName>().cloned();
        let body = self.body(response, ANSWER_BYTES_MAX).await.unwrap_or_default().unwrap_or_default();
        let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
        let message =
            answer["error"]["message"].as_str().unwrap_or_default().chars().take(300).collect::<String>();
        let reason = match status {
            StatusCode::UNAUTHORIZED if answer["error"]["code"] != "unauthorized" => {
                format!("it does not believe who this is: {message}")
            }
            StatusCode::UNAUTHORIZED => "it does not know the token in CROSSDOCK_TOKEN".to_owned(),
            StatusCode::FORBIDDEN => format!("it refuses: {message}"),
            _ => format!("it answered {status} {message}").trim_end().to_owned(),
        };
        match name {
            Some(RequestName(name)) => self.unavailable(format!("{reason} (request {name})")),
            None => self.unavailable(reason),
        }
    }

    /// A body of up to `limit` bytes; `None` if it is larger.
    async fn body(&self, response: Response, limit: u64) -> Result<Option<Bytes>, StoreError> {
        let announced = response.content_length().unwrap_or(0);
        if announced > limit {
            return Ok(None);
        }
        let mut body = BytesMut::with_capacity(usize::try_from(announced.min(1 << 20)).unwrap_or(0));
        let mut stream = response.bytes_stream();
        while let Some(bytes) = stream.next().await {
            let bytes =
                bytes.map_err(|error| self.unavailable(crate::hint::with_causes(&error.without_url())))?;
            if (body.len() + bytes.len()) as u64 > limit {
                return Ok(None);
            }
            body.extend_from_slice(&bytes);
        }
        Ok(Some(body.freeze()))
    }

    async fn json(&self, response: Response) -> Result<Value, StoreError> {
        let body = self.body(response, ANSWER_BYTES_MAX).await?;
        let value = body.and_then(|body| serde_json::from_slice(&body).ok());
        value.ok_or_else(|| self.unavailable("it answered what is no JSON"))
    }

    fn io(&self, action: String) -> impl FnOnce(std::io::Error) -> StoreError {
        let location = self.location();
        move |source| StoreError::Io { action, location, source }
    }

    /// Sends a file in pieces; what a broken connection lost is sent again.
    async fn send_in_pieces(&self, digest: &Digest, path: &Path, size: u64) -> Result<bool, StoreError> {
        let created = self.ask(self.request(Method::POST, &["uploads"], &[])).await?;
        let created = created.ok_or_else(|| self.unavailable("it takes no uploads"))?;
        let answer = self.json(created).await?;
        let id = answer["upload"].as_str().ok_or_else(|| self.unavailable("its upload has no name"))?;
        let (mut offset, mut attempts) = (0, 0);
        while offset < size {
            let length = PIECE.min(size - offset);
            let body = self.file(path, offset, length).await?;
            let request = self
                .request(Method::PATCH, &["uploads", id], &[])
                .header("upload-offset", offset)
                .header(CONTENT_LENGTH, length)
                .body(body);
            match self.send(request).await {
                Ok(response) if response.status().is_success() => (offset, attempts) = (offset + length, 0),
                failed => {
                    attempts += 1;
                    if attempts >= ATTEMPTS {
                        return Err(match failed {
                            Ok(response) => self.refused(response).await,
                            Err(error) => error,
                        });
                    }
                    let state = self.ask(self.request(Method::GET, &["uploads", id], &[])).await?;
                    let at = state.as_ref().and_then(|state| state.headers().get("upload-offset"));
                    let at = at.and_then(|at| at.to_str().ok()?.parse().ok()).filter(|at| *at <= size);
                    offset = at.ok_or_else(|| self.unavailable("it has forgotten the upload"))?;
                }
            }
        }
        let recipe = json!({"upload": id, "parts": [{"offset": 0, "length": size}]});
        let name = digest.to_string();
        let request = self.request(Method::POST, &["blobs", &name, "compose"], &[]).body(recipe.to_string());
        self.stored(digest, request).await
    }

    /// The parts that are new go into an upload, as few requests as can be.
    async fn send_new(&self, path: &Path, parts: &[Part]) -> Result<Option<String>, StoreError> {
        let mut new = parts.iter().filter_map(|part| match part {
            Part::New(range) => Some(range.clone()),
            Part::There { .. } => None,
        });
        let Some(mut range) = new.next() else { return Ok(None) };
        let created = self.ask(self.request(Method::POST, &["uploads"], &[])).await?;
        let created = created.ok_or_else(|| self.unavailable("it takes no uploads"))?;
        let answer = self.json(created).await?;
        let id = answer["upload"].as_str().ok_or_else(|| self.unavailable("its upload has no name"))?;
        let mut offset = 0;
        loop {
            let mut piece = BytesMut::new();
            while (piece.len() as u64) < PIECE {
                if range.is_empty() {
                    match new.next() {
                        Some(next) => range = next,
                        None => break,
                    }
                }
                let length = (PIECE - piece.len() as u64).min(range.end - range.start);
                piece.extend_from_slice(&self.read_piece(path, range.start, length).await?);
                range.start += length;
            }
            if piece.is_empty() {
                return Ok(Some(id.to_owned()));
            }
            let length = piece.len() as u64;
            let request = self
                .request(Method::PATCH, &["uploads", id], &[])
                .header("upload-offset", offset)
                .body(piece.freeze());
            let response = self.send(request).await?;
            if !response.status().is_success() {
                return Err(self.refused(response).await);
            }
            offset += length;
        }
    }

    async fn read_piece(&self, path: &Path, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        let failed = || self.io(format!("sending {}", path.display()));
        let mut file = tokio::fs::File::open(path).await.map_err(failed())?;
        file.seek(std::io::SeekFrom::Start(offset)).await.map_err(failed())?;
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        file.read_exact(&mut bytes).await.map_err(failed())?;
        Ok(bytes.into())
    }

    /// Whether a blob was stored that was not there before.
    async fn stored(&self, digest: &Digest, request: RequestBuilder) -> Result<bool, StoreError> {
        let response = self.send(request).await?;
        match response.status() {
            StatusCode::CREATED => Ok(true),
            status if status.is_success() => Ok(false),
            StatusCode::BAD_REQUEST => {
                let answer = self.json(response).await?;
                if answer["error"]["code"] == "mismatch" {
                    // Which one it is, only the server has seen.
                    let message = answer["error"]["message"].as_str().unwrap_or_default();
                    let mut found = message.split(|c: char| !c.is_ascii_alphanumeric() && c != ':');
                    let found = found.find_map(|word| word.parse().ok());
                    return Err(StoreError::Mismatch { digest: *digest, actual: found.unwrap_or(*digest) });
                }
                Err(self.unavailable(format!("it refused the blob {digest}")))
            }
            _ => Err(self.refused(response).await),
        }
    }

    /// Bytes of a file as a body.
    async fn file(&self, path: &Path, offset: u64, length: u64) -> Result<Body, StoreError> {
        let failed = || self.io(format!("sending {}", path.display()));
        let mut file = tokio::fs::File::open(path).await.map_err(failed())?;
        file.seek(std::io::SeekFrom::Start(offset)).await.map_err(failed())?;
        Ok(Body::wrap_stream(futures_util::stream::try_unfold(file.take(length), async |mut file| {
            let mut bytes = BytesMut::with_capacity(READ);
            let read = file.read_buf(&mut bytes).await?;
            Ok::<_, std::io::Error>((read > 0).then(|| (bytes.freeze(), file)))
        })))
    }
}

fn scopes(scopes: &[Scope]) -> Vec<(&str, &str)> {
    scopes.iter().map(|scope| ("scope", scope.as_str())).collect()
}

#[async_trait]
impl Store for HttpStore {
    fn location(&self) -> String {
        self.base.as_str().trim_end_matches('/').to_owned()
    }

    fn vouches_for_records(&self) -> bool {
        true
    }

    fn requests_begin_with(&self) -> Option<&str> {
        Some(self.asking.prefix())
    }

    async fn missing_blobs(&self, digests: &[Digest]) -> Result<Vec<Digest>, StoreError> {
        let mut missing = Vec::new();
        for digests in digests.chunks(DIGESTS_MAX) {
            let names: Vec<String> = digests.iter().map(ToString::to_string).collect();
            let question = json!({"digests": names}).to_string();
            let request = self.request(Method::POST, &["blobs", "missing"], &[]).body(question);
            let answer = self.ask(request).await?.ok_or_else(|| self.unavailable("it is no cache server"))?;
            let answer = self.json(answer).await?;
            let names = answer["missing"].as_array().ok_or_else(|| self.unavailable("its answer is none"))?;
            for name in names {
                let digest = name.as_str().and_then(|name| name.parse().ok());
                missing.push(digest.ok_or_else(|| self.unavailable("it named what is no digest"))?);
            }
        }
        Ok(missing)
    }

    async fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Option<Bytes>, StoreError> {
        let request = self.request(Method::GET, &["blobs", &digest.to_string()], &[]);
        let Some(response) = self.ask(request).await? else { return Ok(None) };
        let body = self.body(response, limit).await?;
        Ok(body.filter(|body| digest.matches(body)))
    }

    async fn fetch_blob(&self, digest: &Digest, size: u64, destination: &Path) -> Result<bool, StoreError> {
        let request = self.request(Method::GET, &["blobs", &digest.to_string()], &[]);
        let Some(response) = self.ask(request).await? else { return Ok(false) };
        if response.content_length().is_some_and(|length| length != size) {
            return Ok(false);
        }
        let failed = || self.io(format!("copying blob {digest} to {}", destination.display()));
        let parent = destination.parent().filter(|parent| !parent.as_os_str().is_empty());
        let copy = tempfile::NamedTempFile::new_in(parent.unwrap_or(Path::new("."))).map_err(failed())?;
        let (file, path) = copy.into_parts();
        let (mut file, mut hasher, mut received) =
            (tokio::fs::File::from_std(file), Hasher::new(digest.algorithm()), 0);
        let mut stream = response.bytes_stream();
        while let Some(bytes) = stream.next().await {
            let bytes =
                bytes.map_err(|error| self.unavailable(crate::hint::with_causes(&error.without_url())))?;
            received += bytes.len() as u64;
            if received > size {
                return Ok(false);
            }
            hasher.update(&bytes);
            file.write_all(&bytes).await.map_err(failed())?;
        }
        file.flush().await.map_err(failed())?;
        if received != size || hasher.finish() != *digest {
            return Ok(false);
        }
        path.persist(destination).map_err(|error| failed()(error.error))?;
        Ok(true)
    }

    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let request = self.request(Method::HEAD, &["blobs", &digest.to_string()], &[]);
        let Some(response) = self.ask(request).await? else { return Ok(None) };
        let length =
            response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        length.map(Some).ok_or_else(|| self.unavailable("it does not say how long a blob is"))
    }

    async fn read_range(&self, digest: &Digest, range: Range<u64>) -> Result<Option<Bytes>, StoreError> {
        let name = digest.to_string();
        let request = self.request(Method::GET, &["blobs", &name], &[]);
        if range.is_empty() {
            return Ok(self.blob_size(digest).await?.map(|_| Bytes::new()));
        }
        let asked = format!("bytes={}-{}", range.start, range.end - 1);
        let response = self.send(request.header(RANGE, asked)).await?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => self.body(response, range.end - range.start).await,
            // All of it was wanted, or the server does not know ranges.
            StatusCode::OK => Ok(self.body(response, range.end).await?.map(|body| {
                body.slice(usize::try_from(range.start).unwrap_or(usize::MAX).min(body.len())..)
            })),
            StatusCode::RANGE_NOT_SATISFIABLE => Ok(Some(Bytes::new())),
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(self.refused(response).await),
        }
    }

    async fn write_blob(&self, digest: &Digest, source: BlobSource) -> Result<bool, StoreError> {
        let name = digest.to_string();
        let request = || self.request(Method::PUT, &["blobs", &name], &[]);
        match source {
            BlobSource::Bytes(bytes) => self.stored(digest, request().body(bytes)).await,
            BlobSource::File(path) => {
                let metadata = tokio::fs::metadata(&path).await;
                let size = metadata.map_err(self.io(format!("sending {}", path.display())))?.len();
                if size > PIECE {
                    return self.send_in_pieces(digest, &path, size).await;
                }
                let body = self.file(&path, 0, size).await?;
                self.stored(digest, request().header(CONTENT_LENGTH, size).body(body)).await
            }
        }
    }

    fn composes(&self) -> bool {
        true
    }

    async fn write_parts(&self, digest: &Digest, file: &Path, parts: &[Part]) -> Result<bool, StoreError> {
        let upload = self.send_new(file, parts).await?;
        let mut sent = 0;
        let parts: Vec<Value> = parts
            .iter()
            .map(|part| match part {
                Part::There { blob, range } => {
                    json!({"blob": blob.to_string(), "offset": range.start, "length": part.length()})
                }
                Part::New(_) => {
                    let offset = sent;
                    sent += part.length();
                    json!({"offset": offset, "length": part.length()})
                }
            })
            .collect();
        let recipe = json!({"upload": upload, "parts": parts});
        let name = digest.to_string();
        let request = self.request(Method::POST, &["blobs", &name, "compose"], &[]).body(recipe.to_string());
        self.stored(digest, request).await
    }

    async fn read_record(&self, key: &Key, scopes: &[Scope]) -> Result<Option<Record>, StoreError> {
        if scopes.is_empty() {
            return Ok(None);
        }
        let request = self.request(Method::GET, &["records", &key.0.to_string()], &self::scopes(scopes));
        let Some(response) = self.ask(request).await? else { return Ok(None) };
        let Some(body) = self.body(response, RECORD_BYTES_MAX).await? else { return Ok(None) };
        // A damaged record is none.
        Ok(Record::decode(&body).ok())
    }

    async fn write_record(&self, record: &Record) -> Result<Record, StoreError> {
        let key = record.key();
        let request = self.request(Method::PUT, &["records", &key.0.to_string()], &[]).body(record.encode());
        let response = self.send(request).await?;
        if response.status() == StatusCode::CONFLICT {
            let answer = self.json(response).await?;
            let missing = answer["error"]["missing"].as_str().and_then(|text| text.parse().ok());
            let missing = missing.ok_or_else(|| self.unavailable("it refused a record"))?;
            return Err(StoreError::Incomplete { key, missing, location: self.location() });
        }
        if !response.status().is_success() {
            return Err(self.refused(response).await);
        }
        let body = self.body(response, RECORD_BYTES_MAX).await?.unwrap_or_default();
        Record::decode(&body).map_err(|_| self.unavailable("it answered with what is no record"))
    }

    async fn read_bundle(&self, name: &BundleName, scopes: &[Scope]) -> Result<Option<Bundle>, StoreError> {
        let request = self.request(Method::GET, &["bundles", &name.0.to_string()], &self::scopes(scopes));
        let Some(response) = self.ask(request).await? else { return Ok(None) };
        let Some(body) = self.body(response, BUNDLE_BYTES_MAX).await? else { return Ok(None) };
        Ok(Bundle::decode(&body).ok())
    }

    async fn take_lease(
        &self,
        key: &Key,
        scope: &Scope,
        holder: &str,
        lifetime: Duration,
    ) -> Result<LeaseAnswer, StoreError> {
        let (holder, label) = holder.split_once(' ').unwrap_or((holder, ""));
        let lifetime = u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX);
        let asked = json!({"holder": holder, "label": label, "lifetime_ms": lifetime}).to_string();
        let query = [("scope", scope.as_str())];
        let request = self.request(Method::PUT, &["leases", &key.0.to_string()], &query).body(asked);
        let response = self.send(request).await?;
        match response.status() {
            status if status.is_success() => Ok(LeaseAnswer::Granted),
            StatusCode::CONFLICT => {
                let answer = self.json(response).await?;
                let by = answer["held_by"].as_str().unwrap_or_default();
                Ok(LeaseAnswer::Held {
                    by: by.chars().filter(|c| !c.is_control()).take(200).collect(),
                    remaining: Duration::from_millis(answer["ends_in_ms"].as_u64().unwrap_or(1000)),
                })
            }
            // Who may not write has nothing to be waited for.
            StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => Ok(LeaseAnswer::NoLeases),
            _ => Err(self.refused(response).await),
        }
    }

    async fn release_lease(&self, key: &Key, scope: &Scope, holder: &str) -> Result<(), StoreError> {
        let holder = holder.split_once(' ').map_or(holder, |(holder, _)| holder);
        let query = [("scope", scope.as_str()), ("holder", holder)];
        let request = self.request(Method::DELETE, &["leases", &key.0.to_string()], &query);
        self.ask(request).await.map(|_| ())
    }

    async fn write_bundle(
        &self,
        name: &BundleName,
        scope: &Scope,
        bundle: &Bundle,
    ) -> Result<(), StoreError> {
        let query = [("scope", scope.as_str())];
        let request = self.request(Method::PUT, &["bundles", &name.0.to_string()], &query);
        let stored = self.ask(request.body(bundle.encode())).await?;
        stored.map(|_| ()).ok_or_else(|| self.unavailable("it takes no bundles"))
    }
}
