//! The base images that cases start from, each in two versions that differ by one file.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::oci::TarBuilder;
use crate::support::{Context, base, oci};

/// What `FROM name` is for both builders.
pub(crate) struct Base {
    /// As it stands in a Dockerfile.
    pub(crate) name: &'static str,
    versions: [Layout; 2],
}

/// An OCI layout directory with one image.
pub(crate) struct Layout {
    pub(crate) directory: PathBuf,
    pub(crate) digest: String,
}

impl Base {
    /// The usual version, or the one of the variation that changes the base.
    pub(crate) fn layout(&self, changed: bool) -> &Layout {
        &self.versions[usize::from(changed)]
    }
}

/// Makes all of them.
pub(crate) fn all(context: &Context) -> Vec<Base> {
    let busybox = oci::Image::read(base::busybox()).layers.remove(0);
    let path = json!(["PATH=/bin:/usr/bin"]);
    let shell = json!({"Env": path, "Cmd": ["/bin/sh"]});
    let configured = json!({
        "User": "app",
        "ExposedPorts": {"80/tcp": {}},
        "Env": ["PATH=/bin:/usr/bin", "FROM_BASE=yes", "SHADOWED=base"],
        "Entrypoint": ["/bin/echo", "base"],
        "Cmd": ["of", "base"],
        "Volumes": {"/base-volume": {}},
        "WorkingDir": "/home/app",
        "Labels": {"base": "label", "shadowed": "base"},
        "StopSignal": "SIGINT",
        "Healthcheck": {"Test": ["CMD", "true"], "Interval": 5_000_000_000_u64},
        "Shell": ["/bin/sh", "-e", "-c"],
    });
    let triggers = json!({
        "Env": path,
        "OnBuild": ["RUN echo triggered > /triggered", "COPY . /from-trigger", "ENV TRIGGERED=yes"],
    });
    let from_trigger = json!({"Env": path, "OnBuild": ["COPY --from=busybox /etc/group /from-busybox"]});
    let make = |name: &'static str, layers: &[&[u8]], config: &Value| base_of(context, name, layers, config);
    vec![
        make("busybox", &[&busybox], &shell),
        make("configured", &[&busybox], &configured),
        make("bare", &[&busybox], &json!({})),
        make("triggers", &[&busybox], &triggers),
        make("fromtrigger", &[&busybox], &from_trigger),
        annotated(make("annotated", &[&busybox], &shell)),
        make("distribution", &[&busybox, &distribution()], &shell),
        without_layers(context),
    ]
}

/// Gives an image's manifest annotations.
fn annotated(mut base: Base) -> Base {
    for layout in &mut base.versions {
        let blobs = layout.directory.join("blobs/sha256");
        let manifest = std::fs::read(blobs.join(layout.digest.strip_prefix("sha256:").unwrap())).unwrap();
        let mut manifest: Value = serde_json::from_slice(&manifest).unwrap();
        manifest["annotations"] = json!({"org.example.base": "annotation"});
        let manifest = manifest.to_string();
        let digest = oci::digest(manifest.as_bytes());
        std::fs::write(blobs.join(digest.strip_prefix("sha256:").unwrap()), &manifest).unwrap();
        let index = layout.directory.join("index.json");
        let mut document: Value = serde_json::from_slice(&std::fs::read(&index).unwrap()).unwrap();
        document["manifests"][0]["digest"] = json!(digest);
        document["manifests"][0]["size"] = json!(manifest.len());
        std::fs::write(index, document.to_string()).unwrap();
        layout.digest = digest;
    }
    base
}

fn base_of(context: &Context, name: &'static str, layers: &[&[u8]], config: &Value) -> Base {
    let versions = ["1", "2"].map(|version| {
        let last = TarBuilder::new()
            .directory("etc", 0o755)
            .file("etc/base-version", 0o644, format!("{version}\n").as_bytes())
            .finish();
        let mut layers = layers.to_vec();
        layers.push(&last);
        write(context, &format!("{name}-{version}"), &layers, config)
    });
    Base { name, versions }
}

/// What other distributions' images have and a Dockerfile made for them may read.
fn distribution() -> Vec<u8> {
    let bash = std::fs::read("/bin/bash-static").expect("no bash: `./test` installs bash-static");
    let passwd =
        "root:x:0:0::/root:/bin/sh\nbin:x:2:2::/bin:/bin/sh\nlp:x:7:7::/:/bin/sh\nmail:x:8:8::/:/bin/sh\n";
    TarBuilder::new()
        .file("etc/passwd", 0o644, passwd.as_bytes())
        .file("etc/group", 0o644, b"root:x:0:\nbin:x:2:\nadm:x:4:\nlp:x:7:\nmail:x:8:\n")
        .file("etc/nsswitch.conf", 0o644, b"hosts: files dns\n")
        .file("etc/os-release", 0o644, b"ID=distribution\n")
        .file("bin/bash", 0o755, &bash)
        .symlink("bin/sh", "bash")
        .finish()
}

/// An image with a configuration and no layer at all.
fn without_layers(context: &Context) -> Base {
    let versions = ["1", "2"].map(|version| {
        write(context, &format!("layerless-{version}"), &[], &json!({"Env": [format!("VERSION={version}")]}))
    });
    Base { name: "layerless", versions }
}

fn write(context: &Context, name: &str, layers: &[&[u8]], config: &Value) -> Layout {
    let directory = context.path("bases").join(name);
    let digest = oci::write_layout(&directory, layers, config);
    Layout { directory, digest }
}
