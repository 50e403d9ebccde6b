//! Build contexts that are tars, and URLs that may be one.

use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::super::chain::Chain;
use super::super::copy::copier::Rules;
use super::super::copy::{Opener, step as copy_step};
use super::super::error::BuildError;
use super::super::inputs::InputTree;
use super::super::layers::{InputFiles, Reads, write_staged};
use super::super::options::ContextArchive;
use super::super::plan::{CopyOp, Input};
use super::{CONTEXT_FILE, Made, RemoteSpec, Remotes, chain_of};
use crate::context::archive::{HEAD_BYTES, is_archive};
use crate::context::remote::RemoteSource;
use crate::digest::Digest;
use crate::layer::{Entry, EntryKind, Metadata, Toc};
use crate::record::Preimage;
use crate::tree::Tree;

impl Remotes<'_> {
    /// What is in a tar that came over standard input.
    pub(super) async fn archive_context(&self, archive: &ContextArchive) -> Result<Arc<Chain>, BuildError> {
        let key = archive_key(archive.digest);
        if let Some(record) = self.look_up(&key).await {
            return Ok(chain_of(&record));
        }
        let kind = EntryKind::File { size: archive.size, content: archive.digest, offset: 0 };
        let path = CONTEXT_FILE.as_bytes().to_vec();
        let entry = Entry { path, metadata: Metadata::default(), kind };
        let mut tree = Tree::empty();
        tree.apply(0, &Toc { entries: vec![entry], frames: Vec::new() })
            .map_err(|error| BuildError::cache("reading the build context", error))?;
        let files = InputFiles::File(Arc::clone(&archive.file));
        self.unpack(key, Arc::new(tree), files, "standard input".to_owned()).await
    }

    /// What is at a URL: the files of a tar, or else the file itself, which is a Dockerfile then.
    pub(super) async fn http_context(&self, url: &str) -> Result<Arc<Chain>, BuildError> {
        let spec = RemoteSpec::of_context(&RemoteSource::Http(url.to_owned()));
        let file = self.get(&spec, None).await?;
        Ok(self.unpacked(&spec, &file).await?.unwrap_or(file))
    }

    /// What is in the archive that is the file of a context, if it is one.
    pub(super) async fn unpacked(
        &self,
        spec: &RemoteSpec,
        file: &Arc<Chain>,
    ) -> Result<Option<Arc<Chain>>, BuildError> {
        let tree = self.layers.tree(self.engine, file).await?;
        let content = tree.get(CONTEXT_FILE.as_bytes()).and_then(|node| node.content().copied());
        let Some(content) = content else { return Ok(None) };
        let key = archive_key(content);
        if let Some(record) = self.look_up(&key).await {
            return Ok(Some(chain_of(&record)));
        }
        let input = InputTree::Chain(Arc::clone(file));
        let files = self.layers.opener(self.engine, &input, Reads::All).await?;
        let read = move || {
            let mut head = Vec::new();
            let read = files
                .open(CONTEXT_FILE.as_bytes())
                .map_err(std::io::Error::other)
                .and_then(|file| file.take(HEAD_BYTES as u64).read_to_end(&mut head));
            read.map_err(|error| {
                files.failure().unwrap_or_else(|| BuildError::cache("reading the build context", error))
            })?;
            Ok((head, files))
        };
        let (head, files) = self.engine.blocking(read).await?;
        if !is_archive(&head) {
            return Ok(None);
        }
        self.unpack(key, tree, files, spec.address()).await.map(Some)
    }

    /// Makes a layer of what is in the archive that `source` has.
    async fn unpack(
        &self,
        key: Preimage,
        source: Arc<Tree>,
        files: InputFiles,
        address: String,
    ) -> Result<Arc<Chain>, BuildError> {
        let (started, created) = (Instant::now(), self.engine.now());
        let spool = self.engine.cache.local().tmp_dir();
        let spool = spool.map_err(|error| BuildError::cache("making a temporary directory", error))?;
        let path: PathBuf = spool.path().to_owned();
        let engine = self.engine.clone();
        let layer = self
            .engine
            .blocking(move || {
                let rules = Rules { owner: None, chmod: None, now: engine.now(), epoch: None };
                let opener: &dyn Opener = &files;
                let op = CopyOp { unpack: true, ..CopyOp::everything(Input::Empty, CONTEXT_FILE) };
                let failed = |source: Box<dyn std::error::Error + Send + Sync>| BuildError::Source {
                    place: String::new(),
                    address: address.clone(),
                    source,
                    hint: None,
                };
                let entries =
                    copy_step::copy(&Tree::empty(), Some((&*source, opener)), &[], &op, &rules, &path)
                        .map_err(|error| failed(error.into()))?;
                if let [(name, staged)] = &entries[..]
                    && name == CONTEXT_FILE.as_bytes()
                    && matches!(&staged.content, super::Content::Source { .. })
                {
                    return Err(failed("it is compressed, but what is compressed is no tar".into()));
                }
                write_staged(&engine, &entries, &[])
            })
            .await?;
        drop(spool);
        // It was sent to this machine alone, and others would hardly send the very same one.
        let record = self.publish(key, &Made { layer, started, created }, false).await?;
        Ok(chain_of(&record))
    }
}

fn archive_key(content: Digest) -> Preimage {
    let mut preimage = Preimage::default();
    preimage.add("kind", "archive").add("content", content);
    preimage
}
