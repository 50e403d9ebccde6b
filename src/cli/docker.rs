//! Flags of `docker build` and `docker buildx build` that stand in people's scripts and have no meaning here: accepted,
//! and answered with what is there instead. What the result would lack is refused.

use clap::Args;
use clap::builder::BoolishValueParser;

use super::error::CliError;

/// The flags. None of them is in the help.
#[derive(Debug, Clone, Default, Args)]
pub struct DockerFlags {
    /// Where BuildKit's cache comes from.
    #[arg(long, hide = true, value_name = "SPEC")]
    cache_from: Vec<String>,
    /// Where BuildKit's cache goes to.
    #[arg(long, hide = true, value_name = "SPEC")]
    cache_to: Vec<String>,
    /// The builder instance: there is no daemon.
    #[arg(long, hide = true, value_name = "NAME")]
    builder: Option<String>,
    /// Remove intermediate containers: there are none.
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", value_parser = BoolishValueParser::new())]
    rm: Option<bool>,
    /// As `rm`.
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", value_parser = BoolishValueParser::new())]
    force_rm: Option<bool>,
    /// Compress the context on its way to the daemon.
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", value_parser = BoolishValueParser::new())]
    compress: Option<bool>,
    /// Container isolation, of Windows.
    #[arg(long, hide = true, value_name = "KIND")]
    isolation: Option<String>,
    /// The control group of steps.
    #[arg(long, hide = true, value_name = "PATH")]
    cgroup_parent: Option<String>,
    /// A limit of the classic builder.
    #[arg(short, long, hide = true, value_name = "SIZE")]
    memory: Option<String>,
    /// As `memory`.
    #[arg(long, hide = true, value_name = "SIZE")]
    memory_swap: Option<String>,
    /// As `memory`.
    #[arg(short, long, hide = true, value_name = "SHARES")]
    cpu_shares: Option<String>,
    /// As `memory`.
    #[arg(long, hide = true, value_name = "TIME")]
    cpu_period: Option<String>,
    /// As `memory`.
    #[arg(long, hide = true, value_name = "TIME")]
    cpu_quota: Option<String>,
    /// As `memory`.
    #[arg(long, hide = true, value_name = "CPUS")]
    cpuset_cpus: Option<String>,
    /// As `memory`.
    #[arg(long, hide = true, value_name = "NODES")]
    cpuset_mems: Option<String>,
    /// Statements about how the image was made.
    #[arg(long, hide = true, value_name = "SPEC")]
    provenance: Option<String>,
    /// A list of what is in the image.
    #[arg(long, hide = true, value_name = "SPEC")]
    sbom: Option<String>,
    /// Both of these.
    #[arg(long, hide = true, value_name = "SPEC")]
    attest: Vec<String>,
}

impl DockerFlags {
    /// An error if the result would lack what was asked for.
    pub(super) fn refuse(&self) -> Result<(), CliError> {
        if self.sbom.as_deref().is_some_and(is_on) || self.attests("sbom") {
            return Err(CliError::next_version("an SBOM (`--sbom`, `--attest type=sbom`)")
                .hint("make it from the finished image, for example with `syft`"));
        }
        Ok(())
    }

    /// What to say about the flags that were given.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if !self.cache_from.is_empty() || !self.cache_to.is_empty() {
            warnings.push(
                "`--cache-from` and `--cache-to` are ignored: every step is read from the cache that `--cache` or \
                 CROSSDOCK_CACHE names, and written to it"
                    .to_owned(),
            );
        }
        if self.provenance.as_deref().is_some_and(is_on) || self.attests("provenance") {
            warnings.push("`--provenance` is ignored: no statement is attached to the image".to_owned());
        }
        let limits = [
            ("--cgroup-parent", &self.cgroup_parent),
            ("--memory", &self.memory),
            ("--memory-swap", &self.memory_swap),
            ("--cpu-shares", &self.cpu_shares),
            ("--cpu-period", &self.cpu_period),
            ("--cpu-quota", &self.cpu_quota),
            ("--cpuset-cpus", &self.cpuset_cpus),
            ("--cpuset-mems", &self.cpuset_mems),
        ];
        for (flag, _) in limits.iter().filter(|(_, value)| value.is_some()) {
            warnings.push(format!(
                "`{flag}` is ignored: steps run within the limits that Crossdock itself was started with"
            ));
        }
        warnings
    }

    fn attests(&self, kind: &str) -> bool {
        self.attest.iter().any(|spec| {
            let mut fields = spec.split(',');
            fields.clone().any(|field| field == format!("type={kind}"))
                && !fields.any(|field| field == "disabled=true")
        })
    }
}

/// Whether an attestation's value asks for it.
fn is_on(value: &str) -> bool {
    !matches!(value, "false" | "0" | "disabled=true")
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::args::{Cli, Command};

    fn flags(line: &str) -> DockerFlags {
        let words = ["crossdock", "build"].into_iter().chain(line.split_whitespace());
        match Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}")).command {
            Command::Build(build) => build.build.docker,
            _ => unreachable!(),
        }
    }

    /// What stands in workflows, pipelines and makefiles behind `docker build` and `docker buildx build`.
    #[test]
    fn common_command_lines_are_taken_as_they_are() {
        for (line, warnings) in [
            (".", 0),
            ("-t app .", 0),
            ("-t app -f docker/Dockerfile .", 0),
            ("--rm -t app .", 0),
            ("--force-rm=true --rm=false --compress -t app:latest .", 0),
            ("--tag app --file Dockerfile.prod --build-arg VERSION=1.2 --build-arg http_proxy .", 0),
            ("--pull --no-cache -t app .", 0),
            ("--target test --progress=plain .", 0),
            ("--builder mybuilder --platform linux/amd64 --push -t r.example/a:1 .", 0),
            ("--iidfile /tmp/i --metadata-file /tmp/m --provenance=false --push -t r.example/a .", 0),
            (
                "--cache-from type=gha --cache-to type=gha,mode=max --iidfile i --provenance mode=min,inline-only=true \
                 --tag r.example/a:1 --metadata-file m --push .",
                2,
            ),
            ("--cache-from r.example/a:cache --cache-to type=inline -t a .", 1),
            ("--attest type=provenance,mode=max --sbom=false -t a .", 1),
            ("--attest type=provenance,disabled=true -t a .", 0),
            ("--provenance=true -t a .", 1),
            ("-m 2g --memory-swap 4g -c 512 --cpuset-cpus 0-1 -t a .", 4),
            ("--isolation=default --label org.opencontainers.image.revision=abc -t a .", 0),
            ("--output type=local,dest=out --target bin .", 0),
            ("-o out .", 0),
            ("--secret id=npm,src=.npmrc --secret id=T,env=TOKEN --network host --allow network.host .", 0),
            ("--build-context base=docker-image://alpine:3 --build-context src=../src .", 0),
            ("--add-host db:10.0.0.1 --shm-size=1g --ulimit nofile=1024:2048 --cgroup-parent x .", 1),
            ("--annotation manifest:a=b -q .", 0),
        ] {
            let flags = flags(line);
            flags.refuse().unwrap_or_else(|error| panic!("{line}: {}", error.render(false)));
            assert_eq!(flags.warnings().len(), warnings, "{line}: {:?}", flags.warnings());
        }
    }

    #[test]
    fn a_list_of_contents_that_would_not_be_made_is_refused() {
        for line in [
            "--sbom=true .",
            "--sbom generator=x .",
            "--attest type=sbom .",
            "--attest type=sbom,generator=x .",
        ] {
            assert!(flags(line).refuse().is_err(), "{line}");
        }
    }
}
