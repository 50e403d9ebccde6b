//! How `crossdock fingerprint` prints the keys of steps.

use serde_json::{Value as Json, json};

use super::build::status;
use super::error::CliError;
use super::report::sanitize;
use crate::build::StepReport;
use crate::record::{Preimage, Value};

/// For people: each step with its key and, indented, what the key is the digest of.
pub(super) fn text(steps: &[StepReport]) -> String {
    let mut text = String::new();
    for step in steps {
        text += &format!("{}  ({})\n", sanitize(step.name.as_bytes(), false), status(&step.outcome));
        match &step.preimage {
            None => text += "  its key depends on the result of a step that would run\n",
            Some(preimage) => {
                text += &format!("  key {}\n", preimage.key());
                fields(&mut text, preimage);
            }
        }
    }
    text
}

/// What a key is made of, indented.
pub(super) fn fields(text: &mut String, preimage: &Preimage) {
    for field in &preimage.fields {
        lines(text, 2, &field.name, &field.value);
    }
}

fn lines(text: &mut String, indent: usize, name: &str, value: &Value) {
    let pad = " ".repeat(indent);
    let name = sanitize(name.as_bytes(), false);
    let mut line = |value: &str| *text += &format!("{pad}{name}: {value}\n");
    match value {
        Value::Text(value) => line(&one_line(value.as_bytes())),
        Value::Bytes(value) => line(&one_line(value)),
        Value::Uint(value) => line(&value.to_string()),
        Value::Digest(value) => line(&value.to_string()),
        Value::List(items) if items.is_empty() => line("[]"),
        Value::Map(items) if items.is_empty() => line("{}"),
        Value::List(items) => {
            *text += &format!("{pad}{name}:\n");
            for item in items {
                lines(text, indent + 2, "-", item);
            }
        }
        Value::Map(items) => {
            *text += &format!("{pad}{name}:\n");
            for (key, item) in items {
                lines(text, indent + 2, key, item);
            }
        }
    }
}

/// A value on one line, with its line breaks visible.
fn one_line(value: &[u8]) -> String {
    let lines: Vec<String> = value.split(|byte| *byte == b'\n').map(|line| sanitize(line, false)).collect();
    lines.join("\\n")
}

/// For programs: an array of objects with `name`, `status`, `key` and `inputs` (name and value, in their order).
pub(super) fn json(steps: &[StepReport]) -> Result<String, CliError> {
    let steps: Vec<Json> = steps
        .iter()
        .map(|step| {
            let inputs = step.preimage.as_ref().map(inputs_json);
            json!({
                "name": step.name,
                "status": status(&step.outcome),
                "key": step.preimage.as_ref().map(|preimage| preimage.key().to_string()),
                "inputs": inputs,
            })
        })
        .collect();
    let mut text = serde_json::to_string_pretty(&steps).map_err(CliError::system)?;
    text.push('\n');
    Ok(text)
}

/// What a key is made of, in order: `name` and `value` of each.
pub(super) fn inputs_json(preimage: &Preimage) -> Json {
    let input = |name: &str, value: &Value| json!({"name": name, "value": value_json(value)});
    preimage.fields.iter().map(|field| input(&field.name, &field.value)).collect()
}

fn value_json(value: &Value) -> Json {
    match value {
        Value::Text(text) => text.as_str().into(),
        Value::Bytes(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => text.into(),
            Err(_) => {
                use base64::Engine as _;
                json!({"base64": base64::engine::general_purpose::STANDARD.encode(bytes)})
            }
        },
        Value::Uint(number) => (*number).into(),
        Value::Digest(digest) => digest.to_string().into(),
        Value::List(items) => items.iter().map(value_json).collect(),
        Value::Map(items) => {
            items.iter().map(|(name, value)| json!({"name": name, "value": value_json(value)})).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::StepOutcome;

    #[test]
    fn keys_are_shown_with_all_their_inputs() {
        let mut preimage = Preimage::default();
        preimage
            .add("kind", "run")
            .add("env", Value::Map(vec![("PATH".into(), "/bin".into())]))
            .add("args", vec!["sh", "-c", "a\nb"])
            .add("hosts", Value::List(Vec::new()));
        let key = preimage.key();
        let would = StepOutcome::WouldRun { why: "first time".into() };
        let steps = [
            StepReport {
                name: "[1/2] RUN a".into(),
                preimage: Some(preimage),
                outcome: would.clone(),
                past: Vec::new(),
            },
            StepReport { name: "[2/2] RUN b".into(), preimage: None, outcome: would, past: Vec::new() },
        ];
        assert_eq!(
            text(&steps),
            format!(
                "[1/2] RUN a  (would run)\n  key {key}\n  kind: run\n  env:\n    PATH: /bin\n  args:\n    -: sh\n    \
                 -: -c\n    -: a\\nb\n  hosts: []\n[2/2] RUN b  (would run)\n  its key depends on the result of a \
                 step that would run\n"
            )
        );
        let value: Json = serde_json::from_str(&json(&steps).unwrap()).unwrap();
        assert_eq!(value[0]["key"], key.to_string());
        assert_eq!(value[0]["inputs"][2]["value"][2], "a\nb");
        assert_eq!(value[1]["inputs"], Json::Null);
    }
}
