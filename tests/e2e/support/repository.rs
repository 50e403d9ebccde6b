//! Git repositories that tests make and publish.

use std::path::PathBuf;

use super::Context;
use super::http::Server;

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
        let output = std::process::Command::new("git")
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
