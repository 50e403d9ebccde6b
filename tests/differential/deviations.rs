//! The list of what is different from BuildKit on purpose: `deviations.txt`.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// One line of the list: `case | difference | reason`, `*` in the first two standing for anything.
pub(crate) struct Deviation {
    case: String,
    difference: String,
    line: usize,
    seen: AtomicBool,
}

/// The whole list.
pub(crate) struct Deviations(Vec<Deviation>);

impl Deviations {
    /// Reads the list.
    pub(crate) fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/differential/deviations.txt");
        let mut list = Vec::new();
        for (number, line) in std::fs::read_to_string(path).unwrap().lines().enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let fields: Vec<_> = line.split(" | ").map(str::trim).collect();
            let [case, difference, reason] = fields[..] else {
                panic!("deviations.txt:{}: not `case | difference | reason`", number + 1);
            };
            assert!(!reason.is_empty(), "deviations.txt:{}: no reason", number + 1);
            list.push(Deviation {
                case: case.to_owned(),
                difference: difference.to_owned(),
                line: number + 1,
                seen: AtomicBool::new(false),
            });
        }
        Self(list)
    }

    /// Whether there is a line about a case.
    pub(crate) fn mention(&self, case: &str) -> bool {
        self.0.iter().any(|deviation| matches(&deviation.case, case))
    }

    /// Whether a difference is on the list.
    pub(crate) fn lists(&self, case: &str, difference: &str) -> bool {
        let mut listed = false;
        for deviation in &self.0 {
            if matches(&deviation.case, case) && matches(&deviation.difference, difference) {
                deviation.seen.store(true, Ordering::Relaxed);
                listed = true;
            }
        }
        listed
    }

    /// The lines about cases that ran, none of which showed them.
    pub(crate) fn gone<'a>(&'a self, ran: &'a [String]) -> impl Iterator<Item = String> + 'a {
        self.0
            .iter()
            .filter(|deviation| !deviation.seen.load(Ordering::Relaxed))
            .filter(|deviation| ran.iter().any(|case| matches(&deviation.case, case)))
            .map(|gone| {
                format!("deviations.txt:{}: {} | {}: is no more", gone.line, gone.case, gone.difference)
            })
    }
}

/// Whether a text is what a pattern says; `*` stands for anything, everything else for itself.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(text) = text.strip_prefix(start) else { return false };
    (0..=text.len()).any(|skipped| text.is_char_boundary(skipped) && matches(rest, &text[skipped..]))
}
