//! Git repositories by every way that git has: its own protocol, smart HTTP, SSH. The servers are the real ones.

use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::ssh::key;
use crate::support::http::Server;
use crate::support::lab::Lab;
use crate::support::repository::{Repository, smart_http as smart};
use crate::support::{Context, Run, is_root, port, text};

/// A server process, ended when dropped.
struct Daemon(Child);

impl Daemon {
    /// Starts it, and waits until it answers on `port`.
    fn start(command: &mut Command, port: u16) -> Self {
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut daemon = Self(quiet.spawn().unwrap());
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(daemon.0.try_wait().unwrap().is_none(), "{command:?} has ended");
            assert!(started.elapsed() < Duration::from_secs(30), "{command:?} does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        daemon
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail if it has ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The repository as a context, in a part of it, and as a source of ADD: each at its state of now and at the first commit.
fn is_served(lab: &Lab, repository: &Repository, url: &str, with: impl Fn(Run) -> Run) {
    repository.write("sub/Dockerfile", "FROM scratch\nCOPY . /all/\n");
    let first = repository.commit("sub/a", "first\n");
    repository.commit("sub/a", "second\n");
    let built = |build: Run| {
        let files = lab.context.path("files");
        drop(std::fs::remove_dir_all(&files));
        with(build).option_path("--output", "", &files).success();
        files
    };
    let read = |path: std::path::PathBuf| std::fs::read_to_string(path).unwrap();
    for (reference, expected) in [("main", "second\n"), (first.as_str(), "first\n")] {
        let files = built(lab.context.build().arg(format!("{url}#{reference}:sub")));
        assert_eq!(read(files.join("all/a")), expected);
        assert!(!files.join("all/.git").exists());
        let files = built(lab.build(&format!("FROM scratch\nADD {url}#{reference} /all/\n")));
        assert_eq!(read(files.join("all/sub/a")), expected);
    }
    // A change is seen, and what has not changed is not fetched.
    repository.commit("sub/a", "third\n");
    assert_eq!(
        read(built(lab.build(&format!("FROM scratch\nADD {url} /all/\n"))).join("all/sub/a")),
        "third\n"
    );
    with(lab.build(&format!("FROM scratch\nADD {url} /all/\n"))).success().says("1 cached, 0 run");
}

#[test]
fn gits_own_protocol() {
    let lab = Lab::new();
    let repository = Repository::new(&lab.context, "r");
    let port = port::free();
    let mut daemon = Command::new("git");
    daemon.args(["daemon", "--export-all", "--reuseaddr", "--listen=127.0.0.1"]);
    daemon.arg(format!("--port={port}")).arg(format!("--base-path={}", text(&lab.context.path("www"))));
    let _daemon = Daemon::start(&mut daemon, port);
    is_served(&lab, &repository, &format!("git://127.0.0.1:{port}/r.git"), |build| build);
}

#[test]
fn smart_http() {
    let lab = Lab::new();
    let repository = Repository::new(&lab.context, "r");
    let root = lab.context.path("www");
    let server = Server::new(move |request| smart(&root, request));
    is_served(&lab, &repository, &server.url("/r.git"), |build| build);
    assert!(
        server.asked().iter().any(|asked| asked == "POST /r.git/git-upload-pack"),
        "it was the smart protocol"
    );
}

/// An SSH server of this test alone, which lets root in with `public`, and nobody else.
fn sshd(context: &Context, public: &str, port: u16) -> Daemon {
    let (host_key, _) = key(context, "host-key", "ed25519", "");
    let keys = context.write("authorized", public);
    let config = format!(
        "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\n\
         PermitRootLogin prohibit-password\nPasswordAuthentication no\nPidFile none\n",
        text(&host_key),
        text(&keys)
    );
    let config = context.write("sshd_config", config);
    // Its own directory under /run, and a root account that is not locked, in a mount namespace of its own.
    let shadow = context.write("shadow", "root:*:19000:0:99999:7:::\n");
    let script = "mount -t tmpfs none /run && mkdir -p /run/sshd && mount --bind \"$1\" /etc/shadow && \
        exec \"$(command -v sshd)\" -D -e -f \"$2\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(shadow).arg(config);
    Daemon::start(&mut command, port)
}

#[test]
fn ssh() {
    if !is_root() {
        println!("NOT tried: an SSH server needs root");
        return;
    }
    let lab = Lab::new();
    let repository = Repository::new(&lab.context, "r");
    let (path, public) = key(&lab.context, "key", "ed25519", "");
    let port = port::free();
    let _sshd = sshd(&lab.context, &public, port);
    let url = format!("ssh://root@127.0.0.1:{port}{}", text(&repository.bare));
    let given = format!("default={}", text(&path));
    is_served(&lab, &repository, &url, |build| build.option("--ssh", &given));
    // The host's key was remembered when it was met, and another one is not taken for it.
    let known = lab.context.path("xdg/crossdock/v1/state/git/known_hosts");
    let met = std::fs::read_to_string(&known).unwrap();
    assert!(met.contains(&format!("[127.0.0.1]:{port} ssh-ed25519")), "{met}");
    let (_, another) = key(&lab.context, "another", "ed25519", "");
    std::fs::write(&known, format!("[127.0.0.1]:{port} {another}")).unwrap();
    let dockerfile = format!("FROM scratch\nADD {url} /all/\n");
    lab.build(&dockerfile).option("--ssh", &given).failure().says("Host key verification failed");
    std::fs::write(&known, met).unwrap();
    lab.build(&dockerfile).option("--ssh", &given).success();
    // Without a key, or with another one, there is advice; what is cached is no way around it.
    lab.build(&dockerfile).failure().says("--ssh default");
    let (other, _) = key(&lab.context, "other", "ed25519", "");
    lab.build(&dockerfile)
        .option("--ssh", format!("default={}", text(&other)))
        .failure()
        .says("Permission denied");
    // Nothing of the key was kept.
    let found = lab.context.command("grep").args(["-r", "-l", "-a", "OPENSSH PRIVATE KEY"]);
    assert_eq!(found.arg(lab.context.path("xdg")).output().stdout(), "");
}
