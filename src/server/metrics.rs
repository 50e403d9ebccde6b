//! What is seen of the server from outside: figures, and a line in the log for each request.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::Server;
use super::gc::{GcReport, TenantUsage};
use super::identity::Tenant;
use super::tokens::random;

/// Names a request through client, server and log.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Tenants that have figures of their own; the others share one.
const TENANTS_MAX: usize = 100;

/// Buckets of durations in seconds, as OpenTelemetry's conventions for HTTP have them.
const SECONDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// Who asked: what the log and the figures of tenants need.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) name: String,
    pub(super) tenant: Tenant,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    http_request_method: String,
    http_route: String,
    http_response_status_code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LookupLabels {
    tenant: String,
    protocol: String,
    kind: String,
    result: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByteLabels {
    protocol: String,
    direction: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StoredLabels {
    tenant: String,
    kind: String,
}

/// All figures.
pub(super) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Histogram>,
    active: Gauge,
    pub(super) connections: Gauge,
    lookups: Family<LookupLabels, Counter>,
    bytes: Family<ByteLabels, Counter>,
    pub(super) uploads: Gauge,
    pub(super) damaged: Counter,
    storage_seconds: Gauge<f64, AtomicU64>,
    stored: Family<StoredLabels, Gauge>,
    evicted: Counter,
    destroyed: Counter,
    excess: Gauge,
    tenants: std::sync::Mutex<Vec<Tenant>>,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    pub(super) fn new() -> Self {
        let metrics = Self {
            registry: Registry::default(),
            requests: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            active: Gauge::default(),
            connections: Gauge::default(),
            lookups: Family::default(),
            bytes: Family::default(),
            uploads: Gauge::default(),
            damaged: Counter::default(),
            storage_seconds: Gauge::default(),
            stored: Family::default(),
            evicted: Counter::default(),
            destroyed: Counter::default(),
            excess: Gauge::default(),
            tenants: std::sync::Mutex::default(),
        };
        metrics.registered()
    }

    fn registered(mut self) -> Self {
        let registry = &mut self.registry;
        registry.register(
            "http_server_request_duration_seconds",
            "From the request's head to the answer's head",
            self.requests.clone(),
        );
        registry.register("http_server_active_requests", "Requests under way", self.active.clone());
        registry.register("crossdock_connections", "Open connections", self.connections.clone());
        registry.register(
            "cache_lookups",
            "What was looked for, and whether it was there",
            self.lookups.clone(),
        );
        registry.register("cache_bytes", "Bytes of content received and sent", self.bytes.clone());
        registry.register("cache_upload_sessions", "Unfinished resumable uploads", self.uploads.clone());
        registry.register("cache_damaged_blobs", "Blobs whose content was found wrong", self.damaged.clone());
        registry.register(
            "crossdock_storage_probe_seconds",
            "How long the storage took to answer the last probe",
            self.storage_seconds.clone(),
        );
        registry.register("cache_stored_bytes", "Bytes that tenants have, by kind", self.stored.clone());
        registry.register("cache_evicted_records", "Records that were removed", self.evicted.clone());
        registry.register(
            "cache_destroyed_bytes",
            "Bytes of blobs that were removed",
            self.destroyed.clone(),
        );
        registry.register(
            "cache_excess_bytes",
            "Bytes beyond quota or budget that may not be removed",
            self.excess.clone(),
        );
        self
    }

    /// In the text form of OpenMetrics.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }

    /// Counts something that was looked for.
    pub(super) fn looked_up(&self, tenant: &Tenant, protocol: &str, kind: &str, found: bool) {
        let labels = LookupLabels {
            tenant: self.tenant(tenant),
            protocol: protocol.to_owned(),
            kind: kind.to_owned(),
            result: if found { "hit" } else { "miss" }.to_owned(),
        };
        self.lookups.get_or_create(&labels).inc();
    }

    pub(super) fn received(&self, protocol: &str, bytes: u64) {
        self.moved(protocol, "in", bytes);
    }

    pub(super) fn sent(&self, protocol: &str, bytes: u64) {
        self.moved(protocol, "out", bytes);
    }

    pub(super) fn probed(&self, took: std::time::Duration) {
        self.storage_seconds.set(took.as_secs_f64());
    }

    /// What a pass of removal did and left.
    pub(super) fn collected(&self, report: &GcReport, usage: &[TenantUsage]) {
        self.evicted.inc_by(report.records);
        self.destroyed.inc_by(report.destroyed_bytes);
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.excess.set(signed(report.excess_bytes));
        self.stored.clear();
        for tenant in usage {
            let name = self.tenant(&tenant.tenant);
            let images = tenant.image_bytes;
            let cache = tenant.record_bytes + tenant.blob_bytes.saturating_sub(images);
            for (kind, bytes) in [("cache", cache), ("images", images), ("trash", tenant.trash_bytes)] {
                let labels = StoredLabels { tenant: name.clone(), kind: kind.to_owned() };
                self.stored.get_or_create(&labels).inc_by(signed(bytes));
            }
        }
    }

    fn moved(&self, protocol: &str, direction: &str, bytes: u64) {
        let labels = ByteLabels { protocol: protocol.to_owned(), direction: direction.to_owned() };
        self.bytes.get_or_create(&labels).inc_by(bytes);
    }

    fn tenant(&self, tenant: &Tenant) -> String {
        let mut tenants = self.tenants.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !tenants.contains(tenant) {
            if tenants.len() >= TENANTS_MAX {
                return "(others)".to_owned();
            }
            tenants.push(tenant.clone());
        }
        tenant.to_string()
    }
}

/// Measures a request, gives it an id, and writes it to the log.
pub(super) async fn observe(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = request_id(&request);
    let method = method(request.method());
    let route = request.extensions().get::<MatchedPath>().map_or("(none)", MatchedPath::as_str).to_owned();
    // The path without its query, which may hold anything.
    let path = request.uri().path().chars().take(200).collect::<String>();
    server.metrics.active.inc();
    let mut response = next.run(request).await;
    server.metrics.active.dec();
    let took = started.elapsed();
    let status = response.status().as_u16();
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let (caller, tenant) = match response.extensions().get::<Caller>() {
        Some(caller) => (caller.name.clone(), caller.tenant.to_string()),
        None => (String::new(), String::new()),
    };
    let took_ms = took.as_secs_f64() * 1000.0;
    if status >= 500 {
        tracing::warn!(%id, %method, path, status, took_ms, caller, tenant, "request");
    } else {
        tracing::info!(%id, %method, path, status, took_ms, caller, tenant, "request");
    }
    let labels = RequestLabels {
        http_request_method: method.to_owned(),
        http_route: route,
        http_response_status_code: status,
    };
    server.metrics.requests.get_or_create(&labels).observe(took.as_secs_f64());
    response
}

/// The client's id if it is one, or else a new one.
fn request_id(request: &Request) -> String {
    let plain = |text: &&str| {
        (1..=64).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    let given = request.headers().get(REQUEST_ID).and_then(|value| value.to_str().ok()).filter(plain);
    match given {
        Some(given) => given.to_owned(),
        None => random(12).unwrap_or_else(|_| {
            let mut text = String::new();
            let _ = write!(text, "at-{:?}", std::thread::current().id());
            text.retain(|c| c.is_ascii_alphanumeric());
            text
        }),
    }
}

/// Known methods by name: what a client makes up must not become a label.
fn method(method: &Method) -> &'static str {
    const KNOWN: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("_OTHER")
}
