//! The patterns of `${x#pattern}`, `${x%pattern}` and `${x/pattern/replacement}`: `*` and `?`, no brackets.

use super::lexer::ExpandError;

/// A parsed pattern.
#[derive(Debug)]
pub(super) struct Pattern(Vec<Item>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Item {
    Char(char),
    /// `?`: one character, but no line end.
    Any,
    /// `*`: any number of characters, but no line end.
    Many,
}

impl Pattern {
    /// A backslash escapes `*`, `?` and itself; before `}` and `/` it only serves to get them into the pattern.
    pub(super) fn parse(text: &str) -> Result<Self, ExpandError> {
        let mut items = Vec::new();
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            items.push(match c {
                '*' => Item::Many,
                '?' => Item::Any,
                '\\' if matches!(chars.peek(), Some('}' | '/')) => continue,
                '\\' => match chars.next() {
                    Some(c @ ('*' | '?' | '\\')) => Item::Char(c),
                    other => {
                        return Err(ExpandError::InvalidPattern {
                            pattern: text.to_owned(),
                            escaped: other.map(String::from).unwrap_or_default(),
                        });
                    }
                },
                c => Item::Char(c),
            });
        }
        // Neighbouring stars mean the same as one and would only cost time.
        items.dedup_by(|a, b| *a == Item::Many && *b == Item::Many);
        Ok(Self(items))
    }

    /// The numbers of characters of `text` that the pattern matches from its beginning: the least and the greatest.
    fn spans<'t>(
        items: &(impl Iterator<Item = &'t Item> + Clone),
        text: impl Iterator<Item = char>,
    ) -> Option<(usize, usize)> {
        // `reach[i]`: the first `i` items can match what has been read so far.
        let count = items.clone().count();
        let mut reach = vec![false; count + 1];
        reach[0] = true;
        let close = |reach: &mut Vec<bool>| {
            for (i, item) in items.clone().enumerate() {
                if *item == Item::Many && reach[i] {
                    reach[i + 1] = true;
                }
            }
        };
        close(&mut reach);
        let mut found = reach[count].then_some((0, 0));
        for (read, c) in text.enumerate() {
            let mut next = vec![false; count + 1];
            for (i, item) in items.clone().enumerate().filter(|(i, _)| reach[*i]) {
                match item {
                    Item::Char(expected) if *expected == c => next[i + 1] = true,
                    Item::Any if c != '\n' => next[i + 1] = true,
                    Item::Many if c != '\n' => next[i] = true,
                    _ => {}
                }
            }
            close(&mut next);
            if !next.contains(&true) {
                break;
            }
            if next[count] {
                let end = read + 1;
                found = Some(found.map_or((end, end), |(least, _)| (least, end)));
            }
            reach = next;
        }
        found
    }

    /// `value` without the shortest or longest prefix that matches.
    pub(super) fn trim_prefix<'v>(&self, value: &'v str, longest: bool) -> &'v str {
        let Some((least, greatest)) = Self::spans(&self.0.iter(), value.chars()) else { return value };
        let count = if longest { greatest } else { least };
        value.char_indices().nth(count).map_or("", |(at, _)| &value[at..])
    }

    /// `value` without the shortest or longest suffix that matches.
    pub(super) fn trim_suffix<'v>(&self, value: &'v str, longest: bool) -> &'v str {
        let Some((least, greatest)) = Self::spans(&self.0.iter().rev(), value.chars().rev()) else {
            return value;
        };
        let count = if longest { greatest } else { least };
        let kept = value.chars().count() - count;
        value.char_indices().nth(kept).map_or(value, |(at, _)| &value[..at])
    }

    /// How many steps it takes at most to look for the pattern in `value`.
    pub(super) fn work(&self, value: &str) -> usize {
        (self.0.len() + 1).saturating_mul(value.len() + 1)
    }

    /// For each character of `value`, and for its end, whether a match begins there. Looking for matches backwards from all
    /// places at once keeps the search linear where few places match.
    fn starts(&self, value: &str) -> Vec<bool> {
        let items = &self.0;
        let close = |reach: &mut Vec<bool>| {
            for i in (0..items.len()).rev() {
                reach[i] |= items[i] == Item::Many && reach[i + 1];
            }
        };
        // `reach[i]`: the items from the `i`th on match something that begins here.
        let mut reach = vec![false; items.len() + 1];
        reach[items.len()] = true;
        close(&mut reach);
        let mut starts = vec![reach[0]];
        for c in value.chars().rev() {
            let mut next = vec![false; items.len() + 1];
            next[items.len()] = true;
            for (i, item) in items.iter().enumerate() {
                next[i] = match item {
                    Item::Char(expected) => *expected == c && reach[i + 1],
                    Item::Any => c != '\n' && reach[i + 1],
                    Item::Many => c != '\n' && reach[i],
                };
            }
            close(&mut next);
            starts.push(next[0]);
            reach = next;
        }
        starts.reverse();
        starts
    }

    /// `value` with the first or all matches replaced, always the longest at a place; `None` if the result has more than
    /// `limit` bytes.
    pub(super) fn replace(&self, value: &str, replacement: &str, all: bool, limit: usize) -> Option<String> {
        let starts = self.starts(value);
        let mut out = String::new();
        let mut rest = value;
        let mut position = 0;
        let mut after_match = false;
        loop {
            let span = if starts.get(position) == Some(&true) {
                Self::spans(&self.0.iter(), rest.chars())
            } else {
                None
            };
            // An empty match directly behind another match does not count.
            if let Some((_, count)) = span.filter(|(_, count)| *count > 0 || !after_match) {
                let end = rest.char_indices().nth(count).map_or(rest.len(), |(at, _)| at);
                let (matched, tail) = rest.split_at(end);
                if !all {
                    out.push_str(replacement);
                    out.push_str(tail);
                    return (out.len() <= limit).then_some(out);
                }
                expand_template(replacement, matched, &mut out, limit)?;
                (rest, position, after_match) = (tail, position + count, true);
                if count > 0 {
                    continue;
                }
            }
            let Some(c) = rest.chars().next() else { break };
            out.push(c);
            rest = &rest[c.len_utf8()..];
            position += 1;
            after_match = false;
        }
        (out.len() <= limit).then_some(out)
    }
}

/// With `//`, BuildKit's replacement is a template of Go's `regexp`: `$0` is the match, any other `$name` empty. `None` if
/// the text grows beyond `limit`.
fn expand_template(template: &str, matched: &str, out: &mut String, limit: usize) -> Option<()> {
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if out.len() > limit {
            return None;
        }
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let (braced, body) = after.strip_prefix('{').map_or((false, after), |body| (true, body));
        let end = body.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(body.len());
        let (name, tail) = body.split_at(end);
        let tail = if braced { tail.strip_prefix('}') } else { Some(tail) };
        match tail {
            Some(tail) if !name.is_empty() => {
                if name == "0" {
                    out.push_str(matched);
                }
                rest = tail;
            }
            _ => {
                out.push('$');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    (out.len() <= limit).then_some(())
}
