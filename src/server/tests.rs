//! The server as its clients see it: a real one, on a port of this machine.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{oneshot, watch};

use super::*;

mod gc;
mod oidc;
mod reads;
use crate::digest::Digest;
use crate::record::Scope;
use crate::store::tests::contract::keeps_the_contract;
use crate::store::tests::{sample, store_sample};
use crate::store::{BlobSource, HttpStore, Store};

/// A running server, ended when dropped.
struct Running {
    address: SocketAddr,
    tokens: Tokens,
    control: watch::Sender<Shutdown>,
    spool: tempfile::TempDir,
}

impl Running {
    async fn start() -> Self {
        let spool = tempfile::tempdir().unwrap();
        let kind = StorageKind::Directory(spool.path().join("storage"));
        Self::over(kind, spool, Limits::default()).await
    }

    async fn over(kind: StorageKind, spool: tempfile::TempDir, limits: Limits) -> Self {
        Self::with(kind, spool, Settings { limits, ..Settings::new(SystemTime::now) }).await
    }

    async fn with(kind: StorageKind, spool: tempfile::TempDir, settings: Settings) -> Self {
        let storage = Storage::open(kind, spool.path().join("spool"), settings.clock).unwrap();
        let tokens = Tokens::new(storage.system(), settings.clock);
        let (control, state) = watch::channel(Shutdown::Run);
        let (tell, told) = oneshot::channel();
        tokio::spawn(serve(Server::new(settings, storage), state, move |address| {
            tell.send(address).unwrap();
        }));
        let address = told.await.unwrap();
        Self { address, tokens, control, spool }
    }

    async fn token(&self, tenant: &str, read: &[&str], write: &[&str]) -> String {
        let patterns = |patterns: &[&str]| patterns.iter().map(|text| text.parse().unwrap()).collect();
        let new = NewToken {
            name: "test".to_owned(),
            tenant: tenant.parse().unwrap(),
            read: patterns(read),
            write: patterns(write),
            pull: vec![RepositoryPattern::any()],
            push: if write == ALL { vec![RepositoryPattern::any()] } else { Vec::new() },
            lifetime: None,
        };
        self.tokens.create(new).await.unwrap().0
    }

    fn store(&self, token: &str) -> HttpStore {
        let url = format!("http://{}/", self.address).parse().unwrap();
        HttpStore::new(url, Some(token.to_owned())).unwrap()
    }

    fn request(&self, method: Method, path: &str, token: &str) -> RequestBuilder {
        let url = format!("http://{}{path}", self.address);
        reqwest::Client::new().request(method, url).bearer_auth(token)
    }

    async fn status(
        &self,
        method: Method,
        path: &str,
        token: &str,
        body: impl Into<reqwest::Body>,
    ) -> StatusCode {
        self.request(method, path, token).body(body).send().await.unwrap().status()
    }

    async fn json(&self, method: Method, path: &str, token: &str, body: Value) -> (StatusCode, Value) {
        let answer = self.request(method, path, token).body(body.to_string()).send().await.unwrap();
        let (status, text) = (answer.status(), answer.bytes().await.unwrap());
        (status, serde_json::from_slice(&text).unwrap_or_default())
    }

    /// Bytes to the server, and all that comes back until it closes the connection.
    async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        // It may close before it has read everything.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.control.send(Shutdown::Drain);
    }
}

const ALL: &[&str] = &["*"];

fn scope(text: &str) -> Scope {
    text.parse().unwrap()
}

#[tokio::test]
async fn a_server_is_a_store() {
    let server = Running::start().await;
    let token = server.token("default", ALL, ALL).await;
    keeps_the_contract(&server.store(&token)).await;
}

#[tokio::test]
async fn a_server_in_memory_is_a_store() {
    let server = Running::over(StorageKind::Memory, tempfile::tempdir().unwrap(), Limits::default()).await;
    let token = server.token("default", ALL, ALL).await;
    keeps_the_contract(&server.store(&token)).await;
}

/// Large blobs go in pieces; they are the same afterwards.
#[tokio::test]
async fn large_blobs_go_in_pieces() {
    let server = Running::start().await;
    let store = server.store(&server.token("default", ALL, ALL).await);
    let content: Vec<u8> = (0..20_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let digest = Digest::of(&content);
    let file = server.spool.path().join("large");
    fs_err::write(&file, &content).unwrap();
    assert!(store.write_blob(&digest, BlobSource::File(file.clone())).await.unwrap());
    assert!(!store.write_blob(&digest, BlobSource::File(file.clone())).await.unwrap());
    let copy = server.spool.path().join("copy");
    assert!(store.fetch_blob(&digest, content.len() as u64, &copy).await.unwrap());
    assert!(fs_err::read(&copy).unwrap() == content);
    let wrong = Digest::of("wrong");
    let refused = store.write_blob(&wrong, BlobSource::File(file)).await.unwrap_err();
    assert!(
        matches!(refused, crate::store::StoreError::Mismatch { actual, .. } if actual == digest),
        "{refused}"
    );
}

#[tokio::test]
async fn uploads_go_on_where_they_broke_off() {
    let server = Running::start().await;
    let token = server.token("default", ALL, ALL).await;
    let (status, answer) = server.json(Method::POST, "/api/v1/uploads", &token, json!({})).await;
    assert_eq!(status, StatusCode::CREATED);
    let path = format!("/api/v1/uploads/{}", answer["upload"].as_str().unwrap());
    // A body that promises more than comes.
    let broken = format!(
        "PATCH {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nUpload-Offset: 0\r\nContent-Length: 100\r\n\r\nhello "
    );
    {
        let mut stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
        stream.write_all(broken.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    }
    let state = server.request(Method::GET, &path, &token).send().await.unwrap();
    assert_eq!(state.headers()["upload-offset"], "6");
    let patch = |offset: u64, body: &'static str| {
        server.request(Method::PATCH, &path, &token).header("upload-offset", offset).body(body).send()
    };
    assert_eq!(patch(5, "x").await.unwrap().status(), StatusCode::CONFLICT);
    assert_eq!(patch(6, "world").await.unwrap().headers()["upload-offset"], "11");
    // Somebody else's upload is none.
    let other = server.token("other", ALL, ALL).await;
    assert_eq!(server.status(Method::GET, &path, &other, "").await, StatusCode::NOT_FOUND);
    assert_eq!(server.status(Method::DELETE, &path, &other, "").await, StatusCode::NOT_FOUND);

    let store = server.store(&token);
    let there = Digest::of("0123456789");
    store.write_blob(&there, BlobSource::Bytes("0123456789".into())).await.unwrap();
    let made = Digest::of("world34567hello");
    let upload = path.rsplit('/').next().unwrap();
    let recipe = |part: Value| json!({"upload": upload, "parts": [{"offset": 6, "length": 5}, part, {"offset": 0, "length": 5}]});
    let compose = format!("/api/v1/blobs/{made}/compose");
    let absent = json!({"blob": Digest::of("absent").to_string(), "offset": 3, "length": 5});
    let (status, answer) = server.json(Method::POST, &compose, &token, recipe(absent)).await;
    assert_eq!(
        (status, &answer["error"]["missing"]),
        (StatusCode::CONFLICT, &json!(Digest::of("absent").to_string()))
    );
    let beyond = json!({"blob": there.to_string(), "offset": 8, "length": 5});
    assert_eq!(server.json(Method::POST, &compose, &token, recipe(beyond)).await.0, StatusCode::CONFLICT);
    let outside = json!({"offset": 8, "length": 50});
    assert_eq!(server.json(Method::POST, &compose, &token, recipe(outside)).await.0, StatusCode::BAD_REQUEST);
    let endless = json!({"offset": u64::MAX, "length": 2});
    assert_eq!(server.json(Method::POST, &compose, &token, recipe(endless)).await.0, StatusCode::BAD_REQUEST);
    let part = json!({"blob": there.to_string(), "offset": 3, "length": 5});
    let (status, _) = server.json(Method::POST, &compose, &token, recipe(part.clone())).await;
    assert_eq!(status, StatusCode::CREATED, "what failed before has not lost the upload");
    assert_eq!(store.read_blob(&made, 100).await.unwrap().unwrap(), "world34567hello");
    assert_eq!(server.json(Method::POST, &compose, &token, recipe(part)).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn ranges_are_read() {
    let server = Running::start().await;
    let token = server.token("default", ALL, ALL).await;
    let digest = Digest::of("0123456789");
    server.store(&token).write_blob(&digest, BlobSource::Bytes("0123456789".into())).await.unwrap();
    let path = format!("/api/v1/blobs/{digest}");
    let get = |range: &'static str| server.request(Method::GET, &path, &token).header("range", range).send();
    let answer = get("bytes=2-4").await.unwrap();
    assert_eq!(
        (answer.status(), answer.headers()["content-range"].to_str().unwrap()),
        (StatusCode::PARTIAL_CONTENT, "bytes 2-4/10")
    );
    assert_eq!(answer.text().await.unwrap(), "234");
    assert_eq!(get("bytes=10-").await.unwrap().status(), StatusCode::RANGE_NOT_SATISFIABLE);
    let many = server.request(Method::POST, &format!("{path}/ranges"), &token);
    let answer = many.body(json!({"ranges": [[8, 10], [0, 1], [5, 5]]}).to_string()).send().await.unwrap();
    assert_eq!(answer.text().await.unwrap(), "890");
    for bad in
        [json!({"ranges": [[5, 4]]}), json!({"ranges": [[0, 11]]}), json!({"ranges": [[0, -1]]}), json!({})]
    {
        assert_eq!(
            server.json(Method::POST, &format!("{path}/ranges"), &token, bad).await.0,
            StatusCode::BAD_REQUEST
        );
    }
}

/// Damage is never read to the end, and is a miss from then on.
#[tokio::test]
async fn damaged_blobs_are_not_served() {
    let server = Running::start().await;
    let token = server.token("default", ALL, ALL).await;
    let store = server.store(&token);
    let content = vec![7_u8; 3_000_000];
    let digest = Digest::of(&content);
    store.write_blob(&digest, BlobSource::Bytes(content.clone().into())).await.unwrap();
    let files = walkdir::WalkDir::new(server.spool.path().join("storage/tenants"));
    let file =
        files.into_iter().filter_map(Result::ok).find(|entry| entry.file_name() == digest.hex().as_str());
    let mut damaged = content;
    damaged[2_999_999] ^= 1;
    fs_err::write(file.unwrap().path(), damaged).unwrap();
    let answer =
        server.request(Method::GET, &format!("/api/v1/blobs/{digest}"), &token).send().await.unwrap();
    assert!(answer.bytes().await.is_err(), "it breaks off");
    assert_eq!(store.missing_blobs(&[digest]).await.unwrap(), [digest]);
    let metrics = server.request(Method::GET, "/metrics", "").send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("cache_damaged_blobs_total 1"), "{metrics}");
}

/// A pull request reads from main and writes to itself only, by whatever route.
#[tokio::test]
async fn a_pull_request_cannot_poison_main() {
    let server = Running::start().await;
    let main = server.token("default", &["main"], &["main"]).await;
    let pull = server.token("default", &["pr/7", "main"], &["pr/7"]).await;
    let reader = server.token("default", ALL, &[]).await;
    let (mut record, blobs) = sample("make");
    for blob in blobs {
        server.store(&pull).write_blob(&Digest::of(&blob), BlobSource::Bytes(blob)).await.unwrap();
    }
    let path = format!("/api/v1/records/{}", record.key().0);
    for scope in ["main", "default", "pr/8", "pr/7/x"] {
        record.scope = scope.parse().unwrap();
        assert_eq!(server.status(Method::PUT, &path, &pull, record.encode()).await, StatusCode::FORBIDDEN);
        // What the address says does not count.
        let tricky = format!("{path}?scope=pr/7");
        assert_eq!(server.status(Method::PUT, &tricky, &pull, record.encode()).await, StatusCode::FORBIDDEN);
    }
    record.scope = scope("pr/7");
    assert_eq!(server.status(Method::PUT, &path, &reader, record.encode()).await, StatusCode::FORBIDDEN);
    assert_eq!(server.status(Method::PUT, &path, &pull, record.encode()).await, StatusCode::CREATED);
    let other = format!("/api/v1/records/{}", Digest::of("another key"));
    assert_eq!(server.status(Method::PUT, &other, &pull, record.encode()).await, StatusCode::BAD_REQUEST);
    // Main does not see it, even if it asks for it.
    let key = record.key();
    for scopes in [vec![scope("main")], vec![scope("pr/7"), scope("main")]] {
        assert_eq!(server.store(&main).read_record(&key, &scopes).await.unwrap(), None);
    }
    // A bundle that names it cannot be written to main, and in a bundle of its own it is not shown to others.
    let bundle = crate::record::Bundle {
        steps: vec![crate::record::BundleStep { slot: "s".to_owned(), record: record.clone() }],
    };
    let name = Digest::of("bundle");
    let put = |scope: &str, token: String| {
        let (path, body) = (format!("/api/v1/bundles/{name}?scope={scope}"), bundle.encode());
        let server = &server;
        async move { server.status(Method::PUT, &path, &token, body).await }
    };
    assert_eq!(put("main", pull.clone()).await, StatusCode::FORBIDDEN);
    assert_eq!(put("pr/7&scope=main", pull.clone()).await, StatusCode::BAD_REQUEST);
    assert_eq!(put("main", main.clone()).await, StatusCode::NO_CONTENT);
    let read =
        server.store(&main).read_bundle(&crate::record::BundleName(name), &[scope("main")]).await.unwrap();
    assert_eq!(read.unwrap().steps.len(), 0, "a record of a scope that main does not read");
    // Leases: those of main are not for a pull request.
    let lease = format!("/api/v1/leases/{}?scope=main", key.0);
    let asked = json!({"holder": "h", "label": "l", "lifetime_ms": 1000});
    assert_eq!(server.json(Method::PUT, &lease, &pull, asked).await.0, StatusCode::FORBIDDEN);
    assert_eq!(
        server.status(Method::DELETE, &format!("{lease}&holder=h"), &pull, "").await,
        StatusCode::FORBIDDEN
    );
    for path in [format!("/api/v1/blobs/{}", Digest::of("x")), "/api/v1/uploads".to_owned()] {
        let method = if path.ends_with("uploads") { Method::POST } else { Method::PUT };
        assert_eq!(server.status(method, &path, &reader, "x").await, StatusCode::FORBIDDEN);
    }
}

/// Tenants learn nothing of each other, by no question.
#[tokio::test]
async fn tenants_do_not_see_each_other() {
    let server = Running::start().await;
    let (owner, other) = (server.token("a", ALL, ALL).await, server.token("b", ALL, ALL).await);
    let record = store_sample(&server.store(&owner), "secret").await;
    let layer = record.layers[0].digest;
    let thief = server.store(&other);
    assert_eq!(thief.missing_blobs(&[layer]).await.unwrap(), [layer]);
    assert_eq!(thief.read_blob(&layer, 1 << 20).await.unwrap(), None);
    assert_eq!(thief.blob_size(&layer).await.unwrap(), None);
    assert_eq!(thief.read_range(&layer, 0..1).await.unwrap(), None);
    assert_eq!(thief.read_record(&record.key(), std::slice::from_ref(&record.scope)).await.unwrap(), None);
    // Its record would name the other's blobs; composing would read them.
    assert!(matches!(thief.write_record(&record).await, Err(crate::store::StoreError::Incomplete { .. })));
    let recipe = json!({"parts": [{"blob": layer.to_string(), "offset": 0, "length": 5}]});
    let path = format!("/api/v1/blobs/{}/compose", Digest::of("layer"));
    assert_eq!(server.json(Method::POST, &path, &other, recipe).await.0, StatusCode::CONFLICT);
    let ranges = format!("/api/v1/blobs/{layer}/ranges");
    assert_eq!(
        server.json(Method::POST, &ranges, &other, json!({"ranges": [[0, 1]]})).await.0,
        StatusCode::NOT_FOUND
    );
    // The answers for what is another's and for what is nowhere are the same, byte by byte.
    let answer = |digest: Digest| {
        let request = server.request(Method::GET, &format!("/api/v1/blobs/{digest}"), &other);
        async move { request.send().await.unwrap().text().await.unwrap() }
    };
    assert_eq!(answer(layer).await, answer(Digest::of("nowhere")).await);
}

#[tokio::test]
async fn only_tokens_open_it() {
    let server = Running::start().await;
    let token = server.token("default", ALL, ALL).await;
    let path = format!("/api/v1/blobs/{}", Digest::of("x"));
    assert_eq!(server.status(Method::GET, &path, &token, "").await, StatusCode::NOT_FOUND);
    let cut = &token[..token.len() - 1];
    let (id, _) = token.split_once('.').unwrap();
    // A JSON web token that nobody signed.
    let unsigned = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJtYWluIn0.";
    for wrong in ["", "x", cut, id, &format!("{id}."), &format!("{token}x"), unsigned] {
        let answer = server.request(Method::GET, &path, wrong).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{wrong}");
        assert!(answer.headers().contains_key("www-authenticate"));
    }
    let basic = reqwest::Client::new().get(format!("http://{}{path}", server.address));
    assert_eq!(
        basic.basic_auth("anyone", Some(&token)).send().await.unwrap().status(),
        StatusCode::NOT_FOUND
    );
    server.tokens.revoke("test").await.unwrap();
    server.control.send(Shutdown::Reload(1)).unwrap();
    let mut status = StatusCode::NOT_FOUND;
    for _ in 0..100 {
        status = server.status(Method::GET, &path, &token, "").await;
        if status == StatusCode::UNAUTHORIZED {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(status, StatusCode::UNAUTHORIZED, "revoked");
}

/// Requests that are no requests, and names that lead somewhere else.
#[tokio::test]
async fn tricks_are_refused() {
    let spool = tempfile::tempdir().unwrap();
    let kind = StorageKind::Directory(spool.path().join("storage"));
    let limits = Limits { blob_bytes_max: 1000, idle: Duration::from_millis(400), ..Limits::default() };
    let server = Running::over(kind, spool, limits).await;
    let token = server.token("default", ALL, ALL).await;
    for path in [
        "/api/v1/blobs/sha256:..",
        "/api/v1/blobs/..%2f..%2fsystem",
        "/api/v1/blobs/sha256:%00",
        "/api/v1/records/sha256:x?scope=main",
        "/api/v1/bundles/..?scope=main",
    ] {
        let status = server.status(Method::GET, path, &token, "").await;
        assert!(status.is_client_error(), "{path}: {status}");
    }
    let key = Digest::of("x");
    for scope in ["..", "a/../b", "%2e%2e", "", "a//b", "a%00"] {
        let path = format!("/api/v1/records/{key}?scope={scope}");
        assert_eq!(server.status(Method::GET, &path, &token, "").await, StatusCode::BAD_REQUEST, "{scope}");
    }
    let upload = format!("/api/v1/blobs/{key}");
    assert_eq!(
        server.status(Method::PUT, &upload, &token, vec![0; 1001]).await,
        StatusCode::PAYLOAD_TOO_LARGE
    );
    assert_eq!(server.status(Method::PUT, &upload, &token, "a lie").await, StatusCode::BAD_REQUEST);
    assert_eq!(
        server.status(Method::PUT, &format!("/api/v1/records/{key}"), &token, "garbage").await,
        StatusCode::BAD_REQUEST
    );
    let question = format!("{{\"digests\": [{}]}}", vec!["\"x\""; 20_000].join(","));
    assert_eq!(
        server.status(Method::POST, "/api/v1/blobs/missing", &token, question).await,
        StatusCode::PAYLOAD_TOO_LARGE
    );
    assert_eq!(
        server.status(Method::POST, "/api/v1/blobs/missing", &token, "[".repeat(1 << 20)).await,
        StatusCode::BAD_REQUEST
    );
    // Bombs of headers, requests that never end, and bodies that stop coming.
    let bomb = format!("GET /livez HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: aaaaaaaaaaaaaaaa\r\n".repeat(10_000));
    assert!(server.raw(bomb.as_bytes()).await.starts_with("HTTP/1.1 431"));
    assert!(server.raw(b"\x16\x03\x01 this is TLS\r\n\r\n").await.starts_with("HTTP/1.1 400"));
    assert_eq!(server.raw(b"GET /livez HTTP/1.1\r\nHost: x\r\n").await, "", "closed for being silent");
    let stalled = format!(
        "PUT {upload} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: 500\r\n\r\nabc"
    );
    assert!(server.raw(stalled.as_bytes()).await.starts_with("HTTP/1.1 408"));
    // It still serves, and has kept nothing of all that.
    assert_eq!(server.status(Method::GET, "/livez", "", "").await, StatusCode::OK);
    assert_eq!(files(&server.spool.path().join("storage")), 1, "the token");
}

/// Files that are not the store's own marks.
fn files(root: &Path) -> usize {
    let entries = walkdir::WalkDir::new(root).into_iter().filter_map(Result::ok);
    let kept = entries.filter(|entry| entry.file_type().is_file());
    kept.filter(|entry| {
        let path = entry.path().strip_prefix(root).unwrap().to_string_lossy();
        !path.ends_with("/format") && !path.contains("/tmp/")
    })
    .count()
}

#[tokio::test]
async fn one_holds_a_lease_until_it_ends() {
    let server = Running::start().await;
    let token = server.token("default", ALL, ALL).await;
    let path = format!("/api/v1/leases/{}?scope=main", Digest::of("step"));
    let take = |holder: &str, lifetime: u64| {
        let body = json!({"holder": holder, "label": format!("job {holder}"), "lifetime_ms": lifetime});
        server.json(Method::PUT, &path, &token, body)
    };
    assert_eq!(take("one", 60_000).await.0, StatusCode::OK);
    let (status, answer) = take("two", 60_000).await;
    assert_eq!((status, answer["held_by"].as_str()), (StatusCode::CONFLICT, Some("job one")));
    assert!(answer["ends_in_ms"].as_u64().unwrap() <= 60_000);
    assert_eq!(take("one", 60_000).await.0, StatusCode::OK, "taken again");
    // Who does not have it cannot give it back.
    server.status(Method::DELETE, &format!("{path}&holder=two"), &token, "").await;
    assert_eq!(take("two", 60_000).await.0, StatusCode::CONFLICT);
    server.status(Method::DELETE, &format!("{path}&holder=one"), &token, "").await;
    assert_eq!(take("two", 2000).await.0, StatusCode::OK);
    assert_eq!(take("three", 2000).await.0, StatusCode::CONFLICT);
    tokio::time::sleep(Duration::from_millis(2100)).await;
    assert_eq!(take("three", 60_000).await.0, StatusCode::OK, "it ended by itself");
    // Of many at once, one gets it.
    let path = format!("/api/v1/leases/{}?scope=main", Digest::of("other step"));
    let attempts = (0..10).map(|number| {
        let body = json!({"holder": number.to_string(), "label": "", "lifetime_ms": 60_000});
        server.json(Method::PUT, &path, &token, body)
    });
    let answers = futures_util::future::join_all(attempts).await;
    assert_eq!(answers.iter().filter(|(status, _)| *status == StatusCode::OK).count(), 1);
}

#[tokio::test]
async fn probes_are_told_the_truth() {
    let server = Running::start().await;
    let get = |path: &'static str| server.request(Method::GET, path, "").send();
    assert_eq!(get("/livez").await.unwrap().status(), StatusCode::OK);
    let mut status = StatusCode::SERVICE_UNAVAILABLE;
    for _ in 0..200 {
        status = get("/readyz").await.unwrap().status();
        if status == StatusCode::OK {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(status, StatusCode::OK);
    let answer = get("/nothing").await.unwrap();
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    assert!(answer.headers().contains_key("x-request-id"));
    let id = server.request(Method::GET, "/livez", "").header("x-request-id", "my-id").send().await.unwrap();
    assert_eq!(id.headers()["x-request-id"], "my-id");
    let odd =
        server.request(Method::GET, "/livez", "").header("x-request-id", "a b\"c").send().await.unwrap();
    assert_ne!(odd.headers()["x-request-id"], "a b\"c");
}

#[tokio::test]
async fn it_must_not_be_open_to_others() {
    let storage =
        Storage::open(StorageKind::Memory, tempfile::tempdir().unwrap().path().into(), SystemTime::now)
            .unwrap();
    let listen = SocketAddr::from(([0, 0, 0, 0], 0));
    let settings = Settings { listen, no_auth: true, ..Settings::new(SystemTime::now) };
    let (_control, state) = watch::channel(Shutdown::Run);
    let server: Arc<Server> = Server::new(settings, storage);
    assert!(matches!(serve(server, state, |_| ()).await, Err(ServeError::Open { .. })));
}
