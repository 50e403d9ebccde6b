//! Makes bytes that a command printed safe to show: nothing in them can move the cursor, clear the screen, set the
//! title or reach the clipboard.

/// Tab stops are this far apart, as on every terminal.
const TAB: usize = 8;

/// One line for a terminal or a log file. Escape sequences and control characters are removed, tabs become
/// spaces, invalid UTF-8 becomes U+FFFD. With `colours`, sequences that only set colours and styles (SGR) stay,
/// and are reset at the end.
///
/// The sequences are those of ECMA-48: CSI (`ESC [` … final byte), the strings OSC, DCS, SOS, PM, APC up to ST or
/// BEL, and two-byte escapes; also in their 8-bit forms.
pub fn sanitize(line: &[u8], colours: bool) -> String {
    let text = String::from_utf8_lossy(line);
    let mut clean = String::with_capacity(text.len());
    let mut column = 0;
    let mut styled = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let introducer = match c {
            '\x1b' => match chars.peek() {
                Some('[' | ']' | 'P' | 'X' | '^' | '_') => chars.next(),
                // Two-byte escapes may have intermediate bytes before the final one.
                Some(_) => {
                    while chars.next_if(|c| matches!(c, ' '..='/')).is_some() {}
                    chars.next_if(|c| matches!(c, '0'..='~'));
                    continue;
                }
                None => continue,
            },
            '\u{9b}' => Some('['),
            '\u{9d}' => Some(']'),
            '\u{90}' | '\u{98}' | '\u{9e}' | '\u{9f}' => Some('P'),
            '\t' => {
                let width = TAB - column % TAB;
                clean.extend(std::iter::repeat_n(' ', width));
                column += width;
                continue;
            }
            // Bidirectional controls can make a line read as something else than it is.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => continue,
            c if c.is_control() => continue,
            c => {
                clean.push(c);
                column += 1;
                continue;
            }
        };
        if introducer == Some('[') {
            let mut parameters = String::new();
            while let Some(c) = chars.next_if(|c| matches!(c, ' '..='?')) {
                parameters.push(c);
            }
            let last = chars.next_if(|c| matches!(c, '@'..='~'));
            if last == Some('m')
                && colours
                && parameters.chars().all(|c| c.is_ascii_digit() || c == ';' || c == ':')
            {
                clean.push_str("\x1b[");
                clean.push_str(&parameters);
                clean.push('m');
                styled = true;
            }
        } else {
            while let Some(c) = chars.next() {
                if matches!(c, '\x07' | '\u{9c}') {
                    break;
                }
                if c == '\x1b' {
                    chars.next_if_eq(&'\\');
                    break;
                }
            }
        }
    }
    if styled {
        clean.push_str("\x1b[0m");
    }
    clean
}

/// Cuts `line`, as [`sanitize`] made it, to `width` columns; style sequences take none. Wide characters count as two.
pub(super) fn truncate(line: &str, width: usize) -> String {
    let mut cut = String::new();
    let mut column = 0;
    let mut styled = false;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        if c == '\x1b' {
            styled = true;
            cut.push(c);
            for c in chars.by_ref() {
                cut.push(c);
                if c == 'm' {
                    break;
                }
            }
            continue;
        }
        column += char_width(c);
        if column > width {
            if styled {
                cut.push_str("\x1b[0m");
            }
            return cut;
        }
        cut.push(c);
    }
    cut
}

/// Columns that a character takes, near enough: nothing worse than a cut line hangs on it. East Asian wide
/// characters and emoji take two.
fn char_width(c: char) -> usize {
    match c {
        '\u{300}'..='\u{36f}' | '\u{200b}'..='\u{200d}' | '\u{fe00}'..='\u{fe0f}' => 0,
        '\u{1100}'..='\u{115f}'
        | '\u{2e80}'..='\u{a4cf}'
        | '\u{ac00}'..='\u{d7a3}'
        | '\u{f900}'..='\u{faff}'
        | '\u{fe30}'..='\u{fe6f}'
        | '\u{ff00}'..='\u{ff60}'
        | '\u{ffe0}'..='\u{ffe6}'
        | '\u{1f300}'..='\u{1faff}'
        | '\u{20000}'..='\u{3fffd}' => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sequences_that_do_more_than_colour_are_removed() {
        for (bytes, plain, coloured) in [
            (&b"plain"[..], "plain", "plain"),
            (b"\x1b[31mred\x1b[0m", "red", "\x1b[31mred\x1b[0m\x1b[0m"),
            (b"a\x1b[2Jb\x1b[1;1Hc\x1b[Kd", "abcd", "abcd"),
            (b"a\x1b[?25lb", "ab", "ab"),
            (b"a\x1b[>4;1mb", "ab", "ab"),
            (b"\x1b]0;title\x07x", "x", "x"),
            (b"\x1b]52;c;AAAA\x1b\\x", "x", "x"),
            (b"\x1bP1$r\x1b\\x", "x", "x"),
            (b"\x1b]unterminated", "", ""),
            (b"\x1bcreset\x1b(Bx\x1b", "resetx", "resetx"),
            (b"a\x08b\x7fc\0", "abc", "abc"),
            (b"a\tb", "a       b", "a       b"),
            (b"\xff\xfe", "\u{fffd}\u{fffd}", "\u{fffd}\u{fffd}"),
            ("\u{9b}2Jx\u{9d}t\u{9c}y".as_bytes(), "xy", "xy"),
            ("a\u{202e}b".as_bytes(), "ab", "ab"),
        ] {
            assert_eq!(sanitize(bytes, false), plain, "{bytes:?}");
            assert_eq!(sanitize(bytes, true), coloured, "{bytes:?}");
        }
    }

    #[test]
    fn lines_are_cut_by_columns() {
        assert_eq!(truncate("abcdef", 3), "abc");
        assert_eq!(truncate("日本語", 5), "日本");
        assert_eq!(truncate("\x1b[31mabc\x1b[0m", 2), "\x1b[31mab\x1b[0m");
        assert_eq!(truncate("abc", 3), "abc");
    }

    proptest! {
        #[test]
        fn nothing_that_controls_a_terminal_comes_through(bytes: Vec<u8>, colours: bool) {
            let clean = sanitize(&bytes, colours);
            let mut rest = clean.as_str();
            while let Some(at) = rest.find(char::is_control) {
                prop_assert!(colours, "{clean:?}");
                let sequence = &rest[at..];
                let end = sequence.find('m').unwrap();
                prop_assert!(sequence.starts_with("\x1b["));
                prop_assert!(sequence[2..end].chars().all(|c| c.is_ascii_digit() || c == ';' || c == ':'));
                rest = &sequence[end + 1..];
            }
        }
    }
}
