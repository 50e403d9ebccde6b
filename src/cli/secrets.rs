//! `--secret`: from a file, a variable or standard input.

use std::io::Read;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::environment::Environment;
use super::error::CliError;
use super::request::read_bounded;
use super::values::{SecretSource, SecretSpec};
use crate::build::Secret;

/// BuildKit's limit for one secret.
const BYTES_MAX: u64 = 500 << 10;

/// Refuses command lines on which a secret and something else are to be standard input.
pub(super) fn check_stdin(
    specs: &[SecretSpec],
    stdin_is_taken: bool,
    environment: &Environment,
) -> Result<(), CliError> {
    let mut wanted = specs.iter().filter(|spec| spec.source == SecretSource::Stdin);
    let Some(first) = wanted.next() else { return Ok(()) };
    if let Some(second) = wanted.next() {
        return Err(CliError::usage(format!(
            "the secrets `{}` and `{}` cannot both be standard input",
            first.id, second.id
        )));
    }
    if stdin_is_taken {
        return Err(CliError::usage(format!(
            "the secret `{}` and the Dockerfile or context cannot both be standard input",
            first.id
        ))
        .hint("give the secret as a file or a variable"));
    }
    if environment.stdin_is_terminal {
        return Err(CliError::usage(format!(
            "the secret `{}` is to come from standard input, which is a terminal",
            first.id
        ))
        .hint("redirect it, so that the secret is on no screen"));
    }
    Ok(())
}

/// Reads the secrets. `stdin` is read only if one is to come from it.
pub(super) fn resolve(
    specs: &[SecretSpec],
    environment: &Environment,
    stdin: &mut dyn Read,
) -> Result<Vec<Secret>, CliError> {
    let read =
        |spec: &SecretSpec| Ok(Secret { id: spec.id.clone(), value: value(spec, environment, stdin)? });
    specs.iter().map(read).collect()
}

fn value(spec: &SecretSpec, environment: &Environment, stdin: &mut dyn Read) -> Result<Vec<u8>, CliError> {
    let variable = |name: &str| environment.variables.get(std::ffi::OsStr::new(name));
    let failed = |error: std::io::Error| {
        let context = format!("the secret `{}` cannot be read", spec.id);
        CliError::failure(anyhow::Error::new(error).context(context))
    };
    let file = |path: &Path| read_bounded(&environment.absolute(path), BYTES_MAX).map_err(failed);
    match &spec.source {
        SecretSource::File(path) => file(path),
        SecretSource::Stdin => {
            let mut value = Vec::new();
            stdin.take(BYTES_MAX + 1).read_to_end(&mut value).map_err(failed)?;
            if value.len() as u64 > BYTES_MAX {
                let message = format!("the secret `{}` on standard input is larger than 500 KiB", spec.id);
                return Err(CliError::message(message));
            }
            Ok(value)
        }
        SecretSource::Variable(name) => match variable(name) {
            Some(value) => Ok(value.as_bytes().to_vec()),
            None => {
                let message = format!("the secret `{}` is to come from {name}, which is not set", spec.id);
                Err(CliError::message(message).hint(format!("export {name}, or give a file with src=…")))
            }
        },
        SecretSource::Either => match variable(&spec.id) {
            Some(value) => Ok(value.as_bytes().to_vec()),
            None => file(&PathBuf::from(&spec.id)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn specs(texts: &[&str]) -> Vec<SecretSpec> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn standard_input_is_one_secret_and_nothing_else() {
        let environment = Environment::default();
        let terminal = Environment { stdin_is_terminal: true, ..Environment::default() };
        let one = specs(&["id=a,src=-"]);
        check_stdin(&one, false, &environment).unwrap();
        check_stdin(&specs(&["id=a,src=f"]), true, &terminal).unwrap();
        assert!(check_stdin(&one, true, &environment).is_err());
        assert!(check_stdin(&one, false, &terminal).is_err());
        assert!(check_stdin(&specs(&["id=a,src=-", "id=b,src=-"]), false, &environment).is_err());
        let secrets = resolve(&one, &environment, &mut &b"v\n"[..]).unwrap();
        assert_eq!((secrets[0].id.as_str(), &secrets[0].value[..]), ("a", &b"v\n"[..]));
        let endless = &mut std::io::repeat(b'x');
        assert!(resolve(&one, &environment, endless).unwrap_err().render(false).contains("500 KiB"));
    }
}
