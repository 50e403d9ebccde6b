//! The values of single flags: `K=V`, `--secret`, `--ulimit`, `--add-host`, `--build-context`, durations.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::csv;
use crate::build::NamedContext;
use crate::build::{Annotation, AnnotationPlace};
use crate::context::remote::RemoteSource;
use crate::exec::Ulimit;
use crate::platform::Platform;
use crate::reference::Reference;

/// `KEY=VALUE`.
pub(super) fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

/// A whole number of percent, with or without the sign.
pub(super) fn percent(text: &str) -> Result<u8, String> {
    let number = text.strip_suffix('%').unwrap_or(text).parse().ok();
    number
        .filter(|percent| *percent <= 100)
        .ok_or_else(|| "expected a number from 0 to 100, as in 5%".to_owned())
}

/// A label: `KEY=VALUE`, or `KEY` for an empty value.
pub(super) fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.is_empty() { Err("expected KEY=VALUE".to_owned()) } else { Ok((key.to_owned(), value.to_owned())) }
}

/// A build argument: `KEY=VALUE`, or `KEY` whose value is that of the environment variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildArg {
    /// Its name.
    pub name: String,
    /// Its value; from the environment if absent.
    pub value: Option<String>,
}

impl FromStr for BuildArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        if name.is_empty() {
            return Err("expected KEY=VALUE, or KEY to take the value from the environment".to_owned());
        }
        Ok(Self { name: name.to_owned(), value })
    }
}

/// Annotations as Docker writes them: `KEY=VALUE` for the manifest, or `PLACE[PLATFORM],…:KEY=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Annotations(pub Vec<Annotation>);

impl FromStr for Annotations {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (places, rest) = match text.split_once(':') {
            // A colon in the name or the value is only that.
            Some((places, rest)) if !places.contains('=') && places.split(',').any(starts_with_place) => {
                (places, rest)
            }
            _ => ("manifest", text),
        };
        let (name, value) = key_value(rest)?;
        let annotations = places.split(',').map(|place| {
            let (place, platform) = annotation_place(place)?;
            Ok(Annotation { place, platform, name: name.clone(), value: value.clone() })
        });
        Ok(Self(annotations.collect::<Result<_, String>>()?))
    }
}

const ANNOTATION_PLACES: [(&str, AnnotationPlace); 4] = [
    ("manifest", AnnotationPlace::Manifest),
    ("index", AnnotationPlace::Index),
    ("manifest-descriptor", AnnotationPlace::ManifestDescriptor),
    ("index-descriptor", AnnotationPlace::IndexDescriptor),
];

fn starts_with_place(text: &str) -> bool {
    let name = text.split('[').next().unwrap_or_default();
    ANNOTATION_PLACES.iter().any(|(place, _)| *place == name)
}

/// `manifest`, or `manifest[linux/arm64]` for one platform only.
pub(super) fn annotation_place(text: &str) -> Result<(AnnotationPlace, Option<Platform>), String> {
    let (name, platform) = match text.strip_suffix(']').and_then(|text| text.split_once('[')) {
        Some((name, platform)) => (name, Some(platform)),
        None => (text, None),
    };
    let place = ANNOTATION_PLACES.iter().find(|(known, _)| *known == name).map(|(_, place)| *place);
    let place = place.ok_or_else(|| {
        let known = ANNOTATION_PLACES.map(|(place, _)| place);
        match crate::hint::did_you_mean(name, known) {
            Some(near) => format!("`{name}` cannot be annotated; did you mean `{near}`?"),
            None => format!("`{name}` cannot be annotated; known are {}", known.join(", ")),
        }
    })?;
    let platform = platform.map(str::parse::<Platform>).transpose().map_err(|error| error.to_string())?;
    if platform.is_some() && place.is_of_index() {
        return Err(format!("an annotation for `{name}` cannot be for one platform"));
    }
    Ok((place, platform))
}

/// Where a secret comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretSpec {
    /// The name that mounts refer to.
    pub id: String,
    /// Where it is.
    pub source: SecretSource,
}

/// See [`SecretSpec`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// A file.
    File(PathBuf),
    /// An environment variable.
    Variable(String),
    /// The variable that has the secret's name, or else the file.
    Either,
    /// Standard input.
    Stdin,
}

impl FromStr for SecretSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const KEYS: &[&str] = &["id", "type", "src", "source", "env"];
        let (mut id, mut kind, mut source, mut variable) = (None, None, None, None);
        for (key, value) in csv::pairs(text)? {
            match key.as_str() {
                "id" => id = Some(value),
                "type" => kind = Some(value),
                "src" | "source" => source = Some(value),
                "env" => variable = Some(value),
                _ => return Err(csv::unknown(&key, KEYS)),
            }
        }
        let id = id
            .filter(|id| !id.is_empty())
            .ok_or("`id` is missing: id=name,src=path or id=name,env=VARIABLE")?;
        let source = match (kind.as_deref(), source, variable) {
            (None | Some("file" | "env"), Some(_), Some(_)) => {
                return Err("a secret has either `src` or `env`, not both".to_owned());
            }
            // `type=env,src=NAME` is how older clients write it.
            (Some("env"), Some(name), None) | (None | Some("env"), None, Some(name)) => {
                SecretSource::Variable(name)
            }
            (None | Some("file"), Some(path), None) if path == "-" => SecretSource::Stdin,
            (None | Some("file"), Some(path), None) => SecretSource::File(path.into()),
            (None, None, None) => SecretSource::Either,
            (Some("env"), None, None) => SecretSource::Variable(id.clone()),
            (Some("file"), None, None) => SecretSource::File(id.clone().into()),
            (Some("file"), None, Some(_)) => return Err("`env` has no meaning for type=file".to_owned()),
            (Some(other), ..) => return Err(format!("unknown type `{other}` (use file or env)")),
        };
        Ok(Self { id, source })
    }
}

/// `NAME=SOFT[:HARD]`; -1 is unlimited.
pub(super) fn ulimit(text: &str) -> Result<Ulimit, String> {
    const NAMES: &[&str] = &[
        "as",
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ];
    let (name, values) = key_value(text).map_err(|_| "expected NAME=SOFT[:HARD]")?;
    if !NAMES.contains(&name.as_str()) {
        return Err(match crate::hint::did_you_mean(&name, NAMES.iter().copied()) {
            Some(near) => format!("unknown limit `{name}`; did you mean `{near}`?"),
            None => format!("unknown limit `{name}`; known are {}", NAMES.join(", ")),
        });
    }
    let number = |text: &str| match text {
        "-1" | "unlimited" => Ok(None),
        _ => text.parse().map(Some).map_err(|_| format!("`{text}` is not a number (-1 is unlimited)")),
    };
    let (soft, hard) = match values.split_once(':') {
        Some((soft, hard)) => (number(soft)?, number(hard)?),
        None => (number(&values)?, number(&values)?),
    };
    let exceeds = match (soft, hard) {
        (Some(soft), Some(hard)) => soft > hard,
        (None, Some(_)) => true,
        (_, None) => false,
    };
    if exceeds {
        return Err("the soft limit is above the hard limit".to_owned());
    }
    Ok(Ulimit { name, soft, hard })
}

/// `HOST:ADDRESS` or `HOST=ADDRESS`, where an IPv6 address may have brackets.
pub(super) fn extra_host(text: &str) -> Result<(String, String), String> {
    let split = match text.split_once('=') {
        Some(split) => Some(split),
        None => text.split_once(':'),
    };
    let Some((host, address)) = split.filter(|(host, _)| !host.is_empty()) else {
        return Err("expected HOST:ADDRESS".to_owned());
    };
    // Steps share the host's network, so that the host is where they are themselves.
    let address = if address == "host-gateway" { "127.0.0.1" } else { address };
    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    let address: std::net::IpAddr = bare.parse().map_err(|_| format!("`{address}` is not an IP address"))?;
    let valid = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if !host.chars().all(valid) {
        return Err(format!("`{host}` is not a host name"));
    }
    Ok((host.to_ascii_lowercase(), address.to_string()))
}

/// What `--allow` grants. Devices are accepted, though no step can have one; file system access is not limited.
pub(super) fn entitlement(text: &str) -> Result<String, String> {
    const KNOWN: &[&str] = &["network.host", "security.insecure", "device"];
    let name = text.split('=').next().unwrap_or_default();
    let is_file_access = matches!(name, "fs" | "fs.read" | "fs.write" | "ssh");
    if KNOWN.contains(&text) || text.starts_with("device=") || is_file_access {
        return Ok(text.to_owned());
    }
    Err(match crate::hint::did_you_mean(text, KNOWN.iter().copied()) {
        Some(near) => format!("unknown entitlement {text}; did you mean {near}?"),
        None => format!("unknown entitlement {text}; known are {}", KNOWN.join(", ")),
    })
}

/// `NAME=SOURCE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildContextSpec {
    /// The name that the Dockerfile uses.
    pub name: String,
    /// What stands behind it; paths are still as given.
    pub source: NamedContext,
}

impl FromStr for BuildContextSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, source) = key_value(text).map_err(|_| "expected NAME=SOURCE")?;
        if source.is_empty() {
            return Err("expected NAME=SOURCE".to_owned());
        }
        let source = if let Some(image) = source.strip_prefix("docker-image://") {
            NamedContext::Image(image.parse::<Reference>().map_err(|error| error.to_string())?)
        } else if let Some(layout) = source.strip_prefix("oci-layout://") {
            NamedContext::OciLayout(layout.to_owned())
        } else if let Some(path) =
            source.strip_prefix("docker-archive://").or_else(|| source.strip_prefix("oci-archive://"))
        {
            NamedContext::Archive(path.into())
        } else if let Some(stage) = source.strip_prefix("target:") {
            NamedContext::Stage(stage.to_owned())
        } else {
            // What may be a path as well is one.
            match RemoteSource::of_add(&source).map_err(|error| error.to_string())? {
                Some(remote) => NamedContext::Remote(remote),
                None => NamedContext::Directory(source.into()),
            }
        };
        Ok(Self { name, source })
    }
}

/// A duration: `90s`, `15m`, `12h`, `7d`, `2w`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let error = || format!("`{text}` is not a duration (for example 12h or 7d)");
    let number: u64 = number.parse().map_err(|_| error())?;
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        "w" => 7 * 24 * 3600,
        _ => return Err(error()),
    };
    number.checked_mul(factor).map(Duration::from_secs).ok_or_else(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_come_from_files_and_variables() {
        for (text, id, source) in [
            ("id=a,src=f", "a", SecretSource::File("f".into())),
            ("id=a,source=f,type=file", "a", SecretSource::File("f".into())),
            ("id=a,env=E", "a", SecretSource::Variable("E".into())),
            ("type=env,id=a,src=E", "a", SecretSource::Variable("E".into())),
            ("type=env,id=A", "A", SecretSource::Variable("A".into())),
            ("id=a", "a", SecretSource::Either),
            ("id=a,src=-", "a", SecretSource::Stdin),
        ] {
            assert_eq!(text.parse(), Ok(SecretSpec { id: id.into(), source }), "{text}");
        }
        for bad in ["src=f", "id=a,src=f,env=E", "id=a,type=x", "id=a,scr=f", "id=a,type=file,env=E", "a"] {
            assert!(bad.parse::<SecretSpec>().is_err(), "{bad}");
        }
    }

    #[test]
    fn limits() {
        let limit = |soft, hard| Ok(Ulimit { name: "nofile".into(), soft, hard });
        assert_eq!(ulimit("nofile=1:2"), limit(Some(1), Some(2)));
        assert_eq!(ulimit("nofile=7"), limit(Some(7), Some(7)));
        assert_eq!(ulimit("nofile=-1"), limit(None, None));
        for bad in ["nofile", "nofile=2:1", "nofile=-1:5", "nofiel=1", "nofile=x"] {
            assert!(ulimit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn hosts() {
        assert_eq!(extra_host("a:1.2.3.4"), Ok(("a".into(), "1.2.3.4".into())));
        assert_eq!(extra_host("a=::1"), Ok(("a".into(), "::1".into())));
        assert_eq!(extra_host("a:[::1]"), Ok(("a".into(), "::1".into())));
        assert_eq!(extra_host("Gate.Way=host-gateway"), Ok(("gate.way".into(), "127.0.0.1".into())));
        for bad in ["a", ":1.2.3.4", "a:b", "a b:1.2.3.4"] {
            assert!(extra_host(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn contexts() {
        let context = |text: &str| text.parse::<BuildContextSpec>().map(|spec| spec.source);
        assert_eq!(context("a=dir"), Ok(NamedContext::Directory("dir".into())));
        assert_eq!(context("a=docker-image://b:1"), Ok(NamedContext::Image("b:1".parse().unwrap())));
        assert_eq!(context("a=oci-layout://p:t"), Ok(NamedContext::OciLayout("p:t".into())));
        assert_eq!(context("a=docker-archive://f"), Ok(NamedContext::Archive("f".into())));
        assert_eq!(context("a=target:s"), Ok(NamedContext::Stage("s".into())));
        assert_eq!(
            context("a=https://x/y"),
            Ok(NamedContext::Remote(RemoteSource::Http("https://x/y".to_owned())))
        );
        assert!(matches!(context("a=https://x/y.git"), Ok(NamedContext::Remote(RemoteSource::Git(_)))));
        assert_eq!(context("a=github.com/x"), Ok(NamedContext::Directory("github.com/x".into())));
        assert!(context("a=https://x/y.git?depth=1").unwrap_err().contains("unexpected query"));
        assert!(context("dir").is_err());
    }

    #[test]
    fn annotations_are_for_manifests_or_what_they_say() {
        let read = |text: &str| text.parse::<Annotations>().map(|annotations| annotations.0);
        let annotation = |place, platform: Option<&str>, name: &str, value: &str| Annotation {
            place,
            platform: platform.map(|platform| platform.parse().unwrap()),
            name: name.to_owned(),
            value: value.to_owned(),
        };
        use AnnotationPlace::{Index, Manifest, ManifestDescriptor};
        assert_eq!(read("a=b"), Ok(vec![annotation(Manifest, None, "a", "b")]));
        assert_eq!(read("manifest:a=b:c"), Ok(vec![annotation(Manifest, None, "a", "b:c")]));
        assert_eq!(read("a=index:b"), Ok(vec![annotation(Manifest, None, "a", "index:b")]));
        assert_eq!(
            read("index,manifest-descriptor[linux/arm64]:a=b"),
            Ok(vec![
                annotation(Index, None, "a", "b"),
                annotation(ManifestDescriptor, Some("linux/arm64"), "a", "b")
            ])
        );
        for (text, part) in [
            ("a", "KEY=VALUE"),
            ("index,manifets:a=b", "did you mean `manifest`"),
            ("index[linux/arm64]:a=b", "one platform"),
            ("manifest[a/b/c/d]:a=b", "a/b/c/d"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(duration("7d"), Ok(Duration::from_hours(7 * 24)));
        for bad in ["", "7", "d", "1y", "99999999999999999999s", "18446744073709551615w"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
