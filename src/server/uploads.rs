//! Uploads that are not finished, of all protocols that have such.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::StatusCode;

use super::body::Spool;
use super::error::Refusal;
use super::tokens::random;

/// An upload that nothing was added to for so long is given up.
const FORGOTTEN: Duration = Duration::from_hours(1);

/// The unfinished uploads of this process. They end with it: a client then begins again.
#[derive(Debug)]
pub(super) struct Uploads {
    max: usize,
    sessions: Mutex<HashMap<String, Session>>,
}

#[derive(Debug)]
struct Session {
    /// Who may go on with it: a tenant, and a repository if it is one's.
    owner: String,
    touched: Instant,
    /// Nothing while somebody adds to it.
    spool: Option<Spool>,
}

impl Uploads {
    pub(super) fn new(max: usize) -> Self {
        Self { max, sessions: Mutex::default() }
    }

    pub(super) fn open(&self, owner: String, spool: Spool) -> Result<String, Refusal> {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|_, session| session.spool.is_none() || session.touched.elapsed() < FORGOTTEN);
        if sessions.len() >= self.max {
            let message = "too many uploads are unfinished";
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message));
        }
        let id = random(18).map_err(|error| {
            tracing::error!(%error, "no random numbers");
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "storage", "the server cannot make names")
        })?;
        let session = Session { owner, touched: Instant::now(), spool: Some(spool) };
        sessions.insert(id.clone(), session);
        Ok(id)
    }

    /// Takes the content of an upload, for whoever brings it back.
    pub(super) fn take(&self, id: &str, owner: &str) -> Result<Spool, Refusal> {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let session = sessions.get_mut(id).filter(|session| session.owner == owner);
        let spool = session.ok_or_else(Refusal::not_found)?.spool.take();
        spool.ok_or_else(|| Refusal::new(StatusCode::CONFLICT, "busy", "this upload is being added to"))
    }

    pub(super) fn put_back(&self, id: &str, spool: Spool) {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = sessions.get_mut(id) {
            session.touched = Instant::now();
            session.spool = Some(spool);
        }
    }

    pub(super) fn remove(&self, id: &str) {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    pub(super) fn len(&self) -> usize {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}
