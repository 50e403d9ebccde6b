//! The lines of a Dockerfile that a finding is about, with some around them, as BuildKit shows them
//! (`solver/errdefs/source.go`).

use crate::dockerfile::Lines;

/// The excerpt; empty if `about` is beyond the text.
pub(super) fn of(name: &str, text: &str, about: Lines) -> String {
    let lines: Vec<&str> = text.split('\n').collect();
    if about.start > lines.len() || about.start == 0 {
        return String::new();
    }
    let (mut start, mut end) = (about.start, about.end.min(lines.len()));
    let padding = if start == end { 4 } else { 2 };
    // Lines before and behind are added in turns; each round counts for itself as well.
    let mut added = 0;
    while added < padding {
        if start > 1 {
            start -= 1;
            added += 1;
        }
        if end != lines.len() {
            end += 1;
            added += 1;
        }
        added += 1;
    }
    let mut excerpt = format!("{name}:{}\n--------------------\n", about.start);
    for number in start..=end {
        let mark = if (about.start..=about.end).contains(&number) { ">>>" } else { "   " };
        excerpt.push_str(&format!(" {number:>3} | {mark} {}\n", lines[number - 1]));
    }
    excerpt.push_str("--------------------\n");
    excerpt
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_shown_with_their_neighbours() {
        let text = "a\nb\nc\nd\ne\nf";
        let expected = "D:3\n--------------------\n   1 |     a\n   2 |     b\n   3 | >>> c\n   4 |     d\n   5 |     e\n--------------------\n";
        assert_eq!(of("D", text, Lines::one(3)), expected);
        let expected =
            "D:1\n--------------------\n   1 | >>> a\n   2 | >>> b\n   3 |     c\n--------------------\n";
        assert_eq!(of("D", "a\nb\nc", Lines::new(1, 2)), expected);
        assert_eq!(of("D", text, Lines::one(9)), "");
    }
}
