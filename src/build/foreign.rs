//! Which platforms' commands this machine runs, asked once per build.

use std::collections::HashMap;

use tokio::sync::Mutex;

use super::engine::Engine;
use super::error::BuildError;
use crate::exec::foreign::{self, Verdict};
use crate::exec::{ExecError, Executor};
use crate::platform::Platform;

/// What is known of other platforms so far.
#[derive(Debug, Default)]
pub(crate) struct Foreign(Mutex<HashMap<Platform, Verdict>>);

impl Foreign {
    /// How commands of `platform` fare here. For this machine's own platform nothing is tried.
    pub(crate) async fn verdict(
        &self,
        engine: &Engine,
        executor: &std::sync::Arc<dyn Executor>,
        platform: &Platform,
    ) -> Result<Verdict, BuildError> {
        if Platform::host().distance(platform).is_some() {
            return Ok(Verdict::Runs);
        }
        // Held while it is tried: the other steps of the platform want to know the same.
        let mut known = self.0.lock().await;
        if let Some(verdict) = known.get(platform) {
            return Ok(verdict.clone());
        }
        let place = engine.cache.local().tmp_dir();
        let place = place.map_err(|error| BuildError::cache("making a temporary directory", error))?;
        let (executor, tried) = (std::sync::Arc::clone(executor), platform.clone());
        let verdict = engine
            .blocking(move || {
                foreign::examine(&*executor, &tried, place.path()).or_else(|error| match error {
                    ExecError::Cancelled => Err(BuildError::Cancelled),
                    // The step will meet the same obstacle, and says where it stands.
                    _ => Ok(Verdict::Unknown),
                })
            })
            .await?;
        known.insert(platform.clone(), verdict.clone());
        Ok(verdict)
    }
}
