//! The server's image: built by Crossdock, run by podman, and used as a cache.

#![allow(clippy::print_stdout, reason = "skipping is said aloud")]

use std::io::{BufRead as _, BufReader};
use std::net::TcpStream;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::lab::Lab;
use crate::support::{Context, Run, is_root, oci, port, text};

/// What the Dockerfile's first stage makes, without the half hour that a static program takes to build: the program under
/// test with the libraries that it needs.
fn built(context: &Context) -> std::path::PathBuf {
    let out = context.path("stage/out");
    for directory in ["etc/ssl/certs", "tmp", "lib64"] {
        std::fs::create_dir_all(out.join(directory)).unwrap();
    }
    let program = Path::new(env!("CARGO_BIN_EXE_crossdock"));
    std::fs::copy(program, out.join("crossdock")).unwrap();
    std::fs::write(out.join("etc/passwd"), "crossdock:x:65532:65532::/data:/none\n").unwrap();
    let libraries = context.command("ldd").arg(program).success().stdout();
    for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        let place = out.join(library.trim_start_matches('/'));
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::fs::copy(library, place).unwrap();
    }
    context.path("stage")
}

fn podman(context: &Context) -> Run {
    context.command("podman").args([
        "--root",
        text(&context.path("podman/root")),
        "--runroot",
        text(&context.path("podman/run")),
        "--storage-driver=vfs",
        "--cgroup-manager=cgroupfs",
        "--events-backend=none",
    ])
}

#[test]
fn the_servers_image_serves() {
    if !is_root() {
        println!("skipped: running a container here needs root");
        return;
    }
    let lab = Lab::new();
    let context = &lab.context;
    let archive = context.path("server.tar");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    context
        .build()
        .option_path("--build-context", "build=", built(context))
        .args(["--tag", "example.test/crossdock:1"])
        .option_path("--output", "type=oci,dest=", &archive)
        .arg(root)
        .success();
    let image = oci::Image::read(&archive);
    let config = &image.config["config"];
    assert_eq!(config["User"], "65532:65532");
    assert_eq!(config["StopSignal"], "SIGTERM");
    assert!(config["ExposedPorts"]["7070/tcp"].is_object(), "{config}");
    assert_eq!(image.tree()["data"].uid, 65532);

    podman(context).args(["load", "--input", text(&archive)]).success();
    let port = port::free();
    let address = format!("127.0.0.1:{port}");
    // Without what a sandboxed machine may refuse.
    let mut server = podman(context)
        .args(["run", "--rm", "--network=host", "--read-only", "--runtime=runc", "--name=server"])
        .args(["--ulimit=nofile=4096:4096", "--ulimit=nproc=1024:1024", "--volume=/data"])
        .args(["--env", &format!("CROSSDOCK_LISTEN={address}"), "example.test/crossdock:1"])
        .into_command()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let said = BufReader::new(server.stderr.take().unwrap());
    let token = said.lines().map_while(Result::ok).find_map(|line| {
        let (_, rest) = line.split_once("CROSSDOCK_TOKEN=")?;
        rest.split_whitespace().next().map(str::to_owned)
    });
    let token = token.expect("the first start shows a token");
    let started = Instant::now();
    while TcpStream::connect(&address).is_err() {
        assert!(started.elapsed() < Duration::from_secs(30), "the server does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    let build = |name: &str| {
        let build = lab.build("FROM busybox\nRUN echo made > /made\n");
        let build = build.env("CROSSDOCK_LOCAL", context.path(name)).env("CROSSDOCK_TOKEN", &token);
        build.option("--cache", format!("http://{address}")).success()
    };
    build("one").says("0 cached, 1 run");
    build("two").says("1 cached, 0 run");
    podman(context).args(["stop", "--time=30", "server"]).success();
    assert!(server.wait().unwrap().success(), "it ends when it is told to");
}
