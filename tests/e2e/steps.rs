//! What steps are given and granted: entitlements, hosts, limits, names, proxies, and what of it is part of their keys.

use std::path::Path;

use crate::support::lab::Lab;
use crate::support::oci::{Image, content};
use crate::support::{Context, Output, is_root};

/// Ways to run steps that this machine has, as options.
fn executors() -> Vec<&'static [&'static str]> {
    let all: [(&str, &[&str]); 2] =
        [("/usr/sbin/runc", &["--runtime=runc"]), ("/usr/bin/crun", &["--runtime=crun"])];
    let runtimes = all.into_iter().filter(|(path, _)| Path::new(path).exists());
    std::iter::once(&[][..]).chain(runtimes.map(|(_, options)| options)).collect()
}

/// How many steps of a build ran, and how many were cached.
#[track_caller]
fn counts(output: &Output) -> (u32, u32) {
    let stderr = output.stderr();
    let line = stderr.lines().find(|line| line.contains(" cached, ")).unwrap_or_else(|| panic!("{output}"));
    let number = |word: &str| {
        let before = line.split(word).next().unwrap().trim_end();
        before.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
    };
    (number(" run,"), number(" cached,"))
}

const STATUS: &str = "grep -E '^(Cap|Seccomp:)' /proc/self/status";

#[test]
fn insecure_steps_may_do_everything() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let dockerfile = format!(
        "FROM busybox\n\
         RUN --security=insecure {STATUS} > /root.status && mkdir /mnt && mount -t tmpfs none /mnt && \
             ls /dev /dev/net > /devices && stat -c %F-%t-%T /dev/loop0 /dev/kmsg > /kinds && \
             grep -E ' (/proc|/sys)[^ ]* ' /proc/mounts | cut -d' ' -f2,4 > /mounts\n\
         USER app\n\
         RUN --security=insecure {STATUS} > /tmp/app.status\n\
         RUN {STATUS} > /tmp/sandbox.status\n"
    );
    let mine = std::fs::read_to_string("/proc/self/status").unwrap();
    let mine = mine.lines().find_map(|line| line.strip_prefix("CapPrm:\t")).unwrap();
    for options in executors() {
        let build = lab.build(&dockerfile).args(options).args(["--no-cache", "--allow=security.insecure"]);
        let tree = lab.image_of(build).tree();
        for (status, capabilities) in [
            ("root.status", [mine; 5]),
            ("tmp/app.status", [mine; 5]),
            (
                "tmp/sandbox.status",
                [
                    "0000000000000000",
                    "0000000000000000",
                    "0000000000000000",
                    "00000000a80425fb",
                    "0000000000000000",
                ],
            ),
        ] {
            let text = content(&tree, status);
            let sets = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];
            for (set, value) in sets.into_iter().zip(capabilities) {
                assert!(text.contains(&format!("{set}:\t{value}\n")), "{options:?} {status} {set}\n{text}");
            }
            let filter = if status == "tmp/sandbox.status" { "Seccomp:\t2\n" } else { "Seccomp:\t0\n" };
            assert!(text.contains(filter), "{options:?} {status}\n{text}");
        }
        let devices = content(&tree, "devices");
        for device in ["kmsg", "cuse", "fuse", "kvm", "tun", "loop-control", "loop0", "loop7", "null"] {
            assert!(devices.lines().any(|line| line == device), "{options:?} {device}\n{devices}");
        }
        assert_eq!(content(&tree, "kinds"), "block special file-7-0\ncharacter special file-1-b\n");
        // Nothing is masked, and nothing is read-only.
        for line in content(&tree, "mounts").lines() {
            let (path, flags) = line.split_once(' ').unwrap();
            assert!(path == "/proc" || path.starts_with("/sys"), "{options:?} {line}");
            assert!(flags.starts_with("rw") || path.ends_with("/unified"), "{options:?} {line}");
        }
        assert!(!tree.contains_key("dev/kmsg"), "devices reach no layer");
    }
}

/// In a user namespace a step has what there is: all capabilities in it, and no devices but the usual ones.
#[test]
fn insecure_steps_of_ordinary_users() {
    if !is_root() {
        return;
    }
    let lab = Lab::of(Context::for_user(54_321));
    let dockerfile = format!(
        "FROM busybox\nRUN --security=insecure {STATUS} > /status && mkdir /mnt && mount -t tmpfs none /mnt && ls /dev > /devices\n"
    );
    let archive = lab.context.path("home/image.tar");
    let build = lab.build(&dockerfile).args(["--allow=security.insecure"]);
    build.option_path("--output", "type=oci,dest=", &archive).success();
    let tree = Image::read(&archive).tree();
    let status = content(&tree, "status");
    let set = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
    assert!(set("CapPrm:").trim().trim_start_matches('0').len() > 9, "{status}");
    for name in ["CapInh:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(set(name), set("CapPrm:"), "{status}");
    }
    assert!(status.contains("Seccomp:\t0"), "{status}");
    assert!(!content(&tree, "devices").contains("loop"));
}

#[test]
fn what_is_not_granted_is_refused_before_anything_runs() {
    let lab = Lab::new();
    let asks = |what: &str| format!("FROM busybox\nRUN echo something\nRUN {what} true\n");
    for (what, entitlement) in
        [("--security=insecure", "security.insecure"), ("--network=host", "network.host")]
    {
        let output = lab.build(&asks(what)).failure();
        output.says(&format!("Dockerfile:3: {entitlement} is not allowed"));
        output.says(&format!("grant it with `--allow {entitlement}`"));
        assert!(!output.stderr().contains("something"), "{output}");
        let other = if what.contains("host") { "security.insecure" } else { "network.host" };
        lab.build(&asks(what)).option("--allow", other).failure().says("is not allowed");
        if is_root() {
            lab.build(&asks(what)).option("--allow", entitlement).success();
        }
    }
    lab.build(&asks("--network=host")).option("--network", "host").success();
    lab.build(&asks("--device=vendor.com/gpu=all,required"))
        .option("--allow", "device")
        .failure()
        .says("Dockerfile:3: required device \"vendor.com/gpu=all\" is not registered");
    lab.build(&asks("--device=vendor.com/gpu=all")).success();
    lab.build("FROM busybox\n")
        .option("--allow", "network.hots")
        .failure()
        .says("did you mean network.host?");
}

#[test]
fn hosts_names_limits_and_sizes() {
    let lab = Lab::new();
    let dockerfile = "FROM busybox\n\
        RUN cat /etc/hosts > /hosts && hostname > /name && ulimit -Sn > /nofile && ulimit -Hn >> /nofile && ulimit -c >> /nofile && \
            grep ' /dev/shm ' /proc/mounts | tr , '\\n' | grep size= | cut -d' ' -f1 > /shm\n";
    let options = |host: &'static str, name: &'static str, files: &'static str, shm: &'static str| {
        ["--add-host", host, "--build-arg", name, "--ulimit", files, "--shm-size", shm]
    };
    let usual = options("Db:10.1.2.3", "BUILDKIT_SANDBOX_HOSTNAME=box", "nofile=100:200", "2m");
    for executor in executors().into_iter().filter(|executor| executor.is_empty() || is_root()) {
        let build = lab.build(dockerfile).args(executor).args(usual).args(["--add-host", "me:host-gateway"]);
        let tree = lab.image_of(build.args(["--ulimit", "core=0", "--no-cache"])).tree();
        assert_eq!(
            content(&tree, "hosts"),
            "127.0.0.1\tlocalhost box\n::1\tlocalhost ip6-localhost ip6-loopback\n\
             10.1.2.3\tdb\n127.0.0.1\tme\n",
            "{executor:?}"
        );
        assert_eq!(content(&tree, "name"), "box\n");
        assert_eq!(content(&tree, "nofile"), "100\n200\n0\n");
        assert_eq!(content(&tree, "shm"), "size=2048k\n");
    }
    // The name of a host is part of the key, its address is not; the rest is.
    lab.build(dockerfile).args(usual).success();
    for (options, runs) in [
        (usual, 0),
        (options("db:10.9.9.9", usual[3], usual[5], usual[7]), 0),
        (options("other:10.1.2.3", usual[3], usual[5], usual[7]), 1),
        (options(usual[1], "BUILDKIT_SANDBOX_HOSTNAME=crate", usual[5], usual[7]), 1),
        (options(usual[1], usual[3], "nofile=100:201", usual[7]), 1),
        (options(usual[1], usual[3], usual[5], "3m"), 1),
    ] {
        assert_eq!(counts(&lab.build(dockerfile).args(options).success()).0, runs, "{options:?}");
    }
}

#[test]
fn proxies_reach_commands_and_nothing_else() {
    let lab = Lab::new();
    let dockerfile = "FROM busybox\nENV http_proxy=ours\nRUN env | grep -i proxy= | sort > /proxies; true\n";
    let proxies = [
        "--build-arg",
        "http_proxy=http://one",
        "--build-arg",
        "NO_PROXY=localhost",
        "--build-arg",
        "ALL_PROXY=",
    ];
    let image = lab.image_with(dockerfile, &proxies);
    assert_eq!(
        content(&image.tree(), "proxies"),
        "HTTP_PROXY=http://one\nNO_PROXY=localhost\nhttp_proxy=http://one\nno_proxy=localhost\n"
    );
    let config = image.config.to_string();
    assert!(!config.contains("one") && !config.contains("localhost"), "{config}");
    // Neither given nor changed does the step run again.
    assert_eq!(counts(&lab.build(dockerfile).success()), (0, 1));
    let other = ["--build-arg", "HTTP_PROXY=http://two"];
    assert_eq!(counts(&lab.build(dockerfile).args(other).success()), (0, 1));

    // Docker's configuration has them for every build, and an argument wins over it.
    lab.context.write(
        "home/.docker/config.json",
        r#"{"proxies": {"default": {"httpProxy": "http://config", "noProxy": "here"}}}"#,
    );
    let dockerfile = "FROM busybox\nRUN [ $HTTP_PROXY/$http_proxy/$NO_PROXY/$no_proxy = http://config/http://config/here/here ]\n";
    lab.build(dockerfile).success();
    let dockerfile = "FROM busybox\nRUN [ $HTTP_PROXY/$http_proxy/$NO_PROXY/$no_proxy = http://arg/http://arg/here/here ]\n";
    lab.build(dockerfile).args(["--build-arg", "HTTP_PROXY=http://arg"]).success();
    // What is declared is an argument like any other.
    let dockerfile = "FROM busybox\nARG HTTP_PROXY\nRUN [ $HTTP_PROXY = http://config ]\n";
    let image = lab.image(dockerfile);
    assert!(image.config.to_string().contains("|1 HTTP_PROXY=http://config"), "{}", image.config);
}

#[test]
fn builtin_arguments_are_understood() {
    let lab = Lab::new();
    let dockerfile = "FROM busybox\nRUN true\n";
    lab.build(dockerfile).success();
    // These change nothing about a step.
    for argument in [
        "BUILDKIT_INLINE_CACHE=1",
        "BUILDKIT_BUILD_NAME=x",
        "BUILDKIT_SYNTAX=docker/dockerfile:1.20",
        "BUILDKIT_SYNTAX=",
    ] {
        let output = lab.build(dockerfile).args(["--build-arg", argument]).success();
        assert_eq!(counts(&output), (0, 1), "{argument}");
        assert!(!output.stderr().contains("warning"), "{output}");
    }
    lab.build(dockerfile)
        .args(["--build-arg", "BUILDKIT_SYNTAX=example.com/frontend:1"])
        .failure()
        .says("the frontend image example.com/frontend:1 is not supported")
        .says("BUILDKIT_SYNTAX");
    lab.build("# syntax=example.com/frontend\nFROM busybox\n")
        .args(["--build-arg", "BUILDKIT_SYNTAX=docker/dockerfile:1"])
        .success();
    // Cache mounts of different namespaces know nothing of each other.
    let counting = "FROM busybox\nRUN --mount=type=cache,target=/c echo x >> /c/f && wc -l < /c/f > /lines\n";
    for (namespace, lines) in [("a", "1\n"), ("a", "2\n"), ("b", "1\n")] {
        let namespace = format!("BUILDKIT_CACHE_MOUNT_NS={namespace}");
        let image = lab.image_with(counting, &["--no-cache", "--build-arg", &namespace]);
        assert_eq!(content(&image.tree(), "lines"), lines, "{namespace}");
    }
}
