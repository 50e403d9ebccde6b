//! `--load` into real engines.

use std::path::Path;

use crate::support::docker::Docker;
use crate::support::{Context, Run, is_root, text};

fn project(context: &Context) {
    context.write("project/Dockerfile", "FROM scratch\nCOPY file /file\nCMD [\"/none\"]\n");
    context.write("project/file", "content\n");
}

#[test]
fn an_image_is_loaded_into_docker() {
    if !is_root() {
        println!("skipped: a Docker engine needs root");
        return;
    }
    let context = Context::new();
    project(&context);
    let docker = Docker::start(&context);
    let build = |arguments: &[&str]| {
        let build = context.build().env("DOCKER_HOST", &docker.socket).args(arguments);
        build.arg(context.path("project"))
    };
    build(&["--load", "--tag", "example.test/app:1", "--tag", "other"])
        .success()
        .says("loaded into the Docker engine at ")
        .says(docker.socket.trim_start_matches("unix://"))
        .says(": example.test/app:1, other");
    for name in ["example.test/app:1", "other:latest"] {
        docker.command(&context).args(["image", "inspect", name]).success().says("/none");
    }
    build(&["--output", "type=docker", "--tag", "example.test/app:2"]).success();
    docker.command(&context).args(["image", "inspect", "example.test/app:2"]).success();
    let archive = context.path("saved.tar");
    docker.command(&context).args(["save", "--output", text(&archive), "other"]).success();
    drop(docker);
    // Nobody is there any more.
    let socket = format!("unix://{}/docker/socket", context.path("").display());
    let failed = context.build().env("DOCKER_HOST", &socket).args(["--load", "--tag", "x"]);
    failed.arg(context.path("project")).failure().says("Docker engine").says("type=docker,dest=");
}

#[test]
fn an_image_is_loaded_into_podman() {
    if std::os::unix::net::UnixStream::connect("/var/run/docker.sock").is_ok() {
        println!("skipped: a Docker engine of this machine would be taken");
        return;
    }
    let context = Context::new();
    project(&context);
    let storage = format!(
        "[storage]\ndriver = \"vfs\"\ngraphroot = \"{0}/root\"\nrunroot = \"{0}/run\"\n",
        context.path("podman").display()
    );
    context.write("storage.conf", &storage);
    let with_storage = |run: Run| run.env("CONTAINERS_STORAGE_CONF", context.path("storage.conf"));
    let build = with_storage(context.build()).args(["--load", "--tag", "example.test/app:1"]);
    build.arg(context.path("project")).success().says("loaded into podman: example.test/app:1");
    // Programs are told too, also where the image has no name.
    let build = with_storage(context.crossdock()).args(["build", "--progress=json", "--load"]);
    let output = build.arg(context.path("project")).success();
    let events: Vec<serde_json::Value> =
        output.stderr().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let loaded = events.iter().find(|event| event["event"] == "loaded").unwrap();
    assert_eq!((&loaded["engine"], &loaded["names"]), (&"podman".into(), &serde_json::json!([])));
    with_storage(context.command("podman"))
        .args(["image", "inspect", "example.test/app:1"])
        .success()
        .says("/none");
    // Without any engine, it says what else can be done.
    let nothing = context.build().env("PATH", Path::new("/nonexistent")).args(["--load", "--tag", "x"]);
    nothing.arg(context.path("project")).failure().says("neither").says("type=docker,dest=");
}
