//! Reading files out of layers without unpacking them: what moves on a runner that starts empty.

use std::path::PathBuf;

use serde_json::json;

use crate::support::lab::Lab;
use crate::support::link::{Count, Link, Speed};
use crate::support::oci::{self, TarBuilder, content};
use crate::support::server::CacheServer;
use crate::support::{Run, text};

const LAYER_BYTES: usize = 24 << 20;

/// A base image of a large layer and a small one.
struct Base {
    lab: Lab,
    layout: PathBuf,
    digests: Vec<String>,
}

impl Base {
    fn new() -> Self {
        let lab = Lab::new();
        let mut tar = TarBuilder::new().directory("etc", 0o755).directory("data", 0o755);
        tar = tar
            .file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n")
            .file("etc/group", 0o644, b"root:x:0:\napp:x:1000:\n");
        for number in 0..LAYER_BYTES >> 20 {
            tar = tar.file(&format!("data/{number}"), 0o644, &noise(number as u64 + 1, 1 << 20));
        }
        let large = tar.finish();
        let small = TarBuilder::new().file("small", 0o644, b"small\n").finish();
        let layout = lab.context.path("base");
        oci::write_layout(&layout, &[&large, &small], &json!({}));
        let manifest = oci::Image::read(&layout).manifest;
        let layers = manifest["layers"].as_array().unwrap();
        let digests = layers.iter().map(|layer| layer["digest"].as_str().unwrap().to_owned()).collect();
        Self { lab, layout, digests }
    }

    /// A build on a runner of its own.
    fn runner(&self, name: &str, dockerfile: &str) -> Run {
        let run = self.lab.build(dockerfile).env("CROSSDOCK_LOCAL", self.lab.context.path(name));
        run.option_path("--build-context", "base=oci-layout://", &self.layout)
    }

    /// Takes the layers away, so that whoever wants them fails.
    fn lose_layers(&self) {
        for digest in &self.digests {
            std::fs::remove_file(oci::blob_path(&self.layout, digest)).unwrap();
        }
    }

    fn assert_nothing_unpacked(&self, runner: &str) {
        for name in ["unpacked", "unpacked-user"] {
            let directory = self.lab.context.path(runner).join("v1/state").join(name);
            let found = std::fs::read_dir(&directory).map_or(0, Iterator::count);
            assert_eq!(found, 0, "{}", directory.display());
        }
    }
}

/// Far, so that bytes and requests count, but fast.
const SPEED: Speed = Speed { round_trip: std::time::Duration::from_millis(5), rate: 1e9 };

fn dockerfile(number: u32, owner: &str) -> String {
    format!(
        "FROM base AS app\nUSER app\nWORKDIR /w\nCOPY --chown={owner} a /a\n\
         FROM scratch\nCOPY --from=base /data/{number} /small /out/\nCOPY --from=app /a /a\n"
    )
}

#[test]
fn a_fresh_runner_fetches_what_it_reads_and_unpacks_nothing() {
    let base = Base::new();
    base.lab.file("a", "content\n");
    let server = CacheServer::start(&base.lab.context, "storage", &[]);
    let link = Link::start(&server.address, SPEED);
    let build = |name: &str, dockerfile: &str| -> (oci::Tree, Count) {
        link.take();
        let run = base.runner(name, dockerfile).option("--cache", format!("http://{}", link.address()));
        let image = base.lab.image_of(run.env("CROSSDOCK_TOKEN", &server.token));
        base.assert_nothing_unpacked(name);
        (image.tree(), link.take())
    };
    let (first, count) = build("one", &dockerfile(3, "app"));
    assert_eq!(content(&first, "out/small"), "small\n");
    assert!(count.up as usize > LAYER_BYTES, "the framed copy is shared: {count:?}");
    // All steps have to be done again, and the image does not have the bytes any more.
    base.lose_layers();
    let (second, count) = build("two", &dockerfile(5, "root"));
    assert_eq!(content(&second, "out/small"), "small\n");
    assert!((1 << 20..2 << 20).contains(&count.down), "a file of 1 MiB and what is around it: {count:?}");
    // Names of owners are looked up in a file of the base image.
    let (third, count) = build("three", &dockerfile(5, "app:app"));
    assert_eq!((third["a"].uid, third["a"].gid), (1000, 1000));
    assert!((1 << 20..2 << 20).contains(&count.down), "the layer that the second made: {count:?}");
    // What was fetched stays, and what is new is added to it.
    let (_, count) = build("two", &dockerfile(6, "root"));
    assert!((1 << 20..2 << 20).contains(&count.down), "{count:?}");
    let (_, count) = build("two", &dockerfile(6, "root").replace("/small", "/small /data/5"));
    assert!(count.down < 1 << 20, "frames are kept: {count:?}");
}

#[test]
fn results_are_written_as_files_without_unpacking_them() {
    let base = Base::new();
    base.lab.file("a", "content\n");
    let server = CacheServer::start(&base.lab.context, "storage", &[]);
    let dockerfile = "FROM base\nCOPY a /a\n";
    let build = |name: &str| {
        let target = base.lab.context.path(format!("out-{name}"));
        server.cache(base.runner(name, dockerfile)).option_path("--output", "", &target).success();
        base.assert_nothing_unpacked(name);
        target
    };
    let first = build("one");
    base.lose_layers();
    let second = build("two");
    for path in ["a", "small", "data/0", "data/17", "etc/passwd"] {
        let read = |target: &PathBuf| std::fs::read(target.join(path)).unwrap();
        assert!(read(&first) == read(&second), "{path} in {}", text(&second));
    }
    assert_eq!(std::fs::read_dir(second.join("data")).unwrap().count(), LAYER_BYTES >> 20);
}

/// A shared store that has lost the copy, or that has a wrong one, costs work and no wrong result.
#[test]
fn a_copy_that_is_lost_or_damaged_is_made_again() {
    let base = Base::new();
    base.lab.file("a", "content\n");
    let shared = base.lab.context.path("shared");
    let build = |name: &str, number: u32| {
        let run = base.runner(name, &dockerfile(number, "root"));
        let image = base.lab.image_of(run.option("--cache", format!("file://{}", shared.display())));
        image.tree()
    };
    build("one", 1);
    let blobs = files(&shared.join("v1/blobs"));
    let copy = blobs.into_iter().max_by_key(|path| std::fs::metadata(path).unwrap().len()).unwrap();
    let sound = std::fs::read(&copy).unwrap();
    let same = |tree: &oci::Tree| {
        assert_eq!(content(tree, "out/small"), "small\n");
        assert!(tree["out/2"].content == noise(3, 1 << 20));
    };
    same(&build("two", 2));
    let damaged: Vec<u8> = sound.iter().map(|byte| byte ^ 1).collect();
    std::fs::write(&copy, damaged).unwrap();
    same(&build("three", 2));
    std::fs::remove_file(&copy).unwrap_or_default();
    same(&build("four", 2));
}

/// Bytes that do not compress, others for each seed.
pub(crate) fn noise(mut seed: u64, length: usize) -> Vec<u8> {
    let next = std::iter::repeat_with(|| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 32) as u8
    });
    next.take(length).collect()
}

fn files(directory: &std::path::Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}
