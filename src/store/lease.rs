//! Leases: who is executing a step now, among all the machines that share a store.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::cache::Inner;
use crate::record::Key;

/// How long a lease lasts if it is not taken again: after that others go on without whoever has died.
const LIFETIME: Duration = Duration::from_secs(10);

/// How often it is taken again. Two attempts may fail.
const RENEWAL: Duration = Duration::from_secs(3);

/// What a store says to somebody who wants to execute a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseAnswer {
    /// Nobody else does.
    Granted,
    /// Somebody does.
    Held {
        /// Who.
        by: String,
        /// How long at least, if they do not go on.
        remaining: Duration,
    },
    /// The store has no leases, or none for this caller.
    NoLeases,
}

/// What is to be done about a step.
#[derive(Debug)]
pub enum Turn {
    /// To execute it, and to hold on to this until the record is published.
    Mine(Lease),
    /// To wait: somebody else is executing it.
    Theirs {
        /// Who.
        by: String,
        /// When to look again.
        after: Duration,
    },
}

/// Holds a lease, and takes it again and again, until it is dropped.
#[derive(Debug, Default)]
#[must_use = "dropping it gives the lease back"]
pub struct Lease(Option<Held>);

#[derive(Debug)]
struct Held {
    inner: Arc<Inner>,
    key: Key,
    renewal: JoinHandle<()>,
}

impl Lease {
    /// Where there is nothing to hold.
    pub(super) fn none() -> Self {
        Self(None)
    }

    /// Asks for the lease on `key`.
    pub(super) async fn ask(inner: &Arc<Inner>, key: Key) -> Turn {
        let nothing = Turn::Mine(Self::none());
        let Some(remote) = inner.remote.as_ref().filter(|_| !inner.options.read_only) else { return nothing };
        let asked = remote.store().take_lease(&key, &inner.options.write_scope, &inner.holder, LIFETIME);
        match remote.ask(asked).await {
            Some(LeaseAnswer::Granted) => {}
            Some(LeaseAnswer::Held { by, remaining }) => return Turn::Theirs { by, after: remaining },
            Some(LeaseAnswer::NoLeases) | None => return nothing,
        }
        let weak = Arc::downgrade(inner);
        let renewal = tokio::spawn(async move {
            loop {
                tokio::time::sleep(RENEWAL).await;
                let Some(inner) = weak.upgrade() else { return };
                let Some(remote) = &inner.remote else { return };
                let again =
                    remote.store().take_lease(&key, &inner.options.write_scope, &inner.holder, LIFETIME);
                // Without an answer there is nothing else to do: the work goes on, and may be done twice.
                let _ = remote.send(again).await;
            }
        });
        Turn::Mine(Self(Some(Held { inner: Arc::clone(inner), key, renewal })))
    }

    /// Gives it back, and waits until that is done.
    pub(super) async fn release(mut self) {
        if let Some(held) = self.0.take() {
            held.release().await;
        }
    }
}

impl Held {
    async fn release(self) {
        self.renewal.abort();
        if let Some(remote) = &self.inner.remote {
            let given =
                remote.store().release_lease(&self.key, &self.inner.options.write_scope, &self.inner.holder);
            // If it is not heard, it ends by itself.
            let _ = remote.send(given).await;
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(held) = self.0.take() else { return };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(held.release())),
            Err(_) => held.renewal.abort(),
        }
    }
}
