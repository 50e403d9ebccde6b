//! The build contexts beside the checkout, made by others for other builders.

use std::path::{Path, PathBuf};

use crate::cases::Case;

/// Those that cannot be built here, and why.
const LEFT_OUT: &[(&str, &str)] = &[
    ("Dockerfile.add", "adds files from github.com"),
    ("header-builtin/Dockerfile", "is about images of two architectures in a registry, by their digests"),
];

/// Those that fail, being made to or wanting more than they are given here, and what is said then.
const FAILING: &[(&str, &str)] = &[
    ("Dockerfile.env", "Dockerfile.env:12: unexpected end of statement"),
    ("copychown/Dockerfile", "Dockerfile:11: `RUN ls"),
    ("dockerignore/allowlist/alternating-nothing/Dockerfile", "excluded by .dockerignore:7"),
    ("dockerignore/allowlist/alternating-other/Dockerfile", "excluded by .dockerignore:7"),
    ("dockerignore/allowlist/subdir-nofile/Dockerfile", "excluded by .dockerignore:1"),
    ("dockerignore/integration3/Dockerfile", "excluded by .dockerignore:10"),
    ("mount/Dockerfile", "Dockerfile:2: `RUN stat"),
    ("mount-targets/Dockerfile", "Dockerfile:4: COPY source \"true\" not found"),
    ("mount-targets/Dockerfile.mount", "Dockerfile.mount:4: COPY source \"true\" not found"),
    ("replace/symlink-with-directory/Dockerfile", "Dockerfile:3: COPY failed"),
    ("replace/symlink-with-directory/Dockerfile.2", "Dockerfile.2:3: COPY failed"),
    ("replace/symlink-with-directory/Dockerfile.3", "Dockerfile.3:3: COPY failed"),
    ("replace/symlink-with-directory/Dockerfile.4", "Dockerfile.4:3: COPY failed"),
    ("transientmount/Dockerfile", "Dockerfile:2: `RUN ls"),
    ("transientmount/Dockerfile.env", "Dockerfile.env:12: unexpected end of statement"),
];

/// What stands for the images that they name.
const BASES: &[(&str, &str)] = &[
    ("mirror.gcr.io/busybox", "busybox"),
    ("mirror.gcr.io/alpine", "distribution"),
    ("quay.io/libpod/centos:7", "distribution"),
];

/// What else the command line says.
const OPTIONS: &[(&str, &str)] = &[
    ("builtins/Dockerfile", "--build-arg ALPINE=mirror.gcr.io/alpine"),
    ("copyglob/Dockerfile", "--build-arg SOURCE=*.txt"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/dockerfile/contexts")
}

/// Whether they are there.
pub(crate) fn are_there() -> bool {
    root().is_dir()
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
        let named = BASES.iter().filter(|(name, _)| dockerfile.contains(name));
        let options =
            OPTIONS.iter().filter(|(name, _)| *name == path).map(|(_, option)| (*option).to_owned());
        cases.push(Case {
            name: format!("contexts/{path}"),
            rule: String::from("A build context of somebody else."),
            options: std::iter::once(format!("--file {file_name}")).chain(options).collect(),
            fails: FAILING.iter().find(|(name, _)| *name == path).map(|(_, says)| (*says).to_owned()),
            bases: named.map(|(name, of)| ((*name).to_owned(), (*of).to_owned())).collect(),
            dockerfile,
            directory: Some(entry.path().parent().unwrap().to_owned()),
            ..Case::default()
        });
    }
    cases
}
