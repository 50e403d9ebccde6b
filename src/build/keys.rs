//! What steps are keyed on.
//!
//! A step has one key that says exactly what it reads (the *exact* key) and, where that takes looking into trees, a
//! *coarse* one before it that needs only digests of whole trees: a build in which nothing changed never loads a tree.

use super::copy::CopyError;
use super::copy::select::{self, Filter, Match, Source};
use super::options::BuildRequest;
use super::plan::{CopyOp, RemoteAdd, RunMount, RunOp, WorkdirOp};
use crate::digest::Digest;
use crate::dockerfile::{Mount, Security, Sharing};
use crate::exec::{Network, Ulimit};
use crate::layer::Timestamp;
use crate::platform::Platform;
use crate::record::{Preimage, Value};
use crate::tree::Tree;

/// The field with the names of build arguments on whose values a command is not keyed.
const UNKEYED: &str = "unkeyed";

/// What a step reads of one of its inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Read {
    /// The whole tree.
    Tree(Digest),
    /// A selection of it.
    Selection(Digest),
}

impl Read {
    fn value(self) -> (&'static str, Value) {
        match self {
            Self::Tree(digest) => ("input", digest.into()),
            Self::Selection(digest) => ("selection", digest.into()),
        }
    }
}

/// What all steps of a build have in common.
#[derive(Debug, Clone)]
pub(crate) struct Common<'c> {
    /// The platform that commands run on.
    pub(crate) platform: &'c Platform,
    /// `SOURCE_DATE_EPOCH`.
    pub(crate) epoch: Option<Timestamp>,
}

fn begin(kind: &str, common: &Common<'_>, tree: Digest) -> Preimage {
    let mut preimage = Preimage::default();
    preimage.add("kind", kind).add("platform", common.platform.to_string());
    if let Some(epoch) = common.epoch {
        preimage.add("epoch", epoch.seconds.to_string());
    }
    preimage.add("tree", tree);
    preimage
}

fn optional(text: Option<&String>) -> Value {
    text.map_or_else(|| Value::List(Vec::new()), |text| Value::Text(text.clone()))
}

/// The key of a RUN. `reads` has an entry for each mount that shows an input, in order.
pub(crate) fn run(
    common: &Common<'_>,
    tree: Digest,
    op: &RunOp,
    request: &BuildRequest,
    reads: &[Option<Read>],
) -> Preimage {
    let (extra_hosts, shm_size) = (&request.extra_hosts, request.shm_size);
    let mut preimage = begin("run", common, tree);
    let env = op.env.iter().map(|(name, value)| (name.clone(), Value::Text(value.clone()))).collect();
    preimage
        .add("command", op.args.clone())
        .add("env", Value::Map(env))
        .add("cwd", op.cwd.as_str())
        .add("user", op.user.as_str())
        .add(
            "network",
            match op.network {
                Network::Default => "default",
                Network::None => "none",
                Network::Host => "host",
            },
        );
    if let Some(hostname) = &op.hostname {
        preimage.add("hostname", hostname.as_str());
    }
    if op.security == Security::Insecure {
        preimage.add("security", "insecure");
    }
    if let Some((name, body)) = &op.script {
        preimage.add("script", Value::List(vec![name.as_str().into(), Value::Bytes(body.clone())]));
    }
    // As in BuildKit, names of hosts are part of the key and addresses are not.
    if !extra_hosts.is_empty() {
        let names: Vec<&str> = extra_hosts.iter().map(|(name, _)| name.as_str()).collect();
        preimage.add("hosts", names);
    }
    if shm_size != crate::exec::ExecStep::DEFAULT_SHM_SIZE {
        preimage.add("shm-size", shm_size);
    }
    if !request.ulimits.is_empty() {
        let limit = |limit: &Ulimit| {
            let number =
                |value: Option<u64>| value.map_or_else(|| "unlimited".to_owned(), |value| value.to_string());
            Value::Text(format!("{}={}:{}", limit.name, number(limit.soft), number(limit.hard)))
        };
        preimage.add("ulimits", Value::List(request.ulimits.iter().map(limit).collect()));
    }
    if !op.mounts.is_empty() {
        let mounts = op.mounts.iter().zip(reads).map(|(mount, read)| mount_value(mount, *read)).collect();
        preimage.add("mounts", Value::List(mounts));
    }
    preimage
}

/// A mount's part of the key: what it shows, never what a cache or a secret holds.
fn mount_value(mount: &RunMount, read: Option<Read>) -> Value {
    let mut fields: Vec<(String, Value)> = Vec::new();
    let mut add = |name: &str, value: Value| fields.push((name.to_owned(), value));
    add("target", optional(mount.target.as_ref()));
    match &mount.mount {
        Mount::Bind { source, writable, .. } => {
            add("type", "bind".into());
            add("source", source.as_str().into());
            add("writable", (*writable).into());
        }
        Mount::Cache { id, source, read_only, sharing, mode, uid, gid, .. } => {
            let number =
                |value: Option<u32>| value.map_or(Value::List(Vec::new()), |value| u64::from(value).into());
            add("type", "cache".into());
            add("id", id.as_str().into());
            add("source", source.as_str().into());
            add("read-only", (*read_only).into());
            add(
                "sharing",
                match sharing {
                    Sharing::Shared => "shared",
                    Sharing::Private => "private",
                    Sharing::Locked => "locked",
                }
                .into(),
            );
            for (name, value) in [("mode", mode), ("uid", uid), ("gid", gid)] {
                add(name, number(*value));
            }
        }
        Mount::Tmpfs { size, read_only, .. } => {
            add("type", "tmpfs".into());
            add("size", size.map_or(0, |size| size.0).into());
            add("read-only", (*read_only).into());
        }
        Mount::Secret { id, env, required, mode, uid, gid, .. } => {
            add("type", "secret".into());
            add("id", id.as_str().into());
            add("env", optional(env.as_ref()));
            add("required", (*required).into());
            for (name, value) in [("mode", mode), ("uid", uid), ("gid", gid)] {
                add(name, u64::from(*value).into());
            }
        }
        Mount::Ssh { id, required, mode, uid, gid, .. } => {
            add("type", "ssh".into());
            add("id", id.as_str().into());
            add("required", (*required).into());
            for (name, value) in [("mode", mode), ("uid", uid), ("gid", gid)] {
                add(name, u64::from(*value).into());
            }
        }
    }
    if let Some(read) = read {
        let (name, value) = read.value();
        add(name, value);
    }
    Value::Map(fields)
}

/// The key of a COPY or ADD. `remotes` has an entry for each source that is fetched: their names and contents are what
/// counts, not where they are.
pub(crate) fn copy(
    common: &Common<'_>,
    tree: Digest,
    op: &CopyOp,
    read: Option<Read>,
    remotes: &[Read],
) -> Preimage {
    let mut preimage = begin("copy", common, tree);
    preimage.add("sources", op.sources.clone()).add("destination", op.destination.as_str());
    if let Some(read) = read {
        let (name, value) = read.value();
        preimage.add(name, value);
    }
    if !remotes.is_empty() {
        let remote = |(remote, read): (&RemoteAdd, &Read)| {
            let (name, value) = read.value();
            Value::Map(vec![
                ("name".to_owned(), remote.name.as_str().into()),
                ("after".to_owned(), (remote.after as u64).into()),
                ("unpack".to_owned(), remote.unpack.into()),
                (name.to_owned(), value),
            ])
        };
        preimage.add("remotes", Value::List(op.remotes.iter().zip(remotes).map(remote).collect()));
    }
    if !op.files.is_empty() {
        let file = |(name, content): &(String, Vec<u8>)| {
            Value::List(vec![name.as_str().into(), Digest::of(content).into()])
        };
        preimage.add("files", Value::List(op.files.iter().map(file).collect()));
    }
    if let Some(owner) = &op.owner {
        preimage.add("owner", owner.as_str());
    }
    if let Some((text, _)) = &op.chmod {
        preimage.add("chmod", text.as_str());
    }
    if op.parents {
        preimage.add("parents", true);
    }
    if op.link {
        preimage.add("link", true);
    }
    if !op.exclude.is_empty() {
        preimage.add("exclude", op.exclude.clone());
    }
    if op.unpack {
        preimage.add("unpack", true);
    }
    preimage
}

/// What a command is keyed on without the build arguments `names`: their names instead of their values.
pub(crate) fn unkeyed(whole: &Preimage, names: &[String]) -> Preimage {
    let mut preimage = whole.clone();
    if names.is_empty() {
        return preimage;
    }
    for field in preimage.fields.iter_mut().filter(|field| field.name == "env") {
        if let Value::Map(env) = &mut field.value {
            env.retain(|(name, _)| !names.contains(name));
        }
    }
    preimage.add(UNKEYED, names.to_vec());
    preimage
}

/// The names that [`unkeyed`] has left out.
pub(crate) fn names_unkeyed(preimage: &Preimage) -> Vec<String> {
    let Some(Value::List(names)) = preimage.get(UNKEYED) else { return Vec::new() };
    let text = |name: &Value| match name {
        Value::Text(name) => Some(name.clone()),
        _ => None,
    };
    names.iter().filter_map(text).collect()
}

/// The key of a linked copy, whatever it is put on, from its `exact` key: its layer is made without looking at what is
/// below.
pub(crate) fn linked(op: &CopyOp, exact: &Preimage) -> Option<Preimage> {
    op.link.then(|| exact.clone().with("tree", Tree::empty().digest()))
}

/// The key of a WORKDIR.
pub(crate) fn workdir(common: &Common<'_>, tree: Digest, op: &WorkdirOp) -> Preimage {
    let mut preimage = begin("workdir", common, tree);
    preimage.add("destination", op.path.as_str()).add("user", op.user.as_str());
    preimage
}

/// The digest of what a bind mount shows: everything at and below `path`.
pub(crate) fn mounted(source: &impl Source, path: &str) -> Result<Digest, CopyError> {
    let path = super::copy::view::resolve(source, b"", path.as_bytes(), true)?;
    let all = [Match { named: Vec::new(), path: path.clone() }];
    select::digest(source, &all, &Filter::default(), |_| CopyError::NotFound {
        path: format!("/{}", super::copy::view::display(&path)),
    })
}
