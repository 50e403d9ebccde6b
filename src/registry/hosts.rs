//! What is set for single registries: mirrors, plain HTTP, certificates.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::reference::Reference;

/// How one registry is spoken to.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct HostOptions {
    /// Asked first when something is read, in this order; what none of them gives comes from the registry itself.
    pub mirrors: Vec<Mirror>,
    /// It is spoken to in plain HTTP. Those on this machine always are, unless certificates are set for them.
    pub plain_http: bool,
    /// Its certificate is not checked.
    pub skip_verify: bool,
    /// Certificates of authorities that are trusted besides this machine's, each a PEM text.
    pub certificates: Vec<Vec<u8>>,
    /// A client's certificate and its key, as one PEM text.
    pub identity: Option<Vec<u8>>,
    /// Why certificates that were found for it cannot be used. It is told when a connection to it fails.
    pub problem: Option<String>,
}

/// The options by registry: host with optional port, as in references.
pub type Hosts = BTreeMap<String, HostOptions>;

/// Without the client's key.
impl fmt::Debug for HostOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostOptions")
            .field("mirrors", &self.mirrors)
            .field("plain_http", &self.plain_http)
            .field("skip_verify", &self.skip_verify)
            .field("certificates", &self.certificates.len())
            .field("identity", &self.identity.is_some())
            .field("problem", &self.problem)
            .finish()
    }
}

impl HostOptions {
    /// Whether it needs connections of its own.
    pub(super) fn has_tls_options(&self) -> bool {
        self.skip_verify || !self.certificates.is_empty() || self.identity.is_some() || self.problem.is_some()
    }

    /// Takes the certificates that were `found` for it, as far as nothing else is set.
    pub fn complete(&mut self, found: Self) {
        if self.plain_http {
            return;
        }
        if self.certificates.is_empty() && !self.skip_verify {
            self.certificates = found.certificates;
            self.problem = found.problem;
        }
        self.identity = self.identity.take().or(found.identity);
    }

    /// The HTTP client for it, made by `builder`.
    pub(super) fn client(
        &self,
        builder: impl Fn() -> reqwest::ClientBuilder,
    ) -> reqwest::Result<reqwest::Client> {
        // On a machine without certificates only its own are left.
        self.build(|certificates| builder().tls_certs_merge(certificates))
            .or_else(|_| self.build(|certificates| builder().tls_certs_only(certificates)))
    }

    fn build(
        &self,
        builder: impl FnOnce(Vec<reqwest::Certificate>) -> reqwest::ClientBuilder,
    ) -> reqwest::Result<reqwest::Client> {
        let mut certificates = Vec::new();
        for pem in &self.certificates {
            certificates.extend(reqwest::Certificate::from_pem_bundle(pem)?);
        }
        let mut builder = builder(certificates);
        if let Some(identity) = &self.identity {
            builder = builder.identity(reqwest::Identity::from_pem(identity)?);
        }
        builder.tls_danger_accept_invalid_certs(self.skip_verify).build()
    }

    /// Whether the certificates are some; else the reason why not.
    pub(super) fn usable(&self) -> Result<(), String> {
        for pem in &self.certificates {
            let certificates = reqwest::Certificate::from_pem_bundle(pem);
            if certificates.map_err(|error| super::redact::chain(&error))?.is_empty() {
                return Err("there is no certificate in PEM form".to_owned());
            }
        }
        self.build(|certificates| reqwest::Client::builder().tls_certs_only(certificates))
            .map(drop)
            .map_err(|error| super::redact::chain(&error))
    }
}

/// A registry that has the content of another one: a host, and a path that stands before the repositories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    host: String,
    prefix: String,
}

/// Why a text is no [`Mirror`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "`{0}` is not a mirror: expected a host, with a port or a path or without, such as `mirror.example:5000/hub`"
)]
pub struct MirrorError(String);

impl FromStr for Mirror {
    type Err = MirrorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, prefix) =
            text.trim_end_matches('/').split_once('/').unwrap_or((text.trim_end_matches('/'), ""));
        let mirror = Self { host: host.to_owned(), prefix: prefix.to_owned() };
        // A reference knows what a host and a repository may be.
        let sample: Result<Reference, _> = mirror.text("sample").parse();
        match sample {
            Ok(sample) if sample.registry() == host => Ok(mirror),
            _ => Err(MirrorError(text.to_owned())),
        }
    }
}

impl Mirror {
    fn text(&self, rest: &str) -> String {
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        format!("{}/{}{slash}{rest}", self.host, self.prefix)
    }

    /// What `reference` is called at the mirror.
    pub(super) fn of(&self, reference: &Reference) -> Option<Reference> {
        let tag = reference.tag().map(|tag| format!(":{tag}")).unwrap_or_default();
        let digest = reference.digest().map(|digest| format!("@{digest}")).unwrap_or_default();
        self.text(&format!("{}{tag}{digest}", reference.repository())).parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_lie_below_the_mirrors_path() {
        let of = |mirror: &str, reference: &str| {
            let mirror: Mirror = mirror.parse().unwrap();
            mirror.of(&reference.parse().unwrap()).unwrap().to_string()
        };
        assert_eq!(of("m.example:5000", "alpine:3"), "m.example:5000/library/alpine:3");
        assert_eq!(of("m.example/hub/", "docker.io/a/b"), "m.example/hub/a/b:latest");
        let digest = format!("sha256:{}", "0".repeat(64));
        assert_eq!(of("localhost/x/y", &format!("r.io/a@{digest}")), format!("localhost/x/y/a@{digest}"));
    }

    #[test]
    fn what_is_set_comes_before_what_is_found() {
        let found = || HostOptions {
            certificates: vec![b"found".to_vec()],
            identity: Some(b"found".to_vec()),
            ..HostOptions::default()
        };
        let completed = |mut set: HostOptions| {
            set.complete(found());
            set
        };
        assert_eq!(completed(HostOptions::default()), found());
        let plain = HostOptions { plain_http: true, ..HostOptions::default() };
        assert_eq!(completed(plain.clone()), plain);
        let set = HostOptions { certificates: vec![b"set".to_vec()], ..HostOptions::default() };
        assert_eq!(completed(set.clone()), HostOptions { identity: found().identity, ..set });
        let set = HostOptions { identity: Some(b"set".to_vec()), ..HostOptions::default() };
        assert_eq!(completed(set.clone()), HostOptions { certificates: found().certificates, ..set });
        let careless = completed(HostOptions { skip_verify: true, ..HostOptions::default() });
        assert!(careless.certificates.is_empty() && careless.identity.is_some());
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for text in
            ["", "https://m.example", "mirror", "m.example/UPPER", "m.example/a//b", "m.example/a:tag"]
        {
            assert!(text.parse::<Mirror>().is_err(), "{text}");
        }
    }
}
