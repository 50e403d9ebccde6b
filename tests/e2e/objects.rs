//! Object storage: a real S3 server (moto), without a cache server and behind several of them.

#![allow(clippy::print_stdout, reason = "skipping is said aloud")]

use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::lab::Lab;
use crate::support::server::CacheServer;
use crate::support::{Context, Run};

/// An S3 server with the bucket `cache`, killed when dropped.
struct S3 {
    child: Child,
    address: String,
}

const SECRET: &str = "a-very-secret-key";

impl S3 {
    /// Starts it, if `./test` has installed it.
    fn start(context: &Context) -> Option<Self> {
        let program = std::env::var_os("MOTO_SERVER").map(PathBuf::from).filter(|program| program.exists());
        let Some(program) = program else {
            println!("skipped: `./test` installs moto, an S3 server, with pip");
            return None;
        };
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let child = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { child, address };
        let started = Instant::now();
        while TcpStream::connect(&server.address).is_err() {
            assert!(started.elapsed() < Duration::from_mins(1), "moto does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        server.curl(context, "PUT", "/cache", &[]);
        Some(server)
    }

    /// A request of the tests' own.
    fn curl(&self, context: &Context, method: &str, path: &str, args: &[&str]) -> String {
        let run = context.command("curl").args(["--silent", "--show-error", "--fail", "--request", method]);
        // moto takes anybody's word for who they are.
        let run = run.args([
            "--header",
            "Authorization: AWS4-HMAC-SHA256 Credential=key/20200101/us-east-1/s3/aws4_request",
        ]);
        run.args(args).arg(format!("http://{}{path}", self.address)).success().stdout()
    }

    /// The names of all objects.
    fn objects(&self, context: &Context) -> Vec<String> {
        let list = self.curl(context, "GET", "/cache?list-type=2&max-keys=10000", &[]);
        list.split("<Key>").skip(1).map(|part| part.split('<').next().unwrap().to_owned()).collect()
    }

    /// A command that knows where it is.
    fn with(&self, run: Run) -> Run {
        run.env("AWS_ENDPOINT_URL", format!("http://{}", self.address))
            .env("AWS_ALLOW_HTTP", "true")
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", "key")
            .env("AWS_SECRET_ACCESS_KEY", SECRET)
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        // Both fail if it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

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
    let Some(s3) = S3::start(&lab.context) else { return };
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
    let Some(mut s3) = S3::start(&lab.context) else { return };
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
    s3.child.kill().unwrap();
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
    let Some(s3) = S3::start(&lab.context) else { return };
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
