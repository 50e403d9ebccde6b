//! The contract with real S3 servers: moto, which `./test` installs, and s3s-fs, which it builds.

#![allow(clippy::print_stdout, reason = "skipping is said aloud")]

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::contract::{can_be_looked_after, serves, serves_from_files};
use super::store_sample;
use crate::store::{Backend as _, Expected, ObjectStore, ObjectUrl, Store as _, StoreError};

#[path = "../../../tests/tools/port.rs"]
mod port;

const SECRET: &str = "a-very-secret-key";

struct S3 {
    child: Child,
    address: String,
}

impl S3 {
    /// The program that a variable names, if it is there.
    fn program(variable: &str) -> Option<PathBuf> {
        let program = std::env::var_os(variable).map(PathBuf::from).filter(|program| program.exists());
        if program.is_none() {
            println!("skipped: `./test` makes the S3 server that {variable} names");
        }
        program
    }

    fn start(command: impl FnOnce(&str) -> Command) -> Self {
        let port = port::free();
        let address = format!("127.0.0.1:{port}");
        let child = command(&address)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { child, address };
        let started = Instant::now();
        while TcpStream::connect(&server.address).is_err() {
            assert!(started.elapsed() < Duration::from_mins(1), "the S3 server does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    /// With the bucket `cache`.
    async fn moto() -> Option<Self> {
        let program = Self::program("MOTO_SERVER")?;
        let server = Self::start(|address| {
            let (host, port) = address.split_once(':').unwrap();
            let mut command = Command::new(program);
            command.args(["-H", host, "-p", port]);
            command
        });
        let request = reqwest::Client::new().put(format!("http://{}/cache", server.address));
        // It takes anybody's word for who they are.
        let credentials = "AWS4-HMAC-SHA256 Credential=key/20200101/us-east-1/s3/aws4_request";
        request.header("authorization", credentials).send().await.unwrap().error_for_status().unwrap();
        Some(server)
    }

    /// Over a directory in which there is `cache`.
    fn files(directory: &Path) -> Option<Self> {
        fs_err::create_dir_all(directory.join("cache")).unwrap();
        let program = Self::program("S3_SERVER")?;
        Some(Self::start(|address| {
            let mut command = Command::new(program);
            command.arg(address).arg(directory).env("S3_ACCESS_KEY", "key").env("S3_SECRET_KEY", SECRET);
            command
        }))
    }

    fn open(&self, prefix: &str, secret: &str) -> ObjectStore {
        let endpoint = format!("http://{}", self.address);
        let settings = [
            ("AWS_ENDPOINT_URL", endpoint.as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "key"),
            ("AWS_SECRET_ACCESS_KEY", secret),
        ];
        let url = ObjectUrl::parse("s3", &format!("cache/{prefix}")).unwrap();
        url.open(settings.into_iter()).unwrap()
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        // Both fail if it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn moto_keeps_the_contract() {
    let Some(server) = S3::moto().await else { return };
    can_be_looked_after(&server.open("empty", SECRET)).await;
    serves(Arc::new(server.open("full", SECRET))).await;
}

#[tokio::test]
async fn s3s_fs_keeps_the_contract() {
    let root = tempfile::tempdir().unwrap();
    let Some(server) = S3::files(root.path()) else { return };
    can_be_looked_after(&server.open("empty", SECRET)).await;
    serves_from_files(Arc::new(server.open("full", SECRET))).await;
}

#[tokio::test]
async fn what_is_acknowledged_outlives_the_server() {
    let root = tempfile::tempdir().unwrap();
    let Some(server) = S3::files(root.path()) else { return };
    let store = server.open("x", SECRET);
    let record = store_sample(&store, "kept").await;
    let name = "a/document".parse().unwrap();
    let version = store.write_document(&name, "one".into(), Expected::Absent).await.unwrap().unwrap();
    drop(server);
    let gone = store.read_document(&name).await;
    assert!(matches!(gone, Err(StoreError::Unavailable { .. })), "{gone:?}");
    let server = S3::files(root.path()).unwrap();
    let store = server.open("x", SECRET);
    let scopes = std::slice::from_ref(&record.scope);
    assert_eq!(store.read_record(&record.key(), scopes).await.unwrap(), Some(record.clone()));
    let expected = Expected::Unchanged(version);
    assert!(store.write_document(&name, "two".into(), expected).await.unwrap().is_some());
}

#[tokio::test]
async fn a_wrong_secret_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let Some(server) = S3::files(root.path()) else { return };
    let error = server.open("x", "another secret").read_document(&"a".parse().unwrap()).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
    assert!(!error.to_string().contains("another secret"), "{error}");
}
