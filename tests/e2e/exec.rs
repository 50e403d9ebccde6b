//! What every executor has to do, checked with busybox as the root filesystem.
//!
//! These need root and busybox (Debian: `busybox-static`); without them they say so and pass.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "the lints spare test functions, not their helpers"
)]

use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crossdock::event::Stream;
use crossdock::exec::{
    CancelToken, ExecError, ExecOutcome, ExecStep, Executor, Exit, Ids, NativeExecutor, Network,
    OciRuntimeExecutor, Once, ResolvedUser, Security, Settings, StepMount, Ulimit,
};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_crossdock");
const BUSYBOX: &str = "/bin/busybox";

struct Rig {
    dir: TempDir,
    executor: NativeExecutor,
    lowers: Vec<PathBuf>,
    runs: u32,
}

struct Ran {
    outcome: ExecOutcome,
    stdout: String,
    stderr: String,
    upper: PathBuf,
}

impl Ran {
    #[track_caller]
    fn ok(&self) -> &str {
        assert_eq!(self.outcome.exit, Exit::Code(0), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self.stdout.trim_end()
    }

    fn upper_paths(&self) -> Vec<String> {
        let walk = walkdir::WalkDir::new(&self.upper).min_depth(1).sort_by_file_name();
        walk.into_iter()
            .map(|entry| {
                entry.unwrap().path().strip_prefix(&self.upper).unwrap().to_str().unwrap().to_owned()
            })
            .collect()
    }
}

impl Rig {
    /// `None`, with the reason printed, where such tests cannot run.
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: not root");
            return None;
        }
        Self::with(Ids::Root, tempfile::tempdir().unwrap())
    }

    fn with(ids: Ids, dir: TempDir) -> Option<Self> {
        if !Path::new(BUSYBOX).exists() {
            eprintln!("skipped: {BUSYBOX} is missing (package busybox-static)");
            return None;
        }
        let base = dir.path().join("base");
        for sub in ["bin", "etc", "tmp", "root"] {
            std::fs::create_dir_all(base.join(sub)).unwrap();
        }
        std::fs::copy(BUSYBOX, base.join("bin/busybox")).unwrap();
        for applet in
            "sh cat echo id ls mkdir rm sleep grep mount umount stat touch hostname ip env pwd kill ps chmod chown \
             readlink df ulimit unshare test mv ln wc sync head dd mknod nproc true chroot"
                .split_whitespace()
        {
            symlink("busybox", base.join("bin").join(applet)).unwrap();
        }
        std::fs::write(
            base.join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n",
        )
        .unwrap();
        let executor = NativeExecutor::new(PathBuf::from(PROGRAM), Settings::new(ids));
        Some(Self { dir, executor, lowers: vec![base], runs: 0 })
    }

    fn step(&mut self, args: &[&str]) -> ExecStep {
        self.runs += 1;
        let at = |name: &str| {
            let path = self.dir.path().join(format!("run{}", self.runs)).join(name);
            std::fs::create_dir_all(&path).unwrap();
            path
        };
        let args = args.iter().map(|&arg| arg.to_owned()).collect();
        let mut step = ExecStep::new(self.lowers.clone(), at("upper"), at("work"), at("scratch"), args);
        step.env = vec![("PATH".to_owned(), "/bin".to_owned())];
        step
    }

    fn sh(&mut self, script: &str) -> ExecStep {
        self.step(&["sh", "-c", script])
    }

    fn run(&self, step: &ExecStep) -> Ran {
        self.try_run(step).unwrap()
    }

    fn try_run(&self, step: &ExecStep) -> Result<Ran, ExecError> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let mut log = |stream, data: &[u8]| match stream {
            Stream::Stdout => stdout.extend_from_slice(data),
            Stream::Stderr => stderr.extend_from_slice(data),
        };
        let outcome = self.executor.run(step, &[], &mut log, &CancelToken::new().unwrap())?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Ran { outcome, stdout: text(stdout), stderr: text(stderr), upper: step.upper.clone() })
    }

    #[track_caller]
    fn output(&mut self, script: &str) -> String {
        let step = self.sh(script);
        self.run(&step).ok().to_owned()
    }
}

fn user(uid: u32, gid: u32, groups: &[u32]) -> ResolvedUser {
    ResolvedUser { uid, gid, groups: groups.to_vec(), home: None }
}

/// Processes, other than this one, whose command line has `mark`.
fn processes_with(mark: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(mark) && entry.file_name().to_str() != Some(&std::process::id().to_string()) {
            found.push(line);
        }
    }
    found
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn exit_codes_signals_and_output() {
    let Some(mut rig) = Rig::new() else { return };
    let step = rig.sh("echo out; echo err >&2; exit 7");
    let ran = rig.run(&step);
    assert_eq!(
        (ran.outcome.exit, ran.stdout.as_str(), ran.stderr.as_str()),
        (Exit::Code(7), "out\n", "err\n")
    );
    assert_eq!(ran.outcome.notes, Vec::<String>::new());
    // The first process of a namespace takes no signal that it has no handler for, so a child tells.
    let step = rig.sh("sh -c 'kill -9 $$'; exit $?");
    assert_eq!(rig.run(&step).outcome.exit, Exit::Code(137));
    let step = rig.sh("dd if=/dev/zero bs=1000 count=1000 2>/dev/null");
    assert_eq!(rig.run(&step).stdout.len(), 1_000_000);
}

#[test]
fn commands_that_cannot_be_started_say_why() {
    let Some(mut rig) = Rig::new() else { return };
    std::fs::write(rig.lowers[0].join("bin/data"), "no program").unwrap();
    std::fs::write(rig.lowers[0].join("bin/garbage"), "\x7fELF no program").unwrap();
    std::fs::set_permissions(rig.lowers[0].join("bin/garbage"), PermissionsExt::from_mode(0o755)).unwrap();
    for (command, code, message) in [
        ("nothing", 127, "exec: \"nothing\": executable file not found in $PATH"),
        ("/bin/nothing", 127, "exec: \"/bin/nothing\": stat /bin/nothing: no such file or directory"),
        ("data", 126, "exec: \"data\": permission denied"),
        ("/etc", 126, "exec: \"/etc\": permission denied"),
        ("garbage", 126, "exec /bin/garbage: exec format error"),
    ] {
        let step = rig.step(&[command]);
        let ran = rig.run(&step);
        assert_eq!((ran.outcome.exit, ran.stderr.trim_end()), (Exit::Code(code), message), "{command}");
    }
}

#[test]
fn the_command_is_process_1_and_sees_only_its_own() {
    let Some(mut rig) = Rig::new() else { return };
    assert_eq!(rig.output("echo $$; set -- /proc/[0-9]*; echo $#; readlink /proc/self/exe; hostname; readlink /proc/1/fd/0; ls /proc/1/fd; true"),
        "1\n1\n/bin/busybox\nbuildkitsandbox\n/dev/null\n0\n1\n2");
    let mut step = rig.sh("hostname; cat /etc/hosts; pwd; umask; env");
    step.hostname = Some("builder".to_owned());
    step.cwd = "/made/for/it".to_owned();
    step.extra_hosts = vec![("db".to_owned(), "10.0.0.9".to_owned())];
    step.env.push(("AB".to_owned(), "x\ny".to_owned()));
    let ran = rig.run(&step);
    let expected = "builder\n127.0.0.1\tlocalhost builder\n::1\tlocalhost ip6-localhost ip6-loopback\n10.0.0.9\tdb\n/made/for/it\n0022\n";
    assert!(ran.ok().starts_with(expected), "{}", ran.stdout);
    assert!(ran.stdout.contains("AB=x\ny\n") && ran.stdout.contains("HOME=/\n"), "{}", ran.stdout);
    assert!(!ran.stdout.contains("CARGO"), "{}", ran.stdout);
}

#[test]
fn users_groups_and_capabilities() {
    let Some(mut rig) = Rig::new() else { return };
    let status = "grep -E '^(Uid|Gid|Groups|Cap...|NoNewPrivs|Seccomp):' /proc/self/status";
    let root = rig.output(status);
    for line in [
        "CapInh:\t0000000000000000",
        "CapPrm:\t00000000a80425fb",
        "CapEff:\t00000000a80425fb",
        "CapBnd:\t00000000a80425fb",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t0",
        "Seccomp:\t2",
    ] {
        assert!(root.contains(line), "{line}\n{root}");
    }
    let mut step = rig.sh(status);
    step.user = user(1000, 1001, &[10, 20]);
    let app = rig.run(&step).ok().to_owned();
    for line in [
        "Uid:\t1000\t1000\t1000\t1000",
        "Gid:\t1001\t1001\t1001\t1001",
        "Groups:\t10 20",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "CapBnd:\t00000000a80425fb",
    ] {
        assert!(app.contains(line), "{line}\n{app}");
    }
    let mut step = rig.sh("id -u; touch f; pwd; stat -c %u:%g /home/app/x");
    step.user = user(1000, 1001, &[]);
    step.cwd = "/home/app/x".to_owned();
    assert_eq!(rig.run(&step).ok(), "1000\n/home/app/x\n1000:1001");
    let mut step =
        rig.sh("grep CapEff /proc/self/status; grep Seccomp: /proc/self/status; mount -t tmpfs x /tmp");
    step.security = Security::Insecure;
    let ran = rig.run(&step);
    assert!(ran.ok().contains("Seccomp:\t0") && !ran.stdout.contains("00000000a80425fb"), "{}", ran.stdout);
}

#[test]
fn setuid_programs_work() {
    let Some(mut rig) = Rig::new() else { return };
    let program = rig.lowers[0].join("tmp/stat");
    std::fs::copy(BUSYBOX, &program).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o4755)).unwrap();
    // Busybox gives such rights up at once, but the kernel does not forget who owns the process.
    for (program, owner) in [("/tmp/stat", "0"), ("/bin/stat", "1000")] {
        let mut step = rig.step(&[program, "-Lc", "%u", "/proc/self/auxv"]);
        step.user = user(1000, 1000, &[]);
        assert_eq!(rig.run(&step).ok(), owner);
    }
}

#[test]
fn what_a_sandboxed_step_must_not_do() {
    let Some(mut rig) = Rig::new() else { return };
    for script in [
        "mount -t tmpfs x /tmp",
        "unshare -m true",
        "unshare -r true",
        "umount /proc",
        "hostname x",
        "echo 1 > /proc/sys/kernel/panic",
        "echo b > /proc/sysrq-trigger",
        "touch /sys/x",
        "head -c 1 /proc/kcore | grep -q .",
        "ls /sys/firmware | grep -q .",
        "echo nameserver 1.2.3.4 > /etc/resolv.conf",
        "mknod /tmp/disk b 8 0 && head -c 1 /tmp/disk",
    ] {
        let step = rig.sh(script);
        assert_ne!(rig.run(&step).outcome.exit, Exit::Code(0), "{script}");
    }
    // Docker allows these.
    rig.output("mknod /tmp/null c 1 3 && echo x > /dev/null && chown 5:6 /tmp && chroot / true");
}

#[test]
fn devices_and_kernel_filesystems() {
    let Some(mut rig) = Rig::new() else { return };
    let listing = rig.output("ls -1 /dev; stat -c %a /dev/shm /dev/null; df -k /dev/shm | grep -o 65536 | head -n 1; cat /dev/null; head -c 3 /dev/zero | wc -c; ls /sys | grep -c kernel; echo x > /dev/shm/x");
    let expected = "fd\nfull\nmqueue\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n1777\n666\n65536\n3\n1";
    assert_eq!(listing, expected);
}

#[test]
fn mount_points_leave_no_trace() {
    let Some(mut rig) = Rig::new() else { return };
    let etc_before = std::fs::metadata(rig.lowers[0].join("etc")).unwrap();
    let cache = rig.dir.path().join("cache");
    std::fs::create_dir(&cache).unwrap();
    let mut step = rig.sh("echo x > /deep/cache/kept; echo y > /kept");
    step.mounts = vec![
        StepMount::Cache { dir: cache.clone(), target: "/deep/cache".into(), read_only: false },
        StepMount::Secret {
            target: "/run/secrets/s".into(),
            data: b"x".to_vec(),
            mode: 0o400,
            uid: 0,
            gid: 0,
        },
        StepMount::Tmpfs { target: "/mine/tmp".into(), size: None },
    ];
    step.args[2] += "; echo z > /mine/file";
    let ran = rig.run(&step);
    ran.ok();
    assert_eq!(ran.upper_paths(), ["etc", "kept", "mine", "mine/file"]);
    assert_eq!(ran.outcome.created_mountpoints, [b"mine".to_vec()]);
    assert_eq!(std::fs::read_to_string(cache.join("kept")).unwrap(), "x\n");
    let etc = std::fs::metadata(ran.upper.join("etc")).unwrap();
    assert_eq!((etc.mtime(), etc.mtime_nsec()), (etc_before.mtime(), etc_before.mtime_nsec()));
    assert_eq!(std::fs::read_dir(step.scratch.join("memory")).unwrap().count(), 0);
}

#[test]
fn resolv_conf_behind_a_dangling_link() {
    let Some(mut rig) = Rig::new() else { return };
    symlink("../run/systemd/resolve/stub.conf", rig.lowers[0].join("etc/resolv.conf")).unwrap();
    let host = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let step = rig.sh("cat /etc/resolv.conf");
    let ran = rig.run(&step);
    assert_eq!(ran.ok(), host.trim_end());
    assert_eq!(ran.upper_paths(), ["etc"]);
}

#[test]
fn changes_are_in_the_upper_directory() {
    let Some(mut rig) = Rig::new() else { return };
    let below = rig.dir.path().join("below");
    std::fs::create_dir_all(below.join("data/sub")).unwrap();
    std::fs::write(below.join("data/old"), "old").unwrap();
    std::fs::write(below.join("data/sub/x"), "x").unwrap();
    rig.lowers.push(below);
    let step =
        rig.sh("rm /data/old; rm -r /data/sub; mkdir /data/sub; echo n > /data/sub/n; chmod 700 /root");
    let ran = rig.run(&step);
    ran.ok();
    assert_eq!(ran.upper_paths(), ["data", "data/old", "data/sub", "data/sub/n", "etc", "root"]);
    let old = std::fs::metadata(ran.upper.join("data/old")).unwrap();
    assert!(old.file_type().is_char_device() && old.rdev() == 0);
}

#[test]
fn binds_secrets_and_files() {
    let Some(mut rig) = Rig::new() else { return };
    let source = rig.dir.path().join("source");
    std::fs::create_dir_all(source.join("d")).unwrap();
    std::fs::write(source.join("d/f"), "content").unwrap();
    let stage = rig.dir.path().join("stage");
    std::fs::create_dir_all(stage.join("opt")).unwrap();
    std::fs::write(stage.join("opt/tool"), "tool").unwrap();
    symlink("/opt", stage.join("link")).unwrap();
    let under = rig.dir.path().join("under");
    std::fs::create_dir_all(under.join("opt")).unwrap();
    std::fs::write(under.join("opt/other"), "other").unwrap();
    let mut step = rig.sh(
        "cat /ro/d/f; ! touch /ro/x 2>/dev/null && echo ' ro'; echo new > /rw/d/f; cat /rw/d/f; echo n > /rwf; cat /rwf; \
         ls /stage1 /stage2; echo x > /stage2/tool; cat /stage2/tool; cat /run/secrets/key; stat -c %a:%u:%g /run/secrets/key; \
         df /tmpfs | grep -c tmpfs; sh /dev/pipes/EOF; cat /roc/d/f; ! touch /roc/x 2>/dev/null",
    );
    step.mounts = vec![
        StepMount::Bind { source: source.clone(), target: "/ro".into(), read_only: true },
        StepMount::Bind { source: source.clone(), target: "/rw".into(), read_only: false },
        StepMount::Bind { source: source.join("d/f"), target: "/rwf".into(), read_only: false },
        StepMount::BindOverlay {
            lowers: vec![stage.clone()],
            source: "/link".into(),
            target: "/stage1".into(),
            read_only: true,
        },
        StepMount::BindOverlay {
            lowers: vec![stage.clone(), under.clone()],
            source: "/link".into(),
            target: "/stage2".into(),
            read_only: false,
        },
        StepMount::Secret {
            target: "/run/secrets/key".into(),
            data: b"hunter2\n".to_vec(),
            mode: 0o440,
            uid: 7,
            gid: 8,
        },
        StepMount::Tmpfs { target: "/tmpfs".into(), size: Some(1 << 20) },
        StepMount::File {
            target: "/dev/pipes/EOF".into(),
            data: b"echo from a heredoc\n".to_vec(),
            mode: 0o755,
        },
        StepMount::Cache { dir: source.clone(), target: "/roc".into(), read_only: true },
    ];
    assert!(!format!("{step:?}").contains("104, 117"), "a secret in {step:?}");
    let ran = rig.run(&step);
    let expected = "content ro\nnew\nn\n/stage1:\ntool\n\n/stage2:\nother\ntool\nx\nhunter2\n440:7:8\n1\nfrom a heredoc\ncontent";
    assert_eq!(ran.ok(), expected, "{}", ran.stderr);
    assert_eq!(std::fs::read_to_string(source.join("d/f")).unwrap(), "content");
    assert_eq!(std::fs::read_to_string(stage.join("opt/tool")).unwrap(), "tool");
    assert_eq!(ran.upper_paths(), ["etc"]);
    for entry in walkdir::WalkDir::new(rig.dir.path()) {
        let entry = entry.unwrap();
        if entry.file_type().is_file() {
            let content = std::fs::read(entry.path()).unwrap();
            assert!(!content.windows(7).any(|window| window == b"hunter2"), "{}", entry.path().display());
        }
    }
}

#[test]
fn mounts_that_cannot_be_made_are_clear_errors() {
    let Some(mut rig) = Rig::new() else { return };
    let mut step = rig.sh("true");
    step.mounts =
        vec![StepMount::Bind { source: "/no/such/thing".into(), target: "/x".into(), read_only: true }];
    let error = rig.try_run(&step).err().unwrap().to_string();
    assert!(error.contains("mounting /x: opening /no/such/thing"), "{error}");
    let mut step = rig.sh("true");
    step.mounts = vec![StepMount::Tmpfs { target: "/bin/busybox".into(), size: None }];
    let error = rig.try_run(&step).err().unwrap().to_string();
    assert!(error.contains("/bin/busybox"), "{error}");
    assert!(std::fs::read_dir(&step.upper).unwrap().all(|entry| entry.unwrap().file_name() == "etc"));
}

#[test]
fn networks() {
    let Some(mut rig) = Rig::new() else { return };
    let mut step = rig.sh("ip -o link | wc -l; ip -o addr show lo | grep -c 127.0.0.1; cat /etc/resolv.conf");
    step.network = Network::None;
    assert_eq!(rig.run(&step).ok(), "1\n1");
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!(rig.output("readlink /proc/self/ns/net"), own.to_str().unwrap());
}

#[test]
fn limits() {
    let Some(mut rig) = Rig::new() else { return };
    let mut step = rig.sh("ulimit -n; ulimit -Hn; ulimit -c");
    step.rlimits = vec![
        Ulimit { name: "nofile".into(), soft: Some(100), hard: Some(200) },
        Ulimit { name: "core".into(), soft: Some(0), hard: None },
    ];
    assert_eq!(rig.run(&step).ok(), "100\n200\n0");
    step = rig.sh("true");
    step.rlimits = vec![Ulimit { name: "nonsense".into(), soft: None, hard: None }];
    assert!(rig.try_run(&step).err().unwrap().to_string().contains("nonsense"));
}

#[test]
fn a_hundred_and_fifty_layers_and_none() {
    let Some(mut rig) = Rig::new() else { return };
    let long = "a-rather-long-name-for-a-directory-".repeat(5);
    let base = rig.lowers.remove(0);
    for index in 0..150 {
        let lower = rig.dir.path().join(format!("{long},:{index}"));
        std::fs::create_dir(&lower).unwrap();
        std::fs::write(lower.join(format!("f{index}")), "").unwrap();
        std::fs::write(lower.join("top"), index.to_string()).unwrap();
        rig.lowers.insert(0, lower);
    }
    rig.lowers.push(base);
    assert_eq!(rig.output("ls -d /f* | wc -l; cat /top"), "150\n149");
    rig.lowers.clear();
    let step = rig.step(&["/bin/sh"]);
    let ran = rig.run(&step);
    assert_eq!(ran.outcome.exit, Exit::Code(127));
    assert_eq!((ran.upper_paths(), ran.outcome.created_mountpoints), (vec![], vec![]));
}

#[test]
fn what_a_step_leaves_running_ends_with_it() {
    let Some(mut rig) = Rig::new() else { return };
    let start = Instant::now();
    assert_eq!(rig.output("sleep 3131 & sleep 3131 </dev/null >/dev/null 2>&1 & echo done"), "done");
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(processes_with("sleep 3131"), Vec::<String>::new());
}

#[test]
fn cancelling_ends_everything() {
    let Some(mut rig) = Rig::new() else { return };
    let step = rig.sh("sleep 3232 & echo up; trap '' TERM INT; sleep 3232");
    let token = CancelToken::new().unwrap();
    let canceller = token.clone();
    let start = Instant::now();
    let result = rig.executor.run(&step, &[], &mut |_, _| canceller.cancel(), &token);
    assert!(matches!(result, Err(ExecError::Cancelled)), "{result:?}");
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(processes_with("sleep 3232"), Vec::<String>::new());
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(rig.dir.path().to_str().unwrap()));
    // Nothing holds it: a directory in use as a mount point of any namespace could not go.
    std::fs::remove_dir_all(&step.scratch).unwrap();
    assert!(matches!(rig.try_run_cancelled(&step, &token), Err(ExecError::Cancelled)));
}

impl Rig {
    fn try_run_cancelled(&self, step: &ExecStep, token: &CancelToken) -> Result<ExecOutcome, ExecError> {
        self.executor.run(step, &[], &mut |_, _| {}, token)
    }
}

#[test]
fn several_steps_at_once() {
    let Some(mut rig) = Rig::new() else { return };
    let steps: Vec<ExecStep> = (0..8).map(|index| rig.sh(&format!("echo {index} > /f; cat /f"))).collect();
    std::thread::scope(|scope| {
        let rig = &rig;
        let runs: Vec<_> =
            steps.iter().map(|step| scope.spawn(move || rig.run(step).ok().to_owned())).collect();
        for (index, run) in runs.into_iter().enumerate() {
            assert_eq!(run.join().unwrap(), index.to_string());
        }
    });
}

/// Runs one test of this file in a process of its own.
fn in_own_process(test: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--ignored", "--nocapture"]).env("CROSSDOCK_TEST_DIR", dir);
    command
}

fn given_dir() -> PathBuf {
    PathBuf::from(std::env::var_os("CROSSDOCK_TEST_DIR").unwrap())
}

#[test]
#[ignore = "the process that the_kernel_cleans_up_after_kill_9 kills"]
fn victim_of_kill_9() {
    let dir = tempfile::Builder::new().disable_cleanup(true).tempdir_in(given_dir()).unwrap();
    let mut rig = Rig::with(Ids::Root, dir).unwrap();
    let step = rig.sh("sleep 3333 & echo up; sleep 3333");
    let up = &mut |_: Stream, data: &[u8]| eprintln!("step: {}", String::from_utf8_lossy(data));
    let _ = rig.executor.run(&step, &[], up, &CancelToken::new().unwrap());
}

#[test]
fn the_kernel_cleans_up_after_kill_9() {
    let Some(rig) = Rig::new() else { return };
    let mut victim = in_own_process("exec::victim_of_kill_9", rig.dir.path())
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(victim.stderr.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.contains("step: up")));
    assert!(!processes_with("sleep 3333").is_empty());
    victim.kill().unwrap();
    victim.wait().unwrap();
    wait_until("the step's processes end", || processes_with("sleep 3333").is_empty());
    wait_until("the mounts go", || {
        std::fs::read_dir("/proc").unwrap().flatten().all(|entry| {
            let mounts = std::fs::read_to_string(entry.path().join("mounts")).unwrap_or_default();
            !mounts.contains(rig.dir.path().to_str().unwrap())
        })
    });
}

/// Runs a step as an ordinary user, by way of `prefix`. `None`, with the reason printed, where that cannot be.
fn rootless(step: &ExecStep, prefix: &[&str]) -> Option<Once> {
    // The build directory may be closed to other users: the program gets to a place that is not.
    let program =
        tempfile::Builder::new().permissions(PermissionsExt::from_mode(0o755)).tempdir_in("/tmp").unwrap();
    let copy = program.path().join("crossdock");
    std::fs::copy(PROGRAM, &copy).unwrap();
    let mut command = Command::new(prefix[0]);
    command.args(&prefix[1..]).arg(&copy).arg("__exec-once");
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
    serde_json::to_writer(child.stdin.take().unwrap(), step).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let once: Once = serde_json::from_slice(&output.stdout).unwrap();
    if let Once::Failed { ids: None, error, .. } = &once {
        eprintln!("skipped: an ordinary user cannot make a user namespace here: {error}");
        return None;
    }
    Some(once)
}

/// A rig whose files belong to the ordinary user.
fn rootless_rig() -> Option<Rig> {
    let rig = Rig::new()?;
    std::fs::set_permissions(rig.dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    Some(rig)
}

fn give(rig: &Rig) {
    for entry in walkdir::WalkDir::new(rig.dir.path()) {
        std::os::unix::fs::lchown(entry.unwrap().path(), Some(ORDINARY), Some(ORDINARY)).unwrap();
    }
}

const ORDINARY: u32 = 54321;
const AS_ORDINARY: &[&str] = &["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"];

/// What must work for an ordinary user whatever the ids are.
fn check_rootless(prefix: &[&str], expected: impl Fn(Ids) -> bool) {
    let Some(mut rig) = rootless_rig() else { return };
    let step = rig.sh(
        "id -u; echo x > /etc/new; rm -r /root; mkdir /root; touch /root/y; rm /etc/passwd; head -n 1 /etc/hosts; \
         echo x > /dev/null; ls /sys | grep -c kernel; ls /proc | grep -c '^[0-9]'; mount -t tmpfs x /tmp || echo denied; \
         cat /secret; grep CapEff /proc/self/status; cat /bound/f; echo y > /bound/f",
    );
    let mut step = step;
    let bound = rig.dir.path().join("bound");
    std::fs::create_dir(&bound).unwrap();
    std::fs::write(bound.join("f"), "f\n").unwrap();
    step.mounts = vec![
        StepMount::Secret { target: "/secret".into(), data: b"s\n".to_vec(), mode: 0o400, uid: 0, gid: 0 },
        StepMount::Bind { source: bound.clone(), target: "/bound".into(), read_only: false },
    ];
    give(&rig);
    let Some(once) = rootless(&step, prefix) else { return };
    let Once::Ran { ids, notes, exit, stdout, stderr } = once else { panic!("{once:?}") };
    assert!(expected(ids), "{ids:?} {notes:?}");
    assert_eq!(exit, Exit::Code(0), "{stderr}");
    let wanted = "0\n127.0.0.1\tlocalhost buildkitsandbox\n1\n3\ndenied\ns\nCapEff:\t00000000a80425fb\nf\n";
    assert_eq!(stdout, wanted, "{stderr}");
    assert_eq!(std::fs::read_to_string(bound.join("f")).unwrap(), "f\n");
    let mut paths: Vec<_> =
        walkdir::WalkDir::new(&step.upper).min_depth(1).into_iter().map(|entry| entry.unwrap()).collect();
    paths.sort_by(|a, b| a.path().cmp(b.path()));
    let paths: Vec<_> =
        paths.iter().map(|entry| entry.path().strip_prefix(&step.upper).unwrap().to_str().unwrap()).collect();
    assert_eq!(paths, ["etc", "etc/new", "etc/passwd", "root", "root/y"]);
    assert!(std::fs::metadata(step.upper.join("etc/passwd")).unwrap().file_type().is_char_device());
    assert_eq!(std::fs::metadata(step.upper.join("etc/new")).unwrap().uid(), ORDINARY);

    let mut step = rig.sh("ip -o link | wc -l");
    step.network = Network::None;
    give(&rig);
    let Some(Once::Ran { stdout, .. }) = rootless(&step, prefix) else { panic!("no network of its own") };
    assert_eq!(stdout, "1\n");

    let mut step = rig.sh("id -u; id -g; touch /tmp/f; stat -c %u /tmp/f; grep Groups /proc/self/status");
    step.user = user(1000, 1000, &[5]);
    std::fs::set_permissions(rig.lowers[0].join("tmp"), PermissionsExt::from_mode(0o1777)).unwrap();
    give(&rig);
    match (ids, rootless(&step, prefix).unwrap()) {
        (Ids::Single, Once::Failed { error, .. }) => assert!(error.contains("1000:1000"), "{error}"),
        (Ids::Mapped { .. }, Once::Ran { stdout, .. }) => {
            assert_eq!(stdout, "1000\n1000\n1000\nGroups:\t5 \n");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn rootless_with_a_single_id() {
    check_rootless(AS_ORDINARY, |ids| ids == Ids::Single);
}

#[test]
fn rootless_with_subordinate_ids() {
    if !Path::new("/usr/bin/newuidmap").exists() {
        eprintln!("skipped: newuidmap is not installed (package uidmap)");
        return;
    }
    // A mount namespace with files of its own: the machine's users stay as they are.
    let script = "set -e; d=$(mktemp -d); mount -t tmpfs x $d; chmod 755 $d; echo tester:700000:65536 > $d/sub; \
         cp /etc/passwd $d/passwd; echo tester:x:54321:54321::/:/bin/sh >> $d/passwd; touch /etc/subuid /etc/subgid; \
         mount --bind $d/sub /etc/subuid; mount --bind $d/sub /etc/subgid; mount --bind $d/passwd /etc/passwd; \
         exec setpriv --reuid=54321 --regid=54321 --clear-groups \"$@\"";
    check_rootless(&["unshare", "-m", "sh", "-c", script, "sh"], |ids| ids == Ids::Mapped { count: 65_537 });
}

#[test]
fn the_doctor_tries_a_step() {
    let Some(rig) = Rig::new() else { return };
    let findings = crossdock::exec::doctor::examine(Path::new(PROGRAM), rig.dir.path());
    let finding = |topic| findings.iter().find(|finding| finding.topic == topic).unwrap();
    assert_eq!(finding("running steps").status, crossdock::exec::doctor::Status::Ok, "{findings:?}");
    let findings = crossdock::exec::doctor::examine(Path::new("/bin/true"), rig.dir.path());
    let finding = findings.iter().find(|finding| finding.topic == "running steps").unwrap();
    assert_eq!(finding.status, crossdock::exec::doctor::Status::Missing);
    assert_eq!(std::fs::read_dir(rig.dir.path()).unwrap().count(), 1, "only the rig's own directory is left");
}

/// A 32-bit program that makes one system call with the first argument 0 and exits with minus its result.
#[cfg(target_arch = "x86_64")]
fn i386_program(call: u32) -> Vec<u8> {
    let mut code = vec![0xB8];
    code.extend(call.to_le_bytes());
    code.extend([0x31, 0xDB, 0xCD, 0x80, 0xF7, 0xD8, 0x89, 0xC3, 0xB8, 1, 0, 0, 0, 0xCD, 0x80]);
    let (base, headers) = (0x0804_8000_u32, 52 + 32_u32);
    let mut elf = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    elf.extend([2_u16, 3].iter().flat_map(|half| half.to_le_bytes()));
    elf.extend([1, base + headers, 52, 0, 0].iter().flat_map(|word| word.to_le_bytes()));
    elf.extend([52_u16, 32, 1, 0, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
    let size = headers + u32::try_from(code.len()).unwrap();
    elf.extend([1, 0, base, base, size, size, 5, 0x1000].iter().flat_map(|word| word.to_le_bytes()));
    elf.extend(code);
    elf
}

#[cfg(target_arch = "x86_64")]
#[test]
fn programs_of_32_bits_run_and_are_filtered_too() {
    let Some(mut rig) = Rig::new() else { return };
    // getpid is 1; unshare(0) would succeed; clone3 is to look as if it did not exist.
    for (name, call, code) in
        [("getpid", 20, 255), ("unshare", 310, 1), ("clone3", 435, 38), ("future", 500, 38)]
    {
        let path = rig.lowers[0].join("bin").join(name);
        std::fs::write(&path, i386_program(call)).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        let step = rig.step(&[name]);
        let ran = rig.run(&step);
        if ran.stderr.contains("exec format error") {
            eprintln!("skipped: this kernel runs no 32-bit programs");
            return;
        }
        assert_eq!(ran.outcome.exit, Exit::Code(code), "{name}");
    }
}

#[test]
fn a_killed_supervisor_takes_the_step_along() {
    let Some(mut rig) = Rig::new() else { return };
    let step = rig.sh("sleep 3434 & sleep 3434");
    let mut once = Command::new(PROGRAM)
        .arg("__exec-once")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    serde_json::to_writer(once.stdin.take().unwrap(), &step).unwrap();
    wait_until("the step runs", || processes_with("sleep 3434").len() >= 2);
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", once.id())).unwrap();
    let supervisor = rustix::process::Pid::from_raw(children.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(supervisor, rustix::process::Signal::KILL).unwrap();
    let output = once.wait_with_output().unwrap();
    let answer: Once = serde_json::from_slice(&output.stdout).unwrap();
    let Once::Failed { error, advice: Some(_), .. } = answer else { panic!("{answer:?}") };
    assert!(error.contains("ended unexpectedly"), "{error}");
    wait_until("the step's processes end", || processes_with("sleep 3434").is_empty());
}

/// The parts of the contract that hold for a runtime as well.
fn check_runtime(path: &str) {
    let Some(mut rig) = Rig::new() else { return };
    if !Path::new(path).exists() {
        eprintln!("skipped: {path} is not installed");
        return;
    }
    let executor =
        OciRuntimeExecutor::new(PathBuf::from(PROGRAM), Settings::new(Ids::Root), PathBuf::from(path));
    let run = |step: &ExecStep| {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let mut log = |stream, data: &[u8]| match stream {
            Stream::Stdout => stdout.extend_from_slice(data),
            Stream::Stderr => stderr.extend_from_slice(data),
        };
        let outcome = executor.run(step, &[], &mut log, &CancelToken::new().unwrap()).unwrap();
        (
            outcome,
            String::from_utf8_lossy(&stdout).into_owned(),
            String::from_utf8_lossy(&stderr).into_owned(),
        )
    };
    let source = rig.dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("f"), "f\n").unwrap();
    let mut step = rig.sh(
        "echo $$; id -u; id -g; pwd; umask; hostname; grep -E 'CapEff|CapBnd|NoNewPrivs|Seccomp:' /proc/self/status; \
         head -n 1 /etc/hosts; cat /run/secrets/s /rw/f; echo x > /rw/f; sh /dev/pipes/EOF; echo y > /tmp/y; \
         mount -t tmpfs x /tmp 2>/dev/null || echo denied; ulimit -n; exit 9",
    );
    step.user = user(1000, 1001, &[]);
    "/home/app".clone_into(&mut step.cwd);
    step.rlimits = vec![Ulimit { name: "nofile".into(), soft: Some(100), hard: Some(200) }];
    step.mounts = vec![
        StepMount::Bind { source: source.clone(), target: "/rw".into(), read_only: false },
        StepMount::Secret {
            target: "/run/secrets/s".into(),
            data: b"s\n".to_vec(),
            mode: 0o444,
            uid: 0,
            gid: 0,
        },
        StepMount::File { target: "/dev/pipes/EOF".into(), data: b"echo heredoc".to_vec(), mode: 0o755 },
    ];
    std::fs::set_permissions(source.join("f"), PermissionsExt::from_mode(0o666)).unwrap();
    std::fs::set_permissions(rig.lowers[0].join("tmp"), PermissionsExt::from_mode(0o1777)).unwrap();
    let (outcome, stdout, stderr) = run(&step);
    let expected = "1\n1000\n1001\n/home/app\n0022\nbuildkitsandbox\nCapEff:\t0000000000000000\nCapBnd:\t00000000a80425fb\n\
         NoNewPrivs:\t0\nSeccomp:\t2\n127.0.0.1\tlocalhost buildkitsandbox\ns\nf\nheredoc\ndenied\n100\n";
    assert_eq!((stdout.as_str(), outcome.exit), (expected, Exit::Code(9)), "{stderr}");
    let mut paths: Vec<_> = walkdir::WalkDir::new(&step.upper)
        .min_depth(1)
        .into_iter()
        .map(|entry| entry.unwrap().into_path())
        .collect();
    paths.sort();
    let paths: Vec<_> =
        paths.iter().map(|path| path.strip_prefix(&step.upper).unwrap().to_str().unwrap()).collect();
    assert_eq!(paths, ["etc", "home", "home/app", "tmp", "tmp/y"]);
    assert_eq!(std::fs::read_to_string(source.join("f")).unwrap(), "f\n");

    let mark = format!("sleep 35{}", path.len());
    let step = rig.sh(&format!("{mark} & echo up; {mark}"));
    let token = CancelToken::new().unwrap();
    let canceller = token.clone();
    let result = executor.run(&step, &[], &mut |_, _| canceller.cancel(), &token);
    assert!(matches!(result, Err(ExecError::Cancelled)), "{result:?}");
    assert_eq!(processes_with(&mark), Vec::<String>::new());
    let mut step = rig.sh("ip -o link | wc -l; ip -o addr show lo | grep -c 127.0.0.1");
    step.network = Network::None;
    let (_, stdout, stderr) = run(&step);
    assert_eq!(stdout, "1\n1\n", "{stderr}");
}

#[test]
fn crun_runs_steps_too() {
    check_runtime("/usr/bin/crun");
}

#[test]
fn runc_runs_steps_too() {
    check_runtime("/usr/sbin/runc");
}
