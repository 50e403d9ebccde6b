//! Object storage: real S3 servers (moto, s3s-fs), without a cache server and behind several of them.

use std::time::Duration;

use crate::support::lab::Lab;
use crate::support::s3::{S3, SECRET};
use crate::support::server::CacheServer;
use crate::support::{Run, oci};

const DOCKERFILE: &str =
    "FROM busybox\nCOPY a /a\nRUN head -c 20000000 /dev/urandom > /random\nRUN wc -c < /random > /size\n";

fn lab() -> Lab {
    let lab = Lab::new();
    lab.file("a", "content\n");
    lab
}

fn runner(lab: &Lab, s3: &S3, name: &str) -> Run {
    let build = lab.build(DOCKERFILE).env("CROSSDOCK_LOCAL", lab.context.path(name));
    s3.with(build).option("--cache", "s3://cache/team/one")
}

#[test]
fn a_bucket_is_a_shared_cache() {
    let lab = lab();
    let Some(s3) = S3::moto(&lab.context) else { return };
    let first = lab.image_of(runner(&lab, &s3, "one"));
    let second = lab.image_of(runner(&lab, &s3, "two"));
    assert_eq!(first.digest, second.digest);
    runner(&lab, &s3, "three").success().says("3 cached, 0 run").says("s3://cache/team/one");
    assert!(s3.objects(&lab.context).iter().all(|name| name.starts_with("team/one/v1/")));
    // Damage is a miss, and is repaired by who builds it again.
    let layer = second.manifest["layers"].as_array().unwrap().last().unwrap()["digest"].as_str().unwrap();
    let hex = layer.trim_start_matches("sha256:");
    let damaged = format!("/cache/team/one/v1/blobs/sha256/{}/{hex}", &hex[..2]);
    s3.curl(&lab.context, "PUT", &damaged, &["--data-binary", "damaged"]);
    lab.image_of(runner(&lab, &s3, "four"));
    lab.image_of(runner(&lab, &s3, "five"));
    runner(&lab, &s3, "six").success().says("3 cached, 0 run");
}

#[test]
fn a_bucket_that_does_not_work_never_fails_a_build() {
    let lab = lab();
    let Some(mut s3) = S3::moto(&lab.context) else { return };
    let warns = |build: Run| {
        let output = build.timeout(Duration::from_secs(100)).success();
        let said = output.stderr();
        assert!(said.contains("warning") && said.contains("s3://cache/"), "{output}");
        assert!(!said.contains(SECRET), "{output}");
    };
    let missing = s3.with(lab.build(DOCKERFILE)).env("CROSSDOCK_LOCAL", lab.context.path("a"));
    let output = missing.option("--cache", "s3://no-such-bucket/x").success();
    assert!(output.stderr().contains("s3://no-such-bucket"), "{output}");
    // It ends while the build sends to it.
    let mut build = runner(&lab, &s3, "b").spawn();
    std::thread::sleep(Duration::from_millis(400));
    s3.kill();
    assert!(build.wait().unwrap().success());
    warns(runner(&lab, &s3, "c"));
    let unset = lab.build(DOCKERFILE).env("AWS_REGION", "").option("--cache", "gs://bucket/x");
    unset.timeout(Duration::from_secs(100)).output();
    s3.with(lab.build(DOCKERFILE))
        .option("--cache", "s3://key:secret@bucket/x")
        .failure()
        .says("s3://bucket/prefix");
}

/// Servers over one bucket are as one, and nothing that one of them has acknowledged goes with it.
#[test]
fn several_servers_use_one_bucket() {
    let lab = lab();
    let Some(s3) = S3::moto(&lab.context) else { return };
    let start = || CacheServer::over(&lab.context, "s3://cache/servers", |run| s3.with(run), &[]);
    let mut one = start();
    let two = start();
    let token = one.token.clone();
    let build = |server: &CacheServer, name: &str| {
        let build = lab.build(DOCKERFILE).env("CROSSDOCK_LOCAL", lab.context.path(name));
        build.option("--cache", server.url()).env("CROSSDOCK_TOKEN", &token)
    };
    let first = lab.image_of(build(&one, "one"));
    one.kill();
    let second = lab.image_of(build(&two, "two"));
    assert_eq!(first.digest, second.digest);
    build(&two, "three").success().says("3 cached, 0 run");
    // Tokens are in the bucket too, and end for all.
    let storage = ["--storage", "s3://cache/servers"];
    s3.with(lab.context.crossdock()).args(["token", "revoke", "first"]).args(storage).success();
    two.signal(rustix::process::Signal::HUP);
    std::thread::sleep(Duration::from_millis(300));
    let refused = build(&two, "four").success();
    assert!(refused.stderr().contains("CROSSDOCK_TOKEN"), "{refused}");
}

/// The image of a build that has had its cache to the end: on a machine that is busy beyond measure it may give it up.
fn undisturbed(lab: &Lab, build: impl Fn(&str) -> Run) -> oci::Image {
    let mut said = String::new();
    for attempt in 0..6 {
        let archive = lab.context.path("image.tar");
        let run = build(&format!("undisturbed-{attempt}"));
        let output = run.option_path("--output", "type=oci,dest=", &archive).success();
        std::fs::remove_dir_all(lab.context.path(format!("undisturbed-{attempt}"))).unwrap();
        if !output.stderr().contains("going on without") {
            return oci::Image::read(&archive);
        }
        said = output.to_string();
    }
    panic!("the cache was given up again and again: {said}");
}

/// What a bucket has acknowledged is there after its server was killed.
#[test]
fn a_bucket_whose_server_is_killed_loses_nothing() {
    let lab = lab();
    let Some(mut s3) = S3::files(&lab.context, "buckets") else { return };
    // Little enough for the server of a busy machine.
    let dockerfile = DOCKERFILE.replace("20000000", "200000");
    let small = |s3: &S3, name: &str| {
        let build = lab.build(&dockerfile).env("CROSSDOCK_LOCAL", lab.context.path(name));
        s3.with(build).option("--cache", "s3://cache/team/one")
    };
    let first = undisturbed(&lab, |name| small(&s3, name));
    s3.restart();
    let second = undisturbed(&lab, |name| small(&s3, name));
    assert_eq!(first.digest, second.digest);
    // In the middle of a build, which goes on without it, and leaves nothing wrong.
    for (round, delay) in [100, 400, 900].into_iter().enumerate() {
        let mut build = small(&s3, &format!("killed-{round}")).arg("--no-cache").spawn();
        std::thread::sleep(Duration::from_millis(delay));
        s3.restart();
        assert!(build.wait().unwrap().success(), "round {round}");
        lab.image_of(small(&s3, &format!("after-{round}")));
    }
}

/// Requests are signed, and a storage that does not believe them costs a warning.
#[test]
fn a_wrong_secret_never_fails_a_build() {
    let lab = lab();
    let Some(s3) = S3::files(&lab.context, "buckets") else { return };
    let wrong = "another-very-secret-key";
    let refused = runner(&lab, &s3, "one").env("AWS_SECRET_ACCESS_KEY", wrong).success();
    refused.says("0 cached, 3 run");
    let said = refused.stderr();
    assert!(said.contains("warning") && said.contains("s3://cache/team/one"), "{refused}");
    assert!(!said.contains(wrong) && !said.contains(SECRET), "{refused}");
    let unknown = runner(&lab, &s3, "two").env("AWS_ACCESS_KEY_ID", "nobody").success();
    assert!(unknown.stderr().contains("warning"), "{unknown}");
    let bucket = walkdir::WalkDir::new(lab.context.path("buckets/cache")).into_iter();
    let written: Vec<_> = bucket.flatten().filter(|entry| entry.file_type().is_file()).collect();
    assert!(written.is_empty(), "{written:#?}");
    runner(&lab, &s3, "three").success();
    runner(&lab, &s3, "four").success().says("3 cached, 0 run");
}
