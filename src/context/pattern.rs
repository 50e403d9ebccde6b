//! Patterns for paths, as Go programs have them: [`matches()`] is `filepath.Match`, for the sources of COPY and ADD;
//! [`DeepPattern`] is a pattern of `moby/patternmatcher`, which knows `**`, for `.dockerignore`, `--exclude` and
//! `--parents`.
//!
//! Paths are bytes. What is not UTF-8 in them counts as one unknown character for each byte.

/// Why a pattern is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("syntax error in pattern")]
pub struct BadPattern;

/// Whether the whole of `name` matches `pattern`: `*` and `?` match anything but `/`, `[a-z]` and `[^a-z]` are classes, a
/// backslash takes the next character literally. A malformed pattern is an error if the
/// malformed part, between two stars, is looked at.
pub fn matches(pattern: &[u8], name: &[u8]) -> Result<bool, BadPattern> {
    let (mut pattern, mut name) = (pattern, name);
    'pattern: while !pattern.is_empty() {
        let (star, chunk, rest) = scan_chunk(pattern);
        pattern = rest;
        if star && chunk.is_empty() {
            return Ok(!name.contains(&b'/'));
        }
        let last = pattern.is_empty();
        if let Some(tail) = match_chunk(chunk, name)?
            && (tail.is_empty() || !last)
        {
            name = tail;
            continue;
        }
        if star {
            for skipped in 0..name.len() {
                if name[skipped] == b'/' {
                    break;
                }
                if let Some(tail) = match_chunk(chunk, &name[skipped + 1..])?
                    && (tail.is_empty() || !last)
                {
                    name = tail;
                    continue 'pattern;
                }
            }
        }
        return Ok(false);
    }
    Ok(name.is_empty())
}

/// Whether the text has a character that means something in patterns, so that finding no file for it is no error.
pub fn has_wildcard(text: impl AsRef<[u8]>) -> bool {
    let mut bytes = text.as_ref().iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => {
                bytes.next();
            }
            b'*' | b'?' | b'[' => return true,
            _ => {}
        }
    }
    false
}

/// The stars at the beginning, what follows them up to the next star, and the rest.
fn scan_chunk(pattern: &[u8]) -> (bool, &[u8], &[u8]) {
    let stars = pattern.iter().take_while(|b| **b == b'*').count();
    let pattern = &pattern[stars..];
    let mut in_class = false;
    let mut end = 0;
    while end < pattern.len() {
        match pattern[end] {
            b'\\' if end + 1 < pattern.len() => end += 1,
            b'[' => in_class = true,
            b']' => in_class = false,
            b'*' if !in_class => break,
            _ => {}
        }
        end += 1;
    }
    (stars > 0, &pattern[..end], &pattern[end..])
}

/// What is left of `text` behind a match of `chunk`, which has no star. The whole chunk is checked in any case.
fn match_chunk<'t>(chunk: &[u8], text: &'t [u8]) -> Result<Option<&'t [u8]>, BadPattern> {
    let mut chunk = chunk;
    let mut rest = Some(text);
    while let Some(&first) = chunk.first() {
        rest = rest.filter(|text| !text.is_empty());
        match first {
            b'[' => {
                let subject = rest.map(decode);
                rest = subject.and_then(|(_, width)| rest.map(|text| &text[width..]));
                chunk = &chunk[1..];
                let negated = chunk.first() == Some(&b'^');
                if negated {
                    chunk = &chunk[1..];
                }
                let mut found = false;
                let mut ranges = 0;
                loop {
                    if ranges > 0 && chunk.first() == Some(&b']') {
                        chunk = &chunk[1..];
                        break;
                    }
                    let (low, tail) = class_char(chunk)?;
                    let (high, tail) = if tail[0] == b'-' { class_char(&tail[1..])? } else { (low, tail) };
                    chunk = tail;
                    found |= subject.is_some_and(|(c, _)| low <= c && c <= high);
                    ranges += 1;
                }
                if found == negated {
                    rest = None;
                }
            }
            b'?' => {
                rest = rest.filter(|text| text[0] != b'/').map(|text| &text[decode(text).1..]);
                chunk = &chunk[1..];
            }
            _ => {
                if first == b'\\' {
                    chunk = &chunk[1..];
                }
                let literal = *chunk.first().ok_or(BadPattern)?;
                rest = rest.filter(|text| text[0] == literal).map(|text| &text[1..]);
                chunk = &chunk[1..];
            }
        }
    }
    Ok(rest)
}

/// One character of a class, possibly escaped, and what follows it, which is never empty.
fn class_char(chunk: &[u8]) -> Result<(char, &[u8]), BadPattern> {
    let chunk = match chunk.first() {
        None | Some(b'-' | b']') => return Err(BadPattern),
        Some(b'\\') => &chunk[1..],
        Some(_) => chunk,
    };
    if chunk.is_empty() {
        return Err(BadPattern);
    }
    let (c, width) = decode(chunk);
    let rest = &chunk[width..];
    if rest.is_empty() || (c == char::REPLACEMENT_CHARACTER && width == 1) {
        return Err(BadPattern);
    }
    Ok((c, rest))
}

/// The first character of a text that is not empty, and how many bytes it takes; a byte that is not UTF-8 is a
/// replacement character.
fn decode(text: &[u8]) -> (char, usize) {
    let head = &text[..text.len().min(4)];
    let valid = match std::str::from_utf8(head) {
        Ok(valid) => valid,
        Err(error) => std::str::from_utf8(&head[..error.valid_up_to()]).unwrap_or_default(),
    };
    valid.chars().next().map_or((char::REPLACEMENT_CHARACTER, 1), |c| (c, c.len_utf8()))
}

/// All characters of a text.
fn characters(text: &[u8]) -> Vec<char> {
    let mut out = Vec::with_capacity(text.len());
    for chunk in text.utf8_chunks() {
        out.extend(chunk.valid().chars());
        out.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    out
}

/// A pattern that knows `**`: any number of path elements, also none.
///
/// The original translates a pattern to a regular expression and lets through what it does not understand, so some odd
/// patterns mean odd things (`[*]` is not a star). They mean the same here, because the translation is the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeepPattern {
    text: String,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// No special character: the path itself.
    Exact,
    /// `prefix**`
    Prefix,
    /// `**suffix`
    Suffix,
    /// Everything else.
    Program(Vec<Step>),
}

/// One step of a translated pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// One character.
    One(Set),
    /// Any number of characters.
    Many(Set),
    /// `(.*/)?`: skip the next step or not.
    MaybeDeep,
    /// The inside of `(.*/)?`: anything up to a slash.
    Deep,
    /// The beginning of the path.
    Begin,
    /// The end of the path.
    End,
    /// A word boundary, or none.
    Boundary(bool),
}

/// A set of characters.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Set {
    negated: bool,
    ranges: Vec<(char, char)>,
}

impl Set {
    fn one(c: char) -> Self {
        Self { negated: false, ranges: vec![(c, c)] }
    }

    fn not(c: char) -> Self {
        Self { negated: true, ranges: vec![(c, c)] }
    }

    fn contains(&self, c: char) -> bool {
        self.ranges.iter().any(|(low, high)| *low <= c && c <= *high) != self.negated
    }
}

const MAX_CHAR: char = char::MAX;
const DIGITS: &[(char, char)] = &[('0', '9')];
const NOT_DIGITS: &[(char, char)] = &[('\0', '/'), (':', MAX_CHAR)];
const SPACES: &[(char, char)] = &[('\t', '\n'), ('\x0c', '\r'), (' ', ' ')];
const NOT_SPACES: &[(char, char)] = &[('\0', '\x08'), ('\x0b', '\x0b'), ('\x0e', '\x1f'), ('!', MAX_CHAR)];
const WORD: &[(char, char)] = &[('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')];
const NOT_WORD: &[(char, char)] = &[('\0', '/'), (':', '@'), ('[', '^'), ('`', '`'), ('{', MAX_CHAR)];

impl DeepPattern {
    /// Understands a pattern, which should be clean (no `.`, `..` or double slashes inside) and without a leading slash.
    pub fn new(text: &str) -> Result<Self, BadPattern> {
        matches(text.as_bytes(), b".")?;
        let (kind, expression) = translate(text);
        let kind = match kind {
            Kind::Program(_) => Kind::Program(compile(&expression)?),
            simple => simple,
        };
        Ok(Self { text: text.to_owned(), kind })
    }

    /// The pattern's text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the whole of `path` matches.
    pub fn matches(&self, path: &[u8]) -> bool {
        let text = self.text.as_bytes();
        match &self.kind {
            Kind::Exact => path == text,
            Kind::Prefix => path.starts_with(&text[..text.len() - 2]),
            Kind::Suffix => {
                let suffix = &text[2..];
                path.ends_with(suffix) || suffix.strip_prefix(b"/") == Some(path)
            }
            Kind::Program(steps) => run(steps, &characters(path)),
        }
    }

    /// Whether a path beneath the directory `dir` might match. False is certain, true is not.
    pub fn may_match_beneath(&self, dir: &[u8]) -> bool {
        // The replacement character stands for any byte that is no UTF-8.
        let special = ['*', '?', '[', ']', '\\', '^', char::REPLACEMENT_CHARACTER];
        let literal = self.text.find(special).unwrap_or(self.text.len());
        let prefix = &self.text.as_bytes()[..literal];
        let inside =
            |path: &[u8], dir: &[u8]| path.strip_prefix(dir).is_some_and(|rest| rest.first() == Some(&b'/'));
        // An exact pattern has to lie beneath; another one may also begin above.
        inside(prefix, dir) || (literal < self.text.len() && [dir, b"/"].concat().starts_with(prefix))
    }
}

/// The regular expression that the original makes of a pattern, and which kind of pattern it is.
fn translate(pattern: &str) -> (Kind, String) {
    let mut kind = Kind::Exact;
    let mut out = String::from("^");
    let mut chars = pattern.chars().peekable();
    let mut first = true;
    while let Some(c) = chars.next() {
        match c {
            '*' if chars.next_if_eq(&'*').is_some() => {
                chars.next_if_eq(&'/');
                if chars.peek().is_some() {
                    out.push_str("(.*/)?");
                    kind = Kind::Program(Vec::new());
                } else if kind == Kind::Exact {
                    kind = Kind::Prefix;
                } else {
                    out.push_str(".*");
                    kind = Kind::Program(Vec::new());
                }
                if first {
                    kind = Kind::Suffix;
                }
            }
            '*' => {
                out.push_str("[^/]*");
                kind = Kind::Program(Vec::new());
            }
            '?' => {
                out.push_str("[^/]");
                kind = Kind::Program(Vec::new());
            }
            '.' | '+' | '(' | ')' | '|' | '{' | '}' | '$' => {
                out.push('\\');
                out.push(c);
            }
            '\\' => {
                out.push('\\');
                if let Some(next) = chars.next() {
                    out.push(next);
                    kind = Kind::Program(Vec::new());
                }
            }
            '[' | ']' => {
                out.push(c);
                kind = Kind::Program(Vec::new());
            }
            _ => out.push(c),
        }
        first = false;
    }
    out.push('$');
    (kind, out)
}

/// Understands the regular expressions that [`translate`] can write.
fn compile(expression: &str) -> Result<Vec<Step>, BadPattern> {
    let mut steps = Vec::new();
    let mut rest = expression;
    while let Some(c) = rest.chars().next() {
        if let Some(tail) = rest.strip_prefix("(.*/)?") {
            steps.extend([Step::MaybeDeep, Step::Deep]);
            rest = tail;
            continue;
        }
        let mut tail = &rest[c.len_utf8()..];
        let set = match c {
            '^' | '$' => {
                steps.push(if c == '^' { Step::Begin } else { Step::End });
                rest = tail;
                continue;
            }
            '\\' => {
                let escaped = tail.chars().next().ok_or(BadPattern)?;
                tail = &tail[escaped.len_utf8()..];
                let assertion = match escaped {
                    'A' => Some(Step::Begin),
                    'z' => Some(Step::End),
                    'b' | 'B' => Some(Step::Boundary(escaped == 'b')),
                    _ => None,
                };
                if let Some(assertion) = assertion {
                    steps.push(assertion);
                    rest = tail;
                    continue;
                }
                Set { negated: false, ranges: escape(escaped)? }
            }
            '[' => {
                let (set, after) = class(tail)?;
                tail = after;
                set
            }
            '.' => Set::not('\n'),
            '*' => return Err(BadPattern),
            c => Set::one(c),
        };
        rest = match tail.strip_prefix('*') {
            Some(tail) => {
                steps.push(Step::Many(set));
                tail
            }
            None => {
                steps.push(Step::One(set));
                tail
            }
        };
    }
    Ok(steps)
}

/// What a character behind a backslash stands for. Escapes that no one can mean in a path are errors.
fn escape(c: char) -> Result<Vec<(char, char)>, BadPattern> {
    let control = |c: char| Ok(vec![(c, c)]);
    match c {
        'd' => Ok(DIGITS.to_vec()),
        'D' => Ok(NOT_DIGITS.to_vec()),
        's' => Ok(SPACES.to_vec()),
        'S' => Ok(NOT_SPACES.to_vec()),
        'w' => Ok(WORD.to_vec()),
        'W' => Ok(NOT_WORD.to_vec()),
        'a' => control('\x07'),
        'f' => control('\x0c'),
        'n' => control('\n'),
        'r' => control('\r'),
        't' => control('\t'),
        'v' => control('\x0b'),
        c if c.is_ascii() && !c.is_ascii_alphanumeric() => Ok(vec![(c, c)]),
        _ => Err(BadPattern),
    }
}

/// A class, behind its opening bracket.
fn class(text: &str) -> Result<(Set, &str), BadPattern> {
    let (negated, mut rest) = text.strip_prefix('^').map_or((false, text), |rest| (true, rest));
    let mut ranges = Vec::new();
    let mut first = true;
    loop {
        if !first && let Some(tail) = rest.strip_prefix(']') {
            return Ok((Set { negated, ranges }, tail));
        }
        first = false;
        if rest.starts_with("[:") && rest.contains(":]") {
            // Named classes are beyond what patterns are for.
            return Err(BadPattern);
        }
        let single = |rest: &mut &str| -> Result<Vec<(char, char)>, BadPattern> {
            let mut chars = rest.chars();
            let found = match chars.next().ok_or(BadPattern)? {
                '\\' => escape(chars.next().ok_or(BadPattern)?)?,
                c => vec![(c, c)],
            };
            *rest = chars.as_str();
            Ok(found)
        };
        let low = single(&mut rest)?;
        if let [(low, end)] = low[..]
            && low == end
            && rest.starts_with('-')
            && !rest.starts_with("-]")
            && rest.len() > 1
        {
            rest = &rest[1..];
            let [(high, end)] = single(&mut rest)?[..] else { return Err(BadPattern) };
            if high != end || high < low {
                return Err(BadPattern);
            }
            ranges.push((low, high));
        } else {
            ranges.extend(low);
        }
    }
}

/// Whether the steps lead through all of `text`. All ways are followed at once, so that no pattern takes long.
fn run(steps: &[Step], text: &[char]) -> bool {
    let mut active = vec![false; steps.len() + 1];
    active[0] = true;
    for at in 0..=text.len() {
        // Steps that take no character lead forward only, so that one pass finds them all.
        for (index, step) in steps.iter().enumerate() {
            if !active[index] {
                continue;
            }
            match step {
                Step::Many(_) => active[index + 1] = true,
                Step::MaybeDeep => {
                    active[index + 1] = true;
                    active[index + 2] = true;
                }
                Step::Begin => active[index + 1] |= at == 0,
                Step::End => active[index + 1] |= at == text.len(),
                Step::Boundary(wanted) => active[index + 1] |= is_boundary(text, at) == *wanted,
                Step::One(_) | Step::Deep => {}
            }
        }
        let Some(&c) = text.get(at) else { break };
        let mut next = vec![false; steps.len() + 1];
        let mut any = false;
        for (index, step) in steps.iter().enumerate() {
            if !active[index] {
                continue;
            }
            match step {
                Step::One(set) if set.contains(c) => next[index + 1] = true,
                Step::Many(set) if set.contains(c) => next[index] = true,
                Step::Deep if c != '\n' => {
                    next[index] = true;
                    next[index + 1] |= c == '/';
                }
                _ => continue,
            }
            any = true;
        }
        if !any {
            return false;
        }
        active = next;
    }
    active[steps.len()]
}

/// Whether a word begins or ends at `at`.
fn is_boundary(text: &[char], at: usize) -> bool {
    let word = |c: Option<&char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || *c == '_');
    word(at.checked_sub(1).and_then(|at| text.get(at))) != word(text.get(at))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dockerfile::clean_path;

    /// From the tests of Go's `path/filepath`: pattern, name, result; `None` is an error.
    const GO: &[(&str, &str, Option<bool>)] = &[
        ("abc", "abc", Some(true)),
        ("*", "abc", Some(true)),
        ("*c", "abc", Some(true)),
        ("a*", "a", Some(true)),
        ("a*", "abc", Some(true)),
        ("a*", "ab/c", Some(false)),
        ("a*/b", "abc/b", Some(true)),
        ("a*/b", "a/c/b", Some(false)),
        ("a*b*c*d*e*/f", "axbxcxdxe/f", Some(true)),
        ("a*b*c*d*e*/f", "axbxcxdxexxx/f", Some(true)),
        ("a*b*c*d*e*/f", "axbxcxdxe/xxx/f", Some(false)),
        ("a*b*c*d*e*/f", "axbxcxdxexxx/fff", Some(false)),
        ("a*b?c*x", "abxbbxdbxebxczzx", Some(true)),
        ("a*b?c*x", "abxbbxdbxebxczzy", Some(false)),
        ("ab[c]", "abc", Some(true)),
        ("ab[b-d]", "abc", Some(true)),
        ("ab[e-g]", "abc", Some(false)),
        ("ab[^c]", "abc", Some(false)),
        ("ab[^b-d]", "abc", Some(false)),
        ("ab[^e-g]", "abc", Some(true)),
        ("a\\*b", "a*b", Some(true)),
        ("a\\*b", "ab", Some(false)),
        ("a?b", "a☺b", Some(true)),
        ("a[^a]b", "a☺b", Some(true)),
        ("a???b", "a☺b", Some(false)),
        ("a[^a][^a][^a]b", "a☺b", Some(false)),
        ("[a-ζ]*", "α", Some(true)),
        ("*[a-ζ]", "A", Some(false)),
        ("a?b", "a/b", Some(false)),
        ("a*b", "a/b", Some(false)),
        ("[\\]a]", "]", Some(true)),
        ("[\\-]", "-", Some(true)),
        ("[x\\-]", "x", Some(true)),
        ("[x\\-]", "-", Some(true)),
        ("[x\\-]", "z", Some(false)),
        ("[\\-x]", "x", Some(true)),
        ("[\\-x]", "-", Some(true)),
        ("[\\-x]", "a", Some(false)),
        ("[]a]", "]", None),
        ("[-]", "-", None),
        ("[x-]", "x", None),
        ("[x-]", "-", None),
        ("[x-]", "z", None),
        ("[-x]", "x", None),
        ("[-x]", "-", None),
        ("[-x]", "a", None),
        ("\\", "a", None),
        ("[a-b-c]", "a", None),
        ("[", "a", None),
        ("[^", "a", None),
        ("[^bc", "a", None),
        ("a[", "a", None),
        ("a[", "ab", None),
        ("a[", "x", None),
        ("a/b[", "x", None),
        // What stands behind a star that is not reached is not looked at.
        ("a*[", "x", Some(false)),
        ("*x", "xxx", Some(true)),
        ("", "", Some(true)),
        ("", "a", Some(false)),
        // A star in a class is itself.
        ("[*]", "*", Some(true)),
        ("[*]", "a", Some(false)),
    ];

    #[test]
    fn matches_like_go() {
        for (pattern, name, expected) in GO {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()).ok(), *expected, "{pattern} {name}");
        }
        assert_eq!(matches(b"a?b", b"a\xffb"), Ok(true));
        assert_eq!(matches(b"\xff*", b"\xffb"), Ok(true));
        assert_eq!(matches(b"[\xff]", b"\xff"), Err(BadPattern));
    }

    #[test]
    fn wildcards_are_seen() {
        assert!(has_wildcard("a*") && has_wildcard("a?") && has_wildcard("[a]"));
        assert!(!has_wildcard("a") && !has_wildcard("a\\*b") && !has_wildcard("]"));
    }

    #[test]
    fn translation_is_the_original_s() {
        for (pattern, kind, expression) in [
            ("*", "program", "^[^/]*$"),
            ("file*", "program", "^file[^/]*$"),
            ("*file", "program", "^[^/]*file$"),
            ("a*/b", "program", "^a[^/]*/b$"),
            ("**", "suffix", ""),
            ("**/**", "program", "^(.*/)?.*$"),
            ("dir/**", "prefix", ""),
            ("**/dir", "suffix", ""),
            ("**/dir2/*", "program", "^(.*/)?dir2/[^/]*$"),
            ("**/dir2/**", "program", "^(.*/)?dir2/.*$"),
            ("**file", "suffix", ""),
            ("**/file*txt", "program", "^(.*/)?file[^/]*txt$"),
            ("**/**/*.txt", "program", "^(.*/)?(.*/)?[^/]*\\.txt$"),
            ("a[b-d]e", "program", "^a[b-d]e$"),
            (".*", "program", "^\\.[^/]*$"),
            ("abc.def", "exact", ""),
            ("abc?def", "program", "^abc[^/]def$"),
            ("**/foo/bar", "suffix", ""),
            ("a(b)c/def", "exact", ""),
            ("a.|)$(}+{bc", "exact", ""),
        ] {
            let (found, text) = translate(pattern);
            let name = match found {
                Kind::Exact => "exact",
                Kind::Prefix => "prefix",
                Kind::Suffix => "suffix",
                Kind::Program(_) => "program",
            };
            assert_eq!(name, kind, "{pattern}");
            if name == "program" {
                assert_eq!(text, expression, "{pattern}");
            }
        }
    }

    #[test]
    fn deep_patterns() {
        let check = |pattern: &str, path: &str| DeepPattern::new(pattern).unwrap().matches(path.as_bytes());
        assert!(check("**/*.rs", "a/b/c.rs") && check("**/*.rs", "c.rs"));
        assert!(!check("*.rs", "a/c.rs"));
        assert!(check("a/**/z", "a/z") && check("a/**/z", "a/b/c/z") && !check("a/**/z", "az"));
        // Odd patterns mean what they mean in the original.
        assert!(!check("[*]", "*") && check("[*]", "[[/]"));
        assert!(check("a\\dc*", "a1c"));
        for bad in ["[z-a]*", "a\\qb", "[Local-Only]"] {
            assert_eq!(DeepPattern::new(bad), Err(BadPattern), "{bad}");
        }
    }

    #[test]
    fn may_match_beneath_is_exact_for_plain_patterns() {
        let check =
            |pattern: &str, dir: &str| DeepPattern::new(pattern).unwrap().may_match_beneath(dir.as_bytes());
        assert!(check("a/b", "a") && !check("a", "a") && !check("ab", "a") && !check("a", "a/b"));
        assert!(check("a/*", "a") && check("a/*/c", "a/b") && check("**/x", "a") && !check("b/**", "a"));
        assert!(check("a*", "abc") && check("a/b*", "a/bc"));
    }

    proptest! {
        #[test]
        fn any_pattern_and_path_end(pattern in "[a*?\\[\\]^/\\\\.-]{0,24}", path in "[ab*/\\[.-]{0,24}") {
            let _ = matches(pattern.as_bytes(), path.as_bytes());
            if let Ok(pattern) = DeepPattern::new(&pattern) {
                pattern.matches(path.as_bytes());
            }
        }

        /// Without `**` and classes both languages are one.
        #[test]
        fn the_two_languages_agree(pattern in "([ab/.]|[*]b|[?]|\\\\[*]){0,8}", path in "[ab*/.]{0,8}") {
            let deep = DeepPattern::new(&pattern).unwrap();
            prop_assert_eq!(matches(pattern.as_bytes(), path.as_bytes()), Ok(deep.matches(path.as_bytes())));
        }

        #[test]
        fn what_matches_beneath_was_announced(
            pattern in "([ab]|/|[*]|[?]|[*][*]/){1,6}", dir in "[ab](/[ab]){0,2}", rest in "[ab](/[ab]){0,2}"
        ) {
            if let Ok(pattern) = DeepPattern::new(&clean_path(&pattern))
                && pattern.matches(format!("{dir}/{rest}").as_bytes())
            {
                prop_assert!(pattern.may_match_beneath(dir.as_bytes()));
            }
        }
    }
}
