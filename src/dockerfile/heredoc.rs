//! Heredocs: `<<EOF`, `<<-EOF`, `3<<"EOF"` in RUN, COPY and ADD.

use super::expand::{ExpandError, Lexer, NoEnv};

/// A heredoc with its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heredoc {
    /// The delimiter without quotes; the file's name in COPY and ADD.
    pub name: String,
    /// The number before `<<`, 0 if there is none.
    pub descriptor: u32,
    /// Whether variables in the body are expanded: no part of the delimiter is quoted.
    pub expand: bool,
    /// Whether leading tabs are removed from the lines (`<<-`).
    pub chomp: bool,
    /// The body as it stands in the file, with its line ends.
    pub content: String,
}

impl Heredoc {
    /// The body, without leading tabs if they are to be removed.
    pub fn body(&self) -> String {
        if !self.chomp {
            return self.content.clone();
        }
        self.content.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
    }

    /// Whether `line` (with its line end) ends this heredoc.
    pub(super) fn ends_at(&self, line: &str) -> bool {
        let line = line.trim_end_matches(['\r', '\n']);
        (if self.chomp { line.trim_start_matches('\t') } else { line }) == self.name
    }
}

/// Reads one word as the beginning of a heredoc; `None` if it is none.
pub(super) fn parse_word(word: &str) -> Result<Option<Heredoc>, ExpandError> {
    let rest = word.trim_start_matches(|c: char| c.is_ascii_digit());
    let digits = &word[..word.len() - rest.len()];
    let Some(rest) = rest.strip_prefix("<<") else { return Ok(None) };
    let (chomp, rest) = match rest.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let rest = rest.trim_start_matches(['\t', '\n', '\x0c', '\r', ' ']);
    if rest.is_empty() || rest.contains('<') {
        return Ok(None);
    }
    // The word is read with quotes removed and with quotes kept: a difference means that a part of it is quoted.
    let lexer = Lexer { skip_unset: true, ..Lexer::new('\\') };
    let [name] = &lexer.words(rest, &NoEnv)?[..] else { return Ok(None) };
    let raw = Lexer { raw_quotes: true, ..lexer }.words(rest, &NoEnv)?.concat();
    let quotes = |text: &str| text.matches(['\'', '"']).count();
    Ok(Some(Heredoc {
        name: name.clone(),
        descriptor: digits.parse().unwrap_or(0),
        expand: quotes(name) == quotes(&raw),
        chomp,
        content: String::new(),
    }))
}

/// Whether the text is a single heredoc word and nothing else.
pub(super) fn is_heredoc_word(text: &str) -> bool {
    matches!(parse_word(text), Ok(Some(_)))
}

/// The heredocs that an instruction's line announces, in order, their bodies still empty.
pub(super) fn in_line(line: &str) -> Result<Vec<Heredoc>, ExpandError> {
    let lexer = Lexer { raw_quotes: true, raw_escapes: true, skip_unset: true, ..Lexer::new('\\') };
    // A line that the lexer cannot read (a lone quote, say) is the shell's business and announces nothing.
    let words = lexer.words(line, &NoEnv).unwrap_or_default();
    let mut heredocs = Vec::new();
    for word in words {
        heredocs.extend(parse_word(&word)?);
    }
    Ok(heredocs)
}

/// The text followed by the bodies of its heredocs, each ended by its delimiter.
pub(super) fn reassemble(text: &str, heredocs: &[Heredoc]) -> String {
    let mut out = text.to_owned();
    for heredoc in heredocs {
        out.push('\n');
        out.push_str(&heredoc.content);
        out.push_str(&heredoc.name);
    }
    out
}
