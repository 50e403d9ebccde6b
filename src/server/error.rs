//! Errors, as a start that fails and as answers.

use std::io;
use std::path::PathBuf;

use axum::Json;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::hint::Hint;
use crate::store::{OpenError, StoreError};

/// Why a server did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address could not be taken.
    #[error("could not listen on {address}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Without identities it would serve everybody.
    #[error("{address} can be reached by others, and nobody would be asked who they are")]
    Open {
        /// The address.
        address: std::net::SocketAddr,
    },
    /// A certificate or key cannot be used.
    #[error("{} cannot be used: {reason}", .path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The storage cannot be used.
    #[error(transparent)]
    Storage(#[from] OpenError),
    /// The storage does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Hint for ServeError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                Some("name another one with `--listen ADDR:PORT`; port 0 takes any that is free".to_owned())
            }
            Self::Open { .. } => Some("listen on 127.0.0.1, or leave `--insecure-no-auth` out".to_owned()),
            Self::Storage(error) => error.hint(),
            Self::Store(error) => error.hint(),
            Self::Listen { .. } | Self::Certificate { .. } => None,
        }
    }
}

/// A request that is not answered with what it asked for: `{"error": {"code": …, "message": …}}`.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
    more: Option<(&'static str, serde_json::Value)>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), more: None }
    }

    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid", message)
    }

    pub(super) fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", "there is no such thing, or none that you may read")
    }

    pub(super) fn denied(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "denied", message)
    }

    pub(super) fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", message)
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    /// For protocols that have another form for errors.
    pub(super) fn into_parts(self) -> (StatusCode, String) {
        (self.status, self.message)
    }

    /// Adds a member to the error.
    pub(super) fn with(mut self, name: &'static str, value: impl Into<serde_json::Value>) -> Self {
        self.more = Some((name, value.into()));
        self
    }
}

/// What went wrong in the storage is for the log; the client learns that it is not its fault.
impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Mismatch { .. } => Self::new(StatusCode::BAD_REQUEST, "mismatch", error.to_string()),
            StoreError::Incomplete { missing, .. } => {
                let message = format!("the record's blob {missing} is not here");
                Self::new(StatusCode::CONFLICT, "incomplete", message).with("missing", missing.to_string())
            }
            StoreError::Io { .. } | StoreError::Unavailable { .. } => {
                tracing::error!(error = crate::hint::with_causes(&error), "the storage failed");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "storage", "the storage does not work")
            }
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut error = json!({"code": self.code, "message": self.message});
        if let (Some(members), Some((name, value))) = (error.as_object_mut(), self.more) {
            members.insert(name.to_owned(), value);
        }
        let mut response = (self.status, Json(json!({"error": error}))).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Bearer realm=\"crossdock\"");
            response.headers_mut().append(header::WWW_AUTHENTICATE, challenge);
            let challenge = HeaderValue::from_static("Basic realm=\"crossdock\"");
            response.headers_mut().append(header::WWW_AUTHENTICATE, challenge);
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// Gives answers of the router itself (no such path, no such method) the form of all others.
pub(super) async fn plain_errors(request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    if response.headers().contains_key(header::CONTENT_TYPE) {
        return response;
    }
    match response.status() {
        StatusCode::NOT_FOUND => {
            Refusal::new(StatusCode::NOT_FOUND, "not-found", "there is no such path").into_response()
        }
        StatusCode::METHOD_NOT_ALLOWED => {
            let message = "this path does not take this method";
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method", message).into_response()
        }
        _ => response,
    }
}
