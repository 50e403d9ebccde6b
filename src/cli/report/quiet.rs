//! Nothing but errors.

use std::sync::Mutex;

use super::{Built, Out, Reporter};
use crate::cli::error::CliError;
use crate::event::{Event, EventSink};

/// `--progress quiet`.
pub struct Quiet {
    out: Mutex<Out>,
    colours: bool,
}

impl Quiet {
    /// Writes errors to `out`.
    pub fn new(out: Out, colours: bool) -> Self {
        Self { out: Mutex::new(out), colours }
    }
}

impl std::fmt::Debug for Quiet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Quiet").finish_non_exhaustive()
    }
}

impl EventSink for Quiet {
    fn emit(&self, _: Event) {}
}

impl Reporter for Quiet {
    fn built(&self, _: &Built) {}

    fn failed(&self, error: &CliError) {
        let mut out = super::lock(&self.out);
        // There is nobody to tell when standard error itself cannot be written.
        let _ = out.write_all(error.render(self.colours).as_bytes());
        let _ = out.flush();
    }

    fn note(&self, _: &str) {}
}
