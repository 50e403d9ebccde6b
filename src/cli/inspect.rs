//! `crossdock inspect step`: a record, with what its step read.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value as Json, json};

use super::args::{Format, InspectCommand, InspectStepCommand, Progress};
use super::backend::{self, Cancel, Machine, Settings, describe};
use super::environment::Environment;
use super::error::{CliError, ExitStatus};
use super::fingerprint;
use super::report::{self, duration, sanitize};
use crate::bytes::ByteSize;
use crate::explain::{ReadPath, reads};
use crate::image::time;
use crate::record::{Key, Preimage, Record, Scope, Value};
use crate::store::{Cache, maintain};

/// Fewer digits of a key name too much.
const DIGITS_MIN: usize = 4;

/// A step's log is cut to less than this when it is kept.
const LOG_BYTES_MAX: u64 = 4 << 20;

/// Runs the command.
pub(super) fn command(command: &InspectCommand, environment: &Environment) -> Result<ExitStatus, CliError> {
    let InspectCommand::Step(args) = command;
    let settings = Settings::resolve(&args.cache, environment)?;
    let reporter = report::choose(Progress::Quiet, environment);
    let answer = super::runtime()?.block_on(async {
        let engine = backend::engine(Machine::idle(), &settings, reporter, Cancel::new()?).await?;
        let record = find(&engine.cache, &args.key, &settings.scopes).await?;
        if args.log {
            return log(&engine.cache, &record).await;
        }
        let reads = reads(&engine.cache, &record).await.map(|reads| chosen(reads, args));
        Ok(match args.format {
            Format::Text => text(&record, reads.as_deref()),
            Format::Json => format!("{:#}\n", to_json(&record, reads.as_deref())),
        })
    })?;
    super::print(&answer)?;
    Ok(ExitStatus::Success)
}

/// The record that `key` names: by the first digits if it is here, whole if only the shared cache has it.
async fn find(cache: &Cache, key: &str, scopes: &[Scope]) -> Result<Record, CliError> {
    let digits = key.strip_prefix("sha256:").unwrap_or(key).to_ascii_lowercase();
    if digits.len() < DIGITS_MIN || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let message = format!("`{key}` is no key of a step: at least {DIGITS_MIN} hexadecimal digits");
        return Err(CliError::usage(message).hint("`crossdock explain PATH` prints the keys of a build"));
    }
    let local = cache.local().clone();
    let items = tokio::task::spawn_blocking(move || maintain::list(&local)).await;
    let mut items = items.map_err(CliError::system)?.map_err(CliError::system)?;
    items.retain(|item| item.key.0.hex().starts_with(&digits));
    let keys: BTreeSet<Key> = items.iter().map(|item| item.key).collect();
    if keys.len() > 1 {
        let some: Vec<String> = keys.iter().take(4).map(|key| key.0.short()).collect();
        let message = format!("{} records have a key that begins with {digits}", keys.len());
        return Err(CliError::message(message).hint(format!("give more digits: {}", some.join(", "))));
    }
    // The same step may have been run in several scopes: the first of those that a build would look into counts.
    let place = |scope: &Scope| scopes.iter().position(|known| known == scope).unwrap_or(scopes.len());
    if let Some(item) = items.into_iter().min_by_key(|item| place(&item.record.scope)) {
        return Ok(item.record);
    }
    if let Ok(digest) = format!("sha256:{digits}").parse()
        && let Some(hit) = cache.lookup_aside(&Key(digest)).await
    {
        return Ok(hit.record);
    }
    Err(CliError::message(format!("no record has a key that begins with {digits}")).hint(
        "`crossdock cache ls` lists what is here; of what only the shared cache has the whole key is needed",
    ))
}

async fn log(cache: &Cache, record: &Record) -> Result<String, CliError> {
    let Some(digest) = &record.log else {
        return Err(CliError::message("the step printed nothing, or its log was not kept"));
    };
    let bytes = cache.read_blob(digest, LOG_BYTES_MAX).await;
    let bytes = bytes.ok_or_else(|| CliError::message("the step's log is no longer in the cache"))?;
    Ok(bytes.split_inclusive(|byte| *byte == b'\n').map(line).collect())
}

fn line(bytes: &[u8]) -> String {
    let text = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    sanitize(text, false) + "\n"
}

/// The paths that are asked for; all of them if nothing is.
fn chosen(reads: Vec<ReadPath>, args: &InspectStepCommand) -> Vec<ReadPath> {
    let all = !args.files && !args.names;
    let wanted = |read: &ReadPath| all || args.files && read.content() || args.names && read.names();
    reads.into_iter().filter(wanted).collect()
}

/// What a tree of the step is called: `/` or where its mount is.
fn tree_name(preimage: &Preimage, tree: usize) -> String {
    let Some(Value::List(mounts)) = preimage.get("mounts") else { return "/".to_owned() };
    let fields = |mount: &Value| match mount {
        Value::Map(fields) => fields.clone(),
        _ => Vec::new(),
    };
    let text = |fields: &[(String, Value)], name: &str| {
        fields.iter().find(|(known, _)| known == name).and_then(|(_, value)| match value {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        })
    };
    let binds = mounts.iter().map(fields).filter(|fields| text(fields, "type").as_deref() == Some("bind"));
    match tree.checked_sub(1) {
        None => "/".to_owned(),
        Some(number) => {
            let target = binds.filter_map(|fields| text(&fields, "target")).nth(number);
            target.unwrap_or_else(|| format!("mount {tree}"))
        }
    }
}

fn look(read: &ReadPath) -> &'static str {
    match read {
        _ if read.is_absent() => "absent",
        _ if read.content() => "content",
        _ if read.names() => "names",
        _ => "attributes",
    }
}

/// For people.
fn text(record: &Record, reads: Option<&[ReadPath]>) -> String {
    let clean = |text: &str| sanitize(text.as_bytes(), false);
    let mut text = format!(
        "step      {}\nkey       {}\nscope     {}\nmade      {} by {}\ntook      {}\ntree      {}\n",
        clean(&describe(&record.preimage)),
        record.key(),
        record.scope,
        time::format(record.created),
        clean(&record.builder),
        duration(Duration::from_millis(record.duration_ms)),
        record.tree,
    );
    for layer in &record.layers {
        text += &format!("layer     {}  {}\n", layer.digest, ByteSize(layer.size));
    }
    if let Some(log) = &record.log {
        text += &format!("log       {log}  (`--log` prints it)\n");
    }
    text += "\nkeyed on\n";
    fingerprint::fields(&mut text, &record.preimage);
    let Some(reads) = reads else {
        return text + "\nwhat it read is not known: it is no command, or was not traced\n";
    };
    let paths = if reads.len() == 1 { "path" } else { "paths" };
    text += &format!("\nread set ({} {paths})\n", reads.len());
    let mut tree = 0;
    for read in reads {
        if read.tree != tree {
            tree = read.tree;
            text += &format!("  in the mount {}\n", clean(&tree_name(&record.preimage, tree)));
        }
        let by = read.by.as_ref().map(|by| format!("  ({})", clean(by)));
        text += &format!("  {:10}  {}{}\n", look(read), clean(&read.path), by.unwrap_or_default());
    }
    text
}

/// For programs.
fn to_json(record: &Record, reads: Option<&[ReadPath]>) -> Json {
    let layer = |layer: &crate::layer::LayerDescriptor| json!({"digest": layer.digest.to_string(), "diff_id": layer.diff_id.to_string(), "size": layer.size});
    let read = |read: &ReadPath| json!({"tree": tree_name(&record.preimage, read.tree), "path": read.path, "look": look(read), "by": read.by});
    json!({
        "step": describe(&record.preimage),
        "key": record.key().to_string(),
        "scope": record.scope.to_string(),
        "created": time::format(record.created),
        "builder": record.builder,
        "duration_ms": record.duration_ms,
        "tree": record.tree.to_string(),
        "layers": record.layers.iter().map(layer).collect::<Vec<_>>(),
        "log": record.log.map(|log| log.to_string()),
        "inputs": fingerprint::inputs_json(&record.preimage),
        "reads": reads.map(|reads| reads.iter().map(read).collect::<Vec<_>>()),
    })
}
