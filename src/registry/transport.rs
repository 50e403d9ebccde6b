//! One HTTP exchange with a registry: the token dance, redirects, retries, bounds.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Body, Method, Response, StatusCode, Url};
use serde::Deserialize;

use super::auth::{Access, HostAuth};
use super::credentials::Credentials;
use super::error::{ErrorDetail, RegistryError, RegistryErrorKind};
use super::hosts::Hosts;
use super::redact;
use crate::reference::Reference;

/// How often and how long to try.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// Attempts in all, at least 1. A transfer that moved on in between starts to count again.
    pub attempts_max: u32,
    /// The wait before the second attempt; it doubles from then on, with a random part so that many runners that
    /// were refused together do not come back together.
    pub backoff: Duration,
    /// The longest wait between two attempts, also where the registry asks for a longer one.
    pub backoff_max: Duration,
    /// How long nothing may happen on a connection.
    pub idle_max: Duration,
}

impl Default for RetryPolicy {
    /// About half a minute of trying: long enough for a registry's restart, short enough to still be looked at.
    fn default() -> Self {
        Self {
            attempts_max: 6,
            backoff: Duration::from_millis(500),
            backoff_max: Duration::from_secs(20),
            idle_max: Duration::from_mins(1),
        }
    }
}

impl RetryPolicy {
    /// How long to wait after the attempt number `attempt` (from 1).
    pub(super) fn wait(&self, attempt: u32, retry_after: Option<u32>) -> Duration {
        let doubled = self.backoff.saturating_mul(1 << attempt.saturating_sub(1).min(16));
        // Half of it fixed, half random. A fresh `RandomState` is random enough to spread runners.
        let random = RandomState::new().build_hasher().finish() % 1024;
        let jittered = doubled / 2 + (doubled / 2).saturating_mul(random as u32) / 1024;
        retry_after
            .map_or(jittered, |seconds| jittered.max(Duration::from_secs(seconds.into())))
            .min(self.backoff_max)
    }
}

/// The longest answer that is read where only an explanation or a token is expected, in bytes.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// An attempt that ended with silence counts for as many: two or three minutes are enough for a registry that says nothing.
const SILENCE_WEIGHT: u32 = 3;

/// As many redirects as browsers follow at least; registries need two.
const REDIRECTS_MAX: usize = 10;

/// What to send, in a form that can be sent again.
pub(super) enum Payload<'a> {
    Empty,
    Bytes(Bytes),
    /// Makes the body anew for each attempt; the length in bytes goes with it.
    Stream(u64, &'a (dyn Fn() -> std::io::Result<Body> + Send + Sync)),
}

/// One request.
pub(super) struct Request<'a> {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) payload: Payload<'a>,
    pub(super) access: Access,
    /// Whether a redirect is followed. Where it is not, it is an answer like any other.
    pub(super) redirects: bool,
}

impl Request<'_> {
    pub(super) fn new(method: Method, url: Url, access: Access) -> Self {
        Self { method, url, headers: Vec::new(), payload: Payload::Empty, access, redirects: true }
    }

    pub(super) fn header(mut self, name: HeaderName, value: &str) -> Self {
        // Values are made here, of digests, numbers and media types; one that is no header value is left out.
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.push((name, value));
        }
        self
    }
}

/// Where an operation happens, for messages.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) registry: String,
    pub(super) repository: String,
    pub(super) action: String,
}

impl Place {
    pub(super) fn new(reference: &Reference, action: impl Into<String>) -> Self {
        Self {
            registry: reference.registry().to_owned(),
            repository: reference.repository().to_owned(),
            action: action.into(),
        }
    }

    pub(super) fn error(&self, kind: RegistryErrorKind) -> RegistryError {
        RegistryError {
            action: self.action.clone(),
            registry: self.registry.clone(),
            repository: self.repository.clone(),
            kind,
        }
    }

    pub(super) fn protocol(&self, reason: impl Into<String>) -> RegistryError {
        self.error(RegistryErrorKind::Protocol { reason: reason.into() })
    }
}

/// An attempt that failed, and whether another one may succeed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: Box<RegistryError>,
    pub(super) transient: bool,
    /// Nobody is there at all.
    pub(super) unreachable: bool,
    /// How long the registry asks to wait, in seconds.
    pub(super) retry_after: Option<u32>,
}

impl Failure {
    pub(super) fn permanent(error: RegistryError) -> Self {
        Self { error: Box::new(error), transient: false, unreachable: false, retry_after: None }
    }

    pub(super) fn transient(error: RegistryError) -> Self {
        Self { error: Box::new(error), transient: true, unreachable: false, retry_after: None }
    }
}

/// The HTTP clients that a [`Transport`] works with.
#[derive(Debug)]
pub(super) struct Connections {
    /// For this machine: never through a proxy, as in Go's HTTP client.
    pub(super) local: reqwest::Client,
    /// For everything else.
    pub(super) remote: reqwest::Client,
    /// Why this machine's certificates could not be loaded. HTTPS will then fail, and this is the reason.
    pub(super) certificates: Option<String>,
    /// For registries that have certificates of their own, by [`authority_of`] them.
    pub(super) own: HashMap<String, reqwest::Client>,
}

/// Where a registry is spoken to: host, with the port where it is not the usual one.
pub(super) fn authority_of(registry: &str) -> String {
    if registry == "docker.io" { "registry-1.docker.io".to_owned() } else { registry.to_lowercase() }
}

impl Connections {
    fn for_url(&self, url: &Url) -> &reqwest::Client {
        if let Some(client) = self.own.get(url.authority()) {
            return client;
        }
        let local = url.host_str().is_some_and(is_loopback);
        if local { &self.local } else { &self.remote }
    }
}

/// Whether a body moves on. One byte a minute is not nothing, and would still take a year for a layer.
#[derive(Debug)]
pub(super) struct Pace {
    window: Duration,
    since: Instant,
    bytes: usize,
}

impl Pace {
    /// As little as this has to come in each idle time, in bytes: what a modem does in a second or two.
    pub(super) const BYTES_MIN: usize = 16 << 10;

    pub(super) fn new(window: Duration) -> Self {
        Self { window, since: Instant::now(), bytes: 0 }
    }

    /// Takes note of a piece; `false` if too little has come for too long.
    pub(super) fn goes_on(&mut self, bytes: usize) -> bool {
        self.bytes += bytes;
        if self.since.elapsed() < self.window {
            return true;
        }
        let enough = self.bytes >= Self::BYTES_MIN;
        (self.since, self.bytes) = (Instant::now(), 0);
        enough
    }
}

/// Counts the attempts of something that is tried again.
#[derive(Debug)]
pub(super) struct Attempts {
    policy: RetryPolicy,
    attempt: u32,
    all: u32,
}

impl Attempts {
    /// Bounds what moves on a little between failures and would otherwise be tried for ever: at 64 MiB for each
    /// broken connection this is more than any layer.
    const ALL_MAX: u32 = 200;

    /// Attempts where nobody answers at all: enough for a process that is being replaced. A machine that is down will
    /// not be up again while somebody waits for a build.
    const UNREACHABLE_MAX: u32 = 3;

    pub(super) fn new(policy: RetryPolicy) -> Self {
        Self { policy, attempt: 1, all: 1 }
    }

    /// There was progress since the last failure.
    pub(super) fn progressed(&mut self) {
        self.attempt = 1;
    }

    /// Waits for the next attempt, or gives up.
    pub(super) async fn after(&mut self, failure: Failure) -> Result<(), RegistryError> {
        let most = if failure.unreachable { Self::UNREACHABLE_MAX } else { u32::MAX };
        if !failure.transient
            || self.attempt >= self.policy.attempts_max.min(most)
            || self.all >= Self::ALL_MAX
        {
            return Err(*failure.error);
        }
        tokio::time::sleep(self.policy.wait(self.attempt, failure.retry_after)).await;
        // What was waited for in vain for a whole idle time will hardly come if one only asks often enough.
        let silence = matches!(failure.error.kind, RegistryErrorKind::Timeout { .. });
        self.attempt += if silence { SILENCE_WEIGHT } else { 1 };
        self.all += 1;
        Ok(())
    }
}

/// The connections and tokens of one client.
#[derive(Debug)]
pub(super) struct Transport {
    connections: Connections,
    pub(super) retry: RetryPolicy,
    pub(super) hosts: Hosts,
    credentials: Arc<dyn Credentials>,
    auth: Mutex<HashMap<String, Arc<HostAuth>>>,
}

impl Transport {
    pub(super) fn new(
        connections: Connections,
        retry: RetryPolicy,
        hosts: Hosts,
        credentials: Arc<dyn Credentials>,
    ) -> Self {
        Self { connections, retry, hosts, credentials, auth: Mutex::default() }
    }

    /// The URL of `path` below the repository of `reference`. `path` is made of digests, tags and fixed text.
    pub(super) fn url(&self, reference: &Reference, path: &str) -> Result<Url, RegistryError> {
        let registry = reference.registry();
        let scheme = if self.is_plain(registry) { "http" } else { "https" };
        let host = authority_of(registry);
        Url::parse(&format!("{scheme}://{host}/v2/{}/{path}", reference.repository())).map_err(|error| {
            Place::new(reference, "making a URL").protocol(format!("`{registry}` is not a host ({error})"))
        })
    }

    /// Whether `registry` is spoken to in plain HTTP.
    pub(super) fn is_plain(&self, registry: &str) -> bool {
        match self.hosts.get(registry) {
            Some(host) if host.plain_http || host.has_tls_options() => host.plain_http,
            _ => is_loopback(registry),
        }
    }

    /// The HTTP client for `url`, which may be no registry's.
    pub(super) fn connection(&self, url: &Url) -> &reqwest::Client {
        self.connections.for_url(url)
    }

    fn host(&self, registry: &str) -> Arc<HostAuth> {
        let mut auth = self.auth.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(auth.entry(registry.to_owned()).or_default())
    }

    /// Sends `request` until there is an answer that is not a passing failure. The answer's status is one of
    /// `expected`; anything else is an error.
    pub(super) async fn send(
        &self,
        place: &Place,
        request: &Request<'_>,
        expected: &[StatusCode],
    ) -> Result<Response, RegistryError> {
        self.send_as(self.retry, place, request, expected).await
    }

    /// As [`Transport::send`], with a policy of its own.
    pub(super) async fn send_as(
        &self,
        retry: RetryPolicy,
        place: &Place,
        request: &Request<'_>,
        expected: &[StatusCode],
    ) -> Result<Response, RegistryError> {
        let mut attempts = Attempts::new(retry);
        loop {
            match self.send_once(place, request, expected).await {
                Ok(response) => return Ok(response),
                Err(failure) => attempts.after(failure).await?,
            }
        }
    }

    /// Sends `request` once, not counting a token that has to be fetched or renewed for it.
    pub(super) async fn send_once(
        &self,
        place: &Place,
        request: &Request<'_>,
        expected: &[StatusCode],
    ) -> Result<Response, Failure> {
        let host = self.host(&place.registry);
        let mut authorization = host.authorization(self, place, &request.access).await?;
        // The first refusal tells how to authenticate, or that a token has expired. A second one is meant.
        let mut refusals = 0;
        loop {
            let response = self.follow(place, request, authorization.as_ref()).await?;
            let status = response.status();
            if expected.contains(&status) {
                return Ok(response);
            }
            if status == StatusCode::UNAUTHORIZED && refusals < 1 {
                refusals += 1;
                let renewed = host
                    .challenged(self, place, &request.access, response.headers(), authorization.as_ref())
                    .await?;
                if renewed.is_some() {
                    authorization = renewed;
                    continue;
                }
            }
            return Err(self.refused(place, response, host.has_credential(place).await).await);
        }
    }

    /// Sends one request and follows redirects. The authorization goes to the first host only.
    async fn follow(
        &self,
        place: &Place,
        request: &Request<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, Failure> {
        let home = self.home(place);
        let mut url = request.url.clone();
        for _ in 0..=REDIRECTS_MAX {
            let mut builder = self.connections.for_url(&url).request(request.method.clone(), url.clone());
            for (name, value) in &request.headers {
                builder = builder.header(name, value);
            }
            if let Some(authorization) = authorization
                && home.as_ref().is_some_and(|home| same_origin(home, &url))
            {
                builder = builder.header(AUTHORIZATION, authorization);
            }
            builder = match &request.payload {
                Payload::Empty if request.method == Method::POST || request.method == Method::PUT => {
                    builder.header(reqwest::header::CONTENT_LENGTH, 0)
                }
                Payload::Empty => builder,
                Payload::Bytes(bytes) => builder.body(bytes.clone()),
                Payload::Stream(length, make) => {
                    let body = make().map_err(|error| {
                        Failure::permanent(place.error(RegistryErrorKind::File {
                            file: "the blob".to_owned(),
                            reason: error.to_string(),
                        }))
                    })?;
                    builder.header(reqwest::header::CONTENT_LENGTH, *length).body(body)
                }
            };
            let sending = builder.send();
            let response = match &request.payload {
                // Whoever streams watches the progress of the stream; a fixed time would be wrong for it.
                Payload::Stream(..) => sending.await,
                _ => match tokio::time::timeout(self.retry.idle_max, sending).await {
                    Ok(response) => response,
                    Err(_) => return Err(self.timed_out(place)),
                },
            }
            .map_err(|error| self.broken(place, &error))?;
            let status = response.status();
            if !request.redirects || !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            // What has a body may only be repeated elsewhere if the status says that the method stays.
            let has_body = !matches!(request.payload, Payload::Empty);
            if has_body && !matches!(status.as_u16(), 307 | 308) {
                return Ok(response);
            }
            let target = response
                .headers()
                .get(LOCATION)
                .and_then(|location| url.join(location.to_str().ok()?).ok())
                .ok_or_else(|| Failure::permanent(place.protocol("it redirects to nowhere")))?;
            let downgrade = url.scheme() == "https" && target.scheme() == "http";
            if !matches!(target.scheme(), "http" | "https") || downgrade {
                let target = redact::address(&target);
                return Err(Failure::permanent(
                    place.protocol(format!("it redirects to {target}, which is not safe")),
                ));
            }
            url = target;
        }
        Err(Failure::permanent(place.protocol(format!("it redirects more than {REDIRECTS_MAX} times"))))
    }

    /// The origin that the registry's credentials belong to.
    fn home(&self, place: &Place) -> Option<Url> {
        let scheme = if self.is_plain(&place.registry) { "http" } else { "https" };
        let host = authority_of(&place.registry);
        Url::parse(&format!("{scheme}://{host}/")).ok()
    }

    /// Fetches a token: not retried on its own, since the request that needs it is. The body of the answer, if
    /// the status is a success.
    pub(super) async fn fetch_token(
        &self,
        place: &Place,
        url: &Url,
        builder: impl FnOnce(&reqwest::Client) -> reqwest::RequestBuilder,
        authenticated: bool,
    ) -> Result<Bytes, Failure> {
        let response =
            tokio::time::timeout(self.retry.idle_max, builder(self.connections.for_url(url)).send())
                .await
                .map_err(|_| self.timed_out(place))?
                .map_err(|error| self.broken(place, &error))?;
        if !response.status().is_success() {
            return Err(self.refused(place, response, authenticated).await);
        }
        self.read_bounded(place, response, ANSWER_BYTES_MAX).await
    }

    pub(super) fn credentials(&self) -> &dyn Credentials {
        &*self.credentials
    }

    /// Reads a whole body of at most `limit` bytes.
    pub(super) async fn read_bounded(
        &self,
        place: &Place,
        mut response: Response,
        limit: u64,
    ) -> Result<Bytes, Failure> {
        let too_large = || Failure::permanent(place.error(RegistryErrorKind::TooLarge { limit }));
        if response.content_length().is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        let mut body = BytesMut::new();
        let mut pace = Pace::new(self.retry.idle_max);
        while let Some(piece) = self.next_chunk(place, &mut response).await? {
            if !pace.goes_on(piece.len()) {
                return Err(self.timed_out(place));
            }
            if (body.len() + piece.len()) as u64 > limit {
                return Err(too_large());
            }
            body.extend_from_slice(&piece);
        }
        Ok(body.freeze())
    }

    /// The next piece of a body, within the idle time.
    pub(super) async fn next_chunk(
        &self,
        place: &Place,
        response: &mut Response,
    ) -> Result<Option<Bytes>, Failure> {
        tokio::time::timeout(self.retry.idle_max, response.chunk())
            .await
            .map_err(|_| self.timed_out(place))?
            .map_err(|error| self.broken(place, &error))
    }

    pub(super) fn timed_out(&self, place: &Place) -> Failure {
        Failure::transient(place.error(RegistryErrorKind::Timeout { idle: self.retry.idle_max }))
    }

    /// The failure of a connection.
    pub(super) fn broken(&self, place: &Place, error: &reqwest::Error) -> Failure {
        let mut reason = redact::chain(error);
        let plain_http = self.is_plain(&place.registry);
        if let Some(problem) = self.connections.certificates.as_ref().filter(|_| !plain_http) {
            reason = format!("{reason} (this machine's certificates cannot be loaded: {problem})");
        }
        let problem = self.hosts.get(&place.registry).and_then(|host| host.problem.as_ref());
        if let Some(problem) = problem {
            reason = format!("{reason} ({problem})");
        }
        // A certificate does not get better by asking again. Whatever else happens to connections may.
        let permanent = error.is_builder() || problem.is_some() || reason.contains("certificate");
        let kind = RegistryErrorKind::Transport { reason, plain_http };
        Failure {
            error: Box::new(place.error(kind)),
            transient: !permanent,
            unreachable: error.is_connect(),
            retry_after: None,
        }
    }

    /// The failure that an unwelcome answer is.
    async fn refused(&self, place: &Place, response: Response, authenticated: bool) -> Failure {
        let status = response.status();
        let retry_after = retry_after(response.headers());
        let transient = matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504);
        // The explanation is a courtesy: if it cannot be read, the status has to do.
        let body = self.read_bounded(place, response, ANSWER_BYTES_MAX).await.unwrap_or_default();
        let errors = explain(&body);
        let denied = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
            && !errors.iter().any(|error| error.code == "TOOMANYREQUESTS");
        let kind = if denied {
            RegistryErrorKind::Denied { status: status.as_u16(), errors, authenticated }
        } else {
            RegistryErrorKind::Status { status: status.as_u16(), errors }
        };
        Failure { error: Box::new(place.error(kind)), transient, unreachable: false, retry_after }
    }
}

/// The registry's explanation in the body of an error answer.
fn explain(body: &[u8]) -> Vec<ErrorDetail> {
    // More than a few errors in one answer explain nothing.
    const ERRORS_MAX: usize = 5;
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        errors: Option<Vec<Entry>>,
        /// Token services have their own form.
        #[serde(default, alias = "error_description")]
        details: Option<String>,
    }
    #[derive(Deserialize)]
    struct Entry {
        #[serde(default)]
        code: Option<String>,
        #[serde(default)]
        message: Option<String>,
    }
    let Ok(answer) = serde_json::from_slice::<Answer>(body) else {
        // An HTML page of a proxy says little; one line of plain text can say all.
        let text = String::from_utf8_lossy(&body[..body.len().min(300)]);
        return if text.trim().is_empty() || text.trim_start().starts_with('<') {
            Vec::new()
        } else {
            vec![ErrorDetail { code: String::new(), message: redact::text(&text) }]
        };
    };
    let entries = answer.errors.unwrap_or_default();
    let mut details: Vec<ErrorDetail> = entries
        .into_iter()
        .take(ERRORS_MAX)
        .map(|entry| ErrorDetail {
            code: redact::text(&entry.code.unwrap_or_default()),
            message: redact::text(&entry.message.unwrap_or_default()),
        })
        .collect();
    if let Some(text) = answer.details.filter(|_| details.is_empty()) {
        details.push(ErrorDetail { code: String::new(), message: redact::text(&text) });
    }
    details
}

/// `Retry-After` in seconds. The form with a date is rare, and the ordinary wait serves it.
fn retry_after(headers: &HeaderMap) -> Option<u32> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()
}

pub(super) fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme() && a.host() == b.host() && a.port_or_known_default() == b.port_or_known_default()
}

/// Whether a registry's host, with or without a port, is this machine.
pub(super) fn is_loopback(registry: &str) -> bool {
    let Ok(url) = Url::parse(&format!("http://{registry}/")) else { return false };
    match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_recognised() {
        for local in ["localhost", "localhost:5000", "127.0.0.1:1", "127.9.9.9", "[::1]:5000", "r.localhost"]
        {
            assert!(is_loopback(local), "{local}");
        }
        for remote in ["docker.io", "127.0.0.1.evil.io", "localhost.evil.io", "10.0.0.1", "[::2]"] {
            assert!(!is_loopback(remote), "{remote}");
        }
    }

    #[test]
    fn waits_grow_and_are_bounded() {
        let policy = RetryPolicy::default();
        for attempt in 1..100 {
            let wait = policy.wait(attempt, None);
            let doubled = policy.backoff.saturating_mul(1 << (attempt - 1).min(16)).min(policy.backoff_max);
            assert!(wait <= doubled && wait >= (doubled / 2).min(policy.backoff_max), "{attempt}: {wait:?}");
        }
        assert_eq!(policy.wait(1, Some(7)), Duration::from_secs(7));
        assert_eq!(policy.wait(1, Some(86_400)), policy.backoff_max);
    }

    #[test]
    fn explanations_are_read_in_every_form() {
        let show = |body: &[u8]| explain(body).iter().map(ErrorDetail::to_string).collect::<Vec<_>>();
        assert_eq!(
            show(br#"{"errors":[{"code":"DENIED","message":"no"},{"code":"X"}]}"#),
            ["DENIED: no", "X"]
        );
        assert_eq!(
            show(br#"{"details":"incorrect username or password"}"#),
            ["incorrect username or password"]
        );
        assert_eq!(show(b"<html>bad gateway</html>"), [""; 0]);
        assert_eq!(show(b"plain\nwords"), ["plain words"]);
        assert_eq!(show(br#"{"errors":null}"#), [""; 0]);
    }
}
