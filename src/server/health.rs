//! Whether the server lives, and whether it is of use.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;

use super::Server;
use super::machine::Process;
use crate::store::DocumentName;

/// How often the storage is asked. Probes of orchestrators come every ten seconds or so.
const EVERY: Duration = Duration::from_secs(2);

/// An answer of the storage that took longer is none.
const PATIENCE: Duration = Duration::from_secs(3);

/// What is known of the storage is good for so long.
const FRESH: Duration = Duration::from_secs(8);

/// The state that probes are told. It is found out beside them, so that they are answered at once, whatever hangs.
#[derive(Debug, Default)]
pub(super) struct Health {
    draining: AtomicBool,
    storage: Mutex<Option<(Instant, Result<(), String>)>>,
}

impl Health {
    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Why it should get no requests now.
    fn obstacle(&self) -> Option<String> {
        if self.draining.load(Ordering::Relaxed) {
            return Some("it is ending".to_owned());
        }
        match &*self.storage.lock().unwrap_or_else(PoisonError::into_inner) {
            None => Some("it is starting".to_owned()),
            Some((since, _)) if since.elapsed() > FRESH => Some("the storage does not answer".to_owned()),
            Some((_, Err(reason))) => Some(reason.clone()),
            Some((_, Ok(()))) => None,
        }
    }
}

/// Asks the storage again and again, as long as the server is there.
pub(super) async fn probe(server: Arc<Server>) {
    let Ok(name) = "probe".parse::<DocumentName>() else { return };
    let system = server.storage.system();
    loop {
        let started = Instant::now();
        let answer = tokio::time::timeout(PATIENCE, system.read_document(&name)).await;
        server.metrics.probed(started.elapsed());
        let state = match answer {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => {
                tracing::warn!(error = crate::hint::with_causes(&error), "the storage failed");
                Err("the storage fails".to_owned())
            }
            Err(_) => Err("the storage does not answer".to_owned()),
        };
        *server.health.storage.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), state));
        tokio::time::sleep(EVERY).await;
    }
}

pub(super) fn router() -> Router<Arc<Server>> {
    Router::new()
        .route("/livez", get(async || answer(None)))
        .route("/readyz", get(ready))
        .route("/healthz", get(ready))
        .route("/metrics", get(metrics))
}

async fn ready(State(server): State<Arc<Server>>) -> Response {
    answer(server.health.obstacle())
}

fn answer(obstacle: Option<String>) -> Response {
    let (status, body) = match obstacle {
        None => (StatusCode::OK, json!({"status": "pass", "version": env!("CARGO_PKG_VERSION")})),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, json!({"status": "fail", "output": reason})),
    };
    ([(header::CONTENT_TYPE, "application/health+json")], (status, body.to_string())).into_response()
}

async fn metrics(State(server): State<Arc<Server>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    server.metrics.process(Process::read(), server.uploads.len(), server.health.obstacle().is_none());
    ([(header::CONTENT_TYPE, kind)], server.metrics.text()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_ready_when_nothing_is_in_the_way() {
        let health = Health::default();
        let found = |state: Result<(), String>, age: Duration| {
            let since = Instant::now().checked_sub(age).unwrap();
            *health.storage.lock().unwrap() = Some((since, state));
            health.obstacle()
        };
        assert_eq!(health.obstacle().as_deref(), Some("it is starting"));
        assert_eq!(found(Ok(()), Duration::ZERO), None);
        assert_eq!(found(Err("no".to_owned()), Duration::ZERO).as_deref(), Some("no"));
        // Whoever asks the storage may itself hang.
        let old = FRESH + Duration::from_secs(1);
        assert_eq!(found(Ok(()), old).as_deref(), Some("the storage does not answer"));
        assert_eq!(found(Ok(()), Duration::ZERO), None);
        health.drain();
        assert_eq!(health.obstacle().as_deref(), Some("it is ending"));
    }
}
