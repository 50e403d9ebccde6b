//! The figures that `/metrics` shows. `docs/operating.md` says what each of them means; a test compares.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::gc::{GcReport, TenantUsage};
use super::identity::Tenant;
use super::machine::Process;
use super::measured::StorageFigures;
use super::observe::Operation;
use super::settings::Limits;
use super::traces::SpanLabels;

/// Tenants that have figures of their own; the others share one.
const TENANTS_MAX: usize = 100;

/// Buckets of durations in seconds, as OpenTelemetry's conventions for HTTP have them.
pub(super) const SECONDS: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// Who asked: what the log and the figures of tenants need.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) name: String,
    pub(super) tenant: Tenant,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    protocol: &'static str,
    operation: &'static str,
    http_request_method: &'static str,
    http_route: &'static str,
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

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DiskLabels {
    disk: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailureLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

type Seconds = Gauge<f64, AtomicU64>;

/// What is read of the process when somebody asks.
#[derive(Debug, Default)]
struct ProcessFigures {
    resident: Gauge,
    cpu: Counter<f64, AtomicU64>,
    files: Gauge,
    files_max: Gauge,
    started: Seconds,
    tasks: Gauge,
    tasks_waiting: Gauge,
}

/// What is known of passes of removal.
#[derive(Debug, Default)]
struct GcFigures {
    passes: Family<ResultLabels, Counter>,
    seconds: Seconds,
    succeeded: Seconds,
    stored: Family<StoredLabels, Gauge>,
    evicted: Counter,
    destroyed: Counter,
    excess: Gauge,
}

/// All figures.
pub(super) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Histogram>,
    active: Gauge,
    pub(super) connections: Gauge,
    connections_max: Gauge,
    failed_connections: Family<FailureLabels, Counter>,
    lookups: Family<LookupLabels, Counter>,
    bytes: Family<ByteLabels, Counter>,
    uploads: Gauge,
    uploads_max: Gauge,
    pub(super) damaged: Counter,
    ready: Gauge,
    storage: StorageFigures,
    storage_seconds: Seconds,
    disk_free: Family<DiskLabels, Gauge>,
    disk_size: Family<DiskLabels, Gauge>,
    process: ProcessFigures,
    gc: GcFigures,
    pub(super) spans: Family<SpanLabels, Counter>,
    tenants: std::sync::Mutex<Vec<Tenant>>,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// A request under way, until it is dropped: also by a client that goes away.
pub(super) struct UnderWay(Gauge);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// Figures of a server that was started at `now` with these limits.
    pub(super) fn new(limits: &Limits, now: SystemTime) -> Arc<Self> {
        let metrics = Self {
            registry: Registry::default(),
            requests: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            active: Gauge::default(),
            connections: Gauge::default(),
            connections_max: Gauge::default(),
            failed_connections: Family::default(),
            lookups: Family::default(),
            bytes: Family::default(),
            uploads: Gauge::default(),
            uploads_max: Gauge::default(),
            damaged: Counter::default(),
            ready: Gauge::default(),
            storage: StorageFigures::default(),
            storage_seconds: Gauge::default(),
            disk_free: Family::default(),
            disk_size: Family::default(),
            process: ProcessFigures::default(),
            gc: GcFigures::default(),
            spans: Family::default(),
            tenants: std::sync::Mutex::default(),
        };
        metrics.connections_max.set(limits.connections_max.try_into().unwrap_or(i64::MAX));
        metrics.uploads_max.set(limits.uploads_max.try_into().unwrap_or(i64::MAX));
        metrics.process.started.set(seconds(now));
        // What has not happened yet is none, and not unknown: alerts ask by how much it grows.
        for reason in ["accept", "tls"] {
            drop(metrics.failed_connections.get_or_create(&FailureLabels { reason }));
        }
        for result in ["ok", "error"] {
            drop(metrics.gc.passes.get_or_create(&ResultLabels { result }));
        }
        for result in ["sent", "failed", "dropped"] {
            drop(metrics.spans.get_or_create(&SpanLabels { result }));
        }
        Arc::new(metrics.registered())
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
            "crossdock_connections_limit",
            "Connections that may be open",
            self.connections_max.clone(),
        );
        registry.register(
            "crossdock_connections_failed",
            "Connections that came to nothing",
            self.failed_connections.clone(),
        );
        registry.register(
            "cache_lookups",
            "What was looked for, and whether it was there",
            self.lookups.clone(),
        );
        registry.register("cache_bytes", "Bytes of content received and sent", self.bytes.clone());
        registry.register("cache_upload_sessions", "Unfinished resumable uploads", self.uploads.clone());
        registry.register(
            "cache_upload_sessions_limit",
            "Resumable uploads that may be unfinished",
            self.uploads_max.clone(),
        );
        registry.register("cache_damaged_blobs", "Blobs whose content was found wrong", self.damaged.clone());
        registry.register("crossdock_ready", "Whether /readyz says that it is of use", self.ready.clone());
        self.register_storage();
        self.register_gc();
        self.register_process();
        self
    }

    fn register_storage(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "crossdock_storage_duration_seconds",
            "How long operations of the storage took",
            self.storage.seconds.clone(),
        );
        registry.register(
            "crossdock_storage_active_operations",
            "Operations of the storage under way",
            self.storage.active.clone(),
        );
        registry.register(
            "crossdock_storage_probe_seconds",
            "How long the storage took to answer the last probe",
            self.storage_seconds.clone(),
        );
        registry.register(
            "crossdock_disk_free_bytes",
            "What is free of a file system",
            self.disk_free.clone(),
        );
        registry.register("crossdock_disk_size_bytes", "How large a file system is", self.disk_size.clone());
    }

    fn register_gc(&mut self) {
        let (registry, gc) = (&mut self.registry, &self.gc);
        registry.register("cache_stored_bytes", "Bytes that tenants have, by kind", gc.stored.clone());
        registry.register("cache_evicted_records", "Records that were removed", gc.evicted.clone());
        registry.register("cache_destroyed_bytes", "Bytes of blobs that were removed", gc.destroyed.clone());
        registry.register(
            "cache_excess_bytes",
            "Bytes beyond quota or budget that may not be removed",
            gc.excess.clone(),
        );
        registry.register("crossdock_gc_passes", "Passes of removal", gc.passes.clone());
        registry.register(
            "crossdock_gc_seconds",
            "How long the last pass of removal took",
            gc.seconds.clone(),
        );
        registry.register(
            "crossdock_gc_last_success_timestamp_seconds",
            "When this server's last good pass of removal ended",
            gc.succeeded.clone(),
        );
    }

    fn register_process(&mut self) {
        let (registry, process) = (&mut self.registry, &self.process);
        registry.register("process_resident_memory_bytes", "Memory in use", process.resident.clone());
        registry.register("process_cpu_seconds", "Time of processors", process.cpu.clone());
        registry.register("process_open_fds", "Open files and connections", process.files.clone());
        registry.register("process_max_fds", "Files that may be open", process.files_max.clone());
        registry.register("process_start_time_seconds", "When the server started", process.started.clone());
        registry.register("crossdock_tasks", "Tasks: connections and background work", process.tasks.clone());
        registry.register(
            "crossdock_tasks_waiting",
            "Tasks that wait for a processor in the common queue",
            process.tasks_waiting.clone(),
        );
        registry.register("crossdock_spans", "Spans of traces", self.spans.clone());
        let version = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("crossdock_build", "Which version this is", version);
    }

    /// What the storage's operations are counted in.
    pub(super) fn storage(&self) -> StorageFigures {
        self.storage.clone()
    }

    /// Counts a request under way.
    pub(super) fn under_way(&self) -> UnderWay {
        self.active.inc();
        UnderWay(self.active.clone())
    }

    /// Counts an answer.
    pub(super) fn answered(&self, operation: Operation, method: &'static str, status: u16, took: Duration) {
        let labels = RequestLabels {
            protocol: operation.protocol,
            operation: operation.name,
            http_request_method: method,
            http_route: operation.route,
            http_response_status_code: status,
        };
        self.requests.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// Counts a connection that came to nothing.
    pub(super) fn connection_failed(&self, reason: &'static str) {
        self.failed_connections.get_or_create(&FailureLabels { reason }).inc();
    }

    /// How full a file system is.
    pub(super) fn disk(&self, disk: &'static str, free: u64, size: u64) {
        let labels = DiskLabels { disk };
        self.disk_free.get_or_create(&labels).set(signed(free));
        self.disk_size.get_or_create(&labels).set(signed(size));
    }

    /// What is known of the process and of its unfinished uploads now.
    pub(super) fn process(&self, process: Process, uploads: usize, is_ready: bool) {
        let figures = &self.process;
        figures.resident.set(signed(process.resident_bytes));
        figures.cpu.inner().store(process.cpu_seconds.to_bits(), Ordering::Relaxed);
        figures.files.set(signed(process.open_files));
        figures.files_max.set(signed(process.open_files_max));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let runtime = runtime.metrics();
            figures.tasks.set(signed(runtime.num_alive_tasks() as u64));
            figures.tasks_waiting.set(signed(runtime.global_queue_depth() as u64));
        }
        self.uploads.set(signed(uploads as u64));
        self.ready.set(i64::from(is_ready));
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

    pub(super) fn probed(&self, took: Duration) {
        self.storage_seconds.set(took.as_secs_f64());
    }

    /// What a pass of removal did and left.
    pub(super) fn collected(
        &self,
        report: &GcReport,
        usage: &[TenantUsage],
        took: Duration,
        now: SystemTime,
    ) {
        let gc = &self.gc;
        gc.passes.get_or_create(&ResultLabels { result: "ok" }).inc();
        gc.seconds.set(took.as_secs_f64());
        gc.succeeded.set(seconds(now));
        gc.evicted.inc_by(report.records);
        gc.destroyed.inc_by(report.destroyed_bytes);
        gc.excess.set(signed(report.excess_bytes));
        gc.stored.clear();
        for tenant in usage {
            let name = self.tenant(&tenant.tenant);
            let images = tenant.image_bytes;
            let cache = tenant.record_bytes + tenant.blob_bytes.saturating_sub(images);
            for (kind, bytes) in [("cache", cache), ("images", images), ("trash", tenant.trash_bytes)] {
                let labels = StoredLabels { tenant: name.clone(), kind: kind.to_owned() };
                gc.stored.get_or_create(&labels).inc_by(signed(bytes));
            }
        }
    }

    /// Counts a pass of removal that failed.
    pub(super) fn collecting_failed(&self) {
        self.gc.passes.get_or_create(&ResultLabels { result: "error" }).inc();
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

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
