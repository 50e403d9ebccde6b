//! The small languages inside arguments: durations, owners, ports and signals.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use super::lint::Finding;

/// Why a value cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Not a duration in Go's notation.
    #[error("invalid duration {text:?} (expected numbers with units, such as 30s or 1m30s)")]
    Duration {
        /// The text.
        text: String,
    },
    /// A port that cannot be exposed.
    #[error("invalid port {text:?}: {reason}")]
    Port {
        /// The whole text.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Not a signal.
    #[error("invalid signal: {text}")]
    Signal {
        /// The text.
        text: String,
    },
    /// Not `user[:group]`.
    #[error("invalid user or group in {text:?}")]
    Owner {
        /// The text.
        text: String,
    },
}

/// Reads a duration in Go's notation: `300ms`, `-1.5h`, `2h45m`. Gives nanoseconds.
pub(super) fn parse_duration(text: &str) -> Result<i64, ValueError> {
    let error = || ValueError::Duration { text: text.to_owned() };
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(error());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (whole, tail) = rest.split_at(digits(rest));
        let (fraction, tail) = match tail.strip_prefix('.') {
            Some(tail) => tail.split_at(digits(tail)),
            None => ("", tail),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(error());
        }
        let (unit, tail) =
            tail.split_at(tail.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(tail.len()));
        let scale: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(error()),
        };
        let whole: i128 =
            if whole.is_empty() { 0 } else { whole.parse::<i64>().map_err(|_| error())?.into() };
        // Digits after the eighteenth are less than a nanosecond of any unit.
        let fraction = &fraction[..fraction.len().min(18)];
        let parts: i128 = if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| error())? };
        let power = 10_i128.pow(u32::try_from(fraction.len()).map_err(|_| error())?);
        total += whole * scale + parts * scale / power;
        if total > i128::from(i64::MAX) {
            return Err(error());
        }
        rest = tail;
    }
    i64::try_from(if negative { -total } else { total }).map_err(|_| error())
}

/// Reads one of HEALTHCHECK's durations: empty or zero stands for the default, anything else is at least a millisecond.
pub(super) fn parse_interval(flag: &str, text: &str) -> Result<Duration, String> {
    if text.is_empty() {
        return Ok(Duration::ZERO);
    }
    let nanoseconds = parse_duration(text).map_err(|error| error.to_string())?;
    match u64::try_from(nanoseconds) {
        Ok(nanoseconds) if nanoseconds == 0 || nanoseconds >= 1_000_000 => {
            Ok(Duration::from_nanos(nanoseconds))
        }
        _ => Err(format!("Interval {flag:?} cannot be less than 1ms")),
    }
}

/// A user or group: a number, or a name that the image's `/etc/passwd` or `/etc/group` explains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Id {
    /// A number.
    Number(u32),
    /// A name.
    Name(String),
}

/// The value of `--chown`, `user[:group]`. Without a group, the group is the number that the user turns out to have.
///
/// USER is resolved otherwise (names win over numbers, and `root` is looked up), and only when a process is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Who.
    pub user: Id,
    /// The group, if one is given.
    pub group: Option<Id>,
}

impl FromStr for Owner {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let error = || ValueError::Owner { text: text.to_owned() };
        let id = |part: &str| match part {
            // Root is always 0, whether or not the image knows it; so is an empty part.
            "" | "root" => Ok(Id::Number(0)),
            _ if part.bytes().all(|b| b.is_ascii_digit()) => {
                let number = part.parse::<i32>().ok().and_then(|number| u32::try_from(number).ok());
                number.map(Id::Number).ok_or_else(error)
            }
            _ if part.contains(':') => Err(error()),
            _ => Ok(Id::Name(part.to_owned())),
        };
        let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
        if text.is_empty() {
            return Err(error());
        }
        Ok(Self { user: id(user)?, group: group.map(id).transpose()? })
    }
}

/// The ports that one word of EXPOSE stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ports {
    /// Each as `number/protocol`, in lower case.
    pub ports: Vec<String>,
    /// What is questionable about the word.
    pub findings: Vec<Finding>,
}

/// Reads `[[ip:]host-port:]port[-port][/protocol]`. Address and host port are checked and then ignored.
pub fn parse_port(text: &str) -> Result<Ports, ValueError> {
    let error = |reason: String| ValueError::Port { text: text.to_owned(), reason };
    let (outside, container) =
        text.rsplit_once(':').map_or((None, text), |(outside, port)| (Some(outside), port));
    let (ip, host) = match outside.map(|outside| outside.rsplit_once(':').unwrap_or(("", outside))) {
        Some((ip, host)) => (ip, host),
        None => ("", ""),
    };
    let (port, protocol) = container.split_once('/').unwrap_or((container, ""));
    if port.is_empty() {
        return Err(error("no port specified".to_owned()));
    }
    let lower = match protocol.to_ascii_lowercase() {
        lower if lower.is_empty() => "tcp".to_owned(),
        lower if ["tcp", "udp", "sctp"].contains(&lower.as_str()) => lower,
        _ => return Err(error(format!("unknown protocol {protocol:?} (expected tcp, udp or sctp)"))),
    };
    if !ip.is_empty() {
        let bare = ip.strip_prefix('[').map_or(Some(ip), |ip| ip.strip_suffix(']'));
        if bare.and_then(|ip| ip.parse::<IpAddr>().ok()).is_none() {
            return Err(error(format!("invalid IP address {ip}")));
        }
    }
    let (first, last) = parse_range(port).map_err(error)?;
    if !host.is_empty() {
        let (host_first, host_last) = parse_range(host).map_err(error)?;
        if first != last && last - first != host_last - host_first {
            return Err(error(format!("the ranges {port} and {host} differ in length")));
        }
    }
    let mut findings = Vec::new();
    if protocol != protocol.to_lowercase() {
        findings.push(Finding::expose_proto_casing(text));
    }
    if outside.is_some_and(|outside| outside != ":" && !outside.is_empty()) {
        findings.push(Finding::expose_invalid_format(text));
    }
    Ok(Ports { ports: (first..=last).map(|port| format!("{port}/{lower}")).collect(), findings })
}

/// `8080` or `8000-8010`.
fn parse_range(text: &str) -> Result<(u16, u16), String> {
    let number = |part: &str| {
        let digits = part.strip_prefix('+').unwrap_or(part);
        let digits = if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            None
        } else {
            Some(digits)
        };
        digits
            .and_then(|digits| digits.parse().ok())
            .ok_or_else(|| format!("{part:?} is no number from 0 to 65535"))
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    if last < first { Err(format!("the range {text} ends before it begins")) } else { Ok((first, last)) }
}

/// The signals of Linux by name, without `SIG`. Real-time signals are told apart in [`check_signal`].
const SIGNALS: [&str; 36] = [
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE",
    "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU",
    "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN", "RTMAX",
];

/// Checks the argument of STOPSIGNAL: a number other than 0, or a name with or without `SIG`, in any case.
pub fn check_signal(text: &str) -> Result<(), ValueError> {
    let error = || ValueError::Signal { text: text.to_owned() };
    if let Ok(number) = text.parse::<i64>() {
        return if number == 0 { Err(error()) } else { Ok(()) };
    }
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    // RTMIN+1 … RTMIN+15 and RTMAX-1 … RTMAX-14 are what the signals between 34 and 64 are called.
    let offset = |prefix: &str, limit: u32| {
        let digits = name.strip_prefix(prefix)?;
        digits.parse().ok().filter(|n: &u32| (1..=limit).contains(n) && *digits == n.to_string())
    };
    let known = SIGNALS.contains(&name) || offset("RTMIN+", 15).is_some() || offset("RTMAX-", 14).is_some();
    if known { Ok(()) } else { Err(error()) }
}

/// The distinct ports of several words, sorted as the image configuration has them.
pub fn parse_ports<'t>(words: impl IntoIterator<Item = &'t str>) -> Result<BTreeSet<String>, ValueError> {
    let mut ports = BTreeSet::new();
    for word in words {
        ports.extend(parse_port(word)?.ports);
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_go_s() {
        for (text, nanoseconds) in [
            ("0", 0),
            ("0s", 0),
            ("5s", 5_000_000_000),
            ("1m30s", 90_000_000_000),
            ("1.5h", 5_400_000_000_000),
            (".5ms", 500_000),
            ("1.s", 1_000_000_000),
            ("-3us", -3_000),
            ("+2µs", 2_000),
            ("1.000000001s", 1_000_000_001),
        ] {
            assert_eq!(parse_duration(text), Ok(nanoseconds), "{text}");
        }
        for bad in [
            "",
            "-",
            "5",
            "s",
            ".s",
            "1x",
            "1s2",
            "1 s",
            "9999999h",
            "99999999999999999999s",
            "3000000h3000000h",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn intervals_are_zero_or_a_millisecond() {
        assert_eq!(parse_interval("timeout", ""), Ok(Duration::ZERO));
        assert_eq!(parse_interval("timeout", "0s"), Ok(Duration::ZERO));
        assert_eq!(parse_interval("timeout", "1ms"), Ok(Duration::from_millis(1)));
        for bad in ["1us", "-1s", "x"] {
            assert!(parse_interval("timeout", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn owners() {
        let number = |id| Id::Number(id);
        let name = |name: &str| Id::Name(name.to_owned());
        for (text, user, group) in [
            ("0", number(0), None),
            ("1000:100", number(1000), Some(number(100))),
            ("app", name("app"), None),
            ("app:staff", name("app"), Some(name("staff"))),
            ("app:0", name("app"), Some(number(0))),
            (":5", number(0), Some(number(5))),
            ("app:", name("app"), Some(number(0))),
            ("root:root", number(0), Some(number(0))),
            ("+1", name("+1"), None),
        ] {
            assert_eq!(text.parse(), Ok(Owner { user, group }), "{text}");
        }
        for bad in ["", "a:b:c", "2147483648", "1:99999999999"] {
            assert!(bad.parse::<Owner>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ports() {
        let ports =
            |text| parse_port(text).map(|found| found.ports.join(" ")).map_err(|error| error.to_string());
        for (text, expected) in [
            ("80", "80/tcp"),
            ("80/UDP", "80/udp"),
            ("80/", "80/tcp"),
            ("8000-8002/sctp", "8000/sctp 8001/sctp 8002/sctp"),
            ("5000:80", "80/tcp"),
            ("127.0.0.1:5000:80", "80/tcp"),
            ("[::1]:5000:80/tcp", "80/tcp"),
            ("127.0.0.1::80", "80/tcp"),
            ("5000-5010:80", "80/tcp"),
            ("0", "0/tcp"),
        ] {
            assert_eq!(ports(text).as_deref(), Ok(expected), "{text}");
        }
        for bad in [
            "",
            "/tcp",
            "x",
            "80/foo",
            "65536",
            "90-80",
            "-1",
            "80-",
            "1-3:80-81",
            "1.2.3:5000:80",
            "[::1:5:6",
        ] {
            assert!(ports(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_port("80/TCP").unwrap().findings[0].rule.name, "ExposeProtoCasing");
        assert_eq!(parse_port("8080:80").unwrap().findings[0].rule.name, "ExposeInvalidFormat");
        assert!(parse_port("80").unwrap().findings.is_empty());
        assert_eq!(
            parse_ports(["81", "80-81"]).unwrap().into_iter().collect::<Vec<_>>(),
            ["80/tcp", "81/tcp"]
        );
    }

    #[test]
    fn signals() {
        for good in ["SIGTERM", "term", "sigKill", "9", "64", "-1", "RTMIN", "SIGRTMIN+15", "RTMAX-14"] {
            assert_eq!(check_signal(good), Ok(()), "{good}");
        }
        for bad in ["", "0", "SIG", "SIGFOO", "RTMIN+16", "RTMIN+0", "RTMIN+01", "RTMAX-15", "SIGSIGTERM"] {
            assert!(check_signal(bad).is_err(), "{bad}");
        }
    }
}
