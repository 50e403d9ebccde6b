//! Builds for several platforms at once: an index, with an image for each.

use serde_json::{Value, json};

use crate::support::lab::Lab;
use crate::support::oci::{self, Image, content};
use crate::support::registry::Registry;

/// One that needs an emulator, and is never run.
const OTHER: &str = "s390x";

/// The stage `made` is the same for both platforms; what follows is not.
const DOCKERFILE: &str = "FROM --platform=$BUILDPLATFORM busybox AS made\n\
    RUN cat /proc/sys/kernel/random/uuid > /once\n\
    FROM made AS each\n\
    ARG TARGETARCH\n\
    RUN echo for $TARGETARCH > /for\n\
    FROM scratch\n\
    ARG TARGETPLATFORM\n\
    LABEL for=$TARGETPLATFORM\n\
    COPY --from=each /once /for /\n";

fn platforms() -> String {
    format!("linux/{},linux/{OTHER}", oci::architecture())
}

#[test]
fn several_platforms_give_an_index() {
    let lab = Lab::new();
    let registry = Registry::start();
    let name = format!("{}/app:1", registry.address());
    let metadata = lab.context.path("metadata.json");
    let build = || {
        lab.build(DOCKERFILE)
            .option("--platform", platforms())
            .args(["--push", "--tag", &name, "--annotation", "index:of=all"])
            .option(
                "--annotation",
                format!("manifest[linux/{OTHER}],manifest-descriptor[linux/{OTHER}]:of=one"),
            )
            .option_path("--metadata-file", "", &metadata)
    };
    let output = build().success();
    let own = oci::architecture();
    // A step for another platform than the one that runs it says both.
    output.says(&format!("[linux/{own} each 1/1] RUN echo for $TARGETARCH"));
    output.says(&format!("[linux/{own}->{OTHER} each 1/1] RUN echo for $TARGETARCH"));

    // Another client sees what was pushed.
    let raw = |reference: &str| -> Value {
        let inspect =
            lab.context.command("skopeo").args(["inspect", "--raw", "--tls-verify=false", reference]);
        serde_json::from_str(&inspect.success().stdout()).unwrap()
    };
    let index = raw(&format!("docker://{name}"));
    assert_eq!(index["mediaType"], "application/vnd.oci.image.index.v1+json");
    assert_eq!(index["annotations"], json!({"of": "all"}));
    let manifests = index["manifests"].as_array().unwrap();
    let listed: Vec<&str> =
        manifests.iter().map(|manifest| manifest["platform"]["architecture"].as_str().unwrap()).collect();
    assert_eq!(listed, [own, OTHER]);
    assert_eq!(manifests[0]["annotations"], Value::Null);
    assert_eq!(manifests[1]["annotations"], json!({"of": "one"}));
    let mut once = Vec::new();
    for (manifest, architecture) in manifests.iter().zip([own, OTHER]) {
        let archive = lab.context.path(format!("{architecture}.tar"));
        let digest = manifest["digest"].as_str().unwrap();
        lab.context
            .command("skopeo")
            .args(["copy", "--src-tls-verify=false"])
            .arg(format!("docker://{}/app@{digest}", registry.address()))
            .arg(format!("oci-archive:{}:x", archive.display()))
            .success();
        let image = Image::read(&archive);
        assert_eq!(image.config["architecture"], architecture);
        assert_eq!(image.container()["Labels"]["for"], format!("linux/{architecture}"));
        assert_eq!(image.manifest["annotations"]["of"] == "one", architecture == OTHER);
        let tree = image.tree();
        assert_eq!(content(&tree, "for"), format!("for {architecture}\n"));
        once.push(content(&tree, "once"));
    }
    assert_eq!(once[0], once[1], "what is the same for both is done once");
    let written: Value = serde_json::from_slice(&std::fs::read(&metadata).unwrap()).unwrap();
    assert_eq!(written["containerimage.descriptor"]["mediaType"], index["mediaType"]);
    assert_eq!(written["containerimage.config.digest"], Value::Null);

    // Nothing runs again, and it is the same index.
    let again = build().success();
    again.says("6 cached, 0 run");
    assert_eq!(raw(&format!("docker://{name}")), index);
    // Without the cache as well, what is the same for both is done once.
    build().arg("--no-cache").success();
    let files = lab.context.path("files");
    lab.build(DOCKERFILE).option("--platform", platforms()).option_path("--output", "", &files).success();
    let read = |path: String| std::fs::read_to_string(files.join(path)).unwrap();
    let fresh = [read(format!("linux_{own}/once")), read(format!("linux_{OTHER}/once"))];
    assert_eq!(fresh[0], fresh[1]);
    assert_ne!(fresh[0], once[0]);
    assert_eq!(read(format!("linux_{OTHER}/for")), format!("for {OTHER}\n"));
}

#[test]
fn files_of_several_platforms_and_layouts() {
    let lab = Lab::new();
    let own = oci::architecture();
    let tar = lab.context.path("files.tar");
    let layout = lab.context.path("layout");
    lab.build(DOCKERFILE)
        // One platform given twice is one platform.
        .option("--platform", format!("{},linux/{own}", platforms()))
        .option_path("--output", "type=tar,dest=", &tar)
        .option("--output", format!("type=oci,tar=false,dest={}", layout.display()))
        .option("--annotation", "index-descriptor:of=all")
        .success();
    let tree = oci::tar_tree(&tar);
    for architecture in [own, OTHER] {
        assert_eq!(content(&tree, &format!("linux_{architecture}/for")), format!("for {architecture}\n"));
    }
    // In one directory they must not be in each other's way.
    let merged = lab.context.path("merged");
    let into_one = |dockerfile: &str| {
        lab.build(dockerfile)
            .option("--platform", platforms())
            .option("--output", format!("type=local,platform-split=false,dest={}", merged.display()))
    };
    into_one(DOCKERFILE).failure().says("would overwrite that of");
    assert!(!merged.exists());
    into_one(
        "FROM --platform=$BUILDPLATFORM busybox AS made\nARG TARGETARCH\n\
         RUN mkdir /o && echo $TARGETARCH > /o/for-$TARGETARCH\nFROM scratch\nCOPY --from=made /o /\n",
    )
    .success();
    for architecture in [own, OTHER] {
        let found = std::fs::read_to_string(merged.join(format!("for-{architecture}"))).unwrap();
        assert_eq!(found, format!("{architecture}\n"));
    }
    let top: Value = serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
    assert_eq!(top["manifests"].as_array().unwrap().len(), 1);
    assert_eq!(top["manifests"][0]["annotations"]["of"], "all");
    let index = std::fs::read(oci::blob_path(&layout, top["manifests"][0]["digest"].as_str().unwrap()));
    let index: Value = serde_json::from_slice(&index.unwrap()).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 2);
    // The layout is a base image for either.
    let base = |architecture: &str| {
        let from = lab
            .build("FROM base\nCOPY Dockerfile /\n")
            .option("--platform", format!("linux/{architecture}"))
            .option_path("--build-context", "base=oci-layout://", &layout);
        content(&lab.image_of(from).tree(), "for")
    };
    assert_eq!(base(own), format!("for {own}\n"));
    assert_eq!(base(OTHER), format!("for {OTHER}\n"));
}

#[test]
fn one_platform_is_an_index_if_asked_for() {
    let lab = Lab::new();
    let given = |value: &str| format!("BUILDKIT_MULTI_PLATFORM={value}");
    let build = |arguments: &[&str]| lab.build("FROM scratch\nCOPY Dockerfile /\n").args(arguments);
    let archive = lab.context.path("index.tar");
    build(&["--build-arg", &given("1")]).option_path("--output", "type=oci,dest=", &archive).success();
    assert_eq!(Image::read(&archive).config["architecture"], oci::architecture());
    let inner = lab.context.command("tar").arg("-xOf").arg(&archive).arg("index.json").success().stdout();
    assert!(inner.contains("image.index"), "{inner}");
    // What cannot be is said before anything is built.
    let docker = lab.context.path("docker.tar");
    let refused = build(&["--platform", &platforms()]).option_path("--output", "type=docker,dest=", &docker);
    refused.failure().says("not an index of several platforms").says("type=oci");
    assert!(!docker.exists());
    build(&["--platform", &platforms(), "--build-arg", &given("false")])
        .failure()
        .says("BUILDKIT_MULTI_PLATFORM");
    build(&["--annotation", "index:a=b"]).failure().says("no index that could be annotated");
}
