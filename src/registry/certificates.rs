//! Directories of certificates by registry, as Docker (`/etc/docker/certs.d`) and podman (containers-certs.d(5)) have them:
//! in `<host[:port]>/`, `*.crt` are authorities, and `*.cert` with the `*.key` of the same name is the client's.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use super::hosts::{HostOptions, Hosts};

/// Registries in one directory, and files for one registry, that are looked at: far more than anybody has by hand.
const ENTRIES_MAX: usize = 1000;

/// A bundle of every public authority has a quarter of this, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What the directories say. Of several that have something for a registry the first counts. What cannot be used is no
/// error, because it may be for a registry that nobody asks for anything: it is remembered as [`HostOptions::problem`].
pub fn certificates(directories: &[PathBuf]) -> Hosts {
    let mut hosts = Hosts::new();
    for directory in directories {
        // Most machines have none. One that is closed to this user is meant for somebody else.
        let Ok(entries) = fs_err::read_dir(directory) else { continue };
        for entry in entries.flatten().take(ENTRIES_MAX) {
            let Ok(host) = entry.file_name().into_string() else { continue };
            if hosts.contains_key(&host) || !entry.path().is_dir() {
                continue;
            }
            if let Some(options) = of_host(&entry.path()) {
                hosts.insert(host, options);
            }
        }
    }
    hosts
}

/// What one registry's directory says; `None` if nothing.
fn of_host(directory: &Path) -> Option<HostOptions> {
    let found = match read(directory) {
        Ok(found) if found.certificates.is_empty() && found.identity.is_none() => return None,
        Ok(found) => found
            .usable()
            .map(|()| found)
            .map_err(|reason| format!("the certificates in {} are malformed: {reason}", directory.display())),
        Err(problem) => Err(problem),
    };
    Some(found.unwrap_or_else(|problem| HostOptions { problem: Some(problem), ..HostOptions::default() }))
}

fn read(directory: &Path) -> Result<HostOptions, String> {
    let mut options = HostOptions::default();
    // By name, so that the order is always the same.
    let mut pairs: BTreeMap<OsString, (Option<PathBuf>, Option<PathBuf>)> = BTreeMap::new();
    let entries = fs_err::read_dir(directory).map_err(|error| error.to_string())?;
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in entries.take(ENTRIES_MAX) {
        files.push(entry.map_err(|error| error.to_string())?.path());
    }
    files.sort();
    for file in files {
        let Some(name) = file.file_stem().map(OsString::from) else { continue };
        match file.extension().and_then(OsStr::to_str) {
            Some("crt") => options.certificates.push(text(&file)?),
            Some("cert") => pairs.entry(name).or_default().0 = Some(file),
            Some("key") => pairs.entry(name).or_default().1 = Some(file),
            _ => {}
        }
    }
    for (certificate, key) in pairs.into_values() {
        match (certificate, key) {
            (Some(certificate), Some(key)) => {
                // One is shown. Of several, the first by name.
                if options.identity.is_none() {
                    options.identity = Some([text(&key)?, text(&certificate)?].join(&b'\n'));
                }
            }
            (Some(alone), None) => return Err(format!("{} has no key beside it", alone.display())),
            (None, alone) => {
                let alone = alone.unwrap_or_default();
                return Err(format!("{} has no certificate (`.cert`) beside it", alone.display()));
            }
        }
    }
    Ok(options)
}

fn text(file: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let opened =
        fs_err::File::open(file).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
    match opened {
        Ok(_) if bytes.len() as u64 > FILE_BYTES_MAX => {
            Err(format!("{} has more than {FILE_BYTES_MAX} bytes", file.display()))
        }
        Ok(_) => Ok(bytes),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            Err(format!("{} is not readable for this user", file.display()))
        }
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An authority, a client's certificate and its key; made here, because keys in a repository alarm people.
    fn made() -> [String; 3] {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let make = |name: &str, more: &[&str]| {
            let status = std::process::Command::new("openssl")
                .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
                .args(["-subj", "/CN=test", "-batch"])
                .arg("-keyout")
                .arg(path(&format!("{name}.key")))
                .arg("-out")
                .arg(path(&format!("{name}.pem")))
                .args(more)
                .stderr(std::process::Stdio::null())
                .status()
                .expect("openssl, which `./test` installs");
            assert!(status.success());
        };
        make("authority", &["-addext", "basicConstraints=critical,CA:TRUE"]);
        make("client", &["-addext", "basicConstraints=critical,CA:FALSE"]);
        ["authority.pem", "client.pem", "client.key"].map(|name| fs_err::read_to_string(path(name)).unwrap())
    }

    fn write(root: &Path, files: &[(&str, &str)]) {
        for (name, content) in files {
            let path = root.join(name);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(path, content).unwrap();
        }
    }

    #[test]
    fn the_first_directory_with_something_counts() {
        let directory = tempfile::tempdir().unwrap();
        let [authority, client, key] = made();
        let (users, machines) = (directory.path().join("users"), directory.path().join("machines"));
        write(
            &users,
            &[
                ("both:5000/ca.crt", &authority),
                ("hub/client.cert", &client),
                ("hub/client.key", &key),
                ("other/readme.txt", "nothing"),
                ("file.crt", &authority),
            ],
        );
        write(
            &machines,
            &[
                ("both:5000/client.cert", &client),
                ("both:5000/client.key", &key),
                ("other/a.crt", &authority),
                ("other/b.crt", &authority),
            ],
        );
        let hosts = certificates(&[directory.path().join("absent"), users, machines]);
        assert_eq!(hosts.keys().collect::<Vec<_>>(), ["both:5000", "hub", "other"]);
        let of = |host: &str| (hosts[host].certificates.len(), hosts[host].identity.is_some());
        assert_eq!((of("both:5000"), of("hub"), of("other")), ((1, false), (0, true), (2, false)));
        assert!(hosts.values().all(|host| host.problem.is_none()), "{hosts:?}");
        assert!(hosts.values().all(HostOptions::has_tls_options));
    }

    #[test]
    fn what_cannot_be_used_is_remembered() {
        let directory = tempfile::tempdir().unwrap();
        let [authority, client, key] = made();
        let damaged = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        write(
            directory.path(),
            &[
                ("alone/client.cert", &client),
                ("keyless/client.key", &key),
                ("empty/ca.crt", ""),
                ("words/ca.crt", "no certificate"),
                ("damaged/ca.crt", damaged),
                ("mixed/client.cert", &client),
                ("mixed/client.key", "no key"),
                ("large/ca.crt", &authority.repeat(2000)),
            ],
        );
        let hosts = certificates(&[directory.path().to_owned()]);
        for (host, part) in [
            ("alone", "no key beside it"),
            ("keyless", "no certificate"),
            ("empty", "malformed"),
            ("words", "malformed"),
            ("damaged", "malformed"),
            ("mixed", "malformed"),
            ("large", "more than"),
        ] {
            let problem = hosts[host].problem.as_deref().unwrap_or_default();
            assert!(problem.contains(part) && problem.contains(host), "{host}: {problem}");
            assert!(hosts[host].certificates.is_empty() && hosts[host].has_tls_options());
        }
    }
}
