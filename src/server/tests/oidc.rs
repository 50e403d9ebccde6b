//! Identities of CI providers, with an issuer on this machine; and those who lie about theirs.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Json;
use axum::routing::get;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};

use super::*;

const AUDIENCE: &str = "https://cache.example";

const RULES: &str = "
[[policy]]
when = { repository_owner_id = '7' }
tenant = 'acme'
scopes = 'github'
push = ['{repository}']
";

/// A key that only this issuer has.
fn new_key() -> EncodingKey {
    let output = std::process::Command::new("sh")
        .args(["-c", "openssl genrsa -traditional 2048 2>/dev/null | openssl rsa -traditional -outform DER 2>/dev/null"])
        .output()
        .unwrap();
    assert!(output.status.success());
    EncodingKey::from_rsa_der(&output.stdout)
}

/// An issuer whose keys can be changed, and that can be out of order.
struct Provider {
    url: String,
    keys: Arc<Mutex<Option<Vec<Value>>>>,
    asked: Arc<AtomicUsize>,
}

impl Provider {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let keys: Arc<Mutex<Option<Vec<Value>>>> = Arc::default();
        let asked = Arc::new(AtomicUsize::new(0));
        let description = json!({"issuer": url, "jwks_uri": format!("{url}/keys")});
        let (served, counted) = (Arc::clone(&keys), Arc::clone(&asked));
        let router: Router = Router::new()
            .route("/.well-known/openid-configuration", get(async move || Json(description)))
            .route(
                "/keys",
                get(async move || {
                    counted.fetch_add(1, Ordering::Relaxed);
                    match served.lock().unwrap().clone() {
                        Some(keys) => Ok(Json(json!({"keys": keys}))),
                        None => Err(StatusCode::SERVICE_UNAVAILABLE),
                    }
                }),
            );
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, keys, asked }
    }

    fn publish(&self, keys: &[(&str, &EncodingKey)]) {
        let jwk = |(kid, key): &(&str, &EncodingKey)| {
            let mut jwk = Jwk::from_encoding_key(key, Algorithm::RS256).unwrap();
            jwk.common.key_id = Some((*kid).to_owned());
            serde_json::to_value(jwk).unwrap()
        };
        *self.keys.lock().unwrap() = Some(keys.iter().map(jwk).collect());
    }

    /// A server that believes it.
    async fn server(&self) -> Running {
        #[derive(serde::Deserialize)]
        struct Rules {
            policy: Vec<Rule>,
        }
        let issuer = Issuer { url: self.url.clone(), audience: AUDIENCE.to_owned(), jwks_url: None };
        let rules = toml::from_str::<Rules>(RULES).unwrap().policy;
        let settings = Settings {
            policy: Policy::new(rules, std::slice::from_ref(&self.url)).unwrap(),
            issuers: vec![issuer],
            ..Settings::new(SystemTime::now)
        };
        let spool = tempfile::tempdir().unwrap();
        let kind = StorageKind::Directory(spool.path().join("storage"));
        Running::with(kind, spool, settings).await
    }

    /// What GitHub says of a job, changed by `changes`.
    fn claims(&self, id: &str, changes: &Value) -> Value {
        let now = now();
        let mut claims = json!({
            "iss": self.url, "aud": AUDIENCE, "sub": "repo:acme/app:ref:refs/heads/main", "jti": id,
            "iat": now, "nbf": now, "exp": now + 300,
            "repository": "acme/app", "repository_id": "12", "repository_owner_id": "7",
            "event_name": "push", "ref": "refs/heads/main", "base_ref": "",
        });
        for (name, value) in changes.as_object().unwrap() {
            claims[name] = value.clone();
        }
        claims
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

fn signed(claims: &Value, kid: &str, key: &EncodingKey) -> String {
    let header = Header { kid: Some(kid.to_owned()), ..Header::new(Algorithm::RS256) };
    jsonwebtoken::encode(&header, claims, key).unwrap()
}

async fn store_as(store: &HttpStore, record: &crate::record::Record, blobs: [bytes::Bytes; 2]) {
    for blob in blobs {
        store.write_blob(&Digest::of(&blob), BlobSource::Bytes(blob)).await.unwrap();
    }
    store.write_record(record).await.unwrap();
}

async fn log_in(server: &Running, id_token: &str) -> (StatusCode, Value) {
    server.json(Method::POST, "/api/v1/session", "", json!({"id_token": id_token})).await
}

#[tokio::test]
async fn a_job_gets_what_the_policy_says() {
    let (provider, key) = (Provider::start().await, new_key());
    provider.publish(&[("one", &key)]);
    let server = provider.server().await;
    let job = |id: &str, changes| signed(&provider.claims(id, &changes), "one", &key);
    let (status, main) = log_in(&server, &job("1", json!({}))).await;
    assert_eq!((status, main["tenant"].as_str()), (StatusCode::CREATED, Some("acme")));
    assert_eq!(main["write"], "12/refs/heads/main");
    let pull = json!({"event_name": "pull_request", "ref": "refs/pull/3/merge", "base_ref": "main"});
    let (_, pull) = log_in(&server, &job("2", pull)).await;
    assert_eq!(pull["read"], json!(["12/refs/pull/3/merge", "12/refs/heads/main"]));
    let store = |session: &Value| server.store(session["token"].as_str().unwrap());
    let (main, pull) = (store(&main), store(&pull));
    let (mut record, blobs) = sample("one");
    record.scope = scope("12/refs/heads/main");
    store_as(&main, &record, blobs).await;
    let scopes = [scope("12/refs/pull/3/merge"), scope("12/refs/heads/main")];
    assert!(pull.read_record(&record.key(), &scopes).await.unwrap().is_some(), "main is read");
    // Poison for main: refused. For itself: fine.
    assert!(pull.write_record(&record).await.is_err());
    record.scope = scopes[0].clone();
    pull.write_record(&record).await.unwrap();
    let outsider = job("3", json!({"event_name": "pull_request_target"}));
    let (_, outsider) = log_in(&server, &outsider).await;
    assert_eq!(outsider["write"], Value::Null);
    record.scope = scope("12/refs/heads/main");
    assert!(store(&outsider).write_record(&record).await.is_err());
    let (status, other) = log_in(&server, &job("4", json!({"repository_owner_id": "8"}))).await;
    assert_eq!((status, other["error"]["code"].as_str()), (StatusCode::FORBIDDEN, Some("denied")));
}

#[tokio::test]
async fn lies_about_identity_are_refused() {
    let (provider, key, other) = (Provider::start().await, new_key(), new_key());
    provider.publish(&[("one", &key)]);
    let server = provider.server().await;
    let with = |changes| provider.claims("a", &changes);
    let good = with(json!({}));
    let encode = |value: &Value| {
        use base64::Engine as _;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string())
    };
    let body = encode(&good);
    let none = |alg: &str| format!("{}.{body}.", encode(&json!({"alg": alg, "typ": "JWT", "kid": "one"})));
    // The public key as the secret of a symmetric signature.
    let public = Jwk::from_encoding_key(&key, Algorithm::RS256).unwrap();
    let secret = EncodingKey::from_secret(serde_json::to_string(&public).unwrap().as_bytes());
    let symmetric = Header { kid: Some("one".to_owned()), ..Header::new(Algorithm::HS256) };
    let signature = signed(&good, "one", &key);
    let signature = signature.rsplit('.').next().unwrap();
    let inserted = Header {
        kid: Some("own".to_owned()),
        jwk: Some(Jwk::from_encoding_key(&other, Algorithm::RS256).unwrap()),
        jku: Some("http://127.0.0.1:1/keys".to_owned()),
        ..Header::new(Algorithm::RS256)
    };
    let critical = Header {
        kid: Some("one".to_owned()),
        crit: Some(vec!["x".to_owned()]),
        ..Header::new(Algorithm::RS256)
    };
    let nameless = Header::new(Algorithm::RS256);
    let attacks = [
        ("nothing", String::new()),
        ("no token", "a.b.c".to_owned()),
        ("no signature", none("none")),
        ("no signature, written otherwise", none("nOnE")),
        ("a signature of RS256 without one", none("RS256")),
        ("symmetric", jsonwebtoken::encode(&symmetric, &good, &secret).unwrap()),
        ("another's key", signed(&good, "one", &other)),
        ("an unknown key", signed(&good, "two", &key)),
        ("a key of its own", jsonwebtoken::encode(&inserted, &good, &other).unwrap()),
        ("no key named", jsonwebtoken::encode(&nameless, &good, &key).unwrap()),
        ("critical", jsonwebtoken::encode(&critical, &good, &key).unwrap()),
        (
            "changed claims",
            format!(
                "{}.{}.{signature}",
                encode(&json!({"alg": "RS256", "kid": "one"})),
                encode(&with(json!({"ref": "refs/heads/other"})))
            ),
        ),
        ("expired", signed(&with(json!({"exp": now() - 90})), "one", &key)),
        ("without an end", signed(&with(json!({"exp": null})), "one", &key)),
        ("not yet", signed(&with(json!({"nbf": now() + 90})), "one", &key)),
        ("of the future", signed(&with(json!({"iat": now() + 90})), "one", &key)),
        ("for others", signed(&with(json!({"aud": "https://github.com/acme"})), "one", &key)),
        ("for nobody", signed(&with(json!({"aud": null})), "one", &key)),
        ("of another issuer", signed(&with(json!({"iss": "https://evil.example"})), "one", &key)),
        ("of two issuers", signed(&with(json!({"iss": [provider.url]})), "one", &key)),
        ("too long", signed(&with(json!({"x": "x".repeat(20_000)})), "one", &key)),
    ];
    for (what, token) in attacks {
        let (status, answer) = log_in(&server, &token).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{what}: {answer}");
        assert_eq!(server.status(Method::GET, "/api/v1", &token, "").await, StatusCode::UNAUTHORIZED);
    }
    // What they made up did not make the server ask again and again.
    assert_eq!(provider.asked.load(Ordering::Relaxed), 1);
    let bomb = json!({"id_token": "x".repeat(1 << 20)}).to_string();
    assert_eq!(server.status(Method::POST, "/api/v1/session", "", bomb).await, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn a_proof_is_good_once() {
    let (provider, key) = (Provider::start().await, new_key());
    provider.publish(&[("one", &key)]);
    let server = provider.server().await;
    let claims = provider.claims("once", &json!({}));
    let token = signed(&claims, "one", &key);
    assert_eq!(log_in(&server, &token).await.0, StatusCode::CREATED);
    let (status, answer) = log_in(&server, &token).await;
    assert_eq!((status, answer["error"]["code"].as_str()), (StatusCode::UNAUTHORIZED, Some("used")));
    // Neither as a token, nor as the password of the registry's token flow, nor written differently.
    assert_eq!(server.status(Method::GET, "/api/v1", &token, "").await, StatusCode::UNAUTHORIZED);
    let again = reqwest::Client::new().get(format!("http://{}/token", server.address));
    let again = again.basic_auth("job", Some(&token)).send().await.unwrap();
    assert_eq!(again.status(), StatusCode::UNAUTHORIZED);
    let mut reordered = claims.clone();
    reordered["more"] = json!(1);
    assert_eq!(log_in(&server, &signed(&reordered, "one", &key)).await.0, StatusCode::UNAUTHORIZED);
    // What has ended is swept away, and no longer good anyhow.
    assert_eq!(server.tokens.sweep().await.unwrap(), 0);
    let expired = Digest::of("x");
    assert!(server.tokens.use_once(&expired, 1).await.unwrap());
    assert!(!server.tokens.use_once(&expired, 1).await.unwrap());
    assert_eq!(server.tokens.sweep().await.unwrap(), 1);
}

#[tokio::test]
async fn keys_change_and_issuers_fail() {
    let (provider, one, two) = (Provider::start().await, new_key(), new_key());
    let server = provider.server().await;
    let job = |id: &str, kid: &str, key| signed(&provider.claims(id, &json!({})), kid, key);
    let (status, answer) = log_in(&server, &job("1", "one", &one)).await;
    assert_eq!((status, answer["error"]["code"].as_str()), (StatusCode::SERVICE_UNAVAILABLE, Some("issuer")));
    // Its keys are there now, but it was asked a moment ago; another server asks for the first time.
    provider.publish(&[("one", &one)]);
    assert_eq!(log_in(&server, &job("2", "one", &one)).await.0, StatusCode::SERVICE_UNAVAILABLE);
    let server = provider.server().await;
    assert_eq!(log_in(&server, &job("3", "one", &one)).await.0, StatusCode::CREATED);
    *provider.keys.lock().unwrap() = None;
    assert_eq!(log_in(&server, &job("4", "one", &one)).await.0, StatusCode::CREATED, "it goes on");
    provider.publish(&[("one", &one), ("two", &two)]);
    let server = provider.server().await;
    assert_eq!(log_in(&server, &job("5", "two", &two)).await.0, StatusCode::CREATED, "a new key");
}

#[tokio::test]
async fn the_token_flow_of_dockers_clients() {
    let (provider, key) = (Provider::start().await, new_key());
    provider.publish(&[("one", &key)]);
    let server = provider.server().await;
    let url = |path: &str| format!("http://{}{path}", server.address);
    let client = reqwest::Client::new();
    let refused = client.get(url("/v2/")).send().await.unwrap();
    let challenges: Vec<_> = refused.headers().get_all("www-authenticate").iter().collect();
    assert_eq!(challenges[0], "Basic realm=\"crossdock\"");
    assert_eq!(challenges[1], &format!("Bearer realm=\"{}\",service=\"crossdock\"", url("/token")));
    let static_token = server.token("acme", ALL, ALL).await;
    let id_token = signed(&provider.claims("docker", &json!({})), "one", &key);
    for password in [static_token.clone(), id_token] {
        let asked = client.get(url("/token?service=crossdock&scope=repository:acme/app:pull,push"));
        let answer = asked.basic_auth("any", Some(&password)).send().await.unwrap().bytes().await.unwrap();
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        let token = answer["token"].as_str().unwrap();
        assert_eq!(answer["access_token"], token);
        assert_eq!(client.get(url("/v2/")).bearer_auth(token).send().await.unwrap().status(), StatusCode::OK);
    }
    let form = format!("grant_type=password&username=a&password={static_token}");
    let asked = client.post(url("/token")).body(form).send().await.unwrap();
    assert_eq!(asked.status(), StatusCode::OK);
    for wrong in ["", "wrong"] {
        let asked = client.get(url("/token")).basic_auth("any", Some(wrong)).send().await.unwrap();
        assert_eq!(asked.status(), StatusCode::UNAUTHORIZED);
    }
    assert_eq!(client.post(url("/token")).send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn what_everybody_may_read_nobody_may_write() {
    let spool = tempfile::tempdir().unwrap();
    let kind = StorageKind::Directory(spool.path().join("storage"));
    let anonymous = Anonymous { tenant: "default".parse().unwrap(), read: vec!["main".parse().unwrap()] };
    let settings = Settings { anonymous: Some(anonymous), ..Settings::new(SystemTime::now) };
    let server = Running::with(kind, spool, settings).await;
    let own = server.store(&server.token("default", ALL, ALL).await);
    let anybody = HttpStore::new(format!("http://{}/", server.address).parse().unwrap(), None).unwrap();
    for name in ["main", "private"] {
        let (mut record, blobs) = sample(name);
        record.scope = scope(name);
        store_as(&own, &record, blobs).await;
        let read = anybody.read_record(&record.key(), &[scope(name)]).await;
        assert_eq!(matches!(read, Ok(Some(_))), name == "main", "{name}: {read:?}");
        assert!(anybody.write_record(&record).await.is_err());
    }
    // The registry asks who it is, and a wrong token is not as good as none.
    assert_eq!(
        server.raw(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.get(9..12),
        Some("401")
    );
    assert_eq!(server.status(Method::GET, "/api/v1", "xdk_wrong", "").await, StatusCode::UNAUTHORIZED);
}
