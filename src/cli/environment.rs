//! What a command takes from the process it runs in: variables, directories, terminals, the clock.
//!
//! Read once at the start. Tests make their own.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use super::config::Config;
use super::env_vars;

/// The surroundings of a command.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// The environment variables.
    pub variables: BTreeMap<OsString, OsString>,
    /// The working directory, absolute.
    pub directory: PathBuf,
    /// Whether standard output is a terminal.
    pub stdout_is_terminal: bool,
    /// Whether standard error is a terminal.
    pub stderr_is_terminal: bool,
    /// Whether standard input is a terminal.
    pub stdin_is_terminal: bool,
    /// The configuration file of this machine, for all its users; there or not.
    pub machine_config: Option<PathBuf>,
    /// Where podman keeps credentials if there is no `XDG_RUNTIME_DIR`; there or not.
    pub podman_run: Option<PathBuf>,
    /// Directories with certificates by registry, for all users of this machine; there or not.
    pub machine_certificates: Vec<PathBuf>,
    /// What the configuration file says.
    pub config: Config,
}

impl Environment {
    /// The surroundings of this process.
    pub fn of_process() -> std::io::Result<Self> {
        Ok(Self {
            variables: std::env::vars_os().collect(),
            directory: std::env::current_dir()?,
            stdout_is_terminal: std::io::stdout().is_terminal(),
            stderr_is_terminal: std::io::stderr().is_terminal(),
            stdin_is_terminal: std::io::stdin().is_terminal(),
            machine_config: Some("/etc/crossdock/config.toml".into()),
            podman_run: Some(format!("/run/containers/{}", rustix::process::geteuid().as_raw()).into()),
            machine_certificates: ["/etc/containers/certs.d", "/etc/docker/certs.d"]
                .map(PathBuf::from)
                .into(),
            config: Config::default(),
        })
    }

    /// The variable `name`, if it is set and not empty.
    pub fn variable(&self, name: &str) -> Option<&OsStr> {
        self.variables.get(OsStr::new(name)).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }

    /// The variable `name` as text, if it is set (it may be empty) and is UTF-8.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.variables.get(OsStr::new(name)).and_then(|value| value.to_str())
    }

    /// The home directory.
    pub fn home(&self) -> Option<PathBuf> {
        self.variable(env_vars::HOME).map(PathBuf::from)
    }

    /// The default directory of the local cache; `None` if there is neither `XDG_CACHE_HOME` nor a home directory.
    pub fn default_cache(&self) -> Option<PathBuf> {
        // The XDG specification says that a relative path is to be ignored.
        let xdg =
            self.variable(env_vars::XDG_CACHE_HOME).map(PathBuf::from).filter(|path| path.is_absolute());
        let base = xdg.or_else(|| Some(self.home()?.join(".cache")))?;
        Some(base.join("crossdock"))
    }

    /// Where a configuration file may be: the user's, then the machine's.
    pub fn default_configs(&self) -> Vec<PathBuf> {
        let machine = self.machine_config.clone();
        self.user_config("crossdock/config.toml").into_iter().chain(machine).collect()
    }

    /// A file below the directory of the user's configuration.
    fn user_config(&self, file: &str) -> Option<PathBuf> {
        let xdg =
            self.variable(env_vars::XDG_CONFIG_HOME).map(PathBuf::from).filter(|path| path.is_absolute());
        Some(xdg.or_else(|| Some(self.home()?.join(".config")))?.join(file))
    }

    /// The files with credentials for registries, those that may be there; what the first has counts. Docker's, then
    /// podman's as containers-auth.json(5) names them.
    pub fn credential_files(&self) -> Vec<PathBuf> {
        let docker = self.docker_config().map(|directory| directory.join("config.json"));
        let podman = match self.variable(env_vars::REGISTRY_AUTH_FILE) {
            Some(file) => vec![self.absolute(Path::new(file))],
            None => {
                let runtime = self.variable(env_vars::XDG_RUNTIME_DIR);
                let primary = match runtime {
                    Some(directory) => Some(Path::new(directory).join("containers/auth.json")),
                    None => self.podman_run.as_ref().map(|directory| directory.join("auth.json")),
                };
                primary.into_iter().chain(self.user_config("containers/auth.json")).collect()
            }
        };
        docker.into_iter().chain(podman).collect()
    }

    /// Directories with certificates by registry: the user's, then the machine's; there or not.
    pub fn certificate_directories(&self) -> Vec<PathBuf> {
        let machines = self.machine_certificates.iter().cloned();
        self.user_config("containers/certs.d").into_iter().chain(machines).collect()
    }

    /// The directory of the Docker client's configuration.
    pub fn docker_config(&self) -> Option<PathBuf> {
        self.variable(env_vars::DOCKER_CONFIG)
            .map(PathBuf::from)
            .or_else(|| Some(self.home()?.join(".docker")))
    }

    /// Whether what is written to standard error may have colours (<https://no-color.org>,
    /// <https://bixense.com/clicolors>).
    pub fn colours(&self) -> bool {
        if self.variable(env_vars::NO_COLOR).is_some() {
            return false;
        }
        if self.variable(env_vars::CLICOLOR_FORCE).is_some_and(|value| value != "0") {
            return true;
        }
        self.stderr_is_terminal && !self.is_dumb()
    }

    /// Whether standard error is a terminal that can move its cursor.
    pub fn is_live_terminal(&self) -> bool {
        self.stderr_is_terminal && !self.is_dumb()
    }

    fn is_dumb(&self) -> bool {
        self.variable(env_vars::TERM).is_some_and(|term| term == "dumb")
    }

    /// `path` made absolute. Symbolic links and `..` stay as they are.
    pub fn absolute(&self, path: &Path) -> PathBuf {
        self.directory.join(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)], terminal: bool) -> Environment {
        Environment {
            variables: variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            stderr_is_terminal: terminal,
            ..Environment::default()
        }
    }

    #[test]
    fn colours_follow_the_conventions() {
        for (variables, terminal, expected) in [
            (&[][..], true, true),
            (&[][..], false, false),
            (&[("NO_COLOR", "1"), ("CLICOLOR_FORCE", "1")][..], true, false),
            (&[("NO_COLOR", "")][..], true, true),
            (&[("CLICOLOR_FORCE", "1")][..], false, true),
            (&[("CLICOLOR_FORCE", "0")][..], false, false),
            (&[("TERM", "dumb")][..], true, false),
        ] {
            assert_eq!(environment(variables, terminal).colours(), expected, "{variables:?} {terminal}");
        }
    }

    #[test]
    fn the_cache_is_in_the_xdg_directory() {
        let cache = |variables| environment(variables, false).default_cache();
        assert_eq!(cache(&[("HOME", "/h")]), Some("/h/.cache/crossdock".into()));
        assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), Some("/x/crossdock".into()));
        assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "x")]), Some("/h/.cache/crossdock".into()));
        assert_eq!(cache(&[]), None);
    }

    #[test]
    fn credentials_are_where_docker_and_podman_keep_them() {
        let files = |variables| {
            let environment = Environment {
                directory: "/work".into(),
                podman_run: Some("/run/containers/7".into()),
                ..environment(variables, false)
            };
            let files = environment.credential_files();
            files.into_iter().map(|path| path.into_os_string().into_string().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(
            files(&[("HOME", "/h")]),
            ["/h/.docker/config.json", "/run/containers/7/auth.json", "/h/.config/containers/auth.json"]
        );
        assert_eq!(
            files(&[
                ("HOME", "/h"),
                ("XDG_RUNTIME_DIR", "/r"),
                ("XDG_CONFIG_HOME", "/c"),
                ("DOCKER_CONFIG", "/d")
            ]),
            ["/d/config.json", "/r/containers/auth.json", "/c/containers/auth.json"]
        );
        // A file that is named is podman's only one.
        assert_eq!(
            files(&[("HOME", "/h"), ("XDG_RUNTIME_DIR", "/r"), ("REGISTRY_AUTH_FILE", "a.json")]),
            ["/h/.docker/config.json", "/work/a.json"]
        );
        assert_eq!(files(&[]), ["/run/containers/7/auth.json"]);
    }
}
