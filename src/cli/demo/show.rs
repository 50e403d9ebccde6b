//! Shows a build in few words: one line a step, when it has ended.

use std::sync::Mutex;

use crate::cli::error::CliError;
use crate::cli::report::{Built, Out, Reporter, duration, lock, sanitize};
use crate::event::{Event, EventSink, StepOutcome};

/// The reporter of the demo.
pub(super) struct Show(Mutex<State>);

struct State {
    out: Out,
    steps: Vec<String>,
    /// The URL of the shared cache, which is shown as `shared cache`.
    shared: String,
}

impl Show {
    /// Writes to `out`. `shared` is the URL of the shared cache.
    pub(super) fn new(out: Out, shared: String) -> Self {
        Self(Mutex::new(State { out, steps: Vec::new(), shared }))
    }
}

impl std::fmt::Debug for Show {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Show").finish_non_exhaustive()
    }
}

/// Names are cut and filled to this width.
const NAME_WIDTH: usize = 64;

impl EventSink for Show {
    fn emit(&self, event: Event) {
        let state = &mut *lock(&self.0);
        let line = match event {
            Event::Planned { steps } => {
                state.steps = steps;
                return;
            }
            Event::StepFinished { step, outcome, duration: took } => {
                let (verdict, detail) = match outcome {
                    StepOutcome::Cached { from, .. } if from == state.shared => {
                        ("cached", "(shared cache)".into())
                    }
                    StepOutcome::Cached { from, .. } => ("cached", format!("({from})")),
                    StepOutcome::Ran { why } => ("ran", format!("{}: {}", duration(took), why.reason)),
                    StepOutcome::Done => return,
                    StepOutcome::Failed => ("failed", String::new()),
                    StepOutcome::Cancelled => ("cancelled", String::new()),
                    StepOutcome::WouldRun { why } => ("would run", why.reason),
                };
                let name = state.steps.get(step.0 as usize).map_or("", String::as_str);
                let name: String = sanitize(name.as_bytes(), false).chars().take(NAME_WIDTH).collect();
                let detail = sanitize(detail.as_bytes(), false);
                format!("  {name:NAME_WIDTH$}  {verdict} {detail}")
            }
            Event::Warning { message } => format!("  warning: {}", sanitize(message.as_bytes(), false)),
            _ => return,
        };
        // There is nobody to tell when the output cannot be written.
        let _ = writeln!(state.out, "{}", line.trim_end());
    }
}

impl Reporter for Show {
    fn built(&self, _: &Built) {}

    fn failed(&self, error: &CliError) {
        let _ = lock(&self.0).out.write_all(error.render(false).as_bytes());
    }

    fn note(&self, text: &str) {
        let _ = writeln!(lock(&self.0).out, "  {text}");
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::event::{Origin, StepId};

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_step_is_one_line() {
        let page = Page::default();
        let show = Show::new(Box::new(page.clone()), "file:///x/".into());
        show.emit(Event::Planned { steps: vec!["a".into(), "b".into()] });
        let end = |step, outcome| Event::StepFinished {
            step: StepId(step),
            outcome,
            duration: Duration::from_millis(1500),
        };
        let (from, saved, origin) = ("file:///x/".into(), Duration::ZERO, Origin::default());
        show.emit(end(0, StepOutcome::Cached { from, saved, origin }));
        show.emit(end(1, StepOutcome::Ran { why: "first time".into() }));
        let text = String::from_utf8(page.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            lines,
            [vec!["a", "cached", "(shared", "cache)"], vec!["b", "ran", "1.5s:", "first", "time"]]
        );
    }
}
