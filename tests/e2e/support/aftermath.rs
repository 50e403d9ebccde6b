//! What must not be left when a build has ended, however it ended: processes, mounts, unfinished files.

use std::path::Path;
use std::time::{Duration, Instant};

use super::lab::Lab;
use super::{Output, text};

/// The processes that have the mark in their environment: those of the steps, and whatever these have started.
pub(crate) fn marked_processes(mark: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        // One that ends while we look is gone, which is what we want of it.
        let read = |what: &str| std::fs::read(entry.path().join(what)).unwrap_or_default();
        if String::from_utf8_lossy(&read("environ")).contains(mark) {
            let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
            found.push(format!("{}: {command}", entry.path().display()));
        }
    }
    found
}

/// Steps of a killed build end soon after it, without anybody's help.
#[track_caller]
pub(crate) fn assert_no_processes(mark: &str) {
    let started = Instant::now();
    loop {
        let left = marked_processes(mark);
        if left.is_empty() {
            return;
        }
        assert!(started.elapsed() < Duration::from_secs(10), "left running: {left:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[track_caller]
pub(crate) fn assert_no_mounts_below(directory: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    // A small disk of the test's own lies directly in its directory.
    let own = |line: &&str| {
        let place = line.split(' ').nth(4).unwrap_or_default();
        line.contains(" - tmpfs tmpfs ") && Path::new(place).parent() == Some(directory)
    };
    let left: Vec<_> = mounts.lines().filter(|line| line.contains(text(directory)) && !own(line)).collect();
    assert!(left.is_empty(), "left mounted: {left:#?}");
}

#[track_caller]
pub(crate) fn assert_empty(directory: &Path) {
    let left: Vec<_> =
        walkdir::WalkDir::new(directory).min_depth(1).into_iter().map(Result::unwrap).collect();
    assert!(left.is_empty(), "left in {}: {left:#?}", directory.display());
}

/// Nothing is left of the lab's builds: no process, no mount, nothing in the directories for unfinished things.
#[track_caller]
pub(crate) fn assert_nothing_left(lab: &Lab) {
    // Every command of the lab has its home in its environment.
    assert_no_processes(text(&lab.context.path("home")));
    assert_no_mounts_below(&lab.context.path(""));
    assert_empty(&lab.context.path("tmp"));
    let unfinished = lab.context.path("xdg/crossdock/v1/tmp");
    if unfinished.exists() {
        assert_empty(&unfinished);
    }
}

/// A failure that is told well: by its own decision, and with every one of `parts` said.
#[track_caller]
pub(crate) fn assert_told(output: &Output, parts: &[&str]) {
    let told = output.stderr();
    for part in parts {
        assert!(told.contains(part), "should say {part:?}\n{output}");
    }
    assert!(told.contains("error"), "{output}");
    assert!(!told.contains("panicked") && !told.contains("RUST_BACKTRACE"), "{output}");
    assert!(output.stderr.len() < 64 << 10, "an error is no novel: {} bytes", output.stderr.len());
}
