//! Keeps credentials out of messages.

use url::Url;

/// A URL for messages: without user, password, query and fragment. Signed URLs carry their signature in the query.
pub(super) fn address(url: &Url) -> String {
    let mut shown = url.clone();
    let query = shown.query().is_some();
    shown.set_query(None);
    shown.set_fragment(None);
    // These fail only for URLs that cannot have a user at all.
    let _ = shown.set_username("");
    let _ = shown.set_password(None);
    if query { format!("{shown}?…") } else { shown.to_string() }
}

/// Text that somebody else wrote, for messages: one line of printable characters, at most 300 of them, and every
/// URL in it without its query and user.
pub(crate) fn text(text: &str) -> String {
    const LENGTH_MAX: usize = 300;
    let mut words = Vec::new();
    let mut length = 0;
    for word in text.split_whitespace() {
        let word: String = word.chars().filter(|c| !c.is_control()).take(LENGTH_MAX).collect();
        let word = match (word.find("http://"), word.find("https://")) {
            (Some(at), _) | (None, Some(at)) => {
                let (before, rest) = word.split_at(at);
                let end = rest.find(['"', '\'', '>', ')', ',']).unwrap_or(rest.len());
                let (found, after) = rest.split_at(end);
                match Url::parse(found) {
                    Ok(parsed) => format!("{before}{}{after}", address(&parsed)),
                    Err(_) => format!("{before}…"),
                }
            }
            (None, None) => word,
        };
        length += word.chars().count() + 1;
        if length > LENGTH_MAX {
            words.push("…".to_owned());
            break;
        }
        words.push(word);
    }
    words.join(" ")
}

/// An error and its causes in one redacted line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !line.contains(&cause_text) {
            line = format!("{line}: {cause_text}");
        }
        source = cause.source();
    }
    text(&line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_secret_in_a_url_is_not_shown() {
        let secret = Url::parse("https://user:pass@host/path?X-Amz-Signature=abc#frag").unwrap();
        assert_eq!(address(&secret), "https://host/path?…");
        let line =
            text("error sending request for url (https://u:p@host/x?sig=abc): refused\u{1b}[31m\nnext");
        assert_eq!(line, "error sending request for url (https://host/x?…): refused[31m next");
        assert!(text(&"x ".repeat(1000)).len() < 400);
        assert_eq!(text("see http://[bad?sig=1"), "see …");
    }
}
