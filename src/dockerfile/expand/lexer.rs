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
    /// How many bytes may still be produced.
    budget: usize,
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
            budget: text.len().saturating_mul(2).saturating_add(MAX_GROWTH),
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
        let outer = std::mem::replace(&mut self.raw_escapes, raw_escapes);
        let result = self.until_inner(stop);
        self.raw_escapes = outer;
        self.depth -= 1;
        result
    }

    fn until_inner(&mut self, stop: Option<char>) -> Result<(String, Vec<String>), ExpandError> {
        let mut text = String::new();
        let mut words = Words::default();
        while let Some(c) = self.peek() {
            if Some(c) == stop {
                self.input.next();
                return Ok((text, words.finish()));
            }
            match c {
                '$' => {
                    let value = self.dollar()?;
                    self.spend(value.len())?;
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
                let pattern = Pattern::parse(text)?;
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
        let pattern = Pattern::parse(&text)?;
        pattern.replace(value.unwrap_or_default(), &replacement, all, self.budget).ok_or(ExpandError::TooLong)
    }
}
