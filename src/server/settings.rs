//! What a server is told by whoever starts it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::gc::GcPolicy;
use super::identity::{ScopePattern, Tenant};
use super::oci::MirrorSource;
use super::oidc::{Issuer, Policy};
use super::traces::Otlp;
use crate::registry;
use crate::store::Clock;

/// The settings of a server, resolved.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Certificates, if it speaks TLS.
    pub tls: Option<Tls>,
    /// Anybody may do anything. Only for tests and a developer's own machine.
    pub no_auth: bool,
    /// The CI providers whose jobs may come in.
    pub issuers: Vec<Issuer>,
    /// What those may do.
    pub policy: Policy,
    /// What everybody may read who gives no token.
    pub anonymous: Option<Anonymous>,
    /// Its URL as clients know it, where that is not the address that they ask.
    pub public_url: Option<String>,
    /// The registries whose images are served through this one.
    pub mirrors: Vec<MirrorSource>,
    /// Talks to those.
    pub registry: Option<registry::Client>,
    /// Where traces are sent, if anybody wants them.
    pub otlp: Option<Otlp>,
    /// What is removed while it serves.
    pub gc: GcPolicy,
    /// Bounds.
    pub limits: Limits,
    /// Tells the time.
    pub clock: Clock,
}

impl Settings {
    /// The defaults: on this machine only, on any free port, and for those who have a token.
    pub fn new(clock: Clock) -> Self {
        Self {
            listen: SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, 0)),
            tls: None,
            no_auth: false,
            issuers: Vec::new(),
            policy: Policy::default(),
            anonymous: None,
            public_url: None,
            mirrors: Vec::new(),
            registry: None,
            otlp: None,
            gc: GcPolicy::default(),
            limits: Limits::default(),
            clock,
        }
    }
}

/// What may be read without a token: by builds of pull requests from forks, which have none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anonymous {
    /// Whose storage.
    pub tenant: Tenant,
    /// The scopes whose records may be read.
    pub read: Vec<ScopePattern>,
}

/// Where the certificate is; read again on SIGHUP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The chain, PEM.
    pub certificate: PathBuf,
    /// The private key, PEM.
    pub key: PathBuf,
}

/// What a client may use up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time; more wait in the kernel's queue.
    pub connections_max: usize,
    /// The largest blob, in bytes.
    pub blob_bytes_max: u64,
    /// Unfinished resumable uploads at a time.
    pub uploads_max: usize,
    /// How long a client may be silent in the middle of a request, or between two of them.
    pub idle: Duration,
    /// How long requests may go on after the server was asked to end.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // A runner has some ten; each costs a few tens of KiB.
            connections_max: 8192,
            blob_bytes_max: 64 << 30,
            uploads_max: 1024,
            idle: Duration::from_mins(1),
            drain: Duration::from_secs(25),
        }
    }
}
