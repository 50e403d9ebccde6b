//! Builds by somebody who is not root.

use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::support::lab::Lab;
use crate::support::oci::content;
use crate::support::{Context, is_root};

/// A user that no system has an account or subordinate ids for.
const STRANGER: u32 = 54_321;

/// Whether this machine lets ordinary users make user namespaces: asked of util-linux, not of the program under test.
fn user_namespaces_work() -> bool {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "true"]);
    if is_root() {
        command.uid(STRANGER).gid(STRANGER);
    }
    command.output().unwrap().status.success()
}

fn lab() -> Lab {
    let lab = if is_root() { Lab::of(Context::for_user(STRANGER)) } else { Lab::new() };
    lab.file("file", "from the context\n");
    lab
}

/// With a single id: everything is root's inside, and what needs another id says so.
#[test]
fn an_ordinary_user_can_build() {
    let lab = lab();
    let build = lab.build("FROM busybox\nCOPY file /file\nRUN cat /file > /copy && id -u > /id\n");
    if !user_namespaces_work() {
        build.failure().says("crossdock doctor");
        return;
    }
    let directory = lab.context.path("home/image.tar");
    build.option_path("--output", "type=oci,dest=", &directory).success();
    let tree = crate::support::oci::Image::read(&directory).tree();
    assert_eq!(content(&tree, "copy"), "from the context\n");
    assert_eq!(content(&tree, "id"), "0\n");
    assert_eq!((tree["copy"].uid, tree["copy"].gid), (0, 0));
    assert_eq!(tree["etc/passwd"].uid, 0);
}

#[test]
fn doctor_says_what_this_machine_allows() {
    if is_root() {
        let output = Context::new().crossdock().arg("doctor").success();
        assert!(output.stdout().lines().count() > 3, "{output}");
    }
    let output = lab().context.crossdock().arg("doctor").output();
    output.says("namespace");
    assert_eq!(output.status.success(), user_namespaces_work(), "{output}");
}

/// The first thing that a newcomer types: with no network, no account and nothing installed but this machine's shell.
#[test]
fn the_demo_works_for_everyone() {
    if is_root() {
        Context::new().crossdock().arg("demo").success().says("cached");
    }
    let lab = lab();
    let output = lab.context.crossdock().arg("demo").current_dir(lab.context.path("home")).output();
    if user_namespaces_work() {
        assert!(output.status.success(), "{output}");
        output.says("cached");
    } else {
        output.says("crossdock doctor");
    }
    // It cleans up, and leaves the user's own cache alone.
    for directory in ["tmp", "xdg"] {
        let left: Vec<_> =
            std::fs::read_dir(lab.context.path(directory)).unwrap().map(Result::unwrap).collect();
        assert!(left.is_empty(), "left in {directory}: {left:?}");
    }
}
