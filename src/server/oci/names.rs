//! Names and paths: a repository's name has slashes, so that a path is read from its end.

use super::error::{Code, OciError};
use crate::digest::Digest;

/// Names are part of document names, whose segments end at 250 bytes; many clients end at 255 with the host.
const NAME_BYTES_MAX: usize = 240;

/// A tag (specification, "Pulling manifests").
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tag(String);

impl Tag {
    /// `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`
    pub(super) fn parse(text: &str) -> Option<Self> {
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let is_tag = (1..=128).contains(&text.len())
            && text.bytes().next().is_some_and(word)
            && text.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-');
        is_tag.then(|| Self(text.to_owned()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// What names a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reference {
    Tag(Tag),
    Digest(Digest),
}

/// What a path is about, within its repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    Blob(Digest),
    Uploads,
    Upload(String),
    Manifest(Reference),
    Tags,
    Referrers(Digest),
}

/// Takes a path apart, which begins with `/v2`; `None` is `/v2/` itself.
pub(super) fn route(path: &str) -> Result<Option<(String, Route)>, OciError> {
    let unknown = || OciError::new(Code::NameUnknown, "there is no such path");
    let rest = path.strip_prefix("/v2").ok_or_else(unknown)?;
    if rest.is_empty() || rest == "/" {
        return Ok(None);
    }
    let rest = rest.strip_prefix('/').ok_or_else(unknown)?;
    let digest = |text: &str| {
        text.parse::<Digest>().map_err(|error| OciError::new(Code::DigestInvalid, error.to_string()))
    };
    let (name, route) = if let Some(name) = rest.strip_suffix("/tags/list") {
        (name, Route::Tags)
    } else if let Some((name, id)) = rest.rsplit_once("/blobs/uploads/") {
        (name, if id.is_empty() { Route::Uploads } else { Route::Upload(id.to_owned()) })
    } else if let Some(name) = rest.strip_suffix("/blobs/uploads") {
        (name, Route::Uploads)
    } else if let Some((name, text)) = rest.rsplit_once("/blobs/") {
        (name, Route::Blob(digest(text)?))
    } else if let Some((name, text)) = rest.rsplit_once("/manifests/") {
        let reference = match Tag::parse(text) {
            Some(tag) => Reference::Tag(tag),
            None => Reference::Digest(digest(text)?),
        };
        (name, Route::Manifest(reference))
    } else if let Some((name, text)) = rest.rsplit_once("/referrers/") {
        (name, Route::Referrers(digest(text)?))
    } else {
        return Err(unknown());
    };
    if !is_name(name) {
        return Err(OciError::new(Code::NameInvalid, format!("`{name}` is no name of a repository")));
    }
    Ok(Some((name.to_owned(), route)))
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*`
pub(in crate::server) fn is_name(text: &str) -> bool {
    text.len() <= NAME_BYTES_MAX && text.split('/').all(is_component)
}

fn is_component(text: &str) -> bool {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separates =
        |separator: &str| matches!(separator, "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-');
    let mut rest = text;
    loop {
        let end = rest.find(|c| !word(c)).unwrap_or(rest.len());
        if end == 0 {
            return false;
        }
        rest = &rest[end..];
        if rest.is_empty() {
            return true;
        }
        let end = rest.find(word).unwrap_or(rest.len());
        if !separates(&rest[..end]) {
            return false;
        }
        rest = &rest[end..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_by_their_grammar() {
        for good in ["a", "a/b", "library/busy-box", "a.b_c__d--e---f/0", "x/blobs/y"] {
            assert!(is_name(good), "{good}");
        }
        for bad in [
            "",
            "/a",
            "a/",
            "a//b",
            "A",
            "a..b",
            "a___b",
            "-a",
            "a-",
            "a._b",
            "a b",
            "\u{e9}",
            "a!b",
            "..",
            &"a".repeat(241),
        ] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[test]
    fn paths_are_read_from_their_end() {
        let digest = Digest::of("x");
        let read = |path: &str| route(path).ok().flatten();
        let named = |name: &str, route: Route| Some((name.to_owned(), route));
        assert_eq!(route("/v2/").ok(), Some(None));
        assert_eq!(route("/v2").ok(), Some(None));
        assert_eq!(read(&format!("/v2/a/blobs/b/blobs/{digest}")), named("a/blobs/b", Route::Blob(digest)));
        assert_eq!(read("/v2/a/blobs/uploads/"), named("a", Route::Uploads));
        assert_eq!(read("/v2/a/blobs/uploads/x"), named("a", Route::Upload("x".to_owned())));
        assert_eq!(read("/v2/a/b/tags/list"), named("a/b", Route::Tags));
        let tag = Reference::Tag(Tag::parse("v1.0").unwrap());
        assert_eq!(read("/v2/a/manifests/v1.0"), named("a", Route::Manifest(tag)));
        let by_digest = Route::Manifest(Reference::Digest(digest));
        assert_eq!(read(&format!("/v2/a/manifests/{digest}")), named("a", by_digest));
        assert_eq!(read(&format!("/v2/a/referrers/{digest}")), named("a", Route::Referrers(digest)));
        for bad in [
            "/v2x",
            "/v2/a",
            "/v2/../blobs/uploads/",
            "/v2/a/manifests/.x",
            "/v2/a/blobs/sha256:x",
            "/v2//tags/list",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn tags_by_their_grammar() {
        assert!(Tag::parse("_A.b-1").is_some());
        for bad in ["", ".a", "-a", "a:b", "a/b", "\u{e9}", &"a".repeat(129)] {
            assert_eq!(Tag::parse(bad), None, "{bad}");
        }
    }
}
