//! Where things are fetched from: names of repositories and files, headers of answers, settings of registries.

use std::path::Path;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use crate::cli::config::Config;
use crate::context::http::Validators;
use crate::context::remote::{RemoteSource, file_name, shown};

pub(super) const WORDS: &[&str] = &[
    "https://",
    "http://",
    "git://",
    "ssh://",
    "git@",
    "github.com/",
    "user:secret@",
    "e.com",
    ":22",
    "/a/b.git",
    "#main",
    ":sub/dir",
    "?ref=",
    "&subdir=",
    "&checksum=",
    "keep-git-dir=",
    "submodules=",
    "..",
    "%2e%2e",
    "%2F",
    "[::1]",
    "\nETag: \"a\"",
    "\nETag: W/\"a\"",
    "\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT",
    "\nDate: Sun, 06 Nov 1994 08:50:37 GMT",
];

pub(super) const SETTINGS: &[&str] = &[
    "cache = ",
    "cache-scope = [",
    "cache-readonly = true\n",
    "compression = ",
    "[registries.\"",
    "\"]\n",
    "mirrors = [",
    "http = ",
    "insecure = ",
    "ca = [",
    "keypair = [{ key = \"k\", cert = \"c\" }]\n",
    "\"mirror.e.com/path\"",
    "true\n",
    "\"gzip\"\n",
];

/// An address, and lines of headers that it is answered with.
pub(super) fn addresses(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let mut lines = text.split('\n');
    let address = lines.next().unwrap_or_default();
    for read in [RemoteSource::of_add, RemoteSource::of_context] {
        match read(address) {
            Ok(Some(source)) => assert_eq!(read(address), Ok(Some(source)), "it is read the same again"),
            Ok(None) => {}
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    let name = file_name(address);
    assert!(!name.contains('/') && !matches!(name.as_str(), "" | "." | ".."), "{name:?}");
    if let Ok(shown) = url::Url::parse(&shown(address)) {
        assert!(shown.password().is_none() && shown.query().is_none(), "{shown}");
    }
    let headers: HeaderMap = lines
        .filter_map(|line| {
            let (name, value) = line.split_once(": ")?;
            Some((name.parse::<HeaderName>().ok()?, HeaderValue::from_str(value).ok()?))
        })
        .collect();
    let validators = Validators::of(&headers);
    assert!(!validators.tell_versions_apart() || !headers.is_empty());
    let _ = (validators.modified(), validators.strong_etag());
}

/// A configuration file. What it names is not there.
pub(super) fn settings(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Err(error) = Config::parse(Path::new("/proc/self/none/config.toml"), text) {
        assert!(error.render(false).contains("config.toml"));
    }
}
