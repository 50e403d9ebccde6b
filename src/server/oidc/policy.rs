//! From what a token claims to what its holder may do.
//!
//! The rules are looked through in their order; the first whose conditions all hold decides. What no rule knows gets
//! nothing.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::Claims;
use crate::record::Scope;
use crate::server::identity::{Grant, RepositoryPattern, ScopePattern, Tenant};

/// Longer names are cut, for the log.
const NAME_CHARS_MAX: usize = 120;

/// Events of GitHub whose workflow comes from the ref that they are about, and that nobody from outside can cause. As in
/// GitHub's own rules for its cache (changelog of June 2026), and merge queues, which have refs of their own.
const TRUSTED_EVENTS: [&str; 8] = [
    "push",
    "schedule",
    "workflow_dispatch",
    "repository_dispatch",
    "delete",
    "registry_package",
    "page_build",
    "merge_group",
];

/// Who may do what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    rules: Vec<Rule>,
}

/// Scopes that follow from what a provider says of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// GitHub's own rules: a job writes to its ref, and reads from it, from the base branch of its pull request and from the
    /// default branch. What outsiders can cause in the default branch's context only reads.
    Github,
    /// The same for GitLab.
    Gitlab,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Rule {
    /// Whose tokens it is about; needed where several issuers are believed.
    #[serde(default)]
    pub issuer: Option<String>,
    /// Claims, and what they have to be.
    pub when: BTreeMap<String, Values>,
    /// Whose storage it opens.
    #[serde(default = "default_tenant")]
    pub tenant: String,
    /// Scopes by the provider's own rules, in place of `read` and `write`.
    #[serde(default)]
    pub scopes: Option<Preset>,
    /// With `scopes`: the branch that all others may read.
    #[serde(default = "default_branch")]
    pub default_branch: String,
    /// The scopes that it may read, in the order of looking.
    #[serde(default)]
    pub read: Vec<String>,
    /// The scope that it may write.
    #[serde(default)]
    pub write: Option<String>,
    /// The repositories that it may pull from.
    #[serde(default)]
    pub pull: Vec<String>,
    /// The repositories that it may push to. With `scopes` only for what may write to a branch or a tag.
    #[serde(default)]
    pub push: Vec<String>,
}

fn default_tenant() -> String {
    Tenant::default().as_str().to_owned()
}

fn default_branch() -> String {
    "main".to_owned()
}

/// What a claim has to be: one of these; `*` at the end stands for anything.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Values {
    /// This.
    One(String),
    /// Any of these.
    Any(Vec<String>),
}

impl Values {
    fn patterns(&self) -> &[String] {
        match self {
            Self::One(pattern) => std::slice::from_ref(pattern),
            Self::Any(patterns) => patterns,
        }
    }

    fn allow(&self, value: &str) -> bool {
        self.patterns().iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(start) => value.starts_with(start),
            None => pattern == value,
        })
    }
}

/// Why a policy cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("rule {rule}: {reason}")]
pub struct PolicyError {
    /// Counted from one.
    pub rule: usize,
    /// Why.
    pub reason: String,
}

/// What a policy says to some claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// For each rule that was looked at, whether it is the one, or why not.
    pub considered: Vec<String>,
    /// What follows.
    pub verdict: Verdict,
}

/// What follows from a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// This.
    Granted {
        /// The rights.
        grant: Grant,
        /// The scopes to look through, in this order.
        read: Vec<Scope>,
        /// The scope to write to.
        write: Option<Scope>,
    },
    /// Nothing: no rule knows these claims, or the one that does cannot be applied to them.
    Nothing(String),
}

/// What a job is, for scopes: templates, in which what is escaped has nothing to expand.
struct Job {
    read: Vec<String>,
    write: Option<String>,
    may_push: bool,
}

impl Policy {
    /// A policy of these rules, for tokens of these issuers.
    pub fn new(mut rules: Vec<Rule>, issuers: &[String]) -> Result<Self, PolicyError> {
        for (index, rule) in rules.iter_mut().enumerate() {
            let wrong = |reason: String| Err(PolicyError { rule: index + 1, reason });
            match (&rule.issuer, issuers) {
                (Some(issuer), _) if issuers.contains(issuer) => {}
                (Some(issuer), _) => return wrong(format!("there is no issuer `{issuer}`")),
                (None, [only]) => rule.issuer = Some(only.clone()),
                (None, []) => return wrong("there is no issuer (`[[serve.oidc]]`)".to_owned()),
                (None, _) => return wrong("it has to say whose tokens it is about: `issuer`".to_owned()),
            }
            let open = |values: &Values| {
                values.patterns().is_empty() || values.patterns().iter().any(|pattern| pattern == "*")
            };
            if rule.when.is_empty() || rule.when.values().all(open) {
                return wrong(
                    "without conditions (`when`) it would let everybody in who has a token of the issuer"
                        .to_owned(),
                );
            }
            if rule.scopes.is_some() && !(rule.read.is_empty() && rule.write.is_none()) {
                return wrong("`scopes` stands for `read` and `write`".to_owned());
            }
            for template in rule.templates() {
                if let Err(reason) = expand(template, &|_| Ok("x".to_owned())) {
                    return wrong(reason);
                }
            }
        }
        Ok(Self { rules })
    }

    /// What somebody may do whose token of `issuer` claims this.
    pub fn decide(&self, issuer: &str, claims: &Claims) -> Decision {
        let mut considered = Vec::new();
        for (index, rule) in self.rules.iter().enumerate() {
            let number = index + 1;
            if let Some(obstacle) = rule.obstacle(issuer, claims) {
                considered.push(format!("rule {number} is for others: {obstacle}"));
                continue;
            }
            considered.push(format!("rule {number} decides"));
            let verdict = rule
                .apply(claims)
                .unwrap_or_else(|reason| Verdict::Nothing(format!("rule {number}: {reason}")));
            return Decision { considered, verdict };
        }
        Decision { considered, verdict: Verdict::Nothing("no rule knows these claims".to_owned()) }
    }
}

impl Rule {
    fn templates(&self) -> impl Iterator<Item = &String> {
        let Self { tenant, read, write, pull, push, .. } = self;
        std::iter::once(tenant).chain(read).chain(write).chain(pull).chain(push)
    }

    fn obstacle(&self, issuer: &str, claims: &Claims) -> Option<String> {
        if self.issuer.as_deref() != Some(issuer) {
            return Some(format!("the issuer is {issuer}"));
        }
        self.when.iter().find_map(|(name, values)| match text(claims, name) {
            Some(value) if values.allow(&value) => None,
            Some(value) => Some(format!("`{name}` is `{value}`, not `{}`", values.patterns().join("` or `"))),
            None => Some(format!("there is no `{name}`")),
        })
    }

    fn apply(&self, claims: &Claims) -> Result<Verdict, String> {
        let claim = |name: &str| text(claims, name).ok_or_else(|| format!("the token has no `{name}`"));
        let job = match self.scopes {
            None => Job { read: self.read.clone(), write: self.write.clone(), may_push: true },
            Some(Preset::Github) => github(&claim, &self.default_branch)?,
            Some(Preset::Gitlab) => gitlab(&claim, &self.default_branch)?,
        };
        let scope = |template: &String| {
            let name = expand(template, &|name| claim(name).map(|value| escape(&value)))?;
            name.parse::<Scope>().map_err(|error| error.to_string())
        };
        let mut read = Vec::new();
        for template in &job.read {
            let scope = scope(template)?;
            if !read.contains(&scope) {
                read.push(scope);
            }
        }
        let write = job.write.as_ref().map(scope).transpose()?;
        let plain = |name: &str| {
            let value = claim(name)?.to_ascii_lowercase();
            if value.contains('*') { Err(format!("`{name}` has a `*`")) } else { Ok(value) }
        };
        let repositories = |templates: &[String]| -> Result<Vec<RepositoryPattern>, String> {
            let expanded = templates.iter().map(|template| expand(template, &plain));
            expanded.map(|name| name?.parse().map_err(|error| format!("{error}"))).collect()
        };
        let tenant = expand(&self.tenant, &plain)?;
        let grant = Grant {
            name: name(claims),
            tenant: tenant.parse().map_err(|error| format!("{error}"))?,
            read: read.iter().cloned().map(ScopePattern::Is).collect(),
            write: write.iter().cloned().map(ScopePattern::Is).collect(),
            pull: repositories(&self.pull)?,
            push: if job.may_push { repositories(&self.push)? } else { Vec::new() },
        };
        Ok(Verdict::Granted { grant, read, write })
    }
}

/// <https://docs.github.com/en/actions/reference/workflows-and-actions/dependency-caching>: what a job may see and write.
/// Repositories by id: a name may be somebody else's tomorrow.
fn github(claim: &dyn Fn(&str) -> Result<String, String>, default: &str) -> Result<Job, String> {
    let (repository, event, own) = (claim("repository_id")?, claim("event_name")?, claim("ref")?);
    let place = |name: &str| format!("{}/{}", escape(&repository), escape(name));
    let default = place(&format!("refs/heads/{default}"));
    Ok(match event.as_str() {
        "pull_request" if own.starts_with("refs/pull/") => {
            let base = claim("base_ref").ok().filter(|base| !base.is_empty());
            let base = base.map(|base| place(&format!("refs/heads/{base}")));
            let read = std::iter::once(place(&own)).chain(base).chain([default]).collect();
            Job { read, write: Some(place(&own)), may_push: false }
        }
        event if TRUSTED_EVENTS.contains(&event) => {
            Job { read: vec![place(&own), default], write: Some(place(&own)), may_push: true }
        }
        _ => Job { read: vec![default], write: None, may_push: false },
    })
}

/// <https://docs.gitlab.com/ci/secrets/id_token_authentication/>: the claims. A pipeline of a merge request has a `ref_path`
/// of its own, and one of a fork belongs to the fork's project.
fn gitlab(claim: &dyn Fn(&str) -> Result<String, String>, default: &str) -> Result<Job, String> {
    let (project, own) = (claim("project_id")?, claim("ref_path")?);
    let place = |name: &str| format!("{}/{}", escape(&project), escape(name));
    let default = place(&format!("refs/heads/{default}"));
    let may_push = claim("ref_protected").is_ok_and(|value| value == "true")
        && (own.starts_with("refs/heads/") || own.starts_with("refs/tags/"));
    Ok(Job { read: vec![place(&own), default], write: Some(place(&own)), may_push })
}

/// A claim as text.
fn text(claims: &Claims, name: &str) -> Option<String> {
    match claims.get(name)? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// What people know the job by.
fn name(claims: &Claims) -> String {
    let first = |names: &[&str]| names.iter().find_map(|name| text(claims, name)).unwrap_or_default();
    let (place, version) = (first(&["repository", "project_path", "sub"]), first(&["ref"]));
    let name = if version.is_empty() { place } else { format!("{place}@{version}") };
    name.chars().filter(|c| !c.is_control()).take(NAME_CHARS_MAX).collect()
}

/// Puts claims in the place of `{name}`.
fn expand(template: &str, claim: &dyn Fn(&str) -> Result<String, String>) -> Result<String, String> {
    let mut text = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) =
            after.split_once('}').ok_or_else(|| format!("`{template}` has a `{{` without its `}}`"))?;
        text.push_str(before);
        text.push_str(&claim(name)?);
        rest = after;
    }
    text.push_str(rest);
    Ok(text)
}

/// Any text as a part of a scope. Different texts stay different: what a scope cannot have becomes `_` and two
/// hexadecimal digits, and so does a `_` before two of them.
fn escape(text: &str) -> String {
    let bytes = text.as_bytes();
    let is_hex = |byte: Option<&u8>| byte.is_some_and(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let mut escaped = String::with_capacity(bytes.len());
    for (index, byte) in bytes.iter().enumerate() {
        let literal = match byte {
            b'_' => !(is_hex(bytes.get(index + 1)) && is_hex(bytes.get(index + 2))),
            byte => byte.is_ascii_alphanumeric() || b"./-".contains(byte),
        };
        if literal {
            escaped.push(char::from(*byte));
        } else {
            escaped.push_str(&format!("_{byte:02x}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const GITHUB: &str = "https://token.actions.githubusercontent.com";

    fn rules(text: &str) -> Vec<Rule> {
        #[derive(Deserialize)]
        struct File {
            policy: Vec<Rule>,
        }
        toml::from_str::<File>(text).unwrap().policy
    }

    fn policy(text: &str) -> Result<Policy, PolicyError> {
        Policy::new(rules(text), &[GITHUB.to_owned()])
    }

    fn claims(value: Value) -> Claims {
        let Value::Object(claims) = value else { panic!("no object") };
        claims
    }

    fn preset() -> Policy {
        policy(
            "[[policy]]\nwhen = { repository_owner_id = '7' }\nscopes = 'github'\npush = ['{repository}']\npull = ['*']\n",
        )
        .unwrap()
    }

    fn scopes(claims_of: Value) -> (Vec<String>, Option<String>, bool) {
        let mut all = claims(
            json!({"repository_owner_id": "7", "repository_id": "12", "repository": "Acme/App", "base_ref": ""}),
        );
        all.extend(claims(claims_of));
        match preset().decide(GITHUB, &all).verdict {
            Verdict::Granted { grant, read, write } => (
                read.iter().map(ToString::to_string).collect(),
                write.map(|write| write.to_string()),
                grant.may_push("acme/app"),
            ),
            Verdict::Nothing(reason) => panic!("{reason}"),
        }
    }

    #[test]
    fn githubs_rules() {
        let (main, dev) = ("12/refs/heads/main".to_owned(), "12/refs/heads/dev".to_owned());
        let job = |event: &str, name: &str, base: &str| {
            scopes(json!({"event_name": event, "ref": name, "base_ref": base}))
        };
        assert_eq!(job("push", "refs/heads/main", ""), (vec![main.clone()], Some(main.clone()), true));
        assert_eq!(
            job("schedule", "refs/heads/dev", ""),
            (vec![dev.clone(), main.clone()], Some(dev.clone()), true)
        );
        let own = "12/refs/pull/3/merge".to_owned();
        assert_eq!(
            job("pull_request", "refs/pull/3/merge", "dev"),
            (vec![own.clone(), dev, main.clone()], Some(own), false)
        );
        let tag = "12/refs/tags/v1".to_owned();
        assert_eq!(job("push", "refs/tags/v1", ""), (vec![tag.clone(), main.clone()], Some(tag), true));
        for event in ["pull_request_target", "issue_comment", "workflow_run", "anything"] {
            assert_eq!(job(event, "refs/heads/main", "main"), (vec![main.clone()], None, false), "{event}");
        }
        // It is no pull request's ref: nobody knows what this is.
        assert_eq!(job("pull_request", "refs/heads/main", "main"), (vec![main], None, false));
    }

    #[test]
    fn gitlabs_rules() {
        let text = "[[policy]]\nwhen = { namespace_id = '7' }\nscopes = 'gitlab'\ndefault-branch = 'trunk'\npush = ['a/*']\n";
        let policy = policy(text).unwrap();
        let job = |name: &str, protected: &str| {
            let claims = claims(
                json!({"namespace_id": 7, "project_id": "5", "ref_path": name, "ref_protected": protected}),
            );
            match policy.decide(GITHUB, &claims).verdict {
                Verdict::Granted { grant, write, .. } => (write.unwrap().to_string(), grant.may_push("a/b")),
                Verdict::Nothing(reason) => panic!("{reason}"),
            }
        };
        assert_eq!(job("refs/heads/trunk", "true"), ("5/refs/heads/trunk".to_owned(), true));
        assert_eq!(job("refs/heads/x", "false"), ("5/refs/heads/x".to_owned(), false));
        let own = "5/refs/merge-requests/4/head".to_owned();
        assert_eq!(job("refs/merge-requests/4/head", "true"), (own, false));
    }

    #[test]
    fn the_first_rule_that_knows_the_claims_decides() {
        let policy = policy(
            "[[policy]]\nwhen = { repository = 'a/b', event_name = ['push', 'schedule'] }\ntenant = 'one'\n\
             [[policy]]\nwhen = { repository = 'a/*' }\ntenant = 'two-{repository_id}'\nread = ['{ref}']\nwrite = '{ref}'\n",
        )
        .unwrap();
        let tenant = |value: Value| match policy.decide(GITHUB, &claims(value)).verdict {
            Verdict::Granted { grant, .. } => grant.tenant.to_string(),
            Verdict::Nothing(reason) => reason,
        };
        assert_eq!(tenant(json!({"repository": "a/b", "event_name": "push"})), "one");
        let other = json!({"repository": "a/b", "event_name": "other", "ref": "x", "repository_id": 4});
        assert_eq!(tenant(other), "two-4");
        assert_eq!(tenant(json!({"repository": "b/a"})), "no rule knows these claims");
        assert_eq!(
            tenant(json!({"repository": "a/c", "ref": "x"})),
            "rule 2: the token has no `repository_id`"
        );
        let odd = json!({"repository": "a/c", "ref": "..", "repository_id": 4});
        assert!(tenant(odd).contains("is not a scope"));
        let star = json!({"repository": "a/c", "ref": "x", "repository_id": "*"});
        assert!(tenant(star).contains("has a `*`"));
        let nested = json!({"repository": ["a/b"], "event_name": "push"});
        assert_eq!(tenant(nested), "no rule knows these claims");
        let other = policy.decide("https://other.example", &claims(json!({"repository": "a/b"})));
        assert!(matches!(other.verdict, Verdict::Nothing(_)));
    }

    #[test]
    fn rules_that_cannot_be_meant_are_refused() {
        for (text, reason) in [
            ("when = {}", "without conditions"),
            ("when = { sub = '*' }", "without conditions"),
            ("when = { a = 'b' }\nissuer = 'https://x'", "no issuer"),
            ("when = { a = 'b' }\nread = ['{x']", "without its"),
            ("when = { a = 'b' }\nscopes = 'github'\nwrite = 'x'", "stands for"),
        ] {
            let error = policy(&format!("[[policy]]\n{text}\n")).unwrap_err();
            assert!(error.to_string().contains(reason), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn different_names_are_different_scopes(a in "[a-c_5/. +é]{0,8}", b in "[a-c_5/. +é]{0,8}") {
            prop_assert_eq!(escape(&a) == escape(&b), a == b);
        }
    }

    #[test]
    fn ordinary_names_stay_as_they_are() {
        for name in ["refs/heads/feature_x", "release-1.2", "a__b", "_a"] {
            assert_eq!(escape(name), name);
        }
        assert_eq!(escape("a_5f"), "a_5f5f");
        assert_eq!(escape("x+y"), "x_2by");
    }
}
