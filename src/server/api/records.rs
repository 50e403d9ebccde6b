//! Records and bundles, by scope.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};

use super::{PROTOCOL, bytes, created, digest};
use crate::digest::Digest;
use crate::record::{BUNDLE_BYTES_MAX, Bundle, BundleName, Key, RECORD_BYTES_MAX, Record, Scope};
use crate::server::Server;
use crate::server::access::Access;
use crate::server::body::Incoming;
use crate::server::error::Refusal;
use crate::store::StoreError;

/// Scopes in one question.
const SCOPES_MAX: usize = 16;

/// `?scope=…&scope=…`, in the order in which they are looked through.
type Scopes = Query<Vec<(String, String)>>;

fn scopes(query: &Scopes) -> Result<Vec<Scope>, Refusal> {
    let values = query.0.iter().filter(|(name, _)| name == "scope").map(|(_, value)| value);
    let scopes = values.map(|text| text.parse().map_err(|error| Refusal::bad(format!("{error}"))));
    let scopes = scopes.collect::<Result<Vec<Scope>, _>>()?;
    match scopes.len() {
        0 => Err(Refusal::bad("say which scope: `?scope=…`")),
        1..=SCOPES_MAX => Ok(scopes),
        _ => Err(Refusal::bad(format!("ask for {SCOPES_MAX} scopes at a time"))),
    }
}

/// Those that may be read. Asking for others is no mistake: they are as if they were empty.
fn readable(access: &Access, query: &Scopes) -> Result<Vec<Scope>, Refusal> {
    let mut scopes = scopes(query)?;
    scopes.retain(|scope| access.grant.may_read(scope));
    Ok(scopes)
}

/// `GET /records/{key}`
pub(super) async fn get(
    State(server): State<Arc<Server>>,
    Extension(access): Extension<Access>,
    Path(key): Path<String>,
    query: Scopes,
) -> Result<Response, Refusal> {
    let (key, scopes) = (Key(digest(&key)?), readable(&access, &query)?);
    let record = access.backend.read_record(&key, &scopes).await?;
    server.metrics.looked_up(&access.grant.tenant, PROTOCOL, "record", record.is_some());
    let record = record.ok_or_else(Refusal::not_found)?;
    server.visible.learn(&access, &record);
    used(&access, vec![(record.scope.clone(), key)]);
    Ok(bytes(record.encode()))
}

/// Marks records as used, while the answer is on its way.
fn used(access: &Access, records: Vec<(Scope, Key)>) {
    let backend = Arc::clone(&access.backend);
    tokio::spawn(async move {
        for (scope, key) in records {
            // A mark that is not made may cost a record's place, and no more.
            if backend.mark_used(&scope, &key).await.is_err() {
                return;
            }
        }
    });
}

/// `PUT /records/{key}`: answers with the record that counts.
pub(super) async fn put(
    State(server): State<Arc<Server>>,
    Extension(access): Extension<Access>,
    Path(key): Path<String>,
    body: Body,
) -> Result<Response, Refusal> {
    let key = Key(digest(&key)?);
    let text = Incoming::new(body, server.settings.limits.idle, RECORD_BYTES_MAX).read().await?;
    let record =
        Record::decode(&text).map_err(|error| Refusal::bad(format!("this is no record: {error}")))?;
    if record.key() != key {
        return Err(Refusal::bad(format!("this record has the key {}", record.key())));
    }
    access.may_write(&record.scope)?;
    // Naming a blob makes it readable for all who read the scope: only who may see it can do that.
    let mut blobs: Vec<Digest> = record.blobs().chain(record.extras()).collect();
    let seen = server.visible.seen(&access, blobs.iter().copied()).await?;
    if let Some(missing) = record.blobs().find(|blob| !seen.contains(blob)) {
        return Err(StoreError::Incomplete { key, missing, location: access.backend.location() }.into());
    }
    blobs.retain(|blob| seen.contains(blob));
    server.visible.publish(&access, &record.scope, &blobs).await?;
    let winner = access.backend.write_record(&record).await?;
    server.visible.learn(&access, &winner);
    Ok((created(winner == record), bytes(winner.encode())).into_response())
}

/// `GET /bundles/{name}`: only the steps whose records may be read and are whole, so that a client need not ask.
pub(super) async fn get_bundle(
    State(server): State<Arc<Server>>,
    Extension(access): Extension<Access>,
    Path(name): Path<String>,
    query: Scopes,
) -> Result<Response, Refusal> {
    let (name, scopes) = (BundleName(digest(&name)?), readable(&access, &query)?);
    let bundle = access.backend.read_bundle(&name, &scopes).await?;
    server.metrics.looked_up(&access.grant.tenant, PROTOCOL, "bundle", bundle.is_some());
    let mut bundle = bundle.ok_or_else(Refusal::not_found)?;
    bundle.steps.retain(|step| access.grant.may_read(&step.record.scope));
    let blobs: Vec<_> = bundle.steps.iter().flat_map(|step| step.record.blobs()).collect();
    // A bundle is what somebody has written: what it names need not be what they may see.
    let there = server.visible.there(&access, blobs).await?;
    bundle.steps.retain(|step| step.record.blobs().all(|blob| there.contains(&blob)));
    used(&access, bundle.steps.iter().map(|step| (step.record.scope.clone(), step.record.key())).collect());
    Ok(bytes(bundle.encode()))
}

/// `PUT /bundles/{name}?scope=…`
pub(super) async fn put_bundle(
    State(server): State<Arc<Server>>,
    Extension(access): Extension<Access>,
    Path(name): Path<String>,
    query: Scopes,
    body: Body,
) -> Result<StatusCode, Refusal> {
    let name = BundleName(digest(&name)?);
    let scopes = scopes(&query)?;
    let [scope] = &scopes[..] else { return Err(Refusal::bad("a bundle is written to one scope")) };
    access.may_write(scope)?;
    let text = Incoming::new(body, server.settings.limits.idle, BUNDLE_BYTES_MAX).read().await?;
    let bundle =
        Bundle::decode(&text).map_err(|error| Refusal::bad(format!("this is no bundle: {error}")))?;
    access.backend.write_bundle(&name, scope, &bundle).await?;
    Ok(StatusCode::NO_CONTENT)
}
