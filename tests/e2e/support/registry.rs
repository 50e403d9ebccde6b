//! Debian's docker-registry on loopback.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use tempfile::TempDir;

/// A registry of its own for one test, gone when dropped.
pub(crate) struct Registry {
    child: Child,
    address: String,
    _storage: TempDir,
}

/// The user of [`Registry::start_with_login`].
pub(crate) const USER: &str = "user";

/// The password of [`USER`].
pub(crate) const PASSWORD: &str = "hunter2";

/// What `htpasswd -nbB user hunter2` writes, with the fewest rounds.
const HTPASSWD: &str = "user:$2y$05$abcdefghijklmnopqrstuuoXuKqgZXLiJqzfmMXDDhSFPIvxV7t8.\n";

impl Registry {
    /// Starts one on a free port.
    pub(crate) fn start() -> Self {
        Self::launch(false, "")
    }

    /// Starts one that speaks HTTPS with this certificate and its key.
    pub(crate) fn start_with_tls(certificate: &Path, key: &Path) -> Self {
        Self::launch(false, &tls(certificate, key, ""))
    }

    /// The same, for clients that have a certificate of this authority only.
    pub(crate) fn start_with_client_authority(certificate: &Path, key: &Path, authority: &Path) -> Self {
        Self::launch(false, &tls(certificate, key, &format!(", clientcas: [{}]", authority.display())))
    }

    /// Starts one that wants [`USER`] and [`PASSWORD`].
    pub(crate) fn start_with_login() -> Self {
        Self::launch(true, "")
    }

    fn launch(login: bool, tls: &str) -> Self {
        let storage =
            tempfile::Builder::new().prefix("registry-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let config = storage.path().join("config.yml");
        let users = storage.path().join("htpasswd");
        std::fs::write(&users, HTPASSWD).unwrap();
        let auth = if login {
            format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", users.display())
        } else {
            String::new()
        };
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: info, formatter: json, accesslog: {{disabled: true}}}}\n\
                 storage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\n\
                 http: {{addr: '127.0.0.1:0'{tls}}}\n{auth}",
                storage.path().join("data").display()
            ),
        )
        .unwrap();
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("docker-registry: {error}\n(`./test` installs it)"));
        let log = BufReader::new(child.stderr.take().unwrap());
        let (sender, receiver) = mpsc::channel();
        // Reads to the end, so that the registry never blocks on a full pipe.
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                if let Some((_, rest)) = line.split_once("listening on ") {
                    let address: String =
                        rest.chars().take_while(|c| c.is_ascii_digit() || matches!(c, '.' | ':')).collect();
                    drop(sender.send(address));
                }
            }
        });
        let address = receiver.recv_timeout(Duration::from_secs(20)).expect("the registry did not start");
        Self { child, address, _storage: storage }
    }

    /// `127.0.0.1:port`
    pub(crate) fn address(&self) -> &str {
        &self.address
    }
}

/// The lines of the registry's configuration.
fn tls(certificate: &Path, key: &Path, more: &str) -> String {
    format!(", tls: {{certificate: {}, key: {}{more}}}", certificate.display(), key.display())
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
