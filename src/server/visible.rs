//! Which blobs somebody may see by the native protocol: those that a record of a scope that they may read names, and those
//! that they have sent themselves. All others are as if they were nowhere, for every question.
//!
//! Which scopes a blob is in follows from the records. It is written down as empty documents, so that no question has to
//! look through all records, and so that several servers over one storage agree:
//!
//! - `seen/<digest>/scope/<scope>`: a record of the scope names the blob;
//! - `seen/<digest>/sender/<who>`: who has sent it has it anyway, and will name it in a record.
//!
//! Removal ([`settle`]) makes them follow from the records again, if something was lost.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};

use super::access::Access;
use super::identity::{ScopePattern, Tenant};
use crate::digest::Digest;
use crate::record::{Record, Scope};
use crate::store::{Backend, DocumentName, Expected, StoreError};

/// Questions to the storage at a time, of one request.
const QUESTIONS: usize = 16;

/// Blobs that are remembered: some 20 MiB. Beyond that all are forgotten, and the storage is asked again.
const REMEMBERED_MAX: usize = 1 << 16;

/// Scopes that are remembered of one blob: a base image's table of contents may be in thousands.
const SCOPES_MAX: usize = 8;

/// The longest piece of a scope in one segment of a document's name.
const PIECE: usize = 200;

/// Who is known to see what, as far as this process has found out. A scope whose record is gone may stay here until the
/// process ends: its readers could read the blob before.
#[derive(Debug, Default)]
pub(super) struct Visible {
    known: Mutex<HashMap<(Tenant, Digest), Known>>,
}

#[derive(Debug, Default)]
struct Known {
    scopes: Vec<Scope>,
    senders: Vec<String>,
}

impl Visible {
    /// Whether whoever asks may see the blob, if it is there.
    pub(super) async fn sees(&self, access: &Access, digest: &Digest) -> Result<bool, StoreError> {
        if access.grant.sees_everything() || self.remembers(access, digest) {
            return Ok(true);
        }
        let backend = &*access.backend;
        if access.grant.may_upload()
            && let Some(name) = sender(digest, &access.holder)
            && backend.read_document(&name).await?.is_some()
        {
            self.remember(access, digest, |known| known.senders.push(access.holder.clone()));
            return Ok(true);
        }
        for pattern in &access.grant.read {
            if let Some(scope) = find(backend, digest, pattern).await? {
                self.remember(access, digest, |known| known.scopes.push(scope));
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Those of `digests` that whoever asks may see.
    pub(super) async fn seen(
        &self,
        access: &Access,
        digests: impl IntoIterator<Item = Digest>,
    ) -> Result<HashSet<Digest>, StoreError> {
        let distinct: HashSet<Digest> = digests.into_iter().collect();
        if access.grant.sees_everything() {
            return Ok(distinct);
        }
        let questions = distinct.into_iter().map(|digest| self.ask(access, digest)).collect::<Vec<_>>();
        let answers: Vec<Option<Digest>> =
            futures_util::stream::iter(questions).buffer_unordered(QUESTIONS).try_collect().await?;
        Ok(answers.into_iter().flatten().collect())
    }

    /// Those of `digests` that whoever asks may see and that are there. What may not be seen is not looked for.
    pub(super) async fn there(
        &self,
        access: &Access,
        digests: impl IntoIterator<Item = Digest>,
    ) -> Result<HashSet<Digest>, StoreError> {
        let mut there = self.seen(access, digests).await?;
        let asked: Vec<_> = there.iter().copied().collect();
        for missing in access.backend.missing_blobs(&asked).await? {
            there.remove(&missing);
        }
        Ok(there)
    }

    async fn ask(&self, access: &Access, digest: Digest) -> Result<Option<Digest>, StoreError> {
        Ok(self.sees(access, &digest).await?.then_some(digest))
    }

    /// Takes note that somebody has sent a blob, which is there.
    pub(super) async fn sent(&self, access: &Access, digest: &Digest) -> Result<(), StoreError> {
        if access.grant.sees_everything() {
            return Ok(());
        }
        if let Some(name) = sender(digest, &access.holder) {
            access.backend.write_document(&name, Bytes::new(), Expected::Anything).await?;
        }
        self.remember(access, digest, |known| known.senders.push(access.holder.clone()));
        Ok(())
    }

    /// Takes note that a record, which is about to be written, names `blobs`.
    pub(super) async fn publish(
        &self,
        access: &Access,
        scope: &Scope,
        blobs: &[Digest],
    ) -> Result<(), StoreError> {
        let names: Vec<_> = blobs.iter().filter_map(|digest| in_scope(digest, scope)).collect();
        let written =
            names.iter().map(|name| access.backend.write_document(name, Bytes::new(), Expected::Anything));
        let written = written.collect::<Vec<_>>();
        let _: Vec<_> = futures_util::stream::iter(written).buffer_unordered(QUESTIONS).try_collect().await?;
        Ok(())
    }

    /// Takes note of a record that was read in its scope.
    pub(super) fn learn(&self, access: &Access, record: &Record) {
        for digest in record.blobs().chain(record.extras()) {
            self.remember(access, &digest, |known| known.scopes.push(record.scope.clone()));
        }
    }

    fn remembers(&self, access: &Access, digest: &Digest) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&(access.grant.tenant.clone(), *digest)).is_some_and(|known| {
            known.senders.contains(&access.holder)
                || known.scopes.iter().any(|scope| access.grant.may_read(scope))
        })
    }

    fn remember(&self, access: &Access, digest: &Digest, note: impl FnOnce(&mut Known)) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED_MAX {
            known.clear();
        }
        let known = known.entry((access.grant.tenant.clone(), *digest)).or_default();
        note(known);
        known.scopes.sort_unstable();
        known.scopes.dedup();
        known.scopes.truncate(SCOPES_MAX);
        known.senders.sort_unstable();
        known.senders.dedup();
        known.senders.truncate(SCOPES_MAX);
    }
}

/// A scope of the pattern that the blob is in.
async fn find(
    backend: &dyn Backend,
    digest: &Digest,
    pattern: &ScopePattern,
) -> Result<Option<Scope>, StoreError> {
    let folder = match pattern {
        ScopePattern::Is(scope) => {
            let Some(name) = in_scope(digest, scope) else { return Ok(None) };
            return Ok(backend.read_document(&name).await?.map(|_| scope.clone()));
        }
        ScopePattern::Below(scope) => in_scope(digest, scope),
        ScopePattern::Any => format!("seen/{digest}/scope").parse().ok(),
    };
    let Some(folder) = folder else { return Ok(None) };
    let found = backend.list_documents(&folder, None, 1).await?;
    Ok(found.first().and_then(|name| Some(holder(name)?.1)).and_then(|holder| match holder {
        Holder::Scope(scope) => Some(scope),
        Holder::Sender => None,
    }))
}

/// The document that says that a blob is in a scope. A component of a scope may be longer than a segment of a name: it is
/// cut, and what goes on ends with a `+`, which no scope has.
fn in_scope(digest: &Digest, scope: &Scope) -> Option<DocumentName> {
    let component = |text: &str| {
        let pieces: Vec<_> = text.as_bytes().chunks(PIECE).map(String::from_utf8_lossy).collect();
        pieces.join("+/")
    };
    let path: Vec<_> = scope.as_str().split('/').map(component).collect();
    format!("seen/{digest}/scope/{}", path.join("/")).parse().ok()
}

fn sender(digest: &Digest, who: &str) -> Option<DocumentName> {
    format!("seen/{digest}/sender/{who}").parse().ok()
}

/// What a document is about.
enum Holder {
    Scope(Scope),
    Sender,
}

fn holder(name: &DocumentName) -> Option<(Digest, Holder)> {
    let (digest, rest) = name.as_str().strip_prefix("seen/")?.split_once('/')?;
    let holder = match rest.split_once('/')? {
        ("scope", scope) => Holder::Scope(scope.replace("+/", "").parse().ok()?),
        ("sender", _) => Holder::Sender,
        _ => return None,
    };
    Some((digest.parse().ok()?, holder))
}

/// Makes the documents say what the records say: `named` is what those that stay name. What was written after `before`
/// may be about a record that is on its way, and stays; so does what was sent after `sent`.
pub(super) async fn settle(
    backend: &dyn Backend,
    mut named: HashSet<(Digest, Scope)>,
    before: SystemTime,
    sent: SystemTime,
) -> Result<(), StoreError> {
    let Ok(folder) = "seen".parse::<DocumentName>() else { return Ok(()) };
    for (name, written) in backend.dated_documents(&folder).await? {
        let is_needed = match holder(&name) {
            Some((digest, Holder::Scope(scope))) => named.remove(&(digest, scope)) || written >= before,
            Some((_, Holder::Sender)) => written >= sent,
            None => false,
        };
        if !is_needed {
            backend.drop_document(&name).await?;
        }
    }
    // What is left has no document: one was lost, or the record came from elsewhere.
    for (digest, scope) in named {
        if let Some(name) = in_scope(&digest, &scope) {
            backend.write_document(&name, Bytes::new(), Expected::Anything).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_read_as_they_are_named() {
        let digest = Digest::of("x");
        let long = format!("a/{}/b", "x".repeat(251));
        for text in ["main", "pr/7/head", &long, &"y".repeat(255), &format!("z/{}", "z".repeat(200))] {
            let scope: Scope = text.parse().unwrap();
            let name = in_scope(&digest, &scope).unwrap();
            let found = holder(&name);
            assert!(matches!(&found, Some((of, Holder::Scope(found))) if *of == digest && *found == scope));
        }
        assert!(matches!(holder(&sender(&digest, "tokens-x").unwrap()), Some((_, Holder::Sender))));
        for other in ["seen/x/scope/a", "lease/x", "seen/y", &format!("seen/{digest}/else/x")] {
            assert!(holder(&other.parse().unwrap()).is_none(), "{other}");
        }
    }
}
