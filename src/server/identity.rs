//! Who a request comes from, and what that allows.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::settings::Anonymous;
use crate::record::Scope;

/// Somebody with a storage of their own: a team, an organisation. Lower-case letters, digits, `-`, `_` and `.`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tenant(String);

/// Why a text is no [`Tenant`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "`{0}` is no name of a tenant: up to 64 lower-case letters, digits, `-`, `_` and `.`, a letter or digit first"
)]
pub struct TenantError(String);

impl Tenant {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Tenant {
    fn default() -> Self {
        Self("default".to_owned())
    }
}

impl FromStr for Tenant {
    type Err = TenantError;

    fn from_str(text: &str) -> Result<Self, TenantError> {
        let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let plain = text.bytes().all(|byte| word(byte) || b"-_.".contains(&byte));
        if plain && text.len() <= 64 && text.bytes().next().is_some_and(word) {
            Ok(Self(text.to_owned()))
        } else {
            Err(TenantError(text.to_owned()))
        }
    }
}

impl TryFrom<String> for Tenant {
    type Error = TenantError;

    fn try_from(text: String) -> Result<Self, TenantError> {
        text.parse()
    }
}

impl From<Tenant> for String {
    fn from(tenant: Tenant) -> Self {
        tenant.0
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Scopes that something is allowed for: one by name, all below a name (`pr/*`), or all (`*`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ScopePattern {
    /// All.
    Any,
    /// Those that begin with this name and a slash.
    Below(Scope),
    /// This one.
    Is(Scope),
}

impl ScopePattern {
    /// Whether `scope` is one of them.
    pub fn allows(&self, scope: &Scope) -> bool {
        match self {
            Self::Any => true,
            Self::Is(name) => name == scope,
            Self::Below(name) => {
                scope.as_str().strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('/'))
            }
        }
    }
}

impl FromStr for ScopePattern {
    type Err = crate::record::ScopeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_suffix("/*") {
            _ if text == "*" => Ok(Self::Any),
            Some(name) => name.parse().map(Self::Below),
            None => text.parse().map(Self::Is),
        }
    }
}

impl TryFrom<String> for ScopePattern {
    type Error = crate::record::ScopeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ScopePattern> for String {
    fn from(pattern: ScopePattern) -> Self {
        pattern.to_string()
    }
}

impl fmt::Display for ScopePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Below(name) => write!(f, "{name}/*"),
            Self::Is(name) => write!(f, "{name}"),
        }
    }
}

/// Repositories that something is allowed for: one by name, all below a name (`team/*`), or all (`*`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RepositoryPattern(String);

/// Why a text is no [`RepositoryPattern`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` names no repositories: give a name, `NAME/*` for all below one, or `*` for all")]
pub struct RepositoryPatternError(String);

impl RepositoryPattern {
    /// All.
    pub fn any() -> Self {
        Self("*".to_owned())
    }

    /// Whether `repository` is one of them.
    pub fn allows(&self, repository: &str) -> bool {
        match self.0.strip_suffix('*') {
            // What is left ends with the slash.
            Some(start) => repository.len() > start.len() && repository.starts_with(start),
            None => self.0 == repository,
        }
    }
}

impl FromStr for RepositoryPattern {
    type Err = RepositoryPatternError;

    fn from_str(text: &str) -> Result<Self, RepositoryPatternError> {
        let name = text.strip_suffix("/*").unwrap_or(text);
        if text == "*" || super::oci::is_name(name) {
            Ok(Self(text.to_owned()))
        } else {
            Err(RepositoryPatternError(text.to_owned()))
        }
    }
}

impl TryFrom<String> for RepositoryPattern {
    type Error = RepositoryPatternError;

    fn try_from(text: String) -> Result<Self, RepositoryPatternError> {
        text.parse()
    }
}

impl From<RepositoryPattern> for String {
    fn from(pattern: RepositoryPattern) -> Self {
        pattern.0
    }
}

impl fmt::Display for RepositoryPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a request may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// For the log: the token's name.
    pub name: String,
    /// Whose storage it is about.
    pub tenant: Tenant,
    /// The scopes whose records it may read.
    pub read: Vec<ScopePattern>,
    /// The scopes whose records it may write.
    pub write: Vec<ScopePattern>,
    /// The repositories that it may pull from.
    pub pull: Vec<RepositoryPattern>,
    /// The repositories that it may push to and delete from; it may pull from them too.
    pub push: Vec<RepositoryPattern>,
}

impl Grant {
    /// What everybody may do who is not asked who they are.
    pub fn everything() -> Self {
        Self {
            name: "anybody".to_owned(),
            tenant: Tenant::default(),
            read: vec![ScopePattern::Any],
            write: vec![ScopePattern::Any],
            pull: vec![RepositoryPattern::any()],
            push: vec![RepositoryPattern::any()],
        }
    }

    /// What somebody may do who gives no token.
    pub(super) fn of_anybody(anonymous: &Anonymous) -> Self {
        Self {
            name: "anybody".to_owned(),
            tenant: anonymous.tenant.clone(),
            read: anonymous.read.clone(),
            write: Vec::new(),
            pull: Vec::new(),
            push: Vec::new(),
        }
    }

    /// Whether the repository may be pulled from.
    pub fn may_pull(&self, repository: &str) -> bool {
        self.pull.iter().chain(&self.push).any(|pattern| pattern.allows(repository))
    }

    /// Whether the repository may be pushed to, and deleted from.
    pub fn may_push(&self, repository: &str) -> bool {
        self.push.iter().any(|pattern| pattern.allows(repository))
    }

    /// Whether records of `scope` may be read.
    pub fn may_read(&self, scope: &Scope) -> bool {
        self.read.iter().any(|pattern| pattern.allows(scope))
    }

    /// Whether records of `scope` may be written.
    pub fn may_write(&self, scope: &Scope) -> bool {
        self.write.iter().any(|pattern| pattern.allows(scope))
    }

    /// Whether there is nothing that it may not see: every scope's records and every repository's content. What such a
    /// caller could see and others not is only what somebody has sent and not named yet.
    pub fn sees_everything(&self) -> bool {
        self.read.contains(&ScopePattern::Any) && self.pull.contains(&RepositoryPattern::any())
    }

    /// Whether anything may be written: blobs belong to no scope, and a blob that no record names is nothing but space.
    pub fn may_upload(&self) -> bool {
        !self.write.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(text: &str) -> Scope {
        text.parse().unwrap()
    }

    #[test]
    fn patterns_stop_at_slashes() {
        let pattern = |text: &str| text.parse::<ScopePattern>().unwrap();
        assert!(pattern("*").allows(&scope("main")));
        assert!(pattern("main").allows(&scope("main")));
        assert!(!pattern("main").allows(&scope("main/x")));
        assert!(pattern("pr/*").allows(&scope("pr/7")));
        for other in ["pr", "prs/7", "main"] {
            assert!(!pattern("pr/*").allows(&scope(other)), "{other}");
        }
        for text in ["*", "main", "pr/*"] {
            assert_eq!(pattern(text).to_string(), text);
        }
        assert!("".parse::<ScopePattern>().is_err());
        assert!("../*".parse::<ScopePattern>().is_err());
    }

    #[test]
    fn patterns_of_repositories_stop_at_slashes() {
        let pattern = |text: &str| text.parse::<RepositoryPattern>().unwrap();
        assert!(pattern("*").allows("a/b"));
        assert!(pattern("a/b").allows("a/b"));
        assert!(!pattern("a/b").allows("a/b/c"));
        assert!(pattern("a/*").allows("a/b/c"));
        for other in ["a", "a/", "ab/c"] {
            assert!(!pattern("a/*").allows(other), "{other}");
        }
        for bad in ["", "a*", "/*", "A", "a/../*", "*/a"] {
            assert!(bad.parse::<RepositoryPattern>().is_err(), "{bad}");
        }
    }

    #[test]
    fn tenants_are_plain_words() {
        for good in ["default", "a", "team-1", "x.y_z"] {
            assert_eq!(good.parse::<Tenant>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "-a", "A", "a/b", "a b", "\u{e9}", &"x".repeat(65)] {
            assert_eq!(bad.parse::<Tenant>(), Err(TenantError(bad.to_owned())));
        }
    }
}
