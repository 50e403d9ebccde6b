//! The build context and the Dockerfile: what the command line says of them, found on this machine, or left for the
//! engine to fetch.

use std::ffi::OsString;
use std::io::{self, Read, Write as _};
use std::path::Path;
use std::sync::Arc;

use fs_err as fs;

use super::args::BuildArgs;
use super::backend;
use super::env_vars;
use super::environment::Environment;
use super::error::CliError;
use super::request::read_bounded;
use crate::build::{ContextArchive, ContextSource, DockerfileText, RemoteDockerfile};
use crate::context::archive::{HEAD_BYTES, is_archive};
use crate::context::git::Git;
use crate::context::remote::{RemoteSource, is_url, shown};
use crate::digest::Hashing;

/// A Dockerfile or an ignore file larger than this is a mistake; BuildKit refuses it too.
const DOCKERFILE_BYTES_MAX: u64 = 16 << 20;

/// A larger context is a mistake, such as an endless stream.
const CONTEXT_BYTES_MAX: u64 = 64 << 30;

/// Where the parts of a build come from.
#[derive(Debug)]
pub(super) struct Sources {
    /// The Dockerfile; empty if it has to be fetched.
    pub(super) dockerfile: DockerfileText,
    /// Where it has to be fetched from.
    pub(super) remote_dockerfile: Option<RemoteDockerfile>,
    /// The build context.
    pub(super) context: ContextSource,
}

impl Sources {
    /// Finds them. `stdin` is read only if the command line says `-`.
    pub(super) fn find(
        args: &BuildArgs,
        environment: &Environment,
        stdin: &mut dyn Read,
    ) -> Result<Self, CliError> {
        let context = args.context.as_str();
        let file = args.file.as_deref();
        if context == "-" {
            return Self::of_stdin(args, environment, stdin);
        }
        let directory = environment.absolute(Path::new(context));
        let is_directory = fs::metadata(&directory).is_ok_and(|metadata| metadata.is_dir());
        let remote = if is_directory { None } else { remote_context(context)? };
        if let Some(remote) = remote {
            let context = ContextSource::Remote(remote);
            return match file {
                Some("-") => Ok(Self::local(dockerfile_from_stdin(environment, stdin)?, context)),
                Some(file) if is_url(file) => {
                    Ok(Self::remote(RemoteDockerfile::Url(file.to_owned()), context))
                }
                Some(file) if Path::new(file).is_absolute() => {
                    Ok(Self::local(dockerfile_from(file.to_owned(), Path::new(file))?, context))
                }
                file => Ok(Self::remote(RemoteDockerfile::InContext(file.map(str::to_owned)), context)),
            };
        }
        check_directory(context, &directory)?;
        let source = ContextSource::Directory(directory.clone());
        Ok(match file {
            Some("-") => Self::local(dockerfile_from_stdin(environment, stdin)?, source),
            Some(file) if is_url(file) => Self::remote(RemoteDockerfile::Url(file.to_owned()), source),
            Some(file) => {
                let path = environment.absolute(Path::new(file));
                Self::local(dockerfile_from(file.to_owned(), &path)?, source)
            }
            None => {
                let name = |file: &str| Path::new(context).join(file).display().to_string();
                let upper = directory.join("Dockerfile");
                let lower = directory.join("dockerfile");
                let dockerfile = if upper.exists() || !lower.exists() {
                    dockerfile_from(name("Dockerfile"), &upper)?
                } else {
                    dockerfile_from(name("dockerfile"), &lower)?
                };
                Self::local(dockerfile, source)
            }
        })
    }

    fn local(dockerfile: DockerfileText, context: ContextSource) -> Self {
        Self { dockerfile, remote_dockerfile: None, context }
    }

    fn remote(from: RemoteDockerfile, context: ContextSource) -> Self {
        let name = match &from {
            RemoteDockerfile::InContext(path) => path.clone().unwrap_or_else(|| "Dockerfile".to_owned()),
            RemoteDockerfile::Url(url) => shown(url),
        };
        let dockerfile = DockerfileText { name, text: Vec::new(), ignore: None };
        Self { dockerfile, remote_dockerfile: Some(from), context }
    }

    /// A tar on standard input is the context, anything else is a Dockerfile without one.
    fn of_stdin(args: &BuildArgs, environment: &Environment, stdin: &mut dyn Read) -> Result<Self, CliError> {
        let file = args.file.as_deref();
        if file == Some("-") {
            return Err(CliError::usage("the Dockerfile and the context cannot both be standard input"));
        }
        refuse_terminal(environment, "the build context")?;
        let mut head = Vec::new();
        stdin.take(HEAD_BYTES as u64).read_to_end(&mut head).map_err(stdin_error)?;
        if is_archive(&head) {
            let archive = spool(args, environment, &mut head.as_slice().chain(stdin))?;
            let from = match file {
                Some(file) if is_url(file) => RemoteDockerfile::Url(file.to_owned()),
                file => RemoteDockerfile::InContext(file.map(str::to_owned)),
            };
            return Ok(Self::remote(from, ContextSource::Archive(archive)));
        }
        if file.is_some() {
            let error = CliError::usage(
                "standard input is no tar, so it is a Dockerfile, and `--file` names another",
            );
            return Err(
                error.hint("leave out `--file`, or send a tar: `tar c . | crossdock build -f FILE -`")
            );
        }
        let dockerfile = read_dockerfile(&mut head.as_slice().chain(stdin))?;
        Ok(Self::local(dockerfile, ContextSource::Empty))
    }
}

/// What `context` names, if it is fetched.
fn remote_context(context: &str) -> Result<Option<RemoteSource>, CliError> {
    RemoteSource::of_context(context)
        .map_err(|error| CliError::usage(format!("the build context `{}`: {error}", shown(context))))
}

fn check_directory(context: &str, directory: &Path) -> Result<(), CliError> {
    let metadata = fs::metadata(directory).map_err(|error| {
        let missing = error.kind() == io::ErrorKind::NotFound;
        let error = CliError::failure(
            anyhow::Error::new(error).context(format!("the build context `{context}` cannot be read")),
        );
        if missing { error.hint("the last argument is the context's directory, often `.`") } else { error }
    })?;
    if metadata.is_dir() {
        return Ok(());
    }
    let error = CliError::message(format!("the build context `{context}` is not a directory"));
    Err(error.hint("a Dockerfile is given with `--file`, the context's directory as the last argument"))
}

fn dockerfile_from(name: String, path: &Path) -> Result<DockerfileText, CliError> {
    let text = read_bounded(path, DOCKERFILE_BYTES_MAX).map_err(|error| {
        let missing = error.kind() == io::ErrorKind::NotFound;
        let error = CliError::failure(
            anyhow::Error::new(error).context(format!("the Dockerfile `{name}` cannot be read")),
        );
        if missing {
            error.hint("name it with `--file`; a relative path is relative to the working directory")
        } else {
            error
        }
    })?;
    let mut ignore_path = path.as_os_str().to_owned();
    ignore_path.push(".dockerignore");
    let ignore = match read_bounded(Path::new(&ignore_path), DOCKERFILE_BYTES_MAX) {
        Ok(text) => Some((format!("{name}.dockerignore"), text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(CliError::failure(error)),
    };
    Ok(DockerfileText { name, text, ignore })
}

fn refuse_terminal(environment: &Environment, what: &str) -> Result<(), CliError> {
    if environment.stdin_is_terminal {
        let message = format!("{what} is to come from standard input, which is a terminal");
        return Err(CliError::usage(message).hint("redirect a file: `crossdock build - < Dockerfile`"));
    }
    Ok(())
}

fn stdin_error(error: io::Error) -> CliError {
    CliError::failure(anyhow::Error::new(error).context("reading standard input"))
}

fn dockerfile_from_stdin(
    environment: &Environment,
    stdin: &mut dyn Read,
) -> Result<DockerfileText, CliError> {
    refuse_terminal(environment, "the Dockerfile")?;
    let dockerfile = read_dockerfile(stdin)?;
    if is_archive(&dockerfile.text) {
        let error =
            CliError::message("standard input is an archive, and not the Dockerfile that `-f -` says it is");
        return Err(error.hint("an archive is the context: `crossdock build - < context.tar`"));
    }
    Ok(dockerfile)
}

fn read_dockerfile(stdin: &mut dyn Read) -> Result<DockerfileText, CliError> {
    let mut text = Vec::new();
    stdin.take(DOCKERFILE_BYTES_MAX + 1).read_to_end(&mut text).map_err(stdin_error)?;
    if text.len() as u64 > DOCKERFILE_BYTES_MAX {
        return Err(CliError::message("the Dockerfile on standard input is larger than 16 MiB"));
    }
    Ok(DockerfileText { name: "-".to_owned(), text, ignore: None })
}

/// Stores an archive in a file without a name, where the local cache is: there is room for it, and nothing is left of it
/// whatever happens.
fn spool(
    args: &BuildArgs,
    environment: &Environment,
    stdin: &mut dyn Read,
) -> Result<ContextArchive, CliError> {
    let directory = backend::local_cache(args.cache.local.local_cache.as_deref(), environment)?;
    let failed = |error: io::Error| {
        let context = format!("storing the build context in {}", directory.display());
        CliError::system(anyhow::Error::new(error).context(context))
    };
    fs::create_dir_all(&directory).map_err(failed)?;
    let mut hashing = Hashing::new(tempfile::tempfile_in(&directory).map_err(failed)?);
    let mut stdin = stdin.take(CONTEXT_BYTES_MAX + 1);
    let mut buffer = vec![0; 256 << 10];
    let mut size: u64 = 0;
    loop {
        let count = match stdin.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(stdin_error(error)),
        };
        size += count as u64;
        if size > CONTEXT_BYTES_MAX {
            let message = format!("the context on standard input is larger than {CONTEXT_BYTES_MAX} bytes");
            return Err(CliError::message(message));
        }
        hashing.write_all(&buffer[..count]).map_err(failed)?;
    }
    let (file, digest, _) = hashing.finish();
    Ok(ContextArchive { file: Arc::new(file), size, digest })
}

/// What `git` may know of the environment: where programs, proxies and certificates are.
pub(super) fn git(environment: &Environment) -> Git {
    let names = [env_vars::PATH].into_iter().chain(env_vars::FOR_GIT.iter().copied());
    let variable = |name: &str| {
        let value = environment.variable(name)?;
        Some((OsString::from(name), value.to_owned()))
    };
    let known_hosts = environment.home().map(|home| home.join(".ssh/known_hosts"));
    Git {
        environment: names.filter_map(variable).collect(),
        known_hosts: known_hosts.into_iter().collect(),
        ..Git::default()
    }
}
