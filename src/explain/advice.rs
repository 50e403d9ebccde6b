//! What would shorten the next builds, from what the records of earlier ones show. Nothing is guessed: what it cost is the
//! time of runs that are known not to have been needed, and where something cannot be known nothing is said.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use super::reads::{ReadPath, read_set, traced_runs};
use super::{changed_variables, names};
use crate::digest::Digest;
use crate::layer::{EntryKind, Timestamp, Toc, display_path};
use crate::record::{Preimage, Record, Value};
use crate::store::Cache;

/// Read sets of one step that are looked at: each may have to be fetched.
const READ_SETS_MAX: usize = 12;

/// Earlier runs that a run is compared with.
const COMPARED_MAX: usize = 4;

/// A layer with a larger table of contents is not compared.
const TOC_BYTES_MAX: u64 = 64 << 20;

/// A step of a build, and the records that its place had in earlier builds, the latest first.
#[derive(Debug, Clone)]
pub struct Past<'p> {
    /// The step's name.
    pub name: &'p str,
    /// The records.
    pub records: &'p [Record],
}

/// One thing that would shorten builds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advice {
    /// The step that it is about.
    pub step: String,
    /// What is to be changed.
    pub finding: Finding,
    /// How many recorded runs were not needed.
    pub runs: u32,
    /// How long these took.
    pub cost: Duration,
}

/// See [`Advice`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// It ran only because these directories, which it lists, have other names in them.
    Listing(Vec<String>),
    /// It reads these files of a git repository.
    Git(Vec<String>),
    /// It ran only because these variables have other values, and made the same.
    Variables(Vec<String>),
    /// It copied these files again, which no command read: lines of `.dockerignore`.
    Ignore(Vec<String>),
}

impl Finding {
    /// One word for it, for programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Listing(_) => "listing",
            Self::Git(_) => "git",
            Self::Variables(_) => "variables",
            Self::Ignore(_) => "ignore",
        }
    }

    /// The paths or names.
    pub fn subjects(&self) -> &[String] {
        match self {
            Self::Listing(all) | Self::Git(all) | Self::Variables(all) | Self::Ignore(all) => all,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let subjects = names(self.subjects());
        match self {
            Self::Listing(_) => write!(
                f,
                "it ran only because other names are in {subjects}, which it lists, and did not read what is new: copy \
                 what it needs before it and the rest after it, or let it list less"
            ),
            Self::Git(_) => write!(
                f,
                "it reads {subjects}, which is different with every commit: leave `.git` out with `.dockerignore`, and \
                 give the version as an argument to the last step that needs it"
            ),
            Self::Variables(_) => write!(
                f,
                "it ran only because {subjects} had another value, and made the same: declare it behind this step, \
                 make it a `--label`, or pass it with `--unkeyed-arg`"
            ),
            Self::Ignore(_) => write!(
                f,
                "it copied {subjects} again, which no command read: if the image does not need them, leave them out with \
                 `.dockerignore`"
            ),
        }
    }
}

/// Everything that the records show, what cost most first.
pub async fn advise(cache: &Cache, steps: &[Past<'_>]) -> Vec<Advice> {
    let mut found: BTreeMap<(usize, Finding), (u32, Duration)> = BTreeMap::new();
    let mut add = |step: usize, finding: Finding, runs: u32, cost: Duration| {
        let entry = found.entry((step, finding)).or_default();
        entry.0 += runs;
        entry.1 += cost;
    };
    let mut readers = Some(Readers::default());
    for (number, step) in steps.iter().enumerate() {
        if !step.records.iter().any(|record| is_kind(record, "run")) {
            continue;
        }
        let runs = runs(cache, step.records).await;
        for (finding, count, cost) in of_reads(&runs) {
            add(number, finding, count, cost);
        }
        for (names, cost) in of_variables(cache, step.records).await {
            add(number, Finding::Variables(names), 1, cost);
        }
        match (&mut readers, runs.is_empty()) {
            (Some(readers), false) => readers.add(&runs),
            // Whatever it is that it reads, nobody knows.
            _ => readers = None,
        }
    }
    if let Some(mut readers) = readers {
        for step in steps.iter().filter(|step| step.name.contains("--from=")) {
            readers.add_copies(step.records);
        }
        for (number, step) in steps.iter().enumerate().filter(|(_, step)| !step.name.contains("--from=")) {
            if let Some((files, runs, cost)) = of_copies(cache, step.records, &readers).await {
                add(number, Finding::Ignore(files), runs, cost);
            }
        }
    }
    let advice = |((step, finding), (runs, cost)): ((usize, Finding), (u32, Duration))| Advice {
        step: steps[step].name.to_owned(),
        finding,
        runs,
        cost,
    };
    let mut advice: Vec<Advice> = found.into_iter().map(advice).collect();
    advice.sort_by_key(|advice| std::cmp::Reverse(advice.cost));
    advice
}

fn is_kind(record: &Record, kind: &str) -> bool {
    record.preimage.get("kind") == Some(&Value::Text(kind.to_owned()))
}

fn took(record: &Record) -> Duration {
    Duration::from_millis(record.duration_ms)
}

/// One run of a step, and what it looked at.
struct Run {
    created: Timestamp,
    took: Duration,
    definition: Preimage,
    reads: Vec<ReadPath>,
}

/// The runs of a step that are known with what they looked at, the latest first.
async fn runs(cache: &Cache, records: &[Record]) -> Vec<Run> {
    let mut known: Vec<Record> = Vec::new();
    let mut definitions = HashSet::new();
    for record in records.iter().filter(|record| is_kind(record, "run")) {
        if definitions.insert(record.preimage.definition().key()) && definitions.len() <= COMPARED_MAX {
            known.extend(traced_runs(cache, &record.preimage).await);
        }
    }
    known.sort_by_key(|record| std::cmp::Reverse((record.created.seconds, record.created.nanos)));
    let mut runs: Vec<Run> = Vec::new();
    for record in known.into_iter().take(READ_SETS_MAX) {
        let Some(read) = record.preimage.reads() else { continue };
        let Some(reads) = read_set(cache, read).await else { continue };
        let definition = record.preimage.definition();
        runs.push(Run { created: record.created, took: took(&record), definition, reads });
    }
    runs
}

/// Runs that only a listing or a git repository was the cause of.
fn of_reads(runs: &[Run]) -> Vec<(Finding, u32, Duration)> {
    let mut found = Vec::new();
    let mut of_git = (0, Duration::ZERO);
    for (number, run) in runs.iter().enumerate() {
        let earlier = runs[number + 1..]
            .iter()
            .filter(|earlier| earlier.definition == run.definition && earlier.created != run.created);
        let nearest = earlier.take(COMPARED_MAX).map(|earlier| (different(run, earlier), earlier));
        let Some((different, earlier)) = nearest.min_by_key(|(different, _)| different.len()) else {
            continue;
        };
        if different.is_empty() {
            continue;
        }
        if different.iter().all(|read| is_git(&read.path)) {
            of_git = (of_git.0 + 1, of_git.1 + run.took);
        } else if different.iter().all(|read| read.names())
            && !different.iter().any(|listed| reads_elsewhere(run, earlier, listed))
        {
            let listed = different.iter().map(|read| read.path.clone()).collect();
            found.push((Finding::Listing(listed), 1, run.took));
        }
    }
    let latest = runs.first().map(|run| run.reads.as_slice()).unwrap_or_default();
    let git: Vec<String> = latest
        .iter()
        .filter(|read| read.content() && !read.is_absent() && is_git(&read.path))
        .map(|read| read.path.clone())
        .collect();
    if !git.is_empty() {
        found.push((Finding::Git(git), of_git.0, of_git.1));
    }
    found
}

fn is_git(path: &str) -> bool {
    path.split('/').any(|part| part == ".git")
}

/// What `run` saw otherwise than `earlier`, of what both looked at.
fn different<'r>(run: &'r Run, earlier: &Run) -> Vec<&'r ReadPath> {
    let known: HashMap<(usize, &str), &ReadPath> =
        earlier.reads.iter().map(|read| ((read.tree, read.path.as_str()), read)).collect();
    let is_different = |read: &&ReadPath| {
        let before = known.get(&(read.tree, read.path.as_str()));
        before.is_some_and(|before| before.look != read.look || before.seen != read.seen)
    };
    run.reads.iter().filter(is_different).collect()
}

/// Whether one of two runs read a file below the directory `listed` that the other one did not: the listing told it to.
fn reads_elsewhere(run: &Run, earlier: &Run, listed: &ReadPath) -> bool {
    let files = |run: &Run| -> BTreeSet<String> {
        let below = |read: &&ReadPath| {
            let is_below = read.path.strip_prefix(listed.path.trim_end_matches('/'));
            read.tree == listed.tree && read.content() && is_below.is_some_and(|rest| rest.starts_with('/'))
        };
        run.reads.iter().filter(below).map(|read| read.path.clone()).collect()
    };
    files(run) != files(earlier)
}

/// Runs that only other values of variables were the cause of, and that made and printed what was known: the names, and how
/// long it took.
async fn of_variables(cache: &Cache, records: &[Record]) -> Vec<(Vec<String>, Duration)> {
    let mut found = Vec::new();
    let mut counted = HashSet::new();
    for newer in records {
        let run = (newer.created.seconds, newer.created.nanos);
        if !is_kind(newer, "run") || counted.contains(&run) {
            continue;
        }
        for older in records {
            let is_earlier = (older.created.seconds, older.created.nanos) < run;
            let Some(names) = only_variables(&older.preimage, &newer.preimage).filter(|_| is_earlier) else {
                continue;
            };
            if older.log == newer.log && have_same_contents(cache, older, newer).await {
                counted.insert(run);
                found.push((names, took(newer)));
                break;
            }
        }
    }
    found
}

/// Whether two records are known to add the same files.
async fn have_same_contents(cache: &Cache, one: &Record, other: &Record) -> bool {
    match (contents(cache, one).await, contents(cache, other).await) {
        (Some(one), Some(other)) => one == other,
        _ => false,
    }
}

/// The names of the variables that are different, if nothing else is.
fn only_variables(before: &Preimage, now: &Preimage) -> Option<Vec<String>> {
    let rest = |preimage: &Preimage| preimage.clone().with("env", "");
    let changed = changed_variables(before.get("env"), now.get("env"));
    let is_all = !changed.is_empty() && rest(before) == rest(now);
    is_all.then(|| changed.into_iter().map(str::to_owned).collect())
}

/// What is in a layer, without times.
type Contents = BTreeMap<Vec<u8>, (u32, u32, u32, Option<Digest>)>;

/// What the layers of a record add; `None` if that is not known.
async fn contents(cache: &Cache, record: &Record) -> Option<Contents> {
    let mut all = Contents::new();
    for layer in &record.layers {
        let toc = Toc::decode(&cache.read_blob(&layer.toc, TOC_BYTES_MAX).await?).ok()?;
        for entry in toc.entries {
            let content = match entry.kind {
                EntryKind::File { content, .. } => Some(content),
                EntryKind::Symlink { target } | EntryKind::HardLink { target } => Some(Digest::of(target)),
                _ => None,
            };
            let metadata = entry.metadata;
            all.insert(entry.path, (metadata.mode, metadata.uid, metadata.gid, content));
        }
    }
    Some(all)
}

/// What is read of what was copied.
#[derive(Default)]
struct Readers {
    paths: HashSet<String>,
    /// Read in a mount: where that is in the image is not known.
    mounted: HashSet<String>,
    /// Copied by other stages.
    copied: Vec<String>,
}

impl Readers {
    fn add(&mut self, runs: &[Run]) {
        for read in runs.iter().flat_map(|run| &run.reads).filter(|read| read.content()) {
            let paths = if read.tree == 0 { &mut self.paths } else { &mut self.mounted };
            paths.insert(read.path.clone());
        }
    }

    fn add_copies(&mut self, records: &[Record]) {
        for record in records {
            let Some(Value::List(sources)) = record.preimage.get("sources") else { continue };
            self.copied.extend(sources.iter().filter_map(|source| match source {
                // What a pattern selects is not worked out: it may be anything from here on.
                Value::Text(text) => {
                    Some(format!("/{}", text.trim_matches('/').split(['*', '?', '[']).next()?))
                }
                _ => None,
            }));
        }
    }

    fn read(&self, path: &str) -> bool {
        self.paths.contains(path)
            || self.mounted.iter().any(|mounted| path.ends_with(mounted.as_str()))
            || self.copied.iter().any(|copied| path.starts_with(copied.as_str()))
    }
}

/// Copies that were made again only for files that nobody read: what these are called in the context, how many copies, and
/// how long they took.
async fn of_copies(
    cache: &Cache,
    records: &[Record],
    readers: &Readers,
) -> Option<(Vec<String>, u32, Duration)> {
    let mut copies: Vec<&Record> = records.iter().filter(|record| is_kind(record, "copy")).collect();
    copies.sort_by_key(|record| std::cmp::Reverse((record.created.seconds, record.created.nanos)));
    copies.dedup_by_key(|record| record.created);
    let (mut files, mut runs, mut cost) = (BTreeSet::new(), 0, Duration::ZERO);
    for pair in copies.windows(2) {
        let [newer, older] = pair else { continue };
        if newer.preimage.get("sources") != older.preimage.get("sources") {
            continue;
        }
        let (Some(new), Some(old)) = (contents(cache, newer).await, contents(cache, older).await) else {
            continue;
        };
        let paths = new.keys().chain(old.keys().filter(|path| !new.contains_key(*path)));
        let changed: Vec<String> = paths
            .filter(|path| new.get(*path) != old.get(*path))
            .map(|path| format!("/{}", display_path(path)))
            .collect();
        if changed.is_empty() || changed.iter().any(|path| readers.read(path)) {
            continue;
        }
        let own: Option<Vec<String>> = changed.iter().map(|path| in_context(&newer.preimage, path)).collect();
        if let Some(own) = own {
            files.extend(own);
            runs += 1;
            cost += took(newer);
        }
    }
    (!files.is_empty()).then(|| (files.into_iter().collect(), runs, cost))
}

/// What a copied file is called in the context, where one directory or file is copied as it is.
fn in_context(preimage: &Preimage, path: &str) -> Option<String> {
    let (Some(Value::List(sources)), Some(Value::Text(destination))) =
        (preimage.get("sources"), preimage.get("destination"))
    else {
        return None;
    };
    let [Value::Text(source)] = sources.as_slice() else { return None };
    if source.contains(['*', '?', '[']) {
        return None;
    }
    let source = source.trim_start_matches("./").trim_matches('/');
    let destination = destination.trim_end_matches('.').trim_end_matches('/');
    let below = path.strip_prefix(destination)?.trim_start_matches('/');
    Some(match (source, below) {
        ("" | ".", below) => below.to_owned(),
        (source, "") => source.to_owned(),
        // A file that is put into a directory keeps its name.
        (source, below) if source == below || source.ends_with(&format!("/{below}")) => source.to_owned(),
        (source, below) => format!("{source}/{below}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Look, Seen};

    fn run(seconds: i64, reads: &[(&str, Look, u8)]) -> Run {
        let read = |(path, look, seen): &(&str, Look, u8)| ReadPath {
            tree: 0,
            path: (*path).to_owned(),
            look: *look,
            seen: [*seen; size_of::<Seen>()],
            by: None,
        };
        Run {
            created: Timestamp { seconds, nanos: 0 },
            took: Duration::from_secs(2),
            definition: Preimage::default(),
            reads: reads.iter().map(read).collect(),
        }
    }

    #[test]
    fn listings_and_repositories_are_told_from_what_is_needed() {
        let (content, names) = (Look::NODE.and(Look::CONTENT), Look::NODE.and(Look::NAMES));
        let seconds = Duration::from_secs;
        let of = |newer: &[(&str, Look, u8)], older: &[(&str, Look, u8)]| {
            of_reads(&[run(2, newer), run(1, older)])
        };
        let listed = |seen| [("/src", names, seen), ("/src/a.c", content, 1)];
        assert_eq!(of(&listed(2), &listed(1)), [(Finding::Listing(vec!["/src".into()]), 1, seconds(2))]);
        assert_eq!(of(&listed(1), &listed(1)), []);
        // It reads what is new.
        assert_eq!(of(&[&listed(2)[..], &[("/src/b.c", content, 1)]].concat(), &listed(1)), []);
        // Something that it reads is different too.
        assert_eq!(of(&[("/src", names, 2), ("/src/a.c", content, 2)], &listed(1)), []);
        let git = |seen| [("/src/.git/HEAD", content, seen), ("/src/a.c", content, 1)];
        let head = Finding::Git(vec!["/src/.git/HEAD".into()]);
        assert_eq!(of(&git(2), &git(1)), [(head.clone(), 1, seconds(2))]);
        assert_eq!(of_reads(&[run(1, &git(1))]), [(head, 0, Duration::ZERO)]);
    }

    #[test]
    fn only_variables_means_nothing_else() {
        let preimage = |value: &str, tree: &str| {
            let mut preimage = Preimage::default();
            let env = vec![("A".to_owned(), value.into()), ("B".to_owned(), "same".into())];
            preimage.add("kind", "run").add("env", Value::Map(env)).add("tree", tree);
            preimage
        };
        let names = |newer: &Preimage| only_variables(&preimage("1", "x"), newer);
        assert_eq!(names(&preimage("2", "x")), Some(vec!["A".to_owned()]));
        assert_eq!(names(&preimage("1", "x")), None);
        assert_eq!(names(&preimage("2", "y")), None);
    }

    #[test]
    fn copied_files_have_a_name_in_the_context() {
        for (source, destination, path, expected) in [
            (".", "/src/", "/src/doc/a", Some("doc/a")),
            (".", "/", "/a", Some("a")),
            ("./lib/", "/src", "/src/a", Some("lib/a")),
            ("lib/a", "/src/", "/src/a", Some("lib/a")),
            ("lib/a", "/src/b", "/src/b", Some("lib/a")),
            ("*.c", "/src/", "/src/a.c", None),
        ] {
            let mut preimage = Preimage::default();
            preimage.add("sources", vec![source]).add("destination", destination);
            assert_eq!(in_context(&preimage, path).as_deref(), expected, "{source} {destination} {path}");
        }
    }
}
