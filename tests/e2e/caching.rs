//! What runs again and what does not, seen from outside: a step that writes random bytes gives itself away.

use std::time::Duration;

use crate::support::lab::Lab;
use crate::support::oci::{self, content};

/// Writes bytes that nobody can guess: the same bytes in two images mean that the step ran once.
const NONCE: &str = "od -An -tx1 -N16 /dev/urandom";

fn nonce(image: &oci::Image) -> String {
    content(&image.tree(), "nonce")
}

#[test]
fn an_unchanged_build_runs_nothing() {
    let lab = Lab::new();
    lab.file("file", "1");
    let dockerfile = format!("FROM busybox\nCOPY file /file\nRUN cat /file; {NONCE} > /nonce\nCMD [\"x\"]\n");
    lab.build(&dockerfile).arg("--dry-run").failure();
    let first = lab.image(&dockerfile);
    lab.build(&dockerfile).arg("--dry-run").success();
    let second = lab.image(&dockerfile);
    assert_eq!(first.digest, second.digest);
    // A checkout gives every file another time.
    lab.file("file", "1");
    assert_eq!(first.digest, lab.image(&dockerfile).digest, "times are no inputs");
    lab.file("another file", "that nobody copies");
    assert_eq!(first.digest, lab.image(&dockerfile).digest, "only what is copied counts");
    lab.file("file", "2");
    assert_ne!(nonce(&first), nonce(&lab.image(&dockerfile)));
}

#[test]
fn each_input_of_a_step_counts() {
    let lab = Lab::new();
    let run = |rest: &str| format!("FROM busybox\n{rest}RUN {NONCE} > /nonce\n");
    let first = nonce(&lab.image(&run("")));
    for other in [
        "ENV A=b\n",
        "ARG A=b\n",
        "WORKDIR /elsewhere\n",
        "USER app\nWORKDIR /tmp\nUSER root\n",
        "SHELL [\"/bin/sh\", \"-ec\"]\n",
    ] {
        assert_ne!(first, nonce(&lab.image(&run(other))), "{other}");
    }
    // What it does not look at counts only where nobody knows what it looks at.
    for (whole, traced) in [
        ("RUN touch /new\n", "RUN touch /newer\n"),
        ("RUN chmod 700 /var\n", "RUN chmod 711 /var\n"),
        ("RUN chown app /var\n", "RUN chown 4321 /var\n"),
    ] {
        assert_ne!(first, nonce(&lab.image_with(&run(whole), &["--no-trace"])), "{whole}");
        assert_eq!(first, nonce(&lab.image(&run(traced))), "{traced}");
    }
    for same in [
        "LABEL a=b\n",
        "EXPOSE 80\n",
        "CMD [\"a\"]\n",
        "RUN touch -d @1 /etc/passwd\n",
        "RUN touch /passing && rm /passing\n",
    ] {
        assert_eq!(first, nonce(&lab.image(&run(same))), "{same}");
    }
}

/// A step that ran again with the same result changes nothing for those after it.
#[test]
fn an_unchanged_result_is_an_early_end() {
    let lab = Lab::new();
    let dockerfile = format!(
        "FROM busybox\nRUN --mount=target=/context wc -l < /context/notes > /lines\nRUN cat /lines; {NONCE} > /nonce\n"
    );
    lab.file("notes", "one\ntwo\n");
    let first = lab.image(&dockerfile);
    lab.file("notes", "one\ndeux\n");
    lab.build(&dockerfile).arg("--dry-run").failure();
    assert_eq!(nonce(&first), nonce(&lab.image(&dockerfile)));
    lab.file("notes", "one\ntwo\nthree\n");
    assert_ne!(nonce(&first), nonce(&lab.image(&dockerfile)));
}

#[test]
fn a_shared_cache_serves_an_empty_runner() {
    let lab = Lab::new();
    let shared = format!("file://{}", lab.context.path("shared").display());
    let dockerfile = format!("FROM busybox\nRUN {NONCE} > /nonce\n");
    let runner = |local: &str, options: &[&str]| {
        let build = lab
            .build(&dockerfile)
            .args(options)
            .env("CROSSDOCK_LOCAL", lab.context.path(local))
            .env("CROSSDOCK_CACHE", &shared);
        lab.image_of(build)
    };
    // One that may only read leaves nothing for others.
    let reader = runner("reader", &["--cache-readonly"]);
    let first = runner("first", &[]);
    assert_ne!(nonce(&reader), nonce(&first));
    let second = runner("second", &[]);
    assert_eq!(first.digest, second.digest);
    let fresh = runner("second", &["--no-cache"]);
    assert_ne!(nonce(&first), nonce(&fresh));
}

#[test]
fn one_stage_can_be_built_anew() {
    let lab = Lab::new();
    let dockerfile = format!(
        "FROM busybox AS one\nRUN {NONCE} > /one\nFROM busybox AS two\nRUN {NONCE} > /two\n\
         FROM scratch\nCOPY --from=one /one /\nCOPY --from=two /two /\n"
    );
    let first = lab.image(&dockerfile).tree();
    let second = lab.image_with(&dockerfile, &["--no-cache-filter", "two"]).tree();
    assert_eq!(content(&first, "one"), content(&second, "one"));
    assert_ne!(content(&first, "two"), content(&second, "two"));
}

/// A build that fails keeps what it has finished.
#[test]
fn a_failed_build_keeps_its_finished_steps() {
    let lab = Lab::new();
    // In two pieces, so that the command itself does not say it.
    let start = format!("FROM busybox\nRUN {NONCE} | tee /nonce | sed 's/^/nonce'' is/'\n");
    let failed = lab.build(&format!("{start}RUN false\n")).failure();
    let said = failed.stdout() + &failed.stderr();
    let (_, rest) =
        said.split_once("nonce is").unwrap_or_else(|| panic!("the step's output is not shown\n{failed}"));
    let image = lab.image(&format!("{start}RUN true\n"));
    assert_eq!(nonce(&image).trim(), rest.lines().next().unwrap().trim());
}

/// Two builds at the same time on one machine share their work.
#[test]
fn simultaneous_builds_run_a_step_once() {
    let lab = Lab::new();
    let dockerfile = format!("FROM busybox\nRUN sleep 2; {NONCE} > /nonce\n");
    lab.file("Dockerfile", &dockerfile);
    let images: Vec<_> = std::thread::scope(|scope| {
        let builds: Vec<_> = (0..2)
            .map(|number| {
                let archive = lab.context.path(format!("image-{number}.tar"));
                let build = lab.build(&dockerfile).option_path("--output", "type=oci,dest=", &archive);
                scope.spawn(move || {
                    build.success();
                    oci::Image::read(&archive)
                })
            })
            .collect();
        builds.into_iter().map(|build| build.join().unwrap()).collect()
    });
    assert_eq!(nonce(&images[0]), nonce(&images[1]));
}

/// Stages that do not need each other run side by side.
#[test]
fn independent_stages_run_together() {
    let lab = Lab::new();
    let stage = |name: &str| format!("FROM busybox AS {name}\nRUN sleep 4; touch /{name}\n");
    let copy = |name: &str| format!("COPY --from={name} /{name} /\n");
    // Warm: the base and whatever else only the first build pays for.
    lab.build("FROM busybox\nRUN true\n").success();
    let dockerfile = stage("a") + &stage("b") + "FROM scratch\n" + &copy("a") + &copy("b");
    let output = lab.build(&dockerfile).success();
    assert!(output.elapsed < Duration::from_secs(8), "one after the other\n{output}");
}

#[test]
fn proxies_are_passed_on_and_are_no_inputs() {
    let lab = Lab::new();
    let dockerfile = format!("FROM busybox\nRUN test -n \"$HTTP_PROXY\" && {NONCE} > /nonce\n");
    let first = lab.image_with(&dockerfile, &["--build-arg", "HTTP_PROXY=http://127.0.0.1:1"]);
    let second = lab.image_with(&dockerfile, &["--build-arg", "HTTP_PROXY=http://127.0.0.1:2"]);
    assert_eq!(first.digest, second.digest);
    assert!(!first.config.to_string().contains("127.0.0.1"), "the proxy is in the image");
}

/// What the tools around the cache say of it.
#[test]
fn the_cache_can_be_looked_at_and_emptied() {
    let lab = Lab::new();
    let dockerfile = format!("FROM busybox\nRUN {NONCE} > /nonce\n");
    let first = lab.image(&dockerfile);
    lab.context.crossdock().args(["cache", "ls"]).success();
    lab.context.crossdock().args(["cache", "du"]).success();
    lab.context.crossdock().args(["cache", "verify"]).success();
    let build_context = lab.context.path("project");
    let fingerprint = |dockerfile: &str| {
        lab.file("Dockerfile", dockerfile);
        lab.context
            .crossdock()
            .arg("fingerprint")
            .option_path("--build-context", "busybox=oci-layout://", crate::support::base::busybox())
            .arg(&build_context)
            .success()
            .stdout()
    };
    assert_eq!(fingerprint(&dockerfile), fingerprint(&dockerfile));
    assert_ne!(fingerprint(&dockerfile), fingerprint("FROM busybox\nRUN true\n"));
    lab.context.crossdock().args(["cache", "prune", "--all", "--force"]).success();
    assert_ne!(nonce(&first), nonce(&lab.image(&dockerfile)));
}

/// Damage is found, and is a miss: never a wrong image, never a failed build.
#[test]
fn damage_in_the_cache_is_a_miss() {
    let lab = Lab::new();
    let dockerfile = "FROM busybox\nRUN seq 1 20000 > /numbers\nRUN wc -l < /numbers > /count\n";
    let before = lab.image(dockerfile).tree();
    let mut damaged = 0;
    for entry in walkdir::WalkDir::new(lab.context.path("xdg")).into_iter().map(Result::unwrap) {
        // The truth of a store. What is unpacked beside it, for steps to run in, is made from that.
        let truth = |part: std::path::Component| part.as_os_str() == "blobs" || part.as_os_str() == "records";
        if entry.file_type().is_file() && entry.path().components().any(truth) {
            let mut bytes = std::fs::read(entry.path()).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x55;
            // As a file of its own, as some of these may be links to the base image.
            std::fs::remove_file(entry.path()).unwrap();
            std::fs::write(entry.path(), bytes).unwrap();
            damaged += 1;
        }
    }
    assert!(damaged > 3, "found nothing to damage");
    lab.context.crossdock().args(["cache", "verify"]).failure();
    assert_eq!(before, lab.image(dockerfile).tree());
    lab.context.crossdock().args(["cache", "verify", "--repair"]).success();
    lab.context.crossdock().args(["cache", "verify"]).success();
    assert_eq!(before, lab.image(dockerfile).tree());
}

/// What --link adds does not depend on what is below it: with another base it is taken as it is, and the image is the
/// one that a build without a cache gives.
#[test]
fn a_linked_copy_is_put_on_another_base() {
    let lab = Lab::new();
    lab.file("file", "1");
    let dockerfile = |number: u32| {
        format!(
            "FROM busybox\nRUN echo {number} > /base\nCOPY --link file /linked/file\nRUN ls /linked > /list\n"
        )
    };
    lab.image(&dockerfile(1));
    let build = |dockerfile: &str| lab.build(dockerfile).args(["-o", "type=oci,dest=out.tar"]).success();
    // The base is another one; the copy on top of it is not made again, and what reads only the copy does not run.
    build(&dockerfile(2)).says("2 cached, 1 run");
    let cached = lab.image(&dockerfile(2)).tree();
    assert_eq!(content(&cached, "linked/file"), "1\n".trim_end());
    assert_eq!(content(&cached, "base"), "2\n");
    // What was put on is a record by itself, which needs no tree the next time.
    build(&dockerfile(2)).says("3 cached, 0 run");
    lab.file("file", "2");
    build(&dockerfile(2)).says("2 cached, 1 run");
}
