//! What is seen of a server from outside: probes and figures, whatever the storage does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use futures_util::stream::BoxStream;
use object_store::path::Path as Name;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result as ObjectResult,
};

use super::*;
use crate::store::ObjectStore;

/// A bucket that does what buckets should not, when it is told to.
#[derive(Debug, Default)]
struct Unruly {
    inner: object_store::memory::InMemory,
    /// It does not answer.
    hangs: Arc<AtomicBool>,
    /// It says that what exists is in another state, whatever it is in.
    denies: Arc<AtomicBool>,
}

impl std::fmt::Display for Unruly {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an unruly bucket")
    }
}

#[async_trait::async_trait]
impl object_store::ObjectStore for Unruly {
    async fn put_opts(
        &self,
        name: &Name,
        payload: PutPayload,
        options: PutOptions,
    ) -> ObjectResult<PutResult> {
        if matches!(options.mode, PutMode::Update(_)) && self.denies.load(Ordering::SeqCst) {
            let source = "it is in another state".into();
            return Err(object_store::Error::Precondition { path: name.to_string(), source });
        }
        self.inner.put_opts(name, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        name: &Name,
        options: PutMultipartOptions,
    ) -> ObjectResult<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(name, options).await
    }

    async fn get_opts(&self, name: &Name, options: GetOptions) -> ObjectResult<GetResult> {
        if self.hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        self.inner.get_opts(name, options).await
    }

    fn delete_stream(
        &self,
        names: BoxStream<'static, ObjectResult<Name>>,
    ) -> BoxStream<'static, ObjectResult<Name>> {
        self.inner.delete_stream(names)
    }

    fn list(&self, prefix: Option<&Name>) -> BoxStream<'static, ObjectResult<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Name>) -> ObjectResult<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Name, to: &Name, options: CopyOptions) -> ObjectResult<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

async fn metrics(server: &Running) -> String {
    server.request(Method::GET, "/metrics", "").send().await.unwrap().text().await.unwrap()
}

/// The value of a figure with these labels.
fn figure(metrics: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let line = metrics.lines().find(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels.iter().all(|label| line.contains(label))
    });
    line?.rsplit(' ').next()?.parse().ok()
}

/// The probes are answered within a second while the storage does not answer at all, and say so.
#[tokio::test]
async fn probes_are_answered_while_the_storage_hangs() {
    let hangs = Arc::new(AtomicBool::new(false));
    let bucket = Unruly { hangs: Arc::clone(&hangs), ..Unruly::default() };
    let objects = ObjectStore::new(Arc::new(bucket), "x", "memory".to_owned());
    let spool = tempfile::tempdir().unwrap();
    let server = Running::over(StorageKind::Objects(objects), spool, Limits::default()).await;
    let token = server.token("default", ALL, ALL).await;
    let ask = async |path: &str| {
        let asked = Instant::now();
        let answer = server.request(Method::GET, path, "").send().await.unwrap();
        assert!(asked.elapsed() < Duration::from_secs(1), "{path} took {:?}", asked.elapsed());
        (answer.status(), answer.text().await.unwrap())
    };
    let becomes = async |expected: StatusCode, what: &str| {
        let started = Instant::now();
        while ask("/readyz").await.0 != expected {
            assert!(started.elapsed() < Duration::from_secs(30), "{what}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    becomes(StatusCode::OK, "it does not become ready").await;
    assert_eq!(figure(&ask("/metrics").await.1, "crossdock_ready", &[]), Some(1.0));
    hangs.store(true, Ordering::SeqCst);
    let path = format!("/api/v1/blobs/{}", Digest::of("x"));
    let stuck = server.request(Method::GET, &path, &token).timeout(Duration::from_secs(25)).send();
    let stuck = tokio::spawn(stuck);
    becomes(StatusCode::SERVICE_UNAVAILABLE, "it says that it is ready").await;
    assert!(ask("/readyz").await.1.contains("the storage does not answer"));
    assert_eq!(ask("/livez").await.0, StatusCode::OK, "a restart would help nobody");
    let text = ask("/metrics").await.1;
    assert_eq!(figure(&text, "crossdock_ready", &[]), Some(0.0));
    assert!(figure(&text, "crossdock_storage_active_operations", &[]).unwrap() >= 1.0, "{text}");
    let given_up = [r#"operation="read_document""#, r#"result="abandoned""#];
    assert!(figure(&text, "crossdock_storage_duration_seconds_count", &given_up).unwrap() >= 1.0, "{text}");
    hangs.store(false, Ordering::SeqCst);
    becomes(StatusCode::OK, "it does not become ready again").await;
    stuck.abort();
}

/// A storage that keeps no promise about who is first grants no lease, and holds nobody up for one.
#[tokio::test]
async fn nobody_waits_for_a_lease_that_nobody_has() {
    let denies = Arc::new(AtomicBool::new(false));
    let bucket = Unruly { denies: Arc::clone(&denies), ..Unruly::default() };
    let objects = ObjectStore::new(Arc::new(bucket), "x", "memory".to_owned());
    let spool = tempfile::tempdir().unwrap();
    let server = Running::over(StorageKind::Objects(objects), spool, Limits::default()).await;
    let token = server.token("default", ALL, ALL).await;
    let path = format!("/api/v1/leases/{}?scope=main", Digest::of("step"));
    let take = |holder: &str| {
        let asked = serde_json::json!({"holder": holder, "label": "runner", "lifetime_ms": 10_000});
        server.request(Method::PUT, &path, &token).body(asked.to_string()).send()
    };
    let release =
        |holder: &str| server.request(Method::DELETE, &format!("{path}&holder={holder}"), &token).send();
    assert_eq!(take("one").await.unwrap().status(), StatusCode::OK);
    assert_eq!(take("two").await.unwrap().status(), StatusCode::CONFLICT);
    assert_eq!(release("one").await.unwrap().status(), StatusCode::NO_CONTENT);
    denies.store(true, Ordering::SeqCst);
    let answer = take("two").await.unwrap();
    assert_eq!(answer.status(), StatusCode::NOT_FOUND, "{:?}", answer.text().await);
    denies.store(false, Ordering::SeqCst);
    assert_eq!(take("two").await.unwrap().status(), StatusCode::OK);
}

/// `docs/operating.md` describes what is shown, and nothing else.
#[tokio::test]
async fn every_figure_is_described_and_every_description_is_of_a_figure() {
    let spool = tempfile::tempdir().unwrap();
    let kind = StorageKind::Directory(spool.path().join("storage"));
    let gc = GcPolicy { interval: Duration::from_millis(100), ..GcPolicy::default() };
    let server = Running::with(kind, spool, Settings { gc, ..Settings::new(SystemTime::now) }).await;
    let store = server.store(&server.token("default", ALL, ALL).await);
    let record = store_sample(&store, "shown").await;
    store.read_record(&record.key(), std::slice::from_ref(&record.scope)).await.unwrap().unwrap();
    // What tenants have is shown after a pass of removal.
    let started = Instant::now();
    let text = loop {
        let text = metrics(&server).await;
        if figure(&text, "cache_stored_bytes", &["kind=\"cache\""]).is_some() {
            break text;
        }
        assert!(started.elapsed() < Duration::from_secs(30), "{text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let shown: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .map(|(name, kind)| match kind {
            "counter" => format!("{name}_total"),
            "info" => format!("{name}_info"),
            _ => name.to_owned(),
        })
        .collect();
    let page = include_str!("../../../docs/operating.md");
    let described: BTreeSet<String> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` |"))
        .map(|(name, _)| name.to_owned())
        .collect();
    assert_eq!(described, shown, "docs/operating.md describes other figures than /metrics shows");
    // What its queries and alerts ask for exists, too.
    let parts = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    let prefixes = ["crossdock_", "cache_", "http_server_", "process_"];
    for word in page.split(parts).filter(|word| prefixes.iter().any(|prefix| word.starts_with(prefix))) {
        let stem = ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end));
        assert!(
            shown.contains(word) || shown.contains(stem.unwrap_or_default()),
            "no figure is called {word}"
        );
    }
}

/// Rate, errors and duration for each operation of each protocol; hits and misses by tenant and kind.
#[tokio::test]
async fn each_operation_has_figures() {
    let server = Running::start().await;
    let token = server.token("acme", ALL, ALL).await;
    let store = server.store(&token);
    let record = store_sample(&store, "seen").await;
    let digest = record.layers[0].digest;
    store.read_record(&record.key(), std::slice::from_ref(&record.scope)).await.unwrap().unwrap();
    let absent = Digest::of("absent");
    let pushed = format!("/v2/a/blobs/uploads/?digest={}", Digest::of("pushed"));
    assert_eq!(server.status(Method::POST, &pushed, &token, "pushed").await, StatusCode::CREATED);
    let upload = server.json(Method::POST, "/api/v1/uploads", &token, json!({})).await.1;
    let upload = format!("/api/v1/uploads/{}", upload["upload"].as_str().unwrap());
    let session = server.request(Method::POST, "/v2/a/blobs/uploads/", &token).send().await.unwrap();
    let session = session.headers()["location"].to_str().unwrap().to_owned();
    for (method, path) in [
        (Method::GET, "/api/v1".to_owned()),
        (Method::POST, "/api/v1/blobs/missing".to_owned()),
        (Method::GET, format!("/api/v1/blobs/{digest}")),
        (Method::GET, format!("/api/v1/blobs/{absent}")),
        (Method::POST, format!("/api/v1/blobs/{digest}/ranges")),
        (Method::POST, format!("/api/v1/blobs/{digest}/compose")),
        (Method::GET, upload.clone()),
        (Method::PATCH, upload.clone()),
        (Method::DELETE, upload),
        (Method::GET, format!("/api/v1/bundles/{absent}?scope=main")),
        (Method::PUT, format!("/api/v1/bundles/{absent}?scope=main")),
        (Method::PUT, format!("/api/v1/leases/{absent}?scope=main")),
        (Method::DELETE, format!("/api/v1/leases/{absent}?scope=main")),
        (Method::POST, "/api/v1/session".to_owned()),
        (Method::GET, "/v2/".to_owned()),
        (Method::GET, format!("/v2/a/blobs/{}", Digest::of("pushed"))),
        (Method::GET, session.clone()),
        (Method::PATCH, session.clone()),
        (Method::PUT, session.clone()),
        (Method::DELETE, session),
        (Method::GET, "/v2/a/manifests/latest".to_owned()),
        (Method::PUT, "/v2/a/manifests/latest".to_owned()),
        (Method::DELETE, "/v2/a/manifests/latest".to_owned()),
        (Method::DELETE, format!("/v2/a/blobs/{}", Digest::of("pushed"))),
        (Method::GET, "/v2/a/tags/list".to_owned()),
        (Method::GET, format!("/v2/a/referrers/{absent}")),
        (Method::GET, "/token".to_owned()),
        (Method::GET, "/readyz".to_owned()),
    ] {
        server.status(method, &path, &token, "").await;
    }
    let text = metrics(&server).await;
    assert!(!text.contains("\"(none)\""), "a route without an operation: {text}");
    // No part of a path is a label.
    assert!(!text.contains(&digest.hex()) && !text.contains("latest"), "{text}");
    let requests = "http_server_request_duration_seconds_count";
    let mut operations: BTreeMap<&str, usize> = BTreeMap::new();
    for (protocol, names) in [
        (
            "crossdock",
            &[
                "find-blobs",
                "read-blob",
                "write-blob",
                "read-ranges",
                "compose-blob",
                "start-upload",
                "upload-state",
                "append-upload",
                "cancel-upload",
                "read-record",
                "write-record",
                "read-bundle",
                "write-bundle",
                "take-lease",
                "release-lease",
                "open-session",
                "version",
            ][..],
        ),
        (
            "oci",
            &[
                "version",
                "start-upload",
                "upload-state",
                "append-upload",
                "finish-upload",
                "cancel-upload",
                "read-blob",
                "delete-blob",
                "read-manifest",
                "write-manifest",
                "delete-manifest",
                "list-tags",
                "list-referrers",
                "log-in",
            ],
        ),
        ("server", &["readyz"]),
    ] {
        for name in names {
            let labels = [format!("protocol=\"{protocol}\""), format!("operation=\"{name}\"")];
            let labels: Vec<_> = labels.iter().map(String::as_str).collect();
            assert!(figure(&text, requests, &labels).is_some(), "{protocol} {name}: {text}");
            *operations.entry(protocol).or_default() += 1;
        }
    }
    assert_eq!(operations.values().sum::<usize>(), 32);
    for (protocol, kind, result) in [
        ("crossdock", "record", "hit"),
        ("crossdock", "blob", "hit"),
        ("crossdock", "blob", "miss"),
        ("crossdock", "bundle", "miss"),
        ("oci", "blob", "hit"),
        ("oci", "manifest", "miss"),
    ] {
        let labels = [
            r#"tenant="acme""#.to_owned(),
            format!("protocol=\"{protocol}\""),
            format!("kind=\"{kind}\""),
            format!("result=\"{result}\""),
        ];
        let labels: Vec<_> = labels.iter().map(String::as_str).collect();
        assert!(figure(&text, "cache_lookups_total", &labels).unwrap_or(0.0) >= 1.0, "{labels:?}: {text}");
    }
    for (name, label) in [
        ("crossdock_storage_duration_seconds_count", r#"operation="adopt_file""#),
        ("crossdock_disk_free_bytes", r#"disk="storage""#),
        ("crossdock_disk_size_bytes", r#"disk="spool""#),
        ("process_resident_memory_bytes", ""),
        ("crossdock_connections_limit", ""),
        ("cache_upload_sessions_limit", ""),
        ("crossdock_tasks", ""),
    ] {
        assert!(figure(&text, name, &[label]).is_some_and(|value| value > 0.0), "{name}: {text}");
    }
}
