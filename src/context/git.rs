//! Git repositories, by way of the `git` program: what a reference points to, and a checkout of it.
//!
//! The program gets an environment of its own: no configuration of the user or the machine, no prompts, no hooks, and only
//! the protocols that a repository can be named with. Secrets go to it in variables, never on a command line.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use super::git_ref::is_commit_hash;
use super::remote::shown;
use crate::hint::Hint;
use crate::registry::redact;

/// How long a question to a server may take.
const ASK_MAX: Duration = Duration::from_mins(2);

/// How long fetching or checking out may take: as long as a CI job.
const WORK_MAX: Duration = Duration::from_hours(6);

/// As much of what `git` prints is kept. A million references are 60 MB; errors are short.
const OUTPUT_BYTES_MAX: u64 = 256 << 20;

/// The last lines of its messages that an error shows.
const MESSAGE_LINES: usize = 4;

/// What may be fetched with. `file` and `ext` would let a repository reach the machine.
const PROTOCOLS: &str = "http:https:git:ssh";

/// Where references are kept in the repository that commits are fetched into.
const KEEP: &str = "refs/crossdock/keep";

/// How `git` is run.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Git {
    /// `PATH`, proxies and where certificates are; nothing else of the environment reaches the program.
    pub environment: Vec<(OsString, OsString)>,
    /// The socket of an SSH agent.
    pub agent: Option<PathBuf>,
    /// Files with keys of SSH hosts. Keys of hosts that are met for the first time are added to the first one.
    pub known_hosts: Vec<PathBuf>,
    /// A header for requests to addresses that begin so.
    pub header: Option<(String, String)>,
}

impl fmt::Debug for Git {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Git").field("agent", &self.agent).finish_non_exhaustive()
    }
}

/// Why a repository could not be had.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// There is no `git`.
    #[error("`git` could not be started")]
    Missing {
        /// The cause.
        source: io::Error,
    },
    /// It said no.
    #[error("{action} {remote} failed: {message}")]
    Failed {
        /// What was being done: `fetching from`.
        action: &'static str,
        /// The repository, without credentials.
        remote: String,
        /// What `git` said.
        message: String,
    },
    /// It took too long.
    #[error("{action} {remote} did not end within {} seconds", after.as_secs())]
    Slow {
        /// What was being done.
        action: &'static str,
        /// The repository, without credentials.
        remote: String,
        /// The limit.
        after: Duration,
    },
    /// The reference does not exist.
    #[error("the repository {remote} has no ref {reference}")]
    NoReference {
        /// The repository, without credentials.
        remote: String,
        /// The reference.
        reference: String,
    },
    /// The commit is another one.
    #[error("expected checksum to match {expected}, got {found}")]
    Checksum {
        /// What was asked for.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The directory does not exist, or is none.
    #[error("the repository {remote} has no directory {directory}")]
    NoDirectory {
        /// The repository, without credentials.
        remote: String,
        /// The directory.
        directory: String,
    },
    /// Something is missing in the name.
    #[error("{0}")]
    Name(&'static str),
    /// The machine is in the way.
    #[error("checking out {remote} failed")]
    Disk {
        /// The repository, without credentials.
        remote: String,
        /// The cause.
        source: io::Error,
    },
}

impl Hint for GitError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Missing { .. } => Some("install git (Debian, Ubuntu: `apt-get install git`)".to_owned()),
            Self::Failed { message, remote, .. } => {
                let denied = [
                    "could not read Username",
                    "Authentication failed",
                    "HTTP 403",
                    "error: 403",
                    "error: 401",
                ];
                if denied.iter().any(|part| message.contains(part)) {
                    return Some(
                        "give a token with `--secret id=GIT_AUTH_TOKEN,env=…` (or `GIT_AUTH_TOKEN.HOST`)"
                            .to_owned(),
                    );
                }
                if message.contains("Permission denied (publickey") {
                    return Some(
                        "forward an agent with a key for that host: `--ssh default` (`ssh-add -l` lists the keys)"
                            .to_owned(),
                    );
                }
                if message.contains("transport 'file' not allowed") {
                    return Some(format!("{remote} refers to files of this machine, which it may not"));
                }
                None
            }
            Self::NoReference { .. } => {
                Some("give a branch, a tag or a full commit hash: https://…/name.git#ref".to_owned())
            }
            _ => None,
        }
    }
}

/// What a reference points to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Its full name, `refs/…`; `None` if it was given as a commit.
    pub reference: Option<String>,
    /// The object: a commit, or an annotated tag.
    pub object: String,
    /// The commit that an annotated tag points to.
    pub commit: Option<String>,
}

impl Resolved {
    /// The commit, as far as it is known.
    pub fn commit(&self) -> &str {
        self.commit.as_deref().unwrap_or(&self.object)
    }
}

/// What is to be checked out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkout<'c> {
    /// The repository.
    pub remote: &'c str,
    /// The commit or tag.
    pub resolved: &'c Resolved,
    /// What it must be, if that could not be checked yet.
    pub checksum: Option<&'c str>,
    /// With submodules.
    pub submodules: bool,
    /// With `.git`.
    pub keep_git_dir: bool,
}

impl Git {
    /// Asks a repository what `reference` points to; its default branch if there is none.
    pub async fn resolve(
        &self,
        remote: &str,
        reference: Option<&str>,
        checksum: Option<&str>,
        place: &Path,
    ) -> Result<Resolved, GitError> {
        let action = "asking";
        let run = |args: Vec<&str>| {
            let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
            async move { self.run(place, remote, action, ASK_MAX, PROTOCOLS, &args).await }
        };
        let reference = match reference {
            Some(reference) => reference.to_owned(),
            None => {
                default_branch(&run(vec!["ls-remote", "--symref", "--", remote, "HEAD"]).await?).ok_or_else(
                    || GitError::NoReference { remote: shown(remote), reference: "HEAD".to_owned() },
                )?
            }
        };
        let peeled = format!("{reference}^{{}}");
        let answer = run(vec!["ls-remote", "--", remote, &reference, &peeled]).await?;
        let resolved = pick(&answer, &reference)
            .ok_or_else(|| GitError::NoReference { remote: shown(remote), reference: reference.clone() })?;
        if let Some(expected) = checksum {
            let matches = |hash: &str| hash.starts_with(expected);
            if !matches(&resolved.object) && !resolved.commit.as_deref().is_some_and(matches) {
                let found = match &resolved.commit {
                    Some(commit) => format!("{} or {commit}", resolved.object),
                    None => resolved.object.clone(),
                };
                return Err(GitError::Checksum { expected: expected.to_owned(), found });
            }
        }
        Ok(resolved)
    }

    /// Checks out into `target`, which must not exist, by way of the repository `store`, which keeps what was fetched for
    /// the next time and is made if it does not exist. Only one process may use `store` at a time.
    ///
    /// The time of the commit, in seconds since 1970.
    pub async fn check_out(&self, what: &Checkout<'_>, store: &Path, target: &Path) -> Result<i64, GitError> {
        let disk = |source| GitError::Disk { remote: shown(what.remote), source };
        if !store.join("HEAD").is_file() {
            fs_err::create_dir_all(store).map_err(disk)?;
            self.init(what, store, true).await?;
        }
        // A process that was killed leaves its lock; nobody else is here.
        for lock in ["shallow.lock", "packed-refs.lock", "config.lock", "HEAD.lock"] {
            let _ = fs_err::remove_file(store.join(lock));
        }
        let object = &what.resolved.object;
        if !self.has(store, what, object).await? {
            self.fetch(what, store).await?;
        }
        let commit =
            self.git(store, what, "reading", &["rev-parse", &format!("{object}^{{commit}}")]).await?;
        let commit = commit.trim().to_owned();
        if let Some(expected) = what.checksum
            && !object.starts_with(expected)
            && !commit.starts_with(expected)
        {
            let found = if commit == *object { commit } else { format!("{object} or {commit}") };
            return Err(GitError::Checksum { expected: expected.to_owned(), found });
        }
        let time = self.git(store, what, "reading", &["log", "-1", "--format=%ct", &commit]).await?;
        let time = time.trim().parse().unwrap_or(0);
        self.git(store, what, "reading", &["update-ref", KEEP, object]).await?;
        fs_err::create_dir(target).map_err(disk)?;
        self.work_tree(what, store, target).await?;
        Ok(time)
    }

    async fn init(&self, what: &Checkout<'_>, directory: &Path, bare: bool) -> Result<(), GitError> {
        // Without a template there are no hooks.
        let mut args = vec!["init", "--quiet", "--template=", "--initial-branch=master"];
        if bare {
            args.push("--bare");
        }
        if what.resolved.object.len() == 64 {
            args.push("--object-format=sha256");
        }
        self.git(directory, what, "preparing a repository for", &args).await?;
        self.git(directory, what, "preparing a repository for", &["remote", "add", "origin", what.remote])
            .await?;
        Ok(())
    }

    async fn has(&self, store: &Path, what: &Checkout<'_>, object: &str) -> Result<bool, GitError> {
        match self.git(store, what, "reading", &["cat-file", "-e", &format!("{object}^{{commit}}")]).await {
            Ok(_) => Ok(true),
            Err(GitError::Failed { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Fetches the object: as little as the server allows.
    async fn fetch(&self, what: &Checkout<'_>, store: &Path) -> Result<(), GitError> {
        let Resolved { reference, object, .. } = what.resolved;
        let mut ways: Vec<Vec<String>> = Vec::new();
        let words = |text: &[&str]| text.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        if let Some(reference) = reference {
            ways.push(words(&["--depth=1", "--no-tags", "--", "origin", &format!("+{reference}:{KEEP}")]));
        }
        // Only some servers give what no reference points to.
        ways.push(words(&["--depth=1", "--no-tags", "--", "origin", object]));
        let mut all = words(&["--tags", "--force"]);
        if store.join("shallow").exists() {
            all.push("--unshallow".to_owned());
        }
        all.extend(words(&["--", "origin", "+refs/heads/*:refs/crossdock/heads/*"]));
        ways.push(all);
        let mut failure = None;
        for way in ways {
            let mut args = words(&["fetch", "--quiet", "--no-write-fetch-head"]);
            args.extend(way);
            match self.run(store, what.remote, "fetching from", WORK_MAX, PROTOCOLS, &args).await {
                Ok(_) => {}
                Err(error @ GitError::Failed { .. }) => {
                    failure = failure.or(Some(error));
                    continue;
                }
                Err(error) => return Err(error),
            }
            // The branch may have moved on since it was asked for.
            if self.has(store, what, object).await? {
                return Ok(());
            }
        }
        Err(failure.unwrap_or_else(|| GitError::NoReference {
            remote: shown(what.remote),
            reference: object.clone(),
        }))
    }

    /// A repository of its own in `target`, with the files.
    async fn work_tree(&self, what: &Checkout<'_>, store: &Path, target: &Path) -> Result<(), GitError> {
        let action = "checking out";
        self.init(what, target, false).await?;
        let object = &what.resolved.object;
        // The files of a tag are there under its own name; a branch's under its own, as `git clone` would have it.
        let name = match what.resolved.reference.as_deref().filter(|_| what.keep_git_dir) {
            Some(reference) => format!("{KEEP}:{reference}"),
            None => KEEP.to_owned(),
        };
        let mut source = OsString::from("file://");
        source.push(store);
        let source = source.to_string_lossy().into_owned();
        let fetch: Vec<String> =
            ["fetch", "--quiet", "--update-head-ok", "--depth=1", "--no-tags", "--", &source, &name]
                .iter()
                .map(|word| (*word).to_owned())
                .collect();
        // Over a protocol, not by sharing files: a repository could name others' by links otherwise.
        self.run(target, what.remote, action, WORK_MAX, "file", &fetch).await?;
        self.git(target, what, action, &["checkout", "--quiet", "--force", "--detach", object]).await?;
        if what.submodules && target.join(".gitmodules").is_file() {
            let action = "fetching the submodules of";
            let update = ["submodule", "--quiet", "update", "--init", "--recursive"];
            let shallow = [&update[..], &["--depth=1"]].concat();
            if let Err(error) = self.git(target, what, action, &shallow).await {
                // Plain files behind a web server cannot be cut at a depth.
                match &error {
                    GitError::Failed { message, .. } if message.contains("shallow") => {
                        self.git(target, what, action, &update).await?;
                    }
                    _ => return Err(error),
                }
            }
        }
        let disk = |source| GitError::Disk { remote: shown(what.remote), source };
        let git_dir = target.join(".git");
        if what.keep_git_dir {
            let address = shown(what.remote);
            self.git(target, what, action, &["remote", "set-url", "origin", &address]).await?;
            self.git(target, what, action, &["reflog", "expire", "--all", "--expire=now"]).await?;
            for name in ["FETCH_HEAD", "ORIG_HEAD"] {
                match fs_err::remove_file(git_dir.join(name)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(disk(error)),
                    _ => {}
                }
            }
        } else {
            // Submodules have a file there that names a directory of this machine.
            for entry in walkdir::WalkDir::new(target).follow_links(false).min_depth(1) {
                let entry = entry.map_err(|error| disk(error.into()))?;
                if entry.file_name() == OsStr::new(".git") && entry.file_type().is_file() {
                    fs_err::remove_file(entry.path()).map_err(disk)?;
                }
            }
            fs_err::remove_dir_all(git_dir).map_err(disk)?;
        }
        Ok(())
    }

    async fn git(
        &self,
        directory: &Path,
        what: &Checkout<'_>,
        action: &'static str,
        args: &[&str],
    ) -> Result<String, GitError> {
        let args: Vec<String> = args.iter().map(|word| (*word).to_owned()).collect();
        self.run(directory, what.remote, action, WORK_MAX, PROTOCOLS, &args).await
    }

    /// Runs `git` in `directory`; what it prints.
    async fn run(
        &self,
        directory: &Path,
        remote: &str,
        action: &'static str,
        limit: Duration,
        protocols: &str,
        args: &[String],
    ) -> Result<String, GitError> {
        let mut command = Command::new("git");
        for setting in [
            // Nothing of the repository is run, and nothing is left running.
            "core.hooksPath=/dev/null",
            "core.fsmonitor=false",
            "gc.auto=0",
            "maintenance.auto=false",
            "core.autocrlf=false",
            "advice.detachedHead=false",
            "safe.directory=*",
            "submodule.recurse=false",
            // A server that sends nothing for a minute is gone.
            "http.lowSpeedLimit=1",
            "http.lowSpeedTime=60",
        ] {
            command.args(["-c", setting]);
        }
        command.args(args).current_dir(directory).env_clear();
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
            .env("LC_ALL", "C")
            .env("HOME", "/dev/null")
            .env("XDG_CONFIG_HOME", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_ATTR_NOSYSTEM", "1")
            .env("GIT_TEMPLATE_DIR", "")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_ASKPASS", "/bin/false")
            .env("SSH_ASKPASS", "/bin/false")
            .env("GIT_ALLOW_PROTOCOL", protocols)
            .env("GIT_SSH_VARIANT", "ssh")
            .env("GIT_SSH_COMMAND", self.ssh_command())
            // A directory above is no repository of ours.
            .env("GIT_CEILING_DIRECTORIES", directory.parent().unwrap_or(directory));
        if let Some(agent) = &self.agent {
            command.env("SSH_AUTH_SOCK", agent);
        }
        if let Some((scope, header)) = &self.header {
            command.env("GIT_CONFIG_COUNT", "1");
            command.env("GIT_CONFIG_KEY_0", format!("http.{scope}.extraHeader"));
            command.env("GIT_CONFIG_VALUE_0", format!("Authorization: {header}"));
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Its helpers end with it, and none of them is interrupted by what is meant for the build.
        command.process_group(0).kill_on_drop(true);
        end_with_this_process(&mut command);
        let mut child = command.spawn().map_err(|source| GitError::Missing { source })?;
        let mut group = Group(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let finished = tokio::time::timeout(limit, async {
            let (stdout, stderr, status) = tokio::join!(read_all(stdout), read_all(stderr), child.wait());
            Ok::<_, io::Error>((stdout?, stderr?, status?))
        })
        .await;
        if matches!(finished, Ok(Ok(_))) {
            // It has ended, and its number may be somebody else's by now.
            group.0 = None;
        }
        drop(group);
        let failed = |message: String| GitError::Failed { action, remote: shown(remote), message };
        match finished {
            Err(_) => Err(GitError::Slow { action, remote: shown(remote), after: limit }),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Ok(Ok((stdout, _, status))) if status.success() => {
                Ok(String::from_utf8_lossy(&stdout).into_owned())
            }
            Ok(Ok((_, stderr, status))) => {
                let message = self.message(&String::from_utf8_lossy(&stderr), remote);
                Err(failed(if message.is_empty() { status.to_string() } else { message }))
            }
        }
    }

    /// The end of what `git` says, without secrets.
    fn message(&self, text: &str, remote: &str) -> String {
        let mut text = text.replace(remote, &shown(remote));
        if let Some((_, header)) = &self.header {
            text = text.replace(header.as_str(), "***");
        }
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        redact::text(&lines[lines.len().saturating_sub(MESSAGE_LINES)..].join("; "))
    }

    fn ssh_command(&self) -> OsString {
        // Keys of new hosts are taken as they are and remembered: the program cannot ask anybody.
        let mut command =
            OsString::from("ssh -F /dev/null -o BatchMode=yes -o StrictHostKeyChecking=accept-new");
        if !self.known_hosts.is_empty() {
            // One word for the shell, several for ssh.
            let quoted: Vec<String> = self
                .known_hosts
                .iter()
                .map(|path| format!("\"{}\"", path.to_string_lossy().replace('\'', "")))
                .collect();
            command.push(format!(" -o 'UserKnownHostsFile={}'", quoted.join(" ")));
        }
        command
    }
}

/// The process group of a program, which ends at the latest when this is dropped.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Has the program killed when this process dies, whatever it dies of.
#[expect(unsafe_code, reason = "there is no other way to do something between fork and exec")]
fn end_with_this_process(command: &mut Command) {
    // SAFETY: the closure makes one system call and allocates nothing.
    unsafe {
        command.pre_exec(|| Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?));
    }
}

async fn read_all(stream: Option<impl tokio::io::AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    let Some(stream) = stream else { return Ok(data) };
    stream.take(OUTPUT_BYTES_MAX + 1).read_to_end(&mut data).await?;
    if data.len() as u64 > OUTPUT_BYTES_MAX {
        return Err(io::Error::other(format!("it prints more than {OUTPUT_BYTES_MAX} bytes")));
    }
    Ok(data)
}

/// The branch that `HEAD` stands for, in the answer of `ls-remote --symref`.
fn default_branch(answer: &str) -> Option<String> {
    let line = answer.lines().find_map(|line| line.strip_prefix("ref: "))?;
    let name = line.split_whitespace().next()?;
    name.starts_with("refs/heads/").then(|| name.to_owned())
}

/// What `reference` means in the answer of `ls-remote`: branches come before tags.
fn pick(answer: &str, reference: &str) -> Option<Resolved> {
    let without = |prefix| reference.strip_prefix(prefix).unwrap_or(reference);
    let full = format!("refs/{}", without("refs/"));
    let head = format!("refs/heads/{}", without("refs/heads/"));
    let tag = format!("refs/tags/{}", without("refs/tags/"));
    let peeled = format!("{tag}^{{}}");
    let find = |name: &str| {
        let hashes = answer.lines().filter_map(|line| line.split_once('\t'));
        hashes
            .filter(|(hash, _)| is_commit_hash(hash))
            .find(|(_, known)| *known == name)
            .map(|(hash, _)| hash)
    };
    for name in [&full, &head] {
        // A full name may be that of a tag as well.
        if let Some(hash) = find(name).filter(|_| *name != tag) {
            return Some(Resolved { reference: Some(name.clone()), object: hash.to_owned(), commit: None });
        }
    }
    let object = find(&tag)?.to_owned();
    Some(Resolved { reference: Some(tag), object, commit: find(&peeled).map(str::to_owned) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_come_before_tags() {
        let hash = |digit: char| digit.to_string().repeat(40);
        let answer = format!(
            "{}\trefs/heads/x\n{}\trefs/tags/x\n{}\trefs/tags/x^{{}}\n{}\trefs/pull/1/head\nnonsense\n",
            hash('a'),
            hash('b'),
            hash('c'),
            hash('d')
        );
        let resolved = |reference: &str, object, commit: Option<char>| {
            let (object, commit) = (hash(object), commit.map(hash));
            Some(Resolved { reference: Some(reference.to_owned()), object, commit })
        };
        assert_eq!(pick(&answer, "x"), resolved("refs/heads/x", 'a', None));
        assert_eq!(pick(&answer, "refs/tags/x"), resolved("refs/tags/x", 'b', Some('c')));
        // As in BuildKit, only a short or a full name is looked through.
        assert_eq!(pick(&answer, "tags/x"), resolved("refs/tags/x", 'b', None));
        assert_eq!(pick(&answer, "refs/pull/1/head"), resolved("refs/pull/1/head", 'd', None));
        assert_eq!(pick(&answer, "pull/1/head"), resolved("refs/pull/1/head", 'd', None));
        assert_eq!(pick(&answer, "y"), None);
        assert_eq!(pick("", "x"), None);
    }

    #[test]
    fn the_default_branch_is_what_head_refers_to() {
        let answer = "ref: refs/heads/trunk\tHEAD\n1234\tHEAD\n";
        assert_eq!(default_branch(answer).as_deref(), Some("refs/heads/trunk"));
        assert_eq!(default_branch("1234\tHEAD\n"), None);
    }

    #[test]
    fn messages_have_no_secrets() {
        let git = Git { header: Some((String::new(), "basic c2VjcmV0".to_owned())), ..Git::default() };
        let remote = "https://user:secret@e.com/a.git";
        let text = "remote: no\n\nfatal: https://user:secret@e.com/a.git: basic c2VjcmV0 denied\n";
        let message = git.message(text, remote);
        assert_eq!(message, "remote: no; fatal: https://e.com/a.git: *** denied");
    }

    #[tokio::test]
    async fn a_missing_program_is_said_to_be_missing() {
        let git = Git { environment: vec![("PATH".into(), "/nonexistent".into())], ..Git::default() };
        let place = tempfile::tempdir().unwrap();
        let error = git.resolve("https://localhost/a.git", None, None, place.path()).await.unwrap_err();
        assert!(matches!(error, GitError::Missing { .. }), "{error}");
        assert!(error.hint().unwrap().contains("install git"));
    }
}
