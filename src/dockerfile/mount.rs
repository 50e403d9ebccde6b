//! `RUN --mount=…`.

use std::collections::BTreeMap;
use std::fmt;

use super::path::clean_path;
use crate::bytes::ByteSize;
use crate::hint::{Hint, did_you_mean};

/// A `--mount` option as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawMount {
    /// The option's value.
    pub text: String,
    /// The stage, named context or image given by `from=`, which cannot hold variables.
    pub from: Option<String>,
}

/// A `--mount` option, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mount {
    /// Files of the context or of another stage or image.
    Bind {
        /// Stage, named context or image; `None` is the build context.
        from: Option<String>,
        /// The path inside; empty for all of it.
        source: String,
        /// Where; see [`Mount::target`].
        target: String,
        /// Writes are allowed, and thrown away after the step.
        writable: bool,
    },
    /// A directory kept from build to build.
    Cache {
        /// What tells caches apart: `id`, else the cleaned target. The builder's namespace is still to be prefixed.
        id: String,
        /// What a new cache is filled with; `None` for nothing.
        from: Option<String>,
        /// The path inside `from`.
        source: String,
        /// Where; see [`Mount::target`].
        target: String,
        /// The step cannot write to it.
        read_only: bool,
        /// Who may use it at the same time.
        sharing: Sharing,
        /// Mode of a new cache directory; BuildKit's default is 0755.
        mode: Option<u32>,
        /// Owner of a new cache directory.
        uid: Option<u32>,
        /// Group of a new cache directory.
        gid: Option<u32>,
    },
    /// A file system in memory.
    Tmpfs {
        /// Where; see [`Mount::target`].
        target: String,
        /// Its greatest size.
        size: Option<ByteSize>,
        /// The step cannot write to it.
        read_only: bool,
    },
    /// A secret as a file, a variable, or both.
    Secret {
        /// Which secret.
        id: String,
        /// The file; `None` if the secret is only a variable.
        target: Option<String>,
        /// The variable.
        env: Option<String>,
        /// Whether a missing secret is an error.
        required: bool,
        /// Mode of the file.
        mode: u32,
        /// Owner of the file.
        uid: u32,
        /// Group of the file.
        gid: u32,
    },
    /// The socket of an SSH agent.
    Ssh {
        /// Which agent.
        id: String,
        /// The socket's path; `None` for a path of the builder's choice.
        target: Option<String>,
        /// Whether a missing agent is an error.
        required: bool,
        /// Mode of the socket.
        mode: u32,
        /// Owner of the socket.
        uid: u32,
        /// Group of the socket.
        gid: u32,
    },
}

/// Who may use a cache mount at the same time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Sharing {
    /// Everyone, in the same directory.
    #[default]
    Shared,
    /// Everyone, each in an own directory.
    Private,
    /// One after the other.
    Locked,
}

/// Why a `--mount` option cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountError {
    message: String,
    hint: Option<String>,
}

impl MountError {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None }
    }

    fn suggest<'a>(mut self, word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Self {
        self.hint = did_you_mean(word, candidates).map(|meant| format!("did you mean {meant}?"));
        self
    }
}

impl fmt::Display for MountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for MountError {}

impl Hint for MountError {
    fn hint(&self) -> Option<String> {
        self.hint.clone()
    }
}

const TYPES: [&str; 5] = ["bind", "cache", "tmpfs", "secret", "ssh"];
const SHARINGS: [&str; 3] = ["shared", "private", "locked"];
const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "destination",
    "ro",
    "rw",
    "readwrite",
    "env",
];

impl RawMount {
    /// Checks what can be checked before variables are known.
    pub(super) fn parse(text: &str) -> Result<Self, MountError> {
        let mut from = None;
        for field in csv_fields(text)? {
            if let Some((key, value)) = field.split_once('=')
                && key.eq_ignore_ascii_case("from")
            {
                // A dollar at the very end cannot begin a variable.
                if value.find('$').is_some_and(|at| at + 1 != value.len()) {
                    return Err(MountError {
                        message: "'from' doesn't support variable expansion, define alias stage instead"
                            .to_owned(),
                        hint: Some(format!(
                            "add `FROM {value} AS <name>` before this stage and mount from=<name>"
                        )),
                    });
                }
                from = Some(value.to_owned()).filter(|value| !value.is_empty());
            }
        }
        Ok(Self { text: text.to_owned(), from })
    }

    /// Understands the option; `expand` replaces the variables of each value by itself, so that a value with a comma in it
    /// stays one value.
    pub fn resolve<E: From<MountError>>(
        &self,
        mut expand: impl FnMut(&str) -> Result<String, E>,
    ) -> Result<Mount, E> {
        let mut fields = Fields::default();
        for field in csv_fields(&self.text)? {
            match field.split_once('=') {
                None => fields.flag(&field)?,
                Some((key, value)) => {
                    let value = expand(value)?;
                    fields.set(&key.to_lowercase(), value, &field)?;
                }
            }
        }
        Ok(fields.finish()?)
    }
}

impl Mount {
    /// Understands an option in which nothing is to be expanded.
    pub fn parse(text: &str) -> Result<Self, MountError> {
        RawMount { text: text.to_owned(), from: None }.resolve(|value| Ok::<_, MountError>(value.to_owned()))
    }

    /// The absolute path at which a bind, cache or tmpfs mount appears, given the stage's working directory; the path of a
    /// secret or agent as written.
    pub fn target(&self, workdir: &str) -> Result<Option<String>, MountError> {
        let target = match self {
            Self::Bind { target, .. } | Self::Cache { target, .. } | Self::Tmpfs { target, .. } => target,
            Self::Secret { target, .. } | Self::Ssh { target, .. } => return Ok(target.clone()),
        };
        let path = if target.starts_with('/') {
            clean_path(target)
        } else {
            clean_path(&format!("/{workdir}/{target}"))
        };
        if path == "/" {
            return Err(MountError::new(format!(
                "invalid mount target {target:?}: it is the root directory"
            )));
        }
        Ok(Some(path))
    }
}

/// The settings of an option, before it is known which go together.
#[derive(Debug, Default)]
struct Fields {
    kind: Option<&'static str>,
    /// `from`, `source`, `target`, `id`, `env`.
    texts: BTreeMap<&'static str, String>,
    read_only: Option<bool>,
    required: bool,
    size: Option<ByteSize>,
    sharing: Option<Sharing>,
    /// `mode`, `uid`, `gid`.
    numbers: BTreeMap<&'static str, u32>,
}

impl Fields {
    fn kind(&self) -> &'static str {
        self.kind.unwrap_or("bind")
    }

    /// A key without a value.
    fn flag(&mut self, field: &str) -> Result<(), MountError> {
        match field.to_lowercase().as_str() {
            "readonly" | "ro" => self.read_only = Some(true),
            "readwrite" | "rw" => self.read_only = Some(false),
            "required" => self.set_required(true)?,
            key => {
                return Err(MountError::new(format!("invalid field '{field}' must be a key=value pair"))
                    .suggest(key, KEYS));
            }
        }
        Ok(())
    }

    fn set(&mut self, key: &str, value: String, field: &str) -> Result<(), MountError> {
        let invalid = || MountError::new(format!("invalid value for {key}: {value}"));
        match key {
            "type" => {
                let kind = TYPES.into_iter().find(|kind| value.to_lowercase() == *kind);
                self.kind = Some(kind.ok_or_else(|| {
                    MountError::new(format!("unsupported mount type {value:?}")).suggest(&value, TYPES)
                })?);
            }
            "from" => self.text("from", value),
            "source" | "src" => self.text("source", value),
            "target" | "dst" | "destination" => self.text("target", value),
            "id" => self.text("id", value),
            "env" => self.text("env", value),
            "readonly" | "ro" => self.read_only = Some(parse_bool(&value).ok_or_else(invalid)?),
            "readwrite" | "rw" => self.read_only = Some(!parse_bool(&value).ok_or_else(invalid)?),
            "required" => self.set_required(parse_bool(&value).ok_or_else(invalid)?)?,
            "size" if self.kind() == "tmpfs" => {
                self.size = Some(parse_ram(&value).ok_or_else(invalid)?).filter(|size| size.0 > 0);
            }
            "size" => return Err(self.unexpected(key)),
            "sharing" => {
                self.sharing = Some(match value.to_lowercase().as_str() {
                    "shared" => Sharing::Shared,
                    "private" => Sharing::Private,
                    "locked" => Sharing::Locked,
                    _ => {
                        return Err(MountError::new(format!("unsupported sharing value {value:?}"))
                            .suggest(&value, SHARINGS));
                    }
                });
            }
            "mode" => self.number("mode", &value, 8)?,
            "uid" => self.number("uid", &value, 10)?,
            "gid" => self.number("gid", &value, 10)?,
            _ => {
                return Err(
                    MountError::new(format!("unexpected key '{key}' in '{field}'")).suggest(key, KEYS)
                );
            }
        }
        Ok(())
    }

    fn text(&mut self, key: &'static str, value: String) {
        self.texts.insert(key, value);
    }

    fn number(&mut self, key: &'static str, value: &str, radix: u32) -> Result<(), MountError> {
        let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
        let number = u32::from_str_radix(value, radix).ok().filter(|_| digits);
        let number = number.ok_or_else(|| MountError::new(format!("invalid value {value} for {key}")))?;
        self.numbers.insert(key, number);
        Ok(())
    }

    fn set_required(&mut self, required: bool) -> Result<(), MountError> {
        if !matches!(self.kind(), "secret" | "ssh") {
            return Err(self.unexpected("required"));
        }
        self.required = required;
        Ok(())
    }

    fn unexpected(&self, key: &str) -> MountError {
        let mut error = MountError::new(format!("unexpected key '{key}' for mount type '{}'", self.kind()));
        if self.kind.is_none() {
            error.hint = Some("put type= before the options that belong to the type".to_owned());
        }
        error
    }

    /// A text setting, `None` if it is missing or empty.
    fn take(&mut self, key: &str) -> Option<String> {
        self.texts.remove(key).filter(|value| !value.is_empty())
    }

    fn finish(mut self) -> Result<Mount, MountError> {
        let kind = self.kind();
        if matches!(kind, "bind" | "tmpfs")
            && let Some(key) = ["mode", "uid", "gid"].into_iter().find(|key| self.numbers.contains_key(key))
        {
            return Err(MountError::new(format!("{key} not allowed for {kind:?} type mounts")));
        }
        if self.sharing.is_some() && kind != "cache" {
            return Err(MountError::new(format!("invalid cache sharing set for {kind} mount")));
        }
        let [mode, uid, gid] = ["mode", "uid", "gid"].map(|key| self.numbers.get(key).copied());
        let from = self.take("from");
        let source = self.take("source");
        let target = self.take("target");
        let id = self.take("id");
        let read_only = self.read_only;
        Ok(match kind {
            "cache" => {
                let target = target.unwrap_or_default();
                Mount::Cache {
                    id: id.unwrap_or_else(|| clean_path(&target)),
                    from,
                    source: source.unwrap_or_default(),
                    target,
                    read_only: read_only.unwrap_or(false),
                    sharing: self.sharing.unwrap_or_default(),
                    mode,
                    uid,
                    gid,
                }
            }
            "tmpfs" => Mount::Tmpfs {
                target: target.unwrap_or_default(),
                size: self.size,
                read_only: read_only.unwrap_or(false),
            },
            "secret" => {
                if from.is_some() {
                    return Err(MountError::new("secret mount should not have a from"));
                }
                if source.is_some() && id.is_some() {
                    return Err(MountError::new("both source and id can't be set"));
                }
                let id = match (id.or(source), &target) {
                    (Some(id), _) => id,
                    (None, Some(target)) => base(target).to_owned(),
                    (None, None) => {
                        return Err(MountError::new("invalid secret mount. one of source, target required"));
                    }
                };
                let env = self.texts.remove("env");
                let target = match (target, &env) {
                    (None, None) => Some(format!("/run/secrets/{}", base(&id))),
                    (target, _) => target,
                };
                Mount::Secret {
                    target,
                    // An empty name stands for the default, which is the secret's own name.
                    env: env.map(|name| if name.is_empty() { id.clone() } else { name }),
                    id,
                    required: self.required,
                    mode: mode.unwrap_or(0o400),
                    uid: uid.unwrap_or(0),
                    gid: gid.unwrap_or(0),
                }
            }
            "ssh" => {
                if source.is_some() {
                    return Err(MountError::new("ssh does not support source"));
                }
                Mount::Ssh {
                    id: id.unwrap_or_else(|| "default".to_owned()),
                    target,
                    required: self.required,
                    mode: mode.unwrap_or(0o600),
                    uid: uid.unwrap_or(0),
                    gid: gid.unwrap_or(0),
                }
            }
            _ => Mount::Bind {
                from,
                source: source.unwrap_or_default(),
                target: target.unwrap_or_default(),
                writable: read_only == Some(false),
            },
        })
    }
}

/// The words that Go takes for true and false.
pub(super) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// A size in which, unlike in [`ByteSize`], `kb` and `mb` are powers of 1024, too.
fn parse_ram(text: &str) -> Option<ByteSize> {
    let lower = text.to_ascii_lowercase();
    if lower.starts_with(|c: char| c.is_whitespace()) || lower.ends_with(|c: char| c.is_whitespace()) {
        return None;
    }
    match lower.strip_suffix("b") {
        Some(rest) if rest.ends_with(['k', 'm', 'g', 't']) => rest.parse().ok(),
        _ => lower.parse().ok(),
    }
}

/// The fields of one line of comma-separated values; a field in double quotes may hold commas and doubled quotes.
pub(super) fn csv_fields(text: &str) -> Result<Vec<String>, MountError> {
    let malformed = |what: &str| MountError::new(format!("failed to parse mount options {text:?}: {what}"));
    let mut rest = text.strip_suffix('\n').map_or(text, |line| line.strip_suffix('\r').unwrap_or(line));
    if rest.is_empty() {
        return Err(malformed("they are empty"));
    }
    let mut fields = Vec::new();
    loop {
        let Some(quoted) = rest.strip_prefix('"') else {
            let (field, tail) =
                rest.split_once(',').map_or((rest, None), |(field, tail)| (field, Some(tail)));
            if field.contains('"') {
                return Err(malformed("a quote in a field that does not begin with one"));
            }
            fields.push(field.to_owned());
            match tail {
                Some(tail) => rest = tail,
                None => return Ok(fields),
            }
            continue;
        };
        let mut field = String::new();
        rest = quoted;
        loop {
            let Some((part, tail)) = rest.split_once('"') else {
                return Err(malformed("a quote is not closed"));
            };
            field.push_str(part);
            match tail.strip_prefix('"') {
                Some(tail) => {
                    field.push('"');
                    rest = tail;
                }
                None => {
                    rest = tail;
                    break;
                }
            }
        }
        fields.push(field);
        match rest.strip_prefix(',') {
            Some(tail) => rest = tail,
            None if rest.is_empty() => return Ok(fields),
            None => return Err(malformed("text after a closing quote")),
        }
    }
}

/// The last element of a path.
fn base(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Mount::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn bind_is_the_default_and_read_only() {
        let bind = |writable| Mount::Bind {
            from: Some("base".to_owned()),
            source: "/src".to_owned(),
            target: "/dst".to_owned(),
            writable,
        };
        assert_eq!(Mount::parse("from=base,source=/src,target=/dst"), Ok(bind(false)));
        assert_eq!(Mount::parse("TYPE=bind,From=base,src=/src,dst=/dst,rw"), Ok(bind(true)));
        assert_eq!(Mount::parse("from=base,src=/src,destination=/dst,ro=false"), Ok(bind(true)));
        assert_eq!(Mount::parse("from=base,src=/src,dst=/dst,rw=false"), Ok(bind(false)));
        let plain =
            Mount::Bind { from: None, source: String::new(), target: "x".to_owned(), writable: false };
        assert_eq!(Mount::parse("target=x"), Ok(plain));
    }

    #[test]
    fn caches_are_told_apart_by_target() {
        let Mount::Cache { id, sharing, read_only, mode, .. } =
            Mount::parse("type=cache,target=/root//.cache/").unwrap()
        else {
            panic!()
        };
        assert_eq!((&*id, sharing, read_only, mode), ("/root/.cache", Sharing::Shared, false, None));
        let text = "type=cache,id=x,sharing=Locked,mode=0700,uid=1,gid=2,from=a,source=b,ro,target=/c";
        let expected = Mount::Cache {
            id: "x".to_owned(),
            from: Some("a".to_owned()),
            source: "b".to_owned(),
            target: "/c".to_owned(),
            read_only: true,
            sharing: Sharing::Locked,
            mode: Some(0o700),
            uid: Some(1),
            gid: Some(2),
        };
        assert_eq!(Mount::parse(text), Ok(expected));
    }

    #[test]
    fn sizes_are_ram_units() {
        for (text, bytes) in
            [("64m", 64 << 20), ("64mb", 64 << 20), ("1KiB", 1024), ("1.5k", 1536), ("7b", 7), ("9", 9)]
        {
            let Mount::Tmpfs { size, .. } =
                Mount::parse(&format!("type=tmpfs,target=/t,size={text}")).unwrap()
            else {
                panic!()
            };
            assert_eq!(size, Some(ByteSize(bytes)), "{text}");
        }
        assert_eq!(error("type=tmpfs,target=/t,size=big"), "invalid value for size: big");
    }

    #[test]
    fn secrets_have_a_file_unless_they_are_a_variable() {
        let secret = |text: &str| match Mount::parse(text).unwrap() {
            Mount::Secret { id, target, env, .. } => (id, target, env),
            other => panic!("{other:?}"),
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(secret("type=secret,id=a/b"), ("a/b".into(), some("/run/secrets/b"), None));
        assert_eq!(secret("type=secret,source=a"), ("a".into(), some("/run/secrets/a"), None));
        assert_eq!(secret("type=secret,target=/x/y"), ("y".into(), some("/x/y"), None));
        assert_eq!(secret("type=secret,id=a,env=B"), ("a".into(), None, some("B")));
        assert_eq!(secret("type=secret,id=a,env="), ("a".into(), None, some("a")));
        assert_eq!(secret("type=secret,id=a,env=B,target=/c"), ("a".into(), some("/c"), some("B")));
        let Mount::Secret { required, mode, uid, .. } =
            Mount::parse("type=secret,id=a,required,uid=5").unwrap()
        else {
            panic!()
        };
        assert_eq!((required, mode, uid), (true, 0o400, 5));
    }

    #[test]
    fn ssh_has_defaults() {
        let expected = Mount::Ssh {
            id: "default".to_owned(),
            target: None,
            required: false,
            mode: 0o600,
            uid: 0,
            gid: 0,
        };
        assert_eq!(Mount::parse("type=ssh"), Ok(expected));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (text, message) in [
            ("type=volume", "unsupported mount type \"volume\""),
            ("type=cache,sharing=all", "unsupported sharing value \"all\""),
            ("target=/a,mode=0755", "mode not allowed for \"bind\" type mounts"),
            ("type=tmpfs,uid=0", "uid not allowed for \"tmpfs\" type mounts"),
            ("type=bind,size=1", "unexpected key 'size' for mount type 'bind'"),
            ("required,type=secret", "unexpected key 'required' for mount type 'bind'"),
            ("type=cache,required=true", "unexpected key 'required' for mount type 'cache'"),
            ("type=secret", "invalid secret mount. one of source, target required"),
            ("type=secret,id=a,source=b", "both source and id can't be set"),
            ("type=secret,id=a,from=b", "secret mount should not have a from"),
            ("type=secret,id=a,sharing=shared", "invalid cache sharing set for secret mount"),
            ("type=ssh,source=a", "ssh does not support source"),
            ("type=cache,mode=0x1", "invalid value 0x1 for mode"),
            ("type=cache,mode=9", "invalid value 9 for mode"),
            ("type=cache,uid=+1", "invalid value +1 for uid"),
            ("ro=maybe", "invalid value for ro: maybe"),
            ("target", "invalid field 'target' must be a key=value pair"),
            ("tagret=/a", "unexpected key 'tagret' in 'tagret=/a'"),
        ] {
            assert_eq!(error(text), message, "{text}");
        }
        assert_eq!(Mount::parse("tagret=/a").unwrap_err().hint().as_deref(), Some("did you mean target?"));
        for text in ["", "a\"b", "\"a", "\"a\"b"] {
            assert!(error(text).starts_with("failed to parse mount options"), "{text}");
        }
    }

    #[test]
    fn values_are_expanded_one_by_one() {
        let raw = RawMount::parse("type=$T,\"target=/a,b\",source=$S").unwrap();
        let mount = raw
            .resolve(|value| Ok::<_, MountError>(value.replace("$T", "cache").replace("$S", "x,y=z")))
            .unwrap();
        let Mount::Cache { target, source, .. } = mount else { panic!() };
        assert_eq!((&*target, &*source), ("/a,b", "x,y=z"));
    }

    #[test]
    fn from_holds_no_variables() {
        assert_eq!(RawMount::parse("from=base,target=$X").unwrap().from.as_deref(), Some("base"));
        assert_eq!(RawMount::parse("from=a$").unwrap().from.as_deref(), Some("a$"));
        let error = RawMount::parse("from=$BASE").unwrap_err();
        assert_eq!(
            error.to_string(),
            "'from' doesn't support variable expansion, define alias stage instead"
        );
    }

    #[test]
    fn targets_are_relative_to_the_working_directory() {
        let target = |text: &str, workdir: &str| {
            Mount::parse(text).unwrap().target(workdir).map_err(|e| e.to_string())
        };
        assert_eq!(target("target=a/../b", "/w"), Ok(Some("/w/b".to_owned())));
        assert_eq!(target("target=/a/", "/w"), Ok(Some("/a".to_owned())));
        assert_eq!(target("type=cache", "/w"), Ok(Some("/w".to_owned())));
        assert!(target("target=/", "/w").is_err());
        assert!(target("target=../..", "/w").is_err());
        assert_eq!(target("type=ssh", "/w"), Ok(None));
    }
}
