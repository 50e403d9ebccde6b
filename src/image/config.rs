//! The image configuration: what a container made from the image runs with, and how the image came to be.

use std::collections::{BTreeMap, BTreeSet};

use serde::ser::SerializeMap as _;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use super::manifest::{ImageError, parse_json, to_json};
use super::serde_forms::{non_empty, null_default, object_set};
use super::{CONFIG_BYTES_MAX, time};
use crate::digest::Digest;
use crate::layer::Timestamp;
use crate::platform::Platform;

/// An image configuration: OCI's, with the fields that Docker adds.
///
/// It is written with its keys in alphabetical order, which is what BuildKit's exporter makes of it; the objects
/// inside keep the order of Docker's types, and what is empty is left out.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ImageConfig {
    /// The architecture, as `GOARCH`.
    #[serde(default, deserialize_with = "null_default")]
    pub architecture: String,
    /// Who made the image; empty if unknown.
    #[serde(default, deserialize_with = "null_default")]
    pub author: String,
    /// What a container runs with.
    #[serde(default, deserialize_with = "null_default")]
    pub config: ContainerConfig,
    /// When the image was made.
    #[serde(default, with = "time::optional")]
    pub created: Option<Timestamp>,
    /// One entry for each instruction, oldest first.
    #[serde(default, deserialize_with = "null_default")]
    pub history: Vec<History>,
    /// The operating system, as `GOOS`.
    #[serde(default, deserialize_with = "null_default")]
    pub os: String,
    /// The version of the operating system.
    #[serde(rename = "os.version", default, deserialize_with = "non_empty")]
    pub os_version: Option<String>,
    /// The layers.
    #[serde(default, deserialize_with = "null_default")]
    pub rootfs: RootFs,
    /// The variant of the architecture.
    #[serde(default, deserialize_with = "non_empty")]
    pub variant: Option<String>,
    /// Every other key with its value. Docker's classic builder left keys such as `container_config` here, which
    /// describe that one build and not the images derived from it.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

/// What a container made from an image runs with. Empty means not set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ContainerConfig {
    /// `user[:group]`, names or numbers.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Ports as `80/tcp`.
    #[serde(default, with = "object_set", skip_serializing_if = "BTreeSet::is_empty")]
    pub exposed_ports: BTreeSet<String>,
    /// `NAME=value`, in order.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// The program and its first arguments.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Default arguments, or the program where there is no entry point.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Paths that are volumes.
    #[serde(default, with = "object_set", skip_serializing_if = "BTreeSet::is_empty")]
    pub volumes: BTreeSet<String>,
    /// The working directory.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// Labels.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The signal that stops the container.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// Windows: `cmd` is already one escaped command line.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "std::ops::Not::not")]
    pub args_escaped: bool,
    /// How to find out whether the container works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// Instructions for builds that start from this image.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub on_build: Vec<String>,
    /// The shell of shell-form instructions.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub shell: Vec<String>,
    /// Every other key with its value.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

/// How to find out whether a container works. Durations in nanoseconds; 0 means the runtime's default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", command]`; empty inherits.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<String>,
    /// Time between two checks, in nanoseconds.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "is_zero")]
    pub interval: i64,
    /// Time after which a check has failed, in nanoseconds.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "is_zero")]
    pub timeout: i64,
    /// Time in which failures do not count, in nanoseconds.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "is_zero")]
    pub start_period: i64,
    /// Time between two checks during the start period, in nanoseconds.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    /// How many failures in a row make the container unhealthy.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "is_zero")]
    pub retries: i64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
fn is_zero(value: &i64) -> bool {
    *value == 0
}

/// The layers of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type", default = "layers")]
    pub kind: String,
    /// The digests of the uncompressed layers, lowest first.
    #[serde(default, deserialize_with = "null_default")]
    pub diff_ids: Vec<Digest>,
}

fn layers() -> String {
    "layers".to_owned()
}

impl Default for RootFs {
    fn default() -> Self {
        Self { kind: layers(), diff_ids: Vec::new() }
    }
}

/// One instruction in the history of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// When it ran.
    #[serde(default, with = "time::optional", skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
    /// What ran.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub created_by: String,
    /// Who made it.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// Which tool made it.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// It made no layer.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

impl ImageConfig {
    /// The configuration of an empty image for `platform`.
    pub fn new(platform: &Platform) -> Self {
        Self {
            architecture: platform.architecture.clone(),
            author: String::new(),
            config: ContainerConfig::default(),
            created: None,
            history: Vec::new(),
            os: platform.os.clone(),
            os_version: platform.os_version.clone(),
            rootfs: RootFs::default(),
            variant: platform.variant.clone(),
            extra: BTreeMap::new(),
        }
    }

    /// Reads a configuration of at most [`CONFIG_BYTES_MAX`] bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, ImageError> {
        parse_json("image configuration", bytes, CONFIG_BYTES_MAX)
    }

    /// The JSON text. The same configuration always gives the same bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        to_json(self)
    }

    /// What the image runs on, in normal form; `None` if the configuration does not say it, as in artifacts.
    pub fn platform(&self) -> Option<Platform> {
        if self.os.is_empty() || self.architecture.is_empty() {
            return None;
        }
        let mut platform = Platform::new(&self.os, &self.architecture, self.variant.as_deref());
        platform.os_version.clone_from(&self.os_version);
        Some(platform)
    }
}

impl Serialize for ImageConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(untagged)]
        enum Field<'a> {
            Text(&'a str),
            Time(String),
            Config(&'a ContainerConfig),
            History(&'a [History]),
            RootFs(&'a RootFs),
            Other(&'a Value),
        }
        let mut fields: BTreeMap<&str, Field<'_>> =
            self.extra.iter().map(|(key, value)| (key.as_str(), Field::Other(value))).collect();
        fields.insert("architecture", Field::Text(&self.architecture));
        if !self.author.is_empty() {
            fields.insert("author", Field::Text(&self.author));
        }
        fields.insert("config", Field::Config(&self.config));
        if let Some(created) = self.created {
            fields.insert("created", Field::Time(time::format(created)));
        }
        if !self.history.is_empty() {
            fields.insert("history", Field::History(&self.history));
        }
        fields.insert("os", Field::Text(&self.os));
        if let Some(version) = &self.os_version {
            fields.insert("os.version", Field::Text(version));
        }
        fields.insert("rootfs", Field::RootFs(&self.rootfs));
        if let Some(variant) = &self.variant {
            fields.insert("variant", Field::Text(variant));
        }
        let mut map = serializer.serialize_map(Some(fields.len()))?;
        for (key, value) in &fields {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_configuration_is_written_in_docker_order() {
        let mut config = ImageConfig::new(&Platform::new("linux", "arm", Some("v7")));
        config.author = "a".to_owned();
        config.created = time::parse("2024-01-02T03:04:05.6Z");
        config.history = vec![
            History {
                created_by: "RUN x # buildkit".to_owned(),
                comment: "c".to_owned(),
                ..History::default()
            },
            History { created: config.created, empty_layer: true, ..History::default() },
        ];
        config.rootfs.diff_ids = vec![Digest::of("")];
        config.extra.insert("moby.x".to_owned(), serde_json::json!({"z": 1, "a": 2}));
        config.config = ContainerConfig {
            user: "u".to_owned(),
            exposed_ports: ["80/tcp".to_owned()].into(),
            env: vec!["A=b".to_owned()],
            entrypoint: vec!["/e".to_owned()],
            cmd: vec!["c".to_owned()],
            volumes: ["/v".to_owned()].into(),
            working_dir: "/w".to_owned(),
            labels: [("l".to_owned(), "1".to_owned())].into(),
            stop_signal: "SIGINT".to_owned(),
            args_escaped: true,
            healthcheck: Some(Healthcheck {
                test: vec!["CMD".to_owned(), "t".to_owned()],
                interval: 1_000_000_000,
                retries: 3,
                ..Healthcheck::default()
            }),
            on_build: vec!["RUN y".to_owned()],
            shell: vec!["/bin/bash".to_owned()],
            extra: BTreeMap::new(),
        };
        let expected = concat!(
            r#"{"architecture":"arm","author":"a","config":{"User":"u","ExposedPorts":{"80/tcp":{}},"Env":["A=b"],"#,
            r#""Entrypoint":["/e"],"Cmd":["c"],"Volumes":{"/v":{}},"WorkingDir":"/w","Labels":{"l":"1"},"#,
            r#""StopSignal":"SIGINT","ArgsEscaped":true,"Healthcheck":{"Test":["CMD","t"],"Interval":1000000000,"#,
            r#""Retries":3},"OnBuild":["RUN y"],"Shell":["/bin/bash"]},"created":"2024-01-02T03:04:05.6Z","#,
            r#""history":[{"created_by":"RUN x # buildkit","comment":"c"},{"created":"2024-01-02T03:04:05.6Z","#,
            r#""empty_layer":true}],"moby.x":{"z":1,"a":2},"os":"linux","rootfs":{"type":"layers","diff_ids":["#,
            r#""sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]},"variant":"v7"}"#
        );
        assert_eq!(String::from_utf8(config.to_bytes()).unwrap(), expected);
        assert_eq!(ImageConfig::parse(expected.as_bytes()).unwrap(), config);
    }

    #[test]
    fn an_old_configuration_full_of_nulls_is_read() {
        let text = r#"{"id":"x","os":"linux","architecture":"amd64","created":"","container_config":{"Cmd":null},
            "config":{"Hostname":"h","Env":null,"Cmd":null,"Entrypoint":null,"Volumes":null,"ExposedPorts":null,
            "Labels":null,"OnBuild":null,"Healthcheck":null,"Shell":null,"User":null,"StopSignal":null},
            "history":null,"rootfs":{"type":"layers","diff_ids":null},"variant":""}"#;
        let config = ImageConfig::parse(text.as_bytes()).unwrap();
        assert_eq!(config.platform(), Some(Platform::new("linux", "amd64", None)));
        assert!(config.config.env.is_empty() && config.config.healthcheck.is_none());
        assert!(config.extra.contains_key("container_config"));
        assert_eq!(config.config.extra["Hostname"], "h");
        let written = String::from_utf8(config.to_bytes()).unwrap();
        assert!(written.contains(r#""config":{"Hostname":"h"}"#), "{written}");
        assert!(ImageConfig::parse(br#"{"config":null,"rootfs":null}"#).unwrap().platform().is_none());
    }

    #[test]
    fn bad_configurations_are_refused() {
        for bad in ["", "[]", r#"{"created":"yesterday"}"#, r#"{"config":{"Env":"A=b"}}"#] {
            assert!(ImageConfig::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        let large = format!(r#"{{"x":"{}"}}"#, "a".repeat(8 << 20));
        let error = ImageConfig::parse(large.as_bytes()).unwrap_err();
        assert!(matches!(error, ImageError::TooLarge { limit: CONFIG_BYTES_MAX, .. }), "{error}");
    }
}
