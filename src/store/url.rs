//! What `--cache` may name.

use std::path::PathBuf;

use super::ObjectUrl;
use crate::hint::Hint;

/// A store, by its URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreUrl {
    /// A directory: `file:///dir`, or a plain path.
    Directory(PathBuf),
    /// Object storage: `s3://bucket/prefix`, `gs://…`, `az://…`.
    Objects(ObjectUrl),
    /// A Crossdock server: `http://host` or `https://host`.
    Server(url::Url),
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
    /// An address of a server that cannot be one.
    #[error("`{shown}` is no address of a cache server: {reason}")]
    NoServer {
        /// The address, without what may be secret.
        shown: String,
        /// Why.
        reason: String,
    },
    /// An address of object storage that names no bucket.
    #[error("{0}")]
    NoBucket(String),
    /// Nothing at all.
    #[error("the name of the cache store is empty")]
    Empty,
}

impl Hint for StoreUrlError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoServer { .. } => "the token goes into CROSSDOCK_TOKEN: `--cache https://cache.example`",
            Self::NoBucket(_) => "name it as in `s3://bucket/prefix`",
            _ => "name a server or a directory that the machines share: `--cache https://cache.example`, `--cache file:///mnt/cache`",
        }
        .to_owned())
    }
}

const NOT_YET: [&str; 2] = ["oci", "gha"];

/// Reads the name of a store. A relative path stays relative.
pub fn parse(text: &str) -> Result<StoreUrl, StoreUrlError> {
    if text.is_empty() {
        return Err(StoreUrlError::Empty);
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return Ok(StoreUrl::Directory(text.into()));
    };
    let scheme = scheme.to_ascii_lowercase();
    if scheme == "http" || scheme == "https" {
        return server(&scheme, text);
    }
    if ObjectUrl::is_scheme(&scheme) {
        let url = ObjectUrl::parse(&scheme, rest);
        return url.map(StoreUrl::Objects).map_err(|error| StoreUrlError::NoBucket(error.to_string()));
    }
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

fn server(scheme: &str, text: &str) -> Result<StoreUrl, StoreUrlError> {
    let refused = |shown: &str, reason: &str| StoreUrlError::NoServer {
        shown: shown.to_owned(),
        reason: reason.to_owned(),
    };
    let url = url::Url::parse(text).map_err(|error| refused(&format!("{scheme}://…"), &error.to_string()))?;
    let mut shown = url.clone();
    // Both succeed where there is a host, which addresses of these schemes have.
    let _ = shown.set_username("");
    let _ = shown.set_password(None);
    shown.set_query(None);
    shown.set_fragment(None);
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refused(shown.as_str(), "it must not hold a name or password"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(refused(shown.as_str(), "it must not have a query or fragment"));
    }
    Ok(StoreUrl::Server(url))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets() {
        let Ok(StoreUrl::Objects(url)) = parse("S3://bucket/a/prefix/") else { unreachable!() };
        assert_eq!(url.location(), "s3://bucket/a/prefix");
        for bad in ["s3://", "gs:///x", "az://key:secret@account/x"] {
            let error = parse(bad).unwrap_err();
            assert!(matches!(error, StoreUrlError::NoBucket(_)), "{error}");
            assert!(!error.to_string().contains("key:secret"), "{error}");
        }
    }

    #[test]
    fn servers_have_no_secrets_in_their_address() {
        let url = |text: &str| url::Url::parse(text).unwrap();
        assert_eq!(parse("http://cache:80/x"), Ok(StoreUrl::Server(url("http://cache/x"))));
        assert_eq!(parse("HTTPS://cache"), Ok(StoreUrl::Server(url("https://cache/"))));
        for bad in ["http://", "https://user:secret@host/", "https://host/?token=secret", "http://h/#secret"]
        {
            let error = parse(bad).unwrap_err();
            assert!(matches!(error, StoreUrlError::NoServer { .. }), "{error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

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
