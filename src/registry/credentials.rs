//! Credentials: from the files of Docker and podman, and the helpers that these name.

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Debug;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for putting it where it belongs.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What to show a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// Nothing.
    Anonymous,
    /// A user and a password or access token.
    Basic {
        /// The user.
        username: String,
        /// The password.
        password: Secret,
    },
    /// An OAuth2 refresh token, which is exchanged for access tokens.
    IdentityToken(Secret),
    /// A token that is sent as it is.
    RegistryToken(Secret),
}

/// Why credentials could not be looked up. Having none is not an error.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CredentialError {
    /// The file is not what `docker login` and `podman login` write.
    #[error("the credentials in {file} are malformed: {reason}")]
    File {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The entry for a registry cannot be decoded.
    #[error("the credentials for {key} in {file} are malformed")]
    Entry {
        /// The file.
        file: String,
        /// The registry, or the repositories.
        key: String,
    },
    /// A credential helper failed.
    #[error("the credential helper `docker-credential-{helper}` failed for {registry}: {reason}")]
    Helper {
        /// The helper's name, as in the configuration.
        helper: String,
        /// The registry.
        registry: String,
        /// Why.
        reason: String,
    },
}

/// Knows what to show which registry.
#[async_trait]
pub trait Credentials: Debug + Send + Sync {
    /// The credential for `repository` of `registry`, a host with an optional port; both as in references
    /// (`docker.io`, `library/alpine`).
    async fn lookup(&self, registry: &str, repository: &str) -> Result<Credential, CredentialError>;
}

/// Knows nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoCredentials;

#[async_trait]
impl Credentials for NoCredentials {
    async fn lookup(&self, _: &str, _: &str) -> Result<Credential, CredentialError> {
        Ok(Credential::Anonymous)
    }
}

/// Several sources. The first that has a credential gives it.
#[derive(Debug, Clone, Default)]
pub struct CredentialSources(pub Vec<Arc<dyn Credentials>>);

#[async_trait]
impl Credentials for CredentialSources {
    /// A source that fails, such as a helper that is not installed here, counts only if no other one has any.
    async fn lookup(&self, registry: &str, repository: &str) -> Result<Credential, CredentialError> {
        let mut failure = None;
        for source in &self.0 {
            match source.lookup(registry, repository).await {
                Ok(Credential::Anonymous) => {}
                Ok(credential) => return Ok(credential),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(Credential::Anonymous), Err)
    }
}

/// The credentials in Docker's `config.json` or podman's `auth.json`, which has the same form.
#[derive(Debug, Clone, Default)]
pub struct CredentialFile {
    name: String,
    /// By registry, or by a path of repositories below one.
    auths: BTreeMap<String, AuthEntry>,
    helpers: BTreeMap<String, String>,
    store: Option<String>,
}

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default)]
    auths: Option<BTreeMap<String, Option<AuthEntry>>>,
    #[serde(default, rename = "credHelpers")]
    helpers: Option<BTreeMap<String, String>>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
}

#[derive(Clone, Default, Deserialize)]
struct AuthEntry {
    #[serde(default)]
    auth: Option<String>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default, rename = "identitytoken")]
    identity_token: Option<String>,
    #[serde(default, rename = "registrytoken")]
    registry_token: Option<String>,
}

impl Debug for AuthEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthEntry(…)")
    }
}

/// Docker pads, podman and hand-written files do not always.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// How long a credential helper may take. Those that ask a cloud's API need a second or two; one that waits for
/// somebody to unlock a key ring would otherwise hang a CI job.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);

/// How much of a helper's answer is read, in bytes.
const HELPER_ANSWER_MAX: u64 = 1 << 20;

impl CredentialFile {
    /// Reads the text of the file that is called `name` in errors. Entries are decoded when they are looked up.
    pub fn parse(name: &str, text: &str) -> Result<Self, CredentialError> {
        if text.trim().is_empty() {
            return Ok(Self { name: name.to_owned(), ..Self::default() });
        }
        // The parser's message could quote the file, so only the place is told.
        let file: ConfigFile = serde_json::from_str(text).map_err(|error| CredentialError::File {
            file: name.to_owned(),
            reason: format!(
                "it is no valid JSON of that form at line {}, column {}",
                error.line(),
                error.column()
            ),
        })?;
        let (auths, helpers) = (file.auths.unwrap_or_default(), file.helpers.unwrap_or_default());
        Ok(Self {
            name: name.to_owned(),
            auths: auths.into_iter().map(|(key, entry)| (normal(&key), entry.unwrap_or_default())).collect(),
            helpers: helpers.into_iter().map(|(key, helper)| (normal(&key), helper)).collect(),
            store: file.store.filter(|store| !store.is_empty()),
        })
    }

    fn decode(&self, entry: &AuthEntry, key: &str) -> Result<Credential, CredentialError> {
        let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = filled(&entry.registry_token) {
            return Ok(Credential::RegistryToken(Secret(token)));
        }
        if let Some(token) = filled(&entry.identity_token) {
            return Ok(Credential::IdentityToken(Secret(token)));
        }
        if let Some(auth) = filled(&entry.auth) {
            let malformed = || CredentialError::Entry { file: self.name.clone(), key: key.to_owned() };
            let decoded = BASE64.decode(auth.trim()).map_err(|_| malformed())?;
            let decoded = String::from_utf8(decoded).map_err(|_| malformed())?;
            let (username, password) = decoded.split_once(':').ok_or_else(malformed)?;
            return Ok(Credential::Basic {
                username: username.to_owned(),
                // Docker's own decoder strips these too.
                password: Secret(password.trim_end_matches('\0').to_owned()),
            });
        }
        match (filled(&entry.username), filled(&entry.password)) {
            (Some(username), Some(password)) => {
                Ok(Credential::Basic { username, password: Secret(password) })
            }
            _ => Ok(Credential::Anonymous),
        }
    }
}

#[async_trait]
impl Credentials for CredentialFile {
    async fn lookup(&self, registry: &str, repository: &str) -> Result<Credential, CredentialError> {
        // Helpers are for whole registries.
        let host = normal(registry);
        if let Some(helper) = self.helpers.get(&host) {
            return ask_helper(helper, registry).await;
        }
        // From the repository itself up to the registry (containers-auth.json(5)).
        let repository = format!("{host}/{repository}");
        let mut key = Some(repository.as_str());
        while let Some(here) = key {
            if let Some(entry) = self.auths.get(here) {
                let credential = self.decode(entry, here)?;
                if credential != Credential::Anonymous {
                    return Ok(credential);
                }
            }
            key = here.rsplit_once('/').map(|(parent, _)| parent);
        }
        // An entry without content says that the store has it; Docker asks the store in any case.
        match &self.store {
            Some(store) => ask_helper(store, registry).await,
            None => Ok(Credential::Anonymous),
        }
    }
}

/// A key as it is looked up: the registry, with a path of repositories or without. What Docker writes for a registry as
/// an address, `https://index.docker.io/v1/`, is the registry alone: `docker.io`.
fn normal(key: &str) -> String {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
    let (host, path) = rest.unwrap_or(key).split_once('/').unwrap_or((rest.unwrap_or(key), ""));
    let host = match host.to_ascii_lowercase() {
        hub if matches!(hub.as_str(), "index.docker.io" | "registry-1.docker.io") => "docker.io".to_owned(),
        host => host,
    };
    // The version of the protocol is no repository.
    match path.trim_end_matches('/') {
        "" | "v1" | "v2" => host,
        _ if rest.is_some() => host,
        path => format!("{host}/{path}"),
    }
}

/// Runs `docker-credential-<helper> get` (docker/docker-credential-helpers, "Development").
async fn ask_helper(helper: &str, registry: &str) -> Result<Credential, CredentialError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        #[serde(default)]
        username: String,
        #[serde(default)]
        secret: String,
    }
    let error = |reason: String| CredentialError::Helper {
        helper: helper.chars().filter(|c| !c.is_control()).take(100).collect(),
        registry: registry.to_owned(),
        reason,
    };
    if helper.is_empty() || !helper.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c)) {
        return Err(error("this is not the name of a helper".to_owned()));
    }
    let key = if registry == "docker.io" { "https://index.docker.io/v1/" } else { registry };
    let mut child = tokio::process::Command::new(format!("docker-credential-{helper}"))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|cause| error(format!("it cannot be started: {cause}")))?;
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(error("its pipes are missing".to_owned()));
    };
    let conversation = async {
        // A helper that does not read its input may have exited already; its answer tells.
        let _ = stdin.write_all(key.as_bytes()).await;
        drop(stdin);
        let mut answer = Vec::new();
        stdout.take(HELPER_ANSWER_MAX).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>((answer, child.wait().await?))
    };
    let (answer, status) = tokio::time::timeout(HELPER_TIMEOUT, conversation)
        .await
        .map_err(|_| error(format!("no answer within {} seconds", HELPER_TIMEOUT.as_secs())))?
        .map_err(|cause| error(cause.to_string()))?;
    if !status.success() {
        // The protocol has this one text for "I have none", on standard output.
        let text = String::from_utf8_lossy(&answer);
        if text.contains("credentials not found") {
            return Ok(Credential::Anonymous);
        }
        return Err(error(format!("{status}: {}", super::redact::text(&text))));
    }
    let answer: Answer =
        serde_json::from_slice(&answer).map_err(|_| error("its answer is no valid JSON".to_owned()))?;
    Ok(match (answer.username.as_str(), answer.secret) {
        ("", secret) if secret.is_empty() => Credential::Anonymous,
        ("<token>", secret) => Credential::IdentityToken(Secret(secret)),
        (_, secret) => Credential::Basic { username: answer.username, password: Secret(secret) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(username: &str, password: &str) -> Credential {
        Credential::Basic { username: username.to_owned(), password: Secret::new(password) }
    }

    #[tokio::test]
    async fn entries_are_found_under_every_spelling() {
        let config = CredentialFile::parse(
            "config.json",
            r#"{"auths": {
                "https://index.docker.io/v1/": {"auth": "dTpwOnE="},
                "http://localhost:5000/v2/": {"auth": "dTpw"},
                "ghcr.io": {"username": "a", "password": "b"},
                "quay.io": {"auth": "dTpw", "identitytoken": "it"},
                "t.io": {"registrytoken": "rt"},
                "bad.io": {"auth": "!!"},
                "nocolon.io": {"auth": "dXA"},
                "empty.io": {}, "null.io": null
            }, "HttpHeaders": {"x": "y"}, "credHelpers": {"evil.io": "../x"}}"#,
        )
        .unwrap();
        let lookup = async |registry| config.lookup(registry, "a/b").await;
        assert_eq!(lookup("docker.io").await, Ok(basic("u", "p:q")));
        assert_eq!(lookup("localhost:5000").await, Ok(basic("u", "p")));
        assert_eq!(lookup("ghcr.io").await, Ok(basic("a", "b")));
        assert_eq!(lookup("quay.io").await, Ok(Credential::IdentityToken(Secret::new("it"))));
        assert_eq!(lookup("t.io").await, Ok(Credential::RegistryToken(Secret::new("rt"))));
        for none in ["empty.io", "null.io", "other.io"] {
            assert_eq!(lookup(none).await, Ok(Credential::Anonymous));
        }
        for bad in ["bad.io", "nocolon.io", "evil.io"] {
            assert!(lookup(bad).await.is_err(), "{bad}");
        }
    }

    /// The example of containers-auth.json(5), and some more.
    #[tokio::test]
    async fn the_longest_path_wins() {
        let entry = |user: &str| serde_json::json!({"username": user, "password": "p"});
        let text = serde_json::json!({"auths": {
            "my-registry.local/foo/bar/image": entry("image"),
            "My-Registry.local/foo": entry("foo"),
            "my-registry.local": entry("all"),
            "index.docker.io/a/": entry("hub"),
            "only.io/some/": entry("some"),
            "empty.io/a/b": {},
            "empty.io": entry("below"),
            "old.io/v1/": entry("old"),
            "helped.io/a": entry("not this"),
        }, "credHelpers": {"helped.io": "../none"}});
        let file = CredentialFile::parse("auth.json", &text.to_string()).unwrap();
        for (registry, repository, user) in [
            ("my-registry.local", "foo/bar/image", Some("image")),
            ("my-registry.local", "foo/bar/image/more", Some("image")),
            ("my-registry.local", "foo/bar/images", Some("foo")),
            ("my-registry.local", "foo", Some("foo")),
            ("my-registry.local", "food", Some("all")),
            ("docker.io", "a/b", Some("hub")),
            ("docker.io", "library/a", None),
            ("only.io", "some/thing", Some("some")),
            ("only.io", "other", None),
            ("only.io:5000", "some/thing", None),
            ("empty.io", "a/b", Some("below")),
            ("old.io", "any", Some("old")),
        ] {
            let expected = user.map_or(Credential::Anonymous, |user| basic(user, "p"));
            assert_eq!(file.lookup(registry, repository).await, Ok(expected), "{registry}/{repository}");
        }
        assert!(file.lookup("helped.io", "a").await.is_err());
    }

    #[tokio::test]
    async fn the_first_source_that_has_one_gives_it() {
        let source =
            |text: &str| -> Arc<dyn Credentials> { Arc::new(CredentialFile::parse("f", text).unwrap()) };
        let sources = CredentialSources(vec![
            source(
                r#"{"auths": {"a.io": {"auth": "MTpw"}}, "credHelpers": {"b.io": "../no", "c.io": "../no"}}"#,
            ),
            source(r#"{"auths": {"a.io/x": {"auth": "Mjpw"}, "b.io": {"auth": "Mjpw"}}}"#),
        ]);
        assert_eq!(sources.lookup("a.io", "x").await, Ok(basic("1", "p")));
        assert_eq!(sources.lookup("b.io", "x").await, Ok(basic("2", "p")));
        assert!(matches!(sources.lookup("c.io", "x").await, Err(CredentialError::Helper { .. })));
        assert_eq!(sources.lookup("d.io", "x").await, Ok(Credential::Anonymous));
    }

    #[test]
    fn nothing_shows_a_secret() {
        let config =
            CredentialFile::parse("f", r#"{"auths":{"a":{"auth":"c2VjcmV0","password":"secret"}}}"#).unwrap();
        let shown = format!("{config:?} {:?}", basic("u", "secret"));
        assert!(!shown.contains("secret") && !shown.contains("c2VjcmV0"), "{shown}");
        let error = CredentialFile::parse("f", r#"{"auths":{"a":{"auth":["secret"]}}}"#).unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
        assert!(CredentialFile::parse("f", " ").unwrap().auths.is_empty());
    }
}
