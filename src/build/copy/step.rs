//! The COPY, ADD and WORKDIR steps: from an operation and trees to the entries of a layer.

use std::path::Path;

use super::archive;
use super::copier::{self, Rules};
use super::select::{self, Filter, Match, Source};
use super::staging::{Content, Staged, Staging};
use super::view::{View, base_name, clean, display, join};
use super::{CopyError, Opener};
use crate::build::plan::{CopyOp, WorkdirOp};
use crate::context::ignore::Ignore;
use crate::context::pattern::has_wildcard;
use crate::layer::{EntryKind, Metadata, Timestamp};

/// One source pattern, resolved.
pub(crate) struct Selected {
    pub(crate) matches: Vec<Match>,
    pub(crate) filter: Filter,
}

/// Finds what an operation copies from `source`.
pub(crate) fn select(source: &impl Source, op: &CopyOp) -> Result<Vec<Selected>, CopyError> {
    op.sources.iter().map(|pattern| select_one(source, op, pattern)).collect()
}

fn patterns(items: &[String]) -> Result<Option<Ignore>, CopyError> {
    if items.is_empty() {
        return Ok(None);
    }
    let ignore = Ignore::from_patterns("the pattern", items.iter().map(String::as_str))
        .map_err(|error| CopyError::BadPattern { pattern: format!("{} ({error})", items.join(" ")) })?;
    Ok(Some(ignore))
}

fn select_one(source: &impl Source, op: &CopyOp, pattern: &str) -> Result<Selected, CopyError> {
    let exclude = patterns(&op.exclude)?;
    if !op.parents {
        let matches = select::matches(source, pattern.as_bytes())?;
        // Without wildcards a source must exist.
        for item in &matches {
            if select::lookup(source, &item.path).is_none() {
                return Err(CopyError::NotFound { path: pattern.to_owned() });
            }
        }
        return Ok(Selected { matches, filter: Filter { include: None, exclude } });
    }
    // With --parents the pattern becomes a filter on everything below the pivot (`/./`), or below the root.
    let (pivot, rest) = pattern.split_once("/./").unwrap_or(("", pattern));
    let rest = clean(rest.as_bytes());
    let pivot = clean(pivot.as_bytes());
    if !has_wildcard(&pivot) && !has_wildcard(&rest) {
        // No link on the way is followed, and there must be something below the pivot.
        if rest.is_empty() || source.lookup(&join(&pivot, &rest)).is_none() {
            return Err(CopyError::NotFound { path: pattern.to_owned() });
        }
    }
    let include = if rest.is_empty() { None } else { patterns(&[display(&rest)])? };
    let mut matches = select::matches(source, &pivot)?;
    // Below a file there is nothing that the pattern could match.
    matches.retain(|item| select::lookup(source, &item.path).is_some_and(|node| node.is_directory()));
    Ok(Selected { matches, filter: Filter { include, exclude } })
}

/// The digest of what is selected.
pub(crate) fn digest(
    source: &impl Source,
    selected: &[Selected],
) -> Result<crate::digest::Digest, CopyError> {
    let mut encoder = crate::encoding::Encoder::new();
    for one in selected {
        let digest = select::digest(source, &one.matches, &one.filter, |path| CopyError::NotFound {
            path: display(path),
        })?;
        encoder.digest(&digest);
    }
    Ok(crate::digest::Digest::of(encoder.finish()))
}

/// The digest of what a source that was fetched gives to an ADD.
pub(crate) fn remote_digest(
    source: &impl Source,
    op: &CopyOp,
    name: &str,
) -> Result<crate::digest::Digest, CopyError> {
    digest(source, &[select_remote(op, name)?])
}

/// All of what was fetched, or the file `name` in it, which is no pattern.
fn select_remote(op: &CopyOp, name: &str) -> Result<Selected, CopyError> {
    let named = name.as_bytes().to_vec();
    let matches = vec![Match { path: named.clone(), named }];
    Ok(Selected { matches, filter: Filter { include: None, exclude: patterns(&op.exclude)? } })
}

/// A tree to copy from, and its files.
pub(crate) type From<'f, S> = (&'f S, &'f dyn Opener);

/// Works out what a COPY or ADD adds to `tree`. `remotes` are the sources that were fetched, in their order. Archives are
/// unpacked by way of the directory `spool`.
pub(crate) fn copy<S: Source>(
    tree: &impl View,
    source: Option<From<'_, S>>,
    remotes: &[From<'_, S>],
    op: &CopyOp,
    rules: &Rules,
    spool: &Path,
) -> Result<Vec<(Vec<u8>, Staged)>, CopyError> {
    let mut staging = Staging::new(tree);
    let destination = op.destination.as_bytes();
    let mut one = |from: From<'_, S>, origin: usize, selected: &Selected, unpack: bool| {
        for item in &selected.matches {
            if unpack && archive::unpack(&mut staging, from, item, destination, rules, spool)? {
                continue;
            }
            let resolved = copier::prepare(&mut staging, destination, rules)?;
            let filter = &selected.filter;
            copier::copy(&mut staging, (from.0, origin), item, &resolved, filter, rules)?;
        }
        Ok::<_, CopyError>(())
    };
    let mut pending = op.remotes.iter().zip(remotes).enumerate().peekable();
    for number in 0..=op.sources.len() {
        while let Some((at, (remote, from))) = pending.next_if(|(_, (remote, _))| remote.after <= number) {
            one(*from, at + 1, &select_remote(op, &remote.name)?, remote.unpack)?;
        }
        if let (Some(from), Some(pattern)) = (source, op.sources.get(number)) {
            one(from, 0, &select_one(from.0, op, pattern)?, op.unpack)?;
        }
    }
    for (name, content) in &op.files {
        let mut resolved = copier::prepare(&mut staging, destination, rules)?;
        if select::lookup(&staging, &resolved).is_some_and(|node| node.is_directory()) {
            resolved = join(&resolved, base_name(name.as_bytes()));
            if select::lookup(&staging, &resolved).is_some_and(|node| node.is_directory()) {
                return Err(CopyError::IsADirectory { path: display(&resolved) });
            }
        }
        let metadata = Metadata { mode: 0o644, mtime: rules.now, ..Metadata::default() };
        let mut staged = Staged::file(metadata, content.clone());
        staged.node.metadata = rules.apply(&staged.node);
        staging.add(resolved, staged);
    }
    let entries = staging.finish();
    match entries.iter().find(|(path, _)| base_name(path).starts_with(b".wh.")) {
        Some((path, _)) => Err(CopyError::Reserved { path: display(path) }),
        None => Ok(entries),
    }
}

/// Works out what a WORKDIR adds to `tree`: the directory and its missing parents, owned by `owner`, else
/// by root.
pub(crate) fn workdir(
    tree: &impl View,
    op: &WorkdirOp,
    owner: Option<(u32, u32)>,
    now: Timestamp,
) -> Result<Vec<(Vec<u8>, Staged)>, CopyError> {
    let mut staging = Staging::new(tree);
    let rules = Rules { owner, chmod: None, now, epoch: None };
    staging.make_directories(op.path.as_bytes(), rules.new_directory())?;
    Ok(staging.finish())
}

/// The reader for the content of a staged entry. `openers` are those of the step's sources: of the files first, then of
/// what was fetched.
pub(crate) fn open_content(
    staged: &Staged,
    openers: &[&dyn Opener],
) -> Result<Box<dyn std::io::Read + Send>, CopyError> {
    use std::io::{Cursor, Read, Seek, SeekFrom};
    let missing = |path| Err(CopyError::NotFound { path: display(path) });
    let size = match staged.node.kind {
        EntryKind::File { size, .. } => size,
        _ => 0,
    };
    Ok(match &staged.content {
        Content::None => Box::new(std::io::empty()),
        Content::Bytes(bytes) => Box::new(Cursor::new(bytes.clone())),
        Content::Source { origin, path } => match openers.get(*origin) {
            Some(opener) => opener.open(path)?,
            None => return missing(path),
        },
        // Whoever works off a step makes a source of it, if there is any.
        Content::Base { path } => return missing(path),
        Content::Spooled { file, offset } => {
            let open = || {
                let mut spool = fs_err::File::open(file)?;
                spool.seek(SeekFrom::Start(*offset))?;
                Ok(spool.take(size))
            };
            let failed = |source| CopyError::Io { path: file.display().to_string(), source };
            Box::new(open().map_err(failed)?)
        }
    })
}
