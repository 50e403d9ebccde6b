//! Stopping a running step from another thread.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// Tells running steps to stop. Clones share one state; once cancelled it stays so.
#[derive(Debug, Clone)]
pub struct CancelToken(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cancelled: AtomicBool,
    /// Becomes readable on cancellation and is never read, so that every waiter sees it.
    event: OwnedFd,
}

impl CancelToken {
    /// A token that is not cancelled.
    ///
    /// Fails only when the process has no file descriptors left.
    pub fn new() -> std::io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(Inner { cancelled: AtomicBool::new(false), event })))
    }

    /// Stops every run that has this token, now and later.
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::SeqCst);
        // The counter can only fail to grow when it is full, and then it is readable anyway.
        let _ = rustix::io::write(&self.0.event, &1_u64.to_ne_bytes());
    }

    /// Whether [`cancel`](Self::cancel) was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::SeqCst)
    }
}

/// A descriptor that polls readable once the token is cancelled.
impl AsFd for CancelToken {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    #[test]
    fn cancelling_wakes_every_waiter() {
        let token = CancelToken::new().unwrap();
        let ready = |token: &CancelToken| {
            let mut fds = [PollFd::new(token, PollFlags::IN)];
            poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap()
        };
        assert_eq!((token.is_cancelled(), ready(&token)), (false, 0));
        let other = token.clone();
        other.cancel();
        for waiter in [&token, &other, &token] {
            assert!(waiter.is_cancelled());
            assert_eq!(ready(waiter), 1);
        }
    }
}
