//! The cache server: one storage, several protocols over it.
//!
//! A request passes, in this order: the limits of its connection ([`listen`]), its identity ([`access`]; [`session`] for
//! those of CI providers), and then a
//! protocol: the native one ([`api`]) that
//! `--cache http://…` speaks, or that of OCI registries ([`oci`]). Nothing is kept in the process that cannot be lost:
//! any number of servers may use one storage, and be killed at any time.
//!
//! Tenants share nothing: each has a [`Backend`](crate::store::Backend) of its own below the storage, so that no digest,
//! no error and no time that an answer takes tells anything about another tenant.

mod access;
mod api;
mod body;
mod error;
mod gc;
mod health;
mod identity;
mod listen;
mod machine;
mod measured;
mod metrics;
mod observe;
mod oci;
mod oidc;
mod outlet;
mod session;
mod settings;
mod storage;
mod stream;
mod tokens;
mod traces;
mod uploads;
mod visible;

use std::sync::Arc;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::any;

pub use error::ServeError;
pub use gc::{Damage, GcError, GcPolicy, GcReport, TenantUsage, collect, usage, verify};
pub use identity::{Grant, RepositoryPattern, ScopePattern, Tenant};
pub use listen::{Shutdown, serve};
pub use oci::{MirrorSource, MirrorSourceError};
pub use oidc::{Claims, Decision, Issuer, Policy, PolicyError, Preset, Rule, Verdict};
pub use settings::{Anonymous, Limits, Settings, Tls};
pub use storage::{Storage, StorageKind};
pub use tokens::{Token, TokenError, Tokens};
pub use traces::Otlp;

/// What all requests share.
#[derive(Debug)]
pub struct Server {
    settings: Settings,
    storage: Storage,
    tokens: Tokens,
    metrics: Arc<metrics::Metrics>,
    traces: traces::Traces,
    health: health::Health,
    uploads: uploads::Uploads,
    /// Who is believed, and what they may do.
    oidc: Option<(oidc::Verifier, Policy)>,
    mirrors: oci::Mirrors,
    visible: visible::Visible,
}

impl Server {
    /// A server over `storage`.
    pub fn new(settings: Settings, storage: Storage) -> Arc<Self> {
        let metrics = metrics::Metrics::new(&settings.limits, (settings.clock)());
        storage.measure(metrics.storage());
        let traces = traces::Traces::new(settings.otlp.as_ref(), metrics.spans.clone());
        let tokens = Tokens::new(storage.system(), settings.clock);
        let uploads = uploads::Uploads::new(settings.limits.uploads_max);
        let oidc = (!settings.issuers.is_empty())
            .then(|| (oidc::Verifier::new(&settings.issuers), settings.policy.clone()));
        let mirrors = oci::Mirrors::new(settings.mirrors.clone(), settings.registry.clone());
        Arc::new(Self {
            mirrors,
            visible: visible::Visible::default(),
            oidc,
            settings,
            storage,
            tokens,
            metrics,
            traces,
            health: health::Health::default(),
            uploads,
        })
    }

    /// Everything that it answers.
    fn router(self: &Arc<Self>) -> Router {
        let protected = Router::new()
            .nest("/api/v1", api::router())
            .layer(from_fn_with_state(Arc::clone(self), access::identify));
        let registry = Router::new()
            .route("/v2", any(oci::handle))
            .route("/v2/", any(oci::handle))
            .route("/v2/{*path}", any(oci::handle))
            .layer(from_fn_with_state(Arc::clone(self), access::identify_registry));
        Router::new()
            .merge(protected)
            .merge(registry)
            .merge(session::router())
            .merge(health::router())
            .layer(from_fn(error::plain_errors))
            .layer(from_fn_with_state(Arc::clone(self), observe::observe))
            .with_state(Arc::clone(self))
    }
}

#[cfg(test)]
mod tests;
