//! Base images, made on this machine from its own packages: nothing is pulled from a registry.
//!
//! They are kept in `target/tmp/bases`, keyed by what went into them, so that a second run finds them made.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::json;

use super::Context;
use super::oci::{self, TarBuilder};

/// A statically linked shell and its tools: an image of one layer of about 2 MB.
///
/// Besides root it knows the user `app` (1000, group `app` 1000) and the group `staff` (50).
pub(crate) fn busybox() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let program = busybox_program();
        let bytes = std::fs::read(&program).unwrap();
        let applets = applets(&program);
        let key = oci::digest(format!("1 {} {applets:?}", oci::digest(&bytes)).as_bytes());
        cached("busybox", &key, |directory| write_busybox(oci::architecture(), directory, &bytes, &applets))
    })
}

/// Busybox for another architecture, from that architecture's package; its tools are those of this machine's.
pub(crate) fn foreign_busybox(architecture: &str) -> PathBuf {
    let bytes = std::fs::read(busybox_program()).unwrap();
    let key = oci::digest(format!("1 {architecture} {}", oci::digest(&bytes)).as_bytes());
    cached(&format!("busybox.{architecture}"), &key, |directory| {
        let root = directory.with_extension("apt");
        let program = Apt::of_this_machine().foreign_file(
            &root,
            architecture,
            "busybox-static",
            &["bin/busybox", "usr/bin/busybox"],
        );
        write_busybox(architecture, directory, &program, &applets(&busybox_program()));
        std::fs::remove_dir_all(&root).unwrap();
    })
}

/// Busybox, and besides it this machine's own `make`, `setfattr`, `getfattr` and `touch` in `/usr/bin`, with the libraries
/// that they are linked with.
pub(crate) fn busybox_with_make() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let busybox = busybox_program();
        let bytes = std::fs::read(&busybox).unwrap();
        let applets = applets(&busybox);
        let files: BTreeMap<String, Vec<u8>> =
            ["make", "setfattr", "getfattr", "touch"].into_iter().flat_map(program_files).collect();
        let parts: Vec<_> = files.iter().map(|(path, bytes)| (path, oci::digest(bytes))).collect();
        let key = oci::digest(format!("1 {} {applets:?} {parts:?}", oci::digest(&bytes)).as_bytes());
        cached("tools.busybox", &key, |directory| {
            let mut tar = busybox_tar(&bytes, &applets);
            for (path, bytes) in &files {
                tar = tar.file(path, 0o755, bytes);
            }
            write_busybox_layout(oci::architecture(), directory, tar);
        })
    })
}

/// A program of this machine and the libraries that it needs, each by the path where it looks for them.
fn program_files(program: &str) -> Vec<(String, Vec<u8>)> {
    let path = format!("usr/bin/{program}");
    let libraries = run(Command::new("ldd").arg(format!("/{path}")));
    let paths =
        libraries.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    let paths = paths.map(|path| path.trim_start_matches('/').to_owned());
    std::iter::once(path.clone())
        .chain(paths)
        .map(|path| {
            let bytes = std::fs::read(format!("/{path}")).unwrap();
            (path, bytes)
        })
        .collect()
}

fn write_busybox(architecture: &str, directory: &Path, bytes: &[u8], applets: &[String]) {
    write_busybox_layout(architecture, directory, busybox_tar(bytes, applets));
}

fn write_busybox_layout(architecture: &str, directory: &Path, tar: TarBuilder) {
    let layer = tar.finish();
    oci::write_layout_for(
        architecture,
        directory,
        &[&layer],
        &json!({"Env": ["PATH=/bin:/usr/bin"], "Cmd": ["/bin/sh"]}),
    );
}

fn busybox_tar(bytes: &[u8], applets: &[String]) -> TarBuilder {
    let mut tar = TarBuilder::new();
    for (path, mode) in [
        ("bin", 0o755),
        ("dev", 0o755),
        ("etc", 0o755),
        ("home", 0o755),
        ("proc", 0o755),
        ("root", 0o700),
        ("sys", 0o755),
        ("tmp", 0o1777),
        ("usr", 0o755),
        ("usr/bin", 0o755),
        ("var", 0o755),
    ] {
        tar = tar.directory(path, mode);
    }
    tar = tar
        .file("bin/busybox", 0o755, bytes)
        .file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n")
        .file("etc/group", 0o644, b"root:x:0:\nstaff:x:50:app\napp:x:1000:\n");
    for applet in applets {
        tar = tar.symlink(&format!("bin/{applet}"), "busybox");
    }
    // What a `#!` line expects.
    tar.symlink("usr/bin/env", "/bin/busybox")
}

fn busybox_program() -> PathBuf {
    ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
        .expect("no busybox: `./test` installs busybox-static")
}

fn applets(program: &Path) -> Vec<String> {
    let list = run(Command::new(program).arg("--list"));
    list.lines().filter(|applet| *applet != "busybox").map(ToOwned::to_owned).collect()
}

/// The machine's own Debian or Ubuntu release as debootstrap makes it: dpkg, apt and what they need, set up for
/// the package mirror that this machine uses, so that `apt-get update && apt-get install` works in a step.
pub(crate) fn debian() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let apt = Apt::of_this_machine();
        let key = oci::digest(format!("1 {apt:?}").as_bytes());
        cached("debian", &key, |directory| {
            let root = directory.with_extension("root");
            let tar = directory.with_extension("tar");
            apt.bootstrap(&root);
            // Entries in a fixed order, so that the same packages give the same image.
            run(as_root("tar").args(["--create", "--numeric-owner", "--xattrs", "--sort=name"]).args([
                "--exclude=./proc/*",
                "--exclude=./sys/*",
                "--exclude=./dev/*",
                "--exclude=./var/cache/apt/*",
                "--exclude=./var/lib/apt/lists/*",
                "--exclude=./var/log/*",
                "--file",
                tar.to_str().unwrap(),
                "--directory",
                root.to_str().unwrap(),
                ".",
            ]));
            let layer = std::fs::read(&tar).unwrap();
            let environment = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"];
            oci::write_layout(directory, &[&layer], &json!({"Env": environment, "Cmd": ["bash"]}));
            run(as_root("rm").arg("-rf").arg(&root).arg(&tar));
        })
    })
}

/// Debian with more packages: `name` is what this base is called among the others, which must not be the beginning of
/// another one's. Built by the program under test, once for all runs.
pub(crate) fn debian_with(name: &str, packages: &str) -> PathBuf {
    let debian = debian();
    let key = oci::digest(format!("1 {} {packages}", debian.file_name().unwrap().display()).as_bytes());
    cached(&format!("tools.{name}"), &key, |directory| {
        let context = Context::new();
        context.write(
            "project/Dockerfile",
            format!(
                "FROM debian\nRUN apt-get update -q && DEBIAN_FRONTEND=noninteractive \
                 apt-get install -q -y --no-install-recommends {packages} && rm -rf /var/lib/apt/lists\n"
            ),
        );
        context
            .build()
            .timeout(Duration::from_mins(40))
            .option_path("--build-context", "debian=oci-layout://", debian)
            .option_path("--output", "type=oci,tar=false,dest=", directory)
            .arg(context.path("project"))
            .success();
    })
}

/// Where this machine gets its packages from.
#[derive(Debug)]
struct Apt {
    suite: String,
    /// URI, suite and components of each source of the distribution itself.
    sources: Vec<(String, String, Vec<String>)>,
    /// The settings about reaching a mirror: proxies, certificates, checks.
    settings: String,
}

impl Apt {
    fn of_this_machine() -> Self {
        let release = std::fs::read_to_string("/etc/os-release").unwrap();
        let field = |name: &str| {
            release
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
                .map(|value| value.trim_matches('"').to_owned())
        };
        let suite = field("VERSION_CODENAME").expect("/etc/os-release names no release");
        let format = "$(REPO_URI) $(RELEASE) $(COMPONENT)";
        let listed =
            run(Command::new("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]));
        let mut sources: Vec<(String, String, Vec<String>)> = Vec::new();
        for line in listed.lines() {
            let mut words = line.split(' ').map(ToOwned::to_owned);
            let (Some(uri), Some(of), Some(component)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            // Third parties' sources have keys and suites of their own, and the tests need none of them.
            if of != suite && !of.starts_with(&format!("{suite}-")) {
                continue;
            }
            match sources.iter_mut().find(|source| source.0 == uri && source.1 == of) {
                Some(source) if source.2.contains(&component) => {}
                Some(source) => source.2.push(component),
                None => sources.push((uri, of, vec![component])),
            }
        }
        if sources.is_empty() {
            let mirror = if field("ID").as_deref() == Some("ubuntu") {
                "http://archive.ubuntu.com/ubuntu"
            } else {
                "http://deb.debian.org/debian"
            };
            sources.push((mirror.to_owned(), suite.clone(), vec!["main".to_owned()]));
        }
        let dumped = run(Command::new("apt-config").arg("dump"));
        let settings = dumped
            .lines()
            .filter(|line| {
                ["Acquire::Check-", "Acquire::Retries", "Acquire::http", "Acquire::https", "Acquire::ftp"]
                    .iter()
                    .any(|prefix| line.starts_with(prefix))
            })
            .fold(String::new(), |text, line| text + line + "\n");
        Self { suite, sources, settings }
    }

    /// A file out of a package for another architecture, at the first of several places. `root` is a directory for
    /// apt's own files: the machine's stay as they are.
    fn foreign_file(&self, root: &Path, architecture: &str, package: &str, places: &[&str]) -> Vec<u8> {
        for directory in ["lists/partial", "archives/partial", "unpacked"] {
            std::fs::create_dir_all(root.join(directory)).unwrap();
        }
        std::fs::write(root.join("status"), "").unwrap();
        let setting = |name: &str, value: &str| format!("-o{name}={value}");
        let at = |name: &str, path: &str| setting(name, root.join(path).to_str().unwrap());
        let mut settings = vec![
            setting("APT::Architecture", architecture),
            setting("APT::Architectures", architecture),
            setting("APT::Sandbox::User", "root"),
            at("Dir::State::lists", "lists"),
            at("Dir::State::status", "status"),
            at("Dir::Cache", "."),
        ];
        // Ubuntu has two mirrors: one for PCs, one for all others.
        if self.sources.iter().any(|(uri, ..)| uri.contains("ubuntu.com")) {
            let uri = match architecture {
                "amd64" => "http://archive.ubuntu.com/ubuntu",
                _ => "http://ports.ubuntu.com/ubuntu-ports",
            };
            let keys = "/usr/share/keyrings/ubuntu-archive-keyring.gpg";
            let list = format!("deb [signed-by={keys}] {uri} {} main universe\n", self.suite);
            std::fs::write(root.join("sources.list"), list).unwrap();
            settings.push(at("Dir::Etc::sourcelist", "sources.list"));
            settings.push(setting("Dir::Etc::sourceparts", "-"));
        }
        run(Command::new("apt-get").args(&settings).args(["-q", "update"]));
        run(Command::new("apt-get").current_dir(root).args(&settings).args(["-q", "download", package]));
        let packages = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
        let package =
            packages.into_iter().find(|path| path.extension().is_some_and(|end| end == "deb")).unwrap();
        run(Command::new("dpkg-deb").arg("-x").arg(package).arg(root.join("unpacked")));
        let mut files = places.iter().map(|place| root.join("unpacked").join(place));
        std::fs::read(files.find(|file| file.exists()).unwrap()).unwrap()
    }

    fn bootstrap(&self, root: &Path) {
        let main = self.sources.iter().find(|source| source.1 == self.suite).unwrap_or(&self.sources[0]);
        let mut command = as_root("debootstrap");
        command.args(["--variant=minbase", "--merged-usr"]);
        command.arg(format!("--components={}", main.2.join(",")));
        if main.0.starts_with("https:") {
            command.arg("--include=ca-certificates");
        }
        run(command.arg(&self.suite).arg(root).arg(&main.0));
        let sources = self.sources.iter().fold(String::new(), |mut text, (uri, suite, components)| {
            writeln!(text, "deb {uri} {suite} {}", components.join(" ")).unwrap();
            text
        });
        install(&root.join("etc/apt/sources.list"), &sources);
        install(&root.join("etc/apt/apt.conf.d/90this-machine"), &self.settings);
        // A certificate authority of the machine's own, if its settings name one.
        for line in self.settings.lines().filter(|line| line.contains("CaInfo")) {
            if let Some(path) = line.split('"').nth(1) {
                let copy = root.join(path.trim_start_matches('/'));
                run(as_root("install").args(["-D", "-m", "644"]).arg(path).arg(copy));
            }
        }
    }
}

/// Writes a file into a directory that belongs to root.
fn install(path: &Path, content: &str) {
    let mut source = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut source, content.as_bytes()).unwrap();
    run(as_root("install").args(["-D", "-m", "644"]).arg(source.path()).arg(path));
}

/// A command run as root: directly, or through sudo, which must not ask.
fn as_root(program: &str) -> Command {
    if super::is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.args(["--non-interactive", program]);
    command
}

#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| {
        panic!("{command:?}: {error}\n(what the tests need is installed by `./test`)");
    });
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// The directory of a base, made by `make` unless it is there: complete or absent, also when two test processes
/// want it at the same time.
fn cached(name: &str, key: &str, make: impl FnOnce(&Path)) -> PathBuf {
    let bases = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bases");
    std::fs::create_dir_all(&bases).unwrap();
    let lock = File::create(bases.join(format!("{name}.lock"))).unwrap();
    lock.lock().unwrap();
    let directory = bases.join(format!("{name}-{}", &key["sha256:".len()..][..16]));
    if !directory.exists() {
        // What an interrupted run left: the lock says that nobody is at work here.
        for left in std::fs::read_dir(&bases).unwrap().map(Result::unwrap) {
            let file_name = left.file_name().into_string().unwrap();
            if file_name.starts_with(&format!("{name}-")) {
                run(as_root("rm").arg("-rf").arg(left.path()));
            }
        }
        let unfinished = bases.join(format!("{name}-unfinished"));
        make(&unfinished);
        std::fs::rename(&unfinished, &directory).unwrap();
    }
    directory
}
