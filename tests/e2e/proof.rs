//! The main job on real input, from end to end: a Debian image, packages from the machine's own mirror, a C project
//! compiled, a real registry, other people's tools to pull and run the result, and a second machine that finds all
//! of it done.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::support::registry::Registry;
use crate::support::{Context, Run, base, is_root, oci, text};

/// A step that installs a compiler over the network, in a debug build on two busy cores.
const PATIENCE: Duration = Duration::from_mins(10);

/// The second stage of a build, whose first stage compiled `src/` and left a file of random bytes. Whoever gets the
/// same bytes later has not run that step again.
const DOCKERFILE: &str = r#"# syntax=docker/dockerfile:1
FROM debian AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev make
WORKDIR /project
COPY Makefile .
COPY src src
RUN make -j2 && od -An -tx1 -N16 /dev/urandom > nonce

FROM debian
COPY --from=build /project/app /usr/local/bin/app
COPY --from=build /project/nonce /nonce
CMD ["/usr/local/bin/app"]
"#;

/// The files of the C project: one for each summand, a header, a `main`, a Makefile. Prints the sum of the squares.
fn write_project(context: &Context, directory: &str, count: u32) {
    let mut header = String::new();
    let mut sum = String::from("0");
    for number in 0..count {
        writeln!(header, "int square_{number}(void);").unwrap();
        write!(sum, " + square_{number}()").unwrap();
        context.write(
            format!("{directory}/src/square_{number}.c"),
            format!("#include \"squares.h\"\nint square_{number}(void) {{ return {number} * {number}; }}\n"),
        );
    }
    context.write(format!("{directory}/src/squares.h"), header);
    context.write(
        format!("{directory}/src/main.c"),
        format!(
            "#include <stdio.h>\n#include \"squares.h\"\n\
             int main(void) {{ printf(\"the squares add up to %d\\n\", {sum}); return 0; }}\n"
        ),
    );
    context.write(
        format!("{directory}/Makefile"),
        "objects := $(patsubst %.c,%.o,$(wildcard src/*.c))\napp: $(objects)\n\t$(CC) -o $@ $^\n\
         %.o: %.c src/squares.h\n\t$(CC) -O1 -Wall -Werror -c -o $@ $<\n",
    );
    context.write(format!("{directory}/Dockerfile"), DOCKERFILE);
}

/// A build of the project by a runner that keeps its own files in `local`; all runners share one cache.
fn runner(context: &Context, local: &str) -> Run {
    context
        .build()
        .timeout(PATIENCE)
        .env("CROSSDOCK_LOCAL", context.path(local))
        .env("CROSSDOCK_CACHE", format!("file://{}", context.path("shared").display()))
        .option_path("--build-context", "debian=oci-layout://", base::debian())
}

/// The image under a tag, copied out of the registry by skopeo.
fn pulled(context: &Context, name: &str, directory: &str) -> oci::Image {
    let layout = context.path(directory);
    context
        .command("skopeo")
        .args(["copy", "--src-tls-verify=false", &format!("docker://{name}")])
        .arg(format!("oci:{}:latest", text(&layout)))
        .success();
    oci::Image::read(&layout)
}

fn podman(context: &Context) -> Run {
    context.command("podman").timeout(PATIENCE).args([
        "--root",
        text(&context.path("podman/root")),
        "--runroot",
        text(&context.path("podman/run")),
        "--storage-driver=vfs",
        "--cgroup-manager=cgroupfs",
        "--events-backend=none",
    ])
}

/// Without what a sandboxed machine may refuse: raising limits, and crun where control groups are in their mixed form.
const RUN: [&str; 6] = [
    "run",
    "--rm",
    "--network=none",
    "--ulimit=nofile=1024:1024",
    "--ulimit=nproc=1024:1024",
    "--runtime=runc",
];

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The whole way. One test, because each part starts from what the one before it made, and the first takes a minute.
#[test]
fn a_c_project_on_debian_is_built_once_for_all_runners() {
    let context = Context::new();
    let registry = Registry::start();
    let name = |tag: &str| format!("{}/proof/app:{tag}", registry.address());
    write_project(&context, "project", 40);

    // The first runner does all the work, and pushes.
    runner(&context, "first")
        .args(["--tag", &name("first"), "--push"])
        .option("--iidfile", context.path("iid"))
        .option("--metadata-file", context.path("metadata.json"))
        .arg(context.path("project"))
        .success();
    let first = pulled(&context, &name("first"), "first-image");
    let tree = first.tree();
    assert_eq!(first.container()["Cmd"], serde_json::json!(["/usr/local/bin/app"]));
    assert_eq!(tree["usr/local/bin/app"].mode, 0o755);
    assert!(!tree.contains_key("project/nonce"), "nothing of the first stage but what was copied");
    assert!(!tree.contains_key("usr/bin/gcc"), "nothing of the first stage but what was copied");
    let metadata = read_json(&context.path("metadata.json"));
    assert_eq!(metadata["containerimage.digest"], first.digest.as_str(), "{metadata}");
    let iid = std::fs::read_to_string(context.path("iid")).unwrap();
    let config_digest = first.manifest["config"]["digest"].as_str().unwrap();
    assert!([config_digest, first.digest.as_str()].contains(&iid.trim()), "--iidfile: {iid}");

    // Others can pull it and run it.
    podman(&context).args(["pull", "--tls-verify=false", &name("first")]).success();
    if is_root() {
        podman(&context).args(RUN).arg(name("first")).success().says("the squares add up to 20540");
    }

    // A second runner starts empty. It has nothing to run, and says so before it starts and by what it makes.
    runner(&context, "second").args(["--dry-run"]).arg(context.path("project")).success();
    runner(&context, "second")
        .args(["--tag", &name("second"), "--push"])
        .arg(context.path("project"))
        .success();
    let second = pulled(&context, &name("second"), "second-image");
    assert_eq!(second.digest, first.digest, "the same build gives the same image");

    // A third one has changed a source file: it installs no packages, but it compiles.
    context.write(
        "project/src/square_7.c",
        "#include \"squares.h\"\nint square_7(void) { return 7 * 7 + 1000; }\n",
    );
    runner(&context, "third").args(["--dry-run"]).arg(context.path("project")).failure();
    let build_stage = context.path("third-stage.tar");
    runner(&context, "third")
        .args(["--target", "build"])
        .option_path("--output", "type=oci,dest=", &build_stage)
        .arg(context.path("project"))
        .success();
    let unchanged = context.path("first-stage.tar");
    context.write("project/src/square_7.c", "#include \"squares.h\"\nint square_7(void) { return 7 * 7; }\n");
    runner(&context, "fourth")
        .args(["--target", "build"])
        .option_path("--output", "type=oci,dest=", &unchanged)
        .arg(context.path("project"))
        .success();
    let (before, after) = (oci::Image::read(&unchanged), oci::Image::read(&build_stage));
    let layers = |image: &oci::Image| image.manifest["layers"].as_array().unwrap().clone();
    let (before_layers, after_layers) = (layers(&before), layers(&after));
    let same =
        before_layers.iter().zip(&after_layers).take_while(|(a, b)| a["digest"] == b["digest"]).count();
    // The base, apt-get, WORKDIR and the Makefile; then the sources differ, and with them the compile.
    assert_eq!((same, before_layers.len(), after_layers.len()), (4, 6, 6));
    assert_ne!(
        oci::content(&before.tree(), "project/nonce"),
        oci::content(&after.tree(), "project/nonce"),
        "the compile step ran again"
    );
    assert_eq!(oci::content(&before.tree(), "project/nonce"), oci::content(&tree, "nonce"), "and only then");

    // Nothing is damaged, nothing is left.
    for store in ["shared", "first", "second", "third", "fourth"] {
        context.verify_store(store);
    }
}

/// The same image for an old client: `--compression gzip`, read by a Docker-archive loader, and run.
#[test]
fn a_docker_archive_can_be_loaded_and_run() {
    let context = Context::new();
    context.write(
        "project/Dockerfile",
        "FROM busybox\nRUN echo made > /made && mkdir /work && chown app /work\nUSER app\nCMD [\"sh\", \"-c\", \"cat /made; id -un\"]\n",
    );
    let archive = context.path("image.tar");
    context
        .build()
        .args(["--compression", "gzip", "--tag", "example.test/archive:1"])
        .option_path("--build-context", "busybox=oci-layout://", base::busybox())
        .option_path("--output", "type=docker,dest=", &archive)
        .arg(context.path("project"))
        .success();
    podman(&context).args(["load", "--input", text(&archive)]).success().says("example.test/archive:1");
    if is_root() {
        podman(&context).args(RUN).arg("example.test/archive:1").success().says("made\napp\n");
    }
}
