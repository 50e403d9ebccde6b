//! Names of git repositories as Dockerfiles and command lines have them (`moby/buildkit`,
//! `frontend/dockerfile/dfgitutil/git_ref.go` and `util/gitutil/git_url.go`).

use percent_encoding::percent_decode_str;

use crate::dockerfile::clean_path;

/// A git repository, and what of it is meant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct GitRef {
    /// The address for the `git` program: without query and fragment.
    pub remote: String,
    /// A branch, a tag, a full name (`refs/…`) or a commit hash; the default branch if absent.
    pub reference: Option<String>,
    /// The hash that the commit, or the tag, must have; its beginning is enough.
    pub checksum: Option<String>,
    /// The directory that is meant, clean and without a leading slash; empty for the whole repository.
    pub subdir: String,
    /// Whether `.git` is kept, if the name says so.
    pub keep_git_dir: Option<bool>,
    /// Whether submodules are fetched, if the name says so; they are by default.
    pub submodules: Option<bool>,
    /// Files get the commit's time instead of that of the checkout.
    pub commit_time: bool,
    /// The commit in `checksum` is fetched as it is, without asking what the reference points to.
    pub fetch_by_commit: bool,
    /// It may as well be a local path (`github.com/a/b`): only a build context's name is taken for a repository then.
    pub looks_local: bool,
}

/// Why the name of a git repository is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct GitRefError(String);

/// Whether `text` is the full hash of a commit (`gitutil.IsCommitSHA`).
pub fn is_commit_hash(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl GitRef {
    /// Reads `text`; `None` if it names no git repository.
    ///
    /// # Errors
    /// It does, and its query is wrong.
    pub fn parse(text: &str) -> Result<Option<Self>, GitRefError> {
        if text.starts_with("./") || text.starts_with("../") {
            return Ok(None);
        }
        let looks_local = text.starts_with("github.com/");
        let full = if looks_local { format!("https://{text}") } else { text.to_owned() };
        let (rest, fragment) =
            full.split_once('#').map_or((full.as_str(), ""), |(rest, after)| (rest, after));
        let (remote, query) = rest.split_once('?').unwrap_or((rest, ""));
        let scheme = remote.split_once("://").map(|(scheme, _)| scheme);
        let scheme =
            scheme.filter(|name| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        match scheme.map(str::to_ascii_lowercase).as_deref() {
            Some(scheme @ ("http" | "https" | "git" | "ssh")) => {
                let Ok(url) = url::Url::parse(remote) else { return Ok(None) };
                // What is fetched over HTTP is a repository only if it says so.
                let path = percent_decode_str(url.path()).decode_utf8_lossy().into_owned();
                let says_so = path.as_bytes().ends_with(b".git");
                if scheme.starts_with("http") && !looks_local && !says_so {
                    return Ok(None);
                }
            }
            None if is_scp_style(remote) => {}
            _ => return Ok(None),
        }
        let fragment = percent_decode_str(fragment).decode_utf8_lossy().into_owned();
        let (reference, subdir) = fragment.split_once(':').unwrap_or((&fragment, ""));
        let mut parsed = Self {
            remote: remote.to_owned(),
            reference: Some(reference.to_owned()).filter(|reference| !reference.is_empty()),
            subdir: clean_directory(subdir),
            looks_local,
            ..Self::default()
        };
        parsed.load_query(query)?;
        if let Some(reference) = parsed.reference.as_ref().filter(|reference| reference.starts_with('-')) {
            return Err(GitRefError(format!("invalid git ref {reference:?}")));
        }
        if let Some(checksum) = &parsed.checksum {
            check_checksum(checksum)?;
        }
        Ok(Some(parsed))
    }

    fn load_query(&mut self, query: &str) -> Result<(), GitRefError> {
        let error = |message: String| Err(GitRefError(message));
        let mut seen: Vec<String> = Vec::new();
        let (mut tag, mut branch) = (None, None);
        for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
            let (key, value) = (key.into_owned(), value.into_owned());
            if seen.contains(&key) {
                return error(format!("query {key:?} has multiple values"));
            }
            let may_be_empty = matches!(key.as_str(), "submodules" | "keep-git-dir" | "fetch-by-commit");
            if value.is_empty() && !may_be_empty {
                return error(format!("query {key:?} has no value"));
            }
            match key.as_str() {
                "ref" => self.set_reference(&value)?,
                "tag" => tag = Some(value),
                "branch" => branch = Some(value),
                "subdir" => {
                    let subdir = clean_directory(&value);
                    if !self.subdir.is_empty() && self.subdir != subdir {
                        return error(format!("subdir conflicts: {:?} vs {value:?}", self.subdir));
                    }
                    self.subdir = subdir;
                }
                "checksum" | "commit" => self.checksum = Some(value),
                "keep-git-dir" => self.keep_git_dir = Some(boolean(&key, &value)?),
                "submodules" => self.submodules = Some(boolean(&key, &value)?),
                "fetch-by-commit" => self.fetch_by_commit = boolean(&key, &value)?,
                "mtime" => match value.as_str() {
                    "checkout" => self.commit_time = false,
                    "commit" => self.commit_time = true,
                    _ => {
                        return error(format!(
                            "invalid mtime value: {value:?} (must be \"checkout\" or \"commit\")"
                        ));
                    }
                },
                _ => return error(format!("unexpected query {key:?}")),
            }
            seen.push(key);
        }
        if tag.is_some() && branch.is_some() {
            return error("branch conflicts with tag".to_owned());
        }
        for (name, prefix) in [(tag, "refs/tags/"), (branch, "refs/heads/")] {
            if let Some(name) = name {
                let full = if name.starts_with(prefix) { name } else { format!("{prefix}{name}") };
                self.set_reference(&full)?;
            }
        }
        Ok(())
    }

    fn set_reference(&mut self, reference: &str) -> Result<(), GitRefError> {
        match &self.reference {
            Some(known) if known != reference => {
                Err(GitRefError(format!("ref conflicts: {known:?} vs {reference:?}")))
            }
            _ => {
                self.reference = Some(reference.to_owned());
                Ok(())
            }
        }
    }

    /// Whether it is reached by way of SSH.
    pub fn is_ssh(&self) -> bool {
        let scheme = self.remote.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
        scheme.is_none_or(|scheme| scheme == "ssh")
    }
}

/// Checks what a commit is to be compared with.
pub fn check_checksum(checksum: &str) -> Result<(), GitRefError> {
    if !checksum.is_empty() && checksum.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(());
    }
    Err(GitRefError(format!("invalid checksum {checksum} for Git URL, expected hex commit hash")))
}

/// `user@host:path` (`util/sshutil/scpurl.go`).
fn is_scp_style(text: &str) -> bool {
    let Some((user, rest)) = text.split_once('@') else { return false };
    let Some((host, _)) = rest.split_once(':') else { return false };
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    // A user that begins with a dash would be an option for `ssh`.
    !user.is_empty()
        && !user.starts_with('-')
        && user.bytes().all(|byte| word(byte) || byte == b'_')
        && !host.is_empty()
        && host.bytes().all(|byte| word(byte) || byte == b'.')
}

fn clean_directory(path: &str) -> String {
    clean_path(&format!("/{path}")).trim_start_matches('/').to_owned()
}

/// Go's `strconv.ParseBool`; nothing at all is yes.
fn boolean(key: &str, value: &str) -> Result<bool, GitRefError> {
    match value {
        "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(GitRefError(format!("invalid {key} value: {value:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<GitRef> {
        GitRef::parse(text).unwrap()
    }

    #[expect(clippy::unnecessary_wraps, reason = "what is compared with it has one")]
    fn git(remote: &str, reference: &str, subdir: &str) -> Option<GitRef> {
        let reference = Some(reference.to_owned()).filter(|reference| !reference.is_empty());
        let (remote, subdir) = (remote.to_owned(), subdir.to_owned());
        Some(GitRef { remote, reference, subdir, ..GitRef::default() })
    }

    #[test]
    fn repositories_are_told_from_everything_else() {
        for text in [
            "https://example.com/",
            "https://example.com/foo",
            "https://example.com/foo.tar.gz#x",
            "https://example.com/foo?x=.git",
            "./github.com/foo",
            "../x@y:z",
            "foo",
            "/foo/bar.git",
            "foo.git",
            "ftp://example.com/a.git",
            "file:///a.git",
            "https://",
            "-oProxyCommand@host:path",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        for (text, expected) in [
            ("https://e.com/foo.git", git("https://e.com/foo.git", "", "")),
            ("https://e.com/foo.git#main", git("https://e.com/foo.git", "main", "")),
            ("http://e.com/foo.git#a/b:c/d", git("http://e.com/foo.git", "a/b", "c/d")),
            ("https://e.com/foo.git#:/c/../d/", git("https://e.com/foo.git", "", "d")),
            ("https://e.com/foo.git#main:../../x", git("https://e.com/foo.git", "main", "x")),
            ("git://e.com/foo", git("git://e.com/foo", "", "")),
            ("ssh://git@e.com:22/foo#v1", git("ssh://git@e.com:22/foo", "v1", "")),
            ("git@e.com:a/b.git#v1:s", git("git@e.com:a/b.git", "v1", "s")),
            ("me@e.com:b?ref=x", git("me@e.com:b", "x", "")),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
        let local = parse("github.com/foo/bar#x").unwrap();
        assert!(local.looks_local);
        assert_eq!(local.remote, "https://github.com/foo/bar");
        assert!(parse("git@e.com:a").unwrap().is_ssh() && parse("ssh://e.com/a").unwrap().is_ssh());
        assert!(!parse("git://e.com/a").unwrap().is_ssh());
    }

    #[test]
    fn every_key_of_the_query_is_known() {
        let query = |text: &str| parse(&format!("https://e.com/a.git?{text}")).unwrap();
        assert_eq!(query("ref=x").reference.as_deref(), Some("x"));
        assert_eq!(query("tag=v1").reference.as_deref(), Some("refs/tags/v1"));
        assert_eq!(query("branch=refs/heads/x").reference.as_deref(), Some("refs/heads/x"));
        assert_eq!(query("subdir=/a/b/").subdir, "a/b");
        assert_eq!(query("checksum=abc").checksum.as_deref(), Some("abc"));
        assert_eq!(query("commit=abc").checksum.as_deref(), Some("abc"));
        assert_eq!(query("keep-git-dir").keep_git_dir, Some(true));
        assert_eq!(query("keep-git-dir=0&submodules=false").keep_git_dir, Some(false));
        assert_eq!(query("submodules=f").submodules, Some(false));
        assert!(query("mtime=commit").commit_time && !query("mtime=checkout").commit_time);
        assert!(query("fetch-by-commit=true&commit=ab").fetch_by_commit);
        for (text, part) in [
            ("?ref=x&ref=y", "multiple values"),
            ("?ref=", "no value"),
            ("?ref=x#y", "ref conflicts"),
            ("?subdir=x#:y", "subdir conflicts"),
            ("?tag=x&branch=y", "branch conflicts with tag"),
            ("?tag=x#y", "ref conflicts"),
            ("?keep-git-dir=maybe", "invalid keep-git-dir value"),
            ("?mtime=now", "invalid mtime value"),
            ("?checksum=xyz", "invalid checksum"),
            ("?depth=1", "unexpected query"),
            ("#--upload-pack=x", "invalid git ref"),
        ] {
            let error = GitRef::parse(&format!("https://e.com/a.git{text}")).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn commit_hashes() {
        assert!(is_commit_hash(&"0a".repeat(20)) && is_commit_hash(&"0a".repeat(32)));
        assert!(!is_commit_hash(&"0A".repeat(20)) && !is_commit_hash("0a"));
    }
}
