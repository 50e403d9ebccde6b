//! SSH agents in steps, with OpenSSH's own agent on one side and its own tools on the other.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::lab::Lab;
use crate::support::oci::content;
use crate::support::{Context, is_root, text};

/// A user that no system has an account or subordinate ids for.
const STRANGER: u32 = 54_321;

/// Puts programs of this machine into the build context's `tools`, with the libraries that they need.
fn tools(lab: &Lab, programs: &[&str]) {
    for program in programs {
        let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap();
        let program = String::from_utf8(found.stdout).unwrap();
        let program = program.trim();
        assert!(!program.is_empty(), "`./test` installs openssh-client");
        let libraries = Command::new("ldd").arg(program).output().unwrap().stdout;
        let libraries = String::from_utf8(libraries).unwrap();
        let libraries = libraries.split_whitespace().filter(|word| word.starts_with('/'));
        for file in libraries.chain([program]) {
            let to = lab.path("tools").join(file.trim_start_matches('/'));
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(file, &to).unwrap();
        }
    }
}

/// Makes a key pair; returns the private key's file and the public key.
pub(super) fn key(context: &Context, name: &str, kind: &str, passphrase: &str) -> (PathBuf, String) {
    let path = context.path(name);
    context
        .command("ssh-keygen")
        .args(["-q", "-t", kind, "-C", name, "-N", passphrase, "-f"])
        .arg(&path)
        .success();
    let public = std::fs::read_to_string(context.path(format!("{name}.pub"))).unwrap();
    (path, public)
}

/// An agent of the machine's user, ended when dropped.
struct Agent {
    process: Child,
    socket: PathBuf,
}

impl Agent {
    fn start(context: &Context) -> Self {
        let socket = context.path("agent.socket");
        let process = Command::new("ssh-agent")
            .args(["-D", "-a", text(&socket)])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let started = Instant::now();
        while !socket.exists() {
            assert!(started.elapsed() < Duration::from_secs(20), "ssh-agent did not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { process, socket }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Nothing of a build is left: no process works in its directories, and no socket is there.
#[track_caller]
fn assert_nothing_is_left(context: &Context) {
    assert_no_process_is_left(context, Duration::from_secs(5));
    for entry in walkdir::WalkDir::new(context.path("xdg")) {
        let entry = entry.unwrap();
        assert!(!entry.path().ends_with("agent.sock"), "{}", entry.path().display());
    }
}

#[track_caller]
fn assert_no_process_is_left(context: &Context, patience: Duration) {
    // The agent goes to `/`, but the variables that it was started with are those of the test's commands.
    let home = format!("HOME={}", text(&context.path("home")));
    let ours = |process: &Path| {
        let variables = std::fs::read(process.join("environ")).unwrap_or_default();
        variables.split(|byte| *byte == 0).any(|variable| variable == home.as_bytes())
    };
    // An agent that was asked to end has to get to it.
    let started = Instant::now();
    loop {
        let left: Vec<PathBuf> = std::fs::read_dir("/proc")
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|process| ours(process))
            .collect();
        if left.is_empty() {
            break;
        }
        assert!(started.elapsed() < patience, "left over: {left:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What is killed cannot clean up: the agent looks every ten seconds whether it is still needed.
#[test]
fn a_killed_build_leaves_no_agent() {
    let lab = Lab::new();
    let (key, _) = key(&lab.context, "key", "ed25519", "");
    let dockerfile =
        "FROM busybox\nRUN --mount=type=cache,target=/c --mount=type=ssh touch /c/has-started; sleep 60\n";
    let mut child = lab.build(dockerfile).option_path("--ssh", "default=", &key).spawn();
    let started = Instant::now();
    let has_started = || {
        let mut files = walkdir::WalkDir::new(lab.context.path("xdg")).into_iter().filter_map(Result::ok);
        files.any(|entry| entry.file_name() == "has-started")
    };
    while !has_started() {
        assert!(started.elapsed() < Duration::from_secs(30), "the step did not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_no_process_is_left(&lab.context, Duration::from_secs(20));
}

const SIGN: &str = "\
    set -e; ssh-add -L > /keys; stat -c '%u %g %a' \"$SSH_AUTH_SOCK\" > /access; echo \"$SSH_AUTH_SOCK\" > /socket; \
    head -n 1 /keys > /tmp/first.pub; echo text | ssh-keygen -q -Y sign -f /tmp/first.pub -n test > /signature; \
    if ssh-add -D; then exit 9; fi; chmod 666 \"$SSH_AUTH_SOCK\"; ssh-add -L";

#[test]
fn keys_from_files_sign_and_stay_where_they_are() {
    let lab = Lab::new();
    tools(&lab, &["ssh-add", "ssh-keygen"]);
    let (first, first_public) = key(&lab.context, "first", "ed25519", "");
    let (second, second_public) = key(&lab.context, "second", "rsa", "");
    let ssh = format!("default={},{}", text(&first), text(&second));
    let dockerfile = format!("FROM busybox\nCOPY tools /\nRUN --mount=type=ssh,required {SIGN}\n");
    let image = lab.image_of(lab.build(&dockerfile).option("--ssh", &ssh));
    let tree = image.tree();
    assert_eq!(content(&tree, "keys"), format!("{first_public}{second_public}"));
    assert_eq!(content(&tree, "access"), "0 0 600\n");
    assert_eq!(content(&tree, "socket"), "/run/buildkit/ssh_agent.0\n");
    // The signature is that of the private key.
    let signature = lab.context.write("signature", content(&tree, "signature"));
    let mut check = lab.context.command("ssh-keygen").args(["-Y", "check-novalidate", "-n", "test", "-s"]);
    check = check.arg(&signature).stdin("text\n");
    check.success().says("Good \"test\" signature");
    assert!(!tree.keys().any(|path| path.starts_with("run")), "the socket is in no layer");
    assert_nothing_is_left(&lab.context);
    if is_root() && Path::new("/usr/sbin/runc").exists() {
        lab.build(&dockerfile).args(["--runtime=runc", "--no-cache"]).option("--ssh", &ssh).success();
    }
    // Which keys there were is not part of any key.
    lab.build(&dockerfile).success().says("2 cached, 0 run");
}

#[test]
fn the_agent_of_the_environment_is_forwarded() {
    let lab = Lab::new();
    tools(&lab, &["ssh-add"]);
    let agent = Agent::start(&lab.context);
    let (path, public) = key(&lab.context, "key", "ecdsa", "");
    lab.context.command("ssh-add").arg("-q").arg(&path).env("SSH_AUTH_SOCK", &agent.socket).success();
    let dockerfile = "FROM busybox\nCOPY tools /\nUSER app\n\
        RUN --mount=type=ssh,id=git,target=/run/a.sock,uid=1000,gid=50,mode=0660 \
            --mount=type=ssh,id=other,uid=1000 \
            ssh-add -L > /tmp/keys && stat -c '%u %g %a' /run/a.sock > /tmp/access && echo $SSH_AUTH_SOCK > /tmp/socket && \
            SSH_AUTH_SOCK=/run/buildkit/ssh_agent.1 ssh-add -L > /tmp/other\n";
    let build = lab.build(dockerfile).option("--ssh", "git");
    let build = build.option_path("--ssh", "other=", &agent.socket);
    let tree = lab.image_of(build.env("SSH_AUTH_SOCK", &agent.socket)).tree();
    assert_eq!(content(&tree, "tmp/keys"), public);
    assert_eq!(content(&tree, "tmp/other"), public);
    assert_eq!(content(&tree, "tmp/access"), "1000 50 660\n");
    assert_eq!(content(&tree, "tmp/socket"), "/run/a.sock\n");
    // It still has its key, and is still there.
    lab.context
        .command("ssh-add")
        .arg("-L")
        .env("SSH_AUTH_SOCK", &agent.socket)
        .success()
        .says(public.trim());
}

#[test]
fn an_ordinary_user_forwards_too() {
    if !is_root() {
        return;
    }
    let lab = Lab::of(Context::for_user(STRANGER));
    tools(&lab, &["ssh-add", "ssh-keygen"]);
    // ssh-keygen insists on an account.
    let made = Context::new();
    let (path, public) = key(&made, "key", "ed25519", "");
    let path = lab.context.write_mode("home/key", std::fs::read(path).unwrap(), 0o600);
    std::os::unix::fs::chown(&path, Some(STRANGER), Some(STRANGER)).unwrap();
    let dockerfile = format!("FROM busybox\nCOPY tools /\nRUN --mount=type=ssh,required {SIGN}\n");
    let output = lab.context.path("home/image.tar");
    let build = lab.build(&dockerfile).option_path("--ssh", "default=", &path);
    build.option_path("--output", "type=oci,dest=", &output).success();
    assert_eq!(content(&crate::support::oci::Image::read(&output).tree(), "keys"), public);
    assert_nothing_is_left(&lab.context);
}

#[test]
fn steps_without_an_agent() {
    let lab = Lab::new();
    let tree = lab.image("FROM busybox\nRUN --mount=type=ssh echo $SSH_AUTH_SOCK > /s && ls /run/buildkit > /l 2>&1 || true\n").tree();
    assert_eq!(content(&tree, "s"), "/run/buildkit/ssh_agent.0\n");
    assert!(content(&tree, "l").contains("No such file"));
    let required = "FROM busybox\nRUN --mount=type=ssh,id=deploy,required true\n";
    let output = lab.build(required).failure();
    output.says("Dockerfile:2").says("no SSH key `deploy` is forwarded").says("--ssh deploy");
    lab.build(required).option("--ssh", "deploy").failure().says("SSH_AUTH_SOCK is not set");
    lab.build(required).args(["--ssh", "a=x", "--ssh", "a=y"]).failure();

    let (locked, _) = key(&lab.context, "locked", "ed25519", "sesame");
    let output = lab.build(required).option_path("--ssh", "deploy=", &locked).failure();
    output.says("protected by a passphrase").says("ssh-add");
    let broken = lab
        .context
        .write("broken", "-----BEGIN RSA PRIVATE KEY-----\nbm90IGEga2V5\n-----END RSA PRIVATE KEY-----\n");
    let output = lab.build(required).option_path("--ssh", "deploy=", &broken).failure();
    output.says("broken` cannot be used").says("Dockerfile:2");
    let listener = std::os::unix::net::UnixListener::bind(lab.context.path("dead")).unwrap();
    drop(listener);
    let output = lab.build(required).option_path("--ssh", "deploy=", lab.context.path("dead")).failure();
    output.says("dead cannot be reached").says("ssh-add -l");
    assert_nothing_is_left(&lab.context);
}
