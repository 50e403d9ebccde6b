//! `--chmod`: an octal mode, or changes in the words of chmod(1).

use std::str::FromStr;

/// What `--chmod` does to a mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chmod {
    /// This mode, whatever it was before.
    Absolute(u32),
    /// These changes, one after the other.
    Symbolic(Vec<Change>),
}

/// One operation of a symbolic mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// The bits that may change.
    who: u32,
    operator: Operator,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Add,
    Remove,
    Set,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// These bits.
    Bits(u32),
    /// These bits, but only for directories and for what is executable already.
    ConditionalBits(u32),
    /// The permissions of user, group or others: how far they are shifted to the left.
    Copy { shift: u32 },
}

const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;
const STICKY: u32 = 0o1000;
const EXECUTE: u32 = 0o111;

/// Why a text is no mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChmodError {
    /// A number that is no mode.
    #[error("invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777")]
    Octal {
        /// The text.
        text: String,
    },
    /// Not a list of changes.
    #[error(
        "invalid chmod parameter: '{text}'. it should be an octal mode such as 0755 or changes such as u=rwX,go=rX"
    )]
    Symbolic {
        /// The text.
        text: String,
    },
}

impl FromStr for Chmod {
    type Err = ChmodError;

    fn from_str(text: &str) -> Result<Self, ChmodError> {
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            let octal = || ChmodError::Octal { text: text.to_owned() };
            // A sign would be accepted by the standard library.
            let mode = u32::from_str_radix(text, 8).map_err(|_| octal())?;
            return if mode > 0o7777 { Err(octal()) } else { Ok(Self::Absolute(mode)) };
        }
        let changes = parse_symbolic(text).ok_or_else(|| ChmodError::Symbolic { text: text.to_owned() })?;
        Ok(Self::Symbolic(changes))
    }
}

/// `[ugoa]*([-+=]([rwxXst]*|[ugo]))+` separated by commas; permissions may also be mixed with copies, as in BSD.
fn parse_symbolic(text: &str) -> Option<Vec<Change>> {
    let mut changes = Vec::new();
    for clause in text.split(',') {
        let operators = clause.find(['+', '-', '='])?;
        let mut who = 0;
        for c in clause[..operators].chars() {
            who |= match c {
                'u' => SETUID | 0o700,
                'g' => SETGID | 0o070,
                'o' => 0o007,
                'a' => SETUID | SETGID | 0o777,
                _ => return None,
            };
        }
        let mut rest = &clause[operators..];
        while let Some(first) = rest.chars().next() {
            let operator = match first {
                '+' => Operator::Add,
                '-' => Operator::Remove,
                '=' => Operator::Set,
                _ => return None,
            };
            let end = rest[1..].find(['+', '-', '=']).map_or(rest.len(), |at| at + 1);
            parse_permissions(&rest[1..end], who, operator, &mut changes)?;
            rest = &rest[end..];
        }
    }
    Some(changes)
}

/// The permissions behind one operator. Where BSD's `setmode`, which BuildKit follows, is odd (`+xt` is only `+t`, a copy
/// in `g=ru` undoes the `r`), so is this.
fn parse_permissions(text: &str, who: u32, operator: Operator, changes: &mut Vec<Change>) -> Option<()> {
    let (mut plain, mut conditional) = (0, 0);
    // Nobody named means everybody.
    let mut scope = if who == 0 { SETUID | SETGID | 0o777 } else { who };
    // For others alone, set-id and sticky bits mean nothing.
    let special = who == 0 || who & !0o007 != 0;
    let mut written = false;
    let mut push = |who, operator, what| changes.push(Change { who, operator, what });
    for c in text.chars() {
        let shift = match c {
            'r' => {
                plain |= 0o444;
                continue;
            }
            'w' => {
                plain |= 0o222;
                continue;
            }
            'X' if operator != Operator::Remove => {
                conditional = EXECUTE;
                continue;
            }
            'x' | 'X' => {
                plain |= EXECUTE;
                continue;
            }
            's' | 't' => {
                if special && c == 's' {
                    plain |= SETUID | SETGID;
                } else if special {
                    plain |= STICKY;
                    scope = if who == 0 { STICKY } else { scope | STICKY };
                }
                continue;
            }
            'u' => 6,
            'g' => 3,
            'o' => 0,
            _ => return None,
        };
        if plain != 0 {
            push(scope, operator, What::Bits(plain));
            plain = 0;
        }
        if conditional != 0 {
            push(scope, Operator::Add, What::ConditionalBits(conditional));
            conditional = 0;
        }
        push(scope, operator, What::Copy { shift });
        written = true;
    }
    if plain != 0 || (operator == Operator::Set && !written) {
        push(scope, operator, What::Bits(plain));
    }
    if conditional != 0 {
        push(scope, Operator::Add, What::ConditionalBits(conditional));
    }
    Some(())
}

impl Chmod {
    /// The mode (permission, set-id and sticky bits) that `mode` becomes.
    pub fn apply(&self, mode: u32, is_dir: bool) -> u32 {
        let changes = match self {
            Self::Absolute(mode) => return *mode,
            Self::Symbolic(changes) => changes,
        };
        let original = mode & 0o7777;
        changes.iter().fold(original, |mode, change| {
            let (bits, clearable) = match change.what {
                What::Bits(bits) => (bits, 0o7777),
                What::ConditionalBits(bits) => {
                    (if is_dir || original & EXECUTE != 0 { bits } else { 0 }, 0o7777)
                }
                What::Copy { shift } => {
                    let bits = mode >> shift & 0o7;
                    (bits << 6 | bits << 3 | bits, 0o777)
                }
            };
            match change.operator {
                Operator::Add => mode | bits & change.who,
                Operator::Remove => mode & !(bits & change.who),
                Operator::Set => mode & !(change.who & clearable) | bits & change.who,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_modes() {
        assert_eq!("0755".parse(), Ok(Chmod::Absolute(0o755)));
        assert_eq!("7777".parse(), Ok(Chmod::Absolute(0o7777)));
        assert_eq!("0".parse::<Chmod>().unwrap().apply(0o777, false), 0);
        for bad in ["10000", "8", "0o755", "755x"] {
            assert!(matches!(bad.parse::<Chmod>(), Err(ChmodError::Octal { .. })), "{bad}");
        }
    }

    #[test]
    fn symbolic_modes() {
        for (text, mode, is_dir, expected) in [
            ("u=rwX,go=rX", 0o600, false, 0o644),
            ("u=rwX,go=rX", 0o700, false, 0o755),
            ("u=rwX,go=rX", 0o600, true, 0o755),
            ("a=rX", 0o640, true, 0o555),
            ("+x", 0o644, false, 0o755),
            ("go-w", 0o666, false, 0o644),
            ("go=", 0o777, false, 0o700),
            ("go=u-w", 0o700, false, 0o755),
            ("g=u", 0o640, false, 0o660),
            ("o=g", 0o750, false, 0o755),
            ("u+s,g+s,+t", 0o755, false, 0o7755),
            ("u=rw", 0o4755, false, 0o655),
            ("=r", 0o755, false, 0o444),
            ("a+r-x", 0o711, false, 0o644),
            ("-X", 0o755, false, 0o644),
            ("o+st", 0o755, false, 0o755),
            ("u+x,g=u", 0o600, false, 0o770),
            ("+xt", 0o644, false, 0o1644),
            ("=t", 0o644, false, 0o1644),
            ("g=ru", 0o340, false, 0o330),
            ("g=ur", 0o340, false, 0o340),
            ("a+w,u-s", 0o4444, false, 0o666),
            // Later conditions look at the mode as it was at first.
            ("u+x,go+X", 0o644, false, 0o744),
        ] {
            assert_eq!(text.parse::<Chmod>().unwrap().apply(mode, is_dir), expected, "{text} on {mode:o}");
        }
    }

    #[test]
    fn bad_symbolic_modes() {
        for bad in ["", "u", "x", "u+q", "u+r,", ",u+r", "z+r", "u +r"] {
            assert!(matches!(bad.parse::<Chmod>(), Err(ChmodError::Symbolic { .. })), "{bad:?}");
        }
    }
}
