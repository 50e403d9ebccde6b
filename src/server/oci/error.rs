//! Errors in the form of the specification ("Error Codes").

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::store::StoreError;

/// The codes of the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    BlobUnknown,
    BlobUploadInvalid,
    BlobUploadUnknown,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    SizeInvalid,
    Unauthorized,
    Denied,
    Unsupported,
    /// A part of a blob that cannot be had, or that does not follow on what is there.
    RangeInvalid,
    /// Not of the specification: the storage does not work.
    Unavailable,
}

impl Code {
    fn parts(self) -> (StatusCode, &'static str) {
        match self {
            Self::BlobUnknown => (StatusCode::NOT_FOUND, "BLOB_UNKNOWN"),
            Self::BlobUploadInvalid => (StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID"),
            Self::BlobUploadUnknown => (StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN"),
            Self::DigestInvalid => (StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
            Self::ManifestBlobUnknown => (StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN"),
            Self::ManifestInvalid => (StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
            Self::ManifestUnknown => (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
            Self::NameInvalid => (StatusCode::BAD_REQUEST, "NAME_INVALID"),
            Self::NameUnknown => (StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
            Self::SizeInvalid => (StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID"),
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "UNAUTHORIZED"),
            Self::Denied => (StatusCode::FORBIDDEN, "DENIED"),
            Self::Unsupported => (StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED"),
            Self::RangeInvalid => (StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID"),
            Self::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE"),
        }
    }
}

/// An answer that is an error.
#[derive(Debug)]
pub(super) struct OciError {
    code: Code,
    message: String,
}

impl OciError {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl From<StoreError> for OciError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Mismatch { .. } => Self::new(Code::DigestInvalid, error.to_string()),
            _ => {
                tracing::error!(error = crate::hint::with_causes(&error), "the storage failed");
                Self::new(Code::Unavailable, "the storage does not work")
            }
        }
    }
}

/// What went wrong with a body.
impl From<crate::server::error::Refusal> for OciError {
    fn from(refusal: crate::server::error::Refusal) -> Self {
        let (status, message) = refusal.into_parts();
        let code = match status {
            StatusCode::PAYLOAD_TOO_LARGE => Code::SizeInvalid,
            StatusCode::SERVICE_UNAVAILABLE => Code::Unavailable,
            StatusCode::NOT_FOUND => Code::BlobUploadUnknown,
            _ => Code::BlobUploadInvalid,
        };
        Self::new(code, message)
    }
}

impl IntoResponse for OciError {
    fn into_response(self) -> Response {
        let (status, code) = self.code.parts();
        let body = json!({"errors": [{"code": code, "message": self.message, "detail": null}]});
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        if self.code == Code::Unauthorized {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"crossdock\""));
        }
        if self.code == Code::Unavailable {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// The answer to whoever does not say who they are, or is nobody. `realm` is where Docker's token flow begins, which no
/// client needs: all know Basic.
pub(in crate::server) fn unauthorized(realm: Option<String>) -> Response {
    let message = "log in with any name, and a token as the password";
    let mut response = OciError::new(Code::Unauthorized, message).into_response();
    let challenge = realm.map(|realm| format!("Bearer realm=\"{realm}\",service=\"crossdock\""));
    if let Some(challenge) = challenge.and_then(|challenge| HeaderValue::from_str(&challenge).ok()) {
        response.headers_mut().append(header::WWW_AUTHENTICATE, challenge);
    }
    response
}
