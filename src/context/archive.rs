//! Telling archives from texts by how they begin, as BuildKit does (`frontend/dockerui/context.go`, `isArchive`), and zstd
//! as well.

use crate::layer::Encoding;

/// As much of a file is looked at to tell whether it is a tar: two of its blocks.
pub const HEAD_BYTES: usize = 1024;

/// Whether what begins so is an archive: compressed, or a tar.
pub fn is_archive(head: &[u8]) -> bool {
    Encoding::sniff(head) != Encoding::Plain || is_tar(head)
}

/// Whether the first block is a tar's: its checksum is right.
fn is_tar(head: &[u8]) -> bool {
    const BLOCK: usize = 512;
    const CHECKSUM: std::ops::Range<usize> = 148..156;
    let Some(block) = head.get(..BLOCK) else { return false };
    let Ok(text) = std::str::from_utf8(&block[CHECKSUM]) else { return false };
    let text = text.trim_matches(|c: char| c == '\0' || c == ' ');
    let Ok(expected) = u32::from_str_radix(text, 8) else { return false };
    let sum = block
        .iter()
        .enumerate()
        .map(|(at, byte)| u32::from(if CHECKSUM.contains(&at) { b' ' } else { *byte }));
    sum.sum::<u32>() == expected
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_told_by_their_beginning() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_old();
        header.set_path("a").unwrap();
        header.set_size(0);
        header.set_cksum();
        builder.append(&header, &b""[..]).unwrap();
        let tar = builder.into_inner().unwrap();
        assert!(is_archive(&tar) && is_archive(&tar[..HEAD_BYTES]));
        let mut damaged = tar;
        damaged[0] = b'b';
        assert!(!is_archive(&damaged));
        assert!(is_archive(b"\x1f\x8b\x08") && is_archive(b"BZh9") && is_archive(b"\x28\xb5\x2f\xfd"));
        assert!(!is_archive(b"FROM scratch\n") && !is_archive(b"") && !is_archive(&[0; 1024]));
    }
}
