//! Steps for another processor, run by Debian's `qemu-user-static`, and what is said where there is no emulator.
//!
//! The kernel's list of emulators is one for the whole machine. One test alone adds to it, and takes back what it added.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::lab::Lab;
use crate::support::oci::{self, Image, TarBuilder, content};
use crate::support::{Context, Run, base, is_root, text};

/// A processor that this machine does not have.
struct Foreign {
    /// OCI's and Debian's name.
    architecture: &'static str,
    /// The kernel's name.
    machine: &'static str,
    /// The number in the header of executables.
    elf: u8,
    emulator: &'static str,
}

fn foreign() -> Foreign {
    if oci::architecture() == "arm64" {
        Foreign { architecture: "amd64", machine: "x86_64", elf: 62, emulator: "qemu-x86_64-static" }
    } else {
        Foreign { architecture: "arm64", machine: "aarch64", elf: 183, emulator: "qemu-aarch64-static" }
    }
}

/// An emulator in the kernel's list, taken out again when dropped.
struct Registered {
    list: PathBuf,
    name: String,
}

impl Registered {
    /// Registers the emulator for executables of the processor with these flags. P, as Debian has it, lets a program see
    /// by which name it was started: busybox is many by that.
    fn new(list: &Path, foreign: &Foreign, emulator: &Path, flags: &str) -> Self {
        let name = format!("crossdock-test-{}", std::process::id());
        // 64 bits, little-endian, an executable of any kind: the rest of the header does not matter.
        let magic = format!(
            r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x{:02x}\x00",
            foreign.elf
        );
        let mask = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff";
        let line = format!(":{name}:M::{magic}:{mask}:{}:{flags}", text(emulator));
        std::fs::write(list.join("register"), line).unwrap();
        Self { list: list.to_owned(), name }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        std::fs::write(self.list.join(&self.name), "-1").unwrap();
    }
}

/// The kernel's list of emulators, mounted for this test alone.
struct Mounted(PathBuf);

impl Mounted {
    fn new(at: PathBuf) -> Self {
        std::fs::create_dir(&at).unwrap();
        let output = Command::new("mount").args(["-t", "binfmt_misc", "none"]).arg(&at).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self(at)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        assert!(Command::new("umount").arg(&self.0).status().unwrap().success());
    }
}

fn program(name: &str) -> PathBuf {
    let found = Command::new("sh").args(["-c", &format!("command -v {name}")]).output().unwrap().stdout;
    let found = String::from_utf8(found).unwrap();
    assert!(!found.is_empty(), "no {name}: `./test` installs qemu-user-static");
    PathBuf::from(found.trim())
}

/// A build in which `foreign` is the base image for the other processor.
fn build(lab: &Lab, dockerfile: &str, foreign: &Foreign) -> Run {
    lab.build(dockerfile).option_path(
        "--build-context",
        "foreign=oci-layout://",
        base::foreign_busybox(foreign.architecture),
    )
}

/// The platform of the image and of its configuration, where nothing of it is run: no emulator is needed.
#[test]
fn images_for_another_processor_without_commands_need_no_emulator() {
    // One that hardly any machine has an emulator for, so that this says something everywhere.
    let foreign = "s390x";
    let lab = Lab::new();
    let layer = TarBuilder::new()
        .directory("etc", 0o755)
        .file("etc/passwd", 0o644, b"root:x:0:0::/:/bin/sh\napp:x:1234:5678::/:/bin/sh\n")
        .file("etc/group", 0o644, b"root:x:0:\napp:x:5678:\n")
        .finish();
    let base = lab.context.path("base");
    oci::write_layout_for(foreign, &base, &[&layer], &serde_json::json!({"Env": ["PATH=/bin", "OF=base"]}));
    lab.file("file", "content\n");
    let platform = format!("linux/{foreign}");
    let build = |dockerfile: &str| {
        lab.build(dockerfile).option("--platform", &platform).option_path(
            "--build-context",
            "base=oci-layout://",
            &base,
        )
    };
    // Commands run on this machine, for the other one, as when a compiler makes programs for it.
    let dockerfile = "FROM --platform=$BUILDPLATFORM busybox AS compiler\n\
         ARG TARGETARCH BUILDARCH\n\
         RUN echo $BUILDARCH for $TARGETARCH > /made\n\
         FROM base\n\
         ARG TARGETPLATFORM\n\
         ENV FOR=$TARGETPLATFORM\n\
         WORKDIR /work/here\n\
         COPY --chown=app --chmod=640 file own\n\
         COPY --from=compiler /made .\n\
         USER app\n\
         CMD [\"/none\"]\n";
    let image = lab.image_of(build(dockerfile));
    assert_eq!(image.config["architecture"], foreign);
    assert_eq!(image.config["os"], "linux");
    let container = image.container();
    assert_eq!(container["Env"], serde_json::json!(["PATH=/bin", "OF=base", format!("FOR={platform}")]));
    assert_eq!(container["User"], "app");
    assert_eq!(container["WorkingDir"], "/work/here");
    let tree = image.tree();
    assert_eq!(content(&tree, "work/here/made"), format!("{} for {foreign}\n", oci::architecture()));
    let own = &tree["work/here/own"];
    assert_eq!((own.uid, own.gid, own.mode & 0o7777), (1234, 5678, 0o640));
    // From nothing at all it is the same.
    let image = lab.image_of(build("FROM scratch\nCOPY file /file\n"));
    assert_eq!(image.config["architecture"], foreign);
    assert_eq!(content(&image.tree(), "file"), "content\n");
    // A command is another matter.
    if !Path::new("/proc/sys/fs/binfmt_misc/qemu-s390x").exists() {
        let output = build("FROM base\nCOPY file /file\nRUN true\n").failure();
        output.says("Dockerfile:3").says("no emulator is registered").says("qemu-user-static");
        assert!(!output.stderr().to_lowercase().contains("exec format error"), "{output}");
    }
}

#[test]
fn steps_for_another_processor() {
    if !is_root() {
        return;
    }
    let foreign = foreign();
    let emulator = program(foreign.emulator);
    let lab = Lab::new();
    let dockerfile = format!(
        "FROM --platform=linux/{0} foreign AS other\n\
         RUN uname -m > /machine && id -u > /id && hostname > /host\n\
         USER app\n\
         RUN id -un > /tmp/user && env | grep ^HOME= > /tmp/home\n\
         FROM busybox\n\
         COPY --from=other /machine /machine\n\
         RUN uname -m > /mine\n",
        foreign.architecture
    );
    let list = Mounted::new(lab.context.path("binfmt"));
    let platform = format!("linux/{}", foreign.architecture);
    let listed = |entry: &std::fs::DirEntry| {
        let name = entry.file_name().into_string().unwrap();
        name == format!("qemu-{}", foreign.machine)
    };
    let known = std::fs::read_dir(&list.0).unwrap().any(|entry| listed(&entry.unwrap()));
    if !known {
        // Nothing is registered: that is said, and nothing has run.
        let output = build(&lab, &dockerfile, &foreign).failure();
        output.says("Dockerfile:2").says("no emulator is registered").says("qemu-user-static");
        assert!(!output.stderr().to_lowercase().contains("exec format error"), "{output}");
        lab.context.crossdock().arg("doctor").success().says("qemu-user-static");
        // It is registered in a way that works on the machine itself and not in steps.
        let registered = Registered::new(&list.0, &foreign, &emulator, "P");
        let output = build(&lab, &dockerfile, &foreign).failure();
        output.says("Dockerfile:2").says("not available inside of steps").says("flag F");
        lab.context.crossdock().arg("doctor").success().says("flag F");
        drop(registered);
    }
    let registered = (!known).then(|| Registered::new(&list.0, &foreign, &emulator, "PF"));
    let archive = lab.context.path("image.tar");
    build(&lab, &dockerfile, &foreign).option_path("--output", "type=oci,dest=", &archive).success();
    let tree = Image::read(&archive).tree();
    assert_eq!(content(&tree, "machine"), format!("{}\n", foreign.machine));
    assert_eq!(content(&tree, "mine"), format!("{}\n", std::env::consts::ARCH));
    let other = || {
        let build = build(&lab, &dockerfile, &foreign).option("--target", "other");
        build.option_path("--output", "type=oci,dest=", &archive)
    };
    other().success().says("0 run");
    let image = Image::read(&archive);
    let tree = image.tree();
    assert_eq!(image.config["architecture"], foreign.architecture);
    assert_eq!(content(&tree, "id"), "0\n");
    assert_eq!(content(&tree, "host"), "buildkitsandbox\n");
    assert_eq!(content(&tree, "tmp/user"), "app\n");
    assert_eq!(content(&tree, "tmp/home"), "HOME=/home/app\n");
    // The whole build for another platform, and each way to run steps.
    let whole =
        "FROM foreign\nARG TARGETARCH BUILDARCH\nRUN echo $(uname -m) $TARGETARCH $BUILDARCH > /all\n";
    for runtime in ["", "/usr/sbin/runc", "/usr/bin/crun"] {
        if !runtime.is_empty() && !Path::new(runtime).exists() {
            continue;
        }
        let mut build = build(&lab, whole, &foreign).option("--platform", &platform).arg("--no-cache");
        if !runtime.is_empty() {
            build = build.option("--runtime", runtime);
        }
        build.option_path("--output", "type=oci,dest=", &archive).success();
        let expected = format!("{} {} {}\n", foreign.machine, foreign.architecture, oci::architecture());
        assert_eq!(content(&Image::read(&archive).tree(), "all"), expected, "{runtime}");
    }
    // An ordinary user's steps too, where there are user namespaces.
    let ordinary = Lab::of(Context::for_user(54_321));
    ordinary
        .context
        .crossdock()
        .arg("doctor")
        .output()
        .says(&format!("steps run for {}", foreign.architecture));
    drop(registered);
    if !known {
        // What is in the cache needs no emulator.
        other().success().says("0 run");
        build(&lab, whole, &foreign).args(["--platform", &platform, "--no-cache"]).failure();
    }
}
