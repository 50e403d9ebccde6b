//! How a registry wants to be authenticated to, and the tokens that it gave (distribution `docs/spec/auth`).

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use serde::Deserialize;
use tokio::time::Instant;

use super::credentials::{Credential, Secret};
use super::error::RegistryErrorKind;
use super::transport::{Failure, Place, Transport, is_loopback};

/// What a request needs the right to: a list of scopes, sorted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Access(Vec<String>);

impl Access {
    /// To read a repository.
    pub(super) fn pull(repository: &str) -> Self {
        Self(vec![format!("repository:{repository}:pull")])
    }

    /// To write to a repository.
    pub(super) fn push(repository: &str) -> Self {
        Self(vec![format!("repository:{repository}:pull,push")])
    }

    /// To write to a repository what another one has.
    pub(super) fn mount(repository: &str, from: &str) -> Self {
        let mut scopes =
            vec![format!("repository:{from}:pull"), format!("repository:{repository}:pull,push")];
        scopes.sort();
        Self(scopes)
    }
}

/// A token that nobody said the lifetime of lasts a minute, says the specification.
const LIFETIME_DEFAULT: Duration = Duration::from_mins(1);

/// A token that ends within this time is renewed before it is used.
const LIFETIME_MARGIN: Duration = Duration::from_secs(5);

/// As many tokens are kept for one registry: one for each repository and kind of access. A build uses a handful.
const TOKENS_MAX: usize = 1000;

/// What is known about one registry.
#[derive(Debug, Default)]
pub(super) struct HostAuth {
    // Held while a token is fetched, so that requests side by side fetch it once.
    state: tokio::sync::Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By repository: podman's file may have one for each.
    credentials: HashMap<String, Credential>,
    challenge: Option<Challenge>,
    tokens: HashMap<Access, Token>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("challenge", &self.challenge).finish_non_exhaustive()
    }
}

struct Token {
    header: HeaderValue,
    expires: Instant,
}

/// What a registry asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer { realm: Url, service: Option<String> },
}

impl HostAuth {
    /// The header to send with a request; `None` until the registry has asked for one.
    pub(super) async fn authorization(
        &self,
        transport: &Transport,
        place: &Place,
        access: &Access,
    ) -> Result<Option<HeaderValue>, Failure> {
        let mut state = self.state.lock().await;
        if state.challenge.is_none() {
            return Ok(None);
        }
        state.header(transport, place, access).await
    }

    /// Takes note of a refusal, and returns what to send instead; `None` if there is nothing else to try.
    pub(super) async fn challenged(
        &self,
        transport: &Transport,
        place: &Place,
        access: &Access,
        headers: &HeaderMap,
        sent: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, Failure> {
        let mut state = self.state.lock().await;
        if let Some(challenge) = parse_challenges(headers) {
            state.challenge = Some(challenge);
        }
        // Somebody else may have renewed the token while this request was under way.
        if state.tokens.get(access).is_some_and(|token| Some(&token.header) == sent) {
            state.tokens.remove(access);
        }
        if state.challenge.is_none() {
            return Ok(None);
        }
        let header = state.header(transport, place, access).await?;
        Ok(header.filter(|header| Some(header) != sent))
    }

    /// Whether there is a credential for this place, as far as it was looked up.
    pub(super) async fn has_credential(&self, place: &Place) -> bool {
        let state = self.state.lock().await;
        !matches!(state.credentials.get(&place.repository), None | Some(Credential::Anonymous))
    }
}

impl State {
    async fn header(
        &mut self,
        transport: &Transport,
        place: &Place,
        access: &Access,
    ) -> Result<Option<HeaderValue>, Failure> {
        let credential = match self.credentials.get(&place.repository) {
            Some(credential) => credential.clone(),
            None => {
                let looking = transport.credentials().lookup(&place.registry, &place.repository);
                let found = looking.await.map_err(|error| {
                    let kind = RegistryErrorKind::Credentials { reason: error.to_string() };
                    Failure::permanent(place.error(kind))
                })?;
                if self.credentials.len() >= TOKENS_MAX {
                    self.credentials.clear();
                }
                self.credentials.insert(place.repository.clone(), found.clone());
                found
            }
        };
        match (&self.challenge, &credential) {
            (Some(_), Credential::RegistryToken(token)) => bearer(place, token.reveal()).map(Some),
            (Some(Challenge::Basic), Credential::Basic { username, password }) => {
                basic(place, username, password).map(Some)
            }
            // Nothing is asked for, or there is nothing to show.
            (None | Some(Challenge::Basic), _) => Ok(None),
            (Some(Challenge::Bearer { realm, service }), credential) => {
                let now = Instant::now();
                if let Some(token) = self.tokens.get(access)
                    && token.expires > now + LIFETIME_MARGIN
                {
                    return Ok(Some(token.header.clone()));
                }
                let token = fetch(transport, place, access, realm, service.as_deref(), credential).await?;
                if self.tokens.len() >= TOKENS_MAX {
                    self.tokens.clear();
                }
                let header = token.header.clone();
                self.tokens.insert(access.clone(), token);
                Ok(Some(header))
            }
        }
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    expires_in: Option<u64>,
}

/// The body of a request to exchange a refresh token (distribution `docs/spec/auth/oauth.md`).
fn token_form(access: &Access, service: Option<&str>, token: &Secret) -> String {
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    form.append_pair("grant_type", "refresh_token");
    form.append_pair("client_id", "crossdock");
    form.append_pair("refresh_token", token.reveal());
    form.append_pair("scope", &access.0.join(" "));
    if let Some(service) = service {
        form.append_pair("service", service);
    }
    form.finish()
}

/// The address of a token (distribution `docs/spec/auth/token.md`).
fn token_url(access: &Access, realm: &Url, service: Option<&str>) -> Url {
    let mut url = realm.clone();
    let mut query = url.query_pairs_mut();
    if let Some(service) = service {
        query.append_pair("service", service);
    }
    for scope in &access.0 {
        query.append_pair("scope", scope);
    }
    drop(query);
    url
}

async fn fetch(
    transport: &Transport,
    place: &Place,
    access: &Access,
    realm: &Url,
    service: Option<&str>,
    credential: &Credential,
) -> Result<Token, Failure> {
    let secret = !matches!(credential, Credential::Anonymous);
    let plain = transport.is_plain(&place.registry);
    if secret && realm.scheme() == "http" && !plain && !realm.host_str().is_some_and(is_loopback) {
        let realm = super::redact::address(realm);
        return Err(Failure::permanent(
            place.protocol(format!("it wants the credentials sent to {realm} in plain HTTP")),
        ));
    }
    let requested = Instant::now();
    let body = match credential {
        Credential::IdentityToken(token) => {
            let form = token_form(access, service, token);
            let post = |http: &reqwest::Client| {
                http.post(realm.clone())
                    .header(reqwest::header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(form)
            };
            transport.fetch_token(place, realm, post, secret).await?
        }
        _ => {
            let url = token_url(access, realm, service);
            let authorization = match credential {
                Credential::Basic { username, password } => Some(basic(place, username, password)?),
                _ => None,
            };
            let get = |http: &reqwest::Client| {
                let request = http.get(url);
                match authorization {
                    Some(header) => request.header(AUTHORIZATION, header),
                    None => request,
                }
            };
            transport.fetch_token(place, realm, get, secret).await?
        }
    };
    // The parser's message could quote the token.
    let answer: TokenAnswer = serde_json::from_slice(&body)
        .map_err(|_| Failure::permanent(place.protocol("the token service did not send a token")))?;
    let token = answer.token.filter(|token| !token.is_empty()).or(answer.access_token).unwrap_or_default();
    if token.is_empty() {
        return Err(Failure::permanent(place.protocol("the token service sent an empty token")));
    }
    // A hostile lifetime must not overflow the clock.
    let lifetime =
        answer.expires_in.map_or(LIFETIME_DEFAULT, |seconds| Duration::from_secs(seconds.min(7 * 24 * 3600)));
    Ok(Token { header: bearer(place, &token)?, expires: requested + lifetime })
}

fn basic(place: &Place, username: &str, password: &Secret) -> Result<HeaderValue, Failure> {
    let encoded = STANDARD.encode(format!("{username}:{}", password.reveal()));
    sensitive(place, &format!("Basic {encoded}"))
}

fn bearer(place: &Place, token: &str) -> Result<HeaderValue, Failure> {
    sensitive(place, &format!("Bearer {token}"))
}

fn sensitive(place: &Place, text: &str) -> Result<HeaderValue, Failure> {
    let mut value = HeaderValue::from_str(text).map_err(|_| {
        Failure::permanent(place.error(RegistryErrorKind::Credentials {
            reason: "the token or password has characters that no header may have".to_owned(),
        }))
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// The challenge to answer: `Bearer` if it is offered, else `Basic`.
fn parse_challenges(headers: &HeaderMap) -> Option<Challenge> {
    let mut basic = None;
    for header in headers.get_all(WWW_AUTHENTICATE) {
        let Ok(text) = header.to_str() else { continue };
        for (scheme, parameters) in split_challenges(text) {
            let parameter =
                |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
            if scheme.eq_ignore_ascii_case("bearer") {
                let realm = parameter("realm").and_then(|realm| Url::parse(&realm).ok());
                if let Some(realm) = realm.filter(|realm| matches!(realm.scheme(), "http" | "https")) {
                    return Some(Challenge::Bearer { realm, service: parameter("service") });
                }
            } else if scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
        }
    }
    basic
}

/// Splits `Bearer realm="a",service="b", Basic realm="c"` (RFC 9110, section 11.6.1). What is malformed ends it.
fn split_challenges(text: &str) -> Vec<(String, Vec<(String, String)>)> {
    let mut challenges: Vec<(String, Vec<(String, String)>)> = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '=', ',']).unwrap_or(rest.len());
        let word = &rest[..end];
        if word.is_empty() {
            return challenges;
        }
        rest = &rest[end..];
        let Some(value) = rest.strip_prefix('=') else {
            challenges.push((word.to_owned(), Vec::new()));
            continue;
        };
        let (value, after) = match value.strip_prefix('"') {
            Some(quoted) => {
                let mut unquoted = String::new();
                let mut characters = quoted.char_indices();
                let mut end = quoted.len();
                while let Some((at, character)) = characters.next() {
                    match character {
                        '"' => {
                            end = at + 1;
                            break;
                        }
                        '\\' => unquoted.extend(characters.next().map(|(_, escaped)| escaped)),
                        other => unquoted.push(other),
                    }
                }
                (unquoted, &quoted[end..])
            }
            None => {
                let end = value.find([' ', ',']).unwrap_or(value.len());
                (value[..end].to_owned(), &value[end..])
            }
        };
        rest = after;
        if let Some((_, parameters)) = challenges.last_mut() {
            parameters.push((word.to_ascii_lowercase(), value));
        }
    }
}

/// Reads a challenge as a registry might send it.
#[cfg(any(test, fuzzing))]
pub(crate) fn challenge(text: &str) {
    let mut headers = HeaderMap::new();
    headers.extend(HeaderValue::from_str(text).ok().map(|value| (WWW_AUTHENTICATE, value)));
    parse_challenges(&headers);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(values: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_str(value).unwrap());
        }
        parse_challenges(&headers)
    }

    #[test]
    fn challenges_are_read() {
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer { realm: Url::parse(realm).unwrap(), service: service.map(str::to_owned) })
        };
        assert_eq!(
            parse(&[r#"Bearer realm="https://a/t",service="s.io",scope="repository:x:pull,push""#]),
            bearer("https://a/t", Some("s.io"))
        );
        assert_eq!(parse(&[r#"Basic realm="x", bearer realm=https://a/t"#]), bearer("https://a/t", None));
        assert_eq!(parse(&["Basic realm=\"a \\\"b\\\"\""]), Some(Challenge::Basic));
        assert_eq!(parse(&["Negotiate", r#"BASIC realm="x""#]), Some(Challenge::Basic));
        for bad in [
            "",
            "Bearer",
            r#"Bearer realm="file:///etc""#,
            r#"Bearer realm="nowhere""#,
            "=,=",
            "\"",
            "a=\"\\",
        ] {
            assert_eq!(parse(&[bad]), None, "{bad}");
        }
    }
}
