//! `docs/cli.md`, made from the definitions of the command line, so that the two cannot differ.

use clap::{ArgAction, Command, CommandFactory as _};

use super::args::Cli;
use super::error::ExitStatus;
use super::{env_vars, report};

/// The text of `docs/cli.md`.
pub(super) fn markdown() -> String {
    let mut root = Cli::command();
    root.build();
    let mut text = String::from(
        "# The command line\n\nThis page is generated: `crossdock __docs > docs/cli.md`. Flags win over environment \
         variables, and these over defaults.\n",
    );
    for command in root.get_subcommands() {
        section(&mut text, "crossdock", command, 2);
    }
    text += "\n## Exit codes\n\n| code | meaning |\n|---|---|\n";
    for (status, meaning) in ExitStatus::ALL {
        text += &format!("| {} | {meaning} |\n", status.code());
    }
    text += "\n## Environment variables\n\n| variable | purpose |\n|---|---|\n";
    for variable in env_vars::ALL {
        text += &format!("| `{}` | {} |\n", variable.name, variable.purpose);
    }
    text += "\n## The events of `--progress json`\n\nOne object a line on standard error. Every object has `event`, \
             and `time_ms`: milliseconds since the start. Steps are numbered from 0. Fields may be added.\n\n\
             | event | fields | meaning |\n|---|---|---|\n";
    for (event, fields, meaning) in report::SCHEMA {
        text += &format!("| `{event}` | {fields} | {meaning} |\n");
    }
    text
}

fn section(text: &mut String, parent: &str, command: &Command, level: usize) {
    if command.is_hide_set() {
        return;
    }
    let path = format!("{parent} {}", command.get_name());
    *text += &format!("\n{} `{path}`\n\n", "#".repeat(level));
    if let Some(about) = command.get_about() {
        *text += &format!("{about}.\n\n");
    }
    let mut usage = path.clone();
    if command.has_subcommands() {
        usage += " COMMAND";
    }
    if command.get_opts().any(|arg| !arg.is_hide_set()) {
        usage += " [OPTIONS]";
    }
    for positional in command.get_positionals() {
        let name =
            positional.get_value_names().and_then(|names| names.first()).map_or("ARG", |name| name.as_str());
        usage += &format!(" {name}");
    }
    *text += &format!("```text\n{usage}\n```\n");
    let rows: Vec<String> =
        command.get_arguments().filter(|arg| !arg.is_hide_set() && arg.get_id() != "help").map(row).collect();
    if !rows.is_empty() {
        *text += "\n| argument | meaning |\n|---|---|\n";
        for row in rows {
            *text += &row;
        }
    }
    if let Some(examples) = command.get_after_help() {
        *text += &format!("\n```text\n{examples}\n```\n");
    }
    for subcommand in command.get_subcommands() {
        section(text, &path, subcommand, level + 1);
    }
}

fn row(arg: &clap::Arg) -> String {
    let value = arg.get_value_names().map(|names| names.join(" ")).unwrap_or_default();
    let mut name = match (arg.get_short(), arg.get_long()) {
        (Some(short), Some(long)) => format!("-{short}, --{long}"),
        (None, Some(long)) => format!("--{long}"),
        _ => value.clone(),
    };
    let takes_value = !matches!(arg.get_action(), ArgAction::SetTrue);
    if arg.get_long().is_some() && takes_value {
        let optional = arg.get_num_args().is_some_and(|range| range.min_values() == 0);
        name += &if optional { format!("[={value}]") } else { format!(" {value}") };
    }
    let mut meaning = arg.get_help().map(ToString::to_string).unwrap_or_default();
    if matches!(arg.get_action(), ArgAction::Append) {
        meaning += " (may be repeated)";
    }
    let possible: Vec<String> = arg
        .get_possible_values()
        .iter()
        .filter(|value| takes_value && !value.is_hide_set())
        .map(|value| format!("`{}`", value.get_name()))
        .collect();
    if !possible.is_empty() && !arg.is_hide_possible_values_set() {
        meaning += &format!("; one of {}", possible.join(", "));
    }
    let defaults: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    if takes_value && !defaults.is_empty() && !arg.is_hide_default_value_set() {
        meaning += &format!("; default `{}`", defaults.join(","));
    }
    if let Some(variable) = arg.get_env() {
        meaning += &format!("; environment `{}`", variable.to_string_lossy());
    }
    format!("| `{}` | {} |\n", name.replace('|', "\\|"), meaning.replace('|', "\\|").replace('\n', " "))
}
