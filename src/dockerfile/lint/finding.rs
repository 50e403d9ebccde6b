//! The messages of the rules, word for word BuildKit's: one constructor for each rule.

use super::rules::{self, Rule};
use crate::platform::Platform;

/// What a rule has found: the message without a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The rule.
    pub rule: &'static Rule,
    /// The message.
    pub message: String,
}

fn finding(rule: &'static Rule, message: impl Into<String>) -> Finding {
    Finding { rule, message: message.into() }
}

/// `text` in double quotes with what Go's `%q` escapes.
fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{c}' => quoted.push_str("\\f"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{b}' => quoted.push_str("\\v"),
            c if c.is_ascii_control() => quoted.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[expect(missing_docs, reason = "each is named after its rule, which is described in `rules`")]
impl Finding {
    pub fn stage_name_casing(name: &str) -> Self {
        finding(&rules::STAGE_NAME_CASING, format!("Stage name '{name}' should be lowercase"))
    }

    pub fn from_as_casing(from: &str, as_: &str) -> Self {
        finding(&rules::FROM_AS_CASING, format!("'{as_}' and '{from}' keywords' casing do not match"))
    }

    pub fn no_empty_continuation() -> Self {
        finding(&rules::NO_EMPTY_CONTINUATION, "Empty continuation line")
    }

    pub fn consistent_instruction_casing(keyword: &str, casing: &str) -> Self {
        let message = format!("Command '{keyword}' should match the case of the command majority ({casing})");
        finding(&rules::CONSISTENT_INSTRUCTION_CASING, message)
    }

    pub fn duplicate_stage_name(name: &str) -> Self {
        let message = format!("Duplicate stage name {}, stage names should be unique", quoted(name));
        finding(&rules::DUPLICATE_STAGE_NAME, message)
    }

    pub fn reserved_stage_name(name: &str) -> Self {
        let message = format!("Stage name should not use the same name as reserved stage {}", quoted(name));
        finding(&rules::RESERVED_STAGE_NAME, message)
    }

    pub fn json_args_recommended(keyword: &str) -> Self {
        let message = format!(
            "JSON arguments recommended for {keyword} to prevent unintended behavior related to OS signals"
        );
        finding(&rules::JSON_ARGS_RECOMMENDED, message)
    }

    pub fn maintainer_deprecated() -> Self {
        let message = "Maintainer instruction is deprecated in favor of using label";
        finding(&rules::MAINTAINER_DEPRECATED, message)
    }

    pub fn undefined_arg_in_from(name: &str, meant: Option<&str>) -> Self {
        let meant = meant.map(|meant| format!(" (did you mean {meant}?)")).unwrap_or_default();
        finding(&rules::UNDEFINED_ARG_IN_FROM, format!("FROM argument '{name}' is not declared{meant}"))
    }

    pub fn workdir_relative_path(path: &str) -> Self {
        let message = format!(
            "Relative workdir {} can have unexpected results if the base image changes",
            quoted(path)
        );
        finding(&rules::WORKDIR_RELATIVE_PATH, message)
    }

    pub fn undefined_var(name: &str, meant: Option<&str>) -> Self {
        let meant = meant.map(|meant| format!(" (did you mean ${meant}?)")).unwrap_or_default();
        finding(&rules::UNDEFINED_VAR, format!("Usage of undefined variable '${name}'{meant}"))
    }

    pub fn multiple_instructions_disallowed(keyword: &str) -> Self {
        let message = format!(
            "Multiple {keyword} instructions should not be used in the same stage because only the last one will be used"
        );
        finding(&rules::MULTIPLE_INSTRUCTIONS_DISALLOWED, message)
    }

    pub fn legacy_key_value_format(keyword: &str) -> Self {
        let message = format!(
            "\"{keyword} key=value\" should be used instead of legacy \"{keyword} key value\" format"
        );
        finding(&rules::LEGACY_KEY_VALUE_FORMAT, message)
    }

    pub fn invalid_base_image_platform(image: &str, expected: &Platform, actual: &Platform) -> Self {
        let message = format!(
            "Base image {image} was pulled with platform {}, expected {} for current build",
            quoted(&actual.to_string()),
            quoted(&expected.to_string())
        );
        finding(&rules::INVALID_BASE_IMAGE_PLATFORM, message)
    }

    pub fn redundant_target_platform(written: &str) -> Self {
        let message = format!(
            "Setting platform to predefined {written} in FROM is redundant as this is the default behavior"
        );
        finding(&rules::REDUNDANT_TARGET_PLATFORM, message)
    }

    pub fn secrets_used_in_arg_or_env(keyword: &str, name: &str) -> Self {
        let message =
            format!("Do not use ARG or ENV instructions for sensitive data ({keyword} {})", quoted(name));
        finding(&rules::SECRETS_USED_IN_ARG_OR_ENV, message)
    }

    pub fn invalid_default_arg_in_from(image: &str) -> Self {
        let message = format!("Default value for ARG {image} results in empty or invalid base image name");
        finding(&rules::INVALID_DEFAULT_ARG_IN_FROM, message)
    }

    pub fn from_platform_flag_const_disallowed(platform: &str) -> Self {
        let message = format!("FROM --platform flag should not use constant value {}", quoted(platform));
        finding(&rules::FROM_PLATFORM_FLAG_CONST_DISALLOWED, message)
    }

    pub fn copy_ignored_file(command: &str, path: &str) -> Self {
        let message =
            format!("Attempting to {command} file {} that is excluded by .dockerignore", quoted(path));
        finding(&rules::COPY_IGNORED_FILE, message)
    }

    pub fn invalid_definition_description(keyword: &str, name: &str) -> Self {
        let message = format!("Comment for {keyword} should follow the format: `# {name} <description>`");
        finding(&rules::INVALID_DEFINITION_DESCRIPTION, message)
    }

    pub fn expose_proto_casing(port: &str) -> Self {
        let message = format!("Defined protocol '{port}' in EXPOSE instruction should be lowercase");
        finding(&rules::EXPOSE_PROTO_CASING, message)
    }

    pub fn expose_invalid_format(port: &str) -> Self {
        let message = format!(
            "EXPOSE instruction should not define an IP address or host-port mapping, found '{port}'"
        );
        finding(&rules::EXPOSE_INVALID_FORMAT, message)
    }
}
