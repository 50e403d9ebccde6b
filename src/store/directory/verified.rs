//! What was verified lately: a file that is read again and again need not be hashed each time.
//!
//! A file counts as the one that was verified while its device, inode, size and times are the same; whatever writes to
//! it changes one of them. What changes none, decay of the medium, is found when the time is up.

use std::collections::HashMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::digest::Digest;

/// How long a verification counts.
const VALID: Duration = Duration::from_mins(10);

/// Two changes may have one time: the clocks of file systems tick up to a hundred times a second, some once in two
/// seconds. A file that was changed less than this before it was verified is not remembered.
const TICK: Duration = Duration::from_secs(3);

/// Files that are remembered; each takes some 150 bytes.
const REMEMBERED_MAX: usize = 65_536;

/// Tells states of a file apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl State {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// When it came to be, for those who trust no clock that goes backwards.
    fn since(&self) -> SystemTime {
        let (seconds, _) = self.changed.max(self.modified);
        UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    }
}

/// Files that were verified. For one process.
#[derive(Debug, Default)]
pub(super) struct Verified(Mutex<HashMap<Digest, (State, SystemTime)>>);

impl Verified {
    /// Whether the file with this metadata was verified, and is as it was then.
    pub(super) fn contains(&self, digest: &Digest, metadata: &Metadata, now: SystemTime) -> bool {
        let verified = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        verified.get(digest).is_some_and(|(state, since)| {
            *state == State::of(metadata) && now.duration_since(*since).is_ok_and(|age| age < VALID)
        })
    }

    /// Takes note of a verification that began with `before` and ended with `after`.
    pub(super) fn remember(&self, digest: &Digest, before: &Metadata, after: &Metadata, now: SystemTime) {
        let state = State::of(before);
        let is_settled = now.duration_since(state.since()).is_ok_and(|age| age >= TICK);
        if state == State::of(after) && is_settled {
            self.insert(digest, state, now);
        }
    }

    /// Takes note of a file that was hashed while it was written, and that nobody else has had in hand yet.
    pub(super) fn remember_new(&self, digest: &Digest, written: &Metadata, now: SystemTime) {
        self.insert(digest, State::of(written), now);
    }

    fn insert(&self, digest: &Digest, state: State, now: SystemTime) {
        let mut verified = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if verified.len() >= REMEMBERED_MAX {
            let is_valid = |since: &SystemTime| now.duration_since(*since).is_ok_and(|age| age < VALID);
            verified.retain(|_, (_, since)| is_valid(since));
            if verified.len() >= REMEMBERED_MAX {
                verified.clear();
            }
        }
        verified.insert(*digest, (state, now));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn what_was_just_written_is_verified_until_it_changes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (digest, verified, now) = (Digest::of("content"), Verified::default(), SystemTime::now());
        std::fs::write(file.path(), "content").unwrap();
        verified.remember_new(&digest, &std::fs::metadata(file.path()).unwrap(), now);
        assert!(verified.contains(&digest, &std::fs::metadata(file.path()).unwrap(), now));
        std::thread::sleep(Duration::from_millis(50));
        std::fs::write(file.path(), "damaged").unwrap();
        assert!(!verified.contains(&digest, &std::fs::metadata(file.path()).unwrap(), now));
    }

    #[test]
    fn a_verification_ends_with_any_change_and_with_its_time() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"content").unwrap();
        let (digest, verified) = (Digest::of("content"), Verified::default());
        let metadata = || std::fs::metadata(file.path()).unwrap();
        let now = SystemTime::now();
        verified.remember(&digest, &metadata(), &metadata(), now);
        assert!(!verified.contains(&digest, &metadata(), now), "it was changed just now");
        let later = now + TICK + Duration::from_secs(1);
        verified.remember(&digest, &metadata(), &metadata(), later);
        assert!(verified.contains(&digest, &metadata(), later));
        assert!(!verified.contains(&Digest::of("other"), &metadata(), later));
        assert!(!verified.contains(&digest, &metadata(), later + VALID), "its time is up");
        assert!(!verified.contains(&digest, &metadata(), now), "nor before it was");
        // Written to in place, with its old time put back: the time of change tells.
        let times = std::fs::FileTimes::new().set_modified(metadata().modified().unwrap());
        std::thread::sleep(Duration::from_millis(50));
        let opened = std::fs::OpenOptions::new().write(true).open(file.path()).unwrap();
        (&opened).write_all(b"damaged").unwrap();
        let before = metadata();
        opened.set_times(times).unwrap();
        assert!(!verified.contains(&digest, &metadata(), later));
        // What changed while it was read was not verified.
        std::thread::sleep(Duration::from_millis(50));
        opened.set_times(times).unwrap();
        verified.remember(&digest, &before, &metadata(), later);
        assert!(!verified.contains(&digest, &metadata(), later));
    }
}
