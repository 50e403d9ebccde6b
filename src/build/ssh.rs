//! SSH agents for steps and for git (`--ssh`).
//!
//! A step gets a socket of its own, and each connection to it is passed on to the user's agent: an agent answers only its
//! own user, and the step may run as another one. What is passed on are questions for keys and for signatures; what would
//! change the agent is refused, as in BuildKit (`session/sshforward/sshprovider`). Private keys from files are given to
//! an `ssh-agent` that runs as long as the build: signing is left to OpenSSH.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::sync::OnceCell;
use tokio::task::{JoinHandle, JoinSet};

use super::options::{SshAgent, SshKey, SshSource};
use crate::hint::{Hint, with_causes};
use crate::store::DirectoryStore;

/// OpenSSH's limit for one message of the protocol (`AGENT_MAX_LEN`).
const MESSAGE_BYTES_MAX: u32 = 256 << 10;
/// Connections of one step under way at once; more wait. A parallel clone has a handful.
const CONNECTIONS_MAX: usize = 64;
/// The longest path that a socket can be bound or connected to, with room for the terminating zero.
const SOCKET_PATH_MAX: usize = 107;
/// How long `ssh-agent` and `ssh-add` may take. They ask nobody and reach no network.
const AGENT_PATIENCE: Duration = Duration::from_secs(20);
/// A socket's name in its directory.
const SOCKET: &str = "agent.sock";

/// Requests that only read (draft-ietf-sshm-ssh-agent, section 6.1).
const REQUEST_IDENTITIES: u8 = 11;
const SIGN_REQUEST: u8 = 13;
/// `SSH_AGENT_FAILURE`, as a message.
const FAILURE: &[u8] = &[0, 0, 0, 1, 5];

/// Why an agent cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SshError {
    /// OpenSSH is not installed.
    #[error("`{program}` could not be started")]
    Missing { program: &'static str, source: io::Error },
    /// The agent did not come up.
    #[error("the SSH agent for the keys of `--ssh {id}` did not start: {reason}")]
    Start { id: String, reason: String },
    /// A key was refused.
    #[error("the SSH key `{name}` cannot be used: {reason}")]
    Key { name: String, reason: String },
    /// The user's agent does not answer.
    #[error("the SSH agent at {} cannot be reached", path.display())]
    Unreachable { path: PathBuf, source: io::Error },
    /// A socket could not be made.
    #[error("a socket for the SSH agent could not be made")]
    Socket {
        #[from]
        source: io::Error,
    },
}

impl Hint for SshError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Missing { .. } => Some(
                "keys from files need OpenSSH's `ssh-agent` and `ssh-add` (Debian, Ubuntu: openssh-client); \
                 without them forward an agent with `--ssh default`"
                    .to_owned(),
            ),
            Self::Key { .. } => Some("`ssh-keygen -y -f FILE` says whether a private key is good".to_owned()),
            Self::Unreachable { .. } => Some(
                "is it still running? `ssh-add -l` asks the agent of SSH_AUTH_SOCK for its keys".to_owned(),
            ),
            Self::Start { .. } | Self::Socket { .. } => None,
        }
    }
}

/// The agents of one build.
#[derive(Debug)]
pub(crate) struct Agents {
    agents: HashMap<String, Agent>,
    /// Where sockets are made, in directories that only this user can enter.
    local: DirectoryStore,
}

#[derive(Debug)]
struct Agent {
    id: String,
    source: SshSource,
    /// The agent for the source's keys, once something needs it.
    private: OnceCell<PrivateAgent>,
}

/// Who may use a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Access {
    /// Permission bits.
    pub(crate) mode: u32,
    /// Owner and group; `None` leaves it with this process.
    pub(crate) owner: Option<(u32, u32)>,
}

/// A socket on which an agent answers, until this is dropped.
#[derive(Debug)]
pub(crate) struct Forwarding {
    task: JoinHandle<()>,
    directory: TempDir,
}

impl Forwarding {
    /// The socket. Where it is to be connected to and not mounted, see [`short`].
    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join(SOCKET)
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Agents {
    /// The agents that a build was given. Nothing is started or connected to yet.
    pub(crate) fn new(given: &[SshAgent], local: &DirectoryStore) -> Self {
        let agent = |agent: &SshAgent| {
            let SshAgent { id, source } = agent.clone();
            (id.clone(), Agent { id, source, private: OnceCell::new() })
        };
        Self { agents: given.iter().map(agent).collect(), local: local.clone() }
    }

    /// Makes a socket on which the agent `id` answers; `None` if there is no such agent.
    pub(crate) async fn forward(&self, id: &str, access: Access) -> Result<Option<Forwarding>, SshError> {
        let Some(agent) = self.agents.get(id) else { return Ok(None) };
        let (upstream, raw) = match &agent.source {
            SshSource::Socket { path, raw } => (path.clone(), *raw),
            SshSource::Keys(keys) => {
                let start = async || PrivateAgent::start(&agent.id, keys, self.directory()?).await;
                let private = agent.private.get_or_try_init(start).await?;
                (private.socket(), false)
            }
        };
        // A wrong path is better found now than by a failing step.
        if let Err(source) = connect(&upstream).await {
            return Err(SshError::Unreachable { path: upstream, source });
        }
        let directory = self.directory()?;
        let path = directory.path().join(SOCKET);
        let listener = bind(&path)?;
        if let Some((uid, gid)) = access.owner {
            std::os::unix::fs::chown(&path, Some(uid), Some(gid))?;
        }
        fs_err::set_permissions(&path, std::fs::Permissions::from_mode(access.mode & 0o777))?;
        let task = tokio::spawn(serve(listener, upstream.into(), raw));
        Ok(Some(Forwarding { task, directory }))
    }

    fn directory(&self) -> io::Result<TempDir> {
        self.local.tmp_dir().map_err(|error| io::Error::other(with_causes(&error)))
    }
}

/// A path that any program of this user can bind or connect to: a socket's address has no room for a long one, which then
/// goes by way of a descriptor of its directory that must stay open.
pub(crate) fn short(path: &Path) -> io::Result<(PathBuf, Option<fs_err::File>)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok((path.to_owned(), None));
    };
    if path.as_os_str().len() <= SOCKET_PATH_MAX {
        return Ok((path.to_owned(), None));
    }
    let directory = fs_err::File::open(parent)?;
    // Not `self`: the programs that this process starts are to find it too.
    let short = format!("/proc/{}/fd/{}", std::process::id(), directory.as_raw_fd());
    Ok((Path::new(&short).join(name), Some(directory)))
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    let (short, _directory) = short(path)?;
    UnixListener::bind(short)
}

async fn connect(path: &Path) -> io::Result<UnixStream> {
    let (short, _directory) = short(path)?;
    UnixStream::connect(short).await
}

/// Takes connections for ever.
async fn serve(listener: UnixListener, upstream: Arc<Path>, raw: bool) {
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= CONNECTIONS_MAX {
            connections.join_next().await;
        }
        match listener.accept().await {
            Ok((client, _)) => {
                let upstream = Arc::clone(&upstream);
                connections.spawn(async move {
                    // Whatever goes wrong ends the connection, which is how an agent says no.
                    if let Ok(agent) = connect(&upstream).await {
                        let _ = if raw { copy(client, agent).await } else { filter(client, agent).await };
                    }
                });
            }
            // Out of descriptors, perhaps: not for ever.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn copy(mut client: UnixStream, mut agent: UnixStream) -> io::Result<()> {
    tokio::io::copy_bidirectional(&mut client, &mut agent).await.map(|_| ())
}

/// Passes on what only reads. One request is answered after the other.
async fn filter(mut client: UnixStream, mut agent: UnixStream) -> io::Result<()> {
    while let Some(request) = message(&mut client).await? {
        match request.get(4) {
            Some(&(REQUEST_IDENTITIES | SIGN_REQUEST)) => {
                agent.write_all(&request).await?;
                let Some(answer) = message(&mut agent).await? else { return Ok(()) };
                client.write_all(&answer).await?;
            }
            _ => client.write_all(FAILURE).await?,
        }
    }
    Ok(())
}

/// The next message with its length in front; `None` at the end of the stream.
async fn message(stream: &mut UnixStream) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u32().await {
        Ok(length) => length,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if length == 0 || length > MESSAGE_BYTES_MAX {
        return Err(io::Error::other("a message of a wrong length"));
    }
    let mut message = length.to_be_bytes().to_vec();
    let got = stream.take(length.into()).read_to_end(&mut message).await?;
    if got < length as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(message))
}

/// An `ssh-agent` of this build. It ends when this is dropped, and when this process dies.
#[derive(Debug)]
struct PrivateAgent {
    /// What the agent runs beside itself: it waits for the end of its standard input, which this process holds, and the
    /// agent ends with it.
    child: Child,
    agent: Option<Pid>,
    directory: TempDir,
}

impl PrivateAgent {
    async fn start(id: &str, keys: &[SshKey], directory: TempDir) -> Result<Self, SshError> {
        let failed = |reason: String| SshError::Start { id: id.to_owned(), reason };
        // Relative to the directory, the socket's path is short.
        let mut command = tool("ssh-agent", directory.path());
        command.args(["-a", SOCKET, "sh", "-c", "echo \"$SSH_AGENT_PID\"; exec cat >/dev/null"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        // Ctrl-C is for the build, which then ends in good order.
        command.process_group(0);
        let mut child =
            command.spawn().map_err(|source| SshError::Missing { program: "ssh-agent", source })?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            let mut stdout = BufReader::new(stdout.take(64));
            tokio::time::timeout(AGENT_PATIENCE, stdout.read_line(&mut line))
                .await
                .map_err(|_| failed("it does not answer".to_owned()))??;
        }
        let agent = line.trim().parse().ok().and_then(Pid::from_raw);
        if agent.is_none() {
            return Err(failed("it ended at once".to_owned()));
        }
        let private = Self { child, agent, directory };
        for key in keys {
            private.add(key).await?;
        }
        Ok(private)
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join(SOCKET)
    }

    /// Gives the agent a key, over a pipe: it is on no disk and on no command line.
    async fn add(&self, key: &SshKey) -> Result<(), SshError> {
        let failed = |reason: String| SshError::Key { name: key.name.clone(), reason };
        let mut command = tool("ssh-add", self.directory.path());
        // Should the key want a passphrase after all, the answer is none.
        command.args(["-q", "-"]).env("SSH_AUTH_SOCK", SOCKET);
        command.env("SSH_ASKPASS", "/bin/false").env("SSH_ASKPASS_REQUIRE", "force");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(|source| SshError::Missing { program: "ssh-add", source })?;
        let mut text = key.text.clone();
        if !text.ends_with(b"\n") {
            text.push(b'\n');
        }
        let add = async {
            if let Some(mut stdin) = child.stdin.take() {
                // It may have seen enough before the end.
                let _ = stdin.write_all(&text).await;
            }
            child.wait_with_output().await
        };
        let output = tokio::time::timeout(AGENT_PATIENCE, add)
            .await
            .map_err(|_| failed("`ssh-add` does not end".to_owned()))??;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().next().unwrap_or_default().trim().replace("\"(stdin)\"", "it");
        Err(failed(if said.is_empty() { format!("`ssh-add` failed: {}", output.status) } else { said }))
    }
}

impl Drop for PrivateAgent {
    fn drop(&mut self) {
        if let Some(agent) = self.agent {
            let _ = kill_process(agent, Signal::TERM);
        }
        let _ = self.child.start_kill();
    }
}

/// A program of OpenSSH, in `directory`, that talks to nobody's agent and asks nobody.
fn tool(program: &'static str, directory: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(directory).env("LC_ALL", "C");
    for variable in ["SSH_AUTH_SOCK", "SSH_AGENT_PID", "SSH_ASKPASS", "SSH_ASKPASS_REQUIRE", "DISPLAY"] {
        command.env_remove(variable);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Access = Access { mode: 0o600, owner: None };

    fn frame(body: &[u8]) -> Vec<u8> {
        [&u32::try_from(body.len()).unwrap().to_be_bytes()[..], body].concat()
    }

    /// An agent that answers every request with its first byte in a message, and nothing else.
    fn echo(path: &Path) -> JoinHandle<()> {
        let listener = bind(path).unwrap();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    while let Ok(Some(request)) = message(&mut stream).await {
                        stream.write_all(&frame(&[100, request[4]])).await.unwrap();
                    }
                });
            }
        })
    }

    async fn ask(path: &Path, request: &[u8]) -> Option<Vec<u8>> {
        let mut stream = connect(path).await.unwrap();
        stream.write_all(request).await.unwrap();
        message(&mut stream).await.ok().flatten()
    }

    fn agents(path: &Path, raw: bool, store: &Path) -> Agents {
        let source = SshSource::Socket { path: path.to_owned(), raw };
        let local = DirectoryStore::open(store, || std::time::SystemTime::UNIX_EPOCH).unwrap();
        Agents::new(&[SshAgent { id: "a".to_owned(), source }], &local)
    }

    #[tokio::test]
    async fn only_questions_reach_the_agent() {
        // Longer than a socket's address can be.
        let place = tempfile::tempdir().unwrap();
        let deep = place.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let upstream = deep.join("upstream");
        let _echo = echo(&upstream);
        let agents = agents(&upstream, false, &deep.join("store"));
        let forwarding = agents.forward("a", READ).await.unwrap().unwrap();
        let (path, _directory) = short(&forwarding.path()).unwrap();
        assert!(path.as_os_str().len() <= SOCKET_PATH_MAX, "{}", path.display());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        for kind in 0..=255_u8 {
            let answer = ask(&path, &frame(&[kind, 1, 2, 3])).await.unwrap();
            let expected = if matches!(kind, 11 | 13) { frame(&[100, kind]) } else { FAILURE.to_vec() };
            assert_eq!(answer, expected, "{kind}");
        }
        // Lying lengths end the connection.
        assert_eq!(ask(&path, &[0, 0, 0, 0]).await, None);
        assert_eq!(ask(&path, &[255, 255, 255, 255, 11]).await, None);
        // Two requests in one packet, and one in pieces.
        let mut stream = connect(&path).await.unwrap();
        stream.write_all(&[frame(&[11]), frame(&[17])].concat()).await.unwrap();
        assert_eq!(message(&mut stream).await.unwrap().unwrap(), frame(&[100, 11]));
        assert_eq!(message(&mut stream).await.unwrap().unwrap(), FAILURE);
        for byte in frame(&[13, 9]) {
            stream.write_all(&[byte]).await.unwrap();
        }
        assert_eq!(message(&mut stream).await.unwrap().unwrap(), frame(&[100, 13]));
        let path = forwarding.path();
        assert!(path.exists());
        drop(forwarding);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn raw_sockets_get_everything_and_unknown_agents_are_none() {
        let place = tempfile::tempdir().unwrap();
        let upstream = place.path().join("upstream");
        let _echo = echo(&upstream);
        let agents = agents(&upstream, true, place.path());
        let forwarding = agents.forward("a", READ).await.unwrap().unwrap();
        assert_eq!(ask(&forwarding.path(), &frame(&[17])).await.unwrap(), frame(&[100, 17]));
        assert!(agents.forward("b", READ).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn an_agent_that_is_gone_is_named() {
        let place = tempfile::tempdir().unwrap();
        let error = agents(&place.path().join("gone"), false, place.path()).forward("a", READ).await;
        let error = error.unwrap_err();
        assert!(error.to_string().contains("gone") && error.hint().is_some(), "{error}");
    }
}
