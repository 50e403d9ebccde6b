//! Another registry's images through a server, fetched once for all who ask.

use serde_json::Value;

use crate::support::counting::Counting;
use crate::support::lab::Lab;
use crate::support::registry::Registry;
use crate::support::server::CacheServer;
use crate::support::{Context, Run, base, text};

fn skopeo(context: &Context, command: &str) -> Run {
    let policy = context.write("policy.json", r#"{"default":[{"type":"insecureAcceptAnything"}]}"#);
    context.command("skopeo").option_path("--policy", "", &policy).arg(command)
}

/// Pushes an image to the registry: the busybox base, with `files` as a layer on top.
fn push(lab: &Lab, registry: &str, name: &str, file: &str) {
    lab.file("file", file);
    let build = lab.build("FROM busybox\nCOPY file /file\n").arg("--push");
    build.option("--tag", format!("{registry}/{name}")).success();
}

/// Pulls what the server has under `name` into a directory of its own.
fn pull(context: &Context, server: &CacheServer, name: &str, directory: &str) -> Run {
    let run = skopeo(context, "copy").args(["--src-tls-verify=false", "--src-creds"]);
    let run = run.args([format!("x:{}", server.token), format!("docker://{}/{name}", server.address)]);
    run.arg(format!("dir:{}", context.path(directory).display()))
}

fn layers(context: &Context, directory: &str) -> Vec<String> {
    let manifest = std::fs::read(context.path(directory).join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let layers = manifest["layers"].as_array().unwrap().iter();
    layers.map(|layer| layer["digest"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_mirror_fetches_once_and_outlives_the_other_registry() {
    let lab = Lab::new();
    let context = &lab.context;
    let registry = Registry::start();
    push(&lab, registry.address(), "team/app:1", "one");
    let counting = Counting::start(registry.address());
    let mirror = format!("up={}", counting.address());
    let start = |storage: &str| CacheServer::start(context, storage, &["--mirror", &mirror]);
    let mut server = start("storage");
    pull(context, &server, "up/team/app:1", "first").success();
    let requests = counting.take().requests();
    let blobs = |requests: &[String]| requests.iter().filter(|line| line.contains("/blobs/")).count();
    assert_eq!(blobs(&requests), layers(context, "first").len() + 1, "{requests:#?}");
    // Again, also by who says in another way what is meant: nothing is asked.
    pull(context, &server, "up/team/app:1", "second").success();
    let url = format!("http://{}/v2/team/app/manifests/1?ns={}", server.address, counting.address());
    let curl = context.command("curl").args(["-sf", "-u", &format!("x:{}", server.token), &url]);
    assert!(curl.success().stdout().contains("layers"));
    assert_eq!(counting.take().requests(), Vec::<String>::new());
    assert_eq!(layers(context, "first"), layers(context, "second"));
    // A base image by way of it.
    use base64::Engine as _;
    let auth = base64::engine::general_purpose::STANDARD.encode(format!("x:{}", server.token));
    let auths = serde_json::json!({"auths": {&server.address: {"auth": auth}}});
    context.write("home/.docker/config.json", auths.to_string());
    let build = lab.build(&format!("FROM {}/up/team/app:1\nRUN grep one /file\n", server.address));
    build.success();
    // A moved tag is noticed, here by a server that knows nothing yet of what is fresh.
    push(&lab, registry.address(), "team/app:1", "two");
    server.kill();
    let token = server.token.clone();
    let restart = || {
        let mut server = start("storage");
        server.token.clone_from(&token);
        server
    };
    let mut server = restart();
    pull(context, &server, "up/team/app:1", "third").success();
    assert_ne!(layers(context, "first"), layers(context, "third"));
    // Nobody pushes to it, and what is nowhere is nowhere.
    let refused = skopeo(context, "copy").args(["--dest-tls-verify=false", "--dest-creds"]);
    let refused = refused.args([&format!("x:{token}"), &format!("oci:{}", text(base::busybox()))]);
    refused.arg(format!("docker://{}/up/team/app:9", server.address)).failure().says("push there");
    pull(context, &server, "up/team/nothing:1", "nothing").failure().says("manifest unknown");
    // Gone: what is here goes on, also by servers that were not there then.
    drop(registry);
    server.kill();
    let server = restart();
    pull(context, &server, "up/team/app:1", "fourth").success();
    assert_eq!(layers(context, "third"), layers(context, "fourth"));
    pull(context, &server, "up/team/other:1", "other").failure();
    let fresh = start("other-storage");
    pull(context, &fresh, "up/team/app:1", "fresh").failure();
}

#[test]
fn what_a_mirror_gets_is_what_its_digest_says() {
    use crate::support::http::{Reply, Server};
    let context = Context::new();
    let (layer, config) = ("the layer", "{}");
    let digest = |text: &str| crossdock::digest::Digest::of(text).to_string();
    let (layer_digest, config_digest) = (digest(layer), digest(config));
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest, "size": config.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer_digest, "size": layer.len()}],
    })
    .to_string();
    let manifest_digest = digest(&manifest);
    let other = digest("other");
    let answer = {
        let (manifest, manifest_digest, config_digest) =
            (manifest.clone(), manifest_digest.clone(), config_digest.clone());
        move |request: &crate::support::http::Request| match request.path.rsplit('/').next().unwrap() {
            // What it says is not what it gives.
            "lying" => Reply::ok(manifest.clone()).header("Docker-Content-Digest", &digest("lie")),
            "good" => Reply::ok(manifest.clone())
                .header("Docker-Content-Digest", &manifest_digest)
                .header("Content-Type", "application/vnd.oci.image.manifest.v1+json"),
            name if name == manifest_digest => Reply::ok(manifest.clone()),
            name if name == config_digest => Reply::ok(config),
            _ => Reply::ok("not the layer"),
        }
    };
    let upstream = Server::new(answer);
    let host = upstream.url("").trim_start_matches("http://").trim_end_matches('/').to_owned();
    let server = CacheServer::start(&context, "storage", &["--mirror", &format!("up={host}")]);
    let get = |path: &str| {
        let run = context.command("curl").args(["-s", "-o", "answer", "-w", "%{http_code}", "-u"]);
        let run = run.arg(format!("x:{}", server.token)).arg(format!("http://{}/v2/{path}", server.address));
        run.success().stdout()
    };
    assert_eq!(get("up/app/manifests/good"), "200");
    assert_eq!(get("up/app/manifests/lying"), "503");
    assert_eq!(get(&format!("up/app/blobs/{config_digest}")), "200");
    assert_eq!(get(&format!("up/app/blobs/{layer_digest}")), "503", "it is something else");
    // Only what a manifest names is fetched, and only for this repository.
    assert_eq!(get(&format!("up/app/blobs/{other}")), "404");
    assert_eq!(get(&format!("up/else/blobs/{config_digest}")), "404");
    assert_eq!(get(&format!("app/blobs/{config_digest}")), "404");
    let asked = upstream.asked();
    assert!(!asked.iter().any(|path| path.contains(&other) || path.contains("/else/")), "{asked:#?}");
}

/// A manifest of another registry may name what a private repository here has: it is not had by that.
#[test]
fn a_mirrored_manifest_opens_nothing_that_its_registry_does_not_have() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    let lab = Lab::new();
    let context = &lab.context;
    let secret = "what only one repository has";
    let blob = crate::support::oci::digest(secret.as_bytes());
    let descriptor = serde_json::json!({"mediaType": "text/plain", "digest": blob, "size": secret.len()});
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": kind, "config": descriptor, "layers": [descriptor],
    });
    let manifest = manifest.to_string();
    let has_it = Arc::new(AtomicBool::new(false));
    let offers = Arc::clone(&has_it);
    let upstream = crate::support::http::Server::new(move |request| {
        use crate::support::http::Reply;
        if request.path.contains("/manifests/") {
            let digest = crate::support::oci::digest(manifest.as_bytes());
            let reply = Reply::ok(manifest.clone()).header("Content-Type", kind);
            reply.header("Docker-Content-Digest", &digest)
        } else if request.path == "/v2/"
            || (offers.load(Ordering::SeqCst) && request.path.contains("/blobs/"))
        {
            Reply::ok(secret)
        } else {
            Reply::new(404, "")
        }
    });
    let mirror = upstream.url("").replace("http://", "up=");
    let server = CacheServer::start(context, "storage", &["--mirror", mirror.trim_end_matches('/')]);
    let thief = server.create_token(context, &["--pull", "up/*"]);
    let ask = |token: &str, options: &[&str], path: &str| -> String {
        let url = format!("{}/v2/{path}", server.url());
        let curl = context.command("curl").args(["-s", "-o", "answer", "-w", "%{http_code}", "-u"]);
        curl.arg(format!("x:{token}")).args(options).arg(url).success().stdout()
    };
    let upload = format!("secret/app/blobs/uploads/?digest={blob}");
    assert_eq!(ask(&server.token, &["--data-binary", secret], &upload), "201");
    assert_eq!(ask(&thief, &[], "up/evil/manifests/1"), "200");
    let path = format!("up/evil/blobs/{blob}");
    assert_eq!(ask(&thief, &[], &path), "404", "read through a repository that never had it");
    assert_eq!(ask(&thief, &[], &format!("secret/app/blobs/{blob}")), "404");
    has_it.store(true, Ordering::SeqCst);
    assert_eq!(ask(&thief, &[], &path), "200");
}
