//! The list of what is different from BuildKit on purpose: `deviations.txt`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// One line of the list: `case | difference | reason`, `*` in the first two standing for anything.
pub(crate) struct Deviation {
    case: String,
    difference: String,
    reason: String,
    /// What it stands under in the list.
    heading: String,
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
        let mut heading = String::new();
        for (number, line) in std::fs::read_to_string(path).unwrap().lines().enumerate() {
            if let Some(next) = line.strip_prefix("## ") {
                next.clone_into(&mut heading);
            }
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
                reason: reason.to_owned(),
                heading: heading.clone(),
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

/// The page about them.
pub(crate) fn page_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/differences.md")
}

/// What that page says besides.
const PAGE_HEAD: &str = "\
# What is different from BuildKit

What a Dockerfile means is what BuildKit does with it. `./test` holds Crossdock to that: hundreds of small Dockerfiles and
some build contexts of other projects are built with both, and configuration, history and files of the images are compared,
with types, modes, owners, contents, links, attributes and times. Each is then varied (a comment, an unused `ARG`, a file's
content, mode, time and name, another base), and no step may run again that BuildKit takes from its cache; where fewer run,
the image is compared with one from scratch. Failures have to meet failures.

The test fails on a difference that is not on this list, and on one that is gone. In brackets are the cases of
`tests/differential/cases` that show it.
";

/// What no image shows, and so no case.
const PAGE_END: &str = "
## What images do not show

- Values of secrets are masked in logs. BuildKit shows them.
- `--build-context NAME=target:STAGE` works without a client that resolves it.
- `--add-host NAME:host-gateway` is 127.0.0.1, as steps share the host's network.
- Devices are not passed to steps: `RUN --device` that is required fails, as with a BuildKit that knows no device.
";

impl Deviations {
    /// The page about them: each reason once, with its cases.
    pub(crate) fn page(&self) -> String {
        let mut page = String::from(PAGE_HEAD);
        let mut heading = "";
        for (number, deviation) in self.0.iter().enumerate() {
            if self.0[..number].iter().any(|other| other.reason == deviation.reason) {
                continue;
            }
            if deviation.heading != heading {
                heading = &deviation.heading;
                write!(page, "\n## {heading}\n\n").unwrap();
            }
            let same = self.0.iter().filter(|other| other.reason == deviation.reason);
            let cases: BTreeSet<String> = same.map(|other| format!("`{}`", other.case)).collect();
            let cases: Vec<String> = cases.into_iter().collect();
            writeln!(page, "- {} ({})", deviation.reason, cases.join(", ")).unwrap();
        }
        page + PAGE_END
    }
}

/// Whether a text is what a pattern says; `*` stands for anything, everything else for itself.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(text) = text.strip_prefix(start) else { return false };
    (0..=text.len()).any(|skipped| text.is_char_boundary(skipped) && matches(rest, &text[skipped..]))
}
