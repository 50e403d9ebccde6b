//! What `--cache` may name.

use std::path::PathBuf;

use crate::hint::Hint;

/// A store, by its URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreUrl {
    /// A directory: `file:///dir`, or a plain path.
    Directory(PathBuf),
}

/// Why a text names no store.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StoreUrlError {
    /// A kind of store that is yet to come.
    #[error("cache stores of the kind `{scheme}://` are not supported yet by this version")]
    NotYet {
        /// The scheme.
        scheme: String,
    },
    /// A scheme that names no kind of store.
    #[error("`{scheme}://` is no kind of cache store")]
    UnknownScheme {
        /// The scheme.
        scheme: String,
    },
    /// A `file:` URL that is no absolute local path.
    #[error("`{url}` does not name a local directory (expected `file:///absolute/path`)")]
    NotLocal {
        /// The URL.
        url: String,
    },
    /// Nothing at all.
    #[error("the name of the cache store is empty")]
    Empty,
}

impl Hint for StoreUrlError {
    fn hint(&self) -> Option<String> {
        Some("name a directory that the machines share: `--cache file:///mnt/cache`".to_owned())
    }
}

const NOT_YET: [&str; 7] = ["http", "https", "s3", "gs", "az", "oci", "gha"];

/// Reads the name of a store. A relative path stays relative.
pub fn parse(text: &str) -> Result<StoreUrl, StoreUrlError> {
    if text.is_empty() {
        return Err(StoreUrlError::Empty);
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return Ok(StoreUrl::Directory(text.into()));
    };
    let scheme = scheme.to_ascii_lowercase();
    if scheme != "file" {
        let known = NOT_YET.contains(&scheme.as_str());
        return Err(if known {
            StoreUrlError::NotYet { scheme }
        } else {
            StoreUrlError::UnknownScheme { scheme }
        });
    }
    let path = rest.strip_prefix("localhost").unwrap_or(rest);
    let decoded = percent_encoding::percent_decode_str(path).collect::<Vec<u8>>();
    if !path.starts_with('/') || decoded.contains(&0) {
        return Err(StoreUrlError::NotLocal { url: text.to_owned() });
    }
    let path: std::ffi::OsString = std::os::unix::ffi::OsStringExt::from_vec(decoded);
    Ok(StoreUrl::Directory(path.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_have_two_forms() {
        let directory = |path: &str| Ok(StoreUrl::Directory(path.into()));
        assert_eq!(parse("file:///mnt/cache"), directory("/mnt/cache"));
        assert_eq!(parse("FILE://localhost/mnt/my%20cache"), directory("/mnt/my cache"));
        assert_eq!(parse("../cache"), directory("../cache"));
        assert_eq!(parse("/mnt/a:b"), directory("/mnt/a:b"));
    }

    #[test]
    fn what_is_no_directory_is_refused_for_its_reason() {
        for scheme in NOT_YET {
            let error = parse(&format!("{scheme}://user:secret@host/x")).unwrap_err();
            assert_eq!(error, StoreUrlError::NotYet { scheme: scheme.to_owned() });
            assert!(!error.to_string().contains("secret"));
        }
        assert_eq!(parse("ftp://x"), Err(StoreUrlError::UnknownScheme { scheme: "ftp".to_owned() }));
        assert!(matches!(parse("file://host/x"), Err(StoreUrlError::NotLocal { .. })));
        assert!(matches!(parse("file://relative"), Err(StoreUrlError::NotLocal { .. })));
        assert!(matches!(parse("file:///a%00b"), Err(StoreUrlError::NotLocal { .. })));
        assert_eq!(parse(""), Err(StoreUrlError::Empty));
    }
}
