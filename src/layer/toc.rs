//! The table of contents of a layer: path → metadata, content digest, and where the bytes lie.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use crate::digest::Digest;

/// A point in time: seconds since the Unix epoch and nanoseconds after that second (below 10⁹).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Whole seconds; negative before 1970.
    pub seconds: i64,
    /// Nanoseconds after `seconds`, `0..1_000_000_000`.
    pub nanos: u32,
}

impl From<Timestamp> for SystemTime {
    /// The Unix epoch for what the system cannot express.
    fn from(time: Timestamp) -> Self {
        let seconds = Duration::from_secs(time.seconds.unsigned_abs());
        let whole = if time.seconds < 0 {
            Self::UNIX_EPOCH.checked_sub(seconds)
        } else {
            Self::UNIX_EPOCH.checked_add(seconds)
        };
        let exact = whole.and_then(|whole| whole.checked_add(Duration::from_nanos(time.nanos.into())));
        exact.unwrap_or(Self::UNIX_EPOCH)
    }
}

/// What every kind of entry has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Permission bits with set-user-id, set-group-id and sticky: `0..=0o7777`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last modification.
    pub mtime: Timestamp,
    /// Extended attributes by name (`security.capability`, `user.…`), raw values.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Directory {
        /// It hides everything that lower layers have below it (`.wh..wh..opq` in the tar).
        opaque: bool,
        /// It stands in the tar only because stock clients need the parents of what follows; the step did not
        /// change it. Merging ignores it where the directory exists.
        implied: bool,
    },
    /// A regular file.
    File {
        /// Length in bytes.
        size: u64,
        /// Digest of the content.
        content: Digest,
        /// Where the content begins in the uncompressed tar; 0 (where a header always is) if it does not lie there
        /// in one piece, as in sparse entries of archives that GNU tar wrote.
        offset: u64,
    },
    /// Another name of something that is no directory: of an earlier entry of this layer, or, in layers that others
    /// wrote, of a path in a lower layer.
    HardLink {
        /// The path of the first name. If this layer has no entry for it, it is that of a lower layer.
        target: Vec<u8>,
    },
    /// A symbolic link.
    Symlink {
        /// The link's text, as it is.
        target: Vec<u8>,
    },
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// The path is removed from what lies below (`.wh.name` in the tar; the entry's path is that of `name`).
    Whiteout,
}

/// One entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The path relative to the root: no leading or trailing slash, no empty, `.` or `..` component; any other
    /// bytes but NUL. Empty for the root directory itself.
    pub path: Vec<u8>,
    /// Its metadata. All zero for a whiteout.
    pub metadata: Metadata,
    /// Its kind.
    pub kind: EntryKind,
}

/// One independently compressed piece of a layer blob. The frames of a layer lie one behind the other, in the
/// blob as in the tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Digest of the bytes in the blob: the frame's name.
    pub id: Digest,
    /// Length of the raw bytes.
    pub raw_size: u64,
    /// Length in the blob.
    pub size: u64,
}

/// The table of contents of one layer.
///
/// Invariants ([`Toc::validate`] checks them, and decoding does so by itself): paths are unique, a whiteout's
/// included; nothing lies below an entry that is no directory; a hard link's target is an entry before it that is
/// neither directory, hard link nor whiteout, or is no path of this layer; frames cover the tar from 0 without a
/// gap, or there are none (a foreign blob that can only be read from its beginning). The frames of other people's
/// layers are those of a framed copy: see [`reframe`](super::reframe).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Toc {
    /// The entries, in the order of the tar.
    pub entries: Vec<Entry>,
    /// The frames, in the order of the blob.
    pub frames: Vec<Frame>,
}

/// How a layer blob is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MediaType {
    /// `application/vnd.oci.image.layer.v1.tar`
    Tar,
    /// `application/vnd.oci.image.layer.v1.tar+gzip`
    Gzip,
    /// `application/vnd.oci.image.layer.v1.tar+zstd`
    Zstd,
}

impl MediaType {
    /// The OCI media type.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tar => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }

    /// The encoding that an OCI or Docker layer media type stands for; `None` for what is no layer.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar" => Self::Tar,
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Self::Gzip,
            "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Self::Zstd,
            _ => return None,
        })
    }
}

/// Everything that names a layer: enough to put it into a manifest, fetch it, and merge it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LayerDescriptor {
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// Digest of the blob.
    pub digest: Digest,
    /// Length of the blob in bytes.
    pub size: u64,
    /// How the blob is encoded.
    pub media_type: MediaType,
    /// Digest of the encoded [`Toc`], which is a blob of its own in the store.
    pub toc: Digest,
}
