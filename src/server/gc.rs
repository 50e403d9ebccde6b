//! Removing what is not needed, while everything goes on.
//!
//! What counts is a record: the least recently used go first, when a tenant has more than its quota, or all of them more
//! than the budget. Then go the blobs that nothing names any more: no record, and no repository of the registry, whose
//! content only its users remove.
//!
//! Nobody is stopped for it. A client may be told that a blob is there just before the blob goes, and name it in a record
//! or a manifest just after; therefore blobs go to the trash first. What turns out to be named is restored, at once or in
//! the next pass; what nobody has missed for a while is removed for good. Meanwhile such a record is a miss.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::{StreamExt as _, TryStreamExt as _};
use serde::Serialize;
use serde_json::json;

use super::Server;
use super::identity::Tenant;
use super::oci;
use super::storage::Storage;
use super::visible;
use crate::digest::Digest;
use crate::record::{Key, Scope};
use crate::store::{Backend, DocumentName, Expected, OpenError, StoreError};

/// Records read at a time.
const READS: usize = 32;

/// A lease lasts a minute at most; its document is removed when it is older than this.
const LEASE_KEPT: Duration = Duration::from_hours(1);

/// Who has sent a blob names it in a record at the end of a step, or of nothing.
const SENT_KEPT: Duration = Duration::from_hours(24);

/// Without an age for everything, what was mirrored goes when nobody has asked for it for so long.
const MIRRORED: Duration = Duration::from_hours(30 * 24);

/// What stays and what goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GcPolicy {
    /// Bytes of all tenants together.
    pub max_bytes: Option<u64>,
    /// Bytes of each tenant.
    pub tenant_max_bytes: Option<u64>,
    /// Bytes of single tenants.
    pub tenants: BTreeMap<Tenant, u64>,
    /// Records that were not used for this long go.
    pub max_age: Option<Duration>,
    /// What was written or used in this time stays in any case: an upload's record may come only at its end.
    pub grace: Duration,
    /// How long a blob is in the trash.
    pub trash: Duration,
    /// Names below which repositories are mirrors of others: what was not used there for long goes.
    pub mirrors: Vec<String>,
    /// How often a server does it; never if it is zero.
    pub interval: Duration,
}

impl Default for GcPolicy {
    /// Removes only what nothing names.
    fn default() -> Self {
        Self {
            max_bytes: None,
            tenant_max_bytes: None,
            tenants: BTreeMap::new(),
            max_age: None,
            grace: Duration::from_hours(2),
            trash: Duration::from_mins(30),
            mirrors: Vec::new(),
            interval: Duration::from_mins(15),
        }
    }
}

/// What a pass did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct GcReport {
    /// Records removed.
    pub records: u64,
    /// Blobs that went to the trash.
    pub discarded_blobs: u64,
    /// Their bytes.
    pub discarded_bytes: u64,
    /// Blobs that were taken out of it again.
    pub restored_blobs: u64,
    /// Blobs that were removed for good.
    pub destroyed_blobs: u64,
    /// Their bytes.
    pub destroyed_bytes: u64,
    /// Bytes beyond quota or budget that could not be removed: what is too new, and images.
    pub excess_bytes: u64,
}

/// How much a tenant has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TenantUsage {
    /// The tenant.
    #[serde(serialize_with = "as_text")]
    pub tenant: Tenant,
    /// Records.
    pub records: u64,
    /// Bytes of records.
    pub record_bytes: u64,
    /// Blobs.
    pub blobs: u64,
    /// Bytes of blobs.
    pub blob_bytes: u64,
    /// Bytes of blobs that repositories of the registry have.
    pub image_bytes: u64,
    /// Bytes in the trash.
    pub trash_bytes: u64,
}

fn as_text<S: serde::Serializer>(tenant: &Tenant, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(tenant.as_str())
}

/// Why storage could not be looked after.
#[derive(Debug, thiserror::Error)]
pub enum GcError {
    /// It could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

struct RecordItem {
    scope: Scope,
    key: Key,
    size: u64,
    used: SystemTime,
    blobs: Vec<Digest>,
}

struct BlobItem {
    size: u64,
    used: SystemTime,
    /// Records that name it and stay.
    names: u32,
    /// A repository has it.
    is_image: bool,
}

/// What a tenant has, as it was when it was looked at.
struct Inventory {
    tenant: Tenant,
    backend: Arc<dyn Backend>,
    records: Vec<RecordItem>,
    blobs: HashMap<Digest, BlobItem>,
    /// Of what stays.
    bytes: u64,
    /// Which records go.
    evicted: HashSet<usize>,
}

impl Inventory {
    async fn take(tenant: Tenant, backend: Arc<dyn Backend>) -> Result<Self, StoreError> {
        let listed = backend.list_records().await?;
        let found = futures_util::stream::iter(listed).map(async |stored| {
            let (scope, key) = stored.name;
            let record = backend.peek_record(&scope, &key).await?;
            let blobs =
                record.map(|record| record.blobs().chain(record.extras()).collect()).unwrap_or_default();
            Ok::<_, StoreError>(RecordItem { scope, key, size: stored.size, used: stored.used, blobs })
        });
        let mut records: Vec<RecordItem> = found.buffer_unordered(READS).try_collect().await?;
        records.sort_by_key(|record| record.used);
        let images = oci::content(&*backend).await?;
        let mut blobs: HashMap<Digest, BlobItem> = backend
            .list_blobs()
            .await?
            .into_iter()
            .map(|stored| {
                let is_image = images.contains(&stored.name);
                (stored.name, BlobItem { size: stored.size, used: stored.used, names: 0, is_image })
            })
            .collect();
        for digest in records.iter().flat_map(|record| &record.blobs) {
            if let Some(blob) = blobs.get_mut(digest) {
                blob.names += 1;
            }
        }
        let bytes = blobs.values().map(|blob| blob.size).sum::<u64>()
            + records.iter().map(|record| record.size).sum::<u64>();
        Ok(Self { tenant, backend, records, blobs, bytes, evicted: HashSet::new() })
    }

    /// Takes back what was counted of blobs that nothing names and that may go.
    fn leave_out_unnamed(&mut self, limit: SystemTime) {
        let unnamed = self.blobs.values().filter(|blob| blob.is_unnamed() && blob.used < limit);
        self.bytes -= unnamed.map(|blob| blob.size).sum::<u64>();
    }

    fn evict(&mut self, index: usize, limit: SystemTime) {
        let record = &self.records[index];
        if !self.evicted.insert(index) {
            return;
        }
        self.bytes -= record.size;
        for digest in &record.blobs {
            if let Some(blob) = self.blobs.get_mut(digest) {
                blob.names -= 1;
                if blob.is_unnamed() && blob.used < limit {
                    self.bytes -= blob.size;
                }
            }
        }
    }

    /// Records that may go, the least recently used first.
    fn candidates(&self, limit: SystemTime) -> impl Iterator<Item = (usize, SystemTime)> + '_ {
        let old = self.records.iter().enumerate().take_while(move |(_, record)| record.used < limit);
        old.filter(|(index, _)| !self.evicted.contains(index)).map(|(index, record)| (index, record.used))
    }

    fn evict_to(&mut self, max: u64, limit: SystemTime) {
        let candidates: Vec<_> = self.candidates(limit).collect();
        for (index, _) in candidates {
            if self.bytes <= max {
                return;
            }
            self.evict(index, limit);
        }
    }

    /// The blobs that records name which stay, and their scopes.
    fn named(&self) -> HashSet<(Digest, Scope)> {
        let kept = self.records.iter().enumerate().filter(|(index, _)| !self.evicted.contains(index));
        kept.flat_map(|(_, record)| record.blobs.iter().map(|digest| (*digest, record.scope.clone())))
            .collect()
    }

    /// Removes what was decided on.
    async fn apply(&self, limit: SystemTime, report: &mut GcReport) -> Result<(), StoreError> {
        for index in &self.evicted {
            let record = &self.records[*index];
            self.backend.remove_record(&record.scope, &record.key).await?;
            report.records += 1;
        }
        let mut discarded = HashSet::new();
        for (digest, blob) in &self.blobs {
            if blob.is_unnamed() && blob.used < limit {
                self.backend.discard_blob(digest).await?;
                report.discarded_blobs += 1;
                report.discarded_bytes += blob.size;
                discarded.insert(*digest);
            }
        }
        if discarded.is_empty() {
            return Ok(());
        }
        // Who was told that one of them is there has named it by now, or will have by the next pass.
        let known: HashSet<(&Scope, &Key)> =
            self.records.iter().map(|record| (&record.scope, &record.key)).collect();
        for stored in self.backend.list_records().await? {
            let (scope, key) = &stored.name;
            if !known.contains(&(scope, key))
                && let Some(record) = self.backend.peek_record(scope, key).await?
            {
                for digest in
                    record.blobs().chain(record.extras()).filter(|digest| discarded.contains(digest))
                {
                    self.backend.restore_blob(&digest).await?;
                    report.restored_blobs += 1;
                }
            }
        }
        for digest in oci::content(&*self.backend).await?.intersection(&discarded) {
            self.backend.restore_blob(digest).await?;
            report.restored_blobs += 1;
        }
        Ok(())
    }

    /// What is in the trash from earlier: restored if something names it, removed if it is long enough there.
    async fn empty_trash(&self, before: SystemTime, report: &mut GcReport) -> Result<(), StoreError> {
        let trash = self.backend.list_trash().await?;
        if trash.is_empty() {
            return Ok(());
        }
        let images = oci::content(&*self.backend).await?;
        let named: HashSet<&Digest> = self.records.iter().flat_map(|record| &record.blobs).collect();
        for stored in trash {
            let digest = stored.name;
            if self.blobs.contains_key(&digest) {
                // It was written again.
                self.backend.destroy_blob(&digest).await?;
            } else if named.contains(&digest) || images.contains(&digest) {
                self.backend.restore_blob(&digest).await?;
                report.restored_blobs += 1;
            } else if stored.used < before {
                self.backend.destroy_blob(&digest).await?;
                report.destroyed_blobs += 1;
                report.destroyed_bytes += stored.size;
            }
        }
        Ok(())
    }

    /// What mirrored repositories have and nobody has asked for. It can be had again.
    async fn sweep_mirrors(&self, mirrors: &[String], before: SystemTime) -> Result<(), StoreError> {
        let Ok(folder) = "oci".parse::<DocumentName>() else { return Ok(()) };
        if mirrors.is_empty() {
            return Ok(());
        }
        for (name, written) in self.backend.dated_documents(&folder).await? {
            let source = name.segments().nth(1).and_then(|name| name.split('!').next());
            let is_mirrored = source.is_some_and(|source| mirrors.iter().any(|mirror| mirror == source));
            if is_mirrored && written < before {
                self.backend.remove_document(&name, Expected::Anything).await?;
            }
        }
        Ok(())
    }

    /// Documents of leases that ended long ago.
    async fn sweep_leases(&self, before: SystemTime) -> Result<(), StoreError> {
        let Ok(folder) = "lease".parse::<DocumentName>() else { return Ok(()) };
        for (name, written) in self.backend.dated_documents(&folder).await? {
            if written < before
                && let Some(document) = self.backend.read_document(&name).await?
            {
                self.backend.remove_document(&name, Expected::Unchanged(document.version)).await?;
            }
        }
        Ok(())
    }
}

impl BlobItem {
    fn is_unnamed(&self) -> bool {
        self.names == 0 && !self.is_image
    }
}

fn before(now: SystemTime, age: Duration) -> SystemTime {
    now.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Does one pass over all tenants. Several at the same time do no harm.
///
/// # Errors
/// If the storage fails; what was done until then is done, and right.
pub async fn collect(
    storage: &Storage,
    policy: &GcPolicy,
    now: SystemTime,
) -> Result<(GcReport, Vec<TenantUsage>), GcError> {
    let limit = before(now, policy.grace);
    let mut report = GcReport::default();
    let mut inventories = Vec::new();
    for tenant in storage.tenants().await? {
        let backend = storage.tenant(&tenant)?;
        let mut inventory = Inventory::take(tenant, backend).await?;
        inventory.leave_out_unnamed(limit);
        if let Some(max_age) = policy.max_age {
            let old = before(now, max_age).min(limit);
            let candidates: Vec<_> = inventory.candidates(old).collect();
            for (index, _) in candidates {
                inventory.evict(index, limit);
            }
        }
        if let Some(max) = policy.tenants.get(&inventory.tenant).copied().or(policy.tenant_max_bytes) {
            inventory.evict_to(max, limit);
            report.excess_bytes += inventory.bytes.saturating_sub(max);
        }
        inventories.push(inventory);
    }
    if let Some(max) = policy.max_bytes {
        let mut total: u64 = inventories.iter().map(|inventory| inventory.bytes).sum();
        let mut candidates: Vec<(SystemTime, usize, usize)> = Vec::new();
        for (number, inventory) in inventories.iter().enumerate() {
            candidates.extend(inventory.candidates(limit).map(|(index, used)| (used, number, index)));
        }
        candidates.sort_unstable();
        for (_, number, index) in candidates {
            if total <= max {
                break;
            }
            let had = inventories[number].bytes;
            inventories[number].evict(index, limit);
            total -= had - inventories[number].bytes;
        }
        report.excess_bytes = report.excess_bytes.max(total.saturating_sub(max));
    }
    let mut usage = Vec::new();
    for inventory in &inventories {
        inventory.empty_trash(before(now, policy.trash), &mut report).await?;
        inventory.apply(limit, &mut report).await?;
        let unused = before(now, policy.max_age.unwrap_or(MIRRORED));
        inventory.sweep_mirrors(&policy.mirrors, unused.min(limit)).await?;
        inventory.sweep_leases(before(now, LEASE_KEPT)).await?;
        let sent = before(now, SENT_KEPT).min(limit);
        visible::settle(&*inventory.backend, inventory.named(), limit, sent).await?;
        usage.push(measure(inventory.tenant.clone(), &inventory.backend).await?);
    }
    Ok((report, usage))
}

async fn measure(tenant: Tenant, backend: &Arc<dyn Backend>) -> Result<TenantUsage, StoreError> {
    let trash = backend.list_trash().await?.iter().map(|stored| stored.size).sum();
    let images = oci::content(&**backend).await?;
    let records = backend.list_records().await?;
    let blobs = backend.list_blobs().await?;
    Ok(TenantUsage {
        tenant,
        records: records.len() as u64,
        record_bytes: records.iter().map(|stored| stored.size).sum(),
        blobs: blobs.len() as u64,
        blob_bytes: blobs.iter().map(|stored| stored.size).sum(),
        image_bytes: blobs
            .iter()
            .filter(|stored| images.contains(&stored.name))
            .map(|stored| stored.size)
            .sum(),
        trash_bytes: trash,
    })
}

/// How much all tenants have.
///
/// # Errors
/// If the storage fails.
pub async fn usage(storage: &Storage) -> Result<Vec<TenantUsage>, GcError> {
    let mut usage = Vec::new();
    for tenant in storage.tenants().await? {
        let backend = storage.tenant(&tenant)?;
        usage.push(measure(tenant, &backend).await?);
    }
    Ok(usage)
}

/// Damage that [`verify`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Whose.
    pub tenant: Tenant,
    /// What.
    pub what: String,
}

/// Reads everything and checks it; what is damaged is put aside. Returns how many things were read, and what was wrong.
///
/// # Errors
/// If the storage fails.
pub async fn verify(storage: &Storage) -> Result<(u64, Vec<Damage>), GcError> {
    /// Bytes read at a time.
    const PIECE: u64 = 8 << 20;
    let (mut checked, mut damage) = (0, Vec::new());
    for tenant in storage.tenants().await? {
        let backend = storage.tenant(&tenant)?;
        for stored in backend.list_blobs().await? {
            let digest = stored.name;
            let mut hasher = crate::digest::Hasher::new(digest.algorithm());
            let mut at = 0;
            let is_there = loop {
                match backend.read_range(&digest, at..at + PIECE).await? {
                    // Removed since it was listed.
                    None => break false,
                    Some(bytes) if bytes.is_empty() => break true,
                    Some(bytes) => {
                        at += bytes.len() as u64;
                        hasher.update(&bytes);
                    }
                }
            };
            checked += 1;
            if is_there && hasher.finish() != digest {
                backend.quarantine_blob(&digest).await?;
                damage.push(Damage { tenant: tenant.clone(), what: format!("blob {digest}") });
            }
        }
        for stored in backend.list_records().await? {
            let (scope, key) = &stored.name;
            checked += 1;
            // Reading puts a damaged one aside; so does whoever removes it meanwhile.
            if backend.peek_record(scope, key).await?.is_none() {
                damage
                    .push(Damage { tenant: tenant.clone(), what: format!("record {key} of scope {scope}") });
            }
        }
    }
    Ok((checked, damage))
}

/// Does it again and again, one server of a storage at a time.
pub(super) async fn run(server: Arc<Server>) {
    let policy = &server.settings.gc;
    if policy.interval.is_zero() {
        return;
    }
    loop {
        tokio::time::sleep(policy.interval).await;
        let pass = async {
            if !turn(&server).await? {
                return Ok::<_, GcError>(());
            }
            let started = tokio::time::Instant::now();
            let (report, usage) = collect(&server.storage, policy, (server.settings.clock)()).await?;
            let ended = server.tokens.sweep().await?;
            let took = started.elapsed();
            server.metrics.collected(&report, &usage, took, (server.settings.clock)());
            tracing::info!(
                records = report.records,
                discarded = report.discarded_blobs,
                destroyed_bytes = report.destroyed_bytes,
                sessions = ended,
                took_ms = took.as_secs_f64() * 1000.0,
                "removed what is not needed"
            );
            if report.excess_bytes > 0 {
                let bytes = report.excess_bytes;
                tracing::warn!(bytes, "there is more than quota or budget allow, and none of it may go");
            }
            Ok(())
        };
        if let Err(error) = pass.await {
            server.metrics.collecting_failed();
            tracing::warn!(error = crate::hint::with_causes(&error), "removing what is not needed failed");
        }
    }
}

/// Whether it is this server's turn: of those that share a storage one does it in each interval.
async fn turn(server: &Server) -> Result<bool, StoreError> {
    let Ok(name) = "gc".parse::<DocumentName>() else { return Ok(true) };
    let system = server.storage.system();
    let now = (server.settings.clock)().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let document = system.read_document(&name).await?;
    let next = document.as_ref().and_then(|document| {
        serde_json::from_slice::<serde_json::Value>(&document.bytes).ok()?["next"].as_u64()
    });
    // A little less, so that one server's own clock does not make it skip a turn.
    if next.is_some_and(|next| now.as_secs() + 1 < next) {
        return Ok(false);
    }
    let next = json!({"next": now.as_secs() + server.settings.gc.interval.as_secs()}).to_string();
    let expected = document.map_or(Expected::Absent, |document| Expected::Unchanged(document.version));
    Ok(system.write_document(&name, next.into(), expected).await?.is_some())
}
