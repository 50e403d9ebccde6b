//! The ledger of a cache mount: what the steps that used it have seen of their other files, and with what times
//! (`docs/formats.md`, "Ledgers").

use std::collections::BTreeMap;
use std::io;

use super::sealed::{self, Limits};
use crate::digest::Hasher;
use crate::encoding::{DecodeError, Decoder, Encoder};
use crate::layer::{Timestamp, path_problem};
use crate::tree::{Child, NodeKind, kind_number};

const MAGIC: &[u8] = b"crossdock-ledger\n";
const VERSION: u64 = 1;

/// A ledger may have this many bytes, compressed.
pub const LEDGER_BYTES_MAX: u64 = 64 << 20;

/// Some millions of paths.
const LIMITS: Limits = Limits { bytes: LEDGER_BYTES_MAX, raw: 256 << 20 };

/// What a path was, as the first half of a digest: 128 bits tell apart all that anybody could make.
pub type Identity = [u8; 16];

/// What was seen of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sight {
    /// What it was.
    pub identity: Identity,
    /// The time that it was shown with.
    pub time: Timestamp,
}

/// By absolute path, without the slash at its beginning: what the last step saw that looked at it, and of what is gone since, that.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    /// The paths.
    pub sights: BTreeMap<Vec<u8>, Sight>,
    /// What some steps looked at is not in it.
    pub is_partial: bool,
}

impl Ledger {
    /// The ledger as bytes.
    ///
    /// # Errors
    /// Only those of the compressor.
    pub fn encode(&self) -> io::Result<Vec<u8>> {
        let mut encoder = Encoder::new();
        encoder.uint(self.is_partial.into());
        let mut before: &[u8] = b"";
        encoder.list(&self.sights, |e, (path, sight)| {
            let shared = path.iter().zip(before).take_while(|(a, b)| a == b).count();
            e.uint(shared as u64).bytes(&path[shared..]);
            e.bytes(sight.identity).int(sight.time.seconds).uint(sight.time.nanos.into());
            before = path;
        });
        sealed::encode(MAGIC, VERSION, &encoder.finish())
    }

    /// Reads what [`Ledger::encode`] wrote.
    ///
    /// # Errors
    /// Anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let payload = sealed::decode("ledger", MAGIC, VERSION, bytes, LIMITS)?;
        let mut decoder = Decoder::new(&payload);
        let is_partial = match decoder.uint()? {
            0 => false,
            1 => true,
            _ => return Err(decoder.malformed("partial")),
        };
        let sights = read(&mut decoder)?;
        decoder.finish()?;
        Ok(Self { sights, is_partial })
    }

    /// Moves all times by so many seconds.
    pub fn shift(&mut self, seconds: i64) {
        for sight in self.sights.values_mut() {
            sight.time.seconds = sight.time.seconds.saturating_add(seconds);
        }
    }
}

fn read(d: &mut Decoder<'_>) -> Result<BTreeMap<Vec<u8>, Sight>, DecodeError> {
    let mut before: Option<Vec<u8>> = None;
    // Common parts are written once and would be stored many times.
    let mut left = LIMITS.raw;
    let sights = d.list(|d| {
        let shared: usize = d.small("path")?;
        let suffix = d.bytes()?;
        let common = before.as_deref().unwrap_or_default();
        let path = [common.get(..shared).ok_or_else(|| d.malformed("path"))?, suffix].concat();
        left = left.checked_sub(path.len() + 1).ok_or_else(|| d.malformed("path"))?;
        let is_sorted = before.as_ref().is_none_or(|before| *before < path);
        let is_longest = common.get(shared).is_none_or(|byte| suffix.first() != Some(byte));
        if path_problem(&path).is_some() || !is_sorted || !is_longest {
            return Err(d.malformed("path"));
        }
        let mut identity = Identity::default();
        let bytes = d.bytes()?;
        if bytes.len() != identity.len() {
            return Err(d.malformed("identity"));
        }
        identity.copy_from_slice(bytes);
        let time = Timestamp { seconds: d.int()?, nanos: d.small("nanoseconds")? };
        if time.nanos >= 1_000_000_000 {
            return Err(d.malformed("nanoseconds"));
        }
        before = Some(path.clone());
        Ok((path, Sight { identity, time }))
    })?;
    Ok(sights.into_iter().collect())
}

/// What a node is to whoever trusts times: kind, mode, and content; the content of a directory are the names in it, with
/// their kinds. Not its owner, and not its time.
pub fn identity(child: &Child) -> Identity {
    let node = child.node();
    let mut encoder = Encoder::new();
    encoder.uint(kind_number(node).into()).uint(node.metadata.mode.into());
    match (&node.kind, child) {
        (NodeKind::File { size, content }, _) => {
            encoder.uint(*size).digest(content);
        }
        (NodeKind::Symlink { target }, _) => {
            encoder.bytes(target);
        }
        (NodeKind::CharDevice { major, minor } | NodeKind::BlockDevice { major, minor }, _) => {
            encoder.uint((*major).into()).uint((*minor).into());
        }
        (NodeKind::Directory, Child::Directory(directory)) => {
            for (name, child) in directory.children() {
                encoder.bytes(name).uint(kind_number(child.node()).into());
            }
        }
        (NodeKind::Directory | NodeKind::Fifo, _) => {}
    }
    let mut hasher = Hasher::default();
    hasher.update(b"crossdock-identity-1\n");
    hasher.update(&encoder.finish());
    let mut identity = Identity::default();
    identity.copy_from_slice(&hasher.finish().as_bytes()[..16]);
    identity
}
