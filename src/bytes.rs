//! Amounts of bytes, as people write and read them.

use std::fmt;
use std::str::FromStr;

/// A number of bytes. Displayed with decimal units (`1.5 MB`), parsed with decimal or binary ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl fmt::Display for ByteSize {
    #[expect(clippy::cast_precision_loss, reason = "four digits are shown")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
        let mut value = self.0 as f64;
        let mut unit = 0;
        while value >= 999.95 && unit + 1 < UNITS.len() {
            value /= 1000.0;
            unit += 1;
        }
        if unit == 0 { write!(f, "{} B", self.0) } else { write!(f, "{value:.1} {}", UNITS[unit]) }
    }
}

/// Why a text is not a [`ByteSize`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a size (expected a number with an optional unit: 512m, 10GB, 1GiB)")]
pub struct ByteSizeError(String);

impl FromStr for ByteSize {
    type Err = ByteSizeError;

    /// `k`, `m`, `g`, `t` and `KiB` … are powers of 1024, as in Docker's "RAM units"; `kB`, `MB` … of 1000.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "checked to be in range, a size is no exact count"
    )]
    fn from_str(text: &str) -> Result<Self, ByteSizeError> {
        let error = || ByteSizeError(text.to_owned());
        let trimmed = text.trim();
        let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(split);
        let number: f64 = number.parse().map_err(|_| error())?;
        let factor: f64 = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1.0,
            "kb" => 1e3,
            "mb" => 1e6,
            "gb" => 1e9,
            "tb" => 1e12,
            "k" | "kib" => 1024.0,
            "m" | "mib" => 1024.0 * 1024.0,
            "g" | "gib" => 1024.0 * 1024.0 * 1024.0,
            "t" | "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
            _ => return Err(error()),
        };
        let bytes = number * factor;
        if !bytes.is_finite() || bytes >= u64::MAX as f64 {
            return Err(error());
        }
        Ok(Self(bytes as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_uses_decimal_units() {
        assert_eq!(ByteSize(0).to_string(), "0 B");
        assert_eq!(ByteSize(999).to_string(), "999 B");
        assert_eq!(ByteSize(1_500_000).to_string(), "1.5 MB");
        assert_eq!(ByteSize(999_999).to_string(), "1.0 MB");
    }

    #[test]
    fn parse_knows_both_kinds_of_units() {
        assert_eq!("64m".parse(), Ok(ByteSize(64 << 20)));
        assert_eq!("10GB".parse(), Ok(ByteSize(10_000_000_000)));
        assert_eq!("1.5 KiB".parse(), Ok(ByteSize(1536)));
        for bad in ["", "m", "-1", "1x", "1e400", "99999999999999999999"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }
}
