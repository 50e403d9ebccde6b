//! Remembered digests of files on disk, so that an unchanged context is not read again.

use std::collections::HashMap;

use crate::digest::Digest;
use crate::encoding::{DecodeError, Decoder, Encoder};
use crate::layer::Timestamp;

/// What tells whether a file may have changed since it was hashed (as git's index does).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileState {
    /// Device of the file system.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Number of hard links; not part of the comparison.
    pub links: u64,
    /// Length in bytes.
    pub size: u64,
    /// Last modification.
    pub mtime: Timestamp,
    /// Last change of the inode, which no program can set back.
    pub ctime: Timestamp,
}

impl FileState {
    fn same(&self, other: &Self) -> bool {
        Self { links: 0, ..*self } == Self { links: 0, ..*other }
    }
}

/// Digests by path below one context's root.
#[derive(Debug, Clone, Default)]
pub struct HashCache {
    known: HashMap<Vec<u8>, (FileState, Digest)>,
    seen: HashMap<Vec<u8>, (FileState, Digest)>,
    changed: bool,
}

const MAGIC: &[u8] = b"crossdock-hashes";
const VERSION: u64 = 1;

/// A file that changed this recently before it was hashed may change again without another timestamp: file
/// systems count in steps of up to two seconds (git calls such entries racy).
const RACY_SECONDS: i64 = 3;

impl HashCache {
    /// The digest of the file at `path`, if it has not changed since it was remembered.
    pub fn get(&self, path: &[u8], state: &FileState) -> Option<Digest> {
        self.known.get(path).filter(|(known, _)| known.same(state)).map(|(_, digest)| *digest)
    }

    /// Remembers the digest of the file at `path`, read at `now` or later.
    pub fn put(&mut self, path: &[u8], state: FileState, digest: Digest, now: Timestamp) {
        if state.mtime.seconds.max(state.ctime.seconds) + RACY_SECONDS > now.seconds {
            return;
        }
        if self.get(path, &state).is_none() {
            self.changed = true;
        }
        self.seen.insert(path.to_vec(), (state, digest));
    }

    /// Whether writing it out again is worth it.
    pub fn is_changed(&self) -> bool {
        self.changed
    }

    /// The stored form: what this scan saw, and what earlier ones knew of other paths.
    pub fn encode(&self) -> Vec<u8> {
        let mut all: Vec<_> = self.seen.iter().collect();
        all.extend(self.known.iter().filter(|(path, _)| !self.seen.contains_key(*path)));
        all.sort_unstable_by_key(|(path, _)| *path);
        let mut encoder = Encoder::new();
        encoder.bytes(MAGIC).uint(VERSION).list(all, |e, (path, (state, digest))| {
            e.bytes(path).uint(state.device).uint(state.inode).uint(state.size);
            for time in [state.mtime, state.ctime] {
                e.int(time.seconds).uint(time.nanos.into());
            }
            e.digest(digest);
        });
        encoder.finish()
    }

    /// Reads what [`HashCache::encode`] wrote.
    pub fn decode(data: &[u8]) -> Result<Self, DecodeError> {
        let mut decoder = Decoder::new(data);
        if decoder.bytes()? != MAGIC {
            return Err(decoder.malformed("hash cache"));
        }
        let version = decoder.uint()?;
        if version != VERSION {
            return Err(DecodeError::Version { what: "hash cache", found: version, known: VERSION });
        }
        let time = |d: &mut Decoder<'_>| {
            Ok::<_, DecodeError>(Timestamp { seconds: d.int()?, nanos: d.small("nanoseconds")? })
        };
        let items = decoder.list(|d| {
            let path = d.bytes()?.to_vec();
            let (device, inode, size) = (d.uint()?, d.uint()?, d.uint()?);
            let state = FileState { device, inode, links: 0, size, mtime: time(d)?, ctime: time(d)? };
            Ok((path, (state, d.digest()?)))
        })?;
        decoder.finish()?;
        Ok(Self { known: items.into_iter().collect(), ..Self::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(seconds: i64) -> FileState {
        let time = Timestamp { seconds, nanos: 5 };
        FileState { device: 1, inode: 2, links: 1, size: 3, mtime: time, ctime: time }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp { seconds, nanos: 0 }
    }

    #[test]
    fn remembers_across_runs_until_the_file_changes() {
        let digest = Digest::of("x");
        let mut cache = HashCache::default();
        cache.put(b"f", state(100), digest, at(200));
        assert!(cache.is_changed());
        let again = HashCache::decode(&cache.encode()).unwrap();
        assert_eq!(again.get(b"f", &FileState { links: 7, ..state(100) }), Some(digest));
        assert_eq!(again.get(b"f", &state(101)), None);
        assert_eq!(again.get(b"g", &state(100)), None);
    }

    #[test]
    fn files_that_changed_just_now_are_not_remembered() {
        let mut cache = HashCache::default();
        cache.put(b"f", state(100), Digest::of("x"), at(101));
        assert!(!cache.is_changed());
        assert_eq!(HashCache::decode(&cache.encode()).unwrap().get(b"f", &state(100)), None);
    }

    #[test]
    fn damaged_data_is_refused() {
        let mut cache = HashCache::default();
        cache.put(b"f", state(100), Digest::of("x"), at(200));
        let good = cache.encode();
        for cut in 0..good.len() {
            assert!(HashCache::decode(&good[..cut]).is_err());
        }
    }
}
