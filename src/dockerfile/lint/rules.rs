//! The rules: BuildKit's names, descriptions and messages (`frontend/dockerfile/linter/ruleset.go`).

/// What a check looks for.
#[derive(Debug, PartialEq, Eq)]
pub struct Rule {
    /// The name, as in `# check=skip=`.
    pub name: &'static str,
    /// What the rule is about, in one sentence.
    pub description: &'static str,
    /// Where Docker's documentation explains it; empty for the one rule that it does not explain.
    pub url: &'static str,
    /// It is only checked where it is asked for.
    pub experimental: bool,
}

/// A rule that is always checked, and the last part of its address.
macro_rules! rule {
    ($name:literal, $path:literal, $description:literal) => {
        Rule {
            name: $name,
            description: $description,
            url: concat!("https://docs.docker.com/go/dockerfile/rule/", $path, "/"),
            experimental: false,
        }
    };
}

pub(super) static STAGE_NAME_CASING: Rule =
    rule!("StageNameCasing", "stage-name-casing", "Stage names should be lowercase");
pub(super) static FROM_AS_CASING: Rule =
    rule!("FromAsCasing", "from-as-casing", "The 'as' keyword should match the case of the 'from' keyword");
pub(super) static NO_EMPTY_CONTINUATION: Rule = rule!(
    "NoEmptyContinuation",
    "no-empty-continuation",
    "Empty continuation lines will become errors in a future release"
);
pub(super) static CONSISTENT_INSTRUCTION_CASING: Rule = rule!(
    "ConsistentInstructionCasing",
    "consistent-instruction-casing",
    "All commands within the Dockerfile should use the same casing (either upper or lower)"
);
pub(super) static DUPLICATE_STAGE_NAME: Rule =
    rule!("DuplicateStageName", "duplicate-stage-name", "Stage names should be unique");
pub(super) static RESERVED_STAGE_NAME: Rule =
    rule!("ReservedStageName", "reserved-stage-name", "Reserved words should not be used as stage names");
pub(super) static JSON_ARGS_RECOMMENDED: Rule = rule!(
    "JSONArgsRecommended",
    "json-args-recommended",
    "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals"
);
pub(super) static MAINTAINER_DEPRECATED: Rule = rule!(
    "MaintainerDeprecated",
    "maintainer-deprecated",
    "The MAINTAINER instruction is deprecated, use a label instead to define an image author"
);
pub(super) static UNDEFINED_ARG_IN_FROM: Rule =
    rule!("UndefinedArgInFrom", "undefined-arg-in-from", "FROM command must use declared ARGs");
pub(super) static WORKDIR_RELATIVE_PATH: Rule = rule!(
    "WorkdirRelativePath",
    "workdir-relative-path",
    "Relative workdir without an absolute workdir declared within the build can have unexpected results if the base image changes"
);
pub(super) static UNDEFINED_VAR: Rule =
    rule!("UndefinedVar", "undefined-var", "Variables should be defined before their use");
pub(super) static MULTIPLE_INSTRUCTIONS_DISALLOWED: Rule = rule!(
    "MultipleInstructionsDisallowed",
    "multiple-instructions-disallowed",
    "Multiple instructions of the same type should not be used in the same stage"
);
pub(super) static LEGACY_KEY_VALUE_FORMAT: Rule = rule!(
    "LegacyKeyValueFormat",
    "legacy-key-value-format",
    "Legacy key/value format with whitespace separator should not be used"
);
pub(super) static INVALID_BASE_IMAGE_PLATFORM: Rule = Rule {
    name: "InvalidBaseImagePlatform",
    description: "Base image platform does not match expected target platform",
    url: "",
    experimental: false,
};
pub(super) static REDUNDANT_TARGET_PLATFORM: Rule = rule!(
    "RedundantTargetPlatform",
    "redundant-target-platform",
    "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior"
);
pub(super) static SECRETS_USED_IN_ARG_OR_ENV: Rule = rule!(
    "SecretsUsedInArgOrEnv",
    "secrets-used-in-arg-or-env",
    "Sensitive data should not be used in the ARG or ENV commands"
);
pub(super) static INVALID_DEFAULT_ARG_IN_FROM: Rule = rule!(
    "InvalidDefaultArgInFrom",
    "invalid-default-arg-in-from",
    "Default value for global ARG results in an empty or invalid base image name"
);
pub(super) static FROM_PLATFORM_FLAG_CONST_DISALLOWED: Rule = rule!(
    "FromPlatformFlagConstDisallowed",
    "from-platform-flag-const-disallowed",
    "FROM --platform flag should not use a constant value"
);
pub(super) static COPY_IGNORED_FILE: Rule = rule!(
    "CopyIgnoredFile",
    "copy-ignored-file",
    "Attempting to Copy file that is excluded by .dockerignore"
);
pub(super) static INVALID_DEFINITION_DESCRIPTION: Rule = Rule {
    experimental: true,
    ..rule!(
        "InvalidDefinitionDescription",
        "invalid-definition-description",
        "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. If this is not intended to be a description comment, add an empty line or comment between the instruction and the comment."
    )
};
pub(super) static EXPOSE_PROTO_CASING: Rule =
    rule!("ExposeProtoCasing", "expose-proto-casing", "Protocol in EXPOSE instruction should be lowercase");
pub(super) static EXPOSE_INVALID_FORMAT: Rule = rule!(
    "ExposeInvalidFormat",
    "expose-invalid-format",
    "IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error in a future release"
);

/// All rules, in BuildKit's order.
pub static RULES: [&Rule; 22] = [
    &STAGE_NAME_CASING,
    &FROM_AS_CASING,
    &NO_EMPTY_CONTINUATION,
    &CONSISTENT_INSTRUCTION_CASING,
    &DUPLICATE_STAGE_NAME,
    &RESERVED_STAGE_NAME,
    &JSON_ARGS_RECOMMENDED,
    &MAINTAINER_DEPRECATED,
    &UNDEFINED_ARG_IN_FROM,
    &WORKDIR_RELATIVE_PATH,
    &UNDEFINED_VAR,
    &MULTIPLE_INSTRUCTIONS_DISALLOWED,
    &LEGACY_KEY_VALUE_FORMAT,
    &INVALID_BASE_IMAGE_PLATFORM,
    &REDUNDANT_TARGET_PLATFORM,
    &SECRETS_USED_IN_ARG_OR_ENV,
    &INVALID_DEFAULT_ARG_IN_FROM,
    &FROM_PLATFORM_FLAG_CONST_DISALLOWED,
    &COPY_IGNORED_FILE,
    &INVALID_DEFINITION_DESCRIPTION,
    &EXPOSE_PROTO_CASING,
    &EXPOSE_INVALID_FORMAT,
];
