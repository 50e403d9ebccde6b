//! `crossdock doctor`.

use owo_colors::OwoColorize as _;
use serde_json::json;

use super::args::{DoctorCommand, Format};
use super::backend::{self, Finding, Level};
use super::environment::Environment;
use super::error::{CliError, ExitStatus};

/// Runs the command.
pub(super) fn command(command: &DoctorCommand, environment: &Environment) -> Result<ExitStatus, CliError> {
    let local = backend::local_cache(None, environment)?;
    let findings = backend::doctor(&local);
    let text = match command.format {
        Format::Text => text(&findings, environment.colours() && environment.stdout_is_terminal),
        Format::Json => format!("{:#}\n", json(&findings)),
    };
    super::print(&text)?;
    let bad = findings.iter().any(|finding| finding.level == Level::Bad);
    Ok(if bad { ExitStatus::System } else { ExitStatus::Success })
}

fn word(level: Level) -> &'static str {
    match level {
        Level::Good => "ok",
        Level::Lesser => "limited",
        Level::Bad => "missing",
    }
}

fn text(findings: &[Finding], colours: bool) -> String {
    let mut text = String::new();
    for finding in findings {
        let level = format!("{:8}", word(finding.level));
        let level = match finding.level {
            _ if !colours => level,
            Level::Good => level.green().to_string(),
            Level::Lesser => level.yellow().to_string(),
            Level::Bad => level.red().to_string(),
        };
        text += &format!("{level} {}: {}\n", finding.name, finding.detail);
        if let Some(advice) = &finding.advice {
            text += &format!("         hint: {advice}\n");
        }
    }
    text += if findings.iter().any(|finding| finding.level == Level::Bad) {
        "Steps cannot be run on this machine; Dockerfiles without RUN can be built.\n"
    } else {
        "Steps can be run on this machine.\n"
    };
    text
}

fn json(findings: &[Finding]) -> serde_json::Value {
    let finding = |finding: &Finding| {
        json!({
            "name": finding.name,
            "level": word(finding.level),
            "detail": finding.detail,
            "hint": finding.advice,
        })
    };
    json!({
        "can_run": findings.iter().all(|finding| finding.level != Level::Bad),
        "findings": findings.iter().map(finding).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_comes_with_advice() {
        let finding = |level, advice: Option<&str>| Finding {
            level,
            name: "overlayfs".into(),
            detail: "something".into(),
            advice: advice.map(str::to_owned),
        };
        let findings = [finding(Level::Good, None), finding(Level::Bad, Some("load the module"))];
        assert_eq!(
            text(&findings, false),
            "ok       overlayfs: something\nmissing  overlayfs: something\n         hint: load the module\n\
             Steps cannot be run on this machine; Dockerfiles without RUN can be built.\n"
        );
        assert_eq!(json(&findings)["can_run"], false);
        assert_eq!(json(&findings[..1])["can_run"], true);
    }
}
