//! Getting into a server with the identity that a CI provider gives a job, so that no secret has to be kept for it.

use std::fmt;
use std::time::Duration;

use reqwest::Url;

use super::env_vars;
use super::environment::Environment;
use crate::hint::with_causes;
use crate::store::{HttpSession, HttpStore};

/// All of it together takes two round trips, of which one is to the provider.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where a proof of identity comes from.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Identity {
    /// It was given to the job: GitLab's `id_tokens`.
    Given(String),
    /// GitHub's runner makes one for whoever asks.
    Actions {
        /// Where to ask.
        url: String,
        /// What to ask with.
        token: String,
        /// Who it is to be made out to, if not to the server's URL.
        audience: Option<String>,
    },
}

/// Secrets are not shown.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Given(_) => "Given",
            Self::Actions { .. } => "Actions",
        })
    }
}

impl Identity {
    /// What this job has.
    pub(super) fn of(environment: &Environment) -> Option<Self> {
        let text = |name| environment.text(name).filter(|value| !value.is_empty()).map(str::to_owned);
        if let Some(token) = text(env_vars::CROSSDOCK_ID_TOKEN) {
            return Some(Self::Given(token));
        }
        let url = text(env_vars::ACTIONS_ID_TOKEN_REQUEST_URL)?;
        let token = text(env_vars::ACTIONS_ID_TOKEN_REQUEST_TOKEN)?;
        Some(Self::Actions { url, token, audience: text(env_vars::CROSSDOCK_AUDIENCE) })
    }

    /// A session at the server, or why there is none.
    pub(super) async fn log_in(&self, server: &HttpStore, base: &Url) -> Result<HttpSession, String> {
        let attempt = async {
            let proof = match self {
                Self::Given(token) => token.clone(),
                Self::Actions { url, token, audience } => {
                    let audience = audience.clone().unwrap_or_else(|| base.origin().ascii_serialization());
                    ask(url, token, &audience).await?
                }
            };
            server.log_in(&proof).await.map_err(|error| with_causes(&error))
        };
        match tokio::time::timeout(PATIENCE, attempt).await {
            Ok(result) => result,
            Err(_) => Err(format!("it took longer than {} s", PATIENCE.as_secs())),
        }
    }
}

/// <https://docs.github.com/en/actions/reference/security/oidc#methods-for-requesting-the-oidc-token>
async fn ask(url: &str, token: &str, audience: &str) -> Result<String, String> {
    #[derive(serde::Deserialize)]
    struct Answer {
        value: String,
    }
    let mut url: Url = url.parse().map_err(|_| "ACTIONS_ID_TOKEN_REQUEST_URL is no URL".to_owned())?;
    url.query_pairs_mut().append_pair("audience", audience);
    let failed = |error: reqwest::Error| {
        format!("the runner gave no identity token: {}", with_causes(&error.without_url()))
    };
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build();
    let request = client.map_err(failed)?.get(url).bearer_auth(token);
    let answer = request.send().await.map_err(failed)?.error_for_status().map_err(failed)?;
    let bytes = answer.bytes().await.map_err(failed)?;
    let answer: Answer =
        serde_json::from_slice(&bytes).map_err(|_| "the runner's answer has no identity token".to_owned())?;
    Ok(answer.value)
}
