//! Secrets reach the step that mounts them, and nothing else: not a layer, a log, a record, an error or a file on disk.

use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::support::lab::Lab;
use crate::support::oci::content;
use crate::support::{Context, Output, base, is_root};

/// What is looked for: secrets, and what base64 makes of them.
struct Search {
    needles: Vec<(String, Vec<u8>)>,
    /// Which bytes they begin with.
    firsts: [bool; 256],
    looked_at: u64,
}

impl Search {
    fn new(secrets: &[(&str, &[u8])]) -> Self {
        let mut needles = Vec::new();
        for (name, secret) in secrets {
            let trimmed = secret.trim_ascii();
            for line in trimmed.split(|byte| *byte == b'\n').filter(|line| line.len() >= 8) {
                needles.push((format!("a line of {name}"), line.to_vec()));
            }
            for (shift, skip) in [(0, 0), (1, 2), (2, 3)] {
                let text = STANDARD.encode([&b"::"[..shift], trimmed].concat());
                // The last characters depend on what comes behind; lines break after 76.
                let end = text.len().min(76) - 4;
                needles.push((format!("{name} in base64"), text.as_bytes()[skip..end].to_vec()));
            }
        }
        let mut firsts = [false; 256];
        for (_, needle) in &needles {
            firsts[usize::from(needle[0])] = true;
        }
        Self { needles, firsts, looked_at: 0 }
    }

    /// Looks into bytes, and into what they are compressed or packed from.
    #[track_caller]
    fn bytes(&mut self, place: &str, bytes: &[u8]) {
        self.looked_at += 1;
        for (at, byte) in bytes.iter().enumerate() {
            if self.firsts[usize::from(*byte)] {
                let found = self.needles.iter().find(|(_, needle)| bytes[at..].starts_with(needle));
                assert!(found.is_none(), "{} is in {place}", found.unwrap().0);
            }
        }
        let mut plain = Vec::new();
        if bytes.starts_with(b"\x1f\x8b") {
            flate2::read::MultiGzDecoder::new(bytes).read_to_end(&mut plain).unwrap();
        } else if bytes.starts_with(b"\x28\xb5\x2f\xfd") {
            plain = zstd::decode_all(bytes).unwrap();
        } else if bytes.get(257..262) == Some(b"ustar") {
            let mut archive = tar::Archive::new(bytes);
            for entry in archive.entries().unwrap() {
                let mut entry = entry.unwrap();
                let inner = format!("{place}: {}", entry.path().unwrap().display());
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                self.bytes(&inner, &content);
            }
        }
        if !plain.is_empty() {
            self.bytes(&format!("{place} (unpacked)"), &plain);
        }
    }

    #[track_caller]
    fn output(&mut self, output: &Output) {
        self.bytes(&format!("standard output of {output}"), &output.stdout);
        self.bytes(&format!("standard error of {output}"), &output.stderr);
    }

    /// Looks into every file of a directory, and at their names.
    #[track_caller]
    fn directory(&mut self, directory: &Path) {
        for entry in walkdir::WalkDir::new(directory) {
            let entry = entry.unwrap();
            let path = entry.path().display().to_string();
            self.bytes(&format!("the name {path}"), path.as_bytes());
            if entry.file_type().is_file() {
                self.bytes(&path, &std::fs::read(entry.path()).unwrap());
            }
        }
    }
}

const FILE: &[u8] =
    b"first-line-of-the-file-secret\nsecond line: $(not) 'quoted' \"text\" 0123456789abcdef\n";
const VARIABLE: &str = "variable-secret/with+odd=characters&more";
const STDIN: &[u8] = b"stdin-secret-0a1b2c3d4e5f-0a1b2c3d4e5f-0a1b2c3d4e5f-0a1b2c3d4e5f-0a1b2c3d4e5f-end";

/// All of them in one step, as files and as variables.
const MOUNTS: &str = "--mount=type=secret,id=file,mode=0440 --mount=type=secret,id=variable,env=VARIABLE \
    --mount=type=secret,id=stdin,target=/in/stdin,env=IN --mount=type=ssh";

fn sha256(bytes: &[u8]) -> String {
    crate::support::oci::digest(bytes).replace("sha256:", "")
}

#[test]
fn secrets_are_nowhere_but_in_their_step() {
    let lab = Lab::new();
    let context = &lab.context;
    let given = Context::new();
    let file = given.write("secret", FILE);
    let key = given.path("key");
    context.command("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).success();
    let private = std::fs::read(&key).unwrap();
    let secrets = [("file", FILE), ("variable", VARIABLE.as_bytes()), ("stdin", STDIN), ("key", &private)];
    let mut search = Search::new(&secrets);
    let build_with = |progress: &str, dockerfile: &str| {
        lab.file("Dockerfile", dockerfile);
        context
            .crossdock()
            .args(["build", "--progress", progress])
            .option_path("--build-context", "busybox=oci-layout://", base::busybox())
            .arg(context.path("project"))
            .option_path("--secret", "id=file,src=", &file)
            .args(["--secret", "id=variable,env=THE_VARIABLE", "--secret", "type=file,id=stdin,source=-"])
            .option_path("--ssh", "default=", &key)
            .option_path("--cache", "file://", context.path("shared"))
            .env("THE_VARIABLE", VARIABLE)
            .stdin(STDIN)
    };
    let build = |dockerfile: &str| build_with("plain", dockerfile);

    // The step has them, whole; what it prints of them is masked.
    let print = "cat /run/secrets/file /in/stdin; echo $VARIABLE; echo $IN | base64; base64 -w 0 < /run/secrets/file; \
        cat /run/secrets/file >&2; echo user:$IN | base64 -w 0; env; \
        while read -r -n 1 c; do echo -n \"$c\"; done < /in/stdin; echo visible-marker";
    let dockerfile = format!(
        "FROM busybox\n\
         RUN {MOUNTS} sha256sum < /run/secrets/file > /sums; sha256sum < /in/stdin >> /sums; \
             printf %s \"$VARIABLE\" | sha256sum >> /sums; printf %s \"$IN\" | sha256sum >> /sums; \
             stat -c '%u %a' /run/secrets/file > /access\n\
         RUN {MOUNTS} {print}\n\
         RUN [ -z \"$VARIABLE$IN\" ] && [ ! -e /in/stdin ] && [ ! -e /run/secrets/file ] && touch /gone\n"
    );
    let archives =
        ["type=oci,dest=", "type=docker,dest=", "type=oci,compression=gzip,dest=", "type=tar,dest="];
    for (number, (archive, progress)) in
        archives.into_iter().zip(["plain", "rawjson", "tty", "plain"]).enumerate()
    {
        let path = context.path(format!("results/{number}.tar"));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let build = build_with(progress, &dockerfile).arg("--no-cache");
        let build = build.option_path("--metadata-file", "", context.path(format!("results/{number}.json")));
        let output = build.option_path("--output", archive, &path).success();
        search.output(&output);
        if number != 2 {
            output.says("***").says("visible-marker");
        }
    }
    let tree = crate::support::oci::Image::read(&context.path("results/0.tar")).tree();
    let stdin_hash = sha256(STDIN);
    let sums =
        [sha256(FILE), stdin_hash.clone(), sha256(VARIABLE.as_bytes()), stdin_hash].map(|sum| sum + "  -\n");
    assert_eq!(content(&tree, "sums"), sums.concat());
    assert_eq!(content(&tree, "access"), "0 440\n");
    assert!(tree.contains_key("gone"));
    assert!(!tree.contains_key("in") && !tree.contains_key("run"), "mount points reach no layer");

    // What fails says why, and not with what.
    for (run, message) in [
        (format!("RUN {MOUNTS} {print}; exit 7"), "exit code 7"),
        (format!("RUN {MOUNTS} exec /bin/nothing \"$VARIABLE\""), "exit code 127"),
        (format!("RUN {MOUNTS} [\"/bin/nothing\"]"), "exit code 127"),
        (format!("RUN {MOUNTS} --mount=type=secret,id=file,target=/etc/passwd/x true"), "/etc/passwd/x"),
        (format!("RUN {MOUNTS} --mount=type=secret,id=absent,required true"), "absent"),
        (format!("USER nobody-there\nRUN {MOUNTS} true"), "nobody-there"),
        (format!("RUN {MOUNTS} sh -c 'kill -9 $$' || exit $?"), "exit code 137"),
    ] {
        for progress in ["plain", "rawjson", "tty"] {
            let output = build_with(progress, &format!("FROM busybox\n{run}\n")).failure();
            output.says(message);
            search.output(&output);
        }
    }
    let output = build("FROM busybox\nRUN echo \"unfinished\n").failure();
    search.output(&output);

    // What a build would do, and what it is keyed on, knows of their names only.
    let output = build(&dockerfile).arg("--dry-run").success();
    search.output(&output);
    let fingerprint = context
        .crossdock()
        .args(["fingerprint", "--format=json", "--secret=id=stdin,src=-"])
        .option_path("--secret", "id=file,src=", &file)
        .option_path("--build-context", "busybox=oci-layout://", base::busybox())
        .arg(context.path("project"))
        .stdin(STDIN)
        .success();
    search.output(&fingerprint);
    for command in ["ls", "du"] {
        search.output(&context.crossdock().args(["cache", command, "--format=json"]).success());
    }

    // Another value does not run the step again, and other runtimes keep them as well.
    let other = build(&dockerfile).env("THE_VARIABLE", "something else entirely").success();
    assert!(other.stderr().contains(" 0 run"), "{other}");
    if is_root() && Path::new("/usr/sbin/runc").exists() {
        let output = build(&dockerfile).args(["--no-cache", "--runtime=runc"]).success();
        search.output(output.says("***").says("visible-marker"));
    }

    // A build that is killed in the middle of such a step leaves nothing of them either.
    let sleeping = "FROM busybox\nRUN --mount=type=cache,target=/c --mount=type=secret,id=file --mount=type=secret,id=v,env=V \
        cat /run/secrets/file > /dev/shm/copy; touch /c/has-started; sleep 60\n";
    let build = lab.build(sleeping).option_path("--secret", "id=file,src=", &file);
    let mut child = build.args(["--secret", "id=v,env=V"]).env("V", VARIABLE).spawn();
    let started = Instant::now();
    let has_started = || {
        let mut files = walkdir::WalkDir::new(context.path("xdg")).into_iter().filter_map(Result::ok);
        files.any(|entry| entry.file_name() == "has-started")
    };
    while !has_started() {
        assert!(started.elapsed() < Duration::from_secs(30), "the step did not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();

    // The local cache, the shared one, results, home, temporary files.
    let before = search.looked_at;
    search.directory(&context.path("."));
    assert!(search.looked_at > before + 50, "only {} things were looked at", search.looked_at - before);
}
