//! Working without root: a user namespace in which this process is root.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use rustix::mount::MountPropagationFlags;
use rustix::thread::{Gid, Uid, UnshareFlags};
use serde::{Deserialize, Serialize};

use crate::exec::protocol::MAP_IDS;
use crate::hint::Hint;

/// Which user and group ids this process can give to files and processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ids {
    /// All: it is root in the initial user namespace.
    Root,
    /// Root and others, in a user namespace with subordinate ids.
    Mapped {
        /// How many user ids there are.
        count: u32,
    },
    /// Only root, which is the calling user outside: `USER` and `chown` to anybody else do not work.
    Single,
}

/// Where this process is, and why there are no more ids if there could be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserNamespace {
    /// The ids.
    pub ids: Ids,
    /// Why subordinate ids could not be used, if they could not.
    pub note: Option<String>,
}

/// Why there is no user namespace.
#[derive(Debug, thiserror::Error)]
pub enum UserNamespaceError {
    /// The kernel does not let this user make one.
    #[error("cannot create a user namespace")]
    Unshare {
        /// Why.
        source: io::Error,
    },
    /// Its ids could not be set.
    #[error("cannot set up the ids of the user namespace: {doing}")]
    Map {
        /// What failed.
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
    /// It was made but gives no rights.
    #[error("the user namespace gives no right to mount")]
    Powerless {
        /// Why.
        source: io::Error,
    },
}

impl Hint for UserNamespaceError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unshare { .. } => "run as root, or allow user namespaces (`sysctl user.max_user_namespaces=28633`, and in a container a seccomp profile that permits `unshare`); `crossdock doctor` tells what is missing".to_owned(),
            Self::Map { .. } | Self::Powerless { .. } => "run as root, or on Ubuntu 24.04 and newer `sysctl kernel.apparmor_restrict_unprivileged_userns=0`; `crossdock doctor` tells what is missing".to_owned(),
        })
    }
}

/// What the kernel counts as "all ids" in an id map.
const ALL_IDS: u64 = 4_294_967_295;

/// Makes this process root: it stays what it is if it has root's rights already, and else enters a user
/// namespace. In both cases it gets a mount namespace of its own, so that what it mounts is nobody else's and is gone
/// with it; what the host mounts or unmounts later is seen there too.
///
/// Must be called at the start of `main`, while there is one thread. `program` is this program, whose `main`
/// calls [`helper_main`](crate::exec::helper_main): usually `/proc/self/exe`.
pub fn enter_user_namespace(program: &Path) -> Result<UserNamespace, UserNamespaceError> {
    let euid = rustix::process::geteuid();
    let may_mount =
        caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_ADMIN).unwrap_or(false);
    if euid.is_root() && may_mount {
        let own = unshare(UnshareFlags::NEWNS).and_then(|()| {
            let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
            Ok(rustix::mount::mount_change("/", slave)?)
        });
        own.map_err(|source| UserNamespaceError::Powerless { source })?;
        return Ok(UserNamespace { ids: current_ids(), note: None });
    }
    let map = |doing: &'static str| move |source: io::Error| UserNamespaceError::Map { doing, source };
    let egid = rustix::process::getegid();
    let pid = rustix::process::getpid();
    // Started before, because it must stay outside.
    let mut helper = Command::new(program)
        .args([MAP_IDS, &pid.as_raw_nonzero().to_string(), &euid.as_raw().to_string()])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(map("starting the helper"))?;
    let entered = unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS);
    let (go, answer) = (helper.stdin.take(), helper.stdout.take());
    let answer = match (&entered, go, answer) {
        (Ok(()), Some(mut go), Some(answer)) => {
            let asked = go.write_all(b"g");
            drop(go);
            let mut line = String::new();
            // One short line; the bound is for the case that it is not.
            asked.and_then(|()| BufReader::new(answer.take(4096)).read_line(&mut line)).map(|_| line)
        }
        _ => Ok(String::new()),
    };
    let _ = helper.wait();
    entered.map_err(|source| UserNamespaceError::Unshare { source })?;
    let answer = answer.map_err(map("talking to the helper"))?;
    let note = match answer.trim().strip_prefix("mapped") {
        Some(_) => None,
        None => {
            write_single_maps(euid.as_raw(), egid.as_raw()).map_err(map("writing /proc/self/uid_map"))?;
            Some(answer.trim().strip_prefix("single ").unwrap_or("the helper failed").to_owned())
        }
    };
    let (root_user, root_group) = (Uid::ROOT, Gid::ROOT);
    rustix::thread::set_thread_res_gid(root_group, root_group, root_group)
        .map_err(io::Error::from)
        .map_err(map("setgid"))?;
    rustix::thread::set_thread_res_uid(root_user, root_user, root_user)
        .map_err(io::Error::from)
        .map_err(map("setuid"))?;
    if note.is_none() {
        rustix::thread::set_thread_groups(&[]).map_err(io::Error::from).map_err(map("setgroups"))?;
    }
    // AppArmor lets the namespace be made and then takes its rights away; better to know it now.
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(|error| UserNamespaceError::Powerless { source: error.into() })?;
    Ok(UserNamespace { ids: current_ids(), note })
}

#[expect(unsafe_code, reason = "unshare is unsafe for flags that this process does not pass")]
pub(super) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: no file descriptor table is unshared.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// What the id map of this process allows.
pub(super) fn current_ids() -> Ids {
    ids_of_map(&fs_err::read_to_string("/proc/self/uid_map").unwrap_or_default())
}

fn ids_of_map(map: &str) -> Ids {
    let counts = map.lines().filter_map(|line| line.split_ascii_whitespace().nth(2)?.parse::<u64>().ok());
    match counts.sum::<u64>() {
        // No map at all: a kernel without user namespaces.
        0 | ALL_IDS.. => Ids::Root,
        1 => Ids::Single,
        count => Ids::Mapped { count: u32::try_from(count).unwrap_or(u32::MAX) },
    }
}

fn write_single_maps(uid: u32, gid: u32) -> io::Result<()> {
    // Without this an unprivileged process may not write a group map.
    fs_err::write("/proc/self/setgroups", "deny")?;
    fs_err::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    fs_err::write("/proc/self/gid_map", format!("0 {gid} 1"))
}

/// The helper: waits until its parent has entered its namespace, and maps the ids of both kinds.
pub(super) fn map_ids_main(args: &[OsString]) -> ExitCode {
    let mut go = [0];
    if io::stdin().read_exact(&mut go).is_err() {
        // The parent could not enter one.
        return ExitCode::SUCCESS;
    }
    let numbers: Vec<u32> = args.iter().filter_map(|arg| arg.to_str()?.parse().ok()).collect();
    let [pid, uid] = numbers[..] else { return ExitCode::FAILURE };
    let answer = match map_ids(pid, uid) {
        Ok(()) => "mapped".to_owned(),
        Err(reason) => format!("single {reason}"),
    };
    match writeln!(io::stdout(), "{answer}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn map_ids(pid: u32, uid: u32) -> Result<(), String> {
    let gid = rustix::process::getegid().as_raw();
    let name = user_name(uid);
    let read = |path: &str| fs_err::read_to_string(path).unwrap_or_default();
    for (file, program, own) in [("/etc/subuid", "newuidmap", uid), ("/etc/subgid", "newgidmap", gid)] {
        let ranges = subordinate_ranges(&read(file), uid, name.as_deref());
        if ranges.is_empty() {
            return Err(format!("{file} has no line for this user"));
        }
        let path =
            find_program(program).ok_or_else(|| format!("{program} is not installed (package uidmap)"))?;
        let mut command = Command::new(path);
        command.arg(pid.to_string()).args(["0", &own.to_string(), "1"]);
        let mut inside = 1_u32;
        for (start, count) in ranges {
            // The range of ids is 32 bits wide; what does not fit is not needed.
            let count = count.min(u32::MAX - 1 - inside);
            command.args([inside, start, count].map(|number| number.to_string()));
            inside += count;
        }
        let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{program}: {error}"))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            return Err(text.lines().next().unwrap_or("newuidmap failed").to_owned());
        }
    }
    Ok(())
}

/// The name of a user of the host.
pub(super) fn user_name(uid: u32) -> Option<String> {
    let passwd = fs_err::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// A program of the system. The search path of the environment is not the library's to read.
pub(super) fn find_program(name: &str) -> Option<PathBuf> {
    let dirs = ["/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin", "/run/wrappers/bin"];
    dirs.into_iter().map(|dir| Path::new(dir).join(name)).find(|path| path.is_file())
}

/// Start and length of each range that a file like `/etc/subuid` gives a user, by name or number. At most
/// 100, which is far below the kernel's limit of 340 lines of a map.
pub(super) fn subordinate_ranges(file: &str, uid: u32, name: Option<&str>) -> Vec<(u32, u32)> {
    let uid = uid.to_string();
    let ranges = file.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let (start, count) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (count > 0 && (owner == uid || Some(owner) == name)).then_some((start, count))
    });
    ranges.take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_belong_to_a_name_or_a_number() {
        let file = "other:1:2\nme:100000:65536\n# comment\n1000:300000:10\nme:broken:1\nme:5:0\n";
        assert_eq!(subordinate_ranges(file, 1000, Some("me")), [(100_000, 65_536), (300_000, 10)]);
        assert_eq!(subordinate_ranges(file, 7, None), []);
    }

    #[test]
    fn a_map_tells_which_ids_there_are() {
        assert_eq!(ids_of_map("         0          0 4294967295\n"), Ids::Root);
        assert_eq!(ids_of_map("0 1000 1\n"), Ids::Single);
        assert_eq!(ids_of_map("0 1000 1\n1 100000 65536\n"), Ids::Mapped { count: 65_537 });
    }
}
