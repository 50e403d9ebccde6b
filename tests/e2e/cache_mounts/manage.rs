//! `crossdock cache mounts`: looking at cache mounts, and changing them, without a build.

use serde_json::Value;

use super::Runners;
use super::sharing::{MAKE, TELL as TELL_ALL, assert_same};
use crate::support::Run;
use crate::support::oci::{TarBuilder, content};

/// Everything that a tar has to bring back.
const FILL: &str = "cd /m && mkdir -p a/empty && echo text > a/text && ln a/text a/other && ln -s text a/link && mkfifo a/pipe && \
    chown 5:6 a/text && chmod 4750 a/text && head -c 300000 /dev/zero > a/zeros && head -c 200000 /dev/urandom > a/noise && \
    touch -d '2001-02-03 04:05:06' a/noise && touch -d '1960-01-01 00:00:00' a/empty && echo -n > a/nothing";

/// Tells all about a mount; of times, those that were set.
const TELL: &str = "cd /m && find . | sort | xargs stat -c '%n %f %u %g %s %y' | sed '/ 1960-\\| 2001-/!s/ [0-9]* [0-9-]* [0-9:.]* +0000$//' && \
    md5sum a/noise a/zeros a/other && readlink a/link && [ a/text -ef a/other ]";

fn mounts(runners: &Runners, runner: &str, command: &str) -> Run {
    let run = runners.lab.context.crossdock().args(["cache", "mounts", command]);
    runners.server.cache(run.env("CROSSDOCK_LOCAL", runners.lab.context.path(runner)))
}

fn step(mount: &str, command: &str) -> String {
    format!(
        "FROM tools AS work\nARG ROUND\nRUN --mount=type=cache,{mount} {command}\n\
        FROM scratch\nCOPY --from=work /out /\n"
    )
}

fn json(run: Run) -> Value {
    serde_json::from_str(&run.args(["--format", "json"]).success().stdout()).unwrap()
}

#[test]
fn mounts_are_listed_shown_and_emptied() {
    let runners = Runners::small();
    let fill = step("target=/m", &format!("{FILL} && echo > /out"));
    runners.build("one", &fill).success();
    runners.build("one", &step("id=other,target=/m", "echo more > /m/file && echo > /out")).success();

    // From a machine that has never built anything.
    let listed = json(mounts(&runners, "two", "ls"));
    let listed = listed.as_array().unwrap();
    let ids: Vec<&str> = listed.iter().map(|mount| mount["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["other", "/m"], "the latest first");
    assert_eq!((&listed[1]["bytes"], &listed[1]["files"]), (&500_010.into(), &4.into()), "{listed:?}");
    assert_eq!((&listed[1]["shared"], &listed[1]["here"]), (&true.into(), &false.into()));
    let text = mounts(&runners, "one", "ls").success().stdout();
    assert!(text.contains("shared, here") && text.contains("/m"), "{text}");

    let shown = json(mounts(&runners, "two", "inspect").args(["/m", "--files"]));
    let files = shown["files"].as_array().unwrap();
    let noise = files.iter().find(|file| file["path"] == "a/noise").unwrap();
    assert_eq!((&noise["bytes"], &noise["mtime"]), (&200_000.into(), &"2001-02-03T04:05:06Z".into()));
    assert!(shown["packs"] == 1 && shown["stored_bytes"].as_u64().unwrap() < 210_000, "{shown}");
    let name = &shown["name"].as_str().unwrap()[..12];
    let text = mounts(&runners, "two", "inspect").args([name, "--files"]).success().stdout();
    assert!(text.contains("a/link -> text") && text.contains("4750"), "{text}");

    let output = mounts(&runners, "two", "inspect").args(["othr"]).failure();
    assert!(output.stderr().contains("did you mean `other`?"), "{output}");
    let output = mounts(&runners, "two", "rm").args(["/m"]).failure();
    assert!(output.stderr().contains("--force"), "nobody was asked: {output}");

    mounts(&runners, "two", "rm").args(["/m", "--force"]).success();
    let empty = step("target=/m", "find /m > /out");
    // Also the runner that filled it, and has it still.
    for runner in ["one", "two", "three"] {
        let found = content(&runners.result(runners.build(runner, &empty)), "out");
        assert_eq!(found, "/m\n", "{runner}");
    }
    let output = mounts(&runners, "two", "rm").args(["--all", "--force"]).success();
    assert!(output.stdout().contains("emptied"), "{output}");
    assert_eq!(json(mounts(&runners, "three", "ls")), Value::Array(Vec::new()));
}

#[test]
fn what_is_exported_can_be_imported() {
    let runners = Runners::small();
    let told = |runner: &str, mount: &str, first: &str| {
        let dockerfile = step(mount, &format!("{first} {{ {TELL}; }} > /out"));
        content(&runners.result(runners.build(runner, &dockerfile)), "out")
    };
    let made = told("one", "target=/m", &format!("{FILL} &&"));
    assert!(made.contains("./a/text") && made.lines().count() > 10, "{made}");
    for (name, id) in [("m.tar", "plain"), ("m.tar.gz", "gzip"), ("m.tar.zst", "zstd")] {
        let tar = runners.lab.context.path(name);
        mounts(&runners, "two", "export").args(["/m"]).option_path("-o", "", &tar).success();
        // As other programs read it.
        let listed = std::process::Command::new("tar").arg("-tvf").arg(&tar).output().unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        assert!(
            listed.contains("a/other link to ./a/") || listed.contains("a/text link to ./a/"),
            "{listed}"
        );
        let output = mounts(&runners, "two", "import").args([id]).arg(&tar).success();
        assert!(output.stdout().contains("4 files"), "{output}");
        assert_eq!(told("three", &format!("id={id},target=/m"), ""), made, "{name}");
    }
    // What it was made from is not known: everything that is copied is new.
    runners.lab.file("source", "1");
    let look = "FROM tools AS work\nCOPY source /\nARG ROUND\nRUN --mount=type=cache,id=plain,target=/m \
        if [ /source -nt /m/a/zeros ]; then echo newer; else echo older; fi > /out\n\
        FROM scratch\nCOPY --from=work /out /\n";
    assert_eq!(content(&runners.result(runners.build("four", look)), "out"), "newer\n");
}

/// A tar whose first entry has another name of the same length.
fn renamed(mut tar: Vec<u8>, name: &[u8]) -> Vec<u8> {
    tar[..name.len()].copy_from_slice(name);
    tar[148..156].fill(b' ');
    let sum: u32 = tar[..512].iter().map(|byte| u32::from(*byte)).sum();
    tar[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    tar
}

#[test]
fn hostile_tars_change_nothing() {
    let runners = Runners::small();
    runners.build("one", &step("target=/m", "echo kept > /m/file && echo > /out")).success();
    let hostile: [(&str, Vec<u8>); 5] = [
        ("`..`", renamed(TarBuilder::new().file("xx/escape", 0o644, b"x").finish(), b"../escape")),
        ("not a directory", TarBuilder::new().symlink("a", "/etc").file("a/passwd", 0o644, b"x").finish()),
        ("not a directory", TarBuilder::new().file("a", 0o644, b"").file("a/b", 0o644, b"x").finish()),
        ("tar", b"this is no tar at all, and longer than nothing".repeat(40)),
        ("tar", TarBuilder::new().file("a", 0o644, &[7; 5000]).finish()[..3000].to_vec()),
    ];
    for (problem, tar) in &hostile {
        runners.lab.context.write("hostile.tar", tar);
        let path = runners.lab.context.path("hostile.tar");
        let output = mounts(&runners, "one", "import").args(["/m"]).arg(&path).failure();
        assert!(output.stderr().contains(problem), "{problem}: {output}");
        assert_eq!(output.status.code(), Some(1), "{problem}: {output}");
    }
    let found = runners.result(runners.build("two", &step("target=/m", "cp /m/file /out")));
    assert_eq!(content(&found, "out"), "kept\n");
}

/// Whatever a file system can have: texts of links as they were written, times to the nanosecond, attributes.
#[test]
fn what_comes_back_is_the_same_to_the_nanosecond() {
    let runners = Runners::small();
    runners.lab.file("make", MAKE).file("tell", TELL_ALL);
    let told = |runner: &str, id: &str, first: &str| {
        let file = format!(
            "FROM tools AS work\nCOPY make tell /\nARG ROUND\nRUN --mount=type=cache,target=/m,id={id} \
             {first}sh /tell > /out\nFROM scratch\nCOPY --from=work /out /\n"
        );
        content(&runners.result(runners.build(runner, &file)), "out")
    };
    let made = told("one", "made", "sh /make && ln -s .//a/../text/ /m/strange && ");
    assert!(made.contains(".//a/../text/"), "{made}");
    let file = runners.lab.context.path("made.tar.zst");
    mounts(&runners, "two", "export").arg("made").option_path("-o", "", &file).success();
    mounts(&runners, "two", "import").arg("from-file").arg(&file).success();
    assert_same(&told("three", "from-file", ""), &made);
    // Standard output and input, and what was there goes.
    mounts(&runners, "two", "import").args(["from-file"]).stdin(TarBuilder::new().finish()).success();
    assert!(told("two", "from-file", "").lines().count() < 2, "an empty tar empties the mount");
    let tar = mounts(&runners, "one", "export").args(["made", "-o", "-"]).success().stdout;
    mounts(&runners, "one", "import").args(["from-file"]).stdin(tar).success();
    assert_same(&told("three", "from-file", ""), &made);
    runners.lab.context.verify_store(runners.stored());
}

#[test]
fn only_what_is_in_the_scope_that_is_written_is_emptied() {
    let runners = Runners::small();
    let look = step("target=/m", "ls /m > /out");
    let fill = step("target=/m", "touch /m/file && ls /m > /out");
    let found = |run: Run| content(&runners.result(run), "out");
    assert_eq!(found(runners.build("one", &fill).option("--cache-scope", "main")), "file\n");
    let scopes = ["--cache-scope", "pr/1,main"];
    let output = mounts(&runners, "two", "rm").args(scopes).args(["/m", "--force"]).failure();
    assert!(output.stderr().contains("scope main"), "{output}");
    mounts(&runners, "two", "rm").args(scopes).args(["--all", "--force"]).success();
    assert_eq!(found(runners.build("two", &look).args(scopes)), "file\n");
    // Where the shared cache is only read, it is empty here, and nowhere else.
    let readonly = ["--cache-scope", "main", "--cache-readonly"];
    mounts(&runners, "three", "rm").args(readonly).args(["/m", "--force"]).success();
    assert_eq!(found(runners.build("three", &look).args(readonly)), "");
    assert_eq!(found(runners.build("four", &look).args(readonly)), "file\n");
}

#[test]
fn what_cannot_be_done_is_said() {
    let mut runners = Runners::small();
    runners.build("one", &step("target=/m", "touch /m/file && echo > /out")).success();
    let fails = |run: Run, code: i32, says: &str| {
        let output = run.failure();
        assert_eq!(output.status.code(), Some(code), "{output}");
        assert!(output.stderr().contains(says), "{says}: {output}");
    };
    let run = |command: &str, args: &[&str]| mounts(&runners, "one", command).args(args);
    // What a command that failed has left in a pipe does not empty the mount.
    fails(run("import", &["/m"]).stdin(""), 1, "there is nothing");
    fails(run("import", &["/m", "nowhere.tar"]), 1, "nowhere.tar");
    fails(run("export", &["/n", "-o", "x.tar"]), 1, "did you mean `/m`?");
    fails(run("export", &["/m", "-o", "/dev/null/x.tar"]), 1, "/dev/null/x.tar");
    fails(run("rm", &["--force"]), 2, "--all");
    fails(run("inspect", &["0123456789ab"]), 1, "there is no cache mount");
    let file = runners.lab.context.write("file", "");
    let broken = ["--cache".to_owned(), format!("file://{}/x", file.display())];
    let alone = |command: &str, args: &[&str]| {
        let run = runners.lab.context.crossdock().args(["cache", "mounts", command]).args(args);
        run.env("CROSSDOCK_LOCAL", runners.lab.context.path("one")).args(&broken)
    };
    fails(alone("rm", &["/m", "--force"]), 4, "the shared cache cannot be used");
    let output = alone("ls", &[]).success();
    assert!(output.stdout().contains("/m") && output.stderr().contains("shared cache"), "{output}");
    runners.server.kill();
    let output = mounts(&runners, "one", "ls").success();
    assert!(output.stdout().contains("/m") && output.stderr().contains("127.0.0.1"), "{output}");
    fails(mounts(&runners, "one", "rm").args(["/m", "--force"]), 4, "did not take it");
}

/// Small changes, again and again: what is no longer needed does not stay for ever.
#[test]
fn packs_that_are_mostly_dead_are_written_anew() {
    let runners = Runners::small();
    let change = "head -c 400000 /dev/urandom > /m/changed; echo > /out; \
        [ -e /m/stays ] || head -c 600000 /dev/urandom > /m/stays; md5sum /m/stays > /out";
    let mut first = None;
    for round in 0..40 {
        let tree = runners.result(runners.build("one", &step("target=/m", change)));
        let stays = content(&tree, "out");
        assert_eq!(*first.get_or_insert(stays.clone()), stays, "round {round}");
    }
    let shown = json(mounts(&runners, "two", "inspect").args(["/m"]));
    assert!(shown["stored_bytes"].as_u64().unwrap() < 2_500_000, "{shown}");
    assert!(shown["packs"].as_u64().unwrap() < 34, "{shown}");
    // A fresh runner finds all of it.
    let tree = runners.result(runners.build("three", &step("target=/m", "md5sum /m/stays > /out")));
    assert_eq!(content(&tree, "out"), first.unwrap());
}

/// The files that were not used for the longest time go when the mount is too large.
#[test]
fn a_mount_has_a_largest_size() {
    let runners = Runners::small();
    let fill =
        step("target=/m", "for n in 1 2 3 4 5; do head -c 100000 /dev/urandom > /m/$n; done; echo > /out");
    runners.build("one", &fill).arg("--cache-mount-size=1m").success();
    let more = step("target=/m", "cat /m/1 /m/2 > /dev/null; echo more > /m/more; echo > /out");
    runners.build("two", &more).arg("--cache-mount-size=350k").success();
    let shown = json(mounts(&runners, "three", "inspect").args(["/m"]));
    let bytes = shown["bytes"].as_u64().unwrap();
    assert!((1..=350 << 10).contains(&bytes), "{shown}");
    let tree = runners.result(runners.build("three", &step("target=/m", "ls /m > /out")));
    assert!(content(&tree, "out").contains("more"), "what was used last stays");
}
