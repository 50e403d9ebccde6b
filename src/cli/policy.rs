//! Who a server believes and what they may do: the configuration of it, and `crossdock policy explain`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::args::{Format, PolicyCommand, PolicyExplainCommand};
use super::environment::Environment;
use super::error::{CliError, ExitStatus};
use crate::server::{Claims, Issuer, Policy, Rule, ScopePattern, Tenant, Verdict};

/// A token's claims are some KiB.
const CLAIMS_BYTES_MAX: u64 = 1 << 20;

/// `[[serve.oidc]]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct OidcConfig {
    issuer: String,
    audience: String,
    jwks_url: Option<String>,
}

/// `[serve.anonymous]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct AnonymousConfig {
    #[serde(default)]
    pub tenant: Tenant,
    pub read: Vec<ScopePattern>,
}

fn wrong(reason: impl std::fmt::Display) -> CliError {
    CliError::usage(reason.to_string())
}

/// The issuers and the policy of a configuration.
pub(super) fn resolve(oidc: &[OidcConfig], rules: &[Rule]) -> Result<(Vec<Issuer>, Policy), CliError> {
    let mut issuers: Vec<Issuer> = Vec::new();
    for config in oidc {
        for url in std::iter::once(&config.issuer).chain(&config.jwks_url) {
            check_url(url)?;
        }
        if config.audience.is_empty() {
            return Err(wrong(format!("`serve.oidc`: {} needs an `audience`", config.issuer)));
        }
        if issuers.iter().any(|known| known.url == config.issuer) {
            return Err(wrong(format!("`serve.oidc`: {} is there twice", config.issuer)));
        }
        issuers.push(Issuer {
            url: config.issuer.clone(),
            audience: config.audience.clone(),
            jwks_url: config.jwks_url.clone(),
        });
    }
    let names: Vec<_> = issuers.iter().map(|issuer| issuer.url.clone()).collect();
    let policy =
        Policy::new(rules.to_vec(), &names).map_err(|error| wrong(format!("`serve.policy`: {error}")))?;
    if rules.is_empty() && !issuers.is_empty() {
        return Err(wrong("`serve.oidc` without a `[[serve.policy]]` lets nobody in")
            .hint("say who may do what: docs/server.md has examples"));
    }
    Ok((issuers, policy))
}

/// Keys that anybody could have changed on their way are worth nothing.
fn check_url(text: &str) -> Result<(), CliError> {
    let url: url::Url = text.parse().map_err(|_| wrong(format!("`serve.oidc`: `{text}` is no URL")))?;
    let is_here = match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    };
    if url.scheme() == "https" || (url.scheme() == "http" && is_here) {
        Ok(())
    } else {
        Err(wrong(format!("`serve.oidc`: {text} is not https")))
    }
}

/// `crossdock policy`.
pub(super) fn command(command: &PolicyCommand, environment: &Environment) -> Result<ExitStatus, CliError> {
    match command {
        PolicyCommand::Explain(args) => explain(args, environment),
    }
}

fn explain(args: &PolicyExplainCommand, environment: &Environment) -> Result<ExitStatus, CliError> {
    let claims = read(args, environment)?;
    let (issuers, policy) = environment.config.serve.identities()?;
    let issuer = match (claims.get("iss").and_then(Value::as_str), issuers.as_slice()) {
        (Some(issuer), _) => issuer.to_owned(),
        (None, [only]) => only.url.clone(),
        (None, _) => return Err(wrong("the claims have no `iss`, and not exactly one issuer is configured")),
    };
    let decision = policy.decide(&issuer, &claims);
    let list = |items: &[String]| if items.is_empty() { "nothing".to_owned() } else { items.join(", ") };
    let texts = |items: &[crate::server::RepositoryPattern]| -> Vec<String> {
        items.iter().map(ToString::to_string).collect()
    };
    let status = match &decision.verdict {
        Verdict::Granted { .. } => ExitStatus::Success,
        Verdict::Nothing(_) => ExitStatus::Failure,
    };
    let text = match (&decision.verdict, args.format) {
        (Verdict::Granted { grant, read, write }, Format::Text) => {
            let read: Vec<_> = read.iter().map(ToString::to_string).collect();
            let write = write.as_ref().map_or("nothing".to_owned(), ToString::to_string);
            let (pull, push) = (list(&texts(&grant.pull)), list(&texts(&grant.push)));
            format!(
                "{}\n{}: tenant {}\nreads   {}\nwrites  {write}\npulls   {pull}\npushes  {push}\n",
                decision.considered.join("\n"),
                super::report::sanitize(grant.name.as_bytes(), false),
                grant.tenant,
                list(&read),
            )
        }
        (Verdict::Granted { grant, read, write }, Format::Json) => {
            let answer = json!({
                "considered": decision.considered,
                "name": grant.name,
                "tenant": grant.tenant.as_str(),
                "read": read.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "write": write.as_ref().map(ToString::to_string),
                "pull": texts(&grant.pull),
                "push": texts(&grant.push),
            });
            format!("{answer}\n")
        }
        (Verdict::Nothing(reason), Format::Text) => {
            let lines: Vec<_> = decision.considered.iter().chain([reason]).map(String::as_str).collect();
            format!("{}\n", lines.join("\n"))
        }
        (Verdict::Nothing(reason), Format::Json) => {
            format!("{}\n", json!({"considered": decision.considered, "nothing": reason}))
        }
    };
    super::print(&text)?;
    Ok(status)
}

/// The claims of a file, or of standard input: as JSON, or as the token that carries them.
fn read(args: &PolicyExplainCommand, environment: &Environment) -> Result<Claims, CliError> {
    use std::io::Read as _;
    let shown = args.claims.display();
    let failed = |error: std::io::Error| {
        CliError::failure(anyhow::Error::new(error).context(format!("reading {shown}")))
    };
    let mut text = String::new();
    if args.claims.as_os_str() == "-" {
        std::io::stdin().take(CLAIMS_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    } else {
        let file = fs_err::File::open(environment.absolute(&args.claims)).map_err(failed)?;
        file.take(CLAIMS_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    }
    let text = text.trim();
    let claims = if text.starts_with('{') {
        serde_json::from_str(text).map_err(|error| error.to_string())
    } else {
        // What is explained is not believed.
        jsonwebtoken::dangerous::insecure_decode_claims(text).map_err(|error| error.to_string())
    };
    claims.map_err(|reason| wrong(format!("{shown} has no claims: {reason}")))
}
