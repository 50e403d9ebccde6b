//! The system call filter of a sandboxed step.
//!
//! It has the effect of Docker's default profile for a container with the default capabilities: what the
//! profile does not allow fails with EPERM, `clone3` fails with ENOSYS so that the C library falls back to
//! `clone`, whose flags a filter can read, and so do calls that are newer than the profile.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

/// The first number after the calls that this profile was written for (`lsm_list_modules`, Linux 6.8). On
/// x86-64 it also catches the x32 calls, whose numbers have bit 30 set.
const FIRST_UNKNOWN: u32 = 462;

/// All `CLONE_NEW…` flags: making namespaces needs `CAP_SYS_ADMIN` in Docker's profile.
const CLONE_NAMESPACES: u64 = 0x7E02_0080;

/// Denied whatever their arguments are.
const DENIED: &[libc::c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    libc::SYS_nfsservctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pivot_root,
    libc::SYS_process_madvise,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_sysfs,
    #[cfg(target_arch = "x86_64")]
    libc::SYS__sysctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_uselib,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ustat,
];

/// The same for 32-bit programs on x86-64, by i386 number (`arch/x86/entry/syscalls/syscall_32.tbl`): mount
/// 21, stime 25, acct 51, umount 22 and 52, sethostname 74, settimeofday 79, uselib 86, swapon 87, reboot 88,
/// ioperm 101, syslog 103, iopl 110, vhangup 111, vm86 113 and 166, swapoff 115, setdomainname 121,
/// init/delete_module 128/129, quotactl 131, nfsservctl 169, pivot_root 217, clock_settime 264, kexec_load
/// 283, keys 286-288, migrate_pages 294, unshare 310, move_pages 317, perf_event_open 336, fanotify_init
/// 338, open_by_handle_at 342, setns 346, kcmp 349, finit_module 350, bpf 357, userfaultfd 374,
/// clock_settime64 404, io_uring 425-427, the mount calls 428-433 and 442, quotactl_fd 443.
#[cfg(target_arch = "x86_64")]
const DENIED_I386: &[u32] = &[
    21, 22, 25, 51, 52, 74, 79, 86, 87, 88, 101, 103, 110, 111, 113, 115, 121, 128, 129, 131, 166, 169, 217,
    264, 283, 286, 287, 288, 294, 310, 317, 336, 338, 342, 346, 349, 350, 357, 374, 404, 425, 426, 427, 428,
    429, 430, 431, 432, 433, 442, 443,
];

/// The compiled filter for this machine.
pub(super) fn sandbox_filter() -> io::Result<BpfProgram> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?;
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = DENIED.iter().map(|&call| (call, Vec::new())).collect();
    let condition = |index, length, operator, value| {
        SeccompCondition::new(index, length, operator, value).map_err(io::Error::other)
    };
    let rule = |conditions| SeccompRule::new(conditions).map_err(io::Error::other);
    // One bit at a time: a rule can only compare masked bits with a value, not ask for any of them.
    let mut clone = Vec::new();
    for bit in namespace_bits() {
        let masked = SeccompCmpOp::MaskedEq(bit);
        clone.push(rule(vec![condition(0, SeccompCmpArgLen::Qword, masked, bit)?])?);
    }
    rules.insert(libc::SYS_clone, clone);
    // AF_VSOCK reaches the hypervisor and AF_ALG the kernel's crypto code.
    let families = [libc::AF_VSOCK, libc::AF_ALG];
    let families = families.map(|family| {
        rule(vec![condition(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, u64::from(family.unsigned_abs()))?])
    });
    rules.insert(libc::SYS_socket, families.into_iter().collect::<io::Result<_>>()?);
    // Only the personalities that Docker allows: they must differ from each of these to be denied.
    let personalities = [0, 8, 0x2_0000, 0x2_0008, 0xFFFF_FFFF]
        .map(|value| condition(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, value));
    rules.insert(libc::SYS_personality, vec![rule(personalities.into_iter().collect::<io::Result<_>>()?)?]);
    let eperm = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, eperm, arch).map_err(io::Error::other)?;
    let filter: BpfProgram = filter.try_into().map_err(io::Error::other)?;
    let mut program = prologue();
    program.extend(filter);
    Ok(program)
}

/// The same by name, for an OCI runtime.
pub(super) fn oci_profile() -> serde_json::Value {
    const NAMES: &[&str] = &[
        "acct",
        "add_key",
        "bpf",
        "clock_settime",
        "delete_module",
        "fanotify_init",
        "finit_module",
        "fsconfig",
        "fsmount",
        "fsopen",
        "fspick",
        "init_module",
        "io_uring_enter",
        "io_uring_register",
        "io_uring_setup",
        "kcmp",
        "kexec_file_load",
        "kexec_load",
        "keyctl",
        "lookup_dcookie",
        "mount",
        "mount_setattr",
        "move_mount",
        "move_pages",
        "migrate_pages",
        "nfsservctl",
        "open_by_handle_at",
        "open_tree",
        "perf_event_open",
        "pivot_root",
        "process_madvise",
        "quotactl",
        "quotactl_fd",
        "reboot",
        "request_key",
        "setdomainname",
        "sethostname",
        "setns",
        "settimeofday",
        "swapoff",
        "swapon",
        "syslog",
        "umount",
        "umount2",
        "unshare",
        "userfaultfd",
        "vhangup",
        "ioperm",
        "iopl",
        "sysfs",
        "_sysctl",
        "uselib",
        "ustat",
        "stime",
        "clock_settime64",
        "vm86",
        "vm86old",
    ];
    let errno = |names: serde_json::Value, number: i32, args: serde_json::Value| serde_json::json!({"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": number, "args": args});
    let always = || serde_json::json!([]);
    let mut rules = vec![
        errno(serde_json::json!(NAMES), libc::EPERM, always()),
        errno(serde_json::json!(["clone3"]), libc::ENOSYS, always()),
    ];
    for bit in namespace_bits() {
        let any =
            serde_json::json!([{"index": 0, "value": bit, "valueTwo": bit, "op": "SCMP_CMP_MASKED_EQ"}]);
        rules.push(errno(serde_json::json!(["clone"]), libc::EPERM, any));
    }
    serde_json::json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": match std::env::consts::ARCH {
            "x86_64" => vec!["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "aarch64" => vec!["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
            _ => Vec::new(),
        },
        "syscalls": rules,
    })
}

fn namespace_bits() -> impl Iterator<Item = u64> {
    (0..32).map(|shift| 1_u64 << shift).filter(|bit| CLONE_NAMESPACES & bit != 0)
}

// Classic BPF, from `linux/bpf_common.h` and `linux/seccomp.h`.
const LOAD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;
const OFFSET_NUMBER: u32 = 0;
const RETURN_ERRNO: u32 = 0x0005_0000;

/// What seccompiler's rules cannot say: numbers compared by order, `clone3`'s other error, and 32-bit
/// programs (its own program kills those; Docker lets them run). Falls through to the rest.
fn prologue() -> BpfProgram {
    let statement = |code, k| sock_filter { code, jt: 0, jf: 0, k };
    let jump = |code, k, jt, jf| sock_filter { code, jt, jf, k };
    let errno = |number: i32| statement(RETURN, RETURN_ERRNO | number.unsigned_abs());
    let mut program = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        const JUMP_SET: u16 = 0x45;
        const OFFSET_ARCH: u32 = 4;
        const OFFSET_ARGUMENT_0: u32 = 16;
        const RETURN_ALLOW: u32 = 0x7FFF_0000;
        const AUDIT_ARCH_I386: u32 = 0x4000_0003;
        let mut compat = vec![statement(LOAD, OFFSET_NUMBER)];
        for &call in DENIED_I386 {
            compat.extend([jump(JUMP_EQUAL, call, 0, 1), errno(libc::EPERM)]);
        }
        // clone3, and whatever is newer than the profile (the numbers are shared since 424).
        compat.extend([jump(JUMP_EQUAL, 435, 0, 1), errno(libc::ENOSYS)]);
        compat.extend([jump(JUMP_GREATER_EQUAL, FIRST_UNKNOWN, 0, 1), errno(libc::ENOSYS)]);
        // clone with flags for namespaces.
        compat.extend([
            jump(JUMP_EQUAL, 120, 0, 3),
            statement(LOAD, OFFSET_ARGUMENT_0),
            jump(JUMP_SET, CLONE_NAMESPACES as u32, 0, 1),
            errno(libc::EPERM),
            statement(RETURN, RETURN_ALLOW),
        ]);
        // The jump's offset has eight bits, and the list is a compile-time constant of about 110 statements.
        let length = u8::try_from(compat.len()).unwrap_or(u8::MAX);
        program.extend([statement(LOAD, OFFSET_ARCH), jump(JUMP_EQUAL, AUDIT_ARCH_I386, 0, length)]);
        program.extend(compat);
    }
    program.extend([
        statement(LOAD, OFFSET_NUMBER),
        jump(JUMP_EQUAL, libc::SYS_clone3 as u32, 1, 0),
        jump(JUMP_GREATER_EQUAL, FIRST_UNKNOWN, 0, 1),
        errno(libc::ENOSYS),
    ]);
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_compiles_and_fits_the_kernels_limit() {
        let program = sandbox_filter().unwrap();
        assert!(program.len() > DENIED.len() && program.len() < 4096, "{}", program.len());
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_jump_over_the_32_bit_part_lands_behind_it() {
        let program = prologue();
        let target = 2 + usize::from(program[1].jf);
        assert_eq!((program[target].code, program[target].k), (LOAD, OFFSET_NUMBER));
        assert_eq!(program.len() - target, 4);
    }
}
