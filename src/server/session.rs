//! Sessions: what a job gets for a proof of its identity, and what Docker's clients get for a password.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::from_fn;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Server;
use super::access::credentials;
use super::body::Incoming;
use super::error::Refusal;
use super::oidc::{Claims, OidcError, TOKEN_BYTES_MAX, Verdict};
use super::tokens::{Kind, TokenError};
use crate::digest::Digest;
use crate::record::Scope;

/// How long a job may take. GitHub's longest are six hours.
const LIFETIME: Duration = Duration::from_hours(6);

/// How long a client of a registry believes a token before it asks again.
const BELIEVED: u64 = 300;

pub(super) fn router() -> Router<Arc<Server>> {
    Router::new()
        .route("/api/v1/session", post(exchange))
        .route("/token", get(token).post(token_by_form))
        // Whatever the answer is, it is nobody else's.
        .layer(from_fn(async |request: Request, next: axum::middleware::Next| {
            let mut response = next.run(request).await;
            response
                .headers_mut()
                .insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
            response
        }))
}

/// A session, as it was granted.
struct Session {
    token: String,
    tenant: String,
    read: Vec<Scope>,
    write: Option<Scope>,
}

/// A body that is a token and little else.
async fn received(server: &Server, body: Body) -> Result<Bytes, Refusal> {
    Incoming::new(body, server.settings.limits.idle, 2 * TOKEN_BYTES_MAX as u64).read().await
}

async fn exchange(State(server): State<Arc<Server>>, body: Body) -> Result<Response, Refusal> {
    #[derive(Deserialize)]
    struct Asked {
        id_token: String,
    }
    let asked: Asked = serde_json::from_slice(&received(&server, body).await?)
        .map_err(|_| Refusal::bad("the body has to be `{\"id_token\": \"…\"}`"))?;
    let session = open(&server, &asked.id_token).await?;
    let read: Vec<_> = session.read.iter().map(Scope::as_str).collect();
    let answer = json!({
        "token": session.token,
        "expires_in": LIFETIME.as_secs(),
        "tenant": session.tenant,
        "read": read,
        "write": session.write.as_ref().map(Scope::as_str),
    });
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

/// Makes a session for whoever this token of a CI provider proves.
async fn open(server: &Server, id_token: &str) -> Result<Session, Refusal> {
    let Some((verifier, policy)) = &server.oidc else {
        let message = "this server believes no identities of CI providers (`[[serve.oidc]]`)";
        return Err(Refusal::new(StatusCode::NOT_FOUND, "no-oidc", message));
    };
    let now = (server.settings.clock)();
    let claims = verifier.verify(id_token, now).await.map_err(|error| {
        tracing::info!(error = error.to_string(), "an identity was refused");
        match error {
            OidcError::Refused(reason) => Refusal::new(StatusCode::UNAUTHORIZED, "identity", reason),
            OidcError::Keys { .. } => {
                Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "issuer", error.to_string())
            }
        }
    })?;
    let issuer = claims.get("iss").and_then(Value::as_str).unwrap_or_default();
    let (grant, read, write) = match policy.decide(issuer, &claims).verdict {
        Verdict::Granted { grant, read, write } => (grant, read, write),
        Verdict::Nothing(reason) => {
            tracing::info!(reason, "an identity has no rights");
            return Err(Refusal::denied(format!(
                "{reason} (`crossdock policy explain` shows what each rule says)"
            )));
        }
    };
    let end = claims.get("exp").and_then(Value::as_u64).unwrap_or(u64::MAX);
    if !server.tokens.use_once(&proof(id_token, &claims), end).await? {
        return Err(Refusal::new(StatusCode::UNAUTHORIZED, "used", "the identity token was used before"));
    }
    let created = server.tokens.create_as(Kind::Session, grant, Some(LIFETIME)).await;
    let (text, made) = created.map_err(refused)?;
    Ok(Session { token: text, tenant: made.grant.tenant.to_string(), read, write })
}

/// Names a token: by its id if it has one, since the same token can be written in several ways.
fn proof(id_token: &str, claims: &Claims) -> Digest {
    let text = |name: &str| claims.get(name).and_then(Value::as_str);
    match (text("iss"), text("jti")) {
        (Some(issuer), Some(id)) => Digest::of(format!("{issuer}\n{id}")),
        _ => Digest::of(id_token.split('.').take(2).collect::<Vec<_>>().join(".")),
    }
}

fn refused(error: TokenError) -> Refusal {
    match error {
        TokenError::Store(error) => error.into(),
        error => {
            tracing::error!(error = error.to_string(), "no session could be made");
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "storage", "no session can be made")
        }
    }
}

/// The token flow of Docker's clients (<https://distribution.github.io/distribution/spec/auth/token/>): a password for a
/// token. The token of a token is itself; that of a CI provider's identity is a session.
async fn token(State(server): State<Arc<Server>>, headers: HeaderMap) -> Result<Response, Refusal> {
    match credentials(&headers) {
        Some(password) => token_for(&server, &password).await,
        None => Err(nobody()),
    }
}

/// The same as OAuth 2 (<https://distribution.github.io/distribution/spec/auth/oauth/>).
async fn token_by_form(State(server): State<Arc<Server>>, body: Body) -> Result<Response, Refusal> {
    let body = received(&server, body).await?;
    let form: Vec<(String, String)> = url::form_urlencoded::parse(&body).into_owned().collect();
    let field = |name: &str| form.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str());
    match field("password").or_else(|| field("refresh_token")) {
        Some(password) => token_for(&server, password).await,
        None => Err(nobody()),
    }
}

async fn token_for(server: &Server, password: &str) -> Result<Response, Refusal> {
    let token = match server.tokens.check(password).await? {
        Some(_) => password.to_owned(),
        // It has the form of an identity, which no token of ours has.
        None if server.oidc.is_some() && password.split('.').count() == 3 => {
            open(server, password).await?.token
        }
        None => return Err(nobody()),
    };
    let answer =
        json!({"token": token, "access_token": token, "expires_in": BELIEVED, "token_type": "Bearer"});
    Ok(Json(answer).into_response())
}

fn nobody() -> Refusal {
    Refusal::new(
        StatusCode::UNAUTHORIZED,
        "unauthorized",
        "log in with any name, and a token as the password",
    )
}

/// Where this server gives tokens, as whoever asked reaches it.
pub(super) fn realm(server: &Server, headers: &HeaderMap, uri: &Uri) -> Option<String> {
    if let Some(url) = &server.settings.public_url {
        return Some(format!("{}/token", url.trim_end_matches('/')));
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).or_else(|| {
        // HTTP/2 has it in the request's URL.
        uri.authority().map(axum::http::uri::Authority::as_str)
    })?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]_".contains(&byte);
    if host.is_empty() || !host.bytes().all(plain) {
        return None;
    }
    let scheme = if server.settings.tls.is_some() { "https" } else { "http" };
    Some(format!("{scheme}://{host}/token"))
}
