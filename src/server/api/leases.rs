//! Leases: who is executing a step now, so that others wait for the record instead of executing it too.
//!
//! A lease is a document that is written in the state in which it was read, so that servers that share a storage grant
//! one at a time. It ends by itself unless it is taken again in time: whoever dies holds nobody up for long.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::blobs::json as read_json;
use super::digest;
use crate::record::Scope;
use crate::server::Server;
use crate::server::access::Access;
use crate::server::error::Refusal;
use crate::store::{DocumentName, Expected};

/// A lease lasts at most so long without being taken again.
const LIFETIME_MAX: Duration = Duration::from_mins(1);

/// What a holder may call itself.
const HOLDER_BYTES_MAX: usize = 200;

/// Attempts against others who want the same one.
const ATTEMPTS: u32 = 5;

#[derive(Deserialize)]
pub(super) struct Request {
    /// A random name of the build that asks: who has it can take the lease again, and give it back.
    holder: String,
    /// What others are told of it: a host, a job.
    label: String,
    /// How long it is to last.
    lifetime_ms: u64,
}

/// What the document says. The holder's name is a secret of the holder's: it is kept as a digest.
#[derive(Serialize, Deserialize)]
struct Lease {
    holder: String,
    label: String,
    /// Milliseconds since 1970.
    ends: u64,
}

fn name(scope: &Scope, key: &str) -> Result<DocumentName, Refusal> {
    let key = digest(key)?;
    // A scope may be longer than a segment of a document's name.
    let text = format!("lease/{}/{key}", crate::digest::Digest::of(scope.as_str()).hex());
    text.parse().map_err(|error| Refusal::bad(format!("{error}")))
}

fn scope(query: &Query<Vec<(String, String)>>) -> Result<Scope, Refusal> {
    let found = query.0.iter().find(|(name, _)| name == "scope").map(|(_, value)| value);
    let text = found.ok_or_else(|| Refusal::bad("say which scope: `?scope=…`"))?;
    text.parse().map_err(|error| Refusal::bad(format!("{error}")))
}

/// `PUT /leases/{key}?scope=…`: takes a lease, or takes it again.
pub(super) async fn take(
    State(server): State<Arc<Server>>,
    Extension(access): Extension<Access>,
    Path(key): Path<String>,
    query: Query<Vec<(String, String)>>,
    body: Body,
) -> Result<Response, Refusal> {
    let scope = scope(&query)?;
    let name = name(&scope, &key)?;
    access.may_write(&scope)?;
    let request: Request = read_json(&server, body).await?;
    if request.holder.is_empty() || request.holder.len().max(request.label.len()) > HOLDER_BYTES_MAX {
        return Err(Refusal::bad(format!(
            "a holder has a name and a label of up to {HOLDER_BYTES_MAX} bytes"
        )));
    }
    let holder = crate::digest::Digest::of(&request.holder).hex();
    let lifetime = Duration::from_millis(request.lifetime_ms).min(LIFETIME_MAX);
    for _ in 0..ATTEMPTS {
        let now = millis((server.settings.clock)());
        let there = access.backend.read_document(&name).await?;
        let held: Option<Lease> =
            there.as_ref().and_then(|document| serde_json::from_slice(&document.bytes).ok());
        if let Some(held) = held.filter(|held| held.ends > now && held.holder != holder) {
            let held = json!({"held_by": held.label, "ends_in_ms": held.ends - now});
            return Ok((StatusCode::CONFLICT, Json(held)).into_response());
        }
        let lease = Lease {
            holder: holder.clone(),
            label: request.label.clone(),
            ends: now.saturating_add(millis_of(lifetime)),
        };
        let expected = there.map_or(Expected::Absent, |document| Expected::Unchanged(document.version));
        let bytes = serde_json::to_vec(&lease).unwrap_or_default();
        if access.backend.write_document(&name, bytes.into(), expected).await?.is_some() {
            return Ok(Json(json!({"lifetime_ms": millis_of(lifetime)})).into_response());
        }
    }
    // Nobody has had it each time that it was looked at, and still it could not be written: there is nobody to wait for.
    Err(Refusal::new(StatusCode::NOT_FOUND, "no-lease", "the storage grants no lease now: go on without one"))
}

/// `DELETE /leases/{key}?scope=…&holder=…`: gives it back.
pub(super) async fn release(
    Extension(access): Extension<Access>,
    Path(key): Path<String>,
    query: Query<Vec<(String, String)>>,
) -> Result<StatusCode, Refusal> {
    let scope = scope(&query)?;
    let name = name(&scope, &key)?;
    access.may_write(&scope)?;
    let holder = query.0.iter().find(|(name, _)| name == "holder").map(|(_, value)| value.as_str());
    let holder = crate::digest::Digest::of(holder.unwrap_or_default()).hex();
    if let Some(document) = access.backend.read_document(&name).await?
        && serde_json::from_slice::<Lease>(&document.bytes).is_ok_and(|lease| lease.holder == holder)
    {
        access.backend.remove_document(&name, Expected::Unchanged(document.version)).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

fn millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, millis_of)
}

fn millis_of(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
