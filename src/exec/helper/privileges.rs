//! What the command may do and who it is.

use std::io;

use caps::{CapSet, Capability, CapsHashSet};
use rustix::process::{Resource, Rlimit, Signal};
use rustix::thread::{Gid, Uid};

use super::{Channel, Doing, SetupError};
use crate::exec::{ExecStep, Ids, Security, Ulimit, seccomp, sys};

/// Docker's default capabilities.
pub(super) const DEFAULT: [Capability; 14] = [
    Capability::CAP_AUDIT_WRITE,
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_KILL,
    Capability::CAP_MKNOD,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_NET_RAW,
    Capability::CAP_SETFCAP,
    Capability::CAP_SETGID,
    Capability::CAP_SETPCAP,
    Capability::CAP_SETUID,
    Capability::CAP_SYS_CHROOT,
];

/// Becomes the step's user with the step's limits and rights. There is no way back.
pub(super) fn drop_to(step: &ExecStep, ids: Ids, channel: &Channel) -> Result<(), SetupError> {
    for limit in &step.rlimits {
        set_limit(limit)?;
    }
    let sandboxed = step.security == Security::Sandbox;
    if sandboxed {
        for capability in caps::all() {
            if !DEFAULT.contains(&capability)
                && caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false)
            {
                caps::drop(None, CapSet::Bounding, capability)
                    .map_err(other)
                    .doing(|| "giving up capabilities")?;
            }
        }
        // Now, while there is CAP_SYS_ADMIN: later it would cost `no_new_privs` and with it every setuid program.
        let filter = seccomp::sandbox_filter().doing(|| "compiling the system call filter")?;
        match sys::install_filter(&filter) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                channel.note("this kernel has no system call filters (seccomp): the step runs without one");
            }
            Err(error) => return Err(error).doing(|| "installing the system call filter"),
        }
    } else {
        // Also a user who is not root keeps all of them.
        caps::securebits::set_keepcaps(true).map_err(other).doing(|| "keeping capabilities")?;
    }
    become_user(step, ids)?;
    if sandboxed {
        let mut keep: CapsHashSet = DEFAULT.into_iter().collect();
        if step.user.uid != 0 {
            keep.clear();
        }
        let held = held().doing(|| "reading capabilities")?;
        let keep: CapsHashSet = keep.intersection(&held).copied().collect();
        for set in [CapSet::Effective, CapSet::Permitted] {
            caps::set(None, set, &keep).map_err(other).doing(|| "giving up capabilities")?;
        }
        caps::clear(None, CapSet::Inheritable).map_err(other).doing(|| "giving up capabilities")?;
    } else {
        let what = || "granting all capabilities";
        let held = held().doing(what)?;
        // The ambient set is what survives the start of a program, and has to be in the two before it.
        for set in [CapSet::Effective, CapSet::Inheritable, CapSet::Ambient] {
            caps::set(None, set, &held).map_err(other).doing(what)?;
        }
    }
    // Changing the user has cleared it.
    die_with_parent().doing(|| "tying the step to its supervisor")
}

/// All that this process may have, which can be less than all that there are.
pub(super) fn held() -> io::Result<CapsHashSet> {
    caps::read(None, CapSet::Permitted).map_err(other)
}

fn become_user(step: &ExecStep, ids: Ids) -> Result<(), SetupError> {
    let user = &step.user;
    let what = || format!("becoming user {} with group {}", user.uid, user.gid);
    // With a single id the kernel does not allow it, and there are no other groups to have.
    if ids != Ids::Single {
        let groups: Vec<Gid> = user.groups.iter().map(|&group| Gid::from_raw(group)).collect();
        rustix::thread::set_thread_groups(&groups).doing(what)?;
    }
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid).doing(what)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).doing(what)
}

/// Has the kernel kill this process when its parent ends.
pub(super) fn die_with_parent() -> io::Result<()> {
    Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?)
}

fn set_limit(limit: &Ulimit) -> Result<(), SetupError> {
    let what = || format!("setting the limit {}", limit.name);
    let resource = match limit.name.as_str() {
        "as" => Resource::As,
        "core" => Resource::Core,
        "cpu" => Resource::Cpu,
        "data" => Resource::Data,
        "fsize" => Resource::Fsize,
        "locks" => Resource::Locks,
        "memlock" => Resource::Memlock,
        "msgqueue" => Resource::Msgqueue,
        "nice" => Resource::Nice,
        "nofile" => Resource::Nofile,
        "nproc" => Resource::Nproc,
        "rss" => Resource::Rss,
        "rtprio" => Resource::Rtprio,
        "rttime" => Resource::Rttime,
        "sigpending" => Resource::Sigpending,
        "stack" => Resource::Stack,
        _ => return Err(SetupError::new(what(), "there is no such limit")),
    };
    rustix::process::setrlimit(resource, Rlimit { current: limit.soft, maximum: limit.hard }).doing(what)
}

#[expect(clippy::needless_pass_by_value, reason = "it is passed to `map_err`")]
fn other(error: caps::errors::CapsError) -> io::Error {
    io::Error::other(error.to_string())
}
