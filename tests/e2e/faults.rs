//! Builds in a bad world: no space, shared caches and registries that do not work, base images made by strange tools,
//! layers of unusual content.

#![allow(clippy::print_stderr, reason = "skipping is said aloud")]

use std::path::Path;

use serde_json::json;

use crate::support::base;
use crate::support::disk::SmallDisk;
use crate::support::lab::Lab;
use crate::support::oci::{self, TarBuilder, content};
use crate::support::registry::Registry;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

const BIG: &str = "FROM busybox\nRUN head -c 8000000 /dev/urandom > /big\nRUN echo small > /small\n";

#[test]
fn a_full_local_disk_is_a_clear_error() {
    let lab = Lab::new();
    let Some(disk) = SmallDisk::mount(&lab.context, "small", "15m") else { return };
    let output = lab.build(BIG).option("--local-cache", &disk.0).failure();
    let told = output.stderr();
    assert!(told.contains("No space left on device"), "{output}");
    assert!(!told.contains("panicked"), "{output}");
    // With room again, the same cache serves.
    let remount = ["-o", "remount,size=64m", text(&disk.0)];
    lab.context.command("mount").args(remount).success();
    lab.build(BIG).option("--local-cache", &disk.0).success();
}

#[test]
fn a_shared_cache_that_is_full_or_unusable_never_fails_a_build() {
    let lab = Lab::new();
    let Some(disk) = SmallDisk::mount(&lab.context, "shared", "2m") else { return };
    let shared = format!("file://{}", text(&disk.0));
    let output = lab.build(BIG).option("--cache", &shared).success();
    assert!(output.stderr().contains("warning"), "it says so: {output}");
    // A file where the directory should be; a store of a format that is not known.
    lab.context.write("not-a-directory", "x");
    lab.context.write("future/format", "crossdock store 99\n");
    lab.context.write("future/v1/format", "crossdock store 99\n");
    for bad in ["not-a-directory", "future"] {
        let url = format!("file://{}", text(&lab.context.path(bad)));
        lab.build("FROM busybox\nRUN true\n").option("--cache", url).success();
    }
}

#[test]
fn parents_that_base_layers_leave_out_keep_their_modes() {
    let lab = Lab::new();
    let busybox = std::fs::read("/bin/busybox").unwrap();
    let lower = TarBuilder::new()
        .directory("bin", 0o755)
        .directory("tmp", 0o1777)
        .directory("opt", 0o711)
        .file("bin/busybox", 0o755, &busybox)
        .symlink("bin/sh", "busybox")
        .symlink("bin/stat", "busybox")
        .symlink("bin/touch", "busybox")
        .finish();
    let upper = TarBuilder::new().file("tmp/x", 0o644, b"x").file("opt/y", 0o644, b"y").finish();
    let layout = lab.context.path("strange");
    oci::write_layout(&layout, &[&lower, &upper], &json!({}));
    let build = lab
        .build(
            "FROM strange\nRUN test $(stat -c %a /tmp) = 1777 && test $(stat -c %a /opt) = 711 && touch /tmp/new /opt/new\n",
        )
        .option_path("--build-context", "strange=oci-layout://", &layout);
    let tree = lab.image_of(build).tree();
    assert_eq!((tree["tmp"].mode, tree["opt"].mode), (0o1777, 0o711));
    assert!(tree.contains_key("tmp/new") && tree.contains_key("tmp/x"));
}

#[test]
fn a_registry_that_is_down_is_no_reason_to_fail_where_the_image_is_known() {
    let lab = Lab::new();
    let registry = Registry::start();
    let name = format!("{}/base/busybox:1", registry.address());
    lab.context
        .command("skopeo")
        .args(["copy", "--dest-tls-verify=false", &format!("oci:{}:latest", text(base::busybox()))])
        .arg(format!("docker://{name}"))
        .success();
    let dockerfile = format!("FROM {name}\nRUN echo built > /file\n");
    let first = lab.image(&dockerfile);
    drop(registry);
    let output = lab
        .build(&dockerfile)
        .option_path("--output", "type=oci,dest=", lab.context.path("again.tar"))
        .success();
    assert!(output.stderr().contains("taken for what it was last"), "{output}");
    assert_eq!(oci::Image::read(&lab.context.path("again.tar")).digest, first.digest);
    let output = lab.build(&dockerfile).arg("--pull").failure();
    assert!(output.stderr().contains(&name), "{output}");
}

#[test]
fn old_clients_get_gzip_and_the_same_files() {
    let lab = Lab::new();
    lab.file("file", "content");
    let dockerfile = "FROM busybox\nCOPY file /a/b/file\nRUN seq 1 100000 > /numbers && rm /a/b/file\n";
    let zstd = lab.image(dockerfile);
    let archive = lab.context.path("gzip.tar");
    lab.build(dockerfile)
        .args(["--compression", "gzip"])
        .option_path("--output", "type=oci,dest=", &archive)
        .success();
    let gzip = oci::Image::read(&archive);
    assert_eq!(zstd.tree(), gzip.tree());
    assert_eq!(zstd.config["rootfs"], gzip.config["rootfs"], "the same layers, uncompressed");
    for layer in gzip.manifest["layers"].as_array().unwrap() {
        assert_eq!(layer["mediaType"], "application/vnd.oci.image.layer.v1.tar+gzip");
    }
    // What `docker load` reads, with an independent reader.
    let docker = lab.context.path("docker.tar");
    lab.build(dockerfile)
        .args(["--tag", "x.io/app:1"])
        .option_path("--output", "type=docker,dest=", &docker)
        .success();
    let layout = lab.context.path("from-docker");
    lab.context
        .command("skopeo")
        .args([
            "copy",
            &format!("docker-archive:{}", text(&docker)),
            &format!("oci:{}:latest", text(&layout)),
        ])
        .success();
    assert_eq!(oci::Image::read(&layout).tree(), zstd.tree());
}

#[test]
fn unusual_files_survive() {
    let lab = Lab::new();
    let long = "n".repeat(200);
    let attribute = lab.file("attributed", "x").path("attributed");
    let has_xattrs =
        lab.context.command("setfattr").args(["-n", "user.kind", "-v", "odd", text(&attribute)]).output();
    let dockerfile = format!(
        "FROM busybox\nCOPY attributed /attributed\n\
         RUN mkdir -p /{long}/{long} && echo deep > /{long}/{long}/file && printf 'raw' > \"$(printf '/n\\377me')\" \\\n\
          && mkfifo /pipe && ln /{long}/{long}/file /hard && truncate -s 67108864 /sparse && printf end >> /sparse \\\n\
          && touch -d @1 /old && chmod 4755 /old\n\
         RUN test \"$(cat \"$(printf '/n\\377me')\")\" = raw && test -p /pipe && test \"$(stat -c %s /sparse)\" = 67108867\n"
    );
    let image = lab.image(&dockerfile);
    let tree = image.tree();
    assert_eq!(content(&tree, "hard"), "deep\n");
    assert_eq!(tree["old"].mode, 0o4755);
    if has_xattrs.status.success() {
        assert!(format!("{:?}", tree["attributed"]).contains("user.kind"), "{:?}", tree["attributed"]);
    }
    // And from the cache, on a machine that has nothing unpacked.
    let shared = format!("file://{}", text(&lab.context.path("shared")));
    let run = |local: &str, output: &str| {
        lab.build(&format!("{dockerfile}RUN test -e /hard && test $(stat -c %h /hard) = 2\n"))
            .option("--cache", &shared)
            .option("--local-cache", lab.context.path(local))
            .option_path("--output", "type=oci,dest=", lab.context.path(output))
            .success();
        oci::Image::read(&lab.context.path(output))
    };
    assert_eq!(run("one", "one.tar").digest, run("two", "two.tar").digest);
}

#[test]
fn results_go_into_pipes_and_devices_and_never_replace_them() {
    use std::os::unix::fs::FileTypeExt as _;
    let lab = Lab::new();
    lab.file("file", "content");
    for kind in ["tar", "oci", "docker"] {
        let pipe = lab.context.path(format!("pipe-{kind}"));
        lab.context.command("mkfifo").arg(&pipe).success();
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || std::fs::read(pipe).unwrap()
        });
        let output = format!("type={kind},dest=");
        lab.build("FROM busybox\nCOPY file /file\n").option_path("--output", &output, &pipe).success();
        assert!(reader.join().unwrap().len() > 1024, "{kind}: it came through the pipe");
        assert!(std::fs::metadata(&pipe).unwrap().file_type().is_fifo(), "{kind}: it is still a pipe");
    }
}

/// Bits of layers flip on a disk; nothing is unpacked, so that every layer has to be read.
#[test]
fn damaged_layers_are_made_or_fetched_again() {
    let lab = Lab::new();
    let dockerfile = "FROM busybox\nRUN seq 1 20000 > /numbers\n";
    let before = lab.image(dockerfile).tree();
    let state = lab.context.path("xdg/crossdock/v1/state");
    assert!(state.join("unpacked").is_dir());
    for middle in [false, true] {
        std::fs::remove_dir_all(state.join("unpacked")).unwrap();
        for entry in walkdir::WalkDir::new(lab.context.path("xdg/crossdock/v1/blobs")).into_iter().flatten() {
            let Ok(mut bytes) = std::fs::read(entry.path()) else { continue };
            // Only layers: tables of contents stay readable.
            if bytes.starts_with(&[0x1f, 0x8b]) || bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
                let at = if middle { bytes.len() / 2 } else { bytes.len() - 20 };
                bytes[at] ^= 0x10;
                std::fs::remove_file(entry.path()).unwrap();
                std::fs::write(entry.path(), bytes).unwrap();
            }
        }
        let tree = lab.image(&format!("{dockerfile}RUN wc -l < /numbers > /count-{middle}\n")).tree();
        assert_eq!(content(&tree, &format!("count-{middle}")).trim(), "20000");
        assert_eq!(tree["numbers"], before["numbers"]);
    }
}
