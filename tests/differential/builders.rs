//! The two builders: one build of a directory by each, what came out, and which steps ran.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::bases::Base;
use crate::compare::Outcome;
use crate::image::Image;
use crate::support::buildkit::BuildKit;
use crate::support::{Context, Output, Run, text};

/// One thing to build.
pub(crate) struct Job<'a> {
    /// The build context.
    pub(crate) directory: &'a Path,
    /// The web server's address, which has what is in `www`.
    pub(crate) server: &'a str,
    /// What is built instead of the directory.
    pub(crate) context: Option<String>,
    /// What is given on standard input.
    pub(crate) stdin: Option<&'a str>,
    pub(crate) options: &'a [String],
    /// Base images by the name that the Dockerfile has for them.
    pub(crate) bases: Vec<(&'a str, &'a Base)>,
    /// Whether the bases are their other version.
    pub(crate) changed_base: bool,
}

/// What a build did.
pub(crate) struct Built {
    pub(crate) outcome: Outcome,
    /// The names of the steps that ran, by their place (see [`by_place`]).
    pub(crate) ran: BTreeMap<String, String>,
}

impl Built {
    /// What ran here and not there.
    pub(crate) fn ran_more_than(&self, other: &Self) -> Vec<&str> {
        self.ran
            .iter()
            .filter(|(place, _)| !other.ran.contains_key(*place))
            .map(|(_, name)| name.as_str())
            .collect()
    }

    fn of(output: &Output, archive: &Path, ran: BTreeMap<String, String>) -> Self {
        let outcome =
            if output.status.success() { Ok(Image::read(archive)) } else { Err(message(&output.stderr())) };
        Self { outcome, ran }
    }
}

/// What a builder says of its failure: Crossdock in an event, BuildKit in its last line.
fn message(stderr: &str) -> String {
    documents(stderr)
        .find(|event| event["event"] == "error")
        .map(|event| format!("{} {}", event["message"].as_str().unwrap(), event["causes"]))
        .or_else(|| stderr.lines().last().map(ToOwned::to_owned))
        .unwrap_or_default()
}

/// Builds with the program under test, with the caches in `cache`.
pub(crate) fn crossdock(context: &Context, job: &Job<'_>, cache: &str, options: &[&str]) -> Built {
    let archive = context.path("crossdock.tar");
    // The umask of whoever builds must not matter.
    let mut run = context
        .command("sh")
        .args(["-c", "umask 077; exec \"$0\" \"$@\" < \"$STDIN\"", env!("CARGO_BIN_EXE_crossdock")])
        .env("STDIN", job.stdin.unwrap_or("/dev/null"))
        .args(["build", "--progress=json"])
        .args(options)
        .current_dir(job.directory)
        .env("CROSSDOCK_LOCAL", context.path(cache))
        // BuildKit's default, so that the manifests can be compared.
        .option("--compression", "gzip")
        .option_path("--output", "type=oci,dest=", &archive);
    for (name, base) in &job.bases {
        let layout = base.layout(job.changed_base);
        run = run.option_path("--build-context", &format!("{name}=oci-layout://"), &layout.directory);
    }
    for option in job.options {
        run = run.args(option.splitn(2, ' '));
    }
    let what = match &job.context {
        Some(address) => address.as_str(),
        None if job.stdin.is_some() && !job.options.iter().any(|option| option == "--file -") => "-",
        None => ".",
    };
    let output = run.arg(what).output();
    let code = output.status.code();
    assert!(
        code.is_some_and(|code| code != 101) && !output.stderr().contains("panicked at"),
        "died\n{output}"
    );
    Built::of(&output, &archive, steps_of_crossdock(&output.stderr()))
}

fn steps_of_crossdock(events: &str) -> BTreeMap<String, String> {
    let mut names: Vec<String> = Vec::new();
    let mut steps = BTreeMap::new();
    for event in documents(events) {
        match event["event"].as_str() {
            Some("planned") => {
                names = serde_json::from_value(event["steps"].clone()).unwrap();
                steps.extend(names.iter().map(|name| (name.clone(), false)));
            }
            Some("step_finished") if event["outcome"] == "ran" => {
                let step = usize::try_from(event["step"].as_u64().unwrap()).unwrap();
                steps.insert(names[step].clone(), true);
            }
            _ => {}
        }
    }
    by_place(&steps)
}

/// Builds with BuildKit.
pub(crate) fn buildkit(context: &Context, daemon: &BuildKit, job: &Job<'_>) -> Built {
    let archive = context.path("buildkit.tar");
    let mut dockerfile = (PathBuf::from("."), String::from("Dockerfile"));
    let mut run = daemon
        .command(context)
        .args(["build", "--progress=rawjson", "--frontend=dockerfile.v0"])
        // What a frontend image is told that a syntax line has named: do it yourself.
        .args(["--opt", "cmdline="])
        .current_dir(job.directory)
        .option_path("--output", "type=oci,dest=", &archive);
    let from_stdin = job.options.iter().any(|option| option == "--file -");
    // Only docker has its client serve standard input; what it serves is the same as that of a web server.
    let sent = job.stdin.filter(|_| !from_stdin).map(|path| {
        format!("http://{}/{}", job.server, path.strip_prefix("www/").expect("a file of the web server"))
    });
    let address = job.context.clone().or(sent);
    run = match &address {
        Some(address) => run.args(["--opt", &format!("context={address}")]),
        None => run.args(["--local", "context=."]),
    };
    for (number, (name, base)) in job.bases.iter().enumerate() {
        let layout = base.layout(job.changed_base);
        run = run
            .args(["--oci-layout", &format!("base{number}={}", text(&layout.directory))])
            .args(["--opt", &format!("context:{name}=oci-layout://base{number}@{}", layout.digest)]);
    }
    let mut hosts: Vec<String> = Vec::new();
    for option in job.options {
        let (name, value) = option.split_once(' ').unwrap_or((option, ""));
        if name == "--add-host" {
            hosts.push(value.replacen(':', "=", 1));
        } else if name == "--file" {
            let path = Path::new(if value == "-" { job.stdin.unwrap() } else { value });
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            dockerfile = if address.is_some() && !from_stdin {
                (PathBuf::from("."), value.to_owned())
            } else {
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                (parent.unwrap_or(Path::new(".")).to_owned(), name)
            };
            run = run.args(["--opt", &format!("filename={}", dockerfile.1)]);
        } else {
            run = translated(run, name, value);
        }
    }
    if !hosts.is_empty() {
        run = run.args(["--opt", &format!("add-hosts={}", hosts.join(","))]);
    }
    // It is where the context is, unless it comes from standard input.
    if from_stdin && address.is_some() {
        run = run.args(["--opt", "dockerfilekey=dockerfile"]);
    }
    if from_stdin || address.is_none() {
        run = run.option_path("--local", "dockerfile=", &dockerfile.0);
    }
    let output = run.output();
    let ran = steps_of_buildkit(&output.stderr());
    Built::of(&output, &archive, ran)
}

/// An option of Crossdock (and `docker buildx build`) as `buildctl` has it.
fn translated(run: Run, name: &str, value: &str) -> Run {
    let opt = |run: Run, text: String| run.args(["--opt", &text]);
    match name {
        "--build-arg" | "--label" => opt(run, format!("{}:{value}", &name[2..])),
        "--target" | "--platform" | "--ulimit" | "--shm-size" => opt(run, format!("{}={value}", &name[2..])),
        "--no-cache-filter" => opt(run, format!("no-cache={value}")),
        "--network" => opt(run, format!("force-network-mode={value}")),
        "--build-context" => {
            let (name, directory) = value.split_once('=').unwrap();
            if directory.contains("://") {
                return opt(run, format!("context:{name}={directory}"));
            }
            opt(run, format!("context:{name}=local:{name}")).args(["--local", &format!("{name}={directory}")])
        }
        "--secret" | "--allow" | "--ssh" => run.args([name, value]),
        _ => panic!("the harness does not know how to give BuildKit {name}"),
    }
}

/// BuildKit tells the state of a vertex again and again; the last one counts.
fn steps_of_buildkit(progress: &str) -> BTreeMap<String, String> {
    let mut vertices: BTreeMap<String, Value> = BTreeMap::new();
    for document in documents(progress) {
        for vertex in document["vertexes"].as_array().into_iter().flatten() {
            vertices.insert(vertex["digest"].as_str().unwrap().to_owned(), vertex.clone());
        }
    }
    let mut steps: BTreeMap<String, bool> = BTreeMap::new();
    for vertex in vertices.values() {
        let name = vertex["name"].as_str().unwrap();
        let same = |other: &&Value| other["name"] == vertex["name"] && other["inputs"].is_array();
        // What an ADD fetches has the ADD's name, and is no step: it stands on nothing.
        if vertex["inputs"].is_null() && vertices.values().any(|other| same(&other)) {
            continue;
        }
        let ran = vertex["cached"] != true && vertex["completed"].is_string();
        *steps.entry(name.to_owned()).or_default() |= ran;
    }
    by_place(&steps)
}

fn documents(lines: &str) -> impl Iterator<Item = Value> {
    lines.lines().filter(|line| line.starts_with('{')).map(|line| serde_json::from_str(line).unwrap())
}

/// The stage of a step and its number there, out of `[build 2/4] RUN make`; nothing for FROM and what is no step.
fn stage_and_number(name: &str) -> Option<(String, u32)> {
    let (head, command) = name.strip_prefix('[')?.split_once("] ")?;
    let (stage, numbers) = head.rsplit_once(' ').unwrap_or(("", head));
    let (step, of) = numbers.split_once('/')?;
    of.parse::<u32>().ok()?;
    // With several platforms, theirs stand before it; the name of an only stage is left out, except where a mount
    // reminds BuildKit of stages.
    let stage = stage.split(' ').rfind(|word| !word.is_empty() && !word.contains('/')).unwrap_or("stage-0");
    (!command.starts_with("FROM ")).then_some((stage.to_owned(), step.parse().ok()?))
}

/// The steps that ran, of all, by what both builders know them under: the stage, and how many come before it there.
/// Names are of no use, as BuildKit puts the values of variables into them, and neither are the numbers, as it does
/// not count a base that is a named context.
fn by_place(steps: &BTreeMap<String, bool>) -> BTreeMap<String, String> {
    let mut places: Vec<_> =
        steps.iter().filter_map(|(name, ran)| Some((stage_and_number(name)?, name, ran))).collect();
    places.sort();
    let mut found = BTreeMap::new();
    for (index, ((stage, _), name, ran)) in places.iter().enumerate() {
        let first = places.iter().position(|((other, _), ..)| other == stage).unwrap();
        if **ran {
            found.insert(format!("{stage} {}", index - first), (*name).clone());
        }
    }
    found
}
