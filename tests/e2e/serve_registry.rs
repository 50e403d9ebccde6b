//! The registry of `crossdock serve`: the official conformance suite, and the clients that people have.

#![allow(clippy::print_stdout, reason = "skipping is said aloud")]

use std::path::PathBuf;

use crossdock::digest::Digest;
use serde_json::{Value, json};

use crate::support::buildkit::{BuildKit, go_tool};
use crate::support::docker::Docker;
use crate::support::lab::Lab;
use crate::support::server::CacheServer;
use crate::support::{Context, Run, base, is_root, text};

/// A program that was built with Go; says so if it was not.
fn tool(name: &str) -> Option<PathBuf> {
    let found = go_tool(name);
    if found.is_none() {
        println!("skipped: `./test` builds {name} with Go");
    }
    found
}

#[test]
fn it_conforms_to_the_specification() {
    let Some(suite) = tool("conformance") else { return };
    let context = Context::new();
    let server = CacheServer::start(&context, "storage", &[]);
    let output = context
        .command(suite)
        .env("OCI_REGISTRY", &server.address)
        .env("OCI_TLS", "disabled")
        .env("OCI_VERSION", "1.1")
        .env("OCI_USERNAME", "anyone")
        .env("OCI_PASSWORD", &server.token)
        .env("OCI_API_BLOBS_UPLOAD_CANCEL", "true")
        .env("OCI_API_MANIFESTS_TAG_PARAM", "true")
        .success();
    let said = output.stdout() + &output.stderr();
    assert!(said.contains("OCI Conformance Test: Pass"), "{output}");
    for part in
        ["Blobs sha512", "Referrers", "Tag Param sha512", "Blob delete atomic", "Non-distributable Layers"]
    {
        let line = said.lines().find(|line| line.trim_start().starts_with(part));
        assert!(line.is_some_and(|line| line.trim_end().ends_with("Pass")), "{part}: {line:?}\n{output}");
    }
    let failures = said.lines().find(|line| line.trim_start().starts_with("FAIL"));
    assert!(failures.is_some_and(|line| line.trim_end().ends_with(" 0")), "{output}");
    assert!(!said.contains("failed test"), "{output}");
}

/// Pushes the busybox base with skopeo.
fn push(context: &Context, server: &CacheServer, name: &str) {
    let policy = context.write("policy.json", r#"{"default":[{"type":"insecureAcceptAnything"}]}"#);
    let from = format!("oci:{}", text(base::busybox()));
    let run = context
        .command("skopeo")
        .option_path("--policy", "", &policy)
        .args(["copy", "--dest-tls-verify=false"]);
    let run = run.args(["--dest-creds", &format!("x:{}", server.token), &from]);
    run.arg(format!("docker://{}/{name}", server.address)).success();
}

fn skopeo(context: &Context, server: &CacheServer, command: &str, name: &str) -> Run {
    let run = context.command("skopeo").args([command, "--tls-verify=false"]);
    let run = run.args(["--creds", &format!("x:{}", server.token)]);
    run.arg(format!("docker://{}/{name}", server.address))
}

#[test]
fn skopeo_pushes_lists_pulls_and_deletes() {
    let context = Context::new();
    let server = CacheServer::start(&context, "storage", &[]);
    push(&context, &server, "team/app:v1");
    push(&context, &server, "team/app:v2");
    let tags: Value =
        serde_json::from_str(&skopeo(&context, &server, "list-tags", "team/app").success().stdout()).unwrap();
    assert_eq!(tags["Tags"], json!(["v1", "v2"]));
    skopeo(&context, &server, "inspect", "team/app:v1").success().says("sha256:");
    // By digest, so that both tags go.
    skopeo(&context, &server, "delete", "team/app:v1").success();
    skopeo(&context, &server, "inspect", "team/app:v1").failure().says("manifest unknown");
    skopeo(&context, &server, "inspect", "team/app:v2").failure().says("manifest unknown");
    skopeo(&context, &server, "list-tags", "nothing/here").failure().says("404");
    let nobody = context.command("skopeo").args(["inspect", "--tls-verify=false"]);
    nobody.arg(format!("docker://{}/team/app:v1", server.address)).failure().says("log in");
}

#[test]
fn podman_pulls_and_pushes() {
    let context = Context::new();
    let server = CacheServer::start(&context, "storage", &[]);
    push(&context, &server, "busybox:1");
    context.write(
        "storage.conf",
        format!(
            "[storage]\ndriver = \"vfs\"\ngraphroot = \"{0}/root\"\nrunroot = \"{0}/run\"\n",
            context.path("podman").display()
        ),
    );
    let podman = |args: &[&str]| {
        let run = context.command("podman").env("CONTAINERS_STORAGE_CONF", context.path("storage.conf"));
        run.args(args).env("REGISTRY_AUTH_FILE", context.path("auth.json"))
    };
    let login = ["login", "--tls-verify=false", "--username", "x", "--password-stdin", &server.address];
    podman(&login).stdin(server.token.clone()).success();
    let name = format!("{}/busybox:1", server.address);
    let other = format!("{}/other/busybox:2", server.address);
    podman(&["pull", "--tls-verify=false", &name]).success();
    podman(&["push", "--tls-verify=false", &name, &other]).success();
    skopeo(&context, &server, "inspect", "other/busybox:2").success();
    let mut wrong = server.token.clone();
    wrong.push('x');
    podman(&login).stdin(wrong).failure();
}

#[test]
fn docker_pulls_and_pushes() {
    if !is_root() {
        println!("skipped: a Docker engine needs root");
        return;
    }
    let context = Context::new();
    let server = CacheServer::start(&context, "storage", &[]);
    let docker = Docker::start(&context);
    let run = |args: &[&str]| docker.command(&context).args(args);
    let login = ["login", "--username", "x", "--password-stdin", &server.address];
    run(&login).stdin(server.token.clone()).success();
    // Docker's engine of Debian pulls layers with gzip only.
    context.write("app/Dockerfile", "FROM scratch\nCOPY file /file\nCMD [\"/none\"]\n");
    context.write("app/file", "content\n");
    let name = format!("{}/app:1", server.address);
    let build = context.build().args(["--push", "--compression", "gzip", "--tag", &name]);
    build.arg(context.path("app")).success();
    run(&["pull", &name]).success();
    let copy = format!("{}/copies/app:2", server.address);
    run(&["tag", &name, &copy]).success();
    server.asked();
    run(&["push", &copy]).success();
    let mounted = |line: &String| line.starts_with("POST /v2/copies/app/blobs/uploads/ 201");
    assert!(server.asked().iter().any(mounted), "layers are mounted");
    run(&["rmi", &name, &copy]).success();
    run(&["pull", &copy]).success();
}

#[test]
fn crane_copies_with_mounts() {
    let Some(crane) = tool("crane") else { return };
    let context = Context::new();
    let server = CacheServer::start(&context, "storage", &[]);
    push(&context, &server, "a:1");
    let run = |args: &[&str]| context.command(&crane).args(args).arg("--insecure");
    let (from, to) = (format!("{}/a:1", server.address), format!("{}/b/c:2", server.address));
    run(&["auth", "login", &server.address, "-u", "x", "-p", &server.token]).success();
    server.asked();
    run(&["copy", &from, &to]).success();
    let asked = server.asked();
    assert!(!asked.iter().any(|asked| asked.starts_with("PATCH")), "nothing is sent again: {asked:#?}");
    assert_eq!(run(&["digest", &from]).success().stdout(), run(&["digest", &to]).success().stdout());
    assert_eq!(run(&["ls", &format!("{}/b/c", server.address)]).success().stdout(), "2\n");
    run(&["validate", "--remote", &to]).success();
    run(&["delete", &to]).success();
    run(&["manifest", &to]).failure().says("MANIFEST_UNKNOWN");
}

/// What is built here is pushed there, and built upon by the next.
#[test]
fn builds_push_and_pull() {
    let lab = Lab::new();
    let server = CacheServer::start(&lab.context, "storage", &[]);
    let auth = base64_of(&format!("x:{}", server.token));
    lab.context.write(
        "home/.docker/config.json",
        json!({"auths": {server.address.as_str(): {"auth": auth}}}).to_string(),
    );
    let name = format!("{}/team/base:1", server.address);
    lab.build("FROM busybox\nRUN echo base > /base\n").args(["--push", "--tag", &name]).success();
    let image = lab.image(&format!("FROM {name}\nRUN cp /base /copy\n"));
    assert_eq!(crate::support::oci::content(&image.tree(), "copy"), "base\n");
    // A token that may not push says so.
    let reader = server.create_token(&lab.context, &[]);
    let auth = base64_of(&format!("x:{reader}"));
    lab.context.write(
        "home/.docker/config.json",
        json!({"auths": {server.address.as_str(): {"auth": auth}}}).to_string(),
    );
    let denied = lab.build("FROM busybox\nRUN true\n").args(["--push", "--tag", &name]).failure();
    assert!(denied.stderr().contains("may not push"), "{denied}");
}

fn base64_of(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// BuildKit keeps its cache in it, and takes it as a registry of base images.
#[test]
fn buildkit_keeps_its_cache_in_it() {
    if !is_root() || tool("buildkitd").is_none() {
        println!("skipped: needs root and BuildKit");
        return;
    }
    let context = Context::new();
    let server = CacheServer::start(&context, "storage", &["--insecure-no-auth"]);
    let lab = Lab::of(context);
    let policy = lab.context.write("policy.json", r#"{"default":[{"type":"insecureAcceptAnything"}]}"#);
    let run = lab.context.command("skopeo").option_path("--policy", "", &policy);
    let run = run.args(["copy", "--dest-tls-verify=false", &format!("oci:{}", text(base::busybox()))]);
    run.arg(format!("docker://{}/busybox:1", server.address)).success();
    let dockerfile =
        format!("FROM {}/busybox:1\nRUN head -c 8 /dev/urandom | od > /random\n", server.address);
    lab.file("Dockerfile", dockerfile);
    let daemon = BuildKit::start(&lab.context).expect("it is there");
    let build = |number: u32| {
        let cache = format!("type=registry,ref={}/cache:1", server.address);
        let directory = lab.context.path("project");
        let run = daemon.command(&lab.context).args(["build", "--frontend=dockerfile.v0"]);
        run.option_path("--local", "context=", &directory)
            .option_path("--local", "dockerfile=", &directory)
            .args(["--export-cache", &format!("{cache},mode=max"), "--import-cache", &cache])
            .option_path("--output", "type=local,dest=", lab.context.path(format!("out-{number}")))
            .success();
        std::fs::read(lab.context.path(format!("out-{number}/random"))).unwrap()
    };
    let first = build(1);
    daemon.command(&lab.context).args(["prune", "--all"]).success();
    assert_eq!(first, build(2), "taken from the cache in the registry");
}

/// A blob is readable only through a repository that the reader may see, by whatever route.
#[test]
fn repositories_do_not_leak() {
    let context = Context::new();
    let server = CacheServer::start(&context, "storage", &[]);
    push(&context, &server, "secret/app:1");
    let manifest: Value = serde_json::from_str(
        &skopeo(&context, &server, "inspect", "secret/app:1").arg("--raw").success().stdout(),
    )
    .unwrap();
    let layer = manifest["layers"][0]["digest"].as_str().unwrap().to_owned();
    let tenant = server.create_token(&context, &["--tenant", "other", "--push", "*"]);
    let public = server.create_token(&context, &["--pull", "public/*", "--push", "public/*"]);
    let curl = |token: &str, args: &[&str], path: &str| {
        let run = context.command("curl").args(["--silent", "--show-error", "--path-as-is", "--user"]);
        let run = run.arg(format!("x:{token}")).args(args);
        let output =
            run.args(["--write-out", "\n%{http_code}"]).arg(format!("{}{path}", server.url())).success();
        let text = output.stdout();
        let (body, status) = text.rsplit_once('\n').unwrap();
        (status.to_owned(), body.to_owned())
    };
    for thief in [&tenant, &public] {
        for path in [
            format!("/v2/secret/app/blobs/{layer}"),
            "/v2/secret/app/manifests/1".to_owned(),
            "/v2/secret/app/tags/list".to_owned(),
            format!("/v2/public/x/blobs/{layer}"),
            format!("/v2/public/../secret/app/blobs/{layer}"),
            format!("/v2/public%2f..%2fsecret/app/blobs/{layer}"),
        ] {
            for args in [&[][..], &["--range", "0-3"], &["--head"]] {
                let (status, _) = curl(thief, args, &path);
                assert!(["404", "400"].contains(&status.as_str()), "{path} {args:?}: {status}");
            }
        }
        // The same answer as for what is nowhere.
        let nowhere = Digest::of("nowhere").to_string();
        let (_, theirs) = curl(thief, &[], &format!("/v2/secret/app/blobs/{layer}"));
        let (_, none) = curl(thief, &[], &format!("/v2/nothing/app/blobs/{nowhere}"));
        assert_eq!(theirs, none);
        let mount = format!("/v2/public/x/blobs/uploads/?mount={layer}&from=secret/app");
        assert_eq!(curl(thief, &["--request", "POST"], &mount).0, "202", "an upload instead of a mount");
        let anonymous = format!("/v2/public/x/blobs/uploads/?mount={layer}");
        assert_eq!(curl(thief, &["--request", "POST"], &anonymous).0, "202");
        let config = &manifest["config"];
        let stolen = json!({"schemaVersion": 2, "mediaType": manifest["mediaType"], "config": config, "layers": manifest["layers"]});
        let kind = format!("Content-Type: {}", manifest["mediaType"].as_str().unwrap());
        let body = stolen.to_string();
        let put = ["--request", "PUT", "--header", &kind, "--data-binary", &body];
        let (status, answer) = curl(thief, &put, "/v2/public/x/manifests/1");
        assert_eq!(status, "400", "{answer}");
        assert!(answer.contains("MANIFEST_BLOB_UNKNOWN"), "{answer}");
    }
    // Nobody may push where they may only pull, nor see where they may not.
    let reader = server.create_token(&context, &["--pull", "secret/*"]);
    assert_eq!(curl(&reader, &[], "/v2/secret/app/manifests/1").0, "200");
    for (method, path) in [
        ("POST", "/v2/secret/app/blobs/uploads/".to_owned()),
        ("PUT", "/v2/secret/app/manifests/1".to_owned()),
        ("DELETE", "/v2/secret/app/manifests/1".to_owned()),
        ("DELETE", format!("/v2/secret/app/blobs/{layer}")),
    ] {
        let (status, answer) = curl(&reader, &["--request", method], &path);
        assert_eq!(status, "403", "{method} {path}");
        assert!(answer.contains("DENIED"), "{answer}");
        assert_eq!(curl(&public, &["--request", method], &path).0, "404", "{method} {path}");
    }
    assert_eq!(curl(&reader, &[], "/v2/other/app/tags/list").0, "404");
    // A digest that lies, a manifest that is none.
    let lie = format!("/v2/public/x/blobs/uploads/?digest={layer}");
    let (status, answer) = curl(&public, &["--request", "POST", "--data-binary", "a lie"], &lie);
    assert_eq!((status.as_str(), answer.contains("DIGEST_INVALID")), ("400", true), "{answer}");
    let kind = "Content-Type: application/vnd.oci.image.manifest.v1+json";
    for garbage in [
        "",
        "[",
        "{}",
        "{\"schemaVersion\": 1}",
        "{\"schemaVersion\": 2, \"layers\": [{\"digest\": \"..\"}]}",
    ] {
        let put = ["--request", "PUT", "--header", kind, "--data-binary", garbage];
        let (status, answer) = curl(&public, &put, "/v2/public/x/manifests/1");
        assert_eq!(
            (status.as_str(), answer.contains("MANIFEST_INVALID")),
            ("400", true),
            "{garbage}: {answer}"
        );
    }
}
