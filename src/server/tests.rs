//! The server as its clients see it: a real one, on a port of this machine.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{oneshot, watch};

use super::*;

mod attacks;
mod gc;
mod oidc;
mod outside;
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
        let mut running = Self::serving(storage, settings).await;
        running.spool = spool;
        running
    }

    /// Over storage that others may use as well.
    async fn serving(storage: Storage, settings: Settings) -> Self {
        let tokens = Tokens::new(storage.system(), settings.clock);
        let (control, state) = watch::channel(Shutdown::Run);
        let (tell, told) = oneshot::channel();
        tokio::spawn(serve(Server::new(settings, storage), state, move |address| {
            tell.send(address).unwrap();
        }));
        let address = told.await.unwrap();
        Self { address, tokens, control, spool: tempfile::tempdir().unwrap() }
    }

    async fn token(&self, tenant: &str, read: &[&str], write: &[&str]) -> String {
        let push: &[&str] = if write == ALL { ALL } else { &[] };
        self.token_for(tenant, (read, write), (ALL, push)).await
    }

    /// A token with scopes to read and to write, and repositories to pull from and to push to.
    async fn token_for(
        &self,
        tenant: &str,
        (read, write): (&[&str], &[&str]),
        (pull, push): (&[&str], &[&str]),
    ) -> String {
        let scopes = |patterns: &[&str]| patterns.iter().map(|text| text.parse().unwrap()).collect();
        let repositories = |patterns: &[&str]| patterns.iter().map(|text| text.parse().unwrap()).collect();
        let grant = Grant {
            name: "test".to_owned(),
            tenant: tenant.parse().unwrap(),
            read: scopes(read),
            write: scopes(write),
            pull: repositories(pull),
            push: repositories(push),
        };
        self.tokens.create(grant, None).await.unwrap().0
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
    // And for who sees only what is named in scopes that they may read, or what they have sent.
    let token = server.token_for("narrow", (ALL, ALL), (&[], &[])).await;
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
