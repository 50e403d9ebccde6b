//! The time of what `SOURCE_DATE_EPOCH` names.

use std::borrow::Cow;

use super::super::error::BuildError;
use super::super::options::{BuildRequest, ContextSource};
use super::super::plan::{EPOCH, Epoch, epoch};
use super::{CONTEXT_FILE, RemoteSpec, Remotes};
use crate::context::git_ref::GitRef;
use crate::dockerfile::Dockerfile;
use crate::layer::Timestamp;
use crate::tree::NodeKind;

impl Remotes<'_> {
    /// The request with the epoch that it and the Dockerfile give. The build argument becomes its number.
    pub(crate) async fn with_epoch<'r>(
        &self,
        request: Cow<'r, BuildRequest>,
        dockerfile: &Dockerfile,
    ) -> Result<Cow<'r, BuildRequest>, BuildError> {
        let time = match epoch(&request, dockerfile)? {
            None => return Ok(request),
            Some(Epoch::At(time)) if request.source_date_epoch == Some(time) => return Ok(request),
            Some(Epoch::At(time)) => {
                return Ok(Cow::Owned(BuildRequest {
                    source_date_epoch: Some(time),
                    ..request.into_owned()
                }));
            }
            Some(Epoch::Unknown) => None,
            Some(Epoch::Of(spec)) => self.time(&spec).await?,
            Some(Epoch::OfContext) => match &request.context {
                ContextSource::Remote(source) => self.time(&RemoteSpec::of_context(source)).await?,
                _ => None,
            },
        };
        let mut request = request.into_owned();
        request.source_date_epoch = time;
        request.build_args.retain(|(name, _)| name != EPOCH);
        // Without a time, a name is as good as no argument; but the Dockerfile's default must not come back.
        if time.is_some() || dockerfile.meta_args.iter().any(|declared| declared.node.name == EPOCH) {
            let value = time.map(|time| time.seconds.to_string()).unwrap_or_default();
            request.build_args.push((EPOCH.to_owned(), value));
        }
        Ok(Cow::Owned(request))
    }

    /// When a commit was made or a file at a URL last changed; of an archive of unknown time, its newest file's time.
    async fn time(&self, spec: &RemoteSpec) -> Result<Option<Timestamp>, BuildError> {
        let (url, checksum) = match spec {
            RemoteSpec::Git(git) => {
                // Everything has the commit's time then, also the root.
                let git =
                    GitRef { commit_time: true, keep_git_dir: None, subdir: String::new(), ..git.clone() };
                let chain = self.get(&RemoteSpec::Git(git), None).await?;
                let tree = self.layers.tree(self.engine, &chain).await?;
                return Ok(tree.get(b"").map(|root| root.metadata.mtime));
            }
            RemoteSpec::Http { url, checksum, .. } => (url.clone(), *checksum),
        };
        let spec = RemoteSpec::Http { url, name: CONTEXT_FILE.to_owned(), checksum };
        let file = self.get(&spec, None).await?;
        let tree = self.layers.tree(self.engine, &file).await?;
        let modified = tree.get(CONTEXT_FILE.as_bytes()).map(|node| node.metadata.mtime);
        // The file of an answer that gives no time is from 1970.
        if let Some(time) = modified.filter(|time| *time != Timestamp::default()) {
            return Ok(Some(time));
        }
        let Some(files) = self.unpacked(&spec, &file).await? else { return Ok(None) };
        let tree = self.layers.tree(self.engine, &files).await?;
        let times = tree.walk(b"").filter(|(_, node)| matches!(node.kind, NodeKind::File { .. }));
        Ok(times.map(|(_, node)| Timestamp { nanos: 0, ..node.metadata.mtime }).max())
    }
}
