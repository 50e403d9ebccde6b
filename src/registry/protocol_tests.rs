//! The client against a registry that misbehaves.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;

use super::fake::{Answer, Fake, Seen};
use super::{
    BlobProvider, BoxError, Client, ClientOptions, Credential, CredentialError, Credentials, ImageBundle,
    ImageSet, ImageSource as _, MountOutcome, PushLayer, RegistryError, RegistryErrorKind, RegistrySource,
    RetryPolicy, Secret, push,
};
use crate::digest::Digest;
use crate::hint::Hint as _;
use crate::image::{Descriptor, ImageConfig, Index, Manifest, media_types};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::store::BlobSource;

#[derive(Debug)]
struct Always(Credential);

#[async_trait]
impl Credentials for Always {
    async fn lookup(&self, _: &str, _: &str) -> Result<Credential, CredentialError> {
        Ok(self.0.clone())
    }
}

fn basic() -> Credential {
    Credential::Basic { username: "user".to_owned(), password: Secret::new("hunter2") }
}

fn client_with(credential: Credential, chunk_bytes: u64) -> Client {
    let retry = RetryPolicy {
        attempts_max: 3,
        backoff: Duration::from_millis(2),
        backoff_max: Duration::from_secs(2),
        idle_max: Duration::from_secs(2),
    };
    let options = ClientOptions { retry, chunk_bytes, ..ClientOptions::default() };
    Client::new(options, Arc::new(Always(credential))).unwrap()
}

fn client() -> Client {
    client_with(Credential::Anonymous, 64 << 20)
}

fn reference(fake: &Fake, rest: &str) -> Reference {
    format!("{}/{rest}", fake.address).parse().unwrap()
}

const MANIFEST: &str = r#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}"#;

fn manifest_answer() -> Answer {
    Answer::new(200)
        .header("Docker-Content-Digest", Digest::of(MANIFEST))
        .header("Content-Type", format!("{}; charset=utf-8", media_types::OCI_MANIFEST))
        .body(MANIFEST)
}

/// A token service and a registry on one port: tokens are `t<n>`, and `valid` says which are good.
async fn token_registry(valid: impl Fn(&str, usize) -> bool + Send + Sync + 'static) -> Fake {
    let tokens = AtomicUsize::new(0);
    Fake::start(move |seen, before| {
        if seen.target.starts_with("/token") {
            let token = format!("t{}", tokens.fetch_add(1, Ordering::SeqCst));
            return Answer::new(200).body(format!(r#"{{"token":"{token}","expires_in":300}}"#));
        }
        let token = seen.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
        if !token.is_some_and(|token| valid(token, before)) {
            let host = seen.header("host").unwrap();
            let challenge = format!(r#"Bearer realm="http://{host}/token?x=1",service="s",scope="ignored""#);
            return Answer::new(401).header("WWW-Authenticate", challenge);
        }
        ordinary(seen)
    })
    .await
}

/// What a registry without a will of its own answers to an upload of anything.
fn ordinary(seen: &Seen) -> Answer {
    match seen.method.as_str() {
        "HEAD" => Answer::new(404),
        "POST" => Answer::new(202).header("Location", "/v2/a/b/blobs/uploads/1?state=x%3D"),
        "PUT" | "PATCH" => Answer::new(201),
        _ => manifest_answer(),
    }
}

#[tokio::test]
async fn tokens_are_fetched_once_and_used_again() {
    let fake = token_registry(|_, _| true).await;
    let client = client_with(basic(), 1 << 20);
    let reference = reference(&fake, "a/b:v1");
    for _ in 0..2 {
        let manifest = client.manifest(&reference).await.unwrap();
        assert_eq!(
            (manifest.digest, manifest.media_type.as_str()),
            (Digest::of(MANIFEST), media_types::OCI_MANIFEST)
        );
    }
    let lines = fake.lines();
    let token = "GET /token?x=1&service=s&scope=repository:a/b:pull";
    let get = "GET /v2/a/b/manifests/v1";
    assert_eq!(lines, [get, token, get, get]);
    let seen = fake.seen();
    assert_eq!(seen[1].header("authorization"), Some("Basic dXNlcjpodW50ZXIy"));
    assert_eq!(seen[3].header("authorization"), Some("Bearer t0"));
    assert!(seen[0].header("accept").unwrap().contains(media_types::DOCKER_INDEX));
}

#[tokio::test]
async fn identity_tokens_are_exchanged() {
    let fake = token_registry(|_, _| true).await;
    let client = client_with(Credential::IdentityToken(Secret::new("it&x")), 1 << 20);
    client.manifest(&reference(&fake, "a/b:v1")).await.unwrap();
    let post = &fake.seen()[1];
    assert_eq!(post.line(), "POST /token?x=1");
    let body = String::from_utf8(post.body.clone()).unwrap();
    assert_eq!(
        body,
        "grant_type=refresh_token&client_id=crossdock&refresh_token=it%26x&scope=repository%3Aa%2Fb%3Apull&service=s"
    );
}

#[tokio::test]
async fn a_token_that_ends_during_a_push_is_renewed() {
    // The first token is good until the body has been sent for the first time.
    let fake = token_registry(|token, before| token != "t0" || before < 3).await;
    let client = client_with(basic(), 1 << 20);
    let content = vec![7; 600_000];
    let blob = Descriptor::of("x", &content);
    let source = BlobSource::Bytes(content.clone().into());
    client.upload_blob(&reference(&fake, "a/b:v1"), &blob, &source, None, &|_| {}).await.unwrap();
    let puts: Vec<Seen> = fake.seen().into_iter().filter(|seen| seen.method == "PUT").collect();
    assert_eq!(puts.len(), 2);
    assert_eq!(puts[1].line(), format!("PUT /v2/a/b/blobs/uploads/1?state=x%3D&digest={}", blob.digest));
    assert_eq!(puts[1].header("authorization"), Some("Bearer t1"));
    assert_eq!(puts[1].body, content);
}

#[tokio::test]
async fn refused_credentials_are_not_tried_for_ever() {
    let fake = token_registry(|_, _| false).await;
    let error = client_with(basic(), 1 << 20).manifest(&reference(&fake, "a/b:v1")).await.unwrap_err();
    assert!(
        matches!(error.kind, RegistryErrorKind::Denied { status: 401, authenticated: true, .. }),
        "{error:?}"
    );
    assert!(error.hint().unwrap().contains("docker login 127.0.0.1"));
    assert_eq!(fake.seen().len(), 3);
    for shown in [error.to_string(), format!("{error:?}")] {
        assert!(!shown.contains("hunter2") && !shown.contains("dXNlc") && !shown.contains("t0"), "{shown}");
    }
}

#[tokio::test]
async fn basic_challenges_and_anonymous_refusals() {
    let fake = Fake::start(|seen, _| match seen.header("authorization") {
        Some("Basic dXNlcjpodW50ZXIy") => manifest_answer(),
        _ => Answer::new(401)
            .header("WWW-Authenticate", r#"Basic realm="r""#)
            .body(r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#),
    })
    .await;
    client_with(basic(), 1 << 20).manifest(&reference(&fake, "a:v1")).await.unwrap();
    let error = client().manifest(&reference(&fake, "a:v1")).await.unwrap_err();
    let address = fake.address;
    assert_eq!(
        error.to_string(),
        format!(
            "reading manifest v1 ({address}/a) failed: access denied: the registry answered 401 Unauthorized \
             (UNAUTHORIZED: authentication required)"
        )
    );
    assert!(error.hint().unwrap().starts_with(&format!("log in with `docker login {address}`")));
}

#[tokio::test]
async fn busy_registries_are_waited_for() {
    let fake = Fake::start(|_, before| match before {
        0 => Answer::new(429).header("Retry-After", 1),
        1 => Answer::new(500),
        _ => manifest_answer(),
    })
    .await;
    let start = Instant::now();
    client().manifest(&reference(&fake, "a:v1")).await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1), "Retry-After was not respected");
    assert_eq!(fake.seen().len(), 3);
}

#[tokio::test]
async fn failures_are_tried_a_bounded_number_of_times() {
    let fake = Fake::start(|_, _| Answer::new(503)).await;
    let error = client().manifest(&reference(&fake, "a:v1")).await.unwrap_err();
    assert_eq!(error.status(), Some(503));
    assert_eq!(fake.seen().len(), 3);
    let unknown = Fake::start(|_, _| {
        Answer::new(404).body(r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#)
    })
    .await;
    let error = client().manifest(&reference(&unknown, "a:v1")).await.unwrap_err();
    assert!(error.is_not_found() && error.hint().unwrap().contains("not this tag"));
    assert_eq!(unknown.seen().len(), 1, "a definite answer is not asked for again");
    assert_eq!(client().head_manifest(&reference(&unknown, "a:v1")).await.unwrap(), None);
}

#[tokio::test]
async fn a_silent_registry_is_given_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let reference: Reference = format!("{}/a:v1", listener.local_addr().unwrap()).parse().unwrap();
    let retry = RetryPolicy {
        attempts_max: 2,
        backoff: Duration::from_millis(1),
        backoff_max: Duration::from_millis(1),
        idle_max: Duration::from_millis(100),
    };
    let options = ClientOptions { retry, ..ClientOptions::default() };
    let client = Client::new(options, Arc::new(Always(Credential::Anonymous))).unwrap();
    let error = client.manifest(&reference).await.unwrap_err();
    assert!(matches!(error.kind, RegistryErrorKind::Timeout { .. }), "{error}");
    drop(listener);
    let error = client.manifest(&reference).await.unwrap_err();
    assert!(matches!(error.kind, RegistryErrorKind::Transport { .. }), "{error}");
}

/// A byte now and then is never silence, and would take for ever.
#[tokio::test]
async fn a_registry_that_drips_is_given_up() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let reference: Reference = format!("{}/a:v1", listener.local_addr().unwrap()).parse().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else { return };
                    request.push(byte);
                }
                let head = format!(
                    "HTTP/1.1 200 X\r\nContent-Type: {}\r\nContent-Length: 100000\r\n\r\n",
                    media_types::OCI_MANIFEST
                );
                // An answer before the question is another mistake.
                let mut question = vec![0; 4096];
                let _ = stream.read(&mut question).await;
                let mut written = stream.write_all(head.as_bytes()).await;
                while written.is_ok() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    written = stream.write_all(b" ").await;
                }
            });
        }
    });
    let retry = RetryPolicy {
        attempts_max: 2,
        backoff: Duration::from_millis(1),
        backoff_max: Duration::from_millis(1),
        idle_max: Duration::from_millis(200),
    };
    let options = ClientOptions { retry, ..ClientOptions::default() };
    let client = Client::new(options, Arc::new(Always(Credential::Anonymous))).unwrap();
    let started = Instant::now();
    let error = client.manifest(&reference).await.unwrap_err();
    assert!(matches!(error.kind, RegistryErrorKind::Timeout { .. }), "{error}");
    let blob = Descriptor::of("x", &vec![0; 100_000]);
    let directory = tempfile::tempdir().unwrap();
    let fetched = client.fetch_blob(&reference, &blob, &directory.path().join("blob"), &|_| {}).await;
    assert!(matches!(fetched.unwrap_err().kind, RegistryErrorKind::Timeout { .. }));
    assert_eq!(fs_err::read_dir(directory.path()).unwrap().count(), 0);
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_manifest_must_have_its_digest() {
    let fake = Fake::start(|_, _| manifest_answer().body(MANIFEST.replace("[]", "[ ]"))).await;
    let error = client().manifest(&reference(&fake, "a:v1")).await.unwrap_err();
    assert!(matches!(error.kind, RegistryErrorKind::Digest { .. }), "{error}");
    let fake = Fake::start(|_, _| Answer::new(200).body(MANIFEST)).await;
    let pinned = reference(&fake, &format!("a@{}", Digest::of("other")));
    assert!(client().manifest(&pinned).await.is_err());
    let huge = Fake::start(|_, _| Answer::new(200).body(vec![b' '; (4 << 20) + 1])).await;
    let error = client().manifest(&reference(&huge, "a:v1")).await.unwrap_err();
    assert!(matches!(error.kind, RegistryErrorKind::TooLarge { .. }), "{error}");
}

struct Fetched {
    result: Result<(), RegistryError>,
    content: Option<Vec<u8>>,
    left: usize,
}

async fn fetch(fake: &Fake, blob: &Descriptor) -> Fetched {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("blob");
    let result = client().fetch_blob(&reference(fake, "a:v1"), blob, &path, &|_| {}).await;
    let content = fs_err::read(&path).ok();
    Fetched { result, content, left: fs_err::read_dir(dir.path()).unwrap().count() }
}

fn content() -> Vec<u8> {
    (0..100_000_u32).flat_map(u32::to_le_bytes).collect()
}

/// Answers a GET as it should be, from the range's start on.
fn ranged(seen: &Seen) -> Answer {
    let content = content();
    match seen.header("range") {
        Some(range) => {
            let start: usize =
                range.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap();
            Answer::new(206)
                .header("Content-Range", format!("bytes {start}-{}/{}", content.len() - 1, content.len()))
                .body(&content[start..])
        }
        None => Answer::new(200).body(content),
    }
}

#[tokio::test]
async fn a_download_goes_on_where_it_broke() {
    // More breaks than attempts: progress starts the count again.
    let fake =
        Fake::start(|seen, before| if before < 6 { ranged(seen).cut(50_000) } else { ranged(seen) }).await;
    let fetched = fetch(&fake, &Descriptor::of("x", &content())).await;
    fetched.result.unwrap();
    assert!(fetched.content == Some(content()) && fetched.left == 1);
    let seen = fake.seen();
    assert_eq!(seen[0].header("range"), None);
    assert_eq!(seen[1].header("range"), Some("bytes=50000-"));
    assert_eq!(seen.len(), 7);
}

#[tokio::test]
async fn a_registry_without_ranges_sends_everything_again() {
    let fake = Fake::start(|_, before| {
        let answer = Answer::new(200).body(content());
        if before == 0 { answer.cut(50_000) } else { answer }
    })
    .await;
    let fetched = fetch(&fake, &Descriptor::of("x", &content())).await;
    fetched.result.unwrap();
    assert!(fetched.content == Some(content()));
}

#[tokio::test]
async fn pieces_that_do_not_fit_together_are_fetched_again() {
    let fake = Fake::start(|seen, before| match before {
        0 => Answer::new(200).body(vec![0; content().len()]).cut(50_000),
        _ => ranged(seen),
    })
    .await;
    let fetched = fetch(&fake, &Descriptor::of("x", &content())).await;
    fetched.result.unwrap();
    assert!(fetched.content == Some(content()));
    assert_eq!(fake.seen()[2].header("range"), None);
}

#[tokio::test]
async fn wrong_content_leaves_no_file() {
    let right = content();
    let mut wrong = right.clone();
    wrong[5] ^= 1;
    let mut long = right.clone();
    long.push(0);
    let cases = [
        (Answer::new(200).body(&wrong), "has digest"),
        (Answer::new(200).body(&long), "400001 bytes instead of 400000"),
        (Answer::new(200).body(&right[1..]), "399999 bytes instead of 400000"),
        // Nothing announces these sizes: they show when the bytes are there, or are not.
        (Answer::new(200).body(&long).without_length(), "400001 bytes instead of 400000"),
        (Answer::new(200).body([&long[..], &long].concat()).without_length(), "bytes instead of 400000"),
        (Answer::new(200).body(&right[1..]).without_length(), "399999 bytes instead of 400000"),
        (Answer::new(200).body(&right).cut(0), "failed"),
        (Answer::new(200).header("Transfer-Encoding", "chunked").header("Content-Length", 0), "failed"),
        (Answer::new(404), "404 Not Found"),
    ];
    for (answer, part) in cases {
        let fake = Fake::start(move |_, _| answer.clone()).await;
        let fetched = fetch(&fake, &Descriptor::of("x", &right)).await;
        let error = fetched.result.unwrap_err().to_string();
        assert!(error.contains(part), "{error} does not contain {part}");
        assert_eq!(fetched.left, 0);
    }
}

#[tokio::test]
async fn credentials_stay_with_their_host() {
    let storage = Fake::start(|_, _| Answer::new(200).body(content())).await;
    let target = format!("http://{}/bucket/blob?X-Amz-Signature=verysecret", storage.address);
    let fake = Fake::start(move |seen, _| match seen.header("authorization") {
        Some(_) => Answer::new(307).header("Location", &target),
        None => Answer::new(401).header("WWW-Authenticate", r#"Basic realm="r""#),
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let blob = Descriptor::of("x", &content());
    let client = client_with(basic(), 1 << 20);
    client.fetch_blob(&reference(&fake, "a:v1"), &blob, &dir.path().join("b"), &|_| {}).await.unwrap();
    assert_eq!(storage.seen().len(), 1);
    assert_eq!(storage.seen()[0].header("authorization"), None);

    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let fake = Fake::start(move |_, _| {
        Answer::new(307).header("Location", format!("http://u:pw@{closed}/blob?X-Amz-Signature=verysecret"))
    })
    .await;
    let path = dir.path().join("c");
    let error = client.fetch_blob(&reference(&fake, "a:v1"), &blob, &path, &|_| {}).await.unwrap_err();
    let shown = format!("{error} {error:?}");
    assert!(!shown.contains("verysecret") && !shown.contains("pw@"), "{shown}");

    let fake = Fake::start(|seen, _| Answer::new(302).header("Location", &seen.target)).await;
    let error = client.fetch_blob(&reference(&fake, "a:v1"), &blob, &path, &|_| {}).await.unwrap_err();
    assert!(error.to_string().contains("redirects more than"), "{error}");
}

#[tokio::test]
async fn mounts_are_wishes() {
    let fake = Fake::start(|seen, _| {
        if seen.target.contains("from=has") {
            Answer::new(201)
        } else if seen.target.contains("from=lacks") {
            Answer::new(202).header("Location", "/upload")
        } else {
            Answer::new(403)
        }
    })
    .await;
    let (client, reference, digest) = (client(), reference(&fake, "a:v1"), Digest::of("x"));
    let mount = async |from| client.mount_blob(&reference, &digest, from).await.unwrap();
    assert!(matches!(mount("has").await, MountOutcome::Mounted));
    assert!(matches!(mount("lacks").await, MountOutcome::Upload(_)));
    assert!(matches!(mount("forbidden").await, MountOutcome::Refused));
    assert_eq!(fake.lines()[0], format!("POST /v2/a/blobs/uploads/?mount={digest}&from=has"));
}

/// A registry that puts an upload together from pieces.
#[derive(Default)]
struct Pieces {
    stored: Mutex<Vec<u8>>,
    /// Requests of each kind: what happens on which one is up to the test.
    patches: AtomicUsize,
}

impl Pieces {
    fn answer(&self, seen: &Seen) -> Answer {
        let mut stored = self.stored.lock().unwrap();
        let range = |length: usize| format!("0-{}", length.max(1) - 1);
        match seen.method.as_str() {
            "HEAD" => Answer::new(404),
            "POST" => {
                stored.clear();
                Answer::new(202).header("Location", "/up/0")
            }
            "GET" => Answer::new(204)
                .header("Location", format!("/up/{}", stored.len()))
                .header("Range", range(stored.len())),
            "PATCH" => {
                let start: usize =
                    seen.header("content-range").unwrap().split('-').next().unwrap().parse().unwrap();
                if start != stored.len() {
                    return Answer::new(416);
                }
                stored.extend_from_slice(&seen.body);
                Answer::new(202)
                    .header("Location", format!("/up/{}", stored.len()))
                    .header("Range", range(stored.len()))
            }
            _ => {
                stored.extend_from_slice(&seen.body);
                Answer::new(201)
            }
        }
    }
}

async fn upload_in_pieces(
    handler: impl Fn(&Pieces, &Seen) -> Answer + Send + Sync + 'static,
) -> (Result<(), RegistryError>, Arc<Pieces>, Fake) {
    let pieces = Arc::new(Pieces::default());
    let registry = Arc::clone(&pieces);
    let fake = Fake::start(move |seen, _| handler(&registry, seen)).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("blob");
    fs_err::write(&path, content()).unwrap();
    let source = BlobSource::File(path);
    let blob = Descriptor::of("x", &content());
    let sent = AtomicU64::new(0);
    let progress = |bytes| sent.store(bytes, Ordering::Relaxed);
    let result = client_with(Credential::Anonymous, 150_000)
        .upload_blob(&reference(&fake, "a:v1"), &blob, &source, None, &progress)
        .await;
    assert!(result.is_err() || sent.load(Ordering::Relaxed) == 400_000);
    (result, pieces, fake)
}

#[tokio::test]
async fn large_blobs_go_in_pieces() {
    let (result, pieces, fake) = upload_in_pieces(Pieces::answer).await;
    result.unwrap();
    assert!(*pieces.stored.lock().unwrap() == content());
    let ranges: Vec<_> =
        fake.seen().iter().filter_map(|seen| seen.header("content-range").map(str::to_owned)).collect();
    assert_eq!(ranges, ["0-149999", "150000-299999", "300000-399999"]);
    assert_eq!(*fake.lines().last().unwrap(), format!("PUT /up/400000?digest={}", Digest::of(content())));
}

#[tokio::test]
async fn a_broken_upload_asks_how_far_it_got() {
    let (result, pieces, fake) = upload_in_pieces(|pieces, seen| {
        if seen.method == "PATCH" && pieces.patches.fetch_add(1, Ordering::SeqCst) == 1 {
            // Half of the piece arrived, and then something in between gave up.
            pieces.stored.lock().unwrap().extend_from_slice(&seen.body[..70_000]);
            return Answer::new(502);
        }
        pieces.answer(seen)
    })
    .await;
    result.unwrap();
    assert!(*pieces.stored.lock().unwrap() == content());
    let ranges: Vec<_> =
        fake.seen().iter().filter_map(|seen| seen.header("content-range").map(str::to_owned)).collect();
    assert_eq!(ranges, ["0-149999", "150000-299999", "220000-369999", "370000-399999"]);
}

#[tokio::test]
async fn a_forgotten_upload_starts_again() {
    let (result, pieces, _) = upload_in_pieces(|pieces, seen| {
        let patched = pieces.patches.load(Ordering::SeqCst);
        if seen.method == "PATCH" {
            pieces.patches.fetch_add(1, Ordering::SeqCst);
            if patched == 1 {
                return Answer::new(500);
            }
        }
        if seen.method == "GET" {
            return Answer::new(404);
        }
        pieces.answer(seen)
    })
    .await;
    result.unwrap();
    assert!(*pieces.stored.lock().unwrap() == content());
}

#[tokio::test]
async fn registries_that_know_only_one_way_get_that() {
    let (result, pieces, _) = upload_in_pieces(|pieces, seen| match seen.method.as_str() {
        "PATCH" => Answer::new(405),
        _ => pieces.answer(seen),
    })
    .await;
    result.unwrap();
    assert!(*pieces.stored.lock().unwrap() == content());

    let pieces = Arc::new(Pieces::default());
    let registry = Arc::clone(&pieces);
    let fake = Fake::start(move |seen, _| match seen.method.as_str() {
        "PUT" if !seen.body.is_empty() => Answer::new(413),
        _ => registry.answer(seen),
    })
    .await;
    let blob = Descriptor::of("x", &content());
    let source = BlobSource::Bytes(content().into());
    client().upload_blob(&reference(&fake, "a:v1"), &blob, &source, None, &|_| {}).await.unwrap();
    assert!(*pieces.stored.lock().unwrap() == content());
}

#[tokio::test]
async fn a_lost_answer_is_not_a_lost_blob() {
    let done = AtomicUsize::new(0);
    let fake = Fake::start(move |seen, _| match seen.method.as_str() {
        "PUT" => {
            done.store(1, Ordering::SeqCst);
            Answer::new(504)
        }
        "HEAD" if done.load(Ordering::SeqCst) == 1 => Answer::new(200),
        _ => ordinary(seen),
    })
    .await;
    let source = BlobSource::Bytes(Bytes::from_static(b"blob"));
    let blob = Descriptor::of("x", b"blob");
    client().upload_blob(&reference(&fake, "a:v1"), &blob, &source, None, &|_| {}).await.unwrap();
    assert_eq!(fake.seen().iter().filter(|seen| seen.method == "PUT").count(), 1);
}

struct Layers(BTreeMap<Digest, Bytes>, Mutex<Vec<Digest>>);

#[async_trait]
impl BlobProvider for Layers {
    async fn open(&self, blob: &Descriptor) -> Result<BlobSource, BoxError> {
        self.1.lock().unwrap().push(blob.digest);
        Ok(BlobSource::Bytes(self.0.get(&blob.digest).ok_or("no such layer")?.clone()))
    }
}

#[tokio::test]
async fn a_push_sends_only_what_is_missing() {
    let layers = ["existing", "mountable", "new", "new"];
    let mut config = ImageConfig::new(&Platform::new("linux", "amd64", None));
    config.rootfs.diff_ids = layers.iter().map(Digest::of).collect();
    let config = Bytes::from(config.to_bytes());
    let config_descriptor = Descriptor::of(media_types::OCI_CONFIG, &config);
    let descriptors: Vec<Descriptor> =
        layers.iter().map(|layer| Descriptor::of("l", layer.as_bytes())).collect();
    let manifest = Bytes::from(Manifest::new(config_descriptor.clone(), descriptors.clone()).to_bytes());
    let digest = Digest::of(&manifest);

    let known: Arc<Mutex<HashSet<String>>> = Arc::default();
    known.lock().unwrap().insert(format!("blobs/{}", Digest::of("existing")));
    let state = Arc::clone(&known);
    let fake = Fake::start(move |seen, _| {
        let line = seen.line();
        let mut known = state.lock().unwrap();
        let name = line.rsplit_once("/a/").map_or("", |(_, name)| name);
        match seen.method.as_str() {
            "HEAD" if known.contains(name) => Answer::new(200).header("Docker-Content-Digest", digest),
            "HEAD" => Answer::new(404),
            "POST" if line.contains(&Digest::of("mountable").to_string()) => Answer::new(201),
            "POST" => Answer::new(202).header("Location", "/v2/a/blobs/uploads/1"),
            _ => {
                known.insert(name.to_owned());
                Answer::new(201)
            }
        }
    })
    .await;
    let reference = reference(&fake, "a:v1");
    let registry = reference.registry().to_owned();
    let candidates = vec![("other.io".to_owned(), "x".to_owned()), (registry, "base".to_owned())];
    let bundle = ImageBundle {
        manifest,
        media_type: media_types::OCI_MANIFEST.to_owned(),
        config,
        config_descriptor,
        layers: descriptors
            .iter()
            .enumerate()
            .map(|(at, descriptor)| PushLayer {
                descriptor: descriptor.clone(),
                mount_candidates: if at < 2 { candidates.clone() } else { Vec::new() },
            })
            .collect(),
    };
    let blobs = Layers(
        layers.iter().map(|layer| (Digest::of(layer), Bytes::from(*layer))).collect(),
        Mutex::default(),
    );
    let report = push(&client(), &reference, &ImageSet::one(bundle.clone()), &blobs, &|_| {}).await.unwrap();
    assert_eq!((report.existed, report.mounted, report.uploaded, report.unchanged), (1, 1, 2, false));
    assert_eq!(report.uploaded_bytes, (3 + bundle.config.len() + bundle.manifest.len()) as u64);
    assert_eq!(*blobs.1.lock().unwrap(), [Digest::of("new")], "only what is sent is asked for");
    let lines = fake.lines();
    let at =
        |part: &str| lines.iter().position(|line| line.starts_with("PUT") && line.contains(part)).unwrap();
    let (layer, config) =
        (at(&Digest::of("new").to_string()), at(&bundle.config_descriptor.digest.to_string()));
    assert!(layer.max(config) < at("manifests/v1") && at("manifests/v1") == lines.len() - 1);
    assert!(!lines.iter().any(|line| line.contains("from=x")));

    let report = push(&client(), &reference, &ImageSet::one(bundle.clone()), &blobs, &|_| {}).await.unwrap();
    assert!(report.unchanged && report.uploaded_bytes == 0);
    assert!(fake.seen()[lines.len()..].iter().all(|seen| seen.method == "HEAD"), "nothing but questions");
}

#[tokio::test]
async fn an_image_is_found_through_its_index() {
    let mut config = ImageConfig::new(&Platform::new("linux", "arm64", None));
    config.rootfs.diff_ids = vec![Digest::of("layer")];
    let config = config.to_bytes();
    let layer = Descriptor::of("application/vnd.oci.image.layer.v1.tar", b"layer");
    let manifest = Manifest::new(Descriptor::of(media_types::OCI_CONFIG, &config), vec![layer]).to_bytes();
    let mut entry = Descriptor::of(media_types::OCI_MANIFEST, &manifest);
    entry.platform = Some(Platform::new("linux", "arm64", None));
    let index = Index::new(vec![entry]).to_bytes();
    let index_digest = Digest::of(&index);
    let objects: BTreeMap<String, Vec<u8>> = [
        ("manifests/v1".to_owned(), index),
        (format!("manifests/{}", Digest::of(&manifest)), manifest.clone()),
        (format!("blobs/{}", Digest::of(&config)), config.clone()),
    ]
    .into();
    let fake = Fake::start(move |seen, _| match objects.get(seen.line().rsplit_once("/a/").unwrap().1) {
        Some(content) => Answer::new(200).body(content),
        None => Answer::new(404),
    })
    .await;
    let source = RegistrySource::new(client(), reference(&fake, "a:v1"));
    let image = source.resolve(&Platform::new("linux", "arm64", None)).await.unwrap();
    assert_eq!((image.index_digest, image.manifest_digest), (Some(index_digest), Digest::of(&manifest)));
    assert_eq!(image.config_bytes, config);
    assert_eq!(source.mount_from(), Some((fake.address.to_string(), "a".to_owned())));
    let error = source.resolve(&Platform::new("linux", "amd64", None)).await.unwrap_err();
    assert!(
        error.to_string().ends_with("there is no image for linux/amd64 (available: linux/arm64)"),
        "{error}"
    );
}
