//! What is fetched from elsewhere: URLs, git repositories, and tars that hold a build context.
//!
//! Each becomes a chain of one layer with a record of its own, like the result of a step. What reads it is keyed by
//! the digest of that layer's tree, so that it does not matter where and when the same content came from; and the record
//! goes to the shared cache, so that no other machine has to fetch what is known:
//!
//! - a file by its digest, where `--checksum` says it: no request is made at all then;
//! - a file by its address and what the server says tells versions apart (`ETag`, `Last-Modified`): a request is made,
//!   and its content is read only if there is no such record;
//! - a checkout by the hash of its commit: only the meaning of a branch or tag has to be asked for.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use reqwest::header::HeaderValue;
use tokio::sync::OnceCell;

use super::chain::{Chain, ChainLayer};
use super::copy::staging::{Content, Staged};
use super::copy::view::{Node, display};
use super::engine::Engine;
use super::error::BuildError;
use super::layers::{InputFiles, Layers, write_staged};
use super::options::{BuildRequest, ContextSource};
use super::ssh::{self, Access, Agents, Forwarding};
use crate::context::git::{Checkout, Git, GitError, Resolved};
use crate::context::git_ref::{GitRef, is_commit_hash};
use crate::context::hashes::HashCache;
use crate::context::http::{ATTEMPTS_MAX, Answer, Download, HttpError, Limits, Validators};
use crate::context::ignore::Ignore;
use crate::context::remote::{RemoteSource, shown};
use crate::context::scan::{Wanted, scan};
use crate::digest::Digest;
use crate::event::{Event, StepId};
use crate::hint::Hint;
use crate::layer::{EntryKind, FinishedLayer, Metadata, Timestamp};
use crate::record::{Bundle, BundleName, BundleStep, Preimage, Record, Value};
use crate::tree::Tree;

mod archive;
mod dockerfile;
mod epoch;

/// Something that is fetched.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum RemoteSpec {
    /// A file.
    Http {
        /// Its address.
        url: String,
        /// Its name in the tree.
        name: String,
        /// The digest that it must have.
        checksum: Option<Digest>,
    },
    /// A checkout.
    Git(GitRef),
}

/// The name that a file has if it is a build context.
pub(crate) const CONTEXT_FILE: &str = "context";

impl RemoteSpec {
    /// What a named context stands for: a checkout, or a directory with one file.
    pub(crate) fn of_context(source: &RemoteSource) -> Self {
        match source {
            RemoteSource::Git(git) => Self::Git(git.clone()),
            RemoteSource::Http(url) => {
                Self::Http { url: url.clone(), name: CONTEXT_FILE.to_owned(), checksum: None }
            }
        }
    }

    fn address(&self) -> String {
        match self {
            Self::Http { url, .. } => shown(url),
            Self::Git(git) => shown(&git.remote),
        }
    }
}

/// A layer that was made of what was fetched.
struct Made {
    layer: FinishedLayer,
    started: Instant,
    created: Timestamp,
}

/// What one attempt of a build fetches, each once.
pub(crate) struct Remotes<'r> {
    engine: &'r Engine,
    layers: &'r Layers,
    agents: &'r Agents,
    request: &'r BuildRequest,
    chains: Mutex<HashMap<RemoteSpec, Arc<OnceCell<Arc<Chain>>>>>,
    context: OnceCell<Option<Arc<Chain>>>,
    downloaded: AtomicU64,
}

impl<'r> Remotes<'r> {
    pub(crate) fn new(
        engine: &'r Engine,
        layers: &'r Layers,
        agents: &'r Agents,
        request: &'r BuildRequest,
    ) -> Self {
        Self {
            engine,
            layers,
            agents,
            request,
            chains: Mutex::default(),
            context: OnceCell::new(),
            downloaded: AtomicU64::new(0),
        }
    }

    /// Bytes fetched over HTTP.
    pub(crate) fn downloaded(&self) -> u64 {
        self.downloaded.load(Ordering::Relaxed)
    }

    /// The build context, if it is no directory.
    pub(crate) async fn context(&self) -> Result<Option<Arc<Chain>>, BuildError> {
        let place = |error| match error {
            BuildError::Source { address, source, hint, .. } => {
                BuildError::Source { place: "build context".to_owned(), address, source, hint }
            }
            other => other,
        };
        self.context.get_or_try_init(|| self.get_context()).await.cloned().map_err(place)
    }

    async fn get_context(&self) -> Result<Option<Arc<Chain>>, BuildError> {
        match &self.request.context {
            ContextSource::Empty | ContextSource::Directory(_) => Ok(None),
            ContextSource::Archive(archive) => self.archive_context(archive).await.map(Some),
            ContextSource::Remote(RemoteSource::Http(url)) => self.http_context(url).await.map(Some),
            ContextSource::Remote(RemoteSource::Git(git)) => {
                let keep = super::plan::argument(&self.request.build_args, "BUILDKIT_CONTEXT_KEEP_GIT_DIR");
                let keep =
                    keep.is_some_and(|value| matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True"));
                let epoch = super::plan::argument(&self.request.build_args, super::plan::EPOCH);
                let git = GitRef {
                    keep_git_dir: Some(keep || git.keep_git_dir == Some(true)),
                    commit_time: git.commit_time || epoch.is_some_and(|epoch| !epoch.is_empty()),
                    ..git.clone()
                };
                self.get(&RemoteSpec::Git(git), None).await.map(Some)
            }
        }
    }

    /// Fetches `spec`, if it is not known. `step` is told about.
    pub(crate) async fn get(
        &self,
        spec: &RemoteSpec,
        step: Option<StepId>,
    ) -> Result<Arc<Chain>, BuildError> {
        let cell = {
            let mut chains = self.chains.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(chains.entry(spec.clone()).or_default())
        };
        let fetch = async || match spec {
            RemoteSpec::Http { url, name, checksum } => self.http(spec, url, name, *checksum, step).await,
            RemoteSpec::Git(git) => self.git(spec, git, step).await,
        };
        cell.get_or_try_init(fetch).await.cloned()
    }

    fn error<E>(spec: &RemoteSpec, error: E) -> BuildError
    where
        E: Hint + std::error::Error + Send + Sync + 'static,
    {
        let hint = error.hint();
        BuildError::Source { place: String::new(), address: spec.address(), source: Box::new(error), hint }
    }

    fn refused(spec: &RemoteSpec, message: String, hint: Option<String>) -> BuildError {
        BuildError::Source { place: String::new(), address: spec.address(), source: message.into(), hint }
    }

    fn status(&self, step: Option<StepId>, status: String) {
        self.engine.events.emit(match step {
            Some(step) => Event::StepStatus { step, status },
            None => Event::Fetching { what: status, bytes: None },
        });
    }

    async fn http(
        &self,
        spec: &RemoteSpec,
        url: &str,
        name: &str,
        checksum: Option<Digest>,
        step: Option<StepId>,
    ) -> Result<Arc<Chain>, BuildError> {
        if let Some(content) = checksum
            && let Some(record) = self.look_up(&file_key(name, content)).await
        {
            return Ok(chain_of(&record));
        }
        let bundle_name = BundleName(address_key("http-source", url, name).key().0);
        let lock = format!("http-{}", bundle_name.0.hex());
        let _lock = self.lock(&lock).await?;
        let known = self.known_version(&bundle_name, url, name).await;
        let authorization = self.authorization(spec, url)?;
        let download = Download {
            address: url,
            authorization,
            known: known.as_ref().map(|(validators, _)| validators),
            limits: Limits::default(),
        };
        let failed = |error: HttpError| Self::error(spec, error);
        let directory = self.engine.cache.local().tmp_dir();
        let directory =
            directory.map_err(|error| BuildError::cache("making a temporary directory", error))?;
        let path = directory.path().join("file");
        let (started, created) = (Instant::now(), self.engine.now());
        self.status(step, format!("asking for {}", shown(url)));
        let mut attempt = 1;
        let (validators, content, size) = loop {
            let found = match (download.ask(&self.engine.registry).await.map_err(failed)?, &known) {
                (Answer::Found(found), _) => found,
                (Answer::Unchanged, Some((_, record))) => {
                    return self.checked(spec, record, checksum).await;
                }
                (Answer::Unchanged, None) => {
                    let message = "the server says that nothing changed, unasked".to_owned();
                    return Err(Self::refused(spec, message, None));
                }
            };
            let validators = found.validators.clone();
            if validators.tell_versions_apart()
                && let Some(record) = self.look_up(&version_key(url, name, &validators)).await
            {
                self.remember(&bundle_name, &record).await;
                return self.checked(spec, &record, checksum).await;
            }
            let progress = |current, total| {
                let what = shown(url);
                self.engine.events.emit(match step {
                    Some(step) => Event::StepProgress { step, what, current, total },
                    None => Event::Fetching { what, bytes: Some((current, total)) },
                });
            };
            match found.save(&path, &progress).await {
                Ok((content, size)) => break (validators, content, size),
                Err(error) if error.is_transient() && attempt < ATTEMPTS_MAX => attempt += 1,
                Err(error) => return Err(failed(error)),
            }
        };
        self.downloaded.fetch_add(size, Ordering::Relaxed);
        check_content(spec, content, checksum)?;
        let mtime = validators.modified().unwrap_or_default();
        let metadata = Metadata { mode: 0o600, mtime, ..Metadata::default() };
        let file = Staged {
            node: Node { metadata, kind: EntryKind::File { size, content, offset: 0 } },
            content: if size > 0 { Content::Spooled { file: path, offset: 0 } } else { Content::None },
        };
        let entries = vec![(name.as_bytes().to_vec(), file)];
        let engine = self.engine.clone();
        let layer = self.engine.blocking(move || write_staged(&engine, &entries, &[])).await?;
        let made = Made { layer, started, created };
        if validators.tell_versions_apart() {
            let record = self.publish(version_key(url, name, &validators), &made, true).await?;
            self.remember(&bundle_name, &record).await;
        }
        let record = self.publish(file_key(name, content), &made, true).await?;
        drop(directory);
        Ok(chain_of(&record))
    }

    /// The version of a file that was fetched last, if it is still here.
    async fn known_version(
        &self,
        bundle: &BundleName,
        url: &str,
        name: &str,
    ) -> Option<(Validators, Record)> {
        let bundle = self.engine.cache.bundle(bundle).await?;
        let preimage = &bundle.steps.first()?.record.preimage;
        let text = |name: &str| match preimage.get(name) {
            Some(Value::Text(text)) => Some(text.clone()),
            _ => None,
        };
        // It would not have been remembered if it were of no use.
        let validators =
            Validators { etag: text("etag"), last_modified: text("last-modified"), is_recent: false };
        if !validators.tell_versions_apart() {
            return None;
        }
        // The bundle is a hint; what counts is the record.
        let record = self.look_up(&version_key(url, name, &validators)).await?;
        Some((validators, record))
    }

    /// Remembers which version of a file is the newest. Only a convenience.
    async fn remember(&self, bundle: &BundleName, record: &Record) {
        let steps = vec![BundleStep { slot: "http".to_owned(), record: record.clone() }];
        let _ = self.engine.cache.publish_bundle(bundle, Bundle { steps }).await;
    }

    /// The chain of a file that is known, if it is the right one.
    async fn checked(
        &self,
        spec: &RemoteSpec,
        record: &Record,
        checksum: Option<Digest>,
    ) -> Result<Arc<Chain>, BuildError> {
        let chain = chain_of(record);
        if checksum.is_some() {
            let tree = self.layers.tree(self.engine, &chain).await?;
            let RemoteSpec::Http { name, .. } = spec else { return Ok(chain) };
            let content = tree.get(name.as_bytes()).and_then(|node| node.content().copied());
            check_content(spec, content.unwrap_or_else(|| Digest::of("")), checksum)?;
        }
        Ok(chain)
    }

    /// `Authorization` for an address, from the secrets of the build.
    fn authorization(&self, spec: &RemoteSpec, url: &str) -> Result<Option<HeaderValue>, BuildError> {
        let Ok(parsed) = url::Url::parse(url) else { return Ok(None) };
        let host = parsed.host_str().unwrap_or_default();
        let value = match (
            self.secret(&format!("HTTP_AUTH_TOKEN_{host}")),
            self.secret(&format!("HTTP_AUTH_HEADER_{host}")),
        ) {
            (Some(token), _) => [b"Bearer ", token].concat(),
            (None, Some(header)) => header.to_vec(),
            (None, None) => return Ok(None),
        };
        let mut value = HeaderValue::from_bytes(&value).map_err(|_| {
            Self::refused(spec, format!("the secret for {host} cannot be sent in an HTTP header"), None)
        })?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    /// A secret, without the line end that files have.
    fn secret(&self, id: &str) -> Option<&'r [u8]> {
        let secret = self.request.secrets.iter().find(|secret| secret.id == id)?;
        Some(secret.value.trim_ascii_end())
    }

    async fn git(
        &self,
        spec: &RemoteSpec,
        git: &GitRef,
        step: Option<StepId>,
    ) -> Result<Arc<Chain>, BuildError> {
        let failed = |error: GitError| Self::error(spec, error);
        let store = |error| BuildError::cache("opening the local cache", error);
        let local = self.engine.cache.local();
        let root = local.state_dir("git").map_err(store)?;
        let directory = local.tmp_dir().map_err(store)?;
        let checksum = git.checksum.as_deref();
        let resolved = match (git.reference.as_deref(), checksum) {
            (Some(commit), checksum) if is_commit_hash(commit) => {
                if let Some(expected) = checksum.filter(|expected| !commit.starts_with(expected)) {
                    let (expected, found) = (expected.to_owned(), commit.to_owned());
                    return Err(failed(GitError::Checksum { expected, found }));
                }
                Resolved { reference: None, object: commit.to_owned(), commit: None }
            }
            (reference, Some(commit)) if git.fetch_by_commit => {
                if !is_commit_hash(commit) {
                    let message = "fetch-by-commit requires a full commit hash as the checksum";
                    return Err(failed(GitError::Name(message)));
                }
                let full = |name: &str| {
                    if name.starts_with("refs/") { name.to_owned() } else { format!("refs/heads/{name}") }
                };
                let reference = reference.map(full).filter(|_| git.keep_git_dir == Some(true));
                Resolved { reference, object: commit.to_owned(), commit: None }
            }
            (_, None) if git.fetch_by_commit => {
                let message = "fetch-by-commit requires a checksum, or a commit hash as the ref";
                return Err(failed(GitError::Name(message)));
            }
            (reference, checksum) => {
                self.status(step, format!("asking {}", spec.address()));
                let (tool, _agent) = self.git_tool(spec, git, &root).await?;
                let asked = tool.resolve(&git.remote, reference, checksum, directory.path()).await;
                asked.map_err(failed)?
            }
        };
        let keep_git_dir = git.keep_git_dir == Some(true) && git.subdir.is_empty();
        let key = checkout_key(git, &resolved, keep_git_dir);
        if let Some(record) = self.look_up(&key).await {
            return Ok(chain_of(&record));
        }
        let name = Digest::of(format!("{}\n{}", git.remote, resolved.object.len())).hex();
        let _lock = self.lock(&format!("git-{name}")).await?;
        if let Some(record) = self.look_up(&key).await {
            return Ok(chain_of(&record));
        }
        let (started, created) = (Instant::now(), self.engine.now());
        self.status(step, format!("fetching {} of {}", &resolved.commit()[..12], spec.address()));
        let (tool, _agent) = self.git_tool(spec, git, &root).await?;
        let checkout = Checkout {
            remote: &git.remote,
            resolved: &resolved,
            checksum,
            submodules: git.submodules != Some(false),
            keep_git_dir,
        };
        let (repository, target) = (root.join(name), directory.path().join("tree"));
        let mut time = tool.check_out(&checkout, &repository, &target).await;
        if matches!(&time, Err(GitError::Failed { .. })) && repository.is_dir() {
            // Whatever became of what was kept: it is a cache.
            let gone = fs_err::remove_dir_all(&repository).and_then(|()| remove_if_there(&target));
            gone.map_err(|error| BuildError::cache("removing a damaged repository", error))?;
            time = tool.check_out(&checkout, &repository, &target).await;
        }
        let time = time.map_err(failed)?;
        local.touch_state(&repository);
        let root = directory_in(&target, &git.subdir).ok_or_else(|| {
            failed(GitError::NoDirectory { remote: spec.address(), directory: git.subdir.clone() })
        })?;
        let mtime = git.commit_time.then_some(Timestamp { seconds: time, nanos: 0 });
        let engine = self.engine.clone();
        let layer = self.engine.blocking(move || tree_layer(&engine, &root, mtime)).await?;
        drop(directory);
        let record = self.publish(key, &Made { layer, started, created }, true).await?;
        Ok(chain_of(&record))
    }

    /// `git` with what it needs for a repository, and what must live as long as it runs.
    async fn git_tool(
        &self,
        spec: &RemoteSpec,
        git: &GitRef,
        root: &Path,
    ) -> Result<(Git, Option<(Forwarding, Option<fs_err::File>)>), BuildError> {
        let mut tool = self.engine.git.clone();
        tool.known_hosts.insert(0, root.join("known_hosts"));
        if git.is_ssh() {
            let access = Access { mode: 0o600, owner: None };
            let agent = self.agents.forward("default", access).await;
            let agent = agent.map_err(|error| Self::error(spec, error))?;
            let Some(agent) = agent else {
                let message = "no SSH key `default` is forwarded, and the repository is reached by SSH";
                let hint = "forward an agent with `--ssh default`".to_owned();
                return Err(Self::refused(spec, message.to_owned(), Some(hint)));
            };
            let path = ssh::short(&agent.path());
            let (path, directory) =
                path.map_err(|error| BuildError::cache("forwarding an SSH agent to git", error))?;
            tool.agent = Some(path);
            return Ok((tool, Some((agent, directory))));
        }
        tool.header = self.git_header(git);
        Ok((tool, None))
    }

    /// The header that authenticates requests for a repository, and what addresses it is for.
    fn git_header(&self, git: &GitRef) -> Option<(String, String)> {
        use base64::Engine as _;
        let url = url::Url::parse(&git.remote).ok()?;
        let host = match (url.host_str()?, url.port()) {
            (host, Some(port)) => format!("{host}:{port}"),
            (host, None) => host.to_owned(),
        };
        // As actions/checkout does it: a token for GitHub is good for submodules there.
        let github = ["https://github.com/", "https://www.github.com/"];
        let scope = github.iter().find(|prefix| git.remote.starts_with(*prefix));
        let scope = scope.map_or_else(|| git.remote.clone(), |prefix| (*prefix).to_owned());
        let names = [
            ("GIT_AUTH_HEADER", format!(".{host}")),
            ("GIT_AUTH_TOKEN", format!(".{host}")),
            ("GIT_AUTH_HEADER", String::new()),
            ("GIT_AUTH_TOKEN", String::new()),
        ];
        let (name, value) =
            names.iter().find_map(|(name, host)| Some((*name, self.secret(&format!("{name}{host}"))?)))?;
        let header = if name == "GIT_AUTH_TOKEN" {
            let pair = [b"x-access-token:", value].concat();
            format!("basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
        } else {
            String::from_utf8_lossy(value).into_owned()
        };
        Some((scope, header))
    }

    async fn look_up(&self, preimage: &Preimage) -> Option<Record> {
        let record = self.engine.cache.lookup(&preimage.key()).await?.record;
        (record.layers.len() == 1).then_some(record)
    }

    async fn lock(&self, name: &str) -> Result<crate::store::Lock, BuildError> {
        let lock = self.engine.cache.local().lock(name).await;
        lock.map_err(|error| BuildError::cache("locking a source", error))
    }

    /// Stores a layer under a key; in the shared cache too if it is `shared`.
    async fn publish(&self, key: Preimage, made: &Made, shared: bool) -> Result<Record, BuildError> {
        let mut tree = Tree::empty();
        let failed = |error| BuildError::cache("merging a new layer", error);
        tree.apply(0, &made.layer.toc).map_err(failed)?;
        let descriptor = made.layer.descriptor();
        let is_lost = self.engine.cache.is_lost(&key.key());
        let record = self.engine.record(key, vec![descriptor], tree.digest(), made.created, made.started);
        let published = if shared || is_lost {
            self.engine.cache.publish(record, is_lost).await
        } else {
            crate::store::Store::write_record(self.engine.cache.local(), &record).await
        };
        published.map_err(|error| BuildError::cache("storing what was fetched", error))
    }
}

/// The chain that consists of a record's layer.
fn chain_of(record: &Record) -> Arc<Chain> {
    let mut chain = Chain::empty();
    for descriptor in &record.layers {
        let (created, key) = (Some(record.created), Some(record.key()));
        chain =
            chain.with(ChainLayer { descriptor: *descriptor, created, key, is_copied: true }, record.tree);
    }
    chain
}

/// A file by its content.
fn file_key(name: &str, content: Digest) -> Preimage {
    let mut preimage = Preimage::default();
    preimage.add("kind", "http-file").add("name", name).add("content", content);
    preimage
}

/// What belongs to an address. The whole of it may hold a secret; its digest does not.
fn address_key(kind: &str, url: &str, name: &str) -> Preimage {
    let mut preimage = Preimage::default();
    preimage.add("kind", kind).add("address", shown(url)).add("url", Digest::of(url)).add("name", name);
    preimage
}

/// A version of the file at an address.
fn version_key(url: &str, name: &str, validators: &Validators) -> Preimage {
    let mut preimage = address_key("http", url, name);
    for (name, value) in
        [("etag", validators.strong_etag()), ("last-modified", validators.last_modified.as_deref())]
    {
        if let Some(value) = value {
            preimage.add(name, value);
        }
    }
    preimage
}

/// A checkout.
fn checkout_key(git: &GitRef, resolved: &Resolved, keep_git_dir: bool) -> Preimage {
    let mut preimage = Preimage::default();
    let commit = if keep_git_dir { &resolved.object } else { resolved.commit() };
    preimage.add("kind", "git").add("commit", commit).add("submodules", git.submodules != Some(false));
    if !git.subdir.is_empty() {
        preimage.add("subdir", git.subdir.as_str());
    }
    if git.commit_time {
        preimage.add("commit-time", true);
    }
    if keep_git_dir {
        // All of them are in `.git`.
        preimage
            .add("remote", shown(&git.remote))
            .add("ref", resolved.reference.clone().unwrap_or_default())
            .add("keep-git-dir", true);
    }
    preimage
}

fn check_content(spec: &RemoteSpec, found: Digest, expected: Option<Digest>) -> Result<(), BuildError> {
    match expected {
        Some(expected) if expected != found => {
            let message = format!("digest mismatch: {found} (expected: {expected})");
            let hint = "if the file was meant to change, give its new digest with --checksum";
            Err(Remotes::refused(spec, message, Some(hint.to_owned())))
        }
        _ => Ok(()),
    }
}

fn remove_if_there(path: &Path) -> std::io::Result<()> {
    match fs_err::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The directory `path` below `root`, if there is nothing but directories on the way.
fn directory_in(root: &Path, path: &str) -> Option<std::path::PathBuf> {
    let mut here = root.to_owned();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        here.push(part);
        if part == ".." || !fs_err::symlink_metadata(&here).is_ok_and(|metadata| metadata.is_dir()) {
            return None;
        }
    }
    Some(here)
}

/// Writes the files below `root` as a layer: they belong to root, and have the modes that git knows.
fn tree_layer(engine: &Engine, root: &Path, mtime: Option<Timestamp>) -> Result<FinishedLayer, BuildError> {
    let failed = "reading a checkout";
    let (mut hashes, stop) = (HashCache::default(), || engine.cancel.is_cancelled());
    let found = scan(root, &Ignore::default(), &Wanted::Everything, &mut hashes, engine.now(), &stop)
        .map_err(|error| BuildError::cache(failed, error))?;
    let mut entries = Vec::with_capacity(found.len() + 1);
    // A directory that the checkout is copied to takes the time of its root.
    let newest = found.iter().map(|entry| entry.metadata.mtime).max().unwrap_or_default();
    let root_mtime = mtime.unwrap_or(Timestamp { nanos: 0, ..newest });
    let metadata = Metadata { mode: 0o755, mtime: root_mtime, ..Metadata::default() };
    let kind = EntryKind::Directory { opaque: false, implied: false };
    entries.push((Vec::new(), Staged { node: Node { metadata, kind }, content: Content::None }));
    for entry in found {
        if super::copy::view::base_name(&entry.path).starts_with(b".wh.") {
            let error = super::copy::CopyError::Reserved { path: display(&entry.path) };
            return Err(BuildError::cache(failed, error));
        }
        let mode = match entry.kind {
            EntryKind::Directory { .. } => 0o755,
            EntryKind::Symlink { .. } => 0o777,
            _ if entry.metadata.mode & 0o100 != 0 => 0o755,
            _ if entry.metadata.mode & 0o200 == 0 => 0o444,
            _ => 0o644,
        };
        let mtime = mtime.unwrap_or(Timestamp { nanos: 0, ..entry.metadata.mtime });
        let content = match entry.kind {
            EntryKind::File { size, .. } if size > 0 => {
                Content::Source { origin: 0, path: entry.path.clone() }
            }
            _ => Content::None,
        };
        let metadata = Metadata { mode, mtime, ..Metadata::default() };
        entries.push((entry.path, Staged { node: Node { metadata, kind: entry.kind }, content }));
    }
    write_staged(engine, &entries, &[&InputFiles::Directory(root.to_owned())])
}
