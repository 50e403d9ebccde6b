//! The environment of a stage while it is planned.

use crate::dockerfile::expand::Env;
use crate::platform::Platform;

/// Ordered variables. Setting one that exists moves it to the end, as BuildKit's `llb.EnvList` does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Variables(Vec<(String, String)>);

impl Variables {
    /// Sets `name` to `value`.
    pub(crate) fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        let name = name.into();
        self.0.retain(|(existing, _)| *existing != name);
        self.0.push((name, value.into()));
    }

    /// Forgets `name`.
    pub(crate) fn remove(&mut self, name: &str) {
        self.0.retain(|(existing, _)| existing != name);
    }

    /// The value of `name`.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(existing, _)| existing == name).map(|(_, value)| value.as_str())
    }

    /// All variables, in order.
    pub(crate) fn pairs(&self) -> &[(String, String)] {
        &self.0
    }
}

impl Env for Variables {
    fn get(&self, name: &str) -> Option<&str> {
        Self::get(self, name)
    }

    fn names(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| name.as_str()).collect()
    }
}

/// The global platform arguments, as `dockerfile2llb/platform.go` sets them. `overrides` are the build
/// arguments, which win.
pub(crate) fn platform_arguments(
    build: &Platform,
    target: &Platform,
    target_stage: &str,
    overrides: &[(String, String)],
) -> Variables {
    let mut variables = Variables::default();
    let part = |value: &Option<String>| value.clone().unwrap_or_default();
    let values = [
        ("BUILDPLATFORM", build.to_string()),
        ("BUILDOS", build.os.clone()),
        ("BUILDOSVERSION", part(&build.os_version)),
        ("BUILDARCH", build.architecture.clone()),
        ("BUILDVARIANT", part(&build.variant)),
        ("TARGETPLATFORM", target.to_string()),
        ("TARGETOS", target.os.clone()),
        ("TARGETOSVERSION", part(&target.os_version)),
        ("TARGETARCH", target.architecture.clone()),
        ("TARGETVARIANT", part(&target.variant)),
        ("TARGETSTAGE", if target_stage.is_empty() { "default" } else { target_stage }.to_owned()),
    ];
    for (name, value) in values {
        let value = argument(overrides, name).map_or(value, str::to_owned);
        variables.set(name, value);
    }
    variables
}

/// The value of a build argument: the last one given wins.
pub(crate) fn argument<'a>(arguments: &'a [(String, String)], name: &str) -> Option<&'a str> {
    arguments.iter().rev().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
}

/// The proxy variables among the build arguments, in both spellings, as steps have them whatever ENV says. They are not
/// part of any key (`llb.ProxyEnv`). Of several spellings BuildKit takes the last in the order of the alphabet, where
/// capitals come first.
pub(crate) fn proxy_variables(arguments: &[(String, String)]) -> Vec<(String, String)> {
    let mut variables = Vec::new();
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"] {
        let spellings = arguments.iter().filter(|(given, _)| given.eq_ignore_ascii_case(name));
        let given = spellings.max_by_key(|(given, _)| given.as_str());
        if let Some((_, value)) = given.filter(|(_, value)| !value.is_empty()) {
            variables.push((name.to_owned(), value.clone()));
            variables.push((name.to_ascii_lowercase(), value.clone()));
        }
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_again_moves_to_the_end() {
        let mut variables = Variables::default();
        variables.set("A", "1");
        variables.set("B", "2");
        variables.set("A", "3");
        let expected = [("B".to_owned(), "2".to_owned()), ("A".to_owned(), "3".to_owned())];
        assert_eq!(variables.pairs(), expected);
    }

    #[test]
    fn build_arguments_override_platform_arguments() {
        let arm: Platform = "linux/arm/v7".parse().unwrap();
        let amd: Platform = "linux/amd64".parse().unwrap();
        let overrides = [("TARGETARCH".to_owned(), "riscv64".to_owned())];
        let variables = platform_arguments(&amd, &arm, "", &overrides);
        assert_eq!(variables.get("BUILDPLATFORM"), Some("linux/amd64"));
        assert_eq!(variables.get("TARGETPLATFORM"), Some("linux/arm/v7"));
        assert_eq!(variables.get("TARGETARCH"), Some("riscv64"));
        assert_eq!(variables.get("TARGETSTAGE"), Some("default"));
    }

    #[test]
    fn proxies_come_in_both_spellings_and_small_letters_win() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let given =
            [pair("http_proxy", "a"), pair("http_proxy", "b"), pair("HTTP_PROXY", "c"), pair("no_proxy", "")];
        assert_eq!(proxy_variables(&given), [pair("HTTP_PROXY", "b"), pair("http_proxy", "b")]);
    }
}
