//! From the command line to a [`BuildRequest`]: everything that is named is found and read here.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use fs_err as fs;

use super::args::{BuildArgs, BuildCommand, CacheMounts};
use super::csv;
use super::env_vars;
use super::environment::Environment;
use super::error::CliError;
use super::output::{is_stdout, resolve};
use super::sources::Sources;
use super::values::{BuildArg, BuildContextSpec};
use super::{load, proxies, secrets, ssh};
use crate::build::{
    Annotation, BuildRequest, CacheMountOptions, CacheMountStores, ImageFormat, LayerCompression,
    NamedContext, Output, VerifyHits,
};
use crate::layer::Timestamp;
use crate::platform::Platform;

/// What `crossdock build` asks for. `stdin` is read only if the command line says `-`.
pub(super) fn of_build(
    command: &BuildCommand,
    environment: &Environment,
    stdin: &mut dyn Read,
) -> Result<BuildRequest, CliError> {
    command.build.docker.refuse()?;
    let mut request = of_args(&command.build, environment, stdin)?;
    request.tags.clone_from(&command.tag);
    request.annotations = command.annotation.iter().flat_map(|given| given.0.iter().cloned()).collect();
    request.dry_run = command.dry_run;
    let (outputs, format) = outputs(command, environment, &mut request.annotations)?;
    request.outputs = outputs;
    request.format = format;
    Ok(request)
}

/// Another choice in each build.
fn verify_hits(percent: u8) -> Result<Option<VerifyHits>, CliError> {
    if percent == 0 {
        return Ok(None);
    }
    let mut seed = [0; 8];
    // So few bytes come at once or not at all.
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| CliError::system(std::io::Error::from(error)))?;
    Ok(Some(VerifyHits { percent, seed: u64::from_le_bytes(seed) }))
}

/// What the flags that `build` and `fingerprint` share ask for.
pub(crate) fn of_args(
    args: &BuildArgs,
    environment: &Environment,
    stdin: &mut dyn Read,
) -> Result<BuildRequest, CliError> {
    let stdin_is_taken = args.context == "-" || args.file.as_deref() == Some("-");
    secrets::check_stdin(&args.secret, stdin_is_taken, environment)?;
    let Sources { dockerfile, remote_dockerfile, context } = Sources::find(args, environment, stdin)?;
    let unkeyed = args.unkeyed_arg.iter().filter(|arg| !is_only_named(arg, &args.build_arg));
    let given: Vec<BuildArg> = args.build_arg.iter().chain(unkeyed).cloned().collect();
    let mut build_args = build_args(&given, environment);
    proxies::add(environment.docker_config().as_deref(), &mut build_args);
    let source_date_epoch = source_date_epoch(&build_args)?;
    let mut platforms: Vec<Platform> = Vec::new();
    for platform in &args.platform {
        if !platforms.contains(platform) {
            platforms.push(platform.clone());
        }
    }
    let multi_platform = multi_platform(&build_args, platforms.len())?;
    Ok(BuildRequest {
        dockerfile,
        remote_dockerfile,
        context,
        build_args,
        unkeyed_args: args.unkeyed_arg.iter().map(|arg| arg.name.clone()).collect(),
        build_contexts: build_contexts(&args.build_context, environment)?,
        target: args.target.clone().filter(|target| !target.is_empty()),
        platforms,
        multi_platform,
        tags: Vec::new(),
        labels: args.label.clone(),
        annotations: Vec::new(),
        no_cache: args.no_cache,
        trace: !args.no_trace,
        #[cfg(debug_assertions)]
        blind: environment.text("CROSSDOCK_BLIND").map(str::to_owned),
        verify_hits: verify_hits(args.verify_hits)?,
        cache_mounts: CacheMountOptions {
            stores: match args.cache_mounts {
                CacheMounts::Remote => CacheMountStores::Remote,
                CacheMounts::Local => CacheMountStores::Local,
                CacheMounts::Off => CacheMountStores::Off,
            },
            size_max: args.cache_mount_size.0,
            content_times: !args.no_content_times,
        },
        no_cache_filter: args.no_cache_filter.clone(),
        pull: args.pull,
        network: args.network,
        extra_hosts: args.add_host.clone(),
        shm_size: args.shm_size.0,
        ulimits: args.ulimit.clone(),
        secrets: secrets::resolve(&args.secret, environment, stdin)?,
        ssh: ssh::resolve(&args.ssh, environment)?,
        allow: args.allow.clone(),
        outputs: Vec::new(),
        format: ImageFormat::default(),
        source_date_epoch,
        dry_run: false,
    })
}

/// Reads a file of at most `limit` bytes.
pub(super) fn read_bounded(path: &Path, limit: u64) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    fs::File::open(path)?.take(limit + 1).read_to_end(&mut text)?;
    if text.len() as u64 > limit {
        let message = format!("`{}` is larger than {limit} bytes", path.display());
        return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, message));
    }
    Ok(text)
}

/// `--build-arg`, with values from the environment where they are absent (and no argument at all where the
/// environment has none, as in Docker), and `SOURCE_DATE_EPOCH`.
fn build_args(given: &[BuildArg], environment: &Environment) -> Vec<(String, String)> {
    let mut args: Vec<(String, String)> = given
        .iter()
        .filter_map(|arg| {
            let value = arg.value.clone().or_else(|| environment.text(&arg.name).map(str::to_owned))?;
            Some((arg.name.clone(), value))
        })
        .collect();
    let name = env_vars::SOURCE_DATE_EPOCH;
    if !given.iter().any(|arg| arg.name == name)
        && let Some(value) = environment.text(name)
        && !value.is_empty()
    {
        args.push((name.to_owned(), value.to_owned()));
    }
    args
}

/// Whether `--unkeyed-arg` says no more than how an argument is keyed that `--build-arg` sets.
fn is_only_named(arg: &BuildArg, set: &[BuildArg]) -> bool {
    arg.value.is_none() && set.iter().any(|set| set.name == arg.name)
}

/// Whether the result is an index: where there are several platforms, or the build argument says so
/// (`frontend/dockerui/config.go`).
fn multi_platform(args: &[(String, String)], platforms: usize) -> Result<bool, CliError> {
    let name = "BUILDKIT_MULTI_PLATFORM";
    let given = args.iter().rev().find(|(key, _)| key == name).filter(|(_, value)| !value.is_empty());
    let Some((_, value)) = given else { return Ok(platforms > 1) };
    let wanted = csv::boolean(name, value).map_err(CliError::usage)?;
    if !wanted && platforms > 1 {
        let message = format!("{name} is `{value}`, and there are {platforms} platforms");
        return Err(CliError::usage(message).hint("give one --platform, or leave the argument out"));
    }
    Ok(wanted)
}

fn source_date_epoch(args: &[(String, String)]) -> Result<Option<Timestamp>, CliError> {
    let name = env_vars::SOURCE_DATE_EPOCH;
    let Some((_, value)) = args.iter().rev().find(|(key, _)| key == name) else { return Ok(None) };
    if value.is_empty() {
        return Ok(None);
    }
    match value.parse::<u32>() {
        // Times after 2106 have no place in gzip and other formats, and are a mistake in practice.
        Ok(seconds) => Ok(Some(Timestamp { seconds: seconds.into(), nanos: 0 })),
        // It may be a name, and what it is the name of stands in the Dockerfile.
        Err(_) if value.parse::<i128>().is_err() => Ok(None),
        Err(_) => Err(CliError::message(format!(
            "{name} is `{value}`, which is not a number of seconds since 1970"
        ))
        .hint("for the time of the last commit: SOURCE_DATE_EPOCH=$(git log -1 --pretty=%ct)")),
    }
}

fn build_contexts(
    given: &[BuildContextSpec],
    environment: &Environment,
) -> Result<BTreeMap<String, NamedContext>, CliError> {
    let mut contexts = BTreeMap::new();
    for spec in given {
        let source = match &spec.source {
            NamedContext::Directory(path) => {
                let absolute = environment.absolute(path);
                let metadata = fs::metadata(&absolute).map_err(|error| {
                    let context =
                        format!("the build context `{}={}` cannot be read", spec.name, path.display());
                    CliError::failure(anyhow::Error::new(error).context(context))
                })?;
                if metadata.is_dir() {
                    NamedContext::Directory(absolute)
                } else {
                    NamedContext::Archive(absolute)
                }
            }
            NamedContext::Archive(path) => NamedContext::Archive(environment.absolute(path)),
            NamedContext::OciLayout(place) => {
                NamedContext::OciLayout(environment.absolute(Path::new(place)).display().to_string())
            }
            other => other.clone(),
        };
        contexts.insert(spec.name.clone(), source);
    }
    Ok(contexts)
}

fn outputs(
    command: &BuildCommand,
    environment: &Environment,
    annotations: &mut Vec<Annotation>,
) -> Result<(Vec<Output>, ImageFormat), CliError> {
    let mut outputs = Vec::new();
    let mut is_loaded = command.load;
    for spec in &command.output {
        is_loaded |= spec.load;
        annotations.extend(spec.annotations.iter().cloned());
        if let Some(output) = &spec.output {
            outputs.push(resolve(output.clone(), |path| environment.absolute(&path)));
        }
    }
    let format = format(command, annotations, environment)?;
    if is_loaded {
        outputs.push(Output::Load { engine: load::engine(environment)? });
    }
    if command.push {
        let mut found = false;
        for output in &mut outputs {
            if let Output::Image { push, .. } = output {
                *push = true;
                found = true;
            }
        }
        if !found {
            outputs.push(Output::Image { push: true, names: Vec::new() });
        }
    }
    for output in &outputs {
        if let Output::Image { push: true, names } = output
            && names.is_empty()
            && command.tag.is_empty()
        {
            return Err(CliError::usage("the image is to be pushed and has no name")
                .hint("name it with `--tag registry/repository:tag`"));
        }
    }
    let to_stdout = outputs.iter().filter(|output| is_stdout(output)).count();
    if to_stdout > 1 {
        return Err(CliError::usage("only one output can go to standard output"));
    }
    if to_stdout == 1 && command.quiet {
        return Err(CliError::usage("`--quiet` prints the digest to standard output, where the output goes")
            .hint("use `--progress quiet`"));
    }
    if to_stdout == 1 && environment.stdout_is_terminal {
        return Err(CliError::usage("refusing to write an archive to a terminal")
            .hint("redirect standard output, or give `dest=FILE`"));
    }
    Ok((outputs, format))
}

/// How images are written: one way for all outputs of a build.
fn format(
    command: &BuildCommand,
    annotations: &[Annotation],
    environment: &Environment,
) -> Result<ImageFormat, CliError> {
    let mut compression = command.compression;
    let mut format = ImageFormat::default();
    let different = |what: &str| {
        CliError::usage(format!("the outputs ask for different {what}"))
            .hint("build once for each of them; nothing is run twice")
    };
    for spec in &command.output {
        if let Some(own) = spec.compression {
            if compression.is_some_and(|other| other != own) {
                return Err(different("compressions"));
            }
            compression = Some(own);
        }
        if let Some(own) = spec.level {
            if format.level.is_some_and(|other| other != own) {
                return Err(different("levels of compression"));
            }
            format.level = Some(own);
        }
        format.force |= spec.force;
        format.docker_media_types |= spec.docker_media_types;
    }
    let fallback =
        if format.docker_media_types { LayerCompression::Gzip } else { LayerCompression::default() };
    // A default may be anything; only what this command line says can contradict the rest of it.
    let configured = environment
        .config
        .compression
        .filter(|kind| !format.docker_media_types || *kind != LayerCompression::Zstd);
    format.compression = compression.or(configured).unwrap_or(fallback);
    if format.docker_media_types && format.compression == LayerCompression::Zstd {
        return Err(CliError::usage("layers with Docker's media types are not compressed with zstd")
            .hint("`compression=gzip`, or leave `oci-mediatypes=false` out"));
    }
    if format.docker_media_types && !annotations.is_empty() {
        return Err(CliError::usage("documents with Docker's media types have no annotations")
            .hint("leave `oci-mediatypes=false` out, or use --label"));
    }
    if format.compression == LayerCompression::Gzip && format.level.is_some_and(|level| level > 9) {
        return Err(CliError::usage("the highest level of gzip is 9").hint("`compression=zstd` has 22"));
    }
    Ok(format)
}

/// What is likely not meant, as sentences.
pub(super) fn warnings(request: &BuildRequest) -> Vec<String> {
    let mut warnings = Vec::new();
    if request.outputs.is_empty() && !request.dry_run && !request.tags.is_empty() {
        warnings.push(
            "the image stays in the cache: use --push to push it, or --load for the engine of this machine"
                .to_owned(),
        );
    }
    let has_image =
        request.outputs.iter().any(|output| !matches!(output, Output::Tar { .. } | Output::Local { .. }));
    if !request.outputs.is_empty() && !has_image && !request.annotations.is_empty() {
        warnings.push("annotations have no place in an output of files".to_owned());
    }
    warnings
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::build::{ContextSource, Destination, RemoteDockerfile};
    use crate::cli::args::{Cli, Command};
    use crate::cli::error::ExitStatus;
    use crate::context::remote::RemoteSource;

    /// A directory with a Dockerfile, as the working directory.
    struct Project {
        directory: tempfile::TempDir,
        environment: Environment,
    }

    impl Project {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            fs::write(directory.path().join("Dockerfile"), "FROM scratch\n").unwrap();
            let environment =
                Environment { directory: directory.path().to_owned(), ..Environment::default() };
            Self { directory, environment }
        }

        fn set(mut self, name: &str, value: &str) -> Self {
            self.environment.variables.insert(name.into(), value.into());
            self
        }

        fn file(self, name: &str, text: &str) -> Self {
            let path = self.directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
            self
        }

        fn build_with(&self, line: &str, stdin: &[u8]) -> Result<BuildRequest, CliError> {
            let words = ["crossdock", "build"].into_iter().chain(line.split_whitespace());
            let Command::Build(command) = Cli::try_parse_from(words).unwrap().command else { unreachable!() };
            of_build(&command, &self.environment, &mut &stdin[..])
        }

        fn build(&self, line: &str) -> BuildRequest {
            self.build_with(line, b"").unwrap_or_else(|error| panic!("{line}: {}", error.render(false)))
        }

        fn refused(&self, line: &str) -> (ExitStatus, String) {
            let error = self.build_with(line, b"").unwrap_err();
            (error.status, error.render(false))
        }
    }

    #[test]
    fn flags_become_the_request() {
        let project = Project::new().set("FROM_ENV", "e");
        let request = project.build(
            "-t a -t b.io/c:1 --build-arg X=1 --build-arg FROM_ENV --build-arg UNSET --target t --platform arm64 \
             --label k=v --label empty --annotation manifest:n=w --no-cache-filter a,b --no-cache-filter c --pull \
             --network none --add-host h:1.2.3.4 --shm-size 1g --ulimit nofile=5 --allow network.host,security.insecure \
             --compression gzip .",
        );
        assert_eq!(request.dockerfile.name, "./Dockerfile");
        assert_eq!(request.dockerfile.text, b"FROM scratch\n");
        assert_eq!(request.context, ContextSource::Directory(project.environment.directory.join(".")));
        assert_eq!(
            request.tags.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["docker.io/library/a:latest", "b.io/c:1"]
        );
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(request.build_args, [pair("X", "1"), pair("FROM_ENV", "e")]);
        assert_eq!(request.target.as_deref(), Some("t"));
        assert_eq!(request.platforms, ["linux/arm64".parse::<Platform>().unwrap()]);
        assert!(!request.multi_platform);
        assert_eq!(request.labels, [pair("k", "v"), pair("empty", "")]);
        let annotations: Vec<_> =
            request.annotations.into_iter().map(|given| (given.name, given.value)).collect();
        assert_eq!(annotations, [pair("n", "w")]);
        assert_eq!(request.no_cache_filter, ["a", "b", "c"]);
        assert!(request.pull && !request.no_cache && !request.dry_run);
        assert_eq!(request.network, crate::exec::Network::None);
        assert_eq!(request.extra_hosts, [pair("h", "1.2.3.4")]);
        assert_eq!(request.shm_size, 1 << 30);
        assert_eq!(request.ulimits[0].soft, Some(5));
        assert_eq!(request.allow, ["network.host", "security.insecure"]);
        assert_eq!(request.format.compression, LayerCompression::Gzip);
        assert!(request.outputs.is_empty());
    }

    #[test]
    fn booleans_are_written_as_for_docker() {
        let project = Project::new();
        for (line, no_cache) in [
            (".", false),
            ("--no-cache .", true),
            ("--no-cache=true .", true),
            ("--no-cache=false .", false),
            ("--no-cache=1 .", true),
        ] {
            assert_eq!(project.build(line).no_cache, no_cache, "{line}");
        }
        for line in
            ["--provenance=false --sbom=false .", "--load=false .", "--call build .", "--push=false ."]
        {
            project.build(line);
        }
    }

    #[test]
    fn the_dockerfile_is_found() {
        let project = Project::new()
            .file("sub/dockerfile", "# lower\n")
            .file("docker/App.Dockerfile", "# app\n")
            .file("docker/App.Dockerfile.dockerignore", "target\n");
        let request = project.build("sub");
        assert_eq!(
            (request.dockerfile.name.as_str(), &request.dockerfile.text[..]),
            ("sub/dockerfile", &b"# lower\n"[..])
        );
        assert_eq!(request.dockerfile.ignore, None);
        let request = project.build("-f docker/App.Dockerfile sub");
        assert_eq!(request.dockerfile.text, b"# app\n");
        let ignore = ("docker/App.Dockerfile.dockerignore".to_owned(), b"target\n".to_vec());
        assert_eq!(request.dockerfile.ignore, Some(ignore));
        let request = project.build_with("-f - sub", b"FROM x\n").unwrap();
        assert_eq!(request.dockerfile.text, b"FROM x\n");
        assert_eq!(request.context, ContextSource::Directory(project.environment.directory.join("sub")));
        let request = project.build_with("-", b"FROM y\n").unwrap();
        assert_eq!((request.dockerfile.text, request.context), (b"FROM y\n".to_vec(), ContextSource::Empty));
    }

    #[test]
    fn outputs_and_push() {
        let project = Project::new();
        let image = |push| Output::Image { push, names: Vec::new() };
        assert_eq!(project.build("-t a --push .").outputs, [image(true)]);
        assert_eq!(project.build("-t a --push -o type=image .").outputs, [image(true)]);
        let directory = project.environment.directory.clone();
        let oci = Output::Oci { destination: Destination::Path(directory.join("a.tar")), tar: true };
        assert_eq!(project.build("-o type=oci,dest=a.tar .").outputs, std::slice::from_ref(&oci));
        assert_eq!(project.build("-t a --push -o type=oci,dest=a.tar .").outputs, [oci, image(true)]);
        assert_eq!(
            project.build("-o out .").outputs,
            [Output::Local { destination: directory.join("out"), split: None }]
        );
        assert_eq!(project.build("-o type=cacheonly .").outputs, []);
        assert_eq!(
            project.build("-o type=image,compression=gzip .").format.compression,
            LayerCompression::Gzip
        );
        assert_eq!(warnings(&project.build("-t a .")).len(), 1);
        assert!(warnings(&project.build("-t a --push .")).is_empty());
    }

    #[test]
    fn what_cannot_be_done_is_refused_with_advice() {
        let project = Project::new();
        for (line, part) in [
            ("--push .", "--tag"),
            ("--sbom=true .", "--sbom"),
            ("--attest type=sbom,generator=x .", "--attest"),
            ("--secret id=a,src=- -f - .", "cannot both be standard input"),
            ("-f - -", "both"),
            ("-f x -", "tar c . | crossdock build"),
            ("https://example.com/a.git?depth=1", "unexpected query"),
            ("-o - -o type=tar,dest=- .", "only one output"),
            ("-q -o - .", "--progress quiet"),
            ("--compression zstd -o type=image,compression=gzip .", "different compressions"),
            (
                "-o type=image,compression-level=1 -o type=oci,dest=a,compression-level=2 .",
                "different levels",
            ),
            ("-o type=image,compression=gzip,compression-level=10 .", "is 9"),
            ("-o type=image,compression=zstd,oci-mediatypes=false .", "compression=gzip"),
            ("-o type=image,oci-mediatypes=false --annotation a=b .", "have no annotations"),
        ] {
            let (status, text) = project.refused(line);
            assert_eq!(status, ExitStatus::Usage, "{line}: {text}");
            assert!(text.contains(part), "{line}: {text}");
        }
        for (line, part) in [
            ("absent", "the build context `absent` cannot be read"),
            ("Dockerfile", "is not a directory"),
            ("-f absent .", "the Dockerfile `absent` cannot be read"),
            ("--build-context a=absent .", "`a=absent`"),
            ("--secret id=a,src=absent .", "the secret `a`"),
            ("--secret id=a,env=ABSENT .", "ABSENT, which is not set"),
            ("--ssh default .", "SSH_AUTH_SOCK is not set"),
            ("--build-arg SOURCE_DATE_EPOCH=-1 .", "`-1`"),
        ] {
            let (status, text) = project.refused(line);
            assert_eq!(status, ExitStatus::Failure, "{line}: {text}");
            assert!(text.contains(part), "{line}: {text}");
        }
    }

    #[test]
    fn contexts_are_fetched_where_no_directory_is_meant() {
        let project = Project::new().file("github.com/a/b/Dockerfile", "FROM x\n").file("local", "FROM y\n");
        let request = project.build("https://e.com/a.git#main:sub");
        assert!(matches!(request.context, ContextSource::Remote(RemoteSource::Git(_))));
        assert_eq!(request.remote_dockerfile, Some(RemoteDockerfile::InContext(None)));
        let request = project.build("-f sub/x.Dockerfile github.com/a/c");
        assert!(matches!(request.context, ContextSource::Remote(RemoteSource::Git(_))));
        let inside = RemoteDockerfile::InContext(Some("sub/x.Dockerfile".to_owned()));
        assert_eq!(request.remote_dockerfile, Some(inside));
        // A directory of that name comes first.
        let request = project.build("github.com/a/b");
        assert!(matches!(request.context, ContextSource::Directory(_)));
        let file = project.environment.directory.join("local");
        let request = project.build(&format!("-f {} https://e.com/a.tar", file.display()));
        assert_eq!((request.remote_dockerfile, &request.dockerfile.text[..]), (None, &b"FROM y\n"[..]));
        let request = project.build_with("-f - https://e.com/a.tar", b"FROM z\n").unwrap();
        assert_eq!((request.remote_dockerfile, &request.dockerfile.text[..]), (None, &b"FROM z\n"[..]));
        let request = project.build("-f https://e.com/Dockerfile github.com/a/b");
        let url = RemoteDockerfile::Url("https://e.com/Dockerfile".to_owned());
        assert_eq!(request.remote_dockerfile, Some(url));
        let mut tar = tar::Builder::new(Vec::new());
        tar.append_dir("d", &project.environment.directory).unwrap();
        let tar = tar.into_inner().unwrap();
        let cache = project.environment.directory.join("cache");
        let line = format!("--local-cache {} -", cache.display());
        let request = project.build_with(&line, &tar).unwrap();
        let ContextSource::Archive(archive) = &request.context else { panic!("{:?}", request.context) };
        assert_eq!((archive.size, archive.digest), (tar.len() as u64, crate::digest::Digest::of(&tar)));
        assert_eq!(fs::read_dir(cache).unwrap().count(), 0, "the archive has no name");
    }

    #[test]
    fn secrets_are_read() {
        let project = Project::new().set("TOKEN", "t").file("key", "k");
        let request = project.build("--secret id=a,env=TOKEN --secret id=b,src=key --secret id=TOKEN .");
        let values: Vec<_> =
            request.secrets.iter().map(|secret| (secret.id.as_str(), &secret.value[..])).collect();
        assert_eq!(values, [("a", &b"t"[..]), ("b", b"k"), ("TOKEN", b"t")]);
        let large = Project::new().file("key", &"x".repeat(501 << 10));
        assert!(large.refused("--secret id=b,src=key .").1.contains("larger than"));
    }

    #[test]
    fn the_epoch_comes_from_the_argument_or_the_environment() {
        let project = Project::new().set("SOURCE_DATE_EPOCH", "10");
        let request = project.build(".");
        assert_eq!(request.source_date_epoch, Some(Timestamp { seconds: 10, nanos: 0 }));
        assert_eq!(request.build_args, [("SOURCE_DATE_EPOCH".to_owned(), "10".to_owned())]);
        let request = project.build("--build-arg SOURCE_DATE_EPOCH=7 .");
        assert_eq!(request.source_date_epoch, Some(Timestamp { seconds: 7, nanos: 0 }));
        assert_eq!(project.build("--build-arg SOURCE_DATE_EPOCH= .").source_date_epoch, None);
        assert_eq!(Project::new().build(".").source_date_epoch, None);
    }

    #[test]
    fn contexts_are_made_absolute() {
        let project = Project::new().file("sub/x", "").file("image.tar", "");
        let request = project.build(
            "--build-context a=sub --build-context b=image.tar --build-context c=oci-layout://sub:t --build-context \
             d=docker-image://x .",
        );
        let directory = &project.environment.directory;
        let layout = directory.join("sub:t").display().to_string();
        assert_eq!(
            request.build_contexts,
            BTreeMap::from([
                ("a".to_owned(), NamedContext::Directory(directory.join("sub"))),
                ("b".to_owned(), NamedContext::Archive(directory.join("image.tar"))),
                ("c".to_owned(), NamedContext::OciLayout(layout)),
                ("d".to_owned(), NamedContext::Image("x".parse().unwrap())),
            ])
        );
    }
}
