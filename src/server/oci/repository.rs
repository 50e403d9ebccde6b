//! A repository of a tenant: what it has, as documents.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::error::{Code, OciError};
use super::names::Tag;
use crate::digest::Digest;
use crate::server::access::Access;
use crate::store::{Backend, DocumentName, Expected, StoreError};

/// How many documents are read at a time.
const PAGE: usize = 1000;

/// A repository, as somebody sees it.
#[derive(Debug, Clone)]
pub(super) struct Repository {
    pub(super) access: Access,
    name: String,
}

/// What is kept of a manifest beside its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ManifestEntry {
    pub(super) media_type: String,
    pub(super) size: u64,
    /// What it refers to.
    pub(super) subject: Option<String>,
}

pub(super) fn unknown_repository() -> OciError {
    OciError::new(Code::NameUnknown, "there is no such repository, or none that you may pull from")
}

/// The blobs and manifests that any repository has.
pub(in crate::server) async fn content(backend: &dyn Backend) -> Result<HashSet<Digest>, StoreError> {
    let Ok(folder) = "oci".parse() else { return Ok(HashSet::new()) };
    let names = backend.list_documents(&folder, None, usize::MAX).await?;
    let digests = names.iter().filter_map(|name| {
        let mut segments = name.segments().skip(2);
        match (segments.next()?, segments.next()?) {
            ("blob" | "manifest", digest) => digest.parse().ok(),
            _ => None,
        }
    });
    Ok(digests.collect())
}

impl Repository {
    pub(super) fn new(access: Access, name: String) -> Self {
        Self { access, name }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn backend(&self) -> &dyn Backend {
        &*self.access.backend
    }

    /// A repository that may not be seen is none.
    pub(super) fn may_pull(&self) -> Result<(), OciError> {
        if self.access.grant.may_pull(&self.name) { Ok(()) } else { Err(unknown_repository()) }
    }

    pub(super) fn may_push(&self) -> Result<(), OciError> {
        if self.access.grant.may_push(&self.name) {
            return Ok(());
        }
        self.may_pull()?;
        Err(OciError::new(Code::Denied, format!("this token may not push to `{}`", self.name)))
    }

    /// The repository of another name, if the same caller may pull from it.
    pub(super) fn sibling(&self, name: &str) -> Option<Self> {
        let sibling = Self { access: self.access.clone(), name: name.to_owned() };
        (super::names::is_name(name) && sibling.may_pull().is_ok()).then_some(sibling)
    }

    fn document(&self, rest: &str) -> Result<DocumentName, OciError> {
        let text = format!("oci/{}/{rest}", self.name.replace('/', "!"));
        text.parse().map_err(|error| OciError::new(Code::NameInvalid, format!("{error}")))
    }

    /// The size of a blob, if the repository has it and it is there.
    pub(super) async fn blob(&self, digest: &Digest) -> Result<Option<u64>, OciError> {
        if !self.is_member(digest).await? {
            return Ok(None);
        }
        Ok(self.backend().blob_size(digest).await?)
    }

    /// Whether the repository has a blob of this digest.
    pub(super) async fn is_member(&self, digest: &Digest) -> Result<bool, OciError> {
        let name = self.document(&format!("blob/{digest}"))?;
        Ok(self.backend().read_document(&name).await?.is_some())
    }

    /// Says that the repository has a blob, which must be there.
    pub(super) async fn add_blob(&self, digest: &Digest) -> Result<(), OciError> {
        let name = self.document(&format!("blob/{digest}"))?;
        self.backend().write_document(&name, bytes::Bytes::new(), Expected::Anything).await?;
        Ok(())
    }

    /// Says how large a blob is that may be fetched when it is asked for.
    pub(super) async fn expect_blob(&self, digest: &Digest, size: u64) -> Result<(), OciError> {
        let name = self.document(&format!("expected/{digest}"))?;
        self.backend().write_document(&name, size.to_string().into(), Expected::Anything).await?;
        Ok(())
    }

    /// The size of a blob that may be fetched.
    pub(super) async fn expected_blob(&self, digest: &Digest) -> Result<Option<u64>, OciError> {
        let name = self.document(&format!("expected/{digest}"))?;
        let document = self.backend().read_document(&name).await?;
        Ok(document.and_then(|document| std::str::from_utf8(&document.bytes).ok()?.parse().ok()))
    }

    /// The repository has the blob no more; whether it had it.
    pub(super) async fn remove_blob(&self, digest: &Digest) -> Result<bool, OciError> {
        let name = self.document(&format!("blob/{digest}"))?;
        Ok(self.backend().remove_document(&name, Expected::Anything).await?)
    }

    pub(super) async fn manifest(&self, digest: &Digest) -> Result<Option<ManifestEntry>, OciError> {
        let name = self.document(&format!("manifest/{digest}"))?;
        let document = self.backend().read_document(&name).await?;
        // What cannot be read is not there.
        Ok(document.and_then(|document| serde_json::from_slice(&document.bytes).ok()))
    }

    pub(super) async fn add_manifest(&self, digest: &Digest, entry: &ManifestEntry) -> Result<(), OciError> {
        let name = self.document(&format!("manifest/{digest}"))?;
        let bytes = serde_json::to_vec(entry).unwrap_or_default();
        self.backend().write_document(&name, bytes.into(), Expected::Anything).await?;
        Ok(())
    }

    /// Removes a manifest, its tags, and its place among the referrers of another one; whether it was there.
    pub(super) async fn remove_manifest(&self, digest: &Digest) -> Result<bool, OciError> {
        let Some(entry) = self.manifest(digest).await? else { return Ok(false) };
        let name = self.document(&format!("manifest/{digest}"))?;
        let removed = self.backend().remove_document(&name, Expected::Anything).await?;
        if let Some(subject) = entry.subject {
            let name = self.document(&format!("referrer/{subject}/{digest}"))?;
            self.backend().remove_document(&name, Expected::Anything).await?;
        }
        // A tag without its manifest is as good as none; those that name it go, unless they have been moved meanwhile.
        let text = digest.to_string();
        for tag in self.tags().await? {
            let name = self.document(&format!("tag/{tag}"))?;
            if let Some(document) = self.backend().read_document(&name).await?
                && document.bytes == text
            {
                self.backend().remove_document(&name, Expected::Unchanged(document.version)).await?;
            }
        }
        Ok(removed)
    }

    pub(super) async fn tag(&self, tag: &Tag) -> Result<Option<Digest>, OciError> {
        let name = self.document(&format!("tag/{}", tag.as_str()))?;
        let document = self.backend().read_document(&name).await?;
        Ok(document.and_then(|document| std::str::from_utf8(&document.bytes).ok()?.parse().ok()))
    }

    pub(super) async fn set_tag(&self, tag: &Tag, digest: &Digest) -> Result<(), OciError> {
        let name = self.document(&format!("tag/{}", tag.as_str()))?;
        self.backend().write_document(&name, digest.to_string().into(), Expected::Anything).await?;
        Ok(())
    }

    pub(super) async fn remove_tag(&self, tag: &Tag) -> Result<bool, OciError> {
        let name = self.document(&format!("tag/{}", tag.as_str()))?;
        Ok(self.backend().remove_document(&name, Expected::Anything).await?)
    }

    /// All tags, in the order of their bytes.
    pub(super) async fn tags(&self) -> Result<Vec<String>, OciError> {
        let names = self.list("tag").await?;
        Ok(names.iter().filter_map(|name| name.segments().last().map(str::to_owned)).collect())
    }

    pub(super) async fn add_referrer(
        &self,
        subject: &str,
        digest: &Digest,
        descriptor: &serde_json::Value,
    ) -> Result<(), OciError> {
        let name = self.document(&format!("referrer/{subject}/{digest}"))?;
        self.backend().write_document(&name, descriptor.to_string().into(), Expected::Anything).await?;
        Ok(())
    }

    /// The descriptors of the manifests that refer to `subject`.
    pub(super) async fn referrers(&self, subject: &Digest) -> Result<Vec<serde_json::Value>, OciError> {
        let mut found = Vec::new();
        for name in self.list(&format!("referrer/{subject}")).await? {
            let document = self.backend().read_document(&name).await?;
            found.extend(document.and_then(|document| serde_json::from_slice(&document.bytes).ok()));
        }
        Ok(found)
    }

    /// Whether there is anything in it.
    pub(super) async fn exists(&self) -> Result<bool, StoreError> {
        let Ok(folder) = format!("oci/{}", self.name.replace('/', "!")).parse() else { return Ok(false) };
        Ok(!self.backend().list_documents(&folder, None, 1).await?.is_empty())
    }

    async fn list(&self, folder: &str) -> Result<Vec<DocumentName>, OciError> {
        let folder = self.document(folder)?;
        let mut names: Vec<DocumentName> = Vec::new();
        loop {
            let page = self.backend().list_documents(&folder, names.last(), PAGE).await?;
            let is_last = page.len() < PAGE;
            names.extend(page);
            if is_last {
                return Ok(names);
            }
        }
    }
}
