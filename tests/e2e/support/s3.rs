//! Real S3 servers: moto, which takes anybody's word, and s3s-fs, which keeps files and checks signatures.

#![allow(clippy::print_stdout, reason = "skipping is said aloud")]

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{Context, Run, port, text};

pub(crate) const SECRET: &str = "a-very-secret-key";

/// An S3 server with the bucket `cache`, killed when dropped.
pub(crate) struct S3 {
    child: Child,
    pub(crate) address: String,
    /// Where s3s-fs has its files.
    files: Option<PathBuf>,
}

impl S3 {
    /// Starts moto, if `./test` has installed it.
    pub(crate) fn moto(context: &Context) -> Option<Self> {
        let server = Self::start(&program("MOTO_SERVER")?, None);
        server.curl(context, "PUT", "/cache", &[]);
        Some(server)
    }

    /// Starts s3s-fs over a directory of the context, if `./test` has built it.
    pub(crate) fn files(context: &Context, directory: &str) -> Option<Self> {
        let directory = context.path(directory);
        std::fs::create_dir_all(directory.join("cache")).unwrap();
        Some(Self::start(&program("S3_SERVER")?, Some(directory)))
    }

    fn start(program: &Path, files: Option<PathBuf>) -> Self {
        let port = port::free();
        let address = format!("127.0.0.1:{port}");
        let child = spawn(program, &address, files.as_deref());
        Self { child, address, files }
    }

    /// Kills it, and starts it again at the same address. Only s3s-fs knows then what it knew before.
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.restart_dead();
    }

    /// Starts it again after [`S3::kill`].
    pub(crate) fn restart_dead(&mut self) {
        let program = program(if self.files.is_some() { "S3_SERVER" } else { "MOTO_SERVER" }).unwrap();
        self.child = spawn(&program, &self.address, self.files.as_deref());
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Whether it keeps what it has when it is killed.
    pub(crate) fn lasts(&self) -> bool {
        self.files.is_some()
    }

    /// A request of the tests' own.
    pub(crate) fn curl(&self, context: &Context, method: &str, path: &str, args: &[&str]) -> String {
        let run = context.command("curl").args(["--silent", "--show-error", "--fail", "--request", method]);
        let run = run.args(["--aws-sigv4", "aws:amz:us-east-1:s3", "--user", &format!("key:{SECRET}")]);
        run.args(args).arg(format!("http://{}{path}", self.address)).success().stdout()
    }

    /// The names of all objects.
    pub(crate) fn objects(&self, context: &Context) -> Vec<String> {
        let list = self.curl(context, "GET", "/cache?list-type=2&max-keys=10000", &[]);
        list.split("<Key>").skip(1).map(|part| part.split('<').next().unwrap().to_owned()).collect()
    }

    /// A command that knows where it is.
    pub(crate) fn with(&self, run: Run) -> Run {
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

fn program(variable: &str) -> Option<PathBuf> {
    let program = std::env::var_os(variable).map(PathBuf::from).filter(|program| program.exists());
    if program.is_none() {
        println!("skipped: `./test` makes the S3 server that {variable} names");
    }
    program
}

fn spawn(program: &Path, address: &str, files: Option<&Path>) -> Child {
    let mut command = Command::new(program);
    match files {
        Some(files) => {
            command.args([address, text(files)]).env("S3_ACCESS_KEY", "key").env("S3_SECRET_KEY", SECRET);
        }
        None => {
            let (host, port) = address.split_once(':').unwrap();
            command.args(["-H", host, "-p", port]);
        }
    }
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    while TcpStream::connect(address).is_err() {
        assert!(started.elapsed() < Duration::from_mins(1), "the S3 server does not start");
        std::thread::sleep(Duration::from_millis(50));
    }
    child
}
