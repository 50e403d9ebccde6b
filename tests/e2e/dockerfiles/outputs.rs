//! The forms that a result can take, all at once.

use std::os::unix::fs::MetadataExt;

use crate::support::lab::Lab;
use crate::support::{is_root, oci};

const DOCKERFILE: &str = "FROM scratch AS base\nCOPY a dir /\n\
    FROM base\nCOPY --chmod=750 a /other/b\nCMD [\"/a\"]\n";

fn lab() -> Lab {
    let lab = Lab::new();
    lab.file("a", "a\n").file("dir/sub/c", "c\n");
    std::os::unix::fs::symlink("a", lab.path("dir/link")).unwrap();
    lab
}

#[test]
fn several_outputs_of_one_build_agree() {
    let lab = lab();
    let path = |name: &str| lab.context.path(name);
    lab.build(DOCKERFILE)
        .args(["--tag", "example.test/result:1"])
        .option_path("--output", "type=oci,dest=", path("oci.tar"))
        .option_path("--output", "type=oci,tar=false,dest=", path("oci"))
        .option_path("--output", "type=docker,dest=", path("docker.tar"))
        .option_path("--output", "type=tar,dest=", path("plain.tar"))
        .option_path("--output", "type=local,dest=", path("local"))
        .option("--metadata-file", path("metadata.json"))
        .success();
    let image = oci::Image::read(&path("oci.tar"));
    assert_eq!(image.digest, oci::Image::read(&path("oci")).digest);
    let mut tree = image.tree();
    let mut plain = oci::tar_tree(&path("plain.tar"));
    // Whether the root itself has an entry is a matter of taste.
    tree.remove("");
    plain.remove("");
    assert_eq!(plain, tree);
    let names: Vec<_> = tree.keys().map(String::as_str).collect();
    assert_eq!(names, ["a", "link", "other", "other/b", "sub", "sub/c"]);
    for (name, node) in &tree {
        let found = std::fs::symlink_metadata(path("local").join(name)).unwrap();
        match node.kind {
            "file" => {
                assert_eq!(std::fs::read(path("local").join(name)).unwrap(), node.content, "{name}");
                assert_eq!(found.mode() & 0o7777, node.mode, "{name}");
            }
            "symlink" => {
                let target = std::fs::read_link(path("local").join(name)).unwrap();
                assert_eq!(target.to_str().unwrap(), node.target, "{name}");
            }
            _ => assert!(found.is_dir(), "{name}"),
        }
    }
    for layout in ["oci", "docker"] {
        let reference = if layout == "oci" {
            format!("oci-archive:{}", path("oci.tar").display())
        } else {
            format!("docker-archive:{}", path("docker.tar").display())
        };
        let inspected = lab.context.command("skopeo").args(["inspect", "--config", &reference]).success();
        let config: serde_json::Value = serde_json::from_slice(&inspected.stdout).unwrap();
        assert_eq!(config["config"]["Cmd"], serde_json::json!(["/a"]), "{layout}");
        assert_eq!(config["rootfs"], image.config["rootfs"], "{layout}");
    }
}

/// With compressions for everyone: the layers as plain tars are the same, and skopeo can read the blobs.
#[test]
fn compressions_differ_only_in_compression() {
    let lab = lab();
    let zstd = lab.image_with(DOCKERFILE, &["--compression", "zstd"]);
    let gzip = lab.image_with(DOCKERFILE, &["--compression", "gzip"]);
    assert_eq!(zstd.config["rootfs"], gzip.config["rootfs"]);
    let media = |image: &oci::Image| image.manifest["layers"][0]["mediaType"].as_str().unwrap().to_owned();
    assert!(
        media(&zstd).ends_with("+zstd") && media(&gzip).ends_with("gzip"),
        "{} {}",
        media(&zstd),
        media(&gzip)
    );
    let unpacked = lab.context.path("unpacked");
    lab.context
        .command("skopeo")
        .args(["copy", "--dest-decompress"])
        .arg(format!("oci-archive:{}", lab.context.path("image.tar").display()))
        .arg(format!("dir:{}", unpacked.display()))
        .success();
}

/// The same inputs give the same bytes, on any machine that starts from nothing.
#[test]
fn the_same_inputs_give_the_same_image() {
    let digest = |epoch: &str| {
        let lab = lab();
        let options = ["--build-arg", epoch];
        lab.image_with(DOCKERFILE, &options).digest
    };
    let first = digest("SOURCE_DATE_EPOCH=1700000000");
    // Files get other times with each checkout.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert_eq!(first, digest("SOURCE_DATE_EPOCH=1700000000"));
    assert_ne!(first, digest("SOURCE_DATE_EPOCH=1600000000"));
}

#[test]
fn standard_output_and_several_names() {
    let lab = lab();
    let output = lab.build(DOCKERFILE).args(["--output", "type=tar,dest=-"]).success();
    let tar = lab.context.write("stdout.tar", &output.stdout);
    assert!(oci::tar_tree(&tar).contains_key("sub/c"));
    if is_root() {
        let local = lab.context.path("owners");
        lab.build("FROM scratch\nCOPY --chown=12:34 a /\n")
            .option_path("--output", "type=local,dest=", &local)
            .success();
        assert!(local.join("a").exists());
    }
}

#[test]
fn levels_forced_compression_and_media_types_of_docker() {
    let lab = Lab::new();
    let text = "all work and no play makes the test a dull one\n".repeat(5000);
    lab.file("text", text);
    let image = |attributes: &str| {
        let archive = lab.context.path("image.tar");
        let output = format!("type=oci,dest={},{attributes}", archive.display());
        lab.build("FROM busybox\nCOPY text /\n").option("--output", output).success();
        let image = oci::Image::read(&archive);
        let layers = image.manifest["layers"].as_array().unwrap().clone();
        let field = |name: &str| -> Vec<serde_json::Value> {
            layers.iter().map(|layer| layer[name].clone()).collect()
        };
        (field("mediaType"), field("size"), image)
    };
    let tar = |kind: &str| serde_json::json!(format!("application/vnd.oci.image.layer.v1.tar{kind}"));
    let (types, usual, first) = image("compression=zstd");
    assert_eq!(types, [tar("+gzip"), tar("+zstd")], "the base image's layer stays as it is");
    let (types, _, plain) = image("compression=uncompressed");
    assert_eq!(types, [tar("+gzip"), tar("")]);
    let (types, _, forced) = image("compression=uncompressed,force-compression=true");
    assert_eq!(types, [tar(""), tar("")]);
    let (_, best, high) = image("compression=zstd,compression-level=19");
    assert!(best[1].as_u64() < usual[1].as_u64(), "{best:?} {usual:?}");
    let (_, again, _) = image("compression=zstd,compression-level=19");
    assert_eq!(again, best);
    let (types, _, docker) = image("oci-mediatypes=false,force-compression=true");
    let gzip = serde_json::json!("application/vnd.docker.image.rootfs.diff.tar.gzip");
    assert_eq!(types, [gzip.clone(), gzip]);
    assert_eq!(docker.manifest["mediaType"], "application/vnd.docker.distribution.manifest.v2+json");
    assert_eq!(docker.manifest["config"]["mediaType"], "application/vnd.docker.container.image.v1+json");
    for other in [plain, forced, high, docker] {
        assert!(other.tree() == first.tree());
        assert_eq!(other.config, first.config);
    }
}
