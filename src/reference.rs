//! Image references: `[registry/]repository[:tag][@digest]`, as Docker's tools read them
//! (`distribution/reference`, `reference.go` and `normalize.go`).

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;

/// An image reference in normal form: `busybox` is `docker.io/library/busybox:latest`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not a [`Reference`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{text}` is not an image reference: {why}")]
pub struct ReferenceError {
    /// The text.
    pub text: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl Reference {
    /// The registry's host and port, such as `docker.io` or `localhost:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository's path in the registry, such as `library/busybox`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if there is one. `latest` is filled in where there is neither tag nor digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if the reference is pinned to one.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What to ask the registry for: the digest if there is one, else the tag.
    pub fn identifier(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }

    /// The same repository, pinned to `digest`.
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }

    /// As people write it: without `docker.io/` and `library/`.
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        let short = full.strip_prefix("docker.io/").unwrap_or(&full);
        short.strip_prefix("library/").unwrap_or(short).to_owned()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let error = |why| ReferenceError { text: text.to_owned(), why };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                (rest, Some(digest.parse().map_err(|_| error("the digest after `@` is malformed"))?))
            }
            None => (text, None),
        };
        let (name, tag) = match rest.rfind(':') {
            Some(colon) if !rest[colon..].contains('/') => (&rest[..colon], Some(&rest[colon + 1..])),
            _ => (rest, None),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(error(
                "a tag is up to 128 letters, digits, `_`, `.` and `-`, not starting with `.` or `-`",
            ));
        }
        // The first component is a registry if it looks like a host: a dot, a port, an upper-case letter, or
        // `localhost`.
        let (registry, repository) = match name.split_once('/') {
            Some((first, rest))
                if first.contains(['.', ':'])
                    || first == "localhost"
                    || first.chars().any(|c| c.is_ascii_uppercase()) =>
            {
                (first, rest.to_owned())
            }
            Some(_) => ("docker.io", name.to_owned()),
            None => ("docker.io", format!("library/{name}")),
        };
        let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
        let repository = match (registry, repository) {
            ("docker.io", repository) if !repository.contains('/') => format!("library/{repository}"),
            (_, repository) => repository,
        };
        if name.is_empty() {
            return Err(error("the name is empty"));
        }
        if !is_registry(registry) {
            return Err(error("the registry is not a host with an optional port"));
        }
        if repository.chars().any(|c| c.is_ascii_uppercase()) {
            return Err(error("a repository name must be lowercase"));
        }
        if repository.len() > 255 || !repository.split('/').all(is_component) {
            return Err(error(
                "a repository name has lowercase letters, digits, and single `.`, `_`, `__` or `-` between them",
            ));
        }
        let tag = match (tag, &digest) {
            (None, None) => Some("latest".to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }
}

/// Whether `text` is a tag: `[\w][\w.-]{0,127}`.
pub fn is_tag(text: &str) -> bool {
    text.len() <= 128
        && text
            .chars()
            .enumerate()
            .all(|(at, c)| c.is_ascii_alphanumeric() || c == '_' || at > 0 && (c == '.' || c == '-'))
        && !text.is_empty()
}

/// Whether `text` is one path component of a repository name.
fn is_component(text: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if !text.starts_with(alphanumeric) || !text.ends_with(alphanumeric) {
        return false;
    }
    text.split(alphanumeric)
        .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.chars().all(|c| c == '-'))
}

fn is_registry(text: &str) -> bool {
    let (host, port) = match text.rfind(':') {
        Some(colon) if !text[colon..].contains(']') => (&text[..colon], Some(&text[colon + 1..])),
        _ => (text, None),
    };
    let port_ok = port.is_none_or(|port| port.parse::<u16>().is_ok());
    let host_ok = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        }),
    };
    port_ok && host_ok
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(text: &str) -> String {
        text.parse::<Reference>().unwrap().to_string()
    }

    #[test]
    fn short_names_are_completed() {
        assert_eq!(normal("busybox"), "docker.io/library/busybox:latest");
        assert_eq!(normal("moby/buildkit:v1"), "docker.io/moby/buildkit:v1");
        assert_eq!(normal("localhost/app"), "localhost/app:latest");
        assert_eq!(normal("localhost:5000/a/b:c"), "localhost:5000/a/b:c");
        assert_eq!(normal("[::1]:5000/app"), "[::1]:5000/app:latest");
        let digest = Digest::of("");
        assert_eq!(normal(&format!("a@{digest}")), format!("docker.io/library/a@{digest}"));
        assert_eq!("debian:12".parse::<Reference>().unwrap().familiar(), "debian:12");
    }

    #[test]
    fn malformed_references_are_refused() {
        for bad in
            ["", ":tag", "UPPER", "a//b", "a/-b", "a:b:c", "a@sha256:12", "a b", "a:", "x.io/", "a..b/c_"]
        {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
    }
}
