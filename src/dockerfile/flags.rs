//! The `--name=value` options of an instruction.

use std::collections::BTreeMap;

use super::error::DockerfileError;

/// What kind of value an option has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `--x`, `--x=true`, `--x=false`
    Bool,
    /// `--x=value`, once
    Text,
    /// `--x=value`, any number of times
    Texts,
}

/// The options of one instruction.
#[derive(Debug, Default)]
pub(super) struct Flags {
    values: BTreeMap<&'static str, Vec<String>>,
}

impl Flags {
    /// Reads `given`; `error` makes an error that points at a word.
    pub(super) fn parse(
        given: &[String],
        known: &[(&'static str, Kind)],
        error: &dyn Fn(String, &str) -> DockerfileError,
    ) -> Result<Self, DockerfileError> {
        let mut flags = Self::default();
        for text in given {
            let (name, value) =
                text.split_once('=').map_or((&**text, None), |(name, value)| (name, Some(value)));
            let bare = name.strip_prefix("--").unwrap_or(name);
            let Some((key, kind)) = known.iter().find(|(key, _)| *key == bare) else {
                return Err(error(format!("unknown flag: {name}"), name).suggest_flag(bare, known));
            };
            let values = flags.values.entry(key).or_default();
            if !values.is_empty() && *kind != Kind::Texts {
                return Err(error(format!("duplicate flag specified: {name}"), name));
            }
            let value = match (kind, value) {
                (Kind::Bool, None) => "true".to_owned(),
                (Kind::Text | Kind::Texts, None) | (Kind::Bool, Some("")) => {
                    return Err(error(format!("missing a value on flag: {name}"), name));
                }
                (Kind::Bool, Some(value)) => match value.to_lowercase() {
                    lower if lower == "true" || lower == "false" => lower,
                    _ => {
                        return Err(error(
                            format!("expecting boolean value for flag {name}, not: {value}"),
                            name,
                        ));
                    }
                },
                (Kind::Text | Kind::Texts, Some(value)) => value.to_owned(),
            };
            values.push(value);
        }
        Ok(flags)
    }

    /// The value of a text option; none if it is empty.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.values.get(name)?.first().filter(|value| !value.is_empty()).cloned()
    }

    /// The value of a text option, even if it is empty.
    pub(super) fn given(&self, name: &str) -> Option<&str> {
        self.values.get(name)?.first().map(String::as_str)
    }

    /// The values of a repeatable option.
    pub(super) fn texts(&self, name: &str) -> Vec<String> {
        self.values.get(name).cloned().unwrap_or_default()
    }

    /// The value of a boolean option, if it is given.
    pub(super) fn bool(&self, name: &str) -> Option<bool> {
        self.values.get(name)?.first().map(|value| value == "true")
    }
}

impl DockerfileError {
    /// Suggests the option that was probably meant.
    fn suggest_flag(self, bare: &str, known: &[(&'static str, Kind)]) -> Self {
        match crate::hint::did_you_mean(bare, known.iter().map(|(name, _)| *name)) {
            Some(meant) => self.with_hint(format!("did you mean --{meant}?")),
            None if known.is_empty() => self,
            None => {
                let names: Vec<String> = known.iter().map(|(name, _)| format!("--{name}")).collect();
                self.with_hint(format!("the flags of this instruction are {}", names.join(", ")))
            }
        }
    }
}
