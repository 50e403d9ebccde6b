//! Answers as text and JSON, in the shapes of BuildKit's `frontend/subrequests`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use super::{excerpt, tabs};
use crate::build::{BuildRequest, Checked, Outline, OutlineArg, OutlineMount, Target};
use crate::cli::error::CliError;
use crate::dockerfile::{Lines, Warning};

/// The Dockerfile that answers are about.
pub(super) struct Document<'r> {
    /// The name as the user would say it.
    shown: String,
    /// The name without directories, as the frontend sees it.
    name: String,
    data: &'r [u8],
}

/// Lines in the form of BuildKit's protocol: a range for each line.
#[derive(Debug, Default, Serialize)]
struct Location {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ranges: Vec<Range>,
}

#[derive(Debug, Serialize)]
struct Range {
    start: Position,
    end: Position,
}

#[derive(Debug, Serialize)]
struct Position {
    line: usize,
}

impl Location {
    fn of(lines: Option<Lines>) -> Self {
        let lines = lines.into_iter().flat_map(|lines| lines.start..=lines.end);
        let ranges = lines.map(|line| Range { start: Position { line }, end: Position { line } });
        Self { ranges: ranges.collect() }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_false(value: &bool) -> bool {
    !value
}

fn is_empty(text: &&str) -> bool {
    text.is_empty()
}

/// Pretty JSON as Go writes it, with what means something in HTML escaped.
fn json(value: &impl Serialize) -> Result<String, CliError> {
    let mut text = serde_json::to_string_pretty(value).map_err(CliError::system)?;
    for (c, escaped) in [
        ('<', "\\u003c"),
        ('>', "\\u003e"),
        ('&', "\\u0026"),
        ('\u{2028}', "\\u2028"),
        ('\u{2029}', "\\u2029"),
    ] {
        text = text.replace(c, escaped);
    }
    text.push('\n');
    Ok(text)
}

impl<'r> Document<'r> {
    /// The Dockerfile of a request; `file` is the value of `--file`.
    pub(super) fn new(request: &'r BuildRequest, file: Option<&str>) -> Self {
        let given = &request.dockerfile.name;
        let (shown, name) = match (given.as_str(), file) {
            ("-", _) => ("stdin".to_owned(), "Dockerfile"),
            (given, Some(_)) => (given.to_owned(), given.rsplit('/').next().unwrap_or(given)),
            (given, None) => {
                (crate::dockerfile::clean_path(given), given.rsplit('/').next().unwrap_or(given))
            }
        };
        Self { shown, name: name.to_owned(), data: &request.dockerfile.text }
    }

    fn encoded(&self) -> String {
        STANDARD.encode(self.data)
    }

    fn excerpt(&self, lines: Option<Lines>) -> String {
        let text = String::from_utf8_lossy(self.data);
        lines.map(|lines| excerpt::of(&self.shown, &text, lines)).unwrap_or_default()
    }

    /// What `--check` prints.
    pub(super) fn checked(&self, checked: &Checked) -> String {
        let mut warnings: Vec<&Warning> = checked.warnings.iter().collect();
        // In the order of the file; of those without a place, in the order of their names.
        warnings.sort_by(|a, b| match (a.lines, b.lines) {
            (None, None) => a.rule.name.cmp(b.rule.name),
            (a, b) => a.map(|lines| lines.start).cmp(&b.map(|lines| lines.start)),
        });
        let mut text = match warnings.len() {
            0 => String::new(),
            1 => "Check complete, 1 warning has been found!\n".to_owned(),
            count => format!("Check complete, {count} warnings have been found!\n"),
        };
        for Warning { rule, message, lines } in &warnings {
            text.push_str(&format!("\nWARNING: {}", rule.name));
            if !rule.url.is_empty() {
                text.push_str(&format!(" - {}", rule.url));
            }
            text.push_str(&format!("\n{message}\n{}", self.excerpt(*lines)));
        }
        match (&checked.error, warnings.is_empty()) {
            (None, true) => text.push_str("Check complete, no warnings found.\n"),
            (Some(_), false) => text.push('\n'),
            _ => {}
        }
        text
    }

    /// What `--check` prints as its error, if there is one.
    pub(super) fn error(&self, checked: &Checked) -> Option<String> {
        let excerpt = self.excerpt(checked.error_lines());
        let message = message(checked)?;
        Some(format!("{message}\n{excerpt}").trim_end().to_owned())
    }

    /// What `--check` prints with `format=json`. The definition of the source is left out: it names the session of a
    /// build.
    pub(super) fn checked_json(&self, checked: &Checked) -> Result<String, CliError> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Finding<'a> {
            rule_name: &'a str,
            description: &'a str,
            #[serde(skip_serializing_if = "is_empty")]
            url: &'a str,
            detail: &'a str,
            location: Location,
        }
        #[derive(Serialize)]
        struct Source<'a> {
            filename: &'a str,
            data: String,
            language: &'a str,
        }
        #[derive(Serialize)]
        struct Error {
            message: String,
            location: Location,
        }
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Results<'a> {
            warnings: Option<Vec<Finding<'a>>>,
            sources: [Source<'a>; 1],
            #[serde(skip_serializing_if = "Option::is_none")]
            build_error: Option<Error>,
        }
        let warnings: Vec<Finding<'_>> = checked
            .warnings
            .iter()
            .map(|warning| Finding {
                rule_name: warning.rule.name,
                description: warning.rule.description,
                url: warning.rule.url,
                detail: &warning.message,
                location: Location::of(warning.lines),
            })
            .collect();
        json(&Results {
            warnings: Some(warnings).filter(|warnings| !warnings.is_empty()),
            sources: [Source { filename: &self.name, data: self.encoded(), language: "Dockerfile" }],
            build_error: message(checked)
                .map(|message| Error { message, location: Location::of(checked.error_lines()) }),
        })
    }

    /// What `--call=outline,format=json` prints.
    pub(super) fn outline_json(&self, outline: &Outline) -> Result<String, CliError> {
        #[derive(Serialize)]
        struct Arg<'a> {
            name: &'a str,
            #[serde(skip_serializing_if = "is_empty")]
            description: &'a str,
            #[serde(skip_serializing_if = "is_empty")]
            value: &'a str,
            location: Location,
        }
        #[derive(Serialize)]
        struct Mount<'a> {
            name: &'a str,
            #[serde(skip_serializing_if = "is_false")]
            required: bool,
            location: Location,
        }
        #[derive(Serialize)]
        struct Shape<'a> {
            #[serde(skip_serializing_if = "is_empty")]
            name: &'a str,
            #[serde(skip_serializing_if = "is_empty")]
            description: &'a str,
            #[serde(skip_serializing_if = "Vec::is_empty")]
            args: Vec<Arg<'a>>,
            #[serde(skip_serializing_if = "Vec::is_empty")]
            secrets: Vec<Mount<'a>>,
            #[serde(skip_serializing_if = "Vec::is_empty")]
            ssh: Vec<Mount<'a>>,
            sources: [String; 1],
        }
        fn mounts(mounts: &[OutlineMount]) -> Vec<Mount<'_>> {
            let shape = |mount: &'_ OutlineMount| (mount.required, Location::of(Some(mount.lines)));
            mounts
                .iter()
                .map(|mount| {
                    let (required, location) = shape(mount);
                    Mount { name: &mount.name, required, location }
                })
                .collect()
        }
        let arg = |arg: &'_ OutlineArg| Location::of(Some(arg.lines));
        json(&Shape {
            name: &outline.name,
            description: &outline.description,
            args: outline
                .args
                .iter()
                .map(|found| Arg {
                    name: &found.name,
                    description: &found.description,
                    value: &found.value,
                    location: arg(found),
                })
                .collect(),
            secrets: mounts(&outline.secrets),
            ssh: mounts(&outline.ssh),
            sources: [self.encoded()],
        })
    }

    /// What `--call=targets,format=json` prints.
    pub(super) fn targets_json(&self, targets: &[Target]) -> Result<String, CliError> {
        #[derive(Serialize)]
        struct Shape<'a> {
            #[serde(skip_serializing_if = "is_empty")]
            name: &'a str,
            #[serde(skip_serializing_if = "is_false")]
            default: bool,
            #[serde(skip_serializing_if = "is_empty")]
            description: &'a str,
            #[serde(skip_serializing_if = "is_empty")]
            base: &'a str,
            #[serde(skip_serializing_if = "is_empty")]
            platform: &'a str,
            location: Location,
        }
        #[derive(Serialize)]
        struct List<'a> {
            targets: Vec<Shape<'a>>,
            sources: [String; 1],
        }
        let targets = targets.iter().map(|target| Shape {
            name: &target.name,
            default: target.is_default,
            description: &target.description,
            base: &target.base,
            platform: &target.platform,
            location: Location::of(Some(target.lines)),
        });
        json(&List { targets: targets.collect(), sources: [self.encoded()] })
    }
}

/// What is wrong, without the place, which is shown behind it.
fn message(checked: &Checked) -> Option<String> {
    Some(match checked.error.as_ref()? {
        crate::build::BuildError::Dockerfile(error) => error.message().to_owned(),
        error => crate::hint::with_causes(error),
    })
}

/// What `--call=outline` prints.
pub(super) fn outline(outline: &Outline) -> String {
    let mut text = String::new();
    if !outline.name.is_empty() || !outline.description.is_empty() {
        let name = if outline.name.is_empty() { "(default)" } else { &outline.name };
        let mut table = format!("TARGET:\t{name}\n");
        if !outline.description.is_empty() {
            table.push_str(&format!("DESCRIPTION:\t{}\n", outline.description));
        }
        text.push_str(&tabs::aligned(&table, 1));
        text.push('\n');
    }
    let mut section = |header: &str, rows: Vec<String>| {
        if !rows.is_empty() {
            text.push_str(&tabs::aligned(&format!("{header}\n{}", rows.concat()), 3));
            text.push('\n');
        }
    };
    let args = outline.args.iter().map(|arg| format!("{}\t{}\t{}\n", arg.name, arg.value, arg.description));
    section("BUILD ARG\tVALUE\tDESCRIPTION", args.collect());
    let mount =
        |mount: &OutlineMount| format!("{}\t{}\n", mount.name, if mount.required { "true" } else { "" });
    section("SECRET\tREQUIRED", outline.secrets.iter().map(mount).collect());
    section("SSH\tREQUIRED", outline.ssh.iter().map(mount).collect());
    text
}

/// What `--call=targets` prints.
pub(super) fn targets(targets: &[Target]) -> String {
    let mut table = "TARGET\tDESCRIPTION\n".to_owned();
    for target in targets {
        let name = match (target.name.as_str(), target.is_default) {
            ("", true) => "(default)".to_owned(),
            (name, true) => format!("{name} (default)"),
            (name, false) => name.to_owned(),
        };
        table.push_str(&format!("{name}\t{}\n", target.description));
    }
    tabs::aligned(&table, 1)
}
