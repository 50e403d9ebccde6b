//! Machines that do not do their part: disks that are full, directories that cannot be written or are not there, no
//! file descriptors.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use crate::support::aftermath::{assert_empty, assert_nothing_left, assert_told};
use crate::support::disk::SmallDisk;
use crate::support::lab::Lab;
use crate::support::oci::{self, content};
use crate::support::{Context, Run, base, is_root, text};

const BIG: &str = "FROM busybox\nRUN head -c 8000000 /dev/urandom > /big\n";

#[test]
fn results_for_which_there_is_no_room() {
    let lab = Lab::new();
    let Some(disk) = SmallDisk::mount(&lab.context, "small", "4m") else { return };
    let destinations = [
        ("type=oci,dest=", "image.tar"),
        ("type=docker,dest=", "docker.tar"),
        ("type=tar,dest=", "files.tar"),
        ("type=oci,tar=false,dest=", "layout"),
        ("type=local,dest=", "files"),
    ];
    for (kind, name) in destinations {
        let place = disk.0.join(name);
        let output = lab.build(BIG).option_path("--output", kind, &place).failure();
        assert_told(&output, &["No space left on device", text(&place)]);
        assert_nothing_left(&lab);
        // A file is there whole or not at all. Directories are filled file by file, and can be filled again.
        assert!(!place.is_file(), "{output}");
        drop(std::fs::remove_dir_all(&place));
        assert_empty(&disk.0);
    }
    // A file that is there already stays as it is.
    let place = disk.0.join("image.tar");
    std::fs::write(&place, "before").unwrap();
    lab.build(BIG).option_path("--output", "type=oci,dest=", &place).failure();
    assert_eq!(std::fs::read(&place).unwrap(), b"before");
    // With room, and everything from the cache.
    let image = lab.image(BIG);
    assert_eq!(image.tree()["big"].content.len(), 8_000_000);
}

#[test]
fn a_full_disk_for_temporary_files_and_metadata() {
    let lab = Lab::new();
    let Some(disk) = SmallDisk::mount(&lab.context, "small", "64k") else { return };
    let filled = disk.0.join("filled");
    // As full as it gets.
    drop(std::fs::write(&filled, vec![0; 1 << 20]));
    let image = lab.image_of(lab.build(BIG).env("TMPDIR", &disk.0));
    assert_eq!(image.tree()["big"].content.len(), 8_000_000);
    for option in ["--iidfile", "--metadata-file"] {
        let output = lab.build(BIG).option(option, disk.0.join("id")).output();
        // A few bytes may find room in what is there.
        if !output.status.success() {
            assert_told(&output, &["No space left on device"]);
        }
        assert!(!output.stderr().contains("panicked"), "{output}");
    }
    assert_nothing_left(&lab);
}

#[test]
fn temporary_directories_that_are_not_there() {
    let lab = Lab::new();
    lab.file("a.tar", oci::TarBuilder::new().file("f", 0o644, b"x").finish());
    let dockerfile = "FROM busybox\nADD a.tar /x/\nRUN --mount=type=bind,target=/c cat /c/a.tar > /dev/null; echo ran > /ran\n";
    for bad in ["/nowhere/at/all", "/dev/null", ""] {
        let image = lab.image_of(lab.build(dockerfile).env("TMPDIR", bad).arg("--no-cache"));
        assert_eq!(content(&image.tree(), "ran"), "ran\n");
    }
    assert_nothing_left(&lab);
}

#[test]
fn homes_that_cannot_be_written() {
    if !is_root() {
        return;
    }
    let lab = Lab::of(Context::for_user(65534));
    std::fs::remove_dir_all(lab.context.path("home")).unwrap();
    std::fs::create_dir(lab.context.path("home")).unwrap();
    std::fs::set_permissions(lab.context.path("home"), std::fs::Permissions::from_mode(0o555)).unwrap();
    lab.file("file", "x");
    let dockerfile = "FROM scratch\nCOPY file /file\n";
    let home = lab.context.path("home");
    // What says where else is missing: nothing but the home is left.
    let output = lab.build(dockerfile).env("XDG_CACHE_HOME", "").failure();
    assert_told(&output, &[text(&home), "--local-cache"]);
    let output = lab.build(dockerfile).env("XDG_CACHE_HOME", "").env("HOME", "").failure();
    assert_told(&output, &["--local-cache"]);
    let output = lab.build(dockerfile).option("--local-cache", "/proc/nowhere").failure();
    assert_told(&output, &["/proc/nowhere"]);
    // With a place that can be written, the home does not matter.
    let image = lab.image_of(lab.build(dockerfile).option("--local-cache", lab.context.path("xdg/here")));
    assert_eq!(content(&image.tree(), "file"), "x");
    lab.build(dockerfile).env("HOME", "/nowhere").success();
    // Results that cannot be put where they should go.
    let output =
        lab.build(dockerfile).option_path("--output", "type=oci,dest=", home.join("image.tar")).failure();
    assert_told(&output, &["image.tar", "Permission denied"]);
    assert_nothing_left(&lab);
}

/// The command, with at most `limit` of what `ulimit OPTION` counts.
fn limited(lab: &Lab, option: &str, limit: u32, build: &str) -> Run {
    lab.file("Dockerfile", build);
    lab.context
        .command("sh")
        .args(["-c", &format!("ulimit {option} {limit}; exec \"$@\""), "sh", env!("CARGO_BIN_EXE_crossdock")])
        .args(["build", "--progress=plain", "--no-cache"])
        .option_path("--build-context", "busybox=oci-layout://", base::busybox())
        .arg(lab.path(""))
        .timeout(Duration::from_secs(100))
}

#[test]
fn few_file_descriptors() {
    let lab = Lab::new();
    for number in 0..100 {
        lab.file(&format!("files/{number}"), format!("{number}"));
    }
    let dockerfile = "FROM busybox AS one\nCOPY files /files\nRUN cat /files/* > /all\n\
         FROM busybox AS two\nRUN echo two > /two\nFROM busybox\nCOPY --from=one /all /\nCOPY --from=two /two /\n";
    let mut worked = 0;
    for limit in [4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 32, 48, 64, 256] {
        let output = limited(&lab, "-n", limit, dockerfile).output();
        assert!(!output.stderr().contains("panicked"), "{limit}: {output}");
        if output.status.success() {
            worked += 1;
        } else if limit >= 12 {
            // With less, not even what a program is made of can be loaded.
            assert!(output.status.code().is_some(), "{limit}: {output}");
            assert_told(&output, &["os error 24"]);
        }
        assert_nothing_left(&lab);
    }
    assert!(worked > 0, "256 are enough");
    let tree = lab.image(dockerfile).tree();
    assert_eq!(content(&tree, "two"), "two\n");
    assert_eq!(content(&tree, "all").len(), 190);
    lab.context.crossdock().args(["cache", "verify"]).success();
}

#[test]
fn files_that_may_not_get_large() {
    let lab = Lab::new();
    // Blocks of 512 bytes, or of 1024 in some shells.
    let output = limited(&lab, "-f", 1000, BIG).output();
    assert!(!output.status.success() && !output.stderr().contains("panicked"), "{output}");
    assert_nothing_left(&lab);
    assert_eq!(lab.image(BIG).tree()["big"].content.len(), 8_000_000);
}

/// A store below a directory that is not there any more, or is something else.
#[test]
fn stores_that_are_no_directories() {
    let lab = Lab::new();
    lab.context.write("file", "x");
    std::os::unix::fs::symlink("nowhere", lab.context.path("dangling")).unwrap();
    std::os::unix::fs::symlink("round", lab.context.path("round")).unwrap();
    for bad in ["file", "file/below", "round"] {
        let place = lab.context.path(bad);
        let output = lab.build("FROM busybox\nRUN true\n").option("--local-cache", &place).failure();
        assert_told(&output, &[text(&place)]);
    }
    let output =
        lab.build("FROM busybox\nRUN true\n").option("--local-cache", Path::new("/dev/null")).failure();
    assert_told(&output, &["/dev/null"]);
    assert_nothing_left(&lab);
}
