//! One JSON object a line, for programs. `docs/cli.md` has the schema.

use std::collections::BTreeMap;
use std::sync::Mutex;

use serde_json::{Map, Value, json};

use super::lines::LineBuffer;
use super::{Built, Clock, Out, Reporter, lock};
use crate::cli::error::CliError;
use crate::event::{Cause, Event, EventSink, HitDifference, Origin, StepId, StepOutcome, Stream, Why};

/// `--progress json`.
pub struct Json {
    state: Mutex<State>,
    clock: Clock,
}

struct State {
    out: Out,
    logs: BTreeMap<(StepId, bool), LineBuffer>,
}

/// The schema, for `docs/cli.md`: event, fields, meaning. Every object has `event` and `time_ms`, the milliseconds
/// since the start; steps are numbered from 0.
pub const SCHEMA: &[(&str, &str, &str)] = &[
    ("planned", "`steps`: [name]", "the plan; sent before all that is about steps"),
    (
        "fetching",
        "`what`, `current`: number or null, `total`: number or null",
        "something that the plan depends on is fetched, such as the build context",
    ),
    ("step_started", "`step`", "work on a step began"),
    ("step_log", "`step`, `stream`: `stdout`\\|`stderr`, `line`", "a line that the step's command printed"),
    ("step_status", "`step`, `status`", "what is being done for the step"),
    ("step_progress", "`step`, `what`, `current`, `total`: number or null", "bytes moved so far"),
    (
        "step_finished",
        "`step`, `outcome`: `cached`\\|`ran`\\|`done`\\|`failed`\\|`cancelled`\\|`would_run`, `duration_ms`, \
         `reason`, `causes`: [{`kind`, `name`, `by`}] and `nearest`: key or null (ran, would_run); `from`, `saved_ms` and \
         `record`: {`key`, `scope`, `created`, `builder`, `found`: `exact`\\|`traced`\\|`linked`} (cached)",
        "a step ended",
    ),
    (
        "hit_verified",
        "`step`, `name`, `same`: boolean, `differences`: [{`path`, `change`: `added`\\|`removed`\\|`content`\\|`metadata`}]",
        "a cached step was run again (`--verify-hits`), and what it made otherwise",
    ),
    ("warning", "`message`", "worth knowing"),
    ("loaded", "`engine`, `names`: [name]", "the image was loaded into this engine (`--load`)"),
    (
        "finished",
        "`cached`, `ran`, `elapsed_ms`, `saved_ms`, `downloaded`, `uploaded`: bytes",
        "the figures of a build that ended well",
    ),
    ("result", "`digest`, `names`: [name], `would_run`: number or null", "the image; sent last"),
    (
        "error",
        "`message`, `causes`: [text], `hint`: text or null, `exit_code`",
        "the command failed; sent last",
    ),
    ("note", "`message`", "anything else"),
];

impl Json {
    /// Writes to `out`.
    pub fn new(out: Out, clock: Clock) -> Self {
        Self { state: Mutex::new(State { out, logs: BTreeMap::new() }), clock }
    }

    fn write(&self, state: &mut State, event: &str, fields: Value) {
        let mut object = Map::new();
        object.insert("event".into(), event.into());
        object.insert("time_ms".into(), millis(self.clock.now()));
        if let Value::Object(fields) = fields {
            object.extend(fields);
        }
        let mut line = Value::Object(object).to_string();
        line.push('\n');
        // There is nobody to tell when standard error itself cannot be written.
        let _ = state.out.write_all(line.as_bytes());
        let _ = state.out.flush();
    }

    fn log(&self, state: &mut State, step: StepId, stream: Stream, data: Option<&[u8]>) {
        let key = (step, stream == Stream::Stderr);
        let mut lines = Vec::new();
        let mut keep = |line: &[u8]| lines.push(String::from_utf8_lossy(line).into_owned());
        match data {
            Some(data) => state.logs.entry(key).or_default().push(data, &mut keep),
            None => {
                if let Some(mut buffer) = state.logs.remove(&key) {
                    buffer.finish(&mut keep);
                }
            }
        }
        let stream = if key.1 { "stderr" } else { "stdout" };
        for line in lines {
            self.write(state, "step_log", json!({"step": step.0, "stream": stream, "line": line}));
        }
    }
}

impl std::fmt::Debug for Json {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Json").finish_non_exhaustive()
    }
}

/// Why a step was not taken from a record: `reason`, `causes` and `nearest`.
pub fn why_json(why: &Why) -> Value {
    let cause = |cause: &Cause| match (cause.name.as_str(), &cause.by) {
        ("", _) => json!({"kind": cause.kind.as_str()}),
        (name, None) => json!({"kind": cause.kind.as_str(), "name": name}),
        (name, Some(by)) => json!({"kind": cause.kind.as_str(), "name": name, "by": by}),
    };
    let causes: Vec<Value> = why.causes.iter().map(cause).collect();
    json!({"reason": why.reason, "causes": causes, "nearest": why.nearest})
}

/// The record that a step was taken from.
pub fn origin_json(origin: &Origin) -> Value {
    json!({
        "key": origin.key,
        "scope": origin.scope,
        "created": origin.created,
        "builder": origin.builder,
        "found": origin.found.as_str(),
    })
}

fn millis(duration: std::time::Duration) -> Value {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).into()
}

impl EventSink for Json {
    fn emit(&self, event: Event) {
        let state = &mut *lock(&self.state);
        match event {
            Event::Planned { steps } => self.write(state, "planned", json!({"steps": steps})),
            Event::Fetching { what, bytes } => {
                let (current, total) = bytes.map_or((None, None), |(current, total)| (Some(current), total));
                self.write(state, "fetching", json!({"what": what, "current": current, "total": total}));
            }
            Event::StepStarted { step } => self.write(state, "step_started", json!({"step": step.0})),
            Event::StepLog { step, stream, data } => self.log(state, step, stream, Some(&data)),
            Event::StepStatus { step, status } => {
                self.write(state, "step_status", json!({"step": step.0, "status": status}));
            }
            Event::StepProgress { step, what, current, total } => self.write(
                state,
                "step_progress",
                json!({"step": step.0, "what": what, "current": current, "total": total}),
            ),
            Event::StepFinished { step, outcome, duration } => {
                self.log(state, step, Stream::Stdout, None);
                self.log(state, step, Stream::Stderr, None);
                let (name, extra) = match outcome {
                    StepOutcome::Cached { from, saved, origin } => (
                        "cached",
                        json!({"from": from, "saved_ms": millis(saved), "record": origin_json(&origin)}),
                    ),
                    StepOutcome::Ran { why } => ("ran", why_json(&why)),
                    StepOutcome::Done => ("done", json!({})),
                    StepOutcome::Failed => ("failed", json!({})),
                    StepOutcome::Cancelled => ("cancelled", json!({})),
                    StepOutcome::WouldRun { why } => ("would_run", why_json(&why)),
                };
                let mut fields = json!({"step": step.0, "outcome": name, "duration_ms": millis(duration)});
                if let (Some(fields), Value::Object(extra)) = (fields.as_object_mut(), extra) {
                    fields.extend(extra);
                }
                self.write(state, "step_finished", fields);
            }
            Event::HitVerified { step, name, differences, empty_mounts } => {
                let difference = |found: &HitDifference| json!({"path": found.path, "change": found.change});
                let differences: Vec<Value> = differences.iter().map(difference).collect();
                let same = differences.is_empty();
                let fields = json!({
                    "step": step.0, "name": name, "same": same, "differences": differences,
                    "empty_cache_mounts": empty_mounts,
                });
                self.write(state, "hit_verified", fields);
            }
            Event::Warning { message } => self.write(state, "warning", json!({"message": message})),
            Event::Loaded { engine, names } => {
                self.write(state, "loaded", json!({"engine": engine, "names": names}));
            }
            Event::Finished(summary) => self.write(
                state,
                "finished",
                json!({
                    "cached": summary.cached,
                    "ran": summary.ran,
                    "elapsed_ms": millis(summary.elapsed),
                    "saved_ms": millis(summary.saved),
                    "downloaded": summary.downloaded,
                    "uploaded": summary.uploaded,
                }),
            ),
        }
    }
}

impl Reporter for Json {
    fn built(&self, image: &Built) {
        let fields = json!({"digest": image.digest, "names": image.names, "would_run": image.would_run});
        self.write(&mut lock(&self.state), "result", fields);
    }

    fn failed(&self, error: &CliError) {
        let causes: Vec<String> = error.error.chain().skip(1).map(ToString::to_string).collect();
        let fields = json!({
            "message": error.error.to_string(),
            "causes": causes,
            "hint": error.hint,
            "exit_code": error.status.code(),
        });
        self.write(&mut lock(&self.state), "error", fields);
    }

    fn note(&self, text: &str) {
        self.write(&mut lock(&self.state), "note", json!({"message": text}));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::testing::{Hand, Page, finished, log, planned, started, summed};
    use super::*;
    use crate::event::{CauseKind, Found};

    #[test]
    fn every_event_is_one_object() {
        let (page, hand) = (Page::default(), Hand::default());
        let json = Json::new(page.out(), hand.clock());
        json.emit(planned());
        json.emit(started(1));
        hand.set(5);
        json.emit(log(1, "a\x1b[31m\nb"));
        let why = Why {
            reason: "/a, which it read, changed".into(),
            causes: vec![
                Cause { kind: CauseKind::Content, name: "/a".into(), by: Some("cc1".into()) },
                Cause::of(CauseKind::Base),
            ],
            nearest: Some("sha256:bb".into()),
        };
        json.emit(finished(1, StepOutcome::Ran { why }, 20));
        let saved = Duration::from_secs(2);
        let origin = Origin {
            key: "sha256:aa".into(),
            scope: "main".into(),
            created: "2026-01-02T03:04:05Z".into(),
            builder: "crossdock 0.1.0".into(),
            found: Found::Traced,
        };
        json.emit(finished(0, StepOutcome::Cached { from: "local cache".into(), saved, origin }, 0));
        json.emit(summed());
        json.failed(&CliError::message("no").hint("try"));
        let lines: Vec<Value> = page.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let expected = [
            json!({"event": "planned", "time_ms": 0, "steps": ["[build 1/2] FROM base", "[build 2/2] RUN make"]}),
            json!({"event": "step_started", "time_ms": 0, "step": 1}),
            json!({"event": "step_log", "time_ms": 5, "step": 1, "stream": "stdout", "line": "a\u{1b}[31m"}),
            json!({"event": "step_log", "time_ms": 5, "step": 1, "stream": "stdout", "line": "b"}),
            json!({"event": "step_finished", "time_ms": 5, "step": 1, "outcome": "ran", "duration_ms": 20,
                   "reason": "/a, which it read, changed", "nearest": "sha256:bb",
                   "causes": [{"kind": "content", "name": "/a", "by": "cc1"}, {"kind": "base"}]}),
            json!({"event": "step_finished", "time_ms": 5, "step": 0, "outcome": "cached", "duration_ms": 0,
                   "from": "local cache", "saved_ms": 2000,
                   "record": {"key": "sha256:aa", "scope": "main", "created": "2026-01-02T03:04:05Z",
                              "builder": "crossdock 0.1.0", "found": "traced"}}),
            json!({"event": "finished", "time_ms": 5, "cached": 1, "ran": 1, "elapsed_ms": 1700, "saved_ms": 65000,
                   "downloaded": 1_500_000, "uploaded": 0}),
            json!({"event": "error", "time_ms": 5, "message": "no", "causes": [], "hint": "try", "exit_code": 1}),
        ];
        assert_eq!(lines, expected);
        for line in &lines {
            let event = line["event"].as_str().unwrap();
            assert!(SCHEMA.iter().any(|(name, ..)| *name == event), "{event} is not documented");
        }
    }
}
