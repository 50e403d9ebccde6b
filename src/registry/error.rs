//! What can go wrong with a registry, and what to do about it.

use std::fmt;
use std::time::Duration;

use crate::digest::Digest;
use crate::hint::Hint;

/// An error of one operation on one registry. Neither its text nor its debug form has credentials or signed
/// parameters in it.
#[derive(Debug, thiserror::Error)]
#[error("{action} ({registry}/{repository}) failed: {kind}")]
pub struct RegistryError {
    /// What was being done: `reading manifest 1.2`.
    pub action: String,
    /// The registry, as in the image's reference.
    pub registry: String,
    /// The repository.
    pub repository: String,
    /// What happened.
    pub kind: RegistryErrorKind,
}

/// One entry of a registry's error answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorDetail {
    /// The code, such as `MANIFEST_UNKNOWN`.
    pub code: String,
    /// The text that goes with it.
    pub message: String,
}

impl fmt::Display for ErrorDetail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code.is_empty(), self.message.is_empty()) {
            (false, false) => write!(f, "{}: {}", self.code, self.message),
            (false, true) => f.write_str(&self.code),
            _ => f.write_str(&self.message),
        }
    }
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum RegistryErrorKind {
    /// The registry answered with an error.
    #[error("the registry answered {}{}", status_text(*status), details(errors))]
    Status {
        /// The HTTP status.
        status: u16,
        /// The registry's explanation.
        errors: Vec<ErrorDetail>,
    },
    /// The registry wants other credentials, or any at all.
    #[error("access denied: the registry answered {}{}", status_text(*status), details(errors))]
    Denied {
        /// The HTTP status.
        status: u16,
        /// The registry's explanation.
        errors: Vec<ErrorDetail>,
        /// Whether credentials were sent.
        authenticated: bool,
    },
    /// The credentials could not be looked up.
    #[error("the credentials cannot be read: {reason}")]
    Credentials {
        /// Why.
        reason: String,
    },
    /// The registry could not be reached, or the connection broke, as often as it was tried.
    #[error("{reason}")]
    Transport {
        /// Why, without secrets.
        reason: String,
        /// The registry was spoken to in plain HTTP.
        plain_http: bool,
    },
    /// No progress for too long.
    #[error("nothing moved for {} seconds", idle.as_secs())]
    Timeout {
        /// How long was waited.
        idle: Duration,
    },
    /// The answer is not what the protocol says.
    #[error("the registry's answer makes no sense: {reason}")]
    Protocol {
        /// What is wrong with it.
        reason: String,
    },
    /// The content does not have the digest that was asked for.
    #[error("the content has digest {actual} instead of {expected}")]
    Digest {
        /// The digest asked for.
        expected: Box<Digest>,
        /// The digest of what came.
        actual: Box<Digest>,
    },
    /// The content does not have the size that it should have.
    #[error("the content has {actual} bytes instead of {expected}")]
    Size {
        /// The size in the descriptor.
        expected: u64,
        /// The size of what came, or what came before reading was stopped.
        actual: u64,
    },
    /// The content is larger than what is read.
    #[error("the content has more than the {limit} bytes that are read")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// Reading or writing a local file failed.
    #[error("{file}: {reason}")]
    File {
        /// The file.
        file: String,
        /// The cause.
        reason: String,
    },
}

fn status_text(status: u16) -> String {
    let reason = reqwest::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    match reason {
        Some(reason) => format!("{status} {reason}"),
        None => status.to_string(),
    }
}

fn details(errors: &[ErrorDetail]) -> String {
    if errors.is_empty() {
        return String::new();
    }
    let all: Vec<String> = errors.iter().map(ErrorDetail::to_string).collect();
    format!(" ({})", all.join("; "))
}

impl RegistryError {
    /// The HTTP status, if the registry answered.
    pub fn status(&self) -> Option<u16> {
        match &self.kind {
            RegistryErrorKind::Status { status, .. } | RegistryErrorKind::Denied { status, .. } => {
                Some(*status)
            }
            _ => None,
        }
    }

    /// Whether the registry said that what was asked for does not exist.
    pub fn is_not_found(&self) -> bool {
        self.status() == Some(404)
    }

    fn has_code(&self, wanted: &str) -> bool {
        match &self.kind {
            RegistryErrorKind::Status { errors, .. } | RegistryErrorKind::Denied { errors, .. } => {
                errors.iter().any(|error| error.code == wanted)
            }
            _ => false,
        }
    }
}

impl Hint for RegistryError {
    fn hint(&self) -> Option<String> {
        let registry = &self.registry;
        let login = if registry == "docker.io" { String::new() } else { format!(" {registry}") };
        Some(match &self.kind {
            RegistryErrorKind::Denied { authenticated: false, .. } => format!(
                "log in with `docker login{login}` or `podman login {registry}`, or check the name: many registries \
                 answer so when a repository does not exist"
            ),
            RegistryErrorKind::Denied { authenticated: true, .. } => format!(
                "the credentials for {registry} were not accepted for this repository; log in again with \
                 `docker login{login}`, or ask for access"
            ),
            RegistryErrorKind::Status { status: 404, .. } if self.has_code("NAME_UNKNOWN") => {
                format!("{registry} has no repository `{}`: check the name", self.repository)
            }
            RegistryErrorKind::Status { status: 404, .. } if self.has_code("MANIFEST_UNKNOWN") => {
                format!("`{}` is there, but not this tag or digest: check it", self.repository)
            }
            RegistryErrorKind::Status { status: 429, .. } if registry == "docker.io" => {
                "Docker Hub limits anonymous pulls; log in with `docker login`, or use a mirror".to_owned()
            }
            RegistryErrorKind::Status { status: 429, .. } => {
                "the registry limits how often it may be asked; try again later".to_owned()
            }
            RegistryErrorKind::Status { status: 400, errors } if errors.iter().any(is_tls_answer) => {
                format!(
                    "{registry} speaks HTTPS; it was asked in plain HTTP, because it is on this machine or the configuration \
                     file says `http = true`; if its certificate is a private authority's, name that there (`ca`)"
                )
            }
            RegistryErrorKind::Transport { plain_http: false, reason } if is_plain_answer(reason) => {
                format!(
                    "{registry} seems to speak plain HTTP; if you trust the network, say `http = true` below \
                     `[registries.\"{registry}\"]` in the configuration file"
                )
            }
            RegistryErrorKind::Transport { reason, .. } if reason.contains("certificate") => format!(
                "the certificate of {registry} is not trusted here; install its authority's certificate on this \
                 machine, or as /etc/docker/certs.d/{registry}/ca.crt, or name it in the configuration file"
            ),
            RegistryErrorKind::Transport { reason, .. }
                if reason.contains("dns error") || reason.contains("lookup address") =>
            {
                format!("check the registry's name `{registry}` and the network")
            }
            RegistryErrorKind::Digest { .. } | RegistryErrorKind::Size { .. } => {
                "the registry, or something between, damaged the content; nothing of it was used".to_owned()
            }
            _ => return None,
        })
    }
}

/// Go's HTTP server says this to whoever speaks plain HTTP to a TLS port.
fn is_tls_answer(error: &ErrorDetail) -> bool {
    error.message.contains("HTTP request to an HTTPS server")
}

/// What rustls says when the other side does not speak TLS.
fn is_plain_answer(reason: &str) -> bool {
    reason.contains("corrupt message") || reason.contains("InvalidContentType")
}
