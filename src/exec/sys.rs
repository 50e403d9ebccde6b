//! System calls that no safe wrapper in use offers.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Mount attributes, from `linux/mount.h`.
pub(super) const ATTR_READ_ONLY: u64 = 0x1;
pub(super) const ATTR_NO_EXEC: u64 = 0x8;

/// `struct mount_attr` of `mount_setattr(2)`.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Sets attributes on a (detached) mount and all below it. Linux 5.12.
#[expect(unsafe_code, reason = "rustix has no mount_setattr")]
pub(super) fn mount_setattr_recursive(mount: impl AsFd, set: u64) -> io::Result<()> {
    let attr = MountAttr { set, clear: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the path is a valid C string, `attr` outlives the call, and its size is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Switches the loopback interface of the current network namespace on.
#[expect(unsafe_code, reason = "rustix has no interface ioctls")]
pub(super) fn loopback_up() -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: `ifreq` is plain data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an `ifreq`, which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Installs a system call filter for this thread and all that it starts, without `no_new_privs`: a step may
/// use setuid programs. Needs `CAP_SYS_ADMIN`.
#[expect(unsafe_code, reason = "seccompiler's own installation always sets no_new_privs")]
pub(super) fn install_filter(program: &[seccompiler::sock_filter]) -> io::Result<()> {
    #[repr(C)]
    struct Program {
        length: libc::c_ushort,
        filter: *const seccompiler::sock_filter,
    }
    let length = u16::try_from(program.len()).map_err(|_| io::Error::other("the filter is too long"))?;
    let program = Program { length, filter: program.as_ptr() };
    // SAFETY: the kernel copies the program, which outlives the call and has the stated length.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes every descriptor from 3 on close when a program is executed.
#[expect(unsafe_code, reason = "rustix has no close_range")]
pub(super) fn close_on_exec_from_3() -> io::Result<()> {
    // SAFETY: only flags of descriptors change; nothing is closed now.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Becomes another program. Unlike the C library's `execvp`, which is what the standard library uses, it
/// does not give what the kernel cannot run to a shell.
#[expect(
    unsafe_code,
    reason = "there is no execve without a search path and a shell in the standard library"
)]
pub(super) fn execve(program: &CStr, args: &[CString], env: &[CString]) -> io::Result<Infallible> {
    let pointers = |words: &[CString]| -> Vec<*const libc::c_char> {
        words.iter().map(|word| word.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (args, env) = (pointers(args), pointers(env));
    // Ignored signals stay ignored across execve: Rust ignores SIGPIPE, `nohup` SIGHUP, a shell's `&` SIGINT.
    for signal in 1..=libc::SIGSYS {
        // SAFETY: only the disposition changes, to the default; for SIGKILL and SIGSTOP it fails harmlessly.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: both are null-terminated arrays of C strings that outlive the call.
    unsafe { libc::execve(program.as_ptr(), args.as_ptr(), env.as_ptr()) };
    Err(io::Error::last_os_error())
}
