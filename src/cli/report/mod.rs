//! Reporters: they turn the engine's events into what people and programs read.
//!
//! All of them write to standard error, so that standard output stays free for results.

mod json;
mod lines;
mod plain;
mod quiet;
mod sanitize;
mod tty;
mod words;

use std::fmt;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use json::{Json, SCHEMA, origin_json, why_json};
pub use plain::Plain;
pub use quiet::Quiet;
pub use sanitize::sanitize;
pub use tty::Tty;
pub use words::{duration, summary};

use super::args::Progress;
use super::environment::Environment;
use super::error::CliError;
use crate::event::EventSink;

/// A sink for events that also shows how the command ended.
pub trait Reporter: EventSink + fmt::Debug {
    /// Shows the image that was built. Called at most once, after the last event.
    fn built(&self, image: &Built);

    /// Shows the error. Called at most once, after the last event.
    fn failed(&self, error: &CliError);

    /// Shows a sentence that is neither an event nor an error: the first interrupt, for example.
    fn note(&self, text: &str);

    /// Puts the terminal back into its ordinary state; nothing is shown after it. May be called more than once.
    fn close(&self) {}
}

/// What a build gave, for the last lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// The digest of the manifest.
    pub digest: String,
    /// The names of the image.
    pub names: Vec<String>,
    /// With `--dry-run`: how many steps would run.
    pub would_run: Option<u32>,
}

/// Where reporters take the time from: the time since they were made.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Duration + Send + Sync>);

impl Clock {
    /// The real time from now on.
    pub fn start() -> Self {
        let start = Instant::now();
        Self(Arc::new(move || start.elapsed()))
    }

    /// Any other source.
    pub fn new(clock: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self(Arc::new(clock))
    }

    /// The time since the start.
    pub fn now(&self) -> Duration {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({:?})", self.now())
    }
}

/// Where a reporter writes.
pub type Out = Box<dyn Write + Send>;

/// The lock, also after a panic of another thread: what a reporter keeps is right after every single statement.
pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The reporter for `progress` in `environment`.
pub fn choose(progress: Progress, environment: &Environment) -> Arc<dyn Reporter> {
    let colours = environment.colours();
    let out: Out = Box::new(std::io::stderr());
    let clock = Clock::start();
    match progress {
        Progress::Auto if environment.is_live_terminal() => Tty::start(clock, colours),
        Progress::Tty => Tty::start(clock, colours),
        Progress::Auto | Progress::Plain => Arc::new(Plain::new(out, clock, colours)),
        Progress::Quiet => Arc::new(Quiet::new(out, colours)),
        Progress::Json => Arc::new(Json::new(out, clock)),
    }
}

#[cfg(test)]
mod testing {
    use std::io::Write;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use super::{Clock, Out};
    use crate::event::{Event, StepId, StepOutcome, Stream, Summary};

    /// Collects what is written.
    #[derive(Debug, Clone, Default)]
    pub(super) struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Page {
        pub(super) fn out(&self) -> Out {
            Box::new(self.clone())
        }

        pub(super) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    /// A clock that the test moves.
    #[derive(Debug, Clone, Default)]
    pub(super) struct Hand(Arc<AtomicU64>);

    impl Hand {
        pub(super) fn clock(&self) -> Clock {
            let hand = self.0.clone();
            Clock::new(move || Duration::from_millis(hand.load(Ordering::SeqCst)))
        }

        pub(super) fn set(&self, millis: u64) {
            self.0.store(millis, Ordering::SeqCst);
        }
    }

    pub(super) fn planned() -> Event {
        Event::Planned { steps: vec!["[build 1/2] FROM base".into(), "[build 2/2] RUN make".into()] }
    }

    pub(super) fn started(step: u32) -> Event {
        Event::StepStarted { step: StepId(step) }
    }

    pub(super) fn log(step: u32, text: &str) -> Event {
        Event::StepLog { step: StepId(step), stream: Stream::Stdout, data: text.into() }
    }

    pub(super) fn finished(step: u32, outcome: StepOutcome, millis: u64) -> Event {
        Event::StepFinished { step: StepId(step), outcome, duration: Duration::from_millis(millis) }
    }

    pub(super) fn summed() -> Event {
        Event::Finished(Summary {
            cached: 1,
            ran: 1,
            elapsed: Duration::from_millis(1700),
            saved: Duration::from_secs(65),
            downloaded: 1_500_000,
            uploaded: 0,
        })
    }
}
