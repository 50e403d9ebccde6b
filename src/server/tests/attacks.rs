//! What somebody may try who has a token for something else, a token of another tenant, or none: none of it succeeds.
//!
//! Tokens of CI providers that lie are in [`oidc`](super::oidc), bodies that come too slowly also in `server::body`.

use std::path::Path;

use super::*;

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

/// Puts a blob into a repository, in one request.
async fn push_blob(server: &Running, token: &str, repository: &str, content: &str) -> (StatusCode, Digest) {
    let digest = Digest::of(content);
    let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
    (server.status(Method::POST, &path, token, content.to_owned()).await, digest)
}

/// A manifest of one layer, which is its configuration too.
fn manifest(layer: &Digest, subject: Option<&Digest>) -> String {
    let descriptor =
        |digest: &Digest| json!({"mediaType": "text/plain", "digest": digest.to_string(), "size": 5});
    let mut manifest = json!({
        "schemaVersion": 2, "mediaType": crate::image::media_types::OCI_MANIFEST,
        "config": descriptor(layer), "layers": [descriptor(layer)],
    });
    if let Some(subject) = subject {
        manifest["subject"] = descriptor(subject);
    }
    manifest.to_string()
}

/// The same by the registry: with whatever it may push to, a pull request changes nothing that main pulls.
#[tokio::test]
async fn a_pull_request_cannot_poison_mains_images() {
    let server = Running::start().await;
    let main = server.token_for("default", (&["main"], &["main"]), (ALL, &["team/*"])).await;
    let pull = server.token_for("default", (&["main"], &["pr/7"]), (&["team/*"], &["pr/7/*"])).await;
    let (status, layer) = push_blob(&server, &main, "team/app", "layer").await;
    assert_eq!(status, StatusCode::CREATED);
    let image = manifest(&layer, None);
    let tag = "/v2/team/app/manifests/latest";
    assert_eq!(server.status(Method::PUT, tag, &main, image.clone()).await, StatusCode::CREATED);
    let (status, poison) = push_blob(&server, &pull, "pr/7/app", "poison").await;
    assert_eq!(status, StatusCode::CREATED);
    let own = manifest(&poison, Some(&Digest::of(&image)));
    let own_tag = "/v2/pr/7/app/manifests/latest";
    assert_eq!(server.status(Method::PUT, own_tag, &pull, own.clone()).await, StatusCode::CREATED);

    let session = server.request(Method::POST, "/v2/team/app/blobs/uploads/", &main).send().await.unwrap();
    let session = session.headers()["location"].to_str().unwrap().to_owned();
    let id = session.rsplit('/').next().unwrap();
    let by_digest = |digest: &Digest| format!("/v2/team/app/blobs/{digest}");
    let refused = StatusCode::FORBIDDEN;
    for (method, path, body, expected) in [
        (Method::PUT, tag.to_owned(), own.as_str(), refused),
        (Method::PUT, format!("{tag}?tag=v1"), &own, refused),
        (Method::PUT, format!("/v2/team/app/manifests/{}", Digest::of(&own)), &own, refused),
        (Method::DELETE, tag.to_owned(), "", refused),
        (Method::DELETE, by_digest(&layer), "", refused),
        (Method::POST, "/v2/team/app/blobs/uploads/".to_owned(), "", refused),
        (Method::POST, format!("/v2/team/app/blobs/uploads/?digest={poison}"), "poison", refused),
        (Method::POST, format!("/v2/team/app/blobs/uploads/?mount={poison}&from=pr/7/app"), "", refused),
        // Main's upload, which is under way: by its own address, through a repository of one's own, as an upload of the
        // other protocol.
        (Method::PATCH, session.clone(), "poison", refused),
        (Method::PUT, format!("{session}?digest={poison}"), "poison", refused),
        (Method::DELETE, session.clone(), "", refused),
        (Method::GET, session.clone(), "", refused),
        (Method::PATCH, format!("/v2/pr/7/app/blobs/uploads/{id}"), "poison", StatusCode::NOT_FOUND),
        (Method::DELETE, format!("/api/v1/uploads/{id}"), "", StatusCode::NOT_FOUND),
        // Names that lead from one's own repository to another one.
        (Method::PUT, "/v2/pr/7/../../team/app/manifests/latest".to_owned(), &own, refused),
        (Method::PUT, "/v2/pr/7/%2e%2e/%2e%2e/team/app/manifests/latest".to_owned(), &own, refused),
        (
            Method::PUT,
            "/v2/pr/7/..%2f..%2fteam/app/manifests/latest".to_owned(),
            &own,
            StatusCode::BAD_REQUEST,
        ),
        (Method::PUT, "/v2/pr/7!/team/app/manifests/latest".to_owned(), &own, StatusCode::BAD_REQUEST),
    ] {
        let status = server.status(method.clone(), &path, &pull, body.to_owned()).await;
        assert_eq!(status, expected, "{method} {path}");
    }
    // The token flow gives it no more than it has, whatever it asks for.
    let asked = server.request(Method::GET, "/token?service=x&scope=repository:team/app:pull,push,*", &pull);
    let answer: Value = serde_json::from_slice(&asked.send().await.unwrap().bytes().await.unwrap()).unwrap();
    let token = answer["token"].as_str().unwrap();
    assert_eq!(server.status(Method::PUT, tag, token, own.clone()).await, refused);
    // Main's image is what it was, and says of nothing that it refers to it.
    let there = server.request(Method::GET, tag, &main).send().await.unwrap();
    assert_eq!(there.text().await.unwrap(), image);
    let referrers = format!("/v2/team/app/referrers/{}", Digest::of(&image));
    let (_, referrers) = server.json(Method::GET, &referrers, &main, json!({})).await;
    assert_eq!(referrers["manifests"], json!([]));
    assert_eq!(
        server.status(Method::PUT, &format!("{session}?digest={layer}"), &main, "layer").await,
        StatusCode::CREATED
    );
}

/// Whoever was first in a scope stays, and what is in one scope has no effect on another.
#[tokio::test]
async fn a_record_never_replaces_one_of_another_scope() {
    let server = Running::start().await;
    let main = server.store(&server.token("default", &["main"], &["main"]).await);
    let pull = server.store(&server.token("default", &["pr/7", "main"], &["pr/7"]).await);
    let (mut record, blobs) = sample("make");
    for (store, of) in [(&pull, "pr/7"), (&main, "main")] {
        for blob in blobs.clone() {
            store.write_blob(&Digest::of(&blob), BlobSource::Bytes(blob)).await.unwrap();
        }
        record.scope = scope(of);
        record.builder = of.to_owned();
        assert_eq!(store.write_record(&record).await.unwrap(), record);
    }
    let key = record.key();
    let (both, only) = ([scope("pr/7"), scope("main")], [scope("main")]);
    // The pull request's came first, and main's counts for whoever trusts main only.
    assert_eq!(main.read_record(&key, &only).await.unwrap().unwrap().builder, "main");
    assert_eq!(main.read_record(&key, &both).await.unwrap().unwrap().builder, "main");
    assert_eq!(pull.read_record(&key, &only).await.unwrap().unwrap().builder, "main");
    assert_eq!(pull.read_record(&key, &both).await.unwrap().unwrap().builder, "pr/7");
    record.builder = "later".to_owned();
    assert_eq!(main.write_record(&record).await.unwrap().builder, "main", "the first one stays");
}

/// How often the storage was asked about a blob, or for its bytes.
async fn looked_for(server: &Running) -> Vec<String> {
    let metrics = server.request(Method::GET, "/metrics", "").send().await.unwrap().text().await.unwrap();
    let operations = ["blob_size", "read_blob", "read_range", "fetch_blob"];
    let counted = metrics.lines().filter(|line| line.starts_with("crossdock_storage_duration_seconds_count"));
    let about_blobs =
        counted.filter(|line| operations.iter().any(|name| line.contains(&format!("operation=\"{name}\""))));
    about_blobs.map(str::to_owned).collect()
}

/// Within a tenant, a blob is there only for who may read a record that names it, or has sent it.
#[tokio::test]
async fn a_blob_is_read_only_through_what_names_it() {
    let server = Running::start().await;
    let owner = server.token_for("default", (&["secret", "main"], &["secret"]), (&[], &["secret/*"])).await;
    let other = server.token_for("default", (&["main", "pr/*"], &["pr/7"]), (&[], &["pr/*"])).await;
    let (mut record, blobs) = sample("secret");
    record.scope = scope("secret");
    let (layer, content) = (record.layers[0].digest, blobs[0].clone());
    for blob in blobs.clone() {
        server.store(&owner).write_blob(&Digest::of(&blob), BlobSource::Bytes(blob)).await.unwrap();
    }
    // Before it is named anywhere, and afterwards.
    for named in [false, true] {
        if named {
            server.store(&owner).write_record(&record).await.unwrap();
        }
        let thief = server.store(&other);
        let before = looked_for(&server).await;
        assert_eq!(thief.missing_blobs(&[layer]).await.unwrap(), [layer]);
        assert_eq!(thief.blob_size(&layer).await.unwrap(), None);
        assert_eq!(thief.read_blob(&layer, 1 << 20).await.unwrap(), None);
        assert_eq!(thief.read_range(&layer, 0..5).await.unwrap(), None);
        let nowhere = Digest::of("nowhere");
        let of = |digest: Digest, rest: &str| format!("/api/v1/blobs/{digest}{rest}");
        let ranges = json!({"ranges": [[0, 5]]});
        let recipe =
            |digest: Digest| json!({"parts": [{"blob": digest.to_string(), "offset": 0, "length": 5}]});
        let compose = of(Digest::of("layer"), "/compose");
        let mut forged = record.clone();
        forged.scope = scope("pr/7");
        let path = format!("/api/v1/records/{}", forged.key().0);
        let name_it = |digest: Digest| {
            let mut forged = forged.clone();
            forged.layers[0].digest = digest;
            forged.encode()
        };
        // The same answers, byte by byte, as for what is nowhere.
        let questions = |digest: Digest| {
            [
                (Method::GET, of(digest, ""), Vec::new()),
                (Method::POST, of(digest, "/ranges"), ranges.to_string().into_bytes()),
                (Method::POST, compose.clone(), recipe(digest).to_string().into_bytes()),
                (Method::PUT, path.clone(), name_it(digest)),
            ]
        };
        for (there, absent) in questions(layer).into_iter().zip(questions(nowhere)) {
            let mut answers = Vec::new();
            for (method, path, body) in [there, absent] {
                let answer = server.request(method, &path, &other).body(body).send().await.unwrap();
                let status = answer.status();
                assert!(matches!(status.as_u16(), 404 | 409), "{path}: {status}");
                answers.push((status, answer.text().await.unwrap()));
            }
            let hide = |text: &str| text.replace(&layer.to_string(), "-").replace(&nowhere.to_string(), "-");
            assert_eq!((answers[0].0, hide(&answers[0].1)), (answers[1].0, hide(&answers[1].1)));
        }
        // A bundle may say what it likes.
        let step = crate::record::BundleStep { slot: "s".to_owned(), record: forged };
        let bundle = crate::record::Bundle { steps: vec![step] };
        let name = crate::record::BundleName(Digest::of("bundle"));
        thief.write_bundle(&name, &scope("pr/7"), &bundle).await.unwrap();
        assert_eq!(thief.read_bundle(&name, &[scope("pr/7")]).await.unwrap().unwrap().steps, []);
        assert_eq!(thief.read_blob(&layer, 1 << 20).await.unwrap(), None);
        // The time of an answer tells nothing: the blob was not even looked for.
        assert_eq!(looked_for(&server).await, before);
        // Neither does the registry have it.
        for repository in ["pr/7/app", "secret/app"] {
            let path = format!("/v2/{repository}/blobs/{layer}");
            assert_eq!(server.status(Method::GET, &path, &other, "").await, StatusCode::NOT_FOUND);
        }
    }
    // A server that has seen none of this reads it from the storage.
    let storage = Storage::open(
        StorageKind::Directory(server.spool.path().join("storage")),
        server.spool.path().join("spool"),
        SystemTime::now,
    );
    let second = Running::serving(storage.unwrap(), Settings::new(SystemTime::now)).await;
    let reader = server.token_for("default", (&["secret"], &[]), (&[], &[])).await;
    for server in [&server, &second] {
        assert_eq!(server.store(&reader).read_blob(&layer, 1 << 20).await.unwrap(), Some(content.clone()));
        assert_eq!(server.store(&other).read_blob(&layer, 1 << 20).await.unwrap(), None);
    }
    // Who has the bytes may send them, and has them then.
    let has = server.store(&other);
    has.write_blob(&layer, BlobSource::Bytes(content.clone())).await.unwrap();
    for server in [&server, &second] {
        assert_eq!(server.store(&other).read_blob(&layer, 1 << 20).await.unwrap(), Some(content.clone()));
    }
}

/// Within a tenant, a repository's blobs are its own.
#[tokio::test]
async fn a_repositorys_blobs_are_read_only_through_it() {
    let server = Running::start().await;
    let owner = server.token_for("default", (&["main"], &["main"]), (&[], &["secret/*"])).await;
    let other = server.token_for("default", (&["main"], &["main"]), (&["open"], &["pr/*"])).await;
    let stranger = server.token("other", ALL, ALL).await;
    let (_, blob) = push_blob(&server, &owner, "secret/app", "layer").await;
    let image = manifest(&blob, None);
    let tag = "/v2/secret/app/manifests/1";
    assert_eq!(server.status(Method::PUT, tag, &owner, image.clone()).await, StatusCode::CREATED);
    for (thief, repository) in [(&other, "pr/x"), (&stranger, "secret/app"), (&stranger, "mine")] {
        for method in [Method::GET, Method::HEAD] {
            for path in [
                format!("/v2/secret/app/blobs/{blob}"),
                format!("/v2/{repository}/blobs/{blob}"),
                format!("/v2/{repository}/manifests/{}", Digest::of(&image)),
                format!("/v2/{repository}/manifests/1"),
                "/v2/secret/app/tags/list".to_owned(),
                format!("/api/v1/blobs/{blob}"),
            ] {
                assert_eq!(
                    server.status(method.clone(), &path, thief, "").await,
                    StatusCode::NOT_FOUND,
                    "{path}"
                );
            }
        }
        let ranged = server.request(Method::GET, &format!("/v2/{repository}/blobs/{blob}"), thief);
        assert_eq!(ranged.header("range", "bytes=0-0").send().await.unwrap().status(), StatusCode::NOT_FOUND);
        // A mount of what may not be seen begins an upload, as if it were nowhere; without a source too.
        for from in ["&from=secret/app", "", "&from=../secret/app", "&from=secret!app"] {
            let mount = format!("/v2/{repository}/blobs/uploads/?mount={blob}{from}");
            let expected = if *thief == stranger || from.is_empty() || repository == "pr/x" {
                StatusCode::ACCEPTED
            } else {
                StatusCode::CREATED
            };
            assert_eq!(server.status(Method::POST, &mount, thief, "").await, expected, "{mount}");
        }
        // A manifest that names it is refused: it would say that the bytes are there.
        let put =
            server.request(Method::PUT, &format!("/v2/{repository}/manifests/2"), thief).body(image.clone());
        let answer = put.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
        assert!(answer.text().await.unwrap().contains("MANIFEST_BLOB_UNKNOWN"));
    }
    // Listings of referrers are as empty as those of anything.
    let referrers = |repository: &str| format!("/v2/{repository}/referrers/{}", Digest::of(&image));
    let (_, empty) = server.json(Method::GET, &referrers("pr/x"), &other, json!({})).await;
    assert_eq!(empty["manifests"], json!([]));
    assert_eq!(server.status(Method::GET, &referrers("secret/app"), &other, "").await, StatusCode::NOT_FOUND);
}

/// An upload belongs to the token that began it.
#[tokio::test]
async fn uploads_of_others_are_none() {
    let server = Running::start().await;
    let (owner, other) =
        (server.token("default", ALL, ALL).await, server.token("default", &["main"], &["pr/7"]).await);
    let (_, answer) = server.json(Method::POST, "/api/v1/uploads", &owner, json!({})).await;
    let id = answer["upload"].as_str().unwrap();
    let path = format!("/api/v1/uploads/{id}");
    let append =
        |token: &str| server.request(Method::PATCH, &path, token).header("upload-offset", 0).body("x").send();
    assert_eq!(append(&other).await.unwrap().status(), StatusCode::NOT_FOUND);
    assert_eq!(server.status(Method::GET, &path, &other, "").await, StatusCode::NOT_FOUND);
    assert_eq!(server.status(Method::DELETE, &path, &other, "").await, StatusCode::NOT_FOUND);
    assert_eq!(append(&owner).await.unwrap().status(), StatusCode::NO_CONTENT);
    let recipe = json!({"upload": id, "parts": [{"offset": 0, "length": 1}]});
    let compose = format!("/api/v1/blobs/{}/compose", Digest::of("x"));
    assert_eq!(server.json(Method::POST, &compose, &other, recipe.clone()).await.0, StatusCode::NOT_FOUND);
    assert_eq!(server.json(Method::POST, &compose, &owner, recipe).await.0, StatusCode::CREATED);
}

/// Content that is not what its digest says is nowhere afterwards, by every way in.
#[tokio::test]
async fn digests_that_lie_are_found_out() {
    let server = Running::start().await;
    let token = server.token("default", ALL, ALL).await;
    let short = Digest::of("truth");
    let long: Digest = format!("sha512:{}", "0".repeat(128)).parse().unwrap();
    for lie in [short, long] {
        let (_, answer) = server.json(Method::POST, "/api/v1/uploads", &token, json!({})).await;
        let id = answer["upload"].as_str().unwrap().to_owned();
        let piece = server.request(Method::PATCH, &format!("/api/v1/uploads/{id}"), &token);
        piece.header("upload-offset", 0).body("lie").send().await.unwrap();
        let recipe = json!({"upload": id, "parts": [{"offset": 0, "length": 3}]}).to_string();
        let started = server.request(Method::POST, "/v2/a/blobs/uploads/", &token).send().await.unwrap();
        let session = started.headers()["location"].to_str().unwrap().to_owned();
        for (method, path, body) in [
            (Method::PUT, format!("/api/v1/blobs/{lie}"), "lie"),
            (Method::POST, format!("/api/v1/blobs/{lie}/compose"), &recipe),
            (Method::POST, format!("/v2/a/blobs/uploads/?digest={lie}"), "lie"),
            (Method::PUT, format!("{session}?digest={lie}"), "lie"),
            (Method::PUT, format!("/v2/a/manifests/{lie}"), "{}"),
        ] {
            let status = server.status(method, &path, &token, body.to_owned()).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{path}");
        }
        for path in
            [format!("/api/v1/blobs/{lie}"), format!("/v2/a/blobs/{lie}"), format!("/v2/a/manifests/{lie}")]
        {
            assert_eq!(server.status(Method::GET, &path, &token, "").await, StatusCode::NOT_FOUND, "{path}");
        }
    }
}

/// Uploads and questions without an end.
#[tokio::test]
async fn what_never_ends_is_ended() {
    let spool = tempfile::tempdir().unwrap();
    let kind = StorageKind::Directory(spool.path().join("storage"));
    let limits = Limits { blob_bytes_max: 100_000, uploads_max: 3, ..Limits::default() };
    let server = Running::over(kind, spool, limits).await;
    let token = server.token("default", ALL, ALL).await;
    let digest = Digest::of("x");
    let sessions = async |path: &str| server.request(Method::POST, path, &token).send().await.unwrap();
    let native = sessions("/api/v1/uploads").await.text().await.unwrap();
    let native: Value = serde_json::from_str(&native).unwrap();
    let native = format!("/api/v1/uploads/{}", native["upload"].as_str().unwrap());
    let registry = sessions("/v2/a/blobs/uploads/").await.headers()["location"].to_str().unwrap().to_owned();
    for (method, path) in [
        (Method::PUT, format!("/api/v1/blobs/{digest}")),
        (Method::PATCH, native),
        (Method::POST, format!("/v2/a/blobs/uploads/?digest={digest}")),
        (Method::PATCH, registry),
        (Method::PUT, format!("/api/v1/records/{digest}")),
        (Method::PUT, format!("/api/v1/bundles/{digest}?scope=main")),
        (Method::PUT, "/v2/a/manifests/1".to_owned()),
        (Method::POST, "/api/v1/blobs/missing".to_owned()),
        (Method::POST, "/api/v1/session".to_owned()),
        (Method::POST, "/token".to_owned()),
        (Method::PUT, format!("/api/v1/leases/{digest}?scope=main")),
    ] {
        // It takes as long as somebody reads.
        let endless = futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b'['; 64 << 10]));
        let request = server.request(method.clone(), &path, &token).header("upload-offset", 0);
        let answer =
            request.body(reqwest::Body::wrap_stream(endless)).timeout(Duration::from_mins(1)).send().await;
        // The server may have closed the connection before its answer was read.
        if let Ok(answer) = answer {
            assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE, "{method} {path}");
        } else if let Err(error) = answer {
            assert!(!error.is_timeout(), "{method} {path}: {error}");
        }
    }
    // Sessions without number.
    assert_eq!(sessions("/api/v1/uploads").await.status(), StatusCode::CREATED);
    for path in ["/api/v1/uploads", "/v2/a/blobs/uploads/"] {
        let refused = sessions(path).await;
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert!(refused.headers().contains_key("retry-after"));
    }
    assert_eq!(server.status(Method::GET, "/livez", "", "").await, StatusCode::OK);
}

/// Paths of the registry that are none.
#[tokio::test]
async fn names_of_repositories_lead_nowhere_else() {
    let server = Running::start().await;
    let token = server.token("default", ALL, ALL).await;
    let digest = Digest::of("x");
    let long = "a/".repeat(5000);
    for name in [
        "..",
        "%2e%2e",
        "a%2f..%2f..",
        "a/..%2fb",
        "a%00b",
        "a%5cb",
        "a!b",
        "a//b",
        "%2fa",
        "a%20b",
        "A",
        "%ff",
        "a%252f..",
        &format!("{long}a"),
    ] {
        for (method, rest) in [
            (Method::GET, "tags/list".to_owned()),
            (Method::GET, format!("blobs/{digest}")),
            (Method::PUT, "manifests/1".to_owned()),
            (Method::POST, format!("blobs/uploads/?digest={digest}")),
        ] {
            // As it stands: a client's own library would tidy it up.
            let request = format!(
                "{method} /v2/{name}/{rest} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\
                 Content-Length: 1\r\nConnection: close\r\n\r\nx"
            );
            let answer = server.raw(request.as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 4"), "{method} {name:.40}/{rest}: {answer:.100}");
        }
    }
    let tag = format!("/v2/a/manifests/{}", "t".repeat(10_000));
    assert_eq!(server.status(Method::GET, &tag, &token, "").await, StatusCode::BAD_REQUEST);
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
