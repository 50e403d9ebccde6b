//! An OCI registry (OCI Distribution Specification 1.1) over the tenant's storage.
//!
//! Bytes of blobs and manifests are the storage's blobs, kept once. What a repository has is a document for each thing,
//! so that several servers over one storage agree without talking to each other:
//!
//! - `oci/<repository>/blob/<digest>`: the repository has this blob;
//! - `oci/<repository>/manifest/<digest>`: the manifest's media type and size;
//! - `oci/<repository>/tag/<tag>`: the digest that the tag names;
//! - `oci/<repository>/expected/<digest>`: in a mirror, the size of a blob that a manifest names and that may be fetched;
//! - `oci/<repository>/referrer/<subject>/<digest>`: the descriptor of a manifest that refers to another one.
//!
//! `<repository>` has `!` for `/`. A blob can be had only through a repository that has it and that the caller may pull
//! from; without that it is as if it were nowhere.

mod blobs;
mod error;
mod manifests;
mod mirror;
mod names;
mod repository;
mod uploads;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};

use self::error::{Code, OciError};
use self::names::Route;
use self::repository::Repository;
use super::Server;
use super::access::Access;
use super::observe::{NO_OPERATION, NO_ROUTE};
use super::outlet::Outlet;

pub(super) use error::unauthorized;
pub(super) use mirror::Mirrors;
pub use mirror::{MirrorSource, MirrorSourceError};
pub(super) use names::is_name;
pub(super) use repository::content;

/// How the figures call it.
const PROTOCOL: &str = "oci";

/// What old clients of Docker look for.
const VERSION: (HeaderName, HeaderValue) =
    (HeaderName::from_static("docker-distribution-api-version"), HeaderValue::from_static("registry/2.0"));

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// A request, taken apart.
struct Call {
    server: Arc<Server>,
    repository: Repository,
    method: Method,
    query: Vec<(String, String)>,
    headers: axum::http::HeaderMap,
    /// Where the connection can send files by itself.
    outlet: Option<Outlet>,
    body: Body,
}

impl Call {
    /// A parameter of the query.
    fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
    }

    /// A header as text.
    fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// The route and the operation of a request to the registry, for figures.
pub(super) fn operation(method: &str, path: &str) -> (&'static str, &'static str) {
    let path = percent_encoding::percent_decode_str(path).decode_utf8();
    let found = path.ok().and_then(|path| names::route(&path).ok());
    let Some(found) = found else { return (NO_ROUTE, NO_OPERATION) };
    let Some((_, route)) = found else { return ("/v2/", "version") };
    let upload = "/v2/{name}/blobs/uploads/{id}";
    let manifest = "/v2/{name}/manifests/{reference}";
    match (method, route) {
        ("GET", Route::Blob(_)) => ("/v2/{name}/blobs/{digest}", "read-blob"),
        ("DELETE", Route::Blob(_)) => ("/v2/{name}/blobs/{digest}", "delete-blob"),
        ("POST", Route::Uploads) => ("/v2/{name}/blobs/uploads/", "start-upload"),
        ("GET", Route::Upload(_)) => (upload, "upload-state"),
        ("PATCH", Route::Upload(_)) => (upload, "append-upload"),
        ("PUT", Route::Upload(_)) => (upload, "finish-upload"),
        ("DELETE", Route::Upload(_)) => (upload, "cancel-upload"),
        ("GET", Route::Manifest(_)) => (manifest, "read-manifest"),
        ("PUT", Route::Manifest(_)) => (manifest, "write-manifest"),
        ("DELETE", Route::Manifest(_)) => (manifest, "delete-manifest"),
        ("GET", Route::Tags) => ("/v2/{name}/tags/list", "list-tags"),
        ("GET", Route::Referrers(_)) => ("/v2/{name}/referrers/{digest}", "list-referrers"),
        _ => (NO_ROUTE, NO_OPERATION),
    }
}

/// Answers everything below `/v2/`.
pub(super) async fn handle(
    State(server): State<Arc<Server>>,
    Extension(access): Extension<Access>,
    request: Request,
) -> Response {
    let mut response = match answer(server, access, request).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    };
    let (name, value) = VERSION;
    response.headers_mut().insert(name, value);
    response
}

async fn answer(server: Arc<Server>, access: Access, request: Request) -> Result<Response, OciError> {
    let (parts, body) = request.into_parts();
    let path = percent_encoding::percent_decode_str(parts.uri.path()).decode_utf8();
    let path = path.map_err(|_| OciError::new(Code::NameInvalid, "the path is no text"))?;
    let Some((name, route)) = names::route(&path)? else {
        return Ok((StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], "{}").into_response());
    };
    let query = parts.uri.query().unwrap_or_default();
    let query: Vec<_> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    let namespace = query.iter().find(|(name, _): &&(String, String)| name == "ns");
    let name = server.mirrors.resolve(name, namespace.map(|(_, value)| value.as_str()));
    if !is_name(&name) {
        return Err(OciError::new(Code::NameInvalid, format!("`{name}` is no name of a repository")));
    }
    let repository = Repository::new(access, name);
    let is_read = matches!(parts.method, Method::GET | Method::HEAD);
    // Uploads are the pusher's own affair, also where it looks how far they are.
    let is_upload = matches!(route, Route::Uploads | Route::Upload(_));
    if is_read && !is_upload {
        repository.may_pull()?;
    } else {
        repository.may_push()?;
    }
    if server.mirrors.is_mirrored(repository.name()) {
        server.mirrors.provide(&server, &repository, &parts.method, &route).await?;
    }
    let (method, headers) = (parts.method, parts.headers);
    let outlet = parts.extensions.get::<Outlet>().cloned();
    let call = Call { server, repository, method, query, headers, outlet, body };
    match (call.method.as_str(), route) {
        ("GET" | "HEAD", Route::Blob(digest)) => blobs::get(call, digest).await,
        ("DELETE", Route::Blob(digest)) => blobs::delete(call, digest).await,
        ("POST", Route::Uploads) => uploads::start(call).await,
        ("GET", Route::Upload(id)) => uploads::state(&call, &id),
        ("PATCH", Route::Upload(id)) => uploads::append(call, &id).await,
        ("PUT", Route::Upload(id)) => uploads::finish(call, &id).await,
        ("DELETE", Route::Upload(id)) => uploads::cancel(&call, &id),
        ("GET" | "HEAD", Route::Manifest(reference)) => manifests::get(call, reference).await,
        ("PUT", Route::Manifest(reference)) => manifests::put(call, reference).await,
        ("DELETE", Route::Manifest(reference)) => manifests::delete(call, reference).await,
        ("GET" | "HEAD", Route::Tags) => manifests::tags(call).await,
        ("GET" | "HEAD", Route::Referrers(digest)) => manifests::referrers(call, digest).await,
        _ => Err(OciError::new(Code::Unsupported, "this path does not take this method")),
    }
}
