//! Why a step ran: the difference between what it is keyed on now and what it was keyed on last time.

mod advice;
mod causes;
mod reads;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::record::{Preimage, Value};

pub use advice::{Advice, Finding, Past, advise};
pub use causes::{distance, why};
pub use reads::{ReadPath, readers, reads};

/// How many names a reason lists before it says how many more there are.
const NAMES_MAX: usize = 3;

/// What changed in the trees that a step reads, as far as that could be found out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Files that are different.
    pub files: Vec<String>,
    /// The base image is another one.
    pub base: bool,
    /// What the step would see otherwise than in the nearest record, where it is known what it saw then.
    pub seen: Vec<Difference>,
    /// Names of the variables that are build arguments.
    pub arguments: BTreeSet<String>,
}

/// Something that a step looked at and that is different now. Paths begin with a slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// A file that it read has another content.
    Content {
        /// The path.
        path: String,
        /// The program that read it first, if that is known.
        by: Option<String>,
    },
    /// It looked for something that was not there and is now.
    Appeared(String),
    /// Something is no longer there.
    Gone(String),
    /// A directory that it listed has other names in it.
    Names {
        /// The path.
        path: String,
        /// The program that listed it first, if that is known.
        by: Option<String>,
    },
    /// Something has another mode, owner, size or kind.
    Attributes(String),
}

impl Difference {
    /// The path.
    pub fn path(&self) -> &str {
        match self {
            Self::Content { path, .. }
            | Self::Appeared(path)
            | Self::Gone(path)
            | Self::Names { path, .. }
            | Self::Attributes(path) => path,
        }
    }

    /// The program that looked, if that is known.
    pub fn by(&self) -> Option<&str> {
        match self {
            Self::Content { by, .. } | Self::Names { by, .. } => by.as_deref(),
            Self::Appeared(_) | Self::Gone(_) | Self::Attributes(_) => None,
        }
    }

    /// What says most comes first: a directory's names change with what appeared in it.
    fn rank(&self) -> u8 {
        match self {
            Self::Content { .. } => 0,
            Self::Appeared(_) => 1,
            Self::Gone(_) => 2,
            Self::Names { .. } => 3,
            Self::Attributes(_) => 4,
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = self.by().unwrap_or("it");
        match self {
            Self::Content { path, .. } => write!(f, "{path}, which {who} read, changed"),
            Self::Appeared(path) => write!(f, "{path}, which it looked for, is there now"),
            Self::Gone(path) => write!(f, "{path} is gone"),
            Self::Names { path, .. } => write!(f, "the names in {path}, which {who} listed, changed"),
            Self::Attributes(path) => write!(f, "the mode, owner or kind of {path} changed"),
        }
    }
}

/// The sentence for what a step would see otherwise than in a record of the same definition.
pub fn seen(differences: &[Difference]) -> String {
    let mut ordered: Vec<&Difference> = differences.iter().collect();
    ordered.sort_by_key(|difference| difference.rank());
    match ordered[..] {
        [] => "its result is no longer in the cache".to_owned(),
        [only] => only.to_string(),
        [first, second] => format!("{first}; {second}"),
        [first, second, ref rest @ ..] => format!("{first}; {second}; and {} more", rest.len()),
    }
}

/// Why there was no record for a step.
///
/// `before` is the preimage that the same place of the build had last time, if that is known.
pub fn reason(before: Option<&Preimage>, now: &Preimage, changes: &Changes) -> String {
    let files = changes.files.as_slice();
    let Some(before) = before else { return "first time".to_owned() };
    if before.get("kind") != now.get("kind") {
        return "another instruction was here last time".to_owned();
    }
    let changed: Vec<&str> = now
        .fields
        .iter()
        .filter(|field| before.get(&field.name) != Some(&field.value))
        .map(|field| field.name.as_str())
        .chain(
            before
                .fields
                .iter()
                .filter(|field| now.get(&field.name).is_none())
                .map(|field| field.name.as_str()),
        )
        .collect();
    if changed.is_empty() {
        return "its result is no longer in the cache".to_owned();
    }
    // Nearest to the user first: what the instruction says, then variables, then files, then what follows from them.
    for name in ["command", "script", "sources", "destination"] {
        if changed.contains(&name) {
            return match name {
                "command" | "script" => "the command changed".to_owned(),
                _ => "the instruction changed".to_owned(),
            };
        }
    }
    if changed.contains(&"env") {
        return variables(before.get("env"), now.get("env"));
    }
    if changed.contains(&"mounts") && !changes.seen.is_empty() {
        return seen(&changes.seen);
    }
    if changed.contains(&"selection") || changed.contains(&"files") || changed.contains(&"mounts") {
        return match files {
            [] if changed.contains(&"mounts") => "what its mounts show changed".to_owned(),
            [] => "what it copies changed".to_owned(),
            files => format!("{} changed", names(files)),
        };
    }
    let others: Vec<&str> = changed.iter().copied().filter(|name| *name != "tree").collect();
    if !others.is_empty() {
        return format!(
            "{} changed",
            others.iter().map(|name| describe(name)).collect::<Vec<_>>().join(", ")
        );
    }
    if !changes.seen.is_empty() {
        return seen(&changes.seen);
    }
    match files {
        [] if changes.base => "the base image changed".to_owned(),
        [] => "the file system that it starts from changed".to_owned(),
        files => format!("{} changed in an earlier step", names(files)),
    }
}

/// What a field of a preimage is called in a sentence.
fn describe(field: &str) -> String {
    match field {
        "cwd" => "the working directory".to_owned(),
        "user" => "the user".to_owned(),
        "owner" => "`--chown`".to_owned(),
        "chmod" => "`--chmod`".to_owned(),
        "exclude" => "`--exclude`".to_owned(),
        "epoch" => "SOURCE_DATE_EPOCH".to_owned(),
        "unkeyed" => "`--unkeyed-arg`".to_owned(),
        "remotes" => "what it fetches".to_owned(),
        other => format!("the {other}"),
    }
}

/// `a, b and 3 more`.
fn names(names: &[String]) -> String {
    let shown: Vec<&str> = names.iter().take(NAMES_MAX).map(String::as_str).collect();
    match names.len() - shown.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn variables(before: Option<&Value>, now: Option<&Value>) -> String {
    let changed: Vec<String> =
        changed_variables(before, now).into_iter().map(|name| format!("`{name}`")).collect();
    match changed.as_slice() {
        [] => "the order of the environment changed".to_owned(),
        changed => format!("the variable {} changed", names(changed)),
    }
}

/// The names of the variables that are not the same.
fn changed_variables<'v>(before: Option<&'v Value>, now: Option<&'v Value>) -> Vec<&'v str> {
    let pairs = |value: Option<&'v Value>| match value {
        Some(Value::Map(pairs)) => {
            pairs.iter().map(|(name, value)| (name.as_str(), value)).collect::<BTreeMap<_, _>>()
        }
        _ => BTreeMap::new(),
    };
    let (before, now) = (pairs(before), pairs(now));
    now.iter()
        .filter(|(name, value)| before.get(*name) != Some(value))
        .map(|(name, _)| *name)
        .chain(before.keys().filter(|name| !now.contains_key(*name)).copied())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    fn preimage(command: &str, variable: &str, tree: &str) -> Preimage {
        let mut preimage = Preimage::default();
        preimage
            .add("kind", "run")
            .add("command", vec![command])
            .add("env", Value::Map(vec![("A".into(), variable.into()), ("B".into(), "same".into())]))
            .add("tree", Digest::of(tree));
        preimage
    }

    #[test]
    fn the_nearest_cause_is_named() {
        let before = preimage("make", "1", "x");
        let why = |now: &Preimage, changes: &Changes| reason(Some(&before), now, changes);
        let reason = |now: &Preimage, files: &[&str]| {
            let files = files.iter().map(|file| (*file).to_owned()).collect();
            why(now, &Changes { files, ..Changes::default() })
        };
        assert_eq!(super::reason(None, &before, &Changes::default()), "first time");
        assert_eq!(reason(&preimage("make all", "2", "y"), &[]), "the command changed");
        assert_eq!(reason(&preimage("make", "2", "y"), &[]), "the variable `A` changed");
        assert_eq!(reason(&preimage("make", "1", "y"), &[]), "the file system that it starts from changed");
        assert_eq!(
            reason(&preimage("make", "1", "y"), &["a", "b", "c", "d", "e"]),
            "a, b, c and 2 more changed in an earlier step"
        );
        let other_base = Changes { base: true, ..Changes::default() };
        let changed = preimage("make", "1", "y");
        assert_eq!(super::reason(Some(&before), &changed, &other_base), "the base image changed");
        assert_eq!(reason(&before.clone(), &[]), "its result is no longer in the cache");
        let seen = |seen: &[Difference]| {
            let changes = Changes { seen: seen.to_vec(), ..Changes::default() };
            why(&preimage("make", "1", "y"), &changes)
        };
        let names = Difference::Names { path: "/src".to_owned(), by: None };
        let content = Difference::Content { path: "/src/a.c".to_owned(), by: Some("cc1".to_owned()) };
        let appeared = Difference::Appeared("/usr/include/x.h".to_owned());
        assert_eq!(seen(std::slice::from_ref(&names)), "the names in /src, which it listed, changed");
        assert_eq!(
            seen(&[names, appeared, content]),
            "/src/a.c, which cc1 read, changed; /usr/include/x.h, which it looked for, is there now; and 1 more"
        );
    }
}
