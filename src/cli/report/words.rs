//! The words and figures that reporters share.

use std::time::Duration;

use super::Built;
use super::sanitize::sanitize;
use crate::bytes::ByteSize;
use crate::event::{Found, HitDifference, StepOutcome, Summary};

/// As many paths of one step are named where people read.
const DIFFERENCES_SHOWN: usize = 10;

/// A duration for people: `0.4s`, `12.3s`, `2m 05s`, `1h 02m`.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{:.1}s", (duration.as_secs_f64() * 10.0).floor() / 10.0),
        60..3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h {:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

/// The figures at the end of a build as one line.
pub fn summary(summary: &Summary) -> String {
    let total = summary.cached.saturating_add(summary.ran);
    let mut text = match total {
        // A dry run in which nothing is cached, or a Dockerfile with nothing but FROM.
        0 => "no step was cached or run".to_owned(),
        1 => format!("1 step: {} cached, {} run", summary.cached, summary.ran),
        _ => format!("{total} steps: {} cached, {} run", summary.cached, summary.ran),
    };
    text += &format!(", in {}", duration(summary.elapsed));
    if summary.downloaded > 0 {
        text += &format!("; {} downloaded", ByteSize(summary.downloaded));
    }
    if summary.uploaded > 0 {
        text += &format!("; {} uploaded", ByteSize(summary.uploaded));
    }
    if summary.saved >= Duration::from_millis(100) {
        text += &format!("; {} saved", duration(summary.saved));
    }
    text
}

/// Where an image was loaded.
pub(super) fn loaded(engine: &str, names: &[String]) -> String {
    let names = if names.is_empty() { String::new() } else { format!(": {}", names.join(", ")) };
    sanitize(format!("loaded into {engine}{names}").as_bytes(), false)
}

/// What is to be said of a command that was run again although its result was cached; nothing if it made the same.
pub(super) fn verified(name: &str, differences: &[HitDifference], empty_mounts: bool) -> Option<String> {
    let shown = differences.iter().take(DIFFERENCES_SHOWN);
    let mut paths: Vec<String> = shown.map(|found| format!("{} ({})", found.path, found.change)).collect();
    if differences.len() > paths.len() {
        paths.push(format!("{} more", differences.len() - paths.len()));
    }
    (!paths.is_empty()).then(|| {
        let (is, again) = if empty_mounts {
            (
                "is not deterministic, or depends on what is in its cache mounts",
                "run again with empty cache mounts",
            )
        } else {
            ("is not deterministic", "run again")
        };
        format!("{name} {is}: {again}, it made something else of {}", paths.join(", "))
    })
}

/// How a step ended, in a few words.
pub(super) fn outcome(outcome: &StepOutcome, took: Duration) -> String {
    match outcome {
        StepOutcome::Cached { from, saved, origin } => {
            let mut text = format!("CACHED ({from}");
            if *saved >= Duration::from_millis(100) {
                text += &format!(", saved {}", duration(*saved));
            }
            if origin.found == Found::Traced {
                text += "; it read nothing that changed";
            }
            text + ")"
        }
        StepOutcome::Ran { .. } | StepOutcome::Done => format!("DONE {}", duration(took)),
        StepOutcome::Failed => format!("FAILED after {}", duration(took)),
        StepOutcome::Cancelled => "CANCELLED".to_owned(),
        StepOutcome::WouldRun { why } => format!("WOULD RUN: {}", why.reason),
    }
}

/// Bytes that moved: `3.0 MB / 10.0 MB`.
pub(super) fn bytes(current: u64, total: Option<u64>) -> String {
    match total {
        Some(total) => format!("{} / {}", ByteSize(current), ByteSize(total)),
        None => ByteSize(current).to_string(),
    }
}

/// The sentence of a dry run.
fn would_run(count: u32) -> String {
    match count {
        0 => "dry run: no step would run".to_owned(),
        1 => "dry run: 1 step would run".to_owned(),
        _ => format!("dry run: {count} steps would run"),
    }
}

/// The lines about the image that was built.
pub(super) fn built(image: &Built) -> Vec<String> {
    if let Some(count) = image.would_run {
        return vec![would_run(count)];
    }
    let mut lines = vec![format!("image {}", image.digest)];
    if !image.names.is_empty() {
        lines.push(format!("named {}", image.names.join(", ")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        for (millis, text) in
            [(0, "0.0s"), (59_999, "59.9s"), (60_000, "1m 00s"), (125_000, "2m 05s"), (3_720_000, "1h 02m")]
        {
            assert_eq!(duration(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn the_summary_leaves_out_what_is_nothing() {
        let mut figures = Summary { cached: 1, elapsed: Duration::from_millis(250), ..Summary::default() };
        assert_eq!(summary(&figures), "1 step: 1 cached, 0 run, in 0.2s");
        assert_eq!(summary(&Summary::default()), "no step was cached or run, in 0.0s");
        figures.uploaded = 2_000;
        figures.saved = Duration::from_secs(3);
        assert_eq!(summary(&figures), "1 step: 1 cached, 0 run, in 0.2s; 2.0 kB uploaded; 3.0s saved");
    }
}
