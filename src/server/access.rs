//! From a request's credentials to what it may do.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;

use super::Server;
use super::error::Refusal;
use super::identity::Grant;
use super::metrics::Caller;
use super::{oci, session};
use crate::record::Scope;
use crate::store::Backend;

/// The longest credentials: an OIDC token has some 2 KiB.
const CREDENTIALS_BYTES_MAX: usize = 16 << 10;

/// Who asks, and the storage of their tenant. Every protected request has one.
#[derive(Clone, Debug)]
pub(super) struct Access {
    pub(super) grant: Arc<Grant>,
    /// Names the token among those of the tenant, in the form of a segment of a document's name.
    pub(super) holder: String,
    pub(super) backend: Arc<dyn Backend>,
}

impl Access {
    /// Refuses who may not write records of `scope`.
    pub(super) fn may_write(&self, scope: &Scope) -> Result<(), Refusal> {
        if self.grant.may_write(scope) {
            Ok(())
        } else {
            Err(Refusal::denied(format!("this token may not write to the scope `{scope}`")))
        }
    }

    /// Refuses who may write nothing.
    pub(super) fn may_upload(&self) -> Result<(), Refusal> {
        if self.grant.may_upload() {
            Ok(())
        } else {
            Err(Refusal::denied("this token may not write anything"))
        }
    }
}

/// Finds out who asks, or refuses.
pub(super) async fn identify(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    let anonymous = server.settings.anonymous.as_ref().map(Grant::of_anybody);
    let access = match access(&server, request.headers(), anonymous).await {
        Ok(access) => access,
        Err(refusal) => return refusal.into_response(),
    };
    go_on(access, request, next).await
}

/// The same for the registry, which has errors of its own.
pub(super) async fn identify_registry(
    State(server): State<Arc<Server>>,
    request: Request,
    next: Next,
) -> Response {
    // Docker's clients ask without a token first, and give one only if they are refused.
    let access = match access(&server, request.headers(), None).await {
        Ok(access) => access,
        Err(refusal) if refusal.status() == StatusCode::UNAUTHORIZED => {
            return oci::unauthorized(session::realm(&server, request.headers(), request.uri()));
        }
        Err(refusal) => return refusal.into_response(),
    };
    go_on(access, request, next).await
}

/// Gives the request who asks, and the answer too, for the log.
async fn go_on(access: Access, mut request: Request, next: Next) -> Response {
    let caller = Caller { name: access.grant.name.clone(), tenant: access.grant.tenant.clone() };
    request.extensions_mut().insert(access);
    let mut response = next.run(request).await;
    response.extensions_mut().insert(caller);
    response
}

async fn access(server: &Server, headers: &HeaderMap, anonymous: Option<Grant>) -> Result<Access, Refusal> {
    let nobody = |grant: Grant| ("anybody".to_owned(), grant);
    let found = if server.settings.no_auth {
        Some(nobody(Grant::everything()))
    } else {
        match credentials(headers) {
            Some(text) => server.tokens.check(&text).await?,
            None if headers.contains_key(header::AUTHORIZATION) => None,
            None => anonymous.map(nobody),
        }
    };
    let Some((holder, grant)) = found else {
        let message = "give a token: `Authorization: Bearer …`, or as the password of Basic";
        return Err(Refusal::new(StatusCode::UNAUTHORIZED, "unauthorized", message));
    };
    let backend = server.storage.tenant(&grant.tenant).map_err(|error| {
        tracing::error!(error = crate::hint::with_causes(&error), "the tenant's storage failed");
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "storage", "the storage does not work")
    })?;
    Ok(Access { grant: Arc::new(grant), holder, backend })
}

/// The token of a request: as a bearer's, or as the password of Basic.
pub(super) fn credentials(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    if value.len() > CREDENTIALS_BYTES_MAX {
        return None;
    }
    let (scheme, rest) = value.split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = base64::engine::general_purpose::STANDARD.decode(rest).ok()?;
    let pair = String::from_utf8(pair).ok()?;
    pair.split_once(':').map(|(_, password)| password.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_come_in_two_forms() {
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            credentials(&headers)
        };
        assert_eq!(read("Bearer  t").as_deref(), Some("t"));
        assert_eq!(read("bearer t").as_deref(), Some("t"));
        assert_eq!(read("Basic dTp0Om8=").as_deref(), Some("t:o"));
        for none in ["Bearer", "Basic ?", "Basic dQ==", "Digest x", &format!("Bearer {}", "x".repeat(20_000))]
        {
            assert_eq!(read(none), None, "{none:.20}");
        }
        assert_eq!(credentials(&HeaderMap::new()), None);
    }
}
