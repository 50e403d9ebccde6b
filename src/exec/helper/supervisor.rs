//! The process between the executor and the step.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::UnshareFlags;

use super::{Channel, Doing, SetupError};
use crate::exec::Exit;
use crate::exec::protocol::{INIT, Report};

/// Asks for a network of the step's own.
pub(in crate::exec) const OWN_NETWORK: &str = "--own-network";

pub(super) fn main(args: &[OsString]) -> ExitCode {
    let Ok(channel) = Channel::from_stdin() else { return ExitCode::FAILURE };
    let (flags, served): (Vec<_>, Vec<_>) = args.iter().partition(|arg| *arg == OWN_NETWORK);
    match run(&channel, !flags.is_empty(), &served) {
        Ok(Some(exit)) => channel.report(&Report::Ended(exit)),
        Ok(None) => {}
        Err(error) => channel.fail(error),
    }
    ExitCode::SUCCESS
}

/// The command's end, or `None` if the executor hung up.
fn run(channel: &Channel, own_network: bool, served: &[&OsString]) -> Result<Option<Exit>, SetupError> {
    // Out of the terminal's process group: Ctrl-C is for the executor, which then hangs up in good order.
    rustix::process::setsid().doing(|| "starting a session")?;
    unshare(own_network)?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).doing(|| "making mounts private")?;
    // Here, and not in the new process namespace, so that the executor can tell which process asks for a file.
    for (number, place) in served.iter().enumerate() {
        mount_served(number, Path::new(place), channel)?;
    }
    // The new process is the first of the new process namespace. Everything else it inherits.
    let child = Command::new("/proc/self/exe").arg(INIT).env_clear().stdin(Stdio::inherit()).spawn();
    let mut child = child.doing(|| "starting the step's first process")?;
    wait(channel, &mut child).doing(|| "waiting for the step")
}

/// Mounts a tree that the executor serves, and gives it the device.
fn mount_served(number: usize, place: &Path, channel: &Channel) -> Result<(), SetupError> {
    let device = mount_fuse(place)?;
    channel
        .hand_over(&Report::Mounted(number), &device)
        .doing(|| "handing over the files that the step starts from")
}

/// Mounts files that whoever has the device answers for.
pub(in crate::exec) fn mount_fuse(place: &Path) -> Result<OwnedFd, SetupError> {
    let what = || "mounting the files that the step starts from";
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let device = rustix::fs::open("/dev/fuse", flags, Mode::empty()).doing(|| "opening /dev/fuse")?;
    // Whoever the step runs as: the overlay above asks as root, and checks what they may do by itself.
    let options = format!("fd={},rootmode=40755,user_id=0,group_id=0,allow_other", device.as_raw_fd());
    let options = CString::new(options).doing(what)?;
    let flags = MountFlags::RDONLY | MountFlags::NOATIME | MountFlags::NODEV;
    rustix::mount::mount("crossdock", place, "fuse", flags, options.as_c_str()).doing(what)?;
    Ok(device)
}

fn unshare(own_network: bool) -> Result<(), SetupError> {
    let mut flags = UnshareFlags::NEWNS | UnshareFlags::NEWPID | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    if own_network {
        flags |= UnshareFlags::NEWNET;
    }
    #[expect(unsafe_code, reason = "unshare is unsafe for flags that this process does not pass")]
    // SAFETY: the process has one thread, and no file descriptor table is unshared.
    let result = unsafe { rustix::thread::unshare_unsafe(flags) };
    result.doing(|| "creating the step's namespaces").map_err(|error| {
        error.with_advice(
            "this needs root or user namespaces, and inside a container also the right to use `unshare` and `mount`; `crossdock doctor` tells what is missing",
        )
    })
}

fn wait(channel: &Channel, child: &mut Child) -> io::Result<Option<Exit>> {
    let pid = Pid::from_child(child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    loop {
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN), PollFd::new(channel, PollFlags::RDHUP)];
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let hung_up = fds[1].revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR);
        if !fds[0].revents().is_empty() {
            let status = child.wait()?;
            return Ok(match (status.code(), status.signal()) {
                (Some(code), _) => Some(Exit::Code(code)),
                (None, Some(signal)) => Some(Exit::Signal(signal)),
                (None, None) => None,
            });
        }
        if hung_up {
            // The kernel takes the rest of the process namespace with its first process.
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
    }
}
