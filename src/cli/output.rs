//! `--output`: `type=…,dest=…`, or just a path.

use std::path::PathBuf;
use std::str::FromStr;

use super::csv;
use super::values::annotation_place;
use crate::build::{Annotation, AnnotationPlace, Destination, LayerCompression, Output};
use crate::reference::Reference;

/// One `--output` as it was written, with what belongs to the whole build.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OutputSpec {
    /// Where the result goes; `None` for `type=cacheonly`, and for an engine.
    pub output: Option<Output>,
    /// `type=docker` without `dest`: into an engine on this machine.
    pub load: bool,
    /// `compression=`.
    pub compression: Option<LayerCompression>,
    /// `compression-level=`.
    pub level: Option<u8>,
    /// `force-compression=`.
    pub force: bool,
    /// `oci-mediatypes=false`.
    pub docker_media_types: bool,
    /// `annotation.<name>=`, `annotation-<place>.<name>=`.
    pub annotations: Vec<Annotation>,
}

const TYPES: &[&str] = &["image", "registry", "oci", "docker", "tar", "local", "cacheonly"];
const KEYS: &[&str] = &[
    "type",
    "dest",
    "name",
    "push",
    "tar",
    "compression",
    "compression-level",
    "force-compression",
    "oci-mediatypes",
    "rewrite-timestamp",
    "platform-split",
];

impl FromStr for OutputSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = |output| Self { output: Some(output), ..Self::default() };
        let fields = csv::fields(text)?;
        // Docker's shorthand: a path for `type=local`, `-` for a tar on standard output.
        if let [only] = fields.as_slice()
            && !only.contains('=')
        {
            return match only.as_str() {
                "" => Err("the output is empty (expected a path, or type=…,dest=…)".to_owned()),
                "-" => Ok(plain(Output::Tar { destination: Destination::Stdout })),
                path => Ok(plain(Output::Local { destination: path.into(), split: None })),
            };
        }
        let mut kind = None;
        let mut destination: Option<String> = None;
        let mut names: Option<Vec<Reference>> = None;
        let mut push: Option<bool> = None;
        let mut tar: Option<bool> = None;
        let mut split: Option<bool> = None;
        let mut spec = Self::default();
        for (key, value) in csv::pairs(text)? {
            match key.as_str() {
                "type" => kind = Some(value),
                "dest" => destination = Some(value),
                "name" => names = Some(references(&value)?),
                "push" => push = Some(csv::boolean(&key, &value)?),
                "tar" => tar = Some(csv::boolean(&key, &value)?),
                "compression" => spec.compression = Some(parse_compression(&value)?),
                "compression-level" => spec.level = Some(level(&value)?),
                "force-compression" => spec.force = csv::boolean(&key, &value)?,
                // With an epoch the times in layers are clamped when they are made: there is nothing to rewrite.
                "rewrite-timestamp" => drop(csv::boolean(&key, &value)?),
                "platform-split" => split = Some(csv::boolean(&key, &value)?),
                "oci-mediatypes" => spec.docker_media_types = !csv::boolean(&key, &value)?,
                _ => spec.annotations.push(annotation(&key, value)?),
            }
        }
        let kind = kind.ok_or("`type` is missing (for example type=oci,dest=image.tar)")?;
        let refuse = |key: &str| Err(format!("`{key}` has no meaning for type={kind}"));
        let is_image = matches!(kind.as_str(), "image" | "registry");
        match kind.as_str() {
            _ if !is_image && push.is_some() => return refuse("push"),
            _ if !is_image && names.is_some() => {
                return Err(format!("`name` has no meaning for type={kind}: use --tag"));
            }
            _ if kind != "oci" && tar.is_some() => return refuse("tar"),
            _ if kind != "local" && split.is_some() => return refuse("platform-split"),
            "image" | "registry" | "cacheonly" if destination.is_some() => return refuse("dest"),
            _ => {}
        }
        let needed = || match destination.as_deref() {
            None | Some("") => Err(format!("`dest` is missing: type={kind},dest=…")),
            Some("-") => Ok(Destination::Stdout),
            Some(path) => Ok(Destination::Path(path.into())),
        };
        let load = kind == "docker" && destination.is_none();
        let output = match kind.as_str() {
            "image" => Some(Output::Image { push: push.unwrap_or(false), names: names.unwrap_or_default() }),
            "registry" => {
                Some(Output::Image { push: push.unwrap_or(true), names: names.unwrap_or_default() })
            }
            "oci" => Some(match (needed()?, tar.unwrap_or(true)) {
                (Destination::Stdout, false) => {
                    return Err("tar=false needs a directory as `dest`".to_owned());
                }
                (destination, tar) => Output::Oci { destination, tar },
            }),
            "docker" if load => None,
            "docker" => Some(Output::Docker { destination: needed()? }),
            "tar" => Some(Output::Tar { destination: needed()? }),
            "local" => match needed()? {
                Destination::Path(destination) => Some(Output::Local { destination, split }),
                Destination::Stdout => {
                    return Err("type=local needs a directory: use type=tar,dest=-".to_owned());
                }
            },
            "cacheonly" => None,
            other => {
                return Err(match crate::hint::did_you_mean(other, TYPES.iter().copied()) {
                    Some(near) => format!("unknown type `{other}`; did you mean `{near}`?"),
                    None => format!("unknown type `{other}`; known are {}", TYPES.join(", ")),
                });
            }
        };
        Ok(Self { output, load, ..spec })
    }
}

/// An annotation as an attribute: `annotation.NAME`, `annotation-index.NAME`, `annotation-manifest[PLATFORM].NAME`.
fn annotation(key: &str, value: String) -> Result<Annotation, String> {
    let unknown = || csv::unknown(key, KEYS);
    let rest = key.strip_prefix("annotation").ok_or_else(unknown)?;
    let ((place, platform), name) = match rest.strip_prefix('.') {
        Some(name) => ((AnnotationPlace::Manifest, None), name),
        None => {
            let rest = rest.strip_prefix('-').ok_or_else(unknown)?;
            let (place, name) = rest.split_once('.').ok_or_else(unknown)?;
            (annotation_place(place)?, name)
        }
    };
    if name.is_empty() {
        return Err(unknown());
    }
    Ok(Annotation { place, platform, name: name.to_owned(), value })
}

/// The names in a comma-separated list.
fn references(text: &str) -> Result<Vec<Reference>, String> {
    text.split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .map(|name| name.parse().map_err(|error: crate::reference::ReferenceError| error.to_string()))
        .collect()
}

/// A level of compression. Which there are depends on the compression.
fn level(text: &str) -> Result<u8, String> {
    match text.parse() {
        Ok(level @ 0..=22) => Ok(level),
        _ => Err(format!("compression-level is `{text}` (0 to 9 for gzip, 0 to 22 for zstd)")),
    }
}

/// `zstd`, `gzip` or `uncompressed`.
pub(super) fn parse_compression(text: &str) -> Result<LayerCompression, String> {
    match text {
        "zstd" => Ok(LayerCompression::Zstd),
        "gzip" => Ok(LayerCompression::Gzip),
        "uncompressed" => Ok(LayerCompression::Uncompressed),
        "estargz" => Err("estargz is not supported (use zstd, gzip or uncompressed)".to_owned()),
        other => Err(format!("unknown compression `{other}` (use zstd, gzip or uncompressed)")),
    }
}

/// The output with its paths made absolute by `absolute`.
pub(super) fn resolve(output: Output, absolute: impl Fn(PathBuf) -> PathBuf) -> Output {
    let place = |destination| match destination {
        Destination::Path(path) => Destination::Path(absolute(path)),
        Destination::Stdout => Destination::Stdout,
    };
    match output {
        Output::Image { .. } | Output::Load { .. } => output,
        Output::Oci { destination, tar } => Output::Oci { destination: place(destination), tar },
        Output::Docker { destination } => Output::Docker { destination: place(destination) },
        Output::Tar { destination } => Output::Tar { destination: place(destination) },
        Output::Local { destination, split } => Output::Local { destination: absolute(destination), split },
    }
}

/// Whether the output goes to standard output.
pub(super) fn is_stdout(output: &Output) -> bool {
    matches!(
        output,
        Output::Oci { destination: Destination::Stdout, .. }
            | Output::Docker { destination: Destination::Stdout }
            | Output::Tar { destination: Destination::Stdout }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_read_as_buildx_does() {
        let path = |path: &str| Destination::Path(path.into());
        let image = |push, names: &[&str]| Output::Image {
            push,
            names: names.iter().map(|name| name.parse().unwrap()).collect(),
        };
        for (text, expected) in [
            ("out", Some(Output::Local { destination: "out".into(), split: None })),
            ("-", Some(Output::Tar { destination: Destination::Stdout })),
            ("type=local,dest=out", Some(Output::Local { destination: "out".into(), split: None })),
            ("type=tar,dest=-", Some(Output::Tar { destination: Destination::Stdout })),
            ("type=oci,dest=a.tar", Some(Output::Oci { destination: path("a.tar"), tar: true })),
            ("type=oci,dest=a,tar=false", Some(Output::Oci { destination: path("a"), tar: false })),
            ("type=docker,dest=a.tar", Some(Output::Docker { destination: path("a.tar") })),
            ("type=image,push=true", Some(image(true, &[]))),
            ("type=image", Some(image(false, &[]))),
            ("\"type=image\",\"name=a,b:1\"", Some(image(false, &["a", "b:1"]))),
            ("type=registry", Some(image(true, &[]))),
            ("type=cacheonly", None),
        ] {
            assert_eq!(text.parse::<OutputSpec>().unwrap().output, expected, "{text}");
        }
        let spec: OutputSpec = "type=image,compression=gzip,annotation.a.b=c".parse().unwrap();
        assert_eq!(spec.compression, Some(LayerCompression::Gzip));
        let found: Vec<_> = spec.annotations.iter().map(|found| (found.name.as_str(), found.place)).collect();
        assert_eq!(found, [("a.b", AnnotationPlace::Manifest)]);
        let spec: OutputSpec = "type=image,annotation-index.a.b=c".parse().unwrap();
        assert_eq!(spec.annotations[0].place, AnnotationPlace::Index);
    }

    #[test]
    fn wrong_outputs_say_what_is_wrong() {
        for (text, part) in [
            ("", "empty"),
            ("dest=x", "`type` is missing"),
            ("type=oci", "`dest` is missing"),
            ("type=oic,dest=x", "did you mean `oci`"),
            ("type=oci,dset=x", "did you mean `dest`"),
            ("type=oci,dest=x,push=true", "`push` has no meaning"),
            ("type=image,dest=x", "`dest` has no meaning"),
            ("type=tar,dest=x,tar=false", "`tar` has no meaning"),
            ("type=tar,dest=x,platform-split=false", "`platform-split` has no meaning"),
            ("type=oci,dest=-,tar=false", "directory"),
            ("type=local,dest=-", "directory"),
            ("type=image,push=perhaps", "true or false"),
            ("type=image,rewrite-timestamp=perhaps", "true or false"),
            ("type=image,name=UPPER/x/Y", "lowercase"),
            ("type=image,compression=lzma", "unknown compression"),
            ("type=image,oci-mediatypes=perhaps", "true or false"),
            ("type=image,compression-level=23", "0 to 22"),
            ("type=image,force-compression=perhaps", "true or false"),
            ("type=image,push", "key=value"),
            ("type=image,annotation-thing.a=b", "`thing` cannot be annotated"),
            ("type=image,annotation=b", "unknown"),
        ] {
            let error = text.parse::<OutputSpec>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
