//! One line for each thing that happens: for CI logs, pipes and dumb terminals.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use owo_colors::OwoColorize as _;

use super::lines::LineBuffer;
use super::{Built, Clock, Out, Reporter, lock, sanitize, words};
use crate::cli::error::CliError;
use crate::event::{Event, EventSink, StepId, StepOutcome, Stream};

/// Bytes that move are reported this often, so that a log does not fill with them.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// `--progress plain`.
pub struct Plain {
    state: Mutex<State>,
    clock: Clock,
    colours: bool,
}

struct State {
    out: Out,
    steps: Vec<String>,
    running: BTreeMap<StepId, Running>,
    /// The step that the last line was about.
    last: Option<StepId>,
    /// When a line was last about what is fetched before there is a plan.
    fetch_shown: Duration,
}

struct Running {
    started: Duration,
    stdout: LineBuffer,
    stderr: LineBuffer,
    progress_shown: Duration,
    status: String,
}

impl Plain {
    /// Writes to `out`.
    pub fn new(out: Out, clock: Clock, colours: bool) -> Self {
        let state = State {
            out,
            steps: Vec::new(),
            running: BTreeMap::new(),
            last: None,
            fetch_shown: Duration::ZERO,
        };
        Self { state: Mutex::new(state), clock, colours }
    }

    /// A line about a step; its name comes first where the line before was about another one.
    fn step_line(&self, state: &mut State, step: StepId, text: &str) {
        let number = step.0 + 1;
        if state.last != Some(step) {
            let name = state.steps.get(step.0 as usize).map_or("", String::as_str);
            let name = sanitize(name.as_bytes(), false);
            let name = if self.colours { name.bold().to_string() } else { name };
            let gap = if state.last.is_some() { "\n" } else { "" };
            write(state, &format!("{gap}#{number} {name}\n"));
            state.last = Some(step);
        }
        if !text.is_empty() {
            write(state, &format!("#{number} {text}\n"));
        }
    }

    /// A line about no step.
    fn line(state: &mut State, text: &str) {
        let gap = if state.last.take().is_some() { "\n" } else { "" };
        write(state, &format!("{gap}{text}\n"));
    }

    fn log_lines(&self, state: &mut State, step: StepId, lines: &[String]) {
        let started = state.running.get(&step).map_or(Duration::ZERO, |running| running.started);
        let elapsed = self.clock.now().saturating_sub(started).as_secs_f64();
        for line in lines {
            self.step_line(state, step, format!("{elapsed:.3} {line}").trim_end());
        }
    }

    fn finish(&self, state: &mut State, step: StepId, outcome: &StepOutcome, took: Duration) {
        let mut lines = Vec::new();
        if let Some(running) = state.running.get_mut(&step) {
            let mut keep = |line: &[u8]| lines.push(sanitize(line, self.colours));
            running.stdout.finish(&mut keep);
            running.stderr.finish(&mut keep);
        }
        self.log_lines(state, step, &lines);
        state.running.remove(&step);
        if let StepOutcome::Ran { why } = outcome {
            let reason = sanitize(why.reason.as_bytes(), false);
            self.step_line(state, step, &format!("RUN because: {reason}"));
        }
        let text = sanitize(words::outcome(outcome, took).as_bytes(), false);
        let text = match outcome {
            _ if !self.colours => text,
            StepOutcome::Cached { .. } => text.green().to_string(),
            StepOutcome::Failed => text.red().to_string(),
            StepOutcome::WouldRun { .. } | StepOutcome::Cancelled => text.yellow().to_string(),
            _ => text,
        };
        self.step_line(state, step, &text);
    }
}

impl std::fmt::Debug for Plain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plain").finish_non_exhaustive()
    }
}

fn write(state: &mut State, text: &str) {
    // There is nobody to tell when standard error itself cannot be written.
    let _ = state.out.write_all(text.as_bytes());
    let _ = state.out.flush();
}

impl EventSink for Plain {
    fn emit(&self, event: Event) {
        let now = self.clock.now();
        let state = &mut *lock(&self.state);
        match event {
            Event::Planned { steps } => state.steps = steps,
            Event::Fetching { what, bytes: None } => {
                state.fetch_shown = now;
                Self::line(state, &sanitize(what.as_bytes(), false));
            }
            Event::Fetching { what, bytes: Some((current, total)) } => {
                if now.saturating_sub(state.fetch_shown) >= PROGRESS_INTERVAL {
                    state.fetch_shown = now;
                    let text = format!("{what} {}", words::bytes(current, total));
                    Self::line(state, &sanitize(text.as_bytes(), false));
                }
            }
            Event::StepStarted { step } => {
                let running = Running {
                    started: now,
                    stdout: LineBuffer::default(),
                    stderr: LineBuffer::default(),
                    progress_shown: now,
                    status: String::new(),
                };
                state.running.insert(step, running);
                self.step_line(state, step, "");
            }
            Event::StepLog { step, stream, data } => {
                let mut lines = Vec::new();
                if let Some(running) = state.running.get_mut(&step) {
                    let buffer = match stream {
                        Stream::Stdout => &mut running.stdout,
                        Stream::Stderr => &mut running.stderr,
                    };
                    buffer.push(&data, |line| lines.push(sanitize(line, self.colours)));
                }
                self.log_lines(state, step, &lines);
            }
            Event::StepStatus { step, status } => {
                let Some(running) = state.running.get_mut(&step) else { return };
                if running.status != status {
                    running.status.clone_from(&status);
                    self.step_line(state, step, &sanitize(status.as_bytes(), false));
                }
            }
            Event::StepProgress { step, what, current, total } => {
                let Some(running) = state.running.get_mut(&step) else { return };
                if now.saturating_sub(running.progress_shown) >= PROGRESS_INTERVAL {
                    running.progress_shown = now;
                    let text = format!("{what} {}", words::bytes(current, total));
                    self.step_line(state, step, &sanitize(text.as_bytes(), false));
                }
            }
            Event::StepFinished { step, outcome, duration } => self.finish(state, step, &outcome, duration),
            Event::Warning { message } => {
                let label =
                    if self.colours { "warning:".yellow().bold().to_string() } else { "warning:".into() };
                Self::line(state, &format!("{label} {}", sanitize(message.as_bytes(), false)));
            }
            Event::HitVerified { name, differences, empty_mounts, .. } => {
                let Some(message) = words::verified(&name, &differences, empty_mounts) else { return };
                let label =
                    if self.colours { "warning:".yellow().bold().to_string() } else { "warning:".into() };
                Self::line(state, &format!("{label} {}", sanitize(message.as_bytes(), false)));
            }
            Event::Loaded { engine, names } => Self::line(state, &words::loaded(&engine, &names)),
            Event::Finished(summary) => Self::line(state, &words::summary(&summary)),
        }
    }
}

impl Reporter for Plain {
    fn built(&self, image: &Built) {
        let state = &mut *lock(&self.state);
        for line in words::built(image) {
            Self::line(state, &line);
        }
    }

    fn failed(&self, error: &CliError) {
        let state = &mut *lock(&self.state);
        Self::line(state, error.render(self.colours).trim_end());
    }

    fn note(&self, text: &str) {
        Self::line(&mut lock(&self.state), text);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Hand, Page, finished, log, planned, started, summed};
    use super::*;
    use crate::event::Origin;

    fn plain() -> (Page, Hand, Plain) {
        let (page, hand) = (Page::default(), Hand::default());
        let plain = Plain::new(page.out(), hand.clock(), false);
        plain.emit(planned());
        (page, hand, plain)
    }

    #[test]
    fn what_is_fetched_before_the_plan_is_told_now_and_then() {
        let (page, hand) = (Page::default(), Hand::default());
        let plain = Plain::new(page.out(), hand.clock(), false);
        let fetching = |bytes| Event::Fetching { what: "http://here/c.tar".into(), bytes };
        plain.emit(Event::Fetching { what: "asking for http://here/c.tar".into(), bytes: None });
        for seconds in [1, 4, 5, 9, 11] {
            hand.set(seconds * 1000);
            plain.emit(fetching(Some((seconds * 1_000_000, Some(20_000_000)))));
        }
        let expected = "asking for http://here/c.tar\n\
                        http://here/c.tar 5.0 MB / 20.0 MB\n\
                        http://here/c.tar 11.0 MB / 20.0 MB\n";
        assert_eq!(page.text(), expected);
    }

    #[test]
    fn a_build_reads_from_top_to_bottom() {
        let (page, hand, plain) = plain();
        plain.emit(started(0));
        let saved = Duration::from_secs(3);
        plain.emit(finished(
            0,
            StepOutcome::Cached { from: "local cache".into(), saved, origin: Origin::default() },
            0,
        ));
        hand.set(100);
        plain.emit(started(1));
        plain.emit(Event::StepStatus { step: StepId(1), status: "waiting for another build".into() });
        hand.set(612);
        plain.emit(log(1, "cc -c a.c\ncc -c"));
        hand.set(700);
        plain.emit(log(1, " b.c\r\n\x1b[2Jlinking\r10%\r100%"));
        plain.emit(finished(1, StepOutcome::Ran { why: "src/a.c changed".into() }, 1234));
        plain.emit(Event::Warning { message: "the shared cache is slow".into() });
        plain.emit(summed());
        plain.built(&Built { digest: "sha256:aa".into(), names: vec!["app:1".into()], would_run: None });
        assert_eq!(
            page.text(),
            "#1 [build 1/2] FROM base\n\
             #1 CACHED (local cache, saved 3.0s)\n\
             \n\
             #2 [build 2/2] RUN make\n\
             #2 waiting for another build\n\
             #2 0.512 cc -c a.c\n\
             #2 0.600 cc -c b.c\n\
             #2 0.600 100%\n\
             #2 RUN because: src/a.c changed\n\
             #2 DONE 1.2s\n\
             \n\
             warning: the shared cache is slow\n\
             2 steps: 1 cached, 1 run, in 1.7s; 1.5 MB downloaded; 1m 05s saved\n\
             image sha256:aa\n\
             named app:1\n"
        );
    }

    #[test]
    fn steps_side_by_side_name_themselves_again() {
        let (page, _, plain) = plain();
        plain.emit(started(0));
        plain.emit(started(1));
        plain.emit(log(0, "a\n"));
        plain.emit(log(1, "b\n"));
        plain.emit(finished(0, StepOutcome::Failed, 1000));
        plain.emit(finished(1, StepOutcome::Cancelled, 1000));
        plain.failed(&CliError::message("it failed").hint("fix it"));
        assert_eq!(
            page.text(),
            "#1 [build 1/2] FROM base\n\n#2 [build 2/2] RUN make\n\n#1 [build 1/2] FROM base\n#1 0.000 a\n\n\
             #2 [build 2/2] RUN make\n#2 0.000 b\n\n#1 [build 1/2] FROM base\n#1 FAILED after 1.0s\n\n\
             #2 [build 2/2] RUN make\n#2 CANCELLED\n\nerror: it failed\nhint: fix it\n"
        );
    }

    #[test]
    fn moving_bytes_are_told_now_and_then() {
        let (page, hand, plain) = plain();
        plain.emit(started(0));
        for second in 0..12 {
            hand.set(second * 1000);
            plain.emit(Event::StepProgress {
                step: StepId(0),
                what: "pulling".into(),
                current: second * 1_000_000,
                total: Some(20_000_000),
            });
        }
        assert_eq!(
            page.text(),
            "#1 [build 1/2] FROM base\n#1 pulling 5.0 MB / 20.0 MB\n#1 pulling 10.0 MB / 20.0 MB\n"
        );
    }
}
