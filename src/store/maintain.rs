//! Looking after a directory store: what is in it, how much, removing what is not used, finding damage.
//!
//! All of it is safe while builds run. The rule of removal is: records first, then the blobs that no record
//! names. What was used lately, or after the oldest running build on this machine began, stays.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::directory::files as stored;
use super::directory::{Completeness, MARK_EVERY, scope_directory};
use super::{DirectoryStore, StoreError, Stored};
use crate::digest::Digest;
use crate::record::{Key, Record, Scope};

/// A record and what it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The record.
    pub record: Record,
    /// Its key.
    pub key: Key,
    /// When it was last used, give or take ten minutes.
    pub used: SystemTime,
    /// Bytes of the blobs that it names and that are here. Items share blobs: the sum is more than the whole.
    pub bytes: u64,
}

/// What a store holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Records.
    pub records: u64,
    /// Bytes of records and bundles.
    pub record_bytes: u64,
    /// Blobs.
    pub blobs: u64,
    /// Bytes of blobs.
    pub blob_bytes: u64,
    /// Bytes that were moved aside because they are damaged.
    pub quarantined_bytes: u64,
    /// Unpacked layers, cache mounts and other things that steps can make again.
    pub states: u64,
    /// Bytes of these.
    pub state_bytes: u64,
}

impl Usage {
    /// All bytes.
    pub fn bytes(&self) -> u64 {
        self.stored_bytes() + self.state_bytes
    }

    /// Bytes without those of unpacked layers, cache mounts and the like.
    fn stored_bytes(&self) -> u64 {
        self.record_bytes + self.blob_bytes + self.quarantined_bytes
    }
}

/// What [`prune`] removes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrunePolicy {
    /// Remove the least recently used records until blobs and records take no more than this.
    pub max_bytes: Option<u64>,
    /// Remove records that were not used for this long.
    pub max_age: Option<Duration>,
    /// Remove everything that no running build may be using.
    pub all: bool,
    /// Whatever was used in this time stays, except with `all`: it may belong to a build on another machine.
    pub grace: Duration,
}

impl Default for PrunePolicy {
    /// Removes only what no record names.
    fn default() -> Self {
        Self { max_bytes: None, max_age: None, all: false, grace: Duration::from_hours(1) }
    }
}

/// What [`prune`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PruneReport {
    /// Records removed.
    pub records: u64,
    /// Blobs removed.
    pub blobs: u64,
    /// Unpacked layers, cache mounts and the like removed.
    pub directories: u64,
    /// Bytes removed.
    pub bytes: u64,
}

/// What [`verify`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Files that were checked.
    pub checked: u64,
    /// Files whose content is wrong, relative to the store's directory.
    pub damaged: Vec<PathBuf>,
    /// Records that are sound but lack a layer. No damage: the layer may be in a remote store.
    pub incomplete: Vec<Key>,
}

/// A file below the store.
struct Found {
    path: PathBuf,
    size: u64,
    used: SystemTime,
}

/// The sound records, the most recently used first.
pub fn list(store: &DirectoryStore) -> Result<Vec<Item>, StoreError> {
    let mut items = Vec::new();
    for file in files(store, "records")? {
        let Some(record) = read(&file.path) else { continue };
        let size = |digest| fs_err::metadata(store.blob_path(&digest)).map_or(0, |metadata| metadata.len());
        let bytes = blobs_of(&record).into_iter().map(size).sum();
        items.push(Item { key: record.key(), used: file.used, bytes, record });
    }
    items.sort_by(|a, b| b.used.cmp(&a.used).then_with(|| a.key.cmp(&b.key)));
    Ok(items)
}

/// The blobs of one of the layout's folders.
pub(super) fn blobs(store: &DirectoryStore, folder: &str) -> Result<Vec<Stored<Digest>>, StoreError> {
    let found = files(store, folder)?.into_iter();
    Ok(found
        .filter_map(|file| Some(Stored { name: digest_of(&file.path)?, size: file.size, used: file.used }))
        .collect())
}

/// The records by their names alone.
pub(super) fn records(store: &DirectoryStore) -> Result<Vec<Stored<(Scope, Key)>>, StoreError> {
    let name = |path: &Path| {
        let scope = path.ancestors().nth(2)?.file_name()?.to_str()?.replace('+', "/");
        let key = format!("sha256:{}", path.file_name()?.to_str()?);
        Some((scope.parse().ok()?, Key(key.parse().ok()?)))
    };
    let found = files(store, "records")?.into_iter();
    Ok(found
        .filter_map(|file| {
            // Its mark, and not the change of its name, which a copy of the whole store has changed too.
            let used = fs_err::metadata(&file.path).and_then(|metadata| metadata.modified()).ok()?;
            Some(Stored { name: name(&file.path)?, size: file.size, used })
        })
        .collect())
}

/// How much the store holds.
pub fn usage(store: &DirectoryStore) -> Result<Usage, StoreError> {
    let mut usage = Usage::default();
    for file in files(store, "records")? {
        usage.records += 1;
        usage.record_bytes += file.size;
    }
    usage.record_bytes += files(store, "bundles")?.iter().map(|file| file.size).sum::<u64>();
    for file in files(store, "blobs")? {
        usage.blobs += 1;
        usage.blob_bytes += file.size;
    }
    usage.quarantined_bytes = files(store, "quarantine")?.iter().map(|file| file.size).sum();
    for item in state_items(store)? {
        usage.states += 1;
        usage.state_bytes += item.size;
    }
    Ok(usage)
}

/// The directories in `state/` whose children are things that can be made again, each for itself.
const DISPOSABLE: [&str; 6] = ["unpacked", "unpacked-user", "frames", "cache-mounts", "contexts", "archives"];

/// One thing in a state directory.
struct StateItem {
    path: PathBuf,
    size: u64,
    used: SystemTime,
}

/// What is in the state directories. A thing was last used when its own time says so: who uses it touches it.
fn state_items(store: &DirectoryStore) -> Result<Vec<StateItem>, StoreError> {
    let mut items = Vec::new();
    for name in DISPOSABLE {
        let directory = store.state_dir(name)?;
        let failed = || store.failed(|| format!("reading the directory {name}"));
        for entry in fs_err::read_dir(&directory).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            let Ok(metadata) = fs_err::symlink_metadata(entry.path()) else { continue };
            let size = walkdir::WalkDir::new(entry.path())
                .into_iter()
                .filter_map(Result::ok)
                .filter_map(|entry| entry.metadata().ok())
                .filter(std::fs::Metadata::is_file)
                .map(|metadata| metadata.len())
                .sum();
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            items.push(StateItem { path: entry.path(), size, used });
        }
    }
    items.sort_by_key(|item| item.used);
    Ok(items)
}

/// Removes unpacked layers, cache mounts and the like: what is too old, and the least recently used of them until they
/// and the `stored` bytes of everything else fit the budget.
fn prune_state(
    store: &DirectoryStore,
    policy: PrunePolicy,
    stored: u64,
    spare: &dyn Fn(SystemTime) -> bool,
    report: &mut PruneReport,
) -> Result<(), StoreError> {
    let now = store.now();
    let items = state_items(store)?;
    let mut total = stored + items.iter().map(|item| item.size).sum::<u64>();
    for item in items {
        let old = policy.max_age.is_some_and(|max| now.duration_since(item.used).is_ok_and(|age| age > max));
        let unwanted = policy.all || old || policy.max_bytes.is_some_and(|max| total > max);
        if !unwanted || spare(item.used) {
            continue;
        }
        // Out of the way first: half a directory must never be taken for a whole one.
        let trash = store.tmp_dir()?;
        let aside = trash.path().join("removed");
        let failed = || store.failed(|| format!("removing {}", item.path.display()));
        fs_err::rename(&item.path, &aside).map_err(failed())?;
        if aside.is_dir() {
            make_removable(&aside);
        }
        trash.close().map_err(failed())?;
        total -= item.size;
        report.directories += 1;
        report.bytes += item.size;
    }
    Ok(())
}

/// Lets an owner who is not root remove directories that forbid it.
fn make_removable(directory: &Path) {
    for entry in walkdir::WalkDir::new(directory).into_iter().filter_map(Result::ok) {
        if entry.file_type().is_dir() {
            let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o700);
            let _ = fs_err::set_permissions(entry.path(), permissions);
        }
    }
}

/// Removes what `policy` says: records, then the blobs that no remaining record names, then what is in
/// quarantine, and what steps left in state directories (unpacked layers, cache mounts).
pub fn prune(store: &DirectoryStore, policy: PrunePolicy) -> Result<PruneReport, StoreError> {
    let mut report = PruneReport::default();
    let now = store.now();
    let running = store.oldest_user().map(|start| start.checked_sub(MARK_EVERY).unwrap_or(start));
    let grace =
        if policy.all { now } else { now.checked_sub(policy.grace).unwrap_or(SystemTime::UNIX_EPOCH) };
    // Used before this moment: may go.
    let limit = running.map_or(grace, |running| running.min(grace));
    let spare = |used: SystemTime| if policy.all && running.is_none() { false } else { used >= limit };

    let blobs = files(store, "blobs")?;
    let sizes: HashMap<&Path, u64> = blobs.iter().map(|file| (file.path.as_path(), file.size)).collect();
    let mut records = files(store, "records")?;
    records.sort_by_key(|record| std::cmp::Reverse(record.used));
    // From the most recently used on: each record adds the blobs that no better one has already kept.
    let mut kept: HashSet<PathBuf> = HashSet::new();
    let mut total = 0;
    let mut full = false;
    for file in records {
        let record = read(&file.path);
        let needed: Vec<PathBuf> = record
            .iter()
            .flat_map(blobs_of)
            .map(|digest| store.blob_path(&digest))
            .filter(|path| !kept.contains(path))
            .collect();
        let size = |path: &PathBuf| sizes.get(path.as_path()).copied().unwrap_or(0);
        let cost = file.size + needed.iter().map(size).sum::<u64>();
        let age = now.duration_since(file.used).unwrap_or_default();
        full |= policy.max_bytes.is_some_and(|max| total + cost > max);
        let unwanted = full || policy.all || record.is_none() || policy.max_age.is_some_and(|max| age > max);
        if unwanted && !spare(file.used) {
            if remove(store, &file, &spare)? {
                report.records += 1;
                report.bytes += file.size;
            }
        } else {
            total += cost;
            kept.extend(needed);
        }
    }
    // Records that came while the first pass ran name blobs as well.
    for file in files(store, "records")? {
        kept.extend(read(&file.path).iter().flat_map(blobs_of).map(|digest| store.blob_path(&digest)));
    }
    for file in &blobs {
        if !kept.contains(&file.path) && !spare(file.used) && remove(store, file, &spare)? {
            report.blobs += 1;
            report.bytes += file.size;
        }
    }
    for folder in ["quarantine", "bundles"] {
        for file in files(store, folder)? {
            let old = policy.all
                || policy.max_age.is_some_and(|max| now.duration_since(file.used).is_ok_and(|age| age > max));
            if (folder == "quarantine" || old) && !spare(file.used) && remove(store, &file, &spare)? {
                report.bytes += file.size;
            }
        }
    }
    let stored = usage(store)?.stored_bytes();
    prune_state(store, policy, stored, &spare, &mut report)?;
    store.sweep_tmp();
    Ok(report)
}

/// Reads everything and checks it. With `repair`, what is damaged is moved aside, so that it can be made again.
pub fn verify(store: &DirectoryStore, repair: bool) -> Result<VerifyReport, StoreError> {
    let mut report = VerifyReport::default();
    let mut damaged = |path: &Path| {
        if repair {
            store.quarantine(path);
        }
        report.damaged.push(path.strip_prefix(store.root()).unwrap_or(path).to_owned());
    };
    for file in files(store, "blobs")? {
        report.checked += 1;
        let sound = match digest_of(&file.path) {
            Some(digest) => match store.is_sound(&digest, &file.path) {
                // Evicted since it was listed.
                Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => true,
                other => other?,
            },
            None => false,
        };
        if !sound {
            damaged(&file.path);
        }
    }
    for file in files(store, "bundles")? {
        report.checked += 1;
        let bytes = stored::read(&file.path);
        if bytes.is_ok_and(|bytes| crate::record::Bundle::decode(&bytes).is_err()) {
            damaged(&file.path);
        }
    }
    for file in files(store, "records")? {
        report.checked += 1;
        match read(&file.path) {
            Some(record) if belongs(&record, &file.path) => {
                if store.lacks(&record, Completeness::Whole).is_some() {
                    report.incomplete.push(record.key());
                }
            }
            _ if !file.path.exists() => {}
            _ => damaged(&file.path),
        }
    }
    Ok(report)
}

fn blobs_of(record: &Record) -> Vec<Digest> {
    record.blobs().chain(record.extras()).collect()
}

fn read(path: &Path) -> Option<Record> {
    Record::decode(&stored::read(path).ok()?).ok()
}

/// Whether the record is what its file's name says.
fn belongs(record: &Record, path: &Path) -> bool {
    let scope = path.ancestors().nth(2).and_then(Path::file_name);
    path.file_name().is_some_and(|name| *name == *record.key().0.hex())
        && scope.is_some_and(|scope| *scope == *scope_directory(&record.scope))
}

/// The digest that a blob's path stands for.
fn digest_of(path: &Path) -> Option<Digest> {
    let algorithm = path.ancestors().nth(2)?.file_name()?.to_str()?;
    format!("{algorithm}:{}", path.file_name()?.to_str()?).parse().ok()
}

/// Removes a file if it has not been used since it was listed; `false` if it has.
fn remove(
    store: &DirectoryStore,
    file: &Found,
    spare: &impl Fn(SystemTime) -> bool,
) -> Result<bool, StoreError> {
    let failed = || format!("removing {}", file.path.display());
    let removed = fs_err::symlink_metadata(&file.path).and_then(|metadata| {
        if spare(last_use(&metadata)) {
            return Ok(false);
        }
        fs_err::remove_file(&file.path).map(|()| true)
    });
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        other => other.map_err(store.failed(failed)),
    }
}

/// The later of the mark and the change of the file's name: a blob that was linked from a file has that file's
/// time of modification.
fn last_use(metadata: &std::fs::Metadata) -> SystemTime {
    use std::os::unix::fs::MetadataExt as _;
    let changed = u64::try_from(metadata.ctime()).unwrap_or(0);
    let nanos = u64::try_from(metadata.ctime_nsec()).unwrap_or(0);
    let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(changed) + Duration::from_nanos(nanos);
    metadata.modified().unwrap_or(changed).max(changed)
}

/// Every regular file below one of the layout's folders. What vanishes meanwhile is left out.
fn files(store: &DirectoryStore, folder: &str) -> Result<Vec<Found>, StoreError> {
    let mut found = Vec::new();
    for entry in walkdir::WalkDir::new(store.base().join(folder)) {
        let vanished = |error: &walkdir::Error| {
            error.io_error().is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
        };
        let metadata = entry.and_then(|entry| Ok((entry.metadata()?, entry)));
        match metadata {
            Ok((metadata, entry)) if metadata.is_file() => {
                found.push(Found {
                    path: entry.into_path(),
                    size: metadata.len(),
                    used: last_use(&metadata),
                });
            }
            Ok(_) => {}
            Err(error) if vanished(&error) => {}
            Err(error) => return Err(store.failed(|| format!("listing {folder}"))(error.into())),
        }
    }
    Ok(found)
}
