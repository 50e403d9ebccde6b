//! The texts of history entries, as BuildKit's frontend writes them (`dockerfile2llb/convert.go`): Go's `fmt` verbs
//! included, because people and tools compare them.

use std::fmt::Write as _;
use std::time::Duration;

use super::env::Variables;

/// Go's `%q` of a list of strings: `["a" "b"]`.
pub(super) fn quoted_list(items: &[String]) -> String {
    let quoted: Vec<String> = items.iter().map(|item| quoted(item)).collect();
    format!("[{}]", quoted.join(" "))
}

/// Go's `%v` of a list of strings: `[a b]`.
pub(super) fn plain_list(items: &[String]) -> String {
    format!("[{}]", items.join(" "))
}

/// Go's `strconv.Quote`.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c if c.is_control() || c == '\u{feff}' || ('\u{200b}'..='\u{200f}').contains(&c) => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Go's `time.Duration.String`: `1m30s`, `1.5s`, `300ms`, `0s`.
pub(super) fn go_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".to_owned();
    }
    let fraction = |whole: u128, unit: u128| {
        let rest = whole % unit;
        let digits = unit.ilog10() as usize;
        let text = format!("{rest:0digits$}");
        let text = text.trim_end_matches('0');
        if text.is_empty() { (whole / unit).to_string() } else { format!("{}.{text}", whole / unit) }
    };
    if nanos < 1_000 {
        return format!("{nanos}ns");
    }
    if nanos < 1_000_000 {
        return format!("{}µs", fraction(nanos, 1_000));
    }
    if nanos < 1_000_000_000 {
        return format!("{}ms", fraction(nanos, 1_000_000));
    }
    let seconds = nanos / 1_000_000_000;
    let below_minute = fraction(nanos % 60_000_000_000, 1_000_000_000);
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    match (hours, minutes) {
        (0, 0) => format!("{below_minute}s"),
        (0, minutes) => format!("{minutes}m{below_minute}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{below_minute}s"),
    }
}

/// The command of a RUN with the build arguments that were in force: `|1 A=b /bin/sh -c make`.
pub(super) fn run_command(args: &[String], declared: &[(String, Option<String>)], env: &Variables) -> String {
    let mut build_args: Vec<(String, String)> = Vec::new();
    for (name, value) in declared {
        let value = env.get(name).map_or_else(|| value.clone().unwrap_or_default(), str::to_owned);
        match build_args.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => *known = value,
            None => build_args.push((name.clone(), value)),
        }
    }
    let mut words = Vec::new();
    if !build_args.is_empty() {
        words.push(format!("|{}", build_args.len()));
        words.extend(build_args.into_iter().map(|(name, value)| format!("{name}={value}")));
    }
    words.extend(args.iter().cloned());
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_written_as_go_does() {
        let items = ["a b".to_owned(), "\"q\"\n\u{1}".to_owned()];
        assert_eq!(quoted_list(&items), r#"["a b" "\"q\"\n\x01"]"#);
        assert_eq!(plain_list(&items[..1]), "[a b]");
    }

    #[test]
    fn durations_are_written_as_go_does() {
        let cases = [
            (Duration::ZERO, "0s"),
            (Duration::from_millis(300), "300ms"),
            (Duration::from_millis(1500), "1.5s"),
            (Duration::from_secs(90), "1m30s"),
            (Duration::from_hours(1), "1h0m0s"),
            (Duration::from_micros(1500), "1.5ms"),
            (Duration::from_nanos(1500), "1.5µs"),
            (Duration::from_millis(60_050), "1m0.05s"),
        ];
        for (duration, text) in cases {
            assert_eq!(go_duration(duration), text);
        }
    }

    #[test]
    fn run_shows_build_arguments_once_with_their_present_value() {
        let mut env = Variables::default();
        env.set("A", "now");
        let declared =
            [("A".to_owned(), Some("then".to_owned())), ("B".to_owned(), None), ("A".to_owned(), None)];
        let args = ["/bin/sh".to_owned(), "-c".to_owned(), "make".to_owned()];
        assert_eq!(run_command(&args, &declared, &env), "|2 A=now B= /bin/sh -c make");
        assert_eq!(run_command(&args, &[], &env), "/bin/sh -c make");
    }
}
