//! What is different between two results, each difference one line.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::Value;

use crate::image::{Entry, Image, Tree};

/// How a build ended: with an image, or with a message.
pub(crate) type Outcome = Result<Image, String>;

/// The moment at which the test run began: what carries an earlier time got it from the case, and must be equal;
/// what carries a later one was made just now, and must have been by both.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    seconds: u64,
    /// The same moment as documents write it.
    text: String,
}

impl Start {
    /// Now, with some room for clocks that differ.
    pub(crate) fn now() -> Self {
        let output = std::process::Command::new("date")
            .args(["--utc", "--date=1 hour ago", "+%s %Y-%m-%dT%H:%M:%SZ"])
            .output()
            .unwrap();
        let output = String::from_utf8(output.stdout).unwrap();
        let (seconds, text) = output.trim().split_once(' ').expect("date prints what it is asked for");
        Self { seconds: seconds.parse().unwrap(), text: text.to_owned() }
    }

    /// A directory's time says when something was last put into it, which only BuildKit's overlay notes for those
    /// that were there before.
    fn file_times_agree(&self, kind: &str, ours: &str, theirs: &str) -> bool {
        let now =
            |time: &str| time.split('.').next().unwrap().parse().is_ok_and(|time: u64| time >= self.seconds);
        ours == theirs || (now(theirs) && (kind == "directory" || now(ours)))
    }

    fn document_times_agree(&self, ours: &str, theirs: &str) -> bool {
        ours == theirs || (*ours >= *self.text && *theirs >= *self.text)
    }
}

/// The differences of two outcomes, ours and BuildKit's, in the order of importance.
pub(crate) fn outcomes(ours: &Outcome, theirs: &Outcome, start: &Start) -> Vec<String> {
    match (ours, theirs) {
        (Ok(ours), Ok(theirs)) => images(ours, theirs, start),
        (Err(_), Err(_)) => Vec::new(),
        (Err(message), Ok(_)) => vec![format!("only BuildKit builds it; Crossdock: {}", one_line(message))],
        (Ok(_), Err(message)) => vec![format!("only Crossdock builds it; BuildKit: {}", one_line(message))],
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The differences of two images.
pub(crate) fn images(ours: &Image, theirs: &Image, start: &Start) -> Vec<String> {
    let mut found = Vec::new();
    documents("config", &ours.config, &theirs.config, start, &mut found);
    documents("manifest", &ours.manifest, &theirs.manifest, start, &mut found);
    trees(&ours.files(), &theirs.files(), start, &mut found);
    if ours.layers.len() == theirs.layers.len() {
        // What later layers hide.
        let last: BTreeSet<String> = found.iter().cloned().collect();
        for (number, (ours, theirs)) in ours.layers.iter().zip(&theirs.layers).enumerate() {
            let mut here = Vec::new();
            trees(ours, theirs, start, &mut here);
            let hidden = here.into_iter().filter(|difference| !last.contains(difference));
            found.extend(hidden.map(|difference| format!("after layer {}: {difference}", number + 1)));
        }
    }
    found
}

fn documents(place: &str, ours: &Value, theirs: &Value, start: &Start, found: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(mine), Value::Object(other)) => {
            let keys: BTreeSet<&String> = mine.keys().chain(other.keys()).collect();
            for key in keys {
                let place = format!("{place}.{key}");
                match (mine.get(key), other.get(key)) {
                    (Some(ours), Some(theirs)) => documents(&place, ours, theirs, start, found),
                    (Some(ours), None) => found.push(format!("{place}: {ours}, BuildKit has none")),
                    (None, Some(theirs)) => found.push(format!("{place}: none, BuildKit has {theirs}")),
                    (None, None) => {}
                }
            }
        }
        (Value::Array(mine), Value::Array(other)) if mine.len() == other.len() => {
            for (number, (ours, theirs)) in mine.iter().zip(other).enumerate() {
                documents(&format!("{place}[{number}]"), ours, theirs, start, found);
            }
        }
        (Value::String(ours), Value::String(theirs))
            if place.ends_with("created") && start.document_times_agree(ours, theirs) => {}
        _ if ours == theirs => {}
        _ => found.push(format!("{place}: {ours}, BuildKit {theirs}")),
    }
}

fn trees(ours: &Tree, theirs: &Tree, start: &Start, found: &mut Vec<String>) {
    let (our_links, their_links) = (ours.links(), theirs.links());
    let paths: BTreeSet<&String> = ours.entries.keys().chain(theirs.entries.keys()).collect();
    for path in paths {
        match (ours.entries.get(path), theirs.entries.get(path)) {
            (Some(mine), Some(other)) => {
                entries(path, mine, other, start, found);
                let (mine, other) = (&our_links[&mine.inode], &their_links[&other.inode]);
                if mine != other {
                    found.push(format!("{path}: links {mine:?}, BuildKit {other:?}"));
                }
            }
            (Some(mine), None) => found.push(format!("{path}: only with Crossdock, {}", shown(mine))),
            (None, Some(other)) => found.push(format!("{path}: only with BuildKit, {}", shown(other))),
            (None, None) => {}
        }
    }
}

fn entries(path: &str, ours: &Entry, theirs: &Entry, start: &Start, found: &mut Vec<String>) {
    let mut field = |name: &str, ours: String, theirs: String| {
        if ours != theirs {
            found.push(format!("{path}: {name} {ours}, BuildKit {theirs}"));
        }
    };
    field("kind", ours.kind.to_owned(), theirs.kind.to_owned());
    field("mode", format!("{:o}", ours.mode), format!("{:o}", theirs.mode));
    field("owner", owner(ours), owner(theirs));
    field("content", content(ours), content(theirs));
    field("target", ours.target.clone(), theirs.target.clone());
    field("device", format!("{:?}", ours.device), format!("{:?}", theirs.device));
    field("xattrs", xattrs(ours), xattrs(theirs));
    if !start.file_times_agree(theirs.kind, &ours.mtime, &theirs.mtime) {
        field("mtime", ours.mtime.clone(), theirs.mtime.clone());
    }
}

fn owner(entry: &Entry) -> String {
    format!("{}:{}", entry.owner.0, entry.owner.1)
}

/// Contents that differ behind what is shown of them still differ by their digest.
fn content(entry: &Entry) -> String {
    let shown = String::from_utf8_lossy(&entry.content[..entry.content.len().min(120)]).into_owned();
    let digest = crate::support::oci::digest(&entry.content);
    format!("{shown:?} ({} bytes, {})", entry.content.len(), &digest[..15])
}

fn xattrs(entry: &Entry) -> String {
    entry.xattrs.iter().fold(String::new(), |mut text, (name, value)| {
        write!(text, "{name}={:?} ", String::from_utf8_lossy(value)).unwrap();
        text
    })
}

fn shown(entry: &Entry) -> String {
    format!("{} {:o} {}", entry.kind, entry.mode, owner(entry))
}
