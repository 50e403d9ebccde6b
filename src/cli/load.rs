//! `--load`: which engine the image goes to.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::env_vars;
use super::environment::Environment;
use super::error::CliError;
use crate::registry::ImageEngine;

/// The Docker engine that `DOCKER_HOST` names; else one that answers at a usual place; else podman.
pub(super) fn engine(environment: &Environment) -> Result<ImageEngine, CliError> {
    if let Some(host) = environment.text(env_vars::DOCKER_HOST).filter(|host| !host.is_empty()) {
        return docker_host(host);
    }
    let mut sockets = vec![PathBuf::from("/var/run/docker.sock")];
    if let Some(directory) = environment.variable(env_vars::XDG_RUNTIME_DIR) {
        sockets.insert(0, Path::new(directory).join("docker.sock"));
    }
    // A socket that nobody answers on is what a daemon that was stopped leaves.
    if let Some(socket) = sockets.into_iter().find(|socket| UnixStream::connect(socket).is_ok()) {
        return Ok(ImageEngine::DockerSocket(socket));
    }
    let path = environment.variable(env_vars::PATH).unwrap_or_default();
    let podman = std::env::split_paths(path)
        .map(|directory| directory.join("podman"))
        .find(|program| program.is_file());
    match podman {
        Some(program) => Ok(ImageEngine::Podman { program, environment: rootless() }),
        None => Err(CliError::message("there is neither a Docker engine nor podman to load the image into")
            .hint("set DOCKER_HOST, or write an archive with `-o type=docker,dest=image.tar`")),
    }
}

fn docker_host(host: &str) -> Result<ImageEngine, CliError> {
    if let Some(path) = host.strip_prefix("unix://") {
        return Ok(ImageEngine::DockerSocket(path.into()));
    }
    if let Some(address) = host.strip_prefix("tcp://").or(host.strip_prefix("http://")) {
        return Ok(ImageEngine::DockerAddress(address.trim_end_matches('/').to_owned()));
    }
    Err(CliError::message(format!("DOCKER_HOST is `{host}`, which `--load` cannot reach"))
        .hint("use unix:// or tcp://, or write an archive with `-o type=docker,dest=image.tar`"))
}

/// What tells podman that this process has become root in a user namespace as podman itself would have, so that it
/// takes the user's images for the user's and not for root's.
fn rootless() -> Vec<(String, String)> {
    let id = |file: &str| {
        let map = fs_err::read_to_string(file).ok()?;
        let mut fields = map.lines().next()?.split_whitespace().map(str::to_owned);
        let (inside, outside) = (fields.next()?, fields.next()?);
        (inside == "0" && outside != "0").then_some(outside)
    };
    match (id("/proc/self/uid_map"), id("/proc/self/gid_map")) {
        (Some(uid), Some(gid)) => [
            ("_CONTAINERS_USERNS_CONFIGURED", "done".to_owned()),
            ("_CONTAINERS_ROOTLESS_UID", uid),
            ("_CONTAINERS_ROOTLESS_GID", gid),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_decides() {
        let environment = |variables: &[(&str, &str)]| Environment {
            variables: variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            ..Environment::default()
        };
        let host = |host: &str| engine(&environment(&[("DOCKER_HOST", host)]));
        assert_eq!(host("unix:///s").unwrap(), ImageEngine::DockerSocket("/s".into()));
        assert_eq!(host("tcp://h:2375/").unwrap(), ImageEngine::DockerAddress("h:2375".into()));
        assert!(host("ssh://h").unwrap_err().render(false).contains("ssh://h"));
    }
}
