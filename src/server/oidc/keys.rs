//! The public keys of an issuer: fetched, kept, and fetched again when they change.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jsonwebtoken::DecodingKey;
use jsonwebtoken::jwk::{AlgorithmParameters, JwkSet, PublicKeyUse};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::{Issuer, OidcError};
use crate::hint::with_causes;

/// A key that is not known is looked for at most so often, whatever callers make up.
const AGAIN: Duration = Duration::from_mins(1);

/// What is known is looked at again after this, so that a key that was withdrawn ends.
const GOOD: Duration = Duration::from_hours(1);

/// Without an answer of the issuer the keys go on for so long.
const LAST: Duration = Duration::from_hours(24);

/// An issuer that takes longer does not answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Some keys are some KiB.
const BYTES_MAX: usize = 256 << 10;

/// The keys of one issuer.
#[derive(Debug)]
pub(super) struct Keys {
    issuer: String,
    jwks_url: Option<String>,
    /// Held while fetching: whoever needs the same waits for the one answer.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    keys: HashMap<String, Arc<DecodingKey>>,
    /// When they were fetched.
    fetched: Option<Instant>,
    /// When that was tried last, and what went wrong.
    tried: Option<(Instant, Option<String>)>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.keys.keys()).finish()
    }
}

/// What an issuer says of itself (OpenID Connect Discovery 1.0, section 3).
#[derive(Deserialize)]
struct Description {
    issuer: String,
    jwks_uri: String,
}

impl Keys {
    pub(super) fn of(issuer: &Issuer) -> Self {
        Self { issuer: issuer.url.clone(), jwks_url: issuer.jwks_url.clone(), state: Mutex::default() }
    }

    /// The key that is called `kid`.
    pub(super) async fn get(&self, kid: &str) -> Result<Arc<DecodingKey>, OidcError> {
        let mut state = self.state.lock().await;
        let age = state.fetched.map(|at| at.elapsed());
        let known = state.keys.get(kid).cloned();
        let rested = state.tried.as_ref().is_none_or(|(at, _)| at.elapsed() >= AGAIN);
        if (known.is_none() || age.is_none_or(|age| age >= GOOD)) && rested {
            let fetched = self.fetch().await;
            let now = Instant::now();
            match fetched {
                Ok(keys) => {
                    *state = State { keys, fetched: Some(now), tried: Some((now, None)) };
                }
                Err(reason) => {
                    tracing::warn!(issuer = self.issuer, reason, "the issuer's keys could not be fetched");
                    state.tried = Some((now, Some(reason)));
                }
            }
        }
        let current = state.fetched.is_some_and(|at| at.elapsed() < LAST);
        let key = state.keys.get(kid).filter(|_| current).cloned();
        key.ok_or_else(|| match &state.tried {
            Some((_, Some(reason))) => {
                OidcError::Keys { issuer: self.issuer.clone(), reason: reason.clone() }
            }
            _ => super::refused("it is signed with a key that its issuer does not have"),
        })
    }

    async fn fetch(&self) -> Result<HashMap<String, Arc<DecodingKey>>, String> {
        let client = reqwest::Client::builder()
            .timeout(PATIENCE)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("crossdock/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| with_causes(&error))?;
        let jwks_url = match &self.jwks_url {
            Some(url) => url.clone(),
            None => {
                let url = format!("{}/.well-known/openid-configuration", self.issuer.trim_end_matches('/'));
                let description: Description = read(&client, &url).await?;
                if description.issuer != self.issuer {
                    return Err(format!("{url} describes another issuer"));
                }
                if self.issuer.starts_with("https:") && !description.jwks_uri.starts_with("https:") {
                    return Err(format!("{url} names keys that are not fetched by https"));
                }
                description.jwks_uri
            }
        };
        let set: JwkSet = read(&client, &jwks_url).await?;
        let usable = set.keys.iter().filter(|key| {
            matches!(key.algorithm, AlgorithmParameters::RSA(_))
                && key.common.public_key_use.as_ref().is_none_or(|usage| *usage == PublicKeyUse::Signature)
        });
        Ok(usable
            .filter_map(|key| Some((key.common.key_id.clone()?, Arc::new(DecodingKey::from_jwk(key).ok()?))))
            .collect())
    }
}

async fn read<T: for<'de> Deserialize<'de>>(client: &reqwest::Client, url: &str) -> Result<T, String> {
    let failed = |error: reqwest::Error| with_causes(&error);
    let mut response = client.get(url).send().await.map_err(failed)?.error_for_status().map_err(failed)?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        if body.len() + chunk.len() > BYTES_MAX {
            return Err(format!("{url} is larger than {BYTES_MAX} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&body).map_err(|error| format!("{url}: {error}"))
}
