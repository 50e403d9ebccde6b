//! Live lines for the running steps; finished ones scroll up as one line each.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use owo_colors::OwoColorize as _;

use super::lines::LineBuffer;
use super::sanitize::truncate;
use super::{Built, Clock, Reporter, lock, sanitize, words};
use crate::cli::error::CliError;
use crate::event::{Event, EventSink, StepId, StepOutcome, Stream};

/// A build that is over sooner shows its lines without any animation.
const QUIET_START: Duration = Duration::from_millis(250);
/// Redrawing: 10 times a second by the ticker, and never more than 20 times.
const TICK: Duration = Duration::from_millis(100);
const DRAWS_PER_SECOND: u8 = 20;
/// Lines of a running step's log that are shown.
const TAIL: usize = 6;
/// The size of a terminal that does not tell.
const SIZE_DEFAULT: (usize, usize) = (80, 24);

/// `--progress tty`.
pub struct Tty {
    state: Mutex<State>,
    bar: ProgressBar,
    clock: Clock,
    colours: bool,
    ticker: Mutex<Option<(mpsc::Sender<()>, JoinHandle<()>)>>,
    this: Weak<Self>,
}

#[derive(Default)]
struct State {
    /// What is fetched before there is a plan.
    fetching: String,
    steps: Vec<String>,
    finished: usize,
    running: BTreeMap<StepId, Running>,
    closed: bool,
}

struct Running {
    started: Duration,
    stdout: LineBuffer,
    stderr: LineBuffer,
    tail: VecDeque<String>,
    status: String,
}

impl Tty {
    /// Takes over standard error. The thread that redraws starts with the first fetch or plan: before it, the process must
    /// be able to enter a user namespace, which takes a single thread.
    pub fn start(clock: Clock, colours: bool) -> Arc<Self> {
        let target = ProgressDrawTarget::stderr_with_hz(DRAWS_PER_SECOND);
        let bar = ProgressBar::with_draw_target(None, target);
        // The message is the whole frame: `frame` makes it, and cuts it to the terminal.
        bar.set_style(ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_bar()));
        Arc::new_cyclic(|this| Self {
            state: Mutex::default(),
            bar,
            clock,
            colours,
            ticker: Mutex::new(None),
            this: this.clone(),
        })
    }

    fn start_ticker(&self) {
        let mut ticker = lock(&self.ticker);
        if ticker.is_some() {
            return;
        }
        let (stop, stopped) = mpsc::channel();
        let this = self.this.clone();
        let thread = std::thread::Builder::new().name("progress".into()).spawn(move || tick(&this, &stopped));
        // Without the thread the lines are redrawn only when something happens.
        *ticker = thread.ok().map(|thread| (stop, thread));
    }

    fn redraw(&self, state: &State) {
        let now = self.clock.now();
        if state.closed || now < QUIET_START {
            return;
        }
        let frame = frame(state, now, terminal_size(), self.colours);
        self.bar.set_message(frame.join("\n"));
        self.bar.tick();
    }

    /// A line that scrolls up.
    fn print(&self, state: &State, text: &str) {
        if state.closed || self.bar.is_hidden() {
            // After the end, or where standard error is no terminal at all.
            use std::io::Write as _;
            let _ = writeln!(std::io::stderr(), "{text}");
        } else {
            self.bar.println(text);
        }
    }

    fn finish(&self, state: &mut State, step: StepId, outcome: &StepOutcome, took: Duration) {
        let running = state.running.remove(&step);
        state.finished += 1;
        let name = state.steps.get(step.0 as usize).map_or("", String::as_str);
        let line = finished_line(name, outcome, took, self.colours);
        // What a failed step printed stays on the screen.
        if let (StepOutcome::Failed, Some(mut running)) = (outcome, running) {
            let mut rest = Vec::new();
            running.stdout.finish(|line| rest.push(sanitize(line, self.colours)));
            running.stderr.finish(|line| rest.push(sanitize(line, self.colours)));
            for line in running.tail.iter().chain(&rest) {
                self.print(state, &format!("  | {line}"));
            }
        }
        self.print(state, &line);
    }
}

impl std::fmt::Debug for Tty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tty").finish_non_exhaustive()
    }
}

fn tick(tty: &Weak<Tty>, stopped: &mpsc::Receiver<()>) {
    while stopped.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
        let Some(tty) = tty.upgrade() else { return };
        tty.redraw(&lock(&tty.state));
    }
}

/// Columns and rows of the terminal on standard error.
fn terminal_size() -> (usize, usize) {
    match rustix::termios::tcgetwinsize(rustix::stdio::stderr()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
        _ => SIZE_DEFAULT,
    }
}

/// What is shown of the running steps: for each a line with its name, what it does and its time, and the end of its
/// log. Fits into `size`.
fn frame(state: &State, now: Duration, size: (usize, usize), colours: bool) -> Vec<String> {
    // The last column stays free: some terminals wrap a line that fills it.
    let width = size.0.saturating_sub(1).max(1);
    let height = size.1.saturating_sub(1).max(1);
    let mut lines = Vec::new();
    if !state.fetching.is_empty() {
        lines.push(truncate(&sanitize(state.fetching.as_bytes(), false), width));
    }
    if !state.steps.is_empty() {
        lines.push(truncate(&format!("[{}/{}] steps", state.finished, state.steps.len()), width));
    }
    let shown = state.running.len().min(height.saturating_sub(2).max(1));
    let hidden = state.running.len() - shown;
    let room = height.saturating_sub(1 + shown + usize::from(hidden > 0));
    let tail = (room / shown.max(1)).min(TAIL);
    for (step, running) in state.running.iter().take(shown) {
        let name = state.steps.get(step.0 as usize).map_or("", String::as_str);
        let elapsed = words::duration(now.saturating_sub(running.started));
        let mut right = elapsed;
        if !running.status.is_empty() {
            right = format!("{} {right}", sanitize(running.status.as_bytes(), false));
        }
        // The time must be seen on a narrow terminal: the name gives way, down to a third of the line.
        let right = truncate(&right, width.saturating_sub(width / 3 + 1));
        let name =
            truncate(&sanitize(name.as_bytes(), false), width.saturating_sub(right.chars().count() + 1));
        let gap = width.saturating_sub(name.chars().count() + right.chars().count()).max(1);
        let name = if colours { name.bold().to_string() } else { name };
        lines.push(truncate(&format!("{name}{}{right}", " ".repeat(gap)), width));
        let partials = [&running.stdout, &running.stderr].map(LineBuffer::partial);
        let partials = partials.iter().filter(|line| !line.is_empty()).map(|line| sanitize(line, colours));
        let log: Vec<String> = running.tail.iter().cloned().chain(partials).collect();
        for line in &log[log.len().saturating_sub(tail)..] {
            lines.push(truncate(&format!("  | {line}"), width));
        }
    }
    if hidden > 0 {
        lines.push(truncate(&format!("and {hidden} more"), width));
    }
    lines
}

/// The one line that stays of a step.
fn finished_line(name: &str, outcome: &StepOutcome, took: Duration, colours: bool) -> String {
    let name = sanitize(name.as_bytes(), false);
    let mut text = words::outcome(outcome, took);
    if let StepOutcome::Ran { why } = outcome {
        text = format!("{text} because: {}", why.reason);
    }
    let text = sanitize(text.as_bytes(), false);
    if !colours {
        return format!("{name}  {text}");
    }
    let text = match outcome {
        StepOutcome::Cached { .. } => text.green().to_string(),
        StepOutcome::Failed => text.red().to_string(),
        StepOutcome::WouldRun { .. } | StepOutcome::Cancelled => text.yellow().to_string(),
        StepOutcome::Ran { .. } | StepOutcome::Done => text,
    };
    format!("{}  {text}", name.bold())
}

impl EventSink for Tty {
    fn emit(&self, event: Event) {
        let now = self.clock.now();
        let state = &mut *lock(&self.state);
        match event {
            Event::Fetching { what, bytes } => {
                state.fetching = match bytes {
                    Some((current, total)) => format!("{what} {}", words::bytes(current, total)),
                    None => what,
                };
                self.start_ticker();
            }
            Event::Planned { steps } => {
                state.fetching.clear();
                state.steps = steps;
                self.start_ticker();
            }
            Event::StepStarted { step } => {
                let running = Running {
                    started: now,
                    stdout: LineBuffer::default(),
                    stderr: LineBuffer::default(),
                    tail: VecDeque::new(),
                    status: String::new(),
                };
                state.running.insert(step, running);
            }
            Event::StepLog { step, stream, data } => {
                let Some(running) = state.running.get_mut(&step) else { return };
                let buffer = match stream {
                    Stream::Stdout => &mut running.stdout,
                    Stream::Stderr => &mut running.stderr,
                };
                let tail = &mut running.tail;
                buffer.push(&data, |line| {
                    tail.push_back(sanitize(line, self.colours));
                    if tail.len() > TAIL {
                        tail.pop_front();
                    }
                });
            }
            Event::StepStatus { step, status } => {
                if let Some(running) = state.running.get_mut(&step) {
                    running.status = status;
                }
            }
            Event::StepProgress { step, what, current, total } => {
                if let Some(running) = state.running.get_mut(&step) {
                    running.status = format!("{what} {}", words::bytes(current, total));
                }
            }
            Event::StepFinished { step, outcome, duration } => {
                self.finish(state, step, &outcome, duration);
                self.redraw(state);
            }
            Event::Warning { message } => {
                let label =
                    if self.colours { "warning:".yellow().bold().to_string() } else { "warning:".into() };
                self.print(state, &format!("{label} {}", sanitize(message.as_bytes(), false)));
            }
            Event::HitVerified { name, differences, empty_mounts, .. } => {
                let Some(message) = words::verified(&name, &differences, empty_mounts) else { return };
                let label =
                    if self.colours { "warning:".yellow().bold().to_string() } else { "warning:".into() };
                self.print(state, &format!("{label} {}", sanitize(message.as_bytes(), false)));
            }
            Event::Loaded { engine, names } => self.print(state, &words::loaded(&engine, &names)),
            Event::Finished(summary) => self.print(state, &words::summary(&summary)),
        }
    }
}

impl Reporter for Tty {
    fn built(&self, image: &Built) {
        self.close();
        let state = lock(&self.state);
        for line in words::built(image) {
            self.print(&state, &line);
        }
    }

    fn failed(&self, error: &CliError) {
        self.close();
        self.print(&lock(&self.state), error.render(self.colours).trim_end());
    }

    fn note(&self, text: &str) {
        self.print(&lock(&self.state), text);
    }

    fn close(&self) {
        let mut state = lock(&self.state);
        if !state.closed {
            state.closed = true;
            self.bar.finish_and_clear();
        }
        drop(state);
        if let Some((stop, thread)) = lock(&self.ticker).take() {
            drop(stop);
            // The ticker itself may hold the last reference.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

impl Drop for Tty {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Found, Origin};

    fn state() -> State {
        let mut running = Running {
            started: Duration::from_secs(1),
            stdout: LineBuffer::default(),
            stderr: LineBuffer::default(),
            tail: (0..6).map(|n| format!("line {n}")).collect(),
            status: String::new(),
        };
        running.stdout.push(b"half a li", |_| {});
        let other = Running {
            started: Duration::from_secs(2),
            stdout: LineBuffer::default(),
            stderr: LineBuffer::default(),
            tail: VecDeque::new(),
            status: "pulling 1.0 MB / 2.0 MB".into(),
        };
        State {
            fetching: String::new(),
            steps: vec![
                "[a 1/1] FROM base".into(),
                "[b 1/2] FROM other".into(),
                "[b 2/2] RUN make all".into(),
            ],
            finished: 1,
            running: BTreeMap::from([(StepId(1), other), (StepId(2), running)]),
            closed: false,
        }
    }

    #[test]
    fn running_steps_show_time_bytes_and_the_end_of_their_log() {
        let frame = frame(&state(), Duration::from_millis(4500), (61, 24), false);
        assert_eq!(
            frame,
            [
                "[1/3] steps",
                "[b 1/2] FROM other              pulling 1.0 MB / 2.0 MB 2.5s",
                "[b 2/2] RUN make all                                    3.5s",
                "  | line 1",
                "  | line 2",
                "  | line 3",
                "  | line 4",
                "  | line 5",
                "  | half a li",
            ]
        );
    }

    #[test]
    fn what_is_fetched_before_the_plan_has_a_line() {
        let fetching = "http://example.com/context.tar 1.0 MB / 2.0 MB".to_owned();
        let state = State { fetching, ..State::default() };
        assert_eq!(frame(&state, Duration::ZERO, (29, 24), false), ["http://example.com/context.t"]);
    }

    #[test]
    fn small_terminals_are_not_overrun() {
        for columns in 1..70 {
            for rows in 1..12 {
                let frame = frame(&state(), Duration::from_secs(5), (columns, rows), false);
                assert!(frame.len() <= rows.max(3), "{columns}x{rows}: {frame:?}");
                assert!(
                    frame.iter().all(|line| line.chars().count() <= columns),
                    "{columns}x{rows}: {frame:?}"
                );
            }
        }
    }

    #[test]
    fn finished_steps_are_one_line() {
        let took = Duration::from_millis(1200);
        let line = |outcome: StepOutcome| finished_line("[a] RUN x", &outcome, took, false);
        assert_eq!(
            line(StepOutcome::Ran { why: "first time".into() }),
            "[a] RUN x  DONE 1.2s because: first time"
        );
        let cached = |found| StepOutcome::Cached {
            from: "shared cache".into(),
            saved: Duration::ZERO,
            origin: Origin { found, ..Origin::default() },
        };
        assert_eq!(line(cached(Found::Exact)), "[a] RUN x  CACHED (shared cache)");
        assert_eq!(
            line(cached(Found::Traced)),
            "[a] RUN x  CACHED (shared cache; it read nothing that changed)"
        );
    }
}
