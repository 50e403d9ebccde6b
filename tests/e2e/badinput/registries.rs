//! Registries that lie, stall, or never stop.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::aftermath::{assert_nothing_left, assert_told};
use crate::support::chance::rounds;
use crate::support::hostile::{Answer, Hostile};
use crate::support::lab::Lab;
use crate::support::oci::{self, TarBuilder, content};
use crate::support::registry::Registry;
use crate::support::{Context, Output, base, text};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A small image, in parts that can be replaced.
struct Parts {
    manifest: Vec<u8>,
    config: Vec<u8>,
    layer: Vec<u8>,
}

impl Parts {
    fn new() -> Self {
        let layer = TarBuilder::new().file("file", 0o644, b"content").finish();
        let config = json!({
            "architecture": oci::architecture(), "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [oci::digest(&layer)]},
        });
        Self::of(config.to_string().into_bytes(), layer, |_| {})
    }

    /// With a manifest that was changed.
    fn of(config: Vec<u8>, layer: Vec<u8>, change: impl FnOnce(&mut Value)) -> Self {
        let mut manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": oci::digest(&config), "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": oci::digest(&layer), "size": layer.len(),
            }],
        });
        change(&mut manifest);
        Self { manifest: manifest.to_string().into_bytes(), config, layer }
    }

    /// What an honest registry answers.
    fn answer(&self, request: &str) -> Answer {
        let path = request.split_once(' ').map_or("", |(_, path)| path);
        if path.contains("/manifests/") {
            return manifest(&self.manifest);
        }
        for blob in [&self.config, &self.layer] {
            if path.ends_with(&oci::digest(blob)) {
                return Answer::Full(200, Vec::new(), blob.clone());
            }
        }
        Answer::Full(404, Vec::new(), b"{}".to_vec())
    }

    /// Whether a request is for the layer.
    fn is_layer(&self, request: &str) -> bool {
        request.ends_with(&oci::digest(&self.layer))
    }
}

fn typed(media_type: &str) -> Vec<String> {
    vec![format!("Content-Type: {media_type}")]
}

fn manifest(bytes: &[u8]) -> Answer {
    Answer::Full(200, typed(MANIFEST), bytes.to_vec())
}

/// Builds on an image of a server that answers so, which must fail in good time, tell of the image and say `parts`.
#[track_caller]
fn refused(
    what: &str,
    parts: &[&str],
    handler: impl Fn(&str, &str) -> Answer + Send + Sync + 'static,
) -> Output {
    let lab = Lab::new();
    let server = Hostile::start(handler);
    let name = format!("{}/hostile/image:1", server.address());
    let started = Instant::now();
    let output = lab.build(&format!("FROM {name}\nCOPY --from={name} /file /again\nRUN true\n")).failure();
    let elapsed = started.elapsed();
    assert_eq!(output.status.code(), Some(1), "{what}: {output}");
    assert_told(&output, &[server.address()]);
    assert_told(&output, parts);
    assert!(elapsed < Duration::from_mins(2), "{what}: took {elapsed:?}");
    assert_nothing_left(&lab);
    // The same cache serves the next build, from an image that is what it says.
    drop(server);
    let tree = lab.image("FROM busybox\nRUN echo fine > /file\n").tree();
    assert_eq!(content(&tree, "file"), "fine\n", "{what}");
    output
}

#[test]
fn manifests_that_are_none() {
    refused("HTML", &["manifest"], |_, _| {
        Answer::Full(200, typed("text/html"), b"<html>Please log in to the hotel's network</html>".to_vec())
    });
    refused("cut off", &["manifest"], |_, _| manifest(&Parts::new().manifest[..100]));
    refused("nested", &["manifest"], |_, _| manifest(&b"[".repeat(100_000)));
    refused("other numbers", &["manifest"], |_, _| {
        manifest(
            &Parts::of(b"{}".to_vec(), b"x".to_vec(), |manifest| manifest["config"]["size"] = json!(-1))
                .manifest,
        )
    });
    refused("no digest", &["manifest"], |_, _| {
        let broken =
            |manifest: &mut Value| manifest["layers"][0]["digest"] = json!("sha256:../../../etc/passwd");
        manifest(&Parts::of(b"{}".to_vec(), b"x".to_vec(), broken).manifest)
    });
}

#[test]
fn documents_without_end() {
    refused("endless manifest", &["more than the"], |_, _| {
        Answer::Endless(typed(MANIFEST), vec![b' '; 64 << 10])
    });
    let length = vec![format!("Content-Type: {MANIFEST}"), "Content-Length: 1099511627776".to_owned()];
    refused("a manifest of a TiB", &["more than the"], move |_, _| {
        Answer::Endless(length.clone(), vec![b' '; 64 << 10])
    });
    let parts = Parts::new();
    refused("endless configuration", &["more than the"], move |request, _| {
        if request.contains("/manifests/") {
            return parts.answer(request);
        }
        Answer::Endless(Vec::new(), vec![b' '; 64 << 10])
    });
    refused("endless headers", &[], |_, _| {
        let header = format!("HTTP/1.1 200 OK\r\n{}", "X-Header: again and again\r\n".repeat(100_000));
        Answer::Raw(header.into_bytes())
    });
}

#[test]
fn indexes_that_lead_in_circles() {
    let index = json!({
        "schemaVersion": 2, "mediaType": INDEX,
        "manifests": [{
            "mediaType": INDEX, "digest": format!("sha256:{}", "0".repeat(64)), "size": 100,
            "platform": {"os": "linux", "architecture": oci::architecture()},
        }],
    });
    let bytes = index.to_string().into_bytes();
    refused("an index of itself", &["digest"], move |_, _| Answer::Full(200, typed(INDEX), bytes.clone()));
    // A chain of them, each with its right digest.
    let mut chain: Vec<Vec<u8>> = vec![Parts::new().manifest];
    for _ in 0..20 {
        let inner = chain.last().unwrap();
        let outer = json!({
            "schemaVersion": 2, "mediaType": INDEX,
            "manifests": [{
                "mediaType": if chain.len() == 1 { MANIFEST } else { INDEX }, "digest": oci::digest(inner), "size": inner.len(),
                "platform": {"os": "linux", "architecture": oci::architecture()},
            }],
        });
        chain.push(outer.to_string().into_bytes());
    }
    refused("a chain of indexes", &["index"], move |request, _| {
        let wanted = chain.iter().find(|document| request.ends_with(&oci::digest(document)));
        let document = wanted.unwrap_or_else(|| chain.last().unwrap());
        let kind = if document == &chain[0] { MANIFEST } else { INDEX };
        Answer::Full(200, typed(kind), document.clone())
    });
}

#[test]
fn blobs_that_are_something_else() {
    let changed = |change: fn(Vec<u8>) -> Answer| {
        let parts = Parts::new();
        move |request: &str, _: &str| {
            if parts.is_layer(request) { change(parts.layer.clone()) } else { parts.answer(request) }
        }
    };
    refused(
        "another content",
        &["sha256:"],
        changed(|mut layer| {
            layer[600] ^= 1;
            Answer::Full(200, Vec::new(), layer)
        }),
    );
    refused(
        "too long",
        &["bytes"],
        changed(|layer| Answer::Full(200, Vec::new(), [layer, vec![0; 512]].concat())),
    );
    refused("endless", &["bytes"], changed(|_| Answer::Endless(Vec::new(), vec![0; 64 << 10])));
    refused(
        "of a TiB",
        &["bytes"],
        changed(|_| Answer::Endless(vec!["Content-Length: 1099511627776".to_owned()], vec![0; 64 << 10])),
    );
    refused(
        "cut off each time",
        &[],
        changed(|layer| Answer::Lying(layer.len() as u64, Vec::new(), layer[..700].to_vec())),
    );
    // An honest digest of a layer that is not what the configuration says.
    let other =
        Parts::of(Parts::new().config, TarBuilder::new().file("file", 0o644, b"other").finish(), |_| {});
    refused("another layer", &["diff"], move |request, _| other.answer(request));
    // The right digest of what is no tar.
    let junk = b"no tar at all".repeat(1000);
    let config = json!({
        "architecture": oci::architecture(), "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [oci::digest(&junk)]},
    });
    let junk = Parts::of(config.to_string().into_bytes(), junk, |_| {});
    refused("no tar", &["tar"], move |request, _| junk.answer(request));
}

#[test]
fn redirects_and_tokens_without_end() {
    refused("a circle", &["redirects more than"], |request, address| {
        let path = request.split_once(' ').map_or("", |(_, path)| path);
        Answer::Full(307, vec![format!("Location: http://{address}{path}x")], Vec::new())
    });
    refused("to another protocol", &["redirects to"], |_, _| {
        Answer::Full(302, vec!["Location: file:///etc/passwd".to_owned()], Vec::new())
    });
    refused("to nowhere", &["redirects to nowhere"], |_, _| Answer::Full(302, Vec::new(), Vec::new()));
    let challenged = |token: fn() -> Answer| {
        move |request: &str, address: &str| {
            if request.contains("/token") {
                return token();
            }
            let challenge =
                format!("WWW-Authenticate: Bearer realm=\"http://{address}/token\",service=\"s\"");
            Answer::Full(401, vec![challenge], Vec::new())
        }
    };
    refused(
        "an endless token",
        &["more than the"],
        challenged(|| Answer::Endless(Vec::new(), vec![b'x'; 64 << 10])),
    );
    refused(
        "a huge token",
        &[],
        challenged(|| {
            Answer::Full(200, Vec::new(), format!("{{\"token\":\"{}\"}}", "x".repeat(900_000)).into_bytes())
        }),
    );
    refused(
        "no token",
        &["token"],
        challenged(|| Answer::Full(200, Vec::new(), b"{\"token\": [1]}".to_vec())),
    );
    refused(
        "a token with a line break",
        &[],
        challenged(|| Answer::Full(200, Vec::new(), b"{\"token\": \"a\\r\\nX-Injected: b\"}".to_vec())),
    );
    refused(
        "a token that does not help",
        &["401"],
        challenged(|| Answer::Full(200, Vec::new(), b"{\"token\": \"good\"}".to_vec())),
    );
}

#[test]
fn what_is_no_http() {
    refused("noise", &[], |_, _| Answer::Raw(vec![0xff; 10_000]));
    refused("nothing", &[], |_, _| Answer::Raw(Vec::new()));
}

/// Takes minutes, as a registry that is only slow must not be given up at once.
#[test]
fn silence_and_drips_end() {
    if rounds(1) < 10 {
        return;
    }
    let silent = |handler: fn(&Parts, &str) -> Answer| {
        let lab = Lab::new();
        let server = Hostile::start(move |request, _| handler(&Parts::new(), request));
        let name = format!("{}/silent/image:1", server.address());
        let build = lab.build(&format!("FROM {name}\nRUN true\n")).timeout(Duration::from_mins(8));
        let output = build.failure();
        assert_told(&output, &[server.address()]);
        assert_nothing_left(&lab);
    };
    std::thread::scope(|scope| {
        scope.spawn(|| silent(|_, _| Answer::Silence));
        scope.spawn(|| {
            silent(|parts, _| {
                Answer::Dripping(Duration::from_secs(1), typed(MANIFEST), parts.manifest.clone())
            });
        });
        scope.spawn(|| {
            silent(|parts, request| {
                if parts.is_layer(request) {
                    return Answer::Dripping(Duration::from_secs(1), Vec::new(), parts.layer.clone());
                }
                parts.answer(request)
            });
        });
    });
}

/// Pushing to what takes nothing.
#[test]
fn a_push_to_a_hostile_registry_fails_and_another_one_works() {
    let lab = Lab::new();
    let dockerfile = "FROM busybox\nRUN echo built > /file\n";
    for answer in [
        Answer::Full(202, vec!["Location: http://127.0.0.1:1/nowhere".to_owned()], Vec::new()),
        Answer::Full(202, Vec::new(), Vec::new()),
        Answer::Full(201, Vec::new(), Vec::new()),
        Answer::Full(
            507,
            Vec::new(),
            b"{\"errors\":[{\"code\":\"QUOTA\",\"message\":\"the disk is full\"}]}".to_vec(),
        ),
    ] {
        let server = Hostile::start(move |request, _| {
            if request.starts_with("HEAD ") || request.starts_with("GET ") {
                Answer::Full(404, Vec::new(), Vec::new())
            } else {
                answer.clone()
            }
        });
        let tag = format!("{}/app:1", server.address());
        let output = lab.build(dockerfile).args(["--push", "--tag", &tag]).output();
        // A registry that says "created" to everything cannot be found out by one who only pushes.
        if !output.status.success() {
            assert_told(&output, &[server.address()]);
        }
        assert_nothing_left(&lab);
    }
    let registry = Registry::start();
    let tag = format!("{}/app:1", registry.address());
    lab.build(dockerfile).args(["--push", "--tag", &tag]).success();
    let layout = lab.context.path("pulled");
    pull(&lab.context, &tag, &layout);
    assert_eq!(content(&oci::Image::read(&layout).tree(), "file"), "built\n");
    assert!(base::busybox().is_dir());
}

fn pull(context: &Context, name: &str, layout: &std::path::Path) {
    context
        .command("skopeo")
        .args([
            "copy",
            "--src-tls-verify=false",
            &format!("docker://{name}"),
            &format!("oci:{}:latest", text(layout)),
        ])
        .success();
}
