//! What a build context or the source of an ADD may be besides files: git repositories and URLs.

use percent_encoding::percent_decode_str;

use super::git_ref::{GitRef, GitRefError};

/// Something that is fetched.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RemoteSource {
    /// A git repository.
    Git(GitRef),
    /// What is at a URL (`http` or `https`).
    Http(String),
}

impl RemoteSource {
    /// What `text` names as the source of an ADD; `None` for a path.
    ///
    /// # Errors
    /// It names a git repository wrongly.
    pub fn of_add(text: &str) -> Result<Option<Self>, GitRefError> {
        Ok(match GitRef::parse(text)? {
            Some(git) if !git.looks_local => Some(Self::Git(git)),
            Some(_) => None,
            None => is_url(text).then(|| Self::Http(text.to_owned())),
        })
    }

    /// What `text` names as a build context; `None` for a path.
    ///
    /// # Errors
    /// It names a git repository wrongly.
    pub fn of_context(text: &str) -> Result<Option<Self>, GitRefError> {
        Ok(match GitRef::parse(text)? {
            Some(git) => Some(Self::Git(git)),
            None => is_url(text).then(|| Self::Http(text.to_owned())),
        })
    }
}

/// Whether `text` is fetched over HTTP.
pub fn is_url(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://")
}

/// The name of a file that is fetched from `address`: its last path element.
pub fn file_name(address: &str) -> String {
    const UNNAMED: &str = "__unnamed__";
    let Ok(url) = url::Url::parse(address) else { return UNNAMED.to_owned() };
    let path = percent_decode_str(url.path()).decode_utf8_lossy().into_owned();
    let last = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    match last {
        "" | "." | ".." => UNNAMED.to_owned(),
        last => last.to_owned(),
    }
}

/// An address for messages: without user, password, query and fragment, any of which may hold a secret.
pub fn shown(address: &str) -> String {
    let cut = address.split(['?', '#']).next().unwrap_or_default();
    match url::Url::parse(cut) {
        Ok(mut url) if !url.username().is_empty() || url.password().is_some() => {
            // These fail only for URLs that cannot have a user at all. The user of SSH is no secret.
            if url.scheme() != "ssh" {
                let _ = url.set_username("");
            }
            let _ = url.set_password(None);
            url.to_string()
        }
        _ => cut.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_by_the_end_of_the_path() {
        for (address, name) in [
            ("https://e.com/a/b.txt?x=/y#z/w", "b.txt"),
            ("https://e.com/a/b/", "b"),
            ("https://e.com/a%20b", "a b"),
            ("https://e.com/", "__unnamed__"),
            ("https://e.com", "__unnamed__"),
            ("https://e.com/a/%2e%2e", "__unnamed__"),
            ("https://", "__unnamed__"),
        ] {
            assert_eq!(file_name(address), name, "{address}");
        }
    }

    #[test]
    fn addresses_are_shown_without_what_may_be_secret() {
        for (address, expected) in [
            ("https://u:p@e.com/a?token=t#x", "https://e.com/a"),
            ("https://t@e.com/a.git", "https://e.com/a.git"),
            ("https://e.com/a.git", "https://e.com/a.git"),
            ("ssh://git:p@e.com/a", "ssh://git@e.com/a"),
            ("git@e.com:a/b#c", "git@e.com:a/b"),
        ] {
            assert_eq!(shown(address), expected);
        }
    }

    #[test]
    fn only_contexts_may_look_like_paths() {
        assert_eq!(RemoteSource::of_add("github.com/a/b").unwrap(), None);
        assert!(matches!(RemoteSource::of_context("github.com/a/b").unwrap(), Some(RemoteSource::Git(_))));
        assert!(matches!(RemoteSource::of_add("https://e.com/a.git").unwrap(), Some(RemoteSource::Git(_))));
        assert!(matches!(RemoteSource::of_add("https://e.com/a").unwrap(), Some(RemoteSource::Http(_))));
        assert_eq!(RemoteSource::of_context("dir").unwrap(), None);
    }
}
