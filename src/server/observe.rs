//! What is seen of each request from outside: an id, a line in the log, figures, and a span if somebody wants traces.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;

use super::metrics::Caller;
use super::tokens::random;
use super::traces::{Context, Span};
use super::{Server, oci};

/// Names a request through client, server and log.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Names the trace that a request is part of.
const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");

/// What a request is about. Never what a client makes up: these are labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Operation {
    pub(super) protocol: &'static str,
    pub(super) route: &'static str,
    pub(super) name: &'static str,
}

/// What a request is about, by its method, the route that fits, and its path.
fn operation(method: &Method, matched: &str, path: &str) -> Operation {
    let of = |protocol, route, name| Operation { protocol, route, name };
    let native = |route, name| of("crossdock", route, name);
    let own = |route, name| of("server", route, name);
    // HEAD is an answer without its body, and OPTIONS nothing that there is.
    let method = if method == Method::HEAD { "GET" } else { method.as_str() };
    match (method, matched) {
        ("GET", "/api/v1" | "/api/v1/") => native("/api/v1", "version"),
        ("POST", "/api/v1/blobs/missing") => native("/api/v1/blobs/missing", "find-blobs"),
        ("GET", "/api/v1/blobs/{digest}") => native("/api/v1/blobs/{digest}", "read-blob"),
        ("PUT", "/api/v1/blobs/{digest}") => native("/api/v1/blobs/{digest}", "write-blob"),
        ("POST", "/api/v1/blobs/{digest}/ranges") => native("/api/v1/blobs/{digest}/ranges", "read-ranges"),
        ("POST", "/api/v1/blobs/{digest}/compose") => {
            native("/api/v1/blobs/{digest}/compose", "compose-blob")
        }
        ("POST", "/api/v1/uploads") => native("/api/v1/uploads", "start-upload"),
        ("GET", "/api/v1/uploads/{id}") => native("/api/v1/uploads/{id}", "upload-state"),
        ("PATCH", "/api/v1/uploads/{id}") => native("/api/v1/uploads/{id}", "append-upload"),
        ("DELETE", "/api/v1/uploads/{id}") => native("/api/v1/uploads/{id}", "cancel-upload"),
        ("GET", "/api/v1/records/{key}") => native("/api/v1/records/{key}", "read-record"),
        ("PUT", "/api/v1/records/{key}") => native("/api/v1/records/{key}", "write-record"),
        ("GET", "/api/v1/bundles/{name}") => native("/api/v1/bundles/{name}", "read-bundle"),
        ("PUT", "/api/v1/bundles/{name}") => native("/api/v1/bundles/{name}", "write-bundle"),
        ("PUT", "/api/v1/leases/{key}") => native("/api/v1/leases/{key}", "take-lease"),
        ("DELETE", "/api/v1/leases/{key}") => native("/api/v1/leases/{key}", "release-lease"),
        ("POST", "/api/v1/session") => native("/api/v1/session", "open-session"),
        (_, "/v2" | "/v2/" | "/v2/{*path}") => {
            let (route, name) = oci::operation(method, path);
            of("oci", route, name)
        }
        ("GET" | "POST", "/token") => of("oci", "/token", "log-in"),
        ("GET", "/livez") => own("/livez", "livez"),
        ("GET", "/readyz" | "/healthz") => own("/readyz", "readyz"),
        ("GET", "/metrics") => own("/metrics", "metrics"),
        _ => own(NO_ROUTE, NO_OPERATION),
    }
}

/// For what is no path, or no method of it.
pub(super) const NO_ROUTE: &str = "(none)";
/// The same among operations.
pub(super) const NO_OPERATION: &str = "(none)";

/// Measures a request, gives it an id, and writes it to the log.
pub(super) async fn observe(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = request_id(&request);
    let method = method(request.method());
    let matched = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let operation = operation(request.method(), matched, request.uri().path());
    let parent = request.headers().get(TRACE_PARENT).and_then(|value| value.to_str().ok());
    let context = server.traces.is_on().then(|| Context::of(parent)).flatten();
    let start = (server.settings.clock)();
    // The path without its query, which may hold anything.
    let path = request.uri().path().chars().take(200).collect::<String>();
    let mut response = {
        let _under_way = server.metrics.under_way();
        next.run(request).await
    };
    let took = started.elapsed();
    let status = response.status().as_u16();
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let (caller, tenant) = match response.extensions().get::<Caller>() {
        Some(caller) => (caller.name.clone(), caller.tenant.to_string()),
        None => (String::new(), String::new()),
    };
    let took_ms = took.as_secs_f64() * 1000.0;
    if status >= 500 {
        tracing::warn!(%id, %method, path, status, took_ms, caller, tenant, "request");
    } else {
        tracing::info!(%id, %method, path, status, took_ms, caller, tenant, "request");
    }
    if let Some(context) = context {
        let attributes = vec![
            ("http.request.method", method.to_owned()),
            ("http.route", operation.route.to_owned()),
            ("url.path", path),
            ("crossdock.protocol", operation.protocol.to_owned()),
            ("crossdock.operation", operation.name.to_owned()),
            ("crossdock.request_id", id),
            ("crossdock.caller", caller),
            ("crossdock.tenant", tenant),
        ];
        let name = format!("{method} {}", operation.route);
        server.traces.record(Span { context, name, start, took, status, attributes });
    }
    server.metrics.answered(operation, method, status, took);
    response
}

/// The client's id if it is one, or else a new one.
fn request_id(request: &Request) -> String {
    let plain = |text: &&str| {
        (1..=64).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    let given = request.headers().get(REQUEST_ID).and_then(|value| value.to_str().ok()).filter(plain);
    match given {
        Some(given) => given.to_owned(),
        None => random(12).unwrap_or_else(|_| {
            let mut text = String::new();
            let _ = write!(text, "at-{:?}", std::thread::current().id());
            text.retain(|c| c.is_ascii_alphanumeric());
            text
        }),
    }
}

/// Known methods by name: what a client makes up must not become a label.
fn method(method: &Method) -> &'static str {
    const KNOWN: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("_OTHER")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_of_the_registry_are_told_apart() {
        let digest = crate::digest::Digest::of("x");
        let name = |method: Method, path: &str| operation(&method, "/v2/{*path}", path).name;
        assert_eq!(name(Method::GET, "/v2/"), "version");
        assert_eq!(name(Method::HEAD, &format!("/v2/a/b/blobs/{digest}")), "read-blob");
        assert_eq!(name(Method::PUT, "/v2/a/manifests/latest"), "write-manifest");
        assert_eq!(name(Method::POST, "/v2/a/blobs/uploads/"), "start-upload");
        assert_eq!(name(Method::PATCH, "/v2/a/blobs/uploads/x"), "append-upload");
        assert_eq!(name(Method::GET, "/v2/a/tags/list"), "list-tags");
        assert_eq!(name(Method::GET, &format!("/v2/a/referrers/{digest}")), "list-referrers");
        for (method, path) in [
            (Method::GET, "/v2/a/b"),
            (Method::GET, "/v2/a/blobs/sha256:x"),
            (Method::PATCH, "/v2/a/manifests/latest"),
            (Method::GET, "/v2/%ff"),
        ] {
            assert_eq!(name(method, path), NO_OPERATION, "{path}");
        }
        // No part of a path becomes a label.
        let odd = operation(&Method::GET, "", "/made/up");
        assert_eq!((odd.route, odd.name), (NO_ROUTE, NO_OPERATION));
        let made_up = Method::from_bytes(b"MADEUP").unwrap();
        assert_eq!(operation(&made_up, "/livez", "/livez").name, NO_OPERATION);
    }
}
