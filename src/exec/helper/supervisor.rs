//! The process between the executor and the step.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::UnshareFlags;

use super::{Channel, Doing, SetupError};
use crate::exec::Exit;
use crate::exec::protocol::{INIT, Report};

/// Asks for a network of the step's own.
pub(in crate::exec) const OWN_NETWORK: &str = "--own-network";

pub(super) fn main(args: &[OsString]) -> ExitCode {
    let Ok(channel) = Channel::from_stdin() else { return ExitCode::FAILURE };
    match run(&channel, args.iter().any(|arg| arg == OWN_NETWORK)) {
        Ok(Some(exit)) => channel.report(&Report::Ended(exit)),
        Ok(None) => {}
        Err(error) => channel.fail(error),
    }
    ExitCode::SUCCESS
}

/// The command's end, or `None` if the executor hung up.
fn run(channel: &Channel, own_network: bool) -> Result<Option<Exit>, SetupError> {
    // Out of the terminal's process group: Ctrl-C is for the executor, which then hangs up in good order.
    rustix::process::setsid().doing(|| "starting a session")?;
    unshare(own_network)?;
    // The new process is the first of the new process namespace. Everything else it inherits.
    let child = Command::new("/proc/self/exe").arg(INIT).env_clear().stdin(Stdio::inherit()).spawn();
    let mut child = child.doing(|| "starting the step's first process")?;
    wait(channel, &mut child).doing(|| "waiting for the step")
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
