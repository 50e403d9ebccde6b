//! All that is different from an earlier record, one by one: what programs read, and by which the nearest record is
//! chosen.

use super::{Changes, Difference, changed_variables, reason, seen};
use crate::event::{Cause, CauseKind, Why};
use crate::record::Preimage;

/// Why there was no record for a step: the sentence, and all that is different from `before`, which is the nearest
/// record if there is one.
///
/// `traced` is a record of the same definition, if there is one, and `changes.seen` what the step would see otherwise than
/// there. It is the nearest one then: nothing else is different from that.
pub fn why(before: Option<&Preimage>, now: &Preimage, changes: &Changes, traced: Option<&Preimage>) -> Why {
    if let Some(traced) = traced {
        let mut differences: Vec<&Difference> = changes.seen.iter().collect();
        differences.sort_by_key(|difference| difference.rank());
        let mut causes: Vec<Cause> = differences.into_iter().map(Difference::cause).collect();
        if causes.is_empty() {
            causes.push(cause(CauseKind::Evicted, ""));
        }
        return Why { reason: seen(&changes.seen), causes, nearest: Some(traced.key().to_string()) };
    }
    Why {
        reason: reason(before, now, changes),
        causes: causes(before, now, changes),
        nearest: before.map(|before| before.key().to_string()),
    }
}

/// How far `before` is from `now`: the number of things that are different.
pub fn distance(before: &Preimage, now: &Preimage) -> usize {
    let causes = causes(Some(before), now, &Changes::default());
    match causes.as_slice() {
        [only] if only.kind == CauseKind::Evicted => 0,
        // Another instruction is further away than any change of this one.
        [_] if before.get("kind") != now.get("kind") => usize::MAX,
        causes => causes.len(),
    }
}

fn cause(kind: CauseKind, name: &str) -> Cause {
    Cause { kind, name: name.to_owned(), by: None }
}

impl Difference {
    fn cause(&self) -> Cause {
        let kind = match self {
            Self::Content { .. } => CauseKind::Content,
            Self::Appeared(_) => CauseKind::Appeared,
            Self::Gone(_) => CauseKind::Gone,
            Self::Names { .. } => CauseKind::Names,
            Self::Attributes(_) => CauseKind::Attributes,
        };
        Cause { by: self.by().map(str::to_owned), ..cause(kind, self.path()) }
    }
}

fn causes(before: Option<&Preimage>, now: &Preimage, changes: &Changes) -> Vec<Cause> {
    let Some(before) = before else { return vec![cause(CauseKind::First, "")] };
    if before.get("kind") != now.get("kind") {
        return vec![cause(CauseKind::Instruction, "kind")];
    }
    let mut names: Vec<&str> = now.fields.iter().map(|field| field.name.as_str()).collect();
    let gone = before.fields.iter().map(|field| field.name.as_str()).filter(|name| now.get(name).is_none());
    names.extend(gone);
    let files = |instead: CauseKind| match changes.files.as_slice() {
        [] => vec![cause(instead, "")],
        files => files.iter().map(|file| cause(CauseKind::File, file)).collect(),
    };
    let mut causes = Vec::new();
    for name in names {
        let (old, new) = (before.get(name), now.get(name));
        if old == new {
            continue;
        }
        causes.extend(match name {
            "command" | "script" => vec![cause(CauseKind::Command, "")],
            "env" => variables(before, now, changes),
            "selection" | "files" | "input" | "remotes" => files(CauseKind::File),
            "mounts" => vec![cause(CauseKind::Mount, "")],
            "tree" if changes.base => vec![cause(CauseKind::Base, "")],
            "tree" => files(CauseKind::Tree),
            "sources" | "destination" | "owner" | "chmod" | "exclude" | "parents" | "link" | "unpack" => {
                vec![cause(CauseKind::Instruction, name)]
            }
            _ => vec![cause(CauseKind::Setting, name)],
        });
    }
    let mut unique: Vec<Cause> = Vec::new();
    for cause in causes {
        if !unique.contains(&cause) {
            unique.push(cause);
        }
    }
    unique.sort_by_key(|cause| rank(cause.kind));
    if unique.is_empty() {
        unique.push(cause(CauseKind::Evicted, ""));
    }
    unique
}

fn variables(before: &Preimage, now: &Preimage, changes: &Changes) -> Vec<Cause> {
    let changed = changed_variables(before.get("env"), now.get("env"));
    if changed.is_empty() {
        return vec![cause(CauseKind::Setting, "env")];
    }
    let kind = |name: &str| {
        if changes.arguments.contains(name) { CauseKind::Argument } else { CauseKind::Variable }
    };
    changed.into_iter().map(|name| cause(kind(name), name)).collect()
}

/// As in the sentence: what the instruction says, then variables, then files, then what follows from them.
fn rank(kind: CauseKind) -> u8 {
    match kind {
        CauseKind::Command => 0,
        CauseKind::Instruction => 1,
        CauseKind::Argument | CauseKind::Variable => 2,
        CauseKind::Setting => 3,
        CauseKind::File => 4,
        CauseKind::Mount => 5,
        _ => 6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::record::Value;

    fn preimage(command: &str, variables: &[(&str, &str)], tree: &str) -> Preimage {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).into()));
        let mut preimage = Preimage::default();
        preimage
            .add("kind", "run")
            .add("command", vec![command])
            .add("env", Value::Map(variables.collect()))
            .add("tree", Digest::of(tree));
        preimage
    }

    fn kinds(why: &Why) -> Vec<(&str, &str)> {
        why.causes.iter().map(|cause| (cause.kind.as_str(), cause.name.as_str())).collect()
    }

    #[test]
    fn everything_that_is_different_is_named() {
        let before = preimage("make", &[("A", "1"), ("B", "1"), ("C", "1")], "x");
        let now = preimage("make all", &[("A", "2"), ("B", "1"), ("D", "1")], "y");
        let files = vec!["/a".to_owned(), "/b".to_owned()];
        let arguments = ["A".to_owned()].into();
        let changes = Changes { files, arguments, ..Changes::default() };
        let found = why(Some(&before), &now, &changes, None);
        assert_eq!(
            kinds(&found),
            [
                ("command", ""),
                ("argument", "A"),
                ("variable", "D"),
                ("variable", "C"),
                ("file", "/a"),
                ("file", "/b")
            ]
        );
        assert_eq!(found.nearest, Some(before.key().to_string()));
        assert_eq!(kinds(&why(None, &now, &changes, None)), [("first", "")]);
        assert_eq!(kinds(&why(Some(&now), &now, &changes, None)), [("evicted", "")]);
    }

    #[test]
    fn what_was_seen_is_all_that_is_different_from_a_traced_record() {
        let (now, traced) = (preimage("make", &[], "y"), preimage("make", &[], "x"));
        let seen = vec![
            Difference::Names { path: "/d".to_owned(), by: None },
            Difference::Content { path: "/d/a".to_owned(), by: None },
        ];
        let changes = Changes { seen, ..Changes::default() };
        let found = why(Some(&preimage("other", &[], "y")), &now, &changes, Some(&traced));
        assert_eq!(kinds(&found), [("content", "/d/a"), ("names", "/d")]);
        assert_eq!(found.nearest, Some(traced.key().to_string()));
        let nothing = why(None, &now, &Changes::default(), Some(&traced));
        assert_eq!(nothing.reason, "its result is no longer in the cache");
        assert_eq!(kinds(&nothing), [("evicted", "")]);
    }

    #[test]
    fn distances_order_records() {
        let now = preimage("make", &[("A", "1")], "x");
        assert_eq!(distance(&now, &now), 0);
        assert_eq!(distance(&preimage("make", &[("A", "2")], "x"), &now), 1);
        assert_eq!(distance(&preimage("make", &[("A", "2")], "y"), &now), 2);
        let other = now.clone().with("kind", "copy");
        assert_eq!(distance(&other, &now), usize::MAX);
    }
}
