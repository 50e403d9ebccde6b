//! Stores whose files are damaged, were left half-written, or come from another version.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::support::aftermath::{assert_nothing_left, assert_told};
use crate::support::chance::Chance;
use crate::support::lab::Lab;
use crate::support::oci::{Image, content};
use crate::support::{Context, Output, is_root, text};

const DOCKERFILE: &str =
    "FROM busybox\nRUN seq 1 5000 > /numbers\nCOPY file /file\nRUN wc -l < /numbers > /count\n";

/// The files of a store, without what is unpacked.
fn files(store: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = walkdir::WalkDir::new(store)
        .into_iter()
        .filter_entry(|entry| !entry.file_name().to_string_lossy().starts_with("unpacked"))
        .map(Result::unwrap)
        .filter(|entry| entry.file_type().is_file())
        .map(walkdir::DirEntry::into_path)
        .collect();
    files.sort();
    files
}

/// By the first folder below the version: `blobs`, `records`, …
fn kinds(store: &Path) -> BTreeMap<String, Vec<PathBuf>> {
    let mut kinds: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for file in files(store) {
        let relative = file.strip_prefix(store).unwrap();
        let kind =
            relative.components().take(2).map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>();
        kinds.entry(kind.join("/")).or_default().push(file);
    }
    kinds
}

fn replace(path: &Path, bytes: &[u8]) {
    // A new file: the old one may be linked from another store.
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, bytes).unwrap();
}

type Damage = fn(&Path, &mut Chance);

/// The ways in which a file is not what it was.
const DAMAGES: &[(&str, Damage)] = &[
    ("emptied", |path, _| replace(path, b"")),
    ("cut in half", |path, _| {
        let bytes = std::fs::read(path).unwrap();
        replace(path, &bytes[..bytes.len() / 2]);
    }),
    ("one bit flipped", |path, chance| {
        let mut bytes = std::fs::read(path).unwrap();
        if !bytes.is_empty() {
            let at = chance.index(bytes.len());
            bytes[at] ^= 1 << chance.below(8);
        }
        replace(path, &bytes);
    }),
    ("zeros", |path, _| {
        let length = std::fs::metadata(path).unwrap().len();
        replace(path, &vec![0; usize::try_from(length).unwrap()]);
    }),
    ("something appended", |path, _| {
        let mut bytes = std::fs::read(path).unwrap();
        bytes.extend_from_slice(b"more");
        replace(path, &bytes);
    }),
    ("a directory", |path, _| {
        std::fs::remove_file(path).unwrap();
        std::fs::create_dir(path).unwrap();
    }),
    ("a dangling link", |path, _| {
        std::fs::remove_file(path).unwrap();
        std::os::unix::fs::symlink("nowhere", path).unwrap();
    }),
    ("a pipe", |path, _| {
        std::fs::remove_file(path).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    }),
    ("gone", |path, _| std::fs::remove_file(path).unwrap()),
];

fn build(lab: &Lab, local: &str, shared: &str) -> Output {
    lab.file("file", "content");
    lab.build(DOCKERFILE)
        .option("--local-cache", lab.context.path(local))
        .option("--cache", format!("file://{}", text(&lab.context.path(shared))))
        .option_path("--output", "type=oci,dest=", lab.context.path("image.tar"))
        .timeout(std::time::Duration::from_secs(100))
        .output()
}

#[track_caller]
fn assert_right(lab: &Lab, what: &str, output: &Output) {
    assert!(output.status.success(), "{what}: {output}");
    assert!(!output.stderr().contains("panicked"), "{what}: {output}");
    let tree = Image::read(&lab.context.path("image.tar")).tree();
    assert_eq!(content(&tree, "count").trim(), "5000", "{what}");
    assert_eq!(content(&tree, "file"), "content", "{what}");
    assert_eq!(
        tree["numbers"].content.len(),
        (1..=5000).map(|n: u32| n.to_string().len() + 1).sum::<usize>()
    );
    std::fs::remove_file(lab.context.path("image.tar")).unwrap();
    assert_nothing_left(lab);
}

fn copy(from: &Path, to: &Path) {
    drop(std::fs::remove_dir_all(to));
    assert!(std::process::Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

#[test]
fn any_file_of_a_shared_store_may_be_damaged() {
    let mut chance = Chance::new("damaged shared stores");
    let lab = Lab::new();
    assert_right(&lab, "before", &build(&lab, "first", "good"));
    let good = lab.context.path("good");
    for kind in kinds(&good).into_keys() {
        for (damage, apply) in DAMAGES {
            copy(&good, &lab.context.path("shared"));
            for path in &kinds(&lab.context.path("shared"))[&kind] {
                apply(path, &mut chance);
            }
            let what = format!("{kind}: {damage}");
            drop(std::fs::remove_dir_all(lab.context.path("fresh")));
            assert_right(&lab, &what, &build(&lab, "fresh", "shared"));
        }
    }
}

#[test]
fn any_file_of_a_local_store_may_be_damaged() {
    let mut chance = Chance::new("damaged local stores");
    let lab = Lab::new();
    assert_right(&lab, "before", &build(&lab, "good", "unused"));
    let good = lab.context.path("good");
    for kind in kinds(&good).into_keys() {
        for (damage, apply) in DAMAGES {
            copy(&good, &lab.context.path("local"));
            for path in &kinds(&lab.context.path("local"))[&kind] {
                apply(path, &mut chance);
            }
            // Another shared one each time, that has nothing.
            drop(std::fs::remove_dir_all(lab.context.path("empty")));
            let what = format!("{kind}: {damage}");
            let output = build(&lab, "local", "empty");
            if kind.ends_with("format") && !output.status.success() {
                // A directory that says that it is something else is not written to.
                assert_told(&output, &[text(&lab.context.path("local"))]);
                continue;
            }
            assert_right(&lab, &what, &output);
            // The commands that look after a store live with it, too.
            for command in ["ls", "du", "verify"] {
                let output = lab
                    .context
                    .crossdock()
                    .args(["cache", command])
                    .option("--local-cache", lab.context.path("local"))
                    .timeout(std::time::Duration::from_mins(1))
                    .output();
                assert!(!output.stderr().contains("panicked"), "{what}: {output}");
            }
        }
    }
}

#[test]
fn names_that_do_not_belong_there_are_passed_over() {
    let lab = Lab::new();
    assert_right(&lab, "before", &build(&lab, "local", "shared"));
    for store in ["local", "shared"] {
        for (kind, files) in kinds(&lab.context.path(store)) {
            let directory = files[0].parent().unwrap();
            for name in ["x", ".tmpAbCdEf", "sha256", "0000.partial", "\u{fc}", "-rf"] {
                std::fs::write(directory.join(format!("{name}{}", kind.len())), "half").unwrap();
            }
            std::fs::create_dir(directory.join("directory")).unwrap();
            std::os::unix::fs::symlink("/", directory.join("root")).unwrap();
        }
    }
    drop(std::fs::remove_dir_all(lab.context.path("fresh")));
    assert_right(&lab, "from the shared one", &build(&lab, "fresh", "shared"));
    assert_right(&lab, "from the local one", &build(&lab, "local", "shared"));
    for command in
        [&["ls"][..], &["du"], &["verify"], &["prune", "--keep-storage", "1k"], &["prune", "--all"]]
    {
        let output = lab
            .context
            .crossdock()
            .arg("cache")
            .args(command)
            .option("--local-cache", lab.context.path("local"))
            .timeout(std::time::Duration::from_mins(1))
            .output();
        assert!(!output.stderr().contains("panicked"), "{output}");
    }
    assert!(Path::new("/bin").exists(), "links were not followed");
    assert_right(&lab, "after pruning", &build(&lab, "local", "shared"));
}

#[test]
fn stores_of_a_later_version_are_left_alone() {
    let lab = Lab::new();
    assert_right(&lab, "before", &build(&lab, "local", "shared"));
    let format = kinds(&lab.context.path("local"))
        .into_values()
        .flatten()
        .find(|path| path.ends_with("format"))
        .expect("a store says what it is");
    let text_now = std::fs::read_to_string(&format).unwrap();
    let later: String = text_now.chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).collect();
    assert_ne!(later, text_now);
    replace(&format, later.as_bytes());
    let before: Vec<_> = files(&lab.context.path("local"));
    let output = build(&lab, "local", "shared");
    assert!(!output.status.success(), "{output}");
    assert_told(&output, &[text(&lab.context.path("local"))]);
    assert!(output.stderr().contains("hint:"), "the next step: {output}");
    assert_eq!(files(&lab.context.path("local")), before, "nothing was changed");
    // A shared one is done without.
    let shared = lab.context.path("shared").join(format.strip_prefix(lab.context.path("local")).unwrap());
    replace(&shared, later.as_bytes());
    let output = build(&lab, "other", "shared");
    assert_right(&lab, "without the shared one", &output);
    assert!(output.stderr().contains("warning"), "{output}");
}

#[test]
fn stores_that_may_not_be_read_or_written() {
    if !is_root() {
        return;
    }
    let lab = Lab::of(Context::for_user(65534));
    lab.file("file", "content");
    let dockerfile = "FROM scratch\nCOPY file /file\n";
    let shared = format!("file://{}", text(&lab.context.path("xdg/shared")));
    let run = |local: &str, output: &str| {
        lab.build(dockerfile)
            .option("--local-cache", lab.context.path(local))
            .option("--cache", &shared)
            .option_path("--output", "type=oci,dest=", lab.context.path(output))
            .output()
    };
    assert!(run("xdg/one", "xdg/one.tar").status.success());
    // Not the user's any more, who would be allowed everything in a user namespace of their own.
    let take = |directory: &str, mode: u32| {
        for entry in walkdir::WalkDir::new(lab.context.path(directory)).contents_first(true) {
            let entry = entry.unwrap();
            std::os::unix::fs::chown(entry.path(), Some(0), Some(0)).unwrap();
            let mode = if entry.file_type().is_dir() { mode } else { mode & 0o666 };
            std::fs::set_permissions(entry.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    for mode in [0o755, 0o700] {
        take("xdg/shared", mode);
        lab.file("file", format!("{mode}"));
        let output = run(&format!("xdg/two-{mode}"), "xdg/two.tar");
        assert!(output.status.success(), "a shared cache never fails a build: {output}");
        assert_eq!(content(&Image::read(&lab.context.path("xdg/two.tar")).tree(), "file"), format!("{mode}"));
    }
    for mode in [0o755, 0o700] {
        take("xdg/one", mode);
        let output = run("xdg/one", "xdg/three.tar");
        assert!(!output.status.success(), "{output}");
        assert_told(&output, &["xdg/one", "Permission denied"]);
        assert!(output.stderr().contains("hint:"), "{output}");
    }
}
