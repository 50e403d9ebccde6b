//! The executor that needs nothing but this program and the kernel.

use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, Timestamps};

use crate::event::Stream;
use crate::exec::helper::{DEFAULT_HOSTNAME, OWN_NETWORK, modified};
use crate::exec::protocol::{Order, Report, SUPERVISOR, Stub, receive_with, send};
use crate::exec::{CancelToken, ExecError, ExecOutcome, ExecStep, Executor, Exit, Ids, Network, ServedTree};

/// One read from an output of the step: a pipe's default capacity.
const CHUNK: usize = 64 << 10;
/// The most that is still read from an output after the step ended: what a pipe can hold at most without
/// privileges. Whoever holds it open beyond that is not waited for.
const MAX_DRAIN: usize = 1 << 20;
/// How long the supervisor may take to end a cancelled step before it is killed itself.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the native executor needs to know about its surroundings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Which user ids this process has; see [`enter_user_namespace`](crate::exec::enter_user_namespace).
    pub ids: Ids,
    /// The host's name server configuration, for steps that use the network.
    pub resolv_conf: PathBuf,
}

impl Settings {
    /// The usual files of the host.
    pub fn new(ids: Ids) -> Self {
        Self { ids, resolv_conf: PathBuf::from("/etc/resolv.conf") }
    }

    /// The lookups of the host work in the step too, since it shares the host's network.
    fn resolv_conf(&self, network: Network) -> String {
        match network {
            Network::None => String::new(),
            Network::Default | Network::Host => fs_err::read(&self.resolv_conf)
                .map_or_else(|_| String::new(), |text| String::from_utf8_lossy(&text).into_owned()),
        }
    }
}

/// Runs steps with namespaces, an overlay and a system call filter, by way of helper processes of this
/// program.
#[derive(Debug, Clone)]
pub struct NativeExecutor {
    program: PathBuf,
    settings: Settings,
}

impl NativeExecutor {
    /// `program` is this program, whose `main` calls [`helper_main`](crate::exec::helper_main):
    /// `/proc/self/exe`, except in tests.
    pub fn new(program: PathBuf, settings: Settings) -> Self {
        Self { program, settings }
    }

    fn check(&self, step: &ExecStep) -> Result<(), ExecError> {
        let user = &step.user;
        if self.settings.ids == Ids::Single && (user.uid, user.gid) != (0, 0) {
            return Err(ExecError::Unsupported {
                what: format!("the step runs as user {}:{}, but only a single id is available here", user.uid, user.gid),
                advice: "give your account subordinate ids (`newuidmap` of the package uidmap, and lines in /etc/subuid and /etc/subgid), or run as root".to_owned(),
            });
        }
        if let Some((key, _)) = step
            .env
            .iter()
            .find(|(key, value)| key.is_empty() || key.contains(['=', '\0']) || value.contains('\0'))
        {
            return Err(ExecError::Unsupported {
                what: format!(
                    "the environment variable {key:?} has a name or value that no process can have"
                ),
                advice: "remove it".to_owned(),
            });
        }
        Ok(())
    }
}

/// BuildKit's file.
fn hosts(step: &ExecStep) -> String {
    let hostname = step.hostname.as_deref().unwrap_or(DEFAULT_HOSTNAME);
    let mut text = format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for (name, address) in &step.extra_hosts {
        text.push_str(&format!("{address}\t{name}\n"));
    }
    text
}

impl Executor for NativeExecutor {
    fn run(
        &self,
        step: &ExecStep,
        trees: &[Arc<dyn ServedTree>],
        log: &mut dyn FnMut(Stream, &[u8]),
        cancel: &CancelToken,
    ) -> Result<ExecOutcome, ExecError> {
        self.check(step)?;
        run_helpers(&self.program, &self.settings, None, step, trees, log, cancel)
    }

    fn describe(&self) -> String {
        format!("native, {}", describe_ids(self.settings.ids))
    }
}

/// The same helper processes, but an OCI runtime such as crun or runc makes the sandbox and starts the
/// command.
///
/// The root and the step's own mounts are still made here. The runtime's words and exit codes for a command
/// that cannot be started are its own.
#[derive(Debug, Clone)]
pub struct OciRuntimeExecutor {
    native: NativeExecutor,
    runtime: PathBuf,
}

impl OciRuntimeExecutor {
    /// `program` is this program, as in [`NativeExecutor::new`]; `runtime` is the runtime's absolute path.
    pub fn new(program: PathBuf, settings: Settings, runtime: PathBuf) -> Self {
        Self { native: NativeExecutor::new(program, settings), runtime }
    }
}

impl Executor for OciRuntimeExecutor {
    fn run(
        &self,
        step: &ExecStep,
        trees: &[Arc<dyn ServedTree>],
        log: &mut dyn FnMut(Stream, &[u8]),
        cancel: &CancelToken,
    ) -> Result<ExecOutcome, ExecError> {
        self.native.check(step)?;
        run_helpers(
            &self.native.program,
            &self.native.settings,
            Some(self.runtime.clone()),
            step,
            trees,
            log,
            cancel,
        )
    }

    fn describe(&self) -> String {
        format!("{}, {}", self.runtime.display(), describe_ids(self.native.settings.ids))
    }
}

fn describe_ids(ids: Ids) -> String {
    match ids {
        Ids::Root => "as root".to_owned(),
        Ids::Mapped { count } => format!("in a user namespace with {count} ids"),
        Ids::Single => "in a user namespace with a single id".to_owned(),
    }
}

fn run_helpers(
    program: &Path,
    settings: &Settings,
    runtime: Option<PathBuf>,
    step: &ExecStep,
    trees: &[Arc<dyn ServedTree>],
    log: &mut dyn FnMut(Stream, &[u8]),
    cancel: &CancelToken,
) -> Result<ExecOutcome, ExecError> {
    if cancel.is_cancelled() {
        return Err(ExecError::Cancelled);
    }
    let order = Order {
        step: step.clone(),
        ids: settings.ids,
        runtime,
        resolv_conf: settings.resolv_conf(step.network),
        hosts: hosts(step),
    };
    let mut stubs = Vec::new();
    let result =
        Run::start(program, &order).and_then(|run| run.watch(&order, trees, log, cancel, &mut stubs));
    // Also after a failure: the caller may want to look at what the step left.
    let created_mountpoints = remove_stubs(&step.upper, &stubs);
    let (exit, notes) = result?;
    Ok(ExecOutcome { exit, created_mountpoints: created_mountpoints?, notes })
}

/// A supervisor and what connects to it. Dropping it ends the step.
struct Run {
    child: Child,
    socket: UnixStream,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

impl Run {
    fn start(program: &Path, order: &Order) -> Result<Self, ExecError> {
        let channel = |source| ExecError::Channel { doing: "opening it", source };
        let (socket, theirs) = UnixStream::pair().map_err(channel)?;
        let mut command = Command::new(program);
        command.arg(SUPERVISOR).env_clear().stdin(OwnedFd::from(theirs));
        if order.step.network == Network::None {
            command.arg(OWN_NETWORK);
        }
        command.args(&order.step.served);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child =
            command.spawn().map_err(|source| ExecError::Spawn { program: program.to_owned(), source })?;
        let stdout = child.stdout.take().map(OwnedFd::from);
        let stderr = child.stderr.take().map(OwnedFd::from);
        Ok(Self { child, socket, stdout, stderr })
    }

    fn watch(
        mut self,
        order: &Order,
        trees: &[Arc<dyn ServedTree>],
        log: &mut dyn FnMut(Stream, &[u8]),
        cancel: &CancelToken,
        stubs: &mut Vec<Stub>,
    ) -> Result<(Exit, Vec<String>), ExecError> {
        if let Err(source) = send(&self.socket, order)
            && source.kind() != ErrorKind::BrokenPipe
        {
            return Err(ExecError::Channel { doing: "sending the step", source });
        }
        let mut notes = Vec::new();
        let mut exit = None;
        let mut failure = None;
        loop {
            let ready = self.poll(cancel)?;
            if ready.cancelled {
                return Err(ExecError::Cancelled);
            }
            for (stream, is_ready) in [(Stream::Stdout, ready.stdout), (Stream::Stderr, ready.stderr)] {
                if is_ready {
                    self.read_output(stream, log)?;
                }
            }
            if !ready.socket {
                continue;
            }
            let mut device = None;
            let report = match receive_with(&self.socket, &mut device) {
                Ok(report) => report,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => None,
                Err(source) => return Err(ExecError::Channel { doing: "reading its report", source }),
            };
            match report {
                Some(Report::Note(note)) => notes.push(note),
                Some(Report::Created(stub)) => stubs.push(stub),
                Some(Report::Mounted(place)) => {
                    let served = match (trees.get(place), device) {
                        (Some(tree), Some(device)) => tree.serve(device),
                        _ => Err(ErrorKind::InvalidData.into()),
                    };
                    served
                        .map_err(|source| ExecError::Channel { doing: "serving the step's files", source })?;
                }
                Some(Report::Failed { what, reason, advice }) => {
                    failure = Some(ExecError::Setup { what, reason, advice });
                }
                Some(Report::Ended(how)) => exit = Some(how),
                None => break,
            }
        }
        let status =
            self.child.wait().map_err(|source| ExecError::Channel { doing: "waiting for it", source })?;
        self.drain(log)?;
        if let Some(failure) = failure {
            return Err(failure);
        }
        let exit = exit.ok_or_else(|| ExecError::HelperDied { status: status.to_string() })?;
        Ok((exit, notes))
    }

    fn poll(&self, cancel: &CancelToken) -> Result<Ready, ExecError> {
        loop {
            let mut fds = vec![PollFd::new(&self.socket, PollFlags::IN), PollFd::new(cancel, PollFlags::IN)];
            let outputs = [&self.stdout, &self.stderr];
            fds.extend(outputs.into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::IN)));
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => {
                    return Err(ExecError::Channel { doing: "waiting for it", source: error.into() });
                }
            }
            let mut states = fds.iter().map(|fd| !fd.revents().is_empty());
            let mut next = || states.next().unwrap_or(false);
            let (socket, cancelled) = (next(), next());
            let stdout = self.stdout.is_some() && next();
            let stderr = self.stderr.is_some() && next();
            return Ok(Ready { socket, cancelled, stdout, stderr });
        }
    }

    /// Passes on one piece; returns its length, and closes the output at its end.
    fn read_output(
        &mut self,
        stream: Stream,
        log: &mut dyn FnMut(Stream, &[u8]),
    ) -> Result<usize, ExecError> {
        let output = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let Some(fd) = output else { return Ok(0) };
        let mut buffer = vec![0; CHUNK];
        let length = loop {
            match rustix::io::read(&*fd, &mut buffer) {
                Ok(length) => break length,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    return Err(ExecError::Channel {
                        doing: "reading the step's output",
                        source: error.into(),
                    });
                }
            }
        };
        if length == 0 {
            *output = None;
        } else {
            log(stream, &buffer[..length]);
        }
        Ok(length)
    }

    /// What is still in the pipes, without waiting for more.
    fn drain(&mut self, log: &mut dyn FnMut(Stream, &[u8])) -> Result<(), ExecError> {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let mut left = MAX_DRAIN;
            while left > 0 {
                let output = if stream == Stream::Stdout { &self.stdout } else { &self.stderr };
                let Some(fd) = output else { break };
                let mut fds = [PollFd::new(fd, PollFlags::IN)];
                if !matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1..)) {
                    break;
                }
                left = left.saturating_sub(self.read_output(stream, log)?);
            }
        }
        Ok(())
    }
}

struct Ready {
    socket: bool,
    cancelled: bool,
    stdout: bool,
    stderr: bool,
}

/// Hangs up, on which the supervisor ends the step, and waits for that.
impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.child.try_wait() {
                Ok(Some(_)) | Err(_) => return,
                Ok(None) if Instant::now() >= deadline => break,
                Ok(None) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Takes the executor's mount points out of the step's result, and gives their parents the times back that
/// they would have had. Returns those that the step put something into.
fn remove_stubs(upper: &Path, stubs: &[Stub]) -> Result<Vec<Vec<u8>>, ExecError> {
    let mut kept = Vec::new();
    for stub in stubs.iter().rev() {
        let name = stub.path.join(&b'/');
        let removed = remove_stub(upper, stub)
            .map_err(|source| ExecError::Cleanup { path: PathBuf::from(OsStr::from_bytes(&name)), source })?;
        if !removed {
            kept.push(name);
        }
    }
    kept.reverse();
    Ok(kept)
}

fn remove_stub(upper: &Path, stub: &Stub) -> io::Result<bool> {
    let Some((name, parents)) = stub.path.split_last() else { return Ok(true) };
    let name = OsStr::from_bytes(name);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let upper = rustix::fs::openat(CWD, upper, flags, Mode::empty())?;
    let parent = if parents.is_empty() { ".".into() } else { parents.join(&b'/') };
    // The step may have put anything there, such as a link to somewhere else.
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let parent = match rustix::fs::openat2(&upper, OsStr::from_bytes(&parent), flags, Mode::empty(), resolve)
    {
        Ok(parent) => parent,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {
            return Ok(true);
        }
        Err(error) => return Err(error.into()),
    };
    let Ok(before) = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) else { return Ok(true) };
    let kind = rustix::fs::FileType::from_raw_mode(before.st_mode);
    let parent_stat = rustix::fs::fstat(&parent)?;
    let result = match (stub.is_dir, kind) {
        (true, rustix::fs::FileType::Directory) => rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR),
        (false, rustix::fs::FileType::RegularFile) if before.st_size == 0 => {
            rustix::fs::unlinkat(&parent, name, AtFlags::empty())
        }
        // The step replaced it by something of its own.
        _ => return Ok(true),
    };
    match result {
        Ok(()) => {}
        Err(rustix::io::Errno::NOTEMPTY | rustix::io::Errno::EXIST) => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    if modified(&parent_stat) == stub.parent_after {
        let (seconds, nanoseconds) = stub.parent_before;
        let last_modification = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
        let last_access = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
        rustix::fs::futimens(parent.as_fd(), &Timestamps { last_access, last_modification })?;
    }
    Ok(true)
}
