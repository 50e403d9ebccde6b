//! What people write: Dockerfiles, ignore files, names, arguments; and user databases of images.

use std::sync::OnceLock;

use clap::Parser as _;

use crate::build::BuildRequest;
use crate::build::plan::Draft;
use crate::bytes::ByteSize;
use crate::cli::args::{Cli, Command};
use crate::cli::environment::Environment;
use crate::context::ignore::Ignore;
use crate::context::pattern;
use crate::digest::Digest;
use crate::dockerfile::expand::Lexer;
use crate::dockerfile::{self, Dialect, DockerfileError};
use crate::exec::{resolve_owner, resolve_user};
use crate::hint::Hint as _;
use crate::image::{self, ImageConfig};
use crate::platform::Platform;
use crate::record::Scope;
use crate::reference::Reference;
use crate::registry::LayoutReference;
use crate::store::url;

pub(super) const DOCKERFILE_WORDS: &[&str] = &[
    "FROM ",
    "FROM scratch\n",
    " AS ",
    "RUN ",
    "COPY ",
    "ADD ",
    "ENV ",
    "ARG ",
    "LABEL ",
    "CMD ",
    "ENTRYPOINT ",
    "WORKDIR ",
    "USER ",
    "EXPOSE ",
    "VOLUME ",
    "SHELL ",
    "STOPSIGNAL ",
    "HEALTHCHECK ",
    "ONBUILD ",
    "MAINTAINER ",
    "--from=",
    "--chown=",
    "--chmod=",
    "--link",
    "--parents",
    "--exclude=",
    "--mount=type=cache,target=/x",
    "--mount=type=bind,from=a,source=/,target=/y,rw",
    "--mount=type=secret,id=s,env=E",
    "--network=none",
    "--security=insecure",
    "--platform=",
    "--interval=1s",
    "--checksum=sha256:",
    "--keep-git-dir",
    "<<EOF",
    "\nEOF\n",
    "<<-\"E\"",
    "$",
    "${",
    "}",
    ":-",
    ":+",
    "##",
    "%%",
    "//",
    "\\\n",
    "`\n",
    "# escape=`\n",
    "# syntax=docker/dockerfile:1\n",
    "# check=skip=all\n",
    "\"",
    "'",
    "[\"",
    "\", \"",
    "\"]",
    "\r\n",
    "\t",
    "a",
    "/",
    "..",
    "http://x/y.tar",
    "git@x:y.git#z",
];

pub(super) const EXPAND_WORDS: &[&str] = &[
    "$", "${", "}", ":-", ":+", ":?", "-", "+", "?", "#", "##", "%", "%%", "/", "//", "*", "?", "\\", "'",
    "\"", "A", "LONG", "EMPTY", "UNSET", "${A:-", "${LONG//", "a*b", " ", "\u{e9}",
];

pub(super) const PATTERN_WORDS: &[&str] = &[
    "*", "**", "**/", "/**", "?", "[a-z]", "[^", "]", "!", "#", "\\", "/", "a", "..", ".", "\n", "\0",
    "a/b/c", "\u{e9}",
];

pub(super) const WORDS: &[&str] = &[
    "sha256:",
    "sha512:",
    "docker.io/",
    "localhost:5000/",
    "library/",
    ":latest",
    "@",
    "linux/",
    "arm64/v8",
    "(10.0)",
    "oci-layout://",
    "file:///",
    "2020-01-01T00:00:00Z",
    "+01:00",
    ".999999999",
    "1.5",
    "GiB",
    "k",
    "u=rwX,g-w",
    "0755",
];

pub(super) const ARGUMENTS: &[&str] = &[
    "-t\n",
    "-f\n",
    "--build-arg\n",
    "--secret\n",
    "--output\n",
    "-o\n",
    "--platform\n",
    "--ulimit\n",
    "--shm-size\n",
    "--add-host\n",
    "--build-context\n",
    "--label\n",
    "--annotation\n",
    "--compression\n",
    "type=oci",
    ",dest=",
    "id=",
    ",src=",
    "=",
    "\"",
    ",",
    "nofile=1:2",
    "host:1.2.3.4",
    "[::1]",
    "--",
    "-",
];

pub(super) const USERS: &[&str] =
    &["root", ":", ":x:0:0:", "/root", "\n", "\0", "4294967295", "-1", "a,b", "nobody"];

/// A request whose Dockerfile is replaced by each input. Made as the command line makes it, in a directory that is not
/// there any more.
fn request() -> Option<&'static BuildRequest> {
    static REQUEST: OnceLock<Option<BuildRequest>> = OnceLock::new();
    REQUEST
        .get_or_init(|| {
            let directory = tempfile::tempdir().ok()?;
            fs_err::write(directory.path().join("Dockerfile"), "FROM scratch\n").ok()?;
            let line =
                "crossdock build --build-arg A=value --build-arg HTTP_PROXY=p --label l=v --shm-size 1g .";
            let Command::Build(command) = Cli::try_parse_from(line.split(' ')).ok()?.command else {
                return None;
            };
            let environment =
                Environment { directory: directory.path().to_owned(), ..Environment::default() };
            crate::cli::request::of_args(&command.build, &environment, &mut std::io::empty()).ok()
        })
        .as_ref()
}

/// A Dockerfile, and behind a NUL the configuration that all base images have.
pub(super) fn dockerfile(input: &[u8]) {
    let (text, config) = match input.iter().position(|byte| *byte == 0) {
        Some(at) => (&input[..at], ImageConfig::parse(&input[at + 1..]).ok()),
        None => (input, None),
    };
    let (lint, parsed) = dockerfile::parse_checked("Dockerfile", text, Dialect::default());
    let parsed = match parsed {
        Ok(parsed) => parsed,
        Err(error) => return check_error(&error, text),
    };
    let Some(request) = request() else { panic!("the request cannot be made") };
    let mut request = request.clone();
    request.dockerfile.text = text.to_vec();
    let config = config.unwrap_or_else(|| ImageConfig::new(&Platform::host()));
    let plan = (|| {
        let mut draft = Draft::new(&parsed, &request, None, &lint)?;
        loop {
            let unresolved: Vec<usize> = draft.unresolved().into_iter().map(|(source, _)| source).collect();
            for source in unresolved {
                draft.place_of(source);
                draft.resolve(source, config.clone());
            }
            if !draft.add_triggers()? {
                return draft.lower();
            }
        }
    })();
    for warning in lint.warnings() {
        assert!(!format!("{warning:?}").is_empty());
    }
    match plan {
        Ok(plan) => assert!(plan.target < plan.stages.len()),
        Err(error) => check_error(&error, text),
    }
}

/// An error names a line that is there, and can be shown.
fn check_error(error: &DockerfileError, text: &[u8]) {
    let shown = format!("{error} {:?}", error.hint());
    assert!(!shown.is_empty());
    let lines = text.split(|byte| *byte == b'\n').count();
    let line = error.lines().start;
    assert!((1..=lines.max(1)).contains(&line), "line {line} of {lines}: {shown}");
}

/// A word with variables.
pub(super) fn expand(input: &[u8]) {
    let Some((first, text)) = input.split_first() else { return };
    let text = String::from_utf8_lossy(text);
    let long = "ab".repeat(64);
    let env = [("A", "value"), ("B", "a b\tc"), ("EMPTY", ""), ("LONG", &long), ("P", "/usr/local/x.tar.gz")];
    let mut lexer =
        if first & 8 == 0 { Lexer::new(if first & 1 == 0 { '\\' } else { '`' }) } else { Lexer::heredoc() };
    lexer.raw_quotes = first & 2 != 0;
    lexer.raw_escapes = first & 4 != 0;
    lexer.skip_unset = first & 16 != 0;
    for result in [lexer.word(&text, &env).map(|word| vec![word.text]), lexer.words(&text, &env)] {
        match result {
            Ok(words) => assert!(words.iter().map(String::len).sum::<usize>() <= text.len() + (2 << 20)),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

/// An ignore file and, behind NULs, paths.
pub(super) fn ignore(input: &[u8]) {
    let mut parts = input.split(|byte| *byte == 0);
    let rules = parts.next().unwrap_or_default();
    let paths: Vec<&[u8]> = parts.take(16).collect();
    for path in &paths {
        // Malformed patterns are refused, and that is all.
        let _ = pattern::matches(rules, path);
    }
    match Ignore::parse(".dockerignore", rules) {
        Err(error) => assert!(!format!("{error} {:?}", error.hint()).is_empty()),
        Ok(ignore) => {
            for path in paths
                .into_iter()
                .filter(|path| crate::layer::path_problem(path).is_none() && !path.is_empty())
            {
                let excluded = ignore.is_excluded(path);
                let mut above = path;
                while let Some(slash) = above.iter().rposition(|byte| *byte == b'/') {
                    above = &above[..slash];
                    // What is skipped with its directory must be excluded.
                    if ignore.is_excluded(above) && !ignore.may_keep_beneath(above) {
                        assert!(excluded, "below {:?}", String::from_utf8_lossy(above));
                    }
                }
            }
        }
    }
}

/// One word, as everything that a word can be.
pub(super) fn words(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    macro_rules! same_again {
        ($($kind:ty),*) => {$(
            match text.parse::<$kind>() {
                Ok(value) => {
                    let shown = value.to_string();
                    assert_eq!(shown.parse::<$kind>().as_ref(), Ok(&value), "{shown:?} of {text:?}");
                }
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        )*};
    }
    same_again!(Reference, Digest, Platform, Scope, LayoutReference);
    if let Ok(size) = text.parse::<ByteSize>() {
        assert!(!size.to_string().is_empty());
    }
    if let Some(time) = image::time::parse(text) {
        assert_eq!(image::time::parse(&image::time::format(time)), Some(time), "{text:?}");
    }
    let _ = url::parse(text);
    let _ = dockerfile::parse_port(text);
    let _ = dockerfile::check_signal(text);
    let _ = dockerfile::parse_trigger(text);
    if let Ok(chmod) = text.parse::<dockerfile::Chmod>() {
        for (mode, directory) in [(0o644, false), (0o755, true), (0, false)] {
            assert!(chmod.apply(mode, directory) <= 0o7777, "{text:?}");
        }
    }
    let _ = dockerfile::Mount::parse(text);
    let clean = dockerfile::clean_path(text);
    assert_eq!(dockerfile::clean_path(&clean), clean);
}

/// The arguments of `crossdock build`, a line each.
pub(super) fn arguments(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let words = ["crossdock", "build"].into_iter().chain(text.split('\n'));
    match Cli::try_parse_from(words) {
        Ok(cli) => assert!(!format!("{cli:?}").is_empty()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// `user:group`, `/etc/passwd` and `/etc/group`, with NULs between them.
pub(super) fn users(input: &[u8]) {
    let mut parts = input.splitn(3, |byte| *byte == 0);
    let spec = String::from_utf8_lossy(parts.next().unwrap_or_default());
    let (passwd, group) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    if let Err(error) = resolve_user(&spec, passwd, group) {
        assert!(!format!("{error} {:?}", error.hint()).is_empty());
    }
    let _ = resolve_owner(&spec, passwd, group, &mut |_| {});
}
