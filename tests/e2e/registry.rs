//! Our client, sources and destinations against a real registry, with skopeo as the independent opinion.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use crossdock::digest::Digest;
use crossdock::hint::Hint as _;
use crossdock::image::{Descriptor, ImageConfig, Manifest, media_types};
use crossdock::layer::MediaType;
use crossdock::platform::Platform;
use crossdock::reference::Reference;
use crossdock::registry::{
    ArchiveSource, BlobProvider, BoxError, Client, ClientOptions, CredentialFile, ImageBundle, ImageSet,
    ImageSource, NoCredentials, OciLayoutSource, Output, PushLayer, RegistrySource, export_docker_archive,
    export_oci_archive, export_oci_layout, push,
};
use crossdock::store::BlobSource;

use crate::support::registry::{PASSWORD, Registry, USER};

struct Files(BTreeMap<Digest, PathBuf>);

#[async_trait]
impl BlobProvider for Files {
    async fn open(&self, blob: &Descriptor) -> Result<BlobSource, BoxError> {
        Ok(BlobSource::File(self.0.get(&blob.digest).ok_or("no such layer")?.clone()))
    }
}

/// An image of two layers, the second one gzipped.
struct Sample {
    bundle: ImageBundle,
    blobs: Files,
}

fn layer(name: &str, size: usize) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(size as u64);
    header.set_mode(0o644);
    // Nothing that compresses well: a pretended upload in pieces must have several.
    let mut state = 1_u64;
    let content: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
    .take(size)
    .collect();
    builder.append_data(&mut header, name, &content[..]).unwrap();
    builder.into_inner().unwrap()
}

fn sample(dir: &Path) -> Sample {
    let (first, second) = (layer("first", 10), layer("second", 700_000));
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&second).unwrap();
    let compressed = gzip.finish().unwrap();
    let mut config = ImageConfig::new(&Platform::new("linux", "amd64", None));
    config.rootfs.diff_ids = vec![Digest::of(&first), Digest::of(&second)];
    config.config.env = vec!["A=b".to_owned()];
    let config = Bytes::from(config.to_bytes());
    let config_descriptor = Descriptor::of(media_types::OCI_CONFIG, &config);
    let descriptors = vec![
        Descriptor::of(MediaType::Tar.as_str(), &first),
        Descriptor::of(MediaType::Gzip.as_str(), &compressed),
    ];
    let mut paths = BTreeMap::new();
    for content in [&first, &compressed] {
        let path = dir.join(Digest::of(content).hex());
        fs_err::write(&path, content).unwrap();
        paths.insert(Digest::of(content), path);
    }
    let manifest = Manifest::new(config_descriptor.clone(), descriptors.clone());
    let layers_to_push = descriptors
        .into_iter()
        .map(|descriptor| PushLayer { descriptor, mount_candidates: Vec::new() })
        .collect();
    let bundle = ImageBundle {
        manifest: manifest.to_bytes().into(),
        media_type: media_types::OCI_MANIFEST.to_owned(),
        config,
        config_descriptor,
        layers: layers_to_push,
    };
    Sample { bundle, blobs: Files(paths) }
}

fn client(chunk_bytes: u64) -> Client {
    let options = ClientOptions { chunk_bytes, ..ClientOptions::default() };
    Client::new(options, Arc::new(NoCredentials)).unwrap()
}

/// Whether the programs are there; says so if not, since the test then proves nothing.
#[expect(clippy::print_stderr, reason = "the notice is for whoever reads the test's output")]
fn installed(programs: &[&str]) -> bool {
    let there = |program: &&str| {
        let mut command = Command::new(program);
        command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    };
    let missing: Vec<&str> = programs.iter().copied().filter(|program| !there(program)).collect();
    if !missing.is_empty() {
        eprintln!("skipped: not installed: {} (`./test` installs them)", missing.join(", "));
    }
    missing.is_empty()
}

fn skopeo(arguments: &[&str]) -> String {
    let output = Command::new("skopeo").arg("--insecure-policy").args(arguments).output().unwrap();
    assert!(output.status.success(), "skopeo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Resolves the image and fetches its layers; they must be those of `sample`, however compressed: skopeo compresses
/// what it copies.
async fn check(source: &dyn ImageSource, sample: &Sample, dir: &Path) {
    let image = source.resolve(&Platform::new("linux", "amd64", None)).await.unwrap();
    assert_eq!(image.config_bytes, sample.bundle.config);
    assert_eq!(image.manifest.layers.len(), sample.bundle.layers.len());
    for (layer, diff_id) in image.manifest.layers.iter().zip(&image.config.rootfs.diff_ids) {
        let path = dir.join("fetched");
        source.fetch_layer(layer, &path, &|_| {}).await.unwrap();
        let blob = fs_err::read(&path).unwrap();
        assert!(layer.digest.matches(&blob) && layer.size == blob.len() as u64);
        let mut tar = blob.clone();
        if MediaType::parse(&layer.media_type) == Some(MediaType::Gzip) {
            tar.clear();
            flate2::read::MultiGzDecoder::new(&blob[..]).read_to_end(&mut tar).unwrap();
        }
        assert!(diff_id.matches(&tar), "layer {}", layer.digest);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_we_push_skopeo_pulls() {
    if !installed(&["docker-registry", "skopeo"]) {
        return;
    }
    let server = Registry::start();
    let dir = tempfile::tempdir().unwrap();
    let mut sample = sample(dir.path());
    // In one piece, and in pieces of 100 kB.
    for (tag, client) in [("whole", client(1 << 30)), ("pieces", client(100_000))] {
        let reference: Reference = format!("{}/team/{tag}:v1", server.address()).parse().unwrap();
        let report = push(&client, &reference, &ImageSet::one(sample.bundle.clone()), &sample.blobs, &|_| {})
            .await
            .unwrap();
        assert_eq!((report.uploaded, report.existed, report.unchanged), (3, 0, false));
        let address = format!("docker://{reference}");
        let manifest = skopeo(&["inspect", "--raw", "--tls-verify=false", &address]);
        assert_eq!(manifest.as_bytes(), sample.bundle.manifest);
        let layout = dir.path().join(tag);
        let target = format!("oci:{}:v1", layout.display());
        skopeo(&["copy", "--src-tls-verify=false", &address, &target]);
        let source = OciLayoutSource::new(format!("oci-layout://{}:v1", layout.display()).parse().unwrap());
        check(&source, &sample, dir.path()).await;
        check(&RegistrySource::new(client, reference), &sample, dir.path()).await;
    }

    let client = client(1 << 30);
    let pushed: Reference = format!("{}/team/whole:v1", server.address()).parse().unwrap();
    let report =
        push(&client, &pushed, &ImageSet::one(sample.bundle.clone()), &sample.blobs, &|_| {}).await.unwrap();
    assert!(report.unchanged && report.uploaded_bytes == 0);
    let retagged: Reference = format!("{}/team/whole:v2", server.address()).parse().unwrap();
    let report = push(&client, &retagged, &ImageSet::one(sample.bundle.clone()), &sample.blobs, &|_| {})
        .await
        .unwrap();
    assert_eq!((report.uploaded, report.existed), (0, 3));
    for layer in &mut sample.bundle.layers {
        layer.mount_candidates = vec![(server.address().to_owned(), "team/whole".to_owned())];
    }
    let other: Reference = format!("{}/other:v1", server.address()).parse().unwrap();
    let report =
        push(&client, &other, &ImageSet::one(sample.bundle.clone()), &sample.blobs, &|_| {}).await.unwrap();
    assert_eq!((report.mounted, report.uploaded), (2, 1));
    check(&RegistrySource::new(client, other), &sample, dir.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_skopeo_pushes_we_pull() {
    if !installed(&["docker-registry", "skopeo"]) {
        return;
    }
    let server = Registry::start();
    let dir = tempfile::tempdir().unwrap();
    let sample = sample(dir.path());
    let layout = dir.path().join("layout");
    let name: Reference = "docker.io/library/app:v1".parse().unwrap();
    export_oci_layout(&layout, &ImageSet::one(sample.bundle.clone()), &[name], &sample.blobs).await.unwrap();
    let source = format!("oci:{}:v1", layout.display());
    for (format, tag) in [("oci", "oci"), ("v2s2", "docker")] {
        let reference: Reference = format!("{}/pulled:{tag}", server.address()).parse().unwrap();
        let target = format!("docker://{reference}");
        skopeo(&["copy", "--dest-tls-verify=false", "--format", format, &source, &target]);
        let source = RegistrySource::new(client(1 << 30), reference);
        check(&source, &sample, dir.path()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_go_both_ways() {
    if !installed(&["skopeo"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let sample = sample(dir.path());
    let path = |name: &str| dir.path().join(name).display().to_string();
    let names: Vec<Reference> = vec!["example.com/app:v1".parse().unwrap()];
    export_oci_archive(
        Output::File(path("ours-oci.tar").into()),
        &ImageSet::one(sample.bundle.clone()),
        &names,
        &sample.blobs,
    )
    .await
    .unwrap();
    export_docker_archive(
        Output::File(path("ours-docker.tar").into()),
        &ImageSet::one(sample.bundle.clone()),
        &names,
        &sample.blobs,
    )
    .await
    .unwrap();

    skopeo(&[
        "copy",
        &format!("oci-archive:{}:v1", path("ours-oci.tar")),
        &format!("oci:{}:x", path("from-oci")),
    ]);
    let layout = OciLayoutSource::new(format!("{}:x", path("from-oci")).parse().unwrap());
    check(&layout, &sample, dir.path()).await;
    let ours = format!("docker-archive:{}:example.com/app:v1", path("ours-docker.tar"));
    skopeo(&["copy", &ours, &format!("dir:{}", path("from-docker"))]);
    let config: serde_json::Value = serde_json::from_str(&skopeo(&["inspect", "--config", &ours])).unwrap();
    assert_eq!(config["config"]["Env"][0], "A=b");

    let oci = format!("oci:{}:x", path("from-oci"));
    skopeo(&["copy", &oci, &format!("oci-archive:{}:y", path("theirs-oci.tar"))]);
    let theirs = ArchiveSource::open(Path::new(&path("theirs-oci.tar")), None, dir.path()).await.unwrap();
    check(&theirs, &sample, dir.path()).await;
    skopeo(&["copy", &oci, &format!("docker-archive:{}:example.com/app:v2", path("theirs-docker.tar"))]);
    let theirs = Path::new(&path("theirs-docker.tar")).to_owned();
    let theirs = ArchiveSource::open(&theirs, Some("example.com/app:v2"), dir.path()).await.unwrap();
    check(&theirs, &sample, dir.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_with_a_login_is_used_with_the_docker_configuration() {
    if !installed(&["docker-registry"]) {
        return;
    }
    let server = Registry::start_with_login();
    let dir = tempfile::tempdir().unwrap();
    let sample = sample(dir.path());
    let reference: Reference = format!("{}/private:v1", server.address()).parse().unwrap();
    let error =
        push(&client(1 << 30), &reference, &ImageSet::one(sample.bundle.clone()), &sample.blobs, &|_| {})
            .await
            .unwrap_err();
    assert!(error.hint().unwrap().contains("docker login"), "{error}");

    let config = serde_json::json!({"auths": {server.address(): {"username": USER, "password": PASSWORD}}});
    let credentials = CredentialFile::parse("config.json", &config.to_string()).unwrap();
    let client = Client::new(ClientOptions::default(), Arc::new(credentials)).unwrap();
    push(&client, &reference, &ImageSet::one(sample.bundle.clone()), &sample.blobs, &|_| {}).await.unwrap();
    check(&RegistrySource::new(client, reference), &sample, dir.path()).await;
}
