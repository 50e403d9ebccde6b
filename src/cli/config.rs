//! The configuration file: TOML, with what flags and environment leave open, and what is set for single registries.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::environment::Environment;
use super::error::CliError;
use super::output::parse_compression;
use super::serve::ServeConfig;
use crate::build::LayerCompression;
use crate::hint::did_you_mean;
use crate::record::Scope;
use crate::registry::{HostOptions, Hosts, Mirror};

/// A configuration is some lines; more than this is something else.
const BYTES_MAX: u64 = 1 << 20;

/// What the file says.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// The file, if there is one.
    pub path: Option<PathBuf>,
    /// `cache`: URL of the shared cache.
    pub cache: Option<String>,
    /// `cache-readonly`: the shared cache is never written.
    pub cache_readonly: bool,
    /// `cache-scope`: the scopes of records.
    pub cache_scope: Vec<Scope>,
    /// `local-cache`: the directory of the local cache.
    pub local_cache: Option<PathBuf>,
    /// `compression` of layers.
    pub compression: Option<LayerCompression>,
    /// `runtime`: the OCI runtime that runs steps.
    pub runtime: Option<PathBuf>,
    /// `[registries."HOST"]`.
    pub registries: Hosts,
    /// `[serve]`.
    pub(super) serve: ServeConfig,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct File {
    cache: Option<String>,
    cache_readonly: bool,
    cache_scope: Vec<String>,
    local_cache: Option<PathBuf>,
    compression: Option<String>,
    runtime: Option<PathBuf>,
    registries: BTreeMap<String, Registry>,
    serve: ServeConfig,
}

/// As in BuildKit's `buildkitd.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct Registry {
    mirrors: Vec<String>,
    http: bool,
    insecure: bool,
    ca: Vec<PathBuf>,
    keypair: Vec<KeyPair>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyPair {
    key: PathBuf,
    cert: PathBuf,
}

impl Config {
    /// Reads `given`, which must be there; else the user's file, else the machine's, if there is one.
    pub(super) fn load(given: Option<&Path>, environment: &Environment) -> Result<Self, CliError> {
        if let Some(given) = given.filter(|path| !path.as_os_str().is_empty()) {
            let path = environment.absolute(given);
            return Self::read(&path)?.ok_or_else(|| {
                CliError::usage(format!("the configuration file `{}` does not exist", given.display()))
            });
        }
        for path in environment.default_configs() {
            if let Some(config) = Self::read(&path)? {
                return Ok(config);
            }
        }
        Ok(Self::default())
    }

    /// The file at `path`; `None` if there is none.
    fn read(path: &Path) -> Result<Option<Self>, CliError> {
        let place = || format!("reading the configuration file {}", path.display());
        let failed = |error: std::io::Error| CliError::failure(anyhow::Error::new(error).context(place()));
        let text = match fs_err::metadata(path) {
            Ok(metadata) if metadata.len() > BYTES_MAX => {
                return Err(CliError::failure(anyhow::anyhow!(
                    "the configuration file {} is larger than {BYTES_MAX} bytes",
                    path.display()
                )));
            }
            Ok(_) => fs_err::read_to_string(path).map_err(failed)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        Self::parse(path, &text).map(Some)
    }

    /// What `text` says, which stands in the file at `path`.
    pub(crate) fn parse(path: &Path, text: &str) -> Result<Self, CliError> {
        let file: File = toml::from_str(text).map_err(|error| {
            let shown = format!("{}: {}", path.display(), error.to_string().trim_end());
            let result = CliError::failure(anyhow::Error::msg(shown));
            match meant(error.message()) {
                Some(meant) => result.hint(format!("did you mean `{meant}`?")),
                None => result,
            }
        })?;
        Self::resolve(path, file)
    }

    /// Paths in the file are relative to its directory.
    fn resolve(path: &Path, file: File) -> Result<Self, CliError> {
        let wrong = |key: &str, reason: String| {
            CliError::failure(anyhow::anyhow!("{}: `{key}`: {reason}", path.display()))
        };
        let directory = path.parent().unwrap_or(Path::new("/"));
        let scope = |text: &String| text.parse().map_err(|error| wrong("cache-scope", format!("{error}")));
        let mut registries = Hosts::new();
        for (host, settings) in file.registries {
            let key = |name: &str| format!("registries.\"{host}\".{name}");
            let read = |name: &str, file: &Path| {
                fs_err::read(directory.join(file)).map_err(|error| wrong(&key(name), error.to_string()))
            };
            let mirror = |text: &String| {
                text.parse::<Mirror>().map_err(|error| wrong(&key("mirrors"), error.to_string()))
            };
            if settings.http && (settings.insecure || !settings.ca.is_empty()) {
                return Err(wrong(&key("http"), "there are no certificates in plain HTTP".to_owned()));
            }
            let identity = match settings.keypair.as_slice() {
                [] => None,
                [pair] => Some([read("keypair", &pair.key)?, read("keypair", &pair.cert)?].concat()),
                _ => return Err(wrong(&key("keypair"), "there can be only one".to_owned())),
            };
            let options = HostOptions {
                mirrors: settings.mirrors.iter().map(mirror).collect::<Result<_, _>>()?,
                plain_http: settings.http,
                skip_verify: settings.insecure,
                certificates: settings.ca.iter().map(|ca| read("ca", ca)).collect::<Result<_, _>>()?,
                identity,
                problem: None,
            };
            registries.insert(host, options);
        }
        Ok(Self {
            cache: file.cache.filter(|url| !url.is_empty()),
            cache_readonly: file.cache_readonly,
            cache_scope: file.cache_scope.iter().map(scope).collect::<Result<_, _>>()?,
            local_cache: file.local_cache.map(|local| directory.join(local)),
            compression: match file.compression {
                Some(text) => Some(parse_compression(&text).map_err(|error| wrong("compression", error))?),
                None => None,
            },
            // A name without a slash is looked up on the PATH.
            runtime: file.runtime.map(|runtime| {
                if runtime.components().count() > 1 { directory.join(runtime) } else { runtime }
            }),
            registries,
            serve: file.serve.relative_to(directory),
            path: Some(path.to_owned()),
        })
    }
}

/// The key that was probably meant, from the parser's message about an unknown one.
fn meant(message: &str) -> Option<String> {
    let mut names = message.strip_prefix("unknown field `")?.split('`').step_by(2);
    let unknown = names.next()?;
    // What stands between the names is skipped: `, expected one of `.
    let known: Vec<&str> = message.split('`').skip(3).step_by(2).collect();
    did_you_mean(unknown, known).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, CliError> {
        let directory = tempfile::tempdir().unwrap();
        fs_err::write(directory.path().join("config.toml"), text).unwrap();
        fs_err::write(directory.path().join("ca.pem"), "pem").unwrap();
        let environment = Environment { directory: directory.path().to_owned(), ..Environment::default() };
        Config::load(Some(Path::new("config.toml")), &environment)
    }

    #[test]
    fn everything_can_be_set() {
        let config = load(
            "cache = \"file:///c\"\ncache-readonly = true\ncache-scope = [\"pr/1\", \"main\"]\n\
             local-cache = \"l\"\ncompression = \"gzip\"\nruntime = \"crun\"\n\
             [registries.\"docker.io\"]\nmirrors = [\"m.example/hub\"]\n\
             [registries.\"r.example:5000\"]\nca = [\"ca.pem\"]\n[registries.plain]\nhttp = true\n",
        )
        .unwrap();
        assert_eq!(config.cache.as_deref(), Some("file:///c"));
        assert!(config.cache_readonly);
        assert_eq!(config.cache_scope.len(), 2);
        assert!(config.local_cache.unwrap().ends_with("l"));
        assert_eq!(config.compression, Some(LayerCompression::Gzip));
        assert_eq!(config.registries["docker.io"].mirrors, ["m.example/hub".parse().unwrap()]);
        assert_eq!(config.registries["r.example:5000"].certificates, [b"pem"]);
        assert!(config.registries["plain"].plain_http);
    }

    #[test]
    fn mistakes_name_the_place_and_what_was_meant() {
        for (text, parts) in [
            ("cahce = \"x\"\n", &["config.toml", "line 1", "cahce", "did you mean `cache`?"][..]),
            ("[registries.a]\nmirors = []\n", &["line 2", "mirors", "did you mean `mirrors`?"]),
            ("cache = 1\n", &["line 1", "string"]),
            ("cache = \n", &["line 1"]),
            ("compression = \"lz4\"\n", &["`compression`", "lz4"]),
            ("cache-scope = [\"a//b\"]\n", &["`cache-scope`"]),
            ("[registries.a]\nca = [\"absent.pem\"]\n", &["registries.\"a\".ca", "absent.pem"]),
            ("[registries.a]\nmirrors = [\"https://m\"]\n", &["registries.\"a\".mirrors", "https://m"]),
            ("[registries.a]\nhttp = true\ninsecure = true\n", &["registries.\"a\".http"]),
        ] {
            let shown = load(text).unwrap_err().render(false);
            for part in parts {
                assert!(shown.contains(part), "{text}: {part} is not in {shown}");
            }
        }
    }

    #[test]
    fn the_documented_example_is_valid() {
        let page = include_str!("../../docs/configuration.md");
        let example = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        let config = load(example).unwrap_or_else(|error| panic!("{}", error.render(false)));
        assert_eq!(config.registries["docker.io"].mirrors.len(), 2);
        assert!(config.registries["10.0.0.7:5000"].plain_http);
    }

    #[test]
    fn the_documented_example_of_a_server_is_valid() {
        let page = include_str!("../../docs/server.md");
        let example = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        let config = load(example).unwrap_or_else(|error| panic!("{}", error.render(false)));
        let environment = Environment { config, directory: "/".into(), ..Environment::default() };
        super::super::serve::check(&environment).unwrap();
    }

    #[test]
    fn a_file_that_is_named_must_be_there() {
        let environment = Environment { directory: "/nonexistent".into(), ..Environment::default() };
        assert!(Config::load(Some(Path::new("a.toml")), &environment).is_err());
        assert!(Config::load(None, &environment).unwrap().path.is_none());
    }
}
