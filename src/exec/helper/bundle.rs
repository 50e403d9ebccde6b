//! Hands the step to an OCI runtime: the root is ready, the rest is in a `config.json`.
//!
//! The runtime runs as process 1 of a process namespace of ours, so that killing it takes everything along,
//! as with the native executor.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::mount::MountFlags;
use serde_json::{Value, json};

use super::init::DEFAULT_HOSTNAME;
use super::mounts::{MASKED, Mounter, READ_ONLY, insecure_devices};
use super::privileges::{DEFAULT, held};
use super::{Doing, SetupError};
use crate::exec::protocol::Order;
use crate::exec::{ExecStep, Security, seccomp, sys};

/// Becomes the runtime; returns only with an error.
pub(super) fn become_runtime(
    runtime: &Path,
    order: &Order,
    mounter: &Mounter<'_>,
    root: &Path,
) -> Result<u8, SetupError> {
    let binds = mounter.mount_for_runtime()?;
    let what = || "preparing the runtime's bundle";
    // The runtime looks processes up by the numbers of its own namespace.
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("proc", "/proc", "proc", flags, None)
        .doing(|| "mounting /proc for the runtime (use the native executor where that is not allowed)")?;
    let bundle = mounter.memory.join("bundle");
    let state = mounter.memory.join("state");
    fs_err::create_dir(&bundle).doing(what)?;
    let text = serde_json::to_vec(&config(order, root, &binds)).map_err(io::Error::from).doing(what)?;
    fs_err::write(bundle.join("config.json"), text).doing(what)?;
    super::stdin_from(Path::new("/dev/null")).doing(what)?;
    let mut args = vec![runtime.as_os_str().as_bytes().to_vec()];
    if runtime.file_name().is_some_and(|name| name == "crun") {
        args.push(b"--cgroup-manager=disabled".to_vec());
        // Some versions refuse to work where it has controllers next to version 1, though they use neither.
        let unified = Path::new("/sys/fs/cgroup/unified");
        if unified.is_dir() {
            let options = Some(c"size=4k");
            rustix::mount::mount("tmpfs", unified, "tmpfs", MountFlags::RDONLY, options).doing(what)?;
        }
    }
    args.extend([b"--root".to_vec(), state.as_os_str().as_bytes().to_vec(), b"run".to_vec()]);
    args.extend([b"--bundle".to_vec(), bundle.as_os_str().as_bytes().to_vec()]);
    // Runtimes name cgroups by it, next to those of other steps.
    let id = order
        .step
        .scratch
        .as_os_str()
        .as_bytes()
        .iter()
        .map(|byte| if byte.is_ascii_alphanumeric() { *byte } else { b'-' });
    let id: Vec<u8> = id.collect();
    args.push([b"crossdock".as_slice(), &id[id.len().saturating_sub(100)..]].concat());
    let args = args.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>().map_err(io::Error::from);
    let path = CString::new(runtime.as_os_str().as_bytes()).map_err(io::Error::from).doing(what)?;
    sys::close_on_exec_from_3().doing(what)?;
    match sys::execve(&path, &args.doing(what)?, &[c"PATH=/usr/sbin:/usr/bin:/sbin:/bin".to_owned()]) {
        Ok(never) => match never {},
        Err(error) => {
            Err(SetupError::new(format!("starting the runtime {}", runtime.display()), error.to_string()))
        }
    }
}

fn config(order: &Order, root: &Path, binds: &[(PathBuf, String)]) -> Value {
    let step = &order.step;
    let sandboxed = step.security == Security::Sandbox;
    let mut env: Vec<String> = step.env.iter().map(|(key, value)| format!("{key}={value}")).collect();
    if !step.env.iter().any(|(key, _)| key == "HOME") {
        env.push(format!("HOME={}", step.user.home.as_deref().unwrap_or("/")));
    }
    let names = |set: &mut dyn Iterator<Item = caps::Capability>| -> Vec<String> {
        set.map(|one| one.to_string()).collect()
    };
    let capabilities = if sandboxed {
        names(&mut DEFAULT.into_iter())
    } else {
        names(&mut held().unwrap_or_default().into_iter())
    };
    let mut sets = json!({"bounding": capabilities, "effective": capabilities, "permitted": capabilities});
    if !sandboxed {
        // For a user who is not root.
        sets["inheritable"] = json!(capabilities);
        sets["ambient"] = json!(capabilities);
    }
    let rlimits = step.rlimits.iter().map(|limit| {
        let value = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
        json!({"type": format!("RLIMIT_{}", limit.name.to_uppercase()), "soft": value(limit.soft), "hard": value(limit.hard)})
    });
    let size = format!("size={}", step.shm_size);
    let shm = if step.shm_size == ExecStep::DEFAULT_SHM_SIZE {
        json!(["nosuid", "noexec", "nodev", "mode=1777", size])
    } else {
        json!(["nosuid", "mode=1777", size])
    };
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]}),
        json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": shm}),
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind", "nosuid", "noexec", "nodev", if sandboxed { "ro" } else { "rw" }]}),
    ];
    mounts.extend(binds.iter().map(|(source, target)| {
        json!({"destination": target, "type": "bind", "source": source.to_string_lossy(), "options": ["bind", "ro"]})
    }));
    let namespaces = ["pid", "mount", "ipc", "uts"].map(|kind| json!({"type": kind}));
    let mut linux = json!({"namespaces": namespaces});
    if sandboxed {
        linux["maskedPaths"] = json!(MASKED);
        linux["readonlyPaths"] = json!(READ_ONLY);
        linux["seccomp"] = seccomp::oci_profile();
    } else {
        let devices = insecure_devices(order).into_iter().map(|device| {
            json!({
                "path": format!("/dev/{}", device.name),
                "type": if device.is_block { "b" } else { "c" },
                "major": device.major,
                "minor": device.minor,
                "fileMode": 0o666,
            })
        });
        linux["devices"] = devices.collect();
        linux["resources"] = json!({"devices": [{"allow": true, "access": "rwm"}]});
    }
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": step.user.uid, "gid": step.user.gid, "additionalGids": step.user.groups, "umask": step.umask},
            "args": step.args,
            "env": env,
            "cwd": if step.cwd.is_empty() { "/" } else { &step.cwd },
            "capabilities": sets,
            "rlimits": rlimits.collect::<Vec<_>>(),
            "noNewPrivileges": false,
        },
        "root": {"path": root.to_string_lossy(), "readonly": false},
        "hostname": step.hostname.as_deref().unwrap_or(DEFAULT_HOSTNAME),
        "mounts": mounts,
        "linux": linux,
    })
}
