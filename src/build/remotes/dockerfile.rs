//! Dockerfiles that are where the build context is, or at a URL.

use std::borrow::Cow;

use super::super::error::BuildError;
use super::super::options::{BuildRequest, ContextSource, DockerfileText, RemoteDockerfile};
use super::{CONTEXT_FILE, RemoteSpec, Remotes};
use crate::context::remote::{RemoteSource, shown};

/// A Dockerfile larger than this is a mistake; BuildKit refuses it too.
const DOCKERFILE_BYTES_MAX: u64 = 16 << 20;

impl<'r> Remotes<'r> {
    /// The request with its Dockerfile.
    pub(crate) async fn with_dockerfile(&self) -> Result<Cow<'r, BuildRequest>, BuildError> {
        let dockerfile = match &self.request.remote_dockerfile {
            None => return Ok(Cow::Borrowed(self.request)),
            Some(RemoteDockerfile::InContext(path)) => self.in_context(path.as_deref()).await?,
            Some(RemoteDockerfile::Url(url)) => self.at_url(url).await?,
        };
        Ok(Cow::Owned(BuildRequest { dockerfile, remote_dockerfile: None, ..self.request.clone() }))
    }

    async fn at_url(&self, url: &str) -> Result<DockerfileText, BuildError> {
        let spec = RemoteSpec::of_context(&RemoteSource::Http(url.to_owned()));
        let chain = self.get(&spec, None).await.map_err(|error| match error {
            BuildError::Source { address, source, hint, .. } => {
                BuildError::Source { place: "Dockerfile".to_owned(), address, source, hint }
            }
            other => other,
        })?;
        let text = self.text(&chain, CONTEXT_FILE, &shown(url)).await?;
        Ok(DockerfileText { name: shown(url), text, ignore: None })
    }

    async fn in_context(&self, path: Option<&str>) -> Result<DockerfileText, BuildError> {
        let Some(chain) = self.context().await? else {
            let message = "there is no build context that the Dockerfile could be in";
            return Err(BuildError::cache("looking for the Dockerfile", message));
        };
        let address = match &self.request.context {
            ContextSource::Remote(RemoteSource::Git(git)) => shown(&git.remote),
            ContextSource::Remote(RemoteSource::Http(url)) => shown(url),
            _ => "standard input".to_owned(),
        };
        let tree = self.layers.tree(self.engine, &chain).await?;
        let is_there =
            |name: &str| tree.resolve(name.as_bytes(), true).is_ok_and(|found| found.node.is_some());
        // A URL with text is the Dockerfile.
        let only_file = tree.children(b"").map(|(name, _)| name).eq([CONTEXT_FILE.as_bytes()]);
        let from_url = matches!(&self.request.context, ContextSource::Remote(RemoteSource::Http(_)));
        let name = match path {
            _ if from_url && only_file => CONTEXT_FILE,
            Some(path) => path,
            None if !is_there("Dockerfile") && is_there("dockerfile") => "dockerfile",
            None => "Dockerfile",
        };
        if !is_there(name) {
            return Err(BuildError::Source {
                place: "build context".to_owned(),
                address,
                source: format!("it has no file `{name}`").into(),
                hint: Some("name the Dockerfile in it with `--file`".to_owned()),
            });
        }
        let text = self.text(&chain, name, &address).await?;
        let name = if from_url && only_file { address } else { name.to_owned() };
        Ok(DockerfileText { name, text, ignore: None })
    }

    async fn text(
        &self,
        chain: &std::sync::Arc<super::Chain>,
        path: &str,
        address: &str,
    ) -> Result<Vec<u8>, BuildError> {
        let text = self.layers.read_small(self.engine, chain, path).await?;
        if text.len() as u64 > DOCKERFILE_BYTES_MAX {
            return Err(BuildError::Source {
                place: "Dockerfile".to_owned(),
                address: address.to_owned(),
                source: "it is larger than 16 MiB".into(),
                hint: None,
            });
        }
        Ok(text)
    }
}
