//! Git repositories that tests make and publish.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Context;
use super::http::{Reply, Request, Server};

/// A git repository, published for any static web server.
pub(crate) struct Repository {
    pub(crate) work: PathBuf,
    pub(crate) bare: PathBuf,
    name: String,
}

impl Repository {
    pub(crate) fn new(context: &Context, name: &str) -> Self {
        let (work, bare) = (context.path(format!("work/{name}")), context.path(format!("www/{name}.git")));
        std::fs::create_dir_all(&work).unwrap();
        std::fs::create_dir_all(bare.parent().unwrap()).unwrap();
        let repository = Self { work, bare, name: name.to_owned() };
        repository.git(&["init", "--quiet", "--initial-branch=main"]);
        for (key, value) in [("user.name", "Test"), ("user.email", "test@example.com")] {
            repository.git(&["config", key, value]);
        }
        let bare = super::text(&repository.bare).to_owned();
        repository.git(&["init", "--quiet", "--bare", "--initial-branch=main", &bare]);
        repository
    }

    pub(crate) fn git(&self, args: &[&str]) -> String {
        let output = Command::new("git")
            .current_dir(&self.work)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_SYSTEM", "/dev/null")
            .env("GIT_ALLOW_PROTOCOL", "file:http")
            .args(args)
            .output()
            .unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub(crate) fn write(&self, path: &str, content: &str) {
        let path = self.work.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// Changes a file and publishes it; the commit.
    pub(crate) fn commit(&self, path: &str, content: &str) -> String {
        self.write(path, content);
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--allow-empty", "--message", path]);
        self.publish();
        self.git(&["rev-parse", "HEAD"])
    }

    pub(crate) fn publish(&self) {
        let bare = super::text(&self.bare);
        self.git(&["push", "--quiet", "--force", bare, "--all"]);
        self.git(&["push", "--quiet", "--force", bare, "--tags"]);
        self.git(&["--git-dir", bare, "update-server-info"]);
    }

    pub(crate) fn url(&self, server: &Server) -> String {
        server.url(&format!("/{}.git", self.name))
    }
}

/// `git http-backend`, as a web server calls it.
pub(crate) fn smart_http(root: &Path, request: &Request) -> Reply {
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    let header = |name: &str| request.header(name).unwrap_or_default().to_owned();
    let mut child = Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_CONFIG_COUNT", "1")
        // The files belong to whoever runs the tests.
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*")
        .env("REQUEST_METHOD", &request.method)
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("CONTENT_TYPE", header("content-type"))
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .env("CONTENT_LENGTH", request.body.len().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let body = request.body.clone();
    let writer = std::thread::spawn(move || drop(input.write_all(&body)));
    let output = child.wait_with_output().unwrap().stdout;
    writer.join().unwrap();
    let end = output.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let mut reply = Reply::ok(&output[end + 4..]);
    for line in String::from_utf8_lossy(&output[..end]).lines() {
        let (name, value) = line.split_once(": ").unwrap();
        reply = match name {
            "Status" => Reply::new(value[..3].parse().unwrap(), &output[end + 4..]),
            _ => reply.header(name, value),
        };
    }
    reply
}
