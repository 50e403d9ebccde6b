//! Proxies from the Docker client's configuration file, which `docker build` passes to every build.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::request::read_bounded;

/// As large as a configuration file can be by any stretch.
const CONFIG_BYTES_MAX: u64 = 16 << 20;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Config {
    proxies: BTreeMap<String, Proxies>,
}

/// The proxies for one daemon, or for all others (`docker/cli`, `cli/config/configfile`).
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Proxies {
    http_proxy: String,
    https_proxy: String,
    no_proxy: String,
    ftp_proxy: String,
    all_proxy: String,
}

/// Adds the proxies of `config.json` in `directory` to the build arguments, except those that are given in one spelling
/// or the other. A file that cannot be read is for those to complain about who need its credentials.
pub(super) fn add(directory: Option<&Path>, build_args: &mut Vec<(String, String)>) {
    let Some(directory) = directory else { return };
    let Ok(text) = read_bounded(&directory.join("config.json"), CONFIG_BYTES_MAX) else { return };
    let config: Config = serde_json::from_slice(&text).unwrap_or_default();
    // The other entries are for daemons by their addresses, and there is none.
    let Some(proxies) = config.proxies.get("default") else { return };
    for (name, value) in [
        ("HTTP_PROXY", &proxies.http_proxy),
        ("HTTPS_PROXY", &proxies.https_proxy),
        ("NO_PROXY", &proxies.no_proxy),
        ("FTP_PROXY", &proxies.ftp_proxy),
        ("ALL_PROXY", &proxies.all_proxy),
    ] {
        if value.is_empty() || build_args.iter().any(|(given, _)| given.eq_ignore_ascii_case(name)) {
            continue;
        }
        build_args.push((name.to_owned(), value.clone()));
        build_args.push((name.to_ascii_lowercase(), value.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_wins() {
        let directory = tempfile::tempdir().unwrap();
        let config =
            r#"{"proxies": {"default": {"httpProxy": "h", "httpsProxy": "s", "noProxy": ""}}, "x": 1}"#;
        fs_err::write(directory.path().join("config.json"), config).unwrap();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let mut args = vec![pair("https_proxy", "given")];
        add(Some(directory.path()), &mut args);
        assert_eq!(args, [pair("https_proxy", "given"), pair("HTTP_PROXY", "h"), pair("http_proxy", "h")]);
        for config in ["", "{", "[]", r#"{"proxies": 1}"#, "{}"] {
            fs_err::write(directory.path().join("config.json"), config).unwrap();
            let mut args = Vec::new();
            add(Some(directory.path()), &mut args);
            assert!(args.is_empty(), "{config}");
        }
    }
}
