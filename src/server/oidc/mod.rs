//! Identities that a CI provider vouches for: tokens of OpenID Connect, as GitHub Actions and GitLab CI give them to jobs.
//!
//! A job exchanges its token once for a session ([`session`](super::session)); what the session may do is decided by a
//! [`Policy`] from the token's claims. Only RS256 is accepted, which is what both providers sign with.

mod keys;
pub(in crate::server) mod policy;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, Validation, decode, decode_header};
use serde_json::{Map, Value};

use self::keys::Keys;
pub use self::policy::{Decision, Policy, PolicyError, Preset, Rule, Verdict};

/// How much clocks may differ.
const LEEWAY: Duration = Duration::from_mins(1);

/// The longest token: GitHub's have some 2 KiB.
pub(super) const TOKEN_BYTES_MAX: usize = 16 << 10;

/// What a token says.
pub type Claims = Map<String, Value>;

/// Who is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issuer {
    /// The claim `iss`, exactly: a URL. The keys are below it.
    pub url: String,
    /// The claim `aud`: what tokens are made out to. Never a provider's default, which other servers accept too.
    pub audience: String,
    /// Where the keys are, if not where the issuer's own description says.
    pub jwks_url: Option<String>,
}

/// Why a token is not believed.
#[derive(Debug, thiserror::Error)]
pub(in crate::server) enum OidcError {
    /// It is none, or it lies.
    #[error("{0}")]
    Refused(String),
    /// The issuer's keys are not known.
    #[error("the keys of {issuer} cannot be had: {reason}")]
    Keys {
        /// Whose.
        issuer: String,
        /// Why.
        reason: String,
    },
}

fn refused(reason: impl Into<String>) -> OidcError {
    OidcError::Refused(reason.into())
}

/// Checks tokens of the issuers that are believed.
#[derive(Debug)]
pub(super) struct Verifier {
    issuers: Vec<(Issuer, Keys)>,
}

impl Verifier {
    pub(super) fn new(issuers: &[Issuer]) -> Self {
        Self { issuers: issuers.iter().map(|issuer| (issuer.clone(), Keys::of(issuer))).collect() }
    }

    /// The claims of a token that is good now.
    pub(super) async fn verify(&self, token: &str, now: SystemTime) -> Result<Claims, OidcError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(refused("the token is too long"));
        }
        let header = decode_header(token).map_err(|error| refused(format!("it is no token: {error}")))?;
        if header.alg != Algorithm::RS256 {
            return Err(refused(format!("it is signed with {:?}, not with RS256", header.alg)));
        }
        // RFC 7515, section 4.1.11: what must be understood and is not makes the token invalid.
        if header.crit.is_some() {
            return Err(refused("its header has `crit`"));
        }
        let kid = header.kid.ok_or_else(|| refused("its header names no key (`kid`)"))?;
        // Only to find out whose key is to be asked for: it is checked with the signature afterwards.
        let unchecked: Claims = jsonwebtoken::dangerous::insecure_decode_claims(token)
            .map_err(|error| refused(format!("it is no token: {error}")))?;
        let named = unchecked.get("iss").and_then(Value::as_str).unwrap_or_default();
        let (issuer, keys) = self
            .issuers
            .iter()
            .find(|(issuer, _)| issuer.url == named)
            .ok_or_else(|| refused("its issuer is not one that is believed here"))?;
        let key = keys.get(&kid).await?;
        let mut validation = Validation::new(Algorithm::RS256);
        validation.leeway = LEEWAY.as_secs();
        validation.validate_nbf = true;
        validation.set_audience(&[&issuer.audience]);
        validation.set_issuer(&[&issuer.url]);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        let claims = decode::<Claims>(token, &key, &validation)
            .map_err(|error| refused(format!("it is not good: {error}")))?
            .claims;
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if claims.get("iat").and_then(Value::as_u64).is_some_and(|at| at > now + LEEWAY.as_secs()) {
            return Err(refused("it was issued in the future"));
        }
        Ok(claims)
    }
}
