//! Reads one word or line and replaces the variables in it.

use std::collections::BTreeSet;
use std::iter::Peekable;
use std::str::Chars;

use super::env::Env;
use super::pattern::Pattern;

/// How deep `${a:-${b:-…}}` may nest: far more than anyone writes, far less than the stack holds.
const MAX_DEPTH: usize = 64;

/// How much longer than the text its expansion may be. Repeated `ENV a=$a$a` doubles a value with each line; no process
/// can be started with a variable of more than 128 KiB.
const MAX_GROWTH: usize = 1 << 20;

/// How many steps the patterns of one text may take together: about a second.
const MAX_WORK: usize = 1 << 28;

/// Why a text cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpandError {
    /// A quote is not closed.
    #[error("unexpected end of statement while looking for matching {quote}-quote")]
    UnclosedQuote {
        /// `single` or `double`.
        quote: &'static str,
    },
    /// `${` is not closed.
    #[error("syntax error: missing '{missing}' in ${{}}")]
    UnclosedBrace {
        /// What was expected.
        missing: char,
    },
    /// Not a name after `${`.
    #[error("syntax error: bad substitution")]
    BadSubstitution,
    /// Something after the name that is no operator.
    #[error("unsupported modifier ({modifier}) in substitution")]
    UnsupportedModifier {
        /// The characters in place of the operator.
        modifier: String,
    },
    /// `${name?message}`
    #[error("{name}: {message}")]
    Required {
        /// The variable that is unset or empty.
        name: String,
        /// The text given with `?`.
        message: String,
    },
    /// A pattern after `#`, `%` or `/` that escapes what cannot be escaped.
    #[error("invalid pattern ({pattern}) in substitution: invalid escape '\\{escaped}'")]
    InvalidPattern {
        /// The whole pattern.
        pattern: String,
        /// The character after the backslash; empty at the end of the pattern.
        escaped: String,
    },
    /// Nested too deep.
    #[error("substitutions nest deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// Too long.
    #[error("the expanded text is too long (over {MAX_GROWTH} bytes more than what is written)")]
    TooLong,
    /// Long patterns in long values.
    #[error("the patterns in the substitutions are too complex")]
    TooComplex,
}

/// A word after expansion.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expanded {
    /// The text.
    pub text: String,
    /// The variables that were looked up and are set.
    pub used: BTreeSet<String>,
    /// The variables that were looked up and are not set.
    pub unmatched: BTreeSet<String>,
}

/// How texts are expanded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lexer {
    /// The escape character: a backslash, unless the `escape` directive says otherwise.
    pub escape: char,
    /// Keep quotes in the result.
    pub raw_quotes: bool,
    /// Keep escape characters in the result.
    pub raw_escapes: bool,
    /// Quotes are ordinary characters.
    pub skip_process_quotes: bool,
    /// Leave references to unset variables as they are.
    pub skip_unset: bool,
}

impl Lexer {
    /// The lexer for the words of instructions.
    pub fn new(escape: char) -> Self {
        Self { escape, raw_quotes: false, raw_escapes: false, skip_process_quotes: false, skip_unset: false }
    }

    /// The lexer for the bodies of COPY and ADD heredocs: quotes stay, and the escape character is always a backslash.
    pub fn heredoc() -> Self {
        Self { skip_process_quotes: true, ..Self::new('\\') }
    }

    /// Expands `text` into a single word, whatever blanks it has.
    pub fn word(&self, text: &str, env: &dyn Env) -> Result<Expanded, ExpandError> {
        let mut run = Run::new(self, text, env);
        run.expanded.text = run.until(None, self.raw_escapes)?.0;
        Ok(run.expanded)
    }

    /// Expands `text` and splits it at blanks outside of quotes; blanks in the values of variables split, too.
    pub fn words(&self, text: &str, env: &dyn Env) -> Result<Vec<String>, ExpandError> {
        Ok(Run::new(self, text, env).until(None, self.raw_escapes)?.1)
    }
}

/// One expansion in progress.
struct Run<'a> {
    lexer: &'a Lexer,
    input: Peekable<Chars<'a>>,
    env: &'a dyn Env,
    raw_escapes: bool,
    depth: usize,
    /// How many texts have been read up to now, the nested ones included.
    nested: usize,
    /// How many bytes may still be produced.
    budget: usize,
    /// How many steps patterns may still take.
    work: usize,
    expanded: Expanded,
}

/// Words being collected.
#[derive(Default)]
struct Words {
    done: Vec<String>,
    current: String,
    inside: bool,
}

impl Words {
    fn push(&mut self, c: char) {
        if !c.is_whitespace() {
            self.push_raw(c);
        } else if self.inside && !self.current.is_empty() {
            self.done.push(std::mem::take(&mut self.current));
            self.inside = false;
        }
    }

    fn push_raw(&mut self, c: char) {
        self.current.push(c);
        self.inside = true;
    }

    /// BuildKit collects the words of nested texts in the same place, so that the beginning of a word is lost when
    /// something like `${x:-y}` follows: `EXPOSE 80${x:-80}` is port 80. Images have to come out the same.
    fn forget_after(&mut self, before: &mut usize, nested: usize) {
        if *before != nested {
            self.current.clear();
            *before = nested;
        }
    }

    fn push_raw_text(&mut self, text: &str) {
        self.current.push_str(text);
        self.inside = true;
    }

    fn finish(mut self) -> Vec<String> {
        if !self.current.is_empty() {
            self.done.push(self.current);
        }
        self.done
    }
}

impl<'a> Run<'a> {
    fn new(lexer: &'a Lexer, text: &'a str, env: &'a dyn Env) -> Self {
        Self {
            lexer,
            input: text.chars().peekable(),
            env,
            raw_escapes: lexer.raw_escapes,
            depth: 0,
            nested: 0,
            budget: text.len().saturating_mul(2).saturating_add(MAX_GROWTH),
            work: MAX_WORK,
            expanded: Expanded::default(),
        }
    }

    fn peek(&mut self) -> Option<char> {
        self.input.peek().copied()
    }

    fn spend(&mut self, bytes: usize) -> Result<(), ExpandError> {
        self.budget = self.budget.checked_sub(bytes).ok_or(ExpandError::TooLong)?;
        Ok(())
    }

    /// Reads up to `stop`, or to the end of the text if there is none. Gives the text as one word and as words.
    fn until(&mut self, stop: Option<char>, raw_escapes: bool) -> Result<(String, Vec<String>), ExpandError> {
        if self.depth == MAX_DEPTH {
            return Err(ExpandError::TooDeep);
        }
        self.depth += 1;
        self.nested += 1;
        let outer = std::mem::replace(&mut self.raw_escapes, raw_escapes);
        let result = self.until_inner(stop);
        self.raw_escapes = outer;
        self.depth -= 1;
        result
    }

    fn until_inner(&mut self, stop: Option<char>) -> Result<(String, Vec<String>), ExpandError> {
        let mut text = String::new();
        let mut words = Words::default();
        let mut nested = self.nested;
        while let Some(c) = self.peek() {
            if Some(c) == stop {
                self.input.next();
                return Ok((text, words.finish()));
            }
            match c {
                '$' => {
                    let value = self.dollar()?;
                    self.spend(value.len())?;
                    words.forget_after(&mut nested, self.nested);
                    text.push_str(&value);
                    value.chars().for_each(|c| words.push(c));
                }
                '<' => {
                    let value = self.angle();
                    text.push_str(&value);
                    words.push_raw_text(&value);
                }
                '\'' | '"' if !self.lexer.skip_process_quotes => {
                    let value = if c == '"' { self.double_quoted()? } else { self.single_quoted()? };
                    words.forget_after(&mut nested, self.nested);
                    text.push_str(&value);
                    words.push_raw_text(&value);
                }
                _ => {
                    self.input.next();
                    if c != self.lexer.escape {
                        text.push(c);
                        words.push(c);
                        continue;
                    }
                    if self.raw_escapes {
                        text.push(c);
                        words.push_raw(c);
                    }
                    // An escape character at the end of the text is dropped.
                    let Some(c) = self.input.next() else { break };
                    text.push(c);
                    words.push_raw(c);
                }
            }
        }
        match stop {
            Some(missing) => Err(ExpandError::UnclosedBrace { missing }),
            None => Ok((text, words.finish())),
        }
    }

    /// `'…'`: everything is literal.
    fn single_quoted(&mut self) -> Result<String, ExpandError> {
        self.input.next();
        let mut text = String::new();
        loop {
            match self.input.next() {
                None => return Err(ExpandError::UnclosedQuote { quote: "single" }),
                Some('\'') => break,
                Some(c) => text.push(c),
            }
        }
        Ok(if self.lexer.raw_quotes { format!("'{text}'") } else { text })
    }

    /// `"…"`: variables are replaced; quote, dollar and the escape character can be escaped.
    fn double_quoted(&mut self) -> Result<String, ExpandError> {
        self.input.next();
        let mut text = String::new();
        loop {
            match self.peek() {
                None => return Err(ExpandError::UnclosedQuote { quote: "double" }),
                Some('"') => {
                    self.input.next();
                    break;
                }
                Some('$') => {
                    let value = self.dollar()?;
                    self.spend(value.len())?;
                    text.push_str(&value);
                }
                Some(c) => {
                    self.input.next();
                    if c != self.lexer.escape {
                        text.push(c);
                        continue;
                    }
                    if self.raw_escapes {
                        text.push(c);
                    }
                    match self.peek() {
                        None => {}
                        Some(next) if next == '"' || next == '$' || next == self.lexer.escape => {
                            self.input.next();
                            text.push(next);
                        }
                        Some(_) => text.push(c),
                    }
                }
            }
        }
        Ok(if self.lexer.raw_quotes { format!("\"{text}\"") } else { text })
    }

    /// `<<` keeps the blanks after it, so that `<< EOF` stays one word.
    fn angle(&mut self) -> String {
        let mut text = String::from("<");
        self.input.next();
        if self.input.next_if_eq(&'<').is_none() {
            return text;
        }
        text.push('<');
        while let Some(c) = self.input.next_if(|c| matches!(c, '\t' | '\r' | ' ' | '\x0b' | '\x0c')) {
            text.push(c);
        }
        text
    }

    fn lookup(&mut self, name: &str) -> Option<&'a str> {
        let value = self.env.get(name);
        let seen = if value.is_some() { &mut self.expanded.used } else { &mut self.expanded.unmatched };
        seen.insert(name.to_owned());
        value
    }

    /// `$name` and `${…}`.
    fn dollar(&mut self) -> Result<String, ExpandError> {
        self.input.next();
        if self.input.next_if_eq(&'{').is_some() {
            return self.braced();
        }
        let name = self.name();
        if name.is_empty() {
            return Ok("$".to_owned());
        }
        Ok(match self.lookup(&name) {
            None if self.lexer.skip_unset => format!("${name}"),
            value => value.unwrap_or_default().to_owned(),
        })
    }

    /// A name: letters, digits and `_`; or digits alone; or one special character.
    fn name(&mut self) -> String {
        let mut name = String::new();
        match self.peek() {
            Some(c) if c.is_numeric() => {
                while let Some(c) = self.input.next_if(|c| c.is_numeric()) {
                    name.push(c);
                }
            }
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => name.extend(self.input.next()),
            _ => {
                while let Some(c) = self.input.next_if(|c| c.is_alphabetic() || c.is_numeric() || *c == '_') {
                    name.push(c);
                }
            }
        }
        name
    }

    /// What follows `${`.
    fn braced(&mut self) -> Result<String, ExpandError> {
        match self.peek() {
            None => return Err(ExpandError::UnclosedBrace { missing: '}' }),
            Some('{' | '}' | ':') => return Err(ExpandError::BadSubstitution),
            Some(_) => {}
        }
        let name = self.name();
        let mut modifier = String::new();
        modifier.extend(self.input.next());
        match modifier.chars().next() {
            Some('}') => Ok(match self.lookup(&name) {
                None if self.lexer.skip_unset => format!("${{{name}}}"),
                value => value.unwrap_or_default().to_owned(),
            }),
            Some('/') => self.replace(&name),
            Some(':') => {
                modifier.extend(self.input.next());
                self.modified(&name, &modifier, true)
            }
            Some('+' | '-' | '?' | '#' | '%') => self.modified(&name, &modifier, false),
            Some(_) => Err(ExpandError::UnsupportedModifier { modifier }),
            None => Err(ExpandError::UnclosedBrace { missing: '}' }),
        }
    }

    /// `${name-word}` and its relatives; `null_is_unset` with a colon.
    fn modified(&mut self, name: &str, modifier: &str, null_is_unset: bool) -> Result<String, ExpandError> {
        let unsupported = || ExpandError::UnsupportedModifier { modifier: modifier.to_owned() };
        let operator = modifier.chars().last().ok_or_else(unsupported)?;
        let pattern = matches!(operator, '#' | '%');
        if null_is_unset && pattern {
            return Err(unsupported());
        }
        let (word, _) = self.until(Some('}'), pattern)?;
        let value = self.lookup(name);
        if value.is_none() && self.lexer.skip_unset {
            return Ok(format!("${{{name}{modifier}{word}}}"));
        }
        let effective = value.filter(|value| !(null_is_unset && value.is_empty()));
        match operator {
            '-' => Ok(effective.map_or(word, str::to_owned)),
            '+' => Ok(effective.map(|_| word).unwrap_or_default()),
            '?' => match effective {
                Some(value) => Ok(value.to_owned()),
                None => {
                    let default = if value.is_none() {
                        "is not allowed to be unset"
                    } else {
                        "is not allowed to be empty"
                    };
                    let message = if word.is_empty() { default.to_owned() } else { word };
                    Err(ExpandError::Required { name: name.to_owned(), message })
                }
            },
            '#' | '%' => {
                let (longest, text) = match word.strip_prefix(operator) {
                    Some(rest) => (true, rest),
                    None => (false, &*word),
                };
                let value = value.unwrap_or_default();
                let pattern = self.pattern(text, value)?;
                let rest = if operator == '#' {
                    pattern.trim_prefix(value, longest)
                } else {
                    pattern.trim_suffix(value, longest)
                };
                Ok(rest.to_owned())
            }
            _ => Err(unsupported()),
        }
    }

    /// `${name/pattern/replacement}` and `${name//pattern/replacement}`.
    fn replace(&mut self, name: &str) -> Result<String, ExpandError> {
        let all = self.input.next_if_eq(&'/').is_some();
        let (text, _) = self.until(Some('/'), true)?;
        let (replacement, _) = self.until(Some('}'), true)?;
        let value = self.lookup(name);
        if value.is_none() && self.lexer.skip_unset {
            return Ok(format!("${{{name}/{text}/{replacement}}}"));
        }
        let value = value.unwrap_or_default();
        let pattern = self.pattern(&text, value)?;
        pattern.replace(value, &replacement, all, self.budget).ok_or(ExpandError::TooLong)
    }

    /// A pattern that is about to be looked for in `value`.
    fn pattern(&mut self, text: &str, value: &str) -> Result<Pattern, ExpandError> {
        let pattern = Pattern::parse(text)?;
        self.work = self.work.checked_sub(pattern.work(value)).ok_or(ExpandError::TooComplex)?;
        Ok(pattern)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::NoEnv;
    use super::*;

    /// From BuildKit's tests: text, environment, result (`None` is an error), used, unmatched.
    type Case = (
        &'static str,
        &'static [(&'static str, &'static str)],
        Option<&'static str>,
        &'static str,
        &'static str,
    );

    const CASES: &[Case] = &[
        ("x", &[("DUMMY", "dummy")], Some("x"), "", ""),
        ("x ${UNUSED}", &[("DUMMY", "dummy")], Some("x "), "", "UNUSED"),
        ("x ${FOO}", &[("FOO", "y")], Some("x y"), "FOO", ""),
        (
            "${FOO-aaa} ${BAR-bbb} ${BAZ-ccc}",
            &[("FOO", "xxx"), ("BAR", "")],
            Some("xxx  ccc"),
            "BAR FOO",
            "BAZ",
        ),
        (
            "${FOO:-aaa} ${BAR:-bbb} ${BAZ:-ccc}",
            &[("FOO", "xxx"), ("BAR", "")],
            Some("xxx bbb ccc"),
            "BAR FOO",
            "BAZ",
        ),
        ("${FOO:-}", &[("FOO", "xxx")], Some("xxx"), "FOO", ""),
        ("${FOO:-}", &[], Some(""), "", "FOO"),
        (
            "${FOO+aaa} ${BAR+bbb} ${BAZ+ccc}",
            &[("FOO", "xxx"), ("BAR", "")],
            Some("aaa bbb "),
            "BAR FOO",
            "BAZ",
        ),
        (
            "${FOO:+aaa} ${BAR:+bbb} ${BAZ:+ccc}",
            &[("FOO", "xxx"), ("BAR", "")],
            Some("aaa  "),
            "BAR FOO",
            "BAZ",
        ),
        ("${FOO?aaa}", &[("FOO", "xxx")], Some("xxx"), "FOO", ""),
        ("${BAR?bbb}", &[("BAR", "")], Some(""), "BAR", ""),
        ("${BAZ?ccc}", &[], None, "", ""),
        ("${FOO:?aaa}", &[("FOO", "xxx")], Some("xxx"), "FOO", ""),
        ("${BAR:?bbb}", &[("BAR", "")], None, "", ""),
        ("${BAZ:?ccc}", &[], None, "", ""),
        ("${FOO=aaa}", &[("FOO", "xxx")], None, "", ""),
        ("${FOO=:aaa}", &[("FOO", "xxx")], None, "", ""),
        ("${FOO=}", &[], None, "", ""),
        ("${FOO#()[]{\\}^$.\\*\\?|\\\\}", &[("FOO", "()[]{}^$.*?|\\x")], Some("x"), "FOO", ""),
        ("${FOO%%\\**}", &[("FOO", "xx**")], Some("xx"), "FOO", ""),
        ("${FOO#*x*y}", &[("FOO", "xxyy")], Some("y"), "FOO", ""),
        ("${FOO#*}", &[("FOO", "xxyy")], Some("xxyy"), "FOO", ""),
        ("${FOO#$BAR}", &[("FOO", "xxyy"), ("BAR", "x")], Some("xyy"), "BAR FOO", ""),
        ("${FOO#$BAR}", &[("FOO", "xxyy"), ("BAR", "")], Some("xxyy"), "BAR FOO", ""),
        ("${FOO#}", &[("FOO", "xxyy")], Some("xxyy"), "FOO", ""),
        ("${FOO##*x}", &[("FOO", "xxyy")], Some("yy"), "FOO", ""),
        ("${FOO##}", &[("FOO", "xxyy")], Some("xxyy"), "FOO", ""),
        ("${FOO#?\\?}", &[("FOO", "???y")], Some("?y"), "FOO", ""),
        ("${ABC:-.}${FOO%x}${ABC:-.}", &[("FOO", "xxyy")], Some(".xxyy."), "FOO", "ABC"),
        ("${FOO%%\\**\\*}", &[("FOO", "a***yy*")], Some("a"), "FOO", ""),
        ("${FOO%}", &[("FOO", "xxyy")], Some("xxyy"), "FOO", ""),
        ("${FOO%%$BAR}", &[("FOO", "xxyy"), ("BAR", "")], Some("xxyy"), "BAR FOO", ""),
        ("${FOO%.*} ${FOO%%.*}", &[("FOO", "a.b.c")], Some("a.b a"), "FOO", ""),
        ("${FOO#*.} ${FOO##*.}", &[("FOO", "a.b.c")], Some("b.c c"), "FOO", ""),
        ("${FOO:#}", &[], None, "", ""),
        ("${FOO:##}", &[], None, "", ""),
        ("${FOO:%}", &[], None, "", ""),
        ("${FOO:%%}", &[], None, "", ""),
        ("${FOO#\\x}", &[("FOO", "x")], None, "", ""),
        (
            "${FOO/$NEEDLE/.} - ${FOO//$NEEDLE/.}",
            &[("FOO", "/foo*/*/*.txt"), ("NEEDLE", "\\*/")],
            Some("/foo.*/*.txt - /foo..*.txt"),
            "FOO NEEDLE",
            "",
        ),
        (
            "${FOO/$NEEDLE/} - ${FOO//$NEEDLE/}",
            &[("FOO", "/tmp/tmp/bar.txt"), ("NEEDLE", "/tmp")],
            Some("/tmp/bar.txt - /bar.txt"),
            "FOO NEEDLE",
            "",
        ),
        (
            "${FOO/$NEEDLE/$REPLACEMENT} - ${FOO//$NEEDLE/$REPLACEMENT}",
            &[("FOO", "/a/foo/b/c.txt"), ("NEEDLE", "/?/"), ("REPLACEMENT", "/")],
            Some("/foo/b/c.txt - /foo/c.txt"),
            "FOO NEEDLE REPLACEMENT",
            "",
        ),
        ("${FOO//\\//\\/}", &[("FOO", "/tmp/foo.txt")], Some("\\/tmp\\/foo.txt"), "FOO", ""),
        ("${FOO/$BAR/ww}", &[("FOO", "xxyy"), ("BAR", "")], Some("wwxxyy"), "BAR FOO", ""),
        ("${FOO//$BAR/w}", &[("FOO", "xy"), ("BAR", "")], Some("wxwyw"), "BAR FOO", ""),
        ("${FOO//*/w}", &[("FOO", "xy")], Some("w"), "FOO", ""),
        ("${FOO//x/\\$0$BAR}", &[("FOO", "xy"), ("BAR", "$0$0")], Some("\\xxxy"), "BAR FOO", ""),
        ("${FOO//ww}", &[("FOO", "xxyy")], None, "", ""),
        ("${FOO//}", &[("FOO", "xxyy")], None, "", ""),
        ("${FOO///}", &[("FOO", "xxyy")], Some("xxyy"), "FOO", ""),
        ("${FOO///}", &[], Some(""), "", "FOO"),
    ];

    #[test]
    fn modifiers_work_like_buildkit_s() {
        for (text, env, expected, used, unmatched) in CASES {
            let result = Lexer::new('\\').word(text, env);
            let Some(expected) = expected else {
                assert!(result.is_err(), "{text}: {result:?}");
                continue;
            };
            let result = result.unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(result.text, *expected, "{text}");
            assert_eq!(result.used.into_iter().collect::<Vec<_>>().join(" "), *used, "{text}");
            assert_eq!(result.unmatched.into_iter().collect::<Vec<_>>().join(" "), *unmatched, "{text}");
        }
    }

    #[test]
    fn messages_say_what_is_wrong() {
        let error = |text: &str| Lexer::new('\\').word(text, &[("NULL", "")]).unwrap_err().to_string();
        assert_eq!(error("${X?give X}"), "X: give X");
        assert_eq!(error("${X:?}"), "X: is not allowed to be unset");
        assert_eq!(error("${NULL:?}"), "NULL: is not allowed to be empty");
        assert_eq!(error("${X!y}"), "unsupported modifier (!) in substitution");
        assert_eq!(error("${X:=y}"), "unsupported modifier (:=) in substitution");
        assert_eq!(error("${X"), "syntax error: missing '}' in ${}");
        assert_eq!(error("${X/a}"), "syntax error: missing '/' in ${}");
        assert_eq!(error("'a"), "unexpected end of statement while looking for matching single-quote");
    }

    #[test]
    fn the_escape_character_can_be_a_backtick() {
        let word = |text: &str| Lexer::new('`').word(text, &[("X", "x")]).unwrap().text;
        assert_eq!(word("C:\\dir\\$X"), "C:\\dir\\x");
        assert_eq!(word("`$X \"`\"`$X``\""), "$X \"$X`");
    }

    #[test]
    fn words_lose_what_stands_before_a_nested_text() {
        let words = |text: &str| Lexer::new('\\').words(text, &[("X", "x y")]).unwrap();
        assert_eq!(words("80$X 1\"$X\""), ["80x", "y", "1x y"]);
        assert_eq!(words("a 80${X:-90} 1\"${Y-z}\""), ["a", "x", "y", "z"]);
    }

    #[test]
    fn heredoc_bodies_keep_their_quotes() {
        let body = Lexer::heredoc().word("\"$X\" 'it''s $X' \\$X \\\\\n", &[("X", "x")]).unwrap().text;
        assert_eq!(body, "\"x\" 'it''s x' $X \\\n");
    }

    #[test]
    fn raw_lexers_keep_what_they_do_not_know() {
        let lexer = Lexer { raw_quotes: true, skip_unset: true, ..Lexer::new('\\') };
        let word = |text: &str| lexer.word(text, &[("X", "x")]).unwrap().text;
        assert_eq!(word("'$X' \"$X\" $Y ${Y} ${Y:-$X} ${Y/a/b}"), "'$X' \"x\" $Y ${Y} ${Y:-x} ${Y/a/b}");
    }

    #[test]
    fn the_last_of_equal_names_is_meant() {
        assert_eq!(Lexer::new('\\').word("$X", &[("X", "1"), ("X", "2")]).unwrap().text, "2");
    }

    #[test]
    fn nesting_and_growth_are_bounded() {
        let deep = format!("{}x{}", "${a:-".repeat(100_000), "}".repeat(100_000));
        assert_eq!(Lexer::new('\\').word(&deep, &NoEnv), Err(ExpandError::TooDeep));
        let env = [("A", "x".repeat(1000))];
        assert_eq!(Lexer::new('\\').word(&"$A".repeat(2000), &env), Err(ExpandError::TooLong));
        assert_eq!(Lexer::new('\\').word("${A//x/$A$A$A}", &env), Err(ExpandError::TooLong));
        assert!(Lexer::new('\\').word(&"$A".repeat(500), &env).is_ok());
        let long = [("A", "a".repeat(200_000)), ("P", "*b".repeat(10_000)), ("R", "$0".repeat(10_000))];
        assert_eq!(Lexer::new('\\').word("${A//$P/x}", &long), Err(ExpandError::TooComplex));
        assert_eq!(Lexer::new('\\').word("${A//*/$R}", &long), Err(ExpandError::TooLong));
        assert_eq!(Lexer::new('\\').word("${A//*b/x}", &long).unwrap().text.len(), 200_000);
    }

    proptest! {
        #[test]
        fn any_text_ends(text in "[$a{}:+\\-?#%/*'\"\\\\< ]{0,40}", value in "[a*? /]{0,10}") {
            let lexer = Lexer::new('\\');
            let env = [("a", value)];
            let _ = lexer.word(&text, &env);
            let _ = lexer.words(&text, &env);
        }

        /// The patterns agree with a matcher that tries everything.
        #[test]
        fn patterns_agree_with_a_naive_matcher(pattern in "[ab*?]{0,6}", value in "[ab]{0,8}") {
            fn naive(pattern: &str, text: &str) -> bool {
                let mut chars = pattern.chars();
                match chars.next() {
                    None => text.is_empty(),
                    Some('*') => (0..=text.len()).any(|at| naive(chars.as_str(), &text[at..])),
                    Some(c) => text.starts_with(|t| c == '?' || c == t) && naive(chars.as_str(), &text[1..]),
                }
            }
            let ends: Vec<usize> = (0..=value.len()).filter(|end| naive(&pattern, &value[..*end])).collect();
            let starts: Vec<usize> = (0..=value.len()).filter(|start| naive(&pattern, &value[*start..])).collect();
            let env = [("v", value.clone()), ("p", pattern.clone())];
            let word = |text: &str| Lexer::new('\\').word(text, &env).unwrap().text;
            let start = (0..=value.len()).find(|start| (*start..=value.len()).any(|end| naive(&pattern, &value[*start..end])));
            let replaced = start.map_or(value.clone(), |start| {
                let end = (start..=value.len()).rev().find(|end| naive(&pattern, &value[start..*end])).unwrap();
                format!("{}-{}", &value[..start], &value[end..])
            });
            prop_assert_eq!(word("${v/$p/-}"), replaced);
            prop_assert_eq!(word("${v#$p}"), &value[ends.first().copied().unwrap_or(0)..]);
            prop_assert_eq!(word("${v##$p}"), &value[ends.last().copied().unwrap_or(0)..]);
            prop_assert_eq!(word("${v%$p}"), &value[..starts.last().copied().unwrap_or(value.len())]);
            prop_assert_eq!(word("${v%%$p}"), &value[..starts.first().copied().unwrap_or(value.len())]);
        }
    }
}
