//! Tokens: random, with rights and an end, and stored as digests only.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::identity::Grant;
use crate::digest::Digest;
use crate::store::{Backend, Clock, DocumentName, Expected, StoreError};

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Made by people, and listed.
    Token,
    /// Made for a job that proved who it is, for some hours.
    Session,
}

impl Kind {
    /// What the text begins with, so that scanners for secrets know it.
    fn prefix(self) -> &'static str {
        match self {
            Self::Token => "xdk_",
            Self::Session => "xds_",
        }
    }

    /// Where they are kept.
    fn folder(self) -> &'static str {
        match self {
            Self::Token => "tokens",
            Self::Session => "sessions",
        }
    }
}

/// How long a token that was read is believed: so long one that was revoked may go on.
const BELIEVED: Duration = Duration::from_secs(5);

/// Tokens that are remembered. More than any server has callers at a time.
const REMEMBERED_MAX: usize = 4096;

/// What has ended is kept for so long.
const SWEPT_AFTER: Duration = Duration::from_mins(10);

/// Tokens that one server may have.
const TOKENS_MAX: usize = 100_000;

/// A token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Names it: the part between the prefix and the secret.
    #[serde(skip)]
    pub id: String,
    /// What people call it, and what it opens.
    #[serde(flatten)]
    pub grant: Grant,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// When it ends, in seconds since 1970; never if there is nothing.
    pub expires: Option<u64>,
    /// The digest of the whole token.
    digest: String,
}

impl Token {
    /// Whether it has ended.
    pub fn is_over(&self, now: SystemTime) -> bool {
        self.expires.is_some_and(|end| seconds(now) >= end)
    }
}

/// Why something could not be done with tokens.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The storage failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The machine has no random numbers.
    #[error("the machine gives no random numbers")]
    Random(#[source] std::io::Error),
    /// There is none of that id or name.
    #[error("there is no token `{0}`")]
    Unknown(String),
}

/// What is known of a token without asking the storage.
enum Remembered {
    Known(Token),
    /// There is none.
    None,
    Unread,
}

/// When a token was read, and what it was.
type Read = (SystemTime, Option<Token>);

/// The tokens of a storage.
#[derive(Debug)]
pub struct Tokens {
    store: Arc<dyn Backend>,
    clock: Clock,
    /// What was read lately, and when; also that there is none of an id.
    read: Mutex<HashMap<(&'static str, String), Read>>,
}

impl Tokens {
    /// The tokens that are kept in `store`.
    pub fn new(store: Arc<dyn Backend>, clock: Clock) -> Self {
        Self { store, clock, read: Mutex::default() }
    }

    /// Makes a token that is good for `lifetime`, or for ever; its text is nowhere but in the answer.
    pub async fn create(
        &self,
        grant: Grant,
        lifetime: Option<Duration>,
    ) -> Result<(String, Token), TokenError> {
        self.create_as(Kind::Token, grant, lifetime).await
    }

    /// Makes a token, or a session.
    pub(super) async fn create_as(
        &self,
        kind: Kind,
        grant: Grant,
        lifetime: Option<Duration>,
    ) -> Result<(String, Token), TokenError> {
        let id = random(9)?;
        let text = format!("{}{id}.{}", kind.prefix(), random(32)?);
        let created = seconds((self.clock)());
        let token = Token {
            id: id.clone(),
            grant,
            created,
            expires: lifetime.map(|lifetime| created.saturating_add(lifetime.as_secs())),
            digest: Digest::of(&text).hex(),
        };
        let bytes = serde_json::to_vec(&token).unwrap_or_default();
        if let Some(name) = name(kind, &id) {
            self.store.write_document(&name, bytes.into(), Expected::Absent).await?;
        }
        Ok((text, token))
    }

    /// All tokens, in the order of their making.
    pub async fn list(&self) -> Result<Vec<Token>, TokenError> {
        let Ok(folder) = "tokens".parse() else { return Ok(Vec::new()) };
        let mut tokens = Vec::new();
        for name in self.store.list_documents(&folder, None, TOKENS_MAX).await? {
            let id = name.segments().last().unwrap_or_default().to_owned();
            tokens.extend(self.load(Kind::Token, &id).await?);
        }
        tokens.sort_by_key(|token| token.created);
        Ok(tokens)
    }

    /// Whether there is any.
    pub async fn is_empty(&self) -> Result<bool, TokenError> {
        let Ok(folder) = "tokens".parse() else { return Ok(true) };
        Ok(self.store.list_documents(&folder, None, 1).await?.is_empty())
    }

    /// Makes an end of the token with this id, or of all with this name; returns the ids.
    pub async fn revoke(&self, which: &str) -> Result<Vec<String>, TokenError> {
        let tokens = self.list().await?.into_iter();
        let ids: Vec<_> = tokens
            .filter(|token| token.id == which || token.grant.name == which)
            .map(|token| token.id)
            .collect();
        if ids.is_empty() {
            return Err(TokenError::Unknown(which.to_owned()));
        }
        for id in &ids {
            if let Some(name) = name(Kind::Token, id) {
                self.store.remove_document(&name, Expected::Anything).await?;
            }
        }
        Ok(ids)
    }

    /// Who the holder of `text` is, which is no secret, and what they may do; `None` if it is no token, or none any more.
    pub(super) async fn check(&self, text: &str) -> Result<Option<(String, Grant)>, StoreError> {
        let of = |kind: Kind| Some((kind, text.strip_prefix(kind.prefix())?.split_once('.')?.0));
        let Some((kind, id)) = of(Kind::Token).or_else(|| of(Kind::Session)) else { return Ok(None) };
        // Looked up by id, compared by digest: how long either takes says nothing about the secret.
        let now = (self.clock)();
        let token = match self.remembered(kind, id, now) {
            Remembered::Known(token) => Some(token),
            Remembered::None => None,
            Remembered::Unread => {
                let token = self.load(kind, id).await?;
                let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
                if read.len() >= REMEMBERED_MAX {
                    read.clear();
                }
                read.insert((kind.folder(), id.to_owned()), (now, token.clone()));
                token
            }
        };
        let digest = Digest::of(text).hex();
        let good = |token: &Token| token.digest == digest && !token.is_over(now);
        Ok(token.filter(good).map(|token| (format!("{}-{}", kind.folder(), token.id), token.grant)))
    }

    /// Takes note that a proof of identity was used, which is good until `end`; `false` if it was used before. Whoever copies
    /// one finds it used.
    pub(super) async fn use_once(&self, proof: &Digest, end: u64) -> Result<bool, StoreError> {
        let Ok(name) = format!("proofs/{}", proof.hex()).parse() else { return Ok(false) };
        let bytes = json!({"expires": end}).to_string();
        Ok(self.store.write_document(&name, bytes.into(), Expected::Absent).await?.is_some())
    }

    /// Removes sessions and used proofs that have ended; returns how many.
    pub(super) async fn sweep(&self) -> Result<usize, StoreError> {
        #[derive(Deserialize)]
        struct Ending {
            expires: Option<u64>,
        }
        let now = (self.clock)();
        // A proof is good for a minute longer than it says, and clocks differ.
        let over = |end: u64| seconds(now) > end.saturating_add(SWEPT_AFTER.as_secs());
        let mut removed = 0;
        for folder in [Kind::Session.folder(), "proofs"] {
            let Ok(folder) = folder.parse() else { continue };
            for name in self.store.list_documents(&folder, None, TOKENS_MAX).await? {
                let Some(document) = self.store.read_document(&name).await? else { continue };
                let ending = serde_json::from_slice::<Ending>(&document.bytes);
                if ending.is_ok_and(|ending| ending.expires.is_some_and(over)) {
                    self.store.remove_document(&name, Expected::Anything).await?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }

    /// Forgets what was read.
    pub(super) fn forget(&self) {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn remembered(&self, kind: Kind, id: &str, now: SystemTime) -> Remembered {
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |since: &SystemTime| now.duration_since(*since).is_ok_and(|age| age < BELIEVED);
        match read.get(&(kind.folder(), id.to_owned())) {
            Some((since, Some(token))) if fresh(since) => Remembered::Known(token.clone()),
            Some((since, None)) if fresh(since) => Remembered::None,
            _ => Remembered::Unread,
        }
    }

    async fn load(&self, kind: Kind, id: &str) -> Result<Option<Token>, StoreError> {
        let Some(name) = name(kind, id) else { return Ok(None) };
        let Some(document) = self.store.read_document(&name).await? else { return Ok(None) };
        // One that cannot be read is none.
        let token = serde_json::from_slice::<Token>(&document.bytes).ok();
        Ok(token.map(|token| Token { id: id.to_owned(), ..token }))
    }
}

fn name(kind: Kind, id: &str) -> Option<DocumentName> {
    let plain = !id.is_empty()
        && id.len() <= 64
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    plain.then(|| format!("{}/{id}", kind.folder()).parse().ok())?
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Random bytes as text.
pub(super) fn random(bytes: usize) -> Result<String, TokenError> {
    let mut buffer = vec![0; bytes];
    let mut filled = 0;
    while filled < bytes {
        let got = rustix::rand::getrandom(&mut buffer[filled..], rustix::rand::GetRandomFlags::empty());
        filled += got.map_err(|error| TokenError::Random(error.into()))?;
    }
    Ok(URL_SAFE_NO_PAD.encode(buffer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    fn grant() -> Grant {
        Grant {
            name: "ci".to_owned(),
            write: vec!["pr/*".parse().unwrap()],
            push: Vec::new(),
            ..Grant::everything()
        }
    }

    #[tokio::test]
    async fn a_token_opens_until_it_ends_or_is_revoked() {
        let store = Arc::new(MemoryStore::new());
        let tokens = Tokens::new(store.clone(), SystemTime::now);
        assert!(tokens.is_empty().await.unwrap());
        let (text, token) = tokens.create(grant(), None).await.unwrap();
        let (over, _) = tokens.create(grant(), Some(Duration::ZERO)).await.unwrap();
        let (who, grant) = tokens.check(&text).await.unwrap().unwrap();
        assert_eq!(who, format!("tokens-{}", token.id));
        assert_eq!((grant.name.as_str(), grant.write.len()), ("ci", 1));
        assert_eq!(tokens.check(&over).await.unwrap(), None);
        let mut forged = text.clone();
        forged.replace_range(forged.len() - 1.., if forged.ends_with('A') { "B" } else { "A" });
        for wrong in [
            forged.as_str(),
            "",
            "xdk_",
            "xdk_.",
            "xdk_../../x.y",
            &format!("{}{}", Kind::Token.prefix(), token.id),
        ] {
            assert_eq!(tokens.check(wrong).await.unwrap(), None, "{wrong}");
        }
        assert_eq!(tokens.list().await.unwrap().len(), 2);
        assert_eq!(tokens.revoke(&token.id).await.unwrap(), std::slice::from_ref(&token.id));
        tokens.forget();
        assert_eq!(tokens.check(&text).await.unwrap(), None);
        assert!(matches!(tokens.revoke(&token.id).await, Err(TokenError::Unknown(_))));
    }

    #[tokio::test]
    async fn the_storage_has_no_secret() {
        let store = Arc::new(MemoryStore::new());
        let (text, _) = Tokens::new(store.clone(), SystemTime::now).create(grant(), None).await.unwrap();
        let secret = text.rsplit('.').next().unwrap();
        let names = store.list_documents(&"tokens".parse().unwrap(), None, 9).await.unwrap();
        for name in names {
            let document = store.read_document(&name).await.unwrap().unwrap();
            assert!(!String::from_utf8_lossy(&document.bytes).contains(secret));
            assert!(!name.to_string().contains(secret));
        }
    }
}
