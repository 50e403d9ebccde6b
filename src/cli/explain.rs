//! `crossdock explain`: a dry run that says of each step from which record it would be taken, or why it would run.

use std::time::Duration;

use serde_json::{Value as Json, json};

use super::args::{ExplainCommand, Format, Progress};
use super::backend::{self, Cancel, Machine, Settings};
use super::environment::Environment;
use super::error::{CliError, ExitStatus};
use super::report::{self, duration, origin_json, sanitize, why_json};
use super::request;
use crate::build::StepReport;
use crate::event::{Cause, Found, Origin, StepOutcome, Why};
use crate::explain::{self, Advice, Past};

/// Runs the command.
pub(super) fn command(command: &ExplainCommand, environment: &Environment) -> Result<ExitStatus, CliError> {
    let mut request = request::of_args(&command.build, environment, &mut std::io::stdin().lock())?;
    request.dry_run = true;
    request.tags.clone_from(&command.tag);
    let settings = Settings::resolve(&command.build.cache, environment)?;
    let reporter = report::choose(Progress::Quiet, environment);
    let machine = Machine::enter();
    let runtime = super::runtime()?;
    let outcome = runtime.block_on(super::build::run(machine, &settings, &request, &reporter))?;
    let answer = match command.format {
        _ if command.advice => {
            let advice = runtime.block_on(async {
                let engine = backend::engine(Machine::idle(), &settings, reporter, Cancel::new()?).await?;
                let past = |step| {
                    let StepReport { name, past, .. }: &StepReport = step;
                    Past { name, records: past }
                };
                let past: Vec<Past<'_>> = outcome.steps.iter().map(past).collect();
                Ok::<_, CliError>(explain::advise(&engine.cache, &past).await)
            })?;
            match command.format {
                Format::Text => advice_text(&advice),
                Format::Json => format!("{:#}\n", Json::Array(advice.iter().map(advice_json).collect())),
            }
        }
        Format::Text => text(&outcome.steps),
        Format::Json => format!("{:#}\n", Json::Array(outcome.steps.iter().map(step_json).collect())),
    };
    super::print(&answer)?;
    Ok(ExitStatus::Success)
}

/// As much of a key as `inspect step` needs and people read.
fn short(key: &str) -> &str {
    let hex = key.split_once(':').map_or(key, |(_, hex)| hex);
    hex.get(..12).unwrap_or(hex)
}

/// For people.
fn text(steps: &[StepReport]) -> String {
    let (mut text, mut cached, mut runs, mut saved) = (String::new(), 0, 0, Duration::ZERO);
    for step in steps {
        text += &format!("{}\n", sanitize(step.name.as_bytes(), false));
        match &step.outcome {
            StepOutcome::Cached { from, saved: own, origin } => {
                cached += 1;
                saved += *own;
                text += &hit(from, *own, origin);
            }
            StepOutcome::WouldRun { why } => {
                runs += 1;
                text += &miss(why);
            }
            StepOutcome::Ran { .. } | StepOutcome::Done | StepOutcome::Failed | StepOutcome::Cancelled => {}
        }
        text.push('\n');
    }
    let saved = if saved.is_zero() { String::new() } else { format!(" ({} saved)", duration(saved)) };
    text + &format!("{cached} would be taken from the cache{saved}, {runs} would run\n")
}

fn hit(from: &str, saved: Duration, origin: &Origin) -> String {
    let why = match origin.found {
        Found::Exact => "nothing that it could read changed",
        Found::Traced => "it read nothing that changed",
        Found::Linked => "the copy is the same, whatever it is put on",
    };
    let line = format!(
        "  cached: {why}; saves {}\n  record {} ({from}), made {} by {} in the scope {}\n",
        duration(saved),
        short(&origin.key),
        origin.created,
        origin.builder,
        origin.scope
    );
    line.lines().map(|line| sanitize(line.as_bytes(), false) + "\n").collect()
}

fn miss(why: &Why) -> String {
    let mut text = format!("  would run: {}\n", sanitize(why.reason.as_bytes(), false));
    for Cause { kind, name, by } in why.causes.iter().filter(|cause| !cause.name.is_empty()) {
        let by = by.as_ref().map(|by| format!("  ({})", sanitize(by.as_bytes(), false)));
        let name = sanitize(name.as_bytes(), false);
        text += &format!("    {:10}  {name}{}\n", kind.as_str(), by.unwrap_or_default());
    }
    if let Some(nearest) = &why.nearest {
        text += &format!("  nearest record {}\n", short(nearest));
    }
    text
}

/// The advice, for people.
fn advice_text(all: &[Advice]) -> String {
    if all.is_empty() {
        return "nothing that the records of earlier builds show\n".to_owned();
    }
    let mut text = String::new();
    for Advice { step, finding, runs, cost } in all {
        let runs = match runs {
            0 => "no recorded run yet".to_owned(),
            1 => format!("{} in 1 run", duration(*cost)),
            runs => format!("{} in {runs} runs", duration(*cost)),
        };
        text += &format!("{}  ({runs})\n", sanitize(step.as_bytes(), false));
        text += &format!("  {}\n", sanitize(finding.to_string().as_bytes(), false));
    }
    text
}

/// The advice, for programs.
fn advice_json(advice: &Advice) -> Json {
    json!({
        "kind": advice.finding.kind(),
        "step": advice.step,
        "subjects": advice.finding.subjects(),
        "runs": advice.runs,
        "cost_ms": u64::try_from(advice.cost.as_millis()).unwrap_or(u64::MAX),
        "text": advice.finding.to_string(),
    })
}

/// For programs.
fn step_json(step: &StepReport) -> Json {
    let mut object = json!({
        "name": step.name,
        "status": super::build::status(&step.outcome),
        "key": step.preimage.as_ref().map(|preimage| preimage.key().to_string()),
    });
    let more = match &step.outcome {
        StepOutcome::Cached { from, saved, origin } => {
            let saved = u64::try_from(saved.as_millis()).unwrap_or(u64::MAX);
            json!({"from": from, "saved_ms": saved, "record": origin_json(origin)})
        }
        StepOutcome::WouldRun { why } | StepOutcome::Ran { why } => why_json(why),
        StepOutcome::Done | StepOutcome::Failed | StepOutcome::Cancelled => json!({}),
    };
    if let (Some(object), Json::Object(more)) = (object.as_object_mut(), more) {
        object.extend(more);
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::CauseKind;

    #[test]
    fn steps_say_where_they_come_from_or_why_not() {
        let origin = Origin {
            key: format!("sha256:{}", "ab".repeat(32)),
            scope: "main".into(),
            created: "2026-01-02T03:04:05Z".into(),
            builder: "crossdock 0.1.0".into(),
            found: Found::Traced,
        };
        let cached =
            StepOutcome::Cached { from: "local cache".into(), saved: Duration::from_secs(3), origin };
        let causes = vec![
            Cause { kind: CauseKind::Content, name: "/a\u{1b}[2J".into(), by: None },
            Cause::of(CauseKind::Base),
        ];
        let why =
            Why { reason: "/a changed".into(), causes, nearest: Some("sha256:0123456789abcdef".into()) };
        let step =
            |name: &str, outcome| StepReport { name: name.into(), preimage: None, outcome, past: Vec::new() };
        let steps = [step("[1/2] RUN a", cached), step("[2/2] RUN b", StepOutcome::WouldRun { why })];
        assert_eq!(
            text(&steps),
            "[1/2] RUN a\n  cached: it read nothing that changed; saves 3.0s\n  \
             record abababababab (local cache), made 2026-01-02T03:04:05Z by crossdock 0.1.0 in the scope main\n\n\
             [2/2] RUN b\n  would run: /a changed\n    content     /a\n  nearest record 0123456789ab\n\n\
             1 would be taken from the cache (3.0s saved), 1 would run\n"
        );
        assert_eq!(step_json(&steps[1])["causes"][1], json!({"kind": "base"}));
        assert_eq!(step_json(&steps[0])["record"]["found"], "traced");
    }
}
