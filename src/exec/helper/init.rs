//! Process 1 of the step, until it becomes the step's command.

use std::convert::Infallible;
use std::ffi::CString;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::fs::{Access, Mode};

use super::rootfs::{Kind, Root, mount_overlay};
use super::{Channel, Doing, SetupError, bundle, mounts::Mounter, privileges, stdin_from};
use crate::exec::protocol::{Order, receive};
use crate::exec::{Ids, Network, sys};

/// BuildKit's, which scripts may have come to expect.
pub(in crate::exec) const DEFAULT_HOSTNAME: &str = "buildkitsandbox";
/// Where a command is looked up if the step sets no `PATH`: Docker's default.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A shell's exit codes for commands that do not exist or cannot be run.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

pub(super) fn main() -> ExitCode {
    let Ok(channel) = Channel::from_stdin() else { return ExitCode::FAILURE };
    match run(&channel) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            channel.fail(error);
            ExitCode::FAILURE
        }
    }
}

/// Returns only if the command could not be started, with the exit code that stands for it.
fn run(channel: &Channel) -> Result<u8, SetupError> {
    privileges::die_with_parent().doing(|| "tying the step to its supervisor")?;
    rustix::process::setsid().doing(|| "starting a session")?;
    rustix::process::umask(Mode::empty());
    let order: Option<Order> = receive(&channel.0).doing(|| "reading the step")?;
    // The executor is gone, and the supervisor is about to notice.
    let Some(order) = order else { return Ok(NOT_EXECUTABLE) };
    let step = &order.step;
    let hostname = step.hostname.as_deref().unwrap_or(DEFAULT_HOSTNAME);
    rustix::system::sethostname(hostname.as_bytes())
        .doing(|| format!("setting the host name {hostname:?}"))?;
    if step.network == Network::None {
        sys::loopback_up().doing(|| "switching the loopback interface on")?;
    }
    let at = step.scratch.join("root");
    fs_err::create_dir(&at).doing(|| "making the step's root")?;
    let writable = Some((step.upper.as_path(), step.work.as_path()));
    mount_overlay(&at, &step.lowers, writable, &step.scratch.join("names"), order.ids != Ids::Root)?;
    let root = Root::open(&at)?;
    let mounter = Mounter { order: &order, root: &root, channel, memory: step.scratch.join("memory") };
    let cwd = if step.cwd.is_empty() { "/" } else { &step.cwd };
    if let Some(runtime) = &order.runtime {
        make_working_directory(&root, cwd, &order)?;
        return bundle::become_runtime(runtime, &order, &mounter, &at);
    }
    mounter.mount_all()?;
    make_working_directory(&root, cwd, &order)?;
    root.enter()?;

    stdin_from(Path::new("/dev/null")).doing(|| "opening /dev/null in the step's root")?;
    rustix::process::chdir(cwd).doing(|| format!("entering the working directory {cwd}"))?;
    sys::close_on_exec_from_3().doing(|| "closing descriptors")?;
    privileges::drop_to(step, order.ids, channel)?;
    rustix::process::umask(Mode::from_raw_mode(step.umask & 0o777));
    Ok(execute(&order))
}

/// As BuildKit does: what is missing belongs to the step's user.
fn make_working_directory(root: &Root, cwd: &str, order: &Order) -> Result<(), SetupError> {
    let what = || format!("making the working directory {cwd}");
    let found = root.find_or_create(cwd, Kind::Directory).doing(what)?;
    if !found.is_dir {
        return Err(SetupError::new(what(), "it is a file"));
    }
    let user = &order.step.user;
    for stub in found.created.iter().filter(|_| (user.uid, user.gid) != (0, 0)) {
        let path = stub.path.iter().map(|part| String::from_utf8_lossy(part)).collect::<Vec<_>>().join("/");
        let fd = root.find(&path).doing(what)?;
        let owner = (rustix::fs::Uid::from_raw(user.uid), rustix::fs::Gid::from_raw(user.gid));
        rustix::fs::chownat(&fd, "", Some(owner.0), Some(owner.1), rustix::fs::AtFlags::EMPTY_PATH)
            .doing(what)?;
    }
    Ok(())
}

/// Becomes the command, or says on standard error why not, in runc's words.
fn execute(order: &Order) -> u8 {
    let step = &order.step;
    let complain = |text: String| {
        // Nobody is left to be told that standard error is gone.
        let _ = writeln!(io::stderr(), "{text}");
    };
    let Some(name) = step.args.first() else {
        complain("exec: the command is empty".to_owned());
        return NOT_FOUND;
    };
    let path = step.env.iter().rev().find(|(key, _)| key == "PATH").map_or(DEFAULT_PATH, |(_, value)| value);
    let program = match look_up(name, path) {
        Ok(program) => program,
        Err((code, reason)) => {
            complain(format!("exec: {name:?}: {reason}"));
            return code;
        }
    };
    let mut env: Vec<(&str, &str)> =
        step.env.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    if !env.iter().any(|(key, _)| *key == "HOME") {
        env.push(("HOME", step.user.home.as_deref().unwrap_or("/")));
    }
    let error = match become_program(&program, &step.args, &env) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    complain(format!("exec {}: {}", program.display(), reason(&error)));
    if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE }
}

fn become_program(program: &Path, args: &[String], env: &[(&str, &str)]) -> io::Result<Infallible> {
    let program = CString::new(program.as_os_str().as_bytes())?;
    let args = args.iter().map(|arg| CString::new(arg.as_str())).collect::<Result<Vec<_>, _>>()?;
    let env = env
        .iter()
        .map(|(key, value)| CString::new(format!("{key}={value}")))
        .collect::<Result<Vec<_>, _>>()?;
    sys::execve(&program, &args, &env)
}

/// Finds the program for `name` as a shell would.
fn look_up(name: &str, path: &str) -> Result<PathBuf, (u8, String)> {
    if name.contains('/') {
        let program = PathBuf::from(name);
        return match executable(&program) {
            Ok(()) => Ok(program),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err((NOT_FOUND, format!("stat {name}: {}", reason(&error))))
            }
            Err(error) => Err((NOT_EXECUTABLE, reason(&error))),
        };
    }
    let mut denied = None;
    for dir in path.split(':') {
        let program = Path::new(if dir.is_empty() { "." } else { dir }).join(name);
        match executable(&program) {
            Ok(()) => return Ok(program),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => denied = Some(error),
            Err(_) => {}
        }
    }
    match denied {
        Some(error) => Err((NOT_EXECUTABLE, reason(&error))),
        None => Err((NOT_FOUND, "executable file not found in $PATH".to_owned())),
    }
}

fn executable(program: &Path) -> io::Result<()> {
    if fs_err::metadata(program).map_err(|error| io::Error::from(error.kind()))?.is_dir() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(rustix::fs::access(program, Access::EXEC_OK)?)
}

/// The words of the C library and Go, which people search for.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ if error.raw_os_error() == Some(libc::ENOEXEC) => "exec format error".to_owned(),
        _ => error.to_string(),
    }
}
