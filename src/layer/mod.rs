//! Layers: tar diffs in the OCI sense, their table of contents, and the frame format (`docs/formats.md`).
//!
//! A layer blob is a byte-exact tar that any client can pull, written as a multi-frame zstd stream (or
//! multi-member gzip) whose frames follow file boundaries, and followed by its [`Toc`] in a skippable frame.

mod archive;
mod chunk;
mod decompress;
mod diff;
mod error;
mod frames;
mod header;
mod index;
mod pipeline;
mod reframe;
mod scan;
mod tar_read;
pub mod toc;
mod toc_codec;
mod trailer;
mod unpack;
mod write;

pub(crate) use archive::ArchiveWriter;
pub(crate) use chunk::step as gear_step;
pub use decompress::{Encoding, SNIFF_LENGTH, decompress};
pub use diff::{Changed, ChangedKind, DiffOptions, Lower, diff_upper, open_changed, upper_changes};
pub use error::LayerError;
pub use frames::{FileReader, ReadRange, TocReader};
pub use pipeline::Compression;
pub(crate) use pipeline::Pipeline;
pub use reframe::{Reframed, reframe};
pub(crate) use scan::is_overlay_xattr;
pub use scan::{Item, LayerVisitor, ScanOptions, Scanned, scan};
pub(crate) use tar_read::{RawEntry, RawKind, TarReader};
pub use toc::{Entry, EntryKind, Frame, LayerDescriptor, MediaType, Metadata, Timestamp, Toc};
pub use toc_codec::{ENTRIES_MAX, NAME_MAX, PATH_MAX, TocError, path_problem};
pub(crate) use toc_codec::{
    decode_metadata, display as display_path, encode_metadata, encode_xattrs, parent as parent_path,
};
pub use unpack::{UnpackOptions, Unpacked, Unpacker, Whiteouts};
pub(crate) use write::fill;
pub use write::{FinishedLayer, LayerOptions, LayerWriter};

#[cfg(test)]
pub(crate) mod tests;
