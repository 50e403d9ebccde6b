//! Splits an instruction's text into keyword, flags and arguments. Quotes stay in the words: expansion removes them.

/// What Go's `\s` and BuildKit's own list of blanks agree on.
pub(super) const BLANKS: [char; 5] = ['\t', '\x0b', '\x0c', '\r', ' '];

/// The text up to the first blanks and the text behind them, if there are any.
pub(super) fn split_blank(text: &str) -> (&str, Option<&str>) {
    match text.split_once(BLANKS) {
        Some((head, tail)) => (head, Some(tail.trim_start_matches(BLANKS))),
        None => (text, None),
    }
}

/// Keyword, flags, and the arguments without blanks around them.
pub(super) fn split_instruction(line: &str, escape: char) -> (&str, Vec<String>, &str) {
    let (keyword, rest) = split_blank(line.trim());
    let (flags, arguments) = rest.map_or_else(|| (Vec::new(), ""), |rest| split_flags(rest, escape));
    (keyword, flags, arguments.trim())
}

/// The leading words that begin with `--`, without their quotes and escapes, and what follows them. `--` ends the flags.
fn split_flags(text: &str, escape: char) -> (Vec<String>, &str) {
    let mut flags = Vec::new();
    let mut rest = text.trim_start();
    while rest.starts_with("--") {
        let mut flag = String::new();
        let mut quoted = None;
        let mut was_quoted = false;
        let mut end = rest.len();
        let mut chars = rest.char_indices();
        while let Some((at, c)) = chars.next() {
            if quoted.is_none() && c.is_whitespace() {
                end = at;
                break;
            }
            match quoted {
                Some(quote) if c == quote => quoted = None,
                None if c == '\'' || c == '"' => {
                    quoted = Some(c);
                    was_quoted = true;
                }
                _ if c == escape => flag.extend(chars.next().map(|(_, c)| c)),
                _ => flag.push(c),
            }
        }
        rest = &rest[end..];
        if flag == "--" {
            break;
        }
        if was_quoted || !flag.is_empty() {
            flags.push(flag);
        }
        rest = rest.trim_start();
    }
    (flags, rest)
}

/// The words of a text: separated by blanks outside of quotes; quotes and escapes stay in them.
pub(super) fn quoted_words(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut blank_ok = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if quote.is_none() && c.is_whitespace() {
            if blank_ok || !word.is_empty() {
                words.push(std::mem::take(&mut word));
            }
            blank_ok = false;
            continue;
        }
        match quote {
            Some(open) if c == open => quote = None,
            None if c == '\'' || c == '"' => {
                quote = Some(c);
                blank_ok = true;
            }
            _ => {}
        }
        // Nothing can be escaped in single quotes. An escape character at the end of the text is dropped.
        if c == escape && quote != Some('\'') {
            let Some(next) = chars.next() else { continue };
            word.push(c);
            word.push(next);
            continue;
        }
        word.push(c);
    }
    if blank_ok || !word.is_empty() {
        words.push(word);
    }
    words
}

/// Separated by blanks, whatever is quoted.
pub(super) fn blank_words(text: &str) -> Vec<String> {
    if text.is_empty() {
        return Vec::new();
    }
    text.split(BLANKS).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// A text that may be a JSON array of strings.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Json {
    /// An array of strings.
    Strings(Vec<String>),
    /// An array with something else in it.
    OtherValues,
    /// No JSON array.
    No,
}

/// Reads a JSON array of strings.
pub(super) fn parse_json(text: &str) -> Json {
    let text = text.trim_start();
    if !text.starts_with('[') {
        return Json::No;
    }
    match serde_json::from_str::<Vec<serde_json::Value>>(text) {
        Err(_) => Json::No,
        Ok(values) => values
            .into_iter()
            .map(|value| match value {
                serde_json::Value::String(text) => Some(text),
                _ => None,
            })
            .collect::<Option<Vec<_>>>()
            .map_or(Json::OtherValues, Json::Strings),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_end_at_the_first_other_word() {
        let split = |line| split_instruction(line, '\\');
        let flags = |flags: &[&str]| flags.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        assert_eq!(split("COPY  --a=b --c x --d"), ("COPY", flags(&["--a=b", "--c"]), "x --d"));
        assert_eq!(split("COPY --a -- --b c"), ("COPY", flags(&["--a"]), "--b c"));
        assert_eq!(split("RUN --a=\"x y\"z --b=c\\ d e"), ("RUN", flags(&["--a=x yz", "--b=c d"]), "e"));
        assert_eq!(split("RUN -a"), ("RUN", flags(&[]), "-a"));
        assert_eq!(split("RUN"), ("RUN", flags(&[]), ""));
        assert_eq!(split("RUN --"), ("RUN", flags(&[]), ""));
        assert_eq!(split("RUN --a=\"open x"), ("RUN", flags(&["--a=open x"]), ""));
    }

    #[test]
    fn words_keep_their_quotes() {
        assert_eq!(
            quoted_words(r#"a="b c"  d='e f'g h\ i "" \"#, '\\'),
            [r#"a="b c""#, "d='e f'g", r"h\ i", "\"\""]
        );
        assert_eq!(quoted_words("a=`  b", '`'), ["a=` ", "b"]);
        assert!(quoted_words("  ", '\\').is_empty());
    }

    #[test]
    fn json_is_an_array_of_strings_or_nothing() {
        assert_eq!(parse_json(r#" ["a", "b\n"] "#), Json::Strings(vec!["a".into(), "b\n".into()]));
        assert_eq!(parse_json(r#"["a", 1]"#), Json::OtherValues);
        for text in ["", "x", "['a']", r#"["a""#, r#"["a"] x"#] {
            assert_eq!(parse_json(text), Json::No, "{text}");
        }
    }
}
