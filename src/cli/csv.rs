//! The comma-separated `key=value` lists that Docker's flags take: one CSV record (RFC 4180 quoting, as Go's
//! `encoding/csv` reads it), each field a key with an optional value.

/// Splits one CSV record. A field may be quoted as a whole, with `""` for a quote inside.
pub(super) fn fields(text: &str) -> Result<Vec<String>, String> {
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut field = String::new();
            let mut tail = quoted;
            loop {
                let Some((part, after)) = tail.split_once('"') else {
                    return Err(format!("`{text}`: a quote is not closed"));
                };
                field.push_str(part);
                match after.strip_prefix('"') {
                    Some(after) => {
                        field.push('"');
                        tail = after;
                    }
                    None => {
                        rest = after;
                        break;
                    }
                }
            }
            fields.push(field);
            match rest.strip_prefix(',') {
                Some(after) => rest = after,
                None if rest.is_empty() => return Ok(fields),
                None => return Err(format!("`{text}`: a quoted field is followed by more text")),
            }
        } else {
            let (field, after) = match rest.split_once(',') {
                Some((field, after)) => (field, Some(after)),
                None => (rest, None),
            };
            if field.contains('"') {
                return Err(format!("`{text}`: a quote must be around a whole field"));
            }
            fields.push(field.to_owned());
            match after {
                Some(after) => rest = after,
                None => return Ok(fields),
            }
        }
    }
}

/// The fields of `text` as keys (in lower case) and values.
pub(super) fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    fields(text)?
        .into_iter()
        .map(|field| match field.split_once('=') {
            Some((key, value)) => Ok((key.trim().to_ascii_lowercase(), value.to_owned())),
            None => Err(format!("`{field}` must be a key=value pair")),
        })
        .collect()
}

/// A boolean value, as Go's `strconv.ParseBool` reads it.
pub(super) fn boolean(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("`{key}` must be true or false, not `{value}`")),
    }
}

/// The error for a key that is not among `known`.
pub(super) fn unknown(key: &str, known: &[&str]) -> String {
    match crate::hint::did_you_mean(key, known.iter().copied()) {
        Some(near) => format!("unknown key `{key}`; did you mean `{near}`?"),
        None => format!("unknown key `{key}`; known are {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_split_as_go_does() {
        for (text, expected) in [
            ("", vec![""]),
            ("a=1,b", vec!["a=1", "b"]),
            ("\"name=x,y\",push=true", vec!["name=x,y", "push=true"]),
            ("\"a\"\"b\"", vec!["a\"b"]),
            ("a,", vec!["a", ""]),
        ] {
            assert_eq!(fields(text).unwrap(), expected, "{text}");
        }
        for bad in ["\"a", "\"a\"b", "a\"b\""] {
            assert!(fields(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn unknown_keys_name_the_nearest() {
        assert!(unknown("dset", &["dest", "type"]).contains("did you mean `dest`"));
        assert!(unknown("zzz", &["dest", "type"]).contains("dest, type"));
    }
}
