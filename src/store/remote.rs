//! A store that is not trusted to answer: time limits, and a circuit breaker for the rest of the build.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::{Store, StoreError};
use crate::event::{Event, Events};

/// What an answer may take without being counted as waiting in vain.
const ORDINARY: Duration = Duration::from_millis(100);

/// After this many errors or damaged answers the store is not asked again.
const FAILURES_MAX: u32 = 3;

/// A connection slower than this is worse than running the step again: bytes a second.
const SLOWEST: u64 = 1 << 20;

/// How long one upload may take beside its bytes. Nobody waits for it but the end of the build, which has its own
/// limit; this one only keeps a dead connection from holding its place.
pub(super) const SEND_LIMIT: Duration = Duration::from_secs(30);

/// The guarded store.
pub(super) struct Remote {
    store: Arc<dyn Store>,
    events: Events,
    /// What is left of the time that may be lost.
    left: Mutex<Duration>,
    failures: AtomicU32,
    warned: AtomicBool,
    broken: AtomicBool,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Remote").field(&self.store).finish()
    }
}

impl Remote {
    pub(super) fn new(store: Arc<dyn Store>, budget: Duration, events: Events) -> Self {
        Self {
            store,
            events,
            left: Mutex::new(budget),
            failures: AtomicU32::new(0),
            warned: AtomicBool::new(false),
            broken: AtomicBool::new(false),
        }
    }

    pub(super) fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// Whether it is still asked at all.
    pub(super) fn is_usable(&self) -> bool {
        !self.broken.load(Ordering::Relaxed)
    }

    /// Waits for a small answer that the build needs; `None` if there is none.
    pub(super) async fn ask<T>(&self, question: impl Future<Output = Result<T, StoreError>>) -> Option<T> {
        self.waiting(Duration::ZERO, question).await
    }

    /// Waits for a blob of `size` bytes that the build needs; `None` if it does not come.
    pub(super) async fn transfer<T>(
        &self,
        size: u64,
        transfer: impl Future<Output = Result<T, StoreError>>,
    ) -> Option<T> {
        self.waiting(transfer_time(size), transfer).await
    }

    /// Waits for a small upload in the background.
    pub(super) async fn send<T>(&self, upload: impl Future<Output = Result<T, StoreError>>) -> Option<T> {
        self.send_blob(0, upload).await
    }

    /// Waits for the upload of a blob of `size` bytes in the background.
    pub(super) async fn send_blob<T>(
        &self,
        size: u64,
        upload: impl Future<Output = Result<T, StoreError>>,
    ) -> Option<T> {
        if self.broken.load(Ordering::Relaxed) {
            return None;
        }
        match timeout(SEND_LIMIT + transfer_time(size), upload).await {
            Ok(Ok(answer)) => Some(answer),
            Ok(Err(error)) => {
                self.failed(&describe(&error));
                None
            }
            Err(_) => {
                self.failed("it took too long to accept an upload");
                None
            }
        }
    }

    /// Notes that the store answered something that it may not.
    pub(super) fn distrust(&self, what: &str) {
        self.failed(what);
    }

    async fn waiting<T>(
        &self,
        allowed: Duration,
        question: impl Future<Output = Result<T, StoreError>>,
    ) -> Option<T> {
        if self.broken.load(Ordering::Relaxed) {
            return None;
        }
        let left = *self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let start = Instant::now();
        let answer = timeout(left + allowed, question).await;
        let took = start.elapsed();
        let lost = match &answer {
            Ok(Ok(_)) => took.saturating_sub(ORDINARY.max(allowed)),
            Ok(Err(_)) | Err(_) => took.saturating_sub(allowed),
        };
        let left = {
            let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
            *left = left.saturating_sub(lost);
            *left
        };
        let answer = match answer {
            Ok(Ok(answer)) => Some(answer),
            Ok(Err(error)) => {
                self.failed(&describe(&error));
                None
            }
            Err(_) => {
                self.give_up("it does not answer in time");
                None
            }
        };
        if left.is_zero() {
            self.give_up("it answers too slowly");
        }
        answer
    }

    fn failed(&self, reason: &str) {
        if self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES_MAX {
            self.give_up(reason);
        } else if !self.warned.swap(true, Ordering::Relaxed) {
            self.warn(&format!("{} had a problem: {reason}", self.store.location()));
        }
    }

    fn give_up(&self, reason: &str) {
        if !self.broken.swap(true, Ordering::Relaxed) {
            self.warn(&format!("going on without {}: {reason}", self.store.location()));
        }
    }

    /// Says it, with what finds it in the server's log.
    fn warn(&self, message: &str) {
        let message = match self.store.requests_begin_with() {
            Some(prefix) if !message.contains(&format!("(request {prefix}-")) => {
                format!("{message} (requests {prefix}-…)")
            }
            _ => message.to_owned(),
        };
        self.events.emit(Event::Warning { message });
    }
}

fn transfer_time(size: u64) -> Duration {
    Duration::from_millis(size / (SLOWEST / 1000))
}

/// An error with its causes, in one line.
fn describe(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
