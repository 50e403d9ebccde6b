//! Object storage by its address.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::{BackoffConfig, ClientOptions, RetryConfig};

use super::ObjectStore;
use crate::hint::Hint;

/// A storage that does not take a connection in this time is as good as dead.
const CONNECT: Duration = Duration::from_secs(2);

/// The longest silence in the middle of an answer.
const SILENCE: Duration = Duration::from_secs(20);

/// How often and how long something is tried again.
const RETRIES: usize = 2;
const RETRY_TIME: Duration = Duration::from_secs(10);

/// Where object storage is: `s3://bucket/prefix`, `gs://…`, `az://…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectUrl {
    kind: Kind,
    bucket: String,
    prefix: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    S3,
    Google,
    Azure,
}

impl Kind {
    const ALL: [(Self, &str); 3] = [(Self::S3, "s3"), (Self::Google, "gs"), (Self::Azure, "az")];

    fn scheme(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("", |(_, scheme)| scheme)
    }
}

/// Why object storage cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ObjectUrlError {
    /// The address names no bucket.
    #[error("`{0}` names no bucket and prefix (letters, digits and `._-/`)")]
    Address(String),
    /// A setting from the environment is wrong, or one is missing.
    #[error("the settings for `{location}` cannot be used")]
    Settings {
        /// The address.
        location: String,
        /// The cause.
        #[source]
        source: object_store::Error,
    },
}

impl Hint for ObjectUrlError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Address(_) => Some("name it as in `s3://bucket/prefix`".to_owned()),
            Self::Settings { .. } => Some(
                "they come from the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL; \
                 GOOGLE_…; AZURE_…"
                    .to_owned(),
            ),
        }
    }
}

impl ObjectUrl {
    /// Whether addresses of this scheme are those of object storage.
    pub fn is_scheme(scheme: &str) -> bool {
        Kind::ALL.iter().any(|(_, known)| *known == scheme)
    }

    /// Reads an address, taken apart at `://`.
    pub fn parse(scheme: &str, rest: &str) -> Result<Self, ObjectUrlError> {
        let wrong = || {
            ObjectUrlError::Address(format!(
                "{scheme}://{}",
                rest.split(['@', '?', '#']).next_back().unwrap_or("")
            ))
        };
        let (kind, _) = Kind::ALL.into_iter().find(|(_, known)| *known == scheme).ok_or_else(wrong)?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_matches('/');
        let plain =
            |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        let is_segment = |text: &str| !text.is_empty() && text != "." && text != ".." && plain(text);
        if !is_segment(bucket) || !(prefix.is_empty() || prefix.split('/').all(is_segment)) {
            return Err(wrong());
        }
        Ok(Self { kind, bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }

    /// The address as text.
    pub fn location(&self) -> String {
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        format!("{}://{}{slash}{}", self.kind.scheme(), self.bucket, self.prefix)
    }

    /// Opens it. Settings are the usual variables of the environment, by name; what does not belong to this kind of
    /// storage is left alone. Asks nothing yet.
    pub fn open<'a>(
        &self,
        settings: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Result<ObjectStore, ObjectUrlError> {
        let wrong = |source| ObjectUrlError::Settings { location: self.location(), source };
        let retry = RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: RETRIES,
            retry_timeout: RETRY_TIME,
        };
        let client = ClientOptions::new()
            .with_connect_timeout(CONNECT)
            .with_read_timeout(SILENCE)
            // A large object takes as long as it takes, if it only comes.
            .with_timeout_disabled();
        // `AWS_ACCESS_KEY_ID` is the key `aws_access_key_id`.
        let settings = settings.map(|(name, value)| (name.to_ascii_lowercase(), value));
        let objects: Arc<dyn object_store::ObjectStore> = match self.kind {
            Kind::S3 => {
                let mut builder = AmazonS3Builder::new().with_client_options(client).with_retry(retry);
                for (name, value) in settings.filter(|(name, _)| name.starts_with("aws_")) {
                    if let Ok(key) = name.parse::<AmazonS3ConfigKey>() {
                        builder = builder.with_config(key, value);
                    }
                }
                Arc::new(builder.with_bucket_name(&self.bucket).build().map_err(wrong)?)
            }
            Kind::Google => {
                let mut builder =
                    GoogleCloudStorageBuilder::new().with_client_options(client).with_retry(retry);
                for (name, value) in settings.filter(|(name, _)| name.starts_with("google_")) {
                    if let Ok(key) = name.parse::<GoogleConfigKey>() {
                        builder = builder.with_config(key, value);
                    }
                }
                Arc::new(builder.with_bucket_name(&self.bucket).build().map_err(wrong)?)
            }
            Kind::Azure => {
                let mut builder = MicrosoftAzureBuilder::new().with_client_options(client).with_retry(retry);
                for (name, value) in settings.filter(|(name, _)| name.starts_with("azure_")) {
                    if let Ok(key) = name.parse::<AzureConfigKey>() {
                        builder = builder.with_config(key, value);
                    }
                }
                Arc::new(builder.with_container_name(&self.bucket).build().map_err(wrong)?)
            }
        };
        Ok(ObjectStore::new(objects, &self.prefix, self.location()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let read = |scheme: &str, rest: &str| ObjectUrl::parse(scheme, rest).map(|url| url.location());
        assert_eq!(read("s3", "bucket").unwrap(), "s3://bucket");
        assert_eq!(read("gs", "bucket/a/b/").unwrap(), "gs://bucket/a/b");
        for bad in ["", "/x", "b/../x", "b/x//y", "key:secret@bucket", "bucket?secret", "b/x y"] {
            let error = read("s3", bad).unwrap_err();
            assert!(!error.to_string().contains("key:secret"), "{error}");
        }
    }

    #[test]
    fn settings_are_taken_by_their_usual_names() {
        let url = ObjectUrl::parse("s3", "bucket/p").unwrap();
        let settings = [
            ("AWS_ACCESS_KEY_ID", "key"),
            ("AWS_SECRET_ACCESS_KEY", "hidden"),
            ("AWS_REGION", "eu-west-1"),
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:1"),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_UNKNOWN", "x"),
            ("GOOGLE_SERVICE_ACCOUNT", "x"),
        ];
        let store = url.open(settings.into_iter()).unwrap();
        assert!(!format!("{store:?}").contains("hidden"));
    }
}
