//! The build contexts beside the checkout, made by others for other builders.

use std::path::{Path, PathBuf};

use crate::bases::{Base, existing};
use crate::cases::Case;
use crate::support::base;

/// Those that cannot be built here, and why.
const LEFT_OUT: &[(&str, &str)] = &[
    ("Dockerfile.add", "adds files from github.com"),
    ("header-builtin/Dockerfile", "is about images of two architectures in a registry, by their digests"),
];

/// Those that fail, as they want more than the command line here gives them, and what they say.
const FAILING: &[(&str, &str)] = &[];

/// What stands for the images that they name.
const BASES: &[(&str, &str)] = &[
    ("mirror.gcr.io/busybox", "busybox"),
    ("mirror.gcr.io/alpine", "distribution"),
    ("quay.io/libpod/centos:7", "distribution"),
];

/// Those whose commands are for bash: the image that has it takes longest.
const FOR_BASH: &[&str] = &["Dockerfile.shell", "Dockerfile.quoted-arg"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/dockerfile/contexts")
}

/// Whether they are there.
pub(crate) fn are_there() -> bool {
    root().is_dir()
}

/// Debian, for the cases that name it: nothing else makes it.
pub(crate) fn debian() -> Base {
    existing("debian", base::debian())
}

/// A case for each Dockerfile that needs no internet. Its folder is its context.
pub(crate) fn cases() -> Vec<Case> {
    if !are_there() {
        return Vec::new();
    }
    let root = root();
    let mut cases = Vec::new();
    for entry in walkdir::WalkDir::new(&root).sort_by_file_name() {
        let entry = entry.unwrap();
        let path = entry.path().strip_prefix(&root).unwrap().to_str().unwrap();
        let file_name = entry.file_name().to_str().unwrap();
        let left_out = LEFT_OUT.iter().any(|(name, _)| *name == path);
        if left_out || !file_name.starts_with("Dockerfile") || !entry.file_type().is_file() {
            continue;
        }
        // A frontend from a mirror of the registry is another one than the one that is built in.
        let dockerfile = std::fs::read_to_string(entry.path()).unwrap();
        let dockerfile = dockerfile.replace("# syntax=mirror.gcr.io/", "# syntax=");
        let base = |of: &'static str| if FOR_BASH.contains(&path) { "debian" } else { of };
        let named = BASES.iter().filter(|(name, _)| dockerfile.contains(name));
        cases.push(Case {
            name: format!("contexts/{path}"),
            rule: String::from("A build context of somebody else."),
            options: vec![format!("--file {file_name}")],
            fails: FAILING.iter().find(|(name, _)| *name == path).map(|(_, says)| (*says).to_owned()),
            bases: named.map(|(name, of)| ((*name).to_owned(), base(of).to_owned())).collect(),
            dockerfile,
            directory: Some(entry.path().parent().unwrap().to_owned()),
            ..Case::default()
        });
    }
    cases
}
