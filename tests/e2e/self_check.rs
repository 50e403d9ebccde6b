//! The tests' own tools, checked against tools that others wrote: a wrong base image or a wrong reader would make
//! every other test mean nothing.

use crate::support::{Context, base, is_root, oci, text};

/// skopeo reads the layout as we wrote it.
#[test]
fn the_busybox_base_is_an_image() {
    let context = Context::new();
    let layout = format!("oci:{}:latest", text(base::busybox()));
    let inspected = context.command("skopeo").args(["inspect", "--config", &layout]).success();
    assert!(inspected.stdout().contains("\"Cmd\""), "{inspected}");
    let image = oci::Image::read(base::busybox());
    let tree = image.tree();
    assert_eq!(tree["bin/sh"].target, "busybox");
    assert_eq!(tree["tmp"].mode, 0o1777);
    assert!(oci::content(&tree, "etc/passwd").starts_with("root:x:0:0:"));
}

/// The package manager of the Debian base works: checked by hand in a plain chroot.
#[test]
fn the_debian_base_can_run_its_own_tools() {
    let image = oci::Image::read(base::debian());
    let tree = image.tree();
    assert!(tree.contains_key("usr/bin/apt-get"));
    assert!(tree.contains_key("var/lib/dpkg/status"));
    assert!(oci::content(&tree, "etc/apt/sources.list").contains("deb "));
    if !is_root() {
        return;
    }
    let context = Context::new();
    let root = context.path("root");
    std::fs::create_dir(&root).unwrap();
    let layer = context.write("layer.tar", &image.layers[0]);
    context.command("tar").args(["--extract", "--file", text(&layer), "--directory", text(&root)]).success();
    context
        .command("chroot")
        .args([text(&root), "dpkg", "--print-architecture"])
        .success()
        .says(oci::architecture());
}

/// Whiteouts, opaque directories, hard links and replaced kinds, read as every container runtime reads them.
#[test]
fn layers_are_flattened_as_runtimes_do() {
    let context = Context::new();
    let lower = oci::TarBuilder::new()
        .directory("a", 0o755)
        .file("a/gone", 0o644, b"1")
        .file("a/kept", 0o644, b"2")
        .directory("opaque", 0o755)
        .file("opaque/old", 0o644, b"3")
        .directory("turns", 0o755)
        .file("turns/into", 0o644, b"4")
        .finish();
    let upper = oci::TarBuilder::new()
        .file("opaque/new", 0o600, b"5")
        .file("opaque/.wh..wh..opq", 0o644, b"")
        .file("a/.wh.gone", 0o644, b"")
        .link("a/other", "a/kept")
        .symlink("turns", "a")
        .finish();
    let layout = context.path("layout");
    oci::write_layout(&layout, &[&lower, &upper], &serde_json::json!({}));
    let tree = oci::Image::read(&layout).tree();
    let paths: Vec<_> = tree.keys().map(String::as_str).collect();
    assert_eq!(paths, ["a", "a/kept", "a/other", "opaque", "opaque/new", "turns"]);
    assert_eq!(tree["turns"].kind, "symlink");
    assert_eq!(oci::content(&tree, "a/other"), "2");
}
