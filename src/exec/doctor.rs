//! What this machine allows, and what to do about the rest.
//!
//! Probes look and do not change anything, except that one of them runs an empty step.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::bytes::ByteSize;
use crate::exec::foreign::{self, Verdict};
use crate::exec::protocol::ONCE;
use crate::exec::userns::{find_program, subordinate_ranges, user_name};
use crate::exec::{ExecStep, Exit, Ids, Once};
use crate::platform::Platform;

/// How well something works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// As it should.
    Ok,
    /// In a lesser way.
    Limited,
    /// Not at all.
    Missing,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What: `user namespaces`.
    pub topic: &'static str,
    /// How well it works.
    pub status: Status,
    /// What was found and what it means, one sentence.
    pub meaning: String,
    /// What to do about it; `None` if nothing needs to be done.
    pub advice: Option<String>,
}

impl Finding {
    fn ok(topic: &'static str, meaning: impl Into<String>) -> Self {
        Self { topic, status: Status::Ok, meaning: meaning.into(), advice: None }
    }

    fn bad(
        topic: &'static str,
        status: Status,
        meaning: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { topic, status, meaning: meaning.into(), advice: Some(advice.into()) }
    }
}

/// The topic of the probe that decides: an empty step.
const RUNNING: &str = "running steps";
/// The oldest kernel with all that a step needs (`mount_setattr`).
const MIN_KERNEL: (u32, u32) = (5, 12);
/// A base image, its unpacked layers and a compiler fit into this many bytes.
const LITTLE_SPACE: u64 = 10 << 30;
const TOO_LITTLE_SPACE: u64 = 1 << 30;

/// Examines the machine. `program` is this program; `dir` is an existing directory on the filesystem that
/// will hold layers and running steps. To be called on a thread that may block.
pub fn examine(program: &Path, dir: &Path) -> Vec<Finding> {
    let read = |path: &str| fs_err::read_to_string(path).ok();
    let uid = rustix::process::geteuid().as_raw();
    let mut findings = vec![
        kernel(&rustix::system::uname().release().to_string_lossy()),
        space(dir),
        run_step(program, dir),
        seccomp(read("/proc/sys/kernel/seccomp/actions_avail").as_deref()),
        fuse(),
        emulation(program, dir),
        cgroups(Path::new("/sys/fs/cgroup")),
    ];
    if uid == 0 {
        findings.push(Finding::ok("root", "running as root: every user and group id can be used"));
    } else {
        findings.push(user_namespaces(read("/proc/sys/user/max_user_namespaces").as_deref()));
        findings.push(apparmor(read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").as_deref()));
        findings.push(subordinate_ids(
            uid,
            read("/etc/subuid").as_deref(),
            read("/etc/subgid").as_deref(),
            find_program("newuidmap").is_some() && find_program("newgidmap").is_some(),
        ));
    }
    // What has just worked outweighs what speaks against it: a profile or a policy may have made it possible.
    if findings.iter().any(|finding| finding.topic == RUNNING && finding.status != Status::Missing) {
        for finding in &mut findings {
            finding.status = finding.status.min(Status::Limited);
        }
    }
    if let Some(container) = container(read("/proc/1/environ").as_deref()) {
        findings.push(container);
    }
    findings
}

fn kernel(release: &str) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= MIN_KERNEL {
        Finding::ok("kernel", format!("Linux {release}"))
    } else {
        let meaning = format!("Linux {release} is older than 5.12 and lacks calls that steps need");
        Finding::bad("kernel", Status::Missing, meaning, "use a newer kernel")
    }
}

fn space(dir: &Path) -> Finding {
    match rustix::fs::statvfs(dir) {
        Err(error) => Finding::bad(
            "disk space",
            Status::Missing,
            format!("{} cannot be used: {error}", dir.display()),
            "choose another cache directory",
        ),
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let meaning = format!("{} free at {}", ByteSize(free), dir.display());
            let advice =
                "free some with `crossdock cache prune`, or choose a cache directory on a larger disk";
            match free {
                ..TOO_LITTLE_SPACE => Finding::bad("disk space", Status::Missing, meaning, advice),
                TOO_LITTLE_SPACE..LITTLE_SPACE => {
                    Finding::bad("disk space", Status::Limited, meaning, advice)
                }
                _ => Finding::ok("disk space", meaning),
            }
        }
    }
}

/// Runs a step that has no files: that its command is not found shows that all the rest worked.
fn run_step(program: &Path, dir: &Path) -> Finding {
    let missing = |meaning: String, advice: Option<String>| Finding {
        topic: RUNNING,
        status: Status::Missing,
        meaning,
        advice: advice
            .or_else(|| Some("run as root, or on a virtual machine instead of in a container".to_owned())),
    };
    match try_step(program, dir) {
        Err(error) => missing(format!("no step could be tried: {error}"), None),
        Ok(Once::Failed { error, advice, .. }) => missing(format!("steps cannot run: {error}"), advice),
        Ok(Once::Ran { exit, stderr, .. }) if exit != Exit::Code(127) => {
            missing(format!("an empty step ended in an unexpected way: {exit:?} {stderr}"), None)
        }
        Ok(Once::Ran { ids, notes, .. }) => {
            let how = match ids {
                Ids::Root => "steps run as root in a sandbox".to_owned(),
                Ids::Mapped { count } => format!("steps run in a user namespace with {count} ids"),
                Ids::Single => "steps run in a user namespace with a single id: `USER`, `--chown` and packages that make users do not work".to_owned(),
            };
            if notes.is_empty() && ids != Ids::Single {
                return Finding::ok(RUNNING, how);
            }
            let meaning = std::iter::once(how).chain(notes).collect::<Vec<_>>().join("; ");
            Finding::bad(RUNNING, Status::Limited, meaning, "see the other findings, or run as root")
        }
    }
}

fn try_step(program: &Path, dir: &Path) -> std::io::Result<Once> {
    let place = tempfile::Builder::new().prefix("doctor-").tempdir_in(dir)?;
    let at = |name: &str| -> std::io::Result<_> {
        let path = place.path().join(name);
        fs_err::create_dir(&path)?;
        fs_err::canonicalize(path)
    };
    let args = vec!["/probe".to_owned()];
    let step = ExecStep::new(Vec::new(), at("upper")?, at("work")?, at("scratch")?, args);
    once(program, &step)
}

/// Which other platforms' commands run. Not the rest of a machine's abilities: this one most have no use for.
fn emulation(program: &Path, dir: &Path) -> Finding {
    const TOPIC: &str = "other platforms";
    let host = Platform::host();
    let foreign = foreign::ARCHITECTURES.iter().filter(|name| **name != host.architecture);
    let verdicts: Vec<(&str, Verdict)> =
        foreign.filter_map(|name| Some((*name, try_platform(program, dir, name)?))).collect();
    let with = |wanted: fn(&Verdict) -> bool| -> Vec<&str> {
        verdicts.iter().filter(|(_, verdict)| wanted(verdict)).map(|(name, _)| *name).collect()
    };
    let runs = with(|verdict| *verdict == Verdict::Runs);
    let outside = with(|verdict| *verdict == Verdict::NotInSteps);
    if !outside.is_empty() {
        let meaning = format!("the emulators for {} are not available inside of steps", outside.join(", "));
        let advice = Verdict::NotInSteps.advice().unwrap_or_default();
        return Finding::bad(TOPIC, Status::Limited, meaning, advice);
    }
    // A processor has other modes of its own; an emulator comes with all the rest.
    if !runs.iter().any(|name| !is_mode(&host.architecture, name)) {
        let meaning = format!(
            "only steps for {} run",
            [&[host.architecture.as_str()][..], &runs].concat().join(" and ")
        );
        let advice = "to run those for other processors as well, install `qemu-user-static`";
        return Finding::bad(TOPIC, Status::Limited, meaning, advice);
    }
    Finding::ok(TOPIC, format!("steps run for {} too", runs.join(", ")))
}

/// Whether a processor of the architecture `host` may run programs for `other` by itself.
fn is_mode(host: &str, other: &str) -> bool {
    matches!((host, other), ("amd64", "386") | ("arm64", "arm"))
}

fn try_platform(program: &Path, dir: &Path, architecture: &str) -> Option<Verdict> {
    let place = tempfile::Builder::new().prefix("doctor-").tempdir_in(dir).ok()?;
    let platform = Platform::new("linux", architecture, None);
    let step = foreign::prepare(&platform, place.path()).ok()??;
    match once(program, &step) {
        Ok(Once::Ran { exit, stderr, .. }) => Some(foreign::judge(exit, &stderr)),
        _ => None,
    }
}

fn once(program: &Path, step: &ExecStep) -> std::io::Result<Once> {
    let mut command = Command::new(program);
    command.arg(ONCE).env_clear().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(&serde_json::to_vec(step)?)?;
    }
    let output = child.wait_with_output()?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn seccomp(actions: Option<&str>) -> Finding {
    if actions.is_some_and(|actions| actions.split_ascii_whitespace().any(|action| action == "errno")) {
        Finding::ok("seccomp", "the kernel filters the system calls of steps")
    } else {
        let meaning = "the kernel has no system call filters: steps run with capabilities and namespaces as their only limits";
        Finding::bad("seccomp", Status::Limited, meaning, "use a kernel with CONFIG_SECCOMP_FILTER")
    }
}

/// Why commands cannot be served their files while they run; `None` if they can.
pub fn fuse_obstacle() -> Option<String> {
    let opened = fs_err::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    opened.err().map(|error| format!("/dev/fuse cannot be opened: {}", error.kind()))
}

fn fuse() -> Finding {
    match fuse_obstacle() {
        None => {
            Finding::ok("fuse", "steps are served their files while they run, and what they read is known")
        }
        Some(reason) => Finding::bad(
            "fuse",
            Status::Limited,
            format!(
                "{reason}: layers are unpacked whole, and steps run again when anything in them has changed"
            ),
            "`modprobe fuse`, or in a container pass the device (`--device /dev/fuse`)",
        ),
    }
}

fn cgroups(at: &Path) -> Finding {
    if at.join("cgroup.controllers").exists() {
        Finding::ok("cgroups", "version 2; steps share the limits of this process")
    } else if at.is_dir() {
        Finding::ok("cgroups", "version 1 or mixed; steps share the limits of this process")
    } else {
        let meaning =
            "there is no /sys/fs/cgroup: programs in steps cannot see the memory and CPU limits that hold";
        Finding::bad(
            "cgroups",
            Status::Limited,
            meaning,
            "mount it if programs in steps start too many threads",
        )
    }
}

fn user_namespaces(max: Option<&str>) -> Finding {
    const TOPIC: &str = "user namespaces";
    match max.and_then(|text| text.trim().parse::<u64>().ok()) {
        None => Finding::bad(TOPIC, Status::Missing, "the kernel has none", "run as root"),
        Some(0) => Finding::bad(
            TOPIC,
            Status::Missing,
            "they are switched off (user.max_user_namespaces is 0)",
            "`sysctl user.max_user_namespaces=28633`, or run as root",
        ),
        Some(max) => Finding::ok(TOPIC, format!("up to {max}")),
    }
}

fn apparmor(restrict: Option<&str>) -> Finding {
    const TOPIC: &str = "AppArmor";
    if restrict.is_some_and(|text| text.trim() != "0") {
        return Finding::bad(
            TOPIC,
            Status::Missing,
            "user namespaces of ordinary users have no rights (kernel.apparmor_restrict_unprivileged_userns is 1)",
            "`sysctl kernel.apparmor_restrict_unprivileged_userns=0`, give the program an AppArmor profile with `userns,`, or run as root",
        );
    }
    Finding::ok(TOPIC, "does not restrict user namespaces")
}

fn subordinate_ids(uid: u32, subuid: Option<&str>, subgid: Option<&str>, helpers: bool) -> Finding {
    const TOPIC: &str = "subordinate ids";
    let name = user_name(uid);
    let count = |file: Option<&str>| -> u64 {
        let ranges = subordinate_ranges(file.unwrap_or_default(), uid, name.as_deref());
        ranges.into_iter().map(|(_, count)| u64::from(count)).sum()
    };
    let who = name.clone().unwrap_or_else(|| uid.to_string());
    let limited = |meaning: String, advice: String| Finding::bad(TOPIC, Status::Limited, meaning, advice);
    match (helpers, count(subuid).min(count(subgid))) {
        (false, _) => limited(
            "newuidmap is not installed: steps have a single id".to_owned(),
            "install the package `uidmap` (Debian, Ubuntu) or `shadow-utils` (Fedora)".to_owned(),
        ),
        (true, 0) => limited(
            format!("/etc/subuid or /etc/subgid has no line for {who}: steps have a single id"),
            format!("`usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {who}` as root"),
        ),
        (true, few @ ..65_535) => limited(
            format!("{few} ids: images that use others fail"),
            format!("give {who} a range of 65536 ids in /etc/subuid and /etc/subgid"),
        ),
        (true, count) => Finding::ok(TOPIC, format!("{count} ids")),
    }
}

/// Only containers that say so; systemd's convention is a variable of process 1.
fn container(environment: Option<&str>) -> Option<Finding> {
    let marked = ["/.dockerenv", "/run/.containerenv"].into_iter().any(|path| Path::new(path).exists());
    let kind =
        environment.unwrap_or_default().split('\0').find_map(|variable| variable.strip_prefix("container="));
    if !marked && kind.is_none() {
        return None;
    }
    let kind = kind.filter(|kind| !kind.is_empty()).unwrap_or("docker");
    Some(Finding::bad(
        "container",
        Status::Limited,
        format!("this is inside a container ({kind}), whose own limits apply to steps too"),
        "if steps cannot run, start it with `--privileged`, or with `--security-opt seccomp=unconfined --security-opt systempaths=unconfined` and `--device /dev/fuse`",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels() {
        assert_eq!(kernel("6.18.44-fc").status, Status::Ok);
        assert_eq!(kernel("5.12.0").status, Status::Ok);
        assert_eq!(kernel("5.4.0-1000-aws").status, Status::Missing);
        assert_eq!(kernel("unknown").status, Status::Missing);
    }

    #[test]
    fn what_is_missing_comes_with_advice() {
        let nobody = 3_999_999_999;
        for (finding, status) in [
            (user_namespaces(Some("0\n")), Status::Missing),
            (user_namespaces(None), Status::Missing),
            (apparmor(Some("1\n")), Status::Missing),
            (subordinate_ids(nobody, None, None, false), Status::Limited),
            (subordinate_ids(nobody, Some("3999999999:1:65536"), Some(""), true), Status::Limited),
            (
                subordinate_ids(nobody, Some("3999999999:1:10"), Some("3999999999:1:10"), true),
                Status::Limited,
            ),
            (seccomp(Some("kill_process allow")), Status::Limited),
            (space(Path::new("/no/such/place")), Status::Missing),
        ] {
            assert_eq!(finding.status, status, "{finding:?}");
            assert!(finding.advice.is_some_and(|advice| !advice.is_empty()), "{}", finding.topic);
        }
        assert_eq!(user_namespaces(Some("100\n")).status, Status::Ok);
        assert_eq!(apparmor(Some("0\n")).status, Status::Ok);
        let enough = Some("3999999999:100000:65536");
        assert_eq!(subordinate_ids(nobody, enough, enough, true).status, Status::Ok);
    }
}
