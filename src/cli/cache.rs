//! `crossdock cache`.

use std::io::{BufRead as _, Write as _};

use serde_json::json;

use super::args::{CacheCommand, CachePruneCommand, Format};
use super::backend::{self, PruneLimits, local_cache};
use super::environment::Environment;
use super::error::{CliError, ExitStatus};
use super::report::{duration, sanitize};
use crate::bytes::ByteSize;

/// Runs the command.
pub(super) fn command(command: &CacheCommand, environment: &Environment) -> Result<ExitStatus, CliError> {
    if matches!(command, CacheCommand::Prune(_)) {
        // Files of subordinate ids can be removed only by who has these ids.
        backend::Machine::enter();
    }
    let runtime = super::runtime()?;
    match command {
        CacheCommand::Ls(args) => {
            let local = local_cache(args.local.local_cache.as_deref(), environment)?;
            let records = runtime.block_on(backend::cache_records(&local))?;
            match args.format {
                Format::Json => print_json(&json!(
                    records
                        .iter()
                        .map(|record| json!({
                            "key": record.key,
                            "scope": record.scope,
                            "step": record.step,
                            "bytes": record.bytes,
                            "idle_seconds": record.idle.as_secs(),
                        }))
                        .collect::<Vec<_>>()
                )),
                Format::Text => {
                    let mut rows = vec![["KEY", "SIZE", "LAST USED", "SCOPE", "STEP"].map(str::to_owned)];
                    rows.extend(records.iter().map(|record| {
                        [
                            record.key.clone(),
                            ByteSize(record.bytes).to_string(),
                            format!("{} ago", duration(record.idle)),
                            record.scope.clone(),
                            sanitize(record.step.as_bytes(), false),
                        ]
                    }));
                    super::print(&table(&rows))
                }
            }?;
        }
        CacheCommand::Du(args) => {
            let local = local_cache(args.local.local_cache.as_deref(), environment)?;
            let usage = runtime.block_on(backend::cache_usage(&local))?;
            let total: u64 = usage.kinds.iter().map(|(_, _, bytes)| bytes).sum();
            match args.format {
                Format::Json => {
                    let kind = |(kind, count, bytes): &(String, u64, u64)| json!({"kind": kind, "count": count, "bytes": bytes});
                    let kinds: Vec<_> = usage.kinds.iter().map(kind).collect();
                    print_json(&json!({"directory": local, "bytes": total, "kinds": kinds}))
                }
                Format::Text => {
                    let mut rows = vec![["KIND", "COUNT", "SIZE"].map(str::to_owned)];
                    rows.extend(
                        usage
                            .kinds
                            .iter()
                            .map(|(kind, count, bytes)| [kind.clone(), count.to_string(), size(*bytes)]),
                    );
                    rows.push(["total".into(), String::new(), size(total)]);
                    super::print(&format!("{}\n{}", local.display(), table(&rows)))
                }
            }?;
        }
        CacheCommand::Prune(args) => prune(args, environment)?,
        CacheCommand::Verify(args) => {
            let local = local_cache(args.local.local_cache.as_deref(), environment)?;
            let found = runtime.block_on(backend::cache_verify(&local, args.repair))?;
            match args.format {
                Format::Json => print_json(&json!({
                    "checked": found.checked,
                    "damaged": found.damaged,
                    "repaired": found.repaired,
                })),
                Format::Text => {
                    let mut text = String::new();
                    for name in &found.damaged {
                        text += &format!("damaged: {}\n", sanitize(name.as_bytes(), false));
                    }
                    let repaired = if found.repaired { ", set aside" } else { "" };
                    text += &format!(
                        "{} objects checked, {} damaged{repaired}\n",
                        found.checked,
                        found.damaged.len(),
                    );
                    super::print(&text)
                }
            }?;
            if !found.damaged.is_empty() && !found.repaired {
                return Ok(ExitStatus::Found);
            }
        }
        CacheCommand::Mounts { command } => super::mounts::command(command, environment, &runtime)?,
    }
    Ok(ExitStatus::Success)
}

fn prune(args: &CachePruneCommand, environment: &Environment) -> Result<(), CliError> {
    let local = local_cache(args.local.local_cache.as_deref(), environment)?;
    if !args.force {
        let mut what = Vec::new();
        if args.all {
            what.push("everything".to_owned());
        }
        if let Some(size) = args.max_size {
            what.push(format!("what exceeds {size}"));
        }
        if let Some(age) = args.max_age {
            what.push(format!("what was not used for {}", duration(age)));
        }
        let question = format!("Remove {} from {}? [y/N] ", what.join(" and "), local.display());
        if !environment.stdin_is_terminal {
            return Err(CliError::usage("there is no terminal to ask for confirmation")
                .hint("give `--force` to remove without asking"));
        }
        if !confirm(&question)? {
            return Err(CliError::message("nothing was removed"));
        }
    }
    let limits =
        PruneLimits { all: args.all, max_bytes: args.max_size.map(|size| size.0), max_age: args.max_age };
    let pruned = super::runtime()?.block_on(backend::cache_prune(&local, limits))?;
    match args.format {
        Format::Json => {
            print_json(&json!({"records": pruned.records, "blobs": pruned.blobs, "bytes": pruned.bytes}))
        }
        Format::Text => super::print(&format!(
            "removed {} records and {} blobs, {}\n",
            pruned.records,
            pruned.blobs,
            size(pruned.bytes)
        )),
    }
}

pub(super) fn confirm(question: &str) -> Result<bool, CliError> {
    let ask = || {
        let mut stderr = std::io::stderr();
        stderr.write_all(question.as_bytes())?;
        stderr.flush()?;
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer)?;
        Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
    };
    ask().map_err(|error: std::io::Error| CliError::system(error))
}

fn size(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

pub(super) fn print_json(value: &serde_json::Value) -> Result<(), CliError> {
    super::print(&format!("{value:#}\n"))
}

/// Columns aligned to the left, two spaces apart.
pub(super) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            line += &format!("{cell:width$}  ");
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [["A".to_owned(), "B".to_owned()], ["long".to_owned(), "x".to_owned()]];
        assert_eq!(table(&rows), "A     B\nlong  x\n");
    }
}
