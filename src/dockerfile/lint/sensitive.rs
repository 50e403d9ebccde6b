//! Names of variables that look as if they held a secret (`dockerfile2llb/validations.go`, `getSecretsRegex`).

/// Words that a secret's name has.
const SECRET: [&str; 10] =
    ["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"];

/// Words that say that it is none after all.
const HARMLESS: [&str; 3] = ["public", "file", "version"];

/// Whether a variable of this name probably holds something secret: one of the words between its underscores says so, in
/// whatever case, and none says the opposite.
pub fn is_sensitive(name: &str) -> bool {
    let has =
        |words: &[&str]| name.split('_').any(|part| words.iter().any(|word| part.eq_ignore_ascii_case(word)));
    has(&SECRET) && !has(&HARMLESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_words_decide() {
        for name in ["api_key", "DATABASE_PASSWORD", "GITHUB_TOKEN", "secret_MESSAGE", "AUTH", "_key_"] {
            assert!(is_sensitive(name), "{name}");
        }
        for name in ["monkey", "KEYS", "PUBLIC_KEY", "TOKEN_FILE", "auth_version", "authentication", ""] {
            assert!(!is_sensitive(name), "{name}");
        }
    }
}
