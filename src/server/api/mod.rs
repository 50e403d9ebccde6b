//! The native protocol, version 1. `docs/protocol.md` describes it for whoever writes a client.

mod blobs;
mod leases;
mod records;
mod uploads;

use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post, put};
use serde_json::json;

use super::Server;
use super::error::Refusal;
use crate::digest::Digest;

/// How the figures call it.
const PROTOCOL: &str = "crossdock";

/// A question is some thousands of digests of 71 bytes at most.
const QUESTION_BYTES_MAX: u64 = 4 << 20;

pub(super) fn router() -> Router<Arc<Server>> {
    Router::new()
        .route("/", get(async || axum::Json(json!({"protocol": 1, "version": env!("CARGO_PKG_VERSION")}))))
        .route("/blobs/missing", post(blobs::missing))
        .route("/blobs/{digest}", get(blobs::get).put(blobs::put))
        .route("/blobs/{digest}/ranges", post(blobs::ranges))
        .route("/blobs/{digest}/compose", post(uploads::compose))
        .route("/uploads", post(uploads::create))
        .route("/uploads/{id}", get(uploads::state).patch(uploads::append).delete(uploads::cancel))
        .route("/records/{key}", get(records::get).put(records::put))
        .route("/bundles/{name}", get(records::get_bundle).put(records::put_bundle))
        .route("/leases/{key}", put(leases::take).delete(leases::release))
}

/// A digest of a path.
fn digest(text: &str) -> Result<Digest, Refusal> {
    text.parse().map_err(|error| Refusal::bad(format!("{error}")))
}

fn bytes(body: impl Into<axum::body::Body>) -> Response {
    ([(header::CONTENT_TYPE, "application/octet-stream")], body.into()).into_response()
}

fn created(is_new: bool) -> StatusCode {
    if is_new { StatusCode::CREATED } else { StatusCode::OK }
}
