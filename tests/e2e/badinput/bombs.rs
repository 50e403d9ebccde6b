//! Little that becomes much: compressed, sparse, nested, linked in circles.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::support::aftermath::{assert_nothing_left, assert_told};
use crate::support::chance::rounds;
use crate::support::disk::SmallDisk;
use crate::support::lab::Lab;
use crate::support::oci::{self, TarBuilder, content};
use crate::support::{base, text};

/// How many bytes the file in a bomb has.
const BOMB: u64 = 10 << 30;

/// The header of a file of `size` bytes of a tar, and nothing of its content.
fn header(name: &str, size: u64, kind: tar::EntryType) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_path(name).unwrap();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_cksum();
    header.as_bytes().to_vec()
}

/// A tar with one file of [`BOMB`] bytes, compressed with `program`: its streams can be joined, so that not all of it has
/// to be compressed.
fn bomb(lab: &Lab, program: &str, head: &[u8]) -> Vec<u8> {
    bomb_of(lab, program, head, BOMB)
}

fn bomb_of(lab: &Lab, program: &str, head: &[u8], size: u64) -> Vec<u8> {
    let compress =
        |bytes: &[u8]| lab.context.command(program).args(["-c", "-1"]).stdin(bytes).success().stdout;
    let piece = compress(&vec![b'x'; 64 << 20]);
    let mut all = compress(head);
    for _ in 0..size / (64 << 20) {
        all.extend_from_slice(&piece);
    }
    all.extend(compress(&[0; 1024]));
    all
}

/// Writes a layout with the busybox base and this layer on top.
fn layout_with(directory: &Path, media_type: &str, blob: &[u8], diff_id: &str) {
    let busybox = oci::Image::read(base::busybox());
    let layers: Vec<&[u8]> = busybox.layers.iter().map(Vec::as_slice).collect();
    oci::write_layout(directory, &layers, &json!({}));
    let read =
        |path: &Path| -> serde_json::Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    let place = |digest: &str| directory.join("blobs").join(digest.replace(':', "/"));
    let put = |bytes: &[u8]| {
        let digest = oci::digest(bytes);
        std::fs::write(place(&digest), bytes).unwrap();
        json!({"digest": digest, "size": bytes.len()})
    };
    let mut index = read(&directory.join("index.json"));
    let mut manifest = read(&place(index["manifests"][0]["digest"].as_str().unwrap()));
    let mut config = read(&place(manifest["config"]["digest"].as_str().unwrap()));
    config["rootfs"]["diff_ids"].as_array_mut().unwrap().push(json!(diff_id));
    config["history"] = json!([]);
    let mut descriptor = put(blob);
    descriptor["mediaType"] = json!(media_type);
    manifest["layers"].as_array_mut().unwrap().push(descriptor);
    let config = put(config.to_string().as_bytes());
    manifest["config"]["digest"] = config["digest"].clone();
    manifest["config"]["size"] = config["size"].clone();
    let manifest = put(manifest.to_string().as_bytes());
    index["manifests"][0]["digest"] = manifest["digest"].clone();
    index["manifests"][0]["size"] = manifest["size"].clone();
    std::fs::write(directory.join("index.json"), index.to_string()).unwrap();
}

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// A layer that does not fit unpacked is no harm where nobody unpacks it, and an error where somebody does.
#[test]
fn layers_of_ten_times_the_disk() {
    const SIZE: u64 = 1 << 30;
    let lab = Lab::new();
    let Some(disk) = SmallDisk::mount(&lab.context, "small", "100m") else { return };
    for (program, media_type) in [("gzip", GZIP), ("zstd", ZSTD)] {
        let bomb = bomb_of(&lab, program, &header("bomb", SIZE, tar::EntryType::Regular), SIZE);
        let layout = lab.context.path(program);
        let file = lab.context.write("bomb", &bomb);
        let sum = format!("{program} -dc < '{}' | sha256sum", file.display());
        let sum = lab.context.command("sh").args(["-c", &sum]).success().stdout();
        let diff_id = format!("sha256:{}", sum.split(' ').next().unwrap());
        layout_with(&layout, media_type, &bomb, &diff_id);
        let build = || {
            lab.build("FROM bomb\nRUN head -c 1 /bomb\n")
                .option_path("--build-context", "bomb=oci-layout://", &layout)
                .option("--local-cache", &disk.0)
        };
        build().success();
        let output = build().args(["--no-trace", "--no-cache"]).failure();
        assert_told(&output, &["No space left on device"]);
        assert_nothing_left(&lab);
        // What was unpacked is gone, so that there is room for what fits.
        lab.build("FROM busybox\nRUN head -c 5000000 /dev/urandom > /fits\n")
            .option("--local-cache", &disk.0)
            .arg("--no-cache")
            .success();
    }
}

#[test]
fn archives_of_ten_gigabytes_on_a_disk_of_a_tenth() {
    let lab = Lab::new();
    let Some(disk) = SmallDisk::mount(&lab.context, "small", "100m") else { return };
    for program in ["gzip", "zstd", "xz", "bzip2"] {
        lab.file("bomb", bomb(&lab, program, &header("bomb", BOMB, tar::EntryType::Regular)));
        let output = lab.build("FROM busybox\nADD bomb /x/\n").option("--local-cache", &disk.0).failure();
        assert_told(&output, &["Dockerfile:2", "No space left on device"]);
        assert_nothing_left(&lab);
    }
    lab.build("FROM busybox\nRUN head -c 20000000 /dev/urandom > /fits\n")
        .option("--local-cache", &disk.0)
        .success();
}

/// Headers that would be read into memory whole, and sizes that nothing stands behind. With little memory to take.
#[test]
fn headers_that_lie_about_sizes() {
    let lab = Lab::new();
    let pax = |records: &[u8]| {
        let mut tar = header("pax", records.len() as u64, tar::EntryType::XHeader);
        tar.extend_from_slice(records);
        tar.resize(tar.len().next_multiple_of(512), 0);
        tar
    };
    let endings = [0; 1024];
    let file = header("file", 3, tar::EntryType::Regular);
    let joined = |parts: &[&[u8]]| parts.concat();
    let sparse =
        b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n45 GNU.sparse.realsize=18446744073709551615\n";
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("a name of 10 GiB", bomb(&lab, "gzip", &header("name", BOMB, tar::EntryType::GNULongName))),
        ("records of 10 GiB", bomb(&lab, "zstd", &header("pax", BOMB, tar::EntryType::XHeader))),
        ("two sizes", joined(&[&pax(b"13 size=1000\n"), &file, b"abc", &[0; 509], &endings])),
        (
            "a record that is longer",
            joined(&[&pax(b"99999999999999999999 a=b\n"), &file, b"abc", &[0; 509], &endings]),
        ),
        ("a record without end", joined(&[&pax(b"4 a="), &file, b"abc", &[0; 509], &endings])),
        ("a file that is cut off", joined(&[&header("file", 1 << 33, tar::EntryType::Regular), b"abc"])),
        (
            "a hole of 2⁶⁴",
            joined(&[
                &pax(sparse),
                &header("hole", 512, tar::EntryType::Regular),
                b"0\n",
                &[0; 510],
                &endings,
            ]),
        ),
    ];
    for (what, bytes) in cases {
        // Not the first entry, which decides whether it is an archive at all.
        let first = TarBuilder::new().file("first", 0o644, b"first").finish();
        let first = &first[..1024];
        let whole = if bytes.starts_with(&[0x1f, 0x8b]) {
            [lab.context.command("gzip").arg("-c").stdin(first).success().stdout, bytes].concat()
        } else if bytes.starts_with(&[0x28, 0xb5]) {
            [lab.context.command("zstd").arg("-c").stdin(first).success().stdout, bytes].concat()
        } else {
            [first, &bytes].concat()
        };
        lab.file("archive", &whole);
        let run = lab.build("FROM busybox\nADD archive /x/\n").timeout(Duration::from_mins(1));
        let output = run.failure();
        assert_told(&output, &["Dockerfile:2", "archive"]);
        assert!(!output.stderr().contains("memory"), "{what}: {output}");
        // The same as a layer.
        let layout = lab.context.path("layout");
        drop(std::fs::remove_dir_all(&layout));
        let media_type = if whole.starts_with(&[0x1f, 0x8b]) {
            GZIP
        } else if whole.starts_with(&[0x28, 0xb5]) {
            ZSTD
        } else {
            "application/vnd.oci.image.layer.v1.tar"
        };
        layout_with(&layout, media_type, &whole, &oci::digest(&whole));
        let output = lab
            .build("FROM bad\nRUN true\n")
            .option_path("--build-context", "bad=oci-layout://", &layout)
            .timeout(Duration::from_mins(1))
            .failure();
        assert_told(&output, &["Dockerfile:1", "layout"]);
        assert_nothing_left(&lab);
    }
}

/// Appends the entry of a number.
type Append = dyn Fn(&mut tar::Builder<Box<dyn Write>>, u32);

#[test]
fn archives_of_very_many_entries_and_links() {
    let count = if rounds(1) < 10 { 60_000 } else { 1_000_000 };
    let lab = Lab::new();
    let archive = |entry: &Append| {
        let path = lab.path("many.tar.gz");
        let file = std::fs::File::create(path).unwrap();
        let encoder = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
        let mut builder = tar::Builder::new(Box::new(encoder) as Box<dyn Write>);
        for number in 0..count {
            entry(&mut builder, number);
        }
        builder.into_inner().unwrap().flush().unwrap();
    };
    let soon = Duration::from_secs(150);
    // Names of one file, which is replaced again and again.
    archive(&|builder, number| {
        let kind = if number % 50_000 == 0 { tar::EntryType::Regular } else { tar::EntryType::Link };
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(0);
        if kind == tar::EntryType::Link {
            builder.append_link(&mut header, format!("{:02}/{number}", number % 64), "first").unwrap();
        } else {
            builder.append_data(&mut header, "first", &[][..]).unwrap();
        }
    });
    lab.build("FROM busybox\nADD many.tar.gz /x/\n").timeout(soon).success();
    archive(&|builder, number| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(3);
        builder.append_data(&mut header, format!("{:02}/{number}", number % 64), &b"abc"[..]).unwrap();
    });
    lab.build("FROM busybox\nADD many.tar.gz /x/\n").timeout(soon).success();
    assert_nothing_left(&lab);
}

#[test]
fn links_in_circles_and_very_deep_directories() {
    let lab = Lab::new();
    let mut tar = TarBuilder::new()
        .symlink("a", "b")
        .symlink("b", "a")
        .symlink("self", "self/x")
        .symlink("up", "../../../..");
    for number in 0..300 {
        tar = tar.symlink(&format!("chain{number}"), &format!("chain{}", number + 1));
    }
    let links = tar.finish();
    lab.file("links.tar", &links).file("file", "x");
    let layout = lab.context.path("links");
    layout_with(&layout, "application/vnd.oci.image.layer.v1.tar", &links, &oci::digest(&links));
    for instruction in [
        "COPY file /a/x",
        "COPY file /self/y",
        "WORKDIR /a/b",
        "COPY --from=links /a /x",
        "ADD file /chain0/x",
    ] {
        let output = lab
            .build(&format!("FROM links\n{instruction}\nRUN true\n"))
            .option_path("--build-context", "links=oci-layout://", &layout)
            .timeout(Duration::from_mins(1))
            .output();
        assert!(!output.stderr().contains("panicked"), "{output}");
        if !output.status.success() {
            assert_told(&output, &["Dockerfile:2"]);
        }
    }
    lab.file(
        "through.tar",
        TarBuilder::new().symlink("out", "../../../../../../tmp").file("out/escaped", 0o644, b"x").finish(),
    );
    lab.build("FROM busybox\nADD through.tar /x/\n").failure().says("Dockerfile:2").says("is not there");
    let tree = lab.image("FROM busybox\nRUN mkdir -p /x/tmp\nADD through.tar /x/\n").tree();
    assert_eq!(content(&tree, "x/tmp/escaped"), "x", "a link leads nowhere but into the destination");
    // Deeper than any path may be.
    let deep = format!("{}/f", vec!["d"; 1500].join("/"));
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    header.set_mode(0o644);
    builder.append_data(&mut header, &deep, &b"x"[..]).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    header.set_mode(0o644);
    builder.append_data(&mut header, format!("{deep}{deep}{deep}/x"), &b"x"[..]).unwrap();
    lab.file("deep.tar", builder.into_inner().unwrap());
    let output = lab.build("FROM busybox\nADD deep.tar /x/\n").timeout(Duration::from_mins(1)).output();
    assert_told(&output, &["Dockerfile:2", "deep.tar"]);
    assert_nothing_left(&lab);
}

#[test]
fn archives_of_images_that_expand_without_end() {
    let lab = Lab::new();
    let Some(disk) = SmallDisk::mount(&lab.context, "small", "100m") else { return };
    for program in ["gzip", "zstd"] {
        let path = lab.context.write(
            format!("{program}.tar"),
            bomb(&lab, program, &header("index.json", BOMB, tar::EntryType::Regular)),
        );
        let output = lab
            .build("FROM bomb\nRUN true\n")
            .option_path("--build-context", "bomb=docker-archive://", &path)
            .option("--local-cache", &disk.0)
            .failure();
        assert_told(&output, &[text(&path)]);
        assert_nothing_left(&lab);
    }
}
