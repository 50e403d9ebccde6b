//! Checks: what is allowed in a Dockerfile but questionable, under the names of BuildKit's rules.
//!
//! `rules` lists the rules and `finding` their messages. A [`Linter`] collects the findings that are not switched off.
//! `syntax` has the rules that need only the text; the parser calls them. Rules that need values (variables, base images,
//! ignore files) are checked where the values are known, by the planner, with `sensitive` and [`suggestion`] from here.

mod finding;
mod linter;
mod rules;
mod sensitive;
pub(super) mod syntax;

pub use finding::Finding;
pub use linter::Linter;
pub use rules::{RULES, Rule};
pub use sensitive::is_sensitive;

/// The name that is near enough to `name` to have been meant: the first of those at the smallest distance below 3
/// (`util/suggest`). None if `name` itself is among them.
pub fn suggestion<'n>(name: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    let mut best: Option<(usize, &str)> = None;
    for candidate in known {
        if candidate == name {
            return None;
        }
        let distance = distance(name, candidate);
        if distance < best.map_or(3, |(distance, _)| distance) {
            best = Some((distance, candidate));
        }
    }
    best.map(|(_, name)| name)
}

/// Levenshtein's distance: insertions, deletions and substitutions.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_suggested() {
        assert_eq!(suggestion("VERSON", ["OTHER", "VERSION"]), Some("VERSION"));
        assert_eq!(suggestion("AB", ["XYZ", "ABCDE"]), None);
        assert_eq!(suggestion("A", ["A", "AB"]), None);
        assert_eq!(suggestion("ABC", ["ABDE", "ABX", "ABY"]), Some("ABX"));
        assert_eq!(distance("kitten", "sitting"), 3);
    }

    #[test]
    fn rules_are_listed_once() {
        let names: std::collections::BTreeSet<&str> = RULES.iter().map(|rule| rule.name).collect();
        assert_eq!(names.len(), RULES.len());
        let undocumented: Vec<&str> =
            RULES.iter().filter(|rule| rule.url.is_empty()).map(|rule| rule.name).collect();
        assert_eq!(undocumented, ["InvalidBaseImagePlatform"]);
    }
}
