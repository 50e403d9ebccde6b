//! `--ssh`: which agents and keys a build may use.

use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fs_err as fs;

use super::environment::Environment;
use super::error::CliError;
use super::request::read_bounded;
use super::{csv, env_vars};
use crate::build::{SshAgent, SshKey, SshSource};

/// BuildKit's limit for one key.
const KEY_BYTES_MAX: u64 = 100 << 10;

/// What an OpenSSH private key begins with, decoded.
const OPENSSH_MAGIC: &[u8] = b"openssh-key-v1\0";

/// `default|ID[=SOCKET|KEY[,KEY…]][,raw=true]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshSpec {
    /// The name that mounts refer to.
    pub id: String,
    /// A socket or keys; none for the agent of `SSH_AUTH_SOCK`.
    pub paths: Vec<PathBuf>,
    /// Pass everything on, whatever the protocol.
    pub raw: bool,
}

impl FromStr for SshSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (id, rest) = text.split_once('=').unwrap_or((text, ""));
        let id = if id.is_empty() { "default" } else { id };
        let (mut paths, mut raw) = (Vec::new(), false);
        for part in rest.split(',').filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                Some(("raw", value)) => raw = csv::boolean("raw", value)?,
                _ => paths.push(PathBuf::from(part)),
            }
        }
        if raw && paths.len() != 1 {
            return Err(format!("raw mode must supply exactly one socket path for `{id}`"));
        }
        Ok(Self { id: id.to_owned(), paths, raw })
    }
}

/// Finds sockets and reads keys.
pub(super) fn resolve(specs: &[SshSpec], environment: &Environment) -> Result<Vec<SshAgent>, CliError> {
    let mut agents: Vec<SshAgent> = Vec::new();
    for spec in specs {
        if agents.iter().any(|agent| agent.id == spec.id) {
            return Err(CliError::usage(format!("`--ssh` has two agents with the id `{}`", spec.id)));
        }
        agents.push(SshAgent { id: spec.id.clone(), source: source(spec, environment)? });
    }
    Ok(agents)
}

fn source(spec: &SshSpec, environment: &Environment) -> Result<SshSource, CliError> {
    if spec.paths.is_empty() {
        let Some(path) = environment.variable(env_vars::SSH_AUTH_SOCK) else {
            return Err(CliError::message(format!(
                "`--ssh {}` needs an SSH agent, and SSH_AUTH_SOCK is not set",
                spec.id
            ))
            .hint(format!(
                "start one (`eval \"$(ssh-agent)\"; ssh-add`), or name a key: `--ssh {}=$HOME/.ssh/id_ed25519`",
                spec.id
            )));
        };
        let path = PathBuf::from(path);
        if !is_socket(&path, environment)? {
            let message = format!("SSH_AUTH_SOCK is `{}`, which is not a socket", path.display());
            return Err(CliError::message(message));
        }
        return Ok(SshSource::Socket { path: environment.absolute(&path), raw: spec.raw });
    }
    let mut keys = Vec::new();
    for path in &spec.paths {
        if is_socket(path, environment)? {
            if spec.paths.len() > 1 {
                let message = format!("`--ssh {}` has a socket and more: give one socket, or keys", spec.id);
                return Err(CliError::usage(message));
            }
            return Ok(SshSource::Socket { path: environment.absolute(path), raw: spec.raw });
        }
        if spec.raw {
            let message = format!("`{}` is not a socket, which raw mode needs", path.display());
            return Err(CliError::usage(message));
        }
        keys.push(key(path, environment)?);
    }
    Ok(SshSource::Keys(keys))
}

fn is_socket(path: &Path, environment: &Environment) -> Result<bool, CliError> {
    let metadata = fs::metadata(environment.absolute(path)).map_err(|error| cannot_read(path, error))?;
    Ok(metadata.file_type().is_socket())
}

fn cannot_read(path: &Path, error: std::io::Error) -> CliError {
    let context = format!("the SSH key or socket `{}` cannot be read", path.display());
    CliError::failure(anyhow::Error::new(error).context(context))
}

fn key(path: &Path, environment: &Environment) -> Result<SshKey, CliError> {
    let text =
        read_bounded(&environment.absolute(path), KEY_BYTES_MAX).map_err(|error| cannot_read(path, error))?;
    let name = path.display().to_string();
    match kind(&text) {
        Kind::Open => Ok(SshKey { name, text }),
        Kind::Locked => {
            Err(CliError::message(format!("the SSH key `{name}` is protected by a passphrase")).hint(
                "add it to an agent (`ssh-add`) and forward that with `--ssh default`: nobody could be asked for it",
            ))
        }
        Kind::Public => Err(CliError::message(format!("`{name}` is a public key"))
            .hint("give the private key, the file without `.pub`")),
        Kind::Unknown => Err(CliError::message(format!("`{name}` is neither a socket nor a private SSH key"))),
    }
}

/// What a file with a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A private key that can be used as it is.
    Open,
    /// A private key with a passphrase.
    Locked,
    /// A public key.
    Public,
    /// Something else.
    Unknown,
}

/// Looks at no more than is needed to tell: whether the key is good is for the agent to say.
fn kind(text: &[u8]) -> Kind {
    let text = String::from_utf8_lossy(text);
    let Some(begin) = text.find("-----BEGIN ") else {
        let public = ["ssh-", "ecdsa-", "sk-"].iter().any(|prefix| text.starts_with(prefix));
        return if public { Kind::Public } else { Kind::Unknown };
    };
    let mut lines = text[begin..].lines();
    let label = lines.next().unwrap_or_default();
    let body: Vec<&str> = lines.take_while(|line| !line.starts_with("-----END ")).map(str::trim).collect();
    if label.contains("PUBLIC KEY") {
        return Kind::Public;
    }
    if !label.contains("PRIVATE KEY") {
        return Kind::Unknown;
    }
    // PKCS #8 says it in the label, older PEM in a header, OpenSSH by the name of the cipher.
    if label.contains("ENCRYPTED")
        || body.iter().any(|line| line.starts_with("Proc-Type:") && line.contains("ENCRYPTED"))
    {
        return Kind::Locked;
    }
    if label.contains("OPENSSH") {
        let decoded = STANDARD.decode(body.concat()).unwrap_or_default();
        let Some(rest) = decoded.strip_prefix(OPENSSH_MAGIC) else { return Kind::Unknown };
        let cipher = rest
            .split_first_chunk::<4>()
            .and_then(|(length, rest)| rest.get(..usize::try_from(u32::from_be_bytes(*length)).ok()?));
        return match cipher {
            None => Kind::Unknown,
            Some(b"none") => Kind::Open,
            Some(_) => Kind::Locked,
        };
    }
    Kind::Open
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_are_read_as_buildx_reads_them() {
        let spec = |id: &str, paths: &[&str], raw| {
            Ok(SshSpec { id: id.into(), paths: paths.iter().map(PathBuf::from).collect(), raw })
        };
        assert_eq!("default".parse(), spec("default", &[], false));
        assert_eq!("".parse(), spec("default", &[], false));
        assert_eq!("git=/run/agent".parse(), spec("git", &["/run/agent"], false));
        assert_eq!("git=a,b".parse(), spec("git", &["a", "b"], false));
        assert_eq!("git=a,raw=true".parse(), spec("git", &["a"], true));
        for bad in ["git=raw=true", "git=a,b,raw=1", "git=a,raw=perhaps"] {
            assert!(bad.parse::<SshSpec>().is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_are_told_apart() {
        let openssh = |cipher: &[u8]| {
            let length = u32::try_from(cipher.len()).unwrap().to_be_bytes();
            let body = STANDARD.encode([OPENSSH_MAGIC, &length, cipher, b"rest"].concat());
            format!("-----BEGIN OPENSSH PRIVATE KEY-----\n{body}\n-----END OPENSSH PRIVATE KEY-----\n")
        };
        for (text, expected) in [
            (openssh(b"none").as_str(), Kind::Open),
            (openssh(b"aes256-ctr").as_str(), Kind::Locked),
            ("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n", Kind::Unknown),
            ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\n", Kind::Open),
            ("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: x\n\nMIIE\n", Kind::Locked),
            ("-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIE\n", Kind::Locked),
            ("-----BEGIN PUBLIC KEY-----\nMIIE\n", Kind::Public),
            ("ssh-ed25519 AAAA me\n", Kind::Public),
            ("-----BEGIN CERTIFICATE-----\nMIIE\n", Kind::Unknown),
            ("hello", Kind::Unknown),
        ] {
            assert_eq!(kind(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_advice() {
        let directory = tempfile::tempdir().unwrap();
        let environment = Environment { directory: directory.path().to_owned(), ..Environment::default() };
        fs::write(directory.path().join("locked"), "-----BEGIN ENCRYPTED PRIVATE KEY-----\nx\n").unwrap();
        fs::write(directory.path().join("key"), "-----BEGIN PRIVATE KEY-----\nx\n").unwrap();
        let listener = std::os::unix::net::UnixListener::bind(directory.path().join("socket")).unwrap();
        let resolve = |specs: &[&str]| {
            let specs: Vec<SshSpec> = specs.iter().map(|spec| spec.parse().unwrap()).collect();
            resolve(&specs, &environment).map_err(|error| error.render(false))
        };
        assert!(resolve(&["default"]).unwrap_err().contains("SSH_AUTH_SOCK is not set"));
        assert!(resolve(&["a=locked"]).unwrap_err().contains("passphrase"));
        assert!(resolve(&["a=nothing"]).unwrap_err().contains("nothing"));
        assert!(resolve(&["a=socket,key"]).unwrap_err().contains("one socket"));
        assert!(resolve(&["a=key,raw=1"]).unwrap_err().contains("not a socket"));
        assert!(resolve(&["a=key", "a=key"]).unwrap_err().contains("two agents"));
        let agents = resolve(&["a=key,key", "b=socket"]).unwrap();
        assert!(matches!(&agents[0].source, SshSource::Keys(keys) if keys.len() == 2));
        assert!(
            matches!(&agents[1].source, SshSource::Socket { path, raw: false } if path.ends_with("socket"))
        );
        assert!(!format!("{agents:?}").contains("BEGIN"));
        drop(listener);
    }
}
