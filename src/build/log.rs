//! What a command prints.

use std::collections::VecDeque;

use super::engine::Engine;
use super::error::BuildError;
use super::mask::Masker;
use super::shown::Shown;
use crate::digest::Digest;
use crate::event::{Event, Events, StepId, Stream};

/// How many of a failed step's last lines its error shows.
const TAIL_LINES: usize = 20;

/// As much of a line is kept for the error.
const TAIL_LINE_BYTES: usize = 400;

/// As much of a step's log is kept with its record.
const LOG_BYTES_MAX: usize = 1 << 20;

/// What a command prints: passed on as it comes, with secrets masked, and the end of it kept.
pub(crate) struct Log {
    events: Events,
    step: StepId,
    masks: [Masker; 2],
    shown: [Shown; 2],
    kept: Vec<u8>,
    tail: VecDeque<String>,
    line: Vec<u8>,
}

impl Log {
    /// The log of `step`, in which `secrets` are masked and `values` are looked for.
    pub(crate) fn new(
        events: Events,
        step: StepId,
        secrets: &[Vec<u8>],
        values: &[(String, String)],
    ) -> Self {
        let mask = || Masker::new(secrets.iter().map(Vec::as_slice));
        Self {
            events,
            step,
            masks: [mask(), mask()],
            shown: [Shown::new(values), Shown::new(values)],
            kept: Vec::new(),
            tail: VecDeque::new(),
            line: Vec::new(),
        }
    }

    /// Takes what the command has printed.
    pub(crate) fn take(&mut self, stream: Stream, data: &[u8]) {
        let mask = &mut self.masks[usize::from(stream == Stream::Stderr)];
        let shown = mask.push(data);
        self.show(stream, shown);
    }

    /// The command has ended.
    pub(crate) fn end(&mut self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let rest = self.masks[usize::from(stream == Stream::Stderr)].finish();
            self.show(stream, rest);
        }
        self.end_line();
    }

    fn show(&mut self, stream: Stream, data: Vec<u8>) {
        if data.is_empty() {
            return;
        }
        self.shown[usize::from(stream == Stream::Stderr)].push(&data);
        let room = LOG_BYTES_MAX.saturating_sub(self.kept.len());
        self.kept.extend_from_slice(&data[..data.len().min(room)]);
        for byte in &data {
            match byte {
                b'\n' => self.end_line(),
                _ if self.line.len() < TAIL_LINE_BYTES => self.line.push(*byte),
                _ => {}
            }
        }
        self.events.emit(Event::StepLog { step: self.step, stream, data });
    }

    fn end_line(&mut self) {
        // A progress bar overwrites its line again and again: the last state counts.
        let text = String::from_utf8_lossy(&self.line);
        let text = text.trim_end_matches('\r').rsplit('\r').next().unwrap_or_default();
        if !text.trim().is_empty() {
            if self.tail.len() == TAIL_LINES {
                self.tail.pop_front();
            }
            self.tail.push_back(text.chars().filter(|c| !c.is_control() || *c == '\t').collect());
        }
        self.line.clear();
    }

    /// Which of `values` it shows.
    pub(crate) fn shown(&self) -> impl Iterator<Item = &str> {
        self.shown.iter().flat_map(Shown::names)
    }

    /// Its last lines.
    pub(crate) fn tail(&self) -> Vec<String> {
        self.tail.iter().cloned().collect()
    }

    /// Keeps the log as a blob.
    pub(crate) fn store(&self, engine: &Engine) -> Result<Option<Digest>, BuildError> {
        if self.kept.is_empty() {
            return Ok(None);
        }
        let stored = engine.cache.local().store_bytes(self.kept.clone());
        stored.map(Some).map_err(|error| BuildError::cache("storing a step's log", error))
    }
}
